//! What a server tells an agent, and what an agent reports.
//!
//! An assignment set is whole: what is not in it is not wanted on the node. Its generation only grows, and an agent refuses an older one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    Backend, DiskMarks, EndpointSpec, ExternalHost, FileMount, Generation, Image, Ipv6Addresses, Mac,
    NetworkId, NetworkMode, NodeFacts, NodeId, PeerView, Protocol, Revision, ServiceKey, ServiceName,
    ServiceSpec, Slot, TaskDevice, TaskId, TaskStatus, VolumeId, VolumeName, VolumeSpec, WatchedNode,
    WireguardAssignment,
};

/// Everything one node should do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentSet {
    /// The cluster's epoch: grows when its store was restored from a backup.
    pub epoch: u64,
    /// The store's revision this was made from. Sets are ordered by epoch and revision.
    pub revision: Revision,
    /// Whom it is for; an agent refuses another node's.
    pub node: NodeId,
    /// Tasks that should run or be stopped here. A task absent from it is forgotten, and its container removed.
    pub tasks: BTreeMap<TaskId, TaskAssignment>,
    /// Networks that should exist here.
    pub networks: BTreeMap<NetworkId, NetworkAssignment>,
    /// Volumes that should exist here.
    pub volumes: BTreeMap<VolumeId, VolumeAssignment>,
    /// Volumes whose data must be deleted here; kept until the agent reports it done.
    #[serde(default)]
    pub removed_volumes: Vec<VolumeId>,
    /// Names answered to the node's containers.
    pub dns: DnsTable,
    /// Ports the node's gateway listens on; empty without the role.
    pub routes: RouteTable,
    /// The node's tunnels to other nodes, if a network of [`Backend::Wireguard`] is on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireguardAssignment>,
    /// How full its disks may be.
    #[serde(default, skip_serializing_if = "DiskMarks::is_default")]
    pub disk_marks: DiskMarks,
    /// The nodes that this one listens for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watched: Vec<WatchedNode>,
}
impl AssignmentSet {
    /// A set of a node that is to do nothing.
    pub fn new(epoch: u64, revision: Revision, node: NodeId) -> Self {
        Self {
            epoch,
            revision,
            node,
            tasks: BTreeMap::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            removed_volumes: Vec::new(),
            dns: DnsTable::default(),
            routes: RouteTable::default(),
            wireguard: None,
            disk_marks: DiskMarks::default(),
            watched: Vec::new(),
        }
    }
}

/// One task for a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAssignment {
    /// The task.
    pub id: TaskId,
    /// What it is a task of.
    pub service: ServiceKey,
    /// Its position.
    pub slot: Slot,
    /// Which of the service's revisions it is made from.
    #[serde(default)]
    pub generation: Generation,
    /// What it is called; the container's host name unless the service has one. Unique among running tasks of the cluster, not over time.
    pub name: String,
    /// What should be done with it.
    pub target: Target,
    /// How it is made.
    pub spec: ServiceSpec,
    /// The image, pinned.
    pub image: Image,
    /// The networks it is on, in the order in which to connect them: the first is its default route.
    pub attachments: Vec<Attachment>,
    /// The volumes its mounts name.
    pub volumes: BTreeMap<VolumeName, VolumeId>,
    /// Configs and secrets it mounts.
    #[serde(default)]
    pub files: Vec<FileAssignment>,
    /// What it has of the node's devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<TaskDevice>,
    /// The tasks of its node that it shares something with, one of each of [`ServiceSpec::companions`].
    #[serde(default)]
    pub companions: BTreeMap<ServiceName, TaskId>,
    /// It must not run twice, and another node may be given its work when this one is not heard of: it runs only while the node holds a
    /// lease of the leader ([`LeaseGrant`](crate::LeaseGrant)).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
}
impl TaskAssignment {
    /// Whose network namespace it shares (`network_mode: service:…`), once that is known.
    pub fn network_of(&self) -> Option<TaskId> {
        match &self.spec.network_mode {
            NetworkMode::Service(service) => self.companions.get(service).copied(),
            NetworkMode::Networks | NetworkMode::Host | NetworkMode::None | NetworkMode::Bridge => None,
        }
    }
}

/// What should be done with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Bring it up and keep watch over it.
    Run,
    /// Stop it within its grace period and remove its container.
    Stop,
}

