//! A whole server: set up, built, run.
//!
//! Built means: its folder locked, its store open and read, its port open. Run means until it is asked to stop, and then in this order:
//! no new connections and the end of those that are idle, controllers, leadership, the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State as Extract},
    routing::post,
};
use futures::{FutureExt, future::BoxFuture};
use ipnet::Ipv6Net;
use rand::Rng as _;
use rustls::time_provider::DefaultTimeProvider;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_api::{
    transport::{
        Identity, InvalidIdentity, JoinToken, ServerAddress, Timing, Trust,
        client::Dialer,
        error::{CallError, DialError},
        tls::{self, Anchor, Protocol},
        token::InvalidToken,
    },
    v1::{Code, Problem},
};
use wharf_engine::{Ids as _, Leases};
use wharf_model::{
    AddressPool, AppKey, Event, EventId, EventKind, NetworkDefaults, ServerId, Subject, Timestamp,
};
use wharf_process::{Clock, Shutdown, Tasks, errors::chain};
use wharf_store::{Backend, Batch, Embedded, Etcd, PORTABLE_KEYS, StoreError};

use crate::{
    acme,
    controllers::{self, apps::Apps, nodes::Nodes, rebalance::Rebalance, reports, routes},
    http::{
        self,
        extract::Json,
        failure::{Answer, Failure},
    },
    ids::RandomIds,
    join::{self, Joining, check_clock, check_token, new_token},
    leader::{Election, Lead, Timing as LeaderTiming, Witness},
    listener::{BindError, Listener},
    pki::{Authority, Lifetimes, PkiError, ServerIdentity, Subject as Holder},
    records::{ClusterRecord, Key, Record, ServerRecord, TokenRole, encode},
    roster::{Stored, revocation},
    seal::SealKey,
    sessions::Sessions,
    settings::{Folder, FolderError, Settings, StoreChoice},
    state::{EVENTS_KEPT, State},
    witness::Ports,
};

/// The path at which a further server joins.
pub(crate) const JOIN_SERVER: &str = "/v1/servers/join";
/// How often a server announces itself.
const ANNOUNCE: Duration = Duration::from_secs(15);
/// How long a server that does not is still listed.
const SILENT: Duration = Duration::from_secs(90);
/// The largest request to join.
const MAX_JOIN: usize = 64 << 10;
/// How long a content that no release refers to is kept: an action that is under way may be about to.
const UNUSED: Duration = Duration::from_secs(600);
/// How long the connections get to finish their requests.
const GRACE: Duration = Duration::from_secs(10);
/// How long the first join token is good for.
const FIRST_TOKEN: Duration = Duration::from_secs(24 * 3600);

/// Why a server cannot be set up or built.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its store.
    #[error("the store")]
    Store(#[from] StoreError),
    /// Its keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Its certificate.
    #[error("the certificate authority")]
    Identity(#[from] InvalidIdentity),
    /// Its port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store is that of another cluster.
    #[error("the store holds cluster {found}, and this server belongs to cluster {expected}")]
    OtherCluster {
        /// The store's.
        found: String,
        /// The server's.
        expected: String,
    },
    /// The store holds a cluster already.
    #[error("the store holds cluster {0} already")]
    HasCluster(String),
    /// The token it was to join with.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// The server it was to join.
    #[error("cannot reach the cluster")]
    Dial(#[from] DialError),
    /// What that server said.
    #[error("the cluster does not let this server in")]
    Refused(#[from] CallError),
    /// A part of it failed while it ran.
    #[error("the server had to stop")]
    Failed(#[from] wharf_process::tasks::Failure),
    /// A cluster of one server cannot have another.
    #[error("the cluster keeps its state in a file of its one server")]
    NotShared,
}
impl ServerError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Bind(error) => error.hint(),
            Self::Token(error) => Some(error.hint().to_owned()),
            Self::Dial(error) => error.hint(),
            Self::Refused(error) => error.hint(),
            Self::OtherCluster { .. } => Some("check the endpoints and the prefix in server.json".into()),
            Self::HasCluster(_) => {
                Some("join it with `wharf server join`, or choose another prefix with `--etcd-prefix`".into())
            }
            Self::NotShared => Some("several servers need etcd: `wharf server init --etcd http://…`".into()),
            Self::Failed(_) => Some("the log has the cause; it begins again when it is started again".into()),
            Self::Pki(_) | Self::Identity(_) => None,
        }
    }
}

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The server's folder.
    pub state_dir: PathBuf,
    /// What people call the cluster.
    pub name: String,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Where others reach it, best first.
    pub advertise: Vec<ServerAddress>,
    /// Where the state is kept.
    pub store: StoreChoice,
    /// Where networks get their addresses.
    pub pool: AddressPool,
    /// What holds for networks whose files say nothing else.
    pub network: NetworkDefaults,
}

