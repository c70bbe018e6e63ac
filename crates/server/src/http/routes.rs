//! Routes of services: listed, examined at every gateway, and as metrics.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use wharf_api::{transport::Peer, v1};
use wharf_engine::service_routes;
use wharf_model::{EndpointStats, GatewayStats, NodeId, RouteStats, ServiceRoute, SetStats, TaskId};
use wharf_process::errors::chain;

use super::{
    Context, Shared, closest,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user,
};
use crate::state::Inner;

mod metrics;

/// How long a gateway has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which routes are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Of {
    environment: Option<String>,
}

/// The routes of services, of the cluster or of an environment.
#[utoipa::path(get, path = "/v1/routes", params(("environment" = Option<String>, Query)),
    responses((status = 200, body = [v1::Route])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<Of>,
) -> Answer<Json<Vec<v1::Route>>> {
    require_user(&peer)?;
    let routes = service_routes(&shared.state.read().world);
    let wanted = |route: &&ServiceRoute| is_of(route, wish.environment.as_deref());
    Ok(Json(routes.iter().filter(wanted).map(view).collect()))
}

/// Everything known of a route: by its id, `app/service`, a service, or a host, with `#` and a number if there are several. Every gateway
/// is asked.
#[utoipa::path(get, path = "/v1/routes/{route}", params(("route" = String, Path), ("environment" = Option<String>, Query)),
    responses((status = 200, body = v1::RouteDetail), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Query(wish): Query<Of>,
) -> Answer<Json<v1::RouteDetail>> {
    require_user(&peer)?;
    let route = {
        let inner = shared.state.read();
        let routes = service_routes(&inner.world);
        find(&routes, &name, wish.environment.as_deref())?.clone()
    };
    let asked = ask_all(&shared).await;
    Ok(Json(detail(&shared.state.read(), &route, &asked)))
}

/// What went through all gateways, as Prometheus reads it.
#[utoipa::path(get, path = "/v1/gateways/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Response> {
    require_user(&peer)?;
    let asked = ask_all(&shared).await;
    let text = metrics::text(&asked.into_iter().map(|asked| (asked.name, asked.answer.ok())).collect());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// A gateway, and what it said.
struct Asked {
    name: String,
    answer: Result<GatewayStats, String>,
}

/// Asks every node with the gateway role, all at once.
async fn ask_all(context: &Context) -> Vec<Asked> {
    let gateways: Vec<(NodeId, String)> = {
        let inner = context.state.read();
        let nodes = inner.world.nodes().filter(|node| node.record.roles.gateway);
        nodes.map(|node| (node.record.id, node.record.name.to_string())).collect()
    };
    let asked = gateways.into_iter().map(|(node, name)| async move {
        let answer = async {
            let session = context.sessions.get(node).map_err(|failure| failure.0.message)?;
            match tokio::time::timeout(PATIENCE, session.gateway()).await {
                Ok(Ok(stats)) => Ok(stats),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err("it did not answer in time".to_owned()),
            }
        };
        Asked { answer: answer.await, name }
    });
    let mut asked = futures::future::join_all(asked).await;
    asked.sort_by(|a, b| a.name.cmp(&b.name));
    asked
}

fn is_of(route: &ServiceRoute, environment: Option<&str>) -> bool {
    environment.is_none_or(|wanted| route.id.service.app.environment.as_str() == wanted)
}

/// The route of that name.
fn find<'r>(routes: &'r [ServiceRoute], name: &str, environment: Option<&str>) -> Answer<&'r ServiceRoute> {
    let (base, number) = match name.rsplit_once('#') {
        Some((base, number)) => (base, Some(number)),
        None => (name, None),
    };
    let called = |route: &&ServiceRoute| {
        let key = &route.id.service;
        let short = format!("{}/{}", key.app.name, key.name);
        route.id.to_string() == name || {
            let is_number = number.is_none_or(|number| number == (route.id.number + 1).to_string());
            let is_base = key.to_string() == base
                || short == base
                || key.name.as_str() == base
                || route.spec.hosts.iter().any(|host| host == base);
            is_number && is_base
        }
    };
    let in_environment = || routes.iter().filter(|route| is_of(route, environment));
    let found: Vec<_> = in_environment().filter(called).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let names: Vec<String> =
                in_environment().map(|route| route.id.service.name.to_string()).collect();
            let hint = match closest(base, &names) {
                Some(meant) if meant != base => format!("did you mean `{meant}`?"),
                _ => "`wharf route ls` lists them".to_owned(),
            };
            Err(Failure::not_found(format!("there is no route `{name}`")).hint(hint))
        }
        several => {
            let ids: Vec<_> = several.iter().map(|route| format!("`{}`", route.id)).collect();
            Err(Failure::invalid(format!("`{name}` may be any of {}", ids.join(", ")))
                .hint("give one of these"))
        }
    }
}

fn view(route: &ServiceRoute) -> v1::Route {
    let (id, spec) = (&route.id, &route.spec);
    v1::Route {
        id: id.to_string(),
        environment: id.service.app.environment.to_string(),
        app: id.service.app.name.to_string(),
        service: id.service.name.to_string(),
        number: id.number + 1,
        preview: id.preview,
        place: spec.place(),
        scheme: spec.scheme().to_owned(),
        hosts: spec.hosts.clone(),
        path: spec.path.clone(),
        listen: spec.gateway_port(),
        port: spec.port,
        tasks: route.sets.iter().map(|set| set.endpoints.len()).sum(),
        sets: route
            .sets
            .iter()
            .map(|set| v1::RouteSet {
                generation: set.generation.0,
                weight: set.weight,
                tasks: set.endpoints.len(),
            })
            .collect(),
    }
}

