//! The nodes that are connected to this server, and what can be asked of them.
//!
//! - A node has one session here: the newest. The one it replaces takes no more requests and ends when those it has are done, so a node
//!   that renews its certificate interrupts nothing.
//! - A session ends with its connection, when its certificate expires, and when [`Sessions::disconnect`] says so.
//! - Who wants to know watches [`Sessions::changes`] and then asks: nothing is announced that could be missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use wharf_api::{
    transport::{
        Body, CallError, LineReader, Peer, Remote, Timing,
        client::request,
        empty, full,
        node::{
            DIFFERENCES, Have, ImageFacts, LogsQuery, OutputLine, Prune, Pruned, Report, ResolveImage,
            TaskUsage,
        },
        wire::Servers,
    },
    v1::{Code, Problem},
};
use wharf_model::{
    AssignmentSet, GatewayStats, Image, LeaseAnswer, LeaseGrant, NodeId, NodeReport, TaskId, Timestamp,
};
use wharf_process::{Clock, errors::chain};

use crate::{http::failure::Failure, pki::now};

mod telling;

pub use telling::Telling;

/// Where nodes take assignments.
const ASSIGNMENTS: &str = "/v1/assignments";
/// For an answer that may first have to ask a registry.
const RESOLVE: Duration = Duration::from_secs(60);
/// For the removal of many large images.
const PRUNE: Duration = Duration::from_secs(1800);
/// For the first byte of an image: the engine writes the archive to its disk before it sends it.
const ARCHIVE: Duration = Duration::from_secs(3600);

/// The sessions of this server. Empty when made; the listener fills it.
pub struct Sessions {
    timing: Timing,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// Counts connects and disconnects.
    changes: watch::Sender<u64>,
}
#[derive(Default)]
struct Inner {
    last: u64,
    by_node: BTreeMap<NodeId, NodeSession>,
    /// When something was last heard of each node that was ever connected, in milliseconds of the monotonic clock.
    heard: BTreeMap<NodeId, Arc<AtomicU64>>,
}
impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("connected", &self.connected()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// No sessions yet.
    pub fn new(timing: Timing, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { timing, clock, inner: Mutex::default(), changes: watch::Sender::new(0) })
    }

    /// The session of a node; a failure that names the node if it has none here.
    ///
    /// # Errors
    /// If the node is not connected to this server.
    pub fn get(&self, node: NodeId) -> Result<NodeSession, Failure> {
        self.inner.lock().by_node.get(&node).cloned().ok_or_else(|| {
            Failure::new(Code::NodeUnreachable, format!("the agent of {node} is not connected")).hint(
                "`wharf node ls` shows its state; on the node, `systemctl status wharf-agent` shows why",
            )
        })
    }

    /// The nodes that are connected.
    pub fn connected(&self) -> BTreeSet<NodeId> {
        self.inner.lock().by_node.keys().copied().collect()
    }

    /// Every session.
    pub fn all(&self) -> Vec<NodeSession> {
        self.inner.lock().by_node.values().cloned().collect()
    }

    /// When a node last gave a sign of life here, by the clock's monotonic side; none if it was never connected.
    pub fn last_heard(&self, node: NodeId) -> Option<Duration> {
        let heard = self.inner.lock().heard.get(&node).map(|heard| heard.load(Ordering::Relaxed));
        heard.map(Duration::from_millis)
    }

    /// Changes whenever a node connects, reconnects or disconnects.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ends a node's session at once: it was removed, or its certificate revoked.
    pub fn disconnect(&self, node: NodeId) {
        let session = self.inner.lock().by_node.get(&node).cloned();
        if let Some(session) = session {
            session.cut.cancel();
        }
    }

    /// Makes a session of an accepted connection and runs it to its end. `from` is where the node seems to be.
    pub async fn run<I>(&self, io: I, node: NodeId, peer: Peer, from: Option<IpAddr>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (remote, driver) = match Remote::over(io, node.to_string(), self.timing).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::info!(%node, error = chain(&error), "session did not begin");
                return;
            }
        };
        let session = self.insert(node, &peer, from, remote);
        tracing::info!(%node, session = session.number, "node connected");
        let (number, cut) = (session.number, session.cut.clone());
        drop(session);
        let end = tokio::select! {
            // Dropping the driver closes the connection, which is meant in the other arms.
            end = driver => end.map_or_else(|error| chain(&error), |()| "closed by the node".to_owned()),
            () = cut.cancelled() => "cut by this server".to_owned(),
            () = self.until(peer.expires) => "its certificate expired".to_owned(),
        };
        let replaced = !self.remove(node, number);
        tracing::info!(%node, session = number, end, replaced, "node disconnected");
    }

    fn insert(&self, node: NodeId, peer: &Peer, from: Option<IpAddr>, remote: Remote) -> NodeSession {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let heard = Arc::clone(inner.heard.entry(node).or_default());
        let session = NodeSession {
            node,
            number: inner.last,
            serial: peer.serial.as_str().into(),
            connected_at: now(&*self.clock),
            from: from.map(|from| from.to_canonical()),
            remote,
            heard,
            replaced: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        session.heard(self.clock.monotonic());
        let older = inner.by_node.insert(node, session.clone());
        drop(inner);
        if let Some(older) = older {
            older.replaced.cancel();
        }
        self.changes.send_modify(|count| *count += 1);
        session
    }

    /// Whether it was still the node's session.
    fn remove(&self, node: NodeId, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let current = inner.by_node.get(&node).is_some_and(|session| session.number == number);
        let removed = if current { inner.by_node.remove(&node) } else { None };
        drop(inner);
        if let Some(session) = removed {
            session.cut.cancel();
            self.changes.send_modify(|count| *count += 1);
        }
        current
    }

    /// Returns when the wall clock shows `time`, in steps since it may be set.
    async fn until(&self, time: Timestamp) {
        loop {
            let left = time.since(now(&*self.clock));
            if left.is_zero() {
                return;
            }
            self.clock.sleep(left.min(Duration::from_secs(60))).await;
        }
    }
}

