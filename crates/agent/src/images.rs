//! Images that need no registry: built by this node's engine, and brought from one node's engine to another's.
//!
//! - An image is what its identifier says, a hash of its content: what arrives is believed only if the engine then has that identifier.
//! - An archive goes from engine to engine as a stream; nothing is kept on the way, and whoever reads too slowly slows the writer.
//! - Layers that the receiving engine has do not travel. Where that turns out wrong, the whole image does.
//! - What is dropped is cut off: a build whose reader hangs up is cancelled by the engine.

mod archive;
mod build;
mod engine;
mod session;
mod trace;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream::BoxStream};
use http::Method;
use http_body_util::{BodyExt, BodyStream};
use parking_lot::Mutex;
use serde::Deserialize;
use wharf_api::{
    transport::{
        Body, CallError, empty,
        node::{AskNeeded, FetchImage, FindImage, FoundImage, ImageFacts, NeededImages},
    },
    v1::{BuildLine, BuildRequest, Problem},
};
use wharf_model::{Bytes as Size, Image, Progress};
use wharf_process::errors::chain;

use self::{
    archive::{Filter, layer_entries, shared_layers},
    engine::{Call, Driven, read, send},
    session::{Answered, Answers},
};
use crate::{
    housekeeping::{self, Needed},
    registry::RegistryLogins,
    runtime::{NodeImage, ProgressSink, Result, RuntimeError, spec::ApiVersion},
};

/// What an engine answers from memory.
const QUICK: Duration = Duration::from_secs(30);
/// Until an engine begins to answer: it writes an archive to its disk before it sends it, and reads a whole context first.
const SLOW: Duration = Duration::from_secs(3600);
/// A stream from another node that brings nothing for so long has stalled.
const SILENCE: Duration = Duration::from_secs(600);
/// Images whose layers' entries are remembered.
const REMEMBERED: usize = 64;
const TAR: &str = "application/x-tar";

/// Where images come from that no registry has: other nodes, through a server.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// A node that has an image.
    async fn find(&self, wish: &FindImage) -> Result<FoundImage, CallError>;
    /// The image from that node, as an archive.
    async fn fetch(&self, wish: &FetchImage) -> Result<Body, CallError>;
    /// Which of this node's images somebody needs.
    async fn needed(&self, wish: &AskNeeded) -> Result<NeededImages, CallError>;
}

/// The images of this node's engine, and the way to those of others.
pub struct Images {
    socket: Option<PathBuf>,
    logins: RegistryLogins,
    source: OnceLock<Arc<dyn ImageSource>>,
    /// The API version the engine speaks, once it was asked.
    api: Mutex<Option<ApiVersion>>,
    /// The names of the layers' entries in archives, by image.
    entries: Mutex<BTreeMap<String, Arc<Vec<String>>>>,
}
impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    size: u64,
    #[serde(default, rename = "RootFS")]
    root: Root,
}
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Root {
    #[serde(default)]
    layers: Vec<String>,
}
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DiskUsage {
    #[serde(default)]
    build_cache: Option<Vec<CachePart>>,
}
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CachePart {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    in_use: bool,
    #[serde(default)]
    shared: bool,
}
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    api_version: String,
}

impl Images {
    /// Those of the engine behind a socket. Without one nothing is built and nothing fetched.
    pub fn new(socket: Option<PathBuf>, logins: RegistryLogins) -> Self {
        Self { socket, logins, source: OnceLock::new(), api: Mutex::default(), entries: Mutex::default() }
    }

    /// Where to get images from that this engine lacks. Only the first call counts.
    pub fn connect(&self, source: Arc<dyn ImageSource>) {
        // A second session of the same node would say the same.
        let _ = self.source.set(source);
    }

