//! Echo requests to other machines' kernels. A reply counts if it carries what only who got the request can know.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Echoes;
use crate::{diagnose::ping::checksum, network::Seeker};

/// Type, code, checksum, identifier, number; and our mark.
const HEADER: usize = 8;
const MARK: usize = 16;
/// Every raw socket gets every answer: without room some of ours would be lost.
const ROOM: usize = 256 << 10;
/// Packets that are taken at a time; whoever floods this node with them must not keep it.
const MOST: usize = 4096;

/// Echo requests over raw sockets in the namespace of the thread that made them.
#[derive(Debug)]
pub struct IcmpEchoes {
    // Raw sockets, which are sent to and received from like those of UDP.
    v4: UdpSocket,
    /// If the machine has IPv6.
    v6: Option<UdpSocket>,
    mark: [u8; MARK],
    number: u16,
    /// Who was asked and has not answered yet.
    asked: BTreeSet<IpAddr>,
    /// If the kernel can be asked whom it has lost.
    seeker: Option<Seeker>,
}

impl IcmpEchoes {
    /// Opens the sockets.
    ///
    /// # Errors
    /// If there is no right to.
    pub fn open() -> io::Result<Self> {
        let open = |domain, protocol| -> io::Result<UdpSocket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            // What cannot be had is done without.
            let _ = socket.set_recv_buffer_size(ROOM);
            Ok(socket.into())
        };
        Ok(Self {
            v4: open(Domain::IPV4, Protocol::ICMPV4)?,
            v6: open(Domain::IPV6, Protocol::ICMPV6).ok(),
            mark: rand::random(),
            number: 0,
            asked: BTreeSet::new(),
            seeker: Seeker::open().ok(),
        })
    }

    fn request(&self, v4: bool) -> [u8; HEADER + MARK] {
        let mut packet = [0; HEADER + MARK];
        packet[0] = if v4 { 8 } else { 128 };
        packet[6..8].copy_from_slice(&self.number.to_be_bytes());
        packet[HEADER..].copy_from_slice(&self.mark);
        if v4 {
            // The kernel fills in the checksum of ICMPv6.
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }
}

impl Echoes for IcmpEchoes {
    fn send(&mut self, to: &BTreeSet<IpAddr>) {
        self.number = self.number.wrapping_add(1);
        for address in to {
            let socket = if address.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
            let target = SocketAddr::new(*address, 0);
            // A machine without a way there is not answered either.
            let _ = socket.map(|socket| socket.send_to(&self.request(address.is_ipv4()), target));
            if self.asked.contains(address)
                && let Some(seeker) = &mut self.seeker
            {
                // Without the right to, it is heard when the kernel finds it.
                let _ = seeker.seek(*address);
            }
        }
        self.asked.clone_from(to);
    }

    fn answered(&mut self) -> BTreeSet<IpAddr> {
        let mut answered = BTreeSet::new();
        for (socket, v4) in [(Some(&self.v4), true), (self.v6.as_ref(), false)] {
            let Some(socket) = socket else { continue };
            let mut buffer = [0; 256];
            for _ in 0..MOST {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
                if is_reply(&buffer[..length], v4, &self.mark) {
                    answered.insert(from.ip());
                }
            }
        }
        self.asked.retain(|address| !answered.contains(address));
        answered
    }
}

/// Whether a packet answers one with this mark. Those of IPv4 come with their header.
fn is_reply(packet: &[u8], v4: bool, mark: &[u8; MARK]) -> bool {
    let header = packet.first().filter(|_| v4).map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some(icmp) = packet.get(header..) else { return false };
    let kind = if v4 { 0 } else { 129 };
    icmp.first() == Some(&kind) && icmp.get(HEADER..HEADER + MARK) == Some(&mark[..])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn this_machine_answers_itself_and_strangers_count_for_nothing() {
        let (Ok(mut ours), Ok(mut others)) = (IcmpEchoes::open(), IcmpEchoes::open()) else {
            return eprintln!("skipped: no raw sockets here");
        };
        let own: IpAddr = [127, 0, 0, 1].into();
        others.send(&[own].into());
        ours.send(&[own, [127, 0, 0, 2].into()].into());
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut answered = BTreeSet::new();
        while answered.len() < 2 && Instant::now() < deadline {
            answered.append(&mut ours.answered());
        }
        assert_eq!(answered, [own, [127, 0, 0, 2].into()].into());
        assert_eq!(ours.answered(), BTreeSet::new(), "what was taken is gone");
    }

    #[test]
    fn only_replies_to_our_requests_are_taken() {
        let mark = [7; MARK];
        let mut packet = vec![0x45; 20];
        packet.extend([0; HEADER]);
        packet.extend(mark);
        assert!(is_reply(&packet, true, &mark));
        assert!(!is_reply(&packet, true, &[8; MARK]), "another's");
        packet[20] = 8;
        assert!(!is_reply(&packet, true, &mark), "a request is no reply");
        assert!(!is_reply(&packet[..30], true, &mark), "half of one");
        assert!(!is_reply(&[], true, &mark));
    }
}
