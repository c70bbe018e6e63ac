//! Heads of requests and answers as they are passed on: what concerns one connection only is taken off, and what tasks are to know of the client
//! is put on.
//!
//! - A request is understood in one way or refused: one `Host`, which a target in absolute form repeats; lengths that agree; one transfer
//!   coding, `chunked`. What is passed on is written anew from what was understood.
//! - `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are ours; a client's own are believed only if its address is one of
//!   [`super::HttpOptions::trusted`]. There is no `Via`: it makes servers withhold compression.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use parking_lot::Mutex;

use super::Refusal;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What tasks are told of a client, the same for all requests of its connection.
pub(crate) struct Origin {
    address: HeaderValue,
    proto: &'static str,
    port: HeaderValue,
    trusted: bool,
    /// The last `Forwarded`, and the host it was made for: clients rarely change it.
    forwarded: Mutex<Option<(HeaderValue, HeaderValue)>>,
}

impl Origin {
    pub(crate) fn of(client: IpAddr, port: u16, secure: bool, trusted: bool) -> Self {
        Self {
            address: text(&client.to_string()),
            proto: if secure { "https" } else { "http" },
            port: HeaderValue::from(port),
            trusted,
            forwarded: Mutex::default(),
        }
    }

    /// Whether it is a proxy that is believed.
    pub(crate) const fn is_trusted(&self) -> bool {
        self.trusted
    }

    fn forwarded(&self, host: &HeaderValue) -> HeaderValue {
        let mut last = self.forwarded.lock();
        if let Some((_, made)) = last.as_ref().filter(|(of, _)| of == host) {
            return made.clone();
        }
        let address = self.address.to_str().unwrap_or_default();
        let mut value = String::with_capacity(96);
        // IPv6 addresses are in brackets, and whatever has a colon in quotes (RFC 7239).
        let _ = match address.contains(':') {
            true => write!(value, "for=\"[{address}]\""),
            false => write!(value, "for={address}"),
        };
        let _ = write!(value, ";proto={}", self.proto);
        // Hosts were looked at before: they have nothing that would have to be escaped.
        if let Some(host) = host.to_str().ok().filter(|host| !host.is_empty()) {
            let _ = match host.contains(':') {
                true => write!(value, ";host=\"{host}\""),
                false => write!(value, ";host={host}"),
            };
        }
        let made = text(&value);
        // A copy: a piece of the request's head would keep the whole buffer in which it came.
        *last = HeaderValue::from_bytes(host.as_bytes()).ok().map(|host| (host, made.clone()));
        made
    }
}

/// For whom a proxy asks that is believed: of `X-Forwarded-For`, from the right, the first that is no such proxy itself. Whoever stands left
/// of that, and whatever is no address, may be invented by anybody.
pub(crate) fn client(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let all: Vec<_> = tokens(headers, &FORWARDED_FOR).collect();
    let mut client = None;
    for said in all.into_iter().rev() {
        let Some(address) = forwarded_address(said) else { break };
        client = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    client
}

/// An address as proxies write it, some of them with the port.
fn forwarded_address(said: &str) -> Option<IpAddr> {
    let address = said.parse().ok().or_else(|| Some(said.parse::<SocketAddr>().ok()?.ip()));
    let bracketed = || said.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// What can only be what it is.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(value.as_bytes()))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn bad(text: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "malformed", text)
}

/// For whom a request is.
pub(crate) struct Target {
    /// As the client wrote it, for the task. Empty if HTTP/1.0 gave none.
    pub(crate) authority: HeaderValue,
    /// Lower case, without port and final dot; an IPv6 address without brackets.
    host: Option<String>,
}

impl Target {
    /// The host's name.
    pub(crate) fn host(&self) -> &str {
        match &self.host {
            Some(host) => host,
            // It was looked at: it is text.
            None => self.authority.to_str().unwrap_or_default(),
        }
    }

    /// What the request says; refused if that is not one thing.
    pub(crate) fn of(head: &Parts) -> Result<Self, Refusal> {
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let (first, second) = (hosts.next(), hosts.next());
        if second.is_some() {
            return Err(bad("more than one Host"));
        }
        let authority = match (head.uri.authority(), first) {
            (Some(authority), given) => {
                if given.is_some_and(|given| {
                    !given.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
                }) {
                    return Err(bad("Host and the request's target are not the same"));
                }
                if authority.as_str().contains('@') {
                    return Err(bad("the request's target names a user"));
                }
                match given {
                    Some(given) => given.clone(),
                    None => text(authority.as_str()),
                }
            }
            (None, Some(given)) => given.clone(),
            (None, None) if head.version <= Version::HTTP_10 => HeaderValue::from_static(""),
            (None, None) => return Err(bad("no Host")),
        };
        let host = match plain(authority.as_bytes()) {
            Some(true) => None,
            Some(false) => {
                Some(name(authority.to_str().unwrap_or_default()).ok_or_else(|| bad("no valid Host"))?)
            }
            None => return Err(bad("no valid Host")),
        };
        if authority.is_empty() && head.version > Version::HTTP_10 {
            return Err(bad("no Host"));
        }
        Ok(Self { authority, host })
    }
}

/// Whether a host is already as it is looked up; nothing if it cannot be one.
fn plain(host: &[u8]) -> Option<bool> {
    let mut is_plain = host.last() != Some(&b'.');
    for byte in host {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {}
            b'A'..=b'Z' | b':' | b'[' | b']' => is_plain = false,
            _ => return None,
        }
    }
    Some(is_plain)
}

