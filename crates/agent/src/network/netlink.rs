//! Talks to the kernel's routing tables: whole dumps, and changes in batches.
//!
//! - A socket stays in the network namespace of the thread that opened it, whichever thread uses it later.
//! - A batch is one message to the kernel for many changes; only failures and its end are answered, so that ten thousand
//!   entries cost some hundred system calls.
//! - After an error of the socket itself nothing is known of what was applied: the caller opens another and reads again.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteMessage},
    },
    sys::{
        Socket, SocketAddr,
        protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
    },
};

/// Changes sent at once: few enough that a failure of each still fits the receive buffer.
const BATCH: usize = 128;
/// Room for everything the kernel can have to say to one batch.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel answers at once or never: a lost answer must not hold the thread for ever.
const ANSWER: Duration = Duration::from_secs(5);
/// A dump that the kernel says was overtaken by a change is read again so many times.
const DUMPS: usize = 8;
/// Set in the messages of a dump that is not consistent.
const DUMP_INTERRUPTED: u16 = 0x10;

/// Which route the kernel would take to an address, as a question for [`Netlink::ask`].
pub(crate) fn route_to(to: IpAddr) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.attributes.push(RouteAttribute::Destination(to.into()));
    RouteNetlinkMessage::GetRoute(request)
}

