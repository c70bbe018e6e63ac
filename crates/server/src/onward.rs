//! The time that records have: the wall's, as long as that does not go back.
//!
//! - Clocks are set, and another server's clock may be ahead of this one's. What was written an hour ago must not be an hour to come: pauses,
//!   drains and releases would wait for it. So time goes on from the newest event that is known, or from what was last answered, until the
//!   wall has caught up: a little slower than it passes, and no slower, since waits are measured by it.
//! - By more than [`MOST`] nobody is believed: a clock that is a year ahead would take the cluster along.

use std::time::Duration;

use wharf_model::Timestamp;

/// So far behind what was known before the wall may be; then it is right.
const MOST: Duration = Duration::from_secs(2 * 3600);
/// While the wall is behind, so much time is counted of what passes.
const PACE: (u32, u32) = (9, 10);

/// What was answered last, and when by the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Onward(Option<(Timestamp, Duration)>);

impl Onward {
    /// The time, where the wall shows `wall`, the monotonic clock `moment`, and the newest event is of `newest`.
    pub(crate) fn now(&mut self, wall: Timestamp, moment: Duration, newest: Timestamp) -> Timestamp {
        let before = self.0.map(|(base, at)| base + moment.saturating_sub(at) * PACE.0 / PACE.1);
        let credible = |at: &Timestamp| *at <= wall + MOST;
        let on = before.filter(credible).unwrap_or(wall);
        let newest = Some(newest).filter(credible).unwrap_or(wall);
        let now = wall.max(on).max(newest);
        // While time goes on from a base, that stays: what is rounded off does not add up.
        if before != Some(now) {
            self.0 = Some((now, moment));
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Timestamp = Timestamp(1_700_000_000_000);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }
    fn back(at: Timestamp, by: Duration) -> Timestamp {
        Timestamp(at.0 - u64::try_from(by.as_millis()).unwrap())
    }

    #[test]
    fn it_is_the_wall_as_long_as_that_goes_on() {
        let mut onward = Onward::default();
        assert_eq!(onward.now(START, seconds(5), Timestamp(0)), START);
        assert_eq!(onward.now(START + HOUR, seconds(6), START), START + HOUR, "also when it is set ahead");
    }

    #[test]
    fn a_wall_that_is_set_back_is_waited_for_while_time_goes_on() {
        let mut onward = Onward::default();
        onward.now(START, seconds(0), Timestamp(0));
        for second in 1..=100 {
            let now = onward.now(back(START + seconds(second), HOUR), seconds(second), Timestamp(0));
            assert_eq!(now, START + seconds(second) * 9 / 10);
        }
        let later = START + seconds(100_000);
        assert_eq!(
            onward.now(back(later, HOUR), seconds(100_000), Timestamp(0)),
            back(later, HOUR),
            "it has caught up"
        );
    }

    #[test]
    fn what_another_server_wrote_is_not_to_come() {
        let mut onward = Onward::default();
        onward.now(START, seconds(0), Timestamp(0));
        assert_eq!(onward.now(START + seconds(1), seconds(1), START + HOUR), START + HOUR);
        let on = onward.now(START + seconds(11), seconds(11), START + HOUR);
        assert_eq!(on, START + HOUR + seconds(9));
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut onward = Onward::default();
        assert_eq!(onward.now(START, seconds(0), START + HOUR * 24 * 365), START);
        let corrected = back(START, HOUR * 24);
        assert_eq!(onward.now(corrected, seconds(1), Timestamp(0)), corrected, "the clock was a day ahead");
    }
}
