//! Virtual time: the runtime's paused clock, as each machine of the cluster sees it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::Instant;
use wharf_process::{Clock, Millis};

/// The true wall clock when a simulation begins.
const BEGINNING: u64 = 1_700_000_000_000;

thread_local! {
    static BEGAN: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// How long ago this thread's simulation began, if it has.
pub fn since_beginning() -> Option<Duration> {
    BEGAN.get().map(|began| began.elapsed())
}

/// When a simulation began. Clones are the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Epoch(Instant);
impl Epoch {
    /// Now.
    pub fn now() -> Self {
        let now = Instant::now();
        BEGAN.set(Some(now));
        Self(now)
    }
    /// How long ago.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
    /// In whole milliseconds.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The clock of one process on a machine: its wall may be wrong and be set, and it may run a little fast or slow.
pub struct MachineClock {
    epoch: Epoch,
    started: Instant,
    wrong: Wrong,
}
impl fmt::Debug for MachineClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachineClock")
    }
}

/// How wrong a machine's clock is. Clones are the same machine's.
#[derive(Debug, Clone)]
pub struct Wrong {
    /// By so many milliseconds.
    offset: Arc<AtomicI64>,
    /// Milliseconds of a true second that it shows too many or too few.
    drift: i64,
}
impl Wrong {
    /// A clock that is wrong by `offset` milliseconds, and by `drift` more each true second.
    pub fn by(offset: i64, drift: i64) -> Self {
        Self { offset: Arc::new(AtomicI64::new(offset)), drift: drift.clamp(-100, 100) }
    }
    /// Sets the wall clock forward or back.
    pub fn step(&self, by: i64) {
        self.offset.fetch_add(by, Ordering::Relaxed);
    }
    /// Sets it right, but for its drift.
    pub fn set_right(&self) {
        self.offset.store(0, Ordering::Relaxed);
    }
}

impl MachineClock {
    /// The clock of a process that starts now.
    pub fn shared(epoch: Epoch, wrong: Wrong) -> Arc<dyn Clock> {
        Arc::new(Self { epoch, started: Instant::now(), wrong })
    }
    fn shown(&self, real: Duration) -> Duration {
        real.mul_f64((1000 + self.wrong.drift) as f64 / 1000.0)
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Millis {
        let shown = self.shown(self.epoch.elapsed());
        let millis = u64::try_from(shown.as_millis()).unwrap_or(u64::MAX);
        Millis((BEGINNING + millis).saturating_add_signed(self.wrong.offset.load(Ordering::Relaxed)))
    }
    fn monotonic(&self) -> Duration {
        self.shown(self.started.elapsed())
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // Nobody waits for a thousand years, and a fast clock's second is shorter.
        let duration = duration.min(Duration::from_hours(24 * 365));
        Box::pin(tokio::time::sleep(duration.mul_f64(1000.0 / (1000 + self.wrong.drift) as f64)))
    }
}
