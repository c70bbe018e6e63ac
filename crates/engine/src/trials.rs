//! What happens to an app whose services have a second set of tasks made, or commands run around its releases, on a cluster that carries
//! decisions out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wharf_model::*;

use crate::{Assigner, Change, Request, fixtures::*, routing::Share, strategy};

const KEEP: Duration = Duration::from_secs(600);

fn route() -> RouteSpec {
    serde_json::from_value(serde_json::json!({ "hosts": ["shop.example.com"], "port": 80 })).unwrap()
}
/// Two tasks of an image behind a route and a published port.
fn web(image: &str, release: Option<ReleaseStrategy>) -> ServiceSpec {
    let mut web = published(replicas(service(image), 2), 8080, PublishMode::Ingress);
    web.policy.routes = vec![route()];
    web.policy.release = release;
    web
}
fn blue_green(promote: Promote) -> Option<ReleaseStrategy> {
    let preview = Some("next.example.com".to_owned());
    Some(ReleaseStrategy::BlueGreen { preview, promote, keep: Millis::from_secs(KEEP.as_secs()) })
}
fn canary(steps: &[u8], promote: Promote) -> Option<ReleaseStrategy> {
    let steps = steps.iter().map(|weight| CanaryStep { weight: *weight, hold: Millis::from_secs(60) });
    let judge = Judge { errors_permille: 10, latency_percent: 150, requests: 100 };
    Some(ReleaseStrategy::Canary { steps: steps.collect(), judge, promote })
}
fn asked(reason: &str) -> Asked {
    Asked { by: by(), at: Timestamp(0), reason: reason.into() }
}
fn edit(cluster: &mut Cluster, edit: impl FnOnce(&mut Rollout)) {
    let mut app = AppRecord::clone(cluster.world.app(&app_key()).unwrap());
    edit(&mut app.rollout);
    cluster.world.insert_app(app);
}
fn promote(cluster: &mut Cluster, whole: bool) {
    edit(cluster, |rollout| rollout.promoted = Some(Promotion { asked: asked(""), whole }));
}
fn back_to(cluster: &mut Cluster, number: u64) {
    let release = Release::clone(cluster.world.release(&app_key(), ReleaseNumber(number)).unwrap());
    let note = ReleaseNote { rollback_of: Some(release.number), ..ReleaseNote::default() };
    let (spec, images) = (&release.spec, &release.images);
    let changes =
        crate::noted_release(&cluster.world, &app_key(), spec, images, &by(), &note, cluster.now).unwrap();
    cluster.apply(&changes);
}

/// Unfinished tasks that nobody asked to stop, by image.
fn live(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut live = BTreeMap::new();
    for task in cluster.tasks("web").iter().filter(|task| task.stop.is_none() && !task.is_over()) {
        *live.entry(image(cluster, task)).or_default() += 1;
    }
    live
}
fn image(cluster: &Cluster, task: &Task) -> String {
    cluster.world.revision_of(&task.service, task.generation).unwrap().image.reference.clone()
}
fn images_of(cluster: &Cluster, tasks: impl IntoIterator<Item = TaskId>) -> BTreeSet<String> {
    tasks.into_iter().map(|id| image(cluster, cluster.world.task(id).unwrap())).collect()
}
/// The images to which the name, the published port and the route lead, the last with the weights of each.
fn led_to(cluster: &Cluster) -> (BTreeSet<String>, BTreeSet<String>, BTreeMap<String, u32>) {
    let set = Assigner::new(&cluster.world).for_node(node_id(1));
    let addresses = set.dns.networks.values().next().and_then(|names| names.get("web")).cloned();
    let of = |address| cluster.world.tasks().find(|task| task.addresses.values().any(|own| *own == address));
    let named = addresses.unwrap_or_default().into_iter().map(|address| of(address).unwrap().id);
    let ports = set.routes.routes.iter().flat_map(|route| &route.endpoints).map(|endpoint| endpoint.task);
    let mut weights = BTreeMap::new();
    for route in set.routes.services.iter().filter(|route| !route.id.preview) {
        for set in &route.sets {
            let tasks = set.endpoints.iter().map(|endpoint| endpoint.task);
            for image in images_of(cluster, tasks) {
                *weights.entry(image).or_default() += set.weight;
            }
        }
    }
    weights.retain(|_, weight| *weight > 0);
    (images_of(cluster, named), images_of(cluster, ports), weights)
}
/// The images that answer at the preview's host.
fn preview(cluster: &Cluster) -> BTreeSet<String> {
    let set = Assigner::new(&cluster.world).for_node(node_id(1));
    let routes = set.routes.services.iter().filter(|route| route.id.preview);
    let tasks = routes.flat_map(|route| {
        assert_eq!(route.spec.hosts, ["next.example.com"]);
        route.sets.iter().flat_map(|set| &set.endpoints).map(|endpoint| endpoint.task)
    });
    images_of(cluster, tasks.collect::<Vec<_>>())
}
fn only(image: &str) -> BTreeSet<String> {
    BTreeSet::from([image.to_owned()])
}

/// Release 1 of `old:1`, done; release 2 of `new:1` by a strategy, begun.
fn begun(strategy: Option<ReleaseStrategy>) -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("web", web("old", strategy.clone())), ("db", service("db"))]));
    cluster.settle();
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
    cluster.up(&app(&[("web", web("new", strategy)), ("db", service("db"))]));
    cluster
}
/// Passes and steps for a while that is shorter than what is kept or held.
fn for_a_moment(cluster: &mut Cluster) {
    cluster.settle_for(Duration::from_secs(10), &mut |_| {});
}

