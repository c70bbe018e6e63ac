//! What plans say of routes.

use std::collections::BTreeMap;

use wharf_model::*;

use crate::{
    Plan, fixtures,
    fixtures::*,
    plan, plan_down,
    routing::tests::{route, routed},
};

fn planned(cluster: &Cluster, spec: &AppSpec) -> Plan {
    plan(&cluster.world, &app_key(), spec, &images(spec))
}
fn web(routes: &[&str]) -> AppSpec {
    app(&[("web", routed(service("web"), routes))])
}
/// What another app hears that wants this beside an app of one service that has `here`.
fn beside(here: ServiceSpec, there: ServiceSpec) -> String {
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[("web", here)]));
    cluster.settle();
    let other = AppKey { name: "blog".parse().unwrap(), environment: "test".parse().unwrap() };
    let spec = app(&[("front", there)]);
    let plan = plan(&cluster.world, &other, &spec, &images(&spec));
    let refusals: Vec<_> = plan.refusals.iter().map(ToString::to_string).collect();
    refusals.join("\n")
}
/// The same of two services of one app.
fn together(here: ServiceSpec, there: ServiceSpec) -> String {
    let mut spec = app(&[("a", here), ("b", there)]);
    let file = FileSpec { digest: Some("d".into()), ..FileSpec::default() };
    spec.secrets = ["one", "two"].map(|name| (name.to_owned(), file.clone())).into();
    let plan = planned(&Cluster::of(1), &spec);
    let said = plan.refusals.iter().map(ToString::to_string).chain(plan.warnings.clone());
    said.collect::<Vec<_>>().join("\n")
}
fn one(json: &str) -> ServiceSpec {
    routed(service("web"), &[json])
}

