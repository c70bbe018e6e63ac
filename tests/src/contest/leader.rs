//! The process of the leader is killed: when is a change accepted again, and when is one carried out?

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use wharf_testkit::cluster::{Cluster, Node, try_wait_until};

use super::{PATIENCE, containers};
use crate::{Fleet, engine, servers, swarm};

/// How many tasks there are, and how many are wanted after the leader's death.
const TASKS: (usize, usize) = (3, 9);
/// How long one attempt may take at a server that cannot answer.
const ATTEMPT: Duration = Duration::from_secs(2);

/// What the death of a leader cost.
#[derive(Debug, Clone, Copy)]
pub struct Interregnum {
    /// From its death to the first change that another server accepted.
    pub accepted: Duration,
    /// From its death to the first new task that runs because of a change made after it: somebody decides again.
    pub decided: Duration,
}

impl Interregnum {
    /// A line for people.
    pub fn line(&self) -> String {
        let (accepted, decided) = (self.accepted.as_secs_f64(), self.decided.as_secs_f64());
        format!("first accepted write after {accepted:>6.3} s, first new task runs after {decided:>6.3} s")
    }
}

/// Brings up what is scaled, on three servers.
pub fn prepare(fleet: &Fleet) -> Result<()> {
    let content = format!(
        "name: led\nservices:\n  web:\n    image: busybox:1\n    command: sleep 1000000\n    stop_signal: SIGKILL\n    deploy: {{replicas: {}}}\n",
        TASKS.0
    );
    let file = fleet.file("led", &content);
    fleet.try_wharf(["up", "-y", "-f", &file])?.text().map(drop)
}

/// Ours, with three servers on etcd; they are as before afterwards.
pub fn ours(fleet: &Fleet, lap: usize) -> Result<Interregnum> {
    let led = servers::leader(fleet);
    let others: Vec<_> = (1..=3).filter(|index| *index != led).collect();
    let left: Vec<_> = others.iter().map(|index| fleet.node(*index)).collect();
    let contexts: Vec<_> = others.iter().map(|index| format!("s{index}")).collect();
    let mut turns = contexts.iter().cycle();
    let before = containers(&left);
    let service = fleet.node(led).service("wharf");

    let since = Instant::now();
    service.kill()?;
    let mut ask = |what: &str, words: &[&str]| {
        try_wait_until(PATIENCE, what, || {
            let context = turns.next().map(String::as_str).unwrap_or_default();
            fleet.try_wharf(["--context", context].iter().chain(words))?.text()
        })
    };
    ask("a change is accepted", &["node", "label", "n1", &format!("lap=l{lap}")])?;
    let accepted = since.elapsed();
    ask("a change is accepted", &["scale", "--detach", "-p", "led", &format!("web={}", TASKS.1)])?;
    let decided = wait_for_more(&left, before, since)?;

    service.start()?;
    fleet.wait_for_nodes()?;
    for wanted in [TASKS.1, TASKS.0] {
        fleet.try_wharf(["scale", "-p", "led", &format!("web={wanted}")])?.text()?;
    }
    try_wait_until(PATIENCE, "the cluster is as before", || {
        let running = containers(&fleet.cluster.nodes());
        ensure!(running == TASKS.0, "{running} run");
        Ok(())
    })?;
    Ok(Interregnum { accepted, decided })
}

/// Makes the service that is scaled, on a swarm of three managers.
pub fn prepare_swarm(cluster: &Cluster) -> Result<()> {
    let what = ["--stop-signal", "KILL", "busybox:1", "sleep", "1000000"];
    swarm::create(&cluster.node(1), "led", TASKS.0, "inside", &what)
}

/// A swarm's, with three managers; they are as before afterwards.
pub fn swarm(cluster: &Cluster, lap: usize) -> Result<Interregnum> {
    let all = cluster.nodes();
    let led = swarm::leader(cluster, &cluster.node(1))?;
    let left: Vec<_> = all.iter().filter(|node| node.index() != led.index()).cloned().collect();
    let mut turns = left.iter().cycle();
    let before = containers(&left);

    let since = Instant::now();
    led.engine_kill()?;
    let mut attempt = 0;
    try_wait_until(PATIENCE, "a change is accepted", || {
        let Some(node) = turns.next() else { return Ok(()) };
        // What was not acknowledged may have been carried out, and its name is taken then.
        attempt += 1;
        let config = json!({"Name": format!("lap-{lap}-{attempt}"), "Data": "bGFw"});
        engine::ask_within(node, "POST", "/configs/create", Some(&config), ATTEMPT).map(drop)
    })?;
    let accepted = since.elapsed();
    try_wait_until(PATIENCE, "a change is accepted", || {
        let Some(node) = turns.next() else { return Ok(()) };
        node.docker(["service", "scale", "--detach", &format!("led={}", TASKS.1)]).map(drop)
    })?;
    let decided = wait_for_more(&left, before, since)?;

    led.engine_start()?;
    try_wait_until(PATIENCE, "the swarm is whole", || swarm::wait_for_nodes(&led, all.len(), 3))?;
    led.docker(["service", "scale", "--detach", &format!("led={}", TASKS.0)])?;
    try_wait_until(PATIENCE, "the swarm is as before", || {
        let running = containers(&all);
        ensure!(running == TASKS.0, "{running} run");
        Ok(())
    })?;
    Ok(Interregnum { accepted, decided })
}

fn wait_for_more(nodes: &[Node], before: usize, since: Instant) -> Result<Duration> {
    try_wait_until(PATIENCE, "a new task runs", || {
        let running = containers(nodes);
        ensure!(running > before, "{running} run, as before");
        Ok(since.elapsed())
    })
}
