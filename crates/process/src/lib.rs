//! What every role of the binary needs to start, run and stop: owned tasks, the shutdown tree,
//! the clock, back-off, error chains, the log's format, and processes that outlive the one that starts them.
//!
//! - Nothing outside this crate spawns: a task has an owner ([`tasks::Tasks`]), a name and an end.
//! - Nothing outside this crate asks the machine for the time: it comes in through a [`clock::Clock`].
//! - No constructor here spawns or opens anything; what runs is started by a call that says so.

pub mod backoff;
pub mod blocking;
pub mod clock;
pub mod detached;
pub mod errors;
pub mod logging;
pub mod shutdown;
pub mod tasks;

pub use backoff::Backoff;
pub use blocking::blocking;
pub use clock::{Clock, ManualClock, Millis, SystemClock};
pub use shutdown::Shutdown;
pub use tasks::{Task, Tasks};
