//! What an app should be: the normalised form of a Compose file.
//!
//! The vocabulary is that of the Compose Specification; short forms are expanded, variables are substituted, defaults that
//! every implementation shares are filled in, and what cannot be honoured never gets this far (crates/compose refuses it).
//! Equality of two specifications means that no container needs replacing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    AppName, AppPolicy, Backend, Bytes, Cpus, DeviceKind, ExternalService, JobSpec, Millis, NetworkName,
    ServiceName, ServicePolicy, VolumeName,
};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A whole app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSpec {
    /// The project name.
    pub name: AppName,
    /// What should run.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// What runs outside the cluster and is found by name; no name is in `services` as well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub externals: BTreeMap<ServiceName, ExternalService>,
    /// What runs to its end when asked for, or by the clock.
    #[serde(default, skip_serializing_if = "is_default")]
    pub jobs: BTreeMap<ServiceName, JobSpec>,
    /// Wharf's own settings for the whole app.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: AppPolicy,
    /// Every network a service is on, `default` among them where it is used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub networks: BTreeMap<NetworkName, NetworkSpec>,
    /// Every named volume.
    #[serde(default, skip_serializing_if = "is_default")]
    pub volumes: BTreeMap<VolumeName, VolumeSpec>,
    /// Configs, by key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub configs: BTreeMap<String, FileSpec>,
    /// Secrets, by key. Their content leaves the server only sealed or to the agent that needs it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub secrets: BTreeMap<String, FileSpec>,
}

/// A config or a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSpec {
    /// Its name outside the app, where it differs.
    #[serde(skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// Its content in base64, as given with the file; absent for external ones, and once it is in the store.
    #[serde(skip_serializing_if = "is_default")]
    pub content: Option<String>,
    /// Names the content, so that a change is seen without it: in a file its SHA-256, in a release what the servers' key makes of it.
    #[serde(skip_serializing_if = "is_default")]
    pub digest: Option<String>,
    /// Made outside this app: one of the environment, by `name` or else by its key.
    #[serde(skip_serializing_if = "is_default")]
    pub external: bool,
    /// Of an external one, the version a release pins.
    #[serde(skip_serializing_if = "is_default")]
    pub version: Option<u64>,
    /// Labels; no container sees them.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The image reference as written, for example `mariadb:11`.
    pub image: String,
    /// When to ask the registry.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pull_policy: PullPolicy,
    /// How many tasks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// How each container is made.
    #[serde(default, skip_serializing_if = "is_default")]
    pub container: ContainerSpec,
    /// What must be there first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// How it is connected.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network_mode: NetworkMode,
    /// The networks it is on, with [`NetworkMode::Networks`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub networks: BTreeMap<NetworkName, NetworkAttachment>,
    /// Where its name leads (`deploy.endpoint_mode`); a change of it replaces no container.
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoint_mode: EndpointMode,
    /// The ports it publishes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ports: Vec<PortSpec>,
    /// Container ports it says it listens on (`expose`); informative.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expose: Vec<String>,
    /// What happens when a task ends.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// How tasks are replaced.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdatePolicy,
    /// How they are replaced when the app returns to an earlier release; as `update` says if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rollback: Option<UpdatePolicy>,
    /// Where tasks may run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementSpec,
    /// What tasks need and may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// The check inside the container, run by the engine.
    #[serde(default, skip_serializing_if = "is_default")]
    pub healthcheck: Option<Healthcheck>,
    /// Wharf's own check, made from the node (`x-wharf.probe`); it wins over `healthcheck`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub probe: Option<Probe>,
    /// Labels of the service, not of its containers (`deploy.labels`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// The configs it mounts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub configs: Vec<FileMount>,
    /// The secrets it mounts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub secrets: Vec<FileMount>,
    /// Wharf's own settings; a change of them replaces no container.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: ServicePolicy,
}

/// When an image is asked for at its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// If the node does not have it.
    #[default]
    Missing,
    /// At every release.
    Always,
    /// Never: the node must have it.
    Never,
    /// At a release, if it was last asked for so long ago.
    Refresh {
        /// How long.
        after: Millis,
    },
}

