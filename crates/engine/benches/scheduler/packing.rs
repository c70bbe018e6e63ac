//! How much of a cluster's GPUs stays unallocated, by policy: the mixes of the trace arrive one by one at an empty cluster (SOURCES.md).
//!
//! The peers are implemented here as they are published: a node by lot; spreading; best fit (the least left over, processors and GPUs alike);
//! and fragmentation gradient descent, where a node's fragmentation is what of its free GPUs a pod of the mix cannot use, in the mean, and
//! the node is taken where it grows least. Ours is what the product does. Everybody is given the mix, as FGD is; nobody sees what comes.

use std::{collections::BTreeMap, path::Path, time::Instant};

use wharf_engine::packing::{Outlook, Room, Shape};

use super::{
    Goal, figure,
    trace::{Lot, Pod, Trace, TraceNode, arrivals},
};

/// The mixes that the goal is about.
const MIXES: [&str; 20] = [
    "cpu0",
    "cpu050",
    "cpu100",
    "cpu200",
    "cpu250",
    "cpu300",
    "default",
    "gpushare20",
    "gpushare40",
    "gpushare60",
    "gpushare80",
    "gpushare100",
    "gpuspec10",
    "gpuspec20",
    "gpuspec25",
    "gpuspec33",
    "multigpu20",
    "multigpu30",
    "multigpu40",
    "multigpu50",
];
const MOST_GPUS: usize = 8;
type Gpus = [u16; MOST_GPUS];

/// What a node has left.
#[derive(Debug, Clone)]
struct State {
    cpus: u32,
    memory: u32,
    gpus: Gpus,
    count: usize,
    model: u8,
    all_cpus: u32,
}
impl State {
    fn new(node: &TraceNode) -> Self {
        let mut gpus = [0; MOST_GPUS];
        gpus[..node.gpus].fill(1000);
        let (cpus, memory) = (node.cpus, node.memory);
        Self { cpus, memory, gpus, count: node.gpus, model: node.model, all_cpus: cpus }
    }
    fn fits(&self, pod: &Pod) -> bool {
        if self.cpus < pod.cpus || self.memory < pod.memory {
            return false;
        }
        pod.gpus == 0
            || (pod.models & 1 << self.model != 0
                && self.gpus[..self.count].iter().filter(|left| **left >= pod.share).count()
                    >= usize::from(pod.gpus))
    }
    /// Its GPUs after the pod: as many outcomes as there are GPUs of which as much is left.
    fn outcomes(&self, pod: &Pod) -> Vec<Gpus> {
        if pod.gpus == 0 {
            return vec![self.gpus];
        }
        if pod.share == 1000 || pod.gpus > 1 {
            let mut gpus = self.gpus;
            let whole = gpus[..self.count].iter_mut().filter(|left| **left >= pod.share);
            whole.take(pod.gpus.into()).for_each(|left| *left -= pod.share);
            return vec![gpus];
        }
        let mut seen = Vec::new();
        let mut outcomes = Vec::new();
        for index in 0..self.count {
            let left = self.gpus[index];
            if left >= pod.share && !seen.contains(&left) {
                seen.push(left);
                let mut gpus = self.gpus;
                gpus[index] -= pod.share;
                outcomes.push(gpus);
            }
        }
        outcomes
    }
    fn left(&self) -> f64 {
        sum(&self.gpus)
    }
}

fn sum(gpus: &Gpus) -> f64 {
    gpus.iter().map(|left| f64::from(*left)).sum()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Random,
    Spread,
    BestFit,
    Fgd,
    Ours,
}
const POLICIES: [Policy; 5] = [Policy::Random, Policy::Spread, Policy::BestFit, Policy::Fgd, Policy::Ours];
impl Policy {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Spread => "spread",
            Self::BestFit => "best fit",
            Self::Fgd => "FGD",
            Self::Ours => "ours",
        }
    }
}

/// A sort of pod, and how often it is among them: what FGD calls a typical pod.
struct Typical {
    pod: Pod,
    part: f64,
}

/// The sorts of pods that make up 95 per cent of a mix, as FGD is given them.
fn typical(pods: &[Pod]) -> Vec<Typical> {
    let mut counts = BTreeMap::<Pod, usize>::new();
    for pod in pods {
        *counts.entry(Pod { memory: 0, ..*pod }).or_default() += 1;
    }
    let mut sorts: Vec<_> = counts.into_iter().collect();
    sorts.sort_by_key(|(pod, count)| (std::cmp::Reverse(*count), *pod));
    let (mut kept, mut seen) = (Vec::new(), 0);
    for (pod, count) in sorts {
        if seen * 100 >= pods.len() * 95 {
            break;
        }
        seen += count;
        kept.push(Typical { pod, part: count as f64 });
    }
    kept.iter_mut().for_each(|sort| sort.part /= seen as f64);
    kept
}

