//! The DNS process as an agent has it: what becomes of questions while agents and processes come and go.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wharf_agent::dns::{self, DnsProcess, Listen, Sources, Upstreams};
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::{Shutdown, Tasks, detached::Program};

const SOON: Duration = Duration::from_secs(20);
/// How long an answer may take; what takes longer counts as lost. Nothing here waits for a timeout on purpose.
const LOST: Duration = Duration::from_secs(5);

fn network() -> NetworkId {
    NetworkId::from_parts(1, [1; 10])
}

/// `web` leads to the version's number, as an address.
fn table(version: u64) -> DnsTable {
    let address = Ipv4Addr::from(0x0a00_0000 + u32::try_from(version).unwrap());
    let mut names = BTreeMap::from([("web".to_owned(), vec![address])]);
    // So much that what changes is little of it.
    names.extend((0..100).map(|number| (format!("other{number}"), vec![Ipv4Addr::LOCALHOST])));
    DnsTable {
        version: Revision(version),
        networks: BTreeMap::from([(network(), names)]),
        ..DnsTable::default()
    }
}

/// `web`, A.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";

/// The version that an answer is from; none if it says nothing of `web`.
fn version(reply: &[u8]) -> Option<u64> {
    let found = reply.len() > 20 && reply[3] & 15 == 0 && reply[7] == 1;
    let last: [u8; 4] = reply.last_chunk().copied().filter(|_| found)?;
    Some(u64::from(u32::from_be_bytes(last) - 0x0a00_0000))
}

fn ask(at: SocketAddr, within: Duration) -> io::Result<Option<u64>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(within))?;
    socket.connect(at)?;
    socket.send(QUESTION)?;
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply)?;
    Ok(version(&reply[..length]))
}

fn ask_by_tcp(stream: &mut TcpStream) -> io::Result<Option<u64>> {
    stream.set_read_timeout(Some(LOST))?;
    stream.write_all(&[&[0, u8::try_from(QUESTION.len()).unwrap()], QUESTION].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(version(&reply))
}

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn is_alive(pid: u32) -> bool {
    // What nobody has waited for is dead all the same.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim().starts_with('Z'))
}

/// A folder, a port, and the processes that come and go there; the last one ends with this.
struct Place {
    folder: tempfile::TempDir,
    at: SocketAddr,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        // An address of its own: while nobody listens there, no asker is given the port.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, 53, u8::try_from(count).unwrap(), 1);
        let at = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), at }
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn agent(&self, executable: &Path) -> Agent {
        fs::create_dir_all(self.run_dir()).unwrap();
        let arguments = vec!["dns".into(), "--run-dir".into(), self.run_dir().into()];
        let mut program: Program = dns::program(&self.run_dir(), arguments);
        program.executable = executable.to_owned();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tasks = Tasks::new(&Shutdown::new());
        let process = {
            let _in_runtime = runtime.enter();
            DnsProcess::start(program, Upstreams::Fixed(Vec::new()), &tasks)
        };
        process.listen(&BTreeMap::from([(
            network(),
            Listen { address: self.at, subnet: "127.0.0.0/8".parse().unwrap() },
        )]));
        Agent { runtime, process }
    }

    /// The process that listens at the socket.
    fn pid(&self) -> Option<u32> {
        let stream = std::os::unix::net::UnixStream::connect(self.run_dir().join("dns.sock")).ok()?;
        let credentials =
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        u32::try_from(credentials.pid()).ok()
    }

    fn signal(&self, signal: Signal) -> u32 {
        let pid = self.pid().expect("it runs");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        pid
    }

    /// Stops the process as if it hung. (The kernel stops one thread after the other; meanwhile the others would go on to answer.)
    fn hang(&self) -> u32 {
        let pid = self.signal(Signal::SIGSTOP);
        eventually("all threads to be stopped", || {
            let stopped = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().all(|thread| {
                fs::read_to_string(thread.path().join("stat"))
                    .is_ok_and(|stat| stat.rsplit(')').next().unwrap_or_default().trim().starts_with('T'))
            });
            stopped.then_some(())
        });
        pid
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
    }
}