/// A change and the flags that say whether it may create or replace.
pub(super) struct Change {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// An open netlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket of the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_cap_ack(true)?;
        let seconds = i64::try_from(ANSWER.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        // Without the capability the default has to do: a batch whose every change fails could then overrun it.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Everything of one kind. What this program cannot read is left out.
    pub(crate) fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS {
            if let Some(found) = self.dump_once(request)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's tables changed during every attempt to read them"))
    }

    /// The kernel's one answer to a question that is no dump: which route it would take.
    pub(crate) fn ask(&mut self, request: &RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        append(&mut bytes, request.clone(), NLM_F_REQUEST, sequence);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        loop {
            self.receive()?;
            for part in Parts(&self.buffer) {
                let (header, body) = part?;
                if header.sequence_number != sequence {
                    continue;
                }
                return match body.map(|message| message.payload) {
                    Some(NetlinkPayload::InnerMessage(message)) => Ok(Some(message)),
                    Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
                    Some(_) | None => Ok(None),
                };
            }
        }
    }

    /// None if the tables changed while they were read.
    fn dump_once(&mut self, request: &RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        append(&mut bytes, request.clone(), NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let (mut found, mut consistent, mut unread) = (Vec::new(), true, 0_usize);
        loop {
            self.receive()?;
            for part in Parts(&self.buffer) {
                let (header, body) = part?;
                if header.sequence_number != sequence {
                    continue;
                }
                consistent &= header.flags & DUMP_INTERRUPTED == 0;
                match body.map(|message| message.payload) {
                    Some(NetlinkPayload::InnerMessage(message)) => found.push(message),
                    Some(NetlinkPayload::Done(done)) if done.code != 0 => {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    Some(NetlinkPayload::Done(_)) => {
                        if unread > 0 {
                            tracing::debug!(messages = unread, "kernel messages not understood");
                        }
                        return Ok(consistent.then_some(found));
                    }
                    Some(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Some(_) => {}
                    None => unread += 1,
                }
            }
        }
    }

    /// Applies changes in their order, each on its own: answers which failed (by their position) and why.
    pub(super) fn apply(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        let (mut failed, mut bytes, mut in_batch, mut first) = (Vec::new(), Vec::new(), 0_usize, 0_usize);
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            let last = in_batch + 1 == BATCH || changes.peek().is_none();
            let answer = if last { NLM_F_ACK } else { 0 };
            let sequence = self.next_sequence();
            append(&mut bytes, change.message, change.flags | NLM_F_REQUEST | answer, sequence);
            in_batch += 1;
            if last {
                self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
                self.answers(sequence, in_batch, first, &mut failed)?;
                bytes.clear();
                first += in_batch;
                in_batch = 0;
            }
        }
        Ok(failed)
    }

    /// Reads the answers to a batch of `count` changes that ends with the sequence number `last`.
    fn answers(
        &mut self,
        last: u32,
        count: usize,
        first: usize,
        failed: &mut Vec<(usize, io::Error)>,
    ) -> io::Result<()> {
        loop {
            self.receive()?;
            for part in Parts(&self.buffer) {
                let (header, body) = part?;
                let back = last.wrapping_sub(header.sequence_number) as usize;
                let Some(NetlinkPayload::Error(answer)) = body.map(|message| message.payload) else {
                    continue;
                };
                if back >= count {
                    continue;
                }
                if answer.code.is_some() {
                    failed.push((first + count - 1 - back, answer.to_io()));
                }
                if back == 0 {
                    return Ok(());
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        loop {
            return match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
                Ok(_) => Ok(()),
            };
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

/// Something that the kernel tells of its own accord.
pub(super) enum Event {
    /// What is now, or is gone.
    Message(Box<RouteNetlinkMessage>),
    /// A setting of IPv4 of this device.
    Setting(u32),
    /// There was more than could be kept.
    Lost,
}

/// What the kernel tells of changes, without being asked.
pub(super) struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Groups of `NETLINK_ROUTE`: links, neighbours, addresses, routes and settings of IPv4, and addresses of IPv6.
const TABLES: [u32; 6] = [1, 3, 5, 7, 24, 9];
/// The group of `NETLINK_NETFILTER` that tells of rules.
const RULES: u32 = 7;
/// A setting of IPv4 or IPv6 changed: a message that the library does not know.
const NEW_SETTING: u16 = 80;

impl Events {
    /// Of links, neighbours, addresses and routes of the calling thread's network namespace.
    pub(super) fn of_tables() -> io::Result<Self> {
        Self::of(NETLINK_ROUTE, &TABLES)
    }

    /// Of nftables' rules of the calling thread's network namespace. What they say is not told, only that there was something.
    pub(super) fn of_rules() -> io::Result<Self> {
        Self::of(NETLINK_NETFILTER, &[RULES])
    }

    fn of(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(Self { socket, buffer: Vec::with_capacity(1 << 16) })
    }

    /// Everything that is there, without waiting.
    pub(super) fn read(&mut self, mut what: impl FnMut(Event)) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => Parts::new(&self.buffer).flatten().filter_map(event).for_each(&mut what),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => what(Event::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn event((head, body): Part) -> Option<Event> {
    if head.kind == NEW_SETTING {
        return head.device.map(Event::Setting);
    }
    match body?.payload {
        NetlinkPayload::InnerMessage(message) => Some(Event::Message(Box::new(message))),
        _ => None,
    }
}

/// Writes a message behind those that are there; each is a multiple of four bytes long.
fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let at = bytes.len();
    bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[at..]);
}

/// The messages of one datagram: each one's header, and its content if this program understands it.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

/// What we ask of a message's header.
struct Head {
    flags: u16,
    sequence_number: u32,
    kind: u16,
    /// Of a message about a setting: which device's.
    device: Option<u32>,
}

type Part = (Head, Option<NetlinkMessage<RouteNetlinkMessage>>);

impl Iterator for Parts<'_> {
    type Item = io::Result<Part>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Ok(head) = NetlinkBuffer::new_checked(self.0) else {
            self.0 = &[];
            return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a truncated netlink message")));
        };
        let (length, kind) = (head.length() as usize, head.message_type());
        // A header of 16 bytes, the family in 4, and the first attribute: the device.
        let device = self.0.get(24..28).filter(|_| kind == NEW_SETTING && length >= 28);
        let device = device.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        let header = Head { flags: head.flags(), sequence_number: head.sequence_number(), kind, device };
        let body = NetlinkMessage::deserialize(&self.0[..length]).ok();
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((header, body)))
    }
}
