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

fn change(cluster: &mut Cluster, n: u8, change: impl FnOnce(&mut NodeRecord)) {
    let mut record = cluster.world.node(node_id(n)).unwrap().record.clone();
    change(&mut record);
    cluster.world.insert_node(record);
}
fn facts(cluster: &mut Cluster, n: u8, change: impl FnOnce(&mut NodeFacts)) {
    let mut status = cluster.world.node(node_id(n)).unwrap().status.clone().unwrap();
    change(status.facts.as_mut().unwrap());
    cluster.world.set_node_status(node_id(n), status);
}
/// Nodes 1 to 4 in zones a, a, b and c.
fn zoned() -> Cluster {
    let mut cluster = Cluster::of(4);
    for (n, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
        label(&mut cluster, n, "zone", zone);
    }
    cluster
}
fn reserving(mut spec: ServiceSpec, cpus: u64) -> ServiceSpec {
    spec.resources.reservations.cpus = Some(Cpus(cpus));
    spec
}
/// Where the living tasks of a service are, in the order of their slots.
fn nodes_of(cluster: &Cluster, service: &str) -> Vec<u8> {
    let mut tasks = cluster.tasks(service);
    tasks.retain(|task| !task.is_over());
    tasks.sort_by_key(|task| task.slot);
    let number = |task: &Task| (1..=9).find(|n| task.node == Some(node_id(*n))).unwrap();
    tasks.iter().map(number).collect()
}

#[test]
fn a_pool_is_for_those_who_ask_for_it() {
    let mut cluster = Cluster::of(2);
    change(&mut cluster, 1, |node| node.scheduling.pool = Some("gpu".into()));
    assert_eq!(placed(&mut cluster, replicas(service("web"), 2)), [0, 2]);
    let mut web = replicas(service("web"), 2);
    web.policy.pool = Some("gpu".into());
    let mut cluster = Cluster::of(2);
    change(&mut cluster, 1, |node| node.scheduling.pool = Some("gpu".into()));
    assert_eq!(placed(&mut cluster, web.clone()), [2, 0]);
    insta::assert_snapshot!({ let mut cluster = Cluster::of(2); placed(&mut cluster, web); cluster.last.waiting[0].to_string() }, @"no node can take web.1: 2 are not of pool gpu; hint: `wharf node update NODE --pool gpu` puts one there");
}

#[test]
fn taints_keep_off_and_drive_off_who_does_not_bear_them() {
    let mut cluster = Cluster::of(2);
    change(&mut cluster, 1, |node| node.scheduling.taints = vec!["team=blue:NoSchedule".parse().unwrap()]);
    assert_eq!(placed(&mut cluster, replicas(service("web"), 2)), [0, 2]);
    cluster.settle();
    // What only keeps off new ones leaves old ones alone; the other one does not.
    change(&mut cluster, 1, |node| node.scheduling.taints.clear());
    change(&mut cluster, 2, |node| node.scheduling.taints = vec!["team=blue:NoSchedule".parse().unwrap()]);
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), [2, 2]);
    change(&mut cluster, 2, |node| node.scheduling.taints = vec!["team=blue:NoExecute".parse().unwrap()]);
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), [1, 1]);
    let mut web = replicas(service("web"), 2);
    web.policy.tolerations = vec!["team=blue".parse().unwrap()];
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), [1, 1], "nothing moves back by itself");
}

#[test]
fn a_node_in_maintenance_takes_nothing_and_may_be_emptied() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("web", replicas(service("web"), 2))]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), [1, 2]);
    let (from, until) = (Timestamp(cluster.now.0 + 60_000), Timestamp(cluster.now.0 + 120_000));
    let window = MaintenanceWindow { from, until, drain: true, note: "new disk".into() };
    change(&mut cluster, 2, |node| node.scheduling.windows = vec![window]);
    let decision = cluster.pass();
    assert!(decision.changes.is_empty(), "{:?}", decision.changes);
    assert_eq!(decision.wake_at, Some(from), "it looks again when it begins");
    cluster.now = from;
    cluster.settle_for(std::time::Duration::from_secs(10), &mut |_| {});
    assert_eq!(nodes_of(&cluster, "web"), [1, 1]);
    cluster.up(&app(&[("web", replicas(service("web"), 3))]));
    cluster.settle_for(std::time::Duration::from_secs(10), &mut |_| {});
    assert_eq!(nodes_of(&cluster, "web"), [1, 1, 1]);
    cluster.now = until;
    cluster.up(&app(&[("web", replicas(service("web"), 4))]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), [1, 1, 1, 2]);
}

