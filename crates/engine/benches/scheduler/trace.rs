//! The trace of a real cluster, and arrivals drawn from it as the paper draws them (SOURCES.md beside this).

use std::{collections::BTreeMap, fs, path::Path};

/// A node, whole.
#[derive(Debug, Clone)]
pub(crate) struct TraceNode {
    /// In thousandths of a processor.
    pub(crate) cpus: u32,
    /// In MiB.
    pub(crate) memory: u32,
    pub(crate) gpus: usize,
    /// By number; one that no pod asks for has one, too.
    pub(crate) model: u8,
}

/// What a pod asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pod {
    pub(crate) cpus: u32,
    pub(crate) memory: u32,
    pub(crate) gpus: u8,
    /// Thousandths of each of them; below 1000 only of one.
    pub(crate) share: u16,
    /// Models that will do, as bits.
    pub(crate) models: u64,
}
impl Pod {
    /// In thousandths of a GPU.
    pub(crate) fn demand(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.share)
    }
}

pub(crate) struct Trace {
    /// The nodes with GPUs.
    pub(crate) with_gpus: Vec<TraceNode>,
    /// All.
    pub(crate) all: Vec<TraceNode>,
    /// By the name of the mix.
    pub(crate) mixes: BTreeMap<String, Vec<Pod>>,
}

impl Trace {
    /// Reads the folder of the trace. The mixes are the 20 that are made from the default one by other proportions.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut models = Vec::new();
        let with_gpus = nodes(&folder.join("openb_node_list_gpu_node.csv"), &mut models);
        let all = nodes(&folder.join("openb_node_list_all_node.csv"), &mut models);
        let mut mixes = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mix = name.strip_prefix("openb_pod_list_").and_then(|rest| rest.strip_suffix(".csv"));
            if let Some(mix) = mix {
                mixes.insert(mix.to_owned(), pods(&entry.path(), &models));
            }
        }
        Self { with_gpus, all, mixes }
    }
}

fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut lines = text.lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split(',').map(str::to_owned).collect();
    lines.map(|line| header.iter().cloned().zip(line.split(',').map(str::to_owned)).collect()).collect()
}

fn number<T: std::str::FromStr>(row: &BTreeMap<String, String>, field: &str) -> T {
    let text = row.get(field).map(String::as_str).unwrap_or_default();
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number, in {field} of {row:?}"))
}

fn nodes(path: &Path, models: &mut Vec<String>) -> Vec<TraceNode> {
    let node = |row: &BTreeMap<String, String>| {
        let model = &row["model"];
        let known = models.iter().position(|known| known == model);
        let model = known.unwrap_or_else(|| {
            models.push(model.clone());
            models.len() - 1
        });
        TraceNode {
            cpus: number(row, "cpu_milli"),
            memory: number(row, "memory_mib"),
            gpus: number(row, "gpu"),
            model: model as u8,
        }
    };
    rows(path).iter().map(node).collect()
}

fn pods(path: &Path, models: &[String]) -> Vec<Pod> {
    let bits = |text: &str| {
        let wanted = text.split('|').filter_map(|name| models.iter().position(|model| model == name));
        wanted.fold(0, |bits, model| bits | 1 << model)
    };
    let pod = |row: &BTreeMap<String, String>| {
        let gpus = number(row, "num_gpu");
        let spec = row.get("gpu_spec").map(String::as_str).unwrap_or_default();
        Pod {
            cpus: number(row, "cpu_milli"),
            memory: number(row, "memory_mib"),
            gpus,
            share: if gpus == 0 { 0 } else { number(row, "gpu_milli") },
            models: if spec.is_empty() { u64::MAX } else { bits(spec) },
        }
    };
    rows(path).iter().map(pod).collect()
}

/// Numbers by a seed (SplitMix64).
pub(crate) struct Lot(pub(crate) u64);
impl Lot {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The pods of a mix in the order in which they arrive: drawn until they ask for 1.3 times the GPUs there are, or thinned out to that.
pub(crate) fn arrivals(mix: &[Pod], capacity: u64, lot: &mut Lot) -> Vec<Pod> {
    let wanted = capacity * 13 / 10;
    let mut pods = mix.to_vec();
    let mut asked: u64 = pods.iter().map(Pod::demand).sum();
    while asked > wanted {
        let drawn = lot.below(pods.len());
        asked -= pods.swap_remove(drawn).demand();
    }
    while asked < wanted {
        let drawn = mix[lot.below(mix.len())];
        asked += drawn.demand();
        pods.push(drawn);
    }
    for last in (1..pods.len()).rev() {
        let other = lot.below(last + 1);
        pods.swap(last, other);
    }
    pods
}
