//! What the agent needs of a container engine, behind a trait.
//!
//! - Every call may be made twice, cut off and made again: "ensure" is what they all mean.
//! - Every call ends: streams aside, each has a deadline of its own.
//! - What does not carry the labels of this cluster is never listed, changed or removed; asking for it is an error.
//! - [`contract::check`] holds every implementation to this, [`fake::FakeRuntime`] included.

pub mod contract;
pub mod docker;
mod error;
mod exec;
pub mod fake;
mod labels;
mod process;
pub mod spec;

use std::{collections::BTreeMap, io, net::IpAddr, pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use wharf_model::{
    EndpointSpec, EngineFacts, Exit, Health, Image, NetworkAssignment, NetworkId, NodeDevices, Progress,
    PullPolicy, ServiceName, TaskAssignment, TaskId, Timestamp, VolumeAssignment, VolumeId, VolumeName,
};

pub use docker::{DockerOptions, DockerRuntime};
pub use error::RuntimeError;
pub use fake::FakeRuntime;
pub use labels::{Labels, container_name};
pub use process::FirstProcess;

/// What every call answers.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// A container engine, as one cluster's agent uses it.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// What the engine is. An engine that is too old is a fatal error that says so.
    async fn facts(&self) -> Result<RuntimeFacts>;

    /// Makes sure that the node has the image and says what it is here; pulls it if need be and `policy` allows.
    async fn ensure_image(
        &self,
        image: &Image,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
        progress: ProgressSink<'_>,
    ) -> Result<LocalImage>;

    /// Pins a reference: what its registry says it is, else what this node has under that name.
    async fn resolve_image(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
    ) -> Result<Image>;

    /// Makes the task's container, connected and not started; answers the one there is if it was made before.
    async fn create(&self, container: &NewContainer<'_>) -> Result<ContainerId>;

    /// Starts a container; nothing happens if it runs.
    async fn start(&self, container: &ContainerId) -> Result<()>;

    /// Asks a container to stop by its stop signal and ends it when `grace` is over; returns when it has stopped.
    /// Nothing happens if it does not run.
    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<()>;

    /// Sends a signal (`SIGHUP`, `9`) to a container's process; nothing happens if it does not run.
    async fn kill(&self, container: &ContainerId, signal: &str) -> Result<()>;

    /// Removes a container with its anonymous volumes, ending it at once if it runs; nothing happens if it is gone.
    async fn remove(&self, container: &ContainerId) -> Result<()>;

    /// How a container ended, once it has. Waits without a deadline; may be dropped.
    async fn wait(&self, container: &ContainerId) -> Result<Exit>;

    /// The container of that identifier or name, if it is there and this cluster's.
    async fn inspect(&self, container: &ContainerId) -> Result<Option<Container>>;

    /// The process as which a container was found running, to learn of its end without asking the engine. Nothing if the kernel does not
    /// show that the process of that number is this container's.
    async fn first_process(&self, container: &Container) -> io::Result<Option<FirstProcess>> {
        FirstProcess::of(container).await
    }

    /// How many of a running container's processes the kernel has ended for want of memory, where it can tell.
    async fn oom_kills(&self, container: &Container) -> Option<u32> {
        process::oom_kills(container).await
    }

    /// Everything the engine says of a container, in its own words.
    async fn inspect_raw(&self, container: &ContainerId) -> Result<serde_json::Value>;

    /// The containers of this cluster on the node, running or not.
    async fn list(&self) -> Result<Vec<Container>>;

    /// A container's output.
    async fn logs(&self, container: &ContainerId, query: LogQuery) -> Result<LogStream>;

    /// Runs a further command in a running container.
    async fn exec(&self, container: &ContainerId, request: &ExecRequest) -> Result<ExecSession>;

    /// What a container uses: now, or again and again, about every second, until it stops.
    async fn stats(&self, container: &ContainerId, follow: bool)
    -> Result<BoxStream<'static, Result<Stats>>>;

    /// What happens to this cluster's containers, from `since` (exclusive of nothing: an event may come twice). The
    /// stream ends with an error when the engine goes; whoever listens lists, and subscribes again.
    async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, Result<RuntimeEvent>>>;

    /// Makes sure that the network exists as asked, with packets up to `mtu` bytes, and says what the engine calls it.
    async fn ensure_network(&self, network: &NetworkAssignment, mtu: u32) -> Result<LocalNetwork>;

    /// Removes a network of this cluster. One that is in use is a temporary error; one that is gone is none.
    async fn remove_network(&self, network: NetworkId) -> Result<()>;

    /// The networks of this cluster that the engine has.
    async fn list_networks(&self) -> Result<Vec<NetworkId>>;

    /// Makes sure that the volume exists as asked and says what the engine calls it.
    async fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<LocalVolume>;

    /// Removes a volume of this cluster with its data. One that is in use is a temporary error; one that is gone is none.
    async fn remove_volume(&self, volume: VolumeId) -> Result<()>;

    /// Every image that the engine has, whoever brought it.
    async fn list_images(&self) -> Result<Vec<NodeImage>> {
        Ok(Vec::new())
    }

    /// Removes an image by its identifier, with all its names. One that a container is made from is a temporary error; one that is gone
    /// is none.
    async fn remove_image(&self, id: &str) -> Result<()> {
        Err(RuntimeError::fatal(format!("this engine does not remove images, {id} among them")))
    }
}

/// Where the progress of a pull is told.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// The engine's identifier of a container, or its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub String);
impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an engine is, and what its machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// For the node's report.
    pub engine: EngineFacts,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// For example `amd64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// Where it keeps images and containers, if it says so.
    pub data_root: Option<std::path::PathBuf>,
    /// What it was told of devices that can be given out.
    pub devices: Vec<NodeDevices>,
}

