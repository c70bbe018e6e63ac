//! Takes the tasks of nodes that do not answer this one out of the names and routes that a server sent, whoever else they answer.
//!
//! - Nothing is taken out where nothing else would be left: that a node does not answer is a suspicion. Reversed names stay.
//! - What is under way with tasks ends only if a server has given them up with their node and this node has not heard theirs for long. A server may
//!   be wrong about a node that goes on without it, so this node has a say; and this node may be the one that is cut off, from all others and
//!   from the servers: then no server tells it of anybody who was given up since, and whom it still reaches it hears.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use wharf_model::{AssignmentSet, DnsTable, Endpoint, NetworkId, NodeId, RouteTable, TaskId, tunnel_address};

use super::Silence;

/// Where tasks are that cannot be reached from here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unheard {
    /// The nodes that have been silent for long.
    long: BTreeSet<NodeId>,
    by_network: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
    all: BTreeSet<Ipv4Addr>,
}

impl Unheard {
    /// What of a set is on these nodes.
    pub fn of(set: &AssignmentSet, silence: &Silence) -> Self {
        let mut unheard = Self { long: silence.long.clone(), ..Self::default() };
        if silence.nodes.is_empty() {
            return unheard;
        }
        let watched = set.watched.iter().filter(|node| silence.nodes.contains(&node.node));
        let nodes: BTreeSet<IpAddr> =
            watched.flat_map(|node| [node.address, IpAddr::V6(tunnel_address(node.node))]).collect();
        // Tasks that use their node's own network are where the node is.
        let own = nodes.iter().filter_map(|node| match node {
            IpAddr::V4(node) => Some(*node),
            IpAddr::V6(_) => None,
        });
        let own: BTreeSet<_> = own.collect();
        for (id, network) in &set.networks {
            let there = network.peers.iter().filter(|peer| nodes.contains(&peer.node));
            let mut addresses: BTreeSet<_> = there.map(|peer| peer.address).collect();
            addresses.extend(&own);
            unheard.all.extend(&addresses);
            unheard.by_network.insert(*id, addresses);
        }
        unheard
    }

