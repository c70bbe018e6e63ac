//! Decides which nodes are suspected to be gone, by what the nodes that watch them hear.
//!
//! - A suspicion takes traffic away and nothing else: where others serve, nothing is sent to the node's tasks. It costs little to be wrong, so a
//!   second is enough for it; that a node is down, and its tasks are replaced, is [decided](crate::decide_node) by its lease.
//! - Nodes watch each other, [`WATCHES`] each, by the order of their identifiers: whoever is gone is missed by others than the server.
//! - A node is suspected once more of those who know anything of it miss it than hear it, unless the server has heard of it since: a
//!   node that is cut off from the server and heard by the others goes on serving, and so does one that only the server hears.
//! - Who has not been heard of for [`FRESH`] has no say, so that of two nodes that go at once none vouches for the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wharf_model::{NodeId, NodeState, PeerView, Suspicion, Timestamp, WatchedNode};

use crate::{Node, World};

/// How many others each node watches.
const WATCHES: usize = 3;
/// How many a node with a gateway watches: it leads nobody to where it gets no answer, whatever servers say.
const GATEWAY_WATCHES: usize = 16;
/// What a node said counts for so long after its last sign of life; it gives one every two seconds.
const FRESH: Duration = Duration::from_secs(3);
/// Between looks while somebody is missed: that the server hears of a node is not announced.
const LOOK: Duration = Duration::from_millis(500);

/// What a server knows of one node, by its monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Voice {
    /// Whether its agent is connected.
    pub connected: bool,
    /// When it last gave a sign of life.
    pub last_heard: Option<Duration>,
    /// What it hears of those it watches.
    pub view: PeerView,
}
impl Voice {
    fn is_fresh(&self, now: Duration) -> bool {
        self.connected && self.last_heard.is_some_and(|heard| now.saturating_sub(heard) <= FRESH)
    }
}

/// Who is missed, and since when.
#[derive(Debug, Clone, Default)]
pub struct Suspicions {
    /// Nodes that are missed by most of those who watch them.
    missed: BTreeMap<NodeId, (Duration, Timestamp)>,
}

/// What follows from what nodes hear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspected {
    /// The nodes that are suspected.
    pub nodes: BTreeMap<NodeId, Suspicion>,
    /// When to look again although nobody says anything.
    pub look_after: Option<Duration>,
}

impl Suspicions {
    /// Takes in what every node says. `moment` is the monotonic clock's, `now` the wall's.
    pub fn note(&mut self, voices: &BTreeMap<NodeId, Voice>, moment: Duration, now: Timestamp) -> Suspected {
        let mut votes = BTreeMap::<NodeId, (BTreeSet<NodeId>, usize)>::new();
        for (watcher, voice) in voices.iter().filter(|(_, voice)| voice.is_fresh(moment)) {
            let others = |nodes: &BTreeSet<NodeId>| -> Vec<NodeId> {
                nodes.iter().copied().filter(|node| node != watcher).collect()
            };
            for node in others(&voice.view.silent) {
                votes.entry(node).or_default().0.insert(*watcher);
            }
            for node in others(&voice.view.heard) {
                votes.entry(node).or_default().1 += 1;
            }
        }
        votes.retain(|_, (missing, _)| !missing.is_empty());
        let mut suspected = Suspected::default();
        if !votes.is_empty() {
            // Whoever vouches may fall silent, and whoever is missed may be heard of.
            suspected.look_after = Some(LOOK);
        }
        votes.retain(|_, (missing, hearing)| missing.len() > *hearing);
        self.missed.retain(|node, _| votes.contains_key(node));
        for (node, (by, _)) in votes {
            let (since, at) = *self.missed.entry(node).or_insert((moment, now));
            let answers = voices.get(&node).is_some_and(|voice| {
                voice.is_fresh(moment) && voice.last_heard.is_some_and(|heard| heard > since)
            });
            if !answers {
                suspected.nodes.insert(node, Suspicion { since: at, by });
            }
        }
        suspected
    }

    /// Forgets everything: what was seen before this server led counts for nothing.
    pub fn forget(&mut self) {
        self.missed.clear();
    }
}

/// The nodes that watch and are watched, in their order.
#[derive(Debug, Default)]
pub(crate) struct Ring(Vec<WatchedNode>);

impl Ring {
    /// Nodes that have never been here have no address, and ones that are down are missed already.
    pub(crate) fn of(world: &World) -> Self {
        let there = |node: &&Node| match node.state() {
            NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
            NodeState::Joining | NodeState::Down => false,
        };
        let nodes = world.nodes().filter(there);
        let watched = nodes
            .filter_map(|node| Some(WatchedNode { node: node.record.id, address: node.facts()?.address }));
        Self(watched.collect())
    }