/// What of a node's free GPUs a pod of the mix cannot use, in the mean.
fn fragmentation(cpus: u32, gpus: &Gpus, state: &State, mix: &[Typical]) -> f64 {
    let all = sum(gpus);
    let unusable = |Typical { pod, part }: &Typical| {
        if pod.gpus == 0 || pod.models & 1 << state.model == 0 || cpus < pod.cpus {
            return part * all;
        }
        let free = &gpus[..state.count];
        if free.iter().filter(|left| **left >= pod.share).count() < usize::from(pod.gpus) {
            return part * all;
        }
        let too_little = free.iter().filter(|left| **left < pod.share);
        part * too_little.map(|left| f64::from(*left)).sum::<f64>()
    };
    mix.iter().map(unusable).sum()
}

/// One policy at work.
struct Packer<'a> {
    policy: Policy,
    mix: &'a [Typical],
    outlook: &'a Outlook,
}
impl Packer<'_> {
    /// What it costs to put the pod here (less is better), and what is left of the GPUs then.
    fn cost(&self, state: &State, pod: &Pod, lot: &mut Lot) -> (f64, Gpus) {
        let mut outcomes = state.outcomes(pod);
        let least = |outcomes: Vec<Gpus>, cost: &dyn Fn(&Gpus) -> f64| {
            let all = outcomes.into_iter().map(|gpus| (cost(&gpus), gpus));
            all.min_by(|one, other| one.0.total_cmp(&other.0)).unwrap()
        };
        // The GPU that the pod got, before.
        let taken = |gpus: &Gpus| (0..state.count).find(|index| gpus[*index] != state.gpus[*index]);
        let before = |gpus: &Gpus| taken(gpus).map_or(0.0, |index| f64::from(state.gpus[index]));
        match self.policy {
            Policy::Random => {
                let chosen = lot.below(outcomes.len());
                (lot.next() as f64, outcomes.swap_remove(chosen))
            }
            Policy::Spread => {
                let (_, gpus) = least(outcomes, &|gpus| -before(gpus));
                let part = if state.count == 0 { 0.0 } else { state.left() / (state.count as f64 * 1000.0) };
                (-(f64::from(state.cpus) / f64::from(state.all_cpus) + part), gpus)
            }
            Policy::BestFit => {
                let (_, gpus) = least(outcomes, &before);
                (f64::from(state.cpus - pod.cpus) / 128_000.0 + sum(&gpus) / 8000.0, gpus)
            }
            Policy::Fgd => {
                let now = fragmentation(state.cpus, &state.gpus, state, self.mix);
                // As published: a score of 0 to 100, and of equal ones the first. That does better than exact costs.
                least(outcomes, &|gpus| {
                    let grows = fragmentation(state.cpus - pod.cpus, gpus, state, self.mix) - now;
                    -(100.0 / (1.0 + (grows / 1000.0).exp())).floor()
                })
            }
            Policy::Ours => {
                let room = room(state);
                let (cost, chosen) = self.outlook.cost(&room, &shape(pod)).expect("it fits");
                let mut gpus = state.gpus;
                if pod.gpus == 1 && pod.share < 1000 {
                    gpus[chosen] -= pod.share;
                } else {
                    gpus = outcomes.swap_remove(0);
                }
                (cost, gpus)
            }
        }
    }
}

fn room(state: &State) -> Room {
    Room {
        cpus: state.cpus.into(),
        memory: u64::from(state.memory) << 20,
        gpus: state.gpus[..state.count].iter().map(|left| u32::from(*left)).collect(),
        models: 1 << state.model,
    }
}

fn shape(pod: &Pod) -> Shape {
    Shape {
        cpus: pod.cpus.into(),
        memory: u64::from(pod.memory) << 20,
        count: pod.gpus.into(),
        share: pod.share.into(),
        models: pod.models,
    }
}

