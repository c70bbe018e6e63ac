//! What decisions ask of specifications.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use wharf_model::{
    Dependency, DependencyCondition, FileSpec, GivenPort, Mode, MountSource, NetworkAttachment, NetworkMode,
    NetworkName, PortSpec, Protocol, PublishMode, Release, RestartCondition, ServiceName, ServiceRevision,
    ServiceSpec, Shared, TaskHook, UpdateOrder, VolumeName, VolumeSpec,
};

use crate::World;

/// The services that must be there first: those it depends on, and those with which it shares something.
pub(crate) fn dependencies(spec: &ServiceSpec) -> BTreeMap<ServiceName, Dependency> {
    let mut dependencies = spec.depends_on.clone();
    for companion in spec.companions().into_keys() {
        let started =
            Dependency { condition: DependencyCondition::ServiceStarted, restart: true, required: true };
        dependencies.entry(companion.clone()).or_insert(started);
    }
    dependencies
}

/// Dependencies before dependents, otherwise as given. A cycle, which no file can have, is cut where it is met.
pub(crate) fn in_order<T>(
    things: Vec<T>,
    describe: impl Fn(&T) -> (ServiceName, BTreeMap<ServiceName, Dependency>),
) -> Vec<T> {
    fn visit(
        name: &ServiceName,
        edges: &BTreeMap<ServiceName, BTreeMap<ServiceName, Dependency>>,
        seen: &mut BTreeSet<ServiceName>,
        order: &mut Vec<ServiceName>,
    ) {
        if let Some(dependencies) = edges.get(name)
            && seen.insert(name.clone())
        {
            for dependency in dependencies.keys() {
                visit(dependency, edges, seen, order);
            }
            order.push(name.clone());
        }
    }
    let edges: BTreeMap<_, _> = things.iter().map(&describe).collect();
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in edges.keys() {
        visit(name, &edges, &mut seen, &mut order);
    }
    let rank: BTreeMap<_, _> = order.into_iter().enumerate().map(|(rank, name)| (name, rank)).collect();
    let mut things: Vec<_> =
        things.into_iter().map(|thing| (rank.get(&describe(&thing).0).copied(), thing)).collect();
    things.sort_by_key(|(rank, _)| *rank);
    things.into_iter().map(|(_, thing)| thing).collect()
}

/// The named volumes it mounts, and whether it may write to them.
pub(crate) fn named_volumes(spec: &ServiceSpec) -> impl Iterator<Item = (&VolumeName, bool)> {
    spec.container.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume { volume, .. } => Some((volume, !mount.read_only)),
        MountSource::Anonymous { .. }
        | MountSource::Image { .. }
        | MountSource::Bind { .. }
        | MountSource::Tmpfs { .. } => None,
    })
}

/// Whether the data of a volume is on the node that uses it: no other driver, and no file system of the network.
pub(crate) fn is_local(spec: &VolumeSpec) -> bool {
    spec.is_local()
}

/// Whether a slot's task must never run twice, even while its node cannot be heard: the file says so, or it is the only one of its service and
/// writes to a volume that other nodes can read.
pub(crate) fn is_fenced(world: &World, revision: &ServiceRevision) -> bool {
    let spec = &revision.spec;
    let mode = world.service(&revision.key).map_or(spec.mode, |record| record.mode);
    let shared = |(name, writes): (&VolumeName, bool)| {
        let volume = world.volume_named(&revision.key.app, name);
        writes && volume.is_some_and(|volume| !is_local(&volume.spec))
    };
    let only = matches!(mode, Mode::Replicated { replicas: 1 });
    let fenced = spec.policy.single_writer.unwrap_or_else(|| only && named_volumes(spec).any(shared));
    // The task of a global service belongs to its node, and nobody takes its place.
    fenced && !matches!(mode, Mode::Global)
}

/// The networks it is on, in the order in which they are connected: the first is the default route.
pub(crate) fn attachments(spec: &ServiceSpec) -> Vec<(&NetworkName, &NetworkAttachment)> {
    let mut networks: Vec<_> = match spec.network_mode {
        NetworkMode::Networks => spec.networks.iter().collect(),
        NetworkMode::Host | NetworkMode::None | NetworkMode::Service(_) | NetworkMode::Bridge => Vec::new(),
    };
    networks.sort_by_key(|(_, attachment)| std::cmp::Reverse(attachment.priority));
    networks
}

