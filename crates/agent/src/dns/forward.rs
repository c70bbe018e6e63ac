//! Asks the node's own resolvers for names that are not of the cluster, and remembers what they said.
//!
//! - An answer counts only if it comes from the resolver that was asked, with the random identifier and the question it was asked.
//! - Every question ends within four seconds. A resolver that is silent costs 0.4 s, and is asked last for a while.
//! - The same question is never under way twice: who asks it meanwhile waits for the one answer. So a loop through other resolvers back
//!   to us ends with the first question's time, and does not multiply.
//! - What is kept is bounded (`cache`), and so are the questions under way.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, WeakShared},
    stream::FuturesUnordered,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::Instant,
};

use super::{
    answer::{Ask, LARGEST},
    cache::Cache,
    reply::Reply,
    wire::{self, EXTENSION, HEADER, code, flag},
};

/// For a question to be answered, whoever answers: less than the C library waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a resolver may be silent until another is asked as well.
const STAGGER: Duration = Duration::from_millis(400);
/// How often each resolver is asked: a datagram may be lost.
const ROUNDS: usize = 2;
/// The most resolvers that are asked.
const RESOLVERS: usize = 4;
/// How long a resolver that did not answer is asked last.
const AVOIDED: Duration = Duration::from_secs(10);
/// How long it is remembered that nobody could answer.
const FAILURE: Duration = Duration::from_secs(1);
/// How long the list of resolvers is used before the file is looked at again.
const KEPT: Duration = Duration::from_secs(5);
/// Questions under way at once.
const QUESTIONS: usize = 512;
const DNS_PORT: u16 = 53;

/// Where upstream resolvers are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstreams {
    /// The `nameserver` lines of this file, read again when they are older than five seconds.
    File(PathBuf),
    /// These.
    Fixed(Vec<SocketAddr>),
}

/// An answer, or the code to answer with.
pub(super) type Outcome = Result<Arc<Reply>, u16>;
type Flight = BoxFuture<'static, Outcome>;

pub(super) struct Forwarder {
    upstreams: Mutex<Upstreams>,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    /// Resolvers that did not answer, and until when they are asked last.
    avoided: Mutex<HashMap<SocketAddr, Instant>>,
    cache: Mutex<Cache>,
    /// What is being asked.
    flights: Mutex<HashMap<Ask, WeakShared<Flight>>>,
    permits: Semaphore,
    asked: AtomicU64,
}

/// Takes a question from those under way when it is answered, or when nobody waits for it any more.
struct Landing {
    forwarder: Arc<Forwarder>,
    ask: Ask,
}
impl Drop for Landing {
    fn drop(&mut self) {
        self.forwarder.flights.lock().remove(&self.ask);
    }
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams: Mutex::new(upstreams),
            read: Mutex::default(),
            avoided: Mutex::default(),
            cache: Mutex::default(),
            flights: Mutex::default(),
            permits: Semaphore::new(QUESTIONS),
            asked: AtomicU64::new(0),
        }
    }

    /// Asks these from now on.
    pub(super) fn use_upstreams(&self, upstreams: Upstreams) {
        *self.upstreams.lock() = upstreams;
        *self.read.lock() = None;
    }

    /// How many questions went upstream since the start.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// What is remembered.
    pub(super) fn cached(&self, ask: &Ask) -> Option<Outcome> {
        self.cache.lock().get(ask, Instant::now())
    }

    /// What is remembered, or what a resolver says now. `own` are our own addresses, which are never asked.
    pub(super) async fn resolve(self: &Arc<Self>, ask: &Ask, own: Arc<Vec<IpAddr>>) -> Outcome {
        if let Some(outcome) = self.cached(ask) {
            return outcome;
        }
        let flight = {
            let mut flights = self.flights.lock();
            match flights.get(ask).and_then(WeakShared::upgrade) {
                Some(flight) => flight,
                None => {
                    let flight = Arc::clone(self).fly(ask.clone(), own).boxed().shared();
                    if let Some(weak) = flight.downgrade() {
                        flights.insert(ask.clone(), weak);
                    }
                    flight
                }
            }
        };
        flight.await
    }

    async fn fly(self: Arc<Self>, ask: Ask, own: Arc<Vec<IpAddr>>) -> Outcome {
        let landing = Landing { forwarder: self, ask };
        let Landing { forwarder, ask } = &landing;
        let outcome = forwarder.exchange(ask, &own).await;
        let lifetime = match &outcome {
            Ok(reply) if reply.settles() => reply.lifetime(ask.kind()),
            Ok(_) | Err(code::SERVER_FAILURE) => FAILURE,
            Err(_) => Duration::ZERO,
        };
        forwarder.cache.lock().put(ask, outcome.clone(), lifetime, Instant::now());
        outcome
    }

    /// Asks one resolver after the other, the next when one is silent for a while or does not know; the first that knows is heard.
    async fn exchange(&self, ask: &Ask, own: &[IpAddr]) -> Outcome {
        let resolvers = self.resolvers(own);
        if resolvers.is_empty() {
            // Nobody else can know it either.
            return Err(code::NO_SUCH_NAME);
        }
        let Ok(_permit) = self.permits.try_acquire() else { return Err(code::SERVER_FAILURE) };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut next = resolvers.iter().copied().cycle().take(resolvers.len() * ROUNDS);
        let mut given_up = BTreeSet::new();
        let mut silent = BTreeSet::new();
        let mut under_way = FuturesUnordered::new();
        let mut last = Err(code::SERVER_FAILURE);
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        loop {
            let started = next.find(|resolver| !given_up.contains(resolver));
            if let Some(resolver) = started {
                under_way.push(async move { (resolver, ask_one(resolver, ask).await) });
            } else if under_way.is_empty() {
                break;
            }
            tokio::select! {
                // Dropped when it is over: what others still say is not waited for.
                said = under_way.next() => match said {
                    Some((resolver, Ok(reply))) => {
                        self.avoided.lock().remove(&resolver);
                        silent.remove(&resolver);
                        if reply.settles() {
                            last = Ok(Arc::new(reply));
                            break;
                        }
                        given_up.insert(resolver);
                        last = Ok(Arc::new(reply));
                    }
                    Some((resolver, Err(error))) => {
                        tracing::debug!(%resolver, %error, "resolver did not answer");
                        given_up.insert(resolver);
                        silent.insert(resolver);
                    }
                    None => {}
                },
                // Cancel-safe: begins anew with the next.
                () = tokio::time::sleep(STAGGER), if started.is_some() => silent.extend(started),
                // Cancel-safe.
                () = &mut deadline => {
                    silent.extend(started);
                    break;
                }
            }
        }
        let until = Instant::now() + AVOIDED;
        self.avoided.lock().extend(silent.into_iter().map(|resolver| (resolver, until)));
        last
    }

    /// The resolvers in the order in which to ask them: as configured, and those that lately did not answer behind the others.
    fn resolvers(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        let mut resolvers = self.configured();
        resolvers.retain(|resolver| !(own.contains(&resolver.ip()) && resolver.port() == DNS_PORT));
        let (mut avoided, now) = (self.avoided.lock(), Instant::now());
        avoided.retain(|_, until| now < *until);
        resolvers.sort_by_key(|resolver| avoided.contains_key(resolver));
        resolvers.truncate(RESOLVERS);
        resolvers
    }

    fn configured(&self) -> Vec<SocketAddr> {
        let path = match &*self.upstreams.lock() {
            Upstreams::Fixed(resolvers) => return resolvers.clone(),
            Upstreams::File(path) => path.clone(),
        };
        let mut read = self.read.lock();
        if let Some((at, resolvers)) = &*read
            && at.elapsed() < KEPT
        {
            return resolvers.clone();
        }
        // A small local file: shorter than handing it to another thread. Missing is the same as empty.
        let resolvers = nameservers(&std::fs::read_to_string(path).unwrap_or_default());
        *read = Some((Instant::now(), resolvers.clone()));
        resolvers
    }
}