/// A cluster that was made.
#[derive(Debug)]
pub struct Initialised {
    /// The cluster's identifier.
    pub cluster: String,
    /// The first join token, for agents.
    pub token: JoinToken,
    /// The first user.
    pub admin: Identity,
    /// The authority, for contexts.
    pub trust: Trust,
}

/// Makes a cluster with this machine as its first server. Cut off midway it can be repeated.
///
/// # Errors
/// If there is a server in the folder already, or anything cannot be written.
pub async fn init(options: InitOptions, clock: &Arc<dyn Clock>) -> Result<Initialised, ServerError> {
    let folder = Folder::lock(&options.state_dir)?;
    if folder.is_set_up() {
        return Err(FolderError::Present(options.state_dir).into());
    }
    let now = Timestamp(clock.now().0);
    let lifetimes = Lifetimes::default();
    // An attempt that was cut off may have left keys that nothing was issued with.
    for name in ["ca.pem", "ca.key"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    let authority = Authority::create(&options.name, now, lifetimes.authority)?;
    authority.write(folder.path())?;
    let mut seal = [0; 32];
    rand::rng().fill_bytes(&mut seal);
    folder.write_seal_key(&SealKey::new(seal))?;

    let server: ServerId = RandomIds.id(now);
    let cluster = ClusterRecord {
        id: server.uuid().simple().to_string()[..16].to_owned(),
        name: options.name,
        epoch: 1,
        pool: options.pool,
        unique_local: Some(unique_local()),
        network: options.network,
        placement: Default::default(),
        rebalancing: Default::default(),
        created_at: now,
    };
    let backend = open(&options.store, &folder, server).await?;
    let key = Key::Cluster.to_string();
    if let Some(entry) = backend.read(&key).await?.entries.get(&key) {
        let found = match Record::decode(&Key::Cluster, &entry.value)? {
            Record::Cluster(found) => found.name,
            _ => unreachable!("the key decides which record is read"),
        };
        if options.store != StoreChoice::Embedded {
            return Err(ServerError::HasCluster(found));
        }
        // Ours from an attempt that was cut off: nobody else can have written this file.
    }
    let (token, record) = new_token(&authority, TokenRole::Agent, "wharf server init", now, FIRST_TOKEN);
    let token_key = Key::Token(record.id);
    let batch = Batch::new()
        .put(key, encode(&Key::Cluster, &cluster))
        .put(token_key.to_string(), encode(&token_key, &record));
    backend.commit(batch).await?;
    drop(backend);
    let admin = authority.issue_here(&Holder::User("admin".into()), now, lifetimes.user)?;
    folder.write_settings(&Settings {
        id: server,
        cluster: cluster.id.clone(),
        listen: options.listen,
        advertise: options.advertise.iter().map(ToString::to_string).collect(),
        store: options.store,
    })?;
    Ok(Initialised { cluster: cluster.id, token, admin, trust: authority.trust().clone() })
}

/// What a further server is told: everything that makes it the equal of the others.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Admitted {
    /// The authority's certificate, PEM.
    ca: String,
    /// Its key, PEM.
    ca_key: String,
    /// The key of sealed contents, in hexadecimal.
    seal_key: String,
    /// The cluster's identifier.
    cluster: String,
    /// Where the state is kept.
    #[schema(value_type = Object)]
    store: StoreChoice,
}

/// A further server's request.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinServer {
    /// A whole join token for servers.
    token: String,
    /// The machine's clock.
    #[schema(value_type = u64)]
    client_time: Timestamp,
}

/// How a further server joins.
#[derive(Debug, Clone)]
pub struct JoinServerOptions {
    /// The server's folder.
    pub state_dir: PathBuf,
    /// A server of the cluster.
    pub servers: Vec<ServerAddress>,
    /// A token for servers.
    pub token: String,
    /// Where the new server listens.
    pub listen: SocketAddr,
    /// Where others reach it, best first.
    pub advertise: Vec<ServerAddress>,
}

