//! What a plan says of routes: what changes, and what they cannot have because somebody else has it.
//!
//! Ports of gateways, hosts and paths are the cluster's: an app that has them keeps them. Routes of many apps share a port as long as the
//! gateway can tell from a connection's beginning whose it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use wharf_model::{
    AppKey, AppSpec, NetworkMode, NodeState, Protocol, ProxyProtocol, PublishMode, RouteProtocol, RouteSpec,
    RouteTls, ServiceKey, ServiceName, ServiceSpec,
};

use super::{Layer, files, layer, path, takes_alike, transport};
use crate::{Action, Operation, Plan, PlanRefusal, Thing, World, plan::differences, spec};

/// Why an app cannot have a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRefusal {
    /// Where it stands in the file: `services.web.x-wharf.routes[0]`.
    pub place: String,
    /// What it is: `https://shop.example.com/`.
    pub route: String,
    /// Why not.
    pub because: RouteConflict,
}
impl fmt::Display for RouteRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.place, self.route, self.because)
    }
}

/// Who has what a route would need, or what it lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RouteConflict {
    /// Another app takes these requests.
    Taken {
        /// Whose they are.
        by: ServiceKey,
    },
    /// A service publishes the port for itself.
    Published {
        /// The gateways' port.
        port: u16,
        /// Transport.
        protocol: Protocol,
        /// Who does.
        by: ServiceKey,
        /// Whether it is of the same app.
        own: bool,
    },
    /// A route that cannot be told from this one has the port.
    Port {
        /// The gateways' port.
        port: u16,
        /// Transport.
        protocol: Protocol,
        /// What it is there.
        there: String,
        /// Who has it.
        by: ServiceKey,
    },
    /// TLS is spoken on the port by one and not by the other.
    Tls {
        /// The gateways' port.
        port: u16,
        /// Whether this one speaks it.
        here: bool,
        /// What it is there.
        there: String,
        /// Who has it.
        by: ServiceKey,
    },
    /// One looks into what the other passes on as it is.
    Host {
        /// The host; `*` for any.
        host: String,
        /// The gateways' port.
        port: u16,
        /// What it is there.
        there: String,
        /// Who has it.
        by: ServiceKey,
    },
    /// Two certificates for one host.
    Certificate {
        /// The host.
        host: String,
        /// What it is there.
        there: String,
        /// Who has it.
        by: ServiceKey,
    },
    /// Clients speak the PROXY protocol to one and not to the other.
    ProxyProtocol {
        /// The gateways' port.
        port: u16,
        /// Whether they do here.
        here: bool,
        /// What it is there.
        there: String,
        /// Who has it.
        by: ServiceKey,
    },
    /// A program outside Wharf has the port on every gateway.
    Foreign {
        /// The gateways' port.
        port: u16,
        /// The gateways.
        nodes: Vec<String>,
    },
    /// Gateways do not reach the service.
    NoNetwork {
        /// Which.
        service: ServiceName,
        /// What keeps them from it: `network_mode: none`.
        mode: String,
    },
    /// The app has no such secret.
    NoSecret {
        /// Its name.
        secret: String,
    },
    /// The app has no such service.
    NoService {
        /// Its name.
        service: ServiceName,
    },
}
impl fmt::Display for RouteConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speaks = |does: bool| if does { "speaks TLS" } else { "does not speak TLS" };
        match self {
            Self::Taken { by } => write!(
                f,
                "belongs to {}; hint: choose another host or path, tell them apart by `methods` or `headers`, or take that app down",
                full(by)
            ),
            Self::Published { port, protocol, by, own: true } => write!(
                f,
                "needs the gateways' port {port}/{}, which service {} publishes for itself; \
                 hint: remove the port from its `ports`, since the route takes its place, or give the route another port with `listen`",
                protocol.as_str(),
                by.name
            ),
            Self::Published { port, protocol, by, own: false } => write!(
                f,
                "needs the gateways' port {port}/{}, which {} publishes for itself; \
                 hint: give the route another port with `listen`, or make that service a route as well",
                protocol.as_str(),
                full(by)
            ),
            Self::Port { port, protocol, there, by } => write!(
                f,
                "cannot have the gateways' port {port}/{}: {there} of {} has it, and nothing tells the two apart; \
                 hint: choose another port with `listen`",
                protocol.as_str(),
                full(by)
            ),
            Self::Tls { port, here, there, by } => write!(
                f,
                "{} on the gateways' port {port}, and {there} of {}, which {}, has it; hint: choose another port with `listen`",
                speaks(*here),
                full(by),
                speaks(!*here)
            ),
            Self::Host { host, port, there, by } => write!(
                f,
                "cannot share {} on port {port} with {there} of {}: what is passed on as it is, and what the gateway looks into, cannot have one host; \
                 hint: give both the same `protocol` and `tls`, or one of them another host or port (`listen`)",
                host_name(host),
                full(by)
            ),
            Self::Certificate { host, there, by } => write!(
                f,
                "shows another certificate for {} than {there} of {}; hint: give both the same `tls`",
                host_name(host),
                full(by)
            ),
            Self::ProxyProtocol { port, here, there, by } => {
                let (this, other) = if *here { ("is", "is not") } else { ("is not", "is") };
                write!(
                    f,
                    "{this} spoken to in the PROXY protocol on port {port}, and {there} of {} {other}; \
                     hint: write the same `proxy_protocol` for both, or choose another port with `listen`",
                    full(by)
                )
            }
            Self::Foreign { port, nodes } => write!(
                f,
                "needs the gateways' port {port}, which another program has on {}; \
                 hint: choose another port with `listen`, or stop that program (`ss -ltnp 'sport = :{port}'` there names it)",
                nodes.join(", ")
            ),
            Self::NoNetwork { service, mode } => write!(
                f,
                "leads nowhere: with `{mode}` gateways do not reach service {service}; hint: remove that, or the route"
            ),
            Self::NoSecret { secret } => write!(
                f,
                "names the secret {secret}, which the app does not have; hint: declare it at the top level: `secrets: {{{secret}: {{file: PATH}}}}`"
            ),
            Self::NoService { service } => write!(
                f,
                "names the service {service}, which the app does not have; hint: add it, or name another"
            ),
        }
    }
}

