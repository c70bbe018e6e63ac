//! What the plan promises, for any wanted and any actual state; what the kernel does with it is tested in namespaces
//! (`tests/network.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use proptest::{collection, prelude::*};
use wharf_model::{Backend, ipv6_for, mac_for};

use super::docker::docker_network_options;

use super::plan::{
    Actual, Bridge, Hop, Mac, Operation, Plan, Port, PortMake, Route, Underlay, Underlays, WantedNetwork,
    bridge_name, plan, port_name, unused_bridges, vni_of,
};

const UNDERLAY: Underlay =
    Underlay { node: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), device: 2, vxlan_port: 4790, mtu: 1450 };

/// Every network of a test over the one underlay.
fn underlays() -> Underlays {
    (1..4).map(|vni| (vni, UNDERLAY)).collect()
}

fn node(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 192, 0, last)
}

/// Number seven has asked for another than that which follows from its IPv4 address.
fn address6(last: u8) -> Ipv6Addr {
    let subnet = "fd12:3456:789a:1::/64".parse().unwrap();
    if last == 7 { "fd12:3456:789a:1::cafe".parse().unwrap() } else { ipv6_for(subnet, address(last)) }
}

/// What the kernel does with an operation, in memory.
fn apply(actual: &mut Actual, plan: &Plan) {
    for (vni, operations) in plan {
        for operation in operations {
            apply_one(actual, *vni, operation);
        }
    }
}

fn apply_one(actual: &mut Actual, vni: u32, operation: &Operation) {
    match operation {
        Operation::AddBridge { mac, mtu } => {
            let (mac, mtu) = (*mac, *mtu);
            let addresses = BTreeSet::new();
            let made = Bridge {
                index: 1000 + vni,
                mac,
                mtu,
                up: true,
                addresses,
                // As on a node that gives new links no IPv6.
                without_ipv6: true,
                answers_for_others: false,
                members: BTreeMap::new(),
            };
            assert!(actual.bridges.insert(vni, made).is_none(), "made where there was none");
        }
        Operation::AddPort => {
            let port = Port {
                index: 2000 + vni,
                mtu: 1,
                up: false,
                master: None,
                make: PortMake::of(vni, &UNDERLAY),
                without_ipv6: true,
                bridge_learns: true,
                forwarding: BTreeMap::new(),
                switching: BTreeSet::new(),
                neighbours: BTreeMap::new(),
            };
            assert!(actual.ports.insert(vni, port).is_none(), "made where there was none");
        }
        Operation::RemovePort => drop(actual.ports.remove(&vni).expect("removed where there was one")),
        Operation::SetBridge { .. }
        | Operation::EnableIpv6
        | Operation::AddAddress { .. }
        | Operation::RemoveAddress { .. } => {
            apply_to_bridge(actual.bridges.get_mut(&vni).expect("there is a bridge"), operation);
        }
        Operation::SetMember { index, mtu } => {
            let bridge = actual.bridges.get_mut(&vni).expect("there is a bridge");
            assert!(bridge.members.insert(*index, *mtu).is_some(), "it is plugged in");
        }
        Operation::AnswerForOthers => {
            let bridge = actual.bridges.get_mut(&vni).expect("there is a bridge");
            bridge.answers_for_others = true;
            actual.forwarding.insert(bridge.index);
        }
        // The containers' kernels are not here.
        Operation::Announce { addresses } => assert!(!addresses.is_empty()),
        // Each network that needs it asks for it.
        Operation::PassOn { device } => drop(actual.forwarding.insert(*device)),
        Operation::StopRoute { to, route } => {
            let there = actual.routes.get_mut(to).expect("there is a route");
            assert!(there.remove(route));
            if there.is_empty() {
                actual.routes.remove(to);
            }
        }
        Operation::Route { to, route } => {
            let there = actual.routes.entry(*to).or_default();
            // The kernel replaces the first of several.
            there.pop_first();
            there.insert(*route);
        }
        _ => {
            let bridge = actual.bridges[&vni].index;
            apply_to_port(actual.ports.get_mut(&vni).expect("there is a port"), bridge, operation);
        }
    }
}