/// A node that is connected. Clones are the same session.
#[derive(Debug, Clone)]
pub struct NodeSession {
    node: NodeId,
    number: u64,
    serial: Arc<str>,
    connected_at: Timestamp,
    from: Option<IpAddr>,
    remote: Remote,
    heard: Arc<AtomicU64>,
    replaced: CancellationToken,
    cut: CancellationToken,
}

/// What a node made of the assignments it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It works on them.
    Accepted(Have),
    /// It holds a newer set.
    Older(Have),
}

impl NodeSession {
    /// The node.
    pub const fn node(&self) -> NodeId {
        self.node
    }
    /// Which session of this server it is; later ones have higher numbers.
    pub const fn number(&self) -> u64 {
        self.number
    }
    /// The serial number of the certificate it connected with.
    pub fn serial(&self) -> &str {
        &self.serial
    }
    /// Since when.
    pub const fn connected_at(&self) -> Timestamp {
        self.connected_at
    }
    /// The address it connected from, as this server sees it.
    pub const fn from(&self) -> Option<IpAddr> {
        self.from
    }
    /// The node gave a sign of life at this moment of the monotonic clock.
    pub fn heard(&self, at: Duration) {
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.heard.fetch_max(at, Ordering::Relaxed);
    }
    /// Returns when the session has ended or a newer one has replaced it: time to ask [`Sessions::get`] again. Cancel-safe.
    pub async fn ended(&self) {
        tokio::select! {
            // All arms are cancel-safe: they wait for flags.
            () = self.remote.closed() => {}
            () = self.replaced.cancelled() => {}
            () = self.cut.cancelled() => {}
        }
    }

    /// Ends this session at once.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Sends the whole set of assignments.
    ///
    /// # Errors
    /// If the node does not answer or refuses the set for another reason than its age.
    pub async fn push_assignments(&self, set: &AssignmentSet) -> Result<Pushed, CallError> {
        Ok(self.put_assignments(self.written(set)?).await?.0)
    }

    /// Sends a set of assignments as it is written. Also answers whether the node takes differences from it.
    async fn put_assignments(&self, content: Vec<u8>) -> Result<(Pushed, bool), CallError> {
        let request = request(Method::PUT, ASSIGNMENTS, full(content));
        let response = self.remote.send(request, self.remote.timing().answer).await?;
        let (header, form) = DIFFERENCES;
        let differs = response.headers().get(header).is_some_and(|said| said == form);
        Ok((self.pushed(response).await?, differs))
    }

    /// Sends what changes of the assignments, as it is written ([`ChangeAssignments`](wharf_api::transport::node::ChangeAssignments)); nothing
    /// has changed if the node does not have what it starts from.
    async fn patch_assignments(&self, content: Vec<u8>) -> Result<Option<Pushed>, CallError> {
        let request = request(Method::PATCH, ASSIGNMENTS, full(content));
        let response = self.remote.send(request, self.remote.timing().answer).await?;
        match response.status() {
            StatusCode::PRECONDITION_FAILED => Ok(None),
            _ => self.pushed(response).await.map(Some),
        }
    }

    async fn pushed(&self, response: Response<Incoming>) -> Result<Pushed, CallError> {
        match response.status() {
            status if status.is_success() => self.remote.read(response).await.map(Pushed::Accepted),
            StatusCode::CONFLICT => self.remote.read(response).await.map(Pushed::Older),
            _ => Err(self.remote.refusal(response).await),
        }
    }

    fn written(&self, value: &impl Serialize) -> Result<Vec<u8>, CallError> {
        serde_json::to_vec(value).map_err(|source| CallError::Answer {
            peer: self.remote.name().to_owned(),
            status: StatusCode::BAD_REQUEST,
            source: source.into(),
        })
    }

    /// Grants the node the right to run tasks that must not run twice.
    ///
    /// # Errors
    /// If the node does not answer, or has heard from a later leader.
    pub async fn grant_lease(&self, grant: &LeaseGrant) -> Result<LeaseAnswer, CallError> {
        self.remote.call(Method::PUT, "/v1/lease", grant).await
    }

