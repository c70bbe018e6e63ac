//! The rules of placement: what a node must be and have to take a task. Each says no and why.
//!
//! A node is refused for the first of [`RULES`] that it does not meet: the cheapest and most telling come first. A rule reads nothing but
//! the demand, what was found out about its surroundings, and the site: one node with what it holds, what this pass has promised, and what
//! will be gone before the task starts.

use std::{borrow::Cow, collections::BTreeMap};

use wharf_model::{
    Availability, Bytes, Constraint, Cpus, Neighbour, NodeId, NodeRecord, NodeState, Overcommit, Protocol,
    ServiceKey, ServiceSpec, TaintEffect, Task, Timestamp,
};

use super::{
    Demand, devices,
    refusal::{Apartness, Refusal},
    surroundings::Surroundings,
};
use crate::{Load, Node};

/// Amounts of what placement counts of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amounts {
    /// In thousandths of a core.
    pub(crate) cpus: u64,
    /// In bytes.
    pub(crate) memory: u64,
    /// In bytes.
    pub(crate) disk: u64,
}
impl Amounts {
    /// What may be promised of a node.
    pub(crate) fn of(node: &Node) -> Self {
        let overcommit = node.record.scheduling.overcommit;
        node.facts().map_or_else(Self::default, |facts| Self {
            cpus: Overcommit::of(facts.cpus.0, overcommit.cpus),
            memory: Overcommit::of(facts.memory.0, overcommit.memory),
            disk: facts.disk.map_or(0, |disk| disk.0),
        })
    }
    /// What of a node is promised to nobody.
    pub(crate) fn free(node: &Node, load: &Load) -> Self {
        let all = Self::of(node);
        Self {
            cpus: all.cpus.saturating_sub(load.cpus.0),
            memory: all.memory.saturating_sub(load.memory.0),
            disk: all.disk.saturating_sub(load.disk.0),
        }
    }
    /// Whether all of this is there.
    pub(crate) const fn fits(self, free: Self) -> bool {
        self.cpus <= free.cpus && self.memory <= free.memory && self.disk <= free.disk
    }
    /// Of each the more.
    pub(crate) fn most(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory: self.memory.max(other.memory),
            disk: self.disk.max(other.disk),
        }
    }
}

/// One node as a demand finds it.
#[derive(Debug)]
pub(crate) struct Site<'s> {
    pub(crate) node: &'s Node,
    /// What its unfinished tasks hold.
    base: Option<&'s Load>,
    /// What this pass has promised.
    more: Option<&'s Load>,
    /// What will be gone before the task starts.
    less: Option<Load>,
    /// What is kept free for somebody else.
    kept: Option<Load>,
}
impl<'s> Site<'s> {
    pub(crate) const fn new(
        node: &'s Node,
        base: Option<&'s Load>,
        more: Option<&'s Load>,
        less: Option<Load>,
        kept: Option<Load>,
    ) -> Self {
        Self { node, base, more, less, kept }
    }
    fn sum(&self, of: impl Fn(&Load) -> u64) -> u64 {
        let held = [self.base, self.more, self.kept.as_ref()].into_iter().flatten().map(&of);
        held.fold(0, u64::saturating_add).saturating_sub(self.less.as_ref().map_or(0, &of))
    }
    /// What may be promised to nobody any more.
    pub(crate) fn used(&self) -> Amounts {
        Amounts {
            cpus: self.sum(|load| load.cpus.0),
            memory: self.sum(|load| load.memory.0),
            disk: self.sum(|load| load.disk.0),
        }
    }
    /// What is left.
    pub(crate) fn free(&self) -> Amounts {
        let (all, used) = (Amounts::of(self.node), self.used());
        Amounts {
            cpus: all.cpus.saturating_sub(used.cpus),
            memory: all.memory.saturating_sub(used.memory),
            disk: all.disk.saturating_sub(used.disk),
        }
    }
    /// How many tasks there are.
    pub(crate) fn tasks(&self) -> u32 {
        u32::try_from(self.sum(|load| load.tasks.into())).unwrap_or(u32::MAX)
    }
    /// How many tasks of a service there are.
    pub(crate) fn tasks_of(&self, service: &ServiceKey) -> u32 {
        let of = |load: &Load| load.services.get(service).copied().unwrap_or(0).into();
        u32::try_from(self.sum(of)).unwrap_or(u32::MAX)
    }
    /// Whether somebody has a port of the node, or something outside Wharf listens on it.
    pub(crate) fn has_port(&self, port: u16, protocol: Protocol) -> bool {
        let of = |load: &Load| load.host_ports.get(&(port, protocol)).copied().unwrap_or(0).into();
        self.sum(of) > 0 || self.node.facts().is_some_and(|facts| facts.taken_ports.contains(&port))
    }
    fn limits(&self) -> (u64, u64) {
        (self.sum(|load| load.limit_cpus.0), self.sum(|load| load.limit_memory.0))
    }
    /// What of its devices is promised.
    pub(crate) fn held_devices(&self) -> devices::Held {
        let mut held = devices::Held::default();
        for load in [self.base, self.more, self.kept.as_ref()].into_iter().flatten() {
            held = if held.is_empty() { load.devices.clone() } else { held.plus(&load.devices) };
        }
        match &self.less {
            Some(less) => held.minus(&less.devices),
            None => held,
        }
    }
    /// What is promised of the scarcer of memory and processor time, in thousandths.
    pub(crate) fn reserved_share(&self) -> u64 {
        share(self.node, self.used())
    }
}

