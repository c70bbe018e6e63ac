//! Docker Engine over its socket, API 1.41 and up.
//!
//! The version is negotiated with the first call and again after the engine was away, so that an engine may be upgraded
//! under a running agent. A call that is dropped may still be carried out by the engine; all of them are made to find
//! that out when they are made again.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    Docker,
    auth::DockerCredentials,
    container::LogOutput,
    errors::Error,
    models::{
        ContainerInspectResponse, ContainerStateStatusEnum, ContainerStatsResponse,
        ContainerSummaryStateEnum, CreateImageInfo, ExecConfig, GenericResourcesInner,
        GenericResourcesInnerDiscreteResourceSpec, GenericResourcesInnerNamedResourceSpec, HealthStatusEnum,
        Ipam, IpamConfig, Network, NetworkConnectRequest, NetworkCreateRequest, SystemInfo,
        SystemInfoCgroupVersionEnum, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
        InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
        ListImagesOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder,
        ResizeExecOptionsBuilder, StartContainerOptions, StatsOptionsBuilder, StopContainerOptionsBuilder,
        TagImageOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::time::timeout;
use wharf_model::{
    DeviceKind, EngineFacts, Exit, Health, Image, NetworkAssignment, NetworkId, NodeDevices, Progress,
    PullPolicy, TaskId, Timestamp, VolumeAssignment, VolumeId,
};

use crate::network::{DockerNetwork, docker_network_options};

use super::{
    Container, ContainerId, ContainerState, Credentials, EngineCheck, ExecControl, ExecRequest, ExecSession,
    Labels, LocalImage, LocalNetwork, LocalVolume, LogFrame, LogQuery, LogSource, LogStream, NewContainer,
    NodeImage, ProgressSink, Result, Runtime, RuntimeError, RuntimeEvent, RuntimeFacts, Stats,
    container_name, exec,
    labels::{NETWORK, TASK, VOLUME},
    spec::{ApiVersion, bound_output, container_config},
};

/// What an engine answers from memory.
const QUICK: Duration = Duration::from_secs(30);
/// What an engine does with disks and namespaces.
const SLOW: Duration = Duration::from_secs(150);
/// A registry that is asked through the engine.
const REGISTRY: Duration = Duration::from_secs(20);
/// So long a registry is not asked again about an image that the node has.
const REFUSAL: Duration = Duration::from_secs(300);
/// A pull that says nothing for so long has stalled.
const PULL_SILENCE: Duration = Duration::from_secs(120);
/// Longer than the engine takes from SIGKILL to the end of a container.
const AFTER_GRACE: Duration = Duration::from_secs(60);

/// Where the engine is and whose objects are ours.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// The engine's socket.
    pub socket: PathBuf,
    /// The cluster's name in labels.
    pub cluster: String,
    /// The folder under which volumes have theirs.
    pub volumes: PathBuf,
}

/// A Docker Engine.
#[derive(Debug, Clone)]
pub struct DockerRuntime {
    options: Arc<DockerOptions>,
    labels: Labels,
    client: Arc<Mutex<Option<Client>>>,
    /// What registries refused, and when.
    refusals: Arc<Mutex<HashMap<String, (tokio::time::Instant, String)>>>,
    /// How the engine makes containers, once it has told.
    ways: Arc<Mutex<Option<Ways>>>,
    /// Containers that were made here and not started yet.
    made: Arc<Mutex<HashSet<ContainerId>>>,
}

/// What an engine is set to do with every container.
#[derive(Debug, Clone)]
struct Ways {
    /// Where the output goes of a container of which nothing is said.
    logging_driver: String,
    /// A file of the node is one that a container can read. Not under SELinux, where it would have to be labelled first, nor where users of
    /// containers are others on the node.
    shares_files: bool,
}
impl Ways {
    fn of(info: &SystemInfo) -> Self {
        let guards = ["name=selinux", "name=userns", "name=rootless"];
        let has_guard = |option: &String| option.split(',').any(|part| guards.contains(&part));
        Self {
            logging_driver: info.logging_driver.clone().unwrap_or_default(),
            shares_files: !info.security_options.iter().flatten().any(has_guard),
        }
    }
}

#[derive(Clone)]
struct Client {
    docker: Docker,
    api: ApiVersion,
}
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client(API {})", self.api)
    }
}

impl DockerRuntime {
    /// The engine behind a socket. Nothing is connected yet.
    pub fn new(options: DockerOptions) -> Self {
        let labels = Labels::new(options.cluster.clone());
        Self {
            options: Arc::new(options),
            labels,
            client: Arc::default(),
            refusals: Arc::default(),
            ways: Arc::default(),
            made: Arc::default(),
        }
    }

    /// The API version in use, once the engine has answered.
    pub fn api_version(&self) -> Option<ApiVersion> {
        self.client.lock().as_ref().map(|client| client.api)
    }

    /// Asked once; an engine that is asked for its facts tells them, too.
    async fn ways(&self) -> Result<Ways> {
        if let Some(ways) = self.ways.lock().clone() {
            return Ok(ways);
        }
        let client = self.client().await?;
        let ways = Ways::of(&self.within(QUICK, "describe itself", client.docker.info()).await?);
        *self.ways.lock() = Some(ways.clone());
        Ok(ways)
    }

    async fn client(&self) -> Result<Client> {
        if let Some(client) = self.client.lock().clone() {
            return Ok(client);
        }
        let socket = self.options.socket.to_string_lossy().into_owned();
        // Streams and waits have no deadline of the library's; each call here has its own.
        let forever = u64::from(u32::MAX);
        let docker = Docker::connect_with_unix(&socket, forever, bollard::API_DEFAULT_VERSION)
            .map_err(|error| self.error("cannot reach Docker Engine", error))?;
        let version = self.within(QUICK, "ask Docker Engine for its version", docker.version()).await?;
        let text = version.api_version.unwrap_or_default();
        let api = ApiVersion::parse(&text)
            .ok_or_else(|| RuntimeError::fatal(format!("Docker Engine gives `{text}` as its API version")))?;
        if api < ApiVersion::OLDEST {
            return Err(RuntimeError::fatal(format!(
                "Docker Engine {} is too old: it speaks API {api}, and {} (Docker Engine 20.10) is the oldest supported",
                version.version.unwrap_or_default(),
                ApiVersion::OLDEST
            ))
            .with_hint("update Docker Engine on this node"));
        }
        let docker = docker
            .negotiate_version()
            .await
            .map_err(|error| self.error("cannot agree on an API version with Docker Engine", error))?;
        let ours = docker.client_version();
        let api = api.min(ApiVersion {
            major: u16::try_from(ours.major_version).unwrap_or(u16::MAX),
            minor: u16::try_from(ours.minor_version).unwrap_or(u16::MAX),
        });
        let client = Client { docker, api };
        *self.client.lock() = Some(client.clone());
        Ok(client)
    }

    async fn docker(&self) -> Result<Docker> {
        Ok(self.client().await?.docker)
    }

