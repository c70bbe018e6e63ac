//! The entry proxy: takes connections on the node's published ports and spreads them over the tasks that are ready.
//!
//! - A table is served whole from the moment [`Gateway::apply`] returns: no connection made after that goes to an endpoint the table
//!   does not have. That is what [`Gateway::version`] acknowledges.
//! - A connection that is established is never cut by a new table: endpoints that left it get no new ones, routes that are gone no longer listen,
//!   and what was begun goes on until one of its two ends ends it. Only with a task that is gone with its node it ends at once
//!   ([`RouteTable::gone`]): nobody else would end it. That names none that this node can reach, so nothing is cut that goes on.
//! - Until the first byte was sent to an endpoint, its failure is not the client's: another one is tried.
//! - An endpoint sees a connection come from the client's own address where the table says that its answers come back here; if that does
//!   not work, from the gateway's.
//! - A port that cannot be had is a problem in words, tried again every two seconds, and keeps no other from being served.
//!
//! It needs nothing of an agent, so that it can be a process of its own and outlive the agent's upgrades.

mod access_log;
#[cfg(feature = "bench")]
pub mod bench;
mod client;
mod draining;
mod entry;
mod handover;
mod http;
mod listen;
pub mod process;
mod proxy_protocol;
mod route;
mod tcp;
mod tls;
mod udp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use socket2::Type;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_model::{
    EntryCounters, GatewayStats, PortReport, Protocol, Revision, RouteReport, RouteTable, TaskId,
};
use wharf_process::{Task, Tasks};

pub use crate::{
    access_log::{AccessLog, AccessLogOptions},
    http::HttpOptions,
    route::RouteCounters,
};
use crate::{
    draining::Draining,
    handover::Handover,
    http::{Moment, worker::Http},
    route::RouteState,
};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    handover: Handover,
    draining: Arc<Draining>,
    http: Arc<Http>,
}

#[derive(Default)]
struct Table {
    routes: BTreeMap<RouteKey, Serving>,
    /// Where services' routes listen, and whether the port could be had.
    services: BTreeMap<u16, bool>,
    /// Where services' routes of UDP listen; nobody does while the port cannot be had.
    datagrams: BTreeMap<u16, Option<Listener>>,
    /// The table before, for its keys and passwords.
    secrets: RouteTable,
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
    leave: CancellationToken,
    task: Task<()>,
}

impl Listener {
    fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    /// Returns when the port is free again.
    async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }

    /// Returns when nothing more is taken from clients here, for another process that listens as well.
    async fn leave(self) {
        self.leave.cancel();
        let _ = self.task.await;
    }
}

impl Gateway {
    /// A gateway without routes. Listeners stop when `tasks` are asked to; connections then have the group's grace period. To be called
    /// where tokio runs.
    #[must_use]
    pub fn new(options: GatewayOptions, tasks: &Tasks) -> Self {
        let requests = HttpOptions { hold: options.hold, ..HttpOptions::default() };
        Self::with(options, requests, tasks, AccessLog::new(None))
    }

    /// The same, with options of its own for requests, and a log that somebody else [writes](AccessLog::run).
    #[must_use]
    pub fn with(
        options: GatewayOptions,
        requests: HttpOptions,
        tasks: &Tasks,
        access_log: AccessLog,
    ) -> Self {
        let (published, table, seen, handover) = Default::default();
        let (tasks, draining) = (tasks.clone(), Arc::<Draining>::default());
        let http = Arc::new(Http::new(requests, Arc::clone(&draining), access_log));
        let stop = tasks.token();
        let shared =
            Shared { options, tasks: tasks.clone(), published, table, seen, handover, draining, http };
        let shared = Arc::new(shared);
        // Duplicates of its sockets would keep its ports open after the listeners have closed theirs.
        let ending = Arc::downgrade(&shared);
        drop(tasks.spawn("gateway sockets", async move {
            stop.cancelled().await;
            if let Some(shared) = ending.upgrade() {
                shared.handover.release();
            }
        }));
        Self { shared }
    }

