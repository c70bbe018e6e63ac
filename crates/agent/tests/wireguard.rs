//! WireGuard tunnels in the real kernel: nodes, a wire between them, routers, and containers are network namespaces.
//!
//! Needs root, `ip`, `nft` and `/dev/net/tun`. Without root the tests say so and pass, unless `WHARF_REQUIRE_ENGINE` is `1`.

mod fixture;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fixture::{Namespace, can_run, eventually, ip, run};
use futures::future::BoxFuture;
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wharf_agent::{
    dns::Upstreams,
    network::{
        KernelNetwork, NetworkOptions,
        wireguard::{DEVICE, TunnelOptions, Tunnels, run_device},
    },
};
use wharf_model::{
    Backend, NetworkAssignment, NetworkId, NodeId, Peer, PublicKey, WIREGUARD_PORT, WireguardAssignment,
    WireguardFacts, WireguardPeer, mac_for, tunnel_address,
};
use wharf_process::{Shutdown, SystemClock, Tasks};

const SOON: Duration = Duration::from_secs(40);
const PORT: u16 = 7000;
/// After so long without an answer WireGuard tries a handshake again.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What containers say to each other, and nobody on the wire may read.
const MARK: &[u8] = b"this-is-nobody-elses-business";

/// The process that carries tunnels: this executable, started by the agent under test with an interface and a socket.
#[test]
#[ignore = "no test: started by the tests"]
fn carries_tunnels() {
    let arguments: Vec<String> = std::env::args().collect();
    let [.., interface, socket] = arguments.as_slice() else { return };
    if interface != DEVICE {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime
        .expect("a runtime")
        .block_on(async { run_device(interface, Path::new(socket), &Tasks::new(&Shutdown::new())).await });
    outcome.expect("the interface is there");
}

/// A segment to which nodes and routers are plugged.
struct Segment {
    switch: Namespace,
}

impl Segment {
    fn new(name: &str) -> Self {
        let switch = Namespace::new(name);
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        Self { switch }
    }

    fn plug(&self, namespace: &Namespace, interface: &str, address: &str) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let port = format!("port{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (inside, switch) = (&namespace.name, &self.switch.name);
        ip(&format!("link add {interface} netns {inside} type veth peer name {port} netns {switch}"));
        self.switch.ip(&format!("link set {port} master br0 up"));
        namespace.ip(&format!("addr add {address} dev {interface}"));
        namespace.ip(&format!("link set {interface} up"));
    }
}

/// Counts the packets on a segment, and those in which [`MARK`] can be read.
struct Sniffer {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    readable: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    fn new(segment: &Segment) -> Self {
        const ALL: i32 = 0x0300;
        let (stop, seen, readable) = (Arc::default(), Arc::default(), Arc::default());
        let (stopped, all, plain): (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>) =
            (Arc::clone(&stop), Arc::clone(&seen), Arc::clone(&readable));
        let (ready, is_ready) = mpsc::channel();
        let thread = segment.switch.run(move || {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))).expect("root may");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it can be");
            ready.send(()).expect("somebody waits");
            let mut frame = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = (&socket).read(&mut frame) else { continue };
                all.fetch_add(1, Ordering::Relaxed);
                if frame[..length].windows(MARK.len()).any(|window| window == MARK) {
                    plain.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        is_ready.recv_timeout(SOON).expect("it listens");
        Self { stop, seen, readable, thread: Some(thread) }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }
    fn readable(&self) -> usize {
        self.readable.load(Ordering::Relaxed)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What an agent has of a node.
struct Agent {
    tunnels: Arc<Tunnels>,
    network: Arc<KernelNetwork>,
    stop: CancellationToken,
}

impl Agent {
    fn new(options: TunnelOptions, tasks: &Tasks) -> Self {
        let mut networks = NetworkOptions::new(options.node);
        networks.upstreams = Upstreams::Fixed(Vec::new());
        let tunnels = Tunnels::open(options, Arc::new(SystemClock::new()), tasks).expect("keys");
        let tunnels = Arc::new(tunnels);
        let network = KernelNetwork::open(networks, tasks).expect("a netlink socket");
        let network = Arc::new(network.with_tunnels(Arc::clone(&tunnels)));
        let stop = CancellationToken::new();
        let (running, stopped) = (Arc::clone(&tunnels), stop.clone());
        tasks.spawn("tunnels", async move { running.run(stopped).await });
        Self { tunnels, network, stop }
    }
}

type Job = Box<dyn FnOnce(&mut Option<Agent>, Tasks) -> BoxFuture<'_, ()> + Send>;

/// A node: its namespace, and an agent's tunnels and networks on a thread inside.
struct Node {
    jobs: Option<tokio::sync::mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: NodeId,
    name: String,
    address: IpAddr,
    number: u8,
    options: TunnelOptions,
    namespace: Namespace,
    _folder: TempDir,
}

impl Node {
    fn new(segment: &Segment, number: u8, address: &str) -> Self {
        let namespace = Namespace::new(&format!("n{number}"));
        segment.plug(&namespace, "eth0", address);
        let address: ipnet::Ipv4Net = address.parse().expect("an address");
        let folder = tempfile::tempdir().expect("a folder");
        let process = ["carries_tunnels", "--exact", "--ignored", "--nocapture"].map(Into::into).into();
        let (state, run) = (folder.path().join("state"), folder.path().join("run"));
        let options = TunnelOptions::new(address.addr().into(), state, run, process);
        let (jobs, mut queue) = tokio::sync::mpsc::channel::<Job>(1);
        let first = options.clone();
        let thread = namespace.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let tasks = Tasks::new(&Shutdown::new());
                let mut agent = Some(Agent::new(first, &tasks));
                while let Some(job) = queue.recv().await {
                    job(&mut agent, tasks.clone()).await;
                }
            });
        });
        Self {
            jobs: Some(jobs),
            thread: Some(thread),
            id: NodeId::from_parts(1, [number; 10]),
            name: format!("n{number}"),
            address: options.node,
            number,
            options,
            namespace,
            _folder: folder,
        }
    }

    /// Does something with the node's agent, inside.
    fn with<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a mut Option<Agent>, Tasks) -> BoxFuture<'a, T> + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move |agent, tasks| {
            Box::pin(async move {
                let _ = done.send(work(agent, tasks).await);
            })
        });
        self.jobs.as_ref().expect("until it is dropped").blocking_send(job).expect("the node is there");
        result.recv_timeout(SOON).expect("the node answers")
    }

    fn facts(&self) -> WireguardFacts {
        self.with(|agent, _| {
            let tunnels = Arc::clone(&agent.as_ref().expect("it runs").tunnels);
            Box::pin(async move { tunnels.facts() })
        })
    }

    fn problems(&self) -> Vec<String> {
        self.with(|agent, _| {
            let network = Arc::clone(&agent.as_ref().expect("it runs").network);
            Box::pin(async move { network.problems() })
        })
    }

    /// Takes a set, as a node's pass does; answers what could not be done.
    fn take(&self, tunnels: Option<WireguardAssignment>, networks: &[NetworkAssignment]) -> Vec<String> {
        let networks: BTreeMap<_, _> = networks.iter().map(|network| (network.id, network.clone())).collect();
        self.with(move |agent, _| {
            let network = Arc::clone(&agent.as_ref().expect("it runs").network);
            Box::pin(async move {
                network.prepare_tunnels(tunnels.as_ref()).await;
                let pass = network.prepare(&networks).await.expect("the kernel answers");
                pass.problems.into_values().collect()
            })
        })
    }

    /// The agent ends and another one starts.
    fn restart_agent(&self) {
        let options = self.options.clone();
        self.with(|agent, tasks| {
            Box::pin(async move {
                agent.take().expect("it runs").stop.cancel();
                *agent = Some(Agent::new(options, &tasks));
            })
        });
    }

    fn peer(&self, facts: &WireguardFacts, endpoint: bool, via: Option<NodeId>) -> WireguardPeer {
        WireguardPeer {
            name: self.name.parse().expect("a name"),
            address: tunnel_address(self.id),
            key: facts.key,
            next: facts.next,
            endpoint: endpoint.then(|| SocketAddr::new(self.address, WIREGUARD_PORT)),
            via,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 192, 0, last)
}