/// What is promised of the scarcer of memory and processor time, in thousandths of what may be.
pub(crate) fn share(node: &Node, used: Amounts) -> u64 {
    let all = Amounts::of(node);
    let share = |used: u64, all: u64| used.saturating_mul(1000) / all.max(1);
    if node.facts().is_none() {
        return 0;
    }
    share(used.memory, all.memory).max(share(used.cpus, all.cpus))
}

pub(crate) type Rule = fn(&Demand<'_>, &Surroundings, &Site<'_>) -> Result<(), Refusal>;

/// Cheapest and most telling first.
pub(crate) const RULES: &[Rule] = &[
    availability,
    state,
    pool,
    taints,
    constraints,
    platform,
    engine,
    places,
    neighbours,
    per_node,
    elsewhere,
    host_ports,
    cpus,
    memory,
    disk,
    limits,
    of_devices,
    full_disk,
];

/// What a node is for a service whatever runs on it: these decide where a global service belongs.
const LASTING: &[Rule] = &[pool, taints, constraints, platform, engine];

/// Whether a node is one for these tasks, whatever runs on it.
pub(crate) fn belongs(node: &Node, demand: &Demand<'_>) -> bool {
    let site = Site::new(node, None, None, None, None);
    let none = Surroundings::default();
    LASTING.iter().all(|rule| rule(demand, &none, &site).is_ok())
}

/// Whether what all nodes of a group have in common lets any of them take the task: `node` stands for them.
pub(crate) fn group_may(
    demand: &Demand<'_>,
    around: &Surroundings,
    node: &Node,
    is_common: &dyn Fn(&str) -> bool,
) -> bool {
    let site = Site::new(node, None, None, None, None);
    let common = demand.placement().constraints.iter().filter(|constraint| is_common(&constraint.key));
    pool(demand, around, &site).is_ok()
        && taints(demand, around, &site).is_ok()
        && platform(demand, around, &site).is_ok()
        && common.into_iter().all(|constraint| holds(constraint, node))
        && around.hard(demand).all(|found| !found.is_about_groups(is_common) || found.is_met(demand, &site))
        && (!around.minimum.as_ref().is_some_and(|minimum| is_common(&minimum.over))
            || places(demand, around, &site).is_ok())
}

/// Whether the node takes work now: as people set it, and not while it is worked on.
pub(crate) fn availability_at(record: &NodeRecord, now: Timestamp) -> Availability {
    match (record.availability, record.scheduling.window(now)) {
        (Availability::Drain, _) => Availability::Drain,
        (_, Some(window)) if window.drain => Availability::Drain,
        (Availability::Pause, _) | (Availability::Active, Some(_)) => Availability::Pause,
        (Availability::Active, None) => Availability::Active,
    }
}

/// The taint for which a task of the service has to leave the node, if there is one.
pub(crate) fn driven_off<'n>(spec: &ServiceSpec, record: &'n NodeRecord) -> Option<&'n wharf_model::Taint> {
    let mut taints = record.scheduling.taints.iter();
    let bears = |taint: &wharf_model::Taint| spec.policy.tolerations.iter().any(|one| one.bears(taint));
    taints.find(|taint| taint.effect == TaintEffect::NoExecute && !bears(taint))
}

