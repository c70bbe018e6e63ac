//! The API that people and tools speak: API v1.
//!
//! Handlers read the state, call pure functions and commit; every refusal is a [`failure::Failure`] with a code, a sentence and a hint.
//! Mutating handlers run to their end even if the client hangs up: they are spawned by the listener's connection, not cancelled midway,
//! because each of them makes one commit.

pub mod apps;
pub mod cluster;
pub mod failure;
pub mod nodes;
pub mod streams;
pub mod views;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};
use tokio::sync::watch;
use wharf_api::transport::{Peer, PeerKind};
use wharf_engine::Ids as _;
use wharf_model::{By, Event, EventKind, ServerId, Subject, Timestamp};
use wharf_process::{clock::Clock, tasks::Tasks};
use wharf_store::Batch;

use crate::{
    ids::RandomIds,
    leader::Lead,
    pki::Authority,
    records::{Key, encode},
    sessions::Sessions,
    state::State,
};
use failure::{Answer, Failure};

/// What every handler has.
pub type Shared = Arc<Context>;

/// What every handler has.
pub struct Context {
    /// What the store holds.
    pub state: Arc<State>,
    /// The nodes that are connected to this server.
    pub sessions: Arc<Sessions>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Whether this server leads.
    pub lead: watch::Receiver<Option<Lead>>,
    /// This server.
    pub server: ServerId,
    /// Where this server answers, for join lines.
    pub advertised: Vec<String>,
    /// The cluster's certificate authority.
    pub authority: Arc<Authority>,
    /// `embedded` or `etcd`.
    pub store: &'static str,
    /// For streams that outlive a handler.
    pub tasks: Tasks,
}

impl Context {
    /// The time, as records have it.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0)
    }
    /// Adds an event that a person caused to a batch.
    pub fn with_event(
        &self,
        batch: Batch,
        kind: EventKind,
        subject: Subject,
        message: String,
        by: Option<By>,
    ) -> Batch {
        let id = RandomIds.id(self.now());
        let key = Key::Event(id);
        let event = Event { id, at: self.now(), kind, subject, message, by };
        let bytes = encode(&key, &event);
        batch.put(key.to_string(), bytes)
    }
}

/// The API. Requests carry who asks as an extension of type [`Peer`], which the listener sets.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/version", get(cluster::version))
        .route("/v1/servers", get(cluster::servers))
        .route("/v1/tokens", get(cluster::tokens).post(cluster::create_token))
        .route("/v1/tokens/{token}", axum::routing::delete(cluster::remove_token))
        .route("/v1/doctor", get(cluster::doctor))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{node}", get(nodes::get).patch(nodes::change).delete(nodes::remove))
        .route("/v1/apps", get(apps::list))
        .route("/v1/apps/{environment}/{app}", get(apps::get))
        .route("/v1/apps/{environment}/{app}/plan", post(apps::plan))
        .route("/v1/apps/{environment}/{app}/apply", post(apps::apply))
        .route("/v1/apps/{environment}/{app}/releases", get(apps::releases))
        .route("/v1/apps/{environment}/{app}/releases/{number}", get(apps::release))
        .route("/v1/apps/{environment}/{app}/watch", get(streams::watch_app))
        .route("/v1/apps/{environment}/{app}/logs", get(streams::app_logs))
        .route("/v1/tasks", get(apps::tasks))
        .route("/v1/tasks/{task}", get(apps::task))
        .route("/v1/tasks/{task}/inspect", get(streams::inspect))
        .route("/v1/tasks/{task}/exec", post(streams::exec))
        .route("/v1/usage", get(streams::usage))
        .route("/v1/events", get(streams::events))
        .fallback(async |uri: axum::http::Uri| {
            Failure::not_found(format!("there is no `{}` in API v1", uri.path()))
                .hint("the client may be newer than this server: compare with `wharf version`")
        })
        .with_state(shared)
}

/// Who asks, if it is a person or a tool of theirs.
///
/// # Errors
/// If it is a node, or nobody.
pub(crate) fn require_user(peer: &Peer) -> Answer<By> {
    match &peer.kind {
        PeerKind::User(name) => Ok(By { user: name.clone(), client: String::new() }),
        PeerKind::Server(id) => Ok(By { user: id.to_string(), client: String::new() }),
        PeerKind::Node(_) => {
            Err(Failure::new(wharf_api::v1::Code::Forbidden, "a node's certificate may not use the API")
                .hint("use a context: `wharf context ls`"))
        }
        PeerKind::Anonymous => Err(Failure::new(
            wharf_api::v1::Code::Forbidden,
            "the API is for those with a certificate of this cluster",
        )
        .hint("use a context: `wharf context ls`; `wharf server init` writes the first one")),
    }
}

/// The name that was probably meant: at most two letters away.
pub(crate) fn closest<'a>(wanted: &str, names: &'a [String]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| (distance(wanted, name), name.as_str()))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_finds_the_one_that_was_meant() {
        let names = ["worker-1".to_owned(), "database".to_owned()];
        assert_eq!(closest("worker1", &names), Some("worker-1"));
        assert_eq!(closest("datbase", &names), Some("database"));
        assert_eq!(closest("zebra", &names), None);
    }
}