/// The network as a node has it: gateway .n, a container at .n0, and those of the others.
fn network(node: &Node, nodes: &[&Node], backend: Backend) -> NetworkAssignment {
    let subnet = "10.192.0.0/20".parse().expect("a network");
    let id = NetworkId::from_parts(1, [1; 10]);
    let others = nodes.iter().filter(|other| other.number != node.number);
    let peers = others.flat_map(|other| {
        let there: IpAddr = match backend {
            Backend::Wireguard => tunnel_address(other.id).into(),
            _ => other.address,
        };
        [other.number, other.number * 10].map(|last| Peer::new(at(last), there))
    });
    NetworkAssignment {
        peers: peers.collect(),
        backend,
        ..NetworkAssignment::new(id, "shop_default", 0x64, subnet, at(node.number))
    }
}

/// How nodes see each other: who can be called, and who is reached through whom.
struct Mesh<'a> {
    nodes: Vec<&'a Node>,
    hidden: BTreeSet<u8>,
    hub: Option<NodeId>,
}

impl Mesh<'_> {
    fn assignment(&self, node: &Node, promote: Option<PublicKey>, rotation: u32) -> WireguardAssignment {
        let others = self.nodes.iter().filter(|other| other.number != node.number);
        let hidden = |node: &Node| self.hidden.contains(&node.number);
        let peers = others.map(|other| {
            let via = self.hub.filter(|_| hidden(node) && hidden(other));
            (other.id, other.peer(&other.facts(), !hidden(other), via))
        });
        WireguardAssignment {
            address: tunnel_address(node.id),
            promote,
            rotation,
            relays: self.hub == Some(node.id),
            peers: peers.collect(),
            unreachable: Vec::new(),
        }
    }

    /// Tells every node what the others have said of themselves.
    fn tell_all(&self, rotation: &BTreeMap<u8, u32>, promote: &BTreeMap<u8, PublicKey>) {
        for node in &self.nodes {
            let rotation = rotation.get(&node.number).copied().unwrap_or_default();
            let tunnels = self.assignment(node, promote.get(&node.number).copied(), rotation);
            let problems = node.take(Some(tunnels), &[network(node, &self.nodes, Backend::Wireguard)]);
            assert_eq!(problems, Vec::<String>::new());
        }
    }
}