fn full(service: &ServiceKey) -> String {
    format!("service {} of app {} in {}", service.name, service.app.name, service.app.environment)
}
fn host_name(host: &str) -> String {
    if host == "*" { "requests for any host".to_owned() } else { format!("host {host}") }
}

/// What a service claims of the gateways: each published port and each route, as one text. Two sets with the same texts conflict with
/// the same.
pub fn claims(service: &ServiceSpec) -> BTreeSet<String> {
    let ports = service.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    let ports = ports.map(|port| {
        let (number, protocol) = (port.published.unwrap_or_default(), port.protocol.as_str());
        format!("port {number}/{protocol} {:?}", port.host_ip)
    });
    let routes = service.policy.routes.iter().map(|route| {
        let RouteSpec { headers, tls, redirect, proxy_protocol, .. } = route;
        format!("route {} {headers:?} {tls:?} {redirect} {proxy_protocol:?}", route.place())
    });
    ports.chain(routes).collect()
}

/// A route and whose it is.
struct Entrance<'a> {
    service: ServiceKey,
    number: usize,
    route: &'a RouteSpec,
}
impl<'a> Entrance<'a> {
    fn of(app: &AppKey, service: &ServiceName, spec: &'a ServiceSpec) -> impl Iterator<Item = Self> {
        let service = ServiceKey { app: app.clone(), name: service.clone() };
        let routes = spec.policy.routes.iter().enumerate();
        routes.map(move |(number, route)| Self { service: service.clone(), number, route })
    }
    fn refused(&self, because: RouteConflict) -> PlanRefusal {
        PlanRefusal::Route(Box::new(RouteRefusal { place: self.place(), route: self.route.place(), because }))
    }
    fn place(&self) -> String {
        files::place(&self.service.name, self.number)
    }
}

