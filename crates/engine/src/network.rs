//! Gives networks their subnets and identifiers, nodes their gateways, and tasks their addresses.
//!
//! No two networks overlap, and no two unfinished tasks or gateways share an address. Tasks count up from the bottom of a subnet and
//! gateways down from its top; each new task gets the next free address after the one given out last, so that one which
//! has just become free rests as long as possible.
//!
//! - A routed network is cut into blocks. A node has those in which its tasks and its gateway are, takes another when they are full,
//!   and gives back what is empty.
//! - No network overlaps what a node reaches by itself; a macvlan network is on the nodes' own segment, and takes nothing there that
//!   is not in its range.
//! - A network changes in place where addresses can stay: see [`moves`]. Where they cannot, another record of its name takes its place,
//!   tasks are replaced one after another, and the old record goes with the last of them. At most one record of a name is not retired.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use wharf_model::{
    AddressPool, AppKey, Backend, HostSubnet, NetworkId, NetworkName, NetworkRecord, NetworkSpec, NodeId,
    ServiceSpec, Task, TaskId, VolumeRecord,
};

use crate::{
    About, Change, Ipv6Refusal, NetworkRefusal, Node, Reason, World, ipv6, pass::Pass, routes, routing, spec,
};

/// How many addresses at the bottom of a subnet nobody gets: its own, and one for what must have a fixed place.
const RESERVED: u32 = 2;

/// Whether two ranges have an address in common.
fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// What a node reaches without the cluster, where it overlaps a subnet: the node's name, and the node's subnet.
fn on_hosts(world: &World, subnet: Ipv4Net) -> Option<(String, HostSubnet)> {
    let found = |node: &Node| {
        let facts = node.facts()?;
        let there = |host: &&HostSubnet| matches!(host.subnet, IpNet::V4(net) if overlap(net, subnet));
        facts.subnets.iter().find(there).map(|host| (node.record.name.to_string(), host.clone()))
    };
    world.nodes().find_map(found)
}

/// The subnet that a new network gets: the wanted one, or else the next of the pool that overlaps neither another network nor what a
/// node reaches by itself. That of a macvlan network is the hosts' own.
pub(crate) fn subnet<'n>(
    world: &World,
    wanted: Option<Ipv4Net>,
    backend: Backend,
    networks: impl Iterator<Item = &'n NetworkRecord>,
) -> Result<Ipv4Net, NetworkRefusal> {
    let networks: Vec<_> = networks.collect();
    if let Some(subnet) = wanted.map(|subnet| subnet.trunc()) {
        if let Some(other) = networks.iter().find(|network| overlap(network.subnet, subnet)) {
            let (by, network) = (other.app.clone(), other.name.clone());
            return Err(NetworkRefusal::SubnetTaken { subnet, by, network });
        }
        return match on_hosts(world, subnet).filter(|_| backend != Backend::Macvlan) {
            None => Ok(subnet),
            Some((node, host)) => Err(NetworkRefusal::SubnetOnHost { subnet, node, host }),
        };
    }
    if backend == Backend::Macvlan {
        return Err(NetworkRefusal::NoSubnet);
    }
    subnet_of(world, world.pool, networks.into_iter())
}

/// The next free subnet of a pool.
pub(crate) fn subnet_of<'n>(
    world: &World,
    pool: AddressPool,
    networks: impl Iterator<Item = &'n NetworkRecord>,
) -> Result<Ipv4Net, NetworkRefusal> {
    let networks: Vec<_> = networks.collect();
    let exhausted = |host| NetworkRefusal::PoolExhausted { pool: pool.range, host };
    let prefix = pool.prefix.max(pool.range.prefix_len());
    let all = pool.range.subnets(prefix).map_err(|_| exhausted(None))?;
    let free: Vec<_> =
        all.filter(|subnet| !networks.iter().any(|network| overlap(network.subnet, *subnet))).collect();
    let newest = networks.iter().filter(|network| pool.range.contains(&network.subnet));
    let newest = newest.max_by_key(|network| network.id).map(|network| network.subnet);
    let after = free.iter().filter(|subnet| newest.is_none_or(|newest| **subnet > newest));
    let before = free.iter().filter(|subnet| newest.is_some_and(|newest| **subnet <= newest));
    let mut host = None;
    for subnet in after.chain(before) {
        match on_hosts(world, *subnet) {
            None => return Ok(*subnet),
            Some(found) => host = Some(found),
        }
    }
    Err(exhausted(host))
}

/// What a node reaches by itself although a network of the cluster has those addresses: in words, with what to do.
pub fn host_conflicts(world: &World, node: NodeId) -> Vec<String> {
    let subnets = world.node(node).and_then(Node::facts).map(|facts| facts.subnets.as_slice());
    let networks: Vec<_> = world.networks().filter(|network| network.backend != Backend::Macvlan).collect();
    let mut conflicts = Vec::new();
    for host in subnets.unwrap_or_default() {
        let IpNet::V4(net) = host.subnet else { continue };
        for network in networks.iter().filter(|network| overlap(network.subnet, net)) {
            conflicts.push(format!(
                "it reaches {host}, which overlaps {} of network {} of app {}: one of the two cannot be reached from here; \
                 hint: remove that route or interface, or give the network another subnet (`ipam`), which `wharf up` moves it to",
                network.subnet, network.name, network.app.name
            ));
        }
    }
    conflicts
}

/// The VXLAN identifier that a new network gets: one more than the highest, or the lowest free once those are used up.
pub(crate) fn vni<'n>(networks: impl Iterator<Item = &'n NetworkRecord>) -> u32 {
    const HIGHEST: u32 = 0x00FF_FFFF;
    let used: BTreeSet<u32> = networks.map(|network| network.vni).collect();
    let next = used.last().map_or(1, |highest| highest + 1);
    if next <= HIGHEST { next } else { (1..=HIGHEST).find(|vni| !used.contains(vni)).unwrap_or(HIGHEST) }
}

