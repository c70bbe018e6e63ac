//! Apps: planned, changed, seen; what two people do at once; and what nobody may see.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use wharf_api::v1::{self, Action, Code};

use crate::fixture::{Cluster, eventually, problem, up, up_with, web};

fn publishing(app: &str, port: u16) -> Action {
    let ports = json!([{ "target": 80, "published": port }]);
    up(app, json!({ "web": { "image": "web:1", "ports": ports } }))
}

#[tokio::test]
async fn an_app_is_deployed_changed_scaled_stopped_started_restarted_and_taken_down() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let action = up("shop", web(1));
    let plan = api.plan("shop", action.clone()).await.unwrap();
    assert_eq!(plan.release, Some(1));
    assert!(
        plan.operations
            .iter()
            .any(|operation| operation.change == v1::Change::Create && operation.name == "web")
    );
    let status = api.done("shop", action.clone()).await;
    assert_eq!((status.app.ready, status.app.wanted, status.app.release), (1, 1, 1));
    assert!(status.services[0].pinned.as_ref().unwrap().starts_with("sha256:"));

    let again = api.plan("shop", action.clone()).await.unwrap();
    assert!(again.is_noop(), "{again:?}");
    let applied = api.act("shop", action).await.unwrap();
    assert_eq!((applied.generation, applied.release), (status.app.generation, 1), "nothing was done");

    let scale = Action::Scale { replicas: [("web".to_owned(), 3)].into() };
    assert_eq!(api.done("shop", scale.clone()).await.app.ready, 3);
    assert!(api.plan("shop", scale).await.unwrap().is_noop());
    let first = api.app("shop").await.services[0].tasks[0].id.clone();
    let status = api.done("shop", Action::Restart { services: vec![] }).await;
    assert!(status.services[0].tasks.iter().all(|task| task.id != first));
    let status = api.done("shop", Action::Stop { services: vec!["web".into()] }).await;
    assert_eq!((status.app.wanted, status.services[0].stopped), (0, true));
    eventually(async || (api.app("shop").await.app.ready == 0).then_some(())).await;
    assert_eq!(api.done("shop", Action::Start { services: vec![] }).await.app.ready, 3);
    assert_eq!(api.done("shop", up("shop", web(2))).await.app.release, 2);

    let releases: Vec<v1::Release> = api.get("/v1/apps/prod/shop/releases").await.unwrap();
    let numbers: Vec<_> = releases.iter().map(|release| (release.number, release.current)).collect();
    assert_eq!(numbers, [(2, true), (1, false)]);
    assert_eq!(releases[0].by, "ada@laptop");
    let first: v1::Release = api.get("/v1/apps/prod/shop/releases/1").await.unwrap();
    assert_eq!(first.spec.unwrap().services.len(), 1);

    let tasks: Vec<v1::Task> = api.get("/v1/tasks?app=shop").await.unwrap();
    assert!(
        !tasks.is_empty() && tasks.iter().all(|task| task.image == "web:2" && !task.status.phase.is_over())
    );
    let all: Vec<v1::Task> = api.get("/v1/tasks?app=shop&all=true").await.unwrap();
    assert!(all.len() > tasks.len());
    let one: v1::Task = api.get("/v1/tasks/shop-web-1").await.unwrap();
    assert_eq!(one.slot, 1);
    let apps: Vec<v1::App> = api.get("/v1/apps?environment=prod").await.unwrap();
    assert_eq!(apps.len(), 1);

    let down = Action::Down { volumes: true };
    api.act("shop", down.clone()).await.unwrap();
    eventually(async || api.get::<v1::AppStatus>("/v1/apps/prod/shop").await.is_err().then_some(())).await;
    assert_eq!(problem(api.act("shop", down).await).code, Code::NotFound);
    assert!(api.get::<Vec<v1::Task>>("/v1/tasks?all=true").await.unwrap().is_empty());
}

