//! Decides whether a node can be counted on.
//!
//! A node is unreachable from the moment its agent is disconnected, and down a node lease after its last sign of life. A node that
//! has never been connected stays joining. Nothing else makes a node down: a slow report or a dead engine does not.

use std::time::Duration;

use wharf_model::{NodeFacts, NodeRecord, NodeState, NodeStatus, Timestamp};

use crate::{Change, Decision};

/// How long silence is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// From the last sign of life to down.
    pub node: Duration,
}
impl Default for Leases {
    fn default() -> Self {
        Self { node: Duration::from_secs(15) }
    }
}

/// What the leader knows of the way to a node's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether its agent is connected to any server.
    pub connected: bool,
    /// Since when that is so, as far as this leader knows: without a connection, since the agent was last heard of. A new leader begins with
    /// its own first moment, so that nodes have a whole lease to find it.
    pub since: Timestamp,
}

/// The status a node should have, and when to look again.
pub fn decide(
    node: &NodeRecord,
    status: Option<&NodeStatus>,
    link: Link,
    facts: Option<&NodeFacts>,
    leases: Leases,
    now: Timestamp,
) -> Decision {
    let facts = facts.or_else(|| status.and_then(|status| status.facts.as_ref()));
    let mut decision = Decision::default();
    let (state, reason) = if link.connected {
        connected(facts)
    } else {
        disconnected(status, link, leases, now, &mut decision)
    };
    let since = status.filter(|status| status.state == state).map_or(now, |status| status.since);
    let wanted = NodeStatus { state, since, reason, facts: facts.cloned() };
    if status != Some(&wanted) {
        decision.changes.push(Change::SetNodeStatus { node: node.id, status: wanted });
    }
    decision
}

fn connected(facts: Option<&NodeFacts>) -> (NodeState, String) {
    match facts {
        None => (NodeState::Joining, "its agent is connected and has not reported yet".to_owned()),
        Some(facts) if facts.engine.is_some() && facts.engine_error.is_none() => {
            (NodeState::Ready, String::new())
        }
        Some(facts) => {
            let error = facts.engine_error.as_deref().unwrap_or("no answer");
            (NodeState::EngineDown, format!("its Docker Engine does not answer: {error}"))
        }
    }
}

fn disconnected(
    status: Option<&NodeStatus>,
    link: Link,
    leases: Leases,
    now: Timestamp,
    decision: &mut Decision,
) -> (NodeState, String) {
    let known = status.map_or(NodeState::Joining, |status| status.state);
    let down_at = link.since + leases.node;
    let lease = wharf_model::Millis::from(leases.node);
    match known {
        NodeState::Joining => (NodeState::Joining, "its agent has not connected yet".to_owned()),
        // Down stays down until the agent is back, also under a new leader whose own patience begins anew.
        NodeState::Down => (NodeState::Down, status.map(|status| status.reason.clone()).unwrap_or_default()),
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable if now >= down_at => {
            (NodeState::Down, format!("its agent has not been connected for {lease}"))
        }
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => {
            decision.wake(down_at);
            (NodeState::Unreachable, format!("its agent is not connected; it counts as down after {lease}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn state_of(decision: &Decision) -> Option<NodeState> {
        decision.changes.iter().find_map(|change| match change {
            Change::SetNodeStatus { status, .. } => Some(status.state),
            _ => None,
        })
    }

    #[test]
    fn a_disconnected_node_is_unreachable_at_once_and_down_after_its_lease() {
        let node = fixtures::node(1);
        let status = node.status.unwrap();
        let link = Link { connected: false, since: Timestamp(10_000) };
        let at = |now| decide(&node.record, Some(&status), link, None, Leases::default(), Timestamp(now));

        let early = at(10_001);
        assert_eq!(state_of(&early), Some(NodeState::Unreachable));
        assert_eq!(early.wake_at, Some(Timestamp(25_000)));
        assert_eq!(state_of(&at(25_000)), Some(NodeState::Down));
    }

    #[test]
    fn a_connected_node_without_an_engine_says_what_the_engine_said() {
        let node = fixtures::node(1);
        let status = node.status.unwrap();
        let mut facts = status.facts.clone().unwrap();
        facts.engine_error = Some("connection refused".into());
        let link = Link { connected: true, since: Timestamp(0) };
        let decision =
            decide(&node.record, Some(&status), link, Some(&facts), Leases::default(), Timestamp(5));
        let [Change::SetNodeStatus { status, .. }] = &decision.changes[..] else { panic!("{decision:?}") };
        assert_eq!(status.state, NodeState::EngineDown);
        assert_eq!(status.reason, "its Docker Engine does not answer: connection refused");
    }

    #[test]
    fn a_node_that_is_as_known_changes_nothing() {
        let node = fixtures::node(1);
        let link = Link { connected: true, since: Timestamp(0) };
        let status = node.status.unwrap();
        let decision = decide(&node.record, Some(&status), link, None, Leases::default(), Timestamp(99_000));
        assert_eq!(decision, Decision::default());
    }
}
