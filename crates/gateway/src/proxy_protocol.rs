//! The PROXY protocol (versions 1 and 2): what a proxy says first of whom it speaks for.
//!
//! - Nothing is believed that is not whole: bytes that are no header, or may still become one, are told from a header.
//! - A header without addresses (`LOCAL`, `UNKNOWN`, sockets of other families) is one: the connection's own addresses hold.
//! - We write version 2 only. Between an address of IPv4 and one of IPv6 both are written as IPv6.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;
/// Addresses and extensions of version 2; those in use have some dozens of bytes.
const LONGEST_BODY: usize = 4096;
/// The fixed part of version 2.
const HEAD: usize = 16;

/// Whom a connection is from, and where it went, as the proxy before us saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proxied {
    /// The client.
    pub(crate) source: SocketAddr,
    /// Where it connected to.
    pub(crate) destination: SocketAddr,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a header, as far as it goes.
    Incomplete,
    /// A header.
    Header {
        /// Its length: what follows is the connection's own.
        length: usize,
        /// What it says; nothing if the connection's own addresses hold.
        proxied: Option<Proxied>,
    },
    /// No header, whatever follows.
    Malformed(&'static str),
}

/// Reads a header of either version.
#[must_use]
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let common = bytes.iter().zip(&SIGNATURE).take_while(|(byte, other)| byte == other).count();
    if common == SIGNATURE.len() {
        return parse_binary(bytes);
    }
    if common == bytes.len() {
        return Parsed::Incomplete;
    }
    let text = b"PROXY ";
    let common = bytes.iter().zip(text).take_while(|(byte, other)| byte == other).count();
    match common {
        _ if common == text.len() => parse_line(bytes),
        _ if common == bytes.len() => Parsed::Incomplete,
        _ => Parsed::Malformed("the connection does not begin with a PROXY header"),
    }
}

fn parse_line(bytes: &[u8]) -> Parsed {
    let seen = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = seen.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() >= LONGEST_LINE {
            true => Parsed::Malformed("the line of the PROXY header does not end"),
            false => Parsed::Incomplete,
        };
    };
    let header = |proxied| Parsed::Header { length: end + 2, proxied };
    let malformed = Parsed::Malformed("the line of the PROXY header makes no sense");
    let Ok(line) = std::str::from_utf8(&seen[..end]) else { return malformed };
    let words: Vec<&str> = line.split(' ').collect();
    let (family, rest) = match &words[..] {
        ["PROXY", "UNKNOWN", ..] => return header(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), rest @ ..] => (*family, rest),
        _ => return malformed,
    };
    let [source, destination, source_port, destination_port] = rest else { return malformed };
    let address = |address: &str, port: &str| {
        let address: IpAddr = address.parse().ok()?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let is_of_family = address.is_ipv4() == (family == "TCP4");
        (digits && is_of_family).then_some(SocketAddr::new(address, port.parse().ok()?))
    };
    match (address(source, source_port), address(destination, destination_port)) {
        (Some(source), Some(destination)) => header(Some(Proxied { source, destination })),
        _ => malformed,
    }
}

fn parse_binary(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Parsed::Incomplete };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let is_local = match head[12] {
        0x20 => true,
        0x21 => false,
        _ => return Parsed::Malformed("the PROXY header is of an unknown version or command"),
    };
    let addresses = match head[13] {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        // Unspecified, and sockets in the file system: without an address on a network.
        0x00 | 0x31 | 0x32 => 0,
        _ => return Parsed::Malformed("the PROXY header is of an unknown family or transport"),
    };
    if length > LONGEST_BODY {
        return Parsed::Malformed("the PROXY header is too long");
    }
    if !is_local && length < addresses {
        return Parsed::Malformed("the PROXY header is too short for its addresses");
    }
    let Some(body) = bytes.get(HEAD..HEAD + length) else { return Parsed::Incomplete };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let proxied = match addresses {
        _ if is_local => None,
        12 => {
            let address = |at: usize| IpAddr::from([body[at], body[at + 1], body[at + 2], body[at + 3]]);
            Some(Proxied {
                source: SocketAddr::new(address(0), port(8)),
                destination: SocketAddr::new(address(4), port(10)),
            })
        }
        36 => {
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&body[at..at + 16]);
                IpAddr::from(octets)
            };
            Some(Proxied {
                source: SocketAddr::new(address(0), port(32)),
                destination: SocketAddr::new(address(16), port(34)),
            })
        }
        _ => None,
    };
    Parsed::Header { length: HEAD + length, proxied }
}

/// A header of version 2 for a connection over TCP.
#[must_use]
pub(crate) fn header(proxied: Proxied) -> Vec<u8> {
    binary(proxied, 0x1)
}

/// The same for a datagram.
#[must_use]
pub(crate) fn datagram_header(proxied: Proxied) -> Vec<u8> {
    binary(proxied, 0x2)
}

