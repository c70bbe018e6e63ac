//! Routed networks: packets between nodes travel as they are, by routes, and only those of the network.

use std::process::Output;

use wharf_agent::network::router;
use wharf_model::{Backend, RemoteBlock, RouteSync, WantedRoute};

use super::*;

impl Namespace {
    pub(crate) fn command(&self, program: &str, arguments: &str) -> Output {
        let words = arguments.split_whitespace();
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(program)
            .args(words)
            .output()
            .expect("`nsenter` is installed")
    }

    /// Runs a program inside, which must succeed.
    pub(crate) fn does(&self, program: &str, arguments: &str) -> String {
        let output = self.command(program, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What the listener at `address` says to somebody in here with the address `from`.
    fn call_from(&self, from: Ipv4Addr, address: Ipv4Addr) -> io::Result<String> {
        let call = move || {
            use nix::sys::socket::{
                AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
            };
            let file = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
            setsockopt(&file, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(1, 500_000))?;
            let raw = std::os::fd::AsRawFd::as_raw_fd(&file);
            bind(raw, &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0)))?;
            connect(raw, &SockaddrIn::from(std::net::SocketAddrV4::new(address, PORT)))?;
            let mut stream = TcpStream::from(file);
            stream.set_read_timeout(Some(Duration::from_millis(1500)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.run(call).join().expect("no panic")
    }

    /// What Docker Engine 20.10 does to a node with these networks: what is not let through is dropped.
    fn docker_rules(&self, bridges: &[&str]) {
        let rules = [
            "-P FORWARD DROP",
            "-N DOCKER-USER",
            "-A DOCKER-USER -j RETURN",
            "-N DOCKER-ISOLATION-STAGE-1",
            "-N DOCKER-ISOLATION-STAGE-2",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
            "-t nat -N DOCKER",
        ];
        rules.iter().for_each(|rule| drop(self.does("iptables", &format!("-w {rule}"))));
        for bridge in bridges {
            for rule in [
                format!("-A FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
                format!("-A FORWARD -i {bridge} ! -o {bridge} -j ACCEPT"),
                format!("-A FORWARD -i {bridge} -o {bridge} -j ACCEPT"),
                format!("-A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2"),
                format!("-A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP"),
            ] {
                self.does("iptables", &format!("-w {rule}"));
            }
        }
    }
}

/// Address `last` of the routed network `vni`; node n's part is the n-th of 64 addresses.
pub(crate) fn on(vni: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, vni, 0, last)
}

fn block(vni: u8, node: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(on(vni, (node - 1) * 64), 26)
}

/// A routed network as the node with this number has it; gateways are the first addresses of their parts.
fn routed(vni: u8, node: u8, others: &[(u8, &Node)]) -> NetworkAssignment {
    let subnet = ipnet::Ipv4Net::new_assert(on(vni, 0), 20);
    let gateway = |node: u8| on(vni, (node - 1) * 64 + 1);
    let name = format!("app{vni}_default");
    let id = NetworkId::from_parts(1, [vni; 10]);
    NetworkAssignment {
        backend: Backend::Routed,
        blocks: vec![block(vni, node)],
        remote_blocks: others
            .iter()
            .map(|(number, other)| RemoteBlock { block: block(vni, *number), node: other.address })
            .collect(),
        peers: others.iter().map(|(number, other)| Peer::new(gateway(*number), other.address)).collect(),
        ..NetworkAssignment::new(id, name, u32::from(vni), subnet, gateway(node))
    }
}

fn wh(vni: u8) -> String {
    format!("wh{vni:x}")
}

/// Two nodes on one segment, networks 100 and 101 on both, Docker's rules, and containers.
pub(crate) struct Routed {
    pub(crate) one: Node,
    pub(crate) two: Node,
    pub(crate) web: Container,
    pub(crate) db: Container,
    /// Of network 101, on the first node.
    stranger: Container,
    wire: Wire,
}

fn prepare(node: &Node, networks: &[NetworkAssignment]) {
    let pass = node.prepare(networks).expect("the kernel does it");
    assert_eq!((pass.problems, pass.notes), (BTreeMap::new(), Vec::new()));
}

pub(crate) fn routed_pair() -> Routed {
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    for node in [&one, &two] {
        node.namespace.docker_rules(&[&wh(100), &wh(101)]);
        node.namespace.does("sysctl", "-q -w net.ipv4.ip_forward=0");
    }
    let on_one = [routed(100, 1, &[(2, &two)]), routed(101, 1, &[(2, &two)])];
    let on_two = [routed(100, 2, &[(1, &one)]), routed(101, 2, &[(1, &one)])];
    prepare(&one, &on_one);
    prepare(&two, &on_two);
    let web = Container::new(&one, &on_one[0], on(100, 10), "web");
    let stranger = Container::new(&one, &on_one[1], on(101, 11), "stranger");
    let db = Container::new(&two, &on_two[0], on(100, 74), "db");
    Routed { one, two, web, db, stranger, wire }
}

#[test]
fn packets_of_a_routed_network_travel_as_they_are_and_nobody_elses_get_in() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(on(100, 74), PORT).ok());
    eventually(&says("web 10.100.0.74"), || it.db.namespace.call(on(100, 10), PORT).ok());
    // The node itself counts as one of the network, by its gateway's address.
    eventually(&says("db 10.100.0.1"), || it.one.namespace.call(on(100, 74), PORT).ok());
    let _gateway = Listener::new(&it.one.namespace, on(100, 1), "one");
    eventually(&says("one 10.100.0.74"), || it.db.namespace.call(on(100, 1), PORT).ok());
    // No encapsulation: packets are as large as those of the node, also of containers that were told less.
    drop(it.one.repair());
    assert!(it.web.namespace.ip("-o link show eth0").contains("mtu 1500"));
    assert!(it.one.namespace.ip("-o link show").contains("wh64: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500"));
    assert!(!it.one.namespace.ip("-o link show").contains("wv64"));

    // Another network, here and there, and with an address that is not its own.
    assert!(it.stranger.namespace.call(on(100, 10), PORT).is_err(), "the next bridge");
    assert!(it.stranger.namespace.call(on(100, 74), PORT).is_err(), "another node's");
    it.stranger.namespace.ip("addr add 10.100.0.12/32 dev eth0");
    assert!(it.stranger.namespace.call_from(on(100, 12), on(100, 74)).is_err(), "under a false name");
    assert!(it.stranger.namespace.call_from(on(100, 12), on(100, 10)).is_err(), "under a false name");

    // The world: containers reach it as their node, and it does not reach them.
    let world = Namespace::new("world");
    let (inside, switch) = (&world.name, &it.wire.switch.name);
    ip(&format!("link add eth0 netns {inside} type veth peer name world netns {switch}"));
    it.wire.switch.ip("link set world master br0 up");
    world.ip("addr add 192.0.2.50/24 dev eth0");
    world.ip("link set eth0 up");
    let outside = Ipv4Addr::new(192, 0, 2, 50);
    let _listener = Listener::new(&world, outside, "world");
    eventually(&says("world 192.0.2.1"), || it.web.namespace.call(outside, PORT).ok());
    world.ip("route add 10.100.0.64/26 via 192.0.2.2");
    assert!(world.call(on(100, 74), PORT).is_err());
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(on(100, 74), PORT).ok());
}

