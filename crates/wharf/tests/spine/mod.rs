//! A server's listener with a roster in memory, agents with a node that does nothing, and a wire that can be cut.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Extension, Json, Router,
    body::Body,
    routing::{get, post},
};
use futures::{StreamExt, stream, stream::BoxStream};
use rustls::sign::SingleCertAndKey;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};
use wharf_agent::session::{self, Home, JoinOptions, Node, Refusal, join, router::Exec};
use wharf_api::{
    transport::{
        Frame, FrameReader, FrameSender, Identity, Peer, ServerAddress, Timing,
        client::Dialer,
        frame::ExitCode,
        node::{Have, LogsQuery, OutputLine, OutputStream, Report, ResolveImage, TaskUsage},
        tls::{Anchor, IsRevoked, Protocol, server_config, system_time},
        wire::{ServerEntry, Servers},
    },
    v1::{Code, ExecRequest},
};
use wharf_model::{
    AssignmentSet, Bytes, Cpus, DnsTable, Image, NodeFacts, NodeId, NodeName, NodeReport, Platform, Revision,
    RouteTable, ServerId, TaskId, TaskReport, TaskStatus, Timestamp, TokenId,
};
use wharf_process::{Clock, ManualClock, Shutdown, SystemClock, Tasks};
use wharf_server::{
    http::failure::Answer,
    join::{Admission, Joining, Roster, name_taken, new_token},
    listener::Listener,
    pki::{Authority, Lifetimes, ServerIdentity, Subject},
    records::{TokenRecord, TokenRole},
    sessions::{NodeSession, Sessions},
};

/// The task a fake node runs.
pub(crate) static TASK: LazyLock<TaskId> = LazyLock::new(|| TaskId::from_parts(1, [1; 10]));
/// A task it does not.
pub(crate) static MISSING: LazyLock<TaskId> = LazyLock::new(|| TaskId::from_parts(2, [2; 10]));
/// How many lines of output the task has.
pub(crate) const LINES: u64 = 1000;

const DEADLINE: Duration = Duration::from_secs(30);

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn fast() -> Timing {
    Timing {
        connect: Duration::from_secs(2),
        handshake: Duration::from_secs(2),
        keepalive_interval: Duration::from_secs(5),
        keepalive_timeout: Duration::from_secs(5),
        stream_keepalive: Duration::from_secs(1),
        answer: Duration::from_secs(10),
    }
}
pub(crate) fn hour() -> Duration {
    Duration::from_secs(3600)
}
pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// What must happen soon.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it happens within the deadline")
}
/// What must become true soon.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A server; several of one cluster share authority and roster.
pub(crate) struct Cluster {
    pub(crate) authority: Arc<Authority>,
    pub(crate) roster: Arc<FakeRoster>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) lifetimes: Lifetimes,
    id: ServerId,
    address: SocketAddr,
    identity: Arc<ServerIdentity>,
    timing: Timing,
    tasks: Tasks,
    slow: Arc<AtomicUsize>,
}

impl Cluster {
    pub(crate) async fn start(lifetimes: Lifetimes, timing: Timing) -> Self {
        let now = Timestamp(clock().now().0);
        let authority = Arc::new(Authority::create("test", now, lifetimes.authority).unwrap());
        let roster = Arc::new(FakeRoster::default());
        let cluster = Self::serve(authority, roster, lifetimes, timing, 1).await;
        *cluster.roster.servers.lock().unwrap() = Servers { version: 1, servers: vec![cluster.entry()] };
        cluster
    }

    pub(crate) async fn second_server(&self) -> Self {
        Self::serve(Arc::clone(&self.authority), Arc::clone(&self.roster), self.lifetimes, self.timing, 2)
            .await
    }

