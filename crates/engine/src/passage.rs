//! How tasks come into names and routes and go out of them: which nodes have acknowledged that, and what is still under way.
//!
//! - Nothing of it is stored. It is known to the leader, which alone knows what nodes were told; under a new one everything that has not come
//!   to its end is waited for anew.
//! - A task is in once every live node that may lead to it serves names and routes made when it was ready, or later; one that is no longer
//!   wanted is out likewise. Only then is the task whose place it takes asked to stop, and only then does it begin to drain.
//! - Every wait ends: nodes that are away are waited for until their lease ends, connected ones that never say that a task is out for
//!   [`PATIENCE`], names for as long as they may be remembered, and requests for as long as the service says.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::Ipv4Net;
use wharf_model::{
    AppKey, Fallback, NAME_TTL, NetworkMode, NodeId, NodeState, Phase, Revision, RouteSpec, ServiceKey,
    ServiceRevision, StopReason, Task, TaskId, Timestamp, USUAL_DRAIN,
};

use crate::{Node, Serving, Unacknowledged, Version, World, names, spec};

/// For so long connected nodes are waited for that do not say that they have taken a task out of names and routes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Whoever has asked for a name just before it was taken out may come for so long: the answer's life, and a moment to use it.
pub(crate) const REMEMBERED: Duration = Duration::from_millis(NAME_TTL as u64 * 1000 + 500);
/// What is under way with a task that is to be replaced may go on for so long while nothing else serves, unless the file says otherwise: as long
/// as gateways hold what comes meanwhile.
pub(crate) const GAP_DRAIN: Duration = Duration::from_secs(3);
/// Nodes that have nothing to do with a task and lag behind keep it waiting until the next look, and no longer.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// What the leader knows of tasks on their way in and out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passage {
    /// This server leads: nodes' acknowledgements mean something here.
    leads: bool,
    serving: BTreeMap<NodeId, Serving>,
    /// The newest version that each node has acknowledged. Only grows: tables never go back.
    acknowledged: BTreeMap<NodeId, Version>,
    /// How many live nodes have acknowledged each revision and none later: kept because a thousand nodes say so one by one.
    levels: BTreeMap<Revision, usize>,
    /// Every live node has acknowledged this revision.
    everyone: Revision,
    /// What each node's gateways still have under way with tasks that they send nothing new to.
    under_way: BTreeMap<NodeId, BTreeMap<TaskId, u64>>,
    /// Ready tasks that are not known to be in everywhere, and since which revision they are ready.
    entering: BTreeMap<TaskId, Revision>,
    /// Draining tasks.
    leaving: BTreeMap<TaskId, Leaving>,
}

impl Passage {
    /// A live node has acknowledged a later revision.
    fn move_level(&mut self, before: Revision, now: Revision) {
        if let Some(count) = self.levels.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.levels.remove(&before);
            }
        }
        *self.levels.entry(now).or_default() += 1;
    }
}

/// A draining task.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    /// The revision at which it was asked to stop, or a later one.
    since: Revision,
    /// When this was first looked at.
    seen_at: Option<Timestamp>,
    /// When nothing led to it any more.
    out_at: Option<Timestamp>,
}
impl Leaving {
    /// Whether it is still to be found out when nothing led to it any more. What was in the future cannot be: the clock was set back since,
    /// and nobody waits until it has caught up.
    fn is_open(&self, now: Timestamp) -> bool {
        self.out_at.is_none_or(|out_at| out_at > now)
    }
}

/// What a draining task waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Draining {
    /// Nodes that may still lead to it, by name, and why each has not acknowledged. Without any they are being told.
    Led(Vec<(String, Unacknowledged)>),
    /// Whoever has just asked for its name may still come.
    Named {
        /// How much longer.
        left: Duration,
    },
    /// Requests and connections go on.
    UnderWay {
        /// How many.
        requests: u64,
        /// How much longer they may.
        left: Duration,
    },
}

/// What is known of a draining task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainFacts {
    /// Nodes that may still lead to it, by name, and why each has not acknowledged.
    pub led_to_by: Vec<(String, Unacknowledged)>,
    /// Requests and connections under way with it that gateways have told of.
    pub under_way: u64,
    /// Until when they may go on; not known before nothing leads to it.
    pub until: Option<Timestamp>,
}

/// How far a draining task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Its process may be asked to stop. So many requests are cut off by that.
    Done(u64),
    /// Not yet, and when to look again although nothing changes.
    Waits(Draining, Timestamp),
}

