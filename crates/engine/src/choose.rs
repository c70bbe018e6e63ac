//! Chooses what a file leaves to the cluster, before a release is planned: ports out of a range, and whether an image is
//! asked for again.
//!
//! - What the app has already stays: the same file gives the same ports, release after release.
//! - A port is chosen that nobody of the cluster publishes or has routes on, and that nothing on a gateway listens on. Where there is none the
//!   first of the range is left for the plan to refuse, with its holder.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use wharf_model::{
    AppKey, AppSpec, Image, PortSpec, Protocol, PublishMode, PullPolicy, ServiceKey, ServiceName,
    ServiceSpec, Timestamp,
};

use crate::{World, routing, spec};

/// The ports from which one is chosen for what is published without a number.
const ANY: RangeInclusive<u16> = 30_000..=32_767;

/// Ports in use or promised.
type Taken = BTreeSet<(u16, Protocol)>;

/// Replaces ranges of published ports, and ports of gateways without a number, by one port each; says in words which were
/// chosen that the app did not have before.
pub fn choose_ports(world: &World, app: &AppKey, wanted: &mut AppSpec) -> Vec<String> {
    let mut taken = held_by_others(world, app);
    let fixed = wanted.services.values().flat_map(|service| &service.ports);
    let fixed = fixed.filter(|port| choice(port).is_none());
    taken.extend(fixed.filter_map(|port| Some((port.published?, port.protocol))));
    taken.extend(wanted.services.values().flat_map(routing::gateway_ports));
    let mut open: Vec<(&ServiceName, &mut PortSpec)> = Vec::new();
    for (name, service) in &mut wanted.services {
        open.extend(
            service.ports.iter_mut().filter(|port| choice(port).is_some()).map(|port| (&*name, port)),
        );
    }
    // What the app has comes first, so that nothing new takes its place.
    let mut had: BTreeMap<&ServiceName, Vec<PortSpec>> = BTreeMap::new();
    for (name, port) in &mut open {
        let before = had.entry(*name).or_insert_with(|| published_now(world, app, name));
        if let Some(kept) = take_back(before, port, &taken) {
            settle(port, kept, &mut taken);
        }
    }
    let mut said = Vec::new();
    for (name, port) in open {
        let Some(range) = choice(port) else { continue };
        let free = range.clone().find(|number| !taken.contains(&(*number, port.protocol)));
        let number = free.unwrap_or(*range.start());
        settle(port, number, &mut taken);
        said.push(format!(
            "service {name} publishes port {} on {number}, chosen from {} to {}",
            port.target,
            range.start(),
            range.end()
        ));
    }
    said
}

/// From where a port is to be chosen, if it is.
fn choice(port: &PortSpec) -> Option<RangeInclusive<u16>> {
    match (port.published, port.published_to, port.mode) {
        (Some(from), Some(to), PublishMode::Ingress) => Some(from..=to),
        (None, _, PublishMode::Ingress) => Some(ANY),
        // Each task gets one of its node's, when it gets its node.
        (_, _, PublishMode::Host) | (Some(_), None, _) => None,
    }
}

fn settle(port: &mut PortSpec, number: u16, taken: &mut Taken) {
    (port.published, port.published_to) = (Some(number), None);
    taken.insert((number, port.protocol));
}

/// The port that a service has published so far for the same, if it may still be had.
fn take_back(before: &mut Vec<PortSpec>, port: &PortSpec, taken: &Taken) -> Option<u16> {
    let range = choice(port)?;
    let same = |old: &PortSpec| PortSpec { published: None, published_to: None, ..old.clone() };
    let found = before.iter().position(|old| {
        same(old) == same(port)
            && old
                .published
                .is_some_and(|number| range.contains(&number) && !taken.contains(&(number, port.protocol)))
    })?;
    before.remove(found).published
}

/// What a service publishes now.
fn published_now(world: &World, app: &AppKey, name: &ServiceName) -> Vec<PortSpec> {
    let key = ServiceKey { app: app.clone(), name: name.clone() };
    let record = world.service(&key).filter(|record| !record.removed);
    let revision = record.and_then(|record| world.revision_of(&key, record.wanted().0));
    revision.map_or_else(Vec::new, |revision| revision.spec.ports.clone())
}