/// Who has which address of one network.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    /// Those of gateways and unfinished tasks.
    used: BTreeSet<Ipv4Addr>,
    /// Those that the network's specification keeps for something else.
    reserved: BTreeSet<Ipv4Addr>,
    /// The IPv6 addresses that unfinished tasks asked for.
    asked6: BTreeSet<Ipv6Addr>,
    /// The newest task that has or had one, and which.
    latest: Option<(TaskId, Ipv4Addr)>,
    /// No address above this one is free.
    above_is_used: Option<u32>,
}

/// The first and the last address that tasks and gateways may have: neither reserved nor the broadcast.
fn assignable(subnet: Ipv4Net) -> (u32, u32) {
    let first = u32::from(subnet.network()).saturating_add(RESERVED);
    (first, u32::from(subnet.broadcast()).saturating_sub(1))
}

impl AddressBook {
    fn is_free(&self, address: Ipv4Addr) -> bool {
        !self.used.contains(&address) && !self.reserved.contains(&address)
    }
}

/// The first and the last address from which tasks get theirs unless they ask for one.
fn dynamic(network: &NetworkRecord) -> (u32, u32) {
    let (first, last) = assignable(network.subnet);
    match network.spec.ip_range {
        Some(range) => (first.max(range.network().into()), last.min(range.broadcast().into())),
        None => (first, last),
    }
}

/// The length of the prefix of the parts into which a routed network is cut: about 64, of at least four addresses.
pub(crate) fn block_prefix(subnet: Ipv4Net) -> u8 {
    const SMALLEST: u8 = 30;
    let prefix = subnet.prefix_len();
    let usual = prefix.saturating_add(6);
    if usual <= 28 { usual } else { prefix.saturating_add(2).clamp(28, SMALLEST) }.max(prefix)
}

/// The part of a routed network that a node takes next: after the last that is taken, best one in which nobody has an address yet.
fn next_block(network: &NetworkRecord, book: &AddressBook) -> Option<Ipv4Net> {
    let ((first, last), range) = (assignable(network.subnet), dynamic(network));
    let all = network.subnet.subnets(block_prefix(network.subnet)).ok()?;
    let free: Vec<_> = all.filter(|block| !network.blocks.contains_key(block)).collect();
    let newest = network.blocks.keys().next_back();
    let after = free.iter().filter(|block| newest.is_none_or(|newest| *block > newest));
    let before = free.iter().filter(|block| newest.is_some_and(|newest| *block < newest));
    let inside = |block: &Ipv4Net| {
        let (from, to) = (u32::from(block.network()), u32::from(block.broadcast()));
        let mut addresses = (from.max(range.0)..=to.min(range.1)).map(Ipv4Addr::from);
        addresses.any(|address| book.is_free(address))
    };
    let usable: Vec<Ipv4Net> = after.chain(before).copied().filter(inside).collect();
    let empty = |block: &&Ipv4Net| {
        let (from, to) = (u32::from(block.network()).max(first), u32::from(block.broadcast()).min(last));
        (from..=to).map(Ipv4Addr::from).all(|address| !book.used.contains(&address))
    };
    usable.iter().find(empty).or(usable.first()).copied()
}

/// Whether an engine of the cluster drops what is routed to containers, unless their network was made otherwise: Docker Engine 28 and
/// later.
fn is_protected(world: &World) -> bool {
    const SINCE: (u32, u32) = (1, 48);
    let version = |node: &Node| {
        let (major, minor) = node.facts()?.engine.as_ref()?.api_version.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    world.nodes().filter_map(version).any(|version| version >= SINCE)
}

/// What of a network cannot become as wanted where it is, so that another one has to take its place; empty if it can stay.
pub(crate) fn moves(
    world: &World,
    record: &NetworkRecord,
    wanted: &NetworkSpec,
    backend: Backend,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let general = record.backend.is_general() && backend.is_general();
    let in_place =
        record.backend == backend || general && !(backend == Backend::Routed && is_protected(world));
    if !in_place {
        reasons.push(format!("backend {} -> {backend}", record.backend));
    }
    if let Some(subnet) = wanted.subnet.map(|subnet| subnet.trunc()).filter(|new| *new != record.subnet) {
        reasons.push(format!("subnet {} -> {subnet}", record.subnet));
    }
    let old = &record.spec;
    if in_place && backend == Backend::Macvlan {
        let text = |parent: &Option<String>| parent.clone().unwrap_or_default();
        if old.parent != wanted.parent {
            reasons.push(format!("parent {} -> {}", text(&old.parent), text(&wanted.parent)));
        }
        if old.gateway != wanted.gateway {
            reasons.push("gateway changed".to_owned());
        }
    }
    if old.internal != wanted.internal {
        reasons.push(format!("internal {} -> {}", old.internal, wanted.internal));
    }
    if old.driver_opts != wanted.driver_opts {
        reasons.push("driver_opts changed".to_owned());
    }
    let other6 = wanted.subnet6.is_some_and(|new| record.subnet6.is_some_and(|old| old != new.trunc()));
    if old.enable_ipv6 != wanted.enable_ipv6 || other6 {
        reasons.push(format!("IPv6 {}", if wanted.enable_ipv6 { "changed" } else { "removed" }));
    }
    reasons
}

/// What becomes of a network of an app that is there, if its file says this.
pub(crate) struct Moving {
    /// What differs so that another network has to take its place; empty if it stays.
    pub(crate) anew: Vec<String>,
    /// The backend it changes to in place.
    pub(crate) in_place: Option<(Backend, Backend)>,
    /// Its unfinished tasks, of whatever app.
    pub(crate) tasks: usize,
}

/// What a network becomes when its file, or the cluster's default, is another.
pub(crate) fn moving(
    world: &World,
    record: &NetworkRecord,
    wanted: &NetworkSpec,
    default: Backend,
) -> Moving {
    let backend = wanted.backend.unwrap_or(default);
    let anew = moves(world, record, wanted, backend);
    let in_place = (anew.is_empty() && backend != record.backend).then_some((record.backend, backend));
    Moving { anew, in_place, tasks: routes::tasks_on(world, record).count() }
}

/// Why a network cannot be made, or take the place of `instead_of`, as far as that is known beforehand.
pub(crate) fn refusal(
    world: &World,
    wanted: &NetworkSpec,
    instead_of: Option<&NetworkRecord>,
) -> Option<NetworkRefusal> {
    let backend = wanted.backend.unwrap_or(world.backend);
    if backend == Backend::Host {
        return Some(NetworkRefusal::HostBackend);
    }
    if let Err(refusal) = ipv6::check(wanted, backend) {
        return Some(refusal);
    }
    if let Some(record) = instead_of
        && moves(world, record, wanted, backend).is_empty()
    {
        return routes_beyond_limit(world, [record])
            .filter(|_| record.backend != backend && backend == Backend::Routed);
    }
    // Back to what it was before.
    let before = instead_of.into_iter().flat_map(|record| {
        world.networks_of(&record.app).filter(|other| other.retired && other.name == record.name)
    });
    if before.into_iter().any(|other| moves(world, other, wanted, backend).is_empty()) {
        return None;
    }
    let networks = || world.networks().map(|network| &**network);
    let refusal = subnet(world, wanted.subnet, backend, networks()).err();
    refusal.or_else(|| ipv6::subnet(world, wanted, vni(networks()), networks()).err())
}

/// Whether networks that become routed ones need more routes outside the nodes than can be made: each of their tasks needs one until
/// it is replaced.
pub(crate) fn routes_beyond_limit<'n>(
    world: &World,
    becoming: impl IntoIterator<Item = &'n NetworkRecord>,
) -> Option<NetworkRefusal> {
    let limit = usize::try_from(world.route_limit?).unwrap_or(usize::MAX);
    let routed: Vec<_> = world.networks().filter(|network| network.backend == Backend::Routed).collect();
    let used =
        routed.iter().map(|network| routes::parts_in_use(network, routes::tasks_on(world, network)).len());
    let used: usize = used.sum();
    let more: usize = becoming.into_iter().map(|network| routes::tasks_on(world, network).count()).sum();
    let beyond = NetworkRefusal::RouteLimit { limit, used, more, networks: routed.len() };
    (used + more > limit).then_some(beyond)
}

