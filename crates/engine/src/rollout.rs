//! Decides how far the latest change of an app has come.
//!
//! It is done when every seat of every service is as wanted; it has failed as soon as one cannot come to that by itself, a second set of
//! tasks was judged and found wanting, or a command around it failed. A failed release returns to the one before, if there is one and the
//! failing service's `failure_action` says so (the default): the services are as they were, and the change ends as rolled back once they
//! are ready again. Otherwise it ends as failed: its tasks stay for people to look at and are tried again ever less often, and what has not
//! been replaced yet is left alone.
//!
//! - What people want counts first: one that is aborted returns whatever its policies say; one that is paused begins nothing new. Failing
//!   ends it also while it is paused: what serves is to go on serving.
//! - A release with commands before it leaves the services as they are until these are through, and then changes all of them in one commit.

use wharf_model::{
    AppRecord, Asked, FailureAction, HookStage, Previous, Rollout, RolloutState, ServiceRecord,
};

use crate::{
    Change, Reason,
    hooks::{self, Ran},
    pass::Pass,
    passage,
    strategy::{self, Course},
    tasks::{self, ServiceStanding, Standing},
};

pub(crate) fn decide(pass: &mut Pass<'_>, services: &[ServiceStanding]) {
    let app = pass.app;
    if app.rollout.state.is_over() || app.removed {
        return;
    }
    let mut rollout = app.rollout.clone();
    if app.previous.as_ref().is_some_and(|previous| is_return(app, previous)) {
        returning(pass, rollout, services);
    } else if let Some(abort) = rollout.abort.clone() {
        aborted(pass, rollout, &abort);
    } else if rollout.pending.is_some() {
        before(pass, rollout);
    } else {
        let outcome = carry_out(pass, &mut rollout, services);
        conclude(pass, rollout, outcome);
    }
}

/// How a rollout stands that is carried out.
enum Outcome {
    Underway,
    /// What is to be said of it.
    Done(String),
    /// Why, and what to do about it.
    Failed(String, FailureAction),
}

/// Carries a change out, as far as that is not for tasks to do.
fn carry_out(pass: &mut Pass<'_>, rollout: &mut Rollout, services: &[ServiceStanding]) -> Outcome {
    if let Some((why, action)) = failure(pass, services) {
        return Outcome::Failed(why, action);
    }
    let settled = settled(pass, services.iter().filter(|service| !is_tried(pass, service)));
    match strategy::decide(pass, rollout, services, settled) {
        // Whatever its policy says: what was judged must not get more requests, nor those that it has.
        Course::Refused(why) => return Outcome::Failed(why, FailureAction::Rollback),
        Course::Underway => return Outcome::Underway,
        Course::Through => {}
    }
    if !settled || !is_led_to_everywhere(pass) || tasks::let_last_go(pass) {
        return Outcome::Underway;
    }
    match hooks::run(pass, rollout, HookStage::After) {
        Ran::Through => Outcome::Done(remarks(pass, services)),
        Ran::Underway => Outcome::Underway,
        Ran::Failed(why, service) => {
            let revision = pass.service(&service).and_then(|service| service.revision);
            let action = revision.map_or(FailureAction::Rollback, |revision| {
                pass.update_policy(&revision.spec).failure_action
            });
            Outcome::Failed(why, action)
        }
    }
}

fn conclude(pass: &mut Pass<'_>, rollout: Rollout, outcome: Outcome) {
    match outcome {
        Outcome::Underway => set(pass, rollout),
        Outcome::Done(reason) => end(pass, rollout, RolloutState::Done, reason),
        Outcome::Failed(why, FailureAction::Rollback) if way_back(pass.app).is_some() => {
            let reason =
                |from, to| format!("release {from} failed, and the app returned to release {to}: {why}");
            roll_back(pass, rollout, reason);
        }
        Outcome::Failed(why, _) => {
            let reason = failed(pass, &why);
            end(pass, rollout, RolloutState::Failed, reason);
        }
    }
}

/// A change that is on its way back to what was before.
fn returning(pass: &mut Pass<'_>, rollout: Rollout, services: &[ServiceStanding]) {
    let reason = rollout.reason.clone();
    match failure(pass, services) {
        Some((why, _)) => {
            let reason = format!("{reason}; and the return failed: {why}");
            end(pass, rollout, RolloutState::Failed, reason);
        }
        None if settled(pass, services.iter()) && is_led_to_everywhere(pass) && !tasks::let_last_go(pass) => {
            end(pass, rollout, RolloutState::RolledBack, reason);
        }
        None => {}
    }
}

/// A change that somebody wants undone.
fn aborted(pass: &mut Pass<'_>, rollout: Rollout, abort: &Asked) {
    if way_back(pass.app).is_some() {
        roll_back(pass, rollout, |from, to| {
            format!("release {from} was aborted by {abort}, and the app returned to release {to}")
        });
    } else {
        let reason =
            format!("aborted by {abort}; there is nothing before it to return to, so what has begun stays");
        end(pass, rollout, RolloutState::Failed, reason);
    }
}

