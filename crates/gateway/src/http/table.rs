//! Finds the route that a request is for, and the endpoint that answers it.
//!
//! - The most specific route is found: exact hosts before wildcards, of these the longest; then longer paths, whole segments; then more
//!   conditions. Finding takes as long with ten thousand hosts as with one.
//! - However servers read a path, it never gets past the rules of a longer route: where readings lead to different routes, the one below the
//!   other is meant, and where neither is, the request is refused.
//! - Routes and endpoints that stay keep what is known of them over tables: counts, breakers, limits, queues. A route that says the same in
//!   two tables is the same object.
//! - A lease is counted first, and then looks whether its route is still in the table. [`Table::supersede`] says that it is not, and
//!   reads the counts after it: no lease begins unseen.
//! - Nothing here waits, and nothing is computed by a request that the table could know.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    net::SocketAddrV4,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, StatusCode, header::RETRY_AFTER};
use parking_lot::Mutex;
use wharf_model::{
    AcmeChallenge, Balance, Endpoint, EndpointState, EndpointStats, Generation, ProxyProtocol, Revision,
    RouteId, RouteProtocol, RouteStats, RouteTable, RouteTls, ServiceRoute, TaskId,
};

use crate::draining::{Draining, InUse};

use crate::access_log::{EndpointLabel, RouteLabel};

use super::{
    Ask, Choice, Failure, Fallen, Found, Moment, Port, Refusal, Timeouts, access,
    balance::{self, Key},
    breaker::{Breaker, Change, Others, Phase, Policy, Symptom},
    fallback::{self, StandIn},
    limit::{self, Place, Rate},
    mirror, path,
    pool::Pools,
    stats::{Refused, SetCounters},
    sticky::{self, GenerationMark, TaskMark, Wish},
};

/// Generations whose numbers are kept after they left the table.
const PAST_GENERATIONS: usize = 8;
const CHALLENGES: &str = "/.well-known/acme-challenge/";

// --- the table ---

/// Every route of a gateway, ready to be asked.
#[derive(Default)]
pub(crate) struct Table {
    version: Revision,
    hosts: HashMap<u16, Hosts>,
    ports: BTreeMap<u16, Port>,
    routes: BTreeMap<RouteId, Arc<Route>>,
    /// Of these routes, and of routes that are gone and have something under way.
    states: BTreeMap<RouteId, Arc<RouteState>>,
    backends: HashMap<Spot, Arc<Backend>>,
    problems: Vec<String>,
    verified: Arc<access::Verified>,
    /// Tasks that have left because their nodes do not answer.
    unheard: BTreeSet<TaskId>,
    /// Answers by host and token.
    challenges: HashMap<(String, String), String>,
}

/// Which task, at which address.
type Spot = (TaskId, SocketAddrV4);

fn spot(endpoint: &Endpoint) -> Spot {
    (endpoint.task, endpoint.address)
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (routes, backends) = (self.routes.len(), self.backends.len());
        f.debug_struct("Table")
            .field("version", &self.version)
            .field("routes", &routes)
            .field("backends", &backends)
            .finish_non_exhaustive()
    }
}

/// The routes of one port.
#[derive(Default)]
struct Hosts {
    /// Requests come over TLS here, and no others are for anybody.
    secure: bool,
    exact: HashMap<Box<str>, Paths>,
    /// By what follows the `*.`.
    below: HashMap<Box<str>, Paths>,
    any: Paths,
}

/// The routes of one host, by the prefix of the path in the form of [`path::of_route`].
#[derive(Default)]
struct Paths {
    rules: HashMap<Box<[u8]>, Vec<Rule>>,
    /// Segments of the longest prefix.
    deepest: usize,
}

/// What a request with this host and path must have besides, and whom it is for then. The most demanding is first.
struct Rule {
    methods: Vec<Method>,
    /// With the value, or any.
    headers: Vec<(HeaderName, Option<HeaderValue>)>,
    target: Target,
}

enum Target {
    Services(Shares),
    /// The same place at this port, with TLS.
    Secure(u16),
}

/// Services with the same route, each with its share.
struct Shares {
    routes: Vec<(u64, Arc<Route>)>,
    total: u64,
}

/// The rule for one reading of a path.
struct Hit<'t, 'p> {
    prefix: &'p [u8],
    rule: &'t Rule,
}

impl Table {
    /// The routes of a table as gateways are sent it. What stays keeps what `before` knows of it.
    pub(crate) fn compile(table: &RouteTable, before: &Self, workers: usize, _now: Moment) -> Self {
        let mut compiled = Self {
            version: table.version,
            verified: Arc::clone(&before.verified),
            unheard: table.unheard.clone(),
            ..Self::default()
        };
        let mut services: Vec<&ServiceRoute> = table.services.iter().collect();
        services.sort_by(|one, other| one.id.cmp(&other.id));
        for service in services {
            compiled.add(service, before, workers);
        }
        compiled.redirect();
        for (id, state) in &before.states {
            if !compiled.states.contains_key(id) && state.is_busy() {
                compiled.states.insert(id.clone(), Arc::clone(state));
            }
        }
        for challenge in &table.challenges {
            match challenge {
                AcmeChallenge::Http01 { host, token, answer } => {
                    compiled.challenges.insert((host.clone(), token.clone()), answer.clone());
                    compiled.ports.entry(80).or_default();
                }
                AcmeChallenge::TlsAlpn01 { .. } => {}
            }
        }
        compiled
    }

    fn add(&mut self, service: &ServiceRoute, before: &Self, workers: usize) {
        let id = &service.id;
        if self.routes.contains_key(id) {
            self.problems.push(format!("route {id} is there twice: only the first is served"));
            return;
        }
        let mut backend = |endpoint: &Endpoint| {
            let spot = spot(endpoint);
            let made = self.backends.entry(spot).or_insert_with(|| match before.backends.get(&spot) {
                Some(kept) if !kept.is_retired() => Arc::clone(kept),
                _ => Arc::new(Backend::new(*endpoint, workers)),
            });
            made.keeps_client.store(endpoint.keeps_client, Relaxed);
            Arc::clone(made)
        };
        let kept = before.routes.get(id).filter(|route| *route.source == *service && !route.is_superseded());
        let route = match kept {
            Some(route) => {
                let endpoints = service.sets.iter().flat_map(|set| &set.endpoints);
                endpoints.chain(&service.fallback).chain(&service.mirror).for_each(|it| drop(backend(it)));
                Arc::clone(route)
            }
            None => {
                let state = before.states.get(id).map_or_else(|| Arc::new(RouteState::default()), Arc::clone);
                Arc::new(Route::compile(service, state, &self.verified, &mut backend))
            }
        };
        self.problems.extend(route.problems.iter().map(|problem| format!("route {id}: {problem}")));
        self.states.insert(id.clone(), Arc::clone(&route.state));
        self.routes.insert(id.clone(), Arc::clone(&route));
        if service.spec.sees_requests() {
            self.place(&route);
        }
    }

