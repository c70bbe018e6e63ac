//! Says which devices of a node a task can have, and gives them: GPUs, and whatever else nodes say they have.
//!
//! - A device that can be told apart is had whole by one task, or in shares that add up to no more than one.
//! - A service asks in three ways, which add up: Docker's device requests for GPUs, Swarm's generic resources, and `x-wharf: gpu`.
//!   Device requests without a GPU are between the service and the engine; nothing is counted.
//! - What is given is written into the task, and stays as it is whatever the node says later.

use std::{collections::BTreeMap, fmt};

use wharf_model::{
    Bytes, DeviceKind, DeviceRequest, NodeDevice, NodeDevices, Resources, TaskDevice, WHOLE, thousandths,
};

use super::packing;

/// What a task wants of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    asks: Vec<Ask>,
}

/// One wish.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    kind: DeviceKind,
    amount: Amount,
    /// One of these products; any if empty.
    models: Vec<String>,
    /// At least so much memory each.
    memory: Option<Bytes>,
    /// Only what the engine asks this driver for.
    driver: Option<String>,
}

/// How much of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Amount {
    /// So many, for itself.
    Whole(u64),
    /// Every one that the node has, for itself.
    All,
    /// These, by id or number, for itself.
    These(Vec<String>),
    /// So many thousandths of one.
    Share(u32),
}

impl Need {
    /// What a service's reservations want for each of its tasks.
    pub fn of(resources: &Resources) -> Self {
        let Resources { limits: _, reservations: _, devices, generic, gpu } = resources;
        let wish = gpu.clone().unwrap_or_default();
        let (models, memory) = (wish.models, wish.memory);
        let gpus =
            |amount, driver| Ask { kind: DeviceKind::gpu(), amount, models: models.clone(), memory, driver };
        let requested = devices.iter().filter(|request| is_for_gpus(request));
        let mut asks: Vec<_> =
            requested.map(|request| gpus(Amount::of(request), request.driver.clone())).collect();
        asks.extend(generic.iter().filter(|resource| resource.count > 0).map(|resource| {
            let is_gpu = resource.kind.is_gpu();
            Ask {
                kind: resource.kind.clone(),
                amount: Amount::Whole(resource.count),
                models: if is_gpu { models.clone() } else { Vec::new() },
                memory: memory.filter(|_| is_gpu),
                driver: None,
            }
        }));
        if gpu.is_some() {
            let others = asks.iter().any(|ask| ask.kind.is_gpu());
            match (wish.share.filter(|share| *share < WHOLE), wish.count) {
                (Some(share), _) => asks.push(gpus(Amount::Share(share), None)),
                (None, Some(count)) => asks.push(gpus(Amount::Whole(count.into()), None)),
                // It says which GPUs, and something else how many.
                (None, None) if others => {}
                (None, None) => asks.push(gpus(Amount::Whole(1), None)),
            }
        }
        // What can be met by few devices only comes first.
        asks.sort_by_key(|ask| match ask.amount {
            Amount::All => 0,
            Amount::These(_) => 1,
            Amount::Whole(_) => 2,
            Amount::Share(_) => 3,
        });
        Self { asks }
    }
    /// Whether nothing is wanted.
    pub const fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }
    /// Whether GPUs are among what is wanted.
    pub fn has_gpus(&self) -> bool {
        self.asks.iter().any(|ask| ask.kind.is_gpu())
    }
    /// What it wants of GPUs, as packing looks at it.
    pub fn gpus(&self) -> (u32, u32, &[String]) {
        let mut found = (0, 0, &[][..]);
        for ask in self.asks.iter().filter(|ask| ask.kind.is_gpu()) {
            let (count, share) = match &ask.amount {
                Amount::Whole(count) => (u32::try_from(*count).unwrap_or(u32::MAX), WHOLE),
                // At least one, and as many as there are.
                Amount::All => (1, WHOLE),
                Amount::These(ids) => (u32::try_from(ids.len()).unwrap_or(u32::MAX), WHOLE),
                Amount::Share(share) => (1, *share),
            };
            if count > found.0 {
                found = (count, share, &ask.models);
            }
        }
        found
    }
}

impl Amount {
    fn of(request: &DeviceRequest) -> Self {
        match request.count {
            _ if !request.device_ids.is_empty() => Self::These(request.device_ids.clone()),
            Some(count) => u64::try_from(count).map_or(Self::All, Self::Whole),
            None => Self::All,
        }
    }
}