    /// Carries out one call with a deadline.
    async fn within<T>(
        &self,
        deadline: Duration,
        what: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T> {
        match timeout(deadline, call).await {
            Ok(answer) => answer.map_err(|error| self.error(&format!("cannot {what}"), error)),
            Err(_elapsed) => Err(RuntimeError::unreachable(format!(
                "Docker Engine did not {what} within {} s",
                deadline.as_secs()
            ))),
        }
    }

    /// Gives an error of the library its meaning. After a broken connection the version is asked again.
    fn error(&self, what: &str, error: Error) -> RuntimeError {
        let error = meaning(what, error);
        if error.is_unreachable() {
            *self.client.lock() = None;
        }
        error
    }

    async fn inspect_typed(&self, container: &ContainerId) -> Result<Option<ContainerInspectResponse>> {
        let docker = self.docker().await?;
        let call = docker.inspect_container(&container.0, None::<InspectContainerOptions>);
        gone_is_none(self.within(QUICK, "inspect the container", call).await)
    }

    /// The container, if it is there; an error if it is not this cluster's.
    async fn ours(&self, container: &ContainerId) -> Result<Option<Container>> {
        let Some(found) = self.inspect_typed(container).await? else { return Ok(None) };
        let labels = found.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
        let task = self.labels.task(&labels).ok_or_else(|| {
            RuntimeError::fatal(format!("the container `{container}` was not made by this cluster"))
                .with_hint("Wharf leaves containers alone that it did not make; remove or rename it yourself")
        })?;
        read_container(found, task).map(Some)
    }

    /// Refuses what is not this cluster's before anything is done to it; `false` if it is gone.
    async fn guard(&self, container: &ContainerId) -> Result<bool> {
        Ok(self.ours(container).await?.is_some())
    }

    async fn local_image(&self, name: &str) -> Result<Option<bollard::models::ImageInspect>> {
        let docker = self.docker().await?;
        gone_is_none(self.within(QUICK, "look for the image", docker.inspect_image(name)).await)
    }

    async fn pull(
        &self,
        from: &str,
        tag: &str,
        credentials: Option<&Credentials>,
        progress: ProgressSink<'_>,
    ) -> Result<()> {
        let docker = self.docker().await?;
        let options = CreateImageOptionsBuilder::default().from_image(from).tag(tag).build();
        let mut stream = docker.create_image(Some(options), None, credentials.map(docker_credentials));
        let mut layers = Layers::default();
        loop {
            match timeout(PULL_SILENCE, stream.next()).await {
                Err(_elapsed) => {
                    return Err(RuntimeError::temporary(format!(
                        "the pull of {from} said nothing for {} s",
                        PULL_SILENCE.as_secs()
                    )));
                }
                Ok(None) => return Ok(()),
                Ok(Some(Ok(message))) => {
                    if let Some(sum) = layers.note(&message) {
                        progress(sum);
                    }
                }
                Ok(Some(Err(error))) => return Err(self.pull_error(from, error)),
            }
        }
    }

    fn pull_error(&self, from: &str, error: Error) -> RuntimeError {
        let text = match &error {
            Error::DockerStreamError { error } => error.clone(),
            Error::DockerResponseServerError { message, .. } => message.clone(),
            _ => return self.error(&format!("cannot pull {from}"), error),
        };
        registry_error(&format!("cannot pull {from}"), &text)
    }

    /// Gives a pulled digest its tag as well, so that people find it; a tag that is there already is somebody's.
    async fn tag(&self, image: &Image, id: &str) -> Result<()> {
        let reference = Reference::parse(&image.reference);
        let name = format!("{}:{}", reference.repository, reference.tag);
        if self.local_image(&name).await?.is_none() {
            let docker = self.docker().await?;
            let options =
                TagImageOptionsBuilder::default().repo(reference.repository).tag(reference.tag).build();
            self.within(QUICK, "tag the image", docker.tag_image(id, Some(options))).await?;
        }
        Ok(())
    }

    /// The first local image among the ways in which this one may be known, the pinned ones first.
    async fn find(&self, image: &Image) -> Result<Option<LocalImage>> {
        let reference = Reference::parse(&image.reference);
        let pinned = [
            image.digest.as_ref().map(|digest| format!("{}@{digest}", reference.repository)),
            image.id.clone(),
        ];
        let mut names: Vec<String> = pinned.into_iter().flatten().collect();
        if names.is_empty() {
            names.push(image.reference.clone());
        }
        for name in names {
            if let Some(found) = self.local_image(&name).await? {
                return Ok(Some(read_image(found)));
            }
        }
        Ok(None)
    }

    /// The digest that the registry gives for a reference, or what it said instead. With an image `here` to fall back
    /// on, a refusal is remembered for a while: asking a registry that cannot be reached takes long.
    async fn ask_registry(
        &self,
        reference: &str,
        here: bool,
        credentials: Option<&Credentials>,
    ) -> Result<Result<String, String>> {
        let remembered =
            self.refusals.lock().get(reference).filter(|(at, _)| at.elapsed() < REFUSAL).cloned();
        if let Some((_, refused)) = remembered.filter(|_| here) {
            return Ok(Err(refused));
        }
        let docker = self.docker().await?;
        let call = docker.inspect_registry_image(reference, credentials.map(docker_credentials));
        let refused = match timeout(REGISTRY, call).await {
            Ok(Ok(found)) => match found.descriptor.digest {
                Some(digest) => return Ok(Ok(digest)),
                None => "nothing about a digest".to_owned(),
            },
            Ok(Err(Error::DockerResponseServerError { message, .. })) => message,
            Ok(Err(error)) => return Err(self.error("cannot ask for the image", error)),
            Err(_elapsed) => format!("nothing within {} s", REGISTRY.as_secs()),
        };
        self.refusals.lock().insert(reference.to_owned(), (tokio::time::Instant::now(), refused.clone()));
        Ok(Err(refused))
    }

    async fn networks(&self, filter: (&str, String)) -> Result<Vec<Network>> {
        let docker = self.docker().await?;
        let filters = HashMap::from([(filter.0.to_owned(), vec![filter.1])]);
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        self.within(QUICK, "list networks", docker.list_networks(Some(options))).await
    }

    async fn network_of(&self, id: NetworkId) -> Result<Option<Network>> {
        let found = self.networks(("label", format!("{NETWORK}={id}"))).await?;
        Ok(found.into_iter().find(|network| {
            network.labels.as_ref().and_then(|labels| self.labels.network(labels)) == Some(id)
        }))
    }

    async fn volume_of(&self, id: VolumeId) -> Result<Option<bollard::models::Volume>> {
        let docker = self.docker().await?;
        let filters = HashMap::from([("label".to_owned(), vec![format!("{VOLUME}={id}")])]);
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let found = self.within(QUICK, "list volumes", docker.list_volumes(Some(options))).await?;
        let mut volumes = found.volumes.unwrap_or_default().into_iter();
        Ok(volumes.find(|volume| self.labels.volume(&volume.labels) == Some(id)))
    }

    async fn remove_engine_volume(&self, name: &str) -> Result<()> {
        let docker = self.docker().await?;
        let options = RemoveVolumeOptionsBuilder::default().build();
        match timeout(SLOW, docker.remove_volume(name, Some(options))).await {
            Ok(Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. })) => Ok(()),
            Ok(Err(Error::DockerResponseServerError { status_code: 409, message })) => {
                Err(RuntimeError::temporary(format!("the volume is in use: {message}")))
            }
            Ok(Err(error)) => Err(self.error("cannot remove the volume", error)),
            Err(_elapsed) => {
                Err(RuntimeError::unreachable("Docker Engine did not remove the volume in time"))
            }
        }
    }

    async fn volume_is_used(&self, name: &str) -> Result<bool> {
        let docker = self.docker().await?;
        let filters = HashMap::from([("volume".to_owned(), vec![name.to_owned()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let users = self.within(QUICK, "list containers", docker.list_containers(Some(options))).await?;
        Ok(!users.is_empty())
    }

    /// Removes entries of this cluster's volumes whose folder has been deleted.
    async fn remove_leftovers(&self) -> Result<()> {
        let docker = self.docker().await?;
        let filters = HashMap::from([("label".to_owned(), vec![self.labels.filter()])]);
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let found = self.within(QUICK, "list volumes", docker.list_volumes(Some(options))).await?;
        for volume in found.volumes.unwrap_or_default() {
            let ours = self.labels.volume(&volume.labels);
            if let Some(id) = ours.filter(|id| is_prepared(&volume) && !self.volume_folder(*id).exists()) {
                // One that still cannot go harms nobody.
                let _ = self.remove_engine_volume(&volume.name).await;
                tracing::debug!(volume = volume.name, %id, "entry of a deleted volume");
            }
        }
        Ok(())
    }

    fn volume_folder(&self, id: VolumeId) -> PathBuf {
        self.options.volumes.join(id.to_string())
    }
}

/// What the engine was told to have by `--node-generic-resource`, by kind.
fn generic_resources(resources: Vec<GenericResourcesInner>) -> Vec<NodeDevices> {
    let mut devices = Vec::<NodeDevices>::new();
    for resource in resources {
        if let Some(GenericResourcesInnerNamedResourceSpec { kind: Some(kind), value: Some(id) }) =
            resource.named_resource_spec
            && let Ok(kind) = kind.parse::<DeviceKind>()
        {
            let mut more = NodeDevices::named(kind, [id]);
            match devices.iter_mut().find(|pool| pool.kind == more.kind) {
                Some(pool) => pool.named.append(&mut more.named),
                None => devices.push(more),
            }
        }
        if let Some(GenericResourcesInnerDiscreteResourceSpec { kind: Some(kind), value: Some(count) }) =
            resource.discrete_resource_spec
            && let Ok(kind) = kind.parse::<DeviceKind>()
        {
            devices.push(NodeDevices::counted(kind, unsigned(Some(count))));
        }
    }
    devices
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn facts(&self) -> Result<RuntimeFacts> {
        let client = self.client().await?;
        let info = self.within(QUICK, "describe itself", client.docker.info()).await?;
        *self.ways.lock() = Some(Ways::of(&info));
        let labels = info.labels.unwrap_or_default();
        Ok(RuntimeFacts {
            engine: EngineFacts {
                version: info.server_version.unwrap_or_default(),
                api_version: client.api.to_string(),
                labels: labels
                    .iter()
                    .map(|label| label.split_once('=').unwrap_or((label, "")))
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
                live_restore: info.live_restore_enabled.unwrap_or_default(),
                storage_driver: info.driver.unwrap_or_default(),
            },
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_2) => 2,
                Some(SystemInfoCgroupVersionEnum::_1 | SystemInfoCgroupVersionEnum::EMPTY) | None => 1,
            },
            cpus: unsigned(info.ncpu),
            memory: unsigned(info.mem_total),
            architecture: oci_architecture(&info.architecture.unwrap_or_default()).to_owned(),
            kernel: info.kernel_version.unwrap_or_default(),
            data_root: info.docker_root_dir.filter(|root| !root.is_empty()).map(PathBuf::from),
            devices: generic_resources(info.generic_resources.unwrap_or_default()),
        })
    }

    async fn ensure_image(
        &self,
        image: &Image,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
        progress: ProgressSink<'_>,
    ) -> Result<LocalImage> {
        let reference = Reference::parse(&image.reference);
        let pinned = image.digest.is_some() || image.id.is_some();
        // What is pinned and here needs no asking, whatever the policy: it could not be anything else.
        let ask_first = policy == PullPolicy::Always && !pinned;
        if !ask_first && let Some(found) = self.find(image).await? {
            return Ok(found);
        }
        if policy == PullPolicy::Never {
            return Err(missing_here(image, "and its pull policy is `never`"));
        }
        if image.digest.is_none() && image.id.is_some() {
            return Err(missing_here(image, "and no registry has it"));
        }
        // Asked for again, it may turn out to be the one that somebody else has brought.
        let before = self.find(image).await?.map(|found| found.id);
        let tag = image.digest.as_deref().unwrap_or(reference.tag);
        self.pull(reference.repository, tag, credentials, progress).await?;
        let mut found = self.find(image).await?.ok_or_else(|| {
            RuntimeError::temporary(format!("{} was pulled, and is not there", image.reference))
        })?;
        found.pulled = before.as_ref() != Some(&found.id);
        if image.digest.is_some() {
            self.tag(image, &found.id).await?;
        }
        Ok(found)
    }

    async fn resolve_image(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
    ) -> Result<Image> {
        let here = self.local_image(reference).await?.map(|local| read_pinned(reference, local));
        // What came from a registry needs no asking, unless it is asked for.
        if let Some(image) = &here
            && image.digest.is_some()
            && policy != PullPolicy::Always
        {
            return Ok(image.clone());
        }
        let refused = match policy {
            PullPolicy::Never => "it was not asked, because the pull policy is `never`".to_owned(),
            PullPolicy::Missing | PullPolicy::Refresh { .. } | PullPolicy::Always => {
                match self.ask_registry(reference, here.is_some(), credentials).await? {
                    Ok(digest) => {
                        return Ok(Image { digest: Some(digest), ..Image::named(reference) });
                    }
                    Err(refused) => refused,
                }
            }
        };
        here.ok_or_else(|| {
            RuntimeError::fatal(format!(
                "image {reference} is not to be had: its registry said: {refused}; and this node does not have it"
            ))
            .with_hint(
                "check its name and tag; for a private registry log in on the nodes, or load the image there with \
                 `docker load`",
            )
        })
    }

    async fn create(&self, container: &NewContainer<'_>) -> Result<ContainerId> {
        let client = self.client().await?;
        let name = ContainerId(container_name(container.task));
        let ways = self.ways().await?;
        let mut surroundings = Cow::Borrowed(container.surroundings);
        if !ways.shares_files && surroundings.resolv_conf.is_some() {
            surroundings.to_mut().resolv_conf = None;
        }
        let mut creation = container_config(container.task, &surroundings, &self.labels, client.api)?;
        bound_output(&mut creation.body, &ways.logging_driver, engine_bounds_output());
        let options = CreateContainerOptionsBuilder::default().name(&name.0).build();
        let call = client.docker.create_container(Some(options), creation.body);
        match self.within(SLOW, "create the container", call).await {
            Ok(created) => {
                for warning in created.warnings {
                    tracing::warn!(container = %name, warning, "engine warns about a container");
                }
                if creation.connect.is_empty() {
                    let id = ContainerId(created.id);
                    self.made.lock().insert(id.clone());
                    return Ok(id);
                }
            }
            // An earlier call that was cut off got there first, or somebody else has the name, which is said here.
            Err(error) if self.ours(&name).await?.is_none() => return Err(error),
            Err(_) => {}
        }
        let made = self.ours(&name).await?.ok_or_else(|| {
            RuntimeError::temporary(format!("the container {name} was made, and is not there"))
        })?;
        for (network, settings) in creation.connect {
            if !made.addresses.contains_key(&network) {
                let request =
                    NetworkConnectRequest { container: made.id.0.clone(), endpoint_config: Some(settings) };
                let call = client.docker.connect_network(&network, request);
                self.within(SLOW, &format!("connect the container to {network}"), call).await?;
            }
        }
        Ok(made.id)
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        // One that was made just now is known to be ours.
        let made = self.made.lock().remove(container);
        if !made && !self.guard(container).await? {
            return Err(RuntimeError::not_found(format!("the container {container} is gone")));
        }
        let docker = self.docker().await?;
        let call = docker.start_container(&container.0, None::<StartContainerOptions>);
        self.within(SLOW, "start the container", call).await
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<()> {
        if !self.guard(container).await? {
            return Ok(());
        }
        let docker = self.docker().await?;
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let call = docker.stop_container(&container.0, Some(options));
        let stopped = self.within(grace.saturating_add(AFTER_GRACE), "stop the container", call).await;
        gone_is_none(stopped).map(|_| ())
    }

    async fn kill(&self, container: &ContainerId, signal: &str) -> Result<()> {
        if !self.ours(container).await?.is_some_and(|found| found.state.is_running()) {
            return Ok(());
        }
        let docker = self.docker().await?;
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        match docker.kill_container(&container.0, Some(options)).await {
            // It ended in between.
            Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) | Ok(()) => Ok(()),
            Err(error) => Err(self.error("cannot send a signal to the container", error)),
        }
    }

    async fn remove(&self, container: &ContainerId) -> Result<()> {
        if !self.guard(container).await? {
            return Ok(());
        }
        let docker = self.docker().await?;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match timeout(SLOW, docker.remove_container(&container.0, Some(options))).await {
            Ok(Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. })) => Ok(()),
            // Somebody's earlier removal is under way.
            Ok(Err(Error::DockerResponseServerError { status_code: 409, message })) => {
                Err(RuntimeError::temporary(format!("cannot remove the container: {message}")))
            }
            Ok(Err(error)) => Err(self.error("cannot remove the container", error)),
            Err(_elapsed) => {
                Err(RuntimeError::unreachable("Docker Engine did not remove the container in time"))
            }
        }
    }

    async fn wait(&self, container: &ContainerId) -> Result<Exit> {
        let docker = self.docker().await?;
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut stream = docker.wait_container(&container.0, Some(options));
        match stream.next().await {
            Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => {}
            Some(Err(error)) => return Err(self.error("cannot wait for the container", error)),
            None => {
                return Err(RuntimeError::unreachable(
                    "Docker Engine went away while a container was awaited",
                ));
            }
        }
        match self.ours(container).await? {
            Some(Container { state: ContainerState::Exited { exit, .. }, .. }) => Ok(exit),
            Some(_) => Err(RuntimeError::temporary(format!("the container {container} has not ended"))),
            None => Err(RuntimeError::not_found(format!("the container {container} is gone"))),
        }
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Option<Container>> {
        self.ours(container).await
    }

    async fn inspect_raw(&self, container: &ContainerId) -> Result<serde_json::Value> {
        let gone = || RuntimeError::not_found(format!("the container {container} is gone"));
        self.guard(container).await?.then_some(()).ok_or_else(gone)?;
        let found = self.inspect_typed(container).await?.ok_or_else(gone)?;
        serde_json::to_value(found)
            .map_err(|error| RuntimeError::fatal(format!("cannot pass on the answer: {error}")))
    }

    async fn list(&self) -> Result<Vec<Container>> {
        let docker = self.docker().await?;
        let filters = HashMap::from([("label".to_owned(), vec![self.labels.filter(), TASK.to_owned()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.within(QUICK, "list containers", docker.list_containers(Some(options))).await?;
        let mut containers = Vec::new();
        for summary in listed {
            let removing = matches!(summary.state, Some(ContainerSummaryStateEnum::REMOVING));
            if let Some(id) = summary.id.filter(|_| !removing) {
                // One that is gone by now, or whose label is broken, is none of ours any more.
                containers.extend(self.inspect(&ContainerId(id)).await.ok().flatten());
            }
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    async fn logs(&self, container: &ContainerId, query: LogQuery) -> Result<LogStream> {
        if !self.guard(container).await? {
            return Err(RuntimeError::not_found(format!("the container {container} is gone")));
        }
        let docker = self.docker().await?;
        let seconds = |time: Timestamp| i32::try_from(time.0 / 1000).unwrap_or(i32::MAX);
        let mut options = LogsOptionsBuilder::default()
            .follow(query.follow)
            .stdout(query.stdout)
            .stderr(query.stderr)
            .timestamps(true);
        if let Some(tail) = query.tail {
            options = options.tail(&tail.to_string());
        }
        if let Some(since) = query.since {
            options = options.since(seconds(since));
        }
        if let Some(until) = query.until {
            options = options.until(seconds(until).saturating_add(1));
        }
        let stream = docker.logs(&container.0, Some(options.build()));
        let frames = stream
            .map(|item| {
                item.map(read_frame).map_err(|error| meaning("the container's output broke off", error))
            })
            // The engine is asked in whole seconds; what is too early or too late by less is left out here.
            .try_filter(move |frame| {
                let wanted = frame.at.is_none_or(|at| {
                    query.since.is_none_or(|since| at >= since) && query.until.is_none_or(|until| at <= until)
                });
                std::future::ready(wanted)
            });
        Ok(frames.boxed())
    }

    async fn exec(&self, container: &ContainerId, request: &ExecRequest) -> Result<ExecSession> {
        if !self.guard(container).await? {
            return Err(RuntimeError::not_found(format!("the container {container} is gone")));
        }
        let client = self.client().await?;
        let config = ExecConfig {
            attach_stdin: Some(request.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(request.tty),
            cmd: Some(request.command.clone()),
            env: (!request.environment.is_empty()).then(|| request.environment.clone()),
            user: request.user.clone(),
            working_dir: request.working_dir.clone(),
            privileged: Some(request.privileged),
            ..ExecConfig::default()
        };
        let call = client.docker.create_exec(&container.0, config);
        let id = self.within(QUICK, "prepare the command", call).await?.id;
        let streams = exec::start(&self.options.socket, client.api, &id, request.tty).await?;
        let control = DockerExec { runtime: self.clone(), id };
        if let Some((columns, rows)) = request.size.filter(|_| request.tty) {
            // The command may have ended already; then its terminal needs no size.
            let _ = control.resize(columns, rows).await;
        }
        Ok(ExecSession { input: streams.input, output: streams.output, control: Arc::new(control) })
    }

    async fn stats(
        &self,
        container: &ContainerId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Stats>>> {
        if !self.guard(container).await? {
            return Err(RuntimeError::not_found(format!("the container {container} is gone")));
        }
        let docker = self.docker().await?;
        let options = StatsOptionsBuilder::default().stream(follow).one_shot(!follow).build();
        let stream = docker.stats(&container.0, Some(options));
        Ok(stream
            .map(|item| {
                item.map(|stats| read_stats(&stats))
                    .map_err(|error| meaning("cannot measure the container", error))
            })
            .boxed())
    }

    async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        const ACTIONS: [&str; 7] = ["create", "start", "die", "oom", "destroy", "health_status", "rename"];
        let docker = self.docker().await?;
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![self.labels.filter()]),
            ("event".to_owned(), ACTIONS.map(str::to_owned).to_vec()),
        ]);
        let mut options = EventsOptionsBuilder::default().filters(&filters);
        if let Some(Timestamp(ms)) = since {
            options = options.since(&format!("{}.{:03}000000", ms / 1000, ms % 1000));
        }
        // The answer's head comes at once, so a dead engine is noticed here.
        self.within(QUICK, "answer", docker.ping()).await?;
        let labels = self.labels.clone();
        let runtime = self.clone();
        let events = docker.events(Some(options.build())).map(move |item| match item {
            Ok(message) => {
                let actor = message.actor.unwrap_or_default();
                Ok(RuntimeEvent {
                    container: ContainerId(actor.id.unwrap_or_default()),
                    task: actor.attributes.and_then(|labels_of| labels.task(&labels_of)),
                    action: message.action.unwrap_or_default(),
                    at: Timestamp(unsigned(message.time_nano) / 1_000_000),
                })
            }
            Err(error) => Err(runtime.error("the engine's events broke off", error)),
        });
        let end = self.clone();
        let ended = futures::stream::once(async move {
            *end.client.lock() = None;
            Err(RuntimeError::unreachable("Docker Engine closed its stream of events"))
        });
        Ok(events.chain(ended).boxed())
    }

    async fn ensure_network(&self, network: &NetworkAssignment, mtu: u32) -> Result<LocalNetwork> {
        let docker = self.docker().await?;
        let version = docker.client_version();
        let api = (version.major_version, version.minor_version);
        let wanted = docker_network_options(network, mtu, api).map_err(|problem| {
            RuntimeError::fatal(problem)
                .with_hint("change it in the network's `driver_opts`, or leave it out")
        })?;
        if let Some(found) = self.network_of(network.id).await? {
            let name = found.name.clone().unwrap_or_default();
            let has_options = has_options(&found, &network.driver_opts);
            if is_as_asked(&found, &wanted) && has_options {
                return Ok(LocalNetwork { name });
            }
            // It was made for an assignment that has changed; nothing uses it, or this fails and is tried again.
            match self.remove_network(network.id).await {
                // Options wait until no container is left on it: a task that replaces one needs the network meanwhile.
                Err(error)
                    if error.is_temporary() && !error.is_unreachable() && is_as_asked(&found, &wanted) =>
                {
                    tracing::warn!(network = name, "network keeps its options while containers are on it");
                    return Ok(LocalNetwork { name });
                }
                removed => removed?,
            }
        }
        let taken = self.networks(("name", network.name.clone())).await?;
        let name = if taken.iter().any(|other| other.name.as_ref() == Some(&network.name)) {
            format!("{}-{}", network.name, network.id.short())
        } else {
            network.name.clone()
        };
        let pools = pools(&wanted);
        let mut labels: HashMap<_, _> = wanted.labels.into_iter().collect();
        labels.extend(self.labels.of_network(network.id));
        let request = NetworkCreateRequest {
            name: name.clone(),
            driver: Some(wanted.driver.to_owned()),
            internal: Some(wanted.internal),
            attachable: Some(wanted.attachable),
            enable_ipv6: Some(wanted.ipv6.is_some()),
            ipam: Some(Ipam { driver: Some("default".to_owned()), config: Some(pools), options: None }),
            options: Some(wanted.options.into_iter().collect()),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        self.within(SLOW, &format!("create the network {name}"), docker.create_network(request)).await?;
        Ok(LocalNetwork { name })
    }

    async fn remove_network(&self, network: NetworkId) -> Result<()> {
        let Some(found) = self.network_of(network).await? else { return Ok(()) };
        let docker = self.docker().await?;
        let id = found.id.unwrap_or_default();
        match timeout(SLOW, docker.remove_network(&id)).await {
            Ok(Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. })) => Ok(()),
            Ok(Err(Error::DockerResponseServerError { message, .. }))
                if message.contains("active endpoints") =>
            {
                Err(RuntimeError::temporary(format!("the network is in use: {message}")))
            }
            Ok(Err(error)) => Err(self.error("cannot remove the network", error)),
            Err(_elapsed) => {
                Err(RuntimeError::unreachable("Docker Engine did not remove the network in time"))
            }
        }
    }

    async fn list_networks(&self) -> Result<Vec<NetworkId>> {
        let found = self.networks(("label", self.labels.filter())).await?;
        Ok(found.iter().filter_map(|network| self.labels.network(network.labels.as_ref()?)).collect())
    }

    async fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<LocalVolume> {
        let docker = self.docker().await?;
        if let Some(found) = self.volume_of(volume.id).await? {
            return Ok(LocalVolume { name: found.name });
        }
        let taken = gone_is_none(
            self.within(QUICK, "look for the volume", docker.inspect_volume(&volume.name)).await,
        )?;
        if volume.spec.external {
            // Made by another app or by hand; it is theirs to describe and to remove.
            return match taken {
                Some(found) => Ok(LocalVolume { name: found.name }),
                None => Err(super::no_external_volume(&volume.name)),
            };
        }
        self.remove_leftovers().await?;
        let driver = volume.spec.driver.clone().unwrap_or_else(|| "local".to_owned());
        let options = if driver == "local" && volume.spec.driver_opts.is_empty() {
            let folder = self.volume_folder(volume.id);
            make_folder(&folder).await?;
            HashMap::from([
                ("type".to_owned(), "none".to_owned()),
                ("o".to_owned(), "bind".to_owned()),
                ("device".to_owned(), folder.to_string_lossy().into_owned()),
            ])
        } else {
            volume.spec.driver_opts.clone().into_iter().collect()
        };
        let name = if taken.is_some() {
            // Another app's, or not Wharf's at all: never mounted in its place.
            format!("{}-{}", volume.name, volume.id.short())
        } else {
            volume.name.clone()
        };
        let mut labels: HashMap<_, _> = volume.spec.labels.clone().into_iter().collect();
        labels.extend(self.labels.of_volume(volume.id));
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            driver: Some(driver),
            driver_opts: Some(options),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        self.within(SLOW, &format!("create the volume {name}"), docker.create_volume(request)).await?;
        Ok(LocalVolume { name })
    }

    async fn remove_volume(&self, volume: VolumeId) -> Result<()> {
        if let Some(found) = self.volume_of(volume).await? {
            match self.remove_engine_volume(&found.name).await {
                Ok(()) => {}
                // Docker Engine 20.10 miscounts mounts after a restart under live-restore, and then keeps the entry
                // until it restarts once more. The data can go; the empty entry goes in `remove_leftovers`.
                Err(error)
                    if error.to_string().contains("active mounts")
                        && is_prepared(&found)
                        && !self.volume_is_used(&found.name).await? =>
                {
                    tracing::info!(
                        volume = found.name,
                        "engine keeps the entry of a volume whose data is deleted"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        let folder = self.volume_folder(volume);
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RuntimeError::temporary(format!("cannot delete {}: {error}", folder.display())))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn list_images(&self) -> Result<Vec<NodeImage>> {
        let used = self.used_images().await?;
        let docker = self.docker().await?;
        let options = ListImagesOptionsBuilder::default().digests(true).build();
        let images = self.within(QUICK, "list images", docker.list_images(Some(options))).await?;
        // What has lost its name is listed with one that says so.
        let named = |names: Vec<String>| names.into_iter().filter(|name| !name.starts_with("<none>"));
        let digest = |name: String| name.split_once('@').map(|(_, digest)| digest.to_owned());
        let image = |found: bollard::models::ImageSummary| NodeImage {
            used: used.contains(&found.id),
            names: named(found.repo_tags).collect(),
            digests: named(found.repo_digests).filter_map(digest).collect(),
            size: unsigned(Some(found.size)),
            id: found.id,
        };
        Ok(images.into_iter().map(image).collect())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        if self.used_images().await?.contains(id) {
            // Without a name it could not be found any more, and would still be there.
            return Err(RuntimeError::temporary(format!("a container is made from the image {id}")));
        }
        let Some(found) = self.local_image(id).await? else { return Ok(()) };
        for name in found.repo_tags.unwrap_or_default().iter().chain(&found.repo_digests.unwrap_or_default())
        {
            self.remove_image_name(name).await?;
        }
        // One that had no name.
        self.remove_image_name(id).await
    }
}

impl DockerRuntime {
    /// The identifiers of images that containers are made from, whoever made them.
    async fn used_images(&self) -> Result<BTreeSet<String>> {
        let docker = self.docker().await?;
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let all = self.within(QUICK, "list containers", docker.list_containers(Some(options))).await?;
        Ok(all.into_iter().filter_map(|container| container.image_id).collect())
    }

    /// Takes a name from an image, or the image itself away if it has no other; nothing happens if that is done.
    async fn remove_image_name(&self, name: &str) -> Result<()> {
        let docker = self.docker().await?;
        let options = RemoveImageOptionsBuilder::default().force(false).build();
        match timeout(SLOW, docker.remove_image(name, Some(options), None)).await {
            Ok(Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. })) => Ok(()),
            Ok(Err(Error::DockerResponseServerError { status_code: 409, message })) => {
                Err(RuntimeError::temporary(format!("cannot remove the image: {message}")))
            }
            Ok(Err(error)) => Err(self.error("cannot remove the image", error)),
            Err(_elapsed) => Err(RuntimeError::unreachable("Docker Engine did not remove the image in time")),
        }
    }
}

/// Whether the engine's own settings bound the output of containers, as far as its file of settings tells.
fn engine_bounds_output() -> bool {
    let settings = std::fs::read("/etc/docker/daemon.json").unwrap_or_default();
    let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap_or_default();
    settings["log-opts"].as_object().is_some_and(|options| options.contains_key("max-size"))
}

/// A command at work in a container of this engine.
struct DockerExec {
    runtime: DockerRuntime,
    id: String,
}

impl DockerExec {
    async fn inspect(&self) -> Result<bollard::models::ExecInspectResponse> {
        let docker = self.runtime.docker().await?;
        self.runtime.within(QUICK, "ask about the command", docker.inspect_exec(&self.id)).await
    }
}

#[async_trait]
impl ExecControl for DockerExec {
    async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let docker = self.runtime.docker().await?;
        let options = ResizeExecOptionsBuilder::default().w(i32::from(columns)).h(i32::from(rows)).build();
        self.runtime.within(QUICK, "resize the terminal", docker.resize_exec(&self.id, options)).await
    }

    /// The engine has no call for it: the process is signalled by its identifier on the node.
    async fn signal(&self, signal: &str) -> Result<()> {
        let number = signal_number(signal)?;
        let found = self.inspect().await?;
        let pid = found.pid.filter(|pid| *pid > 1 && found.running == Some(true));
        let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), number) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(RuntimeError::fatal(format!("cannot send {number} to the command: {error}"))),
        }
    }

    async fn exit_code(&self) -> Result<i64> {
        const LOOKS: u32 = 50;
        for _ in 0..LOOKS {
            let found = self.inspect().await?;
            if found.running != Some(true)
                && let Some(code) = found.exit_code
            {
                return Ok(code);
            }
            // The output ends a moment before the engine notes the exit code.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(RuntimeError::temporary("the command's output has ended, and the command has not"))
    }
}

/// `SIGTERM`, `TERM` or `15`.
pub(super) fn signal_number(text: &str) -> Result<nix::sys::signal::Signal> {
    use nix::sys::signal::Signal;
    let upper = text.to_ascii_uppercase();
    let known = match upper.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) if upper.starts_with("SIG") => upper.parse().ok(),
        Err(_) => format!("SIG{upper}").parse().ok(),
    };
    known.ok_or_else(|| RuntimeError::fatal(format!("`{text}` is not a signal")))
}