/// Where a service's name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointMode {
    /// To the addresses of its ready tasks, which take turns at being first.
    #[default]
    Dnsrr,
    /// To one address on each network, from which each new connection goes to one of the ready tasks.
    Vip,
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Mode {
    /// So many, in slots 1 to `replicas`.
    Replicated {
        /// Wanted number of tasks.
        replicas: u32,
    },
    /// One on every node that may run it.
    Global,
}
impl Default for Mode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// How a container is made: everything Docker Engine is told at creation except networks, ports and names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSpec {
    /// Overrides the image's `CMD`.
    #[serde(skip_serializing_if = "is_default")]
    pub command: Option<Vec<String>>,
    /// Overrides the image's `ENTRYPOINT`; an empty list clears it.
    #[serde(skip_serializing_if = "is_default")]
    pub entrypoint: Option<Vec<String>>,
    /// Environment; `None` removes a variable that the image sets.
    #[serde(skip_serializing_if = "is_default")]
    pub environment: BTreeMap<String, Option<String>>,
    /// Overrides the image's `WORKDIR`.
    #[serde(skip_serializing_if = "is_default")]
    pub working_dir: Option<String>,
    /// Overrides the image's `USER`.
    #[serde(skip_serializing_if = "is_default")]
    pub user: Option<String>,
    /// Host name; the task's name if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub hostname: Option<String>,
    /// Domain name.
    #[serde(skip_serializing_if = "is_default")]
    pub domainname: Option<String>,
    /// Labels of the container.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// OCI annotations (Docker Engine 24 and later).
    #[serde(skip_serializing_if = "is_default")]
    pub annotations: BTreeMap<String, String>,
    /// Give it a terminal.
    #[serde(skip_serializing_if = "is_default")]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(skip_serializing_if = "is_default")]
    pub stdin_open: bool,
    /// Run an init process as PID 1.
    #[serde(skip_serializing_if = "is_default")]
    pub init: Option<bool>,
    /// Read-only root file system.
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// All capabilities and devices.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Capabilities added.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(skip_serializing_if = "is_default")]
    pub cap_drop: Vec<String>,
    /// Security options, as Docker takes them.
    #[serde(skip_serializing_if = "is_default")]
    pub security_opt: Vec<String>,
    /// Additional groups.
    #[serde(skip_serializing_if = "is_default")]
    pub group_add: Vec<String>,
    /// Devices of the host.
    #[serde(skip_serializing_if = "is_default")]
    pub devices: Vec<DeviceMapping>,
    /// Rules for the device cgroup.
    #[serde(skip_serializing_if = "is_default")]
    pub device_cgroup_rules: Vec<String>,
    /// Name servers used instead of the cluster's.
    #[serde(skip_serializing_if = "is_default")]
    pub dns: Vec<IpAddr>,
    /// Search domains.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "is_default")]
    pub dns_opt: Vec<String>,
    /// Lines for `/etc/hosts`: `name:address`; `host-gateway` is passed on.
    #[serde(skip_serializing_if = "is_default")]
    pub extra_hosts: Vec<String>,
    /// Which IPC namespace: `host`, `none`, `private`, `shareable`, or that of another service.
    #[serde(skip_serializing_if = "is_default")]
    pub ipc: Option<Namespace>,
    /// Which PID namespace: `host`, or that of another service.
    #[serde(skip_serializing_if = "is_default")]
    pub pid: Option<Namespace>,
    /// UTS namespace mode.
    #[serde(skip_serializing_if = "is_default")]
    pub uts: Option<String>,
    /// User namespace mode.
    #[serde(skip_serializing_if = "is_default")]
    pub userns_mode: Option<String>,
    /// Cgroup namespace mode: `host` or `private`.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup: Option<String>,
    /// Parent cgroup.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup_parent: Option<String>,
    /// Size of `/dev/shm`.
    #[serde(skip_serializing_if = "is_default")]
    pub shm_size: Option<Bytes>,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "is_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of the process.
    #[serde(skip_serializing_if = "is_default")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Temporary file systems: path and options.
    #[serde(skip_serializing_if = "is_default")]
    pub tmpfs: BTreeMap<String, String>,
    /// Everything mounted.
    #[serde(skip_serializing_if = "is_default")]
    pub mounts: Vec<MountSpec>,
    /// Containers of other services whose volumes and binds it has as well.
    #[serde(skip_serializing_if = "is_default")]
    pub volumes_from: Vec<VolumesFrom>,
    /// Where the engine sends its output; Docker's default if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub logging: Option<Logging>,
    /// Do not kill it when memory is out.
    #[serde(skip_serializing_if = "is_default")]
    pub oom_kill_disable: bool,
    /// Its preference as the kernel's victim, −1000 to 1000.
    #[serde(skip_serializing_if = "is_default")]
    pub oom_score_adj: Option<i64>,
    /// 0 to 100.
    #[serde(skip_serializing_if = "is_default")]
    pub mem_swappiness: Option<i64>,
    /// Memory and swap together; −1 is unlimited.
    #[serde(skip_serializing_if = "is_default")]
    pub memswap_limit: Option<i64>,
    /// Relative weight of processor time.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_shares: Option<i64>,
    /// CFS period in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_period: Option<i64>,
    /// CFS quota in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_quota: Option<i64>,
    /// Real-time period in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_rt_period: Option<i64>,
    /// Real-time runtime in microseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_rt_runtime: Option<i64>,
    /// Cores it may use: `0-3`, `0,1`.
    #[serde(skip_serializing_if = "is_default")]
    pub cpuset: Option<String>,
    /// Block I/O weight and limits.
    #[serde(skip_serializing_if = "is_default")]
    pub blkio: Option<Blkio>,
    /// OCI runtime.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: Option<String>,
    /// Storage driver options.
    #[serde(skip_serializing_if = "is_default")]
    pub storage_opt: BTreeMap<String, String>,
    /// Signal that asks it to stop; the image's if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: Option<String>,
    /// Time between that signal and SIGKILL; 10 s if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub stop_grace_period: Option<Millis>,
    /// What is run in the container once its process runs; the task comes up only if all of it succeeds.
    #[serde(skip_serializing_if = "is_default")]
    pub post_start: Vec<Hook>,
    /// What is run in the container before it is asked to stop.
    #[serde(skip_serializing_if = "is_default")]
    pub pre_stop: Vec<Hook>,
}

