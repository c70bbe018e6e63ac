//! Releases with a second set of tasks, judged by what gateways count, and with commands around them.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::{Value, json};
use wharf_api::v1::{self, Action};
use wharf_model::{Phase, TaskId};

use crate::fixture::{Api, Cluster, Node, eventually, up_with};

const ROLLOUT: &str = "/v1/apps/prod/shop/rollout";

/// Two tasks of a version behind a route, released by this strategy.
#[expect(clippy::needless_pass_by_value, reason = "callers make the values for it")]
fn web(version: u32, release: Value, hooks: Value) -> Action {
    let service = json!({
        "image": format!("web:{version}"), "mode": { "kind": "replicated", "replicas": 2 }, "networks": { "default": {} },
        "policy": { "routes": [{ "hosts": ["shop.example.com"], "port": 80 }], "release": release },
    });
    up_with(json!({
        "name": "shop", "services": { "web": service }, "networks": { "default": {} }, "policy": { "hooks": hooks },
    }))
}
fn canary() -> Value {
    json!({
        "strategy": "canary", "promote": "auto", "steps": [{ "weight": 20, "hold": 1500 }, { "weight": 50, "hold": 1500 }],
        "judge": { "errors_permille": 10, "latency_percent": 150, "requests": 20 },
    })
}
fn blue_green(promote: &str) -> Value {
    json!({ "strategy": "blue-green", "preview": "next.example.com", "promote": promote, "keep": 600_000 })
}
/// The weights of the sets to which the route leads, and the tasks behind the preview.
fn led_to(node: &Node) -> (BTreeMap<u64, u32>, BTreeSet<TaskId>) {
    let set = node.fake.set.lock().unwrap().clone().unwrap();
    let (mut weights, mut preview) = (BTreeMap::new(), BTreeSet::new());
    for route in &set.routes.services {
        for set in &route.sets {
            if route.id.preview {
                preview.extend(set.endpoints.iter().map(|endpoint| endpoint.task));
            } else if set.weight > 0 {
                weights.insert(set.generation.0, set.weight);
            }
        }
    }
    (weights, preview)
}
async fn rollout(api: &Api) -> v1::RolloutStatus {
    api.get(ROLLOUT).await.unwrap()
}
async fn ended(api: &Api, generation: u64) -> v1::RolloutStatus {
    eventually(async || {
        let status = rollout(api).await;
        assert_eq!(status.rollout.generation, generation);
        (status.rollout.state != "progressing").then_some(status)
    })
    .await
}
async fn promote(api: &Api, generation: u64) {
    let wish = json!({ "generation": generation, "client": "bob@desk", "reason": "", "whole": false });
    api.call::<v1::RolloutStatus>(Method::POST, &format!("{ROLLOUT}/promote"), &wish).await.unwrap();
}

#[tokio::test]
async fn a_canary_is_judged_by_what_the_gateways_count() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    api.done("shop", web(1, canary(), json!({}))).await;

    // Every answer is as good as the old release's: its share grows, and it takes over.
    let applied = api.act("shop", web(2, canary(), json!({}))).await.unwrap();
    let mut shares = BTreeSet::new();
    let done = eventually(async || {
        node.fake.answer(10, 0);
        let (weights, _) = led_to(&node);
        let all: u32 = weights.values().sum();
        shares.extend(weights.get(&2).map(|new| new * 100 / all));
        let status = rollout(&api).await;
        (status.rollout.state != "progressing").then_some(status)
    })
    .await;
    assert_eq!(
        (done.rollout.generation, done.rollout.state.as_str()),
        (applied.generation, "done"),
        "{done:?}"
    );
    assert_eq!(shares.into_iter().collect::<Vec<_>>(), [20, 50, 100]);
    assert_eq!(led_to(&node).0.into_keys().collect::<Vec<_>>(), [2]);

    // One in ten fails: it is taken back, with the figures.
    let applied = api.act("shop", web(3, canary(), json!({}))).await.unwrap();
    let failed = eventually(async || {
        node.fake.answer(10, u64::from(led_to(&node).0.contains_key(&3)));
        let status = rollout(&api).await;
        (status.rollout.state != "progressing").then_some(status)
    })
    .await;
    assert_eq!(
        (failed.rollout.generation, failed.rollout.state.as_str()),
        (applied.generation, "rolled_back")
    );
    let reason = &failed.rollout.reason;
    assert!(
        reason.contains("with 20 % of the requests to web, ")
            && reason.contains("requests to the new release failed"),
        "{reason}"
    );
    assert_eq!(led_to(&node).0.into_keys().collect::<Vec<_>>(), [2]);
    assert_eq!(api.app("shop").await.services[0].image, "web:2");
}

