//! The catalogue for tools that speak Consul.

use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use wharf_api::{transport::empty, v1::Action};

use crate::fixture::{Api, Cluster, eventually, problem, up, within};

/// The answer and its index.
async fn ask(api: &Api, path: &str) -> (Value, u64) {
    let response = within(api.0.open(Method::GET, path, empty())).await.unwrap();
    let index = response.headers()["x-consul-index"].to_str().unwrap().parse().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (serde_json::from_slice(&body).unwrap(), index)
}

#[tokio::test]
async fn services_are_found_with_their_tasks_and_a_question_is_held_until_they_change() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let services = json!({ "web": {
        "image": "web:1",
        "mode": { "kind": "replicated", "replicas": 2 },
        "labels": { "traefik.enable": "true" },
        "ports": [{ "target": 80, "name": "http" }],
    } });
    api.done("shop", up("shop", services)).await;
    assert_eq!(ask(&api, "/v1/catalog/services").await.0, json!({ "web.shop": ["traefik.enable=true"] }));
    assert_eq!(ask(&api, "/v1/catalog/services?dc=dev").await.0, json!({}));
    assert_eq!(ask(&api, "/v1/catalog/datacenters").await.0, json!(["prod"]));
    let (nodes, _) = ask(&api, "/v1/catalog/nodes").await;
    assert_eq!(
        (nodes[0]["Node"].as_str(), nodes[0]["ID"].as_str()),
        (Some("n1"), Some(&*node.id.to_string()))
    );

    // Readiness is stored a moment after the server has heard of it.
    let passing = "/v1/health/service/web.shop?passing";
    let (found, index) = eventually(async || {
        let (found, index) = ask(&api, passing).await;
        (found.as_array().unwrap().len() == 2).then_some((found, index))
    })
    .await;
    let first = &found[0];
    assert_eq!((&first["Service"]["Service"], &first["Service"]["Port"]), (&json!("web.shop"), &json!(80)));
    assert_eq!(first["Service"]["Meta"]["port-http"], "80/tcp");
    assert_eq!(first["Checks"][1]["Status"], "passing");
    assert_eq!(first["Node"]["Node"], "n1");
    let (listed, _) = ask(&api, "/v1/catalog/service/web.shop?tag=traefik.enable=true").await;
    assert_eq!(listed[0]["ServiceID"], first["Service"]["ID"]);
    assert_eq!(ask(&api, "/v1/catalog/service/web.shop?tag=other").await.0, json!([]));
    assert_eq!(ask(&api, "/v1/catalog/service/nonesuch").await.0, json!([]));

    // Nothing changes: the question is held as long as it says.
    let since = Instant::now();
    let (same, still) = ask(&api, &format!("{passing}&index={index}&wait=300ms")).await;
    assert_eq!((same, still), (found, index));
    assert!(since.elapsed() >= Duration::from_millis(300));

    let held = format!("{passing}&index={index}&wait=1m");
    let scale = Action::Scale { replicas: [("web".to_owned(), 1)].into() };
    let ((left, later), _) = tokio::join!(ask(&api, &held), api.act("shop", scale));
    assert!(later > index && left.as_array().unwrap().len() < 2, "{left}");
    let refused = problem(api.get::<Value>("/v1/catalog/nodes?filter=x").await);
    assert!(refused.message.contains("`filter`"), "{refused:?}");
}
