//! The verbs of the command line, by what they print and exit with.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::Value;
use wharf_tests::{Fleet, Output, Signal, items, skip, text, wait_until};

/// One cluster for all tests here that do not change machines; each uses apps of its own.
static FLEET: LazyLock<Fleet> = LazyLock::new(|| Fleet::start(3));
const SOON: Duration = Duration::from_secs(30);

/// Checks exit code and both streams at once, so that a failure shows everything.
#[track_caller]
fn assert_said(output: &Output, code: i32, parts: &[&str]) {
    let all = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, code, "{all}");
    for part in parts {
        assert!(all.contains(part), "it does not say {part:?}:\n{all}");
    }
}

/// A line of output without the widths of columns.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a shell script with `WHARF` in it on a terminal of the client's, where this is typed; what it prints comes back
/// as one text.
fn on_a_terminal(script: &str, typed: &str) -> Output {
    let script = script.replace("WHARF", &FLEET.binary.display().to_string());
    let command = ["script", "--quiet", "--return", "--command", &script, "/dev/null"];
    FLEET.cluster.client_exec_with(command, typed.as_bytes(), SOON).unwrap()
}

#[test]
fn nodes_are_listed_labelled_drained_and_removed() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    let server = fleet.node(1).address();
    assert!(fleet.join_line.starts_with(&format!("wharf agent join {server}:7420 --token wharf1-")));

    let nodes = fleet.json(["node", "ls"]);
    let first = &items(&nodes)[0];
    for (key, value) in
        [("name", "n1"), ("state", "ready"), ("availability", "active"), ("platform", "linux/amd64")]
    {
        assert_eq!(first[key], value, "{first}");
    }
    assert_eq!(text(&first["address"]), server.to_string());
    assert!(first["cpus"].as_u64() >= Some(1000) && first["memory"].as_u64() > Some(1 << 28), "{first}");
    assert_eq!(first["agent_version"], "0.1.0");
    assert!(text(&first["engine_version"]).contains('.'), "{first}");
    let roles =
        |node: &Value| items(&node["roles"]).iter().map(|role| text(role).to_owned()).collect::<Vec<_>>();
    assert_eq!(roles(first), ["agent", "server", "gateway"]);
    assert_eq!(roles(&items(&nodes)[1]), ["agent", "gateway"]);
    let table = fleet.ok(["node", "ls"]);
    let lines: Vec<_> = table.lines().map(words).collect();
    assert_eq!(
        lines[0],
        "NAME STATE AVAILABILITY ROLES ADDRESS PLATFORM CPUS MEMORY DISK TASKS ENGINE AGENT LABELS"
    );
    assert!(
        lines[1].starts_with(&format!("n1 ready active agent,server,gateway {server} linux/amd64 ")),
        "{table}"
    );

    let labelled = fleet.wharf(["node", "label", "n2", "disk=ssd", "zone=a"]);
    assert_said(&labelled, 0, &["disk=ssd, zone=a"]);
    assert_said(&fleet.wharf(["node", "label", "n2", "zone-"]), 0, &["n2 (agent, gateway) has disk=ssd"]);
    assert_said(
        &fleet.wharf(["node", "label", "n2", "zone"]),
        1,
        &["`zone` is no label", "hint: write `KEY=VALUE`"],
    );
    assert_said(&fleet.wharf(["node", "label", "n9", "a=b"]), 1, &["n9"]);
    assert_eq!(fleet.json(["node", "inspect", "n2"])[0]["labels"]["disk"], "ssd");
    assert_said(&fleet.wharf(["node", "ls"]), 0, &["disk=ssd"]);

    // A task moves away from a node that is drained, and may come back once it is active again.
    let path = fleet.file(
        "moves",
        "name: moves\nservices:\n  it: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, deploy: {mode: global}}\n  one: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, deploy: {replicas: 2}}\n",
    );
    assert_said(&fleet.wharf(["up", "-y", "-f", &path]), 0, &["done: release 1"]);
    assert_said(&fleet.wharf(["node", "drain", "n2"]), 0, &["n2 is drained: it has no tasks"]);
    let tasks = fleet.json(["ps", "--node", "n2"]);
    assert!(items(&tasks).is_empty(), "{tasks}");
    wait_until(SOON, "the tasks run on the other node", || {
        let tasks = fleet.tasks("moves")?;
        let running: Vec<_> =
            tasks.iter().filter(|task| task["ready"] == true).map(|task| text(&task["node"])).collect();
        ensure!(running == ["n1", "n1", "n1"], "{running:?}");
        Ok(())
    });
    assert_said(&fleet.wharf(["node", "ls"]), 0, &["drain"]);
    assert_said(&fleet.wharf(["node", "activate", "n2"]), 0, &["n2 is active"]);
    wait_until(SOON, "the global service is back on it", || {
        let tasks = fleet.try_json(["ps", "--node", "n2"])?;
        ensure!(items(&tasks).len() == 1, "{tasks}");
        Ok(())
    });

    // What is removed is asked about, refused while it has tasks, and good for nothing afterwards.
    assert_said(&fleet.wharf(["node", "rm", "n2"]), 1, &["there is no terminal to ask on", "hint: say yes"]);
    assert_said(&fleet.wharf(["node", "rm", "-y", "n2"]), 1, &["n2", "hint:"]);
    assert_said(&fleet.wharf(["node", "rm", "-y", "--force", "n2"]), 0, &["n2 was removed from the cluster"]);
    assert_eq!(items(&fleet.json(["node", "ls"])).len(), 1);
}