/// What the server says.
impl World {
    /// What nodes were told and what they say they serve: of these nodes, by the leader. Apps for which that matters are marked.
    pub fn set_serving(&mut self, said: impl IntoIterator<Item = (NodeId, Serving)>) {
        if !std::mem::replace(&mut self.passage.leads, true) {
            self.settle_passage();
        }
        for (node, serving) in said {
            if !self.nodes.contains_key(&node) {
                continue;
            }
            self.passage.serving.insert(node, serving);
            let Some(version) = serving.acknowledges() else { continue };
            let before = self.has_acknowledged(node);
            let known = self.passage.acknowledged.entry(node).or_insert(version);
            *known = version.max(*known);
            let now = self.has_acknowledged(node);
            if now != before && self.node(node).is_some_and(is_live) {
                self.passage.move_level(before, now);
            }
        }
        self.advance_passage();
    }
    /// What a node's gateways have under way with tasks that they send nothing new to. Apps are marked of whose tasks there is nothing any more.
    pub fn set_under_way(&mut self, node: NodeId, mut under_way: BTreeMap<TaskId, u64>) {
        under_way.retain(|_, requests| *requests > 0);
        let before = if under_way.is_empty() {
            self.passage.under_way.remove(&node)
        } else {
            self.passage.under_way.insert(node, under_way)
        };
        for task in before.unwrap_or_default().into_keys() {
            if self.under_way(task) == 0 {
                self.mark_app_of(task);
            }
        }
    }
    /// This server does not lead: what nodes serve is not known here.
    pub fn forget_serving(&mut self) {
        let Passage { entering, mut leaving, .. } = std::mem::take(&mut self.passage);
        leaving.values_mut().for_each(|leaving| (leaving.seen_at, leaving.out_at) = (None, None));
        self.passage = Passage { entering, leaving, ..Passage::default() };
    }
    /// Whether [`World::observe`] may find anything.
    pub fn awaits_acknowledgement(&self, now: Timestamp) -> bool {
        self.passage.leads && self.passage.leaving.values().any(|leaving| leaving.is_open(now))
    }
    /// Notes at what time tasks were found to be out. To be called before apps are decided.
    pub fn observe(&mut self, now: Timestamp) {
        if !self.passage.leads {
            return;
        }
        let waiting = self.passage.leaving.iter().filter(|(_, leaving)| leaving.is_open(now));
        let found: Vec<_> = waiting
            .map(|(id, leaving)| {
                let seen_at = leaving.seen_at.filter(|seen_at| *seen_at <= now).unwrap_or(now);
                let given_up = now >= seen_at + PATIENCE;
                let task = self.task(*id);
                let out = leaving.out_at.is_some()
                    || given_up
                    || task.is_none_or(|task| !self.is_led_to(task, leaving.since));
                (*id, Leaving { seen_at: Some(seen_at), out_at: out.then_some(now), ..*leaving })
            })
            .collect();
        for (id, leaving) in found {
            if leaving.out_at.is_some() {
                self.mark_app_of(id);
            }
            self.passage.leaving.insert(id, leaving);
        }
    }

    fn mark_app_of(&mut self, task: TaskId) {
        if let Some(app) = self.task(task).map(|task| task.service.app.clone()) {
            self.mark(&app);
        }
    }
}

