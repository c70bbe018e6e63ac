//! The node's networks in the real kernel: nodes, a wire between them, and containers are network namespaces.
//!
//! Needs root and `ip`. Without root the tests say so and pass, unless `WHARF_REQUIRE_ENGINE` is `1`.

mod fixture;
#[path = "network/mending.rs"]
mod mending;
#[path = "network/parts.rs"]
mod parts;
#[path = "network/routed.rs"]
mod routed;
#[path = "network/seek.rs"]
mod seek;
#[path = "network/segment.rs"]
mod segment;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fixture::{Namespace, eventually, ip};
use futures::future::BoxFuture;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use wharf_agent::{
    dns::{Sources, Upstreams},
    network::{KernelNetwork, NetworkError, NetworkOptions, Pass},
};
use wharf_model::{DnsTable, NetworkAssignment, NetworkId, Peer, Revision, ipv6_for, mac_for};
use wharf_process::{Shutdown, Tasks};

#[path = "network/ipv6.rs"]
mod ipv6;

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;

fn can_run() -> bool {
    fixture::can_run("/proc/self/ns/net")
}

/// Asks from inside.
trait Call {
    /// What the listener at `address` says to somebody in here.
    fn call(&self, address: impl Into<IpAddr>, port: u16) -> io::Result<String>;
}

impl Call for Namespace {
    fn call(&self, address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
        let address = address.into();
        let call = move || {
            let patience = Duration::from_millis(1500);
            let mut stream = TcpStream::connect_timeout(&(address, port).into(), patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.run(call).join().expect("no panic")
    }
}

/// Something in a namespace that tells everybody who calls its own name and who called.
struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn new(namespace: &Namespace, address: impl Into<IpAddr>, name: &str) -> Self {
        let address = address.into();
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let (ready, is_ready) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = namespace.run(move || {
            let listener = TcpListener::bind((address, PORT)).expect("nothing else listens here");
            listener.set_nonblocking(true).expect("it can be");
            ready.send(()).expect("somebody waits");
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, from)) => {
                        let _ = stream.write_all(format!("{name} {}", from.ip()).as_bytes());
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        is_ready.recv_timeout(SOON).expect("it listens");
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The wire between the nodes: 192.0.2.0/24.
struct Wire {
    switch: Namespace,
}

impl Wire {
    fn new() -> Self {
        let switch = Namespace::new("wire");
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        Self { switch }
    }
}

type Job = Box<dyn FnOnce(Arc<KernelNetwork>, Tasks) -> BoxFuture<'static, ()> + Send>;

/// A node: its namespace, and our code on a thread inside.
struct Node {
    namespace: Namespace,
    address: IpAddr,
    jobs: Option<tokio::sync::mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn new(wire: &Wire, number: u8) -> Self {
        Self::on(wire, number, Ipv4Addr::new(192, 0, 2, number))
    }

    fn on(wire: &Wire, number: u8, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        let namespace = Namespace::new(&format!("node{number}"));
        let (name, switch) = (&namespace.name, &wire.switch.name);
        ip(&format!("link add eth0 netns {name} type veth peer name port{number} netns {switch}"));
        wire.switch.ip(&format!("link set port{number} master br0 up"));
        match address {
            IpAddr::V4(_) => namespace.ip(&format!("addr add {address}/24 dev eth0")),
            IpAddr::V6(_) => namespace.ip(&format!("addr add {address}/64 dev eth0 nodad")),
        };
        namespace.ip("link set eth0 up");
        let (jobs, mut queue) = tokio::sync::mpsc::channel::<Job>(1);
        let thread = namespace.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let tasks = Tasks::new(&Shutdown::new());
                let mut options = NetworkOptions::new(address);
                options.upstreams = Upstreams::Fixed(Vec::new());
                let network = Arc::new(KernelNetwork::open(options, &tasks).expect("a netlink socket"));
                while let Some(job) = queue.recv().await {
                    job(Arc::clone(&network), tasks.clone()).await;
                }
            });
        });
        Self { namespace, address, jobs: Some(jobs), thread: Some(thread) }
    }

