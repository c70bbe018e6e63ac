//! What the ports of services' routes do with a connection, worked out from a table.
//!
//! - One port may have requests and connections, with TLS ended here or by the task: the server's name that a client says first decides,
//!   exact names before wildcards, longer wildcards before shorter ones.
//! - Of two routes that cannot both have a name or a port, the first in the table has it; the other is a problem in words.
//! - Where one route of a port expects the PROXY protocol, all of the port do: it comes before anything that could tell them apart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use wharf_model::{AcmeChallenge, ProxyProtocol, RouteId, RouteProtocol, RouteTable, RouteTls, ServiceRoute};

/// Where certificate authorities ask over HTTP.
const HTTP: u16 = 80;
/// Where they ask in handshakes of TLS.
const HTTPS: u16 = 443;
/// The share of a route that does not say it.
const WHOLE: u8 = 100;

/// The ports of services' routes.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    pub(crate) tcp: BTreeMap<u16, Port>,
    /// Which routes take a port's datagrams.
    pub(crate) udp: BTreeMap<u16, Arc<Shares>>,
    /// Hosts for which TLS is ended here.
    pub(crate) ended: BTreeSet<String>,
    pub(crate) problems: Vec<String>,
}

/// What a port does with a connection.
#[derive(Debug, Default)]
pub(crate) struct Port {
    /// Another proxy says first for whom it is.
    pub(crate) proxy_protocol: bool,
    /// What is done with one without TLS.
    pub(crate) plain: Plain,
    /// What is done with one of TLS.
    pub(crate) names: Names,
    /// Certificate authorities ask here in handshakes, whatever else there is.
    pub(crate) challenges: bool,
}

impl Port {
    /// Whether clients may begin with TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.challenges || !self.names.is_empty()
    }
}

/// What is done with a connection without TLS.
#[derive(Debug, Clone, Default)]
pub(crate) enum Plain {
    /// Nothing is spoken without TLS here.
    #[default]
    Nothing,
    /// It has requests; whether any of them is for somebody, they say themselves.
    Requests,
    /// It is passed to a task of one of these.
    Connection(Arc<Shares>),
}

/// What is done with a connection of TLS, by the server's name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: HashMap<String, Ending>,
    /// By what follows the `*`.
    wildcard: HashMap<String, Ending>,
    any: Option<Ending>,
    /// Some name's requests are understood here.
    requests: bool,
}

/// Who ends TLS, and what is in it.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// The gateway does, and understands the requests.
    Requests,
    /// The gateway does, and passes the bytes to a task of one of these.
    Connection(Arc<Shares>),
    /// A task of one of these does.
    Task(Arc<Shares>),
}

/// Routes of several services for the same connections, and their shares.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    routes: Vec<(RouteId, u32)>,
    turn: AtomicU32,
}

impl Shares {
    fn new(route: &ServiceRoute) -> Arc<Self> {
        let mut shares = Self::default();
        shares.add(route);
        Arc::new(shares)
    }

    fn add(&mut self, route: &ServiceRoute) {
        self.routes.push((route.id.clone(), u32::from(route.spec.weight.unwrap_or(WHOLE))));
    }

    /// Whose turn it is; nobody's if all shares are 0.
    pub(crate) fn next(&self) -> Option<&RouteId> {
        if let [(only, weight)] = &self.routes[..] {
            return (*weight > 0).then_some(only);
        }
        let total: u32 = self.routes.iter().map(|(_, weight)| weight).sum();
        // A step that has no divisor in common with most totals: shares alternate instead of coming in blocks.
        let turn = self.turn.fetch_add(7919, Ordering::Relaxed);
        let mut place = turn.checked_rem(total)?;
        for (route, weight) in &self.routes {
            if place < *weight {
                return Some(route);
            }
            place -= weight;
        }
        None
    }

    /// All of them.
    #[cfg(test)]
    fn routes(&self) -> impl Iterator<Item = &RouteId> {
        self.routes.iter().map(|(route, _)| route)
    }
}

impl Ending {
    /// Takes another route in, if what it wants done is the same.
    fn takes(&mut self, other: &Self, route: &ServiceRoute) -> bool {
        match (self, other) {
            (Self::Requests, Self::Requests) => true,
            (Self::Connection(shares), Self::Connection(_)) | (Self::Task(shares), Self::Task(_)) => {
                // Nobody else has it while the table is worked out.
                Arc::get_mut(shares).map(|shares| shares.add(route)).is_some()
            }
            (Self::Requests | Self::Connection(_) | Self::Task(_), _) => false,
        }
    }
}

