//! Requests: takes them from clients over HTTP/1.1 and HTTP/2, finds the route that is meant, and has a task answer.
//!
//! - Who may pass, who answers and what is counted is decided in [`table`] and what belongs to it, without waiting for anything; here is
//!   what waits: connections, bodies, time.
//! - A request holds a [`table::Lease`] from before its first byte can reach a task until the last byte of the answer has been taken from
//!   it. A lease is counted first and looks afterwards whether its endpoint is still in the table: once [`crate::Gateway::apply`] has returned,
//!   no lease begins at an endpoint that the table does not have, and those that began before are counted in [`crate::Gateway::draining`].
//! - A worker is a thread with a runtime of its own. A connection never leaves its worker, and neither do the connections to tasks that
//!   it uses.
//!
//! # What the data path asks of `table`
//!
//! ```text
//! Table::default()                                        no routes
//! Table::compile(&RouteTable, before: &Table, workers: usize, now: Moment) -> Table
//!                                                         state of routes and endpoints that stay is `before`'s
//! Table::supersede(&self, before: &Table)                after the swap: no lease begins any more from what only `before` has; its endpoints
//!                                                         are retired and their pools closed
//! Table::find(&self, &Ask) -> Found<'_>
//! Table::by_id(&self, &RouteId) -> Option<&Arc<Route>>     also of routes that are no HTTP (tcp, udp, TLS passed through): `find` never
//!                                                         finds those; `crate::entry` chooses endpoints by them (`choose`, leases, stats, draining)
//! Table::problems(&self) -> &[String]                     routes that cannot be served as they are, and why
//! Table::draining(&self) -> BTreeMap<TaskId, u64>         requests under way with tasks that no route has any more
//! Table::maintain(&self, now)                             every few seconds: forgets clients that were not seen for long
//! Table::endpoints(&self) -> impl Iterator<Item = &Arc<Backend>>       each once; those of fallbacks and mirrors as well
//! Table::ports(&self) -> BTreeMap<u16, Port>              where HTTP listens
//! Table::stats(&self) -> BTreeMap<RouteId, RouteStats>
//!
//! Route { id: RouteId, timeouts: Timeouts, h2c: bool, .. }
//! async Route::admit(&self, &Ask) -> Result<(), Refusal>  addresses, rate, password; counts what it refuses. Waits only for the hash of a
//!                                                         password that was not seen lately, on a thread for blocking work
//! Route::choose(self: &Arc<Self>, &Ask, tried: &[Arc<Backend>], Option<limit::Place>) -> Choice
//!                                                         with the place in the queue that it had, if it had one
//! Route::fallback(self: &Arc<Self>, &Ask, &Refusal) -> Option<Fallen>  and counts it
//! Route::mirror(&self) -> Option<mirror::Copy>            who gets a copy of this one: `.backend()`; held until the copy is answered or given
//!                                                         up. Bodies up to `mirror::LARGEST_BODY` are copied, others are not mirrored
//! Route::may_retry(&self, attempts: u8) -> bool           after so many; takes it from the budget and counts it
//! Route::refused(&self, &Refusal)                         counts one that the data path itself made
//!
//! Backend { endpoint: Endpoint, pools: pool::Pools, .. }  of one task at one address, in however many routes and tables
//! Backend::retire(&self), Backend::is_retired(&self) -> bool, Backend::active(&self) -> u64      all SeqCst
//!
//! Lease::backend(&self) -> &Arc<Backend>
//! Lease::route(&self) -> &Arc<Route>
//! Lease::set_cookie(&self) -> Option<HeaderValue>         for the answer, if this client is to stay there
//! Lease::answered(&mut self, StatusCode, took: Duration, now: Moment)
//! Lease::failed(&mut self, Failure, now: Moment)
//! Lease::passed(&self, received: u64, sent: u64)          bytes of bodies
//! drop(Lease)                                             the request is over: what it kept others from is given back
//!
//! limit::Place::turn(&mut self) -> impl Future<Output = Result<(), Refusal>>     cancel-safe; dropped: has left the queue
//! ```
//!
//! # What the data path asks of `entry` (TLS, PROXY protocol, connections that are not looked at; see [`crate::entry`])
//!
//! ```text
//! Entry::apply(&self, &RouteTable)                        before [`worker::Http::serve`] of the table made from it; one Entry in `Http`
//! Entry::ports(&self) -> BTreeSet<u16>                    where workers listen; has those of `Table::ports`, and those of connections
//! Entry::enter(&self, stream, from, port) -> Entered      first thing in `serve::accepted`: Requests(Conversation { stream, client, secure, .. })
//!                                                         to serve, Connection(conversation, route) for `entry::layer4::pass(worker, ..)`, Over
//! ```

// Modules are added here by those who own them: table, balance, breaker, limit, access, sticky, stats, mirror, fallback.
pub(crate) mod access;
pub(crate) mod balance;
pub(crate) mod breaker;
pub(crate) mod duplicate;
pub(crate) mod entry;
pub(crate) mod fallback;
pub(crate) mod forward;
pub(crate) mod head;
pub(crate) mod limit;
pub(crate) mod mirror;
pub(crate) mod path;
pub(crate) mod pool;
pub(crate) mod probe;
pub(crate) mod serve;
pub(crate) mod stats;
pub(crate) mod sticky;
pub(crate) mod table;
pub(crate) mod upgrade;
pub(crate) mod worker;