    /// Has requests find the route.
    fn place(&mut self, route: &Arc<Route>) {
        let spec = &route.source.spec;
        let wanted = Port {
            secure: spec.tls != RouteTls::Off,
            proxy_protocol: matches!(spec.proxy_protocol, ProxyProtocol::In | ProxyProtocol::Both),
        };
        let port = spec.gateway_port();
        let is = *self.ports.entry(port).or_insert(wanted);
        if is != wanted {
            let what = |port: Port| {
                let tls = if port.secure { "with TLS" } else { "without TLS" };
                let proxied = if port.proxy_protocol { "with" } else { "without" };
                format!("{tls} and {proxied} the PROXY protocol from clients")
            };
            self.problems.push(format!(
                "route {} is not served: it wants port {port} {}, and other routes have it {}; give it a port of its own with `listen`",
                route.id,
                what(wanted),
                what(is),
            ));
            return;
        }
        let weight = u64::from(spec.weight.unwrap_or(100));
        let target = || Target::Services(Shares { routes: vec![(weight, Arc::clone(route))], total: weight });
        self.place_at(port, route, target);
    }

    /// Has requests without TLS sent to where routes are with it. After all routes are in place: what serves wins.
    fn redirect(&mut self) {
        let routes: Vec<_> =
            self.routes.values().filter(|route| route.source.spec.sees_requests()).cloned().collect();
        for route in routes {
            let spec = &route.source.spec;
            let Some(port) = spec.redirect_port() else { continue };
            let proxy_protocol = matches!(spec.proxy_protocol, ProxyProtocol::In | ProxyProtocol::Both);
            let is = *self.ports.entry(port).or_insert(Port { secure: false, proxy_protocol });
            if !is.secure {
                self.place_at(port, &route, || Target::Secure(spec.gateway_port()));
            }
        }
    }

    fn place_at(&mut self, port: u16, route: &Arc<Route>, target: impl Fn() -> Target) {
        let spec = &route.source.spec;
        let hosts = self.hosts.entry(port).or_default();
        hosts.secure |= self.ports.get(&port).is_some_and(|port| port.secure);
        let prefix = path::of_route(spec.path.as_deref().unwrap_or("/")).into_boxed_slice();
        let anywhere = [String::new()];
        for host in if spec.hosts.is_empty() { &anywhere[..] } else { &spec.hosts[..] } {
            let paths = match (host.as_str(), host.strip_prefix("*.")) {
                ("" | "*", _) => &mut hosts.any,
                (_, Some(above)) => hosts.below.entry(path::host(above).into()).or_default(),
                (host, None) => hosts.exact.entry(path::host(host).into()).or_default(),
            };
            paths.deepest = paths.deepest.max(prefix.iter().filter(|byte| **byte == b'/').count());
            let rules = paths.rules.entry(prefix.clone()).or_default();
            let added = Rule::new(route, target()).map_or_else(
                || Err("no request can have such methods or headers".to_owned()),
                |rule| add_rule(rules, rule).map_err(|other| format!("{other} of another app has the same")),
            );
            if let Err(why) = added {
                self.problems.push(format!("route {} is not served at {}: {why}", route.id, spec.place()));
            }
        }
    }

    /// Whom a request is for.
    pub(crate) fn find(&self, ask: &Ask<'_>) -> Found<'_> {
        if let Some(answer) = self.challenge(ask) {
            return Found::Challenge(answer);
        }
        let Some(hosts) = self.hosts.get(&ask.port) else { return Found::Nobody };
        if hosts.secure && !ask.secure {
            // Nothing of a request that everybody on its way could read is passed on.
            return Found::Nobody;
        }
        let Ok(readings) = path::read(ask.path) else { return Found::Unclear };
        let mut hit = hosts.find(ask, &readings.usual);
        for other in &readings.others {
            hit = match (hit, hosts.find(ask, other)) {
                (None, other) => other,
                (Some(hit), None) => Some(hit),
                (Some(hit), Some(other)) if path::is_below(hit.prefix, other.prefix) => Some(hit),
                (Some(hit), Some(other)) if path::is_below(other.prefix, hit.prefix) => Some(other),
                (Some(_), Some(_)) => return Found::Unclear,
            };
        }
        match hit.map(|hit| &hit.rule.target) {
            None => Found::Nobody,
            Some(Target::Secure(port)) => Found::Secure(*port),
            Some(Target::Services(shares)) => shares.choose(ask).map_or(Found::Nobody, Found::Route),
        }
    }

    fn challenge(&self, ask: &Ask<'_>) -> Option<&str> {
        if self.challenges.is_empty() || ask.port != 80 {
            return None;
        }
        let token = ask.path.strip_prefix(CHALLENGES)?;
        self.challenges.get(&(ask.host.to_owned(), token.to_owned())).map(String::as_str)
    }

    /// Says that `before` is no longer the table: no lease begins any more from what only it has. Called once this one is where
    /// requests look. Whoever calls keeps `before` until nobody else has it, so that no request has to free it.
    /// Answers whether something is under way with tasks that are not heard any more: whoever waits for them is to be woken.
    pub(crate) fn supersede(&self, before: &Self) -> bool {
        for (id, route) in &before.routes {
            if self.routes.get(id).is_none_or(|stays| !Arc::ptr_eq(stays, route)) {
                route.superseded.store(true, SeqCst);
                route.leave(self.routes.get(id));
                route.state.queue.look();
            }
        }
        for (spot, backend) in &before.backends {
            if self.backends.get(spot).is_none_or(|stays| !Arc::ptr_eq(stays, backend)) {
                backend.retire();
            }
        }
        !self.unheard.is_empty() && self.give_up()
    }

    /// Marks what has left the table and is not heard; whether anything is under way with it that was not marked before.
    fn give_up(&self) -> bool {
        let mut any = false;
        for state in self.states.values() {
            for member in state.members.lock().iter() {
                let backend = &member.backend;
                if backend.is_retired()
                    && self.unheard.contains(&backend.endpoint.task)
                    && !backend.unheard.swap(true, SeqCst)
                {
                    any |= backend.active() > 0;
                }
            }
        }
        any
    }

    /// A route, also one that no request finds because it is about connections.
    pub(crate) fn by_id(&self, id: &RouteId) -> Option<&Arc<Route>> {
        self.routes.get(id)
    }

    /// Each endpoint once; those of fallbacks and mirrors as well.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.values()
    }

