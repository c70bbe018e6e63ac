//! What people get wrong, and machines: each is refused in a sentence that names the place and says what to do, and nothing is lost.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_testkit::cluster::{Cluster, Seed};
use wharf_tests::{Fleet, Output, items, skip, text, wait_until};

const SETTLING: Duration = Duration::from_secs(60);
/// What a token says of the cluster, and the digits that check it, are its last two parts.
const TOKEN_PARTS: usize = 5;

/// Checks a refusal: the exit code for it, all these words on standard error, and what to do.
#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.starts_with("error: ") || output.stderr.contains("\nerror: "), "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "`{word}` is not in {output:?}");
    }
    let hinted = output.stderr.contains("\nhint: ") || output.stderr.contains("help: ");
    assert!(hinted, "it does not say what to do: {output:?}");
}

fn machines(nodes: u8) -> wharf_testkit::cluster::Builder {
    Cluster::builder().nodes(nodes).seed(Seed::basic().unwrap())
}

#[test]
fn a_machine_that_may_not_join_is_told_why() {
    if skip() {
        return;
    }
    let fleet = Fleet::bare(machines(2)).unwrap();
    fleet.serve().unwrap();
    let newcomer = fleet.node(2);
    let server = fleet.node(1).address().to_string();
    let join = |token: &str| newcomer.exec(["wharf", "agent", "join", &server, "--token", token]).unwrap();
    let make = |more: &[&str]| {
        let made = fleet.json(["token", "create"].iter().chain(more));
        text(&made["token"]).to_owned()
    };

    refused(&join("secret"), &["this is no join token", "wharf1-", "wharf token create"]);
    let good = make(&[]);
    assert_eq!(good.split('-').count(), TOKEN_PARTS, "{good}");
    let mistyped = if good.ends_with('0') {
        good.trim_end_matches('0').to_owned()
    } else {
        format!("{}0", &good[..good.len() - 1])
    };
    refused(&join(&mistyped), &["mistyped or cut off", "copy the whole line"]);

    let ended = make(&[]);
    let id = format!("token_{}", ended.split('-').nth(1).unwrap());
    fleet.ok(["token", "rm", &id]);
    refused(&join(&ended), &["rotated away or removed", "wharf token create --role agent"]);
    refused(&join(&make(&["--role", "server"])), &["lets a machine in as server, not as agent"]);
    let brief = make(&["--ttl", "1s"]);
    wait_until(SETTLING, "the token expires", || {
        let tokens = fleet.try_json(["token", "ls"])?;
        let now = fleet.try_json(["version"])?["server"]["now"].as_u64().unwrap_or_default();
        let id = format!("token_{}", brief.split('-').nth(1).unwrap_or_default());
        let listed = items(&tokens).iter().find(|token| text(&token["id"]) == id);
        let expires = listed.map_or(0, |token| token["expires_at"].as_u64().unwrap_or(u64::MAX));
        ensure!(expires < now, "{tokens} at {now}");
        Ok::<_, anyhow::Error>(())
    });
    refused(&join(&brief), &["the join token expired", "wharf token create --role agent"]);

    // The token of another cluster pins that cluster's authority: this server is not even spoken to.
    let other =
        ["wharf", "server", "init", "--name", "other", "--state-dir", "/var/lib/other/server", "--no-start"];
    let line = newcomer.run(other.into_iter().chain(["--format", "json"])).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    refused(&join(text(&line["token"])), &["belongs to another cluster"]);

    // A clock that is an hour off. The request is made by hand: the clock of a machine is that of all machines here.
    let token = make(&[]);
    let now = fleet.json(["version"])["server"]["now"].as_u64().unwrap();
    for (shift, direction) in [(3_600_000_i64, "ahead of"), (-3_600_000, "behind")] {
        let body = serde_json::json!({
            "token": token,
            "csr": "not reached",
            "client_time": now.saturating_add_signed(shift),
            "facts": {"name": "n2", "hostname": "n2", "version": "0.1.0"},
        });
        let url = format!("https://{server}:7420/v1/join");
        let json = "content-type: application/json";
        let answer =
            fleet.cluster.client_exec(["curl", "-sk", "-H", json, "-d", &body.to_string(), &url]).unwrap();
        let problem: Value = serde_json::from_str(&answer.stdout).unwrap_or_else(|_| panic!("{answer:?}"));
        assert_eq!(problem["code"], "clock", "{problem}");
        assert!(text(&problem["message"]).contains(&format!("{direction} the server's")), "{problem}");
        assert!(text(&problem["hint"]).contains("timedatectl"), "{problem}");
    }

    // Nothing of all this has kept the machine from joining.
    let nodes = fleet.json(["node", "ls"]);
    assert_eq!(items(&nodes).len(), 1, "{nodes}");
    let joined = join(&make(&[]));
    assert!(joined.is_success(), "{joined:?}");
}