/// What is spoken on a port before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// HTTP without TLS.
    Http,
    /// A TLS handshake.
    Tls,
    /// Anything.
    Bytes,
}

/// One port that a route needs.
struct Listener {
    port: u16,
    protocol: Protocol,
    speaks: Speaks,
    /// Clients begin with a header of the PROXY protocol.
    proxied: bool,
    /// It is only there to send requests to the same address with TLS.
    redirects: bool,
}

fn listeners(route: &RouteSpec) -> Vec<Listener> {
    let proxied = match route.proxy_protocol {
        ProxyProtocol::In | ProxyProtocol::Both => true,
        ProxyProtocol::Off | ProxyProtocol::Out => false,
    };
    let protocol = transport(route);
    let speaks = match (route.protocol, &route.tls) {
        (RouteProtocol::Udp, _) | (RouteProtocol::Tcp, RouteTls::Off) => Speaks::Bytes,
        (_, RouteTls::Auto | RouteTls::Certificate(_) | RouteTls::Passthrough) => Speaks::Tls,
        (RouteProtocol::Http | RouteProtocol::H2c, RouteTls::Off) => Speaks::Http,
    };
    let own = Listener { port: route.gateway_port(), protocol, speaks, proxied, redirects: false };
    let redirect = route.redirect_port().map(|port| Listener {
        port,
        protocol: Protocol::Tcp,
        speaks: Speaks::Http,
        proxied,
        redirects: true,
    });
    std::iter::once(own).chain(redirect).collect()
}

/// The gateways' ports on which routes of a service listen.
pub(crate) fn gateway_ports(service: &ServiceSpec) -> impl Iterator<Item = (u16, Protocol)> {
    let all = service.policy.routes.iter().flat_map(listeners);
    all.map(|listener| (listener.port, listener.protocol))
}

/// Why a route cannot be there beside another.
fn conflict(here: &Entrance<'_>, there: &Entrance<'_>) -> Option<RouteConflict> {
    let (by, other) = (&there.service, || there.route.place());
    for mine in &listeners(here.route) {
        let same = |theirs: &&Listener| (mine.port, mine.protocol) == (theirs.port, theirs.protocol);
        for theirs in listeners(there.route).iter().filter(same) {
            let port = mine.port;
            let by = by.clone();
            match (mine.speaks, theirs.speaks) {
                (Speaks::Bytes, _) | (_, Speaks::Bytes) => {
                    return Some(RouteConflict::Port { port, protocol: mine.protocol, there: other(), by });
                }
                (Speaks::Http, Speaks::Tls) | (Speaks::Tls, Speaks::Http) => {
                    let here = mine.speaks == Speaks::Tls;
                    return Some(RouteConflict::Tls { port, here, there: other(), by });
                }
                (Speaks::Http, Speaks::Http) | (Speaks::Tls, Speaks::Tls) => {}
            }
            if mine.proxied != theirs.proxied {
                return Some(RouteConflict::ProxyProtocol { port, here: mine.proxied, there: other(), by });
            }
        }
    }
    let at = |route: &RouteSpec| (route.gateway_port(), transport(route));
    if at(here.route) != at(there.route) {
        return None;
    }
    let host = common_host(here.route, there.route)?;
    let foreign = here.service.app != there.service.app;
    let (mine, theirs) = (layer(here.route), layer(there.route));
    // Of what is not looked into there is one for a host.
    if mine != theirs || (mine == Layer::ServerName && !is_alike(here.route, there.route)) {
        let port = here.route.gateway_port();
        return Some(RouteConflict::Host { host, port, there: other(), by: by.clone() });
    }
    if foreign && is_ambiguous(here.route, there.route) {
        return Some(RouteConflict::Taken { by: by.clone() });
    }
    // Other apps have secrets of their own, and may have the same certificate.
    (!foreign && here.route.tls != there.route.tls).then(|| RouteConflict::Certificate {
        host,
        there: other(),
        by: by.clone(),
    })
}

