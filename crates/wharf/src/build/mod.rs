//! Builds what an app's file says is built: looks whether it has been, plans, and has nodes build what has not.
//!
//! - What was built from the same files and options, by whomever, is not built again, and keeps the name it has.
//! - A build changes nothing that runs; its image counts only once a release has it.
//! - The files are read here and nowhere else; nothing is sent before it is known that a build is needed.

mod dockerfile;
pub(crate) mod git;
mod ignore;
mod pack;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, StreamBody};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use wharf_api::{
    transport::{BodyError, LineReader, lines},
    v1::{self, BuildLine},
};
use wharf_model::{
    AdditionalContext, AppKey, AppSpec, BuildContext, BuildMark, BuildOptions, BuildSpec, Dockerfile, Image,
    ServiceName,
};
use wharf_process::blocking;

use self::{ignore::Ignore, pack::Pack};
use crate::{
    connect::{Cluster, app_path},
    hint,
    output::{Color, Output},
};

/// A Dockerfile that is no part of the context has this name in the archive.
const FOREIGN: &str = ".wharf.dockerfile";
const IGNORE: &str = ".dockerignore";
/// How long files are read before that is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lines of a failed build that are shown also where nothing else is.
const LAST: usize = 20;
/// Sent at once.
const PIECE: usize = 64 << 10;
/// Pieces that packing may be ahead of the network.
const AHEAD: usize = 16;

/// How builds are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Also what is built already.
    pub(crate) force: bool,
    /// Refuse to build anything.
    pub(crate) forbid: bool,
    pub(crate) no_cache: bool,
    pub(crate) pull: bool,
    /// On this node.
    pub(crate) node: Option<String>,
    pub(crate) builder: v1::Builder,
}

/// The builds of an app.
#[derive(Debug)]
pub(crate) struct Builds {
    app: AppKey,
    wishes: Wishes,
    /// A service comes after those whose images it is built from.
    services: Vec<Service>,
}

#[derive(Debug)]
struct Service {
    name: ServiceName,
    /// Built, or to be built.
    image: Image,
    /// Why it is to be built; absent if it need not be.
    why: Option<String>,
    /// It has an image, from an earlier build, in the release.
    is_new: bool,
    prepared: Prepared,
}

/// A build with all its files looked at.
#[derive(Debug)]
struct Prepared {
    mark: BuildMark,
    pack: Pack,
    remote: Option<String>,
    options: BuildOptions,
    /// The instructions as they are written, and where.
    dockerfile: Option<(PathBuf, String)>,
    /// The Dockerfile's path in the context or repository; absent if it is no part of it.
    inside: Option<String>,
    /// The content of `.dockerignore`, if that is a part of the context.
    ignore: Option<String>,
    contexts: BTreeMap<String, Further>,
}

#[derive(Debug)]
enum Further {
    Folder(Pack),
    Image(String),
    Service(ServiceName),
}

impl Builds {
    /// Looks at the files of every build, and asks the cluster which of them it knows. The names of images go into `spec`.
    pub(crate) async fn look(
        cluster: &Cluster,
        spec: &mut AppSpec,
        builds: BTreeMap<ServiceName, BuildSpec>,
        wishes: Wishes,
        out: &Output,
    ) -> Result<Self> {
        let app = cluster.app(spec.name.clone());
        let mut marks = BTreeMap::new();
        let mut services = Vec::new();
        for name in in_order(&builds)? {
            let build = builds[&name].clone();
            let prepared = prepare(&name, build, &wishes, &marks, out).await?;
            marks.insert(name.clone(), prepared.mark.clone());
            services.push((name, prepared));
        }
        if services.is_empty() {
            return Ok(Self { app, wishes, services: Vec::new() });
        }
        let asked = marks.into_iter().map(|(name, mark)| (name.to_string(), mark)).collect();
        let wish = v1::BuildsRequest { services: asked };
        let mut known: v1::Builds =
            cluster.client.call(Method::POST, &app_path(&app, "/builds"), &wish).await?;
        let mut looked = Self { app, wishes, services: Vec::new() };
        for (name, prepared) in services {
            let known = known.services.remove(name.as_str()).unwrap_or_default();
            let build = &builds[&name];
            let Some(service) = spec.services.get_mut(&name) else { continue };
            let service_image = looked.decide(build, &service.image, name, prepared, known).await?;
            service.image.clone_from(&service_image.image.reference);
            looked.services.push(service_image);
        }
        Ok(looked)
    }

