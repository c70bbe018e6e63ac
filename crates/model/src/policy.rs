//! Wharf's own settings of apps and services: what Compose has no key for, and `x-wharf` carries.
//!
//! None of it is about how a container is made, so a change of it replaces no container. Units stand in types or in the
//! fields' documentation, which gives ranges and defaults as well; an absent value is its default. Collections keep the order
//! of the file where order has a meaning.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    Bytes, Millis, NetworkAttachment, NetworkName, PlacementStrategy, ServiceName, ServiceSpec, StableSlots,
    Toleration,
};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What `x-wharf` says at the top level of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AppPolicy {
    /// How services move to a new release that do not say it themselves.
    #[serde(skip_serializing_if = "is_default")]
    pub release: Option<ReleaseStrategy>,
    /// The tier of services that do not say it themselves.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: Priority,
    /// One-off commands around a release.
    #[serde(skip_serializing_if = "is_default")]
    pub hooks: ReleaseHooks,
}

/// What `x-wharf` says in a service, the probe aside, which is part of how a task is watched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServicePolicy {
    /// What the gateways send to it, in the file's order.
    #[serde(skip_serializing_if = "is_default")]
    pub routes: Vec<RouteSpec>,
    /// How it moves to a new release; the app's if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub release: Option<ReleaseStrategy>,
    /// Who changes its number of tasks; nobody if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub autoscale: Option<Autoscale>,
    /// What is collected of its output, by the name of the stream: lower-case letters, digits and `-`.
    #[serde(skip_serializing_if = "is_default")]
    pub logs: BTreeMap<String, LogStream>,
    /// Who gives way when there is not room for all; the app's if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: Option<Priority>,
    /// Which services its tasks want to be with or apart from.
    #[serde(skip_serializing_if = "is_default")]
    pub affinity: Vec<Affinity>,
    /// Over how many places its tasks must be spread.
    #[serde(skip_serializing_if = "is_default")]
    pub availability: Option<AvailabilityMinimum>,
    /// Which node is best of those that can take a task; as the cluster is set if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub strategy: Option<PlacementStrategy>,
    /// The pool of nodes its tasks run on; nodes of no pool if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub pool: Option<String>,
    /// Taints of nodes that its tasks bear.
    #[serde(skip_serializing_if = "is_default")]
    pub tolerations: Vec<Toleration>,
    /// Its slots keep their nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub slots: Option<StableSlots>,
    /// Disk that each task reserves of its node, for its writable layer, volumes and logs.
    #[serde(skip_serializing_if = "is_default")]
    pub disk: Option<Bytes>,
    /// How long requests and connections that are under way with a task may go on once nothing new is sent to it, at most
    /// [`LONGEST_DRAIN`]; if absent [`USUAL_DRAIN`], and 3 s where the old task has to stop before the new one starts.
    #[serde(skip_serializing_if = "is_default")]
    pub drain: Option<Millis>,
    /// Whether a slot's task must never run twice, even while its node cannot be heard; if absent, that is so of the only task of a service
    /// that writes to a volume which other nodes can read.
    #[serde(skip_serializing_if = "is_default")]
    pub single_writer: Option<bool>,
}
impl ServicePolicy {
    /// How long what is under way with a task may go on once nothing new is sent to it.
    pub fn drain_time(&self) -> Millis {
        self.drain.unwrap_or(USUAL_DRAIN).min(LONGEST_DRAIN)
    }
}

/// How long what is under way with a task may go on, unless its service says otherwise.
pub const USUAL_DRAIN: Millis = Millis::from_secs(30);
/// The longest that a service may say.
pub const LONGEST_DRAIN: Millis = Millis::from_secs(3600);
/// For how many seconds whoever has asked for a name of the cluster may go on using the answer.
pub const NAME_TTL: u32 = 1;

// --- routes ---

