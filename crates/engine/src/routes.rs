//! Which parts of routed networks live on which nodes, and the routes that lead there.
//!
//! - An address has one part: the block of its task's node that contains it, or the address alone. The longest match wins, so that
//!   both together are right wherever a task is.
//! - Routes outside the nodes are wanted only for parts in which an unfinished task lives: nobody talks to the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use wharf_model::{Backend, NetworkRecord, NodeId, WantedRoute};

use crate::World;

/// The part of a routed network that an address of a task on `node` is in.
pub(crate) fn part_of(network: &NetworkRecord, address: Ipv4Addr, node: NodeId) -> Ipv4Net {
    let own = network.blocks.iter().find(|(block, at)| **at == node && block.contains(&address));
    own.map_or_else(|| Ipv4Net::from(address), |(block, _)| *block)
}

/// The parts of a routed network in which these addresses live.
pub(crate) fn parts_in_use(
    network: &NetworkRecord,
    tasks: impl Iterator<Item = (Ipv4Addr, NodeId)>,
) -> BTreeMap<Ipv4Net, NodeId> {
    tasks.map(|(address, node)| (part_of(network, address, node), node)).collect()
}

/// The unfinished tasks on a network: their addresses and nodes.
pub(crate) fn tasks_on<'w>(
    world: &'w World,
    network: &NetworkRecord,
) -> impl Iterator<Item = (Ipv4Addr, NodeId)> + 'w {
    let tasks = world.addresses_in(network.subnet).filter(|(_, task)| !task.is_over());
    tasks.filter_map(|(address, task)| Some((address, task.node?)))
}

/// The routes that whoever routes between the nodes must have, in order of their destinations.
pub fn wanted_routes(world: &World) -> Vec<WantedRoute> {
    let routed = world.networks().filter(|network| network.backend == Backend::Routed);
    let parts = routed.flat_map(|network| parts_in_use(network, tasks_on(world, network)));
    let routes: BTreeSet<_> = parts
        .filter_map(|(destination, node)| {
            let node = world.node(node)?;
            let next_hop = node.facts()?.address;
            Some(WantedRoute { destination, next_hop, node: node.record.name.clone() })
        })
        .collect();
    routes.into_iter().collect()
}