/// Makes this machine a further server of a cluster that keeps its state in etcd.
///
/// # Errors
/// If the cluster does not let it in, or anything cannot be written.
pub async fn join_cluster(options: JoinServerOptions, clock: &Arc<dyn Clock>) -> Result<String, ServerError> {
    let folder = Folder::lock(&options.state_dir)?;
    if folder.is_set_up() {
        return Err(FolderError::Present(options.state_dir).into());
    }
    let token: JoinToken = options.token.parse()?;
    let now = Timestamp(clock.now().0);
    let anchor = Anchor::Pin(token.ca_hash());
    let dialer = Dialer::new(&anchor, None, Protocol::Api, Timing::default(), tls::system_time())?;
    let client = dialer.dial(&options.servers).await?;
    let wish = JoinServer { token: options.token.clone(), client_time: now };
    let admitted: Admitted = client.call(::http::Method::POST, JOIN_SERVER, &wish).await?;
    let authority = Authority::from_pem(&admitted.ca, &admitted.ca_key, "the cluster's answer")?;
    for name in ["ca.pem", "ca.key"] {
        let _ = std::fs::remove_file(folder.path().join(name));
    }
    authority.write(folder.path())?;
    let mut seal = [0; 32];
    hex::decode_to_slice(&admitted.seal_key, &mut seal).map_err(|source| FolderError::Damaged {
        path: folder.path().join("seal.key"),
        source: source.into(),
    })?;
    folder.write_seal_key(&SealKey::new(seal))?;
    let id: ServerId = RandomIds.id(now);
    // Says at once if this machine cannot reach the store.
    open(&admitted.store, &folder, id).await?.read("cluster").await?;
    folder.write_settings(&Settings {
        id,
        cluster: admitted.cluster.clone(),
        listen: options.listen,
        advertise: options.advertise.iter().map(ToString::to_string).collect(),
        store: admitted.store,
    })?;
    Ok(admitted.cluster)
}

/// A range of unique local addresses (RFC 4193): its 40 bits are random, so that two clusters that are connected one day do not clash.
fn unique_local() -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    rand::rng().fill_bytes(&mut octets[1..6]);
    Ipv6Net::new_assert(octets.into(), 48)
}

async fn open(
    choice: &StoreChoice,
    folder: &Folder,
    server: ServerId,
) -> Result<Arc<dyn Backend>, StoreError> {
    Ok(match choice {
        StoreChoice::Embedded => Arc::new(Embedded::open(folder.store()).await?),
        StoreChoice::Etcd { .. } => Arc::new(etcd(choice, server).await?),
    })
}

async fn etcd(choice: &StoreChoice, server: ServerId) -> Result<Etcd, StoreError> {
    let (endpoints, prefix) = match choice {
        StoreChoice::Etcd { endpoints, prefix } => (endpoints.clone(), prefix.clone()),
        StoreChoice::Embedded => (Vec::new(), "/".to_owned()),
    };
    let mut options = wharf_store::etcd::Options::new(endpoints);
    options.prefix = prefix;
    options.seed = server.uuid().as_u64_pair().1;
    Etcd::connect(options).await
}

/// How a server runs.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The server's folder.
    pub state_dir: PathBuf,
    /// How leadership is timed.
    pub leader: LeaderTiming,
    /// How long nodes may be away.
    pub leases: Leases,
    /// How connections are timed.
    pub transport: Timing,
}
impl RunOptions {
    /// The usual timing for the server in this folder.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            leader: LeaderTiming::default(),
            leases: Leases::default(),
            transport: Timing::default(),
        }
    }
}

/// A server with everything open, not yet running.
pub struct Server {
    options: RunOptions,
    folder: Folder,
    settings: Settings,
    backend: Arc<dyn Backend>,
    etcd: Option<Arc<Etcd>>,
    state: Arc<State>,
    authority: Arc<Authority>,
    identity: Arc<ServerIdentity>,
    listener: Listener,
    clock: Arc<dyn Clock>,
}

