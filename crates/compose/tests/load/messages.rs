//! What people read when a file is wrong. Reviewed like code.

use crate::folder::{Folder, web};

#[test]
fn an_unknown_key_names_the_closest_known_one() {
    let folder = Folder::with(
        "services:\n  web:\n    imgae: nginx\n    health-check: {}\n    replicas: 2\n    zzz: 1\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the service `web` has neither an image nor a build
     --> /app/compose.yaml:2:3 (services.web)
      |
    2 |   web:
      |   ^^^
      = help: write `image: name:tag`
    error: unknown key `imgae` in a service
     --> /app/compose.yaml:3:5 (services.web.imgae)
      |
    3 |     imgae: nginx
      |     ^^^^^
      = help: did you mean `image`?
    error: unknown key `health-check` in a service
     --> /app/compose.yaml:4:5 (services.web.health-check)
      |
    4 |     health-check: {}
      |     ^^^^^^^^^^^^
      = help: did you mean `healthcheck`?
    error: unknown key `replicas` in a service
     --> /app/compose.yaml:5:5 (services.web.replicas)
      |
    5 |     replicas: 2
      |     ^^^^^^^^
      = help: `replicas` belongs under `deploy`
    error: unknown key `zzz` in a service
     --> /app/compose.yaml:6:5 (services.web.zzz)
      |
    6 |     zzz: 1
      |     ^^^
      = help: remove it; what is a note to yourself is called `x-zzz`
    ");
}

#[test]
fn a_file_of_the_first_format_is_recognised() {
    let folder = Folder::with("web:\n  image: nginx\nvolume:\n  data:\nx-free: [1, 2]\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: unknown key `web` in a Compose file
     --> /app/compose.yaml:1:1 (web)
      |
    1 | web:
      | ^^^
      = help: services stand under `services`; what only anchors are for is called `x-web`
    error: unknown key `volume` in a Compose file
     --> /app/compose.yaml:3:1 (volume)
      |
    3 | volume:
      | ^^^^^^
      = help: did you mean `volumes`?
    ");
}

#[test]
fn a_value_of_the_wrong_kind_says_what_to_write() {
    let folder = web(
        "ports: 8080:80\ncommand: 5\nenvironment:\n  - A: 1\nhealthcheck:\n  interval: 30\n  test: curl -f http://localhost\nprivileged: maybe\ntty: yes\nvolumes:\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r#"
    error: `ports` must be a list, but it is a string
     --> /app/compose.yaml:4:12 (services.web.ports)
      |
    4 |     ports: 8080:80
      |            ^^^^^^^
      = help: write it as a list: `- 8080:80`
    error: `command` must be a string or a list, but it is a number
     --> /app/compose.yaml:5:14 (services.web.command)
      |
    5 |     command: 5
      |              ^
      = help: put it in quotes: "5"
    error: item 1 of `environment` must be a string, but it is a mapping
     --> /app/compose.yaml:7:9 (services.web.environment[0])
      |
    7 |       - A: 1
      |         ^
      = help: a colon followed by a space makes a mapping; for text write "A: 1"
    error: `interval` must be a duration such as `30s`, but it is a number
     --> /app/compose.yaml:9:17 (services.web.healthcheck.interval)
      |
    9 |       interval: 30
      |                 ^^
      = help: give it a unit: `30s`
    error: `privileged` must be `true` or `false`, not `maybe`
      --> /app/compose.yaml:11:17 (services.web.privileged)
       |
    11 |     privileged: maybe
       |                 ^^^^^
       = help: write one of the two
    warning: `yes` is no boolean in YAML 1.2; it is taken as `true`
      --> /app/compose.yaml:12:10 (services.web.tty)
       |
    12 |     tty: yes
       |          ^^^
       = help: write `true`
    error: `volumes` must be a list, but it is empty
      --> /app/compose.yaml:13:5 (services.web.volumes)
       |
    13 |     volumes:
       |     ^^^^^^^
       = help: remove the key, or give it a value
    "#);
}

#[test]
fn ports_are_checked() {
    let folder = web(
        "ports:\n  - 99999:80\n  - 80:http\n  - 8000-8005:80-82\n  - localhost:80:80\n  - 80/icmp\n  - {published: 80}\n  - 8080-8090:80\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r#"
    error: the host port 99999 in `99999:80` is out of range
     --> /app/compose.yaml:5:9 (services.web.ports[0])
      |
    5 |       - 99999:80
      |         ^^^^^^^^
      = help: ports are 1 to 65535
    error: `http` in `80:http` is not a port of the container
     --> /app/compose.yaml:6:9 (services.web.ports[1])
      |
    6 |       - 80:http
      |         ^^^^^^^
      = help: write `published:target`, such as "8080:80"
    error: `8000-8005:80-82` maps 6 ports of the host to 3 of the container
     --> /app/compose.yaml:7:9 (services.web.ports[2])
      |
    7 |       - 8000-8005:80-82
      |         ^^^^^^^^^^^^^^^
      = help: give both ranges the same length
    error: `localhost` in `localhost:80:80` is not an IP address
     --> /app/compose.yaml:8:9 (services.web.ports[3])
      |
    8 |       - localhost:80:80
      |         ^^^^^^^^^^^^^^^
      = help: write `published:target`, such as "8080:80"
    error: `icmp` is not a protocol of a port
     --> /app/compose.yaml:9:9 (services.web.ports[4])
      |
    9 |       - 80/icmp
      |         ^^^^^^^
      = help: write `/tcp` or `/udp`
    error: a port needs `target`, the port in the container
      --> /app/compose.yaml:10:9 (services.web.ports[5])
       |
    10 |       - {published: 80}
       |         ^
       = help: name it: `target: 80`
    "#);
}

#[test]
fn a_port_published_twice_names_both_services() {
    let folder = Folder::with(
        "services:\n  a:\n    image: i\n    ports: ['80:80']\n  b:\n    image: i\n    ports:\n      - '80:8080'\n      - '80:80/udp'\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the port 80/tcp is published by `a` as well
     --> /app/compose.yaml:8:9 (services.b.ports)
      |
    8 |       - '80:8080'
      |         ^^^^^^^^^
     ::: /app/compose.yaml:4:13: published by `a` here
      |
    4 |     ports: ['80:80']
      |             ^^^^^^^
      = help: publish one of them on another port
    ");
}

#[test]
fn what_is_not_defined_is_named_with_its_neighbour() {
    let folder = web(
        "depends_on: [databse]\nnetworks: [front]\nvolumes: ['dat:/data', 'cache:/cache']\nconfigs: [conf]\nsecrets: [pass]",
    );
    let folder = folder.clone().and(
        "more.yaml",
        "services:\n  database: {image: i}\nvolumes: {data: }\nsecrets: {pasw: {content: x}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: there is no service `databse`
     --> /app/compose.yaml:4:18 (services.web.depends_on.databse)
      |
    4 |     depends_on: [databse]
      |                  ^^^^^^^
      = help: did you mean `database`?
    error: the network `front` is not defined
     --> /app/compose.yaml:5:16 (services.web.networks.front)
      |
    5 |     networks: [front]
      |                ^^^^^
      = help: declare it at the top level: `networks: {front: }`
    error: the volume `dat` is not defined
     --> /app/compose.yaml:6:15 (services.web.volumes[0])
      |
    6 |     volumes: ['dat:/data', 'cache:/cache']
      |               ^^^^^^^^^^^
      = help: did you mean `data`?
    error: the volume `cache` is not defined
     --> /app/compose.yaml:6:28 (services.web.volumes[1])
      |
    6 |     volumes: ['dat:/data', 'cache:/cache']
      |                            ^^^^^^^^^^^^^^
      = help: declare it at the top level: `volumes: {cache: }`
    error: the config `conf` is not defined
     --> /app/compose.yaml:7:15 (services.web.configs[0])
      |
    7 |     configs: [conf]
      |               ^^^^
      = help: declare it at the top level, under `configs`
    error: the secret `pass` is not defined
     --> /app/compose.yaml:8:15 (services.web.secrets[0])
      |
    8 |     secrets: [pass]
      |               ^^^^
      = help: did you mean `pasw`?
    ");
}

#[test]
fn an_image_that_no_engine_can_read_is_refused_here() {
    let image = |image: &str| Folder::with(&format!("services: {{a: {{image: '{image}'}}}}")).complaints();
    for (wrong, advice) in [
        ("my image", "write `name:tag`"),
        ("x:y:z", "write `name:tag`"),
        ("x:", "write `name:tag`"),
        ("a//b", "write `name:tag`"),
        ("https://reg.example/x:1", "without the protocol: `reg.example/x:1`"),
        ("Web:V1", "in lower case: `web:V1`"),
        ("reg.example/Team/web", "in lower case: `reg.example/team/web`"),
    ] {
        let said = image(wrong);
        assert!(said.contains("is not an image reference") && said.contains(advice), "{wrong}: {said}");
    }
    let digest = "@sha256:9d7e6dfab0389d7e6dfab0389d7e6dfab0389d7e6dfab0389d7e6dfab0389d7e";
    for right in
        ["x", "x:V1_a.b-c", "a_b/c--d:1", "localhost/x", "reg:5000/team/x:1", "[::1]:5000/x", "Reg.Example/x"]
    {
        assert_eq!(image(right), "", "{right}");
        assert_eq!(image(&format!("{right}{digest}")), "", "{right}");
    }
}

#[test]
fn a_volume_named_by_one_letter_is_not_taken_for_a_path() {
    let folder = web("volumes: ['v:/data', 'rel']");
    let said = folder.complaints();
    let advice = "one letter before `:` is a Windows drive: name the volume `v` in full, `{type: volume, source: v, target: /data}`";
    assert!(said.contains(advice) && said.contains("help: write `/rel`"), "{said}");
    assert!(!said.contains("write `/v:"), "{said}");
}

#[test]
fn circles_are_shown() {
    let folder = Folder::with(
        "services:\n  a: {image: i, depends_on: [b]}\n  b: {image: i, depends_on: [c]}\n  c: {image: i, network_mode: 'service:a'}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: services depend on each other: a -> b -> c -> a
     --> /app/compose.yaml:4:31 (services.c.depends_on)
      |
    4 |   c: {image: i, network_mode: 'service:a'}
      |                               ^^^^^^^^^^^
      = help: leave out one of these dependencies
    ");
}

#[test]
fn a_virtual_address_needs_a_network() {
    let folder = web("network_mode: host\ndeploy: {endpoint_mode: vip}\n");
    insta::assert_snapshot!(folder.complaints(), @"
    error: a service without networks has no virtual address
     --> /app/compose.yaml:5:29 (services.web.deploy.endpoint_mode)
      |
    5 |     deploy: {endpoint_mode: vip}
      |                             ^^^
      = help: remove `endpoint_mode`, or `network_mode`
    ");
}

#[test]
fn what_a_cluster_cannot_do_has_a_reason_and_a_way_out() {
    let folder = web(
        "ipc: container:x\nvolumes_from: [container:x]\nnetwork_mode: container:x\npre_start: [{command: x, per_replica: true}]\ndeploy:\n  endpoint_mode: lvs\n  mode: replicated-job\npid: container:x\nuts: container:x\nexternal_links: [x]\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r#"
    error: a container of one node cannot be named from a cluster
     --> /app/compose.yaml:4:10 (services.web.ipc)
      |
    4 |     ipc: container:x
      |          ^^^^^^^^^^^
      = help: name a service of this app: `ipc: service:NAME`
    error: a container of one node cannot be named from a cluster
     --> /app/compose.yaml:5:20 (services.web.volumes_from[0])
      |
    5 |     volumes_from: [container:x]
      |                    ^^^^^^^^^^^
      = help: name a service of this app: `volumes_from: [NAME]`
    error: a container of one node cannot be named from a cluster
     --> /app/compose.yaml:6:19 (services.web.network_mode)
      |
    6 |     network_mode: container:x
      |                   ^^^^^^^^^^^
      = help: write `network_mode: service:NAME`
    error: a `pre_start` hook runs once for the service, not for each of its tasks
     --> /app/compose.yaml:7:30 (services.web.pre_start[0].per_replica)
      |
    7 |     pre_start: [{command: x, per_replica: true}]
      |                              ^^^^^^^^^^^
      = help: do it in the image's entrypoint, or with `post_start`
    error: `lvs` is not an endpoint mode
     --> /app/compose.yaml:9:22 (services.web.deploy.endpoint_mode)
      |
    9 |       endpoint_mode: lvs
      |                      ^^^
      = help: write `dnsrr` or `vip`
    error: the mode `replicated-job` is not carried out by this version: jobs run with a later one
      --> /app/compose.yaml:10:13 (services.web.deploy.mode)
       |
    10 |       mode: replicated-job
       |             ^^^^^^^^^^^^^^
       = help: write `restart: "no"`: the service runs to its end once
    error: a container of one node cannot be named from a cluster
      --> /app/compose.yaml:11:10 (services.web.pid)
       |
    11 |     pid: container:x
       |          ^^^^^^^^^^^
       = help: name a service of this app: `pid: service:NAME`
    error: `uts` cannot be that of another container
      --> /app/compose.yaml:12:10 (services.web.uts)
       |
    12 |     uts: container:x
       |          ^^^^^^^^^^^
       = help: write `uts: host`, or remove it
    error: `external_links` names containers of one machine
      --> /app/compose.yaml:13:5 (services.web.external_links)
       |
    13 |     external_links: [x]
       |     ^^^^^^^^^^^^^^
       = help: share an external network with the other app
    "#);
}

#[test]
fn unsupported_keys_can_be_allowed() {
    let mut folder = web("external_links: [x]");
    folder.request.allow_unsupported = true;
    insta::assert_snapshot!(folder.complaints(), @r"
    warning: `external_links` names containers of one machine; ignored
     --> /app/compose.yaml:4:5 (services.web.external_links)
      |
    4 |     external_links: [x]
      |     ^^^^^^^^^^^^^^
      = help: share an external network with the other app
    ");
    assert!(folder.load().app.is_some());
    folder.request.allow_unsupported = false;
    assert!(folder.load().app.is_none());
}

#[test]
fn a_service_needs_an_image_or_a_build() {
    let folder = Folder::with("services:\n  a: {build: .}\n  c: {restart: always}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the service `c` has neither an image nor a build
     --> /app/compose.yaml:3:3 (services.c)
      |
    3 |   c: {restart: always}
      |   ^
      = help: write `image: name:tag`
    ");
}

#[test]
fn quantities_are_checked() {
    let folder = web(
        "mem_limit: 512q\ncpus: -1\nstop_grace_period: 1min\nshm_size: lots\noom_score_adj: 5000\nulimits: {nofile: {soft: 5, hard: 4}, nofiles: 3}\ndeploy:\n  replicas: -1\n  placement:\n    constraints: ['node.label.disk == ssd', 'node.role = worker']\nrestart: unless_stopped\nmem_reservation: 1g\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `512q` is not a size
     --> /app/compose.yaml:4:16 (services.web.mem_limit)
      |
    4 |     mem_limit: 512q
      |                ^^^^
      = help: write a number with a unit, such as `512m` or `2g` (b, k, m, g, t)
    error: `-1` is not a number of processors
     --> /app/compose.yaml:5:11 (services.web.cpus)
      |
    5 |     cpus: -1
      |           ^^
      = help: write for example `0.5` or `2`
    error: `1min` is not a duration
     --> /app/compose.yaml:6:24 (services.web.stop_grace_period)
      |
    6 |     stop_grace_period: 1min
      |                        ^^^^
      = help: write numbers with units, such as `30s` or `1m30s` (us, ms, s, m, h, d, w)
    error: `lots` is not a size
     --> /app/compose.yaml:7:15 (services.web.shm_size)
      |
    7 |     shm_size: lots
      |               ^^^^
      = help: write a number with a unit, such as `512m` or `2g` (b, k, m, g, t)
    error: `oom_score_adj` must be -1000 to 1000, not 5000
     --> /app/compose.yaml:8:20 (services.web.oom_score_adj)
      |
    8 |     oom_score_adj: 5000
      |                    ^^^^
      = help: write for example `1000`
    error: the soft limit of `nofile` is above its hard limit
     --> /app/compose.yaml:9:15 (services.web.ulimits.nofile)
      |
    9 |     ulimits: {nofile: {soft: 5, hard: 4}, nofiles: 3}
      |               ^^^^^^
      = help: lower the soft one, or raise the hard one
    error: `nofiles` is not a ulimit
     --> /app/compose.yaml:9:43 (services.web.ulimits.nofiles)
      |
    9 |     ulimits: {nofile: {soft: 5, hard: 4}, nofiles: 3}
      |                                           ^^^^^^^
      = help: did you mean `nofile`?
    error: `replicas` must be 0 to 10000, not -1
      --> /app/compose.yaml:11:17 (services.web.deploy.replicas)
       |
    11 |       replicas: -1
       |                 ^^
       = help: write for example `0`
    error: `node.label.disk` is not something nodes have
      --> /app/compose.yaml:13:23 (services.web.deploy.placement.constraints[0])
       |
    13 |         constraints: ['node.label.disk == ssd', 'node.role = worker']
       |                       ^^^^^^^^^^^^^^^^^^^^^^^^
       = help: constraints are about node.id, node.hostname, node.role, node.platform.os, node.platform.arch, node.labels.NAME, engine.labels.NAME
    error: the constraint `node.role = worker` compares nothing with `==` or `!=`
      --> /app/compose.yaml:13:49 (services.web.deploy.placement.constraints[1])
       |
    13 |         constraints: ['node.label.disk == ssd', 'node.role = worker']
       |                                                 ^^^^^^^^^^^^^^^^^^^^
       = help: write for example `node.labels.disk == ssd`
    error: `unless_stopped` is not a restart policy
      --> /app/compose.yaml:14:14 (services.web.restart)
       |
    14 |     restart: unless_stopped
       |              ^^^^^^^^^^^^^^
       = help: did you mean `unless-stopped`?
    ");
}

#[test]
fn keys_that_say_the_same_must_agree() {
    let folder = web(
        "mem_limit: 1g\nscale: 2\nnetwork_mode: host\nnetworks: [default]\nhealthcheck: {disable: true, test: x}\ndeploy:\n  replicas: 3\n  resources: {limits: {memory: 2g}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `mem_limit` says 1 GiB and `deploy.resources.limits.memory` says 2 GiB
     --> /app/compose.yaml:4:16 (services.web.mem_limit)
      |
    4 |     mem_limit: 1g
      |                ^^
      = help: keep one of them
    error: `scale` says 2 and `deploy.replicas` says 3
      --> /app/compose.yaml:5:12 (services.web.scale)
       |
     5 |     scale: 2
       |            ^
      ::: /app/compose.yaml:10:17: `deploy.replicas` is here
       |
    10 |       replicas: 3
       |                 ^
       = help: keep one of them
    error: `network_mode` and `networks` exclude each other
     --> /app/compose.yaml:6:5 (services.web.network_mode)
      |
    6 |     network_mode: host
      |     ^^^^^^^^^^^^
     ::: /app/compose.yaml:7:5: `networks` is here
      |
    7 |     networks: [default]
      |     ^^^^^^^^
      = help: keep one of them
    error: `disable: true` and `test` exclude each other
     --> /app/compose.yaml:8:19 (services.web.healthcheck.disable)
      |
    8 |     healthcheck: {disable: true, test: x}
      |                   ^^^^^^^
      = help: keep one of them
    ");
}

#[test]
fn a_probe_is_checked() {
    let folder =
        web("x-wharf:\n  probes: {}\n  probe:\n    http: {port: 70000}\n    tcp: {}\n    interval: 0s\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: unknown key `probes` in `x-wharf`
     --> /app/compose.yaml:5:7 (services.web.x-wharf.probes)
      |
    5 |       probes: {}
      |       ^^^^^^
      = help: did you mean `probe`?
    error: `port` must be 1 to 65535, not 70000
     --> /app/compose.yaml:7:22 (services.web.x-wharf.probe.http.port)
      |
    7 |         http: {port: 70000}
      |                      ^^^^^
      = help: write for example `65535`
    error: a TCP probe needs `port`
     --> /app/compose.yaml:8:9 (services.web.x-wharf.probe.tcp)
      |
    8 |         tcp: {}
      |         ^^^
      = help: add `port: …`
    error: a probe is one of `http` and `tcp`, not both
     --> /app/compose.yaml:8:9 (services.web.x-wharf.probe)
      |
    8 |         tcp: {}
      |         ^^^
     ::: /app/compose.yaml:7:9: the other one
      |
    7 |         http: {port: 70000}
      |         ^^^^
      = help: keep one of them
    error: `interval` must be longer than nothing
     --> /app/compose.yaml:9:19 (services.web.x-wharf.probe.interval)
      |
    9 |         interval: 0s
      |                   ^^
      = help: write for example `10s`
    ");
    let folder = Folder::with(
        "volumes: {n: {x-wharf: {}}}\nservices: {web: {image: i, x-wharf: {probe: {retries: 0}}}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `x-wharf` has no meaning in a volume
     --> /app/compose.yaml:1:15 (volumes.n.x-wharf)
      |
    1 | volumes: {n: {x-wharf: {}}}
      |               ^^^^^^^
      = help: it belongs into a service, into a network, or to the top level of a file
    error: a probe needs `http`, `tcp`, `grpc` or `exec`
     --> /app/compose.yaml:2:38 (services.web.x-wharf.probe)
      |
    2 | services: {web: {image: i, x-wharf: {probe: {retries: 0}}}}
      |                                      ^^^^^
      = help: write `probe: {http: {port: 80, path: /}}`
    error: `retries` must be 1 to 1000, not 0
     --> /app/compose.yaml:2:55 (services.web.x-wharf.probe.retries)
      |
    2 | services: {web: {image: i, x-wharf: {probe: {retries: 0}}}}
      |                                                       ^
      = help: write for example `1`
    ");
}

#[test]
fn what_is_no_compose_file_is_told_apart() {
    insta::assert_snapshot!(Folder::with("- a\n- b\n").complaints(), @r"
    error: a Compose file must be a mapping with keys such as `services`, but this is a list
     --> /app/compose.yaml:1:1
      |
    1 | - a
      | ^
      = help: write `services:` at its top, and indent each service below
    ");
    insta::assert_snapshot!(Folder::with("").complaints(), @r"
    error: `/app/compose.yaml` defines nothing
      = help: a Compose file has at least one service under `services`
    ");
    insta::assert_snapshot!(Folder::with("services:\n").complaints(), @r"
    error: `services` must be a mapping, but it is empty
     --> /app/compose.yaml:1:1 (services)
      |
    1 | services:
      | ^^^^^^^^
      = help: remove the key, or give it a value
    ");
    insta::assert_snapshot!(Folder::with("services:\n  web:\n    image: a: b\n").complaints(), @r"
    error: not YAML: a value cannot have a `: ` in it
     --> /app/compose.yaml:3:13
      |
    3 |     image: a: b
      |             ^
      = help: put text that contains `: ` in quotes
    ");
    insta::assert_snapshot!(Folder::with("services:\n  web:\n  \timage: a\n").complaints(), @r"
    error: not YAML: a tab cannot indent
     --> /app/compose.yaml:3:3
      |
    3 |    image: a
      |   ^
      = help: indent with spaces
    ");
    insta::assert_snapshot!(Folder::with("services:\n  web: {image: a\n").complaints(), @r"
    error: not YAML: a `{` is not closed, or a comma is missing
     --> /app/compose.yaml:2:16
      |
    2 |   web: {image: a
      |                ^
      = help: separate fields by `, ` and close with `}`; text that contains `{`, `}` or `,` must be in quotes
    ");
    insta::assert_snapshot!(Folder::with("services:\n  web:\n    image: *base\n").complaints(), @r"
    error: not YAML: there is no anchor `base` above this line
     --> /app/compose.yaml:3:12
      |
    3 |     image: *base
      |            ^
      = help: define it with `&base` above its use, in the same file; text that begins with `*` must be in quotes
    ");
    insta::assert_snapshot!(Folder::with("services:\n  80: {image: a}\n").complaints(), @r#"
    error: a key must be a string; `80` is a number
     --> /app/compose.yaml:2:3 (services)
      |
    2 |   80: {image: a}
      |   ^^
      = help: put it in quotes: "80"
    "#);
    insta::assert_snapshot!(Folder::with("services: !rest {}\n").complaints(), @r"
    error: the tag `!rest` means nothing here
     --> /app/compose.yaml:1:11 (services)
      |
    1 | services: !rest {}
      |           ^^^^^^^
      = help: did you mean `!reset`?
    ");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let mut folder =
        web("env_file: web.env\nconfigs: [c]").and("more.yaml", "configs: {c: {file: ./c.txt}}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: there is no file `/app/web.env`
     --> /app/compose.yaml:4:15 (services.web.env_file[0])
      |
    4 |     env_file: web.env
      |               ^^^^^^^
      = help: check the path and where it begins, or make the file
    error: there is no file `/app/c.txt`
     --> /app/more.yaml:1:21 (configs.c.file)
      |
    1 | configs: {c: {file: ./c.txt}}
      |                     ^^^^^^^
      = help: check the path: it begins at the folder of the Compose file
    ");
    folder.request.files = vec!["/app/other.yaml".into()];
    insta::assert_snapshot!(folder.complaints(), @r"
    error: there is no file `/app/other.yaml`
      = help: check the path and where it begins, or make the file
    ");
}

#[test]
fn obsolete_forms_load_with_a_warning() {
    let folder = Folder::with(
        "version: '3.8'\nservices:\n  web:\n    image: i\n    init: yes\n    volumes: ['./src:/src:cached']\n    command: a && b\nnetworks:\n  default: {external: {name: shared}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r#"
    warning: `version` is obsolete and has no effect
     --> /app/compose.yaml:1:1 (version)
      |
    1 | version: '3.8'
      | ^^^^^^^
      = help: remove it
    warning: `yes` is no boolean in YAML 1.2; it is taken as `true`
     --> /app/compose.yaml:5:11 (services.web.init)
      |
    5 |     init: yes
      |           ^^^
      = help: write `true`
    warning: the option `cached` has no effect on Linux
     --> /app/compose.yaml:6:15 (services.web.volumes[0])
      |
    6 |     volumes: ['./src:/src:cached']
      |               ^^^^^^^^^^^^^^^^^^^
      = help: leave it out
    warning: `/app/src` is taken from the node that runs the task
     --> /app/compose.yaml:6:15 (services.web.volumes[0])
      |
    6 |     volumes: ['./src:/src:cached']
      |               ^^^^^^^^^^^^^^^^^^^
      = help: put files into `configs`, data into a named volume, or choose the node with `deploy.placement`
    warning: `&&` reaches the program as an argument: no shell reads `command`
     --> /app/compose.yaml:7:14 (services.web.command)
      |
    7 |     command: a && b
      |              ^^^^^^
      = help: for a shell write `["sh", "-c", "…"]`
    warning: `external: {name: …}` is an old form
     --> /app/compose.yaml:9:13 (networks.default.external)
      |
    9 |   default: {external: {name: shared}}
      |             ^^^^^^^^
      = help: write `external: true` and `name: …` beside it
    "#);
    assert!(folder.load().app.is_some());
}

#[test]
fn profiles_that_are_needed_are_named() {
    let folder =
        Folder::with("services:\n  web: {image: i, depends_on: [db]}\n  db: {image: i, profiles: [data]}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the service `db` is needed, but its profile is not active
     --> /app/compose.yaml:2:32 (services.web.depends_on.db)
      |
    2 |   web: {image: i, depends_on: [db]}
      |                                ^^
      = help: activate it with `--profile data`, or say `required: false`
    ");
    assert_eq!(folder.profile("data").app().services.len(), 2);
}

#[test]
fn every_problem_is_told_at_once() {
    let folder = Folder::with(
        "services:\n  a: {imag: i}\n  b: {image: i, ports: [0]}\n  c: {image: i, depends_on: [d]}\n",
    );
    let loaded = folder.load();
    let keys: Vec<&str> = loaded.diagnostics.iter().map(|diagnostic| diagnostic.key.as_str()).collect();
    assert_eq!(
        keys,
        ["services.a", "services.a.imag", "services.b.ports[0].target", "services.c.depends_on.d"]
    );
}

#[test]
fn what_services_share_is_complained_about_once() {
    let folder = Folder::with(
        "x-common: &common\n  volumes_from: [db]\nservices:\n  a: {<<: *common, image: i}\n  b: {<<: *common, image: i}\n",
    );
    assert_eq!(folder.load().diagnostics.len(), 1);
}

#[test]
fn a_placeholder_that_stands_for_nothing_is_named_with_its_place() {
    let folder = web(
        "environment:\n  A: '{{.Node.Hostnme}}'\n  B: '{{.Name}} {{json .}}'\nhostname: 'web-{{.Task.slot}}'\nvolumes:\n- '/srv/{{.Task.Slot}}:/data/{{.Service.Labels.a.b}}'\n",
    );
    let complaints = folder.complaints();
    assert_eq!(complaints.matches("error: ").count(), 3, "{complaints}");
    for part in [
        "`{{.Node.Hostnme}}`: there is no `.Node.Hostnme`",
        "(services.web.environment.A)",
        "`{{.Task.slot}}`: there is no `.Task.slot`",
        "did you mean `.Task.Slot`?",
        "`{{.Service.Labels.a.b}}`: there is no `.Service.Labels.a.b`",
        "write `{{index .Service.Labels \"the.key\"}}`",
    ] {
        assert!(complaints.contains(part), "{part}: {complaints}");
    }
}
