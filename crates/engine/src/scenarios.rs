//! What happens to an app in the situations people meet, from release to removal, on a cluster that carries decisions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wharf_model::*;

use crate::{Assigner, Change, Reason, Request, fixtures::*};

fn healthy() -> DependencyCondition {
    DependencyCondition::ServiceHealthy
}
fn names(list: &[&str]) -> Vec<ServiceName> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}
fn wordpress() -> AppSpec {
    app(&[
        ("db", with_volume(service("mariadb"), "db_data")),
        ("web", published(after(service("wordpress"), "db", healthy()), 8080, PublishMode::Ingress)),
    ])
}

#[test]
fn an_app_comes_up_in_the_order_of_its_dependencies() {
    let mut cluster = Cluster::of(3);
    cluster.up(&wordpress());

    let _ = cluster.pass();
    assert_eq!((cluster.tasks("db").len(), cluster.tasks("web").len()), (1, 0));
    insta::assert_snapshot!(cluster.waiting(), @r"
    db.1 is pending on n1
    web.1 waits for db to be healthy: db is pending
    ");

    cluster.settle();
    assert_eq!((cluster.ready("db").len(), cluster.ready("web").len()), (1, 1));
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert_eq!(cluster.last, Default::default(), "as desired, with nothing to do and nothing to say");
}

#[test]
fn a_dependency_that_is_not_healthy_says_what_its_check_said() {
    let mut cluster = Cluster::of(1);
    let mut spec = wordpress();
    spec.services.get_mut("db".parse::<ServiceName>().as_ref().unwrap()).unwrap().restart.condition =
        RestartCondition::None;
    cluster.scripts.insert("mariadb:1".into(), Script::Sicken);
    cluster.up(&spec);
    cluster.settle();
    insta::assert_snapshot!(cluster.waiting(), @r"
    db.1 is unhealthy on n1, and its restart policy leaves it so; it last said: connection refused
    web.1 waits for db to be healthy: db runs and its check has not passed yet; it last said: connection refused
    ");
    assert_eq!(cluster.rollout().state, RolloutState::Failed);
}

#[test]
fn an_optional_dependency_is_awaited_only_as_long_as_it_can_come() {
    let mut cluster = Cluster::of(1);
    let mut web = after(service("web"), "migrate", DependencyCondition::ServiceCompletedSuccessfully);
    web.depends_on.values_mut().for_each(|dependency| dependency.required = false);
    let mut migrate = service("migrate");
    migrate.restart.condition = RestartCondition::None;
    cluster.scripts.insert("migrate:1".into(), Script::Exit(3));
    cluster.up(&app(&[("migrate", migrate), ("web", web)]));

    let _ = cluster.pass();
    assert_eq!(cluster.tasks("web").len(), 0);
    cluster.settle();
    assert_eq!(cluster.ready("web").len(), 1);
}

#[test]
fn a_one_shot_service_completes_and_is_as_wanted() {
    let mut cluster = Cluster::of(1);
    let mut migrate = service("migrate");
    migrate.restart.condition = RestartCondition::OnFailure;
    let web = after(service("web"), "migrate", DependencyCondition::ServiceCompletedSuccessfully);
    cluster.scripts.insert("migrate:1".into(), Script::Exit(0));
    cluster.up(&app(&[("migrate", migrate), ("web", web)]));
    cluster.settle();
    assert_eq!(cluster.tasks("migrate").len(), 1, "it is not started again");
    assert_eq!(cluster.ready("web").len(), 1);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn a_failing_task_is_started_again_ever_later_and_given_up_after_max_attempts() {
    let mut cluster = Cluster::of(1);
    let mut web = service("web");
    web.restart.max_attempts = Some(3);
    cluster.scripts.insert("web:1".into(), Script::Exit(1));
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    let tasks = cluster.tasks("web");
    let made: Vec<_> = tasks.iter().map(|task| task.created_at).collect();
    let waits: Vec<_> = made.windows(2).map(|two| two[1].since(two[0]).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4]);
    assert_eq!(tasks.iter().map(|task| task.failures).collect::<Vec<_>>(), [0, 1, 2, 3]);
    insta::assert_snapshot!(cluster.waiting(), @"web.1 ended 4 times and is not started again, as its restart policy says: exit code 1");
}

#[test]
fn a_task_that_held_longer_than_the_window_starts_a_clean_record() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let task = cluster.ready("web").remove(0);
    cluster.now = cluster.now + Duration::from_secs(3600);
    let ended = TaskStatus {
        phase: Phase::Failed,
        exit: Some(Exit { code: 1, oom: false }),
        ended_at: Some(cluster.now),
        sequence: 99,
        ..task.status
    };
    let task = Task { failures: 6, ..cluster.tasks("web").remove(0) };
    cluster.world.insert_task(task.clone());
    cluster.world.set_task_status(task.id, ended);
    let decision = cluster.pass();
    assert_eq!(decision.wake_at, Some(cluster.now + Duration::from_secs(1)), "{:?}", decision.waiting);
}

#[test]
fn a_node_with_a_wrong_clock_neither_hastens_nor_delays_the_next_attempt() {
    for skew in [-3_600_000_i64, 3_600_000] {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", service("web"))]));
        cluster.settle();
        let task = cluster.ready("web").remove(0);
        let on_node = |at: Timestamp| Some(Timestamp(at.0.saturating_add_signed(skew)));
        cluster.now = task.created_at + Duration::from_millis(500);
        let status = TaskStatus {
            phase: Phase::Failed,
            started_at: on_node(task.created_at),
            ended_at: on_node(cluster.now),
            sequence: 99,
            ..task.status
        };
        cluster.world.set_task_status(task.id, status);
        assert_eq!(cluster.pass().wake_at, Some(cluster.now + Duration::from_secs(1)), "skew {skew}");
    }
}

#[test]
fn an_unhealthy_task_is_stopped_and_replaced_and_counts_as_failed() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let task = cluster.ready("web").remove(0);
    cluster
        .world
        .set_task_status(task.id, TaskStatus { health: Health::Unhealthy, sequence: 50, ..task.status });
    cluster.settle();
    let tasks = cluster.tasks("web");
    assert_eq!(tasks[0].stop, Some(StopReason::Unhealthy));
    assert_eq!((tasks.len(), tasks[1].failures), (2, 1));
    assert!(tasks[1].is_ready());
}

#[test]
fn a_newer_task_is_ready_before_the_older_one_stops() {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("web", replicas(service("web"), 3))]));
    cluster.settle();
    cluster.up(&app(&[("web", replicas(service("web2"), 3))]));
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
        assert!(cluster.ready("web").len() >= 3, "{:#?}", cluster.tasks("web"));
        let live = cluster.tasks("web").iter().filter(|task| !task.is_over() && !task.is_let_go()).count();
        assert!(live <= 4, "one more than wanted at a time, those that drain among them");
    });
    assert!(cluster.ready("web").iter().all(|task| task.generation == Generation(2)));
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn two_tasks_never_write_to_one_volume() {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data"))]));
    cluster.settle();
    let home = cluster.ready("db")[0].node;
    cluster.up(&app(&[("db", with_volume(service("mariadb2"), "db_data"))]));
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
        assert!(cluster.tasks("db").iter().filter(|task| !task.is_over()).count() <= 1);
    });
    assert_eq!(cluster.ready("db")[0].node, home, "its data is there");
}

