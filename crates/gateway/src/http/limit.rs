//! How much is let through: requests of one client over time, requests at each task at once, and repetitions.
//!
//! - A client's rate is kept as one moment (the generic cell rate algorithm): when it will have made up for what it asked. Clients beyond
//!   [`CLIENTS`] push out those that have least to make up for; memory is bounded whoever asks.
//! - The queue for room at tasks is first in, first out; it has a bound, and so has the time in it. Who leaves it early, for whatever
//!   reason, holds up nobody.
//! - Repetitions are paid for by requests, so that trouble is not multiplied by them.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use wharf_model::{Concurrency, RateLimit};

use super::{Moment, Refusal, balance::Key};

/// Clients of one route that are remembered.
pub(crate) const CLIENTS: usize = 1 << 16;
const SHARDS: usize = 16;

/// What one client may ask for over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Nanoseconds that each request is to be made up for.
    each: u64,
    /// As many of them as may be owed.
    most: u64,
    requests: u32,
}

/// A request beyond the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// When the next one may come.
    pub(crate) wait: Duration,
}

impl Rate {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        let per = limit.per.0.max(1).saturating_mul(1_000_000);
        let each = (per / u64::from(limit.requests.max(1))).max(1);
        Self { each, most: each.saturating_mul(u64::from(limit.burst.max(1))), requests: limit.requests }
    }

    /// What a client that has made up for everything at `owed_until` owes after a request now.
    fn ask(self, owed_until: u64, now: u64) -> Result<u64, TooMany> {
        let owes = owed_until.max(now).saturating_add(self.each);
        let beyond = owes.saturating_sub(now.saturating_add(self.most));
        if beyond == 0 { Ok(owes) } else { Err(TooMany { wait: Duration::from_nanos(beyond) }) }
    }

    pub(crate) fn refusal(self, too_many: TooMany) -> Refusal {
        let text = "Too many requests: this client asked for more than the route allows. Try again later.\n";
        let mut refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", text);
        let seconds = too_many.wait.as_millis().div_ceil(1000).max(1);
        let seconds = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
        refusal.headers = vec![
            (RETRY_AFTER, seconds.clone()),
            (HeaderName::from_static("ratelimit-limit"), HeaderValue::from(self.requests)),
            (HeaderName::from_static("ratelimit-remaining"), HeaderValue::from(0)),
            (HeaderName::from_static("ratelimit-reset"), seconds),
        ];
        refusal
    }
}

/// What the clients of a route owe.
pub(crate) struct Clients {
    hasher: RandomState,
    /// By the hash of its key, until when each has something to make up for, in nanoseconds.
    shards: [Mutex<HashMap<u64, u64>>; SHARDS],
}

impl Default for Clients {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("remembered", &self.len()).finish_non_exhaustive()
    }
}

impl Clients {
    /// Whether this client may ask now.
    pub(crate) fn ask(&self, key: Key<'_>, rate: Rate, now: Moment) -> Result<(), TooMany> {
        let now = now.0.saturating_mul(1000);
        let key = self.hasher.hash_one(key);
        let shard = usize::try_from(key % SHARDS as u64).unwrap_or(0);
        let mut clients = self.shards[shard].lock();
        if let Some(owed_until) = clients.get_mut(&key) {
            *owed_until = rate.ask(*owed_until, now)?;
            return Ok(());
        }
        let owes = rate.ask(0, now)?;
        if clients.len() >= CLIENTS / SHARDS {
            make_room(&mut clients, now);
        }
        clients.insert(key, owes);
        Ok(())
    }