fn name(authority: &str) -> Option<String> {
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        let fits = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return fits.then(|| address.to_string());
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let fits = is_port(port) && !host.is_empty() && !host.contains(['[', ']']);
    let host = host.strip_suffix('.').unwrap_or(host);
    (fits && !host.is_empty()).then(|| host.to_ascii_lowercase())
}

/// What a request wants beyond an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    /// Another protocol on the same connection, which is in `upgrade`.
    pub(crate) upgrade: bool,
    /// To be told to go on before it sends its body.
    pub(crate) proceed: bool,
    /// Trailers may be sent.
    pub(crate) trailers: bool,
}

/// What is in a head that concerns its connection, found in one pass.
#[derive(Default)]
struct Found {
    connection: bool,
    keep_alive: bool,
    proxy_connection: bool,
    transfer_encoding: bool,
    te: bool,
    upgrade: bool,
    expect: bool,
    settings: bool,
    forwarded: bool,
    forwarded_more: bool,
    request_id: bool,
    length: bool,
}

impl Found {
    fn in_head(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "keep-alive" => found.keep_alive = true,
                "proxy-connection" => found.proxy_connection = true,
                "transfer-encoding" => found.transfer_encoding = true,
                "te" => found.te = true,
                "upgrade" => found.upgrade = true,
                "expect" => found.expect = true,
                "http2-settings" => found.settings = true,
                "forwarded" => found.forwarded = true,
                "x-request-id" => found.request_id = true,
                "content-length" => found.length = true,
                name if tells_of_client(name) => found.forwarded_more = true,
                _ => {}
            }
        }
        found
    }

    /// Takes off what concerns one connection, and what the sender says does.
    fn strip(&self, headers: &mut HeaderMap) {
        if self.connection {
            let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
                .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
                // Whatever is said: without these the request would be another one.
                .filter(|name| {
                    ![header::HOST, header::CONTENT_LENGTH, header::COOKIE, header::AUTHORIZATION]
                        .contains(name)
                })
                .collect();
            for name in named {
                headers.remove(name);
            }
            headers.remove(header::CONNECTION);
        }
        let others = [
            (self.keep_alive, KEEP_ALIVE),
            (self.proxy_connection, PROXY_CONNECTION),
            (self.transfer_encoding, header::TRANSFER_ENCODING),
            (self.te, header::TE),
            (self.upgrade, header::UPGRADE),
            (self.settings, HTTP2_SETTINGS),
        ];
        for (is_there, name) in others {
            if is_there {
                headers.remove(name);
            }
        }
    }
}

fn is_chunked_only(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &header::TRANSFER_ENCODING);
    codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) && codings.next().is_none()
}

