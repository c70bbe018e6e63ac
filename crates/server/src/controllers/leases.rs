//! Grants nodes the right to run tasks that must not run twice, while this server leads.
//!
//! - Only nodes with such tasks are asked. Each is granted the lease again every second, counted from when it gave the number that is answered.
//! - What was granted is noted before it is sent ([`Grants`](wharf_engine::Grants)): a node that falls has been granted nothing since.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use wharf_engine::granted;
use wharf_model::{LeaseGrant, Millis, NodeId, NodeState};
use wharf_process::{
    errors::chain,
    tasks::{Task, Tasks},
};

use super::Context;
use crate::sessions::{NodeSession, Sessions};

/// Between grants.
const AGAIN: Duration = Duration::from_secs(1);

/// Grants leases until `shutdown`.
pub async fn grant(
    mut context: Context,
    sessions: Arc<Sessions>,
    node_lease: Duration,
    tasks: Tasks,
    shutdown: CancellationToken,
) {
    let mut fenced = context.state.fenced();
    let mut changes = sessions.changes();
    let mut granting = BTreeMap::<NodeId, (u64, Task<()>)>::new();
    loop {
        changes.borrow_and_update();
        let wanted = fenced.borrow_and_update().clone();
        let leads = context.lead.borrow_and_update().is_some();
        let all = sessions.all();
        granting.retain(|node, (number, task)| {
            let current = all.iter().any(|session| (session.node(), session.number()) == (*node, *number));
            let keep = leads && current && wanted.contains(node) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for session in all.into_iter().filter(|session| leads && wanted.contains(&session.node())) {
            let (node, number) = (session.node(), session.number());
            granting.entry(node).or_insert_with(|| {
                let granter = Granter { context: context.clone(), session, node_lease };
                (number, tasks.spawn(format!("lease of {node}"), granter.run()))
            });
        }
        tokio::select! {
            // Cancel-safe, all of them: flags and counters.
            () = shutdown.cancelled() => return,
            _ = changes.changed() => {}
            changed = fenced.changed() => if changed.is_err() { return },
            changed = context.lead.changed() => if changed.is_err() { return },
        }
    }
}

/// Grants one session's node its lease, again and again.
struct Granter {
    context: Context,
    session: NodeSession,
    node_lease: Duration,
}

impl Granter {
    async fn run(self) {
        // The number that the node gave last, and when that arrived.
        let mut given = None;
        loop {
            let before = given;
            given = match self.grant(before).await {
                Ok(next) => next,
                Err(error) => {
                    let node = self.session.node();
                    tracing::debug!(%node, error = %chain(&error), "a lease was not taken");
                    None
                }
            };
            if given.is_some() && before.is_none() {
                continue;
            }
            tokio::select! {
                // Cancel-safe, both: a flag and a timer.
                () = self.session.ended() => return,
                () = self.context.clock.sleep(AGAIN) => {}
            }
        }
    }

    async fn grant(
        &self,
        given: Option<(u64, Duration)>,
    ) -> Result<Option<(u64, Duration)>, wharf_api::transport::CallError> {
        let node = self.session.node();
        let Some(lead) = *self.context.lead.borrow() else { return Ok(None) };
        let (epoch, answers) = {
            let inner = self.context.state.read();
            // What falls is granted nothing before it is stored that it is back.
            let stands = inner.world.node(node).is_some_and(|node| match node.state() {
                NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
                NodeState::Joining | NodeState::Down => false,
            });
            if !stands {
                return Ok(None);
            }
            let may = |at| inner.grants.lock().grant(node, at);
            let answers = given.filter(|(_, at)| may(*at)).map(|(number, _)| number);
            (inner.world.epoch, answers)
        };
        let lasts = Millis::from(granted(self.node_lease));
        let answer = self.session.grant_lease(&LeaseGrant { epoch, term: lead.term, answers, lasts }).await?;
        let at = self.context.clock.monotonic();
        // Its lease as a node is counted from there at least.
        self.session.heard(at);
        Ok(Some((answer.number, at)))
    }
}
