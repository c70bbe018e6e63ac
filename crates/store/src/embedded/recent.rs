//! Watches: the newest changes from memory, older ones from the history in the file.
//!
//! - A watch is a place in the order of revisions and moves only forward; what it takes from memory and
//!   what it takes from the file are the same sequence, so nothing is missed or told twice.
//! - A watcher that is slow costs nothing but its place. When the history has moved past that, it is
//!   told so and ends.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak, atomic::Ordering},
};

use futures::{StreamExt, stream};
use tokio::sync::watch;
use wharf_process::blocking;

use super::{Shared, reader};
use crate::{Changes, Event, Revision, StoreError};

/// How many of the newest revisions are kept in memory, and how many bytes of values with them.
const REVISIONS_KEPT: usize = 4096;
const BYTES_KEPT: usize = 8 * 1024 * 1024;
/// How many revisions of history are read at a time.
const PAGE: usize = 512;

/// The changes of the newest revisions, without gaps.
#[derive(Debug)]
pub(super) struct Recent {
    /// Everything after this revision is here.
    after: Revision,
    commits: VecDeque<Arc<[Event]>>,
    bytes: usize,
    /// Set by [`Recent::compact`]: watches that stand before this have lost their place.
    compacted: Revision,
}

impl Recent {
    pub(super) fn after(revision: Revision) -> Self {
        Self { after: revision, commits: VecDeque::new(), bytes: 0, compacted: Revision(0) }
    }

    /// Adds the events of the revision that follows the latest.
    pub(super) fn push(&mut self, events: Arc<[Event]>) {
        self.bytes += size(&events);
        self.commits.push_back(events);
        while self.commits.len() > REVISIONS_KEPT || self.bytes > BYTES_KEPT {
            self.forget_oldest();
        }
    }

    /// Forgets what is gone from the file as well.
    pub(super) fn compact(&mut self, through: Revision) {
        self.compacted = self.compacted.max(through);
        while self.after < through && !self.commits.is_empty() {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.commits.pop_front() {
            self.bytes -= size(&oldest);
            self.after.0 += 1;
        }
    }

    #[cfg(test)]
    fn latest(&self) -> Revision {
        Revision(self.after.0 + self.commits.len() as u64)
    }

    /// The commits after a revision; `None` if not all of them are here.
    fn since(&self, revision: Revision) -> Option<Vec<Arc<[Event]>>> {
        if revision < self.after || revision < self.compacted {
            return None;
        }
        let skipped = usize::try_from(revision.0 - self.after.0).unwrap_or(usize::MAX);
        Some(self.commits.iter().skip(skipped).cloned().collect())
    }
}

fn size(events: &[Event]) -> usize {
    events.iter().map(|event| event.key.len() + event.value.as_ref().map_or(0, Vec::len)).sum()
}

/// One watcher's place.
struct Place {
    /// Weak, so that a forgotten watch keeps no store open.
    shared: Weak<Shared>,
    prefix: String,
    /// Everything up to here was taken.
    through: Revision,
    /// Taken, and not yet handed out.
    pending: VecDeque<Event>,
    latest: watch::Receiver<Revision>,
}

pub(super) fn watch(shared: &Arc<Shared>, prefix: String, after: Revision) -> Result<Changes, StoreError> {
    if after > *shared.latest.borrow() {
        // A position in the future is one in another past: the file was replaced by an older one.
        return Err(StoreError::Compacted { after });
    }
    let latest = shared.latest.subscribe();
    let shared = Arc::downgrade(shared);
    let place = Place { shared, prefix, through: after, pending: VecDeque::new(), latest };
    let changes = stream::unfold(Some(place), |place| async {
        let mut place = place?;
        match place.next().await {
            Ok(event) => Some((Ok(event), Some(place))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(changes.boxed())
}

impl Place {
    /// The next event. Dropped before it answers, it has lost nothing: the place moves with `pending`.
    async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            self.latest.borrow_and_update();
            let shared = self.shared.upgrade().ok_or_else(ended)?;
            if shared.closed.load(Ordering::Acquire) {
                return Err(ended());
            }
            let before = self.through;
            // The lock is free again before anything is awaited.
            let recent = shared.recent.lock().since(before);
            match recent {
                Some(commits) => self.take_commits(&commits),
                None => self.take_history(shared).await?,
            }
            if self.through == before {
                self.latest.changed().await.map_err(|_closed| ended())?;
            }
        }
    }

    fn take_commits(&mut self, commits: &[Arc<[Event]>]) {
        for commit in commits {
            self.through = commit.first().map_or(self.through, |event| event.revision);
            let wanted = commit.iter().filter(|event| event.key.starts_with(&self.prefix));
            self.pending.extend(wanted.cloned());
        }
    }

    async fn take_history(&mut self, shared: Arc<Shared>) -> Result<(), StoreError> {
        let after = self.through;
        let (events, through) = blocking(move || {
            shared.with_database(|database| reader::history(&shared.path, database, after, PAGE))
        })
        .await?;
        self.through = through;
        self.pending.extend(events.into_iter().filter(|event| event.key.starts_with(&self.prefix)));
        Ok(())
    }
}

fn ended() -> StoreError {
    StoreError::unavailable("this process", "the store was closed while it was watched")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(revision: u64, bytes: usize) -> Arc<[Event]> {
        let event = Event { revision: Revision(revision), key: "k".into(), value: Some(vec![0; bytes]) };
        Arc::from([event])
    }

    #[test]
    fn memory_is_bounded_in_revisions() {
        let mut recent = Recent::after(Revision(10));
        for revision in 11..=10 + REVISIONS_KEPT as u64 + 5 {
            recent.push(commit(revision, 1));
        }
        assert_eq!(recent.commits.len(), REVISIONS_KEPT);
        assert!(recent.since(Revision(14)).is_none(), "15 is no longer here");
        assert_eq!(recent.since(Revision(15)).unwrap()[0][0].revision, Revision(16));
        assert!(recent.since(recent.latest()).unwrap().is_empty());
    }

    #[test]
    fn memory_is_bounded_in_bytes() {
        let mut recent = Recent::after(Revision(0));
        for revision in 1..=20 {
            recent.push(commit(revision, BYTES_KEPT / 4));
        }
        assert!(recent.bytes <= BYTES_KEPT && recent.commits.len() == 3, "{}", recent.commits.len());
        assert_eq!(recent.since(Revision(19)).unwrap().len(), 1);
    }
}
