//! Judges a new release by what gateways have counted of it and of the old one in the same time.
//!
//! - Only what was counted in the window counts, and only whole requests: what is under way says nothing yet.
//! - Failing is found as early as it is certain: when enough requests were counted, or when so many of those that are wanted have failed
//!   that the rest could not make up for it. Passing is found at the end of the window only; who asks knows when that is.
//! - Latency is compared by the 95th percentile, taken within its bucket in proportion. A difference below [`NOISE`] is none.

use std::collections::BTreeSet;

use wharf_model::{Figures, Generation, Judge, LATENCY_BOUNDS, SetStats};

/// Microseconds by which the new release's 95th percentile must be above the old one's to count at all.
const NOISE: u64 = 1_000;

/// What the figures of a window say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There are enough, and nothing is wrong.
    Passes(String),
    /// Something is, for certain.
    Fails(String),
    /// There are too few to say that nothing is.
    TooFew(String),
}

/// What was counted of the new and the old release in one window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Window {
    /// Of the new one.
    pub(crate) new: SetStats,
    /// Of the old one, in the same time.
    pub(crate) old: SetStats,
}

/// The sum of some generations' figures.
pub(crate) fn sum(figures: &Figures, of: impl Fn(Generation) -> bool) -> SetStats {
    let mut sum = SetStats::default();
    figures.sets.iter().filter(|(generation, _)| of(**generation)).for_each(|(_, stats)| sum.add(stats));
    sum
}

/// What was counted between two figures that were counted from the same moment on.
pub(crate) fn between(before: &Figures, now: &Figures, new: &BTreeSet<Generation>) -> Window {
    let part = |of: &dyn Fn(Generation) -> bool| less(&sum(now, of), &sum(before, of));
    Window { new: part(&|g| new.contains(&g)), old: part(&|g| !new.contains(&g)) }
}
fn less(now: &SetStats, before: &SetStats) -> SetStats {
    let latency = now.latency.iter().enumerate();
    let latency = latency.map(|(n, count)| count.saturating_sub(before.latency.get(n).copied().unwrap_or(0)));
    SetStats {
        requests: now.requests.saturating_sub(before.requests),
        failures: now.failures.saturating_sub(before.failures),
        active: now.active,
        latency: latency.collect(),
        received: now.received.saturating_sub(before.received),
        sent: now.sent.saturating_sub(before.sent),
    }
}

/// Judges the new release. `enough` says that it must be judged by what there is, however little.
pub(crate) fn judge(judge: &Judge, window: &Window, enough: bool) -> Verdict {
    let Window { new, old } = window;
    let wanted = u64::from(judge.requests);
    let few = new.requests < wanted && !enough;
    // As if all that are still missing succeed.
    let rate = permille(new.failures, if few { wanted } else { new.requests });
    let usual = permille(old.failures, old.requests);
    if rate > usual + u64::from(judge.errors_permille) {
        return Verdict::Fails(format!(
            "{} of {} requests to the new release failed ({}), and {} of {} to the old one ({}); \
             at most {} more may fail",
            new.failures,
            new.requests,
            percent(permille(new.failures, new.requests)),
            old.failures,
            old.requests,
            percent(usual),
            percent(u64::from(judge.errors_permille)),
        ));
    }
    let said = |new: &SetStats, old: &SetStats| {
        format!(
            "{} requests to the new release, {} failed, 95 % within {}; {} to the old one, {} failed, 95 % within {}",
            new.requests,
            new.failures,
            time(quantile(new)),
            old.requests,
            old.failures,
            time(quantile(old)),
        )
    };
    if new.requests < wanted {
        let said = said(new, old);
        return if enough { Verdict::Passes(said) } else { Verdict::TooFew(said) };
    }
    // With little to compare with, slowness cannot be told.
    if old.requests >= wanted
        && let (Some(slow), Some(usual)) = (quantile(new), quantile(old))
    {
        let limit = usual.saturating_mul(u64::from(judge.latency_percent)) / 100;
        if slow > limit && slow > usual + NOISE {
            return Verdict::Fails(format!(
                "95 % of {} requests to the new release were answered within {}, and of {} to the old one within {}; \
                 at most {} % of that are allowed",
                new.requests,
                time(Some(slow)),
                old.requests,
                time(Some(usual)),
                judge.latency_percent,
            ));
        }
    }
    Verdict::Passes(said(new, old))
}

fn permille(part: u64, of: u64) -> u64 {
    if of == 0 { 0 } else { part.saturating_mul(1000).div_ceil(of) }
}
fn percent(permille: u64) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}
fn time(micros: Option<u64>) -> String {
    match micros {
        None => "an unknown time".to_owned(),
        Some(micros) => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
    }
}