#[test]
fn a_blue_green_switch_is_one_step_with_all_of_one_release_on_either_side() {
    let mut cluster = begun(blue_green(Promote::Auto));
    let mut seen = Vec::new();
    cluster.settle_for(Duration::from_secs(10), &mut |cluster| {
        let (named, ports, weights) = led_to(cluster);
        assert_eq!(named, ports);
        assert_eq!(named, weights.keys().cloned().collect(), "{weights:?}");
        assert_eq!(named.len(), 1, "never both, never neither");
        let ready = cluster.ready("web").into_iter().filter(|task| named.contains(&image(cluster, task)));
        assert_eq!(ready.count(), 2, "and all of it");
        if seen.last() != Some(&named) {
            seen.push(named);
        }
    });
    assert_eq!(seen, [only("old:1"), only("new:1")]);
    assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
    assert_eq!(live(&cluster), [("new:1".to_owned(), 2), ("old:1".to_owned(), 2)].into(), "kept, unseen");
    assert!(cluster.last.waiting.is_empty(), "{}", cluster.waiting());

    cluster.now = cluster.now + KEEP;
    cluster.settle();
    assert_eq!(live(&cluster), [("new:1".to_owned(), 2)].into());
    assert_eq!(cluster.world.service(&key("web")).unwrap().sets, []);
    assert!(cluster.tasks("web").iter().any(|task| task.stop == Some(StopReason::Outdated)));
}

#[test]
fn a_new_set_can_be_tried_at_its_preview_until_somebody_promotes_it() {
    let mut cluster = begun(blue_green(Promote::Manual));
    for_a_moment(&mut cluster);
    assert_eq!(cluster.rollout().state, RolloutState::Progressing);
    assert_eq!(led_to(&cluster).0, only("old:1"));
    assert_eq!(preview(&cluster), only("new:1"));
    insta::assert_snapshot!(cluster.waiting(), @"web waits for somebody to let the new release go on; hint: `wharf rollout promote`, or `abort`");
    promote(&mut cluster, false);
    for_a_moment(&mut cluster);
    assert_eq!((cluster.rollout().state, led_to(&cluster).0), (RolloutState::Done, only("new:1")));
    assert_eq!(preview(&cluster), BTreeSet::new());
    let progress = &cluster.rollout().steps[&key("web").name];
    assert!(progress.switched_at.is_some() && cluster.rollout().promoted.is_none());
}

#[test]
fn a_switch_is_over_when_every_node_has_acknowledged_it() {
    let mut cluster = begun(blue_green(Promote::Manual));
    for_a_moment(&mut cluster);
    cluster.deaf = vec![node_id(1)];
    promote(&mut cluster, false);
    for_a_moment(&mut cluster);
    assert_eq!(led_to(&cluster).0, only("new:1"), "it is decided");
    assert_eq!(cluster.rollout().state, RolloutState::Progressing);
    assert!(cluster.waiting().contains("n1"), "{}", cluster.waiting());
    cluster.deaf.clear();
    for_a_moment(&mut cluster);
    assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
}

#[test]
fn what_is_kept_answers_again_without_a_container_being_started() {
    let mut cluster = begun(blue_green(Promote::Auto));
    let old: BTreeSet<_> = cluster.ready("web").iter().map(|task| task.id).collect();
    for_a_moment(&mut cluster);
    assert_eq!(led_to(&cluster).0, only("new:1"));
    back_to(&mut cluster, 1);
    // No task moves: nodes say what they serve, and that is all.
    let mut made = 0;
    for _ in 0..4 {
        let decision = cluster.pass();
        cluster.acknowledge();
        made += decision.changes.iter().filter(|change| matches!(change, Change::CreateTask(_))).count();
    }
    assert_eq!((led_to(&cluster).0, made), (only("old:1"), 0), "{}", cluster.waiting());
    for_a_moment(&mut cluster);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    let serving: BTreeSet<_> =
        cluster.ready("web").iter().map(|task| task.id).filter(|id| old.contains(id)).collect();
    assert_eq!(serving, old, "the very same tasks");
    // And what was tried is kept in turn.
    assert_eq!(live(&cluster), [("new:1".to_owned(), 2), ("old:1".to_owned(), 2)].into());
}

#[test]
fn an_aborted_release_leaves_what_serves_untouched_and_says_who_did_it() {
    for strategy in [blue_green(Promote::Manual), canary(&[50], Promote::Manual)] {
        let mut cluster = begun(strategy);
        let old: BTreeSet<_> = cluster.ready("web").iter().map(|task| task.id).collect();
        for_a_moment(&mut cluster);
        assert!(live(&cluster).contains_key("new:1"));
        edit(&mut cluster, |rollout| rollout.abort = Some(asked("too slow")));
        let _ = cluster.pass();
        let (named, _, weights) = led_to(&cluster);
        assert_eq!((named, weights.into_keys().collect()), (only("old:1"), only("old:1")), "at once");
        cluster.settle();
        assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
        insta::allow_duplicates!(insta::assert_snapshot!(cluster.rollout().reason,
            @"release 2 was aborted by ada@laptop: too slow, and the app returned to release 1"));
        assert_eq!(cluster.ready("web").iter().map(|task| task.id).collect::<BTreeSet<_>>(), old);
        assert!(cluster.tasks("web").iter().any(|task| task.stop == Some(StopReason::Withdrawn)));
        assert_eq!(cluster.world.service(&key("web")).unwrap().sets, []);
        assert_eq!(cluster.world.app(&app_key()).unwrap().release, ReleaseNumber(1));
    }
}

#[test]
fn an_app_moves_as_one_also_by_different_ways() {
    let strategy = blue_green(Promote::Auto);
    let mut cluster = Cluster::of(3);
    cluster.up(&app(&[("web", web("old", strategy.clone())), ("db", service("db"))]));
    cluster.settle();
    cluster.scripts.insert("bad:1".into(), Script::Exit(1));
    cluster.up(&app(&[("web", web("new", strategy)), ("db", service("bad"))]));
    let mut waited = false;
    cluster.settle_for(Duration::from_secs(300), &mut |cluster| {
        assert_eq!(led_to(cluster).0, only("old:1"), "nothing takes over before everything may");
        waited |= cluster.waiting().contains("waits for its other services before they take over");
    });
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
    assert!(waited);
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
}