#[test]
fn what_a_node_promises_follows_its_overcommitment() {
    let promised = |percent| {
        let mut cluster = Cluster::of(1);
        change(&mut cluster, 1, |node| node.scheduling.overcommit.cpus = percent);
        placed(&mut cluster, reserving(replicas(service("web"), 20), 1000))[0]
    };
    assert_eq!([promised(100), promised(200), promised(50)], [4, 8, 2]);
}

#[test]
fn limits_go_as_far_as_a_node_lets_them() {
    let mut cluster = Cluster::of(1);
    change(&mut cluster, 1, |node| node.scheduling.overcommit.limit_memory = Some(150));
    let mut web = replicas(service("web"), 5);
    web.resources.limits.memory = Some(Bytes(4 << 30));
    // 150 % of 8 GiB.
    assert_eq!(placed(&mut cluster, web), [3]);
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.5: 1 would let limits of memory go too far (limit 4 GiB, left is 0 B); hint: join another node, lower the limit, or let the node's limits go further");
}

#[test]
fn disk_is_reserved_like_memory() {
    let mut cluster = Cluster::of(2);
    facts(&mut cluster, 2, |facts| facts.disk = Some(Bytes(10 << 30)));
    let mut web = replicas(service("web"), 3);
    web.policy.disk = Some(Bytes(4 << 30));
    assert_eq!(placed(&mut cluster, web), [0, 2]);
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.3: 2 have too little disk (need 4 GiB, most free is 2 GiB); hint: join another node, or lower `x-wharf.disk`");
}

fn wish(to: Neighbour, scope: &str, soft: bool) -> Affinity {
    Affinity { to, scope: scope.into(), soft }
}
fn near(service: &str) -> Neighbour {
    Neighbour::Near(service.parse().unwrap())
}
fn apart(service: &str) -> Neighbour {
    Neighbour::Apart(service.parse().unwrap())
}

#[test]
fn who_wants_to_be_near_goes_there_or_nowhere() {
    let mut cluster = Cluster::of(3);
    let mut web = replicas(service("web"), 4);
    web.policy.affinity = vec![wish(near("cache"), "node", false)];
    cluster.up(&app(&[("web", web.clone())]));
    let _ = cluster.pass();
    insta::assert_snapshot!(cluster.last.waiting[0], @"no node can take web.1: 3 are not near cache, which runs nowhere yet; hint: see why cache does not run: `wharf explain cache`");
    cluster.up(&app(&[("cache", replicas(service("cache"), 2)), ("web", web)]));
    cluster.settle();
    assert_eq!((nodes_of(&cluster, "cache"), nodes_of(&cluster, "web")), (vec![1, 2], vec![1, 2, 1, 2]));
}

#[test]
fn two_who_want_to_be_near_each_other_do_not_wait_for_each_other() {
    let mut cluster = Cluster::of(3);
    let (mut web, mut cache) = (service("web"), service("cache"));
    web.policy.affinity = vec![wish(near("cache"), "node", false)];
    cache.policy.affinity = vec![wish(near("web"), "node", false)];
    cluster.up(&app(&[("cache", cache), ("web", web)]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "cache"), nodes_of(&cluster, "web"));
    assert_eq!(nodes_of(&cluster, "web").len(), 1);
}

#[test]
fn who_wants_to_be_apart_is_and_others_keep_their_distance() {
    let mut cluster = zoned();
    let mut web = replicas(service("web"), 4);
    web.policy.affinity = vec![wish(apart("web"), "node.labels.zone", false)];
    assert_eq!(placed(&mut cluster, web).iter().sum::<u32>(), 3, "one in each zone");
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.4: 4 have a task of web on the same zone, which wants to be apart; hint: join another node, or write `soft: true` into the affinity");

    let mut cluster = Cluster::of(2);
    let mut batch = service("batch");
    batch.policy.affinity = vec![wish(apart("db"), "node", false)];
    cluster.up(&app(&[("batch", batch.clone())]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "batch"), [1]);
    // What comes later keeps away from what did not want it.
    cluster.up(&app(&[("batch", batch), ("db", replicas(service("db"), 2))]));
    cluster.settle_for(std::time::Duration::from_secs(5), &mut |_| {});
    assert_eq!(nodes_of(&cluster, "db"), [2, 2]);
}

