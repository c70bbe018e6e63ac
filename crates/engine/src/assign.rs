//! What each node should do: its part of the world, whole.
//!
//! A task is in its node's set from its making until it is over, and in no other's. Names and published ports lead to ready tasks
//! that nobody has asked to stop, and to no others; what they no longer lead to goes on until it is let go. What several nodes need is worked out once per [`Assigner`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    sync::Arc,
};

use ipnet::Ipv4Net;
use wharf_model::{
    AssignmentSet, Attachment, Backend, Endpoint, FileAssignment, FileMount, FileSpec, Ipv6Addresses, Mac,
    NetworkAssignment, NetworkId, NetworkMode, NetworkRecord, NodeId, NodeState, Peer, Phase, RemoteBlock,
    Route, RouteTable, ServiceKey, ServiceName, ServiceRevision, ServiceRoute, ShownCertificate, Target,
    Task, TaskAssignment, TaskId, VolumeAssignment, VolumeId, VolumeRecord, ipv6_for, tunnel_address,
};

use crate::{
    World,
    names::{self, Names},
    network, nodes, placeholders, routes, routing, spec, strategy,
    suspicion::Ring,
    wireguard::Mesh,
};

/// Makes assignment sets from one state of the world.
#[derive(Debug)]
pub struct Assigner<'a> {
    world: &'a World,
    /// Networks by the start of their subnet, so that an address leads to its network.
    by_subnet: BTreeMap<Ipv4Addr, NetworkId>,
    /// Of each network: the addresses of unfinished tasks, and on which node they live.
    members: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, (NodeId, TaskId)>>,
    /// Hardware addresses that services chose themselves.
    macs: BTreeMap<Ipv4Addr, Mac>,
    /// Who has which IPv6 address, of networks that have any.
    ipv6: BTreeMap<NetworkId, Ipv6Addresses>,
    names: Names,
    routes: Vec<Route>,
    /// The routes of services, without the passwords that are asked for.
    services: Vec<ServiceRoute>,
    certificates: Vec<ShownCertificate>,
    /// Networks that gateways need to reach the tasks behind published ports and routes.
    entries: BTreeSet<NetworkId>,
    mesh: Mesh,
    /// Tasks of nodes that are suspected to be gone, where others of their service serve: nothing is sent there.
    shunned: BTreeSet<TaskId>,
    /// Tasks of nodes that are suspected or given up, to which nothing is sent.
    unheard: BTreeSet<TaskId>,
    /// Of these, the ones that are not waited for any more.
    gone: BTreeMap<TaskId, NodeId>,
    ring: Ring,
}

impl<'a> Assigner<'a> {
    /// Works out what the nodes have in common.
    pub fn new(world: &'a World) -> Self {
        let by_subnet = world.networks().map(|network| (network.subnet.network(), network.id)).collect();
        let ipv6 = world
            .networks()
            .filter_map(|network| network.subnet6.map(|subnet| (network.id, Ipv6Addresses::new(subnet))));
        let mut assigner = Self {
            world,
            by_subnet,
            members: BTreeMap::new(),
            macs: BTreeMap::new(),
            ipv6: ipv6.collect(),
            names: Names::default(),
            routes: Vec::new(),
            services: Vec::new(),
            certificates: Vec::new(),
            entries: BTreeSet::new(),
            mesh: Mesh::of(world),
            shunned: BTreeSet::new(),
            unheard: BTreeSet::new(),
            gone: BTreeMap::new(),
            ring: Ring::of(world),
        };
        assigner.shunned = assigner.shun();
        assigner.unheard = assigner.unheard();
        assigner.gone = assigner.gone();
        for task in world.tasks().filter(|task| !task.is_over()) {
            assigner.add_member(task);
            assigner.add_names(task);
        }
        assigner.names.add_services(world);
        assigner.names.add_vips(world);
        assigner.names.finish();
        assigner.add_routes();
        assigner.add_service_routes();
        assigner
    }

