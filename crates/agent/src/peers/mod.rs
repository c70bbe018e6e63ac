//! Listens for other nodes: which of those that this one watches answer.
//!
//! - It is their kernels that answer, by ICMP: an agent that restarts, or an engine that is busy, is missed by nobody.
//! - A node is silent after [`MISSES`] rounds without an answer, and only if it has answered before: where echo requests are filtered, nothing
//!   is known of anybody. It is heard again after [`ANSWERS`] answers in a row.
//! - Rounds are counted, not time: whoever cannot send, because the machine stood still, misses nobody for it. Answers wait in the socket.
//! - What is heard is told to the servers, and taken out of what this node leads to by itself ([`Unheard`]).
//! - The servers' machines are listened for as well ([`Doors`]): a node that hears none of them any more asks the others what has ended
//!   (`hearsay`), long before a connection counts as broken.

mod alive;
mod hearsay;
mod icmp;
mod unheard;
mod voice;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use wharf_model::{NodeId, PeerView, WatchedNode};

pub(crate) use self::{
    hearsay::{Hearsay, Own, Telling, neighbours},
    voice::Heard,
};
pub use self::{icmp::IcmpEchoes, unheard::Unheard, voice::Voice};

/// Between rounds.
pub const INTERVAL: Duration = Duration::from_millis(150);
/// So many rounds in a row without an answer, and a node is silent.
const MISSES: u32 = 4;
/// So many answers in a row, and a silent node is heard again.
const ANSWERS: u32 = 2;
/// So many rounds in a row without an answer, and a node has been silent for long: three seconds, which no hiccup lasts. Servers take longer to
/// give one up.
const MISSES_LONG: u32 = 20;

/// Sends echo requests and takes the answers. Nothing of it waits.
pub trait Echoes: Send {
    /// Sends one to each of these; what cannot be sent is not answered.
    fn send(&mut self, to: &BTreeSet<IpAddr>);
    /// Who has answered one of ours since this was last asked.
    fn answered(&mut self) -> BTreeSet<IpAddr>;
}

/// The nodes that are not heard any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Silence {
    /// Of those that are to be watched.
    pub nodes: BTreeSet<NodeId>,
    /// Those that have not been heard for long, also of ones that are watched no more than for that.
    pub long: BTreeSet<NodeId>,
}

/// What is known of the nodes that are watched.
#[derive(Debug, Default)]
pub struct Watching {
    targets: BTreeMap<NodeId, Target>,
}

#[derive(Debug)]
struct Target {
    address: IpAddr,
    /// Servers want to know of it.
    wanted: bool,
    /// It was asked in the last round.
    asked: bool,
    /// Rounds in a row without an answer, and with one.
    missed: u32,
    answered: u32,
    /// Whether it is heard; not known before its first answer.
    heard: Option<bool>,
}

impl Watching {
    /// Watches these from now on. What is known of those that were watched before stays. Of nodes that servers have `given_up`, and do not want
    /// watched any more, those that were watched are watched on: whether they are silent here as well is to be known.
    pub fn watch(&mut self, nodes: &[WatchedNode], given_up: &BTreeSet<NodeId>) {
        let wanted: BTreeMap<_, _> = nodes.iter().map(|node| (node.node, node.address)).collect();
        self.targets.retain(|node, target| match wanted.get(node) {
            Some(address) => *address == target.address,
            None => given_up.contains(node),
        });
        for (node, target) in &mut self.targets {
            target.wanted = wanted.contains_key(node);
        }
        for (node, address) in wanted {
            let new = Target { address, wanted: true, asked: false, missed: 0, answered: 0, heard: None };
            self.targets.entry(node).or_insert(new);
        }
    }

    /// Ends a round, in which these have answered, and begins the next: answers who is to be asked.
    pub fn round(&mut self, answered: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        for target in self.targets.values_mut() {
            if answered.contains(&target.address) {
                (target.missed, target.answered) = (0, target.answered.saturating_add(1));
            } else if target.asked {
                (target.missed, target.answered) = (target.missed.saturating_add(1), 0);
            }
            target.heard = match target.heard {
                None => (target.answered > 0).then_some(true),
                Some(true) => Some(target.missed < MISSES),
                Some(false) => Some(target.answered >= ANSWERS),
            };
            target.asked = true;
        }
        self.targets.values().map(|target| target.address).collect()
    }

    /// Who is heard, and who is not any more.
    pub fn view(&self) -> PeerView {
        let those = |heard| self.those(move |target| target.wanted && target.heard == Some(heard));
        PeerView { heard: those(true), silent: those(false) }
    }

    /// Who is not heard any more.
    pub fn silence(&self) -> Silence {
        let is_silent = |target: &Target| target.heard == Some(false);
        Silence {
            nodes: self.those(|target| target.wanted && is_silent(target)),
            long: self.those(|target| is_silent(target) && target.missed >= MISSES_LONG),
        }
    }

    fn those(&self, such: impl Fn(&Target) -> bool) -> BTreeSet<NodeId> {
        self.targets.iter().filter(|(_, target)| such(target)).map(|(node, _)| *node).collect()
    }
}

/// Rounds in a row without an answer of a server's machine. Whoever asks others for nothing has lost a datagram.
const DOORS_MISSED: u32 = 2;

/// The machines of the servers.
#[derive(Debug, Default)]
pub struct Doors(BTreeMap<IpAddr, Door>);

#[derive(Debug, Default)]
struct Door {
    has_answered: bool,
    asked: bool,
    missed: u32,
}