/// Requests that the gateways pass to a service. The most specific route wins: exact hosts before wildcards, longer
/// paths before shorter ones, more conditions before fewer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// What is spoken with clients.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: RouteProtocol,
    /// Host names in lower case, `*.` in front standing for any one or more labels; any host if empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hosts: Vec<String>,
    /// A prefix of the path, whole segments; `/` if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub path: Option<String>,
    /// Upper-case methods; any if empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub methods: Vec<String>,
    /// Header names in lower case and the value they must have; `*` is any value.
    #[serde(default, skip_serializing_if = "is_default")]
    pub headers: BTreeMap<String, String>,
    /// The container's port.
    pub port: u16,
    /// The gateways' port; 443 for HTTP with TLS and 80 without, if absent. TCP and UDP routes always have one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub listen: Option<u16>,
    /// Who ends TLS; nobody if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tls: RouteTls,
    /// Requests without TLS are sent to the same address with it. Only with TLS; true there unless the file says otherwise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub redirect: bool,
    /// Its share beside other services with the same route, 0 to 100; 100 if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: Option<u8>,
    /// How requests are spread over its tasks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balance: Balance,
    /// A cookie keeps a client on one task; none if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sticky: Option<Sticky>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: RouteTimeouts,
    /// Further attempts at another task, for requests that can be repeated; the gateway's default if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retries: Option<Retries>,
    /// How many requests one client may make; no limit if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rate_limit: Option<RateLimit>,
    /// How many requests may be under way at once; no limit if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrency: Option<Concurrency>,
    /// When a failing task gets no more requests for a while; the gateway's default if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub breaker: Option<Breaker>,
    /// Who must give a password.
    #[serde(default, skip_serializing_if = "is_default")]
    pub basic_auth: Option<BasicAuth>,
    /// Clients that are let in; all if empty.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow: Vec<IpNet>,
    /// Clients that are not, though `allow` may have them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub deny: Vec<IpNet>,
    /// A service that gets copies of requests; its answers are dropped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mirror: Option<Mirror>,
    /// What answers when no task can; an error of the gateway if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fallback: Option<Fallback>,
    /// Where the PROXY protocol (version 2) is spoken.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proxy_protocol: ProxyProtocol,
}

/// The clients that an address (for itself alone) or a network such as `10.0.0.0/8` stands for; nobody if it is neither.
pub fn clients_at(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(alone)
}

impl RouteSpec {
    /// The gateways' port: the one the file gives, or that of its protocol.
    pub const fn gateway_port(&self) -> u16 {
        match (self.listen, &self.tls) {
            (Some(port), _) => port,
            (None, RouteTls::Off) => 80,
            (None, RouteTls::Auto | RouteTls::Certificate(_) | RouteTls::Passthrough) => 443,
        }
    }
    /// The port at which requests without TLS are sent to the same address with it, if any: that of HTTP, where TLS has its own.
    pub const fn redirect_port(&self) -> Option<u16> {
        if self.redirect && self.gateway_port() == 443 { Some(80) } else { None }
    }
    /// Whether requests are understood: hosts, paths and headers mean something, and there are answers.
    pub const fn sees_requests(&self) -> bool {
        match (self.protocol, &self.tls) {
            (RouteProtocol::Http | RouteProtocol::H2c, RouteTls::Passthrough) => false,
            (RouteProtocol::Http | RouteProtocol::H2c, _) => true,
            (RouteProtocol::Tcp | RouteProtocol::Udp, _) => false,
        }
    }
    /// `http`, `https`, `tcp`, `tls` or `udp`.
    pub const fn scheme(&self) -> &'static str {
        match (self.protocol, &self.tls) {
            (RouteProtocol::Udp, _) => "udp",
            (RouteProtocol::Tcp, RouteTls::Off) => "tcp",
            (RouteProtocol::Tcp, RouteTls::Auto | RouteTls::Certificate(_) | RouteTls::Passthrough) => "tls",
            (RouteProtocol::Http | RouteProtocol::H2c, RouteTls::Off) => "http",
            (RouteProtocol::Http | RouteProtocol::H2c, _) => "https",
        }
    }
    /// Its address at this host: `https://shop.example.com/api`.
    pub fn url(&self, host: &str) -> String {
        let (scheme, port) = (self.scheme(), self.gateway_port());
        let port = match (scheme, port) {
            ("http", 80) | ("https", 443) => String::new(),
            (_, port) => format!(":{port}"),
        };
        let path = match scheme {
            "http" | "https" => self.path.as_deref().unwrap_or("/"),
            _ => "",
        };
        format!("{scheme}://{host}{port}{path}")
    }
    /// What people read of where it is: its address at each of its hosts, `*` standing for any, and what else a request must have, without
    /// the values of headers.
    pub fn place(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(|host| self.url(host)).collect();
        let mut place = if hosts.is_empty() { self.url("*") } else { hosts.join(", ") };
        let headers = self.headers.keys().map(|name| format!("header {name}"));
        let conditions: Vec<_> = self.methods.iter().cloned().chain(headers).collect();
        if !conditions.is_empty() {
            place.push_str(&format!(" ({})", conditions.join(", ")));
        }
        place
    }
}

