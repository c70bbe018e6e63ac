//! What happens to services that a release removes, on a cluster that carries decisions out.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use wharf_model::*;

use crate::{Assigner, fixtures::*};

const SOON: Duration = Duration::from_secs(300);

/// Tasks of an image behind a route and a published port.
fn web(image: &str, tasks: u32) -> ServiceSpec {
    let mut web = published(replicas(service(image), tasks), 8080, PublishMode::Ingress);
    let route = serde_json::json!({ "hosts": ["shop.example.com"], "port": 80 });
    web.policy.routes = vec![serde_json::from_value(route).unwrap()];
    web
}

/// The services of the tasks to which the route leads, and the published port.
fn led_to(cluster: &Cluster) -> [BTreeSet<String>; 2] {
    let table = Assigner::new(&cluster.world).for_node(node_id(1)).routes;
    let service = |endpoint: &Endpoint| {
        let task = cluster.world.task(endpoint.task).unwrap();
        assert!(task.is_ready() && task.stop.is_none(), "{task:?}");
        task.service.name.to_string()
    };
    let of_routes = table.services.iter().flat_map(|route| &route.sets).flat_map(|set| &set.endpoints);
    let of_ports = table.routes.iter().flat_map(|route| &route.endpoints);
    assert!(table.routes.len() <= 1, "{:?}", table.routes);
    [of_routes.map(service).collect(), of_ports.map(service).collect()]
}

fn ids(tasks: &[Task]) -> Vec<TaskId> {
    tasks.iter().map(|task| task.id).collect()
}

#[test]
fn a_service_serves_until_the_one_that_takes_its_place_does() {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("old", web("web", 3))]));
    cluster.settle();
    cluster.up(&app(&[("new", web("web", 3))]));
    let seen = RefCell::new(BTreeSet::new());
    cluster.settle_for(SOON, &mut |cluster| {
        let led = led_to(cluster);
        assert!(led.iter().all(|services| !services.is_empty()), "{led:?}");
        let stopping = cluster.tasks("old").iter().any(|task| task.stop.is_some());
        let whole = cluster.ready("new").len() == 3;
        assert!(!stopping || whole, "the others are not all there: {}", cluster.waiting());
        seen.borrow_mut().extend(led);
    });
    let both: BTreeSet<String> = ["old".to_owned(), "new".to_owned()].into();
    assert!(seen.borrow().contains(&both), "both answer for a while: {seen:?}");
    assert_eq!(led_to(&cluster), [BTreeSet::from(["new".to_owned()]), BTreeSet::from(["new".to_owned()])]);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert!(cluster.world.service(&key("old")).is_none());
}

#[test]
fn what_a_failing_release_would_have_removed_has_not_been_touched() {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("old", web("web", 2))]));
    cluster.settle();
    let before = ids(&cluster.tasks("old"));
    cluster.scripts.insert("bad:1".to_owned(), Script::Exit(1));
    cluster.up(&app(&[("new", web("bad", 2))]));
    cluster.settle_for(SOON, &mut |cluster| {
        assert!(led_to(cluster).iter().all(|services| services.contains("old")), "{}", cluster.waiting());
    });
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack, "{}", cluster.waiting());
    assert_eq!(ids(&cluster.ready("old")), before);
    assert!(cluster.world.service(&key("new")).is_none(), "{}", cluster.waiting());
}

#[test]
fn what_nobody_can_have_beside_it_goes_first() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("old", with_volume(service("db"), "data"))]));
    cluster.settle();
    cluster.up(&app(&[("new", with_volume(service("db"), "data"))]));
    let _ = cluster.pass();
    assert!(cluster.tasks("old").iter().all(|task| task.stop == Some(StopReason::Removed)));
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
}

#[test]
fn it_makes_room_where_there_is_none_for_what_comes() {
    let large = |image: &str| {
        let mut large = service(image);
        large.resources.reservations.cpus = Some(Cpus(3000));
        large
    };
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("old", large("web"))]));
    cluster.settle();
    assert_eq!(cluster.ready("old").len(), 1, "{}", cluster.waiting());
    cluster.up(&app(&[("new", large("web"))]));
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
    assert_eq!((cluster.ready("new").len(), cluster.tasks("old").len()), (1, 0));
}
