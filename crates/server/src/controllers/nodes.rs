//! The controller of nodes: which of them can be counted on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use wharf_engine::{Change, Decision, Falls, Ids, Leases, Link, Seen, Suspicions, Voice, decide_node};
use wharf_model::{NodeFacts, NodeId, NodeState, Timestamp};
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
    /// What nodes say of each other.
    voices: BTreeMap<NodeId, Voice>,
    suspicions: Suspicions,
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
            voices: BTreeMap::new(),
            suspicions: Suspicions::default(),
        }
    }

    /// The way to a node's agent, after what was seen of it until now.
    fn link(&mut self, id: NodeId, moment: Duration, now: Timestamp) -> Link {
        let connected = self.voices.get(&id).is_some_and(|voice| voice.connected);
        let seen = self.links.entry(id).or_insert((connected, moment));
        if seen.0 != connected {
            // A lease is counted from the last sign of life, not from when its absence was noticed. What this server heard before it led
            // counts for nothing.
            let heard = self.sessions.last_heard(id).filter(|_| !connected);
            *seen = (connected, heard.unwrap_or(moment).clamp(seen.1, moment));
        }
        let lasted = u64::try_from((moment - seen.1).as_millis()).unwrap_or(u64::MAX);
        Link { connected, since: Timestamp(now.0.saturating_sub(lasted)) }
    }

    /// A node does not fall while a right lasts that it was granted, and is granted none from then on.
    fn fence(&self, inner: &Inner, decision: &mut Decision, moment: Duration, now: Timestamp) {
        let mut grants = inner.grants.lock();
        let mut wake = None;
        decision.changes.retain(|change| {
            let Change::SetNodeStatus { node, status } = change else { return true };
            let falls = |node: &wharf_engine::Node| node.state() != NodeState::Down;
            if status.state != NodeState::Down || !inner.world.node(*node).is_some_and(falls) {
                return true;
            }
            match grants.close(*node, moment, self.leases.node) {
                Ok(()) => true,
                Err(left) => {
                    wake = Some(now + left);
                    false
                }
            }
        });
        if let Some(wake) = wake {
            decision.wake(wake);
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
        self.suspicions.forget();
    }

    fn prepare(&mut self, state: &State, _full: bool) {
        let connected = self.sessions.connected();
        let nodes: Vec<_> = {
            let inner = state.read();
            let mut grants = inner.grants.lock();
            grants.retain(|id| inner.world.node(id).is_some());
            let back = inner.world.nodes().filter(|node| node.state() != NodeState::Down);
            back.for_each(|node| grants.open(node.record.id));
            inner.world.nodes().map(|node| node.record.id).collect()
        };
        (self.facts, self.voices) = (BTreeMap::new(), BTreeMap::new());
        for id in nodes {
            let live = state.live_node(id).unwrap_or_default();
            let last_heard = self.sessions.last_heard(id);
            let voice = Voice { connected: connected.contains(&id), last_heard, view: live.peers };
            self.voices.insert(id, voice);
            self.facts.extend(live.facts.map(|facts| (id, facts)));
        }
    }

    fn decide(&mut self, inner: &Inner, now: Timestamp, _ids: &mut dyn Ids) -> Decision {
        let mut decision = Decision::default();
        let moment = self.clock.monotonic();
        self.links.retain(|id, _| inner.world.node(*id).is_some());
        let suspected = self.suspicions.note(&self.voices, moment, now);
        if let Some(after) = suspected.look_after {
            decision.wake(now + after);
        }
        let ids: Vec<_> = inner.world.nodes().map(|node| node.record.id).collect();
        let links: BTreeMap<_, _> = ids.into_iter().map(|id| (id, self.link(id, moment, now))).collect();
        let falls = Falls::of(&inner.world, &links, &suspected.nodes, self.leases, now);
        for node in inner.world.nodes() {
            let id = node.record.id;
            let Some(link) = links.get(&id).copied() else { continue };
            let seen = Seen {
                link,
                facts: self.facts.get(&id).filter(|_| link.connected),
                suspicion: suspected.nodes.get(&id).cloned(),
                spared: falls.spares(id),
                mass: falls.mass,
                alone: falls.stands_alone(node),
            };
            decision.extend(decide_node(&node.record, node.status.as_ref(), &seen, self.leases, now));
        }
        self.fence(inner, &mut decision, moment, now);
        decision
    }
}
