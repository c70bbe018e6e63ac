use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::{
    HeaderMap,
    header::{AUTHORIZATION, COOKIE},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use wharf_model::{EndpointSet, RouteSpec, Users};

use super::*;

fn service(name: &str) -> wharf_model::ServiceKey {
    let (app, name) = name.split_once('/').unwrap_or(("shop", name));
    serde_json::from_value(json!({"app": {"environment": "prod", "name": app}, "name": name})).unwrap()
}

fn spec(mut settings: Value) -> RouteSpec {
    settings.as_object_mut().unwrap().entry("port").or_insert(json!(8080));
    serde_json::from_value(settings).unwrap()
}

fn endpoint(number: u8) -> Endpoint {
    Endpoint::new(TaskId::from_parts(1, [number; 10]), SocketAddrV4::new([10, 1, 0, number].into(), 8080))
}

fn set(generation: u64, weight: u32, endpoints: &[u8]) -> EndpointSet {
    let endpoints = endpoints.iter().map(|number| endpoint(*number)).collect();
    EndpointSet { generation: Generation(generation), weight, endpoints }
}

/// A route of this service with tasks of one generation.
fn route(name: &str, settings: Value, endpoints: &[u8]) -> ServiceRoute {
    ServiceRoute {
        id: RouteId { service: service(name), number: 0, preview: false },
        spec: spec(settings),
        sets: vec![set(1, 1, endpoints)],
        fallback: Vec::new(),
        mirror: Vec::new(),
        users: Users::default(),
    }
}

fn routes(services: Vec<ServiceRoute>) -> RouteTable {
    RouteTable { version: Revision(1), services, ..RouteTable::default() }
}

fn compile(services: Vec<ServiceRoute>) -> Table {
    after(services, &Table::default())
}

fn after(services: Vec<ServiceRoute>, before: &Table) -> Table {
    let table = Table::compile(&routes(services), before, 1, at(0));
    table.supersede(before);
    table
}

fn at(seconds: u64) -> Moment {
    Moment((100 + seconds) * 1_000_000)
}

fn no_headers() -> &'static HeaderMap {
    static NONE: OnceLock<HeaderMap> = OnceLock::new();
    NONE.get_or_init(HeaderMap::new)
}

