//! The gateway process as an agent has it: what becomes of connections while agents and processes come and go.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
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
use wharf_gateway::{
    AccessLogOptions, GatewayOptions, HttpOptions,
    process::{self, GatewayProcess, ProcessOptions},
};
use wharf_model::{
    AppKey, Endpoint, EndpointSet, GatewayStats, Generation, Protocol, Revision, Route, RouteId, RouteSpec,
    RouteTable, ServiceKey, ServiceRoute, TaskId,
};
use wharf_process::{
    Shutdown, Tasks,
    detached::{self, Capabilities, Program},
};

const SOON: Duration = Duration::from_secs(20);
/// How long an answer may take; what takes longer counts as lost. Nothing here waits for a timeout on purpose.
const LOST: Duration = Duration::from_secs(5);

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_alive(pid: u32) -> bool {
    // What nobody has waited for is dead all the same.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim().starts_with('Z'))
}

fn end(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Stops a process as if it hung. (The kernel stops one thread after the other; meanwhile the others would go on to answer.)
fn hang(pid: u32) {
    end(pid, Signal::SIGSTOP);
    eventually("all threads to be stopped", || {
        let stopped = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().all(|thread| {
            fs::read_to_string(thread.path().join("stat"))
                .is_ok_and(|stat| stat.rsplit(')').next().unwrap_or_default().trim().starts_with('T'))
        });
        stopped.then_some(())
    });
}

fn task(number: u8) -> TaskId {
    TaskId::from_parts(1, [number; 10])
}

fn service() -> ServiceKey {
    let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
    ServiceKey { app, name: "web".parse().unwrap() }
}

/// A task that says its number and then whatever it is told, line by line; `download N` is answered with so many lines, a millisecond apart.
struct Echo {
    endpoint: Endpoint,
    accepted: Arc<AtomicU64>,
}

impl Echo {
    fn start(number: u8) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("it is IPv4") };
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || Self::serve(number, stream));
            }
        });
        Self { endpoint: Endpoint::new(task(number), address), accepted }
    }

    fn serve(number: u8, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        writeln!(stream, "{number}")?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(Ok(line)) = lines.next() {
            match line.strip_prefix("download ") {
                Some(count) => {
                    for line in 0..count.parse().unwrap_or(0) {
                        writeln!(stream, "{line}")?;
                        thread::sleep(Duration::from_millis(1));
                    }
                    return Ok(());
                }
                None => writeln!(stream, "{line}")?,
            }
        }
        Ok(())
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A task that speaks HTTP/1.1: says its number, or after an upgrade whatever it is told.
struct Web {
    endpoint: Endpoint,
    asked: Arc<AtomicU64>,
}

impl Web {
    fn start(number: u8) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!("it is IPv4") };
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                thread::spawn(move || Self::serve(number, &stream, &count));
            }
        });
        Self { endpoint: Endpoint::new(task(number), address), asked }
    }

    fn serve(number: u8, mut stream: &TcpStream, asked: &AtomicU64) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let head = read_head(&mut reader)?;
            asked.fetch_add(1, Ordering::SeqCst);
            match head[0].split(' ').nth(1) {
                Some("/echo") => {
                    let upgraded =
                        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                    stream.write_all(upgraded.as_bytes())?;
                    io::copy(&mut reader, &mut stream)?;
                    return Ok(());
                }
                Some("/slowly") => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n")?;
                    for _ in 0..400 {
                        stream.write_all(b"x")?;
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                _ => {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                    stream.write_all(answer.as_bytes())?;
                }
            }
        }
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The lines of a head of HTTP/1.1, without its end.
fn read_head(reader: &mut BufReader<TcpStream>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => return Ok(lines),
            line => lines.push(line.to_ascii_lowercase()),
        }
    }
}

/// A client of HTTP/1.1 that keeps its connection for as long as it may.
struct Browser {
    at: SocketAddr,
    kept: Option<BufReader<TcpStream>>,
    /// Connections that it was asked to close.
    closed: u64,
}

impl Browser {
    fn new(at: SocketAddr) -> Self {
        Self { at, kept: None, closed: 0 }
    }