use std::{
    net::IpAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;

/// How a gateway deals with clients and tasks that speak HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Threads that serve requests; one for each processor if 0.
    pub workers: usize,
    /// How long a request waits for an endpoint that takes it, before it is refused.
    pub hold: Duration,
    /// For the head of a request, from its first byte.
    pub header_timeout: Duration,
    /// How long a client may be silent between requests.
    pub keep_alive: Duration,
    /// The same, once another process accepts in place of this one.
    pub retired_idle: Duration,
    /// How long a connection to a task waits for the next request. Shorter than servers usually wait: Node.js, Apache and uvicorn have 5 s.
    pub pool_idle: Duration,
    /// Proxies before this one, whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are believed: whom they ask for is who counts in access lists,
    /// limits, hashes and logs.
    pub trusted: Vec<IpNet>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            workers: 0,
            hold: Duration::from_secs(3),
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            retired_idle: Duration::from_secs(10),
            pool_idle: Duration::from_secs(4),
            trusted: Vec::new(),
        }
    }
}

impl HttpOptions {
    pub(crate) fn trusts(&self, client: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&client))
    }
}

/// A moment of the machine's monotonic clock, in microseconds since some fixed moment of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// The one that is.
    pub(crate) fn now() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        // One second on, so that there is a moment before.
        let since = START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1);
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long ago `earlier` was; zero if it is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment this much later.
    pub(crate) fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// What is known of a request when it is decided who answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'r> {
    /// The gateway's port at which it came.
    pub(crate) port: u16,
    /// Over TLS.
    pub(crate) secure: bool,
    /// Who asks: the client's address, an IPv4 one if it is one; behind a trusted proxy, the one that it asks for.
    pub(crate) client: IpAddr,
    pub(crate) method: &'r Method,
    /// Lower case, without port and final dot; an IPv6 address without brackets. Empty if HTTP/1.0 gave none.
    pub(crate) host: &'r str,
    /// As the client wrote it, without the query: [`table::Table::find`] knows in how many ways servers may read it.
    pub(crate) path: &'r str,
    pub(crate) headers: &'r HeaderMap,
    pub(crate) now: Moment,
}

/// Whom a request is for.
pub(crate) enum Found<'t> {
    /// This route's tasks.
    Route(&'t std::sync::Arc<table::Route>),
    /// Its route is for TLS: the client is sent to the same place at this port with it.
    Secure(u16),
    /// A certificate authority asks; this is the answer.
    Challenge(&'t str),
    /// Tasks may read the path in ways that are for different routes: refused (400), so that none's rules are passed by.
    Unclear,
    /// Nobody.
    Nobody,
}

/// What a port expects of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Port {
    /// TLS comes first.
    pub(crate) secure: bool,
    /// The PROXY protocol comes before anything else.
    pub(crate) proxy_protocol: bool,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Until a task accepts the connection.
    pub(crate) connect: Duration,
    /// Until the head of the answer is there.
    pub(crate) request: Duration,
    /// Without a byte in either direction.
    pub(crate) idle: Duration,
}

/// A request that no task answers, and what its client is told instead.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// Its word in counters and logs: `no_endpoint`, `rate_limited`, `queue_full`, `denied`, `unauthorised`, ...
    pub(crate) reason: &'static str,
    /// `retry-after`, `www-authenticate`.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// A line for people.
    pub(crate) text: Bytes,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, reason: &'static str, text: &'static str) -> Self {
        Self { status, reason, headers: Vec::new(), text: Bytes::from_static(text.as_bytes()) }
    }
}

/// Who is to answer.
pub(crate) enum Choice {
    /// The one this is a lease of.
    Lease(table::Lease),
    /// All are as busy as they may be: it waits for its turn, then chooses again with this place. Made only if there was room in the queue.
    Wait(limit::Place),
    /// The route is no longer in the table: look into the newest. A place in the queue is still good if its route is.
    Again(Option<limit::Place>),
    /// Nobody now. `hold`: a table that has somebody may come soon, and is waited for.
    Nobody {
        /// What is said if nobody comes.
        refusal: Refusal,
        /// Whether waiting may help: there is no endpoint, or none that was not tried.
        hold: bool,
    },
}

/// What stands in for tasks that cannot answer.
pub(crate) enum Fallen {
    /// A task of another service.
    Lease(table::Lease),
    /// A fixed answer.
    Answer(StatusCode, HeaderValue, Bytes),
}

/// What went wrong at an endpoint, so that its breaker can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It did not take the connection.
    Connect,
    /// The connection ended before an answer.
    Broken,
    /// It took too long.
    Timeout,
    /// What it said was no HTTP.
    Nonsense,
    /// The answer ended in the middle. Its head was counted as answered.
    Cut,
    /// The client went away first: nothing is known about the endpoint.
    Abandoned,
}
