//! What a gateway is told beyond published ports: requests and connections that `x-wharf.routes` leads to services, the
//! certificates it shows, and what it says of all that.

use std::{collections::BTreeMap, fmt, net::SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::{Endpoint, Generation, RouteSpec, ServiceKey};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which of the routes of an app's file: the service and the route's place in its list, from 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteId {
    /// Whose route.
    pub service: ServiceKey,
    /// Its place in the service's `routes`, from 0.
    pub number: u16,
    /// It leads to the release that is being tried, at the host that the release's strategy gives for that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub preview: bool,
}
impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preview = if self.preview { " (preview)" } else { "" };
        write!(f, "{}#{}{preview}", self.service, self.number + 1)
    }
}

/// One of a service's routes, with where it leads now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRoute {
    /// Which it is.
    pub id: RouteId,
    /// What the file says of it. Secrets it names are not looked up here: their content is in `users`.
    pub spec: RouteSpec,
    /// Where it leads: one set for each release that serves, usually one. A set without endpoints has no ready task; sets with
    /// weight 0 get nothing.
    pub sets: Vec<EndpointSet>,
    /// The tasks of the service that stands in when no task can answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fallback: Vec<Endpoint>,
    /// The tasks that get copies.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mirror: Vec<Endpoint>,
    /// Lines of `user:hash`, where a password is asked for. Nobody gets in if there are none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub users: Users,
}

/// Who may pass with which password; never shown.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Users(pub Vec<String>);
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({} lines)", self.0.len())
    }
}

/// The ready, not draining tasks of a service's one generation behind a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointSet {
    /// Of which generation of the service.
    pub generation: Generation,
    /// Its share of the service's requests beside the other sets, in any unit.
    pub weight: u32,
    /// The tasks.
    pub endpoints: Vec<Endpoint>,
}

/// A certificate that gateways show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownCertificate {
    /// For which hosts, in lower case; `*.` in front stands for one label, as in certificates. Without any it is shown wherever no other
    /// certificate is for the host.
    pub hosts: Vec<String>,
    /// The chain in PEM, its own first.
    pub chain: String,
    /// The private key in PEM.
    pub key: String,
}
impl fmt::Debug for ShownCertificate {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShownCertificate").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Seals what TLS clients show to resume a session. Known to gateways alone, and to all of them, so that a session goes on with any.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketKey(pub [u8; 32]);
impl fmt::Debug for TicketKey {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

/// What a gateway shows to a certificate authority that asks whether a host is ours (RFC 8555).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum AcmeChallenge {
    /// `GET /.well-known/acme-challenge/TOKEN` over HTTP on port 80 is answered with this text.
    Http01 {
        /// The host it is asked of.
        host: String,
        /// The last part of the path.
        token: String,
        /// The answer.
        answer: String,
    },
    /// A TLS handshake for the host that offers `acme-tls/1` alone is shown this certificate (RFC 8737).
    TlsAlpn01 {
        /// The certificate, for one host.
        certificate: ShownCertificate,
    },
}
impl fmt::Debug for AcmeChallenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http01 { host, .. } => f.debug_struct("Http01").field("host", host).finish_non_exhaustive(),
            Self::TlsAlpn01 { certificate } => {
                f.debug_struct("TlsAlpn01").field("hosts", &certificate.hosts).finish_non_exhaustive()
            }
        }
    }
}

/// What went through one route of one gateway since that gateway process began to serve it. Numbers only grow, `active` aside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteStats {
    /// By the generation of the tasks that were to answer.
    pub sets: BTreeMap<Generation, SetStats>,
    /// Each endpoint that is in the table, or still has something under way.
    pub endpoints: Vec<EndpointStats>,
    /// Requests that got no answer from any task, by the reason's word: `no_endpoint`, `rate_limited`, `queue_full`, `denied`, `unauthorised`, …
    pub refused: BTreeMap<String, u64>,
    /// Requests that wait for a task to have room now.
    pub queued: u64,
    /// Further attempts that were made.
    pub retries: u64,
    /// Requests that a fallback answered.
    pub fallbacks: u64,
}

