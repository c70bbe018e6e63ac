//! How a file says what a network's packets travel by.

use wharf_model::{AppSpec, Backend, NetworkMode, NetworkSpec};

use crate::folder::Folder;

fn file(networks: &str) -> Folder {
    Folder::with(&format!("services:\n  web: {{image: 'i:1', networks: [a]}}\nnetworks:\n  a: {networks}\n"))
}
fn network(networks: &str) -> (NetworkSpec, String) {
    let folder = file(networks);
    let app: AppSpec = folder.app();
    (app.networks.into_values().next().unwrap(), folder.complaints())
}

#[test]
fn a_network_says_its_backend_in_our_words_or_dockers() {
    for (written, backend) in [
        ("{}", None),
        ("{driver: bridge}", None),
        ("{driver: overlay}", None),
        ("{x-wharf: {backend: routed}}", Some(Backend::Routed)),
        ("{driver: overlay, x-wharf: {backend: wireguard}}", Some(Backend::Wireguard)),
    ] {
        let (spec, complaints) = network(written);
        assert_eq!((spec.backend, complaints.as_str()), (backend, ""), "{written}");
    }
    let (spec, said) = network("{driver: overlay, driver_opts: {encrypted: ''}}");
    assert_eq!((spec.backend, spec.driver_opts.len()), (Some(Backend::Wireguard), 0));
    assert!(said.starts_with("warning: the network's packets are encrypted by WireGuard"), "{said}");
    let pool = "ipam: {config: [{subnet: 192.168.1.0/24, gateway: 192.168.1.1, ip_range: 192.168.1.128/26}]}";
    for written in [
        format!("{{driver: macvlan, driver_opts: {{parent: eth0.100}}, {pool}}}"),
        format!("{{x-wharf: {{backend: macvlan, parent: eth0.100}}, {pool}}}"),
    ] {
        let (spec, complaints) = network(&written);
        assert_eq!((spec.backend, spec.parent.as_deref()), (Some(Backend::Macvlan), Some("eth0.100")));
        assert_eq!((spec.driver_opts.len(), complaints.as_str()), (0, ""), "{written}");
    }
}

#[test]
fn the_nodes_own_network_is_a_mode_of_its_services() {
    for network in ["{driver: host}", "{external: true, name: host}", "{x-wharf: {backend: host}}"] {
        let folder = file(network);
        let app: AppSpec = folder.app();
        let web = app.services.values().next().unwrap();
        assert_eq!((&web.network_mode, web.networks.len(), app.networks.len()), (&NetworkMode::Host, 0, 0));
        assert_eq!(folder.complaints(), "", "{network}");
    }
    let folder = Folder::with(
        "services:\n  web:\n    image: i:1\n    ports: ['80:80']\n    networks:\n      a: {aliases: [w]}\n      b: {}\nnetworks:\n  a: {driver: host}\n  b: {}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: ports cannot be published with this `network_mode`
     --> /app/compose.yaml:4:5 (services.web.ports)
      |
    4 |     ports: ['80:80']
      |     ^^^^^
      = help: remove `ports`: the program listens on the node itself
    error: a service on the nodes' own network `a` cannot be on `b` as well: it has no network of its own
     --> /app/compose.yaml:6:7 (services.web.networks.a)
      |
    6 |       a: {aliases: [w]}
      |       ^
      = help: keep one of them; from the nodes' own network published ports of other services are reached
    error: on the nodes' own network a service has no addresses and names to choose
     --> /app/compose.yaml:6:11 (services.web.networks.a.aliases)
      |
    6 |       a: {aliases: [w]}
      |           ^^^^^^^
      = help: remove it: the service is found by its name where its node is
    ");
}

#[test]
fn what_cannot_be_is_refused_where_it_stands() {
    let pool = "ipam: {config: [{subnet: 192.168.1.0/24}]}";
    for written in [
        "{driver: ipvlan}".to_owned(),
        "{driver: macvlan}".to_owned(),
        format!("{{driver: macvlan, driver_opts: {{parent: eth0.5000}}, {pool}}}"),
        format!("{{driver: macvlan, internal: true, x-wharf: {{backend: vxlan, parent: eth0}}, {pool}}}"),
        format!("{{driver: overlay, x-wharf: {{backend: macvlan, parent: eth0}}, {pool}}}"),
        "{x-wharf: {backend: routed, parent: eth0}}".to_owned(),
        "{driver_opts: {encrypted: 'true'}, x-wharf: {backend: routed}}".to_owned(),
        "{external: true, x-wharf: {backend: routed}}".to_owned(),
    ] {
        insta::assert_snapshot!(format!("{written}\n{}", file(&written).complaints()));
    }
}
