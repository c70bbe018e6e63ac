//! Decides which endpoints get no requests for a while because they fail.
//!
//! - What counts in a row: connections that are not taken, break, take too long or speak no HTTP, and answers 502, 503 and 504. They say that
//!   a task cannot serve. A 500 says as often that this one request cannot be served, by whomever: it counts by rate, and only if the
//!   others do clearly better. A client that goes away says nothing.
//! - At most so many per cent of a route's endpoints are kept from requests at once, and never all of them: those that fail beyond that are
//!   suspects, and go on. Where something stands in for them that is otherwise: when all are bad, all are, at once.
//! - After its time, one request at a time tries whether it is well again; each failure doubles the time, up to sixteen times.
//! - Any answer that is no failure ends it, whoever gave the endpoint the request.
//! - While nothing fails, a request costs one read here.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use wharf_model::EndpointState;

use super::{Failure, Moment};

/// Doublings of the time, at most.
const DOUBLINGS: u32 = 4;
/// For how long failures by rate are looked at together.
const WINDOW: Duration = Duration::from_secs(10);
/// So many requests say something about a rate.
const ENOUGH: u64 = 20;
/// After so many times its own time without trouble, a breaker begins with the shortest again.
const CALM: u32 = 4;

/// When endpoints of a route get no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) failures: u32,
    pub(crate) open: Duration,
    /// How many endpoints at once.
    pub(crate) most: usize,
    /// Something stands in for the endpoints: all may be bad.
    pub(crate) stand_in: bool,
}

impl Policy {
    /// For a route with so many endpoints.
    pub(crate) fn new(breaker: Option<&wharf_model::Breaker>, endpoints: usize, stand_in: bool) -> Self {
        let (failures, open, percent) = breaker.map_or((5, Duration::from_secs(10), 50), |breaker| {
            (breaker.failures.max(1), breaker.open.duration(), usize::from(breaker.most_percent))
        });
        let most = match percent {
            0 => 0,
            percent => (endpoints * percent / 100).max(1).min(endpoints.saturating_sub(1)),
        };
        Self { failures, open, most, stand_in: stand_in && percent > 0 }
    }
}

/// What an endpoint did that speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symptom {
    Failed(Failure),
    Status(StatusCode),
}

impl Symptom {
    /// What speaks against it in an answer, if anything does.
    pub(crate) fn of_status(status: StatusCode) -> Option<Self> {
        status.is_server_error().then_some(Self::Status(status))
    }

    /// Whether it counts at all.
    pub(crate) fn counts(self) -> bool {
        self.weight() != Weight::None
    }

    fn weight(self) -> Weight {
        match self {
            Self::Failed(Failure::Connect | Failure::Broken | Failure::Timeout | Failure::Nonsense) => {
                Weight::InARow
            }
            Self::Failed(Failure::Cut) => Weight::ByRate,
            Self::Failed(Failure::Abandoned) => Weight::None,
            Self::Status(status) => match status.as_u16() {
                502..=504 => Weight::InARow,
                500 => Weight::ByRate,
                // 501 and the like: it cannot do this, and never will.
                _ => Weight::None,
            },
        }
    }

    fn in_words(self) -> String {
        match self {
            Self::Failed(Failure::Connect) => "it took no connection".into(),
            Self::Failed(Failure::Broken) => "the connection ended before the answer".into(),
            Self::Failed(Failure::Timeout) => "the answer took too long".into(),
            Self::Failed(Failure::Nonsense) => "what it answered was no HTTP".into(),
            Self::Failed(Failure::Cut) => "the answer ended in the middle".into(),
            Self::Failed(Failure::Abandoned) => "the client went away".into(),
            Self::Status(status) => format!("it answered {}", status.as_u16()),
        }
    }

    /// Whether a connection is all it takes to see that it is over.
    fn is_of_connections(self) -> bool {
        self == Self::Failed(Failure::Connect)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    InARow,
    ByRate,
    None,
}

/// Whether an endpoint may get a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It may.
    Closed,
    /// Not for a while.
    Open,
    /// One may try. `late`: has been due for as long as it was open, so that it matters little whose.
    Due { late: bool },
}

