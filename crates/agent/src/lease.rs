//! The node's right to run tasks that must not run twice.
//!
//! - The leader grants it again and again, each time counted from when this node gave the number that is answered: however late a grant is, it
//!   reaches no further than the leader believes.
//! - A little before it is over such tasks are asked to stop, and none is started; when it is over they do not run any more. Whoever stops
//!   them if this agent does not ([`fence`](crate::fence)) reads when that is from a [`Notebook`].
//! - Time is the monotonic clock's: setting the wall makes no right longer.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;
use wharf_model::{LeaseAnswer, LeaseGrant, TaskId};
use wharf_process::Clock;

use crate::runtime::ContainerId;

/// So long before the right is over tasks are asked to stop.
pub const AHEAD: Duration = Duration::from_secs(2);
/// What they have for that.
pub const GRACE: Duration = Duration::from_secs(1);
/// Between looks at whether it is over.
const LOOK: Duration = Duration::from_secs(1);
/// Numbers that are remembered; of those that were given before, no answer is waited for.
const NUMBERS: usize = 16;

/// How the right stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Tasks may run and start.
    Held,
    /// It is about to be over, or is: tasks stop.
    Over,
}

/// Where the right is noted for those who outlive this agent.
pub trait Notebook: Send + Sync {
    /// How long the right lasts on that was noted last; nothing of it is left after a restart of the machine.
    fn left(&self) -> Option<Duration>;
    /// It lasts for so long, and these containers are to be ended with it.
    fn note(&self, left: Duration, containers: &[ContainerId]);
}

/// A grant from a leader that is none any more, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a later leader (epoch {}, term {}) has granted something to this node", known.0, known.1)]
pub struct Stale {
    /// Epoch and term of the later one.
    pub known: (u64, u64),
}

/// The right, and what depends on it.
pub struct Lease {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Until when it lasts, by the monotonic clock.
    until: watch::Sender<Duration>,
    notebook: Mutex<Option<Arc<dyn Notebook>>>,
}
impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("until", &*self.until.borrow()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// The latest leader that granted anything.
    leader: (u64, u64),
    /// When each number was given.
    numbers: BTreeMap<u64, Duration>,
    next: u64,
    /// Containers that are to be ended with the right.
    containers: BTreeMap<TaskId, ContainerId>,
}

impl Lease {
    /// No right. Numbers begin at `first`, which an agent before this one must not have given.
    pub fn new(clock: Arc<dyn Clock>, first: u64) -> Self {
        let state =
            State { leader: (0, 0), numbers: BTreeMap::new(), next: first, containers: BTreeMap::new() };
        Self {
            clock,
            state: Mutex::new(state),
            until: watch::Sender::new(Duration::ZERO),
            notebook: Mutex::default(),
        }
    }

    /// Notes the right there from now on, and goes on with what is left of the one that is noted.
    pub fn keep_in(&self, notebook: Arc<dyn Notebook>) {
        if let Some(left) = notebook.left() {
            self.until.send_replace(self.clock.monotonic() + left);
        }
        *self.notebook.lock() = Some(notebook);
    }

    /// Takes what a leader grants.
    ///
    /// # Errors
    /// If a later one has granted something before.
    pub fn take(&self, grant: &LeaseGrant) -> Result<LeaseAnswer, Stale> {
        let mut state = self.state.lock();
        let leader = (grant.epoch, grant.term);
        if leader < state.leader {
            return Err(Stale { known: state.leader });
        }
        state.leader = leader;
        let given = grant.answers.and_then(|number| state.numbers.get(&number).copied());
        let number = state.next;
        state.next = state.next.wrapping_add(1);
        state.numbers.insert(number, self.clock.monotonic());
        while state.numbers.len() > NUMBERS {
            state.numbers.pop_first();
        }
        if let Some(given) = given {
            let until = given + grant.lasts.duration();
            self.until.send_if_modified(|known| {
                let longer = until > *known;
                *known = until.max(*known);
                longer
            });
            self.note(&state);
        }
        Ok(LeaseAnswer { number })
    }

    /// How the right stands now.
    pub fn standing(&self) -> Standing {
        if self.left() > AHEAD { Standing::Held } else { Standing::Over }
    }
    /// How long it lasts on.
    pub fn left(&self) -> Duration {
        self.until.borrow().saturating_sub(self.clock.monotonic())
    }

    /// The task's container is to be ended with the right, or is not there any more.
    pub fn guard(&self, task: TaskId, container: Option<&ContainerId>) {
        let mut state = self.state.lock();
        let known = state.containers.get(&task);
        if known == container {
            return;
        }
        match container {
            Some(container) => drop(state.containers.insert(task, container.clone())),
            None => drop(state.containers.remove(&task)),
        }
        self.note(&state);
    }
    /// Whether any container is to be ended with the right.
    pub fn guards(&self) -> bool {
        !self.state.lock().containers.is_empty()
    }