/// Whether an engine's device request is for GPUs.
pub fn is_for_gpus(request: &DeviceRequest) -> bool {
    request.capabilities.iter().any(|capability| capability.eq_ignore_ascii_case("gpu"))
        || request.driver.as_deref() == Some("nvidia")
}

/// What the tasks of a node hold of its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    kinds: BTreeMap<DeviceKind, HeldOfKind>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct HeldOfKind {
    /// Thousandths, by id.
    named: BTreeMap<String, u32>,
    /// How many of those that are only counted.
    count: u64,
}

impl Held {
    /// A task has these.
    pub fn add(&mut self, devices: &[TaskDevice]) {
        for device in devices {
            let kind = self.kinds.entry(device.kind.clone()).or_default();
            match &device.id {
                Some(id) => *kind.named.entry(id.clone()).or_default() += thousands_of(device),
                None => kind.count += device.share / u64::from(WHOLE),
            }
        }
    }
    /// A task has them no more.
    pub fn release(&mut self, devices: &[TaskDevice]) {
        for device in devices {
            let Some(kind) = self.kinds.get_mut(&device.kind) else { continue };
            match &device.id {
                Some(id) => {
                    let left = kind.named.get(id).copied().unwrap_or(0).saturating_sub(thousands_of(device));
                    if left == 0 {
                        kind.named.remove(id);
                    } else {
                        kind.named.insert(id.clone(), left);
                    }
                }
                None => kind.count = kind.count.saturating_sub(device.share / u64::from(WHOLE)),
            }
            if kind.named.is_empty() && kind.count == 0 {
                self.kinds.remove(&device.kind);
            }
        }
    }
    /// What both hold together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (kind, held) in &other.kinds {
            let here = sum.kinds.entry(kind.clone()).or_default();
            here.count += held.count;
            for (id, share) in &held.named {
                *here.named.entry(id.clone()).or_default() += share;
            }
        }
        sum
    }
    /// What is held without what another holds of it.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        for (kind, held) in &other.kinds {
            let Some(here) = rest.kinds.get_mut(kind) else { continue };
            here.count = here.count.saturating_sub(held.count);
            for (id, share) in &held.named {
                if let Some(left) = here.named.get_mut(id) {
                    *left = left.saturating_sub(*share);
                }
            }
            here.named.retain(|_, share| *share > 0);
        }
        rest.kinds.retain(|_, held| held.count > 0 || !held.named.is_empty());
        rest
    }
    fn of(&self, kind: &DeviceKind, id: &str) -> u32 {
        self.kinds.get(kind).and_then(|kind| kind.named.get(id)).copied().unwrap_or(0)
    }
    fn counted(&self, kind: &DeviceKind) -> u64 {
        self.kinds.get(kind).map_or(0, |kind| kind.count)
    }
    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

fn thousands_of(device: &TaskDevice) -> u32 {
    u32::try_from(device.share).unwrap_or(WHOLE).min(WHOLE)
}

/// Why a node cannot give what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It has none of the kind.
    None {
        /// Which.
        kind: DeviceKind,
    },
    /// Those it has are no such products, or have too little memory, or another driver.
    Unsuitable {
        /// Which.
        kind: DeviceKind,
        /// What they would have to be, in words.
        wanted: String,
    },
    /// Too few are free.
    TooFew {
        /// Which.
        kind: DeviceKind,
        /// How many are wanted.
        need: u64,
        /// How many are free.
        free: u64,
    },
    /// None has as much of itself left.
    Share {
        /// Which.
        kind: DeviceKind,
        /// How many thousandths are wanted.
        need: u32,
        /// The most that one has left.
        free: u32,
    },
    /// One that is asked for by its id is not there, or not free.
    Taken {
        /// Which.
        kind: DeviceKind,
        /// Its id.
        id: String,
    },
}

