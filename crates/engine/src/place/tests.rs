//! Placement as files ask for it, in small clusters.

use wharf_model::*;

use super::rules::holds;
use crate::{
    Node,
    fixtures::{Cluster, app, key, node_id, published, replicas, service},
};

/// Where the tasks of `web` are placed, by node.
fn placed(cluster: &mut Cluster, web: ServiceSpec) -> Vec<u32> {
    cluster.up(&app(&[("web", web)]));
    let _ = cluster.pass();
    let count = |node: &Node| cluster.world.load(node.record.id).services.get(&key("web")).copied();
    cluster.world.nodes().map(|node| count(node).unwrap_or(0)).collect()
}
fn label(cluster: &mut Cluster, n: u8, key: &str, value: &str) {
    let mut record = cluster.world.node(node_id(n)).unwrap().record.clone();
    record.labels.insert(key.into(), value.into());
    cluster.world.insert_node(record);
}

#[test]
fn tasks_are_spread_over_nodes() {
    assert_eq!(placed(&mut Cluster::of(3), replicas(service("web"), 6)), [2, 2, 2]);
}

#[test]
fn zones_come_before_nodes() {
    let mut cluster = Cluster::of(4);
    for (n, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        label(&mut cluster, n, "zone", zone);
    }
    let mut web = replicas(service("web"), 4);
    web.placement.spread = vec!["node.labels.zone".into()];
    let placed = placed(&mut cluster, web);
    assert_eq!((placed[..3].iter().sum::<u32>(), placed[3]), (2, 2), "{placed:?}");
}

#[test]
fn constraints_hold_and_what_is_missing_equals_nothing() {
    let mut cluster = Cluster::of(2);
    label(&mut cluster, 2, "disk", "ssd");
    let constraint =
        |key: &str, equal, value: &str| Constraint { key: key.into(), equal, value: value.into() };
    let holds = |constraint: &Constraint, n| holds(constraint, cluster.world.node(node_id(n)).unwrap());
    assert!(!holds(&constraint("node.labels.disk", true, "ssd"), 1));
    assert!(holds(&constraint("node.labels.disk", true, "ssd"), 2));
    assert!(holds(&constraint("node.labels.disk", false, "ssd"), 1));
    assert!(holds(&constraint("node.role", true, "manager"), 1));
    assert!(holds(&constraint("node.role", true, "worker"), 2));
    assert!(holds(&constraint("node.platform.arch", true, "x86_64"), 1));
    assert!(holds(&constraint("node.hostname", true, "n2"), 2));
}

#[test]
fn a_constraint_nobody_meets_says_how_to_meet_it() {
    let mut cluster = Cluster::of(2);
    let mut web = service("web");
    web.placement.constraints =
        vec![Constraint { key: "node.labels.disk".into(), equal: true, value: "ssd".into() }];
    placed(&mut cluster, web);
    insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: 2 do not meet the constraint `node.labels.disk == ssd`; hint: `wharf node label NODE disk=ssd` makes one fit");
    assert!(!cluster.last.waiting[0].is_for_room());
}

#[test]
fn reservations_of_this_pass_and_earlier_ones_count() {
    let mut cluster = Cluster::of(2);
    let mut web = replicas(service("web"), 5);
    web.resources.reservations.cpus = Some(Cpus(2000));
    assert_eq!(placed(&mut cluster, web), [2, 2]);
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.5: 2 have too little CPU (need 2, most free is 0); hint: join another node, or lower `reservations.cpus`");
}

#[test]
fn a_host_port_is_had_once_per_node() {
    let mut cluster = Cluster::of(2);
    let web = published(replicas(service("web"), 3), 80, PublishMode::Host);
    assert_eq!(placed(&mut cluster, web), [1, 1]);
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.3: 2 have port 80 in use; hint: join another node, free the port, or publish it in `mode: ingress`");
}

#[test]
fn max_replicas_per_node_is_kept() {
    let mut cluster = Cluster::of(2);
    let mut web = replicas(service("web"), 3);
    web.placement.max_replicas_per_node = Some(1);
    assert_eq!(placed(&mut cluster, web), [1, 1]);
}

#[test]
fn another_platform_is_refused() {
    let mut cluster = Cluster::of(1);
    let mut web = service("web");
    web.placement.platform = Some("linux/arm64/v8".into());
    assert_eq!(placed(&mut cluster, web), [0]);
    insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: 1 is not linux/arm64/v8; hint: join a node of that platform, or use an image for this one");
}

#[test]
fn a_slot_that_failed_tries_another_node() {
    let mut cluster = Cluster::of(2);
    cluster.scripts.insert("web:1".into(), crate::fixtures::Script::Exit(1));
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle_for(std::time::Duration::from_secs(5), &mut |_| {});
    let nodes: Vec<_> = cluster.tasks("web").iter().map(|task| task.node.unwrap()).take(3).collect();
    assert_eq!(nodes, [node_id(1), node_id(2), node_id(1)]);
}

#[test]
fn a_cluster_without_nodes_says_how_to_get_one() {
    let mut cluster = Cluster::of(0);
    placed(&mut cluster, service("web"));
    insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: the cluster has no nodes; hint: `wharf agent join` on a machine adds it to the cluster");
}
