//! Decides what becomes of a service's second set of tasks: how large it is, which part of the requests it gets, and when it takes over.
//!
//! - A service has one set that serves: names, virtual addresses, published ports and connections that nobody reads lead to it alone. A set
//!   that is to take its place gets nothing (blue-green: what asks for its preview host) or a part of the requests of HTTP routes
//!   (canary), until it takes over in one commit.
//! - The services of an app that have a second set take over together, once all of them may and every other service is as wanted.
//! - A part of the requests is given to a set only when all of its tasks are ready, and grows only when the judge has found nothing.
//! - What served before a blue-green switch stays as it is, unseen, for as long as the file says, and can take over again at once.
//! - A set that is given up gets nothing from the commit on that gives it up; its tasks drain and go like any others.

use std::{collections::BTreeSet, time::Duration};

use wharf_model::{
    AppSpec, CanaryStep, Generation, Judge, Mode, Promote, ReleaseStrategy, Rollout, ServiceKey, ServiceName,
    ServiceProgress, ServiceRecord, ServiceRevision, ServiceSpec, SetRole, StopReason, Task, TaskSet,
    Timestamp,
};

use crate::{
    About, Reason, World,
    judge::{self, Verdict},
    pass::{Pass, Service},
    routing::Share,
    spec,
    tasks::{ServiceStanding, Standing},
};

/// A step without enough requests is held for so many times its own time before it is judged by what there is.
const PATIENCE: u32 = 5;
/// Parts of a set's share, so that it can be divided between generations whose containers are alike.
const PARTS: u32 = 1000;

/// How a service moves to a release: as it says itself, or as the app does, where that is possible. None if task by task.
pub(crate) fn asked<'s>(
    app: &'s AppSpec,
    name: &ServiceName,
    service: &'s ServiceSpec,
) -> Option<&'s ReleaseStrategy> {
    let own = service.policy.release.as_ref();
    let apps =
        || app.policy.release.as_ref().filter(|strategy| cannot(app, name, service, strategy).is_none());
    own.or_else(apps).filter(|strategy| **strategy != ReleaseStrategy::Rolling)
}

/// The same of a stored revision.
pub(crate) fn of_revision<'w>(
    world: &'w World,
    revision: &'w ServiceRevision,
) -> Option<&'w ReleaseStrategy> {
    match world.release(&revision.key.app, revision.release) {
        Some(release) => asked(&release.spec, &revision.key.name, &revision.spec),
        None => {
            revision.spec.policy.release.as_ref().filter(|strategy| **strategy != ReleaseStrategy::Rolling)
        }
    }
}

/// The word of a strategy that has a second set made.
const fn word(strategy: &ReleaseStrategy) -> &'static str {
    match strategy {
        ReleaseStrategy::Rolling => "rolling",
        ReleaseStrategy::BlueGreen { .. } => "blue-green",
        ReleaseStrategy::Canary { .. } => "canary",
    }
}

// --- which task belongs to which set ---

/// The generations whose containers are made just as those of `wanted`, so that none of their tasks needs replacing.
pub(crate) fn fitting(world: &World, key: &ServiceKey, wanted: Generation) -> BTreeSet<Generation> {
    let Some(revision) = world.revision_of(key, wanted) else { return BTreeSet::new() };
    let restarted = |low: Generation, high: Generation| {
        let mut between = world.revisions_of(key);
        between.any(|between| between.restart && between.generation > low && between.generation <= high)
    };
    let fits = world.revisions_of(key).filter(|other| {
        let (low, high) = (other.generation.min(wanted), other.generation.max(wanted));
        other.generation == wanted || (!restarted(low, high) && spec::same_container(world, other, revision))
    });
    fits.map(|revision| revision.generation).collect()
}

/// The generations whose tasks belong to sets beside the one that serves, and which set that is.
pub(crate) fn beside<'r>(
    world: &World,
    record: &'r ServiceRecord,
) -> Vec<(&'r TaskSet, BTreeSet<Generation>)> {
    let with = |set: &'r TaskSet| (set, fitting(world, &record.key, set.generation));
    record.sets.iter().map(with).collect()
}

