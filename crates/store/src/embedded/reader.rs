//! Reads the database, each time at one revision.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::{
    file,
    rows::{ENTRIES, HISTORY, META, decode_changes, decode_entry, meta},
};
use crate::{Event, Revision, Snapshot, StoreError};

/// Where the store stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
}

pub(super) fn state(database: &Database) -> Result<State, redb::Error> {
    let transaction = database.begin_read()?;
    state_in(&transaction.open_table(META)?)
}

fn state_in(numbers: &impl ReadableTable<&'static str, u64>) -> Result<State, redb::Error> {
    Ok(State {
        revision: Revision(number(numbers, meta::REVISION)?),
        compacted: Revision(number(numbers, meta::COMPACTED)?),
    })
}

/// A number of [`META`]; what was never written is zero.
pub(super) fn number(
    numbers: &impl ReadableTable<&'static str, u64>,
    name: &'static str,
) -> Result<u64, redb::Error> {
    Ok(numbers.get(name)?.map_or(0, |number| number.value()))
}

/// Everything under a prefix.
pub(super) fn read(path: &Path, database: &Database, prefix: &str) -> Result<Snapshot, StoreError> {
    let wrong = |error: redb::Error| file::storage_error(path, error);
    let opened = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let state = state_in(&transaction.open_table(META)?)?;
        Ok((state, transaction.open_table(ENTRIES)?))
    };
    let (state, table) = opened().map_err(wrong)?;
    let rows = table.range(prefix..).map_err(|error| wrong(error.into()))?;
    let mut snapshot = Snapshot { revision: state.revision, entries: Default::default() };
    for row in rows {
        let (key, row) = row.map_err(|error| wrong(error.into()))?;
        let key = key.value();
        if !key.starts_with(prefix) {
            break;
        }
        snapshot.entries.insert(key.to_owned(), decode_entry(key, row.value())?);
    }
    Ok(snapshot)
}

/// The changes of up to `limit` revisions after `after`, and the revision up to which they are complete.
pub(super) fn history(
    path: &Path,
    database: &Database,
    after: Revision,
    limit: usize,
) -> Result<(Vec<Event>, Revision), StoreError> {
    let wrong = |error: redb::Error| file::storage_error(path, error);
    let opened = || -> Result<_, redb::Error> {
        let transaction = database.begin_read()?;
        let state = state_in(&transaction.open_table(META)?)?;
        Ok((state, transaction.open_table(HISTORY)?))
    };
    let (state, table) = opened().map_err(wrong)?;
    if after < state.compacted || after > state.revision {
        // A position in the future is one in another past: the file was replaced by an older one.
        return Err(StoreError::Compacted { after });
    }
    let mut events = Vec::new();
    let mut through = after;
    for row in table.range(after.0 + 1..).map_err(|error| wrong(error.into()))?.take(limit) {
        let (revision, row) = row.map_err(|error| wrong(error.into()))?;
        let revision = Revision(revision.value());
        if revision.0 != through.0 + 1 {
            let key = format!("history of revision {}", through.0 + 1);
            return Err(StoreError::DamagedValue { key, reason: "it is missing".to_owned() });
        }
        events.extend(decode_changes(revision, row.value())?);
        through = revision;
    }
    Ok((events, through))
}
