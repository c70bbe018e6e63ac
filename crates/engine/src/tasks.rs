//! Decides which tasks the services of an app gain and lose.
//!
//! A service has seats: slots 1 to n if it is replicated, one per suitable node if it is global. A seat is as wanted when one
//! task of a fitting generation is ready in it (or has completed), and every other task of it has ended. Held by the property
//! tests: no seat gains a second task of one generation while one lives; a ready task is stopped for a newer one only when that
//! one is ready and every live node leads to it, or, where the two cannot share something, when a place for the new one is known and it is
//! the seat's turn. A task that is asked to stop drains first ([`World::drain`](crate::World)), and has its seat until then: of a service's
//! seats no more than `parallelism` have a task too many, those that drain among them. Once its process is asked to stop a task counts no
//! more: how long that takes is between it and its grace period.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use wharf_model::{
    Availability, DependencyCondition, Generation, Health, Millis, Mode, NodeId, NodeState, Phase,
    RestartCondition, RestartPolicy, RolloutState, ServiceKey, ServiceName, ServiceRecord, ServiceRevision,
    ServiceSpec, Slot, SlotOf, StopReason, Task, TaskId, TaskStatus, Timestamp, UpdatePolicy,
};

use crate::{
    About, DependencyState, NoPlace, Reason, Waiting,
    pass::{Pass, Service},
    passage::{self, Drain},
    place::{self, Claim, Demand, Pin, PinnedBy, preempt::Room},
    spec, strategy,
};

/// So many failures in a row without ever being ready, and a rollout counts a seat as failed.
const CERTAIN: usize = 3;
/// The same for tasks whose process never even started: a missing image stays missing.
const CERTAIN_UNSTARTED: usize = 2;
/// How long a task that is to take over a slot elsewhere, to make the cluster more even, may take to be ready.
const MOVE_PATIENCE: Duration = Duration::from_secs(600);

/// How a seat or a whole service stands, as its rollout sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As wanted.
    Settled,
    /// On its way.
    Underway,
    /// It has failed for certain; with why.
    Failed(String),
}

/// One service's standings.
#[derive(Debug, Clone)]
pub(crate) struct ServiceStanding {
    pub(crate) name: ServiceName,
    pub(crate) seats: Vec<Standing>,
}

pub(crate) fn decide(pass: &mut Pass<'_>) -> Vec<ServiceStanding> {
    let services = pass.services.clone();
    let mut standings = Vec::new();
    for service in &services {
        let seats = if service.goes_last {
            // What ends of it by itself is not replaced.
            pass.wait(About::Service(service.record.key.clone()), Reason::GoesLast);
            vec![Standing::Settled]
        } else if service.is_unwanted(pass.app) {
            strategy::clear(pass, service);
            vec![stop_all(pass, service)]
        } else {
            pass.fill_sets(service)
        };
        standings.push(ServiceStanding { name: service.name().clone(), seats });
    }
    // It makes room where there is none for what comes.
    if pass.out.waiting.iter().any(|waiting| matches!(waiting.reason, Reason::NoPlace(_))) {
        let_last_go(pass);
    }
    standings
}

/// Has the services go now that a release removes last. Answers whether there are any.
pub(crate) fn let_last_go(pass: &mut Pass<'_>) -> bool {
    let last: Vec<_> = pass.services.iter().filter(|service| service.goes_last).cloned().collect();
    pass.out.waiting.retain(|waiting| !matches!(waiting.reason, Reason::GoesLast));
    for service in &last {
        pass.put_service(ServiceRecord { stopped: true, sets: Vec::new(), ..service.record.clone() });
        stop_all(pass, service);
    }
    !last.is_empty()
}

/// A service that wants no tasks: dependents stop before what they depend on.
fn stop_all(pass: &mut Pass<'_>, service: &Service<'_>) -> Standing {
    let key = &service.record.key;
    let why = match (pass.app.removed || service.record.removed, service.record.stopped) {
        (true, _) => StopReason::Removed,
        (false, true | false) => StopReason::Stopped,
    };
    let unfinished: Vec<_> = pass.tasks_of(key).iter().filter(|task| !task.is_over()).cloned().collect();
    if unfinished.is_empty() {
        return Standing::Settled;
    }
    let dependents = stopping_dependents(pass, service);
    for task in unfinished {
        if task.stop.is_some() {
            wait_for_stop(pass, &task);
        } else if dependents.is_empty() {
            stop_and_wait(pass, &task, why);
        }
    }
    if !dependents.is_empty() {
        pass.wait(About::Service(key.clone()), Reason::Dependents { services: dependents });
    }
    Standing::Underway
}

/// Services after this one in the order of start that are to stop too, depend on it, and still have tasks.
fn stopping_dependents(pass: &Pass<'_>, service: &Service<'_>) -> Vec<ServiceName> {
    let later = pass.services.iter().skip_while(|other| other.name() != service.name()).skip(1);
    let goes = |other: &&Service<'_>| other.goes_last || other.is_unwanted(pass.app);
    let stopping = later.filter(goes).filter(|other| {
        let depends =
            |revision: &ServiceRevision| spec::dependencies(&revision.spec).contains_key(service.name());
        other.revision.is_some_and(depends)
            && pass.tasks_of(&other.record.key).iter().any(|task| !task.is_over())
    });
    stopping.map(|other| other.name().clone()).collect()
}

/// One place for one task.
#[derive(Debug, Clone)]
struct Seat {
    slot: Slot,
    /// The node, for global services.
    node: Option<NodeId>,
    /// Wanted, unfinished, of a fitting generation and where it may be: the best of them.
    current: Option<Arc<Task>>,
    /// Unfinished and not yet stopped, but to be replaced, and why.
    leaving: Vec<(Arc<Task>, StopReason)>,
    /// Asked to stop, not yet over.
    stopping: Vec<Arc<Task>>,
    /// Over, of a fitting generation, newest first.
    ended: Vec<Arc<Task>>,
    /// Where the seat's newest task is or was, of whatever generation.
    home: Option<NodeId>,
    /// Where it is to move, if that is the only reason for which its task leaves.
    bound_for: Option<NodeId>,
}

/// Whether a task may be made in a seat now.
enum Gate {
    /// It may; so many have failed in a row before it.
    Open(u32),
    /// The seat's last task completed, and that is what was wanted.
    Complete,
    /// Not yet, or never.
    Shut(Reason),
}

/// How long a task that nobody checks must have run before it counts as one that stays.
const STEADY: Duration = Duration::from_secs(3);

/// Whether a task that has ended was ready for long enough to count.
fn came_up(task: &Task) -> bool {
    let Some(since) = up_since(task) else { return false };
    let lasted = task.status.ended_at.map(|ended_at| ended_at.since(since));
    !is_guess(task) || lasted.is_some_and(|lasted| lasted >= STEADY)
}