/// The set beside the one that serves that a task of this generation belongs to; none if it is one of those that serve.
fn set_of<'r>(world: &World, record: &'r ServiceRecord, generation: Generation) -> Option<&'r TaskSet> {
    if record.sets.is_empty() {
        return None;
    }
    beside(world, record).into_iter().find(|(_, fits)| fits.contains(&generation)).map(|(set, _)| set)
}

/// Whether names, virtual addresses, published ports and connections that nobody reads lead to tasks of this generation.
pub(crate) fn serves(world: &World, service: &ServiceKey, generation: Generation) -> bool {
    world.service(service).is_none_or(|record| set_of(world, record, generation).is_none())
}

/// What tasks of one generation get of the requests to a service's HTTP routes.
pub(crate) fn share(world: &World, service: &ServiceKey, generation: Generation) -> Share {
    let Some(record) = world.service(service).filter(|record| !record.sets.is_empty()) else {
        return Share::Even;
    };
    let next = record.next().and_then(|set| match set.role {
        SetRole::Next { percent, .. } => Some((set, u32::from(percent))),
        SetRole::Kept { .. } | SetRole::Leaving => None,
    });
    // A set of which no task can answer gets nothing, whatever it should have.
    let can_answer = |set: Option<&TaskSet>| ready_in(world, record, set, None) > 0;
    let percent = next.map_or(0, |(set, percent)| if can_answer(Some(set)) { percent } else { 0 });
    let own = set_of(world, record, generation);
    match own.map(|set| &set.role) {
        None if percent == 0 => Share::Even,
        None => part(world, record, None, generation, 100 - percent.min(100)),
        Some(SetRole::Next { percent: 0, .. }) => {
            let revision = own.and_then(|set| world.revision_of(service, set.generation));
            match revision.and_then(|revision| of_revision(world, revision)) {
                Some(ReleaseStrategy::BlueGreen { preview: Some(_), .. }) => Share::Preview,
                Some(_) | None => Share::Hidden,
            }
        }
        Some(SetRole::Next { .. }) => part(world, record, own, generation, percent),
        Some(SetRole::Kept { .. } | SetRole::Leaving) => Share::Hidden,
    }
}

/// A set's share, divided between the generations of its ready tasks.
fn part(
    world: &World,
    record: &ServiceRecord,
    set: Option<&TaskSet>,
    generation: Generation,
    percent: u32,
) -> Share {
    let all = ready_in(world, record, set, None).max(1);
    let own = ready_in(world, record, set, Some(generation));
    Share::Weight((percent * PARTS * own).div_ceil(all))
}

/// How many tasks of a set (the one that serves, if none is named) are ready, of all generations or of one.
fn ready_in(world: &World, record: &ServiceRecord, set: Option<&TaskSet>, only: Option<Generation>) -> u32 {
    let sets = beside(world, record);
    let generation_of = |set: &TaskSet| set.generation;
    let belongs = |generation: Generation| {
        let own = sets.iter().find(|(_, fits)| fits.contains(&generation)).map(|(set, _)| generation_of(set));
        own == set.map(generation_of)
    };
    let tasks = world.tasks_of(&record.key).filter(|task| task.is_ready());
    let counted =
        tasks.filter(|task| only.is_none_or(|only| task.generation == only) && belongs(task.generation));
    u32::try_from(counted.count()).unwrap_or(u32::MAX)
}

// --- what a release and a return make of a service ---

/// How large a set is that gets so many per cent of the requests of one of this size.
fn sized(full: Mode, percent: u8) -> Mode {
    match full {
        Mode::Replicated { replicas } => {
            let part = (u64::from(replicas) * u64::from(percent)).div_ceil(100);
            Mode::Replicated { replicas: u32::try_from(part).unwrap_or(replicas).clamp(1, replicas.max(1)) }
        }
        Mode::Global => Mode::Global,
    }
}

/// Whether a service has tasks to be replaced, so that a strategy means something.
fn has_tasks(record: &ServiceRecord) -> bool {
    !record.stopped && !record.removed && record.mode != (Mode::Replicated { replicas: 0 })
}