    /// Does something with the node's network, inside.
    fn with<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<KernelNetwork>, Tasks) -> F + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move |network, tasks| {
            Box::pin(async move {
                let _ = done.send(work(network, tasks).await);
            })
        });
        self.jobs.as_ref().expect("until it is dropped").blocking_send(job).expect("the node is there");
        result.recv_timeout(SOON * 3).expect("the node answers")
    }

    fn prepare(&self, networks: &[NetworkAssignment]) -> Result<Pass, NetworkError> {
        let networks: BTreeMap<_, _> = networks.iter().map(|network| (network.id, network.clone())).collect();
        self.with(move |network, _| async move { network.prepare(&networks).await })
    }

    fn repair(&self) -> Pass {
        self.with(|network, _| async move { network.repair().await }).expect("the kernel answers")
    }

    fn entries(&self, device: &str) -> (usize, usize) {
        let fdb = self.namespace.bridge(&format!("fdb show dev {device}"));
        // The port's own addresses are permanent entries of the bridge.
        let own = |line: &&str| line.contains("dst") || line.contains("static");
        let neighbours = self.namespace.ip(&format!("neigh show dev {device} nud permanent"));
        (fdb.lines().filter(own).count(), neighbours.lines().count())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A container's end: a namespace plugged into a node's bridge as Docker does it, with a listener.
struct Container {
    namespace: Namespace,
    _listener: Listener,
}

impl Container {
    fn new(node: &Node, network: &NetworkAssignment, address: Ipv4Addr, name: &str) -> Self {
        let namespace = Namespace::new(name);
        let (inside, outside) = (&namespace.name, &node.namespace.name);
        let veth = format!("veth{}", address.octets()[3]);
        ip(&format!("link add {veth} netns {outside} type veth peer name eth0 netns {inside}"));
        let [a, b, c, d, e, f] = mac_for(address);
        namespace
            .ip(&format!("link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu 1450"));
        namespace.ip(&format!("addr add {address}/{} dev eth0", network.subnet.prefix_len()));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via {}", network.gateway));
        if let Some(subnet) = network.subnet6 {
            let own = format!("{}/{}", ipv6_for(subnet, address), subnet.prefix_len());
            namespace.ip(&format!("-6 addr add {own} dev eth0 nodad"));
            namespace.ip(&format!("-6 route add default via {}", ipv6_for(subnet, network.gateway)));
        }
        node.namespace.ip(&format!("link set {veth} mtu 1450 master wh{:x} up", network.vni));
        let listener = Listener::new(&namespace, address, name);
        Self { namespace, _listener: listener }
    }
}

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 192, 0, last)
}

/// Network 100 as the node with this gateway has it.
fn assignment(gateway: u8, peers: &[(u8, &Node)]) -> NetworkAssignment {
    let subnet = "10.192.0.0/20".parse().expect("a network");
    NetworkAssignment {
        peers: peers.iter().map(|(last, node)| Peer::new(at(*last), node.address)).collect(),
        ..NetworkAssignment::new(NetworkId::from_parts(1, [1; 10]), "shop_default", 0x64, subnet, at(gateway))
    }
}

/// Two nodes with a container each, and what each node was told.
struct Pair {
    one: Node,
    two: Node,
    on_one: NetworkAssignment,
    on_two: NetworkAssignment,
    web: Container,
    db: Container,
    _wire: Wire,
}

fn pair() -> Pair {
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    let on_one = assignment(1, &[(2, &two), (20, &two)]);
    let on_two = assignment(2, &[(1, &one), (10, &one)]);
    for (node, network) in [(&one, &on_one), (&two, &on_two)] {
        let pass = node.prepare(std::slice::from_ref(network)).expect("the kernel does it");
        assert_eq!(pass.problems, BTreeMap::new());
    }
    let web = Container::new(&one, &on_one, at(10), "web");
    let db = Container::new(&two, &on_two, at(20), "db");
    Pair { one, two, on_one, on_two, web, db, _wire: wire }
}