fn apply_to_bridge(bridge: &mut Bridge, operation: &Operation) {
    match operation {
        Operation::SetBridge { mac, mtu } => (bridge.mac, bridge.mtu, bridge.up) = (*mac, *mtu, true),
        Operation::EnableIpv6 => bridge.without_ipv6 = false,
        Operation::AddAddress { address, prefix } => {
            assert!(address.is_ipv4() || !bridge.without_ipv6, "the kernel refuses it");
            assert!(bridge.addresses.insert((*address, *prefix)));
        }
        Operation::RemoveAddress { address, prefix } => {
            assert!(bridge.addresses.remove(&(*address, *prefix)));
        }
        other => panic!("{other:?} is not a bridge's"),
    }
}

fn apply_to_port(port: &mut Port, bridge: u32, operation: &Operation) {
    match operation {
        Operation::EnablePortIpv6 => port.without_ipv6 = false,
        Operation::SetPort { mtu } => {
            if port.master != Some(bridge) {
                port.switching.clear();
            }
            (port.mtu, port.up, port.master, port.bridge_learns) = (*mtu, true, Some(bridge), false);
        }
        Operation::Forward { mac, node } => {
            let nodes = port.forwarding.entry(*mac).or_default();
            // The kernel replaces the first destination of several.
            nodes.pop_first();
            nodes.insert(*node);
        }
        Operation::StopForwarding { mac, node } => {
            let nodes = port.forwarding.get_mut(mac).expect("it is forwarded");
            assert!(nodes.remove(node));
            if nodes.is_empty() {
                port.forwarding.remove(mac);
            }
        }
        Operation::Switch { mac } => assert!(port.switching.insert(*mac)),
        Operation::StopSwitching { mac } => assert!(port.switching.remove(mac)),
        Operation::Resolve { address, mac } => {
            assert!(address.is_ipv4() || !port.without_ipv6, "the kernel refuses it");
            port.neighbours.insert(*address, *mac);
        }
        Operation::StopResolving { address } => assert!(port.neighbours.remove(address).is_some()),
        other => panic!("{other:?} is not a port's"),
    }
}

/// Whether the kernel has exactly what is wanted.
fn is_exact(wanted: &BTreeMap<u32, WantedNetwork>, actual: &Actual) -> Result<(), TestCaseError> {
    let with_port =
        wanted.iter().filter(|(_, network)| network.backend == Backend::Vxlan).map(|(vni, _)| vni);
    prop_assert!(actual.ports.keys().eq(with_port), "ports {:?}", actual.ports.keys());
    let parts = || wanted.values().flat_map(|network| network.parts.iter().map(move |part| (network, part)));
    let routes: BTreeMap<Ipv4Net, BTreeSet<Route>> = parts()
        .filter_map(|(network, (to, node))| {
            let route = Route { hop: *actual.hops.get(node)?, source: network.gateway };
            Some((*to, BTreeSet::from([route])))
        })
        .collect();
    prop_assert_eq!(&actual.routes, &routes);
    for (vni, network) in wanted {
        let bridge = &actual.bridges[vni];
        prop_assert!(
            bridge.members.values().all(|mtu| *mtu == network.container_mtu.unwrap_or(UNDERLAY.mtu))
        );
        if network.backend == Backend::Routed {
            prop_assert!(bridge.answers_for_others);
            let passes_on = |device: &u32| actual.forwarding.contains(device);
            prop_assert!(passes_on(&bridge.index) && passes_on(&UNDERLAY.device));
            continue;
        }
        let port = &actual.ports[vni];
        prop_assert_eq!(bridge.mac, mac_for(network.gateway));
        prop_assert!(bridge.up && bridge.mtu == UNDERLAY.mtu);
        let mut addresses = BTreeSet::from([(IpAddr::V4(network.gateway), network.prefix)]);
        addresses.extend(network.gateway6.map(|(address, prefix)| (IpAddr::V6(address), prefix)));
        prop_assert_eq!(&bridge.addresses, &addresses);
        prop_assert!(network.gateway6.is_none() || !bridge.without_ipv6);
        prop_assert_eq!(port.make, PortMake::of(*vni, &UNDERLAY));
        prop_assert!(port.up && !port.bridge_learns && port.mtu == UNDERLAY.mtu);
        prop_assert_eq!(port.master, Some(bridge.index));
        let peers = || network.peers.iter().map(|(address, (mac, node))| (*mac, *address, *node));
        let forwarding: BTreeMap<Mac, BTreeSet<IpAddr>> =
            peers().map(|(mac, _, node)| (mac, BTreeSet::from([node]))).collect();
        prop_assert_eq!(&port.forwarding, &forwarding);
        prop_assert_eq!(&port.switching, &peers().map(|(mac, _, _)| mac).collect::<BTreeSet<_>>());
        let mut neighbours: BTreeMap<IpAddr, Mac> =
            peers().map(|(mac, address, _)| (address.into(), mac)).collect();
        for (mac, address, _) in peers() {
            neighbours.extend(network.addresses6.get(&address).map(|other| (IpAddr::V6(*other), mac)));
        }
        prop_assert_eq!(&port.neighbours, &neighbours);
    }
    Ok(())
}

