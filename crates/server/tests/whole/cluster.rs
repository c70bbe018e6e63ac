//! The cluster itself: versions, nodes, tokens, doctor, and who may ask for what.

use http::Method;
use serde_json::{Value, json};
use wharf_api::{
    transport::tls::Protocol,
    v1::{self, Code},
};
use wharf_model::{Phase, TaskStatus};

use crate::fixture::{Cluster, eventually, problem, up, web};

#[tokio::test]
async fn a_fresh_server_says_what_it_is_and_what_is_missing() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let version: v1::Version = api.get("/v1/version").await.unwrap();
    assert_eq!((version.api.as_str(), version.store.as_str()), ("v1", "embedded"));
    assert_eq!(version.cluster_name, "test");
    let leads = eventually(async || {
        let servers: Vec<v1::Server> = api.get("/v1/servers").await.unwrap();
        servers.into_iter().find(|server| server.leader)
    })
    .await;
    assert_eq!(leads.id, version.server);
    let findings: Vec<v1::Finding> = api.get("/v1/doctor").await.unwrap();
    let levels: Vec<_> =
        findings.iter().map(|found| (found.level.as_str(), found.subject.as_str())).collect();
    assert_eq!(levels, [("ok", "store"), ("ok", "leader"), ("warning", "nodes")]);
}

#[tokio::test]
async fn every_refusal_is_a_problem_with_a_sentence() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let cases = [
        (Method::GET, "/v1/nonsense", json!(null), Code::NotFound, "there is no `/v1/nonsense`"),
        (Method::PUT, "/v1/nodes", json!(null), Code::Invalid, "`PUT` is nothing `/v1/nodes` can be asked"),
        (Method::POST, "/v1/tokens", json!({"role": "agent"}), Code::Invalid, "missing field `ttl_seconds`"),
        (
            Method::POST,
            "/v1/tokens",
            json!({"role": "boss", "ttl_seconds": 9}),
            Code::Invalid,
            "`boss` is no role",
        ),
        (Method::GET, "/v1/tasks?colour=red", json!(null), Code::Invalid, "unknown field `colour`"),
        (Method::GET, "/v1/apps/prod/web/releases/first", json!(null), Code::NotFound, "/releases/first"),
        (Method::GET, "/v1/apps/prod/Not%20A%20Name", json!(null), Code::Invalid, "Not A Name"),
        (Method::GET, "/v1/nodes/n1", json!(null), Code::NotFound, "there is no node `n1`"),
        (Method::GET, "/v1/tasks/web-1", json!(null), Code::NotFound, "there is no task `web-1`"),
    ];
    for (method, path, body, code, text) in cases {
        let found = problem(api.call::<Value>(method, path, &body).await);
        assert_eq!(found.code, code, "{path}: {found:?}");
        assert!(found.message.contains(text), "{path}: {found:?}");
    }
    // Far more than any app.
    let large = json!({ "action": { "action": "down", "volumes": false, "padding": "x".repeat(33 << 20) } });
    let found = problem(api.call::<Value>(Method::POST, "/v1/apps/prod/web/plan", &large).await);
    assert!(found.message.contains("larger than 32 MiB"), "{found:?}");
    // A few megabytes are read, and understood to be wrong.
    let large = json!({ "action": { "action": "down", "volumes": false, "padding": "x".repeat(5 << 20) } });
    let found = problem(api.call::<Value>(Method::POST, "/v1/apps/prod/web/plan", &large).await);
    assert!(found.message.contains("unknown field `padding`"), "{}", found.message.len());
}

