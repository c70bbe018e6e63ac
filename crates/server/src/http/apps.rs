//! Apps: planned, changed, seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Extension, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rand::Rng as _;
use serde::Deserialize;
use wharf_api::{
    transport::{Peer, node::ResolveImage},
    v1::{self, Code},
};
use wharf_engine::{self as engine, Change, PlanRefusal, Request};
use wharf_model::{
    AppKey, AppRecord, AppSpec, By, EventKind, FileSpec, Image, NodeState, PullPolicy, ReleaseNote,
    ReleaseNumber, RolloutState, ServiceName, ServiceRecord, Subject, Task,
};
use wharf_store::{Batch, PORTABLE_BYTES, PORTABLE_KEYS, Revision, StoreError};

use super::{
    Shared, builds, closest,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    files::{self, Pins},
    releases, require_user, route_files, views,
};
use crate::{
    controllers::commit::Committer,
    ids::RandomIds,
    records::{Key, PortsRecord, QuotaUseRecord, encode},
    state::Inner,
};

/// How many nodes are asked what an image reference stands for, before the answer is believed to be no.
const NODES_ASKED: usize = 10;
/// How often an action is decided anew because something it does not depend on was written meanwhile.
const ATTEMPTS: usize = 20;
/// The largest config or secret: sealed it still fits into one write of every store.
const LARGEST_FILE: usize = 1000 << 10;

/// The key of an app, from a path.
pub(super) fn key(environment: &str, app: &str) -> Answer<AppKey> {
    let invalid = |error: wharf_model::InvalidName| Failure::invalid(error.to_string());
    Ok(AppKey { environment: environment.parse().map_err(invalid)?, name: app.parse().map_err(invalid)? })
}

/// The app with this key.
pub(super) fn find<'a>(inner: &'a Inner, key: &AppKey) -> Answer<&'a Arc<AppRecord>> {
    inner.world.app(key).ok_or_else(|| {
        let elsewhere = inner.world.apps().find(|app| app.key.name == key.name);
        let names: Vec<_> = inner
            .world
            .apps()
            .filter(|app| app.key.environment == key.environment)
            .map(|app| app.key.name.to_string())
            .collect();
        let hint = match (elsewhere, closest(key.name.as_str(), &names)) {
            (Some(app), _) => {
                format!("there is one in environment `{}`: give `--env {0}`", app.key.environment)
            }
            (None, Some(close)) => format!("did you mean `{close}`? `wharf app ls` lists them"),
            (None, None) => "`wharf up` deploys one; `wharf app ls --all` lists those there are".into(),
        };
        Failure::not_found(format!("there is no app `{}` in environment `{}`", key.name, key.environment))
            .hint(hint)
    })
}

/// The service of this name.
pub(super) fn find_service<'a>(inner: &'a Inner, app: &AppKey, name: &str) -> Answer<&'a Arc<ServiceRecord>> {
    let services = || inner.world.services_of(app).filter(|service| !service.removed);
    services().find(|service| service.key.name.as_str() == name).ok_or_else(|| {
        let names: Vec<_> = services().map(|service| service.key.name.to_string()).collect();
        let hint = match closest(name, &names) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("it has: {}", names.join(", ")),
        };
        Failure::not_found(format!("app {} has no service `{name}`", app.name)).hint(hint)
    })
}

/// The task of this id, end of an id, or name: of several that had a name, the one that runs or was the last.
pub(super) fn find_task<'a>(shared: &Shared, inner: &'a Inner, name: &str) -> Answer<&'a Arc<Task>> {
    if let Some(task) = name.parse().ok().and_then(|id| inner.world.task(id)) {
        return Ok(task);
    }
    let found = inner.world.tasks().filter(|task| task.name() == name || task.id.short() == name);
    let rank =
        |task: &Arc<Task>| (!shared.state.status_of(task).phase.is_over(), task.stop.is_none(), task.id);
    found.max_by_key(|task| rank(task)).ok_or_else(|| {
        let names: Vec<_> = inner.world.tasks().map(|task| task.name()).collect();
        let hint = match closest(name, &names) {
            Some(close) => format!("did you mean `{close}`?"),
            None => "`wharf ps --all` lists them".into(),
        };
        Failure::not_found(format!("there is no task `{name}`")).hint(hint)
    })
}

/// Which apps are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AppsOf {
    environment: Option<String>,
}

