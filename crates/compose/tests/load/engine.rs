//! What is handed to the engine beyond a plain container: hooks, namespaces of neighbours, mounts, endpoints, devices.

use crate::folder::{Folder, web};

#[test]
fn hooks_reach_the_model_with_their_environment() {
    let folder = web(
        "post_start:\n  - command: chown -R app /data\n    user: root\n    privileged: true\n    working_dir: /data\n    environment: {LEVEL: 3, TOKEN: , UNSET: }\npre_stop:\n  - command: [sh, -c, drain]\n    environment: [A=b, TOKEN, UNSET]\n",
    )
    .variable("TOKEN", "t");
    assert_eq!(folder.complaints(), "");
    let container = folder.web().container;
    insta::assert_json_snapshot!(container, @r#"
    {
      "post_start": [
        {
          "command": [
            "chown",
            "-R",
            "app",
            "/data"
          ],
          "user": "root",
          "privileged": true,
          "working_dir": "/data",
          "environment": {
            "LEVEL": "3",
            "TOKEN": "t"
          }
        }
      ],
      "pre_stop": [
        {
          "command": [
            "sh",
            "-c",
            "drain"
          ],
          "environment": {
            "A": "b",
            "TOKEN": "t"
          }
        }
      ]
    }
    "#);
}

#[test]
fn a_hook_without_a_command_is_refused() {
    let complaints = web("post_start: [{command: []}]").complaints();
    assert!(complaints.contains("error: a hook needs a command"), "{complaints}");
}

/// A file that people use at their desks runs here unchanged.
#[test]
fn what_is_for_another_program_is_only_remarked_upon() {
    let folder = web("attach: false\ndevelop: {watch: [{path: ., action: rebuild}]}");
    insta::assert_snapshot!(folder.complaints(), @r"
    warning: `attach` is about the terminal of `docker compose up`; it has no effect here
     --> /app/compose.yaml:4:5 (services.web.attach)
      |
    4 |     attach: false
      |     ^^^^^^
      = help: choose services: `wharf logs NAME`
    warning: `develop` is about files on the machine of a developer; it has no effect here
     --> /app/compose.yaml:5:5 (services.web.develop)
      |
    5 |     develop: {watch: [{path: ., action: rebuild}]}
      |     ^^^^^^^
      = help: use it with `docker compose watch`
    ");
    folder.app();
}

#[test]
fn what_a_service_shares_with_others_reaches_the_model() {
    let folder = Folder::with(
        "services:\n  db: {image: i}\n  data: {image: i, volumes: [/srv]}\n  web:\n    image: i\n    ipc: service:db\n    pid: service:db\n    volumes_from: [data, 'db:ro']\n",
    );
    assert_eq!(folder.complaints(), "");
    insta::assert_json_snapshot!(folder.web().container, @r#"
    {
      "ipc": "service:db",
      "pid": "service:db",
      "volumes_from": [
        {
          "service": "data"
        },
        {
          "service": "db",
          "read_only": true
        }
      ]
    }
    "#);
    let db = folder.app().services.remove(&"db".parse().unwrap()).unwrap();
    insta::assert_json_snapshot!(db.container, @r#"
    {
      "ipc": "shareable"
    }
    "#);
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let folder = Folder::with(
        "services:\n  a: {image: i, ipc: private, volumes_from: [b]}\n  b: {image: i, ipc: 'service:a', volumes_from: ['a:wo', nobody]}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `b` shares the IPC namespace of `a`, which is `private`
     --> /app/compose.yaml:2:22 (services.a.ipc)
      |
    2 |   a: {image: i, ipc: private, volumes_from: [b]}
      |                      ^^^^^^^
      = help: write `ipc: shareable`
    error: services depend on each other: a -> b -> a
     --> /app/compose.yaml:3:22 (services.b.depends_on)
      |
    3 |   b: {image: i, ipc: 'service:a', volumes_from: ['a:wo', nobody]}
      |                      ^^^^^^^^^^^
      = help: leave out one of these dependencies
    error: `wo` is neither `ro` nor `rw`
     --> /app/compose.yaml:3:50 (services.b.volumes_from[0])
      |
    3 |   b: {image: i, ipc: 'service:a', volumes_from: ['a:wo', nobody]}
      |                                                  ^^^^^^
      = help: write `a:ro`
    error: there is no service `nobody`
     --> /app/compose.yaml:3:58 (services.b.volumes_from[1])
      |
    3 |   b: {image: i, ipc: 'service:a', volumes_from: ['a:wo', nobody]}
      |                                                          ^^^^^^
      = help: name one of those under `services`, or add it there
    ");
}

#[test]
fn every_kind_of_mount_reaches_the_model() {
    let folder = web(
        "volumes:\n  - {type: image, source: 'tools@sha256:ab', target: /tools, image: {subpath: bin}}\n  - {type: bind, source: /dev/a, target: /a, read_only: true, bind: {recursive: readonly}}\n  - {type: bind, source: /dev/b, target: /b, bind: {recursive: disabled}}\n  - {type: volume, target: /c, volume: {nocopy: true, labels: [a=b]}}\n  - {type: volume, source: data, target: /d, volume: {subpath: s, labels: {a: b, c: d}}}\n  - {type: tmpfs, target: /e, tmpfs: {size: 1m, mode: 0700}}\n",
    );
    let mut folder = folder;
    folder.request.files.push("/app/more.yaml".into());
    let folder = folder.file("more.yaml", "volumes: {data: {labels: {a: own}}}\n");
    assert_eq!(folder.complaints(), "");
    insta::assert_json_snapshot!(folder.web().container.mounts, @r#"
    [
      {
        "source": {
          "type": "image",
          "image": "tools@sha256:ab",
          "subpath": "bin"
        },
        "target": "/tools"
      },
      {
        "source": {
          "type": "bind",
          "path": "/dev/a",
          "create": true,
          "recursive": "readonly"
        },
        "target": "/a",
        "read_only": true
      },
      {
        "source": {
          "type": "bind",
          "path": "/dev/b",
          "create": true,
          "recursive": "disabled"
        },
        "target": "/b"
      },
      {
        "source": {
          "type": "anonymous",
          "nocopy": true,
          "labels": {
            "a": "b"
          }
        },
        "target": "/c"
      },
      {
        "source": {
          "type": "volume",
          "volume": "data",
          "subpath": "s"
        },
        "target": "/d"
      },
      {
        "source": {
          "type": "tmpfs",
          "size": 1048576,
          "mode": 448
        },
        "target": "/e"
      }
    ]
    "#);
    insta::assert_json_snapshot!(folder.app().volumes, @r#"
    {
      "data": {
        "labels": {
          "a": "own",
          "c": "d"
        }
      }
    }
    "#);
}

#[test]
fn mounts_that_make_no_sense_are_refused() {
    let folder = web(
        "volumes:\n  - {type: image, target: /a}\n  - {type: image, source: 'tools:1', target: /t}\n  - {type: bind, source: /dev/a, target: /b, bind: {recursive: writable}}\n  - {type: bind, source: /dev/a, target: /c, bind: {recursive: disabled, selinux: z}}\n  - {type: volume, target: /d, volume: {subpath: s}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: an image mount needs `source`, an image
     --> /app/compose.yaml:5:9 (services.web.volumes[0])
      |
    5 |       - {type: image, target: /a}
      |         ^
      = help: name it: `source: image:tag`
    warning: `tools:1` is not pinned: each node mounts what it has or finds by this name
     --> /app/compose.yaml:6:31 (services.web.volumes[1])
      |
    6 |       - {type: image, source: 'tools:1', target: /t}
      |                               ^^^^^^^^^
      = help: write its digest: `tools:1@sha256:…`
    error: `recursive: writable` is about a bind that is read-only
     --> /app/compose.yaml:7:57 (services.web.volumes[2].bind.recursive)
      |
    7 |       - {type: bind, source: /dev/a, target: /b, bind: {recursive: writable}}
      |                                                         ^^^^^^^^^
      = help: write `read_only: true` as well, or remove `recursive`
    error: the engine takes `selinux` and `recursive` only one at a time
     --> /app/compose.yaml:8:9 (services.web.volumes[3].bind)
      |
    8 |       - {type: bind, source: /dev/a, target: /c, bind: {recursive: disabled, selinux: z}}
      |         ^
      = help: remove one of them
    error: a volume without a name is empty: there is no folder inside it
     --> /app/compose.yaml:9:9 (services.web.volumes[4])
      |
    9 |       - {type: volume, target: /d, volume: {subpath: s}}
      |         ^
      = help: give it a `source`, or remove `subpath`
    ");
}

#[test]
fn how_a_service_is_connected_reaches_the_model() {
    let folder = Folder::with(
        "services:\n  web:\n    image: i\n    networks:\n      front: {gw_priority: 5, interface_name: data0, driver_opts: {a: 1}, link_local_ips: [169.254.8.8], priority: 10}\n      back: {mac_address: '02-42-AC-11-00-02', ipv4_address: 10.5.0.9}\n    mac_address: 02:42:ac:11:00:03\nnetworks:\n  front: {driver_opts: {com.docker.network.bridge.enable_icc: 'false', com.docker.network.driver.mtu: 1400}}\n  back:\n    ipam: {config: [{subnet: 10.5.0.0/16, ip_range: 10.5.1.0/24, gateway: 10.5.0.1, aux_addresses: {printer: 10.5.1.7}}]}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    warning: each node has a gateway of its own on the network: 10.5.0.1 is that of the first one
      --> /app/compose.yaml:11:75 (networks.back.ipam.config[0].gateway)
       |
    11 | fig: [{subnet: 10.5.0.0/16, ip_range: 10.5.1.0/24, gateway: 10.5.0.1, aux_addresses: {printer: 10.5.1.7}}]}
       |                                                             ^^^^^^^^
    ");
    insta::assert_json_snapshot!((folder.web().networks, folder.app().networks), @r#"
    [
      {
        "back": {
          "ipv4_address": "10.5.0.9",
          "endpoint": {
            "mac_address": "02:42:ac:11:00:02"
          }
        },
        "front": {
          "priority": 10,
          "endpoint": {
            "mac_address": "02:42:ac:11:00:03",
            "interface_name": "data0",
            "driver_opts": {
              "a": "1"
            },
            "gw_priority": 5,
            "link_local_ips": [
              "169.254.8.8"
            ]
          }
        }
      },
      {
        "back": {
          "subnet": "10.5.0.0/16",
          "gateway": "10.5.0.1",
          "ip_range": "10.5.1.0/24",
          "aux_addresses": {
            "printer": "10.5.1.7"
          }
        },
        "front": {
          "driver_opts": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.driver.mtu": "1400"
          }
        }
      }
    ]
    "#);
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    let folder = Folder::with(
        "services:\n  web:\n    image: i\n    scale: 2\n    mac_address: 03:42:ac:11:00:03\n    networks:\n      a: {ipv4_address: 10.5.0.9, mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_address: '::1'}\n      b: {}\nnetworks:\n  a:\n    driver_opts: {encrypted: '', com.docker.network.bridge.name: x, mtu: 1}\n    ipam: {config: [{subnet: 10.5.0.0/24, ip_range: 10.6.0.0/24, gateway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7.0.1}}, {subnet: 10.8.0.0/24}]}\n  b: {ipam: {config: [{gateway: 10.5.0.1}]}}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: the 2 tasks of this service cannot have one hardware address
     --> /app/compose.yaml:5:5 (services.web.mac_address)
      |
    5 |     mac_address: 03:42:ac:11:00:03
      |     ^^^^^^^^^^^
      = help: remove `mac_address`, or run one replica
    error: `03:42:ac:11:00:03` is the hardware address of a group
     --> /app/compose.yaml:5:18 (services.web.mac_address)
      |
    5 |     mac_address: 03:42:ac:11:00:03
      |                  ^^^^^^^^^^^^^^^^^
      = help: its first pair of digits must be even, such as `02`
    error: the 2 tasks of this service cannot have one address
     --> /app/compose.yaml:7:11 (services.web.networks.a.ipv4_address)
      |
    7 |       a: {ipv4_address: 10.5.0.9, mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1',
      |           ^^^^^^^^^^^^
      = help: remove `ipv4_address`, or run one replica
    error: the 2 tasks of this service cannot have one hardware address
     --> /app/compose.yaml:7:35 (services.web.networks.a.mac_address)
      |
    7 |       a: {ipv4_address: 10.5.0.9, mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1',
      |                                   ^^^^^^^^^^^
      = help: remove `mac_address`, or run one replica
    error: `02:42` is not a hardware address such as `02:42:ac:11:00:02`
     --> /app/compose.yaml:7:48 (services.web.networks.a.mac_address)
      |
    7 |       a: {ipv4_address: 10.5.0.9, mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1',
      |                                                ^^^^^
      = help: write for example `02:42:ac:11:65:43`
    error: `much-too-long-for-one` is not a name of a network interface
     --> /app/compose.yaml:7:71 (services.web.networks.a.interface_name)
      |
    7 | ipv4_address: 10.5.0.9, mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_
      |                                                             ^^^^^^^^^^^^^^^^^^^^^
      = help: use at most 15 letters, digits, `-`, `_` and `.`
    error: the network `a` has no IPv6
      --> /app/compose.yaml:7:94 (services.web.networks.a.link_local_ips)
       |
     7 |  mac_address: 02:42, interface_name: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_address: '::1'}
       |                                                             ^^^^^^^^^^^^^^
      ::: /app/compose.yaml:10:3: the network is here
       |
    10 |   a:
       |   ^
       = help: add `enable_ipv6: true` to the network, or remove `link_local_ips`
    error: `x` is not an IP address
     --> /app/compose.yaml:7:122 (services.web.networks.a.link_local_ips[1])
      |
    7 | ce_name: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_address: '::1'}
      |                                                             ^
      = help: write for example `169.254.10.1`
    error: the 2 tasks of this service cannot have one address
     --> /app/compose.yaml:7:126 (services.web.networks.a.ipv6_address)
      |
    7 | ame: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_address: '::1'}
      |                                                             ^^^^^^^^^^^^
      = help: remove `ipv6_address`, or run one replica
    error: the network `a` has no IPv6
      --> /app/compose.yaml:7:126 (services.web.networks.a.ipv6_address)
       |
     7 | ame: much-too-long-for-one, link_local_ips: ['fe80::1', x], ipv6_address: '::1'}
       |                                                             ^^^^^^^^^^^^
      ::: /app/compose.yaml:10:3: the network is here
       |
    10 |   a:
       |   ^
       = help: add `enable_ipv6: true` to the network, or remove `ipv6_address`
    warning: the network's packets are encrypted by WireGuard between the nodes
      --> /app/compose.yaml:11:19 (networks.a.driver_opts.encrypted)
       |
    11 |     driver_opts: {encrypted: '', com.docker.network.bridge.name: x, mtu: 1}
       |                   ^^^^^^^^^
       = help: `x-wharf: {backend: wireguard}` says the same
    error: the bridges of the cluster's networks are named by the cluster
      --> /app/compose.yaml:11:34 (networks.a.driver_opts.com.docker.network.bridge.name)
       |
    11 |     driver_opts: {encrypted: '', com.docker.network.bridge.name: x, mtu: 1}
       |                                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       = help: remove it
    warning: the engine's bridge knows no option `mtu`, and drops it
      --> /app/compose.yaml:11:69 (networks.a.driver_opts.mtu)
       |
    11 |     driver_opts: {encrypted: '', com.docker.network.bridge.name: x, mtu: 1}
       |                                                                     ^^^
       = help: its options begin with `com.docker.network.`, such as `com.docker.network.driver.mtu`
    error: the range 10.6.0.0/24 is not in the subnet 10.5.0.0/24
      --> /app/compose.yaml:12:53 (networks.a.ipam.config[0].ip_range)
       |
    12 |     ipam: {config: [{subnet: 10.5.0.0/24, ip_range: 10.6.0.0/24, gateway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7
       |                                                     ^^^^^^^^^^^
       = help: choose a part of 10.5.0.0/24
    error: 10.5.0.1 is the gateway and `x` at once
      --> /app/compose.yaml:12:75 (networks.a.ipam.config[0].gateway)
       |
    12 | fig: [{subnet: 10.5.0.0/24, ip_range: 10.6.0.0/24, gateway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7.0.1}}, {subne
       |                                                             ^^^^^^^^
       = help: give one of them another address
    warning: each node has a gateway of its own on the network: 10.5.0.1 is that of the first one
      --> /app/compose.yaml:12:75 (networks.a.ipam.config[0].gateway)
       |
    12 | fig: [{subnet: 10.5.0.0/24, ip_range: 10.6.0.0/24, gateway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7.0.1}}, {subne
       |                                                             ^^^^^^^^
    error: 10.7.0.1 is not an address in the subnet 10.5.0.0/24
      --> /app/compose.yaml:12:85 (networks.a.ipam.config[0].aux_addresses)
       |
    12 | net: 10.5.0.0/24, ip_range: 10.6.0.0/24, gateway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7.0.1}}, {subnet: 10.8.0.
       |                                                             ^^^^^^^^^^^^^
       = help: choose one of 10.5.0.0/24, not its first or last
    error: a network has one IPv4 subnet, over which all its nodes are reached
      --> /app/compose.yaml:12:129 (networks.a.ipam.config[1])
       |
    12 | eway: 10.5.0.1, aux_addresses: {x: 10.5.0.1, y: 10.7.0.1}}, {subnet: 10.8.0.0/24}]}
       |                                                             ^
       = help: keep the first one
    error: `gateway` says a part of a subnet that is not given
      --> /app/compose.yaml:13:33 (networks.b.ipam.config[0])
       |
    13 |   b: {ipam: {config: [{gateway: 10.5.0.1}]}}
       |                                 ^^^^^^^^
       = help: add `subnet: 10.5.0.0/24`
    ");
}

#[test]
fn the_engines_own_bridge_publishes_on_its_node_only() {
    let folder = web("network_mode: bridge\nports: [{target: 80, published: 8080, mode: host}]");
    insta::assert_snapshot!(folder.complaints(), @r"
    warning: the engine's `bridge` is a network of each node by itself: other services are not found there
     --> /app/compose.yaml:4:19 (services.web.network_mode)
      |
    4 |     network_mode: bridge
      |                   ^^^^^^
      = help: remove `network_mode`: the service is then on the app's `default` network
    ");
    assert_eq!(folder.web().network_mode, wharf_model::NetworkMode::Bridge);
    assert_eq!(folder.web().ports.len(), 1);
    let complaints = web("network_mode: bridge\nports: ['8080:80']").complaints();
    assert!(complaints.contains("gateways do not reach the engine's `bridge`"), "{complaints}");
}

#[test]
fn a_seccomp_profile_is_taken_from_its_file() {
    let folder = web("security_opt: ['seccomp:profile.json', 'seccomp=unconfined', 'label:disable']")
        .file("profile.json", "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n");
    assert_eq!(folder.complaints(), "");
    assert_eq!(
        folder.web().container.security_opt,
        [r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#, "seccomp=unconfined", "label:disable"]
    );
    let folder = web("security_opt: ['seccomp:absent.json', 'seccomp:text.json']").file("text.json", "text");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: there is no file `/app/absent.json`
     --> /app/compose.yaml:4:20 (services.web.security_opt[0])
      |
    4 |     security_opt: ['seccomp:absent.json', 'seccomp:text.json']
      |                    ^^^^^^^^^^^^^^^^^^^^^
      = help: check the path and where it begins, or make the file
    error: the seccomp profile `text.json` is not a JSON object
     --> /app/compose.yaml:4:43 (services.web.security_opt[1])
      |
    4 |     security_opt: ['seccomp:absent.json', 'seccomp:text.json']
      |                                           ^^^^^^^^^^^^^^^^^^^
      = help: name a file with a profile as Docker reads it, or write `seccomp=unconfined`
    ");
}

#[test]
fn devices_and_gpus_reach_the_model() {
    let folder = web(
        "devices: ['vendor.com/class=all', /dev/fuse]\ngpus:\n  - {driver: nvidia, device_ids: ['0', '3'], options: [a=b]}\n  - {count: 2, capabilities: [compute]}\n",
    );
    assert_eq!(folder.complaints(), "");
    insta::assert_json_snapshot!((folder.web().container.devices, folder.web().resources.devices), @r#"
    [
      [
        {
          "source": "vendor.com/class=all",
          "target": "vendor.com/class=all",
          "permissions": "rwm"
        },
        {
          "source": "/dev/fuse",
          "target": "/dev/fuse",
          "permissions": "rwm"
        }
      ],
      [
        {
          "driver": "nvidia",
          "device_ids": [
            "0",
            "3"
          ],
          "capabilities": [
            "gpu"
          ],
          "options": {
            "a": "b"
          }
        },
        {
          "count": 2,
          "capabilities": [
            "compute",
            "gpu"
          ]
        }
      ]
    ]
    "#);
    let complaints = web("devices: [fuse]").complaints();
    assert!(complaints.contains("neither a path nor a name of a device interface"), "{complaints}");
}

#[test]
fn images_are_asked_for_again_by_age() {
    use wharf_model::{Millis, PullPolicy};
    let hours = |hours: u64| PullPolicy::Refresh { after: Millis::from_secs(hours * 3600) };
    for (lines, wanted) in [
        ("pull_policy: daily", hours(24)),
        ("pull_policy: weekly", hours(168)),
        ("pull_policy: every_12h", hours(12)),
        ("pull_policy: every_1d2h", hours(26)),
        ("pull_policy: refresh\npull_refresh_after: 3h", hours(3)),
        ("pull_policy: refresh", hours(24)),
    ] {
        let folder = web(lines);
        assert_eq!((folder.complaints().as_str(), folder.web().pull_policy), ("", wanted), "{lines}");
    }
    let complaints = web("pull_policy: every_day").complaints();
    assert!(complaints.contains("is not a duration"), "{complaints}");
    let complaints = web("pull_refresh_after: 3h").complaints();
    assert!(complaints.contains("has no effect without `pull_policy: refresh`"), "{complaints}");
}

#[test]
fn a_return_may_go_another_way_than_an_update() {
    use wharf_model::{FailureAction, UpdateOrder};
    let folder = web(
        "deploy:\n  update_config: {max_failure_ratio: 0.25}\n  rollback_config: {parallelism: 0, order: stop-first, delay: 2s}\n",
    );
    assert_eq!(folder.complaints(), "");
    let spec = folder.web();
    let rollback = spec.rollback.unwrap();
    assert_eq!((spec.update.max_failure_ratio, rollback.max_failure_ratio), (250, 0));
    assert_eq!((rollback.parallelism, rollback.order), (0, Some(UpdateOrder::StopFirst)));
    assert_eq!(rollback.failure_action, FailureAction::Pause);
    let folder = web(
        "deploy:\n  update_config: {max_failure_ratio: 2}\n  rollback_config: {failure_action: rollback}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `max_failure_ratio` must be 0 to 1, not 2
     --> /app/compose.yaml:5:42 (services.web.deploy.update_config.max_failure_ratio)
      |
    5 |       update_config: {max_failure_ratio: 2}
      |                                          ^
      = help: write for example `0.1`
    error: a return that fails cannot return once more
     --> /app/compose.yaml:6:41 (services.web.deploy.rollback_config.failure_action)
      |
    6 |       rollback_config: {failure_action: rollback}
      |                                         ^^^^^^^^
      = help: `pause` or `continue`
    ");
}

#[test]
fn a_range_of_published_ports_is_left_for_the_cluster_to_choose_from() {
    let ports = web("ports: ['8000-8010:80', '9000-9001:90-91']").web().ports;
    let published: Vec<_> = ports.iter().map(|port| (port.published, port.published_to)).collect();
    assert_eq!(published, [(Some(8000), Some(8010)), (Some(9000), None), (Some(9001), None)]);
}

#[test]
fn what_runs_before_a_service_starts_is_a_service_of_its_own() {
    let folder = Folder::with(
        "services:\n  db: {image: d}\n  web:\n    image: i\n    user: app\n    entrypoint: [/entry]\n    scale: 3\n    ports: ['80:80']\n    environment: {A: b}\n    volumes: [data:/data]\n    depends_on: [db]\n    networks: {default: {aliases: [www]}}\n    healthcheck: {test: [CMD, x]}\n    pre_start:\n      - {command: ./migrate, environment: [C=d]}\n      - {image: busybox, user: root, command: chown app /data}\nvolumes: {data: }\n",
    );
    assert_eq!(folder.complaints(), "");
    let services = folder.app().services;
    assert_eq!(
        services.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["db", "web", "web-pre-start-1", "web-pre-start-2"]
    );
    let depends = |service: &str| {
        let depends_on = &services[&service.parse().unwrap()].depends_on;
        depends_on.keys().map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(depends("web"), ["db", "web-pre-start-2"]);
    assert_eq!(depends("web-pre-start-2"), ["db", "web-pre-start-1"]);
    insta::assert_json_snapshot!(services[&"web-pre-start-1".parse().unwrap()], @r#"
    {
      "image": "i",
      "container": {
        "command": [
          "./migrate"
        ],
        "entrypoint": [
          "/entry"
        ],
        "environment": {
          "A": "b",
          "C": "d"
        },
        "user": "app",
        "mounts": [
          {
            "source": {
              "type": "volume",
              "volume": "data"
            },
            "target": "/data"
          }
        ]
      },
      "depends_on": {
        "db": {
          "condition": "service_started",
          "required": true
        }
      },
      "networks": {
        "default": {}
      },
      "restart": {
        "condition": "none",
        "delay": 1000,
        "window": 60000
      }
    }
    "#);
    let second = &services[&"web-pre-start-2".parse().unwrap()];
    assert_eq!((second.image.as_str(), second.container.user.as_deref()), ("busybox", Some("root")));
    assert_eq!((second.container.entrypoint.as_ref(), second.container.mounts.len()), (None, 1));
}

#[test]
fn what_cannot_run_before_a_service_starts_is_refused() {
    let folder = Folder::with(
        "services:\n  a: {image: i, pre_start: [{user: root}]}\n  b: {build: ., pre_start: [{command: x}]}\n  c: {image: i, pre_start: [{command: x}]}\n  c-pre-start-1: {image: i}\n",
    );
    insta::assert_snapshot!(folder.complaints(), @r#"
    error: a hook needs a command, or an image with one
     --> /app/compose.yaml:2:29 (services.a.pre_start[0])
      |
    2 |   a: {image: i, pre_start: [{user: root}]}
      |                             ^
      = help: write `command: ["sh", "-c", "…"]`
    error: a hook cannot run in an image that is built with the app
     --> /app/compose.yaml:3:29 (services.b.pre_start[0])
      |
    3 |   b: {build: ., pre_start: [{command: x}]}
      |                             ^
      = help: give the hook an `image`, or make it a service with the same `build` that this one depends on
    error: the hook is the service `c-pre-start-1`, and there is one already
     --> /app/compose.yaml:4:17 (services.c.pre_start)
      |
    4 |   c: {image: i, pre_start: [{command: x}]}
      |                 ^^^^^^^^^
      = help: call the other one something else than `c-pre-start-1`
    "#);
}