    async fn serve(
        authority: Arc<Authority>,
        roster: Arc<FakeRoster>,
        lifetimes: Lifetimes,
        timing: Timing,
        number: u8,
    ) -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        let id = ServerId::from_parts(u64::from(number), [number; 10]);
        let identity =
            ServerIdentity::issue(Arc::clone(&authority), id, vec![], lifetimes.server, clock()).unwrap();
        let sessions = Sessions::new(timing, clock());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address();
        let tls =
            server_config(authority.trust(), identity.clone(), roster.is_revoked(), system_time()).unwrap();
        let joining =
            Joining { authority: authority.clone(), lifetimes, roster: roster.clone(), clock: clock() };
        let slow = Arc::new(AtomicUsize::new(0));
        let router = wharf_server::join::routes(joining).merge(routes(Arc::clone(&slow)));
        let running = listener.run(Arc::new(tls), router, Arc::clone(&sessions), timing, tasks.clone());
        tasks.spawn("listener", running);
        let (renewing, stop) = (Arc::clone(&identity), tasks.token());
        tasks.spawn("server certificate", async move { renewing.run(stop).await });
        Self { authority, roster, sessions, lifetimes, id, address, identity, timing, tasks, slow }
    }

    pub(crate) async fn stop(self) {
        let stopped = within(self.tasks.shutdown(Duration::from_secs(10))).await;
        assert!(stopped.aborted.is_empty(), "everything ends when asked: {stopped:?}");
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(clock().now().0)
    }
    pub(crate) fn address(&self) -> ServerAddress {
        self.address.into()
    }
    pub(crate) fn entry(&self) -> ServerEntry {
        ServerEntry { id: self.id, addresses: vec![self.address.to_string()] }
    }
    pub(crate) fn servers(&self) -> Servers {
        self.roster.servers()
    }
    pub(crate) fn server_serial(&self) -> String {
        self.identity.identity().peer().unwrap().serial
    }
    pub(crate) fn slow_requests(&self) -> usize {
        self.slow.load(Relaxed)
    }
    pub(crate) fn user(&self, name: &str) -> Identity {
        self.authority.issue_here(&Subject::User(name.to_owned()), self.now(), hour()).unwrap()
    }
    pub(crate) fn token(&self, role: TokenRole, lifetime: Duration) -> String {
        self.token_made_at(role, self.now(), lifetime)
    }
    pub(crate) fn token_made_at(&self, role: TokenRole, at: Timestamp, lifetime: Duration) -> String {
        let (token, record) = new_token(&self.authority, role, "ada", at, lifetime);
        self.roster.tokens.lock().unwrap().insert(record.id, record);
        token.to_string()
    }
    pub(crate) fn revoke(&self, serial: &str) {
        self.roster.revoked.lock().unwrap().insert(serial.to_owned());
    }
    pub(crate) fn revocations_noticed(&self) -> usize {
        self.roster.refused.load(Relaxed)
    }

    /// The node's session, as soon as it has one.
    pub(crate) async fn session(&self, node: NodeId) -> NodeSession {
        until(|| self.sessions.get(node).is_ok()).await;
        self.sessions.get(node).unwrap()
    }

    /// A node that has joined, with its agent running.
    pub(crate) async fn agent(&self, name: &str) -> AgentHandle {
        self.agent_with(name, clock()).await
    }
    pub(crate) async fn agent_that_never_renews(&self, name: &str) -> AgentHandle {
        let still = ManualClock::at(clock().now());
        self.agent_with(name, Arc::new(still)).await
    }
    /// The same, told that the server is elsewhere.
    pub(crate) async fn agent_by(&self, name: &str, addresses: Vec<ServerAddress>) -> AgentHandle {
        let addresses = addresses.into_iter().map(String::from).collect();
        let servers = Servers { version: 1, servers: vec![ServerEntry { id: self.id, addresses }] };
        *self.roster.servers.lock().unwrap() = servers;
        self.agent(name).await
    }

    async fn agent_with(&self, name: &str, clock: Arc<dyn Clock>) -> AgentHandle {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        let options = join_options(self, name, self.token(TokenRole::Agent, hour()));
        let joined = join(options, &home, self.timing, Arc::clone(&clock)).await.unwrap();
        let node = Arc::new(FakeNode::new(name));
        let mut agent = AgentHandle { id: joined.node, home, node, clock, _folder: folder, runtime: None };
        agent.start(self);
        agent
    }

    /// Something that listens with a certificate of the cluster for `subject`.
    pub(crate) async fn listen_as(&self, subject: &Subject) -> ServerAddress {
        let identity = self.authority.issue_here(subject, self.now(), hour()).unwrap();
        let resolver = Arc::new(SingleCertAndKey::from(identity.certified().unwrap()));
        let config =
            server_config(self.authority.trust(), resolver, Arc::new(|_| false), system_time()).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().into();
        let running = listener.run(
            Arc::new(config),
            Router::new(),
            Arc::clone(&self.sessions),
            self.timing,
            self.tasks.clone(),
        );
        self.tasks.spawn("impostor", running);
        address
    }
}

