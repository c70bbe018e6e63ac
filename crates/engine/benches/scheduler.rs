//! What the scheduler can do: how fast it places tasks in memory, what a million tasks cost, and how well GPUs are packed.
//!
//! `./x bench scheduler [PART…]`; parts are `place`, `service`, `memory` and `packing`, all without any. Packing replays the trace of a real
//! cluster, whose folder `--data FOLDER` or `WHARF_OPENB` names; without it that part is left out, and said. `--nodes N` places on clusters
//! of that size only, and may be given more than once. What a commit to a store adds is measured by the bench of the same name in
//! `crates/server`.
//!
//! Goals are printed last, one in a line: `goal NAME VALUE TARGET met|short`.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends where it cannot go on")]
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "figures for people")]

#[path = "scheduler/cluster.rs"]
mod cluster;
#[path = "scheduler/memory.rs"]
mod memory;
#[path = "scheduler/packing.rs"]
mod packing;
#[path = "scheduler/placing.rs"]
mod placing;
#[path = "scheduler/trace.rs"]
mod trace;

use std::path::PathBuf;

/// What is to be reached, and what was.
pub(crate) struct Goal {
    name: String,
    value: f64,
    target: f64,
    /// Whether it is reached by at least the target, or by at most.
    at_least: bool,
}
impl Goal {
    pub(crate) fn at_least(name: impl Into<String>, value: f64, target: f64) -> Self {
        Self { name: name.into(), value, target, at_least: true }
    }
    pub(crate) fn at_most(name: impl Into<String>, value: f64, target: f64) -> Self {
        Self { name: name.into(), value, target, at_least: false }
    }
    fn print(&self) {
        let met = if self.at_least { self.value >= self.target } else { self.value <= self.target };
        let verdict = if met { "met" } else { "short" };
        println!("goal {} {} {} {verdict}", self.name, figure(self.value), figure(self.target));
    }
}

/// A number as it is read best: whole from a hundred on.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut parts, mut data) = (Vec::new(), std::env::var_os("WHARF_OPENB").map(PathBuf::from));
    let (mut seeds, mut sizes) = (3, Vec::<usize>::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            memory::HOLD => return memory::hold(),
            "--data" => data = arguments.next().map(PathBuf::from),
            "--seeds" => seeds = arguments.next().and_then(|seeds| seeds.parse().ok()).unwrap_or(seeds),
            "--nodes" => sizes.extend(arguments.next().and_then(|nodes| nodes.parse::<usize>().ok())),
            // What cargo itself appends begins with a dash.
            other if other.starts_with('-') => {}
            other => parts.push(other.to_owned()),
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|other| other == part);
    let mut goals = Vec::new();
    if wanted("place") {
        goals.extend(placing::speed(&sizes));
    }
    if wanted("service") {
        goals.extend(placing::one_service());
    }
    if wanted("memory") {
        goals.extend(memory::measure());
    }
    if wanted("packing") {
        match data {
            Some(folder) if folder.is_dir() => goals.extend(packing::compare(&folder, seeds)),
            _ => println!(
                "packing: left out, there is no trace: `--data FOLDER` or WHARF_OPENB names the folder with \
                 openb_node_list_*.csv and openb_pod_list_*.csv (crates/engine/benches/scheduler/SOURCES.md)"
            ),
        }
    }
    goals.iter().for_each(Goal::print);
}
