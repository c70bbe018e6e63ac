//! How a service is connected: its networks, its ports, and the networks themselves.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net};
use wharf_model::{
    Mode, NetworkAttachment, NetworkMode, NetworkName, NetworkSpec, PortSpec, Protocol, PublishMode,
    ServiceName, ServiceSpec,
};

use super::{Typing, values};
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
        if let Some(entry) = service.entry("ports") {
            let key = key.field("ports");
            if spec.network_mode == NetworkMode::Networks {
                spec.ports = self.ports(entry, &key);
            } else if entry.node.as_sequence().is_some_and(|ports| !ports.is_empty()) {
                let message = "ports cannot be published with this `network_mode`";
                let hint = match spec.network_mode {
                    NetworkMode::Host => "remove `ports`: the program listens on the node itself",
                    NetworkMode::Service(_) => "publish the ports by the service whose network is shared",
                    NetworkMode::None | NetworkMode::Networks => "remove `ports`, or `network_mode`",
                };
                self.report().error(Complaint::Conflict, entry.key, &key, message).hint(hint);
            }
        }
        if spec.network_mode != NetworkMode::Networks {
            return;
        }
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

    fn network_mode(&mut self, service: &ServiceName, entry: &Entry, key: &Key<'_>) -> NetworkMode {
        let mode = entry.node.as_str().unwrap_or_default();
        match mode {
            "" | "default" => NetworkMode::Networks,
            "host" => NetworkMode::Host,
            "none" => NetworkMode::None,
            "bridge" => {
                self.report()
                    .unsupported(entry.place(), key, "the engine's `bridge` does not reach other nodes")
                    .hint("remove `network_mode`: the service is then on the app's `default` network");
                NetworkMode::Networks
            }
            _ => match mode.strip_prefix("service:") {
                Some(name) => match self.reference(name, entry.place(), key, true) {
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

    fn attachments(
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
                        let address = values::parsed(self.report(), value, &key, "an IPv4 address");
                        attachment.ipv4_address = address;
                        if !matches!(mode, Mode::Replicated { replicas: 0 | 1 }) {
                            let message = "several tasks cannot have one address";
                            self.report()
                                .error(Complaint::Conflict, value.key, &key, message)
                                .hint("remove `ipv4_address`, or run one replica");
                        }
                    }
                    "ipv6_address" | "link_local_ips" => {
                        self.report()
                            .unsupported(value.key, &key, "networks of the cluster are IPv4")
                            .hint("remove it; a fixed address is given with `ipv4_address`");
                    }
                    "mac_address" | "interface_name" | "driver_opts" | "gw_priority" => {
                        let message = format!("`{field}` of a service's network is not supported");
                        let hint = match field {
                            "gw_priority" => "use `priority`: the network with the highest is the way out",
                            _ => "remove it",
                        };
                        self.report().unsupported(value.key, &key, message).hint(hint);
                    }
                    _ => self.unforeseen(value, &key),
                }
            }
            attachments.insert(network, attachment);
        }
        attachments
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
            self.report().error(
                Complaint::MissingKey,
                span,
                key,
                "a port needs `target`, the port in the container",
            );
            return None;
        };
        let target = values::whole(self.report(), target, &key.field("target"), 1..=65_535)?;
        let mut spec = PortSpec {
            target,
            published: None,
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
                "published" => spec.published = self.published(value, &key),
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
                        spec.host_ip = values::parsed(self.report(), value, &key, "an IP address");
                    }
                }
                "name" => spec.name = values::text(value),
                "app_protocol" => spec.app_protocol = values::text(value),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(spec)
    }

    fn published(&mut self, entry: &Entry, key: &Key<'_>) -> Option<u16> {
        let text = entry.node.as_str().filter(|text| !text.is_empty())?;
        if let Some((from, to)) = text.split_once('-')
            && from.parse::<u16>().is_ok()
            && to.parse::<u16>().is_ok()
        {
            let message =
                format!("one of the ports {text} cannot be chosen: every gateway publishes the same one");
            self.report()
                .unsupported(entry.place(), key, message)
                .hint(format!("choose one, such as {from}, or none: then the cluster does"));
            return None;
        }
        // Port 0 means any.
        values::whole::<u16>(self.report(), entry, key, 0..=65_535).filter(|port| *port > 0)
    }

    /// The networks that services are on.
    pub(super) fn network_specs(&mut self) -> BTreeMap<NetworkName, NetworkSpec> {
        let mut specs = BTreeMap::new();
        let group = Key::Root.field("networks");
        for name in std::mem::take(&mut self.networks).into_keys() {
            let Ok(network) = name.parse::<NetworkName>() else { continue };
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
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "name" => spec.name = values::text(value).filter(|name| !name.is_empty()),
                "external" => spec.external = values::flag(value).unwrap_or_default(),
                "internal" => spec.internal = values::flag(value).unwrap_or_default(),
                "attachable" => spec.attachable = values::flag(value).unwrap_or_default(),
                "labels" => spec.labels = values::text_map(value),
                "driver_opts" => spec.driver_opts = values::text_map(value),
                "driver" => self.network_driver(value, &key),
                "ipam" => spec.subnet = self.subnet(value, &key),
                "enable_ipv6" if values::flag(value) == Some(true) => {
                    self.report()
                        .unsupported(value.key, &key, "networks of the cluster are IPv4")
                        .hint("remove `enable_ipv6`");
                }
                "enable_ipv4" if values::flag(value) == Some(false) => {
                    self.report()
                        .unsupported(value.key, &key, "networks of the cluster are IPv4")
                        .hint("remove `enable_ipv4`");
                }
                "enable_ipv4" | "enable_ipv6" => {}
                _ => self.unforeseen(value, &key),
            }
        }
        let described = ["driver", "driver_opts", "ipam", "internal", "attachable", "labels"];
        self.check_external(entry, key, spec.external, &described);
        if spec.external && matches!(spec.name.as_deref(), Some("host" | "none" | "bridge")) {
            let name = spec.name.as_deref().unwrap_or_default();
            let message = format!("the engine's network `{name}` is no network of the cluster");
            self.report()
                .unsupported(entry.key, key, message)
                .hint("write `network_mode: host` or `network_mode: none` in the service");
        }
        spec
    }

    fn network_driver(&mut self, entry: &Entry, key: &Key<'_>) {
        let driver = entry.node.as_str().unwrap_or_default();
        let hint = match driver {
            // What a cluster has is both: a bridge on each node, joined over nodes.
            "" | "default" | "bridge" | "overlay" => return,
            "host" | "none" => "write `network_mode: host` or `network_mode: none` in the service",
            _ => "leave it out: networks of the cluster reach every node",
        };
        let message = format!("the network driver `{driver}` is not supported");
        self.report().unsupported(entry.place(), key, message).hint(hint);
    }

    fn subnet(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Ipv4Net> {
        let mut subnet = None;
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
                        self.report()
                            .unsupported(value.key, &key, "options of address drivers are not supported")
                            .hint("leave them out: the cluster gives the addresses");
                    }
                }
                "config" => {
                    for (index, item, pool) in values::mappings(value) {
                        let found = self.pool(pool, item.span, &key.item(index));
                        match (subnet, found) {
                            (Some(_), Some(_)) => {
                                self.report()
                                    .unsupported(item.span, &key.item(index), "a network has one subnet")
                                    .hint("keep the first one");
                            }
                            (None, found) => subnet = found,
                            (Some(_), None) => {}
                        }
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
        subnet
    }

    fn pool(&mut self, pool: &Mapping, span: Span, key: &Key<'_>) -> Option<Ipv4Net> {
        let mut subnet = None;
        for (field, value) in pool.iter() {
            let key = key.field(field);
            match field {
                "subnet" => match values::parsed::<IpNet>(
                    self.report(),
                    value,
                    &key,
                    "a subnet such as `10.5.0.0/24`",
                ) {
                    Some(IpNet::V4(net)) => subnet = Some(net.trunc()),
                    Some(IpNet::V6(_)) => {
                        self.report()
                            .unsupported(value.place(), &key, "networks of the cluster are IPv4")
                            .hint("remove the IPv6 subnet");
                    }
                    None => {}
                },
                "ip_range" | "gateway" | "aux_addresses" => {
                    let message =
                        format!("`{field}` is not supported: each node has its own range and gateway");
                    self.report().unsupported(value.key, &key, message).hint("give only `subnet`");
                }
                _ => self.unforeseen(value, &key),
            }
        }
        if let Some(net) = subnet
            && net.prefix_len() > 26
        {
            let message = format!("the subnet {net} is too small: each node takes a part of it");
            self.report().warn(Complaint::Note, span, key, message).hint("use /24 or larger");
        }
        subnet
    }
}
