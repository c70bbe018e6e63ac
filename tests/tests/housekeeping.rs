//! What nodes keep and let go, what tasks tell that end, and what each task has of its own, on real nodes.

use std::{sync::LazyLock, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, items, skip, text, wait_until};

/// One cluster for all tests here; each has an app of its own.
static FLEET: LazyLock<Fleet> = LazyLock::new(|| Fleet::start(2));
const SOON: Duration = Duration::from_secs(60);

#[test]
fn an_image_that_a_rollback_needs_stays_and_says_so() {
    if skip() {
        return;
    }
    let file = |version: u32| {
        FLEET.file(
            "keeps",
            &format!(
                "name: keeps\nservices:\n  web:\n    build: {{dockerfile_inline: \"FROM busybox:1\\nENV VERSION={version}\\n\"}}\n    command: sleep 10000\n    stop_grace_period: 0s\n    deploy: {{placement: {{constraints: [node.hostname == n1]}}}}\n"
            ),
        )
    };
    for version in 1..=2 {
        FLEET.ok(["up", "-y", "--build", "-f", &file(version)]);
    }
    // What the node says of its images: for each that is kept, why.
    let kept = || -> Result<Vec<(String, String)>> {
        let answer = FLEET.try_json(["node", "prune", "--all", "--dry-run"])?;
        let nodes = answer.as_object().into_iter().flatten();
        let kept = nodes.flat_map(|(_, answer)| items(&answer["kept"]));
        Ok(kept.map(|thing| (text(&thing["id"]).to_owned(), text(&thing["why"]).to_owned())).collect())
    };
    let releases = FLEET.json(["app", "history", "keeps"]);
    assert_eq!(items(&releases).len(), 2, "{releases}");
    let first = FLEET.json(["app", "inspect", "keeps", "--release", "1"]);
    let image = text(&first["images"]["web"]).split('@').next_back().unwrap_or_default().to_owned();
    assert!(image.starts_with("sha256:"), "{first}");
    wait_until(SOON, "the old task is gone and its image is kept for the way back", || {
        let kept = kept()?;
        let why: Vec<_> = kept.iter().filter(|(id, _)| *id == image).map(|(_, why)| why.as_str()).collect();
        ensure!(why == ["release 1 of default/keeps needs it"], "{image}: {kept:?}");
        anyhow::Ok(())
    });
    FLEET.ok(["rollback", "keeps", "-y"]);
    FLEET.ok(["down", "-y", "-p", "keeps"]);
    wait_until(SOON, "no release needs it any more", || {
        let kept = kept()?;
        let why: Vec<_> = kept.iter().filter(|(id, _)| *id == image).map(|(_, why)| why.as_str()).collect();
        ensure!(why.is_empty() || why == ["it was used a moment ago"], "{kept:?}");
        anyhow::Ok(())
    });
    let nodes = FLEET.json(["node", "inspect", "n1"]);
    let disks = items(&nodes[0]["disks"]);
    assert!(!disks.is_empty() && disks.iter().all(|disk| disk["percent"].as_u64() <= Some(100)), "{nodes}");
}

#[test]
fn each_task_has_what_its_placeholders_stand_for() {
    if skip() {
        return;
    }
    let file = "name: own\nservices:\n  web:\n    image: busybox:1\n    command: sleep 10000\n    stop_grace_period: 0s\n    hostname: 'web-{{.Task.Slot}}'\n    environment:\n      WHERE: '{{.Node.Hostname}} {{.Node.IP}}'\n      TIER: '{{index .Service.Labels \"tier\"}}'\n      FORMAT: '{{json .}}'\n    volumes: ['/srv/own/{{.Task.Slot}}:/data']\n    deploy: {replicas: 2, labels: {tier: front}}\n";
    FLEET.ok(["up", "-y", "-f", &FLEET.file("own", file)]);
    for task in FLEET.tasks("own").unwrap() {
        let (slot, node) = (task["slot"].as_u64().unwrap(), text(&task["node"]).to_owned());
        let address = FLEET.node(node.trim_start_matches('n').parse().unwrap()).address();
        let script = "echo $(hostname) $WHERE $TIER $FORMAT; touch /data/here";
        let said = FLEET.ok(["exec", "-p", "own", "--index", &slot.to_string(), "web", "sh", "-c", script]);
        assert_eq!(said.trim(), format!("web-{slot} {node} {address} front {{{{json .}}}}"));
        let there = FLEET.node(node.trim_start_matches('n').parse().unwrap());
        there.run(["test", "-e", &format!("/srv/own/{slot}/here")]).unwrap();
    }
    let wrong = file.replace(".Node.Hostname", ".Node.Hostnme");
    let output = FLEET.wharf(["up", "-y", "-f", &FLEET.file("own", &wrong)]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("there is no `.Node.Hostnme`"), "{}", output.stderr);
    assert!(output.stderr.contains("compose.yaml:9"), "{}", output.stderr);
    FLEET.ok(["down", "-y", "-p", "own"]);
}

#[test]
fn a_crash_loop_is_called_one_and_says_what_it_printed() {
    if skip() {
        return;
    }
    let file = "name: loops\nservices:\n  web:\n    image: busybox:1\n    command: [sh, -c, 'echo no database; exit 3']\n    deploy: {restart_policy: {delay: 500ms}}\n";
    let output = FLEET.wharf(["up", "-y", "-f", &FLEET.file("loops", file)]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    wait_until(SOON, "it is a crash loop", || {
        let output = FLEET.try_wharf(["ps", "-p", "loops"])?;
        let state: Value = FLEET.try_json(["ps", "-p", "loops"])?;
        let in_loop = items(&state).iter().any(|task| text(&task["crash_loop"]).contains(" times in "));
        ensure!(in_loop && output.stdout.contains("crash loop (exit code 3)"), "{}", output.stdout);
        for part in ["web.1 is in a crash loop: it ended ", "exit code 3; next try in ", "no database"] {
            ensure!(output.stderr.contains(part), "{}", output.stderr);
        }
        anyhow::Ok(())
    });
    FLEET.ok(["down", "-y", "-p", "loops"]);
}
