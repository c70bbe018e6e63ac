//! One route's endpoints: which are there, how busy each is, and which takes the next connection.
//!
//! - An endpoint that leaves the table is retired for good; one that stays keeps its count of connections.
//! - The next connection goes to an endpoint with the fewest; among equals they take turns.
//! - One that did not take a connection is asked last for five seconds: only one connection at a time finds out that it is dead.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use wharf_model::{Endpoint, TaskId};

use crate::{
    client::{self, Way},
    draining::{Draining, InUse},
};

/// How long an endpoint that failed is asked last.
const SUSPECT: Duration = Duration::from_secs(5);
/// How long an endpoint that could not be reached from a client's address is reached from the gateway's.
const FALLBACK: Duration = Duration::from_secs(30);

/// What went through a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteCounters {
    /// Connections that reached an endpoint, or clients whose datagrams did.
    pub connections: u64,
    /// Those that are open now.
    pub active: u64,
    /// Bytes from clients to endpoints.
    pub received: u64,
    /// Bytes from endpoints to clients.
    pub sent: u64,
    /// Connections that no endpoint took, and datagrams that were dropped.
    pub failures: u64,
    /// Endpoints that did not take a connection which another then may have.
    pub retries: u64,
    /// Of the connections, those that the endpoint saw come from the client's own address.
    pub kept: u64,
    /// Those that it should have seen so, and did not because that did not work.
    pub fallbacks: u64,
}

/// A route while it is in the table.
#[derive(Default)]
pub(crate) struct RouteState {
    endpoints: watch::Sender<Arc<[Arc<Backend>]>>,
    turn: AtomicUsize,
    pub(crate) connections: AtomicU64,
    pub(crate) active: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) kept: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    /// When a connection could last not be made from the client's address, and why.
    fallback: Mutex<Option<(Instant, String)>>,
}

/// An endpoint while it is in the table.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    active: AtomicUsize,
    retired: AtomicBool,
    /// Cancelled when nothing more comes of what is under way with it.
    gone: CancellationToken,
    /// Who is told when it has left the table and nothing of it is left.
    leaving: OnceLock<Arc<Draining>>,
    /// When it last did not take a connection.
    failed: Mutex<Option<Instant>>,
    /// As the newest table has it: whether it can be reached from clients' addresses.
    newest: Mutex<Endpoint>,
    /// When that last did not work, for clients with IPv4 addresses and for those with IPv6 ones.
    unreachable: Mutex<Option<Instant>>,
    unreachable6: Mutex<Option<Instant>>,
}

impl Backend {
    fn new(endpoint: Endpoint) -> Self {
        let (active, retired, gone, leaving, failed) = Default::default();
        let (unreachable, unreachable6) = Default::default();
        let newest = Mutex::new(endpoint);
        Self { endpoint, active, retired, gone, leaving, failed, newest, unreachable, unreachable6 }
    }

    /// How to connect to it so that it sees the client; none if it is to see the gateway.
    pub(crate) fn way(&self, client: SocketAddr) -> Option<Way> {
        let way = client::way(client, &self.newest.lock())?;
        let works = self.unreachable(way).lock().is_none_or(|at| at.elapsed() >= FALLBACK);
        works.then_some(way)
    }

    const fn unreachable(&self, way: Way) -> &Mutex<Option<Instant>> {
        match way.from {
            IpAddr::V4(_) => &self.unreachable,
            IpAddr::V6(_) => &self.unreachable6,
        }
    }

    /// Notes that it did not take a connection.
    pub(crate) fn failed(&self) {
        *self.failed.lock() = Some(Instant::now());
    }

    /// Those that are suspect last, then those with the most connections.
    fn rank(&self) -> (bool, usize) {
        let suspect = self.failed.lock().is_some_and(|at| at.elapsed() < SUSPECT);
        (suspect, self.active.load(Ordering::Relaxed))
    }

    /// Whether it has left the table.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Returns when its task is gone with its node, and nothing more comes of what is under way with it.
    ///
    /// Cancel-safe: waits for a flag.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// It has left the table.
    fn retire(self: &Arc<Self>, draining: &Arc<Draining>) {
        let _ = self.leaving.set(Arc::clone(draining));
        self.retired.store(true, Ordering::SeqCst);
        draining.leave(Arc::clone(self) as Arc<dyn InUse>);
    }
}