#[test]
fn a_second_set_that_fails_ends_the_release_and_nobody_notices() {
    let strategy = blue_green(Promote::Auto);
    let mut cluster = begun(strategy);
    cluster.scripts.insert("new:1".into(), Script::Refuse);
    cluster.settle_for(Duration::from_secs(300), &mut |cluster| assert_eq!(led_to(cluster).0, only("old:1")));
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
    assert!(cluster.rollout().reason.contains("no such image"), "{}", cluster.rollout().reason);
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
}

#[test]
fn what_replaces_a_broken_release_does_not_fail_by_that() {
    let strategy = blue_green(Promote::Auto);
    let mut cluster = Cluster::of(3);
    cluster.scripts.insert("old:1".into(), Script::Exit(1));
    cluster.up(&app(&[("web", web("old", strategy.clone()))]));
    cluster.settle_for(Duration::from_secs(60), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Failed);
    cluster.up(&app(&[("web", web("new", strategy))]));
    cluster.settle_for(Duration::from_secs(60), &mut |_| {});
    assert_eq!((cluster.rollout().state, led_to(&cluster).0), (RolloutState::Done, only("new:1")));
}

#[test]
fn a_paused_rollout_begins_nothing_and_keeps_everything_serving() {
    for strategy in [None, blue_green(Promote::Auto)] {
        let mut cluster = begun(strategy.clone());
        cluster.up(&app(&[("web", web("new", strategy)), ("db", service("db")), ("late", service("late"))]));
        edit(&mut cluster, |rollout| rollout.paused = Some(asked("lunch")));
        let before = cluster.ready("web").iter().map(|task| task.id).collect::<Vec<_>>();
        cluster.settle_for(Duration::from_secs(60), &mut |_| {});
        assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
        assert_eq!(cluster.tasks("late").len(), 0);
        assert!(
            cluster.waiting().contains("the rollout was paused by ada@laptop: lunch"),
            "{}",
            cluster.waiting()
        );
        // What serves is still replaced when it ends.
        let task = cluster.ready("web").remove(0);
        let ended = TaskStatus {
            phase: Phase::Failed,
            exit: Some(Exit { code: 1, oom: false }),
            sequence: 99,
            ended_at: Some(cluster.now),
            ..task.status
        };
        cluster.world.set_task_status(task.id, ended);
        edit(&mut cluster, |rollout| rollout.paused = None);
        for_a_moment(&mut cluster);
        assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
        assert_eq!((led_to(&cluster).0, before.len()), (only("new:1"), 2));
        assert_eq!(cluster.ready("late").len(), 1);
    }
}

#[test]
fn a_blue_green_release_that_is_paused_does_not_switch() {
    let mut cluster = begun(blue_green(Promote::Manual));
    for_a_moment(&mut cluster);
    edit(&mut cluster, |rollout| rollout.paused = Some(asked("")));
    promote(&mut cluster, false);
    for_a_moment(&mut cluster);
    assert_eq!(led_to(&cluster).0, only("old:1"));
    edit(&mut cluster, |rollout| rollout.paused = None);
    for_a_moment(&mut cluster);
    assert_eq!(led_to(&cluster).0, only("new:1"));
}

#[test]
fn a_canary_gets_its_share_step_by_step_and_takes_over_in_the_end() {
    let mut cluster = Cluster::of(3);
    let strategy = canary(&[10, 50, 90], Promote::Auto);
    let four = |image| replicas(web(image, strategy.clone()), 4);
    cluster.up(&app(&[("web", four("old"))]));
    cluster.settle();
    cluster.up(&app(&[("web", four("new"))]));
    let mut seen = Vec::new();
    cluster.settle_for(Duration::from_secs(400), &mut |cluster| {
        let (named, ports, weights) = led_to(cluster);
        assert_eq!((named.len(), ports.len()), (1, 1), "names and ports lead to one release");
        assert!(named.contains("old:1") || !weights.contains_key("old:1"));
        let share = |image: &str| weights.get(image).copied().unwrap_or(0);
        let all = share("old:1") + share("new:1");
        let ready = cluster.ready("web").iter().filter(|task| image(cluster, task) == "new:1").count();
        let now = (share("new:1") * 100 / all, ready);
        if seen.last().is_none_or(|(percent, _)| *percent != now.0) {
            seen.push(now);
        }
    });
    // Each share with as many tasks as answer it: none, one of four, two, and all from the last step on.
    assert_eq!(seen, [(0, 0), (10, 1), (50, 2), (90, 4), (100, 4)], "{}", cluster.waiting());
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert_eq!(live(&cluster), [("new:1".to_owned(), 4)].into());
    let verdict = &cluster.rollout().steps[&key("web").name].verdict;
    assert!(verdict.contains("requests to the new release, 0 failed"), "{verdict}");
}

#[test]
fn a_canary_that_fails_more_than_the_old_release_is_taken_back_with_the_figures() {
    let mut cluster = begun(canary(&[50, 100], Promote::Auto));
    cluster.traffic.insert("new:1".into(), (50, 5));
    cluster.settle_for(Duration::from_secs(400), &mut |cluster| {
        assert_eq!(led_to(cluster).0, only("old:1"));
        let old = cluster.ready("web").into_iter().filter(|task| image(cluster, task) == "old:1");
        assert_eq!(old.count(), 2, "all of the old release serves all the time");
    });
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
    insta::assert_snapshot!(cluster.rollout().reason, @"release 2 failed, and the app returned to release 1: with 50 % of the requests to web, 5 of 50 requests to the new release failed (10.0 %), and 0 of 50 to the old one (0.0 %); at most 1.0 % more may fail");
    assert_eq!(led_to(&cluster).2.into_keys().collect::<BTreeSet<_>>(), only("old:1"));
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
}

