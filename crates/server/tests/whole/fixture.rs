//! A server, its clients, and nodes that do at once what they are told.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::{StreamExt, stream};
use http::Method;
use hyper::{body::Incoming, service::service_fn};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use wharf_api::{
    transport::{
        CallError, Frame, FrameReader, FrameSender, Identity, LineReader, ServerAddress, Timing, Trust,
        client::{Client, Dialer},
        empty,
        frame::ExitCode,
        json_lines,
        node::{Have, LogsQuery, OutputLine, OutputStream, Report, ResolveImage, TaskUsage},
        reverse,
        tls::{Anchor, Protocol, system_time},
        wire::{self, JoinFacts, JoinRequest, JoinResponse},
    },
    v1::{self, Action, AppStatus, Applied, ApplyRequest, Plan, PlanRequest, Problem},
};
use wharf_model::{
    AddressPool, AssignmentSet, Bytes, Cpus, EngineFacts, GatewayStats, Health, Image, LeaseAnswer,
    LeaseGrant, NodeFacts, NodeId, NodeReport, PeerView, Phase, Platform, Revision, RouteReport, RouteStats,
    SetStats, Target, TaskId, TaskReport, TaskStatus, Timestamp, VolumeId,
};
use wharf_process::{Clock, Shutdown, SystemClock, Tasks};
use wharf_server::{InitOptions, RunOptions, Server, ServerError, init, settings::StoreChoice};

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn timing() -> Timing {
    Timing { stream_keepalive: Duration::from_secs(1), ..Timing::default() }
}
/// What must happen soon.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it happens within the deadline")
}
/// Asks again and again until the answer is there.
pub(crate) async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
/// What the server has against a request.
pub(crate) fn problem<T: std::fmt::Debug>(answer: Result<T, CallError>) -> Problem {
    let error = answer.unwrap_err();
    error.problem().unwrap_or_else(|| panic!("no problem, but {error:?}")).clone()
}