    /// Forgets those who owe nothing.
    pub(crate) fn forget(&self, now: Moment) {
        let now = now.0.saturating_mul(1000);
        for shard in &self.shards {
            let mut clients = shard.lock();
            clients.retain(|_, owed_until| *owed_until > now);
            if clients.capacity() > 64 && clients.len() < clients.capacity() / 8 {
                clients.shrink_to_fit();
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// Forgets who owes nothing, and if that is not an eighth of all, the eighth that owes least.
fn make_room(clients: &mut HashMap<u64, u64>, now: u64) {
    clients.retain(|_, owed_until| *owed_until > now);
    let keep = CLIENTS / SHARDS / 8 * 7;
    if clients.len() > keep {
        let mut owed: Vec<u64> = clients.values().copied().collect();
        let goes = owed.len() - keep;
        let (_, bound, _) = owed.select_nth_unstable(goes - 1);
        let bound = *bound;
        let mut goes = goes;
        clients.retain(|_, owed_until| {
            let leaves = *owed_until <= bound && goes > 0;
            goes -= usize::from(leaves);
            !leaves
        });
    }
}

/// Who waits for room at a route's tasks.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: AtomicU64,
    /// Whoever is first has it.
    first: Arc<Semaphore>,
    /// Something may have become free.
    room: Notify,
}

impl Default for Queue {
    fn default() -> Self {
        Self { waiting: AtomicU64::new(0), first: Arc::new(Semaphore::new(1)), room: Notify::new() }
    }
}

impl Queue {
    pub(crate) fn len(&self) -> u64 {
        self.waiting.load(SeqCst)
    }

    /// Has whoever is first look again.
    pub(crate) fn look(&self) {
        if self.len() > 0 {
            self.room.notify_one();
        }
    }

    /// A place at the end; none if there is no room.
    pub(crate) fn join(self: &Arc<Self>, limit: &Concurrency) -> Option<Place> {
        let room = |waiting: u64| (waiting < u64::from(limit.queue)).then_some(waiting + 1);
        self.waiting.fetch_update(SeqCst, SeqCst, room).ok()?;
        let until = Instant::now() + limit.wait.duration();
        Some(Place { queue: Arc::clone(self), until, first: None })
    }
}

/// A place in the queue of those who wait for room at a task. Who drops it has left.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    until: Instant,
    /// There is when it is the first.
    first: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Returns when it may be this one's turn: it is the first, and there may be room. Refused when it has waited long enough.
    ///
    /// Cancel-safe: dropped while it waits, it still has its place.
    pub(crate) async fn turn(&mut self) -> Result<(), Refusal> {
        let in_time = if self.first.is_some() {
            timeout_at(self.until, self.queue.room.notified()).await.is_ok()
        } else {
            let first = timeout_at(self.until, Arc::clone(&self.queue.first).acquire_owned()).await;
            self.first = first.ok().and_then(Result::ok);
            self.first.is_some()
        };
        if in_time { Ok(()) } else { Err(waited()) }
    }

    /// Whether it is in this queue.
    pub(crate) fn is_in(&self, queue: &Arc<Queue>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }

    /// Whether nobody is before it.
    pub(crate) fn is_first(&self) -> bool {
        self.first.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, SeqCst);
        // There may be room for more than one: who is first now looks by itself, when it gets to know that it is.
    }
}

fn waited() -> Refusal {
    let text =
        "The service is busy, and there was no room in the time that requests may wait. Try again later.\n";
    busy("queue_timeout", text)
}

/// The queue has no room.
pub(crate) fn full() -> Refusal {
    busy("queue_full", "The service is busy, and as many requests as may wait do. Try again later.\n")
}

fn busy(reason: &'static str, text: &'static str) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, text);
    refusal.headers = vec![(RETRY_AFTER, HeaderValue::from(1))];
    refusal
}

/// What repetitions are paid from.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Hundredths of a repetition.
    saved: AtomicU64,
}

impl Budget {
    /// Repetitions that can be saved up: what a route has at first, and after a quiet time.
    const MOST: u64 = 10 * 100;

    /// A request was made.
    pub(crate) fn earn(&self, percent: u8) {
        // A full one is only read: workers share it.
        if self.saved.load(Relaxed) < Self::MOST {
            let more = |saved: u64| Some((saved + u64::from(percent)).min(Self::MOST));
            let _ = self.saved.fetch_update(Relaxed, Relaxed, more);
        }
    }

    /// Whether there is enough for a repetition, which is paid then.
    pub(crate) fn pay(&self) -> bool {
        self.saved.fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(100)).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: AtomicU64::new(Self::MOST) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_model::{HashBy, Millis};

    use super::*;

    fn rate(requests: u32, per: u64, burst: u32) -> Rate {
        Rate::new(&RateLimit { requests, per: Millis(per), burst, by: HashBy::Client })
    }

    fn at(millis: u64) -> Moment {
        Moment(1_000_000 + millis * 1000)
    }

    proptest! {
        #[test]
        fn over_time_nobody_gets_more_than_the_rate_and_who_keeps_to_it_gets_all(
            requests in 1_u32..50, per in 100_u64..5000, burst in 1_u32..50, gaps in prop::collection::vec(0_u64..200, 1..300),
        ) {
            let (clients, rate) = (Clients::default(), rate(requests, per, burst));
            let (mut now, mut passed) = (0, 0_u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(clients.ask(Key::Address(1), rate, at(now)).is_ok());
                let most = u64::from(burst) as f64 + now as f64 * f64::from(requests) / per as f64;
                prop_assert!(passed as f64 <= most + 0.01, "{passed} in {now} ms");
            }
            // Whoever was refused is told when it may come again, and may.
            if let Err(TooMany { wait }) = clients.ask(Key::Address(1), rate, at(now)) {
                let micros = u64::try_from(wait.as_nanos().div_ceil(1000)).unwrap();
                let early = Moment(at(now).0 + micros.saturating_sub(2));
                prop_assert!(micros < 3 || clients.ask(Key::Address(1), rate, early).is_err());
                prop_assert!(clients.ask(Key::Address(1), rate, Moment(at(now).0 + micros)).is_ok());
            }
        }
    }