impl Server {
    /// Opens everything.
    ///
    /// # Errors
    /// If there is no server in the folder, another process runs it, or its store or port cannot be opened.
    pub async fn build(options: RunOptions, clock: Arc<dyn Clock>) -> Result<Self, ServerError> {
        let folder = Folder::lock(&options.state_dir)?;
        let settings = folder.settings()?;
        let authority = Arc::new(Authority::read(folder.path())?);
        let (backend, etcd): (Arc<dyn Backend>, _) = match &settings.store {
            StoreChoice::Embedded => (Arc::new(Embedded::open(folder.store()).await?), None),
            choice @ StoreChoice::Etcd { .. } => {
                let etcd = Arc::new(etcd(choice, settings.id).await?);
                (Arc::clone(&etcd) as _, Some(etcd))
            }
        };
        let state = State::load(Arc::clone(&backend), folder.seal_key()?).await?;
        let found = state.read().cluster.as_ref().map(|cluster| cluster.id.clone());
        if found.as_deref() != Some(&settings.cluster) {
            let found = found.unwrap_or_else(|| "none".into());
            return Err(ServerError::OtherCluster { found, expected: settings.cluster });
        }
        let names = settings.advertise.iter().filter_map(|text| text.parse::<ServerAddress>().ok());
        let names = names.map(|address| address.host().to_owned()).collect();
        let lifetime = Lifetimes::default().server;
        let identity =
            ServerIdentity::issue(Arc::clone(&authority), settings.id, names, lifetime, Arc::clone(&clock))?;
        let listener = Listener::bind(settings.listen).await?;
        Ok(Self { options, folder, settings, backend, etcd, state, authority, identity, listener, clock })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.listener.address()
    }
    /// Where others reach it.
    pub fn advertised(&self) -> &[String] {
        &self.settings.advertise
    }

    /// Makes a join token for an agent in this process.
    ///
    /// # Errors
    /// If the store does not take it.
    pub async fn token_for_agent(&self, lifetime: Duration) -> Result<JoinToken, ServerError> {
        let now = Timestamp(self.clock.now().0);
        let (token, record) = new_token(&self.authority, TokenRole::Agent, "this server", now, lifetime);
        let key = Key::Token(record.id);
        // The watch is not running yet: written, and read again.
        self.backend.commit(Batch::new().put(key.to_string(), encode(&key, &record))).await?;
        Ok(token)
    }

