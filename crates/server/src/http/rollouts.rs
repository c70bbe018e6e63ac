//! Rollouts: how far the latest change of an app has come, and what people want of it.
//!
//! - A wish names the rollout that it means: one that comes late hits no newer one, it is refused.
//! - Wishing is all that happens here; the controller does it, and the status says when it has.
//! - A wish that is there already is no other wish: asking twice does no harm.

use axum::{Extension, extract::State};
use wharf_api::{
    transport::Peer,
    v1::{self, Code},
};
use wharf_engine as engine;
use wharf_model::{
    AppKey, AppRecord, Asked, By, EventKind, Generation, Mode, Promote, Promotion, ReleaseStrategy, Rollout,
    RolloutState, ServiceProgress, ServiceRecord, SetRole, SetStats, Slot, Subject, TaskSet, Timestamp,
};
use wharf_store::Batch;

use super::{
    Shared, apps,
    extract::{Json, Path},
    failure::{Answer, Failure},
    require_user, views,
};
use crate::{
    ids::RandomIds,
    records::{Key, encode},
    state::Inner,
};

/// How often a wish is decided anew because something else of the app was written meanwhile.
const ATTEMPTS: usize = 20;
/// The longest reason that is remembered, in characters.
const LONGEST_REASON: usize = 500;

/// What a rollout can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Pause,
    Resume,
    Promote,
    Abort,
}
impl Verb {
    const ALL: [Self; 4] = [Self::Pause, Self::Resume, Self::Promote, Self::Abort];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }

    fn read(text: &str) -> Answer<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(|| {
            Failure::not_found(format!("a rollout cannot be asked to `{text}`"))
                .hint("it can be asked to `pause`, `resume`, `promote` or `abort`")
        })
    }

    /// For the diary.
    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "is to pause",
            Self::Resume => "goes on",
            Self::Promote => "is promoted",
            Self::Abort => "is aborted",
        }
    }
}

/// How far the latest change of an app has come, and what it waits for.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/rollout", params(("environment" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = v1::RolloutStatus), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
) -> Answer<Json<v1::RolloutStatus>> {
    require_user(&peer)?;
    status(&shared, &apps::key(&environment, &app)?).map(Json)
}

/// Asks a rollout to `pause`, `resume`, `promote` or `abort`.
#[utoipa::path(post, path = "/v1/apps/{environment}/{app}/rollout/{verb}",
    params(("environment" = String, Path), ("app" = String, Path), ("verb" = String, Path)),
    request_body = v1::RolloutWish, responses((status = 200, body = v1::RolloutStatus), (status = 409, body = v1::Problem)))]
pub(super) async fn steer(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, verb)): Path<(String, String, String)>,
    Json(wish): Json<v1::RolloutWish>,
) -> Answer<Json<v1::RolloutStatus>> {
    let by = By { client: wish.client.clone(), ..require_user(&peer)? };
    let key = apps::key(&environment, &app)?;
    let verb = Verb::read(&verb)?;
    if wish.reason.chars().count() > LONGEST_REASON || wish.reason.contains(char::is_control) {
        return Err(Failure::invalid(format!(
            "a reason is one line of at most {LONGEST_REASON} characters that can be printed"
        )));
    }
    let decide = |inner: &Inner| {
        let asked = Asked { by: by.clone(), at: shared.now(), reason: wish.reason.trim().to_owned() };
        let app = apps::find(inner, &key)?;
        let batch = wished(app, verb, &wish, &asked)?.map(|rollout| {
            let message = format!("{}: {} {}: {asked}", key.name, rollout.what, verb.done());
            let place = Key::App(key.clone());
            let record = AppRecord { rollout, ..AppRecord::clone(app) };
            let batch = inner.expecting(Batch::new(), &place).put(place.to_string(), encode(&place, &record));
            let subject = Subject { app: Some(key.clone()), ..Subject::default() };
            shared.with_event(batch, EventKind::App, subject, message, Some(by.clone()))
        });
        Ok(((), batch))
    };
    shared.change(ATTEMPTS, decide).await?;
    status(&shared, &key).map(Json)
}