/// A reference taken apart; a digest written into it is left to [`Image::digest`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    pub(super) repository: &'a str,
    pub(super) tag: &'a str,
}
impl<'a> Reference<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let after_slash = name.rfind('/').map_or(0, |slash| slash + 1);
        match name[after_slash..].find(':') {
            Some(colon) => {
                let (repository, tag) = name.split_at(after_slash + colon);
                Self { repository, tag: &tag[1..] }
            }
            None => Self { repository: name, tag: digest.unwrap_or("latest") },
        }
    }
}

/// How far each layer of a pull has come.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, Progress>);

impl Layers {
    /// The sum over all layers, if this message changed it.
    fn note(&mut self, message: &CreateImageInfo) -> Option<Progress> {
        let id = message.id.clone()?;
        match message.status.as_deref()? {
            "Downloading" => {
                let detail = message.progress_detail.as_ref()?;
                let current = unsigned(detail.current);
                let total = unsigned(detail.total).max(current);
                self.0.insert(id, Progress { current, total });
            }
            "Download complete" | "Pull complete" => {
                let layer = self.0.get_mut(&id)?;
                layer.current = layer.total;
            }
            _ => return None,
        }
        Some(self.0.values().fold(Progress { current: 0, total: 0 }, |sum, layer| Progress {
            current: sum.current.saturating_add(layer.current),
            total: sum.total.saturating_add(layer.total),
        }))
    }
}