impl Names {
    /// What is done with a connection to this name, in lower case.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<&Ending> {
        let Some(name) = name else {
            let requests = || self.requests.then_some(&Ending::Requests);
            return self.any.as_ref().or_else(requests);
        };
        let mut parents = name.match_indices('.').map(|(at, _)| &name[at..]);
        let wildcard = || parents.find_map(|parent| self.wildcard.get(parent));
        self.exact.get(name).or_else(wildcard).or(self.any.as_ref())
    }

    /// Whether requests are understood of some name.
    pub(crate) const fn has_requests(&self) -> bool {
        self.requests
    }

    /// Whether nothing of TLS is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_none()
    }

    fn place(&mut self, host: &str) -> Option<&mut Ending> {
        match host.strip_prefix('*') {
            Some(parent) => self.wildcard.get_mut(parent),
            None => self.exact.get_mut(host),
        }
    }

    /// Answers whether another has the name already and wants something else.
    fn add(&mut self, host: Option<&str>, ending: Ending, route: &ServiceRoute) -> bool {
        let taken = match host {
            Some(host) => self.place(host),
            None => self.any.as_mut(),
        };
        if let Some(taken) = taken {
            return taken.takes(&ending, route);
        }
        self.requests |= matches!(ending, Ending::Requests);
        match host.map(|host| (host, host.strip_prefix('*'))) {
            None => self.any = Some(ending),
            Some((_, Some(parent))) => drop(self.wildcard.insert(parent.to_owned(), ending)),
            Some((host, None)) => drop(self.exact.insert(host.to_owned(), ending)),
        }
        true
    }
}

impl Ports {
    /// Those of this table.
    pub(crate) fn of(table: &RouteTable) -> Self {
        let mut ports = Self::default();
        for route in &table.services {
            ports.add(route);
        }
        for challenge in &table.challenges {
            match challenge {
                AcmeChallenge::Http01 { .. } => {
                    ports.plain_requests(HTTP);
                }
                AcmeChallenge::TlsAlpn01 { .. } => ports.tcp.entry(HTTPS).or_default().challenges = true,
            }
        }
        ports
    }

    fn add(&mut self, route: &ServiceRoute) {
        let (spec, at) = (&route.spec, route.spec.gateway_port());
        let expects_proxy = matches!(spec.proxy_protocol, ProxyProtocol::In | ProxyProtocol::Both);
        let ending = match (spec.protocol, &spec.tls) {
            (RouteProtocol::Udp, _) => return self.add_datagrams(at, route),
            (RouteProtocol::Tcp, RouteTls::Off) => return self.add_connections(at, route, expects_proxy),
            (RouteProtocol::Http | RouteProtocol::H2c, RouteTls::Off) => {
                let fits = self.plain_requests(at);
                self.refuse_unless(fits, at, route);
                return self.expect_proxy(at, expects_proxy);
            }
            (_, RouteTls::Passthrough) => Ending::Task(Shares::new(route)),
            (RouteProtocol::Tcp, RouteTls::Auto | RouteTls::Certificate(_)) => {
                Ending::Connection(Shares::new(route))
            }
            (RouteProtocol::Http | RouteProtocol::H2c, RouteTls::Auto | RouteTls::Certificate(_)) => {
                Ending::Requests
            }
        };
        if !matches!(ending, Ending::Task(_)) {
            self.ended.extend(spec.hosts.iter().cloned());
        }
        if let Some(port) = spec.redirect_port() {
            let fits = self.plain_requests(port);
            self.refuse_unless(fits, port, route);
            self.expect_proxy(port, expects_proxy);
        }
        self.expect_proxy(at, expects_proxy);
        let names = &mut self.tcp.entry(at).or_default().names;
        let hosts: Vec<Option<&str>> = match spec.hosts.is_empty() {
            true => vec![None],
            false => spec.hosts.iter().map(|host| Some(host.as_str())).collect(),
        };
        let refused: Vec<_> =
            hosts.into_iter().filter(|host| !names.add(*host, ending.clone_for(route), route)).collect();
        for host in refused {
            let host = host.unwrap_or("any host");
            self.problems.push(format!(
                "port {at}: TLS of {host} is ended in different ways by two routes: not served for {}",
                route.id
            ));
        }
    }

    fn add_datagrams(&mut self, at: u16, route: &ServiceRoute) {
        match self.udp.get_mut(&at).and_then(Arc::get_mut) {
            Some(shares) => shares.add(route),
            None => drop(self.udp.insert(at, Shares::new(route))),
        }
    }

