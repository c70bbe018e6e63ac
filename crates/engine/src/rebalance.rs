//! Plans which tasks move to nodes that have less to do, and carries moves on within the cluster's budget.
//!
//! - A move never goes against placement: of the two nodes, the task placed anew would go to the target.
//! - Every move makes the cluster more even in one order of all its states: first how services are spread over what they want to be spread
//!   over, then how over nodes, then how much of the fullest node is reserved, then how many tasks the one with most has. So moves come to
//!   an end, and none undoes what another has done.
//! - Only slots move whose new task can start before the old one stops, and which leave no data behind.
//! - Of one service one slot moves at a time, and only while all its others are as wanted.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use wharf_model::{
    AppKey, AutomaticRebalancing, By, Image, Mode, MountSource, MoveState, NodeId, NodeState, RebalanceRun,
    Relocation, RolloutState, RunMove, ServiceKey, ServiceName, ServiceRecord, ServiceRevision, Slot,
    StopReason, Task, TaskId, Timestamp, VolumeName,
};

use crate::{
    Change, Decision, Load, Node, StopFirst, World,
    place::{self, Demand, Pin, PinnedBy, Places},
    spec,
    world::Holding,
};

/// A node that has joined, come back or been activated takes its share in this time.
const NEW_FOR: Duration = Duration::from_secs(3600);
/// Or as long as tasks are moving to it: the last has come no longer ago than this.
const GOES_ON_FOR: Duration = Duration::from_secs(600);
/// What did not get through is not tried again by itself before this has passed.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// By so many thousandths of its capacity a node must have more reserved than another has with the task, or it is not worth a move.
const MARGIN: u64 = 50;
/// So often placement is asked for one service, and for one step of evening nodes out.
const TRIES: usize = 2_000;
/// So many pairs of nodes and services are looked at for one step of evening nodes out.
const LOOKS: usize = 100_000;

/// What is to be evened out.
#[derive(Debug, Clone)]
pub struct RebalanceScope<'a> {
    /// The tasks of this app only.
    pub app: Option<&'a AppKey>,
    /// Only towards these nodes.
    pub toward: Option<&'a BTreeSet<NodeId>>,
    /// At most so many moves.
    pub most: usize,
    /// At most so many of each service.
    pub of_each: usize,
}
impl Default for RebalanceScope<'_> {
    fn default() -> Self {
        Self { app: None, toward: None, most: 500, of_each: usize::MAX }
    }
}

/// Which tasks would move where, and why no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebalancePlan {
    /// In the order in which they are carried out.
    pub moves: Vec<Move>,
    /// Services whose tasks stay wherever they are, and why.
    pub stays: Vec<(ServiceKey, Stays)>,
    /// There would be more to move than was asked for at most.
    pub more: bool,
    /// What each node has now
    pub before: Vec<Share>,
    /// and would have.
    pub after: Vec<Share>,
}

/// What a node has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Unfinished tasks.
    pub tasks: u32,
    /// What they reserve of the scarcer of memory and processor time, in thousandths.
    pub reserved: u64,
}

/// One slot that moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The task it has now.
    pub task: TaskId,
    /// That task's name.
    pub name: String,
    /// Its service.
    pub service: ServiceKey,
    /// From which node
    pub from: NodeId,
    /// to which.
    pub to: NodeId,
    /// What gets better.
    pub gain: Gain,
    /// The same in words.
    pub why: String,
}

/// What gets better by a move, as it is before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gain {
    /// The service is spread better over the values of a label it wants to be spread over.
    Spread {
        /// The label.
        label: String,
        /// The value of the source, and how many tasks of the service have it.
        from: (String, u32),
        /// The same of the target.
        to: (String, u32),
    },
    /// The source has more tasks of the service.
    Siblings {
        /// How many it has.
        from: u32,
        /// How many the target has.
        to: u32,
    },
    /// More of the source is reserved.
    Reserved {
        /// Of the source, in thousandths.
        from: u64,
        /// Of the target.
        to: u64,
    },
    /// The source has more tasks.
    Tasks {
        /// How many it has.
        from: u32,
        /// How many the target has.
        to: u32,
    },
}
impl Gain {
    fn sentence(&self, service: &ServiceName, from: &str, to: &str) -> String {
        let tasks = |count: u32| if count == 1 { "1 task".to_owned() } else { format!("{count} tasks") };
        match self {
            Self::Spread { label, from: (from, many), to: (to, few) } => {
                let value = |value: &str| if value.is_empty() { "none".to_owned() } else { value.to_owned() };
                let label = label.strip_prefix("node.labels.").unwrap_or(label);
                let (from, to) = (value(from), value(to));
                format!("{label} {from} has {} of {service} and {label} {to} has {few}", tasks(*many))
            }
            Self::Siblings { from: many, to: few } => {
                format!("{from} has {} of {service} and {to} has {few}", tasks(*many))
            }
            Self::Reserved { from: more, to: less } => {
                format!("{} % of {from} is reserved, and {} % of {to}", more / 10, less / 10)
            }
            Self::Tasks { from: many, to: few } => format!("{from} has {} and {to} has {few}", tasks(*many)),
        }
    }
}

/// Why the tasks of a service stay where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stays {
    /// Its app is being changed, or the last change failed.
    Rollout(RolloutState),
    /// Sets of tasks stand beside the one that serves.
    Sets,
    /// It shares something with another service's tasks.
    Shares(ServiceName),
    /// Another service's tasks share something with it.
    SharedBy(ServiceName),
    /// Its old task would have to stop before the new one starts.
    StopFirst(StopFirst),
    /// The data of a volume is where the tasks are.
    Data(VolumeName),
    /// It writes to a folder of its nodes.
    Folder(String),
    /// It is not as wanted now: so many of its slots are.
    Unsettled {
        /// Slots with a task that serves, and nothing else going on.
        settled: u32,
        /// All of them.
        of: u32,
    },
}
impl Stays {
    /// Whether waiting helps.
    const fn passes(&self) -> bool {
        match self {
            Self::Unsettled { .. } => true,
            Self::Rollout(_)
            | Self::Sets
            | Self::Shares(_)
            | Self::SharedBy(_)
            | Self::StopFirst(_)
            | Self::Data(_)
            | Self::Folder(_) => false,
        }
    }
}
impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollout(RolloutState::Progressing) => f.write_str("its app is being changed"),
            Self::Rollout(_) => f.write_str("the last change of its app did not get through"),
            Self::Sets => f.write_str("a set of tasks stands beside the one that serves"),
            Self::Shares(other) => write!(f, "it shares something with the tasks of {other}"),
            Self::SharedBy(other) => write!(f, "tasks of {other} share something with it"),
            Self::StopFirst(why) => write!(f, "it would be interrupted: {why}"),
            Self::Data(volume) => write!(f, "the data of its volume {volume} is on its nodes"),
            Self::Folder(path) => write!(f, "it writes to the folder {path} of its nodes"),
            Self::Unsettled { settled, of } => {
                write!(
                    f,
                    "{settled} of its {of} slots {} as wanted now",
                    if *settled == 1 { "is" } else { "are" }
                )
            }
        }
    }
}

