//! The store of a simulated cluster: what the contract promises, in memory, with the faults that the contract allows.
//!
//! - [`Shelf`] holds the data and outlives every server; [`Reach`] is how one run of a server reaches it.
//! - A commit that is cut off or answered with an error may have been made or not. A watch may break, or have fallen too far behind.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::watch;
use wharf_store::{Backend, Batch, Changes, Entry, Event, Revision, Snapshot, StoreError};

use super::{chance::Dice, life::Life};

/// Changes kept for watches that begin in the past.
const HISTORY: usize = 20_000;
/// How long a server waits for a store that it does not reach.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sees every commit, under the store's lock: what it wrote, in the order of keys.
type Witness = Box<dyn Fn(&[Event]) + Send + Sync>;

/// The data.
pub struct Shelf {
    held: Mutex<Held>,
    latest: watch::Sender<Revision>,
    witness: Mutex<Option<Witness>>,
}
#[derive(Default)]
struct Held {
    revision: u64,
    entries: BTreeMap<String, Entry>,
    history: VecDeque<Event>,
    /// The history begins after this revision.
    compacted: u64,
}
impl Default for Shelf {
    fn default() -> Self {
        Self { held: Mutex::default(), latest: watch::Sender::new(Revision(0)), witness: Mutex::default() }
    }
}

impl Shelf {
    /// Has somebody see every commit from now on.
    pub fn show(&self, witness: impl Fn(&[Event]) + Send + Sync + 'static) {
        *self.witness.lock() = Some(Box::new(witness));
    }
    /// The latest revision.
    pub fn revision(&self) -> Revision {
        Revision(self.held.lock().revision)
    }
    /// Forgets the history up to and including this revision.
    pub fn compact(&self, through: Revision) {
        let mut held = self.held.lock();
        held.compacted = held.compacted.max(through.0.min(held.revision));
        let compacted = held.compacted;
        held.history.retain(|event| event.revision.0 > compacted);
        drop(held);
        // Watches that have not come so far hear of it.
        self.latest.send_modify(|_| {});
    }

    fn read(&self, prefix: &str) -> Snapshot {
        let held = self.held.lock();
        let under = held.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let entries = under.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Snapshot { revision: Revision(held.revision), entries }
    }

    /// Makes a batch at once, as nothing but the beginning of a cluster can.
    pub fn commit(&self, batch: &Batch) -> Result<Revision, StoreError> {
        let mut held = self.held.lock();
        for (key, expected) in batch.expectations() {
            let found = held.entries.get(key).map(|entry| entry.written_at);
            if found != *expected {
                return Err(StoreError::Conflict { key: key.clone(), expected: *expected, found });
            }
        }
        let revision = Revision(held.revision + 1);
        let mut events = Vec::new();
        for (key, value) in batch.writes() {
            let changed = match value {
                Some(value) => {
                    held.entries.insert(key.clone(), Entry { value: value.clone(), written_at: revision });
                    true
                }
                None => held.entries.remove(key).is_some(),
            };
            if changed {
                events.push(Event { revision, key: key.clone(), value: value.clone() });
            }
        }
        if events.is_empty() {
            return Ok(Revision(held.revision));
        }
        held.revision = revision.0;
        held.history.extend(events.iter().cloned());
        // Whole commits only: a watch that begins between is told all of the next one.
        while held.history.len() > HISTORY
            && let Some(oldest) = held.history.pop_front()
        {
            held.compacted = oldest.revision.0;
            while held.history.front().is_some_and(|event| event.revision == oldest.revision) {
                held.history.pop_front();
            }
        }
        if let Some(witness) = &*self.witness.lock() {
            witness(&events);
        }
        drop(held);
        self.latest.send_replace(revision);
        Ok(revision)
    }

    /// What happened after a revision, or that nobody knows any more.
    fn after(&self, revision: Revision, prefix: &str) -> Result<(Vec<Event>, Revision), StoreError> {
        let held = self.held.lock();
        if revision.0 < held.compacted {
            return Err(StoreError::Compacted { after: revision });
        }
        let begin = held.history.partition_point(|event| event.revision <= revision);
        let since = held.history.range(begin..).filter(|event| event.key.starts_with(prefix));
        Ok((since.cloned().collect(), Revision(held.revision)))
    }
}

