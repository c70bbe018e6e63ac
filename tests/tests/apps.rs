//! What becomes of apps on real nodes and engines: order, restarts, placement, data, names, published ports, failures.

use std::{sync::LazyLock, thread, time::Duration};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, Output, Signal, items, skip, text, wait_until};

/// One cluster for all tests here; each has an app of its own.
static FLEET: LazyLock<Fleet> = LazyLock::new(|| Fleet::start(3));
const SOON: Duration = Duration::from_secs(30);

/// Brings an app up by its file, whatever the outcome.
fn up(app: &str, file: &str) -> Output {
    let path = FLEET.file(app, file);
    FLEET.wharf(["up", "-y", "-f", &path])
}

/// Brings an app up, which has to succeed.
#[track_caller]
fn deploy(app: &str, file: &str) -> Output {
    let output = up(app, file);
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    output
}

/// The tasks of a service, by slot.
fn tasks(app: &str, service: &str) -> Result<Vec<Value>> {
    Ok(FLEET.tasks(app)?.into_iter().filter(|task| task["service"] == service).collect())
}

/// The one task of a service, in this phase.
fn task_in(app: &str, service: &str, phase: &str) -> Result<Value> {
    let tasks = tasks(app, service)?;
    let [task] = tasks.as_slice() else { bail!("{service} has {} tasks", tasks.len()) };
    ensure!(task["status"]["phase"] == phase, "{service} is {}", task["status"]);
    Ok(task.clone())
}