/// The requests that one set of endpoints was to answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetStats {
    /// Requests that were finished, or connections where requests are not understood.
    pub requests: u64,
    /// Of these, those answered with 5xx, or not at all.
    pub failures: u64,
    /// Requests under way, upgraded connections among them.
    pub active: u64,
    /// How many took at most as long as [`LATENCY_BOUNDS`] says, each bucket for itself; the last one is for all that took longer.
    pub latency: Vec<u64>,
    /// Bytes of bodies from clients.
    pub received: u64,
    /// Bytes of bodies to clients.
    pub sent: u64,
}

/// Upper bounds of the buckets of [`SetStats::latency`], in microseconds until the head of the answer.
pub const LATENCY_BOUNDS: [u64; 23] = [
    500, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000,
    150_000, 200_000, 300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

impl SetStats {
    /// Adds another gateway's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.active += other.active;
        self.received += other.received;
        self.sent += other.sent;
        if self.latency.len() < other.latency.len() {
            self.latency.resize(other.latency.len(), 0);
        }
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            *mine += theirs;
        }
    }
    /// The upper bound, in microseconds, of the bucket in which the `per_mille` quantile is; none without requests, or if it lies above
    /// the last bound.
    pub fn quantile(&self, per_mille: u64) -> Option<u64> {
        let total: u64 = self.latency.iter().sum();
        let rank = (total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.latency.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        LATENCY_BOUNDS.get(bucket?).copied()
    }
}

impl RouteStats {
    /// Adds another gateway's. An endpoint that both know is in the state of the one that says more against it.
    pub fn add(&mut self, other: &Self) {
        for (generation, set) in &other.sets {
            self.sets.entry(*generation).or_default().add(set);
        }
        for theirs in &other.endpoints {
            let same =
                |mine: &&mut EndpointStats| (mine.task, mine.endpoint) == (theirs.task, theirs.endpoint);
            match self.endpoints.iter_mut().find(same) {
                Some(mine) => mine.add(theirs),
                None => self.endpoints.push(theirs.clone()),
            }
        }
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
        self.queued += other.queued;
        self.retries += other.retries;
        self.fallbacks += other.fallbacks;
    }
    /// All its sets together.
    pub fn total(&self) -> SetStats {
        let mut total = SetStats::default();
        self.sets.values().for_each(|set| total.add(set));
        total
    }
}

/// What went through a gateway, with all its processes: one serves, and others may finish what they had begun.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayStats {
    /// The processes.
    pub processes: Vec<GatewayProcess>,
    /// The routes of services.
    pub routes: Vec<RouteReport>,
    /// The published ports.
    pub ports: Vec<PortReport>,
}

/// One process of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayProcess {
    /// Which.
    pub pid: u32,
    /// It takes no new connections, as another one does.
    pub retired: bool,
    /// Clients that are connected to it.
    pub clients: u64,
    /// Lines that its access log lost, because the disk did not keep up.
    pub unlogged: u64,
    /// What connections to services' routes began with.
    pub entry: EntryCounters,
}

/// What connections to services' routes began with, since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EntryCounters {
    /// Handshakes of TLS that agreed on new keys.
    pub handshakes: u64,
    /// Those that resumed a session.
    pub resumed: u64,
    /// Those that failed, or took too long.
    pub failed: u64,
    /// Those that asked for a name that is not here.
    pub unknown_names: u64,
    /// Connections and datagrams that were dropped because the PROXY protocol was expected and something else came.
    pub malformed_proxy: u64,
    /// Certificate authorities that were answered in a handshake.
    pub challenges: u64,
}

/// What went through a route of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// Which.
    pub route: RouteId,
    /// How it does.
    pub stats: RouteStats,
}

/// What went through a published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Its port.
    pub port: u16,
    /// Its transport.
    pub protocol: crate::Protocol,
    /// Its address; every one of the node if absent.
    #[serde(default)]
    pub host_ip: Option<std::net::IpAddr>,
    /// Connections that reached a task, or clients whose datagrams did.
    pub connections: u64,
    /// Those that are open now.
    pub active: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Connections that no task took, and datagrams that were dropped.
    pub failures: u64,
    /// Tasks that did not take a connection which another then may have.
    pub retries: u64,
}