#[test]
fn a_soft_wish_is_met_where_it_can_be() {
    let mut cluster = Cluster::of(3);
    let mut web = reserving(replicas(service("web"), 3), 2000);
    web.policy.affinity = vec![wish(near("cache"), "node", true)];
    cluster.up(&app(&[("cache", service("cache")), ("web", web)]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "cache"), [1]);
    assert_eq!(nodes_of(&cluster, "web"), [1, 1, 2], "two fit beside the cache");
}

#[test]
fn tasks_are_in_as_many_places_as_are_asked_for() {
    let minimum = |at_least, soft| {
        let over = "node.labels.zone".to_owned();
        Some(AvailabilityMinimum { over, at_least, soft })
    };
    // Everything draws to zone a, and three tasks are in three zones all the same.
    let full = |cluster: &mut Cluster| {
        for n in [3, 4] {
            facts(cluster, n, |facts| facts.cpus = Cpus(1000));
        }
    };
    let mut web = reserving(replicas(service("web"), 3), 1000);
    web.policy.strategy = Some(PlacementStrategy::Binpack);
    web.policy.availability = minimum(3, false);
    let mut cluster = zoned();
    full(&mut cluster);
    let three = placed(&mut cluster, web.clone());
    assert_eq!((three[0] + three[1], three[2], three[3]), (1, 1, 1));

    // Where there is no third one, the last task waits for it, or does not mind.
    let two_zones = || {
        let mut cluster = zoned();
        change(&mut cluster, 4, |node| {
            node.labels.insert("zone".into(), "b".into());
        });
        cluster
    };
    let mut cluster = two_zones();
    assert_eq!(placed(&mut cluster, web.clone()).iter().sum::<u32>(), 2);
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.3: 4 are in no further zone (tasks have to be in 3, and are in 2); hint: label a node with another `zone`, or write `soft: true` into `availability`");
    web.policy.availability = minimum(3, true);
    assert_eq!(placed(&mut two_zones(), web).iter().sum::<u32>(), 3);
}

#[test]
fn the_loss_of_one_node_leaves_as_many_as_are_asked_for() {
    let mut web = replicas(service("web"), 5);
    web.policy.slots = Some(StableSlots { stay: false, elsewhere: 3 });
    web.policy.strategy = Some(PlacementStrategy::Binpack);
    assert_eq!(placed(&mut Cluster::of(3), web), [2, 2, 1]);
}

#[test]
fn a_stable_slot_comes_back_where_it_was() {
    let mut cluster = Cluster::of(3);
    let mut web = replicas(service("web"), 3);
    web.policy.slots = Some(StableSlots { stay: true, elsewhere: 0 });
    cluster.up(&app(&[("web", web.clone())]));
    cluster.settle();
    let before = nodes_of(&cluster, "web");
    web.container.user = Some("other".into());
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    assert_eq!(nodes_of(&cluster, "web"), before);
    assert!(cluster.ready("web").iter().all(|task| task.generation == Generation(2)));
}

#[test]
fn a_port_of_a_range_is_given_with_the_node() {
    let mut web = published(replicas(service("web"), 3), 8000, PublishMode::Host);
    web.ports[0].published_to = Some(8001);
    let mut cluster = Cluster::of(1);
    facts(&mut cluster, 1, |facts| facts.taken_ports = vec![8000]);
    assert_eq!(placed(&mut cluster, web.clone()), [1], "one is free");
    insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.3: 1 has every port from 8000 to 8001 in use; hint: join another node, or publish from a larger range");
    let mut cluster = Cluster::of(2);
    assert_eq!(placed(&mut cluster, web), [2, 1]);
    let given = |cluster: &Cluster, n| -> Vec<u16> {
        let tasks = cluster.world.tasks_on(node_id(n));
        tasks.flat_map(|task| &task.ports).map(|port| port.published).collect()
    };
    assert_eq!((given(&cluster, 1), given(&cluster, 2)), (vec![8000, 8001], vec![8000]));
    // The node is told, and so is the process.
    let set = crate::Assigner::new(&cluster.world).for_node(node_id(2));
    let task = set.tasks.values().next().unwrap();
    assert_eq!((task.spec.ports[0].published, task.spec.ports[0].published_to), (Some(8000), None));
    assert_eq!(task.spec.container.environment["WHARF_HOST_PORT_80"], Some("8000".to_owned()));
}

