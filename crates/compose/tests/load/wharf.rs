//! What is said of `x-wharf`, of jobs and of services outside the cluster, and what becomes of the latter.

use wharf_model::ServiceName;

use crate::folder::{Folder, web};

/// Each complaint: its key, message and hint.
fn said(folder: &Folder) -> String {
    let lines: Vec<String> = folder
        .load()
        .diagnostics
        .iter()
        .filter(|found| !found.message.contains("is not carried out by this version"))
        .map(|found| {
            let key = found.key.trim_start_matches("services.web.x-wharf.");
            format!("{key}: {} [{}]", found.message, found.hint.as_deref().unwrap_or_default())
        })
        .collect();
    lines.join("\n")
}

#[test]
fn what_is_wrong_below_x_wharf_is_said_at_its_place() {
    let wrong = [
        // Keys and kinds.
        ("route: []", "route: unknown key `route` in `x-wharf` [did you mean `routes`?]"),
        (
            "routes: [{prot: 80}]",
            "routes[0]: the route needs `port`: the service says nothing about its ports [write for example `port: 80`, the port in the container]\nroutes[0].prot: unknown key `prot` in a route [did you mean `port`?]",
        ),
        (
            "priority: urgent",
            "priority: `priority` must be `system`, `high`, `normal` or `low`, not `urgent` [write one of these]",
        ),
        ("autoscale: {min: 1}", "autoscale: `autoscale` needs `metrics` [add `metrics: …`]"),
        // Routes.
        ("routes: [{port: 0}]", "routes[0].port: `port` must be 1 to 65535, not 0 [write for example `1`]"),
        (
            "routes: [{port: 80, host: \"http://a.example/x\"}]",
            "routes[0].host: `http://a.example/x` is not a host name [write the host alone: `a.example`]",
        ),
        (
            "routes: [{port: 80, host: \"a.example:8443\"}]",
            "routes[0].host: `a.example:8443` is not a host name [write `host: a.example` and `listen: 8443`]",
        ),
        (
            "routes: [{port: 80, host: \"a.*.example\"}]",
            "routes[0].host: `a.*.example` is not a host name [`*.` may stand in front only: `*.example.com`]",
        ),
        (
            "routes: [{port: 80, path: api}]",
            "routes[0].path: the path `api` does not start with `/` [write `/api`]",
        ),
        (
            "routes: [{port: 80, weight: 101}]",
            "routes[0].weight: `weight` must be 0 to 100, not 101 [write for example `100`]",
        ),
        (
            "routes: [{port: 80, tls: auto}]",
            "routes[0].tls: a certificate is obtained for host names, and the route has none [add `host: app.example.com`]",
        ),
        (
            "routes: [{port: 80, host: \"*.a.example\", tls: auto}]",
            "routes[0].tls: no certificate can be obtained for `*.a.example` by itself [name the hosts, or give a certificate: `tls: {certificate: SECRET}`]",
        ),
        (
            "routes: [{port: 80, host: a.example, tls: {certificate: cert}}]",
            "routes[0].tls.certificate: the secret `cert` is not defined [declare it at the top level, under `secrets`]",
        ),
        (
            "routes: [{port: 80, redirect: true}]",
            "routes[0].redirect: there is nothing to redirect to: the gateway does not end TLS on this route [add `tls: auto`, or remove `redirect`]",
        ),
        (
            "routes: [{port: 80, hash_by: client}]",
            "routes[0].hash_by: `hash_by` belongs to `balance: hash` [add `balance: hash`, or remove `hash_by`]",
        ),
        (
            "routes: [{port: 80, allow: [10.0.0.0/33]}]",
            "routes[0].allow[0]: `10.0.0.0/33` is neither an address nor a network [write for example `10.0.0.0/8` or `192.0.2.7`]",
        ),
        (
            "routes: [{port: 80, mirror: {service: wed}}]",
            "routes[0].mirror.service: there is no service `wed` [did you mean `web`?]",
        ),
        (
            "routes: [{port: 80, fallback: {service: web, status: 503}}]",
            "routes[0].fallback: `service` and `status` exclude each other [answer by another service, or with a fixed answer]",
        ),
        (
            "routes: [{port: 80, protocol: tcp, path: /a}]",
            "routes[0]: a TCP route needs `listen`, the gateways' port [write for example `listen: 80`]\nroutes[0].path: `path` has no meaning for a TCP route: the gateway sees no requests there [remove `path`, or write `protocol: http`]",
        ),
        (
            "routes: [{port: 80, path: /a}, {port: 81, path: /a}]",
            "routes[1]: two routes take the same requests [remove one, or tell them apart by `host`, `path`, `methods` or `headers`]",
        ),
        // Releases.
        (
            "release: {strategy: rolling, keep: 1h}",
            "release.keep: `keep` belongs to `strategy: blue-green`, and the strategy is `rolling` [remove `keep`, or change the strategy]",
        ),
        (
            "release: {strategy: canary}",
            "release: a canary release needs `steps` [write for example `steps: [5, 25, 50]`]",
        ),
        (
            "release: {strategy: canary, steps: [50, 5]}",
            "release.steps[1].weight: the share falls from 50 to 5 per cent [each step is greater than the one before]",
        ),
        // Number, place and output of tasks.
        (
            "autoscale: {min: 5, max: 3, metrics: {cpu: 60}}",
            "autoscale.min: `min` is 5 and `max` is 3 [`min` must not be greater than `max`]",
        ),
        (
            "autoscale: {metrics: {memory: 120}}",
            "autoscale.metrics.memory: `memory` is in per cent, 1 to 100, not 120 [write for example `60`]",
        ),
        (
            "autoscale: {metrics: {cpu: {above: 30, below: 60}}}",
            "autoscale.metrics.cpu: `below` (60) must be smaller than `above` (30) [exchange the two, or leave one of them out]",
        ),
        (
            "autoscale: {metrics: {cpu: {target: 30, above: 60}}}",
            "autoscale.metrics.cpu: `target` says where to be; `above` and `below` say when to move [keep `target`, or the other two]",
        ),
        (
            "logs: {Access: }",
            "logs.Access: `Access` is not a name for a log stream [use at most 63 lower-case letters, digits and `-`]",
        ),
        (
            "logs: {a: {from: \"/var/*/x\"}}",
            "logs.a.from: `/var/*/x`: `*` may stand in the name of the file, not in its folders [write `from: stdout` or `from: /var/log/app/*.log`]",
        ),
        (
            "logs: {a: {keep: 1m}}",
            "logs.a.keep: logs are kept 1 hour to 3650 days, not `1m` [write for example `keep: 30d`]",
        ),
        (
            "affinity: [{near: web}]",
            "affinity[0].near: a service is always near itself [name another service, or write `apart`]",
        ),
        (
            "affinity: [{near: a, apart: b}]",
            "affinity[0]: an affinity is one of `near` and `apart`, not both [make them two items of the list]",
        ),
        (
            "availability: {at_least: 3}",
            "availability.at_least: 1 tasks cannot be in 3 places [write `deploy: {replicas: 3}`, or `soft: true`]",
        ),
        (
            "availability: {at_least: 2, over: zone, soft: true}",
            "availability.over: `zone` is not a label of nodes [write `node.labels.zone`]",
        ),
        (
            "pool: \"a b\"",
            "pool: `a b` is not a name for a pool [use at most 63 letters, digits, `-`, `_` and `.`]",
        ),
        (
            "tolerations: [\"gpu:NoSchedule\"]",
            "tolerations: `gpu:NoSchedule` names no taint [write `key` for any value of the taint, or `key=value`]",
        ),
    ];
    for (line, wanted) in wrong {
        assert_eq!(said(&web(&format!("x-wharf: {{{line}}}"))), wanted, "{line}");
    }
}