#[test]
fn join_tokens_expire_rotate_and_end() {
    if skip() {
        return;
    }
    let fleet = Fleet::bare(wharf_testkit::cluster::Cluster::builder().nodes(2).without_engines()).unwrap();
    fleet.node(1).service("wharf").run(["wharf", "server", "run"]).unwrap();
    wait_until(SOON, "the server answers", || fleet.try_wharf(["version"])?.text());
    let ids = || -> Vec<String> {
        items(&fleet.json(["token", "ls"])).iter().map(|token| text(&token["id"]).to_owned()).collect()
    };
    let first = ids();
    assert_eq!(first.len(), 1, "the one of init");

    let short = fleet.ok(["token", "create", "--ttl", "1s"]);
    assert!(short.starts_with("wharf agent join "), "{short}");
    let node = fleet.node(2);
    let refused = wait_until(SOON, "the token expires", || {
        let words: Vec<_> = short.split_whitespace().collect();
        let output = node.exec(words.iter().copied().chain(["--force"]))?;
        ensure!(!output.is_success(), "it still joins");
        Ok::<_, anyhow::Error>(output)
    });
    assert_said(&refused, 1, &["expired", "hint:", "wharf token create"]);

    let rotated = fleet.ok(["token", "create", "--rotate"]);
    assert_eq!(ids().len(), 1, "rotation ends the others");
    let old: Vec<_> = fleet.join_line.split_whitespace().chain(["--force"]).collect();
    assert_said(&node.exec(old).unwrap(), 1, &["token", "hint:"]);
    let new: Vec<_> = rotated.split_whitespace().chain(["--force"]).collect();
    assert_said(&node.exec(new).unwrap(), 0, &["this machine is node n2 now"]);

    let id = ids().remove(0);
    assert_said(&fleet.wharf(["token", "rm", &id]), 0, &["has ended"]);
    assert!(ids().is_empty());
    assert_said(&fleet.wharf(["token", "create", "--ttl", "soon"]), 2, &["write a number and s, m, h or d"]);
    assert_said(&fleet.wharf(["token", "create", "--role", "king"]), 2, &["`king` is no role"]);
}