#[test]
fn without_enough_requests_a_step_is_held_longer_and_passes_only_without_a_failure() {
    for (failures, state) in [(0, RolloutState::Done), (1, RolloutState::RolledBack)] {
        let mut cluster = begun(canary(&[50], Promote::Auto));
        cluster.traffic.insert("new:1".into(), (0, 0));
        for_a_moment(&mut cluster);
        let since = cluster.rollout().steps[&key("web").name].since.unwrap();
        cluster.traffic.insert("new:1".into(), (1, failures));
        cluster.count();
        cluster.traffic.insert("new:1".into(), (0, 0));
        cluster.now = since + Duration::from_secs(299);
        let _ = cluster.pass();
        assert_eq!(cluster.rollout().state, RolloutState::Progressing);
        assert!(
            cluster.waiting().contains("too few to judge: 1 requests to the new release"),
            "{}",
            cluster.waiting()
        );
        cluster.now = since + Duration::from_secs(300);
        cluster.settle();
        assert_eq!(cluster.rollout().state, state, "{}", cluster.rollout().reason);
    }
}

#[test]
fn a_step_begins_anew_when_another_server_counts() {
    let mut cluster = begun(canary(&[50], Promote::Auto));
    for_a_moment(&mut cluster);
    let since = cluster.rollout().steps[&key("web").name].since.unwrap();
    cluster.now = since + Duration::from_secs(59);
    cluster.forget_figures();
    let _ = cluster.pass();
    assert!(cluster.waiting().contains("no gateway has said yet"), "{}", cluster.waiting());
    cluster.count();
    let _ = cluster.pass();
    let anew = cluster.rollout().steps[&key("web").name].since.unwrap();
    assert!(anew > since, "the step begins anew");
    cluster.now = since + Duration::from_secs(61);
    let _ = cluster.pass();
    assert_eq!(cluster.rollout().steps[&key("web").name].step, 0, "it has been held for two seconds");
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn a_canary_goes_on_by_hand_where_the_file_says_so() {
    let mut cluster = begun(canary(&[10, 50], Promote::Manual));
    cluster.settle();
    let step = |cluster: &Cluster| cluster.rollout().steps[&key("web").name].step;
    assert_eq!(step(&cluster), 0);
    assert!(
        cluster.waiting().contains("waits for somebody to let the new release go on ("),
        "{}",
        cluster.waiting()
    );
    promote(&mut cluster, false);
    cluster.settle();
    assert_eq!((step(&cluster), cluster.rollout().state), (1, RolloutState::Progressing));
    promote(&mut cluster, true);
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    // Whoever is in a hurry need not wait for the judge.
    let mut cluster = begun(canary(&[10, 50], Promote::Auto));
    promote(&mut cluster, true);
    for_a_moment(&mut cluster);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}

#[test]
fn a_release_in_place_of_one_that_is_tried_returns_to_what_was_before_both() {
    let mut cluster = begun(canary(&[50], Promote::Manual));
    for_a_moment(&mut cluster);
    assert!(live(&cluster).contains_key("new:1"));
    cluster.scripts.insert("bad:1".into(), Script::Refuse);
    cluster.up(&app(&[("web", web("bad", canary(&[50], Promote::Manual))), ("db", service("db"))]));
    assert_eq!(cluster.rollout().before.unwrap().state, RolloutState::Superseded);
    assert_eq!(strategy::share(&cluster.world, &key("web"), Generation(2)), Share::Hidden, "at once");
    cluster.settle_for(Duration::from_secs(200), &mut |cluster| assert_eq!(led_to(cluster).0, only("old:1")));
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
    assert_eq!(cluster.world.app(&app_key()).unwrap().release, ReleaseNumber(1));
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into());
}

#[test]
fn the_same_file_again_is_no_change_while_it_is_tried_and_nothing_else_is_either() {
    let mut cluster = begun(blue_green(Promote::Manual));
    for_a_moment(&mut cluster);
    let same = app(&[("web", web("new", blue_green(Promote::Manual))), ("db", service("db"))]);
    let plan = crate::plan(&cluster.world, &app_key(), &same, &images(&same));
    assert!(plan.is_noop(), "{plan}");
    let scale = Request::Scale(BTreeMap::from([("web".parse().unwrap(), 5)]));
    let refused = crate::request(&cluster.world, &app_key(), &scale, &by(), cluster.now).unwrap_err();
    assert!(refused.to_string().starts_with("release 2 is being tried"), "{refused}");
    cluster.ask(&Request::Down { volumes: false });
    cluster.settle();
    assert!(cluster.world.app(&app_key()).is_none());
}