    fn add_connections(&mut self, at: u16, route: &ServiceRoute, expects_proxy: bool) {
        let port = self.tcp.entry(at).or_default();
        let fits = match &mut port.plain {
            plain @ Plain::Nothing => {
                *plain = Plain::Connection(Shares::new(route));
                true
            }
            Plain::Requests => false,
            Plain::Connection(shares) => Arc::get_mut(shares).map(|shares| shares.add(route)).is_some(),
        };
        self.refuse_unless(fits, at, route);
        self.expect_proxy(at, expects_proxy);
    }

    /// Answers whether there may be any.
    fn plain_requests(&mut self, at: u16) -> bool {
        let plain = &mut self.tcp.entry(at).or_default().plain;
        match plain {
            Plain::Nothing => *plain = Plain::Requests,
            Plain::Requests => {}
            Plain::Connection(_) => return false,
        }
        true
    }

    fn refuse_unless(&mut self, fits: bool, at: u16, route: &ServiceRoute) {
        if !fits {
            self.problems.push(format!(
                "port {at}: connections and requests cannot be told apart without TLS: not served for {}",
                route.id
            ));
        }
    }

    fn expect_proxy(&mut self, at: u16, expected: bool) {
        self.tcp.entry(at).or_default().proxy_protocol |= expected;
    }
}