/// What a route speaks with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteProtocol {
    /// HTTP/1.1 and HTTP/2, with what runs over them: WebSocket, gRPC, server-sent events. Tasks are asked in HTTP/1.1.
    #[default]
    Http,
    /// The same, and tasks are asked in HTTP/2 without TLS (gRPC servers).
    H2c,
    /// Bytes over TCP.
    Tcp,
    /// Datagrams.
    Udp,
}
impl RouteProtocol {
    /// Whether requests are understood, so that hosts, paths and headers mean something.
    pub const fn is_http(self) -> bool {
        match self {
            Self::Http | Self::H2c => true,
            Self::Tcp | Self::Udp => false,
        }
    }
}

/// Who ends TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTls {
    /// Nobody: clients speak without TLS.
    #[default]
    Off,
    /// The gateway, with a certificate it obtains and renews by ACME. Needs host names.
    Auto,
    /// The gateway, with the certificate chain and key in this secret of the app.
    Certificate(String),
    /// The task: the gateway looks at the server name only.
    Passthrough,
}

/// How requests are spread over tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// To the task with the fewest requests under way.
    #[default]
    LeastOutstanding,
    /// One after the other.
    RoundRobin,
    /// The same key always to the same task, while tasks stay.
    Hash(HashBy),
}

/// What tells clients apart.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashBy {
    /// The client's address.
    #[default]
    Client,
    /// A header; those without it count by their address.
    Header(String),
    /// A cookie; those without it count by their address.
    Cookie(String),
    /// The path.
    Path,
}

/// A cookie that keeps a client on one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// The cookie's name; `WHARFTASK` unless the file gives one.
    pub cookie: String,
    /// How long it lasts; 8 hours unless the file says otherwise.
    pub max_age: Millis,
}

/// How long things may take. Absent ones are the gateway's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// Until a task accepts the connection; 5 s.
    #[serde(skip_serializing_if = "is_default")]
    pub connect: Option<Millis>,
    /// Until the head of the answer is there; 60 s.
    #[serde(skip_serializing_if = "is_default")]
    pub request: Option<Millis>,
    /// Without a byte in either direction; 5 minutes.
    #[serde(skip_serializing_if = "is_default")]
    pub idle: Option<Millis>,
}

/// Further attempts at another task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Attempts after the first, 0 to 10; 1 unless the file says otherwise.
    pub attempts: u8,
    /// At most so many per cent of requests are repeated, 0 to 100; 20 unless the file says otherwise.
    pub budget_percent: u8,
}

