//! Receives many datagrams and sends many answers with one system call each.

use std::{
    io,
    io::IoSlice,
    io::IoSliceMut,
    net::SocketAddrV4,
    ops::Range,
    os::fd::{AsFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, sendto},
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

use super::wire;

/// Datagrams with one call.
const MANY: usize = 32;
/// The largest question; what is larger is cut by the kernel, and malformed then.
const LARGEST: usize = 1536;
/// An answer's usual size.
const USUAL: usize = 256;

/// Has answers go whole or not at all (RFC 9715, 3.1): one in parts is lost with any of them, and parts can be forged. It also spares the kernel
/// numbers for packets that are never cut. One that is too large for the way is [cut](wire::cut) here.
pub(super) fn never_in_parts(socket: &impl AsFd) -> io::Result<()> {
    Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?)
}

/// Sends one answer.
pub(super) fn send(socket: RawFd, answer: &mut [u8], to: &SockaddrIn) -> nix::Result<()> {
    match sendto(socket, answer, to, MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EMSGSIZE) => send_cut(socket, answer, to),
        sent => sent.map(drop),
    }
}

fn send_cut(socket: RawFd, answer: &mut [u8], to: &SockaddrIn) -> nix::Result<()> {
    sendto(socket, wire::cut(answer), to, MsgFlags::MSG_DONTWAIT).map(drop)
}

/// Questions, and the answers to them.
pub(super) struct Batch {
    /// Of [`LARGEST`] each, one behind the other.
    buffers: Box<[u8]>,
    incoming: MultiHeaders<SockaddrIn>,
    /// Length and sender of each message; none if it is not from an IPv4 address.
    received: Vec<Option<(usize, SockaddrIn)>>,
    answers: Vec<u8>,
    outgoing: MultiHeaders<SockaddrIn>,
    to_send: Vec<(Range<usize>, SockaddrIn)>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            // Zeros from the allocator are real memory only once many come together, which most networks never see.
            buffers: vec![0; MANY * LARGEST].into(),
            incoming: MultiHeaders::preallocate(MANY, None),
            received: Vec::with_capacity(MANY),
            answers: Vec::with_capacity(MANY * USUAL),
            outgoing: MultiHeaders::preallocate(MANY, None),
            to_send: Vec::with_capacity(MANY),
        }
    }

    /// Receives what is there; how many datagrams that were.
    pub(super) fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        let Self { buffers, incoming, received, .. } = self;
        let mut buffers = buffers.chunks_exact_mut(LARGEST);
        let mut slices: [_; MANY] =
            std::array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
        let messages = recvmmsg(socket, incoming, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        received.clear();
        received.extend(messages.map(|message| Some((message.bytes, message.address?))));
        Ok(received.len())
    }

    /// Collects the answers to what was received: `answer` writes one, or nothing.
    pub(super) fn answer(&mut self, mut answer: impl FnMut(&[u8], SocketAddrV4, &mut Vec<u8>)) {
        self.answers.clear();
        self.to_send.clear();
        for (received, buffer) in self.received.iter().zip(self.buffers.chunks_exact(LARGEST)) {
            let Some((length, sender)) = received else { continue };
            let start = self.answers.len();
            answer(&buffer[..*length], (*sender).into(), &mut self.answers);
            if self.answers.len() > start {
                self.to_send.push((start..self.answers.len(), *sender));
            }
        }
    }

    /// Sends the answers; how many the kernel did not take. Who asked asks again.
    pub(super) fn send(&mut self, socket: RawFd) -> usize {
        let Self { answers, outgoing, to_send, .. } = self;
        let (mut rest, mut unsent) = (to_send.as_slice(), 0);
        while let [(first, to), behind @ ..] = rest {
            let slice =
                |index| rest.get::<usize>(index).map_or(&[][..], |(range, _)| &answers[range.clone()]);
            let slices: [_; MANY] = std::array::from_fn(|index| [IoSlice::new(slice(index))]);
            let addresses: [_; MANY] = std::array::from_fn(|index| rest.get(index).map(|(_, to)| *to));
            let count = rest.len().min(MANY);
            let sent =
                sendmmsg(socket, outgoing, &slices[..count], &addresses[..count], [], MsgFlags::MSG_DONTWAIT)
                    .map(Iterator::count);
            rest = match sent {
                Ok(sent) => &rest[sent.clamp(1, count)..],
                Err(Errno::EINTR) => rest,
                Err(Errno::EAGAIN) => return unsent + rest.len(),
                Err(Errno::EMSGSIZE) => {
                    unsent += usize::from(send_cut(socket, &mut answers[first.clone()], to).is_err());
                    behind
                }
                // The first of them has nowhere to go.
                Err(_) => {
                    unsent += 1;
                    behind
                }
            };
        }
        unsent
    }
}