    /// Those that a node watches: the ones after it.
    pub(crate) fn watched_by(&self, node: &Node) -> Vec<WatchedNode> {
        let Ok(own) = self.0.binary_search_by_key(&node.record.id, |other| other.node) else {
            return Vec::new();
        };
        let most = if node.record.roles.gateway { GATEWAY_WATCHES } else { WATCHES };
        let after = self.0[own + 1..].iter().chain(&self.0[..own]);
        let mut watched: Vec<_> = after.take(most).copied().collect();
        watched.sort_unstable();
        watched
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{Cluster, node_id};

    const SECOND: Duration = Duration::from_secs(1);

    fn voice(heard_at: Duration, heard: &[u8], silent: &[u8]) -> Voice {
        let ids = |nodes: &[u8]| nodes.iter().map(|n| node_id(*n)).collect();
        let view = PeerView { heard: ids(heard), silent: ids(silent) };
        Voice { connected: true, last_heard: Some(heard_at), view }
    }
    fn suspects(suspicions: &mut Suspicions, voices: &[(u8, Voice)], moment: Duration) -> Vec<NodeId> {
        let voices = voices.iter().map(|(n, voice)| (node_id(*n), voice.clone())).collect();
        let now = Timestamp(1_000_000 + u64::try_from(moment.as_millis()).unwrap());
        suspicions.note(&voices, moment, now).nodes.into_keys().collect()
    }

    #[test]
    fn a_node_that_two_of_three_miss_is_suspected_until_it_is_heard_again() {
        let mut suspicions = Suspicions::default();
        let at = SECOND * 100;
        let gone = voice(at - SECOND, &[1, 2, 3], &[]);
        let one = [(1, voice(at, &[2, 3], &[4])), (2, voice(at, &[1, 3, 4], &[])), (3, voice(at, &[4], &[]))];
        let with = |others: &[(u8, Voice)]| [others, &[(4, gone.clone())]].concat();
        assert_eq!(suspects(&mut suspicions, &with(&one), at), [], "one of three may be wrong");
        let two = [(1, voice(at, &[2, 3], &[4])), (2, voice(at, &[1, 3], &[4])), (3, voice(at, &[4], &[]))];
        assert_eq!(suspects(&mut suspicions, &with(&two), at), [node_id(4)]);
        let back = [(1, voice(at, &[4], &[])), (2, voice(at, &[], &[4])), (3, voice(at, &[4], &[]))];
        assert_eq!(suspects(&mut suspicions, &with(&back), at), []);
    }

    #[test]
    fn a_node_that_the_server_hears_of_is_not_suspected_although_its_peers_miss_it() {
        let mut suspicions = Suspicions::default();
        let at = SECOND * 100;
        let watchers = |at| [(1, voice(at, &[], &[3])), (2, voice(at, &[], &[3]))];
        let with = |others: [(u8, Voice); 2], heard| [&others[..], &[(3, voice(heard, &[], &[]))]].concat();
        assert_eq!(suspects(&mut suspicions, &with(watchers(at), at - SECOND), at), [node_id(3)]);
        // Its next heartbeat, and from then on.
        let later = at + SECOND * 2;
        assert_eq!(suspects(&mut suspicions, &with(watchers(later), later - SECOND), later), []);
        let silent = later + SECOND * 4;
        assert_eq!(
            suspects(&mut suspicions, &with(watchers(silent), later - SECOND), silent),
            [node_id(3)],
            "until it falls silent to the server, too"
        );
    }

    #[test]
    fn who_is_cut_off_from_the_server_and_heard_by_its_peers_is_not_suspected() {
        let mut suspicions = Suspicions::default();
        let at = SECOND * 100;
        let away = Voice { connected: false, last_heard: Some(SECOND), view: PeerView::default() };
        let voices = [(1, voice(at, &[2, 3], &[])), (2, voice(at, &[1, 3], &[])), (3, away)];
        assert_eq!(suspects(&mut suspicions, &voices, at), []);
    }

    #[test]
    fn of_two_that_go_at_once_neither_vouches_for_the_other_for_long() {
        let mut suspicions = Suspicions::default();
        let at = SECOND * 100;
        let voices = |now| {
            let last = at - SECOND;
            [(1, voice(now, &[], &[2, 3])), (2, voice(last, &[1, 3], &[])), (3, voice(last, &[1, 2], &[]))]
        };
        assert_eq!(suspects(&mut suspicions, &voices(at), at), []);
        let stale = at + SECOND * 3;
        assert_eq!(suspects(&mut suspicions, &voices(stale), stale), [node_id(2), node_id(3)]);
    }

    #[test]
    fn everybody_is_watched_by_as_many_as_there_are_up_to_three() {
        for nodes in 1..=9_u8 {
            let cluster = Cluster::of(nodes);
            let ring = Ring::of(&cluster.world);
            let mut watchers = BTreeMap::<NodeId, usize>::new();
            for node in cluster.world.nodes() {
                for watched in ring.watched_by(node) {
                    assert_ne!(watched.node, node.record.id);
                    *watchers.entry(watched.node).or_default() += 1;
                }
            }
            let expected = WATCHES.min(usize::from(nodes) - 1);
            for n in 1..=nodes {
                assert!(watchers.get(&node_id(n)).copied().unwrap_or(0) >= expected, "n{n} of {nodes}");
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_suspected_whom_as_many_hear_as_miss(
            views in prop::collection::vec((prop::collection::btree_set(0u8..6, 0..4), prop::collection::btree_set(0u8..6, 0..4), 0u64..6), 6)
        ) {
            let at = SECOND * 100;
            let voices: Vec<_> = views.iter().enumerate().map(|(n, (heard, silent, ago))| {
                let silent: Vec<_> = silent.difference(heard).copied().collect();
                let heard: Vec<_> = heard.iter().copied().collect();
                (u8::try_from(n).unwrap(), voice(at - SECOND * u32::try_from(*ago).unwrap(), &heard, &silent))
            }).collect();
            let mut suspicions = Suspicions::default();
            for suspect in suspects(&mut suspicions, &voices, at) {
                let fresh = voices.iter().filter(|(n, voice)| voice.is_fresh(at) && node_id(*n) != suspect);
                let (hears, misses) = fresh.fold((0, 0), |(hears, misses), (_, voice)| {
                    (hears + usize::from(voice.view.heard.contains(&suspect)),
                     misses + usize::from(voice.view.silent.contains(&suspect)))
                });
                prop_assert!(misses > hears);
            }
        }
    }
}