#[test]
fn up_shows_a_plan_with_reasons_asks_and_does_exactly_that() {
    if skip() {
        return;
    }
    let file = |name: &str, image: &str, replicas: u8, rest: &str| {
        FLEET.file(
            "plan",
            &format!(
                "name: plan\nservices:\n  web: {{image: '{image}', command: sleep 10000, stop_grace_period: 0s, environment: {{NAME: {name}}}, deploy: {{replicas: {replicas}}}}}\n{rest}"
            ),
        )
    };
    let back = "  back: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}\n";
    let path = file("one", "busybox:1", 1, back);
    let planned = |path: &str| {
        let output = FLEET.wharf(["up", "--dry-run", "-f", path]);
        let lines: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("  ")).map(words).collect();
        (output.code, lines)
    };

    assert_eq!(
        planned(&path),
        (
            3,
            vec![
                "+ network default".into(),
                "+ service back image busybox:1, 1 task".into(),
                "+ service web image busybox:1, 1 task".into(),
            ]
        )
    );
    assert_said(&FLEET.wharf(["ps", "-p", "plan"]), 1, &["there is no app `plan`"]);
    assert_said(
        &FLEET.wharf(["up", "-f", &path]),
        1,
        &["there is no terminal to ask on", "hint: say yes beforehand with `--yes`"],
    );

    // Asked on a terminal: no changes nothing, yes does it.
    let no = on_a_terminal(&format!("WHARF up -f {path}"), "n\n");
    assert_said(&no, 1, &["nothing was changed"]);
    assert!(no.stdout.contains("Do this? [y/N]"), "{}", no.stdout);
    let up = FLEET.wharf(["up", "-y", "-f", &path]);
    assert_said(&up, 0, &["plan-web-1", "running on n", "done: release 1"]);

    let since = Instant::now();
    let again = FLEET.wharf(["up", "-y", "-f", &path]);
    let took = since.elapsed();
    assert_said(&again, 0, &["nothing to do: everything is as the file says"]);
    println!("an `up` that changes nothing took {:.3} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(FLEET.wharf(["up", "--dry-run", "-f", &path]).code, 0);

    let changes: [(&str, &[&str]); 4] = [
        (&file("two", "busybox:1", 1, back), &["± service web environment NAME changed"]),
        (&file("two", "busybox:1", 3, back), &["± service web environment NAME changed, 1 -> 3 tasks"]),
        (
            &file("one", "wharf/testserver:1", 1, back),
            &["± service web image busybox:1 -> wharf/testserver:1"],
        ),
        (&file("one", "busybox:1", 1, ""), &["- service back no longer in the file"]),
    ];
    // Each file replaced the one before it in its folder, so they are written again.
    for (number, (_, expected)) in changes.iter().enumerate() {
        let path = match number {
            0 => file("two", "busybox:1", 1, back),
            1 => file("two", "busybox:1", 3, back),
            2 => file("one", "wharf/testserver:1", 1, back),
            _ => file("one", "busybox:1", 1, ""),
        };
        assert_eq!(planned(&path), (3, expected.iter().map(|line| (*line).to_owned()).collect()));
    }

    // A change in place does not touch what runs.
    let id = |service: &str| {
        let tasks = FLEET.tasks("plan").unwrap();
        text(&tasks.iter().find(|task| task["service"] == service).unwrap()["id"]).to_owned()
    };
    let before = (id("web"), id("back"));
    let path = file("one", "busybox:1", 2, back);
    assert_eq!(planned(&path), (3, vec!["~ service web 1 -> 2 tasks".into()]));
    let document = FLEET.json(["up", "-y", "-f", &path]);
    assert_eq!(document["outcome"], "done", "{document}");
    assert_eq!(document["plan"]["app"], "plan");
    assert_eq!(document["rollout"]["state"], "done");
    assert_eq!((id("web"), id("back")), before);

    let path = file("three", "busybox:1", 2, back);
    assert_said(
        &FLEET.wharf(["up", "-y", "--detach", "-f", &path]),
        0,
        &["under way; `wharf rollout status -p plan`"],
    );
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &[]);
    let unchanged = FLEET.json(["up", "-y", "-f", &path]);
    assert_eq!(unchanged["outcome"], "unchanged", "{unchanged}");
}

#[test]
fn every_verb_of_an_app_works_from_the_client() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "verbs",
        r"
name: verbs
services:
  web:
    image: wharf/testserver:1
    stop_grace_period: 1s
    ports: ['8201:8080']
    deploy: {replicas: 2, placement: {constraints: [node.hostname != n1]}}
  talk:
    image: busybox:1
    stop_grace_period: 0s
    command: sh -c 'echo one; echo two; echo three; exec sleep 10000'
