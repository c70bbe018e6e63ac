//! One cluster goes through one fault after the other, and after each of them: nothing that was acknowledged is lost, what must run once ran
//! once all the time, what serves is back, and the events tell what happened.
//!
//! What is doubled is looked for without pause and without asking anybody: processes of containers are counted as the kernel has them, on all
//! machines that have power, whether they can be reached or not.
#![expect(clippy::unwrap_used, reason = "a test panics")]
#![expect(clippy::print_stdout, reason = "figures and events for whoever looks")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_testkit::cluster::{Node, clock::Step};
use wharf_tests::{
    Fleet, Output, items,
    servers::three_servers,
    skip,
    state::{SETTLING, all_containers, ask, live, node, traffic, wait_for_state, wait_settled},
    text, wait_until,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Between two writes of which it is noted whether they were acknowledged.
const WRITES: Duration = Duration::from_millis(400);
/// Between two looks at who runs.
const LOOKS: Duration = Duration::from_millis(20);
/// The mark of what must run once, in its environment.
const MARK: &str = "ONLY_ONE=";

fn shop(web: u64) -> String {
    format!(
        "
name: shop
services:
  web:
    image: wharf/testserver:1
    ports: ['8080:8080']
    stop_grace_period: 1s
    deploy: {{replicas: {web}}}
  db:
    image: wharf/testserver:1
    environment: {{ONLY_ONE: db}}
    volumes: [data:/data]
    stop_grace_period: 1s
    deploy:
      placement:
        constraints: [node.hostname != n1]
volumes: {{data: {{}}}}
"
    )
}

/// Notes what was acknowledged, and what ran twice.
struct Witness<'f> {
    fleet: &'f Fleet,
    acknowledged: Mutex<BTreeMap<String, String>>,
    doubled: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
    /// Events that were there before the fault that is under way.
    told: Mutex<BTreeSet<String>>,
}

impl<'f> Witness<'f> {
    fn new(fleet: &'f Fleet) -> Self {
        Self {
            fleet,
            acknowledged: Mutex::default(),
            doubled: Mutex::default(),
            stop: AtomicBool::new(false),
            told: Mutex::default(),
        }
    }