/// How many requests one client may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// So many, at least 1,
    pub requests: u32,
    /// in this time; 1 s unless the file says otherwise.
    pub per: Millis,
    /// So many at once; as many as `requests` unless the file says otherwise.
    pub burst: u32,
    /// Who is one client.
    pub by: HashBy,
}

/// How many requests may be under way at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// At each task, at least 1.
    pub requests: u32,
    /// How many may wait beyond that; 0 unless the file says otherwise.
    pub queue: u32,
    /// How long; 5 s unless the file says otherwise.
    pub wait: Millis,
}

/// When a failing task gets no more requests for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// After so many failures in a row, 1 to 1000; 5 unless the file says otherwise.
    pub failures: u32,
    /// For this long, then one request tries again; 10 s unless the file says otherwise.
    pub open: Millis,
    /// At most so many per cent of the tasks at once, 0 to 100; 50 unless the file says otherwise.
    pub most_percent: u8,
}

/// Who must give a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// A secret of the app with lines of `user:hash`, as `htpasswd` writes them.
    pub secret: String,
    /// What browsers show; the host unless the file says otherwise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub realm: Option<String>,
}

/// A service that gets copies of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Which.
    pub service: ServiceName,
    /// Its container's port; the route's own unless the file says otherwise.
    pub port: u16,
    /// Of so many per cent of requests, 1 to 100; 100 unless the file says otherwise.
    pub percent: u8,
}

/// What answers when no task can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Fallback {
    /// Another service of the app.
    Service {
        /// Which.
        service: ServiceName,
        /// Its container's port; the route's own unless the file says otherwise.
        port: u16,
    },
    /// A fixed answer.
    Answer {
        /// 200 to 599; 503 unless the file says otherwise.
        status: u16,
        /// Its text, at most 64 KiB.
        body: String,
        /// Its media type; `text/plain; charset=utf-8` unless the file says otherwise.
        content_type: String,
    },
}

/// Where the PROXY protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// Nowhere.
    #[default]
    Off,
    /// Clients (a load balancer in front) speak it.
    In,
    /// Tasks are spoken to with it.
    Out,
    /// Both.
    Both,
}

// --- releases ---

/// How a service moves to a new release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "strategy", deny_unknown_fields)]
pub enum ReleaseStrategy {
    /// Slot by slot, as `deploy.update_config` says. What a service without a strategy does.
    Rolling,
    /// A whole second set, then one switch.
    BlueGreen {
        /// A host at which the new set answers before the switch.
        #[serde(default, skip_serializing_if = "is_default")]
        preview: Option<String>,
        /// Switch as soon as the new set is ready; otherwise when somebody promotes it.
        promote: Promote,
        /// How long the old set stays after the switch; 10 minutes unless the file says otherwise.
        keep: Millis,
    },
    /// A growing share of the requests goes to the new release.
    Canary {
        /// Shares in per cent, growing, each with the time it is watched.
        steps: Vec<CanaryStep>,
        /// What the new release must not exceed.
        judge: Judge,
        /// Go on by itself after each step that the judge lets pass, or only when somebody promotes it.
        promote: Promote,
    },
}

/// Who lets a release go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promote {
    /// The cluster.
    #[default]
    Auto,
    /// A person: `wharf rollout promote`.
    Manual,
}

/// A share of the requests for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryStep {
    /// Per cent of the requests that the new release gets, 1 to 100; each step's is greater than the last one's.
    pub weight: u8,
    /// How long; 1 minute unless the file says otherwise.
    pub hold: Millis,
}

/// What a new release is compared with: the old one in the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// Failing requests (5xx) in per mille above the old release's, 0 to 1000; 10 (one per cent) unless the file says otherwise.
    pub errors_permille: u16,
    /// The 95th percentile of latency in per cent of the old release's, 100 to 10000; 150 unless the file says otherwise.
    pub latency_percent: u16,
    /// So many requests are needed for a judgement, at least 1; 100 unless the file says otherwise.
    pub requests: u32,
}