/// What becomes of an app's rollout by a wish; nothing if it is so already.
fn wished(app: &AppRecord, verb: Verb, wish: &v1::RolloutWish, asked: &Asked) -> Answer<Option<Rollout>> {
    let rollout = &app.rollout;
    let name = &app.key.name;
    if rollout.generation != Generation(wish.generation) {
        return Err(Failure::new(
            Code::Moved,
            format!(
                "the rollout that is meant is not the latest of {name} any more: {} by {} has begun since",
                rollout.what, rollout.by
            ),
        )
        .hint(format!("`wharf rollout status -p {name}` shows it; decide again")));
    }
    refuse(app, verb)?;
    let mut wanted = rollout.clone();
    match verb {
        Verb::Pause if rollout.paused.is_some() => return Ok(None),
        Verb::Pause => wanted.paused = Some(asked.clone()),
        Verb::Resume => wanted.paused = None,
        Verb::Promote => {
            let whole = rollout.promoted.as_ref().is_some_and(|promoted| promoted.whole);
            if rollout.promoted.is_some() && (whole || !wish.whole) {
                return Ok(None);
            }
            // Whoever lets it go on does not want it to stand still.
            wanted.paused = None;
            wanted.promoted = Some(Promotion { asked: asked.clone(), whole: wish.whole });
        }
        Verb::Abort if rollout.abort.is_some() => return Ok(None),
        Verb::Abort => {
            wanted.paused = None;
            wanted.promoted = None;
            wanted.abort = Some(asked.clone());
        }
    }
    Ok((wanted != *rollout).then_some(wanted))
}

/// Why a rollout cannot be asked for something, if it cannot.
fn refuse(app: &AppRecord, verb: Verb) -> Answer<()> {
    let rollout = &app.rollout;
    let (name, what) = (&app.key.name, &rollout.what);
    let refused = |why: String, hint: String| Err(Failure::new(Code::Conflict, why).hint(hint));
    if rollout.state.is_over() {
        let ended = format!("{what} of {name} is over: {}", rollout.state);
        return match (verb, rollout.state, rollout.release) {
            (Verb::Abort, RolloutState::Done | RolloutState::Failed, Some(_)) => {
                refused(ended, format!("`wharf rollback -p {name}` returns to the release before it"))
            }
            _ => refused(ended, format!("`wharf app history {name}` says how each release ended")),
        };
    }
    let returning = format!("`wharf rollout status -p {name} --watch` follows it");
    match verb {
        Verb::Resume => Ok(()),
        Verb::Abort if rollout.abort.is_some() => Ok(()),
        Verb::Pause | Verb::Promote | Verb::Abort if is_returning(app) => {
            refused(format!("{name} is on its way back from {what} already"), returning)
        }
        Verb::Pause => Ok(()),
        Verb::Promote if rollout.steps.is_empty() => refused(
            format!(
                "nothing of {what} waits to be promoted: no service of {name} has a second set of tasks now"
            ),
            format!("`wharf rollout status -p {name}` shows how far each service is"),
        ),
        Verb::Promote => Ok(()),
        Verb::Abort => match way_back(app) {
            true => Ok(()),
            false if rollout.release.is_some() => refused(
                format!("{what} is the first of {name}: there is nothing to return to"),
                format!("`wharf down -p {name}` takes it away"),
            ),
            false => refused(
                format!("{what} is no release: nothing of it can be taken back"),
                "ask for what it was before, for example with `wharf scale`".into(),
            ),
        },
    }
}

/// Whether an app is what it was before the present rollout, or on its way there.
fn is_returning(app: &AppRecord) -> bool {
    let is_back = app.previous.as_ref().is_some_and(|back| back.release == app.release);
    app.rollout.abort.is_some() || way_back(app) && (is_back || app.rollout.direct)
}

/// Whether there is something that the present rollout can return to.
fn way_back(app: &AppRecord) -> bool {
    app.previous.as_ref().is_some_and(|previous| previous.before == app.rollout.generation)
}

/// How far the latest change of an app has come.
fn status(shared: &Shared, key: &AppKey) -> Answer<v1::RolloutStatus> {
    let inner = shared.state.read();
    let app = apps::find(&inner, key)?;
    let decision = engine::decide(&inner.world, key, shared.now(), &mut RandomIds);
    let waiting = |service: Option<&ServiceRecord>| -> Vec<String> {
        let about = decision.waiting.iter().filter(|waiting| {
            waiting.about.service().map(|about| &about.name) == service.map(|service| &service.key.name)
        });
        let mut said = Vec::new();
        for text in about.map(ToString::to_string) {
            // Of several tasks that wait for one thing, each says it.
            if !said.contains(&text) {
                said.push(text);
            }
        }
        said
    };
    let rollout = &app.rollout;
    let services = inner.world.services_of(key).filter(|service| !service.removed || lives(&inner, service));
    let services: Vec<_> =
        services.map(|record| service(shared, &inner, app, record, waiting(Some(record)))).collect();
    let asked =
        |asked: &Asked| v1::Asked { by: asked.by.to_string(), at: asked.at.0, reason: asked.reason.clone() };
    let possible = |verb: &Verb| match verb {
        Verb::Pause => rollout.paused.is_none(),
        Verb::Resume => rollout.paused.is_some(),
        Verb::Promote => true,
        Verb::Abort => rollout.abort.is_none(),
    };
    let verbs = Verb::ALL.into_iter().filter(possible).filter(|verb| refuse(app, *verb).is_ok());
    let mut view = views::rollout(rollout);
    view.held |= apps::awaits_somebody(&decision);
    Ok(v1::RolloutStatus {
        environment: key.environment.to_string(),
        app: key.name.to_string(),
        rollout: view,
        release: rollout.release.map(|number| number.0),
        from: app
            .previous
            .as_ref()
            .filter(|previous| previous.before == rollout.generation)
            .map(|previous| previous.release.0),
        returning: !rollout.state.is_over() && is_returning(app),
        paused: rollout.paused.as_ref().map(asked),
        promoted: rollout.promoted.as_ref().map(|promotion| asked(&promotion.asked)),
        aborted: rollout.abort.as_ref().map(asked),
        services,
        waiting: waiting(None),
        verbs: verbs.map(|verb| verb.as_str().to_owned()).collect(),
    })
}