#[test]
fn host_ports_are_handed_over_and_not_shared() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", published(service("web"), 80, PublishMode::Host))]));
    cluster.settle();
    cluster.up(&app(&[("web", published(service("web2"), 80, PublishMode::Host))]));
    cluster.settle();
    assert_eq!(cluster.ready("web")[0].generation, Generation(2));
}

#[test]
fn a_failing_release_returns_to_the_one_before() {
    for script in [Script::Exit(1), Script::Refuse, Script::Sicken] {
        let mut cluster = Cluster::of(3);
        let db = with_volume(service("mariadb"), "db_data");
        cluster.up(&app(&[
            ("db", db.clone()),
            ("web", replicas(service("web"), 2)),
            ("old", service("old")),
        ]));
        cluster.settle();
        let before: Vec<_> = cluster.ready("web").iter().map(|task| task.id).collect();

        cluster.scripts.insert("bad:1".into(), script.clone());
        cluster.up(&app(&[("db", db), ("web", replicas(service("bad"), 2)), ("new", service("new"))]));
        cluster.settle_for(Duration::from_secs(300), &mut |cluster| {
            assert!(cluster.ready("web").len() >= 2, "those that serve go on serving");
        });

        assert_eq!(
            cluster.rollout().state,
            RolloutState::RolledBack,
            "{script:?}: {}",
            cluster.rollout().reason
        );
        let app = cluster.world.app(&app_key()).unwrap();
        assert_eq!(app.release, ReleaseNumber(1));
        assert_eq!(cluster.ready("web").iter().map(|task| task.id).collect::<Vec<_>>(), before, "untouched");
        assert_eq!((cluster.ready("old").len(), cluster.tasks("new").len()), (1, 0));
        assert!(cluster.last.waiting.is_empty(), "{}", cluster.waiting());
    }
}

/// Three of the app's four slots have the next release, and the fourth cannot: what becomes of that.
fn stuck_at_the_last(web: &ServiceSpec) -> (Cluster, usize) {
    let mut cluster = Cluster::of(2);
    let web = replicas(web.clone(), 4);
    cluster.up(&app(&[("web", web.clone())]));
    cluster.settle();
    cluster.up(&app(&[("web", ServiceSpec { image: "next".into(), ..web })]));
    let next = |cluster: &Cluster| {
        cluster.ready("web").iter().filter(|task| task.generation == Generation(2)).count()
    };
    while next(&cluster) < 3 {
        let _ = cluster.pass();
        cluster.step();
        cluster.now = cluster.now + Duration::from_millis(10);
    }
    cluster.scripts.insert("next".into(), Script::Refuse);
    let mut least = usize::MAX;
    cluster
        .settle_for(Duration::from_secs(120), &mut |cluster| least = least.min(cluster.ready("web").len()));
    (cluster, least)
}

#[test]
fn a_task_and_the_one_that_takes_its_slot_over_are_one_replica_of_their_node() {
    let mut cluster = Cluster::of(2);
    let mut web = replicas(service("web"), 2);
    web.placement.max_replicas_per_node = Some(1);
    cluster.up(&app(&[("web", web.clone())]));
    cluster.settle();
    web.image = "next:1".into();
    cluster.up(&app(&[("web", web)]));
    let mut least = usize::MAX;
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| least = least.min(cluster.ready("web").len()));
    assert_eq!(
        (cluster.rollout().state, least),
        (RolloutState::Done, 2),
        "start-first, and it comes to its end"
    );
    let nodes: std::collections::BTreeSet<_> = cluster.ready("web").iter().map(|task| task.node).collect();
    assert_eq!(nodes.len(), 2);
}

#[test]
fn a_return_goes_as_the_file_says_returns_go() {
    let (cluster, least) = stuck_at_the_last(&service("web"));
    assert_eq!((cluster.rollout().state, least), (RolloutState::RolledBack, 4), "as an update, start-first");
    let mut web = service("web");
    let all_at_once =
        UpdatePolicy { order: Some(UpdateOrder::StopFirst), parallelism: 0, ..UpdatePolicy::default() };
    web.rollback = Some(all_at_once);
    let (cluster, least) = stuck_at_the_last(&web);
    assert_eq!(
        (cluster.rollout().state, least),
        (RolloutState::RolledBack, 1),
        "all three are stopped at once"
    );
    assert!(cluster.ready("web").iter().all(|task| task.generation == Generation(1)));
}

#[test]
fn an_update_bears_with_as_many_failures_as_the_file_allows() {
    let mut web = service("web");
    web.update.max_failure_ratio = 250;
    let (cluster, least) = stuck_at_the_last(&web);
    assert_eq!((cluster.rollout().state, least), (RolloutState::Done, 4));
    let reason = &cluster.rollout().reason;
    assert!(reason.starts_with("done within `max_failure_ratio`, although web."), "{reason}");
    web.update.max_failure_ratio = 249;
    assert_eq!(stuck_at_the_last(&web).0.rollout().state, RolloutState::RolledBack, "one in four is more");
}

#[test]
fn a_rollback_says_why() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    cluster.scripts.insert("bad:1".into(), Script::Exit(137));
    cluster.up(&app(&[("web", service("bad"))]));
    cluster.settle();
    insta::assert_snapshot!(cluster.rollout().reason, @"release 2 failed, and the app returned to release 1: web.1 failed 3 times in a row, last on n1: SIGKILL (exit code 137)");
}

#[test]
fn a_first_release_that_fails_keeps_trying_and_says_so() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:1".into(), Script::Refuse);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle_for(Duration::from_secs(10), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Failed);
    insta::assert_snapshot!(cluster.rollout().reason, @"web.1 failed 2 times in a row, last on n1: no such image; there is no earlier release to return to, so its tasks stay and are tried again at growing intervals of up to 5 minutes");

    cluster.scripts.clear();
    cluster.settle();
    assert_eq!(cluster.ready("web").len(), 1, "once the cause is gone it comes up by itself");
}

#[test]
fn a_drained_node_is_left_without_a_gap() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("web", replicas(service("web"), 2))]));
    cluster.settle();
    cluster.set_availability(1, Availability::Drain);
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| assert!(cluster.ready("web").len() >= 2));
    assert!(cluster.ready("web").iter().all(|task| task.node == Some(node_id(2))));
}

#[test]
fn a_drained_node_is_left_by_as_many_slots_of_a_service_at_once_as_a_release_replaces() {
    for (parallelism, most) in [(1, 1), (2, 2), (0, 6)] {
        let mut cluster = Cluster::of(2);
        cluster.set_availability(2, Availability::Pause);
        let mut web = replicas(service("web"), 6);
        web.update.parallelism = parallelism;
        // A pause between two slots of a release is for watching what is new, and here nothing is.
        web.update.delay = wharf_model::Millis::from_secs(3600);
        cluster.up(&app(&[("web", web)]));
        cluster.settle_for(Duration::from_secs(60), &mut |_| {});
        cluster.set_availability(2, Availability::Active);
        cluster.set_availability(1, Availability::Drain);
        let mut seen = 0;
        cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
            assert!(cluster.ready("web").len() >= 6, "what serves goes on");
            let there =
                cluster.tasks("web").iter().filter(|task| !task.is_over() && !task.is_let_go()).count();
            seen = seen.max(there - 6);
        });
        assert_eq!(seen, most, "parallelism {parallelism}");
        assert!(cluster.ready("web").iter().all(|task| task.node == Some(node_id(2))));
    }
}