fn routes(slow: Arc<AtomicUsize>) -> Router {
    let slowly = move || async move {
        slow.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
        Json("done")
    };
    Router::new()
        .route("/v1/version", get(async |Extension(peer): Extension<Peer>| Json(peer.kind.to_string())))
        .route("/v1/slow", get(slowly))
        .route("/v1/echo", post(async |body: Body| body))
}

pub(crate) fn api_dialer(cluster: &Cluster, identity: Option<&Identity>) -> Dialer {
    let anchor = Anchor::Authority(cluster.authority.trust().clone());
    Dialer::new(&anchor, identity, Protocol::Api, cluster.timing, system_time()).unwrap()
}

pub(crate) fn join_options(cluster: &Cluster, name: &str, token: String) -> JoinOptions {
    JoinOptions {
        token,
        servers: vec![cluster.address()],
        name: name.parse().unwrap(),
        hostname: name.to_owned(),
        address: None,
        version: "0.1.0".to_owned(),
        force: false,
    }
}

pub(crate) fn set_for(node: NodeId, revision: u64) -> AssignmentSet {
    AssignmentSet {
        epoch: 1,
        revision: Revision(revision),
        node,
        tasks: BTreeMap::new(),
        networks: BTreeMap::new(),
        volumes: BTreeMap::new(),
        removed_volumes: vec![],
        dns: DnsTable::default(),
        routes: RouteTable::default(),
        wireguard: None,
        disk_marks: Default::default(),
        watched: Vec::new(),
    }
}

#[derive(Default)]
pub(crate) struct FakeRoster {
    tokens: Mutex<BTreeMap<TokenId, TokenRecord>>,
    nodes: Mutex<BTreeMap<NodeId, NodeName>>,
    revoked: Mutex<BTreeSet<String>>,
    servers: Mutex<Servers>,
    refused: AtomicUsize,
    lookups: AtomicUsize,
}
impl FakeRoster {
    pub(crate) fn forget_tokens(&self) {
        self.tokens.lock().unwrap().clear();
    }
    pub(crate) fn names(&self) -> Vec<NodeName> {
        self.nodes.lock().unwrap().values().cloned().collect()
    }
    pub(crate) fn lookups(&self) -> usize {
        self.lookups.load(Relaxed)
    }
    fn is_revoked(self: &Arc<Self>) -> IsRevoked {
        let roster = Arc::clone(self);
        Arc::new(move |peer: &Peer| {
            let revoked = roster.revoked.lock().unwrap().contains(&peer.serial);
            roster.refused.fetch_add(usize::from(revoked), Relaxed);
            revoked
        })
    }
}
#[async_trait]
impl Roster for FakeRoster {
    async fn token(&self, id: TokenId) -> Answer<Option<TokenRecord>> {
        self.lookups.fetch_add(1, Relaxed);
        Ok(self.tokens.lock().unwrap().get(&id).cloned())
    }
    async fn node(&self, id: NodeId) -> Answer<Option<NodeName>> {
        Ok(self.nodes.lock().unwrap().get(&id).cloned())
    }
    async fn admit(&self, admission: Admission) -> Answer<()> {
        let mut nodes = self.nodes.lock().unwrap();
        let name = &admission.facts.name;
        if nodes.iter().any(|(id, taken)| taken == name && *id != admission.node) {
            return Err(name_taken(name));
        }
        nodes.insert(admission.node, name.clone());
        Ok(())
    }
    async fn renewed(&self, _old: &Peer, _new: &Peer) -> Answer<()> {
        Ok(())
    }
    fn servers(&self) -> Servers {
        self.servers.lock().unwrap().clone()
    }
}