    /// Has [`Gateway::run`] serve this table; [`Gateway::version`] says when it does. One that another overtakes is skipped.
    pub fn publish(&self, table: RouteTable) {
        self.shared.published.send_replace(Some(Arc::new(table)));
    }

    /// Serves exactly this table. Routes that stay keep their sockets and connections; keys and passwords that are left out of it
    /// ([`RouteTable::withheld`]) stay as they were.
    pub async fn apply(&self, table: &RouteTable) {
        let mut serving = self.shared.table.lock().await;
        let mut table = table.clone();
        table.recall(&serving.secrets);
        serving.secrets = RouteTable { routes: Vec::new(), ..table.clone() };
        let table = &table;
        // First what goes, so that its port can be taken over by another address.
        let mut wanted: BTreeSet<RouteKey> = table.routes.iter().map(key).collect();
        let Shared { handover, draining, http, .. } = &*self.shared;
        serving.close_all_but(&wanted, handover, draining).await;
        http.entry.apply(table);
        http.serve(http::table::Table::compile(table, &http.table.load(), http.workers(), Moment::now()));
        let ports = http.entry.ports();
        let gone: Vec<u16> = serving.services.keys().copied().filter(|port| !ports.contains(port)).collect();
        for port in gone {
            http.leave(port).await;
            handover.close(service_key(port));
            serving.services.remove(&port);
            tracing::info!(port, "services' port closed");
        }
        for port in ports {
            serving.services.entry(port).or_default();
        }
        let datagrams = http.entry.datagrams();
        let gone: Vec<_> =
            serving.datagrams.extract_if(.., |port, _| !datagrams.contains_key(port)).collect();
        for (port, listener) in gone {
            if let Some(listener) = listener {
                listener.close().await;
            }
            handover.close(datagram_key(port));
            tracing::info!(port, "services' port of UDP closed");
        }
        for port in datagrams.into_keys() {
            serving.datagrams.entry(port).or_default();
        }
        wanted.extend(serving.services.keys().copied().map(service_key));
        wanted.extend(serving.datagrams.keys().copied().map(datagram_key));
        handover.forget_all_but(&wanted);
        serving.clashes.clear();
        let mut met = BTreeSet::new();
        for route in &table.routes {
            let key = key(route);
            if met.insert(key) {
                serving.routes.entry(key).or_default().state.set_endpoints(&route.endpoints, draining);
            } else {
                let text = format!("port {key} is published twice: not served for {}", route.service);
                serving.clashes.insert(key, text);
            }
        }
        self.open(&mut serving).await;
        draining.serve(tasks_of(table));
        if draining.give_up(|task| table.gone.contains_key(task)) {
            http.have_look();
        }
        self.shared.seen.lock().version = Some(table.version);
    }

    /// Duplicates of the sockets that are listened on, for the process that comes after this one.
    ///
    /// # Errors
    /// If no more files may be opened.
    pub fn sockets(&self) -> io::Result<Vec<(RouteKey, OwnedFd)>> {
        self.shared.handover.sockets()
    }

    /// Grows whenever [`Gateway::sockets`] changes.
    #[must_use]
    pub fn socket_changes(&self) -> u64 {
        self.shared.handover.changes()
    }

    /// Takes over the sockets of the process before. The first table that is applied uses those it has a route for, and the others are closed.
    pub fn adopt(&self, sockets: Vec<(RouteKey, OwnedFd)>) {
        self.shared.handover.adopt(sockets);
    }

    /// Takes no new connections, as another process listens on the same sockets. What was begun goes on; tables are applied as before, but
    /// open nothing. There is no way back.
    pub async fn retire(&self) {
        let mut serving = self.shared.table.lock().await;
        self.shared.handover.retire();
        for listener in serving.routes.values_mut().filter_map(|route| route.listener.take()) {
            listener.leave().await;
        }
        for listener in std::mem::take(&mut serving.datagrams).into_values().flatten() {
            listener.leave().await;
        }
        for port in std::mem::take(&mut serving.services).into_keys() {
            self.shared.http.leave(port).await;
        }
        self.shared.http.retire().await;
        serving.clashes.clear();
        let mut seen = self.shared.seen.lock();
        (seen.problems, seen.held) = Default::default();
    }

