//! What the kernel has about networks, read for people. It knows nothing of what the tables say, and shares no reading with the
//! passes that keep them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use wharf_api::transport::diagnose::{Device, Route, VxlanPort};
use wharf_model::Mac;

use crate::network::netlink::{self, Netlink};

/// The interfaces of a network namespace.
pub(super) struct Links {
    by_index: BTreeMap<u32, Link>,
}

/// An interface and what is asked of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub(super) device: Device,
    pub(super) vxlan: Option<VxlanPort>,
    pub(super) addresses: Vec<IpAddr>,
    /// The other end, in whatever namespace that is.
    pub(super) peer: Option<u32>,
    index: u32,
}

impl Links {
    pub(super) fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut messages = Vec::new();
        for answer in netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                messages.push(message);
            }
        }
        let names: BTreeMap<u32, String> =
            messages.iter().map(|message| (message.header.index, name(message))).collect();
        let mut by_index: BTreeMap<u32, Link> =
            messages.iter().map(|message| (message.header.index, link(message, &names))).collect();
        for answer in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let (mut local, mut other) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => local = Some(*address),
                    AddressAttribute::Address(address) => other = Some(*address),
                    _ => {}
                }
            }
            if let (Some(link), Some(address)) = (by_index.get_mut(&message.header.index), local.or(other)) {
                link.addresses.push(address);
            }
        }
        Ok(Self { by_index })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.all().find(|link| link.device.name == name)
    }

    pub(super) fn numbered(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    pub(super) fn with_address(&self, address: IpAddr) -> Option<&Link> {
        self.all().find(|link| link.addresses.contains(&address))
    }

    fn name(&self, index: u32) -> String {
        self.numbered(index).map_or_else(|| format!("interface {index}"), |link| link.device.name.clone())
    }
}

fn name(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn link(message: &LinkMessage, names: &BTreeMap<u32, String>) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, ..Link::default() };
    link.device = Device { name: name(message), up, ..Device::default() };
    let mut vxlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.device.mtu = *mtu,
            LinkAttribute::Address(address) => link.device.mac = mac(address).map(|mac| mac.to_string()),
            LinkAttribute::Controller(index) => link.device.master = names.get(index).cloned(),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.device.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::Vxlan(data)) => vxlan = Some(port(data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.vxlan = vxlan.map(|port| VxlanPort { device: link.device.clone(), ..port });
    link
}

fn port(data: &[InfoVxlan]) -> VxlanPort {
    let mut port = VxlanPort::default();
    for info in data {
        match info {
            InfoVxlan::Id(vni) => port.vni = *vni,
            InfoVxlan::Local(address) => port.local = Some((*address).into()),
            InfoVxlan::Local6(address) => port.local = Some((*address).into()),
            InfoVxlan::Port(number) => port.port = *number,
            _ => {}
        }
    }
    port
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}

/// What the kernel has about the hardware address and the address of a peer.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// Names of the ports that the bridge finds the hardware address behind.
    pub(super) switching: Vec<String>,
    /// Nodes that the VXLAN port sends frames for the hardware address to.
    pub(super) forwarding: Vec<IpAddr>,
    /// The hardware address of the address on the VXLAN port.
    pub(super) neighbour: Option<String>,
}

/// Reads the entries about a peer on a bridge and its VXLAN port.
pub(super) fn entries(
    netlink: &mut Netlink,
    links: &Links,
    (bridge, port): (&str, &str),
    peer: (Ipv4Addr, Mac),
) -> io::Result<Entries> {
    let mut entries = Entries::default();
    for (message, of) in neighbours(netlink, AddressFamily::Bridge)? {
        if of.mac != Some(peer.1) {
            continue;
        }
        let name = links.name(message.header.ifindex);
        let on_bridge = links
            .numbered(message.header.ifindex)
            .is_some_and(|link| link.device.master.as_deref() == Some(bridge));
        match message.header.flags.contains(NeighbourFlags::Own) {
            true if name == port => entries.forwarding.extend(of.address),
            false if on_bridge => entries.switching.push(name),
            _ => {}
        }
    }
    for (message, of) in neighbours(netlink, AddressFamily::Inet)? {
        if of.address == Some(peer.0.into()) && links.name(message.header.ifindex) == port {
            entries.neighbour = of.mac.map(|mac| mac.to_string());
        }
    }
    Ok(entries)
}

/// What an interface holds of a neighbour: the hardware address and the state.
pub(super) fn neighbour(
    netlink: &mut Netlink,
    link: &Link,
    address: Ipv4Addr,
) -> io::Result<Option<(String, String)>> {
    let found = neighbours(netlink, AddressFamily::Inet)?
        .into_iter()
        .find(|(message, of)| message.header.ifindex == link.index && of.address == Some(address.into()));
    Ok(found.map(|(message, of)| {
        let state = match message.header.state {
            NeighbourState::Incomplete => "incomplete",
            NeighbourState::Failed => "failed",
            NeighbourState::Permanent => "permanent",
            NeighbourState::Noarp => "noarp",
            NeighbourState::Reachable => "reachable",
            _ => "known",
        };
        (of.mac.map(|mac| mac.to_string()).unwrap_or_default(), state.to_owned())
    }))
}

struct Neighbour {
    mac: Option<Mac>,
    address: Option<IpAddr>,
}

fn neighbours(
    netlink: &mut Netlink,
    family: AddressFamily,
) -> io::Result<Vec<(NeighbourMessage, Neighbour)>> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    let mut found = Vec::new();
    for answer in netlink.dump(&RouteNetlinkMessage::GetNeighbour(request))? {
        let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
        let mut neighbour = Neighbour { mac: None, address: None };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.mac = mac(bytes),
                NeighbourAttribute::Destination(address) => neighbour.address = ip(address),
                _ => {}
            }
        }
        found.push((message, neighbour));
    }
    Ok(found)
}

/// In entries of bridges an address is bytes, of whichever family.
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

/// The route that the kernel would take.
pub(super) fn route_to(netlink: &mut Netlink, links: &Links, to: IpAddr) -> io::Result<Route> {
    let message = match netlink.ask(&netlink::route_to(to)) {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => message,
        Ok(_) => return Ok(Route { unreachable: Some("the kernel names none".into()), ..Route::default() }),
        Err(error) => return Ok(Route { unreachable: Some(error.to_string()), ..Route::default() }),
    };
    let mut route = Route::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => {
                if let Some(link) = links.numbered(*index) {
                    let device = &link.device;
                    (route.device, route.mtu, route.kind) =
                        (device.name.clone(), device.mtu, device.kind.clone());
                }
            }
            RouteAttribute::Gateway(address) => route.via = address_of(address),
            RouteAttribute::PrefSource(address) => route.source = address_of(address),
            _ => {}
        }
    }
    Ok(route)
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Every route to somewhere in the main table, and the interface it leads to; default routes are left out.
pub(super) fn routes(netlink: &mut Netlink, links: &Links) -> io::Result<Vec<(IpNet, String)>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            let header = &message.header;
            if header.table != RouteHeader::RT_TABLE_MAIN
                || header.kind == RouteType::Local
                || header.destination_prefix_length == 0
            {
                continue;
            }
            let (mut destination, mut device) = (None, String::new());
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(address) => destination = address_of(address),
                    RouteAttribute::Oif(index) => device = links.name(*index),
                    _ => {}
                }
            }
            let net = destination.and_then(|to| IpNet::new(to, header.destination_prefix_length).ok());
            found.extend(net.map(|net| (net, device)));
        }
    }
    Ok(found)
}