impl Ending {
    /// The same for another name: shares are each name's own.
    fn clone_for(&self, route: &ServiceRoute) -> Self {
        match self {
            Self::Requests => Self::Requests,
            Self::Connection(_) => Self::Connection(Shares::new(route)),
            Self::Task(_) => Self::Task(Shares::new(route)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use wharf_model::{
        AppKey, EndpointSet, Generation, Revision, RouteSpec, ServiceKey, ShownCertificate, Users,
    };

    use super::*;

    /// A route of the service of this name.
    pub(crate) fn route(service: &str, spec: RouteSpec) -> ServiceRoute {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let service = ServiceKey { app, name: service.parse().unwrap() };
        ServiceRoute {
            id: RouteId { service, number: 0, preview: false },
            spec,
            sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints: Vec::new() }],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: Users::default(),
        }
    }
    /// What the file would say.
    pub(crate) fn spec(
        protocol: RouteProtocol,
        tls: RouteTls,
        hosts: &[&str],
        listen: Option<u16>,
    ) -> RouteSpec {
        let redirect = protocol.is_http() && matches!(tls, RouteTls::Auto | RouteTls::Certificate(_));
        RouteSpec {
            protocol,
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            path: None,
            methods: Vec::new(),
            headers: BTreeMap::new(),
            port: 80,
            listen,
            tls,
            redirect,
            weight: None,
            balance: Default::default(),
            sticky: None,
            timeouts: Default::default(),
            retries: None,
            rate_limit: None,
            concurrency: None,
            breaker: None,
            basic_auth: None,
            allow: Vec::new(),
            deny: Vec::new(),
            mirror: None,
            fallback: None,
            proxy_protocol: ProxyProtocol::Off,
        }
    }
    pub(crate) fn table(services: Vec<ServiceRoute>) -> RouteTable {
        RouteTable { version: Revision(1), services, ..RouteTable::default() }
    }

    use RouteProtocol::{Http, Tcp, Udp};

    /// Which service a connection of TLS is for, and who ends it.
    fn ending(ports: &Ports, port: u16, name: Option<&str>) -> String {
        let one = |shares: &Shares| {
            shares.routes().map(|route| route.service.name.to_string()).collect::<Vec<_>>().join("+")
        };
        match ports.tcp.get(&port).and_then(|port| port.names.find(name)) {
            None => "-".to_owned(),
            Some(Ending::Requests) => "requests".to_owned(),
            Some(Ending::Connection(shares)) => format!("here: {}", one(shares)),
            Some(Ending::Task(shares)) => format!("task: {}", one(shares)),
        }
    }

    #[test]
    fn the_name_that_a_client_says_decides_who_ends_tls() {
        let ports = Ports::of(&table(vec![
            route("web", spec(Http, RouteTls::Auto, &["shop.example", "*.shop.example"], None)),
            route("db", spec(Tcp, RouteTls::Auto, &["db.shop.example"], Some(443))),
            route("own", spec(Http, RouteTls::Passthrough, &["*.own.shop.example"], None)),
        ]));
        assert_eq!(ports.problems, [""; 0]);
        let of = |name| ending(&ports, 443, name);
        assert_eq!(of(Some("shop.example")), "requests");
        assert_eq!(of(Some("a.b.shop.example")), "requests");
        assert_eq!(of(Some("db.shop.example")), "here: db");
        assert_eq!(of(Some("x.own.shop.example")), "task: own", "the longer wildcard");
        assert_eq!(of(Some("own.shop.example")), "requests");
        assert_eq!(of(Some("elsewhere.org")), "-");
        assert_eq!(of(None), "requests", "who names nobody may have a request");
        assert!(ports.ended.iter().eq(["*.shop.example", "db.shop.example", "shop.example"]));
        assert!(matches!(ports.tcp[&80].plain, Plain::Requests), "for the redirect");
        assert!(matches!(ports.tcp[&443].plain, Plain::Nothing));
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_in_words_and_the_first_is_served() {
        let ports = Ports::of(&table(vec![
            route("a", spec(Tcp, RouteTls::Off, &[], Some(5432))),
            route("b", spec(Http, RouteTls::Off, &["b.example"], Some(5432))),
            route("c", spec(Http, RouteTls::Auto, &["c.example"], None)),
            route("d", spec(Tcp, RouteTls::Passthrough, &["c.example", "d.example"], Some(443))),
        ]));
        assert_eq!(
            ports.problems,
            [
                "port 5432: connections and requests cannot be told apart without TLS: not served for prod/shop/b#1",
                "port 443: TLS of c.example is ended in different ways by two routes: not served for prod/shop/d#1",
            ]
        );
        assert!(matches!(ports.tcp[&5432].plain, Plain::Connection(_)));
        assert_eq!(ending(&ports, 443, Some("c.example")), "requests");
        assert_eq!(ending(&ports, 443, Some("d.example")), "task: d");
    }

    #[test]
    fn a_challenge_opens_its_port() {
        let challenge = |challenge| RouteTable { challenges: vec![challenge], ..RouteTable::default() };
        let http = AcmeChallenge::Http01 { host: "a".into(), token: "t".into(), answer: "x".into() };
        assert!(Ports::of(&challenge(http)).tcp.contains_key(&80));
        let certificate = ShownCertificate { hosts: vec![], chain: String::new(), key: String::new() };
        let ports = Ports::of(&challenge(AcmeChallenge::TlsAlpn01 { certificate }));
        assert!(ports.tcp.keys().eq(&[443]) && ports.tcp[&443].is_secure());
    }

    #[test]
    fn one_route_that_expects_the_proxy_protocol_makes_its_ports_expect_it() {
        let mut expecting = spec(Http, RouteTls::Auto, &["a.example"], None);
        expecting.proxy_protocol = ProxyProtocol::In;
        let mut speaking = spec(Http, RouteTls::Off, &["b.example"], Some(8080));
        speaking.proxy_protocol = ProxyProtocol::Out;
        let ports = Ports::of(&table(vec![route("a", expecting), route("b", speaking)]));
        let expects: Vec<_> = ports.tcp.iter().map(|(at, port)| (*at, port.proxy_protocol)).collect();
        assert_eq!(expects, [(80, true), (443, true), (8080, false)]);
    }

    #[test]
    fn services_with_the_same_route_take_turns_by_their_shares() {
        let share = |service, weight| {
            let mut spec = spec(Tcp, RouteTls::Off, &[], Some(5432));
            spec.weight = Some(weight);
            route(service, spec)
        };
        let ports = Ports::of(&table(vec![share("a", 75), share("b", 25), share("c", 0)]));
        let Plain::Connection(shares) = &ports.tcp[&5432].plain else { panic!("connections") };
        let mut taken = BTreeMap::<String, u32>::new();
        for _ in 0..400 {
            *taken.entry(shares.next().unwrap().service.name.to_string()).or_default() += 1;
        }
        assert_eq!(taken, BTreeMap::from([("a".to_owned(), 300), ("b".to_owned(), 100)]));
        let nobody = Ports::of(&table(vec![share("c", 0)]));
        let Plain::Connection(shares) = &nobody.tcp[&5432].plain else { panic!("connections") };
        assert!(shares.next().is_none());
    }

    #[test]
    fn datagrams_have_ports_of_their_own() {
        let ports = Ports::of(&table(vec![route("dns", spec(Udp, RouteTls::Off, &[], Some(53)))]));
        assert!(ports.tcp.is_empty() && ports.udp.contains_key(&53));
    }
}
