//! Chooses a node for a task: refuse, then rank.
//!
//! A filter says no and why; a node is refused for one reason only, the first of [`FILTERS`]. Of the nodes left the best by
//! [`rank`] is taken, and of equals the one with the lower id: the same cluster always gives the same answer. A placement counts what
//! the pass has already promised.

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use wharf_model::{
    Availability, Bytes, Constraint, Cpus, NodeId, NodeState, PlacementSpec, Protocol, ServiceKey,
    ServiceRevision, Task, VolumeName,
};

use crate::{Load, Node, World, world::Holding};

/// What one task asks of a node.
#[derive(Debug, Clone)]
pub(crate) struct Demand<'a> {
    pub(crate) service: &'a ServiceKey,
    pub(crate) placement: &'a PlacementSpec,
    pub(crate) holding: Holding,
    /// The only nodes that come into question, and why; every node if absent.
    pub(crate) pin: Option<Pin>,
    /// Nodes that hold data of its volumes: better than others.
    pub(crate) prefer: Vec<NodeId>,
    /// Where this slot failed last: worse than others.
    pub(crate) avoid: Option<NodeId>,
    /// A task that will be gone before this one starts: what it holds is free.
    pub(crate) instead_of: Vec<&'a Task>,
    /// Tasks whose slot this one takes over while they still run: together they are one replica of their node.
    pub(crate) relieves: Vec<&'a Task>,
}
impl<'a> Demand<'a> {
    pub(crate) fn of(revision: &'a ServiceRevision) -> Self {
        Self {
            service: &revision.key,
            placement: &revision.spec.placement,
            holding: Holding::of(revision),
            pin: None,
            prefer: Vec::new(),
            avoid: None,
            instead_of: Vec::new(),
            relieves: Vec::new(),
        }
    }
}

/// Why a task may only run on certain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Those nodes.
    pub nodes: Vec<NodeId>,
    /// What ties it to them.
    pub by: PinnedBy,
}

/// What ties a task to certain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedBy {
    /// Data of this volume is there.
    Volume(VolumeName),
    /// A task of the service with which it shares that is there.
    Service(wharf_model::Shared, wharf_model::ServiceName),
    /// It is the task of a global service for that node.
    Global,
}

/// Why one node refuses one task. The order is the order of the filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is being drained.
    Draining,
    /// It takes no new tasks.
    Paused,
    /// It is not ready.
    NotReady(NodeState),
    /// A constraint does not hold for it.
    Constraint(Constraint),
    /// It runs another platform than the image is for.
    Platform {
        /// The platform wanted.
        wanted: String,
    },
    /// It has as many tasks of the service as may be on one node.
    PerNode {
        /// How many that is.
        max: u32,
    },
    /// A port of the node that the task publishes is in use.
    HostPort {
        /// Which.
        port: u16,
    },
    /// Too little processor time is unreserved.
    Cpus {
        /// How much the task reserves.
        need: Cpus,
        /// How much is free.
        free: Cpus,
    },
    /// Too little memory is unreserved.
    Memory {
        /// How much the task reserves.
        need: Bytes,
        /// How much is free.
        free: Bytes,
    },
}

/// No node takes the task: how many refused it, for each reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPlace {
    /// What ties the task to certain nodes, if anything does, and their names.
    pub pinned: Option<(PinnedBy, Vec<String>)>,
    /// Each reason with the number of nodes, the most frequent first. Of amounts, the one of the node with most free.
    pub refusals: Vec<(Refusal, usize)>,
}

type Filter = fn(&Demand, &Node, &Load) -> Result<(), Refusal>;

/// Cheapest and most telling first.
const FILTERS: &[Filter] = &[availability, state, constraints, platform, per_node, host_ports, cpus, memory];

/// What a node is for a service whatever runs on it: these filters decide where a global service belongs.
const LASTING: &[Filter] = &[constraints, platform];

/// The cluster's loads, with what the pass has promised counted in.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    world: &'a World,
    promised: BTreeMap<NodeId, Load>,
}

impl<'a> Places<'a> {
    pub(crate) const fn new(world: &'a World) -> Self {
        Self { world, promised: BTreeMap::new() }
    }