/// A container's end: a namespace plugged into a node's bridge as Docker does it, where everything that comes is sent back.
struct Container {
    namespace: Namespace,
    address: Ipv4Addr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Container {
    fn new(node: &Node) -> Self {
        let address = at(node.number * 10);
        let namespace = Namespace::new(&format!("c{}", node.number));
        let (inside, outside, veth) = (&namespace.name, &node.namespace.name, format!("veth{}", node.number));
        ip(&format!("link add {veth} netns {outside} type veth peer name eth0 netns {inside}"));
        let [a, b, c, d, e, f] = mac_for(address);
        namespace
            .ip(&format!("link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu 1350"));
        namespace.ip(&format!("addr add {address}/20 dev eth0"));
        namespace.ip("link set eth0 up");
        node.namespace.ip(&format!("link set {veth} mtu 1350 master wh64 up"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = mpsc::channel();
        let thread = namespace.run(move || {
            let socket = UdpSocket::bind((address, PORT)).expect("nothing else listens here");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it can be");
            ready.send(()).expect("somebody waits");
            let mut packet = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut packet) {
                    let _ = socket.send_to(&packet[..length], from);
                }
            }
        });
        is_ready.recv_timeout(SOON).expect("it listens");
        Self { namespace, address, stop, thread: Some(thread) }
    }

    /// Whether something of this size comes back from there.
    fn hears(&self, other: &Self, size: usize) -> bool {
        let to = other.address;
        let ask = move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("it can be");
            let mut packet = vec![0; size.max(MARK.len())];
            packet[..MARK.len()].copy_from_slice(MARK);
            let _ = socket.send_to(&packet, (to, PORT));
            socket.recv(&mut packet).is_ok_and(|length| length == packet.len())
        };
        self.namespace.run(ask).join().expect("no panic")
    }