fn says(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn containers_and_nodes_reach_what_lives_on_other_nodes() {
    if !can_run() {
        return;
    }
    let pair = pair();
    eventually(&says("db 10.192.0.10"), || pair.web.namespace.call(at(20), PORT).ok());
    eventually(&says("web 10.192.0.20"), || pair.db.namespace.call(at(10), PORT).ok());
    // A node's own proxy to a container elsewhere, and the answers back.
    eventually(&says("db 10.192.0.1"), || pair.one.namespace.call(at(20), PORT).ok());
    eventually(&says("web 10.192.0.2"), || pair.two.namespace.call(at(10), PORT).ok());
    // Also with no container of the network on it.
    pair.one.namespace.ip("link delete veth10");
    eventually(&says("db 10.192.0.1"), || pair.one.namespace.call(at(20), PORT).ok());
    // A container reaches another node at its gateway.
    let _gateway = Listener::new(&pair.one.namespace, at(1), "one");
    eventually(&says("one 10.192.0.20"), || pair.db.namespace.call(at(1), PORT).ok());
}

#[test]
fn frames_go_nowhere_else_and_stale_entries_go() {
    if !can_run() {
        return;
    }
    let pair = pair();
    eventually(&says("db 10.192.0.10"), || pair.web.namespace.call(at(20), PORT).ok());
    assert_eq!(
        pair.one.entries("wv64"),
        (4, 2),
        "each peer: the port's and the bridge's entry, and a neighbour"
    );
    let stranger = Container::new(&pair.two, &pair.on_two, at(30), "stranger");
    assert!(pair.web.namespace.call(at(30), PORT).is_err(), "its address was not told to node one");
    drop(stranger);

    let without = assignment(1, &[(2, &pair.two)]);
    assert_eq!(pair.one.prepare(&[without]).expect("it works").changes, 3);
    assert_eq!(pair.one.entries("wv64"), (2, 1));
    pair.web.namespace.ip("neigh flush all");
    assert!(pair.web.namespace.call(at(20), PORT).is_err(), "nobody knows where it is");
}

#[test]
fn what_is_right_is_left_alone() {
    if !can_run() {
        return;
    }
    let pair = pair();
    let links = || pair.one.namespace.ip("-o link show");
    let before = links();
    assert_eq!(pair.one.prepare(std::slice::from_ref(&pair.on_one)).expect("it works").changes, 0);
    assert_eq!(pair.one.repair().changes, 0);
    assert_eq!(links(), before);
    assert!(pair.one.namespace.ip("-d link show wv64").contains("nolearning"));
    assert!(pair.one.namespace.ip("-d link show wv64").contains("learning off"));
    assert!(before.contains("mtu 1450"), "{before}");
}

#[test]
fn an_address_that_moves_is_reached_where_it_went() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let nodes: Vec<Node> = (1..=3).map(|number| Node::new(&wire, number)).collect();
    let everywhere = |on: u8| {
        for (number, node) in (1..).zip(&nodes) {
            let mut peers: Vec<_> = (1..).zip(&nodes).filter(|(other, _)| *other != number).collect();
            // The caller lives on the first node.
            peers.extend((number != 1).then_some((9, &nodes[0])));
            peers.extend((number != on).then_some((20, &nodes[usize::from(on) - 1])));
            let pass = node.prepare(&[assignment(number, &peers)]).expect("it works");
            assert_eq!(pass.problems, BTreeMap::new());
        }
    };
    everywhere(2);
    let caller = Container::new(&nodes[0], &assignment(1, &[]), at(9), "caller");
    let first = Container::new(&nodes[1], &assignment(2, &[]), at(20), "first");
    eventually(&says("first 10.192.0.9"), || caller.namespace.call(at(20), PORT).ok());
    drop(first);
    everywhere(3);
    let second = Container::new(&nodes[2], &assignment(3, &[]), at(20), "second");
    eventually(&says("second 10.192.0.9"), || caller.namespace.call(at(20), PORT).ok());
    drop(second);
    // And to the caller's own node, and away again: entries of the bridge follow.
    everywhere(1);
    let third = Container::new(&nodes[0], &assignment(1, &[]), at(20), "third");
    eventually(&says("third 10.192.0.9"), || caller.namespace.call(at(20), PORT).ok());
    drop(third);
    everywhere(2);
    let _fourth = Container::new(&nodes[1], &assignment(2, &[]), at(20), "fourth");
    eventually(&says("fourth 10.192.0.9"), || caller.namespace.call(at(20), PORT).ok());
}