    /// Runs until `shutdown`.
    ///
    /// # Errors
    /// If a certificate cannot be read, before anything has begun; or if a part of the server failed, so that it had to stop.
    pub async fn run(self, shutdown: &Shutdown) -> Result<(), ServerError> {
        let tasks = Tasks::staged(shutdown);
        let connections = Tasks::new(shutdown);
        let exclusive = self.settings.store == StoreChoice::Embedded;
        let ports = Ports::new(
            Arc::clone(&self.state),
            self.authority.trust(),
            self.options.transport,
            Arc::clone(&self.clock),
        )?;
        let parts = Parts {
            server: self.settings.id,
            advertised: self.settings.advertise.clone(),
            store: if exclusive { "embedded" } else { "etcd" },
            backend: Arc::clone(&self.backend),
            etcd: self.etcd.clone(),
            state: Arc::clone(&self.state),
            authority: Arc::clone(&self.authority),
            clock: Arc::clone(&self.clock),
            leader: self.options.leader,
            witness: Some(Arc::new(ports)),
            leases: self.options.leases,
            transport: self.options.transport,
        };
        let Works { shared, sessions } = Works::begin(parts, &tasks, &connections);
        let router = self.router(&shared);
        let revoked = revocation(&self.state);
        let resolver = Arc::clone(&self.identity) as Arc<dyn rustls::server::ResolvesServerCert>;
        let config =
            tls::server_config(self.authority.trust(), resolver, revoked, Arc::new(DefaultTimeProvider))?;
        let (identity, until) = (Arc::clone(&self.identity), tasks.token());
        tasks.essential("certificate", async move {
            identity.run(until).await;
            Ok::<(), std::convert::Infallible>(())
        });

        tracing::info!(server = %self.settings.id, address = %self.listener.address(), "server runs");
        self.listener
            .run(Arc::new(config), router, sessions, self.options.transport, connections.clone())
            .await;
        for name in connections.shutdown(GRACE).await.aborted {
            tracing::warn!(task = name, "had to be aborted");
        }
        let stopped = tasks.shutdown(GRACE).await;
        for name in stopped.aborted {
            tracing::warn!(task = name, "had to be aborted");
        }
        tracing::info!("server has stopped");
        drop(self.folder);
        stopped.failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn router(&self, shared: &http::Shared) -> Router {
        let joining = Joining {
            authority: Arc::clone(&self.authority),
            lifetimes: Lifetimes::default(),
            roster: Arc::new(Stored { shared: Arc::clone(shared) }),
            clock: Arc::clone(&self.clock),
        };
        let admission = Arc::new(Admission {
            shared: Arc::clone(shared),
            admitted: Admitted {
                ca: self.authority.trust().ca.clone(),
                ca_key: self.authority.key_pem(),
                seal_key: hex::encode(self.state.seal().bytes()),
                cluster: self.settings.cluster.clone(),
                store: self.settings.store.clone(),
            },
        });
        let servers = Router::new().route(JOIN_SERVER, post(admit_server)).with_state(admission);
        // Whoever asks for these is not known yet.
        let joining = join::routes(joining).merge(servers).layer(DefaultBodyLimit::max(MAX_JOIN));
        http::router(Arc::clone(shared)).merge(joining)
    }
}

/// What a server works with, all of it open.
pub struct Parts {
    /// Its identifier.
    pub server: ServerId,
    /// Where others reach it.
    pub advertised: Vec<String>,
    /// `embedded`, which nobody else can have open, or `etcd`.
    pub store: &'static str,
    /// The store.
    pub backend: Arc<dyn Backend>,
    /// The same, if it is etcd.
    pub etcd: Option<Arc<Etcd>>,
    /// What it holds.
    pub state: Arc<State>,
    /// The cluster's authority.
    pub authority: Arc<Authority>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How leadership is timed.
    pub leader: LeaderTiming,
    /// Who says that a leader's process has ended; without one its lease is waited for.
    pub witness: Option<Arc<dyn Witness>>,
    /// How long nodes may be away.
    pub leases: Leases,
    /// How connections are timed.
    pub transport: Timing,
}

/// A server at work, but for its port: somebody brings it requests and the sessions of nodes. Simulations have no port.
pub struct Works {
    /// What handlers of the API need.
    pub shared: http::Shared,
    /// Where sessions of nodes go.
    pub sessions: Arc<Sessions>,
}

impl Works {
    /// Begins everything that a server does by itself, as tasks of `tasks`; what people ask for runs as tasks of `connections`.
    pub fn begin(parts: Parts, tasks: &Tasks, connections: &Tasks) -> Self {
        let stop = tasks.token();
        let (state, clock) = (parts.state, parts.clock);
        let election = Election::new(
            Arc::clone(&parts.backend),
            Arc::clone(&clock),
            parts.server,
            parts.leader,
            parts.store == "embedded",
        );
        let election = match parts.witness {
            Some(witness) => election.believing(witness),
            None => election,
        };
        let sessions = Sessions::new(parts.transport, Arc::clone(&clock));
        let context = controllers::Context {
            state: Arc::clone(&state),
            lead: election.watch(),
            clock: Arc::clone(&clock),
            counters: Arc::default(),
        };
        let shared = Arc::new(http::Context {
            state: Arc::clone(&state),
            sessions: Arc::clone(&sessions),
            clock: Arc::clone(&clock),
            lead: election.watch(),
            server: parts.server,
            advertised: parts.advertised.clone(),
            authority: parts.authority,
            store: parts.store,
            builds: Arc::default(),
            built: Default::default(),
            transfers: Arc::default(),
            tasks: connections.clone(),
        });

        // Without any of these a server would go on as if it worked: it stops instead, and another takes over.
        let essential = |name: &'static str, future: BoxFuture<'static, ()>| {
            tasks.essential(name, future.map(Ok::<(), std::convert::Infallible>));
        };
        essential("store watch", Arc::clone(&state).follow(stop.clone()).boxed());
        essential("election", election.run(stop.clone()).boxed());
        essential("apps", controllers::drive(context.clone(), Apps::default(), stop.clone()).boxed());
        essential(
            "rebalance",
            controllers::drive(context.clone(), Rebalance::default(), stop.clone()).boxed(),
        );
        let nodes = Nodes::new(Arc::clone(&sessions), parts.leases, Arc::clone(&clock));
        essential("nodes", controllers::drive(context.clone(), nodes, stop.clone()).boxed());
        essential(
            "reports",
            reports::listen(context.clone(), Arc::clone(&sessions), tasks.clone(), stop.clone()).boxed(),
        );
        essential("report store", reports::store(context.clone(), stop.clone()).boxed());
        essential(
            "assignments",
            reports::assign(context.clone(), Arc::clone(&sessions), tasks.clone(), stop.clone()).boxed(),
        );
        let (node_lease, leases) = (parts.leases.node, tasks.clone());
        let leases = controllers::leases::grant(
            context.clone(),
            Arc::clone(&sessions),
            node_lease,
            leases,
            stop.clone(),
        );
        essential("leases", leases.boxed());
        essential("routes", routes::keep(context.clone(), routes::Call, stop.clone()).boxed());
        let judge = controllers::judge::watch(context.clone(), Arc::clone(&sessions), stop.clone());
        essential("judge", judge.boxed());
        essential("certificates", acme::keep(context.clone(), stop.clone()).boxed());
        let (servers, known) = watch::channel(state.read().servers_list());
        essential("server list", reports::tell_servers(Arc::clone(&sessions), known, stop.clone()).boxed());
        let keeper = Keeper {
            state,
            context,
            etcd: parts.etcd,
            record: ServerRecord {
                id: parts.server,
                addresses: parts.advertised,
                version: env!("CARGO_PKG_VERSION").into(),
                started_at: Timestamp(clock.now().0),
                seen_at: Timestamp(0),
            },
            servers,
            heard: BTreeMap::new(),
            unused: BTreeMap::new(),
        };
        essential("housekeeping", keeper.run(stop).boxed());
        Self { shared, sessions }
    }
}

pub(crate) struct Admission {
    shared: http::Shared,
    admitted: Admitted,
}

/// Lets a further server in: it gets the cluster's keys, over a connection whose other end has shown a token for servers.
#[utoipa::path(post, path = "/v1/servers/join", request_body = JoinServer, responses((status = 200, body = Admitted),
    (status = 403, description = "the token is wrong, used up or expired", body = Problem),
    (status = 409, description = "the cluster keeps its state in a file of its one server", body = Problem)))]