    /// Asks again and again until it is dropped.
    fn keeps_asking(&self, other: &Self) -> Asking {
        let to = other.address;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = self.namespace.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            socket.set_nonblocking(true).expect("it can be");
            let (mut sent, mut back, mut longest) = (0_u32, BTreeSet::new(), Duration::ZERO);
            let (mut last, mut packet) = (Instant::now(), [0; 4]);
            let mut take = |back: &mut BTreeSet<u32>| {
                while socket.recv(&mut packet).is_ok() {
                    back.insert(u32::from_be_bytes(packet));
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            };
            while !stopped.load(Ordering::Relaxed) {
                let _ = socket.send_to(&sent.to_be_bytes(), (to, PORT));
                sent += 1;
                thread::sleep(Duration::from_millis(2));
                take(&mut back);
            }
            let end = Instant::now() + Duration::from_secs(1);
            while back.len() < sent as usize && Instant::now() < end {
                take(&mut back);
                thread::sleep(Duration::from_millis(1));
            }
            Asked { sent, lost: sent as usize - back.len(), longest }
        });
        Asking { stop, thread }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Asked>,
}

impl Asking {
    fn end(self) -> Asked {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// What became of the questions.
#[derive(Debug)]
struct Asked {
    sent: u32,
    lost: usize,
    /// The longest time without an answer.
    longest: Duration,
}

#[expect(clippy::print_stderr, reason = "figures are for whoever runs the tests")]
fn figure(text: &str) {
    eprintln!("{text}");
}

#[test]
fn tunnels_carry_networks_that_nobody_on_the_wire_can_read_and_live_on() {
    if !can_run("/dev/net/tun") {
        return;
    }
    let wire = Segment::new("wire");
    let nodes = [1, 2, 3].map(|number| Node::new(&wire, number, &format!("192.0.2.{number}/24")));
    let [one, two, three] = &nodes;
    let sniffer = Sniffer::new(&wire);

    // The sniffer reads what is not encrypted.
    for node in [one, two] {
        node.take(None, &[network(node, &[one, two], Backend::Vxlan)]);
    }
    let (web, db) = (Container::new(one), Container::new(two));
    eventually(&true, || web.hears(&db, 64));
    let plain = sniffer.readable();
    assert!(plain > 0, "a VXLAN network is read by anybody");

    // From now on nobody can, and the packets go through all the same, also the largest.
    let mesh = Mesh { nodes: vec![one, two, three], hidden: BTreeSet::new(), hub: None };
    three
        .namespace
        .nft("table inet wall { chain in { type filter hook input priority 0; udp dport 7421 drop; }; }");
    mesh.tell_all(&BTreeMap::new(), &BTreeMap::new());
    let took = eventually(&true, || web.hears(&db, 64));
    figure(&format!("first packet through new tunnels after {took:?}"));
    let (plain, before) = (sniffer.readable(), sniffer.seen());
    for _ in 0..50 {
        eventually(&true, || web.hears(&db, 1350 - 28));
    }
    assert!(sniffer.seen() >= before + 100, "it went over the wire");
    assert_eq!(sniffer.readable(), plain, "and nobody could read it");
    assert!(one.facts().carrier.is_some(), "it is said what carries them");

    // An agent that is restarted interrupts nothing and keeps its key.
    let key = one.facts().key;
    let asking = web.keeps_asking(&db);
    one.restart_agent();
    assert_eq!(one.facts().key, key);
    mesh.tell_all(&BTreeMap::new(), &BTreeMap::new());
    thread::scope(|_| eventually(&true, || db.hears(&web, 64)));
    let asked = asking.end();
    figure(&format!("agent restarted: {asked:?}"));
    assert_eq!(asked.lost, 0, "of {}", asked.sent);

    // A next key is made, told of and accepted before it is used.
    let asking = web.keeps_asking(&db);
    let rotation = BTreeMap::from([(1, 1)]);
    mesh.tell_all(&rotation, &BTreeMap::new());
    let next = one.facts().next.expect("a next key");
    mesh.tell_all(&rotation, &BTreeMap::new());
    for node in [two, three] {
        assert!(node.facts().accepts.contains(&next));
    }
    mesh.tell_all(&rotation, &BTreeMap::from([(1, next)]));
    assert_eq!((one.facts().key, one.facts().next), (next, None));
    mesh.tell_all(&rotation, &BTreeMap::new());
    eventually(&true, || db.hears(&web, 64));
    let asked = asking.end();
    figure(&format!("key rotated: {asked:?}"));
    assert!(
        asked.longest < Duration::from_secs(5),
        "no longer than a handshake that is tried again: {asked:?}"
    );

    // The process comes back when it dies, also with a key that has changed since it was first set up.
    let asking = web.keeps_asking(&db);
    assert!(one.namespace.kill_processes() > 0, "a process carries the tunnels");
    eventually(&true, || !one.namespace.processes().is_empty());
    let took = eventually(&true, || web.hears(&db, 64));
    let asked = asking.end();
    figure(&format!("process killed: {asked:?}, heard again after {took:?}"));

    // What somebody else puts on the wire does not come in as if it were from inside, and nothing leaves in the clear.
    let table = run(
        "ip",
        &["netns", "exec", &one.namespace.name, "nft", "list", "table", "inet", "wharf_wireguard"],
        "",
    );
    assert!(table.contains("drop"), "{table}");

    // A wall is told of with the port to open.
    let wall = |node: &Node| {
        let problems = node.problems();
        problems.iter().any(|text| text.contains("n1") && text.contains("7421") && text.contains("firewall"))
    };
    eventually(&true, || wall(three));

    // Without networks there are no tunnels, and nothing is left of them.
    for node in &nodes {
        node.take(None, &[]);
        let links = node.namespace.ip("link");
        assert!(!links.contains(DEVICE), "{links}");
        eventually(&true, || node.namespace.processes().is_empty());
    }
}

#[test]
fn nodes_behind_different_routers_reach_each_other_through_one_that_both_reach() {
    if !can_run("/dev/net/tun") {
        return;
    }
    let (wire, left, right) = (Segment::new("wire"), Segment::new("left"), Segment::new("right"));
    // Routers as people have them at home: out everything, in nothing that was not asked for.
    let routers = [(&left, 11, "10.1.0.1/24"), (&right, 12, "10.2.0.1/24")].map(|(inner, outer, address)| {
        let router = Namespace::new(&format!("r{outer}"));
        wire.plug(&router, "out", &format!("192.0.2.{outer}/24"));
        inner.plug(&router, "in", address);
        run("ip", &["netns", "exec", &router.name, "sysctl", "-qw", "net.ipv4.ip_forward=1"], "");
        router.nft(
            "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"out\" masquerade random; }; }\n\
             table ip wall { chain through { type filter hook forward priority 0; policy drop; ct state established,related accept; \
             iifname \"in\" accept; }; }",
        );
        router
    });
    let hub = Node::new(&wire, 1, "192.0.2.1/24");
    let (a, b) = (Node::new(&left, 2, "10.1.0.2/24"), Node::new(&right, 3, "10.2.0.2/24"));
    a.namespace.ip("route add default via 10.1.0.1");
    b.namespace.ip("route add default via 10.2.0.1");
    let mesh = Mesh { nodes: vec![&hub, &a, &b], hidden: BTreeSet::from([2, 3]), hub: Some(hub.id) };
    mesh.tell_all(&BTreeMap::new(), &BTreeMap::new());
    let containers = [&hub, &a, &b].map(Container::new);
    for from in &containers {
        for to in containers.iter().filter(|to| to.address != from.address) {
            let took = eventually(&true, || from.hears(to, 1350 - 28));
            figure(&format!("{} heard {} after {took:?}", from.address, to.address));
        }
    }

    // A key rotates also when the node is reached through another, which alone has to accept it.
    let rotation = BTreeMap::from([(2, 1)]);
    let asking = containers[2].keeps_asking(&containers[1]);
    mesh.tell_all(&rotation, &BTreeMap::new());
    let next = a.facts().next.expect("a next key");
    mesh.tell_all(&rotation, &BTreeMap::new());
    assert!(hub.facts().accepts.contains(&next));
    mesh.tell_all(&rotation, &BTreeMap::from([(2, next)]));
    mesh.tell_all(&rotation, &BTreeMap::new());
    eventually(&true, || containers[2].hears(&containers[1], 64));
    let asked = asking.end();
    figure(&format!("key rotated behind a router: {asked:?}"));
    assert!(asked.longest < HANDSHAKE, "the first handshake came about: {asked:?}");

    // A router that forgets (it restarts, its address changes) is found anew by the next packet from inside.
    routers[0].ip("addr del 192.0.2.11/24 dev out");
    routers[0].ip("addr add 192.0.2.21/24 dev out");
    let took = eventually(&true, || containers[1].hears(&containers[2], 64));
    figure(&format!("heard {took:?} after the router's address changed"));
}
