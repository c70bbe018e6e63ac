//! Nodes: seen, changed, removed.

use axum::{Extension, extract::State};
use wharf_api::{
    transport::{
        Peer,
        node::{Prune, Pruned},
    },
    v1,
};
use wharf_engine::Node;
use wharf_model::{
    Availability, By, EventKind, Generation, MaintenanceWindow, NodeId, NodeRecord, NodeScheduling,
    NodeState, Overcommit, PlacementDefaults, PlacementStrategy, Subject, Taint, Timestamp,
};
use wharf_store::Batch;

use super::{
    Shared,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user, views,
};
use crate::{
    records::{ClusterRecord, Key, RevokedRecord, encode},
    state::Inner,
};

/// The most that may be promised of a node, in per cent of what it has.
const MOST_PERCENT: u32 = 10_000;
/// So many maintenance windows may lie ahead of a node.
const MOST_WINDOWS: usize = 100;
/// What a maintenance window is for, in bytes.
const LONGEST_NOTE: usize = 200;
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

/// Changes a node: its availability, labels, how work comes to it, or whether it is a gateway.
#[utoipa::path(patch, path = "/v1/nodes/{node}", params(("node" = String, Path)), request_body = v1::NodeChange,
    responses((status = 200, body = v1::Node), (status = 409, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Json(change): Json<v1::NodeChange>,
) -> Answer<Json<v1::Node>> {
    let user = require_user(&peer)?;
    // Its certificate may be renewed meanwhile, or somebody change something else of it.
    let decide = |inner: &Inner| {
        let (id, batch) = changed(&shared, inner, &name, &change, &user)?;
        Ok((id, Some(batch)))
    };
    let id = shared.change(ATTEMPTS, decide).await?;
    let inner = shared.state.read();
    let gone = || Failure::not_found(format!("node {name} is gone"));
    let node = inner.world.node(id).ok_or_else(gone)?;
    Ok(Json(views::node(&shared.state, &inner, node)))
}

/// The node, and what to write so that it is changed as asked.
fn changed(
    shared: &Shared,
    inner: &Inner,
    name: &str,
    change: &v1::NodeChange,
    user: &By,
) -> Answer<(NodeId, Batch)> {
    let before = &find(inner, name)?.record;
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
        if record.availability != before.availability {
            record.available_since = Some(shared.now());
        }
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
    schedule(&mut record.scheduling, change, shared.now(), &mut said)?;
    if let Some(gateway) = change.gateway {
        record.roles.gateway = gateway;
        said.push(if gateway { "is a gateway" } else { "is no gateway any more" }.to_owned());
    }
    if change.rotate_key {
        record.key_rotation += 1;
        said.push("is to make a new WireGuard key".to_owned());
    }
    if let Some(text) = &change.disk_marks {
        record.disk_marks = text.parse().map_err(|error| Failure::invalid(format!("{error}")))?;
        let marks = record.disk_marks;
        said.push(format!(
            "makes room on its disks from {} % down to {} %, and takes no new tasks from {} %",
            marks.high, marks.low, marks.full
        ));
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

/// Removes from a node what nobody needs: images that no kept release and no task has, and what builds have left.
#[utoipa::path(post, path = "/v1/nodes/{node}/prune", params(("node" = String, Path)), request_body = Prune,
    responses((status = 200, body = Pruned), (status = 502, body = v1::Problem)))]
pub(super) async fn prune(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Json(ask): Json<Prune>,
) -> Answer<Json<Pruned>> {
    require_user(&peer)?;
    let id = find(&shared.state.read(), &name)?.record.id;
    Ok(Json(shared.sessions.get(id)?.prune(&ask).await?))
}

/// Changes how work comes to a node, and says what changes.
fn schedule(
    scheduling: &mut NodeScheduling,
    change: &v1::NodeChange,
    now: Timestamp,
    said: &mut Vec<String>,
) -> Answer<()> {
    if let Some(pool) = &change.pool {
        if pool.contains(char::is_whitespace) || pool.contains('=') {
            return Err(Failure::invalid(format!("`{pool}` is no name of a pool"))
                .hint("letters, digits, `-`, `_` and `.` are"));
        }
        scheduling.pool = Some(pool.clone()).filter(|pool| !pool.is_empty());
        said.push(match &scheduling.pool {
            Some(pool) => format!("belongs to pool {pool}"),
            None => "belongs to no pool".to_owned(),
        });
    }
    for text in &change.remove_taints {
        let before = scheduling.taints.len();
        scheduling.taints.retain(|taint| taint.key != *text && taint.to_string() != *text);
        if scheduling.taints.len() == before {
            let there: Vec<_> = scheduling.taints.iter().map(ToString::to_string).collect();
            let hint =
                if there.is_empty() { "it has none".into() } else { format!("it has {}", there.join(", ")) };
            return Err(Failure::not_found(format!("the node has no taint `{text}`")).hint(hint));
        }
        said.push(format!("has lost taint {text}"));
    }
    for text in &change.taints {
        let taint: Taint =
            text.parse().map_err(|error: wharf_model::InvalidTaint| Failure::invalid(error.to_string()))?;
        scheduling.taints.retain(|other| (&other.key, other.effect) != (&taint.key, taint.effect));
        said.push(format!("has taint {taint}"));
        scheduling.taints.push(taint);
        scheduling.taints.sort();
    }
    if let Some(wish) = &change.overcommit {
        scheduling.overcommit = overcommit(scheduling.overcommit, wish)?;
        let Overcommit { cpus, memory, limit_cpus, limit_memory } = scheduling.overcommit;
        let limit = |what: &str, limit: Option<u32>| {
            limit.map_or_else(String::new, |limit| format!(", limits of {what} up to {limit} %"))
        };
        said.push(format!(
            "promises {cpus} % of its CPUs and {memory} % of its memory{}{}",
            limit("CPUs", limit_cpus),
            limit("memory", limit_memory)
        ));
    }
    if change.clear_windows {
        scheduling.windows.clear();
        said.push("has no maintenance windows".to_owned());
    }
    // What is over tells nobody anything any more.
    scheduling.windows.retain(|window| window.until > now);
    for wish in &change.windows {
        let window = window(wish, now)?;
        let how = if window.drain { ", and its tasks move away meanwhile" } else { "" };
        let note = if window.note.is_empty() { String::new() } else { format!(" ({})", window.note) };
        let minutes = window.until.since(window.from).as_secs().div_ceil(60);
        said.push(format!("is worked on for {minutes} min{note}{how}"));
        scheduling.windows.push(window);
        scheduling.windows.sort_by_key(|window| (window.from, window.until));
    }
    if scheduling.windows.len() > MOST_WINDOWS {
        return Err(Failure::invalid(format!("a node has at most {MOST_WINDOWS} maintenance windows ahead")));
    }
    Ok(())
}

fn overcommit(before: Overcommit, wish: &v1::OvercommitChange) -> Answer<Overcommit> {
    let factor = |wanted: Option<u32>, before: u32| match wanted {
        None => Ok(before),
        Some(percent @ 1..=MOST_PERCENT) => Ok(percent),
        Some(wrong) => Err(Failure::invalid(format!("{wrong} % of a node cannot be promised"))
            .hint(format!("give 1 to {MOST_PERCENT}; `wharf node pause` keeps new tasks away"))),
    };
    let limit = |wanted: Option<u32>, before: Option<u32>| match wanted {
        None => Ok(before),
        Some(0) => Ok(None),
        Some(percent @ 1..=MOST_PERCENT) => Ok(Some(percent)),
        Some(wrong) => Err(Failure::invalid(format!("limits cannot add up to {wrong} % of a node at most"))
            .hint(format!("give 1 to {MOST_PERCENT}, or 0 for anything"))),
    };
    Ok(Overcommit {
        cpus: factor(wish.cpus, before.cpus)?,
        memory: factor(wish.memory, before.memory)?,
        limit_cpus: limit(wish.limit_cpus, before.limit_cpus)?,
        limit_memory: limit(wish.limit_memory, before.limit_memory)?,
    })
}

fn window(wish: &v1::MaintenanceWindow, now: Timestamp) -> Answer<MaintenanceWindow> {
    let v1::MaintenanceWindow { from, until, drain, note } = wish.clone();
    if until <= from || until <= now.0 {
        return Err(Failure::invalid("a maintenance window ends after it begins, and not before now")
            .hint("times are in milliseconds since the epoch, by the servers' clock"));
    }
    if note.len() > LONGEST_NOTE {
        return Err(Failure::invalid(format!(
            "what a window is for is said in {LONGEST_NOTE} bytes at most"
        )));
    }
    Ok(MaintenanceWindow { from: Timestamp(from), until: Timestamp(until), drain, note })
}

/// What holds for placement where files say nothing else.
#[utoipa::path(get, path = "/v1/placement-defaults", responses((status = 200, body = v1::PlacementDefaults)))]
pub(super) async fn placement(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::PlacementDefaults>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let cluster = inner.cluster.as_ref().ok_or_else(|| Failure::not_found("the store holds no cluster"))?;
    Ok(Json(v1::PlacementDefaults { strategy: Some(cluster.placement.strategy.to_string()) }))
}

/// Changes what holds for placement where files say nothing else: for tasks that are placed from now on.
#[utoipa::path(put, path = "/v1/placement-defaults", request_body = v1::PlacementDefaults,
    responses((status = 200, body = v1::PlacementDefaults), (status = 422, body = v1::Problem)))]
pub(super) async fn change_placement(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::PlacementDefaults>,
) -> Answer<Json<v1::PlacementDefaults>> {
    let user = require_user(&peer)?;
    let decide = |inner: &Inner| {
        let before =
            inner.cluster.as_ref().ok_or_else(|| Failure::not_found("the store holds no cluster"))?;
        let strategy = match wish.strategy.as_deref() {
            None => before.placement.strategy,
            Some("spread") => PlacementStrategy::Spread,
            Some("binpack") => PlacementStrategy::Binpack,
            Some("random") => PlacementStrategy::Random,
            Some(other) => {
                return Err(Failure::invalid(format!(
                    "`{other}` is no strategy of placement: use spread, binpack or random"
                )));
            }
        };
        let placement = PlacementDefaults { strategy };
        let batch = (placement != before.placement).then(|| {
            let record = ClusterRecord { placement, ..before.clone() };
            let key = Key::Cluster;
            let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &record));
            let message = format!("placement: {strategy}, where files do not say how");
            shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(user.clone()))
        });
        Ok((strategy, batch))
    };
    let strategy = shared.change(ATTEMPTS, decide).await?;
    Ok(Json(v1::PlacementDefaults { strategy: Some(strategy.to_string()) }))
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
