//! The types of API v1: what servers and clients say to each other, as JSON.
//!
//! Within v1 fields and endpoints are added, never changed. Requests refuse unknown fields; answers may grow, so clients ignore what
//! they do not know. Specifications of apps are in the vocabulary of the Compose Specification ([`wharf_model::AppSpec`]).
//! Times are milliseconds since the epoch.

mod certificates;
mod defaults;
mod network;
mod releases;
mod route;
mod scheduling;

pub use certificates::*;
pub use defaults::*;
pub use network::*;
pub use releases::*;
pub use route::*;
pub use scheduling::*;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::{AppSpec, Bytes, Cpus, TaskStatus};

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// One of a fixed set of codes, for programs.
    #[schema(value_type = String)]
    pub code: Code,
    /// What went wrong, as a sentence for people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Who holds an app that is busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Box<RolloutView>>,
}

impl Problem {
    /// A problem of this kind with a sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, holder: None }
    }
    /// The same with a hint what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What kind of refusal a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed or asks for something impossible.
    Invalid,
    /// The client is not known or may not do this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The state moved: plan again.
    Moved,
    /// Another change of the app is under way.
    Busy,
    /// It stands in the way of something else.
    Conflict,
    /// A join token is wrong, used up or expired.
    Token,
    /// Two clocks differ too much.
    Clock,
    /// The node that would answer is not connected.
    NodeUnreachable,
    /// The store or the leader does not answer; try again.
    Unavailable,
    /// A bug.
    Internal,
}

impl Code {
    /// The HTTP status that an answer with this problem has.
    pub const fn status(self) -> http::StatusCode {
        use http::StatusCode;
        match self {
            Self::Invalid | Self::Clock => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Forbidden | Self::Token => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Moved | Self::Busy | Self::Conflict => StatusCode::CONFLICT,
            Self::NodeUnreachable => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The server that answers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Version of the server.
    pub version: String,
    /// Version of this API.
    pub api: String,
    /// The server's identifier.
    pub server: String,
    /// The cluster's identifier.
    pub cluster: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// `embedded` or `etcd`.
    pub store: String,
    /// The server that decides, if there is one now.
    pub leader: Option<String>,
    /// The server's clock.
    pub now: u64,
}

/// A server of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// Identifier.
    pub id: String,
    /// Where it answers: `host:port`.
    pub addresses: Vec<String>,
    /// Version of the binary.
    pub version: String,
    /// Whether it decides.
    pub leader: bool,
    /// When it started.
    pub started_at: u64,
}

/// A machine of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Identifier.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Counts changes made by people.
    pub generation: u64,
    /// `joining`, `ready`, `engine-down`, `unreachable` or `down`.
    pub state: String,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when it is in that state.
    pub since: u64,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The pool it belongs to: only services that ask for it come to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What keeps off tasks that do not tolerate it: `key=value:NoSchedule`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
    /// How much of it may be promised; 100 per cent if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<Overcommit>,
    /// When it is worked on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<MaintenanceWindow>,
    /// `agent`, `server`, `gateway`.
    pub roles: Vec<String>,
    /// Address other nodes reach it at.
    pub address: Option<String>,
    /// `os/arch`.
    pub platform: Option<String>,
    /// Capacity, in thousandths of a core.
    #[schema(value_type = Option<u64>)]
    pub cpus: Option<Cpus>,
    /// Capacity.
    #[schema(value_type = Option<u64>)]
    pub memory: Option<Bytes>,
    /// Devices that tasks can be given, by kind: `4 gpu (T4)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Reserved by tasks, in thousandths of a core.
    #[schema(value_type = u64)]
    pub cpus_reserved: Cpus,
    /// Reserved by tasks.
    #[schema(value_type = u64)]
    pub memory_reserved: Bytes,
    /// Version of its Docker Engine.
    pub engine_version: Option<String>,
    /// API version in use with it.
    pub engine_api_version: Option<String>,
    /// Version of its agent.
    pub agent_version: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// 1 or 2.
    pub cgroup_version: Option<u8>,
    /// Tasks on it that are not over.
    pub tasks: usize,
    /// The revision of the names and routes that it says it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves: Option<u64>,
    /// Why it may still answer by names or routes older than the newest; asked of another server than the leader, it is always absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves_older: Option<String>,
    /// When it joined.
    pub joined_at: u64,
    /// What is not as it should be on the node itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Its end of WireGuard tunnels, if it has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<NodeTunnels>,
    /// How full the file systems are that Wharf and the engine write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Marks of its disks, in per cent: down to where room is made, from where on, and from where on it takes no new tasks.
    #[serde(default)]
    pub disk_marks: String,
    /// A disk is so full that it takes no new tasks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_full: bool,
    /// What was last removed of what nobody needed, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<NodeCleanup>,
    /// Images that it has of those that tasks of the cluster ran there from lately, by digest or identifier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// The nodes that watch it and do not hear it, while it is suspected to be gone: nothing is sent to its tasks where others serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspected_by: Vec<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspected_since: Option<u64>,
    /// Until when it gets no new tasks although it is back, because it went away too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<u64>,
    /// When it went away lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lapses: Vec<u64>,
    /// Until when it is not counted as down although its lease is over, because too many are away at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spared_until: Option<u64>,
}

