//! One pass over one app: what it reads, and what it has decided so far.
//!
//! Decisions are noted in `out` and in the drafts at once, so that what is decided later in the pass sees what was decided before
//! it. The world itself is never touched: a pass that is thrown away has no effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use wharf_model::{
    AppKey, AppRecord, Availability, Generation, NetworkId, NetworkRecord, NodeId, NodeState, Phase,
    PlacementStrategy, Release, Relocation, RolloutState, ServiceKey, ServiceName, ServiceRecord,
    ServiceRevision, Slot, SlotOf, StopReason, Task, TaskId, Timestamp, VolumeId, VolumeRecord,
};

use crate::{
    About, Change, Decision, Ids, Reason, Waiting, World, history, hooks,
    network::AddressBook,
    passage::Drain,
    place::{Places, availability_at, mixed},
    rollout, spec, strategy, tasks,
};

/// Times further ahead than this are of a clock that was set back since.
const CLOCK_STEP: Duration = Duration::from_secs(60);

/// Decides everything about one app: its networks, volumes, tasks, rollout, and what can be forgotten of it.
///
/// Whoever commits the answer applies its changes to the world (or waits for the watch) before deciding another app,
/// because apps share nodes and addresses.
pub fn decide(world: &World, app: &AppKey, now: Timestamp, ids: &mut dyn Ids) -> Decision {
    let Some(app) = world.app(app) else { return Decision::default() };
    let mut pass = Pass::new(world, app, now, ids);
    pass.lose_tasks();
    pass.let_go();
    pass.ensure_networks();
    pass.ensure_vips();
    pass.ensure_volumes();
    hooks::tidy(&mut pass);
    pass.draw_seed();
    let standings = tasks::decide(&mut pass);
    rollout::decide(&mut pass, &standings);
    pass.note_outcome();
    pass.forget();
    if let Some(edge) = world.next_window_edge(now) {
        pass.out.wake(edge);
    }
    pass.finish()
}

/// A service of the app, with the revision its tasks should follow.
#[derive(Debug, Clone)]
pub(crate) struct Service<'a> {
    pub(crate) record: &'a ServiceRecord,
    pub(crate) revision: Option<&'a ServiceRevision>,
    /// The generations whose tasks need no replacing: those whose containers are made just as the wanted ones.
    pub(crate) fitting: BTreeSet<Generation>,
    /// The release under way removes it, and it serves until the rest of that is in place.
    pub(crate) goes_last: bool,
    tasks: Whose,
}

/// Which tasks of a service belong to the set that is looked at.
#[derive(Debug, Clone)]
enum Whose {
    /// All but those of these generations, which belong to other sets.
    AllBut(BTreeSet<Generation>),
    /// Only those that need no replacing.
    Fitting,
}
impl<'a> Service<'a> {
    /// One set of a service's tasks that stands beside the one that serves.
    pub(crate) const fn only(
        record: &'a ServiceRecord,
        revision: Option<&'a ServiceRevision>,
        fitting: BTreeSet<Generation>,
    ) -> Self {
        Self { record, revision, fitting, goes_last: false, tasks: Whose::Fitting }
    }
}
impl Service<'_> {
    /// Whether a task of the service belongs to this set of it.
    pub(crate) fn owns(&self, task: &Task) -> bool {
        match &self.tasks {
            Whose::AllBut(others) => !others.contains(&task.generation),
            Whose::Fitting => self.fits(task),
        }
    }
    pub(crate) const fn name(&self) -> &ServiceName {
        &self.record.key.name
    }
    pub(crate) fn fits(&self, task: &Task) -> bool {
        self.fitting.contains(&task.generation)
    }
    /// Whether it wants no tasks.
    pub(crate) const fn is_unwanted(&self, app: &AppRecord) -> bool {
        app.removed || self.record.stopped || (self.record.removed && !self.goes_last)
    }
}

