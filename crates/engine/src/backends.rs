//! What networks of each backend give to nodes and tasks, and what happens to an app when its network changes.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use wharf_model::*;

use crate::{Assigner, Request, fixtures::*, wanted_routes};

fn name(text: &str) -> NetworkName {
    text.parse().unwrap()
}
fn on(network: NetworkSpec, services: &[(&str, ServiceSpec)]) -> AppSpec {
    let mut spec = app(services);
    spec.networks.insert(name("default"), network);
    spec
}
fn backend(backend: Backend) -> NetworkSpec {
    NetworkSpec { backend: Some(backend), ..NetworkSpec::default() }
}
fn routed(subnet: &str) -> NetworkSpec {
    NetworkSpec { subnet: Some(subnet.parse().unwrap()), ..backend(Backend::Routed) }
}
fn record(cluster: &Cluster) -> NetworkRecord {
    let mut networks = cluster.world.networks().filter(|network| !network.retired);
    NetworkRecord::clone(networks.next().unwrap())
}
fn addresses(cluster: &Cluster, service: &str) -> Vec<(NodeId, Ipv4Addr)> {
    let key = key(service);
    let tasks = cluster.world.tasks_of(&key).filter(|task| !task.is_over());
    tasks.map(|task| (task.node.unwrap(), task.addresses[&name("default")])).collect()
}
/// Everything that must hold of networks at any moment.
fn check(cluster: &Cluster) {
    let networks: Vec<_> = cluster.world.networks().collect();
    for (n, network) in networks.iter().enumerate() {
        for other in &networks[..n] {
            assert!(!network.subnet.contains(&other.subnet) && !other.subnet.contains(&network.subnet));
            assert_ne!(network.vni, other.vni);
            assert!(
                network.retired
                    || other.retired
                    || (&network.app, &network.name) != (&other.app, &other.name)
            );
        }
        let mut holders: Vec<Ipv4Addr> =
            network.gateways.values().chain(network.vips.keys()).copied().collect();
        let tasks = cluster.world.addresses_in(network.subnet).filter(|(_, task)| !task.is_over());
        holders.extend(tasks.map(|(address, _)| address));
        let count = holders.len();
        holders.sort_unstable();
        holders.dedup();
        assert_eq!(holders.len(), count, "nobody shares an address");
        assert!(network.backend == Backend::Routed || network.blocks.is_empty());
        let blocks: Vec<_> = network.blocks.keys().collect();
        assert!(blocks.windows(2).all(|two| two[0].broadcast() < two[1].network()), "{blocks:?}");
    }
}
fn settle(cluster: &mut Cluster) {
    cluster.settle_for(std::time::Duration::from_secs(1200), &mut check);
}

#[test]
fn tasks_and_gateways_of_a_routed_network_are_in_blocks_of_their_nodes() {
    let mut cluster = Cluster::of(3);
    cluster.up(&on(backend(Backend::Routed), &[("web", replicas(service("web"), 6))]));
    settle(&mut cluster);
    let network = record(&cluster);
    assert_eq!(network.blocks.len(), 3, "one for each node: {:?}", network.blocks);
    let block_of = |node: NodeId| *network.blocks.iter().find(|(_, at)| **at == node).unwrap().0;
    for (node, address) in addresses(&cluster, "web") {
        assert_eq!(block_of(node).prefix_len(), network.subnet.prefix_len() + 6);
        assert!(block_of(node).contains(&address) && block_of(node).contains(&network.gateways[&node]));
    }
    let assigned = &Assigner::new(&cluster.world).for_node(node_id(2)).networks[&network.id];
    assert_eq!((assigned.backend, &assigned.blocks[..]), (Backend::Routed, &[block_of(node_id(2))][..]));
    let others: BTreeMap<_, _> =
        assigned.remote_blocks.iter().map(|remote| (remote.block, remote.node)).collect();
    let address = |n: u8| std::net::IpAddr::from([10, 0, 0, n]);
    assert_eq!(others, BTreeMap::from([1, 3].map(|n| (block_of(node_id(n)), address(n)))));
    let routes: Vec<_> = wanted_routes(&cluster.world).into_iter().map(|route| route.next_hop).collect();
    assert_eq!(routes, [address(1), address(2), address(3)]);
}

