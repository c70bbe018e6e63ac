//! Every attribute of Compose that is honoured, on real containers: files that have it, and what they become.
//!
//! - One row for each attribute, named by its path; `docs/reference/compose.md` names these rows, and a check finds them.
//! - What a row says is read from the engine (`docker inspect`), from inside the container, or, where the cluster itself
//!   honours it, from what it did. Everything that is wrong is told at once.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wharf_testkit::cluster::{Cluster, Seed, try_wait_until};
use wharf_tests::{Fleet, items, skip, text};

/// Machines of tests are slow when others build on them.
const SOON: Duration = Duration::from_secs(120);

/// What shows that an attribute is honoured.
#[derive(Debug, Clone, Copy)]
struct Row {
    attribute: &'static str,
    /// The service, network or volume that has it.
    subject: &'static str,
    look: Look,
}

/// Where to look, and what is to be seen.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// `docker inspect` of the service's container says at this pointer this, in JSON.
    Container(&'static str, &'static str),
    /// The same, within a list that has more.
    Listed(&'static str, &'static str),
    /// A shell in the container prints this. `CLIENT` is an address outside the cluster.
    Inside(&'static str, &'static str),
    /// The service has as many containers, on as many nodes.
    Tasks(usize, usize),
    /// Its one container is on this node.
    On(&'static str),
    /// The container is made of the image of this name.
    Image(&'static str),
    /// The engine says this of the network.
    Network(&'static str, &'static str),
    /// The same, of at least one node.
    Somewhere(&'static str, &'static str),
    /// `docker inspect` names another service's container at this pointer, and then this.
    Shares(&'static str, &'static str, &'static str),
    /// The engine says this of the volume.
    Volume(&'static str, &'static str),
    /// The cluster keeps this about the service, at a pointer of `wharf inspect`.
    Kept(&'static str, &'static str),
    /// `http://NODE…` answers something with this in it, on every node.
    Answers(&'static str, &'static str),
    /// What `wharf ps` says of the service's task, or of why there is none.
    Said(&'static str),
    /// As `Container`, or the engine cannot do it and `wharf ps` says this.
    Tried(&'static str, &'static str, &'static str),
    /// As `Container`, or the engine leaves it out and says this, which the agent has in its log.
    Told(&'static str, &'static str, &'static str),
}
use Look::{
    Answers, Container, Image, Inside, Kept, Listed, Network, On, Said, Shares, Somewhere, Tasks, Told,
    Tried, Volume,
};

const fn row(attribute: &'static str, subject: &'static str, look: Look) -> Row {
    Row { attribute, subject, look }
}

/// Most attributes: what one service says its one container has. `BLOCK` is a block device of the machine.
const MAIN: &str = r"
version: '3.8'
name: main
include:
  - {path: inner/compose.yaml, env_file: inner/inner.env, project_directory: inner/below}
x-still: &still {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}
services:
  plain:
    image: alpine:3
    pull_policy: missing
    entrypoint: [/bin/sh, -c]
    command: ['exec sleep 10000']
    working_dir: /tmp
    user: '65534:65534'
    hostname: chosen
    domainname: d.example
    tty: true
    stdin_open: true
    init: true
    read_only: true
    environment: {PLAIN: '1', BOTH: file beaten, PATH: null, TOKEN: null}
    env_file: [{path: vars.env}, {path: raw.env, format: raw}, {path: absent.env, required: false}]
    labels: {a.label: b}
    label_file: labels.env
    expose: ['9000']
    stop_signal: SIGINT
    stop_grace_period: 3s
    logging: {driver: local, options: {max-size: 1m}}
  confined:
    <<: *still
    cgroup: private
    cap_add: [NET_ADMIN]
    cap_drop: [MKNOD]
    security_opt: ['no-new-privileges:true', 'seccomp:profile.json']
    group_add: ['44']
    devices: ['/dev/zero:/dev/nothing:rw']
    device_cgroup_rules: ['c 1:3 mr']
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nproc: 65535, nofile: {soft: 1000, hard: 2000}}
    shm_size: 32m
    tmpfs: ['/run:size=1m']
    oom_score_adj: 100
    oom_kill_disable: true
    mem_limit: 100m
    runtime: io.containerd.runc.v2
  joined:
    <<: *still
    ipc: host
    pid: host
    uts: host
    userns_mode: host
    cgroup: host
    cgroup_parent: /parent
  owner: {<<: *still, volumes: ['shared:/shared']}
  sharing: {<<: *still, ipc: 'service:owner', pid: 'service:owner', volumes_from: ['owner:ro'], network_mode: bridge}
  prepared:
    <<: *still
    volumes: ['prepared:/prepared']
    pre_start:
      - {command: [sh, -c, 'echo $$WHO $$(id -u) $$(pwd) >>/prepared/said'], user: '0', working_dir: /prepared, environment: {WHO: hook}}
      - {image: 'wharf/testserver:1', command: [sh, -c, 'ls /testserver >>/prepared/said'], per_replica: false}
  hooked:
    <<: *still
    init: true
    stop_grace_period: 10s
    volumes: ['left:/left']
    deploy: {placement: {constraints: [node.hostname == n2]}}
    post_start:
      - {command: [sh, -c, 'echo $$WHO $$(id -u) $$(pwd) >/tmp/started'], user: '65534', working_dir: /tmp, environment: {WHO: hook}}
    pre_stop:
      - {command: [sh, -c, 'echo $$WHO $$(id -u) $$(pwd) >/left/ended'], user: '0', working_dir: /left, environment: [WHO=hook]}
  limited:
    <<: *still
    cpus: 0.5
    mem_limit: 64m
    mem_reservation: 32m
    memswap_limit: 128m
    mem_swappiness: 10
    pids_limit: 50
    cpu_shares: 512
    cpuset: '0'
    blkio_config:
      weight: 300
      weight_device: [{path: BLOCK, weight: 400}]
      device_read_bps: [{path: BLOCK, rate: 1mb}]
      device_read_iops: [{path: BLOCK, rate: 100}]
      device_write_bps: [{path: BLOCK, rate: 2mb}]
      device_write_iops: [{path: BLOCK, rate: 200}]
  quota: {<<: *still, cpu_period: 50000, cpu_quota: 25ms}
  deployed:
    <<: *still
    deploy:
      mode: replicated
      replicas: 2
      labels: {of: service}
      endpoint_mode: dnsrr
      resources:
        limits: {cpus: '0.25', memory: 48m, pids: 20}
        reservations: {memory: 24m}
      placement: {max_replicas_per_node: 1}
  everywhere: {<<: *still, deploy: {mode: global}}
  there: {<<: *still, deploy: {placement: {constraints: [node.hostname == n2]}}}
  scaled: {<<: *still, scale: 2}
  checked:
    <<: *still
    healthcheck: {test: [CMD, 'true'], interval: 1s, timeout: 900ms, retries: 7, start_period: 4s}
  unchecked: {<<: *still, healthcheck: {disable: true}}
  mounted:
    <<: *still
    volumes:
      - {type: volume, source: data, target: /data, read_only: true, volume: {nocopy: true, labels: {m.label: mounted}}}
      - {type: volume, target: /anonymous}
      - {type: bind, source: /root/made, target: /made, bind: {create_host_path: true, propagation: rslave, selinux: z}}
      - {type: tmpfs, target: /memory, tmpfs: {size: 2m, mode: 0700}}
      - ram:/ram
      - /dev:/host-dev:ro
      - {type: bind, source: /proc, target: /host-proc, bind: {recursive: disabled}}
  files:
    <<: *still
    configs:
      - plain
      - {source: variable, target: /etc/variable.conf, uid: '1000', gid: '1001', mode: 0440}
      - filed
      - named
    secrets:
      - plain
      - {source: filed, target: renamed, uid: '1002', gid: '1003', mode: 0400}
      - variable
      - named
  lan:
    image: wharf/testserver:1
    stop_grace_period: 0s
    container_name: contained
    networks:
      back: {aliases: [known-as], priority: 1, link_local_ips: [169.254.8.8], driver_opts: {an.option: b}}
      front: {priority: 2, ipv4_address: 10.78.0.99}
    ports:
      - '8301:8080'
      - '8304-8310:8080'
      - {target: 8080, published: 8302, protocol: tcp, mode: host, host_ip: 127.0.0.1, name: web, app_protocol: http}
      - {target: 8081, published: '8303', protocol: udp, mode: host}
  fronted: {<<: *still, networks: [front]}
  near: {<<: *still, network_mode: 'service:lan'}
  outside: {<<: *still, network_mode: host}
  alone: {<<: *still, network_mode: none}
  names:
    <<: *still
    dns: [10.9.9.9]
    dns_search: [s.example]
    dns_opt: ['ndots:3']
    extra_hosts: ['db.example=10.8.8.8']
  linked:
    <<: *still
    links: ['lan:friend']
    networks: [back]
    depends_on: {lan: {condition: service_started}, unprofiled: {condition: service_started, required: false}}
  profiled: {<<: *still, profiles: [wanted]}
  unprofiled: {<<: *still, profiles: [unwanted]}
  base: {<<: *still, labels: {base: same file}}
  extended: {extends: {service: base}}
  extended-far: {extends: {service: base, file: base.yaml}}
networks:
  back: {name: the-back, driver: bridge, internal: true, attachable: true, labels: {n.label: 'yes'}}
  front:
    driver: overlay
    enable_ipv4: true
    enable_ipv6: false
    ipam: {driver: default, config: [{subnet: 10.78.0.0/16, ip_range: 10.78.9.0/24, gateway: 10.78.0.1, aux_addresses: {printer: 10.78.9.5}}]}
    driver_opts: {com.docker.network.driver.mtu: '1300'}
volumes:
  data: {name: the-data, labels: {v.label: 'yes'}}
  ram: {driver: local, driver_opts: {type: tmpfs, device: tmpfs, o: size=1m}}
  shared:
  left:
  prepared:
configs:
  plain: {content: a config}
  variable: {environment: TOKEN}
  filed: {file: note.txt}
  named: {content: named, name: another-name, labels: {a: b}}
secrets:
  plain: {content: a secret}
  variable: {environment: TOKEN}
  filed: {file: note.txt}
  named: {content: named, name: another-name, labels: {a: b}}
";

/// What the first step before a start says, and the second.
const PREPARED: &str = "hook 0 /prepared\n/testserver";

/// What lies beside it.
const BESIDE: &[(&str, &str)] = &[
    (".env", "TOKEN=from the environment\n"),
    ("vars.env", "FROM_FILE=file\nBOTH=file\n"),
    ("raw.env", "RAW=\"as it $stands\"\n"),
    ("labels.env", "from.file=yes\n"),
    ("note.txt", "a note"),
    (
        "profile.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#,
    ),
    (
        "inner/compose.yaml",
        "services:\n  included: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, environment: {WHO: '${WHO}'}, env_file: more.env}\n",
    ),
    ("inner/inner.env", "WHO=included\n"),
    ("inner/below/more.env", "MORE=more\n"),
    (
        "base.yaml",
        "services:\n  base: {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s, labels: {base: other file}}\n",
    ),
];

const MAIN_ROWS: &[Row] = &[
    row("name", "plain", Container("/Config/Labels/com.docker.compose.project", r#""main""#)),
    row("services", "plain", Tasks(1, 1)),
    row("include", "included", Tasks(1, 1)),
    row("include[].path", "included", Listed("/Config/Env", r#""WHO=included""#)),
    row("include[].env_file", "included", Listed("/Config/Env", r#""WHO=included""#)),
    row("include[].project_directory", "included", Listed("/Config/Env", r#""MORE=more""#)),
    row("networks", "the-back", Network("/Driver", r#""bridge""#)),
    row("volumes", "the-data", Volume("/Driver", r#""local""#)),
    row("secrets", "files", Inside("cat /run/secrets/plain", "a secret")),
    row("configs", "files", Inside("cat /plain", "a config")),
    // What runs.
    row("services.*.image", "lan", Image("wharf/testserver:1")),
    row("services.*.entrypoint", "plain", Container("/Config/Entrypoint", r#"["/bin/sh", "-c"]"#)),
    row("services.*.command", "plain", Container("/Config/Cmd", r#"["exec sleep 10000"]"#)),
    row("services.*.command", "confined", Container("/Config/Cmd", r#"["sleep", "10000"]"#)),
    row("services.*.working_dir", "plain", Container("/Config/WorkingDir", r#""/tmp""#)),
    row("services.*.working_dir", "plain", Inside("pwd", "/tmp")),
    row("services.*.user", "plain", Container("/Config/User", r#""65534:65534""#)),
    row("services.*.user", "plain", Inside("id -u; id -g", "65534\n65534")),
    row("services.*.hostname", "plain", Container("/Config/Hostname", r#""chosen""#)),
    row("services.*.hostname", "plain", Inside("hostname", "chosen")),
    row("services.*.hostname", "confined", Inside("hostname", "main-confined-1")),
    row("services.*.domainname", "plain", Container("/Config/Domainname", r#""d.example""#)),
    row("services.*.tty", "plain", Container("/Config/Tty", "true")),
    row("services.*.stdin_open", "plain", Container("/Config/OpenStdin", "true")),
    row("services.*.init", "plain", Container("/HostConfig/Init", "true")),
    row("services.*.read_only", "plain", Container("/HostConfig/ReadonlyRootfs", "true")),
    row("services.*.read_only", "plain", Inside("touch /x 2>/dev/null || echo no", "no")),
    row("services.*.environment", "plain", Listed("/Config/Env", r#""PLAIN=1""#)),
    row("services.*.environment", "plain", Listed("/Config/Env", r#""BOTH=file beaten""#)),
    row("services.*.environment", "plain", Listed("/Config/Env", r#""TOKEN=from the environment""#)),
    row("services.*.env_file", "plain", Listed("/Config/Env", r#""FROM_FILE=file""#)),
    row("services.*.env_file[].path", "plain", Listed("/Config/Env", r#""FROM_FILE=file""#)),
    row("services.*.env_file[].format", "plain", Listed("/Config/Env", r#""RAW=\"as it $stands\"""#)),
    row("services.*.env_file[].required", "plain", Tasks(1, 1)),
    row("services.*.labels", "plain", Container("/Config/Labels/a.label", r#""b""#)),
    row("services.*.label_file", "plain", Container("/Config/Labels/from.file", r#""yes""#)),
    row("services.*.profiles", "profiled", Tasks(1, 1)),
    row("services.*.profiles", "unprofiled", Tasks(0, 0)),
    row("services.*.extends", "extended", Container("/Config/Labels/base", r#""same file""#)),
    row("services.*.extends.service", "extended", Container("/Config/Labels/base", r#""same file""#)),
    row("services.*.extends.file", "extended-far", Container("/Config/Labels/base", r#""other file""#)),
    // How it is confined.
    row("services.*.cap_add", "confined", Container("/HostConfig/CapAdd", r#"["NET_ADMIN"]"#)),
    row("services.*.cap_add", "confined", Inside("ip link set lo mtu 1400 && echo may", "may")),
    row("services.*.cap_drop", "confined", Container("/HostConfig/CapDrop", r#"["MKNOD"]"#)),
    row("services.*.cap_drop", "confined", Inside("mknod /n c 1 3 2>/dev/null || echo may not", "may not")),
    row(
        "services.*.security_opt",
        "confined",
        Listed("/HostConfig/SecurityOpt", r#""no-new-privileges:true""#),
    ),
    row("services.*.security_opt", "confined", Inside("mkdir /tmp/x 2>/dev/null || echo may not", "may not")),
    row("services.*.security_opt", "confined", Inside("grep NoNewPrivs /proc/1/status | tail -c 2", "1")),
    row("services.*.group_add", "confined", Container("/HostConfig/GroupAdd", r#"["44"]"#)),
    row("services.*.group_add", "confined", Inside("grep Groups /proc/1/status | grep -o 44", "44")),
    row("services.*.devices", "confined", Inside("head -c 3 /dev/nothing | wc -c", "3")),
    row(
        "services.*.devices[].source",
        "confined",
        Container("/HostConfig/Devices/0/PathOnHost", r#""/dev/zero""#),
    ),
    row(
        "services.*.devices[].target",
        "confined",
        Container("/HostConfig/Devices/0/PathInContainer", r#""/dev/nothing""#),
    ),
    row(
        "services.*.devices[].permissions",
        "confined",
        Container("/HostConfig/Devices/0/CgroupPermissions", r#""rw""#),
    ),
    row(
        "services.*.device_cgroup_rules",
        "confined",
        Container("/HostConfig/DeviceCgroupRules", r#"["c 1:3 mr"]"#),
    ),
    row("services.*.ipc", "sharing", Shares("/HostConfig/IpcMode", "owner", "")),
    row("services.*.ipc", "owner", Container("/HostConfig/IpcMode", r#""shareable""#)),
    row("services.*.ipc", "joined", Container("/HostConfig/IpcMode", r#""host""#)),
    row("services.*.pid", "sharing", Shares("/HostConfig/PidMode", "owner", "")),
    row("services.*.pid", "joined", Container("/HostConfig/PidMode", r#""host""#)),
    row("services.*.uts", "joined", Container("/HostConfig/UTSMode", r#""host""#)),
    row("services.*.userns_mode", "joined", Container("/HostConfig/UsernsMode", r#""host""#)),
    row("services.*.cgroup", "confined", Container("/HostConfig/CgroupnsMode", r#""private""#)),
    row("services.*.cgroup", "joined", Container("/HostConfig/CgroupnsMode", r#""host""#)),
    row("services.*.cgroup_parent", "joined", Container("/HostConfig/CgroupParent", r#""/parent""#)),
    row("services.*.shm_size", "confined", Container("/HostConfig/ShmSize", "33554432")),
    row("services.*.shm_size", "confined", Inside("df -k /dev/shm | tail -1 | awk '{print $2}'", "32768")),
    row(
        "services.*.sysctls",
        "confined",
        Container("/HostConfig/Sysctls", r#"{"net.core.somaxconn": "1024"}"#),
    ),
    row("services.*.sysctls", "confined", Inside("cat /proc/sys/net/core/somaxconn", "1024")),
    row(
        "services.*.ulimits",
        "confined",
        Listed("/HostConfig/Ulimits", r#"{"Name": "nproc", "Soft": 65535, "Hard": 65535}"#),
    ),
    row(
        "services.*.ulimits.*.soft",
        "confined",
        Inside("grep 'open files' /proc/1/limits | awk '{print $4}'", "1000"),
    ),
    row(
        "services.*.ulimits.*.hard",
        "confined",
        Inside("grep 'open files' /proc/1/limits | awk '{print $5}'", "2000"),
    ),
    row("services.*.runtime", "confined", Container("/HostConfig/Runtime", r#""io.containerd.runc.v2""#)),
    // What it may use.
    row("services.*.cpus", "limited", Container("/HostConfig/NanoCpus", "500000000")),
    row("services.*.mem_limit", "limited", Container("/HostConfig/Memory", "67108864")),
    row("services.*.mem_reservation", "limited", Container("/HostConfig/MemoryReservation", "33554432")),
    row("services.*.memswap_limit", "limited", Container("/HostConfig/MemorySwap", "134217728")),
    row("services.*.mem_swappiness", "limited", Container("/HostConfig/MemorySwappiness", "10")),
    row("services.*.pids_limit", "limited", Container("/HostConfig/PidsLimit", "50")),
    row("services.*.cpu_shares", "limited", Container("/HostConfig/CpuShares", "512")),
    row("services.*.cpuset", "limited", Container("/HostConfig/CpusetCpus", r#""0""#)),
    row(
        "services.*.cpuset",
        "limited",
        Inside("grep Cpus_allowed_list /proc/1/status | awk '{print $2}'", "0"),
    ),
    row("services.*.cpu_period", "quota", Container("/HostConfig/CpuPeriod", "50000")),
    row("services.*.cpu_quota", "quota", Container("/HostConfig/CpuQuota", "25000")),
    row(
        "services.*.blkio_config",
        "limited",
        Container("/HostConfig/BlkioDeviceReadBps", r#"[{"Path": "BLOCK", "Rate": 1048576}]"#),
    ),
    row(
        "services.*.blkio_config.weight",
        "limited",
        Told("/HostConfig/BlkioWeight", "300", "Block I/O weight "),
    ),
    row(
        "services.*.blkio_config.weight_device",
        "limited",
        Told(
            "/HostConfig/BlkioWeightDevice",
            r#"[{"Path": "BLOCK", "Weight": 400}]"#,
            "Block I/O weight_device",
        ),
    ),
    row(
        "services.*.blkio_config.weight_device[].path",
        "limited",
        Told(
            "/HostConfig/BlkioWeightDevice",
            r#"[{"Path": "BLOCK", "Weight": 400}]"#,
            "Block I/O weight_device",
        ),
    ),
    row(
        "services.*.blkio_config.weight_device[].weight",
        "limited",
        Told(
            "/HostConfig/BlkioWeightDevice",
            r#"[{"Path": "BLOCK", "Weight": 400}]"#,
            "Block I/O weight_device",
        ),
    ),
    row(
        "services.*.blkio_config.device_read_bps",
        "limited",
        Container("/HostConfig/BlkioDeviceReadBps", r#"[{"Path": "BLOCK", "Rate": 1048576}]"#),
    ),
    row(
        "services.*.blkio_config.device_read_bps[].path",
        "limited",
        Container("/HostConfig/BlkioDeviceReadBps/0/Path", r#""BLOCK""#),
    ),
    row(
        "services.*.blkio_config.device_read_bps[].rate",
        "limited",
        Container("/HostConfig/BlkioDeviceReadBps/0/Rate", "1048576"),
    ),
    row(
        "services.*.blkio_config.device_read_iops",
        "limited",
        Container("/HostConfig/BlkioDeviceReadIOps", r#"[{"Path": "BLOCK", "Rate": 100}]"#),
    ),
    row(
        "services.*.blkio_config.device_read_iops[].path",
        "limited",
        Container("/HostConfig/BlkioDeviceReadIOps/0/Path", r#""BLOCK""#),
    ),
    row(
        "services.*.blkio_config.device_read_iops[].rate",
        "limited",
        Container("/HostConfig/BlkioDeviceReadIOps/0/Rate", "100"),
    ),
    row(
        "services.*.blkio_config.device_write_bps",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteBps", r#"[{"Path": "BLOCK", "Rate": 2097152}]"#),
    ),
    row(
        "services.*.blkio_config.device_write_bps[].path",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteBps/0/Path", r#""BLOCK""#),
    ),
    row(
        "services.*.blkio_config.device_write_bps[].rate",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteBps/0/Rate", "2097152"),
    ),
    row(
        "services.*.blkio_config.device_write_iops",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteIOps", r#"[{"Path": "BLOCK", "Rate": 200}]"#),
    ),
    row(
        "services.*.blkio_config.device_write_iops[].path",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteIOps/0/Path", r#""BLOCK""#),
    ),
    row(
        "services.*.blkio_config.device_write_iops[].rate",
        "limited",
        Container("/HostConfig/BlkioDeviceWriteIOps/0/Rate", "200"),
    ),
    row("services.*.oom_kill_disable", "confined", Container("/HostConfig/OomKillDisable", "true")),
    row("services.*.oom_score_adj", "confined", Container("/HostConfig/OomScoreAdj", "100")),
    row("services.*.oom_score_adj", "confined", Inside("cat /proc/1/oom_score_adj", "100")),
    // Names and connections.
    row(
        "services.*.networks.*.link_local_ips",
        "lan",
        Container("/NetworkSettings/Networks/the-back/IPAMConfig/LinkLocalIPs", r#"["169.254.8.8"]"#),
    ),
    row(
        "services.*.networks.*.driver_opts",
        "lan",
        Container("/NetworkSettings/Networks/the-back/DriverOpts", r#"{"an.option": "b"}"#),
    ),
    row("services.*.ports[].published", "lan", Answers(":8304/", "hostname=main-lan-1")),
    row("services.*.networks", "lan", Container("/NetworkSettings/Networks/the-back/IPPrefixLen", "20")),
    row(
        "services.*.networks.*.aliases",
        "linked",
        Inside("wget -q -O - http://known-as:8080/ | grep -o main-lan-1 | head -1", "main-lan-1"),
    ),
    row(
        "services.*.networks.*.ipv4_address",
        "lan",
        Container("/NetworkSettings/Networks/main_front/IPAddress", r#""10.78.0.99""#),
    ),
    row(
        "services.*.networks.*.priority",
        "lan",
        Inside("ip route | grep default | grep -o 'via 10.78'", "via 10.78"),
    ),
    row("services.*.network_mode", "outside", Container("/HostConfig/NetworkMode", r#""host""#)),
    row("services.*.network_mode", "sharing", Container("/HostConfig/NetworkMode", r#""bridge""#)),
    row("services.*.network_mode", "near", Shares("/HostConfig/NetworkMode", "lan", "")),
    row("services.*.network_mode", "alone", Container("/HostConfig/NetworkMode", r#""none""#)),
    row("services.*.network_mode", "near", Inside("ip address | grep -o 10.78.0.99/", "10.78.0.99/")),
    row("services.*.ports", "lan", Answers(":8301/", "hostname=main-lan-1")),
    row(
        "services.*.ports[].target",
        "lan",
        Container("/HostConfig/PortBindings/8080~1tcp/0/HostPort", r#""8302""#),
    ),
    row(
        "services.*.ports[].published",
        "lan",
        Container("/HostConfig/PortBindings/8080~1tcp/0/HostPort", r#""8302""#),
    ),
    row(
        "services.*.ports[].protocol",
        "lan",
        Container("/HostConfig/PortBindings/8081~1udp/0/HostPort", r#""8303""#),
    ),
    row(
        "services.*.ports[].mode",
        "lan",
        Container("/HostConfig/PortBindings/8081~1udp/0/HostPort", r#""8303""#),
    ),
    row(
        "services.*.ports[].host_ip",
        "lan",
        Container("/HostConfig/PortBindings/8080~1tcp/0/HostIp", r#""127.0.0.1""#),
    ),
    row("services.*.ports[].name", "lan", Kept("/spec/ports/2/name", r#""web""#)),
    row("services.*.ports[].app_protocol", "lan", Kept("/spec/ports/2/app_protocol", r#""http""#)),
    row("services.*.expose", "plain", Container("/Config/ExposedPorts", r#"{"9000/tcp": {}}"#)),
    row(
        "services.*.links",
        "linked",
        Inside("wget -q -O - http://friend:8080/ | grep -o main-lan-1 | head -1", "main-lan-1"),
    ),
    row(
        "services.*.container_name",
        "linked",
        Inside("wget -q -O - http://contained:8080/ | grep -o main-lan-1 | head -1", "main-lan-1"),
    ),
    row("services.*.dns", "names", Listed("/HostConfig/Dns", r#""10.9.9.9""#)),
    row("services.*.dns_search", "names", Container("/HostConfig/DnsSearch", r#"["s.example"]"#)),
    row("services.*.dns_search", "names", Inside("grep search /etc/resolv.conf", "search s.example")),
    row("services.*.dns_opt", "names", Container("/HostConfig/DnsOptions", r#"["ndots:3"]"#)),
    row("services.*.extra_hosts", "names", Container("/HostConfig/ExtraHosts", r#"["db.example:10.8.8.8"]"#)),
    row(
        "services.*.extra_hosts",
        "names",
        Inside("grep db.example /etc/hosts | awk '{print $1}'", "10.8.8.8"),
    ),
    // Files.
    row("services.*.volumes_from", "sharing", Shares("/HostConfig/VolumesFrom/0", "owner", ":ro")),
    row(
        "services.*.volumes_from",
        "sharing",
        Inside("touch /shared/x 2>/dev/null || ls -d /shared", "/shared"),
    ),
    row("services.*.volumes[].volume.labels", "the-data", Volume("/Labels/m.label", r#""mounted""#)),
    row(
        "services.*.volumes[].bind.recursive",
        "mounted",
        Listed(
            "/HostConfig/Mounts",
            r#"{"Type": "bind", "Source": "/proc", "Target": "/host-proc", "BindOptions": {"NonRecursive": true}}"#,
        ),
    ),
    row(
        "services.*.volumes",
        "mounted",
        Inside("mount | grep -c -E ' on /(data|anonymous|made|memory|ram|host-dev) '", "6"),
    ),
    row(
        "services.*.volumes[].type",
        "mounted",
        Listed("/HostConfig/Mounts", r#"{"Type": "volume", "Target": "/anonymous"}"#),
    ),
    row(
        "services.*.volumes[].source",
        "mounted",
        Listed(
            "/HostConfig/Mounts",
            r#"{"Type": "volume", "Source": "the-data", "Target": "/data", "ReadOnly": true, "VolumeOptions": {"NoCopy": true}}"#,
        ),
    ),
    row("services.*.volumes[].target", "mounted", Inside("ls -d /data", "/data")),
    row(
        "services.*.volumes[].read_only",
        "mounted",
        Inside("touch /data/x 2>&1 | grep -o Read-only", "Read-only"),
    ),
    row(
        "services.*.volumes[].bind",
        "mounted",
        Listed("/HostConfig/Binds", r#""/root/made:/made:rw,rslave,z""#),
    ),
    row(
        "services.*.volumes[].bind.propagation",
        "mounted",
        Listed("/HostConfig/Binds", r#""/root/made:/made:rw,rslave,z""#),
    ),
    row("services.*.volumes[].bind.create_host_path", "mounted", Inside("touch /made/x && ls /made", "x")),
    row(
        "services.*.volumes[].bind.selinux",
        "mounted",
        Listed("/HostConfig/Binds", r#""/root/made:/made:rw,rslave,z""#),
    ),
    row(
        "services.*.volumes[].volume",
        "mounted",
        Listed(
            "/HostConfig/Mounts",
            r#"{"Type": "volume", "Source": "the-data", "Target": "/data", "ReadOnly": true, "VolumeOptions": {"NoCopy": true}}"#,
        ),
    ),
    row(
        "services.*.volumes[].volume.nocopy",
        "mounted",
        Listed(
            "/HostConfig/Mounts",
            r#"{"Type": "volume", "Source": "the-data", "Target": "/data", "ReadOnly": true, "VolumeOptions": {"NoCopy": true}}"#,
        ),
    ),
    row(
        "services.*.volumes[].tmpfs",
        "mounted",
        Listed(
            "/HostConfig/Mounts",
            r#"{"Type": "tmpfs", "Target": "/memory", "TmpfsOptions": {"SizeBytes": 2097152, "Mode": 448}}"#,
        ),
    ),
    row(
        "services.*.volumes[].tmpfs.size",
        "mounted",
        Inside("df -k /memory | tail -1 | awk '{print $2}'", "2048"),
    ),
    row("services.*.volumes[].tmpfs.mode", "mounted", Inside("stat -c %a /memory", "700")),
    row("services.*.tmpfs", "confined", Container("/HostConfig/Tmpfs", r#"{"/run": "size=1m"}"#)),
    row("services.*.tmpfs", "confined", Inside("df -k /run | tail -1 | awk '{print $2}'", "1024")),
    row("services.*.configs", "files", Inside("cat /plain", "a config")),
    row("services.*.configs[].source", "files", Inside("cat /etc/variable.conf", "from the environment")),
    row("services.*.configs[].target", "files", Inside("ls /etc/variable.conf", "/etc/variable.conf")),
    row("services.*.configs[].uid", "files", Inside("stat -c %u /etc/variable.conf", "1000")),
    row("services.*.configs[].gid", "files", Inside("stat -c %g /etc/variable.conf", "1001")),
    row("services.*.configs[].mode", "files", Inside("stat -c %a /etc/variable.conf /plain", "440\n444")),
    row("services.*.secrets", "files", Inside("cat /run/secrets/plain", "a secret")),
    row(
        "services.*.secrets",
        "files",
        Inside("mount | grep ' /run/secrets/plain ' | awk '{print $5}'", "tmpfs"),
    ),
    row("services.*.secrets[].source", "files", Inside("cat /run/secrets/renamed", "a note")),
    row("services.*.secrets[].target", "files", Inside("ls /run/secrets", "named\nplain\nrenamed\nvariable")),
    row("services.*.secrets[].uid", "files", Inside("stat -c %u /run/secrets/renamed", "1002")),
    row("services.*.secrets[].gid", "files", Inside("stat -c %g /run/secrets/renamed", "1003")),
    row(
        "services.*.secrets[].mode",
        "files",
        Inside("stat -c %a /run/secrets/renamed /run/secrets/plain", "400\n444"),
    ),
    // Life.
    row("services.*.pre_start", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].command", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].image", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].user", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].working_dir", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].environment", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.pre_start[].per_replica", "prepared", Inside("cat /prepared/said", PREPARED)),
    row("services.*.post_start", "hooked", Inside("cat /tmp/started", "hook 65534 /tmp")),
    row("services.*.post_start[].command", "hooked", Inside("cat /tmp/started", "hook 65534 /tmp")),
    row("services.*.post_start[].user", "hooked", Inside("cat /tmp/started", "hook 65534 /tmp")),
    row("services.*.post_start[].working_dir", "hooked", Inside("cat /tmp/started", "hook 65534 /tmp")),
    row("services.*.post_start[].environment", "hooked", Inside("cat /tmp/started", "hook 65534 /tmp")),
    row("services.*.depends_on.*.required", "linked", Tasks(1, 1)),
    row("services.*.healthcheck", "checked", Container("/State/Health/Status", r#""healthy""#)),
    row(
        "services.*.healthcheck.disable",
        "unchecked",
        Container("/Config/Healthcheck", r#"{"Test": ["NONE"]}"#),
    ),
    row(
        "services.*.healthcheck.test",
        "checked",
        Container("/Config/Healthcheck/Test", r#"["CMD", "true"]"#),
    ),
    row(
        "services.*.healthcheck.interval",
        "checked",
        Container("/Config/Healthcheck/Interval", "1000000000"),
    ),
    row("services.*.healthcheck.timeout", "checked", Container("/Config/Healthcheck/Timeout", "900000000")),
    row("services.*.healthcheck.retries", "checked", Container("/Config/Healthcheck/Retries", "7")),
    row(
        "services.*.healthcheck.start_period",
        "checked",
        Container("/Config/Healthcheck/StartPeriod", "4000000000"),
    ),
    row("services.*.stop_signal", "plain", Container("/Config/StopSignal", r#""SIGINT""#)),
    row("services.*.stop_grace_period", "plain", Container("/Config/StopTimeout", "3")),
    row(
        "services.*.logging",
        "plain",
        Container("/HostConfig/LogConfig", r#"{"Type": "local", "Config": {"max-size": "1m"}}"#),
    ),
    row("services.*.logging.driver", "plain", Container("/HostConfig/LogConfig/Type", r#""local""#)),
    row(
        "services.*.logging.options",
        "plain",
        Container("/HostConfig/LogConfig/Config", r#"{"max-size": "1m"}"#),
    ),
    // Deployment.
    row("services.*.scale", "scaled", Tasks(2, 2)),
    row("services.*.deploy", "deployed", Tasks(2, 2)),
    row("services.*.deploy.mode", "everywhere", Tasks(2, 2)),
    row("services.*.deploy.replicas", "deployed", Tasks(2, 2)),
    row("services.*.deploy.labels", "deployed", Kept("/spec/labels", r#"{"of": "service"}"#)),
    row(
        "services.*.deploy.endpoint_mode",
        "confined",
        Inside("nslookup deployed | grep -A 9 Name | grep -c Address", "2"),
    ),
    row("services.*.deploy.resources", "deployed", Container("/HostConfig/NanoCpus", "250000000")),
    row("services.*.deploy.resources.limits", "deployed", Container("/HostConfig/NanoCpus", "250000000")),
    row(
        "services.*.deploy.resources.limits.cpus",
        "deployed",
        Container("/HostConfig/NanoCpus", "250000000"),
    ),
    row("services.*.deploy.resources.limits.memory", "deployed", Container("/HostConfig/Memory", "50331648")),
    row("services.*.deploy.resources.limits.pids", "deployed", Container("/HostConfig/PidsLimit", "20")),
    row(
        "services.*.deploy.resources.reservations",
        "deployed",
        Container("/HostConfig/MemoryReservation", "25165824"),
    ),
    row(
        "services.*.deploy.resources.reservations.memory",
        "deployed",
        Container("/HostConfig/MemoryReservation", "25165824"),
    ),
    row("services.*.deploy.placement", "there", On("n2")),
    row("services.*.deploy.placement.constraints", "there", On("n2")),
    row("services.*.deploy.placement.max_replicas_per_node", "deployed", Tasks(2, 2)),
    // Networks and volumes.
    row("networks.*.labels", "the-back", Network("/Labels/n.label", r#""yes""#)),
    row(
        "networks.*.driver_opts",
        "main_front",
        Network("/Options/com.docker.network.driver.mtu", r#""1300""#),
    ),
    row(
        "networks.*.ipam.config[].gateway",
        "main_front",
        Somewhere("/IPAM/Config/0/Gateway", r#""10.78.0.1""#),
    ),
    row(
        "networks.*.ipam.config[].ip_range",
        "fronted",
        Inside("ip address | grep -o 'inet 10.78.9'", "inet 10.78.9"),
    ),
    row("networks.*.name", "the-back", Network("/Name", r#""the-back""#)),
    row("networks.*.driver", "main_front", Network("/Driver", r#""bridge""#)),
    row("networks.*.attachable", "the-back", Network("/Attachable", "true")),
    row("networks.*.internal", "the-back", Network("/Internal", "true")),
    row("networks.*.internal", "confined", Inside("ping -c 1 -W 3 CLIENT >/dev/null && echo out", "out")),
    row(
        "networks.*.internal",
        "linked",
        Inside("ping -c 1 -W 1 CLIENT >/dev/null || echo no way out", "no way out"),
    ),
    row("networks.*.enable_ipv4", "main_front", Network("/IPAM/Config/0/Subnet", r#""10.78.0.0/16""#)),
    row("networks.*.enable_ipv6", "main_front", Network("/EnableIPv6", "false")),
    row("networks.*.ipam", "main_front", Network("/IPAM/Config/0/Subnet", r#""10.78.0.0/16""#)),
    row("networks.*.ipam.driver", "main_front", Network("/IPAM/Driver", r#""default""#)),
    row("networks.*.ipam.config", "main_front", Network("/IPAM/Config/0/Subnet", r#""10.78.0.0/16""#)),
    row(
        "networks.*.ipam.config[].subnet",
        "main_front",
        Network("/IPAM/Config/0/Subnet", r#""10.78.0.0/16""#),
    ),
    row("volumes.*.name", "the-data", Volume("/Name", r#""the-data""#)),
    row("volumes.*.driver", "main_ram", Volume("/Driver", r#""local""#)),
    row(
        "volumes.*.driver_opts",
        "main_ram",
        Volume("/Options", r#"{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}"#),
    ),
    row("volumes.*.labels", "the-data", Volume("/Labels/v.label", r#""yes""#)),
    // Configs and secrets.
    row("secrets.*.content", "files", Inside("cat /run/secrets/plain", "a secret")),
    row("secrets.*.environment", "files", Inside("cat /run/secrets/variable", "from the environment")),
    row("secrets.*.file", "files", Inside("cat /run/secrets/renamed", "a note")),
    row("secrets.*.name", "files", Inside("cat /run/secrets/named", "named")),
    row("secrets.*.labels", "files", Inside("cat /run/secrets/named", "named")),
    row("configs.*.content", "files", Inside("cat /plain", "a config")),
    row("configs.*.environment", "files", Inside("cat /etc/variable.conf", "from the environment")),
    row("configs.*.file", "files", Inside("cat /filed", "a note")),
    row("configs.*.name", "files", Inside("cat /named", "named")),
    row("configs.*.labels", "files", Inside("cat /named", "named")),
];

/// What is seen once the services of `main` have been replaced.
const REPLACED_ROWS: &[Row] = &[
    row("services.*.pre_stop", "hooked", Inside("cat /left/ended", "hook 0 /left")),
    row("services.*.pre_stop[].command", "hooked", Inside("cat /left/ended", "hook 0 /left")),
    row("services.*.pre_stop[].user", "hooked", Inside("cat /left/ended", "hook 0 /left")),
    row("services.*.pre_stop[].working_dir", "hooked", Inside("cat /left/ended", "hook 0 /left")),
    row("services.*.pre_stop[].environment", "hooked", Inside("cat /left/ended", "hook 0 /left")),
];

/// What is built on the way up, by both of the engine's builders.
const BUILT: &str = r"
name: built
services:
  classic:
    build:
      context: folder
      dockerfile: Other
      args: {WHO: ada}
      labels: {l.built: 'yes'}
      target: wanted
      network: none
      shm_size: 32m
      ulimits: {nofile: {soft: 1000, hard: 2000}}
      extra_hosts: ['db.built=10.7.7.7']
    command: sleep 10000
    stop_grace_period: 0s
  kit:
    build:
      context: folder
      dockerfile_inline: |
        FROM busybox:1
        COPY note.txt /
        RUN --mount=type=secret,id=key cat /run/secrets/key >/seen
      secrets: [{source: hidden, target: key}]
    command: sleep 10000
    stop_grace_period: 0s
secrets:
  hidden: {content: a secret}
";

const OTHER: &str = r"
FROM busybox:1 AS wanted
ARG WHO
COPY note.txt /
RUN echo $WHO >/who
RUN df -k /dev/shm | tail -1 | awk '{print $2}' >/shm
RUN echo $(ulimit -Sn) $(ulimit -Hn) >/nofile
RUN grep db.built /etc/hosts | awk '{print $1}' >/hosts
RUN ls /sys/class/net >/links
FROM wanted
RUN echo later >/later
";

const BUILT_ROWS: &[Row] = &[
    row("services.*.build.context", "classic", Inside("cat /note.txt", "a note")),
    row("services.*.build", "classic", Inside("cat /note.txt", "a note")),
    row("services.*.build.dockerfile", "classic", Inside("cat /who", "ada")),
    row("services.*.build.args", "classic", Inside("cat /who", "ada")),
    row("services.*.build.labels", "classic", Container("/Config/Labels/l.built", r#""yes""#)),
    row("services.*.build.target", "classic", Inside("ls /later 2>/dev/null || echo not built", "not built")),
    row("services.*.build.shm_size", "classic", Inside("cat /shm", "32768")),
    row("services.*.build.ulimits", "classic", Inside("cat /nofile", "1000 2000")),
    row("services.*.build.ulimits.*.soft", "classic", Inside("cat /nofile", "1000 2000")),
    row("services.*.build.ulimits.*.hard", "classic", Inside("cat /nofile", "1000 2000")),
    row("services.*.build.extra_hosts", "classic", Inside("cat /hosts", "10.7.7.7")),
    row("services.*.build.network", "classic", Inside("cat /links", "lo")),
    row("services.*.build.dockerfile_inline", "kit", Inside("cat /note.txt", "a note")),
    row("services.*.build.secrets", "kit", Inside("cat /seen", "a secret")),
    row("services.*.build.secrets[].source", "kit", Inside("cat /seen", "a secret")),
    row("services.*.build.secrets[].target", "kit", Inside("cat /seen", "a secret")),
];

/// What a machine of tests may be unable to start: the container is looked at when it is made.
const HARD: &str = r"
name: hard
x-still: &still {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}
services:
  boss: {<<: *still, privileged: true}
  gpu:
    <<: *still
    deploy: {placement: {constraints: [node.hostname == n1]}}
    gpus: [{driver: nvidia, count: 2, capabilities: [compute], options: {a: b}}]
  one-gpu: {<<: *still, deploy: {placement: {constraints: [node.hostname == n1]}}, gpus: [{device_ids: ['3']}]}
  reserved:
    <<: *still
    deploy:
      placement: {constraints: [node.hostname == n1]}
      resources:
        reservations:
          devices: [{driver: nvidia, device_ids: ['2'], capabilities: [gpu, utility], options: {a: b}}]
  counted:
    <<: *still
    deploy:
      placement: {constraints: [node.hostname == n2]}
      resources: {reservations: {devices: [{capabilities: [gpu], count: all}]}}
  greedy: {<<: *still, gpus: [{count: 5}]}
  rt: {<<: *still, cpu_rt_period: 1000, cpu_rt_runtime: 400}
  sized: {<<: *still, storage_opt: {size: 1G}}
  noted: {<<: *still, annotations: {a: b}}
  below: {<<: *still, volumes: [{type: volume, source: data, target: /x, volume: {subpath: a}}]}
  eager: {<<: *still, healthcheck: {test: 'true', start_interval: 1s}}
  imaged: {<<: *still, volumes: [{type: image, source: 'busybox:1', target: /i, image: {subpath: bin}}]}
  strict: {<<: *still, volumes: [{type: bind, source: /root, target: /r, read_only: true, bind: {recursive: readonly}}]}
  addressed: {<<: *still, mac_address: '02:42:ac:11:00:09'}
  attached: {<<: *still, networks: {default: {mac_address: '02:42:ac:11:00:0a'}}}
  interface: {<<: *still, networks: {default: {interface_name: data0}}}
  first: {<<: *still, networks: {default: {gw_priority: 7}}}
  interfaced: {<<: *still, devices: ['vendor.com/class=all']}
  before: {<<: *still, pre_start: [{command: 'true', privileged: true}]}
  homeless: {<<: *still, volumes: ['nowhere:/x']}
  foreign: {<<: *still, platform: linux/riscv64}
  hungry: {<<: *still, deploy: {resources: {reservations: {cpus: '900'}}}}
volumes: {data: , nowhere: {external: true}}
";

const HARD_ROWS: &[Row] = &[
    row(
        "services.*.pre_start[].privileged",
        "before-pre-start-1",
        Container("/HostConfig/Privileged", "true"),
    ),
    row("volumes.*.external", "homeless", Said("is external, and this node has none of that name")),
    row(
        "services.*.volumes[].image",
        "imaged",
        Tried("/HostConfig/Mounts/0/Type", r#""image""#, "`type: image` needs Docker Engine 28"),
    ),
    row(
        "services.*.volumes[].image.subpath",
        "imaged",
        Tried(
            "/HostConfig/Mounts/0/ImageOptions/Subpath",
            r#""bin""#,
            "`type: image` needs Docker Engine 28",
        ),
    ),
    row(
        "services.*.volumes[].type",
        "imaged",
        Tried("/HostConfig/Mounts/0/Type", r#""image""#, "`type: image` needs Docker Engine 28"),
    ),
    row(
        "services.*.volumes[].bind.recursive",
        "strict",
        Tried(
            "/HostConfig/Mounts/0/BindOptions/ReadOnlyForceRecursive",
            "true",
            "`bind.recursive` needs Docker Engine 25",
        ),
    ),
    row(
        "services.*.mac_address",
        "addressed",
        Tried(
            "/NetworkSettings/Networks/hard_default/MacAddress",
            r#""02:42:ac:11:00:09""#,
            "`mac_address` needs Docker Engine 25",
        ),
    ),
    row(
        "services.*.networks.*.mac_address",
        "attached",
        Tried(
            "/NetworkSettings/Networks/hard_default/MacAddress",
            r#""02:42:ac:11:00:0a""#,
            "`mac_address` needs Docker Engine 25",
        ),
    ),
    row(
        "services.*.networks.*.interface_name",
        "interface",
        Tried(
            "/NetworkSettings/Networks/hard_default/DriverOpts/com.docker.network.endpoint.ifname",
            r#""data0""#,
            "`interface_name` needs Docker Engine 28",
        ),
    ),
    row(
        "services.*.networks.*.gw_priority",
        "first",
        Tried(
            "/NetworkSettings/Networks/hard_default/GwPriority",
            "7",
            "`gw_priority` needs Docker Engine 28",
        ),
    ),
    row(
        "services.*.devices",
        "interfaced",
        Tried(
            "/HostConfig/DeviceRequests/0/DeviceIDs",
            r#"["vendor.com/class=all"]"#,
            "needs Docker Engine 25",
        ),
    ),
    row("services.*.platform", "foreign", Said("2 are not linux/riscv64")),
    row("services.*.deploy.resources.reservations.cpus", "hungry", Said("too little CPU (need 900")),
    row("services.*.privileged", "boss", Container("/HostConfig/Privileged", "true")),
    row("services.*.gpus", "gpu", Container("/HostConfig/DeviceRequests/0/DeviceIDs", r#"["0", "1"]"#)),
    row("services.*.gpus", "gpu", Listed("/Config/Env", r#""NVIDIA_VISIBLE_DEVICES=0,1""#)),
    row("services.*.gpus", "greedy", Said("2 have too few free devices of kind gpu (need 5")),
    row(
        "services.*.gpus[].capabilities",
        "gpu",
        Container("/HostConfig/DeviceRequests/0/Capabilities", r#"[["compute", "gpu"]]"#),
    ),
    row(
        "services.*.gpus[].count",
        "gpu",
        Container("/HostConfig/DeviceRequests/0/DeviceIDs", r#"["0", "1"]"#),
    ),
    row("services.*.gpus[].driver", "gpu", Container("/HostConfig/DeviceRequests/0/Driver", r#""nvidia""#)),
    row(
        "services.*.gpus[].options",
        "gpu",
        Container("/HostConfig/DeviceRequests/0/Options", r#"{"a": "b"}"#),
    ),
    row(
        "services.*.gpus[].device_ids",
        "one-gpu",
        Container("/HostConfig/DeviceRequests/0/DeviceIDs", r#"["3"]"#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices",
        "reserved",
        Container("/HostConfig/DeviceRequests/0/Driver", r#""nvidia""#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices[].capabilities",
        "reserved",
        Container("/HostConfig/DeviceRequests/0/Capabilities", r#"[["gpu", "utility"]]"#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices[].driver",
        "reserved",
        Container("/HostConfig/DeviceRequests/0/Driver", r#""nvidia""#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices[].device_ids",
        "reserved",
        Container("/HostConfig/DeviceRequests/0/DeviceIDs", r#"["2"]"#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices[].options",
        "reserved",
        Container("/HostConfig/DeviceRequests/0/Options", r#"{"a": "b"}"#),
    ),
    row(
        "services.*.deploy.resources.reservations.devices[].count",
        "counted",
        Container("/HostConfig/DeviceRequests/0/DeviceIDs", r#"["0", "1", "2", "3"]"#),
    ),
    row("services.*.cpu_rt_period", "rt", Tried("/HostConfig/CpuRealtimePeriod", "1000", "CPU real-time")),
    row("services.*.cpu_rt_runtime", "rt", Tried("/HostConfig/CpuRealtimeRuntime", "400", "CPU real-time")),
    row(
        "services.*.storage_opt",
        "sized",
        Tried("/HostConfig/StorageOpt", r#"{"size": "1G"}"#, "--storage-opt is supported only"),
    ),
    row(
        "services.*.annotations",
        "noted",
        Tried("/HostConfig/Annotations", r#"{"a": "b"}"#, "an engine that does not know `annotations`"),
    ),
    row(
        "services.*.volumes[].volume.subpath",
        "below",
        Tried(
            "/HostConfig/Mounts/0/VolumeOptions/Subpath",
            r#""a""#,
            "an engine that does not know `volume.subpath`",
        ),
    ),
    row(
        "services.*.healthcheck.start_interval",
        "eager",
        Tried(
            "/Config/Healthcheck/StartInterval",
            "1000000000",
            "an engine that does not know `healthcheck.start_interval`",
        ),
    ),
];

/// How a release replaces tasks, which the engine's events show: deployed twice, with another `NOTE`.
const ROLL: &str = r"
name: roll
x-still: &still {image: 'wharf/testserver:1', stop_grace_period: 0s}
x-noted: &noted {<<: *still, environment: {NOTE: 'THE-NOTE'}}
services:
  db: {<<: *noted}
  with: {<<: *still, depends_on: {db: {condition: service_started, restart: true}}}
  without: {<<: *still, depends_on: [db]}
  first: {<<: *noted, deploy: {update_config: {order: start-first}}}
  last: {<<: *noted, deploy: {update_config: {order: stop-first}}}
  delayed: {<<: *noted, deploy: {replicas: 2, update_config: {parallelism: 1, delay: 6s}}}
  together: {<<: *noted, deploy: {replicas: 2, update_config: {parallelism: 2}}}
  watched: {<<: *noted, deploy: {replicas: 2, update_config: {monitor: 6s}}}
";

/// An attribute, and what must be true of when containers started and ended.
type Telling = (&'static str, fn(&Story) -> Option<bool>);

const ROLL_ROWS: &[Telling] = &[
    ("services.*.depends_on", |story| Some(story.start("db", 0)? < story.start("without", 0)?)),
    ("services.*.depends_on.*.restart", |story| {
        Some(story.starts("with") == 2 && story.starts("without") == 1)
    }),
    ("services.*.deploy.update_config", |story| Some(story.starts("first") == 2)),
    ("services.*.deploy.update_config.order", |story| {
        let overlaps = story.start("first", 1)? < story.end("first", 0)?;
        Some(overlaps && story.end("last", 0)? < story.start("last", 1)?)
    }),
    ("services.*.deploy.update_config.parallelism", |story| {
        // The cluster decides of both at once, or of the second when the first is done.
        let second = Duration::from_secs(1);
        Some(story.decided_apart("together")? < second && story.decided_apart("delayed")? > second)
    }),
    ("services.*.deploy.update_config.delay", |story| {
        Some(story.start("delayed", 3)? - story.start("delayed", 2)? >= Duration::from_secs(6))
    }),
    ("services.*.deploy.update_config.monitor", |story| {
        Some(story.start("watched", 3)? - story.start("watched", 2)? >= Duration::from_secs(6))
    }),
];

/// When ended tasks are started again.
const AGAIN: &str = r"
name: again
services:
  never: {image: 'busybox:1', command: sh -c 'sleep 1; exit 3', deploy: {restart_policy: {condition: none}}}
  done: {image: 'busybox:1', command: sh -c 'sleep 1; exit 0', deploy: {restart_policy: {condition: on-failure}}}
  twice: {image: 'busybox:1', command: sh -c 'sleep 1; exit 4', deploy: {restart_policy: {condition: any, delay: 3s, max_attempts: 1}}}
  once: {image: 'busybox:1', command: sh -c 'sleep 1; exit 5', restart: 'no'}
  again: {image: 'busybox:1', command: sh -c 'sleep 1; exit 6', restart: 'on-failure:1'}
";

const AGAIN_ROWS: &[Telling] = &[
    ("services.*.restart", |story| Some(story.starts("once") == 1 && story.starts("again") == 2)),
    ("services.*.deploy.restart_policy", |story| Some(story.starts("never") == 1)),
    ("services.*.deploy.restart_policy.condition", |story| {
        Some(story.starts("never") == 1 && story.starts("done") == 1)
    }),
    ("services.*.deploy.restart_policy.max_attempts", |story| Some(story.starts("twice") == 2)),
    ("services.*.deploy.restart_policy.delay", |story| {
        Some(story.start("twice", 1)? - story.end("twice", 0)? >= Duration::from_secs(3))
    }),
];

/// What belongs to others: networks and a volume of `main`, and a volume made by hand on the second node.
const GUEST: &str = r"
name: guest
services:
  visitor:
    image: busybox:1
    command: sleep 10000
    stop_grace_period: 0s
    networks: [shared, old]
    volumes: ['by-hand:/by-hand', 'old:/old']
    deploy: {placement: {constraints: [node.hostname == n2]}}
networks:
  shared: {external: true, name: the-back}
  old: {external: {name: main_front}}
volumes:
  by-hand: {external: true}
  old: {external: {name: main_left}}
";

const GUEST_ROWS: &[Row] = &[
    row("networks.*.external", "visitor", Container("/NetworkSettings/Networks/the-back/IPPrefixLen", "20")),
    row(
        "networks.*.external.name",
        "visitor",
        Container("/NetworkSettings/Networks/main_front/IPPrefixLen", "16"),
    ),
    row("volumes.*.external", "visitor", Inside("cat /by-hand/note", "a note")),
    row("volumes.*.external.name", "visitor", Inside("ls /old", "ended")),
    row("volumes.*.external", "by-hand", Volume("/Labels", r#"{"made": "by hand"}"#)),
];

const UNPULLED: &str = "services.*.pull_policy";

#[test]
fn every_attribute_that_is_honoured_shows_in_real_containers() {
    if skip() {
        return;
    }
    let machines = Cluster::builder().nodes(2).seed(Seed::basic().unwrap());
    let fleet = Fleet::try_start(machines.engine_arg("--node-generic-resource=gpu=4")).unwrap();
    let journal = Journal::start(&fleet).unwrap();
    let wrong = thread::scope(|scope| {
        let parts = [
            scope.spawn(|| Ok([main_app(&fleet)?, guests(&fleet)?, unpulled(&fleet)?].concat())),
            scope.spawn(|| hard(&fleet)),
            scope.spawn(|| built(&fleet)),
            scope.spawn(|| roll(&fleet, &journal)),
            scope.spawn(|| again(&fleet, &journal)),
        ];
        parts.map(|part| part.join().unwrap().unwrap_or_else(|error| vec![format!("  {error:#}")])).concat()
    });
    assert!(wrong.is_empty(), "{} attributes do not show:\n{}", wrong.len(), wrong.join("\n"));
}

/// Brings an app up.
fn deploy(fleet: &Fleet, app: &str, file: &str, options: &[&str]) -> Result<()> {
    let path = fleet.file(app, file);
    let output = fleet.try_wharf([&["up", "-y", "-q", "-f", &path], options].concat())?;
    ensure!(output.code == 0, "{app} does not come up: {}{}", output.stdout, output.stderr);
    Ok(())
}

fn main_app(fleet: &Fleet) -> Result<Vec<String>> {
    let block = block_device()?;
    let folder = fleet.cluster.dir().join("client/apps/main");
    for (name, content) in BESIDE {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, content)?;
    }
    deploy(fleet, "main", &MAIN.replace("BLOCK", &block), &["--profile", "wanted"])?;
    let seen = |block, containers| Seen { fleet, app: "main", block, containers, said: BTreeMap::new() };
    let wrong = check(&seen(block, containers(fleet, "main")?), MAIN_ROWS);
    let replaced = fleet.try_wharf(["restart", "-p", "main", "hooked"])?;
    ensure!(replaced.code == 0, "{}", replaced.stderr);
    Ok([wrong, check(&seen(String::new(), containers(fleet, "main")?), REPLACED_ROWS)].concat())
}

fn built(fleet: &Fleet) -> Result<Vec<String>> {
    let folder = fleet.cluster.dir().join("client/apps/built/folder");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("note.txt"), "a note")?;
    fs::write(folder.join("Other"), OTHER)?;
    deploy(fleet, "built", BUILT, &[])?;
    let containers = containers(fleet, "built")?;
    Ok(check(
        &Seen { fleet, app: "built", block: String::new(), containers, said: BTreeMap::new() },
        BUILT_ROWS,
    ))
}

/// An image that no node has, whose registry is not to be asked.
fn unpulled(fleet: &Fleet) -> Result<Vec<String>> {
    let file = "services: {it: {image: 'registry.invalid/none:1', pull_policy: never}}";
    let output = fleet.try_wharf(["up", "-y", "-f", &fleet.file("unpulled", file)])?;
    let said = output.code == 1 && output.stderr.contains("because the pull policy is `never`");
    Ok(if said { Vec::new() } else { vec![format!("  {UNPULLED}: {}", output.stderr)] })
}

fn guests(fleet: &Fleet) -> Result<Vec<String>> {
    let second = fleet.node(2);
    second.docker(["volume", "create", "--label", "made=by hand", "by-hand"])?;
    let folder = "/var/lib/docker/volumes/by-hand/_data";
    second.run(["sh", "-c", &format!("echo a note >{folder}/note")])?;
    deploy(fleet, "guest", GUEST, &[])?;
    let seen =
        |containers| Seen { fleet, app: "guest", block: String::new(), containers, said: BTreeMap::new() };
    let wrong = check(&seen(containers(fleet, "guest")?), GUEST_ROWS);
    // What is external stays, whatever goes.
    let gone = fleet.try_wharf(["down", "-y", "--volumes", "-p", "guest"])?;
    ensure!(gone.code == 0, "{}", gone.stderr);
    Ok([wrong, check(&seen(BTreeMap::new()), &GUEST_ROWS[4..])].concat())
}

/// Containers that cannot start are gone again soon, and come again; whoever looks often enough sees each.
fn hard(fleet: &Fleet) -> Result<Vec<String>> {
    deploy(fleet, "hard", HARD, &["--detach"])?;
    let (found, over) = (Mutex::new(BTreeMap::new()), AtomicBool::new(false));
    let wrong = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // What is gone before it is looked at comes again.
                let Ok(now) = containers(fleet, "hard") else { continue };
                found.lock().unwrap().extend(now);
            }
        });
        let mut wrong = Vec::new();
        let shown = try_wait_until(SOON, "everything was tried", || {
            let (containers, said) = (found.lock().unwrap().clone(), said(fleet, "hard")?);
            wrong = check(&Seen { fleet, app: "hard", block: String::new(), containers, said }, HARD_ROWS);
            ensure!(wrong.is_empty(), "{wrong:?}");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        if shown.is_ok() { Vec::new() } else { wrong }
    });
    // Else it goes on trying.
    fleet.try_wharf(["down", "-y", "--volumes", "-p", "hard"])?;
    Ok(wrong)
}

/// What `wharf ps` says of each service's task, or of why there is none.
fn said(fleet: &Fleet, app: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut said: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for task in fleet.tasks(app)? {
        let message = text(&task["status"]["message"]).to_owned();
        said.entry(text(&task["service"]).to_owned()).or_default().push(message);
    }
    // `no node can take foreign.1: …`
    for line in fleet.try_wharf(["ps", "-p", app])?.stderr.lines() {
        for service in line.split(' ').filter_map(|word| word.trim_end_matches(':').strip_suffix(".1")) {
            said.entry(service.to_owned()).or_default().push(line.to_owned());
        }
    }
    Ok(said)
}

fn roll(fleet: &Fleet, journal: &Journal) -> Result<Vec<String>> {
    for note in ["one", "two"] {
        deploy(fleet, "roll", &ROLL.replace("THE-NOTE", note), &[])?;
    }
    told(fleet, journal, "roll", |story| story.end("with", 0), ROLL_ROWS)
}

fn again(fleet: &Fleet, journal: &Journal) -> Result<Vec<String>> {
    deploy(fleet, "again", AGAIN, &["--detach"])?;
    told(fleet, journal, "again", |story| story.end("twice", 1).and(story.end("again", 1)), AGAIN_ROWS)
}

/// A block device, whose limits an engine can set.
fn block_device() -> Result<String> {
    let devices = fs::read_dir("/sys/block")?.filter_map(|entry| entry.ok());
    let mut names: Vec<_> = devices.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // Those that need nothing set up before come first.
    names.sort_by_key(|name| (name.starts_with("loop"), name.starts_with("ram"), name.clone()));
    let path = |name: &String| format!("/dev/{name}");
    names.iter().map(path).find(|path| Path::new(path).exists()).context("this machine has no block device")
}

/// What there is to look at.
struct Seen<'a> {
    fleet: &'a Fleet,
    app: &'a str,
    block: String,
    /// Each service's containers, as the engine describes them, and on which node.
    containers: BTreeMap<String, Vec<(String, Value)>>,
    /// What is said of each service, where rows ask for it.
    said: BTreeMap<String, Vec<String>>,
}

fn containers(fleet: &Fleet, app: &str) -> Result<BTreeMap<String, Vec<(String, Value)>>> {
    let mut found: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for node in fleet.cluster.nodes() {
        let filter = format!("label=wharf.app={app}");
        let ids = node.docker(["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter])?;
        for id in ids.lines() {
            // One that is gone by now was seen before, or will come again.
            let Ok(text) = node.docker(["inspect", id]) else { continue };
            let parsed: Value = serde_json::from_str(&text)?;
            let container = parsed[0].clone();
            let service = text_at(&container, "/Config/Labels/wharf.service");
            found.entry(service).or_default().push((node.name(), container));
        }
    }
    Ok(found)
}

fn text_at(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).map(text).unwrap_or_default().to_owned()
}

/// What does not show.
fn check(seen: &Seen<'_>, rows: &[Row]) -> Vec<String> {
    let problem = |row: &Row| {
        let error = seen.look(row).err()?;
        Some(format!("  {} ({} of {}): {error:#}", row.attribute, row.subject, seen.app))
    };
    rows.iter().filter_map(problem).collect()
}

impl Seen<'_> {
    fn look(&self, row: &Row) -> Result<()> {
        match row.look {
            Container(pointer, expected) => self.same(self.container(row)?, pointer, expected),
            Listed(pointer, expected) => {
                let list = self.container(row)?.pointer(pointer).cloned().unwrap_or_default();
                ensure!(items(&list).contains(&self.parsed(expected)?), "{pointer} is {list}");
                Ok(())
            }
            Inside(script, expected) => {
                let script = script.replace("CLIENT", &self.fleet.cluster.client_address().to_string());
                let words = ["exec", "-p", self.app, row.subject, "--", "sh", "-c", &script];
                let said = self.fleet.try_wharf(words)?;
                ensure!(said.stdout.trim() == expected, "{script}: {}{}", said.stdout, said.stderr);
                Ok(())
            }
            Tasks(count, nodes) => {
                let found = self.containers.get(row.subject).map(Vec::as_slice).unwrap_or_default();
                let mut on: Vec<_> = found.iter().map(|(node, _)| node).collect();
                on.dedup();
                ensure!((found.len(), on.len()) == (count, nodes), "{} containers on {on:?}", found.len());
                Ok(())
            }
            On(node) => {
                self.container(row)?;
                let on = &self.containers[row.subject][0].0;
                ensure!(on == node, "it is on {on}");
                Ok(())
            }
            Image(name) => {
                let (node, container) = &self.containers[row.subject][0];
                let nodes = self.fleet.cluster.nodes();
                let node = nodes.iter().find(|other| other.name() == *node).unwrap();
                let id = node.docker(["image", "inspect", "--format", "{{.Id}}", name])?;
                ensure!(container["Image"] == id.trim(), "it is made of {}", container["Image"]);
                Ok(())
            }
            Shares(pointer, other, rest) => {
                let owner = self.container(&Row { subject: other, ..*row })?;
                let id = format!("\"container:{}{rest}\"", text(&owner["Id"]));
                // Of volumes the engine keeps the identifier alone.
                let bare = id.replace("container:", "");
                let found = self.container(row)?;
                self.same(found, pointer, &id).or_else(|_| self.same(found, pointer, &bare))
            }
            Somewhere(pointer, expected) => {
                let nodes = self.fleet.cluster.nodes();
                let found = nodes.iter().filter_map(|node| {
                    serde_json::from_str(&node.docker(["network", "inspect", row.subject]).ok()?).ok()
                });
                let found: Vec<Value> = found.collect();
                let there = found.iter().any(|found| self.same(&found[0], pointer, expected).is_ok());
                ensure!(there, "no node has it: {found:?}");
                Ok(())
            }
            Network(pointer, expected) => self.object(["network", "inspect", row.subject], pointer, expected),
            Volume(pointer, expected) => self.object(["volume", "inspect", row.subject], pointer, expected),
            Kept(pointer, expected) => {
                let found = self.fleet.try_json(["inspect", &format!("{}/{}", self.app, row.subject)])?;
                self.same(&found[0], pointer, expected)
            }
            Answers(rest, expected) => {
                for node in self.fleet.cluster.nodes() {
                    let answer = self.fleet.http(&format!("http://{}{rest}", node.address()))?;
                    ensure!(answer.contains(expected), "{} answers {answer}", node.name());
                }
                Ok(())
            }
            Said(expected) => self.said(row, expected),
            Tried(pointer, value, otherwise) => {
                let shown = self.container(row).and_then(|found| self.same(found, pointer, value));
                shown.or_else(|_| self.said(row, otherwise))
            }
            Told(pointer, value, otherwise) => {
                let shown = self.container(row).and_then(|found| self.same(found, pointer, value));
                let nodes = self.fleet.cluster.nodes();
                let logged = nodes.iter().any(|node| node.service("wharf").log().contains(otherwise));
                if logged { Ok(()) } else { shown }
            }
        }
    }

    /// The one container of the row's service, or the first.
    fn container(&self, row: &Row) -> Result<&Value> {
        let found = self.containers.get(row.subject).and_then(|found| found.first());
        Ok(&found.context("it has no container")?.1)
    }

    fn parsed(&self, json: &str) -> Result<Value> {
        let json = json.replace("BLOCK", &self.block);
        serde_json::from_str(&json).with_context(|| format!("a row has no JSON: {json}"))
    }

    fn same(&self, value: &Value, pointer: &str, expected: &str) -> Result<()> {
        let found = value.pointer(pointer).cloned().unwrap_or_default();
        ensure!(found == self.parsed(expected)?, "{pointer} is {found}");
        Ok(())
    }

    /// Something that engines have beside containers: as expected wherever it is.
    fn object(&self, words: [&str; 3], pointer: &str, expected: &str) -> Result<()> {
        let nodes = self.fleet.cluster.nodes();
        let found: Vec<String> = nodes.iter().filter_map(|node| node.docker(words).ok()).collect();
        ensure!(!found.is_empty(), "no node has it");
        found.iter().try_for_each(|text| {
            let described: Value = serde_json::from_str(text)?;
            self.same(&described[0], pointer, expected)
        })
    }

    fn said(&self, row: &Row, expected: &str) -> Result<()> {
        let said = self.said.get(row.subject).map(Vec::as_slice).unwrap_or_default();
        ensure!(said.iter().any(|said| said.contains(expected)), "it says {said:?}");
        Ok(())
    }
}

/// When the containers of an app's services started and ended, of all nodes, which share one clock here.
#[derive(Debug, Default)]
struct Story {
    starts: BTreeMap<String, Vec<Duration>>,
    ends: BTreeMap<String, Vec<Duration>>,
    /// When the cluster made the tasks that there are now.
    decided: BTreeMap<String, Vec<Duration>>,
}

impl Story {
    fn starts(&self, service: &str) -> usize {
        self.starts.get(service).map_or(0, Vec::len)
    }
    fn start(&self, service: &str, index: usize) -> Option<Duration> {
        self.starts.get(service)?.get(index).copied()
    }
    /// Between the decisions for the first task of a service and the last.
    fn decided_apart(&self, service: &str) -> Option<Duration> {
        let decided = self.decided.get(service).filter(|decided| decided.len() > 1)?;
        Some(*decided.iter().max()? - *decided.iter().min()?)
    }
    fn end(&self, service: &str, index: usize) -> Option<Duration> {
        self.ends.get(service)?.get(index).copied()
    }
}

/// The engines' events from now on, each in a file. An engine itself keeps the last few only.
struct Journal {
    listeners: Vec<Child>,
    files: Vec<PathBuf>,
}

impl Journal {
    fn start(fleet: &Fleet) -> Result<Self> {
        let format = r#"{{.TimeNano}} {{.Action}} {{index .Actor.Attributes "wharf.app"}} {{index .Actor.Attributes "wharf.service"}} {{.Actor.ID}}"#;
        let mut journal = Self { listeners: Vec::new(), files: Vec::new() };
        for node in fleet.cluster.nodes() {
            let path = fleet.cluster.dir().join(format!("client/events-{}", node.name()));
            let mut command = node.docker_command();
            command.args(["events", "--since", "1", "--filter", "type=container", "--format", format]);
            command.args(["--filter", "event=start", "--filter", "event=die"]);
            journal.listeners.push(command.stdout(fs::File::create(&path)?).spawn()?);
            journal.files.push(path);
        }
        Ok(journal)
    }

    fn story(&self, app: &str) -> Result<Story> {
        let mut events = Vec::new();
        for path in &self.files {
            for line in fs::read_to_string(path)?.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                let [at, action, of, service, container] = words.as_slice() else { continue };
                if *of == app {
                    let at = Duration::from_nanos(at.parse()?);
                    events.push((at, *action == "start", (*service).to_owned(), (*container).to_owned()));
                }
            }
        }
        events.sort();
        let (mut story, mut known) = (Story::default(), BTreeSet::new());
        for (at, started, service, container) in events {
            // An engine may say twice that a container ended.
            if known.insert((started, container)) {
                let side = if started { &mut story.starts } else { &mut story.ends };
                side.entry(service).or_default().push(at);
            }
        }
        Ok(story)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        for listener in &mut self.listeners {
            // It ends with its engine, if not before.
            let _ = listener.kill();
            let _ = listener.wait();
        }
    }
}

/// Checks what the engines' events say of an app once it is over.
fn told(
    fleet: &Fleet,
    journal: &Journal,
    app: &str,
    over: fn(&Story) -> Option<Duration>,
    rows: &[Telling],
) -> Result<Vec<String>> {
    let mut story = try_wait_until(SOON, &format!("{app} is over"), || {
        let story = journal.story(app)?;
        ensure!(over(&story).is_some(), "{story:?}");
        Ok(story)
    })?;
    for task in fleet.tasks(app)? {
        let at = Duration::from_millis(task["created_at"].as_u64().unwrap_or_default());
        story.decided.entry(text(&task["service"]).to_owned()).or_default().push(at);
    }
    let wrong = rows.iter().filter(|(_, holds)| holds(&story) != Some(true));
    Ok(wrong.map(|(attribute, _)| format!("  {attribute} ({app}): {story:?}")).collect())
}