/// Whether a service has tasks that are not over.
fn lives(inner: &Inner, service: &ServiceRecord) -> bool {
    inner.world.tasks_of(&service.key).any(|task| !task.is_over())
}

fn service(
    shared: &Shared,
    inner: &Inner,
    app: &AppRecord,
    record: &ServiceRecord,
    waiting: Vec<String>,
) -> v1::RolloutService {
    let world = &inner.world;
    // What comes once the commands before the release are through.
    let coming =
        app.rollout.pending.iter().flatten().find(|pending| pending.key == record.key).unwrap_or(record);
    let (generation, mode) = coming.wanted();
    let spec = world.revision_of(&record.key, generation).map(|revision| &revision.spec);
    let strategy = spec.and_then(|spec| spec.policy.release.as_ref());
    let release = app.rollout.release.and_then(|number| world.release(&app.key, number));
    let strategy = strategy.or_else(|| release.and_then(|release| release.spec.policy.release.as_ref()));
    let (mut new, mut ready, mut old, mut stopping) = (0, 0, 0, 0);
    let tasks = world.tasks_of(&record.key).filter(|task| task.hook.is_none());
    for task in tasks {
        let status = shared.state.status_of(task);
        if status.phase.is_over() {
            continue;
        }
        match (task.stop.is_some(), engine::is_as_wanted(world, task, generation)) {
            (true, _) => stopping += 1,
            (false, true) => {
                new += 1;
                ready += usize::from(status.is_ready());
            }
            (false, false) => old += 1,
        }
    }
    let wanted = match (coming.removed || coming.stopped || app.removed, mode) {
        (true, _) => 0,
        (false, Mode::Replicated { replicas }) => replicas as usize,
        // A global service wants one wherever it has one or has tried.
        (false, Mode::Global) => {
            let here = world.tasks_of(&record.key).filter(|task| task.stop.is_none() && task.slot == Slot(0));
            here.filter_map(|task| task.node).collect::<std::collections::BTreeSet<_>>().len()
        }
    };
    let progress = app.rollout.steps.get(&record.key.name);
    v1::RolloutService {
        name: record.key.name.to_string(),
        strategy: engine::strategy_of(strategy).into(),
        wanted,
        new,
        ready,
        old,
        stopping,
        step: progress.map(|progress| step(inner, record, progress, strategy)),
        kept_until: record.sets.iter().find_map(kept_until).map(|until| until.0),
        waiting,
    }
}

fn kept_until(set: &TaskSet) -> Option<Timestamp> {
    match set.role {
        SetRole::Kept { until } => Some(until),
        SetRole::Next { .. } | SetRole::Leaving => None,
    }
}

fn step(
    inner: &Inner,
    record: &ServiceRecord,
    progress: &ServiceProgress,
    strategy: Option<&ReleaseStrategy>,
) -> v1::RolloutStep {
    let percent = record.sets.iter().find_map(|set| match set.role {
        SetRole::Next { percent, .. } => Some(percent),
        SetRole::Kept { .. } | SetRole::Leaving => None,
    });
    let (promote, hold, preview) = match strategy {
        Some(ReleaseStrategy::BlueGreen { promote, preview, .. }) => (*promote, None, preview.clone()),
        Some(ReleaseStrategy::Canary { promote, steps, .. }) => {
            let hold = usize::try_from(progress.step).ok().and_then(|step| steps.get(step));
            (*promote, hold.map(|step| step.hold), None)
        }
        Some(ReleaseStrategy::Rolling) | None => (Promote::Auto, None, None),
    };
    let counted = engine::counted(&inner.world, &record.key, progress);
    v1::RolloutStep {
        number: progress.step + 1,
        of: progress.steps,
        // Once it has taken over it answers everybody.
        percent: percent.unwrap_or(if progress.switched_at.is_some() { 100 } else { 0 }),
        promote: match promote {
            Promote::Auto => "auto".into(),
            Promote::Manual => "manual".into(),
        },
        since: progress.since.map(|since| since.0),
        until: progress.since.zip(hold).map(|(since, hold)| (since + hold.duration()).0),
        verdict: progress.verdict.clone(),
        switched_at: progress.switched_at.map(|at| at.0),
        preview,
        old: counted.as_ref().map(|(old, _)| figures(old)),
        new: counted.as_ref().map(|(_, new)| figures(new)),
    }
}