/// Following the records.
impl World {
    /// A task is stored like this now; `was_ready` says how it was.
    pub(crate) fn note_passage(&mut self, task: &Task, was_ready: bool) {
        let since = self.revision;
        if !task.is_ready() {
            self.passage.entering.remove(&task.id);
        } else if !was_ready {
            self.passage.entering.insert(task.id, since);
        }
        if task.is_draining() {
            let new = Leaving { since, seen_at: None, out_at: None };
            self.passage.leaving.entry(task.id).or_insert(new);
        } else {
            self.passage.leaving.remove(&task.id);
        }
    }
    /// A task is gone.
    pub(crate) fn forget_passage(&mut self, task: TaskId) {
        self.passage.entering.remove(&task);
        self.passage.leaving.remove(&task);
    }
    /// A node that was given up or suspected is back: its tasks are in names and routes again.
    pub(crate) fn note_return(&mut self, node: NodeId) {
        let ready = self.tasks_on(node).filter(|task| task.is_ready()).map(|task| task.id);
        let ready: Vec<_> = ready.collect();
        self.note_entering(ready);
    }
    /// A service's record changed, and with it perhaps which of its tasks are in names and routes.
    pub(crate) fn note_other_tasks(&mut self, service: &ServiceKey) {
        let ready = self.tasks_of(service).filter(|task| task.is_ready()).map(|task| task.id);
        let ready: Vec<_> = ready.collect();
        self.note_entering(ready);
    }
    fn note_entering(&mut self, ready: Vec<TaskId>) {
        let since = self.revision;
        self.passage.entering.extend(ready.into_iter().map(|task| (task, since)));
    }
    /// Nodes, or what they have acknowledged, changed: finds out what everyone has, and marks the apps for whose tasks that matters.
    pub(crate) fn settle_passage(&mut self) {
        if !self.passage.leads {
            return;
        }
        self.passage.acknowledged.retain(|node, _| self.nodes.contains_key(node));
        self.passage.serving.retain(|node, _| self.nodes.contains_key(node));
        self.passage.under_way.retain(|node, _| self.nodes.contains_key(node));
        let mut levels = BTreeMap::new();
        for node in self.nodes().filter(|node| is_live(node)) {
            *levels.entry(self.has_acknowledged(node.record.id)).or_default() += 1;
        }
        self.passage.levels = levels;
        self.advance_passage();
    }
    /// Marks the apps for whose tasks it matters what everyone has acknowledged now.
    fn advance_passage(&mut self) {
        // Without any live node there is nobody to wait for.
        let everyone = self.passage.levels.keys().next().copied().unwrap_or(self.revision);
        let before = std::mem::replace(&mut self.passage.everyone, everyone);
        if everyone <= before {
            return;
        }
        let entered = self.passage.entering.extract_if(.., |_, since| *since <= everyone);
        let entered: Vec<_> = entered.map(|(task, _)| task).collect();
        let is_out = |leaving: &Leaving| leaving.out_at.is_none() && leaving.since <= everyone;
        let left = self.passage.leaving.iter().filter(|(_, leaving)| is_out(leaving)).map(|(task, _)| *task);
        let left: Vec<_> = left.collect();
        for task in entered.into_iter().chain(left) {
            self.mark_app_of(task);
        }
    }
}

/// Reading.
impl World {
    /// The newest revision of this epoch that a node has acknowledged.
    fn has_acknowledged(&self, node: NodeId) -> Revision {
        let known = self.passage.acknowledged.get(&node).filter(|version| version.0 == self.epoch);
        known.map(|version| version.1).unwrap_or_default()
    }
    /// Live nodes that have not acknowledged a revision.
    fn laggards(&self, since: Revision) -> impl Iterator<Item = &Node> {
        // As a rule everyone has, and nobody is asked.
        let some = (since > self.passage.everyone).then(|| self.nodes());
        let lags = move |node: &&Node| is_live(node) && self.has_acknowledged(node.record.id) < since;
        some.into_iter().flatten().filter(lags)
    }
    /// Whether names or routes of live nodes may not say yet what they say since this revision about a task.
    fn is_led_to(&self, task: &Task, since: Revision) -> bool {
        let mut laggards = self.laggards(since).peekable();
        laggards.peek().is_some() && {
            let ways = Ways::of(self, task);
            laggards.any(|node| ways.begin_at(node))
        }
    }
    /// The same nodes, by name, and why each has not acknowledged.
    fn led_to_by(&self, task: &Task, since: Revision) -> Vec<(String, Unacknowledged)> {
        let ways = Ways::of(self, task);
        let nodes = self.laggards(since).filter(|node| ways.begin_at(node));
        let why = |node: &Node| match node.state() {
            NodeState::Unreachable => Unacknowledged::Away,
            NodeState::Joining | NodeState::Ready | NodeState::EngineDown | NodeState::Down => {
                let serving = self.passage.serving.get(&node.record.id).copied().unwrap_or_default();
                serving.unacknowledged(self.epoch, since).unwrap_or(Unacknowledged::NotTold)
            }
        };
        nodes.map(|node| (node.record.name.to_string(), why(node))).collect()
    }
    /// The nodes that may not lead to a ready task yet, by name, and why. None if it is in. On a server that does not lead there is no
    /// saying which.
    pub(crate) fn not_led_by(&self, task: &Task) -> Option<Vec<(String, Unacknowledged)>> {
        let since = *self.passage.entering.get(&task.id)?;
        if !self.passage.leads {
            return Some(Vec::new());
        }
        self.is_led_to(task, since).then(|| self.led_to_by(task, since))
    }
    /// How many requests live nodes' gateways have under way with a task that they send nothing new to.
    fn under_way(&self, task: TaskId) -> u64 {
        let live = |node: &NodeId| self.node(*node).is_some_and(is_live);
        let all = self.passage.under_way.iter().filter(|(node, _)| live(node));
        all.filter_map(|(_, tasks)| tasks.get(&task)).sum()
    }

