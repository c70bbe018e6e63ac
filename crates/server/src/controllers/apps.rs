//! The controller of apps: their networks, volumes, tasks and rollouts.
//!
//! One app is decided and committed at a time, because apps share nodes and addresses; the next pass sees what the one before did.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;
use wharf_engine::{Decision, Ids, Waiting, decide};
use wharf_model::{AppKey, Timestamp};

use super::Controller;
use crate::state::{Inner, State};

/// Decides apps.
#[derive(Debug, Default)]
pub struct Apps {
    /// Apps that have to be decided.
    pending: BTreeSet<AppKey>,
    /// When apps have to be decided although nothing changes.
    timers: BTreeMap<AppKey, Timestamp>,
    /// Apps with tasks that no node has room for: whatever another app gives up may be what they wait for.
    crowded: BTreeSet<AppKey>,
    all: bool,
}

impl Controller for Apps {
    fn name(&self) -> &'static str {
        "apps"
    }

    fn wakes(&self, state: &State) -> Option<watch::Receiver<u64>> {
        Some(state.passages())
    }

    fn prepare(&mut self, state: &State, full: bool) {
        let mut dirty = state.take_dirty();
        if !dirty.is_empty() {
            self.pending.append(&mut self.crowded);
        }
        self.pending.append(&mut dirty);
        self.all |= full;
    }

    fn decide(&mut self, inner: &Inner, now: Timestamp, ids: &mut dyn Ids) -> Decision {
        let world = &inner.world;
        if std::mem::take(&mut self.all) {
            self.pending.extend(world.apps().map(|app| app.key.clone()));
        }
        self.pending.extend(self.timers.iter().filter(|(_, at)| **at <= now).map(|(app, _)| app.clone()));
        while let Some(app) = self.pending.pop_first() {
            let decision = decide(world, &app, now, ids);
            self.timers.remove(&app);
            if !decision.changes.is_empty() {
                // Decided again once this is committed, or refused.
                self.pending.insert(app);
                return decision;
            }
            if decision.waiting.iter().any(Waiting::is_for_room) {
                self.crowded.insert(app.clone());
            }
            if let Some(at) = decision.wake_at {
                self.timers.insert(app, at);
            }
        }
        Decision { wake_at: self.timers.values().min().copied(), ..Decision::default() }
    }
}
