//! The API that people and tools speak: API v1.
//!
//! Handlers read the state, call pure functions and commit; every refusal is a [`failure::Failure`] with a code, a sentence and a hint.
//! A handler whose client hangs up is dropped. Each of them makes one commit, which is done or not; what takes several, or has
//! something to do after its commit, runs as a task of its own.

pub mod apps;
pub mod builds;
mod catalogue;
mod certificates;
pub mod cluster;
pub mod defaults;
mod explain;
pub mod extract;
pub mod failure;
pub mod files;
pub mod networks;
pub mod nodes;
pub mod openapi;
mod quotas;
mod rebalance;
mod releases;
mod rollouts;
mod route_files;
pub mod routes;
pub mod streams;
pub mod views;
mod volumes;

use std::sync::Arc;

use axum::{Router, routing::MethodRouter};
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
    state::{Inner, State},
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
    /// Builds under way, by node.
    pub builds: Arc<builds::Busy>,
    /// Images that were built lately.
    pub built: builds::Recent,
    /// Images that nodes send to others, by node.
    pub transfers: Arc<builds::Busy>,
    /// For streams that outlive a handler. Streams end when these shall stop.
    pub tasks: Tasks,
}

impl Context {
    /// The time, as records have it.
    pub fn now(&self) -> Timestamp {
        self.state.now(&*self.clock)
    }
    /// Writes what `decide` makes of the state, and gives what it answers; nothing is written where it makes no batch. Decides anew when
    /// somebody else was faster, `attempts` times in all.
    ///
    /// # Errors
    /// Those of `decide`, and of the store.
    pub(crate) async fn change<T: Send>(
        &self,
        attempts: usize,
        mut decide: impl FnMut(&Inner) -> Answer<(T, Option<Batch>)> + Send,
    ) -> Answer<T> {
        let mut attempt = 1;
        loop {
            let (answer, batch) = {
                let inner = self.state.read();
                decide(&inner)?
            };
            let Some(batch) = batch else { return Ok(answer) };
            match self.state.commit(batch).await {
                Ok(_) => return Ok(answer),
                Err(error) if error.is_conflict() && attempt < attempts => {
                    attempt += 1;
                    self.state.see_what_was_faster(&error).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
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

/// The routes of the API: the router and the OpenAPI document are both made from this one table.
macro_rules! api {
    ($($method:ident $path:literal $module:ident::$handler:ident),* $(,)?) => {
        /// What there is to ask for.
        fn routes() -> Vec<Route> {
            vec![$(Route {
                #[cfg(test)]
                method: stringify!($method),
                path: $path,
                handler: axum::routing::$method($module::$handler),
            }),*]
        }

        /// The same as OpenAPI has it.
        #[derive(utoipa::OpenApi)]
        #[openapi(paths($($module::$handler),*))]
        struct Described;
    };
}

/// One row of the table.
struct Route {
    /// `get`, `post`, …
    #[cfg(test)]
    method: &'static str,
    path: &'static str,
    handler: MethodRouter<Shared>,
}

api! {
    get "/v1/version" cluster::version,
    get "/v1/servers" cluster::servers,
    get "/v1/tokens" cluster::tokens,
    post "/v1/tokens" cluster::create_token,
    delete "/v1/tokens/{token}" cluster::remove_token,
    get "/v1/doctor" cluster::doctor,
    post "/v1/doctor/network" networks::doctor,
    get "/v1/placement-defaults" nodes::placement,
    put "/v1/placement-defaults" nodes::change_placement,
    get "/v1/quotas" quotas::list,
    get "/v1/quotas/{environment}" quotas::get,
    put "/v1/quotas/{environment}" quotas::change,
    delete "/v1/quotas/{environment}" quotas::remove,
    get "/v1/rebalance" rebalance::get,
    post "/v1/rebalance" rebalance::begin,
    delete "/v1/rebalance" rebalance::cancel,
    put "/v1/rebalance-defaults" rebalance::change,
    get "/v1/network-defaults" defaults::get,
    put "/v1/network-defaults" defaults::change,
    get "/v1/networks" networks::list,
    get "/v1/networks/{network}" networks::get,
    post "/v1/trace" networks::trace,
    get "/v1/routes" routes::list,
    get "/v1/routes/{route}" routes::get,
    get "/v1/gateways/metrics" routes::metrics,
    get "/v1/nodes" nodes::list,
    get "/v1/nodes/{node}" nodes::get,
    get "/v1/nodes/{node}/drain" explain::node,
    patch "/v1/nodes/{node}" nodes::change,
    delete "/v1/nodes/{node}" nodes::remove,
    post "/v1/nodes/{node}/prune" nodes::prune,
    get "/v1/volumes" volumes::list,
    get "/v1/volumes/{environment}/{app}/{volume}" volumes::get,
    post "/v1/volumes/{environment}/{app}/{volume}/release" volumes::release,
    get "/v1/apps" apps::list,
    get "/v1/apps/{environment}/{app}" apps::get,
    post "/v1/apps/{environment}/{app}/plan" apps::plan,
    post "/v1/apps/{environment}/{app}/apply" apps::apply,
    post "/v1/apps/{environment}/{app}/builds" builds::known,
    post "/v1/apps/{environment}/{app}/builds/{service}" builds::build,
    get "/v1/apps/{environment}/{app}/explain" explain::app,
    get "/v1/apps/{environment}/{app}/releases" releases::list,
    get "/v1/apps/{environment}/{app}/releases/{number}" releases::get,
    get "/v1/apps/{environment}/{app}/releases/{number}/diff/{other}" releases::diff,
    get "/v1/apps/{environment}/{app}/rollout" rollouts::get,
    post "/v1/apps/{environment}/{app}/rollout/{verb}" rollouts::steer,
    get "/v1/apps/{environment}/{app}/watch" streams::watch_app,
    get "/v1/apps/{environment}/{app}/logs" streams::app_logs,
    get "/v1/tasks" apps::tasks,
    get "/v1/tasks/{task}" apps::task,
    get "/v1/tasks/{task}/explain" explain::task,
    get "/v1/tasks/{task}/inspect" streams::inspect,
    post "/v1/tasks/{task}/exec" streams::exec,
    get "/v1/configs" files::configs,
    get "/v1/configs/{environment}/{name}" files::config,
    post "/v1/configs/{environment}/{name}" files::create_config,
    delete "/v1/configs/{environment}/{name}" files::remove_config,
    get "/v1/secrets" files::secrets,
    get "/v1/secrets/{environment}/{name}" files::secret,
    post "/v1/secrets/{environment}/{name}" files::create_secret,
    delete "/v1/secrets/{environment}/{name}" files::remove_secret,
    get "/v1/usage" streams::usage,
    get "/v1/certificates" certificates::list,
    get "/v1/certificates/{host}" certificates::get,
    post "/v1/certificates/{host}/renew" certificates::renew,
    get "/v1/acme" certificates::settings,
    put "/v1/acme" certificates::change,
    get "/v1/events" streams::events,
}

/// The API. Requests carry who asks as an extension of type [`Peer`], which the listener sets.
pub fn router(shared: Shared) -> Router {
    let router =
        routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler));
    router
        .merge(builds::node_routes())
        .merge(catalogue::routes())
        .fallback(async |uri: axum::http::Uri| {
            Failure::not_found(format!("there is no `{}` in API v1", uri.path()))
                .hint("the client may be newer than this server: compare with `wharf version`")
        })
        .method_not_allowed_fallback(async |method: axum::http::Method, uri: axum::http::Uri| {
            Failure::invalid(format!("`{method}` is nothing `{}` can be asked", uri.path()))
                .hint("the client may be newer than this server: compare with `wharf version`")
        })
        .layer(axum::extract::DefaultBodyLimit::max(extract::MAX_BODY))
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
