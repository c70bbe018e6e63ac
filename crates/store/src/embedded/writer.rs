//! The one writer: makes the batches that wait durable, many in one transaction.
//!
//! - Batches are judged in the order in which they were queued, each against what the ones before it in
//!   the same group have written; each gets a revision of its own, or a conflict, or changes nothing.
//! - Nobody is answered before the transaction is durable, not even with a conflict: what a batch
//!   conflicted with might not come to be.
//! - When the database fails, everybody in the group is told that the outcome is unknown, and the file
//!   is opened again, which proves it again.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
};

use nix::sys::statvfs::statvfs;
use redb::{Database, ReadableTable, Table};
use tokio::sync::{mpsc, oneshot};

use super::{
    Options, Shared, file,
    reader::{self, number},
    recent::Recent,
    rows::{self, ENTRIES, HISTORY, META, meta},
};
use crate::{Batch, Event, PORTABLE_BYTES, Revision, StoreError};

/// How many batches, and about how many bytes, share a transaction.
const GROUP_BATCHES: usize = 1024;
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// The largest batch: nothing sensible is larger, and every layer below can take it.
const BATCH_BYTES: usize = 64 * PORTABLE_BYTES;
/// How many revisions a transaction forgets beyond those it adds, when the history is too long.
const TRIM: u64 = 256;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Request {
    Commit { batch: Batch, reply: Answer<Revision> },
    Compact { through: Revision, reply: Answer<()> },
    Close { reply: Answer<()> },
}

pub(super) fn start(shared: Arc<Shared>, queue: mpsc::Receiver<Request>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("store-writer".to_owned()).spawn(move || Writer { shared, queue }.run())
}

/// Refuses a batch no transaction could take.
pub(super) fn check_size(batch: &Batch, options: &Options) -> Result<(), StoreError> {
    let too_large = |what: String, limit| Err(StoreError::TooLarge { what, limit });
    let (expected, written) = (batch.expectations().len(), batch.writes().len());
    if expected > options.batch_keys {
        return too_large(format!("expects {expected} keys"), options.batch_keys);
    }
    if written > options.batch_keys {
        return too_large(format!("writes {written} keys"), options.batch_keys);
    }
    if batch.size() > BATCH_BYTES {
        return too_large(format!("has {} bytes", batch.size()), BATCH_BYTES);
    }
    Ok(())
}

struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
}

/// Batches that share a transaction.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    replies: Vec<Answer<Revision>>,
    bytes: usize,
}

/// What became of a group, once it is durable.
struct Outcome {
    answers: Vec<Result<Revision, StoreError>>,
    /// What each revision of the group changed.
    commits: Vec<Arc<[Event]>>,
    /// The latest revision whose history is gone.
    compacted: Revision,
}

impl Writer {
    fn run(mut self) {
        while let Some(request) = self.queue.blocking_recv() {
            if let Some(reply) = self.serve(request) {
                self.close();
                let _ = reply.send(Ok(()));
                return;
            }
        }
        self.close();
    }

    /// Serves a request and what waits behind it; answers with whom to tell when closing was asked for.
    fn serve(&mut self, first: Request) -> Option<Answer<()>> {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit { batch, reply } => group.add(batch, reply),
                Request::Compact { through, reply } => {
                    self.commit(std::mem::take(&mut group));
                    // Nobody listens if the caller has gone away; it is done all the same.
                    let _ = reply.send(self.compact(through));
                }
                Request::Close { reply } => {
                    self.commit(group);
                    return Some(reply);
                }
            }
            if group.is_full() {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        self.commit(group);
        None
    }

    fn close(&mut self) {
        // Waits for those who are reading. Dropping the database closes it cleanly.
        let database = self.shared.database.write().take();
        drop(database);
        self.queue.close();
        // Watchers wake up and see that the store is closed.
        self.shared.closed.store(true, Ordering::Release);
        self.shared.latest.send_modify(|_| {});
    }

