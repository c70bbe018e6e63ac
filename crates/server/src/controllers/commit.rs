//! Turns what a decision says into conditional writes.
//!
//! Each change expects the revision at which what it changes was read; each batch expects the leader's fence. A batch that was cut off
//! or refused does no harm: the next pass reads again and decides again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use wharf_engine::{Change, Ids, Node};
use wharf_model::{
    AppKey, AppRecord, By, Event, EventKind, Millis, NodeId, NodeState, NodeStatus, Phase, Release,
    RolloutState, ServiceKey, Slot, StopReason, Subject, Task, TaskId, TaskStatus, Timestamp,
};
use wharf_store::{Batch, PORTABLE_BYTES, PORTABLE_KEYS};

use crate::{
    leader::Lead,
    records::{Key, encode},
    state::Inner,
};

/// Keys of one batch, expected or written: below what every store takes, with room for the fence and for what belongs together.
const KEYS_PER_BATCH: usize = PORTABLE_KEYS * 3 / 4;
/// Bytes of one batch: the same.
const BYTES_PER_BATCH: usize = PORTABLE_BYTES / 2;

/// Collects changes into batches.
pub struct Committer<'a> {
    inner: &'a Inner,
    /// What each batch begins with: the leader's fence, or nothing.
    base: Batch,
    now: Timestamp,
    batches: Vec<Batch>,
    /// One batch, however large.
    whole: bool,
    /// The rest is left to the next pass.
    cut: bool,
    /// Tasks as earlier changes of the same decision leave them.
    tasks: HashMap<TaskId, Task>,
    /// Apps likewise.
    apps: HashMap<AppKey, AppRecord>,
    /// Keys an earlier change of the same decision wrote; what they were expected to be was said then.
    written: std::collections::HashSet<Key>,
    /// Of services of which tasks are made: the node on which each slot's last task was lost, if it was.
    lost: HashMap<ServiceKey, BTreeMap<Slot, Option<NodeId>>>,
    /// The nodes of tasks that these changes say are lost.
    lost_now: HashMap<(ServiceKey, Slot), NodeId>,
}

impl<'a> Committer<'a> {
    /// Writes on behalf of this leader, on what is read here.
    pub fn new(inner: &'a Inner, lead: Lead, now: Timestamp) -> Self {
        Self::with(inner, lead.batch(), false, now)
    }

    /// Writes on behalf of a person, on what is read here: as one batch, all or nothing.
    pub fn whole(inner: &'a Inner, now: Timestamp) -> Self {
        Self::with(inner, Batch::new(), true, now)
    }

    fn with(inner: &'a Inner, base: Batch, whole: bool, now: Timestamp) -> Self {
        Self {
            inner,
            batches: vec![base.clone()],
            base,
            now,
            whole,
            cut: false,
            tasks: HashMap::new(),
            apps: HashMap::new(),
            written: std::collections::HashSet::new(),
            lost: HashMap::new(),
            lost_now: HashMap::new(),
        }
    }