/// Since when a task has been up, by its node's clock, if it was ready: of one that was taken for ready because it had run for long enough
/// that is since it started.
fn up_since(task: &Task) -> Option<Timestamp> {
    let TaskStatus { started_at, ready_at, .. } = task.status;
    let ready_at = ready_at?;
    let ran = started_at.filter(|started_at| is_guess(task) && ready_at.since(*started_at) >= STEADY);
    Some(ran.unwrap_or(ready_at))
}

/// Whether that a task is or was ready is all but a guess: it runs, and nobody checks it. Once its process has ended nobody knows any
/// more whether somebody did.
fn is_guess(task: &Task) -> bool {
    let status = &task.status;
    status.health == Health::Unchecked || (status.health == Health::Starting && status.ready_at.is_some())
}

impl Pass<'_> {
    /// The same of every set of tasks that a service has.
    fn fill_sets(&mut self, service: &Service<'_>) -> Vec<Standing> {
        let serving = self.fill(service);
        strategy::fill(self, service, serving)
    }
    /// Brings a service's seats nearer to what is wanted, and says how each stands.
    pub(crate) fn fill(&mut self, service: &Service<'_>) -> Vec<Standing> {
        let key = service.record.key.clone();
        let Some(revision) = service.revision else {
            self.wait(About::Service(key), Reason::NoRevision);
            return vec![Standing::Underway];
        };
        self.dependencies = None;
        self.give_up_moves(service, revision);
        let (seats, surplus) = self.seats(service, revision);
        let mut standings = Vec::new();
        for (task, why) in surplus {
            stop_and_wait(self, &task, why);
            standings.push(Standing::Underway);
        }
        // All of them at once: a large service has many.
        let vacant = seats.iter().filter(|seat| seat.current.is_none()).count();
        self.out.changes.reserve(vacant);
        self.out.waiting.reserve(vacant);
        let mut turns = Queue {
            updates: self.turns(service, revision, &seats),
            drains: self.drain_turns(revision, &seats),
        };
        // Slots that serve nobody are replaced first.
        let mut order: Vec<_> = seats.iter().collect();
        order.sort_by_key(|seat| seat.leaving.iter().any(|(task, _)| task.is_ready()));
        for seat in order {
            standings.push(self.fill_seat(service, revision, seat, &mut turns));
        }
        standings
    }

    /// The seats a service should have with their tasks, and the unfinished tasks that belong to none.
    fn seats(
        &self,
        service: &Service<'_>,
        revision: &ServiceRevision,
    ) -> (Vec<Seat>, Vec<(Arc<Task>, StopReason)>) {
        let mut by_seat = BTreeMap::<(Slot, Option<NodeId>), Vec<Arc<Task>>>::new();
        match service.record.mode {
            Mode::Replicated { replicas } => {
                by_seat.extend((1..=replicas).map(|slot| ((Slot(slot), None), Vec::new())));
            }
            Mode::Global => {
                by_seat.extend(
                    self.global_nodes(revision).into_iter().map(|node| ((Slot(0), Some(node)), Vec::new())),
                );
            }
        }
        let mut surplus = Vec::new();
        for task in self.tasks_of(&service.record.key).iter().filter(|task| service.owns(task)) {
            let seat = (task.slot, task.node.filter(|_| task.slot == Slot(0)));
            match by_seat.get_mut(&seat) {
                Some(tasks) => tasks.push(Arc::clone(task)),
                None if task.is_over() => {}
                None => surplus.push((Arc::clone(task), self.why_surplus(task))),
            }
        }
        let seats =
            by_seat.into_iter().map(|((slot, node), tasks)| self.seat(service, revision, slot, node, &tasks));
        let seats = seats.collect();
        // The highest slots go first.
        surplus.sort_by_key(|(task, _)| std::cmp::Reverse(task.slot));
        (seats, surplus)
    }
    fn why_surplus(&self, task: &Task) -> StopReason {
        let drained = |node: &crate::Node| self.availability(node) == Availability::Drain;
        let node = task.node.and_then(|node| self.world.node(node));
        if task.slot == Slot(0) && node.is_some_and(drained) {
            StopReason::Drained
        } else {
            StopReason::ScaledDown
        }
    }
    /// The nodes on which a global service has a task: suitable, not being drained, and there.
    fn global_nodes(&self, revision: &ServiceRevision) -> Vec<NodeId> {
        let demand = Demand::of(self.world, revision);
        let has_task = |id: NodeId| {
            let mut tasks = self.tasks_of(&revision.key).iter();
            tasks.any(|task| task.node == Some(id) && task.stop.is_none() && !task.is_over())
        };
        let nodes = self.world.nodes().filter(|node| {
            let there = match node.state() {
                NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
                NodeState::Joining | NodeState::Down => false,
            };
            let takes = match self.availability(node) {
                Availability::Active => true,
                Availability::Pause => has_task(node.record.id),
                Availability::Drain => false,
            };
            there && takes && place::belongs(node, &demand)
        });
        nodes.map(|node| node.record.id).collect()
    }

    fn seat(
        &self,
        service: &Service<'_>,
        revision: &ServiceRevision,
        slot: Slot,
        node: Option<NodeId>,
        tasks: &[Arc<Task>],
    ) -> Seat {
        let mut seat = Seat {
            slot,
            node,
            current: None,
            leaving: Vec::new(),
            stopping: Vec::new(),
            ended: Vec::new(),
            home: tasks.last().and_then(|task| task.node),
            bound_for: None,
        };
        for task in tasks.iter().rev() {
            if task.is_over() {
                if service.fits(task) {
                    seat.ended.push(Arc::clone(task));
                }
            } else if task.stop.is_some() {
                seat.stopping.push(Arc::clone(task));
            } else if let Some(why) = self.why_leave(service, revision, task) {
                seat.leaving.push((Arc::clone(task), why));
            } else {
                // Of two that could stay the one that serves does; of equals, the newer.
                let replaced = match &seat.current {
                    Some(current) if task.is_ready() && !current.is_ready() => {
                        seat.current.replace(Arc::clone(task))
                    }
                    Some(_) => Some(Arc::clone(task)),
                    None => seat.current.replace(Arc::clone(task)),
                };
                seat.leaving.extend(replaced.map(|task| (task, StopReason::ScaledDown)));
            }
        }
        let moves = seat.leaving.iter().all(|(_, why)| *why == StopReason::Rebalanced);
        seat.bound_for = seat.leaving.first().filter(|_| moves).and_then(|(task, _)| task.bound_for());
        seat
    }

    /// Whether tasks of this kind are to leave a node: it is drained, or drives them off.
    fn is_left(&self, revision: &ServiceRevision, node: &crate::Node) -> bool {
        self.availability(node) == Availability::Drain
            || place::driven_off(&revision.spec, &node.record).is_some()
    }

    /// Why an unfinished task should make way for another, if it should.
    fn why_leave(
        &self,
        service: &Service<'_>,
        revision: &ServiceRevision,
        task: &Task,
    ) -> Option<StopReason> {
        if !service.fits(task) {
            return Some(if revision.restart { StopReason::Restarted } else { StopReason::Outdated });
        }
        if self.is_left_behind(task) {
            return Some(StopReason::Outdated);
        }
        if is_unhealthy(task) && revision.spec.restart.condition != RestartCondition::None {
            return Some(StopReason::Unhealthy);
        }
        let node = task.node.and_then(|node| self.world.node(node));
        if node.is_some_and(|node| self.is_left(revision, node)) {
            return Some(StopReason::Drained);
        }
        if task.bound_for().is_some() {
            return Some(StopReason::Rebalanced);
        }
        // What it shares ends with the task that it shares it with.
        let kept = |other: &Arc<Task>| other.node == task.node && other.id < task.id;
        let goes_on = |other: &&Arc<Task>| !other.is_let_go() && !other.is_over();
        let alone =
            |service: &ServiceName| !self.tasks_of(&self.sibling(service)).iter().filter(goes_on).any(kept);
        let companions = revision.spec.companions();
        companions.into_keys().any(alone).then_some(StopReason::Restarted)
    }
    /// Another service of the app.
    fn sibling(&self, name: &ServiceName) -> ServiceKey {
        ServiceKey { app: self.app.key.clone(), name: name.clone() }
    }
    /// The tasks of a service that are wanted and not over.
    fn living(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_of(service).iter().filter(|task| task.stop.is_none() && !task.is_over())
    }

    /// What of a service's replacement may begin in this pass.
    fn turns(&mut self, service: &Service<'_>, revision: &ServiceRevision, seats: &[Seat]) -> Turns {
        let policy = self.update_policy(&revision.spec);
        let unsuccessful =
            |seat: &&Seat| seat.current.is_none() && seat.ended.first().is_some_and(|task| failed(task));
        let goes_on = policy.failure_action == wharf_model::FailureAction::Continue
            || policy.max_failure_ratio > 0
                && policy.tolerates(seats.iter().filter(unsuccessful).count(), seats.len());
        if self.app.rollout.state == RolloutState::Failed && !goes_on {
            return Turns::None(Reason::Paused);
        }
        let outdated = |seat: &Seat| {
            let replaced = |why: &StopReason| matches!(why, StopReason::Outdated | StopReason::Restarted);
            seat.leaving.iter().any(|(_, why)| replaced(why))
        };
        if !seats.iter().any(outdated) {
            return Turns::All;
        }
        let busy = seats.iter().filter(|seat| {
            let tried = self.tried(seat);
            match &seat.current {
                Some(_) if seat.stopping.iter().any(|task| task.is_draining()) => true,
                Some(current) => {
                    // One that goes on beside it waits for every node to lead to the new one.
                    let beside = seat.leaving.iter().any(|(task, _)| task.is_ready());
                    !current.is_ready() || beside || self.monitored_until(revision, current).is_some()
                }
                None if tried.is_some_and(|task| failed(task)) => !goes_on,
                // One that was lost comes again on the turn that it had.
                None => seat.leaving.is_empty() || tried.is_some(),
            }
        });
        let busy = busy.count();
        let ready_at = |task: &Arc<Task>| self.moment(task, task.status.ready_at);
        let replaced = seats.iter().filter_map(|seat| seat.current.as_ref()).filter(|task| task.is_ready());
        let last = replaced
            .filter(|task| task.generation == service.record.generation && !self.is_of_the_future(task))
            .map(ready_at)
            .max();
        match last.map(|last| last + policy.delay.duration()).filter(|until| *until > self.now) {
            Some(until) => {
                self.out.wake(until);
                Turns::None(Reason::UpdateDelay { until })
            }
            None if policy.parallelism == 0 => Turns::All,
            None => {
                let left = usize::try_from(policy.parallelism).unwrap_or(usize::MAX).saturating_sub(busy);
                Turns::Some { left, parallelism: policy.parallelism }
            }
        }
    }
    /// How a service's tasks are replaced now: on the way back to an earlier release it may go another way.
    pub(crate) fn update_policy(&self, spec: &ServiceSpec) -> UpdatePolicy {
        let returning =
            self.app.previous.as_ref().is_some_and(|back| crate::rollout::is_return(self.app, back));
        spec.rollback.filter(|_| returning).unwrap_or(spec.update)
    }
    /// Until when a ready task must still be watched before the next slot's turn, and before the rollout is done.
    fn monitored_until(&self, revision: &ServiceRevision, task: &Task) -> Option<Timestamp> {
        let monitor = self.update_policy(&revision.spec).monitor.duration();
        let watched = if is_guess(task) { monitor.max(STEADY) } else { monitor };
        let until = self.moment(task, up_since(task)) + watched;
        let of_this_rollout = task.created_at >= self.app.rollout.started_at
            && !self.app.rollout.state.is_over()
            && !self.is_of_the_future(task);
        Some(until).filter(|until| of_this_rollout && *until > self.now)
    }

    /// How many more seats may leave nodes that are being drained: as with a release, no more than `parallelism` of them have a task too
    /// many, or none, at once. There is nothing new to be watched, so what a release waits for between two does not count.
    fn drain_turns(&self, revision: &ServiceRevision, seats: &[Seat]) -> Turns {
        let drained = |why: &StopReason| *why == StopReason::Drained;
        let parallelism = self.update_policy(&revision.spec).parallelism;
        if parallelism == 0 || !seats.iter().any(|seat| seat.leaving.iter().any(|(_, why)| drained(why))) {
            return Turns::All;
        }
        let busy = seats.iter().filter(|seat| {
            let mut before = seat.stopping.iter().chain(seat.ended.first());
            let follows = before.any(|task| task.stop.as_ref().is_some_and(drained));
            let draining = seat.stopping.iter().any(|task| task.is_draining());
            match &seat.current {
                Some(current) => !seat.leaving.is_empty() || draining || (follows && !current.is_ready()),
                None => seat.leaving.is_empty() && follows,
            }
        });
        let left = usize::try_from(parallelism).unwrap_or(usize::MAX).saturating_sub(busy.count());
        Turns::Some { left, parallelism }
    }

    /// Moves that have failed once, take too long, or lead to a node that is to have no tasks by now are given up: the slot stays where it is.
    fn give_up_moves(&mut self, service: &Service<'_>, revision: &ServiceRevision) {
        let moving: Vec<_> = self
            .living(&service.record.key)
            .filter(|task| task.bound_for().is_some() && service.owns(task))
            .cloned()
            .collect();
        for task in moving {
            let Some(relocation) = &task.relocation else { continue };
            let attempts = self.tasks_of(&service.record.key).iter().filter(|other| {
                other.slot == task.slot && other.moved_from.is_some() && other.created_at >= relocation.at
            });
            let attempts: Vec<_> = attempts.cloned().collect();
            let until = relocation.at + MOVE_PATIENCE;
            let node = self.node_name(Some(relocation.to));
            let target = self.world.node(relocation.to);
            if target.is_none_or(|node| self.is_left(revision, node)) {
                // Else its slot would be filled a third time, in place of the new task, which has to leave.
                self.give_up_move(&task, format!("{node} is to have no tasks"));
            } else if let Some(ended) = attempts.iter().find(|other| other.is_over()) {
                self.give_up_move(&task, format!("its new task on {node} ended: {}", ending(ended)));
            } else if attempts.iter().any(|other| other.is_ready()) {
                // It has moved, and the old task is about to stop.
            } else if until <= self.now {
                self.give_up_move(&task, format!("its new task on {node} was not ready in time"));
            } else {
                self.out.wake(until);
            }
        }
    }
    fn give_up_move(&mut self, task: &Task, why: String) {
        if let Some(relocation) = task.relocation.clone() {
            self.relocate(task, wharf_model::Relocation { given_up: Some(why), ..relocation });
        }
    }

    fn fill_seat(
        &mut self,
        service: &Service<'_>,
        revision: &ServiceRevision,
        seat: &Seat,
        turns: &mut Queue,
    ) -> Standing {
        for task in &seat.stopping {
            wait_for_stop(self, task);
        }
        for (task, _) in seat.leaving.iter().filter(|(_, why)| *why == StopReason::Unhealthy) {
            stop_and_wait(self, task, StopReason::Unhealthy);
        }
        match &seat.current {
            Some(current) if current.is_ready() => self.keep(revision, seat, current),
            Some(current) => self.await_ready(revision, seat, current),
            None => self.refill(service, revision, seat, turns),
        }
    }

    /// The seat's task is ready: every other one goes.
    fn keep(&mut self, revision: &ServiceRevision, seat: &Seat, current: &Task) -> Standing {
        if is_guess(current)
            && let Some(until) = self.monitored_until(revision, current)
        {
            // What serves now goes on until its successor has shown that it stays.
            self.out.wake(until);
            let about = self.about(current);
            self.wait(about, Reason::Monitor { until });
            return Standing::Underway;
        }
        let about = self.about(current);
        // What serves goes on until every node leads to its successor.
        let serves = seat.leaving.iter().any(|(task, _)| task.is_ready());
        // Nothing is sent to one whose node may be gone, as long as the old one is there.
        if serves && let Some(reason @ Reason::NodeSuspected { .. }) = self.away(current.node) {
            self.wait(about, reason);
            return Standing::Underway;
        }
        let unled = if serves { self.world.not_led_by(current) } else { None };
        if let Some(nodes) = unled {
            self.out.wake(self.now + passage::LOOK);
            let node = self.node_name(current.node);
            self.wait(about, Reason::NotLedTo { node, nodes });
            for (task, why) in seat.leaving.iter().filter(|(task, _)| !task.is_ready()) {
                stop_and_wait(self, task, *why);
            }
            return Standing::Underway;
        }
        for (task, why) in &seat.leaving {
            stop_and_wait(self, task, *why);
        }
        if let Some(until) = self.monitored_until(revision, current) {
            self.out.wake(until);
            self.wait(about, Reason::Monitor { until });
            return Standing::Underway;
        }
        let node = self.node_name(current.node);
        if self.state(current.node) == Some(NodeState::Down) {
            let reason = self.down_reason(revision, current.node, node);
            self.wait(about, reason);
            return Standing::Underway;
        }
        if let Some(reason) = self.away(current.node) {
            self.wait(about, reason);
        }
        if seat.leaving.is_empty() && seat.stopping.is_empty() {
            Standing::Settled
        } else {
            Standing::Underway
        }
    }

    /// The seat's task is on its way up: nothing to do but to say how far it is.
    fn await_ready(&mut self, revision: &ServiceRevision, seat: &Seat, task: &Task) -> Standing {
        let (about, node) = (self.about(task), self.node_name(task.node));
        let output = task.status.probe_output.clone();
        let reason = match self.state(task.node) {
            Some(NodeState::Down) => self.down_reason(revision, task.node, node),
            Some(NodeState::Unreachable) => self.away(task.node).unwrap_or(Reason::NodeUnreachable { node }),
            Some(NodeState::Joining | NodeState::Ready | NodeState::EngineDown) | None => {
                match (task.status.phase, task.status.health) {
                    (Phase::Running, Health::Unhealthy) => Reason::Unhealthy { node, output },
                    (Phase::Running, Health::Unchecked | Health::Starting | Health::Healthy) => {
                        Reason::NotHealthy { node, output }
                    }
                    (phase, _) => {
                        // What it tripped over may come with what to do about it.
                        let hint = task.status.hint.as_ref().map(|hint| format!("; hint: {hint}"));
                        let message = format!("{}{}", task.status.message, hint.unwrap_or_default());
                        Reason::Coming { phase, node, message }
                    }
                }
            }
        };
        let stuck = matches!(reason, Reason::Unhealthy { .. });
        self.wait(about.clone(), reason);
        if stuck {
            return Standing::Failed(format!("{about} is unhealthy, and its restart policy leaves it so"));
        }
        self.certain_failure(&about, seat).map_or(Standing::Underway, Standing::Failed)
    }
    /// How a node is away that is not given up, if it is.
    fn away(&self, id: Option<NodeId>) -> Option<Reason> {
        let node = self.world.node(id?)?;
        let status = node.status.as_ref()?;
        let name = node.record.name.to_string();
        match (node.state(), &status.suspected, status.spared) {
            (NodeState::Unreachable, _, Some(spared)) => {
                Some(Reason::NodeSpared { node: name, away: spared.away, of: spared.of })
            }
            (NodeState::Unreachable | NodeState::EngineDown | NodeState::Ready, Some(suspicion), _) => {
                let by = suspicion.by.iter().map(|node| self.world.node_name(*node)).collect();
                Some(Reason::NodeSuspected { node: name, by })
            }
            (NodeState::Unreachable, None, None) => Some(Reason::NodeUnreachable { node: name }),
            (NodeState::Joining | NodeState::Down | NodeState::EngineDown | NodeState::Ready, _, _) => None,
        }
    }
    fn down_reason(&self, revision: &ServiceRevision, id: Option<NodeId>, node: String) -> Reason {
        let volume =
            self.local_volume(&revision.spec).filter(|(_, nodes)| id.is_some_and(|id| nodes.contains(&id)));
        match volume {
            Some((volume, _)) => Reason::VolumeOnDownNode { volume, node },
            None => Reason::NodeUnreachable { node },
        }
    }

    /// The seat has no task that could stay: makes one, makes room for one, or says what that waits for.
    fn refill(
        &mut self,
        service: &Service<'_>,
        revision: &ServiceRevision,
        seat: &Seat,
        turns: &mut Queue,
    ) -> Standing {
        let leaving: Vec<_> = seat.leaving.iter().filter(|(_, why)| *why != StopReason::Unhealthy).collect();
        let begun = !seat.ended.is_empty();
        // What ended before this rollout began has had no turn of it: a return finds the tasks of its release as they were stopped.
        let tried = self.tried(seat).is_some();
        let updated =
            leaving.iter().any(|(_, why)| matches!(why, StopReason::Outdated | StopReason::Restarted));
        let fresh = !begun && seat.leaving.is_empty() && seat.stopping.is_empty();
        if (fresh || updated && !tried)
            && let Some(reason) = self.held()
        {
            self.wait(self.about_seat(revision, seat), reason);
            return Standing::Underway;
        }
        let drains = leaving.iter().any(|(_, why)| *why == StopReason::Drained);
        let refused = [(updated && !tried, &turns.updates), (drains, &turns.drains)];
        let refused =
            refused.into_iter().filter(|(counts, _)| *counts).find_map(|(_, turns)| turns.refused());
        if let Some(reason) = refused {
            self.wait(self.about_seat(revision, seat), reason);
            return Standing::Underway;
        }
        let failures = match self.gate(service, revision, seat) {
            Gate::Open(failures) => failures,
            Gate::Complete => {
                for (task, why) in leaving {
                    stop_and_wait(self, task, *why);
                }
                return if seat.leaving.is_empty() && seat.stopping.is_empty() {
                    Standing::Settled
                } else {
                    Standing::Underway
                };
            }
            Gate::Shut(reason) => {
                let gave_up = matches!(reason, Reason::GaveUp { .. });
                let about = self.about_seat(revision, seat);
                let text = Waiting { about: about.clone(), reason: reason.clone() }.to_string();
                self.wait(about.clone(), reason);
                let failed = gave_up.then_some(text).or_else(|| self.certain_failure(&about, seat));
                return failed.map_or(Standing::Underway, Standing::Failed);
            }
        };
        if updated && !tried {
            turns.updates.take();
        }
        if drains {
            turns.drains.take();
        }
        if leaving.is_empty() {
            if !self.must_wait_for(revision, seat) {
                self.start(revision, seat, failures, &[]);
            }
        } else {
            self.replace(revision, seat, failures, &leaving);
        }
        if seat.ended.is_empty() {
            return Standing::Underway;
        }
        let about = self.about_seat(revision, seat);
        self.certain_failure(&about, seat).map_or(Standing::Underway, Standing::Failed)
    }
    /// The newest task of the seat that has ended in this rollout.
    fn tried<'s>(&self, seat: &'s Seat) -> Option<&'s Arc<Task>> {
        seat.ended.first().filter(|task| task.created_at >= self.app.rollout.started_at)
    }
    /// Why nothing new of the rollout begins, if somebody wants that.
    fn held(&self) -> Option<Reason> {
        let rollout = &self.app.rollout;
        let paused = rollout.paused.as_ref().filter(|_| !rollout.state.is_over())?;
        Some(Reason::Held { by: paused.to_string() })
    }
    /// Whether tasks of the seat that are stopping must be over before another starts.
    fn must_wait_for(&self, revision: &ServiceRevision, seat: &Seat) -> bool {
        let exclusive =
            spec::stop_first(&revision.spec, self.update_policy(&revision.spec).order, true).is_some();
        let answers = |task: &&Arc<Task>| match self.state(task.node) {
            Some(NodeState::Ready | NodeState::Joining | NodeState::EngineDown) => true,
            // Whether it has stopped there cannot be known before the node is counted down.
            Some(NodeState::Unreachable | NodeState::Down) | None => false,
        };
        // Those that this very pass stops for their health are among them.
        let unhealthy = seat.leaving.iter().map(|(task, _)| task);
        // One that drains has done nothing wrong, and keeps only those waiting that cannot be beside it.
        let drains = |task: &Arc<Task>| task.is_draining();
        seat.stopping.iter().chain(unhealthy).any(|task| exclusive || (answers(&task) && !drains(task)))
    }
    fn replace(
        &mut self,
        revision: &ServiceRevision,
        seat: &Seat,
        failures: u32,
        leaving: &[&(Arc<Task>, StopReason)],
    ) {
        let moves =
            leaving.iter().all(|(_, why)| matches!(why, StopReason::Drained | StopReason::Rebalanced));
        let order = self.update_policy(&revision.spec).order;
        if spec::stop_first(&revision.spec, order, !moves).is_none() {
            self.start(revision, seat, failures, leaving);
            return;
        }
        let instead_of: Vec<_> = leaving.iter().map(|(task, _)| &**task).collect();
        let demand = self.demand(revision, seat, &instead_of, &[]);
        match self.places.find(&demand) {
            Ok(_) => {
                for (task, why) in leaving {
                    stop_and_wait(self, task, *why);
                }
            }
            Err(because) => self.cannot_place(revision, seat, leaving, &demand, because),
        }
    }

    /// Makes a task on the best node, with its addresses.
    fn start(
        &mut self,
        revision: &ServiceRevision,
        seat: &Seat,
        failures: u32,
        leaving: &[&(Arc<Task>, StopReason)],
    ) {
        let relieves: Vec<_> = leaving.iter().map(|(task, _)| &**task).collect();
        let demand = self.demand(revision, seat, &[], &relieves);
        let node = match self.places.find(&demand) {
            Ok(node) => node,
            Err(because) => return self.cannot_place(revision, seat, leaving, &demand, because),
        };
        let ports = self.places.ports(&demand, node);
        let devices = self.places.devices(&demand, node);
        let (id, created_at) = self.new_task(&revision.key);
        let addresses = match self.give_addresses(id, &revision.spec, node) {
            Ok(addresses) => addresses,
            Err(refused) => {
                let (network, because) = *refused;
                let about = self.about_seat(revision, seat);
                return self.wait(about, Reason::NoNetwork { network, because });
            }
        };
        self.note_volumes(&revision.spec, node);
        let mut holding = demand.holding.with(devices.clone());
        holding.add_ports(&ports);
        self.places.promise(node, &revision.key, &holding);
        let task = Task {
            id,
            service: revision.key.clone(),
            slot: seat.slot,
            generation: revision.generation,
            node: Some(node),
            addresses,
            ports,
            devices,
            created_at,
            stop: None,
            makes_room_for: None,
            drained: None,
            failures,
            hook: None,
            relocation: None,
            moved_from: seat.bound_for.and_then(|_| leaving.first()?.0.node),
            status: Default::default(),
        };
        let about = self.about(&task);
        self.wait(
            about,
            Reason::Coming {
                phase: Phase::Pending,
                node: self.node_name(Some(node)),
                message: String::new(),
            },
        );
        self.create(task);
    }
    fn cannot_place(
        &mut self,
        revision: &ServiceRevision,
        seat: &Seat,
        leaving: &[&(Arc<Task>, StopReason)],
        demand: &Demand<'_>,
        because: NoPlace,
    ) {
        if leaving.is_empty()
            && because.is_for_want_of_room()
            && let Some(reason) = self.make_room(demand)
        {
            return self.wait(self.about_seat(revision, seat), reason);
        }
        if let (Some(to), Some((task, _))) = (seat.bound_for, leaving.first()) {
            let why = format!("{} does not take it: {}", self.node_name(Some(to)), because.refused());
            self.give_up_move(task, why);
            let (about, node) = (self.about(task), self.node_name(task.node));
            return self.wait(about, Reason::Stays { node, why: StopReason::Rebalanced, because });
        }
        let down = |id: &NodeId| self.state(Some(*id)) == Some(NodeState::Down);
        let volume = self.local_volume(&revision.spec);
        let lost = volume.and_then(|(volume, nodes)| Some((volume, nodes.into_iter().find(down)?)));
        let about = self.about_seat(revision, seat);
        let reason = match (lost, leaving.first()) {
            (Some((volume, node)), _) if because.pinned.is_some() => {
                Reason::VolumeOnDownNode { volume, node: self.world.node_name(node) }
            }
            (_, Some((task, why))) => Reason::Stays { node: self.node_name(task.node), why: *why, because },
            (_, None) => Reason::NoPlace(because),
        };
        self.wait(about, reason);
    }

    /// What the seat's next task asks of its node.
    fn demand<'d>(
        &self,
        revision: &'d ServiceRevision,
        seat: &Seat,
        instead_of: &[&'d Task],
        relieves: &[&'d Task],
    ) -> Demand<'d> {
        let mut demand = Demand::of(self.world, revision);
        demand.now = self.now;
        demand.seed = self.chance(seat.slot);
        demand.slot = Some(SlotOf { service: revision.key.clone(), slot: seat.slot });
        demand.instead_of = instead_of.to_vec();
        demand.relieves = relieves.to_vec();
        demand.avoid = seat.ended.first().filter(|task| failed(task)).and_then(|task| task.node);
        demand.pin = self.pin(revision, seat);
        if let Some((_, nodes)) = self.local_volume(&revision.spec) {
            demand.prefer = nodes;
        }
        if revision.spec.policy.slots.is_some_and(|slots| slots.stay)
            && let Some(home) = seat.home
        {
            // What failed there is started there again: the slot is at home nowhere else.
            (demand.prefer, demand.avoid) = (vec![home], None);
        }
        demand
    }
    /// What the task of each seat of a service asks of its node, as if it were placed now: for whoever wants to know why it is where it is,
    /// or nowhere.
    pub(crate) fn asked<'d>(
        &'d self,
        service: &'d Service<'_>,
    ) -> Vec<(About, Option<&'d Arc<Task>>, Demand<'d>)> {
        let Some(revision) = service.revision else { return Vec::new() };
        let (seats, _) = self.seats(service, revision);
        let asked = seats.iter().map(|seat| {
            let leaving = seat.leaving.iter().map(|(task, _)| task);
            let stored = seat.current.iter().chain(leaving).find_map(|task| self.world.task(task.id));
            let own: Vec<&Task> = stored.iter().map(|task| &***task).collect();
            let about = stored.map_or_else(|| self.about_seat(revision, seat), |task| self.about(task));
            (about, stored, self.demand(revision, seat, &own, &[]))
        });
        asked.collect()
    }
    /// Stops tasks of lower priority where that makes room for the demand, or says whom it waits for that is leaving already.
    fn make_room(&mut self, demand: &Demand<'_>) -> Option<Reason> {
        let slot = demand.slot.clone()?;
        let lower = self.world.services_below(demand.priority);
        if lower.is_empty() || self.hopeless.contains(demand.service) {
            return None;
        }
        let Some(room) = self.places.room_by_preemption(demand, &lower, &self.stopped()) else {
            self.hopeless.insert(demand.service.clone());
            return None;
        };
        let (Room::Make(sacrifice) | Room::Comes(sacrifice)) = &room;
        let tasks: Vec<_> = sacrifice.tasks.iter().filter_map(|id| self.world.task(*id)).cloned().collect();
        if let Room::Make(_) = &room {
            tasks.iter().for_each(|task| self.preempt(task, &slot));
            let (priority, holding) = (demand.priority, demand.holding.clone());
            self.places.claim(sacrifice.node, Claim { slot, priority, holding });
        }
        let node = self.node_name(Some(sacrifice.node));
        Some(Reason::MakingRoom { node, tasks: tasks.iter().map(|task| task.name()).collect() })
    }
    /// What ties the seat's next task to certain nodes.
    fn pin(&self, revision: &ServiceRevision, seat: &Seat) -> Option<Pin> {
        // There, or not at all.
        if let Some(node) = seat.node.or(seat.bound_for) {
            return Some(Pin { nodes: vec![node], by: PinnedBy::Global });
        }
        let mut beside: Option<Pin> = None;
        for (service, shared) in revision.spec.companions() {
            let same_slot = |task: &&Arc<Task>| task.slot == seat.slot;
            let all: Vec<_> = self.living(&self.sibling(service)).cloned().collect();
            let own: Vec<_> = all.iter().filter(same_slot).collect();
            let hosts = if own.is_empty() { all.iter().collect() } else { own };
            let nodes: Vec<NodeId> = hosts.into_iter().filter_map(|task| task.node).collect();
            let pin = match beside {
                // Nodes that have all of them; where none has, the one that is missing is named.
                Some(before) if !nodes.is_empty() => {
                    let both = before.nodes.iter().copied().filter(|node| nodes.contains(node)).collect();
                    Pin { nodes: both, ..before }
                }
                Some(_) | None => Pin { nodes, by: PinnedBy::Service(shared, service.clone()) },
            };
            if pin.nodes.is_empty() {
                return Some(pin);
            }
            beside = Some(pin);
        }
        if beside.is_some() {
            return beside;
        }
        let (volume, nodes) = self.local_volume(&revision.spec)?;
        let single = self
            .world
            .service(&revision.key)
            .is_some_and(|record| matches!(record.mode, Mode::Replicated { replicas: 1 }));
        let home = seat.home.filter(|home| nodes.contains(home));
        let nodes = home.map(|home| vec![home]).or(single.then_some(nodes))?;
        Some(Pin { nodes, by: PinnedBy::Volume(volume) })
    }
    /// The first volume of a service that has data on nodes of the cluster which no other node can read, and those nodes.
    pub(crate) fn local_volume(&self, spec: &ServiceSpec) -> Option<(wharf_model::VolumeName, Vec<NodeId>)> {
        spec::named_volumes(spec).find_map(|(name, _)| {
            let volume = self.volume(name).filter(|volume| spec::is_local(&volume.spec))?;
            let nodes: Vec<_> =
                volume.nodes.iter().copied().filter(|node| self.world.node(*node).is_some()).collect();
            (!nodes.is_empty()).then(|| (name.clone(), nodes))
        })
    }

    /// Whether the seat may have a new task: its dependencies are there, and its restart policy allows it.
    fn gate(&mut self, service: &Service<'_>, revision: &ServiceRevision, seat: &Seat) -> Gate {
        match seat.ended.first() {
            // Only what has never been here waits for others: a task that is replaced does not start the app anew.
            None => {
                if self.dependencies.as_ref().is_none_or(|(name, _)| name != service.name()) {
                    let missing = self.missing_dependency(service, revision);
                    self.dependencies = Some((service.name().clone(), missing));
                }
                let missing = self.dependencies.as_ref().and_then(|(_, missing)| missing.clone());
                missing.map_or(Gate::Open(0), Gate::Shut)
            }
            Some(last) => self.restart(revision, seat, last),
        }
    }
    fn restart(&mut self, revision: &ServiceRevision, seat: &Seat, last: &Task) -> Gate {
        // What people change may have removed the cause: it begins with a clean record, and is not held against what failed before.
        let before = last.created_at < self.app.rollout.started_at && !self.app.rollout.state.is_over();
        if before && failed(last) {
            return Gate::Open(0);
        }
        let policy = &revision.spec.restart;
        let unhealthy = last.stop == Some(StopReason::Unhealthy);
        let again = match (last.status.phase, last.stop) {
            (Phase::Lost, _) => return Gate::Open(last.failures),
            (Phase::Complete, _) if policy.condition != RestartCondition::Any && !unhealthy => {
                return Gate::Complete;
            }
            (_, Some(StopReason::Unhealthy)) => true,
            (_, Some(StopReason::ScaledDown | StopReason::Stopped)) => return Gate::Open(0),
            (_, Some(_)) => return Gate::Open(last.failures),
            (_, None) => policy.condition != RestartCondition::None,
        };
        let failures = in_a_row(policy, last);
        if !again || policy.max_attempts.is_some_and(|most| failures > most) {
            let hint = last.status.hint.clone();
            return Gate::Shut(Reason::GaveUp { attempts: last.failures + 1, ended: ending(last), hint });
        }
        let until = self.moment(last, last.status.ended_at) + policy.pause(failures);
        // A few times at once; what goes on failing waits until the clock is past its end.
        let at_once = self.is_of_the_future(last) && failures < CRASH_LOOP;
        if until > self.now && !at_once {
            self.out.wake(until);
            let crashes = crash_loop(policy, seat.ended.iter().map(|task| &**task));
            return Gate::Shut(match crashes.filter(|_| failed(last)) {
                Some(crashes) => {
                    let left = until.since(self.now).into();
                    let (log, hint) = (last.status.last_log.clone(), last.status.hint.clone());
                    Reason::CrashLoop { crashes, until, left, ended: ending(last), log, hint }
                }
                None => Reason::Backoff { failures, until, ended: ending(last) },
            });
        }
        Gate::Open(failures)
    }

    /// The first dependency that is not as far as it must be.
    fn missing_dependency(&self, service: &Service<'_>, revision: &ServiceRevision) -> Option<Reason> {
        let earlier = |name: &ServiceName| {
            let position = |name: &ServiceName| self.services.iter().position(|s| s.name() == name);
            position(name) < position(service.name())
        };
        spec::dependencies(&revision.spec).into_iter().find_map(|(on, dependency)| {
            // No file has a cycle; should one get here, it must not stop the app for ever.
            let state = self.dependency_state(&on, dependency.condition)?;
            let can_come = match state {
                DependencyState::Absent | DependencyState::Stopped | DependencyState::GaveUp { .. } => false,
                DependencyState::NoTask | DependencyState::Phase(_) | DependencyState::NotHealthy { .. } => {
                    true
                }
            };
            let awaited = dependency.required || can_come;
            (awaited && earlier(&on)).then_some(Reason::Dependency {
                on,
                condition: dependency.condition,
                state,
            })
        })
    }
    /// How far a dependency is, if not far enough.
    fn dependency_state(&self, on: &ServiceName, condition: DependencyCondition) -> Option<DependencyState> {
        // What runs outside the cluster is always there.
        if self.release.is_some_and(|release| release.spec.externals.contains_key(on)) {
            return None;
        }
        let Some(service) = self.service(on).filter(|service| !service.record.removed) else {
            return Some(DependencyState::Absent);
        };
        if service.record.stopped {
            return Some(DependencyState::Stopped);
        }
        if service.record.mode == (Mode::Replicated { replicas: 0 }) {
            return None;
        }
        let tasks = self.tasks_of(&service.record.key).iter();
        let tasks: Vec<_> = tasks.filter(|task| service.fits(task)).collect();
        let is_complete = |task: &&&Arc<Task>| task.status.phase == Phase::Complete;
        let complete =
            tasks.iter().filter(is_complete).map(|task| (task.slot, task.node)).collect::<Vec<_>>();
        let reached = match condition {
            DependencyCondition::ServiceStarted => {
                let runs = |task: &&Arc<Task>| task.stop.is_none() && task.status.phase == Phase::Running;
                tasks.iter().any(runs) || !complete.is_empty()
            }
            DependencyCondition::ServiceHealthy => tasks.iter().any(|task| task.is_ready()),
            DependencyCondition::ServiceCompletedSuccessfully => match service.record.mode {
                Mode::Replicated { replicas } => {
                    (1..=replicas).all(|slot| complete.iter().any(|(done, _)| *done == Slot(slot)))
                }
                Mode::Global => !complete.is_empty() && tasks.iter().all(|task| task.is_over()),
            },
        };
        if reached {
            return None;
        }
        let living = tasks.iter().filter(|task| task.stop.is_none() && !task.is_over());
        Some(match living.max_by_key(|task| task.status.phase) {
            Some(task) if task.status.phase == Phase::Running => match condition {
                DependencyCondition::ServiceHealthy => {
                    DependencyState::NotHealthy { output: task.status.probe_output.clone() }
                }
                DependencyCondition::ServiceStarted | DependencyCondition::ServiceCompletedSuccessfully => {
                    DependencyState::Phase(Phase::Running)
                }
            },
            Some(task) => DependencyState::Phase(task.status.phase),
            None => match tasks.last() {
                Some(last) if gave_up(service, last) => DependencyState::GaveUp { ended: ending(last) },
                Some(_) | None => DependencyState::NoTask,
            },
        })
    }

    /// Why the seat can no longer come to what is wanted by itself, as far as its ended tasks say.
    fn certain_failure(&self, about: &About, seat: &Seat) -> Option<String> {
        let of_this_rollout = |task: &Task| task.created_at >= self.app.rollout.started_at;
        // One that is started again after every end and ends at once does not come up either, whatever its exit code.
        let ended = |task: &Task| failed(task) || task.status.phase == Phase::Complete;
        let never_ready =
            seat.ended.iter().take_while(|task| ended(task) && !came_up(task) && of_this_rollout(task));
        let failures: Vec<_> = never_ready.collect();
        let last = failures.first()?;
        let unstarted =
            failures.iter().all(|task| task.status.started_at.is_none() && task.status.exit.is_none());
        let enough = if unstarted { CERTAIN_UNSTARTED } else { CERTAIN };
        (failures.len() >= enough).then(|| {
            let (node, times) = (self.node_name(last.node), failures.len());
            if last.status.phase == Phase::Complete {
                return format!(
                    "{about} ended with exit code 0 {times} times in a row, last on {node}, and is started again each time; \
                     hint: if it is to run once, give it `restart: \"no\"` or `restart: on-failure`"
                );
            }
            format!("{about} failed {times} times in a row, last on {node}: {}", ending(last))
        })
    }

    pub(crate) fn about(&self, task: &Task) -> About {
        let node = task.node.filter(|_| task.slot == Slot(0)).and_then(|node| self.world.node(node));
        About::Slot {
            service: task.service.clone(),
            slot: task.slot,
            node: node.map(|node| node.record.name.clone()),
            task: Some(task.id),
        }
    }
    fn about_seat(&self, revision: &ServiceRevision, seat: &Seat) -> About {
        let node = seat.node.and_then(|node| self.world.node(node));
        let task: Option<TaskId> = seat.leaving.first().map(|(task, _)| task.id);
        About::Slot {
            service: revision.key.clone(),
            slot: seat.slot,
            node: node.map(|node| node.record.name.clone()),
            task: task.or_else(|| seat.ended.first().map(|task| task.id)),
        }
    }
}