/// A file system of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// A path on it.
    pub path: String,
    /// What lies on it: `images and containers`, `volumes and Wharf's state`.
    pub holds: Vec<String>,
    /// What can be used of it.
    #[schema(value_type = u64)]
    pub total: Bytes,
    /// What of that is free.
    #[schema(value_type = u64)]
    pub free: Bytes,
    /// How many files more it can have; absent if that has no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    /// What is used of the scarcer of both, in per cent.
    pub percent: u8,
    /// In how many hours it is full if it goes on as in the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_in_hours: Option<u32>,
}

/// What a node has removed of what nobody needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCleanup {
    /// When.
    pub at: u64,
    /// What, in words.
    pub said: String,
    /// How many bytes more were free afterwards.
    #[schema(value_type = u64)]
    pub freed: Bytes,
}

/// A node's end of WireGuard tunnels.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NodeTunnels {
    /// Its address in them.
    pub address: String,
    /// Its public key.
    pub key: String,
    /// The public key that it will have once all others accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<String>,
    /// The rotation that its key was made for.
    pub rotation: u32,
    /// The rotation that was last asked for.
    pub wanted_rotation: u32,
    /// What carries its tunnels, and why: the kernel, or a process. Absent as long as it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// Where others are told to call it, if not at its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The address its agent connects from, if that is not its own: it is behind address translation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_from: Option<String>,
}

/// A change of a node; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeChange {
    /// `active`, `pause` or `drain`.
    pub availability: Option<String>,
    /// Labels to set.
    pub labels: BTreeMap<String, String>,
    /// Labels to remove.
    pub remove_labels: Vec<String>,
    /// The pool it is to belong to; none if empty.
    pub pool: Option<String>,
    /// Taints to set: `key=value:NoSchedule`. One of the same key and effect is replaced.
    pub taints: Vec<String>,
    /// Taints to remove: a whole one, or the key of all.
    pub remove_taints: Vec<String>,
    /// How much of it may be promised.
    pub overcommit: Option<OvercommitChange>,
    /// Maintenance windows to add.
    pub windows: Vec<MaintenanceWindow>,
    /// Take back every maintenance window there is, before adding any.
    pub clear_windows: bool,
    /// Whether published ports listen on it.
    pub gateway: Option<bool>,
    /// Whether it is to make a new key of its WireGuard tunnels.
    pub rotate_key: bool,
    /// Marks of its disks: `80,85,90`.
    pub disk_marks: Option<String>,
    /// Only if its generation is still this one.
    pub if_generation: Option<u64>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Identifier.
    pub id: String,
    /// `agent` or `server`.
    pub role: String,
    /// When it was made.
    pub created_at: u64,
    /// When it ends.
    pub expires_at: u64,
    /// Who made it.
    pub created_by: String,
}

/// A wish for a join token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// `agent` or `server`.
    pub role: String,
    /// How long it is good for, in seconds.
    pub ttl_seconds: u64,
    /// End every other token of that role.
    #[serde(default)]
    pub rotate: bool,
}

