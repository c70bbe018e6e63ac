//! Waiting for something to become true, with a deadline.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` until it answers `Ok`, and gives that answer. Panics when the deadline passes, saying
/// `what` was awaited and what was seen last.
#[track_caller]
pub fn wait_until<T, E: Display>(within: Duration, what: &str, probe: impl FnMut() -> Result<T, E>) -> T {
    match try_wait_until(within, what, probe) {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

/// As [`wait_until`], but the passing of the deadline is an error.
pub fn try_wait_until<T, E: Display>(
    within: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() > within => {
                bail!("{what}: not within {within:?}; last seen: {seen:#}")
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
