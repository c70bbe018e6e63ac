//! Images that are built here, and images on their way from node to node.
//!
//! - A build's context passes through to the node that [`choose_builder`] names, as a stream; nothing of it is kept here.
//! - A node gets an image from another node only if a task that is assigned to it runs that image.
//! - A node sends so many images at once; who asks for one more is told to ask again, and by then others have it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use axum::{Extension, Json as Plain, Router, body::Body, extract::State, response::Response, routing::post};
use futures::{StreamExt, stream};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use wharf_api::{
    transport::{
        LineReader, Peer, json_lines, lines,
        node::{AskNeeded, FetchImage, FindImage, FoundImage, NeededImages},
        wire,
    },
    v1::{self, BuildLine, Code},
};
use wharf_engine::{BuildWish, KnownImage, choose_builder, needed_images};
use wharf_model::{AppKey, AppName, BuildMark, Image, NodeId, NodeState, ServiceKey};
use wharf_process::errors::chain;

use super::{
    Shared, apps,
    extract::{Json, Path},
    failure::{Answer, Failure},
    nodes, require_user,
};
use crate::state::Inner;

/// Nodes asked at once whether they have an image.
const ASKED_AT_ONCE: usize = 16;
/// Images that a node sends at once.
const SENT_AT_ONCE: usize = 4;
/// Builds that are remembered.
const REMEMBERED: usize = 256;
/// How long a stream may be silent before it says that it is still there.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(15);
/// How long a client may be silent before it has said what it wants built.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What nodes do for others at the moment, by node.
#[derive(Debug, Default)]
pub struct Busy(Mutex<BTreeMap<NodeId, usize>>);

impl Busy {
    /// One more, until what is answered is dropped.
    fn begin(self: &Arc<Self>, node: NodeId) -> Underway {
        *self.0.lock().entry(node).or_default() += 1;
        Underway { busy: Arc::clone(self), node }
    }
    fn all(&self) -> BTreeMap<NodeId, usize> {
        self.0.lock().clone()
    }
    fn of(&self, node: NodeId) -> usize {
        self.0.lock().get(&node).copied().unwrap_or_default()
    }
}

/// Something a node does for others.
struct Underway {
    busy: Arc<Busy>,
    node: NodeId,
}
impl Drop for Underway {
    fn drop(&mut self) {
        let mut busy = self.busy.0.lock();
        if let Some(count) = busy.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.node);
            }
        }
    }
}

/// What is known of builds of an app's services: what was built from exactly this need not be built again.
#[utoipa::path(post, path = "/v1/apps/{environment}/{app}/builds", params(("environment" = String, Path), ("app" = String, Path)),
    request_body = v1::BuildsRequest, responses((status = 200, body = v1::Builds)))]
pub(super) async fn known(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Json(wish): Json<v1::BuildsRequest>,
) -> Answer<Json<v1::Builds>> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let inner = shared.state.read();
    let services = wish.services.into_iter().map(|(service, mark)| {
        let mut known = known_build(&inner, &key, &service, &mark);
        if known.image.is_none() {
            known.image = shared.built.find(&key, &service, &mark);
        }
        (service, known)
    });
    Ok(Json(v1::Builds { services: services.collect() }))
}

/// The image of the current release counts most; after it the newest of the app, in whichever environment.
fn known_build(inner: &Inner, app: &AppKey, service: &str, mark: &BuildMark) -> v1::KnownBuild {
    let world = &inner.world;
    let current =
        service.parse().ok().and_then(|name| current_image(inner, &ServiceKey { app: app.clone(), name }));
    let is_it =
        |image: &&Image| !image.is_unbuilt() && image.built.as_ref().is_some_and(|built| built.is_same(mark));
    let elsewhere = || {
        let apps = world.apps().filter(|other| other.key.name == app.name);
        let releases = apps.flat_map(|other| world.releases_of(&other.key));
        let images = releases.filter_map(|release| {
            let (_, image) = release.images.iter().find(|(name, _)| name.as_str() == service)?;
            Some((release.created_at, image))
        });
        images.filter(|(_, image)| is_it(image)).max_by_key(|(at, _)| *at).map(|(_, image)| image)
    };
    let image = current.as_ref().filter(is_it).or_else(elsewhere).cloned();
    v1::KnownBuild { image, current: current.and_then(|image| image.built) }
}

