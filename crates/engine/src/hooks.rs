//! Runs the commands around a release, each as a task of its own.
//!
//! - They run one after the other, in the file's order. What has run is known from their tasks, which are kept as long as the rollout goes on.
//! - A command runs once for a release. Only one whose node was lost with it runs again, and the release says so: nobody knows how far it
//!   had come.
//! - While one of an earlier rollout still runs, nothing of the next one begins. None runs on the way back to an earlier release.
//! - They are no replicas: no name, port or route leads to them, and no service counts them.

use std::sync::Arc;

use wharf_model::{
    HookStage, NodeState, Phase, ReleaseHook, Rollout, ServiceKey, ServiceName, ServiceRevision, Slot,
    StopReason, Task, TaskHook,
};

use crate::{
    About, NetworkRefusal, NoPlace, Reason,
    pass::Pass,
    place::{Demand, Pin, PinnedBy},
    rollout, spec, tasks,
};

/// So many of a failed command's last lines of output are said with why it failed.
const LINES: usize = 5;

/// How the commands of one stage stand.
pub(crate) enum Ran {
    /// All have succeeded.
    Through,
    /// One runs, or is about to.
    Underway,
    /// One failed: why, and of which service it was.
    Failed(String, ServiceName),
}

/// Stops commands that take too long or that nobody wants any more, and forgets those of earlier releases.
pub(crate) fn tidy(pass: &mut Pass<'_>) {
    let rollout = &pass.app.rollout;
    let returns = pass.app.previous.as_ref().is_some_and(|previous| rollout::is_return(pass.app, previous));
    let given_up = pass.app.removed || rollout.abort.is_some() || returns;
    let latest = pass.hooks().iter().filter_map(|task| Some(task.hook.as_ref()?.rollout)).max();
    for task in pass.hooks().to_vec() {
        let Some(hook) = &task.hook else { continue };
        if task.is_over() {
            if pass.app.removed || latest.is_some_and(|latest| hook.rollout < latest) {
                pass.forget_task(&task);
            }
            continue;
        }
        if given_up {
            tasks::stop_and_wait(pass, &task, StopReason::Withdrawn);
        } else if let Some(started) = task.status.started_at {
            let until = pass.moment(&task, Some(started)) + hook.timeout.duration();
            if until <= pass.now {
                tasks::stop_and_wait(pass, &task, StopReason::TimedOut);
            } else {
                pass.out.wake(until);
            }
        }
    }
}

/// Runs the commands of a stage, as far as they have not run.
pub(crate) fn run(pass: &mut Pass<'_>, rollout: &Rollout, stage: HookStage) -> Ran {
    let hooks = match stage {
        HookStage::Before => &rollout.hooks.before,
        HookStage::After => &rollout.hooks.after,
    };
    let earlier = pass.hooks().iter().find(|task| {
        !task.is_over() && task.hook.as_ref().is_some_and(|hook| hook.rollout != rollout.generation)
    });
    if let Some(task) = earlier.cloned() {
        wait(pass, &task, stage);
        return Ran::Underway;
    }
    for (number, hook) in (1..).zip(hooks) {
        let is_it =
            |own: &TaskHook| (own.rollout, own.stage, own.number) == (rollout.generation, stage, number);
        let last = pass.hooks().iter().rfind(|task| task.hook.as_ref().is_some_and(is_it)).cloned();
        match last {
            Some(task) if task.status.phase == Phase::Complete => {}
            Some(task) if !pass.is_over(&task) => {
                wait(pass, &task, stage);
                return Ran::Underway;
            }
            Some(task) if task.status.phase != Phase::Lost => {
                return Ran::Failed(failure(&task, hook), hook.service.clone());
            }
            Some(_) | None => {
                return begin(pass, rollout, stage, number, hook);
            }
        }
    }
    Ran::Through
}

fn begin(pass: &mut Pass<'_>, rollout: &Rollout, stage: HookStage, number: u32, hook: &ReleaseHook) -> Ran {
    let app = pass.app.key.clone();
    if let Some(paused) = &rollout.paused {
        pass.wait(About::App(app), Reason::Held { by: paused.to_string() });
        return Ran::Underway;
    }
    let Some(revision) = revision(pass, rollout, &hook.service) else {
        let why = format!(
            "there is no service {} whose container the command {} could have",
            hook.service,
            stage.as_str()
        );
        return Ran::Failed(why, hook.service.clone());
    };
    let hook = TaskHook {
        rollout: rollout.generation,
        stage,
        number,
        command: hook.command.clone(),
        timeout: hook.timeout,
    };
    let name = format!("{}-{}-{}-{number}", app.name, revision.key.name, stage.as_str());
    let revision = ServiceRevision { spec: spec::of_hook(&revision.spec, &hook), ..revision };
    match start(pass, &revision, hook) {
        Ok(task) => wait(pass, &task, stage),
        Err(because) => {
            let doing = format!("cannot start: {because}");
            pass.wait(About::App(app), Reason::Hook { name, stage, doing });
        }
    }
    Ran::Underway
}