#[test]
fn strategies_spread_pack_or_draw() {
    let with = |strategy| {
        let mut web = reserving(replicas(service("web"), 4), 1000);
        web.policy.strategy = Some(strategy);
        web
    };
    assert_eq!(placed(&mut Cluster::of(4), with(PlacementStrategy::Spread)), [1, 1, 1, 1]);
    assert_eq!(placed(&mut Cluster::of(4), with(PlacementStrategy::Binpack)), [4, 0, 0, 0]);
    let drawn = |seed| {
        let mut cluster = Cluster::of(4);
        cluster.ids = crate::SeededIds::new(seed);
        placed(&mut cluster, with(PlacementStrategy::Random))
    };
    assert_eq!(drawn(1), drawn(1), "a seed always gives the same");
    let different: std::collections::BTreeSet<_> = (0..20).map(drawn).collect();
    assert!(different.len() > 3, "{different:?}");
    // The cluster says what holds for services that do not.
    let mut cluster = Cluster::of(4);
    cluster.world.set_placement_defaults(PlacementDefaults { strategy: PlacementStrategy::Binpack });
    assert_eq!(placed(&mut cluster, reserving(replicas(service("web"), 3), 1000)), [3, 0, 0, 0]);
}

#[test]
fn of_nodes_that_are_as_empty_one_with_the_image_is_taken() {
    let mut cluster = Cluster::of(3);
    facts(&mut cluster, 2, |facts| facts.images = vec!["web:1".into()]);
    assert_eq!(placed(&mut cluster, service("web")), [0, 1, 0]);
    // Not at any price.
    let mut cluster = Cluster::of(3);
    facts(&mut cluster, 2, |facts| facts.images = vec!["web:1".into()]);
    cluster.up(&app(&[("full", {
        let mut full = reserving(service("full"), 3000);
        full.placement.constraints =
            vec![Constraint { key: "node.hostname".into(), equal: true, value: "n2".into() }];
        full
    })]));
    cluster.settle();
    cluster.up(&app(&[("web", service("web"))]));
    let _ = cluster.pass();
    assert_eq!(nodes_of(&cluster, "web"), [1]);
}

#[test]
fn an_engine_that_does_not_know_what_is_asked_for_is_refused() {
    let mut cluster = Cluster::of(2);
    facts(&mut cluster, 2, |facts| facts.engine.as_mut().unwrap().api_version = "1.48".into());
    let mut web = service("web");
    web.container.annotations.insert("a".into(), "b".into());
    assert_eq!(placed(&mut cluster, web), [0, 1]);
}

/// One node with 4 cores, all of them promised to tasks of `low`, and an app that cannot do without one.
fn crowded(replicas_of_low: u32) -> Cluster {
    let mut cluster = Cluster::of(1);
    let mut low = reserving(replicas(service("low"), replicas_of_low), 4000 / u64::from(replicas_of_low));
    low.policy.priority = Some(Priority::Low);
    cluster.up(&app(&[("low", low)]));
    cluster.settle();
    cluster
}
fn with_high(cluster: &mut Cluster, cpus: u64) {
    let record = cluster.world.service(&key("low")).unwrap();
    let low = cluster.world.revision_of(&key("low"), record.generation).unwrap().spec.clone();
    let mut high = reserving(service("high"), cpus);
    high.policy.priority = Some(Priority::High);
    cluster.up(&app(&[("high", high), ("low", low)]));
}

#[test]
fn the_less_important_make_way_and_do_not_come_back_for_it() {
    let mut cluster = crowded(4);
    with_high(&mut cluster, 2000);
    let decision = cluster.pass();
    let preempted = |change: &&crate::Change| matches!(change, crate::Change::PreemptTask { .. });
    assert_eq!(decision.changes.iter().filter(preempted).count(), 2, "no more than it takes");
    let waits =
        decision.waiting.iter().map(ToString::to_string).find(|text| text.contains("high.1")).unwrap();
    insta::assert_snapshot!(waits, @"high.1 waits for room on n1: shop-low-4, shop-low-3 make way for it");
    cluster.settle_for(std::time::Duration::from_secs(60), &mut |_| {});
    assert_eq!(cluster.ready("high").len(), 1);
    assert_eq!(cluster.ready("low").len(), 2);
    let stopped = cluster.tasks("low").into_iter().find(|task| task.stop == Some(StopReason::Preempted));
    assert_eq!(stopped.unwrap().makes_room_for.unwrap().to_string(), "prod/shop/high.1");
    // And it ends there.
    let count = cluster.tasks("low").len();
    cluster.settle_for(std::time::Duration::from_secs(600), &mut |_| {});
    assert_eq!(cluster.tasks("low").len(), count);
}