    /// Whether a task that is to stop for this reason has to drain before: anything may lead to it, or be under way with it.
    pub(crate) fn must_drain(&self, task: &Task, why: StopReason) -> bool {
        let went_wrong = match why {
            StopReason::Unhealthy | StopReason::NodeDown | StopReason::TimedOut => true,
            StopReason::ScaledDown
            | StopReason::Outdated
            | StopReason::Restarted
            | StopReason::Stopped
            | StopReason::Removed
            | StopReason::Withdrawn
            | StopReason::Drained
            | StopReason::Preempted
            | StopReason::Rebalanced => false,
        };
        if task.hook.is_some() {
            return false;
        }
        let was_ready =
            task.status.phase == Phase::Running && (task.status.ready_at.is_some() || task.status.is_ready());
        let is_there = task.node.and_then(|node| self.node(node)).is_some_and(is_live);
        !went_wrong && was_ready && is_there && self.is_reachable(task)
    }
    /// Whether gateways or anybody by name may come to it.
    fn is_reachable(&self, task: &Task) -> bool {
        self.under_way(task.id) > 0 || {
            let ways = Ways::from_which_it_goes(self, task);
            ways.is_asked_for() || ways.gateways()
        }
    }
    /// How far a draining task is. What this pass decides of others is not seen yet.
    pub(crate) fn drain(&self, task: &Task, now: Timestamp) -> Drain {
        let requests = self.under_way(task.id);
        let Some(leaving) = self.passage.leaving.get(&task.id) else {
            // It was asked to stop by this very pass.
            return Drain::Waits(Draining::Led(Vec::new()), now + LOOK);
        };
        // Meanwhile nobody may be left who could come.
        if task.stop.is_none_or(|why| !self.must_drain(task, why)) {
            return Drain::Done(requests);
        }
        let Some(out_at) = leaving.out_at else {
            let nodes = if self.passage.leads { self.led_to_by(task, leaving.since) } else { Vec::new() };
            return Drain::Waits(Draining::Led(nodes), now + LOOK);
        };
        let (remembered, most) = (out_at + REMEMBERED, out_at + self.drain_time(task));
        if requests > 0 && now < most {
            return Drain::Waits(Draining::UnderWay { requests, left: most.since(now) }, most);
        }
        if now < remembered && Ways::from_which_it_goes(self, task).is_asked_for() {
            return Drain::Waits(Draining::Named { left: remembered.since(now) }, remembered);
        }
        Drain::Done(requests)
    }
    /// How long requests that are under way with a draining task may go on. While nothing else serves and something is to, everybody who comes
    /// waits for them: they have less time then, unless the file says otherwise.
    fn drain_time(&self, task: &Task) -> Duration {
        let generation = self.service(&task.service).map(|record| record.generation);
        let revision = generation.and_then(|generation| self.revision_of(&task.service, generation));
        let Some(revision) = revision else { return USUAL_DRAIN.duration() };
        let replaced = matches!(
            task.stop,
            Some(StopReason::Outdated | StopReason::Restarted | StopReason::Drained | StopReason::Rebalanced)
        );
        if revision.spec.policy.drain.is_none() && replaced && !self.is_served_beside(task) {
            return GAP_DRAIN;
        }
        revision.spec.policy.drain_time().duration()
    }
    /// Whether another task of its service serves.
    fn is_served_beside(&self, task: &Task) -> bool {
        self.tasks_of(&task.service)
            .any(|other| other.id != task.id && other.hook.is_none() && other.is_ready())
    }
    /// What is known of a draining task.
    pub fn drain_facts(&self, task: &Task) -> Option<DrainFacts> {
        let leaving = self.passage.leaving.get(&task.id).filter(|_| task.is_draining())?;
        let led_to_by = if leaving.out_at.is_none() && self.passage.leads {
            self.led_to_by(task, leaving.since)
        } else {
            Vec::new()
        };
        let under_way = self.under_way(task.id);
        let until = leaving.out_at.map(|out_at| out_at + self.drain_time(task));
        Some(DrainFacts { led_to_by, under_way, until })
    }
    /// Whether an unfinished task is one that its app still wants, with its service.
    fn is_wanted(&self, task: &Task) -> bool {
        let removed = |app: &AppKey| self.app(app).is_none_or(|app| app.removed);
        let service = self.service(&task.service);
        let unwanted = service.is_none_or(|record| record.removed || record.stopped);
        task.stop.is_none() && !task.is_over() && !unwanted && !removed(&task.service.app)
    }
}

