//! Every key that a cluster honours reaches the model.

use crate::folder::{Folder, web};

#[test]
fn every_key_of_a_container_reaches_the_model() {
    let folder = web(
        "command: sh -c 'echo $$HOME'\nentrypoint: []\nworking_dir: /w\nuser: 1000:1000\nhostname: h\ndomainname: d.example\nannotations: {a: b}\ntty: true\nstdin_open: 'true'\ninit: false\nread_only: true\nprivileged: true\ncap_add: [NET_ADMIN]\ncap_drop: [ALL]\nsecurity_opt: ['no-new-privileges:true']\ngroup_add: [audio, 44]\ndevices: ['/dev/a:/dev/b:r', /dev/c]\ndevice_cgroup_rules: ['c 1:3 mr']\ndns: [1.1.1.1, '::1']\ndns_search: example.com\ndns_opt: ['ndots:1']\nextra_hosts: {a: 1.2.3.4, host: host-gateway, v6: '[::1]'}\nipc: host\npid: host\nuts: host\nuserns_mode: host\ncgroup: private\ncgroup_parent: p\nshm_size: 64m\nsysctls: {net.core.somaxconn: 1024}\nulimits: {nproc: 65535, nofile: {soft: 1, hard: 2}}\ntmpfs: ['/run', '/tmp:size=64m']\nlogging: {driver: json-file, options: {max-size: 1m, max-file: 3}}\noom_kill_disable: true\noom_score_adj: -500\nmem_swappiness: 10\nmemswap_limit: -1\ncpu_shares: 512\ncpu_period: 100ms\ncpu_quota: 50000\ncpu_rt_period: 1400us\ncpu_rt_runtime: 400ms\ncpuset: 0,1\nblkio_config: {weight: 300, weight_device: [{path: /dev/sda, weight: 400}], device_read_bps: [{path: /dev/sda, rate: 12mb}], device_write_iops: [{path: /dev/sda, rate: 30}]}\nruntime: runc\nstorage_opt: {size: 1G}\nstop_signal: SIGINT\nstop_grace_period: 1m30s\nlabels: [a, b=c]\n",
    );
    insta::assert_json_snapshot!(folder.web().container, @r#"
    {
      "command": [
        "sh",
        "-c",
        "echo $HOME"
      ],
      "entrypoint": [],
      "working_dir": "/w",
      "user": "1000:1000",
      "hostname": "h",
      "domainname": "d.example",
      "labels": {
        "a": "",
        "b": "c"
      },
      "annotations": {
        "a": "b"
      },
      "tty": true,
      "stdin_open": true,
      "init": false,
      "read_only": true,
      "privileged": true,
      "cap_add": [
        "NET_ADMIN"
      ],
      "cap_drop": [
        "ALL"
      ],
      "security_opt": [
        "no-new-privileges:true"
      ],
      "group_add": [
        "audio",
        "44"
      ],
      "devices": [
        {
          "source": "/dev/a",
          "target": "/dev/b",
          "permissions": "r"
        },
        {
          "source": "/dev/c",
          "target": "/dev/c",
          "permissions": "rwm"
        }
      ],
      "device_cgroup_rules": [
        "c 1:3 mr"
      ],
      "dns": [
        "1.1.1.1",
        "::1"
      ],
      "dns_search": [
        "example.com"
      ],
      "dns_opt": [
        "ndots:1"
      ],
      "extra_hosts": [
        "a:1.2.3.4",
        "host:host-gateway",
        "v6:::1"
      ],
      "ipc": "host",
      "pid": "host",
      "uts": "host",
      "userns_mode": "host",
      "cgroup": "private",
      "cgroup_parent": "p",
      "shm_size": 67108864,
      "sysctls": {
        "net.core.somaxconn": "1024"
      },
      "ulimits": {
        "nofile": {
          "soft": 1,
          "hard": 2
        },
        "nproc": {
          "soft": 65535,
          "hard": 65535
        }
      },
      "tmpfs": {
        "/run": "",
        "/tmp": "size=64m"
      },
      "logging": {
        "driver": "json-file",
        "options": {
          "max-file": "3",
          "max-size": "1m"
        }
      },
      "oom_kill_disable": true,
      "oom_score_adj": -500,
      "mem_swappiness": 10,
      "memswap_limit": -1,
      "cpu_shares": 512,
      "cpu_period": 100000,
      "cpu_quota": 50000,
      "cpu_rt_period": 1400,
      "cpu_rt_runtime": 400000,
      "cpuset": "0,1",
      "blkio": {
        "weight": 300,
        "weight_device": {
          "/dev/sda": 400
        },
        "device_read_bps": {
          "/dev/sda": 12582912
        },
        "device_write_iops": {
          "/dev/sda": 30
        }
      },
      "runtime": "runc",
      "storage_opt": {
        "size": "1G"
      },
      "stop_signal": "SIGINT",
      "stop_grace_period": 90000
    }
    "#);
    assert_eq!(folder.complaints(), "");
}

#[test]
fn every_key_of_a_service_reaches_the_model() {
    let folder = Folder::with(
        "services:
  web:
    image: i
    pull_policy: always
    platform: linux/arm64
    expose: [80, '90-91']
    cpus: 1.5
    mem_limit: 1g
    pids_limit: 100
    gpus: all
    container_name: the-web
    links: ['db:database']
    depends_on: {db: {condition: service_healthy, restart: true, required: false}, once: {condition: service_completed_successfully}}
    ports:
      - '127.0.0.1:8001-8002:81-82/udp'
      - '3000'
      - {target: 90, published: '9090', mode: host, name: admin, app_protocol: http, protocol: tcp}
    networks:
      default: {aliases: [www], priority: 5}
      fixed: {ipv4_address: 10.5.0.10}
    healthcheck: {test: curl -f localhost, interval: 1m, timeout: 10s, retries: 4, start_period: 5s, start_interval: 1s}
    x-wharf: {probe: {http: {port: 80, path: /up}, interval: 2s, timeout: 1s, retries: 5, start_period: 20s}}
    deploy:
      labels: {team: x}
      endpoint_mode: vip
      update_config: {parallelism: 2, delay: 1s, order: stop-first, monitor: 3s, failure_action: pause}
      restart_policy: {condition: on-failure, delay: 2s, max_attempts: 3, window: 2m}
      placement:
        constraints: [node.labels.disk==ssd, node.role != manager]
        preferences: [{spread: node.labels.zone}]
        max_replicas_per_node: 2
      resources:
        reservations: {cpus: '0.25', memory: 20M, devices: [{capabilities: [tpu], count: 2, driver: d, options: {o: v}}]}
  db: {image: i, deploy: {mode: global}}
  once: {image: i, restart: 'no'}
networks:
  fixed: {driver: bridge, internal: true, attachable: true, labels: [a=b], driver_opts: {com.docker.network.driver.mtu: 1400}, ipam: {config: [{subnet: 10.5.0.0/16}]}}
  unused: {}
",
    );
    // What can be said of it, and cannot be had.
    let complaints = folder.complaints();
    assert!(
        complaints.matches("warning: ").count() == 1 && complaints.contains("(networks.fixed.attachable)"),
        "{complaints}"
    );
    insta::assert_json_snapshot!(folder.app(), @r#"
    {
      "name": "app",
      "services": {
        "db": {
          "image": "i",
          "mode": {
            "kind": "global"
          },
          "networks": {
            "default": {
              "aliases": [
                "database"
              ]
            }
          }
        },
        "once": {
          "image": "i",
          "networks": {
            "default": {}
          },
          "restart": {
            "condition": "none",
            "delay": 1000,
            "window": 60000
          }
        },
        "web": {
          "image": "i",
          "pull_policy": "always",
          "depends_on": {
            "db": {
              "condition": "service_healthy",
              "restart": true,
              "required": false
            },
            "once": {
              "condition": "service_completed_successfully",
              "required": true
            }
          },
          "networks": {
            "default": {
              "aliases": [
                "www",
                "the-web"
              ],
              "priority": 5
            },
            "fixed": {
              "aliases": [
                "the-web"
              ],
              "ipv4_address": "10.5.0.10"
            }
          },
          "endpoint_mode": "vip",
          "ports": [
            {
              "target": 81,
              "published": 8001,
              "protocol": "udp",
              "host_ip": "127.0.0.1"
            },
            {
              "target": 82,
              "published": 8002,
              "protocol": "udp",
              "host_ip": "127.0.0.1"
            },
            {
              "target": 3000
            },
            {
              "target": 90,
              "published": 9090,
              "mode": "host",
              "name": "admin",
              "app_protocol": "http"
            }
          ],
          "expose": [
            "80",
            "90-91"
          ],
          "restart": {
            "condition": "on-failure",
            "delay": 2000,
            "max_attempts": 3,
            "window": 120000
          },
          "update": {
            "order": "stop-first",
            "parallelism": 2,
            "delay": 1000,
            "monitor": 3000,
            "failure_action": "pause"
          },
          "placement": {
            "constraints": [
              {
                "key": "node.labels.disk",
                "equal": true,
                "value": "ssd"
              },
              {
                "key": "node.role",
                "equal": false,
                "value": "manager"
              }
            ],
            "spread": [
              "node.labels.zone"
            ],
            "max_replicas_per_node": 2,
            "platform": "linux/arm64"
          },
          "resources": {
            "limits": {
              "cpus": 1500,
              "memory": 1073741824,
              "pids": 100
            },
            "reservations": {
              "cpus": 250,
              "memory": 20971520
            },
            "devices": [
              {
                "driver": "d",
                "count": 2,
                "capabilities": [
                  "tpu"
                ],
                "options": {
                  "o": "v"
                }
              },
              {
                "count": -1,
                "capabilities": [
                  "gpu"
                ]
              }
            ]
          },
          "healthcheck": {
            "test": [
              "CMD-SHELL",
              "curl -f localhost"
            ],
            "interval": 60000,
            "timeout": 10000,
            "retries": 4,
            "start_period": 5000,
            "start_interval": 1000
          },
          "probe": {
            "kind": {
              "type": "http",
              "port": 80,
              "path": "/up"
            },
            "interval": 2000,
            "timeout": 1000,
            "retries": 5,
            "start_period": 20000
          },
          "labels": {
            "team": "x"
          }
        }
      },
      "networks": {
        "default": {},
        "fixed": {
          "internal": true,
          "attachable": true,
          "driver_opts": {
            "com.docker.network.driver.mtu": "1400"
          },
          "subnet": "10.5.0.0/16",
          "labels": {
            "a": "b"
          }
        }
      }
    }
    "#);
}

#[test]
fn mounts_in_every_form_reach_the_model() {
    let folder = web(
        "volumes:\n  - /anonymous\n  - data:/data:nocopy\n  - /etc/localtime:/etc/localtime:ro\n  - ./src:/src:z,rshared\n  - {type: volume, source: data, target: /more, read_only: true, volume: {nocopy: true, subpath: sub}}\n  - {type: bind, source: ../up, target: /up, bind: {create_host_path: false}}\n  - {type: tmpfs, target: /mem, tmpfs: {size: 64m, mode: 0o1777}}\n",
    )
    .and("volumes.yaml", "volumes: {data: {name: the-data, driver: local, driver_opts: {type: nfs, o: 'addr=10.0.0.1', device: ':/x'}, labels: {a: b}}, theirs: {external: true, name: x}}\n");
    insta::assert_json_snapshot!(folder.web().container.mounts, @r#"
    [
      {
        "source": {
          "type": "anonymous"
        },
        "target": "/anonymous"
      },
      {
        "source": {
          "type": "volume",
          "volume": "data",
          "nocopy": true
        },
        "target": "/data"
      },
      {
        "source": {
          "type": "bind",
          "path": "/etc/localtime",
          "create": true
        },
        "target": "/etc/localtime",
        "read_only": true
      },
      {
        "source": {
          "type": "bind",
          "path": "/app/src",
          "create": true,
          "propagation": "rshared",
          "selinux": "z"
        },
        "target": "/src"
      },
      {
        "source": {
          "type": "volume",
          "volume": "data",
          "nocopy": true,
          "subpath": "sub"
        },
        "target": "/more",
        "read_only": true
      },
      {
        "source": {
          "type": "bind",
          "path": "/up"
        },
        "target": "/up"
      },
      {
        "source": {
          "type": "tmpfs",
          "size": 67108864,
          "mode": 1023
        },
        "target": "/mem"
      }
    ]
    "#);
    insta::assert_json_snapshot!(folder.app().volumes, @r#"
    {
      "data": {
        "name": "the-data",
        "driver_opts": {
          "device": ":/x",
          "o": "addr=10.0.0.1",
          "type": "nfs"
        },
        "labels": {
          "a": "b"
        }
      },
      "theirs": {
        "name": "x",
        "external": true
      }
    }
    "#);
    insta::assert_snapshot!(folder.complaints(), @r"
    warning: `/app/src` is taken from the node that runs the task
     --> /app/compose.yaml:8:9 (services.web.volumes[3])
      |
    8 |       - ./src:/src:z,rshared
      |         ^^^^^^^^^^^^^^^^^^^^
      = help: put files into `configs`, data into a named volume, or choose the node with `deploy.placement`
    warning: `/up` is taken from the node that runs the task
      --> /app/compose.yaml:10:30 (services.web.volumes[5])
       |
    10 |       - {type: bind, source: ../up, target: /up, bind: {create_host_path: false}}
       |                              ^^^^^
       = help: put files into `configs`, data into a named volume, or choose the node with `deploy.placement`
    ");
}

#[test]
fn configs_and_secrets_carry_their_content() {
    let folder = web(
        "configs:\n  - inline\n  - {source: file, target: /etc/app.conf, uid: '10', gid: '20', mode: 0440}\nsecrets:\n  - env\n  - {source: outside, target: key, mode: '0400'}\n",
    )
    .and("files.yaml", "configs:\n  inline: {content: 'port=${PORT}'}\n  file: {file: ./app.conf}\n  unused: {file: ./none}\nsecrets:\n  env: {environment: TOKEN}\n  outside: {external: true, name: shared-key, labels: {team: pay}}\n")
    .file("app.conf", "hello\n")
    .variable("PORT", "80")
    .variable("TOKEN", "t0ken");
    let app = folder.app();
    let service = folder.web();
    insta::assert_json_snapshot!((service.configs, service.secrets, app.configs, app.secrets), @r#"
    [
      [
        {
          "source": "inline",
          "target": "/inline"
        },
        {
          "source": "file",
          "target": "/etc/app.conf",
          "uid": 10,
          "gid": 20,
          "mode": 288
        }
      ],
      [
        {
          "source": "env",
          "target": "/run/secrets/env"
        },
        {
          "source": "outside",
          "target": "/run/secrets/key",
          "mode": 256
        }
      ],
      {
        "file": {
          "content": "aGVsbG8K",
          "digest": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        },
        "inline": {
          "content": "cG9ydD04MA==",
          "digest": "45f8c837b798c2c36e0093ebc993ef95d0b926a54fc63ba7c59f5159264d0f78"
        }
      },
      {
        "env": {
          "content": "dDBrZW4=",
          "digest": "b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053"
        },
        "outside": {
          "name": "shared-key",
          "external": true,
          "labels": {
            "team": "pay"
          }
        }
      }
    ]
    "#);
}

#[test]
fn restart_policies_are_those_of_a_cluster() {
    let policy = |lines: &str| {
        let restart = web(lines).web().restart;
        format!("{:?} {:?}", restart.condition, restart.max_attempts)
    };
    assert_eq!(policy("tty: false"), "Any None");
    assert_eq!(policy("restart: always"), "Any None");
    assert_eq!(policy("restart: unless-stopped"), "Any None");
    assert_eq!(policy("restart: 'no'"), "None None");
    assert_eq!(policy("restart: on-failure"), "OnFailure None");
    assert_eq!(policy("restart: on-failure:3"), "OnFailure Some(3)");
    assert_eq!(policy("restart: always\ndeploy: {restart_policy: {condition: none}}"), "None None");
}

#[test]
fn network_modes_reach_the_model() {
    let mode = |mode: &str| {
        let folder = web(&format!("network_mode: {mode}")).and("db.yaml", "services: {db: {image: i}}\n");
        serde_json::to_string(&folder.web().network_mode).unwrap()
    };
    assert_eq!(mode("host"), "\"host\"");
    assert_eq!(mode("none"), "\"none\"");
    assert_eq!(mode("service:db"), "{\"service\":\"db\"}");
}

#[test]
fn extensions_and_anchors_work_as_in_compose() {
    let folder = Folder::with(
        "x-common: &common\n  restart: 'no'\n  environment: &env {A: 1}\nservices:\n  web:\n    <<: *common\n    image: i\n    x-note: anything\n    environment: {<<: *env, B: 2}\n",
    );
    assert_eq!(folder.complaints(), "");
    assert_eq!(folder.web().container.environment.len(), 2);
}

#[test]
fn what_others_wait_for_to_complete_runs_once_unless_its_file_says_otherwise() {
    let folder = Folder::with(
        "
services:
  web:
    image: i
    depends_on:
      a: {condition: service_completed_successfully}
      b: {condition: service_completed_successfully}
      c: {condition: service_completed_successfully}
      d: {condition: service_started}
  a: {image: i}
  b: {image: i, restart: always}
  c: {image: i, deploy: {restart_policy: {condition: any}}}
  d: {image: i}
",
    );
    assert_eq!(folder.complaints(), "");
    let conditions: Vec<_> = folder
        .app()
        .services
        .iter()
        .map(|(name, service)| (name.to_string(), service.restart.condition))
        .collect();
    let of =
        |wanted: &str| conditions.iter().find(|(name, _)| name == wanted).map(|(_, condition)| *condition);
    assert_eq!(of("a"), Some(wharf_model::RestartCondition::OnFailure));
    for other in ["b", "c", "d", "web"] {
        assert_eq!(of(other), Some(wharf_model::RestartCondition::Any), "{other}");
    }
}

#[test]
fn placeholders_reach_the_model_as_they_are_written() {
    let folder = web(
        "environment:\n- WHERE={{.Node.Hostname}} {{index .Service.Labels \"a.b\"}}\n- FORMAT={{json .}}\nhostname: '{{.Service.Name}}-{{.Task.Slot}}'\nvolumes:\n- '/srv/{{.Task.Slot}}:/data/{{.Task.Name}}'\n",
    );
    let container = folder.web().container;
    let variables: Vec<_> = container.environment.values().flatten().map(String::as_str).collect();
    assert_eq!(variables, ["{{json .}}", "{{.Node.Hostname}} {{index .Service.Labels \"a.b\"}}"]);
    assert_eq!(container.hostname.as_deref(), Some("{{.Service.Name}}-{{.Task.Slot}}"));
    assert_eq!(container.mounts[0].target, "/data/{{.Task.Name}}");
    let wharf_model::MountSource::Bind { path, .. } = &container.mounts[0].source else { panic!() };
    assert_eq!(path, "/srv/{{.Task.Slot}}");
}