#[tokio::test]
async fn nodes_and_strangers_get_nothing_of_the_api() {
    let cluster = Cluster::start().await;
    let node = cluster.node("n1").await;
    for identity in [None, Some(&node.identity)] {
        let api = cluster.client(identity).await;
        let paths = [
            "/v1/version",
            "/v1/servers",
            "/v1/tokens",
            "/v1/doctor",
            "/v1/nodes",
            "/v1/nodes/n1",
            "/v1/apps",
            "/v1/apps/prod/web",
            "/v1/apps/prod/web/releases",
            "/v1/apps/prod/web/releases/1",
            "/v1/apps/prod/web/watch",
            "/v1/apps/prod/web/logs",
            "/v1/tasks",
            "/v1/tasks/x",
            "/v1/tasks/x/inspect",
            "/v1/usage",
            "/v1/events",
        ];
        for path in paths {
            assert_eq!(problem(api.get::<Value>(path).await).code, Code::Forbidden, "{path}");
        }
        let writes = [
            (Method::POST, "/v1/tokens"),
            (Method::DELETE, "/v1/tokens/x"),
            (Method::PATCH, "/v1/nodes/n1"),
            (Method::DELETE, "/v1/nodes/n1"),
            (Method::POST, "/v1/apps/prod/web/plan"),
            (Method::POST, "/v1/apps/prod/web/apply"),
            (Method::POST, "/v1/tasks/x/exec"),
        ];
        for (method, path) in writes {
            let found = problem(api.call::<Value>(method, path, &json!({})).await);
            assert_eq!(found.code, Code::Forbidden, "{path}: {found:?}");
        }
    }
    let error = cluster.client(None).await.call::<Value>(Method::POST, "/v1/servers/join", &json!({})).await;
    assert_eq!(problem(error).code, Code::Invalid, "a server that joins shows a token instead");
}

#[tokio::test]
async fn tokens_are_made_listed_rotated_and_ended() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let make = async |rotate: bool| -> v1::TokenCreated {
        let wish = json!({ "role": "agent", "ttl_seconds": 60, "rotate": rotate });
        api.call(Method::POST, "/v1/tokens", &wish).await.unwrap()
    };
    let list = async || -> Vec<v1::Token> { api.get("/v1/tokens").await.unwrap() };
    for _ in 0..70 {
        make(false).await;
    }
    assert_eq!(list().await.len(), 71, "with the first");
    let made = make(true).await;
    assert!(made.command.ends_with(&format!("--token {}", made.token)));
    let left = list().await;
    assert_eq!(left.len(), 1, "every other one of the role has ended");
    let error = cluster.join("n1").await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, Code::Token);
    let path = format!("/v1/tokens/{}", left[0].id);
    api.call::<()>(Method::DELETE, &path, &json!(null)).await.unwrap();
    assert!(list().await.is_empty());
    assert_eq!(problem(api.call::<()>(Method::DELETE, &path, &json!(null)).await).code, Code::NotFound);
}

#[tokio::test]
async fn of_machines_that_join_by_one_name_at_once_one_gets_it() {
    let cluster = Cluster::start().await;
    let joins = futures::future::join_all((0..8).map(|_| cluster.join("same"))).await;
    assert_eq!(joins.iter().filter(|joined| joined.is_ok()).count(), 1);
    for error in joins.into_iter().filter_map(Result::err) {
        assert_eq!(error.problem().unwrap().code, Code::Conflict, "{error:?}");
    }
    let api = cluster.admin().await;
    assert_eq!(api.get::<Vec<v1::Node>>("/v1/nodes").await.unwrap().len(), 1);
    // Removed, the name is free again.
    api.call::<()>(Method::DELETE, "/v1/nodes/same", &json!(null)).await.unwrap();
    cluster.join("same").await.unwrap();
}