/// A task on another node; some have a hardware address of their own choice.
fn peer(last: u8, on: u8) -> (Mac, IpAddr) {
    (if last.is_multiple_of(3) { [0x0a, 0, 0, 0, 0, last] } else { mac_for(address(last)) }, node(on))
}

prop_compose! {
    fn wanted_network()(
        backend in prop::sample::select(vec![Backend::Vxlan, Backend::Routed]),
        container_mtu in prop::option::of(Just(1400)),
        gateway in 1_u8..3,
        prefix in 20_u8..22,
        parts in collection::btree_map(3_u8..7, 2_u8..5, 0..4),
        peers in collection::btree_map(3_u8..9, 2_u8..5, 0..6),
        dual: bool,
    ) -> WantedNetwork {
        let peers: BTreeMap<_, _> =
            peers.into_iter().map(|(last, on)| (address(last), peer(last, on))).collect();
        let gateway6 = dual.then(|| (address6(gateway), 64));
        let addresses6 = peers.keys().filter(|_| dual).map(|peer| (*peer, address6(peer.octets()[3])));
        let parts = parts.into_iter().filter(|_| backend == Backend::Routed);
        WantedNetwork {
            backend,
            container_mtu,
            prefix,
            gateway6,
            addresses6: addresses6.collect(),
            masquerade: true,
            peers,
            parts: parts.map(|(last, on)| (part(0, last), node(on))).collect(),
            ..network(gateway)
        }
    }
}

/// A network without peers.
fn network(gateway: u8) -> WantedNetwork {
    WantedNetwork {
        backend: Backend::Vxlan,
        internal: false,
        filtered: false,
        container_mtu: None,
        gateway: address(gateway),
        prefix: 20,
        parent: None,
        parts: BTreeMap::new(),
        own: BTreeSet::new(),
        peers: BTreeMap::new(),
        gateway6: None,
        addresses6: BTreeMap::new(),
        masquerade: true,
    }
}

/// A part of the subnet of the network with this number, which is its own: no two networks overlap.
fn part(vni: u8, last: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 192 + vni, 0, last << 4), 28)
}

fn wanted() -> impl Strategy<Value = BTreeMap<u32, WantedNetwork>> {
    collection::btree_map(1_u8..4, wanted_network(), 0..3).prop_map(|networks| {
        let place = |(vni, mut network): (u8, WantedNetwork)| {
            let [.., last] = network.gateway.octets();
            network.gateway = Ipv4Addr::new(10, 192 + vni, 0, last);
            let parts = std::mem::take(&mut network.parts);
            network.parts =
                parts.into_iter().map(|(to, on)| (part(vni, to.addr().octets()[3] >> 4), on)).collect();
            (u32::from(vni), network)
        };
        networks.into_iter().map(place).collect()
    })
}

