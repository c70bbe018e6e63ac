//! How long to wait before trying again: twice as long each time, up to a ceiling, never all at once.
//!
//! A delay lies between half of the step and the step ("equal jitter"): callers spread out, and
//! none of them spins. The same random source gives the same delays.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Counts failures of one thing and says how long to wait after each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits up to `first` after the first failure and never longer than `ceiling`.
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, failures: 0 }
    }

    /// Notes a failure and says how long to wait before the next attempt.
    pub fn next_delay(&mut self, random: &mut impl Rng) -> Duration {
        let step = self.step();
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        half + half.mul_f64(random.random_range(0.0..=1.0))
    }

    /// Notes a success: the next failure is a first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn step(&self) -> Duration {
        let factor = 2_u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const CEILING: Duration = Duration::from_secs(5);

    fn delays(seed: u64, count: usize) -> Vec<Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut backoff = Backoff::new(FIRST, CEILING);
        (0..count).map(|_| backoff.next_delay(&mut random)).collect()
    }

    #[test]
    fn delays_double_up_to_the_ceiling_within_their_jitter() {
        for seed in 0..50 {
            let mut step = FIRST;
            for delay in delays(seed, 64) {
                assert!(step / 2 <= delay && delay <= step, "{delay:?} for a step of {step:?}");
                step = (step * 2).min(CEILING);
            }
        }
    }

    #[test]
    fn two_callers_do_not_return_together_and_one_seed_repeats() {
        assert_ne!(delays(1, 8), delays(2, 8));
        assert_eq!(delays(1, 8), delays(1, 8));
    }

    #[test]
    fn a_success_starts_over() {
        let mut random = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(FIRST, CEILING);
        for _ in 0..10 {
            backoff.next_delay(&mut random);
        }
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
        assert!(backoff.next_delay(&mut random) <= FIRST);
    }
}