#[test]
fn a_slot_whose_new_task_is_lost_keeps_its_turn() {
    let mut cluster = Cluster::of(4);
    cluster.up(&app(&[("web", replicas(service("web"), 3))]));
    cluster.settle();
    let old: Vec<_> = cluster.ready("web").iter().map(|task| task.id).collect();
    cluster.up(&app(&[("web", replicas(service("web2"), 3))]));
    let _ = cluster.pass();
    let new = |cluster: &Cluster| -> Vec<_> {
        cluster.tasks("web").into_iter().filter(|task| !old.contains(&task.id) && !task.is_over()).collect()
    };
    let [first] = &new(&cluster)[..] else { panic!("{:?}", new(&cluster)) };
    let on = first.node.unwrap();
    let number = (1..=4).find(|n| node_id(*n) == on).unwrap();
    cluster.set_state(number, NodeState::Down);
    let _ = cluster.pass();
    let beside: Vec<_> = new(&cluster)
        .into_iter()
        .filter(|task| {
            cluster
                .tasks("web")
                .iter()
                .any(|other| other.slot == task.slot && old.contains(&other.id) && !other.is_over())
        })
        .map(|task| task.slot)
        .collect();
    assert_eq!(beside, [first.slot], "one at a time");
}

#[test]
fn a_slot_that_cannot_leave_keeps_no_other_from_leaving() {
    let mut cluster = Cluster::of(3);
    let mut web = replicas(service("web"), 3);
    web.placement.max_replicas_per_node = Some(2);
    cluster.set_availability(3, Availability::Pause);
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    // Of two on the first node one finds a place.
    let both = cluster.ready("web").iter().filter(|task| task.node == Some(node_id(1))).count();
    assert_eq!(both, 2);
    cluster.set_availability(1, Availability::Drain);
    cluster.settle_for(Duration::from_secs(60), &mut |_| {});
    let left = cluster.ready("web").iter().filter(|task| task.node == Some(node_id(1))).count();
    assert_eq!(left, 1, "{}", cluster.waiting());
    assert!(cluster.waiting().contains("stays on n1 for now"), "{}", cluster.waiting());
}

#[test]
fn a_task_bound_to_its_data_stays_on_a_drained_node_and_says_why() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data"))]));
    cluster.settle();
    cluster.set_availability(1, Availability::Drain);
    cluster.settle();
    assert_eq!(cluster.ready("db").len(), 1);
    insta::assert_snapshot!(cluster.waiting(), @"db.1 stays on n1 for now although that node is being drained: its replacement must run on n1, which holds the data of its volume db_data: it is being drained; hint: `wharf node activate NODE` lets one take tasks again");
}

#[test]
fn tasks_of_a_down_node_are_lost_and_replaced_elsewhere() {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("web", replicas(service("web"), 3))]));
    cluster.settle();
    cluster.set_state(2, NodeState::Unreachable);
    cluster.settle();
    assert_eq!(cluster.tasks("web").len(), 3, "unreachable is not down");
    insta::assert_snapshot!(cluster.waiting(), @"web.2 is on n2, which does not answer; it may well be running");

    cluster.set_state(2, NodeState::Down);
    cluster.settle();
    assert_eq!(cluster.ready("web").len(), 3);
    assert!(cluster.ready("web").iter().all(|task| task.node != Some(node_id(2))));
    let lost = cluster.tasks("web").into_iter().find(|task| task.status.phase == Phase::Lost).unwrap();
    assert_eq!(lost.status.message, "its node n2 is down");
}

#[test]
fn nothing_is_sent_to_a_suspected_node_where_others_serve_and_nothing_is_replaced() {
    let mut cluster = Cluster::of(3);
    let web = published(replicas(service("web"), 3), 8080, PublishMode::Ingress);
    let only = published(service("only"), 8081, PublishMode::Ingress);
    cluster.up(&app(&[("web", web), ("only", only)]));
    cluster.settle();
    let tasks = [cluster.ready("web"), cluster.ready("only")].concat();
    let alone = cluster.ready("only").remove(0);
    let n = (1..=3).find(|n| alone.node == Some(node_id(*n))).unwrap();
    let (asker, there) = (if n == 1 { 2 } else { 1 }, |task: &&Task| task.node == Some(node_id(n)));
    let shunned = cluster.ready("web").iter().find(there).unwrap().id;
    assert_eq!(cluster.led_to(1, "web").len(), 3);

    cluster.set_suspected(n, true);
    cluster.settle();
    let routes = |cluster: &Cluster| Assigner::new(&cluster.world).for_node(node_id(1)).routes;
    assert_eq!(
        routes(&cluster).unheard,
        [shunned].into(),
        "what is asked of it is not waited for; of the only one it is"
    );
    assert_eq!(routes(&cluster).gone, BTreeMap::new(), "it may come back to what was begun");
    for node in [1, asker] {
        let led_to = cluster.led_to(node, "web");
        assert!(led_to.len() == 2 && !led_to.contains(&shunned), "{led_to:?}");
        let only = cluster.led_to(node, "only");
        assert!(only.is_empty() && node != 1 || only == [alone.id].into(), "there is no other: {only:?}");
    }
    assert_eq!([cluster.ready("web"), cluster.ready("only")].concat(), tasks, "nothing is replaced");
    let waiting = cluster.waiting();
    assert!(waiting.contains("not hear; nothing is sent to it where others serve"), "{waiting}");
    cluster.ask(&Request::Scale([("web".parse().unwrap(), 6)].into()));
    cluster.settle();
    let on_suspected = cluster.ready("web").into_iter().filter(|task| there(&task)).count();
    assert_eq!((cluster.ready("web").len(), on_suspected), (6, 1), "it gets no new tasks");

    cluster.set_suspected(n, false);
    cluster.settle();
    assert_eq!((cluster.led_to(1, "web").len(), routes(&cluster).unheard), (6, BTreeSet::new()));
}

#[test]
fn tasks_of_a_missing_node_that_may_run_twice_are_replaced_before_it_is_down_and_others_wait() {
    let mut cluster = Cluster::of(2);
    let mut single = service("single");
    single.policy.single_writer = Some(true);
    let db = with_volume(service("db"), "data");
    cluster.up(&app(&[("web", replicas(service("web"), 2)), ("single", single), ("db", db)]));
    cluster.settle();
    let on = |cluster: &Cluster, service: &str, n: u8| -> Vec<TaskId> {
        let here = cluster.ready(service).into_iter().filter(|task| task.node == Some(node_id(n)));
        here.map(|task| task.id).collect()
    };
    for n in [1, 2] {
        let mut other = Cluster::of(2);
        (other.world, other.now) = (cluster.world.clone(), cluster.now);
        let mut cluster = other;
        let before = ["single", "db"].map(|service| on(&cluster, service, n));
        let elsewhere = 3 - n;
        cluster.set_missing(n);
        cluster.settle();
        assert_eq!((on(&cluster, "web", n).len(), on(&cluster, "web", elsewhere).len()), (0, 2));
        assert_eq!(
            ["single", "db"].map(|service| on(&cluster, service, n)),
            before,
            "they wait for certainty"
        );
        let lost = cluster.tasks("web").into_iter().find(|task| task.status.phase == Phase::Lost).unwrap();
        assert!(lost.status.message.contains("heard neither by other nodes nor by the server"));
        let routes = Assigner::new(&cluster.world).for_node(node_id(1)).routes;
        let serving = before.iter().flatten().filter(|task| routes.unheard.contains(task)).count();
        assert_eq!((routes.unheard.contains(&lost.id), serving), (true, 0));
        assert_eq!(routes.gone, [(lost.id, node_id(n))].into(), "what waits for certainty may go on");
    }
}