/// A service's record once a release wants this generation and number of tasks of it. `world` has the generation already.
///
/// With a strategy that has a second set made, and something that serves, the new tasks come beside the old ones. What stands beside
/// these from earlier belongs to the new set if its containers are the same, and goes otherwise.
pub(crate) fn succeeded(
    world: &World,
    stored: Option<&ServiceRecord>,
    wanted: &ServiceRecord,
    strategy: Option<&ReleaseStrategy>,
    direct: bool,
) -> ServiceRecord {
    let Some(stored) = stored else { return wanted.clone() };
    let fits = fitting(world, &wanted.key, wanted.generation);
    let others = stored.sets.iter().filter(|set| !fits.contains(&set.generation));
    let mut sets: Vec<_> = others.map(|set| TaskSet { role: SetRole::Leaving, ..set.clone() }).collect();
    let something = has_tasks(stored) && wanted.mode != (Mode::Replicated { replicas: 0 });
    // Tasks like these serve already, where a release has not replaced them yet: there is nothing to try, and a second set would take
    // them from those who serve.
    let serves = |task: &Task| {
        !task.is_over() && fits.contains(&task.generation) && set_of(world, stored, task.generation).is_none()
    };
    let serve = fits.contains(&stored.generation) || world.tasks_of(&wanted.key).any(|task| serves(task));
    let Some(strategy) = strategy.filter(|_| something && !serve) else {
        return ServiceRecord { sets, ..wanted.clone() };
    };
    let mode = match strategy {
        ReleaseStrategy::Canary { steps, .. } if !direct => {
            steps.first().map_or(wanted.mode, |step| sized(wanted.mode, step.weight))
        }
        ReleaseStrategy::Canary { .. } | ReleaseStrategy::BlueGreen { .. } | ReleaseStrategy::Rolling => {
            wanted.mode
        }
    };
    let role = SetRole::Next { full: wanted.mode, percent: 0 };
    sets.push(TaskSet { generation: wanted.generation, mode, role });
    ServiceRecord { sets, ..stored.clone() }
}

/// A service whose next set is given up although nothing takes its place yet.
pub(crate) fn withdrawn(record: &ServiceRecord) -> Option<ServiceRecord> {
    record.next()?;
    let mut record = record.clone();
    for set in &mut record.sets {
        if let SetRole::Next { .. } = set.role {
            set.role = SetRole::Leaving;
        }
    }
    Some(record)
}

/// A service as it was before a release, with what the release made given up.
///
/// If what served before was kept and all of it is ready, it serves again at once, and the release's tasks get nothing any more.
pub(crate) fn returned(world: &World, now: &ServiceRecord, before: &ServiceRecord) -> ServiceRecord {
    let fits = fitting(world, &before.key, before.generation);
    let untouched = fits.contains(&now.generation);
    let others = now.sets.iter().filter(|set| !fits.contains(&set.generation));
    let given_up = |set: &TaskSet| match set.role {
        // From before the release: it has nothing to do with that.
        SetRole::Kept { .. } if untouched => set.clone(),
        SetRole::Kept { .. } | SetRole::Next { .. } | SetRole::Leaving => {
            TaskSet { role: SetRole::Leaving, ..set.clone() }
        }
    };
    let mut sets: Vec<_> = others.map(given_up).collect();
    let kept = now
        .sets
        .iter()
        .find(|set| matches!(set.role, SetRole::Kept { .. }) && fits.contains(&set.generation));
    let warm = kept.is_some_and(|set| {
        let wanted = match before.mode {
            Mode::Replicated { replicas } => replicas,
            Mode::Global => 1,
        };
        ready_in(world, now, Some(set), None) >= wanted
    });
    if warm && !untouched {
        sets.push(TaskSet { generation: now.generation, mode: now.mode, role: SetRole::Leaving });
    }
    ServiceRecord { sets, ..before.clone() }
}

/// Why a service cannot be released as it says itself, if it cannot; in words.
pub(crate) fn refused(app: &AppSpec, name: &ServiceName, service: &ServiceSpec) -> Option<String> {
    cannot(app, name, service, service.policy.release.as_ref()?)
}

/// Why a service is released task by task although its app says otherwise, if it is; in words.
pub(crate) fn fallen_back(app: &AppSpec, name: &ServiceName, service: &ServiceSpec) -> Option<String> {
    let strategy = app.policy.release.as_ref().filter(|_| service.policy.release.is_none())?;
    let why = cannot(app, name, service, strategy)?;
    Some(format!("task by task, not {}: {why}", word(strategy)))
}