    /// The best node for the task, or why there is none.
    pub(crate) fn find(&self, demand: &Demand<'_>) -> Result<NodeId, NoPlace> {
        let mut refusals = Vec::<(Refusal, usize)>::new();
        let mut best = None;
        let spread = self.spread(demand);
        for node in self.candidates(demand) {
            let load = self.load(node.record.id, demand);
            match FILTERS.iter().try_for_each(|filter| filter(demand, node, &load)) {
                Err(refusal) => count(&mut refusals, refusal),
                Ok(()) => {
                    let candidate = (rank(demand, node, &load, &spread), node.record.id);
                    if best.as_ref().is_none_or(|leader| candidate < *leader) {
                        best = Some(candidate);
                    }
                }
            }
        }
        best.map(|(_, id)| id).ok_or_else(|| {
            refusals.sort_by_key(|(refusal, nodes)| (Reverse(*nodes), refusal.rank()));
            let name = |id: &NodeId| self.world.node_name(*id);
            let pinned =
                demand.pin.as_ref().map(|pin| (pin.by.clone(), pin.nodes.iter().map(name).collect()));
            NoPlace { pinned, refusals }
        })
    }

    /// Counts a task that this pass puts on a node.
    pub(crate) fn promise(&mut self, node: NodeId, service: &ServiceKey, holding: &Holding) {
        let load = self.promised.entry(node).or_insert_with(|| self.world.load(node));
        load.add(service, holding);
    }