/// The apps of an environment, or of all.
#[utoipa::path(get, path = "/v1/apps", params(("environment" = Option<String>, Query)), responses((status = 200, body = [v1::App])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<AppsOf>,
) -> Answer<Json<Vec<v1::App>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let apps = inner
        .world
        .apps()
        .filter(|app| wish.environment.as_ref().is_none_or(|wanted| app.key.environment.as_str() == wanted));
    Ok(Json(apps.map(|app| views::app(&shared.state, &inner, app)).collect()))
}

/// How much of an app is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AppOf {
    spec: bool,
}

/// An app with its services, tasks, networks and volumes, and what is not as wanted.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}", params(("environment" = String, Path), ("app" = String, Path), ("spec" = Option<bool>, Query)),
    responses((status = 200, body = v1::AppStatus), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Query(wish): Query<AppOf>,
) -> Answer<Json<v1::AppStatus>> {
    require_user(&peer)?;
    status(&shared, &key(&environment, &app)?, wish.spec).map(Json)
}

/// An app with everything that belongs to it. What it waits for is decided on the spot, by what the leader decides by.
pub(super) fn status(shared: &Shared, key: &AppKey, with_spec: bool) -> Answer<v1::AppStatus> {
    let inner = shared.state.read();
    let record = find(&inner, key)?;
    let decision = engine::decide(&inner.world, key, shared.now(), &mut RandomIds);
    let waiting: Vec<_> = decision
        .waiting
        .iter()
        .map(|waiting| (waiting.about.service().cloned(), waiting.to_string()))
        .collect();
    let mut status = views::app_status(&shared.state, &inner, record, &waiting, with_spec);
    status.app.rollout.held |= awaits_somebody(&decision);
    Ok(status)
}

/// Whether something of an app goes on only when somebody lets it.
pub(super) fn awaits_somebody(decision: &engine::Decision) -> bool {
    decision.waiting.iter().any(|waiting| matches!(waiting.reason, engine::Reason::Promotion { .. }))
}

/// Which tasks are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TasksOf {
    environment: Option<String>,
    app: Option<String>,
    node: Option<String>,
    /// Ended ones, too.
    all: bool,
}

/// Tasks, of all apps unless fewer are asked for.
#[utoipa::path(get, path = "/v1/tasks", params(("environment" = Option<String>, Query), ("app" = Option<String>, Query), ("node" = Option<String>, Query), ("all" = Option<bool>, Query)),
    responses((status = 200, body = [v1::Task])))]
pub(super) async fn tasks(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<TasksOf>,
) -> Answer<Json<Vec<v1::Task>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let node = match &wish.node {
        Some(name) => Some(super::nodes::find(&inner, name)?.record.id),
        None => None,
    };
    let wanted = inner.world.tasks().filter(|task| {
        let app = &task.service.app;
        (wish.all || !task.is_over())
            && wish.environment.as_ref().is_none_or(|wanted| app.environment.as_str() == wanted)
            && wish.app.as_ref().is_none_or(|wanted| app.name.as_str() == wanted)
            && node.is_none_or(|node| task.node == Some(node))
    });
    let mut tasks: Vec<_> = wanted.collect();
    tasks.sort_by(|a, b| (&a.service, a.slot, a.id).cmp(&(&b.service, b.slot, b.id)));
    Ok(Json(tasks.into_iter().map(|task| views::task(&shared.state, &inner, task)).collect()))
}

/// One task, by id or name.
#[utoipa::path(get, path = "/v1/tasks/{task}", params(("task" = String, Path)), responses((status = 200, body = v1::Task)))]
pub(super) async fn task(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Json<v1::Task>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let task = find_task(&shared, &inner, &name)?;
    Ok(Json(views::task(&shared.state, &inner, task)))
}

/// What an action would do; nothing is changed.
#[utoipa::path(post, path = "/v1/apps/{environment}/{app}/plan", params(("environment" = String, Path), ("app" = String, Path)),
    request_body = v1::PlanRequest, responses((status = 200, body = v1::Plan)))]
pub(super) async fn plan(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Json(wish): Json<v1::PlanRequest>,
) -> Answer<Json<v1::Plan>> {
    let by = require_user(&peer)?;
    let key = key(&environment, &app)?;
    let mut prepared = prepare(&shared, &key, wish.action).await?;
    let inner = shared.state.read();
    prepared.pin(&shared, &inner, &key);
    Ok(Json(prepared.plan(&inner, &key, &by, shared.now())))
}