#[tokio::test]
async fn a_second_set_is_previewed_takes_over_when_promoted_and_the_old_one_answers_again() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    api.done("shop", web(1, blue_green("manual"), json!({}))).await;
    let tasks =
        || node.fake.set.lock().unwrap().as_ref().unwrap().tasks.keys().copied().collect::<BTreeSet<_>>();
    let old = tasks();
    let applied = api.act("shop", web(2, blue_green("manual"), json!({}))).await.unwrap();
    let previewed = eventually(async || {
        let waits =
            rollout(&api).await.services[0].waiting.iter().any(|why| why.contains("waits for somebody"));
        let (_, preview) = led_to(&node);
        (waits && preview.len() == 2).then_some(preview)
    })
    .await;
    assert!(previewed.is_disjoint(&old));
    assert_eq!(led_to(&node).0.into_keys().collect::<Vec<_>>(), [1]);
    promote(&api, applied.generation).await;
    assert_eq!(ended(&api, applied.generation).await.rollout.state, "done");
    assert_eq!(led_to(&node).0.into_keys().collect::<Vec<_>>(), [2]);
    assert!(old.is_subset(&tasks()), "they run on, unseen");

    let everything = tasks();
    let applied = api.act("shop", Action::Rollback { to: None }).await.unwrap();
    let back = ended(&api, applied.generation).await;
    assert_eq!(back.rollout.state, "done", "{back:?}");
    let set = node.fake.set.lock().unwrap().clone().unwrap();
    let endpoints = set.routes.services.iter().flat_map(|route| &route.sets).flat_map(|set| &set.endpoints);
    assert_eq!(endpoints.map(|endpoint| endpoint.task).collect::<BTreeSet<_>>(), old, "the very same tasks");
    assert_eq!(tasks(), everything, "and none was started");
}

#[tokio::test]
async fn commands_run_around_a_release_and_one_that_fails_leaves_all_as_it_is() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let hook = |command: &str| json!({ "service": "web", "command": [command], "timeout": 60_000 });
    let rolling = || json!({ "strategy": "rolling" });
    let hooks = json!({ "before": [hook("true")], "after": [hook("true")] });
    api.done("shop", web(1, rolling(), hooks)).await;
    let ran: Vec<v1::Task> = api.get("/v1/tasks?app=shop&all=true").await.unwrap();
    let ran: BTreeMap<_, _> = ran.into_iter().map(|task| (task.name, task.status.phase)).collect();
    assert_eq!(ran["shop-web-before-1"], Phase::Complete);
    assert_eq!(ran["shop-web-after-1"], Phase::Complete);

    let serving = led_to(&node).0;
    let hooks = json!({ "before": [hook("false")], "after": [] });
    let applied = api.act("shop", web(2, rolling(), hooks)).await.unwrap();
    let failed = ended(&api, applied.generation).await;
    assert_eq!(failed.rollout.state, "rolled_back");
    let reason = &failed.rollout.reason;
    assert!(
        reason.contains(
            "shop-web-before-1 (`false` as service web) failed: exit code 1; it said last: no such table"
        ),
        "{reason}"
    );
    assert_eq!(led_to(&node).0, serving, "nothing was replaced");
    let status = api.app("shop").await;
    assert_eq!((status.services[0].image.as_str(), status.app.release), ("web:1", 1));
}
