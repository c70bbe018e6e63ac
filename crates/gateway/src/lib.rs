//! The entry proxy: takes connections on the node's published ports and spreads them over the tasks that are ready.
//!
//! - A table is served whole from the moment [`Gateway::apply`] returns: no connection made after that goes to an endpoint the table
//!   does not have. That is what [`Gateway::version`] acknowledges.
//! - A connection that is established is never cut by a new table: endpoints that are gone get no new ones, routes that are gone no longer listen,
//!   and what was begun goes on until one of its two ends ends it.
//! - Until the first byte was sent to an endpoint, its failure is not the client's: another one is tried.
//! - An endpoint sees a connection come from the client's own address where the table says that its answers come back here; if that does
//!   not work, from the gateway's.
//! - A port that cannot be had is a problem in words, tried again every two seconds, and keeps no other from being served.
//!
//! It needs nothing of an agent, so that it can be a process of its own and outlive the agent's upgrades.

mod client;
mod listen;
mod route;
mod tcp;
mod udp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_model::{Protocol, Revision, RouteTable};
use wharf_process::{Task, Tasks};

pub use crate::route::RouteCounters;
use crate::route::RouteState;

/// How often a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// How a gateway deals with slow and missing endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayOptions {
    /// How long a connection is kept waiting for an endpoint that takes it, before it is reset.
    pub hold: Duration,
    /// For one endpoint to take a connection.
    pub connect_timeout: Duration,
    /// After which silence a client's datagrams may go to another endpoint.
    pub datagram_idle: Duration,
    /// Clients of one UDP route at once; the longest silent one gives way.
    pub datagram_clients: usize,
}

impl Default for GatewayOptions {
    /// Long enough for a release that stops before it starts, short enough for a person.
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            datagram_idle: Duration::from_secs(60),
            datagram_clients: 4096,
        }
    }
}

/// Where a route listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Its port.
    pub port: u16,
    /// Its transport.
    pub protocol: Protocol,
    /// Its address; every one of the node if absent.
    pub host_ip: Option<IpAddr>,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        match self.host_ip {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{protocol}", self.port),
            Some(address) => write!(f, "{address}:{}/{protocol}", self.port),
            None => write!(f, "{}/{protocol}", self.port),
        }
    }
}

/// The gateway of a node. Clones are the same one.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    options: GatewayOptions,
    tasks: Tasks,
    /// The newest table that was published; [`Gateway::run`] applies it.
    published: watch::Sender<Option<Arc<RouteTable>>>,
    /// One table at a time is applied; held while sockets are opened and closed.
    table: tokio::sync::Mutex<Table>,
    /// What others may ask at any time.
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Table {
    routes: BTreeMap<RouteKey, Serving>,
    /// Ports that two routes want: the first has it.
    clashes: BTreeMap<RouteKey, String>,
}

#[derive(Default)]
struct Seen {
    version: Option<Revision>,
    problems: BTreeMap<RouteKey, String>,
    routes: BTreeMap<RouteKey, Arc<RouteState>>,
    held: BTreeSet<RouteKey>,
}

/// A route of the table.
#[derive(Default)]
struct Serving {
    state: Arc<RouteState>,
    /// Absent while its port cannot be had.
    listener: Option<Listener>,
}

/// What listens on a route's port.
struct Listener {
    stop: CancellationToken,
    task: Task<()>,
}

impl Listener {
    /// Returns when the port is free again.
    async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

impl Gateway {
    /// A gateway without routes. Listeners stop when `tasks` are asked to; connections then have the group's grace period.
    #[must_use]
    pub fn new(options: GatewayOptions, tasks: &Tasks) -> Self {
        let (published, table, seen) = Default::default();
        Self { shared: Arc::new(Shared { options, tasks: tasks.clone(), published, table, seen }) }
    }

    /// Has [`Gateway::run`] serve this table; [`Gateway::version`] says when it does. One that another overtakes is skipped.
    pub fn publish(&self, table: RouteTable) {
        self.shared.published.send_replace(Some(Arc::new(table)));
    }

    /// Serves exactly this table. Routes that stay keep their sockets and connections.
    pub async fn apply(&self, table: &RouteTable) {
        let mut serving = self.shared.table.lock().await;
        // First what goes, so that its port can be taken over by another address.
        let wanted: BTreeSet<RouteKey> = table.routes.iter().map(key).collect();
        serving.close_all_but(&wanted).await;
        serving.clashes.clear();
        let mut met = BTreeSet::new();
        for route in &table.routes {
            let key = key(route);
            if met.insert(key) {
                serving.routes.entry(key).or_default().state.set_endpoints(&route.endpoints);
            } else {
                let text = format!("port {key} is published twice: not served for {}", route.service);
                serving.clashes.insert(key, text);
            }
        }
        self.open(&mut serving).await;
        self.shared.seen.lock().version = Some(table.version);
    }