/// Does what was planned, exactly; refuses if that would be something else by now.
#[utoipa::path(post, path = "/v1/apps/{environment}/{app}/apply", params(("environment" = String, Path), ("app" = String, Path)),
    request_body = v1::ApplyRequest, responses((status = 200, body = v1::Applied), (status = 409, body = v1::Problem)))]
pub(super) async fn apply(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Json(wish): Json<v1::ApplyRequest>,
) -> Answer<Json<v1::Applied>> {
    let by = By { client: wish.client, ..require_user(&peer)? };
    let key = key(&environment, &app)?;
    let note = releases::note(wish.message, wish.source)?;
    let prepared = prepare(&shared, &key, wish.action).await?;
    if let Prepared::Up { images, .. } = &prepared
        && let Some((service, _)) = images.iter().find(|(_, image)| image.is_unbuilt())
    {
        return Err(Failure::invalid(format!("the image of service {service} has not been built"))
            .hint("`wharf up` builds what has to be built before it changes anything"));
    }
    let applying =
        apply_prepared(Arc::clone(&shared), prepared, key, by, note, wish.fingerprint, wish.supersede);
    // To its end, also if the client hangs up: it may take several commits.
    match shared.tasks.spawn("apply", applying).await {
        Ok(answer) => answer.map(Json),
        Err(error) => Err(Failure::internal("the action was cut off", &error)),
    }
}

async fn apply_prepared(
    shared: Shared,
    mut prepared: Prepared,
    key: AppKey,
    by: By,
    note: ReleaseNote,
    fingerprint: String,
    supersede: bool,
) -> Answer<v1::Applied> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (mut writes, applied) = {
            let inner = shared.state.read();
            prepared.refuse_if_busy(&inner, &key, supersede)?;
            prepared.pin(&shared, &inner, &key);
            let plan = prepared.plan(&inner, &key, &by, shared.now());
            if plan.fingerprint != fingerprint {
                return Err(Failure::new(
                    Code::Moved,
                    format!("{} has changed since this was planned", key.name),
                )
                .hint("look at the new plan and decide again"));
            }
            prepared.writes(&shared, &inner, &key, &by, &note)?
        };
        if writes.change.is_empty() {
            return Ok(applied);
        }
        match writes.commit(&shared).await {
            Ok(()) => return Ok(applied),
            // A controller or another app's change wrote a record that this reads or writes as well; what the person saw may be as it was.
            Err(error) if error.is_conflict() && attempt < ATTEMPTS => {
                writes.take_back(&shared).await;
                shared.state.see_what_was_faster(&error).await;
            }
            Err(error) => {
                writes.take_back(&shared).await;
                return Err(error.into());
            }
        }
    }
}

/// What carries an action out.
#[derive(Default)]
struct Writes {
    /// What the change refers to and nothing else does: it may be written before, if all together is too much for the store at once.
    before: Vec<(Key, Vec<u8>)>,
    /// The change itself: all or nothing, on condition of everything it was decided by.
    change: Batch,
    /// What was written before, and when.
    written: Vec<(Key, Revision)>,
}

impl Writes {
    async fn commit(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let all = self.before.iter().fold(self.change.clone(), |batch, (key, value)| {
            batch.expect(key.to_string(), None).put(key.to_string(), value.clone())
        });
        let keys = all.expectations().len().max(all.writes().len());
        if shared.store == "embedded" || (keys <= PORTABLE_KEYS && all.size() <= PORTABLE_BYTES) {
            return shared.state.commit(all).await.map(drop);
        }
        for (key, value) in &self.before {
            let batch = Batch::new().expect(key.to_string(), None).put(key.to_string(), value.clone());
            let revision = shared.state.commit(batch).await?;
            self.written.push((key.clone(), revision));
        }
        shared.state.commit(self.change.clone()).await.map(drop)
    }

    /// Removes what was written before a change that was refused.
    async fn take_back(&self, shared: &Shared) {
        for (key, revision) in &self.written {
            let batch = Batch::new().expect(key.to_string(), Some(*revision)).delete(key.to_string());
            if let Err(error) = shared.state.commit(batch).await {
                tracing::debug!(%key, error = %wharf_process::errors::chain(&error), "left behind");
            }
        }
    }
}