/// Why a service cannot have a second set of tasks beside the one that serves, if it cannot; in words.
fn cannot(
    app: &AppSpec,
    name: &ServiceName,
    service: &ServiceSpec,
    strategy: &ReleaseStrategy,
) -> Option<String> {
    if *strategy == ReleaseStrategy::Rolling {
        return None;
    }
    if let Some(why) = spec::stop_first(service, service.update.order, true) {
        return Some(why.to_string());
    }
    let sharing = app.services.iter().find_map(|(other, spec)| Some((other, *spec.companions().get(name)?)));
    if let Some((other, shared)) = sharing {
        return Some(format!("{other} shares its {shared}, and could not share that of two"));
    }
    match strategy {
        ReleaseStrategy::Canary { .. } if service.mode == Mode::Global => {
            Some("it has one task on every suitable node, and no part of that".to_owned())
        }
        ReleaseStrategy::Canary { .. }
            if !service.policy.routes.iter().any(|route| route.sees_requests()) =>
        {
            Some("it has no HTTP route in `x-wharf.routes`, and only requests can be divided".to_owned())
        }
        ReleaseStrategy::Canary { .. } | ReleaseStrategy::BlueGreen { .. } | ReleaseStrategy::Rolling => None,
    }
}

/// How a release by this strategy goes, for who reads its plan.
pub(crate) fn note(strategy: &ReleaseStrategy, mode: Mode) -> String {
    let tasks = match mode {
        Mode::Replicated { replicas: 1 } => "a second task is".to_owned(),
        Mode::Replicated { replicas } => format!("{replicas} more tasks are"),
        Mode::Global => "a second task on every suitable node is".to_owned(),
    };
    match strategy {
        ReleaseStrategy::Rolling => String::new(),
        ReleaseStrategy::BlueGreen { preview, promote, keep } => {
            let when = match promote {
                Promote::Auto => "once all are ready",
                Promote::Manual => "when somebody promotes them",
            };
            let preview =
                preview.as_ref().map(|host| format!(", until then at {host} only")).unwrap_or_default();
            format!(
                "{tasks} made beside the old; all requests go there {when}{preview}; the old are kept for {keep}"
            )
        }
        ReleaseStrategy::Canary { steps, promote, .. } => {
            let steps: Vec<_> =
                steps.iter().map(|step| format!("{} % for {}", step.weight, step.hold)).collect();
            let manual = match promote {
                Promote::Auto => "",
                Promote::Manual => ", each until somebody promotes it",
            };
            format!("new tasks get a part of the requests and are judged by it: {}{manual}", steps.join(", "))
        }
    }
}

/// The services whose releases are judged by what gateways count of them.
pub fn judged(world: &World) -> BTreeSet<ServiceKey> {
    let is_judged = |record: &ServiceRecord| {
        let next = record.next().and_then(|set| world.revision_of(&record.key, set.generation));
        let strategy = next.and_then(|revision| of_revision(world, revision));
        let app = world.app(&record.key.app);
        matches!(strategy, Some(ReleaseStrategy::Canary { .. }))
            && app.is_some_and(|app| !app.removed && !app.rollout.direct)
    };
    world.services().filter(|record| is_judged(record)).map(|record| record.key.clone()).collect()
}

// --- in a pass ---

/// Brings the sets beside the one that serves nearer to what they are for, and says how the service stands: a service with a next set
/// stands as that does, whatever becomes of the one whose place it takes.
pub(crate) fn fill(pass: &mut Pass<'_>, service: &Service<'_>, serving: Vec<Standing>) -> Vec<Standing> {
    let record = service.record;
    if record.sets.is_empty() {
        return serving;
    }
    let mut standings = if record.next().is_some() { Vec::new() } else { serving };
    for (set, fits) in beside(pass.world, record) {
        match set.role {
            SetRole::Next { .. } => {
                let alone = ServiceRecord {
                    generation: set.generation,
                    mode: set.mode,
                    sets: Vec::new(),
                    ..record.clone()
                };
                let revision =
                    pass.world.revision_of(&record.key, set.generation).map(|revision| &**revision);
                standings.extend(pass.fill(&Service::only(&alone, revision, fits)));
            }
            SetRole::Kept { until } => keep(pass, record, set, &fits, until),
            SetRole::Leaving => {
                if leave(pass, record, set, &fits) {
                    standings.push(Standing::Underway);
                }
            }
        }
    }
    standings
}

