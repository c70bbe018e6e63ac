//! The cluster itself: version, servers, join tokens, and how it is.

use axum::{Extension, extract::State, http::StatusCode};
use wharf_api::{transport::Peer, v1};
use wharf_model::NodeState;
use wharf_store::{Batch, PORTABLE_KEYS, StoreError};

use super::{
    Shared,
    extract::{Json, Path},
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    join::new_token,
    records::{Key, TokenRecord, TokenRole, encode},
};

/// The longest a join token may be good for.
const LONGEST_TOKEN: u64 = 30 * 24 * 3600;

/// The server that answers.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = v1::Version)))]
pub(super) async fn version(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::Version>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let cluster = inner.cluster.as_ref();
    Ok(Json(v1::Version {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        server: shared.server.to_string(),
        cluster: cluster.map(|cluster| cluster.id.clone()).unwrap_or_default(),
        cluster_name: cluster.map(|cluster| cluster.name.clone()).unwrap_or_default(),
        store: shared.store.into(),
        leader: inner.leader.as_ref().map(|leader| leader.server.to_string()),
        now: shared.now().0,
    }))
}

/// The servers of the cluster.
#[utoipa::path(get, path = "/v1/servers", responses((status = 200, body = [v1::Server])))]
pub(super) async fn servers(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Server>>> {
    require_user(&peer)?;
    let inner = shared.state.read();
    let leader = inner.leader.as_ref().map(|leader| leader.server);
    let servers = inner.servers.values().map(|server| v1::Server {
        id: server.id.to_string(),
        addresses: server.addresses.clone(),
        version: server.version.clone(),
        leader: leader == Some(server.id),
        started_at: server.started_at.0,
    });
    Ok(Json(servers.collect()))
}

/// The join tokens that are still good.
#[utoipa::path(get, path = "/v1/tokens", responses((status = 200, body = [v1::Token])))]
pub(super) async fn tokens(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Token>>> {
    require_user(&peer)?;
    let now = shared.now();
    let inner = shared.state.read();
    let tokens = inner.tokens.values().filter(|token| token.expires_at > now).map(|token| v1::Token {
        id: token.id.to_string(),
        role: token.role.to_string(),
        created_at: token.created_at.0,
        expires_at: token.expires_at.0,
        created_by: token.created_by.clone(),
    });
    Ok(Json(tokens.collect()))
}

/// Makes a join token; its secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", request_body = v1::TokenCreate, responses((status = 200, body = v1::TokenCreated)))]
pub(super) async fn create_token(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::TokenCreate>,
) -> Answer<Json<v1::TokenCreated>> {
    let user = require_user(&peer)?;
    let role = match wish.role.as_str() {
        "agent" => TokenRole::Agent,
        "server" => TokenRole::Server,
        other => {
            return Err(Failure::invalid(format!("`{other}` is no role to join as: use agent or server")));
        }
    };
    if wish.ttl_seconds == 0 || wish.ttl_seconds > LONGEST_TOKEN {
        return Err(Failure::invalid("a join token is good for 1 second to 30 days"));
    }
    let lifetime = std::time::Duration::from_secs(wish.ttl_seconds);
    let (token, record) = new_token(&shared.authority, role, &user.to_string(), shared.now(), lifetime);
    let ended: Vec<_> = {
        let inner = shared.state.read();
        let ended = |token: &&TokenRecord| {
            token.expires_at <= record.created_at || (wish.rotate && token.role == role)
        };
        inner.tokens.values().filter(ended).map(|token| Key::Token(token.id)).collect()
    };
    // Before the new one is made: who is given it can rely on the others' having ended.
    for keys in ended.chunks(PORTABLE_KEYS / 2) {
        let batch = keys.iter().fold(Batch::new(), |batch, key| batch.delete(key.to_string()));
        shared.state.commit(batch).await?;
    }
    let key = Key::Token(record.id);
    let batch = Batch::new().expect(key.to_string(), None).put(key.to_string(), encode(&key, &record));
    shared.state.commit(batch).await?;
    let address = shared.advertised.first().cloned().unwrap_or_default();
    let token = token.to_string();
    Ok(Json(v1::TokenCreated {
        command: format!("wharf {role} join {address} --token {token}"),
        token,
        expires_at: record.expires_at.0,
    }))
}

/// Ends a join token.
#[utoipa::path(delete, path = "/v1/tokens/{token}", params(("token" = String, Path)), responses((status = 204)))]
pub(super) async fn remove_token(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    require_user(&peer)?;
    let key = {
        let inner = shared.state.read();
        let token = id.parse().ok().and_then(|id| inner.tokens.get(&id));
        let token = token.ok_or_else(|| {
            Failure::not_found(format!("there is no join token `{id}`")).hint("`wharf token ls` lists them")
        })?;
        Key::Token(token.id)
    };
    shared.state.commit(Batch::new().delete(key.to_string())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How the cluster is, as far as a server can tell.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = [v1::Finding])))]
