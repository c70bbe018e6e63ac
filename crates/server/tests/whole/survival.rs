//! Nodes that are lost: who is suspected, what leads to them, what is replaced and when, and what people can do.

use serde_json::{Value, json};
use wharf_api::v1::{self, Action, Code};
use wharf_model::{NodeId, Phase, TaskId};

use crate::fixture::{Api, Cluster, Node, eventually, problem, up_with};

/// A published service with a task on each of three nodes.
fn shop() -> Action {
    let web = json!({
        "image": "web:1",
        "networks": { "default": {} },
        "ports": [{ "target": 80, "published": 8080 }],
        "mode": { "kind": "global" },
    });
    up_with(json!({ "name": "shop", "networks": { "default": {} }, "services": { "web": web } }))
}
/// A service whose task writes to this volume.
fn with_data(volume: &Value) -> Action {
    let mount = json!({ "source": { "type": "volume", "volume": "data" }, "target": "/data" });
    let db = json!({ "image": "db:1", "container": { "mounts": [mount] } });
    up_with(json!({ "name": "shop", "services": { "db": db }, "volumes": { "data": volume } }))
}
async fn said(api: &Api) -> String {
    let events: Vec<v1::Event> = api.all("/v1/events?since=0").await;
    events.into_iter().map(|event| event.message + "\n").collect()
}
/// Where a node's gateway sends requests.
fn endpoints(node: &Node) -> usize {
    let set = node.fake.set.lock().unwrap();
    set.iter().flat_map(|set| &set.routes.routes).map(|route| route.endpoints.len()).max().unwrap_or(0)
}
/// The task of the app's only service that is to run: itself, and the name of its node.
async fn task(api: &Api) -> Option<(TaskId, String)> {
    let status = api.app("shop").await;
    let tasks = status.services.into_iter().flat_map(|service| service.tasks);
    let mut running = tasks.filter(|task| task.status.phase == Phase::Running);
    running.next().map(|task| (task.id.parse().unwrap(), task.node.unwrap()))
}

#[tokio::test]
async fn nothing_is_sent_to_a_node_that_its_watchers_miss_until_it_is_heard_again_and_nothing_is_replaced() {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node("a").await, cluster.node("b").await, cluster.node("c").await];
    let api = cluster.admin().await;
    let _: v1::Node =
        api.call(http::Method::PATCH, "/v1/nodes/a", &json!({ "gateway": true })).await.unwrap();
    let before = api.done("shop", shop()).await;
    let [a, b, c] = &nodes;
    eventually(async || (endpoints(a) == 3).then_some(())).await;
    let watched = a.fake.set.lock().unwrap().clone().unwrap().watched;
    let ids: Vec<NodeId> = watched.iter().map(|watched| watched.node).collect();
    assert!(ids.len() == 2 && ids.contains(&b.id) && ids.contains(&c.id), "{ids:?}");

    c.fake.set_mute(true);
    a.fake.set_heard(&[b.id], &[c.id]);
    b.fake.set_heard(&[a.id], &[c.id]);
    eventually(async || (endpoints(a) == 2).then_some(())).await;
    let seen = api.node("c").await;
    // By whoever said so first, as long as nobody hears it.
    let by_others = seen.suspected_by.iter().all(|by| by != "c") && !seen.suspected_by.is_empty();
    assert!(seen.state == "ready" && by_others, "{seen:?}");

    c.fake.set_mute(false);
    a.fake.set_heard(&[b.id, c.id], &[]);
    b.fake.set_heard(&[a.id, c.id], &[]);
    eventually(async || (endpoints(a) == 3).then_some(())).await;
    let after = api.app("shop").await;
    let tasks = |status: &v1::AppStatus| -> Vec<String> {
        status.services.iter().flat_map(|service| &service.tasks).map(|task| task.id.clone()).collect()
    };
    assert_eq!(tasks(&after), tasks(&before), "nothing is replaced");
    let said = said(&api).await;
    let story = ["node c is suspected to be gone: ", "node c is heard again"];
    assert!(story.iter().all(|line| said.contains(line)) && !said.contains("lost"), "{said}");
}