/// A host for which both routes are; `*` if both are for any.
fn common_host(one: &RouteSpec, other: &RouteSpec) -> Option<String> {
    if one.hosts.is_empty() && other.hosts.is_empty() {
        return Some("*".to_owned());
    }
    one.hosts.iter().find(|host| other.hosts.contains(host)).cloned()
}
/// Whether two routes of one server name are served in one way.
fn is_alike(one: &RouteSpec, other: &RouteSpec) -> bool {
    one.protocol == other.protocol && one.tls == other.tls
}
/// Whether there are requests of a common host that neither route has more claim to than the other.
fn is_ambiguous(one: &RouteSpec, other: &RouteSpec) -> bool {
    let methods = one.methods.is_empty() && other.methods.is_empty()
        || one.methods.iter().any(|method| other.methods.contains(method));
    path(one) == path(other) && one.headers == other.headers && methods
}

/// Refuses what other services have, or what is not there; warns of what is allowed and unwise.
pub(crate) fn check(plan: &mut Plan, world: &World, wanted: &AppSpec) {
    let app = plan.app.clone();
    let others = world.published_services().filter(|record| record.key.app != app && !record.removed);
    let others: Vec<_> = others
        .filter_map(|record| world.revision_of(&record.key, record.generation))
        .map(|revision| (&revision.key, &revision.spec))
        .collect();
    let theirs: Vec<_> =
        others.iter().flat_map(|(key, spec)| Entrance::of(&key.app, &key.name, spec)).collect();
    let mine: Vec<_> =
        wanted.services.iter().flat_map(|(name, spec)| Entrance::of(&app, name, spec)).collect();
    let own_keys: Vec<_> =
        wanted.services.keys().map(|name| ServiceKey { app: app.clone(), name: name.clone() }).collect();
    let own = own_keys.iter().zip(wanted.services.values());
    let services: Vec<_> = others.iter().copied().chain(own).collect();
    for (at, entrance) in mine.iter().enumerate() {
        let lacking = lacks(entrance, wanted);
        let published = || published(entrance, &services);
        let beside = || {
            let rivals = theirs.iter().chain(&mine[..at]);
            rivals
                .filter(|other| other.service != entrance.service)
                .find_map(|other| conflict(entrance, other))
        };
        // One is enough for each: the second often follows from the first.
        let refused = lacking.or_else(published).or_else(beside);
        plan.refusals.extend(refused.map(|because| entrance.refused(because)));
        plan.warnings.extend(mine[..at].iter().filter_map(|other| shared(entrance, other)));
    }
    held_by_routes(plan, wanted, &theirs);
    foreign(plan, world, &mine);
    on_nodes(plan, &mine, &services);
}

/// What a route needs of its own app and does not find.
fn lacks(entrance: &Entrance<'_>, wanted: &AppSpec) -> Option<RouteConflict> {
    let named = std::iter::once(&entrance.service.name).chain(super::others(entrance.route));
    for service in named {
        let Some(spec) = wanted.services.get(service) else {
            return Some(RouteConflict::NoService { service: service.clone() });
        };
        if let Some(mode) = unreachable(wanted, spec) {
            return Some(RouteConflict::NoNetwork { service: service.clone(), mode });
        }
    }
    let mut secrets = files::uses(entrance.route).map(|(secret, _)| secret);
    let missing = secrets.find(|secret| !wanted.secrets.contains_key(*secret))?;
    Some(RouteConflict::NoSecret { secret: missing.to_owned() })
}

/// What keeps gateways from reaching a service, if anything does.
fn unreachable<'a>(wanted: &'a AppSpec, mut service: &'a ServiceSpec) -> Option<String> {
    for _ in &wanted.services {
        match &service.network_mode {
            NetworkMode::Service(other) => service = wanted.services.get(other)?,
            NetworkMode::None => return Some("network_mode: none".to_owned()),
            NetworkMode::Bridge => return Some("network_mode: bridge".to_owned()),
            NetworkMode::Host => return None,
            NetworkMode::Networks => {
                return service.networks.is_empty().then(|| "networks: {}".to_owned());
            }
        }
    }
    None
}