/// A cluster of one server.
pub(crate) struct Cluster {
    pub(crate) folder: TempDir,
    pub(crate) admin: Identity,
    pub(crate) trust: Trust,
    token: String,
    address: ServerAddress,
    running: Option<Running>,
}
struct Running {
    shutdown: Shutdown,
    server: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let options = InitOptions {
            state_dir: folder.path().to_owned(),
            name: "test".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: vec!["127.0.0.1:7420".parse().unwrap()],
            store: StoreChoice::Embedded,
            pool: AddressPool::default(),
            network: Default::default(),
        };
        let made = init(options, &clock).await.unwrap();
        let mut cluster = Self {
            folder,
            admin: made.admin,
            trust: made.trust,
            token: made.token.to_string(),
            address: "127.0.0.1:1".parse().unwrap(),
            running: None,
        };
        cluster.run().await;
        cluster
    }

    /// Runs the server in the folder.
    #[expect(clippy::disallowed_methods, reason = "the server is the test's own")]
    pub(crate) async fn run(&mut self) {
        let mut options = RunOptions::new(self.folder.path());
        options.leases.node = Duration::from_secs(2);
        options.leases.pace = Duration::from_secs(1);
        options.transport = timing();
        let server = Server::build(options, Arc::new(SystemClock::new())).await.unwrap();
        self.address = server.address().into();
        let shutdown = Shutdown::new();
        let asked = shutdown.clone();
        let server = tokio::spawn(async move { server.run(&asked).await });
        self.running = Some(Running { shutdown, server });
    }

    /// Stops the server; says how long it took.
    pub(crate) async fn stop(&mut self) -> Duration {
        let Running { shutdown, server } = self.running.take().unwrap();
        let began = std::time::Instant::now();
        shutdown.request();
        within(server).await.unwrap().unwrap();
        began.elapsed()
    }

    pub(crate) fn store_file(&self) -> PathBuf {
        self.folder.path().join("cluster.redb")
    }
    pub(crate) fn dialer(&self, identity: Option<&Identity>, protocol: Protocol) -> Dialer {
        let anchor = Anchor::Authority(self.trust.clone());
        Dialer::new(&anchor, identity, protocol, timing(), system_time()).unwrap()
    }
    /// A client with the first user's certificate.
    pub(crate) async fn admin(&self) -> Api {
        self.client(Some(&self.admin)).await
    }
    pub(crate) async fn client(&self, identity: Option<&Identity>) -> Api {
        let dialer = self.dialer(identity, Protocol::Api);
        Api(within(dialer.dial(std::slice::from_ref(&self.address))).await.unwrap())
    }

    /// A node that has joined; its agent runs.
    pub(crate) async fn node(&self, name: &str) -> Node {
        let joined = self.join(name).await.unwrap();
        self.agent(name, joined).await
    }
    /// Joins as a machine does, and is no more than joined.
    pub(crate) async fn join(&self, name: &str) -> Result<(NodeId, Identity), CallError> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let request = JoinRequest {
            token: self.token.clone(),
            csr,
            facts: JoinFacts {
                name: name.parse().unwrap(),
                hostname: name.into(),
                address: None,
                version: "0.1.0".into(),
            },
            client_time: Timestamp(SystemClock::new().now().0),
            rejoin: None,
        };
        let api = self.client(None).await;
        let answer: JoinResponse = within(api.0.call(Method::POST, wire::JOIN, &request)).await?;
        Ok((answer.node, Identity { certificate: answer.certificate, key: key.serialize_pem() }))
    }
    async fn agent(&self, name: &str, (id, identity): (NodeId, Identity)) -> Node {
        let fake = Arc::new(Fake::new(id, name));
        let tasks = Tasks::new(&Shutdown::new());
        let stop = CancellationToken::new();
        let dialer = self.dialer(Some(&identity), Protocol::Node);
        let serving = serve(dialer, self.address.clone(), Arc::clone(&fake), stop.clone());
        tasks.spawn("agent", serving);
        let api = self.admin().await;
        let node = Node { id, identity, fake, stop, tasks };
        eventually(async || (api.node(name).await.state == "ready").then_some(())).await;
        node
    }
    /// The same node again, after it was away or the server.
    pub(crate) async fn reconnect(&self, node: &Node) -> Node {
        self.agent(&node.fake.name, (node.id, node.identity.clone())).await
    }
}
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.shutdown.request_immediate();
        }
    }
}

/// What clients ask.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Client);
impl Api {
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        within(self.0.get(path)).await
    }
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<T, CallError> {
        within(self.0.call(method, path, body)).await
    }
    pub(crate) async fn node(&self, name: &str) -> v1::Node {
        self.get(&format!("/v1/nodes/{name}")).await.unwrap()
    }
    pub(crate) async fn app(&self, app: &str) -> AppStatus {
        self.get(&format!("/v1/apps/prod/{app}")).await.unwrap()
    }
    pub(crate) async fn plan(&self, app: &str, action: Action) -> Result<Plan, CallError> {
        within(self.0.call(Method::POST, &format!("/v1/apps/prod/{app}/plan"), &PlanRequest { action })).await
    }
    pub(crate) async fn apply(
        &self,
        app: &str,
        action: Action,
        fingerprint: &str,
        supersede: bool,
    ) -> Result<Applied, CallError> {
        let request = ApplyRequest {
            action,
            fingerprint: fingerprint.into(),
            client: "ada@laptop".into(),
            supersede,
            message: None,
            source: None,
        };
        within(self.0.call(Method::POST, &format!("/v1/apps/prod/{app}/apply"), &request)).await
    }
    /// Plans and does it.
    pub(crate) async fn act(&self, app: &str, action: Action) -> Result<Applied, CallError> {
        let plan = self.plan(app, action.clone()).await?;
        self.apply(app, action, &plan.fingerprint, false).await
    }
    /// Plans it, does it, and waits until it is done.
    pub(crate) async fn done(&self, app: &str, action: Action) -> AppStatus {
        let applied = self.act(app, action).await.unwrap();
        eventually(async || {
            let status = self.app(app).await;
            let over = status.app.rollout.generation == applied.generation
                && status.app.rollout.state != "progressing";
            assert!(!over || status.app.rollout.state == "done", "{:?}", status.app.rollout);
            over.then_some(status)
        })
        .await
    }
    pub(crate) async fn lines<T: DeserializeOwned>(&self, path: &str) -> LineReader<T> {
        let response = within(self.0.open(Method::GET, path, empty())).await.unwrap();
        LineReader::new(response.into_body(), timing().stream_silence())
    }
    /// Every line there is, of a stream that ends.
    pub(crate) async fn all<T: DeserializeOwned>(&self, path: &str) -> Vec<T> {
        let mut lines = self.lines(path).await;
        let mut all = Vec::new();
        while let Some(line) = within(lines.next()).await.unwrap() {
            all.push(line);
        }
        all
    }
}