/// A new join token; the secret is shown this once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// The token as a whole.
    pub token: String,
    /// The command to run on the new machine.
    pub command: String,
    /// When it ends.
    pub expires_at: u64,
}

/// What to do with an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "action", deny_unknown_fields)]
pub enum Action {
    /// Make it as this says.
    Up {
        /// The normalised Compose file.
        #[schema(value_type = Object)]
        spec: Box<AppSpec>,
        /// Ask the registry again for every image, also those the release already pins.
        #[serde(default)]
        pull: bool,
        /// The images of services that are built, by service. One that has yet to be built can be planned, not applied.
        #[schema(value_type = Object)]
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        built: BTreeMap<String, wharf_model::Image>,
    },
    /// Take it down.
    Down {
        /// Delete its volumes and their data.
        volumes: bool,
    },
    /// Run so many tasks of each of these services.
    Scale {
        /// Wanted number of tasks, by service.
        replicas: BTreeMap<String, u32>,
    },
    /// Replace the tasks of these services by new ones; of all if empty.
    Restart {
        /// Services.
        services: Vec<String>,
    },
    /// Want no tasks of these services; of all if empty.
    Stop {
        /// Services.
        services: Vec<String>,
    },
    /// Want tasks of these stopped services again; of all if empty.
    Start {
        /// Services.
        services: Vec<String>,
    },
    /// Make it as it was in an earlier release, with exactly the images, configs and secrets of then.
    Rollback {
        /// Which; the latest that was done, other than what the app is now, if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
}

/// What an action would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// Names exactly this plan on exactly the state it was made from.
    pub fingerprint: String,
    /// The release it would make, if it would make one.
    pub release: Option<u64>,
    /// Of a rollback: the release whose app it would be again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u64>,
    /// What would be done, in order.
    pub operations: Vec<Operation>,
    /// What is legal and worth knowing.
    pub warnings: Vec<String>,
    /// What stands in its way; a plan with any is not carried out.
    pub refusals: Vec<Refusal>,
}
impl Plan {
    /// Whether everything is as wanted already.
    pub fn is_noop(&self) -> bool {
        self.operations.iter().all(|operation| operation.change == Change::Keep)
    }
}

/// One thing a plan would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// What happens to it.
    #[schema(value_type = String)]
    pub change: Change,
    /// `service`, `network`, `volume`, `config`, `secret` or `app`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

/// What happens to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is made.
    Create,
    /// It is changed in place.
    Update,
    /// Its containers are replaced.
    Replace,
    /// It is removed.
    Remove,
    /// It stays as it is.
    Keep,
}
impl Change {
    /// The symbol a plan shows it with.
    pub const fn symbol(self) -> char {
        match self {
            Self::Create => '+',
            Self::Update => '~',
            Self::Replace => '±',
            Self::Remove => '-',
            Self::Keep => '=',
        }
    }
}

/// What stands in a plan's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// Why.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A wish to plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// What to do.
    pub action: Action,
}

/// A wish to carry out a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// What to do.
    pub action: Action,
    /// The plan that was agreed to: if it would be another one by now, nothing is done ([`Code::Moved`]).
    pub fingerprint: String,
    /// What the client says of itself: `ada@laptop`.
    pub client: String,
    /// Take the place of a change that is still under way, instead of being refused ([`Code::Busy`]).
    #[serde(default)]
    pub supersede: bool,
    /// Of a release: what its maker says of it, in a sentence or two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of a release: what the Compose file was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<GitSource>,
}

/// An action that has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// The app's generation that carries it; wait for the rollout of it.
    pub generation: u64,
    /// The release the app is moving to.
    pub release: u64,
}

