//! What agents say, taken in; and what they are to do, sent out.
//!
//! - Every server listens to every node that is connected to it, and shows what it hears at once ([`State::report_task`]).
//! - Only the leader writes reports to the store, many at a time, and only what is worth it.
//! - Only the leader sends assignments, whenever what a node should do differs from what it was last sent: the whole set first, and then
//!   what is different ([`Telling`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_api::transport::{node::Report, wire::Servers};
use wharf_engine::{Assigner, Change, Version};
use wharf_model::{AssignmentSet, NodeId, VolumeRecord};
use wharf_process::{errors::chain, tasks::Tasks};

use super::{Context, commit::Committer, rest};
use crate::{
    ids::RandomIds,
    sessions::{NodeSession, Pushed, Sessions, Telling},
    state::LiveNode,
};

/// How long reports are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// How often what was said of things that are gone is looked for.
const TIDY: Duration = Duration::from_secs(60);
/// After a node or store that does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Listens to every node that connects, until `shutdown`.
pub async fn listen(context: Context, sessions: Arc<Sessions>, tasks: Tasks, shutdown: CancellationToken) {
    let mut changes = sessions.changes();
    let mut concerns = context.state.concerns();
    let mut followed = BTreeMap::<NodeId, u64>::new();
    let mut connected = true;
    loop {
        changes.borrow_and_update();
        concerns.borrow_and_update();
        let mut all = sessions.all();
        // Whoever was refused meanwhile, here or on another server, is not served any longer.
        let refused = {
            let inner = context.state.read();
            all.extract_if(.., |session| inner.refuses_node(session.node(), session.serial()))
                .collect::<Vec<_>>()
        };
        for session in refused {
            tracing::info!(node = %session.node(), "the node is not part of the cluster any more, or its certificate was revoked");
            session.cut();
        }
        followed.retain(|node, number| {
            all.iter().any(|session| session.node() == *node && session.number() == *number)
        });
        for session in all {
            if followed.insert(session.node(), session.number()) != Some(session.number()) {
                let (context, name) = (context.clone(), format!("reports of {}", session.node()));
                tasks.spawn(name, async move {
                    tokio::select! {
                        // Dropped when the session is over: its streams end with it.
                        () = session.ended() => {}
                        () = follow(&context, &session) => {}
                    }
                });
            }
        }
        if std::mem::take(&mut connected) {
            context.state.link_changed();
        }
        tokio::select! {
            // Cancel-safe, all of them: a flag, counters and a timer.
            () = shutdown.cancelled() => return,
            _ = changes.changed() => connected = true,
            _ = concerns.changed() => {}
            () = context.clock.sleep(TIDY) => context.state.tidy(),
        }
    }
}

async fn follow(context: &Context, session: &NodeSession) {
    loop {
        match session.reports().await {
            Ok(mut lines) => loop {
                match lines.next().await {
                    Ok(Some(report)) => {
                        session.heard(context.clock.monotonic());
                        take(context, session, report);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(node = %session.node(), error = %chain(&error), "reports broke off");
                        break;
                    }
                }
            },
            Err(error) => tracing::warn!(node = %session.node(), error = %chain(&error), "no reports"),
        }
        context.clock.sleep(RETRY).await;
    }
}

fn take(context: &Context, session: &NodeSession, report: Report) {
    let node = session.node();
    match report {
        Report::Node(mut said) => {
            said.facts.seen_from = session.from();
            let live = LiveNode {
                facts: Some(said.facts),
                problems: said.problems,
                serves: (said.epoch, said.observed),
                draining: said.draining,
                peers: said.peers,
            };
            context.state.report_node(node, live);
        }
        Report::Task(said) => context.state.report_task(node, said.task, said.status),
        Report::VolumeRemoved(volume) => context.state.report_volume_removed(volume, node),
        Report::Synced | Report::Heartbeat => {}
    }
}