    async fn decide(
        &self,
        build: &BuildSpec,
        written: &str,
        name: ServiceName,
        prepared: Prepared,
        known: v1::KnownBuild,
    ) -> Result<Service> {
        let is_new = known.current.is_none();
        if let Some(image) = known.image.filter(|_| !self.wishes.force && !build.always) {
            // The same content under the name that the file gives it now.
            let reference = if build.named { written.to_owned() } else { image.reference.clone() };
            return Ok(Service { name, image: Image { reference, ..image }, why: None, is_new, prepared });
        }
        let why = match &known.current {
            _ if build.always => "its file says `pull_policy: build`",
            None => "it has not been built",
            Some(before) if before.context != prepared.mark.context => "context changed",
            Some(before) if before.options != prepared.mark.options => "arguments changed",
            Some(_) => "asked for",
        };
        if self.wishes.forbid {
            bail!(hint(
                format!("the image of {name} would have to be built: {why}"),
                "leave out `--no-build`; nothing was changed"
            ));
        }
        let reference = if build.named {
            written.to_owned()
        } else {
            format!("{written}:{}", tag(build, &prepared).await)
        };
        let image = Image { built: Some(prepared.mark.clone()), ..Image::named(reference) };
        Ok(Service { name, image, why: Some(why.to_owned()), is_new, prepared })
    }

    /// Whether something is to be built.
    pub(crate) fn has_work(&self) -> bool {
        self.services.iter().any(|service| service.why.is_some())
    }

    /// The images as an action takes them.
    pub(crate) fn images(&self) -> BTreeMap<String, Image> {
        self.services.iter().map(|service| (service.name.to_string(), service.image.clone())).collect()
    }