fn current_image(inner: &Inner, service: &ServiceKey) -> Option<Image> {
    let record = inner.world.service(service).filter(|record| !record.removed)?;
    Some(inner.world.revision_of(service, record.generation)?.image.clone())
}

/// Builds the image of a service on a node. The body is a [`v1::BuildRequest`] in one line, and after it the context as a tar archive.
#[utoipa::path(post, path = "/v1/apps/{environment}/{app}/builds/{service}",
    params(("environment" = String, Path), ("app" = String, Path), ("service" = String, Path)),
    request_body(content = v1::BuildRequest, content_type = "application/octet-stream"),
    responses((status = 200, body = v1::BuildLine, content_type = "application/x-ndjson"), (status = 503, body = v1::Problem)))]
pub(super) async fn build(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, service)): Path<(String, String, String)>,
    body: Body,
) -> Answer<Response> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let (wish, context) = lines::first_line::<v1::BuildRequest, _>(body, PATIENCE)
        .await
        .map_err(|error| Failure::invalid(format!("cannot read what is to be built: {}", chain(&error))))?;
    let (node, name) = choose(&shared, &key, &service, &wish)?;
    let underway = shared.builds.begin(node);
    tracing::info!(app = %key, service, node = %name, image = wish.reference, "build begins");
    let unreadable = |error: serde_json::Error| Failure::internal("cannot pass the build on", &error);
    let request = lines::after_line(&wish, context).map_err(unreadable)?;
    let session = shared.sessions.get(node)?;
    let answer = session.build(request).await?;
    // Read and passed on line by line: what was built is remembered also if the client hangs up before it has deployed it.
    let silence = session.remote().timing().stream_silence();
    let reader = LineReader::<BuildLine>::new(answer.into_body(), silence);
    let image = Image { built: wish.mark, ..Image::named(wish.reference) };
    let remembered = Arc::clone(&shared);
    let by = name.clone();
    let lines_of_node = reader.into_stream().inspect(move |line| {
        if let Ok(BuildLine::Built { id }) = line
            && let Some(mark) = &image.built
        {
            let mark = BuildMark { by: Some(by.clone()), ..mark.clone() };
            let built = Image { id: Some(id.clone()), built: Some(mark), ..image.clone() };
            remembered.built.remember(&key, &service, built);
        }
    });
    let said = stream::once(async move { Ok(BuildLine::Node(name)) }).chain(lines_of_node);
    Ok(streamed(json_lines(said, KEEPALIVE), underway, lines::CONTENT_TYPE))
}

/// What was built lately and may have no release yet. Lost with the process: then it is built again, from the node's cache.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<(AppName, String, Image)>>);

impl Recent {
    fn remember(&self, app: &AppKey, service: &str, image: Image) {
        let mut recent = self.0.lock();
        recent.truncate(REMEMBERED - 1);
        recent.push_front((app.name.clone(), service.to_owned(), image));
    }
    fn find(&self, app: &AppKey, service: &str, mark: &BuildMark) -> Option<Image> {
        let recent = self.0.lock();
        let found = recent.iter().find(|(name, other, image)| {
            *name == app.name
                && other == service
                && image.built.as_ref().is_some_and(|built| built.is_same(mark))
        });
        found.map(|(.., image)| image.clone())
    }
}

/// An answer that keeps a node busy until it is read or dropped.
fn streamed(body: wharf_api::transport::Body, underway: Underway, kind: &'static str) -> Response {
    let body = body.map_frame(move |frame| {
        let _busy = &underway;
        frame
    });
    let mut response = Response::new(Body::new(body));
    response
        .headers_mut()
        .insert(axum::http::header::CONTENT_TYPE, axum::http::HeaderValue::from_static(kind));
    response
}