/// Works out which tasks to move.
pub fn plan_rebalance(world: &World, scope: &RebalanceScope<'_>, now: Timestamp) -> RebalancePlan {
    Planner::new(world, scope, now, BTreeSet::new()).plan()
}

/// The moves of a plan as somebody agreed to them.
pub fn begin_rebalance(plan: &RebalancePlan, number: u64, by: &By, now: Timestamp) -> RebalanceRun {
    let moves = plan.moves.iter().map(|one| RunMove {
        task: one.task,
        name: one.name.clone(),
        service: one.service.clone(),
        from: one.from,
        to: one.to,
        why: one.why.clone(),
        state: MoveState::Planned,
    });
    RebalanceRun {
        number,
        by: by.clone(),
        started_at: now,
        moves: moves.collect(),
        cancelled: None,
        ended_at: None,
    }
}

/// Begins moves, those that somebody asked for before those that the cluster makes by itself, and notes how far they are.
pub fn decide_rebalance(world: &World, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let mut budget = Budget::of(world, now, &mut decision);
    if let Some(run) = world.rebalance_run().filter(|run| !run.is_over()) {
        carry_on(world, run, now, &mut budget, &mut decision);
        return decision;
    }
    let toward = match world.rebalancing.automatic {
        AutomaticRebalancing::Off => return decision,
        AutomaticRebalancing::Joining => newcomers(world, now, true, &mut decision),
        AutomaticRebalancing::Always => newcomers(world, now, false, &mut decision),
    };
    if toward.is_empty() || budget.left == 0 {
        return decision;
    }
    let scope = RebalanceScope { app: None, toward: Some(&toward), most: budget.left, of_each: 1 };
    let plan = Planner::new(world, &scope, now, failed_lately(world, now)).plan();
    for one in plan.moves {
        let relocation = Relocation { to: one.to, at: now, why: one.why, given_up: None };
        decision.changes.push(Change::MoveTask { task: one.task, relocation });
    }
    decision
}

/// Whether slots move, or are to because somebody asked for it.
pub fn is_rebalancing(world: &World) -> bool {
    world.rebalance_run().is_some_and(|run| !run.is_over()) || world.relocated().any(|task| is_moving(task))
}

/// The tasks whose slots are on their way to another node, with that node and what gets better.
pub fn moving(world: &World) -> impl Iterator<Item = (&Task, NodeId, &str)> {
    world.relocated().filter(|task| is_moving(task)).filter_map(|task| {
        let relocation = task.relocation.as_ref()?;
        Some((&**task, relocation.to, relocation.why.as_str()))
    })
}

/// Nodes that take tasks and have been ready for long enough; those only that are new to it and have less than their share, if that is
/// asked for.
fn newcomers(world: &World, now: Timestamp, new_only: bool, decision: &mut Decision) -> BTreeSet<NodeId> {
    let load = |node: &Node| slim(world, node.record.id);
    let open = world.nodes().filter(|node| place::is_open_at(node, now));
    let loads: Vec<_> = open.map(|node| (node, load(node))).collect();
    let average = |sum: u64| sum / u64::try_from(loads.len()).unwrap_or(u64::MAX).max(1);
    let tasks = average(loads.iter().map(|(_, load)| u64::from(load.tasks)).sum());
    let reserved = average(loads.iter().map(|(node, load)| place::reserved_share(node, load)).sum());
    let mut found = BTreeSet::new();
    for (node, load) in &loads {
        let has_its_share =
            u64::from(load.tasks) >= tasks && place::reserved_share(node, load) + MARGIN >= reserved;
        if new_only && has_its_share {
            continue;
        }
        let ready = node.status.as_ref().map_or(node.record.joined_at, |status| status.since);
        let since = ready.max(node.record.available_since.unwrap_or(node.record.joined_at));
        let steady = since + world.rebalancing.steady.duration();
        if steady > now {
            decision.wake(steady);
            continue;
        }
        let came = |task: &Arc<Task>| task.moved_from.is_some() && now.since(task.created_at) < GOES_ON_FOR;
        if !new_only || now.since(since) < NEW_FOR || world.tasks_on(node.record.id).any(came) {
            found.insert(node.record.id);
        }
    }
    found
}

/// What a node has to do, without which services have it do that.
fn slim(world: &World, node: NodeId) -> Load {
    let load = world.load_ref(node);
    load.map_or_else(Load::default, |load| Load {
        tasks: load.tasks,
        cpus: load.cpus,
        memory: load.memory,
        disk: load.disk,
        ..Load::default()
    })
}

/// Services that did not get through on a node lately.
fn failed_lately(world: &World, now: Timestamp) -> BTreeSet<(ServiceKey, NodeId)> {
    let failed = world.relocated().filter_map(|task| {
        let relocation = task.relocation.as_ref()?;
        let lately = relocation.given_up.is_some() && now.since(relocation.at) < REMEMBERED;
        lately.then(|| (task.service.clone(), relocation.to))
    });
    failed.collect()
}

/// How many moves may begin now.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: usize,
}
impl Budget {
    fn of(world: &World, now: Timestamp, decision: &mut Decision) -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        let count = |number: u32| usize::try_from(number.max(1)).unwrap_or(usize::MAX);
        let settings = &world.rebalancing;
        let under_way = world.relocated().filter(|task| is_moving(task)).count();
        let begun = world.relocated().filter_map(|task| Some(task.relocation.as_ref()?.at));
        let lately: Vec<_> = begun.filter(|at| now.since(*at) < MINUTE).collect();
        let in_a_minute = count(settings.per_minute).saturating_sub(lately.len());
        if in_a_minute == 0
            && let Some(first) = lately.iter().min()
        {
            decision.wake(*first + MINUTE);
        }
        Self { left: count(settings.at_once).saturating_sub(under_way).min(in_a_minute) }
    }
}

/// Whether its slot is on its way to another node: from when that was decided until its process is asked to stop.
fn is_moving(task: &Task) -> bool {
    let leaves = matches!(task.stop, None | Some(StopReason::Rebalanced));
    leaves && task.bound_for().is_some() && !task.is_over() && !task.is_let_go()
}