/// One-off commands around a release.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseHooks {
    /// In order, before any task is replaced; one that fails ends the release.
    #[serde(skip_serializing_if = "is_default")]
    pub before: Vec<ReleaseHook>,
    /// In order, once every service is as wanted.
    #[serde(skip_serializing_if = "is_default")]
    pub after: Vec<ReleaseHook>,
}

/// A command in a container of its own, made as the service's are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseHook {
    /// Whose image, environment, networks and mounts it has.
    pub service: ServiceName,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may take; 10 minutes unless the file says otherwise.
    pub timeout: Millis,
}

// --- number, place and output of tasks ---

/// How the number of tasks follows the load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscale {
    /// Never fewer; 1 unless the file says otherwise.
    pub min: u32,
    /// Never more, 1 to 10000; 10 unless the file says otherwise.
    pub max: u32,
    /// What is measured, at least one thing; the one that asks for most tasks decides.
    pub metrics: BTreeMap<Metric, Bounds>,
    /// At most so many tasks more or fewer at a time, 1 to 1000; 1 unless the file says otherwise.
    pub step: u32,
    /// The mean over this time counts; 3 minutes unless the file says otherwise.
    pub window: Millis,
    /// Nothing changes for this long after a change; 3 minutes unless the file says otherwise.
    pub cool_down: Millis,
}

/// What autoscaling measures, as the mean of a service's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Processor time in per cent of the limit, or of one processor without a limit.
    Cpu,
    /// Memory in per cent of the limit, or of the node's without a limit.
    Memory,
    /// Bytes received per second.
    NetworkIn,
    /// Bytes sent per second.
    NetworkOut,
    /// Requests per second through routes.
    Requests,
    /// The 95th percentile of the routes' latency in milliseconds.
    Latency,
}
impl Metric {
    /// Its word in a file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::NetworkIn => "network_in",
            Self::NetworkOut => "network_out",
            Self::Requests => "requests",
            Self::Latency => "latency",
        }
    }
}

/// Where a metric should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Bounds {
    /// Near this.
    Target {
        /// In the metric's unit.
        value: u64,
    },
    /// More tasks above one bound, fewer below the other; `below` is smaller.
    Range {
        /// No more than this; never more tasks for this metric if absent.
        above: Option<u64>,
        /// No less than this; never fewer tasks for this metric if absent.
        below: Option<u64>,
    },
}

/// A part of a service's output that is collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogStream {
    /// Where it comes from; standard output and error unless the file says otherwise.
    pub from: LogSource,
    /// How long it is kept, 1 hour to 3650 days; the cluster's default if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep: Option<Millis>,
    /// How lines are read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: LogFormat,
}

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogSource {
    /// Standard output and error.
    #[default]
    Stdout,
    /// Files: an absolute path in the container, `*` in its last part.
    Files(String),
}

/// How lines are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// As they are.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

/// Who gives way when there is not room for all. In the order of giving way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Work that can wait.
    Low,
    /// The rest.
    #[default]
    Normal,
    /// What users notice first.
    High,
    /// What others cannot run without: drivers, proxies. Starts first on a node and stops last.
    System,
}
impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::System => "system",
        })
    }
}

/// A wish about the neighbours of a service's tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    /// With or without whom.
    pub to: Neighbour,
    /// What is one place: `node`, or a label of nodes such as `node.labels.zone`; `node` unless the file says otherwise.
    pub scope: String,
    /// A wish rather than a condition.
    #[serde(default, skip_serializing_if = "is_default")]
    pub soft: bool,
}

/// With or without whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    /// Where a task of this service is.
    Near(ServiceName),
    /// Where no task of this service is; its own name means one of its tasks in each place.
    Apart(ServiceName),
    /// Where this image is already.
    NearImage(String),
}

