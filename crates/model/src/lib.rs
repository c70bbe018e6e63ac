//! What the cluster is made of: the nouns every other crate speaks in.
//!
//! Nothing here does I/O, reads a clock or is asynchronous; everything is plain data with `serde`. A record that is
//! stored or sent is one of these types. Collections are ordered, so that equal things serialise to equal bytes.

mod app;
mod assignment;
mod build;
mod device;
pub mod difference;
mod event;
mod gateway;
mod ids;
mod names;
mod network;
mod node;
mod placement;
mod policy;
mod quota;
mod rebalance;
mod release;
mod rollout;
mod spec;
mod task;
pub mod template;
mod units;
mod wireguard;

pub use app::{
    AppKey, AppRecord, By, EndedRollout, GivenUp, Image, NamedIn, Previous, Release, ReleaseNumber, Rollout,
    RolloutState, ServiceKey, ServiceRecord, ServiceRevision, VolumeRecord,
};
pub use assignment::{
    AssignmentSet, Attachment, DnsTable, ENTRY_MARK, Endpoint, FileAssignment, LeaseAnswer, LeaseGrant,
    NamedPort, NetworkAssignment, NodeReport, Peer, RemoteBlock, Route, RouteTable, Target, TaskAssignment,
    TaskReport, VirtualService, VolumeAssignment,
};
pub use build::{AdditionalContext, BuildContext, BuildMark, BuildOptions, BuildSpec, Dockerfile};
pub use device::{
    DeviceKind, InvalidDevices, InvalidKind, NodeDevice, NodeDevices, TaskDevice, WHOLE, thousandths,
};
pub use event::{Event, EventKind, Subject};
pub use gateway::{
    AcmeChallenge, EndpointSet, EndpointState, EndpointStats, EntryCounters, GatewayProcess, GatewayStats,
    LATENCY_BOUNDS, PortReport, RouteId, RouteReport, RouteStats, ServiceRoute, SetStats, ShownCertificate,
    TicketKey, Users,
};
pub use ids::{EventId, Id, InvalidId, Kind, NetworkId, NodeId, ServerId, TaskId, TokenId, VolumeId};
pub use names::{
    AppName, EnvironmentName, FileName, InvalidName, NetworkName, NodeName, ServiceName, VolumeName,
};
pub use network::{
    AddressPool, Backend, Ipv6Addresses, NetworkDefaults, NetworkRecord, RouteProgram, RouteSync,
    RouteSynced, UnknownBackend, WantedRoute, ipv6_for, mac_for,
};
pub use node::{
    Availability, Cleanup, DiskFacts, DiskMarks, DiskUse, EngineFacts, HostSubnet, InvalidMarks, NodeFacts,
    NodeRecord, NodeState, NodeStatus, PeerView, Platform, Role, Roles, Spared, Suspicion, WatchedNode,
};
pub use placement::{
    InvalidTaint, MaintenanceWindow, NodeScheduling, Overcommit, PlacementDefaults, PlacementStrategy,
    StableSlots, Taint, TaintEffect, Toleration,
};
pub use policy::*;
pub use quota::{Quota, QuotaRecord, QuotaThing};
pub use rebalance::{AutomaticRebalancing, MoveState, RebalanceRun, Rebalancing, Relocation, RunMove};
pub use release::{GitSource, ReleaseNote, ReleaseOutcome};
pub use rollout::{Asked, Figures, Promotion, ServiceProgress, SetRole, TaskSet};
pub use spec::*;
pub use task::{
    Exit, GivenPort, Health, HookStage, IllegalMove, Phase, Progress, Restarts, Slot, SlotOf, StopReason,
    Task, TaskHook, TaskStatus,
};
pub use units::{Bytes, Cpus, Generation, Millis, Revision, Timestamp};
pub use wireguard::{
    InvalidKey, PublicKey, TUNNEL_PREFIX, WIREGUARD_KEEPALIVE, WIREGUARD_PORT, WORD_PORT,
    WireguardAssignment, WireguardFacts, WireguardPeer, is_tunnel, tunnel_address,
};
