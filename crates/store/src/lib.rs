//! Where the cluster keeps what it knows: bytes under keys, in one order of writes.
//!
//! - [`Backend`] is the narrow waist: types, indexes and caches are built above it once; an
//!   implementation below it supplies three methods and passes the `contract` suite.
//! - There is one order of revisions for the whole store. A batch is at one revision or nowhere, and
//!   no two batches share a revision.
//! - What was acknowledged is durable. What could not be read whole is an error that names it.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

#[cfg(feature = "contract")]
pub mod contract;
pub mod embedded;
mod error;
pub mod etcd;
pub mod records;

pub use embedded::Embedded;
pub use error::{AnyError, StoreError};
pub use etcd::Etcd;

/// How many keys one batch may expect, and how many it may write, on every backend however it is
/// configured. A backend may take more; what has to work on all of them stays within this.
pub const PORTABLE_KEYS: usize = 128;

/// How many bytes of keys and values one batch may carry on every backend.
pub const PORTABLE_BYTES: usize = 1024 * 1024;

/// A position in the store's single order of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place that keeps bytes under keys. Safe to use from many tasks and, if it is shared, from many
/// processes at once.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Everything under `prefix`, as it stood at one revision, which is not older than any commit that
    /// was acknowledged before the call. The empty prefix reads everything.
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Makes all the writes or none of them, and answers when they are durable.
    ///
    /// A batch that changes nothing (only expectations, or deletions of absent keys) is checked, makes no
    /// revision and answers with the present one.
    ///
    /// After [`StoreError::Conflict`] nothing was written. After [`StoreError::Unavailable`], and when the
    /// future is dropped, it is not known whether it was: read again and decide again.
    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError>;

    /// Every change under `prefix` after a revision, each once, in the order of their revisions and of
    /// their keys within one. The stream outlives interruptions of the connection.
    ///
    /// Fails with [`StoreError::Compacted`], at once or later, if the history does not reach back so
    /// far or the watcher fell behind it; the caller then reads again and watches from there. An error is
    /// the last thing a stream says.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError>;
}

/// What [`Backend::watch`] answers with.
pub type Changes = BoxStream<'static, Result<Event, StoreError>>;

/// What stood under a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where to watch from, to miss nothing.
    pub revision: Revision,
    /// The keys and what was under them.
    pub entries: BTreeMap<String, Entry>,
}

/// A value and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub value: Vec<u8>,
    /// The commit that wrote them.
    pub written_at: Revision,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The commit that made it.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What was put there; `None` when the key was deleted.
    pub value: Option<Vec<u8>>,
}

/// Writes that stand or fall together, on condition of what was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    expectations: Vec<(String, Option<Revision>)>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl Batch {
    /// A batch that expects and writes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` was last written at `revision`, or is absent for `None`.
    pub fn expect(mut self, key: impl Into<String>, revision: Option<Revision>) -> Self {
        self.expectations.push((key.into(), revision));
        self
    }

    /// Puts `value` under `key`. The last write of a key in a batch is the one that counts.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.writes.insert(key.into(), Some(value.into()));
        self
    }

    /// Removes `key`, if it is there. The last write of a key in a batch is the one that counts.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.insert(key.into(), None);
        self
    }

    /// Adds what another batch expects and writes; its writes count where both write a key.
    pub fn and(mut self, other: Self) -> Self {
        self.expectations.extend(other.expectations);
        self.writes.extend(other.writes);
        self
    }

    /// What must hold, in the order in which it is checked.
    #[must_use]
    pub fn expectations(&self) -> &[(String, Option<Revision>)] {
        &self.expectations
    }

    /// What is written, in the order of keys; `None` removes.
    #[must_use]
    pub fn writes(&self) -> &BTreeMap<String, Option<Vec<u8>>> {
        &self.writes
    }

    /// Whether it would write nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many bytes its keys and values have.
    #[must_use]
    pub fn size(&self) -> usize {
        let written = self.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        self.expectations.iter().map(|(key, _)| key.len()).sum::<usize>() + written.sum::<usize>()
    }
}
