//! Which of the servers decides.
//!
//! - At most one server believes itself leader at a time, as long as clocks run at about the same speed: a leader that could not renew
//!   its lease within [`Timing::lease`] stops believing before anybody else may begin (a follower waits [`Timing::takeover`], which is longer).
//! - Belief is not what safety stands on: every commit of a controller expects the revision at which the leader wrote `leader`
//!   ([`Lead::fence`]), so that a deposed leader's commits fail whatever it believes.
//! - No clock is compared with another machine's: followers measure how long *they* have seen no renewal.
//! - A leader whose process has ended, as a [`Witness`] says, believes nothing any more: nobody waits for its lease to end.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_model::{ServerId, Timestamp};
use wharf_process::clock::Clock;
use wharf_store::{Backend, Batch, Revision, StoreError};

use crate::records::{Key, LeaderRecord, LeaseRecord, Record, encode};

/// How leadership is timed.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between renewals.
    pub renew: Duration,
    /// How long a leader believes without a renewal.
    pub lease: Duration,
    /// How long a follower sees no renewal before it takes over. More than `lease`.
    pub takeover: Duration,
}
impl Default for Timing {
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(1),
            lease: Duration::from_secs(4),
            takeover: Duration::from_secs(6),
        }
    }
}

/// The right to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    /// Counts changes of leader.
    pub term: u64,
    /// The revision at which `leader` was written; every commit of a controller expects it.
    pub fence: Revision,
}
impl Lead {
    /// A batch that stands or falls with this right.
    pub fn batch(self) -> Batch {
        Batch::new().expect(Key::Leader.to_string(), Some(self.fence))
    }
}

/// Says when the process of a server has ended, if that can be known.
pub trait Witness: Send + Sync {
    /// Returns once it has; never, if that cannot be known.
    fn ended(self: Arc<Self>, server: ServerId) -> BoxFuture<'static, ()>;
}

/// Stands for election, and tells whether it leads.
pub struct Election {
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    server: ServerId,
    timing: Timing,
    /// Nobody else can have the store open: take over at once.
    exclusive: bool,
    witness: Option<Arc<dyn Witness>>,
    lead: watch::Sender<Option<Lead>>,
}

/// Waits for the end of the leader that was elected at this revision.
type Wake = (Revision, BoxFuture<'static, ()>);

/// What a follower has seen last: a leader that has just begun, and one that has just renewed, are both alive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    leader: Option<(Revision, ServerId)>,
    lease: Option<LeaseRecord>,
}

impl Election {
    /// Stands for election with this store.
    pub fn new(
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        server: ServerId,
        timing: Timing,
        exclusive: bool,
    ) -> Self {
        Self { backend, clock, server, timing, exclusive, witness: None, lead: watch::Sender::new(None) }
    }