/// The ports it publishes on every gateway.
pub(crate) fn ingress_ports(spec: &ServiceSpec) -> impl Iterator<Item = &PortSpec> {
    spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress && port.published.is_some())
}

/// Why a service's old task stops before its new one starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopFirst {
    /// The file says so.
    Asked,
    /// The file says that it must not run twice (`single_writer`).
    SingleWriter,
    /// Two tasks must not write to this volume at once.
    Volume(VolumeName),
    /// Two tasks cannot have this port of a node.
    HostPort(u16),
    /// Two tasks cannot have this address.
    Address(IpAddr),
    /// Two tasks cannot have this hardware address.
    Mac(wharf_model::Mac),
    /// It uses its node's own network, where two tasks would want the same ports.
    HostNetwork,
    /// It shares this with a task of that service.
    Shares(Shared, ServiceName),
}
impl std::fmt::Display for StopFirst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("the file says `order: stop-first`"),
            Self::SingleWriter => f.write_str("the file says that it must not run twice"),
            Self::Volume(volume) => write!(f, "two tasks must not write to volume {volume} at once"),
            Self::HostPort(port) => write!(f, "two tasks cannot have port {port} of a node"),
            Self::Address(address) => write!(f, "two tasks cannot have the address {address}"),
            Self::HostNetwork => f.write_str("it uses its node's own network"),
            Self::Mac(mac) => write!(f, "two tasks cannot have the hardware address {mac}"),
            Self::Shares(what, service) => write!(f, "it shares the {what} of {service}"),
        }
    }
}

/// Which comes first when a task is replaced, the old one's stop (and why) or the new one's start.
///
/// Start-first unless something cannot be shared. `order: start-first` in the file overrides what is only unwise, writing to
/// a volume twice, and not what is impossible.
pub fn effective_order(spec: &ServiceSpec) -> (UpdateOrder, Option<StopFirst>) {
    let why = stop_first(spec, spec.update.order, true);
    (if why.is_some() { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst }, why)
}

/// As [`effective_order`], with this order asked for; a task that moves to another node has no quarrel with the old one's
/// ports.
pub(crate) fn stop_first(
    spec: &ServiceSpec,
    asked: Option<UpdateOrder>,
    same_node: bool,
) -> Option<StopFirst> {
    if let Some((service, shared)) = spec.companions().into_iter().min_by_key(|(_, shared)| *shared) {
        return Some(StopFirst::Shares(shared, service.clone()));
    }
    let connected = attachments(spec);
    let address = connected.iter().find_map(|(_, attachment)| attachment.ipv4_address);
    let mac = connected.iter().find_map(|(_, attachment)| attachment.endpoint.mac_address);
    let fixed = |port: &PortSpec| port.published.is_some() && port.published_to.is_none();
    let host = |port: &&PortSpec| port.mode == PublishMode::Host && fixed(port);
    let port = spec.ports.iter().find(host).and_then(|port| port.published).filter(|_| same_node);
    let address6 = connected.iter().find_map(|(_, attachment)| attachment.ipv6_address);
    let address = address.map(IpAddr::from).or(address6.map(IpAddr::from));
    let address = address.map(StopFirst::Address).or(mac.map(StopFirst::Mac));
    let single = (spec.policy.single_writer == Some(true)).then_some(StopFirst::SingleWriter);
    let impossible = single.or(address).or(port.map(StopFirst::HostPort));
    let unwise = || {
        let volume = named_volumes(spec).find(|(_, writes)| *writes).map(|(name, _)| name.clone());
        let host = spec.network_mode == NetworkMode::Host && same_node;
        volume.map(StopFirst::Volume).or(host.then_some(StopFirst::HostNetwork))
    };
    impossible.or_else(|| match asked {
        Some(UpdateOrder::StopFirst) => Some(StopFirst::Asked),
        Some(UpdateOrder::StartFirst) => None,
        None => unwise(),
    })
}

/// The parts of a service's specification that its containers are made from; what is left out changes without replacing any.
pub(crate) fn container_part(spec: &ServiceSpec) -> ServiceSpec {
    let mut part = spec.clone();
    part.image = String::new();
    part.pull_policy = Default::default();
    part.mode = Default::default();
    part.depends_on = BTreeMap::new();
    part.endpoint_mode = Default::default();
    part.restart = Default::default();
    part.update = Default::default();
    part.rollback = None;
    part.labels = BTreeMap::new();
    part.expose = Vec::new();
    part.policy = Default::default();
    // Gateways listen on these, not containers.
    part.ports.retain(|port| port.mode == PublishMode::Host);
    part
}

