//! Three servers on a real etcd: any of them serves, one decides, and losing it costs seconds and nothing that was acknowledged.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use wharf_testkit::cluster::Cluster;
use wharf_tests::{Fleet, Signal, items, skip, text, wait_until};

/// A follower waits six seconds for a lease before it takes over; the rest is a machine that is busy with other tests.
const TAKEOVER: Duration = Duration::from_secs(25);
const SETTLING: Duration = Duration::from_secs(60);

const WEB: &str = "
name: web
services:
  web:
    image: wharf/testserver:1
    deploy: {replicas: 3}
";
const SLOW: &str = "
name: slow
services:
  first:
    image: wharf/testserver:1
    environment: {START_DELAY_MS: '3000'}
  second:
    image: wharf/testserver:1
    environment: {START_DELAY_MS: '3000'}
    depends_on: {first: {condition: service_started}}
    deploy: {replicas: 3}
";

/// Three machines, each with a member of etcd, a server and an agent. The client has the contexts `s1`, `s2`, `s3`, which
/// know one server each, and `all`.
fn three_servers() -> Fleet {
    let seed = wharf_testkit::cluster::Seed::basic().unwrap();
    let binary = wharf_tests::wharf_binary().unwrap();
    let cluster = Cluster::builder().nodes(3).seed(seed).up().unwrap();
    cluster.install(&binary).unwrap();
    let copy = cluster.dir().join("client/wharf");
    std::fs::copy(&binary, &copy).unwrap();

    let url = |index: u8, port: u16| format!("http://{}:{port}", cluster.node(index).address());
    let members: Vec<_> = (1..=3).map(|index| format!("n{index}={}", url(index, 2380))).collect();
    for index in 1..=3 {
        let (peer, client) = (url(index, 2380), url(index, 2379));
        let etcd = cluster.node(index).service("etcd");
        etcd.run([
            "etcd",
            "--name",
            &format!("n{index}"),
            "--data-dir",
            "/var/lib/etcd",
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--initial-cluster",
            &members.join(","),
        ])
        .unwrap();
    }
    let endpoints = (1..=3).map(|index| url(index, 2379)).collect::<Vec<_>>().join(",");
    wait_until(SETTLING, "etcd is healthy", || {
        let arguments = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoints, "endpoint", "health"];
        cluster.node(1).run(["env"].into_iter().chain(arguments))
    });

    let first = cluster.node(1);
    let join_line = first.run(["wharf", "server", "init", "--name", "test", "--etcd", &endpoints]).unwrap();
    let context = first.run(["wharf", "context", "export"]).unwrap();
    let file = cluster.dir().join("client/context.json");
    std::fs::write(&file, context).unwrap();
    let fleet = Fleet { cluster, binary: copy, join_line };
    let servers = (1..=3).map(|index| fleet.node(index).address().to_string()).collect::<Vec<_>>();
    for (name, servers) in
        [("s1", &servers[..1]), ("s2", &servers[1..2]), ("s3", &servers[2..]), ("all", &servers[..])]
    {
        fleet.ok(["context", "import", name, &file.display().to_string()]);
        let named = servers.iter().flat_map(|server| ["--server", server.as_str()]);
        fleet.ok(["context", "set", name].into_iter().chain(named));
    }
    fleet.ok(["context", "use", "all"]);

    let serve = |index: u8| {
        fleet.node(index).service("wharf").run(["wharf", "server", "run", "--with-agent"]).unwrap();
    };
    serve(1);
    wait_until(SETTLING, "the first server answers", || {
        fleet.try_wharf(["--context", "s1", "version"])?.text()
    });
    let line = fleet.ok(["--context", "s1", "token", "create", "--role", "server"]);
    for index in 2..=3 {
        fleet.node(index).run(line.split_whitespace()).unwrap();
        serve(index);
    }
    fleet.wait_for_nodes().unwrap();
    wait_until(SETTLING, "all servers know each other", || {
        let nodes = fleet.try_json(["node", "ls"])?;
        let roles =
            items(&nodes).iter().filter(|node| items(&node["roles"]).iter().any(|role| role == "server"));
        ensure!(roles.count() == 3, "{nodes}");
        Ok(())
    });
    fleet
}

/// What one server says: its own id, and who leads.
fn version(fleet: &Fleet, context: &str) -> Result<(String, String)> {
    let version = fleet.try_json(["--context", context, "version"])?;
    let server = &version["server"];
    Ok((text(&server["server"]).to_owned(), text(&server["leader"]).to_owned()))
}

