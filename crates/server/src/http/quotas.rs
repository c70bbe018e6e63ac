//! Quotas of environments: seen with what is wanted of them, set, lifted.

use std::collections::BTreeSet;

use axum::{Extension, extract::State, http::StatusCode};
use wharf_api::{transport::Peer, v1};
use wharf_engine::wanted_in;
use wharf_model::{Bytes, Cpus, EnvironmentName, EventKind, Quota, QuotaRecord, QuotaThing, Subject};
use wharf_store::Batch;

use super::{
    Shared,
    extract::{Json, Path},
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    records::{Key, encode},
    state::Inner,
};

/// How often a change is decided anew because somebody was faster.
const ATTEMPTS: usize = 20;

/// Every environment that has apps or a quota.
#[utoipa::path(get, path = "/v1/quotas", responses((status = 200, body = [v1::Quota])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Quota>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let used = inner.world.apps().map(|app| app.key.environment.clone());
    let limited = inner.world.quotas().map(|(environment, _)| environment.clone());
    let environments: BTreeSet<EnvironmentName> = used.chain(limited).collect();
    Ok(Json(environments.iter().map(|environment| view(&inner, environment)).collect()))
}

/// The quota of one environment, and what is wanted of it.
#[utoipa::path(get, path = "/v1/quotas/{environment}", params(("environment" = String, Path)), responses((status = 200, body = v1::Quota)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(environment): Path<String>,
) -> Answer<Json<v1::Quota>> {
    require_user(&peer)?;
    Ok(Json(view(&shared.state.read(), &name(&environment)?)))
}

/// Sets limits of an environment, or lifts some.
#[utoipa::path(put, path = "/v1/quotas/{environment}", params(("environment" = String, Path)), request_body = v1::QuotaChange,
    responses((status = 200, body = v1::Quota), (status = 422, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(environment): Path<String>,
    Json(wish): Json<v1::QuotaChange>,
) -> Answer<Json<v1::Quota>> {
    let by = require_user(&peer)?;
    let environment = name(&environment)?;
    let decide = |inner: &Inner| {
        let before = inner.world.quota(&environment).copied().unwrap_or_default();
        let after = changed(before, &wish)?;
        let key = Key::Quota(environment.clone());
        let record = QuotaRecord { environment: environment.clone(), quota: after };
        let batch = inner.expecting(Batch::new(), &key);
        let batch = match after == Quota::default() {
            true => batch.delete(key.to_string()),
            false => batch.put(key.to_string(), encode(&key, &record)),
        };
        let limits = QuotaThing::ALL.into_iter().filter_map(|thing| Some(thing.amount(after.limit(thing)?)));
        let limits: Vec<_> = limits.collect();
        let message = match limits.is_empty() {
            true => format!("environment {environment} has no quota any more"),
            false => format!("environment {environment} may have {}", limits.join(", ")),
        };
        let by = Some(by.clone());
        Ok(((), Some(shared.with_event(batch, EventKind::Server, Subject::default(), message, by))))
    };
    shared.change(ATTEMPTS, decide).await?;
    Ok(Json(view(&shared.state.read(), &environment)))
}

/// Lifts the quota of an environment.
#[utoipa::path(delete, path = "/v1/quotas/{environment}", params(("environment" = String, Path)),
    responses((status = 204), (status = 404, body = v1::Problem)))]
pub(super) async fn remove(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(environment): Path<String>,
) -> Answer<StatusCode> {
    let by = require_user(&peer)?;
    let environment = name(&environment)?;
    let key = Key::Quota(environment.clone());
    if shared.state.read().world.quota(&environment).is_none() {
        return Err(Failure::not_found(format!("environment {environment} has no quota"))
            .hint("`wharf quota ls` lists those that have one"));
    }
    let batch = Batch::new().delete(key.to_string());
    let message = format!("environment {environment} has no quota any more");
    let batch = shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(by));
    shared.state.commit(batch).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn name(text: &str) -> Answer<EnvironmentName> {
    text.parse().map_err(|error: wharf_model::InvalidName| Failure::invalid(error.to_string()))
}

fn changed(before: Quota, wish: &v1::QuotaChange) -> Answer<Quota> {
    let limits = wish.limits;
    let mut after = Quota {
        tasks: limits.tasks.or(before.tasks),
        cpus: limits.cpus.or(before.cpus),
        memory: limits.memory.or(before.memory),
        disk: limits.disk.or(before.disk),
    };
    for text in &wish.lift {
        match QuotaThing::ALL.into_iter().find(|thing| thing.as_str() == text) {
            Some(QuotaThing::Tasks) => after.tasks = None,
            Some(QuotaThing::Cpus) => after.cpus = None,
            Some(QuotaThing::Memory) => after.memory = None,
            Some(QuotaThing::Disk) => after.disk = None,
            None => {
                let things = QuotaThing::ALL.map(QuotaThing::as_str).join(", ");
                return Err(Failure::invalid(format!("a quota does not limit `{text}`: it limits {things}")));
            }
        }
    }
    Ok(after)
}

fn view(inner: &Inner, environment: &EnvironmentName) -> v1::Quota {
    let quota = inner.world.quota(environment).copied().unwrap_or_default();
    let wanted = wanted_in(&inner.world, environment);
    v1::Quota {
        environment: environment.to_string(),
        limits: v1::QuotaLimits {
            tasks: quota.tasks,
            cpus: quota.cpus,
            memory: quota.memory,
            disk: quota.disk,
        },
        wanted: v1::QuotaWanted {
            tasks: wanted.tasks,
            cpus: Cpus(wanted.cpus),
            memory: Bytes(wanted.memory),
            disk: Bytes(wanted.disk),
        },
    }
}
