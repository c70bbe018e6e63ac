//! How the leader hands requests from a task to its successor: by what nodes say that they serve and have under way.

use serde_json::json;
use wharf_api::v1::{Action, AppStatus};
use wharf_model::{Phase, Target, TaskId};

use crate::fixture::{Api, Cluster, Node, eventually, up_with};

/// A published service, and one with a task on every node that may ask for it by name.
fn shop(version: u32) -> Action {
    let on = json!({ "default": {} });
    let web = json!({ "image": format!("web:{version}"), "networks": on, "ports": [{ "target": 80, "published": 8080 }] });
    let client = json!({ "image": "client:1", "networks": on, "mode": { "kind": "global" } });
    let services = json!({ "web": web, "client": client });
    up_with(json!({ "name": "shop", "networks": on, "services": services }))
}

/// The tasks of the published service that are not over, the oldest first, and of which version they are.
fn web(status: &AppStatus) -> Vec<(TaskId, String)> {
    let web = status.services.iter().find(|service| service.name == "web").unwrap();
    let live = web.tasks.iter().filter(|task| !task.status.phase.is_over());
    let mut tasks: Vec<_> = live.map(|task| (task.id.parse().unwrap(), task.image.clone())).collect();
    tasks.sort();
    tasks
}
fn target(nodes: &[&Node], task: TaskId) -> Option<Target> {
    let sets = nodes.iter().filter_map(|node| node.fake.set.lock().unwrap().clone());
    sets.filter_map(|set| Some(set.tasks.get(&task)?.target)).next()
}
fn led_to(nodes: &[&Node], task: TaskId) -> bool {
    let sets = nodes.iter().filter_map(|node| node.fake.set.lock().unwrap().clone());
    let mut routes = sets.flat_map(|set| set.routes.routes);
    routes.any(|route| route.endpoints.iter().any(|endpoint| endpoint.task == task))
}
/// Once the app says all this of what it waits for, and not that.
async fn said(api: &Api, what: &[&str], and_not: &str) -> String {
    eventually(async || {
        let status = api.app("shop").await;
        let mut waiting = status.services.into_iter().flat_map(|service| service.waiting);
        waiting.find(|waiting| what.iter().all(|part| waiting.contains(part)) && !waiting.contains(and_not))
    })
    .await
}

#[tokio::test]
async fn a_task_goes_on_until_everybody_leads_to_its_successor_and_its_requests_have_ended() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let (api, nodes) = (cluster.admin().await, [&a, &b]);
    let status = api.done("shop", shop(1)).await;
    let [(old, _)] = web(&status)[..] else { panic!("{status:?}") };

    // One node goes on with the names and routes that it has.
    a.fake.set_deaf(true);
    let applied = api.act("shop", shop(2)).await.unwrap();
    let waits = ["every node leads to it", ": a: it serves the names and routes of revision "];
    let _ = said(&api, &waits, "; b:").await;
    let status = api.app("shop").await;
    let [(first, _), (new, ref image)] = web(&status)[..] else { panic!("{status:?}") };
    assert_eq!((first, image.as_str()), (old, "web:2"));
    assert!(led_to(&nodes, old) && led_to(&nodes, new), "both serve");

    // It follows; the other one's gateway has something under way with the old task.
    b.fake.set_under_way(old, 2);
    a.fake.set_deaf(false);
    let text = said(&api, &["2 requests under way, up to "], "nodes are told").await;
    assert!(
        text.starts_with("web.1 is draining on ") && text.contains("(replaced by a newer release)"),
        "{text}"
    );
    assert_eq!((led_to(&nodes, old), target(&nodes, old)), (false, Some(Target::Run)));
    let status = api.app("shop").await;
    let tasks = status.services.iter().flat_map(|service| &service.tasks);
    let drains: Vec<_> = tasks.filter_map(|task| task.draining.clone()).collect();
    assert_eq!(
        drains.iter().map(|drain| (drain.under_way, drain.until.is_some())).collect::<Vec<_>>(),
        [(2, true)]
    );
    assert_eq!(status.app.rollout.state, "progressing");

    // They end.
    b.fake.set_under_way(old, 0);
    let done = eventually(async || {
        let status = api.app("shop").await;
        (status.app.rollout.generation == applied.generation && status.app.rollout.state == "done")
            .then_some(status)
    })
    .await;
    assert_eq!(web(&done).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [new]);
    assert_eq!([&a, &b].map(|node| node.fake.status(old).phase).into_iter().max(), Some(Phase::Stopped));
}

#[tokio::test]
async fn who_is_away_is_waited_for_until_its_lease_ends() {
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.node("a").await, cluster.node("b").await);
    let api = cluster.admin().await;
    let status = api.done("shop", shop(1)).await;
    let [(old, _)] = web(&status)[..] else { panic!("{status:?}") };
    // The one without the task; so that the other one's goes on.
    let (with, without) = if target(&[&a], old).is_some() { (a, b) } else { (b, a) };
    without.fake.set_deaf(true);
    let applied = api.act("shop", shop(2)).await.unwrap();
    let _ = said(&api, &["every node leads to it"], "nodes are told").await;
    without.cut().await;
    // Its lease is two seconds here.
    let done = eventually(async || {
        let status = api.app("shop").await;
        (status.app.rollout.generation == applied.generation && web(&status).len() == 1).then_some(status)
    })
    .await;
    assert_ne!(web(&done)[0].0, old);
    assert_eq!(with.fake.status(old).phase, Phase::Stopped);
}