/// What of a service's seats may change in one pass.
struct Queue {
    /// By a newer release, or because somebody asked for a restart.
    updates: Turns,
    /// Because their nodes are being drained.
    drains: Turns,
}

/// What of a service's replacement may begin in one pass.
enum Turns {
    /// Everything.
    All,
    /// So many seats more.
    Some { left: usize, parallelism: u32 },
    /// Nothing, and why.
    None(Reason),
}
impl Turns {
    fn refused(&self) -> Option<Reason> {
        match self {
            Self::All | Self::Some { left: 1.., .. } => None,
            Self::Some { left: 0, parallelism } => Some(Reason::Turn { parallelism: *parallelism }),
            Self::None(reason) => Some(reason.clone()),
        }
    }
    const fn take(&mut self) {
        match self {
            Self::Some { left, .. } => *left = left.saturating_sub(1),
            Self::All | Self::None(_) => {}
        }
    }
}

/// Stops a task unless that was asked already, and says that it has not ended yet.
pub(crate) fn stop_and_wait(pass: &mut Pass<'_>, task: &Task, why: StopReason) {
    pass.stop(task, why);
    wait_for_stop(pass, &Task { stop: task.stop.or(Some(why)), ..Task::clone(task) });
}
fn wait_for_stop(pass: &mut Pass<'_>, task: &Task) {
    if let (Some(why), false) = (task.stop, task.is_over()) {
        let (about, node) = (pass.about(task), pass.node_name(task.node));
        // As this pass leaves it.
        let drains = pass.task(task).is_draining() && pass.world.must_drain(task, why);
        let reason = match drains.then(|| pass.world.drain(task, pass.now)) {
            Some(Drain::Waits(waits, again_at)) => {
                pass.out.wake(again_at);
                Reason::Draining { node, why, waits }
            }
            Some(Drain::Done(_)) | None => Reason::Stopping { node, why },
        };
        pass.wait(about, reason);
    }
}

