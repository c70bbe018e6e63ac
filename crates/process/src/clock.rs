//! The only door through which time comes in.
//!
//! - [`Clock::now`] is the wall: comparable between machines as far as their clocks agree, and it may
//!   jump. [`Clock::monotonic`] never goes back and means nothing outside this process.
//! - Time while the machine was suspended counts: what was granted for seconds is over afterwards.
//! - A sleep follows the clock it was asked of, so a [`ManualClock`] decides when it ends.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::Instant};

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The time `after` later; stops at the end of time instead of wrapping.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(whole_millis(after)))
    }

    /// How long ago `earlier` was; zero if it is in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// What time it is, and waiting for it to be later.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock.
    fn now(&self) -> Millis;

    /// Time since some fixed moment of this process; never goes back.
    fn monotonic(&self) -> Duration;

    /// Ends when `duration` has passed on this clock. May be dropped and asked for again.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's own clock. Its monotonic side and its sleeps are tokio's, so that a test which pauses
/// tokio's time pauses these as well. Sleeps do not count the time while the machine was suspended; its
/// monotonic side does.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
    /// For how long the machine had been suspended then.
    suspended: Duration,
}

/// For how long the machine has been suspended in all since it was started.
fn suspended() -> Duration {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    // In this order the difference is never too large; and it never goes back.
    let boot = read(ClockId::CLOCK_BOOTTIME);
    let nanos = boot.saturating_sub(read(ClockId::CLOCK_MONOTONIC)).as_nanos();
    let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
    Duration::from_nanos(KNOWN.fetch_max(nanos, Ordering::Relaxed).max(nanos))
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), suspended: suspended() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the door through which time comes in")]
    fn now(&self) -> Millis {
        Millis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_millis))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed() + suspended().saturating_sub(self.suspended)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that stands still until it is told to move. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock {
    time: watch::Sender<Time>,
}

#[derive(Debug, Clone, Copy)]
struct Time {
    wall: Millis,
    monotonic: Duration,
}

impl ManualClock {
    /// A clock that shows `wall`.
    #[must_use]
    pub fn at(wall: Millis) -> Self {
        Self { time: watch::Sender::new(Time { wall, monotonic: Duration::ZERO }) }
    }

    /// Lets time pass: both sides move, and sleeps that are over end.
    pub fn advance(&self, by: Duration) {
        self.time.send_modify(|time| {
            time.monotonic += by;
            time.wall = time.wall.plus(by);
        });
    }

    /// Sets the wall without letting time pass, as an administrator or NTP does.
    pub fn set_wall(&self, wall: Millis) {
        self.time.send_modify(|time| time.wall = wall);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        self.time.borrow().wall
    }

    fn monotonic(&self) -> Duration {
        self.time.borrow().monotonic
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut time = self.time.subscribe();
        let until = self.monotonic() + duration;
        Box::pin(async move {
            if time.wait_for(|time| time.monotonic >= until).await.is_err() {
                // Nobody is left who could move the clock: this time never comes.
                std::future::pending::<()>().await;
            }
        })
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_when_its_clock_says_so_and_not_before() {
        let clock = ManualClock::at(Millis(1_000));
        let mut sleep = clock.sleep(Duration::from_secs(10));
        clock.advance(Duration::from_millis(9_999));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(Duration::from_millis(1));
        assert!(sleep.now_or_never().is_some());
        assert_eq!(clock.now(), Millis(11_000));
    }

    #[tokio::test]
    async fn setting_the_wall_ends_no_sleep() {
        let clock = ManualClock::at(Millis(1_000));
        let sleep = clock.sleep(Duration::from_secs(1));
        clock.set_wall(Millis(9_000_000));
        assert!(sleep.now_or_never().is_none());
        assert_eq!(clock.monotonic(), Duration::ZERO);
        assert_eq!(clock.now(), Millis(9_000_000));
    }

    #[tokio::test]
    async fn the_system_clock_shows_this_century() {
        let clock = SystemClock::new();
        assert!(clock.now() > Millis(1_577_836_800_000), "after 2020: {}", clock.now());
        let before = clock.monotonic();
        assert!(clock.monotonic() >= before);
    }

    #[test]
    fn differences_do_not_wrap() {
        assert_eq!(Millis(5).since(Millis(7)), Duration::ZERO);
        assert_eq!(Millis(7).since(Millis(5)), Duration::from_millis(2));
        assert_eq!(Millis(u64::MAX).plus(Duration::from_secs(1)), Millis(u64::MAX));
    }
}
