//! Where a task takes least of what GPUs are still good for.
//!
//! - Everything is measured in thousandths of a GPU that can still be used. What a node is good for is an estimate from above: the most that
//!   the tasks of the cluster's mix could use of what it has left, if they came in the right numbers.
//! - What a use of a GPU is worth is its size, less a rent for tasks that are rarer than the places for them: a remainder that only rare tasks
//!   fit is worth little however well they would fit. Rents, and a price of processor time that tasks without GPUs need as well, are found once
//!   for a mix and a cluster by trying: fill every node in the best way, see of which tasks there would have to be more, raise their rent.
//! - Within a node processors are shared by its GPUs. The estimate takes the least favourable price of processor time (the dual of the
//!   fractional filling), and only tasks that still fit what is left of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use wharf_model::{Mode, NodeDevices, Resources};

use super::devices::{self, Held, Need};
use crate::World;

/// What one task asks for, as packing looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Processor time, in thousandths of a core.
    pub cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// How many GPUs.
    pub count: u32,
    /// How much of each, in thousandths; less than 1000 only of one.
    pub share: u32,
    /// The models that will do, as bits.
    pub models: u64,
}
impl Shape {
    fn size(&self) -> f64 {
        f64::from(self.count) * f64::from(self.share)
    }
}

/// What a node has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Processor time, in thousandths of a core.
    pub cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// Of each GPU, in thousandths.
    pub gpus: Vec<u32>,
    /// Its model, as a bit.
    pub models: u64,
}
impl Room {
    /// What is left after a task of this shape on this GPU, or on the first whole ones.
    fn after(&self, shape: &Shape, gpu: usize) -> Self {
        let mut rest = self.clone();
        rest.cpus = rest.cpus.saturating_sub(shape.cpus);
        rest.memory = rest.memory.saturating_sub(shape.memory);
        if shape.count == 1 && shape.share < WHOLE {
            rest.gpus[gpu] = rest.gpus[gpu].saturating_sub(shape.share);
        } else {
            let whole = rest.gpus.iter_mut().filter(|left| **left >= shape.share);
            whole.take(shape.count as usize).for_each(|left| *left -= shape.share);
        }
        rest
    }
}

const WHOLE: u32 = 1000;
/// Remainders are looked at in steps of a hundredth of a GPU.
const STEP: u32 = 10;
const STEPS: usize = (WHOLE / STEP) as usize + 1;
/// Prices of processor time that are tried, in parts of what it would cost if GPUs and processors were used up together.
const PRICES: [f64; 16] =
    [0.0, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.28, 0.42, 0.56, 0.84, 1.1, 1.7, 2.2, 3.3, 5.5];
/// How often rents are tried.
const TRIES: u32 = 120;
/// As many bounds on what processor time is left are told apart.
const BOUNDS: usize = 48;
/// More GPUs of a node than this are looked at as several lots.
const MOST_GPUS: usize = 16;
/// Costs that differ by less are as good as equal, in thousandths of a GPU. Whoever takes the first of equal nodes then fills one after
/// another, which leaves whole nodes for tasks that want many GPUs; on the trace that counts for more than the last thousandth.
const ALIKE: f64 = 150.0;
/// As many sorts of tasks are looked at, the most frequent ones.
const SORTS: usize = 400;

/// What is worth what, for one mix of tasks on one cluster.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// The mix: sorts of tasks and the part of each.
    sorts: Vec<(Shape, f64)>,
    /// Prices of a core in thousandths of a GPU; what tasks without GPUs would pay is the least.
    prices: Vec<f64>,
    /// The price below which none is considered.
    floor: f64,
    /// Bits of models that some sort asks for, and the sets of these that nodes have.
    asked: u64,
    classes: Vec<u64>,
    /// Bounds on processor time: a table for each holds for nodes that have at least so much left.
    bounds: Vec<u64>,
    tables: Vec<Table>,
    /// What the bits of models mean, where the mix is that of a cluster's services.
    names: Vec<String>,
}

/// What GPUs are worth at one price of processor time, to tasks that need no more of it than a bound, on nodes of a class.
#[derive(Debug, Clone)]
struct Table {
    /// A GPU by what is left of it, in [`STEP`]s.
    part: Vec<f64>,
    /// So many whole ones of one node.
    whole: Vec<f64>,
    /// The sort that is put into a GPU with so much left; none if the last step stays unused.
    put: Vec<Option<usize>>,
    /// The sort that takes so many whole ones at once; 0 if they are taken singly.
    put_whole: Vec<Option<usize>>,
}