#[test]
fn a_node_takes_another_block_when_its_is_full_and_gives_back_what_is_empty() {
    let mut cluster = Cluster::of(1);
    let with = |tasks| on(routed("10.5.0.0/26"), &[("web", replicas(service("web"), tasks))]);
    cluster.up(&with(20));
    settle(&mut cluster);
    assert_eq!((cluster.ready("web").len(), record(&cluster).blocks.len()), (20, 2));
    cluster.up(&with(3));
    settle(&mut cluster);
    assert_eq!(record(&cluster).blocks.len(), 1);
    cluster.up(&with(70));
    settle(&mut cluster);
    insta::assert_snapshot!(cluster.last.waiting[0], @"web.61 cannot join network default: every /28 of the routed subnet 10.5.0.0/26 belongs to a node (n1 has 4); hint: give the network a larger subnet, or `backend: vxlan`, which shares addresses between nodes");
}

#[test]
fn nodes_without_a_block_left_are_told_who_has_them_and_blocks_of_removed_nodes_are_free() {
    let mut cluster = Cluster::of(5);
    let mut web = service("web");
    web.mode = Mode::Global;
    cluster.up(&on(routed("10.5.0.0/26"), &[("web", web)]));
    settle(&mut cluster);
    assert_eq!(cluster.ready("web").len(), 4);
    insta::assert_snapshot!(cluster.waiting(), @"web on n5 cannot join network default: every /28 of the routed subnet 10.5.0.0/26 belongs to a node (n1 has 1, n2 has 1, n3 has 1, n4 has 1); hint: give the network a larger subnet, or `backend: vxlan`, which shares addresses between nodes");
    cluster.world.remove_node(node_id(2));
    settle(&mut cluster);
    assert_eq!((cluster.ready("web").len(), cluster.waiting()), (4, String::new()));
    assert!(!record(&cluster).blocks.values().any(|node| *node == node_id(2)));
}

#[test]
fn routes_outside_the_nodes_are_limited() {
    let mut cluster = Cluster::of(3);
    let program = RouteProgram { command: vec!["routes".into()], limit: 2 };
    let defaults = NetworkDefaults { backend: Backend::Routed, routes: Some(program) };
    cluster.world.set_network_defaults(&defaults);
    cluster.up(&app(&[("web", replicas(service("web"), 3))]));
    settle(&mut cluster);
    assert_eq!((cluster.ready("web").len(), wanted_routes(&cluster.world).len()), (2, 2));
    insta::assert_snapshot!(cluster.waiting(), @"web.3 cannot join network default: 2 of 2 routes are used by 1 network, and 1 more is needed; hint: raise the limit with `wharf network default --route-limit N` if the route table takes more, or use `backend: vxlan` for some networks");
    let routes = Some(RouteProgram { limit: 3, ..defaults.routes.clone().unwrap() });
    cluster.world.set_network_defaults(&NetworkDefaults { routes, ..defaults });
    settle(&mut cluster);
    assert_eq!(cluster.ready("web").len(), 3);
}

#[test]
fn a_backend_changes_in_place_and_keeps_every_address() {
    let mut cluster = Cluster::of(3);
    let plain = app(&[("web", replicas(service("web"), 6))]);
    cluster.up(&plain);
    settle(&mut cluster);
    let (before, id) = (addresses(&cluster, "web"), record(&cluster).id);
    // By the cluster's default, without a release.
    cluster.world.set_network_defaults(&NetworkDefaults { backend: Backend::Routed, routes: None });
    settle(&mut cluster);
    let network = record(&cluster);
    assert_eq!(
        (network.id, network.backend, addresses(&cluster, "web")),
        (id, Backend::Routed, before.clone())
    );
    let set = Assigner::new(&cluster.world).for_node(node_id(1));
    let own: Vec<_> = before.iter().filter(|(node, _)| *node == node_id(1)).collect();
    assert_eq!(set.networks[&id].blocks, own.iter().map(|(_, at)| Ipv4Net::from(*at)).collect::<Vec<_>>());
    assert_eq!(set.networks[&id].remote_blocks.len(), 4, "each task that was there has a route of its own");
    // Whoever comes is in the block of its node.
    cluster.ask(&Request::Restart(vec![]));
    settle(&mut cluster);
    let network = record(&cluster);
    for (node, address) in addresses(&cluster, "web") {
        assert!(network.blocks.iter().any(|(block, at)| *at == node && block.contains(&address)));
    }
    assert_eq!(wanted_routes(&cluster.world).len(), 3);
    // And by the file.
    let after = addresses(&cluster, "web");
    cluster.up(&on(backend(Backend::Wireguard), &[("web", replicas(service("web"), 6))]));
    settle(&mut cluster);
    let network = record(&cluster);
    assert_eq!((network.id, network.backend, addresses(&cluster, "web")), (id, Backend::Wireguard, after));
    assert!(network.blocks.is_empty());
}

