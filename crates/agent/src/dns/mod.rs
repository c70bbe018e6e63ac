//! Answers the DNS questions of the node's containers from the table that the server sent.
//!
//! - Knows nothing of the rest of the agent: networks to listen on, tables to serve and upstream resolvers are handed in, so
//!   that it can become a process of its own.
//! - A table is served whole from the moment [`Responder::publish`] returns; [`Responder::version`] is what is served.
//! - It answers the network's own containers only: a question from outside of the network it came in on is not answered, so that no
//!   node is an open resolver.
//!
//! What is answered is decided in `answer`, without input or output.

mod answer;
mod forward;
mod zone;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::Tasks;

use self::{
    answer::{Answer, Asker, Transport, answer},
    forward::Forwarder,
    zone::Zone,
};
pub use self::{forward::Upstreams, zone::Sources};

/// The port of DNS.
pub const PORT: u16 = 53;

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Connections to one listener at once.
const CONNECTIONS: usize = 128;
/// After an error of a socket that may be lasting.
const PAUSE: Duration = Duration::from_millis(50);

/// A network to answer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// Where containers ask: the gateway's address, [`PORT`].
    pub address: SocketAddr,
    /// Whose questions are answered.
    pub subnet: Ipv4Net,
}

/// Questions and what became of them, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DnsCounters {
    /// All of them.
    pub questions: u64,
    /// Passed on to an upstream resolver.
    pub forwarded: u64,
    /// From outside of the network.
    pub refused: u64,
}

/// The responder of a node. Clones are the same one.
#[derive(Clone)]
pub struct Responder {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    zone: ArcSwap<Zone>,
    /// Ranges whose addresses only we can name.
    ours: ArcSwap<Vec<Ipv4Net>>,
    /// Our own addresses, which are no upstreams.
    own: ArcSwap<Vec<IpAddr>>,
    forwarder: Forwarder,
    turn: AtomicUsize,
    listeners: Mutex<BTreeMap<NetworkId, Listening>>,
    problems: Mutex<BTreeMap<NetworkId, String>>,
    questions: AtomicU64,
    forwarded: AtomicU64,
    refused: AtomicU64,
}

struct Listening {
    listen: Listen,
    /// Ends the listener's tasks.
    _stop: DropGuard,
}

impl Responder {
    /// A responder that listens nowhere and knows no names. Its sockets are served by `tasks`, and end with them.
    #[must_use]
    pub fn new(upstreams: Upstreams, tasks: &Tasks) -> Self {
        let shared = Shared {
            zone: ArcSwap::default(),
            ours: ArcSwap::default(),
            own: ArcSwap::default(),
            forwarder: Forwarder::new(upstreams),
            turn: AtomicUsize::new(0),
            listeners: Mutex::default(),
            problems: Mutex::default(),
            questions: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), tasks: tasks.clone() }
    }

    /// Answers on exactly these networks: new ones are bound, others closed, those that stay are not touched. One that cannot be
    /// bound is a problem, and is tried again by the next call.
    pub async fn listen(&self, wanted: &BTreeMap<NetworkId, Listen>) {
        self.shared.ours.store(Arc::new(wanted.values().map(|listen| listen.subnet).collect()));
        self.shared.own.store(Arc::new(wanted.values().map(|listen| listen.address.ip()).collect()));
        self.shared.listeners.lock().retain(|id, listening| wanted.get(id) == Some(&listening.listen));
        let mut problems = BTreeMap::new();
        for (id, listen) in wanted {
            if self.shared.listeners.lock().contains_key(id) {
                continue;
            }
            match self.bind(*id, *listen).await {
                Ok(listening) => drop(self.shared.listeners.lock().insert(*id, listening)),
                Err(error) => {
                    problems.insert(*id, format!("cannot answer DNS on {}: {error}", listen.address));
                }
            }
        }
        *self.shared.problems.lock() = problems;
    }

    async fn bind(&self, network: NetworkId, listen: Listen) -> io::Result<Listening> {
        let udp = UdpSocket::bind(listen.address).await?;
        // Sets SO_REUSEADDR: connections of the last process do not keep the port.
        let tcp = TcpListener::bind(listen.address).await?;
        let stop = self.tasks.token();
        let server =
            Arc::new(Server { shared: Arc::clone(&self.shared), network, listen, tasks: self.tasks.clone() });
        let name = listen.address;
        self.tasks.spawn(
            format!("dns udp {name}"),
            stop.child_token().run_until_cancelled_owned(Arc::clone(&server).serve_udp(udp)),
        );
        self.tasks.spawn(
            format!("dns tcp {name}"),
            stop.child_token().run_until_cancelled_owned(server.serve_tcp(tcp, stop.clone())),
        );
        Ok(Listening { listen, _stop: stop.drop_guard() })
    }

    /// Serves these names from now on. `sources` says which networks the tasks of this node are on.
    pub fn publish(&self, table: &DnsTable, sources: &Sources) {
        self.shared.zone.store(Arc::new(Zone::new(table, sources)));
    }

    /// The version of the table that every answer comes from; none before the first.
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        self.shared.zone.load().version
    }

    /// Networks on which nothing is answered, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.shared.problems.lock().values().cloned().collect()
    }

    /// What was asked so far.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        DnsCounters {
            questions: self.shared.questions.load(Ordering::Relaxed),
            forwarded: self.shared.forwarded.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }
}

