//! Asks a task from the outside, over its network address, whether it serves.
//!
//! A probe never lasts longer than its timeout, reads a bounded part of an answer, and follows no redirection.

mod grpc;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wharf_model::{Health, Probe, ProbeKind};

use crate::runtime::{ContainerId, ExecRequest, Runtime};
use futures::StreamExt;

/// So much of an answer is read: its head, and a piece of text to show.
const ANSWER: usize = 4096;
/// So much of what a check said is kept.
const SHOWN: usize = 400;

/// What one check found: nothing wrong, or what it said instead.
pub type Outcome = Result<(), String>;

/// Makes one check.
pub async fn ask(
    probe: &Probe,
    address: Option<IpAddr>,
    runtime: &dyn Runtime,
    container: &ContainerId,
) -> Outcome {
    let check = async {
        let reach = |port: u16| {
            let address = address
                .ok_or_else(|| "the task is on no network on which its node could reach it".to_owned());
            address.map(|address| SocketAddr::new(address, port))
        };
        match &probe.kind {
            ProbeKind::Tcp { port } => connect(reach(*port)?).await.map(drop),
            ProbeKind::Http { port, path } => get(reach(*port)?, path).await,
            ProbeKind::Grpc { port, service } => grpc::check(reach(*port)?, service).await,
            ProbeKind::Exec { command } => run(command, runtime, container).await,
        }
    };
    match timeout(probe.timeout.duration(), check).await {
        Ok(outcome) => outcome.map_err(|text| shorten(&text)),
        Err(_elapsed) => Err(format!("no answer within {}", probe.timeout)),
    }
}

/// Whether something accepts connections there.
pub async fn accepts(address: SocketAddr, patience: Duration) -> bool {
    matches!(timeout(patience, connect(address)).await, Ok(Ok(_)))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))
}

/// A GET as HTTP/1.1 has it; the answer counts as soon as its status is known.
async fn get(address: SocketAddr, path: &str) -> Outcome {
    let mut stream = connect(address).await?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: wharf-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let failed = |error: std::io::Error| format!("{address} broke off: {error}");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(u64::try_from(ANSWER).unwrap_or(u64::MAX));
    loop {
        match limited.read_buf(&mut answer).await {
            Ok(0) => break,
            Ok(_) => {
                if status(&answer).is_some_and(serves) {
                    return Ok(());
                }
            }
            // What came before the end may say enough.
            Err(error) if answer.is_empty() => return Err(failed(error)),
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&answer);
    match status(&answer) {
        Some(code) => {
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
            Err(format!("GET {path} answered {code}{}{body}", if body.is_empty() { "" } else { ": " }))
        }
        None if answer.is_empty() => {
            Err(format!("GET {path}: {address} closed the connection without an answer"))
        }
        None => Err(format!("GET {path}: {address} does not speak HTTP")),
    }
}

fn serves(status: u16) -> bool {
    (200..400).contains(&status)
}

/// The status of an answer, once its first line is there.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next().filter(|line| line.len() < answer.len())?;
    let text = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    text.split_whitespace().nth(1)?.parse().ok()
}

async fn run(command: &[String], runtime: &dyn Runtime, container: &ContainerId) -> Outcome {
    let request = ExecRequest { command: command.to_vec(), ..ExecRequest::default() };
    let mut session = runtime.exec(container, &request).await.map_err(|error| error.to_string())?;
    let mut output = Vec::new();
    while let Some(frame) = session.output.next().await {
        let frame = frame.map_err(|error| error.to_string())?;
        output.extend_from_slice(&frame.bytes[..frame.bytes.len().min(ANSWER.saturating_sub(output.len()))]);
    }
    match session.control.exit_code().await.map_err(|error| error.to_string())? {
        0 => Ok(()),
        code => Err(format!("exit code {code}: {}", String::from_utf8_lossy(&output).trim_end())),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Counts the outcomes of a check and says what they mean together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What they mean.
    pub health: Health,
    /// What the last one said, while it does not pass.
    pub output: Option<String>,
    failures: u32,
}

impl Verdict {
    /// Before the first check.
    pub const fn new() -> Self {
        Self { health: Health::Starting, output: None, failures: 0 }
    }

    /// Takes in one outcome, `since_start` after the task's start.
    pub fn note(&mut self, outcome: Outcome, since_start: Duration, probe: &Probe) {
        match outcome {
            Ok(()) => *self = Self { health: Health::Healthy, output: None, failures: 0 },
            Err(output) => {
                self.output = Some(output);
                // A check that has passed once needs no more patience with the start.
                let forgiven = self.health == Health::Starting && since_start < probe.start_period.duration();
                self.failures = if forgiven { 0 } else { self.failures.saturating_add(1) };
                if self.failures >= probe.retries.max(1) {
                    self.health = Health::Unhealthy;
                }
            }
        }
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use wharf_model::Millis;

    use super::*;

    fn probe(retries: u32, start_period: u64) -> Probe {
        Probe {
            kind: ProbeKind::Tcp { port: 1 },
            interval: Millis(1000),
            timeout: Millis(1000),
            retries,
            start_period: Millis(start_period),
        }
    }

    #[test]
    fn failures_count_in_a_row_and_after_the_start_period() {
        let (probe, second) = (probe(2, 5_000), Duration::from_secs(1));
        let mut verdict = Verdict::new();
        for _ in 0..10 {
            verdict.note(Err("no".into()), second, &probe);
        }
        assert_eq!(verdict.health, Health::Starting);
        verdict.note(Ok(()), second * 2, &probe);
        assert_eq!((verdict.health, &verdict.output), (Health::Healthy, &None));
        verdict.note(Err("no".into()), second * 3, &probe);
        assert_eq!(verdict.health, Health::Healthy, "one failure is not two");
        verdict.note(Ok(()), second * 3, &probe);
        verdict.note(Err("no".into()), second * 3, &probe);
        verdict.note(Err("still no".into()), second * 4, &probe);
        assert_eq!((verdict.health, verdict.output.as_deref()), (Health::Unhealthy, Some("still no")));
        verdict.note(Ok(()), second * 9, &probe);
        assert_eq!(verdict.health, Health::Healthy);
    }

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        wharf_process::Tasks::new(&wharf_process::Shutdown::new()).spawn("answer", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_get_must_answer_with_200_to_399() {
        let ok = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(get(ok, "/health").await, Ok(()));
        let moved = answering("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n").await;
        assert_eq!(get(moved, "/").await, Ok(()));
        let broken = answering("HTTP/1.1 500 Oh\r\n\r\nno database").await;
        assert_eq!(get(broken, "/x").await, Err("GET /x answered 500: no database".to_owned()));
        let odd = answering("220 mail.example ESMTP\r\n").await;
        assert!(get(odd, "/").await.unwrap_err().contains("does not speak HTTP"));
    }

    #[tokio::test]
    async fn a_connection_must_be_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(accepts(address, Duration::from_secs(5)).await);
        drop(listener);
        assert!(!accepts(address, Duration::from_secs(5)).await);
    }
}
