//! Asks the wire for machines that the kernel has lost.
//!
//! While the kernel does not know the hardware address of a machine on the wire, it asks for it once a second, however many packets wait for
//! it: after a cut, that is how long everything else waits. Whoever wants to be there sooner asks itself; the kernel takes the answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6},
};

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    announce::{frame, open, say},
    kernel::{first_hop, way},
    netlink::Netlink,
    plan::{Hop, Mac},
};

/// Seeks in the network namespace of the thread that opened it.
pub struct Seeker {
    netlink: Netlink,
}

impl std::fmt::Debug for Seeker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeker").finish_non_exhaustive()
    }
}

impl Seeker {
    /// Opens the way to the kernel's tables.
    ///
    /// # Errors
    /// If the kernel has none to give.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()? })
    }

    /// Asks once for the first machine on the way to `to`, if the kernel seeks it in vain; says whether it did.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or without the right to send what asks (`CAP_NET_RAW`).
    pub fn seek(&mut self, to: IpAddr) -> io::Result<bool> {
        let Some(way) = way(&mut self.netlink, to)? else { return Ok(false) };
        let Some(hop) = first_hop(&way, to) else { return Ok(false) };
        if !self.is_sought(hop)? {
            return Ok(false);
        }
        match (hop.via, source(&way)) {
            (IpAddr::V4(via), Some(IpAddr::V4(own))) => ask4(hop.device, own, via)?,
            (IpAddr::V6(via), _) => ask6(hop.device, via)?,
            (IpAddr::V4(_), _) => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the kernel wants to know where it is, and does not.
    fn is_sought(&mut self, hop: Hop) -> io::Result<bool> {
        let mut request = NeighbourMessage::default();
        request.header.ifindex = hop.device;
        let (family, address) = match hop.via {
            IpAddr::V4(via) => (AddressFamily::Inet, NeighbourAddress::Inet(via)),
            IpAddr::V6(via) => (AddressFamily::Inet6, NeighbourAddress::Inet6(via)),
        };
        request.header.family = family;
        request.attributes.push(NeighbourAttribute::Destination(address));
        match self.netlink.ask(&RouteNetlinkMessage::GetNeighbour(request)) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => {
                Ok(matches!(entry.header.state, NeighbourState::Incomplete | NeighbourState::Failed))
            }
            Ok(_) => Ok(false),
            // It has not been asked for.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The address that packets which take this way come from.
fn source(way: &RouteMessage) -> Option<IpAddr> {
    way.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn ask4(device: u32, own: Ipv4Addr, wanted: Ipv4Addr) -> io::Result<()> {
    let (socket, mac) = open(|_, index| index == device)?;
    say(&socket, &[frame(mac, (own, mac), wanted)])
}

/// A neighbour solicitation (RFC 4861, 4.3) to all who could have the address.
fn ask6(device: u32, wanted: Ipv6Addr) -> io::Result<()> {
    let (_, mac) = open(|_, index| index == device)?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    // Others take it only if no router can have forwarded it.
    socket.set_multicast_hops_v6(255)?;
    let to = SocketAddrV6::new(solicited(wanted), 0, 0, device);
    socket.send_to(&solicitation(wanted, mac), &to.into()).map(drop)
}

/// The group of those whose addresses end like this one (RFC 4291, 2.7.1).
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&address.octets()[13..]);
    group.into()
}

/// Without its checksum, which the kernel fills in.
fn solicitation(wanted: Ipv6Addr, mac: Mac) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 135;
    packet[8..24].copy_from_slice(&wanted.octets());
    // The sender's hardware address, in one unit of eight bytes.
    packet[24..26].copy_from_slice(&[1, 1]);
    packet[26..].copy_from_slice(&mac);
    packet
}