    /// Where HTTP listens.
    pub(crate) fn ports(&self) -> BTreeMap<u16, Port> {
        self.ports.clone()
    }

    /// Routes that are not served as they say, and why.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What went through each route.
    pub(crate) fn stats(&self, now: Moment) -> BTreeMap<RouteId, RouteStats> {
        self.states.iter().map(|(id, state)| (id.clone(), state.stats(now))).collect()
    }

    /// Forgets clients that owe nothing.
    pub(crate) fn maintain(&self, now: Moment) {
        self.states.values().filter_map(|state| state.clients.get()).for_each(|clients| clients.forget(now));
    }

    /// Connections that are to be tried now.
    pub(crate) fn probes(&self, now: Moment) -> Vec<Probe> {
        let troubled = self.routes.values().filter(|route| route.state.open.load(Relaxed) > 0);
        let members = troubled.flat_map(|route| {
            (0..route.members.len())
                .filter(move |at| route.members[*at].breaker.wants_probe(now))
                .map(move |at| (route, at))
        });
        members.map(|(route, at)| Probe { route: Arc::clone(route), at }).collect()
    }
}

impl Hosts {
    fn find<'t, 'p>(&'t self, ask: &Ask<'_>, path: &'p [u8]) -> Option<Hit<'t, 'p>> {
        let exact = self.exact.get(ask.host).and_then(|paths| paths.find(ask, path));
        let below = || {
            let mut rest = if self.below.is_empty() { "" } else { ask.host };
            std::iter::from_fn(|| {
                rest = rest.split_once('.')?.1;
                Some(rest)
            })
            .find_map(|above| self.below.get(above)?.find(ask, path))
        };
        exact.or_else(below).or_else(|| self.any.find(ask, path))
    }
}

impl Paths {
    fn find<'t, 'p>(&'t self, ask: &Ask<'_>, path: &'p [u8]) -> Option<Hit<'t, 'p>> {
        if self.rules.is_empty() {
            return None;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        // Beyond the longest prefix there is nothing to look for.
        let mut prefix = &path[..slashes.map(|(at, _)| at).nth(self.deepest).unwrap_or(path.len())];
        loop {
            let rules = self.rules.get(prefix).map_or(&[][..], Vec::as_slice);
            if let Some(rule) = rules.iter().find(|rule| rule.matches(ask)) {
                return Some(Hit { prefix, rule });
            }
            prefix = &prefix[..prefix.iter().rposition(|byte| *byte == b'/')?];
        }
    }
}

impl Rule {
    /// None if no request can be like that.
    fn new(route: &Route, target: Target) -> Option<Self> {
        let spec = &route.source.spec;
        let methods: Result<Vec<Method>, _> = spec.methods.iter().map(|method| method.parse()).collect();
        let mut methods = methods.ok()?;
        methods.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        methods.dedup();
        let headers = spec.headers.iter().map(|(name, value)| {
            let any = value == "*";
            let value = if any { None } else { Some(HeaderValue::try_from(value).ok()?) };
            Some((HeaderName::try_from(name).ok()?, value))
        });
        Some(Self { methods, headers: headers.collect::<Option<_>>()?, target })
    }

    fn matches(&self, ask: &Ask<'_>) -> bool {
        let has = |(name, value): &(HeaderName, Option<HeaderValue>)| match value {
            None => ask.headers.contains_key(name),
            Some(value) => ask.headers.get_all(name).iter().any(|it| it == value),
        };
        (self.methods.is_empty() || self.methods.contains(ask.method)) && self.headers.iter().all(has)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.methods == other.methods && self.headers == other.headers
    }

    /// How much it asks for, the most first: conditions, headers with a value, few methods.
    fn demands(&self) -> impl Ord + use<> {
        let conditions = self.headers.len() + usize::from(!self.methods.is_empty());
        let exact = self.headers.iter().filter(|(_, value)| value.is_some()).count();
        std::cmp::Reverse((conditions, exact, std::cmp::Reverse(self.methods.len())))
    }
}

/// Adds a rule in its order, or to the one that asks for the same. Refused with the route that has it, if that is another app's.
fn add_rule(rules: &mut Vec<Rule>, rule: Rule) -> Result<(), RouteId> {
    let Some(like) = rules.iter_mut().find(|other| other.is_like(&rule)) else {
        // After those that ask for as much: the order of routes.
        let at = rules.partition_point(|other| other.demands() <= rule.demands());
        rules.insert(at, rule);
        return Ok(());
    };
    // What serves wins over what only leads elsewhere, which is added last.
    if let (Target::Services(shares), Target::Services(more)) = (&mut like.target, rule.target) {
        let first = &shares.routes[0].1.id;
        if more.routes.iter().any(|(_, route)| route.id.service.app != first.service.app) {
            return Err(first.clone());
        }
        shares.routes.extend(more.routes);
        shares.weigh();
    }
    Ok(())
}

impl Shares {
    /// Those without a task get nothing while others have some.
    fn weigh(&mut self) {
        let weight = |route: &Route| u64::from(route.source.spec.weight.unwrap_or(100));
        let anybody = self.routes.iter().any(|(_, route)| !route.sets.is_empty() && weight(route) > 0);
        for (share, route) in &mut self.routes {
            *share = if anybody && route.sets.is_empty() { 0 } else { weight(route) };
        }
        self.total = self.routes.iter().map(|(weight, _)| weight).sum();
    }