    /// Does not wait for the lease of a leader to end whose process has, as this says.
    #[must_use]
    pub fn believing(self, witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// Whether this server leads, now and later.
    pub fn watch(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.subscribe()
    }

    /// Runs until `shutdown`; then gives the lead up, so that another server need not wait for the lease to end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen = (Seen { leader: None, lease: None }, self.clock.monotonic());
        let mut renewed_at = self.clock.monotonic();
        let mut wake = None;
        // The revision at which a leader was elected whose process has ended.
        let mut dead = None;
        loop {
            let led = *self.lead.borrow();
            // Others count from when they see it, which is later than this.
            let asked_at = self.clock.monotonic();
            match led {
                Some(lead) => {
                    let left = self.timing.lease.saturating_sub(asked_at - renewed_at);
                    match self.renew(lead, left).await {
                        Ok(()) => renewed_at = asked_at,
                        Err(error) if error.is_conflict() => self.step_down("another server has taken over"),
                        Err(error) => {
                            tracing::warn!(error = %wharf_process::errors::chain(&error), "lease not renewed");
                        }
                    }
                }
                None => match self.try_to_lead(&mut seen, dead).await {
                    Ok(Some(lead)) => {
                        renewed_at = asked_at;
                        tracing::info!(server = %self.server, term = lead.term, "this server leads");
                        self.lead.send_replace(Some(lead));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(error = %wharf_process::errors::chain(&error), "cannot stand for election");
                    }
                },
            }
            if self.lead.borrow().is_some() && self.clock.monotonic() - renewed_at >= self.timing.lease {
                self.step_down("the store has not answered for as long as the lease lasts");
            }
            self.attend(&mut wake, seen.0.leader);
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = shutdown.cancelled() => break,
                // Goes on in the next turn.
                elected = ended(&mut wake) => (dead, wake) = (Some(elected), None),
                // Cancel-safe: a timer.
                () = self.clock.sleep(self.timing.renew) => {}
            }
        }
        let led = *self.lead.borrow();
        if let Some(lead) = led {
            self.lead.send_replace(None);
            let resign = lead.batch().delete(Key::Leader.to_string());
            // If this fails, the others wait for the lease to end.
            let _ = tokio::time::timeout(Duration::from_secs(2), self.backend.commit(resign)).await;
        }
    }

    /// Has the end of this leader waited for, unless it is this server.
    fn attend(&self, wake: &mut Option<Wake>, leader: Option<(Revision, ServerId)>) {
        let other = leader.filter(|(_, server)| *server != self.server && self.lead.borrow().is_none());
        let Some(((elected, server), witness)) = other.zip(self.witness.as_ref()) else {
            *wake = None;
            return;
        };
        if wake.as_ref().is_none_or(|(attended, _)| *attended != elected) {
            *wake = Some((elected, Arc::clone(witness).ended(server)));
        }
    }

    fn step_down(&self, why: &str) {
        tracing::warn!(server = %self.server, why, "this server leads no more");
        self.lead.send_replace(None);
    }

    async fn renew(&self, lead: Lead, left: Duration) -> Result<(), StoreError> {
        // The time makes each renewal of a term differ from the last one.
        let count = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        let lease = LeaseRecord { server: self.server, count, term: lead.term };
        let batch = lead.batch().put(Key::Lease.to_string(), encode(&Key::Lease, &lease));
        tokio::select! {
            // Dropped when the lease is over: whether it was renewed is not known then, and does not matter.
            result = self.backend.commit(batch) => result.map(drop),
            // Cancel-safe: a timer. A store that hangs must not keep a leader believing.
            () = self.clock.sleep(left) => {
                Err(StoreError::Unavailable { place: "the store".into(), source: "it does not answer".into() })
            }
        }
    }

    /// Takes over if nobody leads. `seen` is what was seen last, and since when it has been so; `dead` is when a leader was elected whose
    /// process has ended.
    async fn try_to_lead(
        &self,
        seen: &mut (Seen, Duration),
        dead: Option<Revision>,
    ) -> Result<Option<Lead>, StoreError> {
        // One prefix for both keys, so that they are read at one revision.
        let snapshot = self.backend.read("lea").await?;
        let entry = |key: &Key| snapshot.entries.get(&key.to_string());
        let leader =
            entry(&Key::Leader).map(|found| Ok((found.written_at, leader(&found.value)?))).transpose()?;
        let lease = entry(&Key::Lease).map(|found| lease(&found.value)).transpose()?;
        let last_term = lease.as_ref().map_or(0, |lease| lease.term);
        let sees =
            Seen { leader: leader.as_ref().map(|(revision, record)| (*revision, record.server)), lease };
        if sees != seen.0 {
            *seen = (sees, self.clock.monotonic());
        }
        let silent = self.clock.monotonic() - seen.1 >= self.timing.takeover;
        let free = match &leader {
            None => true,
            // Ours from before a restart, or that of a process that has ended: nobody else has taken it since.
            Some((elected, record)) => record.server == self.server || dead == Some(*elected),
        };
        if !(free || silent || self.exclusive) {
            return Ok(None);
        }
        let record = LeaderRecord {
            server: self.server,
            term: leader.as_ref().map_or(last_term, |(_, before)| before.term).max(last_term) + 1,
            since: Timestamp(self.clock.now().0),
        };
        let batch = Batch::new()
            .expect(Key::Leader.to_string(), leader.map(|(revision, _)| revision))
            .put(Key::Leader.to_string(), encode(&Key::Leader, &record));
        match self.backend.commit(batch).await {
            Ok(fence) => Ok(Some(Lead { term: record.term, fence })),
            Err(error) if error.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The revision at which the leader was elected whose end is waited for, once it has come.
async fn ended(wake: &mut Option<Wake>) -> Revision {
    match wake {
        Some((elected, end)) => {
            end.await;
            *elected
        }
        None => std::future::pending().await,
    }
}

fn leader(bytes: &[u8]) -> Result<LeaderRecord, StoreError> {
    match Record::decode(&Key::Leader, bytes)? {
        Record::Leader(record) => Ok(record),
        _ => unreachable!("the key decides which record is read"),
    }
}
fn lease(bytes: &[u8]) -> Result<LeaseRecord, StoreError> {
    match Record::decode(&Key::Lease, bytes)? {
        Record::Lease(record) => Ok(record),
        _ => unreachable!("the key decides which record is read"),
    }
}