#[test]
fn a_container_on_two_routed_networks_reaches_both_elsewhere() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    let third = Container::new(&it.two, &routed(101, 2, &[]), on(101, 75), "third");
    // `web` gets a second interface, on network 101; its default route stays.
    let (inside, outside) = (&it.web.namespace.name, &it.one.namespace.name);
    ip(&format!("link add veth2nd netns {outside} type veth peer name eth1 netns {inside}"));
    it.one.namespace.ip("link set veth2nd master wh65 up");
    it.web.namespace.ip("addr add 10.101.0.10/20 dev eth1");
    it.web.namespace.ip("link set eth1 up");
    eventually(&says("third 10.101.0.10"), || it.web.namespace.call(on(101, 75), PORT).ok());
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(on(100, 74), PORT).ok());
    drop(third);
}

#[test]
fn a_container_that_stays_while_its_range_becomes_another_nodes_is_found_where_it_is() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    // As after a change from VXLAN: an address of the second node's range, on the first node.
    let left = on(100, 80);
    let single = ipnet::Ipv4Net::from(left);
    let (mut on_one, mut on_two) = (routed(100, 1, &[(2, &it.two)]), routed(100, 2, &[(1, &it.one)]));
    on_one.blocks.push(single);
    on_two.remote_blocks.push(RemoteBlock { block: single, node: it.one.address });
    prepare(&it.one, &[on_one.clone(), routed(101, 1, &[(2, &it.two)])]);
    prepare(&it.two, &[on_two, routed(101, 2, &[(1, &it.one)])]);
    let stayed = Container::new(&it.one, &on_one, left, "stayed");
    eventually(&says("stayed 10.100.0.74"), || it.db.namespace.call(left, PORT).ok());
    eventually(&says("stayed 10.100.0.10"), || it.web.namespace.call(left, PORT).ok());
    eventually(&says("db 10.100.0.80"), || stayed.namespace.call(on(100, 74), PORT).ok());
    eventually(&says("stayed 10.100.0.1"), || it.one.namespace.call(left, PORT).ok());
    // It was told of smaller packets, which counts as damage.
    drop(it.one.repair());
    assert_eq!(it.one.repair().changes, 0, "what is right is not touched");
}