#[test]
fn damage_is_mended_by_one_pass() {
    if !can_run() {
        return;
    }
    let pair = pair();
    let works = || eventually(&says("db 10.192.0.10"), || pair.web.namespace.call(at(20), PORT).ok());
    works();
    let mac = "02:42:0a:c0:00:14";
    assert_eq!(mac_for(at(20)), [0x02, 0x42, 0x0a, 0xc0, 0x00, 0x14], "the address the damage is done to");
    let node = &pair.one.namespace;
    let damages: [&dyn Fn(); 8] = [
        &|| drop(node.bridge(&format!("fdb del {mac} dev wv64 self"))),
        &|| drop(node.bridge(&format!("fdb del {mac} dev wv64 master"))),
        &|| drop(node.ip("neigh del 10.192.0.20 dev wv64")),
        &|| drop(node.bridge(&format!("fdb replace {mac} dev wv64 self dst 192.0.2.99"))),
        &|| drop(node.ip("link set wv64 down")),
        &|| drop(node.ip("link delete wv64")),
        &|| drop(node.ip("link set wv64 nomaster")),
        &|| drop(node.ip("addr del 10.192.0.1/20 dev wh64")),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let pass = pair.one.repair();
        assert!(pass.changes > 0 && pass.problems.is_empty(), "damage {number}: {pass:?}");
        assert_eq!(pair.one.repair().changes, 0, "damage {number} is mended");
        works();
    }
    // What others put on our devices goes.
    node.bridge("fdb add 02:00:00:00:00:01 dev wv64 self dst 192.0.2.99");
    node.ip("neigh add 10.192.0.99 lladdr 02:00:00:00:00:01 dev wv64 nud permanent");
    node.ip("addr add 10.9.9.9/24 dev wh64");
    assert_eq!(pair.one.repair().changes, 3);
    assert!(pair.one.with(|network, _| async move { network.mended() }) > 10, "it is counted");
}

#[test]
fn the_periodic_pass_mends_unasked() {
    if !can_run() {
        return;
    }
    let pair = pair();
    pair.one.with(|network, tasks| async move {
        let stop = tasks.token();
        drop(tasks.spawn("networks", async move { network.run(stop).await }));
    });
    pair.one.namespace.ip("link delete wv64");
    eventually(&(4, 2), || {
        // The device may not be there yet.
        let there = pair.one.namespace.ip("-o link show").contains("wv64");
        if there { pair.one.entries("wv64") } else { (0, 0) }
    });
}

#[test]
fn what_is_no_longer_assigned_goes_once_nothing_uses_it() {
    if !can_run() {
        return;
    }
    let pair = pair();
    let links = || pair.one.namespace.ip("-o link show");
    let remove = |keep: &[&str]| {
        let keep: BTreeSet<String> = keep.iter().map(|name| (*name).to_owned()).collect();
        pair.one.with(move |network, _| async move { network.remove_bridges(keep).await }).expect("it works")
    };
    assert_eq!(remove(&[]), 0, "it is assigned");
    let pass = pair.one.prepare(&[]).expect("it works");
    assert!(pass.problems.is_empty() && !links().contains("wv64") && links().contains("wh64"));
    assert_eq!(remove(&[]), 0, "a container is plugged in");
    pair.one.namespace.ip("link delete veth10");
    assert_eq!(remove(&["wh64"]), 0, "a Docker network is on it");
    assert_eq!(remove(&[]), 1);
    assert!(!links().contains("wh64"));
}

#[test]
fn what_cannot_be_done_for_one_network_is_said_and_keeps_no_other_from_its_own() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let node = Node::new(&wire, 1);
    node.namespace.ip("link add wv65 type bridge");
    let good = assignment(1, &[]);
    let mut taken = good.clone();
    (taken.id, taken.vni, taken.gateway) =
        (NetworkId::from_parts(1, [2; 10]), 0x65, Ipv4Addr::new(10, 192, 16, 1));
    taken.subnet = "10.192.16.0/20".parse().expect("a network");
    let pass = node.prepare(&[good.clone(), taken.clone()]).expect("the kernel answers");
    let problems: Vec<_> = pass.problems.iter().collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(*problems[0].0, taken.id);
    assert!(problems[0].1.starts_with("cannot make the VXLAN port wv65: File exists"), "{problems:?}");
    let said = node.with(|network, _| async move { network.problems() });
    assert_eq!(said, [problems[0].1.clone()]);
    assert!(node.namespace.ip("-o link show").contains("wv64"));
    node.namespace.ip("link delete wv65");
    assert_eq!(node.repair().problems, BTreeMap::new(), "tried again");
    assert!(node.namespace.ip("-d link show wv65").contains("vxlan id 101"));

    node.namespace.ip("addr flush dev eth0");
    let error = node.with(|network, _| async move { network.repair().await }).expect_err("no uplink");
    assert!(matches!(error, NetworkError::NoUplink(_)), "{error}");
}

