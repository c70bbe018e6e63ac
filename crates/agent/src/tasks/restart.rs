//! Decides what becomes of a task whose process has ended by itself: whether its node starts it again. Pure.
//!
//! - Servers decide. As long as one listens, an end is an end, and what follows from it is theirs.
//! - While none does, a node starts again what its restart policy allows, with the same pauses as a server would. The task stays the same
//!   task: it keeps its container and its addresses, and never counts as ended.
//! - Only what has run since the machine started: after a reboot somebody else may have the work.
//! - Not what writes to a volume that other nodes can reach: whether another task has it now, only a server knows.

use std::time::Duration;

use wharf_model::{Exit, RestartCondition, RestartPolicy, Restarts, Timestamp};

/// A task whose process has ended by itself.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Its policy.
    pub policy: &'a RestartPolicy,
    /// How it ended.
    pub exit: Exit,
    /// How long it ran.
    pub ran: Duration,
    /// When it ended, by the engine's clock: tells one end from another.
    pub at: Timestamp,
    /// How long its node has known of it, whatever happens to clocks.
    pub waited: Duration,
    /// What the node has done before.
    pub before: Option<Restarts>,
    /// It had come to run, in this life of the machine.
    pub ran_here: bool,
    /// It writes to a volume that other nodes can reach.
    pub shares_data: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has ended.
    End,
    /// It is started again, so much later.
    Later(Duration),
    /// It is started again now; with what is told of that.
    Now(Restarts),
}

/// What becomes of a task, at this moment.
pub fn fate(ended: &Ended<'_>, server_listens: bool) -> Fate {
    let Ended { policy, exit, ran, at, waited, before, ran_here, shares_data } = *ended;
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => !exit.is_success(),
        RestartCondition::None => false,
    };
    if server_listens || !wanted || !ran_here || shares_data {
        return Fate::End;
    }
    // An end that was counted is not counted again.
    let counted = before.filter(|before| before.ended_at == at);
    let in_a_row = match (counted, before) {
        (Some(counted), _) => counted.in_a_row,
        (None, before) => policy.failures(before.map_or(0, |before| before.in_a_row), ran),
    };
    if policy.max_attempts.is_some_and(|most| in_a_row > most) {
        return Fate::End;
    }
    let pause = policy.pause(in_a_row);
    if waited < pause {
        return Fate::Later(pause.saturating_sub(waited));
    }
    let times = before.map_or(0, |before| before.times) + 1;
    Fate::Now(Restarts { times, in_a_row, ended_at: at, exit })
}

#[cfg(test)]
mod tests {
    use wharf_model::Millis;

    use super::*;

    const AT: Timestamp = Timestamp(100_000);
    fn policy() -> RestartPolicy {
        RestartPolicy { delay: Millis(1_000), window: Millis::from_secs(60), ..RestartPolicy::default() }
    }
    fn crashed(policy: &RestartPolicy) -> Ended<'_> {
        Ended {
            policy,
            exit: Exit { code: 1, oom: false },
            ran: Duration::from_secs(5),
            at: AT,
            waited: Duration::from_secs(10),
            before: None,
            ran_here: true,
            shares_data: false,
        }
    }

    #[test]
    fn servers_decide_as_long_as_one_listens() {
        let policy = policy();
        assert_eq!(fate(&crashed(&policy), true), Fate::End);
        let Fate::Now(restarts) = fate(&crashed(&policy), false) else { panic!() };
        assert_eq!((restarts.times, restarts.in_a_row, restarts.exit.code), (1, 1, 1));
    }

    #[test]
    fn pauses_grow_as_a_servers_do_and_begin_anew_after_a_long_run() {
        let policy = policy();
        let (mut before, mut pauses) = (None, Vec::new());
        for ran in [5, 5, 5, 61, 5] {
            let at = Timestamp(before.map_or(0, |before: Restarts| before.ended_at.0) + 1_000_000);
            let ran = Duration::from_secs(ran);
            let ended = |waited| Ended { before, at, ran, waited, ..crashed(&policy) };
            let Fate::Later(pause) = fate(&ended(Duration::ZERO), false) else { panic!() };
            pauses.push(pause.as_secs());
            assert_eq!(fate(&ended(pause / 2), false), Fate::Later(pause - pause / 2));
            let Fate::Now(restarts) = fate(&ended(pause), false) else { panic!() };
            before = Some(restarts);
        }
        assert_eq!(pauses, [1, 2, 4, 1, 2]);
        assert_eq!(before.unwrap().times, 5);
    }

    #[test]
    fn the_policy_is_the_files() {
        let any = policy();
        let done = Ended { exit: Exit { code: 0, oom: false }, ..crashed(&any) };
        assert!(matches!(fate(&done, false), Fate::Now(_)));
        for (condition, code, again) in [
            (RestartCondition::OnFailure, 0, false),
            (RestartCondition::OnFailure, 1, true),
            (RestartCondition::None, 1, false),
        ] {
            let policy = RestartPolicy { condition, ..policy() };
            let ended = Ended { exit: Exit { code, oom: false }, ..crashed(&policy) };
            assert_eq!(fate(&ended, false) != Fate::End, again, "{condition:?} {code}");
        }
        let once = RestartPolicy { max_attempts: Some(1), ..policy() };
        let Fate::Now(first) = fate(&crashed(&once), false) else { panic!() };
        let second = Ended { before: Some(first), at: Timestamp(AT.0 + 20_000), ..crashed(&once) };
        assert_eq!(fate(&second, false), Fate::End);
    }

    #[test]
    fn what_somebody_else_may_have_is_left_alone() {
        let policy = policy();
        let rebooted = Ended { ran_here: false, ..crashed(&policy) };
        assert_eq!(fate(&rebooted, false), Fate::End);
        let shared = Ended { shares_data: true, ..crashed(&policy) };
        assert_eq!(fate(&shared, false), Fate::End);
    }

    #[test]
    fn an_agent_that_restarts_in_between_counts_an_end_once() {
        let policy = policy();
        let Fate::Now(restarts) = fate(&crashed(&policy), false) else { panic!() };
        // It was noted, and the start did not come about.
        let again = Ended { before: Some(restarts), ..crashed(&policy) };
        let Fate::Now(second) = fate(&again, false) else { panic!() };
        assert_eq!(second.in_a_row, 1);
    }
}
