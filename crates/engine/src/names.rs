//! Which names lead where, on each network.
//!
//! - Addresses are those of ready tasks that nobody has asked to stop, and of no others. A service that is wanted has its names as soon
//!   as it is, with or without such tasks, so that nobody looks for them elsewhere.
//! - What an address is called does not depend on whether its task is ready.
//! - `nearest.<service>` is the one name that means something else on each node.
//! - The names of services outside the cluster come from the current release, and never hide those of a service inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use wharf_model::{
    AppKey, DnsTable, ExternalHost, NamedPort, NetworkAttachment, NetworkId, NetworkMode, NetworkName,
    NodeId, Phase, Protocol, Revision, ServiceKey, ServiceSpec, Slot, Task, VirtualService,
};

use crate::{World, spec, vip};

/// The label by which nodes are near each other.
const ZONE: &str = "zone";
/// Before a service's name, for the tasks that are near.
const NEAREST: &str = "nearest";

/// The names of every network.
#[derive(Debug, Default)]
pub(crate) struct Names {
    networks: BTreeMap<NetworkId, OfNetwork>,
}

#[derive(Debug, Default)]
struct OfNetwork {
    addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Ready tasks by service, and where they run.
    services: BTreeMap<String, BTreeMap<Ipv4Addr, Option<NodeId>>>,
    hosts: BTreeMap<Ipv4Addr, String>,
    ports: BTreeMap<String, BTreeSet<NamedPort>>,
    externals: BTreeMap<String, ExternalHost>,
    /// Whose each name is that may lead to a virtual address.
    owners: BTreeMap<String, BTreeSet<ServiceKey>>,
    vips: BTreeMap<Ipv4Addr, VirtualService>,
    /// Tasks that run, and whether each is ready.
    running: BTreeMap<ServiceKey, BTreeMap<Ipv4Addr, bool>>,
}

impl Names {
    /// Adds what every wanted service and every service outside is called.
    pub(crate) fn add_services(&mut self, world: &World) {
        for record in world.services().filter(|record| !record.removed) {
            let app = &record.key.app;
            let Some(revision) = world.revision_of(&record.key, record.generation) else { continue };
            if world.app(app).is_none_or(|app| app.removed) {
                continue;
            }
            let service = record.key.name.as_str();
            let ports = named_ports(&revision.spec);
            for (id, attachment) in places(world, app, &revision.spec) {
                let of_network = self.networks.entry(id).or_default();
                for name in service_names(service, app, &revision.spec, &attachment) {
                    of_network.addresses.entry(name).or_default();
                }
                for name in common_names(service, app, &attachment) {
                    of_network.owners.entry(name).or_default().insert(record.key.clone());
                }
                let service = service.to_ascii_lowercase();
                of_network.ports.entry(service.clone()).or_default().extend(ports.iter().cloned());
                of_network.services.entry(service).or_default();
            }
        }
        for app in world.apps().filter(|app| !app.removed) {
            let Some(release) = world.release(&app.key, app.release) else { continue };
            for (service, external) in &release.spec.externals {
                for (network, attachment) in &external.networks {
                    let Some(id) = network_of(world, &app.key, network) else { continue };
                    let of_network = self.networks.entry(id).or_default();
                    for name in common_names(service.as_str(), &app.key, attachment) {
                        of_network.externals.insert(name, external.host.clone());
                    }
                }
            }
        }
    }

