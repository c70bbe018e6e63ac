//! Processes that outlive the one that starts them, and how the two find and understand each other: a Unix socket in a folder that
//! only we may enter.
//!
//! - Whoever starts such a process, or finds it running, speaks to it over a [`Link`]: frames with a length in front, after both have
//!   said who they are. Of two links the later one counts; that is the process's to keep.
//! - It is the same program ([`Program::own`]): exactly the executable that runs, even if the file was replaced meanwhile.
//!   [`Program::reach`] leaves a running one alone only if that is the same build. Another one is replaced: the new process finds the old one at the socket
//!   and takes over what it has, open files included, before it listens there itself.
//! - One that runs, but says nothing, is ended ([`evict`]).

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recv, recvmsg, sendmsg,
    },
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout, timeout_at},
};

pub use rustix::thread::CapabilitySet as Capabilities;

/// How long the other side has to say who it is.
const GREETING: Duration = Duration::from_secs(2);
/// How long a process that was started has to answer; it may have to wait for the one it replaces.
const STARTED: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(2);
/// The largest frame.
const LARGEST: usize = 256 << 20;
/// Open files in one message; the kernel takes 253.
const FILES: usize = 64;

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The executable: two processes with the same one are of one build.
    pub build: String,
    /// Its process.
    pub pid: u32,
}

impl Greeting {
    /// Ours.
    ///
    /// # Errors
    /// If the running executable cannot be looked at.
    pub fn own() -> io::Result<Self> {
        Ok(Self { build: build_of(Path::new(RUNNING))?, pid: std::process::id() })
    }
}

/// The executable of the calling process, also when its name is another file's by now.
const RUNNING: &str = "/proc/self/exe";

/// What tells an executable from others.
fn build_of(executable: &Path) -> io::Result<String> {
    let file = fs::metadata(executable)?;
    Ok(format!("{}:{}:{}:{}", file.dev(), file.ino(), file.size(), file.mtime_nsec()))
}

/// A process that is to run on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Usually the [running one](Program::own).
    pub executable: PathBuf,
    /// What to give it.
    pub arguments: Vec<OsString>,
    /// Where it listens once it serves.
    pub socket: PathBuf,
}

impl Program {
    /// The running executable as another process.
    #[must_use]
    pub fn own(arguments: Vec<OsString>, socket: PathBuf) -> Self {
        Self { executable: RUNNING.into(), arguments, socket }
    }

    /// The running process of this build, which is started, in place of another build's, if it does not run. The second answer says whether
    /// it was.
    ///
    /// # Errors
    /// If it cannot be started, or does not answer. It may be tried again.
    pub async fn reach(&self) -> io::Result<(Link, bool)> {
        let build = build_of(&self.executable)?;
        // One that does not greet is replaced as well: the new process evicts it.
        if let Ok(Some(link)) = Link::connect(&self.socket).await
            && link.peer.build == build
        {
            return Ok((link, false));
        }
        let mut child = tokio::process::Command::new(&self.executable)
            .args(&self.arguments)
            // No huge pages: it mostly waits, and what it had in a burst and gave back would stay with it. The allocator, which has its first
            // pages before anything else runs, is told like this.
            .env("MIMALLOC_ALLOW_THP", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .current_dir("/")
            .kill_on_drop(false)
            .spawn()?;
        let pid = child.id();
        let deadline = Instant::now() + STARTED;
        loop {
            if let Ok(Some(link)) = Link::connect(&self.socket).await
                && Some(link.peer.pid) == pid
            {
                return Ok((link, true));
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("it ended at once ({status}); its log says why")));
            }
            if Instant::now() >= deadline {
                let _ = child.start_kill();
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(PAUSE).await;
        }
    }
}

