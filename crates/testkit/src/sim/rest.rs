//! What must hold of a cluster that is left alone: everything is as wanted, or says why not, and everybody sees the same.

use std::collections::{BTreeMap, BTreeSet};

use wharf_engine::{Assigner, Decision, Reason, SeededIds, World, decide};
use wharf_model::{
    AppKey, Mode, NodeState, Phase, RolloutState, ServiceKey, TaskId, Timestamp, difference::Differ,
};
use wharf_server::state::State;

use super::{cluster::Cluster, scenario::Does};

/// Reasons that hold for a while only, when nothing goes wrong.
const fn passes(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::NotLedTo { .. }
            | Reason::Draining { .. }
            | Reason::Stopping { .. }
            | Reason::NodeUnreachable { .. }
            | Reason::NoRevision
    )
}

/// What a service should have and has.
struct Count {
    wanted: usize,
    ready: usize,
}

/// The replicated services of an app that want tasks, and how many they have.
fn counts(world: &World, app: &AppKey) -> BTreeMap<ServiceKey, Count> {
    let mut counts = BTreeMap::new();
    if world.app(app).is_none_or(|app| app.removed) {
        return counts;
    }
    for record in world.services_of(app).filter(|record| !record.removed && !record.stopped) {
        let Mode::Replicated { replicas } = record.mode else { continue };
        let ready = world
            .tasks_of(&record.key)
            .filter(|task| task.is_ready() || (task.stop.is_none() && task.status.phase == Phase::Complete));
        let ready: BTreeSet<_> = ready.map(|task| task.slot).collect();
        let count = Count { wanted: usize::try_from(replicas).unwrap_or_default(), ready: ready.len() };
        counts.insert(record.key.clone(), count);
    }
    counts
}

fn decided(world: &World, app: &AppKey, now: Timestamp) -> Decision {
    decide(world, app, now, &mut SeededIds::new(1))
}

/// What has fewer tasks than it should and nothing to say about it, as a server sees it.
pub fn without_reason(state: &State, now: Timestamp) -> Option<String> {
    let inner = state.read();
    let world = &inner.world;
    for app in world.apps() {
        let decision = decided(world, &app.key, now);
        if !decision.changes.is_empty() {
            continue;
        }
        for (service, count) in counts(world, &app.key) {
            let said = decision
                .waiting
                .iter()
                .any(|waiting| waiting.about.service().is_none_or(|about| *about == service));
            if count.ready < count.wanted && !said {
                return Some(format!(
                    "{service} has {} of {} and nothing to say about it",
                    count.ready, count.wanted
                ));
            }
        }
        if app.rollout.state == RolloutState::Progressing && decision.waiting.is_empty() && !app.removed {
            return Some(format!("{} is progressing and waits for nothing", app.key));
        }
    }
    None
}

/// Why a cluster in which nothing goes wrong any more has not come to rest.
pub fn unrest(cluster: &Cluster) -> Option<String> {
    let leaders: Vec<_> = cluster.servers.iter().filter(|server| server.leads()).collect();
    let [leader] = leaders[..] else { return Some(format!("{} servers lead", leaders.len())) };
    if let Some(server) = cluster.servers.iter().find(|server| server.state().is_none()) {
        return Some(format!("server {} is not at work", server.number));
    }
    if let Some(node) = cluster.nodes.iter().find(|node| !node.has_agent()) {
        return Some(format!("node {} has no agent", node.number));
    }
    let (state, now) = (leader.state()?, leader.now()?);
    if let Some(differs) = servers_differ(cluster) {
        return Some(differs);
    }
    let inner = state.read();
    let world = &inner.world;
    for node in &cluster.nodes {
        let known = node.node().and_then(|id| world.node(id));
        if known.is_none_or(|known| known.state() != NodeState::Ready) {
            return Some(format!("node {} is {:?}", node.number, known.map(wharf_engine::Node::state)));
        }
    }
    for app in world.apps() {
        let decision = decided(world, &app.key, now);
        if let Some(change) = decision.changes.first() {
            return Some(format!("{}: still to be done: {change:?}", app.key));
        }
        if let Some(waiting) = decision.waiting.iter().find(|waiting| passes(&waiting.reason)) {
            return Some(format!("{}: {waiting}", app.key));
        }
        if app.removed && decision.waiting.is_empty() {
            return Some(format!("{} is removed, and there is still something of it", app.key));
        }
        for waiting in &decision.waiting {
            // What only has to come up, comes up.
            if let (Reason::Coming { .. }, Some(service)) = (&waiting.reason, waiting.about.service())
                && is_sound(world, service)
            {
                return Some(format!("{}: {waiting}", app.key));
            }
        }
    }
    drop(inner);
    if let Some(silent) = without_reason(&state, now) {
        return Some(silent);
    }
    let inner = state.read();
    engines_differ(cluster, &inner.world).or_else(|| assignments_differ(cluster, &inner.world))
}

/// Whether nothing about a service makes its tasks end or be unhealthy.
fn is_sound(world: &World, service: &ServiceKey) -> bool {
    world.revisions_of(service).all(|revision| {
        let word = revision.image.reference.split(':').next().unwrap_or_default();
        Does::ALL.iter().any(|does| does.word() == word && does.is_sound())
    })
}

/// Every server sees what the store holds.
fn servers_differ(cluster: &Cluster) -> Option<String> {
    for server in &cluster.servers {
        let state = server.state()?;
        let inner = state.read();
        let differs = cluster.checker.world(|stored| {
            let same_tasks = inner.world.tasks().eq(stored.tasks());
            let same_apps = inner.world.apps().eq(stored.apps());
            let same_services = inner.world.services().eq(stored.services());
            let same_nodes = inner.world.nodes().eq(stored.nodes());
            !(same_tasks && same_apps && same_services && same_nodes)
        });
        if differs {
            return Some(format!("server {} sees something else than the store holds", server.number));
        }
    }
    None
}

/// Every node holds what its leader would give it, whichever way that came: whole, by what changed, or from its disk.
fn assignments_differ(cluster: &Cluster, world: &World) -> Option<String> {
    let assigner = Assigner::new(world);
    for node in &cluster.nodes {
        let Some(held) = node.held() else { return Some(format!("node {} holds nothing", node.number)) };
        let mut set = assigner.for_node(held.node);
        // Nothing is sent that says the same.
        (set.revision, set.dns.version, set.routes.version) =
            (held.revision, held.dns.version, held.routes.version);
        if let Some(differs) = held.diff(&set) {
            return Some(format!("node {} holds assignments that differ: {differs:?}", node.number));
        }
    }
    None
}

/// What should run runs, and nothing else does.
fn engines_differ(cluster: &Cluster, world: &World) -> Option<String> {
    let mut run = BTreeSet::<TaskId>::new();
    for node in &cluster.nodes {
        let running = node.running();
        for task in running.tasks {
            let wanted =
                world.task(task.id).is_some_and(|known| !known.is_over() && known.node == running.node);
            if !wanted {
                return Some(format!(
                    "{} ({}) runs on node {} and nobody wants it",
                    task.name, task.id, node.number
                ));
            }
            run.insert(task.id);
        }
    }
    let missing = world.tasks().find(|task| task.status.phase == Phase::Running && !run.contains(&task.id));
    missing.map(|task| format!("{} ({}) counts as running and does not run", task.name(), task.id))
}