#[test]
fn a_route_to_a_port_that_the_service_does_not_expose_is_remarked_upon() {
    let folder = web("expose: [8080]\nx-wharf: {routes: [{port: 80}]}");
    let wanted = "routes[0].port: the service does not say that it listens on port 80 [it has 8080; if 80 is right, write `expose: [80]`]";
    assert_eq!(said(&folder), wanted);
    assert_eq!(said(&web("ports: ['8000:80']\nx-wharf: {routes: [{host: a.example}]}")), "");
}

#[test]
fn a_file_has_settings_of_its_own() {
    let folder = Folder::with("x-wharf: {prioritty: high}\nservices: {web: {image: i}}");
    let wanted =
        "x-wharf.prioritty: unknown key `prioritty` in `x-wharf` of a file [did you mean `priority`?]";
    assert_eq!(said(&folder), wanted);
    let rolling = Folder::with("x-wharf: {release: {strategy: rolling}}\nservices: {web: {image: i}}");
    assert_eq!(rolling.complaints(), "");
    assert!(rolling.app().policy.release.is_some());
}

#[test]
fn a_service_outside_the_cluster_has_a_host_and_no_container() {
    let folder = Folder::with(
        r#"
services:
  web: {image: i, depends_on: {db: {condition: service_started}}, links: ["cache:redis"]}
  db:
    x-wharf: {external: {host: Db.example.com, ports: [5432, "6432"]}}
    networks: {default: {aliases: [database]}}
  cache: {external: {host: "${CACHE}", ports: [6379]}}
"#,
    )
    .variable("CACHE", "10.0.0.7");
    let app = folder.app();
    assert_eq!(folder.complaints(), "");
    let name = |text: &str| text.parse::<ServiceName>().unwrap();
    assert_eq!(app.services.keys().collect::<Vec<_>>(), [&name("web")]);
    assert!(app.services[&name("web")].depends_on.is_empty(), "what is outside is always there");
    let (db, cache) = (&app.externals[&name("db")], &app.externals[&name("cache")]);
    assert_eq!(
        (db.host.to_string().as_str(), db.ports.as_slice()),
        ("db.example.com", [5432, 6432].as_slice())
    );
    let aliases = |external: &wharf_model::ExternalService| {
        external.networks.values().flat_map(|attachment| attachment.aliases.clone()).collect::<Vec<_>>()
    };
    assert_eq!(aliases(db), ["database"]);
    assert_eq!((cache.host.to_string().as_str(), aliases(cache)), ("10.0.0.7", vec!["redis".to_owned()]));
    assert!(app.networks.contains_key(&"default".parse().unwrap()));
}