",
    );
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &["done: release 1", ":8201"]);
    let url = format!("http://{}:8201", FLEET.node(1).address());

    let table = FLEET.ok(["ps", "-f", &path]);
    let lines: Vec<_> = table.lines().map(words).collect();
    assert_eq!(lines[0], "TASK SERVICE NODE STATE SINCE RELEASE IMAGE ADDRESS");
    assert!(
        lines.iter().any(|line| line.starts_with("verbs-talk-1 talk n") && line.contains(" running ")),
        "{table}"
    );
    assert_eq!(FLEET.tasks("verbs").unwrap().len(), 3);
    assert_said(&FLEET.wharf(["ps", "-p", "verbs", "nobody"]), 1, &["no service `nobody`", "hint: it has: "]);
    assert_said(&FLEET.wharf(["ps", "-p", "verb"]), 1, &["there is no app `verb`", "did you mean `verbs`?"]);

    // What was printed, the last of it, and none of it since later.
    let log = FLEET.ok(["logs", "-p", "verbs", "--no-prefix", "talk"]);
    assert_eq!(log, "one\ntwo\nthree");
    assert_eq!(FLEET.ok(["logs", "-p", "verbs", "--tail", "1", "talk"]), "verbs-talk-1 | three");
    let later = FLEET.ok(["logs", "-p", "verbs", "--since", "2099-01-01T00:00:00Z", "talk"]);
    assert_eq!(later, "");
    let line = FLEET.ok(["--format", "json", "logs", "-p", "verbs", "--tail", "1", "talk"]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((text(&line["text"]), text(&line["stream"])), ("three", "stdout"));
    let mut following = FLEET.spawn(["logs", "-f", "--file", &path, "web"]);
    wait_until(SOON, "what is printed later is shown", || {
        FLEET.http(&format!("{url}/bytes/77"))?;
        let log = following.log();
        ensure!(log.contains("| GET /bytes/77"), "{log}");
        Ok(())
    });
    assert!(following.is_running());
    following.kill().unwrap();

    // Things as they happen, from the moment asked for.
    let mut events = FLEET.spawn(["--format", "json", "events", "-p", "verbs"]);
    let scaled = wait_until(SOON, "events are followed", || {
        assert_said(&FLEET.wharf(["scale", "-p", "verbs", "web=3"]), 0, &[]);
        assert_said(&FLEET.wharf(["scale", "-p", "verbs", "web=2"]), 0, &[]);
        let log = events.log();
        ensure!(log.contains("verbs-web-3"), "{log}");
        Ok::<_, anyhow::Error>(log)
    });
    for line in scaled.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["app"], "default/verbs", "{event}");
    }
    events.kill().unwrap();
    let past = FLEET.ok(["events", "-p", "verbs", "--since", "10m", "--no-follow"]);
    assert!(past.contains("app     verbs: release 1 was asked for (by root@"), "{past}");
    assert_said(&FLEET.wharf(["scale", "-p", "verbs", "web=2"]), 0, &["nothing to do"]);
    assert_said(&FLEET.wharf(["scale", "-p", "verbs", "web"]), 2, &["is not SERVICE=TASKS"]);
    assert_said(&FLEET.wharf(["scale", "-p", "verbs", "wep=2"]), 1, &["no service `wep`"]);

    let ids = |service: &str| -> Vec<String> {
        let tasks = FLEET.tasks("verbs").unwrap();
        let of = tasks.iter().filter(|task| task["service"] == service && task["ready"] == true);
        of.map(|task| text(&task["id"]).to_owned()).collect()
    };
    let before = (ids("web"), ids("talk"));
    assert_said(&FLEET.wharf(["restart", "-p", "verbs", "web"]), 0, &["± service  web", "done"]);
    assert!(ids("web").iter().all(|id| !before.0.contains(id)) && ids("web").len() == 2);
    assert_eq!(ids("talk"), before.1);
    assert_said(&FLEET.wharf(["stop", "-p", "verbs", "web"]), 0, &["done"]);
    assert_eq!(ids("web").len(), 0);
    assert_said(&FLEET.wharf(["ps", "-p", "verbs"]), 0, &["web is stopped; `wharf start web` starts it"]);
    assert_said(&FLEET.wharf(["stop", "-p", "verbs", "web"]), 0, &["nothing to do: stopped already"]);
    assert_said(&FLEET.wharf(["start", "-p", "verbs", "web"]), 0, &["done"]);
    assert_eq!(ids("web").len(), 2);

    let task = &FLEET.json(["inspect", "verbs-talk-1"])[0];
    assert_eq!(task["status"]["phase"], "running");
    assert_eq!(FLEET.json(["inspect", "verbs/talk"])[0]["name"], "talk");
    assert_eq!(FLEET.json(["inspect", "n1"])[0]["name"], "n1");
    let container = &FLEET.json(["inspect", "--container", "verbs-talk-1"])[0];
    assert_eq!(container["State"]["Running"], true, "{container}");
    assert_eq!(container["HostConfig"]["RestartPolicy"]["Name"], "no");
    assert_said(&FLEET.wharf(["inspect", "verbs-talk-9"]), 1, &["verbs-talk-9", "hint:"]);

    let usage = FLEET.json(["top", "-p", "verbs", "--once"]);
    assert_eq!(items(&usage).len(), 3, "{usage}");
    assert!(
        items(&usage).iter().all(|task| task["memory"].as_u64() > Some(0) && task["pids"].as_u64() > Some(0))
    );
    assert_said(&FLEET.wharf(["top", "-p", "verbs", "--once"]), 0, &["TASK", "verbs-web-2"]);

    let apps = FLEET.json(["app", "ls"]);
    let app = items(&apps).iter().find(|app| app["name"] == "verbs").unwrap();
    assert_eq!((app["ready"].as_u64(), app["wanted"].as_u64()), (Some(3), Some(3)), "{app}");
    assert_eq!(FLEET.json(["app", "inspect", "verbs"])["app"]["name"], "verbs");
    assert_said(&FLEET.wharf(["app", "history", "verbs"]), 0, &["1 (current)", "done", "+talk"]);
    assert_eq!(FLEET.json(["app", "history", "verbs", "--show", "1"])["number"], 1);
    assert_said(&FLEET.wharf(["config", "-f", &path]), 0, &["wharf/testserver:1"]);
    assert_said(&FLEET.wharf(["--env", "staging", "app", "ls"]), 0, &["no apps in environment `staging`"]);

    assert_said(
        &FLEET.wharf(["down", "-p", "verbs"]),
        1,
        &["- service  web", "2 tasks stop", "no terminal to ask on"],
    );
    assert_said(&FLEET.wharf(["down", "-y", "-p", "verbs"]), 0, &["verbs is gone"]);
    assert_said(&FLEET.wharf(["ps", "-p", "verbs"]), 1, &["there is no app `verbs`"]);
    assert!(FLEET.http(&format!("{url}/")).is_err());
}

