//! Releases: history, going back with everything a release had, and steering a rollout.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use serde_json::{Value, json};
use wharf_api::v1::{self, Action, Code};

use crate::fixture::{Api, Cluster, Node, eventually, problem, up, up_with, web};

const RELEASES: &str = "/v1/apps/prod/shop/releases";
const ROLLOUT: &str = "/v1/apps/prod/shop/rollout";

async fn history(api: &Api) -> Vec<v1::Release> {
    api.get(RELEASES).await.unwrap()
}
async fn steer(api: &Api, verb: &str, generation: u64) -> Result<v1::RolloutStatus, v1::Problem> {
    let wish = json!({ "generation": generation, "client": "bob@desk", "reason": "looks wrong" });
    let answer = api.call(Method::POST, &format!("{ROLLOUT}/{verb}"), &wish).await;
    answer.map_err(|error| problem(Err::<(), _>(error)))
}
/// What the node was told to put into the app's containers.
fn contents(node: &Node) -> Vec<String> {
    let set = node.fake.set.lock().unwrap();
    let tasks = set.as_ref().unwrap().tasks.values().filter(|task| task.target == wharf_model::Target::Run);
    let decode = |text: &str| String::from_utf8(BASE64.decode(text).unwrap()).unwrap();
    tasks.flat_map(|task| task.files.iter().map(|file| decode(&file.content))).collect()
}
fn with_secret(version: u32) -> Action {
    let service =
        json!({ "image": format!("web:{version}"), "secrets": [{ "source": "key", "target": "/key" }] });
    let secrets = json!({ "key": { "external": true, "name": "password" } });
    up_with(json!({ "name": "shop", "services": { "web": service }, "secrets": secrets }))
}

#[tokio::test]
async fn an_app_returns_to_a_release_with_the_images_and_secrets_of_then() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let secret = |content: &str, replace: bool| {
        let wish = json!({ "content": BASE64.encode(content), "labels": {}, "replace": replace, "client": "ada@laptop" });
        let api = api.clone();
        async move {
            let path = "/v1/secrets/prod/password";
            api.call::<v1::FileCreated>(Method::POST, path, &wish).await.unwrap()
        }
    };
    let rollback = |to| Action::Rollback { to };
    assert_eq!(problem(api.plan("shop", rollback(None)).await).code, Code::NotFound);
    secret("first", false).await;
    api.done("shop", with_secret(1)).await;
    assert_eq!(problem(api.plan("shop", rollback(None)).await).code, Code::Conflict, "there is no other");
    secret("second", true).await;
    api.done("shop", with_secret(2)).await;
    assert_eq!(contents(&node), ["second"]);

    let plan = api.plan("shop", rollback(None)).await.unwrap();
    assert_eq!((plan.release, plan.rollback_of), (Some(3), Some(1)));
    let changing = plan.operations.iter().filter(|operation| operation.change != v1::Change::Keep);
    let said: Vec<_> =
        changing.map(|operation| (operation.name.as_str(), operation.reason.as_str())).collect();
    assert_eq!(
        said,
        [("key", "version 2 -> 1"), ("web", "image web:2 -> web:1, content of secret key changed")],
        "{plan:?}"
    );
    let status = api.done("shop", rollback(None)).await;
    assert_eq!(status.app.rollout.what, "release 3 (back to 1)");
    assert_eq!(status.services[0].image, "web:1");
    assert_eq!(contents(&node), ["first"]);
    let releases = history(&api).await;
    assert_eq!((releases[0].rollback_of, releases[0].from), (Some(1), Some(2)));
    assert_eq!(releases[0].images, releases[2].images);
    assert_eq!(releases[0].files, [v1::ReleaseFile { version: Some(1), ..releases[0].files[0].clone() }]);
    assert!(api.plan("shop", rollback(Some(1))).await.unwrap().is_noop());

    // The secret's end is not that of the copies that releases keep; who returns to one is told.
    api.done("shop", up("shop", web(4))).await;
    api.call::<Option<()>>(Method::DELETE, "/v1/secrets/prod/password", &Value::Null).await.unwrap();
    let plan = api.plan("shop", rollback(Some(2))).await.unwrap();
    assert_eq!(plan.refusals, []);
    let warning = "secret password is gone from prod: the release's own copy of version 2 is used";
    assert!(plan.warnings.iter().any(|said| said.starts_with(warning)), "{:?}", plan.warnings);
    api.done("shop", rollback(Some(2))).await;
    assert_eq!(contents(&node), ["second"]);
    let missing = problem(api.plan("shop", rollback(Some(9))).await);
    assert_eq!((missing.code, missing.message.as_str()), (Code::NotFound, "app shop has no release 9"));

    let diff: v1::ReleaseDiff = api.get(&format!("{RELEASES}/1/diff/2")).await.unwrap();
    let said: Vec<_> = diff.operations.iter().map(|operation| operation.reason.as_str()).collect();
    assert_eq!(said, ["version 1 -> 2", "image web:1 -> web:2"]);
    let none: v1::ReleaseDiff = api.get(&format!("{RELEASES}/2/diff/2")).await.unwrap();
    assert_eq!(none.operations, []);
    let some: Vec<v1::Release> = api.get(&format!("{RELEASES}?limit=2")).await.unwrap();
    assert_eq!(some.iter().map(|release| release.number).collect::<Vec<_>>(), [5, 4]);
}