    fn commit(&self, group: Group) {
        if group.batches.is_empty() {
            return;
        }
        let outcome = self.with_room(group.bytes, |database| self.write(database, &group.batches));
        let answers = match outcome {
            Ok(outcome) => {
                self.publish(&outcome);
                outcome.answers
            }
            Err(error) => same_for_all(&error, group.replies.len()),
        };
        for (reply, answer) in group.replies.into_iter().zip(answers) {
            // Nobody listens if the caller has gone away; the commit stands all the same.
            let _ = reply.send(answer);
        }
    }

    /// Makes the changes of a durable group known to watchers.
    fn publish(&self, outcome: &Outcome) {
        let mut recent = self.shared.recent.lock();
        outcome.commits.iter().for_each(|commit| recent.push(Arc::clone(commit)));
        recent.compact(outcome.compacted);
        drop(recent);
        let latest = outcome.commits.last().and_then(|commit| commit.first());
        if let Some(event) = latest {
            self.shared.latest.send_replace(event.revision);
        }
        let counters = &self.shared.counters;
        for answer in &outcome.answers {
            match answer {
                Ok(_) => counters.commits.fetch_add(1, Ordering::Relaxed),
                Err(_) => counters.conflicts.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    /// Does something that writes, if there is room for it; opens the file again if that failed.
    fn with_room<T>(
        &self,
        bytes: usize,
        write: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reopen_if_closed()?;
        self.check_room(bytes)?;
        let outcome = self.shared.with_database(write);
        if outcome.is_err() {
            tracing::warn!(store = %self.shared.path.display(), "a transaction failed; opening the store again");
            // The database refuses everything after a failure. Should the file not open now, the next
            // request tries again.
            *self.shared.database.write() = None;
            let _ = self.reopen_if_closed();
        }
        outcome
    }

    /// Opens the file again if a failure closed it. Some of what failed may have become durable, so
    /// watchers are sent to the file for what they have not seen.
    fn reopen_if_closed(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        if shared.database.read().is_some() {
            return Ok(());
        }
        let database = file::open(&shared.path, shared.options.cache)?;
        let state = reader::state(&database).map_err(|error| file::storage_error(&shared.path, error))?;
        *shared.database.write() = Some(database);
        *shared.recent.lock() = Recent::after(state.revision);
        shared.latest.send_replace(state.revision);
        Ok(())
    }

    /// Refuses what might not fit, before it is begun.
    fn check_room(&self, bytes: usize) -> Result<(), StoreError> {
        let place = || self.shared.place();
        let disk = statvfs(&self.shared.path).map_err(|error| StoreError::unavailable(place(), error))?;
        let available = disk.blocks_available() * disk.fragment_size();
        // Each byte is written to the entries and to the history, and pages are at worst half full.
        let needed = self.shared.options.reserve.saturating_add(bytes as u64 * 4);
        if available >= needed {
            return Ok(());
        }
        let text = format!("{available} bytes are free, {needed} are needed");
        Err(StoreError::Full {
            place: place(),
            source: io::Error::new(io::ErrorKind::StorageFull, text).into(),
        })
    }

    fn write(&self, database: &Database, batches: &[Batch]) -> Result<Outcome, StoreError> {
        let wrong = |error: redb::Error| file::storage_error(&self.shared.path, error);
        let transaction = database.begin_write().map_err(|error| wrong(error.into()))?;
        let opened = || -> Result<_, redb::Error> {
            let numbers = transaction.open_table(META)?;
            Ok((numbers, transaction.open_table(ENTRIES)?, transaction.open_table(HISTORY)?))
        };
        let (numbers, entries, history) = opened().map_err(wrong)?;
        let mut pass = Pass { shared: &self.shared, numbers, entries, history };
        let revision = Revision(pass.number(meta::REVISION)?);
        let mut outcome = Outcome { answers: Vec::new(), commits: Vec::new(), compacted: Revision(0) };
        for batch in batches {
            let present = Revision(revision.0 + outcome.commits.len() as u64);
            outcome.answers.push(match pass.apply(batch, present)? {
                Applied::Changed(events) => {
                    outcome.commits.push(events.into());
                    Ok(Revision(present.0 + 1))
                }
                Applied::Nothing => Ok(present),
                Applied::Refused(error) => Err(error),
            });
        }
        let added = outcome.commits.len() as u64;
        if added == 0 {
            drop(pass);
            transaction.abort().map_err(|error| wrong(error.into()))?;
            return Ok(outcome);
        }
        pass.set_number(meta::REVISION, revision.0 + added)?;
        outcome.compacted = pass.trim(revision.0 + added, added + TRIM)?;
        drop(pass);
        transaction.commit().map_err(|error| wrong(error.into()))?;
        self.shared.counters.transactions.fetch_add(1, Ordering::Relaxed);
        Ok(outcome)
    }

    fn compact(&self, through: Revision) -> Result<(), StoreError> {
        self.with_room(0, |database| {
            let wrong = |error: redb::Error| file::storage_error(&self.shared.path, error);
            let transaction = database.begin_write().map_err(|error| wrong(error.into()))?;
            let opened = || -> Result<_, redb::Error> {
                let numbers = transaction.open_table(META)?;
                Ok((numbers, transaction.open_table(ENTRIES)?, transaction.open_table(HISTORY)?))
            };
            let (numbers, entries, history) = opened().map_err(wrong)?;
            let mut pass = Pass { shared: &self.shared, numbers, entries, history };
            let through = through.0.min(pass.number(meta::REVISION)?);
            pass.forget(through)?;
            drop(pass);
            transaction.commit().map_err(|error| wrong(error.into()))?;
            self.shared.counters.transactions.fetch_add(1, Ordering::Relaxed);
            self.shared.recent.lock().compact(Revision(through));
            Ok(())
        })
    }
}

/// The open tables of one transaction.
struct Pass<'a> {
    shared: &'a Shared,
    numbers: Table<'a, &'static str, u64>,
    entries: Table<'a, &'static str, &'static [u8]>,
    history: Table<'a, u64, &'static [u8]>,
}

enum Applied {
    Changed(Vec<Event>),
    Nothing,
    /// Something was not as expected, or what stood there is damaged. Nothing was written.
    Refused(StoreError),
}

impl Pass<'_> {
    /// Writes a batch on top of revision `present`, if what it expects holds.
    fn apply(&mut self, batch: &Batch, present: Revision) -> Result<Applied, StoreError> {
        for (key, expected) in batch.expectations() {
            match self.written_at(key)? {
                Ok(found) if found == *expected => {}
                Ok(found) => {
                    let (key, expected) = (key.clone(), *expected);
                    return Ok(Applied::Refused(StoreError::Conflict { key, expected, found }));
                }
                Err(damaged) => return Ok(Applied::Refused(damaged)),
            }
        }
        let revision = Revision(present.0 + 1);
        let mut events = Vec::new();
        for (key, value) in batch.writes() {
            let changed = match value {
                Some(value) => {
                    let row = rows::encode_entry(key, revision, value);
                    self.entries.insert(&**key, &*row).map(|_old| true)
                }
                None => self.entries.remove(&**key).map(|old| old.is_some()),
            };
            if changed.map_err(|error| self.wrong(error.into()))? {
                events.push(Event { revision, key: key.clone(), value: value.clone() });
            }
        }
        if events.is_empty() {
            return Ok(Applied::Nothing);
        }
        let row = rows::encode_changes(revision, &events);
        let inserted = self.history.insert(revision.0, &*row).map(drop);
        inserted.map_err(|error| self.wrong(error.into()))?;
        let bytes = self.number(meta::HISTORY_BYTES)? + row.len() as u64;
        self.set_number(meta::HISTORY_BYTES, bytes)?;
        Ok(Applied::Changed(events))
    }

    /// When a key was last written. The inner error concerns this key alone.
    fn written_at(&self, key: &str) -> Result<Result<Option<Revision>, StoreError>, StoreError> {
        let row = self.entries.get(key).map_err(|error| self.wrong(error.into()))?;
        Ok(row.map(|row| rows::decode_revision(key, row.value())).transpose())
    }

    /// Forgets the oldest revisions while there are too many or too large ones, up to `limit` of them.
    fn trim(&mut self, latest: u64, limit: u64) -> Result<Revision, StoreError> {
        let options = &self.shared.options;
        let compacted = self.number(meta::COMPACTED)?;
        let mut through = compacted;
        let mut bytes = self.number(meta::HISTORY_BYTES)?;
        while through < latest
            && through - compacted < limit
            && (latest - through > options.history_revisions || bytes > options.history_bytes)
        {
            through += 1;
            bytes = bytes.saturating_sub(self.remove(through)?);
        }
        if through > compacted {
            self.set_number(meta::COMPACTED, through)?;
            self.set_number(meta::HISTORY_BYTES, bytes)?;
        }
        Ok(Revision(through))
    }

    /// Forgets everything up to and including `through`.
    fn forget(&mut self, through: u64) -> Result<(), StoreError> {
        let mut bytes = self.number(meta::HISTORY_BYTES)?;
        let compacted = self.number(meta::COMPACTED)?;
        for revision in compacted + 1..=through {
            bytes = bytes.saturating_sub(self.remove(revision)?);
        }
        self.set_number(meta::COMPACTED, through.max(compacted))?;
        self.set_number(meta::HISTORY_BYTES, bytes)
    }

    /// Removes a revision from the history and answers how many bytes it had.
    fn remove(&mut self, revision: u64) -> Result<u64, StoreError> {
        let removed = self.history.remove(revision).map(|row| row.map_or(0, |row| row.value().len() as u64));
        removed.map_err(|error| self.wrong(error.into()))
    }

    fn number(&self, name: &'static str) -> Result<u64, StoreError> {
        number(&self.numbers, name).map_err(|error| self.wrong(error))
    }

    fn set_number(&mut self, name: &'static str, value: u64) -> Result<(), StoreError> {
        let set = self.numbers.insert(name, value).map(drop);
        set.map_err(|error| self.wrong(error.into()))
    }

    fn wrong(&self, error: redb::Error) -> StoreError {
        file::storage_error(&self.shared.path, error)
    }
}

impl Group {
    fn add(&mut self, batch: Batch, reply: Answer<Revision>) {
        self.bytes += batch.size();
        self.batches.push(batch);
        self.replies.push(reply);
    }