fn ask(
    container: &Namespace,
    server: Ipv4Addr,
    name: &str,
    tcp: bool,
) -> io::Result<(ResponseCode, Vec<String>)> {
    let mut message = Message::new(99, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    let bytes = message.to_vec().expect("it encodes");
    let server = SocketAddr::from((server, 53));
    let ask = move || -> io::Result<Vec<u8>> {
        let patience = Some(Duration::from_millis(1500));
        if tcp {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_millis(1500))?;
            stream.set_read_timeout(patience)?;
            stream.write_all(&u16::try_from(bytes.len()).expect("short").to_be_bytes())?;
            stream.write_all(&bytes)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut reply)?;
            return Ok(reply);
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(patience)?;
        socket.connect(server)?;
        socket.send(&bytes)?;
        let mut reply = [0; 1500];
        let length = socket.recv(&mut reply)?;
        Ok(reply[..length].to_vec())
    };
    let reply = container.run(ask).join().expect("no panic")?;
    let reply = Message::from_vec(&reply).map_err(io::Error::other)?;
    let text = |data: &RData| data.to_string();
    Ok((reply.metadata.response_code, reply.answers.iter().map(|record| text(&record.data)).collect()))
}

#[test]
fn containers_ask_their_gateway_for_names() {
    if !can_run() {
        return;
    }
    let pair = pair();
    let id = pair.on_one.id;
    let table = DnsTable {
        version: Revision(5),
        networks: BTreeMap::from([(id, BTreeMap::from([("db".to_owned(), vec![at(20)])]))]),
        ..DnsTable::default()
    };
    for node in [&pair.one, &pair.two] {
        let table = table.clone();
        let version = node.with(move |network, _| async move {
            network.publish(&table, &Sources::from([(at(10), vec![id].into())])).await;
            network.version()
        });
        assert_eq!(version, Some(Revision(5)));
    }
    let found = Some((ResponseCode::NoError, vec!["10.192.0.20".to_owned()]));
    for (container, gateway) in [(&pair.web, 1), (&pair.db, 2)] {
        for tcp in [false, true] {
            eventually(&found, || ask(&container.namespace, at(gateway), "DB.", tcp).ok());
        }
        let unknown = ask(&container.namespace, at(gateway), "cache.", false).expect("an answer");
        assert_eq!(unknown, (ResponseCode::NXDomain, Vec::new()));
    }
    // From outside of the network nobody answers.
    assert!(ask(&pair.two.namespace, at(2), "db.", false).is_ok(), "the node itself is inside");
    pair.two.namespace.ip("route add 198.51.100.1/32 dev eth0");
    let outside = Namespace::new("outside");
    let (inside, node) = (&outside.name, &pair.one.namespace.name);
    ip(&format!("link add lan0 netns {node} type veth peer name eth0 netns {inside}"));
    pair.one.namespace.ip("addr add 198.51.100.1/24 dev lan0");
    pair.one.namespace.ip("link set lan0 up");
    outside.ip("addr add 198.51.100.2/24 dev eth0");
    outside.ip("link set eth0 up");
    outside.ip("route add default via 198.51.100.1");
    assert!(ask(&outside, at(1), "db.", false).is_err());
}

#[test]
fn ten_thousand_peers_are_programmed_in_batches() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    let mut network = assignment(1, &[]);
    network.subnet = "10.192.0.0/16".parse().expect("a network");
    let peer = |number: u32| Peer::new(Ipv4Addr::from(0x0ac0_0100 + number), two.address);
    network.peers = (0..10_000).map(peer).collect();
    let timed = |what: &str, network: &NetworkAssignment| {
        let start = Instant::now();
        let pass = one.prepare(std::slice::from_ref(network)).expect("it works");
        eprintln!("10,000 peers, {what}: {:?}, {} changes", start.elapsed(), pass.changes);
        assert_eq!(pass.problems, BTreeMap::new());
        pass.changes
    };
    assert!(timed("from nothing", &network) > 30_000);
    assert_eq!(timed("nothing to do", &network), 0);
    network.peers[5000].node = IpAddr::from([192, 0, 2, 77]);
    assert_eq!(timed("one moved", &network), 1);
    assert_eq!(one.entries("wv64"), (20_000, 10_000));
    network.peers.clear();
    assert_eq!(timed("all gone", &network), 30_000);
    assert_eq!(one.entries("wv64"), (0, 0));
}

#[path = "network/sandbox.rs"]
mod sandbox;