/// Whether tasks may take it for what we say of clients: to many of them `_` is the same as `-`.
fn tells_of_client(name: &str) -> bool {
    let separated = |byte: Option<&u8>| matches!(byte, Some(b'-' | b'_'));
    match name.as_bytes() {
        [b'x', rest @ ..] if separated(rest.first()) => {
            let rest = &rest[1..];
            (rest.starts_with(b"forwarded") && separated(rest.get(9)))
                || matches!(rest, b"real-ip" | b"real_ip")
        }
        _ => false,
    }
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Makes a client's head one for a task. Afterwards its target is a path, and `host` is not yet set.
pub(crate) fn request(
    head: &mut Parts,
    target: &Target,
    origin: &Origin,
    has_body: bool,
) -> Result<Wishes, Refusal> {
    let found = Found::in_head(&head.headers);
    let mut wishes = Wishes::default();
    let is_understood = head.version == Version::HTTP_11 && is_chunked_only(&head.headers);
    if found.transfer_encoding && !is_understood {
        let text = "a transfer coding other than chunked";
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "malformed", text));
    }
    // hyper has settled which of both counts. Who sends both may be understood otherwise elsewhere.
    if found.length && found.transfer_encoding {
        return Err(bad("both Content-Length and Transfer-Encoding"));
    }
    if found.length && head.headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(bad("more than one Content-Length"));
    }
    if head.method == Method::CONNECT {
        let text = "this is no proxy for connections";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "malformed", text));
    }
    let is_http1 = head.version == Version::HTTP_11;
    let mut protocol = None;
    if found.upgrade && found.connection && is_http1 && !has_body {
        let asked =
            tokens(&head.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
        // HTTP/2 in this way was given up (RFC 9113); the request is answered as it is.
        let known = tokens(&head.headers, &header::UPGRADE).all(|token| !token.eq_ignore_ascii_case("h2c"));
        if asked && known {
            protocol = head.headers.get(header::UPGRADE).cloned();
        }
    }
    if found.te {
        wishes.trailers =
            tokens(&head.headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    }
    if found.expect {
        let expected = head.headers.get(header::EXPECT);
        wishes.proceed = expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        head.headers.remove(header::EXPECT);
        if !wishes.proceed {
            let text = "an expectation other than 100-continue";
            return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "malformed", text));
        }
    }
    found.strip(&mut head.headers);
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
        wishes.upgrade = true;
    }
    if head.uri.scheme().is_some() || head.uri.authority().is_some() {
        head.uri = match head.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::from_static("/"),
        };
    }
    tell(&mut head.headers, target, origin, &found);
    Ok(wishes)
}