    fn is_full(&self) -> bool {
        self.batches.len() >= GROUP_BATCHES || self.bytes >= GROUP_BYTES
    }
}

/// The same failure for everybody in a group; the causes that cannot be cloned travel as text.
fn same_for_all(error: &StoreError, count: usize) -> Vec<Result<Revision, StoreError>> {
    (0..count).map(|_| Err(copy(error))).collect()
}

fn copy(error: &StoreError) -> StoreError {
    let cause = |source: &crate::AnyError| wharf_process::errors::chain(source.as_ref()).into();
    match error {
        StoreError::Full { place, source } => {
            StoreError::Full { place: place.clone(), source: cause(source) }
        }
        StoreError::Unavailable { place, source } => {
            StoreError::Unavailable { place: place.clone(), source: cause(source) }
        }
        StoreError::DamagedFile { path, source } => {
            StoreError::DamagedFile { path: path.clone(), source: cause(source) }
        }
        StoreError::DamagedValue { key, reason } => {
            StoreError::DamagedValue { key: key.clone(), reason: reason.clone() }
        }
        StoreError::InUse { path } => StoreError::InUse { path: path.clone() },
        StoreError::UnsupportedSchema { what, found, supported } => {
            StoreError::UnsupportedSchema { what: what.clone(), found: *found, supported: *supported }
        }
        StoreError::Conflict { key, expected, found } => {
            StoreError::Conflict { key: key.clone(), expected: *expected, found: *found }
        }
        StoreError::Compacted { after } => StoreError::Compacted { after: *after },
        StoreError::Malformed { key, source } => {
            StoreError::Malformed { key: key.clone(), source: cause(source) }
        }
        StoreError::TooLarge { what, limit } => StoreError::TooLarge { what: what.clone(), limit: *limit },
        StoreError::Misconfigured { reason } => StoreError::Misconfigured { reason: reason.clone() },
    }
}
