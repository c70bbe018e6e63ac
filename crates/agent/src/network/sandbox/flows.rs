//! Ends what the kernel remembers of datagrams that go to tasks which are gone.
//!
//! A TCP connection to such a task is reset, and that is its end. Datagrams have no end: a socket that goes on sending from one port would
//! be sent to the same address for ever. So the kernel is told to forget where it sent them; the next one is decided about anew.

use std::{collections::BTreeSet, io, net::Ipv4Addr};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The messages of connection tracking: get, and delete.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST`, with `NLM_F_DUMP` or `NLM_F_ACK`.
const DUMP: u16 = 0x301;
const ACKNOWLEDGED: u16 = 0x5;
/// Types of netlink messages: an error or an acknowledgement, and the end of a dump.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// Behind the header: family, version, resource.
const FAMILY: usize = 4;
const INET: u8 = 2;
const TCP: u8 = 6;
/// Attributes: the tuple of a direction; in it addresses and protocol; in these source and destination, and the number.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const NUMBER: u16 = 1;

/// Has the calling thread's namespace forget where it sends what is no TCP and went to one of `vips`, unless that is `alive`. Answers how
/// many it forgot.
pub(super) fn forget(vips: &BTreeSet<Ipv4Addr>, alive: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&message(GET, DUMP, &[]), &SocketAddr::new(0, 0), 0)?;
    let mut gone = Vec::new();
    let mut buffer = Vec::with_capacity(1 << 16);
    'dump: loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        for (kind, body) in messages(&buffer) {
            match kind {
                DONE => break 'dump,
                ERROR => return Err(error_of(body).unwrap_or_else(|| io::ErrorKind::InvalidData.into())),
                _ => gone.extend(stale(body.get(FAMILY..).unwrap_or_default(), vips, alive)),
            }
        }
    }
    for original in &gone {
        socket.send_to(&message(DELETE, ACKNOWLEDGED, original), &SocketAddr::new(0, 0), 0)?;
        buffer.clear();
        // It may have ended by itself meanwhile.
        socket.recv(&mut buffer, 0)?;
    }
    Ok(gone.len())
}

/// The attribute that names a flow which is to be forgotten.
fn stale(flow: &[u8], vips: &BTreeSet<Ipv4Addr>, alive: &BTreeSet<Ipv4Addr>) -> Option<Vec<u8>> {
    let original = find(flow, ORIGINAL)?;
    let protocol = *find(find(original, PROTOCOL)?, NUMBER)?.first()?;
    let asked = address(find(find(original, ADDRESSES)?, DESTINATION)?)?;
    let answers = address(find(find(find(flow, REPLY)?, ADDRESSES)?, SOURCE)?)?;
    (protocol != TCP && vips.contains(&asked) && !alive.contains(&answers)).then(|| {
        let length = u16::try_from(original.len() + 4).unwrap_or(u16::MAX);
        // With the flag of attributes that hold others.
        [&length.to_ne_bytes()[..], &(ORIGINAL | 0x8000).to_ne_bytes(), original].concat()
    })
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// The content of the first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, k0, k1, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let content = bytes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & 0x3fff == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + FAMILY + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// The type and what is behind the header of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    Some(io::Error::from_raw_os_error(code.saturating_neg()))
}