fn availability(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    match site.node.record.availability {
        Availability::Pause => return Err(Refusal::Paused),
        Availability::Drain => return Err(Refusal::Draining),
        Availability::Active => {}
    }
    match site.node.record.scheduling.window(demand.now) {
        Some(window) => Err(Refusal::Maintenance { until: window.until }),
        None => Ok(()),
    }
}

fn state(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    match site.node.state() {
        NodeState::Ready if site.node.is_suspected() => Err(Refusal::Suspected),
        NodeState::Ready if site.node.held_until().is_some() && !demand.is_at_home() => {
            Err(Refusal::HeldBack)
        }
        NodeState::Ready => Ok(()),
        other @ (NodeState::Joining | NodeState::EngineDown | NodeState::Unreachable | NodeState::Down) => {
            Err(Refusal::NotReady(other))
        }
    }
}

fn pool(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let (wanted, has) = (&demand.spec.policy.pool, &site.node.record.scheduling.pool);
    if wanted == has { Ok(()) } else { Err(Refusal::Pool { wanted: wanted.clone(), has: has.clone() }) }
}

fn taints(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let bears =
        |taint: &wharf_model::Taint| demand.spec.policy.tolerations.iter().any(|one| one.bears(taint));
    match site.node.record.scheduling.taints.iter().find(|taint| !bears(taint)) {
        Some(taint) => Err(Refusal::Taint(taint.clone())),
        None => Ok(()),
    }
}

fn constraints(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let broken = demand.placement().constraints.iter().find(|constraint| !holds(constraint, site.node));
    broken.map_or(Ok(()), |constraint| Err(Refusal::Constraint(constraint.clone())))
}

/// A constraint on something that the node does not have holds only if it is `!=`.
pub(crate) fn holds(constraint: &Constraint, node: &Node) -> bool {
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
pub(crate) fn attribute<'n>(node: &'n Node, key: &str) -> Option<Cow<'n, str>> {
    let facts = node.facts();
    let text = match key {
        "node.id" => return Some(Cow::Owned(node.record.id.to_string())),
        // People know a node by its name in the cluster; Swarm's word for it is host name.
        "node" | "node.hostname" | "node.name" => Some(node.record.name.as_str()),
        "node.platform.os" => facts.map(|facts| facts.platform.os.as_str()),
        "node.platform.arch" => facts.map(|facts| facts.platform.arch.as_str()),
        _ => {
            if let Some(label) = key.strip_prefix("node.labels.") {
                node.record.labels.get(label).map(String::as_str)
            } else {
                let label = key.strip_prefix("engine.labels.")?;
                facts?.engine.as_ref()?.labels.get(label).map(String::as_str)
            }
        }
    };
    text.map(Cow::Borrowed)
}

/// One name for each architecture: Swarm writes `x86_64` where OCI writes `amd64`.
pub(crate) fn wharf_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn platform(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let (Some(wanted), Some(facts)) = (&demand.placement().platform, site.node.facts()) else {
        return Ok(());
    };
    let mut parts = wanted.split('/');
    let (os, arch) = (parts.next().unwrap_or_default(), parts.next());
    let same = os == facts.platform.os
        && arch.is_none_or(|arch| wharf_arch(arch) == wharf_arch(&facts.platform.arch));
    if same { Ok(()) } else { Err(Refusal::Platform { wanted: wanted.clone() }) }
}

/// What a service asks for that not every engine has: the version of the API that has it, and what it is.
pub(crate) fn engine_feature(spec: &ServiceSpec) -> Option<((u32, u32), &'static str)> {
    let interval = spec.healthcheck.as_ref().is_some_and(|check| check.start_interval.is_some());
    let subpath = spec
        .container
        .mounts
        .iter()
        .any(|mount| matches!(&mount.source, wharf_model::MountSource::Volume { subpath: Some(_), .. }));
    let annotations = !spec.container.annotations.is_empty();
    let features = [
        (subpath, (1, 45), "`volume.subpath`"),
        (interval, (1, 44), "`healthcheck.start_interval`"),
        (annotations, (1, 43), "`annotations`"),
    ];
    features.into_iter().find(|(wanted, ..)| *wanted).map(|(_, version, what)| (version, what))
}

