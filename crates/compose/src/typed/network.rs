//! How a service is connected: its networks, its ports, and the networks themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use wharf_model::{
    Backend, Mac, Mode, NetworkAttachment, NetworkMode, NetworkName, NetworkSpec, PortSpec, Protocol,
    PublishMode, ServiceName, ServiceSpec,
};

use super::{Typing, ipv6, values};
use crate::contradictions;
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node};

impl Typing<'_, '_> {
    /// Networks, network mode and ports, which belong together.
    pub(super) fn connections(
        &mut self,
        name: &ServiceName,
        service: &Mapping,
        key: &Key<'_>,
        spec: &mut ServiceSpec,
    ) {
        let mode = service.entry("network_mode");
        if let Some(entry) = mode {
            spec.network_mode = self.network_mode(name, entry, &key.field("network_mode"));
        }
        let networks = service.entry("networks");
        if let (Some(mode), Some(networks)) = (mode, networks) {
            let message = "`network_mode` and `networks` exclude each other";
            self.report()
                .error(Complaint::Conflict, mode.key, &key.field("network_mode"), message)
                .hint("keep one of them");
            self.report().relate(networks.key, "`networks` is here");
            return;
        }
        if let Some(entry) = networks {
            self.host_network(entry, &key.field("networks"), spec);
        }
        if let Some(entry) = service.entry("ports") {
            let key = key.field("ports");
            if matches!(spec.network_mode, NetworkMode::Networks | NetworkMode::Bridge) {
                spec.ports = self.ports(entry, &key);
                if spec.network_mode == NetworkMode::Bridge {
                    self.check_bridge_ports(entry, &key, &spec.ports);
                }
            } else if entry.node.as_sequence().is_some_and(|ports| !ports.is_empty()) {
                let message = "ports cannot be published with this `network_mode`";
                let hint = match spec.network_mode {
                    NetworkMode::Host => "remove `ports`: the program listens on the node itself",
                    NetworkMode::Service(_) => "publish the ports by the service whose network is shared",
                    NetworkMode::None | NetworkMode::Bridge | NetworkMode::Networks => {
                        "remove `ports`, or `network_mode`"
                    }
                };
                self.report().error(Complaint::Conflict, entry.key, &key, message).hint(hint);
            }
        }
        if spec.network_mode == NetworkMode::Networks {
            match networks {
                None => {
                    if let Ok(default) = "default".parse() {
                        self.networks.insert("default".to_owned(), ());
                        spec.networks.insert(default, NetworkAttachment::default());
                    }
                }
                Some(entry) => spec.networks = self.attachments(entry, &key.field("networks"), spec.mode),
            }
        }
        if let Some(entry) = service.entry("mac_address") {
            self.first_mac_address(entry, &key.field("mac_address"), spec);
        }
    }

    /// The nodes' own network, which a file may declare like one of the cluster's.
    fn is_host_network(&self, name: &str) -> bool {
        let networks = self.root.get("networks").and_then(Node::as_mapping);
        let Some(network) = networks.and_then(|networks| networks.get(name)).and_then(Node::as_mapping)
        else {
            return false;
        };
        let says = |key: &str, word: &str| network.get(key).and_then(Node::as_str) == Some(word);
        let wharf = network.get("x-wharf").and_then(Node::as_mapping);
        let backend = wharf.and_then(|wharf| wharf.get("backend")).and_then(Node::as_str);
        let external = network.entry("external").and_then(values::flag) == Some(true);
        let called = network.get("name").and_then(Node::as_str).unwrap_or(name);
        says("driver", "host") || backend == Some("host") || external && called == "host"
    }

