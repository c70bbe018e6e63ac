//! What a server asks of nodes to find out how their networks are, and what they answer.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/diagnose/look` | [`LookRequest`] | [`Look`] |
//! | `POST /v1/diagnose/probe` | [`ProbeRequest`] | [`ProbeAnswer`] |
//! | `POST /v1/diagnose/listen` | [`ListenRequest`] | JSON lines of [`Heard`], until the time is over |
//! | `POST /v1/diagnose/path` | [`PathRequest`] | [`PathFacts`] |
//!
//! Nodes say what is the case and judge nothing. Everything is asked from outside of what is looked at: kernel tables are read by
//! another program than the one that keeps them, names are asked over the network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wharf_model::{AssignmentSet, NetworkId, TaskId};

/// A wish for a look at a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LookRequest {
    /// Compare the kernel with the tables first, and mend it.
    pub repair: bool,
    /// Say what was mended so many milliseconds ago or later.
    pub mended_within: u64,
}

/// How a node's side of its networks is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    /// The node's clock, in milliseconds since the epoch.
    pub now: u64,
    /// The networks of the set it holds, with what [`digest`] makes of each and of the names on it.
    pub networks: BTreeMap<NetworkId, String>,
    /// The revision of the set it holds.
    pub held: u64,
    /// The revision of the set whose names and routes it serves.
    pub observed: u64,
    /// What was mended lately.
    pub mended: Vec<Mended>,
    /// Why the kernel could not be compared with the tables.
    pub repair_error: Option<String>,
    /// What the agent says is not as it should be.
    pub problems: Vec<String>,
    /// Programs that are needed and are not there.
    pub missing_tools: Vec<String>,
    /// Settings of the kernel, by their path below `/proc/sys`; those that are not there are absent.
    pub sysctls: BTreeMap<String, String>,
    /// Routes that are neither default routes nor those of Wharf's bridges, and the interface they lead to.
    pub routes: Vec<(IpNet, String)>,
    /// UDP port of the encapsulated packets.
    pub vxlan_port: u16,
    /// What else uses that port: other VXLAN devices, programs.
    pub port_users: Vec<String>,
    /// The interface that has the node's address, and its largest packet.
    pub uplink: Option<(String, u32)>,
}

/// Stands for a network as a set says it, with the names on it: who has the same has the same tables, as far as both are of one version.
pub fn digest(set: &AssignmentSet, network: NetworkId) -> Option<String> {
    let assignment = set.networks.get(&network)?;
    let names = set.dns.networks.get(&network);
    let text = serde_json::to_vec(&(assignment, names)).ok()?;
    Some(hex::encode(&Sha256::digest(&text)[..8]))
}

/// Something that was not as the tables say, and is again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// The network, if the node still has it.
    pub network: Option<NetworkId>,
    /// Its VXLAN identifier.
    pub vni: u32,
    /// What it was.
    pub fault: String,
    /// How many times.
    pub count: usize,
    /// How long ago, in milliseconds.
    pub ago: u64,
}

/// Probes to make at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// They are answered in this order.
    pub probes: Vec<Probe>,
    /// How long to wait for an answer, in milliseconds.
    pub timeout: u64,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// From a task's own network namespace; from the node's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<TaskId>,
    /// From this address; the kernel chooses if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// What to do.
    pub what: ProbeKind,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// An echo request; it is lost only if three are.
    Ping(IpAddr),
    /// The largest packet that comes back unfragmented, up to this many bytes.
    LargestPacket {
        /// To where.
        to: Ipv4Addr,
        /// The largest to try; 0 for that of the interface they come from.
        up_to: u16,
    },
    /// A connection by TCP; one that is refused shows that somebody is there.
    Tcp(SocketAddr),
    /// An empty datagram; whether anybody answers or refuses. Nobody has if three are lost.
    Udp(SocketAddr),
    /// A datagram with this text; nobody answers.
    Datagram {
        /// To where.
        to: SocketAddr,
        /// What it says.
        text: String,
    },
    /// Questions for the IPv4 addresses of names.
    Dns {
        /// Whom to ask.
        server: SocketAddr,
        /// By TCP.
        tcp: bool,
        /// The names.
        names: Vec<String>,
    },
}