/// A namespace of the kernel that a container lives in; written as Compose writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Namespace {
    /// In the engine's words: the node's, or one of its own.
    Mode(String),
    /// That of a task of another service on the same node.
    Service(ServiceName),
}
impl TryFrom<String> for Namespace {
    type Error = crate::InvalidName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("service:") {
            Some(name) => name.parse().map(Self::Service),
            None => Ok(Self::Mode(text)),
        }
    }
}
impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        match namespace {
            Namespace::Mode(mode) => mode,
            Namespace::Service(service) => format!("service:{service}"),
        }
    }
}

/// The volumes and binds of another service's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumesFrom {
    /// Whose.
    pub service: ServiceName,
    /// None of them writable.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

/// What a container may have in common with one of another service, for which both must be on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    /// `network_mode: service:…`.
    Network,
    /// `ipc: service:…`.
    Ipc,
    /// `pid: service:…`.
    Pid,
    /// `volumes_from`.
    Volumes,
}
impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Network => "network",
            Self::Ipc => "IPC namespace",
            Self::Pid => "PID namespace",
            Self::Volumes => "volumes",
        })
    }
}

impl ServiceSpec {
    /// The services with whose tasks this one's share something; of several things, the first.
    pub fn companions(&self) -> BTreeMap<&ServiceName, Shared> {
        let network = match &self.network_mode {
            NetworkMode::Service(service) => Some((service, Shared::Network)),
            NetworkMode::Networks | NetworkMode::Host | NetworkMode::None | NetworkMode::Bridge => None,
        };
        let mut companions = BTreeMap::new();
        let namespaces = [(&self.container.ipc, Shared::Ipc), (&self.container.pid, Shared::Pid)];
        let namespaces = namespaces.into_iter().filter_map(|(namespace, shared)| match namespace {
            Some(Namespace::Service(service)) => Some((service, shared)),
            Some(Namespace::Mode(_)) | None => None,
        });
        let volumes = self.container.volumes_from.iter().map(|from| (&from.service, Shared::Volumes));
        for (service, shared) in network.into_iter().chain(namespaces).chain(volumes) {
            companions.entry(service).or_insert(shared);
        }
        companions
    }
}

/// A further command in a container, run at a moment of its life.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// As whom; as the container's own user if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub user: Option<String>,
    /// With all capabilities.
    #[serde(skip_serializing_if = "is_default")]
    pub privileged: bool,
    /// Where; where the container's own process runs if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub working_dir: Option<String>,
    /// Beside the container's own environment, and over it.
    #[serde(skip_serializing_if = "is_default")]
    pub environment: BTreeMap<String, String>,
}