    /// Serves what is published, and every two seconds tries the ports again that could not be had, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut published = self.shared.published.subscribe();
        published.mark_changed();
        loop {
            tokio::select! {
                // Cancel-safe: nothing is under way.
                () = stop.cancelled() => return,
                // Cancel-safe: a change that was not seen is seen by the next call. The sender is in `self`.
                _ = published.changed() => {
                    let table = published.borrow_and_update().clone();
                    if let Some(table) = table {
                        self.apply(&table).await;
                    }
                }
                // Cancel-safe: it only passes time, and starts again after a table was applied.
                () = tokio::time::sleep(RETRY) => self.retry().await,
            }
        }
    }

    async fn retry(&self) {
        let mut serving = self.shared.table.lock().await;
        if serving.routes.values().any(|route| !route.is_open()) {
            self.open(&mut serving).await;
        }
    }

    /// The ports that the gateway itself holds.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<(u16, Protocol)> {
        let seen = self.shared.seen.lock();
        seen.held.iter().map(|key| (key.port, key.protocol)).collect()
    }

    /// The version of the table that is served; none before the first. Ports that could not be had are in [`Gateway::problems`].
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        self.shared.seen.lock().version
    }

    /// Ports that are not served, and why; and those whose clients' addresses are not kept though they should be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let seen = self.shared.seen.lock();
        let unkept =
            seen.routes.iter().filter_map(|(key, route)| Some(format!("port {key}: {}", route.problem()?)));
        seen.problems.values().cloned().chain(unkept).collect()
    }

    /// What went through each route since it was first in the table.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<RouteKey, RouteCounters> {
        let seen = self.shared.seen.lock();
        seen.routes.iter().map(|(key, state)| (*key, state.counters())).collect()
    }

    /// Opens what is not open yet, and makes what came of it known.
    async fn open(&self, table: &mut Table) {
        let mut problems = table.clashes.clone();
        for (key, route) in table.routes.iter_mut().filter(|(_, route)| !route.is_open()) {
            match self.listen(*key, &route.state).await {
                Ok(listener) => {
                    route.listener = Some(listener);
                    tracing::info!(route = %key, "route opened");
                }
                Err(problem) => drop(problems.insert(*key, problem)),
            }
        }
        let mut seen = self.shared.seen.lock();
        for (key, problem) in &problems {
            if seen.problems.get(key) != Some(problem) {
                tracing::warn!(route = %key, problem, "route not served");
            }
        }
        seen.problems = problems;
        seen.held = table.routes.iter().filter(|(_, route)| route.is_open()).map(|(key, _)| *key).collect();
        seen.routes = table.routes.iter().map(|(key, route)| (*key, Arc::clone(&route.state))).collect();
    }

    async fn listen(&self, key: RouteKey, state: &Arc<RouteState>) -> Result<Listener, String> {
        let Shared { options, tasks, .. } = &*self.shared;
        let (stop, state) = (tasks.token(), Arc::clone(state));
        let name = format!("gateway {key}");
        let task = match key.protocol {
            Protocol::Tcp => {
                let socket = listen::tcp(key).await?;
                tasks.spawn(name, tcp::serve(socket, state, *options, tasks.clone(), stop.clone()))
            }
            Protocol::Udp => {
                let socket = listen::udp(key).await?;
                tasks.spawn(name, udp::serve(socket, state, *options, tasks.clone(), stop.clone()))
            }
        };
        Ok(Listener { stop, task })
    }
}

impl Table {
    /// Closes the routes that are not in `wanted`. Their connections go on.
    async fn close_all_but(&mut self, wanted: &BTreeSet<RouteKey>) {
        let gone: Vec<_> = self.routes.extract_if(.., |key, _| !wanted.contains(key)).collect();
        for (key, route) in gone {
            route.state.set_endpoints(&[]);
            if let Some(listener) = route.listener {
                listener.close().await;
            }
            tracing::info!(route = %key, "route closed");
        }
    }
}

impl Serving {
    fn is_open(&self) -> bool {
        self.listener.as_ref().is_some_and(|listener| !listener.task.is_finished())
    }
}

fn key(route: &wharf_model::Route) -> RouteKey {
    RouteKey { port: route.port, protocol: route.protocol, host_ip: route.host_ip }
}