/// What other apps publish, and what something outside Wharf listens on where this app does not itself.
fn held_by_others(world: &World, app: &AppKey) -> Taken {
    let live = world.services().filter(|record| !record.removed);
    let revision = |record: &&wharf_model::ServiceRecord| world.revision_of(&record.key, record.generation);
    let (own, others): (Vec<_>, Vec<_>) =
        live.map(|record| &**record).partition(|record| record.key.app == *app);
    let ports = |spec: &ServiceSpec| -> Vec<(u16, Protocol)> {
        let host = spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
        let all = spec::ingress_ports(spec).chain(host);
        let published = all.filter_map(|port| Some((port.published?, port.protocol)));
        published.chain(routing::gateway_ports(spec)).collect()
    };
    let others = others.iter().filter_map(revision).flat_map(|revision| ports(&revision.spec));
    let own: Taken = own.iter().filter_map(revision).flat_map(|revision| ports(&revision.spec)).collect();
    let gateways = world.nodes().filter(|node| node.record.roles.gateway);
    let foreign = gateways.filter_map(|node| node.facts()).flat_map(|facts| &facts.taken_ports);
    let foreign = foreign.flat_map(|port| [(*port, Protocol::Tcp), (*port, Protocol::Udp)]);
    others.chain(foreign.filter(|port| !own.contains(port))).collect()
}

/// What a release that is made now pins a service's image to without asking: what the current one has, unless the file
/// wants to know anew.
pub fn pinned_image<'w>(
    world: &'w World,
    app: &AppKey,
    name: &ServiceName,
    wanted: &ServiceSpec,
    now: Timestamp,
) -> Option<&'w Image> {
    let key = ServiceKey { app: app.clone(), name: name.clone() };
    let record = world.service(&key).filter(|record| !record.removed)?;
    let image = &world.revision_of(&key, record.wanted().0)?.image;
    let too_old = match wanted.pull_policy {
        PullPolicy::Always => true,
        PullPolicy::Missing | PullPolicy::Never => false,
        PullPolicy::Refresh { after } => {
            pinned_at(world, app, name, image).is_none_or(|at| now.since(at) >= after.duration())
        }
    };
    (image.reference == wanted.image && !too_old).then_some(image)
}