/// Writes what agents said to the store, while this server leads.
pub async fn store(mut context: Context, shutdown: CancellationToken) {
    let mut reported = context.state.reported();
    // A new leader writes what the one before may have missed; so does one whose batch was refused.
    let mut all = true;
    loop {
        reported.borrow_and_update();
        let lead = *context.lead.borrow_and_update();
        let mut pause = Duration::from_secs(60);
        match lead {
            None => all = true,
            Some(lead) => {
                let statuses = context.state.take_unstored(std::mem::take(&mut all));
                let removed = context.state.removed_volumes();
                let batches = {
                    let inner = context.state.read();
                    let mut committer = Committer::new(&inner, lead, context.now());
                    for (task, status) in &statuses {
                        committer.report(*task, status, &mut RandomIds);
                    }
                    for (volume, node) in removed {
                        let Some(record) = inner.world.volumes().find(|record| record.id == volume) else {
                            continue;
                        };
                        let nodes = record.nodes.iter().copied().filter(|holder| *holder != node).collect();
                        let record = VolumeRecord { nodes, ..VolumeRecord::clone(record) };
                        committer.change(Change::PutVolume(record), &mut RandomIds);
                    }
                    committer.finish()
                };
                for batch in batches {
                    if let Err(error) = context.state.commit(batch).await {
                        tracing::debug!(error = %chain(&error), "reports were not stored; trying again");
                        (all, pause) = (true, RETRY);
                        if error.is_conflict() {
                            context.state.see_what_was_faster(&error).await;
                            pause = GATHER;
                        }
                        break;
                    }
                }
            }
        }
        tokio::select! {
            // Cancel-safe, all of them: flags, counters and a timer.
            () = shutdown.cancelled() => return,
            _ = reported.changed() => {}
            changed = context.lead.changed() => if changed.is_err() { return },
            () = context.clock.sleep(pause) => all = true,
        }
        // Dropped on shutdown only.
        if shutdown.run_until_cancelled(context.clock.sleep(GATHER)).await.is_none() {
            return;
        }
    }
}