#[test]
fn what_is_under_way_with_tasks_ends_once_their_node_is_down_and_not_because_they_leave() {
    let mut cluster = Cluster::of(2);
    let web = published(replicas(service("web"), 2), 8080, PublishMode::Ingress);
    let db = published(with_volume(service("db"), "data"), 5432, PublishMode::Ingress);
    cluster.up(&app(&[("web", web), ("db", db)]));
    cluster.settle();
    let gone = |cluster: &Cluster| Assigner::new(&cluster.world).for_node(node_id(1)).routes.gone;
    let db = cluster.ready("db").remove(0);
    let n = (1..=2).find(|n| db.node == Some(node_id(*n))).unwrap();
    let there = |task: &&Task| task.node == db.node;
    let web = cluster.ready("web").iter().find(there).unwrap().id;
    cluster.ask(&Request::Scale([("web".parse().unwrap(), 0)].into()));
    cluster.settle();
    assert_eq!(gone(&cluster), BTreeMap::new(), "they are let go in order");
    cluster.ask(&Request::Scale([("web".parse().unwrap(), 2)].into()));
    cluster.settle();
    let again = cluster.ready("web").iter().find(there).unwrap().id;

    cluster.set_state(n, NodeState::Unreachable);
    cluster.settle();
    assert_eq!(gone(&cluster), BTreeMap::new(), "its agent may have been started anew");

    cluster.set_state(n, NodeState::Down);
    cluster.settle();
    assert_eq!(
        gone(&cluster),
        [(again, node_id(n)), (db.id, node_id(n))].into(),
        "also one that waits there for its data: {web} had ended before"
    );

    cluster.set_state(n, NodeState::Ready);
    cluster.settle();
    assert_eq!(gone(&cluster), BTreeMap::new());
}

#[test]
fn a_node_that_is_held_back_keeps_its_tasks_and_gets_no_new_ones() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("web", replicas(service("web"), 2))]));
    cluster.settle();
    let status = cluster.world.node(node_id(2)).unwrap().status.clone().unwrap();
    let held_until = Some(cluster.now + Duration::from_secs(30));
    cluster.world.set_node_status(node_id(2), NodeStatus { held_until, ..status.clone() });
    cluster.ask(&Request::Scale([("web".parse().unwrap(), 4)].into()));
    cluster.settle();
    let on =
        |cluster: &Cluster| cluster.ready("web").iter().filter(|task| task.node == Some(node_id(2))).count();
    assert_eq!((cluster.ready("web").len(), on(&cluster)), (4, 1));
    cluster.world.set_node_status(node_id(2), status);
    cluster.ask(&Request::Scale([("web".parse().unwrap(), 6)].into()));
    cluster.settle();
    assert_eq!(on(&cluster), 3);
}

#[test]
fn a_task_whose_data_is_on_a_node_that_is_held_back_starts_there() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("db", with_volume(service("db"), "data"))]));
    cluster.settle();
    let before = cluster.ready("db").remove(0);
    let node = before.node.unwrap();
    let status = cluster.world.node(node).unwrap().status.clone().unwrap();
    let held_until = Some(cluster.now + Duration::from_secs(3600));
    cluster.world.set_node_status(node, NodeStatus { held_until, ..status });
    cluster.ask(&Request::Restart(vec!["db".parse().unwrap()]));
    cluster.settle();
    let after = cluster.ready("db").remove(0);
    assert!(after.id != before.id && after.node == Some(node), "{after:?}");
}

#[test]
fn the_only_writer_of_a_shared_volume_runs_with_a_lease_and_moves_when_its_node_is_down() {
    let mut cluster = Cluster::of(2);
    let writer = with_volume(service("db"), "shared");
    let many = replicas(with_volume(service("many"), "shared"), 2);
    let mut told = replicas(service("told"), 2);
    told.policy.single_writer = Some(true);
    let mut spec = app(&[("db", writer), ("many", many), ("told", told), ("web", service("web"))]);
    let volume = spec.volumes.values_mut().next().unwrap();
    volume.driver_opts.insert("type".into(), "nfs".into());
    cluster.up(&spec);
    cluster.settle();
    let fenced = |cluster: &Cluster| -> std::collections::BTreeSet<String> {
        let assigner = crate::Assigner::new(&cluster.world);
        let sets = [1, 2].map(|n| assigner.for_node(node_id(n)));
        let tasks = sets.into_iter().flat_map(|set| set.tasks.into_values());
        tasks.filter(|task| task.fenced).map(|task| task.name).collect()
    };
    let names = ["shop-db-1", "shop-told-1", "shop-told-2"].map(str::to_owned);
    assert_eq!(fenced(&cluster), names.into());

    let old = cluster.ready("db").remove(0);
    let n = if old.node == Some(node_id(1)) { 1 } else { 2 };
    cluster.set_state(n, NodeState::Unreachable);
    cluster.settle();
    assert_eq!(cluster.tasks("db").len(), 1, "it may be running");
    cluster.set_state(n, NodeState::Down);
    cluster.settle();
    let new = cluster.ready("db").remove(0);
    assert!(new.id != old.id && new.node != old.node);
    let lost = cluster.tasks("db").into_iter().find(|task| task.id == old.id).unwrap();
    assert_eq!(
        lost.status.message,
        format!("its node n{n} is down, and its right to run the task there is over")
    );
}

#[test]
fn a_task_bound_to_its_data_waits_for_its_node_and_is_not_started_anew() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data"))]));
    cluster.settle();
    let task = cluster.ready("db").remove(0);
    cluster.set_state(1, NodeState::Down);
    cluster.settle();
    insta::assert_snapshot!(cluster.waiting(), @"db.1 waits for n1, which is down and holds the data of its volume db_data; hint: bring n1 back, or have it start elsewhere with an empty volume: `wharf volume release db_data --node n1`");

    cluster.set_state(1, NodeState::Ready);
    cluster.settle();
    assert_eq!(cluster.ready("db"), [task], "the very same task");
}

#[test]
fn once_its_node_is_removed_a_task_gives_up_its_data() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data"))]));
    cluster.settle();
    cluster.set_state(1, NodeState::Down);
    cluster.settle();
    cluster.world.remove_node(node_id(1));
    cluster.settle();
    assert_eq!(cluster.ready("db")[0].node, Some(node_id(2)));
}

#[test]
fn no_place_says_how_many_nodes_refuse_for_which_reason() {
    let mut cluster = Cluster::of(3);
    let mut web = service("web");
    web.resources.reservations.memory = Some(Bytes(512 << 30));
    cluster.set_availability(3, Availability::Drain);
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: 2 have too little memory (need 512 GiB, most free is 8 GiB), 1 is being drained; hint: join another node, or lower `reservations.memory`");
    assert_eq!(cluster.rollout().state, RolloutState::Progressing, "waiting is not failing");
    assert!(cluster.last.waiting.iter().all(crate::Waiting::is_for_room));
}

