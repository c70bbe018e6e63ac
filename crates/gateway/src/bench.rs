//! What benchmarks measure of the choosing of endpoints, which is otherwise nobody's business (feature `bench`).

use std::{hint::black_box, net::SocketAddrV4, time::Duration};

use http::{HeaderMap, Method, StatusCode};
use wharf_model::{Endpoint, EndpointSet, Generation, Revision, RouteId, RouteTable, ServiceRoute, TaskId};

use crate::http::{Ask, Choice, Found, Moment, table::Table};

/// A compiled table.
pub struct Compiled(Table);

/// A table with so many routes, each with a host of its own and so many tasks. `settings` are those of every route.
///
/// # Panics
/// If the settings are none of a route.
#[must_use]
pub fn routes(routes: usize, endpoints: usize, settings: &serde_json::Value) -> RouteTable {
    let services = (0..routes).map(|number| {
        let id = serde_json::json!({
            "service": {"app": {"environment": "prod", "name": format!("app-{number}")}, "name": "web"}, "number": 0,
        });
        let mut spec = settings.clone();
        spec["port"] = 8080.into();
        spec["hosts"] = vec![format!("shop-{number}.example.com")].into();
        let endpoint = |at: usize| {
            let all = u32::try_from(number * endpoints + at).unwrap_or(u32::MAX);
            let mut random = [0; 10];
            random[..4].copy_from_slice(&all.to_be_bytes());
            Endpoint::new(TaskId::from_parts(1, random), SocketAddrV4::new((0x0A00_0000 + all).into(), 8080))
        };
        let endpoints = (0..endpoints).map(endpoint).collect();
        ServiceRoute {
            id: read::<RouteId>(id),
            spec: read(spec),
            sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints }],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: wharf_model::Users::default(),
        }
    });
    RouteTable { version: Revision(1), services: services.collect(), ..RouteTable::default() }
}

#[expect(clippy::expect_used, reason = "the values are those of the benchmark itself")]
fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("it is one")
}

impl Compiled {
    /// Compiles, and has it take the place of the one before.
    #[must_use]
    pub fn new(table: &RouteTable, before: Option<&Self>) -> Self {
        let nothing = Table::default();
        let before = before.map_or(&nothing, |before| &before.0);
        let table = Table::compile(table, before, 2, Moment::now());
        table.supersede(before);
        Self(table)
    }

    /// Whether a request for this host is for a route.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> bool {
        let headers = HeaderMap::new();
        matches!(self.0.find(&ask(host, path, &headers)), Found::Route(_))
    }

    /// Finds, chooses, answers: all that a request asks of the table. Whether it was answered.
    #[must_use]
    pub fn request(&self, host: &str, path: &str) -> bool {
        let headers = HeaderMap::new();
        let ask = ask(host, path, &headers);
        let Found::Route(route) = self.0.find(&ask) else { return false };
        let Choice::Lease(mut lease) = route.choose(&ask, &[], None) else { return false };
        lease.answered(StatusCode::OK, Duration::from_micros(700), ask.now);
        lease.passed(0, 1000);
        black_box(lease.backend().active()) > 0
    }
}

fn ask<'r>(host: &'r str, path: &'r str, headers: &'r HeaderMap) -> Ask<'r> {
    Ask {
        port: 80,
        secure: false,
        client: [192, 0, 2, 1].into(),
        method: &Method::GET,
        host,
        path,
        headers,
        now: Moment(1_000_000),
    }
}