    #[test]
    fn a_client_may_burst_and_then_has_to_wait_and_others_do_not() {
        let (clients, rate) = (Clients::default(), rate(10, 1000, 3));
        let ask = |client, millis| {
            clients.ask(Key::Address(client), rate, at(millis)).map_err(|it| it.wait.as_millis())
        };
        assert_eq!([ask(1, 0), ask(1, 0), ask(1, 0), ask(1, 0)], [Ok(()), Ok(()), Ok(()), Err(100)]);
        assert_eq!(ask(2, 0), Ok(()));
        assert_eq!([ask(1, 99), ask(1, 100), ask(1, 100)], [Err(1), Ok(()), Err(100)]);
    }

    #[test]
    fn a_refusal_says_when_to_come_again() {
        let refusal = rate(100, 60_000, 1).refusal(TooMany { wait: Duration::from_millis(1001) });
        assert_eq!((refusal.status.as_u16(), refusal.reason), (429, "rate_limited"));
        let header =
            |name: &str| refusal.headers.iter().find(|(it, _)| *it == name).unwrap().1.to_str().unwrap();
        assert_eq!((header("retry-after"), header("ratelimit-limit")), ("2", "100"));
        assert_eq!((header("ratelimit-remaining"), header("ratelimit-reset")), ("0", "2"));
    }

    #[test]
    fn memory_is_bounded_and_who_owes_most_is_remembered() {
        let (clients, rate) = (Clients::default(), rate(1, 1000, 5));
        // Enough of them that none is spared by luck.
        for client in 0..200 {
            while clients.ask(Key::Address(client), rate, at(0)).is_ok() {}
        }
        for client in 1000..1000 + 3 * CLIENTS as u128 {
            clients.ask(Key::Address(client), rate, at(0)).unwrap();
        }
        assert!(clients.len() <= CLIENTS);
        let is_remembered = |client: &u128| clients.ask(Key::Address(*client), rate, at(0)).is_err();
        assert!((0..200).all(|client| is_remembered(&client)), "many others wash nobody's debts away");
        clients.forget(at(10_000));
        assert_eq!(clients.len(), 0);
    }

    #[test]
    fn repetitions_are_paid_for_by_requests() {
        let budget = Budget::default();
        assert_eq!((0..20).filter(|_| budget.pay()).count(), 10);
        (0..9).for_each(|_| budget.earn(20));
        assert_eq!((0..20).filter(|_| budget.pay()).count(), 1, "9 × 20 % are not yet two");
        (0..1000).for_each(|_| budget.earn(20));
        assert_eq!((0..20).filter(|_| budget.pay()).count(), 10, "no more are saved up");
        let none = Budget::default();
        while none.pay() {}
        (0..1000).for_each(|_| none.earn(0));
        assert!(!none.pay());
    }

    const LIMIT: Concurrency = Concurrency { requests: 1, queue: 2, wait: Millis(5000) };

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_first() {
        let queue = Arc::new(Queue::default());
        let (mut first, mut second) = (queue.join(&LIMIT).unwrap(), queue.join(&LIMIT).unwrap());
        assert!(queue.join(&LIMIT).is_none() && queue.len() == 2);
        first.turn().await.unwrap();
        assert!(first.is_first());
        assert!(futures::poll!(std::pin::pin!(second.turn())).is_pending());
        // The first looked, and there was no room: it is told when there may be.
        assert!(futures::poll!(std::pin::pin!(first.turn())).is_pending());
        queue.look();
        first.turn().await.unwrap();
        drop(first);
        second.turn().await.unwrap();
        assert_eq!(queue.len(), 1);
        drop(second);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_early_holds_up_nobody() {
        let queue = Arc::new(Queue::default());
        let (mut first, mut second) = (queue.join(&LIMIT).unwrap(), queue.join(&LIMIT).unwrap());
        first.turn().await.unwrap();
        // Told, but gone before it looked.
        queue.look();
        drop(first);
        second.turn().await.unwrap();
        second.turn().await.unwrap();
        assert!(second.is_first());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_it_may() {
        let queue = Arc::new(Queue::default());
        let (mut first, mut second) = (queue.join(&LIMIT).unwrap(), queue.join(&LIMIT).unwrap());
        first.turn().await.unwrap();
        let begin = Instant::now();
        assert_eq!(second.turn().await.unwrap_err().reason, "queue_timeout");
        assert_eq!(first.turn().await.unwrap_err().reason, "queue_timeout");
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
        drop((first, second));
        assert!(queue.join(&LIMIT).is_some());
    }
}