    fn choose(&self, ask: &Ask<'_>) -> Option<&Arc<Route>> {
        if let [(weight, only)] = &self.routes[..] {
            return (*weight > 0).then_some(only);
        }
        let own = self.routes.iter().find(|(weight, route)| *weight > 0 && route.wish(ask).is_some());
        if let Some((_, route)) = own {
            return Some(route);
        }
        let turn = self.routes[0].1.state.services_turn.fetch_add(1, Relaxed);
        let weights = self.routes.iter().map(|(weight, _)| *weight);
        let chosen = balance::portion(weights, balance::position(turn, self.total))?;
        self.routes.get(chosen).map(|(_, route)| route)
    }
}

// --- endpoints ---

/// One task at one address, in however many routes and tables.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    pub(crate) label: EndpointLabel,
    pub(crate) pools: Pools,
    keeps_client: AtomicBool,
    active: AtomicU64,
    retired: AtomicBool,
    unheard: AtomicBool,
    gone: AtomicBool,
    /// Who wants to know when nothing is under way any more, once it is retired.
    draining: OnceLock<Arc<Draining>>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("endpoint", &self.endpoint)
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

impl Backend {
    pub(crate) fn new(endpoint: Endpoint, workers: usize) -> Self {
        let (active, retired, unheard, gone, draining) = Default::default();
        let keeps_client = AtomicBool::new(endpoint.keeps_client);
        let (label, pools) = (EndpointLabel::of(&endpoint), Pools::new(workers));
        Self { endpoint, label, pools, keeps_client, active, retired, unheard, gone, draining }
    }

    /// It has left the table: closes its idle connections. For good; if it comes back, that is another one.
    pub(crate) fn retire(&self) {
        self.retired.store(true, SeqCst);
        self.pools.close();
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(SeqCst)
    }

    /// Whether its node does not answer: it has left the table for that, or since. For good.
    pub(crate) fn is_unheard(&self) -> bool {
        self.unheard.load(SeqCst)
    }

    /// Whether its task is gone with its node: nothing more comes of what is under way with it. For good.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    /// What is under way with it is to end. Whoever has something looks by itself, when it is woken.
    pub(crate) fn go(&self) {
        self.gone.store(true, SeqCst);
    }

    /// Requests and connections under way.
    pub(crate) fn active(&self) -> u64 {
        self.active.load(SeqCst)
    }

    /// With whether its answers come back also to a client's own address, as the newest table says. Not for clients with IPv6 addresses:
    /// it may listen on IPv4 alone, and here nobody would remember that.
    pub(crate) fn newest(&self) -> Endpoint {
        Endpoint { keeps_client: self.keeps_client.load(Relaxed), keeps_client6: None, ..self.endpoint }
    }

    pub(crate) fn begin(&self) {
        self.active.fetch_add(1, SeqCst);
    }

    pub(crate) fn end(&self) {
        if self.active.fetch_sub(1, SeqCst) == 1
            && let Some(draining) = self.draining.get()
        {
            draining.ended();
        }
    }

    /// Has this be told when nothing is under way with it any more. It is retired.
    pub(crate) fn leave(self: &Arc<Self>, draining: &Arc<Draining>) {
        let _ = self.draining.set(Arc::clone(draining));
        draining.leave(Arc::clone(self) as Arc<dyn InUse>);
    }
}

/// An endpoint as one of a route's.
struct Member {
    backend: Arc<Backend>,
    generation: Generation,
    /// The same in every gateway.
    identity: u64,
    breaker: Breaker,
    /// Requests of this route under way.
    active: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Those of its set; none where it stands in for others.
    counters: Option<Arc<SetCounters>>,
    /// It is no longer one of the route's. For good.
    gone: AtomicBool,
}

impl Member {
    fn new(backend: Arc<Backend>, generation: Generation, counters: Option<Arc<SetCounters>>) -> Self {
        let task = backend.endpoint.task;
        let identity = balance::stable(task.uuid().as_bytes());
        let (active, requests, failures, gone, breaker) = Default::default();
        Self { backend, generation, identity, breaker, active, requests, failures, counters, gone }
    }

    /// One more request, if it may have that many.
    fn begin(&self, most: Option<u64>) -> bool {
        let begun = match most {
            None => {
                self.active.fetch_add(1, SeqCst);
                true
            }
            Some(most) => {
                let more = |active: u64| (active < most).then_some(active + 1);
                self.active.fetch_update(SeqCst, SeqCst, more).is_ok()
            }
        };
        if begun {
            self.backend.begin();
        }
        begun
    }

    fn end(&self) {
        self.active.fetch_sub(1, SeqCst);
        self.backend.end();
    }

    fn stats(&self, now: Moment) -> EndpointStats {
        let endpoint = self.backend.endpoint;
        let (state, why) = if self.gone.load(SeqCst) {
            (EndpointState::Draining, "it has left the table, and what is under way goes on".to_owned())
        } else {
            self.breaker.state(now)
        };
        EndpointStats {
            endpoint: endpoint.address,
            task: endpoint.task,
            state,
            why,
            active: self.active.load(SeqCst),
            requests: self.requests.load(Relaxed),
            failures: self.failures.load(Relaxed),
        }
    }
}

// --- routes ---

/// What is known of a route, whatever its tables say.
#[derive(Default)]
struct RouteState {
    /// Every endpoint that it has, or had and still has something under way with.
    members: Mutex<Vec<Arc<Member>>>,
    sets: Mutex<BTreeMap<Generation, Arc<SetCounters>>>,
    /// Made when it is first needed.
    clients: OnceLock<Box<limit::Clients>>,
    queue: Arc<limit::Queue>,
    budget: limit::Budget,
    copies: Arc<mirror::Copies>,
    refused: Refused,
    retries: AtomicU64,
    fallbacks: AtomicU64,
    services_turn: AtomicU64,
    sets_turn: AtomicU64,
    turn: AtomicU64,
    /// Endpoints whose breaker is open.
    open: AtomicUsize,
    /// Held while it is decided whether a breaker opens: that depends on the others.
    breakers: Mutex<()>,
}

impl RouteState {
    fn is_busy(&self) -> bool {
        self.members.lock().iter().any(|member| member.active.load(SeqCst) > 0)
    }

    fn counters(&self, generation: Generation) -> Arc<SetCounters> {
        Arc::clone(self.sets.lock().entry(generation).or_default())
    }

    fn stats(&self, now: Moment) -> RouteStats {
        let members = self.members.lock();
        let mut active: BTreeMap<Generation, u64> = BTreeMap::new();
        for member in members.iter().filter(|member| member.counters.is_some()) {
            *active.entry(member.generation).or_default() += member.active.load(SeqCst);
        }
        let shown =
            members.iter().filter(|member| !member.gone.load(SeqCst) || member.active.load(SeqCst) > 0);
        let mut endpoints: Vec<EndpointStats> = shown.map(|member| member.stats(now)).collect();
        endpoints.sort_by_key(|endpoint| (endpoint.endpoint, endpoint.task));
        let sets = self.sets.lock();
        let sets = sets.iter().map(|(generation, counters)| {
            (*generation, counters.read(active.get(generation).copied().unwrap_or(0)))
        });
        RouteStats {
            sets: sets.collect(),
            endpoints,
            refused: self.refused.read(),
            queued: self.queue.len(),
            retries: self.retries.load(Relaxed),
            fallbacks: self.fallbacks.load(Relaxed),
        }
    }

