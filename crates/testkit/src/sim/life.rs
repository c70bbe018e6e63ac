//! The life of a simulated process: everything it asks of the world goes through its [`Life`], and nothing of it does any more once it is over.
//!
//! A process may die at any moment. To have it die between what it does and its hearing of that, a fuse of so many calls is set.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// One run of a process. Clones are the same run.
#[derive(Debug, Clone)]
pub struct Life {
    over: CancellationToken,
    /// Calls until it dies; none while negative.
    fuse: Arc<AtomicI64>,
}
impl Default for Life {
    fn default() -> Self {
        Self { over: CancellationToken::new(), fuse: Arc::new(AtomicI64::new(-1)) }
    }
}

impl Life {
    /// It dies after so many more calls.
    pub fn die_after(&self, calls: u32) {
        self.fuse.store(i64::from(calls), Ordering::Relaxed);
    }
    /// It does not die of its calls after all.
    pub fn spare(&self) {
        self.fuse.store(-1, Ordering::Relaxed);
    }
    /// It dies now.
    pub fn end(&self) {
        self.over.cancel();
    }
    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }
    /// Returns when it is over. Cancel-safe.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
    /// Passed before and after each call. Never returns to a process that is dead, or dies of this one.
    pub async fn gate(&self) {
        if self.fuse.load(Ordering::Relaxed) >= 0 && self.fuse.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.over.cancel();
        }
        if self.over.is_cancelled() {
            pending::<()>().await;
        }
    }
    /// Does something that ends with the process.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            // The process is dead: what it had begun is dropped with it.
            () = self.over.cancelled() => pending().await,
            result = work => result,
        }
    }
}