fn ask<'r>(host: &'r str, path: &'r str) -> Ask<'r> {
    Ask {
        port: 80,
        secure: false,
        client: [192, 0, 2, 1].into(),
        method: &Method::GET,
        host,
        path,
        headers: no_headers(),
        now: at(0),
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

/// The name of the service that a request is for; what else is found in words.
fn found(table: &Table, ask: &Ask<'_>) -> String {
    match table.find(ask) {
        Found::Route(route) => route.id.service.name.to_string(),
        Found::Secure(port) => format!("secure {port}"),
        Found::Challenge(answer) => format!("challenge {answer}"),
        Found::Unclear => "unclear".into(),
        Found::Nobody => "nobody".into(),
    }
}

fn the_route(table: &Table) -> Arc<Route> {
    Arc::clone(table.routes.values().next().unwrap())
}

fn lease(route: &Arc<Route>, ask: &Ask<'_>) -> Lease {
    match route.choose(ask, &[], None) {
        Choice::Lease(lease) => lease,
        other => panic!("{}", in_words(&other)),
    }
}

fn in_words(choice: &Choice) -> String {
    match choice {
        Choice::Lease(lease) => number(lease).to_string(),
        Choice::Wait(_) => "wait".into(),
        Choice::Again(_) => "again".into(),
        Choice::Nobody { refusal, hold } => {
            format!("{}{}", refusal.reason, if *hold { ", hold" } else { "" })
        }
    }
}

fn chosen(route: &Arc<Route>, ask: &Ask<'_>) -> String {
    in_words(&route.choose(ask, &[], None))
}

fn number(lease: &Lease) -> u8 {
    lease.backend().endpoint.address.ip().octets()[3]
}

/// A request that is answered at once.
fn answer(route: &Arc<Route>, ask: &Ask<'_>, status: u16) -> u8 {
    let mut lease = lease(route, ask);
    lease.answered(StatusCode::from_u16(status).unwrap(), Duration::from_millis(1), ask.now);
    number(&lease)
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

// --- finding ---

#[test]
fn the_most_specific_route_is_found() {
    let table = compile(vec![
        route("any", json!({}), &[1]),
        route("any-deep", json!({"path": "/only/here"}), &[1]),
        route("exact", json!({"hosts": ["a.example.com", "b.example.com"], "path": "/api"}), &[1]),
        route("exact-longer", json!({"hosts": ["a.example.com"], "path": "/api/v2/"}), &[1]),
        route("wild", json!({"hosts": ["*.example.com"]}), &[1]),
        route("wilder", json!({"hosts": ["*.com"], "path": "/api"}), &[1]),
        route("wild-inner", json!({"hosts": ["*.b.example.com"]}), &[1]),
        route("ip", json!({"hosts": ["10.0.0.1"]}), &[1]),
        route("elsewhere", json!({"hosts": ["a.example.com"], "listen": 8080}), &[1]),
    ]);
    assert_eq!(table.problems(), [""; 0]);
    for (host, path, service) in [
        ("a.example.com", "/api", "exact"),
        ("a.example.com", "/api/v1", "exact"),
        ("a.example.com", "/apiary", "wild"),
        ("a.example.com", "/api/v2", "exact-longer"),
        ("a.example.com", "/api/v2/x", "exact-longer"),
        ("a.example.com", "/api/v22", "exact"),
        ("b.example.com", "/api/v2", "exact"),
        ("b.example.com", "/", "wild"),
        ("c.b.example.com", "/api", "wild-inner"),
        ("x.y.example.com", "/", "wild"),
        ("example.com", "/api", "wilder"),
        ("example.com", "/only/here/x", "any-deep"),
        ("example.com", "/only", "any"),
        ("com", "/api", "any"),
        ("", "/", "any"),
        ("10.0.0.1", "/", "ip"),
        ("::1", "/", "any"),
    ] {
        assert_eq!(found(&table, &ask(host, path)), service, "{host}{path}");
    }
    assert_eq!(found(&table, &Ask { port: 8080, ..ask("a.example.com", "/api") }), "elsewhere");
    assert_eq!(found(&table, &Ask { port: 8080, ..ask("b.example.com", "/") }), "nobody");
    assert_eq!(found(&table, &Ask { port: 81, ..ask("a.example.com", "/") }), "nobody");
}

#[test]
fn more_conditions_win_and_all_must_be_met() {
    let table = compile(vec![
        route("plain", json!({}), &[1]),
        route("post", json!({"methods": ["POST", "PUT"]}), &[1]),
        route("post-only", json!({"methods": ["POST"]}), &[1]),
        route("beta", json!({"headers": {"x-version": "beta"}}), &[1]),
        route("versioned", json!({"headers": {"x-version": "*"}}), &[1]),
        route("both", json!({"headers": {"x-version": "beta"}, "methods": ["POST"]}), &[1]),
    ]);
    let found = |method: Method, headers: &HeaderMap| {
        found(&table, &Ask { method: &method, headers, ..ask("", "/") })
    };
    let beta = headers(&[("x-version", "beta")]);
    let other = headers(&[("x-version", "1")]);
    let second = headers(&[("x-version", "1"), ("x-version", "beta")]);
    assert_eq!(found(Method::GET, no_headers()), "plain");
    assert_eq!(found(Method::PUT, no_headers()), "post");
    assert_eq!(found(Method::POST, no_headers()), "post-only");
    assert_eq!(found(Method::GET, &beta), "beta");
    assert_eq!(found(Method::GET, &second), "beta");
    assert_eq!(found(Method::GET, &other), "versioned");
    assert_eq!(found(Method::POST, &beta), "both");
}

#[test]
fn no_reading_of_a_path_gets_past_a_longer_route() {
    let table = compile(vec![
        route("site", json!({}), &[1]),
        route("admin", json!({"path": "/admin"}), &[1]),
        route("files", json!({"path": "/files"}), &[1]),
        route("cafe", json!({"path": "/caf%C3%A9"}), &[1]),
    ]);
    for path in [
        "/admin",
        "/admin/",
        "/%61dmin",
        "/%61%64min/x",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin/y",
        "/admin%2fx",
        "/%2fadmin",
        "/x%2f..%2fadmin",
        "/admin;x=1",
        "/x/..;/admin",
        "/x\\..\\admin",
        "/admin%5Cx",
        "/admin/..%2fx",
        "/admin/%2e%2e;/x",
        "/../admin",
        "//x/..//admin",
    ] {
        let found = found(&table, &ask("", path));
        assert!(found == "admin" || found == "unclear", "{path}: {found}");
    }
    for path in ["/files/../admin", "/files/..%2fadmin", "/admin/../files", "/admin%00"] {
        assert_eq!(found(&table, &ask("", path)), "unclear", "{path}");
    }
    for (path, service) in [
        ("/a%20b", "site"),
        ("/files/a%20b;v=1", "files"),
        ("/files//a", "files"),
        ("/caf%C3%A9/x", "cafe"),
        ("/café", "cafe"),
        ("/.well-known/x", "site"),
        ("/files/%2Fetc", "files"),
        ("/administrator", "site"),
    ] {
        assert_eq!(found(&table, &ask("", path)), service, "{path}");
    }
}

proptest! {
    /// Whatever one server makes of a path, it is what the table found, or something below the same rules, or it was refused.
    #[test]
    fn a_server_never_sees_a_path_of_a_longer_route_than_was_found(path in "/(a|b|%61|%62|\\.\\.|\\.|/|%2f|%2e|;x|\\\\|c){0,8}") {
        let table = compile(vec![
            route("root", json!({}), &[1]),
            route("a", json!({"path": "/a"}), &[1]),
            route("ab", json!({"path": "/a/b"}), &[1]),
            route("b", json!({"path": "/b"}), &[1]),
        ]);
        let found = found(&table, &ask("", &path));
        if found != "unclear" {
            let readings = path::read(&path).unwrap();
            for reading in readings.others.iter().map(Vec::as_slice).chain([&*readings.usual]) {
                let meant = match reading {
                    it if path::is_below(it, b"/a/b") => "ab",
                    it if path::is_below(it, b"/a") => "a",
                    it if path::is_below(it, b"/b") => "b",
                    _ => "root",
                };
                let is_covered = matches!((meant, found.as_str()), ("root", _) | ("a", "a" | "ab") | ("ab", "ab") | ("b", "b"));
                prop_assert!(is_covered, "{path} is {found}, and {meant} to some");
            }
        }
    }
}

/// How exactly a route is meant for a request, as the rules say it, without any index; none if it is not.
fn exactness(route: &ServiceRoute, ask: &Ask<'_>) -> Option<(usize, usize, usize)> {
    let spec = &route.spec;
    let host = |host: &String| match host.strip_prefix("*.") {
        Some(above) => ask.host.strip_suffix(above)?.ends_with('.').then_some(above.len()),
        None => (host == ask.host).then_some(usize::MAX),
    };
    let host = if spec.hosts.is_empty() { Some(0) } else { spec.hosts.iter().filter_map(host).max() };
    let path = spec.path.as_deref().unwrap_or("/").trim_end_matches('/');
    let is_below = ask.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let methods = spec.methods.is_empty() || spec.methods.iter().any(|method| method == ask.method.as_str());
    let has = |(name, value): (&String, &String)| {
        ask.headers.get_all(name).iter().any(|it| value == "*" || it == value.as_str())
    };
    let conditions = spec.headers.len() + usize::from(!spec.methods.is_empty());
    (is_below && methods && spec.headers.iter().all(has)).then_some((host?, path.len(), conditions))
}

fn any_route() -> impl Strategy<Value = Value> {
    let hosts = prop::sample::subsequence(vec!["a.x", "b.x", "x", "*.x", "*.a.x", "*.b.x"], 0..3);
    let path = prop::sample::select(vec!["/", "/p", "/p/", "/p/q", "/pq", "/p/q/r/s"]);
    let methods = prop::sample::subsequence(vec!["GET", "POST"], 0..=2);
    let headers = prop::sample::subsequence(vec![("x-a", "1"), ("x-b", "*"), ("x-c", "2")], 0..3);
    (hosts, path, methods, headers).prop_map(|(hosts, path, methods, headers)| {
        let headers: BTreeMap<_, _> = headers.into_iter().collect();
        json!({"hosts": hosts, "path": path, "methods": methods, "headers": headers})
    })
}

proptest! {
    #[test]
    fn of_any_routes_the_most_exact_is_found(
        settings in prop::collection::vec(any_route(), 0..12),
        host in prop::sample::select(vec!["a.x", "b.x", "c.x", "x", "c.a.x", "d.c.b.x", "y", ""]),
        path in prop::sample::select(vec!["/", "/p", "/p/", "/p/q", "/p/q/r", "/p/q/r/s/t", "/pq/r", "/o"]),
        post in any::<bool>(),
        given in prop::sample::subsequence(vec![("x-a", "1"), ("x-b", "9"), ("x-c", "3"), ("x-c", "2")], 0..=4),
    ) {
        let routes: Vec<_> = (0..).zip(settings).map(|(number, it)| route(&format!("s{number}"), it, &[1])).collect();
        let table = compile(routes.clone());
        let (method, headers) = (if post { Method::POST } else { Method::GET }, headers(&given));
        let ask = Ask { method: &method, headers: &headers, ..ask(host, path) };
        let most = routes.iter().filter_map(|route| exactness(route, &ask)).max();
        let found = match table.find(&ask) {
            Found::Route(found) => routes.iter().find(|route| route.id == found.id).map(|route| exactness(route, &ask)),
            _ => None,
        };
        prop_assert_eq!(found, most.map(Some), "{:?}", table);
    }
}

#[test]
fn what_needs_tls_is_sent_there_unless_something_serves_it_without() {
    let table = compile(vec![
        route("shop", json!({"hosts": ["shop.example"], "tls": "auto", "redirect": true}), &[1]),
        route(
            "odd",
            json!({"hosts": ["odd.example"], "tls": "auto", "redirect": true, "listen": 8443}),
            &[1],
        ),
        route("plain", json!({"hosts": ["shop.example"], "path": "/plain"}), &[1]),
        route("both", json!({"hosts": ["both.example"], "tls": "auto", "redirect": true}), &[1]),
        route("both-plain", json!({"hosts": ["both.example"]}), &[1]),
        route("raw", json!({"hosts": ["raw.example"], "tls": "passthrough"}), &[1]),
    ]);
    assert_eq!(table.problems(), [""; 0]);
    assert_eq!(found(&table, &ask("shop.example", "/")), "secure 443");
    assert_eq!(found(&table, &ask("shop.example", "/plain")), "plain");
    assert_eq!(found(&table, &ask("both.example", "/")), "both-plain");
    assert_eq!(found(&table, &ask("odd.example", "/")), "nobody");
    let secure = |host| Ask { port: 443, secure: true, ..ask(host, "/") };
    assert_eq!(found(&table, &secure("shop.example")), "shop");
    assert_eq!(found(&table, &secure("raw.example")), "nobody", "nobody looks into it");
    let raw = RouteId { service: service("raw"), number: 0, preview: false };
    assert!(table.by_id(&raw).is_some());
    let ports: Vec<_> = table.ports().into_iter().map(|(number, port)| (number, port.secure)).collect();
    assert_eq!(ports, [(80, false), (443, true), (8443, true)]);
}

#[test]
fn authorities_get_their_answers_before_any_route() {
    let mut routes = routes(vec![route("web", json!({}), &[1])]);
    let challenge =
        AcmeChallenge::Http01 { host: "a.example".into(), token: "tok".into(), answer: "tok.key".into() };
    routes.challenges.push(challenge);
    let table = Table::compile(&routes, &Table::default(), 1, at(0));
    assert_eq!(found(&table, &ask("a.example", "/.well-known/acme-challenge/tok")), "challenge tok.key");
    assert_eq!(found(&table, &ask("a.example", "/.well-known/acme-challenge/other")), "web");
    assert_eq!(found(&table, &ask("b.example", "/.well-known/acme-challenge/tok")), "web");
    routes.services.clear();
    let table = Table::compile(&routes, &Table::default(), 1, at(0));
    assert_eq!(table.ports().into_keys().collect::<Vec<_>>(), [80], "authorities come to this port");
}

#[test]
fn what_cannot_be_served_is_said_and_the_rest_is() {
    let table = compile(vec![
        route("a/web", json!({"hosts": ["x.example"], "path": "/p"}), &[1]),
        route("b/web", json!({"hosts": ["x.example"], "path": "/p/"}), &[2]),
        route("c/web", json!({"hosts": ["y.example"], "tls": "auto", "listen": 80}), &[3]),
        route("d/web", json!({"headers": {"x-a": "line\nbreak"}}), &[4]),
    ]);
    let route = |host| match table.find(&ask(host, "/p")) {
        Found::Route(route) => Some(route.id.service.app.name.to_string()),
        _ => None,
    };
    assert_eq!((route("x.example"), route("y.example")), (Some("a".into()), None));
    assert_eq!(
        table.problems(),
        [
            "route prod/b/web#1 is not served at http://x.example/p/: prod/a/web#1 of another app has the same",
            "route prod/c/web#1 is not served: it wants port 80 with TLS and without the PROXY protocol from clients, and other routes \
             have it without TLS and without the PROXY protocol from clients; give it a port of its own with `listen`",
            "route prod/d/web#1 is not served at http://*/ (header x-a): no request can have such methods or headers",
        ]
    );
}

// --- weights ---

fn count<T: Ord>(items: impl Iterator<Item = T>) -> BTreeMap<T, u32> {
    items.fold(BTreeMap::new(), |mut counts, item| {
        *counts.entry(item).or_default() += 1;
        counts
    })
}

#[test]
fn services_with_the_same_route_share_its_requests() {
    let services = vec![
        route("old", json!({"weight": 90}), &[1]),
        route("new", json!({"weight": 10}), &[2]),
        route("off", json!({"weight": 0}), &[3]),
        route("without-tasks", json!({"weight": 100}), &[]),
    ];
    let table = compile(services.clone());
    let shares = count((0..1000).map(|_| found(&table, &ask("", "/"))));
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["new", "old"]);
    assert!(shares["new"].abs_diff(100) <= 2, "{shares:?}");
    let only_off = compile(vec![services[2].clone()]);
    assert_eq!(found(&only_off, &ask("", "/")), "nobody");
    let waiting = compile(vec![services[3].clone()]);
    assert_eq!(found(&waiting, &ask("", "/")), "without-tasks", "its tasks may come");
}

#[test]
fn a_canary_gets_its_share_and_nobody_gets_lost_with_it() {
    let with = |sets| ServiceRoute { sets, ..route("web", json!({}), &[]) };
    let table = compile(vec![with(vec![set(1, 95, &[1, 2]), set(2, 5, &[3]), set(3, 0, &[4])])]);
    let route = the_route(&table);
    let taken = count((0..2000).map(|_| answer(&route, &ask("", "/"), 200)));
    assert!(taken[&3].abs_diff(100) <= 2 && !taken.contains_key(&4), "{taken:?}");
    let stats = &table.stats(at(0))[&route.id];
    assert_eq!(stats.sets[&Generation(2)].requests, u64::from(taken[&3]));
    assert_eq!(stats.sets[&Generation(3)].requests, 0);
    let listed: Vec<_> = stats.endpoints.iter().map(|it| it.endpoint.ip().octets()[3]).collect();
    assert_eq!(listed, [1, 2, 3, 4]);
    // One that has no tasks gets none, and one that fails loses its requests to the other.
    let table = after(vec![with(vec![set(1, 1, &[1]), set(2, 99, &[])])], &table);
    assert_eq!(
        count((0..50).map(|_| chosen(&the_route(&table), &ask("", "/")))),
        BTreeMap::from([("1".into(), 50)])
    );
    let table = after(vec![with(vec![set(1, 1, &[1]), set(2, 99, &[3])])], &table);
    let route = the_route(&table);
    let tried =
        [Arc::clone(&route.members.iter().find(|it| it.backend.endpoint == endpoint(3)).unwrap().backend)];
    for _ in 0..20 {
        assert_eq!(in_words(&route.choose(&ask("", "/"), &tried, None)), "1");
    }
}

// --- cookies ---

fn cookie_of(lease: &Lease) -> Option<String> {
    Some(lease.set_cookie()?.to_str().unwrap().to_owned())
}

fn with_cookie(set_cookie: &str) -> HeaderMap {
    headers(&[(COOKIE.as_str(), set_cookie.split(';').next().unwrap())])
}

#[test]
fn a_cookie_keeps_a_client_on_its_task_while_it_is_there() {
    let sticky = json!({"sticky": {"cookie": "TASK", "max_age": 60_000}, "path": "/app"});
    let table = compile(vec![route("web", sticky.clone(), &[1, 2, 3])]);
    let (route1, plain) = (the_route(&table), ask("", "/app"));
    let first = lease(&route1, &plain);
    let cookie = cookie_of(&first).unwrap();
    let (pair, attributes) = cookie.split_once(';').unwrap();
    assert_eq!(attributes, " Path=/app; Max-Age=60; HttpOnly; SameSite=Lax");
    assert_eq!(pair.len(), "TASK=".len() + 24);
    let secure = cookie_of(&lease(&route1, &Ask { secure: true, ..plain })).unwrap();
    assert!(secure.ends_with("; SameSite=Lax; Secure"));
    // While others are idle.
    let headers = with_cookie(&cookie);
    let back = Ask { headers: &headers, ..plain };
    let again: Vec<_> = (0..10).map(|_| lease(&route1, &back)).collect();
    assert!(again.iter().all(|it| number(it) == number(&first) && cookie_of(it).is_none()));
    // Over a table, and until it is gone: then it is another's for good.
    let others: Vec<u8> = [1, 2, 3].into_iter().filter(|it| *it != number(&first)).collect();
    let table = after(vec![route("web", sticky.clone(), &[1, 2, 3, 4])], &table);
    assert_eq!(number(&lease(&the_route(&table), &back)), number(&first));
    let table = after(vec![route("web", sticky, &others)], &table);
    let moved = lease(&the_route(&table), &back);
    assert!(others.contains(&number(&moved)));
    let headers = with_cookie(&cookie_of(&moved).unwrap());
    let back = Ask { headers: &headers, ..plain };
    assert!((0..10).all(|_| number(&lease(&the_route(&table), &back)) == number(&moved)));
    // What others set means nothing.
    let headers = with_cookie("TASK=abcdefghijklmnopqrstuvwx; Path=/");
    assert!(cookie_of(&lease(&the_route(&table), &Ask { headers: &headers, ..plain })).is_some());
}

#[test]
fn a_client_comes_back_to_a_task_that_was_only_busy_and_not_to_one_that_fails() {
    let settings = json!({
        "sticky": {"cookie": "T", "max_age": 1000},
        "concurrency": {"requests": 1, "queue": 0, "wait": 1},
    });
    let route = the_route(&compile(vec![route("web", settings, &[1, 2])]));
    let first = lease(&route, &ask("", "/"));
    let (own, headers) = (number(&first), with_cookie(&cookie_of(&first).unwrap()));
    let back = Ask { headers: &headers, ..ask("", "/") };
    let other = lease(&route, &back);
    assert!(number(&other) != own && cookie_of(&other).is_none(), "it is busy");
    drop((first, other));
    fail(&route, own, 5, at(0));
    let other = lease(&route, &back);
    assert!(number(&other) != own && cookie_of(&other).is_some(), "it fails");
}

#[test]
fn the_decision_for_a_canary_stays_with_its_client() {
    let with = |sets| ServiceRoute {
        sets,
        ..route("web", json!({"sticky": {"cookie": "T", "max_age": 1000}}), &[])
    };
    let table = compile(vec![with(vec![set(1, 99, &[1]), set(2, 1, &[2, 3])])]);
    let route = the_route(&table);
    let canary = (0..200).map(|_| lease(&route, &ask("", "/"))).find(|it| number(it) > 1).unwrap();
    let headers = with_cookie(&cookie_of(&canary).unwrap());
    let back = Ask { headers: &headers, ..ask("", "/") };
    assert!((0..50).all(|_| number(&lease(&route, &back)) == number(&canary)));
    // Its task is gone, and another of its generation is there.
    let other = if number(&canary) == 2 { 3 } else { 2 };
    let table = after(vec![with(vec![set(1, 99, &[1]), set(2, 1, &[other])])], &table);
    let moved = lease(&the_route(&table), &back);
    assert_eq!(number(&moved), other);
    assert!(cookie_of(&moved).is_some());
    // It was given up: nobody stays with it.
    let table = after(vec![with(vec![set(1, 100, &[1]), set(2, 0, &[other])])], &table);
    assert_eq!(number(&lease(&the_route(&table), &back)), 1);
}

#[test]
fn a_client_goes_back_to_the_service_that_its_cookie_is_of() {
    let sticky = |weight: u8| json!({"weight": weight, "sticky": {"cookie": "T", "max_age": 1000}});
    let table = compile(vec![route("new", sticky(50), &[1]), route("old", sticky(50), &[2])]);
    let Found::Route(first) = table.find(&ask("", "/")) else { panic!() };
    let headers = with_cookie(&cookie_of(&lease(first, &ask("", "/"))).unwrap());
    let back = Ask { headers: &headers, ..ask("", "/") };
    assert!((0..20).all(|_| found(&table, &back) == first.id.service.name.to_string()));
}

// --- balancing ---

#[test]
fn requests_are_spread_as_the_route_says() {
    let all =
        |balance: Value| the_route(&compile(vec![route("web", json!({"balance": balance}), &[1, 2, 3])]));
    let least = all(json!("least-outstanding"));
    let held: Vec<_> = (0..6).map(|_| lease(&least, &ask("", "/"))).collect();
    assert_eq!(count(held.iter().map(number)), BTreeMap::from([(1, 2), (2, 2), (3, 2)]));
    let robin = all(json!("round-robin"));
    let order: Vec<u8> = (0..6).map(|_| answer(&robin, &ask("", "/"), 200)).collect();
    assert_eq!(order[..3], order[3..]);
    assert_eq!(count(order.into_iter()).len(), 3);
    let hashed = all(json!({"hash": {"header": "x-user"}}));
    let of = |user: &str| {
        let headers = headers(&[("x-user", user)]);
        (0..5).map(|_| answer(&hashed, &Ask { headers: &headers, ..ask("", "/") }, 200)).collect::<Vec<_>>()
    };
    let users: Vec<_> = (0..30).map(|user| of(&user.to_string())).collect();
    assert!(users.iter().all(|tasks| tasks.iter().all(|task| *task == tasks[0])));
    assert_eq!(count(users.iter().map(|tasks| tasks[0])).len(), 3);
}

#[test]
fn who_was_tried_is_not_asked_again() {
    let route = the_route(&compile(vec![route("web", json!({}), &[1, 2])]));
    let first = lease(&route, &ask("", "/"));
    let mut tried = vec![Arc::clone(first.backend())];
    let Choice::Lease(second) = route.choose(&ask("", "/"), &tried, None) else { panic!() };
    assert_ne!(number(&first), number(&second));
    tried.push(Arc::clone(second.backend()));
    assert_eq!(in_words(&route.choose(&ask("", "/"), &tried, None)), "no_endpoint, hold");
}

// --- tables that follow each other ---

#[test]
fn no_lease_begins_from_what_is_no_longer_in_the_table() {
    let before = compile(vec![route("web", json!({}), &[1, 2])]);
    let old = the_route(&before);
    let (first, second) = (lease(&old, &ask("", "/")), lease(&old, &ask("", "/")));
    let (stays, goes) = if number(&first) == 1 { (first, second) } else { (second, first) };
    let table = after(vec![route("web", json!({}), &[1, 3])], &before);
    assert_eq!(chosen(&old, &ask("", "/")), "again");
    assert!(goes.backend().is_retired() && !stays.backend().is_retired());
    let new = the_route(&table);
    assert_eq!(number(&lease(&new, &ask("", "/"))), 3, "the other still has its request");
    let state = |table: &Table| {
        let stats = table.stats(at(0)).into_values().next().unwrap();
        stats
            .endpoints
            .into_iter()
            .map(|it| (it.endpoint.ip().octets()[3], it.state, it.active))
            .collect::<Vec<_>>()
    };
    let (serving, draining) = (EndpointState::Serving, EndpointState::Draining);
    assert_eq!(state(&table), [(1, serving, 1), (2, draining, 1), (3, serving, 0)]);
    assert_eq!(goes.backend().active(), 1);
    drop(goes);
    assert_eq!(state(&table), [(1, serving, 1), (3, serving, 0)]);
    // If it comes back it is another one.
    let table = after(vec![route("web", json!({}), &[1, 2])], &table);
    assert!(table.endpoints().all(|backend| !backend.is_retired()));
    assert_eq!(number(&lease(&the_route(&table), &ask("", "/"))), 2);
}

#[test]
fn what_was_counted_when_the_table_changed_is_given_back() {
    let before = compile(vec![route("web", json!({}), &[1])]);
    let old = the_route(&before);
    let ask = ask("", "/");
    let (full, left) = Default::default();
    let mut look = Look { route: &old, ask: &ask, tried: &[], full, left };
    // Between looking and counting: the table changes, and whoever changes it sees the count.
    let (first, second) = (look.any(None, Manner::Able).unwrap(), look.any(None, Manner::Able).unwrap());
    assert!(old.lease(first).is_some());
    after(vec![], &before);
    let backend = Arc::clone(&old.members[0].backend);
    assert_eq!(backend.active(), 1);
    assert!(old.lease(second).is_none());
    assert_eq!(backend.active(), 0);
}

#[test]
fn a_route_that_says_the_same_is_the_same_and_one_that_changes_keeps_what_is_known() {
    let web = |settings: Value| route("web", settings, &[1, 2]);
    let first = compile(vec![web(json!({})), route("other", json!({"path": "/o"}), &[3])]);
    let held = lease(first.by_id(&web(json!({})).id).unwrap(), &ask("", "/"));
    let second = after(vec![web(json!({"path": "/x"})), route("other", json!({"path": "/o"}), &[3])], &first);
    let ids: Vec<_> = first.routes.keys().cloned().collect();
    let same = |id: &RouteId| Arc::ptr_eq(first.by_id(id).unwrap(), second.by_id(id).unwrap());
    assert_eq!(ids.iter().map(same).collect::<Vec<_>>(), [true, false]);
    assert!(!first.by_id(&ids[0]).unwrap().is_superseded() && first.by_id(&ids[1]).unwrap().is_superseded());
    let stats = &second.stats(at(0))[&ids[1]];
    assert_eq!(stats.sets[&Generation(1)].active, 1);
    assert_ne!(number(&lease(second.by_id(&ids[1]).unwrap(), &ask("", "/x"))), number(&held));
    // A route that is gone is shown until nothing is under way.
    let third = after(vec![], &second);
    assert_eq!(third.stats(at(0)).keys().collect::<Vec<_>>(), [&ids[1]]);
    drop(held);
    assert_eq!(after(vec![], &third).stats(at(0)).len(), 0);
}

#[test]
fn a_set_that_waits_at_no_weight_is_not_draining_and_keeps_what_is_known() {
    let with = |sets| ServiceRoute { sets, ..route("web", json!({}), &[]) };
    let first = compile(vec![with(vec![set(1, 1, &[1])])]);
    answer(&the_route(&first), &ask("", "/"), 200);
    let second = after(vec![with(vec![set(1, 0, &[1]), set(2, 1, &[2])])], &first);
    let of = |table: &Table| {
        let endpoints = table.stats(at(0)).into_values().next().unwrap().endpoints;
        endpoints.into_iter().map(|it| (it.state, it.requests)).collect::<Vec<_>>()
    };
    assert_eq!(of(&second), [(EndpointState::Serving, 1), (EndpointState::Serving, 0)]);
    assert!(
        second.endpoints().any(|it| it.endpoint == endpoint(1) && !it.is_retired()),
        "its connections stay"
    );
    let third = after(vec![with(vec![set(1, 1, &[1])])], &second);
    assert_eq!(of(&third), [(EndpointState::Serving, 1)]);
}

#[test]
fn past_generations_are_forgotten_in_the_end() {
    let mut table = Table::default();
    for generation in 1..=30 {
        let sets = vec![set(generation, 1, &[1])];
        table = after(vec![ServiceRoute { sets, ..route("web", json!({}), &[]) }], &table);
        answer(&the_route(&table), &ask("", "/"), 200);
    }
    let sets = table.stats(at(0)).into_values().next().unwrap().sets;
    assert!(sets.len() <= PAST_GENERATIONS + 2 && sets.contains_key(&Generation(30)), "{:?}", sets.keys());
}

// --- breakers ---

fn fail(route: &Arc<Route>, which: u8, times: u32, now: Moment) {
    for _ in 0..times {
        let others: Vec<_> = route
            .members
            .iter()
            .filter(|it| it.backend.endpoint != endpoint(which))
            .map(|it| Arc::clone(&it.backend))
            .collect();
        let Choice::Lease(mut lease) = route.choose(&Ask { now, ..ask("", "/") }, &others, None) else {
            panic!()
        };
        lease.failed(Failure::Broken, now);
    }
}

#[test]
fn an_endpoint_that_fails_gets_nothing_for_a_while_and_then_one_request() {
    let table = compile(vec![route("web", json!({}), &[1, 2, 3])]);
    let route = the_route(&table);
    fail(&route, 1, 5, at(0));
    assert!((0..20).all(|_| answer(&route, &ask("", "/"), 200) != 1));
    let state = |now| table.stats(now).into_values().next().unwrap().endpoints.remove(0);
    assert_eq!((state(at(1)).state, state(at(11)).state), (EndpointState::Open, EndpointState::HalfOpen));
    assert_eq!((state(at(1)).requests, state(at(1)).failures), (5, 5));
    let later = Ask { now: at(11), ..ask("", "/") };
    // No request that cannot be repeated; one at a time.
    let post = Ask { method: &Method::POST, ..later };
    assert!((0..20).all(|_| answer(&route, &post, 200) != 1));
    let mut trial = lease(&route, &later);
    assert_eq!(number(&trial), 1);
    assert!((0..20).all(|_| answer(&route, &later, 200) != 1));
    trial.failed(Failure::Timeout, at(11));
    drop(trial);
    let state_now = state(at(12));
    assert_eq!(state_now.state, EndpointState::Open);
    assert!(state_now.why.ends_with("the answer took too long; tried again in 19 s"), "{}", state_now.why);
    // A trial whose client leaves says nothing, and the next one tries.
    let later = Ask { now: at(40), ..ask("", "/") };
    let mut gone = lease(&route, &later);
    assert_eq!(number(&gone), 1);
    gone.failed(Failure::Abandoned, at(40));
    drop(gone);
    assert_eq!(answer(&route, &later, 200), 1);
    assert_eq!(state(at(40)).state, EndpointState::Serving);
    assert!((0..20).map(|_| answer(&route, &later, 200)).any(|it| it == 1));
}

#[test]
fn the_last_endpoint_serves_whatever_it_does_and_a_route_never_has_nobody() {
    let route = the_route(&compile(vec![route("web", json!({}), &[1])]));
    fail(&route, 1, 50, at(0));
    assert_eq!(chosen(&route, &ask("", "/")), "1");
    // The others left while it was open.
    let table = compile(vec![super::tests::route("web", json!({}), &[1, 2])]);
    fail(&the_route(&table), 1, 5, at(0));
    let table = after(vec![super::tests::route("web", json!({}), &[1])], &table);
    assert_eq!(answer(&the_route(&table), &ask("", "/"), 200), 1);
    assert_eq!(table.stats(at(0)).into_values().next().unwrap().endpoints[0].state, EndpointState::Serving);
}

#[test]
fn when_all_are_bad_the_fallback_answers_at_once() {
    let fallback =
        json!({"fallback": {"kind": "answer", "status": 200, "body": "soon", "content_type": "text/html"}});
    let table = compile(vec![route("web", fallback, &[1, 2])]);
    let route = the_route(&table);
    fail(&route, 1, 5, at(0));
    assert_eq!(chosen(&route, &ask("", "/")), "2");
    fail(&route, 2, 5, at(0));
    let Choice::Nobody { refusal, hold: false } = route.choose(&ask("", "/"), &[], None) else { panic!() };
    assert_eq!(refusal.reason, "breaker_open");
    let Some(Fallen::Answer(status, kind, body)) = route.fallback(&ask("", "/"), &refusal) else { panic!() };
    assert_eq!((status.as_u16(), kind.to_str().unwrap(), &*body), (200, "text/html", &b"soon"[..]));
    let denied = Refusal::new(StatusCode::FORBIDDEN, "denied", "");
    assert!(route.fallback(&ask("", "/"), &denied).is_none(), "it stands in for tasks, not for rules");
    assert_eq!(table.stats(at(0))[&route.id].fallbacks, 1);
    // Then one tries.
    let later = Ask { now: at(10), ..ask("", "/") };
    let mut trial = lease(&route, &later);
    assert_ne!(chosen(&route, &later), number(&trial).to_string(), "one at a time");
    trial.answered(StatusCode::OK, Duration::ZERO, at(10));
    let well = number(&trial).to_string();
    // Not one that cannot be repeated, as the other is still to be tried.
    let post = Ask { method: &Method::POST, ..later };
    assert!((0..3).all(|_| chosen(&route, &post) == well));
}

#[test]
fn those_that_went_on_for_want_of_others_end_as_well_when_all_are_bad() {
    let fallback =
        json!({"fallback": {"kind": "answer", "status": 503, "body": "", "content_type": "text/html"}});
    let table = compile(vec![route("web", fallback, &[1, 2, 3])]);
    let route = the_route(&table);
    fail(&route, 1, 5, at(0));
    fail(&route, 2, 5, at(0));
    let state = || table.stats(at(0)).into_values().next().unwrap().endpoints.remove(1);
    assert_eq!(state().state, EndpointState::Serving, "half of them at most");
    assert!(state().why.contains("too many others fail as well"), "{}", state().why);
    assert_eq!(chosen(&route, &ask("", "/")).len(), 1);
    fail(&route, 3, 5, at(0));
    assert_eq!(state().state, EndpointState::Open);
    assert_eq!(chosen(&route, &ask("", "/")), "breaker_open");
}

#[test]
fn tasks_of_another_service_stand_in() {
    let settings = json!({"fallback": {"kind": "service", "service": "spare", "port": 80}});
    let with = |fallback: &[u8]| ServiceRoute {
        fallback: fallback.iter().map(|it| endpoint(*it)).collect(),
        ..route("web", settings.clone(), &[])
    };
    let table = compile(vec![with(&[8, 9])]);
    let route = the_route(&table);
    let Choice::Nobody { refusal, hold: false } = route.choose(&ask("", "/"), &[], None) else { panic!() };
    let Some(Fallen::Lease(mut first)) = route.fallback(&ask("", "/"), &refusal) else { panic!() };
    let Some(Fallen::Lease(second)) = route.fallback(&ask("", "/"), &refusal) else { panic!() };
    assert_ne!(number(&first), number(&second));
    assert_eq!(first.backend().active(), 1);
    first.answered(StatusCode::OK, Duration::ZERO, at(0));
    let stats = &table.stats(at(0))[&route.id];
    assert_eq!((stats.fallbacks, stats.sets.values().map(|set| set.requests).sum::<u64>()), (2, 0));
    let without = the_route(&compile(vec![with(&[])]));
    assert_eq!(chosen(&without, &ask("", "/")), "no_endpoint, hold", "there is nobody there either");
    assert!(without.fallback(&ask("", "/"), &refusal).is_none());
}

#[test]
fn an_endpoint_that_took_no_connection_is_probed_before_a_request_tries() {
    let table = compile(vec![route("web", json!({}), &[1, 2, 3])]);
    let route = the_route(&table);
    for _ in 0..5 {
        let others: Vec<_> = route.members[1..].iter().map(|it| Arc::clone(&it.backend)).collect();
        let Choice::Lease(mut lease) = route.choose(&ask("", "/"), &others, None) else { panic!() };
        lease.failed(Failure::Connect, at(0));
    }
    assert!(table.probes(at(9)).is_empty());
    let later = Ask { now: at(11), ..ask("", "/") };
    assert_ne!(answer(&route, &later, 200), 1);
    let mut probes = table.probes(at(11));
    assert_eq!((probes.len(), probes[0].address()), (1, endpoint(1).address));
    probes.remove(0).done(true, at(11));
    assert!(table.probes(at(11)).is_empty());
    assert_eq!(answer(&route, &later, 200), 1);
}

// --- limits ---

#[test]
fn each_task_has_as_many_requests_as_it_may_and_the_rest_waits_its_turn() {
    let settings = json!({"concurrency": {"requests": 2, "queue": 2, "wait": 5000}});
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let table = compile(vec![route("web", settings, &[1, 2])]);
        let route = the_route(&table);
        let mut held: Vec<_> = (0..4).map(|_| lease(&route, &ask("", "/"))).collect();
        assert_eq!(count(held.iter().map(number)), BTreeMap::from([(1, 2), (2, 2)]));
        let wait = |place| match route.choose(&ask("", "/"), &[], place) {
            Choice::Wait(place) => place,
            other => panic!("{}", in_words(&other)),
        };
        let (mut first, mut second) = (wait(None), wait(None));
        assert_eq!(chosen(&route, &ask("", "/")), "queue_full");
        assert_eq!(table.stats(at(0))[&route.id].queued, 2);
        first.turn().await.unwrap();
        first = wait(Some(first));
        let freed = number(&held[1]);
        held.remove(1);
        assert_eq!(chosen(&route, &ask("", "/")), "queue_full", "nobody is served before those who wait");
        first.turn().await.unwrap();
        let Choice::Lease(served) = route.choose(&ask("", "/"), &[], Some(first)) else { panic!() };
        assert_eq!(number(&served), freed);
        second.turn().await.unwrap();
        second = wait(Some(second));
        // A new table: the place is kept.
        let table = after(
            vec![super::tests::route(
                "web",
                json!({"concurrency": {"requests": 2, "queue": 2, "wait": 5000}}),
                &[1, 2, 3],
            )],
            &table,
        );
        second.turn().await.unwrap();
        let Choice::Again(Some(kept)) = route.choose(&ask("", "/"), &[], Some(second)) else { panic!() };
        let Choice::Lease(served) = the_route(&table).choose(&ask("", "/"), &[], Some(kept)) else {
            panic!()
        };
        assert_eq!(number(&served), 3);
        assert_eq!(table.stats(at(0)).into_values().next().unwrap().queued, 0);
    });
}