fn binary(proxied: Proxied, transport: u8) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(0x21);
    let (source, destination) = (proxied.source, proxied.destination);
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend([0x10 | transport, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => Ipv6Addr::octets(&address),
            };
            header.extend([0x20 | transport, 0, 36]);
            header.extend(octets(from));
            header.extend(octets(to));
        }
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

/// Reads until the header is there, and answers what it says and what was read beyond it.
///
/// # Errors
/// If the connection ends before, or what it begins with is no header ([`io::ErrorKind::InvalidData`]).
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Option<Proxied>, Vec<u8>)> {
    let mut buffer = Vec::with_capacity(256);
    loop {
        match parse(&buffer) {
            Parsed::Header { length, proxied } => return Ok((proxied, buffer.split_off(length))),
            Parsed::Malformed(why) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
            Parsed::Incomplete => {}
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxied(source: &str, destination: &str) -> Proxied {
        Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let ip =
            prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_part_of_it_is_taken_for_the_whole(
            source in any_address(), destination in any_address(), rest in any::<Vec<u8>>(),
        ) {
            let header = header(Proxied { source, destination });
            for cut in 0..header.len() {
                prop_assert_eq!(parse(&header[..cut]), Parsed::Incomplete);
            }
            let Parsed::Header { length, proxied } = parse(&[&header[..], &rest].concat()) else {
                return Err(TestCaseError::fail("no header"));
            };
            prop_assert_eq!(length, header.len());
            let proxied = proxied.unwrap();
            prop_assert_eq!(proxied.source.ip().to_canonical(), source.ip().to_canonical());
            prop_assert_eq!(proxied.destination.ip().to_canonical(), destination.ip().to_canonical());
            prop_assert_eq!((proxied.source.port(), proxied.destination.port()), (source.port(), destination.port()));
        }

        #[test]
        fn no_bytes_are_too_much_for_it(bytes in any::<Vec<u8>>(), tail in any::<Vec<u8>>()) {
            let _ = parse(&bytes);
            let _ = parse(&[&SIGNATURE[..], &bytes].concat());
            let _ = parse(&[b"PROXY ", &bytes[..]].concat());
            // What is malformed stays so.
            if let Parsed::Malformed(_) = parse(&bytes) {
                let longer = parse(&[&bytes[..], &tail].concat());
                prop_assert!(matches!(longer, Parsed::Malformed(_)));
            }
        }
    }

    #[test]
    fn lines_of_version_1_are_read() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET /";
        let expected = proxied("192.0.2.7:40000", "198.51.100.1:443");
        assert_eq!(parse(line), Parsed::Header { length: line.len() - 5, proxied: Some(expected) });
        for cut in 0..line.len() - 5 {
            assert_eq!(parse(&line[..cut]), Parsed::Incomplete, "{cut}");
        }
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        let expected = proxied("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!(parse(line), Parsed::Header { length: line.len(), proxied: Some(expected) });
        let line = b"PROXY UNKNOWN what ever\r\n";
        assert_eq!(parse(line), Parsed::Header { length: line.len(), proxied: None });
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ", &[b'1'; LONGEST_LINE][..]].concat();
        let strange = [&SIGNATURE[..], &[0x31, 0x11, 0, 12], &[0; 12]].concat();
        let short = [&SIGNATURE[..], &[0x21, 0x21, 0, 12], &[0; 12]].concat();
        let endless = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        let all: [&[u8]; 10] = [
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 99999\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 443\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            &long,
            &strange,
            &short,
            &endless,
        ];
        for bytes in all {
            assert!(matches!(parse(bytes), Parsed::Malformed(_)), "{bytes:?}");
        }
    }

    #[test]
    fn a_local_connection_and_extensions_are_passed_over() {
        let local = [&SIGNATURE[..], &[0x20, 0x00, 0, 0]].concat();
        assert_eq!(parse(&local), Parsed::Header { length: 16, proxied: None });
        let mut extended = header(proxied("192.0.2.7:1", "192.0.2.8:2"));
        extended[15] += 5;
        extended.extend([0x04, 0, 2, 0, 0]);
        let expected = Some(proxied("192.0.2.7:1", "192.0.2.8:2"));
        assert_eq!(parse(&extended), Parsed::Header { length: extended.len(), proxied: expected });
    }

    #[tokio::test]
    async fn what_follows_the_header_is_kept() {
        let bytes = [&header(proxied("192.0.2.7:1", "192.0.2.8:2"))[..], b"hello"].concat();
        let (mut us, mut them) = tokio::io::duplex(8);
        let write = tokio::io::AsyncWriteExt::write_all(&mut them, &bytes);
        let ((), (said, rest)) =
            tokio::join!(async { write.await.unwrap() }, async { read(&mut us).await.unwrap() });
        assert_eq!(said, Some(proxied("192.0.2.7:1", "192.0.2.8:2")));
        let mut all = rest;
        // The rest of the five may not have been read yet.
        drop(them);
        us.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"hello");
    }
}
