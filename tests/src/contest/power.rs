//! A node loses its power: when is everything it ran running elsewhere, and until when is it sent requests?

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use wharf_testkit::cluster::{Cluster, Node, try_wait_until};

use super::{PATIENCE, containers};
use crate::{
    Fleet, engine, items,
    load::{self, Kind, Plan, Watch},
    swarm, text,
    wire::Wiretap,
};

/// How many tasks: four on each of three nodes.
const TASKS: usize = 12;
const VICTIM: u8 = 3;
const HOST: &str = "app.test";
/// How long clients go on after everything runs again.
const AFTER: Duration = Duration::from_secs(2);

/// What the loss of a node cost.
#[derive(Debug, Clone)]
pub struct Loss {
    /// From the power's end to as many tasks running on the others as are wanted.
    pub replaced: Duration,
    /// From the power's end to the last new connection or request to a task of the dead node; none if there was none.
    pub quiet: Duration,
    /// How many of them there were.
    pub sent: usize,
    /// Requests of clients at the other nodes' gateways, and those that were lost.
    pub asked: u64,
    /// See `asked`.
    pub lost: u64,
    /// The longest time an answer took.
    pub slowest: Duration,
}

impl Loss {
    /// A line for people.
    pub fn line(&self) -> String {
        format!(
            "replaced after {:>6.2} s; the last of {} connections and requests to the dead after {:.3} s; {} of {} requests lost, slowest {:.2} s",
            self.replaced.as_secs_f64(),
            self.sent,
            self.quiet.as_secs_f64(),
            self.lost,
            self.asked,
            self.slowest.as_secs_f64(),
        )
    }
}

/// Ours, on three nodes; they are as before afterwards.
pub fn ours(fleet: &Fleet) -> Result<Loss> {
    let content = format!(
        "name: power\nservices:\n  web:\n    image: wharf/testserver:1\n    stop_grace_period: 1s\n    deploy: {{replicas: {TASKS}}}\n    \
         x-wharf:\n      routes:\n      - {{host: {HOST}, port: 8080}}\n"
    );
    let file = fleet.file("power", &content);
    fleet.try_wharf(["up", "-y", "-f", &file])?.text()?;
    let survivors: Vec<_> = fleet.cluster.nodes().into_iter().filter(|node| node.index() != VICTIM).collect();
    let targets: Vec<_> = survivors.iter().map(|node| SocketAddr::from((node.address(), 80))).collect();
    for target in &targets {
        try_wait_until(PATIENCE, "the app answers", || {
            let (url, host) = (format!("http://{target}/"), format!("Host: {HOST}"));
            let ask = ["curl", "-sf", "--max-time", "5", "-H", &host, &url];
            fleet.cluster.client_exec(ask)?.text()
        })?;
    }
    let victim = fleet.node(VICTIM);
    let doomed = addresses(&victim)?;
    ensure!(!doomed.is_empty(), "nothing of the app runs on {}", victim.name());

    let taps: Vec<_> = survivors
        .iter()
        .map(|node| Wiretap::start(node, doomed.iter().copied()))
        .collect::<Result<Vec<_>>>()?;
    let watch = Arc::new(Watch::default());
    let plan = Plan {
        clients: vec![(Kind::KeepAlive, 6), (Kind::Fresh, 6)],
        targets,
        resolve: None,
        host: HOST.to_owned(),
        pause: Duration::from_millis(20),
        may_fail: false,
    };
    let (since, replaced, report) = thread::scope(|scope| {
        let clients = Arc::clone(&watch);
        let load = scope.spawn(|| fleet.cluster.in_network(move || load::run(&plan, &clients)));
        thread::sleep(Duration::from_secs(1));
        let since = Instant::now();
        let replaced = victim.power_off().and_then(|()| wait_for_replacements(&survivors, since));
        thread::sleep(AFTER);
        watch.stop();
        let report = load.join().map_err(|_| anyhow!("the clients panicked"))???;
        anyhow::Ok((since, replaced?, report))
    })?;
    let mut sent = Vec::new();
    for tap in taps {
        sent.extend(tap.stop()?.into_iter().filter(|segment| segment.at >= since));
    }
    victim.boot()?;
    fleet.wait_for_nodes()?;
    fleet.try_wharf(["down", "-y", "-p", "power"])?.text()?;
    let all = load::total(&report);
    Ok(Loss {
        replaced,
        quiet: sent.iter().map(|segment| segment.at - since).max().unwrap_or_default(),
        sent: sent.len(),
        asked: all.asked,
        lost: all.lost,
        slowest: all.slowest,
    })
}

/// A swarm's, from the power's end to as many tasks running on the others as are wanted.
pub fn swarm(cluster: &Cluster) -> Result<Duration> {
    let manager = cluster.node(1);
    let all = cluster.nodes();
    swarm::create(&manager, "power", TASKS, "inside", &["wharf/testserver:1"])?;
    try_wait_until(PATIENCE, "all run", || {
        let running = containers(&all);
        ensure!(running == TASKS, "{running} run");
        Ok(())
    })?;
    let victim = cluster.node(VICTIM);
    ensure!(!victim.containers().is_empty(), "nothing of the service runs on {}", victim.name());
    let survivors: Vec<_> = all.iter().filter(|node| node.index() != VICTIM).cloned().collect();
    // The same calm before as ours has.
    thread::sleep(Duration::from_secs(1));
    let since = Instant::now();
    victim.power_off()?;
    let replaced = wait_for_replacements(&survivors, since)?;
    victim.boot()?;
    swarm::wait_for_nodes(&manager, all.len(), 1)?;
    manager.docker(["service", "rm", "power"])?;
    try_wait_until(PATIENCE, "no container is left", || {
        let left = containers(&all);
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    Ok(replaced)
}

fn wait_for_replacements(survivors: &[Node], since: Instant) -> Result<Duration> {
    try_wait_until(PATIENCE, "all tasks run on the nodes that are left", || {
        let running = containers(survivors);
        ensure!(running >= TASKS, "{running} run");
        Ok(since.elapsed())
    })
}

/// The addresses of a node's containers.
fn addresses(node: &Node) -> Result<Vec<Ipv4Addr>> {
    let found = engine::ask(node, "GET", "/containers/json", None)?;
    let networks = items(&found).iter().filter_map(|one| one["NetworkSettings"]["Networks"].as_object());
    let addresses = networks.flat_map(|networks| networks.values()).map(|network| &network["IPAddress"]);
    addresses
        .map(|address| text(address).parse().with_context(|| format!("{address} is no address")))
        .collect()
}