/// A device of the host given to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMapping {
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// A soft and a hard limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// In force.
    pub soft: i64,
    /// Up to which the process may raise it.
    pub hard: i64,
}

/// Block I/O.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blkio {
    /// 10 to 1000.
    #[serde(skip_serializing_if = "is_default")]
    pub weight: Option<u16>,
    /// Weight by device path.
    #[serde(skip_serializing_if = "is_default")]
    pub weight_device: BTreeMap<String, u16>,
    /// Bytes per second by device path.
    #[serde(skip_serializing_if = "is_default")]
    pub device_read_bps: BTreeMap<String, u64>,
    /// Bytes per second by device path.
    #[serde(skip_serializing_if = "is_default")]
    pub device_write_bps: BTreeMap<String, u64>,
    /// Operations per second by device path.
    #[serde(skip_serializing_if = "is_default")]
    pub device_read_iops: BTreeMap<String, u64>,
    /// Operations per second by device path.
    #[serde(skip_serializing_if = "is_default")]
    pub device_write_iops: BTreeMap<String, u64>,
}

/// Where the engine sends a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// Docker's logging driver; its default if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub driver: Option<String>,
    /// The driver's options.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: BTreeMap<String, String>,
}

/// Something mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// What.
    pub source: MountSource,
    /// Where, an absolute path in the container.
    pub target: String,
    /// Not writable.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum MountSource {
    /// A named volume of the app.
    Volume {
        /// Its key under `volumes:`.
        volume: VolumeName,
        /// Do not copy the image's content into an empty volume.
        #[serde(default, skip_serializing_if = "is_default")]
        nocopy: bool,
        /// A folder inside the volume (Docker Engine 26 and later).
        #[serde(default, skip_serializing_if = "is_default")]
        subpath: Option<String>,
    },
    /// A volume of its own for each task, removed with it.
    Anonymous {
        /// Do not copy the image's content into it.
        #[serde(default, skip_serializing_if = "is_default")]
        nocopy: bool,
        /// Its labels.
        #[serde(default, skip_serializing_if = "is_default")]
        labels: BTreeMap<String, String>,
    },
    /// The content of an image, not writable (Docker Engine 28 and later).
    Image {
        /// Its reference.
        image: String,
        /// A folder inside it.
        #[serde(default, skip_serializing_if = "is_default")]
        subpath: Option<String>,
    },
    /// A path of the node.
    Bind {
        /// Absolute path on the node.
        path: String,
        /// Make the folder if it is absent.
        #[serde(default, skip_serializing_if = "is_default")]
        create: bool,
        /// Bind propagation.
        #[serde(default, skip_serializing_if = "is_default")]
        propagation: Option<String>,
        /// SELinux relabelling: `z` or `Z`.
        #[serde(default, skip_serializing_if = "is_default")]
        selinux: Option<String>,
        /// What becomes of mounts below the path.
        #[serde(default, skip_serializing_if = "is_default")]
        recursive: Recursion,
    },
    /// Memory.
    Tmpfs {
        /// Its limit.
        #[serde(default, skip_serializing_if = "is_default")]
        size: Option<Bytes>,
        /// Permission bits.
        #[serde(default, skip_serializing_if = "is_default")]
        mode: Option<u32>,
    },
}

/// What becomes of the mounts below the path of a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recursion {
    /// They are there too; of a read-only bind they are read-only where the kernel can do that.
    #[default]
    Enabled,
    /// They are not there.
    Disabled,
    /// They are there and writable, although the bind is read-only (Docker Engine 25 and later).
    Writable,
    /// They are there and read-only, or the container is not made (Docker Engine 25 and later).
    Readonly,
}

/// A config or secret mounted as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMount {
    /// Its key under `configs:` or `secrets:`.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Owner, a number.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uid: Option<u32>,
    /// Group, a number.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gid: Option<u32>,
    /// Permission bits; 0o444 if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Option<u32>,
}

/// What another service must have reached before this one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// How far it must be.
    pub condition: DependencyCondition,
    /// Replace this service's tasks when that one is replaced.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: bool,
    /// An absent or failing dependency stops this service; if false it is only awaited as long as it can still come.
    pub required: bool,
}