#[test]
fn a_global_service_has_one_task_on_every_suitable_node() {
    let mut cluster = Cluster::of(3);
    let mut monitor = service("monitor");
    monitor.mode = Mode::Global;
    monitor.placement.constraints =
        vec![Constraint { key: "node.hostname".into(), equal: false, value: "n3".into() }];
    cluster.up(&app(&[("monitor", monitor)]));
    cluster.settle();
    let nodes = |cluster: &Cluster| {
        cluster
            .ready("monitor")
            .iter()
            .map(|task| task.node.unwrap())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(nodes(&cluster), [node_id(1), node_id(2)].into());
    assert_eq!(cluster.rollout().state, RolloutState::Done);

    cluster.set_availability(1, Availability::Drain);
    cluster.settle();
    assert_eq!(nodes(&cluster), [node_id(2)].into());
    cluster.set_availability(1, Availability::Active);
    cluster.settle();
    assert_eq!(nodes(&cluster), [node_id(1), node_id(2)].into());
}

#[test]
fn scaling_down_stops_the_highest_slots() {
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("web", replicas(service("web"), 4))]));
    cluster.settle();
    cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 2)])));
    cluster.settle();
    let slots: Vec<_> = cluster.ready("web").iter().map(|task| task.slot.0).collect();
    assert_eq!(slots, [1, 2]);
    assert_eq!(cluster.rollout().what, "scale web=2");
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn stopped_services_stop_after_those_that_depend_on_them_and_start_again() {
    let mut cluster = Cluster::of(1);
    cluster.up(&wordpress());
    cluster.settle();
    cluster.ask(&Request::Stop(vec![]));
    let _ = cluster.pass();
    assert!(cluster.tasks("db")[0].stop.is_none());
    insta::assert_snapshot!(cluster.waiting(), @r"
    db stops once web, which depends on it, has stopped
    web.1 is draining on n1 (the service was stopped): nodes are told to send nothing new to it
    ");
    cluster.settle();
    assert_eq!(cluster.ready("db").len() + cluster.ready("web").len(), 0);
    cluster.ask(&Request::Start(vec![]));
    cluster.settle();
    assert_eq!(cluster.ready("db").len() + cluster.ready("web").len(), 2);
}

#[test]
fn a_restart_replaces_tasks_and_those_that_restart_with_them() {
    let mut cluster = Cluster::of(1);
    let mut web = after(service("web"), "db", healthy());
    web.depends_on.values_mut().for_each(|dependency| dependency.restart = true);
    cluster.up(&app(&[("db", service("db")), ("web", web), ("other", service("other"))]));
    cluster.settle();
    let other = cluster.ready("other");
    cluster.ask(&Request::Restart(names(&["db"])));
    cluster.settle();
    assert_eq!((cluster.tasks("db").len(), cluster.tasks("web").len()), (2, 2));
    assert_eq!(cluster.tasks("db")[0].stop, Some(StopReason::Restarted));
    assert_eq!(cluster.ready("other"), other);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn a_change_that_needs_no_new_containers_replaces_none() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let before = cluster.ready("web");
    let mut web = published(service("web"), 8080, PublishMode::Ingress);
    web.update.parallelism = 4;
    cluster.up(&app(&[("web", web)]));
    cluster.settle();
    assert_eq!(cluster.ready("web"), before);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    let table = crate::Assigner::new(&cluster.world).for_node(node_id(1)).routes;
    assert_eq!(table.routes[0].endpoints.len(), 1, "and it is published all the same");
}

#[test]
fn taking_an_app_down_leaves_its_volumes_unless_they_are_to_go() {
    for volumes in [false, true] {
        let mut cluster = Cluster::of(2);
        cluster.up(&wordpress());
        cluster.settle();
        cluster.ask(&Request::Down { volumes });
        cluster.settle();
        assert!(cluster.world.app(&app_key()).is_none());
        assert_eq!(cluster.world.tasks().count() + cluster.world.networks().count(), 0);
        assert_eq!(cluster.world.services().count() + cluster.world.releases_of(&app_key()).count(), 0);
        assert_eq!(cluster.world.revisions_of(&key("db")).count(), 0);
        assert_eq!(cluster.world.volumes().count(), usize::from(!volumes));
    }
}

#[test]
fn a_volume_that_outlived_its_app_is_taken_up_again_where_it_is() {
    let mut cluster = Cluster::of(3);
    let db = app(&[("filler", service("filler")), ("db", with_volume(service("mariadb"), "db_data"))]);
    cluster.up(&db);
    cluster.settle();
    let home = cluster.ready("db")[0].node;
    cluster.ask(&Request::Down { volumes: false });
    cluster.settle();
    cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data"))]));
    cluster.settle();
    assert_eq!(cluster.ready("db")[0].node, home);
}

#[test]
fn a_service_no_longer_in_the_file_goes_with_its_records() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web")), ("old", service("old"))]));
    cluster.settle();
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    assert!(cluster.world.service(&key("old")).is_none());
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    cluster.up(&app(&[("web", service("web2"))]));
    cluster.settle();
    assert_eq!(cluster.world.revisions_of(&key("old")).count(), 0, "no way back needs it any more");
}

#[test]
fn the_last_five_ended_tasks_of_a_slot_are_kept() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:1".into(), Script::Exit(1));
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle_for(Duration::from_secs(3600), &mut |_| {});
    let tasks = cluster.tasks("web");
    assert_eq!(tasks.iter().filter(|task| task.is_over()).count(), 5);
    let Some(Reason::CrashLoop { crashes, .. }) = cluster.last.waiting.first().map(|w| w.reason.clone())
    else {
        panic!("{}", cluster.waiting())
    };
    assert!(crashes.times > 5 && crashes.known == 5, "what was forgotten is still counted: {crashes}");
}

#[test]
fn a_slot_whose_tasks_end_again_and_again_is_called_a_crash_loop() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:1".into(), Script::Exit(3));
    cluster.up(&app(&[("web", service("web"))]));
    let mut said = Vec::new();
    cluster.settle_for(Duration::from_secs(12), &mut |cluster| {
        let now = cluster.last.waiting.iter().map(|waiting| &waiting.reason);
        said.extend(now.filter_map(|reason| match reason {
            Reason::Backoff { failures, .. } => Some(format!("{failures}")),
            Reason::CrashLoop { crashes, .. } => Some(format!("loop of {}", crashes.times)),
            _ => None,
        }));
    });
    said.dedup();
    assert_eq!(said[..4], ["1", "2", "loop of 3", "loop of 4"], "{said:?}");
    let mut waiting = cluster.last.waiting.first().unwrap().clone();
    let Reason::CrashLoop { crashes, left, log, hint, .. } = &mut waiting.reason else { panic!("{waiting}") };
    (crashes.times, crashes.known, crashes.within) = (5, 5, wharf_model::Millis::from_secs(180));
    (*left, *log) = (wharf_model::Millis::from_secs(20), vec!["starting".into(), "no database".into()]);
    *hint = Some("start it".into());
    insta::assert_snapshot!(waiting, @"web.1 is in a crash loop: it ended 5 times in 3 min, last with: exit code 3; next try in 20 s; its last lines: starting | no database; hint: start it");
}

#[test]
fn a_task_that_ran_for_long_is_not_part_of_a_crash_loop() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let task = cluster.ready("web").remove(0);
    let ended = |failures, ran: u64| {
        let mut task = task.clone();
        task.failures = failures;
        task.status.phase = Phase::Failed;
        task.status.started_at = Some(Timestamp(task.created_at.0));
        task.status.ended_at = Some(task.created_at + Duration::from_secs(ran));
        task
    };
    let policy = wharf_model::RestartPolicy::default();
    let of = |task: &Task| crate::crash_loop(&policy, std::iter::once(task)).map(|found| found.times);
    assert_eq!(of(&ended(1, 1)), None);
    assert_eq!(of(&ended(2, 1)), Some(3));
    assert_eq!(of(&ended(9, 61)), None, "it held for longer than the window");
    assert_eq!(of(&task), None, "it runs");
}

