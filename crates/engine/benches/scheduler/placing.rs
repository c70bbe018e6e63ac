//! How fast tasks find their nodes: whole passes over apps, as the controller makes them, and what they decide applied to the world.

use std::time::{Duration, Instant};

use wharf_engine::{Change, Placer};

use super::{
    Goal,
    cluster::{Cluster, NOW, Rules},
    figure,
};

/// In each measurement: apps of so many tasks, for throughput.
const TASKS_OF_AN_APP: usize = 100;
/// Decisions about one task each, for their times.
const SINGLE: usize = 400;
/// What each task reserves, in thousandths of a processor.
const CPUS: u64 = 50;
/// The least that is measured.
const TIME: Duration = Duration::from_millis(1500);

struct Speed {
    /// Nodes found, without anything else of a pass.
    found: f64,
    /// Tasks made by whole passes, and applied.
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// The sizes of clusters that are measured unless others are asked for.
const SIZES: [usize; 4] = [100, 1000, 5000, 10_000];

/// Placements per second and the time of single decisions, by size, filling and rules; of these sizes only, if some are named.
pub(crate) fn speed(sizes: &[usize]) -> Vec<Goal> {
    println!(
        "placing: whole passes in memory; apps of {TASKS_OF_AN_APP} tasks, and of one for the time of a decision"
    );
    println!("nodes   filled  rules         found/s   tasks/s   decision p50   p99");
    let mut found = Vec::new();
    for nodes in if sizes.is_empty() { SIZES.to_vec() } else { sizes.to_vec() } {
        for filled in [0, 80] {
            for rules in [Rules::Plain, Rules::Spread] {
                let speed = measure(nodes, filled, rules);
                println!(
                    "{nodes:6}  {filled:4} %  {:12}  {:8.0}  {:8.0}  {:9.1} µs  {:9.1} µs",
                    rules.as_str(),
                    speed.found,
                    speed.per_second,
                    micros(speed.p50),
                    micros(speed.p99)
                );
                found.push((nodes, filled, rules, speed));
            }
        }
    }
    let of = |nodes: usize| found.iter().filter(move |(n, ..)| *n == nodes);
    let slowest = |nodes| of(nodes).map(|(.., speed)| speed.per_second).fold(f64::MAX, f64::min);
    let all = found.iter().filter(|(nodes, ..)| *nodes == 1000).map(|(_, filled, rules, small)| {
        let large = of(10_000).find(|(_, f, r, _)| f == filled && r == rules).map(|(.., large)| large);
        large.map_or(0.0, |large| micros(large.p50) / micros(small.p50))
    });
    let growth = all.fold(0.0, f64::max);
    let mut goals = Vec::new();
    if of(5000).next().is_some() {
        goals.push(Goal::at_least("placements_per_second_in_memory_5000_nodes", slowest(5000), 40_000.0));
    }
    if growth > 0.0 {
        goals.push(Goal::at_most("decision_time_10000_over_1000_nodes", growth, 10.0));
    }
    goals
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn measure(nodes: usize, filled: u64, rules: Rules) -> Speed {
    let mut cluster = Cluster::of(nodes);
    if filled > 0 {
        cluster.fill(filled);
    }
    // What still fits, so that no task is refused: what a node has left, and one task of a service on a node.
    let tasks = TASKS_OF_AN_APP.min(nodes);
    let room = nodes * usize::try_from((super::cluster::CORES * 1000 * (100 - filled) / 100) / CPUS).unwrap();
    let found = found(&mut cluster, rules, nodes.min(1000));
    let (mut placed, mut spent) = (0, Duration::ZERO);
    while spent < TIME && placed + tasks + SINGLE < room / 2 {
        let spec = cluster.app(tasks, rules, CPUS, false);
        let app = cluster.release(&spec);
        let started = Instant::now();
        let decision = cluster.decide(&app);
        cluster.apply(&decision.changes);
        spent += started.elapsed();
        let made = decision.changes.iter().filter(|change| matches!(change, Change::CreateTask(_))).count();
        assert_eq!(made, tasks, "every task finds a node");
        placed += made;
    }
    let mut times = Vec::new();
    for _ in 0..SINGLE {
        let spec = cluster.app(1, rules, CPUS, false);
        let app = cluster.release(&spec);
        let started = Instant::now();
        let decision = cluster.decide(&app);
        cluster.apply(&decision.changes);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Speed {
        found,
        per_second: placed as f64 / spent.as_secs_f64(),
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    }
}

/// Nodes found per second for the tasks of one service, one after the other.
fn found(cluster: &mut Cluster, rules: Rules, tasks: usize) -> f64 {
    let spec = cluster.app(tasks, rules, CPUS, false);
    let app = cluster.release(&spec);
    let revision = cluster.revision(&app);
    let mut placer = Placer::new(&cluster.world, NOW, 7);
    let started = Instant::now();
    for placed in 0..tasks {
        let found = placer.place(&revision);
        found.unwrap_or_else(|why| panic!("only {placed} of {tasks} tasks find a node: {}", why.refused()));
    }
    tasks as f64 / started.elapsed().as_secs_f64()
}

/// How long it takes to decide a service of ten thousand tasks at once.
pub(crate) fn one_service() -> Vec<Goal> {
    const TASKS: usize = 10_000;
    let mut goals = Vec::new();
    println!("service: one of {TASKS} tasks, decided in one pass");
    println!("nodes   rules         network   time     applied");
    for (nodes, rules, network) in [
        (5000, Rules::Plain, false),
        (5000, Rules::Plain, true),
        (10_000, Rules::Spread, false),
        (10_000, Rules::Spread, true),
    ] {
        let mut cluster = Cluster::of(nodes);
        let spec = cluster.app(TASKS, rules, CPUS, network);
        let app = cluster.release(&spec);
        if network {
            // The network is made by a pass of its own.
            let first = cluster.decide(&app);
            let only: Vec<_> =
                first.changes.into_iter().filter(|change| matches!(change, Change::PutNetwork(_))).collect();
            cluster.apply(&only);
        }
        let started = Instant::now();
        let decision = cluster.decide(&app);
        let decided = started.elapsed();
        cluster.apply(&decision.changes);
        let applied = started.elapsed().checked_sub(decided).unwrap_or_default();
        let made = decision.changes.iter().filter(|change| matches!(change, Change::CreateTask(_))).count();
        assert_eq!(made, TASKS, "every task finds a node: {:?}", decision.waiting.last());
        let connected = if network { "one" } else { "none" };
        println!(
            "{nodes:6}  {:12}  {connected:8}  {} s  {} s",
            rules.as_str(),
            figure(decided.as_secs_f64()),
            figure(applied.as_secs_f64())
        );
        goals.push((decided + applied).as_secs_f64());
    }
    vec![Goal::at_most("service_of_10000_tasks_decided_seconds", goals.into_iter().fold(0.0, f64::max), 1.0)]
}
