//! Where tasks are and why; how they move; what nodes and environments allow.

use http::Method;
use serde_json::{Value, json};
use wharf_api::v1::{self, Action, Code};

use crate::fixture::{Api, Cluster, eventually, problem, up, up_with};

fn service(replicas: u32) -> Value {
    json!({ "image": "web:1", "mode": { "kind": "replicated", "replicas": replicas } })
}
async fn nodes_of(api: &Api, app: &str) -> Vec<String> {
    let status = api.app(app).await;
    let ready = status.services.iter().flat_map(|service| &service.tasks).filter(|task| task.ready);
    let mut nodes: Vec<_> = ready.filter_map(|task| task.node.clone()).collect();
    nodes.sort();
    nodes
}

#[tokio::test]
async fn a_node_is_put_into_a_pool_tainted_overcommitted_and_worked_on() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let patch = async |change: Value| api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &change).await;
    let changed = patch(json!({
        "pool": "batch",
        "taints": ["gpu:NoSchedule", "team=blue:NoExecute"],
        "overcommit": { "cpus": 200, "limit_memory": 150 },
        "windows": [{ "from": 1, "until": 4_000_000_000_000_u64, "drain": true, "note": "new disks" }],
    }))
    .await
    .unwrap();
    assert_eq!(changed.pool.as_deref(), Some("batch"));
    assert_eq!(changed.taints, ["gpu:NoSchedule", "team=blue:NoExecute"]);
    let overcommit = changed.overcommit.unwrap();
    assert_eq!((overcommit.cpus, overcommit.memory, overcommit.limit_memory), (200, 100, Some(150)));
    assert_eq!((changed.windows.len(), changed.windows[0].note.as_str()), (1, "new disks"));

    // A taint of the same key and effect takes the place of the one before; a key removes all of its taints.
    let changed = patch(json!({ "taints": ["team=red:NoExecute"], "remove_taints": ["gpu"] })).await.unwrap();
    assert_eq!(changed.taints, ["team=red:NoExecute"]);
    let cleared =
        patch(json!({ "pool": "", "clear_windows": true, "overcommit": { "cpus": 100, "limit_memory": 0 } }));
    let cleared = cleared.await.unwrap();
    assert_eq!((cleared.pool, cleared.windows.len(), cleared.overcommit), (None, 0, None));

    for (change, code, text) in [
        (json!({ "taints": ["gpu"] }), Code::Invalid, "`gpu` is not a taint"),
        (json!({ "remove_taints": ["gpu"] }), Code::NotFound, "no taint `gpu`"),
        (json!({ "overcommit": { "cpus": 0 } }), Code::Invalid, "0 % of a node cannot be promised"),
        (json!({ "windows": [{ "from": 2, "until": 1 }] }), Code::Invalid, "ends after it begins"),
        (json!({ "pool": "a b" }), Code::Invalid, "`a b` is no name of a pool"),
    ] {
        let found = problem(patch(change).await);
        assert_eq!(found.code, code, "{found:?}");
        assert!(found.message.contains(text), "{found:?}");
    }
}

#[tokio::test]
async fn the_strategy_of_the_cluster_is_a_setting() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _n1 = cluster.node("n1").await;
    let _n2 = cluster.node("n2").await;
    let put = async |change: Value| {
        api.call::<v1::PlacementDefaults>(Method::PUT, "/v1/placement-defaults", &change).await
    };
    assert_eq!(put(json!({})).await.unwrap().strategy.as_deref(), Some("spread"));
    assert_eq!(put(json!({ "strategy": "binpack" })).await.unwrap().strategy.as_deref(), Some("binpack"));
    assert!(problem(put(json!({ "strategy": "pile" })).await).message.contains("`pile` is no strategy"));
    let mut packed = service(4);
    packed["resources"] = json!({ "reservations": { "memory": 1_u64 << 30 } });
    api.done("shop", up("shop", json!({ "web": packed }))).await;
    let nodes = nodes_of(&api, "shop").await;
    assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
}