/// When the app's releases came to have this image, as far back as releases are kept.
fn pinned_at(world: &World, app: &AppKey, name: &ServiceName, image: &Image) -> Option<Timestamp> {
    let mut releases: Vec<_> = world.releases_of(app).collect();
    releases.sort_by_key(|release| std::cmp::Reverse(release.number));
    let same = |release: &&std::sync::Arc<wharf_model::Release>| {
        release
            .images
            .get(name)
            .is_some_and(|other| other.reference == image.reference && spec::same_image(other, image))
    };
    releases
        .into_iter()
        .skip_while(|release| !same(release))
        .take_while(same)
        .last()
        .map(|first| first.created_at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wharf_model::Millis;

    use super::*;
    use crate::fixtures::{Cluster, app, app_key, by, images, service};

    fn port(target: u16, published: Option<u16>, published_to: Option<u16>) -> PortSpec {
        PortSpec {
            target,
            published,
            published_to,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            host_ip: None,
            name: None,
            app_protocol: None,
        }
    }
    fn with(mut spec: ServiceSpec, ports: &[PortSpec]) -> ServiceSpec {
        spec.ports = ports.to_vec();
        spec
    }
    fn chosen(cluster: &Cluster, key: &AppKey, spec: &AppSpec) -> (AppSpec, Vec<String>) {
        let mut spec = spec.clone();
        let said = choose_ports(&cluster.world, key, &mut spec);
        (spec, said)
    }
    fn numbers(spec: &AppSpec) -> Vec<u16> {
        let ports = spec.services.values().flat_map(|service| &service.ports);
        assert!(ports.clone().all(|port| port.published_to.is_none()));
        ports.filter_map(|port| port.published).collect()
    }

    #[test]
    fn a_free_port_of_the_range_is_chosen_and_kept() {
        let mut cluster = Cluster::of(1);
        let mut status = cluster.world.node(crate::fixtures::node_id(1)).unwrap().status.clone().unwrap();
        status.facts.as_mut().unwrap().taken_ports = vec![8001];
        cluster.world.set_node_status(crate::fixtures::node_id(1), status);
        let range = port(80, Some(8000), Some(8010));
        let spec = app(&[
            ("fixed", with(service("fixed"), &[port(80, Some(8000), None)])),
            ("web", with(service("web"), &[range.clone(), PortSpec { target: 81, ..range.clone() }])),
        ]);
        let (first, said) = chosen(&cluster, &app_key(), &spec);
        assert_eq!(numbers(&first), [8000, 8002, 8003], "8001 is in use on the gateway");
        assert_eq!(said[0], "service web publishes port 80 on 8002, chosen from 8000 to 8010");
        cluster.up(&first);
        cluster.settle();

        // What is asked for later, and before it in the file, does not push it away.
        let mut next = spec.clone();
        next.services.insert("a".parse().unwrap(), with(service("a"), &[port(80, Some(8002), Some(8004))]));
        let (second, said) = chosen(&cluster, &app_key(), &next);
        assert_eq!(numbers(&second), [8004, 8000, 8002, 8003]);
        assert_eq!(said.len(), 1, "only what is new is told: {said:?}");

        // Another app finds what is left; where nothing is, the plan names who has it.
        let other = AppKey { name: "other".parse().unwrap(), ..app_key() };
        let crowded = app(&[("web", with(service("web"), &[port(80, Some(8002), Some(8003))]))]);
        let (crowded, _) = chosen(&cluster, &other, &crowded);
        let plan = crate::plan(&cluster.world, &other, &crowded, &images(&crowded));
        assert!(plan.refusals[0].to_string().contains("8002"), "{}", plan.refusals[0]);
    }

    #[test]
    fn a_port_without_a_number_gets_one() {
        let cluster = Cluster::of(1);
        let host = PortSpec { mode: PublishMode::Host, ..port(90, None, None) };
        let spec = app(&[("web", with(service("web"), &[port(80, None, None), host]))]);
        let (spec, _) = chosen(&cluster, &app_key(), &spec);
        assert_eq!(numbers(&spec), [30_000], "that of a node is given with the node");
    }

    #[test]
    fn an_image_is_asked_for_again_once_it_is_old() {
        let mut cluster = Cluster::of(1);
        let daily = |image: &str| {
            let mut spec = service(image);
            spec.pull_policy = PullPolicy::Refresh { after: Millis::from_secs(24 * 60 * 60) };
            spec
        };
        let (name, wanted): (ServiceName, _) = ("web".parse().unwrap(), daily("web"));
        let release = |cluster: &mut Cluster, hours: u64| {
            cluster.now = cluster.now + Duration::from_secs(hours * 60 * 60);
            let spec = app(&[("web", daily("web"))]);
            let changes =
                crate::release(&cluster.world, &app_key(), &spec, &images(&spec), &by(), cluster.now)
                    .unwrap();
            cluster.apply(&changes);
        };
        let asked = |cluster: &Cluster| {
            pinned_image(&cluster.world, &app_key(), &name, &wanted, cluster.now).is_none()
        };
        assert!(asked(&cluster), "nothing is known yet");
        release(&mut cluster, 0);
        assert!(!asked(&cluster));
        release(&mut cluster, 23);
        assert!(!asked(&cluster));
        // The second release has the image from the first.
        cluster.now = cluster.now + Duration::from_secs(60 * 60);
        assert!(asked(&cluster));
        let missing = ServiceSpec { pull_policy: PullPolicy::Missing, ..wanted.clone() };
        assert!(pinned_image(&cluster.world, &app_key(), &name, &missing, cluster.now).is_some());
        let other = ServiceSpec { image: "other".into(), ..missing };
        assert!(pinned_image(&cluster.world, &app_key(), &name, &other, cluster.now).is_none());
    }
}