/// The resolvers that the text of a `resolv.conf` names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // An IPv6 link-local address may carry a zone, which only the C library understands.
        address.parse::<IpAddr>().ok()
    };
    text.lines().filter_map(address).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

/// Asks one resolver, by TCP if its answer was cut, and without our extension record if it does not understand that.
async fn ask_one(resolver: SocketAddr, ask: &Ask) -> io::Result<Reply> {
    let reply = ask_by_any(resolver, ask, true).await?;
    if reply.is_puzzled() { ask_by_any(resolver, ask, false).await } else { Ok(reply) }
}

async fn ask_by_any(resolver: SocketAddr, ask: &Ask, extended: bool) -> io::Result<Reply> {
    let reply = by_udp(resolver, ask, extended).await?;
    if !reply.is_cut() {
        return Ok(reply);
    }
    match by_tcp(resolver, ask, extended).await {
        // Part of an answer is better than none, and says that it is a part.
        Err(_) => Ok(reply),
        whole => whole,
    }
}

async fn by_udp(resolver: SocketAddr, ask: &Ask, extended: bool) -> io::Result<Reply> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    // Connected: answers of others do not arrive, and a refusal is an error at once.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    let id = rand::random();
    socket.send(&question(ask, id, extended)).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is a forgery or late; the right one may still come.
        if let Some(reply) = Reply::read(&buffer[..length], id, &ask.asked, Instant::now()) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(resolver: SocketAddr, ask: &Ask, extended: bool) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(resolver).await?;
    let id = rand::random();
    let bytes = question(ask, id, extended);
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Reply::read(&buffer, id, &ask.asked, Instant::now())
        .ok_or_else(|| io::Error::other("an answer to another question"))
}

/// The message that asks a resolver.
fn question(ask: &Ask, id: u16, extended: bool) -> Vec<u8> {
    let checking = if ask.checking_disabled { flag::CHECKING_DISABLED } else { 0 };
    let mut bytes = Vec::with_capacity(HEADER + ask.asked.len() + EXTENSION);
    for number in [id, flag::RECURSION_DESIRED | checking, 1, 0, 0, u16::from(extended)] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&ask.asked);
    if extended {
        let extension = wire::Extension { payload: LARGEST, version: 0, signatures: ask.signatures };
        wire::write_extension(extension, code::NO_ERROR, &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 10.0.0.1\n nameserver\t::1 # local\nnameserver nonsense\nnameservers 1.1.1.1\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:53", "[::1]:53"]);
    }
}
