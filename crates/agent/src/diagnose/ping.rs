//! Echo requests, many at once over one socket, with the header of each packet in our own hand: so that a packet's size and its
//! "do not fragment" are exactly what is asked for, whatever the kernel remembers of the path.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Headers of IPv4 and ICMP, and our mark.
const SMALLEST: u16 = 20 + 8 + MARK;
const MARK: u16 = 8;
/// An echo request is given up after so many.
const TRIES: u32 = 3;
/// The kernel takes less than a microsecond for no limit at all.
const LEAST: Duration = Duration::from_millis(1);
/// Sent between two looks at what came back, so that neither queue overflows.
const BURST: usize = 64;

/// One echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) from: Option<Ipv4Addr>,
    pub(super) to: Ipv4Addr,
    /// Of the whole packet; it is not to be fragmented.
    pub(super) size: u16,
}

impl Echo {
    pub(super) const fn small(from: Option<Ipv4Addr>, to: Ipv4Addr) -> Self {
        Self { from, to, size: 64 }
    }
}

/// What became of it: the time an answer took, nothing, or why it could not be sent.
pub(super) type Echoed = io::Result<Option<Duration>>;

/// A socket for echo requests in the calling thread's network namespace.
pub(super) fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_header_included_v4(true)?;
    // Every raw socket gets every answer; without room some of ours would be lost. What cannot be had is done without.
    let _ = socket.set_recv_buffer_size(1 << 20);
    Ok(socket)
}

/// Sends them all, and those that are not answered again. Blocks for `patience` at most, a third for each try.
pub(super) fn echo(socket: &Socket, echoes: &[Echo], patience: Duration) -> Vec<Echoed> {
    let mut outcomes: Vec<Echoed> = echoes.iter().map(|_| Ok(None)).collect();
    let mark = rand::random::<[u8; 6]>();
    // When each was last sent, by its identifier and number.
    let mut sent = HashMap::new();
    for _ in 0..TRIES {
        let open: Vec<usize> =
            (0..echoes.len()).filter(|position| matches!(outcomes[*position], Ok(None))).collect();
        if open.is_empty() {
            break;
        }
        for burst in open.chunks(BURST) {
            for position in burst.iter().copied() {
                let echo = echoes[position];
                let (identifier, number) = number(position);
                let packet = request(&echo, identifier, number, mark);
                let to = SocketAddr::V4(SocketAddrV4::new(echo.to, 0));
                sent.insert((identifier, number), (position, Instant::now()));
                if let Err(error) = socket.send_to(&packet, &to.into()) {
                    outcomes[position] = Err(error);
                }
            }
            receive(socket, mark, &sent, &mut outcomes, Duration::from_millis(1));
        }
        receive(socket, mark, &sent, &mut outcomes, patience / TRIES);
    }
    outcomes
}

/// Identifier and sequence number of the request at a position.
fn number(position: usize) -> (u16, u16) {
    let low = |number: usize| u16::try_from(number & 0xffff).unwrap_or_default();
    (low(position >> 16), low(position))
}

/// Takes answers until all are there or `patience` is over.
fn receive(
    socket: &Socket,
    mark: [u8; 6],
    sent: &HashMap<(u16, u16), (usize, Instant)>,
    outcomes: &mut [Echoed],
    patience: Duration,
) {
    let until = Instant::now() + patience;
    let mut buffer = vec![0_u8; 65_536];
    while outcomes.iter().any(|outcome| matches!(outcome, Ok(None))) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || socket.set_read_timeout(Some(left.max(LEAST))).is_err() {
            return;
        }
        let length = match (&mut &*socket).read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let answered = answer(&buffer[..length], mark).and_then(|key| sent.get(&key));
        if let Some((position, at)) = answered
            && let Some(outcome @ Ok(None)) = outcomes.get_mut(*position)
        {
            *outcome = Ok(Some(at.elapsed()));
        }
    }
}

/// An echo request with its IPv4 header; the kernel fills in the header's checksum, and the source if there is none.
fn request(echo: &Echo, identifier: u16, number: u16, mark: [u8; 6]) -> Vec<u8> {
    let size = echo.size.max(SMALLEST);
    let mut packet = vec![0_u8; usize::from(size)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&size.to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = 1;
    packet[12..16].copy_from_slice(&echo.from.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    packet[16..20].copy_from_slice(&echo.to.octets());
    let icmp = &mut packet[20..];
    icmp[0] = 8;
    icmp[4..6].copy_from_slice(&identifier.to_be_bytes());
    icmp[6..8].copy_from_slice(&number.to_be_bytes());
    icmp[8..14].copy_from_slice(&mark);
    let sum = checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Identifier and number of an echo reply to one of ours.
fn answer(packet: &[u8], mark: [u8; 6]) -> Option<(u16, u16)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header..)?;
    let is_ours = icmp.first() == Some(&0) && icmp.get(8..14) == Some(&mark[..]);
    let number = |at: usize| Some(u16::from_be_bytes(icmp.get(at..at + 2)?.try_into().ok()?));
    is_ours.then_some(())?;
    Some((number(4)?, number(6)?))
}

/// The Internet's checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or_default()
}