#[test]
fn an_internal_routed_network_spans_nodes_and_has_no_way_out() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    let internal = |mut network: NetworkAssignment| {
        network.internal = true;
        network
    };
    prepare(&it.one, &[internal(routed(100, 1, &[(2, &it.two)]))]);
    prepare(&it.two, &[internal(routed(100, 2, &[(1, &it.one)]))]);
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(on(100, 74), PORT).ok());
    let _there = Listener::new(&it.two.namespace, Ipv4Addr::new(192, 0, 2, 2), "node");
    assert!(it.web.namespace.call(Ipv4Addr::new(192, 0, 2, 2), PORT).is_err());
    // The routes, rules and port of the network that is gone went.
    assert!(!it.one.namespace.ip("route show proto 87").contains("10.101"));
    assert!(!it.one.namespace.does("nft", "list table inet wharf").contains("10.101"));
}

#[test]
fn damage_to_a_routed_network_is_mended() {
    if !can_run() {
        return;
    }
    let it = routed_pair();
    let works = || eventually(&says("db 10.100.0.10"), || it.web.namespace.call(on(100, 74), PORT).ok());
    works();
    drop(it.one.repair());
    let node = &it.one.namespace;
    let damages: [(&str, &str); 12] = [
        ("ip", "route del 10.100.0.64/26"),
        ("ip", "route replace 10.100.0.64/26 via 192.0.2.77 proto 87"),
        ("ip", "route add 10.100.0.128/26 via 192.0.2.2 proto 87"),
        ("sysctl", "-q -w net.ipv4.conf.wh64.proxy_arp=0"),
        ("sysctl", "-q -w net.ipv4.neigh.wh64.proxy_delay=80"),
        ("sysctl", "-q -w net.ipv4.conf.eth0.forwarding=0"),
        ("sysctl", "-q -w net.ipv4.conf.wh64.forwarding=0"),
        ("nft", "delete table inet wharf"),
        ("nft", "flush chain inet wharf between"),
        ("iptables", "-w -F WHARF-ROUTED"),
        ("iptables", "-w -D DOCKER-USER -j WHARF-ROUTED"),
        ("ip", "link set eth0 mtu 1400"),
    ];
    for (program, arguments) in damages {
        node.does(program, arguments);
        let pass = it.one.repair();
        assert!(pass.changes > 0 && pass.problems.is_empty(), "{program} {arguments}: {pass:?}");
        assert_eq!(it.one.repair().changes, 0, "{program} {arguments} is mended");
        works();
    }
    assert!(it.web.namespace.ip("-o link show eth0").contains("mtu 1400"), "containers are told");
    // Everything at once; Docker's rules do not come back by themselves, and that is said.
    node.does("nft", "flush ruleset");
    let pass = it.one.repair();
    assert!(
        pass.changes > 0 && pass.notes.iter().any(|note| note.contains("restart Docker Engine")),
        "{pass:?}"
    );
    works();
    node.does("iptables", "-w -P FORWARD DROP");
    node.does("iptables", "-w -t nat -N DOCKER");
    assert_eq!(it.one.repair().notes, Vec::<String>::new());
    works();
    // A node without routed networks has nothing of all this.
    prepare(&it.one, &[]);
    assert_eq!(node.ip("route show proto 87"), "");
    assert!(!node.does("nft", "list ruleset").contains("wharf"));
    assert!(!node.does("iptables-save", "").contains("WHARF"));
}