/// A task on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which.
    pub network: NetworkId,
    /// Its address there; its MAC address is [`crate::mac_for`] of it unless the endpoint has one.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where that is not [`crate::ipv6_for`] of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// What the engine is told of the connection.
    #[serde(default)]
    pub endpoint: EndpointSpec,
}

impl Attachment {
    /// A connection of which the engine is told nothing else.
    pub fn new(network: NetworkId, address: Ipv4Addr) -> Self {
        Self { network, address, address6: None, endpoint: EndpointSpec::default() }
    }
}

/// A config or secret for a task, with its content.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAssignment {
    /// Where and how it is mounted.
    pub mount: FileMount,
    /// Whether it must never touch a disk.
    pub secret: bool,
    /// Content in base64.
    pub content: String,
}
impl std::fmt::Debug for FileAssignment {
    /// Never shows the content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileAssignment")
            .field("mount", &self.mount)
            .field("secret", &self.secret)
            .finish_non_exhaustive()
    }
}

/// A network that should exist on the node: a Docker bridge network with a VXLAN port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAssignment {
    /// The network.
    pub id: NetworkId,
    /// What it is called in `docker network ls`: `<app>_<network>`.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// One subnet for the whole cluster.
    pub subnet: Ipv4Net,
    /// The address of this node's bridge; its MAC address is [`crate::mac_for`] of it.
    pub gateway: Ipv4Addr,
    /// No way out of the cluster.
    pub internal: bool,
    /// Containers made by hand may join.
    pub attachable: bool,
    /// Options of the engine's bridge driver.
    #[serde(default)]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels of the engine's network.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Every address of the network that lives on another node, its gateways included.
    pub peers: Vec<Peer>,
    /// How its packets travel.
    #[serde(default)]
    pub backend: Backend,
    /// With [`Backend::Macvlan`]: the interface whose segment containers join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// With [`Backend::Macvlan`]: the segment's own router, the default route of containers; without one they reach the segment only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// With [`Backend::Routed`]: the parts of the subnet that are this node's. Single addresses (`/32`) are among them: tasks that
    /// were here before the network was routed, or asked for an address of another part. The longest match wins, as in routing. The
    /// gateway need not be in any: a network that becomes a routed one keeps its gateways, and nobody else reaches them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Ipv4Net>,
    /// With [`Backend::Routed`]: the parts that are other nodes'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_blocks: Vec<RemoteBlock>,
    /// Its IPv6 subnet; [`crate::ipv6_for`] says who has which address, unless the attachment or the peer does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The addresses on it of nodes with the gateway role, this one's among them: containers send answers to connections that came from
    /// one of these back there, whatever address the connection is from. Without those for which that is not possible. On a network with
    /// IPv6 it goes for the addresses that follow from these as well.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub entries: BTreeSet<Ipv4Addr>,
}

impl NetworkAssignment {
    /// A network with the defaults of everything else, and without peers.
    pub fn new(id: NetworkId, name: impl Into<String>, vni: u32, subnet: Ipv4Net, gateway: Ipv4Addr) -> Self {
        Self {
            id,
            name: name.into(),
            vni,
            subnet,
            gateway,
            internal: false,
            attachable: false,
            driver_opts: BTreeMap::new(),
            labels: BTreeMap::new(),
            peers: Vec::new(),
            backend: Backend::default(),
            parent: None,
            router: None,
            blocks: Vec::new(),
            remote_blocks: Vec::new(),
            subnet6: None,
            entries: BTreeSet::new(),
        }
    }
}

/// A part of a routed network that is another node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemoteBlock {
    /// The part.
    pub block: Ipv4Net,
    /// The address of the node that has it.
    pub node: IpAddr,
}

/// An address that lives on another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// The address on the network.
    pub address: Ipv4Addr,
    /// The node's address, where its VXLAN port answers.
    pub node: IpAddr,
    /// Its hardware address, where that is not [`crate::mac_for`] of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its IPv6 address, where that is not [`crate::ipv6_for`] of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Whose it is; none for a node's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
}
impl Peer {
    /// An address on a node, with everything else as it is by itself.
    pub const fn new(address: Ipv4Addr, node: IpAddr) -> Self {
        Self { address, node, mac: None, address6: None, task: None }
    }
}