/// A config or secret of an environment, which apps mount as `external`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NamedFile {
    /// `config` or `secret`.
    pub kind: String,
    /// The environment.
    pub environment: String,
    /// The name in it.
    pub name: String,
    /// The newest version: what the next `up` of an app takes.
    pub version: u64,
    /// Length of its content in bytes.
    pub size: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When the first version was made.
    pub created_at: u64,
    /// When the newest was made.
    pub updated_at: u64,
    /// The apps whose release has it.
    pub used_by: Vec<FileUse>,
    /// The latest versions, the newest first.
    pub versions: Vec<FileVersion>,
    /// The content in base64: of configs only, and where one is asked for by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// An app that has a config or secret of its environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileUse {
    /// The app.
    pub app: String,
    /// The version its release pins.
    pub version: u64,
}

/// One version of a config or secret of an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileVersion {
    /// Its number.
    pub number: u64,
    /// Length of its content in bytes.
    pub size: u64,
    /// When it was made.
    pub created_at: u64,
    /// Who made it.
    pub by: String,
}

/// A wish for a config or secret, or for a new version of one.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileCreate {
    /// The content in base64.
    pub content: String,
    /// Labels; those of before stay if there are none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// If there is one of this name: make a new version of it, instead of refusing ([`Code::Conflict`]).
    #[serde(default)]
    pub replace: bool,
    /// What the client says of itself: `ada@laptop`.
    #[serde(default)]
    pub client: String,
}
impl std::fmt::Debug for FileCreate {
    /// Without the content, which may be a secret's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { content: _, labels, replace, client } = self;
        let mut shown = f.debug_struct("FileCreate");
        shown.field("labels", labels).field("replace", replace).field("client", client);
        shown.finish_non_exhaustive()
    }
}

/// A new version of a config or secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileCreated {
    /// Its number.
    pub version: u64,
    /// Whether it is new; the newest stays if it has this content already.
    pub changed: bool,
    /// The apps that have an older version until their next `up`.
    pub behind: Vec<FileUse>,
}

/// An app in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// The environment.
    pub environment: String,
    /// The name.
    pub name: String,
    /// Counts changes.
    pub generation: u64,
    /// The release it is on or moving to.
    pub release: u64,
    /// How far the latest change has come.
    pub rollout: RolloutView,
    /// Services.
    pub services: usize,
    /// Tasks that are ready.
    pub ready: usize,
    /// Tasks that are wanted.
    pub wanted: usize,
    /// When it was first deployed.
    pub created_at: u64,
}

/// How far a change of an app has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// The generation it carries out.
    pub generation: u64,
    /// What was asked for.
    pub what: String,
    /// Who asked.
    pub by: String,
    /// When it began.
    pub started_at: u64,
    /// `progressing`, `done`, `failed`, `rolled_back` or `superseded`.
    pub state: String,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// How the change before it ended, if there was one and it had ended when this one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<EndedRollout>,
    /// It is paused or waits to be promoted: it goes on only when somebody says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}
impl RolloutView {
    /// The state of the change that carries out this generation, as far as this one knows: its own, or that of the one before.
    pub fn state_of(&self, generation: u64) -> Option<&str> {
        if self.generation == generation {
            return Some(&self.state);
        }
        let before = self.before.as_ref().filter(|before| before.generation == generation);
        before.map(|before| before.state.as_str())
    }
}

/// How a change of an app ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedRollout {
    /// The generation that it carried out.
    pub generation: u64,
    /// `done`, `failed`, `rolled_back` or `superseded`.
    pub state: String,
}

/// An app with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppStatus {
    /// The app.
    pub app: App,
    /// Its services.
    pub services: Vec<ServiceStatus>,
    /// Its services outside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub externals: Vec<ExternalView>,
    /// Its networks.
    pub networks: Vec<NetworkView>,
    /// Its volumes.
    pub volumes: Vec<VolumeView>,
    /// Where its routes and published ports answer: `https://shop.example.com/`, `http://10.0.0.1:8080`.
    pub urls: Vec<String>,
    /// Of a change that failed or returns: the latest task of each service that failed in it, with its last output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Task>,
}

/// A service that runs outside the cluster and is found by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExternalView {
    /// The name.
    pub name: String,
    /// Where it answers: an address or a domain name.
    pub host: String,
    /// The ports it answers on, as far as the file says.
    pub ports: Vec<u16>,
}

