//! Answers the DNS questions of the node's containers from the table that the server sent.
//!
//! - It is a process of its own (`process`), which an agent's restart, upgrade or end leaves alone; the agent starts it and speaks to it
//!   (`remote`). [`Responder`] is what is inside: networks to listen on, tables to serve and upstream resolvers are handed in.
//! - **The guarantee about versions**: once [`Responder::publish`] has returned, [`Responder::version`] is that table's, and no
//!   answer that an older table led to is handed to the kernel any more, on any network, by UDP or TCP. The same holds for
//!   [`DnsProcess::publish`] and [`DnsProcess::version`]: the process says that it serves a table once it does, no other process answers
//!   any more, and the table is where one that takes its place finds it. What is decided is sent before the
//!   table can change; an answer that waited, for an upstream resolver or for a slow reader, is decided again when it is
//!   sent, and a connection that took part of an older one is closed. Upstream answers that are remembered are no exception: names of
//!   the table are looked for first. What a client keeps itself, it may keep for a second.
//! - It answers the network's own containers only: a question from outside of the network it came in on is not answered, so that no
//!   node is an open resolver.
//! - Before the first table nothing is denied: every question is answered with a failure, after which clients ask again.
//!
//! What is answered is decided in `answer`, without input or output; `wire` reads and writes messages, `batch` receives and sends many
//! at once, `datagrams` serves UDP, each address on a thread of its own, `connection` serves TCP, `forward` asks others.

mod answer;
mod batch;
mod cache;
mod connection;
mod datagrams;
mod forward;
mod held;
mod process;
mod protocol;
mod remote;
mod reply;
mod wire;
mod zone;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::Semaphore, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::Tasks;

use self::{
    answer::{Answer, Asker, Forward, Known, Transport, answer, fail},
    connection::Connection,
    forward::{Forwarder, Outcome},
    protocol::{Content, Difference},
    wire::{Request, code},
    zone::{Leaving, Zone},
};
pub use self::{
    forward::Upstreams,
    process::{ProcessOptions, serve},
    protocol::Settings,
    remote::{DnsProcess, program},
    zone::{Source, Sources},
};

/// The port of DNS.
pub const PORT: u16 = 53;

/// Connections to one listener at once.
const CONNECTIONS: usize = 128;
/// Questions by UDP that wait for upstream resolvers at once.
const WAITING: usize = 2048;
/// How often a question is asked upstream because what its name leads to changed while it was.
const ATTEMPTS: usize = 3;
/// After an error of a socket that may be lasting.
const PAUSE: Duration = Duration::from_millis(50);

/// A network to answer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Where containers ask: the gateway's address, [`PORT`].
    pub address: SocketAddr,
    /// Whose questions are answered.
    pub subnet: Ipv4Net,
}

impl Listen {
    /// All addresses to listen on.
    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        [self.address].into_iter()
    }
}

/// Questions and what became of them, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsCounters {
    /// All of them.
    pub questions: u64,
    /// About names that are not ours, whether what an upstream resolver says was known or not.
    pub forwarded: u64,
    /// That upstream resolvers were really asked.
    pub upstream: u64,
    /// From outside of the network.
    pub refused: u64,
    /// Answers that the kernel did not take.
    pub unsent: u64,
}

/// The responder of a node. Clones are the same one.
#[derive(Clone)]
pub struct Responder {
    shared: Arc<Shared>,
    tasks: Tasks,
}

struct Shared {
    /// Held for reading from a decision until its answer is sent, so that whoever has changed it knows that nothing older will be.
    known: RwLock<Known>,
    /// Our own addresses, which are no upstreams.
    own: ArcSwap<Vec<IpAddr>>,
    forwarder: Arc<Forwarder>,
    waiting: Arc<Semaphore>,
    listeners: Mutex<BTreeMap<NetworkId, Listening>>,
    problems: Mutex<BTreeMap<NetworkId, String>>,
    /// Sockets of the process before us, until they are listened on.
    adopted: Mutex<BTreeMap<SocketAddr, Sockets>>,
    /// Another process answers: nothing is received any more.
    retired: CancellationToken,
    questions: AtomicU64,
    forwarded: AtomicU64,
    refused: AtomicU64,
    unsent: AtomicU64,
}

struct Listening {
    listen: Listen,
    at: Vec<(SocketAddr, Sockets)>,
    /// Ends receiving: what was received is answered all the same.
    receive: CancellationToken,
    /// Ends the listener's tasks.
    _stop: DropGuard,
}