/// The first free address between two after `cursor`, around the end if need be.
fn next_free((first, last): (u32, u32), cursor: Option<Ipv4Addr>, book: &AddressBook) -> Option<Ipv4Addr> {
    let cursor = cursor.filter(|cursor| (first..=last).contains(&u32::from(*cursor)));
    let start = cursor.map_or(first, |cursor| u32::from(cursor).saturating_add(1)).max(first);
    let mut candidates = (start..=last).chain(first..start.min(last + 1)).map(Ipv4Addr::from);
    candidates.find(|address| book.is_free(*address))
}

impl Pass<'_> {
    /// Every network of the release exists, and gateway nodes are on those that published ports and routes lead to.
    pub(crate) fn ensure_networks(&mut self) {
        let Some(release) = self.release.filter(|_| !self.app.removed) else { return };
        for (name, wanted) in &release.spec.networks {
            if let Err(because) = self.ensure_network(name, wanted) {
                let about = About::Network(self.app.key.clone(), name.clone());
                self.wait(about, Reason::NoNetwork { network: name.clone(), because });
            }
        }
        let live = self.services.iter().filter(|service| !service.record.removed);
        let live: Vec<_> = live.map(|service| (service.name(), service.record, service.revision)).collect();
        let serving = live.iter().filter_map(|(name, _, revision)| Some((*name, &revision.as_ref()?.spec)));
        // Sets that are to take over are reached before they do.
        let next = live.iter().filter_map(|(name, record, revision)| {
            let next = record.next().and_then(|set| self.world.revision_of(&record.key, set.generation));
            Some((*name, &next.map(|next| &**next).or(*revision)?.spec))
        });
        let (serving, next) = (routing::entries(&serving.collect()), routing::entries(&next.collect()));
        let entries: BTreeSet<_> = serving.into_iter().chain(next).cloned().collect();
        for name in &entries {
            for node in self.world.gateways() {
                self.ensure_gateway(name, *node);
            }
        }
    }

    fn ensure_network(&mut self, name: &NetworkName, wanted: &NetworkSpec) -> Result<(), NetworkRefusal> {
        let backend = wanted.backend.unwrap_or(self.world.backend);
        ipv6::check(wanted, backend)?;
        let current = self.network_named(name).cloned();
        match current {
            Some(network) if network.app != self.app.key => Ok(()),
            Some(network) if moves(self.world, &network, wanted, backend).is_empty() => {
                self.stay(NetworkRecord::clone(&network), wanted, backend);
                Ok(())
            }
            Some(old) => {
                // Back to what it was before, while somebody is still on that.
                let before = self.world.networks_of(&self.app.key).find(|network| {
                    network.retired
                        && network.name == *name
                        && moves(self.world, network, wanted, backend).is_empty()
                });
                match before.map(|network| NetworkRecord::clone(network)) {
                    Some(network) => {
                        self.stay(NetworkRecord { retired: false, ..network }, wanted, backend);
                    }
                    None => self.make_network(name, wanted, backend)?,
                }
                let retired = NetworkRecord { retired: true, ..NetworkRecord::clone(&old) };
                self.networks.insert(old.id, Arc::new(retired));
                Ok(())
            }
            None if wanted.external => {
                let name = wanted.name.clone().unwrap_or_else(|| name.to_string());
                Err(NetworkRefusal::Missing { name })
            }
            None => self.make_network(name, wanted, backend),
        }
    }

    /// The network is as wanted where it is, and keeps nothing for nodes that need it no longer.
    fn stay(&mut self, mut network: NetworkRecord, wanted: &NetworkSpec, backend: Backend) {
        (network.spec, network.backend) = (wanted.clone(), backend);
        let exists = |node: &NodeId| self.world.node(*node).is_some();
        let tasks = || {
            let tasks = self.world.addresses_in(network.subnet).filter(|(_, task)| !self.is_over(task));
            tasks.filter_map(|(address, task)| Some((address, task.node?)))
        };
        let mut used: BTreeSet<Ipv4Net> = BTreeSet::new();
        if backend == Backend::Routed {
            used.extend(routes::parts_in_use(&network, tasks()).into_keys());
            let own = |(node, address): (&NodeId, &Ipv4Addr)| routes::part_of(&network, *address, *node);
            used.extend(network.gateways.iter().filter(|(node, _)| exists(node)).map(own));
        }
        network.gateways.retain(|node, _| exists(node));
        network.blocks.retain(|block, _| used.contains(block));
        self.networks.insert(network.id, Arc::new(network));
    }

    fn make_network(
        &mut self,
        name: &NetworkName,
        wanted: &NetworkSpec,
        backend: Backend,
    ) -> Result<(), NetworkRefusal> {
        let subnet = subnet(self.world, wanted.subnet, backend, self.known_networks())?;
        let vni = vni(self.known_networks());
        let subnet6 = ipv6::subnet(self.world, wanted, vni, self.known_networks())?;
        let network = NetworkRecord {
            id: self.id(),
            app: self.app.key.clone(),
            name: name.clone(),
            spec: wanted.clone(),
            vni,
            subnet,
            gateways: BTreeMap::new(),
            backend,
            blocks: BTreeMap::new(),
            subnet6,
            vips: BTreeMap::new(),
            retired: false,
        };
        self.networks.insert(network.id, Arc::new(network));
        Ok(())
    }

    fn known_networks(&self) -> impl Iterator<Item = &NetworkRecord> {
        let stored = self.world.networks().filter(|network| !self.networks.contains_key(&network.id));
        stored.chain(self.networks.values()).map(|network| &**network)
    }
    /// The network of this name as this pass leaves it.
    pub(crate) fn network_named(&self, name: &NetworkName) -> Option<&Arc<NetworkRecord>> {
        let drafted = self.networks.values().find(|n| !n.retired && n.app == self.app.key && n.name == *name);
        drafted.or_else(|| {
            let stored = self.world.network_named(&self.app.key, name)?;
            Some(self.networks.get(&stored.id).unwrap_or(stored))
        })
    }

    /// The node has an address of its own on the network, if one is left. Answers whether it has.
    fn ensure_gateway(&mut self, name: &NetworkName, node: NodeId) -> bool {
        let Some(network) = self.network_named(name) else { return false };
        if network.gateways.contains_key(&node) {
            return true;
        }
        let network = Arc::clone(network);
        // Changed in place: large networks are not copied for each node that joins them.
        self.networks.remove(&network.id);
        let mut network = network;
        let address = match network.backend {
            Backend::Routed => self.gateway_in_block(Arc::make_mut(&mut network), node),
            // The segment has a gateway already, which is none of ours.
            Backend::Macvlan => self.infrastructure_address(&network),
            Backend::Vxlan | Backend::Wireguard | Backend::Host => {
                let named = network.spec.gateway.filter(|gateway| network.subnet.contains(gateway));
                let book = self.book(&network);
                let named = named.filter(|gateway| book.used.insert(*gateway));
                named.or_else(|| self.infrastructure_address(&network))
            }
        };
        Arc::make_mut(&mut network).gateways.extend(address.map(|address| (node, address)));
        self.networks.insert(network.id, network);
        address.is_some()
    }

    /// The highest free address of the node's parts of a routed network, of which it takes one if need be.
    fn gateway_in_block(&mut self, network: &mut NetworkRecord, node: NodeId) -> Option<Ipv4Addr> {
        let (first, last) = assignable(network.subnet);
        let book = self.book(network);
        let free = |block: Ipv4Net| {
            let (from, to) = (u32::from(block.network()).max(first), u32::from(block.broadcast()).min(last));
            (from..=to).rev().map(Ipv4Addr::from).find(|address| book.is_free(*address))
        };
        let own = network.blocks.iter().filter(|(_, at)| **at == node);
        let found = own.map(|(block, _)| *block).find_map(free);
        let address = match found {
            Some(address) => address,
            None => {
                let block = next_block(network, book)?;
                network.blocks.insert(block, node);
                free(block)?
            }
        };
        self.book(network).used.insert(address);
        Some(address)
    }

    /// An address for something that is no task, taken from now on; none if none is left.
    pub(crate) fn infrastructure_address(&mut self, network: &NetworkRecord) -> Option<Ipv4Addr> {
        let ((first, last), range) = (assignable(network.subnet), dynamic(network));
        // On a physical segment what is outside the range belongs to others.
        let (first, last) = if network.backend == Backend::Macvlan { range } else { (first, last) };
        let book = self.book(network);
        let last = last.min(book.above_is_used.unwrap_or(last));
        let free = || (first..=last).rev().map(Ipv4Addr::from).filter(|address| book.is_free(*address));
        // Where there is another place, tasks keep their range to themselves.
        let is_all = range.0 <= first && range.1 >= last;
        let outside = || free().find(|at| !(range.0..=range.1).contains(&u32::from(*at)));
        let outside = if is_all { None } else { outside() };
        let address = outside.or_else(|| free().next())?;
        if is_all {
            // A pass takes addresses and gives none back.
            book.above_is_used = Some(u32::from(address));
        }
        book.used.insert(address);
        Some(address)
    }

    /// Who has which address of a network, with what this pass has given out.
    fn book(&mut self, network: &NetworkRecord) -> &mut AddressBook {
        if !self.books.contains_key(&network.id) {
            let kept = network.spec.aux_addresses.values().chain(&network.spec.gateway);
            let mut book = AddressBook {
                used: network.gateways.values().chain(network.vips.keys()).copied().collect(),
                reserved: kept.copied().collect(),
                asked6: BTreeSet::new(),
                latest: None,
                above_is_used: None,
            };
            if network.backend == Backend::Macvlan {
                let hosts = self.world.nodes().filter_map(|node| match node.facts()?.address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                });
                book.reserved.extend(hosts);
            }
            for (address, task) in self.world.addresses_in(network.subnet) {
                book.latest = book.latest.max(Some((task.id, address)));
                if !self.is_over(task) {
                    book.used.insert(address);
                    book.asked6.extend(ipv6::asked(self.world, task, address));
                }
            }
            self.books.insert(network.id, book);
        }
        self.books.entry(network.id).or_default()
    }

    /// An address on each network of the service for a task on this node, which gets gateways on them.
    ///
    /// # Errors
    /// Names the network and what stands in the way; then nothing has been given out.
    pub(crate) fn give_addresses(
        &mut self,
        task: TaskId,
        wanted: &ServiceSpec,
        node: NodeId,
    ) -> Result<BTreeMap<NetworkName, Ipv4Addr>, Box<(NetworkName, NetworkRefusal)>> {
        let mut addresses = BTreeMap::new();
        let mut given = Vec::new();
        for (name, attachment) in spec::attachments(wanted) {
            let refused = |refusal| Box::new((name.clone(), refusal));
            // First, so that tasks leave room for what they cannot do without.
            let has_gateway = self.ensure_gateway(name, node);
            let network = self.network_named(name).cloned();
            let network =
                network.ok_or_else(|| refused(NetworkRefusal::Missing { name: name.to_string() }))?;
            if !has_gateway {
                return Err(refused(self.no_room(&network)));
            }
            let address = self.free_address(name, attachment.ipv4_address, node).map_err(refused)?;
            if let Some(asked) = attachment.ipv6_address {
                self.may_have_ipv6(&network, address, asked).map_err(refused)?;
            }
            addresses.insert(name.clone(), address);
            given.push((network, address, attachment.ipv6_address));
        }
        for (network, address, asked) in given {
            if let Some(network) = self.networks.get(&network.id).filter(|n| n.backend == Backend::Routed) {
                self.parts.insert((network.id, routes::part_of(network, address, node)));
            }
            let book = self.book(&network);
            book.used.insert(address);
            book.asked6.extend(asked);
            book.latest = Some((task, address));
        }
        Ok(addresses)
    }

    fn free_address(
        &mut self,
        name: &NetworkName,
        wanted: Option<Ipv4Addr>,
        node: NodeId,
    ) -> Result<Ipv4Addr, NetworkRefusal> {
        let Some(network) = self.network_named(name).cloned() else {
            return Err(NetworkRefusal::Missing { name: name.to_string() });
        };
        let subnet = network.subnet;
        let ((first, last), range) = (assignable(subnet), dynamic(&network));
        let book = self.book(&network);
        let address = match wanted {
            Some(address) if !(first..=last).contains(&u32::from(address)) => {
                return Err(NetworkRefusal::AddressOutside { address, subnet });
            }
            Some(address) if !book.is_free(address) => {
                return Err(NetworkRefusal::AddressTaken { address, by: self.holder(&network, address) });
            }
            Some(address) => address,
            None if network.backend == Backend::Routed => {
                let before = network.blocks.len();
                let mut draft = NetworkRecord::clone(&network);
                let address = self.address_in_block(&mut draft, node);
                let address = address.ok_or_else(|| self.no_room(&network))?;
                if draft.blocks.len() > before {
                    self.networks.insert(draft.id, Arc::new(draft));
                }
                address
            }
            None => next_free(range, book.latest.map(|(_, address)| address), book)
                .ok_or(NetworkRefusal::SubnetFull { subnet: network.spec.ip_range.unwrap_or(subnet) })?,
        };
        self.room_for_route(&network, address, node)?;
        Ok(address)
    }

    /// Whether whoever gets `own` may have the IPv6 address it asks for.
    fn may_have_ipv6(
        &mut self,
        network: &NetworkRecord,
        own: Ipv4Addr,
        address: Ipv6Addr,
    ) -> Result<(), NetworkRefusal> {
        ipv6::may_have(network, own, address)?;
        if !self.book(network).asked6.contains(&address) {
            return Ok(());
        }
        let holds = |at: Ipv4Addr, task: &Task| {
            !self.is_over(task) && ipv6::asked(self.world, task, at) == Some(address)
        };
        let mut holders = self.world.addresses_in(network.subnet).filter(|(at, task)| holds(*at, task));
        let by = holders.next().map_or_else(|| self.holder(network, own), |(at, _)| self.holder(network, at));
        Err(Ipv6Refusal::AddressTaken { address, by }.into())
    }

    /// The next free address of the node's parts of a routed network, of which it takes another one if they are full.
    fn address_in_block(&mut self, network: &mut NetworkRecord, node: NodeId) -> Option<Ipv4Addr> {
        let range = dynamic(network);
        let bounds = |block: Ipv4Net| {
            (u32::from(block.network()).max(range.0), u32::from(block.broadcast()).min(range.1))
        };
        let own: Vec<_> =
            network.blocks.iter().filter(|(_, at)| **at == node).map(|(block, _)| *block).collect();
        let mut newest = None;
        for block in &own {
            newest = newest.max(self.world.addresses_in(*block).map(|(at, task)| (task.id, at)).max());
        }
        let book = self.book(network);
        // What this pass gave out there is newer still.
        let latest = book.latest.filter(|(_, at)| own.iter().any(|block| block.contains(at)));
        let cursor = newest.max(latest).map(|(_, address)| address);
        let (later, earlier): (Vec<Ipv4Net>, Vec<Ipv4Net>) =
            own.into_iter().partition(|block| cursor.is_none_or(|cursor| block.broadcast() >= cursor));
        let mut candidates = later.into_iter().chain(earlier);
        if let Some(address) = candidates.find_map(|block| next_free(bounds(block), cursor, book)) {
            return Some(address);
        }
        let block = next_block(network, book)?;
        network.blocks.insert(block, node);
        next_free(bounds(block), None, book)
    }

    /// Whether a task is on a network in whose place there is another one now.
    pub(crate) fn is_left_behind(&self, task: &Task) -> bool {
        task.addresses.iter().any(|(name, address)| {
            self.network_named(name).is_some_and(|network| !network.subnet.contains(address))
        })
    }

    /// Why a node gets no address on a network.
    fn no_room(&self, network: &NetworkRecord) -> NetworkRefusal {
        let network = self.networks.get(&network.id).map_or(network, |draft| draft);
        if network.backend != Backend::Routed {
            return NetworkRefusal::SubnetFull { subnet: network.spec.ip_range.unwrap_or(network.subnet) };
        }
        let mut nodes = BTreeMap::<String, usize>::new();
        for node in network.blocks.values() {
            *nodes.entry(self.world.node_name(*node)).or_default() += 1;
        }
        NetworkRefusal::BlocksTaken {
            subnet: network.subnet,
            prefix: block_prefix(network.subnet),
            nodes: nodes.into_iter().collect(),
        }
    }

    /// Whether the task's part of a routed network has its route outside the nodes, or another one may be made.
    fn room_for_route(
        &self,
        network: &NetworkRecord,
        address: Ipv4Addr,
        node: NodeId,
    ) -> Result<(), NetworkRefusal> {
        let Some(limit) = self.world.route_limit.filter(|_| network.backend == Backend::Routed) else {
            return Ok(());
        };
        let mut used: BTreeSet<(NetworkId, Ipv4Net)> = self.parts.clone();
        for routed in self.known_networks().filter(|network| network.backend == Backend::Routed) {
            let tasks = routes::tasks_on(self.world, routed);
            used.extend(routes::parts_in_use(routed, tasks).into_keys().map(|part| (routed.id, part)));
        }
        let wanted = (network.id, routes::part_of(network, address, node));
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if used.contains(&wanted) || used.len() < limit {
            return Ok(());
        }
        let networks: BTreeSet<_> = used.iter().map(|(id, _)| *id).collect();
        Err(NetworkRefusal::RouteLimit { limit, used: used.len(), more: 1, networks: networks.len() })
    }

    fn holder(&self, network: &NetworkRecord, address: Ipv4Addr) -> String {
        if let Some((node, _)) = network.gateways.iter().find(|(_, gateway)| **gateway == address) {
            return format!("node {}", self.world.node_name(*node));
        }
        if let Some(holder) = crate::vip::holder(network, address) {
            return holder;
        }
        if let Some((name, _)) = network.spec.aux_addresses.iter().find(|(_, kept)| **kept == address) {
            return format!("`aux_addresses.{name}`");
        }
        if network.spec.gateway == Some(address) {
            return "the network's gateway".to_owned();
        }
        let mut holders = self.world.addresses_in(network.subnet).filter(|(at, _)| *at == address);
        holders.find(|(_, task)| !self.is_over(task)).map_or_else(
            || "a task that is being made".to_owned(),
            |(_, task)| format!("{}.{} of app {}", task.service.name, task.slot, task.service.app.name),
        )
    }

    /// Networks that the release no longer has and nobody is on.
    pub(crate) fn forget_networks(&mut self) {
        let wanted = |name: &NetworkName| {
            !self.app.removed && self.release.is_none_or(|release| release.spec.networks.contains_key(name))
        };
        let retired =
            |id: NetworkId, stored: bool| self.networks.get(&id).map_or(stored, |draft| draft.retired);
        let unwanted = self.world.networks_of(&self.app.key);
        let unwanted =
            unwanted.filter(|network| retired(network.id, network.retired) || !wanted(&network.name));
        let unwanted: Vec<_> =
            unwanted.map(|network| (network.id, network.subnet, network.name.clone())).collect();
        for (id, subnet, name) in unwanted {
            let users: BTreeSet<_> = self
                .world
                .addresses_in(subnet)
                .filter(|(_, task)| !self.is_over(task))
                .map(|(_, task)| task.service.app.clone())
                .collect();
            if users.is_empty() {
                self.networks.remove(&id);
                self.change(Change::RemoveNetwork(id));
            } else if users.iter().any(|app| *app != self.app.key) {
                let about = About::Network(self.app.key.clone(), name);
                self.wait(about, Reason::NetworkInUse { by: users.into_iter().collect::<Vec<AppKey>>() });
            }
        }
    }

    /// Every volume of the release has a record.
    pub(crate) fn ensure_volumes(&mut self) {
        let Some(release) = self.release.filter(|_| !self.app.removed) else { return };
        for (name, wanted) in &release.spec.volumes {
            if self.volume(name).is_none() {
                let volume = VolumeRecord {
                    id: self.id(),
                    app: self.app.key.clone(),
                    name: name.clone(),
                    spec: wanted.clone(),
                    nodes: Vec::new(),
                    created_at: self.now,
                    given_up: Vec::new(),
                };
                self.volumes.insert(volume.id, volume);
            }
        }
    }
    /// The volume of this name as this pass leaves it.
    pub(crate) fn volume(&self, name: &wharf_model::VolumeName) -> Option<&VolumeRecord> {
        let drafted = self.volumes.values().find(|volume| volume.name == *name);
        drafted.or_else(|| self.world.volume_named(&self.app.key, name).map(|volume| &**volume))
    }
    /// The node holds data of every named volume of the service from now on.
    pub(crate) fn note_volumes(&mut self, wanted: &ServiceSpec, node: NodeId) {
        for (name, _) in spec::named_volumes(wanted) {
            if let Some(volume) = self.volume(name).filter(|volume| !volume.nodes.contains(&node)) {
                let mut volume = volume.clone();
                volume.nodes.push(node);
                self.volumes.insert(volume.id, volume);
            }
        }
    }
    /// Volumes that go with their app, once no node has data of them.
    pub(crate) fn forget_volumes(&mut self) {
        if !self.app.removed || !self.app.remove_volumes {
            return;
        }
        let volumes: Vec<_> = self.world.volumes_of(&self.app.key).cloned().collect();
        for volume in volumes {
            let holds = |node: &&NodeId| self.world.node(**node).is_some();
            let nodes: Vec<_> =
                volume.nodes.iter().filter(holds).map(|id| self.world.node_name(*id)).collect();
            if nodes.is_empty() || volume.spec.external {
                self.volumes.remove(&volume.id);
                self.change(Change::RemoveVolume(volume.id));
            } else {
                self.wait(
                    About::Volume(self.app.key.clone(), volume.name.clone()),
                    Reason::VolumeData { nodes },
                );
            }
        }
    }
}