pub(crate) async fn admit_server(
    Extract(admission): Extract<Arc<Admission>>,
    Json(wish): Json<JoinServer>,
) -> Answer<Json<Admitted>> {
    let shared = &admission.shared;
    let token: JoinToken = wish
        .token
        .parse()
        .map_err(|error: InvalidToken| Failure::new(Code::Token, error.to_string()).hint(error.hint()))?;
    let record = shared.state.read().tokens.get(&token.id()).cloned();
    check_token(&token, record.as_ref(), TokenRole::Server, shared.now())?;
    check_clock(wish.client_time, Timestamp(shared.clock.now().0))?;
    if admission.admitted.store == StoreChoice::Embedded {
        let error = ServerError::NotShared;
        let failure = Failure::new(Code::Conflict, error.to_string());
        return Err(error.hint().into_iter().fold(failure, |failure, hint| failure.hint(hint)));
    }
    let event = Event {
        id: RandomIds.id(shared.now()),
        at: shared.now(),
        kind: EventKind::Server,
        subject: Subject::default(),
        message: "a further server was given the cluster's keys".into(),
        by: None,
    };
    let key = Key::Event(event.id);
    shared.state.commit(Batch::new().put(key.to_string(), encode(&key, &event))).await?;
    Ok(Json(admission.admitted.clone()))
}

