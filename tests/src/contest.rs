//! Ours against Docker Swarm on the same machines, and against what the engines can do at all: for `./x bench cluster`.
//!
//! - A lap of each is run in turn, so that what else the machine does falls on all of them alike.
//! - What counts as running is the same for all: containers that have processes, as the kernel says, beside what each says itself.

pub mod leader;
pub mod power;
pub mod up;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use wharf_testkit::cluster::{Cluster, Node};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// The one in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A median and what it was taken of, for people.
pub fn figures(values: &[Duration]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{:.2}", value.as_secs_f64())).collect();
    format!("{:.2} s  ({})", median(values.iter().map(Duration::as_secs_f64)), all.join(" "))
}

/// The line that says whether a goal is met.
pub fn goal(name: &str, value: f64, target: f64) -> String {
    let verdict = if value <= target { "met" } else { "short" };
    format!("goal {name} {value:.3} {target} {verdict}")
}

/// How many containers have processes on these machines.
pub fn containers<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> usize {
    nodes.into_iter().map(|node| node.containers().len()).sum()
}

/// How long this machine's processors have been busy, all together.
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // user, nice, system, idle, iowait, irq, softirq, steal
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let ticks = fields.iter().enumerate().filter(|(at, _)| ![3, 4].contains(at) && *at < 7);
    Ok(Duration::from_millis(ticks.map(|(_, ticks)| ticks * 10).sum()))
}

/// How long the processes of a name have been busy on these machines, since each began.
fn busy_as(cluster: &Cluster, name: &str) -> Duration {
    let pids = cluster.nodes().into_iter().flat_map(|node| node.pids_of(name));
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may have spaces and ends with the last parenthesis.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    };
    pids.map(of).sum()
}