/// Which machine's server leads.
fn leader(fleet: &Fleet) -> u8 {
    let id = |index: u8| Some((version(fleet, &format!("s{index}")).ok()?.0, index));
    let ids: BTreeMap<String, u8> = (1..=3).filter_map(id).collect();
    wait_until(SETTLING, "somebody leads", || {
        let led = version(fleet, "all")?.1;
        ids.get(&led).copied().ok_or_else(|| anyhow::anyhow!("`{led}` leads, of {ids:?}"))
    })
}

/// Waits until a server other than that of `index` leads, as the server behind `context` says, and gives how long that took.
fn other_leader(fleet: &Fleet, context: &str, before: &str) -> Duration {
    let begin = Instant::now();
    wait_until(TAKEOVER, "another server leads", || {
        let (_, led) = version(fleet, context)?;
        ensure!(!led.is_empty() && led != before, "`{led}` leads");
        Ok::<_, anyhow::Error>(())
    });
    begin.elapsed()
}

/// The id and time of start of every container of a machine.
fn containers(fleet: &Fleet, index: u8) -> Result<String> {
    let ids = fleet.node(index).docker(["ps", "--quiet", "--no-trunc"])?;
    if ids.trim().is_empty() {
        return Ok(String::new());
    }
    let inspect = ["inspect", "--format", "{{.Id}} {{.Name}} {{.State.StartedAt}}"];
    let said = fleet.node(index).docker(inspect.into_iter().chain(ids.split_whitespace()))?;
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

/// Waits until as many tasks of a service are ready, each slot once.
fn wait_for_tasks(fleet: &Fleet, context: &str, app: &str, wanted: usize) {
    wait_until(SETTLING, "as many tasks are ready as wanted", || {
        let tasks = fleet.try_json(["--context", context, "ps", "-p", app])?;
        let is_over = |task: &&serde_json::Value| {
            matches!(text(&task["status"]["phase"]), "stopped" | "failed" | "complete" | "lost")
        };
        let live: Vec<_> = items(&tasks).iter().filter(|task| !is_over(task)).collect();
        let mut slots: Vec<_> = live
            .iter()
            .filter(|task| task["ready"] == true)
            .map(|task| format!("{}.{}", text(&task["service"]), task["slot"]))
            .collect();
        slots.sort();
        slots.dedup();
        if slots.len() != wanted || live.len() != wanted {
            bail!("{slots:?} are ready of {}", live.len());
        }
        Ok(())
    });
}

#[test]
fn killing_the_leader_loses_nothing_acknowledged_and_another_server_decides_within_seconds() {
    if skip() {
        return;
    }
    let fleet = three_servers();
    let led = leader(&fleet);
    let followers: Vec<String> =
        (1..=3).filter(|index| *index != led).map(|index| format!("s{index}")).collect();
    let (follower, other) = (followers[0].as_str(), followers[1].as_str());

    // Any server serves: deployed through one that does not decide, seen through all.
    let file = fleet.file("web", WEB);
    fleet.ok(["--context", follower, "up", "-y", "-f", &file]);
    for index in 1..=3 {
        let context = format!("s{index}");
        wait_for_tasks(&fleet, &context, "web", 3);
        let nodes = fleet.json(["--context", &context, "node", "ls"]);
        assert!(
            items(&nodes).iter().all(|node| node["state"] == "ready"),
            "agents are connected to all: {nodes}"
        );
        let app = fleet.ok(["--context", &context, "logs", "-p", "web", "--tail", "5"]);
        assert!(app.is_empty() || app.contains("web"), "logs through every server: {app}");
    }

    let before: Vec<String> = (1..=3).map(|index| containers(&fleet, index).unwrap()).collect();
    let led_id = version(&fleet, follower).unwrap().1;
    let stop = AtomicBool::new(false);
    let (acknowledged, took) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let label = format!("k{number}=v{number}");
                // Through whichever server answers, also the one that is about to be killed.
                let context = ["all", "s1", "s2", "s3"][number % 4];
                if fleet.wharf(["--context", context, "node", "label", "n1", &label]).is_success() {
                    acknowledged.push(label);
                }
            }
            acknowledged
        });
        let slow = fleet.file("slow", SLOW);
        let mut up = fleet.spawn(["--context", follower, "up", "-y", "-f", &slow]);
        wait_until(SETTLING, "the deployment has begun", || {
            let tasks = fleet.try_json(["--context", other, "ps", "-p", "slow"])?;
            ensure!(!items(&tasks).is_empty(), "no tasks yet");
            Ok::<_, anyhow::Error>(())
        });

        fleet.node(led).service("wharf").kill().unwrap();
        let took = other_leader(&fleet, follower, &led_id);
        // It decides, too: this needs decisions of a leader from here on.
        let scaled = fleet.wharf(["--context", other, "scale", "-p", "web", "web=4"]);
        assert!(scaled.is_success(), "{scaled:?}");
        assert_eq!(up.wait(SETTLING).unwrap(), 0, "an `up` from before goes on: {}", up.log());
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), took)
    });
    println!(
        "another server leads {:.1} s after SIGKILL; {} writes were acknowledged",
        took.as_secs_f32(),
        acknowledged.len()
    );
    assert!(acknowledged.len() > 10, "writing went on: {acknowledged:?}");

    fleet.node(led).service("wharf").start().unwrap();
    fleet.wait_for_nodes().unwrap();
    for index in 1..=3 {
        let context = format!("s{index}");
        wait_until(SETTLING, "every server answers", || version(&fleet, &context));
        let nodes = fleet.json(["--context", &context, "node", "ls"]);
        let first = items(&nodes).iter().find(|node| node["name"] == "n1").unwrap();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|label| {
                let (key, value) = label.split_once('=').unwrap();
                first["labels"][key] != value
            })
            .collect();
        assert!(lost.is_empty(), "{context} has lost {lost:?} of {}", first["labels"]);
        wait_for_tasks(&fleet, &context, "slow", 4);
        wait_for_tasks(&fleet, &context, "web", 4);
    }
    // The machine of the server that was killed had no agent either, and what it ran may have been given up meanwhile.
    for (index, before) in (1..=3).zip(&before).filter(|(index, _)| *index != led) {
        let now = containers(&fleet, index).unwrap();
        for line in before.lines() {
            assert!(now.contains(line), "n{index} had {line} and has\n{now}");
        }
    }
}