/// `up` of an app with these services: each its image and its number of tasks.
#[expect(clippy::needless_pass_by_value, reason = "called with what was made for it")]
pub(crate) fn up(app: &str, services: Value) -> Action {
    up_with(json!({ "name": app, "services": services }))
}
pub(crate) fn up_with(spec: Value) -> Action {
    Action::Up { spec: serde_json::from_value(spec).unwrap(), pull: false, built: Default::default() }
}
pub(crate) fn web(version: u32) -> Value {
    json!({ "web": { "image": format!("web:{version}"), "mode": { "kind": "replicated", "replicas": 1 } } })
}

/// A made-up node, cut off when dropped.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    pub(crate) fake: Arc<Fake>,
    stop: CancellationToken,
    tasks: Tasks,
}
impl Node {
    /// The connection breaks.
    pub(crate) async fn cut(self) {
        self.stop.cancel();
        let _ = within(self.tasks.clone().shutdown(Duration::from_secs(5))).await;
    }
}
impl Node {
    /// Whether the server has ended its session.
    pub(crate) async fn is_cut_off(&self) -> bool {
        self.fake.sessions.load(Relaxed) == 0
    }
}
impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What it makes of what it is told.
pub(crate) struct Fake {
    id: NodeId,
    name: String,
    pub(crate) set: Mutex<Option<AssignmentSet>>,
    statuses: Mutex<BTreeMap<TaskId, TaskStatus>>,
    removed: Mutex<Vec<VolumeId>>,
    /// New tasks stay where they are until this is cleared.
    pub(crate) stuck: watch::Sender<bool>,
    /// It goes on with the names and routes of this set, whatever it is told.
    deaf: Mutex<Option<(u64, Revision)>>,
    /// What its gateway has under way with tasks that it sends nothing new to.
    draining: Mutex<BTreeMap<TaskId, u64>>,
    /// What it hears of others.
    peers: Mutex<PeerView>,
    /// It gives no sign of life, and its session goes on.
    mute: watch::Sender<bool>,
    /// What it was granted: the number that was answered, and when.
    pub(crate) grants: Mutex<Vec<(Option<u64>, Timestamp)>>,
    changed: watch::Sender<u64>,
    sequence: AtomicU64,
    /// Sessions that are open.
    sessions: AtomicU64,
    /// What `logs` answers with.
    pub(crate) output: Mutex<Vec<OutputLine>>,
    /// What its gateway has counted.
    gateway: Mutex<GatewayStats>,
}
impl Fake {
    fn new(id: NodeId, name: &str) -> Self {
        Self {
            id,
            name: name.into(),
            set: Mutex::default(),
            statuses: Mutex::default(),
            removed: Mutex::default(),
            stuck: watch::Sender::new(false),
            deaf: Mutex::default(),
            draining: Mutex::default(),
            peers: Mutex::default(),
            mute: watch::Sender::new(false),
            grants: Mutex::default(),
            changed: watch::Sender::new(0),
            sequence: AtomicU64::new(1),
            sessions: AtomicU64::new(0),
            output: Mutex::default(),
            gateway: Mutex::default(),
        }
    }
    /// Its gateway answers so many requests by each set that its routes lead to, of which so many fail: those of the newest set.
    pub(crate) fn answer(&self, requests: u64, failures: u64) {
        let set = self.set.lock().unwrap().clone();
        let mut counted = GatewayStats::default();
        for route in set.iter().flat_map(|set| &set.routes.services) {
            let newest = route.sets.iter().map(|set| set.generation).max();
            let sets = route.sets.iter().filter(|set| set.weight > 0).map(|set| {
                let failures = if Some(set.generation) == newest { failures } else { 0 };
                (set.generation, SetStats { requests, failures, ..SetStats::default() })
            });
            let stats = RouteStats { sets: sets.collect(), ..RouteStats::default() };
            counted.routes.push(RouteReport { route: route.id.clone(), stats });
        }
        self.gateway.lock().unwrap().add(&counted);
    }
    fn now() -> Timestamp {
        Timestamp(SystemClock::new().now().0)
    }
    /// Says something of a task, its own or not.
    pub(crate) fn say(&self, task: TaskId, mut status: TaskStatus) {
        status.sequence = self.sequence.fetch_add(1, Relaxed);
        self.statuses.lock().unwrap().insert(task, status);
        self.changed.send_modify(|count| *count += 1);
    }
    pub(crate) fn status(&self, task: TaskId) -> TaskStatus {
        self.statuses.lock().unwrap().get(&task).cloned().unwrap_or_default()
    }
    /// From now on it goes on with the names and routes that it serves, or serves what it is told again.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        let served = self.set.lock().unwrap().as_ref().map(|set| (set.epoch, set.revision));
        *self.deaf.lock().unwrap() = served.filter(|_| deaf);
        self.changed.send_modify(|count| *count += 1);
    }
    /// Its gateway has so many requests under way with a task.
    pub(crate) fn set_under_way(&self, task: TaskId, requests: u64) {
        let draining = &mut *self.draining.lock().unwrap();
        draining.retain(|other, _| *other != task);
        draining.extend((requests > 0).then_some((task, requests)));
        self.changed.send_modify(|count| *count += 1);
    }
    /// It hears these, and misses those.
    pub(crate) fn set_heard(&self, heard: &[NodeId], silent: &[NodeId]) {
        let ids = |nodes: &[NodeId]| nodes.iter().copied().collect();
        *self.peers.lock().unwrap() = PeerView { heard: ids(heard), silent: ids(silent) };
        self.changed.send_modify(|count| *count += 1);
    }
    /// It gives no sign of life any more, or does again.
    pub(crate) fn set_mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }
    /// Lets tasks that were held up go on.
    pub(crate) fn go_on(&self) {
        self.stuck.send_replace(false);
        self.work();
    }
    fn work(&self) {
        let Some(set) = self.set.lock().unwrap().clone() else { return };
        for task in set.tasks.values() {
            let status = self.status(task.id);
            if status.phase.is_over() {
                continue;
            }
            match task.target {
                Target::Run if status.phase == Phase::Running || *self.stuck.borrow() => {}
                // A command around a release ends at once, and `false` fails.
                Target::Run if task.name.contains("-before-") || task.name.contains("-after-") => {
                    let fails = task.spec.container.command == Some(vec!["false".to_owned()]);
                    let phase = if fails { Phase::Failed } else { Phase::Complete };
                    let exit = Some(wharf_model::Exit { code: i64::from(fails), oom: false });
                    let last_log = if fails { vec!["no such table".to_owned()] } else { Vec::new() };
                    let (started_at, ended_at) = (Some(Self::now()), Some(Self::now()));
                    self.say(
                        task.id,
                        TaskStatus { phase, exit, last_log, started_at, ended_at, ..TaskStatus::default() },
                    );
                }
                Target::Run => self.say(
                    task.id,
                    TaskStatus {
                        phase: Phase::Running,
                        // What is checked counts at once; what is not, once it has run for a while.
                        health: Health::Healthy,
                        container: Some(format!("c-{}", task.id)),
                        started_at: Some(Self::now()),
                        ready_at: Some(Self::now()),
                        ..TaskStatus::default()
                    },
                ),
                Target::Stop => self.say(
                    task.id,
                    TaskStatus { phase: Phase::Stopped, ended_at: Some(Self::now()), ..status },
                ),
            }
        }
        let gone = &mut *self.removed.lock().unwrap();
        for volume in &set.removed_volumes {
            if !gone.contains(volume) {
                gone.push(*volume);
                self.changed.send_modify(|count| *count += 1);
            }
        }
    }
    fn reports(&self) -> Vec<Report> {
        let facts = NodeFacts {
            hostname: self.name.clone(),
            address: [127, 0, 0, 1].into(),
            platform: Platform { os: "linux".into(), arch: "amd64".into() },
            cpus: Cpus(4000),
            memory: Bytes(8 << 30),
            disk: None,
            images: Vec::new(),
            kernel: "6.1".into(),
            cgroup_version: 2,
            agent_version: "0.1.0".into(),
            engine: Some(EngineFacts {
                version: "20.10.24".into(),
                api_version: "1.41".into(),
                labels: BTreeMap::new(),
                live_restore: true,
                storage_driver: "overlay2".into(),
            }),
            engine_error: None,
            taken_ports: vec![],
            devices: Vec::new(),
            subnets: vec![],
            wireguard: None,
            seen_from: None,
            disks: Vec::new(),
            cleanup: None,
        };
        let (epoch, observed) =
            self.set.lock().unwrap().as_ref().map_or((0, Revision(0)), |set| (set.epoch, set.revision));
        let (epoch, observed) = self.deaf.lock().unwrap().unwrap_or((epoch, observed));
        // As a real one does, of what its routes no longer have.
        let mut draining = self.draining.lock().unwrap().clone();
        let set = self.set.lock().unwrap().clone();
        let routes = set.iter().flat_map(|set| &set.routes.routes);
        let led_to: Vec<_> =
            routes.flat_map(|route| &route.endpoints).map(|endpoint| endpoint.task).collect();
        draining.retain(|task, _| !led_to.contains(task));
        let peers = self.peers.lock().unwrap().clone();
        let node = NodeReport { sequence: 1, epoch, observed, facts, problems: vec![], draining, peers };
        let statuses = self.statuses.lock().unwrap().clone();
        let tasks =
            statuses.into_iter().map(|(task, status)| Report::Task(Box::new(TaskReport { task, status })));
        let removed = self.removed.lock().unwrap().clone();
        [Report::Node(Box::new(node))]
            .into_iter()
            .chain(tasks)
            .chain(removed.into_iter().map(Report::VolumeRemoved))
            .chain([Report::Synced])
            .collect()
    }
}