    /// The batches, in the order in which they must be committed. None of them is empty.
    pub fn finish(self) -> Vec<Batch> {
        self.batches.into_iter().filter(|batch| !batch.writes().is_empty()).collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "called with keys made for it")]
    fn write(&mut self, key: Key, value: Option<Vec<u8>>) {
        self.write_if(&key, value, None);
    }

    /// Writes a key on condition that it, and another, are as they were read.
    fn write_if(&mut self, key: &Key, value: Option<Vec<u8>>, and: Option<Key>) {
        if self.cut {
            return;
        }
        let mut batch = self.batches.pop().unwrap_or_else(|| self.base.clone());
        let full = batch.writes().len().max(batch.expectations().len()) >= KEYS_PER_BATCH
            || batch.size() + value.as_ref().map_or(0, Vec::len) > BYTES_PER_BATCH;
        if full && !self.whole && !batch.is_empty() {
            self.batches.push(batch);
            batch = self.base.clone();
        }
        let again = !self.written.insert(key.clone());
        if again && !batch.writes().contains_key(&key.to_string()) {
            // Written by an earlier batch: at which revision is not known, so nothing could be expected of it.
            self.batches.push(batch);
            self.cut = true;
            return;
        }
        if !again {
            batch = self.inner.expecting(batch, key);
        }
        if let Some(and) = and {
            batch = self.inner.expecting(batch, &and);
        }
        batch = match value {
            Some(value) => batch.put(key.to_string(), value),
            None => batch.delete(key.to_string()),
        };
        self.batches.push(batch);
    }

    fn put<T: serde::Serialize>(&mut self, key: Key, value: &T) {
        let bytes = encode(&key, value);
        self.write(key, Some(bytes));
    }

    /// Writes an event with the batch that is being filled.
    pub fn event(&mut self, ids: &mut impl Ids, kind: EventKind, subject: Subject, message: String) {
        self.event_by(ids, kind, subject, message, None);
    }

    /// The same of something a person caused.
    pub fn event_by(
        &mut self,
        ids: &mut impl Ids,
        kind: EventKind,
        subject: Subject,
        message: String,
        by: Option<By>,
    ) {
        let id = ids.id(self.now);
        self.put(Key::Event(id), &Event { id, at: self.now, kind, subject, message, by });
    }

    fn task(&self, id: TaskId) -> Option<Task> {
        self.tasks.get(&id).cloned().or_else(|| self.inner.world.task(id).map(|task| Task::clone(task)))
    }

    fn put_task(&mut self, task: Task) {
        self.put(Key::Task(task.id), &task);
        self.tasks.insert(task.id, task);
    }

    /// Adds one change.
    pub fn change(&mut self, change: Change, ids: &mut impl Ids) {
        match change {
            Change::CreateTask(task) => {
                if let Some(lost_on) = self.lost_before(&task) {
                    let on = task.node.map(|node| self.inner.world.node_name(node)).unwrap_or_default();
                    let message = format!(
                        "{} starts on {on} in place of the one that was lost on {lost_on}",
                        task.name()
                    );
                    self.event(ids, EventKind::Task, self.about_task(&task), message);
                }
                self.put_task(Arc::unwrap_or_clone(task));
            }
            Change::StopTask { task, reason } => {
                let Some(task) = self.task(task) else { return };
                let message = format!("{} is to stop: {reason}", task.name());
                self.event(ids, EventKind::Task, self.about_task(&task), message);
                self.put_task(Task { stop: Some(reason), ..task });
            }
            Change::PreemptTask { task, makes_room_for } => {
                let Some(task) = self.task(task).filter(|task| task.stop.is_none()) else { return };
                let message = format!("{} is to stop: preempted by {makes_room_for}", task.name());
                self.event(ids, EventKind::Task, self.about_task(&task), message);
                let stop = Some(StopReason::Preempted);
                self.put_task(Task { stop, makes_room_for: Some(makes_room_for), ..task });
            }
            Change::MoveTask { task, relocation } => {
                let Some(task) = self.task(task) else { return };
                let to = self.inner.world.node_name(relocation.to);
                let message = match &relocation.given_up {
                    None => format!("{} is to move to {to}: {}", task.name(), relocation.why),
                    Some(why) => format!("{} stays where it is: {why}", task.name()),
                };
                self.event(ids, EventKind::Task, self.about_task(&task), message);
                self.put_task(Task { relocation: Some(relocation), ..task });
            }
            Change::PutRebalanceRun(run) => {
                if run.is_over() {
                    let (done, dropped) = run.outcome();
                    let message =
                        format!("rebalancing {} is over: {done} moved, {dropped} did not", run.number);
                    self.event(ids, EventKind::Server, Subject::default(), message);
                }
                self.put(Key::Rebalance, &run);
            }
            Change::DrainedTask { task, at, under_way } => {
                let Some(task) = self.task(task) else { return };
                if under_way > 0 {
                    let requests =
                        if under_way == 1 { "1 request".into() } else { format!("{under_way} requests") };
                    let message = format!(
                        "{} is stopped with {requests} under way: its time to drain is over",
                        task.name()
                    );
                    self.event(ids, EventKind::Task, self.about_task(&task), message);
                }
                self.put_task(Task { drained: task.drained.or(Some(at)), ..task });
            }
            Change::LoseTask { task, message, at } => {
                let Some(task) = self.task(task) else { return };
                if let Some(node) = task.node {
                    self.lost_now.insert((task.service.clone(), task.slot), node);
                }
                let status = TaskStatus {
                    phase: Phase::Lost,
                    sequence: task.status.sequence + 1,
                    ended_at: Some(at),
                    message: message.clone(),
                    ..task.status.clone()
                };
                self.put(Key::TaskStatus(task.id), &status);
                self.event(
                    ids,
                    EventKind::Task,
                    self.about_task(&task),
                    format!("{} is lost: {message}", task.name()),
                );
            }
            Change::RemoveTask(id) => {
                self.write(Key::Task(id), None);
                // Also if none is known: a report that was faster would leave it behind.
                self.write(Key::TaskStatus(id), None);
            }
            Change::PutNetwork(network) => self.put(Key::Network(network.id), &network),
            Change::RemoveNetwork(id) => self.write(Key::Network(id), None),
            Change::PutVolume(volume) => self.put(Key::Volume(volume.id), &volume),
            Change::RemoveVolume(id) => self.write(Key::Volume(id), None),
            Change::PutApp(app) => {
                self.put(Key::App(app.key.clone()), &app);
                self.apps.insert(app.key.clone(), app);
            }
            Change::SetRollout { app, rollout } => {
                let before = self.inner.world.app(&app).map(|record| AppRecord::clone(record));
                let Some(record) = self.apps.get(&app).cloned().or(before) else { return };
                let message = match rollout.state {
                    RolloutState::Progressing => None,
                    RolloutState::Done => Some(format!("{}: {} is done", app.name, rollout.what)),
                    RolloutState::Failed | RolloutState::RolledBack | RolloutState::Superseded => {
                        Some(format!("{}: {} {}: {}", app.name, rollout.what, rollout.state, rollout.reason))
                    }
                };
                if let Some(message) = message.filter(|_| record.rollout.state != rollout.state) {
                    self.event(ids, EventKind::App, about_app(&app), message);
                }
                let record = AppRecord { rollout, ..record };
                self.put(Key::App(app.clone()), &record);
                self.apps.insert(app, record);
            }
            Change::RemoveApp(app) => {
                self.event(ids, EventKind::App, about_app(&app), format!("{} is gone", app.name));
                for digest in self.inner.files_of(&app) {
                    self.write(Key::File(app.clone(), digest), None);
                }
                self.write(Key::App(app), None);
            }
            Change::PutService(service) => self.put(Key::Service(service.key.clone()), &service),
            Change::RemoveService(service) => self.write(Key::Service(service), None),
            Change::PutRevision(revision) => {
                self.put(Key::Revision(revision.key.clone(), revision.generation), &revision);
            }
            Change::RemoveRevision(service, generation) => {
                self.write(Key::Revision(service, generation), None);
            }
            Change::PutRelease(release) => {
                self.put(Key::Release(release.app.clone(), release.number), &release);
            }
            Change::SetOutcome { app, release, outcome } => {
                let Some(record) = self.inner.world.release(&app, release) else { return };
                let record = Release { outcome: Some(outcome), ..Release::clone(record) };
                self.put(Key::Release(app, release), &record);
            }
            Change::RemoveRelease(app, number) => self.write(Key::Release(app, number), None),
            Change::SetNodeStatus { node, status } => {
                let Some(known) = self.inner.world.node(node) else { return };
                for message in self.telling_of_node(known, &status) {
                    self.event(ids, EventKind::Node, self.about_node(node), message);
                }
                let cleanup = |status: &wharf_model::NodeStatus| status.facts.as_ref()?.cleanup.clone();
                if let Some(now) = cleanup(&status)
                    && known.status.as_ref().and_then(cleanup).as_ref() != Some(&now)
                {
                    let message =
                        format!("node {} {} ({} are free again)", known.record.name, now.said, now.freed);
                    self.event(ids, EventKind::Node, self.about_node(node), message);
                }
                let full = |node: &Node| wharf_engine::full_disk(node).map(|(disk, _)| disk.percent());
                let then = Node { record: known.record.clone(), status: Some(status.clone()) };
                let name = &known.record.name;
                let message = match (full(known), full(&then)) {
                    (None, Some(percent)) => {
                        Some(format!("a disk of node {name} is {percent} % full: it takes no new tasks"))
                    }
                    (Some(_), None) => {
                        Some(format!("the disks of node {name} have room: it takes tasks again"))
                    }
                    (Some(_), Some(_)) | (None, None) => None,
                };
                if let Some(message) = message {
                    self.event(ids, EventKind::Node, self.about_node(node), message);
                }
                let key = Key::NodeStatus(node);
                let bytes = encode(&key, &status);
                // Of a node that was removed meanwhile nothing may stay behind.
                self.write_if(&key, Some(bytes), Some(Key::Node(node)));
            }
        }
    }

    /// Adds what an agent reported of a task, and says in the diary what people want to know of it.
    pub fn report(&mut self, id: TaskId, status: &TaskStatus, ids: &mut impl Ids) {
        let Some(task) = self.task(id) else { return };
        let before = &task.status;
        if (before.phase, before.health) != (status.phase, status.health)
            && let Some(what) = telling(&task, status)
        {
            let subject = self.about_task(&task);
            self.event(ids, EventKind::Task, subject, format!("{} {what}", task.name()));
        }
        for what in noticed(before, status) {
            let subject = self.about_task(&task);
            self.event(ids, EventKind::Task, subject, format!("{} {what}", task.name()));
        }
        let key = Key::TaskStatus(id);
        let bytes = encode(&key, status);
        // Of a task that was removed meanwhile nothing may stay behind.
        self.write_if(&key, Some(bytes), Some(Key::Task(id)));
    }

    /// What a node's new status means, for the diary.
    fn telling_of_node(&self, known: &Node, status: &NodeStatus) -> Vec<String> {
        let name = &known.record.name;
        let before = known.status.as_ref();
        let mut said = Vec::new();
        if known.state() != status.state {
            let reason =
                if status.reason.is_empty() { String::new() } else { format!(": {}", status.reason) };
            said.push(format!("node {name} is {}{reason}", status.state));
        }
        match (known.is_suspected(), &status.suspected) {
            (false, Some(suspicion)) => {
                let by: Vec<_> = suspicion.by.iter().map(|node| self.inner.world.node_name(*node)).collect();
                let hear = if by.len() == 1 { "does" } else { "do" };
                said.push(format!(
                    "node {name} is suspected to be gone: {} {hear} not hear it; nothing is sent to its tasks where others serve",
                    by.join(" and ")
                ));
            }
            (true, None) if status.state != NodeState::Down => {
                said.push(format!("node {name} is heard again: it is sent requests as before"));
            }
            (true | false, None) | (true, Some(_)) => {}
        }
        if status.missing && !known.is_missing() {
            said.push(format!(
                "node {name} is still not heard: its tasks that may run beside each other are replaced before it counts as down"
            ));
        }
        if let Some(spared) = status.spared.filter(|_| before.is_none_or(|before| before.spared.is_none())) {
            said.push(format!(
                "node {name} is not given up yet: {} of {} nodes are away at once, and count as down one after the other",
                spared.away, spared.of
            ));
        }
        let was_held = known.held_until();
        match status.held_until.filter(|until| was_held != Some(*until)) {
            Some(until) => {
                let hold = Millis::from(until.since(self.now));
                said.push(format!(
                    "node {name} gets no new tasks for {hold}: it went away {} times lately",
                    status.lapses.len()
                ));
            }
            None => {
                let takes = status.state == NodeState::Ready && status.suspected.is_none();
                let free = was_held.filter(|_| takes && status.held_until.is_none());
                said.extend(free.map(|until| match until <= self.now {
                    true => format!("node {name} has been steady and takes tasks again"),
                    false => format!("node {name} takes tasks again: no other can be counted on"),
                }));
            }
        }
        said
    }

    /// Where the slot's last task was lost, if that is how it ended.
    fn lost_before(&mut self, task: &Task) -> Option<String> {
        let world = &self.inner.world;
        if task.slot == Slot(0) || task.hook.is_some() {
            return None;
        }
        if let Some(node) = self.lost_now.get(&(task.service.clone(), task.slot)) {
            return Some(world.node_name(*node));
        }
        // Once for all slots of a service: it may have thousands.
        let lost = self.lost.entry(task.service.clone()).or_insert_with(|| {
            let mut last = BTreeMap::new();
            for task in world.tasks_of(&task.service).filter(|task| task.is_over()) {
                let lost = task.node.filter(|_| task.status.phase == Phase::Lost);
                last.insert(task.slot, lost);
            }
            last
        });
        lost.get(&task.slot).copied().flatten().map(|node| world.node_name(node))
    }

    fn about_task(&self, task: &Task) -> Subject {
        Subject {
            app: Some(task.service.app.clone()),
            service: Some(ServiceKey::clone(&task.service)),
            task: Some(task.id),
            task_name: Some(task.name()),
            node: task.node,
            node_name: task.node.map(|node| self.inner.world.node_name(node)),
        }
    }
    fn about_node(&self, node: NodeId) -> Subject {
        Subject { node: Some(node), node_name: Some(self.inner.world.node_name(node)), ..Subject::default() }
    }
}

