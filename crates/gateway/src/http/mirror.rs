//! Says which requests are copied, and to whom.
//!
//! - A copy is nobody's concern: its answer is dropped, its failure is none, and when too many are under way there is none.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{balance, table::Backend};

/// Bodies up to this are copied; a request with a longer one is not mirrored.
pub(crate) const LARGEST_BODY: usize = 256 << 10;
/// Copies of one route that are under way at once.
const MOST: u64 = 64;

/// What all copies of a route share; outlives tables.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    turn: AtomicU64,
    active: AtomicU64,
}

/// Who gets copies.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) percent: u8,
    pub(crate) backends: Vec<Arc<Backend>>,
}

impl Mirror {
    /// A copy of this request, if it is one of those that are copied.
    pub(crate) fn copy(&self, copies: &Arc<Copies>) -> Option<Copy> {
        if self.backends.is_empty() {
            return None;
        }
        let turn = copies.turn.fetch_add(1, Relaxed);
        if balance::position(turn, 100) >= u64::from(self.percent) {
            return None;
        }
        let able = |at: usize| (!self.backends[at].is_retired()).then(|| self.backends[at].active());
        let chosen = balance::least(self.backends.len(), turn, able)?;
        copies.active.fetch_update(Relaxed, Relaxed, |active| (active < MOST).then_some(active + 1)).ok()?;
        let copy = Copy { backend: Arc::clone(&self.backends[chosen]), copies: Arc::clone(copies) };
        copy.backend.begin();
        // It may have left the table before it was counted.
        (!copy.backend.is_retired()).then_some(copy)
    }
}

/// A copy that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Copy {
    backend: Arc<Backend>,
    copies: Arc<Copies>,
}

impl Copy {
    /// Who gets it.
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.backend.end();
        self.copies.active.fetch_sub(1, Relaxed);
    }
}