#[tokio::test]
async fn the_only_writer_of_a_shared_volume_moves_when_the_right_of_its_node_is_over_and_not_before() {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node("a").await, cluster.node("b").await, cluster.node("c").await];
    let api = cluster.admin().await;
    api.done("shop", with_data(&json!({ "driver_opts": { "type": "nfs" } }))).await;
    let (old, on) = task(&api).await.unwrap();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for node in nodes {
        if api.node(&on).await.id == node.id.to_string() { with.push(node) } else { without.push(node) }
    }
    let holder = with.remove(0);
    let fenced = |node: &Node| {
        let set = node.fake.set.lock().unwrap();
        set.iter().flat_map(|set| set.tasks.values()).any(|task| task.fenced)
    };
    assert!(fenced(&holder) && !without.iter().any(fenced));
    // Again and again, each time in answer to the number that it gave last.
    eventually(async || {
        let grants = holder.fake.grants.lock().unwrap();
        (grants.iter().filter(|(answers, _)| answers.is_some()).count() >= 2).then_some(())
    })
    .await;
    assert!(
        without.iter().all(|node| node.fake.grants.lock().unwrap().is_empty()),
        "who needs none is asked nothing"
    );

    let fake = std::sync::Arc::clone(&holder.fake);
    holder.cut().await;
    let (new, _) = eventually(async || task(&api).await.filter(|(task, _)| *task != old)).await;
    let granted = fake.grants.lock().unwrap().last().unwrap().1;
    let made = new.uuid().get_timestamp().unwrap();
    let made = made.to_unix().0 * 1000 + u64::from(made.to_unix().1) / 1_000_000;
    // The lease is two seconds here.
    assert!(made >= granted.0 + 1_900, "made at {made}, and the last grant was at {granted:?}");
    let said = said(&api).await;
    let story = [
        format!("node {on} is down"),
        format!("shop-db-1 is lost: its node {on} is down, and its right to run the task there is over"),
        format!("in place of the one that was lost on {on}"),
    ];
    assert!(story.iter().all(|line| said.contains(line.as_str())), "{said}");
}

#[tokio::test]
async fn data_on_a_lost_node_is_waited_for_until_people_give_it_up() {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node("a").await, cluster.node("b").await];
    let api = cluster.admin().await;
    api.done("shop", with_data(&json!({}))).await;
    let (old, on) = task(&api).await.unwrap();
    let volume = async || -> v1::Volume { api.get("/v1/volumes/prod/shop/data").await.unwrap() };
    assert_eq!((volume().await.state.as_str(), volume().await.services), ("present", vec!["db".to_owned()]));
    let release = async |node: &str| -> Result<v1::Volume, _> {
        api.call(http::Method::POST, "/v1/volumes/prod/shop/data/release", &json!({ "node": node })).await
    };
    let refused = problem(release(&on).await);
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.message.contains("that node is ready"), "{refused:?}");

    let mut left = Vec::new();
    for node in nodes {
        if api.node(&on).await.id == node.id.to_string() { node.cut().await } else { left.push(node) }
    }
    let lost = eventually(async || Some(volume().await).filter(|volume| volume.state == "lost")).await;
    let hint = format!("`wharf volume release shop/data --node {on}`");
    assert!(lost.hint.as_ref().is_some_and(|text| text.contains(&hint)), "{lost:?}");
    let waits = api.app("shop").await.services.into_iter().flat_map(|service| service.waiting);
    assert!(waits.into_iter().any(|text| text.contains("holds the data of its volume data")));

    let released = release(&on).await.unwrap();
    assert_ne!(released.id, lost.id, "what lies there is never found again");
    assert_eq!((released.given_up[0].node.clone(), released.given_up[0].id.clone()), (on.clone(), lost.id));
    let (new, elsewhere) = eventually(async || task(&api).await.filter(|(task, _)| *task != old)).await;
    assert!(elsewhere != on, "{new} is on {elsewhere}");
    assert_eq!(volume().await.data.iter().map(|data| data.node.clone()).collect::<Vec<_>>(), [elsewhere]);
}
