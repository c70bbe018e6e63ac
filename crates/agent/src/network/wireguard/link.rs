//! The network interface of the tunnels: its address, its size, and that it is up.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
};

use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkWireguard,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};
use wharf_model::TUNNEL_PREFIX;

use super::super::netlink::{Change, Netlink};

/// What WireGuard puts around a packet, over IPv6: 40 bytes of IP, 8 of UDP, 16 of its own before and after each.
const OVERHEAD: u32 = 80;

/// What carries an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Wireguard,
    Tun,
    Other,
}

/// An interface as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) kind: Kind,
    mtu: u32,
    up: bool,
    addresses: BTreeSet<(Ipv6Addr, u8)>,
}

/// One change to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Set { mtu: u32 },
    Add(Ipv6Addr, u8),
    Remove(Ipv6Addr, u8),
}

/// The interface of this name, and the largest packet of the one that holds the node's address.
pub(super) fn observe(
    netlink: &mut Netlink,
    name: &str,
    node: IpAddr,
) -> io::Result<(Option<Interface>, Option<u32>)> {
    let links = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links: Vec<_> = links
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })
        .collect();
    let mut found = links.iter().find_map(|link| interface(link, name));
    let mut uplink = None;
    for answer in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        let pick = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
        };
        let Some(address) = pick(true).or_else(|| pick(false)) else { continue };
        if address == node {
            let holder = links.iter().find(|link| link.header.index == message.header.index);
            uplink = holder.map(mtu);
        }
        if let (Some(found), IpAddr::V6(address)) = (&mut found, address)
            && found.index == message.header.index
            && !address.is_unicast_link_local()
        {
            found.addresses.insert((address, message.header.prefix_len));
        }
    }
    Ok((found, uplink))
}

fn interface(link: &LinkMessage, name: &str) -> Option<Interface> {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(its) if its == name))
        .then(|| Interface {
            index: link.header.index,
            kind: kind(link),
            mtu: mtu(link),
            up: link.header.flags.contains(LinkFlags::Up),
            addresses: BTreeSet::new(),
        })
}

fn kind(link: &LinkMessage) -> Kind {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Wireguard) => Kind::Wireguard,
        Some(InfoKind::Tun) => Kind::Tun,
        Some(InfoKind::Other(kind)) if kind == "tun" => Kind::Tun,
        _ => Kind::Other,
    }
}

fn mtu(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or_default()
}

/// Makes an interface of the kernel's own WireGuard. Its error is `EOPNOTSUPP` if the kernel has none.
pub(super) fn make(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let link = LinkWireguard::new(name).build();
    apply(netlink, [Change { message: RouteNetlinkMessage::NewLink(link), flags: NLM_F_CREATE | NLM_F_EXCL }])
}

/// Gives the interface its address and size, and puts it up. What is right is not touched; answers whether something was not.
pub(super) fn set_up(
    netlink: &mut Netlink,
    interface: &Interface,
    address: Ipv6Addr,
    uplink: u32,
) -> io::Result<bool> {
    let operations = plan(interface, address, uplink.saturating_sub(OVERHEAD));
    apply(netlink, operations.iter().map(|operation| change(interface.index, *operation)))?;
    Ok(!operations.is_empty())
}

/// Removes an interface.
pub(super) fn remove(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    apply(netlink, [Change { message: RouteNetlinkMessage::DelLink(link), flags: 0 }])
}

fn apply(netlink: &mut Netlink, changes: impl IntoIterator<Item = Change>) -> io::Result<()> {
    netlink.apply(changes)?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

fn plan(interface: &Interface, address: Ipv6Addr, mtu: u32) -> Vec<Operation> {
    let wanted = (address, TUNNEL_PREFIX.1);
    let mut operations = Vec::new();
    if interface.mtu != mtu || !interface.up {
        operations.push(Operation::Set { mtu });
    }
    let others = interface.addresses.iter().filter(|there| **there != wanted);
    operations.extend(others.map(|(address, prefix)| Operation::Remove(*address, *prefix)));
    if !interface.addresses.contains(&wanted) {
        operations.push(Operation::Add(wanted.0, wanted.1));
    }
    operations
}

fn change(index: u32, operation: Operation) -> Change {
    let at = |address, prefix| {
        let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(address, prefix);
        let mut message = builder.build();
        // Nobody else has it: it can be used at once, without asking around for a second.
        message.header.flags |= AddressHeaderFlags::Nodad;
        message
    };
    match operation {
        Operation::Set { mtu } => {
            let link: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index).mtu(mtu).up();
            Change { message: RouteNetlinkMessage::SetLink(link.build()), flags: 0 }
        }
        Operation::Add(address, prefix) => Change {
            message: RouteNetlinkMessage::NewAddress(at(address, prefix)),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        },
        Operation::Remove(address, prefix) => {
            Change { message: RouteNetlinkMessage::DelAddress(at(address, prefix)), flags: 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_gets_what_it_lacks_and_loses_what_is_not_its_own() {
        let (own, other) = (TUNNEL_PREFIX.0, Ipv6Addr::LOCALHOST);
        let fresh = Interface {
            index: 3,
            kind: Kind::Tun,
            mtu: 1500,
            up: false,
            addresses: BTreeSet::from([(other, 64)]),
        };
        let all = [Operation::Set { mtu: 1420 }, Operation::Remove(other, 64), Operation::Add(own, 64)];
        assert_eq!(plan(&fresh, own, 1420), all);
        let right = Interface { mtu: 1420, up: true, addresses: BTreeSet::from([(own, 64)]), ..fresh };
        assert_eq!(plan(&right, own, 1420), []);
    }
}