/// What is known of one endpoint's failures.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Failures in a row.
    row: AtomicU32,
    /// Until when it gets no requests; 0 if it does.
    until: AtomicU64,
    /// How it stands: [`CLOSED`], [`SUSPECT`] or [`OPEN`].
    standing: AtomicU8,
    /// Somebody tries whether it is well again.
    trial: AtomicBool,
    history: Mutex<History>,
}

const CLOSED: u8 = 0;
/// It would be open, but too many others are.
const SUSPECT: u8 = 1;
const OPEN: u8 = 2;

#[derive(Debug, Default)]
struct History {
    /// Openings since it was last calm for long.
    times: u32,
    /// How long it was last open.
    length: Duration,
    opened: Moment,
    closed: Moment,
    last: Option<Symptom>,
    in_a_row: u32,
    /// It took a connection after it had not taken one.
    probed: bool,
    window: Window,
}

/// Failures by rate since a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: Moment,
    /// Requests of the endpoint at that moment.
    requests: u64,
    failures: u64,
}

/// What the others of a route do, for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Others {
    /// Those that get no requests now.
    pub(crate) open: usize,
    /// Those that do, though they should not.
    pub(crate) suspects: usize,
    /// All of them.
    pub(crate) count: usize,
    /// Failing requests of a thousand, lately.
    pub(crate) failing: u64,
}

/// What a failure changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// It is open, or open again.
    Opened,
    /// It would be, but for the others.
    Suspected,
    /// The last one became bad, and something stands in: all are to be opened.
    AllBad,
}

impl Breaker {
    /// Whether it may get a request.
    pub(crate) fn phase(&self, now: Moment) -> Phase {
        match self.until.load(Relaxed) {
            0 => Phase::Closed,
            until if now.0 < until => Phase::Open,
            until => {
                let history = self.history.lock();
                let late = now.0 >= until.saturating_add(micros(history.length));
                let waits = history.last.is_some_and(Symptom::is_of_connections) && !history.probed;
                if waits && !late { Phase::Open } else { Phase::Due { late } }
            }
        }
    }

    /// Takes the right to try whether it is well again. It ends with [`Breaker::tried`], a failure or a success.
    pub(crate) fn try_again(&self) -> bool {
        self.trial.compare_exchange(false, true, SeqCst, Relaxed).is_ok()
    }

    /// Gives that right back.
    pub(crate) fn tried(&self) {
        self.trial.store(false, SeqCst);
    }

    /// An answer that speaks for it. Whether that closed it.
    pub(crate) fn succeeded(&self, now: Moment) -> bool {
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
        if self.standing.load(Relaxed) == CLOSED {
            return false;
        }
        let mut history = self.history.lock();
        history.closed = now;
        self.standing.store(CLOSED, SeqCst);
        self.until.store(0, SeqCst);
        true
    }

    /// Something that speaks against it. `requests` is how many the endpoint has had; `others` is asked only if it matters. Whoever calls
    /// sees to it that nobody else of the route does at the same time.
    pub(crate) fn failed(
        &self,
        symptom: Symptom,
        policy: &Policy,
        requests: u64,
        now: Moment,
        others: impl FnOnce() -> Others,
    ) -> Change {
        let mut history = self.history.lock();
        let standing = self.standing.load(SeqCst);
        let is_bad = match symptom.weight() {
            Weight::None => return Change::Nothing,
            Weight::InARow => {
                let row = self.row.fetch_add(1, Relaxed) + 1;
                history.in_a_row = row;
                row >= policy.failures
            }
            Weight::ByRate => {
                // Its answers come: what was in a row is over.
                self.row.store(0, Relaxed);
                history.in_a_row = 0;
                history.fails(requests, now);
                standing == CLOSED && history.window.enough(requests)
            }
        };
        // Whoever tried, and anybody else: it is not well.
        if standing == OPEN {
            if self.until.load(SeqCst) <= now.0 {
                history.last = Some(symptom);
                self.open(&mut history, policy, now);
                return Change::Opened;
            }
            return Change::Nothing;
        }
        if !is_bad {
            return Change::Nothing;
        }
        let others = others();
        let by_rate = symptom.weight() == Weight::ByRate;
        if by_rate
            && (others.count == 0 || history.window.per_mille(requests) < (2 * others.failing).max(500))
        {
            return Change::Nothing;
        }
        history.last = Some(symptom);
        if policy.stand_in && !by_rate && others.open + others.suspects == others.count {
            self.open(&mut history, policy, now);
            return Change::AllBad;
        }
        if others.open < policy.most {
            self.open(&mut history, policy, now);
            return Change::Opened;
        }
        self.standing.store(SUSPECT, SeqCst);
        if standing == SUSPECT { Change::Nothing } else { Change::Suspected }
    }