/// A service that wants no tasks has no sets of them.
pub(crate) fn clear(pass: &mut Pass<'_>, service: &Service<'_>) {
    if !service.record.sets.is_empty() {
        pass.put_service(ServiceRecord { sets: Vec::new(), ..service.record.clone() });
    }
}

/// A set that served before stays as it is until its time is over, or nothing of it is left.
fn keep(
    pass: &mut Pass<'_>,
    record: &ServiceRecord,
    set: &TaskSet,
    fits: &BTreeSet<Generation>,
    until: Timestamp,
) {
    let tasks = unfinished(pass, &record.key, fits);
    let drained = |node: Option<wharf_model::NodeId>| {
        let node = node.and_then(|node| pass.world.node(node));
        node.is_some_and(|node| pass.availability(node) == wharf_model::Availability::Drain)
    };
    let gone: Vec<_> = tasks.iter().filter(|task| drained(task.node)).cloned().collect();
    for task in gone {
        crate::tasks::stop_and_wait(pass, &task, StopReason::Drained);
    }
    if tasks.iter().all(|task| task.stop.is_some()) || until <= pass.now {
        edit_set(pass, &record.key, set.generation, |set| set.role = SetRole::Leaving);
    } else {
        pass.out.wake(until);
    }
}

/// A set that goes: its tasks are stopped, and once they are over it is forgotten. Answers whether any is left.
fn leave(pass: &mut Pass<'_>, record: &ServiceRecord, set: &TaskSet, fits: &BTreeSet<Generation>) -> bool {
    let why = if set.generation > record.generation { StopReason::Withdrawn } else { StopReason::Outdated };
    let tasks = unfinished(pass, &record.key, fits);
    for task in &tasks {
        crate::tasks::stop_and_wait(pass, task, why);
    }
    if tasks.is_empty()
        && let Some(mut record) = pass.record(&record.key)
    {
        record.sets.retain(|other| other.generation != set.generation);
        pass.put_service(record);
    }
    !tasks.is_empty()
}

fn unfinished(
    pass: &Pass<'_>,
    service: &ServiceKey,
    fits: &BTreeSet<Generation>,
) -> Vec<std::sync::Arc<wharf_model::Task>> {
    let tasks = pass.tasks_of(service).iter();
    tasks.filter(|task| !task.is_over() && fits.contains(&task.generation)).cloned().collect()
}

fn edit_set(pass: &mut Pass<'_>, service: &ServiceKey, of: Generation, edit: impl FnOnce(&mut TaskSet)) {
    let Some(mut record) = pass.record(service) else { return };
    if let Some(set) = record.sets.iter_mut().find(|set| set.generation == of) {
        edit(set);
        pass.put_service(record);
    }
}

/// A service with a set that is to take over.
struct Trial {
    key: ServiceKey,
    generation: Generation,
    /// How large the set is now, and how large it will be.
    mode: Mode,
    full: Mode,
    strategy: ReleaseStrategy,
    /// All of its tasks are as wanted.
    ready: bool,
}
impl Trial {
    /// The steps before the switch.
    fn steps(&self, direct: bool) -> &[CanaryStep] {
        match &self.strategy {
            ReleaseStrategy::Canary { steps, .. } if !direct => steps,
            ReleaseStrategy::Canary { .. } | ReleaseStrategy::BlueGreen { .. } | ReleaseStrategy::Rolling => {
                &[]
            }
        }
    }
}

/// What became of the second sets in this pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Course {
    /// No service has one that is to take over, or they take over now.
    Through,
    /// They are on their way.
    Underway,
    /// One was judged and must not take over; with why.
    Refused(String),
}