#[test]
fn secrets_and_configs_of_an_environment_reach_the_containers_that_mount_them() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "vault",
        r"
name: vault
services:
  web:
    image: busybox:1
    stop_grace_period: 0s
    command: sleep 10000
    secrets: [{source: password, target: db, uid: '70', gid: '71', mode: 0440}]
    configs: [{source: settings, target: /etc/app.conf}]
secrets:
  password: {external: true, name: vault_password}
configs:
  settings: {external: true, name: vault.conf, labels: {team: pay}}
",
    );
    let piped = |args: &[&str], input: &str| FLEET.wharf_with(args, input.as_bytes()).unwrap();
    assert_said(
        &FLEET.wharf(["up", "-y", "-f", &path]),
        1,
        &[
            "secret `password` is external, and environment `default` has no secret of the name `vault_password`",
            "hint: make it: `wharf secret create vault_password FILE --env default`",
            "wharf configs create vault.conf FILE",
        ],
    );
    let first = piped(&["secret", "create", "vault_password", "-"], "hunter-one");
    assert_said(&first, 0, &["secret vault_password of environment default is at version 1"]);
    assert_said(&piped(&["configs", "create", "vault.conf"], "port=1\n"), 0, &["is at version 1"]);
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &["+ secret   password", "done: release 1"]);

    let inside = |words: &[&str]| {
        FLEET.ok(["exec", "-p", "vault", "web", "--"].iter().chain(words).copied().collect::<Vec<_>>())
    };
    assert_eq!(inside(&["cat", "/run/secrets/db"]), "hunter-one");
    assert_eq!(inside(&["stat", "-c", "%u %g %a", "/run/secrets/db"]), "70 71 440");
    assert_eq!(inside(&["cat", "/etc/app.conf"]), "port=1");

    let again = piped(&["secret", "create", "vault_password"], "hunter-two");
    assert_said(&again, 1, &["there is a secret `vault_password`", "hint: `--replace` makes a new version"]);
    // Asked on a terminal, which does not show it.
    let typed = on_a_terminal("WHARF secret create vault_password --replace", "hunter-two\nhunter-two\n");
    assert_said(&typed, 0, &["is at version 2", "still on an older version", "vault (version 1)"]);
    assert!(!typed.stdout.replace("hunter-two\r\nhunter-two\r\n", "").contains("hunter"), "{}", typed.stdout);
    let plan = FLEET.wharf(["up", "--dry-run", "-f", &path]);
    assert_said(&plan, 3, &["version 1 -> 2", "± service  web", "content of secret password changed"]);
    assert_eq!(inside(&["cat", "/run/secrets/db"]), "hunter-one");
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &["done: release 2"]);
    assert_eq!(inside(&["cat", "/run/secrets/db"]), "hunter-two");

    let listed = FLEET.ok(["secret", "ls"]);
    assert!(listed.lines().map(words).any(|line| line.starts_with("vault_password 2 10 B")), "{listed}");
    assert_eq!(FLEET.json(["secret", "inspect", "vault_password"])["used_by"][0]["app"], "vault");
    assert_eq!(FLEET.ok(["configs", "cat", "vault.conf"]), "port=1");
    let rm = FLEET.wharf(["secret", "rm", "-y", "vault_password"]);
    assert_said(&rm, 1, &["secret vault_password of default is used by app vault", "hint:"]);
    assert_said(&FLEET.wharf(["secret", "rm", "nothing"]), 1, &["there is no secret `nothing`"]);
    let everything = [
        FLEET.ok(["app", "inspect", "vault"]),
        FLEET.ok(["app", "history", "vault", "--show", "2"]),
        FLEET.ok(["events", "--since", "10m", "--no-follow"]),
        FLEET.ok(["secret", "inspect", "vault_password"]),
        FLEET.ok(["inspect", "--container", "vault-web-1"]),
    ];
    for said in everything {
        assert!(!said.contains("hunter") && !said.contains("aHVudGVyLXR3b"), "{said}");
    }
    assert_said(&FLEET.wharf(["down", "-y", "-p", "vault"]), 0, &["vault is gone"]);
    assert_said(&FLEET.wharf(["secret", "rm", "-y", "vault_password"]), 0, &["vault_password is removed"]);
    assert_said(&FLEET.wharf(["configs", "rm", "-y", "vault.conf"]), 0, &["vault.conf is removed"]);
}