    /// Forgets endpoints and generations that are over.
    fn forget(&self, serving: &BTreeSet<Generation>) {
        let mut members = self.members.lock();
        members.retain(|member| !member.gone.load(SeqCst) || member.active.load(SeqCst) > 0);
        let mut sets = self.sets.lock();
        let is_over = |generation: &Generation| {
            !serving.contains(generation) && !members.iter().any(|member| member.generation == *generation)
        };
        let over: Vec<Generation> = sets.keys().copied().filter(is_over).collect();
        for generation in over.iter().rev().skip(PAST_GENERATIONS) {
            sets.remove(generation);
        }
    }
}

/// A route, as one table has it.
pub(crate) struct Route {
    pub(crate) id: RouteId,
    pub(crate) label: RouteLabel,
    pub(crate) timeouts: Timeouts,
    /// Tasks are asked in HTTP/2 without TLS.
    pub(crate) h2c: bool,
    /// Tasks are told of the client by the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    source: Arc<ServiceRoute>,
    state: Arc<RouteState>,
    /// Of sets that get requests, set by set.
    members: Vec<Arc<Member>>,
    sets: Vec<Set>,
    total: u64,
    policy: Policy,
    stand_in: Option<StandIn>,
    stand_ins: Vec<Arc<Member>>,
    stand_in_policy: Policy,
    clients: access::Clients,
    passwords: Option<access::Passwords>,
    rate: Option<Rate>,
    mirror: Option<mirror::Mirror>,
    marks: Option<Marks>,
    problems: Vec<String>,
    superseded: AtomicBool,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("id", &self.id)
            .field("endpoints", &self.members.len())
            .finish_non_exhaustive()
    }
}

/// The endpoints of one generation, of those of its route.
struct Set {
    weight: u64,
    members: Range<usize>,
    mark: GenerationMark,
}

/// Endpoints by what cookies call them.
struct Marks {
    members: Vec<TaskMark>,
    tasks: HashMap<TaskMark, usize>,
}

impl Marks {
    fn new(members: &[Arc<Member>]) -> Self {
        let marks = members.iter().map(|member| sticky::task_mark(&member.backend.endpoint.task));
        let members: Vec<TaskMark> = marks.collect();
        let tasks = members.iter().enumerate().map(|(at, mark)| (*mark, at)).collect();
        Self { members, tasks }
    }
}

/// Where a client wants to go.
struct Wanted {
    wish: Wish,
    /// Its task, if it is still there.
    own: Option<usize>,
}

impl Route {
    fn compile(
        service: &ServiceRoute,
        state: Arc<RouteState>,
        verified: &Arc<access::Verified>,
        backend: &mut impl FnMut(&Endpoint) -> Arc<Backend>,
    ) -> Self {
        let spec = &service.spec;
        let mut known: HashMap<(Spot, bool), Arc<Member>> = HashMap::new();
        for member in state.members.lock().iter().filter(|member| !member.gone.load(SeqCst)) {
            known.insert((spot(&member.backend.endpoint), member.counters.is_some()), Arc::clone(member));
        }
        let mut new = Vec::new();
        let mut member = |endpoint: &Endpoint, generation, counters: Option<&Arc<SetCounters>>| {
            let backend = backend(endpoint);
            let kept = known.get(&(spot(endpoint), counters.is_some()));
            let kept = kept.filter(|it| Arc::ptr_eq(&it.backend, &backend) && it.generation == generation);
            let made = || {
                let made = Arc::new(Member::new(Arc::clone(&backend), generation, counters.cloned()));
                new.push(Arc::clone(&made));
                made
            };
            kept.map_or_else(made, Arc::clone)
        };
        let (mut members, mut sets) = (Vec::new(), Vec::new());
        let mut serving = BTreeSet::new();
        for set in &service.sets {
            serving.insert(set.generation);
            let counters = state.counters(set.generation);
            let first = members.len();
            let made: Vec<_> =
                set.endpoints.iter().map(|it| member(it, set.generation, Some(&counters))).collect();
            if set.weight > 0 && !made.is_empty() {
                members.extend(made);
                let mark = sticky::generation_mark(&service.id.service, set.generation);
                sets.push(Set { weight: u64::from(set.weight), members: first..members.len(), mark });
            }
        }
        let stand_ins: Vec<_> =
            service.fallback.iter().map(|it| member(it, Generation::default(), None)).collect();
        state.members.lock().extend(new);
        state.forget(&serving);
        let mirror = spec.mirror.as_ref().map(|mirror| mirror::Mirror {
            percent: mirror.percent,
            backends: service.mirror.iter().map(&mut *backend).collect(),
        });
        let stand_in = spec.fallback.as_ref().map(StandIn::new);
        let stands_in = match &stand_in {
            None => false,
            Some(StandIn::Answer(..)) => true,
            Some(StandIn::Service) => !stand_ins.is_empty(),
        };
        let passwords = spec.basic_auth.as_ref();
        let passwords =
            passwords.map(|basic| access::Passwords::new(basic, &service.users, Arc::clone(verified)));
        let (passwords, problems) = passwords.unzip();
        let seconds = Duration::from_secs;
        let or = |given: Option<wharf_model::Millis>, default| {
            given.map_or(default, wharf_model::Millis::duration)
        };
        let marks = spec.sticky.as_ref().map(|_| Marks::new(&members));
        Self {
            id: service.id.clone(),
            label: RouteLabel::of(&service.id),
            timeouts: Timeouts {
                connect: or(spec.timeouts.connect, seconds(5)),
                request: or(spec.timeouts.request, seconds(60)),
                idle: or(spec.timeouts.idle, seconds(300)),
            },
            h2c: spec.protocol == RouteProtocol::H2c,
            proxy_protocol: matches!(spec.proxy_protocol, ProxyProtocol::Out | ProxyProtocol::Both),
            total: sets.iter().map(|set: &Set| set.weight).sum(),
            policy: Policy::new(spec.breaker.as_ref(), members.len(), stands_in),
            stand_in_policy: Policy::new(None, stand_ins.len(), false),
            clients: access::Clients::new(&spec.allow, &spec.deny),
            rate: spec.rate_limit.as_ref().map(Rate::new),
            source: Arc::new(service.clone()),
            problems: problems.unwrap_or_default(),
            superseded: AtomicBool::new(false),
            state,
            members,
            sets,
            stand_in: stand_in.filter(|_| stands_in),
            stand_ins,
            passwords,
            mirror,
            marks,
        }
    }