/// Which part of the GPUs is unallocated when as many have been asked for as there are.
fn unallocated(policy: Policy, nodes: &[TraceNode], mix: &[Pod], seed: u64) -> f64 {
    let capacity = nodes.iter().map(|node| node.gpus as u64 * 1000).sum::<u64>();
    let mut lot = Lot(seed);
    let pods = arrivals(mix, capacity, &mut lot);
    let sorts = typical(&pods);
    let mut states: Vec<_> = nodes.iter().map(State::new).collect();
    let outlook = match policy {
        Policy::Ours => {
            Outlook::new(sorts.iter().map(|sort| (shape(&sort.pod), sort.part)), states.iter().map(room))
        }
        Policy::Random | Policy::Spread | Policy::BestFit | Policy::Fgd => {
            Outlook::new(std::iter::empty(), std::iter::empty())
        }
    };
    let packer = Packer { policy, mix: &sorts, outlook: &outlook };
    // What a sort of pod costs on a node changes only with the node.
    let mut versions = vec![1_u32; states.len()];
    let mut known = BTreeMap::<Pod, Vec<(u32, f64, Gpus)>>::new();
    let (mut asked, mut given) = (0, 0);
    for pod in &pods {
        if asked >= capacity {
            break;
        }
        asked += pod.demand();
        let known = known.entry(*pod).or_insert_with(|| vec![(0, 0.0, [0; MOST_GPUS]); states.len()]);
        let mut best: Option<(f64, usize, Gpus)> = None;
        for (index, state) in states.iter().enumerate().filter(|(_, state)| state.fits(pod)) {
            let cached = &mut known[index];
            if policy == Policy::Random || cached.0 != versions[index] {
                let (cost, gpus) = packer.cost(state, pod, &mut lot);
                *cached = (versions[index], cost, gpus);
            }
            if best.is_none_or(|(least, ..)| cached.1 < least) {
                best = Some((cached.1, index, cached.2));
            }
        }
        if let Some((_, index, gpus)) = best {
            let state = &mut states[index];
            (state.cpus, state.memory, state.gpus) = (state.cpus - pod.cpus, state.memory - pod.memory, gpus);
            versions[index] += 1;
            given += pod.demand();
        }
    }
    (capacity - given) as f64 / capacity as f64
}

/// Prints unallocated GPUs by mix and policy, over so many orders of arrival.
pub(crate) fn compare(folder: &Path, seeds: u64) -> Vec<Goal> {
    let trace = Trace::read(folder);
    let mut goals = Vec::new();
    for (name, nodes) in [("all", &trace.all), ("with_gpus", &trace.with_gpus)] {
        let gpus = nodes.iter().map(|node| node.gpus).sum::<usize>();
        println!(
            "packing: {} nodes ({name}), {gpus} GPUs; unallocated in per cent, mean of {seeds} orders of arrival",
            nodes.len()
        );
        let heads: Vec<_> = POLICIES.iter().map(|policy| format!("{:>9}", policy.as_str())).collect();
        println!("mix          {}  ours/FGD", heads.join(""));
        let (mut sums, mut ratios, mut times) = ([0.0; POLICIES.len()], Vec::new(), [0.0; POLICIES.len()]);
        for mix in MIXES {
            let Some(pods) = trace.mixes.get(mix) else {
                println!("{mix:12} is not in the folder");
                continue;
            };
            let mut row = [0.0; POLICIES.len()];
            for (index, policy) in POLICIES.into_iter().enumerate() {
                let started = Instant::now();
                let all = (0..seeds).map(|seed| unallocated(policy, nodes, pods, 42 + seed));
                row[index] = 100.0 * all.sum::<f64>() / seeds as f64;
                sums[index] += row[index];
                times[index] += started.elapsed().as_secs_f64();
            }
            let ratio = row[4] / row[3];
            ratios.push(ratio);
            let cells: Vec<_> = row.iter().map(|value| format!("{value:9.2}")).collect();
            println!("{mix:12} {}  {ratio:8.3}", cells.join(""));
        }
        let count = ratios.len().max(1) as f64;
        let means: Vec<_> = sums.iter().map(|sum| format!("{:9.2}", sum / count)).collect();
        let mean_ratio = ratios.iter().sum::<f64>() / count;
        println!(
            "mean         {}  {:8.3} (mean of the ratios {mean_ratio:.3})",
            means.join(""),
            sums[4] / sums[3]
        );
        let spent: Vec<_> = times.iter().map(|time| format!("{:8}s", figure(*time))).collect();
        println!("time         {}", spent.join(""));
        goals.push(Goal::at_most(format!("unallocated_gpus_x_fgd_{name}_nodes"), sums[4] / sums[3], 0.9));
        goals.push(Goal::at_most(
            format!("mean_ratio_of_unallocated_gpus_to_fgd_{name}_nodes"),
            mean_ratio,
            0.9,
        ));
    }
    goals
}