#[test]
fn only_who_may_passes_and_refusals_are_counted() {
    let with = |settings: Value, users: &[&str]| {
        let users = Users(users.iter().map(|line| (*line).to_owned()).collect());
        compile(vec![ServiceRoute { users, ..route("web", settings, &[1]) }])
    };
    let admit =
        |table: &Table, ask: &Ask<'_>| at_once(the_route(table).admit(ask)).map_err(|it| it.status.as_u16());
    let table = with(
        json!({"allow": ["192.0.2.0/24"], "rate_limit": {"requests": 2, "per": 1000, "burst": 2, "by": "client"}}),
        &[],
    );
    let other = Ask { client: [198, 51, 100, 1].into(), ..ask("", "/") };
    assert_eq!(admit(&table, &other), Err(403));
    assert_eq!([(); 3].map(|()| admit(&table, &ask("", "/"))), [Ok(()), Ok(()), Err(429)]);
    assert_eq!(admit(&table, &Ask { now: at(1), ..ask("", "/") }), Ok(()));
    // The limit holds over tables.
    let table = {
        let services = vec![route(
            "web",
            json!({"path": "/x", "rate_limit": {"requests": 2, "per": 1000, "burst": 2, "by": "client"}}),
            &[1],
        )];
        after(services, &table)
    };
    assert_eq!(admit(&table, &Ask { now: at(1), ..ask("", "/") }), Ok(()));
    assert_eq!(admit(&table, &Ask { now: at(1), ..ask("", "/") }), Err(429));
    let refused = &table.stats(at(0)).into_values().next().unwrap().refused;
    assert_eq!(*refused, BTreeMap::from([("denied".into(), 1), ("rate_limited".into(), 2)]));
    let guarded = with(
        json!({"basic_auth": {"secret": "users"}, "rate_limit": {"requests": 1, "per": 1000, "burst": 1, "by": "client"}}),
        &["bad"],
    );
    assert_eq!(admit(&guarded, &ask("", "/")), Err(401));
    let guess = headers(&[(AUTHORIZATION.as_str(), "Basic YTpi")]);
    assert_eq!(
        admit(&guarded, &Ask { headers: &guess, ..ask("", "/") }),
        Err(429),
        "guesses count as requests"
    );
    assert!(guarded.problems()[0].starts_with("route prod/shop/web#1: line 1 of the secret `users`"));
}