    /// Writes without pause. What is refused while nobody can take it is nobody's promise.
    fn write(&self) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let (key, value) = (format!("k{number}"), format!("v{number}"));
            let label = format!("{key}={value}");
            if self.fleet.try_wharf(["node", "label", "n1", &label]).is_ok_and(|output| output.is_success()) {
                self.acknowledged.lock().unwrap().insert(key, value);
            }
            thread::sleep(WRITES);
        }
    }

    /// Counts what must run once.
    fn watch(&self, nodes: &[Node]) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut runs = BTreeMap::<String, Vec<String>>::new();
            for node in nodes {
                for (_, pid) in node.containers() {
                    if let Some(mark) = mark_of(pid) {
                        runs.entry(mark).or_default().push(node.name());
                    }
                }
            }
            for (mark, nodes) in runs.into_iter().filter(|(_, nodes)| nodes.len() > 1) {
                self.doubled.lock().unwrap().insert(format!("{mark} ran on {nodes:?} at once"));
            }
            thread::sleep(LOOKS);
        }
    }

    fn events(&self) -> Result<Vec<Value>> {
        let all = ["--format", "json", "events", "--no-follow", "--since", "1970-01-01T00:00:01Z"];
        let said = self.fleet.try_wharf(all)?.text()?;
        Ok(said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// What happened since the last fault was over.
    fn story(&self) -> Result<Vec<String>> {
        let told = self.told.lock().unwrap();
        let news = self.events()?.into_iter().filter(|event| !told.contains(text(&event["id"])));
        Ok(news.map(|event| text(&event["message"]).to_owned()).collect())
    }

    /// After a fault: everything is as wanted, nothing is lost, nothing ran twice, and the events tell of all that is in `story`.
    #[track_caller]
    fn vouch(&self, fault: &str, began: Instant, web: u64, story: &[&str]) {
        let fleet = self.fleet;
        fleet.wait_for_nodes().unwrap();
        wait_settled(fleet, "shop", &[("db", 1), ("web", web)]);
        wait_until(SETTLING, "all gateways lead to the app", || {
            let gateways = fleet.cluster.nodes().into_iter();
            gateways
                .map(|node| (node.address(), 8080).into())
                .try_for_each(|gateway: SocketAddr| fleet.cluster.in_network(|| ask(gateway))?)
        });
        assert_eq!(*self.doubled.lock().unwrap(), BTreeSet::new(), "{fault}");
        let first = node(fleet, "n1").unwrap();
        let lost: Vec<_> = {
            let acknowledged = self.acknowledged.lock().unwrap();
            acknowledged
                .iter()
                .filter(|(key, value)| first["labels"][key] != **value)
                .map(|(key, _)| key.clone())
                .collect()
        };
        assert!(lost.is_empty(), "{fault}: {lost:?} were acknowledged and are not among {}", first["labels"]);
        wait_until(SETTLING, &format!("{fault}: the events tell of it"), || {
            let told = self.story()?;
            let untold: Vec<_> =
                story.iter().filter(|part| !told.iter().any(|message| message.contains(**part))).collect();
            ensure!(untold.is_empty(), "nothing of {untold:?} is in {told:#?}");
            Ok::<_, anyhow::Error>(())
        });
        let story = self.story().unwrap();
        println!("{fault}: {:.1} s, {} events", began.elapsed().as_secs_f32(), story.len());
        story.iter().for_each(|message| println!("    {message}"));
        // So that the next fault has something to lose, however fast the machine is.
        let written = || self.acknowledged.lock().unwrap().len();
        let before = written();
        wait_until(SETTLING, &format!("{fault}: writes are acknowledged again"), || {
            let more = written() - before;
            ensure!(more >= 2, "{more} since then");
            Ok::<_, anyhow::Error>(())
        });
        self.begin();
    }

    /// From here on events belong to the next fault.
    fn begin(&self) {
        let ids = self.events().unwrap().iter().map(|event| text(&event["id"]).to_owned()).collect();
        *self.told.lock().unwrap() = ids;
    }
}

/// The mark in a process's environment.
fn mark_of(pid: u32) -> Option<String> {
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
    environment.split('\0').find_map(|variable| variable.strip_prefix(MARK)).map(str::to_owned)
}

/// Runs a test's faults with a witness beside them.
fn witnessed(fleet: &Fleet, faults: impl FnOnce(&Witness<'_>)) {
    let witness = Witness::new(fleet);
    let nodes = fleet.cluster.nodes();
    thread::scope(|scope| {
        // Ends the others also if a fault fails its test.
        struct Stop<'s>(&'s AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&witness.stop);
        scope.spawn(|| witness.write());
        scope.spawn(|| witness.watch(&nodes));
        witness.begin();
        faults(&witness);
        let written = witness.acknowledged.lock().unwrap().len();
        println!("{written} writes were acknowledged");
        assert!(written > 5, "this machine was too busy to say anything: {written} writes");
    });
}

/// Containers that run of what there were, by machine.
fn nothing_new(fleet: &Fleet, before: &[BTreeSet<String>], what: &str) {
    let now = all_containers(fleet);
    assert_eq!(now, before, "{what} replaced or ended something");
}

#[test]
fn after_each_fault_nothing_is_lost_nothing_is_doubled_and_the_events_tell_the_story() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let settable = fleet.wind_clocks().unwrap();
    if !settable {
        println!("the program asks the kernel itself what time it is: its clock is not set");
    }
    fleet.ok(["up", "-y", "-f", &fleet.file("shop", &shop(3))]);
    wait_settled(&fleet, "shop", &[("db", 1), ("web", 3)]);
    let tasks = live(&fleet, "shop").unwrap();
    let home = tasks.iter().find(|task| task["service"] == "db").unwrap();
    let home = if home["node"] == "n2" { 2 } else { 3 };
    let (home, other) = (fleet.node(home), fleet.node(if home == 2 { 3 } else { 2 }));

    witnessed(&fleet, |witness| {
        processes_are_killed(witness, &home);
        an_engine_takes_its_containers_along(witness, &home);
        a_node_is_away(witness, &home);
        only_the_server_cannot_reach_a_node(witness, &other);
        a_node_loses_its_power(witness, &home);
        if settable {
            clocks_are_set(witness);
        }
    });
}