/// A service that publishes a port which the route needs.
fn published(entrance: &Entrance<'_>, services: &[(&ServiceKey, &ServiceSpec)]) -> Option<RouteConflict> {
    listeners(entrance.route).iter().find_map(|listener| {
        let publishes = |spec: &ServiceSpec| {
            let wanted = (Some(listener.port), listener.protocol);
            spec::ingress_ports(spec).any(|port| (port.published, port.protocol) == wanted)
        };
        let (by, _) = services.iter().find(|(_, spec)| publishes(spec))?;
        Some(RouteConflict::Published {
            port: listener.port,
            protocol: listener.protocol,
            own: by.app == entrance.service.app,
            by: (*by).clone(),
        })
    })
}

/// Two services of the app with one route and no word about their shares.
fn shared(entrance: &Entrance<'_>, other: &Entrance<'_>) -> Option<String> {
    let (here, there) = (entrance.route, other.route);
    let silent = here.weight.is_none() && there.weight.is_none();
    let same = entrance.service != other.service && takes_alike(here, there) && layer(here) != Layer::Port;
    let host = common_host(here, there).filter(|_| silent && same)?;
    Some(format!(
        "{} and {} both take {}: each gets half of the requests; `weight` says otherwise",
        other.place(),
        entrance.place(),
        here.url(&host)
    ))
}