#[test]
fn exec_passes_input_exit_codes_signals_and_terminal_sizes() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "shell",
        "name: shell\nservices:\n  it: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, environment: {A: b}, deploy: {placement: {constraints: [node.hostname == n3]}}}\n",
    );
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &[]);
    let exec = |args: &[&str]| FLEET.wharf(["exec", "-p", "shell", "it"].iter().chain(args));

    let output = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    assert_said(
        &FLEET.wharf(["exec", "-e", "C=d e", "-w", "/tmp", "shell-it-1", "sh", "-c", "echo $A $C; pwd"]),
        0,
        &["b d e\n/tmp\n"],
    );
    assert_said(&exec(&["sh", "-c", "kill -9 $$"]), 137, &[]);
    let absent = exec(&["nonesuch"]);
    // 126 or 127, as the engine says.
    assert_said(
        &absent,
        if absent.code == 126 { 126 } else { 127 },
        &["\"nonesuch\": executable file not found"],
    );
    assert_said(&FLEET.wharf(["exec", "-p", "shell", "nobody", "true"]), 1, &["nobody"]);
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let output = FLEET.wharf_with(["exec", "-i", "-p", "shell", "it", "md5sum"], &input).unwrap();
    let local = FLEET.cluster.client_exec_with(["md5sum"], &input, SOON).unwrap();
    assert_eq!(output.stdout, local.stdout, "{}", output.stderr);

    // A signal to the client reaches the command, whose exit code is the client's.
    let script = "trap 'echo got it; exit 4' TERM; echo ready; while :; do sleep 0.1; done";
    let mut running = FLEET.spawn(["exec", "-p", "shell", "it", "sh", "-c", script]);
    wait_until(SOON, "the command runs", || {
        ensure!(running.log().contains("ready"), "{}", running.log());
        Ok(())
    });
    running.signal(Signal::SIGTERM).unwrap();
    assert_eq!(running.wait(SOON).unwrap(), 4, "{}", running.log());
    assert!(running.log().contains("got it"), "{}", running.log());

    // On a terminal: its size at the start, and the size it is given later. Engines of before API 1.42 set the first
    // one only once the command runs, so it waits for that.
    let command = "until stty size | grep -q '^40 '; do sleep 0.1; done; trap 'stty size; exit 9' WINCH; echo began; while :; do sleep 0.1; done";
    let resize = "for columns in $(seq 101 160); do sleep 0.5; stty columns $columns </dev/tty || exit; done";
    let script =
        format!("stty rows 40 columns 100; ({resize}) & WHARF exec -it -p shell it sh -c \"{command}\"");
    let output = on_a_terminal(&script, "");
    assert_eq!(output.code, 9, "{}", output.stdout);
    // `script` may have shown the end of what is typed as `^@`.
    let size = output.stdout.lines().skip_while(|line| !line.contains("began")).nth(1).unwrap_or_default();
    let size = size.trim().trim_start_matches("^@");
    assert!(size.starts_with("40 1") && size != "40 100", "{}", output.stdout);
    assert_said(
        &FLEET.wharf(["exec", "-it", "-p", "shell", "it", "sh"]),
        1,
        &["standard input is no terminal", "hint: leave `-t` out"],
    );
}