/// Begins what may begin of the moves that somebody agreed to.
fn carry_on(world: &World, run: &RebalanceRun, now: Timestamp, budget: &mut Budget, decision: &mut Decision) {
    let mut after = run.clone();
    let mut busy: BTreeSet<ServiceKey> =
        world.relocated().filter(|task| is_moving(task)).map(|task| task.service.clone()).collect();
    for one in &mut after.moves {
        let task = world.task(one.task);
        match one.state {
            MoveState::Done | MoveState::Dropped { .. } => {}
            MoveState::Begun => one.state = came_of(task.map(|task| &**task)),
            MoveState::Planned => {
                let why = match (&run.cancelled, task) {
                    (Some(by), _) => Some(format!("{by} does not want it any more")),
                    (None, None) => Some("the task is gone".to_owned()),
                    (None, Some(task)) => cannot_begin(world, task, one, busy.contains(&one.service), now),
                };
                if let Some(why) = why {
                    one.state = MoveState::Dropped { why };
                } else if budget.left > 0 && !busy.contains(&one.service) {
                    budget.left -= 1;
                    busy.insert(one.service.clone());
                    one.state = MoveState::Begun;
                    let relocation = Relocation { to: one.to, at: now, why: one.why.clone(), given_up: None };
                    decision.changes.push(Change::MoveTask { task: one.task, relocation });
                }
            }
        }
    }
    if after.moves.iter().all(|one| one.state.is_over()) {
        after.ended_at = Some(now);
    }
    if after != *run {
        decision.changes.push(Change::PutRebalanceRun(after));
    }
}

/// How far a move is that has begun.
fn came_of(task: Option<&Task>) -> MoveState {
    let dropped = |why: String| MoveState::Dropped { why };
    // Forgotten: that happens to what has been over for long.
    let Some(task) = task else { return MoveState::Done };
    let given_up = task.relocation.as_ref().and_then(|relocation| relocation.given_up.clone());
    match (task.stop, given_up) {
        (Some(StopReason::Rebalanced), _) if task.is_let_go() || task.is_over() => MoveState::Done,
        (Some(StopReason::Rebalanced), _) => MoveState::Begun,
        (_, Some(why)) => dropped(why),
        (Some(why), None) => dropped(format!("it was stopped meanwhile: {why}")),
        (None, None) if task.is_over() => dropped(format!("it ended meanwhile ({})", task.status.phase)),
        (None, None) => MoveState::Begun,
    }
}

/// Why a move that was agreed to is not made after all; nothing if it only waits for its turn.
fn cannot_begin(world: &World, task: &Task, one: &RunMove, busy: bool, now: Timestamp) -> Option<String> {
    if let Some(why) = task.stop {
        return Some(format!("the task was stopped meanwhile: {why}"));
    }
    if task.node != Some(one.from) || task.is_over() {
        return Some("the task is no longer there".to_owned());
    }
    let target = world.node(one.to);
    if !target.is_some_and(|target| place::is_open_at(target, now)) {
        return Some(format!("{} takes no tasks now", world.node_name(one.to)));
    }
    let record = world.service(&one.service)?;
    let stays = Sheet::of(world, record).err()?;
    // Another slot of it that moves is what is waited for.
    (!(busy && stays.passes())).then(|| stays.to_string())
}

/// One service as a plan leaves it.
struct Sheet<'w> {
    revision: &'w ServiceRevision,
    key: Arc<ServiceKey>,
    holding: Holding,
    on: BTreeMap<NodeId, Vec<Arc<Task>>>,
    made: usize,
}
impl<'w> Sheet<'w> {
    /// The tasks of a service that may move.
    ///
    /// # Errors
    /// Why they all stay.
    fn of(world: &'w World, record: &ServiceRecord) -> Result<Self, Stays> {
        let unsettled = |settled: usize, of: u32| Stays::Unsettled {
            settled: u32::try_from(settled).unwrap_or(u32::MAX),
            of,
        };
        let Mode::Replicated { replicas } = record.mode else { return Err(unsettled(0, 0)) };
        let revision = world.revision_of(&record.key, record.generation).ok_or(unsettled(0, replicas))?;
        lasting(world, record, revision)?;
        let unfinished = world.tasks_of(&record.key).filter(|task| !task.is_over() && !task.is_let_go());
        let mut slots = BTreeMap::<Slot, Vec<&Arc<Task>>>::new();
        for task in unfinished {
            slots.entry(task.slot).or_default().push(task);
        }
        let settled = |tasks: &Vec<&Arc<Task>>| {
            let fine = |task: &&Arc<Task>| task.is_ready() && task.bound_for().is_none();
            tasks.len() == 1 && tasks.iter().all(fine)
        };
        let count = slots.values().filter(|tasks| settled(tasks)).count();
        if count != slots.len() || u32::try_from(count) != Ok(replicas) {
            return Err(unsettled(count, replicas));
        }
        let mut on = BTreeMap::<NodeId, Vec<Arc<Task>>>::new();
        for task in slots.into_values().flatten() {
            if let Some(node) = task.node {
                on.entry(node).or_default().push(Arc::clone(task));
            }
        }
        Ok(Self { revision, key: world.interned(&record.key), holding: Holding::of(revision), on, made: 0 })
    }
    fn siblings(&self, node: NodeId) -> u32 {
        self.on.get(&node).map_or(0, |tasks| u32::try_from(tasks.len()).unwrap_or(u32::MAX))
    }
    /// For each label to spread over, the value of each node that has tasks and how many tasks have it.
    fn spread(&self, world: &World, label: &str) -> BTreeMap<String, u32> {
        let mut values = BTreeMap::new();
        for (id, tasks) in &self.on {
            let value = value_of(world, *id, label);
            *values.entry(value).or_default() += u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        }
        values
    }
    const fn is_reserving(&self) -> bool {
        self.holding.cpus.0 > 0 || self.holding.memory.0 > 0
    }
}

fn value_of(world: &World, node: NodeId, label: &str) -> String {
    let value = world.node(node).and_then(|node| place::rules::attribute(node, label));
    value.map(std::borrow::Cow::into_owned).unwrap_or_default()
}

/// What about a service keeps its tasks where they are for good, or for long.
fn lasting(world: &World, record: &ServiceRecord, revision: &ServiceRevision) -> Result<(), Stays> {
    let key = &record.key;
    let state = world.app(&key.app).map_or(RolloutState::Superseded, |app| app.rollout.state);
    match state {
        RolloutState::Done | RolloutState::RolledBack => {}
        RolloutState::Progressing | RolloutState::Failed | RolloutState::Superseded => {
            return Err(Stays::Rollout(state));
        }
    }
    if !record.sets.is_empty() {
        return Err(Stays::Sets);
    }
    if let Some(other) = revision.spec.companions().into_keys().next() {
        return Err(Stays::Shares(other.clone()));
    }
    let shares = |other: &&Arc<ServiceRecord>| {
        let revision = world.revision_of(&other.key, other.generation);
        revision.is_some_and(|revision| revision.spec.companions().contains_key(&key.name))
    };
    if let Some(other) = world.services_of(&key.app).find(shares) {
        return Err(Stays::SharedBy(other.key.name.clone()));
    }
    let volumes = world.release(&key.app, revision.release).map(|release| &release.spec.volumes);
    let is_local =
        |name: &VolumeName| volumes.and_then(|volumes| volumes.get(name)).is_none_or(spec::is_local);
    if let Some((volume, _)) = spec::named_volumes(&revision.spec).find(|(name, _)| is_local(name)) {
        return Err(Stays::Data(volume.clone()));
    }
    let writes = revision.spec.container.mounts.iter().find_map(|mount| match &mount.source {
        MountSource::Bind { path, .. } if !mount.read_only => Some(path),
        MountSource::Bind { .. }
        | MountSource::Volume { .. }
        | MountSource::Anonymous { .. }
        | MountSource::Image { .. }
        | MountSource::Tmpfs { .. } => None,
    });
    if let Some(path) = writes {
        return Err(Stays::Folder(path.clone()));
    }
    match spec::stop_first(&revision.spec, revision.spec.update.order, false) {
        Some(why) => Err(Stays::StopFirst(why)),
        None => Ok(()),
    }
}

