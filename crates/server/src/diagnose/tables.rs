//! How the networks should be, as one state of the world says: what judgements are made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use wharf_engine::{Assigner, World, named_ports};
use wharf_model::{
    AssignmentSet, Mac, NetworkAssignment, NetworkId, NetworkRecord, NodeId, NodeState, Phase, Protocol,
    ServiceKey, TaskId, mac_for,
};

use crate::http::Context;

/// One state of the networks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// Every node.
    pub(crate) nodes: BTreeMap<NodeId, NodeRow>,
    /// The networks that are looked at.
    pub(crate) networks: BTreeMap<NetworkId, NetworkRow>,
    /// What each node should hold.
    pub(crate) sets: BTreeMap<NodeId, AssignmentSet>,
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct NodeRow {
    pub(crate) name: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) state: NodeState,
    pub(crate) reason: String,
    pub(crate) draining: bool,
    pub(crate) live_restore: Option<bool>,
}

/// A network and who is on it.
#[derive(Debug, Clone)]
pub(crate) struct NetworkRow {
    pub(crate) record: Arc<NetworkRecord>,
    /// What it is called outside its app.
    pub(crate) name: String,
    pub(crate) members: Vec<Member>,
}

/// A task on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) task: TaskId,
    pub(crate) name: String,
    pub(crate) service: ServiceKey,
    pub(crate) node: NodeId,
    pub(crate) phase: Phase,
    pub(crate) ready: bool,
    /// Why it is to stop.
    pub(crate) stop: Option<String>,
    /// Ports that its service publishes or exposes.
    pub(crate) ports: Vec<(u16, Protocol)>,
}

impl Tables {
    /// How things should be now; of one network only if it is named.
    pub(crate) fn read(context: &Context, only: Option<NetworkId>) -> Self {
        let mut tables = Self::of(&context.state.read().world, only);
        // What a node last said of a task is newer than what is stored.
        let inner = context.state.read();
        for member in tables.networks.values_mut().flat_map(|network| &mut network.members) {
            if let Some(task) = inner.world.task(member.task) {
                let status = context.state.status_of(task);
                (member.phase, member.ready) = (status.phase, task.stop.is_none() && status.is_ready());
            }
        }
        tables
    }

    /// How things should be in this world.
    pub(crate) fn of(world: &World, only: Option<NetworkId>) -> Self {
        let assigner = Assigner::new(world);
        let mut tables = Self::default();
        for node in world.nodes() {
            let facts = node.facts();
            let row = NodeRow {
                name: node.record.name.to_string(),
                address: facts.map(|facts| facts.address),
                state: node.state(),
                reason: node.status.as_ref().map(|status| status.reason.clone()).unwrap_or_default(),
                draining: node.record.availability == wharf_model::Availability::Drain,
                live_restore: facts.and_then(|facts| facts.engine.as_ref()).map(|engine| engine.live_restore),
            };
            tables.nodes.insert(node.record.id, row);
            let set = assigner.for_node(node.record.id);
            if set.networks.keys().any(|id| only.is_none_or(|only| only == *id)) {
                tables.sets.insert(node.record.id, set);
            }
        }
        for record in world.networks().filter(|record| only.is_none_or(|only| only == record.id)) {
            let members = members(world, record);
            let row = NetworkRow { record: Arc::clone(record), name: outer_name(record), members };
            tables.networks.insert(record.id, row);
        }
        tables
    }

    /// The same of now.
    pub(crate) fn refresh(&mut self, context: &Context) {
        let only = match self.networks.len() {
            1 => self.networks.keys().next().copied(),
            _ => None,
        };
        *self = Self::read(context, only);
    }

    /// What a node is called.
    pub(crate) fn name(&self, node: NodeId) -> &str {
        self.nodes.get(&node).map_or("a removed node", |row| row.name.as_str())
    }

    /// What a network is called.
    pub(crate) fn network_name(&self, network: NetworkId) -> String {
        self.networks.get(&network).map_or_else(|| network.to_string(), |row| row.name.clone())
    }

    /// The address other nodes reach a node at.
    pub(crate) fn address(&self, node: NodeId) -> Option<IpAddr> {
        self.nodes.get(&node)?.address
    }

    /// A node's part of a network.
    pub(crate) fn assignment(&self, node: NodeId, network: NetworkId) -> Option<&NetworkAssignment> {
        self.sets.get(&node)?.networks.get(&network)
    }

    /// The address of a node's bridge.
    pub(crate) fn gateway(&self, node: NodeId, network: NetworkId) -> Option<Ipv4Addr> {
        Some(self.assignment(node, network)?.gateway)
    }

    /// The nodes that have a network.
    pub(crate) fn nodes_of(&self, network: NetworkId) -> BTreeSet<NodeId> {
        let has =
            |(node, set): (&NodeId, &AssignmentSet)| set.networks.contains_key(&network).then_some(*node);
        self.sets.iter().filter_map(has).collect()
    }

    /// The networks that are looked at and that both nodes have.
    pub(crate) fn shared(&self, a: NodeId, b: NodeId) -> BTreeSet<NetworkId> {
        let has = |node, id| self.assignment(node, id).is_some();
        self.networks.keys().copied().filter(|id| has(a, *id) && has(b, *id)).collect()
    }

    /// A task on a network.
    pub(crate) fn member(&self, network: NetworkId, task: TaskId) -> Option<&Member> {
        self.networks.get(&network)?.members.iter().find(|member| member.task == task)
    }
}

/// What other apps and `docker network ls` call a network.
pub(crate) fn outer_name(record: &NetworkRecord) -> String {
    record.spec.name.clone().unwrap_or_else(|| format!("{}_{}", record.app.name, record.name))
}

fn members(world: &World, record: &NetworkRecord) -> Vec<Member> {
    let mut members = Vec::new();
    for (address, task) in world.addresses_in(record.subnet).filter(|(_, task)| !task.is_over()) {
        let Some(node) = task.node else { continue };
        let revision = world.revision_of(&task.service, task.generation);
        let name = task.addresses.iter().find(|(_, other)| **other == address).map(|(name, _)| name);
        let attachment = revision.zip(name).and_then(|(revision, name)| revision.spec.networks.get(name));
        let chosen = attachment.and_then(|attachment| attachment.endpoint.mac_address);
        let ports = revision.map(|revision| named_ports(&revision.spec)).unwrap_or_default();
        members.push(Member {
            address,
            mac: chosen.unwrap_or(Mac(mac_for(address))),
            task: task.id,
            name: task.name(),
            service: task.service.clone(),
            node,
            phase: task.status.phase,
            ready: task.is_ready(),
            stop: task.stop.map(|reason| reason.to_string()),
            ports: ports.into_iter().map(|port| (port.port, port.protocol)).collect(),
        });
    }
    members
}
