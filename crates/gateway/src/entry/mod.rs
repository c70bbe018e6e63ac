//! Where connections to services' routes begin: what comes before requests, or instead of them.
//!
//! - First the PROXY protocol where a port expects it, then TLS where a port has it, then requests, or bytes that are not looked at.
//! - All of that has ten seconds, however slowly it comes. What is not understood is closed and counted.
//! - A table's certificates, names and ports hold for connections that begin after [`Entry::apply`] has returned.
//! - A port that ends TLS understands requests without it as well: their answers say where to go instead. No request is passed on that way.
//!
//! # What a worker asks of it
//!
//! ```text
//! Entry::new() -> Entry                                   one of the process
//! Entry::apply(&self, &RouteTable)                        before the table is served
//! Entry::ports(&self) -> BTreeSet<u16>                    where workers listen: for requests, for connections, and for both
//! Entry::problems(&self) -> Vec<String>                   certificates that cannot be used, routes that exclude each other
//! Entry::datagrams(&self) -> BTreeMap<u16, Arc<Shares>>   ports of routes of UDP
//! async Entry::enter(&self, TcpStream, from, port) -> Entered      for each connection that was accepted
//! ```
//! [`Entered::Requests`] has requests: HTTP/2 if `secure` says so, else HTTP/1.1 or, without TLS, what its first bytes say. Without `secure` at a
//! port that ends TLS nobody is found but the redirect: then 400, "this port speaks TLS". [`Entered::Connection`] goes to `layer4::pass`.

pub(crate) mod datagrams;
pub(crate) mod layer4;
mod ports;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{HandshakeKind, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use wharf_model::{EntryCounters, RouteId, RouteTable};

use crate::{
    proxy_protocol,
    tls::{self, Tls, hello},
};

use self::ports::{Ending, Plain, Port, Ports};
pub(crate) use self::{
    ports::Shares,
    stream::{Begun, Stream},
};

/// For everything that comes before the first request.
const PATIENCE: Duration = Duration::from_secs(10);

/// What connections begin with.
pub(crate) struct Entry {
    tls: Tls,
    ports: ArcSwap<Ports>,
    /// What is wrong with certificates, in words.
    problems: ArcSwap<Vec<String>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    full: AtomicU64,
    resumed: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    malformed: AtomicU64,
    challenges: AtomicU64,
}

/// What a connection is, once it has begun.
pub(crate) enum Entered {
    /// It has requests.
    Requests(Conversation),
    /// Its bytes are passed to a task of this route.
    Connection(Conversation, RouteId),
    /// It is over: closed, and counted.
    Over,
}

/// A client's connection.
pub(crate) struct Conversation {
    pub(crate) stream: Stream,
    /// The client, as the proxy before us says if there is one; an address of IPv4 is one.
    pub(crate) client: SocketAddr,
    /// Where it connected to, likewise.
    pub(crate) destination: SocketAddr,
    /// Over TLS that ends here.
    pub(crate) secure: Option<Secure>,
}

/// What was agreed on in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secure {
    /// The server's name that the client said.
    pub(crate) server_name: Option<String>,
    /// HTTP/2 was chosen.
    pub(crate) http2: bool,
}