#[tokio::test]
async fn mistakes_are_named_with_what_was_probably_meant() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    api.done("shop", up("shop", web(1))).await;
    let hint = |problem: v1::Problem| problem.hint.unwrap();
    assert!(hint(problem(api.get::<Value>("/v1/apps/prod/shpo").await)).contains("did you mean `shop`?"));
    assert!(hint(problem(api.get::<Value>("/v1/apps/test/shop").await)).contains("--env prod"));
    let scale = Action::Scale { replicas: [("wbe".to_owned(), 3)].into() };
    assert!(hint(problem(api.plan("shop", scale).await)).contains("did you mean `web`?"));
    assert!(problem(api.plan("other", up("shop", web(1))).await).message.contains("`other`"));
    let plan = api.plan("new", up("new", json!({ "web": { "image": "missing:1" } }))).await.unwrap();
    assert_eq!(plan.refusals[0].message, "service web: image missing:1 does not exist");
    assert_eq!(plan.refusals[0].hint.as_deref(), Some("check the spelling"));
    let refused = problem(api.act("new", up("new", json!({ "web": { "image": "missing:1" } }))).await);
    assert_eq!(refused.code, Code::Invalid);
    assert!(api.get::<Value>("/v1/apps/prod/new").await.is_err(), "nothing was written");
}

#[tokio::test]
async fn what_has_moved_since_it_was_planned_is_not_done() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let plan = api.plan("shop", up("shop", web(1))).await.unwrap();
    let other = api.apply("shop", up("shop", web(2)), &plan.fingerprint, false).await;
    assert_eq!(problem(other).code, Code::Moved, "another wish than was agreed to");
    api.done("shop", up("shop", web(1))).await;
    let late = api.apply("shop", up("shop", web(1)), &plan.fingerprint, false).await;
    assert_eq!(problem(late).code, Code::Moved, "the app is another by now");
}

#[tokio::test]
async fn of_two_changes_at_once_one_is_made_and_the_other_says_who_is_at_it() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    node.fake.stuck.send_replace(true);
    let wishes = (1..=8).map(|version| {
        let api = api.clone();
        async move { api.act("shop", up("shop", web(version))).await }
    });
    let answers = futures::future::join_all(wishes).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for answer in answers.into_iter().filter(Result::is_err) {
        let refused = problem(answer);
        assert!(matches!(refused.code, Code::Busy | Code::Moved), "{refused:?}");
    }
    let releases: Vec<v1::Release> = api.get("/v1/apps/prod/shop/releases").await.unwrap();
    assert_eq!(releases.len(), 1, "of those that were refused nothing is left");

    let busy = problem(api.act("shop", up("shop", web(9))).await);
    assert_eq!(busy.code, Code::Busy);
    let holder = busy.holder.unwrap();
    assert_eq!((holder.what.as_str(), holder.by.as_str()), ("release 1", "ada@laptop"));
    // Whoever insists takes its place; whoever wants it stopped need not wait.
    let plan = api.plan("shop", up("shop", web(9))).await.unwrap();
    let applied = api.apply("shop", up("shop", web(9)), &plan.fingerprint, true).await.unwrap();
    assert_eq!(applied.release, 2);
    api.act("shop", Action::Stop { services: vec![] }).await.unwrap();
    node.fake.go_on();
    api.act("shop", Action::Down { volumes: true }).await.unwrap();
    eventually(async || api.get::<v1::AppStatus>("/v1/apps/prod/shop").await.is_err().then_some(())).await;
}

#[tokio::test]
async fn of_apps_that_want_one_port_at_once_one_gets_it() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let names: Vec<_> = (0..8).map(|n| format!("app{n}")).collect();
    let mut plans = Vec::new();
    for name in &names {
        let plan = api.plan(name, publishing(name, 8080)).await.unwrap();
        assert!(plan.refusals.is_empty(), "the port is free when each of them is planned");
        plans.push(plan.fingerprint);
    }
    let wishes =
        names.iter().zip(&plans).map(|(name, plan)| api.apply(name, publishing(name, 8080), plan, false));
    let answers = futures::future::join_all(wishes).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for answer in answers.into_iter().filter(Result::is_err) {
        let refused = problem(answer);
        assert_eq!(refused.code, Code::Conflict, "{refused:?}");
        assert!(refused.message.contains("publishes port 8080/tcp, which belongs to"), "{refused:?}");
        assert!(refused.hint.unwrap().contains("publish another port"));
    }
    // Different ports at once are no conflict.
    let wishes = (0..8).map(|n| {
        let (api, name) = (api.clone(), format!("own{n}"));
        async move { api.act(&name, publishing(&name, 9000 + n)).await }
    });
    for answer in futures::future::join_all(wishes).await {
        answer.unwrap();
    }
}