#[test]
fn repetitions_have_a_bound_for_each_request_and_for_all() {
    let table = compile(vec![route("web", json!({"retries": {"attempts": 2, "budget_percent": 20}}), &[1])]);
    let route = the_route(&table);
    assert_eq!([1, 2, 3].map(|attempts| route.may_retry(attempts)), [true, true, false]);
    while route.may_retry(1) {}
    (0..5).for_each(|_| drop(lease(&route, &ask("", "/"))));
    assert_eq!([(); 2].map(|()| route.may_retry(1)), [true, false]);
    let none = the_route(&compile(vec![super::tests::route(
        "web",
        json!({"retries": {"attempts": 1, "budget_percent": 0}}),
        &[1],
    )]));
    assert!(!none.may_retry(1));
    assert_eq!(table.stats(at(0)).into_values().next().unwrap().retries, 11);
}

#[test]
fn so_many_requests_are_copied_and_never_too_many_at_once() {
    let settings = json!({"mirror": {"service": "shadow", "port": 80, "percent": 25}});
    let service = ServiceRoute { mirror: vec![endpoint(7), endpoint(8)], ..route("web", settings, &[1]) };
    let table = compile(vec![service]);
    let route = the_route(&table);
    let copied =
        (0..400).filter_map(|_| route.mirror()).map(|copy| copy.backend().endpoint).collect::<Vec<_>>();
    assert!(copied.len().abs_diff(100) <= 2, "{}", copied.len());
    assert!(copied.contains(&endpoint(7)) && copied.contains(&endpoint(8)));
    let held: Vec<_> = (0..2000).filter_map(|_| route.mirror()).collect();
    assert_eq!(held.len(), 64);
    drop(held);
    assert!((0..8).any(|_| route.mirror().is_some()));
    assert!(table.endpoints().all(|backend| backend.active() == 0));
    table.supersede(&Table::default());
    Table::default().supersede(&table);
    assert!((0..8).all(|_| route.mirror().is_none()));
}