/// An agent with a runtime of its own, so that it can be killed as a process is.
pub(crate) struct AgentHandle {
    pub(crate) id: NodeId,
    pub(crate) home: Home,
    pub(crate) node: Arc<FakeNode>,
    clock: Arc<dyn Clock>,
    _folder: TempDir,
    runtime: Option<Runtime>,
}
impl AgentHandle {
    pub(crate) fn start(&mut self, cluster: &Cluster) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node: Arc<dyn Node> = self.node.clone();
        let (home, timing, clock) = (self.home.clone(), cluster.timing, Arc::clone(&self.clock));
        runtime.spawn(async move {
            let tasks = Tasks::new(&Shutdown::new());
            session::run(node, home, timing, clock, tasks).await.unwrap();
        });
        self.runtime = Some(runtime);
    }
    /// Nothing is said to anybody; the kernel closes the sockets.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node that runs one task, of which everything is made up.
pub(crate) struct FakeNode {
    name: String,
    have: Mutex<Have>,
    /// The last set that it took.
    set: Mutex<Option<Arc<AssignmentSet>>>,
    execs: Arc<AtomicUsize>,
}
impl FakeNode {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), have: Mutex::default(), set: Mutex::default(), execs: Arc::default() }
    }
    pub(crate) fn held(&self) -> Option<Arc<AssignmentSet>> {
        self.set.lock().unwrap().clone()
    }
    pub(crate) fn running_execs(&self) -> usize {
        self.execs.load(Relaxed)
    }
    fn node_report(&self) -> NodeReport {
        let facts = NodeFacts {
            hostname: self.name.clone(),
            address: [127, 0, 0, 1].into(),
            platform: Platform { os: "linux".to_owned(), arch: "amd64".to_owned() },
            cpus: Cpus(2000),
            memory: Bytes(1 << 30),
            disk: None,
            images: Vec::new(),
            kernel: "6.1".to_owned(),
            cgroup_version: 2,
            agent_version: "0.1.0".to_owned(),
            engine: None,
            engine_error: None,
            taken_ports: vec![],
            devices: Vec::new(),
            subnets: vec![],
            wireguard: None,
            seen_from: None,
            disks: Vec::new(),
            cleanup: None,
        };
        let have = *self.have.lock().unwrap();
        NodeReport {
            sequence: 1,
            epoch: have.epoch,
            observed: have.revision,
            facts,
            problems: vec![],
            draining: BTreeMap::new(),
            peers: Default::default(),
        }
    }
}
fn check(task: TaskId) -> Result<(), Refusal> {
    if task == *TASK {
        Ok(())
    } else {
        Err(Refusal::new(Code::NotFound, "there is no such task on this node"))
    }
}
#[async_trait]
impl Node for FakeNode {
    async fn assign(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal> {
        let mut have = self.have.lock().unwrap();
        let offered = Have { epoch: set.epoch, revision: set.revision };
        if offered < *have {
            return Ok(Err(*have));
        }
        *have = offered;
        *self.set.lock().unwrap() = Some(set);
        Ok(Ok(offered))
    }
    fn reports(&self) -> BoxStream<'static, Report> {
        let task = TaskReport { task: *TASK, status: TaskStatus::default() };
        let first =
            [Report::Node(Box::new(self.node_report())), Report::Task(Box::new(task)), Report::Synced];
        stream::iter(first).chain(stream::pending()).boxed()
    }
    async fn resolve_image(&self, wish: ResolveImage) -> Result<Image, Refusal> {
        Ok(Image { id: Some("sha256:abc".to_owned()), ..Image::named(wish.reference) })
    }
    async fn logs(
        &self,
        task: TaskId,
        query: LogsQuery,
    ) -> Result<BoxStream<'static, Result<OutputLine, Refusal>>, Refusal> {
        check(task)?;
        let line = |n: u64| {
            Ok(OutputLine { at: Timestamp(n), stream: OutputStream::Stdout, text: format!("line {n}") })
        };
        Ok(match query.follow {
            true => {
                stream::repeat_with(move || Ok(OutputLine { text: "x".repeat(4000), ..line(0)? })).boxed()
            }
            false => stream::iter(0..query.tail.unwrap_or(LINES)).map(line).boxed(),
        })
    }
    async fn exec(&self, task: TaskId, request: ExecRequest) -> Result<Box<dyn Exec>, Refusal> {
        check(task)?;
        match request.command[0].as_str() {
            "cat" => Ok(Box::new(Cat { running: Running::one_of(&self.execs) })),
            "sleep" => Ok(Box::new(Sleep { _running: Running::one_of(&self.execs) })),
            "break" => Ok(Box::new(Break)),
            other => Err(Refusal::new(Code::Invalid, format!("`{other}` is not in the image"))),
        }
    }
    async fn stats(&self, task: TaskId) -> Result<TaskUsage, Refusal> {
        check(task)?;
        Ok(TaskUsage { pids: 3, ..TaskUsage::default() })
    }
    async fn inspect(&self, task: TaskId) -> Result<serde_json::Value, Refusal> {
        check(task)?;
        Ok(serde_json::json!({ "Id": "abc" }))
    }
    async fn report(&self) -> NodeReport {
        self.node_report()
    }
}

