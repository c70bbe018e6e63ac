//! Nodes: seen, changed, removed.

use axum::{Extension, extract::State};
use wharf_api::{transport::Peer, v1};
use wharf_engine::Node;
use wharf_model::{Availability, By, EventKind, Generation, NodeId, NodeRecord, NodeState, Subject};
use wharf_store::Batch;

use super::{
    Shared,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user, views,
};
use crate::{
    records::{Key, RevokedRecord, encode},
    state::Inner,
};

/// How often a node is read and changed anew because somebody else wrote it meanwhile.
const ATTEMPTS: usize = 10;

/// Every node of the cluster.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = [v1::Node])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Node>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let mut nodes: Vec<_> =
        inner.world.nodes().map(|node| views::node(&shared.state, &inner, node)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(nodes))
}

/// One node, by name or id.
#[utoipa::path(get, path = "/v1/nodes/{node}", params(("node" = String, Path)), responses((status = 200, body = v1::Node)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Json<v1::Node>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let node = find(&inner, &name)?;
    Ok(Json(views::node(&shared.state, &inner, node)))
}

/// Changes a node: its availability, labels, or whether it is a gateway.
#[utoipa::path(patch, path = "/v1/nodes/{node}", params(("node" = String, Path)), request_body = v1::NodeChange,
    responses((status = 200, body = v1::Node), (status = 409, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Json(change): Json<v1::NodeChange>,
) -> Answer<Json<v1::Node>> {
    let user = require_user(&peer)?;
    let mut attempt = 1;
    loop {
        let (id, batch) = changed(&shared, &name, &change, &user)?;
        match shared.state.commit(batch).await {
            Ok(_) => {
                let inner = shared.state.read();
                let gone = || Failure::not_found(format!("node {name} is gone"));
                let node = inner.world.node(id).ok_or_else(gone)?;
                return Ok(Json(views::node(&shared.state, &inner, node)));
            }
            // Its certificate was renewed, or somebody changed something else of it.
            Err(error) if error.is_conflict() && attempt < ATTEMPTS => {
                attempt += 1;
                shared.state.see_what_was_faster(&error).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The node, and what to write so that it is changed as asked.
fn changed(shared: &Shared, name: &str, change: &v1::NodeChange, user: &By) -> Answer<(NodeId, Batch)> {
    let inner = shared.state.read();
    let before = &find(&inner, name)?.record;
    if change.if_generation.is_some_and(|wanted| wanted != before.generation.0) {
        return Err(Failure::new(
            v1::Code::Moved,
            format!("node {} has changed: it is at generation {}", before.name, before.generation),
        )
        .hint("look at it again"));
    }
    let mut record = NodeRecord { generation: Generation(before.generation.0 + 1), ..before.clone() };
    let mut said = Vec::new();
    if let Some(text) = &change.availability {
        record.availability = availability(text)?;
        said.push(format!("is set to {}", record.availability));
    }
    for (key, value) in &change.labels {
        said.push(format!("has label {key}={value}"));
        record.labels.insert(key.clone(), value.clone());
    }
    for key in &change.remove_labels {
        if record.labels.remove(key).is_none() {
            return Err(Failure::not_found(format!("node {} has no label `{key}`", record.name)));
        }
        said.push(format!("has lost label {key}"));
    }
    if let Some(gateway) = change.gateway {
        record.roles.gateway = gateway;
        said.push(if gateway { "is a gateway" } else { "is no gateway any more" }.to_owned());
    }
    if change.rotate_key {
        record.key_rotation += 1;
        said.push("is to make a new WireGuard key".to_owned());
    }
    let key = Key::Node(record.id);
    let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &record));
    let subject =
        Subject { node: Some(record.id), node_name: Some(record.name.to_string()), ..Subject::default() };
    if said.is_empty() {
        return Err(Failure::invalid(format!("nothing of node {} is to change", record.name)));
    }
    let message = format!("node {} {}", record.name, said.join(", "));
    Ok((record.id, shared.with_event(batch, EventKind::Node, subject, message, Some(user.clone()))))
}

/// Removes a node from the cluster: its certificate is revoked, and its tasks count as lost.
#[utoipa::path(delete, path = "/v1/nodes/{node}", params(("node" = String, Path), ("force" = Option<bool>, Query)),
    responses((status = 204), (status = 409, body = v1::Problem)))]
pub(super) async fn remove(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Query(options): Query<Remove>,
) -> Answer<axum::http::StatusCode> {
    let user = require_user(&peer)?;
    let batch = {
        let inner = shared.state.read();
        let node = find(&inner, &name)?;
        let record = &node.record;
        let tasks = inner.world.load(record.id).tasks;
        if tasks > 0 && node.state() != NodeState::Down && !options.force {
            return Err(Failure::new(
                v1::Code::Conflict,
                format!("node {} still has {tasks} task(s)", record.name),
            )
            .hint(format!(
                "move them away with `wharf node drain {}` first, or give `--force`",
                record.name
            )));
        }
        let key = Key::Node(record.id);
        let revoked =
            RevokedRecord { whose: format!("node {} ({})", record.name, record.id), at: shared.now() };
        let serial = Key::Revoked(record.certificate.clone());
        let batch = inner
            .expecting(Batch::new(), &key)
            .delete(key.to_string())
            .delete(Key::NodeStatus(record.id).to_string())
            .delete(Key::NodeName(record.name.clone()).to_string())
            .put(serial.to_string(), encode(&serial, &revoked));
        let subject =
            Subject { node: Some(record.id), node_name: Some(record.name.to_string()), ..Subject::default() };
        let message = format!("node {} was removed from the cluster", record.name);
        shared.with_event(batch, EventKind::Node, subject, message, Some(user))
    };
    // Every server cuts the node off as soon as it sees this.
    shared.state.commit(batch).await?;
    Ok(axum::http::StatusCode::NO_CONTENT)
}

/// How to remove a node.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Remove {
    /// Also with tasks on it.
    force: bool,
}

/// The node of this name or id.
pub(super) fn find<'a>(inner: &'a Inner, name: &str) -> Answer<&'a Node> {
    if let Some(node) = name.parse().ok().and_then(|id| inner.world.node(id)) {
        return Ok(node);
    }
    inner.world.nodes().find(|node| node.record.name.as_str() == name).ok_or_else(|| {
        let names: Vec<_> = inner.world.nodes().map(|node| node.record.name.to_string()).collect();
        let hint = match super::closest(name, &names) {
            Some(close) => format!("did you mean `{close}`? `wharf node ls` lists them"),
            None => "`wharf node ls` lists them".to_owned(),
        };
        Failure::not_found(format!("there is no node `{name}`")).hint(hint)
    })
}

fn availability(text: &str) -> Answer<Availability> {
    match text {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(Failure::invalid(format!("`{text}` is no availability: use active, pause or drain"))),
    }
}