fn docker_credentials(credentials: &Credentials) -> DockerCredentials {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    DockerCredentials {
        username: given(&credentials.username),
        password: given(&credentials.password),
        serveraddress: given(&credentials.server),
        identitytoken: credentials.identity_token.clone(),
        ..DockerCredentials::default()
    }
}

fn missing_here(image: &Image, why: &str) -> RuntimeError {
    let reference = &image.reference;
    RuntimeError::fatal(format!("this node does not have the image {reference}, {why}")).with_hint(format!(
        "it exists only on the nodes it was loaded on: `docker save {reference} | ssh NODE docker load` brings it here, \
         or push it to a registry that every node can reach"
    ))
}

/// What a registry said, through the engine: some of it is final.
fn registry_error(what: &str, text: &str) -> RuntimeError {
    let lower = text.to_ascii_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let message = format!("{what}: {text}");
    if says(&[
        "no such host",
        "timeout",
        "connection refused",
        "network is unreachable",
        "toomanyrequests",
        "eof",
        "i/o",
    ]) {
        RuntimeError::temporary(message)
    } else if says(&["unauthorized", "denied", "authentication required", "no basic auth"]) {
        RuntimeError::fatal(message)
            .with_hint("check the image's name, or give the credentials of its registry")
    } else if says(&["manifest unknown", "not found", "does not exist", "name unknown", "invalid reference"])
    {
        RuntimeError::fatal(message).with_hint("check the image's name and tag")
    } else if says(&["no matching manifest"]) {
        RuntimeError::fatal(message).with_hint("the image is not built for this node's platform: build it for it, or constrain the service to other nodes")
    } else if says(&["http response to https client", "x509"]) {
        RuntimeError::fatal(message)
            .with_hint("tell Docker Engine to trust the registry (`insecure-registries`, or its certificate under /etc/docker/certs.d)")
    } else if says(&["no space left"]) {
        RuntimeError::temporary(message)
            .with_hint("make room on the disk of Docker Engine: `docker image prune`")
    } else {
        RuntimeError::temporary(message)
    }
}