/// What a move does to how a service is spread.
enum Effect {
    Better(Gain),
    Same,
    Worse,
}

/// A plan in the making: the cluster as its moves leave it.
struct Planner<'w, 's> {
    world: &'w World,
    scope: &'s RebalanceScope<'s>,
    now: Timestamp,
    /// Pairs that are left alone.
    avoid: BTreeSet<(ServiceKey, NodeId)>,
    places: Places<'w>,
    /// What each node has to do.
    loads: BTreeMap<NodeId, Load>,
    sheets: Vec<Sheet<'w>>,
    /// The tasks that have moved, as they were.
    moved: Vec<Arc<Task>>,
    plan: RebalancePlan,
}

impl<'w, 's> Planner<'w, 's> {
    fn new(
        world: &'w World,
        scope: &'s RebalanceScope<'s>,
        now: Timestamp,
        avoid: BTreeSet<(ServiceKey, NodeId)>,
    ) -> Self {
        let mut planner = Self {
            world,
            scope,
            now,
            avoid,
            places: Places::new(world, now),
            loads: world.nodes().map(|node| (node.record.id, slim(world, node.record.id))).collect(),
            sheets: Vec::new(),
            moved: Vec::new(),
            plan: RebalancePlan::default(),
        };
        planner.plan.before = planner.shares();
        for record in world.services() {
            let gone = world.app(&record.key.app).is_none_or(|app| app.removed);
            let wants = match record.mode {
                Mode::Replicated { replicas } => replicas > 0,
                Mode::Global => false,
            };
            let asked = scope.app.is_none_or(|app| *app == record.key.app);
            if !asked || gone || record.removed || record.stopped || !wants {
                continue;
            }
            match Sheet::of(world, record) {
                Ok(sheet) => planner.sheets.push(sheet),
                Err(why) => planner.plan.stays.push((record.key.clone(), why)),
            }
        }
        planner
    }

    fn plan(mut self) -> RebalancePlan {
        for index in 0..self.sheets.len() {
            while self.goes_on(index) && self.spread_better(index) {}
        }
        while self.plan.moves.len() < self.scope.most && self.even_out() {}
        self.plan.more = self.plan.moves.len() >= self.scope.most;
        self.plan.after = self.shares();
        self.plan
    }

    fn goes_on(&self, index: usize) -> bool {
        self.plan.moves.len() < self.scope.most
            && self.sheets.get(index).is_some_and(|sheet| sheet.made < self.scope.of_each)
    }
    fn shares(&self) -> Vec<Share> {
        let share = |node: &Node| Share {
            node: node.record.id,
            name: node.record.name.to_string(),
            tasks: self.tasks(node.record.id),
            reserved: self.reserved(node.record.id),
        };
        self.world.nodes().map(share).collect()
    }
    fn tasks(&self, node: NodeId) -> u32 {
        self.loads.get(&node).map_or(0, |load| load.tasks)
    }
    fn reserved(&self, node: NodeId) -> u64 {
        self.reserved_with(node, |_| {})
    }
    /// What is reserved of a node with another load than it has.
    fn reserved_with(&self, node: NodeId, change: impl FnOnce(&mut Load)) -> u64 {
        let (Some(node), Some(load)) = (self.world.node(node), self.loads.get(&node)) else { return 0 };
        let mut load = load.clone();
        change(&mut load);
        place::reserved_share(node, &load)
    }
    fn targets(&self, sheet: &Sheet<'_>) -> Vec<NodeId> {
        let demand = Demand::of(self.world, sheet.revision);
        let nodes = self.world.nodes().filter(|node| {
            let id = node.record.id;
            place::is_open_at(node, self.now)
                && self.scope.toward.is_none_or(|toward| toward.contains(&id))
                && !self.avoid.contains(&(sheet.revision.key.clone(), id))
                && place::belongs(node, &demand)
        });
        nodes.map(|node| node.record.id).collect()
    }
    /// The tasks of a service on a node that may still move, the highest slot last.
    fn movable<'t>(&self, sheet: &'t Sheet<'_>, node: NodeId) -> Option<&'t Arc<Task>> {
        let moved = |task: &&Arc<Task>| !self.moved.iter().any(|other| other.id == task.id);
        let ready = self.world.node(node).is_some_and(|node| node.state() == NodeState::Ready);
        sheet.on.get(&node)?.iter().filter(|_| ready).rfind(moved)
    }

    /// Finds a move by which one service is better spread, and makes it.
    fn spread_better(&mut self, index: usize) -> bool {
        let found = {
            let Some(sheet) = self.sheets.get(index) else { return false };
            let labels = &sheet.revision.spec.placement.spread;
            let counts: Vec<_> =
                labels.iter().map(|label| (label, sheet.spread(self.world, label))).collect();
            let crowd = |node: &NodeId| {
                let zones = counts.iter().map(|(label, values)| {
                    values.get(&value_of(self.world, *node, label)).copied().unwrap_or(0)
                });
                (zones.collect::<Vec<_>>(), sheet.siblings(*node), self.reserved(*node), self.tasks(*node))
            };
            let mut sources: Vec<_> = sheet.on.keys().copied().collect();
            sources.sort_by_cached_key(|node| Reverse(crowd(node)));
            let mut targets = self.targets(sheet);
            targets.sort_by_cached_key(&crowd);
            let pairs = sources.iter().flat_map(|from| targets.iter().map(move |to| (*from, *to)));
            let mut pairs = pairs.filter(|(from, to)| from != to).take(TRIES);
            pairs.find_map(|(from, to)| {
                let Effect::Better(gain) = self.effect(sheet, &counts, from, to) else { return None };
                let task = self.movable(sheet, from)?;
                self.suits(sheet, task, from, to).then(|| (Arc::clone(task), to, gain))
            })
        };
        let Some((task, to, gain)) = found else { return false };
        self.make(index, &task, to, gain);
        true
    }