    fn candidates(&self, demand: &Demand<'_>) -> Vec<&'a Node> {
        match &demand.pin {
            Some(pin) => pin.nodes.iter().filter_map(|id| self.world.node(*id)).collect(),
            None => self.world.nodes().collect(),
        }
    }
    fn load(&self, id: NodeId, demand: &Demand<'_>) -> std::borrow::Cow<'_, Load> {
        use std::borrow::Cow;
        let load = self.promised.get(&id).or_else(|| self.world.load_ref(id));
        let mut load = load.map_or_else(|| Cow::Owned(Load::default()), Cow::Borrowed);
        for task in demand.instead_of.iter().filter(|task| task.node == Some(id) && !task.is_over()) {
            let revision = self.world.revision_of(&task.service, task.generation);
            let holding = revision.map(|revision| Holding::of(revision)).unwrap_or_default();
            load.to_mut().subtract(&task.service, &holding);
        }
        load
    }
    /// For each label to spread over, how many tasks of the service each of its values has.
    fn spread(&self, demand: &Demand<'_>) -> Vec<(String, BTreeMap<String, u32>)> {
        let labels = demand.placement.spread.iter();
        labels
            .map(|key| {
                let mut values = BTreeMap::<String, u32>::new();
                for node in self.world.nodes() {
                    let here =
                        self.promised.get(&node.record.id).or_else(|| self.world.load_ref(node.record.id));
                    let tasks = here.and_then(|load| load.services.get(demand.service)).copied();
                    *values.entry(attribute(node, key).unwrap_or_default()).or_default() +=
                        tasks.unwrap_or(0);
                }
                (key.clone(), values)
            })
            .collect()
    }
}

/// Whether there is room for so many more tasks like this beside everything that runs.
///
/// # Errors
/// For how many there is, and why for no more.
pub(crate) fn room_for(world: &World, revision: &ServiceRevision, tasks: u32) -> Result<(), (u32, NoPlace)> {
    let mut places = Places::new(world);
    for placed in 0..tasks {
        let node = places.find(&Demand::of(revision)).map_err(|because| (placed, because))?;
        places.promise(node, &revision.key, &Holding::of(revision));
    }
    Ok(())
}

/// Whether a global service has a task on this node, whatever else runs there.
pub(crate) fn belongs(node: &Node, demand: &Demand<'_>) -> bool {
    LASTING.iter().all(|filter| filter(demand, node, &Load::default()).is_ok())
}

/// Lower is better: not where it failed, where its data is, few siblings, few siblings in the zone, much free, few tasks.
fn rank(
    demand: &Demand<'_>,
    node: &Node,
    load: &Load,
    spread: &[(String, BTreeMap<String, u32>)],
) -> (bool, bool, Vec<u32>, u32, u64, u32) {
    let id = node.record.id;
    let zones = spread
        .iter()
        .map(|(key, values)| values.get(&attribute(node, key).unwrap_or_default()).copied().unwrap_or(0));
    let siblings = load.services.get(demand.service).copied().unwrap_or(0);
    (
        demand.avoid == Some(id),
        !demand.prefer.contains(&id),
        zones.collect(),
        siblings,
        reserved_share(node, load),
        load.tasks,
    )
}

/// What is reserved of the scarcer of memory and processor time, in thousandths.
pub(crate) fn reserved_share(node: &Node, load: &Load) -> u64 {
    let share = |used: u64, all: u64| used.saturating_mul(1000) / all.max(1);
    node.facts().map_or(0, |facts| share(load.memory.0, facts.memory.0).max(share(load.cpus.0, facts.cpus.0)))
}

fn availability(_: &Demand, node: &Node, _: &Load) -> Result<(), Refusal> {
    match node.record.availability {
        Availability::Active => Ok(()),
        Availability::Pause => Err(Refusal::Paused),
        Availability::Drain => Err(Refusal::Draining),
    }
}

fn state(_: &Demand, node: &Node, _: &Load) -> Result<(), Refusal> {
    match node.state() {
        NodeState::Ready => Ok(()),
        other @ (NodeState::Joining | NodeState::EngineDown | NodeState::Unreachable | NodeState::Down) => {
            Err(Refusal::NotReady(other))
        }
    }
}

fn constraints(demand: &Demand, node: &Node, _: &Load) -> Result<(), Refusal> {
    let broken = demand.placement.constraints.iter().find(|constraint| !holds(constraint, node));
    broken.map_or(Ok(()), |constraint| Err(Refusal::Constraint(constraint.clone())))
}

/// A constraint on something that the node does not have holds only if it is `!=`.
fn holds(constraint: &Constraint, node: &Node) -> bool {
    let value = constraint.value.as_str();
    let equal = match constraint.key.as_str() {
        "node.role" => match value {
            "manager" | "server" => node.record.roles.server,
            "worker" => !node.record.roles.server,
            "gateway" => node.record.roles.gateway,
            other => other == "agent",
        },
        "node.platform.arch" => {
            node.facts().is_some_and(|facts| wharf_arch(&facts.platform.arch) == wharf_arch(value))
        }
        key => attribute(node, key).is_some_and(|found| found == value),
    };
    equal == constraint.equal
}

/// What constraints and preferences may ask of a node.
fn attribute(node: &Node, key: &str) -> Option<String> {
    let facts = node.facts();
    match key {
        "node.id" => Some(node.record.id.to_string()),
        // People know a node by its name in the cluster; Swarm's word for it is host name.
        "node.hostname" | "node.name" => Some(node.record.name.to_string()),
        "node.platform.os" => facts.map(|facts| facts.platform.os.clone()),
        "node.platform.arch" => facts.map(|facts| facts.platform.arch.clone()),
        _ => {
            if let Some(label) = key.strip_prefix("node.labels.") {
                node.record.labels.get(label).cloned()
            } else {
                let label = key.strip_prefix("engine.labels.")?;
                facts?.engine.as_ref()?.labels.get(label).cloned()
            }
        }
    }
}

/// One name for each architecture: Swarm writes `x86_64` where OCI writes `amd64`.
pub(crate) fn wharf_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn platform(demand: &Demand, node: &Node, _: &Load) -> Result<(), Refusal> {
    let (Some(wanted), Some(facts)) = (&demand.placement.platform, node.facts()) else { return Ok(()) };
    let mut parts = wanted.split('/');
    let (os, arch) = (parts.next().unwrap_or_default(), parts.next());
    let same = os == facts.platform.os
        && arch.is_none_or(|arch| wharf_arch(arch) == wharf_arch(&facts.platform.arch));
    if same { Ok(()) } else { Err(Refusal::Platform { wanted: wanted.clone() }) }
}

fn per_node(demand: &Demand, node: &Node, load: &Load) -> Result<(), Refusal> {
    let here = load.services.get(demand.service).copied().unwrap_or(0);
    let relieved = |task: &&&Task| task.node == Some(node.record.id) && !task.is_over();
    let relieved = demand.relieves.iter().filter(relieved).count();
    let here = here.saturating_sub(u32::try_from(relieved).unwrap_or(u32::MAX));
    match demand.placement.max_replicas_per_node {
        Some(max) if max > 0 && here >= max => Err(Refusal::PerNode { max }),
        Some(_) | None => Ok(()),
    }
}

fn host_ports(demand: &Demand, node: &Node, load: &Load) -> Result<(), Refusal> {
    let foreign = node.facts().map(|facts| facts.taken_ports.as_slice()).unwrap_or_default();
    let in_use = |(port, protocol): &&(u16, Protocol)| {
        load.host_ports.contains_key(&(*port, *protocol)) || foreign.contains(port)
    };
    match demand.holding.host_ports.iter().find(in_use) {
        Some((port, _)) => Err(Refusal::HostPort { port: *port }),
        None => Ok(()),
    }
}

fn cpus(demand: &Demand, node: &Node, load: &Load) -> Result<(), Refusal> {
    let need = demand.holding.cpus;
    let free = Cpus(node.facts().map_or(0, |facts| facts.cpus.0.saturating_sub(load.cpus.0)));
    if need <= free { Ok(()) } else { Err(Refusal::Cpus { need, free }) }
}

fn memory(demand: &Demand, node: &Node, load: &Load) -> Result<(), Refusal> {
    let need = demand.holding.memory;
    let free = Bytes(node.facts().map_or(0, |facts| facts.memory.0.saturating_sub(load.memory.0)));
    if need <= free { Ok(()) } else { Err(Refusal::Memory { need, free }) }
}

/// Counts a refusal with those for the same reason; of amounts, keeps the one nearest to enough.
fn count(refusals: &mut Vec<(Refusal, usize)>, refusal: Refusal) {
    let Some((kept, nodes)) = refusals.iter_mut().find(|(kept, _)| kept.same_reason(&refusal)) else {
        return refusals.push((refusal, 1));
    };
    *nodes += 1;
    match (kept, refusal) {
        (Refusal::Cpus { free: kept, .. }, Refusal::Cpus { free, .. }) => *kept = free.max(*kept),
        (Refusal::Memory { free: kept, .. }, Refusal::Memory { free, .. }) => *kept = free.max(*kept),
        _ => {}
    }
}

impl Refusal {
    fn same_reason(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpus { .. }, Self::Cpus { .. }) | (Self::Memory { .. }, Self::Memory { .. }) => true,
            (one, other) => one == other,
        }
    }
    const fn rank(&self) -> u8 {
        match self {
            Self::Draining => 0,
            Self::Paused => 1,
            Self::NotReady(_) => 2,
            Self::Constraint(_) => 3,
            Self::Platform { .. } => 4,
            Self::PerNode { .. } => 5,
            Self::HostPort { .. } => 6,
            Self::Cpus { .. } => 7,
            Self::Memory { .. } => 8,
        }
    }
    fn phrase(&self, one: bool) -> String {
        let (is, has) = if one { ("is", "has") } else { ("are", "have") };
        match self {
            Self::Draining => format!("{is} being drained"),
            Self::Paused => format!("{is} paused"),
            Self::NotReady(NodeState::Joining) => format!("{is} still joining"),
            Self::NotReady(NodeState::Ready) => format!("{is} ready"),
            Self::NotReady(NodeState::EngineDown) => format!("{has} an engine that does not answer"),
            Self::NotReady(NodeState::Unreachable) => format!("{is} unreachable"),
            Self::NotReady(NodeState::Down) => format!("{is} down"),
            Self::Constraint(constraint) => {
                format!("{} not meet the constraint `{constraint}`", if one { "does" } else { "do" })
            }
            Self::Platform { wanted } => format!("{is} not {wanted}"),
            Self::PerNode { max } => {
                format!("{has} {max} of its tasks already, the most allowed on one node")
            }
            Self::HostPort { port } => format!("{has} port {port} in use"),
            Self::Cpus { need, free } if one => format!("has too little CPU (need {need}, free is {free})"),
            Self::Cpus { need, free } => format!("have too little CPU (need {need}, most free is {free})"),
            Self::Memory { need, free } if one => {
                format!("has too little memory (need {need}, free is {free})")
            }
            Self::Memory { need, free } => {
                format!("have too little memory (need {need}, most free is {free})")
            }
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Draining | Self::Paused => {
                Some("`wharf node activate NODE` lets one take tasks again".into())
            }
            Self::NotReady(_) => Some("`wharf node ls` shows why a node is not ready".into()),
            Self::Constraint(constraint) => {
                constraint.key.strip_prefix("node.labels.").filter(|_| constraint.equal).map(|label| {
                    format!("`wharf node label NODE {label}={}` makes one fit", constraint.value)
                })
            }
            Self::Platform { .. } => {
                Some("join a node of that platform, or use an image for this one".into())
            }
            Self::PerNode { .. } => Some("join another node, or raise `max_replicas_per_node`".into()),
            Self::HostPort { .. } => {
                Some("join another node, free the port, or publish it in `mode: ingress`".into())
            }
            Self::Cpus { .. } => Some("join another node, or lower `reservations.cpus`".into()),
            Self::Memory { .. } => Some("join another node, or lower `reservations.memory`".into()),
        }
    }
}