#[tokio::test]
async fn a_node_is_changed_drained_lost_and_removed() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let seen = api.node("n1").await;
    assert_eq!((seen.state.as_str(), seen.availability.as_str()), ("ready", "active"));
    assert_eq!(seen.engine_version.as_deref(), Some("20.10.24"));

    let change =
        json!({ "labels": { "zone": "a" }, "availability": "pause", "if_generation": seen.generation });
    let changed: v1::Node = api.call(Method::PATCH, "/v1/nodes/n1", &change).await.unwrap();
    assert_eq!((changed.labels["zone"].as_str(), changed.availability.as_str()), ("a", "pause"));
    assert_eq!(problem(api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &change).await).code, Code::Moved);
    // Without that condition, changes at once all come to be.
    let changes = (0..10).map(|n| {
        let (api, change) = (api.clone(), json!({ "labels": { format!("l{n}"): "x" } }));
        async move { api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &change).await.unwrap() }
    });
    futures::future::join_all(changes).await;
    assert_eq!(api.node("n1").await.labels.len(), 11);
    let change = json!({ "availability": "active" });
    api.call::<v1::Node>(Method::PATCH, "/v1/nodes/n1", &change).await.unwrap();

    api.done("shop", up("shop", web(1))).await;
    let found = problem(api.call::<()>(Method::DELETE, "/v1/nodes/n1", &json!(null)).await);
    assert_eq!(found.code, Code::Conflict);
    assert!(found.hint.unwrap().contains("wharf node drain n1"));

    // Away, it is down after its lease, and back again as soon as it is back.
    let (id, identity) = (node.id, node.identity.clone());
    node.cut().await;
    eventually(async || (api.node("n1").await.state == "down").then_some(())).await;
    let other = cluster.node("n2").await;
    eventually(async || {
        let status = api.app("shop").await;
        (status.app.ready == 1
            && status.services[0].tasks.iter().any(|task| task.node.as_deref() == Some("n2")))
        .then_some(())
    })
    .await;

    // Removed, it is cut off and does not come back.
    api.call::<()>(Method::DELETE, "/v1/nodes/n1", &json!(null)).await.unwrap();
    let dialer = cluster.dialer(Some(&identity), Protocol::Api);
    let api_of_node = dialer.dial(&[cluster_address(&cluster).await]).await;
    let refused = match api_of_node {
        Err(_) => true,
        Ok(client) => client.get::<Value>("/v1/version").await.is_err_and(|error| error.problem().is_none()),
    };
    assert!(refused, "its certificate opens nothing any more");
    api.call::<()>(Method::DELETE, "/v1/nodes/n2?force=true", &json!(null)).await.unwrap();
    eventually(async || {
        let findings: Vec<v1::Finding> = api.get("/v1/doctor").await.unwrap();
        findings.iter().any(|found| found.message == "no node has joined").then_some(())
    })
    .await;
    eventually(async || other.is_cut_off().await.then_some(())).await;
    assert!(api.get::<Value>(&format!("/v1/nodes/{id}")).await.is_err());
}

async fn cluster_address(cluster: &Cluster) -> wharf_api::transport::ServerAddress {
    cluster.admin().await.0.name().parse().unwrap()
}

#[tokio::test]
async fn a_node_speaks_for_its_own_tasks_only() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let owner = cluster.node("n1").await;
    let status = api.done("shop", up("shop", web(1))).await;
    let liar = cluster.node("n2").await;
    let task = status.services[0].tasks[0].id.parse().unwrap();
    liar.fake
        .say(task, TaskStatus { phase: Phase::Failed, message: "a lie".into(), ..TaskStatus::default() });
    // What comes after it in the same stream has arrived, so the lie has as well.
    let mark = TaskStatus { phase: Phase::Running, message: "the truth".into(), ..owner.fake.status(task) };
    owner.fake.say(task, mark);
    let seen = eventually(async || {
        let task = api.app("shop").await.services[0].tasks[0].clone();
        (task.status.message == "the truth").then_some(task)
    })
    .await;
    assert_eq!(seen.status.phase, Phase::Running);
}

#[tokio::test]
async fn a_server_that_is_started_again_knows_everything_and_touches_nothing() {
    let mut cluster = Cluster::start().await;
    let node = cluster.node("n1").await;
    let before = cluster.admin().await.done("shop", up("shop", web(1))).await;
    cluster.stop().await;
    cluster.run().await;
    let node = cluster.reconnect(&node).await;
    let api = cluster.admin().await;
    let after = eventually(async || {
        let status = api.app("shop").await;
        (status.app.ready == 1).then_some(status)
    })
    .await;
    assert_eq!(after.services[0].tasks[0].id, before.services[0].tasks[0].id);
    assert_eq!(after.app.generation, before.app.generation);
    eventually(async || node.fake.set.lock().unwrap().is_some().then_some(())).await;
    let plan = api.plan("shop", up("shop", web(1))).await.unwrap();
    assert!(plan.is_noop(), "{plan:?}");
}
