//! What holds for networks whose files say nothing else: seen, planned and changed.

use axum::{Extension, extract::State};
use ipnet::Ipv4Net;
use wharf_api::{transport::Peer, v1};
use wharf_engine::{plan_backend, plan_pool, wanted_routes};
use wharf_model::{AddressPool, Backend, EventKind, RouteProgram, Subject};
use wharf_store::Batch;

use super::{
    Context, Shared,
    extract::Json,
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    records::{ClusterRecord, Key, encode},
    state::Inner,
};

/// What a cloud's route table takes, unless somebody says otherwise.
const USUAL_LIMIT: u32 = 50;

/// What holds for networks whose files say nothing else.
#[utoipa::path(get, path = "/v1/network-defaults", responses((status = 200, body = v1::NetworkDefaults)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::NetworkDefaults>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    Ok(Json(view(&shared, &inner, cluster(&inner)?)))
}

/// Changes what holds for networks whose files say nothing else, or says what that would do.
#[utoipa::path(put, path = "/v1/network-defaults", request_body = v1::NetworkDefaultsChange,
    responses((status = 200, body = v1::NetworkDefaultsPlan), (status = 409, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::NetworkDefaultsChange>,
) -> Answer<Json<v1::NetworkDefaultsPlan>> {
    let user = require_user(&peer)?;
    let (plan, batch) = {
        let inner = shared.state.read();
        let before = cluster(&inner)?;
        let after = changed(before, &wish)?;
        let conflict = |text: String| match text.split_once("; hint: ") {
            Some((text, hint)) => refused(text).hint(hint.to_owned()),
            None => refused(text),
        };
        let mut changes = Vec::new();
        if after.pool != before.pool {
            plan_pool(&inner.world, after.pool).map_err(conflict)?;
            changes.push(format!(
                "~ pool     {} -> {} (for networks that are made from now on)",
                before.pool.range, after.pool.range
            ));
        }
        if after.network.backend != before.network.backend {
            changes
                .push(format!("~ default  backend {} -> {}", before.network.backend, after.network.backend));
            let networks = plan_backend(&inner.world, after.network.backend).map_err(conflict)?;
            changes.extend(networks.into_iter().map(|(_, operation)| operation.to_string()));
        }
        match (&before.network.routes, &after.network.routes) {
            (one, other) if one == other => {}
            (_, Some(routes)) => changes.push(format!(
                "~ routes   made by `{} sync`, at most {}",
                routes.command.join(" "),
                routes.limit
            )),
            (_, None) => changes.push("~ routes   no longer made outside the nodes".to_owned()),
        }
        let key = Key::Cluster;
        let at = inner.revision_of(&key).map(|revision| revision.0);
        let fingerprint = hex::encode(
            &ring::digest::digest(&ring::digest::SHA256, format!("{at:?}{changes:?}").as_bytes()).as_ref()
                [..16],
        );
        if wish.fingerprint.as_ref().is_some_and(|wanted| *wanted != fingerprint) {
            return Err(refused("the cluster has changed since this was planned")
                .hint("look at the plan again: `wharf network default`"));
        }
        let batch = (!wish.dry_run && after != *before).then(|| {
            let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &after));
            let message = format!("networks: {}", changes.join("; "));
            shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(user))
        });
        let defaults = view(&shared, &inner, &after);
        (v1::NetworkDefaultsPlan { defaults, changes, fingerprint }, batch)
    };
    if let Some(batch) = batch {
        shared.state.commit(batch).await?;
    }
    Ok(Json(plan))
}

fn refused(text: impl Into<String>) -> Failure {
    Failure::new(v1::Code::Conflict, text)
}

fn cluster(inner: &Inner) -> Answer<&ClusterRecord> {
    inner.cluster.as_ref().ok_or_else(|| Failure::not_found("the store holds no cluster"))
}

/// The cluster as it is asked for.
fn changed(before: &ClusterRecord, wish: &v1::NetworkDefaultsChange) -> Answer<ClusterRecord> {
    let mut after = before.clone();
    if let Some(text) = &wish.backend {
        let backend: Backend = text.parse().map_err(|error: wharf_model::UnknownBackend| {
            Failure::invalid(error.to_string()).hint("a cluster's default is vxlan, routed or wireguard")
        })?;
        if !backend.is_general() {
            return Err(Failure::invalid(format!("`{backend}` cannot be the default of a cluster")).hint(
                "it is chosen for one network, in its Compose file; a default is vxlan, routed or wireguard",
            ));
        }
        after.network.backend = backend;
    }
    if let Some(text) = &wish.pool {
        let range: Ipv4Net = text.parse().map_err(|_| {
            Failure::invalid(format!("`{text}` is no range of addresses"))
                .hint("write one such as 10.192.0.0/10")
        })?;
        after.pool = AddressPool { range: range.trunc(), ..before.pool };
        if range.prefix_len() > before.pool.prefix.saturating_sub(4) {
            return Err(Failure::invalid(format!(
                "{range} has room for fewer than 16 networks of /{}",
                before.pool.prefix
            ))
            .hint("choose a larger range"));
        }
    }
    let known = before.network.routes.as_ref();
    let limit = wish.route_limit.or(known.map(|routes| routes.limit)).unwrap_or(USUAL_LIMIT);
    let command = wish.route_command.clone().or(known.map(|routes| routes.command.clone()));
    after.network.routes =
        command.filter(|command| !command.is_empty()).map(|command| RouteProgram { command, limit });
    if wish.route_limit.is_some() && after.network.routes.is_none() {
        return Err(Failure::invalid("a limit of routes needs the program that makes them")
            .hint("name it: `--route-command`"));
    }
    Ok(after)
}

fn view(shared: &Context, inner: &Inner, cluster: &ClusterRecord) -> v1::NetworkDefaults {
    let routes = cluster.network.routes.as_ref();
    let standing = shared.state.route_standing();
    v1::NetworkDefaults {
        backend: cluster.network.backend.to_string(),
        pool: cluster.pool.range.to_string(),
        route_command: routes.map(|routes| routes.command.clone()),
        route_limit: routes.map(|routes| routes.limit),
        routes_wanted: routes.map(|_| wanted_routes(&inner.world).len()),
        routes_programmed: standing.as_ref().map(|standing| standing.programmed),
        routes_error: standing.and_then(|standing| standing.error),
    }
}