/// Takes second sets a step further. `others_settled` says whether every other service is as wanted.
pub(crate) fn decide(
    pass: &mut Pass<'_>,
    rollout: &mut Rollout,
    services: &[ServiceStanding],
    others_settled: bool,
) -> Course {
    let trials = trials(pass, services);
    if trials.is_empty() {
        return Course::Through;
    }
    let mut promoted = false;
    for trial in &trials {
        match advance(pass, rollout, trial) {
            Ok(by_promotion) => promoted |= by_promotion,
            Err(why) => return Course::Refused(why),
        }
    }
    let is_through = |trial: &Trial| {
        let progress = rollout.steps.get(&trial.key.name);
        trial.ready
            && progress.is_some_and(|progress| progress.step >= progress.steps && progress.since.is_some())
    };
    if promoted && rollout.promoted.as_ref().is_some_and(|promotion| !promotion.whole) {
        rollout.promoted = None;
        return Course::Underway;
    }
    if !trials.iter().all(is_through) || rollout.paused.is_some() {
        return Course::Underway;
    }
    if !others_settled {
        let about = About::App(pass.app.key.clone());
        pass.wait(about, Reason::Others);
        return Course::Underway;
    }
    let manual = trials.iter().find(|trial| match &trial.strategy {
        ReleaseStrategy::BlueGreen { promote, .. } => *promote == Promote::Manual && !rollout.direct,
        ReleaseStrategy::Canary { .. } | ReleaseStrategy::Rolling => false,
    });
    if let Some(trial) = manual.filter(|_| rollout.promoted.is_none()) {
        let progress = rollout.steps.get(&trial.key.name).cloned().unwrap_or_default();
        pass.wait(About::Service(trial.key.clone()), Reason::Promotion { found: progress.verdict });
        return Course::Underway;
    }
    rollout.promoted = None;
    for trial in &trials {
        switch(pass, rollout, trial);
    }
    // The tables without the old set are acknowledged before it is all over.
    Course::Underway
}

fn trials(pass: &Pass<'_>, services: &[ServiceStanding]) -> Vec<Trial> {
    let wanted = pass.services.iter().filter(|service| !service.is_unwanted(pass.app));
    let trial = |service: &Service<'_>| {
        let record = pass.record(&service.record.key)?;
        let set = record.next()?;
        let SetRole::Next { full, .. } = set.role else { return None };
        let revision = pass.world.revision_of(&record.key, set.generation);
        let strategy = revision.and_then(|revision| of_revision(pass.world, revision)).cloned();
        let seats = services.iter().filter(|standing| standing.name == record.key.name);
        let mut seats = seats.flat_map(|standing| &standing.seats);
        Some(Trial {
            generation: set.generation,
            mode: set.mode,
            full,
            // Without one, and there is always one, it takes over once it is ready.
            strategy: strategy.unwrap_or(ReleaseStrategy::Rolling),
            ready: seats.all(|standing| *standing == Standing::Settled),
            key: record.key,
        })
    };
    wanted.filter_map(trial).collect()
}

/// Takes one service a step further. Answers whether a person's promotion did it, or why the new release must not take over.
fn advance(pass: &mut Pass<'_>, rollout: &mut Rollout, trial: &Trial) -> Result<bool, String> {
    let steps = trial.steps(rollout.direct);
    let count = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let (paused, whole) =
        (rollout.paused.is_some(), rollout.promoted.as_ref().map(|promotion| promotion.whole));
    let progress = rollout.steps.entry(trial.key.name.clone()).or_default();
    if progress.generation != trial.generation {
        *progress = ServiceProgress {
            strategy: word(&trial.strategy).to_owned(),
            generation: trial.generation,
            steps: count,
            ..ServiceProgress::default()
        };
    }
    if whole == Some(true) && progress.step < count {
        (progress.step, progress.since) = (count, None);
    }
    let step = usize::try_from(progress.step).ok().and_then(|step| steps.get(step));
    let size = step.map_or(trial.full, |step| sized(trial.full, step.weight));
    if size != trial.mode {
        if !paused {
            progress.since = None;
            edit_set(pass, &trial.key, trial.generation, |set| set.mode = size);
        }
        return Ok(false);
    }
    if progress.since.is_none() {
        if trial.ready && !paused {
            progress.since = Some(pass.now);
            progress.baseline = pass.world.figures(&trial.key).cloned();
            if progress.first.is_none() {
                progress.first.clone_from(&progress.baseline);
            }
            if let Some(step) = step {
                edit_set(pass, &trial.key, trial.generation, |set| {
                    if let SetRole::Next { percent, .. } = &mut set.role {
                        *percent = step.weight;
                    }
                });
            }
        }
        return Ok(false);
    }
    let (Some(step), ReleaseStrategy::Canary { judge, promote, .. }) = (step, &trial.strategy) else {
        // Nothing is left but the switch; one that is no longer ready has to become so again.
        if !trial.ready {
            progress.since = None;
        }
        return Ok(false);
    };
    hold(pass, progress, &Held { trial, step, judge, promote: *promote, paused, promoted: whole.is_some() })
}

