//! Runs programs: to their end with a deadline, or beside the caller with a log.
//!
//! - A program that fails is an error that names it, its exit and what it said.
//! - A program that does not end in time is killed; nothing here waits for ever.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// How long a program that is run to its end may take unless the caller says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a program that ran to its end left: its exit and its texts.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; a program ended by signal N has 128+N, as in a shell.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    what: String,
}

impl Output {
    /// Whether the program said that it did what it was asked.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }

    /// Standard output without the last line break, or an error with everything the program said.
    pub fn text(self) -> Result<String> {
        self.raw_text().map(|text| text.trim_end().to_owned())
    }

    /// Standard output as it is, or an error with everything the program said.
    pub fn raw_text(self) -> Result<String> {
        if self.is_success() {
            return Ok(self.stdout);
        }
        bail!("`{}` exited with {}: {}", self.what, self.code, said(&self.stdout, &self.stderr))
    }
}

fn said(stdout: &str, stderr: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    text.trim().to_owned()
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end and gives its standard output; failing is an error.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let what = describe(&command);
    complete(command, &what, &[], PATIENCE)?.text()
}

/// As [`run`], with a text on standard input.
pub(crate) fn feed<S: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
    input: &str,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let what = describe(&command);
    complete(command, &what, input.as_bytes(), PATIENCE)?.text().with_context(|| format!("given:\n{input}"))
}

/// Runs `command` to its end; `what` is its name in messages.
pub(crate) fn complete(mut command: Command, what: &str, input: &[u8], within: Duration) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let stdin = child.stdin.take();
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    if let Some(mut stdin) = stdin {
        let input = input.to_vec();
        // A program may end without reading all it was given: that is for its exit code to tell.
        thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let Some(status) = wait_for(&mut child, within)? else {
        drop(kill_tree(&child, Signal::SIGKILL));
        drop(child.kill());
        drop(child.wait());
        let (stdout, stderr) = (stdout.text(), stderr.text());
        bail!("`{what}` did not end within {within:?}; it said: {stdout}{stderr}")
    };
    Ok(Output { code: code_of(status), stdout: stdout.text(), stderr: stderr.text(), what: what.to_owned() })
}

/// A stream that is being read to its end by a thread.
struct Gathered(mpsc::Receiver<Vec<u8>>);

fn gather(stream: Option<impl Read + Send + 'static>) -> Gathered {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    Gathered(receiver)
}

impl Gathered {
    /// All that was written. The program has ended; what it left running may hold the stream open,
    /// so a silence of half a second counts as the end.
    fn text(&self) -> String {
        let mut bytes = Vec::new();
        while let Ok(piece) = self.0.recv_timeout(Duration::from_millis(500)) {
            bytes.extend(piece);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn wait_for(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + within;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Sends a signal to a process by its pid on this machine.
pub(crate) fn kill(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("no such pid")?;
    nix::sys::signal::kill(Pid::from_raw(raw), signal)
        .with_context(|| format!("cannot send {signal} to {pid}"))
}

/// Signals the program behind an `nsenter`: its child, since it forks to enter a process namespace.
fn kill_tree(child: &Child, signal: Signal) -> Result<()> {
    let targets = children(child.id());
    if targets.is_empty() {
        return kill(child.id(), signal);
    }
    targets.into_iter().try_for_each(|pid| kill(pid, signal))
}

/// A program that runs in a node beside its caller; what it writes goes to a log file in the
/// node's directory. Letting go of this does not end the program; the node's end does.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    what: String,
}

impl Running {
    pub(crate) fn start(mut command: Command, what: &str, log: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
        Ok(Self { child, log: log.to_owned(), what: what.to_owned() })
    }

    /// The file that holds what the program wrote.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What the program has written so far, both streams together.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether the program has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The program's pid on this machine (not the one it sees itself).
    pub fn pid(&self) -> Option<u32> {
        children(self.child.id()).first().copied()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_tree(&self.child, signal).with_context(|| format!("signalling `{}`", self.what))
    }

    /// Waits for the program's end and gives its exit code (128+N for signal N).
    pub fn wait(&mut self, within: Duration) -> Result<i32> {
        match wait_for(&mut self.child, within)? {
            Some(status) => Ok(code_of(status)),
            None => bail!("`{}` did not end within {within:?}; it said: {}", self.what, self.log()),
        }
    }

    /// Ends the program at once and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::SIGKILL)?;
        }
        self.wait(Duration::from_secs(10)).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Reaps the program if it has ended; one that still runs is its node's business.
        drop(self.child.try_wait());
    }
}
