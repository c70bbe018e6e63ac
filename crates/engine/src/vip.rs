//! Gives services that ask for one a virtual address on each of their networks.
//!
//! - A virtual address is no task's, no gateway's and no other service's, and is taken like gateways' are: where it leaves tasks their
//!   range, if there is another place.
//! - A service keeps the address over its releases, and gives it up when it asks for none there any more, or goes.
//! - Only the app that a service belongs to gives and takes its addresses, also on a network that is another app's.

use std::{collections::BTreeSet, sync::Arc};

use wharf_model::{EndpointMode, NetworkId, NetworkName, NetworkRecord, ServiceKey};

use crate::{About, NetworkRefusal, Reason, World, pass::Pass, spec};

/// The services of an app that want a virtual address, and on which networks: names as the app knows them.
fn wanted(pass: &Pass<'_>) -> Vec<(ServiceKey, NetworkName)> {
    let services = pass.services.iter().filter(|service| !pass.app.removed && !service.record.removed);
    let with_vip = services.filter_map(|service| {
        let revision = service.revision?;
        (revision.spec.endpoint_mode == EndpointMode::Vip).then_some((service, revision))
    });
    with_vip
        .flat_map(|(service, revision)| {
            let networks = spec::attachments(&revision.spec).into_iter();
            networks.map(|(name, _)| (service.record.key.clone(), name.clone()))
        })
        .collect()
}

impl Pass<'_> {
    /// Every service has the virtual addresses that it asks for, and no other.
    pub(crate) fn ensure_vips(&mut self) {
        let mut kept = BTreeSet::new();
        for (service, name) in wanted(self) {
            // Without the network the service waits for that already.
            let Some(network) = self.network_named(&name).cloned() else { continue };
            kept.insert((network.id, service.clone()));
            if !network.vips.values().any(|of| *of == service) {
                self.give_vip(service, network);
            }
        }
        self.take_vips(&kept);
    }

    fn give_vip(&mut self, service: ServiceKey, mut network: Arc<NetworkRecord>) {
        match self.infrastructure_address(&network) {
            Some(address) => {
                Arc::make_mut(&mut network).vips.insert(address, service);
                self.networks.insert(network.id, network);
            }
            None => {
                let because = NetworkRefusal::SubnetFull { subnet: network.subnet };
                let about = About::Network(network.app.clone(), network.name.clone());
                self.wait(about, Reason::NoNetwork { network: network.name.clone(), because });
            }
        }
    }

    /// Takes back what services of this app have beyond `kept`.
    fn take_vips(&mut self, kept: &BTreeSet<(NetworkId, ServiceKey)>) {
        let app = self.app.key.clone();
        let too_many = |id: NetworkId, of: &ServiceKey| of.app == app && !kept.contains(&(id, of.clone()));
        let stored = self.world.networks_with_vips();
        let ids: BTreeSet<_> = stored.chain(self.networks.keys()).copied().collect();
        for id in ids {
            let stored = || self.world.network(id);
            let Some(network) = self.networks.get(&id).or_else(stored) else { continue };
            if network.vips.values().any(|of| too_many(id, of)) {
                let mut network = NetworkRecord::clone(network);
                network.vips.retain(|_, of| !too_many(id, of));
                self.networks.insert(id, Arc::new(network));
            }
        }
    }
}

/// Whose virtual address it is, as people name it.
pub(crate) fn holder(network: &NetworkRecord, address: std::net::Ipv4Addr) -> Option<String> {
    let service = network.vips.get(&address)?;
    Some(format!("the virtual address of {} of app {}", service.name, service.app.name))
}