/// `kill -9` of each: containers go on.
fn processes_are_killed(witness: &Witness<'_>, home: &Node) {
    let fleet = witness.fleet;
    let name = home.name();
    let before = all_containers(fleet);

    let began = Instant::now();
    let server = fleet.node(1).service("wharf");
    server.kill().unwrap();
    server.start().unwrap();
    witness.vouch("server kill -9", began, 3, &["leads"]);
    nothing_new(fleet, &before, "the death of the server");

    let began = Instant::now();
    let agent = home.service("wharf");
    agent.kill().unwrap();
    wait_for_state(fleet, &name, "unreachable");
    agent.start().unwrap();
    let (away, back) = (format!("node {name} is unreachable"), format!("node {name} is ready"));
    witness.vouch("agent kill -9", began, 3, &[&away, &back]);
    nothing_new(fleet, &before, "the death of an agent");

    let began = Instant::now();
    home.engine_kill().unwrap();
    wait_for_state(fleet, &name, "engine-down");
    home.engine_start().unwrap();
    witness.vouch("engine kill -9", began, 3, &[&format!("node {name} is engine-down"), &back]);
    nothing_new(fleet, &before, "the death of an engine");
}

/// An engine without live-restore ends its containers when it is stopped; they are begun again, and never beside the old ones.
fn an_engine_takes_its_containers_along(witness: &Witness<'_>, home: &Node) {
    let began = Instant::now();
    let off = ["--live-restore=false"];
    home.engine_stop().unwrap();
    home.engine_start_with(&off).unwrap();
    home.engine_stop().unwrap();
    assert_eq!(home.containers(), [], "the engine has ended its containers");
    home.engine_start_with(&off).unwrap();
    let (down, back) =
        (format!("node {} is engine-down", home.name()), format!("node {} is ready", home.name()));
    witness.vouch("engine restarted, live-restore off", began, 3, &[&down, &back, "shop-db-1"]);
}

/// Four seconds are nothing; after a minute what can run elsewhere does, and what cannot has waited.
fn a_node_is_away(witness: &Witness<'_>, home: &Node) {
    let fleet = witness.fleet;
    let name = home.name();
    let before = all_containers(fleet);
    let began = Instant::now();
    home.isolate().unwrap();
    thread::sleep(Duration::from_secs(4));
    fleet.cluster.heal().unwrap();
    witness.vouch("isolated for 4 s", began, 3, &[]);
    nothing_new(fleet, &before, "a hiccup of four seconds");

    let began = Instant::now();
    let lost = serves_on(fleet, &name);
    home.isolate().unwrap();
    wait_for_state(fleet, &name, "down");
    wait_until(SETTLING, "what serves runs elsewhere", || three_elsewhere(fleet, &name));
    assert!(
        home.containers().iter().any(|(_, pid)| mark_of(*pid).is_some()),
        "what has its data there goes on there"
    );
    thread::sleep(Duration::from_secs(60).saturating_sub(began.elapsed()));
    fleet.cluster.heal().unwrap();
    let (down, back) = (format!("node {name} is down"), format!("node {name} is ready"));
    witness.vouch("isolated for 60 s", began, 3, &told(&[&down, &back], &lost));
}

/// What the events say of each task that serves on a node, should that be lost.
fn serves_on(fleet: &Fleet, name: &str) -> Vec<String> {
    let tasks = live(fleet, "shop").unwrap();
    let there = tasks.iter().filter(|task| task["service"] == "web" && task["node"] == name);
    there.map(|task| format!("{} is lost", text(&task["name"]))).collect()
}

fn told<'s>(these: &[&'s str], and: &'s [String]) -> Vec<&'s str> {
    these.iter().copied().chain(and.iter().map(String::as_str)).collect()
}

fn three_elsewhere(fleet: &Fleet, name: &str) -> Result<()> {
    let tasks = live(fleet, "shop")?;
    let elsewhere = |task: &&Value| task["service"] == "web" && task["ready"] == true && task["node"] != name;
    ensure!(tasks.iter().filter(elsewhere).count() == 3, "{tasks:?}");
    Ok(())
}

