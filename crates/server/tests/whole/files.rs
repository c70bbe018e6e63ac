//! Configs and secrets of environments: what apps get of them, and what people do.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use serde_json::{Value, json};
use wharf_api::v1::{self, Action, Code};

use crate::fixture::{Api, Cluster, eventually, problem, up, up_with, web};

const FIRST: &str = "correct-horse-battery-staple";
const SECOND: &str = "tr0ub4dor-and-3";

async fn create(api: &Api, path: &str, content: &str, replace: bool) -> Result<v1::FileCreated, v1::Problem> {
    let wish = v1::FileCreate {
        content: BASE64.encode(content),
        labels: [("team".to_owned(), "pay".to_owned())].into(),
        replace,
        client: "ada@laptop".into(),
    };
    let answer = api.call(Method::POST, path, &serde_json::to_value(&wish).unwrap()).await;
    answer.map_err(|error| problem(Err::<(), _>(error)))
}
async fn remove(api: &Api, path: &str) -> Result<(), v1::Problem> {
    let answer = api.call::<Option<()>>(Method::DELETE, path, &Value::Null).await;
    answer.map(drop).map_err(|error| problem(Err::<(), _>(error)))
}

/// An app that mounts the secret `db_password` as `key`, and the config `settings`.
fn shop(app: &str) -> Action {
    let mount = |target: &str| json!([{ "source": "key", "target": target, "uid": 70, "mode": 256 }]);
    let service = json!({ "image": "web:1", "secrets": mount("/run/secrets/key"), "configs": mount("/key") });
    up_with(json!({
        "name": app,
        "services": { "web": service },
        "secrets": { "key": { "external": true, "name": "db_password" } },
        "configs": { "key": { "external": true, "name": "settings" } },
    }))
}
/// What the node was told to put into containers of an app.
fn files(node: &crate::fixture::Node, app: &str) -> Vec<(bool, String)> {
    let set = node.fake.set.lock().unwrap();
    let tasks = set.as_ref().unwrap().tasks.values().filter(|task| task.service.app.name.as_str() == app);
    let tasks = tasks.filter(|task| task.target == wharf_model::Target::Run);
    let decode = |text: &str| String::from_utf8(BASE64.decode(text).unwrap()).unwrap();
    tasks.flat_map(|task| task.files.iter().map(|file| (file.secret, decode(&file.content)))).collect()
}