/// A service and its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// The name.
    pub name: String,
    /// Which revision its tasks should follow.
    pub generation: u64,
    /// The image reference.
    pub image: String,
    /// What it is pinned to.
    pub pinned: Option<String>,
    /// `replicated` or `global`.
    pub mode: String,
    /// Wanted tasks.
    pub wanted: usize,
    /// Ready tasks.
    pub ready: usize,
    /// It was stopped.
    pub stopped: bool,
    /// Published ports: `8080->80/tcp`.
    pub ports: Vec<String>,
    /// Its routes: `https://shop.example.com/api -> 8080`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// What is not as wanted, each with its reason.
    pub waiting: Vec<String>,
    /// Tasks: those that are not over, and the latest that is of each slot that has no other.
    pub tasks: Vec<Task>,
    /// What it is made from.
    #[schema(value_type = Object)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<wharf_model::ServiceSpec>>,
}

/// One scheduled container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Identifier.
    pub id: String,
    /// `<app>-<service>-<slot>`.
    pub name: String,
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
    /// Its position; 0 in global services.
    pub slot: u32,
    /// The revision of the service it was made for.
    pub generation: u64,
    /// The release that revision came with.
    pub release: u64,
    /// The image reference.
    pub image: String,
    /// Identifier of its node, once it has one.
    pub node_id: Option<String>,
    /// Name of its node.
    pub node: Option<String>,
    /// State of its node, as [`Node::state`]: with another than `ready` the status is what was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_state: Option<String>,
    /// Addresses by network.
    pub addresses: BTreeMap<String, String>,
    /// What it has of the node's devices: `gpu GPU-1`, `0.5 of gpu 3`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Whether it serves.
    pub ready: bool,
    /// Why the cluster no longer wants it, if so.
    pub stop: Option<String>,
    /// No longer wanted, it goes on until nothing leads to it and nothing is under way with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<TaskDrain>,
    /// When it was made.
    pub created_at: u64,
    /// It has ended like those before it in its place, and another one is made after a pause: how often, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_loop: Option<String>,
    /// What its node last said of it.
    #[schema(value_type = Object)]
    pub status: TaskStatus,
}

/// What a task waits for that is to stop. Known to the leading server only: others leave out what they do not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskDrain {
    /// Nodes that may still lead to it, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub led_to_by: Vec<String>,
    /// Requests and connections of gateways that are under way with it.
    #[serde(default)]
    pub under_way: u64,
    /// Until when they may go on, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// A network of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its key in the Compose file.
    pub name: String,
    /// Identifier.
    pub id: String,
    /// Its addresses.
    pub subnet: String,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// A volume of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Its key in the Compose file.
    pub name: String,
    /// Identifier.
    pub id: String,
    /// Names of the nodes that hold data of it.
    pub nodes: Vec<String>,
}

/// A volume of an app, where its data is, and whether it can be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Identifier.
    pub id: String,
    /// The environment of its app.
    pub environment: String,
    /// Its app.
    pub app: String,
    /// Its key in the Compose file.
    pub name: String,
    /// `shared` (every node can read it), `unused`, `present`, `away` (its node does not answer) or `lost` (its node is down).
    pub state: String,
    /// Why it cannot be had.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The nodes that hold data of it.
    pub data: Vec<VolumeData>,
    /// The services that use it.
    pub services: Vec<String>,
    /// Data that people have given up, and that may still lie on its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<GivenUpData>,
    /// When it was made.
    pub created_at: u64,
}

/// A node that holds data of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeData {
    /// Its name.
    pub node: String,
    /// How the node is; `removed` if it is not part of the cluster any more.
    pub state: String,
    /// Since when.
    pub since: Option<u64>,
}

/// Data of a volume that people have given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GivenUpData {
    /// The node it is on.
    pub node: String,
    /// What the volume was then.
    pub id: String,
    /// When.
    pub at: u64,
    /// By whom.
    pub by: String,
}