    /// A service on the nodes' own network is on no other.
    fn host_network(&mut self, entry: &Entry, key: &Key<'_>, spec: &mut ServiceSpec) {
        let names = || values::entries(entry);
        let Some((host, place)) = names().find(|(name, _)| self.is_host_network(name)) else { return };
        if let Some((other, _)) = names().find(|(name, _)| *name != host) {
            let message = format!(
                "a service on the nodes' own network `{host}` cannot be on `{other}` as well: it has no network of its own"
            );
            self.report().error(Complaint::Conflict, place.key, &key.field(host), message).hint(
                "keep one of them; from the nodes' own network published ports of other services are reached",
            );
        }
        for (field, value) in values::entries(place) {
            let message = "on the nodes' own network a service has no addresses and names to choose";
            let key = key.field(host);
            self.report()
                .unsupported(value.key, &key.field(field), message)
                .hint("remove it: the service is found by its name where its node is");
        }
        spec.network_mode = NetworkMode::Host;
    }

    /// The engine's own bridge is no network of the cluster: gateways do not reach it.
    fn check_bridge_ports(&mut self, entry: &Entry, key: &Key<'_>, ports: &[PortSpec]) {
        if ports.iter().any(|port| port.mode == PublishMode::Ingress) {
            let message =
                "gateways do not reach the engine's `bridge`: its ports are published by the task's node";
            self.report()
                .unsupported(entry.key, key, message)
                .hint("write `{target: 80, published: 8080, mode: host}`, or remove `network_mode`");
        }
    }

    /// A service's hardware address is that on the network it is connected to first.
    fn first_mac_address(&mut self, entry: &Entry, key: &Key<'_>, spec: &mut ServiceSpec) {
        let Some(mac) = self.mac_address(entry, key, spec.mode) else { return };
        let first = spec.networks.iter().max_by_key(|(name, on)| (on.priority, Reverse(*name)));
        let Some(first) = first.map(|(name, _)| name.clone()) else {
            let message =
                "there is no network of the cluster on which the service could have a hardware address";
            self.report()
                .unsupported(entry.key, key, message)
                .hint("remove `mac_address`, or put the service on a network");
            return;
        };
        if let Some(on) = spec.networks.get_mut(&first) {
            match on.endpoint.mac_address {
                Some(other) if other != mac => {
                    let message = format!("`networks.{first}.mac_address` says {other}, and this says {mac}");
                    self.report()
                        .error(Complaint::Conflict, entry.place(), key, message)
                        .hint("keep the one of the network");
                }
                Some(_) | None => on.endpoint.mac_address = Some(mac),
            }
        }
    }

