//! Counts what goes through routes, without workers getting into each other's way.
//!
//! - Each worker counts in a shard of its own, which comes into being with the first request: a route without traffic costs a few words.
//! - Numbers only grow. A reader sees each worker's latest, not one moment of all.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use wharf_model::{LATENCY_BOUNDS, SetStats};

/// Workers beyond this share shards.
const SHARDS: usize = 8;
const BUCKETS: usize = LATENCY_BOUNDS.len() + 1;

/// Which shard is this thread's.
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
    }
    SHARD.with(|shard| {
        shard.get().unwrap_or_else(|| {
            let own = THREADS.fetch_add(1, Relaxed) % SHARDS;
            shard.set(Some(own));
            own
        })
    })
}

/// What one thread counted; on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    requests: AtomicU64,
    failures: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

/// The requests that one set of endpoints was to answer.
#[derive(Debug, Default)]
pub(crate) struct SetCounters {
    shards: [OnceLock<Box<Shard>>; SHARDS],
}

impl SetCounters {
    fn mine(&self) -> &Shard {
        self.shards[shard()].get_or_init(Box::default)
    }

    /// A request is over.
    pub(crate) fn finished(&self, failed: bool) {
        let mine = self.mine();
        mine.requests.fetch_add(1, Relaxed);
        if failed {
            mine.failures.fetch_add(1, Relaxed);
        }
    }

    /// The head of an answer was there after so long.
    pub(crate) fn answered(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < micros);
        self.mine().latency[bucket].fetch_add(1, Relaxed);
    }

    /// Bytes of bodies, from and to clients.
    pub(crate) fn passed(&self, received: u64, sent: u64) {
        let mine = self.mine();
        mine.received.fetch_add(received, Relaxed);
        mine.sent.fetch_add(sent, Relaxed);
    }

    /// All shards together, with so many under way.
    pub(crate) fn read(&self, active: u64) -> SetStats {
        let mut stats = SetStats { active, latency: vec![0; BUCKETS], ..SetStats::default() };
        for shard in self.shards.iter().filter_map(OnceLock::get) {
            stats.requests += shard.requests.load(Relaxed);
            stats.failures += shard.failures.load(Relaxed);
            stats.received += shard.received.load(Relaxed);
            stats.sent += shard.sent.load(Relaxed);
            for (sum, count) in stats.latency.iter_mut().zip(&shard.latency) {
                *sum += count.load(Relaxed);
            }
        }
        stats
    }
}

/// Requests that no task answered, by the reason's word.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Few words, and refusing is not what a gateway is there for: one lock.
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Refused {
    pub(crate) fn count(&self, reason: &'static str) {
        *self.counts.lock().entry(reason).or_default() += 1;
    }

    pub(crate) fn read(&self) -> BTreeMap<String, u64> {
        self.counts.lock().iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_request_is_in_the_bucket_whose_bound_is_the_next_above(micros in prop_oneof![0_u64..2_000_000, any::<u64>(), prop::sample::select(LATENCY_BOUNDS.to_vec())]) {
            let counters = SetCounters::default();
            counters.answered(Duration::from_micros(micros));
            let latency = counters.read(0).latency;
            let bucket = latency.iter().position(|count| *count == 1).unwrap();
            prop_assert!(LATENCY_BOUNDS.get(bucket).is_none_or(|bound| micros <= *bound));
            prop_assert!(bucket == 0 || micros > LATENCY_BOUNDS[bucket - 1]);
            prop_assert_eq!(latency.iter().sum::<u64>(), 1);
        }
    }

    #[test]
    fn what_threads_count_at_once_is_all_there() {
        let counters = SetCounters::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 3 {
                scope.spawn(|| {
                    for number in 0..1000 {
                        counters.finished(number % 10 == 0);
                        counters.passed(2, 3);
                    }
                });
            }
        });
        let all = 1000 * (SHARDS as u64 + 3);
        let stats = counters.read(7);
        assert_eq!((stats.requests, stats.failures, stats.active), (all, all / 10, 7));
        assert_eq!((stats.received, stats.sent), (2 * all, 3 * all));
    }

    #[test]
    fn refusals_are_counted_by_their_word() {
        let refused = Refused::default();
        refused.count("denied");
        refused.count("denied");
        refused.count("rate_limited");
        assert_eq!(refused.read(), BTreeMap::from([("denied".into(), 2), ("rate_limited".into(), 1)]));
    }
}
