//! What routes lead to while apps come, change and go.

use wharf_model::*;

use super::*;
use crate::{Assigner, Change, fixtures::*};

pub(super) fn route(json: &str) -> RouteSpec {
    serde_json::from_str(json).unwrap()
}
pub(super) fn routed(mut spec: ServiceSpec, routes: &[&str]) -> ServiceSpec {
    spec.policy.routes = routes.iter().map(|json| route(json)).collect();
    spec
}
fn image(mut spec: ServiceSpec, image: &str) -> ServiceSpec {
    spec.image = image.into();
    spec
}

/// Each route as `web#1 http://a/: gen 1 x2 = 2 on 80`.
fn shown(cluster: &Cluster) -> String {
    let line = |route: &ServiceRoute| {
        let sets = route.sets.iter().map(|set| {
            let ports: BTreeSet<_> = set.endpoints.iter().map(|endpoint| endpoint.address.port()).collect();
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            format!(
                "gen {} x{} = {} on {}",
                set.generation.0,
                set.endpoints.len(),
                set.weight,
                ports.join("+")
            )
        });
        let sets = sets.collect::<Vec<_>>().join(", ");
        let id = route.id.to_string();
        let id = id.trim_start_matches("prod/shop/");
        format!("{id} {}: {}", route.spec.place(), if sets.is_empty() { "nobody" } else { &sets })
    };
    service_routes(&cluster.world).iter().map(line).collect::<Vec<_>>().join("\n")
}
fn endpoints(cluster: &Cluster, path: &str) -> usize {
    let routes = service_routes(&cluster.world);
    let of_path = routes.iter().filter(|route| route.spec.path.as_deref().unwrap_or("/") == path);
    of_path.flat_map(|route| &route.sets).map(|set| set.endpoints.len()).sum()
}