/// The largest packet to `to` that comes back unfragmented, at most `of` bytes. Many sizes are tried at once, so that one that is
/// lost costs no more time than all that are.
pub(super) fn largest(
    socket: &Socket,
    from: Option<Ipv4Addr>,
    to: Ipv4Addr,
    of: u16,
    patience: Duration,
) -> io::Result<u16> {
    let came = |sizes: &[u16]| -> io::Result<Option<u16>> {
        let echoes: Vec<_> = sizes.iter().map(|size| Echo { from, to, size: *size }).collect();
        let mut best = None;
        for (size, outcome) in sizes.iter().zip(echo(socket, &echoes, patience)) {
            match outcome {
                Ok(Some(_)) => best = best.max(Some(*size)),
                Ok(None) => {}
                // An interface on the way out does not take it.
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(best)
    };
    if of <= SMALLEST || came(&[of])?.is_some() {
        return Ok(of);
    }
    let (mut low, mut high) = (SMALLEST, of);
    if came(&[low])?.is_none() {
        return Ok(0);
    }
    while high - low > 1 {
        let step = (high - low).div_ceil(32).max(1);
        let sizes: Vec<u16> =
            (1..32).map(|count| low.saturating_add(step * count)).filter(|size| *size < high).collect();
        match came(&sizes)? {
            Some(best) => {
                high = high.min(best.saturating_add(step));
                low = best;
            }
            None => high = low.saturating_add(step).min(high),
        }
        if step == 1 {
            break;
        }
    }
    Ok(low)
}

/// One echo request by IPv6, repeated like the others.
pub(super) fn echo6(from: Option<Ipv6Addr>, to: Ipv6Addr, patience: Duration) -> Echoed {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::V6(SocketAddrV6::new(from, 0, 0, 0)).into())?;
    }
    let mark = rand::random::<[u8; 6]>();
    let mut packet = [0_u8; 64];
    packet[0] = 128;
    packet[8..14].copy_from_slice(&mark);
    let address = SocketAddr::V6(SocketAddrV6::new(to, 0, 0, 0)).into();
    for _ in 0..TRIES {
        let at = Instant::now();
        // The kernel fills in the checksum of ICMPv6.
        socket.send_to(&packet, &address)?;
        let until = at + patience / TRIES;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left.max(LEAST)))?;
            let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
            let Ok((length, sender)) = socket.recv_from(&mut buffer) else { break };
            let is_from = sender.as_socket_ipv6().is_some_and(|sender| *sender.ip() == to);
            if is_from && length >= 14 {
                return Ok(Some(at.elapsed()));
            }
        }
    }
    Ok(None)
}

/// Both ends, if both are of IPv4.
pub(super) fn both_v4(from: Option<IpAddr>, to: IpAddr) -> Option<(Option<Ipv4Addr>, Ipv4Addr)> {
    match (from, to) {
        (None, IpAddr::V4(to)) => Some((None, to)),
        (Some(IpAddr::V4(from)), IpAddr::V4(to)) => Some((Some(from), to)),
        (_, IpAddr::V6(_)) | (Some(IpAddr::V6(_)), IpAddr::V4(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_large_as_asked_and_its_checksum_is_right() {
        let echo = Echo { from: Some([10, 0, 0, 1].into()), to: [10, 0, 0, 2].into(), size: 1450 };
        let packet = request(&echo, 7, 9, [1; 6]);
        assert_eq!(packet.len(), 1450);
        assert_eq!(packet[6], 0x40, "it is not to be fragmented");
        assert_eq!(checksum(&packet[20..]), 0, "a sum over a right packet is nought");
    }

    #[test]
    fn only_replies_to_our_requests_are_taken() {
        let echo = Echo { from: None, to: [127, 0, 0, 1].into(), size: 64 };
        let mut packet = request(&echo, 7, 9, [1; 6]);
        assert_eq!(answer(&packet, [1; 6]), None, "a request is no reply");
        packet[20] = 0;
        assert_eq!(answer(&packet, [1; 6]), Some((7, 9)));
        assert_eq!(answer(&packet, [2; 6]), None, "another's");
        assert_eq!(answer(&packet[..22], [1; 6]), None, "half of one");
    }

    #[test]
    fn this_machine_answers_itself() {
        let Ok(socket) = open() else { return eprintln!("skipped: no raw sockets here") };
        let to = Ipv4Addr::LOCALHOST;
        let outcomes =
            echo(&socket, &[Echo::small(None, to), Echo::small(Some(to), to)], Duration::from_secs(3));
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Some(_)))), "{outcomes:?}");
        assert_eq!(largest(&socket, None, to, 1500, Duration::from_secs(3)).unwrap(), 1500);
    }
}