    /// Opens a suspect: all are bad, and something stands in.
    pub(crate) fn open_suspect(&self, policy: &Policy, now: Moment) {
        let mut history = self.history.lock();
        if self.standing.load(SeqCst) == SUSPECT {
            self.open(&mut history, policy, now);
        }
    }

    fn open(&self, history: &mut History, policy: &Policy, now: Moment) {
        let calm = now.since(history.closed) >= history.length * CALM;
        if self.standing.load(SeqCst) != OPEN && calm {
            history.times = 0;
        }
        history.length = policy.open * (1 << history.times.min(DOUBLINGS));
        history.times += 1;
        history.opened = now;
        history.probed = false;
        history.window = Window::default();
        self.standing.store(OPEN, SeqCst);
        self.until.store(now.plus(history.length).0.max(1), SeqCst);
        self.tried();
    }

    /// Whether it waits for a connection to be tried, which is all it takes to see whether it is well.
    pub(crate) fn wants_probe(&self, now: Moment) -> bool {
        let until = self.until.load(Relaxed);
        if until == 0 || now.0 < until {
            return false;
        }
        let history = self.history.lock();
        history.last.is_some_and(Symptom::is_of_connections) && !history.probed
    }

    /// What came of such a connection. Taken, a request may try; not taken, it stays open for longer.
    pub(crate) fn probed(&self, took: bool, policy: &Policy, now: Moment) {
        let mut history = self.history.lock();
        if self.standing.load(SeqCst) != OPEN {
            return;
        }
        if took {
            history.probed = true;
        } else {
            self.open(&mut history, policy, now);
        }
    }

    /// Whether it is open, and whether it is a suspect.
    pub(crate) fn is_open(&self) -> bool {
        self.standing.load(SeqCst) == OPEN
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.standing.load(SeqCst) == SUSPECT
    }

    /// Failing requests by rate of a thousand, lately.
    pub(crate) fn failing(&self, requests: u64, now: Moment) -> u64 {
        let window = self.history.lock().window;
        if now.since(window.since) > 2 * WINDOW { 0 } else { window.per_mille(requests) }
    }

    /// How it stands, and why, in words.
    pub(crate) fn state(&self, now: Moment) -> (EndpointState, String) {
        let history = self.history.lock();
        let what = history.last.map(Symptom::in_words).unwrap_or_default();
        let what = match history.in_a_row {
            0 => format!("it fails far more often than the others: {what}"),
            1 => what,
            row => format!("{row} failures in a row, last: {what}"),
        };
        match self.standing.load(SeqCst) {
            OPEN => {
                let until = Moment(self.until.load(SeqCst));
                if now < until {
                    let left = until.since(now).as_millis().div_ceil(1000);
                    (EndpointState::Open, format!("{what}; tried again in {left} s"))
                } else {
                    (EndpointState::HalfOpen, format!("{what}; one request tries whether it is well again"))
                }
            }
            SUSPECT => {
                (EndpointState::Serving, format!("{what}; it goes on, since too many others fail as well"))
            }
            _ => (EndpointState::Serving, String::new()),
        }
    }
}

impl History {
    fn fails(&mut self, requests: u64, now: Moment) {
        if self.window.failures == 0 || now.since(self.window.since) > WINDOW {
            // The request that fails is one of those since.
            self.window = Window { since: now, requests: requests.saturating_sub(1), failures: 0 };
        }
        self.window.failures += 1;
    }
}

impl Window {
    fn enough(&self, requests: u64) -> bool {
        requests.saturating_sub(self.requests) >= ENOUGH
    }

    fn per_mille(&self, requests: u64) -> u64 {
        let since = requests.saturating_sub(self.requests);
        if self.failures == 0 {
            0
        } else {
            (self.failures * 1000).checked_div(since).unwrap_or(1000).min(1000)
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BROKEN: Symptom = Symptom::Failed(Failure::Broken);
    const REFUSED: Symptom = Symptom::Failed(Failure::Connect);
    const ERROR: Symptom = Symptom::Status(StatusCode::INTERNAL_SERVER_ERROR);

    fn policy(endpoints: usize, stand_in: bool) -> Policy {
        Policy::new(None, endpoints, stand_in)
    }

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000)
    }