#[test]
fn a_plan_says_how_a_release_goes_and_why_it_cannot() {
    let planned = |spec: &AppSpec| {
        let mut cluster = Cluster::of(1);
        let mut before = spec.clone();
        before.services.values_mut().for_each(|service| {
            service.image = "before:1".into();
            service.policy.release = None;
        });
        before.policy.release = None;
        cluster.up(&before);
        cluster.settle();
        crate::plan(&cluster.world, &app_key(), spec, &images(spec)).to_string()
    };
    let with = |edit: &dyn Fn(&mut ServiceSpec)| {
        let mut spec = web("web", blue_green(Promote::Auto));
        edit(&mut spec);
        app(&[("web", spec)])
    };
    insta::assert_snapshot!(planned(&with(&|_| {})), @"± service  web: image before:1 -> web:1, strategy rolling -> blue-green (2 more tasks are made beside the old; all requests go there once all are ready, until then at next.example.com only; the old are kept for 10m)");
    insta::assert_snapshot!(planned(&with(&|web| *web = with_volume(replicas(web.clone(), 1), "data"))), @r"
    ± service  web: image before:1 -> web:1, strategy rolling -> blue-green
    refused: service web cannot be released blue-green: two tasks must not write to volume data at once; hint: give it `x-wharf: {release: {strategy: rolling}}`
    ");
    insta::assert_snapshot!(planned(&with(&|web| web.policy.release = canary(&[5, 50], Promote::Manual))), @"± service  web: image before:1 -> web:1, strategy rolling -> canary (new tasks get a part of the requests and are judged by it: 5 % for 1m, 50 % for 1m, each until somebody promotes it)");
    let routeless = with(&|web| {
        web.policy.release = canary(&[5], Promote::Auto);
        web.policy.routes.clear();
    });
    insta::assert_snapshot!(planned(&routeless), @r"
    ± service  web: image before:1 -> web:1, strategy rolling -> canary
    refused: service web cannot be released canary: it has no HTTP route in `x-wharf.routes`, and only requests can be divided; hint: give it `x-wharf: {release: {strategy: rolling}}`
    ");
    insta::assert_snapshot!(planned(&with(&|web| web.resources.reservations.memory = Some(Bytes(3 << 30)))), @r"
    ± service  web: image before:1 -> web:1, strategy rolling -> blue-green (2 more tasks are made beside the old; all requests go there once all are ready, until then at next.example.com only; the old are kept for 10m)
    refused: there is room for 0 of the 2 tasks that service web has beside the old ones until these go: 1 has too little memory (need 3 GiB, free is 2 GiB); hint: add a node, lower `deploy.resources.reservations`, or release it with `strategy: rolling`
    ");
    // What holds for the app holds for the services that it is possible for.
    let mut spec = app(&[("web", web("web", None)), ("db", with_volume(service("db"), "data"))]);
    spec.policy.release = blue_green(Promote::Auto);
    insta::assert_snapshot!(planned(&spec), @r"
    ± service  db: image before:1 -> db:1 (task by task, not blue-green: two tasks must not write to volume data at once) (the old task stops before the new one starts: two tasks must not write to volume data at once)
    ± service  web: image before:1 -> web:1 (2 more tasks are made beside the old; all requests go there once all are ready, until then at next.example.com only; the old are kept for 10m)
    ~ app      shop: strategy rolling -> blue-green
    ");
}

// --- commands around a release ---

fn hook(service: &str, command: &str) -> ReleaseHook {
    ReleaseHook {
        service: service.parse().unwrap(),
        command: vec![command.into()],
        timeout: Millis::from_secs(60),
    }
}
/// An app with commands before and after its releases.
fn hooked(image: &str, before: &[&str], after: &[&str]) -> AppSpec {
    let mut spec = app(&[("web", published(service(image), 9000, PublishMode::Host)), ("db", service("db"))]);
    let hooks = |names: &[&str]| names.iter().map(|name| hook("web", name)).collect();
    spec.policy.hooks = ReleaseHooks { before: hooks(before), after: hooks(after) };
    spec
}
fn hooks(cluster: &Cluster) -> Vec<(String, String, Phase)> {
    let hooks = cluster.world.hooks_of(&app_key());
    hooks.map(|task| (task.name(), image(cluster, task), task.status.phase)).collect()
}

#[test]
fn commands_run_before_anything_is_replaced_and_after_everything_is() {
    let mut cluster = Cluster::of(2);
    cluster.up(&hooked("old", &[], &[]));
    cluster.settle();
    cluster.up(&hooked("new", &["migrate", "index"], &["warm"]));
    let mut seen = Vec::new();
    cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
        let running = cluster.world.hooks_of(&app_key()).filter(|task| !task.is_over());
        assert!(running.count() <= 1, "one after the other");
        let done =
            cluster.world.hooks_of(&app_key()).filter(|task| task.status.phase == Phase::Complete).count();
        let served = cluster.ready("web").first().map(|task| image(cluster, task));
        if seen.last() != Some(&(done, served.clone())) {
            seen.push((done, served.clone()));
        }
        let touched = cluster.tasks("web").iter().any(|task| image(cluster, task) == "new:1");
        assert!(!touched || done >= 2, "before they are through nothing begins");
        assert!(done < 3 || served.as_deref() == Some("new:1"));
    });
    let complete = |name: &str| (name.to_owned(), "new:1".to_owned(), Phase::Complete);
    let all = ["shop-web-before-1", "shop-web-before-2", "shop-web-after-1"];
    assert_eq!(hooks(&cluster), all.map(complete), "with the new release's image");
    assert_eq!(cluster.rollout().state, RolloutState::Done, "{}", cluster.waiting());
    assert_eq!(cluster.rollout().pending, None);
    // Nothing leads to them, and no service counts them.
    let task = cluster.world.hooks_of(&app_key()).next().unwrap();
    assert!(cluster.tasks("web").iter().all(|other| other.id != task.id));
    cluster.up(&hooked("newer", &["again"], &[]));
    cluster.settle();
    let names: Vec<_> = hooks(&cluster).into_iter().map(|(name, image, _)| (name, image)).collect();
    assert_eq!(
        names,
        [("shop-web-before-1".to_owned(), "newer:1".to_owned())],
        "those of the latest release are kept"
    );
}

#[test]
fn a_commands_container_is_made_as_the_services_without_what_one_task_alone_can_have() {
    let mut cluster = Cluster::of(1);
    cluster.up(&hooked("web", &["migrate"], &[]));
    let _ = cluster.pass();
    let set = Assigner::new(&cluster.world).for_node(node_id(1));
    let [task] = &set.tasks.values().collect::<Vec<_>>()[..] else { panic!("the command and nothing else") };
    assert_eq!((task.name.as_str(), task.target), ("shop-web-before-1", Target::Run));
    assert_eq!(task.spec.container.command, Some(vec!["migrate".to_owned()]));
    assert_eq!((task.spec.ports.len(), task.attachments.len()), (0, 1));
    assert_eq!(cluster.world.load(node_id(1)).host_ports, BTreeMap::new());
    insta::assert_snapshot!(cluster.waiting(), @"shop stays as it is until shop-web-before-1 is through, which is pending on n1");
}

#[test]
fn a_command_that_fails_before_a_release_leaves_everything_as_it_is() {
    let mut cluster = Cluster::of(1);
    cluster.up(&hooked("old", &[], &[]));
    cluster.settle();
    let before = cluster.ready("web").remove(0).id;
    cluster.scripts.insert("migrate".into(), Script::Exit(3));
    let mut next = hooked("new", &["migrate", "index"], &[]);
    next.services.remove::<ServiceName>(&"db".parse().unwrap());
    cluster.up(&next);
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
    insta::assert_snapshot!(cluster.rollout().reason, @"release 2 failed before anything was replaced, and the app stays on release 1: shop-web-before-1 (`migrate` as service web) failed: exit code 3; hint: `wharf logs --task shop-web-before-1` shows more");
    assert_eq!(cluster.ready("web").remove(0).id, before);
    assert_eq!(cluster.ready("db").len(), 1, "what the release would have removed goes on");
    assert_eq!(hooks(&cluster).len(), 1, "the second one never ran");
    assert_eq!(cluster.world.app(&app_key()).unwrap().release, ReleaseNumber(1));
    // Corrected, it runs again: it is another release.
    cluster.scripts.clear();
    cluster.up(&next);
    cluster.settle();
    assert_eq!((cluster.rollout().state, cluster.tasks("db").len()), (RolloutState::Done, 0));
}

#[test]
fn a_first_release_whose_command_fails_starts_nothing() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("migrate".into(), Script::Exit(3));
    cluster.up(&hooked("web", &["migrate"], &[]));
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Failed);
    assert_eq!(cluster.tasks("web").len() + cluster.tasks("db").len(), 0);
    cluster.scripts.clear();
    cluster.up(&hooked("web", &["migrate"], &[]));
    cluster.settle();
    assert_eq!((cluster.rollout().state, cluster.ready("web").len()), (RolloutState::Done, 1));
}

