//! The connections to the servers, over which they call this node.
//!
//! - The agent dials every server and serves each the same router ([`router`]); it never waits to be called anywhere else.
//! - A connection that breaks is dialled again, after a moment that grows to five seconds and is never the same for two nodes.
//! - A certificate is renewed after two thirds of its life, over any server. Connections made with the old one end when their
//!   requests are done, after new ones stand: a renewal interrupts nothing.
//! - What has to outlive the process (who this node is, where the servers are) is in [`home::Home`], written in one step.

mod fetch;
pub mod home;
pub mod join;
mod link;
mod renewal;
pub mod router;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use wharf_api::transport::{
    ServerAddress, Timing, reverse,
    wire::{ServerEntry, Servers},
};
use wharf_model::ServerId;
use wharf_process::{Clock, Tasks, errors::chain};

pub use home::{Home, HomeError, Membership};
pub use join::{JoinError, JoinOptions, Joined, join};
pub use router::{Node, Refusal};

/// Everything the links to the servers share.
pub(crate) struct Shared {
    home: Home,
    membership: watch::Sender<Arc<Membership>>,
    servers: watch::Sender<Servers>,
    timing: Timing,
    clock: Arc<dyn Clock>,
}

impl Shared {
    /// Takes in a list of servers, if it is newer than the one it has.
    pub(crate) fn learn(&self, learned: &Servers) {
        let newer = self.servers.send_if_modified(|known| {
            let newer = learned.version > known.version && !learned.servers.is_empty();
            if newer {
                known.clone_from(learned);
            }
            newer
        });
        if newer {
            tracing::info!(servers = learned.servers.len(), version = learned.version, "servers learned");
            if let Err(error) = self.home.write_servers(learned) {
                tracing::warn!(error = chain(&error), "servers not remembered");
            }
        }
    }
}

/// Keeps this node connected to every server and its certificate in force, until the tasks shall stop.
///
/// # Errors
/// If the node has not joined, or what it remembers of it cannot be read.
pub async fn run(
    node: Arc<dyn Node>,
    home: Home,
    timing: Timing,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
) -> Result<(), HomeError> {
    let membership = home.read()?;
    let servers = home.read_servers()?;
    tracing::info!(node = %membership.node, name = %membership.name, servers = servers.servers.len(), "sessions begin");
    let shared = Arc::new(Shared {
        home,
        membership: watch::Sender::new(Arc::new(membership)),
        servers: watch::Sender::new(servers),
        timing,
        clock,
    });
    node.connect_images(Arc::new(fetch::OtherNodes::new(Arc::clone(&shared))));
    let stop = tasks.token();
    let renewing = renewal::run(Arc::clone(&shared), stop.clone());
    let linking = keep_links(Arc::clone(&shared), node, tasks, stop);
    futures::join!(renewing, linking);
    Ok(())
}

/// Serves one server over a connection that stands already, until it ends; says why it did. For simulations, which make connections
/// without TLS: what `membership` says of keys is not looked at.
pub async fn attach<I>(
    node: Arc<dyn Node>,
    home: Home,
    membership: Membership,
    io: I,
    timing: Timing,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
) -> String
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::new(Shared {
        home,
        membership: watch::Sender::new(Arc::new(membership)),
        servers: watch::Sender::new(Servers::default()),
        timing,
        clock,
    });
    let router = router::routes(node, shared, tasks);
    let service = service_fn(move |request: Request<Incoming>| {
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    match reverse::serve(io, service, &timing).await {
        Ok(()) => "the server closed the connection".to_owned(),
        Err(error) => chain(&error),
    }
}

/// Has one link for each server there is.
async fn keep_links(shared: Arc<Shared>, node: Arc<dyn Node>, tasks: Tasks, stop: CancellationToken) {
    let mut links: BTreeMap<ServerEntry, CancellationToken> = BTreeMap::new();
    let mut servers = shared.servers.subscribe();
    // Dropped while it waits for news: the links are stopped by the same token.
    stop.run_until_cancelled(async {
        loop {
            let wanted: BTreeSet<ServerEntry> = servers.borrow_and_update().servers.iter().cloned().collect();
            let known = wanted.iter().flat_map(addresses).filter_map(|address| address.host().parse().ok());
            node.know_servers(known.collect());
            links.retain(|server, end| {
                let keep = wanted.contains(server);
                if !keep {
                    end.cancel();
                }
                keep
            });
            for server in wanted {
                links.entry(server.clone()).or_insert_with(|| {
                    let end = stop.child_token();
                    let link = link::run(
                        Arc::clone(&shared),
                        Arc::clone(&node),
                        server.clone(),
                        tasks.clone(),
                        end.clone(),
                    );
                    tasks.spawn(link_name(server.id), link);
                    end
                });
            }
            if servers.changed().await.is_err() {
                return;
            }
        }
    })
    .await;
}

/// Where a server is.
fn addresses(server: &ServerEntry) -> impl Iterator<Item = ServerAddress> {
    server.addresses.iter().filter_map(|text| text.parse().ok())
}

fn link_name(server: ServerId) -> String {
    format!("link to {server}")
}

/// A new key, and the request to certify it. The key goes nowhere but to whoever keeps it.
///
/// # Errors
/// If the system has no randomness.
pub fn new_key() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut wish = CertificateParams::default();
    wish.distinguished_name = DistinguishedName::new();
    let request = wish.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// The process's clock, as TLS asks for it.
struct TlsTime(Arc<dyn Clock>);
impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}
impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.now().0)))
    }
}

fn tls_time(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(TlsTime(Arc::clone(clock)))
}