fn engine(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let Some((since, what)) = demand.feature else { return Ok(()) };
    let Some(engine) = site.node.facts().and_then(|facts| facts.engine.as_ref()) else { return Ok(()) };
    let version = engine.api_version.split_once('.');
    let version = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match version {
        Some(version) if version < since => Err(Refusal::Engine { what }),
        Some(_) | None => Ok(()),
    }
}

/// Enough places have to be used, and the tasks that are still to come are just enough for those that are not.
fn places(_: &Demand<'_>, around: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let Some(minimum) = around.minimum.as_ref().filter(|minimum| minimum.is_urgent) else { return Ok(()) };
    match attribute(site.node, &minimum.over) {
        Some(place) if !minimum.used.contains(&*place) => Ok(()),
        Some(_) | None => Err(Refusal::Places {
            over: minimum.over.clone(),
            at_least: minimum.at_least,
            used: minimum.used.len(),
        }),
    }
}

fn neighbours(demand: &Demand<'_>, around: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let hard = demand.spec.policy.affinity.iter().zip(&around.wishes).filter(|(wish, _)| !wish.soft);
    for (wish, found) in hard {
        if !found.is_met(demand, site) {
            return Err(match &wish.to {
                Neighbour::Near(service) if found.is_nowhere() => {
                    Refusal::NearNobody { service: service.clone() }
                }
                Neighbour::Near(service) => {
                    Refusal::NotNear { service: service.clone(), scope: wish.scope.clone() }
                }
                Neighbour::NearImage(image) => {
                    Refusal::NoImage { image: image.clone(), scope: wish.scope.clone() }
                }
                Neighbour::Apart(service) => Refusal::NotApart(Apartness {
                    service: service.clone(),
                    scope: wish.scope.clone(),
                    asked_by: demand.service.name.clone(),
                }),
            });
        }
    }
    for (by, scope, found) in &around.kept_off {
        if !found.is_met(demand, site) {
            return Err(Refusal::NotApart(Apartness {
                service: by.clone(),
                scope: scope.clone(),
                asked_by: by.clone(),
            }));
        }
    }
    Ok(())
}

/// How many wishes about neighbours and places a node leaves open.
pub(crate) fn broken_wishes(demand: &Demand<'_>, around: &Surroundings, site: &Site<'_>) -> u32 {
    let soft = demand.spec.policy.affinity.iter().zip(&around.wishes).filter(|(wish, _)| wish.soft);
    let broken = soft.filter(|(_, found)| !found.is_met(demand, site)).count();
    let place = around.minimum.as_ref().is_some_and(|minimum| {
        minimum.is_wanted
            && attribute(site.node, &minimum.over).is_none_or(|place| minimum.used.contains(&*place))
    });
    u32::try_from(broken).unwrap_or(u32::MAX) + u32::from(place)
}

/// How many of them any node of a group leaves open at least.
pub(crate) fn wishes_broken_in_group(
    demand: &Demand<'_>,
    around: &Surroundings,
    node: &Node,
    is_common: &dyn Fn(&str) -> bool,
) -> u32 {
    let site = Site::new(node, None, None, None, None);
    let soft = demand.spec.policy.affinity.iter().zip(&around.wishes);
    let soft = soft.filter(|(wish, found)| wish.soft && found.is_about_groups(is_common));
    let broken = soft.filter(|(_, found)| !found.is_met(demand, &site)).count();
    let place = around.minimum.as_ref().is_some_and(|minimum| {
        minimum.is_wanted
            && is_common(&minimum.over)
            && attribute(node, &minimum.over).is_none_or(|place| minimum.used.contains(&*place))
    });
    u32::try_from(broken).unwrap_or(u32::MAX) + u32::from(place)
}

/// How many tasks of the demand's service a node has, without those whose slot it takes over.
pub(crate) fn others_here(demand: &Demand<'_>, site: &Site<'_>) -> u32 {
    let relieved = |task: &&&Task| task.node == Some(site.node.record.id) && !task.is_over();
    let relieved = demand.relieves.iter().filter(relieved).count();
    site.tasks_of(demand.service).saturating_sub(u32::try_from(relieved).unwrap_or(u32::MAX))
}

fn per_node(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    match demand.placement().max_replicas_per_node {
        Some(max) if max > 0 && others_here(demand, site) >= max => Err(Refusal::PerNode { max }),
        Some(_) | None => Ok(()),
    }
}

