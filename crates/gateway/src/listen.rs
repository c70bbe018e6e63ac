//! Takes a route's port, or says in words why it cannot be had.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use wharf_model::Protocol;

use crate::{RouteKey, handover::Handover};

/// Connections the kernel keeps for us while we are busy; it may keep fewer.
const BACKLOG: i32 = 4096;

pub(crate) async fn tcp(key: RouteKey, handover: &Handover) -> Result<TcpListener, String> {
    let socket = socket(key, Type::STREAM, handover).await?;
    TcpListener::from_std(socket.into()).map_err(|error| format!("port {key}: {error}"))
}

pub(crate) async fn udp(key: RouteKey, handover: &Handover) -> Result<UdpSocket, String> {
    let socket = socket(key, Type::DGRAM, handover).await?;
    UdpSocket::from_std(socket.into()).map_err(|error| format!("port {key}: {error}"))
}

/// The socket that the process before this one had there, or a new one. [`Handover::close`] is called when it is no longer listened on.
pub(crate) async fn socket(key: RouteKey, kind: Type, handover: &Handover) -> Result<Socket, String> {
    let opened = handover.take(key).map_or_else(|| open(key, kind), Ok);
    match opened {
        Ok(socket) => {
            handover.hold(key, &socket);
            Ok(socket)
        }
        Err(error) => Err(problem(key, error).await),
    }
}

/// A socket on the route's address. On every address means those of IPv6 as well, where there is IPv6.
fn open(key: RouteKey, kind: Type) -> io::Result<Socket> {
    match key.host_ip {
        Some(address) => bind(SocketAddr::new(address, key.port), kind),
        None => match bind((Ipv6Addr::UNSPECIFIED, key.port).into(), kind) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            Err(_) => bind((Ipv4Addr::UNSPECIFIED, key.port).into(), kind),
            socket => socket,
        },
    }
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        // Connections of the last process do not keep the port. For datagrams it would let two share one.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

async fn problem(key: RouteKey, error: io::Error) -> String {
    match (error.kind(), key.host_ip) {
        (io::ErrorKind::AddrInUse, _) => {
            let holder = wharf_process::blocking(move || holder(key)).await;
            taken(key, holder)
        }
        (io::ErrorKind::AddrNotAvailable, Some(address)) => {
            format!("port {} cannot be served: this node has no address {address}", printed(key))
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!("port {} cannot be served: ports below 1024 need root", printed(key))
        }
        _ => format!("port {} cannot be served: {error}", printed(key)),
    }
}

/// Says who has a port.
pub(crate) fn taken(key: RouteKey, holder: Option<String>) -> String {
    let holder = holder.unwrap_or_else(|| "another process".to_owned());
    format!("port {} is taken on this node by {holder}", printed(key))
}

/// As people write it: only what is not usual is said.
fn printed(key: RouteKey) -> String {
    let key = key.to_string();
    key.strip_suffix("/tcp").map_or(key.clone(), ToOwned::to_owned)
}

/// Who has the port: the first process with a socket on it that we may look at.
pub(crate) fn holder(key: RouteKey) -> Option<String> {
    let files = match key.protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    // The thread's own namespace, which need not be the process's.
    let text = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let inodes: BTreeSet<u64> = files
        .into_iter()
        .flat_map(|file| sockets(&text(file), key).into_iter().collect::<Vec<_>>())
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has_one_of(*pid, &inodes))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {} (pid {pid})", name.trim_end()))
}

fn has_one_of(pid: u32, inodes: &BTreeSet<u64>) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.filter_map(Result::ok).filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.and_then(|inode| inode.parse().ok()).is_some_and(|inode| inodes.contains(&inode))
    })
}

/// The sockets in the text of `/proc/net/tcp` or `udp` that keep others from the port.
fn sockets(text: &str, key: RouteKey) -> BTreeSet<u64> {
    // `sl local_address rem_address st … inode`; listening is 0A for TCP, and UDP has only 07.
    let state = match key.protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, is) = (words.get(1)?, words.get(3)?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let inode = words.get(9)?.parse::<u64>().ok()?;
        (port == key.port && *is == state).then_some(inode)
    };
    text.lines().skip(1).filter_map(socket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RouteKey = RouteKey { port: 8080, protocol: Protocol::Tcp, host_ip: None };

    #[test]
    fn only_what_listens_on_the_port_holds_it() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0\n\
             1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0\n\
             2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0\n";
        assert_eq!(sockets(text, KEY), BTreeSet::from([41]));
    }

    #[test]
    fn ports_are_printed_as_people_write_them() {
        assert_eq!(printed(KEY), "8080");
        assert_eq!(printed(RouteKey { protocol: Protocol::Udp, ..KEY }), "8080/udp");
        let local = RouteKey { host_ip: Some(Ipv4Addr::LOCALHOST.into()), ..KEY };
        assert_eq!(printed(local), "127.0.0.1:8080");
    }
}