/// An action with everything that has to be asked for first.
enum Prepared {
    /// Make the app as this says, with these images.
    Up {
        spec: Box<AppSpec>,
        images: BTreeMap<ServiceName, Image>,
        /// Contents by digest.
        files: BTreeMap<String, Vec<u8>>,
        /// What its external configs and secrets are now.
        pins: Pins,
        /// Images that could not be found.
        missing: Vec<v1::Refusal>,
        warnings: Vec<String>,
        /// What was found in the secrets that its routes name.
        route_files: route_files::Findings,
        /// The release whose app this is: what it pinned stays pinned.
        rollback_of: Option<ReleaseNumber>,
    },
    /// Anything else.
    Request(Request),
}

async fn prepare(shared: &Shared, key: &AppKey, action: v1::Action) -> Answer<Prepared> {
    let names = |services: Vec<String>| -> Answer<Vec<ServiceName>> {
        let inner = shared.state.read();
        find(&inner, key)?;
        services.iter().map(|name| Ok(find_service(&inner, key, name)?.key.name.clone())).collect()
    };
    Ok(match action {
        v1::Action::Up { spec, pull, built } => prepare_up(shared, key, *spec, pull, &built).await?,
        v1::Action::Rollback { to } => prepare_rollback(shared, key, to).await?,
        v1::Action::Down { volumes } => Prepared::Request(Request::Down { volumes }),
        v1::Action::Scale { replicas } => {
            let services = names(replicas.keys().cloned().collect())?;
            Prepared::Request(Request::Scale(services.into_iter().zip(replicas.into_values()).collect()))
        }
        v1::Action::Restart { services } => Prepared::Request(Request::Restart(names(services)?)),
        v1::Action::Stop { services } => Prepared::Request(Request::Stop(names(services)?)),
        v1::Action::Start { services } => Prepared::Request(Request::Start(names(services)?)),
    })
}

async fn prepare_up(
    shared: &Shared,
    key: &AppKey,
    mut spec: AppSpec,
    pull: bool,
    built: &BTreeMap<String, Image>,
) -> Answer<Prepared> {
    if spec.name != key.name {
        return Err(Failure::invalid(format!(
            "the file is of app `{}`, the request of app `{}`",
            spec.name, key.name
        )));
    }
    let mut files = BTreeMap::new();
    for (name, file) in spec.configs.iter_mut().chain(spec.secrets.iter_mut()) {
        take_content(shared, key, name, file, &mut files)?;
    }
    let mut known = BTreeMap::<ResolveImage, Answer<Image>>::new();
    let (mut images, mut missing) = (BTreeMap::new(), Vec::new());
    let mut warnings = engine::choose_ports(&shared.state.read().world, key, &mut spec);
    for (name, service) in &spec.services {
        if let Some(image) = built.get(name.as_str()) {
            if image.reference != service.image || image.built.is_none() {
                return Err(Failure::invalid(format!(
                    "the image of service {name} is not the one that was built"
                )));
            }
            images.insert(name.clone(), image.clone());
            continue;
        }
        let pinned = {
            let inner = shared.state.read();
            engine::pinned_image(&inner.world, key, name, service, shared.now()).cloned()
        };
        if let Some(image) = pinned.filter(|_| !pull) {
            images.insert(name.clone(), image);
            continue;
        }
        let wish = ResolveImage {
            reference: service.image.clone(),
            refresh: match service.pull_policy {
                PullPolicy::Always | PullPolicy::Refresh { .. } => true,
                PullPolicy::Missing | PullPolicy::Never => pull,
            },
            offline: service.pull_policy == PullPolicy::Never,
        };
        if !known.contains_key(&wish) {
            let found = resolve(shared, &wish).await;
            known.insert(wish.clone(), found);
        }
        match &known[&wish] {
            Ok(image) => {
                if image.digest.is_none() {
                    warnings.push(format!(
                        "image {} is known to engines only: nodes get exactly this build from each other",
                        service.image
                    ));
                }
                images.insert(name.clone(), image.clone());
            }
            Err(Failure(problem)) => {
                let message = format!("service {name}: {}", problem.message);
                missing.push(v1::Refusal { message, hint: problem.hint.clone() });
                images.insert(name.clone(), Image::named(service.image.clone()));
            }
        }
    }
    warnings.dedup();
    Ok(Prepared::Up {
        spec: Box::new(spec),
        images,
        files,
        pins: Pins::default(),
        missing,
        warnings,
        route_files: route_files::Findings::default(),
        rollback_of: None,
    })
}

