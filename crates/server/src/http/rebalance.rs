//! Moves to nodes that have less to do: planned, asked for, seen, cancelled; and what the cluster moves by itself.

use axum::{Extension, extract::State};
use wharf_api::{
    transport::Peer,
    v1::{self, Code},
};
use wharf_engine::{self as engine, RebalanceScope};
use wharf_model::{AppKey, By, EventKind, MoveState, RebalanceRun, Rebalancing, RunMove, Subject};
use wharf_store::Batch;

use super::{
    Context, Shared, apps,
    extract::Json,
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    records::{ClusterRecord, Key, encode},
    state::Inner,
};

/// How often a change is decided anew because somebody was faster.
const ATTEMPTS: usize = 20;
/// The most that the settings take.
const MOST: u32 = 10_000;
/// The longest time for which a node may have to be ready, in milliseconds.
const LONGEST_STEADY: u64 = 24 * 3600 * 1000;

/// How moves stand.
#[utoipa::path(get, path = "/v1/rebalance", responses((status = 200, body = v1::RebalanceStatus)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::RebalanceStatus>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    Ok(Json(status(&inner)))
}

/// Moves tasks to nodes that have less to do, or says what that would move.
#[utoipa::path(post, path = "/v1/rebalance", request_body = v1::RebalanceRequest,
    responses((status = 200, body = v1::RebalancePlan), (status = 409, body = v1::Problem)))]
pub(super) async fn begin(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::RebalanceRequest>,
) -> Answer<Json<v1::RebalancePlan>> {
    let by = By { client: wish.client.clone(), ..require_user(&peer)? };
    let app = match (&wish.environment, &wish.app) {
        (Some(environment), Some(app)) => Some(apps::key(environment, app)?),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Failure::invalid("an app is named by its environment and its name"));
        }
    };
    let (mut view, batch) = {
        let inner = shared.state.read();
        if let Some(app) = &app {
            apps::find(&inner, app)?;
        }
        planned(&shared, &inner, app.as_ref(), &wish, &by)?
    };
    if let Some((number, batch)) = batch {
        // Somebody else's change that was faster may be another plan: whoever asked looks at it again.
        shared.state.commit(batch).await?;
        view.run = Some(number);
    }
    Ok(Json(view))
}

type Planned = (v1::RebalancePlan, Option<(u64, Batch)>);

fn planned(
    shared: &Context,
    inner: &Inner,
    app: Option<&AppKey>,
    wish: &v1::RebalanceRequest,
    by: &By,
) -> Answer<Planned> {
    let scope = RebalanceScope { app, ..RebalanceScope::default() };
    let plan = engine::plan_rebalance(&inner.world, &scope, shared.now());
    let view = view(inner, &plan);
    if wish.dry_run || plan.moves.is_empty() {
        return Ok((view, None));
    }
    if wish.fingerprint.as_ref().is_some_and(|wanted| *wanted != view.fingerprint) {
        return Err(Failure::new(Code::Moved, "the cluster has changed since this was planned")
            .hint("look at the plan again: `wharf rebalance`"));
    }
    let before = inner.world.rebalance_run();
    if let Some(run) = before.filter(|run| !run.is_over()) {
        let message = format!("rebalancing {} by {} is under way", run.number, run.by);
        return Err(Failure::new(Code::Busy, message)
            .hint("`wharf rebalance status` shows it, and `wharf rebalance cancel` ends it"));
    }
    let number = before.map_or(0, |run| run.number) + 1;
    let run = engine::begin_rebalance(&plan, number, by, shared.now());
    let key = Key::Rebalance;
    let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &run));
    let moves = run.moves.len();
    let message =
        format!("rebalancing {number}: {moves} {} to move", if moves == 1 { "task is" } else { "tasks are" });
    let batch = shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(by.clone()));
    Ok((view, Some((number, batch))))
}

/// Ends what was asked for: what has begun is finished, and nothing more begins.
#[utoipa::path(delete, path = "/v1/rebalance", responses((status = 200, body = v1::RebalanceStatus), (status = 404, body = v1::Problem)))]
pub(super) async fn cancel(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::RebalanceStatus>> {
    let by = require_user(&peer)?;
    let decide = |inner: &Inner| {
        let running = inner.world.rebalance_run().filter(|run| !run.is_over());
        let run = running.ok_or_else(|| {
            Failure::not_found("no rebalancing is under way")
                .hint("`wharf rebalance status` shows the last one")
        })?;
        let run = RebalanceRun { cancelled: Some(by.clone()), ..RebalanceRun::clone(run) };
        let key = Key::Rebalance;
        let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &run));
        let message = format!("rebalancing {} is cancelled", run.number);
        let by = Some(by.clone());
        Ok(((), Some(shared.with_event(batch, EventKind::Server, Subject::default(), message, by))))
    };
    shared.change(ATTEMPTS, decide).await?;
    Ok(Json(status(&shared.state.read())))
}