impl InUse for Backend {
    fn task(&self) -> TaskId {
        self.endpoint.task
    }
    fn under_way(&self) -> u64 {
        self.active.load(Ordering::SeqCst) as u64
    }
    fn give_up(&self) {
        self.gone.cancel();
    }
}

/// One connection's claim on an endpoint; given up when dropped.
pub(crate) struct Claim {
    pub(crate) backend: Arc<Backend>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let was_last = self.backend.active.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.backend.is_retired() {
            self.backend.leaving.get().into_iter().for_each(|draining| draining.ended());
        }
    }
}

/// Counts a connection as open until it is dropped.
pub(crate) struct Open(Arc<RouteState>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RouteState {
    /// Replaces the endpoints. Those that stay keep their counts, and those that go are handed to `draining`.
    pub(crate) fn set_endpoints(&self, wanted: &[Endpoint], draining: &Arc<Draining>) {
        let before = Arc::clone(&self.endpoints.borrow());
        let kept = |endpoint: &Endpoint| before.iter().find(|backend| backend.endpoint.is_same(endpoint));
        let backend = |endpoint: &Endpoint| {
            let backend = kept(endpoint).map_or_else(|| Arc::new(Backend::new(*endpoint)), Arc::clone);
            *backend.newest.lock() = *endpoint;
            backend
        };
        self.endpoints.send_replace(wanted.iter().map(backend).collect());
        // After the new ones are there: who finds its endpoint retired finds the next one.
        let stays = |backend: &Backend| wanted.iter().any(|endpoint| endpoint.is_same(&backend.endpoint));
        before.iter().filter(|backend| !stays(backend)).for_each(|gone| gone.retire(draining));
    }

    /// Tells of every change of the endpoints from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<[Arc<Backend>]>> {
        self.endpoints.subscribe()
    }

    /// The endpoint for the next connection, except those already `tried`.
    pub(crate) fn claim(&self, tried: &[Endpoint]) -> Option<Claim> {
        let endpoints = Arc::clone(&self.endpoints.borrow());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % endpoints.len().max(1);
        let (before, after) = endpoints.split_at(turn);
        let untried = after.iter().chain(before).filter(|backend| !tried.contains(&backend.endpoint));
        // The first of equals: where the turn is.
        let backend = untried.min_by_key(|backend| backend.rank())?;
        // Counted first: whoever retires it sees the claim, or the claim sees that it is retired.
        backend.active.fetch_add(1, Ordering::SeqCst);
        Some(Claim { backend: Arc::clone(backend) })
    }

    /// Notes that an endpoint could not be reached from a client's address. It is reached from the gateway's for a while.
    pub(crate) fn fell_back(&self, backend: &Backend, way: Way, error: &io::Error) {
        let now = Instant::now();
        *backend.unreachable(way).lock() = Some(now);
        if way.to.is_ipv6() && error.kind() == io::ErrorKind::ConnectionRefused {
            // It listens on IPv4 alone, as it may.
            return;
        }
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
        let text =
            format!("{} is not reached from clients' addresses ({error}): it sees the gateway's", way.to);
        *self.fallback.lock() = Some((now, text));
    }

    /// What is not as it should be about clients' addresses.
    pub(crate) fn problem(&self) -> Option<String> {
        let fallback = self.fallback.lock();
        fallback.as_ref().filter(|(at, _)| at.elapsed() < FALLBACK * 2).map(|(_, text)| text.clone())
    }

    /// Counts a connection that reached an endpoint.
    pub(crate) fn opened(self: &Arc<Self>) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    pub(crate) fn counters(&self) -> RouteCounters {
        RouteCounters {
            connections: self.connections.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use wharf_model::TaskId;

    use super::*;

    fn endpoint(number: u8) -> Endpoint {
        let address = std::net::SocketAddrV4::new([10, 192, 0, number].into(), 80);
        Endpoint::new(TaskId::from_parts(1, [number; 10]), address)
    }

    fn route(count: u8) -> RouteState {
        let route = RouteState::default();
        route.set_endpoints(&(0..count).map(endpoint).collect::<Vec<_>>(), &Arc::default());
        route
    }

    proptest! {
        #[test]
        fn open_connections_are_spread_as_evenly_as_can_be(count in 1_u8..8, connections in 0_usize..50) {
            let route = route(count);
            let claims: Vec<Claim> = (0..connections).filter_map(|_| route.claim(&[])).collect();
            let mut busy: BTreeMap<Endpoint, usize> = (0..count).map(|number| (endpoint(number), 0)).collect();
            for claim in &claims {
                *busy.entry(claim.backend.endpoint).or_default() += 1;
            }
            let (most, fewest) = (busy.values().max().unwrap(), busy.values().min().unwrap());
            prop_assert!(most - fewest <= 1, "{busy:?}");
        }

        #[test]
        fn short_connections_take_turns(count in 1_u8..8, rounds in 1_usize..5) {
            let route = route(count);
            let mut taken: BTreeMap<Endpoint, usize> = BTreeMap::new();
            for _ in 0..rounds * usize::from(count) {
                *taken.entry(route.claim(&[]).unwrap().backend.endpoint).or_default() += 1;
            }
            prop_assert!(taken.values().all(|times| *times == rounds), "{taken:?}");
        }
    }

    #[test]
    fn an_endpoint_that_stays_keeps_its_count_and_one_that_goes_is_retired() {
        let route = route(2);
        let first = route.claim(&[]).unwrap();
        let busy = first.backend.endpoint;
        let second = route.claim(&[]).unwrap();
        let (gone, idle) = (second.backend.endpoint, endpoint(9));
        let draining = Arc::<Draining>::default();
        route.set_endpoints(&[busy, idle], &draining);
        assert_eq!(draining.now(), BTreeMap::from([(gone.task, 1)]));
        assert!(second.backend.is_retired() && !first.backend.is_retired());
        assert_eq!(route.claim(&[]).unwrap().backend.endpoint, idle, "the other has a connection");
        assert_ne!(route.claim(&[idle, busy]).map(|claim| claim.backend.endpoint), Some(gone));
        let changes = draining.changes();
        drop(second);
        assert!(changes.has_changed().unwrap() && draining.now().is_empty(), "its last connection is over");
    }

    #[test]
    fn an_endpoint_that_can_answer_clients_now_is_the_same_one() {
        let route = route(1);
        let first = route.claim(&[]).unwrap();
        let client = "192.0.2.7:1000".parse().unwrap();
        assert_eq!(first.backend.way(client), None);
        route.set_endpoints(&[Endpoint { keeps_client: true, ..endpoint(0) }], &Arc::default());
        assert!(!first.backend.is_retired(), "its connections go on");
        let way = first.backend.way(client).unwrap();
        assert_eq!(way.from, IpAddr::from([192, 0, 2, 7]));
        route.fell_back(&first.backend, way, &io::ErrorKind::TimedOut.into());
        assert_eq!(first.backend.way(client), None, "for a while");
        assert!(route.problem().unwrap().contains("10.192.0.0:80 is not reached from clients' addresses"));
        assert_eq!(route.counters().fallbacks, 1);
    }

    #[test]
    fn an_endpoint_that_listens_on_ipv4_alone_is_asked_there_and_that_is_no_problem() {
        let route = route(0);
        let both =
            Endpoint { keeps_client: true, keeps_client6: Some("fd00::1".parse().unwrap()), ..endpoint(0) };
        route.set_endpoints(&[both], &Arc::default());
        let claim = route.claim(&[]).unwrap();
        let way = |client: &str| claim.backend.way(client.parse().unwrap());
        let six = way("[2001:db8::1]:1000").unwrap();
        route.fell_back(&claim.backend, six, &io::ErrorKind::ConnectionRefused.into());
        assert_eq!(way("[2001:db8::1]:1000"), None, "for a while");
        assert!(way("192.0.2.7:1000").is_some(), "others are kept");
        assert_eq!((route.problem(), route.counters().fallbacks), (None, 0));
    }

    #[test]
    fn an_endpoint_was_tried_once_and_not_again() {
        let route = route(2);
        let first = route.claim(&[]).unwrap().backend.endpoint;
        let second = route.claim(&[first]).unwrap().backend.endpoint;
        assert_ne!(first, second);
        assert!(route.claim(&[first, second]).is_none());
    }
}