impl Lack {
    /// What is lacked.
    pub const fn kind(&self) -> &DeviceKind {
        match self {
            Self::None { kind }
            | Self::Unsuitable { kind, .. }
            | Self::TooFew { kind, .. }
            | Self::Share { kind, .. }
            | Self::Taken { kind, .. } => kind,
        }
    }
    /// Whether other tasks have what is wanted, rather than that the node does not.
    pub const fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::None { .. } | Self::Unsuitable { .. } => false,
            Self::TooFew { .. } | Self::Share { .. } | Self::Taken { .. } => true,
        }
    }
    /// The smallest change after which the node of this name can give it.
    pub fn change(&self, node: &str) -> String {
        match self {
            Self::None { kind } | Self::Unsuitable { kind, .. } => {
                format!("if {node} has such a device, say so there: `wharf agent run --device {kind}=…`")
            }
            Self::TooFew { kind, need, free } => {
                format!(
                    "free {} {kind} on {node}, or ask for no more than {free}",
                    need.saturating_sub(*free)
                )
            }
            Self::Share { kind, need, free } => format!(
                "free {} of a {kind} on {node}, or ask for no more than {}",
                thousandths(need.saturating_sub(*free).into()),
                thousandths((*free).into())
            ),
            Self::Taken { kind, id } => format!("free {kind} {id} on {node}, or ask for a number of them"),
        }
    }
    /// Whether both are the same reason, whatever the amounts.
    pub fn same_reason(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TooFew { kind, need, .. }, Self::TooFew { kind: other, need: others, .. }) => {
                kind == other && need == others
            }
            (Self::Share { kind, need, .. }, Self::Share { kind: other, need: others, .. }) => {
                kind == other && need == others
            }
            (one, other) => one == other,
        }
    }
    /// Of two nodes that lack the same, keeps the one nearer to enough.
    pub fn keep_nearer(&mut self, other: &Self) {
        match (self, other) {
            (Self::TooFew { free, .. }, Self::TooFew { free: other, .. }) => *free = (*free).max(*other),
            (Self::Share { free, .. }, Self::Share { free: other, .. }) => *free = (*free).max(*other),
            _ => {}
        }
    }
    /// What follows "one node" (`has`) or "several nodes" (`have`).
    pub fn phrase(&self, one: bool) -> String {
        let (has, most) = if one { ("has", "") } else { ("have", "most ") };
        match self {
            Self::None { kind } => format!("{has} no {kind}"),
            Self::Unsuitable { kind, wanted } => format!("{has} no {kind} {wanted}"),
            Self::TooFew { kind, need, free } => {
                format!("{has} too few free devices of kind {kind} (need {need}, {most}free is {free})")
            }
            Self::Share { kind, need, free } => format!(
                "{has} no {kind} with enough of it left (need {}, {most}free is {})",
                thousandths((*need).into()),
                thousandths((*free).into())
            ),
            Self::Taken { kind, id } => format!("{has} no free {kind} {id}"),
        }
    }
    /// What can be done about it.
    pub fn hint(&self) -> String {
        match self {
            Self::None { kind } | Self::Unsuitable { kind, .. } => format!(
                "join a node that has one; what a machine's engine does not name is said with `wharf agent run --device {kind}=…`"
            ),
            Self::TooFew { .. } | Self::Share { .. } => {
                "join another node that has some, stop what holds them, or ask for less".into()
            }
            Self::Taken { .. } => "ask for a number of devices instead of one by its id".into(),
        }
    }
}

/// A device that can be told apart, and what is left of it.
struct Left<'a> {
    kind: &'a DeviceKind,
    device: &'a NodeDevice,
    /// Its number among those of its kind.
    number: usize,
    free: u32,
}

/// What is left of a node's devices while a need is being met.
struct Stock<'a> {
    inventory: &'a [NodeDevices],
    held: &'a Held,
    given: Held,
}

