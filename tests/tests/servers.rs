//! Three servers on a real etcd: any of them serves, one decides, and losing it costs seconds and nothing that was acknowledged.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use wharf_tests::{
    Fleet, Signal, items,
    servers::{leader, three_servers, version},
    skip, text, wait_until,
};

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
    let fleet = three_servers().unwrap();
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
    let fleet = three_servers().unwrap();
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
