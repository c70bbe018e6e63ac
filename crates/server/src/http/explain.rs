//! Why tasks are where they are, or are not; and what the tasks of a node are about to do.

use axum::{Extension, extract::State};
use serde::Deserialize;
use wharf_api::{transport::Peer, v1};
use wharf_engine::{self as engine, About, PinnedBy, Waiting};
use wharf_model::{AppKey, ServiceKey, Task};

use super::{
    Context, Shared, apps,
    extract::{Json, Path, Query},
    failure::Answer,
    nodes, require_user,
};
use crate::{ids::RandomIds, state::Inner};

/// Which services are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServiceOf {
    service: Option<String>,
}

/// Why each task of an app, or of one of its services, is where it is, or nowhere.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/explain", params(("environment" = String, Path), ("app" = String, Path), ("service" = Option<String>, Query)),
    responses((status = 200, body = v1::Explanation), (status = 404, body = v1::Problem)))]
pub(super) async fn app(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Query(wish): Query<ServiceOf>,
) -> Answer<Json<v1::Explanation>> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let inner = shared.state.read();
    apps::find(&inner, &key)?;
    let services: Vec<ServiceKey> = match &wish.service {
        Some(name) => vec![apps::find_service(&inner, &key, name)?.key.clone()],
        None => {
            let services = inner.world.services_of(&key).filter(|service| !service.removed);
            services.map(|service| service.key.clone()).collect()
        }
    };
    Ok(Json(explained(&shared, &inner, &key, &services, None)))
}

/// Why a task is where it is.
#[utoipa::path(get, path = "/v1/tasks/{task}/explain", params(("task" = String, Path)),
    responses((status = 200, body = v1::Explanation), (status = 404, body = v1::Problem)))]
pub(super) async fn task(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Json<v1::Explanation>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let task = apps::find_task(&shared, &inner, &name)?;
    let services = [task.service.clone()];
    Ok(Json(explained(&shared, &inner, &task.service.app, &services, Some(task))))
}

/// Explains slots of services: all, or that of one task.
fn explained(
    shared: &Context,
    inner: &Inner,
    app: &AppKey,
    services: &[ServiceKey],
    only: Option<&Task>,
) -> v1::Explanation {
    let (world, now) = (&inner.world, shared.now());
    let waiting = engine::decide(world, app, now, &mut RandomIds).waiting;
    let mut slots = Vec::new();
    for service in services {
        for found in engine::explain_service(world, service, now) {
            let wanted = match (only, &found.about) {
                (None, _) => true,
                // Its slot may have another task by now, and one that is over has none.
                (Some(task), About::Slot { slot, .. }) if task.slot.0 > 0 => *slot == task.slot,
                (Some(task), _) => found.task == Some(task.id),
            };
            if wanted {
                slots.push(slot(shared, inner, service, &found, &waiting));
            }
        }
    }
    // What is about a slot has been said there, or is another slot's affair.
    let general = waiting.iter().filter(|waiting| match &waiting.about {
        About::Slot { .. } => false,
        About::Service(service) => services.contains(service),
        About::App(_) | About::Network(..) | About::Volume(..) => true,
    });
    v1::Explanation {
        environment: app.environment.to_string(),
        app: app.name.to_string(),
        waiting: general.map(ToString::to_string).collect(),
        slots,
    }
}

fn slot(
    shared: &Context,
    inner: &Inner,
    service: &ServiceKey,
    found: &engine::Explanation,
    waiting: &[Waiting],
) -> v1::SlotExplained {
    let world = &inner.world;
    let task = found.task.and_then(|id| world.task(id)).filter(|task| !task.is_over());
    let same = |about: &About| match (about, &found.about) {
        (
            About::Slot { service, slot, node, .. },
            About::Slot { service: of_it, slot: its, node: its_node, .. },
        ) => (service, slot, node) == (of_it, its, its_node),
        _ => false,
    };
    let about = waiting.iter().filter(|waiting| same(&waiting.about));
    let terms = |terms: &engine::NodeTerms| v1::NodeTerms {
        node: terms.name.clone(),
        terms: terms.terms.iter().map(|term| (term.what.clone(), term.value.clone())).collect(),
    };
    v1::SlotExplained {
        slot: found.about.to_string(),
        service: service.name.to_string(),
        task: task.map(|task| task.name()),
        state: task.map(|task| shared.state.status_of(task).phase.to_string()),
        node: task.and_then(|task| task.node).map(|node| world.node_name(node)),
        since: task.map(|task| task.created_at.0),
        why: task.map(|task| engine::came(world, task)).unwrap_or_default(),
        strategy: found.strategy.to_string(),
        pinned: found.pinned.as_ref().map(|(by, nodes)| pinned(by, nodes)),
        nodes: found.nodes,
        able: found.able,
        chosen: found.chosen.as_ref().map(terms),
        runner_up: found.runner_up.as_ref().map(terms),
        decided_by: found.decided_by.clone(),
        outdone: found.is_outdone,
        rules: found
            .rules
            .iter()
            .map(|count| v1::RuleExplained {
                rule: count.rule.clone(),
                reason: count.refusal.phrase(count.all == 1),
                first: count.first,
                nodes: count.all,
                hint: count.refusal.hint(),
            })
            .collect(),
        without: found
            .without
            .iter()
            .map(|without| v1::WithoutRule { rule: without.rule.clone(), nodes: without.nodes.clone() })
            .collect(),
        remedies: found.remedies.iter().map(|remedy| remedy.text.clone()).collect(),
        waiting: about.map(ToString::to_string).collect(),
    }
}

fn pinned(by: &PinnedBy, nodes: &[String]) -> String {
    let nodes = if nodes.is_empty() { "no node".to_owned() } else { nodes.join(" or ") };
    match by {
        PinnedBy::Volume(volume) => {
            format!("must run on {nodes}, which holds the data of its volume {volume}")
        }
        PinnedBy::Service(shared, service) => {
            format!("must run on {nodes}, where {service} is whose {shared} it shares")
        }
        PinnedBy::Global => format!("is the one for {nodes}"),
    }
}

/// The tasks of a node, and what each is about to do.
#[utoipa::path(get, path = "/v1/nodes/{node}/drain", params(("node" = String, Path)), responses((status = 200, body = v1::NodeDrain)))]
pub(super) async fn node(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Json<v1::NodeDrain>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let node = nodes::find(&inner, &name)?;
    let found = engine::departures(&inner.world, node.record.id, shared.now(), &mut RandomIds);
    let tasks = found.into_iter().filter_map(|(id, departure, why)| {
        let task = inner.world.task(id)?;
        Some(v1::LeavingTask {
            name: task.name(),
            environment: task.service.app.environment.to_string(),
            app: task.service.app.name.to_string(),
            state: departure.as_str().to_owned(),
            why,
        })
    });
    let mut tasks: Vec<_> = tasks.collect();
    tasks.sort_by(|a, b| (&a.environment, &a.name).cmp(&(&b.environment, &b.name)));
    Ok(Json(v1::NodeDrain {
        node: node.record.name.to_string(),
        availability: node.record.availability.to_string(),
        tasks,
    }))
}