/// What became of the probes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// In the order of the probes.
    pub outcomes: Vec<Outcome>,
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Somebody answered, after so many microseconds.
    Answered(u64),
    /// Somebody refused, after so many microseconds: what was asked is there and nothing listens.
    Refused(u64),
    /// Nobody answered.
    Silent,
    /// The largest packet that came back.
    Largest {
        /// The largest that was tried.
        of: u16,
        /// 0 if none came back.
        bytes: u16,
    },
    /// It was sent.
    Sent,
    /// The answers, in the order of the names.
    Names(Vec<NameAnswer>),
    /// It could not be made, for this reason.
    Impossible(String),
}

/// What a responder said of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameAnswer {
    /// These addresses, in order.
    Addresses(Vec<Ipv4Addr>),
    /// Another code than success: `NXDOMAIN`, `SERVFAIL`.
    Code(String),
    /// Nothing.
    Silent,
    /// Something else, or it could not be asked.
    Broken(String),
}

/// A wish to hear datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenRequest {
    /// At these addresses, at one port of the node's choice each.
    pub at: Vec<IpAddr>,
    /// For so many milliseconds.
    pub millis: u64,
}

/// One line of what was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heard {
    /// The first: where it listens, in the order that was asked for; none where it cannot.
    At(Vec<Option<SocketAddr>>),
    /// A datagram with this text.
    Text(String),
}

/// A wish to know how packets go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRequest {
    /// Whose network namespace they come from or go to; the node's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The network's VXLAN identifier: the bridge is named by it.
    pub vni: u32,
    /// The address on this node.
    pub here: Ipv4Addr,
    /// The address at the other end.
    pub there: Ipv4Addr,
    /// Its hardware address.
    pub mac: wharf_model::Mac,
    /// The node where the other end is; absent if it is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<IpAddr>,
}

/// What the kernel of one node has about a pair of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PathFacts {
    /// The task's own namespace; absent if none was asked for.
    pub inside: Option<Inside>,
    /// Why the task's namespace could not be looked at.
    pub inside_error: Option<String>,
    /// The network's bridge.
    pub bridge: Option<Device>,
    /// Whether the bridge has the address that is the node's own.
    pub bridge_addresses: Vec<IpAddr>,
    /// The bridge's entry for the other end's hardware address: the name of the port it is behind.
    pub switching: Vec<String>,
    /// The network's VXLAN port.
    pub port: Option<VxlanPort>,
    /// The node or nodes that the VXLAN port sends frames for the hardware address to.
    pub forwarding: Vec<IpAddr>,
    /// The hardware address that the VXLAN port answers ARP for the other end with.
    pub neighbour: Option<String>,
    /// The route from the node to the other end's address.
    pub route: Option<Route>,
    /// The route from the node to the other node.
    pub underlay: Option<Route>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// The largest packet.
    pub mtu: u32,
    /// What it is plugged into.
    pub master: Option<String>,
    /// What it is: `bridge`, `veth`, `macvlan`, `wireguard`, …
    pub kind: String,
    /// Hardware address.
    pub mac: Option<String>,
}

/// A VXLAN port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VxlanPort {
    /// The interface.
    pub device: Device,
    /// Its identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Where its packets come from.
    pub local: Option<IpAddr>,
}

/// A task's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// The interface with the task's address.
    pub device: Option<Device>,
    /// The other end of it, in the node's namespace.
    pub outside: Option<Device>,
    /// The route to the other end.
    pub route: Option<Route>,
    /// What it holds for the other end's hardware address: the address and the state, as in `ip neigh`.
    pub neighbour: Option<(String, String)>,
}

/// A route that the kernel would take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// The interface.
    pub device: String,
    /// Its largest packet.
    pub mtu: u32,
    /// What kind of interface: `bridge`, `wireguard`, …
    pub kind: String,
    /// The next machine; absent if the destination is on the link.
    pub via: Option<IpAddr>,
    /// The address packets come from.
    pub source: Option<IpAddr>,
    /// There is none: why not.
    pub unreachable: Option<String>,
}