fn elsewhere(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let at_least = demand.spec.policy.slots.map_or(0, |slots| slots.elsewhere);
    let Some(replicas) = demand.replicas.filter(|_| at_least > 0) else { return Ok(()) };
    let most = replicas.saturating_sub(at_least).max(1);
    if others_here(demand, site) < most { Ok(()) } else { Err(Refusal::Elsewhere { at_least, most }) }
}

fn host_ports(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let in_use = |(port, protocol): &&(u16, Protocol)| site.has_port(*port, *protocol);
    if let Some((port, _)) = demand.holding.host_ports.iter().find(in_use) {
        return Err(Refusal::HostPort { port: *port });
    }
    match free_ports(demand, site) {
        Ok(_) => Ok(()),
        Err(range) => Err(Refusal::HostPorts { from: range.0, to: range.1 }),
    }
}

/// A port of the node for each that the service leaves open, or the range that has none left.
pub(crate) fn free_ports(
    demand: &Demand<'_>,
    site: &Site<'_>,
) -> Result<Vec<wharf_model::GivenPort>, (u16, u16)> {
    let mut given: Vec<wharf_model::GivenPort> = Vec::new();
    for open in &demand.open_ports {
        let is_free = |port: &u16| {
            let here = given.iter().any(|one| (one.published, one.protocol) == (*port, open.protocol));
            let fixed = demand.holding.host_ports.contains(&(*port, open.protocol));
            !here && !fixed && !site.has_port(*port, open.protocol)
        };
        let published = (open.from..=open.to).find(is_free).ok_or((open.from, open.to))?;
        given.push(wharf_model::GivenPort { target: open.target, protocol: open.protocol, published });
    }
    Ok(given)
}

fn cpus(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let (need, free) = (demand.holding.cpus, Cpus(site.free().cpus));
    if need <= free { Ok(()) } else { Err(Refusal::Cpus { need, free }) }
}

fn memory(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let (need, free) = (demand.holding.memory, Bytes(site.free().memory));
    if need <= free { Ok(()) } else { Err(Refusal::Memory { need, free }) }
}

fn disk(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let (need, free) = (demand.holding.disk, Bytes(site.free().disk));
    if need <= free { Ok(()) } else { Err(Refusal::Disk { need, free }) }
}

fn full_disk(_: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    match crate::full_disk(site.node) {
        Some((disk, mark)) => Err(Refusal::DiskFull { percent: disk.percent(), mark }),
        None => Ok(()),
    }
}

fn of_devices(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    if demand.devices.is_empty() {
        return Ok(());
    }
    let inventory = site.node.facts().map(|facts| facts.devices.as_slice()).unwrap_or_default();
    devices::fits(inventory, &site.held_devices(), &demand.devices).map_err(Refusal::Devices)
}

/// Nodes may say how far the limits of their tasks may go beyond what they have.
fn limits(demand: &Demand<'_>, _: &Surroundings, site: &Site<'_>) -> Result<(), Refusal> {
    let overcommit = site.node.record.scheduling.overcommit;
    let (Some(facts), (used_cpus, used_memory)) = (site.node.facts(), site.limits()) else { return Ok(()) };
    if let Some(percent) = overcommit.limit_cpus {
        let free = Cpus(Overcommit::of(facts.cpus.0, percent).saturating_sub(used_cpus));
        let need = demand.holding.limit_cpus;
        if need > free {
            return Err(Refusal::LimitCpus { need, free });
        }
    }
    if let Some(percent) = overcommit.limit_memory {
        let free = Bytes(Overcommit::of(facts.memory.0, percent).saturating_sub(used_memory));
        let need = demand.holding.limit_memory;
        if need > free {
            return Err(Refusal::LimitMemory { need, free });
        }
    }
    Ok(())
}

/// For each value of a label, how many tasks of a service are on nodes that have it.
pub(crate) fn by_value(
    label: &str,
    nodes: &BTreeMap<NodeId, Node>,
    tasks: impl IntoIterator<Item = (NodeId, u32)>,
) -> BTreeMap<String, u32> {
    let mut values = BTreeMap::<String, u32>::new();
    for (id, count) in tasks {
        let value = nodes.get(&id).and_then(|node| attribute(node, label));
        let value = value.as_deref().unwrap_or_default();
        match values.get_mut(value) {
            Some(known) => *known += count,
            None => {
                values.insert(value.to_owned(), count);
            }
        }
    }
    values
}