prop_compose! {
    fn bridge(vni: u32)(
        gateway in 1_u8..3,
        mtu in 1449_u32..1451,
        up: bool,
        members in collection::btree_map(3000_u32..3004, 1400_u32..1451, 0..3),
        answers_for_others: bool,
        addresses in collection::btree_set((1_u8..4, 20_u8..22, any::<bool>()), 0..3),
        without_ipv6: bool,
    ) -> Bridge {
        let addresses = addresses.into_iter().map(|(last, prefix, six)| match six && !without_ipv6 {
            true => (IpAddr::V6(address6(last)), 64),
            false => (IpAddr::V4(address(last)), prefix),
        });
        let (addresses, mac) = (addresses.collect(), mac_for(address(gateway)));
        Bridge { index: 1000 + vni, mac, mtu, up, addresses, without_ipv6, answers_for_others, members }
    }
}

fn make(vni: u32) -> impl Strategy<Value = PortMake> {
    let other = (1_u8..3, any::<bool>()).prop_map(move |(on, learning)| PortMake {
        local: Some(node(on)),
        learning,
        ..PortMake::of(vni, &UNDERLAY)
    });
    prop_oneof![Just(PortMake::of(vni, &UNDERLAY)), other]
}

type Entries = (BTreeMap<Mac, BTreeSet<IpAddr>>, BTreeSet<Mac>, BTreeMap<IpAddr, Mac>);

fn entries() -> impl Strategy<Value = Entries> {
    let mac = || (3_u8..11).prop_map(|last| mac_for(address(last)));
    let neighbour = (3_u8..11, any::<bool>())
        .prop_map(|(last, six)| if six { IpAddr::V6(address6(last)) } else { address(last).into() });
    let nodes = collection::btree_set((2_u8..5).prop_map(node), 1..3);
    (
        collection::btree_map(mac(), nodes, 0..6),
        collection::btree_set(mac(), 0..6),
        collection::btree_map(neighbour, mac(), 0..6),
    )
}

prop_compose! {
    fn port(vni: u32)(
        mtu in 1449_u32..1451,
        up: bool,
        master in prop::option::of(prop_oneof![Just(1000 + vni), Just(7)]),
        make in make(vni),
        bridge_learns: bool,
        without_ipv6: bool,
        (forwarding, switching, neighbours) in entries(),
    ) -> Port {
        let index = 2000 + vni;
        Port { index, mtu, up, master, make, without_ipv6, bridge_learns, forwarding, switching, neighbours }
    }
}

fn actual() -> impl Strategy<Value = Actual> {
    let vnis = || prop::sample::subsequence(vec![1_u32, 2, 3], 0..=3);
    (vnis(), vnis()).prop_flat_map(|(bridges, ports)| {
        let bridges: Vec<_> = bridges.into_iter().map(|vni| (Just(vni), bridge(vni))).collect();
        let ports: Vec<_> = ports.into_iter().map(|vni| (Just(vni), port(vni))).collect();
        (bridges, ports).prop_map(|(bridges, ports)| {
            let bridges: BTreeMap<u32, Bridge> = bridges.into_iter().collect();
            let mut ports: BTreeMap<u32, Port> = ports.into_iter().collect();
            // A bridge that goes takes its ports' membership with it.
            for (_, port) in ports.iter_mut().filter(|(vni, _)| !bridges.contains_key(vni)) {
                port.master = port.master.filter(|master| *master < 1000);
            }
            Actual { bridges, ports, ..Actual::default() }
        })
    })
}

/// As [`actual`], with routes and ways to nodes.
fn actual_with_routes() -> impl Strategy<Value = Actual> {
    let hop = |(via, device): (u8, u32)| Hop { via: node(via), device };
    let route = (2_u8..5, 2_u32..4, 1_u8..4, 1_u8..3).prop_map(move |(via, device, vni, last)| Route {
        hop: hop((via, device)),
        source: Ipv4Addr::new(10, 192 + vni, 0, last),
    });
    let to = (0_u8..4, 3_u8..8).prop_map(|(vni, last)| part(vni, last));
    (
        actual(),
        collection::btree_map(to, collection::btree_set(route, 1..3), 0..5),
        collection::btree_map((2_u8..5).prop_map(node), (2_u8..5, 2_u32..4).prop_map(hop), 0..4),
        collection::btree_set(prop_oneof![2_u32..4, 1001_u32..1004], 0..4),
    )
        .prop_map(|(actual, routes, hops, forwarding)| Actual { routes, hops, forwarding, ..actual })
}

