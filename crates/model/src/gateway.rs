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

/// Whether an endpoint gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// It does.
    Serving,
    /// Its breaker is open: not for a while.
    Open,
    /// One request may try whether it is well again.
    HalfOpen,
    /// It is no longer in the table, and finishes what is under way.
    Draining,
}
impl EndpointState {
    /// Its word, as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