    /// What a plan says of them.
    pub(crate) fn operations(&self) -> impl Iterator<Item = v1::Operation> + '_ {
        self.services.iter().filter_map(|service| {
            Some(v1::Operation {
                change: if service.is_new { v1::Change::Create } else { v1::Change::Update },
                kind: "build".to_owned(),
                name: service.name.to_string(),
                reason: format!("({})", service.why.as_ref()?),
            })
        })
    }

    /// Has nodes build what is to be built. Without an error everything is.
    pub(crate) async fn run(&mut self, cluster: &Cluster, out: &Output) -> Result<()> {
        for at in 0..self.services.len() {
            if self.services[at].why.is_none() {
                continue;
            }
            let mut node = self.wishes.node.clone();
            let mut images = BTreeMap::new();
            for (context, further) in &self.services[at].prepared.contexts {
                let image = match further {
                    Further::Image(image) => image.clone(),
                    Further::Folder(pack) => {
                        self.build_context(cluster, &self.services[at].name, context, pack, &mut node, out)
                            .await?
                    }
                    Further::Service(other) => self.image_of(other, &mut node)?,
                };
                images.insert(context.clone(), image);
            }
            let service = &self.services[at];
            let (request, pack) =
                service.prepared.request(&service.image.reference, &images, &self.wishes, node);
            let place = service.prepared.dockerfile.as_ref().map(|(path, _)| path.clone());
            let (id, node) = self
                .build(cluster, &service.name, service.name.as_str(), request, pack, out)
                .await
                .with_context(|| {
                    let file = place.map(|path| format!(" ({})", path.display())).unwrap_or_default();
                    format!("the image of {} was not built{file}", service.name)
                })?;
            let image = &mut self.services[at].image;
            image.id = Some(id);
            if let Some(mark) = &mut image.built {
                mark.by = Some(node);
            }
        }
        Ok(())
    }

    /// The name of another service's image, which is on the node that built it.
    fn image_of(&self, other: &ServiceName, node: &mut Option<String>) -> Result<String> {
        let found = self.services.iter().find(|service| service.name == *other);
        let Some(found) = found else {
            bail!(hint(
                format!("`service:{other}` is no service with a `build`"),
                "name its image: `docker-image://NAME`"
            ));
        };
        let by = found.image.built.as_ref().and_then(|built| built.by.clone());
        match (&*node, by) {
            (Some(wanted), Some(by)) if *wanted != by => bail!(hint(
                format!("the image of {other} was built on {by}, and this is to be built on {wanted}"),
                format!("build both on one node: `--build --builder-node {by}`")
            )),
            (_, by) => *node = by.or_else(|| node.take()),
        }
        Ok(found.image.reference.clone())
    }

    /// Makes an image of a further context, on the node where the service's is built.
    async fn build_context(
        &self,
        cluster: &Cluster,
        service: &ServiceName,
        name: &str,
        pack: &Pack,
        node: &mut Option<String>,
        out: &Output,
    ) -> Result<String> {
        let reference = format!("wharf-context:{}", &pack.hash[..12]);
        let mut pack = pack.clone();
        pack.put(FOREIGN, b"FROM scratch\nCOPY . /\n".to_vec());
        pack.put(IGNORE, format!("{FOREIGN}\n{IGNORE}\n").into_bytes());
        let request = v1::BuildRequest {
            reference: reference.clone(),
            dockerfile: FOREIGN.to_owned(),
            foreign_dockerfile: true,
            needs_buildkit: None,
            remote: None,
            options: BuildOptions::default(),
            builder: v1::Builder::Classic,
            node: node.clone(),
            mark: None,
        };
        let title = format!("{service}, context {name}");
        let (_, by) = self
            .build(cluster, service, &title, request, pack, out)
            .await
            .with_context(|| format!("the context `{name}` of {service} was not taken in"))?;
        *node = Some(by);
        Ok(reference)
    }

    /// Builds one image: its identifier, and the node that has it.
    async fn build(
        &self,
        cluster: &Cluster,
        service: &ServiceName,
        title: &str,
        request: v1::BuildRequest,
        pack: Pack,
        out: &Output,
    ) -> Result<(String, String)> {
        let size = pack.size;
        let (sender, receiver) = mpsc::channel::<Result<Bytes, BodyError>>(AHEAD);
        let is_remote = request.remote.is_some();
        let packing = blocking(move || {
            if is_remote {
                return Ok(());
            }
            let mut out = io::BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
            let packed = pack.write(&mut out);
            if let Err(error) = &packed {
                // The other side must not take half an archive for a whole one.
                let _ = sender.blocking_send(Err(format!("{error:#}").into()));
            }
            packed
        });
        let frames = ReceiverStream::new(receiver).map(|piece| piece.map(http_body::Frame::data));
        let body = lines::after_line(&request, StreamBody::new(frames).boxed_unsync())?;
        let path = app_path(&self.app, &format!("/builds/{service}"));
        let said = async {
            let answer = cluster.client.open(Method::POST, &path, body).await?;
            let patience = cluster.client.timing().stream_silence();
            let mut reader = LineReader::<BuildLine>::new(answer.into_body(), patience);
            let (mut node, mut last) = (String::new(), Vec::<String>::new());
            while let Some(line) = reader.next().await? {
                match line {
                    BuildLine::Node(name) => node = name,
                    BuildLine::Builder(builder) => {
                        let amount =
                            if is_remote { String::new() } else { format!(", {} of files", amount(size)) };
                        out.say(&format!("{title}: building on {node} ({builder}{amount})"));
                    }
                    BuildLine::Output(line) => {
                        out.say(&out.paint(Color::Dim, &format!("{title} | {line}")));
                        last.push(line);
                        last.drain(..last.len().saturating_sub(LAST));
                    }
                    BuildLine::Built { id } => return Ok((id, node)),
                    BuildLine::Failed(problem) => {
                        if out.quiet {
                            last.iter().for_each(|line| out.must_say(&format!("{title} | {line}")));
                        }
                        let message = format!("on {node}: {}", problem.message);
                        match problem.hint {
                            Some(advice) => bail!(hint(message, advice)),
                            None => bail!(message),
                        }
                    }
                }
            }
            bail!("on {node}: the connection ended before the build did")
        };
        // Both at once: what is packed waits for what is read. A build that fails early needs no more files.
        tokio::pin!(packing, said);
        tokio::select! {
            biased;
            // What is wrong with the files is the better reason.
            packed = &mut packing => match packed {
                Err(error) if !is_gone(&error) => Err(error),
                Ok(()) | Err(_) => said.await,
            },
            // Not needed any more.
            said = &mut said => said,
        }
    }
}

