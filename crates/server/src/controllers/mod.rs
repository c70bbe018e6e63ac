//! The loops that make the cluster what its records say.
//!
//! One driver runs every controller: woken by a change, a timer or a change of leader, and told nothing else, it reads one state, lets a
//! pure function decide, and commits conditionally. A conflict is no error: the next pass decides again. Once a minute there is a full
//! pass; what it finds that nobody announced is counted, because it is a bug.

pub mod apps;
pub mod commit;
pub mod judge;
pub mod leases;
pub mod nodes;
pub mod rebalance;
pub mod reports;
pub mod routes;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_engine::{Decision, Ids};
use wharf_model::Timestamp;
use wharf_process::{clock::Clock, errors::chain};

use crate::{
    ids::RandomIds,
    leader::Lead,
    state::{Inner, State},
};

/// Between full passes.
const FULL_PASS: Duration = Duration::from_secs(60);
/// After a store that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// What is looked at as a whole is looked at no more often than half of the time, so that what comes in while it is goes into one look; and
/// nothing waits longer than this for it.
const LONGEST_REST: Duration = Duration::from_millis(250);

/// How long to rest before the next look: as long as the last one took, less what has passed since it ended.
fn rest(clock: &dyn Clock, began: Duration, ended: Duration) -> Duration {
    let took = ended.saturating_sub(began).min(LONGEST_REST);
    took.saturating_sub(clock.monotonic().saturating_sub(ended))
}

