//! Virtual addresses and clients' addresses, in the real kernel.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Stdio},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};
use wharf_agent::network::sandbox::{Behind, Sandbox, Sandboxes};
use wharf_model::TaskId;

use super::*;

/// Where [`Echo`] listens.
const ECHO: u16 = 7001;

/// Says its name to whoever says anything, for as long as the connection lasts; by UDP to each datagram.
struct Echo;

impl Echo {
    fn start(namespace: &Namespace, address: Ipv4Addr, name: &'static str) {
        let (ready, is_ready) = mpsc::channel();
        // They end with the test's process.
        drop(namespace.run(move || {
            let listener = TcpListener::bind((address, ECHO)).expect("nothing else listens here");
            let datagrams = UdpSocket::bind((address, ECHO)).expect("nothing else listens here");
            ready.send(()).expect("somebody waits");
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = datagrams.recv_from(&mut buffer) {
                    let _ = datagrams.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
                }
            });
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        let _ = stream.write_all(format!("{name}\n").as_bytes());
                    }
                });
            }
        }));
        is_ready.recv_timeout(SOON).expect("it listens");
    }
}

/// Something that runs in a namespace, as a container's process does.
struct Process(Child);

impl Process {
    fn new(namespace: &Namespace) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace.name, "sleep", "600"]).stdin(Stdio::null());
        let process = Self(command.spawn().expect("`ip` is installed"));
        // It is inside once it is `sleep`.
        let name = format!("/proc/{}/comm", process.pid());
        eventually(&"sleep\n".to_owned(), || std::fs::read_to_string(&name).unwrap_or_default());
        process
    }
    fn pid(&self) -> i64 {
        self.0.id().into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn nft(namespace: &Namespace, arguments: &str) -> String {
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace.name, "nft"])
        .args(arguments.split_whitespace())
        .output()
        .expect("`ip` is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn behind(tasks: &[u8], leaving: &[u8]) -> Behind {
    let set = |of: &[u8]| of.iter().copied().map(at).collect();
    Behind { tasks: set(tasks), leaving: set(leaving) }
}

const TASK: TaskId = TaskId::from_parts(1, [1; 10]);

/// What belongs into the container at 10.192.0.10.
fn with_vip(behind: Behind) -> BTreeMap<TaskId, Sandbox> {
    let sandbox = Sandbox { own: [at(10)].into(), vips: [(at(200), behind)].into(), ..Sandbox::default() };
    [(TASK, sandbox)].into()
}

/// A connection that is kept, and who answers on it.
fn held(namespace: &Namespace) -> (TcpStream, String) {
    namespace
        .run(|| {
            let stream =
                TcpStream::connect_timeout(&(at(200), ECHO).into(), SOON).expect("somebody is ready");
            stream.set_read_timeout(Some(SOON)).expect("it can be set");
            let mut pair = (stream, String::new());
            pair.1 = ask(&mut pair.0).expect("an answer");
            pair
        })
        .join()
        .expect("no panic")
}

fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"?")?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