/// An agent, as far as DNS is concerned. Dropped it is gone as by a kill.
struct Agent {
    runtime: tokio::runtime::Runtime,
    process: DnsProcess,
}

impl Agent {
    fn publish(&self, version: u64) -> bool {
        self.runtime.block_on(self.process.publish(table(version), &Sources::new()))
    }

    /// Publishes until it is acknowledged.
    fn publish_surely(&self, version: u64) {
        eventually("acknowledgement", || self.publish(version).then_some(()));
        assert_eq!(self.process.version(), Some(Revision(version)));
    }
}

fn wharf() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_wharf"))
}

/// Somebody who asks all the time.
struct Asker {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Asker {
    /// Complains about questions without answers, if they must have one, and about answers older than what was acknowledged before the
    /// question.
    fn start(at: SocketAddr, acknowledged: &Arc<AtomicU64>, must_answer: bool) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, acknowledged) =
            (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(acknowledged));
        let thread = thread::spawn(move || {
            let mut complaints = Vec::new();
            let within = if must_answer { LOST } else { Duration::from_millis(20) };
            while !stopped.load(Ordering::Relaxed) {
                let least = acknowledged.load(Ordering::SeqCst);
                match ask(at, within) {
                    Ok(Some(version)) if version >= least => {}
                    Ok(Some(version)) => complaints.push(format!("{version} after {least} was acknowledged")),
                    Ok(None) => complaints.push("denied".into()),
                    Err(error) if must_answer => complaints.push(error.to_string()),
                    Err(_) => {}
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            complaints
        });
        Self { stop, asked, thread }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until that many more were asked.
    fn go_on(&self, count: u64) {
        let goal = self.asked() + count;
        eventually("questions", || (self.asked() >= goal).then_some(()));
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn an_agent_that_comes_back_finds_the_process_and_its_names() {
    let place = Place::new();
    let agent = place.agent(&wharf());
    agent.publish_surely(1);
    eventually("an answer", || ask(place.at, LOST).ok().flatten().filter(|version| *version == 1));
    let pid = place.pid().unwrap();
    let asker = Asker::start(place.at, &Arc::new(AtomicU64::new(1)), true);
    drop(agent);
    asker.go_on(200);
    let agent = place.agent(&wharf());
    agent.publish_surely(2);
    asker.go_on(200);
    assert_eq!(asker.end(), Vec::<String>::new());
    assert_eq!((place.pid(), agent.process.starts()), (Some(pid), 0), "no second one");
    assert_eq!(ask(place.at, LOST).unwrap(), Some(2));
    assert!(agent.runtime.block_on(agent.process.counters()).questions > 400);
    // Same names, another version: acknowledged as well.
    let same = DnsTable { version: Revision(3), ..table(2) };
    assert!(agent.runtime.block_on(agent.process.publish(same, &Sources::new())));
    assert_eq!(agent.process.version(), Some(Revision(3)));
}

#[test]
fn names_are_told_by_what_changes_and_kept_so() {
    let place = Place::new();
    let agent = place.agent(&wharf());
    let file = place.run_dir().join("dns-names.json");
    let lines = || fs::read_to_string(&file).unwrap().lines().count();
    agent.publish_surely(1);
    assert_eq!(lines(), 2, "the boot and all names");
    (2..6).for_each(|version| agent.publish_surely(version));
    assert_eq!(lines(), 6, "and each change");
    assert_eq!(ask(place.at, LOST).unwrap(), Some(5));
    // However many there are, they are never much more than the names themselves.
    let whole = fs::metadata(&file).unwrap().len();
    (6..100).for_each(|version| agent.publish_surely(version));
    assert!(fs::metadata(&file).unwrap().len() < 3 * whole);
    assert_eq!(ask(place.at, LOST).unwrap(), Some(99));
    // One that comes after begins with all of it, and is told all.
    drop(agent);
    place.signal(Signal::SIGKILL);
    let agent = place.agent(&wharf());
    agent.publish_surely(100);
    assert_eq!(ask(place.at, LOST).unwrap(), Some(100));
}

#[test]
fn a_process_that_is_killed_is_back_at_once_with_no_older_names() {
    let place = Place::new();
    let agent = place.agent(&wharf());
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut version = 0;
    let mut publish = || {
        version += 1;
        agent.publish_surely(version);
        acknowledged.store(version, Ordering::SeqCst);
    };
    publish();
    eventually("an answer", || ask(place.at, LOST).ok().flatten());
    let askers = [(); 2].map(|()| Asker::start(place.at, &acknowledged, false));
    let mut back = Vec::new();
    for _ in 0..5 {
        publish();
        let since = Instant::now();
        let pid = place.signal(Signal::SIGKILL);
        eventually("an answer", || ask(place.at, Duration::from_millis(2)).ok().flatten());
        back.push(since.elapsed());
        publish();
        assert_ne!(place.pid(), Some(pid));
    }
    for asker in askers {
        assert_eq!(asker.end(), Vec::<String>::new());
    }
    back.sort();
    println!(
        "killed DNS process: answers again after {:?} (median of 5; {:?} to {:?})",
        back[2], back[0], back[4]
    );
    // Nobody is there to start it: it answers by itself with what it last acknowledged.
    drop(agent);
    let pid = place.signal(Signal::SIGKILL);
    eventually("its end", || (!is_alive(pid)).then_some(()));
    let mut alone =
        std::process::Command::new(wharf()).args(["dns", "--run-dir"]).arg(place.run_dir()).spawn().unwrap();
    assert_eq!(eventually("an answer", || ask(place.at, LOST).ok().flatten()), version);
    alone.kill().unwrap();
    alone.wait().unwrap();
}

#[test]
fn another_build_takes_over_and_no_question_is_lost() {
    let place = Place::new();
    let (old, new) = (place.folder.path().join("old"), place.folder.path().join("new"));
    for copy in [&old, &new] {
        // Written here, so that no other test's process that is just being started holds it open.
        fs::copy(wharf(), copy).unwrap();
    }
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut version = 0;
    let mut publish = |agent: &Agent| {
        version += 1;
        agent.publish_surely(version);
        acknowledged.store(version, Ordering::SeqCst);
    };
    let agent = place.agent(&old);
    publish(&agent);
    eventually("an answer", || ask(place.at, LOST).ok().flatten());
    let askers = [(); 3].map(|()| Asker::start(place.at, &acknowledged, true));
    let mut connected = TcpStream::connect(place.at).unwrap();
    assert_eq!(ask_by_tcp(&mut connected).unwrap(), Some(1));
    let mut agent = Some(agent);
    let mut took = Vec::new();
    for round in 0..6 {
        let before = place.pid().unwrap();
        drop(agent.take());
        askers[0].go_on(20);
        let since = Instant::now();
        let next = place.agent(if round % 2 == 0 { &new } else { &old });
        publish(&next);
        took.push(since.elapsed());
        assert_ne!(place.pid(), Some(before));
        eventually("the end of the process before", || (!is_alive(before)).then_some(()));
        publish(&next);
        askers[0].go_on(20);
        assert_eq!(
            ask_by_tcp(&mut TcpStream::connect(place.at).unwrap()).unwrap(),
            Some(version_of(&acknowledged))
        );
        agent = Some(next);
    }
    let asked: u64 = askers.iter().map(Asker::asked).sum();
    for asker in askers {
        assert_eq!(asker.end(), Vec::<String>::new());
    }
    took.sort();
    println!(
        "6 handovers: 0 of {asked} questions lost; a new table is acknowledged after {:?} (median)",
        took[3]
    );
}

fn version_of(acknowledged: &AtomicU64) -> u64 {
    acknowledged.load(Ordering::SeqCst)
}

#[test]
fn a_process_that_hangs_is_replaced() {
    let place = Place::new();
    let agent = place.agent(&wharf());
    agent.publish_surely(1);
    drop(agent);
    let pid = place.hang();
    // Nothing newer is acknowledged while the old one could wake up and answer.
    let agent = place.agent(&wharf());
    agent.publish_surely(2);
    assert_eq!(eventually("an answer", || ask(place.at, LOST).ok().flatten()), 2);
    assert!(!is_alive(pid), "the one that hung");
}
