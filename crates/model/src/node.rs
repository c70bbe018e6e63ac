//! Machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Bytes, Cpus, Generation, NodeDevices, NodeId, NodeName, NodeScheduling, Timestamp, WireguardFacts,
};

/// A machine of the cluster, as people want it. Written by joining and by people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its identifier; also the common name of its certificate.
    pub id: NodeId,
    /// Unique in the cluster.
    pub name: NodeName,
    /// Counts changes made by people.
    pub generation: Generation,
    /// Whether it takes work.
    pub availability: Availability,
    /// Since when; that of joining unless it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_since: Option<Timestamp>,
    /// Labels, for constraints and preferences.
    pub labels: BTreeMap<String, String>,
    /// What else it is besides an agent.
    pub roles: Roles,
    /// When it joined.
    pub joined_at: Timestamp,
    /// Serial number of its certificate in force, in hexadecimal; an older one is refused.
    pub certificate: String,
    /// How often people have asked for a new key of its WireGuard tunnels.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub key_rotation: u32,
    /// At which marks its disks count as full.
    #[serde(default, skip_serializing_if = "DiskMarks::is_default")]
    pub disk_marks: DiskMarks,
    /// How work comes to it: pool, taints, overcommitment, maintenance.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scheduling: NodeScheduling,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Whether a node takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It takes tasks.
    #[default]
    Active,
    /// It keeps its tasks and takes no new ones.
    Pause,
    /// It takes no tasks, and those it has move elsewhere.
    Drain,
}
impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        })
    }
}

/// What else a node is besides an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Roles {
    /// A server process runs on it.
    pub server: bool,
    /// Published ports listen on it.
    pub gateway: bool,
}
impl Roles {
    /// The roles it has, `agent` first.
    pub fn list(self) -> Vec<Role> {
        let all = [(true, Role::Agent), (self.server, Role::Server), (self.gateway, Role::Gateway)];
        all.into_iter().filter(|(has, _)| *has).map(|(_, role)| role).collect()
    }
}

/// One of the three roles of the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The node's hand.
    Agent,
    /// The control plane.
    Server,
    /// The entry.
    Gateway,
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Gateway => "gateway",
        })
    }
}

/// What is observed of a node. Written by the leader only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
    /// Why, in words for people; empty when ready.
    #[serde(default)]
    pub reason: String,
    /// What it last said of itself.
    pub facts: Option<NodeFacts>,
    /// Set while most of those who watch it do not hear it: nothing is sent to its tasks where others serve, and it gets no new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspected: Option<Suspicion>,
    /// It has been suspected for so long that tasks which may run twice are replaced, before it counts as down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
    /// When it went away lately, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lapses: Vec<Timestamp>,
    /// Until when it gets no new tasks although it is back, because it went away too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// So many nodes are away at once that it is not counted as down before then, although its lease is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spared: Option<Spared>,
}
impl NodeStatus {
    /// A state without anything else to say.
    pub const fn new(state: NodeState, since: Timestamp) -> Self {
        Self {
            state,
            since,
            reason: String::new(),
            facts: None,
            suspected: None,
            missing: false,
            lapses: Vec::new(),
            held_until: None,
            spared: None,
        }
    }
}

/// Why a node whose lease is over is not counted as down yet: too many are away at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spared {
    /// Until when.
    pub until: Timestamp,
    /// So many nodes are away.
    pub away: u32,
    /// Of so many.
    pub of: u32,
}

/// Why a node is suspected to be gone before that is certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Since when most of its watchers do not hear it, as far as the leader knows.
    pub since: Timestamp,
    /// The nodes that watch it and do not hear it.
    pub by: BTreeSet<NodeId>,
}

/// A node that another one listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WatchedNode {
    /// Which.
    pub node: NodeId,
    /// Where it answers.
    pub address: IpAddr,
}

/// What a node hears of those it watches. Of one that is in neither it knows nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerView {
    /// Those that answer.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub heard: BTreeSet<NodeId>,
    /// Those that have answered before, and do not any more.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub silent: BTreeSet<NodeId>,
}
impl PeerView {
    /// Whether it knows nothing of anybody.
    pub fn is_empty(&self) -> bool {
        self.heard.is_empty() && self.silent.is_empty()
    }
}

/// Whether a node can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It has joined and not yet reported.
    Joining,
    /// Its agent is connected and its engine answers.
    Ready,
    /// Its agent is connected, and its engine does not answer.
    EngineDown,
    /// Its agent is not connected, for less than the node lease: its tasks may well be running.
    Unreachable,
    /// Its agent has not been connected for longer than the node lease: its tasks are counted lost.
    Down,
}
impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::EngineDown => "engine-down",
            Self::Unreachable => "unreachable",
            Self::Down => "down",
        })
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The machine's host name.
    pub hostname: String,
    /// The address other nodes reach it at.
    pub address: IpAddr,
    /// What runs on it.
    pub platform: Platform,
    /// Processor capacity.
    pub cpus: Cpus,
    /// Memory capacity.
    pub memory: Bytes,
    /// Size of the file system that holds images, containers and volumes, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Images that it has of those that tasks of the cluster ran here from, by digest or, where no registry has them, by the engine's
    /// identifier; the latest used, [`NodeFacts::MOST_IMAGES`] at most, in order. Placement prefers a node that has the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Kernel release.
    pub kernel: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Version of the agent.
    pub agent_version: String,
    /// The engine, if it answers.
    pub engine: Option<EngineFacts>,
    /// Why the engine does not answer, if it does not.
    #[serde(default)]
    pub engine_error: Option<String>,
    /// TCP and UDP ports below 1024·64 that something outside Wharf listens on; placement and gateways keep off them.
    #[serde(default)]
    pub taken_ports: Vec<u16>,
    /// The devices that tasks can be given, by kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<NodeDevices>,
    /// Subnets that the machine reaches directly or has routes to, other than Wharf's own and the default route: no network of the
    /// cluster may overlap one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<HostSubnet>,
    /// Its end of WireGuard tunnels, once it has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardFacts>,
    /// The address its agent connects from, as the server sees it; another than `address` if the way leads through address translation.
    /// Written by the server that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_from: Option<IpAddr>,
    /// How full the file systems are that Wharf and the engine write to. Figures move in steps, so that a report is news.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskFacts>,
    /// What was last removed of what nobody needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<Cleanup>,
}
impl NodeFacts {
    /// The most images that are told of.
    pub const MOST_IMAGES: usize = 64;
}