#[test]
fn nobody_makes_way_for_an_equal_or_for_what_would_not_fit_all_the_same() {
    let mut cluster = crowded(4);
    with_high(&mut cluster, 5000);
    cluster.settle_for(std::time::Duration::from_secs(10), &mut |_| {});
    assert_eq!(cluster.ready("low").len(), 4);
    let mut cluster = crowded(4);
    let record = cluster.world.service(&key("low")).unwrap();
    let low = cluster.world.revision_of(&key("low"), record.generation).unwrap().spec.clone();
    let equal = ServiceSpec { image: "equal:1".into(), ..replicas(low.clone(), 1) };
    cluster.up(&app(&[("equal", equal), ("low", low)]));
    cluster.settle_for(std::time::Duration::from_secs(10), &mut |_| {});
    assert_eq!((cluster.ready("low").len(), cluster.ready("equal").len()), (4, 0));
}

#[test]
fn an_explanation_says_what_decided_between_two_nodes() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("a", reserving(service("a"), 1000)), ("web", service("web"))]));
    cluster.settle();
    let [web] = &crate::explain_service(&cluster.world, &key("web"), cluster.now)[..] else { panic!() };
    assert_eq!(
        (web.chosen.as_ref().unwrap().name.as_str(), web.runner_up.as_ref().unwrap().name.as_str()),
        ("n2", "n1")
    );
    assert_eq!(web.decided_by.as_deref(), Some("reserved: 0.0 % on n2, 25.0 % on n1"));
    assert!(!web.is_outdone && web.remedies.is_empty());
    let task = cluster.ready("web")[0].id;
    assert_eq!(crate::explain_task(&cluster.world, task, cluster.now).as_ref(), Some(web));
}

#[test]
fn an_explanation_names_the_smallest_change() {
    let mut cluster = zoned();
    cluster.up(&app(&[("a", replicas(reserving(service("a"), 1500), 8))]));
    cluster.settle();
    let mut web = reserving(service("web"), 1500);
    web.placement.constraints =
        vec![Constraint { key: "node.labels.zone".into(), equal: true, value: "a".into() }];
    cluster.up(&app(&[("a", replicas(reserving(service("a"), 1500), 8)), ("web", web.clone())]));
    let _ = cluster.pass();
    let explained =
        |cluster: &Cluster| crate::explain_service(&cluster.world, &key("web"), cluster.now).remove(0);
    let found = explained(&cluster);
    assert_eq!((found.nodes, found.able, found.task), (4, 0, None));
    let rules: Vec<_> = found.rules.iter().map(|rule| (rule.rule.as_str(), rule.first, rule.all)).collect();
    assert_eq!(rules, [("cpus", 2, 4), ("constraint node.labels.zone == a", 2, 2)]);
    assert_eq!(found.without[0].nodes, ["n1", "n2"]);
    assert_eq!(found.remedies[0].text, "free 0.5 CPUs on n1, or reserve no more than 1");
    assert_eq!(found.no_place().unwrap().refusals.len(), 2);

    // A label is less than that.
    facts(&mut cluster, 4, |facts| facts.cpus = Cpus(8000));
    let found = explained(&cluster);
    assert_eq!(found.remedies[0].text, "label n4: `wharf node label n4 zone=a`");
    assert_eq!(found.remedies[1].text, "free 0.5 CPUs on n1, or reserve no more than 1");
}

#[test]
fn an_explanation_says_when_another_node_is_better_by_now() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("a", reserving(service("a"), 1000)), ("web", service("web"))]));
    cluster.settle();
    let Node { record, status } = crate::fixtures::node(2);
    cluster.world.insert_node(record);
    cluster.world.set_node_status(node_id(2), status.unwrap());
    let found = crate::explain_service(&cluster.world, &key("web"), cluster.now).remove(0);
    assert!(found.is_outdone);
    assert_eq!(found.runner_up.unwrap().name, "n2");
}
