//! The controller of nodes: which of them can be counted on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use wharf_engine::{Decision, Ids, Leases, Link, decide_node};
use wharf_model::{NodeFacts, NodeId, Timestamp};
use wharf_process::Clock;

use super::Controller;
use crate::{
    sessions::Sessions,
    state::{Inner, State},
};

/// Decides nodes' states.
pub struct Nodes {
    sessions: Arc<Sessions>,
    leases: Leases,
    clock: Arc<dyn Clock>,
    /// Whether each node is connected, and since when, as far as this process has seen; one that is not, since it was last heard of. Not by
    /// the wall clock: when that is set, nobody has been away for any longer.
    links: BTreeMap<NodeId, (bool, Duration)>,
    facts: BTreeMap<NodeId, NodeFacts>,
    connected: std::collections::BTreeSet<NodeId>,
}

impl Nodes {
    /// Decides by these sessions.
    pub fn new(sessions: Arc<Sessions>, leases: Leases, clock: Arc<dyn Clock>) -> Self {
        Self {
            sessions,
            leases,
            clock,
            links: BTreeMap::new(),
            facts: BTreeMap::new(),
            connected: std::collections::BTreeSet::new(),
        }
    }
}

impl Controller for Nodes {
    fn name(&self) -> &'static str {
        "nodes"
    }

    fn wakes(&self, state: &State) -> Option<watch::Receiver<u64>> {
        Some(state.links())
    }

    fn begin(&mut self) {
        // How long nodes have been away from the leader before is not known here: each has a whole lease to find this one.
        self.links.clear();
    }

    fn prepare(&mut self, state: &State, _full: bool) {
        self.connected = self.sessions.connected();
        let nodes: Vec<_> = state.read().world.nodes().map(|node| node.record.id).collect();
        let live = nodes.iter().filter_map(|id| Some((*id, state.live_node(*id)?.facts?)));
        self.facts = live.collect();
    }

    fn decide(&mut self, inner: &Inner, now: Timestamp, _ids: &mut dyn Ids) -> Decision {
        let mut decision = Decision::default();
        let moment = self.clock.monotonic();
        self.links.retain(|id, _| inner.world.node(*id).is_some());
        for node in inner.world.nodes() {
            let id = node.record.id;
            let connected = self.connected.contains(&id);
            let seen = self.links.entry(id).or_insert((connected, moment));
            if seen.0 != connected {
                // A lease is counted from the last sign of life, not from when its absence was noticed. What this server heard before it led
                // counts for nothing.
                let heard = self.sessions.last_heard(id).filter(|_| !connected);
                *seen = (connected, heard.unwrap_or(moment).clamp(seen.1, moment));
            }
            let lasted = u64::try_from((moment - seen.1).as_millis()).unwrap_or(u64::MAX);
            let link = Link { connected, since: Timestamp(now.0.saturating_sub(lasted)) };
            let facts = self.facts.get(&id).filter(|_| connected);
            decision.extend(decide_node(&node.record, node.status.as_ref(), link, facts, self.leases, now));
        }
        decision
    }
}