/// The virtual addresses of a network that its table names: those of services that there are.
pub(crate) fn of<'n>(
    world: &'n World,
    network: &'n NetworkRecord,
) -> impl Iterator<Item = (std::net::Ipv4Addr, &'n ServiceKey)> {
    let exists = |service: &&ServiceKey| world.service(service).is_some_and(|record| !record.removed);
    network.vips.iter().map(|(address, service)| (*address, service)).filter(move |(_, s)| exists(s))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use wharf_model::*;

    use crate::{Assigner, fixtures::*};

    fn vip(mut spec: ServiceSpec) -> ServiceSpec {
        spec.endpoint_mode = EndpointMode::Vip;
        spec
    }
    fn vips(cluster: &Cluster) -> BTreeMap<Ipv4Addr, ServiceKey> {
        cluster.world.networks().flat_map(|network| network.vips.clone()).collect()
    }

    #[test]
    fn a_service_keeps_its_virtual_address_over_releases_and_gives_it_up_with_the_wish() {
        let mut cluster = Cluster::of(2);
        cluster.up(&app(&[("web", vip(replicas(service("web"), 2))), ("db", service("db"))]));
        cluster.settle();
        let before = vips(&cluster);
        assert_eq!(before.values().collect::<Vec<_>>(), [&key("web")]);
        let address = *before.keys().next().unwrap();
        let network = cluster.world.networks().next().unwrap();
        let others: Vec<_> = network.gateways.values().copied().collect();
        let tasks = cluster.world.tasks().flat_map(|task| task.addresses.values().copied());
        assert!(!tasks.chain(others).any(|other| other == address), "it is nobody else's");

        cluster.up(&app(&[("web", vip(replicas(service("web2"), 3))), ("db", service("db"))]));
        cluster.settle();
        assert_eq!(vips(&cluster), before, "another image");
        let task = cluster.ready("web")[0].id;
        cluster.up(&app(&[("web", replicas(service("web2"), 3)), ("db", service("db"))]));
        cluster.settle();
        assert_eq!(vips(&cluster), BTreeMap::new(), "it asks for none");
        assert!(cluster.ready("web").iter().any(|other| other.id == task), "that replaces no container");
        cluster.up(&app(&[("web", vip(service("web2"))), ("db", vip(service("db")))]));
        cluster.settle();
        assert_eq!(vips(&cluster).len(), 2);
        cluster.up(&app(&[("db", vip(service("db")))]));
        cluster.settle();
        assert_eq!(vips(&cluster).values().collect::<Vec<_>>(), [&key("db")], "the service went");
    }

    #[test]
    fn releases_leak_no_virtual_address() {
        let mut cluster = Cluster::of(1);
        for round in 0..20 {
            let mode = if round % 2 == 0 { vip(service("web")) } else { service("web") };
            cluster.up(&app(&[("web", mode), ("db", vip(service("db")))]));
            cluster.settle();
            assert_eq!(vips(&cluster).len(), 1 + usize::from(round % 2 == 0), "round {round}");
        }
    }

    #[test]
    fn names_lead_to_the_virtual_address_and_it_to_ready_tasks() {
        let mut cluster = Cluster::of(2);
        let mut web = vip(replicas(service("web"), 2));
        web.networks
            .values_mut()
            .for_each(|attachment| attachment.aliases = vec!["WWW".into(), "both".into()]);
        let mut db = service("db");
        db.networks.values_mut().for_each(|attachment| attachment.aliases = vec!["both".into()]);
        cluster.up(&app(&[("web", web), ("db", db)]));
        cluster.settle();
        let virtual_services = |cluster: &Cluster| {
            let dns = Assigner::new(&cluster.world).for_node(node_id(1)).dns;
            dns.vips.into_values().flatten().collect::<Vec<_>>()
        };
        let [(address, found)] = &virtual_services(&cluster)[..] else { panic!("there is one") };
        assert!(vips(&cluster).contains_key(address));
        assert_eq!(found.name, "web");
        let names: Vec<_> = found.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["web", "web.shop", "www"], "`both` is another service's as well");
        assert_eq!(found.tasks.len(), 2);
        let task = cluster.ready("web").remove(0);
        cluster.world.apply(&crate::Change::StopTask { task: task.id, reason: StopReason::Outdated });
        let found = virtual_services(&cluster).remove(0).1;
        assert_eq!((found.tasks.len(), found.leaving.len()), (1, 1), "draining");
        let status = TaskStatus { phase: Phase::Stopped, sequence: 99, ..task.status.clone() };
        cluster.world.set_task_status(task.id, status);
        let found = virtual_services(&cluster).remove(0).1;
        assert_eq!((found.tasks.len(), found.leaving.len()), (1, 0), "gone");
    }

    #[test]
    fn a_fixed_address_is_not_a_virtual_one() {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", vip(service("web")))]));
        cluster.settle();
        let taken = *vips(&cluster).keys().next().unwrap();
        let mut late = service("late");
        late.networks.values_mut().for_each(|attachment| attachment.ipv4_address = Some(taken));
        cluster.up(&app(&[("web", vip(service("web"))), ("late", late)]));
        cluster.settle();
        assert!(
            cluster.waiting().contains("the virtual address of web of app shop"),
            "{}",
            cluster.waiting()
        );
    }
    #[test]
    fn gateways_keep_clients_where_the_task_says_that_it_can_answer_them() {
        let mut cluster = Cluster::of(2);
        let spec = |internal| {
            let mut spec = app(&[("web", published(service("web"), 8080, PublishMode::Ingress))]);
            let network = NetworkSpec { internal, ..NetworkSpec::default() };
            spec.networks.insert("default".parse().unwrap(), network);
            spec
        };
        cluster.up(&spec(false));
        cluster.settle();
        let set = |cluster: &Cluster| Assigner::new(&cluster.world).for_node(node_id(1));
        let network = cluster.world.networks().next().unwrap().clone();
        let entry = network.gateways[&node_id(1)];
        let only_gateways: std::collections::BTreeSet<_> = [entry].into();
        assert_eq!(set(&cluster).networks[&network.id].entries, only_gateways, "n2 is no gateway");
        let keeps = |cluster: &Cluster| set(cluster).routes.routes[0].endpoints[0].keeps_client;
        assert!(!keeps(&cluster), "the task has not said so");
        let task = cluster.ready("web").remove(0);
        let entries = only_gateways.into_iter().map(std::net::IpAddr::from).collect();
        let status = TaskStatus { entries, sequence: 99, ..task.status.clone() };
        cluster.world.set_task_status(task.id, status);
        assert!(keeps(&cluster));
        cluster.up(&spec(true));
        cluster.settle();
        assert!(set(&cluster).networks.values().all(|network| network.entries.is_empty()), "internal");
    }

    /// A published service on one network, on which each of two nodes has a task.
    fn published_on(network: NetworkSpec) -> Cluster {
        let mut cluster = Cluster::of(2);
        cluster.world.unique_local = Some("fd5a:7c1e:9b02::/48".parse().unwrap());
        let mut web = replicas(published(service("web"), 8080, PublishMode::Ingress), 2);
        web.placement.max_replicas_per_node = Some(1);
        let mut spec = app(&[("web", web)]);
        spec.networks.insert("default".parse().unwrap(), network);
        cluster.up(&spec);
        cluster.settle();
        cluster
    }
    fn says_it_answers(cluster: &mut Cluster, task: &Task, entries: &[std::net::IpAddr]) {
        let entries = entries.iter().copied().collect();
        let status = TaskStatus { entries, sequence: task.status.sequence + 100, ..task.status.clone() };
        cluster.world.set_task_status(task.id, status);
    }
    fn endpoint(cluster: &Cluster, task: TaskId) -> Endpoint {
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        *set.routes.routes[0].endpoints.iter().find(|endpoint| endpoint.task == task).unwrap()
    }

    #[test]
    fn gateways_keep_clients_with_ipv6_addresses_where_the_task_says_that_it_answers_those() {
        let mut cluster = published_on(NetworkSpec { enable_ipv6: true, ..NetworkSpec::default() });
        let network = cluster.world.networks().next().unwrap().clone();
        let subnet6 = network.subnet6.unwrap();
        let entry = network.gateways[&node_id(1)];
        for task in cluster.ready("web") {
            let kept = |cluster: &Cluster| {
                let endpoint = endpoint(cluster, task.id);
                (endpoint.keeps_client, endpoint.keeps_client6)
            };
            assert_eq!(kept(&cluster), (false, None), "it has not said so");
            says_it_answers(&mut cluster, &task, &[entry.into()]);
            assert_eq!(kept(&cluster), (true, None), "its container has no IPv6");
            let task = cluster.world.task(task.id).unwrap().as_ref().clone();
            says_it_answers(&mut cluster, &task, &[entry.into(), ipv6_for(subnet6, entry).into()]);
            let address = *task.addresses.values().next().unwrap();
            assert_eq!(kept(&cluster), (true, Some(ipv6_for(subnet6, address))));
        }
    }

    #[test]
    fn a_task_on_a_routed_network_answers_the_clients_of_its_own_nodes_gateway() {
        let mut cluster =
            published_on(NetworkSpec { backend: Some(Backend::Routed), ..NetworkSpec::default() });
        let network = cluster.world.networks().next().unwrap().clone();
        let entries = |node: u8| {
            let set = Assigner::new(&cluster.world).for_node(node_id(node));
            set.networks[&network.id].entries.iter().copied().collect::<Vec<_>>()
        };
        let entry = network.gateways[&node_id(1)];
        assert_eq!(
            (entries(1), entries(2)),
            (vec![entry], vec![]),
            "by the wire it is not known which gateway asked"
        );
        for task in cluster.ready("web") {
            let is_here = task.node == Some(node_id(1));
            let answers: Vec<_> = is_here.then_some(entry.into()).into_iter().collect();
            says_it_answers(&mut cluster, &task, &answers);
            assert_eq!(endpoint(&cluster, task.id).keeps_client, is_here);
        }
    }
}