#[test]
fn a_service_in_anothers_network_runs_beside_it_and_follows_it() {
    let mut cluster = Cluster::of(3);
    let mut side = service("side");
    side.networks.clear();
    side.network_mode = NetworkMode::Service("web".parse().unwrap());
    let spec = app(&[("filler", replicas(service("filler"), 2)), ("web", service("web")), ("side", side)]);
    cluster.up(&spec);
    cluster.settle();
    let (web, side) = (cluster.ready("web").remove(0), cluster.ready("side").remove(0));
    assert_eq!(side.node, web.node);
    let set = crate::Assigner::new(&cluster.world).for_node(web.node.unwrap());
    assert_eq!(set.tasks[&side.id].network_of(), Some(web.id));

    cluster.world.set_task_status(web.id, TaskStatus { phase: Phase::Failed, sequence: 99, ..web.status });
    cluster.settle();
    assert_eq!((cluster.ready("web").len(), cluster.ready("side").len()), (1, 1));
    assert!(cluster.ready("side")[0].id > cluster.ready("web")[0].id, "a new namespace, a new task in it");
}

#[test]
fn what_shares_namespaces_and_volumes_of_two_services_runs_beside_both() {
    let mut cluster = Cluster::of(3);
    let mut side = replicas(service("side"), 2);
    side.container.pid = Some(Namespace::Service("web".parse().unwrap()));
    side.container.volumes_from = vec![VolumesFrom { service: "data".parse().unwrap(), read_only: true }];
    let mut data = replicas(service("data"), 2);
    data.container.ipc = Some(Namespace::Service("web".parse().unwrap()));
    let spec = app(&[
        ("filler", service("filler")),
        ("web", replicas(service("web"), 2)),
        ("data", data),
        ("side", side),
    ]);
    cluster.up(&spec);
    cluster.settle();
    let web = cluster.ready("web");
    let sides = cluster.ready("side");
    assert_eq!((web.len(), sides.len(), cluster.ready("data").len()), (2, 2, 2));
    for side in sides {
        let set = crate::Assigner::new(&cluster.world).for_node(side.node.unwrap());
        let companions = &set.tasks[&side.id].companions;
        let names: Vec<_> = companions.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["data", "web"], "both are on its node");
        let shared = web.iter().find(|web| companions.values().any(|id| *id == web.id)).unwrap();
        assert_eq!((shared.slot, shared.node), (side.slot, side.node), "of several, the one of its slot");
    }
    let lost = &web[0];
    let status = TaskStatus { phase: Phase::Failed, sequence: 99, ..lost.status.clone() };
    cluster.world.set_task_status(lost.id, status);
    cluster.settle();
    let newest = |name| cluster.ready(name).iter().map(|task| task.id).max().unwrap();
    assert!(newest("side") > newest("data") && newest("data") > newest("web"), "what it shared has ended");
}

#[test]
fn a_dependency_cycle_does_not_hang_anything() {
    let mut cluster = Cluster::of(1);
    let started = DependencyCondition::ServiceStarted;
    cluster.up(&app(&[("a", after(service("a"), "b", started)), ("b", after(service("b"), "a", started))]));
    cluster.settle();
    assert_eq!(cluster.ready("a").len() + cluster.ready("b").len(), 2);
    cluster.ask(&Request::Down { volumes: false });
    cluster.settle();
    assert!(cluster.world.app(&app_key()).is_none());
}

#[test]
fn a_missing_external_network_is_named() {
    let mut cluster = Cluster::of(1);
    let mut spec = app(&[("web", service("web"))]);
    spec.networks.insert(
        "default".parse().unwrap(),
        NetworkSpec { external: true, name: Some("shared".into()), ..Default::default() },
    );
    let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
    insta::assert_snapshot!(plan.refusals[0], @"network default is external, and no app of this environment has a network `shared`; hint: deploy the app that makes it first");
    assert!(cluster.pass().changes.is_empty());
}

#[test]
fn a_lagging_server_clock_does_not_confuse_old_with_new() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    cluster.now = Timestamp(cluster.now.0 - 60_000);
    cluster.up(&app(&[("web", service("web2"))]));
    let decision = cluster.pass();
    let created = decision.changes.iter().find_map(|change| match change {
        Change::CreateTask(task) => Some(task.id),
        _ => None,
    });
    assert!(created.unwrap() > cluster.tasks("web")[0].id);
}

#[test]
fn a_clock_that_is_set_back_keeps_no_release_and_no_restart_waiting() {
    let mut cluster = Cluster::of(2);
    let checked = |n| replicas(service("web"), n);
    cluster.up(&app(&[("web", checked(3)), ("db", with_volume(service("db"), "data"))]));
    cluster.settle();
    cluster.now = Timestamp(cluster.now.0 - 3_600_000);
    let began = cluster.now;
    cluster.up(&app(&[("web", checked(2)), ("db", with_volume(service("db"), "data"))]));
    cluster.settle_for(Duration::from_secs(60), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert!(cluster.now.since(began) < Duration::from_secs(120));
    // What ends is back, too.
    cluster.scripts.insert("web:1".into(), Script::Crash);
    cluster.step();
    cluster.scripts.clear();
    assert!(cluster.ready("web").len() < 2);
    cluster.settle_for(Duration::from_secs(60), &mut |_| {});
    assert_eq!(cluster.ready("web").len(), 2);
}

#[test]
fn what_failed_before_a_release_is_tried_anew_and_not_held_against_it() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:1".into(), Script::Exit(1));
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle_for(Duration::from_secs(600), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Failed);

    // The missing part comes with the next release, and the service that failed for want of it is unchanged.
    cluster.scripts.clear();
    cluster.up(&app(&[("web", service("web")), ("db", service("db"))]));
    cluster.settle_for(Duration::from_secs(1), &mut |_| {});
    assert_eq!(
        (cluster.ready("web").len(), cluster.ready("db").len()),
        (1, 1),
        "without waiting out its pause"
    );
    cluster.settle_for(Duration::from_secs(10), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn a_task_that_nobody_checks_and_that_ends_at_once_was_never_there() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let serving = cluster.ready("web")[0].id;
    let mut next = service("web");
    next.image = "web:2".into();
    cluster.scripts.insert("web:2".into(), Script::Crash);
    cluster.up(&app(&[("web", next)]));
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
        assert_ne!(cluster.rollout().state, RolloutState::Done, "running for a moment is not enough");
        let still = cluster.ready("web").iter().any(|task| task.id == serving);
        assert!(still, "what serves goes on until its successor has shown that it stays");
    });
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
}

#[test]
fn a_thousand_tasks_are_decided_in_one_pass_with_addresses_of_their_own() {
    let mut cluster = Cluster::of(50);
    cluster.up(&app(&[("web", replicas(service("web"), 1000))]));
    let _ = cluster.pass();
    let tasks = cluster.tasks("web");
    let addresses: std::collections::BTreeSet<_> =
        tasks.iter().flat_map(|task| task.addresses.values()).collect();
    assert_eq!((tasks.len(), addresses.len()), (1000, 1000));
    assert!(cluster.world.nodes().all(|node| cluster.world.load(node.record.id).tasks == 20));
}

