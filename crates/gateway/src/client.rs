//! Connects to endpoints from the client's own address, so that they see who it is.
//!
//! - Only where the table says that an endpoint's answers come back here. Where it does not, or if it does not work after all, the
//!   connection is made from the gateway's address: a client is worse known then, but never worse served.
//! - It needs the right to administer the network (`CAP_NET_ADMIN`). The packets carry [`wharf_model::ENTRY_MARK`], by which the
//!   node's rules bring the answers to this process instead of the client's machine.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use wharf_model::{ENTRY_MARK, Endpoint};

/// How an endpoint is reached for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// The client's address.
    pub(crate) from: IpAddr,
    /// The endpoint's, of the same family.
    pub(crate) to: SocketAddr,
}

/// The way to an endpoint for a client if its answers come back; none if it would be from the endpoint's own address, or from one that is
/// no machine's.
pub(crate) fn way(client: SocketAddr, endpoint: &Endpoint) -> Option<Way> {
    // What came to a socket of both families.
    let from = client.ip().to_canonical();
    let is_machine = match from {
        IpAddr::V4(from) => {
            !(from.is_loopback() || from.is_unspecified() || from.is_multicast() || from.is_broadcast())
        }
        // One of a link is somebody's on that link only.
        IpAddr::V6(from) => {
            !(from.is_loopback()
                || from.is_unspecified()
                || from.is_multicast()
                || from.is_unicast_link_local())
        }
    };
    let at: IpAddr = match from {
        IpAddr::V4(_) => (*endpoint.address.ip()).into(),
        IpAddr::V6(_) => endpoint.keeps_client6?.into(),
    };
    let keeps = from.is_ipv6() || endpoint.keeps_client;
    let to = SocketAddr::new(at, endpoint.address.port());
    (keeps && is_machine && from != at).then_some(Way { from, to })
}

/// A connection that comes from the client's address.
pub(crate) async fn tcp(way: Way) -> io::Result<TcpStream> {
    let socket = bound(way.from, Type::STREAM)?;
    TcpSocket::from_std_stream(socket.into()).connect(way.to).await
}

/// A socket for datagrams between the client's address and the endpoint.
pub(crate) async fn udp(way: Way) -> io::Result<UdpSocket> {
    let socket = UdpSocket::from_std(bound(way.from, Type::DGRAM)?.into())?;
    socket.connect(way.to).await?;
    Ok(socket)
}

fn bound(from: IpAddr, kind: Type) -> io::Result<Socket> {
    let from = SocketAddr::new(from, 0);
    let socket = Socket::new(Domain::for_address(from), kind, None)?;
    socket.set_nonblocking(true)?;
    match from {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(ENTRY_MARK)?;
    // The port is chosen when it is known to whom: as many connections from one address as each endpoint has ports for.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&from.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use wharf_model::TaskId;

    use super::*;

    #[test]
    fn a_client_has_an_address_of_its_own_or_is_not_imitated() {
        let plain =
            Endpoint::new(TaskId::from_parts(1, [1; 10]), SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 80));
        let four = Endpoint { keeps_client: true, ..plain };
        let both = Endpoint { keeps_client6: Some("fd00::a09:2".parse().unwrap()), ..four };
        let way = |client: &str, endpoint: &Endpoint| {
            let way = way(client.parse().unwrap(), endpoint)?;
            Some(format!("{} to {}", way.from, way.to))
        };
        for client in ["192.0.2.7:1000", "[::ffff:192.0.2.7]:1000"] {
            assert_eq!(way(client, &four).as_deref(), Some("192.0.2.7 to 10.9.0.2:80"));
            assert_eq!(way(client, &plain), None, "its answers would go elsewhere");
        }
        assert_eq!(way("[2001:db8::1]:1", &both).as_deref(), Some("2001:db8::1 to [fd00::a09:2]:80"));
        assert_eq!(way("[2001:db8::1]:1", &four), None, "it has no address of that family");
        for other in [
            "127.0.0.1:1",
            "0.0.0.0:1",
            "10.9.0.2:1",
            "224.0.0.1:1",
            "[::1]:1",
            "[::]:1",
            "[fe80::1]:1",
            "[ff02::1]:1",
            "[fd00::a09:2]:1",
        ] {
            assert_eq!(way(other, &both), None, "{other}");
        }
    }
}