/// A file system that Wharf or the engine writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// A path on it that Wharf uses.
    pub path: String,
    /// What lies on it.
    pub holds: Vec<DiskUse>,
    /// What can be used of it by others than root.
    pub total: Bytes,
    /// What of that is free.
    pub free: Bytes,
    /// How many files it can have; 0 if that has no bound.
    #[serde(default)]
    pub inodes: u64,
    /// How many more.
    #[serde(default)]
    pub inodes_free: u64,
    /// In how many hours it will be full if it goes on as in the last one; absent if that is far away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_in_hours: Option<u32>,
}
impl DiskFacts {
    /// What is used of the scarcer of bytes and files, in per cent, rounded up.
    pub fn percent(&self) -> u8 {
        let share = |all: u64, free: u64| {
            let used = u128::from(all.saturating_sub(free)) * 100;
            u8::try_from(used.div_ceil(u128::from(all.max(1)))).unwrap_or(100)
        };
        share(self.total.0, self.free.0).max(share(self.inodes, self.inodes_free))
    }
    /// Whether files are scarcer on it than bytes.
    pub fn lacks_inodes(&self) -> bool {
        Self { inodes: 0, ..self.clone() }.percent() < self.percent()
    }
}

/// What lies on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskUse {
    /// The engine's images and containers.
    Engine,
    /// What the agent keeps, and the volumes.
    State,
}
impl fmt::Display for DiskUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "images and containers",
            Self::State => "volumes and Wharf's state",
        })
    }
}

/// How full a node's disks may be, in per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskMarks {
    /// Down to where room is made.
    pub low: u8,
    /// From there on room is made, and people are told.
    pub high: u8,
    /// From there on the node takes no new tasks.
    pub full: u8,
}
impl Default for DiskMarks {
    fn default() -> Self {
        Self { low: 80, high: 85, full: 90 }
    }
}
impl DiskMarks {
    /// Whether they are those that every node has by itself.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
    /// Whether each is above the one before, and none above all there is.
    pub const fn are_in_order(self) -> bool {
        self.low < self.high && self.high <= self.full && self.full <= 100
    }
}
impl fmt::Display for DiskMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.low, self.high, self.full)
    }
}
impl std::str::FromStr for DiskMarks {
    type Err = InvalidMarks;
    fn from_str(text: &str) -> Result<Self, InvalidMarks> {
        let invalid = || InvalidMarks(text.to_owned());
        let read = |part: &str| part.trim().trim_end_matches('%').parse().map_err(|_| invalid());
        let marks: Vec<u8> = text.split(',').map(read).collect::<Result<_, _>>()?;
        let [low, high, full] = marks[..] else { return Err(invalid()) };
        Some(Self { low, high, full }).filter(|marks| marks.are_in_order()).ok_or_else(invalid)
    }
}

/// What are no marks of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` are no marks of a disk: write three percentages that grow, such as `80,85,90`")]
pub struct InvalidMarks(String);

/// What a node removed because nobody needed it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What and why, as a sentence without a subject: `removed 2 images (1.2 GiB): …`.
    pub said: String,
    /// How many bytes more were free afterwards.
    pub freed: Bytes,
}

/// A subnet that a machine reaches without Wharf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostSubnet {
    /// The subnet.
    pub subnet: IpNet,
    /// The interface that leads there.
    pub interface: String,
    /// The router on the way, if it is not reached directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<IpAddr>,
}
impl fmt::Display for HostSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.router {
            Some(router) => write!(f, "{} via {router} on {}", self.subnet, self.interface),
            None => write!(f, "{} on {}", self.subnet, self.interface),
        }
    }
}

/// Operating system and architecture, in OCI's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// For example `amd64`.
    pub arch: String,
}
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)
    }
}

/// A node's Docker Engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// For example `20.10.24`.
    pub version: String,
    /// The API version in use with it.
    pub api_version: String,
    /// Labels of the engine.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether containers survive its restart.
    pub live_restore: bool,
    /// For example `overlay2`.
    pub storage_driver: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_bytes_and_files_counts() {
        let disk = DiskFacts {
            path: "/".into(),
            holds: vec![DiskUse::Engine],
            total: Bytes(1000),
            free: Bytes(300),
            inodes: 100,
            inodes_free: 10,
            full_in_hours: None,
        };
        assert_eq!((disk.percent(), disk.lacks_inodes()), (90, true));
        let unbounded = DiskFacts { inodes: 0, inodes_free: 0, ..disk };
        assert_eq!((unbounded.percent(), unbounded.lacks_inodes()), (70, false));
        assert_eq!(DiskFacts { total: Bytes(0), free: Bytes(0), ..unbounded }.percent(), 0);
    }

    #[test]
    fn marks_grow() {
        assert_eq!("70,80%,90".parse(), Ok(DiskMarks { low: 70, high: 80, full: 90 }));
        for wrong in ["", "80", "90,85,80", "80,85,101", "80,80,90", "a,b,c"] {
            assert!(wrong.parse::<DiskMarks>().is_err(), "{wrong}");
        }
    }
}
