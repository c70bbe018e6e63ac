//! Networks as people see them, what is wrong with them, and the path of a packet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A network of an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Identifier.
    pub id: String,
    /// What it is called outside its app, and by `docker network ls`.
    pub name: String,
    /// The environment.
    pub environment: String,
    /// The app it belongs to.
    pub app: String,
    /// Its key in the app's Compose file.
    pub key: String,
    /// How its packets travel: `vxlan`, `routed`, `wireguard`, `macvlan` or `host`.
    pub backend: String,
    /// Its addresses.
    pub subnet: String,
    /// Its IPv6 addresses, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<String>,
    /// Its VXLAN identifier; the bridge on each node is called `wh` and this in hexadecimal.
    pub vni: u32,
    /// No way out of the cluster.
    pub internal: bool,
    /// Nodes that have it.
    pub nodes: usize,
    /// Tasks on it that are not over.
    pub tasks: usize,
}

/// Everything known of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkDetail {
    /// The network itself.
    #[serde(flatten)]
    pub network: Network,
    /// The name of its bridge on each node.
    pub bridge: String,
    /// The nodes that have it or have had it.
    pub on: Vec<NetworkNode>,
    /// The tasks on it.
    pub members: Vec<NetworkMember>,
    /// The names that are answered on it, and where they lead.
    pub names: BTreeMap<String, Vec<String>>,
    /// The virtual addresses of services (`endpoint_mode: vip`), and whose each is: `app/service`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub virtual_addresses: BTreeMap<String, String>,
}

/// A node's part of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkNode {
    /// The node's name.
    pub node: String,
    /// The node's state.
    pub state: String,
    /// The address other nodes reach it at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The address of its bridge, its containers' gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Parts of the subnet that are its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<String>,
    /// Whether it should have the network now.
    pub wanted: bool,
    /// Whether it works on the present state of the tables.
    pub acknowledged: bool,
    /// Its tasks on the network.
    pub tasks: usize,
}

/// A task on a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkMember {
    /// Its address there.
    pub address: String,
    /// Its IPv6 address there, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<String>,
    /// The task's name.
    pub task: String,
    /// The task's identifier.
    pub id: String,
    /// The task's node.
    pub node: String,
    /// How the task is.
    pub state: String,
    /// Whether names lead to it.
    pub ready: bool,
    /// The names that lead to it.
    pub names: Vec<String>,
}

/// A wish to have networks looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkDoctorRequest {
    /// This one only, by name or id; all of the cluster if absent.
    pub network: Option<String>,
    /// The environment in which the name is looked for.
    pub environment: Option<String>,
    /// One task of each node instead of all, names by UDP only, and packets of one size.
    pub fast: bool,
}

/// A line of what a look at the networks says. The last is `report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkDoctorLine {
    /// How far it is.
    Progress {
        /// What is done now.
        what: String,
        /// So many are done.
        done: usize,
        /// Of so many.
        of: usize,
    },
    /// What was found.
    Report(Box<NetworkReport>),
}

/// What was found of networks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkReport {
    /// One for each network.
    pub networks: Vec<NetworkHealth>,
    /// What was not as the tables say and is again.
    pub mended: Vec<NetworkMend>,
    /// What a person must do, the gravest first.
    pub todo: Vec<NetworkTodo>,
    /// What is worth knowing and breaks nothing now.
    pub notes: Vec<NetworkTodo>,
    /// How many probes were made.
    pub probes: usize,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// How a network is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkHealth {
    /// The network's name.
    pub network: String,
    /// Whether everything that was tried on it worked.
    pub healthy: bool,
    /// What was tried and what came of it.
    pub message: String,
}

/// Something that was mended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkMend {
    /// The node.
    pub node: String,
    /// The network; its VXLAN identifier if it has no name any more.
    pub network: String,
    /// What was not as the tables say.
    pub fault: String,
    /// How many times.
    pub count: usize,
    /// How long ago, in milliseconds.
    pub ago: u64,
}

/// Something for a person to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct NetworkTodo {
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// The node to run the command on; absent if it is to be run at the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The command, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// A wish to know the path of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TraceRequest {
    /// From where: a task, a service, a node, an address, or a name that is answered on a network.
    pub from: String,
    /// To where.
    pub to: String,
    /// The environment in which names are looked for.
    pub environment: Option<String>,
    /// Of this network, if both ends share several.
    pub network: Option<String>,
    /// Try this port as well.
    pub port: Option<u16>,
    /// The port is one of UDP.
    pub udp: bool,
}

/// The path of a packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// Where it begins.
    pub from: String,
    /// Where it ends.
    pub to: String,
    /// The network it takes, if both ends share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The steps, in order.
    pub hops: Vec<Hop>,
    /// What happened to packets that were sent.
    pub probes: Vec<TraceProbe>,
    /// Whether every step is as it should be and the probes came through.
    pub works: bool,
    /// The whole in one sentence.
    pub verdict: String,
}

/// A step on a packet's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hop {
    /// The node; empty for what is no node's.
    pub node: String,
    /// What the packet passes and where it goes next.
    pub step: String,
    /// `ok`, `mended`, `warning` or `broken`.
    pub state: String,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A packet that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceProbe {
    /// What was sent, from where to where.
    pub what: String,
    /// Whether it came through.
    pub came_through: bool,
    /// What happened.
    pub outcome: String,
    /// How long the answer took, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micros: Option<u64>,
}
