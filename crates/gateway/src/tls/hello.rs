//! Reads what a client says first of a TLS connection, without answering: for whom it is, and what it wants to speak.
//!
//! - Nothing but the server name and the protocols is looked at; whether the rest makes sense is for whoever ends TLS.
//! - A hello may come in several records, and each byte by byte.

use std::net::IpAddr;

/// The most that is read before a hello must be whole: the largest that clients send have some thousand bytes.
pub(crate) const LONGEST: usize = 32 << 10;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const LARGEST_RECORD: usize = 1 << 14;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a hello, as far as it goes.
    Incomplete,
    /// A hello.
    Hello(Hello),
    /// Something else, whatever follows.
    Other,
}

/// What a hello says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hello {
    /// The server's name, in lower case and without a dot at its end.
    pub(crate) server_name: Option<String>,
    /// It offers `acme-tls/1` and nothing else: a certificate authority asks (RFC 8737).
    pub(crate) is_acme: bool,
}

/// Whether a connection whose first byte this is may be one of TLS. No request of HTTP begins with it.
pub(crate) const fn may_be_tls(first: u8) -> bool {
    first == HANDSHAKE
}

/// Reads a hello.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let mut records = bytes;
    let mut message: Vec<u8> = Vec::new();
    loop {
        if let Some(parsed) = parse_message(&message) {
            return parsed;
        }
        match record(records) {
            Record::Whole(content, rest) => {
                message.extend_from_slice(content);
                records = rest;
            }
            Record::Incomplete => return Parsed::Incomplete,
            Record::Other => return Parsed::Other,
        }
    }
}

enum Record<'a> {
    Whole(&'a [u8], &'a [u8]),
    Incomplete,
    Other,
}

/// The next record of a handshake.
fn record(bytes: &[u8]) -> Record<'_> {
    match bytes {
        [kind, ..] if *kind != HANDSHAKE => Record::Other,
        // Every version of TLS says 3 here.
        [_, major, ..] if *major != 3 => Record::Other,
        [_, _, _, high, low, rest @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            match rest.split_at_checked(length) {
                _ if length == 0 || length > LARGEST_RECORD => Record::Other,
                Some((content, rest)) => Record::Whole(content, rest),
                None => Record::Incomplete,
            }
        }
        _ => Record::Incomplete,
    }
}

/// Nothing if the message is not whole yet.
fn parse_message(message: &[u8]) -> Option<Parsed> {
    let (kind, rest) = message.split_first()?;
    if *kind != CLIENT_HELLO {
        return Some(Parsed::Other);
    }
    let (length, rest) = rest.split_first_chunk::<3>()?;
    let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    if length > LONGEST {
        return Some(Parsed::Other);
    }
    let body = rest.get(..length)?;
    Some(parse_body(Fields(body)).map_or(Parsed::Other, Parsed::Hello))
}

/// Nothing if the lengths in it contradict each other.
fn parse_body(mut body: Fields<'_>) -> Option<Hello> {
    // Version and random.
    body.take(2 + 32)?;
    let _session = body.short()?;
    let _suites = body.long()?;
    let _compression = body.short()?;
    let mut hello = Hello::default();
    if body.0.is_empty() {
        // Before extensions were invented.
        return Some(hello);
    }
    let mut extensions = Fields(body.long()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let mut content = Fields(extensions.long()?);
        match kind {
            0 => hello.server_name = server_name(content.long()?)?,
            16 => hello.is_acme = is_acme(content.long()?)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The first name of a host; what is no name of a host is passed over.
fn server_name(list: &[u8]) -> Option<Option<String>> {
    let mut list = Fields(list);
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.long()?;
        if kind == 0 {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            let is_name = !name.is_empty() && name.len() <= 254 && name.iter().all(plain);
            let name = std::str::from_utf8(name).ok().filter(|_| is_name);
            // An address is no name (RFC 6066, section 3), though clients that were given one send it.
            let name = name.filter(|name| name.parse::<IpAddr>().is_err());
            return Some(name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()));
        }
    }
    Some(None)
}

fn is_acme(list: &[u8]) -> Option<bool> {
    let mut list = Fields(list);
    let first = list.short()?;
    Some(first == super::ACME && list.0.is_empty())
}

/// Fields with their lengths before them.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
    fn number(&mut self) -> Option<u16> {
        let (number, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*number))
    }
    /// With a length of one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }
    /// With a length of two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// What a client of rustls says first.
    pub(crate) fn hello_of(name: &str, protocols: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn hello(name: &str, is_acme: bool) -> Parsed {
        let server_name = Some(name.to_owned()).filter(|name| !name.is_empty());
        Parsed::Hello(Hello { server_name, is_acme })
    }

    #[test]
    fn a_hello_says_for_whom_it_is() {
        assert_eq!(parse(&hello_of("Shop.Example.com", &[])), hello("shop.example.com", false));
        assert_eq!(parse(&hello_of("127.0.0.1", &[b"h2"])), hello("", false), "no name is sent");
        // Other clients do send an address; the library that makes hellos here does not.
        let mut sent = hello_of("127x0x0x1", &[b"h2"]);
        assert_eq!(parse(&sent), hello("127x0x0x1", false));
        let at = sent.windows(9).position(|bytes| bytes == b"127x0x0x1").unwrap();
        sent[at..at + 9].copy_from_slice(b"127.0.0.1");
        assert_eq!(parse(&sent), hello("", false), "an address is no server name");
        assert_eq!(parse(&hello_of("a.example", &[b"acme-tls/1"])), hello("a.example", true));
        let both = hello_of("a.example", &[b"acme-tls/1", b"h2"]);
        assert_eq!(parse(&both), hello("a.example", false), "only alone is it an authority's question");
    }

    #[test]
    fn a_hello_may_come_in_several_records_and_pieces() {
        let whole = hello_of("shop.example.com", &[b"h2", b"http/1.1"]);
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Parsed::Incomplete, "{cut}");
        }
        let records: Vec<u8> = whole[5..]
            .chunks(7)
            .flat_map(|part| {
                let length = u8::try_from(part.len()).unwrap();
                [&[HANDSHAKE, 3, 1, 0, length], part].concat()
            })
            .collect();
        assert_eq!(parse(&records), hello("shop.example.com", false));
        assert_eq!(parse(&[&whole[..], b"more"].concat()), hello("shop.example.com", false));
    }

    #[test]
    fn other_protocols_are_told_at_once() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x16\x02", b"\x15\x03\x01\0\x02\x02\x28", b"\x16\x03\x01\0\0"]
        {
            assert_eq!(parse(bytes), Parsed::Other, "{bytes:?}");
        }
        assert_eq!(parse(b""), Parsed::Incomplete);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much_for_it(bytes in any::<Vec<u8>>(), at in 0_usize..300, byte in any::<u8>()) {
            let _ = parse(&bytes);
            let _ = parse(&[&[HANDSHAKE, 3, 1, 0, 200, 1, 0, 0, 100], &bytes[..]].concat());
            let mut damaged = hello_of("shop.example.com", &[b"h2"]);
            if let Some(place) = damaged.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&damaged);
        }
    }
}