    /// What the file says of it.
    pub(crate) fn spec(&self) -> &wharf_model::RouteSpec {
        &self.source.spec
    }

    /// Whether it is no longer in the table.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(SeqCst)
    }

    /// What is not in the successor is none of the route's any more.
    fn leave(&self, successor: Option<&Arc<Self>>) {
        let (mut stays, mut idle) = (HashSet::new(), HashSet::new());
        if let Some(route) = successor {
            stays.extend(route.members.iter().chain(&route.stand_ins).map(Arc::as_ptr));
            let sets = route.source.sets.iter().filter(|set| set.weight == 0);
            idle.extend(sets.flat_map(|set| &set.endpoints).map(spot));
        }
        for member in self.state.members.lock().iter() {
            let waits = member.counters.is_some() && idle.contains(&spot(&member.backend.endpoint));
            if !waits && !stays.contains(&Arc::as_ptr(member)) {
                member.gone.store(true, SeqCst);
            }
        }
    }

    // --- who may pass ---

    /// Whether this request may pass: its client's address, how often the client asks, and its password, in this order, so that passwords
    /// cannot be guessed faster than the rate.
    pub(crate) async fn admit(&self, ask: &Ask<'_>) -> Result<(), Refusal> {
        let admitted = self.admit_at_once(ask);
        let admitted = match (&self.passwords, admitted) {
            (Some(passwords), Ok(())) => passwords.admit(ask.headers, ask.host).await,
            (_, admitted) => admitted,
        };
        admitted.inspect_err(|refusal| self.refused(refusal))
    }

    /// The same, at once; nothing where a password is asked for.
    pub(crate) fn admit_without_password(&self, ask: &Ask<'_>) -> Option<Result<(), Refusal>> {
        let admitted = || self.admit_at_once(ask).inspect_err(|refusal| self.refused(refusal));
        self.passwords.is_none().then(admitted)
    }

    fn admit_at_once(&self, ask: &Ask<'_>) -> Result<(), Refusal> {
        self.clients.admit(ask.client)?;
        let (Some(rate), Some(limit)) = (self.rate, &self.source.spec.rate_limit) else { return Ok(()) };
        let clients = self.state.clients.get_or_init(Box::default);
        let asked = clients.ask(Key::of(ask, &limit.by), rate, ask.now);
        asked.map_err(|too_many| rate.refusal(too_many))
    }

    /// Counts a request that got no answer from a task.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.state.refused.count(refusal.reason);
    }

    // --- who answers ---

    /// How many tasks' endpoints it leads to.
    pub(crate) const fn endpoints(&self) -> usize {
        self.members.len()
    }

    /// Who is to answer, of those that were not `tried`.
    pub(crate) fn choose(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        tried: &[Arc<Backend>],
        place: Option<Place>,
    ) -> Choice {
        if self.is_superseded() {
            return Choice::Again(place);
        }
        let place = place.filter(|place| place.is_in(&self.state.queue));
        let is_next = place.as_ref().map_or(self.state.queue.len() == 0, Place::is_first);
        if self.most().is_some() && !is_next {
            return self.wait(place);
        }
        let wanted = self.wish(ask);
        let mut look = Look { route: self, ask, tried, full: Cell::new(false), left: Cell::new(false) };
        let chosen = look.own(wanted.as_ref()).or_else(|| look.any(wanted.as_ref(), Manner::Able));
        // What is only kept from requests gets them before nobody does, unless something stands in.
        let chosen = chosen.or_else(|| {
            let desperate = look.left.get() && !look.full.get() && self.stand_in.is_none();
            desperate.then(|| look.any(wanted.as_ref(), Manner::Desperate))?
        });
        match chosen {
            Some(taken) => {
                let at = taken.at;
                let Some(mut lease) = self.lease(taken) else { return Choice::Again(place) };
                if tried.is_empty() {
                    self.state.budget.earn(self.retries().1);
                }
                lease.cookie = self.cookie(ask, wanted.as_ref(), at);
                Choice::Lease(lease)
            }
            None if look.full.get() => self.wait(place),
            None if look.left.get() => {
                let text = "The service fails, and gets no requests for a while. Try again later.\n";
                Choice::Nobody { refusal: unavailable("breaker_open", text), hold: false }
            }
            None => {
                let text = "No task of the service can answer now. Try again later.\n";
                Choice::Nobody { refusal: unavailable("no_endpoint", text), hold: self.stand_in.is_none() }
            }
        }
    }

    /// A lease of what was counted; none if the route has left the table meanwhile.
    fn lease(self: &Arc<Self>, taken: Taken) -> Option<Lease> {
        let lease = Lease::new(self, taken.at, taken.trial, false);
        (!self.is_superseded()).then_some(lease)
    }

    fn wait(&self, place: Option<Place>) -> Choice {
        let joined = || self.state.queue.join(self.source.spec.concurrency.as_ref()?);
        match place.or_else(joined) {
            Some(place) => Choice::Wait(place),
            None => Choice::Nobody { refusal: limit::full(), hold: false },
        }
    }

    /// Requests that each task may have at once.
    fn most(&self) -> Option<u64> {
        self.source.spec.concurrency.as_ref().map(|limit| u64::from(limit.requests.max(1)))
    }

    /// What a request's cookie asks for, if that is anything of this route's.
    fn wish(&self, ask: &Ask<'_>) -> Option<Wanted> {
        let (marks, sticky) = (self.marks.as_ref()?, self.source.spec.sticky.as_ref()?);
        let wishes = || balance::cookies(ask.headers, &sticky.cookie).filter_map(Wish::read);
        let own = wishes().find_map(|wish| Some(Wanted { wish, own: Some(*marks.tasks.get(&wish.task)?) }));
        own.or_else(|| {
            let known = |wish: &Wish| self.sets.iter().any(|set| set.mark == wish.generation);
            wishes().find(known).map(|wish| Wanted { wish, own: None })
        })
    }

    /// The cookie for a client that was not sent to its own task, except if that is only busy.
    fn cookie(&self, ask: &Ask<'_>, wanted: Option<&Wanted>, at: usize) -> Option<HeaderValue> {
        let (marks, sticky) = (self.marks.as_ref()?, self.source.spec.sticky.as_ref()?);
        if let Some(own) = wanted.and_then(|wanted| wanted.own)
            && (own == at || !self.members[own].breaker.is_open())
        {
            return None;
        }
        let set = self.sets.iter().find(|set| set.members.contains(&at))?;
        let wish = Wish { task: marks.members[at], generation: set.mark };
        sticky::set_cookie(sticky, &self.source.spec, wish, ask.secure)
    }

    /// Attempts after the first, and the share of requests that may be repeated.
    fn retries(&self) -> (u8, u8) {
        self.source
            .spec
            .retries
            .as_ref()
            .map_or((1, 20), |retries| (retries.attempts, retries.budget_percent))
    }

    /// Whether a request may be repeated after so many attempts. It is counted, and paid from the budget.
    pub(crate) fn may_retry(&self, attempts: u8) -> bool {
        let (most, percent) = self.retries();
        let may = attempts <= most && percent > 0 && self.state.budget.pay();
        if may {
            self.state.retries.fetch_add(1, Relaxed);
        }
        may
    }

    /// Who gets a copy of this request.
    pub(crate) fn mirror(&self) -> Option<mirror::Copy> {
        self.mirror.as_ref()?.copy(&self.state.copies)
    }

    /// What stands in where a client would be told this. It is counted; and if nothing does, what the client is told.
    pub(crate) fn fallback(self: &Arc<Self>, _ask: &Ask<'_>, refusal: &Refusal) -> Option<Fallen> {
        let fallen =
            self.stand_in.as_ref().filter(|_| fallback::may_replace(refusal)).and_then(|it| self.fall(it));
        match fallen {
            Some(_) => drop(self.state.fallbacks.fetch_add(1, Relaxed)),
            None => self.refused(refusal),
        }
        fallen
    }

    fn fall(self: &Arc<Self>, stand_in: &StandIn) -> Option<Fallen> {
        if let StandIn::Answer(status, kind, body) = stand_in {
            return Some(Fallen::Answer(*status, kind.clone(), body.clone()));
        }
        let (count, turn) = (self.stand_ins.len(), balance::own_turn());
        let load = |at: usize| {
            let backend = &self.stand_ins[at].backend;
            (!backend.is_retired()).then(|| backend.active())
        };
        let well = |at: usize| load(at).filter(|_| !self.stand_ins[at].breaker.is_open());
        let at = balance::least(count, turn, well).or_else(|| balance::least(count, turn, load))?;
        self.stand_ins[at].begin(None);
        let lease = Lease::new(self, at, false, true);
        // It may have left before it was counted.
        (!lease.backend().is_retired()).then_some(Fallen::Lease(lease))
    }

    // --- who is well ---

    fn group(&self, stand_in: bool) -> (&[Arc<Member>], &Policy) {
        if stand_in { (&self.stand_ins, &self.stand_in_policy) } else { (&self.members, &self.policy) }
    }

    fn speaks_against(&self, at: usize, stand_in: bool, symptom: Symptom, now: Moment) {
        let (members, policy) = self.group(stand_in);
        let _one_at_a_time = self.state.breakers.lock();
        let requests = members[at].requests.load(Relaxed);
        let others = || self.others(members, at, now);
        let change = members[at].breaker.failed(symptom, policy, requests, now, others);
        match change {
            Change::Nothing => return,
            Change::Opened | Change::Suspected => {}
            Change::AllBad => members.iter().for_each(|member| member.breaker.open_suspect(policy, now)),
        }
        let (state, why) = members[at].breaker.state(now);
        tracing::warn!(route = %self.id, endpoint = %members[at].backend.endpoint.address, state = state.as_str(), why, "endpoint fails");
        self.recount();
    }

    fn others(&self, members: &[Arc<Member>], at: usize, now: Moment) -> Others {
        let others =
            || members.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, member)| member);
        let count = members.len() - 1;
        let failing =
            others().map(|member| member.breaker.failing(member.requests.load(Relaxed), now)).sum::<u64>();
        Others {
            open: others().filter(|member| member.breaker.is_open()).count(),
            suspects: others().filter(|member| member.breaker.is_suspect()).count(),
            failing: failing / count.max(1) as u64,
            count,
        }
    }

    fn speaks_for(&self, at: usize, stand_in: bool, now: Moment) {
        let (members, _) = self.group(stand_in);
        if members[at].breaker.succeeded(now) {
            let _one_at_a_time = self.state.breakers.lock();
            tracing::info!(route = %self.id, endpoint = %members[at].backend.endpoint.address, "endpoint is well again");
            self.recount();
            self.state.queue.look();
        }
    }

    /// Whoever calls sees to it that nobody else does at the same time.
    fn recount(&self) {
        let members = self.state.members.lock();
        let open =
            members.iter().filter(|member| !member.gone.load(SeqCst) && member.breaker.is_open()).count();
        self.state.open.store(open, Relaxed);
    }
}

