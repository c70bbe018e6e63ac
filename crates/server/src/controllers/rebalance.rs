//! The controller of moves: slots go to nodes that have less to do, by themselves or because somebody asked for it.
//!
//! Moves are never urgent: it looks at the cluster once in a while, however often that changes.

use std::time::Duration;

use wharf_engine::{Decision, Ids, decide_rebalance, is_rebalancing};
use wharf_model::Timestamp;

use super::Controller;
use crate::state::{Inner, State};

/// Between two looks while something moves.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two looks that find nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Decides moves.
#[derive(Debug, Default)]
pub struct Rebalance {
    /// When it looks again at the earliest.
    next: Timestamp,
    /// After a look that finds nothing.
    pause: Duration,
}

impl Controller for Rebalance {
    fn name(&self) -> &'static str {
        "rebalance"
    }

    fn begin(&mut self) {
        *self = Self::default();
    }

    fn prepare(&mut self, _state: &State, _full: bool) {}

    fn decide(&mut self, inner: &Inner, now: Timestamp, _ids: &mut dyn Ids) -> Decision {
        // A clock that was set back must not keep it waiting.
        let moves = is_rebalancing(&inner.world);
        let pause = if moves { PAUSE } else { self.pause };
        if now < self.next && self.next.since(now) <= pause {
            return Decision { wake_at: Some(self.next), ..Decision::default() };
        }
        let mut decision = decide_rebalance(&inner.world, now);
        let busy = moves || !decision.changes.is_empty();
        self.pause = if busy { PAUSE } else { (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE) };
        self.next = now + self.pause;
        if let Some(at) = decision.wake_at {
            decision.wake_at = Some(at.max(self.next));
        }
        decision
    }
}