/// Says who asks, and how.
fn tell(headers: &mut HeaderMap, target: &Target, origin: &Origin, found: &Found) {
    if !origin.trusted {
        if found.forwarded_more {
            let all: Vec<HeaderName> =
                headers.keys().filter(|name| tells_of_client(name.as_str())).cloned().collect();
            for name in all {
                headers.remove(name);
            }
        }
        headers.insert(FORWARDED_FOR, origin.address.clone());
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(origin.proto));
        headers.insert(FORWARDED_HOST, target.authority.clone());
        headers.insert(FORWARDED_PORT, origin.port.clone());
        headers.insert(header::FORWARDED, origin.forwarded(&target.authority));
        headers.insert(REQUEST_ID, request_id());
        return;
    }
    // Those before us said the rest; we say who they are.
    append(headers, FORWARDED_FOR, &origin.address);
    append(headers, header::FORWARDED, &origin.forwarded(&target.authority));
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(origin.proto));
    headers.entry(FORWARDED_HOST).or_insert_with(|| target.authority.clone());
    headers.entry(FORWARDED_PORT).or_insert_with(|| origin.port.clone());
    if !found.request_id {
        headers.insert(REQUEST_ID, request_id());
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut all: Vec<u8> = Vec::new();
    for before in headers.get_all(&name) {
        all.extend_from_slice(before.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(value.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        headers.insert(name, value);
    }
}

/// 32 hexadecimal digits that no other request has: half of them are this process's, the others are counted.
fn request_id() -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static OWN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let own = *OWN.get_or_init(|| {
        use std::hash::{BuildHasher as _, RandomState};
        RandomState::new().hash_one(std::process::id())
    });
    // Neighbours in number are far apart in value.
    let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut digits = [0; 32];
    for (place, digit) in digits.iter_mut().enumerate() {
        let half = if place < 16 { own } else { number };
        *digit =
            b"0123456789abcdef"[usize::try_from(half >> (60 - 4 * (place % 16)) & 15).unwrap_or_default()];
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&digits))
        .unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// Addresses a request to a task that is asked in HTTP/1.1.
pub(crate) fn to_http1(head: &mut Parts, target: &Target, wishes: Wishes, is_chunked: bool) {
    head.version = Version::HTTP_11;
    head.headers.insert(header::HOST, target.authority.clone());
    if wishes.upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    } else if wishes.trailers {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if is_chunked {
        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // Over HTTP/2 it may come in pieces (RFC 9113, 8.2.3).
    if head.headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let pieces: Vec<&[u8]> =
            head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(whole) = HeaderValue::from_maybe_shared(Bytes::from(pieces.join(&b"; "[..]))) {
            head.headers.insert(header::COOKIE, whole);
        }
    }
}

/// Addresses a request to a task that is asked in HTTP/2.
pub(crate) fn to_http2(head: &mut Parts, target: &Target, wishes: Wishes) -> Result<(), Refusal> {
    head.version = Version::HTTP_2;
    head.headers.remove(header::HOST);
    // The upgrade is refused by being ignored, as servers may.
    head.headers.remove(header::UPGRADE);
    if wishes.trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    let authority = Authority::from_maybe_shared(Bytes::copy_from_slice(target.authority.as_bytes()));
    parts.authority = Some(authority.map_err(|_| bad("no valid Host"))?);
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(parts).map_err(|_| bad("no valid target"))?;
    Ok(())
}

/// Makes a task's head one for a client. Refused if it cannot be passed on in one way.
pub(crate) fn answer(head: &mut http::response::Parts) -> Result<(), Refusal> {
    let found = Found::in_head(&head.headers);
    if found.transfer_encoding {
        if !is_chunked_only(&head.headers) {
            let text = "the task answered with a transfer coding other than chunked";
            return Err(Refusal::new(StatusCode::BAD_GATEWAY, "nonsense", text));
        }
        // Which is not what counted.
        head.headers.remove(header::CONTENT_LENGTH);
    } else if found.length {
        let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
        if let (Some(length), Some(_)) = (lengths.next().cloned(), lengths.next()) {
            // They are the same: others are no answer.
            head.headers.insert(header::CONTENT_LENGTH, length);
        }
    }
    let protocol = (head.status == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| head.headers.get(header::UPGRADE).cloned())
        .flatten();
    found.strip(&mut head.headers);
    if let Some(protocol) = protocol {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        head.headers.insert(header::UPGRADE, protocol);
    }
    Ok(())
}

/// How long a server says that it waits for the next request.
pub(crate) fn keeps_for(headers: &HeaderMap) -> Option<std::time::Duration> {
    let said =
        tokens(headers, &KEEP_ALIVE).find_map(|token| token.strip_prefix("timeout=")?.parse::<u64>().ok())?;
    Some(std::time::Duration::from_secs(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_client_keeps_no_request() {
        let origin = Origin::of(IpAddr::from([192, 0, 2, 1]), 80, false, false);
        // Headers are pieces of the buffer in which the whole head came.
        let buffer = Bytes::from(vec![b'h'; 8192]);
        let host = HeaderValue::from_maybe_shared(buffer.slice(..20)).unwrap();
        let made = origin.forwarded(&host);
        drop(host);
        assert!(buffer.is_unique());
        let again = HeaderValue::from_bytes(&buffer[..20]).unwrap();
        assert_eq!(origin.forwarded(&again).as_bytes().as_ptr(), made.as_bytes().as_ptr(), "made once");
    }
}
