//! Ends what must not run twice when the node's right to run it is over and the agent does not: a small process of its own.
//!
//! - Agent and process share one file in a folder in memory: until when the right lasts, by the time since the machine started, and which containers
//!   end with it. The agent writes it with every grant; the process reads it and trusts nothing else, so it needs neither agent nor engine.
//! - A container is ended by SIGKILL to every process whose control groups have its name; the engine tells of the rest. Nothing else is touched.
//! - It ends by itself once no container is named. After a restart of the machine nothing of all this is left, nor of the containers' processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use wharf_process::{
    Clock, Shutdown, Tasks, blocking,
    detached::{self, Door, Program, Starting},
};

use crate::{lease::Notebook, runtime::ContainerId};

/// Between looks.
const LOOK: Duration = Duration::from_millis(200);
/// So long nobody may be named before the process ends.
const IDLE: Duration = Duration::from_secs(30);

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Page {
    /// When the right is over, in milliseconds since the machine started.
    until: u64,
    /// The engine's identifiers of containers that are ended then.
    containers: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("lease.json")
}
fn socket(folder: &Path) -> PathBuf {
    folder.join("fence.sock")
}

/// How long the machine runs, sleep included.
fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|first| first.parse().ok());
    seconds.map(Duration::from_secs_f64).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The file, as the agent writes it.
#[derive(Debug)]
pub struct FenceFile {
    folder: PathBuf,
}

impl FenceFile {
    /// In this folder, which must be in memory.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl Notebook for FenceFile {
    fn left(&self) -> Option<Duration> {
        let page = Page::read(&file(&self.folder))?;
        let left = page.until.checked_sub(millis(uptime().ok()?))?;
        Some(Duration::from_millis(left))
    }

    fn note(&self, left: Duration, containers: &[ContainerId]) {
        let noted = uptime().and_then(|uptime| {
            let until = millis(uptime + left);
            let page = Page { until, containers: containers.iter().map(|id| id.0.clone()).collect() };
            let path = file(&self.folder);
            let new = path.with_extension("new");
            fs::write(&new, serde_json::to_vec(&page)?)?;
            fs::rename(new, path)
        });
        if let Err(error) = noted {
            // The containers end earlier than they would have to, and none later.
            tracing::error!(%error, "the lease is not noted for the process that ends containers");
        }
    }
}

/// The process, as an agent sees to it that it runs.
#[derive(Debug)]
pub struct Fence {
    program: Option<Program>,
    /// Who asks second finds what the first has started.
    turn: tokio::sync::Mutex<()>,
}
impl Fence {
    /// With this program; nobody ends anything if absent.
    pub const fn new(program: Option<Program>) -> Self {
        Self { program, turn: tokio::sync::Mutex::const_new(()) }
    }

    /// Returns when it runs.
    ///
    /// # Errors
    /// If it cannot be started, or does not answer. It may be tried again.
    pub async fn runs(&self) -> io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        let _turn = self.turn.lock().await;
        program.reach().await.map(drop)
    }
}

/// The process of an agent with this folder; `arguments` make the program become it.
pub fn program(folder: &Path, arguments: Vec<std::ffi::OsString>) -> Program {
    Program::own(arguments, socket(folder))
}

/// Ends containers when their time is over, until no one is named or the process is asked to stop.
///
/// # Errors
/// If it cannot listen in its folder.
pub async fn serve(folder: PathBuf, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> io::Result<()> {
    let tasks = Tasks::new(shutdown);
    let starting = Starting::wait(&folder.join("fence.lock")).await?;
    // One of another build; it has nothing that this one does not read itself.
    detached::evict(&socket(&folder)).await?;
    let door = Door::open(&socket(&folder))?;
    drop(starting);
    let stop = tasks.token();
    let until = stop.clone();
    tasks.spawn("greetings", async move {
        loop {
            let Some(caller) = until.run_until_cancelled(door.accept()).await else { return };
            // Whoever asks wants to know that somebody is here, and nothing else.
            match caller {
                Ok(caller) => drop(caller.greet().await),
                Err(_) => return,
            }
        }
    });
    stop.run_until_cancelled(watch(&folder, &*clock)).await;
    // Nothing of it is worth waiting for longer.
    let _ = tasks.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

async fn watch(folder: &Path, clock: &dyn Clock) {
    let mut idle = clock.monotonic();
    loop {
        let path = file(folder);
        let named = blocking(move || look(&path)).await;
        let now = clock.monotonic();
        if named {
            idle = now;
        } else if now.saturating_sub(idle) >= IDLE {
            return;
        }
        clock.sleep(LOOK).await;
    }
}

/// Ends what is over. Whether any container is named.
fn look(path: &Path) -> bool {
    let Some(page) = Page::read(path) else { return false };
    match uptime() {
        Ok(uptime) if millis(uptime) >= page.until => {
            for id in &page.containers {
                end(id);
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "the machine does not say how long it runs"),
    }
    !page.containers.is_empty()
}

/// Ends every process of a container.
fn end(container: &str) {
    for pid in processes(Path::new("/proc"), container) {
        tracing::warn!(container, pid, "ended: its node's right to run it is over");
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            tracing::debug!(%error, pid, "a process was gone already");
        }
    }
}

/// The processes whose control groups have a container's name.
fn processes(proc: &Path, container: &str) -> Vec<i32> {
    // Part of a name could be another's.
    if container.len() < 64 {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_its = |pid: &i32| {
        let groups = fs::read_to_string(proc.join(pid.to_string()).join("cgroup"));
        *pid > 1 && groups.is_ok_and(|groups| groups.lines().any(|group| group.contains(container)))
    };
    numbers.filter(is_its).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_in_the_groups_of_the_container_are_found() {
        let proc = tempfile::tempdir().unwrap();
        let (id, other) = ("1f0c".repeat(16), "2e1d".repeat(16));
        let groups = [
            (7, format!("12:pids:/docker/{id}\n0::/docker/{id}\n")),
            (8, format!("0::/system.slice/docker-{id}.scope/init.scope\n")),
            (9, format!("0::/docker/{other}\n")),
            (10, "0::/\n".to_owned()),
        ];
        for (pid, text) in groups {
            let folder = proc.path().join(pid.to_string());
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("cgroup"), text).unwrap();
        }
        fs::create_dir(proc.path().join("sys")).unwrap();
        let mut found = processes(proc.path(), &id);
        found.sort_unstable();
        assert_eq!(found, [7, 8]);
        assert_eq!(processes(proc.path(), "1f0c"), Vec::<i32>::new(), "a part of a name is nobody's");
        assert_eq!(processes(proc.path(), ""), Vec::<i32>::new());
    }

    #[test]
    fn a_right_that_is_noted_is_read_by_whoever_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let book = FenceFile::new(folder.path().to_owned());
        assert_eq!(book.left(), None);
        book.note(Duration::from_secs(60), &[ContainerId("c".repeat(64))]);
        let left = book.left().unwrap();
        assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(61), "{left:?}");
        assert!(look(&file(folder.path())), "a container is named");
        book.note(Duration::ZERO, &[]);
        assert!(!look(&file(folder.path())));
    }
}