fn choose(shared: &Shared, app: &AppKey, service: &str, wish: &v1::BuildRequest) -> Answer<(NodeId, String)> {
    let inner = shared.state.read();
    let node = match &wish.node {
        Some(name) => Some(nodes::find(&inner, name)?.record.id),
        None => None,
    };
    let last =
        service.parse().ok().and_then(|name| current_image(&inner, &ServiceKey { app: app.clone(), name }));
    let wanted = BuildWish {
        platform: wish.options.platform.clone(),
        node,
        last: last.and_then(|image| image.built).and_then(|built| built.by),
        connected: shared.sessions.connected(),
        busy: shared.builds.all(),
    };
    let chosen = choose_builder(&inner.world, &wanted)
        .map_err(|error| Failure::new(Code::Unavailable, error.to_string()).hint(error.hint()))?;
    Ok((chosen, inner.world.node_name(chosen)))
}

/// What nodes ask for.
pub(super) fn node_routes() -> Router<Shared> {
    Router::new()
        .route(wire::FIND_IMAGE, post(find))
        .route(wire::FETCH_IMAGE, post(fetch))
        .route(wire::NEEDED_IMAGES, post(needed))
}

/// Says which of a node's images somebody needs: what is left over may go.
async fn needed(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Plain(wish): Plain<AskNeeded>,
) -> Answer<Plain<NeededImages>> {
    if peer.node().is_none() {
        return Err(Failure::new(Code::Forbidden, "only nodes ask which of their images are needed"));
    }
    let known: Vec<_> = wish
        .images
        .into_iter()
        .map(|image| KnownImage { id: image.id, names: image.names, digests: image.digests })
        .collect();
    let inner = shared.state.read();
    Ok(Plain(NeededImages { needed: needed_images(&inner.world, &known) }))
}

/// The node that asks, if a task that is assigned to it runs this image.
fn require_need(shared: &Shared, peer: &Peer, id: &str) -> Answer<NodeId> {
    let forbidden = |message: &str| Err(Failure::new(Code::Forbidden, message));
    let Some(node) = peer.node() else { return forbidden("only nodes ask for images of other nodes") };
    let inner = shared.state.read();
    let needed = inner.world.tasks_on(node).any(|task| {
        let revision = inner.world.revision_of(&task.service, task.generation);
        revision.is_some_and(|revision| revision.image.id.as_deref() == Some(id))
    });
    if needed { Ok(node) } else { forbidden("no task of this node runs this image") }
}

/// Says which node has an image.
async fn find(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Plain(wish): Plain<FindImage>,
) -> Answer<Plain<FoundImage>> {
    let asking = require_need(&shared, &peer, &wish.id)?;
    let mut candidates = candidates(&shared, Some(asking), &wish.id);
    let mut full = None;
    while !candidates.is_empty() {
        let rest = candidates.split_off(candidates.len().min(ASKED_AT_ONCE));
        let asked = stream::iter(candidates).map(|node| {
            let (shared, id) = (Arc::clone(&shared), wish.id.clone());
            async move { Some((node, shared.sessions.get(node).ok()?.image(&id).await.ok()?)) }
        });
        let found: Vec<_> =
            asked.buffer_unordered(ASKED_AT_ONCE).filter_map(std::future::ready).collect().await;
        let least = found.into_iter().min_by_key(|(node, _)| (shared.transfers.of(*node), *node));
        match least {
            Some((node, _)) if shared.transfers.of(node) >= SENT_AT_ONCE => full = Some(node),
            Some((node, image)) => {
                let name = shared.state.read().world.node_name(node);
                return Ok(Plain(FoundImage { image, node, name }));
            }
            None => {}
        }
        candidates = rest;
    }
    Err(match full {
        Some(node) => {
            let name = shared.state.read().world.node_name(node);
            let message =
                format!("the image {} is on its way from {name} to other nodes first", wish.reference);
            Failure::new(Code::Unavailable, message)
        }
        None => nobody_has(&shared.state.read(), &shared.sessions.connected(), &wish),
    })
}

