//! `x-wharf.routes`: what the gateways pass to a service.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use wharf_model::{
    Balance, BasicAuth, Breaker, Concurrency, ExternalHost, Fallback, HashBy, Millis, Mirror, ProxyProtocol,
    RateLimit, Retries, RouteProtocol, RouteSpec, RouteTimeouts, RouteTls, ServiceSpec, Sticky, clients_at,
};

use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node, Value};
use crate::typed::{Typing, values};

/// A fixed answer is kept in memory by every gateway.
const LARGEST_ANSWER: usize = 64 << 10;

impl Typing<'_, '_> {
    pub(super) fn routes(&mut self, entry: &Entry, key: &Key<'_>, spec: &ServiceSpec) -> Vec<RouteSpec> {
        let mut routes: Vec<RouteSpec> = Vec::new();
        for (index, item, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let Some(route) = self.route(mapping, item.span, &key, spec) else { continue };
            if routes.iter().any(|other| takes_the_same(other, &route)) {
                self.report()
                    .error(Complaint::Conflict, item.span, &key, "two routes take the same requests")
                    .hint("remove one, or tell them apart by `host`, `path`, `methods` or `headers`");
                continue;
            }
            routes.push(route);
        }
        routes
    }

    fn route(
        &mut self,
        mapping: &Mapping,
        place: Span,
        key: &Key<'_>,
        spec: &ServiceSpec,
    ) -> Option<RouteSpec> {
        let text = |field: &str| mapping.get(field).and_then(Node::as_str);
        let protocol = match text("protocol") {
            Some("h2c") => RouteProtocol::H2c,
            Some("tcp") => RouteProtocol::Tcp,
            Some("udp") => RouteProtocol::Udp,
            _ => RouteProtocol::Http,
        };
        let port = self.route_port(mapping, place, key, spec);
        let mut route = RouteSpec {
            protocol,
            hosts: Vec::new(),
            path: None,
            methods: Vec::new(),
            headers: BTreeMap::new(),
            port: port.unwrap_or_default(),
            listen: None,
            tls: RouteTls::Off,
            redirect: false,
            weight: None,
            balance: Balance::default(),
            sticky: None,
            timeouts: RouteTimeouts::default(),
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
        };
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            if value.node.is_invalid() {
                continue;
            }
            match field {
                "protocol" | "port" | "redirect" | "hash_by" => {}
                "host" => route.hosts = self.hosts(value, &key),
                "path" => route.path = self.route_path(value, &key),
                "methods" => route.methods = self.methods(value, &key),
                "headers" => route.headers = self.headers(value, &key),
                "listen" => route.listen = values::whole(self.report(), value, &key, 1..=65_535),
                "tls" => route.tls = self.tls(value, &key),
                "weight" => route.weight = values::whole(self.report(), value, &key, 0..=100),
                "balance" => route.balance = self.balance(mapping, value, &key),
                "sticky" => route.sticky = self.sticky(value, &key),
                "timeouts" => route.timeouts = self.timeouts(value, &key),
                "retries" => route.retries = self.retries(value, &key),
                "rate_limit" => route.rate_limit = self.rate_limit(value, &key),
                "concurrency" => route.concurrency = self.concurrency(value, &key),
                "breaker" => route.breaker = Some(self.breaker(value, &key)),
                "basic_auth" => route.basic_auth = self.basic_auth(value, &key),
                "allow" => route.allow = self.clients(value, &key),
                "deny" => route.deny = self.clients(value, &key),
                "mirror" => route.mirror = self.mirror(value, &key, route.port),
                "fallback" => route.fallback = self.fallback(value, &key, route.port),
                "proxy_protocol" => {
                    route.proxy_protocol = match value.node.as_str() {
                        Some("in") => ProxyProtocol::In,
                        Some("out") => ProxyProtocol::Out,
                        Some("both") => ProxyProtocol::Both,
                        _ => ProxyProtocol::Off,
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
        if let Some(entry) = mapping.entry("hash_by")
            && text("balance") != Some("hash")
        {
            self.report()
                .error(
                    Complaint::Conflict,
                    entry.key,
                    &key.field("hash_by"),
                    "`hash_by` belongs to `balance: hash`",
                )
                .hint("add `balance: hash`, or remove `hash_by`");
        }
        let redirect = mapping.entry("redirect").and_then(|entry| Some((values::flag(entry)?, entry)));
        route.redirect = match (&route.tls, redirect) {
            (RouteTls::Off | RouteTls::Passthrough, Some((true, entry))) => {
                self.report()
                    .error(
                        Complaint::Conflict,
                        entry.key,
                        &key.field("redirect"),
                        "there is nothing to redirect to: the gateway does not end TLS on this route",
                    )
                    .hint("add `tls: auto`, or remove `redirect`");
                false
            }
            (RouteTls::Off | RouteTls::Passthrough, _) => false,
            (RouteTls::Auto | RouteTls::Certificate(_), given) => {
                protocol.is_http() && given.is_none_or(|(redirect, _)| redirect)
            }
        };
        self.check_protocol(mapping, place, key, &route);
        port.map(|_| route)
    }

    /// The container's port: the one given, or the only one the service exposes.
    fn route_port(
        &mut self,
        mapping: &Mapping,
        place: Span,
        key: &Key<'_>,
        spec: &ServiceSpec,
    ) -> Option<u16> {
        let published = spec.ports.iter().map(|port| port.target);
        // `expose` has texts such as `80` and `53/udp`.
        let number = |text: &String| text.split('/').next().and_then(|text| text.parse::<u16>().ok());
        let exposed: BTreeSet<u16> = published.chain(spec.expose.iter().filter_map(number)).collect();
        let port_key = key.field("port");
        let Some(entry) = mapping.entry("port") else {
            let only = exposed.iter().copied().next().filter(|_| exposed.len() == 1);
            if only.is_none() {
                let message = match exposed.len() {
                    0 => "the route needs `port`: the service says nothing about its ports".to_owned(),
                    more => format!("the route needs `port`: the service has {more} of them"),
                };
                self.report()
                    .error(Complaint::MissingKey, place, key, message)
                    .hint("write for example `port: 80`, the port in the container");
            }
            return only;
        };
        let port: u16 = values::whole(self.report(), entry, &port_key, 1..=65_535)?;
        if !exposed.is_empty() && !exposed.contains(&port) {
            let message = format!("the service does not say that it listens on port {port}");
            let known: Vec<String> = exposed.iter().map(ToString::to_string).collect();
            self.report()
                .warn(Complaint::Note, entry.place(), &port_key, message)
                .hint(format!("it has {}; if {port} is right, write `expose: [{port}]`", known.join(", ")));
        }
        Some(port)
    }

    /// What means something for some protocols only.
    fn check_protocol(&mut self, mapping: &Mapping, place: Span, key: &Key<'_>, route: &RouteSpec) {
        const OF_HTTP: [&str; 11] = [
            "path",
            "methods",
            "headers",
            "redirect",
            "sticky",
            "retries",
            "rate_limit",
            "basic_auth",
            "mirror",
            "fallback",
            "breaker",
        ];
        let passthrough = route.tls == RouteTls::Passthrough;
        let why = match route.protocol {
            RouteProtocol::Tcp => "a TCP route",
            RouteProtocol::Udp => "a UDP route",
            RouteProtocol::Http | RouteProtocol::H2c if passthrough => "a route whose TLS is passed through",
            RouteProtocol::Http | RouteProtocol::H2c => "",
        };
        if !why.is_empty() {
            for (field, value) in mapping.iter().filter(|(field, _)| OF_HTTP.contains(field)) {
                let message =
                    format!("`{field}` has no meaning for {why}: the gateway sees no requests there");
                self.report()
                    .error(Complaint::Conflict, value.key, &key.field(field), message)
                    .hint(format!("remove `{field}`, or write `protocol: http`"));
            }
        }
        if !route.protocol.is_http() {
            let written = mapping.entry("host").filter(|_| route.tls == RouteTls::Off);
            if let Some(entry) = written {
                let message = format!("{why} without TLS carries no host name");
                self.report()
                    .error(Complaint::Conflict, entry.key, &key.field("host"), message)
                    .hint("remove `host`, or add `tls`");
            }
            if !mapping.contains("listen") {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        place,
                        key,
                        format!("{why} needs `listen`, the gateways' port"),
                    )
                    .hint(format!("write for example `listen: {}`", route.port));
            }
        }
        let tls = mapping.entry("tls").map_or(place, Entry::place);
        let tls_key = key.field("tls");
        if route.protocol == RouteProtocol::Udp && route.tls != RouteTls::Off {
            self.report()
                .error(Complaint::Conflict, tls, &tls_key, "a UDP route has no TLS")
                .hint("remove `tls`");
        } else if matches!(route.tls, RouteTls::Auto) {
            let wildcard = route.hosts.iter().find(|host| host.starts_with('*'));
            if let Some(host) = wildcard {
                let message = format!("no certificate can be obtained for `{host}` by itself");
                self.report()
                    .error(Complaint::Conflict, tls, &tls_key, message)
                    .hint("name the hosts, or give a certificate: `tls: {certificate: SECRET}`");
            } else if !mapping.contains("host") {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        tls,
                        &tls_key,
                        "a certificate is obtained for host names, and the route has none",
                    )
                    .hint("add `host: app.example.com`");
            }
        }
    }

    fn hosts(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<String> {
        let mut hosts = Vec::new();
        let alone = std::slice::from_ref(&entry.node);
        let items = entry.node.as_sequence().unwrap_or(alone);
        for item in items {
            let Some(text) = item.as_str() else { continue };
            match host_name(text) {
                Ok(host) if hosts.contains(&host) => {}
                Ok(host) => hosts.push(host),
                Err(hint) => {
                    let message = format!("`{text}` is not a host name");
                    self.report().error(Complaint::InvalidValue, item.span, key, message).hint(hint);
                }
            }
        }
        hosts
    }

    fn route_path(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = entry.node.as_str()?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'*' | b'\\');
        let (problem, hint) = if !text.starts_with('/') {
            ("does not start with `/`", format!("write `/{text}`"))
        } else if !text.bytes().all(plain) {
            (
                "is more than a prefix of a path",
                "a path has no `?`, `#`, `*` or spaces; a prefix matches all below".to_owned(),
            )
        } else {
            return Some(text.to_owned()).filter(|path| path != "/");
        };
        let message = format!("the path `{text}` {problem}");
        self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
        None
    }

    fn methods(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<String> {
        let mut methods = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            if !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-')
            {
                methods.push(text.to_ascii_uppercase());
            } else {
                let message = format!("`{text}` is not a method of HTTP");
                self.report()
                    .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                    .hint("write for example `methods: [GET, HEAD]`");
            }
        }
        methods
    }

    fn headers(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, String> {
        let mut headers = BTreeMap::new();
        for (name, value) in values::entries(entry) {
            let Some(text) = value.node.scalar_text() else { continue };
            if is_token(name) {
                headers.insert(name.to_ascii_lowercase(), text);
            } else {
                let message = format!("`{name}` is not the name of a header");
                self.report()
                    .error(Complaint::InvalidValue, value.key, &key.field(name), message)
                    .hint("use letters, digits and `-`, such as `X-Version`");
            }
        }
        headers
    }

    fn tls(&mut self, entry: &Entry, key: &Key<'_>) -> RouteTls {
        match &entry.node.value {
            Value::Bool(true) => RouteTls::Auto,
            Value::String(text) => match text.as_str() {
                "auto" => RouteTls::Auto,
                "passthrough" => RouteTls::Passthrough,
                _ => RouteTls::Off,
            },
            Value::Mapping(mapping) => {
                let Some(entry) = mapping.entry("certificate") else { return RouteTls::Off };
                let secret = self.secret_named(entry, &key.field("certificate"));
                secret.map_or(RouteTls::Off, RouteTls::Certificate)
            }
            _ => RouteTls::Off,
        }
    }

    /// A secret of the app, which the release then carries.
    fn secret_named(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let name = entry.node.as_str()?;
        if !self.declared("secrets", name, entry.place(), key) {
            return None;
        }
        self.secrets.insert(name.to_owned());
        Some(name.to_owned())
    }

    fn balance(&mut self, route: &Mapping, entry: &Entry, key: &Key<'_>) -> Balance {
        match entry.node.as_str() {
            Some("round-robin") => Balance::RoundRobin,
            Some("hash") => {
                let by = route.entry("hash_by").and_then(|entry| self.hash_by(entry, key));
                Balance::Hash(by.unwrap_or_default())
            }
            _ => Balance::LeastOutstanding,
        }
    }

    /// `client`, `path`, `header:NAME` or `cookie:NAME`.
    fn hash_by(&mut self, entry: &Entry, key: &Key<'_>) -> Option<HashBy> {
        let text = entry.node.as_str()?;
        match text.split_once(':') {
            None if text == "client" => return Some(HashBy::Client),
            None if text == "path" => return Some(HashBy::Path),
            Some(("header", name)) if is_token(name) => {
                return Some(HashBy::Header(name.to_ascii_lowercase()));
            }
            Some(("cookie", name)) if is_token(name) => return Some(HashBy::Cookie(name.to_owned())),
            _ => {}
        }
        let message = format!("`{text}` tells no clients apart");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("write `client`, `path`, `header:NAME` or `cookie:NAME`");
        None
    }

    fn sticky(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Sticky> {
        let mut sticky = Sticky { cookie: "WHARFTASK".to_owned(), max_age: Millis::from_secs(8 * 3600) };
        if values::flag(entry) == Some(false) {
            return None;
        }
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "cookie" => {
                    let name = value.node.as_str().unwrap_or_default();
                    if is_token(name) {
                        sticky.cookie = name.to_owned();
                    } else {
                        let message = format!("`{name}` is not the name of a cookie");
                        self.report()
                            .error(Complaint::InvalidValue, value.place(), &key, message)
                            .hint("use letters, digits and `-`, such as `session`");
                    }
                }
                "max_age" => sticky.max_age = self.positive(value, &key).unwrap_or(sticky.max_age),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(sticky)
    }

    fn timeouts(&mut self, entry: &Entry, key: &Key<'_>) -> RouteTimeouts {
        let mut timeouts = RouteTimeouts::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "connect" => timeouts.connect = self.positive(value, &key),
                "request" => timeouts.request = self.positive(value, &key),
                "idle" => timeouts.idle = self.positive(value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        timeouts
    }

    fn retries(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Retries> {
        let mut retries = Retries { attempts: 1, budget_percent: 20 };
        let Some(mapping) = entry.node.as_mapping() else {
            retries.attempts = values::whole(self.report(), entry, key, 0..=10)?;
            return Some(retries);
        };
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            match field {
                "attempts" => {
                    let attempts = values::whole(self.report(), value, &key, 0..=10);
                    retries.attempts = attempts.unwrap_or(retries.attempts);
                }
                "budget_percent" => {
                    let budget = values::whole(self.report(), value, &key, 0..=100);
                    retries.budget_percent = budget.unwrap_or(retries.budget_percent);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        Some(retries)
    }

    fn rate_limit(&mut self, entry: &Entry, key: &Key<'_>) -> Option<RateLimit> {
        let mapping = entry.node.as_mapping()?;
        let most = 1..=i64::from(u32::MAX);
        let requests = mapping.entry("requests")?;
        let requests = values::whole(self.report(), requests, &key.field("requests"), most.clone())?;
        let mut limit =
            RateLimit { requests, per: Millis::from_secs(1), burst: requests, by: HashBy::Client };
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            match field {
                "requests" => {}
                "per" => limit.per = self.positive(value, &key).unwrap_or(limit.per),
                "burst" => {
                    let burst = values::whole(self.report(), value, &key, most.clone());
                    limit.burst = burst.unwrap_or(limit.burst);
                }
                "by" => limit.by = self.hash_by(value, &key).unwrap_or_default(),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(limit)
    }

    fn concurrency(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Concurrency> {
        let mapping = entry.node.as_mapping()?;
        let requests = mapping.entry("requests")?;
        let requests = values::whole(self.report(), requests, &key.field("requests"), 1..=1_000_000)?;
        let mut limit = Concurrency { requests, queue: 0, wait: Millis::from_secs(5) };
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            match field {
                "requests" => {}
                "queue" => {
                    let queue = values::whole(self.report(), value, &key, 0..=1_000_000);
                    limit.queue = queue.unwrap_or(limit.queue);
                }
                "wait" => limit.wait = self.positive(value, &key).unwrap_or(limit.wait),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(limit)
    }

    fn breaker(&mut self, entry: &Entry, key: &Key<'_>) -> Breaker {
        let mut breaker = Breaker { failures: 5, open: Millis::from_secs(10), most_percent: 50 };
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "failures" => {
                    let failures = values::whole(self.report(), value, &key, 1..=1000);
                    breaker.failures = failures.unwrap_or(breaker.failures);
                }
                "open" => breaker.open = self.positive(value, &key).unwrap_or(breaker.open),
                "most_percent" => {
                    let most = values::whole(self.report(), value, &key, 0..=100);
                    breaker.most_percent = most.unwrap_or(breaker.most_percent);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        breaker
    }

    fn basic_auth(&mut self, entry: &Entry, key: &Key<'_>) -> Option<BasicAuth> {
        let mapping = entry.node.as_mapping()?;
        let secret = self.secret_named(mapping.entry("secret")?, &key.field("secret"))?;
        let realm = mapping.entry("realm").and_then(values::text);
        Some(BasicAuth { secret, realm })
    }

    /// Networks and single addresses.
    fn clients(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<IpNet> {
        let mut clients = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            match clients_at(text) {
                Some(network) => clients.push(network.trunc()),
                None => {
                    let message = format!("`{text}` is neither an address nor a network");
                    self.report()
                        .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                        .hint("write for example `10.0.0.0/8` or `192.0.2.7`");
                }
            }
        }
        clients
    }

    fn mirror(&mut self, entry: &Entry, key: &Key<'_>, port: u16) -> Option<Mirror> {
        let mapping = entry.node.as_mapping()?;
        let service = mapping.entry("service")?;
        let name = service.node.as_str()?;
        let service = self.reference(name, service.place(), &key.field("service"), true)?;
        let mut whole = |field: &'static str, bounds| {
            values::whole::<u16>(self.report(), mapping.entry(field)?, &key.field(field), bounds)
        };
        let port = whole("port", 1..=65_535).unwrap_or(port);
        let percent = whole("percent", 1..=100).and_then(|percent| u8::try_from(percent).ok());
        Some(Mirror { service, port, percent: percent.unwrap_or(100) })
    }

    fn fallback(&mut self, entry: &Entry, key: &Key<'_>, port: u16) -> Option<Fallback> {
        let mapping = entry.node.as_mapping()?;
        let answers = ["status", "body", "content_type"];
        let answer = answers.iter().find_map(|field| Some((*field, mapping.entry(field)?)));
        match (mapping.entry("service"), answer) {
            (Some(_), Some((field, other))) => {
                let message = format!("`service` and `{field}` exclude each other");
                self.report()
                    .error(Complaint::Conflict, other.key, key, message)
                    .hint("answer by another service, or with a fixed answer");
                None
            }
            (Some(service), None) => {
                let name = service.node.as_str()?;
                let service = self.reference(name, service.place(), &key.field("service"), true)?;
                let given = mapping.entry("port");
                let given =
                    given.and_then(|e| values::whole(self.report(), e, &key.field("port"), 1..=65_535));
                Some(Fallback::Service { service, port: given.unwrap_or(port) })
            }
            (None, None) => {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        entry.key,
                        key,
                        "a fallback needs `service`, or `status` and `body`",
                    )
                    .hint("write for example `fallback: {status: 503, body: \"back soon\"}`");
                None
            }
            (None, Some(_)) => {
                let status = mapping.entry("status");
                let status =
                    status.and_then(|e| values::whole(self.report(), e, &key.field("status"), 200..=599));
                let body = mapping.entry("body").and_then(values::text).unwrap_or_default();
                if body.len() > LARGEST_ANSWER {
                    let message = format!("the answer has {} of at most {LARGEST_ANSWER} bytes", body.len());
                    self.report()
                        .error(Complaint::InvalidValue, entry.key, &key.field("body"), message)
                        .hint("answer by a service: `fallback: {service: NAME}`");
                    return None;
                }
                let content_type = mapping.entry("content_type").and_then(values::text);
                Some(Fallback::Answer {
                    status: status.unwrap_or(503),
                    body,
                    content_type: content_type.unwrap_or_else(|| "text/plain; charset=utf-8".to_owned()),
                })
            }
        }
    }
}

fn takes_the_same(one: &RouteSpec, other: &RouteSpec) -> bool {
    let hosts = one.hosts.is_empty() && other.hosts.is_empty()
        || one.hosts.iter().any(|host| other.hosts.contains(host));
    let http = one.protocol.is_http() == other.protocol.is_http()
        && (one.protocol.is_http() || one.protocol == other.protocol);
    http && hosts
        && (&one.path, &one.methods, &one.headers, one.listen)
            == (&other.path, &other.methods, &other.headers, other.listen)
}

/// A host in lower case, or what to write instead. `*.` may stand in front.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        return Err(format!("write the host alone: `{host}`"));
    }
    if let Some((host, path)) = text.split_once('/') {
        return Err(format!("write `host: {host}` and `path: /{path}`"));
    }
    let (wildcard, rest) = match text.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", text),
    };
    match rest.parse() {
        Ok(ExternalHost::Domain(domain)) if !domain.contains('_') => Ok(format!("{wildcard}{domain}")),
        Ok(ExternalHost::Address(_)) => Err("leave `host` out to take every host".to_owned()),
        Ok(ExternalHost::Domain(_)) | Err(_) => {
            let port = rest.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
            Err(match port {
                Some((host, port)) => format!("write `host: {wildcard}{host}` and `listen: {port}`"),
                None if rest.contains('*') => "`*.` may stand in front only: `*.example.com`".to_owned(),
                None => "write for example `app.example.com` or `*.example.com`".to_owned(),
            })
        }
    }
}

/// What names of headers and cookies are made of.
fn is_token(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(legal)
}
