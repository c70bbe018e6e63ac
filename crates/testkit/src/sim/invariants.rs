//! What must hold of a cluster at every step, whatever happens to it.
//!
//! - *Of the store*, at every revision: what is written once stays; what has ended stays ended; no seat is filled twice, no address and no port
//!   of a node given twice; no node holds more than it has; no update surges beyond its parallelism, and none takes away what serves before
//!   there is something in its place; what was acknowledged is there.
//! - *Of the machines*, whenever a container may have started: no task runs twice or where it does not belong, no port is had twice, and of
//!   what writes to a volume there is one.
//! - *At rest*: see [`super::rest`].
//!
//! Everything that happens is folded into one number, by which two runs can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use parking_lot::Mutex;
use wharf_engine::World;
use wharf_model::{
    AppKey, AppRecord, Availability, Mode, MountSource, NodeId, NodeState, Phase, Protocol, PublishMode,
    Release, ServiceKey, Slot, StopReason, Task, TaskAssignment, TaskId, UpdateOrder, VolumeId,
};
use wharf_server::records::{Key, Record};
use wharf_store::Event;

use super::time::Epoch;

/// How long after a change of a node what was decided before may still be committed.
const LATE: u64 = 10_000;
/// How long a service has had one task when all that is left is of that time.
const ALONE: u64 = 300_000;

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Violation {
    /// When, in milliseconds since the beginning.
    pub at: u64,
    /// Which invariant, in a word or two; the same for all violations of one.
    pub invariant: String,
    /// What was found.
    pub found: String,
}
impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {}.{:03} s: {}: {}", self.at / 1000, self.at % 1000, self.invariant, self.found)
    }
}

/// What runs on one machine.
pub struct Running {
    /// Which machine.
    pub machine: usize,
    /// Which node it is now.
    pub node: Option<NodeId>,
    /// The tasks of its containers whose processes run.
    pub tasks: Vec<Seen>,
    /// Whether its right to run tasks that must not run twice lasts.
    pub right: bool,
}

/// A task whose process runs.
pub struct Seen {
    /// Which.
    pub id: TaskId,
    /// What it is called.
    pub name: String,
    /// Ports of the machine that it has.
    pub ports: Vec<(u16, Protocol)>,
    /// The stateful slot in which it writes, and to what.
    pub writes: Vec<(VolumeId, ServiceKey, Slot)>,
    /// The slot of which there must never be two, if that was so when it was made.
    pub fenced: Option<(ServiceKey, Slot)>,
}
impl From<&TaskAssignment> for Seen {
    fn from(task: &TaskAssignment) -> Self {
        let ports = task.spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
        let volumes =
            task.spec.container.mounts.iter().filter(|mount| !mount.read_only && task.slot != Slot(0));
        let volumes = volumes.filter_map(|mount| match &mount.source {
            MountSource::Volume { volume, .. } => task.volumes.get(volume),
            _ => None,
        });
        Self {
            id: task.id,
            name: task.name.clone(),
            ports: ports.filter_map(|port| Some((port.published?, port.protocol))).collect(),
            fenced: task.fenced.then(|| (task.service.clone(), task.slot)),
            writes: volumes.map(|volume| (*volume, task.service.clone(), task.slot)).collect(),
        }
    }
}

/// Sees everything.
pub struct Checker {
    epoch: Epoch,
    inner: Mutex<Inner>,
}
#[derive(Default)]
struct Inner {
    world: World,
    found: Vec<Violation>,
    checks: u64,
    revisions: u64,
    trace: u64,
    /// The highest generation of each app that somebody was told of.
    acknowledged: BTreeMap<AppKey, u64>,
    /// The same of nodes.
    acknowledged_nodes: BTreeMap<NodeId, u64>,
    /// How often somebody has asked for each app to be taken down.
    departures: BTreeMap<AppKey, u64>,
    /// When something of a node was last written.
    nodes_changed: BTreeMap<NodeId, u64>,
    /// When nodes that can be counted on again were down or missing last.
    away_until: BTreeMap<NodeId, u64>,
    /// When tasks that are not ready any more were so last.
    ready_until: BTreeMap<TaskId, u64>,
    /// When services that have one task were last to have another number.
    multiplied: BTreeMap<ServiceKey, u64>,
    /// Since when two containers run of a slot of which there must never be two.
    doubled: BTreeMap<(ServiceKey, Slot), u64>,
    /// Nodes that somebody removed whatever ran on them.
    disowned: BTreeSet<NodeId>,
}

