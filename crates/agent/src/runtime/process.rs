//! The first process of a container, whose end the kernel tells.
//!
//! An engine that is busy says late that a container has ended, and one that is gone says nothing; the kernel tells at once, to whoever
//! holds the process. How the process ended is the engine's to say.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};
use wharf_process::blocking;

use super::Container;

/// A process that is held: its number may become another's, this stays the same process.
#[derive(Debug)]
pub struct FirstProcess(AsyncFd<OwnedFd>);

impl FirstProcess {
    /// The process as which a container runs. Nothing if the kernel does not show that the process of that number is the container's: it has
    /// ended, or its control groups do not have the container's name.
    ///
    /// # Errors
    /// If the kernel cannot hold processes, or no more of them.
    pub async fn of(container: &Container) -> io::Result<Option<Self>> {
        let (number, id) = (container.pid, container.id.0.clone());
        let found = blocking(move || {
            let Some(process) = hold(number)? else { return Ok(None) };
            // Asked by number. A process that has its number afterwards had it all the time.
            let groups = match fs::read_to_string(format!("/proc/{number}/cgroup")) {
                Ok(groups) => groups,
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            Ok((names(&groups, &id) && number_of(&process)? == Some(number)).then_some(process))
        });
        found.await?.map(Self::new).transpose()
    }

    /// The process of that number, whoever's it is. Nothing if there is none.
    ///
    /// # Errors
    /// Like [`FirstProcess::of`].
    pub fn numbered(number: i64) -> io::Result<Option<Self>> {
        hold(number)?.map(Self::new).transpose()
    }

    #[expect(unsafe_code, reason = "the safe call is deprecated, for what others may hand to it")]
    fn new(process: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` answers the same open descriptor as long as it lives, and nobody takes it out again.
        unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }
            .map(Self)
            .map_err(io::Error::from)
    }

    /// Returns when it has ended. May be dropped.
    ///
    /// # Errors
    /// If the kernel cannot tell.
    pub async fn ended(&self) -> io::Result<()> {
        // Readable from its end on, for ever.
        self.0.readable().await.map(drop)
    }
}

/// A descriptor of a process; none if there is no such process.
#[expect(unsafe_code, reason = "no safe call for this is among the libraries as they are built")]
fn hold(number: i64) -> io::Result<Option<OwnedFd>> {
    let Some(number) = libc::pid_t::try_from(number).ok().filter(|number| *number > 1) else {
        return Ok(None);
    };
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    match RawFd::try_from(answer) {
        // SAFETY: the kernel has just opened it for this call, and nobody else knows of it. It is closed on exec.
        Ok(descriptor) if descriptor >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        Ok(_) | Err(_) => {
            let error = io::Error::last_os_error();
            if is_gone(&error) { Ok(None) } else { Err(error) }
        }
    }
}

/// The number of a process until nobody can ask any more how it ended; none from then on.
fn number_of(process: &OwnedFd) -> io::Result<Option<i64>> {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let number = facts.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    Ok(number.filter(|number| *number > 0))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether one of a process's control groups, as in its `/proc/<pid>/cgroup`, is named after that container.
fn names(groups: &str, container: &str) -> bool {
    !container.is_empty() && groups.lines().any(|group| group.contains(container))
}

/// How many processes of a running container the kernel has ended for want of memory. Nothing where control groups do not tell.
pub(super) async fn oom_kills(container: &Container) -> Option<u32> {
    let (number, id) = (container.pid, container.id.0.clone());
    blocking(move || {
        if number <= 1 {
            return None;
        }
        let groups =
            fs::read_to_string(format!("/proc/{number}/cgroup")).ok().filter(|text| names(text, &id))?;
        let (file, group) = memory_group(&groups)?;
        counted(&fs::read_to_string(format!("/sys/fs/cgroup{group}/{file}")).ok()?)
    })
    .await
}

/// The file in which the kernel counts, and its folder below where control groups are: of the version 1 if memory is controlled by it.
fn memory_group(groups: &str) -> Option<(&'static str, String)> {
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        Some((controllers.to_owned(), path.to_owned()))
    };
    let groups: Vec<_> = groups.lines().filter_map(of).collect();
    let first = groups.iter().find(|(controllers, _)| controllers.split(',').any(|one| one == "memory"));
    let second = groups.iter().find(|(controllers, _)| controllers.is_empty());
    match (first, second) {
        (Some((_, path)), _) => Some(("memory.oom_control", format!("/memory{path}"))),
        (None, Some((_, path))) => Some(("memory.events", path.clone())),
        (None, None) => None,
    }
}

/// The line `oom_kill 3`, which both versions have.
fn counted(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command, time::Duration};

    use tokio::time::timeout;
    use wharf_model::{TaskId, Timestamp};

    use super::*;
    use crate::runtime::{ContainerId, ContainerState};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn container(id: &str, pid: i64) -> Container {
        Container {
            id: ContainerId(id.to_owned()),
            name: "web".to_owned(),
            task: TaskId::from_parts(1, [1; 10]),
            image_id: String::new(),
            state: ContainerState::Running { started_at: Timestamp(1) },
            pid,
            check: None,
            host_ports: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_while_nobody_asks_how_it_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = FirstProcess::numbered(child.id().into()).unwrap().unwrap();
        let early = timeout(Duration::from_millis(50), process.ended()).await;
        child.kill().unwrap();
        let told = timeout(PATIENCE, process.ended()).await;
        let number = number_of(process.0.get_ref()).unwrap();
        child.wait().unwrap();
        assert!(early.is_err(), "it still runs");
        told.unwrap().unwrap();
        assert_eq!(number, Some(child.id().into()), "its number stays its own until it is asked about");
        assert_eq!(number_of(process.0.get_ref()).unwrap(), None);
        timeout(PATIENCE, process.ended()).await.unwrap().unwrap();
        assert!(FirstProcess::numbered(child.id().into()).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_number_that_is_another_process_by_now_is_not_taken() {
        let own = i64::from(std::process::id());
        let id = "1f0c".repeat(16);
        assert!(FirstProcess::of(&container(&id, own)).await.unwrap().is_none());
        for none in [0, 1, -1, i64::MAX] {
            assert!(FirstProcess::of(&container(&id, none)).await.unwrap().is_none(), "{none}");
        }
    }

    #[test]
    fn control_groups_of_both_kinds_and_of_systemd_are_named_after_containers() {
        let (id, other) = ("1f0c".repeat(16), "2e1d".repeat(16));
        let groups = [
            format!("12:pids:/docker/{id}\n0::/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope/init.scope\n"),
            format!("0::/../../own/{id}\n"),
        ];
        for groups in &groups {
            assert!(names(groups, &id) && !names(groups, &other) && !names(groups, ""), "{groups}");
        }
        assert!(!names("12:pids:/\n0::/\n", &id), "what has ended is in no group any more");
    }

    #[test]
    fn the_kernels_count_is_found_in_both_versions_of_control_groups() {
        let first = "4:memory:/docker/abc\n1:name=systemd:/x\n0::/system.slice\n";
        assert_eq!(memory_group(first), Some(("memory.oom_control", "/memory/docker/abc".to_owned())));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        let second = "0::/system.slice/docker-abc.scope\n";
        assert_eq!(
            memory_group(second),
            Some(("memory.events", "/system.slice/docker-abc.scope".to_owned()))
        );
        assert_eq!(counted("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!((memory_group("3:cpu:/a\n"), counted("oom_kill_disable 0\n")), (None, None));
    }
}