fn meaning(what: &str, error: Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { status_code, message } => {
            server_error(what, status_code, &message)
        }
        Error::SocketNotFoundError(socket) => {
            RuntimeError::unreachable(format!("{what}: there is no socket {socket}"))
                .with_hint("install Docker Engine, or start it: `systemctl start docker`")
        }
        Error::RequestTimeoutError
        | Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. } => {
            RuntimeError::unreachable(format!("{what}: {}", wharf_process::errors::chain(&error)))
                .with_hint("see whether Docker Engine runs on the node: `systemctl status docker`")
        }
        Error::DockerStreamError { error } => RuntimeError::temporary(format!("{what}: {error}")),
        other => RuntimeError::fatal(format!("{what}: {}", wharf_process::errors::chain(&other))),
    }
}

fn server_error(what: &str, status: u16, text: &str) -> RuntimeError {
    let message = format!("{what}: {text}");
    let says = |part: &str| text.contains(part);
    if status == 404 {
        RuntimeError::not_found(message)
    } else if says("Address already in use") || says("device or resource busy") {
        // The container that has the address or the device is on its way out.
        RuntimeError::temporary(message)
    } else if says("port is already allocated") || says("bind: address already in use") {
        RuntimeError::fatal(message)
            .with_hint("something else on this node listens on that port: stop it, or publish another one")
    } else if says("executable file not found") || says("no such file or directory: unknown") {
        RuntimeError::fatal(message)
            .with_hint("check `command` and `entrypoint`: the image has no such program")
    } else if says("permission denied: unknown") {
        RuntimeError::fatal(message)
            .with_hint("check `command` and `entrypoint`: the program is not executable")
    } else if says("bind source path does not exist") {
        RuntimeError::fatal(message)
            .with_hint("create that path on the node, or let `create_host_path: true` do it")
    } else if says("overlaps with other one") || says("conflicts with network") {
        RuntimeError::fatal(message).with_hint(
            "another Docker network on this node has these addresses: remove it, or choose another subnet",
        )
    } else if says("no space left") || status == 503 {
        RuntimeError::temporary(message)
    } else {
        RuntimeError::fatal(message)
    }
}