#[tokio::test]
async fn an_app_of_more_services_than_one_write_takes_is_one_release() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let services = |version: u32| -> Value {
        let all = (0..150).map(|n| (format!("s{n}"), json!({ "image": format!("s:{version}") })));
        Value::Object(all.collect())
    };
    let status = api.done("large", up("large", services(1))).await;
    assert_eq!((status.services.len(), status.app.ready), (150, 150));
    let releases: Vec<v1::Release> = api.get("/v1/apps/prod/large/releases").await.unwrap();
    assert_eq!(releases.len(), 1);
}

const SECRET: &str = "correct-horse-battery-staple";

fn with_secret(app: &str, content: Option<&str>) -> Action {
    let mut secret = json!({});
    if let Some(content) = content {
        secret = json!({ "content": BASE64.encode(content) });
    }
    let service = json!({ "image": "web:1", "secrets": [{ "source": "key", "target": "/run/secrets/key" }] });
    up_with(json!({ "name": app, "services": { "web": service }, "secrets": { "key": secret } }))
}

#[tokio::test]
async fn a_secret_reaches_its_task_and_nobody_else() {
    let mut cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    api.done("shop", with_secret("shop", Some(SECRET))).await;
    api.done("twin", with_secret("twin", Some(SECRET))).await;

    let encoded = BASE64.encode(SECRET);
    let files = |node: &crate::fixture::Node, app: &str| -> Vec<String> {
        let set = node.fake.set.lock().unwrap();
        let tasks = set.as_ref().unwrap().tasks.values().filter(|task| task.service.app.name.as_str() == app);
        tasks.flat_map(|task| task.files.iter().map(|file| file.content.clone())).collect()
    };
    assert_eq!(files(&node, "shop"), [encoded.as_str()]);

    // Nothing of it in any answer.
    let plan = api.plan("shop", with_secret("shop", Some("another"))).await.unwrap();
    let mut answers = vec![serde_json::to_string(&plan).unwrap()];
    let paths = [
        "/v1/apps/prod/shop?spec=true",
        "/v1/apps/prod/shop/releases/1",
        "/v1/apps/prod/shop/releases",
        "/v1/tasks",
        "/v1/doctor",
    ];
    for path in paths {
        answers.push(api.get::<Value>(path).await.unwrap().to_string());
    }
    let events: Vec<Value> = api.all("/v1/events").await;
    answers.push(serde_json::to_string(&events).unwrap());
    for answer in &answers {
        assert!(
            !answer.contains(SECRET) && !answer.contains(&encoded) && !answer.contains("another"),
            "{answer}"
        );
    }
    assert!(answers[2].contains("\"digest\""), "a change of it can be seen");

    // One app's end is not the end of the other's.
    api.act("twin", Action::Down { volumes: false }).await.unwrap();
    eventually(async || api.get::<Value>("/v1/apps/prod/twin").await.is_err().then_some(())).await;
    api.done("shop", Action::Restart { services: vec![] }).await;
    let mut now = files(&node, "shop");
    now.dedup();
    assert_eq!(now, [encoded.as_str()], "it is still handed out");

    // A digest stands for a content that is here, and for nothing else.
    let refused = problem(api.plan("other", with_secret("other", None)).await);
    assert_eq!((refused.code, refused.message.as_str()), (Code::Invalid, "the content of `key` is missing"));
    let large = with_secret("other", Some(&"x".repeat(1100 << 10)));
    assert!(problem(api.plan("other", large).await).message.contains("at most 1000 KiB"));

    // And nothing of it in the file.
    cluster.stop().await;
    let bytes = std::fs::read(cluster.store_file()).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("web:1") && !holds(SECRET) && !holds(&encoded));
}