fn detail(inner: &Inner, route: &ServiceRoute, asked: &[Asked]) -> v1::RouteDetail {
    let mut sum = RouteStats::default();
    let mut gateways = Vec::new();
    let mut at: BTreeMap<(TaskId, String), Vec<v1::EndpointAtGateway>> = BTreeMap::new();
    // Those that it leads to are there, also if no gateway says anything of them yet.
    let endpoints = route.sets.iter().flat_map(|set| &set.endpoints);
    at.extend(endpoints.map(|endpoint| ((endpoint.task, endpoint.address.to_string()), Vec::new())));
    for Asked { name, answer } in asked {
        let stats = answer.as_ref().map(|all| (all, all.routes.iter().find(|known| known.route == route.id)));
        let (found, problem, processes) = match stats {
            Ok((all, Some(report))) => (Some(&report.stats), None, all.processes.len()),
            Ok((all, None)) => (None, Some("it does not serve it yet".to_owned()), all.processes.len()),
            Err(problem) => (None, Some(problem.clone()), 0),
        };
        let total = found.map(RouteStats::total).unwrap_or_default();
        gateways.push(v1::RouteGateway {
            node: name.clone(),
            serves: found.is_some(),
            problem,
            requests: total.requests,
            active: total.active,
            processes,
        });
        let Some(stats) = found else { continue };
        sum.add(stats);
        for endpoint in &stats.endpoints {
            let key = (endpoint.task, endpoint.endpoint.to_string());
            at.entry(key).or_default().push(endpoint_at(name, endpoint));
        }
    }
    let endpoints = at.into_iter().map(|((id, address), gateways)| {
        let task = inner.world.task(id);
        let node = task.and_then(|task| inner.world.node(task.node?));
        v1::RouteEndpoint {
            task: task.map_or_else(|| id.to_string(), |task| task.name()),
            id: id.to_string(),
            address,
            node: node.map(|node| node.record.name.to_string()),
            gateways,
        }
    });
    v1::RouteDetail {
        route: view(route),
        // Names of secrets are in it, and no content.
        spec: serde_json::to_value(&route.spec).unwrap_or_default(),
        total: numbers(&sum.total()),
        generations: sum.sets.iter().map(|(generation, set)| (generation.0, numbers(set))).collect(),
        endpoints: endpoints.collect(),
        refused: sum.refused.clone(),
        queued: sum.queued,
        retries: sum.retries,
        fallbacks: sum.fallbacks,
        gateways,
    }
}

fn endpoint_at(node: &str, endpoint: &EndpointStats) -> v1::EndpointAtGateway {
    v1::EndpointAtGateway {
        node: node.to_owned(),
        state: endpoint.state.as_str().to_owned(),
        why: endpoint.why.clone(),
        active: endpoint.active,
        requests: endpoint.requests,
        failures: endpoint.failures,
    }
}

fn numbers(set: &SetStats) -> v1::RouteNumbers {
    v1::RouteNumbers {
        requests: set.requests,
        failures: set.failures,
        active: set.active,
        received: set.received,
        sent: set.sent,
        p50_us: set.quantile(500),
        p95_us: set.quantile(950),
        p99_us: set.quantile(990),
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{AppKey, RouteId, RouteSpec, ServiceKey};

    use super::*;

    fn route(app: &str, service: &str, number: u16, host: &str) -> ServiceRoute {
        let app = AppKey { environment: "prod".parse().expect("a name"), name: app.parse().expect("a name") };
        let spec: RouteSpec =
            serde_json::from_value(serde_json::json!({ "port": 80, "hosts": [host] })).expect("a route");
        ServiceRoute {
            id: RouteId {
                service: ServiceKey { app, name: service.parse().expect("a name") },
                number,
                preview: false,
            },
            spec,
            sets: Vec::new(),
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: wharf_model::Users::default(),
        }
    }

    #[test]
    fn a_route_is_found_by_whatever_names_it_and_nothing_else() {
        let routes = [
            route("shop", "web", 0, "a.example"),
            route("shop", "web", 1, "b.example"),
            route("blog", "api", 0, "c.example"),
        ];
        let found = |name: &str| find(&routes, name, Some("prod")).map(|route| route.id.to_string());
        for name in ["api", "blog/api", "prod/blog/api", "prod/blog/api#1", "api#1", "c.example"] {
            assert_eq!(found(name).ok().as_deref(), Some("prod/blog/api#1"), "{name}");
        }
        assert_eq!(found("web#2").ok().as_deref(), Some("prod/shop/web#2"));
        assert_eq!(found("b.example").ok().as_deref(), Some("prod/shop/web#2"));
        let refused = found("web").unwrap_err().0;
        assert!(refused.message.contains("`prod/shop/web#1`, `prod/shop/web#2`"), "{refused:?}");
        let missing = found("wep").unwrap_err().0;
        assert_eq!(missing.hint.as_deref(), Some("did you mean `web`?"));
        assert!(find(&routes, "api", Some("test")).is_err(), "of another environment");
    }
}