    fn effect(
        &self,
        sheet: &Sheet<'_>,
        counts: &[(&String, BTreeMap<String, u32>)],
        from: NodeId,
        to: NodeId,
    ) -> Effect {
        for (label, values) in counts {
            let (here, there) = (value_of(self.world, from, label), value_of(self.world, to, label));
            if here == there {
                continue;
            }
            let count = |value: &String| values.get(value).copied().unwrap_or(0);
            let (many, few) = (count(&here), count(&there));
            match many.cmp(&(few + 1)) {
                std::cmp::Ordering::Greater => {
                    let label = (*label).clone();
                    return Effect::Better(Gain::Spread { label, from: (here, many), to: (there, few) });
                }
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Less => return Effect::Worse,
            }
        }
        let (many, few) = (sheet.siblings(from), sheet.siblings(to));
        match many.cmp(&(few + 1)) {
            std::cmp::Ordering::Greater => Effect::Better(Gain::Siblings { from: many, to: few }),
            std::cmp::Ordering::Equal => Effect::Same,
            std::cmp::Ordering::Less => Effect::Worse,
        }
    }

    /// Finds a move that leaves every service as well spread as it is and takes from a node that has more, and makes it.
    fn even_out(&mut self) -> bool {
        let found = self.evening_move();
        let Some((index, task, to, gain)) = found else { return false };
        self.make(index, &task, to, gain);
        true
    }
    fn evening_move(&self) -> Option<(usize, Arc<Task>, NodeId, Gain)> {
        let fullness = |node: &NodeId| (self.reserved(*node), self.tasks(*node));
        let mut nodes: Vec<NodeId> = self.loads.keys().copied().collect();
        nodes.sort_by_cached_key(&fullness);
        let target = |node: &&NodeId| {
            self.world.node(**node).is_some_and(|node| place::is_open_at(node, self.now))
                && self.scope.toward.is_none_or(|toward| toward.contains(*node))
        };
        let (mut looks, mut tries) = (LOOKS, TRIES);
        for from in nodes.iter().rev() {
            let mut here: Vec<_> =
                self.sheets.iter().enumerate().filter(|(_, sheet)| sheet.on.contains_key(from)).collect();
            here.retain(|(_, sheet)| sheet.made < self.scope.of_each);
            // What holds most evens out most.
            here.sort_by_key(|(_, sheet)| Reverse((sheet.holding.memory, sheet.holding.cpus)));
            for to in nodes.iter().filter(target).filter(|to| *to != from) {
                for (index, sheet) in &here {
                    looks = looks.checked_sub(1)?;
                    let Some(gain) = self.evens(sheet, *from, *to) else { continue };
                    if self.avoid.contains(&(sheet.revision.key.clone(), *to)) {
                        continue;
                    }
                    let labels = &sheet.revision.spec.placement.spread;
                    let counts: Vec<_> =
                        labels.iter().map(|label| (label, sheet.spread(self.world, label))).collect();
                    let Effect::Same = self.effect(sheet, &counts, *from, *to) else { continue };
                    let Some(task) = self.movable(sheet, *from) else { continue };
                    tries = tries.checked_sub(1)?;
                    if self.suits(sheet, task, *from, *to) {
                        return Some((*index, Arc::clone(task), *to, gain));
                    }
                }
            }
        }
        None
    }
    /// What two nodes gain by a task of a service going from one to the other, as far as how full they are goes.
    fn evens(&self, sheet: &Sheet<'_>, from: NodeId, to: NodeId) -> Option<Gain> {
        let key = &sheet.key;
        if sheet.is_reserving() {
            let before = self.reserved(from);
            let left = self.reserved_with(from, |load| load.subtract(key, &sheet.holding));
            let then = self.reserved_with(to, |load| load.add(key, &sheet.holding));
            let better = left < before && then + MARGIN <= before;
            return better.then(|| Gain::Reserved { from: before, to: self.reserved(to) });
        }
        let (many, few) = (self.tasks(from), self.tasks(to));
        // With many tasks a difference of a few is none.
        let margin = (many / 10).max(2);
        (many >= few + margin).then_some(Gain::Tasks { from: many, to: few })
    }

    /// Whether placement would rather have the task on the target, with what has moved before.
    fn suits(&self, sheet: &Sheet<'_>, task: &Arc<Task>, from: NodeId, to: NodeId) -> bool {
        // That its image is where it is now is no reason to stay there.
        let anywhere = Image::named(String::new());
        let mut demand = Demand::of(self.world, sheet.revision);
        demand.image = &anywhere;
        demand.now = self.now;
        // Where it is from is one of the two for comparison only.
        demand.pin = Some(Pin { nodes: vec![to, from], by: PinnedBy::Global });
        demand.instead_of = self.moved.iter().chain([task]).map(|task| &**task).collect();
        self.places.find(&demand) == Ok(to)
    }