/// How the service's containers are made once the release is carried out.
fn revision(pass: &Pass<'_>, rollout: &Rollout, service: &ServiceName) -> Option<ServiceRevision> {
    let key = ServiceKey { app: pass.app.key.clone(), name: service.clone() };
    let pending = rollout.pending.iter().flatten().find(|record| record.key == key).cloned();
    let record = pending.or_else(|| pass.record(&key)).filter(|record| !record.removed)?;
    pass.world.revision_of(&key, record.wanted().0).map(|revision| ServiceRevision::clone(revision))
}

fn start(pass: &mut Pass<'_>, revision: &ServiceRevision, hook: TaskHook) -> Result<Arc<Task>, String> {
    let mut demand = Demand::of(pass.world, revision);
    demand.now = pass.now;
    if let Some((volume, nodes)) = pass.local_volume(&revision.spec) {
        demand.pin = Some(Pin { nodes, by: PinnedBy::Volume(volume) });
    }
    let node = pass
        .places
        .find(&demand)
        .map_err(|because: NoPlace| format!("no node can take it: {}", because.refused()))?;
    let (id, created_at) = pass.new_task(&revision.key);
    let addresses = pass.give_addresses(id, &revision.spec, node).map_err(|refused| {
        let (network, because): (_, NetworkRefusal) = *refused;
        format!("it cannot join network {network}: {because}")
    })?;
    pass.note_volumes(&revision.spec, node);
    let devices = pass.places.devices(&demand, node);
    let holding = demand.holding.clone().with(devices.clone());
    pass.places.promise(node, &revision.key, &holding);
    let task = Task {
        id,
        service: revision.key.clone(),
        slot: Slot(hook.number),
        generation: revision.generation,
        node: Some(node),
        addresses,
        ports: Vec::new(),
        devices,
        created_at,
        stop: None,
        makes_room_for: None,
        drained: None,
        failures: 0,
        hook: Some(hook),
        status: Default::default(),
    };
    pass.create(task.clone());
    Ok(Arc::new(task))
}

/// Says that a command has not ended yet.
fn wait(pass: &mut Pass<'_>, task: &Task, stage: HookStage) {
    let node = pass.node_name(task.node);
    let doing = match (pass.state(task.node), task.stop) {
        (Some(NodeState::Unreachable | NodeState::Down), _) => {
            format!("is on {node}, which does not answer; it may well be running")
        }
        (_, Some(why)) => format!("is being stopped on {node}: {why}"),
        (_, None) if task.status.message.is_empty() => format!("is {} on {node}", task.status.phase),
        (_, None) => format!("is {} on {node}: {}", task.status.phase, task.status.message),
    };
    let about = About::App(pass.app.key.clone());
    pass.wait(about, Reason::Hook { name: task.name(), stage, doing });
}

/// Why a command failed, with the last of what it said.
fn failure(task: &Task, hook: &ReleaseHook) -> String {
    let command = hook.command.first().map(String::as_str).unwrap_or_default();
    let ended = match task.stop {
        Some(StopReason::TimedOut) => format!("it took longer than {}", hook.timeout),
        Some(_) | None => tasks::ending(task),
    };
    let lines = &task.status.last_log;
    let lines = lines[lines.len().saturating_sub(LINES)..].join(" / ");
    let said = if lines.is_empty() { String::new() } else { format!("; it said last: {lines}") };
    format!(
        "{} (`{command}` as service {}) failed: {ended}{said}; hint: `wharf logs --task {}` shows more",
        task.name(),
        task.service.name,
        task.name()
    )
}

/// What is to be said of the commands of a release that is done: those that ran more than once.
pub(crate) fn remarks(pass: &Pass<'_>) -> Option<String> {
    let lost = pass.hooks().iter().filter(|task| {
        let own = task.hook.as_ref().is_some_and(|hook| hook.rollout == pass.app.rollout.generation);
        own && task.status.phase == Phase::Lost
    });
    let lost: Vec<_> = lost
        .map(|task| {
            format!(
                "{} ran again because its node {} was lost with it",
                task.name(),
                pass.node_name(task.node)
            )
        })
        .collect();
    (!lost.is_empty()).then(|| lost.join("; "))
}