pub(super) async fn doctor(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Finding>>> {
    require_user(&peer)?;
    let started = shared.clock.monotonic();
    let writing = write_again(&shared).await;
    let took = shared.clock.monotonic() - started;
    let mut findings = vec![match writing {
        Ok(()) => finding(
            "ok",
            "store",
            format!("the {} store takes a write in {} ms", shared.store, took.as_millis()),
            None,
        ),
        Err(error) => finding("problem", "store", wharf_process::errors::chain(&error), error.hint()),
    }];
    let inner = shared.state.read();
    let now = shared.now();
    findings.push(match &inner.leader {
        Some(leader) => {
            finding("ok", "leader", format!("{} has led since term {}", leader.server, leader.term), None)
        }
        None => finding(
            "problem",
            "leader",
            "no server leads: nothing is decided".into(),
            Some("a new leader is found within seconds; if not, look at the servers' logs".into()),
        ),
    });
    if let Some(standing) = shared.state.route_standing() {
        let made =
            format!("{} of {} routes outside the nodes are made", standing.programmed, standing.wanted);
        findings.push(match standing.error {
            None => finding("ok", "routes", made, None),
            Some(error) => {
                let hint = "tasks of routed networks do not reach each other over what is missing; `wharf network default` shows the program";
                finding("problem", "routes", format!("{made}: {error}"), Some(hint.into()))
            }
        });
    }
    if inner.world.nodes().next().is_none() {
        let hint = "run the line that `wharf token create` prints on each machine".to_owned();
        findings.push(finding("warning", "nodes", "no node has joined".into(), Some(hint)));
    }
    if !inner.world.nodes().any(|node| node.record.roles.gateway) && inner.world.nodes().next().is_some() {
        let hint = "make one: `wharf node label NODE --gateway`".to_owned();
        findings.push(finding(
            "warning",
            "gateway",
            "no node is a gateway: published ports listen nowhere".into(),
            Some(hint),
        ));
    }
    for node in inner.world.nodes() {
        let subject = format!("node {}", node.record.name);
        match node.state() {
            NodeState::Ready => {
                let live = shared.state.live_node(node.record.id);
                let mut problems = live.as_ref().map(|live| live.problems.clone()).unwrap_or_default();
                problems.extend(wharf_engine::host_conflicts(&inner.world, node.record.id));
                let behind = !problems.is_empty();
                for problem in problems {
                    let (problem, hint) = match problem.split_once("; hint: ") {
                        Some((problem, hint)) => (problem.to_owned(), Some(hint.to_owned())),
                        None => (problem, None),
                    };
                    findings.push(finding("problem", &subject, problem, hint));
                }
                if !behind {
                    let engine = node.facts().and_then(|facts| facts.engine.as_ref());
                    let engine = engine.map_or_else(|| "unknown".to_owned(), |engine| engine.version.clone());
                    findings.push(finding("ok", &subject, format!("ready; Docker Engine {engine}"), None));
                }
                if node
                    .facts()
                    .and_then(|facts| facts.engine.as_ref())
                    .is_some_and(|engine| !engine.live_restore)
                {
                    findings.push(finding(
                        "warning",
                        &subject,
                        "its engine does not have live-restore: containers stop when the engine restarts"
                            .into(),
                        Some(
                            "set `\"live-restore\": true` in /etc/docker/daemon.json and reload the engine"
                                .into(),
                        ),
                    ));
                }
            }
            state @ (NodeState::Joining
            | NodeState::EngineDown
            | NodeState::Unreachable
            | NodeState::Down) => {
                let status = node.status.as_ref();
                let since = status.map_or(now, |status| status.since);
                let reason = status.map(|status| status.reason.clone()).unwrap_or_default();
                findings.push(finding(
                    "problem",
                    &subject,
                    format!("{state} for {} s: {reason}", now.since(since).as_secs()),
                    Some(unready_hint(state).into()),
                ));
            }
        }
    }
    for app in inner.world.apps() {
        let rollout = &app.rollout;
        if matches!(rollout.state, wharf_model::RolloutState::Failed | wharf_model::RolloutState::RolledBack)
        {
            findings.push(finding(
                "problem",
                &format!("app {}", app.key.name),
                format!("{} {}: {}", rollout.what, rollout.state, rollout.reason),
                Some(format!("`wharf ps --env {} -p {}` shows its tasks", app.key.environment, app.key.name)),
            ));
        }
    }
    Ok(Json(findings))
}

/// Writes once more what this server last said of itself: a store that is full can still be read.
async fn write_again(shared: &Shared) -> Result<(), StoreError> {
    let key = Key::Server(shared.server);
    let said = shared.state.read().servers.get(&shared.server).cloned();
    match said {
        Some(record) => {
            let batch = Batch::new().put(key.to_string(), encode(&key, &record));
            shared.state.backend().commit(batch).await.map(drop)
        }
        // It has just started, and says so in a moment.
        None => shared.state.backend().read(&key.to_string()).await.map(drop),
    }
}

/// What to look at on a machine that is not ready.
fn unready_hint(state: NodeState) -> &'static str {
    match state {
        NodeState::EngineDown => {
            "on that machine: `systemctl status docker` and the engine's log say why; its tasks are left alone meanwhile"
        }
        NodeState::Joining | NodeState::Unreachable | NodeState::Down | NodeState::Ready => {
            "on that machine: is it up, does `wharf agent run` run, does it reach the servers?"
        }
    }
}

fn finding(level: &str, subject: &str, message: String, hint: Option<String>) -> v1::Finding {
    v1::Finding { level: level.into(), subject: subject.into(), message, hint }
}
