//! Why something is not as desired: as data, and as a full sentence for people.
//!
//! A sentence names its subject first, as people know it (`web.2`), and ends with what can be done if anything can.

use std::fmt;

use wharf_model::{
    AppKey, DependencyCondition, NetworkName, NodeName, Phase, ServiceKey, ServiceName, Slot, StopReason,
    TaskId, Timestamp, VolumeName,
};

use crate::place::NoPlace;

/// One thing that is not as desired, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// What is not as desired.
    pub about: About,
    /// Why not.
    pub reason: Reason,
}

/// What is not as desired.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A whole app.
    App(AppKey),
    /// A whole service.
    Service(ServiceKey),
    /// One slot of a service.
    Slot {
        /// The service.
        service: ServiceKey,
        /// The slot; 0 for a global service.
        slot: Slot,
        /// The node of a global service's task.
        node: Option<NodeName>,
        /// The task it is about, if there is one yet.
        task: Option<TaskId>,
    },
    /// A network of an app.
    Network(AppKey, NetworkName),
    /// A volume of an app.
    Volume(AppKey, VolumeName),
}
impl About {
    /// The app it belongs to.
    pub const fn app(&self) -> &AppKey {
        match self {
            Self::App(app) | Self::Network(app, _) | Self::Volume(app, _) => app,
            Self::Service(service) | Self::Slot { service, .. } => &service.app,
        }
    }
    /// The service it belongs to.
    pub const fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::App(_) | Self::Network(..) | Self::Volume(..) => None,
            Self::Service(service) | Self::Slot { service, .. } => Some(service),
        }
    }
}
impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(app) => write!(f, "{}", app.name),
            Self::Service(service) => write!(f, "{}", service.name),
            Self::Slot { service, node: Some(node), .. } => write!(f, "{} on {node}", service.name),
            Self::Slot { service, slot, .. } => write!(f, "{}.{slot}", service.name),
            Self::Network(_, network) => write!(f, "network {network}"),
            Self::Volume(_, volume) => write!(f, "volume {volume}"),
        }
    }
}

/// Why something is not as desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No node can take the task.
    NoPlace(NoPlace),
    /// A service this one depends on is not there yet.
    Dependency {
        /// Which.
        on: ServiceName,
        /// How far it must be.
        condition: DependencyCondition,
        /// How it is.
        state: DependencyState,
    },
    /// Services that depend on this one stop first.
    Dependents {
        /// Which still have tasks.
        services: Vec<ServiceName>,
    },
    /// The task ended and is started again a little later.
    Backoff {
        /// How often in a row it has failed.
        failures: u32,
        /// When it is started again.
        until: Timestamp,
        /// How it ended, in words.
        ended: String,
    },
    /// The task ended and is not started again.
    GaveUp {
        /// How often it was tried.
        attempts: u32,
        /// How it ended, in words.
        ended: String,
        /// What to do about it, if its node knew.
        hint: Option<String>,
    },
    /// The task is on its way up.
    Coming {
        /// How far it is.
        phase: Phase,
        /// Where.
        node: String,
        /// What its node says it is doing.
        message: String,
    },
    /// The task runs and its check has not passed yet.
    NotHealthy {
        /// Where.
        node: String,
        /// What the check last said.
        output: Option<String>,
    },
    /// The task's check fails, and its restart policy says to leave it.
    Unhealthy {
        /// Where.
        node: String,
        /// What the check last said.
        output: Option<String>,
    },
    /// A task that is no longer wanted has not ended yet.
    Stopping {
        /// Where.
        node: String,
        /// Why it is not wanted.
        why: StopReason,
    },
    /// The slot is to be replaced once others are.
    Turn {
        /// How many slots are replaced at once.
        parallelism: u32,
    },
    /// The next slot is replaced a little later, as the update policy says.
    UpdateDelay {
        /// When.
        until: Timestamp,
    },
    /// The new task must stay ready a little longer, as the update policy says.
    Monitor {
        /// Until when.
        until: Timestamp,
    },
    /// The slot should move away from its node and cannot.
    Stays {
        /// The node it is on.
        node: String,
        /// Why it should move.
        why: StopReason,
        /// Why it cannot.
        because: NoPlace,
    },
    /// The task's node does not answer; it may well be running.
    NodeUnreachable {
        /// Which.
        node: String,
    },
    /// The data of a volume that the task needs is on a node that is down.
    VolumeOnDownNode {
        /// The volume.
        volume: VolumeName,
        /// The node.
        node: String,
    },
    /// A network the service is on does not exist.
    NoNetwork {
        /// Which.
        network: NetworkName,
        /// Why not.
        because: NetworkRefusal,
    },
    /// The app is being taken down and its volume's data is still on nodes.
    VolumeData {
        /// The nodes.
        nodes: Vec<String>,
    },
    /// The store holds no such revision: a broken invariant, said rather than hidden.
    NoRevision,
}

/// How far a dependency is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DependencyState {
    /// There is no such service.
    Absent,
    /// It was stopped.
    Stopped,
    /// It has no task yet.
    NoTask,
    /// Its furthest task is here.
    Phase(Phase),
    /// It runs and its check has not passed.
    NotHealthy {
        /// What the check last said.
        output: Option<String>,
    },
    /// It ended and will not come again.
    GaveUp {
        /// How it ended, in words.
        ended: String,
    },
}

/// Why a network or an address on it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkRefusal {
    /// An external network that no app of the environment has.
    Missing {
        /// The name asked for.
        name: String,
    },
    /// The wanted subnet overlaps another network's.
    SubnetTaken {
        /// The wanted subnet.
        subnet: ipnet::Ipv4Net,
        /// Whose it overlaps.
        by: AppKey,
        /// Its network.
        network: NetworkName,
    },
    /// The pool is used up.
    PoolExhausted {
        /// The pool.
        pool: ipnet::Ipv4Net,
    },
    /// Every address of the network is taken.
    SubnetFull {
        /// The subnet.
        subnet: ipnet::Ipv4Net,
    },
    /// The wanted address is not in the network, or reserved.
    AddressOutside {
        /// The wanted address.
        address: std::net::Ipv4Addr,
        /// The subnet.
        subnet: ipnet::Ipv4Net,
    },
    /// The wanted address belongs to somebody.
    AddressTaken {
        /// The wanted address.
        address: std::net::Ipv4Addr,
        /// Whose it is.
        by: String,
    },
}
impl fmt::Display for NetworkRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(
                f,
                "no app of this environment has a network `{name}`; hint: deploy the app that makes it first"
            ),
            Self::SubnetTaken { subnet, by, network } => {
                write!(f, "the subnet {subnet} overlaps that of network {network} of app {}", by.name)
            }
            Self::PoolExhausted { pool } => write!(f, "every subnet of the pool {pool} is in use"),
            Self::SubnetFull { subnet } => write!(f, "every address of {subnet} is in use"),
            Self::AddressOutside { address, subnet } => {
                write!(f, "the address {address} is not one that tasks may have in {subnet}")
            }
            Self::AddressTaken { address, by } => write!(f, "the address {address} belongs to {by}"),
        }
    }
}