/// Ports that the app would publish and routes of other apps listen on.
fn held_by_routes(plan: &mut Plan, wanted: &AppSpec, theirs: &[Entrance<'_>]) {
    let mut held = BTreeMap::new();
    for entrance in theirs {
        for listener in listeners(entrance.route) {
            held.entry((listener.port, listener.protocol)).or_insert(&entrance.service);
        }
    }
    for (service, spec) in &wanted.services {
        for port in spec::ingress_ports(spec) {
            let (number, protocol) = (port.published.unwrap_or_default(), port.protocol);
            if let Some(by) = held.get(&(number, protocol)) {
                let by = (*by).clone();
                plan.refusals.push(PlanRefusal::PortRouted {
                    port: number,
                    protocol,
                    service: service.clone(),
                    by,
                });
            }
        }
    }
}

/// Something outside Wharf may listen on a port that routes need: on some gateways that is worth a warning, on all it cannot work.
fn foreign(plan: &mut Plan, world: &World, mine: &[Entrance<'_>]) {
    let mut ports = BTreeMap::<u16, (&Entrance<'_>, bool)>::new();
    for entrance in mine {
        for listener in listeners(entrance.route) {
            let known = ports.entry(listener.port).or_insert((entrance, listener.redirects));
            // What listens there for itself says more than what only sends away.
            if known.1 && !listener.redirects {
                *known = (entrance, false);
            }
        }
    }
    let ready = |node: &&crate::Node| node.record.roles.gateway && node.state() == NodeState::Ready;
    let gateways: Vec<_> = world.nodes().filter(ready).collect();
    let own = world.services_of(&plan.app);
    let own: Vec<_> = own.filter_map(|record| world.revision_of(&record.key, record.generation)).collect();
    for (port, (entrance, redirects)) in ports {
        let is_taken =
            |node: &&&crate::Node| node.facts().is_some_and(|facts| facts.taken_ports.contains(&port));
        let taken: Vec<_> =
            gateways.iter().filter(is_taken).map(|node| node.record.name.to_string()).collect();
        // A task of this app may hold it by `mode: host` and give it up now.
        let held =
            own.iter().flat_map(|revision| &revision.spec.ports).any(|held| held.published == Some(port));
        if taken.is_empty() || held {
            continue;
        }
        let (place, nodes) = (entrance.place(), taken.join(", "));
        if redirects {
            plan.warnings.push(format!(
                "port {port}, on which {place} redirects requests without TLS, is taken by another program on {nodes}: nothing is redirected there"
            ));
        } else if taken.len() == gateways.len() {
            plan.refusals.push(entrance.refused(RouteConflict::Foreign { port, nodes: taken }));
        } else {
            plan.warnings.push(format!(
                "port {port}, which {place} needs, is taken by another program on {nodes}: the route answers on the other nodes only"
            ));
        }
    }
}

/// Ports of nodes that tasks have to themselves: a gateway beside such a task cannot listen there.
fn on_nodes(plan: &mut Plan, mine: &[Entrance<'_>], services: &[(&ServiceKey, &ServiceSpec)]) {
    let mut said = BTreeSet::new();
    for entrance in mine {
        for listener in listeners(entrance.route) {
            for (by, spec) in services {
                let mut host = spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
                let loopback = |ip: Option<IpAddr>| ip.is_some_and(|ip| ip.is_loopback());
                let holds = host.any(|port| {
                    (port.published, port.protocol) == (Some(listener.port), listener.protocol)
                        && !loopback(port.host_ip)
                });
                if holds && said.insert((listener.port, *by)) {
                    plan.warnings.push(format!(
                        "port {}, which {} needs, is one of the nodes of {} (`mode: host`): the gateway of such a node cannot have it as well",
                        listener.port,
                        entrance.place(),
                        full(by)
                    ));
                }
            }
        }
    }
}

/// A route as people see it in a plan.
type Line<'a> = (&'a ServiceName, &'a RouteSpec);

fn name((service, route): Line<'_>) -> String {
    format!("{} -> {service}:{}", route.place(), route.port)
}
fn is_same_place(one: &RouteSpec, other: &RouteSpec) -> bool {
    let hosts = |route: &RouteSpec| route.hosts.iter().cloned().collect::<BTreeSet<_>>();
    hosts(one) == hosts(other) && takes_alike(one, other)
}

/// The routes of services, in their order.
pub(crate) fn lines<'a>(
    services: impl Iterator<Item = (&'a ServiceName, &'a ServiceSpec)>,
) -> Vec<(&'a ServiceName, &'a RouteSpec)> {
    services.flat_map(|(name, spec)| spec.policy.routes.iter().map(move |route| (name, route))).collect()
}

/// What becomes of each route.
pub(crate) fn operations<'a>(old: Vec<Line<'a>>, new: Vec<Line<'a>>) -> Vec<Operation> {
    let mut gone: Vec<Option<Line<'_>>> = old.into_iter().map(Some).collect();
    let mut before: Vec<Option<Line<'_>>> = vec![None; new.len()];
    // What stays with its service first, then what moves to another.
    for stays in [true, false] {
        for (found, (service, route)) in before.iter_mut().zip(&new).filter(|(found, _)| found.is_none()) {
            let same = |old: &Option<Line<'_>>| {
                old.is_some_and(|(owner, old)| (owner == *service) == stays && is_same_place(old, route))
            };
            *found = gone.iter_mut().find(|old| same(old)).and_then(Option::take);
        }
    }
    let operation = |action, line, reasons| Operation {
        action,
        thing: Thing::Route,
        name: name(line),
        reasons,
        notes: Vec::new(),
    };
    let stay = before.into_iter().zip(new).map(|(before, now)| match before {
        None => operation(Action::Create, now, Vec::new()),
        Some(before) => {
            let reasons = changes(before, now);
            operation(if reasons.is_empty() { Action::Keep } else { Action::Change }, now, reasons)
        }
    });
    let gone = gone.into_iter().flatten().map(|line| operation(Action::Remove, line, Vec::new()));
    stay.chain(gone).collect()
}

fn changes((owner, before): Line<'_>, (service, now): Line<'_>) -> Vec<String> {
    let led = (owner, before.port) != (service, now.port);
    let led = led.then(|| format!("it led to {owner}:{}", before.port));
    // Said already, or another order of the same.
    let known = RouteSpec {
        port: now.port,
        hosts: now.hosts.clone(),
        methods: now.methods.clone(),
        path: now.path.clone(),
        listen: now.listen,
        ..before.clone()
    };
    led.into_iter().chain(differences(&known, now)).collect()
}

#[cfg(test)]
mod tests;
