//! Datagrams of one route: every client has an endpoint of its own while it is not silent for too long.
//!
//! - Clients are told apart by address and port. There are at most so many; the longest silent one gives way to a new one.
//! - A client whose endpoint does not answer any more (the kernel says so) is given another with its next datagram.
//! - What an endpoint refuses at its IPv6 address before it has answered there is sent to it by IPv4: it may listen there alone.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_process::Tasks;

use crate::{
    GatewayOptions,
    client::{self, Way},
    draining::Draining,
    route::{Backend, Claim, RouteState},
};

const PAUSE: Duration = Duration::from_millis(50);
const LARGEST: usize = 1 << 16;
/// How much of what a client said is kept until its endpoint answers, if it may refuse: the kernel says so within a moment.
const KEPT: usize = 8 << 10;

/// Passes datagrams on until `stop`; the socket is closed when this and all its clients' tasks have ended. At `leave` it takes no more from
/// clients, and their tasks go on for as long as endpoints answer: another process has the socket as well.
pub(crate) async fn serve(
    socket: UdpSocket,
    route: Arc<RouteState>,
    options: GatewayOptions,
    (tasks, draining): (Tasks, Arc<Draining>),
    stop: CancellationToken,
    leave: CancellationToken,
) {
    let clients = Clients {
        socket: Arc::new(socket),
        route,
        options,
        draining,
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
            Ok((length, client)) => {
                if let Err(error) = clients.pass_on(client, &buffer[..length], &tasks).await {
                    clients.route.failures.fetch_add(1, Ordering::Relaxed);
                    clients.sessions.lock().remove(&client);
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
    route: Arc<RouteState>,
    options: GatewayOptions,
    draining: Arc<Draining>,
    sessions: Arc<Mutex<HashMap<SocketAddr, Session>>>,
    started: Instant,
    stop: CancellationToken,
}

/// One client's way to its endpoint.
struct Session {
    upstream: Arc<Upstream>,
    /// Milliseconds after the start at which the last datagram passed, either way.
    last: Arc<AtomicU64>,
    /// Ends the task that brings answers back.
    _stop: DropGuard,
}

/// A socket to an endpoint.
struct Upstream {
    socket: UdpSocket,
    /// If the endpoint may yet refuse what goes there.
    doubt: Option<Doubt>,
}

/// An endpoint that is spoken to at its IPv6 address, where it need not listen.
struct Doubt {
    way: Way,
    backend: Arc<Backend>,
    /// What was said; none once it has answered, or when that is too much to keep.
    said: Mutex<Option<Vec<Vec<u8>>>>,
}

impl Upstream {
    /// From the client's address if that is possible, else from the gateway's.
    async fn open(client: SocketAddr, backend: &Arc<Backend>, route: &RouteState) -> io::Result<Self> {
        if let Some(way) = backend.way(client) {
            match client::udp(way).await {
                Ok(socket) => {
                    route.kept.fetch_add(1, Ordering::Relaxed);
                    let doubt =
                        || Doubt { way, backend: Arc::clone(backend), said: Mutex::new(Some(Vec::new())) };
                    return Ok(Self { socket, doubt: way.to.is_ipv6().then(doubt) });
                }
                Err(error) => route.fell_back(backend, way, &error),
            }
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(backend.endpoint.address).await?;
        Ok(Self { socket, doubt: None })
    }

    async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        if let Some(doubt) = &self.doubt {
            // Before it is sent: the refusal may be faster than this.
            doubt.remember(datagram);
        }
        self.socket.send(datagram).await
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.socket.recv(buffer).await?;
        if let Some(doubt) = &self.doubt {
            *doubt.said.lock() = None;
        }
        Ok(length)
    }

    /// After an error: what the endpoint was told here and has not taken, if it is to be told by IPv4.
    fn refused(&self, route: &RouteState, error: &io::Error) -> Option<Vec<Vec<u8>>> {
        let doubt = self.doubt.as_ref()?;
        let said = doubt.said.lock().take()?;
        route.fell_back(&doubt.backend, doubt.way, error);
        Some(said)
    }
}

impl Doubt {
    fn remember(&self, datagram: &[u8]) {
        let mut said = self.said.lock();
        if let Some(before) = said.as_mut() {
            before.push(datagram.to_vec());
            if before.iter().map(Vec::len).sum::<usize>() > KEPT {
                *said = None;
            }
        }
    }
}

impl Clients {
    async fn pass_on(&self, client: SocketAddr, datagram: &[u8], tasks: &Tasks) -> io::Result<()> {
        let existing = self.sessions.lock().get(&client).map(|session| {
            session.last.store(self.now(), Ordering::Relaxed);
            Arc::clone(&session.upstream)
        });
        let upstream = match existing {
            Some(upstream) => upstream,
            None => self.admit(client, tasks).await?,
        };
        let sent = match upstream.send(datagram).await {
            // What the last datagram met is told to this one, which was not sent: the next endpoint has it.
            Err(error) => {
                let unheard = upstream.refused(&self.route, &error);
                let other = self.admit(client, tasks).await?;
                for datagram in unheard.unwrap_or_else(|| vec![datagram.to_vec()]) {
                    other.send(&datagram).await?;
                }
                datagram.len()
            }
            Ok(sent) => sent,
        };
        self.route.received.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a client an endpoint, in place of the one it may have had.
    async fn admit(&self, client: SocketAddr, tasks: &Tasks) -> io::Result<Arc<Upstream>> {
        let claim = self.route.claim(&[]).ok_or_else(|| io::Error::other("no endpoint is ready"))?;
        let upstream = Upstream::open(client, &claim.backend, &self.route).await?;
        let (upstream, stop) = (Arc::new(upstream), self.stop.child_token());
        let last = Arc::new(AtomicU64::new(self.now()));
        let mut back = Back {
            client,
            claim,
            upstream: Arc::clone(&upstream),
            sessions: Arc::clone(&self.sessions),
            last: Arc::clone(&last),
            socket: Arc::clone(&self.socket),
            route: Arc::clone(&self.route),
            idle: self.options.datagram_idle,
            started: self.started,
        };
        let session = Session { upstream: Arc::clone(&upstream), last, _stop: stop.clone().drop_guard() };
        {
            let mut sessions = self.sessions.lock();
            if sessions.len() >= self.options.datagram_clients && !sessions.contains_key(&client) {
                let silent = sessions.iter().min_by_key(|(_, session)| session.last.load(Ordering::Relaxed));
                if let Some(silent) = silent.map(|(client, _)| *client) {
                    sessions.remove(&silent);
                }
            }
            sessions.insert(client, session);
        }
        let (open, connected) = (self.route.opened(), self.draining.client());
        tasks.spawn("gateway datagrams", async move {
            let (_open, _connected) = (open, connected);
            // Dropped at any point: a datagram is lost at most, which is what datagrams are for.
            stop.run_until_cancelled(back.bring()).await;
            let mut sessions = back.sessions.lock();
            if sessions.get(&client).is_some_and(|session| Arc::ptr_eq(&session.upstream, &back.upstream)) {
                sessions.remove(&client);
            }
        });
        Ok(upstream)
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

/// The way back from an endpoint to its client.
struct Back {
    client: SocketAddr,
    claim: Claim,
    upstream: Arc<Upstream>,
    sessions: Arc<Mutex<HashMap<SocketAddr, Session>>>,
    last: Arc<AtomicU64>,
    socket: Arc<UdpSocket>,
    route: Arc<RouteState>,
    idle: Duration,
    started: Instant,
}

impl Back {
    /// Ends when both have been silent for long enough, or the endpoint is not there.
    async fn bring(&mut self) {
        let mut buffer = vec![0; LARGEST];
        loop {
            let silent = self.started.elapsed().saturating_sub(self.last());
            let Some(rest) = self.idle.checked_sub(silent).filter(|rest| !rest.is_zero()) else { return };
            match timeout(rest, self.upstream.receive(&mut buffer)).await {
                // Perhaps the client spoke meanwhile.
                Err(_) => {}
                Ok(Err(error)) => match self.upstream.refused(&self.route, &error) {
                    Some(unheard) if self.say_by_another(&unheard).await.is_ok() => {}
                    Some(_) | None => return,
                },
                Ok(Ok(length)) => {
                    self.last.store(millis(self.started.elapsed()), Ordering::Relaxed);
                    if self.socket.send_to(&buffer[..length], self.client).await.is_ok() {
                        self.route.sent.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Says it to the endpoint by another way, which is the client's from now on.
    async fn say_by_another(&mut self, unheard: &[Vec<u8>]) -> io::Result<()> {
        let other = Arc::new(Upstream::open(self.client, &self.claim.backend, &self.route).await?);
        let before = std::mem::replace(&mut self.upstream, Arc::clone(&other));
        if let Some(session) = self.sessions.lock().get_mut(&self.client)
            && Arc::ptr_eq(&session.upstream, &before)
        {
            session.upstream = Arc::clone(&other);
        }
        for datagram in unheard {
            other.send(datagram).await?;
        }
        Ok(())
    }

    fn last(&self) -> Duration {
        Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