/// Whether packing ended because nobody wanted more.
fn is_gone(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    kinds.into_iter().any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Passes what is written on, piece by piece.
struct Pieces(mpsc::Sender<Result<Bytes, BodyError>>);
impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(gone)?;
        Ok(piece.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Prepared {
    /// What a node is asked, and the files it gets.
    fn request(
        &self,
        reference: &str,
        images: &BTreeMap<String, String>,
        wishes: &Wishes,
        node: Option<String>,
    ) -> (v1::BuildRequest, Pack) {
        let mut pack = self.pack.clone();
        let mut options = self.options.clone();
        options.no_cache |= wishes.no_cache;
        options.pull |= wishes.pull;
        let needs_buildkit = self.dockerfile.as_ref().and_then(|(_, text)| dockerfile::needs_buildkit(text));
        let text = self.dockerfile.as_ref().map(|(_, text)| dockerfile::with_contexts(text, images));
        let path = self.inside.clone().unwrap_or_else(|| FOREIGN.to_owned());
        if let Some(text) = text.filter(|_| self.inside.is_none() || !images.is_empty()) {
            pack.put(&path, text.into_bytes());
        }
        let foreign = self.inside.is_none();
        // The classic builder takes these two out again if the second says so. BuildKit does not look.
        if foreign && needs_buildkit.is_none() {
            let rules = match &self.ignore {
                Some(text) => format!("{text}\n{FOREIGN}\n"),
                None => format!("{FOREIGN}\n{IGNORE}\n"),
            };
            pack.put(IGNORE, rules.into_bytes());
        }
        let request = v1::BuildRequest {
            reference: reference.to_owned(),
            dockerfile: path,
            foreign_dockerfile: foreign,
            needs_buildkit,
            remote: self.remote.clone(),
            options,
            builder: wishes.builder,
            node,
            mark: Some(self.mark.clone()),
        };
        (request, pack)
    }
}

/// Services in the order in which they are built: after those whose images they are built from.
fn in_order(builds: &BTreeMap<ServiceName, BuildSpec>) -> Result<Vec<ServiceName>> {
    let mut order: Vec<ServiceName> = Vec::new();
    while order.len() < builds.len() {
        let is_ready = |build: &BuildSpec| {
            build.additional_contexts.values().all(|context| match context {
                AdditionalContext::Service(other) => order.contains(other) || !builds.contains_key(other),
                AdditionalContext::Folder(_) | AdditionalContext::Image(_) => true,
            })
        };
        let next = builds.iter().find(|(name, build)| !order.contains(name) && is_ready(build));
        let Some((name, _)) = next else {
            let circle: BTreeSet<_> =
                builds.keys().filter(|name| !order.contains(name)).map(ToString::to_string).collect();
            let circle = circle.into_iter().collect::<Vec<_>>().join(", ");
            bail!(hint(
                format!("the builds of {circle} need each other's images"),
                "take one `service:` out of their `additional_contexts`"
            ));
        };
        order.push(name.clone());
    }
    Ok(order)
}

/// Looks at all files of a build.
async fn prepare(
    service: &ServiceName,
    build: BuildSpec,
    wishes: &Wishes,
    marks: &BTreeMap<ServiceName, BuildMark>,
    out: &Output,
) -> Result<Prepared> {
    let mut further = Vec::new();
    for (name, context) in build.additional_contexts {
        let (text, context) = match context {
            AdditionalContext::Image(image) => (format!("image {image}"), Further::Image(image)),
            AdditionalContext::Service(other) => {
                let mark = marks.get(&other).map(|mark| format!("{} {}", mark.context, mark.options));
                (format!("service {}", mark.unwrap_or_default()), Further::Service(other))
            }
            AdditionalContext::Folder(folder) => {
                let place = folder.clone();
                let pack = blocking(move || pack_folder(Path::new(&folder), None));
                let pack = with_patience(pack, service, &place, out).await;
                let (pack, _) =
                    pack.with_context(|| format!("the context `{name}` of {service} cannot be read"))?;
                (format!("folder {}", pack.hash), Further::Folder(pack))
            }
        };
        further.push((name, text, context));
    }
    let options = hash_of_options(&build.options, &further, wishes);
    let contexts = further.into_iter().map(|(name, _, context)| (name, context)).collect();
    let (folder, file) = match (build.context, build.dockerfile) {
        (BuildContext::Remote(address), file) => {
            let commit = git::remote_commit(&address).await;
            if commit.is_none() && !wishes.force {
                out.say(&format!(
                    "note: git cannot say whether {address} has changed; `--build` builds {service} again"
                ));
            }
            let inside = match file {
                Dockerfile::File(name) => Some(name),
                Dockerfile::Inline(_) => None,
            };
            let text = format!("{address}\n{}\n{inside:?}", commit.unwrap_or_default());
            let mark = BuildMark { context: hex::encode(Sha256::digest(text)), options, by: None };
            let pack = Pack::empty();
            return Ok(Prepared {
                mark,
                pack,
                remote: Some(address),
                options: build.options,
                dockerfile: None,
                inside,
                ignore: None,
                contexts,
            });
        }
        (BuildContext::Folder(folder), file) => (PathBuf::from(folder), file),
    };
    let place = folder.display().to_string();
    let looked = blocking(move || look_at(&folder, file));
    let looked = with_patience(looked, service, &place, out).await;
    let (pack, dockerfile, inside, ignore) =
        looked.with_context(|| format!("the build of {service} cannot be read"))?;
    let text = format!("{}\n{}", pack.hash, dockerfile.1);
    let mark = BuildMark { context: hex::encode(Sha256::digest(text)), options, by: None };
    let options = build.options;
    Ok(Prepared { mark, pack, remote: None, options, dockerfile: Some(dockerfile), inside, ignore, contexts })
}

/// Waits for a context to be read, and says so where that takes long.
async fn with_patience<T>(
    reading: impl Future<Output = T>,
    service: &ServiceName,
    place: &str,
    out: &Output,
) -> T {
    tokio::pin!(reading);
    if let Ok(read) = tokio::time::timeout(PATIENCE, &mut reading).await {
        return read;
    }
    out.must_say(&format!(
        "{service}: reading all files of {place}, which takes a while; hint: name in its `.dockerignore` what the build does not need"
    ));
    reading.await
}

type Looked = (Pack, (PathBuf, String), Option<String>, Option<String>);

/// The context, the Dockerfile and where it is in the context, and what is to be ignored.
fn look_at(folder: &Path, file: Dockerfile) -> Result<Looked> {
    let (path, text) = match file {
        Dockerfile::Inline(text) => (PathBuf::from("dockerfile_inline"), text),
        Dockerfile::File(name) => {
            let path = folder.join(name);
            let text = std::fs::read(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if folder.is_dir() => hint(
                    format!("there is no Dockerfile {}", path.display()),
                    "write one, name another with `dockerfile:`, or take a finished image with `image:` instead of `build:`",
                ),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => hint(
                    format!("there is no folder {}", folder.display()),
                    "the context of `build:` is a folder, and begins at that of the Compose file",
                ),
                _ => anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
            })?;
            let text = String::from_utf8(text).with_context(|| format!("{} is not UTF-8", path.display()))?;
            (path, text)
        }
    };
    let (pack, ignore) = pack_folder(folder, Some(&path))?;
    // Where it is seen from the context, if it is a part of it.
    let inside = relative(&path, folder).filter(|name| pack.contains(name));
    let ignore = ignore.filter(|_| pack.contains(IGNORE));
    Ok((pack, (path, text), inside, ignore))
}

fn relative(path: &Path, folder: &Path) -> Option<String> {
    let (path, folder) = (std::fs::canonicalize(path).ok()?, std::fs::canonicalize(folder).ok()?);
    Some(path.strip_prefix(folder).ok()?.to_str()?.to_owned())
}

/// What of a folder is a context, and its ignore file: `NAME.dockerignore` beside the Dockerfile counts more than `.dockerignore`.
fn pack_folder(folder: &Path, dockerfile: Option<&Path>) -> Result<(Pack, Option<String>)> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    let files = beside.into_iter().chain([folder.join(IGNORE)]);
    let mut text = None;
    for file in files {
        match std::fs::read(&file) {
            Ok(content) => {
                text = Some(String::from_utf8_lossy(&content).into_owned());
                break;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }
    let ignore = Ignore::parse(text.as_deref().unwrap_or_default());
    Ok((Pack::of(folder, &ignore, &[])?, text))
}

/// What decides about an image besides its files. Contents of secrets do not, as in every builder.
fn hash_of_options(options: &BuildOptions, further: &[(String, String, Further)], wishes: &Wishes) -> String {
    let mut options = options.clone();
    // How it is built is not what is built.
    options.no_cache = false;
    options.pull = false;
    options.cache_from.clear();
    let secrets: Vec<_> = std::mem::take(&mut options.secrets).into_keys().collect();
    let further: Vec<_> = further.iter().map(|(name, text, _)| (name, text)).collect();
    let all = serde_json::json!([options, secrets, further, wishes.builder]);
    hex::encode(Sha256::digest(all.to_string()))
}

/// The version of an image that its file does not name: the commit, and what differs from it.
async fn tag(build: &BuildSpec, prepared: &Prepared) -> String {
    let hash = &prepared.mark.context[..12];
    match &build.context {
        BuildContext::Remote(address) => match git::remote_commit(address).await {
            Some(commit) => format!("git-{}", &commit[..7]),
            None => format!("src-{hash}"),
        },
        BuildContext::Folder(folder) => match git::commit(Path::new(folder)).await {
            Some(commit) if commit.is_dirty => format!("git-{}-dirty-{hash}", commit.short),
            Some(commit) => format!("git-{}", commit.short),
            None => format!("src-{hash}"),
        },
    }
}

/// An amount of bytes, for people.
fn amount(bytes: u64) -> String {
    wharf_model::Bytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn prepared(folder: &Path, file: Dockerfile) -> Prepared {
        let (pack, dockerfile, inside, ignore) = look_at(folder, file).unwrap();
        let mark = BuildMark { context: pack.hash.clone(), options: String::new(), by: None };
        Prepared {
            mark,
            pack,
            remote: None,
            options: BuildOptions::default(),
            dockerfile: Some(dockerfile),
            inside,
            ignore,
            contexts: BTreeMap::new(),
        }
    }
    fn request(prepared: &Prepared, images: &[(&str, &str)]) -> (v1::BuildRequest, BTreeMap<String, String>) {
        let images = images.iter().map(|(name, image)| ((*name).to_owned(), (*image).to_owned())).collect();
        let (request, pack) = prepared.request("a:1", &images, &Wishes::default(), None);
        let mut bytes = Vec::new();
        pack.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            (path, text)
        });
        (request, files.collect())
    }

    #[test]
    fn a_dockerfile_in_the_context_is_sent_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Web"), "FROM a\n").unwrap();
        fs::write(folder.path().join(".dockerignore"), "x\n").unwrap();
        fs::write(folder.path().join("x"), "").unwrap();
        let prepared = prepared(folder.path(), Dockerfile::File("Web".into()));
        let (request, files) = request(&prepared, &[]);
        assert_eq!((request.dockerfile.as_str(), request.foreign_dockerfile), ("Web", false));
        let expected = [(".dockerignore", "x\n"), ("Web", "FROM a\n")];
        assert_eq!(files, expected.map(|(path, text)| (path.to_owned(), text.to_owned())).into());
    }

    #[test]
    fn a_dockerfile_that_is_no_part_of_the_context_stays_out_of_the_image() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("src");
        fs::create_dir(&folder).unwrap();
        fs::write(outer.path().join("Web"), "FROM a\n").unwrap();
        fs::write(folder.join("Dockerfile"), "FROM a\n").unwrap();
        fs::write(folder.join("f"), "f").unwrap();
        for (file, ignore) in [
            (Dockerfile::File("../Web".into()), None),
            (Dockerfile::File(outer.path().join("Web").display().to_string()), None),
            (Dockerfile::Inline("FROM a\n".into()), None),
            (Dockerfile::File("Dockerfile".into()), Some("Dockerfile\n.dockerignore")),
        ] {
            if let Some(ignore) = ignore {
                fs::write(folder.join(".dockerignore"), ignore).unwrap();
            }
            let prepared = prepared(&folder, file.clone());
            let (request, files) = request(&prepared, &[("b", "c:1")]);
            assert_eq!(request.dockerfile, FOREIGN, "{file:?}");
            assert!(request.foreign_dockerfile);
            assert_eq!(files[FOREIGN], "FROM c:1 AS b\nFROM a\n");
            assert_eq!(files[".dockerignore"], ".wharf.dockerfile\n.dockerignore\n");
            assert_eq!(files.contains_key("Dockerfile"), ignore.is_none());
        }
        // BuildKit does not take the second file out again, so it does not get it.
        fs::remove_file(folder.join(".dockerignore")).unwrap();
        let prepared =
            prepared(&folder, Dockerfile::Inline("FROM a\nRUN --mount=type=cache,target=/c x\n".into()));
        let (request, files) = request(&prepared, &[]);
        assert_eq!(request.needs_buildkit.as_deref(), Some("`RUN --mount`"));
        assert!(files.contains_key(FOREIGN) && !files.contains_key(".dockerignore"));
    }

    #[test]
    fn an_ignore_file_beside_the_dockerfile_counts_more() {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in
            [("Web", "FROM a"), ("Web.dockerignore", "b"), (".dockerignore", "a"), ("a", ""), ("b", "")]
        {
            fs::write(folder.path().join(path), text).unwrap();
        }
        let prepared = prepared(folder.path(), Dockerfile::File("Web".into()));
        assert!(prepared.pack.contains("a") && !prepared.pack.contains("b"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let said =
            |folder: &Path| format!("{:#}", look_at(folder, Dockerfile::File("Web".into())).unwrap_err());
        assert!(said(folder.path()).contains("there is no Dockerfile"));
        assert!(said(&folder.path().join("x")).contains("there is no folder"));
        // It is there, and cannot be read.
        fs::create_dir(folder.path().join("Web")).unwrap();
        assert!(said(folder.path()).contains("cannot read"));
    }

    #[test]
    fn services_are_built_after_those_they_are_built_from() {
        let build = |from: &[&str]| BuildSpec {
            named: false,
            context: BuildContext::Folder("/".into()),
            dockerfile: Dockerfile::File("Dockerfile".into()),
            additional_contexts: from
                .iter()
                .map(|name| ((*name).to_owned(), AdditionalContext::Service(name.parse().unwrap())))
                .collect(),
            options: BuildOptions::default(),
            always: false,
        };
        let builds = |all: &[(&str, &[&str])]| -> BTreeMap<ServiceName, BuildSpec> {
            all.iter().map(|(name, from)| (name.parse().unwrap(), build(from))).collect()
        };
        let order = in_order(&builds(&[("a", &["b"]), ("b", &["c", "elsewhere"]), ("c", &[])])).unwrap();
        assert_eq!(order.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c", "b", "a"]);
        let circle = in_order(&builds(&[("a", &["b"]), ("b", &["a"]), ("c", &[])])).unwrap_err();
        assert!(circle.to_string().contains("the builds of a, b need each other's images"));
    }
}