/// The network that a task is on under this name, by the task's address there: subnets never overlap.
pub(crate) fn network_of_address(
    networks: &BTreeMap<Ipv4Addr, NetworkId>,
    world: &World,
    address: Ipv4Addr,
) -> Option<NetworkId> {
    let (_, id) = networks.range(..=address).next_back()?;
    world.network(*id).filter(|network| network.subnet.contains(&address)).map(|network| network.id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_model::{Generation, NetworkMode};

    use super::*;
    use crate::fixtures::{Cluster, Script, app, app_key, key, node_id, replicas, service};

    fn network(n: u8, subnet: &str) -> NetworkRecord {
        NetworkRecord {
            id: NetworkId::new(uuid::Uuid::from_u128(u128::from(n))),
            app: app_key(),
            name: format!("net{n}").parse().unwrap(),
            spec: NetworkSpec::default(),
            vni: u32::from(n),
            subnet: subnet.parse().unwrap(),
            gateways: BTreeMap::new(),
            backend: wharf_model::Backend::default(),
            blocks: BTreeMap::new(),
            subnet6: None,
            vips: BTreeMap::new(),
            retired: false,
        }
    }

    fn pool(range: &str) -> World {
        let mut world = World::default();
        world.pool = wharf_model::AddressPool { range: range.parse().unwrap(), prefix: 24 };
        world
    }

    #[test]
    fn a_new_network_follows_the_newest_and_avoids_all() {
        let world = pool("10.192.0.0/22");
        let networks = [network(1, "10.192.0.0/24"), network(2, "10.192.2.0/24")];
        let next = |networks: &[NetworkRecord]| {
            subnet(&world, None, Backend::Vxlan, networks.iter()).unwrap().to_string()
        };
        assert_eq!(next(&networks), "10.192.3.0/24");
        let around = [network(1, "10.192.0.0/24"), network(2, "10.192.3.0/24")];
        assert_eq!(next(&around), "10.192.1.0/24");
    }

    #[test]
    fn a_taken_subnet_and_an_empty_pool_are_named() {
        let world = pool("10.192.0.0/24");
        let networks = [network(1, "10.192.0.0/24")];
        let wanted = Some("10.192.0.128/25".parse().unwrap());
        let taken = subnet(&world, wanted, Backend::Vxlan, networks.iter()).unwrap_err();
        insta::assert_snapshot!(taken, @"the subnet 10.192.0.128/25 overlaps that of network net1 of app shop");
        let none = subnet(&world, None, Backend::Vxlan, networks.iter()).unwrap_err();
        insta::assert_snapshot!(none, @"every subnet of the pool 10.192.0.0/24 is in use; hint: take down apps that are not needed, or enlarge it with `wharf network default --pool RANGE`");
    }

    #[test]
    fn network_identifiers_grow_and_then_fill_gaps() {
        let mut networks = [network(1, "10.192.0.0/24"), network(5, "10.192.1.0/24")];
        assert_eq!(vni(networks.iter()), 6);
        networks[1].vni = 0x00FF_FFFF;
        assert_eq!(vni(networks.iter()), 2);
    }

    proptest! {
        #[test]
        fn a_free_address_is_free_and_assignable(
            used in prop::collection::btree_set(0u8..=16, 0..17), cursor in prop::option::of(0u8..=16),
            reserved in prop::collection::btree_set(0u8..=16, 0..4),
            range in prop::option::of(prop_oneof![Just("10.0.0.0/29"), Just("10.0.0.4/30"), Just("10.0.0.8/29")]),
        ) {
            let spec = NetworkSpec { ip_range: range.map(|range| range.parse().unwrap()), ..Default::default() };
            let network = NetworkRecord { spec, ..network(1, "10.0.0.0/28") };
            let at = |n: u8| Ipv4Addr::new(10, 0, 0, n);
            let set = |numbers: BTreeSet<u8>| numbers.into_iter().map(at).collect();
            let book = AddressBook { used: set(used), reserved: set(reserved), ..AddressBook::default() };
            let in_range = |address: &Ipv4Addr| network.spec.ip_range.is_none_or(|range| range.contains(address));
            let mut possible = (2..15).map(at).filter(in_range);
            match next_free(dynamic(&network), cursor.map(at), &book) {
                Some(address) => prop_assert!(book.is_free(address) && possible.any(|other| other == address)),
                None => prop_assert!(possible.all(|address| !book.is_free(address))),
            }
        }
    }

    #[test]
    fn an_address_that_has_just_become_free_rests() {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", replicas(service("web"), 2))]));
        cluster.settle();
        cluster.up(&app(&[("web", replicas(service("web2"), 2))]));
        cluster.settle();
        let addresses: Vec<_> =
            cluster.tasks("web").iter().flat_map(|t| t.addresses.clone().into_values()).collect();
        let distinct: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), 4, "{addresses:?}");
    }

    #[test]
    fn a_fixed_address_that_somebody_has_is_refused_with_his_name() {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", service("web"))]));
        cluster.settle();
        let taken = *cluster.ready("web")[0].addresses.values().next().unwrap();
        let mut late = service("late");
        late.networks.values_mut().for_each(|attachment| attachment.ipv4_address = Some(taken));
        cluster.up(&app(&[("web", service("web")), ("late", late)]));
        cluster.settle();
        insta::assert_snapshot!(cluster.waiting(), @"late.1 cannot join network default: the address 10.192.0.2 belongs to web.1 of app shop");
    }

    #[test]
    fn a_network_keeps_to_its_range_its_gateway_and_what_it_reserves() {
        let mut cluster = Cluster::of(2);
        let mut spec = app(&[("web", replicas(service("web"), 3))]);
        spec.networks.insert(
            "default".parse().unwrap(),
            NetworkSpec {
                subnet: Some("10.5.0.0/24".parse().unwrap()),
                gateway: Some("10.5.0.1".parse().unwrap()),
                ip_range: Some("10.5.0.128/29".parse().unwrap()),
                aux_addresses: BTreeMap::from([("printer".into(), "10.5.0.129".parse().unwrap())]),
                ..Default::default()
            },
        );
        cluster.up(&spec);
        cluster.settle();
        let range: Ipv4Net = "10.5.0.128/29".parse().unwrap();
        let tasks = cluster.ready("web");
        let addresses: BTreeSet<_> = tasks.iter().flat_map(|task| task.addresses.values().copied()).collect();
        assert!(
            addresses.len() == 3 && addresses.iter().all(|address| range.contains(address)),
            "{addresses:?}"
        );
        assert!(!addresses.contains(&Ipv4Addr::new(10, 5, 0, 129)), "it is kept for the printer");
        let network = cluster.world.networks().next().unwrap().clone();
        let gateways: BTreeSet<_> = network.gateways.values().copied().collect();
        let wanted = [Ipv4Addr::new(10, 5, 0, 1), Ipv4Addr::new(10, 5, 0, 254)];
        assert_eq!(gateways, BTreeSet::from(wanted), "the first node has the one that the file names");

        // Seven of eight addresses are to be had, and the next task says why it has none.
        spec.services.insert("web".parse().unwrap(), replicas(service("web"), 8));
        cluster.up(&spec);
        cluster.settle();
        assert_eq!(cluster.ready("web").len(), 7);
        assert!(cluster.waiting().contains("10.5.0.128/29"), "{}", cluster.waiting());
        let fixed = |address: [u8; 4]| {
            let mut late = service("late");
            late.networks.values_mut().for_each(|at| at.ipv4_address = Some(address.into()));
            late
        };
        for (address, holder) in [([10, 5, 0, 129], "aux_addresses.printer"), ([10, 5, 0, 254], "node ")] {
            let mut spec = spec.clone();
            spec.services.insert("late".parse().unwrap(), fixed(address));
            cluster.up(&spec);
            cluster.settle();
            assert!(cluster.waiting().contains(holder), "{}", cluster.waiting());
        }
        spec.services.insert("late".parse().unwrap(), fixed([10, 5, 0, 9]));
        cluster.up(&spec);
        cluster.settle();
        assert_eq!(cluster.ready("late").len(), 1, "a fixed address may lie outside the range");
    }

    #[test]
    fn a_fixed_address_passes_from_the_old_task_to_the_new() {
        let mut cluster = Cluster::of(2);
        let fixed = |image: &str| {
            let mut spec = service(image);
            spec.networks.values_mut().for_each(|at| at.ipv4_address = Some(Ipv4Addr::new(10, 192, 0, 9)));
            app(&[("web", spec)])
        };
        cluster.up(&fixed("web"));
        cluster.settle();
        cluster.up(&fixed("web2"));
        cluster.settle();
        let task = cluster.ready("web").remove(0);
        assert_eq!(
            (task.generation, task.addresses.into_values().next()),
            (Generation(2), Some(Ipv4Addr::new(10, 192, 0, 9)))
        );
    }

    #[test]
    fn another_apps_network_is_joined_by_name_and_outlives_its_app_while_used() {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", service("web"))]));
        cluster.settle();
        let shared = cluster.world.networks().next().unwrap().id;
        let other = AppKey { name: "other".parse().unwrap(), ..app_key() };
        let mut spec = app(&[("client", service("client"))]);
        spec.name = other.name.clone();
        let external =
            NetworkSpec { external: true, name: Some("shop_default".into()), ..Default::default() };
        spec.networks.insert("default".parse().unwrap(), external);
        let images = crate::fixtures::images(&spec);
        let changes =
            crate::release(&cluster.world, &other, &spec, &images, &crate::fixtures::by(), cluster.now)
                .unwrap();
        cluster.apply(&changes);
        let decision = crate::decide(&cluster.world, &other, cluster.now, &mut cluster.ids);
        cluster.apply(&decision.changes);
        let client = cluster.world.tasks().find(|task| task.service.app == other).unwrap();
        let subnet = cluster.world.network(shared).unwrap().subnet;
        assert!(client.addresses.values().all(|address| subnet.contains(address)));

        cluster.ask(&crate::Request::Down { volumes: false });
        cluster.settle();
        assert!(cluster.world.network(shared).is_some());
        insta::assert_snapshot!(cluster.waiting(), @"network default is kept: tasks of other are on it");
    }

    #[test]
    fn services_without_networks_get_no_addresses() {
        let mut cluster = Cluster::of(1);
        let mut host = service("host");
        host.network_mode = NetworkMode::Host;
        cluster.scripts.insert("host:1".into(), Script::Serve);
        cluster.up(&app(&[("host", host)]));
        cluster.settle();
        assert!(cluster.world.tasks_of(&key("host")).all(|task| task.addresses.is_empty()));
        assert!(crate::Assigner::new(&cluster.world).for_node(node_id(1)).networks.is_empty());
    }
}