    fn make(&mut self, index: usize, task: &Arc<Task>, to: NodeId, gain: Gain) {
        let (Some(sheet), Some(from)) = (self.sheets.get_mut(index), task.node) else { return };
        let key = &sheet.key;
        if let Some(tasks) = sheet.on.get_mut(&from) {
            tasks.retain(|other| other.id != task.id);
            if tasks.is_empty() {
                sheet.on.remove(&from);
            }
        }
        sheet.on.entry(to).or_default().push(Arc::clone(task));
        sheet.made += 1;
        if let Some(load) = self.loads.get_mut(&from) {
            load.subtract(key, &sheet.holding);
        }
        self.loads.entry(to).or_default().add(key, &sheet.holding);
        self.places.promise(to, key, &sheet.holding);
        self.moved.push(Arc::clone(task));
        let why = gain.sentence(&key.name, &self.world.node_name(from), &self.world.node_name(to));
        self.plan.moves.push(Move {
            task: task.id,
            name: task.name(),
            service: ServiceKey::clone(key),
            from,
            to,
            gain,
            why,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_model::{
        Availability, Bytes, Constraint, Cpus, Millis, NodeRecord, NodeStatus, Rebalancing, ServiceSpec,
    };

    use super::*;
    use crate::fixtures::{
        Cluster, Script, app, app_key, by, key, node, node_id, published, replicas, service, with_volume,
    };

    /// Another node joins and is ready.
    fn join(cluster: &mut Cluster, n: u8) {
        let Node { record, status } = node(n);
        let at = cluster.now;
        cluster.world.insert_node(NodeRecord { joined_at: at, ..record });
        cluster.world.set_node_status(node_id(n), NodeStatus { since: at, ..status.unwrap() });
    }
    fn on_each(cluster: &Cluster, service: &str) -> Vec<usize> {
        let ready = cluster.ready(service);
        let here = |node: &Node| ready.iter().filter(|task| task.node == Some(node.record.id)).count();
        cluster.world.nodes().map(here).collect()
    }
    /// Both controllers and the nodes go on until none of them has anything to do before `patience` is over.
    fn go_on(cluster: &mut Cluster, patience: Duration, check: &mut dyn FnMut(&Cluster)) {
        let end = cluster.now + patience;
        for _ in 0..5_000 {
            let moves = decide_rebalance(&cluster.world, cluster.now);
            cluster.apply(&moves.changes);
            check(cluster);
            let decision = cluster.pass();
            check(cluster);
            let moved = cluster.step();
            cluster.now = cluster.now + Duration::from_millis(10);
            if moves.changes.is_empty() && decision.changes.is_empty() && !moved {
                match [moves.wake_at, decision.wake_at].into_iter().flatten().min() {
                    Some(at) if at <= end => cluster.now = cluster.now.max(at),
                    _ => return,
                }
            }
        }
        panic!("it does not settle: {:?}", cluster.last);
    }
    fn settled(spec: ServiceSpec, nodes: u8) -> Cluster {
        let mut cluster = Cluster::of(nodes);
        cluster.up(&app(&[("web", spec)]));
        cluster.settle();
        cluster
    }
    fn unfinished(cluster: &Cluster) -> usize {
        cluster.tasks("web").iter().filter(|task| !task.is_over() && !task.is_let_go()).count()
    }

    #[test]
    fn a_joining_node_takes_its_share_one_task_after_the_other() {
        let mut cluster = settled(replicas(service("web"), 6), 2);
        assert_eq!(on_each(&cluster, "web"), [3, 3]);
        join(&mut cluster, 3);
        let joined = cluster.now;
        let mut first = None;
        go_on(&mut cluster, Duration::from_secs(300), &mut |cluster| {
            assert!(cluster.ready("web").len() >= 6, "what serves goes on");
            assert!(unfinished(cluster) <= 7, "one more than wanted at most");
            first = first.or(cluster.world.relocated().next().map(|_| cluster.now));
        });
        assert_eq!(on_each(&cluster, "web"), [2, 2, 2]);
        assert!(first.unwrap().since(joined) >= Duration::from_secs(30), "a node is ready for a while first");
        let moved = cluster.ready("web").into_iter().filter(|task| task.moved_from.is_some()).count();
        assert_eq!(moved, 2, "no more than its share");
    }

    #[test]
    fn nothing_moves_by_itself_if_that_is_off_and_only_to_new_nodes_otherwise() {
        let mut cluster = settled(replicas(service("web"), 6), 2);
        join(&mut cluster, 3);
        cluster.world.rebalancing.automatic = AutomaticRebalancing::Off;
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        assert_eq!(on_each(&cluster, "web"), [3, 3, 0]);
        cluster.now = cluster.now + NEW_FOR;
        cluster.world.rebalancing.automatic = AutomaticRebalancing::Joining;
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        assert_eq!(on_each(&cluster, "web"), [3, 3, 0], "it is no longer new");
        cluster.world.rebalancing.automatic = AutomaticRebalancing::Always;
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        assert_eq!(on_each(&cluster, "web"), [2, 2, 2]);
    }

    #[test]
    fn the_budget_is_kept() {
        let mut cluster = Cluster::of(1);
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        cluster.up(&app(&names.map(|name| (name, service(name)))));
        cluster.settle();
        join(&mut cluster, 2);
        cluster.world.rebalancing = Rebalancing { at_once: 2, per_minute: 3, ..Rebalancing::default() };
        let mut most = 0;
        go_on(&mut cluster, Duration::from_secs(300), &mut |cluster| {
            most = most.max(cluster.world.relocated().filter(|task| is_moving(task)).count());
            let begun: Vec<_> =
                cluster.world.relocated().filter_map(|task| Some(task.relocation.as_ref()?.at)).collect();
            for at in &begun {
                let within = begun.iter().filter(|other| other.0.abs_diff(at.0) < 60_000 && **other >= *at);
                assert!(within.count() <= 3, "more than three in a minute: {begun:?}");
            }
        });
        assert_eq!(most, 2);
        let on: Vec<_> = cluster.world.nodes().map(|node| cluster.world.load(node.record.id).tasks).collect();
        assert_eq!(on, [4, 4]);
    }

    #[test]
    fn what_would_be_interrupted_or_lose_data_stays_and_says_why() {
        let mut cluster = Cluster::of(1);
        let fixed = {
            let mut spec = service("fixed");
            let network = spec.networks.get_mut(&"default".parse().unwrap()).unwrap();
            network.ipv4_address = Some("10.192.0.77".parse().unwrap());
            spec
        };
        let folder = {
            let mut spec = service("folder");
            let source = MountSource::Bind {
                path: "/srv".into(),
                create: false,
                propagation: None,
                selinux: None,
                recursive: Default::default(),
            };
            spec.container.mounts.push(wharf_model::MountSpec {
                source,
                target: "/srv".into(),
                read_only: false,
            });
            spec
        };
        let mut spec = app(&[
            ("db", with_volume(service("db"), "data")),
            ("fixed", fixed),
            ("folder", folder),
            ("web", published(service("web"), 80, wharf_model::PublishMode::Host)),
        ]);
        let default = spec.networks.get_mut(&"default".parse().unwrap()).unwrap();
        default.subnet = Some("10.192.0.0/24".parse().unwrap());
        cluster.up(&spec);
        cluster.settle();
        join(&mut cluster, 2);
        let plan = plan_rebalance(&cluster.world, &RebalanceScope::default(), cluster.now);
        let stays: Vec<_> = plan.stays.iter().map(|(key, why)| format!("{}: {why}", key.name)).collect();
        insta::assert_snapshot!(stays.join("\n"), @r"
        db: the data of its volume data is on its nodes
        fixed: it would be interrupted: two tasks cannot have the address 10.192.0.77
        folder: it writes to the folder /srv of its nodes
        ");
        // A port of a node is another node's affair.
        let moves: Vec<_> = plan.moves.iter().map(|one| format!("{}: {}", one.name, one.why)).collect();
        assert_eq!(moves, ["shop-web-1: n1 has 4 tasks and n2 has 0"]);
    }

    #[test]
    fn a_move_that_does_not_get_through_is_given_up_and_not_tried_again_soon() {
        let mut cluster = settled(replicas(service("web"), 6), 2);
        cluster.scripts.insert("web:1".into(), Script::Refuse);
        join(&mut cluster, 3);
        go_on(&mut cluster, Duration::from_secs(3000), &mut |cluster| {
            assert_eq!(cluster.ready("web").len(), 6, "what serves is left alone");
        });
        let given_up: Vec<_> =
            cluster.world.relocated().filter_map(|task| task.relocation.as_ref()?.given_up.clone()).collect();
        assert_eq!(given_up, ["its new task on n3 ended: no such image"]);
        assert_eq!((on_each(&cluster, "web"), unfinished(&cluster)), (vec![3, 3, 0], 6));
    }

    #[test]
    fn a_target_that_is_drained_meanwhile_ends_the_move_and_fills_no_slot_a_third_time() {
        let mut cluster = settled(replicas(service("web"), 2), 2);
        join(&mut cluster, 3);
        let moved = cluster.ready("web").into_iter().find(|task| task.node == Some(node_id(1))).unwrap();
        let relocation =
            Relocation { to: node_id(3), at: cluster.now, why: "somebody wants it".into(), given_up: None };
        cluster.apply(&[Change::MoveTask { task: moved.id, relocation }]);
        let begun = cluster.pass();
        cluster.apply(&begun.changes);
        let of_slot = |cluster: &Cluster| {
            let tasks =
                cluster.tasks("web").into_iter().filter(|task| task.slot == moved.slot && !task.is_over());
            tasks.map(|task| (task.node, task.stop.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(of_slot(&cluster), [(Some(node_id(1)), false), (Some(node_id(3)), false)]);

        cluster.set_availability(3, Availability::Drain);
        let decision = cluster.pass();
        cluster.apply(&decision.changes);
        assert_eq!(
            of_slot(&cluster),
            [(Some(node_id(1)), false), (Some(node_id(3)), true)],
            "it stays where it is"
        );
        let given_up: Vec<_> =
            cluster.world.relocated().filter_map(|task| task.relocation.as_ref()?.given_up.clone()).collect();
        assert_eq!(given_up, ["n3 is to have no tasks"]);
    }

    #[test]
    fn a_target_that_goes_meanwhile_ends_the_move() {
        let mut cluster = settled(replicas(service("web"), 2), 1);
        join(&mut cluster, 2);
        cluster.scripts.insert("web:1".into(), Script::Refuse);
        cluster.now = cluster.now + Duration::from_secs(31);
        let decision = decide_rebalance(&cluster.world, cluster.now);
        cluster.apply(&decision.changes);
        let _ = cluster.pass();
        assert_eq!(unfinished(&cluster), 3);
        cluster.set_availability(2, Availability::Drain);
        go_on(&mut cluster, Duration::from_secs(60), &mut |cluster| {
            assert_eq!(cluster.ready("web").len(), 2);
        });
        assert_eq!((on_each(&cluster, "web"), unfinished(&cluster)), (vec![2, 0], 2));
    }

    #[test]
    fn what_somebody_agreed_to_is_carried_out_and_can_be_cancelled() {
        let mut cluster = settled(replicas(service("web"), 6), 2);
        cluster.world.rebalancing.automatic = AutomaticRebalancing::Off;
        join(&mut cluster, 3);
        let plan = plan_rebalance(&cluster.world, &RebalanceScope::default(), cluster.now);
        assert_eq!(plan.moves.len(), 2);
        insta::assert_snapshot!(plan.moves[0].why, @"n1 has 3 tasks of web and n3 has 0");
        let (before, after): (Vec<_>, Vec<_>) = (
            plan.before.iter().map(|share| share.tasks).collect(),
            plan.after.iter().map(|share| share.tasks).collect(),
        );
        assert_eq!((before, after), (vec![3, 3, 0], vec![2, 2, 2]));
        let run = begin_rebalance(&plan, 1, &by(), cluster.now);
        cluster.apply(&[Change::PutRebalanceRun(run.clone())]);
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        let ended = cluster.world.rebalance_run().unwrap();
        assert_eq!((ended.is_over(), ended.outcome()), (true, (2, 0)), "{ended:?}");
        assert_eq!(on_each(&cluster, "web"), [2, 2, 2]);

        let mut cluster = settled(replicas(service("web"), 6), 2);
        cluster.world.rebalancing.automatic = AutomaticRebalancing::Off;
        join(&mut cluster, 3);
        cluster.apply(&[Change::PutRebalanceRun(run_of(&cluster))]);
        let decision = decide_rebalance(&cluster.world, cluster.now);
        cluster.apply(&decision.changes);
        let run = RebalanceRun::clone(cluster.world.rebalance_run().unwrap());
        cluster.apply(&[Change::PutRebalanceRun(RebalanceRun { cancelled: Some(by()), ..run })]);
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        let ended = cluster.world.rebalance_run().unwrap();
        assert_eq!(ended.outcome(), (1, 1), "what had begun is finished: {ended:?}");
        assert_eq!(on_each(&cluster, "web").iter().sum::<usize>(), 6);
    }
    fn run_of(cluster: &Cluster) -> RebalanceRun {
        begin_rebalance(
            &plan_rebalance(&cluster.world, &RebalanceScope::default(), cluster.now),
            1,
            &by(),
            cluster.now,
        )
    }

    #[test]
    fn a_release_takes_the_place_of_what_moves() {
        let mut cluster = settled(replicas(service("web"), 6), 2);
        join(&mut cluster, 3);
        cluster.apply(&[Change::PutRebalanceRun(run_of(&cluster))]);
        let decision = decide_rebalance(&cluster.world, cluster.now);
        cluster.apply(&decision.changes);
        let _ = cluster.pass();
        cluster.up(&app(&[("web", replicas(service("web2"), 6))]));
        go_on(&mut cluster, Duration::from_secs(300), &mut |_| {});
        assert_eq!(cluster.rollout().state, RolloutState::Done);
        assert_eq!(unfinished(&cluster), 6);
        let run = cluster.world.rebalance_run().unwrap();
        assert!(run.is_over(), "{run:?}");
    }

    // --- whatever the cluster looks like ---

    #[derive(Debug, Clone)]
    struct Drawn {
        replicas: u32,
        cpus: u64,
        memory: u64,
        spread: bool,
        most: u32,
        only_ssd: bool,
        volume: bool,
    }
    fn drawn() -> impl Strategy<Value = Drawn> {
        (
            1u32..8,
            0u64..3,
            0u64..3,
            any::<bool>(),
            0u32..4,
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.1),
        )
            .prop_map(|(replicas, cpus, memory, spread, most, only_ssd, volume)| Drawn {
                replicas,
                cpus: cpus * 250,
                memory: memory << 28,
                spread,
                most,
                only_ssd,
                volume,
            })
    }
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    fn spec_of(n: usize, drawn: &Drawn) -> ServiceSpec {
        let mut spec = replicas(service(NAMES[n]), drawn.replicas);
        spec.resources.reservations.cpus = Some(Cpus(drawn.cpus)).filter(|cpus| cpus.0 > 0);
        spec.resources.reservations.memory = Some(Bytes(drawn.memory)).filter(|memory| memory.0 > 0);
        if drawn.spread {
            spec.placement.spread = vec!["node.labels.zone".into()];
        }
        spec.placement.max_replicas_per_node = Some(drawn.most).filter(|most| *most > 0);
        if drawn.only_ssd {
            spec.placement.constraints =
                vec![Constraint { key: "node.labels.disk".into(), equal: true, value: "ssd".into() }];
        }
        if drawn.volume { with_volume(spec, &format!("{}_data", NAMES[n])) } else { spec }
    }
    /// Lower is more even: every move has to make it lower.
    fn unevenness(world: &World) -> (u64, u64, Vec<u64>, Vec<u32>) {
        let (mut zones, mut siblings) = (0, 0);
        for record in world.services() {
            let revision = world.revision_of(&record.key, record.generation).unwrap();
            let living = world.tasks_of(&record.key).filter(|task| !task.is_over());
            let nodes: Vec<_> = living.filter_map(|task| task.node).collect();
            let squares = |values: Vec<String>| -> u64 {
                let mut counts = BTreeMap::<String, u64>::new();
                values.into_iter().for_each(|value| *counts.entry(value).or_default() += 1);
                counts.values().map(|count| count * count).sum()
            };
            siblings += squares(nodes.iter().map(ToString::to_string).collect());
            for label in &revision.spec.placement.spread {
                zones += squares(nodes.iter().map(|node| value_of(world, *node, label)).collect());
            }
        }
        let mut reserved: Vec<_> =
            world.nodes().map(|node| place::reserved_share(node, &world.load(node.record.id))).collect();
        let mut tasks: Vec<_> = world.nodes().map(|node| world.load(node.record.id).tasks).collect();
        reserved.sort_by_key(|share| Reverse(*share));
        tasks.sort_by_key(|count| Reverse(*count));
        (zones, siblings, reserved, tasks)
    }
    fn has_moved(world: &mut World, one: &Move) {
        let task = Task::clone(world.task(one.task).unwrap());
        assert_eq!(task.node, Some(one.from));
        world.insert_task(Task { node: Some(one.to), ..task });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Moves make the cluster more even, step by step, break no rule, and come to an end.
        #[test]
        fn moves_converge_and_stop(
            services in prop::collection::vec(drawn(), 1..5),
            zones in prop::collection::vec((0u8..3, any::<bool>(), 1u64..9), 2..7),
            away in prop::collection::vec(any::<bool>(), 7),
        ) {
            let count = u8::try_from(zones.len()).unwrap();
            let mut cluster = Cluster::of(count);
            for (n, (zone, ssd, cpus)) in (1..).zip(&zones) {
                let node = cluster.world.node(node_id(n)).unwrap().clone();
                let mut record = node.record;
                record.labels.insert("zone".into(), zone.to_string());
                record.labels.extend(ssd.then(|| ("disk".into(), "ssd".into())));
                // Some come only later; the first is always there.
                if n > 1 && away[usize::from(n)] {
                    record.availability = Availability::Pause;
                }
                cluster.world.insert_node(record);
                let mut status = node.status.unwrap();
                let facts = status.facts.as_mut().unwrap();
                (facts.cpus, facts.memory) = (Cpus(cpus * 1000), Bytes(cpus << 31));
                cluster.world.set_node_status(node_id(n), status);
            }
            let specs: Vec<_> = services.iter().enumerate().map(|(n, drawn)| (NAMES[n], spec_of(n, drawn))).collect();
            cluster.up(&app(&specs));
            cluster.go_on_for(Duration::from_secs(3), &mut |_| {});
            // What found no place keeps the rollout from its end, and what is under way is left alone: such services are scaled to what runs.
            for (name, _) in &specs {
                let ready = u32::try_from(cluster.ready(name).len()).unwrap();
                let mut record = ServiceRecord::clone(cluster.world.service(&key(name)).unwrap());
                record.mode = Mode::Replicated { replicas: ready };
                cluster.world.insert_service(record);
                // Slots from 1 on, as many as there are.
                for (slot, task) in (1..).zip(cluster.ready(name)) {
                    cluster.world.insert_task(Task { slot: Slot(slot), ..task });
                }
            }
            let mut record = wharf_model::AppRecord::clone(cluster.world.app(&app_key()).unwrap());
            record.rollout.state = RolloutState::Done;
            cluster.world.insert_app(record);
            for n in 1..=count {
                cluster.set_availability(n, Availability::Active);
            }

            let mut rounds = 0;
            loop {
                let plan = plan_rebalance(&cluster.world, &RebalanceScope::default(), cluster.now);
                prop_assert!(!plan.more);
                if plan.moves.is_empty() {
                    break;
                }
                for one in &plan.moves {
                    let before = unevenness(&cluster.world);
                    let target = cluster.world.node(one.to).unwrap().clone();
                    let revision = cluster.world.revision_of(&one.service, cluster.world.service(&one.service).unwrap().generation).unwrap().clone();
                    prop_assert!(place::belongs(&target, &Demand::of(&cluster.world, &revision)), "{} may not be on {}", one.name, target.record.name);
                    has_moved(&mut cluster.world, one);
                    let after = unevenness(&cluster.world);
                    prop_assert!(after < before, "{}: {before:?} -> {after:?}", one.why);
                    let load = cluster.world.load(one.to);
                    let facts = target.facts().unwrap();
                    prop_assert!(load.cpus <= facts.cpus && load.memory <= facts.memory);
                    if let Some(most) = revision.spec.placement.max_replicas_per_node {
                        prop_assert!(load.services[&one.service] <= most);
                    }
                }
                let after: Vec<_> = plan.after.iter().map(|share| share.tasks).collect();
                let found: Vec<_> = cluster.world.nodes().map(|node| cluster.world.load(node.record.id).tasks).collect();
                prop_assert_eq!(after, found, "a plan says what comes of it");
                rounds += 1;
                prop_assert!(rounds < 50, "still moving: {:?}", plan.moves);
            }
        }

        /// With real passes: the wanted number serves at every step, no service has more than one task too many, and it ends.
        #[test]
        fn nothing_is_interrupted_by_moves(
            services in prop::collection::vec(drawn(), 1..4),
            nodes in 1u8..3,
            joining in 1u8..3,
            steady in 0u64..60,
        ) {
            let mut cluster = Cluster::of(nodes);
            cluster.world.rebalancing.steady = Millis::from_secs(steady);
            let specs: Vec<_> = services
                .iter()
                .enumerate()
                .map(|(n, drawn)| (NAMES[n], spec_of(n, &Drawn { only_ssd: false, most: 0, ..drawn.clone() })))
                .collect();
            cluster.up(&app(&specs));
            cluster.settle();
            let wanted = specs.iter().zip(&services).map(|((name, _), drawn)| {
                (*name, (cluster.ready(name).len(), usize::try_from(drawn.replicas).unwrap()))
            });
            let wanted: BTreeMap<_, _> = wanted.collect();
            for n in nodes + 1..=nodes + joining {
                join(&mut cluster, n);
            }
            go_on(&mut cluster, Duration::from_secs(3000), &mut |cluster| {
                for (name, (served, wanted)) in &wanted {
                    let tasks = cluster.tasks(name);
                    let there = tasks.iter().filter(|task| !task.is_over() && !task.is_let_go()).count();
                    assert!(cluster.ready(name).len() >= *served, "{name} is interrupted");
                    assert!(there <= *wanted + 1, "{name} has too many");
                }
            });
            let left = decide_rebalance(&cluster.world, cluster.now);
            prop_assert!(left.changes.is_empty());
        }
    }
}