/// `depends_on` conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// At least one task runs.
    ServiceStarted,
    /// At least one task is ready.
    ServiceHealthy,
    /// Every task ended with exit code 0.
    ServiceCompletedSuccessfully,
}

/// How a service is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// By the networks it lists.
    #[default]
    Networks,
    /// By the node's own network namespace.
    Host,
    /// Not at all.
    None,
    /// By the namespace of another service's task on the same node.
    Service(ServiceName),
    /// By the engine's own `bridge`, which reaches no other node.
    Bridge,
}

/// How a service is on one network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkAttachment {
    /// Further names on this network.
    #[serde(skip_serializing_if = "is_default")]
    pub aliases: Vec<String>,
    /// A fixed address; only with one replica.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// A fixed IPv6 address; only with one replica. Otherwise it follows from the IPv4 address.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6_address: Option<Ipv6Addr>,
    /// The order in which networks are connected: highest first.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i32,
    /// What the engine is told of the connection.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoint: EndpointSpec,
}

/// What an engine is told of a container's connection to a network, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointSpec {
    /// The hardware address; [`crate::mac_for`] of the address if absent. Only with one replica.
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: Option<Mac>,
    /// What the interface is called in the container (Docker Engine 28 and later).
    #[serde(skip_serializing_if = "is_default")]
    pub interface_name: Option<String>,
    /// Options of the network's driver for this connection.
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: BTreeMap<String, String>,
    /// Of several networks the one with the highest is the default route (Docker Engine 28 and later).
    #[serde(skip_serializing_if = "is_default")]
    pub gw_priority: i64,
    /// Further addresses that are valid on the link only.
    #[serde(skip_serializing_if = "is_default")]
    pub link_local_ips: Vec<IpAddr>,
}

/// A hardware address; written as six pairs of hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);
impl std::str::FromStr for Mac {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let pair = |pair: &str| (pair.len() == 2).then(|| u8::from_str_radix(pair, 16).ok()).flatten();
        let bytes: Option<Vec<u8>> = text.split(separator).map(pair).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a hardware address such as `02:42:ac:11:00:02`"))
    }
}
impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}
impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Its name outside the app, where it differs.
    #[serde(skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// Made outside this app: another app's network of that name in the same environment.
    #[serde(skip_serializing_if = "is_default")]
    pub external: bool,
    /// No way out of the cluster.
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    /// Containers made by hand may join.
    #[serde(skip_serializing_if = "is_default")]
    pub attachable: bool,
    /// Driver options.
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: BTreeMap<String, String>,
    /// A wanted subnet; one from the cluster's pool if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub subnet: Option<ipnet::Ipv4Net>,
    /// The address of the first node's bridge, in the subnet; nobody else gets it.
    #[serde(skip_serializing_if = "is_default")]
    pub gateway: Option<Ipv4Addr>,
    /// The part of the subnet from which tasks get their addresses; all of it if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub ip_range: Option<ipnet::Ipv4Net>,
    /// Addresses of the subnet that the cluster gives to nobody, and what they are for.
    #[serde(skip_serializing_if = "is_default")]
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// Labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// How its packets travel between nodes; the cluster's default if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub backend: Option<Backend>,
    /// With [`Backend::Macvlan`]: the interface of the nodes whose segment containers join, `eth0`, or `eth0.100` for a VLAN of it.
    #[serde(skip_serializing_if = "is_default")]
    pub parent: Option<String>,
    /// Every task has an IPv6 address as well.
    #[serde(skip_serializing_if = "is_default")]
    pub enable_ipv6: bool,
    /// A wanted IPv6 subnet; one of the cluster's unique local range if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub subnet6: Option<ipnet::Ipv6Net>,
}

