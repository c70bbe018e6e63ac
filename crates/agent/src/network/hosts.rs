//! What the machine reaches without Wharf: no network of the cluster may overlap it.
//!
//! Every route of the main table counts, which says what interfaces reach directly as well, but for the default route, what leads over
//! interfaces of ours, and what we made. Addresses that mean something on the machine or on one wire only are left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use wharf_model::HostSubnet;

use super::{kernel::ROUTE_PROTOCOL, netlink::Netlink, plan::vni_of};

/// What names of our interfaces begin with, before a network's number.
const OURS: [&str; 3] = ["wh", "wv", "wm"];

/// A route as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    to: IpNet,
    router: Option<IpAddr>,
    interface: String,
    /// Made by us.
    ours: bool,
}

/// What the machine reaches without Wharf, in the network namespace of the calling thread.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn host_subnets() -> io::Result<Vec<HostSubnet>> {
    let mut netlink = Netlink::open()?;
    let mut names = BTreeMap::new();
    for answer in netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        names.extend(name.map(|name| (link.header.index, name)));
    }
    let mut seen = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            seen.extend(read(&message, &names));
        }
    }
    Ok(subnets(&seen))
}

fn read(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Seen> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let (mut to, mut router, mut interface) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(found) => to = address(found),
            RouteAttribute::Gateway(found) => router = address(found),
            RouteAttribute::Oif(index) => interface = names.get(index).cloned(),
            _ => {}
        }
    }
    Some(Seen {
        to: IpNet::new(to?, header.destination_prefix_length).ok()?,
        router,
        // One with several next hops names none.
        interface: interface.unwrap_or_else(|| "several interfaces".to_owned()),
        ours: header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
    })
}

fn subnets(seen: &[Seen]) -> Vec<HostSubnet> {
    let local = |to: &IpNet| match to {
        IpNet::V4(net) => net.addr().is_link_local() || net.addr().is_loopback() || net.addr().is_multicast(),
        IpNet::V6(net) => {
            net.addr().is_unicast_link_local() || net.addr().is_loopback() || net.addr().is_multicast()
        }
    };
    let foreign = seen.iter().filter(|route| {
        !route.ours
            && route.to.prefix_len() > 0
            && route.interface != "lo"
            && !local(&route.to)
            && !route.interface.starts_with("wharf-")
            && !OURS.iter().any(|prefix| vni_of(&route.interface, prefix).is_some())
    });
    let subnets: BTreeSet<_> = foreign
        .map(|route| HostSubnet {
            subnet: route.to.trunc(),
            interface: route.interface.clone(),
            router: route.router,
        })
        .collect();
    subnets.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(to: &str, interface: &str) -> Seen {
        Seen { to: to.parse().unwrap(), router: None, interface: interface.into(), ours: false }
    }

    #[test]
    fn routes_that_are_neither_ours_nor_the_default_count() {
        let all = [
            seen("0.0.0.0/0", "eth0"),
            seen("192.168.77.0/24", "eth0"),
            Seen { router: Some("10.8.0.1".parse().unwrap()), ..seen("10.8.0.0/16", "tun0") },
            seen("172.17.0.0/16", "docker0"),
            seen("10.192.0.0/20", "wh1"),
            seen("10.9.0.0/24", "wg0"),
            Seen { ours: true, ..seen("10.192.0.64/26", "eth0") },
            seen("169.254.0.0/16", "eth0"),
            seen("fe80::/64", "eth0"),
            seen("fd00:1::/64", "eth0"),
        ];
        let found: Vec<_> = subnets(&all).iter().map(ToString::to_string).collect();
        let wanted = [
            "10.8.0.0/16 via 10.8.0.1 on tun0",
            "10.9.0.0/24 on wg0",
            "172.17.0.0/16 on docker0",
            "192.168.77.0/24 on eth0",
            "fd00:1::/64 on eth0",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_kernel_answers() {
        // Whatever it is, there are no duplicates and no default route in it.
        let found = host_subnets().unwrap();
        assert!(
            found.windows(2).all(|two| two[0] < two[1])
                && found.iter().all(|one| one.subnet.prefix_len() > 0)
        );
    }
}