/// How well the store does.
#[derive(Debug, Default)]
pub struct Condition(Mutex<Now>);
#[derive(Debug, Default, Clone, Copy)]
struct Now {
    /// The longest that a call takes, in milliseconds.
    slow: u64,
    /// Of a thousand calls so many fail, before or after they are done.
    flaky: u32,
    full: bool,
    away: bool,
    /// Of a thousand deliveries to a watch so many break it.
    breaking: u32,
}
impl Condition {
    /// Calls take up to so many milliseconds more.
    pub fn set_slow(&self, millis: u64) {
        self.0.lock().slow = millis;
    }
    /// Of a thousand calls so many fail, and of as many deliveries a tenth.
    pub fn set_flaky(&self, permille: u32) {
        let mut now = self.0.lock();
        (now.flaky, now.breaking) = (permille, permille / 10);
    }
    /// It has no space left.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }
    /// It is not reached.
    pub fn set_away(&self, away: bool) {
        self.0.lock().away = away;
    }
    /// Everything is well.
    pub fn heal(&self) {
        *self.0.lock() = Now::default();
    }
}

/// How one run of a server reaches the store.
pub struct Reach {
    /// The data.
    pub shelf: Arc<Shelf>,
    /// The server.
    pub life: Life,
    /// How well the store does for this server.
    pub condition: Arc<Condition>,
    /// What decides.
    pub dice: Arc<Dice>,
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable { place: "the simulated store".to_owned(), source: why.to_owned().into() }
}

impl Reach {
    /// The way there or back. Every call is an await on which the server may die.
    async fn way(&self) -> Result<(), StoreError> {
        self.life.gate().await;
        let now = *self.condition.0.lock();
        // Also on the best of days: a millisecond or two.
        let pause = 1 + self.dice.below(2) + self.dice.below(now.slow);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if now.away {
            tokio::time::sleep(DEADLINE).await;
            return Err(unavailable("it does not answer"));
        }
        if now.flaky > 0 && self.dice.permille(now.flaky) {
            return Err(unavailable("the connection broke"));
        }
        self.life.gate().await;
        Ok(())
    }
}

#[async_trait]
impl Backend for Reach {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.way().await?;
        let snapshot = self.shelf.read(prefix);
        self.way().await?;
        Ok(snapshot)
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.way().await?;
        if self.condition.0.lock().full && !batch.writes().is_empty() {
            let source = std::io::Error::from_raw_os_error(28);
            return Err(StoreError::Full { place: "the simulated store".to_owned(), source: source.into() });
        }
        let answer = self.shelf.commit(&batch);
        // From here on it is made, whatever its caller hears.
        self.way().await?;
        answer
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        self.way().await?;
        self.shelf.after(after, prefix)?;
        let reach = Self {
            shelf: Arc::clone(&self.shelf),
            life: self.life.clone(),
            condition: Arc::clone(&self.condition),
            dice: Arc::clone(&self.dice),
        };
        let latest = self.shelf.latest.subscribe();
        let state = Some((reach, latest, prefix.to_owned(), after));
        let chunks = stream::unfold(state, |state| async move {
            let (reach, mut latest, prefix, after) = state?;
            loop {
                latest.borrow_and_update();
                let (events, seen) = match reach.shelf.after(after, &prefix) {
                    Ok(found) => found,
                    Err(error) => return Some((vec![Err(error)], None)),
                };
                if seen > after {
                    let (away, breaking) = {
                        let now = reach.condition.0.lock();
                        (now.away, now.breaking)
                    };
                    if away {
                        // What was written meanwhile comes when it is reached again, or never.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    reach.life.gate().await;
                    if breaking > 0 && reach.dice.permille(breaking) {
                        return Some((vec![Err(unavailable("the watch broke"))], None));
                    }
                    let events: Vec<_> = events.into_iter().map(Ok).collect();
                    if !events.is_empty() {
                        return Some((events, Some((reach, latest, prefix, seen))));
                    }
                }
                if latest.changed().await.is_err() {
                    return None;
                }
            }
        });
        Ok(chunks.flat_map(stream::iter).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(shelf: &Arc<Shelf>) -> Reach {
        Reach {
            shelf: Arc::clone(shelf),
            life: Life::default(),
            condition: Arc::default(),
            dice: Arc::new(Dice::new(1, "store")),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_keeps_the_contract_of_stores() {
        let backend: Arc<dyn Backend> = Arc::new(reach(&Arc::default()));
        wharf_store::contract::run(&backend).await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_keeps_the_contract_about_its_history() {
        let shelf = Arc::default();
        let compact = async |through| Shelf::compact(&shelf, through);
        wharf_store::contract::compaction(&reach(&shelf), compact).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_fails_may_have_been_made() {
        let shelf = Arc::default();
        let reach = reach(&shelf);
        reach.condition.set_flaky(500);
        let (mut made, mut not) = (0, 0);
        for n in 0..100 {
            let before = shelf.revision();
            if reach.commit(Batch::new().put(format!("k{n}"), "1")).await.is_err() {
                *if shelf.revision() > before { &mut made } else { &mut not } += 1;
            }
        }
        assert!(made > 5 && not > 5, "{made} {not}");
    }
}