#[test]
fn a_release_of_which_nothing_was_started_is_no_place_to_return_to() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("migrate".into(), Script::Exit(3));
    cluster.up(&hooked("web", &["migrate"], &[]));
    cluster.settle();
    cluster.up(&hooked("web", &[], &[]));
    for_a_moment(&mut cluster);
    assert_eq!(cluster.world.app(&app_key()).unwrap().previous, None);
    cluster.up(&hooked("next", &["wait"], &[]));
    edit(&mut cluster, |rollout| rollout.abort = Some(asked("")));
    cluster.settle();
    assert_eq!((cluster.rollout().state, cluster.ready("web").len()), (RolloutState::RolledBack, 1));
}

#[test]
fn a_command_that_fails_after_a_release_returns_all_of_it() {
    let mut cluster = Cluster::of(3);
    let spec = |image: &str, after: &[&str]| {
        let mut spec = app(&[("web", web(image, blue_green(Promote::Auto)))]);
        spec.policy.hooks.after = after.iter().map(|name| hook("web", name)).collect();
        spec
    };
    cluster.up(&spec("old", &[]));
    cluster.settle();
    cluster.scripts.insert("smoke".into(), Script::Exit(1));
    cluster.up(&spec("new", &["smoke"]));
    let mut switched = false;
    cluster.settle_for(Duration::from_secs(100), &mut |cluster| {
        switched |= led_to(cluster).0 == only("new:1");
        let returns = switched && cluster.world.app(&app_key()).unwrap().release == ReleaseNumber(1);
        assert!(!returns || led_to(cluster).0 == only("old:1"), "what was kept answers at once");
    });
    assert!(switched, "it had taken over");
    assert_eq!((cluster.rollout().state, led_to(&cluster).0), (RolloutState::RolledBack, only("old:1")));
    assert!(
        cluster.rollout().reason.contains("shop-web-after-1 (`smoke` as service web) failed"),
        "{}",
        cluster.rollout().reason
    );
    assert_eq!(live(&cluster), [("old:1".to_owned(), 2)].into(), "the very tasks that were kept");
    assert_eq!(cluster.tasks("web").len(), 4, "nothing was started for it");
}

#[test]
fn a_command_runs_again_only_if_its_node_was_lost_and_the_release_says_so() {
    let mut cluster = Cluster::of(2);
    cluster.scripts.insert("migrate".into(), Script::Serve);
    cluster.up(&hooked("web", &["migrate"], &[]));
    for_a_moment(&mut cluster);
    let [(name, _, Phase::Running)] = &hooks(&cluster)[..] else { panic!("{:?}", hooks(&cluster)) };
    assert_eq!(name, "shop-web-before-1");
    let node = cluster.world.hooks_of(&app_key()).next().unwrap().node.unwrap();
    let n = if node == node_id(1) { 1 } else { 2 };
    cluster.set_state(n, NodeState::Unreachable);
    cluster.settle_for(Duration::from_secs(30), &mut |_| {});
    assert_eq!(hooks(&cluster).len(), 1, "it may well be running");
    cluster.set_state(n, NodeState::Down);
    cluster.scripts.clear();
    cluster.settle();
    let phases: Vec<_> = hooks(&cluster).into_iter().map(|(_, _, phase)| phase).collect();
    assert_eq!(phases, [Phase::Lost, Phase::Complete]);
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    let reason = format!("shop-web-before-1 ran again because its node n{n} was lost with it");
    assert_eq!(cluster.rollout().reason, reason);
}

#[test]
fn a_command_that_takes_too_long_is_stopped_and_has_failed() {
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("migrate".into(), Script::Serve);
    cluster.up(&hooked("web", &["migrate"], &[]));
    cluster.settle_for(Duration::from_secs(59), &mut |_| {});
    assert_eq!(cluster.rollout().state, RolloutState::Progressing);
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Failed);
    assert!(
        cluster.rollout().reason.contains("failed: it took longer than 1m"),
        "{}",
        cluster.rollout().reason
    );
}