/// Whether a node's names and routes count: it is there, or may be.
fn is_live(node: &Node) -> bool {
    match node.state() {
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
        // One that has never been here serves nothing, and one that is given up is waited for no longer.
        NodeState::Joining | NodeState::Down => false,
    }
}

/// How requests and connections come to a task.
struct Ways<'w> {
    world: &'w World,
    task: &'w Task,
    /// By name, from containers on these networks.
    subnets: Vec<Ipv4Net>,
    /// From gateways, once that was asked: to find out means to look at every service of the app, and names mostly answer first.
    gateways: OnceCell<bool>,
}

impl<'w> Ways<'w> {
    /// Those that matter of a task on its way in or out.
    fn of(world: &'w World, task: &'w Task) -> Self {
        if task.stop.is_some() { Self::from_which_it_goes(world, task) } else { Self::to(world, task) }
    }
    /// Those that matter when it goes: where nothing else serves names lead nowhere else, and to wait for them serves nobody. Gateways hold
    /// what comes meanwhile.
    fn from_which_it_goes(world: &'w World, task: &'w Task) -> Self {
        let ways = Self::to(world, task);
        if world.is_served_beside(task) { ways } else { Self { subnets: Vec::new(), ..ways } }
    }
    fn to(world: &'w World, task: &'w Task) -> Self {
        let on_host = revisions(world, task).any(|revision| revision.spec.network_mode == NetworkMode::Host);
        let mut subnets: Vec<_> = task
            .addresses
            .iter()
            .filter_map(|(name, address)| {
                let current = world.network_named(&task.service.app, name);
                let current = current.filter(|network| network.subnet.contains(address));
                // One in whose place there is another is found by its addresses only.
                let any = || world.networks().find(|network| network.subnet.contains(address));
                Some(current.or_else(any)?.subnet)
            })
            .collect();
        if on_host {
            subnets.extend(names::beside_host(world, &task.service.app).map(|network| network.subnet));
        }
        Self { world, task, subnets, gateways: OnceCell::new() }
    }
    /// Whether gateways lead to it.
    fn gateways(&self) -> bool {
        *self.gateways.get_or_init(|| {
            let Self { world, task, .. } = self;
            let routed = |revision: &ServiceRevision| {
                spec::ingress_ports(&revision.spec).next().is_some()
                    || !revision.spec.policy.routes.is_empty()
            };
            // Other services of the app may have it answer in their place, or send it copies.
            let lends = |routes: &[RouteSpec]| {
                routes.iter().any(|route| {
                    let stands_in = matches!(&route.fallback, Some(Fallback::Service { service, .. }) if *service == task.service.name);
                    stands_in || route.mirror.as_ref().is_some_and(|mirror| mirror.service == task.service.name)
                })
            };
            let is_lent = || {
                world.services_of(&task.service.app).any(|record| {
                    let revision = world.revision_of(&record.key, record.generation);
                    revision.is_some_and(|revision| lends(&revision.spec.policy.routes))
                })
            };
            revisions(world, task).any(|revision| routed(revision)) || is_lent()
        })
    }
    /// Whether some of them may begin at a node.
    fn begin_at(&self, node: &Node) -> bool {
        let here = |task: &Task| !task.is_over() && self.is_on(task);
        self.world.tasks_on(node.record.id).any(|task| here(task))
            || node.record.roles.gateway && self.gateways()
    }
    fn is_on(&self, task: &Task) -> bool {
        task.addresses.values().any(|address| self.subnets.iter().any(|subnet| subnet.contains(address)))
    }
    /// Whether another task that goes on is where the name of this one is known.
    fn is_asked_for(&self) -> bool {
        let others = self.subnets.iter().flat_map(|subnet| self.world.addresses_in(*subnet));
        let mut others = others.filter(|(_, other)| other.id != self.task.id);
        others.any(|(_, other)| self.world.is_wanted(other))
    }
}

/// What says how a task is made, and how the others of its service are now.
fn revisions<'w>(world: &'w World, task: &Task) -> impl Iterator<Item = &'w Arc<ServiceRevision>> {
    let current = world.service(&task.service).map(|record| record.generation);
    let generations = [current, Some(task.generation)].into_iter().flatten();
    generations.filter_map(|generation| world.revision_of(&task.service, generation))
}