    /// Adds an unfinished task at `address`; `spec` is how it was made.
    pub(crate) fn add_task(
        &mut self,
        task: &Task,
        spec: &ServiceSpec,
        network: (&NetworkName, NetworkId),
        address: Ipv4Addr,
        ready: bool,
    ) {
        let of_network = self.networks.entry(network.1).or_default();
        // An address of a node is not called like any of the tasks that are found there.
        if spec.network_mode != NetworkMode::Host {
            of_network.hosts.insert(address, task.name().to_ascii_lowercase());
        }
        if task.status.phase >= Phase::Running {
            of_network.running.entry(task.service.clone()).or_default().insert(address, ready);
        }
        let service = task.service.name.as_str();
        let slot = (task.slot != Slot(0)).then(|| format!("{service}.{}", task.slot));
        let own = slot.into_iter().chain([task.name()]);
        if !ready {
            // They are ours although they lead nowhere yet: nobody asks for them elsewhere.
            for name in own {
                of_network.addresses.entry(name.to_ascii_lowercase()).or_default();
            }
            return;
        }
        let attachment = spec.networks.get(network.0).cloned().unwrap_or_default();
        let mut names = service_names(service, &task.service.app, spec, &attachment);
        names.extend(own);
        for name in names {
            of_network.addresses.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
        let services = of_network.services.entry(service.to_ascii_lowercase()).or_default();
        services.insert(address, task.node);
    }

    /// Adds the virtual addresses of wanted services. To be called when services and tasks were added.
    pub(crate) fn add_vips(&mut self, world: &World) {
        for network in world.networks().filter(|network| !network.vips.is_empty()) {
            let of_network = self.networks.entry(network.id).or_default();
            for (address, service) in vip::of(world, network) {
                let (own, tasks) =
                    (service.name.as_str().to_ascii_lowercase(), format!("tasks.{}", service.name));
                // A name that several have leads to the tasks of all.
                let alone = |owners: &BTreeSet<ServiceKey>| owners.len() == 1 && owners.contains(service);
                let names =
                    of_network.owners.iter().filter(|(_, owners)| alone(owners)).map(|(name, _)| name);
                let names = names.filter(|name| !name.eq_ignore_ascii_case(&tasks)).cloned().collect();
                let running = of_network.running.get(service).into_iter().flatten();
                let (tasks, leaving): (Vec<_>, Vec<_>) = running.partition(|(_, ready)| **ready);
                let addresses = |tasks: Vec<(&Ipv4Addr, &bool)>| tasks.iter().map(|(at, _)| **at).collect();
                let (tasks, leaving) = (addresses(tasks), addresses(leaving));
                of_network.vips.insert(address, VirtualService { name: own, names, tasks, leaving });
            }
        }
    }

    /// Puts addresses in order. To be called when everything was added.
    pub(crate) fn finish(&mut self) {
        for of_network in self.networks.values_mut() {
            for addresses in of_network.addresses.values_mut() {
                addresses.sort_unstable();
                addresses.dedup();
            }
            let OfNetwork { addresses, externals, .. } = of_network;
            externals.retain(|name, _| !addresses.contains_key(name));
        }
    }

    /// The names of these networks, as they are on one node.
    pub(crate) fn table(
        &self,
        version: Revision,
        world: &World,
        node: NodeId,
        networks: impl Iterator<Item = NetworkId>,
    ) -> DnsTable {
        let mut table = DnsTable { version, ..DnsTable::default() };
        let zones = Zones { world, node };
        for id in networks {
            let Some(of_network) = self.networks.get(&id) else { continue };
            let OfNetwork { addresses, services, hosts, ports, externals, owners: _, vips, running: _ } =
                of_network;
            let mut names = addresses.clone();
            for (service, tasks) in services {
                // A service, or an alias, that is really called so is not hidden.
                names.entry(format!("{NEAREST}.{service}")).or_insert_with(|| zones.nearest(tasks));
            }
            table.networks.insert(id, names);
            let ports = ports.iter().filter(|(_, ports)| !ports.is_empty());
            let ports: BTreeMap<_, _> =
                ports.map(|(service, ports)| (service.clone(), ports.iter().cloned().collect())).collect();
            insert_some(&mut table.ports, id, ports);
            insert_some(&mut table.hosts, id, hosts.clone());
            insert_some(&mut table.externals, id, externals.clone());
            insert_some(&mut table.vips, id, vips.clone());
        }
        table
    }
}

fn insert_some<K: Ord, V>(
    into: &mut BTreeMap<NetworkId, BTreeMap<K, V>>,
    id: NetworkId,
    what: BTreeMap<K, V>,
) {
    if !what.is_empty() {
        into.insert(id, what);
    }
}

/// Where a service has its names: on its networks, also those in whose place there are others and on which tasks still are. One that uses
/// its node's own network is found on the networks of its app that lead out.
fn places(world: &World, app: &AppKey, spec: &ServiceSpec) -> Vec<(NetworkId, NetworkAttachment)> {
    if spec.network_mode == NetworkMode::Host {
        let beside = beside_host(world, app);
        return beside.map(|network| (network.id, NetworkAttachment::default())).collect();
    }
    let current = spec::attachments(spec).into_iter().filter_map(|(name, attachment)| {
        let network = world.network_named(app, name)?;
        let retired = world.networks_of(&network.app);
        let retired = retired.filter(|other| other.retired && other.name == network.name);
        let all = retired.chain([network]).map(|network| (network.id, attachment.clone()));
        Some(all.collect::<Vec<_>>())
    });
    current.flatten().collect()
}

/// The networks on which a service that uses its node's own network is found: those of its app that lead out.
pub(crate) fn beside_host<'w>(
    world: &'w World,
    app: &AppKey,
) -> impl Iterator<Item = &'w std::sync::Arc<wharf_model::NetworkRecord>> {
    world.networks_of(app).filter(|network| !network.spec.internal)
}