#[test]
fn what_the_file_leaves_out_has_the_gateways_default() {
    let given = json!({"timeouts": {"connect": 1, "request": 2, "idle": 3}, "protocol": "h2c", "proxy_protocol": "out"});
    let (default, given) =
        (compile(vec![route("web", json!({}), &[1])]), compile(vec![route("web", given, &[1])]));
    let (default, given) = (the_route(&default), the_route(&given));
    let times = |route: &Route| {
        [route.timeouts.connect, route.timeouts.request, route.timeouts.idle].map(|it| it.as_millis())
    };
    assert_eq!((times(&default), times(&given)), ([5000, 60_000, 300_000], [1, 2, 3]));
    assert_eq!(
        (default.h2c, given.h2c, default.proxy_protocol, given.proxy_protocol),
        (false, true, false, true)
    );
}

// --- stats ---

#[test]
fn each_request_is_counted_once_by_how_it_went() {
    let table = compile(vec![route("web", json!({}), &[1])]);
    let route = the_route(&table);
    let ask = ask("", "/");
    answer(&route, &ask, 200);
    answer(&route, &ask, 404);
    answer(&route, &ask, 500);
    answer(&route, &ask, 501);
    let mut cut = lease(&route, &ask);
    cut.answered(StatusCode::OK, Duration::from_secs(3), at(0));
    cut.passed(5, 7);
    cut.failed(Failure::Cut, at(1));
    drop(cut);
    lease(&route, &ask).failed(Failure::Broken, at(1));
    lease(&route, &ask).failed(Failure::Abandoned, at(1));
    drop(lease(&route, &ask));
    let held = lease(&route, &ask);
    let stats = &table.stats(at(1))[&route.id];
    let set = &stats.sets[&Generation(1)];
    assert_eq!((set.requests, set.failures, set.active, set.received, set.sent), (7, 4, 1, 5, 7));
    assert_eq!(set.latency.iter().sum::<u64>(), 5);
    let endpoint = &stats.endpoints[0];
    assert_eq!((endpoint.requests, endpoint.failures, endpoint.active), (7, 4, 1));
    drop(held);
}

