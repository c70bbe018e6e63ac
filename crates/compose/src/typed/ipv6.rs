//! IPv6 on networks: the subnet, and what services ask for in it.
//!
//! Everybody's IPv6 address follows from the IPv4 one, so that a network needs no range and has a gateway per node; fixed addresses
//! are for who needs one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use wharf_model::{Backend, Ipv6Addresses, Mode, NetworkName, NetworkSpec, ServiceName, ServiceSpec};

use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node};

/// The longest prefix that leaves room for an IPv4 address.
const LONGEST: u8 = 96;
/// As people write it.
const EXAMPLE: &str = "fd5a:7c1e:9b02::/64";

/// Whether a pool of a network is one of IPv6 addresses.
pub(super) fn is_pool(pool: &Mapping) -> bool {
    let text = |field: &str| pool.get(field).and_then(Node::as_str).unwrap_or_default();
    let subnet = matches!(text("subnet").parse(), Ok(IpNet::V6(_)));
    let gateway = || text("subnet").is_empty() && matches!(text("gateway").parse(), Ok(IpAddr::V6(_)));
    subnet || gateway()
}

impl Typing<'_, '_> {
    /// A pool of IPv6 addresses.
    pub(super) fn pool6(&mut self, pool: &Mapping, span: Span, key: &Key<'_>, spec: &mut NetworkSpec) {
        if spec.subnet6.is_some() {
            let message = "a network has one IPv6 subnet, over which all its nodes are reached";
            self.report().unsupported(span, key, message).hint("keep the first one");
            return;
        }
        let subnet = pool.entry("subnet").and_then(|entry| Some((entry, entry.node.as_str()?.parse().ok()?)));
        let Some((place, subnet)) = subnet.map(|(entry, net): (&Entry, Ipv6Net)| (entry, net.trunc())) else {
            let message = "`gateway` says a part of a subnet that is not given";
            self.report()
                .error(Complaint::MissingKey, span, key, message)
                .hint(format!("add `subnet: {EXAMPLE}`"));
            return;
        };
        let first = subnet.network();
        if first.is_unicast_link_local()
            || first.is_multicast()
            || first.is_unspecified()
            || first.is_loopback()
        {
            let message = format!("{subnet} holds addresses that no network has for itself");
            self.report()
                .error(Complaint::InvalidValue, place.place(), &key.field("subnet"), message)
                .hint(format!("choose a unique local one such as `{EXAMPLE}`, or leave it out"));
            return;
        }
        if subnet.prefix_len() > LONGEST {
            let message =
                format!("the subnet {subnet} is too small: an address in it ends in an IPv4 address");
            self.report()
                .error(Complaint::InvalidValue, place.place(), &key.field("subnet"), message)
                .hint(format!("use /{LONGEST} or shorter, best /64"));
            return;
        }
        spec.subnet6 = Some(subnet);
        for (field, value) in pool.iter() {
            let key = key.field(field);
            match field {
                "subnet" => {}
                "gateway" => {
                    if let Some(gateway) = self.address_in(value, &key, subnet) {
                        let message = format!(
                            "each node has a gateway of its own on the network, whose IPv6 address follows from the IPv4 one: {gateway} is nobody's"
                        );
                        self.report().warn(Complaint::Note, value.place(), &key, message);
                    }
                }
                "ip_range" => {
                    let message = "IPv6 addresses follow from the IPv4 ones, and need no range of their own";
                    self.report()
                        .unsupported(value.place(), &key, message)
                        .hint("remove it; the `ip_range` of the IPv4 subnet says both");
                }
                "aux_addresses" => {
                    for (name, value) in values::entries(value) {
                        self.address_in(value, &key.field(name), subnet);
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
    }

    fn address_in(&mut self, entry: &Entry, key: &Key<'_>, subnet: Ipv6Net) -> Option<Ipv6Addr> {
        let address: Ipv6Addr =
            values::parsed(self.report(), entry, key, "an IPv6 address", "fd5a:7c1e:9b02::53")?;
        if subnet.contains(&address) && address != subnet.network() {
            return Some(address);
        }
        let message = format!("{address} is not an address in the subnet {subnet}");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint(format!("choose one of {subnet}, not its first"));
        None
    }

    /// What a network says of IPv6 goes together.
    pub(super) fn check_ipv6(&mut self, entry: &Entry, key: &Key<'_>, spec: &NetworkSpec) {
        let field = |name: &str| entry.node.as_mapping().and_then(|network| network.entry(name));
        if let Some(subnet) = spec.subnet6.filter(|_| !spec.enable_ipv6 && !spec.external) {
            let place = field("ipam").map_or(entry.key, |ipam| ipam.key);
            let message = format!("the network has the IPv6 subnet {subnet}, and no IPv6");
            self.report()
                .error(Complaint::Conflict, place, &key.field("ipam"), message)
                .hint("add `enable_ipv6: true`, or remove the subnet");
        }
        let carries = match spec.backend {
            None | Some(Backend::Vxlan | Backend::Wireguard) => true,
            Some(Backend::Routed | Backend::Macvlan | Backend::Host) => false,
        };
        if let (Some(place), Some(backend)) =
            (field("enable_ipv6"), spec.backend.filter(|_| spec.enable_ipv6 && !carries))
        {
            let message = format!("networks with the backend `{backend}` have no IPv6");
            self.report()
                .unsupported(place.key, &key.field("enable_ipv6"), message)
                .hint("remove `enable_ipv6`, or use the backend `vxlan` or `wireguard`");
        }
    }

    /// A fixed IPv6 address.
    pub(super) fn ipv6_address(&mut self, entry: &Entry, key: &Key<'_>, mode: Mode) -> Option<Ipv6Addr> {
        let address = values::parsed(self.report(), entry, key, "an IPv6 address", "fd5a:7c1e:9b02::9");
        self.check_single(entry, key, mode, "address");
        address
    }

    /// What services ask for exists on their networks, and is nobody else's.
    pub(super) fn check_ipv6_addresses(
        &mut self,
        services: &BTreeMap<ServiceName, ServiceSpec>,
        networks: &BTreeMap<NetworkName, NetworkSpec>,
    ) {
        let mut taken: BTreeMap<(&NetworkName, Ipv6Addr), (&ServiceName, Span)> = BTreeMap::new();
        let group = Key::Root.field("services");
        for (name, service) in services {
            for (network, attachment) in &service.networks {
                let Some(spec) = networks.get(network).filter(|spec| !spec.external) else { continue };
                let written = self.services.get(name.as_str()).and_then(Node::as_mapping);
                let written = written.and_then(|service| service.get("networks")).and_then(Node::as_mapping);
                let written = written.and_then(|on| on.get(network.as_str())).and_then(Node::as_mapping);
                let service = group.field(name.as_str());
                let on = service.field("networks");
                let key = on.field(network.as_str());
                let links = || attachment.endpoint.link_local_ips.iter().any(IpAddr::is_ipv6);
                for field in ["ipv6_address", "link_local_ips"] {
                    let Some(place) = written.and_then(|written| written.entry(field)) else { continue };
                    if !spec.enable_ipv6 && (field == "ipv6_address" || links()) {
                        self.no_ipv6(place, &key.field(field), network);
                    }
                }
                let Some(address) = attachment.ipv6_address.filter(|_| spec.enable_ipv6) else { continue };
                let Some(place) = written.and_then(|written| written.entry("ipv6_address")) else { continue };
                let key = key.field("ipv6_address");
                if self.fits(place, &key, address, (network, spec), attachment.ipv4_address)
                    && let Some((other, at)) = taken.insert((network, address), (name, place.place()))
                {
                    let message = format!("`{other}` and `{name}` cannot both have the address {address}");
                    self.report()
                        .error(Complaint::Conflict, place.place(), &key, message)
                        .hint("give one of them another address");
                    self.report().relate(at, format!("the address of `{other}` is here"));
                }
            }
        }
    }

    fn no_ipv6(&mut self, place: &Entry, key: &Key<'_>, network: &NetworkName) {
        let message = format!("the network `{network}` has no IPv6");
        self.report()
            .error(Complaint::Conflict, place.key, key, message)
            .hint(format!("add `enable_ipv6: true` to the network, or remove `{}`", key.name()));
        let root = self.root;
        let declared = root.get("networks").and_then(Node::as_mapping);
        if let Some(entry) = declared.and_then(|networks| networks.entry(network.as_str())) {
            self.report().relate(entry.key, "the network is here");
        }
    }

    /// Whether the network can give a service this address, for all that the file says.
    fn fits(
        &mut self,
        place: &Entry,
        key: &Key<'_>,
        address: Ipv6Addr,
        (network, spec): (&NetworkName, &NetworkSpec),
        own: Option<std::net::Ipv4Addr>,
    ) -> bool {
        let Some(subnet) = spec.subnet6 else {
            let message = format!("a fixed address needs the IPv6 subnet of the network `{network}`");
            self.report()
                .error(Complaint::MissingKey, place.key, key, message)
                .hint(format!("add `ipam: {{config: [{{subnet: {EXAMPLE}}}]}}` to the network"));
            return false;
        };
        if self.address_in(place, key, subnet).is_none() {
            return false;
        }
        if let Some(what) = self.kept(network, address) {
            let message = format!("{address} is `{what}` of the network `{network}`");
            self.report()
                .error(Complaint::Conflict, place.place(), key, message)
                .hint("choose another address");
            return false;
        }
        let from = Ipv6Addresses::new(subnet).whose(address).filter(|from| Some(*from) != own);
        if let Some(from) = from.filter(|from| spec.subnet.is_some_and(|subnet| subnet.contains(from))) {
            let message = format!("{address} is the address of whoever has {from}");
            self.report().error(Complaint::Conflict, place.place(), key, message).hint(format!(
                "ask for `ipv4_address: {from}`, or for an IPv6 address that does not end in one of the network's IPv4 addresses"
            ));
            return false;
        }
        true
    }

    /// What a network's file keeps an address for.
    fn kept(&self, network: &NetworkName, address: Ipv6Addr) -> Option<String> {
        let networks = self.root.get("networks").and_then(Node::as_mapping)?;
        let ipam = networks.get(network.as_str())?.as_mapping()?.get("ipam")?.as_mapping()?;
        let is = |node: &Node| node.as_str().and_then(|text| text.parse().ok()) == Some(address);
        let pools = ipam.get("config")?.as_sequence()?.iter().filter_map(Node::as_mapping);
        pools.into_iter().find_map(|pool| {
            if pool.get("gateway").is_some_and(is) {
                return Some("gateway".to_owned());
            }
            let aux = pool.entry("aux_addresses")?;
            let found = values::entries(aux).find(|(_, value)| is(&value.node));
            found.map(|(name, _)| format!("aux_addresses.{name}"))
        })
    }
}