/// A volume that should exist on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAssignment {
    /// The volume.
    pub id: VolumeId,
    /// What it is called in `docker volume ls`: `<app>_<volume>`.
    pub name: String,
    /// What was asked for.
    pub spec: VolumeSpec,
}

/// The names that containers of the node may ask for: by network, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsTable {
    /// The revision it was made from.
    pub version: Revision,
    /// Names and addresses of ready, not draining tasks, by network. A name without addresses exists all the same: none of its tasks is
    /// ready. `nearest.<service>` has those of the node, else those of its zone, else all.
    pub networks: BTreeMap<NetworkId, BTreeMap<String, Vec<Ipv4Addr>>>,
    /// Names of services outside the cluster and where they are, by network. No name is in `networks` as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub externals: BTreeMap<NetworkId, BTreeMap<String, ExternalHost>>,
    /// What each address of an unfinished task is called, by network: its task's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, String>>,
    /// The ports that services publish or expose, by network and the service's name. Each name is in `networks` as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<NetworkId, BTreeMap<String, Vec<NamedPort>>>,
    /// The IPv6 addresses of networks that have any: names lead to those of the tasks, too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ipv6: BTreeMap<NetworkId, Ipv6Addresses>,
    /// The virtual addresses of services, by network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vips: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, VirtualService>>,
    /// The addresses of containers in which virtual addresses lead somewhere. Written by the node's agent, never by a server: who is not
    /// among them is answered with the tasks' own addresses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub programmed: BTreeSet<Ipv4Addr>,
}
impl DnsTable {
    /// Whether two tables differ in nothing but the revisions they were made from.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self { version: _, networks, externals, hosts, ports, ipv6, vips, programmed } = self;
        *networks == other.networks
            && *externals == other.externals
            && *hosts == other.hosts
            && *ports == other.ports
            && *ipv6 == other.ipv6
            && *vips == other.vips
            && *programmed == other.programmed
    }
}

/// A service that has a virtual address on a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct VirtualService {
    /// What the address is called: the service's own name.
    pub name: String,
    /// The names that lead to the address. Each is in [`DnsTable::networks`] as well, with the tasks' addresses.
    pub names: BTreeSet<String>,
    /// Where connections to it go: ready, not draining tasks.
    pub tasks: BTreeSet<Ipv4Addr>,
    /// Tasks that get no new connections and keep those they have. What was connected to others is reset.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leaving: BTreeSet<Ipv4Addr>,
}

/// A port of a service's tasks that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// Port in the container.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The ports a gateway listens on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    /// The revision it was made from.
    pub version: Revision,
    /// One for each published port.
    pub routes: Vec<Route>,
    /// The routes of services (`x-wharf.routes`). No port of theirs is in `routes` as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<crate::ServiceRoute>,
    /// The certificates that are shown. Never on a disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<crate::ShownCertificate>,
    /// What certificate authorities are answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<crate::AcmeChallenge>,
    /// What seals the sessions of TLS clients, the newest first: that one seals, all of them open. Never on a disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ticket_keys: Vec<crate::TicketKey>,
    /// Tasks that are in no route any more because their nodes do not answer: what was asked of them and may be asked twice is asked of another.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unheard: BTreeSet<TaskId>,
    /// Tasks that will not go on with what was begun with them, because their nodes are given up, and the nodes: what is under way with them
    /// ends at once. Servers name all of them. A node's agent tells its gateway only of those whose nodes it does not hear itself: a server that
    /// lost a node, or a node that lost its servers, is no reason to end what goes on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gone: BTreeMap<TaskId, NodeId>,
    /// Keys and passwords are left out, because it was kept on a disk: a gateway that has them from the table before goes on with those.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
}
impl RouteTable {
    /// A table of published ports.
    pub fn of_ports(version: Revision, routes: Vec<Route>) -> Self {
        Self { version, routes, ..Self::default() }
    }
    /// The same without anything that must not be on a disk.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut table = Self {
            certificates: Vec::new(),
            challenges: Vec::new(),
            ticket_keys: Vec::new(),
            withheld: self.withheld || self.has_secrets(),
            ..self.clone()
        };
        table.services.iter_mut().for_each(|route| route.users.0.clear());
        table
    }
    /// Whether anything of it must not be on a disk.
    pub fn has_secrets(&self) -> bool {
        let asks = |route: &crate::ServiceRoute| !route.users.0.is_empty();
        !self.certificates.is_empty()
            || !self.challenges.is_empty()
            || !self.ticket_keys.is_empty()
            || self.services.iter().any(asks)
    }
    /// What was left out of this one, from one that a gateway had before.
    pub fn recall(&mut self, before: &Self) {
        if !std::mem::take(&mut self.withheld) {
            return;
        }
        self.withheld = before.withheld;
        self.certificates.clone_from(&before.certificates);
        self.challenges.clone_from(&before.challenges);
        self.ticket_keys.clone_from(&before.ticket_keys);
        let users: BTreeMap<_, _> = before.services.iter().map(|route| (&route.id, &route.users)).collect();
        for route in &mut self.services {
            if let Some(known) = users.get(&route.id).filter(|_| route.spec.basic_auth.is_some()) {
                route.users.clone_from(known);
            }
        }
    }
    /// Whether two tables differ in nothing but the revisions they were made from.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            version: _,
            routes,
            services,
            certificates,
            challenges,
            ticket_keys,
            unheard,
            gone,
            withheld,
        } = self;
        *routes == other.routes
            && *services == other.services
            && *certificates == other.certificates
            && *challenges == other.challenges
            && *ticket_keys == other.ticket_keys
            && *unheard == other.unheard
            && *gone == other.gone
            && *withheld == other.withheld
    }
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The service behind it.
    pub service: ServiceKey,
    /// Where it listens.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Address to listen on; every one if absent.
    #[serde(default)]
    pub host_ip: Option<IpAddr>,
    /// Ready, not draining tasks.
    pub endpoints: Vec<Endpoint>,
}