    fn mac_address(&mut self, entry: &Entry, key: &Key<'_>, mode: Mode) -> Option<Mac> {
        let text = entry.node.as_str().filter(|text| !text.is_empty())?;
        self.check_single(entry, key, mode, "hardware address");
        match text.parse::<Mac>() {
            Ok(mac) if mac.0[0] & 1 == 0 => Some(mac),
            Ok(mac) => {
                let message = format!("`{mac}` is the hardware address of a group");
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, message)
                    .hint("its first pair of digits must be even, such as `02`");
                None
            }
            Err(problem) => {
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, problem)
                    .hint("write for example `02:42:ac:11:65:43`");
                None
            }
        }
    }

    pub(super) fn check_single(&mut self, entry: &Entry, key: &Key<'_>, mode: Mode, what: &str) {
        let several = match mode {
            Mode::Replicated { replicas: 0 | 1 } => return,
            Mode::Replicated { replicas } => format!("the {replicas} tasks of this service"),
            Mode::Global => "the tasks of a service with one on every node".to_owned(),
        };
        let message = format!("{several} cannot have one {what}");
        self.report()
            .error(Complaint::Conflict, entry.key, key, message)
            .hint(format!("remove `{}`, or run one replica", key.name()));
    }

    fn network_mode(&mut self, service: &ServiceName, entry: &Entry, key: &Key<'_>) -> NetworkMode {
        let mode = entry.node.as_str().unwrap_or_default();
        match mode {
            "" | "default" => NetworkMode::Networks,
            "host" => NetworkMode::Host,
            "none" => NetworkMode::None,
            "bridge" => {
                let message = "the engine's `bridge` is a network of each node by itself: other services are not found there";
                self.report()
                    .warn(Complaint::Note, entry.place(), key, message)
                    .hint("remove `network_mode`: the service is then on the app's `default` network");
                NetworkMode::Bridge
            }
            _ => match mode.strip_prefix("service:") {
                Some(name) => match self.reference(name, entry.place(), key, true) {
                    Some(target) if self.is_outside(&target) => {
                        let message =
                            format!("`{target}` runs outside the cluster and has no network to share");
                        self.report()
                            .error(Complaint::Conflict, entry.place(), key, message)
                            .hint("remove `network_mode`");
                        NetworkMode::None
                    }
                    Some(target) => {
                        self.edge(service, &target, entry.place());
                        NetworkMode::Service(target)
                    }
                    None => NetworkMode::None,
                },
                None if mode.starts_with("container:") => {
                    self.report()
                        .unsupported(
                            entry.place(),
                            key,
                            "a container of one node cannot be named from a cluster",
                        )
                        .hint("write `network_mode: service:NAME`");
                    NetworkMode::None
                }
                None => {
                    let message = format!("`{mode}` is not a network mode");
                    self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(
                        "`host`, `none`, `service:NAME`; networks of the app are listed under `networks`",
                    );
                    NetworkMode::None
                }
            },
        }
    }

    pub(super) fn attachments(
        &mut self,
        entry: &Entry,
        key: &Key<'_>,
        mode: Mode,
    ) -> BTreeMap<NetworkName, NetworkAttachment> {
        let mut attachments = BTreeMap::new();
        for (name, entry) in values::entries(entry) {
            let key = key.field(name);
            if name != "default" && !self.declared("networks", name, entry.key, &key) {
                continue;
            }
            let Some(network) = values::named::<NetworkName>(self.report(), name, entry.key, &key) else {
                continue;
            };
            self.networks.insert(name.to_owned(), ());
            let mut attachment = NetworkAttachment::default();
            for (field, value) in values::entries(entry) {
                let key = key.field(field);
                match field {
                    "aliases" => attachment.aliases = values::strings(value),
                    "priority" => {
                        let bounds = i64::from(i32::MIN)..=i64::from(i32::MAX);
                        attachment.priority =
                            values::whole(self.report(), value, &key, bounds).unwrap_or_default();
                    }
                    "ipv4_address" => {
                        let address =
                            values::parsed(self.report(), value, &key, "an IPv4 address", "10.5.0.9");
                        attachment.ipv4_address = address;
                        self.check_single(value, &key, mode, "address");
                    }
                    "ipv6_address" => {
                        attachment.ipv6_address = self.ipv6_address(value, &key, mode);
                    }
                    "mac_address" => {
                        attachment.endpoint.mac_address = self.mac_address(value, &key, mode);
                    }
                    "interface_name" => attachment.endpoint.interface_name = self.interface_name(value, &key),
                    "driver_opts" => attachment.endpoint.driver_opts = values::text_map(value),
                    "gw_priority" => {
                        let bounds = i64::from(i32::MIN)..=i64::from(i32::MAX);
                        attachment.endpoint.gw_priority =
                            values::whole(self.report(), value, &key, bounds).unwrap_or_default();
                    }
                    "link_local_ips" => {
                        attachment.endpoint.link_local_ips = self.link_local_addresses(value, &key);
                    }
                    _ => self.unforeseen(value, &key),
                }
            }
            attachments.insert(network, attachment);
        }
        attachments
    }

    fn interface_name(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let name = values::full_text(self.report(), entry, key)?;
        let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        if name.len() <= 15 && name.chars().all(legal) && !matches!(name.as_str(), "." | ".." | "lo") {
            return Some(name);
        }
        let message = format!("`{name}` is not a name of a network interface");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("use at most 15 letters, digits, `-`, `_` and `.`");
        None
    }

    fn link_local_addresses(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            match text.parse::<IpAddr>() {
                Ok(IpAddr::V6(address)) if !address.is_unicast_link_local() => {
                    let message = format!("{address} is no link-local address");
                    self.report()
                        .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                        .hint("choose one of fe80::/10, or write `ipv6_address`");
                }
                Ok(address) => addresses.push(address),
                Err(_) => {
                    let message = format!("`{text}` is not an IP address");
                    self.report()
                        .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                        .hint("write for example `169.254.10.1`");
                }
            }
        }
        addresses
    }

    fn ports(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<PortSpec> {
        let mut ports = Vec::new();
        for (index, item, port) in values::mappings(entry) {
            if let Some(port) = self.port(port, item.span, &key.item(index)) {
                ports.push(port);
            }
        }
        ports
    }

    fn port(&mut self, port: &Mapping, span: Span, key: &Key<'_>) -> Option<PortSpec> {
        let Some(target) = port.entry("target") else {
            self.report()
                .error(Complaint::MissingKey, span, key, "a port needs `target`, the port in the container")
                .hint("name it: `target: 80`");
            return None;
        };
        let target = values::whole(self.report(), target, &key.field("target"), 1..=65_535)?;
        let mut spec = PortSpec {
            target,
            published: None,
            published_to: None,
            protocol: Protocol::default(),
            mode: PublishMode::default(),
            host_ip: None,
            name: None,
            app_protocol: None,
        };
        for (field, value) in port.iter() {
            let key = key.field(field);
            let text = value.node.as_str().unwrap_or_default();
            match field {
                "target" => {}
                "published" => (spec.published, spec.published_to) = self.published(value, &key),
                "protocol" => match text {
                    "" | "tcp" => {}
                    "udp" => spec.protocol = Protocol::Udp,
                    "sctp" => {
                        self.report()
                            .unsupported(value.place(), &key, "SCTP ports are not supported")
                            .hint("use `tcp` or `udp`");
                        return None;
                    }
                    _ => {
                        let message = format!("`{text}` is not a protocol of a port");
                        self.report()
                            .error(Complaint::InvalidValue, value.place(), &key, message)
                            .hint("`tcp` or `udp`");
                    }
                },
                "mode" => match text {
                    "" | "ingress" => {}
                    "host" => spec.mode = PublishMode::Host,
                    _ => {
                        let message = format!("`{text}` is not a mode of a port");
                        self.report()
                            .error(Complaint::InvalidValue, value.place(), &key, message)
                            .hint("`ingress` (every gateway) or `host` (the task's node)");
                    }
                },
                "host_ip" => {
                    if !text.is_empty() {
                        spec.host_ip =
                            values::parsed(self.report(), value, &key, "an IP address", "127.0.0.1");
                    }
                }
                "name" => spec.name = values::text(value),
                "app_protocol" => spec.app_protocol = values::text(value),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(spec)
    }

    /// A port, or the first and the last of those of which the cluster chooses one.
    fn published(&mut self, entry: &Entry, key: &Key<'_>) -> (Option<u16>, Option<u16>) {
        let Some(text) = entry.node.as_str().filter(|text| !text.is_empty()) else { return (None, None) };
        if let Some((from, to)) = text.split_once('-')
            && let (Ok(from), Ok(to)) = (from.trim().parse::<u16>(), to.trim().parse::<u16>())
        {
            if from == 0 || from > to {
                let message = format!("`{text}` is not a range of ports");
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, message)
                    .hint("write the lower one first, such as `8000-8010`");
                return (None, None);
            }
            return (Some(from), Some(to).filter(|to| *to > from));
        }
        // Port 0 means any.
        let port = values::whole::<u16>(self.report(), entry, key, 0..=65_535).filter(|port| *port > 0);
        (port, None)
    }

    /// The networks that services are on.
    pub(super) fn network_specs(&mut self) -> BTreeMap<NetworkName, NetworkSpec> {
        let mut specs = BTreeMap::new();
        let group = Key::Root.field("networks");
        for name in std::mem::take(&mut self.networks).into_keys() {
            let Ok(network) = name.parse::<NetworkName>() else { continue };
            if self.is_host_network(&name) {
                continue;
            }
            let declared = self.root.get("networks").and_then(Node::as_mapping);
            let spec = match declared.and_then(|networks| networks.entry(&name)) {
                Some(entry) => self.network_spec(entry, &group.field(&name)),
                None => NetworkSpec::default(),
            };
            specs.insert(network, spec);
        }
        specs
    }

    fn network_spec(&mut self, entry: &Entry, key: &Key<'_>) -> NetworkSpec {
        let mut spec = NetworkSpec::default();
        self.backend(entry, key, &mut spec);
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "name" => spec.name = values::text(value).filter(|name| !name.is_empty()),
                "external" => spec.external = values::flag(value).unwrap_or_default(),
                "internal" => spec.internal = values::flag(value).unwrap_or_default(),
                "attachable" => {
                    spec.attachable = values::flag(value).unwrap_or_default();
                    if spec.attachable {
                        let message = "containers made by hand (`docker run --network …`) get no address on it, \
                                       which may be a task's on another node";
                        self.report().warn(Complaint::Note, value.key, &key, message).hint(
                            "`docker run --network container:NAME` puts one where a task of the same machine is",
                        );
                    }
                }
                "labels" => spec.labels = values::text_map(value),
                "driver_opts" => spec.driver_opts = self.network_options(value, &key, &mut spec.backend),
                // With the backend, before.
                "driver" | "x-wharf" => {}
                "ipam" => self.addresses(value, &key, &mut spec),
                "enable_ipv6" => spec.enable_ipv6 = values::flag(value).unwrap_or_default(),
                "enable_ipv4" if values::flag(value) == Some(false) => {
                    let message =
                        "a network of the cluster has IPv4 in any case; IPv6 addresses follow from it";
                    self.report()
                        .unsupported(value.key, &key, message)
                        .hint("remove `enable_ipv4`; with `enable_ipv6: true` the network has both");
                }
                "enable_ipv4" => {}
                _ => self.unforeseen(value, &key),
            }
        }
        let described = ["driver", "driver_opts", "ipam", "internal", "attachable", "labels", "x-wharf"];
        contradictions::described_elsewhere(self.report(), entry, key, &described);
        self.check_ipv6(entry, key, &spec);
        self.check_macvlan(entry, key, &spec);
        if spec.external && matches!(spec.name.as_deref(), Some("none" | "bridge")) {
            let name = spec.name.as_deref().unwrap_or_default();
            let message = format!("the engine's network `{name}` is no network of the cluster");
            self.report()
                .unsupported(entry.key, key, message)
                .hint("write `network_mode: bridge` or `network_mode: none` in the service");
        }
        spec
    }

    /// How the network's packets travel: what `driver` means to a cluster, and what `x-wharf` says.
    fn backend(&mut self, entry: &Entry, key: &Key<'_>, spec: &mut NetworkSpec) {
        let Some(network) = entry.node.as_mapping() else { return };
        let driver =
            network.entry("driver").map(|driver| (driver, self.network_driver(driver, &key.field("driver"))));
        spec.backend = driver.as_ref().and_then(|(_, backend)| *backend);
        let wharf = network.entry("x-wharf");
        let own = key.field("x-wharf");
        for (field, value) in wharf.into_iter().flat_map(values::entries) {
            let key = own.field(field);
            let text = value.node.as_str().unwrap_or_default();
            match field {
                "backend" => {
                    let Ok(backend) = text.parse::<Backend>() else { continue };
                    let named = driver
                        .as_ref()
                        .filter(|(driver, _)| driver.node.as_str().is_some_and(|d| !d.is_empty()));
                    if let Some((driver, meant)) = named
                        && meant.map_or(!backend.is_general(), |meant| meant != backend)
                    {
                        let said = driver.node.as_str().unwrap_or_default();
                        let message = format!("`driver: {said}` and `backend: {backend}` exclude each other");
                        self.report()
                            .error(Complaint::Conflict, value.place(), &key, message)
                            .hint("keep one of them");
                        self.report().relate(driver.key, "`driver` is here");
                    }
                    // Of two that exclude each other the one that everything else may be about.
                    if spec.backend != Some(Backend::Macvlan) {
                        spec.backend = Some(backend);
                    }
                }
                "parent" => spec.parent = self.parent(value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        let options = network.entry("driver_opts").into_iter().flat_map(values::entries);
        if let Some((_, option)) = options.into_iter().find(|(name, _)| *name == "parent")
            && spec.backend == Some(Backend::Macvlan)
        {
            let options = key.field("driver_opts");
            let parent = self.parent(option, &options.field("parent"));
            if spec.parent.as_ref().is_some_and(|other| Some(other) != parent.as_ref()) {
                let message = "the network's parent is given twice, and differently";
                self.report()
                    .error(Complaint::Conflict, option.place(), &options.field("parent"), message)
                    .hint("keep one of them");
            }
            spec.parent = parent;
        }
    }

    /// What a driver of the engine means to a cluster; nothing for the cluster's default.
    fn network_driver(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Backend> {
        let driver = entry.node.as_str().unwrap_or_default();
        let hint = match driver {
            // What a cluster has is both: a bridge on each node, joined over nodes.
            "" | "default" | "bridge" | "overlay" => return None,
            "macvlan" => return Some(Backend::Macvlan),
            "none" => "write `network_mode: none` in the service",
            "ipvlan" => {
                "use `macvlan`, whose containers are on the nodes' segment with hardware addresses of their own"
            }
            _ => {
                "leave it out: networks of the cluster reach every node; `macvlan` is on the nodes' own segment"
            }
        };
        let message = format!("the network driver `{driver}` is not supported");
        self.report().unsupported(entry.place(), key, message).hint(hint);
        None
    }

    /// The interface of the nodes that a macvlan network is on: `eth0`, or `eth0.100`.
    fn parent(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let name = self.interface_name(entry, key)?;
        let vlan = name.rsplit_once('.').map(|(_, vlan)| vlan);
        if vlan.is_some_and(|vlan| !vlan.parse().is_ok_and(|number: u16| (1..=4094).contains(&number))) {
            let message = format!("`{name}` names no VLAN: they are numbered 1 to 4094");
            self.report()
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write for example `eth0.100`");
            return None;
        }
        Some(name)
    }

    /// A network on the nodes' own segment needs to know which, and what of it is the cluster's.
    fn check_macvlan(&mut self, entry: &Entry, key: &Key<'_>, spec: &NetworkSpec) {
        let is_macvlan = spec.backend == Some(Backend::Macvlan);
        if !is_macvlan {
            if spec.parent.is_some() {
                let message = "only a `macvlan` network has a parent interface";
                self.report()
                    .error(Complaint::Conflict, entry.key, key, message)
                    .hint("add `backend: macvlan`, or remove `parent`");
            }
            return;
        }
        if spec.external {
            return;
        }
        let missing = |typing: &mut Self, message: &str, hint: &str| {
            typing.report().error(Complaint::MissingKey, entry.key, key, message).hint(hint);
        };
        let fields = |field: &str| entry.node.as_mapping().and_then(|network| network.entry(field));
        let given = ["x-wharf", "driver_opts"].into_iter().filter_map(fields);
        let given = given.filter_map(|entry| entry.node.as_mapping()).any(|fields| fields.contains("parent"));
        if !given {
            let message = "a `macvlan` network needs the interface of the nodes that it is on";
            missing(self, message, "add `driver_opts: {parent: eth0}`, or `eth0.100` for a VLAN on it");
        }
        if spec.subnet.is_none() {
            let message = "a `macvlan` network is on the nodes' own segment: its addresses must be given";
            let hint = "add `ipam: {config: [{subnet: 192.168.1.0/24, gateway: 192.168.1.1, ip_range: 192.168.1.128/26}]}`";
            missing(self, message, hint);
        } else if spec.ip_range.is_none() {
            let message = "without `ip_range` any address of the segment may be given to a task, also one that a machine there has";
            self.report()
                .warn(Complaint::Note, entry.key, key, message)
                .hint("add an `ip_range` that nobody else gives out addresses of");
        }
        if spec.internal {
            let message = "a `macvlan` network is no inner one: containers are on the nodes' own segment";
            self.report()
                .unsupported(entry.key, key, message)
                .hint("remove `internal`; without `gateway` containers reach the segment only");
        }
    }

    /// Options of the engine's bridge are the engine's; what they would take from the cluster is refused.
    fn network_options(
        &mut self,
        entry: &Entry,
        key: &Key<'_>,
        backend: &mut Option<Backend>,
    ) -> BTreeMap<String, String> {
        let mut options = BTreeMap::new();
        for (name, value) in values::entries(entry) {
            let key = key.field(name);
            let text = value.node.scalar_text().unwrap_or_default();
            let refused = match name {
                // Swarm's word for it, whose value means nothing there either.
                "encrypted" if matches!(*backend, None | Some(Backend::Wireguard)) => {
                    if text != "false" {
                        let message = "the network's packets are encrypted by WireGuard between the nodes";
                        self.report()
                            .warn(Complaint::Note, value.key, &key, message)
                            .hint("`x-wharf: {backend: wireguard}` says the same");
                        *backend = Some(Backend::Wireguard);
                    }
                    continue;
                }
                "encrypted" => Some((
                    "networks of this backend are not encrypted",
                    "remove it, or choose `x-wharf: {backend: wireguard}`",
                )),
                // With the backend, before.
                "parent" if *backend == Some(Backend::Macvlan) => continue,
                "macvlan_mode" if *backend == Some(Backend::Macvlan) && text == "bridge" => continue,
                "macvlan_mode" if *backend == Some(Backend::Macvlan) => Some((
                    "containers of a cluster's network reach each other on a node as well",
                    "remove it: it is `bridge`",
                )),
                "com.docker.network.bridge.name" => {
                    Some(("the bridges of the cluster's networks are named by the cluster", "remove it"))
                }
                _ if name.starts_with("com.docker.network.driver.overlay.") => {
                    Some(("this option is of Docker's own overlay networks", "remove it"))
                }
                _ => None,
            };
            if let Some((message, hint)) = refused {
                self.report().unsupported(value.key, &key, message).hint(hint);
                continue;
            }
            if !name.starts_with("com.docker.network.") {
                let message = format!("the engine's bridge knows no option `{name}`, and drops it");
                self.report().warn(Complaint::Note, value.key, &key, message).hint(
                    "its options begin with `com.docker.network.`, such as `com.docker.network.driver.mtu`",
                );
            }
            options.extend(value.node.scalar_text().map(|text| (name.to_owned(), text)));
        }
        options
    }

    fn addresses(&mut self, entry: &Entry, key: &Key<'_>, spec: &mut NetworkSpec) {
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "driver" => {
                    let driver = value.node.as_str().unwrap_or_default();
                    if !matches!(driver, "" | "default") {
                        let message = format!("the address driver `{driver}` is not supported");
                        self.report().unsupported(value.place(), &key, message).hint("leave it out");
                    }
                }
                "options" => {
                    if value.node.as_mapping().is_some_and(|options| !options.is_empty()) {
                        let message = "options of address drivers are not supported";
                        self.report().unsupported(value.key, &key, message).hint("remove them");
                    }
                }
                "config" => {
                    for (index, item, pool) in values::mappings(value) {
                        let key = key.item(index);
                        if ipv6::is_pool(pool) {
                            self.pool6(pool, item.span, &key, spec);
                        } else if spec.subnet.is_none() {
                            self.pool(pool, item.span, &key, spec);
                        } else if !pool.is_empty() {
                            let message =
                                "a network has one IPv4 subnet, over which all its nodes are reached";
                            self.report().unsupported(item.span, &key, message).hint("keep the first one");
                        }
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
    }

    fn pool(&mut self, pool: &Mapping, span: Span, key: &Key<'_>, spec: &mut NetworkSpec) {
        let net = |typing: &mut Self, value: &Entry, key: &Key<'_>| {
            let what = "a subnet such as `10.5.0.0/24`";
            match values::parsed::<IpNet>(typing.report(), value, key, what, "10.5.0.0/24") {
                Some(IpNet::V4(net)) => Some(net.trunc()),
                Some(IpNet::V6(_)) => {
                    typing
                        .report()
                        .error(Complaint::Conflict, value.place(), key, "an IPv6 subnet beside an IPv4 one")
                        .hint("give it a pool of its own: `- subnet: …` with what belongs to it");
                    None
                }
                None => None,
            }
        };
        for (field, value) in pool.iter() {
            let key = key.field(field);
            match field {
                "subnet" => spec.subnet = net(self, value, &key),
                "ip_range" => spec.ip_range = net(self, value, &key),
                "gateway" => {
                    spec.gateway = values::parsed(self.report(), value, &key, "an IPv4 address", "10.5.0.9");
                }
                "aux_addresses" => {
                    for (name, value) in values::entries(value) {
                        let address = values::parsed(
                            self.report(),
                            value,
                            &key.field(name),
                            "an IPv4 address",
                            "10.5.0.9",
                        );
                        spec.aux_addresses.extend(address.map(|address| (name.to_owned(), address)));
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
        self.check_pool(pool, span, key, spec);
    }

    /// Everything lies in the subnet, and no two things in one place.
    fn check_pool(&mut self, pool: &Mapping, span: Span, key: &Key<'_>, spec: &mut NetworkSpec) {
        let place = |field: &str| pool.entry(field).map_or(span, Entry::place);
        let Some(subnet) = spec.subnet else {
            if let Some(field) = ["gateway", "ip_range", "aux_addresses"].iter().find(|f| pool.contains(f))
                && !pool.contains("subnet")
            {
                let message = format!("`{field}` says a part of a subnet that is not given");
                self.report()
                    .error(Complaint::MissingKey, place(field), key, message)
                    .hint("add `subnet: 10.5.0.0/24`");
            }
            (spec.gateway, spec.ip_range) = (None, None);
            spec.aux_addresses.clear();
            return;
        };
        let on_segment = spec.backend == Some(Backend::Macvlan);
        if subnet.prefix_len() > 26 && !on_segment {
            let message = format!("the subnet {subnet} is too small: each node takes a part of it");
            self.report().warn(Complaint::Note, span, key, message).hint("use /24 or larger");
        }
        let outside = |address: &Ipv4Addr| {
            !subnet.contains(address) || *address == subnet.network() || *address == subnet.broadcast()
        };
        let single = spec.gateway.iter().map(|gateway| ("gateway", *gateway));
        let all = single.chain(spec.aux_addresses.values().map(|address| ("aux_addresses", *address)));
        let wrong: Vec<_> = all.filter(|(_, address)| outside(address)).collect();
        for (field, address) in wrong {
            let message = format!("{address} is not an address in the subnet {subnet}");
            self.report()
                .error(Complaint::InvalidValue, place(field), &key.field(field), message)
                .hint(format!("choose one of {subnet}, not its first or last"));
        }
        if let Some(range) = spec.ip_range.filter(|range| !subnet.contains(range)) {
            let message = format!("the range {range} is not in the subnet {subnet}");
            self.report()
                .error(Complaint::InvalidValue, place("ip_range"), &key.field("ip_range"), message)
                .hint(format!("choose a part of {subnet}"));
        }
        if let Some(gateway) = spec.gateway {
            if let Some((name, _)) = spec.aux_addresses.iter().find(|(_, address)| **address == gateway) {
                let message = format!("{gateway} is the gateway and `{name}` at once");
                self.report()
                    .error(Complaint::Conflict, place("gateway"), &key.field("gateway"), message)
                    .hint("give one of them another address");
            }
            if !on_segment {
                let message = format!(
                    "each node has a gateway of its own on the network: {gateway} is that of the first one"
                );
                self.report().warn(Complaint::Note, place("gateway"), &key.field("gateway"), message);
            }
        }
    }
}
