//! Decides whether a node can be counted on.
//!
//! - A node is unreachable from the moment its agent is disconnected, and down a node lease after its last sign of life. A node that
//!   has never been connected stays joining. Nothing else makes a node down: a slow report, a dead engine or a suspicion does not.
//! - If too many are away at once it is as likely that something between them failed: then they fall one after the other, so that what is
//!   left is not overrun ([`Falls`]).
//! - A node that goes away again and again gets no new tasks until it has been steady for a time that grows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wharf_model::{
    Millis, NodeFacts, NodeId, NodeRecord, NodeState, NodeStatus, Spared, Suspicion, Timestamp,
};

use crate::{Change, Decision, Node, World};

/// So many lapses within [`LAPSES_FOR`], and a node that is back is held back.
const FLAPS: usize = 3;
/// A machine that others hear and that is back within this time was not away: its agent, its engine or the server was started anew.
const BRIEF: Duration = Duration::from_secs(5);
/// How long a lapse counts.
const LAPSES_FOR: Duration = Duration::from_secs(600);
/// How many are remembered.
const LAPSES_KEPT: usize = 10;
/// How long a node is held back at first; each further lapse doubles it.
const HOLD: Duration = Duration::from_secs(30);
const LONGEST_HOLD: Duration = Duration::from_secs(600);
/// Nodes that went down within this time count as away at once.
const AT_ONCE: Duration = Duration::from_secs(300);

/// How long silence is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leases {
    /// From the last sign of life to down.
    pub node: Duration,
    /// If more than this part of the nodes, in per cent, and at least two are away at once, they fall one after the other.
    pub mass: u32,
    /// Then so long passes from one to the next; of more than fifty nodes, two in a hundred fall together.
    pub pace: Duration,
    /// How long a node is suspected before tasks that may run twice are replaced: more than a hiccup.
    pub missed: Duration,
}
impl Default for Leases {
    fn default() -> Self {
        Self {
            node: Duration::from_secs(15),
            mass: 33,
            pace: Duration::from_secs(20),
            missed: Duration::from_millis(4400),
        }
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

/// What the leader sees of a node.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// The way to its agent.
    pub link: Link,
    /// What it says of itself.
    pub facts: Option<&'a NodeFacts>,
    /// Whether it is suspected to be gone.
    pub suspicion: Option<Suspicion>,
    /// Whether it is not to fall yet although its lease is over.
    pub spared: Option<Spared>,
    /// So many are away at once that nothing is hurried.
    pub mass: bool,
    /// No other node could take the tasks that are kept from it.
    pub alone: bool,
}
impl<'a> Seen<'a> {
    /// Nothing but the way to it, and what it says.
    pub const fn new(link: Link, facts: Option<&'a NodeFacts>) -> Self {
        Self { link, facts, suspicion: None, spared: None, mass: false, alone: false }
    }
}

/// Which nodes are not to fall yet although their leases are over: all others that are away too long do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Falls {
    /// More are away than may be at once.
    pub mass: bool,
    spared: BTreeMap<NodeId, Spared>,
    /// How many can be counted on for new tasks.
    sound: usize,
}

