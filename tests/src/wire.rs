//! What a node sends to addresses that nobody has any more, as its kernel sees it.
//!
//! A retransmission is not counted: it is of a request that was sent before.

use std::{
    collections::HashSet,
    fs::File,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use wharf_testkit::cluster::Node;

/// A segment that had not been sent before, to one of the addresses.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// When it was seen.
    pub at: Instant,
    /// It opens a connection; else it carries data on one.
    pub opens: bool,
}

/// Watches what a node sends, until it is asked what that was.
#[derive(Debug)]
pub struct Wiretap {
    sent: Arc<Mutex<Vec<Sent>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Wiretap {
    /// Begins to watch what `node` sends by TCP to these addresses, over any of its interfaces.
    pub fn start(node: &Node, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<Self> {
        let pid = node.init_pid().with_context(|| format!("{} does not run", node.name()))?;
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let addresses: HashSet<_> = addresses.into_iter().collect();
        let (sent, stop) = (Arc::<Mutex<Vec<Sent>>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (Arc::clone(&sent), Arc::clone(&stop));
        let (ready, opened) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let socket = open()?;
            // Nobody waits any more if this fails.
            let _ = ready.send(());
            watch(&socket, &addresses, &into, &until)
        });
        if opened.recv().is_err() {
            let ended = thread.join().map_err(|_| anyhow!("the wiretap panicked"))?;
            return Err(ended.err().unwrap_or_else(|| anyhow!("the wiretap ended")));
        }
        Ok(Self { sent, stop, thread })
    }

    /// Ends, and gives what was sent, in its order.
    pub fn stop(self) -> Result<Vec<Sent>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the wiretap panicked"))??;
        Ok(std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn open() -> Result<OwnedFd> {
    // Of all interfaces, what comes in and what goes out, from the IP header on.
    let socket =
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    setsockopt(&socket, sockopt::RcvBuf, &(8 << 20))?;
    Ok(socket)
}

fn watch(
    socket: &OwnedFd,
    addresses: &HashSet<Ipv4Addr>,
    sent: &Mutex<Vec<Sent>>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut known = HashSet::new();
    let mut packet = [0_u8; 256];
    while !stop.load(Ordering::Relaxed) {
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_TRUNC) {
            Ok(length) => length.min(packet.len()),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("reading packets"),
        };
        let Some(segment) = Segment::read(&packet[..length]) else { continue };
        // The same segment passes several interfaces, and is sent again when nobody answers.
        if addresses.contains(&segment.to)
            && (segment.opens || segment.has_data)
            && known.insert((segment.to, segment.ports, segment.number, segment.opens))
        {
            let one = Sent { at: Instant::now(), opens: segment.opens };
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    to: Ipv4Addr,
    ports: [u8; 4],
    number: [u8; 4],
    opens: bool,
    has_data: bool,
}

impl Segment {
    /// The TCP segment in an IPv4 packet, if it is one.
    fn read(packet: &[u8]) -> Option<Self> {
        const TCP: u8 = 6;
        let (version, header) = (packet.first()? >> 4, usize::from(packet.first()? & 15) * 4);
        if version != 4 || *packet.get(9)? != TCP {
            return None;
        }
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        let tcp = packet.get(header..)?;
        let offset = usize::from(*tcp.get(12)? >> 4) * 4;
        let flags = *tcp.get(13)?;
        Some(Self {
            to: to.into(),
            ports: tcp.get(..4)?.try_into().ok()?,
            number: tcp.get(4..8)?.try_into().ok()?,
            opens: flags & 0b1_0010 == 0b10,
            has_data: total > header + offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(flags: u8, data: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + data];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(40 + data).unwrap().to_be_bytes());
        packet[9] = 6;
        packet[16..20].copy_from_slice(&[10, 1, 2, 3]);
        packet[20..24].copy_from_slice(&[1, 2, 3, 4]);
        packet[24..28].copy_from_slice(&[9, 9, 9, 9]);
        packet[32] = 0x50;
        packet[33] = flags;
        packet
    }

    #[test]
    fn what_opens_a_connection_and_what_carries_data_are_told_from_the_rest() {
        let read = |flags, data| {
            let segment = Segment::read(&packet(flags, data)).unwrap();
            assert_eq!((segment.to, segment.ports), (Ipv4Addr::new(10, 1, 2, 3), [1, 2, 3, 4]));
            (segment.opens, segment.has_data)
        };
        assert_eq!(read(0b10, 0), (true, false), "SYN");
        assert_eq!(read(0b1_0010, 0), (false, false), "an answer to one");
        assert_eq!(read(0b1_0000, 0), (false, false), "an acknowledgement");
        assert_eq!(read(0b1_1000, 5), (false, true), "data");
        assert_eq!(Segment::read(&packet(0b10, 0)[..30]), None, "cut off");
        let mut udp = packet(0b10, 0);
        udp[9] = 17;
        assert_eq!(Segment::read(&udp), None);
    }
}