/// Why a connection is over before it began.
enum Closed {
    /// It is counted already.
    Counted,
    /// It went away, or the handshake failed.
    Failed(io::Error),
}

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Entry {
    /// Without ports.
    pub(crate) fn new() -> Self {
        let (ports, problems, counters) = Default::default();
        Self { tls: Tls::new(), ports, problems, counters }
    }

    /// What this table says holds from now on.
    pub(crate) fn apply(&self, table: &RouteTable) {
        let ports = Ports::of(table);
        let needed = ports.ended.iter().map(String::as_str);
        self.tls.set_ticket_keys(&table.ticket_keys);
        let problems = self.tls.set(&table.certificates, &table.challenges, needed);
        self.problems.store(Arc::new(problems));
        self.ports.store(Arc::new(ports));
    }

    /// The ports of TCP.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.ports.load().tcp.keys().copied().collect()
    }

    /// The ports of UDP, and whose they are.
    pub(crate) fn datagrams(&self) -> BTreeMap<u16, Arc<Shares>> {
        self.ports.load().udp.clone()
    }

    /// What cannot be served as the table says, and why.
    pub(crate) fn problems(&self) -> Vec<String> {
        let ports = self.ports.load();
        ports.problems.iter().chain(self.problems.load().iter()).cloned().collect()
    }

    /// Counts a datagram that should have begun with the PROXY protocol.
    pub(crate) fn count_malformed(&self) {
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> EntryCounters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EntryCounters {
            handshakes: of(&self.counters.full),
            resumed: of(&self.counters.resumed),
            failed: of(&self.counters.failed),
            unknown_names: of(&self.counters.unknown),
            malformed_proxy: of(&self.counters.malformed),
            challenges: of(&self.counters.challenges),
        }
    }

    /// Finds out what a connection is that was accepted at this port. May be dropped: the connection is closed then.
    pub(crate) async fn enter(&self, stream: TcpStream, from: SocketAddr, port: u16) -> Entered {
        let ports = self.ports.load_full();
        // What leaves the table may still have been accepted.
        let Some(port) = ports.tcp.get(&port) else { return Entered::Over };
        let destination = stream.local_addr().unwrap_or(from);
        let begin = self.begin(stream, canonical(from), canonical(destination), port);
        match timeout(PATIENCE, begin).await {
            Ok(Ok(entered)) => entered,
            Ok(Err(Closed::Counted)) => Entered::Over,
            Ok(Err(Closed::Failed(error))) => {
                tracing::debug!(%error, "connection did not begin");
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                Entered::Over
            }
            Err(_) => {
                tracing::debug!("connection did not begin in time");
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                Entered::Over
            }
        }
    }

    async fn begin(
        &self,
        mut stream: TcpStream,
        mut client: SocketAddr,
        mut destination: SocketAddr,
        port: &Port,
    ) -> Result<Entered, Closed> {
        let mut first = Vec::new();
        if port.proxy_protocol {
            let (proxied, rest) = self.proxied(&mut stream).await?;
            if let Some(proxied) = proxied {
                (client, destination) = (canonical(proxied.source), canonical(proxied.destination));
            }
            first = rest;
        }
        let conversation = |stream, secure| Conversation { stream, client, destination, secure };
        if !port.is_secure() {
            let begun = conversation(Begun::new(stream, first).into(), None);
            return self.plain(begun, &port.plain);
        }
        let hello = match self.hello(&mut stream, &mut first).await? {
            Some(hello) => hello,
            None if matches!(port.plain, Plain::Nothing) && port.names.has_requests() => {
                // Told in an answer what is spoken here.
                let begun = conversation(Begun::new(stream, first).into(), None);
                return Ok(Entered::Requests(begun));
            }
            None => return self.plain(conversation(Begun::new(stream, first).into(), None), &port.plain),
        };
        let name = hello.server_name.as_deref();
        if hello.is_acme
            && let Some(config) = name.and_then(|name| self.tls.challenge(name))
        {
            self.answer(Begun::new(stream, first), config).await?;
            return Ok(Entered::Over);
        }
        let ending = port.names.find(name).filter(|ending| match ending {
            Ending::Task(_) => true,
            Ending::Requests | Ending::Connection(_) => self.tls.has(name),
        });
        let (config, route) = match ending {
            Some(Ending::Task(shares)) => {
                let route = shares.next().ok_or(Closed::Counted)?.clone();
                return Ok(Entered::Connection(conversation(Begun::new(stream, first).into(), None), route));
            }
            Some(Ending::Connection(shares)) => {
                (self.tls.connections(), Some(shares.next().ok_or(Closed::Counted)?.clone()))
            }
            Some(Ending::Requests) => (self.tls.requests(), None),
            None => {
                self.counters.unknown.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(name, "nothing is here by this name");
                stream.write_all(&tls::UNRECOGNISED_NAME).await?;
                let _ = stream.shutdown().await;
                return Err(Closed::Counted);
            }
        };
        let stream = TlsAcceptor::from(Arc::clone(config)).accept(Begun::new(stream, first)).await?;
        let session = stream.get_ref().1;
        let counter = match session.handshake_kind() {
            Some(HandshakeKind::Resumed) => &self.counters.resumed,
            _ => &self.counters.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let secure = Secure { http2: session.alpn_protocol() == Some(b"h2"), server_name: hello.server_name };
        let conversation = conversation(Stream::Tls(Box::new(stream)), Some(secure));
        Ok(match route {
            Some(route) => Entered::Connection(conversation, route),
            None => Entered::Requests(conversation),
        })
    }

    fn plain(&self, begun: Conversation, plain: &Plain) -> Result<Entered, Closed> {
        match plain {
            Plain::Requests => Ok(Entered::Requests(begun)),
            Plain::Connection(shares) => {
                let route = shares.next().ok_or(Closed::Counted)?.clone();
                Ok(Entered::Connection(begun, route))
            }
            Plain::Nothing => Err(io::Error::other("not TLS, at a port of TLS").into()),
        }
    }

    async fn proxied(
        &self,
        stream: &mut TcpStream,
    ) -> Result<(Option<proxy_protocol::Proxied>, Vec<u8>), Closed> {
        proxy_protocol::read(stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "the PROXY protocol is expected, and something else came");
                Closed::Counted
            }
            _ => Closed::Failed(error),
        })
    }

    /// Reads until it is clear what a client of TLS wants; nothing if it does not speak TLS.
    async fn hello(
        &self,
        stream: &mut TcpStream,
        first: &mut Vec<u8>,
    ) -> Result<Option<hello::Hello>, Closed> {
        loop {
            match hello::parse(first) {
                hello::Parsed::Hello(hello) => return Ok(Some(hello)),
                hello::Parsed::Other if first.first().copied().is_some_and(hello::may_be_tls) => {
                    return Err(io::Error::other("a damaged greeting").into());
                }
                hello::Parsed::Other => return Ok(None),
                hello::Parsed::Incomplete if first.len() > hello::LONGEST => {
                    return Err(io::Error::other("an endless greeting").into());
                }
                hello::Parsed::Incomplete => {}
            }
            first.reserve(2048);
            if stream.read_buf(first).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Shows a certificate authority what it asked for; there is nothing else to say.
    async fn answer(&self, begun: Begun, config: Arc<ServerConfig>) -> Result<(), Closed> {
        let mut stream = TlsAcceptor::from(config).accept(begun).await?;
        self.counters.challenges.fetch_add(1, Ordering::Relaxed);
        let _ = stream.shutdown().await;
        Ok(())
    }
}

/// An address of IPv4 that came over a socket of both families is one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