impl Falls {
    /// Decides it for all nodes at once.
    ///
    /// Nodes that are suspected are away, too.
    pub fn of(
        world: &World,
        links: &BTreeMap<NodeId, Link>,
        suspected: &BTreeMap<NodeId, Suspicion>,
        leases: Leases,
        now: Timestamp,
    ) -> Self {
        let sound = world.nodes().filter(|node| node.is_sound()).count();
        let mut of = 0_usize;
        let (mut fallen, mut away, mut due) = (Vec::new(), 0_usize, Vec::new());
        for node in world.nodes() {
            let since = node.status.as_ref().map_or(now, |status| status.since);
            match (node.state(), links.get(&node.record.id)) {
                (NodeState::Joining, _) => continue,
                (NodeState::Down, Some(link)) if !link.connected => {
                    // One that is down for long is no part of it.
                    if now.since(since) >= AT_ONCE || since > now {
                        continue;
                    }
                    away += 1;
                    fallen.push(since);
                }
                (NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable, Some(link))
                    if !link.connected =>
                {
                    away += 1;
                    let at = link.since + leases.node;
                    if at <= now {
                        due.push((at, node.record.id));
                    }
                }
                (NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable, Some(_)) => {
                    away += usize::from(suspected.contains_key(&node.record.id));
                }
                (
                    NodeState::Down | NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable,
                    Some(_) | None,
                ) => {}
            }
            of += 1;
        }
        let share = usize::try_from(leases.mass).unwrap_or(usize::MAX);
        if away < 2 || away.saturating_mul(100) <= share.saturating_mul(of) {
            return Self { sound, ..Self::default() };
        }
        due.sort_unstable();
        let batch = (of / 50).max(1);
        // Those that have just fallen, and the moment from which the next batch is counted.
        let lately = fallen.iter().filter(|since| now.since(**since) < leases.pace).count();
        let now_fall = batch.saturating_sub(lately).min(due.len());
        let base = if now_fall > 0 { now } else { fallen.iter().max().copied().unwrap_or(now) };
        let spared = due.into_iter().skip(now_fall).enumerate().map(|(position, (_, node))| {
            let turns = u32::try_from(position / batch + 1).unwrap_or(u32::MAX);
            let until = base + leases.pace.saturating_mul(turns);
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            (node, Spared { until, away: count(away), of: count(of) })
        });
        Self { mass: true, spared: spared.collect(), sound }
    }

    /// Whether a node is not to fall yet, and until when.
    pub fn spares(&self, node: NodeId) -> Option<Spared> {
        self.spared.get(&node).copied()
    }

    /// Whether no node but this one can be counted on for new tasks.
    pub fn stands_alone(&self, node: &Node) -> bool {
        self.sound == usize::from(node.is_sound())
    }
}

/// The status a node should have, and when to look again.
pub fn decide(
    node: &NodeRecord,
    status: Option<&NodeStatus>,
    seen: &Seen<'_>,
    leases: Leases,
    now: Timestamp,
) -> Decision {
    let facts = seen.facts.or_else(|| status.and_then(|status| status.facts.as_ref()));
    let mut decision = Decision::default();
    let (state, reason) = if seen.link.connected {
        connected(facts)
    } else {
        disconnected(status, seen, leases, now, &mut decision)
    };
    let since = status.filter(|status| status.state == state).map_or(now, |status| status.since);
    // Who misses it may change; that it is suspected is news once.
    let before = status.and_then(|status| status.suspected.clone());
    let suspected = seen.suspicion.clone().filter(|_| match state {
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
        NodeState::Joining | NodeState::Down => false,
    });
    let suspected = suspected.map(|new| before.unwrap_or(new));
    let missing = suspected.as_ref().is_some_and(|suspicion| {
        let until = suspicion.since + leases.missed;
        if until > now && !seen.mass {
            decision.wake(until);
        }
        let was = status.is_some_and(|status| status.missing);
        was || (until <= now && !seen.mass)
    });
    let spared = seen.spared.filter(|_| state == NodeState::Unreachable);
    let spared = spared.filter(|spared| spared.until > now);
    if let Some(spared) = spared {
        decision.wake(spared.until);
    }
    let mut wanted = NodeStatus {
        facts: facts.cloned(),
        reason,
        suspected,
        missing,
        spared,
        lapses: status.map(|status| status.lapses.clone()).unwrap_or_default(),
        ..NodeStatus::new(state, since)
    };
    note_lapse(&mut wanted, status, seen, now);
    if let Some(until) = wanted.held_until {
        decision.wake(until);
    }
    if status != Some(&wanted) {
        decision.changes.push(Change::SetNodeStatus { node: node.id, status: wanted });
    }
    decision
}