impl GatewayStats {
    /// Adds another process's, or another node's.
    pub fn add(&mut self, other: &Self) {
        self.processes.extend_from_slice(&other.processes);
        for theirs in &other.routes {
            match self.routes.iter_mut().find(|mine| mine.route == theirs.route) {
                Some(mine) => mine.stats.add(&theirs.stats),
                None => self.routes.push(theirs.clone()),
            }
        }
        let place = |report: &PortReport| (report.port, report.protocol, report.host_ip);
        for theirs in &other.ports {
            match self.ports.iter_mut().find(|mine| place(mine) == place(theirs)) {
                Some(mine) => {
                    mine.connections += theirs.connections;
                    mine.active += theirs.active;
                    mine.received += theirs.received;
                    mine.sent += theirs.sent;
                    mine.failures += theirs.failures;
                    mine.retries += theirs.retries;
                }
                None => self.ports.push(theirs.clone()),
            }
        }
    }
}

/// How one endpoint of a route does, as one gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStats {
    /// Which.
    pub endpoint: SocketAddrV4,
    /// Of which task.
    pub task: crate::TaskId,
    /// Whether it gets requests, and why not.
    pub state: EndpointState,
    /// Why it is in that state, in words; empty when it serves.
    #[serde(default)]
    pub why: String,
    /// Requests under way.
    pub active: u64,
    /// Requests that it was given.
    pub requests: u64,
    /// Of these, those that failed.
    pub failures: u64,
}

impl EndpointStats {
    fn add(&mut self, other: &Self) {
        if other.state > self.state {
            (self.state, self.why) = (other.state, other.why.clone());
        }
        self.active += other.active;
        self.requests += other.requests;
        self.failures += other.failures;
    }
}

/// Whether an endpoint gets requests. The later ones say more against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// It does.
    Serving,
    /// One request may try whether it is well again.
    HalfOpen,
    /// Its breaker is open: not for a while.
    Open,
    /// It is no longer in the table, and finishes what is under way.
    Draining,
}
impl EndpointState {
    /// Its word, as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_several_gateways_are_added_up() {
        let task = crate::TaskId::from_parts(1, [1; 10]);
        let endpoint = |state, why: &str, requests| EndpointStats {
            endpoint: SocketAddrV4::new([10, 0, 0, 1].into(), 80),
            task,
            state,
            why: why.to_owned(),
            active: 1,
            requests,
            failures: 0,
        };
        let stats = |state, why, requests| RouteStats {
            sets: BTreeMap::from([(Generation(1), SetStats { requests, ..SetStats::default() })]),
            endpoints: vec![endpoint(state, why, requests)],
            refused: BTreeMap::from([("denied".to_owned(), requests)]),
            ..RouteStats::default()
        };
        let mut sum = stats(EndpointState::Serving, "", 3);
        sum.add(&stats(EndpointState::Open, "5 failures in a row", 4));
        assert_eq!(sum.total().requests, 7);
        assert_eq!(sum.refused["denied"], 7);
        assert_eq!(sum.endpoints.len(), 1);
        let one = &sum.endpoints[0];
        assert_eq!((one.state, one.why.as_str()), (EndpointState::Open, "5 failures in a row"));
        assert_eq!((one.active, one.requests), (2, 7));
    }

    #[test]
    fn a_quantile_is_the_bound_of_the_bucket_that_it_falls_into() {
        let mut stats = SetStats { latency: vec![0; LATENCY_BOUNDS.len() + 1], ..SetStats::default() };
        assert_eq!(stats.quantile(950), None, "nothing was measured");
        stats.latency[0] = 95;
        stats.latency[4] = 5;
        assert_eq!((stats.quantile(950), stats.quantile(951)), (Some(500), Some(3_000)));
        stats.latency[LATENCY_BOUNDS.len()] = 100;
        assert_eq!(stats.quantile(990), None, "longer than the last bound");
    }
}