    fn note(&self, state: &State) {
        if let Some(notebook) = &*self.notebook.lock() {
            let containers: Vec<_> = state.containers.values().cloned().collect();
            notebook.note(self.left(), &containers);
        }
    }

    /// Returns when the standing is another than this one.
    pub async fn other_than(&self, standing: Standing) {
        let mut until = self.until.subscribe();
        loop {
            until.borrow_and_update();
            if self.standing() != standing {
                return;
            }
            let pause = match standing {
                // Sleeps do not count the time while the machine is suspended.
                Standing::Held => self.left().saturating_sub(AHEAD).min(LOOK),
                Standing::Over => Duration::from_secs(3600),
            };
            tokio::select! {
                // Cancel-safe, both: a counter and a timer. The sender is our own.
                _ = until.changed() => {}
                () = self.clock.sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use wharf_model::Millis;
    use wharf_process::ManualClock;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Book(Mutex<Vec<(Duration, usize)>>, Option<Duration>);
    impl Notebook for Book {
        fn left(&self) -> Option<Duration> {
            self.1
        }
        fn note(&self, left: Duration, containers: &[ContainerId]) {
            self.0.lock().push((left, containers.len()));
        }
    }

    fn lease() -> (ManualClock, Lease) {
        let clock = ManualClock::at(wharf_process::Millis(1_000));
        clock.advance(SECOND * 100);
        (clock.clone(), Lease::new(Arc::new(clock), 7))
    }
    fn grant(term: u64, answers: Option<u64>) -> LeaseGrant {
        LeaseGrant { epoch: 1, term, answers, lasts: Millis::from_secs(13) }
    }

    #[test]
    fn a_right_is_counted_from_when_the_answered_number_was_given() {
        let (clock, lease) = lease();
        let first = lease.take(&grant(1, None)).unwrap();
        assert_eq!(lease.standing(), Standing::Over, "a first message grants nothing");
        clock.advance(SECOND * 5);
        lease.take(&grant(1, Some(first.number))).unwrap();
        assert_eq!((lease.left(), lease.standing()), (SECOND * 8, Standing::Held));
        clock.advance(SECOND * 6);
        assert_eq!(lease.standing(), Standing::Over, "tasks stop a little before it is over");
        // However late: it is counted from the same moment.
        lease.take(&grant(1, Some(first.number))).unwrap();
        assert_eq!(lease.left(), SECOND * 2);
        lease.take(&grant(1, Some(99))).unwrap();
        assert_eq!(lease.left(), SECOND * 2, "a number that was never given answers nothing");
    }

    #[test]
    fn a_leader_that_is_none_any_more_grants_nothing() {
        let (_, lease) = lease();
        let number = lease.take(&grant(2, None)).unwrap().number;
        assert_eq!(lease.take(&grant(1, Some(number))), Err(Stale { known: (1, 2) }));
        assert_eq!(lease.left(), Duration::ZERO);
        assert!(lease.take(&grant(3, None)).is_ok());
    }

    #[test]
    fn setting_the_wall_makes_no_right_longer_or_shorter() {
        let (clock, lease) = lease();
        let number = lease.take(&grant(1, None)).unwrap().number;
        lease.take(&grant(1, Some(number))).unwrap();
        for wall in [0, 3_600_000_000] {
            clock.set_wall(wharf_process::Millis(wall));
            assert_eq!(lease.left(), SECOND * 13);
        }
    }

    #[test]
    fn what_is_to_be_ended_is_noted_with_every_grant_and_an_agent_goes_on_with_what_is_noted() {
        let (_, lease) = lease();
        let book = Arc::new(Book(Mutex::default(), Some(SECOND * 9)));
        lease.keep_in(book.clone());
        assert_eq!(lease.left(), SECOND * 9);
        let (task, container) = (TaskId::from_parts(1, [1; 10]), ContainerId("c".into()));
        lease.guard(task, Some(&container));
        lease.guard(task, Some(&container));
        let number = lease.take(&grant(1, None)).unwrap().number;
        lease.take(&grant(1, Some(number))).unwrap();
        lease.guard(task, None);
        assert_eq!(*book.0.lock(), [(SECOND * 9, 1), (SECOND * 13, 1), (SECOND * 13, 0)]);
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_end_and_of_a_new_beginning() {
        let (clock, lease) = lease();
        let number = lease.take(&grant(1, None)).unwrap().number;
        let mut held = Box::pin(lease.other_than(Standing::Over));
        assert!((&mut held).now_or_never().is_none());
        lease.take(&grant(1, Some(number))).unwrap();
        assert!((&mut held).now_or_never().is_some());
        let mut over = Box::pin(lease.other_than(Standing::Held));
        clock.advance(SECOND * 10);
        assert!((&mut over).now_or_never().is_none());
        clock.advance(SECOND);
        assert!((&mut over).now_or_never().is_some());
    }
}