fn ask_datagram(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(answer.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn a_virtual_address_spreads_keeps_resets_and_refuses() {
    if !can_run() {
        return;
    }
    let pair = pair();
    let client = &pair.web.namespace;
    let other = Container::new(&pair.one, &pair.on_one, at(11), "other");
    for (namespace, address, name) in
        [(client, at(10), "web"), (&other.namespace, at(11), "other"), (&pair.db.namespace, at(20), "db")]
    {
        Echo::start(namespace, address, name);
    }
    let process = Process::new(client);
    let sandboxes = Sandboxes::default();
    let set = |behind: Behind| {
        let pass = block_on(sandboxes.set(with_vip(behind)));
        assert_eq!((pass.problems.len(), pass.behind.len()), (0, 0), "{pass:?}");
        pass.changed
    };
    assert_eq!(set(behind(&[10, 11, 20], &[])), 0, "nothing runs");
    assert!(sandboxes.programmed().is_empty());
    assert!(block_on(sandboxes.started(TASK, process.pid())).1);
    assert_eq!(sandboxes.programmed(), BTreeSet::from([at(10)]));
    assert!(!block_on(sandboxes.started(TASK, process.pid())).1, "it is done");

    // Evenly, the own task among them. The chance that this fails by chance is below one in a million.
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..300 {
        let said = client.call(at(200), PORT).expect("somebody answers");
        *counts.entry(said.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), ["db", "other", "web"]);
    assert!(counts.values().all(|count| (50..150).contains(count)), "{counts:?}");

    // What is connected stays while its task leaves; what is new goes elsewhere.
    let (mut stream, name) =
        std::iter::repeat_with(|| held(client)).find(|(_, name)| name == "db").expect("one is");
    let datagrams = client
        .run(|| {
            let connect = || {
                let socket = UdpSocket::bind((at(10), 0)).expect("a port");
                socket.set_read_timeout(Some(Duration::from_secs(2))).expect("it can be set");
                socket.connect((at(200), ECHO)).expect("there is a way");
                let name = ask_datagram(&socket).expect("an answer");
                (socket, name)
            };
            std::iter::repeat_with(connect).find(|(_, name)| name == "db").expect("one is").0
        })
        .join()
        .expect("no panic");
    assert_eq!(set(behind(&[11], &[20])), 1);
    assert_eq!(ask(&mut stream).expect("it is still there"), name);
    assert_eq!(ask_datagram(&datagrams).expect("it is still there"), name);
    for _ in 0..20 {
        assert!(client.call(at(200), PORT).expect("the other is there").starts_with("other "));
    }

    // What goes to a task that is gone is reset, and datagrams go elsewhere.
    assert_eq!(set(behind(&[11], &[])), 1);
    let error = ask(&mut stream).expect_err("its task is gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    assert_eq!(ask_datagram(&datagrams).expect("the other answers"), "other");

    // Nobody is ready.
    assert_eq!(set(behind(&[], &[])), 1);
    let started = Instant::now();
    let error = client.call(at(200), PORT).expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    assert!(started.elapsed() < Duration::from_secs(1), "at once");

    // What others did is undone, and nothing else is touched.
    assert_eq!(set(behind(&[11], &[])), 1);
    let works = || client.call(at(200), PORT).is_ok();
    for damage in
        ["flush ruleset", "delete table ip wharf", "flush chain ip wharf spread", "add chain ip wharf mine"]
    {
        assert_eq!(block_on(sandboxes.repair()).changed, 0, "before {damage}");
        nft(client, damage);
        assert_eq!(block_on(sandboxes.repair()).changed, 1, "{damage}");
        assert!(works(), "{damage}");
    }
    assert_eq!(block_on(sandboxes.repair()).changed, 0, "it is right, and looked at");
    nft(client, "add table ip mine");
    assert_eq!(block_on(sandboxes.repair()).changed, 0, "others' rules are others'");
    assert!(nft(client, "list tables").contains("ip mine"));

    // A process in another namespace is not the task's, whatever its number.
    let foreign = Process::new(&other.namespace);
    assert!(!block_on(sandboxes.started(TASK, foreign.pid())).1);
    assert!(sandboxes.programmed().is_empty());
    assert!(!nft(&other.namespace, "list tables").contains("wharf"));

    assert!(block_on(sandboxes.started(TASK, process.pid())).1);
    let nothing = Sandbox { own: [at(10)].into(), ..Sandbox::default() };
    assert_eq!(block_on(sandboxes.set([(TASK, nothing)].into())).changed, 1);
    assert!(!nft(client, "list tables").contains("wharf"));
    let counters = sandboxes.counters();
    let times = u32::try_from(counters.programmed).expect("a few");
    eprintln!("{times} times programmed, {:?} each", counters.busy / times);
}

/// A client that has its address nowhere near.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A socket of a gateway that comes from its client's address.
fn from_client(kind: SockType, client: Ipv4Addr) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, kind, SockFlag::empty(), None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    setsockopt(&socket, sockopt::Mark, &wharf_model::ENTRY_MARK)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(1, 0))?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(client, 0)))?;
    Ok(socket)
}