impl<'a> Stock<'a> {
    fn new(inventory: &'a [NodeDevices], held: &'a Held) -> Self {
        Self { inventory, held, given: Held::default() }
    }
    fn named(&self, ask: &'a Ask) -> impl Iterator<Item = Left<'a>> {
        let pools = self.inventory.iter().filter(|pool| ask.kind.takes(&pool.kind));
        pools.flat_map(|pool| {
            pool.named.iter().enumerate().map(|(number, device)| {
                let used = self.held.of(&pool.kind, &device.id) + self.given.of(&pool.kind, &device.id);
                Left { kind: &pool.kind, device, number, free: WHOLE.saturating_sub(used) }
            })
        })
    }
    fn suitable(&self, ask: &'a Ask) -> impl Iterator<Item = Left<'a>> {
        self.named(ask).filter(|left| ask.suits(left.device))
    }
    fn counted(&self, ask: &Ask) -> u64 {
        let pools = self.inventory.iter().filter(|pool| ask.kind.takes(&pool.kind));
        let free = |pool: &NodeDevices| {
            pool.count.saturating_sub(self.held.counted(&pool.kind) + self.given.counted(&pool.kind))
        };
        pools.map(free).sum()
    }
    /// Gives what one ask wants, the device of a share chosen by `choose` of those that have enough left.
    fn meet(
        &mut self,
        ask: &'a Ask,
        choose: &dyn Fn(&[u32], u32) -> usize,
        out: &mut Vec<TaskDevice>,
    ) -> Result<(), Lack> {
        let kind = || ask.kind.clone();
        let there = self.inventory.iter().any(|pool| ask.kind.takes(&pool.kind) && !pool.is_empty());
        if !there {
            return Err(Lack::None { kind: kind() });
        }
        let suitable: Vec<_> = self.suitable(ask).collect();
        let counted = if ask.is_particular() { 0 } else { self.counted(ask) };
        let some_counted = !ask.is_particular()
            && self.inventory.iter().any(|pool| ask.kind.takes(&pool.kind) && pool.count > 0);
        if suitable.is_empty() && !some_counted {
            return Err(Lack::Unsuitable { kind: kind(), wanted: ask.wanted() });
        }
        let whole: Vec<_> = suitable.iter().filter(|left| left.free == WHOLE).collect();
        let give = |left: &Left<'_>, share: u32| TaskDevice {
            kind: left.kind.clone(),
            id: Some(left.device.id.clone()),
            share: share.into(),
            driver: left.device.driver.clone(),
        };
        let before = out.len();
        match &ask.amount {
            Amount::Whole(need) => {
                let free = counted + u64::try_from(whole.len()).unwrap_or(u64::MAX);
                if free < *need {
                    return Err(Lack::TooFew { kind: kind(), need: *need, free });
                }
                let named = usize::try_from(*need).unwrap_or(usize::MAX).min(whole.len());
                out.extend(whole[..named].iter().map(|left| give(left, WHOLE)));
                let mut rest = *need - u64::try_from(named).unwrap_or(u64::MAX);
                for pool in self.inventory.iter().filter(|pool| ask.kind.takes(&pool.kind)) {
                    let free = pool
                        .count
                        .saturating_sub(self.held.counted(&pool.kind) + self.given.counted(&pool.kind));
                    let count = free.min(rest);
                    if count > 0 {
                        let share = count * u64::from(WHOLE);
                        out.push(TaskDevice { kind: pool.kind.clone(), id: None, share, driver: None });
                        rest -= count;
                    }
                }
            }
            Amount::All => {
                if whole.len() < suitable.len() || whole.is_empty() {
                    let all = |list: usize| u64::try_from(list).unwrap_or(u64::MAX);
                    return Err(Lack::TooFew {
                        kind: kind(),
                        need: all(suitable.len()).max(1),
                        free: all(whole.len()),
                    });
                }
                out.extend(whole.iter().map(|left| give(left, WHOLE)));
            }
            Amount::These(ids) => {
                for id in ids {
                    let is_it = |left: &&&Left<'_>| left.device.id == *id || left.number.to_string() == *id;
                    let Some(left) = whole.iter().find(is_it) else {
                        return Err(Lack::Taken { kind: kind(), id: id.clone() });
                    };
                    let device = give(left, WHOLE);
                    if !out[before..].contains(&device) {
                        out.push(device);
                    }
                }
            }
            Amount::Share(share) => {
                let frees: Vec<_> = suitable.iter().map(|left| left.free).collect();
                let most = frees.iter().copied().max().unwrap_or(0);
                if most < *share {
                    return Err(Lack::Share { kind: kind(), need: *share, free: most });
                }
                let chosen = choose(&frees, *share);
                let left = suitable.get(chosen).filter(|left| left.free >= *share);
                let left = left.or_else(|| suitable.iter().find(|left| left.free >= *share));
                out.extend(left.map(|left| give(left, *share)));
            }
        }
        drop(whole);
        drop(suitable);
        self.given.add(&out[before..]);
        Ok(())
    }
}

impl Ask {
    /// Whether not every device of the kind will do.
    fn is_particular(&self) -> bool {
        !self.models.is_empty()
            || self.memory.is_some()
            || self.driver.is_some()
            || !matches!(self.amount, Amount::Whole(_))
    }
    fn suits(&self, device: &NodeDevice) -> bool {
        let model = self.models.is_empty()
            || device
                .model
                .as_ref()
                .is_some_and(|model| self.models.iter().any(|wanted| same_model(wanted, model)));
        let memory = self.memory.is_none_or(|memory| device.memory.is_some_and(|has| has >= memory));
        // A node that does not say which driver it is leaves it to the engine.
        let driver = match (&self.driver, &device.driver) {
            (Some(wanted), Some(has)) => wanted == has,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        model && memory && driver
    }
    /// What a device would have to be.
    fn wanted(&self) -> String {
        let mut wanted = Vec::new();
        if !self.models.is_empty() {
            wanted.push(format!("of model {}", self.models.join(" or ")));
        }
        if let Some(memory) = self.memory {
            wanted.push(format!("with {memory} of memory"));
        }
        if let Some(driver) = &self.driver {
            wanted.push(format!("of driver {driver}"));
        }
        if wanted.is_empty() {
            wanted.push("that can be told apart".to_owned());
        }
        wanted.join(" and ")
    }
}

/// Whether a product is meant by a name: drivers write `NVIDIA A10` where people write `A10`.
pub(crate) fn same_model(wanted: &str, has: &str) -> bool {
    has.eq_ignore_ascii_case(wanted)
        || has.rsplit_once(' ').is_some_and(|(_, last)| last.eq_ignore_ascii_case(wanted))
}

/// Whether a node can give what is wanted beside what its tasks hold.
///
/// # Errors
/// For what it lacks.
pub fn fits(inventory: &[NodeDevices], held: &Held, need: &Need) -> Result<(), Lack> {
    if need.is_empty() {
        return Ok(());
    }
    give(inventory, held, need, &|frees, share| first_that_fits(frees, share)).map(drop)
}

/// The devices for a task on a node: of those that can be shared the one that is best for what comes later, otherwise the first.
///
/// # Errors
/// For what the node lacks.
pub fn allocate(
    inventory: &[NodeDevices],
    held: &Held,
    need: &Need,
    choice: Option<&packing::Choice<'_>>,
) -> Result<Vec<TaskDevice>, Lack> {
    let choose = |frees: &[u32], share: u32| {
        choice.map_or_else(|| tightest(frees, share), |choice| choice.device(frees, share))
    };
    give(inventory, held, need, &choose)
}

fn give(
    inventory: &[NodeDevices],
    held: &Held,
    need: &Need,
    choose: &dyn Fn(&[u32], u32) -> usize,
) -> Result<Vec<TaskDevice>, Lack> {
    let mut stock = Stock::new(inventory, held);
    let mut out = Vec::new();
    for ask in &need.asks {
        stock.meet(ask, choose, &mut out)?;
    }
    Ok(out)
}

fn first_that_fits(frees: &[u32], share: u32) -> usize {
    frees.iter().position(|free| *free >= share).unwrap_or(0)
}

/// The device with least left of those that have enough.
pub(crate) fn tightest(frees: &[u32], share: u32) -> usize {
    let enough = frees.iter().enumerate().filter(|(_, free)| **free >= share);
    enough.min_by_key(|(_, free)| **free).map_or(0, |(index, _)| index)
}

/// What is left of each GPU of a node, in the order of the inventory.
pub fn gpus_left(inventory: &[NodeDevices], held: &Held) -> Vec<u32> {
    let pools = inventory.iter().filter(|pool| pool.kind.is_gpu());
    let left = |pool: &NodeDevices| {
        let each = |device: &NodeDevice| WHOLE.saturating_sub(held.of(&pool.kind, &device.id));
        pool.named.iter().map(each).collect::<Vec<_>>()
    };
    pools.flat_map(left).collect()
}

impl fmt::Display for Need {
    /// `2 gpu, 0.5 of a gpu`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ask) in self.asks.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match &ask.amount {
                Amount::Whole(count) => write!(f, "{comma}{count} {}", ask.kind)?,
                Amount::All => write!(f, "{comma}every {}", ask.kind)?,
                Amount::These(ids) => write!(f, "{comma}{} {}", ask.kind, ids.join(" and "))?,
                Amount::Share(share) => {
                    write!(f, "{comma}{} of a {}", thousandths((*share).into()), ask.kind)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_model::{GenericResource, GpuWish};

    use super::*;

    fn inventory(texts: &[&str]) -> Vec<NodeDevices> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }
    fn gpus(count: i64) -> Need {
        let request = DeviceRequest {
            count: Some(count),
            capabilities: vec!["gpu".into()],
            ..DeviceRequest::default()
        };
        Need::of(&Resources { devices: vec![request], ..Resources::default() })
    }
    fn wish(wish: GpuWish) -> Need {
        Need::of(&Resources { gpu: Some(wish), ..Resources::default() })
    }
    fn share(thousandths: u32) -> Need {
        wish(GpuWish { share: Some(thousandths), ..GpuWish::default() })
    }
    fn generic(kind: &str, count: u64) -> Need {
        let resource = GenericResource { kind: kind.parse().unwrap(), count };
        Need::of(&Resources { generic: vec![resource], ..Resources::default() })
    }
    fn said(devices: &[TaskDevice]) -> String {
        devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn whole_devices_go_to_one_task_each() {
        let node = inventory(&["gpu=2", "ssd=3"]);
        let mut held = Held::default();
        let first = allocate(&node, &held, &gpus(1), None).unwrap();
        assert_eq!(said(&first), "gpu 0");
        held.add(&first);
        let second = allocate(&node, &held, &gpus(1), None).unwrap();
        assert_eq!(said(&second), "gpu 1");
        held.add(&second);
        let lack = fits(&node, &held, &gpus(1)).unwrap_err();
        assert_eq!(lack.phrase(true), "has too few free devices of kind gpu (need 1, free is 0)");
        held.release(&first);
        assert_eq!(said(&allocate(&node, &held, &gpus(1), None).unwrap()), "gpu 0");
        assert_eq!(said(&allocate(&node, &held, &generic("SSD", 2), None).unwrap()), "2 ssd");
        assert_eq!(
            fits(&node, &held, &generic("ssd", 4)).unwrap_err().phrase(true),
            "has too few free devices of kind ssd (need 4, free is 3)"
        );
        assert_eq!(
            fits(&node, &held, &generic("fpga", 1)),
            Err(Lack::None { kind: "fpga".parse().unwrap() })
        );
    }

    #[test]
    fn shares_of_a_device_add_up_to_one() {
        let node = inventory(&["gpu=2"]);
        let mut held = Held::default();
        for expected in ["0.6 of gpu 0", "0.4 of gpu 0", "0.6 of gpu 1"] {
            let want = if expected.starts_with("0.6") { share(600) } else { share(400) };
            let given = allocate(&node, &held, &want, None).unwrap();
            assert_eq!(said(&given), expected);
            held.add(&given);
        }
        let lack = fits(&node, &held, &share(500)).unwrap_err();
        assert_eq!(lack.phrase(false), "have no gpu with enough of it left (need 0.5, most free is 0.4)");
        assert!(fits(&node, &held, &gpus(1)).is_err(), "none is whole");
    }

    #[test]
    fn what_is_held_adds_up_and_goes_away() {
        let node = inventory(&["gpu=2", "ssd=3"]);
        let (mut one, mut two) = (Held::default(), Held::default());
        one.add(&allocate(&node, &one, &share(300), None).unwrap());
        two.add(&allocate(&node, &one, &share(300), None).unwrap());
        two.add(&allocate(&node, &one, &generic("ssd", 2), None).unwrap());
        let both = one.plus(&two);
        assert_eq!(gpus_left(&node, &both), [400, 1000]);
        assert!(fits(&node, &both, &generic("ssd", 2)).is_err());
        assert_eq!(both.minus(&two), one);
        assert!(both.minus(&both).is_empty());
    }

    #[test]
    fn a_model_memory_or_id_can_be_asked_for() {
        let node = inventory(&[
            "NVIDIA-GPU=GPU-a,GPU-b,model=NVIDIA A10,memory=24GiB",
            "gpu=1,model=T4,memory=16GiB",
        ]);
        let held = Held::default();
        let of = |models: &[&str], memory: Option<u64>| {
            wish(GpuWish {
                models: models.iter().map(|&model| model.into()).collect(),
                memory: memory.map(|gib| Bytes(gib << 30)),
                ..GpuWish::default()
            })
        };
        assert_eq!(said(&allocate(&node, &held, &of(&["t4"], None), None).unwrap()), "gpu 0");
        assert_eq!(
            said(&allocate(&node, &held, &of(&["A10", "H100"], None), None).unwrap()),
            "NVIDIA-GPU GPU-a"
        );
        assert_eq!(said(&allocate(&node, &held, &of(&[], Some(20)), None).unwrap()), "NVIDIA-GPU GPU-a");
        let lack = fits(&node, &held, &of(&["H100"], Some(80))).unwrap_err();
        assert_eq!(lack.phrase(true), "has no gpu of model H100 and with 80 GiB of memory");
        let these = |ids: &[&str]| {
            let request = DeviceRequest {
                device_ids: ids.iter().map(|&id| id.into()).collect(),
                capabilities: vec!["gpu".into()],
                driver: Some("nvidia".into()),
                ..DeviceRequest::default()
            };
            Need::of(&Resources { devices: vec![request], ..Resources::default() })
        };
        assert_eq!(said(&allocate(&node, &held, &these(&["GPU-b", "1"]), None).unwrap()), "NVIDIA-GPU GPU-b");
        assert_eq!(fits(&node, &held, &these(&["GPU-c"])).unwrap_err().phrase(true), "has no free gpu GPU-c");
        // Every one, and only if nobody has any of them.
        assert_eq!(
            said(&allocate(&node, &held, &gpus(-1), None).unwrap()),
            "NVIDIA-GPU GPU-a, NVIDIA-GPU GPU-b, gpu 0"
        );
        let mut held = Held::default();
        held.add(&allocate(&node, &held, &share(100), None).unwrap());
        assert!(matches!(fits(&node, &held, &gpus(-1)), Err(Lack::TooFew { need: 3, free: 2, .. })));
    }

    #[test]
    fn wishes_add_up() {
        let request =
            DeviceRequest { count: Some(2), capabilities: vec!["gpu".into()], ..DeviceRequest::default() };
        let other =
            DeviceRequest { count: Some(2), capabilities: vec!["tpu".into()], ..DeviceRequest::default() };
        let resources = Resources {
            devices: vec![request, other],
            generic: vec![GenericResource { kind: "ssd".parse().unwrap(), count: 1 }],
            gpu: Some(GpuWish { models: vec!["T4".into()], ..GpuWish::default() }),
            ..Resources::default()
        };
        assert_eq!(Need::of(&resources).to_string(), "2 gpu, 1 ssd", "which GPUs is not how many");
        assert!(
            fits(&inventory(&["gpu=2", "ssd=1"]), &Held::default(), &Need::of(&resources)).is_err(),
            "no T4"
        );
        assert!(
            fits(&inventory(&["gpu=2,model=T4", "ssd=1"]), &Held::default(), &Need::of(&resources)).is_ok()
        );
        assert!(Need::of(&Resources::default()).is_empty());
    }

    proptest! {
        /// Whatever is asked for in whatever order, and whatever ends in between.
        #[test]
        fn no_device_is_given_out_twice(
            counts in (1_u64..5, 0_u64..4),
            steps in proptest::collection::vec((0_u8..5, 1_u32..1000, any::<proptest::sample::Index>()), 1..60),
        ) {
            let node = inventory(&[&format!("gpu={}", counts.0), &format!("ssd={}", counts.1)]);
            let (mut held, mut tasks) = (Held::default(), Vec::<Vec<TaskDevice>>::new());
            for (what, amount, which) in steps {
                let need = match what {
                    0 => share(amount),
                    1 => gpus(i64::from(amount % 3)),
                    2 => generic("ssd", u64::from(amount % 3)),
                    3 => gpus(-1),
                    _ => {
                        if !tasks.is_empty() {
                            let index = which.index(tasks.len());
                            held.release(&tasks.swap_remove(index));
                        }
                        continue;
                    }
                };
                let possible = fits(&node, &held, &need).is_ok();
                match allocate(&node, &held, &need, None) {
                    Ok(devices) => {
                        prop_assert!(possible);
                        held.add(&devices);
                        tasks.push(devices);
                    }
                    Err(_) => prop_assert!(!possible),
                }
                let mut used = BTreeMap::<String, u64>::new();
                for device in tasks.iter().flatten() {
                    *used.entry(device.id.clone().unwrap_or_else(|| "counted".into())).or_default() += device.share;
                }
                for (id, share) in used {
                    let most = if id == "counted" { counts.1 * 1000 } else { 1000 };
                    prop_assert!(share <= most, "{} of {} is given out", share, id);
                }
            }
            for devices in tasks {
                held.release(&devices);
            }
            prop_assert!(held.is_empty());
        }
    }
}