impl Outlook {
    /// What follows from a mix, in any parts, and the nodes as they are without tasks.
    pub fn new(mix: impl IntoIterator<Item = (Shape, f64)>, nodes: impl IntoIterator<Item = Room>) -> Self {
        let mut parts = BTreeMap::<Shape, f64>::new();
        for (shape, part) in mix.into_iter().filter(|(_, part)| *part > 0.0) {
            // What differs in memory only competes for the same.
            *parts.entry(Shape { memory: 0, ..shape }).or_default() += part;
        }
        let mut sorts: Vec<_> = parts.into_iter().collect();
        sorts.sort_by(|(one, of_one), (other, of_other)| of_other.total_cmp(of_one).then(one.cmp(other)));
        sorts.truncate(SORTS);
        let all: f64 = sorts.iter().map(|(_, part)| part).sum();
        sorts.iter_mut().for_each(|(_, part)| *part /= all);
        let restricted = sorts.iter().filter(|(sort, _)| sort.count > 0 && sort.models != u64::MAX);
        let asked = restricted.fold(0, |bits, (sort, _)| bits | sort.models);
        let mut kinds = BTreeMap::<(u64, usize, u64), f64>::new();
        for node in nodes {
            *kinds.entry((node.models & asked, node.gpus.len().min(MOST_GPUS), node.cpus)).or_default() +=
                1.0;
        }
        let mut classes: Vec<_> = kinds.keys().map(|(class, ..)| *class).collect();
        classes.dedup();
        let mut outlook = Self { sorts, asked, classes, ..Self::default() };
        let gpus: f64 = kinds.iter().map(|((_, gpus, _), nodes)| *gpus as f64 * nodes).sum();
        let cores: f64 = kinds.iter().map(|((.., cpus), nodes)| cores(*cpus) * nodes).sum();
        let demand: f64 = outlook.sorts.iter().map(|(sort, part)| sort.size() * part).sum();
        if gpus == 0.0 || cores == 0.0 || demand == 0.0 {
            return outlook;
        }
        let together = f64::from(WHOLE) * gpus / cores;
        outlook.prices = PRICES.iter().map(|price| price * together).collect();
        // As many tasks as would ask for every GPU of the cluster.
        let wanted: Vec<f64> =
            outlook.sorts.iter().map(|(_, part)| part * f64::from(WHOLE) * gpus / demand).collect();
        let rents = outlook.rents(&kinds, &wanted);
        outlook.bounds = bounds(&outlook.sorts);
        outlook.tables = outlook.all_tables(&rents);
        outlook
    }

    /// What it costs to put a task here, in steps of costs that are as good as equal, and on which GPU if it takes a part of one; `None` if it
    /// does not fit. Of nodes with the same cost, the first is to be taken.
    pub fn cost(&self, room: &Room, shape: &Shape) -> Option<(f64, usize)> {
        if room.cpus < shape.cpus || room.memory < shape.memory {
            return None;
        }
        let now = self.value(room);
        let mut best: Option<(f64, f64, usize)> = None;
        let mut seen = Vec::new();
        for gpu in self.candidates(room, shape)? {
            let left = room.gpus.get(gpu).copied().unwrap_or(0);
            if seen.contains(&left) {
                continue;
            }
            seen.push(left);
            let rest = room.after(shape, gpu);
            let (cost, tie) = (now - self.value(&rest), self.tie(&rest));
            if best.is_none_or(|(least, tied, _)| cost + tie < least + tied) {
                best = Some((cost, tie, gpu));
            }
        }
        best.map(|(cost, _, gpu)| ((cost / ALIKE).floor(), gpu))
    }

    /// The GPUs of which a part would do, or one number for all if whole ones or none are wanted; `None` if there are too few.
    fn candidates(&self, room: &Room, shape: &Shape) -> Option<Vec<usize>> {
        if shape.count == 0 {
            return Some(vec![0]);
        }
        let enough: Vec<_> = (0..room.gpus.len()).filter(|gpu| room.gpus[*gpu] >= shape.share).collect();
        if enough.len() < shape.count as usize {
            return None;
        }
        let shared = shape.count == 1 && shape.share < WHOLE;
        Some(if shared { enough } else { vec![enough[0]] })
    }