fn network_of(world: &World, app: &AppKey, name: &NetworkName) -> Option<NetworkId> {
    world.network_named(app, name).map(|network| network.id)
}

/// What is near a node.
struct Zones<'a> {
    world: &'a World,
    node: NodeId,
}

impl Zones<'_> {
    /// Those on the node itself, else those in its zone, else all.
    fn nearest(&self, tasks: &BTreeMap<Ipv4Addr, Option<NodeId>>) -> Vec<Ipv4Addr> {
        let those = |wanted: &dyn Fn(NodeId) -> bool| -> Vec<Ipv4Addr> {
            let near = tasks.iter().filter(|(_, node)| node.is_some_and(wanted));
            near.map(|(address, _)| *address).collect()
        };
        let here = those(&|node| node == self.node);
        if !here.is_empty() {
            return here;
        }
        let zone = self.zone(self.node);
        let near = those(&|node| zone.is_some() && self.zone(node) == zone);
        if near.is_empty() { tasks.keys().copied().collect() } else { near }
    }

    fn zone(&self, node: NodeId) -> Option<&str> {
        self.world.node(node)?.record.labels.get(ZONE).map(String::as_str)
    }
}

/// What each of a service's tasks answers to on a network, in lower case.
fn service_names(
    service: &str,
    app: &AppKey,
    spec: &ServiceSpec,
    attachment: &NetworkAttachment,
) -> Vec<String> {
    let mut names = common_names(service, app, attachment);
    names.extend(spec.container.hostname.as_ref().map(|name| name.to_ascii_lowercase()));
    names
}

fn common_names(service: &str, app: &AppKey, attachment: &NetworkAttachment) -> Vec<String> {
    let own = [service.to_owned(), format!("{service}.{}", app.name), format!("tasks.{service}")];
    own.iter().chain(&attachment.aliases).map(|name| name.to_ascii_lowercase()).collect()
}

/// The ports that tasks of a service can be asked for: published or exposed ones. Exposed ranges are not taken apart.
pub fn named_ports(spec: &ServiceSpec) -> BTreeSet<NamedPort> {
    let published = spec.ports.iter().map(|port| NamedPort {
        port: port.target,
        protocol: port.protocol,
        name: port.name.as_ref().map(|name| name.to_ascii_lowercase()),
    });
    let mut ports: BTreeSet<_> = published.collect();
    for exposed in spec.expose.iter().filter_map(|text| exposed(text)) {
        if !ports.iter().any(|port| (port.port, port.protocol) == (exposed.port, exposed.protocol)) {
            ports.insert(exposed);
        }
    }
    ports
}

/// `8080` or `8080/udp`.
fn exposed(text: &str) -> Option<NamedPort> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.as_str() == protocol)?;
    Some(NamedPort { port: port.parse().ok()?, protocol, name: None })
}

#[cfg(test)]
mod tests {
    use wharf_model::*;

    use crate::{Assigner, fixtures::*};

    fn table(cluster: &Cluster, node: u8) -> DnsTable {
        Assigner::new(&cluster.world).for_node(node_id(node)).dns
    }
    fn addresses(cluster: &Cluster, node: u8, name: &str) -> Option<Vec<std::net::Ipv4Addr>> {
        table(cluster, node).networks.values().next()?.get(name).cloned()
    }