#[test]
fn of_many_releases_the_last_ones_are_kept_and_the_one_to_return_to() {
    let mut cluster = Cluster::of(1);
    for version in 1..=55 {
        let mut spec = service("web");
        spec.image = format!("web:{version}");
        cluster.up(&app(&[("web", spec)]));
        cluster.settle();
    }
    let numbers = |cluster: &Cluster| -> Vec<_> {
        cluster.world.releases_of(&app_key()).map(|release| release.number.0).collect()
    };
    assert_eq!(numbers(&cluster), (6..=55).collect::<Vec<_>>());

    // However many there were since: those the app is on and may return to are not forgotten.
    let mut record = AppRecord::clone(cluster.world.app(&app_key()).unwrap());
    record.release = ReleaseNumber(6);
    record.previous.as_mut().unwrap().release = ReleaseNumber(7);
    let template = Release::clone(cluster.world.release(&app_key(), ReleaseNumber(55)).unwrap());
    cluster.world.insert_app(record);
    for number in 56..=65 {
        cluster.world.insert_release(Release { number: ReleaseNumber(number), ..template.clone() });
    }
    let _ = cluster.pass();
    assert_eq!(numbers(&cluster), [6, 7].into_iter().chain(16..=65).collect::<Vec<_>>());
}

#[test]
fn a_revision_that_was_written_before_its_app_is_not_forgotten_meanwhile() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    cluster.settle();
    let next = app(&[("web", service("web")), ("db", service("db"))]);
    let changes =
        crate::release(&cluster.world, &app_key(), &next, &images(&next), &by(), cluster.now).unwrap();
    let (early, late): (Vec<_>, Vec<_>) = changes
        .into_iter()
        .partition(|change| matches!(change, Change::PutRevision(_) | Change::PutRelease(_)));
    cluster.apply(&early);
    cluster.settle();
    cluster.apply(&late);
    cluster.settle();
    assert_eq!(cluster.ready("db").len(), 1);

    // One that was never followed by its app goes with the next release.
    let orphan = key("cache");
    let mut revision = ServiceRevision::clone(
        cluster.world.revision_of(&key("db"), cluster.tasks("db")[0].generation).unwrap(),
    );
    revision.key = orphan.clone();
    revision.release = ReleaseNumber(3);
    cluster.world.insert_revision(revision);
    let _ = cluster.pass();
    assert_eq!(cluster.world.revisions_of(&orphan).count(), 1);
    let mut third = next;
    third.services.values_mut().for_each(|service| service.image.push_str("-b"));
    cluster.up(&third);
    cluster.settle();
    assert_eq!(cluster.world.revisions_of(&orphan).count(), 0);
}

#[test]
fn whoever_waits_for_a_change_may_look_after_the_next_has_begun() {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", service("web"))]));
    assert_eq!(cluster.rollout().before, None);
    cluster.settle();
    let first = cluster.rollout().generation;
    cluster.up(&app(&[("web", service("web2"))]));
    assert!(cluster.rollout().generation > first);
    let done = wharf_model::EndedRollout { generation: first, state: RolloutState::Done };
    assert_eq!(cluster.rollout().before, Some(done));
}

/// A service that a client on every node asks by name, and that is published on the gateway of the first.
fn asked_for(web: ServiceSpec) -> AppSpec {
    let mut client = service("client");
    client.mode = Mode::Global;
    app(&[("client", client), ("web", published(web, 8080, PublishMode::Ingress))])
}
fn draining(cluster: &Cluster, service: &str) -> Vec<Task> {
    cluster.tasks(service).into_iter().filter(Task::is_draining).collect()
}