struct Running(Arc<AtomicUsize>);
impl Running {
    fn one_of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}
impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Gives back what it gets.
struct Cat {
    running: Running,
}
#[async_trait]
impl Exec for Cat {
    async fn run(self: Box<Self>, mut input: FrameReader, output: &FrameSender) -> Result<(), Refusal> {
        let _running = &self.running;
        let cut = |error: &dyn std::error::Error| Refusal::new(Code::Unavailable, error.to_string());
        loop {
            match input.next().await.map_err(|error| cut(&error))? {
                Some(Frame::Stdin(data)) => {
                    output.send(Frame::Stdout(data)).await.map_err(|error| cut(&error))?;
                }
                Some(Frame::StdinEnd) => {
                    return output.send(Frame::Exit(ExitCode { code: 0 })).await.map_err(|error| cut(&error));
                }
                // Input that is over is no reason to stop.
                None => std::future::pending().await,
                Some(_) => {}
            }
        }
    }
}
/// Takes no notice of its input.
struct Sleep {
    _running: Running,
}
#[async_trait]
impl Exec for Sleep {
    async fn run(self: Box<Self>, _input: FrameReader, _output: &FrameSender) -> Result<(), Refusal> {
        std::future::pending().await
    }
}
struct Break;
#[async_trait]
impl Exec for Break {
    async fn run(self: Box<Self>, _input: FrameReader, _output: &FrameSender) -> Result<(), Refusal> {
        Err(Refusal::new(Code::Unavailable, "the engine went away"))
    }
}

/// A TCP connection's way to a server, which can fall silent without closing anything.
pub(crate) struct Wire {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
    _tasks: Tasks,
}
impl Wire {
    pub(crate) async fn to(server: ServerAddress) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frozen, tasks, connections) =
            (watch::Sender::new(false), Tasks::new(&Shutdown::new()), Arc::new(AtomicUsize::new(0)));
        let (watching, spawning, counting) = (frozen.subscribe(), tasks.clone(), Arc::clone(&connections));
        tasks.spawn("wire", async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                counting.fetch_add(1, Relaxed);
                let far = TcpStream::connect((server.host(), server.port())).await.unwrap();
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                spawning.spawn("there", carry(near_read, far_write, watching.clone()));
                spawning.spawn("back", carry(far_read, near_write, watching.clone()));
            }
        });
        Self { address, frozen, connections, _tasks: tasks }
    }
    pub(crate) fn address(&self) -> ServerAddress {
        self.address.into()
    }
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }
    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    let mut data = [0; 16 * 1024];
    loop {
        let read = from.read(&mut data).await.unwrap_or(0);
        if frozen.wait_for(|frozen| !frozen).await.is_err()
            || read == 0
            || to.write_all(&data[..read]).await.is_err()
        {
            return;
        }
    }
}