impl Checker {
    /// One that has seen nothing yet.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, inner: Mutex::default() }
    }

    /// Notes something that must never be.
    pub fn violation(&self, invariant: &str, found: String) {
        let at = self.epoch.millis();
        self.inner.lock().found.push(Violation { at, invariant: invariant.to_owned(), found });
    }
    /// The first violation.
    pub fn first(&self) -> Option<Violation> {
        self.inner.lock().found.first().cloned()
    }
    /// So many single checks were made, of so many revisions of the store.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.checks, inner.revisions)
    }
    /// What happened so far, as one number.
    pub fn trace(&self) -> u64 {
        self.inner.lock().trace
    }
    /// Folds something that happened into that number.
    pub fn note(&self, what: &str) {
        let at = self.epoch.millis();
        self.inner.lock().note(at, what.as_bytes());
    }
    /// Looks at what the store holds.
    pub fn world<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.inner.lock().world)
    }
    /// Somebody was told that this generation of an app is written.
    pub fn acknowledge(&self, app: &AppKey, generation: u64) {
        let mut inner = self.inner.lock();
        let known = inner.acknowledged.entry(app.clone()).or_default();
        *known = (*known).max(generation);
        let at = self.epoch.millis();
        inner.acknowledged_is_there(at, app);
    }
    /// The same of a node.
    pub fn acknowledge_node(&self, node: NodeId, generation: u64) {
        let mut inner = self.inner.lock();
        let known = inner.acknowledged_nodes.entry(node).or_default();
        *known = (*known).max(generation);
    }
    /// Somebody has asked for an app to be taken down: from now on it may be gone.
    pub fn may_go(&self, app: &AppKey) {
        let mut inner = self.inner.lock();
        inner.acknowledged.remove(app);
        *inner.departures.entry(app.clone()).or_default() += 1;
    }
    /// How often that was. What somebody was told meanwhile says nothing.
    pub fn departures(&self, app: &AppKey) -> u64 {
        self.inner.lock().departures.get(app).copied().unwrap_or_default()
    }
    /// Somebody removes a node whatever runs on it, and answers for that.
    pub fn disown(&self, node: NodeId) {
        let mut inner = self.inner.lock();
        inner.disowned.insert(node);
        inner.acknowledged_nodes.remove(&node);
    }

    /// A commit was made.
    pub fn committed(&self, events: &[Event]) {
        let at = self.epoch.millis();
        self.inner.lock().committed(at, events);
    }
    /// A container may have started somewhere.
    pub fn looked(&self, machines: &[Running]) {
        let at = self.epoch.millis();
        self.inner.lock().looked(at, machines);
    }
}

/// Whether the content says the same each time: what is sealed is not.
const fn is_told(key: &Key) -> bool {
    !matches!(
        key,
        Key::File(..)
            | Key::NamedContent(..)
            | Key::AcmeAccount(_)
            | Key::CertificateKey(_)
            | Key::Challenge(_)
            | Key::TicketKeys
    )
}