/// Its app goes on serving, there and elsewhere.
fn only_the_server_cannot_reach_a_node(witness: &Witness<'_>, other: &Node) {
    let fleet = witness.fleet;
    let began = Instant::now();
    let (gateway, stop) = (SocketAddr::from((other.address(), 8080)), AtomicBool::new(false));
    let (answers, gap) = thread::scope(|scope| {
        let asking = scope.spawn(|| traffic(fleet, gateway, &stop));
        fleet.cluster.partition(1, other.index()).unwrap();
        let state = wait_until(SETTLING, "it is missed", || {
            let node = node(fleet, &other.name())?;
            ensure!(node["state"] == "down", "it is {node}");
            Ok::<_, anyhow::Error>(node)
        });
        println!("    {state}");
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    println!("    {answers} answers, longest gap {:.2} s", gap.as_secs_f32());
    assert!(answers > 100, "{answers} answers");
    assert!(gap < Duration::from_secs(10), "its gateway goes on: {gap:?}");
    fleet.cluster.heal().unwrap();
    let (away, back) =
        (format!("node {} is unreachable", other.name()), format!("node {} is ready", other.name()));
    witness.vouch("cut off from the server alone", began, 3, &[&away, &back]);
}

fn a_node_loses_its_power(witness: &Witness<'_>, home: &Node) {
    let fleet = witness.fleet;
    let name = home.name();
    let began = Instant::now();
    let lost = serves_on(fleet, &name);
    home.power_off().unwrap();
    wait_for_state(fleet, &name, "down");
    wait_until(SETTLING, "what serves runs elsewhere", || three_elsewhere(fleet, &name));
    let said = fleet.wharf(["ps", "-p", "shop"]);
    let waiting = said.stderr.lines().find(|line| line.starts_with("waiting: ")).unwrap_or_default();
    assert!(waiting.contains("db") && waiting.contains(&name), "{said:?}");
    home.boot().unwrap();
    let (down, back) = (format!("node {name} is down"), format!("node {name} is ready"));
    witness.vouch("power off, and back", began, 3, &told(&[&down, &back], &lost));
}

/// An hour ahead and an hour back, of the server and of an agent: what runs is not touched, and work goes on.
fn clocks_are_set(witness: &Witness<'_>) {
    let fleet = witness.fleet;
    let mut web = 3;
    for (index, step, what) in [
        (1, Step::Ahead(HOUR), "the server's clock an hour ahead"),
        (1, Step::Back(HOUR), "the server's clock an hour back"),
        (3, Step::Ahead(HOUR), "an agent's clock an hour ahead"),
        (3, Step::Back(HOUR), "an agent's clock an hour back"),
    ] {
        let began = Instant::now();
        let before = running(fleet);
        fleet.node(index).set_clock(step).unwrap();
        web = if web == 3 { 5 } else { 3 };
        fleet.ok(["up", "-y", "-f", &fleet.file("shop", &shop(web))]);
        wait_settled(fleet, "shop", &[("db", 1), ("web", web)]);
        // Also what waits for a time of day.
        fleet.node(index).set_clock(Step::Right).unwrap();
        witness.vouch(what, began, web, &["shop"]);
        let after = running(fleet);
        let kept = before.intersection(&after).count();
        assert!(kept >= before.len().min(after.len()), "{what}: {before:?} became {after:?}");
    }
}

/// Identifiers of containers that run.
fn running(fleet: &Fleet) -> BTreeSet<String> {
    fleet.cluster.nodes().iter().flat_map(Node::containers).map(|(id, _)| id).collect()
}

#[test]
fn a_full_disk_of_the_store_refuses_writes_and_nothing_else_and_goes_on_when_there_is_room() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(1);
    let first = fleet.node(1);
    let server = first.service("wharf");
    // The server's folder on a disk of its own.
    server.stop().unwrap();
    first
        .sh("set -e; cd /var/lib/wharf; mv server server.before; mkdir server; mount -t tmpfs -o size=64m tmpfs server; cp -a server.before/. server/")
        .unwrap();
    server.start().unwrap();
    fleet.wait_for_nodes().unwrap();
    let app = |version: u8| {
        format!(
            "
name: shop
services:
  web:
    image: wharf/testserver:1
    environment: {{NAME: 'v{version}'}}
    ports: ['8080:8080']
    stop_grace_period: 1s
"
        )
    };
    fleet.ok(["up", "-y", "-f", &fleet.file("shop", &app(1))]);
    wait_settled(&fleet, "shop", &[("web", 1)]);
    fleet.ok(["node", "label", "n1", "before=full"]);
    let before = all_containers(&fleet);

    // Not quite, so that the store says no; and quite, so that the disk does.
    for (fill, size) in [("all but 12 MiB", "count=52"), ("all", "")] {
        drop(first.exec([
            "sh",
            "-c",
            &format!("dd if=/dev/zero of=/var/lib/wharf/server/fill bs=1M {size}"),
        ]));
        let refused: Output = wait_until(SETTLING, "writes are refused", || {
            let output = fleet.wharf(["node", "label", "n1", "during=full"]);
            ensure!(!output.is_success(), "it was taken");
            Ok::<_, anyhow::Error>(output)
        });
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("cluster.redb") || refused.stderr.contains("store"), "{refused:?}");
        assert!(refused.stderr.contains("hint: free some space"), "{refused:?}");
        let up = fleet.wharf(["up", "-y", "-f", &fleet.file("shop", &app(2))]);
        assert_eq!(up.code, 1, "{up:?}");
        assert!(up.stderr.contains("free some space"), "{up:?}");
        // Reading goes on, and so does what runs.
        wait_settled(&fleet, "shop", &[("web", 1)]);
        assert_eq!(node(&fleet, "n1").unwrap()["labels"]["before"], "full");
        let gateway = SocketAddr::from((first.address(), 8080));
        wait_until(SETTLING, "the app answers", || fleet.cluster.in_network(|| ask(gateway))?);
        assert_eq!(all_containers(&fleet), before, "{fill}: nothing was touched");
        first.run(["rm", "/var/lib/wharf/server/fill"]).unwrap();
        // By itself, without a restart.
        wait_until(SETTLING, "writes are taken again", || {
            fleet.try_wharf(["node", "label", "n1", "after=full"])?.text()
        });
    }
    let labels = node(&fleet, "n1").unwrap()["labels"].clone();
    assert_eq!((&labels["before"], &labels["after"]), (&Value::from("full"), &Value::from("full")));
    assert_eq!(labels["during"], Value::Null, "what was refused was not done");
    fleet.ok(["up", "-y", "-f", &fleet.file("shop", &app(2))]);
    wait_settled(&fleet, "shop", &[("web", 1)]);
    // Killed, it still has everything.
    server.kill().unwrap();
    server.start().unwrap();
    fleet.wait_for_nodes().unwrap();
    assert_eq!(node(&fleet, "n1").unwrap()["labels"], labels);
}