/// A named volume of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSpec {
    /// Its name outside the app, where it differs.
    #[serde(skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// Made outside this app; never removed with it.
    #[serde(skip_serializing_if = "is_default")]
    pub external: bool,
    /// `local` if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: Option<String>,
    /// Options of the `local` driver (`type`, `o`, `device`).
    #[serde(skip_serializing_if = "is_default")]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
}
impl VolumeSpec {
    /// Whether its data is on the node that uses it: no other driver, and no file system of the network.
    pub fn is_local(&self) -> bool {
        const REMOTE: [&str; 7] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p"];
        let driver = self.driver.as_deref().unwrap_or("local");
        driver == "local" && self.driver_opts.get("type").is_none_or(|kind| !REMOTE.contains(&kind.as_str()))
    }
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Port in the container.
    pub target: u16,
    /// Port on the nodes; one from the gateway's range if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub published: Option<u16>,
    /// The last of the ports from `published` on of which one is to be chosen; absent once it is.
    #[serde(default, skip_serializing_if = "is_default")]
    pub published_to: Option<u16>,
    /// Transport.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// On every gateway, or on the task's node only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: PublishMode,
    /// Address to listen on; every one if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub host_ip: Option<IpAddr>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub name: Option<String>,
    /// The protocol spoken, for example `http`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub app_protocol: Option<String>,
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}
impl Protocol {
    /// `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where a published port listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// On every gateway, balanced over the ready tasks.
    #[default]
    Ingress,
    /// On the node of each task, by the engine.
    Host,
}

/// What happens when a task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// When it is started again.
    pub condition: RestartCondition,
    /// Wait before the first restart; doubled for each further failure in a row, up to five minutes.
    pub delay: Millis,
    /// Give up after so many; never if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub max_attempts: Option<u32>,
    /// A task that ran longer than this starts a clean record.
    pub window: Millis,
}
impl Default for RestartPolicy {
    /// Compose's default for a service without `restart` or `deploy.restart_policy` is not to restart; a service that
    /// should run is what people deploy to a cluster, so Swarm's default, `any`, is ours too.
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Millis(1_000),
            max_attempts: None,
            window: Millis::from_secs(60),
        }
    }
}

impl RestartPolicy {
    /// The longest wait between two attempts.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

    /// How long to wait after so many failures in a row.
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.delay.duration().saturating_mul(1 << doublings).min(Self::LONGEST_PAUSE)
    }
    /// How many failures in a row it is with one that ran for so long and had so many before it.
    pub fn failures(&self, before: u32, ran: Duration) -> u32 {
        let held = ran > self.window.duration() && !self.window.duration().is_zero();
        if held { 1 } else { before.saturating_add(1) }
    }
}

/// When an ended task is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// Never: a one-shot service; exit code 0 completes it.
    None,
    /// If its exit code was not 0.
    OnFailure,
    /// Always.
    Any,
}

/// How tasks are replaced by those of a newer release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePolicy {
    /// Which comes first; start-first where it can be if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub order: Option<UpdateOrder>,
    /// How many slots at once; 0 is all.
    pub parallelism: u32,
    /// Pause between slots.
    pub delay: Millis,
    /// How long a new task must stay ready before the next slot.
    pub monitor: Millis,
    /// What a failure does.
    pub failure_action: FailureAction,
    /// So many thousandths of the slots may fail without that being one.
    #[serde(skip_serializing_if = "is_default")]
    pub max_failure_ratio: u16,
}
impl UpdatePolicy {
    /// Whether so many failed of so many in all are no failure of the update.
    pub fn tolerates(&self, failed: usize, all: usize) -> bool {
        failed.saturating_mul(1000) <= all.saturating_mul(usize::from(self.max_failure_ratio))
    }
}
impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            order: None,
            parallelism: 1,
            delay: Millis(0),
            monitor: Millis(0),
            failure_action: FailureAction::Rollback,
            max_failure_ratio: 0,
        }
    }
}

/// Start-first or stop-first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The new task is ready before the old one stops.
    StartFirst,
    /// The old task has stopped before the new one starts.
    StopFirst,
}

/// What a failing update does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// Stay where it is and say so.
    Pause,
    /// Go on.
    Continue,
    /// Return to the release before.
    Rollback,
}

/// Where tasks may run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementSpec {
    /// All must hold.
    #[serde(skip_serializing_if = "is_default")]
    pub constraints: Vec<Constraint>,
    /// Spread over the values of these node labels, in order (`node.labels.zone`).
    #[serde(skip_serializing_if = "is_default")]
    pub spread: Vec<String>,
    /// At most so many tasks of the service on one node.
    #[serde(skip_serializing_if = "is_default")]
    pub max_replicas_per_node: Option<u32>,
    /// `os/arch[/variant]` the image is for.
    #[serde(skip_serializing_if = "is_default")]
    pub platform: Option<String>,
}