/// Makes the calling process one of its own: it is in no terminal's and no other process's group any more, is called `name`, and has
/// no privileges but these. To be called before there are other threads, which would keep theirs.
///
/// # Errors
/// If the kernel refuses.
pub fn begin(name: &str, privileges: Capabilities) -> io::Result<()> {
    // Whoever was started by a shell leads its group, and has no need to.
    let _ = nix::unistd::setsid();
    fs::write("/proc/self/comm", name)?;
    let sets =
        CapabilitySets { effective: privileges, permitted: privileges, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Keeps others of the same kind from starting at the same time; until it is dropped.
#[derive(Debug)]
pub struct Starting {
    _lock: Flock<fs::File>,
}

impl Starting {
    /// Waits for its turn.
    ///
    /// # Errors
    /// If another one is still starting after a while, or the folder cannot be written to.
    pub async fn wait(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + STARTED;
        loop {
            let file = fs::File::options().create(true).truncate(false).write(true).open(path)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((_, error)) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// Ends the process that listens at `socket` and does not answer; whether there was one.
///
/// # Errors
/// If it may not be ended.
pub async fn evict(socket: &Path) -> io::Result<bool> {
    let Ok(Ok(stream)) = timeout(GREETING, UnixStream::connect(socket)).await else { return Ok(false) };
    let Some(pid) = stream.peer_cred()?.pid() else { return Ok(false) };
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(true)
}

/// Where a process that runs on its own listens.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    greeting: Greeting,
}

impl Door {
    /// Listens at `socket` in place of whoever did, from one moment to the next. The folder is ours alone.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let own = Greeting::own()?;
        let new = socket.with_extension(format!("{}.new", own.pid));
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        fs::rename(&new, socket)?;
        Ok(Self { listener, greeting: own })
    }

    /// Waits for somebody. To be [greeted](Caller::greet) elsewhere: they may have nothing to say. Cancel-safe.
    ///
    /// # Errors
    /// If the kernel has no room for another connection.
    pub async fn accept(&self) -> io::Result<Caller> {
        let (stream, _) = self.listener.accept().await?;
        Ok(Caller { stream, own: self.greeting.clone() })
    }
}

/// Somebody at a [`Door`].
#[derive(Debug)]
pub struct Caller {
    stream: UnixStream,
    own: Greeting,
}

impl Caller {
    /// Says who we are and hears who they are.
    ///
    /// # Errors
    /// If they do not say.
    pub async fn greet(self) -> io::Result<Link> {
        Link::new(self.stream, &self.own).await
    }
}

/// A connection to a process that runs on its own, or that process's to whoever speaks to it.
#[derive(Debug)]
pub struct Link {
    /// Who is at the other end.
    pub peer: Greeting,
    stream: UnixStream,
}

impl Link {
    /// Connects to who listens at `socket`; none if nobody does.
    ///
    /// # Errors
    /// If somebody listens and does not say who it is.
    pub async fn connect(socket: &Path) -> io::Result<Option<Self>> {
        match timeout(GREETING, UnixStream::connect(socket)).await? {
            Ok(stream) => Self::new(stream, &Greeting::own()?).await.map(Some),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn new(mut stream: UnixStream, own: &Greeting) -> io::Result<Self> {
        let greet = async {
            write_frame(&mut stream, &[&serde_json::to_vec(own)?]).await?;
            let peer = serde_json::from_slice(&read_frame(&mut stream).await?)?;
            Ok(Self { peer, stream })
        };
        timeout(GREETING, greet).await?
    }

    /// The next frame. Not cancel-safe.
    ///
    /// # Errors
    /// If the other side is gone.
    pub async fn read(&mut self) -> io::Result<Vec<u8>> {
        read_frame(&mut self.stream).await
    }

    /// Sends a frame, whose parts follow one another. Not cancel-safe.
    ///
    /// # Errors
    /// If the other side is gone.
    pub async fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        write_frame(&mut self.stream, parts).await
    }

    /// Sends open files, which both have then.
    ///
    /// # Errors
    /// If the other side is gone.
    pub async fn send_files(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        for files in files.chunks(FILES) {
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(files));
                sendmsg(&self.stream, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            };
            self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Receives as many open files as were sent.
    ///
    /// # Errors
    /// If the other side is gone, or sent something else.
    pub async fn receive_files(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut files = Vec::new();
        while files.len() < count {
            let receive = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut byte = [0];
                let flags = RecvFlags::CMSG_CLOEXEC;
                let length =
                    recvmsg(&self.stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?.bytes;
                let mut more = Vec::new();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = message {
                        more.extend(received);
                    }
                }
                Ok((length, more))
            };
            let (length, more) = self.stream.async_io(Interest::READABLE, receive).await?;
            if length == 0 || more.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            files.extend(more);
        }
        Ok(files)
    }

    /// Both directions apart.
    #[must_use]
    pub fn split(self) -> (LinkReader, LinkWriter) {
        let (reader, writer) = self.stream.into_split();
        (LinkReader(reader), LinkWriter(writer))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What the other side says.
#[derive(Debug)]
pub struct LinkReader(OwnedReadHalf);

impl LinkReader {
    /// As [`Link::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self) -> io::Result<Vec<u8>> {
        read_frame(&mut self.0).await
    }

    /// Waits until the other side is gone, or says something unasked; says which. Cancel-safe.
    pub async fn closed(&self) -> io::Error {
        let stream: &UnixStream = self.0.as_ref();
        let peek = || {
            let mut byte = [0];
            Ok(recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
        };
        match stream.async_io(Interest::READABLE, peek).await {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => io::Error::other("it said something unasked"),
            Err(error) => error,
        }
    }
}

/// What we say.
#[derive(Debug)]
pub struct LinkWriter(OwnedWriteHalf);

impl LinkWriter {
    /// As [`Link::write`].
    ///
    /// # Errors
    /// As there, and if the other side does not take it for a while.
    pub async fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        timeout_at(Instant::now() + STARTED, write_frame(&mut self.0, parts)).await?
    }
}

async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(to: &mut (impl AsyncWriteExt + Unpin), parts: &[&[u8]]) -> io::Result<()> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let length = u32::try_from(length).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes()).await?;
    for part in parts {
        to.write_all(part).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    async fn pair(folder: &Path) -> (Link, Link) {
        let socket = folder.join("socket");
        let door = Door::open(&socket).unwrap();
        let greeted = async { door.accept().await.unwrap().greet().await.unwrap() };
        let (ours, theirs) = tokio::join!(Link::connect(&socket), greeted);
        (ours.unwrap().expect("somebody listens"), theirs)
    }

    #[tokio::test]
    async fn both_sides_know_each_other_and_frames_arrive_whole() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Link::connect(&folder.path().join("socket")).await.unwrap().is_none(), "nobody listens yet");
        let (mut ours, mut theirs) = pair(folder.path()).await;
        assert_eq!(ours.peer, Greeting::own().unwrap());
        assert_eq!(ours.peer, theirs.peer);
        let large = vec![7; 1 << 20];
        let parts: [&[u8]; 3] = [b"a", &large, b"z"];
        let (sent, received) = tokio::join!(ours.write(&parts), theirs.read());
        sent.unwrap();
        assert_eq!(received.unwrap(), [b"a", large.as_slice(), b"z"].concat());
        drop(ours);
        assert_eq!(theirs.read().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn open_files_arrive_in_order_between_frames() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, mut theirs) = pair(folder.path()).await;
        let files: Vec<_> = (0..150).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, mut file) in files.iter().enumerate() {
            write!(file, "{number}").unwrap();
        }
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        ours.write(&[b"before"]).await.unwrap();
        ours.send_files(&borrowed).await.unwrap();
        ours.write(&[b"after"]).await.unwrap();
        assert_eq!(theirs.read().await.unwrap(), b"before");
        let received = theirs.receive_files(files.len()).await.unwrap();
        assert_eq!(theirs.read().await.unwrap(), b"after");
        for (number, file) in received.into_iter().enumerate() {
            let mut file = fs::File::from(file);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        }
    }

    #[tokio::test]
    async fn a_new_process_takes_the_socket_of_another_over() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let old = Door::open(&socket).unwrap();
        let new = Door::open(&socket).unwrap();
        drop(old);
        let greeted = async { new.accept().await.unwrap().greet().await };
        let (ours, theirs) = tokio::join!(Link::connect(&socket), greeted);
        assert!(ours.unwrap().is_some() && theirs.is_ok());
    }

    #[tokio::test]
    async fn one_starts_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Starting::wait(&path).await.unwrap();
        let (mut waits, second) = (true, Starting::wait(&path));
        tokio::pin!(second);
        for _ in 0..3 {
            waits &= timeout(PAUSE, &mut second).await.is_err();
        }
        assert!(waits);
        drop(first);
        second.await.unwrap();
    }
}