#[test]
fn what_makes_no_sense_outside_the_cluster_is_refused() {
    let outside = |lines: &str, db: &str| {
        said(&Folder::with(&format!("services:\n  web: {{image: i, {lines}}}\n  db: {{{db}}}\n")))
    };
    let host = "x-wharf: {external: {host: 10.0.0.7}}";
    assert_eq!(
        outside("init: true", &format!("image: mysql, {host}")),
        "services.db.image: `image` has no effect on a service outside the cluster, which has no container [remove `image`, or `external`]"
    );
    assert_eq!(
        outside("init: true", "x-wharf: {external: {host: \"mysql://10.0.0.7:3306\"}}"),
        "services.db.external.host: `mysql://10.0.0.7:3306` is neither an IP address nor a domain name [write the host alone: `host: 10.0.0.7`; ports stand in `ports`]"
    );
    assert_eq!(
        outside("init: true", "external: {host: a.example}, x-wharf: {external: {host: b.example}}"),
        "services.db.external: `external` and `x-wharf.external` say the same [keep `x-wharf: {external: …}`]"
    );
    assert_eq!(
        outside("network_mode: 'service:db'", host),
        "services.web.network_mode: `db` runs outside the cluster and has no network to share [remove `network_mode`]"
    );
    let completed = "depends_on: {db: {condition: service_completed_successfully}}";
    assert_eq!(
        outside(completed, host),
        "services.web.depends_on.db: `db` runs outside the cluster and never completes [write `condition: service_started`]"
    );
}

#[test]
fn a_job_is_checked_as_a_service_is_and_runs_with_a_later_version() {
    let job = |lines: &str| {
        Folder::with(&format!("services: {{web: {{image: i}}}}\njobs:\n  nightly: {{image: i, {lines}}}\n"))
    };
    assert_eq!(
        job("triggers: {schedule: \"30 4 * * *\"}").load().diagnostics[0].to_string(),
        "\
error: `jobs` is not carried out by this version
 --> /app/compose.yaml:2:1 (jobs)
  |
2 | jobs:
  | ^^^^
  = help: make it a service with `restart: \"no\"`: it runs to its end once"
    );
    let wrong = [
        (
            "restart: always",
            "jobs.nightly.restart: `restart` has no meaning in a job, which runs once and ends [remove it, or make it a service under `services`]",
        ),
        ("comand: a", "jobs.nightly.comand: unknown key `comand` in a job [did you mean `command`?]"),
        (
            "triggers: {schedule: \"61 * * * *\"}",
            "jobs.nightly.triggers.schedule: `61 * * * *` is not a schedule: the minute is 0 to 59, not `61` [write minute, hour, day of month, month and day of week: `30 4 * * 1-5`, or `@daily`]",
        ),
        (
            "triggers: {manual: false}",
            "jobs.nightly.triggers: nothing ever starts this job [give it a `schedule`, or remove `manual: false`]",
        ),
        ("depends_on: [wed]", "jobs.nightly.depends_on.wed: there is no service `wed` [did you mean `web`?]"),
    ];
    for (lines, wanted) in wrong {
        assert_eq!(said(&job(lines)), wanted, "{lines}");
    }
    let needs_one = Folder::with("services: {web: {image: i}}\njobs: {web: {image: i}}");
    assert_eq!(said(&needs_one), "jobs.web: `web` is a job and a service [give one of them another name]");
}