fn about_app(app: &AppKey) -> Subject {
    Subject { app: Some(app.clone()), ..Subject::default() }
}

/// What happened to a task that goes on, for the diary.
fn noticed(before: &TaskStatus, status: &TaskStatus) -> Vec<String> {
    let mut noticed = Vec::new();
    let times = |status: &TaskStatus| status.restarts.map_or(0, |restarts| restarts.times);
    let more = times(status).saturating_sub(times(before));
    if let Some(restarts) = status.restarts.filter(|_| more > 0) {
        let often = if more == 1 { String::new() } else { format!(" {more} times") };
        noticed.push(format!(
            "was started again{often} by its node while no server answered; it had ended with: {}",
            restarts.exit
        ));
    }
    if status.oom_kills > before.oom_kills {
        noticed.push(match status.oom_kills - before.oom_kills {
            1 => "is out of memory: the kernel has ended one of its processes".to_owned(),
            many => format!("is out of memory: the kernel has ended {many} of its processes"),
        });
    }
    noticed
}

/// What a task's new phase or health means, for the diary; not every step is worth a line.
fn telling(task: &Task, status: &TaskStatus) -> Option<String> {
    use wharf_model::Health;
    match status.phase {
        Phase::Pending | Phase::Accepted | Phase::Preparing | Phase::Starting | Phase::Stopping => None,
        Phase::Running => match status.health {
            Health::Unchecked => Some("is running".into()),
            Health::Starting => Some("is running, and not ready yet".into()),
            Health::Healthy => Some("is healthy".into()),
            Health::Unhealthy => Some("is unhealthy".into()),
        },
        Phase::Complete => Some("is complete".into()),
        Phase::Stopped => Some("has stopped".into()),
        Phase::Failed => {
            let how = match (&status.exit, status.message.is_empty()) {
                (_, false) => status.message.clone(),
                (Some(exit), true) => exit.to_string(),
                (None, true) => "no reason was given".into(),
            };
            // A task that was asked to stop and did not exit with 0 has done what it was asked for.
            (task.stop.is_none()).then(|| format!("failed: {how}"))
        }
        Phase::Lost if status.message.is_empty() => Some("is lost".into()),
        Phase::Lost => Some(format!("is lost: {}", status.message)),
    }
}