/// One network's listener.
struct Server {
    shared: Arc<Shared>,
    network: NetworkId,
    listen: Listen,
    tasks: Tasks,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // Among others: an earlier answer found nobody. None of them ends the listener.
                    tracing::debug!(%error, "datagram not received");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match self.decide(&buffer[..length], client, Transport::Udp) {
                Answer::Send(reply) => drop(socket.send_to(&reply, client).await),
                Answer::Nothing => {}
                Answer::Forward(request) => {
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    // Bounded by the forwarder: what is too much is answered without waiting.
                    self.tasks.spawn("dns question", async move {
                        if let Some(reply) = server.forward(&request, Transport::Udp).await {
                            let _ = socket.send_to(&reply, client).await;
                        }
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let server = Arc::clone(&self);
                    let serve = async move {
                        let _permit = permit;
                        if let Err(error) = server.serve_connection(stream, client).await {
                            tracing::trace!(%error, "connection ended");
                        }
                    };
                    self.tasks.spawn("dns connection", stop.child_token().run_until_cancelled_owned(serve));
                }
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let mut message = vec![0; usize::from(timeout(IDLE, stream.read_u16()).await??)];
            timeout(IDLE, stream.read_exact(&mut message)).await??;
            let reply = match self.decide(&message, client, Transport::Tcp) {
                Answer::Send(reply) => Some(reply),
                Answer::Forward(request) => self.forward(&request, Transport::Tcp).await,
                Answer::Nothing => None,
            };
            let Some(reply) = reply else { return Ok(()) };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await??;
        }
    }

    fn decide(&self, message: &[u8], client: SocketAddr, transport: Transport) -> Answer {
        self.shared.questions.fetch_add(1, Ordering::Relaxed);
        let Some(address) = self.inside(client.ip()) else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            return Answer::Nothing;
        };
        let asker = Asker { address, network: self.network };
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        answer(message, asker, transport, &self.shared.zone.load(), &self.shared.ours.load(), turn)
    }

    fn inside(&self, client: IpAddr) -> Option<Ipv4Addr> {
        match client {
            IpAddr::V4(address) if self.listen.subnet.contains(&address) => Some(address),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    async fn forward(&self, request: &hickory_proto::op::Message, transport: Transport) -> Option<Vec<u8>> {
        self.shared.forwarded.fetch_add(1, Ordering::Relaxed);
        let own = self.shared.own.load_full();
        self.shared.forwarder.resolve(request, transport, &own).await
    }
}