/// Where questions to one address come in.
#[derive(Debug, Clone)]
struct Sockets {
    udp: Arc<OwnedFd>,
    tcp: Arc<TcpListener>,
}

impl Sockets {
    fn new(udp: OwnedFd, tcp: TcpListener) -> io::Result<Self> {
        batch::never_in_parts(&udp)?;
        Ok(Self { udp: Arc::new(udp), tcp: Arc::new(tcp) })
    }
}

impl Responder {
    /// A responder that listens nowhere and knows no names. Its sockets are served by `tasks`, and end with them.
    #[must_use]
    pub fn new(upstreams: Upstreams, tasks: &Tasks) -> Self {
        let shared = Shared {
            known: RwLock::default(),
            own: ArcSwap::default(),
            forwarder: Arc::new(Forwarder::new(upstreams)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            listeners: Mutex::default(),
            problems: Mutex::default(),
            adopted: Mutex::default(),
            retired: CancellationToken::new(),
            questions: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), tasks: tasks.clone() }
    }

    /// Answers on exactly these networks: new ones are bound, others closed, those that stay are not touched. One that cannot be
    /// bound is a problem, and is tried again by the next call.
    pub async fn listen(&self, wanted: &BTreeMap<NetworkId, Listen>) {
        let ours = wanted.values().map(|listen| listen.subnet).collect();
        self.shared.known.write().ours = ours;
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
        let mut at = Vec::new();
        for address in listen.addresses() {
            at.push((address, self.sockets_at(address).await?));
        }
        let stop = self.tasks.token();
        let receive = stop.child_token();
        let server = Arc::new(Server {
            shared: Arc::clone(&self.shared),
            network,
            listen,
            tasks: self.tasks.clone(),
            stop: stop.clone(),
        });
        // Also of what is begun before a thread does not start.
        let stop = stop.drop_guard();
        for (address, Sockets { udp, tcp }) in at.clone() {
            datagrams::serve(Arc::clone(&server), udp, address, receive.clone())?;
            let until = receive.clone();
            let tcp_served = Arc::clone(&server).serve_tcp(tcp);
            self.tasks.spawn(format!("dns tcp {address}"), until.run_until_cancelled_owned(tcp_served));
        }
        Ok(Listening { listen, at, receive, _stop: stop })
    }

    async fn sockets_at(&self, address: SocketAddr) -> io::Result<Sockets> {
        let adopted = self.shared.adopted.lock().remove(&address);
        match adopted {
            Some(adopted) => Ok(adopted),
            None => {
                let udp = UdpSocket::bind(address)?;
                // A process that takes it over may count on it.
                udp.set_nonblocking(true)?;
                // Sets SO_REUSEADDR: connections of the last process do not keep the port.
                Sockets::new(udp.into(), TcpListener::bind(address).await?)
            }
        }
    }

    /// Asks these for names that are not ours from now on.
    pub fn use_upstreams(&self, upstreams: Upstreams) {
        self.shared.forwarder.use_upstreams(upstreams);
    }

    /// Listens on these sockets of another process, UDP and TCP of each address, once that is wanted.
    fn adopt(&self, addresses: Vec<SocketAddr>, files: Vec<OwnedFd>) {
        let mut files = files.into_iter();
        let mut sockets = || -> Option<io::Result<Sockets>> {
            let (udp, tcp) = (files.next()?, files.next()?);
            Some(TcpListener::from_std(tcp.into()).and_then(|tcp| Sockets::new(udp, tcp)))
        };
        for address in addresses {
            match sockets() {
                Some(Ok(sockets)) => drop(self.shared.adopted.lock().insert(address, sockets)),
                Some(Err(error)) => tracing::warn!(%error, %address, "socket not taken over"),
                None => return,
            }
        }
    }

    /// Lets go of what was adopted and is not wanted.
    fn forget_adopted(&self) {
        self.shared.adopted.lock().clear();
    }

    /// What is listened on: the addresses, and of each its UDP socket and its TCP listener.
    fn sockets(&self) -> io::Result<(Vec<SocketAddr>, Vec<OwnedFd>)> {
        let (mut addresses, mut files) = (Vec::new(), Vec::new());
        for (address, Sockets { udp, tcp }) in self.shared.listeners.lock().values().flat_map(|of| &of.at) {
            addresses.push(*address);
            files.extend([udp.as_fd().try_clone_to_owned()?, tcp.as_fd().try_clone_to_owned()?]);
        }
        Ok((addresses, files))
    }