#[test]
fn streams_work_from_any_machine_for_a_task_on_any_other() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "far",
        "name: far\nservices:\n  it: {image: 'busybox:1', stop_grace_period: 0s, command: sh -c 'echo hello; exec sleep 10000', deploy: {mode: global}}\n",
    );
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &[]);
    let context = FLEET.ok(["context", "export"]);
    for from in FLEET.cluster.nodes() {
        from.put_file("/root/context.json", &context).unwrap();
        from.run(["wharf", "context", "import", "far", "/root/context.json"]).unwrap();
        let wharf = |args: &[&str]| from.run(["wharf", "--context", "far"].iter().chain(args)).unwrap();
        for task in FLEET.tasks("far").unwrap() {
            let said = wharf(&["exec", text(&task["id"]), "hostname"]);
            assert!(said.starts_with("far-it"), "{said}");
        }
        assert_eq!(wharf(&["logs", "-p", "far", "--no-prefix"]), "hello\nhello\nhello");
        assert!(wharf(&["events", "--since", "10m", "--no-follow", "-p", "far"]).contains("far"));
        from.run(["wharf", "context", "rm", "far"]).unwrap();
    }
}

#[test]
fn a_stream_survives_a_long_silence() {
    if skip() {
        return;
    }
    let path = FLEET.file(
        "quiet",
        "name: quiet\nservices:\n  it: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}\n",
    );
    assert_said(&FLEET.wharf(["up", "-y", "-f", &path]), 0, &[]);
    let mut logs = FLEET.spawn(["logs", "-f", "-p", "quiet"]);
    // More than two keepalives long.
    let output = FLEET.wharf(["exec", "-p", "quiet", "it", "sh", "-c", "sleep 36; echo still here; exit 5"]);
    assert_said(&output, 5, &["still here"]);
    assert!(logs.is_running(), "{}", logs.log());
    logs.kill().unwrap();
}