#[tokio::test]
async fn an_app_takes_the_newest_version_when_it_is_planned_and_keeps_it() {
    let mut cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;

    // What is missing is named, with the command that makes it.
    let plan = api.plan("shop", shop("shop")).await.unwrap();
    let refusals: Vec<_> = plan
        .refusals
        .iter()
        .map(|refusal| (refusal.message.as_str(), refusal.hint.as_deref().unwrap()))
        .collect();
    assert_eq!(
        refusals,
        [
            (
                "config `key` is external, and environment `prod` has no config of the name `settings`",
                "make it: `wharf configs create settings FILE --env prod`"
            ),
            (
                "secret `key` is external, and environment `prod` has no secret of the name `db_password`",
                "make it: `wharf secret create db_password FILE --env prod`"
            ),
        ]
    );
    assert_eq!(problem(api.act("shop", shop("shop")).await).code, Code::Invalid);

    let (secret, config) = ("/v1/secrets/prod/db_password", "/v1/configs/prod/settings");
    // One of another environment is not this one's, and a config is no secret.
    create(&api, "/v1/secrets/test/db_password", "of another environment", false).await.unwrap();
    create(&api, "/v1/configs/prod/db_password", "no secret", false).await.unwrap();
    assert_eq!(api.plan("shop", shop("shop")).await.unwrap().refusals.len(), 2);
    remove(&api, "/v1/configs/prod/db_password").await.unwrap();

    assert_eq!(create(&api, secret, FIRST, false).await.unwrap().version, 1);
    assert_eq!(create(&api, config, "port=1", false).await.unwrap().version, 1);
    let status = api.done("shop", shop("shop")).await;
    assert_eq!(files(&node, "shop"), [(false, "port=1".to_owned()), (true, FIRST.to_owned())]);
    let first_task = status.services[0].tasks[0].id.clone();

    // A new version changes nothing that runs; the next plan says what it would.
    let refused = create(&api, secret, SECOND, false).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    assert!(refused.hint.unwrap().contains("--replace"));
    let same = create(&api, secret, FIRST, true).await.unwrap();
    assert_eq!((same.version, same.changed), (1, false));
    assert!(api.plan("shop", shop("shop")).await.unwrap().is_noop());
    let newer = create(&api, secret, SECOND, true).await.unwrap();
    assert_eq!((newer.version, newer.changed), (2, true));
    assert_eq!(newer.behind, [v1::FileUse { app: "shop".into(), version: 1 }]);
    api.done("shop", Action::Restart { services: vec![] }).await;
    assert_eq!(files(&node, "shop")[1].1, FIRST, "a restart is no release");
    let stale = api.plan("shop", shop("shop")).await.unwrap();
    let changing: Vec<_> = stale
        .operations
        .iter()
        .filter(|operation| operation.change != v1::Change::Keep)
        .map(|operation| (operation.change.symbol(), operation.kind.as_str(), operation.reason.as_str()))
        .collect();
    assert_eq!(
        changing,
        [('~', "secret", "version 1 -> 2"), ('±', "service", "content of secret key changed")]
    );
    // What was agreed to is what is done: with a third version in between it is another plan.
    create(&api, secret, "a third", true).await.unwrap();
    let late = api.apply("shop", shop("shop"), &stale.fingerprint, false).await;
    assert_eq!(problem(late).code, Code::Moved);
    create(&api, secret, SECOND, true).await.unwrap();
    let status = api.done("shop", shop("shop")).await;
    assert_ne!(status.services[0].tasks[0].id, first_task);
    assert_eq!(files(&node, "shop")[1], (true, SECOND.to_owned()));
    let release: v1::Release = api.get("/v1/apps/prod/shop/releases/2").await.unwrap();
    assert_eq!(release.spec.unwrap().secrets["key"].version, Some(4));

    // What an app has stays, until no app has it.
    let refused = remove(&api, secret).await.unwrap_err();
    assert_eq!(refused.message, "secret db_password of prod is used by app shop");
    let view: v1::NamedFile = api.get(secret).await.unwrap();
    assert_eq!((view.version, view.size, view.used_by.len(), view.versions.len()), (4, 15, 1, 4));
    assert_eq!((view.versions[0].by.as_str(), view.labels["team"].as_str()), ("ada@laptop", "pay"));
    api.done("shop", up("shop", web(1))).await;
    remove(&api, secret).await.unwrap();
    let gone = problem(api.get::<Value>(secret).await);
    assert!(gone.hint.unwrap().contains("--env test"));

    // The content of a config is for people, too.
    create(&api, config, "port=2", true).await.unwrap();
    let view: v1::NamedFile = api.get(config).await.unwrap();
    assert_eq!((view.version, view.content.unwrap()), (2, BASE64.encode("port=2")));
    let view: v1::NamedFile = api.get(&format!("{config}?version=1")).await.unwrap();
    assert_eq!(view.content.unwrap(), BASE64.encode("port=1"));
    let missing = problem(api.get::<Value>(&format!("{config}?version=7")).await);
    assert_eq!(missing.hint.as_deref(), Some("these are kept: 1, 2"));
    assert!(problem(api.get::<Value>("/v1/configs/prod/setings").await).hint.unwrap().contains("`settings`"));

    // A server that is started again knows them.
    cluster.stop().await;
    cluster.run().await;
    let api = cluster.admin().await;
    let list: Vec<v1::NamedFile> = api.get("/v1/configs?environment=prod").await.unwrap();
    assert_eq!(
        list.iter().map(|file| (file.name.as_str(), file.version)).collect::<Vec<_>>(),
        [("settings", 2)]
    );
    let view: v1::NamedFile = api.get(config).await.unwrap();
    assert_eq!(view.content.unwrap(), BASE64.encode("port=2"));
}