fn gone_is_none<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn make_folder(folder: &Path) -> Result<()> {
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(|error| RuntimeError::temporary(format!("cannot make {}: {error}", folder.display())))
}

/// The subnets of a network with the node's address in each, the IPv4 one first.
fn pools(wanted: &DockerNetwork) -> Vec<IpamConfig> {
    let pool = |subnet: String, gateway: String| IpamConfig {
        subnet: Some(subnet),
        gateway: Some(gateway),
        ..IpamConfig::default()
    };
    let second = wanted.ipv6.map(|(subnet, gateway)| pool(subnet.to_string(), gateway.to_string()));
    // The engine itself has none to give: a container made by hand would get what may be a task's on another node.
    let none = Some(format!("{}/32", wanted.gateway));
    let first = IpamConfig { ip_range: none, ..pool(wanted.subnet.to_string(), wanted.gateway.to_string()) };
    [first].into_iter().chain(second).collect()
}

fn is_as_asked(found: &Network, wanted: &DockerNetwork) -> bool {
    let there = found.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let pairs = |pools: &[IpamConfig]| -> Vec<_> {
        pools.iter().map(|pool| (pool.subnet.clone(), pool.gateway.clone())).collect()
    };
    pairs(there) == pairs(&pools(wanted))
        && found.internal.unwrap_or_default() == wanted.internal
        && found.enable_ipv6.unwrap_or_default() == wanted.ipv6.is_some()
}

