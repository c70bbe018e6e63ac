//! A name server that knows no name but those that say their address, such as `10-0-0-7.address.test`: every other question is
//! answered with NXDOMAIN at once.
//!
//! Without it a name that does not exist costs a container ten to twenty seconds of waiting for
//! servers that are not there; with it, what must fail fails as fast as in a real network.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

const HEADER: usize = 12;
const PORT: u16 = 53;

/// The domain of the names that say their address.
const KNOWN: &[u8] = b"\x07address\x04test\0";

/// The answer to a question: its header and question repeated, with "no such name", or with the address that the name says.
/// Whatever is no question gets none.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let is_response = question.get(2)? & 0x80 != 0;
    if question.len() < HEADER || is_response || question[4..6] != [0, 1] {
        return None;
    }
    let name = question[HEADER..].iter().position(|&byte| byte == 0)?;
    let end = HEADER + name + 1 + 4; // the name's end, its type and class
    let mut reply = question.get(..end)?.to_vec();
    reply[2] = 0x84 | (question[2] & 0x79); // response, authoritative; opcode and RD as asked
    reply[3] = 0x83; // recursion available, NXDOMAIN
    reply[6..HEADER].fill(0); // no answers, authorities or additions
    if let Some(address) = address(&question[HEADER..=HEADER + name]) {
        reply[3] = 0x80;
        if question[end - 4..end] == [0, 1, 0, 1] {
            reply[7] = 1;
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]); // the same name, its address, for a minute
            reply.extend(address.octets());
        }
    }
    Some(reply)
}

/// The address that a name says.
fn address(name: &[u8]) -> Option<Ipv4Addr> {
    let label = name.strip_suffix(KNOWN)?;
    let (length, text) = label.split_first()?;
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == usize::from(*length))?;
    text.replace('-', ".").parse().ok()
}

/// Answers questions on `socket` until an empty datagram arrives.
fn serve(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // A client that went away before its answer came is reported here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(());
        }
        if let Some(reply) = answer(&buffer[..length]) {
            // The client asks again if this is lost.
            drop(socket.send_to(&reply, from));
        }
    }
}

/// Serves in this process and this network namespace until it is killed.
pub fn serve_here(address: Ipv4Addr) -> Result<()> {
    let socket =
        UdpSocket::bind((address, PORT)).with_context(|| format!("cannot listen on {address}:{PORT}"))?;
    serve(&socket).context("the name server stopped")
}

/// A name server in a thread of this process, with its socket in another network namespace.
#[derive(Debug)]
pub(crate) struct Resolver {
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    pub(crate) fn start(namespace: &Path, address: Ipv4Addr) -> Result<Self> {
        let file = std::fs::File::open(namespace)?;
        // A network namespace belongs to a thread, and a socket to the one it was made in: the
        // thread that enters it ends at once and the socket stays there.
        let socket = thread::spawn(move || -> Result<UdpSocket> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .context("cannot enter the switch's network namespace")?;
            UdpSocket::bind((address, PORT)).with_context(|| format!("cannot listen on {address}:{PORT}"))
        })
        .join()
        .map_err(|_| anyhow!("the thread that opens the name server's socket panicked"))??;
        let mine = socket.try_clone()?;
        let thread = thread::Builder::new().name("resolver".into()).spawn(move || drop(serve(&mine)))?;
        Ok(Self { socket, thread: Some(thread) })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let sent = self.socket.local_addr().and_then(|own: SocketAddr| self.socket.send_to(&[], own));
        // If the wake-up could not be sent, the thread is left to the end of the process.
        if let (Ok(_), Some(thread)) = (sent, self.thread.take()) {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x02db\x05local\x00\x00\x01\x00\x01\x00\x00\x29";

    #[test]
    fn a_question_is_answered_with_no_such_name() {
        let reply = answer(QUESTION).expect("an answer");
        assert_eq!(reply[..2], QUESTION[..2], "the same id");
        assert_eq!(reply[2] & 0x80, 0x80, "a response");
        assert_eq!(reply[3] & 0x0f, 3, "NXDOMAIN");
        assert_eq!(reply[4..12], [0, 1, 0, 0, 0, 0, 0, 0], "one question and nothing else");
        assert_eq!(reply[12..], QUESTION[12..26], "the question, without what followed it");
    }

    #[test]
    fn a_name_that_says_its_address_has_it() {
        let question = |kind| {
            let name = b"\x0810-0-0-7\x07address\x04test\0";
            [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &name[..], &[0, kind, 0, 1]].concat()
        };
        let reply = answer(&question(1)).expect("an answer");
        assert_eq!((reply[3], &reply[4..12]), (0x80, &[0, 1, 0, 1, 0, 0, 0, 0][..]));
        assert_eq!(reply[reply.len() - 4..], [10, 0, 0, 7]);
        let none = answer(&question(28)).expect("an answer");
        assert_eq!((none[3], none[7]), (0x80, 0), "it exists, without an IPv6 address");
    }

    #[test]
    fn what_is_no_question_gets_no_answer() {
        let mut response = QUESTION.to_vec();
        response[2] |= 0x80;
        assert_eq!(answer(&response), None);
        assert_eq!(answer(&QUESTION[..14]), None, "cut off in the name");
        assert_eq!(answer(&[]), None);
    }
}
