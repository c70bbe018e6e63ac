//! Datagrams of services' routes: every client has a task of its own while it is not silent for too long.
//!
//! - Clients are told apart by address and port. There are at most so many; the longest silent one gives way to a new one.
//! - A client whose task does not answer any more (the kernel says so), or has left the table, is given another with its next datagram. What is
//!   under way with a task is counted until its clients have been silent, or are another's.
//! - With the PROXY protocol each datagram to a task begins with a header, and each from a client must. One without is dropped and counted.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_model::{ProxyProtocol, RouteId};
use wharf_process::Tasks;

use crate::{
    GatewayOptions, client,
    http::{
        Ask, Choice, Failure, Moment,
        table::{Backend, Lease, Route},
        worker::Http,
    },
    proxy_protocol::{self, Parsed, Proxied},
};

const PAUSE: Duration = Duration::from_millis(50);
const LARGEST: usize = 1 << 16;

/// Passes a port's datagrams on until `stop`; then the socket is closed. At `leave` it takes no more from clients, and their tasks' answers
/// are passed on for as long as they come: another process has the socket as well.
pub(crate) async fn serve(
    socket: UdpSocket,
    port: u16,
    http: Arc<Http>,
    options: GatewayOptions,
    tasks: Tasks,
    (stop, leave): (CancellationToken, CancellationToken),
) {
    let mut clients = Clients {
        socket: Arc::new(socket),
        port,
        http,
        options,
        sessions: Arc::default(),
        started: Instant::now(),
        stop: stop.child_token(),
    };
    let mut buffer = vec![0; LARGEST];
    loop {
        let received = tokio::select! {
            // Cancel-safe: it is the end.
            () = stop.cancelled() => break,
            // Cancel-safe: likewise.
            () = leave.cancelled() => return,
            // Cancel-safe: a datagram was received or is still in the kernel's queue.
            received = clients.socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((length, from)) => {
                if let Err(error) = clients.pass_on(from, &buffer[..length], &tasks).await {
                    clients.sessions.lock().remove(&from);
                    tracing::debug!(%error, "datagram dropped");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "datagram not received");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Their tasks hold the socket: the port is free when they have let go.
    clients.stop.cancel();
    clients.sessions.lock().clear();
    while Arc::strong_count(&clients.socket) > 1 {
        tokio::task::yield_now().await;
    }
}

struct Clients {
    socket: Arc<UdpSocket>,
    port: u16,
    http: Arc<Http>,
    options: GatewayOptions,
    /// By where datagrams come from, which with a proxy before us is the proxy's.
    sessions: Arc<Mutex<HashMap<SocketAddr, Session>>>,
    started: Instant,
    stop: CancellationToken,
}

/// One client's way to its task.
#[derive(Clone)]
struct Way {
    upstream: Arc<UdpSocket>,
    lease: Arc<Lease>,
    /// What its datagrams begin with.
    header: Arc<[u8]>,
    /// Milliseconds after the start at which the last datagram passed, either way.
    last: Arc<AtomicU64>,
}

struct Session {
    way: Way,
    /// Ends the task that brings answers back.
    _stop: DropGuard,
}

impl Clients {
    async fn pass_on(&mut self, from: SocketAddr, datagram: &[u8], tasks: &Tasks) -> io::Result<()> {
        let existing = self.sessions.lock().get(&from).map(|session| session.way.clone());
        let existing = existing.filter(|way| !way.lease.backend().is_retired());
        let way = match existing {
            Some(way) => way,
            None => self.admit(from, datagram, tasks).await?,
        };
        way.last.store(self.now(), Ordering::Relaxed);
        let content = self.content(way.lease.route(), datagram)?.1;
        let sent = match way.send(content).await {
            // What the last datagram met is told to this one, which was not sent: the next task has it.
            Err(_) => self.admit(from, datagram, tasks).await?.send(content).await?,
            Ok(sent) => sent,
        };
        way.lease.passed(sent as u64, 0);
        Ok(())
    }

    /// What a datagram says of its client, if a proxy says it, and its content.
    fn content<'d>(&self, route: &Route, datagram: &'d [u8]) -> io::Result<(Option<Proxied>, &'d [u8])> {
        if !matches!(route.spec().proxy_protocol, ProxyProtocol::In | ProxyProtocol::Both) {
            return Ok((None, datagram));
        }
        match proxy_protocol::parse(datagram) {
            Parsed::Header { length, proxied } => Ok((proxied, &datagram[length..])),
            Parsed::Malformed(_) | Parsed::Incomplete => {
                self.http.entry.count_malformed();
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a datagram without the PROXY protocol's header",
                ))
            }
        }
    }

    /// Gives a client a task, in place of the one it may have had.
    async fn admit(&mut self, from: SocketAddr, datagram: &[u8], tasks: &Tasks) -> io::Result<Way> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the route is gone");
        let id = self.http.entry.datagrams().get(&self.port).and_then(|shares| shares.next().cloned());
        let id: RouteId = id.ok_or_else(gone)?;
        let route = self.http.table.load().by_id(&id).map(Arc::clone).ok_or_else(gone)?;
        let (proxied, _) = self.content(&route, datagram)?;
        // To which of our addresses it was sent, a socket for all of them does not say.
        let source = super::canonical(from);
        let anywhere = match source.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let whom = proxied.unwrap_or(Proxied { source, destination: SocketAddr::new(anywhere, self.port) });
        let (upstream, lease) = self.reach(&route, whom).await?;
        let header = match route.proxy_protocol {
            true => Arc::from(proxy_protocol::datagram_header(whom)),
            false => Arc::from([]),
        };
        let last = Arc::new(AtomicU64::new(self.now()));
        let way = Way { upstream: Arc::new(upstream), lease: Arc::new(lease), header, last };
        let stop = self.stop.child_token();
        {
            let session = Session { way: way.clone(), _stop: stop.clone().drop_guard() };
            let mut sessions = self.sessions.lock();
            if sessions.len() >= self.options.datagram_clients && !sessions.contains_key(&from) {
                let silent =
                    sessions.iter().min_by_key(|(_, session)| session.way.last.load(Ordering::Relaxed));
                if let Some(silent) = silent.map(|(client, _)| *client) {
                    sessions.remove(&silent);
                }
            }
            sessions.insert(from, session);
        }
        let idle =
            route.spec().timeouts.idle.map_or(self.options.datagram_idle, wharf_model::Millis::duration);
        let back = Back {
            client: from,
            way: way.clone(),
            socket: Arc::clone(&self.socket),
            idle,
            started: self.started,
        };
        let (sessions, connected) = (Arc::clone(&self.sessions), self.http.draining.client());
        tasks.spawn("gateway datagrams", async move {
            let (_connected, own) = (connected, Arc::clone(&back.way.upstream));
            // Dropped at any point: a datagram is lost at most, which is what datagrams are for.
            stop.run_until_cancelled(back.bring()).await;
            let mut sessions = sessions.lock();
            if sessions.get(&from).is_some_and(|session| Arc::ptr_eq(&session.way.upstream, &own)) {
                sessions.remove(&from);
            }
        });
        Ok(way)
    }

    /// A socket to a task of the route.
    async fn reach(&self, route: &Arc<Route>, whom: Proxied) -> io::Result<(UdpSocket, Lease)> {
        let headers = HeaderMap::new();
        let mut tried = Vec::new();
        loop {
            let ask = Ask {
                port: self.port,
                secure: false,
                client: whom.source.ip().to_canonical(),
                method: &Method::GET,
                host: "",
                path: "/",
                headers: &headers,
                now: Moment::now(),
            };
            if tried.is_empty() {
                route.admit(&ask).await.map_err(|refusal| io::Error::other(refusal.reason))?;
            }
            let mut lease = match route.choose(&ask, &tried, None) {
                Choice::Lease(lease) => lease,
                Choice::Nobody { refusal, .. } => {
                    route.refused(&refusal);
                    return Err(io::Error::other(refusal.reason));
                }
                // The next datagram finds the newest table.
                Choice::Wait(_) | Choice::Again(_) => return Err(io::Error::other("nobody can take it now")),
            };
            let backend = Arc::clone(lease.backend());
            match dial(route, &backend, whom.source).await {
                Ok(socket) => {
                    lease.answered(StatusCode::OK, Duration::ZERO, Moment::now());
                    return Ok((socket, lease));
                }
                Err(error) => {
                    tracing::debug!(%error, endpoint = %backend.endpoint.address, "no socket to a task");
                    lease.failed(Failure::Connect, Moment::now());
                    tried.push(backend);
                }
            }
        }
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

/// A socket to a task: from the client's address where its answers come back and it is not told of the client otherwise.
async fn dial(route: &Route, backend: &Backend, client: SocketAddr) -> io::Result<UdpSocket> {
    let address = backend.endpoint.address;
    let way = client::way(client, &backend.newest()).filter(|_| !route.proxy_protocol);
    if let Some(way) = way
        && let Ok(socket) = client::udp(way).await
    {
        return Ok(socket);
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

impl Way {
    async fn send(&self, content: &[u8]) -> io::Result<usize> {
        if self.header.is_empty() {
            return self.upstream.send(content).await;
        }
        self.upstream.send(&[&self.header, content].concat()).await.map(|_| content.len())
    }
}

/// The way back from a task to its client.
struct Back {
    client: SocketAddr,
    way: Way,
    socket: Arc<UdpSocket>,
    idle: Duration,
    started: Instant,
}

impl Back {
    /// Ends when both have been silent for long enough, or the task is not there.
    async fn bring(self) {
        let mut buffer = vec![0; LARGEST];
        loop {
            let last = Duration::from_millis(self.way.last.load(Ordering::Relaxed));
            let silent = self.started.elapsed().saturating_sub(last);
            let Some(rest) = self.idle.checked_sub(silent).filter(|rest| !rest.is_zero()) else { return };
            match timeout(rest, self.way.upstream.recv(&mut buffer)).await {
                // Perhaps the client spoke meanwhile.
                Err(_) => {}
                Ok(Err(_)) => return,
                Ok(Ok(length)) => {
                    self.way.last.store(millis(self.started.elapsed()), Ordering::Relaxed);
                    if self.socket.send_to(&buffer[..length], self.client).await.is_ok() {
                        self.way.lease.passed(0, length as u64);
                    }
                }
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