async fn serve(dialer: Dialer, address: ServerAddress, fake: Arc<Fake>, stop: CancellationToken) {
    let router = routes(Arc::clone(&fake));
    while !stop.is_cancelled() {
        if let Ok(stream) = dialer.connect(&address).await {
            let router = router.clone();
            let service =
                service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
            let mut connection = pin!(reverse::serve(stream, service, &timing()));
            fake.sessions.fetch_add(1, Relaxed);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stop.cancelled() => return,
            }
            fake.sessions.fetch_sub(1, Relaxed);
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), stop.cancelled()).await;
    }
}

fn routes(fake: Arc<Fake>) -> Router {
    Router::new()
        .route("/v1/assignments", put(assign))
        .route("/v1/lease", put(lease))
        .route("/v1/reports", get(reports))
        .route("/v1/servers", put(async || ()))
        .route("/v1/images/resolve", post(resolve))
        .route("/v1/tasks/{id}/logs", get(logs))
        .route("/v1/gateway/routes", get(gateway))
        .route("/v1/tasks/{id}/exec", post(exec))
        .route("/v1/tasks/{id}/stats", get(async || Json(TaskUsage { pids: 3, ..TaskUsage::default() })))
        .route(
            "/v1/tasks/{id}/inspect",
            get(async |Path(task): Path<TaskId>| Json(json!({ "Id": format!("c-{task}") }))),
        )
        .with_state(fake)
}