fn unavailable(reason: &'static str, text: &'static str) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, text);
    refusal.headers = vec![(RETRY_AFTER, HeaderValue::from(1))];
    refusal
}

/// One search for an endpoint.
struct Look<'l> {
    route: &'l Arc<Route>,
    ask: &'l Ask<'l>,
    tried: &'l [Arc<Backend>],
    /// Somebody would be able, and has as many requests as it may.
    full: Cell<bool>,
    /// Somebody who was not tried is kept from requests by a breaker.
    left: Cell<bool>,
}

/// A member that was counted.
#[derive(Debug, Clone, Copy)]
struct Taken {
    at: usize,
    trial: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Those that may.
    Able,
    /// Any.
    Desperate,
}

impl Look<'_> {
    /// The client's own task.
    fn own(&self, wanted: Option<&Wanted>) -> Option<Taken> {
        let at = wanted?.own?;
        let member = &self.route.members[at];
        if self.is_tried(member) {
            return None;
        }
        match member.breaker.phase(self.ask.now) {
            Phase::Closed => self.take(at, false),
            Phase::Open => None,
            Phase::Due { late } => self.take_on_trial(at, late),
        }
    }

    /// Anybody, in the sets' order of this request.
    fn any(&mut self, wanted: Option<&Wanted>, manner: Manner) -> Option<Taken> {
        // Of these none has room; whoever else has, is taken.
        self.full.set(false);
        let sets = &self.route.sets;
        let first = self.first_set(wanted)?;
        let order = std::iter::once(first).chain((0..sets.len()).filter(|set| *set != first));
        order.map(|set| &sets[set]).find_map(|set| self.trial_in(set).or_else(|| self.one_of(set, manner)))
    }

    fn first_set(&self, wanted: Option<&Wanted>) -> Option<usize> {
        let sets = &self.route.sets;
        if sets.len() < 2 {
            return (!sets.is_empty()).then_some(0);
        }
        let same = wanted.and_then(|wanted| sets.iter().position(|set| set.mark == wanted.wish.generation));
        same.or_else(|| {
            let turn = self.route.state.sets_turn.fetch_add(1, Relaxed);
            balance::portion(sets.iter().map(|set| set.weight), balance::position(turn, self.route.total))
        })
    }

    /// One of which it is to be found out whether it is well again, by a request that another can answer if it is not.
    fn trial_in(&self, set: &Set) -> Option<Taken> {
        if self.route.state.open.load(Relaxed) == 0 || !self.tried.is_empty() {
            return None;
        }
        set.members.clone().find_map(|at| match self.route.members[at].breaker.phase(self.ask.now) {
            Phase::Due { late } => self.take_on_trial(at, late),
            Phase::Closed | Phase::Open => None,
        })
    }

    fn take_on_trial(&self, at: usize, late: bool) -> Option<Taken> {
        let breaker = &self.route.members[at].breaker;
        if !(late || self.ask.method.is_idempotent()) || !breaker.try_again() {
            return None;
        }
        let taken = self.take(at, true);
        if taken.is_none() {
            breaker.tried();
        }
        taken
    }

    fn one_of(&self, set: &Set, manner: Manner) -> Option<Taken> {
        let members = &self.route.members[set.members.clone()];
        let most = self.route.most();
        let load = |at: usize| {
            let member = &members[at];
            if self.is_tried(member) {
                return None;
            }
            if manner == Manner::Able && member.breaker.phase(self.ask.now) != Phase::Closed {
                self.left.set(true);
                return None;
            }
            if most.is_some_and(|most| member.active.load(Relaxed) >= most) {
                self.full.set(true);
                return None;
            }
            Some(member.backend.active.load(Relaxed))
        };
        // Again if somebody else was faster.
        for _ in 0..4 {
            let chosen = match &self.route.source.spec.balance {
                Balance::LeastOutstanding => balance::least(members.len(), balance::own_turn(), load),
                Balance::RoundRobin => {
                    balance::next(members.len(), self.route.state.turn.fetch_add(1, Relaxed), load)
                }
                Balance::Hash(by) => {
                    let key = Key::of(self.ask, by).stable();
                    balance::hashed(members.len(), key, |at| members[at].identity, load)
                }
            };
            if let Some(taken) = self.take(set.members.start + chosen?, false) {
                return Some(taken);
            }
        }
        None
    }

    fn take(&self, at: usize, trial: bool) -> Option<Taken> {
        if self.route.members[at].begin(self.route.most()) {
            Some(Taken { at, trial })
        } else {
            self.full.set(true);
            None
        }
    }

    fn is_tried(&self, member: &Member) -> bool {
        self.tried.iter().any(|backend| Arc::ptr_eq(backend, &member.backend))
    }
}