    /// Tells the node which servers there are.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn push_servers(&self, servers: &Servers) -> Result<(), CallError> {
        self.remote.call(Method::PUT, "/v1/servers", servers).await
    }

    /// What the node reports, from everything it knows on; select on [`NodeSession::ended`] beside it. An error if not even a heartbeat
    /// comes for as long as it takes to find a connection dead.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn reports(&self) -> Result<LineReader<Report>, CallError> {
        let timing = *self.remote.timing();
        let response = self.remote.open(Method::GET, "/v1/reports", empty()).await?;
        Ok(LineReader::new(response.into_body(), timing.keepalive_interval + timing.keepalive_timeout))
    }

    /// What an image reference stands for.
    ///
    /// # Errors
    /// If the node does not answer, or cannot find out.
    pub async fn resolve_image(&self, wish: &ResolveImage) -> Result<Image, CallError> {
        self.remote.call_within(Method::POST, "/v1/images/resolve", wish, RESOLVE).await
    }

    /// Builds an image: the body is the wish in one line and the context after it, the answer lines of what the builder says.
    ///
    /// # Errors
    /// If the node does not answer, or cannot build.
    pub async fn build(&self, wish: Body) -> Result<Response<Incoming>, CallError> {
        self.remote.open(Method::POST, "/v1/images/build", wish).await
    }

    /// An image that the node's engine has.
    ///
    /// # Errors
    /// If the node does not answer, or does not have it.
    pub async fn image(&self, id: &str) -> Result<ImageFacts, CallError> {
        self.remote.get(&format!("/v1/images/{id}")).await
    }

    /// An image as an archive, without its lowest `skip` layers.
    ///
    /// # Errors
    /// If the node does not answer, or does not have it.
    pub async fn image_archive(&self, id: &str, skip: usize) -> Result<Response<Incoming>, CallError> {
        let request = request(Method::GET, &format!("/v1/images/{id}/archive?skip={skip}"), empty());
        let response = self.remote.send(request, ARCHIVE).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.remote.refusal(response).await) }
    }

    /// Removes from the node what nobody needs, or says what that would be.
    ///
    /// # Errors
    /// If the node does not answer, or its engine does not.
    pub async fn prune(&self, ask: &Prune) -> Result<Pruned, CallError> {
        self.remote.call_within(Method::POST, "/v1/prune", ask, PRUNE).await
    }

    /// A task's output.
    ///
    /// # Errors
    /// If the node does not answer, or has no such task.
    pub async fn logs(&self, task: TaskId, query: &LogsQuery) -> Result<LineReader<OutputLine>, CallError> {
        let path = format!("/v1/tasks/{task}/logs?{}", query.to_query());
        let response = self.remote.open(Method::GET, &path, empty()).await?;
        Ok(LineReader::new(response.into_body(), self.remote.timing().stream_silence()))
    }

    /// Runs a command in a task: both bodies are frames, and can be passed on as they are.
    ///
    /// # Errors
    /// If the node does not answer, or has no such task.
    pub async fn exec(&self, task: TaskId, frames: Body) -> Result<Response<Incoming>, CallError> {
        self.remote.open(Method::POST, &format!("/v1/tasks/{task}/exec"), frames).await
    }

    /// What a task uses.
    ///
    /// # Errors
    /// If the node does not answer, or has no such task.
    pub async fn stats(&self, task: TaskId) -> Result<TaskUsage, CallError> {
        self.remote.get(&format!("/v1/tasks/{task}/stats")).await
    }

    /// What the engine says of a task's container.
    ///
    /// # Errors
    /// If the node does not answer, or has no such task.
    pub async fn inspect(&self, task: TaskId) -> Result<serde_json::Value, CallError> {
        self.remote.get(&format!("/v1/tasks/{task}/inspect")).await
    }

    /// What went through the node's gateway.
    ///
    /// # Errors
    /// If the node does not answer, or has no gateway.
    pub async fn gateway(&self) -> Result<GatewayStats, CallError> {
        self.remote.get("/v1/gateway/routes").await
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn report(&self) -> Result<NodeReport, CallError> {
        self.remote.get("/v1/node").await
    }

    /// The connection itself, for requests without a method of their own.
    pub const fn remote(&self) -> &Remote {
        &self.remote
    }
}

/// A call to a node that failed, as people are told.
impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { problem, .. } => Self(*problem),
            CallError::Dial(_) | CallError::Lost { .. } | CallError::TimedOut { .. } => {
                Self::new(Code::NodeUnreachable, chain(&error))
                    .hint("try again; `wharf node ls` shows the node's state")
            }
            CallError::Answer { .. } => Self(Problem {
                code: Code::Internal,
                message: chain(&error),
                hint: Some("are agent and server of the same version? `wharf node ls` shows both".to_owned()),
                holder: None,
            }),
        }
    }
}