#[test]
fn one_member_of_etcd_is_lost_and_nobody_notices_and_two_cost_writes_only_while_they_are_away() {
    if skip() {
        return;
    }
    let fleet = three_servers().unwrap();
    fleet.ok(["up", "-y", "-f", &fleet.file("shop", &shop(3))]);
    wait_settled(&fleet, "shop", &[("db", 1), ("web", 3)]);
    witnessed(&fleet, |witness| {
        let before = all_containers(&fleet);
        // Each in turn: one of them leads.
        for index in 1..=3 {
            let began = Instant::now();
            let etcd = fleet.node(index).service("etcd");
            etcd.kill().unwrap();
            let label = format!("without=n{index}");
            wait_until(SETTLING, "writes are taken", || {
                fleet.try_wharf(["node", "label", "n2", &label])?.text()
            });
            etcd.start().unwrap();
            assert_eq!(node(&fleet, "n2").unwrap()["labels"]["without"], format!("n{index}"));
            witness.vouch(&format!("etcd of n{index} kill -9"), began, 3, &[]);
            healthy(&fleet);
        }
        // Without a majority nothing is decided, and nothing that runs is touched.
        let began = Instant::now();
        for index in [2, 3] {
            fleet.node(index).service("etcd").kill().unwrap();
        }
        let refused = fleet.wharf(["node", "label", "n2", "without=majority"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains(":2379"), "it says where it looked: {refused:?}");
        let gateway = SocketAddr::from((fleet.node(3).address(), 8080));
        wait_until(SETTLING, "the app answers", || fleet.cluster.in_network(|| ask(gateway))?);
        for index in [2, 3] {
            fleet.node(index).service("etcd").start().unwrap();
        }
        healthy(&fleet);
        wait_until(SETTLING, "writes are taken again", || {
            fleet.try_wharf(["node", "label", "n2", "with=majority"])?.text()
        });
        witness.vouch("etcd without a majority", began, 3, &[]);
        assert_eq!(all_containers(&fleet), before, "nothing was touched all the time");
        let items = fleet.json(["node", "ls"]);
        assert!(self::items(&items).iter().all(|node| node["state"] == "ready"), "{items}");
    });
}

/// Waits until every member of etcd is well.
fn healthy(fleet: &Fleet) {
    let endpoints: Vec<_> =
        fleet.cluster.nodes().iter().map(|node| format!("http://{}:2379", node.address())).collect();
    let health =
        ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoints.join(","), "endpoint", "health"]
            .map(str::to_owned);
    wait_until(SETTLING, "etcd is healthy", || fleet.node(1).run(&health));
}