fn figures(set: &SetStats) -> v1::SetFigures {
    v1::SetFigures { requests: set.requests, failures: set.failures, p95_micros: set.quantile(950) }
}

#[cfg(test)]
mod tests {
    use wharf_model::{Previous, ReleaseNumber};

    use super::*;

    fn asked() -> Asked {
        let by = By { user: "ada".into(), client: "ada@laptop".into() };
        Asked { by, at: Timestamp(9), reason: String::new() }
    }
    /// An app whose second release is under way.
    fn app() -> AppRecord {
        let key: AppKey = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let mut rollout = Rollout::begin(Generation(5), "release 2".into(), By::default(), Timestamp(1));
        rollout.release = Some(ReleaseNumber(2));
        rollout.steps.insert("web".parse().unwrap(), ServiceProgress::default());
        AppRecord {
            key,
            generation: Generation(5),
            release: ReleaseNumber(2),
            rollout,
            previous: Some(Previous {
                before: Generation(5),
                release: ReleaseNumber(1),
                services: Vec::new(),
            }),
            removed: false,
            remove_volumes: false,
            created_at: Timestamp(0),
        }
    }
    fn wish(generation: u64) -> v1::RolloutWish {
        v1::RolloutWish { generation, client: String::new(), reason: String::new(), whole: false }
    }
    fn ask(app: &AppRecord, verb: Verb) -> Answer<Option<Rollout>> {
        wished(app, verb, &wish(5), &asked())
    }
    fn refused(app: &AppRecord, verb: Verb) -> String {
        let Failure(problem) = ask(app, verb).unwrap_err();
        assert_eq!(problem.code, Code::Conflict);
        problem.message
    }

    #[test]
    fn a_wish_that_means_another_rollout_is_refused() {
        for verb in Verb::ALL {
            let Failure(problem) = wished(&app(), verb, &wish(4), &asked()).unwrap_err();
            assert_eq!(problem.code, Code::Moved, "{verb:?}");
        }
    }

    #[test]
    fn asking_twice_is_asking_once() {
        for verb in [Verb::Pause, Verb::Promote, Verb::Abort] {
            let mut app = app();
            app.rollout = ask(&app, verb).unwrap().unwrap();
            assert_eq!(ask(&app, verb).unwrap(), None, "{verb:?}");
        }
        assert_eq!(ask(&app(), Verb::Resume).unwrap(), None, "nothing pauses");
        let mut app = app();
        app.rollout.promoted = Some(Promotion { asked: asked(), whole: false });
        let all = v1::RolloutWish { whole: true, ..wish(5) };
        assert!(wished(&app, Verb::Promote, &all, &asked()).unwrap().unwrap().promoted.unwrap().whole);
    }

    #[test]
    fn who_lets_it_go_on_or_takes_it_back_ends_the_pause() {
        let mut app = app();
        app.rollout = ask(&app, Verb::Pause).unwrap().unwrap();
        assert_eq!(app.rollout.paused, Some(asked()));
        for verb in [Verb::Resume, Verb::Promote, Verb::Abort] {
            assert_eq!(ask(&app, verb).unwrap().unwrap().paused, None, "{verb:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_says_why() {
        let mut over = app();
        over.rollout.state = RolloutState::Done;
        for verb in Verb::ALL {
            assert_eq!(refused(&over, verb), "release 2 of shop is over: done");
        }
        let mut back = app();
        back.release = ReleaseNumber(1);
        for verb in [Verb::Pause, Verb::Promote, Verb::Abort] {
            assert_eq!(refused(&back, verb), "shop is on its way back from release 2 already");
        }
        let mut first = app();
        first.previous = None;
        assert_eq!(
            refused(&first, Verb::Abort),
            "release 2 is the first of shop: there is nothing to return to"
        );
        first.rollout.release = None;
        assert_eq!(refused(&first, Verb::Abort), "release 2 is no release: nothing of it can be taken back");
        let mut rolling = app();
        rolling.rollout.steps.clear();
        assert!(refused(&rolling, Verb::Promote).starts_with("nothing of release 2 waits to be promoted"));
        assert!(Verb::read("undo").is_err());
    }
}