/// Announces this server, and keeps the store tidy while it leads.
struct Keeper {
    state: Arc<State>,
    context: controllers::Context,
    etcd: Option<Arc<Etcd>>,
    record: ServerRecord,
    servers: watch::Sender<wharf_api::transport::wire::Servers>,
    /// What each server last said, and when that was seen here: other machines' clocks are not compared with this one's.
    heard: BTreeMap<ServerId, (Timestamp, Duration)>,
    /// Contents that no release refers to, and since when.
    unused: BTreeMap<(AppKey, String), Duration>,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        let mut visible = self.state.visible();
        let mut lead = self.context.lead.clone();
        let mut told = None;
        let mut announce_at = self.context.clock.monotonic();
        loop {
            visible.borrow_and_update();
            let leads = *lead.borrow_and_update();
            if let Some(lead) = leads.filter(|_| told != leads) {
                match self.tell_of(lead).await {
                    Ok(()) => told = leads,
                    // Tried again with the next announcement at the latest, if it still leads.
                    Err(error) => tracing::debug!(error = %chain(&error), "not told who leads"),
                }
            }
            let list = self.state.read().servers_list();
            self.servers.send_if_modified(|known| {
                let newer = known.version != list.version;
                if newer {
                    known.clone_from(&list);
                }
                newer
            });
            let now = self.context.clock.monotonic();
            if now >= announce_at {
                announce_at = now + ANNOUNCE;
                if let Err(error) = self.announce().await {
                    tracing::debug!(error = %chain(&error), "not announced");
                }
            }
            tokio::select! {
                // Cancel-safe, all of them.
                () = stop.cancelled() => return,
                _ = visible.changed() => {}
                changed = lead.changed() => if changed.is_err() { return },
                () = self.context.clock.sleep(announce_at.saturating_sub(now)) => {}
            }
            // Seen often enough, however much changes.
            self.context.clock.sleep(Duration::from_millis(200)).await;
        }
    }

    /// What removes that nobody needs: servers that are gone, the oldest events, contents without a release.
    fn tidy(&mut self, lead: Lead) -> Vec<Batch> {
        let moment = self.context.clock.monotonic();
        let inner = self.state.read();
        self.heard.retain(|id, _| inner.servers.contains_key(id));
        let mut batches = Vec::new();
        for server in inner.servers.values().filter(|server| server.id != self.record.id) {
            let heard = self.heard.entry(server.id).or_insert((server.seen_at, moment));
            if heard.0 != server.seen_at {
                *heard = (server.seen_at, moment);
            }
            if moment - heard.1 > SILENT {
                let key = Key::Server(server.id);
                batches.push(inner.expecting(lead.batch(), &key).delete(key.to_string()));
            }
        }
        let excess = inner.events.len().saturating_sub(EVENTS_KEPT);
        let oldest: Vec<_> = inner.events.keys().take(excess).collect();
        for ids in oldest.chunks(PORTABLE_KEYS / 2) {
            let delete = |batch: Batch, id: &&EventId| batch.delete(Key::Event(**id).to_string());
            batches.push(ids.iter().fold(lead.batch(), delete));
        }
        let used: BTreeSet<_> = inner
            .world
            .apps()
            .flat_map(|app| inner.world.releases_of(&app.key))
            .flat_map(|release| {
                let files = release.spec.configs.values().chain(release.spec.secrets.values());
                files.filter_map(|file| Some((&release.app, file.digest.as_ref()?)))
            })
            .collect();
        let unused: BTreeSet<_> = inner.files().filter(|file| !used.contains(file)).collect();
        self.unused.retain(|(app, digest), _| unused.contains(&(app, digest)));
        for (app, digest) in unused {
            let since = *self.unused.entry((app.clone(), digest.clone())).or_insert(moment);
            if moment - since > UNUSED {
                // A release that refers to it is written together with its app.
                let (file, app) = (Key::File(app.clone(), digest.clone()), Key::App(app.clone()));
                let batch = inner.expecting(inner.expecting(lead.batch(), &file), &app);
                batches.push(batch.delete(file.to_string()));
            }
        }
        batches
    }

    /// Says in the diary that this server has begun to lead.
    async fn tell_of(&self, lead: Lead) -> Result<(), StoreError> {
        let place = self.record.addresses.first().map_or_else(|| self.record.id.to_string(), Clone::clone);
        let at = self.context.now();
        let event = Event {
            id: RandomIds.id(at),
            at,
            kind: EventKind::Server,
            subject: Subject::default(),
            message: format!("the server at {place} leads (term {})", lead.term),
            by: None,
        };
        let key = Key::Event(event.id);
        self.state.commit(lead.batch().put(key.to_string(), encode(&key, &event))).await.map(drop)
    }

    async fn announce(&mut self) -> Result<(), StoreError> {
        let now = self.context.now();
        self.record.seen_at = now;
        let key = Key::Server(self.record.id);
        self.state.backend().commit(Batch::new().put(key.to_string(), encode(&key, &self.record))).await?;
        let lead = *self.context.lead.borrow();
        let Some(lead) = lead else {
            self.unused.clear();
            return Ok(());
        };
        for batch in self.tidy(lead) {
            match self.state.commit(batch).await {
                // What was to go is wanted again, or goes the next time.
                Err(error) if error.is_conflict() => {}
                other => drop(other?),
            }
        }
        if let Some(etcd) = &self.etcd {
            etcd.compact_keeping(100_000).await?;
        }
        Ok(())
    }
}