    /// The set for one node; empty for a node that is not part of the cluster.
    pub fn for_node(&self, node: NodeId) -> AssignmentSet {
        let tasks: Vec<_> = self.world.tasks_on(node).filter(|task| !task.is_over()).collect();
        let assignments: BTreeMap<_, _> =
            tasks.iter().filter_map(|task| Some((task.id, self.task(task)?))).collect();
        let networks = self.networks(node, &tasks);
        let gateway = self.world.node(node).is_some_and(|node| node.record.roles.gateway);
        let mut dns = self.names.table(self.world.revision, self.world, node, networks.keys().copied());
        dns.ipv6 = networks.keys().filter_map(|id| Some((*id, self.ipv6.get(id)?.clone()))).collect();
        AssignmentSet {
            epoch: self.world.epoch,
            revision: self.world.revision,
            node,
            volumes: self.volumes(&tasks),
            removed_volumes: self.removed_volumes(node, &tasks),
            dns,
            routes: if gateway {
                self.routes_at(node)
            } else {
                RouteTable { version: self.world.revision, ..RouteTable::default() }
            },
            tasks: assignments,
            wireguard: self.mesh.assignment(node),
            disk_marks: self.world.node(node).map(|node| node.record.disk_marks).unwrap_or_default(),
            watched: self.world.node(node).map(|node| self.ring.watched_by(node)).unwrap_or_default(),
            networks,
        }
    }

    /// Ready tasks of suspected nodes; of a service, or a set of its tasks that is found apart, of which nothing else is left, none.
    fn shun(&self) -> BTreeSet<TaskId> {
        let suspected = nodes::suspected(self.world);
        let tasks = suspected.iter().flat_map(|node| self.world.tasks_on(*node));
        // What is found together: what everybody finds, and other generations each for itself.
        let set = |task: &Task| {
            let everybody = strategy::serves(self.world, &task.service, task.generation);
            (!everybody).then_some(task.generation)
        };
        let mut shunned = BTreeSet::new();
        let mut others = BTreeMap::new();
        for task in tasks.filter(|task| self.is_up(task)) {
            let own = set(task);
            let has_other = *others.entry((task.service.clone(), own)).or_insert_with(|| {
                let elsewhere = |other: &Task| other.node.is_some_and(|node| !suspected.contains(&node));
                let mut all = self.world.tasks_of(&task.service);
                all.any(|other| elsewhere(other) && set(other) == own && self.is_up(other))
            });
            if has_other {
                shunned.insert(task.id);
            }
        }
        shunned
    }

    /// Tasks of nodes that are suspected to be gone, or are, to which nothing is sent: they may have something under way, and will not answer.
    fn unheard(&self) -> BTreeSet<TaskId> {
        let down = self.world.nodes().filter(|node| node.state() == NodeState::Down);
        let nodes = down.map(|node| node.record.id).chain(nodes::suspected(self.world));
        let tasks = nodes.flat_map(|node| self.world.tasks_on(node));
        // What ended otherwise than with its node has answered what it would.
        let is_away = |task: &&Arc<Task>| !task.is_over() || task.status.phase == Phase::Lost;
        tasks.filter(|task| is_away(task) && !self.is_up(task)).map(|task| task.id).collect()
    }

    /// Those of them that are given up, with their nodes: the node counts as down, or the task was lost with it and will be removed should the
    /// node come back. One of a node that is only suspected may go on any moment with what was begun. What left in order is not among them
    /// while its node is there.
    ///
    /// That a server does not hear a node is no proof that nobody does. So this ends nothing yet: gateways hear of it only where their own
    /// nodes do not hear the node either (see [`RouteTable::gone`]).
    fn gone(&self) -> BTreeMap<TaskId, NodeId> {
        let unheard = self.unheard.iter().filter_map(|task| self.world.task(*task));
        let given_up = unheard.filter_map(|task| {
            let node = self.world.node(task.node?)?;
            let is_gone = node.state() == NodeState::Down || task.status.phase == Phase::Lost;
            is_gone.then_some((task.id, node.record.id))
        });
        given_up.collect()
    }