    /// Of nodes on which it costs the same, the fuller one.
    fn tie(&self, rest: &Room) -> f64 {
        let gpus: u32 = rest.gpus.iter().sum();
        f64::from(gpus) * 1e-4 + cores(rest.cpus) * 1e-4
    }

    /// What the mix could still use of a node's GPUs, and of its processors at what these are worth to tasks without GPUs.
    fn value(&self, room: &Room) -> f64 {
        let cores = cores(room.cpus);
        let class = self.classes.iter().position(|class| *class == room.models & self.asked);
        let bound = self.bounds.iter().rposition(|bound| *bound <= room.cpus);
        let (Some(class), Some(bound)) = (class, bound) else { return self.floor * cores };
        if room.gpus.is_empty() {
            return self.floor * cores;
        }
        let mut least = f64::MAX;
        for (index, price) in self.prices.iter().enumerate().filter(|(_, price)| **price >= self.floor) {
            let table = &self.tables[(class * self.bounds.len() + bound) * self.prices.len() + index];
            let value = price * cores + table.of(&room.gpus);
            if value > least {
                // Convex: it has passed the least.
                break;
            }
            least = value;
        }
        least
    }

    fn all_tables(&self, rents: &[f64]) -> Vec<Table> {
        let mut tables = Vec::new();
        for class in &self.classes {
            for bound in &self.bounds {
                tables.extend(self.prices.iter().map(|price| self.table(rents, *class, *bound, *price)));
            }
        }
        tables
    }

    fn table(&self, rents: &[f64], class: u64, bound: u64, price: f64) -> Table {
        let mut parts = [(0.0, 0); STEPS];
        let mut groups = [(0.0, 0); MOST_GPUS + 1];
        for (index, (sort, _)) in self.sorts.iter().enumerate() {
            let fits =
                sort.count > 0 && sort.cpus <= bound && (sort.models == u64::MAX || sort.models & class != 0);
            let worth = sort.size() - rents[index] - price * cores(sort.cpus);
            if !fits || worth <= 0.0 {
                continue;
            }
            let best = if sort.count == 1 {
                &mut parts[sort.share.div_ceil(STEP).min(WHOLE / STEP) as usize]
            } else {
                &mut groups[(sort.count as usize).min(MOST_GPUS)]
            };
            if worth > best.0 {
                *best = (worth, index);
            }
        }
        let items: Vec<_> =
            (1..STEPS).filter(|steps| parts[*steps].0 > 0.0).map(|steps| (steps, parts[steps])).collect();
        let (mut part, mut put) = (vec![0.0; STEPS], vec![None; STEPS]);
        for left in 1..STEPS {
            part[left] = part[left - 1];
            for (steps, (worth, sort)) in items.iter().take_while(|(steps, _)| *steps <= left) {
                if part[left - steps] + worth > part[left] {
                    (part[left], put[left]) = (part[left - steps] + worth, Some(*sort));
                }
            }
        }
        let (mut whole, mut put_whole) = (vec![0.0; MOST_GPUS + 1], vec![None; MOST_GPUS + 1]);
        for count in 1..=MOST_GPUS {
            whole[count] = whole[count - 1] + part[STEPS - 1];
            for group in 2..=count {
                let (worth, sort) = groups[group];
                if worth > 0.0 && whole[count - group] + worth > whole[count] {
                    (whole[count], put_whole[count]) = (whole[count - group] + worth, Some(sort));
                }
            }
        }
        Table { part, whole, put, put_whole }
    }

    /// The rent of each sort, and the floor of the price of processor time, by trying.
    fn rents(&mut self, nodes: &BTreeMap<(u64, usize, u64), f64>, wanted: &[f64]) -> Vec<f64> {
        let sizes: Vec<f64> = self.sorts.iter().map(|(sort, _)| sort.size()).collect();
        let without: f64 = self
            .sorts
            .iter()
            .zip(wanted)
            .filter(|((sort, _), _)| sort.count == 0)
            .map(|((sort, _), wanted)| cores(sort.cpus) * wanted)
            .sum();
        let together = self.prices.get(11).copied().unwrap_or(0.0);
        let (mut rents, mut floor) = (vec![0.0; sizes.len()], 0.0_f64);
        let (mut sums, mut floors, mut counted) = (vec![0.0; sizes.len()], 0.0, 0.0);
        for attempt in 0..TRIES {
            let (used, spare) = self.fill(nodes, &rents, floor);
            let pace = 1.0 / (1.0 + f64::from(attempt) / 5.0);
            for (index, rent) in rents.iter_mut().enumerate().filter(|(index, _)| sizes[*index] > 0.0) {
                let gap = ((used[index] - wanted[index]) / (wanted[index] + 3.0)).clamp(-1.0, 1.0);
                *rent = (*rent + 0.3 * pace * sizes[index] * gap).clamp(0.0, sizes[index]);
            }
            let gap = ((without - spare) / without.max(1.0)).clamp(-1.0, 1.0);
            floor = (floor + 0.15 * together * pace * gap).max(0.0);
            if attempt >= TRIES / 2 {
                sums.iter_mut().zip(&rents).for_each(|(sum, rent)| *sum += rent);
                (floors, counted) = (floors + floor, counted + 1.0);
            }
        }
        self.floor = floors / counted;
        sums.into_iter().map(|sum| sum / counted).collect()
    }