    /// An image that the engine has, by its identifier.
    pub async fn facts(&self, id: &str) -> Result<Option<ImageFacts>> {
        let path = format!("/v{}/images/{id}/json", self.api().await?);
        match self.ask::<Inspected>(path, "look for the image").await {
            Ok(found) if found.id == id => {
                Ok(Some(ImageFacts { id: found.id, layers: found.root.layers, size: Size(found.size) }))
            }
            // A part of an identifier finds an image, too; it is not that one.
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An image as `docker load` takes it, without its lowest `skip` layers.
    pub async fn archive(&self, id: &str, skip: usize) -> Result<BoxStream<'static, Result<Bytes>>> {
        let entries = if skip > 0 { self.layer_entries(id).await? } else { Arc::default() };
        let dropped = entries.iter().take(skip).cloned().collect();
        let body = self.export(id).await?;
        let begun = Some((BodyStream::new(body), Filter::new(dropped)));
        let id = id.to_owned();
        let pieces = futures::stream::unfold(begun, move |state| {
            let id = id.clone();
            async move {
                let (mut body, mut filter) = state?;
                let mut out = Vec::new();
                let fed = match body.next().await {
                    None => {
                        tracing::debug!(image = id, skip, saved = filter.saved, "image sent");
                        return None;
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => filter.feed(data, &mut out).map_err(|error| error.to_string()),
                        Err(_) => Ok(()),
                    },
                    Some(Err(error)) => Err(error.to_string()),
                };
                match fed {
                    Ok(()) => Some((out.into_iter().map(Ok).collect::<Vec<_>>(), Some((body, filter)))),
                    Err(error) => {
                        let error =
                            RuntimeError::temporary(format!("the archive of {id} broke off: {error}"));
                        Some((vec![Err(error)], None))
                    }
                }
            }
        });
        Ok(pieces.flat_map(futures::stream::iter).boxed())
    }

    /// Makes sure that the engine has an image that no registry has: brings it from another node if need be. Whether it did.
    ///
    /// # Errors
    /// Temporary if no node that can be reached has it: one of them may come back.
    pub async fn bring(&self, image: &Image, progress: ProgressSink<'_>) -> Result<bool> {
        let Some(id) = image.id.as_ref().filter(|_| image.digest.is_none() && self.socket.is_some()) else {
            return Ok(false);
        };
        if self.facts(id).await?.is_some() {
            return Ok(false);
        }
        let Some(source) = self.source.get() else {
            return Err(RuntimeError::temporary(format!(
                "this node lacks the image {} and waits for a server to say who has it",
                image.reference
            )));
        };
        let wish = FindImage { id: id.clone(), reference: image.reference.clone() };
        let found = source.find(&wish).await.map_err(|error| unavailable(image, &error))?;
        let mine = self.layers_here().await?;
        let skip = shared_layers(&found.image.layers, mine.iter().map(Vec::as_slice));
        let first = self.transfer(source.as_ref(), image, &found, skip, progress).await;
        match first {
            Ok(()) => {}
            // The engine keeps layers in a way that this does not know: then it gets them all.
            Err(error) if skip > 0 && !error.is_unreachable() => {
                tracing::warn!(image = image.reference, %error, "image fetched whole after all");
                self.transfer(source.as_ref(), image, &found, 0, progress).await?;
            }
            Err(error) => return Err(error),
        }
        self.tag(id, &image.reference).await?;
        Ok(true)
    }

    /// Which of the engine's images somebody in the cluster needs, and who; or why no server has said so.
    pub(crate) async fn needed(&self, images: &[NodeImage]) -> Needed {
        let source = self.source.get().ok_or_else(|| "none has been reached yet".to_owned())?;
        let answer = source.needed(&AskNeeded { images: housekeeping::asked(images) }).await;
        answer.map(|answer| answer.needed).map_err(|error| match error.problem() {
            Some(problem) => problem.message.clone(),
            None => chain(&error),
        })
    }

    /// The bytes that builds have left in the engine and that nothing uses; 0 without an engine that builds.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub(crate) async fn build_cache(&self) -> Result<u64> {
        if self.socket.is_none() {
            return Ok(0);
        }
        // Newer engines are told what is wanted; older ones tell of everything.
        let path = format!("/v{}/system/df?type=build-cache", self.api().await?);
        let usage: DiskUsage = self.ask_within(path, "measure what builds have left", SLOW).await?;
        let idle =
            usage.build_cache.unwrap_or_default().into_iter().filter(|part| !part.in_use && !part.shared);
        Ok(idle.map(|part| part.size).sum())
    }

