//! Virtual addresses and clients' addresses, in the real kernel.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Stdio},
};

use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};
use wharf_agent::network::sandbox::{Behind, Family, Sandbox, Sandboxes};
use wharf_model::TaskId;

use super::{
    ipv6::{address, at6},
    routed::{on, routed_pair},
    *,
};

/// Where [`Echo`] listens.
const ECHO: u16 = 7001;

/// Says its name to whoever says anything, for as long as the connection lasts; by UDP to each datagram.
struct Echo;

impl Echo {
    fn start(namespace: &Namespace, address: impl Into<IpAddr>, name: &'static str) {
        let address = address.into();
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
fn from_client(kind: SockType, client: IpAddr) -> io::Result<OwnedFd> {
    let family = if client.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::empty(), None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    setsockopt(&socket, sockopt::Mark, &wharf_model::ENTRY_MARK)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(1, 0))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(client, 0)))?;
    Ok(socket)
}

/// What a task says to a node's gateway that comes from its client's address.
fn call_from(node: &Node, client: impl Into<IpAddr>, task: impl Into<IpAddr>) -> io::Result<String> {
    let (client, task) = (client.into(), task.into());
    let call = move || {
        let socket = from_client(SockType::Stream, client)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(task, PORT)))?;
        let mut text = String::new();
        TcpStream::from(socket).read_to_string(&mut text)?;
        Ok(text)
    };
    node.namespace.run(call).join().expect("no panic")
}