/// The commands before a release; once they are through, the services become what it says.
fn before(pass: &mut Pass<'_>, mut rollout: Rollout) {
    match hooks::run(pass, &rollout, HookStage::Before) {
        Ran::Underway => set(pass, rollout),
        Ran::Through => {
            for record in rollout.pending.take().into_iter().flatten() {
                pass.put_service(record);
            }
            set(pass, rollout);
        }
        Ran::Failed(why, _) => match way_back(pass.app) {
            Some(_) => roll_back(pass, rollout, |from, to| {
                format!(
                    "release {from} failed before anything was replaced, and the app stays on release {to}: {why}"
                )
            }),
            None => {
                let reason = format!("{why}; nothing was started, and there is no earlier release");
                end(pass, rollout, RolloutState::Failed, reason);
            }
        },
    }
}

/// Whether these services are as wanted, with what their policies bear.
fn settled<'s>(pass: &Pass<'_>, services: impl Iterator<Item = &'s ServiceStanding>) -> bool {
    let fine = |service: &ServiceStanding| {
        let tolerated = tolerates(pass, service);
        service.seats.iter().all(|standing| match standing {
            Standing::Settled => true,
            Standing::Failed(_) => tolerated,
            Standing::Underway => false,
        })
    };
    services.into_iter().all(fine) && networks_are_there(pass)
}

/// Whether names and routes of every live node are those of now, as far as they concern what serves: a change is done only then, also one
/// of routes alone. What that waits for is said.
fn is_led_to_everywhere(pass: &mut Pass<'_>) -> bool {
    let live = pass.services.iter().filter(|service| !service.is_unwanted(pass.app));
    let tasks = live.flat_map(|service| pass.tasks_of(&service.record.key)).filter(|task| task.is_ready());
    let unknown = tasks.filter_map(|task| {
        let (node, nodes) = (pass.node_name(task.node), pass.world.not_led_by(task)?);
        Some((pass.about(task), Reason::NotLedTo { node, nodes }))
    });
    let unknown: Vec<_> = unknown.collect();
    if unknown.is_empty() {
        return true;
    }
    unknown.into_iter().for_each(|(about, reason)| pass.wait(about, reason));
    pass.out.wake(pass.now + passage::LOOK);
    false
}

/// Whether a service has a set of tasks that is to take over.
fn is_tried(pass: &Pass<'_>, service: &ServiceStanding) -> bool {
    pass.service(&service.name).is_some_and(|service| service.record.next().is_some())
}

/// Whether no more of a service's seats have failed than its policy allows.
fn tolerates(pass: &Pass<'_>, service: &ServiceStanding) -> bool {
    let failed = service.seats.iter().filter(|seat| matches!(seat, Standing::Failed(_))).count();
    let revision = wanted_revision(pass, service);
    revision.is_some_and(|revision| pass.update_policy(&revision.spec).tolerates(failed, service.seats.len()))
}

/// How a service is made that stands like this: its next set, if it has one.
fn wanted_revision<'w>(
    pass: &Pass<'w>,
    service: &ServiceStanding,
) -> Option<&'w wharf_model::ServiceRevision> {
    let record = pass.service(&service.name)?.record;
    pass.world.revision_of(&record.key, record.wanted().0).map(|revision| &**revision)
}

/// What is to be said of a change that is done although not all went well; nothing if it did.
fn remarks(pass: &Pass<'_>, services: &[ServiceStanding]) -> String {
    let why = services.iter().flat_map(|service| &service.seats).filter_map(|seat| match seat {
        Standing::Failed(why) => Some(why.as_str()),
        Standing::Settled | Standing::Underway => None,
    });
    let why: Vec<_> = why.collect();
    let borne = format!("done within `max_failure_ratio`, although {}", why.join("; "));
    let borne = Some(borne).filter(|_| !why.is_empty());
    borne.into_iter().chain(hooks::remarks(pass)).collect::<Vec<_>>().join("; ")
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
        let revision = wanted_revision(pass, service);
        let action = revision
            .map_or(FailureAction::Pause, |revision| pass.update_policy(&revision.spec).failure_action);
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

/// Makes the app what it was before the release, and says why: `reason` is handed the release that is left and the one it returns to.
fn roll_back(
    pass: &mut Pass<'_>,
    rollout: Rollout,
    reason: impl FnOnce(wharf_model::ReleaseNumber, wharf_model::ReleaseNumber) -> String,
) {
    let Some(previous) = way_back(pass.app).cloned() else { return };
    put_back(pass, &previous);
    let rollout = Rollout {
        reason: reason(pass.app.release, previous.release),
        paused: None,
        promoted: None,
        pending: None,
        ..rollout
    };
    let app = AppRecord { release: previous.release, rollout, ..pass.app.clone() };
    pass.change(Change::PutApp(app));
}
fn put_back(pass: &mut Pass<'_>, previous: &Previous) {
    for before in &previous.services {
        let record = match pass.record(&before.key) {
            Some(now) => strategy::returned(pass.world, &now, before),
            None => before.clone(),
        };
        pass.put_service(record);
    }
    for service in pass.services.clone() {
        let kept = previous.services.iter().any(|record| record.key == service.record.key);
        if !kept && !service.record.removed {
            pass.put_service(ServiceRecord { removed: true, ..service.record.clone() });
        }
    }
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

fn end(pass: &mut Pass<'_>, rollout: Rollout, state: RolloutState, reason: String) {
    let ended_at = Some(pass.now);
    set(pass, Rollout { state, reason, ended_at, paused: None, promoted: None, pending: None, ..rollout });
}
fn set(pass: &mut Pass<'_>, rollout: Rollout) {
    if rollout != pass.app.rollout {
        pass.change(Change::SetRollout { app: pass.app.key.clone(), rollout });
    }
}