#[test]
fn what_serves_goes_on_until_every_live_node_leads_to_its_successor() {
    let mut cluster = Cluster::of(3);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    let old = cluster.ready("web").remove(0);
    cluster.deaf = vec![node_id(3)];
    cluster.up(&asked_for(service("web2")));
    cluster.go_on_for(Duration::from_secs(120), &mut |cluster| {
        assert!(cluster.world.task(old.id).unwrap().is_ready(), "n3 leads to nothing else");
    });
    assert_eq!(cluster.ready("web").len(), 2);
    let said = cluster.waiting();
    assert!(
        said.starts_with("web.1 is ready on n2 and counts once every node leads to it: n3: it serves the names and routes of revision "),
        "{said}"
    );
    cluster.deaf.clear();
    cluster.settle_for(Duration::from_secs(10), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert!(cluster.ready("web").iter().all(|task| task.id != old.id));
}

#[test]
fn a_task_drains_before_its_process_is_asked_to_stop() {
    let mut cluster = Cluster::of(3);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    let old = cluster.ready("web").remove(0);
    cluster.under_way.insert(old.id, 3);
    cluster.up(&asked_for(service("web2")));
    let mut let_go = None;
    cluster.go_on_for(Duration::from_secs(20), &mut |cluster| {
        let_go = let_go.or(cluster.world.task(old.id).filter(|task| task.is_let_go()).map(|_| cluster.now));
    });
    assert_eq!((let_go, draining(&cluster, "web").len()), (None, 1));
    for n in 1..=3 {
        assert!(!cluster.led_to(n, "web").contains(&old.id), "nothing new comes to it");
    }
    let said = cluster.waiting();
    assert!(
        said.starts_with("web.1 is draining on n")
            && said.contains("(replaced by a newer release): 3 requests under way, up to "),
        "{said}"
    );
    // They end.
    cluster.under_way.clear();
    cluster.settle_for(Duration::from_secs(1), &mut |_| {});
    assert!(cluster.world.task(old.id).unwrap().is_over());
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn requests_that_do_not_end_are_cut_off_after_the_time_that_the_service_gives_them() {
    let mut cluster = Cluster::of(2);
    let web = |image: &str| {
        let mut web = service(image);
        web.policy.drain = Some(Millis::from_secs(7));
        web
    };
    cluster.up(&asked_for(web("web")));
    cluster.settle();
    let old = cluster.ready("web").remove(0);
    cluster.under_way.insert(old.id, 3);
    cluster.up(&asked_for(web("web2")));
    let (mut stopped_at, mut cut_off) = (None, None);
    cluster.go_on_for(Duration::from_secs(20), &mut |cluster| {
        for change in &cluster.last.changes {
            match change {
                Change::StopTask { task, .. } if *task == old.id => stopped_at = Some(cluster.now),
                Change::DrainedTask { task, at, under_way } if *task == old.id => {
                    cut_off = Some((*at, *under_way));
                }
                _ => {}
            }
        }
    });
    let (at, under_way) = cut_off.unwrap();
    let drained = at.since(stopped_at.unwrap());
    assert_eq!(under_way, 3);
    assert!((7_000..7_500).contains(&drained.as_millis()), "{drained:?}");
}

#[test]
fn who_has_just_asked_for_a_name_may_still_come() {
    let mut cluster = Cluster::of(2);
    let mut spec = asked_for(service("web"));
    cluster.up(&spec);
    cluster.settle();
    let old = cluster.ready("web").remove(0);
    spec.services.get_mut(&old.service.name).unwrap().image = "web2:1".into();
    cluster.up(&spec);
    let (mut out_at, mut let_go) = (None, None);
    cluster.go_on_for(Duration::from_secs(20), &mut |cluster| {
        let leads = (1..=2).any(|n| cluster.led_to(n, "web").contains(&old.id));
        let task = cluster.world.task(old.id).unwrap();
        out_at = out_at.or(Some(cluster.now).filter(|_| !leads));
        let_go = let_go.or(Some(cluster.now).filter(|_| task.is_let_go()));
    });
    let remembered = let_go.unwrap().since(out_at.unwrap());
    assert!((1_500..2_000).contains(&remembered.as_millis()), "{remembered:?}");
}

#[test]
fn nobody_waits_for_what_nobody_can_ask() {
    // The whole app goes: nothing is under way, and nobody is left who would ask for a name.
    let mut cluster = Cluster::of(3);
    cluster.up(&asked_for(replicas(service("web"), 3)));
    cluster.settle();
    let began = cluster.now;
    cluster.ask(&Request::Down { volumes: false });
    cluster.settle();
    assert!(cluster.world.app(&app_key()).is_none());
    assert!(cluster.now.since(began) < Duration::from_millis(200), "{:?}", cluster.now.since(began));

    // It was never ready, is not well, or is on no network.
    let let_go_at_once = |cluster: &mut Cluster, request: &Request| {
        cluster.ask(request);
        let _ = cluster.pass();
        assert!(draining(cluster, "web").is_empty(), "{}", cluster.waiting());
    };
    let stop = Request::Stop(names(&["web"]));
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:1".into(), Script::Sicken);
    cluster.up(&asked_for(service("web")));
    cluster.go_on_for(Duration::from_millis(250), &mut |_| {});
    let_go_at_once(&mut cluster, &stop);
    let mut cluster = Cluster::of(1);
    let mut web = service("web");
    (web.network_mode, web.networks) = (NetworkMode::None, BTreeMap::new());
    cluster.up(&app(&[("web", web), ("client", service("client"))]));
    cluster.settle();
    let_go_at_once(&mut cluster, &stop);
    let mut cluster = Cluster::of(1);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    let task = cluster.ready("web").remove(0);
    cluster
        .world
        .set_task_status(task.id, TaskStatus { health: Health::Unhealthy, sequence: 50, ..task.status });
    let _ = cluster.pass();
    assert!(cluster.world.task(task.id).unwrap().is_let_go(), "as ever");
}

#[test]
fn who_is_away_is_waited_for_until_its_lease_ends() {
    let mut cluster = Cluster::of(3);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    let old = cluster.ready("web").remove(0);
    let away = (1..=3).rev().find(|n| old.node != Some(node_id(*n))).unwrap();
    cluster.up(&asked_for(service("web2")));
    let _ = cluster.pass();
    cluster.set_state(away, NodeState::Unreachable);
    cluster.go_on_for(Duration::from_secs(10), &mut |cluster| {
        assert!(cluster.world.task(old.id).unwrap().is_ready());
    });
    let said = cluster.waiting();
    assert!(
        said.contains(&format!("n{away}: it is not connected, and is waited for until its lease ends")),
        "{said}"
    );
    cluster.set_state(away, NodeState::Down);
    cluster.settle_for(Duration::from_secs(10), &mut |_| {});
    assert!(cluster.world.task(old.id).unwrap().is_over());
}

#[test]
fn a_node_that_does_not_say_that_a_task_is_out_is_waited_for_a_minute() {
    let mut cluster = Cluster::of(2);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    cluster.deaf = vec![node_id(1)];
    let began = cluster.now;
    cluster.ask(&Request::Stop(names(&["web"])));
    cluster.go_on_for(Duration::from_secs(59), &mut |_| {});
    let said = cluster.waiting();
    assert!(
        said.contains("(the service was stopped): nodes are told to send nothing new to it: n1: it serves"),
        "{said}"
    );
    cluster.settle();
    assert!(cluster.tasks("web")[0].is_over());
    assert!(cluster.now.since(began) < Duration::from_secs(65));
}

#[test]
fn a_node_without_anything_that_could_ask_keeps_nobody_waiting() {
    let mut cluster = Cluster::of(3);
    let mut web = service("web");
    web.placement.constraints =
        vec![Constraint { key: "node.hostname".into(), equal: true, value: "n2".into() }];
    cluster.up(&app(&[("web", web.clone())]));
    cluster.settle();
    cluster.deaf = vec![node_id(1), node_id(3)];
    web.image = "web2:1".into();
    cluster.up(&app(&[("web", web)]));
    let began = cluster.now;
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    // The new one is watched for three seconds, and each look that finds nothing new is followed by another.
    assert!(cluster.now.since(began) < Duration::from_secs(6), "{:?}", cluster.now.since(began));
}

#[test]
fn what_cannot_be_shared_is_handed_over_when_the_old_task_has_drained_and_stopped() {
    let mut cluster = Cluster::of(2);
    let db = |image: &str| {
        let client = service("client");
        app(&[
            ("client", client),
            ("db", published(with_volume(service(image), "db_data"), 5432, PublishMode::Ingress)),
        ])
    };
    cluster.up(&db("mariadb"));
    cluster.settle();
    let old = cluster.ready("db").remove(0);
    cluster.under_way.insert(old.id, 1);
    cluster.up(&db("mariadb2"));
    cluster.go_on_for(Duration::from_secs(2), &mut |cluster| {
        assert_eq!(cluster.tasks("db").len(), 1, "it drains, and nothing else writes to its volume");
    });
    assert_eq!(cluster.world.task(old.id).unwrap().status.phase, Phase::Running);
    // Nobody is served meanwhile: a connection that never ends makes no gap of half a minute, unless the file wants it.
    cluster.settle_for(Duration::from_secs(2), &mut |cluster| {
        assert!(cluster.tasks("db").iter().filter(|task| !task.is_over()).count() <= 1);
    });
    assert_eq!(cluster.ready("db")[0].generation, Generation(2));

    // Without a gateway before it there is nothing to wait for.
    let mut cluster = Cluster::of(2);
    let db =
        |image: &str| app(&[("client", service("client")), ("db", with_volume(service(image), "db_data"))]);
    cluster.up(&db("mariadb"));
    cluster.settle();
    cluster.up(&db("mariadb2"));
    let _ = cluster.pass();
    assert!(cluster.tasks("db")[0].is_let_go(), "{}", cluster.waiting());
}

#[test]
fn a_slot_that_drains_takes_its_part_of_the_parallelism_and_holds_up_no_scaling() {
    let mut cluster = Cluster::of(3);
    cluster.up(&asked_for(replicas(service("web"), 3)));
    cluster.settle();
    let old: Vec<_> = cluster.ready("web").iter().map(|task| task.id).collect();
    cluster.under_way.extend(old.iter().map(|task| (*task, 1)));
    cluster.up(&asked_for(replicas(service("web2"), 3)));
    cluster.go_on_for(Duration::from_secs(20), &mut |cluster| {
        let going = cluster.tasks("web").iter().filter(|task| !task.is_over() && !task.is_let_go()).count();
        assert!(going <= 4, "{going}");
    });
    assert_eq!(draining(&cluster, "web").len(), 1);
    assert!(cluster.waiting().contains("waits for its turn: 1 at a time"), "{}", cluster.waiting());
    // What goes for want of work makes no room for anybody who waits for it.
    cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 1)])));
    let _ = cluster.pass();
    cluster.step();
    cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 3)])));
    cluster.go_on_for(Duration::from_secs(2), &mut |_| {});
    assert_eq!(cluster.ready("web").len(), 3, "{}", cluster.waiting());
}

#[test]
fn a_server_that_knew_of_no_draining_has_let_go_what_it_stopped() {
    let mut cluster = Cluster::of(1);
    cluster.up(&asked_for(service("web")));
    cluster.settle();
    let task = cluster.ready("web").remove(0);
    cluster.world.apply(&Change::StopTask { task: task.id, reason: StopReason::Outdated });
    let status = TaskStatus { phase: Phase::Stopping, sequence: 99, ..task.status.clone() };
    cluster.world.set_task_status(task.id, status);
    let set = crate::Assigner::new(&cluster.world).for_node(node_id(1));
    assert_eq!(set.tasks[&task.id].target, Target::Stop);
    let _ = cluster.pass();
    assert!(cluster.waiting().contains("web.1 is being stopped on n1"), "{}", cluster.waiting());
}
