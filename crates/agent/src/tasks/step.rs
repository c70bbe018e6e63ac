//! Decides what to do next with one task. Pure.

use wharf_model::{Phase, Target};

use crate::runtime::ContainerState;

/// What to do next with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make everything it needs ready, make its container if there is none, and start it.
    Make,
    /// Its process runs: keep watch.
    Watch,
    /// Its process ended by itself: find out how, and say so.
    Conclude,
    /// Somebody else removed its container: say so.
    Missing,
    /// Ask its process to stop.
    Stop,
    /// Remove its container.
    Remove,
    /// It was stopped, and nothing of it is left: say so.
    Stopped,
    /// Nothing to do unless the orders change.
    Rest,
}

/// The next step for a task of that target, which has come that far, with that container.
pub fn next_step(target: Target, phase: Phase, container: Option<&ContainerState>) -> Step {
    // A stop is never taken back: what has begun to stop, stops.
    let stop = target == Target::Stop || phase == Phase::Stopping;
    match (phase.is_over(), stop, container) {
        // How it ended is known; what is left may be asked for its output until nobody wants it any more.
        (true, false, _) | (true, true, None) => Step::Rest,
        (true, true, Some(_)) => Step::Remove,
        (false, true, None) => Step::Stopped,
        (false, true, Some(ContainerState::Running { .. })) => Step::Stop,
        (false, true, Some(ContainerState::Created | ContainerState::Exited { .. })) => Step::Remove,
        (false, false, Some(ContainerState::Running { .. })) => Step::Watch,
        (false, false, Some(ContainerState::Exited { .. })) => Step::Conclude,
        // Made by a call that was cut off: what may be missing is made good before it starts.
        (false, false, Some(ContainerState::Created)) => Step::Make,
        (false, false, None) if phase >= Phase::Running => Step::Missing,
        (false, false, None) => Step::Make,
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{Exit, Timestamp};

    use super::*;

    const RUNNING: ContainerState = ContainerState::Running { started_at: Timestamp(1) };
    fn exited() -> ContainerState {
        let exit = Exit { code: 0, oom: false };
        ContainerState::Exited { started_at: None, ended_at: Timestamp(2), exit, error: String::new() }
    }

    #[test]
    fn a_task_is_made_watched_and_concluded() {
        let run = |phase, container: Option<&ContainerState>| next_step(Target::Run, phase, container);
        assert_eq!(run(Phase::Pending, None), Step::Make);
        assert_eq!(run(Phase::Starting, Some(&ContainerState::Created)), Step::Make);
        assert_eq!(run(Phase::Starting, Some(&RUNNING)), Step::Watch);
        assert_eq!(run(Phase::Running, Some(&exited())), Step::Conclude);
        assert_eq!(run(Phase::Running, None), Step::Missing);
    }

    #[test]
    fn a_container_that_is_found_running_is_adopted_as_it_is() {
        assert_eq!(next_step(Target::Run, Phase::Pending, Some(&RUNNING)), Step::Watch);
    }

    #[test]
    fn a_stop_ends_with_nothing_left() {
        let stop = |phase, container: Option<&ContainerState>| next_step(Target::Stop, phase, container);
        assert_eq!(stop(Phase::Running, Some(&RUNNING)), Step::Stop);
        assert_eq!(stop(Phase::Stopping, Some(&exited())), Step::Remove);
        assert_eq!(stop(Phase::Stopping, None), Step::Stopped);
        assert_eq!(stop(Phase::Pending, None), Step::Stopped);
        assert_eq!(
            next_step(Target::Run, Phase::Stopping, Some(&RUNNING)),
            Step::Stop,
            "it is never taken back"
        );
    }

    #[test]
    fn what_has_ended_stays_ended() {
        for phase in [Phase::Complete, Phase::Stopped, Phase::Failed, Phase::Lost] {
            for container in [None, Some(&ContainerState::Created), Some(&RUNNING), Some(&exited())] {
                assert_eq!(next_step(Target::Run, phase, container), Step::Rest);
                let rest = if container.is_some() { Step::Remove } else { Step::Rest };
                assert_eq!(next_step(Target::Stop, phase, container), rest);
            }
        }
    }
}
