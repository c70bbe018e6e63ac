//! Watches the tasks' processes: who began and ended when, as the kernel says.
//!
//! - Asks no engine and nothing of Wharf: containers are found by their cgroups, and their names and addresses read from the
//!   files in them.
//! - What this run kills itself has ended in the moment before the signal; what else ends is seen within a few milliseconds.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wharf_testkit::cluster::Node;

use super::check::{End, Life, Moment};

/// Between looks at all processes.
const LOOK: Duration = Duration::from_millis(3);

/// The lives of an app's tasks.
#[derive(Debug)]
pub struct Truth {
    start: Instant,
    app: String,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    lives: Vec<Tracked>,
    /// Containers whose process has not become the task's program yet: since when they are there.
    coming: BTreeMap<String, Moment>,
    /// The process of each container that is known. (A node starts the same container again while no server answers.)
    known: BTreeMap<String, u32>,
}

/// A life and its process.
#[derive(Debug, Clone)]
pub struct Tracked {
    /// The life.
    pub life: Life,
    /// Its process, on this machine.
    pub pid: u32,
}

impl Truth {
    /// Knows nothing yet.
    pub fn new(app: &str) -> Self {
        Self { start: Instant::now(), app: app.to_owned(), seen: Mutex::default() }
    }

    /// What time it is.
    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches these nodes until `stop`.
    pub fn watch(&self, nodes: &[Node], stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.look(nodes);
            thread::sleep(LOOK);
        }
    }

    fn look(&self, nodes: &[Node]) {
        let alive: Vec<_> = {
            let seen = self.seen();
            let lives = seen.lives.iter().enumerate().filter(|(_, tracked)| tracked.life.end.is_none());
            lives.map(|(index, tracked)| (index, tracked.pid)).collect()
        };
        for (index, pid) in alive {
            if !runs(pid) {
                let at = self.now();
                self.seen().lives[index].life.end.get_or_insert(End { at, with_its_node: false });
            }
        }
        for node in nodes {
            for (container, pid) in node.containers() {
                self.container(node.index(), container, pid);
            }
        }
    }

    fn container(&self, node: u8, container: String, pid: u32) {
        let now = self.now();
        let mut seen = self.seen();
        if seen.known.get(&container).is_some_and(|known| *known == pid || runs(*known)) {
            return;
        }
        let born = *seen.coming.entry(container.clone()).or_insert(now);
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // The runtime's own process becomes the program when everything is ready.
        if comm.is_empty() || comm.starts_with("runc") || comm.starts_with("exe") {
            return;
        }
        let Some((name, address)) = about(pid) else { return };
        seen.coming.remove(&container);
        seen.known.insert(container, pid);
        let Some(service) =
            name.strip_prefix(&format!("{}-", self.app)).and_then(|rest| rest.split('-').next())
        else {
            return;
        };
        let service = service.to_owned();
        let life = Life { name, service, node, address, born, ready: self.now(), end: None };
        seen.lives.push(Tracked { life, pid });
    }

    /// What is known so far.
    pub fn lives(&self) -> Vec<Life> {
        self.seen().lives.iter().map(|tracked| tracked.life.clone()).collect()
    }

    /// Those that run.
    pub fn running(&self) -> Vec<Tracked> {
        self.seen().lives.iter().filter(|tracked| tracked.life.end.is_none()).cloned().collect()
    }

    /// Kills a task's process, as a crash would.
    pub fn kill(&self, victim: &Tracked) {
        let Ok(pid) = i32::try_from(victim.pid) else { return };
        let at = self.now();
        let mut seen = self.seen();
        let lives = seen.lives.iter_mut().filter(|tracked| tracked.life == victim.life);
        for tracked in lives {
            // If it has ended by itself meanwhile, the watch says when.
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                tracked.life.end.get_or_insert(End { at, with_its_node: false });
            }
        }
    }

    /// A node is about to lose its power.
    pub fn power_off(&self, node: u8) {
        let at = self.now();
        let mut seen = self.seen();
        for tracked in seen.lives.iter_mut().filter(|tracked| tracked.life.node == node) {
            tracked.life.end.get_or_insert(End { at, with_its_node: true });
        }
    }
}

/// Whether a process is there and not just waiting to be buried.
fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// What a container is called and where it answers, by its own files.
fn about(pid: u32) -> Option<(String, Ipv4Addr)> {
    let name = fs::read_to_string(format!("/proc/{pid}/root/etc/hostname")).ok()?.trim().to_owned();
    let hosts = fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).ok()?;
    let own = hosts.lines().find(|line| line.split_whitespace().skip(1).any(|word| word == name))?;
    Some((name, own.split_whitespace().next()?.parse().ok()?))
}