    /// Removes what builds have left, and says how many bytes that were.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub(crate) async fn remove_build_cache(&self) -> Result<u64> {
        let call = Call {
            method: Method::POST,
            path: format!("/v{}/build/prune?all=true", self.api().await?),
            content_type: "application/json",
            registries: None,
            body: empty(),
        };
        const WHAT: &str = "remove what builds have left";
        let answer = read(send(self.socket()?, call, WHAT, SLOW).await?.into_body(), WHAT).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        Ok(answer["SpaceReclaimed"].as_u64().unwrap_or_default())
    }

    async fn transfer(
        &self,
        source: &dyn ImageSource,
        image: &Image,
        found: &FoundImage,
        skip: usize,
        progress: ProgressSink<'_>,
    ) -> Result<()> {
        let began = tokio::time::Instant::now();
        let id = &found.image.id;
        let wish = FetchImage { id: id.clone(), node: found.node, skip };
        let body = source.fetch(&wish).await.map_err(|error| unavailable(image, &error))?;
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let pieces = BodyStream::new(body).map(move |frame| {
            let data = frame?.into_data().unwrap_or_default();
            counter.fetch_add(data.len() as u64, Ordering::Relaxed);
            Ok(data)
        });
        let mut loading = std::pin::pin!(self.load(build::body(pieces)));
        let mut moved = (0, tokio::time::Instant::now());
        let mut beat = tokio::time::interval(Duration::from_millis(300));
        loop {
            tokio::select! {
                // Not dropped: polled again until it ends.
                loaded = &mut loading => {
                    loaded?;
                    break;
                }
                // Cancel-safe: a tick that is not taken is due.
                _ = beat.tick() => {
                    let current = received.load(Ordering::Relaxed);
                    if current > moved.0 {
                        moved = (current, tokio::time::Instant::now());
                    } else if moved.1.elapsed() > SILENCE {
                        return Err(RuntimeError::temporary(format!(
                            "the image {} from {} has stalled", image.reference, found.name
                        )));
                    }
                    progress(Progress { current, total: found.image.size.0.max(current) });
                }
            }
        }
        if self.facts(id).await?.is_none() {
            return Err(RuntimeError::temporary(format!(
                "the image {} from {} is another one here: it should be {id}",
                image.reference, found.name
            ))
            .with_hint(
                "engines that keep images in containerd's store name them otherwise: use one kind of store on all nodes, or a registry",
            ));
        }
        tracing::info!(
            image = image.reference, from = found.name, skip, layers = found.image.layers.len(),
            bytes = received.load(Ordering::Relaxed), took = ?began.elapsed(), "image fetched"
        );
        Ok(())
    }

    /// Builds an image: what the builder says, and how it ended.
    pub fn build(self: &Arc<Self>, wish: BuildRequest, context: Body) -> BoxStream<'static, BuildLine> {
        let images = Arc::clone(self);
        let begun = async move {
            match images.prepare(&wish).await {
                Err(problem) => futures::stream::iter([BuildLine::Failed(problem)]).boxed(),
                Ok((chosen, path, session)) => {
                    let builder = futures::stream::iter([BuildLine::Builder(chosen.as_str().to_owned())]);
                    let rest = async move {
                        match images.begin_build(path, context).await {
                            Ok(answer) => build::lines(answer).boxed(),
                            Err(error) => futures::stream::iter([BuildLine::Failed(problem(&error))]).boxed(),
                        }
                    };
                    let said = builder.chain(futures::stream::once(rest).flatten()).boxed();
                    Answered { said, session }.boxed()
                }
            }
        };
        futures::stream::once(begun).flatten().boxed()
    }

    /// By what it is built, how the engine is asked, and what answers the builder's own questions.
    async fn prepare(
        &self,
        wish: &BuildRequest,
    ) -> Result<(build::Chosen, String, Option<BoxFuture<'static, ()>>), Problem> {
        let api = self.api().await.map_err(|error| problem(&error))?;
        let chosen = build::choose(wish, api)?;
        let answers = match chosen {
            // It gets the logins with the request, and has no secrets.
            build::Chosen::Classic => None,
            build::Chosen::Buildkit => Answers::new(&wish.options.secrets, self.logins.all().await),
        };
        let Some(answers) = answers else { return Ok((chosen, build::path(wish, chosen, api, None), None)) };
        let id = format!("{:032x}", rand::random::<u128>());
        let socket = self.socket().map_err(|error| problem(&error))?;
        let session = session::begin(socket, &id, answers).await.map_err(|error| problem(&error))?;
        Ok((chosen, build::path(wish, chosen, api, Some(&id)), Some(session)))
    }

    async fn begin_build(&self, path: String, context: Body) -> Result<Driven> {
        let logins: BTreeMap<_, _> = self
            .logins
            .all()
            .await
            .into_iter()
            .map(|login| {
                let entry = serde_json::json!({
                    "username": login.username, "password": login.password,
                    "identitytoken": login.identity_token, "serveraddress": login.server,
                });
                (login.server, entry)
            })
            .collect();
        let registries = serde_json::to_vec(&logins).ok().filter(|_| !logins.is_empty());
        let call = Call {
            method: Method::POST,
            path,
            content_type: TAR,
            registries: registries.map(|text| URL_SAFE.encode(text)),
            body: context,
        };
        let answer = send(self.socket()?, call, "build the image", SLOW).await.map_err(|error| {
            // What the engine refuses at once, such as a Dockerfile it cannot read, is no failure of the engine.
            let text = error.to_string();
            match text.strip_prefix("cannot build the image: ") {
                Some(said) if !error.is_unreachable() => RuntimeError::fatal(said),
                _ => error,
            }
        })?;
        Ok(answer.into_body())
    }

    /// The layers of every image of the engine.
    async fn layers_here(&self) -> Result<Vec<Vec<String>>> {
        let api = self.api().await?;
        let images: Vec<Listed> = self.ask(format!("/v{api}/images/json"), "list images").await?;
        let mut layers = Vec::new();
        for image in images {
            layers.extend(self.facts(&image.id).await?.map(|facts| facts.layers));
        }
        Ok(layers)
    }

    /// The names of the layers' entries in an image's archive: found once by reading it to its end.
    async fn layer_entries(&self, id: &str) -> Result<Arc<Vec<String>>> {
        if let Some(known) = self.entries.lock().get(id) {
            return Ok(Arc::clone(known));
        }
        let damaged = |error: &dyn std::fmt::Display| {
            RuntimeError::temporary(format!("cannot read the archive of {id}: {error}"))
        };
        let mut body = BodyStream::new(self.export(id).await?);
        let mut filter = Filter::new(Default::default());
        let mut out = Vec::new();
        while let Some(frame) = body.try_next().await.map_err(|error| damaged(&error))? {
            if let Ok(data) = frame.into_data() {
                filter.feed(data, &mut out).map_err(|error| damaged(&error))?;
                out.clear();
            }
        }
        let found = layer_entries(filter.manifest().unwrap_or_default()).map_err(|error| damaged(&error))?;
        let found = Arc::new(found);
        let mut entries = self.entries.lock();
        while entries.len() >= REMEMBERED {
            entries.pop_first();
        }
        entries.insert(id.to_owned(), Arc::clone(&found));
        Ok(found)
    }

    async fn export(&self, id: &str) -> Result<Driven> {
        let call = Call {
            method: Method::GET,
            path: format!("/v{}/images/{id}/get", self.api().await?),
            content_type: TAR,
            registries: None,
            body: empty(),
        };
        Ok(send(self.socket()?, call, "export the image", SLOW).await?.into_body())
    }

    async fn load(&self, archive: Body) -> Result<()> {
        let call = Call {
            method: Method::POST,
            path: format!("/v{}/images/load?quiet=1", self.api().await?),
            content_type: TAR,
            registries: None,
            body: archive,
        };
        let answer =
            read(send(self.socket()?, call, "load the image", SLOW).await?.into_body(), "load the image")
                .await?;
        let failed = answer.split(|byte| *byte == b'\n').find_map(|line| {
            let message: serde_json::Value = serde_json::from_slice(line).ok()?;
            message["error"].as_str().map(str::to_owned)
        });
        match failed {
            Some(error) => Err(RuntimeError::temporary(format!("the engine cannot load the image: {error}"))),
            None => Ok(()),
        }
    }

    /// Gives an image its name, as a build does: an older image loses it.
    async fn tag(&self, id: &str, reference: &str) -> Result<()> {
        if reference.contains('@') {
            return Ok(());
        }
        let after_slash = reference.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match reference[after_slash..].find(':') {
            Some(colon) => (&reference[..after_slash + colon], &reference[after_slash + colon + 1..]),
            None => (reference, "latest"),
        };
        let call = Call {
            method: Method::POST,
            path: format!("/v{}/images/{id}/tag?repo={repository}&tag={tag}", self.api().await?),
            content_type: "application/json",
            registries: None,
            body: empty(),
        };
        send(self.socket()?, call, "tag the image", QUICK).await.map(drop)
    }

    /// What the engine answers to a question.
    async fn ask<T: serde::de::DeserializeOwned>(&self, path: String, what: &str) -> Result<T> {
        self.ask_within(path, what, QUICK).await
    }

    async fn ask_within<T: serde::de::DeserializeOwned>(
        &self,
        path: String,
        what: &str,
        patience: Duration,
    ) -> Result<T> {
        let call = Call {
            method: Method::GET,
            path,
            content_type: "application/json",
            registries: None,
            body: empty(),
        };
        let answer = send(self.socket()?, call, what, patience).await?;
        let content = read(answer.into_body(), what).await?;
        serde_json::from_slice(&content)
            .map_err(|error| RuntimeError::fatal(format!("cannot {what}: {}", chain(&error))))
    }

    async fn api(&self) -> Result<ApiVersion> {
        if let Some(api) = *self.api.lock() {
            return Ok(api);
        }
        let version: Version = self.ask("/version".to_owned(), "ask Docker Engine for its version").await?;
        let api = ApiVersion::parse(&version.api_version).ok_or_else(|| {
            RuntimeError::fatal(format!("Docker Engine gives `{}` as its API version", version.api_version))
        })?;
        *self.api.lock() = Some(api);
        Ok(api)
    }

    fn socket(&self) -> Result<&PathBuf> {
        self.socket.as_ref().ok_or_else(|| RuntimeError::fatal("this node has no engine that builds"))
    }
}

/// Why an image cannot be had from another node now; a server's own words are passed on.
fn unavailable(image: &Image, error: &CallError) -> RuntimeError {
    match error.problem() {
        Some(problem) => {
            let failed = RuntimeError::temporary(problem.message.clone());
            problem.hint.iter().fold(failed, |failed, hint| failed.with_hint(hint))
        }
        None => RuntimeError::temporary(format!(
            "this node lacks the image {}, and no server can be asked who has it: {}",
            image.reference,
            chain(error)
        )),
    }
}

fn problem(error: &RuntimeError) -> Problem {
    crate::session::Refusal::from(error.clone()).0
}

/// An engine's archive as a body of an answer.
pub(crate) fn archive_body(pieces: BoxStream<'static, Result<Bytes>>) -> Body {
    build::body(pieces.map_err(Into::into)).map_err(|error| error).boxed_unsync()
}