// --- leases ---

/// The right to ask an endpoint one thing, until it is dropped.
pub(crate) struct Lease {
    route: Arc<Route>,
    at: usize,
    stand_in: bool,
    trial: bool,
    /// Whether it went well, once that is known.
    went_well: Option<bool>,
    cookie: Option<HeaderValue>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("route", &self.route.id)
            .field("backend", self.backend())
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// Of a member that was counted.
    fn new(route: &Arc<Route>, at: usize, trial: bool, stand_in: bool) -> Self {
        Self { route: Arc::clone(route), at, stand_in, trial, went_well: None, cookie: None }
    }

    fn member(&self) -> &Member {
        if self.stand_in { &self.route.stand_ins[self.at] } else { &self.route.members[self.at] }
    }

    /// Whom to ask.
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.member().backend
    }

    pub(crate) fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// For the answer, if the client is to come back to this task.
    pub(crate) fn set_cookie(&self) -> Option<HeaderValue> {
        self.cookie.clone()
    }

    /// The head of an answer is there, so long after the request was.
    pub(crate) fn answered(&mut self, status: StatusCode, took: Duration, now: Moment) {
        if let Some(counters) = &self.member().counters {
            counters.answered(took);
        }
        let symptom = Symptom::of_status(status);
        self.went(symptom.is_none());
        match symptom {
            Some(symptom) if symptom.counts() => {
                self.route.speaks_against(self.at, self.stand_in, symptom, now);
            }
            _ => self.route.speaks_for(self.at, self.stand_in, now),
        }
        self.tried();
    }

    /// It did not work.
    pub(crate) fn failed(&mut self, failure: Failure, now: Moment) {
        let symptom = Symptom::Failed(failure);
        self.went(!symptom.counts());
        if symptom.counts() {
            self.route.speaks_against(self.at, self.stand_in, symptom, now);
        }
        self.tried();
    }

    /// Bytes of bodies, from and to the client.
    pub(crate) fn passed(&self, received: u64, sent: u64) {
        if let Some(counters) = &self.member().counters {
            counters.passed(received, sent);
        }
    }

    fn went(&mut self, well: bool) {
        let member = self.member();
        if self.went_well.is_none() {
            member.requests.fetch_add(1, Relaxed);
        }
        if !well && self.went_well != Some(false) {
            member.failures.fetch_add(1, Relaxed);
        }
        self.went_well = Some(well && self.went_well != Some(false));
    }

    fn tried(&mut self) {
        if std::mem::take(&mut self.trial) {
            self.member().breaker.tried();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tried();
        let member = self.member();
        if let (Some(counters), Some(went_well)) = (&member.counters, self.went_well) {
            counters.finished(!went_well);
        }
        member.end();
        self.route.state.queue.look();
    }
}

/// A connection that is to be tried.
pub(crate) struct Probe {
    route: Arc<Route>,
    at: usize,
}

impl Probe {
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.route.members[self.at].backend.endpoint.address
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.route.timeouts.connect
    }

    /// Whether it was taken.
    pub(crate) fn done(self, taken: bool, now: Moment) {
        self.route.members[self.at].breaker.probed(taken, &self.route.policy, now);
    }
}

#[cfg(test)]
mod tests;