/// A wish to give up the data that a node which is down holds of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRelease {
    /// The node, by name or id.
    pub node: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Identifier; later events sort later.
    pub id: String,
    /// When.
    pub at: u64,
    /// `task`, `node`, `app` or `server`.
    pub kind: String,
    /// What happened.
    pub message: String,
    /// The app concerned: `environment/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The service concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The task concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The node concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Who caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// One line of a task's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// The task's name.
    pub task: String,
    /// Its service.
    pub service: String,
    /// Its node's name.
    pub node: String,
    /// When its node's engine took it, in milliseconds since the epoch.
    pub at: u64,
    /// `stdout`, `stderr`, or `wharf` for what Wharf itself says about the stream.
    pub stream: String,
    /// The line, without its end.
    pub text: String,
}

/// What to run in a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables added to the container's: `NAME=value`.
    pub environment: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Pass standard input on.
    pub stdin: bool,
    /// As whom.
    pub user: Option<String>,
    /// Where.
    pub working_dir: Option<String>,
    /// With all capabilities.
    pub privileged: bool,
    /// Size of the terminal: columns and rows.
    pub size: Option<(u16, u16)>,
}

/// What a task uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The task's identifier.
    pub task: String,
    /// The task's name.
    pub name: String,
    /// Its service.
    pub service: String,
    /// Its node's name.
    pub node: String,
    /// Processor time, in thousandths of a core, over the last second or so.
    #[schema(value_type = u64)]
    pub cpus: Cpus,
    /// Memory in use, without page cache that can be dropped.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Its limit, the node's memory if it has none.
    #[schema(value_type = u64)]
    pub memory_limit: Bytes,
    /// Received since it started.
    #[schema(value_type = u64)]
    pub network_rx: Bytes,
    /// Sent since it started.
    #[schema(value_type = u64)]
    pub network_tx: Bytes,
    /// Read from disks since it started.
    #[schema(value_type = u64)]
    pub block_read: Bytes,
    /// Written to disks since it started.
    #[schema(value_type = u64)]
    pub block_write: Bytes,
    /// Processes.
    pub pids: u64,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The things.
    pub items: Vec<T>,
    /// Ask for what comes after this; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One finding of `doctor`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `ok`, `warning` or `problem`.
    pub level: String,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What services of an app are to be built from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildsRequest {
    /// The hashes of context and options, by service.
    #[schema(value_type = Object)]
    pub services: BTreeMap<String, wharf_model::BuildMark>,
}

/// What is known of a service's builds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct KnownBuild {
    /// The image that was built from exactly this, if there is one.
    #[schema(value_type = Option<Object>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<wharf_model::Image>,
    /// What the image of the current release was built from.
    #[schema(value_type = Option<Object>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<wharf_model::BuildMark>,
}

/// What is known of the builds of an app's services.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Builds {
    /// By service, as they were asked for.
    pub services: BTreeMap<String, KnownBuild>,
}

/// Which of an engine's builders builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Builder {
    /// BuildKit, unless something is asked for that only the classic builder has.
    #[default]
    Auto,
    /// The builder that every engine has.
    Classic,
    /// BuildKit.
    Buildkit,
}

/// An image to build. The request's body is this as one line of JSON, and then the context as a tar archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// What it will be called: `shop-web:git-0a1b2c3`.
    pub reference: String,
    /// The Dockerfile's path in the archive or repository.
    pub dockerfile: String,
    /// The Dockerfile was put into the archive and is no part of the context.
    #[serde(default)]
    pub foreign_dockerfile: bool,
    /// The Dockerfile needs BuildKit, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_buildkit: Option<String>,
    /// What the engine fetches as its context; then the archive is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Everything else.
    #[schema(value_type = Object)]
    pub options: wharf_model::BuildOptions,
    /// By which builder.
    #[serde(default)]
    pub builder: Builder,
    /// On this node, by name; a suitable one is chosen if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is built from: the server finds the image by it.
    #[schema(value_type = Option<Object>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<wharf_model::BuildMark>,
}

/// A line of a build's progress. The last is `built` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildLine {
    /// The node where it is built.
    Node(String),
    /// What builds it: `classic` or `buildkit`.
    Builder(String),
    /// What the builder says.
    Output(String),
    /// It is done.
    Built {
        /// The engine's identifier of the image.
        id: String,
    },
    /// It failed.
    Failed(Problem),
}