/// As an agent of an older build: it takes whole sets, and knows of nothing else.
async fn assign(State(fake): State<Arc<Fake>>, Json(set): Json<AssignmentSet>) -> Response {
    assert_eq!(set.node, fake.id, "a node is sent its own assignments only");
    let have = Have { epoch: set.epoch, revision: set.revision };
    let held =
        fake.set.lock().unwrap().as_ref().map(|held| Have { epoch: held.epoch, revision: held.revision });
    if let Some(held) = held.filter(|held| *held > have) {
        return (StatusCode::CONFLICT, Json(held)).into_response();
    }
    *fake.set.lock().unwrap() = Some(set);
    fake.work();
    // It serves these names and routes from now on, unless it is held up.
    fake.changed.send_modify(|count| *count += 1);
    Json(have).into_response()
}

async fn lease(State(fake): State<Arc<Fake>>, Json(grant): Json<LeaseGrant>) -> Response {
    let number = fake.sequence.fetch_add(1, Relaxed);
    fake.grants.lock().unwrap().push((grant.answers, Fake::now()));
    Json(LeaseAnswer { number }).into_response()
}

async fn reports(State(fake): State<Arc<Fake>>) -> Response {
    let changed = fake.changed.subscribe();
    let said = stream::unfold((fake, changed, true), |(fake, mut changed, first)| async move {
        if !first {
            let _ = tokio::time::timeout(Duration::from_secs(1), changed.changed()).await;
        }
        let _ = fake.mute.subscribe().wait_for(|mute| !mute).await;
        changed.borrow_and_update();
        let mut reports = fake.reports();
        reports.push(Report::Heartbeat);
        Some((stream::iter(reports), (fake, changed, false)))
    });
    let lines = said.flatten().map(Ok::<_, std::convert::Infallible>);
    Response::new(Body::new(json_lines(lines, Duration::from_secs(1))))
}

