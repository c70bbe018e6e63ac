//! Decides when it is certain that a node runs no task any more that must not run twice.
//!
//! - Such a task runs only while its node holds a lease of the leader. The node counts its lease from when it spoke, the leader from when it heard
//!   that: so the node's ends first, whatever becomes of messages, as long as clocks run at about the same speed.
//! - A node that falls is granted nothing any more, and it does not fall while a lease that it was granted lasts: from then on its tasks may be
//!   another's. It is granted something again once it is stored that it is back.
//! - Under a new leader every node has a whole lease before it falls, so that what the one before granted is over by then.

use std::{collections::BTreeMap, time::Duration};

use wharf_model::NodeId;

/// Of a node's lease with the leader, this part is the lease for tasks that must not run twice; the rest is for their end, and for clocks that
/// run at different speeds.
const PART: (u32, u32) = (13, 15);

/// For how long a node may run tasks that must not run twice without being heard.
pub fn granted(node_lease: Duration) -> Duration {
    node_lease * PART.0 / PART.1
}

/// What nodes were granted, by the leader's monotonic clock.
#[derive(Debug, Default)]
pub struct Grants(BTreeMap<NodeId, Granted>);

#[derive(Debug, Default)]
struct Granted {
    /// From when on the latest lease is counted.
    from: Option<Duration>,
    /// It has fallen, or is about to.
    closed: bool,
}

impl Grants {
    /// Grants a lease that is counted from then, if the node may have one.
    pub fn grant(&mut self, node: NodeId, from: Duration) -> bool {
        let granted = self.0.entry(node).or_default();
        if !granted.closed {
            granted.from = granted.from.max(Some(from));
        }
        !granted.closed
    }

    /// The node is to fall: it is granted nothing any more.
    ///
    /// # Errors
    /// With how long the lease still lasts that it has; then nothing has changed.
    pub fn close(&mut self, node: NodeId, now: Duration, node_lease: Duration) -> Result<(), Duration> {
        let granted = self.0.entry(node).or_default();
        let until = granted.from.map(|from| from + node_lease);
        match until.filter(|until| *until > now) {
            Some(until) => Err(until - now),
            None => {
                granted.closed = true;
                Ok(())
            }
        }
    }

    /// It is stored that the node is not down.
    pub fn open(&mut self, node: NodeId) {
        if let Some(granted) = self.0.get_mut(&node) {
            granted.closed = false;
        }
    }

    /// Forgets nodes that are gone.
    pub fn retain(&mut self, mut is_there: impl FnMut(NodeId) -> bool) {
        self.0.retain(|node, _| is_there(*node));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::node_id;

    const LEASE: Duration = Duration::from_secs(15);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_does_not_fall_while_its_lease_lasts_and_has_none_after_it_fell() {
        let (mut grants, node) = (Grants::default(), node_id(1));
        assert!(grants.grant(node, SECOND * 10));
        assert_eq!(grants.close(node, SECOND * 24, LEASE), Err(SECOND));
        assert!(grants.grant(node, SECOND * 11), "it has not fallen");
        assert_eq!(grants.close(node, SECOND * 26, LEASE), Ok(()));
        assert!(!grants.grant(node, SECOND * 26), "whatever is heard of it meanwhile");
        grants.open(node);
        assert!(grants.grant(node, SECOND * 27));
        assert_eq!(grants.close(node_id(2), Duration::ZERO, LEASE), Ok(()), "one that was never granted any");
    }

    /// What happens between a leader and a node: messages are delayed and lost.
    #[derive(Debug, Clone)]
    enum Act {
        /// The node's number arrives, and the leader answers it.
        Speak {
            delay: u64,
            back: u64,
            lost: bool,
        },
        Fall,
        Return,
    }

    proptest! {
        #[test]
        fn when_a_node_falls_the_right_that_it_counts_itself_is_over(
            acts in prop::collection::vec((0u64..4000, prop_oneof![
                6 => (0u64..9000, 0u64..9000, any::<bool>()).prop_map(|(delay, back, lost)| Act::Speak { delay, back, lost }),
                2 => Just(Act::Fall),
                1 => Just(Act::Return),
            ]), 1..60),
            // The node's clock runs slower than the leader's by up to a hundredth.
            slow in 0u32..10,
        ) {
            let (mut grants, node) = (Grants::default(), node_id(1));
            let ms = Duration::from_millis;
            let mut now = ms(100_000);
            // When the node's right ends, by a clock that all share.
            let mut right = Duration::ZERO;
            // Numbers that are on their way to the leader: when they arrive, when they were given, and what becomes of the answer.
            let mut coming = Vec::<(Duration, Duration, u64, bool)>::new();
            for (pause, act) in acts {
                now += ms(pause);
                coming.sort();
                let (arrived, later) = coming.into_iter().partition(|(at, ..)| *at <= now);
                coming = later;
                for (at, given, _back, lost) in arrived {
                    // However late the answer is, the node counts from when it gave the number.
                    if grants.grant(node, at) && !lost {
                        right = right.max(given + granted(LEASE) * (1000 + slow) / 1000);
                    }
                }
                match act {
                    Act::Speak { delay, back, lost } => coming.push((now + ms(delay), now, back, lost)),
                    Act::Fall => {
                        if grants.close(node, now, LEASE).is_ok() {
                            prop_assert!(right <= now, "its right lasts until {right:?}, and it fell at {now:?}");
                        }
                    }
                    Act::Return => grants.open(node),
                }
            }
        }
    }
}