/// How to log in at a registry.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// User name.
    #[serde(default)]
    pub username: String,
    /// Password or access token.
    #[serde(default)]
    pub password: String,
    /// An identity token instead of a user and a password.
    #[serde(default)]
    pub identity_token: Option<String>,
    /// The registry: `registry.example.com:5000`.
    #[serde(default)]
    pub server: String,
}
impl std::fmt::Debug for Credentials {
    /// Never shows what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// An image that the node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The engine's identifier of it.
    pub id: String,
    /// Whether it comes with a health check of its own.
    pub has_healthcheck: bool,
    /// It was not there before and has been pulled now.
    pub pulled: bool,
}

/// An image among those that an engine has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeImage {
    /// The engine's identifier of it.
    pub id: String,
    /// Its names with their tags.
    pub names: Vec<String>,
    /// Its digests at registries, without the repositories.
    pub digests: Vec<String>,
    /// Its size in bytes, with layers that other images have, too.
    pub size: u64,
    /// Whether there is a container that is made from it, running or not, whoever made it.
    pub used: bool,
}

/// A network that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNetwork {
    /// What the engine calls it.
    pub name: String,
}

/// What is external is never made here.
fn no_external_volume(name: &str) -> RuntimeError {
    RuntimeError::fatal(format!("the volume `{name}` is external, and this node has none of that name"))
        .with_hint(format!(
            "make it on the node (`docker volume create {name}`) and choose that node with `deploy.placement`, or remove \
             `external: true`"
        ))
}

/// A volume that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVolume {
    /// What the engine calls it.
    pub name: String,
}

/// A container to make.
#[derive(Debug, Clone)]
pub struct NewContainer<'a> {
    /// The task it is for.
    pub task: &'a TaskAssignment,
    /// What it finds on this node.
    pub surroundings: &'a Surroundings,
}

/// What of the node goes into a task's container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The identifier of the image it is made from; what [`LocalImage`] said.
    pub image_id: String,
    /// The networks it is connected to, first the one of its default route.
    pub networks: Vec<Connection>,
    /// What the engine calls its volumes.
    pub volumes: BTreeMap<VolumeName, String>,
    /// Its configs and secrets, as files of the node.
    pub files: Vec<FileBind>,
    /// A file of the node that says how it looks up names; without it the engine's resolver does. For the container alone.
    pub resolv_conf: Option<String>,
    /// The containers with which it shares something, by service.
    pub companions: BTreeMap<ServiceName, ContainerId>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// What the engine calls the network.
    pub network: String,
    /// The container's address.
    pub address: std::net::Ipv4Addr,
    /// Its IPv6 address, if the network has any.
    pub address6: Option<std::net::Ipv6Addr>,
    /// The node's address there, where it answers DNS.
    pub gateway: std::net::Ipv4Addr,
    /// What the engine is told of the connection.
    pub endpoint: EndpointSpec,
}