    fn fail(breaker: &Breaker, symptom: Symptom, policy: &Policy, now: Moment) -> Change {
        breaker.failed(symptom, policy, 100, now, || Others { count: 3, ..Others::default() })
    }

    fn fail_often(breaker: &Breaker, symptom: Symptom, policy: &Policy, now: Moment, times: u32) {
        for _ in 0..times {
            fail(breaker, symptom, policy, now);
        }
    }

    #[test]
    fn so_many_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (breaker, policy) = (Breaker::default(), policy(4, false));
        for _ in 0..3 {
            (0..4).for_each(|_| assert_eq!(fail(&breaker, BROKEN, &policy, at(1)), Change::Nothing));
            breaker.succeeded(at(1));
        }
        fail_often(&breaker, Symptom::Status(StatusCode::BAD_GATEWAY), &policy, at(1), 4);
        assert_eq!(breaker.phase(at(1)), Phase::Closed);
        assert_eq!(fail(&breaker, BROKEN, &policy, at(1)), Change::Opened);
        assert_eq!((breaker.phase(at(1)), breaker.phase(at(10))), (Phase::Open, Phase::Open));
        let (state, why) = breaker.state(at(2));
        assert_eq!(state, EndpointState::Open);
        assert_eq!(
            why,
            "5 failures in a row, last: the connection ended before the answer; tried again in 9 s"
        );
    }

    #[test]
    fn one_at_a_time_tries_and_a_failure_doubles_the_time() {
        let (breaker, policy) = (Breaker::default(), policy(4, false));
        fail_often(&breaker, BROKEN, &policy, at(0), 5);
        assert_eq!(breaker.phase(at(10)), Phase::Due { late: false });
        assert!(breaker.try_again() && !breaker.try_again());
        assert_eq!(fail(&breaker, BROKEN, &policy, at(10)), Change::Opened);
        assert_eq!((breaker.phase(at(29)), breaker.phase(at(30))), (Phase::Open, Phase::Due { late: false }));
        assert_eq!(breaker.phase(at(50)), Phase::Due { late: true });
        // The right to try was given back.
        assert!(breaker.try_again());
        breaker.tried();
        assert!(breaker.try_again());
        breaker.succeeded(at(31));
        assert_eq!(breaker.phase(at(31)), Phase::Closed);
        assert_eq!(breaker.state(at(31)), (EndpointState::Serving, String::new()));
    }

    #[test]
    fn the_time_grows_up_to_a_bound_and_is_short_again_after_calm() {
        let (breaker, policy) = (Breaker::default(), policy(4, false));
        let mut now = 0;
        fail_often(&breaker, BROKEN, &policy, at(now), 4);
        let mut lengths = Vec::new();
        for _ in 0..7 {
            fail(&breaker, BROKEN, &policy, at(now));
            let begin = now;
            while breaker.phase(at(now)) == Phase::Open {
                now += 1;
            }
            lengths.push(now - begin);
        }
        assert_eq!(lengths, [10, 20, 40, 80, 160, 160, 160]);
        breaker.succeeded(at(now));
        fail_often(&breaker, BROKEN, &policy, at(now + 10), 5);
        assert_eq!(breaker.phase(at(now + 100)), Phase::Open, "it was not well for long");
        breaker.succeeded(at(now + 100));
        fail_often(&breaker, BROKEN, &policy, at(now + 1000), 5);
        assert_eq!(breaker.phase(at(now + 1010)), Phase::Due { late: false });
    }

    #[test]
    fn an_endpoint_that_took_no_connections_takes_one_before_a_request_tries() {
        let (breaker, policy) = (Breaker::default(), policy(4, false));
        fail_often(&breaker, REFUSED, &policy, at(0), 5);
        assert!(!breaker.wants_probe(at(9)) && breaker.wants_probe(at(10)));
        assert_eq!(breaker.phase(at(10)), Phase::Open, "no request is risked");
        assert_eq!(breaker.phase(at(20)), Phase::Due { late: true }, "unless nobody probes");
        breaker.probed(false, &policy, at(10));
        assert!(!breaker.wants_probe(at(29)) && breaker.wants_probe(at(30)), "for twice as long");
        breaker.probed(true, &policy, at(30));
        assert!(!breaker.wants_probe(at(30)));
        assert_eq!(breaker.phase(at(30)), Phase::Due { late: false });
        // Where the answers were bad, a connection says nothing.
        let answers = Breaker::default();
        fail_often(&answers, BROKEN, &policy, at(0), 5);
        assert!(!answers.wants_probe(at(10)));
    }

    #[test]
    fn errors_of_the_application_count_by_rate_and_only_if_others_do_better() {
        let policy = policy(4, false);
        let fails = |requests: u64, failing: u64| {
            let breaker = Breaker::default();
            let others = || Others { count: 3, failing, ..Others::default() };
            // Every second request.
            let mut changes =
                (1..=requests).step_by(2).map(|number| breaker.failed(ERROR, &policy, number, at(1), others));
            changes.any(|change| change == Change::Opened)
        };
        assert!(!fails(18, 0), "too few to say");
        assert!(fails(40, 0));
        assert!(fails(40, 200));
        assert!(!fails(40, 300), "it is not this one");
        let alone = Breaker::default();
        for number in 1..100 {
            assert_eq!(alone.failed(ERROR, &policy, number, at(1), Others::default), Change::Nothing);
        }
        let rare = Breaker::default();
        for number in 1..100 {
            assert_eq!(
                rare.failed(ERROR, &policy, number * 3, at(1), || Others { count: 3, ..Others::default() }),
                Change::Nothing
            );
        }
        let slow = Breaker::default();
        for number in 1..100 {
            let change = slow
                .failed(ERROR, &policy, number, at(number * 11), || Others { count: 3, ..Others::default() });
            assert_eq!(change, Change::Nothing, "long apart");
        }
        assert_eq!(
            slow.failed(Symptom::Status(StatusCode::NOT_IMPLEMENTED), &policy, 9, at(9), Others::default),
            Change::Nothing
        );
        assert_eq!(
            slow.failed(Symptom::Failed(Failure::Abandoned), &policy, 9, at(9), Others::default),
            Change::Nothing
        );
    }

    #[test]
    fn when_all_are_bad_and_something_stands_in_all_are_open() {
        let policy = policy(2, true);
        let (first, second) = (Breaker::default(), Breaker::default());
        let others = |other: &Breaker| Others {
            open: usize::from(other.is_open()),
            suspects: usize::from(other.is_suspect()),
            count: 1,
            failing: 0,
        };
        let five = |it: &Breaker, other: &Breaker| {
            (0..5).map(|_| it.failed(BROKEN, &policy, 9, at(1), || others(other))).last().unwrap()
        };
        assert_eq!(five(&first, &second), Change::Opened);
        assert_eq!(five(&second, &first), Change::AllBad);
        assert!(second.is_open());
        let suspect = Breaker::default();
        suspect.standing.store(SUSPECT, SeqCst);
        suspect.open_suspect(&policy, at(1));
        first.succeeded(at(1));
        first.open_suspect(&policy, at(1));
        assert!(suspect.is_open() && !first.is_open());
    }

    proptest! {
        #[test]
        fn never_more_are_open_than_may_be_and_never_all(
            count in 1_usize..8, percent in 0_u8..=100, events in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 0..400),
        ) {
            let settings = wharf_model::Breaker { failures: 3, open: wharf_model::Millis(5000), most_percent: percent };
            let policy = Policy::new(Some(&settings), count, false);
            let breakers: Vec<Breaker> = (0..count).map(|_| Breaker::default()).collect();
            for (number, (which, event)) in events.into_iter().enumerate() {
                let (which, now) = (which.index(count), at(number as u64));
                if event == 0 {
                    breakers[which].succeeded(now);
                } else {
                    let open = breakers.iter().filter(|it| it.is_open()).count() - usize::from(breakers[which].is_open());
                    breakers[which].failed(BROKEN, &policy, 9, now, || Others { open, suspects: 0, count: count - 1, failing: 0 });
                }
                let open = breakers.iter().filter(|it| it.is_open()).count();
                prop_assert!(open < count && open <= (count * usize::from(percent) / 100).max(usize::from(percent > 0)));
            }
        }
    }
}