/// What a task says to a node's gateway that comes from its client's address.
fn call_from(node: &Node, client: Ipv4Addr, task: Ipv4Addr) -> io::Result<String> {
    let call = move || {
        let socket = from_client(SockType::Stream, client)?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(task, PORT)))?;
        let mut text = String::new();
        TcpStream::from(socket).read_to_string(&mut text)?;
        Ok(text)
    };
    node.namespace.run(call).join().expect("no panic")
}

fn send_from(node: &Node, client: Ipv4Addr, task: Ipv4Addr) -> io::Result<String> {
    let call = move || {
        let socket = UdpSocket::from(from_client(SockType::Datagram, client)?);
        socket.connect((task, ECHO))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    node.namespace.run(call).join().expect("no panic")
}

#[test]
fn answers_to_clients_addresses_go_back_to_the_gateway_that_asked() {
    if !can_run() {
        return;
    }
    let pair = pair();
    Echo::start(&pair.web.namespace, at(10), "web");
    Echo::start(&pair.db.namespace, at(20), "db");
    let sandboxes = Sandboxes::default();
    let other = TaskId::from_parts(1, [2; 10]);
    let sandbox =
        |own| Sandbox { own: [at(own)].into(), entries: [at(1), at(2)].into(), ..Sandbox::default() };
    let _ = block_on(sandboxes.set([(TASK, sandbox(20)), (other, sandbox(10))].into()));
    let processes = [Process::new(&pair.db.namespace), Process::new(&pair.web.namespace)];
    for (task, process) in [TASK, other].into_iter().zip(&processes) {
        let (entries, changed) = block_on(sandboxes.started(task, process.pid()));
        assert_eq!((entries, changed), (BTreeSet::from([at(1), at(2)]), true), "{:?}", sandboxes.problems());
    }
    let serve = |node: &Node| node.with(|network, _| async move { network.serve_entry(true).await });
    assert!(call_from(&pair.one, CLIENT, at(20)).is_err(), "the node does not know whose the answers are");
    for node in [&pair.one, &pair.two] {
        assert_eq!(serve(node), Ok(()));
    }
    // Either node's gateway, to a task on it or on the other one; from an address of the other node, and of a container.
    let everybody = [CLIENT, Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2), at(99)];
    for node in [&pair.one, &pair.two] {
        for (task, name) in [(at(10), "web"), (at(20), "db")] {
            for client in everybody {
                assert_eq!(call_from(node, client, task).ok(), says(&format!("{name} {client}")), "{task}");
                assert_eq!(send_from(node, client, task).ok(), says(&format!("{name} {client}")), "{task}");
            }
        }
        // Containers on one network, one through the gateway to the other, and what is no gateway's.
        assert_eq!(call_from(node, at(10), at(20)).ok(), says("db 10.192.0.10"));
        assert_eq!(pair.web.namespace.call(at(20), PORT).ok(), says("db 10.192.0.10"));
    }
    // Both sides are exact.
    let works = || assert_eq!(call_from(&pair.one, CLIENT, at(20)).ok(), says(&format!("db {CLIENT}")));
    for damage in ["flush ruleset", "delete table ip wharf_entry"] {
        nft(&pair.one.namespace, damage);
        assert!(call_from(&pair.one, CLIENT, at(20)).is_err(), "{damage}");
        let _ = pair.one.repair();
        works();
    }
    for damage in ["rule del priority 21333", "route flush table 180355073"] {
        pair.db.namespace.ip(damage);
        assert!(call_from(&pair.one, CLIENT, at(20)).is_err(), "{damage}");
        assert_eq!(block_on(sandboxes.repair()).changed, 1, "{damage}");
        assert_eq!(block_on(sandboxes.repair()).changed, 0, "{damage}");
        works();
    }
}