    #[test]
    fn a_name_exists_before_and_after_its_tasks_are_ready_and_goes_with_its_service() {
        let mut cluster = Cluster::of(2);
        let mut web = replicas(service("web"), 2);
        web.networks.values_mut().for_each(|attachment| attachment.aliases = vec!["WWW".into()]);
        let spec = app(&[("web", web)]);
        cluster.up(&spec);
        cluster.settle();
        let names = ["web", "web.shop", "tasks.web", "nearest.web", "www"];
        let counts = |cluster: &Cluster| names.map(|name| addresses(cluster, 1, name).map(|all| all.len()));
        assert_eq!(counts(&cluster), [Some(2), Some(2), Some(2), Some(1), Some(2)]);
        let stop = |cluster: &mut Cluster| {
            for task in cluster.ready("web") {
                cluster.world.apply(&crate::Change::StopTask { task: task.id, reason: StopReason::Outdated });
            }
        };
        stop(&mut cluster);
        assert_eq!(counts(&cluster), [Some(0); 5]);
        let hosts: Vec<_> = table(&cluster, 1).hosts.into_values().flatten().map(|(_, name)| name).collect();
        assert_eq!(hosts, ["shop-web-1", "shop-web-2"], "while they stop they still have their names");
    }

    #[test]
    fn the_nearest_are_on_the_node_or_in_its_zone_or_anywhere() {
        let mut cluster = Cluster::of(3);
        for (node, zone) in [(1, "a"), (2, "a"), (3, "b")] {
            let mut record = cluster.world.node(node_id(node)).unwrap().record.clone();
            record.labels.insert("zone".into(), zone.into());
            cluster.world.insert_node(record);
        }
        let mut db = replicas(service("db"), 2);
        db.placement.constraints =
            vec![Constraint { key: "node.hostname".into(), equal: false, value: "n1".into() }];
        let mut all = service("all");
        all.mode = Mode::Global;
        cluster.up(&app(&[("db", db), ("all", all)]));
        cluster.settle();
        let on = |cluster: &Cluster, node| {
            let ready = cluster.ready("db");
            let task = ready.iter().find(|task| task.node == Some(node_id(node))).unwrap();
            task.addresses.values().copied().collect::<Vec<_>>()
        };
        assert_eq!(addresses(&cluster, 2, "nearest.db"), Some(on(&cluster, 2)));
        assert_eq!(addresses(&cluster, 3, "nearest.db"), Some(on(&cluster, 3)));
        assert_eq!(addresses(&cluster, 1, "nearest.db"), Some(on(&cluster, 2)), "n2 is in the zone of n1");
        cluster.set_state(2, NodeState::Down);
        assert_eq!(addresses(&cluster, 1, "nearest.db"), Some(on(&cluster, 3)), "nobody is near");
    }

    #[test]
    fn ports_are_those_published_or_exposed() {
        let mut cluster = Cluster::of(1);
        let mut web = published(service("web"), 8080, PublishMode::Ingress);
        web.ports[0].name = Some("Http".into());
        let target = web.ports[0].target;
        web.expose = vec![target.to_string(), "53/udp".into(), "9000-9010".into()];
        cluster.up(&app(&[("web", web)]));
        cluster.settle();
        let ports = table(&cluster, 1).ports.into_values().next().unwrap().remove("web").unwrap();
        let port =
            |port, protocol, name: Option<&str>| NamedPort { port, protocol, name: name.map(str::to_owned) };
        assert_eq!(ports, [port(53, Protocol::Udp, None), port(target, Protocol::Tcp, Some("http"))]);
    }

    #[test]
    fn services_outside_are_found_on_their_networks_and_hide_none_inside() {
        let mut cluster = Cluster::of(1);
        let mut spec = app(&[("web", service("web"))]);
        let networks = spec.services.values().next().unwrap().networks.clone();
        let external = |host: &str, alias: &str| {
            let mut networks = networks.clone();
            networks.values_mut().for_each(|attachment| attachment.aliases = vec![alias.into()]);
            ExternalService { host: host.parse().unwrap(), ports: Vec::new(), networks }
        };
        spec.externals.insert("db".parse().unwrap(), external("db.example.org", "Mysql"));
        spec.externals.insert("cache".parse().unwrap(), external("192.0.2.7", "web"));
        cluster.up(&spec);
        cluster.settle();
        let externals = table(&cluster, 1).externals.into_values().next().unwrap();
        let domain = ExternalHost::Domain("db.example.org".into());
        for name in ["db", "db.shop", "tasks.db", "mysql"] {
            assert_eq!(externals.get(name), Some(&domain), "{name}");
        }
        assert_eq!(externals.get("cache").map(ToString::to_string).as_deref(), Some("192.0.2.7"));
        assert_eq!(externals.get("web"), None);
        assert_eq!(addresses(&cluster, 1, "web").map(|all| all.len()), Some(1));
    }
}