#[test]
fn what_many_threads_do_at_once_adds_up_while_tables_change() {
    let settings = json!({"concurrency": {"requests": 3, "queue": 0, "wait": 1}});
    let web = |endpoints: &[u8]| vec![route("web", settings.clone(), endpoints)];
    let current = arc_swap::ArcSwap::from_pointee(compile(web(&[1, 2])));
    let (stop, superseded) = (AtomicBool::new(false), AtomicU64::new(0));
    // What has left the table, by the round in which it did; kept, so that no other is at its place in memory.
    let gone: Mutex<Vec<(Arc<Backend>, u64)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let route = the_route(&current.load());
                    std::thread::yield_now();
                    let round = superseded.load(SeqCst);
                    if let Choice::Lease(mut lease) = route.choose(&ask("", "/"), &[], None) {
                        assert!(lease.member().active.load(SeqCst) <= 3);
                        let gone = gone.lock();
                        let left = gone.iter().find(|(backend, _)| Arc::ptr_eq(backend, lease.backend()));
                        assert!(
                            left.is_none_or(|(_, left)| *left > round),
                            "it had left before it was chosen"
                        );
                        lease.answered(StatusCode::OK, Duration::ZERO, at(0));
                    }
                }
            });
        }
        for round in 1..=300 {
            let endpoints: &[u8] = if round % 2 == 0 { &[1, 2] } else { &[2, 3] };
            let before = current.load_full();
            let table = Arc::new(Table::compile(&routes(web(endpoints)), &before, 2, at(0)));
            current.store(Arc::clone(&table));
            table.supersede(&before);
            let left =
                before.endpoints().filter(|backend| backend.is_retired()).map(|it| (Arc::clone(it), round));
            gone.lock().extend(left);
            superseded.store(round, SeqCst);
            std::thread::yield_now();
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(gone.lock().len(), 300);
    let table = current.load();
    assert!(table.endpoints().all(|backend| backend.active() == 0));
    let stats = table.stats(at(0)).into_values().next().unwrap();
    let set = &stats.sets[&Generation(1)];
    assert!(
        set.requests > 0
            && set.failures == 0
            && set.active == 0
            && set.requests == set.latency.iter().sum::<u64>()
    );
}