    /// Clients that are connected now, whatever they do.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.shared.draining.clients()
    }

    /// Tasks that the table which is served does not have, and how many requests and connections are still under way with each. After
    /// [`Gateway::apply`] has returned, the number of a task that its table does not have only falls, and one that is not here stays away.
    #[must_use]
    pub fn draining(&self) -> BTreeMap<TaskId, u64> {
        self.shared.draining.now()
    }

    /// Tells when a table is served, when the last of what was under way with an endpoint that left is over, and when the last client is gone.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.draining.changes()
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
        let is_open = serving.routes.values().all(Serving::is_open)
            && serving.services.values().all(|open| *open)
            && serving.datagrams.values().all(|listener| listener.as_ref().is_some_and(Listener::is_open));
        if !is_open && !self.shared.handover.is_retired() {
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
        let http = &self.shared.http;
        let routes = http.table.load().problems().to_vec();
        seen.problems.values().cloned().chain(unkept).chain(http.entry.problems()).chain(routes).collect()
    }

    /// The ports that others have on this node.
    #[must_use]
    pub fn taken(&self) -> Vec<RouteKey> {
        let seen = self.shared.seen.lock();
        // Who has it is not always to be seen from here.
        let is_taken = |key: &RouteKey, problem: &str| problem == listen::taken(*key, None);
        seen.problems.iter().filter(|(key, problem)| is_taken(key, problem)).map(|(key, _)| *key).collect()
    }

    /// What went through everything that is in the table, or was and has something left.
    #[must_use]
    pub fn stats(&self) -> GatewayStats {
        let report = |(key, counters): (RouteKey, RouteCounters)| PortReport {
            port: key.port,
            protocol: key.protocol,
            host_ip: key.host_ip,
            connections: counters.connections,
            active: counters.active,
            received: counters.received,
            sent: counters.sent,
            failures: counters.failures,
            retries: counters.retries,
        };
        let routes = self.shared.http.table.load().stats(Moment::now());
        GatewayStats {
            ports: self.counters().into_iter().map(report).collect(),
            routes: routes.into_iter().map(|(route, stats)| RouteReport { route, stats }).collect(),
            ..GatewayStats::default()
        }
    }

    /// What connections to services' routes began with, since the process began: handshakes of TLS, the PROXY protocol.
    #[must_use]
    pub fn entry_counters(&self) -> EntryCounters {
        self.shared.http.entry.counters()
    }

    /// What went through each route since it was first in the table.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<RouteKey, RouteCounters> {
        let seen = self.shared.seen.lock();
        seen.routes.iter().map(|(key, state)| (*key, state.counters())).collect()
    }

    /// Opens what is not open yet, and makes what came of it known.
    async fn open(&self, table: &mut Table) {
        if self.shared.handover.is_retired() {
            return;
        }
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
        for (port, is_open) in table.services.iter_mut().filter(|(_, is_open)| !**is_open) {
            match self.listen_for_services(*port).await {
                Ok(()) => {
                    *is_open = true;
                    tracing::info!(port, "services' port opened");
                }
                Err(problem) => drop(problems.insert(service_key(*port), problem)),
            }
        }
        for (port, listener) in &mut table.datagrams {
            if listener.as_ref().is_some_and(Listener::is_open) {
                continue;
            }
            match self.listen_for_datagrams(*port).await {
                Ok(opened) => {
                    *listener = Some(opened);
                    tracing::info!(port, "services' port of UDP opened");
                }
                Err(problem) => drop(problems.insert(datagram_key(*port), problem)),
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
        let services = table.services.iter().filter(|(_, is_open)| **is_open);
        seen.held.extend(services.map(|(port, _)| service_key(*port)));
        let datagrams =
            table.datagrams.iter().filter(|(_, listener)| listener.as_ref().is_some_and(Listener::is_open));
        seen.held.extend(datagrams.map(|(port, _)| datagram_key(*port)));
        seen.routes = table.routes.iter().map(|(key, route)| (*key, Arc::clone(&route.state))).collect();
    }

    async fn listen_for_services(&self, port: u16) -> Result<(), String> {
        let Shared { tasks, handover, http, .. } = &*self.shared;
        let socket = listen::socket(service_key(port), Type::STREAM, handover).await?;
        let opened = http.listen(port, &socket, tasks).await;
        if opened.is_err() {
            http.leave(port).await;
            handover.close(service_key(port));
        }
        opened
    }

    async fn listen_for_datagrams(&self, port: u16) -> Result<Listener, String> {
        let Shared { tasks, handover, http, options, .. } = &*self.shared;
        let socket = listen::udp(datagram_key(port), handover).await?;
        let (stop, leave) = (tasks.token(), CancellationToken::new());
        let until = (stop.clone(), leave.clone());
        let serve = entry::datagrams::serve(socket, port, Arc::clone(http), *options, tasks.clone(), until);
        Ok(Listener { stop, leave, task: tasks.spawn(format!("gateway {}", datagram_key(port)), serve) })
    }

    async fn listen(&self, key: RouteKey, state: &Arc<RouteState>) -> Result<Listener, String> {
        let Shared { options, tasks, handover, draining, .. } = &*self.shared;
        let (stop, state) = (tasks.token(), Arc::clone(state));
        let leave = match key.protocol {
            Protocol::Tcp => stop.clone(),
            // Answers to its clients still go through the socket.
            Protocol::Udp => CancellationToken::new(),
        };
        let (name, group) = (format!("gateway {key}"), (tasks.clone(), Arc::clone(draining)));
        let task = match key.protocol {
            Protocol::Tcp => {
                let socket = listen::tcp(key, handover).await?;
                tasks.spawn(name, tcp::serve(socket, state, *options, group, stop.clone()))
            }
            Protocol::Udp => {
                let socket = listen::udp(key, handover).await?;
                tasks.spawn(name, udp::serve(socket, state, *options, group, stop.clone(), leave.clone()))
            }
        };
        Ok(Listener { stop, leave, task })
    }
}

impl Table {
    /// Closes the routes that are not in `wanted`. Their connections go on.
    async fn close_all_but(
        &mut self,
        wanted: &BTreeSet<RouteKey>,
        handover: &Handover,
        draining: &Arc<Draining>,
    ) {
        let gone: Vec<_> = self.routes.extract_if(.., |key, _| !wanted.contains(key)).collect();
        for (key, route) in gone {
            route.state.set_endpoints(&[], draining);
            if let Some(listener) = route.listener {
                listener.close().await;
            }
            handover.close(key);
            tracing::info!(route = %key, "route closed");
        }
    }
}

impl Serving {
    fn is_open(&self) -> bool {
        self.listener.as_ref().is_some_and(|listener| !listener.task.is_finished())
    }
}

/// The tasks that anything of the table may lead to.
fn tasks_of(table: &RouteTable) -> BTreeSet<TaskId> {
    let ports = table.routes.iter().flat_map(|route| &route.endpoints);
    let services = table.services.iter().flat_map(|route| {
        let sets = route.sets.iter().flat_map(|set| &set.endpoints);
        sets.chain(&route.fallback).chain(&route.mirror)
    });
    ports.chain(services).map(|endpoint| endpoint.task).collect()
}

/// Where services' routes of UDP listen: at every address.
fn datagram_key(port: u16) -> RouteKey {
    RouteKey { port, protocol: Protocol::Udp, host_ip: None }
}

/// Where services' routes listen: at every address.
fn service_key(port: u16) -> RouteKey {
    RouteKey { port, protocol: Protocol::Tcp, host_ip: None }
}

fn key(route: &wharf_model::Route) -> RouteKey {
    RouteKey { port: route.port, protocol: route.protocol, host_ip: route.host_ip }
}