/// Whether its check has failed as often as is allowed.
fn is_unhealthy(task: &Task) -> bool {
    task.status.phase == Phase::Running && task.status.health == Health::Unhealthy
}

/// Whether an ended task ended in a way that counts against it.
fn failed(task: &Task) -> bool {
    match task.status.phase {
        Phase::Failed => matches!(task.stop, None | Some(StopReason::Unhealthy)),
        Phase::Stopped | Phase::Complete => task.stop == Some(StopReason::Unhealthy),
        Phase::Pending
        | Phase::Accepted
        | Phase::Preparing
        | Phase::Starting
        | Phase::Running
        | Phase::Stopping
        | Phase::Lost => false,
    }
}

/// Whether a service's restart policy leaves this ended task as it is.
fn gave_up(service: &Service<'_>, last: &Task) -> bool {
    let Some(policy) = service.revision.map(|revision| revision.spec.restart) else { return false };
    failed(last)
        && (policy.condition == RestartCondition::None
            || policy.max_attempts.is_some_and(|most| last.failures + 1 > most))
}

/// From so many failures in a row on it is a crash loop.
pub const CRASH_LOOP: u32 = 3;

/// A slot whose tasks end again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashLoop {
    /// How often in a row.
    pub times: u32,
    /// How many of those are known more closely: the latest.
    pub known: u32,
    /// How long those took, from the making of the first to the end of the last.
    pub within: Millis,
}
impl fmt::Display for CrashLoop {
    /// `5 times in 3 min`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (times, within) = (self.times, about_time(self.within));
        if self.known < times {
            write!(f, "{times} times in a row, the last {} in {within}", self.known)
        } else {
            write!(f, "{times} times in {within}")
        }
    }
}