#[test]
fn files_images_and_contexts_that_are_wrong_change_nothing() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(1);
    let good = fleet.file("good", "name: good\nservices: {web: {image: 'wharf/testserver:1'}}\n");
    fleet.ok(["up", "-y", "-f", &good]);
    let before = fleet.json(["ps", "--all"]);
    let up = |file: &str| fleet.wharf(["up", "-y", "-f", file]);

    let folder = std::path::Path::new(&good).parent().unwrap().join("folder.yaml");
    std::fs::create_dir_all(&folder).unwrap();
    let missing = folder.join("missing.yaml").display().to_string();
    let folder = folder.display().to_string();
    for (file, words) in [
        (missing.clone(), vec!["there is no file", missing.as_str()]),
        (folder.clone(), vec!["is a folder, not a file", folder.as_str()]),
        (fleet.file("yaml", "services:\n  web: [1, 2\n"), vec!["not YAML", "compose.yaml:2:"]),
        (fleet.file("bytes", "services: \u{0}\n"), vec!["compose.yaml"]),
        (fleet.file("empty", ""), vec!["defines nothing"]),
        (
            fleet.file(
                "types",
                "services:\n  web:\n    image: x\n    ports: {a: b}\n    deploy: {replicas: many}\n",
            ),
            vec![
                "`ports` must be a list",
                "compose.yaml:4:5 (services.web.ports)",
                "`replicas` must be a whole number, not `many`",
                "2 errors",
            ],
        ),
    ] {
        let said = up(&file);
        assert_eq!(said.code, 1, "{said:?}");
        for word in words {
            assert!(said.stderr.contains(word), "`{word}` is not in {said:?}");
        }
        assert!(said.stderr.contains("nothing was changed"), "{said:?}");
    }
    let image = fleet.file("image", "name: image\nservices: {web: {image: 'does-not-exist:9'}}\n");
    refused(&up(&image), &["service web", "does-not-exist:9 is not to be had", "docker load"]);
    let usage = fleet.wharf(["up", "--no-such-flag"]);
    assert_eq!(usage.code, 2, "{usage:?}");

    // Contexts. The client's own is left as it is.
    let server = fleet.node(1).address().to_string();
    let context = fleet.ok(["context", "export"]);
    let ours: Value = serde_json::from_str(&context).unwrap();
    let init =
        ["wharf", "server", "init", "--name", "other", "--state-dir", "/var/lib/other/server", "--no-start"];
    let home = ["env", "HOME=/var/lib/other"];
    let node = fleet.node(1);
    node.run(["mkdir", "-p", "/var/lib/other"]).unwrap();
    node.run(home.into_iter().chain(init)).unwrap();
    let export = node.run(home.into_iter().chain(["wharf", "context", "export"])).unwrap();
    let theirs: Value = serde_json::from_str(&export).unwrap();
    let import = |name: &str, mut context: Value, address: &str| {
        context["servers"] = serde_json::json!([address]);
        let file = fleet.file(name, &context.to_string());
        fleet.ok(["context", "import", name, &file]);
    };
    let mut mixed = ours.clone();
    mixed["identity"] = theirs["identity"].clone();
    let address = format!("{server}:7420");
    import("down", ours.clone(), &format!("{}.250:7420", server.rsplit_once('.').unwrap().0));
    import("port", ours.clone(), &format!("{server}:7999"));
    import("name", ours, "no-such-host:7420");
    import("authority", theirs, &address);
    import("identity", mixed, &address);
    fleet.ok(["context", "use", "test"]);
    for (name, words) in [
        ("down", vec!["cannot reach the cluster of context `down`", ".250:7420"]),
        ("port", vec!["refuses connections", ":7999"]),
        ("name", vec!["the host name of no-such-host:7420 cannot be resolved"]),
        ("authority", vec!["belongs to another cluster", address.as_str()]),
        ("identity", vec!["refuses this certificate: it is of another cluster"]),
        ("absent", vec!["there is no context `absent`"]),
    ] {
        let begin = Instant::now();
        refused(&fleet.wharf(["--context", name, "ps", "--all"]), &words);
        assert!(begin.elapsed() < Duration::from_secs(15), "{name}: {:?}", begin.elapsed());
    }

    let after = fleet.json(["ps", "--all"]);
    let ids =
        |tasks: &Value| items(tasks).iter().map(|task| text(&task["id"]).to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before), "nothing was changed");
}

