//! Decides how far the latest change of an app has come.
//!
//! It is done when every seat of every service is as wanted; it has failed as soon as one cannot come to that by itself. A failed
//! release returns to the one before, if there is one and the failing service's `failure_action` says so (the default): the
//! services are as they were, and the change ends as rolled back once they are ready again. Otherwise it ends as failed: its tasks
//! stay for people to look at and are tried again ever less often, and what has not been replaced yet is left alone.

use wharf_model::{AppRecord, FailureAction, Previous, Rollout, RolloutState};

use crate::{
    Change,
    pass::Pass,
    tasks::{ServiceStanding, Standing},
};

pub(crate) fn decide(pass: &mut Pass<'_>, services: &[ServiceStanding]) {
    let rollout = &pass.app.rollout;
    if rollout.state.is_over() || pass.app.removed {
        return;
    }
    let tolerated: Vec<_> = services.iter().filter(|service| tolerates(pass, service)).collect();
    let within = |service: &ServiceStanding| tolerated.iter().any(|other| other.name == service.name);
    let settled = services.iter().all(|service| {
        let fine = |standing: &Standing| match standing {
            Standing::Settled => true,
            Standing::Failed(_) => within(service),
            Standing::Underway => false,
        };
        service.seats.iter().all(fine)
    }) && networks_are_there(pass);
    let failure = failure(pass, services);
    let returning = pass.app.previous.as_ref().filter(|previous| is_return(pass.app, previous));
    match (failure, returning) {
        (Some((why, FailureAction::Rollback)), None) if way_back(pass.app).is_some() => roll_back(pass, &why),
        (Some((why, _)), None) => end(pass, RolloutState::Failed, failed(pass, &why)),
        (Some((why, _)), Some(_)) => {
            let reason = format!("{}; and the return failed: {why}", rollout.reason);
            end(pass, RolloutState::Failed, reason);
        }
        (None, Some(_)) if settled => end(pass, RolloutState::RolledBack, rollout.reason.clone()),
        (None, None) if settled => end(pass, RolloutState::Done, borne(&tolerated)),
        (None, _) => {}
    }
}

/// Whether no more of a service's seats have failed than its policy allows.
fn tolerates(pass: &Pass<'_>, service: &ServiceStanding) -> bool {
    let failed = service.seats.iter().filter(|seat| matches!(seat, Standing::Failed(_))).count();
    let revision = pass.service(&service.name).and_then(|service| service.revision);
    revision.is_some_and(|revision| pass.update_policy(&revision.spec).tolerates(failed, service.seats.len()))
}

/// What failed and was borne with, in words; nothing if nothing did.
fn borne(services: &[&ServiceStanding]) -> String {
    let why = services.iter().flat_map(|service| &service.seats).filter_map(|seat| match seat {
        Standing::Failed(why) => Some(why.as_str()),
        Standing::Settled | Standing::Underway => None,
    });
    let why: Vec<_> = why.collect();
    if why.is_empty() {
        return String::new();
    }
    format!("done within `max_failure_ratio`, although {}", why.join("; "))
}

fn all(services: &[ServiceStanding], is: impl Fn(&Standing) -> bool) -> bool {
    services.iter().all(|service| service.seats.iter().all(&is))
}

/// Networks that could not be made leave no seat of their own behind.
fn networks_are_there(pass: &Pass<'_>) -> bool {
    !pass.out.waiting.iter().any(|waiting| matches!(waiting.reason, crate::Reason::NoNetwork { .. }))
}

/// The first certain failure that ends the rollout. One whose service says `continue` does so only once all others are settled.
fn failure(pass: &Pass<'_>, services: &[ServiceStanding]) -> Option<(String, FailureAction)> {
    let counted = services.iter().filter(|service| !tolerates(pass, service));
    let failures = counted.flat_map(|service| {
        let action = pass.service(&service.name).and_then(|service| service.revision);
        let action =
            action.map_or(FailureAction::Pause, |revision| pass.update_policy(&revision.spec).failure_action);
        service.seats.iter().filter_map(move |seat| match seat {
            Standing::Failed(why) => Some((why.clone(), action)),
            Standing::Settled | Standing::Underway => None,
        })
    });
    let others_settled = all(services, |standing| *standing != Standing::Underway);
    let ends = |action: FailureAction| match action {
        FailureAction::Pause | FailureAction::Rollback => true,
        FailureAction::Continue => others_settled,
    };
    failures.into_iter().find(|(_, action)| ends(*action))
}

/// What the app was before the release that this rollout carries out.
pub(crate) fn way_back(app: &AppRecord) -> Option<&Previous> {
    app.previous.as_ref().filter(|previous| previous.before == app.rollout.generation)
}
/// Whether the app is on its way back already.
pub(crate) fn is_return(app: &AppRecord, previous: &Previous) -> bool {
    previous.before == app.rollout.generation && previous.release == app.release
}

fn roll_back(pass: &mut Pass<'_>, why: &str) {
    let Some(previous) = way_back(pass.app).cloned() else { return };
    for record in &previous.services {
        if pass.world.service(&record.key).is_none_or(|now| **now != *record) {
            pass.change(Change::PutService(record.clone()));
        }
    }
    let kept = |key| previous.services.iter().any(|record| record.key == key);
    for service in pass.services.clone() {
        if !kept(service.record.key.clone()) && !service.record.removed {
            let record = wharf_model::ServiceRecord { removed: true, ..service.record.clone() };
            pass.change(Change::PutService(record));
        }
    }
    let reason = format!(
        "release {} failed, and the app returned to release {}: {why}",
        pass.app.release, previous.release
    );
    let rollout = Rollout { reason, ..pass.app.rollout.clone() };
    let app = AppRecord { release: previous.release, rollout, ..pass.app.clone() };
    pass.change(Change::PutApp(app));
}

fn failed(pass: &Pass<'_>, why: &str) -> String {
    let first = pass.app.previous.is_none();
    let stays = if first {
        "; there is no earlier release to return to, so its tasks stay and are tried again at growing intervals of up to 5 minutes"
    } else {
        "; the app stays where it is, and failing tasks are tried again at growing intervals of up to 5 minutes"
    };
    format!("{why}{stays}")
}

fn end(pass: &mut Pass<'_>, state: RolloutState, reason: String) {
    let rollout = Rollout { state, reason, ended_at: Some(pass.now), ..pass.app.rollout.clone() };
    pass.change(Change::SetRollout { app: pass.app.key.clone(), rollout });
}