    fn begin(&mut self, path: &str, headers: &str) -> io::Result<BufReader<TcpStream>> {
        let mut reader = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let stream = TcpStream::connect_timeout(&self.at, LOST)?;
                stream.set_read_timeout(Some(LOST))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let head = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n{headers}\r\n");
        reader.get_mut().write_all(head.as_bytes())?;
        Ok(reader)
    }

    /// The body of the answer. A connection that ends without an answer is an error, also one that was kept.
    fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let mut reader = self.begin(path, "")?;
        let head = read_head(&mut reader)?;
        if !head[0].starts_with("http/1.1 200") {
            return Err(io::Error::other(head[0].clone()));
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok());
        let mut body = vec![0; length.ok_or_else(|| io::Error::other("no length"))?];
        reader.read_exact(&mut body)?;
        if head.iter().any(|line| line == "connection: close") {
            self.closed += 1;
        } else {
            self.kept = Some(reader);
        }
        Ok(body)
    }

    /// A connection on which another protocol is spoken.
    fn upgraded(&mut self) -> io::Result<Talk> {
        let mut lines = self.begin("/echo", "connection: upgrade\r\nupgrade: echo\r\n")?;
        let head = read_head(&mut lines)?;
        if !head[0].starts_with("http/1.1 101") {
            return Err(io::Error::other(head[0].clone()));
        }
        Ok(Talk { stream: lines.get_ref().try_clone()?, lines, number: 0 })
    }
}

/// A connection to a task through the gateway.
struct Talk {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    /// Whose it is.
    number: u8,
}

impl Talk {
    fn open(at: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, LOST)?;
        stream.set_read_timeout(Some(LOST))?;
        stream.set_nodelay(true)?;
        let mut talk = Self { lines: BufReader::new(stream.try_clone()?), stream, number: 0 };
        talk.number = talk.hear()?.parse().map_err(io::Error::other)?;
        Ok(talk)
    }

    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.stream, "{text}")?;
        let heard = self.hear()?;
        if heard == text { Ok(()) } else { Err(io::Error::other(format!("{heard} in answer to {text}"))) }
    }
}