/// The 95th percentile in microseconds; in its bucket in proportion to how many lie below it. None without requests.
fn quantile(stats: &SetStats) -> Option<u64> {
    let total: u64 = stats.latency.iter().sum();
    let rank = (total * 95).div_ceil(100).max(1);
    let mut below = 0;
    for (bucket, count) in stats.latency.iter().enumerate() {
        if below + count >= rank {
            let lower =
                bucket.checked_sub(1).and_then(|before| LATENCY_BOUNDS.get(before)).copied().unwrap_or(0);
            // What took longer than the last bound took at least that.
            let upper = LATENCY_BOUNDS.get(bucket).copied().unwrap_or(lower * 2);
            return Some(lower + (upper - lower) * (rank - below) / count);
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUDGE: Judge = Judge { errors_permille: 10, latency_percent: 150, requests: 100 };

    /// So many requests, so many of them failed, all in one bucket of latency.
    fn stats(requests: u64, failures: u64, bucket: usize) -> SetStats {
        let mut latency = vec![0; LATENCY_BOUNDS.len() + 1];
        latency[bucket] = requests;
        SetStats { requests, failures, latency, ..SetStats::default() }
    }
    fn verdict(new: SetStats, old: SetStats) -> Verdict {
        judge(&JUDGE, &Window { new, old }, false)
    }

    #[test]
    fn as_good_as_the_old_one_passes_and_one_per_cent_worse_still_does() {
        assert!(matches!(verdict(stats(100, 0, 5), stats(1000, 0, 5)), Verdict::Passes(_)));
        assert!(matches!(verdict(stats(1000, 10, 5), stats(1000, 0, 5)), Verdict::Passes(_)));
        assert!(matches!(verdict(stats(1000, 11, 5), stats(1000, 0, 5)), Verdict::Fails(_)));
        assert!(
            matches!(verdict(stats(1000, 60, 5), stats(1000, 50, 5)), Verdict::Passes(_)),
            "what is usual is no fault"
        );
        assert!(matches!(verdict(stats(1000, 61, 5), stats(1000, 50, 5)), Verdict::Fails(_)));
    }

    #[test]
    fn too_few_say_nothing_unless_too_many_of_them_failed_already() {
        assert!(matches!(verdict(stats(0, 0, 5), stats(1000, 0, 5)), Verdict::TooFew(_)));
        assert!(matches!(verdict(stats(99, 1, 5), stats(1000, 0, 5)), Verdict::TooFew(_)));
        assert!(
            matches!(verdict(stats(2, 2, 5), stats(1000, 0, 5)), Verdict::Fails(_)),
            "98 more could not make up for it"
        );
        let few = |failures| judge(&JUDGE, &Window { new: stats(5, failures, 5), old: stats(9, 0, 5) }, true);
        assert!(matches!(few(0), Verdict::Passes(_)), "by what there is");
        assert!(matches!(few(1), Verdict::Fails(_)), "one in five is more than one in a hundred");
        let none = judge(&JUDGE, &Window::default(), true);
        assert!(matches!(none, Verdict::Passes(_)));
    }

    #[test]
    fn slower_than_allowed_fails_and_a_little_noise_does_not() {
        // 20 to 30 ms against 7.5 to 10 ms.
        let Verdict::Fails(why) = verdict(stats(200, 0, 10), stats(200, 0, 7)) else {
            panic!("it is slower")
        };
        assert!(why.contains("within 29.5 ms") && why.contains("within 9.8 ms"), "{why}");
        assert!(
            matches!(verdict(stats(200, 0, 8), stats(200, 0, 7)), Verdict::Passes(_)),
            "14.7 ms of 9.8 ms"
        );
        // Twice as slow, and nobody would notice.
        assert!(matches!(verdict(stats(200, 0, 1), stats(200, 0, 0)), Verdict::Passes(_)));
        assert!(
            matches!(verdict(stats(200, 0, 10), stats(50, 0, 7)), Verdict::Passes(_)),
            "nothing to compare with"
        );
    }

    #[test]
    fn only_what_was_counted_in_the_window_counts() {
        let figures = |old: SetStats, new: SetStats| Figures {
            sets: [(Generation(1), old), (Generation(2), new)].into(),
            ..Figures::default()
        };
        let before = figures(stats(5000, 4000, 3), stats(10, 10, 3));
        let now = figures(stats(5400, 4000, 3), stats(130, 11, 3));
        let window = between(&before, &now, &BTreeSet::from([Generation(2)]));
        assert_eq!((window.new.requests, window.new.failures), (120, 1));
        assert_eq!((window.old.requests, window.old.failures), (400, 0));
        assert_eq!(window.new.latency.iter().sum::<u64>(), 120);
    }
}
