//! The fake's processes: scripts of a few words that run on a clock and hear signals.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::Notify,
};
use wharf_model::Exit;
use wharf_process::Clock;

use super::LogSource;

const KILL: i32 = 9;
const INTERRUPT: i32 = 2;
const TERMINATE: i32 = 15;
/// A round of an endless loop takes at least so long, so that none spins.
const ROUND: Duration = Duration::from_millis(10);

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    operations: Vec<Operation>,
    /// The program that does not exist, instead of one that does.
    pub(super) missing: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Print(LogSource, Bytes),
    Sleep(Duration),
    Trap(i32, i64),
    Exit(i64),
    Status(i64),
    Jump(usize),
    /// Copies standard input to standard output.
    Copy,
    Forever,
}

impl Program {
    /// Runs until it is asked to stop, and obeys.
    pub(super) fn server() -> Self {
        let traps = [Operation::Trap(TERMINATE, 0), Operation::Trap(INTERRUPT, 0)];
        Self { operations: traps.into_iter().chain([Operation::Forever]).collect(), missing: None }
    }

    /// What these words do; one word that is a script if `shell`.
    pub(super) fn parse(words: &[String], shell: bool) -> Self {
        let Some(first) = words.first() else { return Self::server() };
        if shell {
            return Self { operations: compile(first), missing: None };
        }
        if first.starts_with("/no/such") {
            return Self { operations: Vec::new(), missing: Some(first.clone()) };
        }
        let program = first.rsplit('/').next().unwrap_or(first);
        match program {
            "sh" | "bash" | "ash" if words.get(1).is_some_and(|option| option == "-c") => {
                Self { operations: compile(words.get(2).map_or("", String::as_str)), missing: None }
            }
            "echo" | "printf" | "sleep" | "true" | "false" | "cat" => {
                Self { operations: statement(&words.join(" ")).into_iter().collect(), missing: None }
            }
            _ => Self::server(),
        }
    }
}

fn compile(script: &str) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut loops = Vec::new();
    for part in script.split([';', '\n']) {
        let part = part.trim();
        let part = part.strip_prefix("do ").unwrap_or(part).trim();
        if part.starts_with("while ") {
            loops.push(operations.len());
        } else if part == "done" {
            operations.push(Operation::Jump(loops.pop().unwrap_or_default()));
        } else {
            operations.extend(statement(part));
        }
    }
    operations
}

fn statement(text: &str) -> Option<Operation> {
    let text = text.strip_prefix("exec ").unwrap_or(text);
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    Some(match word {
        "" | ":" => return None,
        "echo" | "printf" => {
            let (text, source) = match rest.strip_suffix(">&2") {
                Some(text) => (text.trim_end(), LogSource::Stderr),
                None => (rest, LogSource::Stdout),
            };
            let text = text.trim_matches(['"', '\'']);
            let end = if word == "echo" { "\n" } else { "" };
            Operation::Print(source, Bytes::from(format!("{text}{end}")))
        }
        "sleep" => {
            Operation::Sleep(Duration::try_from_secs_f64(rest.parse().unwrap_or(1.0)).unwrap_or_default())
        }
        "exit" => Operation::Exit(rest.parse().unwrap_or(0)),
        "true" => Operation::Status(0),
        "false" => Operation::Status(1),
        "cat" => Operation::Copy,
        "trap" => {
            let mut parts = rest.rsplitn(2, ' ');
            let signal = parts.next().unwrap_or_default();
            let action = parts.next().unwrap_or_default().trim_matches(['"', '\'']);
            let code = action.strip_prefix("exit ").and_then(|code| code.parse().ok()).unwrap_or(0);
            Operation::Trap(number(signal), code)
        }
        _ => Operation::Forever,
    })
}

fn number(signal: &str) -> i32 {
    super::super::docker::signal_number(signal).map_or(0, |signal| signal as i32)
}

/// A process's ear for signals. Clones are the same process.
#[derive(Debug, Clone)]
pub(super) struct Process {
    init: bool,
    pending: Arc<Mutex<VecDeque<i32>>>,
    told: Arc<Notify>,
}

impl Process {
    /// As PID 1 it hears only what it has a trap for.
    pub(super) fn new(init: bool) -> Self {
        Self { init, pending: Arc::default(), told: Arc::default() }
    }

    pub(super) fn signal(&self, signal: i32) {
        self.pending.lock().push_back(signal);
        self.told.notify_one();
    }

    /// Runs the program to its end.
    pub(super) async fn run<F: Future<Output = ()> + Send>(
        &self,
        clock: &dyn Clock,
        program: Program,
        mut input: Pin<Box<dyn AsyncRead + Send>>,
        print: impl Fn(LogSource, Bytes) -> F + Send + Sync,
    ) -> Exit {
        let mut traps = BTreeMap::new();
        let (mut next, mut status) = (0, 0);
        while let Some(operation) = program.operations.get(next) {
            next += 1;
            let pause = match operation {
                Operation::Print(source, bytes) => {
                    print(*source, bytes.clone()).await;
                    status = 0;
                    None
                }
                Operation::Trap(signal, code) => {
                    traps.insert(*signal, *code);
                    None
                }
                Operation::Exit(code) => return ended(*code),
                Operation::Status(code) => {
                    status = *code;
                    None
                }
                Operation::Jump(to) => {
                    next = *to;
                    Some(ROUND)
                }
                Operation::Sleep(time) => Some(*time),
                Operation::Forever => Some(Duration::MAX),
                Operation::Copy => {
                    let mut buffer = [0; 4096];
                    loop {
                        tokio::select! {
                            // Cancel-safe: reads nothing if dropped.
                            read = input.read(&mut buffer) => match read {
                                Ok(0) | Err(_) => break,
                                Ok(size) => print(LogSource::Stdout, Bytes::copy_from_slice(&buffer[..size])).await,
                            },
                            // Cancel-safe: signals stay in their queue.
                            code = self.killed(&traps) => return ended(code),
                        }
                    }
                    None
                }
            };
            match pause {
                Some(Duration::MAX) => return ended(self.killed(&traps).await),
                Some(pause) => tokio::select! {
                    // Dropped only with the process.
                    () = clock.sleep(pause) => {}
                    // Cancel-safe: signals stay in their queue.
                    code = self.killed(&traps) => return ended(code),
                },
                None => {}
            }
        }
        ended(status)
    }

    /// The exit code of the first signal that ends the process.
    async fn killed(&self, traps: &BTreeMap<i32, i64>) -> i64 {
        loop {
            let told = self.told.notified();
            while let Some(signal) = self.pending.lock().pop_front() {
                match traps.get(&signal) {
                    Some(code) if signal != KILL => return *code,
                    None if self.init && signal != KILL => {}
                    Some(_) | None => return 128 + i64::from(signal),
                }
            }
            told.await;
        }
    }
}

const fn ended(code: i64) -> Exit {
    Exit { code, oom: false }
}