#[tokio::test]
async fn what_is_said_of_a_release_stays_with_it_as_does_its_end() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let apply = async |version, message: &str, supersede| {
        let action = up("shop", web(version));
        let plan = api.plan("shop", action.clone()).await.unwrap();
        let wish = json!({
            "action": action, "fingerprint": plan.fingerprint, "client": "ada@laptop", "message": message, "supersede": supersede,
            "source": { "commit": "0a1b2c3", "branch": "main", "dirty": true },
        });
        api.call::<v1::Applied>(Method::POST, "/v1/apps/prod/shop/apply", &wish).await
    };
    assert_eq!(problem(apply(1, "\u{1b}[2J", false).await).code, Code::Invalid);
    node.fake.stuck.send_replace(true);
    apply(1, "the first", false).await.unwrap();
    apply(2, "the second", true).await.unwrap();
    node.fake.go_on();
    eventually(async || (history(&api).await[0].state == "done").then_some(())).await;
    let releases = history(&api).await;
    assert_eq!(releases[1].state, "superseded");
    assert!(releases[1].ended_at.is_some());
    assert_eq!(releases[1].message.as_deref(), Some("the first"));
    let source = v1::GitSource { commit: "0a1b2c3".into(), branch: Some("main".into()), dirty: Some(true) };
    assert_eq!(releases[0].source, Some(source));
    let changes = releases[0].changes.as_ref().unwrap();
    assert_eq!(changes[0].reason, "image web:1 -> web:2");
}

#[tokio::test]
async fn a_rollout_is_paused_goes_on_and_is_taken_back_by_who_means_it() {
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    assert!(api.get::<v1::RolloutStatus>(ROLLOUT).await.is_err(), "there is no such app");
    api.done("shop", up("shop", web(1))).await;
    let over: v1::RolloutStatus = api.get(ROLLOUT).await.unwrap();
    assert_eq!((over.rollout.state.as_str(), over.verbs.len()), ("done", 0));
    assert_eq!(steer(&api, "pause", over.rollout.generation).await.unwrap_err().code, Code::Conflict);

    node.fake.stuck.send_replace(true);
    let applied = api.act("shop", up("shop", web(2))).await.unwrap();
    let underway: v1::RolloutStatus = eventually(async || {
        let status: v1::RolloutStatus = api.get(ROLLOUT).await.unwrap();
        (status.services[0].new == 1).then_some(status)
    })
    .await;
    assert_eq!(underway.verbs, ["pause", "abort"]);
    assert_eq!((underway.release, underway.from), (Some(2), Some(1)));
    let service = &underway.services[0];
    assert_eq!((service.wanted, service.ready, service.old), (1, 0, 1));

    let late = steer(&api, "abort", applied.generation - 1).await.unwrap_err();
    assert_eq!((late.code, late.code.status().as_u16()), (Code::Moved, 409));
    assert_eq!(steer(&api, "undo", applied.generation).await.unwrap_err().code, Code::NotFound);
    let paused = steer(&api, "pause", applied.generation).await.unwrap();
    assert_eq!(paused.paused.as_ref().unwrap().by, "bob@desk");
    assert!(paused.rollout.held && paused.verbs == ["resume", "abort"], "{paused:?}");
    assert!(api.app("shop").await.app.rollout.held);
    let going = steer(&api, "resume", applied.generation).await.unwrap();
    assert!(going.paused.is_none() && !going.rollout.held);
    steer(&api, "abort", applied.generation).await.unwrap();
    node.fake.go_on();
    let back: v1::RolloutStatus = eventually(async || {
        let status: v1::RolloutStatus = api.get(ROLLOUT).await.unwrap();
        (status.rollout.state != "progressing").then_some(status)
    })
    .await;
    assert_eq!(back.rollout.state, "rolled_back");
    let release = &history(&api).await[0];
    assert!(release.reason.contains("aborted by bob@desk: looks wrong"), "{release:?}");
    let events: Vec<v1::Event> = api.all("/v1/events").await;
    let said = |text: &str| events.iter().any(|event| event.message.contains(text));
    assert!(said("shop: release 2 is to pause: bob@desk: looks wrong") && said("shop: release 2 is aborted"));
}