/// Whether the latest of a slot's ended tasks, newest first, is one of a crash loop; not if no other one is made.
pub fn crash_loop<'t>(
    policy: &RestartPolicy,
    ended: impl Iterator<Item = &'t Task> + Clone,
) -> Option<CrashLoop> {
    let last = ended.clone().next().filter(|last| failed(last))?;
    let times = in_a_row(policy, last);
    let gave_up =
        policy.condition == RestartCondition::None || policy.max_attempts.is_some_and(|most| times > most);
    if times < CRASH_LOOP || gave_up {
        return None;
    }
    let known = ended.take(times as usize).take_while(|task| failed(task));
    let first = known.clone().last().map_or(last.created_at, |first| first.created_at);
    let end = last.status.ended_at.unwrap_or(last.created_at);
    let known = u32::try_from(known.count()).unwrap_or(times);
    Some(CrashLoop { times, known, within: end.since(first).into() })
}

/// How many failures in a row it is with this one.
fn in_a_row(policy: &RestartPolicy, last: &Task) -> u32 {
    let ran = match (last.status.started_at, last.status.ended_at) {
        (Some(started), Some(ended)) => ended.since(started),
        _ => Duration::ZERO,
    };
    policy.failures(last.failures, ran)
}

/// A length of time as people say it: in the largest unit of which there are two.
pub(crate) fn about_time(time: Millis) -> String {
    let seconds = time.0.div_ceil(1000);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// How a task ended, in words.
pub(crate) fn ending(task: &Task) -> String {
    let exit = task.status.exit.map(|exit| exit.to_string());
    let unhealthy = (task.stop == Some(StopReason::Unhealthy)).then(|| {
        let output = task.status.probe_output.as_deref().map(str::trim).filter(|output| !output.is_empty());
        output.map_or("its check failed".to_owned(), |output| format!("its check failed: {output}"))
    });
    let message = Some(task.status.message.clone()).filter(|message| !message.is_empty());
    unhealthy
        .or(match (exit, message) {
            (Some(exit), Some(message)) if !message.contains(&exit) => Some(format!("{exit}: {message}")),
            (exit, message) => message.or(exit),
        })
        .unwrap_or_else(|| task.status.phase.to_string())
}

/// The generation after every one a service has had.
pub(crate) fn next_generation(world: &crate::World, key: &ServiceKey) -> Generation {
    let known = world.revisions_of(key).map(|revision| revision.generation);
    let record = world.service(key).map(|record| record.generation);
    let tasks = world.tasks_of(key).map(|task| task.generation);
    let highest = known.chain(record).chain(tasks).max().unwrap_or_default();
    Generation(highest.0 + 1)
}
