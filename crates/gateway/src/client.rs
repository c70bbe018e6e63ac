//! Connects to endpoints from the client's own address, so that they see who it is.
//!
//! - Only where the table says that an endpoint's answers come back here. Where it does not, or if it does not work after all, the
//!   connection is made from the gateway's address: a client is worse known then, but never worse served.
//! - It needs the right to administer the network (`CAP_NET_ADMIN`). The packets carry [`wharf_model::ENTRY_MARK`], by which the
//!   node's rules bring the answers to this process instead of the client's machine.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use wharf_model::ENTRY_MARK;

/// The address from which an endpoint can be reached for a client; none if it would be the endpoint's own, or is no machine's.
pub(crate) fn source(client: SocketAddr, endpoint: SocketAddrV4) -> Option<Ipv4Addr> {
    let address = match client.ip() {
        IpAddr::V4(address) => address,
        // What came to a socket of both families. Others have no address on the endpoint's network.
        IpAddr::V6(address) => address.to_ipv4_mapped()?,
    };
    let is_machine = !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast());
    (is_machine && address != *endpoint.ip()).then_some(address)
}

/// A connection from this address.
pub(crate) async fn tcp(from: Ipv4Addr, endpoint: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = bound(from, Type::STREAM)?;
    TcpSocket::from_std_stream(socket.into()).connect(endpoint.into()).await
}

/// A socket for datagrams between this address and the endpoint.
pub(crate) async fn udp(from: Ipv4Addr, endpoint: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::from_std(bound(from, Type::DGRAM)?.into())?;
    socket.connect(endpoint).await?;
    Ok(socket)
}

fn bound(from: Ipv4Addr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind, None)?;
    socket.set_nonblocking(true)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(ENTRY_MARK)?;
    // The port is chosen when it is known to whom: as many connections from one address as each endpoint has ports for.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_an_address_of_its_own_or_is_not_imitated() {
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), 80);
        let source =
            |client: &str| source(client.parse().unwrap(), endpoint).map(|address| address.to_string());
        assert_eq!(source("192.0.2.7:1000").as_deref(), Some("192.0.2.7"));
        assert_eq!(source("[::ffff:192.0.2.7]:1000").as_deref(), Some("192.0.2.7"));
        for other in ["127.0.0.1:1", "[::1]:1", "[2001:db8::1]:1", "0.0.0.0:1", "10.9.0.2:1", "224.0.0.1:1"] {
            assert_eq!(source(other), None, "{other}");
        }
    }
}