/// How the container of a command around a release is made: as the service's, without what only one task can have and what nobody asks
/// of a command. The image's or the service's entry point stays, as with `docker compose run`.
pub(crate) fn of_hook(spec: &ServiceSpec, hook: &TaskHook) -> ServiceSpec {
    let mut spec = spec.clone();
    spec.container.command = Some(hook.command.clone());
    // It runs once, also where a node would start a task again by itself.
    spec.restart.condition = RestartCondition::None;
    spec.ports = Vec::new();
    spec.expose = Vec::new();
    (spec.healthcheck, spec.probe) = (None, None);
    for attachment in spec.networks.values_mut() {
        (attachment.ipv4_address, attachment.ipv6_address) = (None, None);
        attachment.endpoint.mac_address = None;
        attachment.aliases = Vec::new();
    }
    spec
}

/// Publishes what the service leaves open on the ports that the task was given, and tells its process: port 80 of the container is on the
/// port in `WHARF_HOST_PORT_80` of the node, or `WHARF_HOST_PORT_80_UDP`. What the file says itself stays.
pub(crate) fn give_ports(spec: &mut ServiceSpec, given: &[GivenPort]) {
    for port in given {
        let open = |own: &&mut PortSpec| {
            own.mode == PublishMode::Host
                && (own.target, own.protocol) == (port.target, port.protocol)
                && (own.published.is_none() || own.published_to.is_some())
        };
        if let Some(own) = spec.ports.iter_mut().find(open) {
            (own.published, own.published_to) = (Some(port.published), None);
        }
        let kind = match port.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "_UDP",
        };
        let name = format!("WHARF_HOST_PORT_{}{kind}", port.target);
        spec.container.environment.entry(name).or_insert_with(|| Some(port.published.to_string()));
    }
}

/// Digests of the configs and secrets a service mounts, so that a changed content is seen. A config and a secret may have one name.
pub(crate) fn mounted_digests<'a>(
    spec: &'a ServiceSpec,
    configs: &'a BTreeMap<String, FileSpec>,
    secrets: &'a BTreeMap<String, FileSpec>,
) -> BTreeMap<(&'static str, &'a str), Option<&'a str>> {
    let digest = |files: &'a BTreeMap<String, FileSpec>, source: &str| {
        let file = files.get(source)?;
        file.digest.as_deref().or(file.content.as_deref())
    };
    let configs =
        spec.configs.iter().map(|mount| (("config", &*mount.source), digest(configs, &mount.source)));
    let secrets =
        spec.secrets.iter().map(|mount| (("secret", &*mount.source), digest(secrets, &mount.source)));
    configs.chain(secrets).collect()
}

/// Whether two revisions make the same containers.
pub(crate) fn same_container(world: &World, one: &ServiceRevision, other: &ServiceRevision) -> bool {
    fn digests<'a>(
        world: &'a World,
        revision: &'a ServiceRevision,
    ) -> Option<BTreeMap<(&'static str, &'a str), Option<&'a str>>> {
        let release: &Release = world.release(&revision.key.app, revision.release)?;
        Some(mounted_digests(&revision.spec, &release.spec.configs, &release.spec.secrets))
    }
    let mounts_files = !one.spec.configs.is_empty() || !one.spec.secrets.is_empty();
    same_image(&one.image, &other.image)
        && container_part(&one.spec) == container_part(&other.spec)
        && (!mounts_files || digests(world, one) == digests(world, other))
}

/// Whether two pinned images are one: by digest where both have one, by the engine's id otherwise, by reference if neither is known.
/// What has yet to be built is no other image.
pub(crate) fn same_image(one: &wharf_model::Image, other: &wharf_model::Image) -> bool {
    if one.is_unbuilt() || other.is_unbuilt() {
        return false;
    }
    match (&one.digest, &other.digest) {
        (Some(one), Some(other)) => one == other,
        _ => match (&one.id, &other.id) {
            (Some(one_id), Some(other_id)) => one_id == other_id,
            _ => one.reference == other.reference,
        },
    }
}