/// Refuses unless a node that is connected has an image that no registry knows.
pub(super) async fn require_image(shared: &Shared, reference: &str, id: &str) -> Answer<()> {
    let mut asked = stream::iter(candidates(shared, None, id))
        .map(|node| {
            let shared = Arc::clone(shared);
            async move { shared.sessions.get(node).ok()?.image(id).await.ok() }
        })
        .buffer_unordered(ASKED_AT_ONCE);
    while let Some(found) = asked.next().await {
        if found.is_some() {
            return Ok(());
        }
    }
    let wish = FindImage { id: id.to_owned(), reference: reference.to_owned() };
    Err(nobody_has(&shared.state.read(), &shared.sessions.connected(), &wish))
}

/// The nodes that may have an image, those first whose tasks run it; not the one that asks.
fn candidates(shared: &Shared, asking: Option<NodeId>, id: &str) -> Vec<NodeId> {
    let inner = shared.state.read();
    let running = running(&inner, id);
    let connected = shared.sessions.connected();
    let mut nodes: Vec<_> = connected.into_iter().filter(|node| Some(*node) != asking).collect();
    nodes.sort_by_key(|node| (!running.contains(node), shared.transfers.of(*node), *node));
    nodes
}

fn running(inner: &Inner, id: &str) -> BTreeSet<NodeId> {
    let tasks = inner.world.tasks().filter(|task| task.status.image_id.as_deref() == Some(id));
    tasks.filter_map(|task| task.node).collect()
}

/// Why an image cannot be had, and what brings it back.
fn nobody_has(inner: &Inner, connected: &BTreeSet<NodeId>, wish: &FindImage) -> Failure {
    let world = &inner.world;
    let built = world
        .apps()
        .flat_map(|app| world.releases_of(&app.key))
        .flat_map(|release| release.images.values())
        .find(|image| image.id.as_ref() == Some(&wish.id))
        .and_then(|image| image.built.clone());
    let had = running(inner, &wish.id);
    let away = world.nodes().filter(|node| {
        let is_away = !connected.contains(&node.record.id) || node.state() != NodeState::Ready;
        let by = built.as_ref().and_then(|built| built.by.as_deref());
        is_away && (had.contains(&node.record.id) || by == Some(node.record.name.as_str()))
    });
    let away: Vec<_> = away.map(|node| node.record.name.to_string()).collect();
    let short = wish.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
    let mut message = format!("no node that is connected has the image {} ({short})", wish.reference);
    if !away.is_empty() {
        let is = if away.len() == 1 { "is" } else { "are" };
        message.push_str(&format!("; {} had it and {is} away", away.join(", ")));
    }
    let again = match built {
        Some(_) => "build it again with `wharf up --build`".to_owned(),
        None => format!("load it on any node: `docker save {} | ssh NODE docker load`", wish.reference),
    };
    let hint = match away.as_slice() {
        [] => again,
        away => format!("bring {} back, or {again}", away.join(" or ")),
    };
    Failure::new(Code::Unavailable, message).hint(hint)
}

/// Passes an image on from the node that has it.
async fn fetch(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Plain(wish): Plain<FetchImage>,
) -> Answer<Response> {
    let to = require_need(&shared, &peer, &wish.id)?;
    let session = shared.sessions.get(wish.node)?;
    let underway = shared.transfers.begin(wish.node);
    tracing::info!(image = wish.id, from = %wish.node, %to, skip = wish.skip, "image goes from node to node");
    let answer = session.image_archive(&wish.id, wish.skip).await?;
    let body = answer.into_body().map_err(Into::into).boxed_unsync();
    Ok(streamed(body, underway, "application/x-tar"))
}