#[tokio::test]
async fn what_a_quota_does_not_leave_is_refused_before_anything_is_done() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let limits = json!({ "limits": { "tasks": 3, "memory": 1_u64 << 30 } });
    let quota: v1::Quota = api.call(Method::PUT, "/v1/quotas/prod", &limits).await.unwrap();
    assert_eq!((quota.limits.tasks, quota.wanted.tasks), (Some(3), 0));
    api.done("blog", up("blog", json!({ "web": service(2) }))).await;

    let plan = api.plan("shop", up("shop", json!({ "web": service(2) }))).await.unwrap();
    let refusal = plan.refusals.iter().find(|refusal| refusal.message.contains("quota")).unwrap();
    assert!(refusal.message.contains("app shop would want 2 tasks"), "{refusal:?}");
    assert!(refusal.hint.as_ref().unwrap().contains("wharf quota set --env prod --tasks 4"), "{refusal:?}");
    assert!(plan.warnings.iter().any(|warning| warning.contains("service web neither reserves")), "{plan:?}");
    let refused = problem(api.act("shop", up("shop", json!({ "web": service(2) }))).await);
    assert_eq!(refused.code, Code::Conflict);
    assert_eq!(
        problem(api.get::<Value>("/v1/apps/prod/shop").await).code,
        Code::NotFound,
        "nothing was done"
    );

    let grow = Action::Scale { replicas: [("web".to_owned(), 4)].into() };
    let refused = api.plan("blog", grow).await.unwrap();
    assert_eq!(refused.refusals.len(), 1, "{refused:?}");

    // Of two apps at once that fit alone and not together one is refused.
    let (one, other) = futures::future::join(
        api.act("a", up("a", json!({ "web": service(1) }))),
        api.act("b", up("b", json!({ "web": service(1) }))),
    )
    .await;
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1, "{one:?} {other:?}");
    let quotas: Vec<v1::Quota> = api.get("/v1/quotas").await.unwrap();
    assert_eq!(quotas.iter().map(|quota| quota.wanted.tasks).collect::<Vec<_>>(), [3]);

    let lifted = json!({ "lift": ["tasks", "memory"] });
    let quota: v1::Quota = api.call(Method::PUT, "/v1/quotas/prod", &lifted).await.unwrap();
    assert_eq!(quota.limits, v1::QuotaLimits::default());
    assert_eq!(
        problem(api.call::<()>(Method::DELETE, "/v1/quotas/prod", &json!(null)).await).code,
        Code::NotFound
    );
    let wrong =
        problem(api.call::<v1::Quota>(Method::PUT, "/v1/quotas/prod", &json!({ "lift": ["gpus"] })).await);
    assert!(wrong.message.contains("does not limit `gpus`"), "{wrong:?}");
    assert!(api.plan("shop", up("shop", json!({ "web": service(9) }))).await.unwrap().refusals.is_empty());
}