/// The app of an earlier release, with exactly its images: none is looked up, but those that nothing runs must still be to be had.
async fn prepare_rollback(shared: &Shared, key: &AppKey, to: Option<u64>) -> Answer<Prepared> {
    let (release, spec, mut warnings) = {
        let inner = shared.state.read();
        let app = find(&inner, key)?;
        let release = match to {
            Some(number) => releases::find(&inner, key, number)?,
            None => engine::rollback_target(&inner.world, app).ok_or_else(|| {
                Failure::new(
                    Code::Conflict,
                    format!("there is no other release of {} that was done", key.name),
                )
                .hint(format!("`wharf app history {}` lists those that are kept; `--to` names one", key.name))
            })?,
        };
        (release.clone(), engine::returned(&inner.world, release), files::gone(&inner, key, &release.spec))
    };
    if let Some(outcome) = release.outcome.as_ref().filter(|outcome| outcome.state != RolloutState::Done) {
        let why = if outcome.reason.is_empty() { String::new() } else { format!(": {}", outcome.reason) };
        warnings.push(format!(
            "release {} has never been done; it ended as {}{why}",
            release.number, outcome.state
        ));
    }
    let mut missing = Vec::new();
    for (name, image) in &release.images {
        let running = {
            let inner = shared.state.read();
            let tasks = inner.world.services_of(key).flat_map(|service| inner.world.tasks_of(&service.key));
            tasks.filter(|task| task.is_ready()).any(|task| {
                let revision = inner.world.revision_of(&task.service, task.generation);
                revision.is_some_and(|revision| views::pin(&revision.image) == views::pin(image))
            })
        };
        if running {
            continue;
        }
        if let Err(Failure(problem)) = still_there(shared, image).await {
            let message = format!("service {name}: {}", problem.message);
            missing.push(v1::Refusal { message, hint: problem.hint });
        }
    }
    Ok(Prepared::Up {
        spec: Box::new(spec),
        images: release.images,
        files: BTreeMap::new(),
        pins: Pins::default(),
        missing,
        warnings,
        route_files: route_files::Findings::default(),
        rollback_of: Some(release.number),
    })
}

/// Whether an image that was pinned can still be had: from its registry, or from a node.
async fn still_there(shared: &Shared, image: &Image) -> Answer<()> {
    match (&image.digest, &image.id) {
        (Some(digest), _) => {
            let wish = ResolveImage {
                reference: at_digest(&image.reference, digest),
                refresh: false,
                offline: false,
            };
            resolve(shared, &wish).await.map(drop)
        }
        (None, Some(id)) => builds::require_image(shared, &image.reference, id).await,
        (None, None) => Ok(()),
    }
}

/// A reference that names one image and no other: `mariadb@sha256:…` of `mariadb:11`.
fn at_digest(reference: &str, digest: &str) -> String {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        Some(_) | None => name,
    };
    format!("{repository}@{digest}")
}