proptest! {
    #[test]
    fn whatever_is_there_one_plan_makes_it_exact_and_a_second_has_nothing_to_do(
        wanted in wanted(),
        mut actual in actual_with_routes(),
    ) {
        let first = plan(&wanted, &underlays(), &actual);
        apply(&mut actual, &first);
        is_exact(&wanted, &actual)?;
        prop_assert_eq!(plan(&wanted, &underlays(), &actual), Plan::new());
    }

    #[test]
    fn what_is_right_is_not_touched(
        before in wanted_network().prop_map(|network| WantedNetwork {
            backend: Backend::Vxlan,
            parts: BTreeMap::new(),
            ..network
        }),
        peers in collection::btree_map(3_u8..9, 2_u8..5, 0..6),
    ) {
        let mut actual = Actual::default();
        let wanted = BTreeMap::from([(1, before.clone())]);
        apply(&mut actual, &plan(&wanted, &underlays(), &Actual::default()));
        let peers: BTreeMap<_, _> = peers.into_iter().map(|(last, on)| (address(last), peer(last, on))).collect();
        let kept: BTreeSet<Mac> = peers
            .iter()
            .filter(|(address, peer)| before.peers.get(*address) == Some(*peer))
            .map(|(_, (mac, _))| *mac)
            .collect();
        let kept6: BTreeSet<Ipv6Addr> =
            before.addresses6.iter().filter(|(at, _)| peers.contains_key(*at)).map(|(_, six)| *six).collect();
        let after = BTreeMap::from([(1, WantedNetwork { peers, ..before })]);
        for operation in plan(&after, &underlays(), &actual).values().flatten() {
            match operation {
                Operation::Forward { mac, .. } | Operation::StopForwarding { mac, .. }
                | Operation::Switch { mac } | Operation::StopSwitching { mac }
                | Operation::Resolve { mac, .. } => prop_assert!(!kept.contains(mac), "{operation:?}"),
                Operation::StopResolving { address: IpAddr::V4(address) } => {
                    prop_assert!(!kept.contains(&mac_for(*address)));
                }
                Operation::StopResolving { address: IpAddr::V6(address) } => {
                    prop_assert!(!kept6.contains(address));
                }
                device => prop_assert!(false, "peers change no device: {device:?}"),
            }
        }
    }

    #[test]
    fn only_bridges_that_nobody_wants_and_nobody_uses_are_removed(
        wanted in wanted(),
        actual in actual(),
    ) {
        for vni in unused_bridges(&wanted, &actual) {
            prop_assert!(!wanted.contains_key(&vni) && actual.bridges[&vni].members.is_empty());
        }
        let left = actual.bridges.iter().filter(|(vni, bridge)| !wanted.contains_key(vni) && bridge.members.is_empty());
        prop_assert_eq!(unused_bridges(&wanted, &actual).len(), left.count());
    }

    #[test]
    fn device_names_fit_and_read_back(vni in 1_u32..1 << 24) {
        prop_assert!(bridge_name(vni).len() <= 15 && port_name(vni).len() <= 15);
        prop_assert_eq!(vni_of(&bridge_name(vni), "wh"), Some(vni));
        prop_assert_eq!(vni_of(&port_name(vni), "wv"), Some(vni));
    }
}

#[test]
fn names_of_others_are_not_ours() {
    for name in ["wh", "wh0", "wh01", "whale", "wh1000000", "wlan0", "whFF", "wh+1"] {
        assert_eq!(vni_of(name, "wh"), None, "{name}");
    }
}

