//! The store of a single-server cluster: one file, no other process.
//!
//! - Commits are queued to one writer thread, which makes one durable transaction for all that wait:
//!   one synchronisation with the disk for the group, and an answer of its own for each.
//! - The history is kept in the same transactions, so a watch may begin in the past, also after a restart.
//!   It is bounded in revisions and bytes; the writer trims it as it goes.
//! - Memory is bounded: the page cache, the newest changes, and nothing per watcher but its place.

mod file;
mod reader;
mod recent;
mod rows;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use redb::Database;
use tokio::sync::{mpsc, oneshot, watch};
use wharf_process::blocking;

use self::{recent::Recent, writer::Request};
use crate::{Backend, Batch, Changes, Revision, Snapshot, StoreError};

/// How many requests may wait for the writer before those who make more of them wait as well.
const QUEUE: usize = 1024;

/// How an embedded store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many revisions of history are kept for watches that begin in the past.
    pub history_revisions: u64,
    /// How many bytes of history are kept, at most; the older limit of the two counts.
    pub history_bytes: u64,
    /// How many bytes must be free on the disk for a commit to be accepted. What is refused before it
    /// begins cannot fail in the middle, and reading goes on.
    pub reserve: u64,
    /// How many bytes of the file may be kept in memory.
    pub cache: usize,
    /// How many keys one batch may expect, and how many it may write.
    /// [`PORTABLE_KEYS`](crate::PORTABLE_KEYS) makes this store as strict as any.
    pub batch_keys: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history_revisions: 100_000,
            history_bytes: 256 * 1024 * 1024,
            reserve: 16 * 1024 * 1024,
            cache: 32 * 1024 * 1024,
            batch_keys: usize::MAX,
        }
    }
}

/// What the store has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Batches that were made durable or found to change nothing.
    pub commits: u64,
    /// Batches that were refused because something was not as they expected.
    pub conflicts: u64,
    /// Durable transactions, each one synchronisation with the disk.
    pub transactions: u64,
}

/// A store in one file, for this process alone. Clones are the same store; the file is released when the
/// last one is dropped.
#[derive(Debug, Clone)]
pub struct Embedded {
    handle: Arc<Handle>,
}

/// Keeps the writer running. Dropped with the last clone of the store.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// Absent only while being dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer, the readers and the watchers have in common.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    options: Options,
    /// Absent when the store was closed, or when the file could not be opened again after a failure.
    database: RwLock<Option<Database>>,
    recent: Mutex<Recent>,
    /// The latest revision. Also sent when `closed` is set.
    latest: watch::Sender<Revision>,
    closed: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    conflicts: AtomicU64,
    transactions: AtomicU64,
}

impl Embedded {
    /// Opens the store at `path`, which is created if there is none.
    ///
    /// Proves every page of the file first, so it takes the longer the larger the file is.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::DamagedFile`] if it is not whole,
    /// [`StoreError::UnsupportedSchema`] if a newer version wrote it.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, Options::default()).await
    }

    /// Opens the store at `path` with other than the default options.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub async fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        blocking(move || Self::open_blocking(path, options)).await
    }

    fn open_blocking(path: PathBuf, options: Options) -> Result<Self, StoreError> {
        let database = file::open_or_create(&path, options.cache)?;
        let state = reader::state(&database).map_err(|error| file::storage_error(&path, error))?;
        let shared = Arc::new(Shared {
            path,
            options,
            database: RwLock::new(Some(database)),
            recent: Mutex::new(Recent::after(state.revision)),
            latest: watch::Sender::new(state.revision),
            closed: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = writer::start(Arc::clone(&shared), queue)
            .map_err(|error| StoreError::unavailable(shared.place(), error))?;
        let handle = Handle { shared, requests: Some(requests), writer: Some(writer) };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.handle.shared.counters;
        Stats {
            commits: counters.commits.load(Ordering::Relaxed),
            conflicts: counters.conflicts.load(Ordering::Relaxed),
            transactions: counters.transactions.load(Ordering::Relaxed),
        }
    }

    /// The file the store is in.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.handle.shared.path
    }

    /// Forgets the history up to and including `through`, which may not be in the future. Watches that have
    /// not come so far end with [`StoreError::Compacted`].
    ///
    /// # Errors
    /// As for a commit.
    pub async fn compact(&self, through: Revision) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Compact { through, reply }, answer).await
    }

    /// Finishes what was queued, ends watches, and releases the file, whether or not clones remain.
    pub async fn close(self) {
        let (reply, answer) = oneshot::channel();
        // An error means that it is closed already.
        let _ = self.request(Request::Close { reply }, answer).await;
    }

    async fn request<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let requests = self.handle.requests.as_ref().ok_or_else(|| self.handle.shared.closed())?;
        requests.send(request).await.map_err(|_gone| self.handle.shared.closed())?;
        answer.await.map_err(|_gone| self.handle.shared.closed())?
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // Takes as long as the commits that still wait; after it the file is free.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn closed(&self) -> StoreError {
        StoreError::unavailable(self.place(), "the store is closed")
    }

    /// Does something with the open database.
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.database.read().as_ref().map_or_else(|| Err(self.closed()), work)
    }
}

#[async_trait]
impl Backend for Embedded {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let (shared, prefix) = (Arc::clone(&self.handle.shared), prefix.to_owned());
        blocking(move || shared.with_database(|database| reader::read(&shared.path, database, &prefix))).await
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        writer::check_size(&batch, &self.handle.shared.options)?;
        let (reply, answer) = oneshot::channel();
        self.request(Request::Commit { batch, reply }, answer).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        recent::watch(&self.handle.shared, prefix.to_owned(), after)
    }
}