/// Takes a config's or secret's content out of the specification; a digest that only servers can make stays.
fn take_content(
    shared: &Shared,
    app: &AppKey,
    name: &str,
    file: &mut FileSpec,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Answer<()> {
    file.version = None;
    if file.external {
        // Whose content is the environment's: it is looked up with each plan.
        return Ok(());
    }
    let Some(text) = file.content.take() else {
        let known = file.digest.as_ref().map(|digest| Key::File(app.clone(), digest.clone()));
        let known = known.is_some_and(|key| shared.state.read().revision_of(&key).is_some());
        return match known {
            true => Ok(()),
            false => Err(Failure::invalid(format!("the content of `{name}` is missing"))
                .hint("plan again from the file that has it")),
        };
    };
    let content = content(name, &text)?;
    let digest = shared.state.seal().digest(&content);
    file.digest = Some(digest.clone());
    files.insert(digest, content);
    Ok(())
}

/// The content of a config or secret, as a client sends it.
pub(super) fn content(name: &str, text: &str) -> Answer<Vec<u8>> {
    let content = BASE64
        .decode(text)
        .map_err(|_| Failure::invalid(format!("the content of `{name}` is not base64")))?;
    if content.len() > LARGEST_FILE {
        let (size, largest) = (content.len() >> 10, LARGEST_FILE >> 10);
        return Err(Failure::invalid(format!(
            "`{name}` has {size} KiB; a config or secret has at most {largest} KiB"
        ))
        .hint("keep large data in a volume or in the image"));
    }
    Ok(content)
}

/// Asks nodes what an image reference stands for: what a registry says counts more than what an engine happens to have.
async fn resolve(shared: &Shared, wish: &ResolveImage) -> Answer<Image> {
    let reference = &wish.reference;
    let nodes: Vec<_> = {
        let inner = shared.state.read();
        let ready = inner.world.nodes().filter(|node| node.state() == NodeState::Ready);
        ready.map(|node| (node.record.id, node.record.name.to_string())).collect()
    };
    let mut refusal = None;
    let mut local = None;
    for (node, name) in nodes.iter().take(NODES_ASKED) {
        let Ok(session) = shared.sessions.get(*node) else { continue };
        match session.resolve_image(wish).await {
            Ok(image) if image.digest.is_some() => return Ok(image),
            Ok(image) => {
                local.get_or_insert(image);
            }
            Err(error) => {
                let (message, hint) = match error.problem() {
                    Some(problem) => (problem.message.clone(), problem.hint.clone()),
                    None => (wharf_process::errors::chain(&error), error.hint()),
                };
                tracing::debug!(node = %name, image = reference, %message, "image not resolved");
                refusal.get_or_insert((message, hint));
            }
        }
    }
    if let Some(image) = local {
        return Ok(image);
    }
    Err(match refusal {
        Some((message, hint)) => {
            let failure = Failure::new(Code::Invalid, message);
            failure.hint(hint.unwrap_or_else(|| {
                "check the spelling, log in on the nodes if it is private, or load it on them with `docker load`".into()
            }))
        }
        None => Failure::new(Code::NodeUnreachable, format!("no node is ready to look up image {reference}"))
            .hint("`wharf node ls` shows the nodes; `wharf token create` prints the line that joins one"),
    })
}

impl Prepared {
    /// Pins what the app takes from its environment to what that has now.
    fn pin(&mut self, shared: &Shared, inner: &Inner, key: &AppKey) {
        match self {
            Self::Up { spec, pins, files, route_files, rollback_of, .. } => {
                *pins = match rollback_of {
                    None => Pins::pin(inner, key, spec),
                    Some(_) => Pins::keep(inner, key, spec),
                };
                let content = |digest: &str| {
                    let stored = || BASE64.decode(&**inner.world.file(digest)?).ok();
                    let pinned = || pins.content(shared, inner, digest).ok().flatten();
                    files.get(digest).cloned().or_else(stored).or_else(pinned)
                };
                *route_files = route_files::Findings::of(spec, content, shared.now());
                let authority = inner.acme.as_ref().is_some_and(|authority| authority.terms_agreed);
                route_files.look_for_authority(spec, authority);
                if rollback_of.is_some() {
                    // What it was before is better than what it is now, whatever has ended meanwhile.
                    route_files.allow();
                }
            }
            Self::Request(_) => {}
        }
    }

    /// What it would do now.
    fn plan(&self, inner: &Inner, key: &AppKey, by: &By, now: wharf_model::Timestamp) -> v1::Plan {
        let world = &inner.world;
        match self {
            Self::Up { spec, images, pins, missing, warnings, rollback_of, route_files, .. } => {
                let plan = match rollback_of {
                    None => engine::plan(world, key, spec, images),
                    Some(_) => engine::plan_return(world, key, spec, images),
                };
                let noop = plan.is_noop();
                let mut view = view(plan);
                view.warnings.extend(warnings.iter().chain(&route_files.warnings).cloned());
                // A service whose image was not found has said so already.
                view.refusals
                    .extend(pins.missing.iter().chain(missing).chain(&route_files.refusals).cloned());
                let latest = world.releases_of(key).last().map_or(0, |release| release.number.0);
                view.release = (!noop).then_some(latest + 1);
                view.rollback_of = rollback_of.map(|number| number.0);
                view
            }
            Self::Request(Request::Down { volumes }) => view(engine::plan_down(world, key, *volumes)),
            Self::Request(request) => {
                let changes = engine::request(world, key, request, by, now);
                let (operations, refusals) = match &changes {
                    Ok(changes) => (operations(inner, changes, request), Vec::new()),
                    Err(error) => (Vec::new(), vec![refusal(error)]),
                };
                v1::Plan {
                    environment: key.environment.to_string(),
                    app: key.name.to_string(),
                    fingerprint: format!("{request}@{}", world.app(key).map_or(0, |app| app.generation.0)),
                    release: None,
                    rollback_of: None,
                    operations,
                    warnings: Vec::new(),
                    refusals,
                }
            }
        }
    }

    /// One change of an app at a time; stopping, taking down and going back may always come in between.
    fn refuse_if_busy(&self, inner: &Inner, key: &AppKey, supersede: bool) -> Answer<()> {
        let Some(app) = inner.world.app(key) else { return Ok(()) };
        let patient = match self {
            Self::Up { rollback_of, .. } => rollback_of.is_none(),
            Self::Request(request) => match request {
                Request::Scale(_) | Request::Restart(_) | Request::Start(_) => true,
                Request::Stop(_) | Request::Down { .. } => false,
            },
        };
        if !patient || supersede || app.rollout.state.is_over() {
            return Ok(());
        }
        let holder = views::rollout(&app.rollout);
        let message = format!("{} is busy: {} by {} is under way", key.name, holder.what, holder.by);
        let mut failure =
            Failure::new(Code::Busy, message).hint("wait for it, or take its place with `--supersede`");
        failure.0.holder = Some(Box::new(holder));
        Err(failure)
    }

    /// What to write; an empty change if there is nothing to do.
    fn writes(
        &self,
        shared: &Shared,
        inner: &Inner,
        key: &AppKey,
        by: &By,
        note: &ReleaseNote,
    ) -> Answer<(Writes, v1::Applied)> {
        let (world, now) = (&inner.world, shared.now());
        let refused = |error: PlanRefusal| {
            let code = match error {
                PlanRefusal::NoApp { .. } | PlanRefusal::NoService { .. } => Code::NotFound,
                _ => Code::Conflict,
            };
            let v1::Refusal { message, hint } = refusal(&error);
            hint.into_iter().fold(Failure::new(code, message), |failure, hint| failure.hint(hint))
        };
        let mut writes = Writes::default();
        let changes = match self {
            Self::Up { spec, images, files, pins, missing, rollback_of, route_files, .. } => {
                let unfit = route_files.refusals.first();
                if let Some(refusal) = pins.missing.first().or(missing.first()).or(unfit) {
                    let failure = Failure::invalid(refusal.message.clone());
                    return Err(refusal.hint.iter().fold(failure, |failure, hint| failure.hint(hint)));
                }
                let digests = spec
                    .configs
                    .values()
                    .chain(spec.secrets.values())
                    .filter_map(|file| file.digest.as_ref());
                for digest in digests.collect::<BTreeSet<_>>() {
                    let place = Key::File(key.clone(), digest.clone());
                    if inner.revision_of(&place).is_some() {
                        // Contents that nothing refers to are removed: not this one, from now on.
                        writes.change = inner.expecting(writes.change, &place);
                        continue;
                    }
                    let pinned = pins.content(shared, inner, digest)?;
                    if let Some(content) = files.get(digest).or(pinned.as_ref()) {
                        let mut nonce = [0; 12];
                        rand::rng().fill_bytes(&mut nonce);
                        let sealed = shared.state.seal().seal(&place.to_string(), content, nonce);
                        writes.before.push((place, sealed));
                    }
                }
                writes.change = pins.hold(inner, key, writes.change);
                if takes_ports(world, key, spec) {
                    let ports = PortsRecord { app: key.clone() };
                    let bytes = encode(&Key::Ports, &ports);
                    writes.change =
                        inner.expecting(writes.change, &Key::Ports).put(Key::Ports.to_string(), bytes);
                }
                if engine::plan(world, key, spec, images).is_noop() {
                    Vec::new()
                } else {
                    let note = ReleaseNote { rollback_of: *rollback_of, ..note.clone() };
                    engine::noted_release(world, key, spec, images, by, &note, now).map_err(refused)?
                }
            }
            Self::Request(request) => engine::request(world, key, request, by, now).map_err(refused)?,
        };
        let current = world.app(key);
        if changes.is_empty() {
            let applied = v1::Applied {
                generation: current.map_or(0, |app| app.generation.0),
                release: current.map_or(0, |app| app.release.0),
            };
            return Ok((Writes::default(), applied));
        }
        if world.quota(&key.environment).is_some() {
            // Of two apps that would fit alone and not together the second sees the first.
            let place = Key::QuotaUse(key.environment.clone());
            let bytes = encode(&place, &QuotaUseRecord { app: key.clone() });
            writes.change = inner.expecting(writes.change, &place).put(place.to_string(), bytes);
        }
        let mut whole = Committer::whole(inner, now);
        let mut applied = v1::Applied { generation: 0, release: 0 };
        for change in changes {
            match &change {
                Change::PutRelease(release) => {
                    let key = Key::Release(release.app.clone(), release.number);
                    let bytes = encode(&key, release);
                    writes.before.push((key, bytes));
                    continue;
                }
                Change::PutRevision(revision) => {
                    let key = Key::Revision(revision.key.clone(), revision.generation);
                    let bytes = encode(&key, revision);
                    writes.before.push((key, bytes));
                    continue;
                }
                Change::PutApp(app) => {
                    applied = v1::Applied { generation: app.generation.0, release: app.release.0 };
                    let message = format!("{}: {} was asked for", key.name, app.rollout.what);
                    let subject = Subject { app: Some(key.clone()), ..Subject::default() };
                    whole.event_by(&mut RandomIds, EventKind::App, subject, message, Some(by.clone()));
                }
                _ => {}
            }
            whole.change(change, &mut RandomIds);
        }
        // One batch by construction.
        writes.change = whole.finish().into_iter().fold(writes.change, Batch::and);
        Ok((writes, applied))
    }
}

/// Whether a release wants a port or a route of gateways that the app has not had so far: then it depends on what other apps have.
fn takes_ports(world: &engine::World, app: &AppKey, wanted: &AppSpec) -> bool {
    let kept = world.services_of(app).filter(|service| !service.removed);
    let revisions = kept.filter_map(|service| world.revision_of(&service.key, service.generation));
    let has: BTreeSet<_> = revisions.flat_map(|revision| engine::claims(&revision.spec)).collect();
    wanted.services.values().flat_map(engine::claims).any(|claim| !has.contains(&claim))
}

fn refusal(error: &PlanRefusal) -> v1::Refusal {
    let text = error.to_string();
    match text.split_once("; hint: ") {
        Some((message, hint)) => v1::Refusal { message: message.to_owned(), hint: Some(hint.to_owned()) },
        None => v1::Refusal { message: text, hint: None },
    }
}

fn view(plan: engine::Plan) -> v1::Plan {
    v1::Plan {
        environment: plan.app.environment.to_string(),
        app: plan.app.name.to_string(),
        fingerprint: plan.fingerprint,
        release: None,
        rollback_of: None,
        operations: plan.operations.into_iter().map(views::operation).collect(),
        warnings: plan.warnings,
        refusals: plan.refusals.iter().map(refusal).collect(),
    }
}

/// What a request that is no release does to each service.
fn operations(inner: &Inner, changes: &[Change], request: &Request) -> Vec<v1::Operation> {
    let services = changes.iter().filter_map(|change| match change {
        Change::PutService(service) => Some(service),
        _ => None,
    });
    services
        .map(|after| {
            let before = inner.world.service(&after.key);
            let (change, reason) = match request {
                Request::Scale(_) => {
                    let from = before.map_or(0, |service| replicas(service));
                    let to = replicas(after);
                    (v1::Change::Update, format!("{from} -> {to} {}", if to == 1 { "task" } else { "tasks" }))
                }
                Request::Restart(_) => (v1::Change::Replace, "restart was asked for".into()),
                Request::Stop(_) => (v1::Change::Update, "its tasks stop; everything else stays".into()),
                Request::Start(_) => (v1::Change::Update, "its tasks start again".into()),
                Request::Down { .. } => (v1::Change::Remove, String::new()),
            };
            v1::Operation { change, kind: "service".into(), name: after.key.name.to_string(), reason }
        })
        .collect()
}

fn replicas(service: &ServiceRecord) -> u32 {
    match service.mode {
        wharf_model::Mode::Replicated { replicas } => replicas,
        wharf_model::Mode::Global => 0,
    }
}