fn send_from(node: &Node, client: impl Into<IpAddr>, task: impl Into<IpAddr>) -> io::Result<String> {
    let (client, task) = (client.into(), task.into());
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

/// Has a node bring its gateway the answers to clients of these families.
fn serve(node: &Node, families: &'static [Family]) {
    for family in families {
        let served = node.with(move |network, _| async move { network.serve_entry(*family, true).await });
        assert_eq!(served, Ok(()), "{family:?}");
    }
}

fn addresses<A: Into<IpAddr>>(addresses: impl IntoIterator<Item = A>) -> BTreeSet<IpAddr> {
    addresses.into_iter().map(Into::into).collect()
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
        assert_eq!((entries, changed), (addresses([at(1), at(2)]), true), "{:?}", sandboxes.problems());
    }
    assert!(call_from(&pair.one, CLIENT, at(20)).is_err(), "the node does not know whose the answers are");
    for node in [&pair.one, &pair.two] {
        serve(node, &[Family::V4]);
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

#[test]
fn answers_to_clients_with_ipv6_addresses_go_back_to_the_gateway_that_asked() {
    if !can_run() {
        return;
    }
    let pair = ipv6::on_ipv4();
    let client6 = address("2001:db8:7::7");
    let mut listeners = Vec::new();
    for (container, own, name) in [(&pair.web, 10, "web"), (&pair.db, 20, "db")] {
        listeners.push(Listener::new(&container.namespace, at6(own), name));
        Echo::start(&container.namespace, at6(own), name);
    }
    let (sandboxes, other) = (Sandboxes::default(), TaskId::from_parts(1, [2; 10]));
    let sandbox = |own| Sandbox {
        own: [at(own)].into(),
        entries: [at(1), at(2)].into(),
        subnet6: pair.on_one.subnet6,
        ..Sandbox::default()
    };
    let _ = block_on(sandboxes.set([(TASK, sandbox(20)), (other, sandbox(10))].into()));
    let processes = [Process::new(&pair.db.namespace), Process::new(&pair.web.namespace)];
    let both = &addresses([at(1), at(2)]) | &addresses([at6(1), at6(2)]);
    for (task, process) in [TASK, other].into_iter().zip(&processes) {
        let (entries, _) = block_on(sandboxes.started(task, process.pid()));
        assert_eq!(entries, both, "{:?}", sandboxes.problems());
    }
    serve(&pair.one, &[Family::V4]);
    assert!(call_from(&pair.one, client6, at6(20)).is_err(), "the node does not know whose the answers are");
    for node in [&pair.one, &pair.two] {
        serve(node, &[Family::V4, Family::V6]);
    }
    // Either node's gateway, to a task on it or on the other one; from an address of the world, and of a container.
    for node in [&pair.one, &pair.two] {
        for (task, name) in [(10, "web"), (20, "db")] {
            for client in [client6, at6(99)] {
                let seen = says(&format!("{name} {client}"));
                eventually(&seen, || call_from(node, client, at6(task)).ok());
                assert_eq!(send_from(node, client, at6(task)).ok(), seen, "{name}");
            }
            assert_eq!(call_from(node, CLIENT, at(task)).ok(), says(&format!("{name} {CLIENT}")));
        }
        // What is no gateway's.
        assert_eq!(pair.web.namespace.call(at6(20), PORT).ok(), says(&format!("db {}", at6(10))));
    }
    // Both sides are exact, each family for itself.
    let works = || {
        assert_eq!(call_from(&pair.one, client6, at6(20)).ok(), says(&format!("db {client6}")));
        assert_eq!(call_from(&pair.one, CLIENT, at(20)).ok(), says(&format!("db {CLIENT}")));
    };
    for damage in ["flush ruleset", "delete table ip6 wharf_entry"] {
        nft(&pair.one.namespace, damage);
        assert!(call_from(&pair.one, client6, at6(20)).is_err(), "{damage}");
        let _ = pair.one.repair();
        works();
    }
    let inside = &pair.db.namespace;
    let damages = [
        ("ip", "-6 rule del priority 21333"),
        ("ip", "-6 route flush table 180355073"),
        ("nft", "delete table ip6 wharf"),
        ("nft", "flush ruleset"),
    ];
    for (program, damage) in damages {
        assert_eq!(block_on(sandboxes.repair()).changed, 0, "before {damage}");
        inside.does(program, damage);
        assert!(call_from(&pair.one, client6, at6(20)).is_err(), "{damage}");
        assert_eq!(block_on(sandboxes.repair()).changed, 1, "{damage}");
        assert_eq!(block_on(sandboxes.repair()).changed, 0, "{damage}");
        works();
    }
    // Nobody publishes any more.
    let nothing = Sandbox { entries: BTreeSet::new(), ..sandbox(20) };
    assert_eq!(block_on(sandboxes.set([(TASK, nothing), (other, sandbox(10))].into())).changed, 1);
    assert!(!nft(inside, "list tables").contains("wharf"));
    assert!(!inside.ip("-6 rule").contains("21333") && !inside.ip("rule").contains("21333"));
}

#[test]
fn a_container_without_ipv6_answers_clients_with_ipv4_addresses() {
    if !can_run() {
        return;
    }
    let pair = ipv6::on_ipv4();
    pair.db.namespace.does("sysctl", "-q -w net.ipv6.conf.all.disable_ipv6=1");
    let sandboxes = Sandboxes::default();
    let sandbox = Sandbox {
        own: [at(20)].into(),
        entries: [at(1)].into(),
        subnet6: pair.on_one.subnet6,
        ..Sandbox::default()
    };
    let _ = block_on(sandboxes.set([(TASK, sandbox)].into()));
    let process = Process::new(&pair.db.namespace);
    assert_eq!(block_on(sandboxes.started(TASK, process.pid())), (addresses([at(1)]), true));
    assert_eq!(sandboxes.problems(), Vec::<String>::new());
    serve(&pair.one, &[Family::V4]);
    assert_eq!(call_from(&pair.one, CLIENT, at(20)).ok(), says(&format!("db {CLIENT}")));
    // What was wrong for IPv6 alone keeps nothing else back: it is told, and there once it works.
    pair.db.namespace.does("sysctl", "-q -w net.ipv6.conf.all.disable_ipv6=0");
    pair.db.namespace.ip(&format!("-6 addr add {}/128 dev eth0 nodad", at6(20)));
    assert_eq!(block_on(sandboxes.repair()).problems.len(), 1, "the gateway is not on the link");
    assert_eq!(call_from(&pair.one, CLIENT, at(20)).ok(), says(&format!("db {CLIENT}")));
    pair.db.namespace.ip(&format!("-6 addr add {}/64 dev eth0 nodad", at6(21)));
    assert_eq!(block_on(sandboxes.repair()).problems.len(), 0);
    assert_eq!(
        block_on(sandboxes.started(TASK, process.pid())).0,
        addresses([IpAddr::from(at(1)), at6(1).into()])
    );
}

#[test]
fn a_task_on_a_routed_network_answers_clients_of_its_own_nodes_gateway() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    let (own, gateway) = (on(100, 10), on(100, 1));
    Echo::start(&it.web.namespace, own, "web");
    let sandboxes = Sandboxes::default();
    let sandbox = Sandbox { own: [own].into(), entries: [gateway].into(), ..Sandbox::default() };
    let _ = block_on(sandboxes.set([(TASK, sandbox)].into()));
    let process = Process::new(&it.web.namespace);
    assert_eq!(block_on(sandboxes.started(TASK, process.pid())), (addresses([gateway]), true));
    assert!(call_from(&it.one, CLIENT, own).is_err(), "the node does not know whose the answers are");
    for node in [&it.one, &it.two] {
        serve(node, &[Family::V4]);
    }
    // From an address of the world, of the other node, and of a container there, which is answered over the wire if it asks itself.
    for client in [CLIENT, Ipv4Addr::new(192, 0, 2, 2), on(100, 74)] {
        assert_eq!(call_from(&it.one, client, own).ok(), says(&format!("web {client}")));
        assert_eq!(send_from(&it.one, client, own).ok(), says(&format!("web {client}")));
    }
    assert_eq!(it.db.namespace.call(own, PORT).ok(), says("web 10.100.0.74"));
    // By the wire comes nothing that is not of the network, also from a gateway: it connects from its own address.
    assert!(call_from(&it.two, CLIENT, own).is_err());
    assert_eq!(it.two.namespace.call(own, PORT).ok(), says("web 10.100.0.65"));
}