/// Notes which services go last: those that a release removes which is not in place yet. They serve until then, since what is to take
/// over their names, routes and ports may not be there. Not those that have something which nobody else could have beside them, and not
/// what depends on such a one.
fn note_last(services: &mut [Service<'_>], app: &AppRecord) {
    let returns = || app.previous.as_ref().is_some_and(|previous| rollout::is_return(app, previous));
    let is_in_place = match app.rollout.state {
        RolloutState::Progressing => false,
        // What it has not replaced is left alone, also what it would have removed.
        RolloutState::Failed => returns(),
        RolloutState::Done | RolloutState::RolledBack | RolloutState::Superseded => true,
    };
    if app.removed || is_in_place {
        return;
    }
    let mut first = BTreeSet::new();
    for service in services.iter_mut().filter(|service| service.record.removed) {
        let goes_first = service.record.stopped
            || service.revision.is_some_and(|revision| {
                let mut dependencies = spec::dependencies(&revision.spec).into_keys();
                spec::stop_first(&revision.spec, None, true).is_some()
                    || dependencies.any(|dependency| first.contains(&dependency))
            });
        service.goes_last = !goes_first;
        if goes_first {
            first.insert(service.name().clone());
        }
    }
}

pub(crate) struct Pass<'a> {
    pub(crate) world: &'a World,
    pub(crate) app: &'a AppRecord,
    pub(crate) release: Option<&'a Release>,
    pub(crate) now: Timestamp,
    ids: &'a mut dyn Ids,
    /// Dependencies before dependents.
    pub(crate) services: Vec<Service<'a>>,
    tasks: BTreeMap<ServiceKey, Vec<Arc<Task>>>,
    /// The tasks that run commands around the app's releases, oldest first.
    hooks: Vec<Arc<Task>>,
    pub(crate) networks: BTreeMap<NetworkId, Arc<NetworkRecord>>,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeRecord>,
    pub(crate) places: Places<'a>,
    /// Who has which address of the networks this pass gives addresses of.
    pub(crate) books: BTreeMap<NetworkId, AddressBook>,
    /// The parts of routed networks in which this pass puts tasks.
    pub(crate) parts: BTreeSet<(NetworkId, Ipv4Net)>,
    /// Tasks that this pass counts lost.
    lost: BTreeSet<TaskId>,
    /// Services as this pass leaves them.
    records: BTreeMap<ServiceKey, ServiceRecord>,
    /// What chance is made of, once something is left to it.
    seed: Option<u64>,
    /// When the newest task of a service was made.
    newest: BTreeMap<ServiceKey, Timestamp>,
    /// Of the service at hand: which dependency its tasks wait for.
    pub(crate) dependencies: Option<(ServiceName, Option<Reason>)>,
    /// Services that nobody can make room for.
    pub(crate) hopeless: BTreeSet<ServiceKey>,
    pub(crate) out: Decision,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(world: &'a World, app: &'a AppRecord, now: Timestamp, ids: &'a mut dyn Ids) -> Self {
        let services: Vec<_> = world.services_of(&app.key).map(|record| service(world, record)).collect();
        let tasks = services.iter().map(|service| {
            let key = &service.record.key;
            (key.clone(), world.tasks_of(key).cloned().collect())
        });
        let tasks = tasks.collect();
        let mut services = spec::in_order(services, |service| {
            let dependencies = service.revision.map(|revision| spec::dependencies(&revision.spec));
            (service.name().clone(), dependencies.unwrap_or_default())
        });
        note_last(&mut services, app);
        Self {
            world,
            app,
            release: world.release(&app.key, app.release).map(|release| &**release),
            now,
            ids,
            tasks,
            hooks: world.hooks_of(&app.key).cloned().collect(),
            services,
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            places: Places::new(world, now),
            seed: None,
            newest: BTreeMap::new(),
            dependencies: None,
            hopeless: BTreeSet::new(),
            books: BTreeMap::new(),
            parts: BTreeSet::new(),
            lost: BTreeSet::new(),
            records: BTreeMap::new(),
            out: Decision::default(),
        }
    }

    /// Draws what chance is made of, if some service leaves its place to it.
    fn draw_seed(&mut self) {
        let by_chance = |service: &Service<'_>| {
            let own = service.revision.and_then(|revision| revision.spec.policy.strategy);
            own.unwrap_or(self.world.placement.strategy) == PlacementStrategy::Random
        };
        if self.services.iter().any(by_chance) {
            let random = self.ids.random();
            self.seed = random.last_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        }
    }
    /// A number that chance can be made of, another one for each slot.
    pub(crate) fn chance(&self, slot: Slot) -> u64 {
        let made = u64::try_from(self.out.changes.len()).unwrap_or(u64::MAX);
        mixed(self.seed.unwrap_or(0) ^ mixed(u64::from(slot.0) ^ (made << 32)))
    }
    /// Whether a node takes work now.
    pub(crate) fn availability(&self, node: &crate::Node) -> Availability {
        availability_at(&node.record, self.now)
    }
    /// Stops a task of any app, so that a slot finds room.
    pub(crate) fn preempt(&mut self, task: &Task, slot: &SlotOf) {
        self.change(Change::PreemptTask { task: task.id, makes_room_for: slot.clone() });
        if task.service.app != self.app.key {
            return;
        }
        self.edit(task, |task| {
            task.stop = Some(StopReason::Preempted);
            task.makes_room_for = Some(slot.clone());
        });
        if !self.world.must_drain(task, StopReason::Preempted) {
            self.drained(task, 0);
        }
    }
    /// The tasks that this pass has decided to stop.
    pub(crate) fn stopped(&self) -> BTreeSet<TaskId> {
        let stopped = self.out.changes.iter().filter_map(|change| match change {
            Change::StopTask { task, .. } | Change::PreemptTask { task, .. } => Some(*task),
            _ => None,
        });
        stopped.collect()
    }

    pub(crate) fn id<K>(&mut self) -> wharf_model::Id<K> {
        wharf_model::Id::from_parts(self.now.0, self.ids.random())
    }
    /// A service's tasks as this pass leaves them, oldest first.
    pub(crate) fn tasks_of(&self, service: &ServiceKey) -> &[Arc<Task>] {
        self.tasks.get(service).map(Vec::as_slice).unwrap_or_default()
    }
    /// Also those that are no replicas.
    pub(crate) fn all_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values().flatten().chain(&self.hooks)
    }
    /// The tasks that run commands around the app's releases as this pass leaves them, oldest first.
    pub(crate) fn hooks(&self) -> &[Arc<Task>] {
        &self.hooks
    }
    /// The tasks among which one is.
    fn kin(&mut self, task: &Task) -> Option<&mut Vec<Arc<Task>>> {
        if task.hook.is_some() { Some(&mut self.hooks) } else { self.tasks.get_mut(&task.service) }
    }
    pub(crate) fn service(&self, name: &ServiceName) -> Option<&Service<'a>> {
        self.services.iter().find(|service| service.name() == name)
    }
    /// A service's record as this pass leaves it.
    pub(crate) fn record(&self, service: &ServiceKey) -> Option<ServiceRecord> {
        let stored = || self.world.service(service).map(|record| ServiceRecord::clone(record));
        self.records.get(service).cloned().or_else(stored)
    }
    pub(crate) fn put_service(&mut self, record: ServiceRecord) {
        self.records.insert(record.key.clone(), record);
    }
    pub(crate) fn state(&self, node: Option<NodeId>) -> Option<NodeState> {
        self.world.node(node?).map(crate::Node::state)
    }
    pub(crate) fn node_name(&self, node: Option<NodeId>) -> String {
        node.map_or_else(|| "no node".to_owned(), |node| self.world.node_name(node))
    }
    /// Whether a task was made at a time that is still to come: the clock was set back, and nobody can say how long ago anything of it was.
    pub(crate) fn is_of_the_future(&self, task: &Task) -> bool {
        task.created_at > self.now + CLOCK_STEP
    }
    /// A moment of a node's clock on ours: node clocks may be wrong, so one that cannot be is replaced by the earliest that can.
    pub(crate) fn moment(&self, task: &Task, at: Option<Timestamp>) -> Timestamp {
        let possible = |at: &Timestamp| *at >= task.created_at && *at <= self.now;
        let since_start = || match (task.status.started_at, at) {
            (Some(started), Some(at)) => (task.created_at + at.since(started)).min(self.now),
            _ => task.created_at,
        };
        at.filter(possible).unwrap_or_else(since_start)
    }

    /// Whether a task of any app is over, with what this pass has decided.
    pub(crate) fn is_over(&self, task: &Task) -> bool {
        task.is_over() || self.lost.contains(&task.id)
    }
    pub(crate) fn wait(&mut self, about: About, reason: Reason) {
        self.out.waiting.push(Waiting { about, reason });
    }
    pub(crate) fn change(&mut self, change: Change) {
        self.out.changes.push(change);
    }
    pub(crate) fn stop(&mut self, task: &Task, reason: StopReason) {
        if task.stop.is_none() && !task.is_over() {
            self.change(Change::StopTask { task: task.id, reason });
            self.edit(task, |task| task.stop = Some(reason));
            if !self.world.must_drain(task, reason) {
                self.drained(task, 0);
            }
        }
    }
    fn drained(&mut self, task: &Task, under_way: u64) {
        let at = self.now;
        self.change(Change::DrainedTask { task: task.id, at, under_way });
        self.edit(task, |task| task.drained = Some(at));
    }
    /// Where a task's slot is to move, or that it does not after all.
    pub(crate) fn relocate(&mut self, task: &Task, relocation: Relocation) {
        self.change(Change::MoveTask { task: task.id, relocation: relocation.clone() });
        self.edit(task, |task| task.relocation = Some(relocation));
    }
    /// A task as this pass leaves it.
    pub(crate) fn task<'t>(&'t self, task: &'t Task) -> &'t Task {
        let tasks = self.tasks_of(&task.service);
        position(tasks, task.id).map_or(task, |at| &tasks[at])
    }
    fn lose(&mut self, task: &Task, message: String) {
        let at = self.now;
        self.edit(task, |task| {
            task.status.phase = Phase::Lost;
            task.status.message.clone_from(&message);
            task.status.ended_at = Some(at);
        });
        self.lost.insert(task.id);
        self.change(Change::LoseTask { task: task.id, message, at });
    }
    pub(crate) fn forget_task(&mut self, task: &Task) {
        self.change(Change::RemoveTask(task.id));
        if let Some(tasks) = self.kin(task)
            && let Some(at) = position(tasks, task.id)
        {
            tasks.remove(at);
        }
    }
    fn edit(&mut self, task: &Task, edit: impl FnOnce(&mut Task)) {
        if let Some(tasks) = self.kin(task)
            && let Some(at) = position(tasks, task.id)
        {
            edit(Arc::make_mut(&mut tasks[at]));
        }
    }
    /// A new task's id and time: later than every task the service has, whatever the clock says.
    pub(crate) fn new_task(&mut self, service: &ServiceKey) -> (TaskId, Timestamp) {
        let newest = match self.newest.get(service) {
            Some(newest) => Some(*newest),
            None => self.tasks_of(service).iter().chain(&self.hooks).map(|task| task.created_at).max(),
        };
        let after_newest = newest.filter(|newest| *newest >= self.now).map(|newest| Timestamp(newest.0 + 1));
        let at = after_newest.unwrap_or(self.now);
        (TaskId::from_parts(at.0, self.ids.random()), at)
    }
    pub(crate) fn create(&mut self, task: Task) {
        let task = Arc::new(task);
        self.change(Change::CreateTask(Arc::clone(&task)));
        if task.hook.is_some() {
            self.newest.clear();
            return self.hooks.push(task);
        }
        // New ones are never older than what there is.
        match self.newest.get_mut(&task.service) {
            Some(newest) => *newest = task.created_at,
            None => {
                self.newest.insert(task.service.clone(), task.created_at);
            }
        }
        match self.tasks.get_mut(&task.service) {
            Some(tasks) => tasks.push(task),
            None => {
                self.tasks.insert(task.service.clone(), vec![task]);
            }
        }
    }

    /// Tasks whose node is down or gone are over, unless they wait there for their data to come back.
    ///
    /// A task with local data can run nowhere else; its node may return with its container still running, and then nothing
    /// needs to happen at all.
    fn lose_tasks(&mut self) {
        let unfinished: Vec<_> = self.all_tasks().filter(|task| !task.is_over()).cloned().collect();
        for task in unfinished {
            let name = self.node_name(task.node);
            match self.state(task.node) {
                None => self.lose(&task, format!("its node {name} is no longer part of the cluster")),
                Some(NodeState::Down) if task.stop.is_some() || !self.has_local_data(&task) => {
                    let revision = self.world.revision_of(&task.service, task.generation);
                    let fenced = revision.is_some_and(|revision| spec::is_fenced(self.world, revision));
                    let fence = if fenced { ", and its right to run the task there is over" } else { "" };
                    self.lose(&task, format!("its node {name} is down{fence}"));
                }
                Some(NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable)
                    if self.is_missed(&task) =>
                {
                    self.lose(
                        &task,
                        format!("its node {name} is heard neither by other nodes nor by the server"),
                    );
                }
                Some(
                    NodeState::Down
                    | NodeState::Joining
                    | NodeState::Ready
                    | NodeState::EngineDown
                    | NodeState::Unreachable,
                ) => {}
            }
        }
    }
    /// Whether the task's node is missing, and another of it may run beside it: then nobody waits until it is certain that the node is gone.
    fn is_missed(&self, task: &Task) -> bool {
        let missing = task.node.and_then(|node| self.world.node(node)).is_some_and(crate::Node::is_missing);
        // Every unfinished task is asked about in every pass, and hardly ever is one's node missing.
        if !missing || task.slot == Slot(0) || task.hook.is_some() {
            return false;
        }
        let may_run_twice = |revision: &ServiceRevision| {
            !spec::is_fenced(self.world, revision)
                && spec::stop_first(&revision.spec, None, false).is_none()
                && !self.has_local_data(task)
        };
        let revision = self.world.revision_of(&task.service, task.generation);
        revision.is_some_and(|revision| may_run_twice(revision))
    }
    /// Draining tasks to which nothing comes any more are let go.
    fn let_go(&mut self) {
        let draining: Vec<_> = self.all_tasks().filter(|task| task.is_draining()).cloned().collect();
        for task in draining {
            if let Drain::Done(under_way) = self.world.drain(&task, self.now) {
                self.drained(&task, under_way);
            }
        }
    }
    /// Whether the task mounts a named volume whose data is on its node and nowhere else to be had.
    pub(crate) fn has_local_data(&self, task: &Task) -> bool {
        let revision = self.world.revision_of(&task.service, task.generation);
        let global = task.slot == Slot(0);
        !global
            && revision.is_some_and(|revision| {
                spec::named_volumes(&revision.spec).any(|(name, _)| {
                    self.volume(name).is_some_and(|volume| {
                        spec::is_local(&volume.spec)
                            && task.node.is_some_and(|node| volume.nodes.contains(&node))
                    })
                })
            })
    }

    /// Removes what nobody needs: ended tasks beyond the last few, networks without tasks, services and apps without anything.
    fn forget(&mut self) {
        self.forget_tasks();
        self.forget_services();
        self.forget_networks();
        self.forget_volumes();
        self.forget_revisions();
        self.forget_releases();
        let left = |change: &Change| matches!(change, Change::RemoveService(_));
        let services_left = self.services.len() > self.out.changes.iter().filter(|c| left(c)).count();
        let networks = self.world.networks_of(&self.app.key).count();
        let gone = |change: &&Change| matches!(change, Change::RemoveNetwork(_));
        let networks_left = networks > self.out.changes.iter().filter(gone).count();
        let gone = |change: &&Change| matches!(change, Change::RemoveVolume(_));
        let volumes_left = self.app.remove_volumes
            && self.world.volumes_of(&self.app.key).count() > self.out.changes.iter().filter(gone).count();
        let hooks_left = !self.hooks.is_empty();
        if self.app.removed && !services_left && !networks_left && !volumes_left && !hooks_left {
            for release in self.world.releases_of(&self.app.key) {
                self.out.changes.push(Change::RemoveRelease(release.app.clone(), release.number));
            }
            self.out.changes.push(Change::RemoveApp(self.app.key.clone()));
        }
    }
    /// Keeps the last few ended tasks of each slot for people to look at, and for what the next one learns from them.
    fn forget_tasks(&mut self) {
        const KEPT: usize = 5;
        for service in self.services.clone() {
            let gone = self.app.removed || service.record.removed;
            let mut ended = BTreeMap::<_, Vec<Arc<Task>>>::new();
            for task in self.tasks_of(&service.record.key).iter().filter(|task| task.is_over()) {
                let node = task.node.filter(|_| task.slot == Slot(0));
                ended.entry((task.slot, node)).or_default().push(Arc::clone(task));
            }
            let mut forgotten = Vec::new();
            for ((_, node), tasks) in ended {
                let node_gone = node.is_some_and(|node| self.world.node(node).is_none());
                let kept = if gone || node_gone { 0 } else { KEPT };
                forgotten.extend(tasks[..tasks.len().saturating_sub(kept)].iter().map(|task| task.id));
            }
            self.out.changes.extend(forgotten.iter().map(|task| Change::RemoveTask(*task)));
            let forgotten: BTreeSet<TaskId> = forgotten.into_iter().collect();
            if let Some(tasks) = self.tasks.get_mut(&service.record.key) {
                tasks.retain(|task| !forgotten.contains(&task.id));
            }
        }
    }
    fn forget_services(&mut self) {
        for service in self.services.clone() {
            let key = &service.record.key;
            let gone = self.app.removed || service.record.removed;
            if gone && self.tasks_of(key).is_empty() {
                self.change(Change::RemoveService(key.clone()));
            }
        }
    }
    /// Revisions that no task, no service and no way back refers to. Between the oldest that is needed and the newest none is
    /// dropped: whether a restart was asked for in between can only be seen from all of them.
    fn forget_revisions(&mut self) {
        for key in self.world.revised_services(&self.app.key) {
            let back = self.app.previous.as_ref().filter(|_| !self.app.removed);
            let back = back.and_then(|previous| previous.services.iter().find(|record| record.key == *key));
            let removed = self.out.changes.contains(&Change::RemoveService(key.clone()));
            let record = self.world.service(key).filter(|_| !removed);
            let hooks = self.hooks.iter().filter(|task| task.service == *key);
            let tasks = self.tasks_of(key).iter().chain(hooks).map(|task| task.generation);
            let pending = self.app.rollout.pending.iter().flatten().find(|record| record.key == *key);
            let needed = [back, record.map(|record| &**record), pending].into_iter().flatten();
            let needed = needed.flat_map(|record| {
                let sets = record.sets.iter().map(|set| set.generation);
                sets.chain([record.generation])
            });
            let oldest = tasks.chain(needed).min();
            // What belongs to a release later than the app's may have been written just now, by a change whose app comes next.
            let coming =
                |revision: &ServiceRevision| !self.app.removed && revision.release > self.app.release;
            for revision in self.world.revisions_of(key) {
                if oldest.map_or(!coming(revision), |oldest| revision.generation < oldest) {
                    self.out.changes.push(Change::RemoveRevision(key.clone(), revision.generation));
                }
            }
        }
    }

    /// Notes how the rollout ended with the release that it carried out.
    fn note_outcome(&mut self) {
        let decided = self.out.changes.iter().rev().find_map(|change| match change {
            Change::SetRollout { rollout, .. } => Some(rollout),
            Change::PutApp(app) => Some(&app.rollout),
            _ => None,
        });
        let rollout = decided.unwrap_or(&self.app.rollout);
        if let Some(change) = history::ended(self.world, &self.app.key, rollout) {
            self.change(change);
        }
    }
    /// Releases beyond the last few, but for those that something refers to.
    fn forget_releases(&mut self) {
        if self.app.removed {
            return;
        }
        for number in history::forgotten(self.world, self.app) {
            self.change(Change::RemoveRelease(self.app.key.clone(), number));
        }
    }

    /// What was drafted comes first, so that tasks never refer to what is not there.
    fn finish(mut self) -> Decision {
        let mut changes = Vec::new();
        for (id, network) in self.networks {
            if self.world.network(id).is_none_or(|stored| *stored != network) {
                changes.push(Change::PutNetwork(Arc::unwrap_or_clone(network)));
            }
        }
        for (id, volume) in self.volumes {
            if self
                .world
                .volumes_of(&self.app.key)
                .find(|v| v.id == id)
                .is_none_or(|stored| **stored != volume)
            {
                changes.push(Change::PutVolume(volume));
            }
        }
        let gone = |key: &ServiceKey| self.out.changes.contains(&Change::RemoveService(key.clone()));
        for (key, record) in self.records {
            if self.world.service(&key).is_none_or(|stored| **stored != record) && !gone(&key) {
                changes.push(Change::PutService(record));
            }
        }
        changes.append(&mut self.out.changes);
        self.out.changes = changes;
        self.out
    }
}

/// Where a task is among others. Those that were there are in the order of their ids, and new ones follow.
fn position(tasks: &[Arc<Task>], id: TaskId) -> Option<usize> {
    let at = tasks.binary_search_by_key(&id, |task| task.id).ok();
    at.or_else(|| tasks.iter().rposition(|task| task.id == id))
}

fn service<'a>(world: &'a World, record: &'a ServiceRecord) -> Service<'a> {
    let revision = world.revision_of(&record.key, record.generation).map(|revision| &**revision);
    let fitting = strategy::fitting(world, &record.key, record.generation);
    let others = strategy::beside(world, record).into_iter().flat_map(|(_, generations)| generations);
    Service { record, revision, fitting, goes_last: false, tasks: Whose::AllBut(others.collect()) }
}