#[test]
fn two_deployments_of_one_app_come_one_after_the_other() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(1);
    let app = |version: u8| {
        let text = format!(
            "name: app\nservices:\n  web:\n    image: wharf/testserver:1\n    environment: {{VERSION: '{version}', HEALTHY_AFTER_MS: '4000'}}\n    healthcheck: {{test: [CMD, /testserver, health], interval: 1s, retries: 20}}\n"
        );
        fleet.file(&format!("app{version}"), &text)
    };
    let (first, second, third) = (app(1), app(2), app(3));
    let mut one = fleet.spawn(["up", "-y", "-f", &first]);
    wait_until(SETTLING, "the first is under way", || {
        ensure!(one.log().contains("app-web-1"), "{}", one.log());
        Ok::<_, anyhow::Error>(())
    });
    let hasty = fleet.wharf(["up", "-y", "--no-wait", "-f", &third]);
    refused(&hasty, &["app is busy: release 1 by ", "--supersede"]);
    let mut two = fleet.spawn(["up", "-y", "-f", &second]);
    wait_until(SETTLING, "the second waits and says for whom", || {
        ensure!(two.log().contains("wait") && two.log().contains("release 1 by "), "{}", two.log());
        Ok::<_, anyhow::Error>(())
    });
    assert_eq!(one.wait(SETTLING).unwrap(), 0, "{}", one.log());
    assert_eq!(two.wait(SETTLING).unwrap(), 0, "{}", two.log());
    let ids = fleet.node(1).docker(["ps", "--quiet", "--filter", "label=wharf.app=app"]).unwrap();
    assert_eq!(ids.lines().count(), 1, "{ids}");
    let environment = fleet.node(1).docker(["inspect", "--format", "{{.Config.Env}}", ids.trim()]).unwrap();
    assert!(environment.contains("VERSION=2"), "{environment}");
}

#[test]
fn taken_ports_full_disks_and_stores_in_use_are_named() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    let (first, second) = (fleet.node(1), fleet.node(2));

    // The server's port.
    let state = "/var/lib/other/server";
    let init = ["wharf", "server", "init", "--name", "other", "--state-dir", state, "--no-start"];
    first.run(init).unwrap();
    let taken = first.exec(["wharf", "server", "run", "--state-dir", state]).unwrap();
    refused(&taken, &["0.0.0.0:7420"]);

    // A published port: another program of the machine has it, and the other machine serves.
    let mut squatter = second.spawn(["busybox", "nc", "-l", "-l", "-p", "9099", "-e", "cat"]).unwrap();
    wait_until(SETTLING, "the port is taken", || second.sh("busybox netstat -lnt | grep :9099"));
    let port = "name: port\nservices:\n  web:\n    image: wharf/testserver:1\n    ports: ['9099:8080']\n    deploy: {replicas: 2}\n";
    let deployed = fleet.wharf(["up", "-y", "-f", &fleet.file("port", port)]);
    assert!(deployed.is_success(), "{deployed:?}");
    wait_until(SETTLING, "doctor names the port, its holder and the machine", || {
        let said = fleet.try_wharf(["doctor"])?;
        ensure!(said.code == 1, "{said:?}");
        ensure!(
            said.stdout.contains("node n2: port 9099 is taken on this node by process busybox"),
            "{said:?}"
        );
        Ok::<_, anyhow::Error>(())
    });
    let url = format!("http://{}:9099/", first.address());
    wait_until(SETTLING, "the other machine serves", || {
        fleet.cluster.client_exec(["curl", "-sf", "-m", "3", &url])?.text()
    });
    squatter.kill().unwrap();
    wait_until(SETTLING, "the port is served once it is free", || {
        let url = format!("http://{}:9099/", second.address());
        fleet.cluster.client_exec(["curl", "-sf", "-m", "3", &url])?.text()
    });

    // A second server on the store's file, by whatever way it got there.
    second.run(["sh", "-c", "mkdir -p /mnt/full && mount -t tmpfs -o size=48m tmpfs /mnt/full"]).unwrap();
    let full = "/mnt/full/server";
    let home = ["env", "HOME=/mnt"];
    let init = [
        "wharf",
        "server",
        "init",
        "--name",
        "full",
        "--state-dir",
        full,
        "--listen",
        "0.0.0.0:7430",
        "--no-start",
        "--no-agent",
    ];
    second.run(home.into_iter().chain(init)).unwrap();
    second.service("full").run(["wharf", "server", "run", "--state-dir", full]).unwrap();
    let wharf = |args: &[&str]| second.exec(home.iter().chain(["wharf"].iter()).chain(args));
    wait_until(SETTLING, "the server answers", || wharf(&["version"])?.text());
    let again = second.exec(["wharf", "server", "run", "--state-dir", full]).unwrap();
    refused(&again, &["another process runs the server in /mnt/full/server"]);
    second
        .sh("mkdir /mnt/full/copy && cd /mnt/full/copy && cp ../server/*.json ../server/*.key ../server/*.pem . && ln -s ../server/cluster.redb cluster.redb")
        .unwrap();
    let copy = second.exec(["wharf", "server", "run", "--state-dir", "/mnt/full/copy"]).unwrap();
    refused(&copy, &["cluster.redb"]);

    // A full disk under the store: it says so, and goes on once there is room, and has everything that it said it has.
    let create = || -> Result<Output> { wharf(&["token", "create", "--format", "json"]) };
    let id = |made: &Output| {
        let made: Value = serde_json::from_str(&made.stdout).unwrap();
        format!("token_{}", text(&made["token"]).split('-').nth(1).unwrap())
    };
    let kept = create().unwrap();
    let mut acknowledged = vec![id(&kept)];
    drop(second.exec(["sh", "-c", "cat /dev/zero >/mnt/full/fill 2>/dev/null"]).unwrap());
    for _ in 0..3 {
        refused(&create().unwrap(), &["no space is left for the store at /mnt/full/server/cluster.redb"]);
    }
    assert!(wharf(&["token", "ls"]).unwrap().is_success(), "what is there can be read");
    let doctor = wharf(&["doctor"]).unwrap();
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("problem  store: no space is left"), "{doctor:?}");
    second.run(["rm", "/mnt/full/fill"]).unwrap();
    let after = wait_until(SETTLING, "it goes on by itself", || {
        let made = create()?;
        ensure!(made.is_success(), "{made:?}");
        Ok::<_, anyhow::Error>(made)
    });
    acknowledged.push(id(&after));
    second.service("full").kill().unwrap();
    second.service("full").start().unwrap();
    wait_until(SETTLING, "everything acknowledged is there", || {
        let listed = wharf(&["token", "ls", "--format", "json"])?.text()?;
        ensure!(acknowledged.iter().all(|id| listed.contains(id)), "{acknowledged:?}: {listed}");
        Ok::<_, anyhow::Error>(())
    });
    second.service("full").stop().unwrap();
    second.run(["umount", "/mnt/full"]).unwrap();
}