#[tokio::test]
async fn tasks_move_to_a_node_with_less_to_do_as_was_agreed() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _n1 = cluster.node("n1").await;
    api.done("shop", up("shop", json!({ "web": service(4) }))).await;
    let _n2 = cluster.node("n2").await;
    let ask = async |dry_run: bool, fingerprint: Option<&str>| {
        let wish = json!({ "dry_run": dry_run, "fingerprint": fingerprint, "client": "ada@laptop" });
        api.call::<v1::RebalancePlan>(Method::POST, "/v1/rebalance", &wish).await
    };
    let plan = ask(true, None).await.unwrap();
    assert_eq!(plan.run, None, "nothing is begun");
    let moves: Vec<_> =
        plan.moves.iter().map(|one| (one.from.as_str(), one.to.as_str(), one.why.as_str())).collect();
    assert_eq!(
        moves,
        [
            ("n1", "n2", "n1 has 4 tasks of web and n2 has 0"),
            ("n1", "n2", "n1 has 3 tasks of web and n2 has 1")
        ]
    );
    assert_eq!(problem(ask(false, Some("another")).await).code, Code::Moved);
    let begun = ask(false, Some(&plan.fingerprint)).await.unwrap();
    assert_eq!(begun.run, Some(1));
    let over = eventually(async || {
        let status: v1::RebalanceStatus = api.get("/v1/rebalance").await.unwrap();
        status.run.filter(|run| run.ended_at.is_some())
    })
    .await;
    assert!(over.moves.iter().all(|one| one.state == "done"), "{over:?}");
    assert_eq!(over.by, "ada@laptop");
    assert_eq!(nodes_of(&api, "shop").await, ["n1", "n1", "n2", "n2"]);
    assert!(ask(true, None).await.unwrap().moves.is_empty(), "and it is even now");
    assert_eq!(
        problem(api.call::<Value>(Method::DELETE, "/v1/rebalance", &json!(null)).await).code,
        Code::NotFound
    );
    let events: Vec<v1::Event> = api.all("/v1/events?follow=false&since=0").await;
    let told = |text: &str| events.iter().any(|event| event.message.contains(text));
    assert!(told("is to move to n2: n1 has 4 tasks of web and n2 has 0"), "{events:?}");
    assert!(told("it moves to a node that has less to do"), "{events:?}");
    assert!(told("rebalancing 1 is over: 2 moved, 0 did not"), "{events:?}");
}

#[tokio::test]
async fn a_run_is_cancelled_and_there_is_one_at_a_time() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _n1 = cluster.node("n1").await;
    api.done("shop", up("shop", json!({ "web": service(4) }))).await;
    let n2 = cluster.node("n2").await;
    n2.fake.stuck.send_replace(true);
    let ask = async || api.call::<v1::RebalancePlan>(Method::POST, "/v1/rebalance", &json!({})).await;
    assert_eq!(ask().await.unwrap().run, Some(1));
    // The service is not as wanted while one of its slots moves, so nothing more of it would.
    let moving = eventually(async || {
        let status: v1::RebalanceStatus = api.get("/v1/rebalance").await.unwrap();
        (!status.moving.is_empty()).then_some(status.moving)
    })
    .await;
    assert_eq!((moving.len(), moving[0].to.as_str()), (1, "n2"));
    let cancelled: v1::RebalanceStatus =
        api.call(Method::DELETE, "/v1/rebalance", &json!(null)).await.unwrap();
    assert!(cancelled.run.unwrap().cancelled_by.is_some());
    n2.fake.go_on();
    let over = eventually(async || {
        let status: v1::RebalanceStatus = api.get("/v1/rebalance").await.unwrap();
        status.run.filter(|run| run.ended_at.is_some())
    })
    .await;
    let states: Vec<_> = over.moves.iter().map(|one| one.state.as_str()).collect();
    assert_eq!(states, ["done", "dropped"]);
    eventually(async || (nodes_of(&api, "shop").await == ["n1", "n1", "n1", "n2"]).then_some(())).await;
}

#[tokio::test]
async fn what_moves_by_itself_is_a_setting() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let put = async |change: Value| {
        api.call::<v1::RebalanceSettings>(Method::PUT, "/v1/rebalance-defaults", &change).await
    };
    let changed = put(json!({ "automatic": "always", "at_once": 5, "steady": 0 })).await.unwrap();
    assert_eq!((changed.automatic.as_str(), changed.at_once, changed.per_minute), ("always", 5, 20));
    assert!(
        problem(put(json!({ "automatic": "sometimes" })).await).message.contains("off, joining or always")
    );
    assert!(problem(put(json!({ "at_once": 0 })).await).message.contains("0 moves at once cannot be"));

    let _n1 = cluster.node("n1").await;
    api.done("shop", up("shop", json!({ "web": service(4) }))).await;
    let _n2 = cluster.node("n2").await;
    eventually(async || (nodes_of(&api, "shop").await == ["n1", "n1", "n2", "n2"]).then_some(())).await;
}