#[tokio::test]
async fn nothing_of_a_secret_is_in_any_answer_or_in_the_store() {
    let mut cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let secret = "/v1/secrets/prod/db_password";
    create(&api, secret, FIRST, false).await.unwrap();
    create(&api, "/v1/configs/prod/settings", "port=1", false).await.unwrap();
    api.done("shop", shop("shop")).await;
    create(&api, secret, SECOND, true).await.unwrap();
    let mut answers = vec![serde_json::to_string(&api.plan("shop", shop("shop")).await.unwrap()).unwrap()];
    let paths = [
        secret,
        "/v1/secrets/prod/db_password?version=1",
        "/v1/secrets",
        "/v1/apps/prod/shop?spec=true",
        "/v1/apps/prod/shop/releases/1",
        "/v1/tasks",
        "/v1/doctor",
    ];
    for path in paths {
        answers.push(api.get::<Value>(path).await.unwrap().to_string());
    }
    let events: Vec<Value> = api.all("/v1/events").await;
    answers.push(serde_json::to_string(&events).unwrap());
    assert!(answers.last().unwrap().contains("secret db_password of prod has version 2"));
    let wish = v1::FileCreate {
        content: BASE64.encode(FIRST),
        labels: Default::default(),
        replace: false,
        client: String::new(),
    };
    answers.push(format!("{wish:?}"));
    let needles = [FIRST, SECOND].map(|text| [text.to_owned(), BASE64.encode(text), hex::encode(text)]);
    for answer in &answers {
        assert!(!needles.as_flattened().iter().any(|needle| answer.contains(needle)), "{answer}");
    }
    for (content, what) in [("%", "not base64"), (&*"A".repeat(1400 << 10), "at most 1000 KiB")] {
        let body = json!({ "content": content });
        let refused = problem(api.call::<Value>(Method::POST, "/v1/secrets/prod/other", &body).await);
        assert!(refused.message.contains(what), "{refused:?}");
    }
    let body = json!({ "content": "", "labels": { "a": "b".repeat(9 << 10) } });
    let refused = problem(api.call::<Value>(Method::POST, "/v1/secrets/prod/other", &body).await);
    assert!(refused.message.contains("labels"), "{refused:?}");
    let refused = create(&api, "/v1/secrets/prod/.hidden", "x", false).await.unwrap_err();
    assert!(refused.message.contains("starting with a letter or digit"), "{refused:?}");
    cluster.stop().await;
    let bytes = std::fs::read(cluster.store_file()).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("db_password") && !needles.as_flattened().iter().any(|needle| holds(needle)));
}

#[tokio::test]
async fn of_a_release_and_a_removal_at_once_one_is_refused() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let _node = cluster.node("n1").await;
    let secret = "/v1/secrets/prod/db_password";
    create(&api, "/v1/configs/prod/settings", "port=1", false).await.unwrap();
    let (mut kept, mut gone) = (0, 0);
    for round in 0..8 {
        create(&api, secret, FIRST, false).await.unwrap();
        let app = format!("shop{round}");
        let plan = api.plan(&app, shop(&app)).await.unwrap();
        let (released, removed) =
            tokio::join!(api.apply(&app, shop(&app), &plan.fingerprint, false), remove(&api, secret));
        match (released, removed) {
            (Ok(_), Err(refused)) => {
                assert_eq!(refused.code, Code::Conflict);
                kept += 1;
                api.act(&app, Action::Down { volumes: true }).await.unwrap();
                eventually(async || remove(&api, secret).await.ok()).await;
            }
            (Err(_), Ok(())) => gone += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kept + gone, 8);
}