impl NoPlace {
    /// The refusals as one phrase: `2 have too little memory (…), 1 is being drained`.
    pub fn refused(&self) -> String {
        if self.refusals.is_empty() {
            return match self.pinned {
                Some(_) => "no such node is in the cluster".to_owned(),
                None => "the cluster has no nodes".to_owned(),
            };
        }
        let phrases = self.refusals.iter().map(|(refusal, nodes)| {
            if self.pinned.is_some() && self.refusals.len() == 1 && *nodes == 1 {
                format!("it {}", refusal.phrase(true))
            } else {
                format!("{nodes} {}", refusal.phrase(*nodes == 1))
            }
        });
        phrases.collect::<Vec<_>>().join(", ")
    }
    /// What can be done about the most frequent reason.
    pub fn hint(&self) -> Option<String> {
        self.refusals.first().map_or_else(
            || Some("`wharf agent join` on a machine adds it to the cluster".to_owned()),
            |(refusal, _)| refusal.hint(),
        )
    }
    /// Whether a node that gave up some load could take the task, rather than only a changed cluster or file.
    pub fn is_for_want_of_room(&self) -> bool {
        self.refusals.iter().any(|(refusal, _)| refusal.rank() >= 5)
    }
}

/// What is said of a task that finds no place: starts with its name.
pub(crate) fn sentence(f: &mut fmt::Formatter<'_>, task: &dyn fmt::Display, no: &NoPlace) -> fmt::Result {
    match &no.pinned {
        None => write!(f, "no node can take {task}: {}", no.refused())?,
        Some((PinnedBy::Volume(volume), nodes)) => write!(
            f,
            "{task} must run on {}, which holds the data of its volume {volume}: {}",
            nodes.join(" or "),
            no.refused()
        )?,
        Some((PinnedBy::Service(shared, service), nodes)) if nodes.is_empty() => {
            return write!(f, "{task} shares the {shared} of {service}, which runs nowhere yet");
        }
        Some((PinnedBy::Service(shared, service), nodes)) => write!(
            f,
            "{task} must run on {}, where {service} is whose {shared} it shares: {}",
            nodes.join(" or "),
            no.refused()
        )?,
        Some((PinnedBy::Global, _)) => write!(f, "{task} cannot start: {}", no.refused())?,
    }
    no.hint().map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Cluster, app, key, node_id, published, replicas, service};

    /// Where the tasks of `web` are placed, by node.
    fn placed(cluster: &mut Cluster, web: wharf_model::ServiceSpec) -> Vec<u32> {
        cluster.up(&app(&[("web", web)]));
        let _ = cluster.pass();
        let count = |node: &Node| cluster.world.load(node.record.id).services.get(&key("web")).copied();
        cluster.world.nodes().map(|node| count(node).unwrap_or(0)).collect()
    }
    fn label(cluster: &mut Cluster, n: u8, key: &str, value: &str) {
        let mut record = cluster.world.node(node_id(n)).unwrap().record.clone();
        record.labels.insert(key.into(), value.into());
        cluster.world.insert_node(record);
    }

    #[test]
    fn tasks_are_spread_over_nodes() {
        assert_eq!(placed(&mut Cluster::of(3), replicas(service("web"), 6)), [2, 2, 2]);
    }

    #[test]
    fn zones_come_before_nodes() {
        let mut cluster = Cluster::of(4);
        for (n, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
            label(&mut cluster, n, "zone", zone);
        }
        let mut web = replicas(service("web"), 4);
        web.placement.spread = vec!["node.labels.zone".into()];
        let placed = placed(&mut cluster, web);
        assert_eq!((placed[..3].iter().sum::<u32>(), placed[3]), (2, 2), "{placed:?}");
    }

    #[test]
    fn constraints_hold_and_what_is_missing_equals_nothing() {
        let mut cluster = Cluster::of(2);
        label(&mut cluster, 2, "disk", "ssd");
        let constraint =
            |key: &str, equal, value: &str| Constraint { key: key.into(), equal, value: value.into() };
        let holds = |constraint: &Constraint, n| holds(constraint, cluster.world.node(node_id(n)).unwrap());
        assert!(!holds(&constraint("node.labels.disk", true, "ssd"), 1));
        assert!(holds(&constraint("node.labels.disk", true, "ssd"), 2));
        assert!(holds(&constraint("node.labels.disk", false, "ssd"), 1));
        assert!(holds(&constraint("node.role", true, "manager"), 1));
        assert!(holds(&constraint("node.role", true, "worker"), 2));
        assert!(holds(&constraint("node.platform.arch", true, "x86_64"), 1));
        assert!(holds(&constraint("node.hostname", true, "n2"), 2));
    }

    #[test]
    fn a_constraint_nobody_meets_says_how_to_meet_it() {
        let mut cluster = Cluster::of(2);
        let mut web = service("web");
        web.placement.constraints =
            vec![Constraint { key: "node.labels.disk".into(), equal: true, value: "ssd".into() }];
        placed(&mut cluster, web);
        insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: 2 do not meet the constraint `node.labels.disk == ssd`; hint: `wharf node label NODE disk=ssd` makes one fit");
        assert!(!cluster.last.waiting[0].is_for_room());
    }

    #[test]
    fn reservations_of_this_pass_and_earlier_ones_count() {
        let mut cluster = Cluster::of(2);
        let mut web = replicas(service("web"), 5);
        web.resources.reservations.cpus = Some(Cpus(2000));
        assert_eq!(placed(&mut cluster, web), [2, 2]);
        insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.5: 2 have too little CPU (need 2, most free is 0); hint: join another node, or lower `reservations.cpus`");
    }

    #[test]
    fn a_host_port_is_had_once_per_node() {
        let mut cluster = Cluster::of(2);
        let web = published(replicas(service("web"), 3), 80, wharf_model::PublishMode::Host);
        assert_eq!(placed(&mut cluster, web), [1, 1]);
        insta::assert_snapshot!(cluster.last.waiting.last().unwrap(), @"no node can take web.3: 2 have port 80 in use; hint: join another node, free the port, or publish it in `mode: ingress`");
    }

    #[test]
    fn max_replicas_per_node_is_kept() {
        let mut cluster = Cluster::of(2);
        let mut web = replicas(service("web"), 3);
        web.placement.max_replicas_per_node = Some(1);
        assert_eq!(placed(&mut cluster, web), [1, 1]);
    }

    #[test]
    fn another_platform_is_refused() {
        let mut cluster = Cluster::of(1);
        let mut web = service("web");
        web.placement.platform = Some("linux/arm64/v8".into());
        assert_eq!(placed(&mut cluster, web), [0]);
        insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: 1 is not linux/arm64/v8; hint: join a node of that platform, or use an image for this one");
    }

    #[test]
    fn a_slot_that_failed_tries_another_node() {
        let mut cluster = Cluster::of(2);
        cluster.scripts.insert("web:1".into(), crate::fixtures::Script::Exit(1));
        cluster.up(&app(&[("web", service("web"))]));
        cluster.settle_for(std::time::Duration::from_secs(5), &mut |_| {});
        let nodes: Vec<_> = cluster.tasks("web").iter().map(|task| task.node.unwrap()).take(3).collect();
        assert_eq!(nodes, [node_id(1), node_id(2), node_id(1)]);
    }

    #[test]
    fn a_cluster_without_nodes_says_how_to_get_one() {
        let mut cluster = Cluster::of(0);
        placed(&mut cluster, service("web"));
        insta::assert_snapshot!(cluster.waiting(), @"no node can take web.1: the cluster has no nodes; hint: `wharf agent join` on a machine adds it to the cluster");
    }
}