/// A step that is held.
struct Held<'t> {
    trial: &'t Trial,
    step: &'t CanaryStep,
    judge: &'t Judge,
    promote: Promote,
    paused: bool,
    /// Somebody lets it go on.
    promoted: bool,
}

/// Judges the step that is held, and goes on to the next one when its time has come.
fn hold(pass: &mut Pass<'_>, progress: &mut ServiceProgress, held: &Held<'_>) -> Result<bool, String> {
    let Held { trial, step, judge, .. } = held;
    let since = progress.since.unwrap_or(pass.now);
    let (hold, longest) = (step.hold.duration(), step.hold.duration() * PATIENCE);
    let for_so_long = pass.now.since(since);
    let verdict = measure(pass, progress, trial, judge, for_so_long >= longest);
    if let Some(Verdict::Fails(why)) = &verdict {
        let (name, percent) = (&trial.key.name, step.weight);
        return Err(format!("with {percent} % of the requests to {name}, {why}"));
    }
    let next = |progress: &mut ServiceProgress, found: String| {
        progress.verdict = found;
        progress.step += 1;
        progress.since = None;
    };
    if held.promoted && !held.paused {
        next(progress, "a person let it go on".to_owned());
        return Ok(true);
    }
    let (found, passed) = match verdict {
        None => ("no gateway has said yet what it has counted".to_owned(), false),
        Some(Verdict::TooFew(found)) => (format!("too few to judge: {found}"), false),
        Some(Verdict::Passes(found) | Verdict::Fails(found)) => (found, for_so_long >= hold),
    };
    let about = About::Service(trial.key.clone());
    if passed && held.promote == Promote::Auto && !held.paused && trial.ready {
        next(progress, found);
    } else if passed && held.promote == Promote::Manual {
        pass.wait(about, Reason::Promotion { found });
    } else {
        for until in [since + hold, since + longest] {
            if until > pass.now {
                pass.out.wake(until);
            }
        }
        let (number, of) = (progress.step + 1, progress.steps);
        pass.wait(about, Reason::Step { percent: step.weight, number, of, found });
    }
    Ok(false)
}

/// What the gateways' figures say of the step that is held; nothing if there are none. `enough` says to judge by what there is.
fn measure(
    pass: &Pass<'_>,
    progress: &mut ServiceProgress,
    trial: &Trial,
    judge: &Judge,
    enough: bool,
) -> Option<Verdict> {
    let now = pass.world.figures(&trial.key)?;
    let baseline = progress.baseline.as_ref().filter(|baseline| baseline.since == now.since);
    let Some(baseline) = baseline else {
        // Counted anew, by another server: so the step begins anew.
        progress.since = Some(pass.now);
        progress.baseline = Some(now.clone());
        progress.first = Some(now.clone());
        return None;
    };
    let new = fitting(pass.world, &trial.key, trial.generation);
    let mut window = judge::between(baseline, now, &new);
    let first = progress.first.as_ref().filter(|first| first.since == now.since);
    if window.old.requests < u64::from(judge.requests)
        && let Some(first) = first
    {
        // The old release gets too little by now: what it did before is what is usual.
        window.old = judge::between(first, now, &new).old;
    }
    Some(judge::judge(judge, &window, enough))
}

/// The new set takes over.
fn switch(pass: &mut Pass<'_>, rollout: &mut Rollout, trial: &Trial) {
    let Some(mut record) = pass.record(&trial.key) else { return };
    let keep = match &trial.strategy {
        ReleaseStrategy::BlueGreen { keep, .. } => keep.duration(),
        ReleaseStrategy::Canary { .. } | ReleaseStrategy::Rolling => Duration::ZERO,
    };
    record.sets.retain(|set| set.generation != trial.generation);
    let role = if keep.is_zero() { SetRole::Leaving } else { SetRole::Kept { until: pass.now + keep } };
    record.sets.push(TaskSet { generation: record.generation, mode: record.mode, role });
    (record.generation, record.mode) = (trial.generation, trial.full);
    pass.put_service(record);
    if let Some(progress) = rollout.steps.get_mut(&trial.key.name) {
        progress.switched_at = Some(pass.now);
        (progress.baseline, progress.first) = (None, None);
    }
}