#[test]
fn a_leader_that_slept_writes_nothing_and_one_that_stops_hands_over_at_once() {
    if skip() {
        return;
    }
    let fleet = three_servers();
    let led = leader(&fleet);
    let service = fleet.node(led).service("wharf");
    let follower = format!("s{}", if led == 1 { 2 } else { 1 });
    let led_id = version(&fleet, &follower).unwrap().1;
    let file = fleet.file("web", WEB);
    fleet.ok(["--context", &follower, "up", "-y", "-f", &file]);

    // Asleep, with a change under way that it would decide.
    service.signal(Signal::SIGSTOP).unwrap();
    let took = other_leader(&fleet, &follower, &led_id);
    println!("another server leads {:.1} s after the leader fell asleep", took.as_secs_f32());
    let fence = |fleet: &Fleet| {
        let url = format!("http://{}:2379", fleet.node(led % 3 + 1).address());
        let script = format!("ETCDCTL_API=3 etcdctl --endpoints {url} get /wharf/leader -w json");
        let answer: serde_json::Value = serde_json::from_str(&fleet.node(led % 3 + 1).sh(&script)?)?;
        let revision = answer["kvs"][0]["mod_revision"].as_u64();
        revision.ok_or_else(|| anyhow::anyhow!("no leader in {answer}"))
    };
    let fenced = fence(&fleet).unwrap();
    fleet.ok(["--context", &follower, "scale", "-p", "web", "web=2"]);
    service.signal(Signal::SIGCONT).unwrap();
    wait_until(SETTLING, "the one that slept sees that it leads no more", || {
        let log = service.log();
        ensure!(log.contains("this server leads no more"), "its log: {log}");
        Ok::<_, anyhow::Error>(())
    });
    fleet.wait_for_nodes().unwrap();
    wait_for_tasks(&fleet, &format!("s{led}"), "web", 2);
    wait_for_tasks(&fleet, &follower, "web", 2);
    assert_eq!(fence(&fleet).unwrap(), fenced, "nobody has taken the lead back");
    assert_ne!(version(&fleet, &format!("s{led}")).unwrap().1, led_id, "it knows who leads");

    // Stopped in order: nobody waits for a lease to end.
    let led = leader(&fleet);
    let context = format!("s{}", led % 3 + 1);
    let led_id = version(&fleet, &context).unwrap().1;
    let begin = Instant::now();
    fleet.node(led).service("wharf").stop().unwrap();
    other_leader(&fleet, &context, &led_id);
    let took = begin.elapsed();
    println!("another server leads {:.1} s after the leader was asked to stop", took.as_secs_f32());
    assert!(took < Duration::from_secs(6), "no lease had to end: {took:?}");
    fleet.ok(["--context", &context, "scale", "-p", "web", "web=3"]);
    wait_for_tasks(&fleet, &context, "web", 3);

    // A second process on a server's folder is refused, whatever the store is.
    let running = leader(&fleet);
    let second = fleet.node(running).exec(["wharf", "server", "run"]).unwrap();
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("another process runs the server in /var/lib/wharf/server"), "{second:?}");
    assert!(second.stderr.contains("hint: "), "{second:?}");
}