    pub(crate) const fn world(&self) -> &'a World {
        self.world
    }
    /// The routes of services, without the passwords that are asked for.
    pub(crate) fn into_service_routes(self) -> Vec<ServiceRoute> {
        self.services
    }

    /// Ready, wanted, and found by everybody: of the set that serves its service.
    fn serves(&self, task: &Task) -> bool {
        self.is_up(task) && strategy::serves(self.world, &task.service, task.generation)
    }
    /// Ready, wanted, and on a node that is not given up, nor suspected while others serve.
    pub(crate) fn is_up(&self, task: &Task) -> bool {
        let down = || {
            task.node
                .and_then(|node| self.world.node(node))
                .is_none_or(|node| node.state() == NodeState::Down)
        };
        task.hook.is_none() && task.is_ready() && !down() && !self.shunned.contains(&task.id)
    }
    fn network_at(&self, address: Ipv4Addr) -> Option<NetworkId> {
        network::network_of_address(&self.by_subnet, self.world, address)
    }
    fn revision(&self, task: &Task) -> Option<&'a Arc<ServiceRevision>> {
        self.world.revision_of(&task.service, task.generation)
    }

    fn add_member(&mut self, task: &Task) {
        let revision = self.revision(task);
        for (name, address) in &task.addresses {
            let attachment = revision.and_then(|revision| revision.spec.networks.get(name));
            let mac = attachment.and_then(|attachment| attachment.endpoint.mac_address);
            self.macs.extend(mac.map(|mac| (*address, mac)));
            if let (Some(id), Some(node)) = (self.network_at(*address), task.node) {
                let asked = attachment.and_then(|attachment| attachment.ipv6_address);
                if let (Some(own), Some(ipv6)) = (asked, self.ipv6.get_mut(&id))
                    && ipv6.of(*address) != own
                {
                    ipv6.asked.insert(*address, own);
                }
                self.members.entry(id).or_default().insert(*address, (node, task.id));
            }
        }
    }
    fn add_names(&mut self, task: &Task) {
        // Nothing leads to one that runs a command around a release.
        let Some(revision) = self.revision(task).filter(|_| task.hook.is_none()) else { return };
        let ready = self.serves(task);
        for (name, address) in &task.addresses {
            if let Some(id) = self.network_at(*address) {
                self.names.add_task(task, &revision.spec, (name, id), *address, ready);
            }
        }
        if revision.spec.network_mode == NetworkMode::Host
            && let Some(IpAddr::V4(address)) = self.node_address(task)
        {
            // It is found where its node is, by whoever gets out of the network.
            for network in names::beside_host(self.world, &task.service.app) {
                self.names.add_task(task, &revision.spec, (&network.name, network.id), address, ready);
            }
        }
    }

    fn add_routes(&mut self) {
        let (live, removed): (Vec<_>, Vec<_>) = self.world.services().partition(|record| !record.removed);
        for record in live.into_iter().chain(removed) {
            let app_is_removed = self.world.app(&record.key.app).is_none_or(|app| app.removed);
            let Some(revision) = self.world.revision_of(&record.key, record.generation) else { continue };
            if app_is_removed {
                continue;
            }
            for port in spec::ingress_ports(&revision.spec) {
                let Some(published) = port.published else { continue };
                let tasks = self.world.tasks_of(&record.key).filter(|task| self.serves(task));
                let endpoints = tasks.filter_map(|task| {
                    let address = self.entry_address(task)?;
                    Some(Endpoint::new(task.id, SocketAddrV4::new(address, port.target)))
                });
                let mut endpoints: Vec<Endpoint> = endpoints.collect();
                endpoints.sort_unstable();
                // Also those that are still on a network in whose place there is another one.
                let entries = endpoints.iter().filter_map(|endpoint| self.network_at(*endpoint.address.ip()));
                let entries: Vec<_> = entries.collect();
                self.entries.extend(entries);
                let route = Route {
                    service: record.key.clone(),
                    port: published,
                    protocol: port.protocol,
                    host_ip: port.host_ip,
                    endpoints,
                };
                if record.removed { self.hand_over(route) } else { self.routes.push(route) }
            }
        }
        self.routes.sort_by_key(|route| (route.port, route.protocol, route.service.clone()));
    }
    /// The port of a service that a release removes: whoever takes it over leads to its tasks beside its own.
    fn hand_over(&mut self, left: Route) {
        let same_address = |route: &Route| match (route.host_ip, left.host_ip) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        let is_it = |route: &&mut Route| {
            (route.port, route.protocol) == (left.port, left.protocol) && same_address(route)
        };
        match self.routes.iter_mut().find(is_it) {
            Some(route) if route.service.app == left.service.app => {
                route.endpoints.extend(left.endpoints);
                route.endpoints.sort_unstable();
            }
            // Another app was given the port meanwhile.
            Some(_) => {}
            None if left.endpoints.is_empty() => {}
            None => self.routes.push(left),
        }
    }
    fn add_service_routes(&mut self) {
        self.services = routing::routes(self);
        self.certificates = routing::certificates(self.world, &self.services);
        self.certificates.extend(self.world.obtained.needed(self.world));
        let endpoints = self.services.iter().flat_map(|route| {
            let sets = route.sets.iter().flat_map(|set| &set.endpoints);
            sets.chain(&route.fallback).chain(&route.mirror)
        });
        let reached = endpoints.filter_map(|endpoint| self.network_at(*endpoint.address.ip()));
        let mut entries: BTreeSet<_> = reached.collect();
        // Also where there is no task yet: a gateway that is there already leads to the first one at once.
        for app in self.world.apps().filter(|app| !app.removed) {
            let live = self.world.services_of(&app.key).filter(|record| !record.removed);
            let specs = live.filter_map(|record| {
                let revision = self.world.revision_of(&record.key, record.generation)?;
                Some((&record.key.name, &revision.spec))
            });
            let named = routing::entries(&specs.collect());
            let named = named.into_iter().filter_map(|name| self.world.network_named(&app.key, name));
            entries.extend(named.map(|network| network.id));
        }
        self.entries.extend(entries);
    }
    /// The routes with what holds for the gateway of this node, who may pass, and what is shown.
    fn routes_at(&self, node: NodeId) -> RouteTable {
        let mut table = RouteTable {
            services: self.services.clone(),
            certificates: self.certificates.clone(),
            unheard: self.unheard.clone(),
            gone: self.gone.clone(),
            ..RouteTable::of_ports(self.world.revision, self.routes.clone())
        };
        let ports = table.routes.iter_mut().flat_map(|route| &mut route.endpoints);
        // Requests say in a header who they are from.
        let bytes = table.services.iter_mut().filter(|route| !route.spec.sees_requests());
        let bytes = bytes.flat_map(|route| route.sets.iter_mut().flat_map(|set| &mut set.endpoints));
        for endpoint in ports.chain(bytes) {
            (endpoint.keeps_client, endpoint.keeps_client6) = self.keeps_clients(endpoint, node);
        }
        for route in table.services.iter_mut().filter(|route| route.spec.basic_auth.is_some()) {
            route.users = routing::users(self.world, route);
        }
        self.world.obtained.complete(&mut table);
        table
    }
    /// Whether an endpoint answers the gateway of this node whatever IPv4 address a connection is from, and at which address whatever IPv6
    /// address one is from.
    fn keeps_clients(&self, endpoint: &Endpoint, node: NodeId) -> (bool, Option<Ipv6Addr>) {
        let address = *endpoint.address.ip();
        let network = self.network_at(address).and_then(|id| self.world.network(id));
        let entry = network.and_then(|network| Some((network, *network.gateways.get(&node)?)));
        let (Some(task), Some((network, at))) = (self.world.task(endpoint.task), entry) else {
            return (false, None);
        };
        let answers = |at: IpAddr| task.status.entries.contains(&at);
        let six = self.ipv6.get(&network.id).filter(|ipv6| answers(ipv6_for(ipv6.subnet, at).into()));
        (answers(at.into()), six.map(|ipv6| ipv6.of(address)))
    }
    /// The addresses of gateways on a network to which this node's tasks can send answers back whatever address they go to. A container on
    /// the physical segment answers by itself, and an internal network leads nowhere else. A routed packet keeps no sign of the node that
    /// it came through: there it is the gateway of the task's own node, which is its way out.
    fn entries_of(&self, node: NodeId, record: &NetworkRecord) -> BTreeSet<Ipv4Addr> {
        let possible = |entry: NodeId| match record.backend {
            Backend::Vxlan | Backend::Wireguard => !record.spec.internal,
            Backend::Routed => !record.spec.internal && entry == node,
            Backend::Macvlan | Backend::Host => false,
        };
        let is_entry = |node: NodeId| self.world.node(node).is_some_and(|node| node.record.roles.gateway);
        let entries = record.gateways.iter().filter(|(node, _)| possible(**node) && is_entry(**node));
        entries.map(|(_, address)| *address).collect()
    }
    fn node_address(&self, task: &Task) -> Option<IpAddr> {
        Some(self.world.node(task.node?)?.facts()?.address)
    }
    /// Where gateways reach a task: on its first network, on its node, or where the task is whose network it shares.
    pub(crate) fn entry_address(&self, task: &Task) -> Option<Ipv4Addr> {
        let revision = self.revision(task)?;
        match &revision.spec.network_mode {
            NetworkMode::Networks => {
                let (name, _) = spec::attachments(&revision.spec).into_iter().next()?;
                task.addresses.get(name).copied()
            }
            NetworkMode::Host => match self.node_address(task)? {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            },
            NetworkMode::None | NetworkMode::Bridge => None,
            NetworkMode::Service(name) => self.entry_address(self.companion(task, name)?),
        }
    }
    /// The task of another service that this one shares something with: of the older ones on its node one of its own
    /// slot, else the newest.
    fn companion(&self, task: &Task, name: &ServiceName) -> Option<&'a Arc<Task>> {
        if *name == task.service.name {
            return None;
        }
        let other = ServiceKey { app: task.service.app.clone(), name: name.clone() };
        let older = |other: &&Arc<Task>| other.node == task.node && !other.is_over() && other.id < task.id;
        let older = self.world.tasks_of(&other).filter(older);
        older.max_by_key(|other| (other.slot == task.slot, other.id))
    }

    fn task(&self, task: &Task) -> Option<TaskAssignment> {
        let revision = self.revision(task)?;
        let mut spec = match &task.hook {
            Some(hook) => spec::of_hook(&revision.spec, hook),
            None => revision.spec.clone(),
        };
        placeholders::fill(self.world, task, &mut spec);
        spec::give_ports(&mut spec, &task.ports);
        let attachments = spec::attachments(&spec).into_iter().filter_map(|(name, attachment)| {
            let address = *task.addresses.get(name)?;
            let endpoint = attachment.endpoint.clone();
            let network = self.network_at(address)?;
            Some(Attachment { network, address, address6: self.asked6(network, address), endpoint })
        });
        let companions = revision.spec.companions().into_keys();
        let companions = companions.filter_map(|name| Some((name.clone(), self.companion(task, name)?.id)));
        let volumes = self.volumes_of(task, revision);
        let attachments = attachments.collect();
        Some(TaskAssignment {
            id: task.id,
            service: task.service.clone(),
            slot: task.slot,
            generation: task.generation,
            name: task.name(),
            target: if task.is_let_go() { Target::Stop } else { Target::Run },
            spec,
            image: revision.image.clone(),
            attachments,
            volumes: volumes.map(|volume| (volume.name.clone(), volume.id)).collect(),
            files: self.files(revision),
            devices: task.devices.clone(),
            companions: companions.collect(),
            fenced: task.hook.is_none() && spec::is_fenced(self.world, revision),
        })
    }
    fn volumes_of(
        &self,
        task: &Task,
        revision: &'a ServiceRevision,
    ) -> impl Iterator<Item = &'a Arc<VolumeRecord>> {
        let app = task.service.app.clone();
        spec::named_volumes(&revision.spec).filter_map(move |(name, _)| self.world.volume_named(&app, name))
    }
    /// The configs and secrets of a task that the store has content for.
    fn files(&self, revision: &ServiceRevision) -> Vec<FileAssignment> {
        let Some(release) = self.world.release(&revision.key.app, revision.release) else {
            return Vec::new();
        };
        let file = |mount: &FileMount, files: &BTreeMap<String, FileSpec>, secret| {
            let file = files.get(&mount.source)?;
            let stored = || file.digest.as_deref().and_then(|digest| self.world.file(digest));
            let content = file.content.clone().or_else(|| stored().map(|content| content.to_string()))?;
            Some(FileAssignment { mount: mount.clone(), secret, content })
        };
        let spec = &revision.spec;
        let configs = spec.configs.iter().filter_map(|mount| file(mount, &release.spec.configs, false));
        configs
            .chain(spec.secrets.iter().filter_map(|mount| file(mount, &release.spec.secrets, true)))
            .collect()
    }

    fn networks(&self, node: NodeId, tasks: &[&Arc<Task>]) -> BTreeMap<NetworkId, NetworkAssignment> {
        let addresses = tasks.iter().flat_map(|task| task.addresses.values());
        let mut needed: BTreeSet<_> = addresses.filter_map(|address| self.network_at(*address)).collect();
        if self.world.node(node).is_some_and(|node| node.record.roles.gateway) {
            needed.extend(&self.entries);
        }
        let records = needed.into_iter().filter_map(|id| self.world.network(id));
        records.filter_map(|record| Some((record.id, self.network(node, record)?))).collect()
    }
    /// A network without an address for the node is left out until the next pass has given it one.
    fn network(&self, node: NodeId, record: &NetworkRecord) -> Option<NetworkAssignment> {
        let gateway = *record.gateways.get(&node)?;
        let none = BTreeMap::new();
        let members = self.members.get(&record.id).unwrap_or(&none);
        let tasks = members.iter().map(|(address, (node, task))| (*address, *node, Some(*task)));
        let gateways = record.gateways.iter().map(|(node, address)| (*address, *node, None));
        let elsewhere = tasks.chain(gateways).filter(|(_, other, _)| *other != node);
        let peers = elsewhere.filter_map(|(address, node, task)| {
            let mac = self.macs.get(&address).copied();
            let address6 = self.asked6(record.id, address);
            Some(Peer { address, node: self.reachable(record.backend, node)?, mac, address6, task })
        });
        let mut peers: Vec<_> = peers.collect();
        peers.sort_unstable();
        let (blocks, remote_blocks) = self.blocks(node, record, members);
        Some(NetworkAssignment {
            id: record.id,
            name: crate::world::outer_network_name(record),
            vni: record.vni,
            subnet: record.subnet,
            gateway,
            internal: record.spec.internal,
            attachable: record.spec.attachable,
            driver_opts: record.spec.driver_opts.clone(),
            labels: record.spec.labels.clone(),
            peers,
            backend: record.backend,
            parent: record.spec.parent.clone(),
            router: record.spec.gateway.filter(|_| record.backend == Backend::Macvlan),
            blocks,
            remote_blocks,
            subnet6: record.subnet6,
            entries: self.entries_of(node, record),
        })
    }
    /// The parts of a routed network that are the node's, and those that are others'.
    fn blocks(
        &self,
        node: NodeId,
        record: &NetworkRecord,
        members: &BTreeMap<Ipv4Addr, (NodeId, TaskId)>,
    ) -> (Vec<Ipv4Net>, Vec<RemoteBlock>) {
        if record.backend != Backend::Routed {
            return (Vec::new(), Vec::new());
        }
        let mut parts = record.blocks.clone();
        parts.extend(routes::parts_in_use(record, members.iter().map(|(address, (at, _))| (*address, *at))));
        let own = parts.iter().filter(|(_, at)| **at == node).map(|(block, _)| *block).collect();
        let others = parts.iter().filter(|(_, at)| **at != node);
        let remote = others.filter_map(|(block, at)| {
            Some(RemoteBlock { block: *block, node: self.reachable(record.backend, *at)? })
        });
        (own, remote.collect())
    }

    /// The IPv6 address of who has `address`, if it is one that was asked for.
    fn asked6(&self, network: NetworkId, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.ipv6.get(&network)?.asked.get(&address).copied()
    }

    /// Where a node's VXLAN port answers, unless the node is given up.
    fn reachable(&self, backend: Backend, id: NodeId) -> Option<IpAddr> {
        let node = self.world.node(id)?;
        match (node.state(), backend) {
            (NodeState::Down | NodeState::Joining, _) => None,
            (_, Backend::Wireguard) => Some(tunnel_address(id).into()),
            (NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable, _) => {
                Some(node.facts()?.address)
            }
        }
    }

    fn volumes(&self, tasks: &[&Arc<Task>]) -> BTreeMap<VolumeId, VolumeAssignment> {
        let used = tasks.iter().filter_map(|task| Some((task, self.revision(task)?)));
        let records = used.flat_map(|(task, revision)| self.volumes_of(task, revision));
        let assignment = |volume: &Arc<VolumeRecord>| VolumeAssignment {
            id: volume.id,
            name: match &volume.spec.name {
                Some(name) => name.clone(),
                None if volume.spec.external => volume.name.to_string(),
                None => format!("{}_{}", volume.app.name, volume.name),
            },
            spec: volume.spec.clone(),
        };
        records.map(|volume| (volume.id, assignment(volume))).collect()
    }
    /// Volumes that go with their app, once none of its tasks is left on the node.
    fn removed_volumes(&self, node: NodeId, tasks: &[&Arc<Task>]) -> Vec<VolumeId> {
        let going = self.world.apps().filter(|app| app.removed && app.remove_volumes);
        let going = going.filter(|app| !tasks.iter().any(|task| task.service.app == app.key));
        let volumes = going.flat_map(|app| self.world.volumes_of(&app.key));
        let here = volumes.filter(|volume| volume.nodes.contains(&node) && !volume.spec.external);
        here.map(|volume| volume.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wharf_model::*;

    use super::*;
    use crate::fixtures::*;

    fn running() -> Cluster {
        let mut cluster = Cluster::of(3);
        let mut web = published(replicas(service("web"), 2), 8080, PublishMode::Ingress);
        web.networks.values_mut().for_each(|attachment| attachment.aliases = vec!["WWW".into()]);
        cluster.up(&app(&[("db", with_volume(service("mariadb"), "db_data")), ("web", web)]));
        cluster.settle();
        cluster
    }

    #[test]
    fn every_unfinished_task_is_in_the_set_of_its_node_and_in_no_other() {
        let cluster = running();
        let assigner = Assigner::new(&cluster.world);
        for node in cluster.world.nodes() {
            let set = assigner.for_node(node.record.id);
            let tasks = cluster.world.tasks_on(node.record.id).filter(|task| !task.is_over());
            assert_eq!(
                set.tasks.keys().copied().collect::<Vec<_>>(),
                tasks.map(|task| task.id).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_node_hears_of_every_address_that_lives_elsewhere_and_none_of_its_own() {
        let cluster = running();
        let assigner = Assigner::new(&cluster.world);
        let record = cluster.world.networks().next().unwrap();
        let mut everything: BTreeMap<Ipv4Addr, NodeId> =
            record.gateways.iter().map(|(n, a)| (*a, *n)).collect();
        everything
            .extend(cluster.world.tasks().flat_map(|t| t.addresses.values().map(|a| (*a, t.node.unwrap()))));
        for node in record.gateways.keys() {
            let network = &assigner.for_node(*node).networks[&record.id];
            let heard: BTreeSet<_> = network.peers.iter().map(|peer| peer.address).collect();
            let elsewhere = everything.iter().filter(|(_, at)| *at != node).map(|(address, _)| *address);
            assert_eq!(heard, elsewhere.collect());
            assert_eq!(network.name, "shop_default");
        }
    }

    #[test]
    fn names_lead_to_ready_tasks_that_are_wanted() {
        let mut cluster = running();
        let ready = cluster.ready("web");
        let names = |cluster: &Cluster, name: &str| {
            let set = Assigner::new(&cluster.world).for_node(node_id(1));
            set.dns.networks.values().next().unwrap().get(name).cloned().unwrap_or_default()
        };
        for name in ["web", "web.shop", "tasks.web", "www"] {
            assert_eq!(names(&cluster, name).len(), 2, "{name}");
        }
        let first: Vec<_> = ready[0].addresses.values().copied().collect();
        assert_eq!(names(&cluster, "web.1"), first);
        assert_eq!(names(&cluster, "shop-web-1"), first);

        cluster.world.apply(&crate::Change::StopTask { task: ready[0].id, reason: StopReason::Outdated });
        assert_eq!(names(&cluster, "web").len(), 1);
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        let table = set.dns.networks.values().next().unwrap();
        assert_eq!(table.get("web.1"), Some(&vec![]), "it is a name of ours and leads nowhere");
    }

    #[test]
    fn only_gateways_listen_and_they_reach_every_ready_task() {
        let mut cluster = running();
        let routes = |cluster: &Cluster, n| Assigner::new(&cluster.world).for_node(node_id(n)).routes.routes;
        assert_eq!(routes(&cluster, 2), []);
        let [route] = &routes(&cluster, 1)[..] else { panic!("one port is published") };
        assert_eq!((route.port, route.endpoints.len()), (8080, 2));
        cluster.set_state(3, NodeState::Down);
        let left = routes(&cluster, 1)[0].endpoints.len();
        let on_3 = cluster.ready("web").iter().filter(|task| task.node == Some(node_id(3))).count();
        assert_eq!(left, 2 - on_3, "nobody is sent to a node that is down");
    }

    #[test]
    fn a_gateway_is_on_the_networks_behind_published_ports_without_a_task_there() {
        let mut cluster = running();
        cluster.set_availability(1, Availability::Drain);
        let mut spec = published(service("web"), 8080, PublishMode::Ingress);
        spec.placement.constraints =
            vec![Constraint { key: "node.hostname".into(), equal: true, value: "n2".into() }];
        cluster.up(&app(&[("web", spec)]));
        cluster.settle();
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        assert_eq!((set.tasks.len(), set.networks.len()), (0, 1));
        assert_eq!(set.routes.routes[0].endpoints.len(), 1);
    }

    #[test]
    fn a_task_that_is_not_wanted_goes_on_until_it_is_let_go_and_is_to_stop_until_it_is_over() {
        let mut cluster = running();
        let task = cluster.ready("db").remove(0);
        cluster.world.apply(&crate::Change::StopTask { task: task.id, reason: StopReason::Stopped });
        let target = |cluster: &Cluster| {
            let set = Assigner::new(&cluster.world).for_node(task.node.unwrap());
            set.tasks.get(&task.id).map(|task| task.target)
        };
        assert_eq!(target(&cluster), Some(Target::Run), "it drains");
        let at = cluster.now;
        cluster.world.apply(&crate::Change::DrainedTask { task: task.id, at, under_way: 0 });
        assert_eq!(target(&cluster), Some(Target::Stop));
        let status = TaskStatus { phase: Phase::Stopped, sequence: 99, ..task.status.clone() };
        cluster.world.set_task_status(task.id, status);
        assert_eq!(target(&cluster), None);
    }

    #[test]
    fn configs_and_secrets_come_with_their_content() {
        let mut cluster = Cluster::of(1);
        let mut web = service("web");
        let mount = |source: &str| FileMount {
            source: source.into(),
            target: format!("/run/{source}"),
            uid: None,
            gid: None,
            mode: None,
        };
        web.configs = vec![mount("conf")];
        web.secrets = vec![mount("password")];
        let mut spec = app(&[("web", web)]);
        spec.configs
            .insert("conf".into(), FileSpec { content: Some("Y29uZg==".into()), ..Default::default() });
        spec.secrets.insert("password".into(), FileSpec { digest: Some("abc".into()), ..Default::default() });
        cluster.world.insert_file("abc".into(), "cGFzcw==".into());
        cluster.up(&spec);
        cluster.settle();
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        let files = &set.tasks.values().next().unwrap().files;
        let contents: Vec<_> = files.iter().map(|file| (file.secret, file.content.as_str())).collect();
        assert_eq!(contents, [(false, "Y29uZg=="), (true, "cGFzcw==")]);

        spec.secrets.insert("password".into(), FileSpec { digest: Some("def".into()), ..Default::default() });
        let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
        insta::assert_snapshot!(plan, @r"
        ~ secret   password: its content changed
        ± service  web: content of secret password changed
        ");
        let before = cluster.ready("web")[0].id;
        cluster.up(&spec);
        cluster.settle();
        assert_ne!(cluster.ready("web")[0].id, before, "a changed secret means a new container");
    }

    #[test]
    fn a_newer_version_of_an_external_secret_replaces_and_says_so() {
        let mut cluster = Cluster::of(1);
        let mut web = service("web");
        let mount = |target: &str| FileMount {
            source: "key".into(),
            target: target.into(),
            uid: None,
            gid: None,
            mode: None,
        };
        // A config and a secret of one name are two things.
        (web.configs, web.secrets) = (vec![mount("/key")], vec![mount("/run/secrets/key")]);
        let mut spec = app(&[("web", web)]);
        let version = |number: u64, digest: &str| FileSpec {
            digest: Some(digest.into()),
            external: true,
            version: Some(number),
            ..Default::default()
        };
        spec.configs.insert("key".into(), FileSpec { digest: Some("c".into()), ..Default::default() });
        spec.secrets.insert("key".into(), version(1, "a"));
        cluster.up(&spec);
        let plan = |cluster: &Cluster, spec: &wharf_model::AppSpec| {
            crate::plan(&cluster.world, &app_key(), spec, &images(spec))
        };
        assert!(plan(&cluster, &spec).is_noop());
        spec.secrets.insert("key".into(), version(3, "a"));
        assert!(plan(&cluster, &spec).is_noop(), "it is what it was before");
        spec.secrets.insert("key".into(), version(2, "b"));
        insta::assert_snapshot!(plan(&cluster, &spec), @r"
        ~ secret   key: version 1 -> 2
        ± service  web: content of secret key changed
        ");
    }
}