/// Whether a network was made with these options of its driver.
fn has_options(found: &Network, wanted: &BTreeMap<String, String>) -> bool {
    let found = |key: &String| found.options.as_ref().and_then(|options| options.get(key));
    wanted.iter().all(|(key, value)| found(key) == Some(value))
}

/// Whether the data of a volume is in a folder that the agent prepared.
fn is_prepared(volume: &bollard::models::Volume) -> bool {
    volume.driver == "local" && volume.options.get("type").is_some_and(|kind| kind == "none")
}

fn read_image(found: bollard::models::ImageInspect) -> LocalImage {
    let check = found.config.and_then(|config| config.healthcheck).and_then(|check| check.test);
    let has_healthcheck =
        check.is_some_and(|test| test.first().is_some_and(|kind| !kind.is_empty() && kind != "NONE"));
    LocalImage { id: found.id.unwrap_or_default(), has_healthcheck, pulled: false }
}

/// How a local image is pinned: by its digest at the reference's registry if it came from there, and by its identifier.
fn read_pinned(reference: &str, local: bollard::models::ImageInspect) -> Image {
    let repository = Reference::parse(reference).repository;
    let digests = local.repo_digests.unwrap_or_default();
    let digest = digests.iter().find_map(|known| known.strip_prefix(repository)?.strip_prefix('@'));
    Image { digest: digest.map(str::to_owned), id: local.id, ..Image::named(reference) }
}

fn read_container(found: ContainerInspectResponse, task: TaskId) -> Result<Container> {
    let id = found.id.unwrap_or_default();
    let engine = found.state.unwrap_or_default();
    let time = |text: &Option<String>| text.as_deref().and_then(parse_time);
    let started_at = time(&engine.started_at);
    let state = match engine.status {
        Some(ContainerStateStatusEnum::CREATED) if engine.error.as_deref().unwrap_or_default().is_empty() => {
            ContainerState::Created
        }
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => ContainerState::Running { started_at: started_at.unwrap_or_default() },
        // One that the engine could not start is `created` with an error.
        Some(
            ContainerStateStatusEnum::CREATED
            | ContainerStateStatusEnum::EXITED
            | ContainerStateStatusEnum::DEAD
            | ContainerStateStatusEnum::REMOVING,
        ) => ContainerState::Exited {
            started_at,
            ended_at: time(&engine.finished_at).unwrap_or_default(),
            exit: Exit {
                code: engine.exit_code.unwrap_or_default(),
                oom: engine.oom_killed.unwrap_or_default(),
            },
            error: engine.error.unwrap_or_default(),
        },
        Some(ContainerStateStatusEnum::EMPTY) | None => {
            return Err(RuntimeError::temporary(format!(
                "the engine does not say what the container {id} does"
            )));
        }
    };
    let settings = found.network_settings.unwrap_or_default();
    let check = engine.health.and_then(|health| {
        let verdict = match health.status? {
            HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => return None,
            HealthStatusEnum::STARTING => Health::Starting,
            HealthStatusEnum::HEALTHY => Health::Healthy,
            HealthStatusEnum::UNHEALTHY => Health::Unhealthy,
        };
        let output = health.log.unwrap_or_default().pop().and_then(|last| last.output).unwrap_or_default();
        Some(EngineCheck { health: verdict, output: output.trim_end().to_owned() })
    });
    let endpoints = settings.networks.unwrap_or_default();
    Ok(Container {
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        task,
        image_id: found.image.unwrap_or_default(),
        state,
        pid: engine.pid.unwrap_or_default(),
        check,
        host_ports: host_ports(settings.ports.unwrap_or_default()),
        addresses: endpoints
            .into_iter()
            .filter_map(|(network, endpoint)| {
                // Before the start only the wish is known.
                let actual = endpoint.ip_address.filter(|address| !address.is_empty());
                let wish = endpoint.ipam_config.and_then(|config| config.ipv4_address);
                Some((network, actual.or(wish)?.parse().ok()?))
            })
            .collect(),
        id: ContainerId(id),
    })
}