fn nodes_of(tasks: &[Value]) -> Vec<&str> {
    let mut nodes: Vec<_> = tasks.iter().map(|task| text(&task["node"])).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn a_failing_task_is_shown_with_its_end_its_output_its_node_and_what_to_do() {
    if skip() {
        return;
    }
    let cases: [(&str, &str, &[&str]); 6] = [
        (
            "exits",
            "{image: 'busybox:1', command: \"sh -c 'echo the vault is shut; exit 3'\"}",
            &["crash loop (exit code 3)", "| the vault is shut"],
        ),
        (
            "killed",
            "{image: 'busybox:1', init: true, command: \"sh -c 'echo too bad; kill -9 $$$$'\"}",
            &["SIGKILL", "| too bad"],
        ),
        (
            "greedy",
            "{image: 'busybox:1', mem_limit: 16m, command: tail /dev/zero}",
            &["out of memory", "hint: raise its memory limit"],
        ),
        (
            "sick",
            "{image: 'wharf/testserver:1', healthcheck: {test: [CMD-SHELL, 'echo no database; exit 1'], interval: 300ms, retries: 1}}",
            &["its check says: no database"],
        ),
        (
            "wrong",
            "{image: 'busybox:1', command: nonesuch --please}",
            &["\"nonesuch\": executable file not found", "hint: check `command` and `entrypoint`"],
        ),
        (
            "absent",
            "{image: 'registry.invalid/nothing:1'}",
            &["registry.invalid/nothing:1", "hint: check its name and tag"],
        ),
    ];
    thread::scope(|scope| {
        for (app, service, expected) in cases {
            scope.spawn(move || {
                let since = std::time::Instant::now();
                let output = up(app, &format!("name: {app}\nservices:\n  it: {service}\n"));
                let said = &output.stderr;
                println!("{app} after {:.1} s:\n{said}", since.elapsed().as_secs_f64());
                assert_eq!(output.code, 1, "{app}: {said}");
                assert!(since.elapsed() < Duration::from_secs(40), "{app} took {:?}", since.elapsed());
                let end = said.split("\nfailed: ").nth(1).unwrap_or(said);
                for what in expected {
                    assert!(end.contains(what), "{app} does not say {what:?}: {said}");
                }
                if app != "absent" {
                    assert!(
                        end.contains(&format!("{app}-it-1 on n")),
                        "{app} does not name the node: {said}"
                    );
                }
            });
        }
    });
}

#[test]
fn a_release_that_fails_returns_to_the_one_before_and_serves_all_the_while() {
    if skip() {
        return;
    }
    let file = |name: &str, check: &str| {
        format!(
            "name: back\nservices:\n  web:\n    image: wharf/testserver:1\n    environment: {{NAME: {name}}}\n    ports: ['8101:8080']\n    healthcheck: {{test: [CMD, /testserver, {check}], interval: 300ms, retries: 1}}\n"
        )
    };
    deploy("back", &file("good", "health"));
    let url = format!("http://{}:8101/", FLEET.node(3).address());
    let answer = || FLEET.http(&url);
    wait_until(SOON, "the first release serves", || {
        let answer = answer()?;
        ensure!(answer.contains("name=good"), "{answer}");
        Ok(())
    });

    let path = FLEET.file("back", &file("worse", "nonesuch"));
    let mut change = FLEET.spawn(["up", "-y", "-f", &path]);
    while change.is_running() {
        let answer = answer().expect("it serves while the release fails");
        assert!(answer.contains("name=good"), "{answer}");
    }

    assert_eq!(change.wait(SOON).unwrap(), 1, "{}", change.log());
    assert!(change.log().contains("the app returned to release 1"), "{}", change.log());
    let history = FLEET.json(["app", "history", "back"]);
    let current: Vec<_> =
        items(&history).iter().filter(|release| release["current"] == true).map(|it| &it["number"]).collect();
    assert_eq!(current, [1], "{history}");
    assert!(answer().unwrap().contains("name=good"));
}

#[test]
fn services_start_when_what_they_depend_on_is_as_far_as_it_must_be() {
    if skip() {
        return;
    }
    deploy(
        "order",
        r"
name: order
services:
  web:
    image: busybox:1
    command: sleep 10000
    depends_on:
      migrate: {condition: service_completed_successfully}
      api: {condition: service_healthy}
  migrate:
    image: busybox:1
    command: sh -c 'sleep 1; echo migrated'
  api:
    image: wharf/testserver:1
    environment: {HEALTHY_AFTER_MS: '1500'}
    healthcheck: {test: [CMD, /testserver, health], interval: 300ms, retries: 20}
",
    );
    let at = |task: &Value, what: &str| task["status"][what].as_u64().unwrap_or_default();
    let web = task_in("order", "web", "running").unwrap();
    let api = task_in("order", "api", "running").unwrap();
    let migrate = task_in("order", "migrate", "complete").unwrap();
    assert_eq!(api["status"]["health"], "healthy");
    // Nodes here share one clock.
    assert!(at(&api, "ready_at") - at(&api, "started_at") >= 1_000, "{api}");
    assert!(at(&web, "started_at") >= at(&api, "ready_at"), "{web} {api}");
    assert!(at(&web, "started_at") >= at(&migrate, "ended_at"), "{web} {migrate}");

    // What has completed stays so when the app changes around it.
    assert_eq!(FLEET.wharf(["restart", "-p", "order", "web"]).code, 0);
    let again = task_in("order", "migrate", "complete").unwrap();
    assert_eq!(again["id"], migrate["id"]);
    assert_ne!(task_in("order", "web", "running").unwrap()["id"], web["id"]);
}

#[test]
fn what_runs_once_completes_and_a_failing_service_is_tried_again_ever_later() {
    if skip() {
        return;
    }
    let file = |code: u8| {
        format!(
            "name: once\nservices:\n  job: {{image: 'busybox:1', restart: 'no', command: sh -c 'echo worked'}}\n  flaky: {{image: 'busybox:1', command: \"sh -c 'sleep 4; exit {code}'\"}}\n"
        )
    };
    deploy("once", &file(4));
    let job = task_in("once", "job", "complete").unwrap();

    let shown = wait_until(SOON, "ps shows the pause before the next attempt", || {
        let output = FLEET.try_wharf(["ps", "-p", "once"])?;
        ensure!(output.stderr.contains("waiting: flaky.1 ended"), "{}{}", output.stdout, output.stderr);
        Ok::<_, anyhow::Error>(output)
    });
    assert!(shown.stderr.contains("exit code 4"), "{}", shown.stderr);
    assert!(shown.stderr.contains("is started again"), "{}", shown.stderr);
    assert!(shown.stdout.contains("failed (exit code 4)"), "{}", shown.stdout);
    let first = tasks("once", "flaky").unwrap()[0]["id"].clone();
    wait_until(SOON, "it is started again", || {
        let tasks = tasks("once", "flaky")?;
        ensure!(tasks[0]["id"] != first, "{}", tasks[0]);
        Ok(())
    });
    assert_eq!(
        task_in("once", "job", "complete").unwrap()["id"],
        job["id"],
        "a job that completed runs no more"
    );
}

#[test]
fn tasks_run_where_constraints_say_and_global_ones_everywhere() {
    if skip() {
        return;
    }
    FLEET.ok(["node", "label", "n3", "disk=ssd"]);
    deploy(
        "place",
        r"
name: place
services:
  fast:
    image: busybox:1
    command: sleep 10000
    deploy: {replicas: 2, placement: {constraints: [node.labels.disk == ssd]}}
  spread: {image: 'busybox:1', command: sleep 10000, deploy: {replicas: 3}}
  everywhere: {image: 'busybox:1', command: sleep 10000, deploy: {mode: global}}
",
    );
    assert_eq!(nodes_of(&tasks("place", "fast").unwrap()), ["n3", "n3"]);
    assert_eq!(nodes_of(&tasks("place", "spread").unwrap()), ["n1", "n2", "n3"]);
    assert_eq!(nodes_of(&tasks("place", "everywhere").unwrap()), ["n1", "n2", "n3"]);

    // What no node can take says why, and what would help.
    let path = FLEET.file(
        "nowhere",
        "name: nowhere\nservices:\n  it: {image: 'busybox:1', command: sleep 10000, deploy: {placement: {constraints: [node.labels.disk == tape]}}}\n",
    );
    let output = FLEET.wharf(["up", "-y", "--timeout", "2", "-f", &path]);
    assert_eq!(output.code, 3, "{}", output.stderr);
    assert!(output.stderr.contains("node.labels.disk"), "{}", output.stderr);
    assert_eq!(FLEET.wharf(["down", "-y", "-p", "nowhere"]).code, 0);
}

#[test]
fn a_named_volume_keeps_its_data_over_a_replacement_and_its_task_on_its_node() {
    if skip() {
        return;
    }
    let file = |note: &str| {
        format!(
            "name: keep\nservices:\n  db:\n    image: busybox:1\n    command: sh -c 'date +%s%N >> /data/starts; exec sleep 10000'\n    environment: {{NOTE: {note}}}\n    stop_grace_period: 0s\n    volumes: ['data:/data']\nvolumes: {{data: {{}}}}\n"
        )
    };
    deploy("keep", &file("one"));
    let before = task_in("keep", "db", "running").unwrap();
    let starts = || FLEET.ok(["exec", "-p", "keep", "db", "cat", "/data/starts"]);
    let first = starts();
    assert_eq!(first.lines().count(), 1, "{first}");

    let output = deploy("keep", &file("two"));

    assert!(output.stderr.contains("the old task stops before the new one starts"), "{}", output.stderr);
    let after = task_in("keep", "db", "running").unwrap();
    assert_ne!(after["id"], before["id"]);
    assert_eq!(after["node"], before["node"]);
    let both = starts();
    assert!(both.starts_with(&first) && both.lines().count() == 2, "{both}");

    // Taken down and brought back, the data is still there, until it is asked away.
    assert_eq!(FLEET.wharf(["down", "-y", "-p", "keep"]).code, 0);
    let output = deploy("keep", &file("two"));
    assert!(output.stderr.contains("its data is still there"), "{}", output.stderr);
    assert_eq!(starts().lines().count(), 3);
    let gone = FLEET.wharf(["down", "-y", "--volumes", "-p", "keep"]);
    assert_eq!(gone.code, 0, "{}", gone.stderr);
    deploy("keep", &file("two"));
    assert_eq!(starts().lines().count(), 1);
}

#[test]
fn services_find_each_other_by_name_across_nodes_and_names_follow_scaling() {
    if skip() {
        return;
    }
    let outside = FLEET.node(1).address();
    // The test cluster's resolver knows it by such a name.
    let domain = format!("{}.address.test", outside.to_string().replace('.', "-"));
    deploy(
        "names",
        &format!(
            r"
name: names
services:
  web:
    image: wharf/testserver:1
    ports: ['8109:8080']
    deploy: {{placement: {{constraints: [node.hostname == n2]}}}}
  back:
    image: busybox:1
    command: sleep 10000
    deploy: {{placement: {{constraints: [node.hostname == n3]}}}}
  gate:
    x-wharf: {{external: {{host: {outside}}}}}
  far-gate:
    x-wharf: {{external: {{host: {domain}}}}}
"
        ),
    );
    assert_eq!(nodes_of(&FLEET.tasks("names").unwrap()), ["n2", "n3"]);
    let in_back = |command: &[&str]| {
        let words = ["exec", "-p", "names", "back"].into_iter().chain(command.iter().copied());
        FLEET.try_wharf(words)?.text()
    };
    for name in ["web", "WEB", "web.names", "tasks.web", "nearest.web", "names-web-1", "web."] {
        let answer = in_back(&["wget", "-q", "-O", "-", &format!("http://{name}:8080/")]).unwrap();
        assert!(answer.contains("hostname=names-web-1"), "{name}: {answer}");
    }
    // Services outside the cluster, here the cluster's own entry, by address and by domain.
    for name in ["gate", "gate.names", "far-gate"] {
        let answer = in_back(&["wget", "-q", "-O", "-", &format!("http://{name}:8109/")]).unwrap();
        assert!(answer.contains("hostname=names-web-1"), "{name}: {answer}");
    }
    let address = tasks("names", "web").unwrap().remove(0)["addresses"]["default"].clone();
    let said = in_back(&["nslookup", text(&address)]).unwrap();
    assert!(said.contains("name = names-web-1"), "{said}");
    let said = in_back(&["nslookup", "-type=srv", "_8080._tcp.web"]).unwrap();
    assert!(said.contains("0 1 8080 names-web-1"), "{said}");

    let addresses = |tasks: &[Value]| {
        let mut all: Vec<_> =
            tasks.iter().map(|task| text(&task["addresses"]["default"]).to_owned()).collect();
        all.sort();
        all
    };
    for count in [3, 1] {
        FLEET.ok(["scale", "-p", "names", &format!("web={count}")]);
        let wanted = addresses(&tasks("names", "web").unwrap());
        assert_eq!(wanted.len(), count);
        wait_until(SOON, "the name leads to exactly the tasks there are", || {
            let answer = in_back(&["nslookup", "web"])?;
            let mut found: Vec<_> = answer
                .lines()
                .skip_while(|line| !line.starts_with("Name:"))
                .filter_map(|line| line.strip_prefix("Address: "))
                .map(|address| address.trim().to_owned())
                .collect();
            found.sort();
            ensure!(found == wanted, "{found:?} instead of {wanted:?}: {answer}");
            Ok(())
        });
    }
}

#[test]
fn a_published_port_answers_on_every_gateway_and_reaches_every_task() {
    if skip() {
        return;
    }
    deploy(
        "ports",
        "name: ports\nservices:\n  web: {image: 'wharf/testserver:1', ports: ['8102:8080'], deploy: {replicas: 2}}\n",
    );
    for node in FLEET.cluster.nodes() {
        let url = format!("http://{}:8102/", node.address());
        let mut seen = std::collections::BTreeSet::new();
        wait_until(SOON, &format!("{url} reaches both tasks"), || {
            seen.insert(FLEET.http(&url)?);
            ensure!(seen.len() == 2, "{seen:?}");
            Ok(())
        });
    }
    // What is down is no longer answered for.
    assert_eq!(FLEET.wharf(["down", "-y", "-p", "ports"]).code, 0);
    wait_until(SOON, "the port is closed", || {
        let url = format!("http://{}:8102/", FLEET.node(1).address());
        ensure!(FLEET.http(&url).is_err(), "it still answers");
        Ok(())
    });
}

#[test]
fn ctrl_c_ends_the_watching_and_says_what_goes_on() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "slow",
        "name: slow\nservices:\n  web:\n    image: wharf/testserver:1\n    environment: {HEALTHY_AFTER_MS: '5000'}\n    healthcheck: {test: [CMD, /testserver, health], interval: 300ms, retries: 60}\n",
    );
    let mut watching = FLEET.spawn(["up", "-y", "-f", &path]);
    wait_until(SOON, "it watches", || {
        let log = watching.log();
        ensure!(log.contains("waiting for its check to pass"), "{log}");
        Ok(())
    });

    watching.signal(Signal::SIGINT).unwrap();

    assert_eq!(watching.wait(Duration::from_secs(5)).unwrap(), 130, "{}", watching.log());
    let said = watching.log();
    assert!(said.contains("the change goes on in the cluster"), "{said}");
    assert!(said.contains("wharf rollout status -p slow --watch"), "{said}");
    // Following it again gives its outcome.
    let again = FLEET.wharf(["up", "-y", "-f", &path]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stderr.contains("under way"), "{}", again.stderr);
    assert_eq!(task_in("slow", "web", "running").unwrap()["status"]["health"], "healthy");
}