#[test]
fn contexts_are_used_shown_exported_imported_and_forgotten() {
    if skip() {
        return;
    }
    let folder = FLEET.cluster.dir().join("client/contexts");
    let wharf = |args: &[&str]| {
        let words = [
            "env".to_owned(),
            format!("WHARF_CONFIG={}", folder.display()),
            FLEET.binary.display().to_string(),
        ];
        FLEET
            .cluster
            .client_exec(words.into_iter().chain(args.iter().map(|word| (*word).to_owned())))
            .unwrap()
    };
    assert_said(&wharf(&["node", "ls"]), 1, &["there is no context", "hint:"]);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("exported.json");
    std::fs::write(&file, FLEET.ok(["context", "export", "test"])).unwrap();
    let file = file.display().to_string();

    assert_said(&wharf(&["context", "import", "a", &file]), 0, &["context `a` was added"]);
    assert_said(
        &wharf(&["context", "import", "a", &file]),
        1,
        &["there is a context `a` already", "`--force`"],
    );
    assert_said(&wharf(&["context", "import", "b", &file]), 0, &[]);
    assert_said(&wharf(&["context", "ls"]), 0, &["a *", "b  ", "user admin", "good for 36"]);
    assert_said(&wharf(&["node", "ls"]), 0, &["n3"]);
    assert_said(&wharf(&["context", "use", "b"]), 0, &["`b` is the current context"]);
    assert_said(
        &wharf(&["context", "set", "b", "--server", "127.0.0.1:1", "--default-env", "staging"]),
        0,
        &[],
    );
    assert_said(&wharf(&["context", "show"]), 0, &["127.0.0.1:1", "staging", "authority    sha256:"]);
    assert_said(&wharf(&["node", "ls"]), 1, &["cannot reach the cluster of context `b`", "127.0.0.1:1"]);
    assert_said(&wharf(&["--context", "a", "node", "ls"]), 0, &["n3"]);
    assert_said(
        &wharf(&["--context", "c", "node", "ls"]),
        1,
        &["there is no context `c`", "hint: there are: a, b"],
    );
    let listed: Value = serde_json::from_str(&wharf(&["--format", "json", "context", "ls"]).stdout).unwrap();
    assert_eq!((text(&listed[1]["name"]), &listed[1]["current"]), ("b", &Value::Bool(true)));
    assert!(!wharf(&["context", "show"]).stdout.contains("PRIVATE KEY"));
    assert_said(&wharf(&["context", "rm", "b"]), 0, &["context `b` is forgotten"]);
    assert_said(&wharf(&["node", "ls"]), 1, &["hint:"]);
}

#[test]
fn version_and_doctor_tell_how_the_cluster_is() {
    if skip() {
        return;
    }
    let version = FLEET.json(["version"]);
    assert_said(&FLEET.wharf(["version"]), 0, &["client   0.1.0", "embedded store", "leader   server_"]);
    assert!(version.is_object(), "{version}");
    let findings = FLEET.json(["doctor"]);
    assert!(items(&findings).iter().all(|finding| finding["level"] == "ok"), "{findings}");
    assert_said(&FLEET.wharf(["doctor"]), 0, &["node n3: ready; Docker Engine "]);
}

#[test]
fn completion_scripts_are_printed_for_every_shell() {
    if skip() {
        return;
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = FLEET.ok(["completion", shell]);
        assert!(script.contains("wharf") && script.lines().count() > 10, "{shell}: {script}");
    }
    let script = FLEET.cluster.dir().join("client/completion.bash");
    std::fs::write(&script, FLEET.ok(["completion", "bash"])).unwrap();
    let checked = FLEET.cluster.client_exec(["bash", "-n", &script.display().to_string()]).unwrap();
    assert_said(&checked, 0, &[]);
}

/// Names of the subcommands in a help text.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // Names begin at two spaces; what goes on is indented more.
    listed
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    if skip() {
        return;
    }
    let mut lacking = Vec::new();
    let mut commands = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = commands.pop() {
        let output = FLEET.wharf(command.iter().map(String::as_str).chain(["--help"]));
        assert_said(&output, 0, &["Usage: wharf"]);
        let below = subcommands(&output.stdout);
        seen += 1;
        if below.is_empty() && !(output.stdout.contains("Example") && output.stdout.contains("  wharf ")) {
            lacking.push(command.join(" "));
        }
        commands.extend(below.into_iter().map(|name| command.iter().cloned().chain([name]).collect()));
    }
    assert!(seen > 40, "only {seen} commands were found");
    lacking.sort();
    assert!(lacking.is_empty(), "no example: {lacking:#?}");
    assert_said(&FLEET.wharf(["upp"]), 2, &["unrecognized subcommand", "up"]);
}