/// Sends each connected node what it is to do, while this server leads.
pub async fn assign(
    mut context: Context,
    sessions: Arc<Sessions>,
    tasks: Tasks,
    shutdown: CancellationToken,
) {
    let mut concerns = context.state.concerns();
    let mut changes = sessions.changes();
    let mut senders = BTreeMap::<NodeId, Sender>::new();
    loop {
        // What changes together is looked at once: the sets are made from everything.
        let began = context.clock.monotonic();
        concerns.borrow_and_update();
        changes.borrow_and_update();
        if context.lead.borrow_and_update().is_none() {
            // What another leader sends meanwhile is not known here.
            senders.clear();
            context.state.forget_told();
        } else {
            let all = sessions.all();
            let connected: BTreeSet<_> =
                all.iter().map(|session| (session.node(), session.number())).collect();
            senders.retain(|node, sender| connected.contains(&(*node, sender.session)));
            let sets: Vec<_> = {
                let inner = context.state.read();
                let assigner = Assigner::new(&inner.world);
                all.into_iter().map(|session| (assigner.for_node(session.node()), session)).collect()
            };
            let is_fenced = |set: &AssignmentSet| set.tasks.values().any(|task| task.fenced);
            let fenced = sets.iter().filter(|(set, _)| is_fenced(set)).map(|(set, _)| set.node);
            context.state.set_fenced(fenced.collect());
            let mut told = BTreeMap::new();
            for (set, session) in sets {
                let (node, right_at) = (session.node(), set.revision);
                let sender = senders.entry(node).or_insert_with(|| Sender::start(&context, session, &tasks));
                told.insert(node, (sender.offer(set), right_at));
            }
            context.state.told(told);
        }
        let ended = context.clock.monotonic();
        tokio::select! {
            // Cancel-safe, all of them: flags and counters.
            () = shutdown.cancelled() => return,
            _ = concerns.changed() => {}
            _ = changes.changed() => {}
            changed = context.lead.changed() => if changed.is_err() { return },
        }
        let gather = (began + GATHER).saturating_sub(context.clock.monotonic());
        let pause = gather.max(rest(&*context.clock, began, ended));
        // Dropped on shutdown only.
        if shutdown.run_until_cancelled(context.clock.sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Sends one session the latest set; sets that were overtaken before they were sent are never sent.
struct Sender {
    session: u64,
    /// The node holds a newer set than the latest here: the next one is sent even if it says the same.
    older: Arc<AtomicBool>,
    latest: watch::Sender<Option<Arc<AssignmentSet>>>,
}

impl Sender {
    fn start(context: &Context, session: NodeSession, tasks: &Tasks) -> Self {
        let (latest, mut wanted) = watch::channel(None::<Arc<AssignmentSet>>);
        let (number, clock) = (session.number(), Arc::clone(&context.clock));
        let older = Arc::new(AtomicBool::new(false));
        let refused = Arc::clone(&older);
        let mut lead = context.lead.clone();
        tasks.spawn(format!("assignments of {}", session.node()), async move {
            let mut telling = Telling::default();
            loop {
                let set = wanted.borrow_and_update().clone();
                let sent = match set {
                    Some(set) if lead.borrow_and_update().is_some() => {
                        push(&session, &mut telling, &set, &refused).await
                    }
                    Some(_) | None => true,
                };
                tokio::select! {
                    // Cancel-safe, all of them.
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = session.ended() => return,
                    () = clock.sleep(RETRY), if !sent => {}
                }
            }
        });
        Self { session: number, older, latest }
    }

    /// Sends this set, unless it says the same as the one before. Answers which one the node is to serve.
    fn offer(&self, set: AssignmentSet) -> Version {
        self.latest.send_if_modified(|latest| {
            let sent = latest.as_ref().is_some_and(|before| says_the_same(before, &set));
            if sent && !self.older.swap(false, Ordering::Relaxed) {
                return false;
            }
            *latest = Some(Arc::new(set));
            true
        });
        self.latest.borrow().as_ref().map(|set| (set.epoch, set.revision)).unwrap_or_default()
    }
}

/// Whether two sets differ in nothing but the revisions they were made from.
fn says_the_same(a: &AssignmentSet, b: &AssignmentSet) -> bool {
    let same_tables = a.dns.says_the_same(&b.dns) && a.routes.says_the_same(&b.routes);
    let rest = |set: &AssignmentSet| (set.epoch, set.node);
    same_tables
        && rest(a) == rest(b)
        && a.tasks == b.tasks
        && a.networks == b.networks
        && a.volumes == b.volumes
        && a.removed_volumes == b.removed_volumes
        && a.wireguard == b.wireguard
        && a.disk_marks == b.disk_marks
        && a.watched == b.watched
}

async fn push(
    session: &NodeSession,
    telling: &mut Telling,
    set: &Arc<AssignmentSet>,
    older: &AtomicBool,
) -> bool {
    match telling.push(session, set).await {
        Ok(Pushed::Accepted(_)) => true,
        Ok(Pushed::Older(have)) => {
            tracing::warn!(node = %session.node(), have = have.revision.0, sent = set.revision.0,
                "the node holds newer assignments than this server can give: another server leads, or the store was set back");
            // Nothing to repeat: a newer set will come, and is sent whatever it says.
            older.store(true, Ordering::Relaxed);
            true
        }
        Err(error) => {
            tracing::warn!(node = %session.node(), error = %chain(&error), "assignments were not taken");
            false
        }
    }
}

/// Tells every node where the servers are, whenever that changes or a node connects.
pub async fn tell_servers(
    sessions: Arc<Sessions>,
    mut servers: watch::Receiver<Servers>,
    shutdown: CancellationToken,
) {
    let mut changes = sessions.changes();
    let mut told = BTreeMap::<(NodeId, u64), u64>::new();
    loop {
        changes.borrow_and_update();
        let list = servers.borrow_and_update().clone();
        let all = sessions.all();
        told.retain(|key, _| all.iter().any(|session| (session.node(), session.number()) == *key));
        let untold = all
            .into_iter()
            .filter(|session| told.get(&(session.node(), session.number())) != Some(&list.version));
        let list = &list;
        // All at once: one that does not answer keeps nobody waiting.
        let telling = untold.map(|session| async move { (session.push_servers(list).await, session) });
        // Dropped on shutdown only.
        let Some(answers) = shutdown.run_until_cancelled(futures::future::join_all(telling)).await else {
            return;
        };
        let mut missed = false;
        for (answer, session) in answers {
            match answer {
                Ok(()) => {
                    told.insert((session.node(), session.number()), list.version);
                }
                Err(error) => {
                    tracing::debug!(node = %session.node(), error = %chain(&error), "the list of servers was not taken");
                    missed = true;
                }
            }
        }
        tokio::select! {
            // Cancel-safe, all of them: flags, counters and a timer.
            () = shutdown.cancelled() => return,
            _ = changes.changed() => {}
            changed = servers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY * 4), if missed => {}
        }
    }
}