impl Doors {
    /// Listens for these from now on.
    pub fn know(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.0.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.0.entry(*address).or_default();
        }
    }

    /// Ends a round, in which these have answered, and begins the next: answers who is to be asked.
    pub fn round(&mut self, answered: &BTreeSet<IpAddr>) -> impl Iterator<Item = IpAddr> {
        for (address, door) in &mut self.0 {
            if answered.contains(address) {
                (door.has_answered, door.missed) = (true, 0);
            } else if door.asked {
                door.missed = door.missed.saturating_add(1);
            }
            door.asked = true;
        }
        self.0.keys().copied()
    }

    /// Whether all have answered before, and none does now.
    pub fn are_shut(&self) -> bool {
        let is_shut = |door: &Door| door.has_answered && door.missed >= DOORS_MISSED;
        !self.0.is_empty() && self.0.values().all(is_shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_out_of_reach_once_none_answers_that_did() {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut doors = Doors::default();
        assert!(!doors.are_shut(), "nothing is known of any");
        doors.know(&[address(1), address(2)].into());
        for _ in 0..5 {
            assert_eq!(doors.round(&BTreeSet::new()).count(), 2);
        }
        assert!(!doors.are_shut(), "their machines may not answer at all");
        let _ = doors.round(&[address(1), address(2)].into()).count();
        let _ = doors.round(&[address(2)].into()).count();
        let _ = doors.round(&[address(2)].into()).count();
        assert!(!doors.are_shut(), "one answers");
        let _ = doors.round(&BTreeSet::new()).count();
        assert!(!doors.are_shut(), "one answer may be lost");
        let _ = doors.round(&BTreeSet::new()).count();
        assert!(doors.are_shut());
        let _ = doors.round(&[address(1)].into()).count();
        assert!(!doors.are_shut());
    }

    fn node(number: u8) -> WatchedNode {
        WatchedNode { node: NodeId::from_parts(1, [number; 10]), address: [10, 0, 0, number].into() }
    }
    fn watching() -> Watching {
        let mut watching = Watching::default();
        watching.watch(&[node(1), node(2)], &BTreeSet::new());
        watching
    }
    /// A round in which these answer.
    fn round(watching: &mut Watching, answering: &[u8]) -> PeerView {
        watching.round(&answering.iter().map(|n| node(*n).address).collect());
        watching.view()
    }
    fn view(heard: &[u8], silent: &[u8]) -> PeerView {
        let ids = |nodes: &[u8]| nodes.iter().map(|n| node(*n).node).collect();
        PeerView { heard: ids(heard), silent: ids(silent) }
    }

    #[test]
    fn a_node_is_silent_after_four_rounds_without_an_answer_and_heard_after_two_with_one() {
        let mut watching = watching();
        assert_eq!(round(&mut watching, &[]), view(&[], &[]), "nobody has been asked yet");
        assert_eq!(round(&mut watching, &[1, 2]), view(&[1, 2], &[]));
        for _ in 0..3 {
            assert_eq!(round(&mut watching, &[1]), view(&[1, 2], &[]));
        }
        assert_eq!(round(&mut watching, &[1]), view(&[1], &[2]));
        assert_eq!(round(&mut watching, &[1, 2]), view(&[1], &[2]), "one answer may be an old one");
        assert_eq!(round(&mut watching, &[1, 2]), view(&[1, 2], &[]));
    }

    #[test]
    fn a_node_that_has_never_answered_is_not_missed() {
        let mut watching = watching();
        for _ in 0..20 {
            assert_eq!(round(&mut watching, &[1]), view(&[1], &[]));
        }
    }

    #[test]
    fn packets_that_are_lost_now_and_then_make_nobody_silent() {
        let mut watching = watching();
        for turn in 0..100 {
            let answering: &[u8] = if turn % 4 == 0 { &[1, 2] } else { &[1] };
            assert!(round(&mut watching, answering).silent.is_empty(), "{turn}");
        }
    }

    #[test]
    fn who_is_given_up_is_listened_for_on_and_servers_are_not_told() {
        let mut watching = watching();
        round(&mut watching, &[1, 2]);
        let long = |watching: &Watching| watching.silence().long.into_iter().collect::<Vec<_>>();
        for _ in 0..MISSES_LONG - 1 {
            round(&mut watching, &[1]);
            assert_eq!(long(&watching), []);
        }
        // Servers have given up one that is silent, and one that is heard here.
        let given_up = [1, 2, 3].map(|n| node(n).node).into();
        watching.watch(&[], &given_up);
        assert_eq!(round(&mut watching, &[1]), view(&[], &[]));
        assert_eq!((long(&watching), watching.silence().nodes), (vec![node(2).node], BTreeSet::new()));
        assert_eq!(round(&mut watching, &[1, 2]), view(&[], &[]));
        assert_eq!(long(&watching), [], "it answers");
        watching.watch(&[node(1), node(2)], &BTreeSet::new());
        assert_eq!(watching.view(), view(&[1], &[2]), "what was known of them still is");
        watching.watch(&[node(1)], &BTreeSet::new());
        assert_eq!(watching.round(&BTreeSet::new()), [node(1).address].into());
    }

    #[test]
    fn who_is_watched_on_is_known_on_and_who_moved_is_asked_anew() {
        let mut watching = watching();
        round(&mut watching, &[1, 2]);
        let moved = WatchedNode { address: [10, 0, 0, 9].into(), ..node(2) };
        watching.watch(&[node(1), moved, node(3)], &[node(2).node].into());
        assert_eq!(watching.view(), view(&[1], &[]));
        let asked = watching.round(&BTreeSet::new());
        assert_eq!(asked, [node(1), moved, node(3)].map(|node| node.address).into());
    }
}
