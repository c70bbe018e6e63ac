//! Which of the servers decides.
//!
//! - At most one server believes itself leader at a time, as long as clocks run at about the same speed: a leader that could not renew
//!   its lease within [`Timing::lease`] stops believing before anybody else may begin (a follower waits [`Timing::takeover`], which is longer).
//! - Belief is not what safety stands on: every commit of a controller expects the revision at which the leader wrote `leader`
//!   ([`Lead::fence`]), so that a deposed leader's commits fail whatever it believes.
//! - No clock is compared with another machine's: followers measure how long *they* have seen no renewal.

use std::{sync::Arc, time::Duration};

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

/// Stands for election, and tells whether it leads.
pub struct Election {
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    server: ServerId,
    timing: Timing,
    /// Nobody else can have the store open: take over at once.
    exclusive: bool,
    lead: watch::Sender<Option<Lead>>,
}

/// What a follower has seen of the leader's lease.
struct Seen {
    count: Option<LeaseRecord>,
    since: Duration,
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
        Self { backend, clock, server, timing, exclusive, lead: watch::Sender::new(None) }
    }

    /// Whether this server leads, now and later.
    pub fn watch(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.subscribe()
    }

    /// Runs until `shutdown`; then gives the lead up, so that another server need not wait for the lease to end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen = Seen { count: None, since: self.clock.monotonic() };
        let mut renewed_at = self.clock.monotonic();
        loop {
            let led = *self.lead.borrow();
            match led {
                Some(lead) => match self.renew(lead).await {
                    Ok(()) => renewed_at = self.clock.monotonic(),
                    Err(error) if error.is_conflict() => self.step_down("another server has taken over"),
                    Err(error) => {
                        tracing::warn!(error = %wharf_process::errors::chain(&error), "lease not renewed");
                    }
                },
                None => match self.try_to_lead(&mut seen).await {
                    Ok(Some(lead)) => {
                        renewed_at = self.clock.monotonic();
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
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = shutdown.cancelled() => break,
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

    fn step_down(&self, why: &str) {
        tracing::warn!(server = %self.server, why, "this server leads no more");
        self.lead.send_replace(None);
    }

    async fn renew(&self, lead: Lead) -> Result<(), StoreError> {
        // Unlike `count` before it, the time makes each renewal of a term differ from the last one.
        let count = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        let lease = LeaseRecord { server: self.server, count };
        let batch = lead.batch().put(Key::Lease.to_string(), encode(&Key::Lease, &lease));
        // A store that hangs must not keep a leader believing.
        match tokio::time::timeout(self.timing.lease, self.backend.commit(batch)).await {
            Ok(result) => result.map(drop),
            Err(elapsed) => {
                Err(StoreError::Unavailable { place: "the store".into(), source: elapsed.into() })
            }
        }
    }

    async fn try_to_lead(&self, seen: &mut Seen) -> Result<Option<Lead>, StoreError> {
        // One prefix for both keys, so that they are read at one revision.
        let snapshot = self.backend.read("lea").await?;
        let entry = |key: &Key| snapshot.entries.get(&key.to_string());
        let leader =
            entry(&Key::Leader).map(|found| Ok((found.written_at, leader(&found.value)?))).transpose()?;
        let lease = entry(&Key::Lease).map(|found| lease(&found.value)).transpose()?;
        if lease != seen.count {
            *seen = Seen { count: lease, since: self.clock.monotonic() };
        }
        let silent = self.clock.monotonic() - seen.since >= self.timing.takeover;
        let free = match &leader {
            None => true,
            // Ours from before a restart: nobody else has taken it since.
            Some((_, record)) => record.server == self.server,
        };
        if !(free || silent || self.exclusive) {
            return Ok(None);
        }
        let record = LeaderRecord {
            server: self.server,
            term: leader.as_ref().map_or(1, |(_, before)| before.term + 1),
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