#[test]
fn an_address_that_moves_is_redirected_in_one_step() {
    let moved = |on| WantedNetwork {
        peers: BTreeMap::from([(address(5), (mac_for(address(5)), node(on)))]),
        gateway6: Some((address6(1), 64)),
        addresses6: BTreeMap::from([(address(5), address6(5))]),
        masquerade: true,
        ..network(1)
    };
    let mut actual = Actual::default();
    apply(&mut actual, &plan(&BTreeMap::from([(1, moved(2))]), &underlays(), &Actual::default()));
    let plan = plan(&BTreeMap::from([(1, moved(3))]), &underlays(), &actual);
    let moved = Operation::Forward { mac: mac_for(address(5)), node: node(3) };
    assert_eq!(plan, Plan::from([(1, vec![moved])]));
}

#[test]
fn a_network_has_its_own_options_and_keeps_what_is_the_clusters() {
    let network = |options: &[(&str, &str)]| wharf_model::NetworkAssignment {
        driver_opts: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..wharf_model::NetworkAssignment::new(
            wharf_model::NetworkId::from_parts(1, [5; 10]),
            "shop_default",
            5,
            "10.1.0.0/24".parse().unwrap(),
            address(1),
        )
    };
    let (mtu, icc) = ("com.docker.network.driver.mtu", "com.docker.network.bridge.enable_icc");
    let options = |given: &[(&str, &str)]| {
        docker_network_options(&network(given), 1450, (1, 41)).map(|made| made.options)
    };
    let made = options(&[(icc, "false"), ("com.docker.network.bridge.name", "mine")]).unwrap();
    assert_eq!((made[icc].as_str(), made[mtu].as_str()), ("false", "1450"));
    assert_eq!(made["com.docker.network.bridge.name"], bridge_name(5));
    assert_eq!(options(&[(mtu, "1400")]).unwrap()[mtu], "1400");
    for wrong in ["1451", "many", "0"] {
        assert!(options(&[(mtu, wrong)]).unwrap_err().contains("at most 1450 bytes"), "{wrong}");
    }
}

fn routed(parts: &[(u8, u8)]) -> BTreeMap<u32, WantedNetwork> {
    let parts = parts.iter().map(|(last, on)| (part(0, *last), node(*on))).collect();
    BTreeMap::from([(1, WantedNetwork { backend: Backend::Routed, parts, ..network(1) })])
}

#[test]
fn a_part_that_moves_is_redirected_in_one_step_and_behind_a_router_the_router_is_told() {
    let mut actual = Actual::default();
    let direct = |on| Hop { via: node(on), device: 2 };
    actual.hops = (2..4).map(|on| (node(on), direct(on))).collect();
    let first = plan(&routed(&[(3, 2)]), &underlays(), &actual);
    apply(&mut actual, &first);
    let route = |hop| {
        let route = Route { hop, source: address(1) };
        Plan::from([(1, vec![Operation::Route { to: part(0, 3), route }])])
    };
    assert_eq!(plan(&routed(&[(3, 3)]), &underlays(), &actual), route(direct(3)));
    let router = Hop { via: node(254), device: 7 };
    actual.hops.insert(node(2), router);
    actual.forwarding.insert(7);
    assert_eq!(plan(&routed(&[(3, 2)]), &underlays(), &actual), route(router));
}

