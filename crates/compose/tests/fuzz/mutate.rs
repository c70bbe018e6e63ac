//! Makes inputs for the loader that are nearly Compose files: texts of ours, changed in ways that people, programs and
//! foes change them. Everything follows from a seed.

/// Small random numbers that a seed determines (SplitMix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or_default()
    }
    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Inputs grow no further than this by mutation.
const LONGEST: usize = 60_000;

/// A text of `seeds`, or one made anew, after a few changes.
pub(crate) fn input(chance: &mut Chance, seeds: &[String]) -> Vec<u8> {
    let mut text = if chance.one_in(5) { made(chance) } else { seeds[chance.below(seeds.len())].clone() };
    for _ in 0..1 + chance.below(4) {
        let other = &seeds[chance.below(seeds.len())];
        text = changed(&text, other, chance);
        if text.len() > LONGEST {
            let mut end = LONGEST;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
    }
    let mut bytes = text.into_bytes();
    if chance.one_in(12) && !bytes.is_empty() {
        for _ in 0..1 + chance.below(4) {
            let at = chance.below(bytes.len());
            bytes[at] = chance.next().to_le_bytes()[0];
        }
    }
    bytes
}

/// A file with services of random keys.
fn made(chance: &mut Chance) -> String {
    let mut text = String::from("services:\n");
    for service in 0..1 + chance.below(4) {
        text.push_str(&format!("  s{service}:\n    image: i\n"));
        for _ in 0..chance.below(6) {
            let (key, value) = (chance.pick(KEYS), value(chance, 0));
            text.push_str(&format!("    {key}: {value}\n"));
        }
    }
    for _ in 0..chance.below(3) {
        let (group, name, key) = (chance.pick(GROUPS), chance.pick(NAMES), chance.pick(KEYS));
        text.push_str(&format!("{group}:\n  {name}:\n    {key}: {}\n", value(chance, 0)));
    }
    text
}

/// A value in flow style.
fn value(chance: &mut Chance, depth: usize) -> String {
    match chance.below(if depth > 3 { 6 } else { 10 }) {
        0..=5 => chance.pick(VALUES).to_owned(),
        6 | 7 => {
            let items: Vec<String> = (0..chance.below(4)).map(|_| value(chance, depth + 1)).collect();
            format!("[{}]", items.join(", "))
        }
        _ => {
            let mut fields = Vec::new();
            for _ in 0..chance.below(4) {
                let key = if chance.one_in(4) { chance.pick(NAMES) } else { chance.pick(KEYS) };
                fields.push(format!("{key}: {}", value(chance, depth + 1)));
            }
            format!("{{{}}}", fields.join(", "))
        }
    }
}

fn changed(text: &str, other: &str, chance: &mut Chance) -> String {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let at = chance.below(lines.len());
    let indentation = |line: &str| line.len() - line.trim_start().len();
    match chance.below(22) {
        // What stands behind a key or a dash becomes something else.
        0..=4 => {
            let line = lines[at].clone();
            let start = line.find(": ").map(|i| i + 2).or_else(|| line.find("- ").map(|i| i + 2));
            if let Some(start) = start {
                lines[at] = format!("{}{}", &line[..start], value(chance, 0));
            }
        }
        // A key becomes another one.
        5 | 6 => {
            let line = lines[at].clone();
            if let Some(end) = line.find(':') {
                let key = chance.pick(KEYS);
                lines[at] = format!("{}{key}{}", " ".repeat(indentation(&line).min(end)), &line[end..]);
            }
        }
        // A key beside another.
        7 | 8 => {
            let line =
                format!("{}{}: {}", " ".repeat(indentation(&lines[at])), chance.pick(KEYS), value(chance, 0));
            lines.insert(at, line);
        }
        9 => {
            let line = lines[at].clone();
            lines.insert(at, line);
        }
        10 => {
            lines.remove(at);
        }
        11 => {
            let to = chance.below(lines.len());
            lines.swap(at, to);
        }
        12 => {
            let line = lines[at].trim_start().to_owned();
            lines[at] = format!("{}{line}", " ".repeat(chance.below(12)));
        }
        // A part of another text, where it may fit or not.
        13 | 14 => {
            let others: Vec<&str> = other.split('\n').collect();
            let from = chance.below(others.len());
            let to = (from + 1 + chance.below(8)).min(others.len());
            let part = others[from..to].iter().map(|line| (*line).to_owned());
            lines.splice(at..at, part);
        }
        // Again and again, each time under another name.
        15 => {
            let to = (at + 1 + chance.below(6)).min(lines.len());
            let part = lines[at..to].to_vec();
            for copy in 0..chance.below(40) {
                let renamed = part.iter().map(|line| line.replacen(':', &format!("{copy}:"), 1));
                let renamed: Vec<String> = renamed.collect();
                lines.splice(at..at, renamed);
            }
        }
        16 => {
            let line = lines[at].clone();
            let start = line.find(": ").map_or(line.len(), |i| i + 2);
            let decoration = chance.pick(DECORATIONS);
            lines[at] = format!("{}{decoration} {}", &line[..start], &line[start..]);
        }
        // Deep nesting in flow style.
        17 => {
            let (open, close) = [("[", "]"), ("{a: ", "}"), ("- ", "")][chance.below(3)];
            let depth = [5, 30, 99, 101, 300][chance.below(5)];
            lines[at].push_str(&format!(" {}x{}", open.repeat(depth), close.repeat(depth)));
        }
        // Text inserted anywhere in the line.
        18 | 19 => {
            let line = &mut lines[at];
            let mut to = chance.below(line.len() + 1);
            while !line.is_char_boundary(to) {
                to -= 1;
            }
            line.insert_str(to, chance.pick(PIECES));
        }
        // Variables, one in another.
        20 => {
            let mut text = chance.pick(NAMES).to_owned();
            for _ in 0..chance.below(40) {
                let (name, operator) = (chance.pick(NAMES), chance.pick(OPERATORS));
                text = format!("${{{name}{operator}{text}}}");
            }
            let line = lines[at].clone();
            let start = line.find(": ").map_or(line.len(), |i| i + 2);
            lines[at] = format!("{}{text}", &line[..start]);
        }
        // Cut off.
        _ => lines.truncate(at + 1),
    }
    lines.join("\n")
}

const GROUPS: &[&str] =
    &["networks", "volumes", "configs", "secrets", "services", "models", "include", "x-a", "jobs", "name"];
const NAMES: &[&str] = &[
    "SET", "EMPTY", "UNSET", "NUMBER", "DOLLAR", "a", "b", "web", "db", "default", "s0", "s1", "x-a", "A_1",
];
const OPERATORS: &[&str] = &["", ":-", "-", ":?", "?", ":+", "+", ":", "!", "}"];
const DECORATIONS: &[&str] = &[
    "&a",
    "*a",
    "&b",
    "*b",
    "!reset",
    "!override",
    "!!str",
    "!!int",
    "!!binary",
    "!x",
    "!!map",
    "!",
    "|",
    ">-",
    "|9",
    "? ",
    "- ",
    "{<<: *a}",
    "<<: *a",
    "%YAML 1.3",
    "---",
    "...",
    "#",
];
const PIECES: &[&str] = &[
    "\t",
    "\0",
    "\u{feff}",
    "\r",
    "\r\n",
    "\u{2028}",
    "\u{85}",
    "ü",
    "🚢",
    "\u{1b}[31m",
    "\"",
    "'",
    "\\",
    "\\x",
    ":",
    ": ",
    "- ",
    " #",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&",
    "*",
    "!",
    "|",
    ">",
    "%",
    "@",
    "`",
    "$",
    "$$",
    "${",
    "${A:-",
    "$A",
    "${UNSET}",
    "<<",
    "=",
    "../",
    "/",
    "//",
    "~",
    "0x",
    "1e999",
    "-",
    "--",
    "+",
    ".",
    "\u{7f}",
    "\u{202e}",
    "\n#@ over.yaml\n",
    "\n#@ .env\n",
    "\n#@ b.yaml\n",
    "\n---\n",
    "\n...\n",
];
const VALUES: &[&str] = &[
    "",
    "~",
    "null",
    "true",
    "yes",
    "no",
    "0",
    "-1",
    "1",
    "80",
    "65536",
    "1.5",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "0777",
    "0o777",
    "0xff",
    "0b1",
    "1_000",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "99999999999999999999999999",
    "2001-12-14",
    "2001-12-14t21:59:43.10-05:00",
    "12:30:45",
    "text",
    "''",
    "\"\"",
    "'80:80'",
    "80:80",
    "'1-65535'",
    "'1-65535:1-65535/udp'",
    "'[::1]:80:80'",
    "'127.0.0.1::80'",
    "'a=b'",
    "'=b'",
    "1g",
    "1.5gb",
    "99999999999t",
    "-1m",
    "30s",
    "1h1m1s",
    "99999999999999h",
    "1.5.5",
    "[]",
    "{}",
    "[a]",
    "[1]",
    "[[a]]",
    "{a: b}",
    "{a: {b: c}}",
    "[{a: b}]",
    "!reset null",
    "!reset",
    "!override {a: b}",
    "!override [a]",
    "*a",
    "&a x",
    "&a {b: c}",
    "'service:web'",
    "service:web",
    "container:x",
    "host",
    "none",
    "./src:/src:ro,z",
    "'data:/data'",
    "/dev/null:/dev/null:rwm",
    "web",
    "db",
    "[web, db]",
    "{web: {condition: service_healthy}}",
    "{web: {condition: service_completed_successfully, required: false, restart: true}}",
    "a.env",
    "[a.env, b.env]",
    "{path: a.env, required: false, format: raw}",
    "compose.yaml",
    "b.yaml",
    "../x.yaml",
    "/etc/passwd",
    "https://example.org/x.git",
    "{service: web, file: b.yaml}",
    "{service: db}",
    "${SET}",
    "$SET",
    "${UNSET}",
    "${UNSET:?no}",
    "${UNSET:-${SET:-x}}",
    "${NUMBER}:80",
    "${",
    "$$",
    "'unclosed",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"a\\nb\"",
    "a: b",
    "a #b",
    "10.0.0.0/8",
    "10.0.0.1",
    "::1",
    "fd00::/64",
    "300.1.1.1",
    "[CMD, true]",
    "sh -c 'a b",
    "{driver: bridge, config: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1}]}",
    "all",
    "[ALL]",
    "{nproc: 1, nofile: {soft: 1, hard: 2}}",
    "unless-stopped",
    "'on-failure:3'",
    "'on-failure:x'",
    "sha256:x",
];
const KEYS: &[&str] = &[
    "additional_contexts",
    "aliases",
    "annotations",
    "args",
    "attach",
    "attachable",
    "aux_addresses",
    "bind",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "capabilities",
    "cgroup",
    "cgroup_parent",
    "command",
    "condition",
    "config",
    "configs",
    "constraints",
    "container_name",
    "content",
    "context",
    "count",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "create_host_path",
    "credential_spec",
    "delay",
    "depends_on",
    "deploy",
    "develop",
    "device_cgroup_rules",
    "devices",
    "disable",
    "dns",
    "dns_opt",
    "dns_search",
    "dockerfile",
    "dockerfile_inline",
    "domainname",
    "driver",
    "driver_opts",
    "endpoint_mode",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "extends",
    "external",
    "external_links",
    "extra_hosts",
    "file",
    "format",
    "gateway",
    "gid",
    "gpus",
    "group_add",
    "hard",
    "healthcheck",
    "host_ip",
    "hostname",
    "image",
    "include",
    "init",
    "interface_name",
    "internal",
    "interval",
    "ip_range",
    "ipam",
    "ipc",
    "ipv4_address",
    "ipv6_address",
    "isolation",
    "jobs",
    "label_file",
    "labels",
    "limits",
    "link_local_ips",
    "links",
    "logging",
    "mac_address",
    "max_attempts",
    "max_replicas_per_node",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memory",
    "memswap_limit",
    "mode",
    "model",
    "models",
    "monitor",
    "name",
    "network_mode",
    "networks",
    "nofile",
    "oom_kill_disable",
    "oom_score_adj",
    "options",
    "order",
    "parallelism",
    "path",
    "pid",
    "pids",
    "pids_limit",
    "placement",
    "platform",
    "ports",
    "post_start",
    "pre_stop",
    "preferences",
    "priority",
    "privileged",
    "probe",
    "profiles",
    "project_directory",
    "protocol",
    "provider",
    "publish_all_ports",
    "published",
    "pull_policy",
    "read_only",
    "replicas",
    "required",
    "reservations",
    "resources",
    "restart",
    "restart_policy",
    "retries",
    "rollback_config",
    "runtime",
    "scale",
    "secrets",
    "security_opt",
    "service",
    "services",
    "shm_size",
    "soft",
    "source",
    "ssh",
    "start_interval",
    "start_period",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "storage_opt",
    "subnet",
    "subpath",
    "sysctls",
    "tags",
    "target",
    "test",
    "timeout",
    "tmpfs",
    "tty",
    "type",
    "uid",
    "ulimits",
    "unsupported",
    "update_config",
    "use_api_socket",
    "user",
    "userns_mode",
    "uts",
    "version",
    "volume",
    "volumes",
    "volumes_from",
    "watch",
    "weight",
    "window",
    "working_dir",
    "x-a",
    "x-wharf",
    "<<",
    "? a",
    "1",
    "null",
];

/// Texts to begin with: each a small folder that is right, or nearly.
pub(crate) const TEXTS: &[&str] = &[
    "name: shop\nservices:\n  web:\n    image: nginx:1\n    ports:\n      - \"8080:80\"\n      - {target: 443, published: 8443, protocol: tcp}\n    depends_on:\n      db: {condition: service_healthy, restart: true}\n    networks: [front, back]\n    environment:\n      A: 1\n      B: ${SET:-b}\n  db:\n    image: postgres\n    volumes:\n      - data:/var/lib/postgresql/data\n      - type: tmpfs\n        target: /tmp\n        tmpfs: {size: 10m}\n    healthcheck:\n      test: [CMD, pg_isready]\n      interval: 5s\n      retries: 3\n    networks:\n      back:\n        aliases: [database]\n        ipv4_address: 10.1.0.5\nnetworks:\n  front:\n  back:\n    internal: true\n    ipam:\n      config:\n        - subnet: 10.1.0.0/24\nvolumes:\n  data: {}\n",
    "x-common: &common\n  restart: always\n  logging: &log {driver: json-file, options: {max-size: 10m}}\nx-env: &env\n  A: 1\n  B: two\nservices:\n  a:\n    <<: *common\n    image: i\n    environment:\n      <<: [*env]\n      B: 3\n  b:\n    <<: [*common, {init: true}]\n    image: i\n    logging: *log\n    environment: *env\n",
    "services:\n  base:\n    image: i\n    environment: {A: 1}\n    ports: ['80']\n  web:\n    extends: base\n    environment: [B=2, C]\n  api:\n    extends: {service: web, file: b.yaml}\n    labels: {a: b}\n#@ b.yaml\nservices:\n  web:\n    extends: {service: base}\n    env_file: [a.env]\n    build: ./web\n  base:\n    image: ${IMAGE:-j}\n    command: sh -c 'echo \"$$HOME\"'\n#@ a.env\nA=1\nexport B='two'\nC=\"x ${A} \\n\"\n",
    "include:\n  - b.yaml\n  - path: [c.yaml, d.yaml]\n    env_file: a.env\n    project_directory: .\nservices:\n  web: {image: i, depends_on: [b, c]}\n#@ b.yaml\nservices:\n  b: {image: '${B:-i}'}\nvolumes: {v: }\n#@ c.yaml\nservices:\n  c: {image: i}\n#@ d.yaml\nservices:\n  c: {environment: {X: '${A}'}}\n#@ a.env\nA=1\nB=2\n",
    "services:\n  web:\n    image: i\n    ports: [80, '81:81']\n    environment: {A: 1, B: 2}\n    command: [a, b]\n    labels: [x=y]\n    volumes: ['./a:/a', 'v:/b:ro']\nvolumes: {v: }\n#@ over.yaml\nservices:\n  web:\n    ports: !override ['90:80']\n    environment: {A: !reset null}\n    command: c\n    labels: {x: z}\n    volumes: [{type: bind, source: ./c, target: /a}]\n#@ over2.yaml\nservices:\n  web:\n    labels: !reset {}\n    cap_add: [ALL]\n",
    "services:\n  a: {image: i, depends_on: [b]}\n  b: {image: i, depends_on: {c: {condition: service_started}}}\n  c: {image: i, network_mode: 'service:a', volumes_from: [a, 'b:ro'], links: ['a:x'], pid: 'service:b', ipc: shareable}\n",
    "services:\n  web:\n    image: i\n    deploy:\n      mode: replicated\n      replicas: 3\n      labels: {a: b}\n      update_config: {parallelism: 1, delay: 10s, order: start-first, failure_action: rollback, monitor: 5s, max_failure_ratio: 0.1}\n      rollback_config: {parallelism: 0}\n      restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 120s}\n      placement: {constraints: ['node.role == worker', 'node.labels.zone != a'], preferences: [{spread: node.labels.zone}], max_replicas_per_node: 1}\n      resources:\n        limits: {cpus: '0.5', memory: 50M, pids: 100}\n        reservations:\n          cpus: '0.25'\n          memory: 20M\n          devices: [{capabilities: [gpu], driver: nvidia, count: all}]\n    ulimits: {nproc: 65535, nofile: {soft: 20000, hard: 40000}}\n    sysctls: [net.core.somaxconn=1024]\n    extra_hosts: ['a:10.0.0.1', 'b=::1']\n    tmpfs: /run\n    stop_grace_period: 1m30s\n    stop_signal: SIGUSR1\n    shm_size: 64m\n    x-wharf:\n      probe: {http: {port: 80, path: /}}\n      routes: [{host: a.example, port: 80}]\n#@ profile\n",
    "services:\n  web:\n    image: i\n    configs: [a, {source: b, target: /b, mode: 0440, uid: '1'}]\n    secrets: [s, {source: t, target: x}]\n    env_file:\n      - a.env\n      - {path: b.env, required: false}\n      - {path: c.env, format: raw}\n    gpus: all\n    devices: ['/dev/a:/dev/b:rw']\n    profiles: [p, q]\nconfigs:\n  a: {content: \"x=${SET}\"}\n  b: {file: ./b.conf}\nsecrets:\n  s: {environment: SET}\n  t: {file: ./t.txt}\n#@ a.env\n# comment\nA=1\nB = \"multi\nline\"\nC='$A'\nD: e\nA=${A:-2}\n#@ c.env\nA='x' # $A\n#@ b.conf\nconf\n#@ t.txt\nsecret\n#@ .env\nTAG=1\nSET=${TAG}\n#@ profile\n",
    "version: '3.8'\nservices:\n  web:\n    build:\n      context: .\n      dockerfile: Dockerfile\n      args: {A: 1}\n      target: prod\n      cache_from: [a]\n      secrets: [s]\n      ssh: [default]\n      additional_contexts: {x: ../x}\n    develop: {watch: [{path: ., action: rebuild}]}\n    post_start: [{command: a b}]\n    provider: {type: model, options: {a: b}}\n    models: {m: {endpoint_var: A}}\nmodels:\n  m: {model: ai/x}\n#@ over-strict.yaml\nservices: {}\n",
    "services:\n  web:\n    image: >-\n      folded\n      text\n    command: |\n      a\n        b\n    environment:\n      ? A\n      : \"1\"\n      'B': \"\\u00e4\\x41\\n\"\n      C: *\n---\nservices:\n  web: {environment: [A=2]}\n...\n",
];
