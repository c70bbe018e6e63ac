//! Releases as people see and steer them, on real nodes: history, going back, failing, pausing, promoting, taking back.

use std::{path::Path, process::Command, sync::LazyLock, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{
    Fleet, Output, deployments, items,
    load::{self, Kind},
    skip, text, wait_until,
};

/// One cluster for all tests here; each has an app of its own.
static FLEET: LazyLock<Fleet> = LazyLock::new(|| Fleet::start(2));
const SOON: Duration = Duration::from_secs(60);

/// `wharf`, which has to exit with this code.
#[track_caller]
fn exits<const N: usize>(code: i32, args: [&str; N]) -> Output {
    let output = FLEET.wharf(args);
    assert_eq!(output.code, code, "{args:?}\n{}{}", output.stdout, output.stderr);
    output
}

/// The releases of an app, newest first.
fn history(app: &str) -> Vec<Value> {
    items(&FLEET.json(["app", "history", app])).to_vec()
}

fn rollout(app: &str) -> Result<Value> {
    // While it is under way it exits with 3.
    let output = FLEET.try_wharf(["--format", "json", "rollout", "status", app])?;
    Ok(serde_json::from_str(&output.stdout)?)
}

/// What the one task of a service answers to a command.
fn exec<const N: usize>(app: &str, service: &str, command: [&str; N]) -> Result<String> {
    let words = ["exec", "-p", app, service].into_iter().chain(command);
    FLEET.try_wharf(words)?.text()
}

fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "init.defaultBranch=trunk"])
        .arg("-C")
        .arg(folder)
        .args(args)
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_release_remembers_who_made_it_of_what_and_what_it_changed() {
    if skip() {
        return;
    }
    let file = |level: &str| {
        format!(
            "name: memory\nservices:\n  web: {{image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, environment: {{LEVEL: {level}, TOKEN: s3cret-{level}}}}}\n"
        )
    };
    let path = FLEET.file("memory", &file("info"));
    let folder = Path::new(&path).parent().unwrap();
    git(folder, &["init", "-q"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "-m", "first"]);
    // Looking at a repository runs nothing of it.
    let trap = folder.join(".git/trap");
    std::fs::write(&trap, "#!/bin/sh\ntouch \"$0.sprung\"\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&trap, executable).unwrap();
    git(folder, &["config", "core.fsmonitor", &trap.display().to_string()]);

    exits(0, ["up", "-y", "-f", &path, "-m", "the first of all"]);
    FLEET.file("memory", &file("debug"));
    exits(0, ["up", "-y", "-f", &path]);
    exits(0, ["up", "-y", "-f", &FLEET.file("memory", &file("warn")), "--git-commit", "0a1b2c3d"]);
    assert!(!folder.join(".git/trap.sprung").exists());

    let releases = history("memory");
    let [third, second, first] = releases.as_slice() else { panic!("{releases:?}") };
    let commit = git(folder, &["rev-parse", "HEAD"]);
    assert_eq!(first["message"], "the first of all");
    assert_eq!(first["source"], serde_json::json!({ "commit": commit, "branch": "trunk", "dirty": false }));
    assert_eq!(second["source"]["dirty"], true);
    assert_eq!(third["source"], serde_json::json!({ "commit": "0a1b2c3d" }));
    for release in &releases {
        assert_eq!((text(&release["state"]), text(&release["strategy"])), ("done", "rolling"), "{release}");
        assert!(text(&release["by"]).contains('@'), "{release}");
    }
    assert_eq!(second["changes"][0]["reason"], "environment LEVEL changed, environment TOKEN changed");

    let table = FLEET.ok(["app", "history", "memory", "--limit", "2"]);
    assert!(
        table.contains("3 (current)") && table.contains("0a1b2c3") && !table.contains("first of all"),
        "{table}"
    );
    assert!(table.contains(&format!("{}+ (trunk)", &commit[..7])), "{table}");
    let diff = FLEET.ok(["app", "diff", "memory", "1", "3"]);
    assert_eq!(diff.trim_end(), "± service  web  environment LEVEL changed, environment TOKEN changed");
    assert!(exits(1, ["app", "diff", "memory", "1", "9"]).stderr.contains("no release 9"));
    let spec = FLEET.json(["app", "inspect", "memory", "--release", "1"]);
    assert_eq!(spec["spec"]["services"]["web"]["container"]["environment"]["LEVEL"], "info", "{spec}");
}

#[test]
fn an_app_goes_back_to_the_images_configs_and_secrets_of_an_earlier_release() {
    if skip() {
        return;
    }
    // A tag that stands for one image at first and for another one later.
    let tag = |version: &str| {
        let make = format!(
            "docker run --name make --network none busybox:1 sh -c 'echo {version} > /version' && docker commit make demo:1 && docker rm make"
        );
        FLEET.node(1).sh(&make).unwrap();
    };
    let create = |content: &str, replace: &[&str]| {
        let args = ["secret", "create", "back-key", "-"].into_iter().chain(replace.iter().copied());
        let output = FLEET.wharf_with(args, content.as_bytes()).unwrap();
        assert_eq!(output.code, 0, "{}", output.stderr);
    };
    let file = |level: &str| {
        format!(
            "name: going\nservices:\n  web:\n    image: demo:1\n    command: sleep 10000\n    stop_grace_period: 0s\n    environment: {{LEVEL: {level}}}\n    secrets: [key]\nsecrets: {{key: {{external: true, name: back-key}}}}\n"
        )
    };
    tag("one");
    create("first-secret", &[]);
    exits(0, ["up", "-y", "-f", &FLEET.file("going", &file("info"))]);
    tag("two");
    create("second-secret", &["--replace"]);
    exits(0, ["up", "-y", "--pull", "-f", &FLEET.file("going", &file("debug"))]);
    let is = |version: &str, secret: &str| -> Result<()> {
        let found = exec("going", "web", ["cat", "/version", "/run/secrets/key"])?;
        ensure!(found == format!("{version}\n{secret}"), "{found:?}");
        Ok(())
    };
    is("two", "second-secret").unwrap();

    // What differs is shown, and nothing done about it yet.
    let plan = exits(3, ["rollback", "going", "--dry-run"]);
    for said in [
        "release 3 (back to 1)",
        "image demo:1 is another now",
        "environment LEVEL changed",
        "version 2 -> 1",
    ] {
        assert!(plan.stderr.contains(said), "{said}: {}", plan.stderr);
    }
    assert!(!plan.stderr.contains("info") && !plan.stderr.contains("secret-"), "{}", plan.stderr);
    assert!(exits(1, ["rollback", "going", "--to", "9", "-y"]).stderr.contains("no release 9"));
    assert!(exits(1, ["rollback", "going"]).stderr.contains("--yes"), "without a terminal nobody can agree");

    let done = exits(0, ["rollback", "going", "-y", "-m", "customers complain"]);
    assert!(done.stderr.contains("release 3 (back to 1)"), "{}", done.stderr);
    is("one", "first-secret").unwrap();
    let third = &history("going")[0];
    assert_eq!(
        (&third["rollback_of"], &third["message"]),
        (&1.into(), &"customers complain".into()),
        "{third}"
    );
    assert!(exits(0, ["rollback", "going", "--to", "1", "-y"]).stderr.contains("nothing to do"));

    // Scaled by hand, and then back to the second: as many tasks as that.
    exits(0, ["scale", "-p", "going", "web=2"]);
    exits(0, ["rollback", "going", "-y", "--to", "2"]);
    is("two", "second-secret").unwrap();
    assert_eq!(FLEET.tasks("going").unwrap().len(), 2);

    // What no node has any more cannot be gone back to, and nothing changes.
    let images = FLEET.json(["app", "inspect", "going", "--release", "1"]);
    let pin = text(&images["images"]["web"]).split_once('@').unwrap().1.to_owned();
    for node in FLEET.cluster.nodes() {
        node.sh(&format!(
            "docker image rm -f {pin} || test -z \"$(docker image ls -q --no-trunc | grep {pin})\""
        ))
        .unwrap();
    }
    let refused = exits(1, ["rollback", "going", "-y", "--to", "1"]);
    assert!(
        refused.stderr.contains("service web: no node that is connected has the image demo:1"),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("1 task"), "{}", refused.stderr);
    assert_eq!(history("going").len(), 4);
}

#[test]
fn a_release_that_fails_says_which_service_and_its_last_words_and_stays_in_history() {
    if skip() {
        return;
    }
    let file = |command: &str| {
        format!(
            "name: falling\nservices:\n  db: {{image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}}\n  web: {{image: 'busybox:1', command: \"{command}\", stop_grace_period: 0s}}\n"
        )
    };
    exits(0, ["up", "-y", "-f", &FLEET.file("falling", &file("sleep 10000"))]);
    let failed =
        exits(1, ["up", "-y", "-f", &FLEET.file("falling", &file("sh -c 'echo the vault is shut; exit 3'"))]);
    let end = failed.stderr.split("\nfailed: ").nth(1).unwrap_or(&failed.stderr);
    for said in ["the app returned to release 1", "falling-web-1 on n", "exit code 3", "| the vault is shut"]
    {
        assert!(end.contains(said), "{said}: {end}");
    }
    let second = &history("falling")[0];
    assert_eq!((text(&second["state"]), &second["current"]), ("rolled_back", &false.into()), "{second}");
    assert!(text(&second["reason"]).contains("exit code 3"), "{second}");
    // Whatever comes later.
    exits(0, ["scale", "-p", "falling", "db=2"]);
    exits(0, ["up", "-y", "-f", &FLEET.file("falling", &file("sleep 20000"))]);
    let states: Vec<_> =
        history("falling").iter().map(|release| text(&release["state"]).to_owned()).collect();
    assert_eq!(states, ["done", "rolled_back", "done"]);
    // The one that failed is nothing to return to.
    assert!(exits(3, ["rollback", "falling", "--dry-run"]).stderr.contains("(back to 1)"));
    assert_eq!(exits(0, ["rollout", "status", "falling"]).stdout.lines().count(), 4);
}

#[test]
fn a_rollout_pauses_where_it_is_goes_on_and_is_taken_back() {
    if skip() {
        return;
    }
    let file = |app: &str, level: &str| {
        format!(
            "name: {app}\nservices:\n  web:\n    image: busybox:1\n    command: sleep 10000\n    stop_grace_period: 0s\n    environment: {{LEVEL: {level}}}\n    deploy: {{replicas: 4, update_config: {{parallelism: 1, monitor: 2s}}}}\n"
        )
    };
    let web = |status: &Value| {
        let count = |what: &str| status["services"][0][what].as_u64().unwrap_or_default();
        (count("ready"), count("old"), count("stopping"))
    };
    let begin = |level: &str| {
        exits(0, ["up", "-y", "--detach", "-f", &FLEET.file("steered", &file("steered", level))]);
        wait_until(SOON, "it is half way", || {
            let status = rollout("steered")?;
            let (ready, old, _) = web(&status);
            ensure!(ready >= 1 && old >= 1, "{status}");
            Ok(())
        });
    };
    exits(0, ["up", "-y", "-f", &FLEET.file("steered", &file("steered", "info"))]);
    let over = exits(1, ["rollout", "pause", "steered"]);
    assert!(over.stderr.contains("release 1 of steered is over: done"), "{}", over.stderr);

    begin("debug");
    exits(0, ["rollout", "pause", "steered", "--reason", "looks wrong"]);
    // A task whose successor serves already still goes.
    let paused = wait_until(SOON, "nothing is under way", || {
        let paused = rollout("steered")?;
        let (ready, old, stopping) = web(&paused);
        ensure!(ready + old == 4 && stopping == 0, "{paused}");
        Ok(paused)
    });
    let (ready, old, _) = web(&paused);
    assert!(ready >= 1 && old >= 1, "{paused}");
    assert_eq!(paused["paused"]["reason"], "looks wrong");
    let shown = exits(3, ["rollout", "status", "steered"]);
    assert!(shown.stdout.contains("paused by ") && shown.stdout.contains("looks wrong"), "{}", shown.stdout);
    // In the time in which another app is deployed and replaced, nothing more of this one is.
    for level in ["info", "debug"] {
        exits(0, ["up", "-y", "-f", &FLEET.file("clock", &file("clock", level))]);
    }
    assert_eq!(web(&rollout("steered").unwrap()), (ready, old, 0));
    exits(0, ["rollout", "resume", "steered"]);
    exits(0, ["rollout", "status", "steered", "--watch"]);
    assert_eq!(web(&rollout("steered").unwrap()), (4, 0, 0));

    begin("warn");
    let promoted = exits(1, ["rollout", "promote", "steered"]);
    assert!(promoted.stderr.contains("nothing of release 3 waits to be promoted"), "{}", promoted.stderr);
    let back = exits(0, ["rollout", "abort", "steered", "--reason", "wrong build"]);
    assert!(back.stderr.contains("steered has returned to release 2"), "{}", back.stderr);
    let third = &history("steered")[0];
    assert_eq!(text(&third["state"]), "rolled_back", "{third}");
    assert!(text(&third["reason"]).contains("wrong build"), "{third}");
    for slot in ["1", "4"] {
        let task = format!("steered-web-{slot}");
        let environment = FLEET.ok(["exec", &task, "env"]);
        assert!(environment.lines().any(|line| line == "LEVEL=debug"), "{environment}");
    }
    assert_eq!(exits(1, ["rollout", "status", "steered"]).code, 1);
}

/// What a gateway answers for a host; empty if it does not.
fn ask(host: &str) -> Result<String> {
    let node = FLEET.node(1).address();
    let (header, url) = (format!("Host: {host}"), format!("http://{node}/"));
    FLEET.cluster.client_exec(["curl", "-s", "-m", "10", "-H", &header, &url])?.text()
}
/// Whether what a gateway answers for a host has this in it.
fn answers(host: &str, what: &str) -> Result<()> {
    let answer = ask(host)?;
    ensure!(answer.contains(what), "{host} answers {answer:?}");
    Ok(())
}
/// A version of an app of two tasks behind a route, with how it is released.
fn version(app: &str, name: &str, more: &str, release: &str) -> String {
    FLEET.file(
        app,
        &format!(
            "name: {app}\nservices:\n  web:\n    image: wharf/testserver:1\n    environment: {{NAME: {name}{more}}}\n    expose: [8080]\n    \
             deploy: {{replicas: 2}}\n    stop_grace_period: 1s\n    x-wharf:\n      drain: 2s\n      \
             routes: [{{host: {app}.test, port: 8080}}]\n      release: {release}\n"
        ),
    )
}

#[test]
fn a_second_set_is_previewed_takes_over_at_once_and_the_old_one_answers_again_without_a_start() {
    if skip() {
        return;
    }
    let release = "{strategy: blue-green, preview: next.colours.test, promote: manual, keep: 10m}";
    exits(0, ["up", "-y", "-f", &version("colours", "blue", "", release)]);
    wait_until(SOON, "the route", || answers("colours.test", "name=blue"));
    // It goes on only when somebody says so.
    exits(3, ["up", "-y", "-f", &version("colours", "green", "", release)]);
    wait_until(SOON, "the preview", || answers("next.colours.test", "name=green"));
    for _ in 0..20 {
        let answer = ask("colours.test").unwrap();
        assert!(answer.contains("name=blue"), "{answer}");
    }
    let containers = |name: &str| -> Vec<String> {
        let tasks = FLEET.tasks("colours").unwrap();
        let named = tasks.iter().filter(|task| text(&task["name"]).starts_with(name));
        named.map(|task| text(&task["status"]["container"]).to_owned()).collect()
    };
    assert_eq!(containers("colours-web").len(), 4);
    exits(0, ["rollout", "promote", "colours"]);
    for _ in 0..20 {
        let answer = ask("colours.test").unwrap();
        assert!(answer.contains("name=green"), "{answer}");
    }
    let before = containers("colours-web");
    let began = std::time::Instant::now();
    exits(0, ["rollback", "-y", "colours"]);
    let answer = ask("colours.test").unwrap();
    println!(
        "the old release answered again {} ms after `wharf rollback` was called",
        began.elapsed().as_millis()
    );
    assert!(answer.contains("name=blue"), "{answer}");
    assert_eq!(containers("colours-web"), before, "no container was started or stopped for it");
}

#[test]
fn a_canary_that_answers_500_is_taken_back_and_commands_around_a_release_stop_it() {
    if skip() {
        return;
    }
    let release = "{strategy: canary, steps: [{weight: 50, hold: 3s}], judge: {requests: 20}}";
    exits(0, ["up", "-y", "-f", &version("bird", "old", "", release)]);
    wait_until(SOON, "the route", || answers("bird.test", "name=old"));
    // Requests come all the time.
    let asking = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let go_on = std::sync::Arc::clone(&asking);
    let client = std::thread::spawn(move || {
        let (mut old, mut new) = (0, 0);
        while go_on.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = ask("bird.test").unwrap_or_default();
            old += u32::from(answer.contains("name=old"));
            new += u32::from(answer.contains("name=new"));
        }
        (old, new)
    });
    let bad = exits(1, ["up", "-y", "-f", &version("bird", "new", ", FAIL_AFTER_MS: 0", release)]);
    asking.store(false, std::sync::atomic::Ordering::Relaxed);
    let (old, new) = client.join().unwrap();
    println!("{old} answers of the old release, {new} of the new one until it was taken back");
    let said = format!("{}{}", bad.stdout, bad.stderr);
    assert!(said.contains("requests to the new release failed"), "{said}");
    assert!(new > 0);
    for _ in 0..20 {
        let answer = ask("bird.test").unwrap();
        assert!(answer.contains("name=old"), "{answer}");
    }
    assert_eq!(rollout("bird").unwrap()["rollout"]["state"], "rolled_back");

    // Commands around a release: what one says is shown, and one that fails leaves everything as it is.
    let hooks = |before: &str| {
        format!(
            "name: nest\nx-wharf: {{hooks: {{before: [{{service: web, command: [sh, -c, '{before}']}}], after: [{{service: web, command: [echo, warm]}}]}}}}\n\
             services:\n  web: {{image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, environment: {{WORD: migrated}}}}\n"
        )
    };
    exits(0, ["up", "-y", "-f", &FLEET.file("nest", &hooks("echo $$WORD at $$(hostname)"))]);
    let said = FLEET.ok(["logs", "-p", "nest", "--task", "nest-web-before-1"]);
    assert!(said.contains("migrated at nest-web-before-1"), "{said}");
    let before = FLEET.tasks("nest").unwrap();
    let failed = exits(1, ["up", "-y", "-f", &FLEET.file("nest", &hooks("echo no such table >&2; exit 3"))]);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert!(
        said.contains("nest-web-before-1") && said.contains("exit code 3") && said.contains("no such table"),
        "{said}"
    );
    let id = |tasks: &[Value]| -> Vec<String> {
        let replicas = tasks.iter().filter(|task| text(&task["name"]) == "nest-web-1");
        replicas.map(|task| text(&task["id"]).to_owned()).collect()
    };
    assert_eq!(id(&FLEET.tasks("nest").unwrap()), id(&before), "nothing was replaced");
}

#[test]
fn a_name_leads_to_no_task_that_does_not_listen_yet() {
    if skip() {
        return;
    }
    // It listens a second after its start, and nothing in the file tells where, or how to ask it.
    let outcome = deployments::ours_by_name(&FLEET, 1, &[(Kind::Fresh, 2)], 2).unwrap();
    let all = load::total(&outcome.report);
    assert!(all.names.contains_key("v2") && all.asked > 100, "{all:?}");
    assert_eq!(all.lost, 0, "{:?}", outcome.losses());
}