    /// Fills every node in the best way: how many tasks of each sort that takes, and the cores that stay.
    fn fill(&self, nodes: &BTreeMap<(u64, usize, u64), f64>, rents: &[f64], floor: f64) -> (Vec<f64>, f64) {
        let (mut used, mut spare) = (vec![0.0; self.sorts.len()], 0.0);
        let from = self.prices.iter().position(|price| *price >= floor).unwrap_or(self.prices.len() - 1);
        let mut known = BTreeMap::<(u64, usize), Table>::new();
        for ((class, gpus, cpus), nodes) in nodes {
            let has = cores(*cpus);
            if *gpus == 0 {
                spare += has * nodes;
                continue;
            }
            let mut before: Option<Filling> = None;
            for price in from..self.prices.len() {
                let table = known
                    .entry((*class, price))
                    .or_insert_with(|| self.table(rents, *class, u64::MAX, self.prices[price]));
                let filling = table.fill(*gpus, &self.sorts);
                if filling.cores > has && price + 1 < self.prices.len() {
                    before = Some(filling);
                    continue;
                }
                // Between two prices, as much of both as uses all there is.
                let part = match &before {
                    Some(before) if filling.cores < has => {
                        (has - filling.cores) / (before.cores - filling.cores)
                    }
                    Some(_) | None => 0.0,
                };
                let mut taken = filling.cores * (1.0 - part);
                filling.tasks.iter().for_each(|sort| used[*sort] += nodes * (1.0 - part));
                if let Some(before) = before {
                    taken += before.cores * part;
                    before.tasks.iter().for_each(|sort| used[*sort] += nodes * part);
                }
                spare += (has - taken).max(0.0) * nodes;
                break;
            }
        }
        (used, spare)
    }
}

/// What a cluster's services say of its mix, until one of them or a node's devices change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(OnceLock<Arc<Outlook>>);
impl Kept {
    pub(crate) fn of(&self, world: &World) -> Arc<Outlook> {
        Arc::clone(self.0.get_or_init(|| Arc::new(Outlook::of(world))))
    }
    pub(crate) fn forget(&mut self) {
        self.0.take();
    }
}

impl Outlook {
    /// The mix is what the services of a cluster want, each as often as it has replicas.
    fn of(world: &World) -> Self {
        let wanted = world.services().filter(|record| !record.removed && !record.stopped);
        let nodes = u32::try_from(world.nodes().count()).unwrap_or(u32::MAX);
        let services: Vec<_> = wanted
            .filter_map(|record| {
                let revision = world.revision_of(&record.key, record.generation)?;
                let tasks = match record.mode {
                    Mode::Replicated { replicas } => replicas,
                    Mode::Global => nodes,
                };
                Some((revision, Need::of(&revision.spec.resources), f64::from(tasks)))
            })
            .collect();
        let mut names = Vec::<String>::new();
        for name in services.iter().flat_map(|(_, need, _)| need.gpus().2) {
            if names.len() < 63 && !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.clone());
            }
        }
        let named = Self { names, ..Self::default() };
        let mix = services
            .iter()
            .map(|(revision, need, tasks)| (named.shape(need, &revision.spec.resources), *tasks));
        let rooms = world.nodes().filter_map(|node| {
            let facts = node.facts()?;
            Some(named.room(&facts.devices, &Held::default(), facts.cpus.0, facts.memory.0))
        });
        Self { names: named.names.clone(), ..Self::new(mix, rooms) }
    }

    /// What a task with these reservations asks for.
    pub(crate) fn shape(&self, need: &Need, resources: &Resources) -> Shape {
        let (count, share, models) = need.gpus();
        let reserved = &resources.reservations;
        let bit = |wanted: &String| self.names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
        let bits = models.iter().filter_map(bit).fold(0, |bits, index| bits | 1 << index);
        Shape {
            cpus: reserved.cpus.unwrap_or_default().0,
            memory: reserved.memory.unwrap_or_default().0,
            count,
            share,
            models: if models.is_empty() { u64::MAX } else { bits },
        }
    }

    /// What a node has left of its GPUs, and of the rest.
    pub(crate) fn room(&self, inventory: &[NodeDevices], held: &Held, cpus: u64, memory: u64) -> Room {
        let devices = inventory.iter().filter(|pool| pool.kind.is_gpu()).flat_map(|pool| &pool.named);
        let of = |model: &str| {
            let meant = self.names.iter().enumerate().filter(|(_, name)| devices::same_model(name, model));
            meant.fold(0, |bits, (index, _)| bits | 1 << index)
        };
        let models =
            devices.filter_map(|device| device.model.as_deref()).fold(0, |bits, model| bits | of(model));
        Room { cpus, memory, gpus: devices::gpus_left(inventory, held), models }
    }
}

