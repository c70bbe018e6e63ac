//! Networks with IPv6: neighbours on other nodes, repair, what is kept apart, and nodes that have IPv6 addresses themselves.

use std::net::Ipv6Addr;

use wharf_model::ipv6_for;

use super::*;

/// Network 100 with IPv6 as the node with this gateway has it.
fn dual(gateway: u8, peers: &[(u8, &Node)]) -> NetworkAssignment {
    let subnet6 = Some("fd5a:7c1e:9b02:64::/64".parse().expect("a network"));
    NetworkAssignment { subnet6, ..assignment(gateway, peers) }
}

pub(crate) fn at6(last: u8) -> Ipv6Addr {
    ipv6_for("fd5a:7c1e:9b02:64::/64".parse().expect("a network"), at(last))
}

pub(crate) fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

/// As [`pair`], on a network with IPv6.
fn dual_pair(one: Node, two: Node, wire: Wire) -> Pair {
    let on_one = dual(1, &[(2, &two), (20, &two)]);
    let on_two = dual(2, &[(1, &one), (10, &one)]);
    for (node, network) in [(&one, &on_one), (&two, &on_two)] {
        let pass = node.prepare(std::slice::from_ref(network)).expect("the kernel does it");
        assert_eq!((pass.problems, pass.notes), Default::default());
    }
    let web = Container::new(&one, &on_one, at(10), "web");
    let db = Container::new(&two, &on_two, at(20), "db");
    Pair { one, two, on_one, on_two, web, db, _wire: wire }
}

pub(crate) fn on_ipv4() -> Pair {
    let wire = Wire::new();
    dual_pair(Node::new(&wire, 1), Node::new(&wire, 2), wire)
}

#[test]
fn neighbours_on_other_nodes_are_discovered() {
    if !can_run() {
        return;
    }
    let pair = on_ipv4();
    let _web = Listener::new(&pair.web.namespace, at6(10), "web");
    let _db = Listener::new(&pair.db.namespace, at6(20), "db");
    eventually(&says(&format!("db {}", at6(10))), || pair.web.namespace.call(at6(20), PORT).ok());
    eventually(&says(&format!("web {}", at6(20))), || pair.db.namespace.call(at6(10), PORT).ok());
    let neighbours = pair.web.namespace.ip("-6 neigh show dev eth0");
    assert!(neighbours.contains(&format!("{} lladdr 02:42:0a:c0:00:14", at6(20))), "{neighbours}");
    // A node's own proxy to a container elsewhere, and a container to another node.
    eventually(&says(&format!("db {}", at6(1))), || pair.one.namespace.call(at6(20), PORT).ok());
    let _gateway = Listener::new(&pair.one.namespace, at6(1), "one");
    eventually(&says(&format!("one {}", at6(20))), || pair.db.namespace.call(at6(1), PORT).ok());
    assert_eq!(pair.one.prepare(std::slice::from_ref(&pair.on_one)).expect("it works").changes, 0);
}

#[test]
fn entries_that_others_delete_come_back_and_stale_ones_go() {
    if !can_run() {
        return;
    }
    let pair = on_ipv4();
    let _db = Listener::new(&pair.db.namespace, at6(20), "db");
    let reaches = || pair.web.namespace.call(at6(20), PORT).ok();
    eventually(&says(&format!("db {}", at6(10))), reaches);
    for damage in [
        format!("-6 neigh del {} dev wv64", at6(20)),
        format!("-6 addr del {}/64 dev wh64", at6(1)),
        "link del wv64".to_owned(),
    ] {
        pair.one.namespace.ip(&damage);
        assert!(pair.one.repair().changes > 0, "{damage}");
        pair.web.namespace.ip("-6 neigh flush dev eth0");
        eventually(&says(&format!("db {}", at6(10))), reaches);
        assert_eq!(pair.one.repair().changes, 0, "{damage}");
    }
    let _ = pair.one.prepare(&[dual(1, &[(2, &pair.two)])]).expect("it works");
    pair.web.namespace.ip("-6 neigh flush dev eth0");
    assert!(reaches().is_none(), "nobody knows where it is");
    // An address that was asked for leads to the same place.
    let (mut asked, own) = (pair.on_one.clone(), address("fd5a:7c1e:9b02:64::cafe"));
    asked.peers.iter_mut().filter(|peer| peer.address == at(20)).for_each(|peer| peer.address6 = Some(own));
    let _ = pair.one.prepare(&[asked]).expect("it works");
    pair.db.namespace.ip(&format!("-6 addr add {own}/64 dev eth0 nodad"));
    let _own = Listener::new(&pair.db.namespace, own, "own");
    eventually(&says(&format!("own {}", at6(10))), || pair.web.namespace.call(own, PORT).ok());
    // Back to IPv4 alone.
    let _ = pair.one.prepare(&[assignment(1, &[(2, &pair.two), (20, &pair.two)])]).expect("it works");
    assert_eq!(pair.one.namespace.ip("-6 neigh show dev wv64 nud permanent"), "");
    assert!(!pair.one.namespace.ip("-6 addr show dev wh64").contains("fd5a"));
}