async fn gateway(State(fake): State<Arc<Fake>>) -> Response {
    Json(fake.gateway.lock().unwrap().clone()).into_response()
}

async fn resolve(Json(wish): Json<ResolveImage>) -> Response {
    if wish.reference.starts_with("missing") {
        let problem = json!({ "code": "invalid", "message": format!("image {} does not exist", wish.reference), "hint": "check the spelling" });
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response();
    }
    let digest = Some(format!("sha256:{:0>64}", hex::encode(&wish.reference)));
    Json(Image { reference: wish.reference, digest, id: None, built: None }).into_response()
}

async fn logs(State(fake): State<Arc<Fake>>, Query(query): Query<LogsQuery>) -> Response {
    let lines: Vec<_> = {
        let output = fake.output.lock().unwrap();
        let since = query.since.unwrap_or(Timestamp(0));
        output.iter().filter(|line| line.at >= since).cloned().collect()
    };
    let skipped = query.tail.map_or(0, |tail| lines.len().saturating_sub(usize::try_from(tail).unwrap()));
    let now = stream::iter(lines.into_iter().skip(skipped));
    let later = stream::pending().take(if query.follow { 1 } else { 0 });
    let lines = now.chain(later).map(Ok::<OutputLine, std::convert::Infallible>);
    Response::new(Body::new(json_lines(lines, Duration::from_secs(1))))
}

/// Gives back what it gets, and then ends with code 7.
#[expect(clippy::disallowed_methods, reason = "the task is the test's own")]
async fn exec(body: Body) -> Response {
    let mut input = FrameReader::new(body, timing().stream_silence());
    assert!(matches!(input.next().await, Ok(Some(Frame::Start(_)))));
    let (output, frames) = FrameSender::channel(Duration::from_secs(1));
    tokio::spawn(async move {
        while let Ok(Some(frame)) = input.next().await {
            let answer = match frame {
                Frame::Stdin(data) => Frame::Stdout(data),
                Frame::StdinEnd => Frame::Exit(ExitCode { code: 7 }),
                _ => continue,
            };
            if output.send(answer).await.is_err() {
                return;
            }
        }
    });
    Response::new(Body::new(frames))
}

/// A line a task printed.
pub(crate) fn printed(at: u64, text: &str) -> OutputLine {
    OutputLine { at: Timestamp(at), stream: OutputStream::Stdout, text: text.into() }
}