/// Counts that the node went away, and holds it back if it comes back from too many lapses: while others can take what is kept from it.
fn note_lapse(wanted: &mut NodeStatus, before: Option<&NodeStatus>, seen: &Seen<'_>, now: Timestamp) {
    let steady = |status: &NodeStatus| status.state == NodeState::Ready && status.suspected.is_none();
    let Some(before) = before.filter(|before| before.state != NodeState::Joining) else { return };
    let recent = |at: &Timestamp| *at <= now && now.since(*at) < LAPSES_FOR;
    match (steady(before), steady(wanted)) {
        (true, false) => {
            wanted.lapses.retain(recent);
            wanted.lapses.push(now);
            let surplus = wanted.lapses.len().saturating_sub(LAPSES_KEPT);
            wanted.lapses.drain(..surplus);
        }
        (false, true) => {
            // An agent, an engine or a server that was started anew: the machine was there.
            let brief = |at: &&Timestamp| **at <= now && now.since(**at) < BRIEF;
            if before.suspected.is_none() && wanted.lapses.last().filter(brief).is_some() {
                wanted.lapses.pop();
            }
            let lapses = wanted.lapses.iter().filter(|at| recent(at)).count();
            wanted.held_until = hold(lapses).filter(|_| !seen.alone).map(|hold| now + hold);
        }
        (true, true) => {
            // A clock that was set back does not make it any longer.
            let held = before.held_until.filter(|until| *until > now && *until <= now + LONGEST_HOLD);
            wanted.held_until = held.filter(|_| !seen.alone);
        }
        (false, false) => {}
    }
}

/// How long a node is held back that comes back from its last of so many lapses.
fn hold(lapses: usize) -> Option<Duration> {
    let more = u32::try_from(lapses.checked_sub(FLAPS)?).unwrap_or(u32::MAX);
    Some(HOLD.saturating_mul(1 << more.min(16)).min(LONGEST_HOLD))
}