/// An engine of the year before last: it answers everything with the version it has.
fn old_engine(listener: &UnixListener, stop: &AtomicBool) {
    let body = r#"{"Version":"18.09.9","ApiVersion":"1.39","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64","KernelVersion":"6.1","GoVersion":"go1.11","GitCommit":"1"}"#;
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut request = [0; 4096];
        // Whatever it asks, and whether it listens to the end, is its business.
        drop(stream.read(&mut request));
        let head =
            "HTTP/1.1 200 OK\r\nApi-Version: 1.39\r\nContent-Type: application/json\r\nConnection: close";
        drop(write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }
}

#[test]
fn an_engine_that_is_down_or_too_old_is_named_and_the_node_works_once_it_is_not() {
    if skip() {
        return;
    }
    let fleet = Fleet::bare(machines(2)).unwrap();
    fleet.serve().unwrap();
    let second = fleet.node(2);
    let state = |words: &[&str]| {
        wait_until(SETTLING, "the node says what is wrong with its engine", || {
            let nodes = fleet.try_json(["node", "ls"])?;
            let node = items(&nodes).iter().find(|node| node["name"] == "n2").cloned().unwrap_or_default();
            ensure!(node["state"] == "engine-down", "{node}");
            ensure!(words.iter().all(|word| text(&node["reason"]).contains(word)), "{node}");
            Ok::<_, anyhow::Error>(())
        });
    };
    second.run(fleet.join_line.split_whitespace()).unwrap();
    let agent = second.service("wharf");

    let listener = UnixListener::bind(second.dir().join("old.sock")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| old_engine(&listener, &stop));
        agent.run(["wharf", "agent", "run", "--docker-socket", "/run/testbed/old.sock"]).unwrap();
        state(&["1.39", "1.41"]);
        stop.store(true, Ordering::Relaxed);
    });

    second.engine_stop().unwrap();
    agent.run(["wharf", "agent", "run", "--docker-socket", "/var/run/docker.sock"]).unwrap();
    state(&["Docker Engine does not answer"]);
    let doctor = fleet.wharf(["doctor"]);
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(
        doctor.stdout.contains("problem  node n2: engine-down") && doctor.stdout.contains("hint: "),
        "{doctor:?}"
    );
    second.engine_start().unwrap();
    fleet.wait_for_nodes().unwrap();
}