    /// The names without their addresses.
    pub fn without<'t>(&self, table: Cow<'t, DnsTable>) -> Cow<'t, DnsTable> {
        if self.all.is_empty() {
            return table;
        }
        let mut table = table.into_owned();
        for (network, gone) in &self.by_network {
            for addresses in table.networks.get_mut(network).into_iter().flat_map(BTreeMap::values_mut) {
                if addresses.iter().any(|address| !gone.contains(address)) {
                    addresses.retain(|address| !gone.contains(address));
                }
            }
            for service in table.vips.get_mut(network).into_iter().flat_map(BTreeMap::values_mut) {
                if service.tasks.iter().any(|address| !gone.contains(address)) {
                    // Connections that they have may outlive the suspicion.
                    let tasks = std::mem::take(&mut service.tasks);
                    let (left, away): (BTreeSet<_>, BTreeSet<_>) =
                        tasks.into_iter().partition(|address| !gone.contains(address));
                    service.tasks = left;
                    service.leaving.extend(away);
                }
            }
        }
        Cow::Owned(table)
    }

    /// The routes without their endpoints, and of those that servers have given up only the ones that are not heard here either.
    pub fn without_routes<'t>(&self, routes: Cow<'t, RouteTable>) -> Cow<'t, RouteTable> {
        let is_heard = |node: &NodeId| !self.long.contains(node);
        if self.all.is_empty() && !routes.gone.values().any(is_heard) {
            return routes;
        }
        let mut routes = routes.into_owned();
        let RouteTable { routes: ports, services, unheard, gone, .. } = &mut routes;
        gone.retain(|_, node| !is_heard(node));
        for route in ports {
            self.reduce(&mut route.endpoints, unheard);
        }
        for route in services {
            route.sets.iter_mut().for_each(|set| self.reduce(&mut set.endpoints, unheard));
            self.reduce(&mut route.fallback, unheard);
            self.reduce(&mut route.mirror, unheard);
        }
        Cow::Owned(routes)
    }
    fn reduce(&self, endpoints: &mut Vec<Endpoint>, unheard: &mut BTreeSet<TaskId>) {
        let there = |endpoint: &Endpoint| !self.all.contains(endpoint.address.ip());
        if endpoints.iter().any(there) {
            unheard
                .extend(endpoints.extract_if(.., |endpoint| !there(endpoint)).map(|endpoint| endpoint.task));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use wharf_model::{
        NetworkAssignment, Peer, Protocol, Revision, Route, TaskId, VirtualService, WatchedNode,
    };

    use super::*;
    use crate::runtime::contract::sample_task;

    const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    fn node(number: u8) -> NodeId {
        NodeId::from_parts(1, [number; 10])
    }
    fn silence(nodes: &[u8], long: &[u8]) -> Silence {
        let [nodes, long] = [nodes, long].map(|nodes| nodes.iter().map(|n| node(*n)).collect());
        Silence { nodes, long }
    }
    fn set() -> (AssignmentSet, NetworkId) {
        let id = NetworkId::from_parts(1, [7; 10]);
        let (subnet, gateway) = ("10.0.0.0/24".parse().unwrap(), [10, 0, 0, 1].into());
        let mut network = NetworkAssignment::new(id, "shop_default", 1, subnet, gateway);
        let address = [192, 0, 2, 2].into();
        network.peers = vec![Peer::new(FAR, address)];
        let mut dns = DnsTable { version: Revision(7), ..DnsTable::default() };
        let names = [("web", vec![NEAR, FAR]), ("web.2", vec![FAR])];
        dns.networks.insert(id, names.map(|(name, to)| (name.to_owned(), to)).into());
        let service = VirtualService { tasks: [NEAR, FAR].into(), ..VirtualService::default() };
        dns.vips.insert(id, [([10, 0, 0, 99].into(), service)].into());
        let endpoint =
            |n, address| Endpoint::new(TaskId::from_parts(1, [n; 10]), SocketAddrV4::new(address, 80));
        let route = |endpoints| Route {
            service: sample_task(1, "web", "img").service,
            port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
            endpoints,
        };
        let both = route(vec![endpoint(1, NEAR), endpoint(2, FAR)]);
        let far = route(vec![endpoint(2, FAR)]);
        let set = AssignmentSet {
            networks: [(id, network)].into(),
            dns,
            routes: RouteTable::of_ports(Revision(7), vec![both, far]),
            watched: vec![WatchedNode { node: node(2), address }],
            ..AssignmentSet::new(1, Revision(7), node(1))
        };
        (set, id)
    }

    #[test]
    fn nothing_leads_to_a_node_that_does_not_answer_where_something_else_is_left() {
        let (set, id) = set();
        let unheard = Unheard::of(&set, &silence(&[2], &[]));
        let table = unheard.without(Cow::Borrowed(&set.dns));
        assert_eq!(table.networks[&id]["web"], [NEAR]);
        assert_eq!(table.networks[&id]["web.2"], [FAR], "there is no other");
        let service = table.vips[&id].values().next().unwrap();
        assert_eq!((&service.tasks, &service.leaving), (&[NEAR].into(), &[FAR].into()));
        let routes = unheard.without_routes(Cow::Borrowed(&set.routes));
        assert_eq!(routes.routes.iter().map(|route| route.endpoints.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(routes.unheard, [TaskId::from_parts(1, [2; 10])].into());
    }

    #[test]
    fn while_everybody_answers_nothing_is_copied() {
        let (set, _) = set();
        for silent in [&[][..], &[9]] {
            let unheard = Unheard::of(&set, &silence(silent, silent));
            let table = unheard.without(Cow::Borrowed(&set.dns));
            assert_eq!(*table, set.dns);
        }
        let unheard = Unheard::of(&set, &Silence::default());
        assert!(matches!(unheard.without_routes(Cow::Borrowed(&set.routes)), Cow::Borrowed(_)));
    }

    #[test]
    fn what_a_server_has_given_up_is_given_up_here_only_if_it_is_not_heard_here_either() {
        let (mut set, _) = set();
        let task = |n| TaskId::from_parts(1, [n; 10]);
        // Of this node itself, of one that is watched, and of one that is not.
        set.routes.gone = [1, 2, 3].map(|n| (task(n), node(n))).into();
        let given_up = |silence: &Silence| {
            let routes = Unheard::of(&set, silence).without_routes(Cow::Borrowed(&set.routes));
            routes.into_owned().gone.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(given_up(&Silence::default()), [], "they go on without their server");
        assert_eq!(given_up(&silence(&[2], &[])), [], "it may be a hiccup");
        assert_eq!(given_up(&silence(&[2], &[2])), [task(2)]);
        assert_eq!(given_up(&silence(&[], &[2, 9])), [task(2)], "servers do not have it watched any more");
    }
}
