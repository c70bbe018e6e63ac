//! Programs that start with a node, after its engine, as they would under systemd.
//!
//! - A service is defined on the node's disk, so it is there after a power cut.
//! - It is started by a boot or on request, and never by itself after it has ended: what a test sees
//!   is what the program did.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::node::Node;
use super::process::Signal;
use super::registry::check_name;
use super::wait::try_wait_until;

const STOPPING: Duration = Duration::from_secs(30);
/// Starts the rest as the service: in a session of its own, with its pid where it can be found.
const START: &str = r#"export SERVICE_PID=/run/service.$1.pid SERVICE_LOG=/run/testbed/$1.log; shift
rm -f "$SERVICE_PID"
setsid --fork sh -c 'p=$SERVICE_PID l=$SERVICE_LOG; unset SERVICE_PID SERVICE_LOG
  echo $$ >"$p"; exec "$@" </dev/null >>"$l" 2>&1' sh "$@"
until [ -s "$SERVICE_PID" ]; do sleep 0.01; done"#;
/// Signals the service if it runs; ends with 1 if it does not.
const SIGNAL: &str = r#"read -r pid 2>/dev/null <"/run/service.$1.pid" && kill "-$2" "$pid" 2>/dev/null"#;

/// A service of a node; see [`Node::service`].
#[derive(Debug, Clone)]
pub struct Service {
    node: Node,
    name: String,
}

impl Service {
    pub(crate) fn new(node: Node, name: &str) -> Self {
        Self { node, name: name.to_owned() }
    }

    /// The services defined on a node, by name.
    pub(crate) fn all(node: &Node) -> Vec<Self> {
        let entries = fs::read_dir(node.dir().join("disk/services")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().map(|name| Self::new(node.clone(), name)).collect()
    }

    /// The service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn definition(&self) -> PathBuf {
        self.node.dir().join("disk/services").join(&self.name)
    }

    /// Defines the service as this program, in place of what it was, and starts it.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<()> {
        check_name(&self.name)?;
        let args: Vec<String> =
            args.into_iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
        ensure!(!args.is_empty(), "the service {} needs a program", self.name);
        let path = self.definition();
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, serde_json::to_vec(&args)?)?;
        self.restart()
    }

    /// Starts the service, unless it runs.
    pub fn start(&self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        let text = fs::read(self.definition())
            .with_context(|| format!("there is no service {} on node {}", self.name, self.node.index()))?;
        let args: Vec<String> = serde_json::from_slice(&text)?;
        let start = ["sh", "-c", START, "sh", &self.name];
        self.node.run(start.into_iter().chain(args.iter().map(String::as_str)))?;
        Ok(())
    }

    /// Sends the service a signal; gives whether it was there to get it.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        self.signal_by_number(signal as i32)
    }

    fn signal_by_number(&self, number: i32) -> Result<bool> {
        Ok(self.node.exec(["sh", "-c", SIGNAL, "sh", &self.name, &number.to_string()])?.is_success())
    }

    /// Whether the service runs.
    pub fn is_running(&self) -> Result<bool> {
        self.signal_by_number(0)
    }

    /// Stops the service in order and waits for its end.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Ends the service at once, as a crash would.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Stops the service, if it runs, and starts it.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        try_wait_until(STOPPING, &format!("{self} ends"), || {
            if self.is_running()? {
                Err(anyhow::anyhow!("it still runs; its log: {}", self.log()))
            } else {
                Ok(())
            }
        })?;
        self.node.run(["rm", "-f", &format!("/run/service.{}.pid", self.name)]).map(drop)
    }

    /// What the service has written since it was first defined, both streams together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.node.dir().join(format!("{}.log", self.name))).unwrap_or_default()
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the service {} of node {}", self.name, self.node.index())
    }
}