#[test]
fn a_route_leads_to_every_ready_task_of_its_service_and_to_nobody_else() {
    let mut cluster = Cluster::of(2);
    let web = routed(replicas(service("web"), 2), &[r#"{"hosts": ["a"], "port": 8080}"#]);
    cluster.up(&app(&[("web", web), ("db", service("db"))]));
    assert_eq!(shown(&cluster), "web#1 http://a/: nobody", "it is there, and says so");
    cluster.settle();
    assert_eq!(shown(&cluster), "web#1 http://a/: gen 1 x2 = 2 on 8080");
    let [route] = &service_routes(&cluster.world)[..] else { panic!("one") };
    let of_web: BTreeSet<_> = cluster.ready("web").iter().map(|task| task.id).collect();
    assert_eq!(route.sets[0].endpoints.iter().map(|endpoint| endpoint.task).collect::<BTreeSet<_>>(), of_web);
    let task = cluster.ready("web").remove(0);
    cluster.world.apply(&Change::StopTask { task: task.id, reason: StopReason::ScaledDown });
    assert_eq!(shown(&cluster), "web#1 http://a/: gen 1 x1 = 1 on 8080");
}

#[test]
fn nobody_is_sent_to_a_port_that_a_task_does_not_have_and_somebody_always_answers() {
    let version = |name: &str, port: u16| {
        let json = format!(r#"{{"hosts": ["a"], "port": {port}}}"#);
        app(&[("web", image(routed(replicas(service("web"), 3), &[&json]), name))])
    };
    let mut cluster = Cluster::of(2);
    cluster.up(&version("web:1", 8080));
    cluster.settle();
    cluster.up(&version("web:2", 9090));
    let mut mixed = false;
    cluster.settle_for(std::time::Duration::from_secs(600), &mut |cluster| {
        let [route] = &service_routes(&cluster.world)[..] else { panic!("one: {}", shown(cluster)) };
        assert!(!route.sets.is_empty(), "somebody answers");
        for set in &route.sets {
            let port = if set.generation == Generation(1) { 8080 } else { 9090 };
            assert!(
                set.endpoints.iter().all(|endpoint| endpoint.address.port() == port),
                "{}",
                shown(cluster)
            );
            assert_eq!(set.weight as usize, set.endpoints.len());
        }
        mixed |= route.sets.len() == 2;
    });
    assert!(mixed, "both releases answered for a while");
    assert_eq!(shown(&cluster), "web#1 http://a/: gen 2 x3 = 3 on 9090");
}

#[test]
fn other_routes_replace_no_container_hold_at_once_and_go_back_with_the_release() {
    let with = |json: &str| app(&[("web", routed(service("web"), &[json]))]);
    let (one, other) = (r#"{"hosts": ["a"], "port": 80}"#, r#"{"hosts": ["b"], "port": 81}"#);
    let mut cluster = Cluster::of(1);
    cluster.up(&with(one));
    cluster.settle();
    let before = cluster.ready("web")[0].id;
    cluster.up(&with(other));
    assert_eq!(shown(&cluster), "web#1 http://b/: gen 1 x1 = 1 on 81");
    cluster.settle();
    assert_eq!(cluster.ready("web")[0].id, before);
    assert_eq!(cluster.world.app(&app_key()).unwrap().release, ReleaseNumber(2), "it is a release");
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    cluster.up(&with(one));
    assert_eq!(shown(&cluster), "web#1 http://a/: gen 1 x1 = 1 on 80");
    assert_eq!(cluster.ready("web")[0].id, before);
}

#[test]
fn a_failed_release_takes_its_routes_with_it() {
    let first = app(&[("web", image(routed(service("web"), &[r#"{"hosts": ["a"], "port": 80}"#]), "web:1"))]);
    let second = app(&[(
        "web",
        image(
            routed(service("web"), &[r#"{"hosts": ["a"], "port": 80}"#, r#"{"hosts": ["b"], "port": 80}"#]),
            "web:2",
        ),
    )]);
    let mut cluster = Cluster::of(1);
    cluster.scripts.insert("web:2".into(), Script::Refuse);
    cluster.up(&first);
    cluster.settle();
    cluster.up(&second);
    cluster.settle_for(std::time::Duration::from_secs(600), &mut |cluster| {
        assert_eq!(shown(cluster), "web#1 http://a/: gen 1 x1 = 1 on 80", "what is not ready has no routes");
    });
    assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
}

#[test]
fn a_route_that_moves_to_another_service_is_answered_throughout() {
    let (all, api) = (r#"{"hosts": ["a"], "port": 80}"#, r#"{"hosts": ["a"], "path": "/api", "port": 80}"#);
    let mut cluster = Cluster::of(2);
    cluster.up(&app(&[("web", routed(service("web"), &[all, api]))]));
    cluster.settle();
    let split = app(&[("web", routed(service("web"), &[all])), ("api", routed(service("api"), &[api]))]);
    cluster.up(&split);
    assert_eq!(
        shown(&cluster),
        "web#1 http://a/: gen 1 x1 = 1 on 80\nweb#2 http://a/api: gen 1 x1 = 1 on 80",
        "the new service is not ready, and shows nothing"
    );
    cluster.settle_for(std::time::Duration::from_secs(600), &mut |cluster| {
        assert!(endpoints(cluster, "/") > 0 && endpoints(cluster, "/api") > 0, "{}", shown(cluster));
    });
    assert_eq!(
        shown(&cluster),
        "api#1 http://a/api: gen 1 x1 = 1 on 80\nweb#1 http://a/: gen 1 x1 = 1 on 80"
    );
    // And stays there once it has been: who answers less exact routes does not know about it.
    cluster.ask(&crate::Request::Stop(vec!["api".parse().unwrap()]));
    cluster.settle();
    assert!(shown(&cluster).starts_with("api#1 http://a/api: nobody"), "{}", shown(&cluster));
}

#[test]
fn what_only_earlier_tasks_have_stays_until_they_go() {
    let version = |name: &str, routes: &[&str]| {
        app(&[("web", image(routed(replicas(service("web"), 2), routes), name))])
    };
    let (all, old, new) = (
        r#"{"hosts": ["a"], "port": 80}"#,
        r#"{"hosts": ["a"], "path": "/old", "port": 80}"#,
        r#"{"hosts": ["a"], "path": "/new", "port": 80}"#,
    );
    let mut cluster = Cluster::of(1);
    cluster.up(&version("web:1", &[all, old]));
    cluster.settle();
    cluster.up(&version("web:2", &[all, new]));
    let mut both = false;
    cluster.settle_for(std::time::Duration::from_secs(600), &mut |cluster| {
        let earlier = cluster.ready("web").iter().filter(|task| task.generation == Generation(1)).count();
        let later = cluster.ready("web").len() - earlier;
        assert_eq!(
            (endpoints(cluster, "/old"), endpoints(cluster, "/new")),
            (earlier, later),
            "{}",
            shown(cluster)
        );
        both |= earlier > 0 && later > 0;
    });
    assert!(both);
    assert_eq!(endpoints(&cluster, "/"), 2);
}

#[test]
fn shares_previews_and_connections_follow_the_sets() {
    let routes = [r#"{"hosts": ["a"], "port": 80}"#, r#"{"protocol": "tcp", "port": 5432, "listen": 5432}"#];
    let mut web = routed(replicas(service("web"), 2), &routes);
    web.policy.release = Some(ReleaseStrategy::BlueGreen {
        preview: Some("next.a".into()),
        promote: Promote::Manual,
        keep: Millis::from_secs(600),
    });
    let version = |name: &str| app(&[("web", image(web.clone(), name))]);
    let mut cluster = Cluster::of(1);
    cluster.up(&version("web:1"));
    cluster.settle();
    cluster.up(&version("web:2"));
    cluster.settle();
    assert_eq!(
        shown(&cluster),
        "web#1 http://a/: gen 1 x2 = 2 on 80\n\
         web#2 tcp://*:5432: gen 1 x2 = 2 on 5432\n\
         web#1 (preview) http://next.a/: gen 2 x2 = 2 on 80",
        "a connection carries no host by which it could be tried"
    );
    // As a canary would: a share of the requests, and of no connections.
    let mut record = ServiceRecord::clone(cluster.world.service(&key("web")).unwrap());
    for set in &mut record.sets {
        set.role = SetRole::Next { full: Mode::Replicated { replicas: 2 }, percent: 25 };
    }
    cluster.world.insert_service(record);
    let routes = service_routes(&cluster.world);
    let weights: Vec<_> = routes[0].sets.iter().map(|set| set.weight).collect();
    assert_eq!(weights[0], weights[1] * 3, "75 to 25: {weights:?}");
    assert_eq!(routes[1].sets.len(), 1);
}

#[test]
fn fallbacks_mirrors_and_shared_networks_are_led_to_where_they_answer() {
    let mut side = service("side");
    side.networks.clear();
    side.network_mode = NetworkMode::Service("web".parse().unwrap());
    let json = r#"{"hosts": ["a"], "port": 80, "mirror": {"service": "side", "port": 81, "percent": 5},
        "fallback": {"kind": "service", "service": "spare", "port": 82}}"#;
    let mut host = routed(service("host"), &[r#"{"hosts": ["h"], "port": 83}"#]);
    host.networks.clear();
    host.network_mode = NetworkMode::Host;
    let mut cluster = Cluster::of(1);
    cluster.up(&app(&[
        ("web", routed(service("web"), &[json])),
        ("side", routed(side, &[r#"{"hosts": ["s"], "port": 84}"#])),
        ("spare", service("spare")),
        ("host", host),
    ]));
    cluster.settle();
    let routes = service_routes(&cluster.world);
    let at = |name: &str| {
        let tasks = cluster.ready(name);
        *tasks[0].addresses.values().next().unwrap()
    };
    let named = |name: &str| routes.iter().find(|route| route.id.service == key(name)).unwrap();
    let web = named("web");
    assert_eq!(
        web.fallback,
        [Endpoint::new(cluster.ready("spare")[0].id, SocketAddrV4::new(at("spare"), 82))]
    );
    assert_eq!(web.mirror, [Endpoint::new(cluster.ready("side")[0].id, SocketAddrV4::new(at("web"), 81))]);
    assert_eq!(named("side").sets[0].endpoints[0].address, SocketAddrV4::new(at("web"), 84));
    assert_eq!(named("host").sets[0].endpoints[0].address, "10.0.0.1:83".parse().unwrap());
}

#[test]
fn gateways_are_on_the_networks_of_routes_before_there_is_a_task_there() {
    let mut cluster = Cluster::of(2);
    let mut side = routed(service("side"), &[r#"{"hosts": ["s"], "port": 84}"#]);
    side.networks.clear();
    side.network_mode = NetworkMode::Service("web".parse().unwrap());
    let mut web = service("web");
    web.placement.constraints =
        vec![Constraint { key: "node.hostname".into(), equal: true, value: "n2".into() }];
    cluster.up(&app(&[("web", web), ("side", side)]));
    let _ = cluster.pass();
    let networks = |n| Assigner::new(&cluster.world).for_node(node_id(n)).networks.len();
    assert_eq!(networks(1), 1, "the first node is a gateway");
}

#[test]
fn passwords_and_certificates_go_to_gateways_and_nowhere_else() {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (key_pem, chain) = (
        "-----BEGIN PRIVATE KEY-----\nS\n-----END PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nC\n-----END CERTIFICATE-----\n",
    );
    let web = routed(
        service("web"),
        &[
            r#"{"hosts": ["a"], "port": 80, "tls": {"certificate": "cert"}, "basic_auth": {"secret": "users"}}"#,
            r#"{"hosts": ["b", "a"], "path": "/b", "port": 80, "tls": {"certificate": "cert"}}"#,
        ],
    );
    let mut spec = app(&[("web", web)]);
    let with = |spec: &mut AppSpec, users: &str| {
        let file = |digest: &str| FileSpec { digest: Some(digest.into()), ..Default::default() };
        spec.secrets = [("cert".into(), file("c")), ("users".into(), file(users))].into();
    };
    with(&mut spec, "u1");
    let mut cluster = Cluster::of(2);
    cluster.world.insert_file("c".into(), encode(&format!("{key_pem}{chain}")).into());
    cluster.world.insert_file("u1".into(), encode("ada:$2y$1\n").into());
    cluster.world.insert_file("u2".into(), encode("grace:$2y$2\n").into());
    cluster.up(&spec);
    cluster.settle();
    let table = |cluster: &Cluster, n| Assigner::new(&cluster.world).for_node(node_id(n)).routes;
    let gateway = table(&cluster, 1);
    assert_eq!(gateway.services[0].users, Users(vec!["ada:$2y$1".into()]));
    assert_eq!(gateway.services[1].users, Users::default());
    let shown =
        ShownCertificate { hosts: vec!["a".into(), "b".into()], chain: chain.into(), key: key_pem.into() };
    assert_eq!(gateway.certificates, [shown]);
    let other = table(&cluster, 2);
    assert_eq!((other.services, other.certificates), (vec![], vec![]));
    assert!(service_routes(&cluster.world).iter().all(|route| route.users == Users::default()));

    // Another content is a release that replaces nothing, and holds at once.
    let before = cluster.ready("web")[0].id;
    with(&mut spec, "u2");
    let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
    assert_eq!(plan.to_string(), "~ secret   users: its content changed\n");
    cluster.up(&spec);
    assert_eq!(table(&cluster, 1).services[0].users, Users(vec!["grace:$2y$2".into()]));
    cluster.settle();
    assert_eq!(cluster.ready("web")[0].id, before);
}

#[test]
fn a_change_of_routes_is_done_when_every_gateway_has_them() {
    let with = |json: &str| app(&[("web", routed(service("web"), &[json]))]);
    let mut cluster = Cluster::of(2);
    cluster.up(&with(r#"{"hosts": ["a"], "port": 80}"#));
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
    // The gateway goes on with what it has.
    cluster.deaf.push(node_id(1));
    cluster.up(&with(r#"{"hosts": ["b"], "port": 80}"#));
    for _ in 0..20 {
        let _ = cluster.pass();
        let _ = cluster.step();
    }
    assert_eq!(cluster.rollout().state, RolloutState::Progressing);
    let said = cluster.waiting();
    assert!(said.contains("counts once every node leads to it: n1: "), "{said}");
    cluster.deaf.clear();
    cluster.settle();
    assert_eq!(cluster.rollout().state, RolloutState::Done);
}