/// On which GPU of a node a task gets its share.
#[derive(Debug)]
pub struct Choice<'a> {
    pub(crate) outlook: &'a Outlook,
    pub(crate) room: &'a Room,
    pub(crate) shape: &'a Shape,
}
impl Choice<'_> {
    /// The best of the GPUs that have so much left.
    pub(crate) fn device(&self, frees: &[u32], share: u32) -> usize {
        let shape = Shape { count: 1, share, ..*self.shape };
        let cost = |free: u32| {
            let gpu = self.room.gpus.iter().position(|left| *left == free)?;
            let rest = self.room.after(&shape, gpu);
            Some(self.outlook.tie(&rest) - self.outlook.value(&rest))
        };
        let enough = frees.iter().enumerate().filter(|(_, free)| **free >= share);
        let known = enough.filter_map(|(index, free)| Some((cost(*free)?, index)));
        let best = known.min_by(|(one, _), (other, _)| one.total_cmp(other));
        best.map_or_else(|| devices::tightest(frees, share), |(_, index)| index)
    }
}

/// What fills a node.
struct Filling {
    cores: f64,
    tasks: Vec<usize>,
}

impl Table {
    fn of(&self, gpus: &[u32]) -> f64 {
        let (mut value, mut whole) = (0.0, 0);
        for left in gpus {
            if *left >= WHOLE {
                whole += 1;
            } else {
                value += self.part[(left / STEP) as usize];
            }
        }
        while whole > MOST_GPUS {
            value += self.whole[MOST_GPUS];
            whole -= MOST_GPUS;
        }
        value + self.whole[whole]
    }
    fn fill(&self, gpus: usize, sorts: &[(Shape, f64)]) -> Filling {
        let mut filling = Filling { cores: 0.0, tasks: Vec::new() };
        let mut take = |sort: usize| {
            filling.cores += cores(sorts[sort].0.cpus);
            filling.tasks.push(sort);
        };
        let mut left = gpus;
        while left > 0 {
            if let Some(sort) = self.put_whole[left] {
                take(sort);
                left -= (sorts[sort].0.count as usize).min(MOST_GPUS);
                continue;
            }
            let mut steps = STEPS - 1;
            while steps > 0 {
                match self.put[steps] {
                    Some(sort) => {
                        take(sort);
                        steps -= (sorts[sort].0.share.div_ceil(STEP) as usize).min(steps);
                    }
                    None => steps -= 1,
                }
            }
            left -= 1;
        }
        filling
    }
}

/// Bounds on processor time at which another sort fits, the fewer the more sorts there are.
fn bounds(sorts: &[(Shape, f64)]) -> Vec<u64> {
    let mut all: Vec<_> =
        sorts.iter().filter(|(sort, _)| sort.count > 0).map(|(sort, _)| sort.cpus).collect();
    all.sort_unstable();
    all.dedup();
    if all.len() > BOUNDS {
        all = (0..BOUNDS).map(|index| all[index * (all.len() - 1) / (BOUNDS - 1)]).collect();
        all.dedup();
    }
    all
}

#[expect(clippy::cast_precision_loss, reason = "nobody has so many cores")]
fn cores(cpus: u64) -> f64 {
    cpus as f64 / 1000.0
}