/// A folder, a port, and the processes that come and go there; the last of them end with this.
struct Place {
    folder: tempfile::TempDir,
    at: SocketAddr,
}

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        // An address of its own: while nobody listens there, no client is given the port.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, 80, u8::try_from(count).unwrap(), 1);
        let at = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), at }
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// This program as a gateway process.
    fn arguments(&self) -> Vec<std::ffi::OsString> {
        let log = self.folder.path().join("access.log");
        let mut words: Vec<std::ffi::OsString> =
            ["gateway_process", "--exact", "--ignored", "--nocapture"].map(Into::into).into();
        words.extend([self.run_dir().into(), log.into()]);
        words
    }

    fn agent(&self, executable: &Path) -> Agent {
        fs::create_dir_all(self.run_dir()).unwrap();
        let mut program: Program = process::program(&self.run_dir(), self.arguments());
        program.executable = executable.to_owned();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tasks = Tasks::new(&Shutdown::new());
        let process = {
            let _in_runtime = runtime.enter();
            GatewayProcess::start(program, &tasks)
        };
        Agent { runtime, process, at: self.at }
    }

    fn pid_at(path: &Path) -> Option<u32> {
        let stream = UnixStream::connect(path).ok()?;
        let credentials =
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        u32::try_from(credentials.pid()).ok()
    }

    /// The process that takes the connections.
    fn pid(&self) -> Option<u32> {
        Self::pid_at(&self.run_dir().join("gateway.sock"))
    }

    /// All processes.
    fn pids(&self) -> Vec<u32> {
        let files = fs::read_dir(self.run_dir()).into_iter().flatten().flatten().map(|file| file.path());
        let sockets = files.filter(|path| path.extension().is_some_and(|kind| kind == "sock"));
        let mut pids: Vec<_> = sockets.filter_map(|path| Self::pid_at(&path)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn copies(&self) -> [PathBuf; 2] {
        ["old", "new"].map(|name| {
            let copy = self.folder.path().join(name);
            // Written here, so that no other test's process that is just being started holds it open.
            fs::copy(wharf(), &copy).unwrap();
            copy
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
    }
}

/// An agent, as far as the gateway is concerned. Dropped it is gone as by a kill.
struct Agent {
    runtime: tokio::runtime::Runtime,
    process: GatewayProcess,
    at: SocketAddr,
}

impl Agent {
    fn table(&self, version: u64, tasks: &[&Echo]) -> RouteTable {
        let route = Route {
            service: service(),
            port: self.at.port(),
            protocol: Protocol::Tcp,
            host_ip: Some(self.at.ip()),
            endpoints: tasks.iter().map(|task| task.endpoint).collect(),
        };
        RouteTable::of_ports(Revision(version), vec![route])
    }

    /// Publishes until it is acknowledged.
    fn publish(&self, version: u64, tasks: &[&Echo]) {
        self.serve(&self.table(version, tasks));
    }

    /// Publishes a route of a service at this port until it is acknowledged.
    fn publish_web(&self, version: u64, port: u16, tasks: &[&Web]) {
        let spec: RouteSpec =
            serde_json::from_value(serde_json::json!({ "port": 80, "listen": port })).unwrap();
        let endpoints = tasks.iter().map(|task| task.endpoint).collect();
        let route = ServiceRoute {
            id: RouteId { service: service(), number: 0, preview: false },
            spec,
            sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints }],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: wharf_model::Users::default(),
        };
        let services = vec![route];
        self.serve(&RouteTable { version: Revision(version), services, ..RouteTable::default() });
    }

    fn serve(&self, table: &RouteTable) {
        eventually("acknowledgement", || self.runtime.block_on(self.process.publish(table)).then_some(()));
        assert_eq!(self.process.version(), Some(table.version));
        assert_eq!(self.process.problems(), Vec::<String>::new());
    }

    fn stats(&self) -> GatewayStats {
        self.runtime.block_on(self.process.stats())
    }

    fn draining(&self) -> BTreeMap<TaskId, u64> {
        self.process.draining()
    }

    fn drains(&self, wanted: &[(TaskId, u64)]) -> Duration {
        let (since, wanted) = (Instant::now(), wanted.iter().copied().collect::<BTreeMap<_, _>>());
        while self.draining() != wanted {
            let late = since.elapsed() > SOON;
            assert!(!late, "{wanted:?} under way, not {:?}: {:?}", self.draining(), self.stats());
            thread::sleep(Duration::from_millis(1));
        }
        since.elapsed()
    }
}

/// This program.
fn wharf() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// What is run as a gateway process. It says nothing about anything.
#[test]
#[ignore = "the other tests start it"]
fn gateway_process() {
    let mut paths = std::env::args().filter(|argument| argument.starts_with('/')).skip(1).map(PathBuf::from);
    let (Some(folder), Some(log)) = (paths.next(), paths.next()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let privileges = Capabilities::NET_BIND_SERVICE | Capabilities::NET_ADMIN;
    detached::begin("gateway-of-test", privileges).unwrap();
    let access_log = Some(AccessLogOptions::at(log));
    let options = ProcessOptions {
        folder,
        gateway: GatewayOptions::default(),
        requests: HttpOptions::default(),
        access_log,
    };
    runtime.block_on(process::serve(options, &Shutdown::new())).unwrap();
}

/// Somebody who connects, says a few things and goes, all the time.
struct Visitor {
    stop: Arc<AtomicBool>,
    visits: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Visitor {
    fn start(at: SocketAddr) -> Self {
        Self::doing(move || {
            let mut talk = Talk::open(at)?;
            (0..3).try_for_each(|number| talk.say(&format!("hello {number}")))
        })
    }

    /// One that asks over the same connection again and again.
    fn browsing(at: SocketAddr) -> Self {
        let mut browser = Browser::new(at);
        Self::doing(move || browser.get("/").map(drop))
    }

    fn doing(mut visit: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&visits));
        let thread = thread::spawn(move || {
            let mut complaints = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = visit() {
                    complaints.push(error.to_string());
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            complaints
        });
        Self { stop, visits, thread }
    }

    fn visits(&self) -> u64 {
        self.visits.load(Ordering::Relaxed)
    }

    /// Waits until that many more were made.
    fn go_on(&self, count: u64) {
        let goal = self.visits() + count;
        eventually("visits", || (self.visits() >= goal).then_some(()));
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn an_agent_that_comes_back_finds_the_process_and_its_connections() {
    let (place, first, second) = (Place::new(), Echo::start(1), Echo::start(2));
    let agent = place.agent(&wharf());
    // Without routes no process is needed.
    let empty = RouteTable { version: Revision(1), ..RouteTable::default() };
    eventually("acknowledgement", || agent.runtime.block_on(agent.process.publish(&empty)).then_some(()));
    assert_eq!((place.pid(), agent.process.starts()), (None, 0));

    agent.publish(2, &[&first]);
    let pid = place.pid().unwrap();
    let mut talk = Talk::open(place.at).unwrap();
    let visitor = Visitor::start(place.at);
    drop(agent);
    visitor.go_on(50);
    talk.say("still there").unwrap();
    let agent = place.agent(&wharf());
    agent.publish(3, &[&first]);
    visitor.go_on(50);
    assert_eq!((place.pid(), agent.process.starts()), (Some(pid), 0), "no second one");
    assert_eq!(agent.process.ports().unwrap().into_iter().collect::<Vec<_>>(), [place.at.port()]);

    // What is acknowledged leads nowhere else, and says what is left with those that it does not have.
    agent.publish(4, &[&second]);
    let before = first.accepted();
    visitor.go_on(20);
    assert_eq!(first.accepted(), before, "nothing begins at a task that has left");
    assert_eq!(visitor.end(), Vec::<String>::new());
    agent.drains(&[(task(1), 1)]);
    talk.say("not cut").unwrap();
    drop(talk);
    let prompt = agent.drains(&[]);
    println!("the end of a task's last connection is known after {prompt:?}");
    assert_eq!((talk_to(place.at), place.pids()), (2, vec![pid]));
    let stats = agent.stats();
    assert_eq!(stats.processes.len(), 1);
    assert!(stats.ports[0].connections > 120 && stats.ports[0].failures == 0, "{stats:?}");
}

/// Which task answers a new connection.
fn talk_to(at: SocketAddr) -> u8 {
    Talk::open(at).unwrap().number
}

#[test]
fn a_gateway_that_is_killed_serves_again_before_anybody_tells_it_anything() {
    let (place, first, second) = (Place::new(), Echo::start(1), Echo::start(2));
    let agent = place.agent(&wharf());
    agent.publish(1, &[&first]);
    eventually("sockets to be kept", || (agent.process.kept_sockets() == 1).then_some(()));
    let mut back = Vec::new();
    for round in 0..5 {
        let (version, newest) = (2 + round, if round % 2 == 0 { &second } else { &first });
        agent.publish(version, &[newest]);
        let pid = place.pid().unwrap();
        let since = Instant::now();
        end(pid, Signal::SIGKILL);
        eventually("its end", || (!is_alive(pid)).then_some(()));
        let talk = Talk::open(place.at).expect("who connects meanwhile is kept waiting, and not refused");
        back.push(since.elapsed());
        assert_eq!(u64::from(talk.number), 2 - round % 2, "by the table that was acknowledged");
        drop(talk);
        eventually("acknowledgement", || (agent.process.version() == Some(Revision(version))).then_some(()));
        assert_ne!(place.pid(), Some(pid));
    }
    back.sort();
    println!(
        "killed gateway: answers again after {:?} (median of 5; {:?} to {:?})",
        back[2], back[0], back[4]
    );
    // Nobody is there to start it: it serves by itself what it last acknowledged.
    drop(agent);
    let pid = place.pid().unwrap();
    end(pid, Signal::SIGKILL);
    eventually("its end", || (!is_alive(pid)).then_some(()));
    let mut alone = std::process::Command::new(wharf()).args(place.arguments()).spawn().unwrap();
    assert_eq!(eventually("an answer", || Talk::open(place.at).ok()).number, 2);
    alone.kill().unwrap();
    alone.wait().unwrap();
}

#[test]
fn another_build_takes_over_and_no_connection_is_lost() {
    let (place, first, second) = (Place::new(), Echo::start(1), Echo::start(2));
    let [old, new] = place.copies();
    let mut agent = place.agent(&old);
    agent.publish(1, &[&first]);
    let visitors = [(); 3].map(|()| Visitor::start(place.at));
    // One begins with each process, and all go on to the end.
    let mut talks = vec![Talk::open(place.at).unwrap()];
    let mut download = Talk::open(place.at).unwrap();
    writeln!(download.stream, "download 2000").unwrap();
    let mut took = Vec::new();
    let rounds = 6_u64;
    for round in 1..=rounds {
        let before = place.pid().unwrap();
        drop(agent);
        visitors[0].go_on(5);
        let since = Instant::now();
        agent = place.agent(if round % 2 == 1 { &new } else { &old });
        agent.publish(1 + round, &[&first]);
        took.push(since.elapsed());
        assert_ne!(place.pid(), Some(before));
        visitors[0].go_on(5);
        talks.push(Talk::open(place.at).unwrap());
        talks.iter_mut().for_each(|talk| talk.say(&format!("round {round}")).unwrap());
    }
    let expected: Vec<String> = (0..2000).map(|line| line.to_string()).collect();
    let downloaded: Vec<String> = (0..2000).map(|_| download.hear().unwrap()).collect();
    assert_eq!(downloaded, expected, "a download over all of them");
    drop(download);
    assert_eq!(place.pids().len(), talks.len(), "each process is there for its connection");

    // A task that leaves is not free before what all of them have with it is over.
    agent.publish(100, &[&second]);
    let all = u64::try_from(talks.len()).unwrap();
    agent.drains(&[(task(1), all)]);
    let visits: u64 = visitors.iter().map(Visitor::visits).sum();
    for visitor in visitors {
        assert_eq!(visitor.end(), Vec::<String>::new());
    }
    // An agent that comes later finds all of them as well.
    drop(agent);
    let agent = place.agent(if rounds % 2 == 1 { &new } else { &old });
    agent.publish(101, &[&second]);
    assert_eq!(agent.draining(), BTreeMap::from([(task(1), all)]));
    let killed = *place.pids().iter().find(|pid| Some(**pid) != place.pid()).unwrap();
    end(killed, Signal::SIGKILL);
    agent.drains(&[(task(1), all - 1)]);
    talks.clear();
    agent.drains(&[]);
    eventually("the end of those that were replaced", || (place.pids() == [place.pid()?]).then_some(()));
    assert_eq!(talk_to(place.at), 2);
    took.sort();
    println!(
        "{rounds} handovers: 0 of {visits} connections lost; a new table is acknowledged after {:?} (median)",
        took[took.len() / 2]
    );
}

#[test]
fn requests_go_on_over_handovers_and_old_processes_hear_of_new_tasks() {
    let (place, first, second) = (Place::new(), Web::start(1), Web::start(2));
    let [old, new] = place.copies();
    // Services' routes are at every address.
    let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut agent = place.agent(&old);
    agent.publish_web(1, port, &[&first]);
    let visitors = [(); 4].map(|()| Visitor::browsing(at));
    let mut upgraded = Browser::new(at).upgraded().unwrap();
    let download = thread::spawn(move || Browser::new(at).get("/slowly"));
    let mut silent = Vec::new();
    let rounds = 4_u64;
    for round in 1..=rounds {
        // One that stays silent while another process takes over. (It would be closed after ten seconds.)
        let mut browser = Browser::new(at);
        assert_eq!(browser.get("/").unwrap(), b"1");
        silent.push(browser);
        drop(agent);
        visitors[0].go_on(20);
        agent = place.agent(if round % 2 == 1 { &new } else { &old });
        agent.publish_web(1 + round, port, &[&first]);
        visitors.iter().for_each(|visitor| visitor.go_on(20));
        upgraded.say(&format!("round {round}")).unwrap();
    }
    assert_eq!(download.join().unwrap().unwrap().len(), 400, "a download over all of them");

    // The last one that was silent is another process's. It is answered by whom the newest table has, and then closed.
    agent.publish_web(100, port, &[&second]);
    agent.drains(&[(task(1), 1)]);
    let before = first.asked();
    let mut idle = silent.pop().unwrap();
    assert_eq!((idle.get("/").unwrap(), idle.closed), (b"2".to_vec(), 1));
    assert_eq!((idle.get("/").unwrap(), idle.closed), (b"2".to_vec(), 1), "the next process keeps it");
    visitors.iter().for_each(|visitor| visitor.go_on(20));
    assert_eq!(first.asked(), before, "nothing begins at a task that has left");
    upgraded.say("not cut").unwrap();
    drop(upgraded);
    agent.drains(&[]);
    let visits: u64 = visitors.iter().map(Visitor::visits).sum();
    for visitor in visitors {
        assert_eq!(visitor.end(), Vec::<String>::new());
    }
    eventually("the end of those that were replaced", || (place.pids() == [place.pid()?]).then_some(()));
    println!("{rounds} handovers: 0 of {visits} requests over kept connections lost");
    let log = eventually("the access log", || {
        let log = fs::read_to_string(place.folder.path().join("access.log")).ok()?;
        log.contains("\"path\":\"/slowly\"").then_some(log)
    });
    assert!(log.lines().all(|line| line.starts_with("{\"time\":") && line.ends_with('}')));
}

#[test]
fn what_ends_right_after_a_table_is_served_is_told_to_have_ended() {
    let (place, first, second) = (Place::new(), Web::start(1), Web::start(2));
    let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
    let agent = place.agent(&wharf());
    agent.publish_web(1, port, &[&first]);
    let visitors = [(); 4].map(|()| Visitor::browsing(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    // Short requests, no client that comes or goes: nothing but the end of what was under way makes the process speak again.
    for round in 0..40 {
        agent.publish_web(2 + round, port, &[if round % 2 == 0 { &second } else { &first }]);
        agent.drains(&[]);
    }
    for visitor in visitors {
        assert_eq!(visitor.end(), Vec::<String>::new());
    }
}

#[test]
fn a_gateway_that_hangs_is_replaced() {
    let (place, first, second) = (Place::new(), Echo::start(1), Echo::start(2));
    let agent = place.agent(&wharf());
    agent.publish(1, &[&first]);
    drop(agent);
    let pid = place.pid().unwrap();
    hang(pid);
    // Nothing newer is acknowledged while the old one could wake up and go on.
    let agent = place.agent(&wharf());
    agent.publish(2, &[&second]);
    assert_eq!(talk_to(place.at), 2);
    assert!(!is_alive(pid), "the one that hung");
}

#[test]
fn a_port_that_is_taken_is_named_with_its_holder() {
    let (place, first) = (Place::new(), Echo::start(1));
    let squatter = TcpListener::bind(place.at).unwrap();
    let agent = place.agent(&wharf());
    let table = agent.table(1, &[&first]);
    eventually("acknowledgement", || agent.runtime.block_on(agent.process.publish(&table)).then_some(()));
    let wanted = format!("port {} is taken on this node by process ", place.at);
    let problem = eventually("a problem", || agent.process.problems().pop());
    assert!(
        problem.starts_with(&wanted) && problem.ends_with(&format!("(pid {})", std::process::id())),
        "{problem}"
    );
    drop(squatter);
    eventually("the port to be free", || agent.process.problems().is_empty().then_some(()));
    assert_eq!(eventually("an answer", || Talk::open(place.at).ok()).number, 1);
}

#[test]
fn a_gateway_whose_folder_is_gone_ends() {
    // Nothing that was begun here is left when tests are over.
    let (place, first) = (Place::new(), Echo::start(1));
    let agent = place.agent(&wharf());
    agent.publish(1, &[&first]);
    let pid = place.pid().unwrap();
    drop(agent);
    fs::remove_dir_all(place.run_dir()).unwrap();
    eventually("its end", || (!is_alive(pid)).then_some(()));
}
