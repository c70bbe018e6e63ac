//! Networks on the physical segment: containers are macvlan devices, as Docker makes them.

use wharf_model::Backend;

use super::*;

/// Network 70 as the node with this address on it has it.
fn on_segment(node: u8, parent: &str) -> NetworkAssignment {
    let subnet = "192.0.2.0/24".parse().expect("a network");
    let gateway = Ipv4Addr::new(192, 0, 2, node);
    NetworkAssignment {
        backend: Backend::Macvlan,
        parent: Some(parent.to_owned()),
        ..NetworkAssignment::new(NetworkId::from_parts(1, [7; 10]), "plc_floor", 0x70, subnet, gateway)
    }
}

/// A container on the parent of a node.
fn plugged(node: &Node, last: u8, name: &str) -> (Namespace, Listener) {
    let namespace = Namespace::new(name);
    node.namespace.ip("link add link eth0 name mv0 type macvlan mode bridge");
    node.namespace.ip(&format!("link set mv0 netns {} name eth0", namespace.name));
    let address = Ipv4Addr::new(192, 0, 2, last);
    namespace.ip(&format!("addr add {address}/24 dev eth0"));
    namespace.ip("link set eth0 up");
    let listener = Listener::new(&namespace, address, name);
    (namespace, listener)
}

fn publish(node: &Node, network: &NetworkAssignment, address: Ipv4Addr) {
    let id = network.id;
    node.with(move |network, _| async move {
        network.publish(&DnsTable::default(), &Sources::from([(address, vec![id].into())])).await;
    });
}

#[test]
fn containers_on_the_segment_reach_each_other_and_their_node_and_damage_is_mended() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    let network = on_segment(201, "eth0");
    for (node, network) in [(&one, &network), (&two, &on_segment(202, "eth0"))] {
        let pass = node.prepare(std::slice::from_ref(network)).expect("the kernel does it");
        assert_eq!(pass.problems, BTreeMap::new());
    }
    let at = |last: u8| Ipv4Addr::new(192, 0, 2, last);
    let (web, _web) = plugged(&one, 50, "web");
    let (_db, _listener) = plugged(&two, 60, "db");
    publish(&one, &network, at(50));
    eventually(&says("db 192.0.2.50"), || web.call(at(60), PORT).ok());
    // The node, at its own address on the segment, both ways: macvlan devices do not hear their parent.
    let _node = Listener::new(&one.namespace, at(201), "node");
    eventually(&says("node 192.0.2.50"), || web.call(at(201), PORT).ok());
    eventually(&says("web 192.0.2.201"), || one.namespace.call(at(50), PORT).ok());
    // And by name.
    eventually(&Some(ResponseCode::NXDomain), || {
        ask(&web, at(201), "nobody.", false).ok().map(|answer| answer.0)
    });
    for damage in
        ["link delete wm70", "link set wm70 down", "addr del 192.0.2.201/32 dev wm70", "route del 192.0.2.50"]
    {
        one.namespace.ip(damage);
        let pass = one.repair();
        assert!(pass.changes > 0 && pass.problems.is_empty(), "{damage}: {pass:?}");
        assert_eq!(one.repair().changes, 0, "{damage} is mended");
        eventually(&says("web 192.0.2.201"), || one.namespace.call(at(50), PORT).ok());
    }
    assert_eq!(one.prepare(&[]).expect("it works").problems, BTreeMap::new());
    assert!(!one.namespace.ip("-o link show").contains("wm70"));
}

#[test]
fn a_vlan_is_made_or_what_the_kernel_lacks_is_said() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let node = Node::new(&wire, 1);
    let pass = node.prepare(&[on_segment(201, "eth7")]).expect("the kernel answers");
    let problems: Vec<_> = pass.problems.into_values().collect();
    assert_eq!(problems, ["this node has no interface `eth7`, which the network names as its parent"]);
    let pass = node.prepare(&[on_segment(201, "eth0.100")]).expect("the kernel answers");
    let problems: Vec<_> = pass.problems.into_values().collect();
    if node.namespace.ip("-o link show").contains("eth0.100@eth0") {
        assert_eq!(problems, Vec::<String>::new());
        assert!(node.namespace.ip("-o link show wm70").contains("wm70@eth0.100"));
    } else {
        assert!(problems[0].contains("this node's kernel has no VLANs (module 8021q)"), "{problems:?}");
    }
}