/// Over how many places tasks must be spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AvailabilityMinimum {
    /// What is one place: a label of nodes; `node.labels.zone` unless the file says otherwise.
    pub over: String,
    /// So many, 2 to 1000.
    pub at_least: u32,
    /// As many as there are, if there are fewer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub soft: bool,
}

// --- jobs ---

/// Something that runs to its end: under `jobs:`, the draft of the Compose Specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// How its container is made; of [`ServiceSpec::mode`] and what follows a release nothing applies.
    pub spec: Box<ServiceSpec>,
    /// When it runs by itself: five fields as in crontab, or `@hourly` and the like; never if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Option<String>,
    /// Whether people may start it; true unless the file says otherwise.
    pub manual: bool,
}

// --- outside ---

/// A service that runs outside the cluster. It has no tasks, is always ready, and is found by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalService {
    /// Where it answers.
    pub host: ExternalHost,
    /// The ports it answers on, 1 to 65535; informative.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ports: Vec<u16>,
    /// The networks on which it is found, with further names.
    #[serde(default, skip_serializing_if = "is_default")]
    pub networks: BTreeMap<NetworkName, NetworkAttachment>,
}

/// Where something outside the cluster answers: an address, or a domain name.
///
/// Written and sent as one string, `10.0.0.7` or `db.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExternalHost {
    /// An IPv4 or IPv6 address.
    Address(IpAddr),
    /// A domain name: lower case, without the final dot.
    Domain(String),
}
impl fmt::Display for ExternalHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => fmt::Display::fmt(address, f),
            Self::Domain(domain) => f.pad(domain),
        }
    }
}
impl From<ExternalHost> for String {
    fn from(host: ExternalHost) -> Self {
        host.to_string()
    }
}
impl TryFrom<String> for ExternalHost {
    type Error = InvalidHost;
    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}
impl FromStr for ExternalHost {
    type Err = InvalidHost;
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let unbracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(address) = unbracketed.and_then(|text| text.parse::<Ipv6Addr>().ok()) {
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let domain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // What ends in a number is a mistyped address.
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let fits = domain.len() <= 253 && domain.split('.').all(is_dns_label);
        if fits && !domain.rsplit('.').next().is_some_and(is_number) {
            return Ok(Self::Domain(domain));
        }
        Err(InvalidHost(text.to_owned()))
    }
}

/// One part of a domain name; underscores are common in practice and harmless to resolvers.
fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// A text that is neither an address nor a domain name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHost(
    /// The text.
    pub String,
);
impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is neither an IP address nor a domain name", self.0)
    }
}
impl std::error::Error for InvalidHost {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_outside_are_addresses_or_domain_names() {
        let host = |text: &str| text.parse::<ExternalHost>();
        assert_eq!(host("10.0.0.7"), Ok(ExternalHost::Address([10, 0, 0, 7].into())));
        assert_eq!(host("[::1]"), Ok(ExternalHost::Address(Ipv6Addr::LOCALHOST.into())));
        assert_eq!(host("DB.example.com."), Ok(ExternalHost::Domain("db.example.com".into())));
        assert_eq!(host("database"), Ok(ExternalHost::Domain("database".into())));
        for text in ["", "10.0.0", "10.0.0.256", "a..b", "-a.b", "a b", "http://a", "a:80", "a/b", "*.a"] {
            assert_eq!(host(text), Err(InvalidHost(text.into())));
        }
        let long = format!("{}.com", "a".repeat(64));
        assert!(host(&long).is_err());
    }

    #[test]
    fn hosts_travel_as_text() {
        use serde::de::{IntoDeserializer, value};
        let read = |text: &'static str| {
            let text: value::StrDeserializer<'_, value::Error> = text.into_deserializer();
            ExternalHost::deserialize(text)
        };
        for text in ["10.0.0.7", "fd00::1", "db.example.com"] {
            assert_eq!(String::from(read(text).unwrap()), text);
        }
        assert!(read("a b").is_err());
    }
}