/// Another app's network, on the first node.
fn other(internal: bool) -> NetworkAssignment {
    let subnet = "10.192.16.0/20".parse().expect("a network");
    let gateway = Ipv4Addr::new(10, 192, 16, 1);
    NetworkAssignment {
        subnet6: Some("fd5a:7c1e:9b02:65::/64".parse().expect("a network")),
        internal,
        ..NetworkAssignment::new(NetworkId::from_parts(1, [2; 10]), "blog_default", 0x65, subnet, gateway)
    }
}

#[test]
fn networks_of_a_node_do_not_reach_each_other_nor_inner_ones_the_world() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let (one, two) = (Node::new(&wire, 1), Node::new(&wire, 2));
    let first = dual(1, &[(2, &two)]);
    let _ = one.prepare(&[first.clone(), other(false)]).expect("the kernel does it");
    // The world: an address of the other node, to which the first one has a way.
    let world = address("2001:db8::2");
    one.namespace.ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
    two.namespace.ip(&format!("-6 addr add {world}/64 dev eth0 nodad"));
    let web = Container::new(&one, &first, at(10), "web");
    let blog = Container::new(&one, &other(false), Ipv4Addr::new(10, 192, 16, 11), "blog");
    let (at_web, at_blog) = (at6(10), address("fd5a:7c1e:9b02:65::ac0:100b"));
    let _web = Listener::new(&web.namespace, at_web, "web");
    let _blog = Listener::new(&blog.namespace, at_blog, "blog");
    let _world = Listener::new(&two.namespace, world, "world");
    // Both are there, and have a way out with their node's address; into each other they have none.
    for (namespace, own) in [(&web.namespace, at_web), (&blog.namespace, at_blog)] {
        eventually(&says("world 2001:db8::1"), || namespace.call(world, PORT).ok());
        eventually(&true, || one.namespace.call(own, PORT).is_ok());
    }
    assert!(web.namespace.call(at_blog, PORT).is_err(), "another network of the node");
    assert!(blog.namespace.call(at_web, PORT).is_err(), "and back");
    two.namespace.ip("-6 route add fd5a:7c1e:9b02:64::/63 via 2001:db8::1");
    assert!(two.namespace.call(at_web, PORT).is_err(), "somebody on the wire who knows the way");
    // An inner one has no way out, also after somebody emptied the rules.
    let _ = one.prepare(&[first.clone(), other(true)]).expect("the kernel does it");
    assert!(blog.namespace.call(world, PORT).is_err(), "it has no way out");
    let nft = ["netns", "exec", &one.namespace.name, "nft", "flush", "ruleset"];
    assert!(Command::new("ip").args(nft).status().expect("`ip` is installed").success());
    eventually(&true, || web.namespace.call(at_blog, PORT).is_ok());
    assert!(one.repair().changes > 0);
    assert!(web.namespace.call(at_blog, PORT).is_err(), "the rules are back");
    assert!(blog.namespace.call(world, PORT).is_err());
    eventually(&says("world 2001:db8::1"), || web.namespace.call(world, PORT).ok());
    assert_eq!(one.repair().changes, 0);
}

#[test]
fn nodes_whose_addresses_are_ipv6_carry_both_families() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let node = |number: u8| Node::on(&wire, number, address(&format!("2001:db8::{number}")));
    let (one, two) = (node(1), node(2));
    let pair = dual_pair(one, two, wire);
    let _db = Listener::new(&pair.db.namespace, at6(20), "db6");
    eventually(&says("db 10.192.0.10"), || pair.web.namespace.call(at(20), PORT).ok());
    eventually(&says(&format!("db6 {}", at6(10))), || pair.web.namespace.call(at6(20), PORT).ok());
    assert!(pair.one.namespace.ip("-o link show wh64").contains("mtu 1430"), "70 bytes go around a packet");
    // The container's end was made for larger ones.
    assert_eq!(pair.one.repair().changes, 1);
    assert_eq!(pair.one.repair().changes, 0);
}

#[test]
fn a_node_that_gives_links_no_ipv6_gives_it_to_networks_that_have_it() {
    if !can_run() {
        return;
    }
    let wire = Wire::new();
    let node = |number| {
        let node = Node::new(&wire, number);
        let command = [
            "netns",
            "exec",
            &node.namespace.name,
            "sh",
            "-c",
            "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6",
        ];
        assert!(Command::new("ip").args(command).status().expect("`ip` is installed").success());
        node
    };
    let (one, two) = (node(1), node(2));
    let pair = dual_pair(one, two, wire);
    let _db = Listener::new(&pair.db.namespace, at6(20), "db");
    eventually(&says(&format!("db {}", at6(10))), || pair.web.namespace.call(at6(20), PORT).ok());
    assert_eq!(pair.one.repair().changes, 0);
}