/// Who is suspected, of all nodes.
pub(crate) fn suspected(world: &World) -> BTreeSet<NodeId> {
    let nodes = world.nodes().filter(|node| node.is_suspected());
    nodes.map(|node| node.record.id).collect()
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
    seen: &Seen<'_>,
    leases: Leases,
    now: Timestamp,
    decision: &mut Decision,
) -> (NodeState, String) {
    let known = status.map_or(NodeState::Joining, |status| status.state);
    let down_at = seen.link.since + leases.node;
    let lease = Millis::from(leases.node);
    match known {
        NodeState::Joining => (NodeState::Joining, "its agent has not connected yet".to_owned()),
        // Down stays down until the agent is back, also under a new leader whose own patience begins anew.
        NodeState::Down => (NodeState::Down, status.map(|status| status.reason.clone()).unwrap_or_default()),
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable if now >= down_at => {
            match seen.spared.filter(|spared| spared.until > now) {
                Some(Spared { away, of, .. }) => (
                    NodeState::Unreachable,
                    format!(
                        "its agent has not been connected for {lease}, and {away} of {of} nodes are away at once: they count as down one after the other"
                    ),
                ),
                None => (NodeState::Down, format!("its agent has not been connected for {lease}")),
            }
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
        let seen = Seen::new(link, None);
        let at = |now| decide(&node.record, Some(&status), &seen, Leases::default(), Timestamp(now));

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
        let seen = Seen::new(link, Some(&facts));
        let decision = decide(&node.record, Some(&status), &seen, Leases::default(), Timestamp(5));
        let [Change::SetNodeStatus { status, .. }] = &decision.changes[..] else { panic!("{decision:?}") };
        assert_eq!(status.state, NodeState::EngineDown);
        assert_eq!(status.reason, "its Docker Engine does not answer: connection refused");
    }

    #[test]
    fn a_node_that_is_as_known_changes_nothing() {
        let node = fixtures::node(1);
        let link = Link { connected: true, since: Timestamp(0) };
        let status = node.status.unwrap();
        let seen = Seen::new(link, None);
        let decision = decide(&node.record, Some(&status), &seen, Leases::default(), Timestamp(99_000));
        assert_eq!(decision, Decision::default());
    }

    /// A node whose agent comes and goes as said, by the clock.
    struct Coming {
        node: crate::Node,
        connected_since: (bool, Timestamp),
        now: Timestamp,
        alone: bool,
    }
    impl Coming {
        fn new() -> Self {
            let now = Timestamp(1_000_000_000);
            Self { node: fixtures::node(1), connected_since: (true, now), now, alone: false }
        }
        fn is(&mut self, connected: bool, after: Duration) -> &NodeStatus {
            self.now = self.now + after;
            if self.connected_since.0 != connected {
                self.connected_since = (connected, self.now);
            }
            self.look(None)
        }
        fn look(&mut self, suspicion: Option<Suspicion>) -> &NodeStatus {
            let (connected, since) = self.connected_since;
            let seen = Seen { suspicion, alone: self.alone, ..Seen::new(Link { connected, since }, None) };
            let status = self.node.status.as_ref();
            let decision = decide(&self.node.record, status, &seen, Leases::default(), self.now);
            for change in decision.changes {
                let Change::SetNodeStatus { status, .. } = change else { panic!("{change:?}") };
                self.node.status = Some(status);
            }
            self.node.status.as_ref().unwrap()
        }
    }
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_that_goes_away_again_and_again_is_held_back_for_longer_and_longer() {
        let mut node = Coming::new();
        for _ in 0..2 {
            node.is(false, SECOND);
            assert_eq!(node.is(true, BRIEF).held_until, None, "that happens");
        }
        node.is(false, SECOND);
        let held = node.is(true, BRIEF).held_until;
        assert_eq!(held, Some(node.now + HOLD));
        assert_eq!(node.is(true, SECOND * 29).held_until, held);
        assert_eq!(node.is(true, SECOND).held_until, None, "it was steady for so long");
        node.is(false, SECOND);
        let again = node.is(true, BRIEF).held_until;
        assert_eq!(again, Some(node.now + HOLD * 2));
        node.is(true, LAPSES_FOR);
        node.is(false, SECOND);
        assert_eq!(node.is(true, BRIEF).held_until, None, "what was long ago is forgotten");
    }

    #[test]
    fn what_is_started_anew_is_no_lapse_unless_the_machine_is_missed() {
        let mut node = Coming::new();
        for _ in 0..5 {
            node.is(false, SECOND);
            let status = node.is(true, SECOND);
            assert_eq!((status.held_until, status.lapses.len()), (None, 0));
        }
        for times in 1..=5 {
            node.now = node.now + SECOND;
            let suspicion = Suspicion { since: node.now, by: [fixtures::node_id(2)].into() };
            node.look(Some(suspicion));
            node.now = node.now + SECOND;
            let status = node.look(None);
            assert_eq!((status.held_until.is_some(), status.lapses.len()), (times >= FLAPS, times));
        }
    }

    #[test]
    fn a_suspicion_makes_nothing_down_counts_as_a_lapse_and_goes_when_the_node_is_heard() {
        let mut node = Coming::new();
        let suspicion = Suspicion { since: node.now, by: [fixtures::node_id(2)].into() };
        let status = node.look(Some(suspicion.clone())).clone();
        assert_eq!((status.state, status.lapses.len()), (NodeState::Ready, 1));
        let by_more = Suspicion { by: [2, 3].map(fixtures::node_id).into(), ..suspicion.clone() };
        assert_eq!(*node.look(Some(by_more)), status, "that is no news");
        assert_eq!(node.look(None).suspected, None);
        let other = node.is(false, SECOND).clone();
        assert_eq!((other.state, other.suspected), (NodeState::Unreachable, None));
        node.now = node.now + SECOND * 15;
        assert_eq!(node.look(Some(suspicion)).suspected, None, "that it is down is certain");
    }

    #[test]
    fn a_node_that_nobody_can_stand_in_for_is_not_held_back() {
        let mut node = Coming::new();
        node.alone = true;
        for _ in 0..5 {
            node.is(false, SECOND);
            assert_eq!(node.is(true, BRIEF).held_until, None);
        }
        node.alone = false;
        node.is(false, SECOND);
        assert!(node.is(true, BRIEF).held_until.is_some());
        node.alone = true;
        assert_eq!(node.is(true, BRIEF).held_until, None, "the others went away meanwhile");
    }

    #[test]
    fn a_node_that_is_suspected_for_longer_than_a_hiccup_is_missing_unless_many_are_away() {
        let mut node = Coming::new();
        let suspicion = || Suspicion { since: Timestamp(1_000_000_000), by: [fixtures::node_id(2)].into() };
        node.look(Some(suspicion()));
        node.now = node.now + Duration::from_millis(4399);
        assert!(!node.look(Some(suspicion())).missing);
        let mut many = Coming { node: node.node.clone(), ..node };
        node.now = node.now + Duration::from_millis(1);
        assert!(node.look(Some(suspicion())).missing);
        assert!(!node.look(None).missing, "it is heard again");
        many.now = node.now;
        let seen = Seen {
            suspicion: Some(suspicion()),
            mass: true,
            ..Seen::new(Link { connected: true, since: node.now }, None)
        };
        let status = many.node.status.as_ref();
        let decision = decide(&many.node.record, status, &seen, Leases::default(), many.now);
        assert_eq!(decision, Decision::default(), "nothing is hurried");
    }

    /// Which of so many nodes fall when these have been away for so long.
    fn fall(cluster: &mut fixtures::Cluster, away: &[u8], since: Timestamp) -> Vec<u8> {
        let nodes: Vec<_> = cluster.world.nodes().cloned().collect();
        let link = |id: NodeId| {
            let connected = !away.iter().any(|n| fixtures::node_id(*n) == id);
            Link { connected, since: if connected { Timestamp(0) } else { since } }
        };
        let links = nodes.iter().map(|node| (node.record.id, link(node.record.id))).collect();
        let falls = Falls::of(&cluster.world, &links, &BTreeMap::new(), Leases::default(), cluster.now);
        let mut down = Vec::new();
        for node in nodes {
            let id = node.record.id;
            let seen = Seen { spared: falls.spares(id), ..Seen::new(links[&id], None) };
            let decision = decide(&node.record, node.status.as_ref(), &seen, Leases::default(), cluster.now);
            cluster.apply(&decision.changes);
            if cluster.world.node(id).unwrap().state() == NodeState::Down {
                down.push(u8::try_from(id.uuid().as_u128()).unwrap());
            }
        }
        down
    }

    #[test]
    fn one_node_of_three_falls_at_once_and_two_fall_one_after_the_other() {
        let mut cluster = fixtures::Cluster::of(3);
        let since = cluster.now;
        cluster.now = since + Leases::default().node;
        assert_eq!(fall(&mut cluster, &[3], since), [3]);

        let mut cluster = fixtures::Cluster::of(3);
        cluster.now = since + SECOND;
        assert!(fall(&mut cluster, &[2, 3], since).is_empty());
        cluster.now = since + Leases::default().node;
        assert_eq!(fall(&mut cluster, &[2, 3], since), [2]);
        let status = cluster.world.node(fixtures::node_id(3)).unwrap().status.clone().unwrap();
        let until = cluster.now + Leases::default().pace;
        assert_eq!(status.spared, Some(Spared { until, away: 2, of: 3 }));
        assert!(status.reason.contains("2 of 3 nodes are away at once"), "{}", status.reason);
        cluster.now = cluster.now + SECOND * 19;
        assert_eq!(fall(&mut cluster, &[2, 3], since), [2]);
        let again = cluster.world.node(fixtures::node_id(3)).unwrap().status.clone().unwrap();
        assert_eq!(again, status, "nothing is written while it waits");
        cluster.now = cluster.now + SECOND;
        assert_eq!(fall(&mut cluster, &[2, 3], since), [2, 3]);
    }

    #[test]
    fn of_many_nodes_some_fall_together_and_those_that_are_down_for_long_are_no_part_of_it() {
        let mut cluster = fixtures::Cluster::of(200);
        let since = cluster.now;
        let away: Vec<u8> = (1..=100).collect();
        cluster.now = since + Leases::default().node;
        assert_eq!(fall(&mut cluster, &away, since).len(), 4);
        cluster.now = cluster.now + Leases::default().pace;
        assert_eq!(fall(&mut cluster, &away, since).len(), 8);
        let few: Vec<u8> = (1..=20).collect();
        cluster.now = cluster.now + SECOND;
        assert_eq!(fall(&mut cluster, &few, since).len(), 20, "the others are back");
    }
}
