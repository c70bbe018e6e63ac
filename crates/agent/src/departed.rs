//! Takes what has ended out of the names and routes that a server sent before it knew: on this node, and on others as far as they said so.
//!
//! A task that has ended never comes back; its address may be another's later, which then is another task's. So what is taken out
//! is said by task, and looked up in the set that is served.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use wharf_model::{AssignmentSet, DnsTable, NetworkId, RouteTable, TaskId};

/// The tasks of a set that have ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Departed {
    tasks: BTreeSet<TaskId>,
    addresses: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
}

impl Departed {
    /// Those of `ended` that the set has on its node, and those of `elsewhere` that it has on others.
    pub fn of(set: &AssignmentSet, ended: &BTreeSet<TaskId>, elsewhere: &BTreeSet<TaskId>) -> Self {
        let mut departed = Self { tasks: elsewhere.clone(), ..Self::default() };
        for network in set.networks.values().filter(|_| !elsewhere.is_empty()) {
            let peers = network.peers.iter();
            let gone = peers.filter(|peer| peer.task.is_some_and(|task| elsewhere.contains(&task)));
            departed.addresses.entry(network.id).or_default().extend(gone.map(|peer| peer.address));
        }
        for (id, task) in set.tasks.iter().filter(|(id, _)| ended.contains(id)) {
            departed.tasks.insert(*id);
            for attachment in &task.attachments {
                departed.addresses.entry(attachment.network).or_default().insert(attachment.address);
            }
        }
        departed
    }

    /// The names without their addresses. A name that has none left exists all the same.
    pub fn without<'t>(&self, table: &'t DnsTable) -> Cow<'t, DnsTable> {
        if self.addresses.is_empty() {
            return Cow::Borrowed(table);
        }
        let mut table = table.clone();
        for (network, gone) in &self.addresses {
            for addresses in table.networks.get_mut(network).into_iter().flat_map(BTreeMap::values_mut) {
                addresses.retain(|address| !gone.contains(address));
            }
            for service in table.vips.get_mut(network).into_iter().flat_map(BTreeMap::values_mut) {
                service.tasks.retain(|address| !gone.contains(address));
                service.leaving.retain(|address| !gone.contains(address));
            }
            if let Some(hosts) = table.hosts.get_mut(network) {
                hosts.retain(|address, _| !gone.contains(address));
            }
        }
        Cow::Owned(table)
    }

    /// The routes without their endpoints.
    pub fn without_routes<'t>(&self, routes: &'t RouteTable) -> Cow<'t, RouteTable> {
        if self.tasks.is_empty() {
            return Cow::Borrowed(routes);
        }
        let mut routes = routes.clone();
        for route in &mut routes.routes {
            route.endpoints.retain(|endpoint| !self.tasks.contains(&endpoint.task));
        }
        Cow::Owned(routes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use wharf_model::{Attachment, Endpoint, NetworkAssignment, NodeId, Peer, Revision, Route};

    use super::*;
    use crate::runtime::contract::sample_task;

    const GONE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    fn set() -> (AssignmentSet, TaskId, NetworkId) {
        let network = NetworkId::from_parts(1, [7; 10]);
        let mut task = sample_task(1, "web", "img");
        task.attachments = vec![Attachment::new(network, GONE)];
        let id = task.id;
        let mut dns = DnsTable { version: Revision(7), ..DnsTable::default() };
        let names = [("web", vec![GONE, THERE]), ("web.1", vec![GONE])];
        dns.networks.insert(network, names.map(|(name, to)| (name.to_owned(), to)).into());
        dns.hosts.insert(network, [(GONE, "shop-web-1".to_owned()), (THERE, "shop-web-2".to_owned())].into());
        let endpoint = |task, address| Endpoint::new(task, SocketAddrV4::new(address, 80));
        let other = TaskId::from_parts(1, [9; 10]);
        let route = Route {
            service: task.service.clone(),
            port: 80,
            protocol: wharf_model::Protocol::Tcp,
            host_ip: None,
            endpoints: vec![endpoint(id, GONE), endpoint(other, THERE)],
        };
        let set = AssignmentSet {
            tasks: [(id, task)].into(),
            dns,
            routes: RouteTable::of_ports(Revision(7), vec![route]),
            ..AssignmentSet::new(1, Revision(7), NodeId::from_parts(1, [1; 10]))
        };
        (set, id, network)
    }

    #[test]
    fn a_task_that_has_ended_here_is_neither_named_nor_routed_to() {
        let (set, id, network) = set();
        let departed = Departed::of(&set, &[id].into(), &BTreeSet::new());
        let table = departed.without(&set.dns);
        assert_eq!(table.version, Revision(7));
        assert_eq!(table.networks[&network]["web"], [THERE]);
        assert!(table.networks[&network]["web.1"].is_empty(), "the name exists and leads nowhere");
        assert_eq!(table.hosts[&network].keys().collect::<Vec<_>>(), [&THERE]);
        let routes = departed.without_routes(&set.routes);
        assert_eq!(routes.routes[0].endpoints.len(), 1);
    }

    #[test]
    fn a_task_that_has_ended_elsewhere_is_neither_named_nor_routed_to() {
        let (mut set, id, network) = set();
        let other = TaskId::from_parts(1, [9; 10]);
        let mut assignment = NetworkAssignment::new(
            network,
            "shop_default",
            1,
            "10.0.0.0/24".parse().unwrap(),
            Ipv4Addr::new(10, 0, 0, 1),
        );
        let node = [10, 77, 0, 2].into();
        let gateway = Peer::new(Ipv4Addr::new(10, 0, 0, 4), node);
        assignment.peers = vec![Peer { task: Some(other), ..Peer::new(THERE, node) }, gateway];
        set.networks.insert(network, assignment);
        let departed = Departed::of(&set, &BTreeSet::new(), &[other].into());
        assert_eq!(departed.without(&set.dns).networks[&network]["web"], [GONE]);
        let routes = departed.without_routes(&set.routes);
        assert_eq!(routes.routes[0].endpoints.iter().map(|of| of.task).collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn what_ended_and_is_in_no_set_any_more_takes_nothing_out() {
        let (mut set, id, _) = set();
        set.tasks.clear();
        let departed = Departed::of(&set, &[id].into(), &BTreeSet::new());
        assert_eq!(departed, Departed::default());
        assert!(matches!(departed.without(&set.dns), Cow::Borrowed(_)));
    }
}