/// What a gateway marks the packets of connections with that it makes from its clients' addresses. The node's rules know by it which
/// answers are for the gateway.
pub const ENTRY_MARK: u32 = 0x5748_0001;

/// One ready task behind a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The task.
    pub task: TaskId,
    /// Where it answers.
    pub address: SocketAddrV4,
    /// Whether it sends answers back to this gateway also if the connection is from the client's own address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_client: bool,
    /// Where it answers clients with IPv6 addresses, if it sends answers back to this gateway also if the connection is from such a
    /// client's own address. It need not listen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_client6: Option<Ipv6Addr>,
}

impl Endpoint {
    /// An endpoint that can be reached from the gateway's own address only.
    pub const fn new(task: TaskId, address: SocketAddrV4) -> Self {
        Self { task, address, keeps_client: false, keeps_client6: None }
    }
    /// Whether both are the same task at the same place.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.task, self.address) == (other.task, other.address)
    }
}

/// What an agent says of its node. Of two, the one with the higher sequence is the newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Counts this agent process's reports.
    pub sequence: u64,
    /// The epoch of the set whose names and routes it serves.
    #[serde(default)]
    pub epoch: u64,
    /// That set's revision. Once epoch and revision are reported, no answer and no connection that an older set led to begins on the node.
    pub observed: Revision,
    /// The node.
    pub facts: NodeFacts,
    /// What is not as it should be on the node itself: a network that cannot be made, a port that is taken.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Tasks that the routes it serves no longer have, and how many requests and connections its gateways still have under way with each.
    /// Without a number there are none: once `observed` says that a task is gone from the routes and it is not in here, nothing of
    /// this node's gateways is under way with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub draining: BTreeMap<TaskId, u64>,
    /// What it hears of the nodes that it watches.
    #[serde(default, skip_serializing_if = "PeerView::is_empty")]
    pub peers: PeerView,
}

/// The right to run tasks that must not run twice, for so long.
///
/// It is counted from when the node said what is answered, not from when it hears of the answer: the leader counts from later, so that whatever
/// happens to messages the node's right ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The cluster's epoch.
    pub epoch: u64,
    /// Counts changes of leader: a node that was granted something by a later one takes nothing from an earlier one.
    pub term: u64,
    /// The number that the node gave last to this session; none asks for the first one and grants nothing.
    pub answers: Option<u64>,
    /// For how long.
    pub lasts: crate::Millis,
}

/// What a node says to a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    /// The next grant is counted from now if it answers this number.
    pub number: u64,
}

/// What an agent says of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The task.
    pub task: TaskId,
    /// How it is.
    pub status: TaskStatus,
}