/// Something that decides.
pub trait Controller: Send {
    /// For logs and metrics.
    fn name(&self) -> &'static str;
    /// This server has begun to lead: what it saw before counts for little.
    fn begin(&mut self) {}
    /// Before each pass: what has changed since the last one. `full` asks to look at everything.
    fn prepare(&mut self, state: &State, full: bool);
    /// What follows from the state.
    fn decide(&mut self, inner: &Inner, now: Timestamp, ids: &mut dyn Ids) -> Decision;
    /// What else may wake it besides the state: anything that counts up.
    fn wakes(&self, _state: &State) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// What the loops count.
#[derive(Debug, Default)]
pub struct Counters {
    /// Passes.
    pub passes: AtomicU64,
    /// Changes committed.
    pub changes: AtomicU64,
    /// Batches refused because something had changed meanwhile.
    pub conflicts: AtomicU64,
    /// Changes that a full pass found and nothing had announced.
    pub unannounced: AtomicU64,
}

/// What every loop needs.
#[derive(Clone)]
pub struct Context {
    /// What the store holds.
    pub state: Arc<State>,
    /// Whether this server leads.
    pub lead: watch::Receiver<Option<Lead>>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

impl Context {
    /// The time, as records have it.
    pub fn now(&self) -> Timestamp {
        self.state.now(&*self.clock)
    }
}

/// Runs a controller until `shutdown`. While this server does not lead, it waits.
pub async fn drive(mut context: Context, mut controller: impl Controller, shutdown: CancellationToken) {
    let mut concerns = context.state.concerns();
    // A controller that nothing else wakes waits for a channel that stays silent.
    let (_silent, never) = watch::channel(0);
    let mut other = controller.wakes(&context.state).unwrap_or(never);
    let mut full = true;
    let mut led = false;
    // The pass was brought about by nothing but the clock.
    let mut periodic = false;
    let mut full_at = context.clock.monotonic() + FULL_PASS;
    while !shutdown.is_cancelled() {
        let began = context.clock.monotonic();
        concerns.borrow_and_update();
        other.borrow_and_update();
        let lead = *context.lead.borrow_and_update();
        if lead.is_some() && !led {
            controller.begin();
        }
        led = lead.is_some();
        let pause = match lead {
            None => {
                full = true;
                FULL_PASS
            }
            Some(lead) => {
                // Looking at everything is asked for once; a controller remembers what it has not come to.
                let (full, periodic) = (std::mem::take(&mut full), std::mem::take(&mut periodic));
                match pass(&context, &mut controller, lead, full, periodic).await {
                    Pass::Again => continue,
                    Pass::Settled(wake_at) => {
                        let until_full = full_at.saturating_sub(context.clock.monotonic());
                        wake_at.map_or(until_full, |at| at.since(context.now()).min(until_full))
                    }
                    Pass::Trouble => RETRY,
                }
            }
        };
        let ended = context.clock.monotonic();
        tokio::select! {
            // Cancel-safe, all of them: flags, counters and a timer.
            () = shutdown.cancelled() => return,
            _ = concerns.changed() => {}
            _ = other.changed() => {}
            changed = context.lead.changed() => {
                full = true;
                if changed.is_err() {
                    // The election is over: the process ends.
                    return;
                }
            }
            () = context.clock.sleep(pause.max(Duration::from_millis(5))) => periodic = true,
        }
        // Also if there is never a pause that lasts so long.
        if context.clock.monotonic() >= full_at {
            full = true;
            full_at = context.clock.monotonic() + FULL_PASS;
        }
        periodic &= full;
        let rest = rest(&*context.clock, began, ended);
        // Dropped on shutdown only.
        if !rest.is_zero() && shutdown.run_until_cancelled(context.clock.sleep(rest)).await.is_none() {
            return;
        }
    }
}

/// How a pass ended.
enum Pass {
    /// Something was committed: look at what follows from it.
    Again,
    /// Nothing to change until something does, or until then.
    Settled(Option<Timestamp>),
    /// The store did not answer, or something else was faster.
    Trouble,
}

async fn pass(
    context: &Context,
    controller: &mut impl Controller,
    lead: Lead,
    full: bool,
    periodic: bool,
) -> Pass {
    let name = controller.name();
    let now = context.now();
    context.state.observe(now);
    controller.prepare(&context.state, full);
    let (batches, changes, wake_at) = {
        let inner = context.state.read();
        let mut ids = RandomIds;
        let decision = controller.decide(&inner, now, &mut ids);
        let changes = decision.changes.len();
        let mut committer = commit::Committer::new(&inner, lead, now);
        for change in decision.changes {
            tracing::debug!(controller = name, ?change, "decided");
            committer.change(change, &mut ids);
        }
        (committer.finish(), changes, decision.wake_at)
    };
    context.counters.passes.fetch_add(1, Ordering::Relaxed);
    if batches.is_empty() {
        return Pass::Settled(wake_at);
    }
    for batch in batches {
        if let Err(error) = context.state.commit(batch).await {
            if error.is_conflict() {
                context.counters.conflicts.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(controller = name, error = %chain(&error), "something else was faster");
                context.state.see_what_was_faster(&error).await;
                return Pass::Again;
            }
            tracing::warn!(controller = name, error = %chain(&error), "a decision was not committed");
            return Pass::Trouble;
        }
    }
    let changes = u64::try_from(changes).unwrap_or(u64::MAX);
    if periodic {
        context.counters.unannounced.fetch_add(changes, Ordering::Relaxed);
        tracing::warn!(controller = name, changes, "a full pass found what nothing had announced");
    }
    context.counters.changes.fetch_add(changes, Ordering::Relaxed);
    Pass::Again
}

#[cfg(test)]
mod tests {
    use wharf_process::{ManualClock, Millis};

    use super::*;

    #[test]
    fn a_look_is_followed_by_as_much_rest_and_never_by_much() {
        let ms = Duration::from_millis;
        let clock = ManualClock::at(Millis(0));
        clock.advance(ms(1_000));
        assert_eq!(rest(&clock, ms(960), ms(1_000)), ms(40), "it has just ended");
        clock.advance(ms(30));
        assert_eq!(rest(&clock, ms(960), ms(1_000)), ms(10), "what passed while nothing woke it counts");
        clock.advance(ms(30));
        assert_eq!(rest(&clock, ms(960), ms(1_000)), ms(0), "who comes later does not wait");
        assert_eq!(rest(&clock, ms(0), ms(1_060)), LONGEST_REST);
    }
}
