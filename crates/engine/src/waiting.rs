//! Why something is not as desired: as data, and as a full sentence for people.
//!
//! A sentence names its subject first, as people know it (`web.2`), and ends with what can be done if anything can.

use std::fmt;

use wharf_model::{
    AppKey, DependencyCondition, HookStage, HostSubnet, Millis, NetworkName, NodeName, Phase, ServiceKey,
    ServiceName, Slot, StopReason, TaskId, Timestamp, VolumeName,
};

use crate::{
    Draining, Ipv6Refusal, Unacknowledged,
    place::{self, NoPlace},
    tasks::{CrashLoop, about_time},
};

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
    /// Others make room for the task.
    MakingRoom {
        /// Where.
        node: String,
        /// Their names.
        tasks: Vec<String>,
    },
    /// A service this one depends on is not there yet.
    Dependency {
        /// Which.
        on: ServiceName,
        /// How far it must be.
        condition: DependencyCondition,
        /// How it is.
        state: DependencyState,
    },
    /// The release removes the service, and it serves until the rest of the release is in place.
    GoesLast,
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
    /// The slot's tasks end again and again, and the next one is made after a pause.
    CrashLoop {
        /// How often, and in how long.
        crashes: CrashLoop,
        /// When it is started again.
        until: Timestamp,
        /// How long that is from when this was said.
        left: Millis,
        /// How the last one ended, in words.
        ended: String,
        /// Its last lines of output.
        log: Vec<String>,
        /// What to do about it, if its node knew.
        hint: Option<String>,
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
    /// The task is ready, and not every node leads to it yet: one whose place it takes goes on, and a change that brought it is not done.
    NotLedTo {
        /// Where it runs.
        node: String,
        /// The nodes that do not, by name, and why; none on a server that cannot say.
        nodes: Vec<(String, Unacknowledged)>,
    },
    /// A task that is no longer wanted goes on until nothing comes to it and nothing is under way with it.
    Draining {
        /// Where.
        node: String,
        /// Why it is not wanted.
        why: StopReason,
        /// What it waits for.
        waits: Draining,
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
    /// The rollout failed, and nothing more of it is carried out.
    Paused,
    /// Somebody wants the rollout to pause.
    Held {
        /// Who, and why.
        by: String,
    },
    /// A part of the requests goes to the new release, which is judged by it.
    Step {
        /// Per cent of them.
        percent: u8,
        /// Which step it is, from 1.
        number: u32,
        /// How many there are.
        of: u32,
        /// What was found so far.
        found: String,
    },
    /// The new release may go on as soon as somebody lets it.
    Promotion {
        /// What was found so far; empty if nothing is looked for.
        found: String,
    },
    /// New sets are ready to take over once the app's other services are as wanted.
    Others,
    /// A command around a release has not ended yet.
    Hook {
        /// Which, as people know it: the name of its task.
        name: String,
        /// When in the rollout.
        stage: HookStage,
        /// Where it is, and how far.
        doing: String,
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
    /// Most of those who watch the task's node do not hear it; nothing is sent to the task where others serve.
    NodeSuspected {
        /// Which.
        node: String,
        /// Who does not hear it.
        by: Vec<String>,
    },
    /// The task's node has been away for longer than its lease, and so have too many others: they count as down one after the other.
    NodeSpared {
        /// Which.
        node: String,
        /// So many nodes are away.
        away: u32,
        /// Of so many.
        of: u32,
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
    /// A network is no longer part of its app, and other apps' tasks are on it.
    NetworkInUse {
        /// Whose.
        by: Vec<AppKey>,
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
    /// The wanted subnet overlaps what a node reaches by itself.
    SubnetOnHost {
        /// The wanted subnet.
        subnet: ipnet::Ipv4Net,
        /// The node.
        node: String,
        /// What it reaches.
        host: HostSubnet,
    },
    /// A network on the nodes' own segment whose addresses nobody said.
    NoSubnet,
    /// The nodes' own network, as if it were one of the cluster's.
    HostBackend,
    /// The pool is used up.
    PoolExhausted {
        /// The pool.
        pool: ipnet::Ipv4Net,
        /// A node, and what it reaches by itself in the pool, if that is in the way.
        host: Option<(String, HostSubnet)>,
    },
    /// Nodes have taken every part of a routed network.
    BlocksTaken {
        /// The network's subnet.
        subnet: ipnet::Ipv4Net,
        /// Length of the prefix of each part.
        prefix: u8,
        /// Nodes, and how many parts each has.
        nodes: Vec<(String, usize)>,
    },
    /// Whoever makes the routes outside the nodes can make no more.
    RouteLimit {
        /// The most it can make.
        limit: usize,
        /// How many are needed already.
        used: usize,
        /// How many would be needed besides.
        more: usize,
        /// By how many networks.
        networks: usize,
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
    /// It is about IPv6.
    Ipv6(Ipv6Refusal),
}
impl Waiting {
    /// Whether it waits for room on nodes: something that ends in another app can change that.
    pub fn is_for_room(&self) -> bool {
        match &self.reason {
            Reason::NoPlace(because) | Reason::Stays { because, .. } => because.is_for_want_of_room(),
            Reason::NoNetwork { .. } | Reason::MakingRoom { .. } => true,
            Reason::Dependency { .. }
            | Reason::GoesLast
            | Reason::Dependents { .. }
            | Reason::Backoff { .. }
            | Reason::CrashLoop { .. }
            | Reason::GaveUp { .. }
            | Reason::Coming { .. }
            | Reason::NotHealthy { .. }
            | Reason::Unhealthy { .. }
            | Reason::Stopping { .. }
            | Reason::NotLedTo { .. }
            | Reason::Draining { .. }
            | Reason::Turn { .. }
            | Reason::UpdateDelay { .. }
            | Reason::Monitor { .. }
            | Reason::Paused
            | Reason::Held { .. }
            | Reason::Step { .. }
            | Reason::Promotion { .. }
            | Reason::Others
            | Reason::Hook { .. }
            | Reason::NodeUnreachable { .. }
            | Reason::NodeSuspected { .. }
            | Reason::NodeSpared { .. }
            | Reason::VolumeOnDownNode { .. }
            | Reason::VolumeData { .. }
            | Reason::NetworkInUse { .. }
            | Reason::NoRevision => false,
        }
    }
}
impl fmt::Display for Waiting {
    /// The whole sentence, without a full stop: it may stand in a list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = &self.about;
        match &self.reason {
            Reason::NoPlace(because) => place::sentence(f, about, because),
            Reason::MakingRoom { node, tasks } => {
                let make = if tasks.len() == 1 { "makes" } else { "make" };
                write!(f, "{about} waits for room on {node}: {} {make} way for it", tasks.join(", "))
            }
            Reason::Dependency { on, condition, state } => dependency(f, about, on, *condition, state),
            Reason::GoesLast => write!(f, "{about} goes once the rest of the release is in place"),
            Reason::Dependents { services } => {
                let names = services.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                write!(f, "{about} stops once {names}, which depends on it, has stopped")
            }
            Reason::Backoff { failures: 1, ended, .. } => {
                write!(f, "{about} ended ({ended}) and is started again shortly")
            }
            Reason::Backoff { failures, ended, .. } => {
                write!(
                    f,
                    "{about} ended {failures} times in a row, last with: {ended}; it is started again after a pause"
                )
            }
            Reason::CrashLoop { crashes, until: _, left, ended, log, hint } => {
                let next = about_time(*left);
                write!(
                    f,
                    "{about} is in a crash loop: it ended {crashes}, last with: {ended}; next try in {next}"
                )?;
                last_lines(f, log)?;
                hint_after(f, hint.as_deref())
            }
            Reason::GaveUp { attempts: 1, ended, hint } => {
                write!(f, "{about} ended and is not started again: {ended}")?;
                hint_after(f, hint.as_deref())
            }
            Reason::GaveUp { attempts, ended, hint } => {
                write!(
                    f,
                    "{about} ended {attempts} times and is not started again, as its restart policy says: {ended}"
                )?;
                hint_after(f, hint.as_deref())
            }
            Reason::Coming { phase, node, message } if message.is_empty() => {
                write!(f, "{about} is {phase} on {node}")
            }
            Reason::Coming { phase, node, message } => write!(f, "{about} is {phase} on {node}: {message}"),
            Reason::NotHealthy { node, output } => {
                write!(f, "{about} runs on {node} and its check has not passed yet")?;
                check_said(f, output.as_deref())
            }
            Reason::Unhealthy { node, output } => {
                write!(f, "{about} is unhealthy on {node}, and its restart policy leaves it so")?;
                check_said(f, output.as_deref())
            }
            Reason::Stopping { node, why } => write!(f, "{about} is being stopped on {node}: {why}"),
            Reason::NotLedTo { node, nodes } => {
                write!(f, "{about} is ready on {node} and counts once every node leads to it")?;
                laggards(f, ": ", nodes)
            }
            Reason::Draining { node, why, waits } => {
                write!(f, "{about} is draining on {node} ({why}): {waits}")
            }
            Reason::Turn { parallelism } => {
                write!(
                    f,
                    "{about} waits for its turn: {parallelism} at a time {} replaced",
                    if *parallelism == 1 { "is" } else { "are" }
                )
            }
            Reason::UpdateDelay { .. } => {
                write!(f, "{about} waits for its turn: the update policy pauses between replacements")
            }
            Reason::Monitor { .. } => {
                write!(f, "{about} runs and is watched a little longer before it counts")
            }
            Reason::Paused => write!(
                f,
                "{about} is not replaced: the rollout failed; hint: `wharf up` with a corrected file begins a new one"
            ),
            Reason::Held { by } => {
                write!(
                    f,
                    "{about} stays as it is: the rollout was paused by {by}; hint: `wharf rollout resume` goes on"
                )
            }
            Reason::Step { percent, number, of, found } => write!(
                f,
                "{about} sends {percent} % of its requests to the new release, step {number} of {of}, and that is watched: {found}"
            ),
            Reason::Promotion { found } => {
                let found = if found.is_empty() { String::new() } else { format!(" ({found})") };
                write!(
                    f,
                    "{about} waits for somebody to let the new release go on{found}; hint: `wharf rollout promote`, or `abort`"
                )
            }
            Reason::Others => write!(
                f,
                "{about} has new sets of tasks that are ready, and waits for its other services before they take over"
            ),
            Reason::Hook { name, stage: HookStage::Before, doing } => {
                write!(f, "{about} stays as it is until {name} is through, which {doing}")
            }
            Reason::Hook { name, stage: HookStage::After, doing } => {
                write!(f, "{about} is as wanted, and waits for {name}, which {doing}")
            }
            Reason::Stays { node, why, because } => {
                write!(f, "{about} stays on {node} for now although {}: ", why_leaves(*why))?;
                place::sentence(f, &"its replacement", because)
            }
            Reason::NodeUnreachable { node } => {
                write!(f, "{about} is on {node}, which does not answer; it may well be running")
            }
            Reason::NodeSuspected { node, by } => write!(
                f,
                "{about} is on {node}, which {} {} not hear; nothing is sent to it where others serve",
                by.join(" and "),
                if by.len() == 1 { "does" } else { "do" }
            ),
            Reason::NodeSpared { node, away, of } => write!(
                f,
                "{about} is on {node}, which does not answer; {away} of {of} nodes are away at once, and are given up one after the other, \
                 in case the network between them is at fault"
            ),
            Reason::VolumeOnDownNode { volume, node } => write!(
                f,
                "{about} waits for {node}, which is down and holds the data of its volume {volume}; hint: bring {node} back, \
                 or have it start elsewhere with an empty volume: `wharf volume release {volume} --node {node}`"
            ),
            Reason::NoNetwork { network, because } => match about {
                About::Network(..) => write!(f, "{about} cannot be made: {because}"),
                About::App(_) | About::Service(_) | About::Slot { .. } | About::Volume(..) => {
                    write!(f, "{about} cannot join network {network}: {because}")
                }
            },
            Reason::VolumeData { nodes } => {
                write!(f, "{about} is being deleted; its data is still on {}", nodes.join(", "))
            }
            Reason::NetworkInUse { by } => {
                let names = by.iter().map(|app| app.name.to_string()).collect::<Vec<_>>().join(", ");
                write!(f, "{about} is kept: tasks of {names} are on it")
            }
            Reason::NoRevision => {
                write!(f, "{about} has no stored revision to follow; this is a bug of ours")
            }
        }
    }
}
/// The first few nodes that have not acknowledged, and why.
fn laggards(f: &mut fmt::Formatter<'_>, before: &str, nodes: &[(String, Unacknowledged)]) -> fmt::Result {
    const NAMED: usize = 3;
    for (n, (node, why)) in nodes.iter().take(NAMED).enumerate() {
        write!(f, "{}{node}: {why}", if n == 0 { before } else { "; " })?;
    }
    match nodes.len().saturating_sub(NAMED) {
        0 => Ok(()),
        more => write!(f, "; and {more} more"),
    }
}
impl fmt::Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No number of seconds is shown that is over already.
        let seconds = |left: &std::time::Duration| left.as_millis().div_ceil(1000).max(1);
        match self {
            Self::Led(nodes) => {
                f.write_str("nodes are told to send nothing new to it")?;
                laggards(f, ": ", nodes)
            }
            Self::Named { left } => {
                write!(f, "whoever has just asked for its name may still come, for {} s more", seconds(left))
            }
            Self::UnderWay { requests, left } => {
                let plural = if *requests == 1 { "" } else { "s" };
                write!(f, "{requests} request{plural} under way, up to {} s more", seconds(left))
            }
        }
    }
}
fn why_leaves(why: StopReason) -> &'static str {
    match why {
        StopReason::Drained => "that node is being drained",
        StopReason::Rebalanced => "another node has less to do",
        StopReason::Outdated => "a newer release is to take its place",
        StopReason::Restarted => "it is to be restarted",
        StopReason::Preempted => "it makes room for a task of higher priority",
        StopReason::ScaledDown
        | StopReason::Stopped
        | StopReason::Removed
        | StopReason::NodeDown
        | StopReason::Unhealthy
        | StopReason::Withdrawn
        | StopReason::TimedOut => "it should not",
    }
}
fn hint_after(f: &mut fmt::Formatter<'_>, hint: Option<&str>) -> fmt::Result {
    hint.map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
}
/// The end of what a task printed, on one line.
fn last_lines(f: &mut fmt::Formatter<'_>, log: &[String]) -> fmt::Result {
    const LINES: usize = 3;
    const CHARACTERS: usize = 160;
    let lines = log.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(|line| line.chars().take(CHARACTERS).collect()).collect();
    match &lines[lines.len().saturating_sub(LINES)..] {
        [] => Ok(()),
        [line] => write!(f, "; its last line: {line}"),
        lines => write!(f, "; its last lines: {}", lines.join(" | ")),
    }
}
fn check_said(f: &mut fmt::Formatter<'_>, output: Option<&str>) -> fmt::Result {
    match output.map(str::trim).filter(|output| !output.is_empty()) {
        Some(output) => write!(f, "; it last said: {output}"),
        None => Ok(()),
    }
}
fn dependency(
    f: &mut fmt::Formatter<'_>,
    about: &About,
    on: &ServiceName,
    condition: DependencyCondition,
    state: &DependencyState,
) -> fmt::Result {
    let wanted = match condition {
        DependencyCondition::ServiceStarted => format!("{on} to be started"),
        DependencyCondition::ServiceHealthy => format!("{on} to be healthy"),
        DependencyCondition::ServiceCompletedSuccessfully => format!("{on} to complete"),
    };
    write!(f, "{about} waits for {wanted}: ")?;
    match state {
        DependencyState::Absent => write!(f, "there is no service {on}"),
        DependencyState::Stopped => write!(f, "{on} was stopped; hint: `wharf start {on}`"),
        DependencyState::NoTask => write!(f, "{on} has no running task yet"),
        DependencyState::Phase(phase) => write!(f, "{on} is {phase}"),
        DependencyState::NotHealthy { output } => {
            write!(f, "{on} runs and its check has not passed yet")?;
            check_said(f, output.as_deref())
        }
        DependencyState::GaveUp { ended } => write!(f, "{on} ended and is not started again: {ended}"),
    }
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
            Self::SubnetOnHost { subnet, node, host } => write!(
                f,
                "the subnet {subnet} overlaps what node {node} reaches by itself ({host}); \
                 hint: choose another subnet, or leave it out, and the cluster finds one that is free on all nodes"
            ),
            Self::NoSubnet => {
                f.write_str("a macvlan network is on the nodes' own segment and needs its subnet; hint: add it under `ipam`")
            }
            Self::PoolExhausted { pool, host: None } => write!(
                f,
                "every subnet of the pool {pool} is in use; \
                 hint: take down apps that are not needed, or enlarge it with `wharf network default --pool RANGE`"
            ),
            Self::PoolExhausted { pool, host: Some((node, host)) } => write!(
                f,
                "no subnet of the pool {pool} is free: what networks leave overlaps what nodes reach by themselves, on {node} {host}; \
                 hint: choose a pool that no node has a route to with `wharf network default --pool RANGE`"
            ),
            Self::BlocksTaken { subnet, prefix, nodes } => {
                let nodes: Vec<_> = nodes.iter().map(|(node, blocks)| format!("{node} has {blocks}")).collect();
                write!(
                    f,
                    "every /{prefix} of the routed subnet {subnet} belongs to a node ({}); \
                     hint: give the network a larger subnet, or `backend: vxlan`, which shares addresses between nodes",
                    nodes.join(", ")
                )
            }
            Self::HostBackend => f.write_str(
                "backend host is the nodes' own network, which has no addresses to give; hint: `network_mode: host` in the service",
            ),
            Self::RouteLimit { limit, used, more, networks } => write!(
                f,
                "{used} of {limit} routes are used by {}, and {more} more {} needed; hint: raise the limit with \
                 `wharf network default --route-limit N` if the route table takes more, or use `backend: vxlan` for some networks",
                if *networks == 1 { "1 network".to_owned() } else { format!("{networks} networks") },
                if *more == 1 { "is" } else { "are" }
            ),
            Self::SubnetFull { subnet } => write!(f, "every address of {subnet} is in use"),
            Self::AddressOutside { address, subnet } => {
                write!(f, "the address {address} is not one that tasks may have in {subnet}")
            }
            Self::AddressTaken { address, by } => write!(f, "the address {address} belongs to {by}"),
            Self::Ipv6(refusal) => refusal.fmt(f),
        }
    }
}