impl Inner {
    fn note(&mut self, at: u64, what: &[u8]) {
        let bytes = at.to_le_bytes();
        for byte in bytes.iter().chain(what) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn broken(&mut self, at: u64, invariant: &str, found: String) {
        self.found.push(Violation { at, invariant: invariant.to_owned(), found });
    }
    fn check(&mut self, at: u64, holds: bool, invariant: &str, found: impl FnOnce(&World) -> String) {
        self.checks += 1;
        if !holds {
            let found = found(&self.world);
            self.broken(at, invariant, found);
        }
    }

    fn committed(&mut self, at: u64, events: &[Event]) {
        self.revisions += 1;
        let mut changes = Vec::new();
        for event in events {
            self.note(at, event.key.as_bytes());
            let Ok(key) = event.key.parse::<Key>() else {
                self.broken(at, "keys are legible", event.key.clone());
                continue;
            };
            if is_told(&key) {
                self.note(at, event.value.as_deref().unwrap_or_default());
            }
            let record = match event.value.as_ref().map(|bytes| Record::decode(&key, bytes)).transpose() {
                Ok(record) => record,
                Err(error) => {
                    self.broken(at, "records are legible", format!("{key}: {error}"));
                    continue;
                }
            };
            changes.push((key, record));
        }
        // A status comes after what it is the status of.
        changes.sort_by_key(|(key, _)| matches!(key, Key::TaskStatus(_) | Key::NodeStatus(_)));
        if let Some(event) = events.first() {
            self.world.revision = wharf_model::Revision(event.revision.0);
        }
        let (mut new, mut stopped, mut apps) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (key, record) in changes {
            match record {
                Some(record) => self.put(at, record, &mut new, &mut stopped, &mut apps),
                None => self.removed(at, &key, &mut apps),
            }
        }
        for task in new {
            self.is_rightly_made(at, task);
        }
        for task in stopped {
            self.is_rightly_stopped(at, task);
        }
        for app in apps {
            self.acknowledged_is_there(at, &app);
        }
    }

    fn put(
        &mut self,
        at: u64,
        record: Record,
        new: &mut Vec<TaskId>,
        stopped: &mut Vec<TaskId>,
        apps: &mut BTreeSet<AppKey>,
    ) {
        match record {
            Record::Node(node) => {
                let known = self.world.node(node.id).map(|known| known.record.generation);
                self.check(
                    at,
                    known.is_none_or(|known| known <= node.generation),
                    "generations grow",
                    |_| format!("node {}: {known:?} became {}", node.name, node.generation),
                );
                let acknowledged = self.acknowledged_nodes.get(&node.id).copied().unwrap_or_default();
                self.check(at, node.generation.0 >= acknowledged, "what was acknowledged is there", |_| {
                    format!("node {}: generation {acknowledged} was", node.name)
                });
                self.nodes_changed.insert(node.id, at);
                self.world.insert_node(node);
            }
            Record::NodeStatus(id, status) => {
                let was_away = self.world.node(id).is_some_and(is_away);
                if was_away && status.state != NodeState::Down && !status.missing {
                    self.away_until.insert(id, at);
                }
                self.nodes_changed.insert(id, at);
                self.world.set_node_status(id, status);
            }
            Record::App(app) => {
                self.app_grows(at, &app);
                apps.insert(app.key.clone());
                self.world.insert_app(app);
            }
            Record::Release(release) => {
                let same = |known: &Release| {
                    let outcome = release.outcome.clone();
                    known.outcome.is_none_or_same(&outcome) && Release { outcome, ..known.clone() } == release
                };
                let holds = self.world.release(&release.app, release.number).is_none_or(|known| same(known));
                self.check(at, holds, "releases are immutable", |_| {
                    format!("{} release {}", release.app, release.number)
                });
                self.world.insert_release(release);
            }
            Record::Service(service) => {
                if !matches!(service.mode, Mode::Replicated { replicas: 1 }) {
                    self.multiplied.insert(service.key.clone(), at);
                }
                self.world.insert_service(service);
            }
            Record::Revision(revision) => {
                let known = self.world.revision_of(&revision.key, revision.generation);
                let holds = known.is_none_or(|known| **known == revision);
                self.check(at, holds, "revisions are immutable", |_| {
                    format!("{} generation {}", revision.key, revision.generation)
                });
                self.world.insert_revision(revision);
            }
            Record::Task(task) => {
                match self.world.task(task.id).cloned() {
                    None => new.push(task.id),
                    Some(known) => {
                        self.task_goes_on(at, &known, &task);
                        if known.stop.is_none() && task.stop.is_some() {
                            stopped.push(task.id);
                        }
                    }
                }
                self.world.insert_task(task);
            }
            Record::TaskStatus(id, status) => {
                if let Some(known) = self.world.task(id).cloned() {
                    let (from, to) = (known.status.phase, status.phase);
                    self.check(at, from.advance(to).is_ok(), "phases never go back", |_| {
                        format!("{} ({id}) went from {from} to {to}", known.name())
                    });
                    // Its own node ends it with the right to run it, and says so.
                    let unleased = status.message.starts_with("stopped by its node");
                    if to == Phase::Lost && from != to && !unleased {
                        self.is_rightly_lost(at, &known);
                    }
                    if known.status.is_ready() && !status.is_ready() {
                        self.ready_until.insert(id, at);
                    }
                }
                self.world.set_task_status(id, status);
            }
            Record::Network(network) => {
                let clash = self.world.networks().find(|other| {
                    other.id != network.id
                        && (other.subnet.contains(&network.subnet) || network.subnet.contains(&other.subnet))
                });
                let clash =
                    clash.map(|other| format!("{} of {} and {}", network.subnet, network.app, other.app));
                self.check(at, clash.is_none(), "no subnet is given twice", |_| clash.unwrap_or_default());
                self.world.insert_network(network);
            }
            Record::Volume(volume) => self.world.insert_volume(volume),
            Record::Cluster(cluster) => {
                self.world.epoch = cluster.epoch;
                self.world.pool = cluster.pool;
            }
            _ => {}
        }
    }

    fn removed(&mut self, at: u64, key: &Key, apps: &mut BTreeSet<AppKey>) {
        match key {
            Key::Node(id) => {
                self.nodes_changed.insert(*id, at);
                self.world.remove_node(*id);
            }
            Key::App(app) => {
                self.world.remove_app(app);
                apps.insert(app.clone());
            }
            Key::Release(app, number) => self.world.remove_release(app, *number),
            Key::Service(service) => self.world.remove_service(service),
            Key::Revision(service, generation) => self.world.remove_revision(service, *generation),
            Key::Task(id) => {
                self.world.remove_task(*id);
                self.ready_until.remove(id);
            }
            Key::Network(id) => self.world.remove_network(*id),
            Key::Volume(id) => self.world.remove_volume(*id),
            _ => {}
        }
    }

    fn app_grows(&mut self, at: u64, app: &AppRecord) {
        let known = self.world.app(&app.key).cloned();
        let holds = known.as_ref().is_none_or(|known| known.generation <= app.generation);
        self.check(at, holds, "generations grow", |_| {
            format!("{}: {:?} became {}", app.key, known.map(|known| known.generation), app.generation)
        });
    }
    fn acknowledged_is_there(&mut self, at: u64, app: &AppKey) {
        let Some(wanted) = self.acknowledged.get(app).copied() else { return };
        let generation = self.world.app(app).map(|app| app.generation.0);
        self.check(
            at,
            generation.is_some_and(|generation| generation >= wanted),
            "what was acknowledged is there",
            |_| format!("{app}: generation {wanted} was, and the store has {generation:?}"),
        );
    }

    /// What was once written of a task stays.
    fn task_goes_on(&mut self, at: u64, known: &Task, task: &Task) {
        let name = || format!("{} ({})", task.name(), task.id);
        let once = known.node.is_none() || known.node == task.node;
        self.check(at, once, "a task's node is written once", |_| {
            format!("{}: {:?} became {:?}", name(), known.node, task.node)
        });
        let once = known.addresses.is_empty() || known.addresses == task.addresses;
        self.check(at, once, "a task's addresses are written once", |_| name());
        let kept = known.stop.is_none() || known.stop == task.stop;
        self.check(at, kept, "a stop is never taken back", |_| {
            format!("{}: {:?} became {:?}", name(), known.stop, task.stop)
        });
        let kept = known.drained.is_none() || known.drained == task.drained;
        self.check(at, kept, "what is drained stays so", |_| name());
        let same =
            (&known.service, known.slot, known.generation) == (&task.service, task.slot, task.generation);
        self.check(at, same, "a task stays what it is", |_| name());
    }

    /// Work is given up only where nobody can be asked: on nodes that are down, missing or gone.
    fn is_rightly_lost(&mut self, at: u64, task: &Task) {
        let node = task.node.and_then(|node| self.world.node(node));
        let state = node.map(wharf_engine::Node::state);
        let revision = self.world.revision_of(&task.service, task.generation);
        let fenced = revision.is_some_and(|revision| revision.spec.policy.single_writer == Some(true));
        let down = node.is_none_or(|node| is_away(node) && (!fenced || node.state() == NodeState::Down));
        let until = task.node.and_then(|node| self.away_until.get(&node));
        let lately = until.is_some_and(|until| at.saturating_sub(*until) < LATE);
        self.check(at, down || lately, "work is lost with its node only", |_| {
            format!("{} ({}) is lost, and its node is {state:?}", task.name(), task.id)
        });
    }

    /// Whether a node can be counted on to keep what it has, and could when this was decided.
    fn is_settled(&self, at: u64, node: Option<NodeId>) -> bool {
        let Some(node) = node.and_then(|node| self.world.node(node)) else { return false };
        let changed = self.nodes_changed.get(&node.record.id).copied().unwrap_or_default();
        node.record.availability != Availability::Drain
            && node.state() != NodeState::Down
            && at.saturating_sub(changed) > LATE
    }

    /// A new task takes nothing from another one.
    fn is_rightly_made(&mut self, at: u64, id: TaskId) {
        let Some(task) = self.world.task(id).cloned() else { return };
        let name = || format!("{} ({id})", task.name());
        let others: Vec<_> =
            self.world.tasks().filter(|other| other.id != id && !other.is_over()).cloned().collect();

        if task.hook.is_none() {
            let rival = others.iter().find(|other| {
                other.service == task.service
                    && other.hook.is_none()
                    && other.slot == task.slot
                    && (task.slot != Slot(0) || other.node == task.node)
                    && other.generation == task.generation
                    && other.stop.is_none()
                    // Its slot moves to the new one's node.
                    && other.relocation.as_ref().is_none_or(|to| Some(to.to) != task.node || to.given_up.is_some())
                    && self.is_settled(at, other.node)
            });
            let rival = rival.map(|rival| rival.id);
            self.check(at, rival.is_none(), "no slot is run twice", |world| {
                let rival = rival.and_then(|rival| world.task(rival));
                let of = rival.map(|rival| format!("{} {:?} on {:?}", rival.id, rival.status, rival.node));
                format!("{} on {:?}, beside {}", name(), task.node, of.unwrap_or_default())
            });
        }
        for address in task.addresses.values() {
            let other = others.iter().find(|other| other.addresses.values().any(|theirs| theirs == address));
            let other = other.map(|other| other.name());
            self.check(at, other.is_none(), "no address is given twice", |_| {
                format!("{address} of {} and {}", name(), other.unwrap_or_default())
            });
        }
        let Some(node) = task.node else { return };
        let load = self.world.load(node);
        let double = load.host_ports.iter().find(|(_, count)| **count > 1).map(|(port, _)| *port);
        self.check(at, double.is_none(), "no port of a node is given twice", |world| {
            format!("{double:?} of node {}, at last to {}", world.node_name(node), name())
        });
        let facts = self.world.node(node).and_then(|node| Some((node.facts()?.cpus, node.facts()?.memory)));
        if let Some((cpus, memory)) = facts {
            self.check(
                at,
                load.cpus <= cpus && load.memory <= memory,
                "no node is over its capacity",
                |world| {
                    format!(
                        "{} of {cpus} and {} of {memory} on {}",
                        load.cpus,
                        load.memory,
                        world.node_name(node)
                    )
                },
            );
        }
        self.surges_within_bounds(at, &task);
    }

    /// Of the slots of a service at most so many have a task too many because of an update.
    fn surges_within_bounds(&mut self, at: u64, task: &Task) {
        let Some(record) = self.world.service(&task.service) else { return };
        if task.slot == Slot(0) || task.hook.is_some() || !record.sets.is_empty() {
            return;
        }
        let parallelism = self.parallelism(&task.service);
        let Some(parallelism) = parallelism else { return };
        let mut slots = BTreeMap::<Slot, usize>::new();
        for other in self.world.tasks_of(&task.service) {
            let counts = match other.stop {
                None => true,
                Some(StopReason::Outdated | StopReason::Restarted) => other.is_draining(),
                Some(_) => false,
            };
            // What moves has a budget of its own.
            let counts = counts && other.relocation.is_none();
            if counts && !other.is_over() && self.is_settled(at, other.node) {
                *slots.entry(other.slot).or_default() += 1;
            }
        }
        let twice = slots.values().filter(|tasks| **tasks > 1).count();
        self.check(at, twice <= parallelism, "updates surge within their parallelism", |world| {
            let mut text = format!("{}: {twice} slots have two tasks, and {parallelism} may:", task.service);
            for other in world.tasks_of(&task.service).filter(|other| !other.is_over()) {
                let _ = write!(text, " {}g{}{:?}", other.slot, other.generation, other.stop);
            }
            text
        });
    }
    /// So many slots of a service may be replaced at once by any of its revisions; absent for all.
    fn parallelism(&self, service: &ServiceKey) -> Option<usize> {
        let mut most = 0;
        for revision in self.world.revisions_of(service) {
            for policy in [Some(revision.spec.update), revision.spec.rollback].into_iter().flatten() {
                if policy.parallelism == 0 {
                    return None;
                }
                most = most.max(usize::try_from(policy.parallelism).unwrap_or(usize::MAX));
            }
        }
        Some(most)
    }

    /// What serves is taken away only when there is something in its place, where both can be.
    fn is_rightly_stopped(&mut self, at: u64, id: TaskId) {
        let Some(task) = self.world.task(id).cloned() else { return };
        let update = matches!(
            task.stop,
            Some(StopReason::Outdated | StopReason::Restarted | StopReason::Rebalanced | StopReason::Drained)
        );
        let replaced = self.world.service(&task.service).is_some_and(|record| {
            let kept = matches!(record.mode, Mode::Replicated { replicas } if task.slot.0 <= replicas);
            record.sets.is_empty() && !record.removed && !record.stopped && kept
        });
        if !update || !replaced || !task.status.is_ready() || task.slot == Slot(0) || task.hook.is_some() {
            return;
        }
        if !self.is_start_first(&task.service) {
            return;
        }
        let successor = self.world.tasks_of(&task.service).any(|other| {
            // Or it was when this was decided, or has done its work.
            let lately =
                self.ready_until.get(&other.id).is_some_and(|until| at.saturating_sub(*until) < LATE);
            let serves = other.is_ready() || lately || other.status.phase == Phase::Complete;
            other.id != id && other.slot == task.slot && serves
        });
        self.check(at, successor, "updates keep up what serves", |world| {
            let mut text = format!("{} was ready and is stopped; of its slot there are:", task.name());
            for other in world.tasks_of(&task.service).filter(|other| other.slot == task.slot) {
                let _ = write!(
                    text,
                    " [{} g{} {} {:?}]",
                    other.id, other.generation, other.status.phase, other.stop
                );
            }
            text
        });
    }
    /// Whether in every revision of it the new task can be there before the old one goes.
    fn is_start_first(&self, service: &ServiceKey) -> bool {
        self.world.revisions_of(service).all(|revision| {
            let spec = &revision.spec;
            let exclusive =
                spec.container.mounts.iter().any(|mount| matches!(mount.source, MountSource::Volume { .. }))
                    || spec.ports.iter().any(|port| port.mode == PublishMode::Host)
                    || spec.policy.single_writer == Some(true);
            let policies = [Some(spec.update), spec.rollback].into_iter().flatten();
            !exclusive && policies.into_iter().all(|policy| policy.order != Some(UpdateOrder::StopFirst))
        })
    }

    /// Whether the data of a volume is on the node that uses it.
    fn is_local(&self, volume: VolumeId) -> bool {
        self.world.volumes().find(|record| record.id == volume).is_none_or(|record| record.spec.is_local())
    }
    /// Whether all of these tasks were never to run twice for a while.
    fn is_fenced(&self, at: u64, tasks: &[TaskId]) -> bool {
        tasks.iter().all(|id| {
            let Some(task) = self.world.task(*id) else { return false };
            let revision = self.world.revision_of(&task.service, task.generation);
            let word = revision.and_then(|revision| revision.spec.policy.single_writer);
            let multiplied = self.multiplied.get(&task.service).copied().unwrap_or_default();
            word.unwrap_or(at.saturating_sub(multiplied) > ALONE)
        })
    }

    fn looked(&mut self, at: u64, machines: &[Running]) {
        let mut tasks = BTreeMap::new();
        let mut writers = BTreeMap::new();
        let mut fenced = BTreeMap::new();
        let mut doubled = BTreeSet::new();
        for machine in machines {
            let mut ports = BTreeMap::new();
            for task in &machine.tasks {
                self.note(at, task.id.uuid().as_bytes());
                let other = tasks.insert(task.id, machine.machine);
                self.check(at, other.is_none(), "no task runs twice", |_| {
                    format!("{} ({}) on machines {} and {other:?}", task.name, task.id, machine.machine)
                });
                let place = self.world.task(task.id).map(|known| known.node);
                let at_home = place.is_none_or(|place| place == machine.node)
                    || place.flatten().is_some_and(|place| self.disowned.contains(&place));
                self.check(at, at_home, "tasks run where they belong", |_| {
                    format!(
                        "{} ({}) on machine {}, and it is for {place:?}",
                        task.name, task.id, machine.machine
                    )
                });
                for port in &task.ports {
                    let other = ports.insert(*port, task.id);
                    self.check(at, other.is_none(), "no port of a node is had twice", |_| {
                        format!("{port:?} on machine {}: {} and {other:?}", machine.machine, task.id)
                    });
                }
                let disowned = machine.node.is_none_or(|node| self.disowned.contains(&node))
                    || place.flatten().is_some_and(|place| self.disowned.contains(&place));
                if let Some(slot) = task.fenced.clone().filter(|_| !disowned)
                    && let Some((other, right)) = fenced.insert(slot.clone(), (task.id, machine.right))
                    && self.is_fenced(at, &[task.id, other])
                {
                    // Where the right is over the second process is ended within the blink of an eye, however late it was started.
                    let since = *self.doubled.entry(slot.clone()).or_insert(at);
                    let both = right && machine.right;
                    self.check(at, !both && at - since < 300, "a fenced slot runs once", |_| {
                        format!(
                            "{}: {} and {other} run since {since}; rights {right} and {}",
                            task.name, task.id, machine.right
                        )
                    });
                    doubled.insert(slot);
                }
                let local: Vec<_> =
                    task.writes.iter().filter(|(volume, ..)| !disowned && self.is_local(*volume)).collect();
                for seat in local {
                    let other = writers.insert(seat.clone(), (machine.machine, task.id));
                    self.check(at, other.is_none(), "one writer for each stateful slot", |world| {
                        let node = |id| world.task(id).map(|task| (task.node, task.stop, task.status.phase));
                        let other = other.map(|(machine, id)| (machine, id, node(id)));
                        let mine = (machine.machine, task.id, node(task.id));
                        format!("{}: {mine:?}, and {other:?}", task.name)
                    });
                }
            }
        }
        self.doubled.retain(|slot, _| doubled.contains(slot));
    }
}

/// Whether what runs on a node may be replaced: it is down, or neither its peers nor the server hear it.
fn is_away(node: &wharf_engine::Node) -> bool {
    node.state() == NodeState::Down || node.is_missing()
}

/// Of what is written once.
trait Once {
    fn is_none_or_same(&self, new: &Self) -> bool;
}
impl<T: PartialEq> Once for Option<T> {
    fn is_none_or_same(&self, new: &Self) -> bool {
        self.is_none() || self == new
    }
}