#[tokio::test]
async fn a_node_that_is_drained_says_who_cannot_go_and_why() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _n1 = cluster.node("n1").await;
    let label = json!({ "labels": { "disk": "ssd" } });
    api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &label).await.unwrap();
    let _n2 = cluster.node("n2").await;
    let mut tied = service(1);
    tied["placement"] =
        json!({ "constraints": [{ "key": "node.labels.disk", "equal": true, "value": "ssd" }] });
    let free = service(2);
    api.done("shop", up_with(json!({ "name": "shop", "services": { "tied": tied, "free": free } }))).await;
    let here: v1::NodeDrain = api.get("/v1/nodes/n1/drain").await.unwrap();
    assert!(here.tasks.iter().all(|task| task.state == "here" && task.why.is_empty()), "{here:?}");

    let drain = json!({ "availability": "drain" });
    api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &drain).await.unwrap();
    let left = eventually(async || {
        let left: v1::NodeDrain = api.get("/v1/nodes/n1/drain").await.unwrap();
        (left.tasks.len() == 1).then_some(left)
    })
    .await;
    assert_eq!((left.tasks[0].name.as_str(), left.tasks[0].state.as_str()), ("shop-tied-1", "stays"));
    let why = left.tasks[0].why.join("; ");
    assert!(why.contains("that node is being drained") && why.contains("node.labels.disk == ssd"), "{why}");
    assert_eq!(api.app("shop").await.app.ready, 3, "what stays serves on");

    let label = json!({ "labels": { "disk": "ssd" } });
    api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n2", &label).await.unwrap();
    eventually(async || {
        let left: v1::NodeDrain = api.get("/v1/nodes/n1/drain").await.unwrap();
        left.tasks.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_slot_is_explained() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _n1 = cluster.node("n1").await;
    let _n2 = cluster.node("n2").await;
    api.done("shop", up("shop", json!({ "web": service(2) }))).await;
    let explained: v1::Explanation = api.get("/v1/tasks/shop-web-1/explain").await.unwrap();
    let [slot] = &explained.slots[..] else { panic!("{explained:?}") };
    assert_eq!((slot.slot.as_str(), slot.able, slot.nodes), ("web.1", 2, 2));
    assert!(slot.node.is_some() && !slot.why.is_empty() && slot.waiting.is_empty(), "{slot:?}");
    assert!(
        slot.decided_by.is_some() && !slot.outdone && slot.chosen.as_ref().unwrap().terms.len() > 1,
        "{slot:?}"
    );

    // One that has no place: each rule with its nodes, and what would help.
    let mut big = service(1);
    big["resources"] = json!({ "reservations": { "memory": 100_u64 << 30 } });
    api.act("big", up_with(json!({ "name": "big", "services": { "web": big } }))).await.unwrap();
    let pause = json!({ "availability": "pause" });
    api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n2", &pause).await.unwrap();
    let explained: v1::Explanation = api.get("/v1/apps/prod/big/explain?service=web").await.unwrap();
    let [slot] = &explained.slots[..] else { panic!("{explained:?}") };
    assert_eq!((slot.node.as_deref(), slot.able, slot.nodes), (None, 0, 2));
    let rules: Vec<_> = slot.rules.iter().map(|rule| (rule.rule.as_str(), rule.first, rule.nodes)).collect();
    assert_eq!(rules, [("memory", 1, 2), ("availability", 1, 1)]);
    assert!(slot.remedies[0].starts_with("free 92 GiB of memory on n1"), "{slot:?}");
    assert_eq!(
        slot.without.iter().map(|one| (one.rule.as_str(), one.nodes.join(","))).collect::<Vec<_>>(),
        [("memory", "n1".to_owned())]
    );
    assert!(!slot.waiting.is_empty(), "{slot:?}");

    assert_eq!(problem(api.get::<Value>("/v1/apps/prod/big/explain?service=x").await).code, Code::NotFound);
    assert_eq!(problem(api.get::<Value>("/v1/tasks/x/explain").await).code, Code::NotFound);
}