#[test]
fn nodes_on_two_segments_exchange_packets_once_the_router_was_told() {
    if !can_run() {
        return;
    }
    let (left, right) = (Wire::new(), Wire::new());
    let (one, two) = (Node::new(&left, 1), Node::on(&right, 2, Ipv4Addr::new(198, 51, 100, 2)));
    let router = Namespace::new("router");
    for (wire, port, address) in [(&left, "eth0", "192.0.2.254"), (&right, "eth1", "198.51.100.254")] {
        let (inside, switch) = (&router.name, &wire.switch.name);
        ip(&format!("link add {port} netns {inside} type veth peer name router netns {switch}"));
        wire.switch.ip("link set router master br0 up");
        router.ip(&format!("addr add {address}/24 dev {port}"));
        router.ip(&format!("link set {port} up"));
    }
    router.does("sysctl", "-q -w net.ipv4.ip_forward=1");
    one.namespace.ip("route add default via 192.0.2.254");
    two.namespace.ip("route add default via 198.51.100.254");
    let (on_one, on_two) = (routed(100, 1, &[(2, &two)]), routed(100, 2, &[(1, &one)]));
    prepare(&one, std::slice::from_ref(&on_one));
    prepare(&two, std::slice::from_ref(&on_two));
    assert!(one.namespace.ip("route show proto 87").contains("10.100.0.64/26 via 192.0.2.254"));
    let web = Container::new(&one, &on_one, on(100, 10), "web");
    let _db = Container::new(&two, &on_two, on(100, 74), "db");
    assert!(web.namespace.call(on(100, 74), PORT).is_err(), "the router does not know");

    let via: Vec<String> = ["nsenter".to_owned(), format!("--net=/run/netns/{}", router.name)].to_vec();
    let route = |node: u8, hop: &Node| WantedRoute {
        destination: block(100, node),
        next_hop: hop.address,
        node: format!("n{node}").parse().expect("a name"),
    };
    let wanted = RouteSync { routes: vec![route(1, &one), route(2, &two)] };
    router.ip("route add 10.100.0.128/26 via 192.0.2.1 proto 88");
    router.ip("route add 10.200.0.0/16 via 192.0.2.9");
    let answer = router::sync(&via, &wanted).expect("the router answers");
    assert_eq!((answer.routes_programmed, answer.error), (2, None));
    eventually(&says("db 10.100.0.10"), || web.namespace.call(on(100, 74), PORT).ok());
    let routes = router.ip("route show");
    assert!(!routes.contains("10.100.0.128/26") && routes.contains("10.200.0.0/16"), "{routes}");
    let again = router::sync(&via, &wanted).expect("the router answers");
    assert_eq!((again.routes_programmed, again.error), (2, None));

    // What it refuses is said with its reason, and the rest is there.
    let mut nowhere = route(3, &one);
    nowhere.next_hop = IpAddr::from([203, 0, 113, 9]);
    let wanted = RouteSync { routes: vec![route(1, &one), nowhere] };
    let answer = router::sync(&via, &wanted).expect("the router answers");
    assert_eq!(answer.routes_programmed, 1);
    let error = answer.error.expect("one is refused");
    assert!(error.contains("did not take 1 of 2 routes, such as 10.100.0.128/26 by way of 203.0.113.9 (n3): Error: Nexthop has invalid gateway"), "{error}");
    assert!(
        web.namespace.call(on(100, 74), PORT).is_err(),
        "the part of the second node is no longer wanted"
    );
}

/// Somebody who sends numbered packets to another container, which sends them back.
struct Talk {
    stop: Arc<AtomicBool>,
    /// Whether each was answered.
    answered: Arc<Mutex<Vec<bool>>>,
    threads: Vec<JoinHandle<()>>,
}

const EVERY: Duration = Duration::from_millis(20);
const TALK: u16 = 7001;