/// Changes what the cluster moves by itself, and how fast anything is moved.
#[utoipa::path(put, path = "/v1/rebalance-defaults", request_body = v1::RebalanceSettingsChange,
    responses((status = 200, body = v1::RebalanceSettings), (status = 422, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::RebalanceSettingsChange>,
) -> Answer<Json<v1::RebalanceSettings>> {
    let by = require_user(&peer)?;
    let decide = |inner: &Inner| {
        let before =
            inner.cluster.as_ref().ok_or_else(|| Failure::not_found("the store holds no cluster"))?;
        let after = changed(before.rebalancing, &wish)?;
        let batch = (after != before.rebalancing).then(|| {
            let key = Key::Cluster;
            let record = ClusterRecord { rebalancing: after, ..before.clone() };
            let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &record));
            let message = format!(
                "rebalancing by itself: {}; {} at once, {} in a minute, to nodes that have been ready for {}",
                after.automatic, after.at_once, after.per_minute, after.steady
            );
            shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(by.clone()))
        });
        Ok((after, batch))
    };
    let after = shared.change(ATTEMPTS, decide).await?;
    Ok(Json(settings(&after)))
}

fn changed(before: Rebalancing, wish: &v1::RebalanceSettingsChange) -> Answer<Rebalancing> {
    let mut after = before;
    if let Some(text) = &wish.automatic {
        after.automatic = text.parse().map_err(Failure::invalid)?;
    }
    for (wanted, setting, what) in [
        (wish.at_once, &mut after.at_once, "moves at once"),
        (wish.per_minute, &mut after.per_minute, "moves in a minute"),
    ] {
        match wanted {
            Some(wanted @ 1..=MOST) => *setting = wanted,
            Some(wrong) => {
                let hint = "`wharf rebalance default --automatic off` keeps the cluster from moving anything by itself";
                return Err(
                    Failure::invalid(format!("{wrong} {what} cannot be: give 1 to {MOST}")).hint(hint)
                );
            }
            None => {}
        }
    }
    match wish.steady {
        Some(steady) if steady > LONGEST_STEADY => {
            return Err(Failure::invalid("a node takes its share after a day of being ready at the latest"));
        }
        Some(steady) => after.steady = wharf_model::Millis(steady),
        None => {}
    }
    Ok(after)
}

fn settings(settings: &Rebalancing) -> v1::RebalanceSettings {
    v1::RebalanceSettings {
        automatic: settings.automatic.to_string(),
        at_once: settings.at_once,
        per_minute: settings.per_minute,
        steady: settings.steady.0,
    }
}

fn status(inner: &Inner) -> v1::RebalanceStatus {
    let world = &inner.world;
    let one = |one: &RunMove| {
        let dropped = match &one.state {
            MoveState::Dropped { why } => Some(why.clone()),
            MoveState::Planned | MoveState::Begun | MoveState::Done => None,
        };
        v1::RebalanceMove {
            task: one.name.clone(),
            environment: one.service.app.environment.to_string(),
            app: one.service.app.name.to_string(),
            service: one.service.name.to_string(),
            from: world.node_name(one.from),
            to: world.node_name(one.to),
            why: one.why.clone(),
            state: one.state.as_str().to_owned(),
            dropped,
        }
    };
    let run = world.rebalance_run().map(|run| v1::RebalanceRun {
        number: run.number,
        by: run.by.to_string(),
        started_at: run.started_at.0,
        ended_at: run.ended_at.map(|at| at.0),
        cancelled_by: run.cancelled.as_ref().map(ToString::to_string),
        moves: run.moves.iter().map(one).collect(),
    });
    let moving = engine::moving(world).map(|(task, to, why)| v1::RebalanceMove {
        task: task.name(),
        environment: task.service.app.environment.to_string(),
        app: task.service.app.name.to_string(),
        service: task.service.name.to_string(),
        from: task.node.map_or_else(|| "-".to_owned(), |node| world.node_name(node)),
        to: world.node_name(to),
        why: why.to_owned(),
        state: MoveState::Begun.as_str().to_owned(),
        dropped: None,
    });
    v1::RebalanceStatus { settings: settings(&world.rebalancing), run, moving: moving.collect() }
}

fn view(inner: &Inner, plan: &engine::RebalancePlan) -> v1::RebalancePlan {
    let world = &inner.world;
    let moves = plan.moves.iter().map(|one| v1::RebalanceMove {
        task: one.name.clone(),
        environment: one.service.app.environment.to_string(),
        app: one.service.app.name.to_string(),
        service: one.service.name.to_string(),
        from: world.node_name(one.from),
        to: world.node_name(one.to),
        why: one.why.clone(),
        state: MoveState::Planned.as_str().to_owned(),
        dropped: None,
    });
    let stays = plan.stays.iter().map(|(service, why)| v1::RebalanceStays {
        environment: service.app.environment.to_string(),
        app: service.app.name.to_string(),
        service: service.name.to_string(),
        why: why.to_string(),
    });
    let nodes = plan.before.iter().zip(&plan.after).map(|(before, after)| v1::RebalanceNode {
        node: before.name.clone(),
        tasks: before.tasks,
        tasks_after: after.tasks,
        reserved: before.reserved,
        reserved_after: after.reserved,
    });
    let said: Vec<_> = plan.moves.iter().map(|one| (one.task, one.to)).collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{said:?}").as_bytes());
    v1::RebalancePlan {
        moves: moves.collect(),
        stays: stays.collect(),
        more: plan.more,
        nodes: nodes.collect(),
        fingerprint: hex::encode(&digest.as_ref()[..16]),
        run: None,
    }
}