#[test]
fn an_abort_stops_the_command_that_runs_and_the_next_release_waits_for_its_end() {
    let mut cluster = Cluster::of(1);
    cluster.up(&hooked("old", &[], &[]));
    cluster.settle();
    cluster.scripts.insert("migrate".into(), Script::Serve);
    cluster.up(&hooked("new", &["migrate"], &[]));
    for_a_moment(&mut cluster);
    edit(&mut cluster, |rollout| rollout.abort = Some(asked("")));
    let _ = cluster.pass();
    let _ = cluster.pass();
    let task = cluster.world.hooks_of(&app_key()).next().unwrap();
    assert_eq!(task.stop, Some(StopReason::Withdrawn));
    cluster.up(&hooked("newer", &["index"], &[]));
    let _ = cluster.pass();
    assert_eq!(hooks(&cluster).len(), 1, "{}", cluster.waiting());
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    assert_eq!(
        cluster.ready("web").iter().map(|task| image(&cluster, task)).collect::<Vec<_>>(),
        ["newer:1"]
    );
}

// --- whatever happens ---

#[test]
fn what_serves_is_not_taken_away_to_be_tried() {
    let mut cluster = Cluster::of(3);
    let go_on = |cluster: &mut Cluster| {
        let _ = cluster.pass();
        cluster.now = cluster.now + Duration::from_millis(10);
        cluster.step();
    };
    cluster.up(&app(&[("web", web("good", None))]));
    go_on(&mut cluster);
    cluster.scripts.insert("bad:1".to_owned(), Script::Exit(1));
    cluster.up(&app(&[("web", web("bad", None))]));
    go_on(&mut cluster);
    // A release that has begun is given up for one with a second set that is as what still serves.
    cluster.scripts.insert("before".to_owned(), Script::Exit(0));
    let mut again = app(&[("web", web("good", blue_green(Promote::Auto)))]);
    again.policy.hooks.before = vec![hook("web", "before")];
    cluster.up(&again);
    let served = std::cell::Cell::new(false);
    cluster.settle_for(KEEP, &mut |cluster| {
        let (names, ports, _) = led_to(cluster);
        served.set(served.get() || !names.is_empty());
        assert!(!served.get() || (!names.is_empty() && !ports.is_empty()), "{}", cluster.waiting());
    });
    assert!(served.get());
    assert_eq!(live(&cluster), [("good:1".to_owned(), 2)].into());
}

mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::decide;

    #[derive(Debug, Clone)]
    enum Act {
        Release(Draft),
        Back,
        Pause,
        Resume,
        Promote(bool),
        Abort,
        Crash(u8),
        State(u8, NodeState),
        Traffic(u8, u64),
        OtherLeader,
        Steps(u8),
        Wait(u16),
    }
    /// A release: a version of one service by a strategy, another beside it, and how its commands end.
    #[derive(Debug, Clone)]
    struct Draft {
        version: u8,
        strategy: u8,
        other: u8,
        bad: bool,
        before: Option<i64>,
        after: Option<i64>,
    }
    fn draft() -> impl Strategy<Value = Draft> {
        let command = || prop_oneof![4 => Just(None), 2 => Just(Some(0)), 1 => Just(Some(1))];
        (0u8..4, 0u8..5, 0u8..2, prop::bool::weighted(0.15), command(), command()).prop_map(
            |(version, strategy, other, bad, before, after)| Draft {
                version,
                strategy,
                other,
                bad,
                before,
                after,
            },
        )
    }
    fn act() -> impl Strategy<Value = Act> {
        let state = prop_oneof![Just(NodeState::Ready), Just(NodeState::Unreachable), Just(NodeState::Down)];
        prop_oneof![
            4 => draft().prop_map(Act::Release),
            1 => Just(Act::Back),
            1 => Just(Act::Pause),
            2 => Just(Act::Resume),
            2 => any::<bool>().prop_map(Act::Promote),
            1 => Just(Act::Abort),
            1 => (0u8..8).prop_map(Act::Crash),
            1 => (2u8..4, state).prop_map(|(node, state)| Act::State(node, state)),
            1 => (0u8..4, 0u64..5).prop_map(|(version, failures)| Act::Traffic(version, failures)),
            1 => Just(Act::OtherLeader),
            8 => (1u8..12).prop_map(Act::Steps),
            4 => (1u16..400).prop_map(Act::Wait),
        ]
    }

    fn spec_of(draft: &Draft, scripts: &mut BTreeMap<String, Script>) -> AppSpec {
        let strategy = match draft.strategy {
            0 => None,
            1 => blue_green(Promote::Auto),
            2 => blue_green(Promote::Manual),
            3 => canary(&[20, 60], Promote::Auto),
            _ => canary(&[50, 100], Promote::Manual),
        };
        let image = format!("web{}{}", draft.version, if draft.bad { "bad" } else { "" });
        let script = if draft.bad { Script::Exit(1) } else { Script::Serve };
        scripts.insert(format!("{image}:1"), script);
        let web = web(&image, strategy);
        let mut spec = app(&[("web", web), ("db", service(&format!("db{}", draft.other)))]);
        let hooks = |when: &str, code: Option<i64>, scripts: &mut BTreeMap<String, Script>| {
            let code = code.into_iter();
            let named = code.map(|code| {
                scripts.insert(format!("{when}{code}"), Script::Exit(code));
                hook("web", &format!("{when}{code}"))
            });
            named.collect()
        };
        spec.policy.hooks.before = hooks("before", draft.before, scripts);
        spec.policy.hooks.after = hooks("after", draft.after, scripts);
        spec
    }

    fn play(cluster: &mut Cluster, act: &Act) {
        let under_way = !cluster.rollout().state.is_over();
        match act {
            Act::Release(draft) => {
                let mut scripts = std::mem::take(&mut cluster.scripts);
                let spec = spec_of(draft, &mut scripts);
                cluster.scripts = scripts;
                let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
                if plan.refusals.is_empty() && !plan.is_noop() {
                    cluster.up(&spec);
                }
            }
            Act::Back => {
                let app = cluster.world.app(&app_key()).unwrap();
                let target = crate::rollback_target(&cluster.world, app).map(|release| release.number.0);
                if let Some(number) = target {
                    back_to(cluster, number);
                }
            }
            Act::Pause if under_way => edit(cluster, |rollout| rollout.paused = Some(asked(""))),
            Act::Promote(whole) if under_way => promote(cluster, *whole),
            Act::Abort if under_way => edit(cluster, |rollout| {
                (rollout.abort, rollout.paused) = (Some(asked("")), None);
            }),
            Act::Resume => edit(cluster, |rollout| rollout.paused = None),
            Act::Pause | Act::Promote(_) | Act::Abort => {}
            Act::Crash(n) => {
                let running = cluster.world.tasks().filter(|task| task.status.phase == Phase::Running);
                let running: Vec<_> = running.cloned().collect();
                if let Some(task) = running.get(usize::from(*n) % running.len().max(1)) {
                    let status = TaskStatus {
                        phase: Phase::Failed,
                        exit: Some(Exit { code: 1, oom: false }),
                        ended_at: Some(cluster.now),
                        sequence: task.status.sequence + 1,
                        ..task.status.clone()
                    };
                    cluster.world.set_task_status(task.id, status);
                }
            }
            Act::State(n, state) => cluster.set_state(*n, *state),
            Act::Traffic(version, failures) => {
                cluster.traffic.insert(format!("web{version}:1"), (50, *failures));
            }
            Act::OtherLeader => cluster.forget_figures(),
            Act::Steps(n) => (0..*n).for_each(|_| {
                let _ = cluster.pass();
                cluster.now = cluster.now + Duration::from_millis(10);
                cluster.step();
            }),
            Act::Wait(seconds) => cluster.now = cluster.now + Duration::from_secs(u64::from(*seconds)),
        }
    }

    /// One pass, and everything that must hold of it.
    fn checked_pass(cluster: &mut Cluster) -> Result<(), TestCaseError> {
        cluster.world.observe(cluster.now);
        let named = led_to(cluster).0;
        let app = AppRecord::clone(cluster.world.app(&app_key()).unwrap());
        let before = cluster.world.clone();
        let again = decide(&before, &app_key(), cluster.now, &mut cluster.ids.clone());
        let decision = cluster.pass();
        prop_assert_eq!(&decision.changes, &again.changes, "the same input gives the same answer");
        prop_assert!(
            named.is_empty() || !led_to(cluster).0.is_empty(),
            "a decision takes the last task out of the names"
        );
        let rollout = &app.rollout;
        let made = decision.changes.iter().filter_map(|change| match change {
            Change::CreateTask(task) if task.hook.is_none() => Some(task),
            _ => None,
        });
        for task in made {
            let serving = strategy::fitting(
                &before,
                &task.service,
                cluster.world.service(&task.service).unwrap().generation,
            );
            let in_place = serving.contains(&task.generation);
            prop_assert!(
                rollout.pending.is_none()
                    || before.revision_of(&task.service, task.generation).unwrap().release < app.release,
                "commands are not through: {:?}",
                task
            );
            let starts = rollout.paused.is_some() && !rollout.state.is_over() && !in_place;
            // One more like others that were made already.
            let alike = strategy::fitting(&before, &task.service, task.generation);
            let again = before.tasks_of(&task.service).any(|other| alike.contains(&other.generation));
            prop_assert!(!starts || again, "it is paused, and begins something: {:?}", task);
        }
        // A command runs once, unless its node was lost with it.
        let mut runs = BTreeMap::<_, Vec<Phase>>::new();
        for task in cluster.world.hooks_of(&app_key()) {
            let hook = task.hook.as_ref().unwrap();
            runs.entry((hook.rollout, hook.stage, hook.number)).or_default().push(task.status.phase);
        }
        for (which, phases) in runs {
            let others = &phases[..phases.len() - 1];
            prop_assert!(
                others.iter().all(|phase| *phase == Phase::Lost),
                "{:?} ran again: {:?}",
                which,
                phases
            );
        }
        // At most one set is to take over, and no set is there twice.
        for record in cluster.world.services_of(&app_key()) {
            let next = record.sets.iter().filter(|set| matches!(set.role, SetRole::Next { .. }));
            prop_assert!(next.count() <= 1);
            let generations: BTreeSet<_> = record.sets.iter().map(|set| set.generation).collect();
            prop_assert!(
                generations.len() == record.sets.len() && !generations.contains(&record.generation),
                "{:?}",
                record
            );
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2000, ..ProptestConfig::default() })]

        #[test]
        fn whatever_people_ask_for_nothing_is_lost_and_every_rollout_ends(
            first in draft(),
            acts in prop::collection::vec(act(), 0..30),
        ) {
            let mut cluster = Cluster::of(3);
            let mut scripts = BTreeMap::new();
            let spec = spec_of(&Draft { bad: false, ..first }, &mut scripts);
            cluster.scripts = scripts;
            cluster.up(&spec);
            for act in &acts {
                checked_pass(&mut cluster)?;
                cluster.step();
                play(&mut cluster, act);
            }
            for n in 2..4 {
                cluster.set_state(n, NodeState::Ready);
            }
            edit(&mut cluster, |rollout| rollout.paused = None);
            for _ in 0..2 {
                if !cluster.rollout().state.is_over() {
                    promote(&mut cluster, true);
                }
                cluster.settle();
            }
            checked_pass(&mut cluster)?;
            let rollout = cluster.rollout();
            prop_assert!(rollout.state.is_over(), "{:?} waits for {}", rollout, cluster.waiting());
            prop_assert!(rollout.state == RolloutState::Done || !rollout.reason.is_empty());
            if rollout.state != RolloutState::Failed {
                for record in cluster.world.services_of(&app_key()) {
                    prop_assert!(record.next().is_none(), "{:?}", record);
                    let Mode::Replicated { replicas } = record.mode else { continue };
                    let serving = strategy::fitting(&cluster.world, &record.key, record.generation);
                    let tasks = cluster.world.tasks_of(&record.key);
                    let ready = tasks.filter(|task| task.is_ready() && serving.contains(&task.generation)).count();
                    prop_assert_eq!(ready, usize::try_from(replicas).unwrap(), "{}", cluster.waiting());
                }
            }
        }
    }
}
