//! Volumes: seen, and given up.

use axum::{Extension, extract::State};
use wharf_api::{transport::Peer, v1};
use wharf_engine::{Ids as _, ReleaseRefusal, VolumeVerdict, give_up, volume_users, volume_verdict};
use wharf_model::{AppKey, EnvironmentName, EventKind, Subject, VolumeRecord};

use super::{
    Shared,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    nodes, require_user,
};
use crate::{controllers::commit::Committer, ids::RandomIds, state::Inner};

/// Which volumes are listed.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Which {
    /// Of this environment only.
    environment: Option<EnvironmentName>,
}

/// Every volume, or those of an environment.
#[utoipa::path(get, path = "/v1/volumes", params(("environment" = Option<String>, Query)), responses((status = 200, body = [v1::Volume])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(which): Query<Which>,
) -> Answer<Json<Vec<v1::Volume>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let wanted = |volume: &&std::sync::Arc<VolumeRecord>| {
        which.environment.as_ref().is_none_or(|environment| volume.app.environment == *environment)
    };
    let mut volumes: Vec<_> =
        inner.world.volumes().filter(wanted).map(|volume| view(&inner, volume)).collect();
    volumes.sort_by(|a, b| (&a.environment, &a.app, &a.name).cmp(&(&b.environment, &b.app, &b.name)));
    Ok(Json(volumes))
}

/// One volume of an app.
#[utoipa::path(get, path = "/v1/volumes/{environment}/{app}/{volume}",
    params(("environment" = String, Path), ("app" = String, Path), ("volume" = String, Path)),
    responses((status = 200, body = v1::Volume)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, name)): Path<(EnvironmentName, String, String)>,
) -> Answer<Json<v1::Volume>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let volume = find(&inner, &environment, &app, &name)?;
    Ok(Json(view(&inner, volume)))
}

/// Gives up the data that a node which is down holds of a volume: tasks that wait for it start elsewhere, with an empty one.
#[utoipa::path(post, path = "/v1/volumes/{environment}/{app}/{volume}/release",
    params(("environment" = String, Path), ("app" = String, Path), ("volume" = String, Path)),
    request_body = v1::VolumeRelease,
    responses((status = 200, body = v1::Volume), (status = 409, body = v1::Problem)))]
pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, name)): Path<(EnvironmentName, String, String)>,
    Json(wish): Json<v1::VolumeRelease>,
) -> Answer<Json<v1::Volume>> {
    let user = require_user(&peer)?;
    let batches = {
        let inner = shared.state.read();
        let volume = find(&inner, &environment, &app, &name)?;
        let node = nodes::find(&inner, &wish.node)?;
        let now = shared.now();
        let changes = give_up(&inner.world, volume, node.record.id, &user, now, RandomIds.id(now));
        let changes = changes.map_err(|refusal| refused(volume, &refusal))?;
        let mut committer = Committer::whole(&inner, now);
        for change in changes {
            committer.change(change, &mut RandomIds);
        }
        let subject = Subject {
            app: Some(volume.app.clone()),
            node: Some(node.record.id),
            node_name: Some(node.record.name.to_string()),
            ..Subject::default()
        };
        let message = format!(
            "the data of volume {name} of {app} on {} is given up: tasks that wait for it start elsewhere without it",
            node.record.name
        );
        committer.event_by(&mut RandomIds, EventKind::App, subject, message, Some(user));
        committer.finish()
    };
    for batch in batches {
        shared.state.commit(batch).await?;
    }
    let inner = shared.state.read();
    let volume = find(&inner, &environment, &app, &name)?;
    Ok(Json(view(&inner, volume)))
}

fn refused(volume: &VolumeRecord, refusal: &ReleaseRefusal) -> Failure {
    let message = format!("the data of volume {} cannot be given up: {refusal}", volume.name);
    match refusal {
        ReleaseRefusal::Shared => Failure::new(v1::Code::Conflict, message),
        ReleaseRefusal::NotThere { .. } => Failure::new(v1::Code::Conflict, message)
            .hint(format!("`wharf volume inspect {}` says where its data is", volume.name)),
        ReleaseRefusal::NotDown { .. } => Failure::new(v1::Code::Conflict, message).hint(
            "wait until the node counts as down, or take it out of the cluster: `wharf node rm --force NODE`",
        ),
    }
}

fn find<'a>(
    inner: &'a Inner,
    environment: &EnvironmentName,
    app: &str,
    name: &str,
) -> Answer<&'a VolumeRecord> {
    let missing = || {
        Failure::not_found(format!("app {app} of {environment} has no volume `{name}`"))
            .hint("`wharf volume ls` lists them")
    };
    let volumes = inner.world.volumes().filter(|volume| volume.app.environment == *environment);
    let mut named = volumes.filter(|volume| volume.app.name.as_str() == app && volume.name.as_str() == name);
    named.next().map(|volume| &**volume).ok_or_else(missing)
}

fn view(inner: &Inner, volume: &VolumeRecord) -> v1::Volume {
    let world = &inner.world;
    let verdict = volume_verdict(world, volume);
    let names = |nodes: &[wharf_model::NodeId]| {
        nodes.iter().map(|node| world.node_name(*node)).collect::<Vec<_>>().join(" and ")
    };
    let AppKey { environment, name: app } = &volume.app;
    let (state, reason, hint) = match &verdict {
        VolumeVerdict::Shared => ("shared", String::new(), None),
        VolumeVerdict::Unused => ("unused", String::new(), None),
        VolumeVerdict::Present => ("present", String::new(), None),
        VolumeVerdict::Away(nodes) => {
            ("away", format!("its data is on {}, which does not answer", names(nodes)), None)
        }
        VolumeVerdict::OnDownNodes(nodes) => (
            "lost",
            format!("its data is on {}, which is down; tasks that use it wait", names(nodes)),
            nodes.first().map(|node| {
                format!(
                    "bring the machine back, or have them start elsewhere with an empty volume: \
                     `wharf volume release {app}/{} --node {}`",
                    volume.name,
                    world.node_name(*node)
                )
            }),
        ),
    };
    let data = |id: &wharf_model::NodeId| {
        let node = world.node(*id);
        v1::VolumeData {
            node: world.node_name(*id),
            state: node.map_or_else(|| "removed".to_owned(), |node| node.state().to_string()),
            since: node.and_then(|node| Some(node.status.as_ref()?.since.0)),
        }
    };
    v1::Volume {
        id: volume.id.to_string(),
        environment: environment.to_string(),
        app: app.to_string(),
        name: volume.name.to_string(),
        state: state.to_owned(),
        reason,
        hint,
        data: volume.nodes.iter().map(data).collect(),
        services: volume_users(world, volume).iter().map(ToString::to_string).collect(),
        given_up: volume
            .given_up
            .iter()
            .map(|given| v1::GivenUpData {
                node: world.node_name(given.node),
                id: given.volume.to_string(),
                at: given.at.0,
                by: given.by.to_string(),
            })
            .collect(),
        created_at: volume.created_at.0,
    }
}