#[test]
fn engines_that_protect_containers_need_another_network_to_be_routed() {
    let mut cluster = Cluster::of(2);
    let mut status = cluster.world.node(node_id(2)).unwrap().status.clone().unwrap();
    status.facts.as_mut().unwrap().engine.as_mut().unwrap().api_version = "1.48".into();
    cluster.world.set_node_status(node_id(2), status);
    cluster.up(&app(&[("web", replicas(service("web"), 2))]));
    settle(&mut cluster);
    let before = record(&cluster).id;
    cluster.world.set_network_defaults(&NetworkDefaults { backend: Backend::Wireguard, routes: None });
    settle(&mut cluster);
    assert_eq!(record(&cluster).id, before, "the tunnels do not route to containers");
    cluster.world.set_network_defaults(&NetworkDefaults { backend: Backend::Routed, routes: None });
    settle(&mut cluster);
    let network = record(&cluster);
    assert!(network.id != before && cluster.world.networks().count() == 1);
    assert!(addresses(&cluster, "web").iter().all(|(_, address)| network.subnet.contains(address)));
}

/// An app that others depend on, and one of its services is published.
fn shop(network: NetworkSpec) -> AppSpec {
    let web = published(replicas(service("web"), 2), 8080, PublishMode::Ingress);
    on(network, &[("db", service("db")), ("web", web)])
}
fn at(subnet: &str) -> NetworkSpec {
    NetworkSpec { subnet: Some(subnet.parse().unwrap()), ..NetworkSpec::default() }
}

#[test]
fn a_network_with_another_subnet_takes_the_place_of_the_old_one_without_a_gap() {
    let mut cluster = Cluster::of(2);
    cluster.up(&shop(at("10.5.0.0/24")));
    settle(&mut cluster);
    let old = record(&cluster).id;
    cluster.up(&shop(at("10.6.0.0/24")));
    let mut both = false;
    cluster.settle_for(std::time::Duration::from_secs(1200), &mut |cluster| {
        check(cluster);
        assert!(cluster.ready("web").len() >= 2 && !cluster.ready("db").is_empty());
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        let route = &set.routes.routes[0];
        assert!(!route.endpoints.is_empty());
        for endpoint in &route.endpoints {
            let reaches = |network: &NetworkAssignment| network.subnet.contains(endpoint.address.ip());
            assert!(set.networks.values().any(reaches), "the gateway is on the network of each endpoint");
        }
        if cluster.world.networks().count() == 2 {
            let named =
                |id: NetworkId| set.dns.networks.get(&id).is_some_and(|names| names.contains_key("web"));
            both |= set.networks.len() == 2 && set.networks.keys().all(|id| named(*id));
        }
    });
    assert!(both, "for a while both are there, and names lead to somebody on each");
    let network = record(&cluster);
    assert!(network.id != old && cluster.world.network(old).is_none());
    assert!(addresses(&cluster, "web").iter().all(|(_, address)| network.subnet.contains(address)));
    assert_eq!((cluster.rollout().state, cluster.waiting()), (RolloutState::Done, String::new()));
}

#[test]
fn a_move_that_fails_goes_back_to_the_network_it_came_from() {
    let mut cluster = Cluster::of(2);
    cluster.up(&shop(at("10.5.0.0/24")));
    settle(&mut cluster);
    let before = (record(&cluster).id, addresses(&cluster, "web"));
    let mut spec = shop(at("10.6.0.0/24"));
    spec.services.values_mut().for_each(|service| service.image = "broken:1".into());
    cluster.scripts.insert("broken:1".into(), Script::Refuse);
    cluster.up(&spec);
    settle(&mut cluster);
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack, "{}", cluster.rollout().reason);
    assert_eq!((record(&cluster).id, addresses(&cluster, "web")), before, "nobody had to move");
    assert_eq!(cluster.world.networks().count(), 1);
}

