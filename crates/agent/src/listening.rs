//! Whether the processes of a container have begun to listen, by what the kernel says of the sockets in its network namespace
//! (`/proc/<pid>/net`, proc(5)). Nothing is sent to them.

use std::{collections::BTreeSet, fs, io};

/// Ports on which something listens, or waits for datagrams, that others can reach: not at a loopback address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) tcp: BTreeSet<u16>,
    pub(crate) udp: BTreeSet<u16>,
}

impl Listening {
    /// What listens in the network namespace of a process. Reads four small files.
    ///
    /// # Errors
    /// If the process is gone, or may not be looked at.
    pub(crate) fn of(pid: i64) -> io::Result<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
        let mut listening =
            Self { tcp: ports(&read("tcp")?, LISTEN), udp: ports(&read("udp")?, UNCONNECTED) };
        // A kernel may be without IPv6.
        listening.tcp.extend(ports(&read("tcp6").unwrap_or_default(), LISTEN));
        listening.udp.extend(ports(&read("udp6").unwrap_or_default(), UNCONNECTED));
        Ok(listening)
    }

    /// Whether one of these TCP ports is there; without any, whether anything is.
    pub(crate) fn has_any_of(&self, tcp: &BTreeSet<u16>) -> bool {
        if tcp.is_empty() {
            !(self.tcp.is_empty() && self.udp.is_empty())
        } else {
            !self.tcp.is_disjoint(tcp)
        }
    }
}

/// The states of sockets that listen, and of those for datagrams that are nobody's in particular.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

fn ports(table: &str, state: &str) -> BTreeSet<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, is) = (fields.next()?, fields.nth(1)?);
        let (address, port) = local.split_once(':')?;
        (is == state && !is_loopback(address)).then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().skip(1).filter_map(port).collect()
}

/// Addresses are written as words of the machine's own order: of an IPv4 one the first number comes last on all machines that matter
/// (little-endian ones).
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        // `::1`, and IPv4 in IPv6.
        _ => {
            address == "00000000000000000000000001000000"
                || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn what_others_cannot_reach_does_not_count() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                   0: 0B00007F:9C4D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n   \
                   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n   \
                   2: 0200C00A:1F91 0300C00A:A123 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0\n";
        assert_eq!(ports(tcp, LISTEN), [8080].into());
        let tcp6 = "  sl  local_address                         remote_address                        st\n   \
                    0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0\n   \
                    1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 0\n   \
                    2: 00000000000000000000000000000000:0052 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(ports(tcp6, LISTEN), [0x52].into());
        assert_eq!(ports("", LISTEN), BTreeSet::new());
    }

    #[test]
    fn sockets_of_this_very_process_are_found() {
        let own = i64::from(std::process::id());
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let hidden = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = |address: io::Result<std::net::SocketAddr>| address.unwrap().port();
        let listening = Listening::of(own).unwrap();
        let (tcp, hidden) = (port(tcp.local_addr()), port(hidden.local_addr()));
        assert!(listening.tcp.contains(&tcp) && !listening.tcp.contains(&hidden), "{listening:?}");
        assert!(listening.udp.contains(&port(udp.local_addr())), "{listening:?}");
        assert!(listening.has_any_of(&BTreeSet::new()) && listening.has_any_of(&[tcp, 1].into()));
        assert!(!listening.has_any_of(&[hidden].into()));
        assert!(Listening::of(-1).is_err());
    }
}