#[test]
fn a_plan_has_a_line_for_each_route_and_no_header_value() {
    let mut cluster = Cluster::of(1);
    let first = web(&[
        r#"{"hosts": ["shop.example.com"], "port": 8080, "tls": "auto", "redirect": true}"#,
        r#"{"hosts": ["shop.example.com"], "path": "/api", "methods": ["GET"], "headers": {"x-key": "s3cret"}, "port": 8080, "tls": "auto"}"#,
        r#"{"protocol": "udp", "port": 53, "listen": 53}"#,
    ]);
    insta::assert_snapshot!(planned(&cluster, &first), @r"
    + network  default
    + service  web: image web:1, 1 task
    + route    https://shop.example.com/ -> web:8080
    + route    https://shop.example.com/api (GET, header x-key) -> web:8080
    + route    udp://*:53 -> web:53
    ");
    cluster.up(&first);
    cluster.settle();
    assert!(planned(&cluster, &first).is_noop());
    let second = web(&[
        r#"{"hosts": ["shop.example.com"], "port": 9090, "tls": "auto", "redirect": true, "rate_limit": {"requests": 5, "per": 1000, "burst": 5, "by": "client"}}"#,
        r#"{"hosts": ["www.example.com"], "port": 8080, "tls": "auto"}"#,
        r#"{"protocol": "udp", "port": 53, "listen": 53}"#,
    ]);
    let plan = planned(&cluster, &second);
    insta::assert_snapshot!(plan, @r"
    ~ route    https://shop.example.com/ -> web:9090: it led to web:8080, rate_limit added
    + route    https://www.example.com/ -> web:8080
    - route    https://shop.example.com/api (GET, header x-key) -> web:8080
    ");
    assert!(!plan.is_noop(), "it is a release although no service changes");
    let moved =
        app(&[("web", service("web")), ("api", one(r#"{"protocol": "udp", "port": 53, "listen": 53}"#))]);
    assert!(
        planned(&cluster, &moved).to_string().contains("~ route    udp://*:53 -> api:53: it led to web:53\n")
    );
    let down = plan_down(&cluster.world, &app_key(), false).to_string();
    assert!(down.contains("- route    https://shop.example.com/ -> web:8080\n"), "{down}");
}

#[test]
fn requests_of_another_app_are_refused_with_its_name_and_others_share_the_port() {
    let shop = || one(r#"{"hosts": ["a.example", "b.example"], "path": "/api/", "port": 80}"#);
    insta::assert_snapshot!(
        beside(shop(), one(r#"{"hosts": ["b.example"], "path": "/api", "port": 81}"#)),
        @"services.front.x-wharf.routes[0]: http://b.example/api belongs to service web of app shop in prod; hint: choose another host or path, tell them apart by `methods` or `headers`, or take that app down"
    );
    for other in [
        r#"{"hosts": ["c.example"], "path": "/api", "port": 80}"#,
        r#"{"hosts": ["a.example"], "port": 80}"#,
        r#"{"hosts": ["*.example"], "path": "/api", "port": 80}"#,
        r#"{"path": "/api", "port": 80}"#,
        r#"{"hosts": ["a.example"], "path": "/api", "headers": {"x-a": "1"}, "port": 80}"#,
        r#"{"hosts": ["a.example"], "path": "/api", "methods": ["GET"], "port": 80}"#,
        r#"{"hosts": ["a.example"], "path": "/api", "port": 80, "listen": 8080}"#,
        r#"{"hosts": ["a.example"], "path": "/api", "port": 80, "tls": "auto"}"#,
    ] {
        assert_eq!(beside(shop(), one(other)), "", "{other}");
    }
    let methods = |list: &str| one(&format!(r#"{{"methods": [{list}], "port": 80}}"#));
    assert_eq!(beside(methods(r#""GET""#), methods(r#""POST""#)), "");
    assert!(beside(methods(r#""GET", "PUT""#), methods(r#""PUT""#)).contains("belongs to service web"));
}

#[test]
fn a_port_is_shared_only_by_what_a_gateway_can_tell_apart() {
    let tcp = r#"{"protocol": "tcp", "port": 5432, "listen": 443}"#;
    insta::assert_snapshot!(
        beside(one(tcp), one(r#"{"hosts": ["a.example"], "port": 80, "tls": "auto"}"#)),
        @"services.front.x-wharf.routes[0]: https://a.example/ cannot have the gateways' port 443/tcp: tcp://*:443 of service web of app shop in prod has it, and nothing tells the two apart; hint: choose another port with `listen`"
    );
    let plain = r#"{"hosts": ["a.example"], "port": 80, "listen": 443}"#;
    insta::assert_snapshot!(
        beside(one(plain), one(r#"{"hosts": ["b.example"], "port": 80, "tls": "auto"}"#)),
        @"services.front.x-wharf.routes[0]: https://b.example/ speaks TLS on the gateways' port 443, and http://a.example:443/ of service web of app shop in prod, which does not speak TLS, has it; hint: choose another port with `listen`"
    );
    let through = r#"{"hosts": ["a.example"], "port": 443, "tls": "passthrough"}"#;
    insta::assert_snapshot!(
        beside(one(through), one(r#"{"hosts": ["a.example"], "path": "/x", "port": 80, "tls": "auto"}"#)),
        @"services.front.x-wharf.routes[0]: https://a.example/x cannot share host a.example on port 443 with https://a.example/ of service web of app shop in prod: what is passed on as it is, and what the gateway looks into, cannot have one host; hint: give both the same `protocol` and `tls`, or one of them another host or port (`listen`)"
    );
    assert_eq!(beside(one(through), one(r#"{"hosts": ["b.example"], "port": 80, "tls": "auto"}"#)), "");
    assert!(beside(one(through), one(through)).contains("belongs to service web"));
    // UDP and TCP have ports of their own.
    assert_eq!(beside(one(tcp), one(r#"{"protocol": "udp", "port": 443, "listen": 443}"#)), "");
    // What sends to TLS listens as well.
    let https = r#"{"hosts": ["a.example"], "port": 80, "tls": "auto", "redirect": true}"#;
    assert_eq!(beside(one(https), one(r#"{"hosts": ["b.example"], "port": 80}"#)), "");
    let bytes = r#"{"protocol": "tcp", "port": 80, "listen": 80}"#;
    assert!(beside(one(https), one(bytes)).contains("port 80/tcp: https://a.example/ of service web"));
    let proxied = r#"{"hosts": ["b.example"], "port": 80, "proxy_protocol": "in"}"#;
    insta::assert_snapshot!(
        beside(one(https), one(proxied)),
        @"services.front.x-wharf.routes[0]: http://b.example/ is spoken to in the PROXY protocol on port 80, and https://a.example/ of service web of app shop in prod is not; hint: write the same `proxy_protocol` for both, or choose another port with `listen`"
    );
}

#[test]
fn published_ports_and_routes_keep_out_of_each_others_way() {
    let route = || one(r#"{"hosts": ["a.example"], "port": 80}"#);
    let port = || published(service("web"), 80, PublishMode::Ingress);
    insta::assert_snapshot!(beside(port(), route()), @"services.front.x-wharf.routes[0]: http://a.example/ needs the gateways' port 80/tcp, which service web of app shop in prod publishes for itself; hint: give the route another port with `listen`, or make that service a route as well");
    insta::assert_snapshot!(beside(route(), port()), @"service front publishes port 80/tcp, on which routes of service web of app shop in prod listen; hint: publish another port, or make it a route as well (`x-wharf.routes`): routes share ports");
    insta::assert_snapshot!(together(port(), route()), @"services.b.x-wharf.routes[0]: http://a.example/ needs the gateways' port 80/tcp, which service a publishes for itself; hint: remove the port from its `ports`, since the route takes its place, or give the route another port with `listen`");
    let host = together(published(service("web"), 80, PublishMode::Host), route());
    insta::assert_snapshot!(host, @"port 80, which services.b.x-wharf.routes[0] needs, is one of the nodes of service a of app shop in prod (`mode: host`): the gateway of such a node cannot have it as well");
}

#[test]
fn services_of_one_app_share_a_route_and_not_a_hosts_tls() {
    let at = |more: &str| one(&format!(r#"{{"hosts": ["a.example"], "port": 80{more}}}"#));
    insta::assert_snapshot!(together(at(""), at("")), @"services.a.x-wharf.routes[0] and services.b.x-wharf.routes[0] both take http://a.example/: each gets half of the requests; `weight` says otherwise");
    assert_eq!(together(at(""), at(r#", "weight": 30"#)), "");
    let with = |secret: &str| {
        one(&format!(
            r#"{{"hosts": ["a.example"], "path": "/{secret}", "port": 80, "tls": {{"certificate": "{secret}"}}}}"#
        ))
    };
    insta::assert_snapshot!(together(with("one"), with("two")), @"services.b.x-wharf.routes[0]: https://a.example/two shows another certificate for host a.example than https://a.example/one of service a of app shop in prod; hint: give both the same `tls`");
}

#[test]
fn what_a_route_needs_and_does_not_find_is_refused() {
    let cluster = Cluster::of(1);
    let said = |spec: &AppSpec| {
        let plan = planned(&cluster, spec);
        plan.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(
        said(&web(&[r#"{"hosts": ["a.example"], "port": 80, "basic_auth": {"secret": "users"}}"#])),
        @"services.web.x-wharf.routes[0]: http://a.example/ names the secret users, which the app does not have; hint: declare it at the top level: `secrets: {users: {file: PATH}}`"
    );
    let mut alone = service("job");
    (alone.network_mode, alone.networks) = (NetworkMode::None, BTreeMap::new());
    let fallback = r#"{"hosts": ["a.example"], "port": 80, "fallback": {"kind": "service", "service": "spare", "port": 80}}"#;
    insta::assert_snapshot!(
        said(&app(&[("web", one(fallback)), ("spare", alone)])),
        @"services.web.x-wharf.routes[0]: http://a.example/ leads nowhere: with `network_mode: none` gateways do not reach service spare; hint: remove that, or the route"
    );
    assert!(said(&web(&[fallback])).contains("names the service spare, which the app does not have"));
}

#[test]
fn a_port_that_another_program_has_is_a_warning_on_some_gateways_and_a_refusal_on_all() {
    let mut cluster = Cluster::of(2);
    let set = |cluster: &mut Cluster, n: u8, taken: &[u16]| {
        let id = fixtures::node_id(n);
        let mut record = cluster.world.node(id).unwrap().record.clone();
        record.roles.gateway = true;
        cluster.world.insert_node(record);
        let mut status = cluster.world.node(id).unwrap().status.clone().unwrap();
        status.facts.as_mut().unwrap().taken_ports = taken.to_vec();
        cluster.world.set_node_status(id, status);
    };
    let spec = web(&[r#"{"hosts": ["a.example"], "port": 80, "tls": "auto", "redirect": true}"#]);
    set(&mut cluster, 1, &[80, 443]);
    set(&mut cluster, 2, &[]);
    insta::assert_snapshot!(planned(&cluster, &spec).warnings.join("\n"), @r"
    port 80, on which services.web.x-wharf.routes[0] redirects requests without TLS, is taken by another program on n1: nothing is redirected there
    port 443, which services.web.x-wharf.routes[0] needs, is taken by another program on n1: the route answers on the other nodes only
    ");
    set(&mut cluster, 2, &[443]);
    insta::assert_snapshot!(planned(&cluster, &spec).refusals[0], @"services.web.x-wharf.routes[0]: https://a.example/ needs the gateways' port 443, which another program has on n1, n2; hint: choose another port with `listen`, or stop that program (`ss -ltnp 'sport = :443'` there names it)");
}

#[test]
fn claims_are_equal_when_nothing_of_them_could_conflict_anew() {
    let claims = |json: &str| crate::claims(&one(json));
    let base = r#"{"hosts": ["a.example"], "port": 80}"#;
    assert_eq!(claims(base), claims(r#"{"hosts": ["a.example"], "port": 8080, "weight": 3}"#));
    for other in [
        r#"{"hosts": ["b.example"], "port": 80}"#,
        r#"{"hosts": ["a.example"], "port": 80, "listen": 81}"#,
        r#"{"hosts": ["a.example"], "port": 80, "headers": {"x": "1"}}"#,
        r#"{"hosts": ["a.example"], "port": 80, "proxy_protocol": "in"}"#,
    ] {
        assert_ne!(claims(base), claims(other), "{other}");
    }
    assert_eq!(crate::claims(&published(service("web"), 80, PublishMode::Ingress)).len(), 1);
    assert_eq!(route(base).place(), "http://a.example/");
}