    /// Receives nothing any more, because another process does, on the same sockets; what was received is answered.
    fn retire(&self) {
        self.shared.listeners.lock().values().for_each(|listening| listening.receive.cancel());
        self.shared.retired.cancel();
    }

    /// Serves these names from now on, and none of any other table: see the module's guarantee. `sources` says who asks.
    pub fn publish(&self, table: &DnsTable, sources: &Sources) {
        let mut zone = Zone::new(table, sources, rand::random());
        // Waits for what is being sent.
        std::mem::swap(&mut self.shared.known.write().zone, &mut zone);
    }

    /// As [`Responder::publish`], with what it needs made before; answers what was served until now, to be dropped where that holds up nobody.
    fn serve_zone(&self, zone: Zone) -> Zone {
        std::mem::replace(&mut self.shared.known.write().zone, zone)
    }

    /// What goes from what is served with a difference of the `names` that are served; none if a new zone has to be made.
    fn leaving(&self, names: &Content, difference: &Difference) -> Option<Leaving> {
        self.shared.known.read().zone.leaving(names, difference)
    }

    /// Serves the `names` that are left after the difference from now on, and no others, as [`Responder::publish`] says. Whether it does:
    /// if not, a new zone has to be made.
    fn alter(&self, leaving: Leaving, names: &Content) -> bool {
        let alteration = self.shared.known.read().zone.alteration(leaving, names, rand::random());
        let Some(alteration) = alteration else { return false };
        // Waits for what is being sent.
        let cast = self.shared.known.write().zone.alter(alteration);
        drop(cast);
        true
    }

    /// The version of the table that every answer comes from; none before the first.
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        self.shared.known.read().zone.version
    }

    /// Networks on which nothing is answered, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.shared.problems.lock().values().cloned().collect()
    }

    /// What was asked so far.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        let shared = &self.shared;
        DnsCounters {
            questions: shared.questions.load(Ordering::Relaxed),
            forwarded: shared.forwarded.load(Ordering::Relaxed),
            upstream: shared.forwarder.asked(),
            refused: shared.refused.load(Ordering::Relaxed),
            unsent: shared.unsent.load(Ordering::Relaxed),
        }
    }
}

/// One network's listener.
struct Server {
    shared: Arc<Shared>,
    network: NetworkId,
    listen: Listen,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Server {
    async fn resolve(&self, forward: &Forward) -> Outcome {
        self.shared.forwarder.resolve(&forward.ask, self.shared.own.load_full()).await
    }

    async fn serve_tcp(self: Arc<Self>, listener: Arc<TcpListener>) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, client)) => {
                    let Some(asker) = self.counted_asker(client.ip()) else { continue };
                    let connection = Connection::new(Arc::clone(&self), stream, asker, permit);
                    self.tasks.spawn(
                        "dns connection",
                        self.stop.child_token().run_until_cancelled_owned(connection.serve()),
                    );
                }
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn counted_asker(&self, client: IpAddr) -> Option<Asker> {
        match client {
            IpAddr::V4(client) => self.asker(&client),
            IpAddr::V6(_) => None,
        }
    }

    /// Who asks, unless that is nobody on this network.
    fn asker(&self, client: &Ipv4Addr) -> Option<Asker> {
        if self.listen.subnet.contains(client) {
            return Some(Asker { address: *client, network: self.network });
        }
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// Decides again about a question that was `asked` upstream: writes what is right now, or says what to ask instead. Without `asked` the
/// question has been asked often enough.
fn settle(
    known: &Known,
    message: &[u8],
    asker: Asker,
    transport: Transport,
    asked: Option<(&Forward, &Outcome)>,
    out: &mut Vec<u8>,
) -> Option<Forward> {
    match answer(message, asker, transport, known, out) {
        Answer::Send | Answer::Nothing => None,
        Answer::Forward(now) => match asked {
            Some((forward, outcome)) if *forward == now => {
                write(outcome, message, forward, transport, out);
                None
            }
            Some(_) => Some(now),
            None => {
                fail(message, transport, code::SERVER_FAILURE, out);
                None
            }
        },
    }
}

/// Writes what upstream resolvers said as the answer to `message`.
fn write(outcome: &Outcome, message: &[u8], forward: &Forward, transport: Transport, out: &mut Vec<u8>) {
    match outcome {
        Ok(reply) => {
            if let Request::Question(question) = Request::read(message) {
                reply.write(&question, &forward.chain, transport.limit(&question), Instant::now(), out);
            }
        }
        Err(code) => fail(message, transport, *code, out),
    }
}