/// A constraint in Swarm's language: `node.labels.disk == ssd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// `node.id`, `node.hostname`, `node.role`, `node.platform.os`, `node.platform.arch`, `node.labels.KEY` or `engine.labels.KEY`.
    pub key: String,
    /// `==` if true, `!=` if not.
    pub equal: bool,
    /// What it is compared with.
    pub value: String,
}
impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.key, if self.equal { "==" } else { "!=" }, self.value)
    }
}

/// What a task needs and may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// At most.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: ResourceSet,
    /// At least: what placement counts.
    #[serde(skip_serializing_if = "is_default")]
    pub reservations: ResourceSet,
    /// Devices by driver or capability, for example GPUs.
    #[serde(skip_serializing_if = "is_default")]
    pub devices: Vec<DeviceRequest>,
    /// Devices by the kinds that nodes call them by.
    #[serde(skip_serializing_if = "is_default")]
    pub generic: Vec<GenericResource>,
    /// Which GPUs, and how much of one.
    #[serde(skip_serializing_if = "is_default")]
    pub gpu: Option<GpuWish>,
}

/// So many devices of a kind: Swarm's generic resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenericResource {
    /// What they are.
    pub kind: DeviceKind,
    /// How many.
    pub count: u64,
}

/// What a service says of the GPUs that its tasks want, beside how many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuWish {
    /// So many thousandths of one GPU that others may have the rest of; whole ones if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub share: Option<u32>,
    /// So many whole ones, where the service asks for none otherwise.
    #[serde(skip_serializing_if = "is_default")]
    pub count: Option<u32>,
    /// One of these products; any if empty.
    #[serde(skip_serializing_if = "is_default")]
    pub models: Vec<String>,
    /// At least so much memory each.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: Option<Bytes>,
}

/// Amounts of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceSet {
    /// Processor time.
    #[serde(skip_serializing_if = "is_default")]
    pub cpus: Option<Cpus>,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    pub memory: Option<Bytes>,
    /// Processes.
    #[serde(skip_serializing_if = "is_default")]
    pub pids: Option<i64>,
}

/// A request for devices, as Docker takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceRequest {
    /// For example `nvidia`.
    #[serde(skip_serializing_if = "is_default")]
    pub driver: Option<String>,
    /// How many; −1 is all.
    #[serde(skip_serializing_if = "is_default")]
    pub count: Option<i64>,
    /// Which.
    #[serde(skip_serializing_if = "is_default")]
    pub device_ids: Vec<String>,
    /// For example `gpu`.
    #[serde(skip_serializing_if = "is_default")]
    pub capabilities: Vec<String>,
    /// The driver's options.
    #[serde(skip_serializing_if = "is_default")]
    pub options: BTreeMap<String, String>,
}

/// The check inside the container, run by the engine. Absent fields are the image's, or Docker's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`; the image's if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub test: Option<Vec<String>>,
    /// Between checks.
    #[serde(skip_serializing_if = "is_default")]
    pub interval: Option<Millis>,
    /// For one check.
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: Option<Millis>,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "is_default")]
    pub retries: Option<u32>,
    /// Time in which failures do not count.
    #[serde(skip_serializing_if = "is_default")]
    pub start_period: Option<Millis>,
    /// Between checks in that time (Docker Engine 25 and later).
    #[serde(skip_serializing_if = "is_default")]
    pub start_interval: Option<Millis>,
}
impl Healthcheck {
    /// Whether it says that there is no check.
    pub fn is_disabled(&self) -> bool {
        self.test.as_ref().is_some_and(|test| test.first().is_some_and(|kind| kind == "NONE"))
    }
}

/// Wharf's own check, made from the node, so that the image needs no tool for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    pub kind: ProbeKind,
    /// Between checks.
    pub interval: Millis,
    /// For one check.
    pub timeout: Millis,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period: Millis,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum ProbeKind {
    /// A GET that must answer with a status of 200 to 399.
    Http {
        /// Container port.
        port: u16,
        /// Path and query.
        path: String,
    },
    /// A connection that must be accepted.
    Tcp {
        /// Container port.
        port: u16,
    },
    /// A call of `grpc.health.v1.Health/Check`, in HTTP/2 without TLS, that must answer `SERVING`.
    Grpc {
        /// Container port.
        port: u16,
        /// The service asked about; empty for the server as a whole.
        service: String,
    },
    /// A command in the container that must exit with 0.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}