fn host_ports(ports: bollard::models::PortMap) -> BTreeMap<u16, u16> {
    let pairs = ports.into_iter().filter_map(|(container, bindings)| {
        let container = container.split('/').next()?.parse().ok()?;
        let host = bindings?.first()?.host_port.as_ref()?.parse().ok()?;
        Some((container, host))
    });
    pairs.collect()
}

fn read_frame(output: LogOutput) -> LogFrame {
    let (source, bytes) = match output {
        LogOutput::StdErr { message } => (LogSource::Stderr, message),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            (LogSource::Stdout, message)
        }
    };
    let stamp = bytes.iter().take(40).position(|byte| *byte == b' ');
    let at = stamp.and_then(|end| parse_time(std::str::from_utf8(&bytes[..end]).ok()?));
    match (at, stamp) {
        (Some(at), Some(end)) => LogFrame { at: Some(at), source, bytes: bytes.slice(end + 1..) },
        _ => LogFrame { at: None, source, bytes },
    }
}

/// The engine's times; the year 1 stands for never.
fn parse_time(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().filter(|ms| *ms > 0).map(Timestamp)
}

fn read_stats(stats: &ContainerStatsResponse) -> Stats {
    let cpu = |stats: &Option<bollard::models::ContainerCpuStats>| {
        let stats = stats.as_ref()?;
        Some((
            stats.cpu_usage.as_ref()?.total_usage?,
            stats.system_cpu_usage.unwrap_or_default(),
            stats.online_cpus,
        ))
    };
    let (total, system, online) = cpu(&stats.cpu_stats).unwrap_or_default();
    let before = cpu(&stats.precpu_stats).filter(|(_, system, _)| *system > 0);
    let cpu_millis = before.map_or(0, |(earlier, earlier_system, _)| {
        let used = u128::from(total.saturating_sub(earlier)) * 1000 * u128::from(online.unwrap_or(1).max(1));
        let passed = u128::from(system.saturating_sub(earlier_system)).max(1);
        u64::try_from(used / passed).unwrap_or(u64::MAX)
    });
    let memory = stats.memory_stats.as_ref();
    let usage = memory.and_then(|memory| memory.usage).unwrap_or_default();
    // What the page cache could give back: by its name under cgroup v1, else v2.
    let cache = memory.and_then(|memory| memory.stats.as_ref()).and_then(|details| {
        details.get("total_inactive_file").or_else(|| details.get("inactive_file")).copied()
    });
    let networks = stats.networks.as_ref();
    let sum = |pick: fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| {
        networks.map_or(0, |networks| networks.values().filter_map(pick).sum())
    };
    let disk = |op: &str| -> u64 {
        let entries = stats.blkio_stats.as_ref().and_then(|blkio| blkio.io_service_bytes_recursive.as_ref());
        let of_op = entries
            .into_iter()
            .flatten()
            .filter(|entry| entry.op.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(op)));
        of_op.filter_map(|entry| entry.value).sum()
    };
    Stats {
        at: stats.read.as_deref().and_then(parse_time).unwrap_or_default(),
        cpu_nanos: total,
        cpu_millis,
        memory: usage.saturating_sub(cache.unwrap_or_default()),
        memory_limit: memory.and_then(|memory| memory.limit).unwrap_or_default(),
        pids: stats.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or_default(),
        received: sum(|network| network.rx_bytes),
        sent: sum(|network| network.tx_bytes),
        read: disk("read"),
        written: disk("write"),
    }
}

fn unsigned(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default()
}

/// `uname` has one name for a processor, OCI another.
fn oci_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_read_files_of_the_node_where_nothing_stands_between() {
        let ways = |options: &[&str]| {
            let security_options = Some(options.iter().map(ToString::to_string).collect());
            Ways::of(&SystemInfo { security_options, ..SystemInfo::default() }).shares_files
        };
        assert!(ways(&["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"]));
        for guard in ["name=selinux", "name=userns", "name=rootless"] {
            assert!(!ways(&["name=seccomp,profile=builtin", guard]), "{guard}");
        }
        assert!(Ways::of(&SystemInfo::default()).shares_files, "older engines do not say");
    }

    #[test]
    fn references_are_taken_apart() {
        let parse = |text: &'static str| {
            let reference = Reference::parse(text);
            (reference.repository, reference.tag)
        };
        assert_eq!(parse("mariadb"), ("mariadb", "latest"));
        assert_eq!(parse("mariadb:11"), ("mariadb", "11"));
        assert_eq!(parse("localhost:5000/a/b"), ("localhost:5000/a/b", "latest"));
        assert_eq!(parse("localhost:5000/a/b:1"), ("localhost:5000/a/b", "1"));
        assert_eq!(parse("a:1@sha256:ab"), ("a", "1"));
        assert_eq!(parse("a@sha256:ab"), ("a", "sha256:ab"));
    }

    #[test]
    fn what_can_pass_is_tried_again_and_what_cannot_is_not() {
        let cases = [
            ("dial tcp: lookup registry.example: no such host", true),
            ("manifest for nginx:nope not found: manifest unknown", false),
            ("pull access denied for foo, repository does not exist or may require 'docker login'", false),
            ("net/http: TLS handshake timeout", true),
            ("http: server gave HTTP response to HTTPS client", false),
        ];
        for (text, temporary) in cases {
            assert_eq!(registry_error("cannot pull x", text).is_temporary(), temporary, "{text}");
        }
        assert!(server_error("cannot start", 500, "Address already in use").is_temporary());
        let port = server_error("cannot start", 500, "Bind for 0.0.0.0:80 failed: port is already allocated");
        assert!(!port.is_temporary() && port.hint().is_some());
    }

    #[test]
    fn a_pull_counts_the_bytes_of_all_its_layers() {
        let message = |id: &str, status: &str, current, total| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(bollard::models::ProgressDetail { current, total }),
            ..CreateImageInfo::default()
        };
        let mut layers = Layers::default();
        layers.note(&message("a", "Downloading", Some(10), Some(100)));
        layers.note(&message("b", "Downloading", Some(5), Some(50)));
        let sum = layers.note(&message("a", "Download complete", None, None));
        assert_eq!(sum, Some(Progress { current: 105, total: 150 }));
        assert_eq!(layers.note(&message("a", "Extracting", Some(1), Some(2))), None);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["SIGTERM", "term", "15"] {
            assert_eq!(signal_number(text).unwrap(), nix::sys::signal::Signal::SIGTERM, "{text}");
        }
        assert!(signal_number("SIGNOTHING").is_err());
    }
}