impl Talk {
    fn new(from: (&Namespace, Ipv4Addr), to: (&Namespace, Ipv4Addr)) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, address) = (Arc::clone(&stop), to.1);
        let (ready, is_ready) = mpsc::channel();
        let echo = to.0.run(move || {
            let socket = UdpSocket::bind((address, TALK)).expect("nothing else listens here");
            socket.set_read_timeout(Some(EVERY)).expect("it can be set");
            ready.send(()).expect("somebody waits");
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, whom)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], whom);
                }
            }
        });
        is_ready.recv_timeout(SOON).expect("it listens");
        let (stopped, log, own) = (Arc::clone(&stop), Arc::clone(&answered), from.1);
        let client = from.0.run(move || {
            let socket = UdpSocket::bind((own, 0)).expect("a port");
            socket.connect((address, TALK)).expect("there is a way");
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let number = {
                    let mut log = log.lock().expect("no panic");
                    log.push(false);
                    u64::try_from(log.len() - 1).expect("a few")
                };
                // What the kernel refuses is lost.
                let _ = socket.send(&number.to_be_bytes());
                next += EVERY;
                loop {
                    let left = next.saturating_duration_since(Instant::now());
                    if left < Duration::from_micros(100) {
                        break;
                    }
                    socket.set_read_timeout(Some(left)).expect("it can be set");
                    let mut number = [0; 8];
                    if socket.recv(&mut number).is_ok() {
                        let number = usize::try_from(u64::from_be_bytes(number)).expect("a few");
                        log.lock().expect("no panic")[number] = true;
                    }
                }
            }
        });
        Self { stop, answered, threads: vec![echo, client] }
    }

    fn sent(&self) -> usize {
        self.answered.lock().expect("no panic").len()
    }

    /// Waits until a second's packets in a row were answered that were sent from this one on; answers how many were not since `since`.
    fn lost(&self, since: usize) -> usize {
        let second = 50;
        let from = self.sent();
        let steady = || {
            let log = self.answered.lock().expect("no panic");
            log[from..].split(|answered| !answered).any(|run| run.len() >= second)
        };
        eventually(&true, steady);
        let log = self.answered.lock().expect("no panic");
        // The latest may be on their way.
        let until = log.iter().rposition(|answered| *answered).unwrap_or_default();
        log[since..until].iter().filter(|answered| !**answered).count()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Network 100 with this backend, on the first node and on the second, with a container on each.
fn with_backend(backend: Backend, one: &Node, two: &Node) -> [NetworkAssignment; 2] {
    let of = |own: u8, other: u8, node: &Node, container: u8| {
        let mut network = routed(100, own, &[(other, node)]);
        network.backend = backend;
        let node = match backend {
            Backend::Wireguard => tunnel(other),
            _ => node.address,
        };
        network.peers[0].node = node;
        network.peers.push(Peer::new(on(100, container), node));
        network
    };
    [of(1, 2, two, 74), of(2, 1, one, 10)]
}

/// What stands for a node's end of the tunnels.
fn tunnel(node: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 100 + node).into()
}

#[test]
fn those_who_talk_while_their_network_changes_in_place_lose_little() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    for (number, node) in [(1, &one), (2, &two)] {
        node.namespace.docker_rules(&[&wh(100)]);
        node.namespace.ip(&format!("addr add {}/24 dev eth0", tunnel(number)));
        node.with(move |network, _| async move { network.set_tunnel(Some(tunnel(number))) });
    }
    let change = |backend| {
        let [on_one, on_two] = with_backend(backend, &one, &two);
        prepare(&one, std::slice::from_ref(&on_one));
        prepare(&two, std::slice::from_ref(&on_two));
        [on_one, on_two]
    };
    let [on_one, on_two] = change(Backend::Vxlan);
    let web = Container::new(&one, &on_one, on(100, 10), "web");
    let db = Container::new(&two, &on_two, on(100, 74), "db");
    let (web, db) = ((&web.namespace, on(100, 10)), (&db.namespace, on(100, 74)));
    let talks = [Talk::new(web, db), Talk::new(db, web)];
    for talk in &talks {
        let _ = talk.lost(0);
    }
    let mut before = Backend::Vxlan;
    for backend in [
        Backend::Routed,
        Backend::Vxlan,
        Backend::Wireguard,
        Backend::Routed,
        Backend::Wireguard,
        Backend::Vxlan,
        Backend::Routed,
    ] {
        let sent = talks.each_ref().map(Talk::sent);
        let begun = Instant::now();
        drop(change(backend));
        let took = begun.elapsed();
        let lost = [talks[0].lost(sent[0]), talks[1].lost(sent[1])];
        eprintln!(
            "{before:?} -> {backend:?}: both nodes changed within {took:?}; lost {lost:?} packets of one every {EVERY:?}"
        );
        for lost in lost {
            let silence = EVERY * u32::try_from(lost).expect("a few");
            assert!(silence < took + Duration::from_secs(2), "{before:?} -> {backend:?}: {silence:?}");
        }
        before = backend;
    }
}