#[test]
fn who_heard_of_what_is_reached_by_routes_now_is_told_and_of_nothing_else() {
    let with_containers = |wanted: &BTreeMap<u32, WantedNetwork>| {
        let hops = [(node(2), Hop { via: node(2), device: 2 })].into();
        let mut actual = Actual { hops, ..Actual::default() };
        let first = plan(wanted, &underlays(), &actual);
        apply(&mut actual, &first);
        let bridge = actual.bridges.get_mut(&1).expect("there is a bridge");
        bridge.members.insert(77, UNDERLAY.mtu);
        actual
    };
    // Of these, the second is on this node by then, although its part is another's.
    let peers: BTreeMap<_, _> = [50, 65].map(|last| (address(last), peer(last, 2))).into();
    let before = BTreeMap::from([(1, WantedNetwork { peers: peers.clone(), ..network(1) })]);
    let mut after = routed(&[(3, 2), (4, 2)]);
    let network = after.get_mut(&1).expect("it is there");
    network.own.insert(address(65).into());
    network.peers = [(address(50), peer(50, 2))].into();
    let operations = plan(&after, &underlays(), &with_containers(&before)).remove(&1).expect("it changes");
    let announced = |last, mac| Operation::Announce { addresses: [(address(last), mac)].into() };
    let [.., Operation::Route { .. }, Operation::RemovePort, last] = operations.as_slice() else {
        panic!("routes, then the port, then who heard of it: {operations:?}")
    };
    assert_eq!(*last, announced(50, mac_for(address(1))));

    let back = BTreeMap::from([(
        1,
        WantedNetwork { peers: [(address(50), peer(50, 2))].into(), ..before[&1].clone() },
    )]);
    let operations = plan(&back, &underlays(), &with_containers(&after)).remove(&1).expect("it changes");
    assert_eq!(operations.last(), Some(&announced(50, mac_for(address(50)))));
    let nobody = plan(&back, &underlays(), &Actual::default()).remove(&1).expect("it is made");
    assert!(!nobody.iter().any(|operation| matches!(operation, Operation::Announce { .. })));
}

#[test]
fn an_address_outside_of_its_nodes_parts_has_a_route_of_its_own() {
    let mut assigned = wharf_model::NetworkAssignment::new(
        wharf_model::NetworkId::from_parts(1, [5; 10]),
        "shop_default",
        5,
        "10.192.0.0/20".parse().unwrap(),
        address(1),
    );
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let peer = |last, on| wharf_model::Peer::new(address(last), node(on));
    assigned.peers = vec![peer(66, 2), peer(7, 2), peer(67, 3)];
    assigned.remote_blocks = vec![wharf_model::RemoteBlock { block: net("10.192.0.64/26"), node: node(2) }];
    assert_eq!(WantedNetwork::from(&assigned).parts, BTreeMap::new(), "it is no routed network");
    assigned.backend = Backend::Routed;
    let parts = [("10.192.0.7/32", 2), ("10.192.0.64/26", 2), ("10.192.0.67/32", 3)];
    let parts = parts.map(|(part, on)| (net(part), node(on)));
    assert_eq!(WantedNetwork::from(&assigned).parts, BTreeMap::from(parts));
    // One that stayed here when the other node got the range: it is not sought there.
    assigned.blocks = vec![net("10.192.0.128/26"), net("10.192.0.70/32")];
    let wanted = WantedNetwork::from(&assigned);
    assert_eq!(wanted.own, BTreeSet::from([net("10.192.0.70/32")]));
    let here = Route { hop: Hop { via: Ipv4Addr::UNSPECIFIED.into(), device: 9 }, source: address(1) };
    let routes = wanted.routes(&BTreeMap::new(), Some(9));
    assert_eq!(routes, BTreeMap::from([(net("10.192.0.70/32"), here)]));
}

#[test]
fn docker_is_told_not_to_hide_the_addresses_of_routed_networks_nor_to_keep_others_from_them() {
    let network = |backend| wharf_model::NetworkAssignment {
        backend,
        ..wharf_model::NetworkAssignment::new(
            wharf_model::NetworkId::from_parts(1, [5; 10]),
            "shop_default",
            5,
            "10.1.0.0/24".parse().unwrap(),
            address(1),
        )
    };
    let options = |backend, api| docker_network_options(&network(backend), 1500, api).unwrap().options;
    let (hide, keep) =
        ("com.docker.network.bridge.enable_ip_masquerade", "com.docker.network.bridge.gateway_mode_ipv4");
    let of = |made: &BTreeMap<String, String>| [hide, keep].map(|option| made.get(option).cloned());
    assert_eq!(of(&options(Backend::Routed, (1, 41))), [None, None], "as for every other backend");
    assert_eq!(of(&options(Backend::Routed, (1, 48))), [None, Some("nat-unprotected".to_owned())]);
    assert_eq!(of(&options(Backend::Vxlan, (1, 48))), [None, None]);
}