/// Where a container, as any machine, has how it looks up names (`resolv.conf(5)`).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A file of the node that is mounted read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBind {
    /// Path on the node.
    pub source: String,
    /// Path in the container.
    pub target: String,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The engine's identifier.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The task it was made for.
    pub task: TaskId,
    /// The identifier of its image.
    pub image_id: String,
    /// What its process does.
    pub state: ContainerState,
    /// The process's identifier on the node, 0 if none runs.
    pub pid: i64,
    /// The engine's own health check, if it makes one.
    pub check: Option<EngineCheck>,
    /// Host ports: container port to host port.
    pub host_ports: BTreeMap<u16, u16>,
    /// Addresses by what the engine calls the network.
    pub addresses: BTreeMap<String, IpAddr>,
}

/// What a container's process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// It has not been started.
    Created,
    /// It runs; frozen ones count as running.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// It ended, or could not be started.
    Exited {
        /// When it had been started, if it was.
        started_at: Option<Timestamp>,
        /// When it ended.
        ended_at: Timestamp,
        /// How.
        exit: Exit,
        /// What the engine says about it, often nothing.
        error: String,
    },
}
impl ContainerState {
    /// Whether its process runs.
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// What the engine's health check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCheck {
    /// Its verdict.
    pub health: Health,
    /// What it printed last.
    pub output: String,
}

/// What is wanted of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on with what comes.
    pub follow: bool,
    /// Only the last so many lines of what there is; lines of both outputs count, whichever are wanted.
    pub tail: Option<u64>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}
impl Default for LogQuery {
    /// All there is of both streams, and no more.
    fn default() -> Self {
        Self { follow: false, tail: None, since: None, until: None, stdout: true, stderr: true }
    }
}

/// A container's output, piece by piece.
pub type LogStream = BoxStream<'static, Result<LogFrame>>;

/// A line of output, or a part of one that is very long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFrame {
    /// When the engine read it.
    pub at: Option<Timestamp>,
    /// From where; what a terminal shows counts as standard output.
    pub source: LogSource,
    /// The text with its line end.
    pub bytes: Bytes,
}

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal; both outputs are one then.
    pub tty: bool,
    /// Give it a standard input.
    pub stdin: bool,
    /// Environment, `KEY=value`.
    pub environment: Vec<String>,
    /// As whom, if not as the container's own user.
    pub user: Option<String>,
    /// Where.
    pub working_dir: Option<String>,
    /// All capabilities.
    pub privileged: bool,
    /// The terminal's first size: columns and rows.
    pub size: Option<(u16, u16)>,
}

/// A command at work in a container.
pub struct ExecSession {
    /// Its standard input; closing it closes that of the command.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// Its output; ends when the command has ended.
    pub output: LogStream,
    /// Everything else one can do with it.
    pub control: std::sync::Arc<dyn ExecControl>,
}
impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecSession")
    }
}

/// What one can do with a command at work.
#[async_trait]
pub trait ExecControl: Send + Sync {
    /// Sets the size of its terminal.
    async fn resize(&self, columns: u16, rows: u16) -> Result<()>;
    /// Sends it a signal (`SIGINT`, `2`); nothing happens if it has ended.
    async fn signal(&self, signal: &str) -> Result<()>;
    /// Its exit code, once its output has ended.
    async fn exit_code(&self) -> Result<i64>;
}

/// What a container uses at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// When it was measured.
    pub at: Timestamp,
    /// Processor time since its start, in nanoseconds.
    pub cpu_nanos: u64,
    /// Thousandths of one core, averaged since the measurement before; 0 in a single one.
    pub cpu_millis: u64,
    /// Bytes of memory, page cache that can be given back left out.
    pub memory: u64,
    /// Its limit in bytes; that of the machine if it has none.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received on all networks.
    pub received: u64,
    /// Bytes sent on all networks.
    pub sent: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
}

/// Something happened to a container of this cluster: reason to look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// The container.
    pub container: ContainerId,
    /// The task it was made for.
    pub task: Option<TaskId>,
    /// In the engine's words: `die`, `health_status: healthy`.
    pub action: String,
    /// When.
    pub at: Timestamp,
}