#[test]
fn tasks_of_other_apps_move_with_the_network_they_joined() {
    let mut cluster = Cluster::of(1);
    cluster.up(&shop(at("10.5.0.0/24")));
    settle(&mut cluster);
    let other = AppKey { name: "other".parse().unwrap(), ..app_key() };
    let external =
        NetworkSpec { external: true, name: Some("shop_default".into()), ..NetworkSpec::default() };
    let mut spec = on(external, &[("client", service("client"))]);
    spec.name = other.name.clone();
    let changes = crate::release(&cluster.world, &other, &spec, &images(&spec), &by(), cluster.now).unwrap();
    cluster.apply(&changes);
    let settle_both = |cluster: &mut Cluster| {
        for _ in 0..12 {
            settle(cluster);
            for _ in 0..4 {
                let decision = crate::decide(&cluster.world, &other, cluster.now, &mut cluster.ids);
                cluster.apply(&decision.changes);
                cluster.step();
            }
            cluster.now = cluster.now + std::time::Duration::from_secs(5);
        }
    };
    settle_both(&mut cluster);
    cluster.up(&shop(at("10.6.0.0/24")));
    settle_both(&mut cluster);
    let subnet = record(&cluster).subnet;
    let client = cluster.world.tasks().find(|task| task.service.app == other && task.is_ready()).unwrap();
    assert!(client.addresses.values().all(|address| subnet.contains(address)), "{client:?}");
    assert_eq!(cluster.world.networks().count(), 1);
}

#[test]
fn a_macvlan_network_keeps_to_its_range_and_leaves_the_segments_machines_alone() {
    let mut cluster = Cluster::of(3);
    let network = |range: &str| NetworkSpec {
        parent: Some("eth0.100".into()),
        gateway: Some("10.0.0.9".parse().unwrap()),
        ip_range: Some(range.parse().unwrap()),
        subnet: Some("10.0.0.0/24".parse().unwrap()),
        ..backend(Backend::Macvlan)
    };
    // The nodes are at 10.0.0.1 to 10.0.0.3, in the range.
    cluster.up(&on(network("10.0.0.0/28"), &[("web", replicas(service("web"), 3))]));
    settle(&mut cluster);
    let record = record(&cluster);
    let mut all: Vec<u8> = addresses(&cluster, "web").iter().map(|(_, at)| at.octets()[3]).collect();
    all.extend(record.gateways.values().map(|at| at.octets()[3]));
    all.sort_unstable();
    assert!(all.iter().all(|last| *last < 16 && ![0, 1, 2, 3, 9].contains(last)), "{all:?}");
    assert_eq!(all.len(), 6);
    let set = Assigner::new(&cluster.world).for_node(node_id(2));
    let assigned = &set.networks[&record.id];
    assert_eq!((assigned.parent.as_deref(), assigned.router), (Some("eth0.100"), record.spec.gateway));
    assert_eq!(assigned.gateway, record.gateways[&node_id(2)]);
    // 16 addresses: 2 that nobody gets, 2 of nodes, the router's, 3 of nodes' own ends, and 8 for tasks.
    cluster.up(&on(network("10.0.0.0/28"), &[("web", replicas(service("web"), 9))]));
    settle(&mut cluster);
    assert_eq!(cluster.ready("web").len(), 8);
    insta::assert_snapshot!(cluster.waiting(), @"web.9 cannot join network default: every address of 10.0.0.0/28 is in use");
}

#[test]
fn a_service_on_the_nodes_own_network_is_found_where_its_node_is() {
    let mut cluster = Cluster::of(2);
    let mut host = service("host");
    (host.network_mode, host.networks) = (NetworkMode::Host, BTreeMap::new());
    cluster.up(&app(&[("host", host), ("web", replicas(service("web"), 2))]));
    settle(&mut cluster);
    let node = cluster.ready("host")[0].node;
    let table = Assigner::new(&cluster.world).for_node(node_id(2)).dns;
    let names = table.networks.values().next().unwrap();
    let octet = if node == Some(node_id(1)) { 1 } else { 2 };
    assert_eq!(names["host"], [Ipv4Addr::new(10, 0, 0, octet)]);
    assert!(!table.hosts.values().any(|hosts| hosts.contains_key(&Ipv4Addr::new(10, 0, 0, octet))));
}
