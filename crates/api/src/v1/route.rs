//! Routes as people see them: where they are, where they lead, and what went through them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A route of a service (`x-wharf.routes`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// `environment/app/service#number`; a preview says so.
    pub id: String,
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
    /// Its place in the service's list, from 1.
    pub number: u16,
    /// It leads to a release that is being tried, and nowhere else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preview: bool,
    /// Its address, with what else a request must have: `https://shop.example.com/api (POST)`. `*` stands for any host.
    pub place: String,
    /// `http`, `https`, `tcp`, `tls` or `udp`.
    pub scheme: String,
    /// The hosts; any if empty.
    pub hosts: Vec<String>,
    /// The prefix of the path; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The gateways' port.
    pub listen: u16,
    /// The container's port.
    pub port: u16,
    /// Tasks that it leads to.
    pub tasks: usize,
    /// Which share of the requests the tasks of which generation of the service get; more than one while a release is under way.
    pub sets: Vec<RouteSet>,
}

/// The tasks of one generation of a service behind a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteSet {
    /// The generation.
    pub generation: u64,
    /// Its share beside the others', in any unit.
    pub weight: u32,
    /// Its tasks.
    pub tasks: usize,
}

/// Everything known of a route. Numbers are sums over all gateways, since each began to serve it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RouteDetail {
    /// The route itself.
    #[serde(flatten)]
    pub route: Route,
    /// What the file says of it.
    #[schema(value_type = Object)]
    pub spec: serde_json::Value,
    /// What all its tasks together were asked.
    pub total: RouteNumbers,
    /// The same for each generation of the service that was.
    pub generations: BTreeMap<u64, RouteNumbers>,
    /// The tasks it leads to, or that still finish something.
    pub endpoints: Vec<RouteEndpoint>,
    /// Requests that no task was given, by the reason's word.
    pub refused: BTreeMap<String, u64>,
    /// Requests that wait for a task to have room.
    pub queued: u64,
    /// Further attempts.
    pub retries: u64,
    /// Requests that a fallback answered.
    pub fallbacks: u64,
    /// The gateways that were asked.
    pub gateways: Vec<RouteGateway>,
}

/// What became of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteNumbers {
    /// Requests that are over, or connections where requests are not understood.
    pub requests: u64,
    /// Of these, those answered with 5xx, or not at all.
    pub failures: u64,
    /// Requests under way.
    pub active: u64,
    /// Bytes of bodies from clients.
    pub received: u64,
    /// Bytes of bodies to clients.
    pub sent: u64,
    /// In which time half of the answers began, in microseconds, rounded up to the next of a row of bounds; none without requests, or if it
    /// is longer than half a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 95 of 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_us: Option<u64>,
    /// 99 of 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// A task behind a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteEndpoint {
    /// The task's name; its identifier if it is gone.
    pub task: String,
    /// The task's identifier.
    pub id: String,
    /// Its address.
    pub address: String,
    /// The task's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What each gateway says of it.
    pub gateways: Vec<EndpointAtGateway>,
}

/// How an endpoint does, as one gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndpointAtGateway {
    /// The gateway's node.
    pub node: String,
    /// `serving`, `half-open`, `open` or `draining`.
    pub state: String,
    /// Why, unless it serves.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Requests under way.
    pub active: u64,
    /// Requests that it was given.
    pub requests: u64,
    /// Of these, those that failed.
    pub failures: u64,
}

/// A gateway that was asked for a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteGateway {
    /// Its node.
    pub node: String,
    /// Whether it serves the route.
    pub serves: bool,
    /// Why it does not, or is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Requests it passed on.
    pub requests: u64,
    /// Requests under way.
    pub active: u64,
    /// Its processes: more than one while an older one finishes what it has.
    pub processes: usize,
}
