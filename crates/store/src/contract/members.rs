//! Starts a real etcd for tests: one member or several, on loopback, killed when dropped.
//!
//! Needs the `etcd` program (Debian: `etcd-server`). Data and logs go into a folder of the caller's.

use std::{
    fs::File,
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How often other ports are tried when somebody else took one first.
const ATTEMPTS: u32 = 5;
/// How long members may take to listen.
const START: Duration = Duration::from_secs(20);

/// The members of an etcd.
#[derive(Debug)]
pub struct Members {
    folder: PathBuf,
    members: Vec<Member>,
    /// Additional arguments of each member.
    arguments: Vec<String>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Members {
    /// Starts `count` members that keep their data in `folder`, with additional `arguments`. Returns when
    /// all listen; blocks its thread until then.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no `etcd` here; others if it does not start.
    pub fn start(folder: &Path, count: usize, arguments: &[&str]) -> io::Result<Self> {
        let mut attempt = 1;
        loop {
            let folder = folder.join(format!("etcd-{attempt}"));
            std::fs::create_dir_all(&folder)?;
            match Self::try_start(folder, count, arguments) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe && attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    fn try_start(folder: PathBuf, count: usize, arguments: &[&str]) -> io::Result<Self> {
        let ports = free_ports(count * 2)?;
        let member = |(index, ports): (usize, &[u16])| Member {
            name: format!("m{index}"),
            client: ports[0],
            peer: ports[1],
            child: None,
        };
        let members = ports.chunks(2).enumerate().map(member).collect();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut all = Self { folder, members, arguments };
        for index in 0..count {
            all.spawn(index)?;
        }
        let deadline = Instant::now() + START;
        for index in 0..count {
            all.await_listening(index, deadline)?;
        }
        Ok(all)
    }

    /// The clients' addresses of all members, running or not.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://127.0.0.1:{}", member.client)).collect()
    }

    /// Kills a member as a power cut would.
    ///
    /// # Errors
    /// If it could not be killed.
    pub fn kill(&mut self, index: usize) -> io::Result<()> {
        self.members[index].child.take().map_or(Ok(()), |mut child| {
            child.kill()?;
            child.wait().map(drop)
        })
    }

    /// Starts a killed member again, with its data.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self, index: usize) -> io::Result<()> {
        self.spawn(index)?;
        self.await_listening(index, Instant::now() + START)
    }

    fn spawn(&mut self, index: usize) -> io::Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<_> =
            self.members.iter().map(|member| format!("{}={}", member.name, url(member.peer))).collect();
        let member = &self.members[index];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", member.name)))?;
        let child = Command::new("etcd")
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.folder.join(&member.name))
            .args([
                "--listen-client-urls",
                &url(member.client),
                "--advertise-client-urls",
                &url(member.client),
            ])
            .args([
                "--listen-peer-urls",
                &url(member.peer),
                "--initial-advertise-peer-urls",
                &url(member.peer),
            ])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-token", &self.folder.to_string_lossy()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.members[index].child = Some(child);
        Ok(())
    }

    fn await_listening(&mut self, index: usize, deadline: Instant) -> io::Result<()> {
        let member = &mut self.members[index];
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", member.client)).is_ok() {
                return Ok(());
            }
            let ended = member.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            if ended {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "etcd ended; see its log"));
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "etcd does not listen"));
            }
            // Between two looks at a condition with a deadline.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            // What cannot be killed has ended already.
            let _ = self.kill(index);
        }
    }
}

fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<io::Result<_>>()?;
    listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}
