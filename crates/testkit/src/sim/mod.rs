//! Whole clusters, simulated: the real servers and the real agents in one process, on virtual time, with seeded faults.
//!
//! - *Real* is what decides and what acts: controllers, state, election, sessions over HTTP/2, the API's router; the agent with its
//!   task loops, assignments on disk and reports. *Made up* are time, chance, the network's lines (no TLS), the store's disk, container engines,
//!   and the kernel's side of networks.
//! - One thread is one cluster. Nothing in it waits for anything outside, and everything that is left to chance follows from a seed: the same
//!   scenario does the same each time, to the last byte of the store ([`Outcome::trace`]).
//! - What must hold ([`invariants`], [`rest`]) is checked at every commit, whenever a container may have started, and when the cluster is left
//!   alone. The first violation ends the run.

pub mod chance;
pub mod cluster;
pub mod engine;
pub mod invariants;
pub mod life;
pub mod link;
pub mod node;
pub mod rest;
pub mod scenario;
pub mod server;
pub mod shrink;
pub mod store;
pub mod time;

use std::{cell::RefCell, collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use invariants::Violation;
pub use scenario::Scenario;

/// The real time that one scenario may take: one that takes longer goes round in circles, and its virtual time stands.
const LONGEST: Duration = Duration::from_secs(900);

/// What a run of a scenario showed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What must not be, and was.
    pub violation: Option<Violation>,
    /// How long it was, in milliseconds.
    pub simulated: u64,
    /// Commits of the store.
    pub revisions: u64,
    /// Single checks.
    pub checks: u64,
    /// Times the cluster came to rest.
    pub rests: u64,
    /// The longest that took, in milliseconds.
    pub longest_rest: u64,
    /// Everything that happened, as one number.
    pub trace: u64,
    /// What happened, by kind.
    pub acts: BTreeMap<String, u64>,
    /// What became of what people asked for: `up done`.
    pub answers: BTreeMap<String, u64>,
}

thread_local! {
    static PANIC: RefCell<Option<Arc<Mutex<Option<String>>>>> = const { RefCell::new(None) };
}

/// Notes panics of simulated processes, which survive them as a process does: by ending only what panicked.
fn panics_of_this_thread() -> Arc<Mutex<Option<String>>> {
    let noted = Arc::<Mutex<Option<String>>>::default();
    PANIC.set(Some(Arc::clone(&noted)));
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let noted = PANIC.with_borrow(Clone::clone);
        match noted {
            Some(noted) => {
                noted.lock().get_or_insert_with(|| panic.to_string());
            }
            None => before(panic),
        }
    }));
    noted
}

/// Plays a scenario from beginning to end, or to the first violation. Files of the nodes go into `folder`, which should be in memory.
///
/// Once in a process: what the runtime leaves to chance depends on how many runtimes there were.
///
/// # Panics
/// If the thread or the runtime cannot be made.
pub fn play(scenario: &Scenario, folder: &Path) -> Outcome {
    let (scenario, folder) = (scenario.clone(), folder.to_owned());
    // A thread of its own has drawn nothing yet.
    let playing = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
        chance::seed_thread(scenario.seed);
        let panics = panics_of_this_thread();
        let dice = chance::Dice::new(scenario.seed, "disks");
        wharf_process::blocking::inline(move || {
            let pause = || {
                let slow = dice.permille(20);
                Duration::from_millis(if slow { dice.below(60) } else { 0 })
            };
            (pause(), pause())
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be made");
        let outcome = runtime.block_on(cluster::play(&scenario, &folder, panics));
        // What is left of the cluster is dropped with it.
        drop(runtime);
        outcome
    });
    let playing = playing.expect("a thread can be made");
    let watch = std::time::Instant::now();
    while !playing.is_finished() && watch.elapsed() < LONGEST {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    if !playing.is_finished() {
        let found = format!("after {} s its time still stands", LONGEST.as_secs());
        let violation = Violation { at: 0, invariant: "time goes on".to_owned(), found };
        return Outcome { violation: Some(violation), ..Outcome::default() };
    }
    playing.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let found = text.unwrap_or_default();
        Outcome {
            violation: Some(Violation { at: 0, invariant: "the simulation goes on".to_owned(), found }),
            ..Outcome::default()
        }
    })
}

/// Has everything on this process's threads log to standard error, with virtual time.
pub fn log_to_stderr(filter: &str) {
    struct Virtual;
    impl tracing_subscriber::fmt::time::FormatTime for Virtual {
        fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            match time::since_beginning() {
                Some(since) => write!(writer, "{:>10.3}", since.as_secs_f64()),
                None => writer.write_str("         -"),
            }
        }
    }
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_timer(Virtual);
    logging.with_writer(std::io::stderr).with_ansi(false).init();
}
