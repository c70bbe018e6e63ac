//! Ties the node together: assignments in, networks, volumes and task loops at work, reports out.
//!
//! - One pass serves the set that is held: task loops get their orders, the kernel its networks, names and routes are published. It asks
//!   the engine nothing, so that no name is stale because an engine is slow. Another one follows it: it tends the engine's networks, and
//!   removes what nobody wants any more. Both may be cut off anywhere and made again.
//! - The address of a task that has ended here is answered no more as soon as this node knows; no server is waited for.
//! - What a pass or a loop is told is never what happened, only that it should look.
//! - Containers, networks and volumes are removed only if they carry this cluster's labels and a set that is held does
//!   not want them. Without a set nothing is removed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{Stream, StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use wharf_api::transport::node::{Prune, Pruned};
use wharf_model::{
    AssignmentSet, Backend, DnsTable, Endpoint, GatewayStats, HostSubnet, Image, NetworkAssignment,
    NetworkId, NodeId, NodeReport, Phase, PullPolicy, RouteTable, TaskAssignment, TaskId, Timestamp,
    VolumeId, WireguardAssignment, WireguardFacts,
};
use wharf_process::{Clock, Tasks, blocking, detached::Program, errors};

use crate::{
    assignments::{Assignments, Refused},
    departed::Departed,
    dns::{Source, Sources},
    facts::{Machine, listening_ports},
    fence::Fence,
    housekeeping::{
        Housekeeper, Wanted,
        disks::{Disks, NoDisks},
    },
    images::Images,
    lease::Lease,
    network::{
        KernelNetwork, Mend, host_subnets,
        sandbox::{Family, Sandbox, sandboxes},
    },
    peers::{
        self, Doors, Echoes, Heard, Hearsay, Own, Silence, Telling, Unheard, Voice, Watching, neighbours,
    },
    registry::RegistryLogins,
    reports::{Report, Reports},
    runtime::{
        Container, ContainerId, ExecRequest, ExecSession, LogQuery, LogStream, Result, Runtime, RuntimeError,
        RuntimeFacts, Stats, container_name, spec::DEFAULT_GRACE,
    },
    tasks::{Order, Orders, Plane, Prepared, Shared, TaskLoop, files::FileFolders},
};

/// Between passes that nobody asked for.
const FULL_PASS: Duration = Duration::from_secs(60);
/// As long the engine is taken to have what it had, unless there is a sign that it has not. Less than a full pass, so that each looks.
const TIDY: Duration = Duration::from_secs(50);
/// Between passes that nobody asked for, if names were not served yet.
const UNSERVED: Duration = Duration::from_millis(500);
/// Between looks at the engine and the machine.
const LOOK: Duration = Duration::from_secs(15);
/// Between attempts to follow an engine's events.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Events are asked for from a little before the last one: a clock has only so many digits.
const OVERLAP: u64 = 1_000;
/// Between looks whether the process that ends containers runs, while there are any that must be.
const FENCE: Duration = Duration::from_secs(5);
/// The MTU of networks between nodes if the kernel's side does not say: VXLAN on Ethernet.
const USUAL_MTU: u32 = 1450;

/// The kernel's side of the node's networks, and the names served on them.
#[async_trait]
pub trait NetworkPlane: Send + Sync {
    /// Makes the kernel as these networks say, all of them and no others; answers what could not be done, by network.
    /// Called before containers on them start.
    async fn prepare(&self, networks: &BTreeMap<NetworkId, NetworkAssignment>)
    -> BTreeMap<NetworkId, String>;
    /// Makes the node's tunnels as assigned, all of them and no others; what could not be done is among the problems. Called before
    /// networks are prepared.
    async fn prepare_tunnels(&self, _assignment: Option<&WireguardAssignment>) {}
    /// What the node says of its end of tunnels, if it can have any.
    fn tunnels(&self) -> Option<WireguardFacts> {
        None
    }
    /// The largest packet of networks with this backend, if that is known.
    async fn mtu(&self, backend: Backend) -> Option<u32>;
    /// Serves these names from now on; `sources` says who asks. Whether none of an older table is served
    /// any more: if not, they will be, and this is asked again.
    async fn publish(&self, table: &DnsTable, sources: &Sources) -> bool;
    /// Programs virtual addresses and ways back to gateways into the containers that run, as these say. Whether none is left in which
    /// connections may begin that should not.
    async fn program(&self, _wanted: BTreeMap<TaskId, Sandbox>) -> bool {
        true
    }
    /// A task's container runs as this process: what belongs there is programmed. Answers the gateways to which it can send answers back.
    async fn started(&self, _task: TaskId, _pid: i64) -> BTreeSet<IpAddr> {
        BTreeSet::new()
    }
    /// A task's container does not run any more.
    async fn ended(&self, _task: TaskId) {}
    /// Whether a gateway runs here that connects from its clients' addresses of this family.
    ///
    /// # Errors
    /// Why the node cannot bring it the answers, in words for people.
    async fn serve_entry(&self, _family: Family, _wanted: bool) -> std::result::Result<(), String> {
        Err("this node programs no ways back to its gateway".to_owned())
    }
    /// Removes what is left of networks that are no longer prepared, except the bridges in `keep`.
    async fn clean_up(&self, keep: BTreeSet<String>);
    /// What is not as it should be, in words for people.
    fn problems(&self) -> Vec<String>;
    /// Compares the kernel with what was last prepared, and mends it; what that was is in [`NetworkPlane::mends`] afterwards.
    ///
    /// # Errors
    /// Why it could not be done, in words for people.
    async fn repair(&self) -> std::result::Result<(), String> {
        Ok(())
    }
    /// What was mended lately, the oldest first.
    fn mends(&self) -> Vec<Mend> {
        Vec::new()
    }
}

#[async_trait]
impl NetworkPlane for KernelNetwork {
    async fn prepare(
        &self,
        networks: &BTreeMap<NetworkId, NetworkAssignment>,
    ) -> BTreeMap<NetworkId, String> {
        match Self::prepare(self, networks).await {
            Ok(pass) => pass.problems,
            Err(error) => {
                let error = errors::chain(&error);
                networks.keys().map(|id| (*id, error.clone())).collect()
            }
        }
    }
    async fn prepare_tunnels(&self, assignment: Option<&WireguardAssignment>) {
        Self::prepare_tunnels(self, assignment).await;
    }
    fn tunnels(&self) -> Option<WireguardFacts> {
        Self::tunnels(self).map(|tunnels| tunnels.facts())
    }
    async fn mtu(&self, backend: Backend) -> Option<u32> {
        Self::mtu(self, backend)
            .await
            .inspect_err(|error| tracing::warn!(error = errors::chain(error), "MTU not known"))
            .ok()
    }
    async fn publish(&self, table: &DnsTable, sources: &Sources) -> bool {
        Self::publish(self, table, sources).await
    }
    async fn program(&self, wanted: BTreeMap<TaskId, Sandbox>) -> bool {
        Self::program(self, wanted).await
    }
    async fn started(&self, task: TaskId, pid: i64) -> BTreeSet<IpAddr> {
        Self::started(self, task, pid).await
    }
    async fn ended(&self, task: TaskId) {
        Self::ended(self, task).await;
    }
    async fn serve_entry(&self, family: Family, wanted: bool) -> std::result::Result<(), String> {
        Self::serve_entry(self, family, wanted).await
    }
    async fn clean_up(&self, keep: BTreeSet<String>) {
        if let Err(error) = self.remove_bridges(keep).await {
            tracing::warn!(error = errors::chain(&error), "bridges not removed");
        }
    }
    fn problems(&self) -> Vec<String> {
        Self::problems(self)
    }
    async fn repair(&self) -> std::result::Result<(), String> {
        Self::repair(self).await.map(drop).map_err(|error| errors::chain(&error))
    }
    fn mends(&self) -> Vec<Mend> {
        Self::mends(self)
    }
}

/// The node's entry for published ports and routes.
#[async_trait]
pub trait Entry: Send + Sync {
    /// Serves these routes from now on. Whether nothing can begin any more by an older table: if not yet, it will be so, and this is asked
    /// again.
    async fn publish(&self, routes: &RouteTable) -> bool;
    /// What is not as it should be, such as a port that something else holds.
    fn problems(&self) -> Vec<String>;
    /// The ports it holds itself; none while that is not known yet.
    fn ports(&self) -> Option<BTreeSet<u16>>;
    /// Tasks that the routes it serves do not have, and what is still under way with each. Complete once [`Entry::publish`] has answered yes.
    fn draining(&self) -> BTreeMap<TaskId, u64>;
    /// Tells when what it says may have changed.
    fn changes(&self) -> watch::Receiver<()>;
    /// What went through it.
    async fn stats(&self) -> GatewayStats;
}

/// What a node is and where it keeps things.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its identifier.
    pub node: NodeId,
    /// What it runs on.
    pub machine: Machine,
    /// What must outlive a reboot.
    pub state_dir: PathBuf,
    /// What must not: secrets, in memory.
    pub run_dir: PathBuf,
    /// A `config.json` with logins of registries.
    pub logins: Option<PathBuf>,
    /// The engine's socket, for building images and bringing them from other nodes; without one neither is done.
    pub engine: Option<PathBuf>,
    /// Images pulled at once.
    pub pulls: usize,
    /// Containers made and started at once.
    pub starts: usize,
    /// Refuse to write secrets where they could reach a disk. Only tests say no.
    pub secrets_in_memory: bool,
    /// Say which ports and subnets of this machine are somebody else's. Only simulations say no: their nodes are not on a machine of their own.
    pub looks_at_machine: bool,
    /// Ports that Wharf's own processes on this node listen on.
    pub own_ports: BTreeSet<u16>,
    /// Seeds the pauses between attempts.
    pub seed: u64,
    /// Looks at the machine's file systems.
    pub disks: Arc<dyn Disks>,
    /// The process that ends what must not run twice if this agent does not; nobody if absent.
    pub fence: Option<Program>,
}

impl NodeConfig {
    /// The usual: three pulls and four starts at once, no logins, nothing known of file systems.
    pub fn new(node: NodeId, machine: Machine, state_dir: PathBuf, run_dir: PathBuf) -> Self {
        Self {
            node,
            machine,
            state_dir,
            run_dir,
            logins: None,
            engine: None,
            pulls: 3,
            starts: 4,
            secrets_in_memory: true,
            looks_at_machine: true,
            own_ports: BTreeSet::new(),
            seed: 0,
            disks: Arc::new(NoDisks),
            fence: None,
        }
    }
    /// Where volumes have their folders.
    pub fn volumes(&self) -> PathBuf {
        self.state_dir.join("volumes")
    }
}

/// One node at work. Clones are the same node.
#[derive(Clone)]
pub struct NodeAgent {
    inner: Arc<Inner>,
}
impl std::fmt::Debug for NodeAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeAgent").field("node", &self.inner.config.node).finish_non_exhaustive()
    }
}

struct Inner {
    config: NodeConfig,
    runtime: Arc<dyn Runtime>,
    plane: Arc<dyn NetworkPlane>,
    entry: Option<Arc<dyn Entry>>,
    clock: Arc<dyn Clock>,
    assignments: Mutex<Assignments>,
    /// No server has spoken since the start: secrets have no content.
    from_disk: AtomicBool,
    reports: Reports,
    shared: Arc<Shared>,
    prepared: watch::Sender<Arc<Prepared>>,
    loops: Mutex<BTreeMap<TaskId, Handle>>,
    /// Unwanted containers that are being removed.
    going: Mutex<BTreeSet<ContainerId>>,
    /// Reason for a pass.
    wake: Arc<Notify>,
    /// What the engine is tended by.
    served: watch::Sender<Option<Served>>,
    engine: Mutex<Result<RuntimeFacts>>,
    /// Whether the engine has been asked at all: before that there is nothing to report.
    asked: AtomicBool,
    /// What the last pass could not do.
    problems: Mutex<Vec<String>>,
    /// Epoch and revision of the set whose names and routes are served.
    observed: Mutex<Order>,
    /// The names of the last pass were not served yet when it went on.
    unserved: AtomicBool,
    /// Containers that ran before this agent are known to the plane.
    adopted: AtomicBool,
    /// Why tasks do not see the addresses of clients of published ports.
    unkept: Mutex<Vec<String>>,
    /// How other nodes are listened for, until somebody does.
    echoes: Mutex<Option<Box<dyn Echoes>>>,
    /// How other nodes are spoken with, until somebody does.
    voice: Mutex<Option<Voice>>,
    /// Where servers are.
    servers: Mutex<BTreeSet<IpAddr>>,
    /// Whether a server hears this node, as far as can be told.
    heard: watch::Sender<bool>,
    /// The tasks of the set that have not ended; none before a set is held.
    alive: watch::Sender<Option<BTreeSet<TaskId>>>,
    /// The tasks of other nodes that have ended, by what these say.
    gone: Mutex<BTreeSet<TaskId>>,
    /// The nodes that do not answer this one.
    silence: Mutex<Silence>,
    /// What was last read of the machine.
    outside: Mutex<Option<Outside>>,
    /// When what the engine has was last found to be what is wanted.
    looked_at: Mutex<Option<Duration>>,
}

/// What the kernel says of the machine. Its table of connections has room for so many that reading it takes a millisecond, however few there are.
struct Outside {
    at: Duration,
    /// Ports on which something listens.
    ports: BTreeSet<u16>,
    /// Those of others, by what was ours then.
    taken: Vec<u16>,
    subnets: std::result::Result<Vec<HostSubnet>, String>,
}

/// A set whose names, routes and kernel networks are served, and what the kernel could not do of it.
type Served = (Arc<AssignmentSet>, Arc<BTreeMap<NetworkId, String>>);

struct Handle {
    orders: watch::Sender<Orders>,
    nudge: Arc<Notify>,
    task: wharf_process::Task<()>,
}

impl NodeAgent {
    /// A node that holds what it held when it last ran. Nothing runs yet.
    ///
    /// # Errors
    /// If what it held cannot be read.
    pub fn new(
        config: NodeConfig,
        runtime: Arc<dyn Runtime>,
        plane: Arc<dyn NetworkPlane>,
        entry: Option<Arc<dyn Entry>>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let assignments = Assignments::load(config.node, &config.state_dir)?;
        let reports = Reports::new(Arc::clone(&clock));
        let (prepared, watching) = watch::channel(Arc::default());
        let wake = Arc::new(Notify::new());
        let images = Arc::new(Images::new(config.engine.clone(), RegistryLogins::new(config.logins.clone())));
        let house = Arc::new(Housekeeper::new(
            Arc::clone(&runtime),
            Arc::clone(&images),
            Arc::clone(&clock),
            Arc::clone(&config.disks),
            config.state_dir.clone(),
        ));
        let shared = Arc::new(Shared {
            wake: Arc::clone(&wake),
            house,
            ran: config.run_dir.join("ran"),
            untidy: AtomicBool::new(true),
            ended: Mutex::default(),
            runtime: Arc::clone(&runtime),
            reports: reports.clone(),
            clock: Arc::clone(&clock),
            statuses: config.state_dir.join("tasks"),
            files: FileFolders {
                configs: config.state_dir.join("configs"),
                secrets: config.run_dir.join("secrets"),
                secrets_in_memory: config.secrets_in_memory,
            },
            logins: RegistryLogins::new(config.logins.clone()),
            images,
            pulls: Semaphore::new(config.pulls.max(1)),
            starts: Semaphore::new(config.starts.max(1)),
            prepared: watching,
            pulling: Mutex::default(),
            plane: Plane(Arc::clone(&plane)),
            seed: config.seed,
            // What another process of this node has given is less: it grants this one nothing.
            lease: Lease::new(Arc::clone(&clock), clock.now().0 << 16),
            fence: Fence::new(config.fence.clone()),
        });
        let inner = Inner {
            config,
            runtime,
            plane,
            entry,
            clock,
            assignments: Mutex::new(assignments),
            from_disk: AtomicBool::new(true),
            reports,
            shared,
            prepared,
            loops: Mutex::default(),
            going: Mutex::default(),
            wake,
            served: watch::Sender::new(None),
            engine: Mutex::new(Err(RuntimeError::unreachable("the engine has not been asked yet"))),
            asked: AtomicBool::new(false),
            problems: Mutex::default(),
            observed: Mutex::default(),
            adopted: AtomicBool::new(false),
            unkept: Mutex::default(),
            unserved: AtomicBool::new(false),
            echoes: Mutex::default(),
            voice: Mutex::default(),
            servers: Mutex::default(),
            heard: watch::Sender::new(true),
            alive: watch::Sender::new(None),
            gone: Mutex::default(),
            silence: Mutex::default(),
            outside: Mutex::default(),
            looked_at: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Listens for other nodes by these from now on. To be called before [`NodeAgent::run`]; without, nobody is listened for.
    pub fn listen_by(&self, echoes: Box<dyn Echoes>) {
        *self.inner.echoes.lock() = Some(echoes);
    }

    /// Speaks with other nodes by this from now on, while no server can. To be called before [`NodeAgent::run`]; without, it tells them nothing
    /// and hears nothing.
    pub fn speak_by(&self, voice: Voice) {
        *self.inner.voice.lock() = Some(voice);
    }

    /// Takes note of where servers are.
    pub fn know_servers(&self, addresses: BTreeSet<IpAddr>) {
        *self.inner.servers.lock() = addresses;
    }

    /// The node's right to run tasks that must not run twice.
    pub fn lease(&self) -> &Lease {
        &self.inner.shared.lease
    }

    /// Works until `stop`, with task loops as tasks of `tasks`. Containers stay as they are when it ends.
    pub async fn run(self, tasks: &Tasks, stop: CancellationToken) {
        let inner = &self.inner;
        tokio::join!(
            inner.follow_engine(&stop),
            inner.look_around(&stop),
            inner.keep_house(&stop),
            inner.follow_entry(&stop),
            inner.listen_for_others(&stop),
            inner.speak_with_others(&stop),
            inner.follow_lease(&stop),
            Arc::clone(inner).work(tasks.clone(), stop.clone()),
            Arc::clone(inner).tend(tasks.clone(), stop.clone())
        );
    }

    /// Which node this is.
    pub fn node(&self) -> NodeId {
        self.inner.config.node
    }

    /// Epoch and revision of the set that is held.
    pub fn held(&self) -> Option<Order> {
        self.inner.held().map(|set| (set.epoch, set.revision))
    }

    /// Takes a set of assignments, keeps it, and works on it from now on.
    ///
    /// # Errors
    /// If it is another node's or older than the one held; then nothing has changed.
    pub async fn apply(&self, set: impl Into<Arc<AssignmentSet>>) -> Result<(), Refused> {
        let (inner, set) = (Arc::clone(&self.inner), set.into());
        // On a thread of its own: a set counts only when it is on disk.
        blocking(move || {
            let marks = set.disk_marks;
            let others = inner.held().is_none_or(|held| held.disk_marks != marks);
            inner.assignments.lock().accept(set)?;
            if others {
                inner.shared.house.wake();
            }
            inner.from_disk.store(false, Ordering::Release);
            inner.wake.notify_one();
            Ok(())
        })
        .await
    }

    /// Everything the node has to say, [`Report::Synced`], and then what changes.
    pub fn reports(&self) -> impl Stream<Item = Report> + Send + 'static {
        let reports = self.inner.reports.subscribe();
        // What has ended meanwhile is for whoever listens now.
        self.inner.nudge_all();
        reports
    }

    /// The node's latest report, once there is one.
    pub fn report(&self) -> Option<NodeReport> {
        self.inner.reports.latest_node()
    }

    /// Pins an image reference; with [`PullPolicy::Always`] the registry is asked also if this node has the image.
    pub async fn resolve_image(&self, reference: &str, policy: PullPolicy) -> Result<Image> {
        let login = self.inner.shared.logins.of(reference).await;
        let image = self.inner.runtime.resolve_image(reference, policy, login.as_ref()).await?;
        self.inner.shared.house.asked_about(&image).await;
        Ok(image)
    }

    /// Removes what nobody needs, or says what that would be.
    pub async fn prune(&self, ask: &Prune) -> Result<Pruned> {
        let pruned = self.inner.shared.house.prune(ask, &self.inner.wanted()).await?;
        self.inner.report().await;
        Ok(pruned)
    }

    /// Looks after what the engine keeps.
    pub(crate) fn house(&self) -> &Arc<Housekeeper> {
        &self.inner.shared.house
    }

    /// The images of the node's engine.
    pub fn images(&self) -> &Arc<Images> {
        &self.inner.shared.images
    }

    /// A task's output.
    pub async fn logs(&self, task: TaskId, query: LogQuery) -> Result<LogStream> {
        self.inner.runtime.logs(&self.inner.container(task)?, query).await
    }

    /// Runs a command in a task's container.
    pub async fn exec(&self, task: TaskId, request: &ExecRequest) -> Result<ExecSession> {
        self.inner.runtime.exec(&self.inner.container(task)?, request).await
    }

    /// What a task uses, again and again.
    pub async fn stats(&self, task: TaskId) -> Result<BoxStream<'static, Result<Stats>>> {
        self.inner.runtime.stats(&self.inner.container(task)?, true).await
    }

    /// What a task uses, averaged over the last second.
    pub async fn usage(&self, task: TaskId) -> Result<Stats> {
        let mut stream = self.stats(task).await?;
        let gone = || RuntimeError::not_found(format!("{task} does not run"));
        // The first measurement has nothing before it to be compared with.
        let first = stream.next().await.ok_or_else(gone)??;
        if first.cpu_millis > 0 { Ok(first) } else { stream.next().await.unwrap_or(Ok(first)) }
    }

    /// What the engine says of a task's container.
    pub async fn inspect(&self, task: TaskId) -> Result<serde_json::Value> {
        self.inner.runtime.inspect_raw(&self.inner.container(task)?).await
    }

    /// The set that is held.
    pub fn held_set(&self) -> Option<Arc<AssignmentSet>> {
        self.inner.held()
    }

    /// Whether the task's process is known to have ended here.
    #[cfg(test)]
    pub(crate) fn has_ended(&self, task: TaskId) -> bool {
        self.inner.shared.ended.lock().contains(&task)
    }

    /// What is said of a task, to whoever listens.
    #[cfg(test)]
    pub(crate) fn said_of(&self, task: TaskId) -> Option<wharf_model::TaskStatus> {
        self.inner.reports.of(task)
    }

    /// What went through the node's gateway; none if it has none.
    pub(crate) async fn gateway(&self) -> Option<GatewayStats> {
        Some(self.inner.entry.as_ref()?.stats().await)
    }

    /// The kernel's side of the networks.
    pub(crate) fn plane(&self) -> &dyn NetworkPlane {
        &*self.inner.plane
    }

    /// The address other nodes reach this one at.
    pub(crate) fn address(&self) -> std::net::IpAddr {
        self.inner.config.machine.address
    }

    /// The node's clock.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.inner.clock.now().0)
    }

    /// What the engine last said of itself, or why it does not answer.
    pub fn engine(&self) -> Result<RuntimeFacts> {
        self.inner.engine.lock().clone()
    }
}

impl Inner {
    fn held(&self) -> Option<Arc<AssignmentSet>> {
        self.assignments.lock().held().cloned()
    }

    fn container(&self, task: TaskId) -> Result<ContainerId> {
        let held = self.held();
        let assignment = held.as_ref().and_then(|set| set.tasks.get(&task));
        let assignment =
            assignment.ok_or_else(|| RuntimeError::not_found(format!("this node has no task {task}")))?;
        Ok(ContainerId(container_name(assignment)))
    }

    /// Follows the engine's events, and after each break looks at everything again.
    async fn follow_engine(&self, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut since = None;
        loop {
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Dropped with the agent only: the next one looks at everything.
                followed = self.follow_events(&mut since) => match followed {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(error) => {
                        tracing::warn!(error = %error, "engine's events not followed");
                        self.look_at_engine().await;
                    }
                }
            }
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                () = self.clock.sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Ends with an error when the engine went before anything came, and without when it went later.
    async fn follow_events(&self, since: &mut Option<Timestamp>) -> Result<()> {
        let from = since.get_or_insert(Timestamp(self.clock.now().0));
        let mut events = self.runtime.events(Some(Timestamp(from.0.saturating_sub(OVERLAP)))).await?;
        self.look_at_engine().await;
        // Whatever happened while nobody listened: everything is looked at.
        self.nudge_all();
        self.shared.look_at_engine();
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    *since = Some(event.at);
                    self.nudge(event.task);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "engine's events broke off");
                    self.look_at_engine().await;
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    fn nudge(&self, task: Option<TaskId>) {
        let loops = self.loops.lock();
        match task.and_then(|task| loops.get(&task)) {
            Some(handle) => handle.nudge.notify_one(),
            // A container of ours that nobody looks after.
            None => self.shared.look_at_engine(),
        }
    }

    fn nudge_all(&self) {
        self.loops.lock().values().for_each(|handle| handle.nudge.notify_one());
    }

    /// Keeps the node's report up to date.
    async fn look_around(&self, stop: &CancellationToken) {
        loop {
            self.look_at_engine().await;
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                () = self.clock.sleep(LOOK) => {}
            }
        }
    }

    /// Keeps the disks from filling up, and says how they are.
    async fn keep_house(&self, stop: &CancellationToken) {
        let house = &self.shared.house;
        loop {
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Dropped with the agent only: what was removed is removed, and the rest is found again.
                news = async { house.look(&self.wanted()).await } => if news { self.report().await }
            }
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: a notification that is not taken is kept.
                () = house.wait() => {}
            }
        }
    }

    /// What the held set says of what is to be kept.
    fn wanted(&self) -> Wanted {
        let data_root = self.engine.lock().as_ref().ok().and_then(|facts| facts.data_root.clone());
        let Some(set) = self.held() else { return Wanted { data_root, ..Wanted::default() } };
        let ids = set.tasks.keys().filter_map(|task| self.reports.of(*task)?.image_id);
        Wanted {
            marks: Some(set.disk_marks),
            assigned: set.tasks.values().map(|task| task.image.clone()).collect(),
            running: ids.collect(),
            data_root,
        }
    }

    /// Says what the entry says, when that changes: releases wait for the end of what it has under way.
    async fn follow_entry(&self, stop: &CancellationToken) {
        let Some(entry) = &self.entry else { return };
        let mut changes = entry.changes();
        loop {
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: a change that was not seen is seen by the next call.
                changed = changes.changed() => if changed.is_err() { return }
            }
            // At once what others wait for, and then the rest.
            self.reports.draining(&|| entry.draining());
            self.report().await;
        }
    }

    /// Listens for the nodes that the set names, says what it hears, and leads nobody to those that it does not hear.
    async fn listen_for_others(&self, stop: &CancellationToken) {
        let Some(mut echoes) = self.echoes.lock().take() else { return };
        let (mut watching, mut doors) = (Watching::default(), Doors::default());
        loop {
            doors.know(&self.servers.lock());
            if let Some(set) = self.held() {
                watching.watch(&set.watched, &set.routes.gone.values().copied().collect());
            }
            let answered = echoes.answered();
            let before = watching.view();
            let mut ask = watching.round(&answered);
            ask.extend(doors.round(&answered));
            let heard = self.reports.is_heard() && !doors.are_shut();
            self.heard.send_if_modified(|was| std::mem::replace(was, heard) != heard);
            let view = watching.view();
            let silence = watching.silence();
            if view != before {
                for node in view.silent.difference(&before.silent) {
                    tracing::warn!(%node, "a node does not answer");
                }
                for node in before.silent.difference(&view.silent) {
                    tracing::info!(%node, "a node is heard again, or not listened for any more");
                }
                self.reports.peers(&view);
            }
            if *self.silence.lock() != silence {
                *self.silence.lock() = silence;
                self.wake.notify_one();
            }
            echoes.send(&ask);
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                () = self.clock.sleep(peers::INTERVAL) => {}
            }
        }
    }

    /// While no server hears this node or another one, tells others what is alive here, and listens to what they say.
    async fn speak_with_others(&self, stop: &CancellationToken) {
        let Some(mut voice) = self.voice.lock().take() else { return };
        let mut telling = Telling::new(self.clock.now().0 << 16);
        let mut hearsay = Hearsay::default();
        let (mut alive, mut heard) = (self.alive.subscribe(), self.heard.subscribe());
        let mut said = None;
        loop {
            let now = self.clock.monotonic();
            let tasks = alive.borrow_and_update().clone();
            let served = *heard.borrow_and_update();
            if let (Some(set), Some(alive)) = (self.held(), &tasks) {
                let own = Own { at: self.config.machine.address, alive, served };
                if let Some(told) = telling.due(own, || neighbours(&set), now) {
                    voice.say(&told, now).await;
                }
                if let Some((node, heard)) = self.believed(&mut voice, said.take(), &hearsay, &set, served) {
                    if hearsay.take(&set, node, &heard.said, served, now) {
                        self.believe(&hearsay);
                    }
                    if let Some(told) = telling.asked(heard.from, &heard.said, own, now) {
                        voice.say(&told, now).await;
                    }
                }
                if hearsay.expire(&set, now) {
                    self.believe(&hearsay);
                }
            }
            let next = telling.next().into_iter().chain(hearsay.next()).min();
            let pause = next.map_or(FULL_PASS, |next| next.saturating_sub(self.clock.monotonic()));
            said = tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: what changed stays to be seen. The senders are our own.
                _ = alive.changed() => None,
                _ = heard.changed() => None,
                () = self.clock.sleep(pause) => None,
                // Dropped: a datagram that is not taken stays in the socket.
                said = voice.hear() => Some(said),
            };
        }
    }

    /// What another node has really said, if that matters, and which it is.
    fn believed(
        &self,
        voice: &mut Voice,
        heard: Option<Heard>,
        hearsay: &Hearsay,
        set: &AssignmentSet,
        served: bool,
    ) -> Option<(NodeId, Heard)> {
        let heard = heard.filter(|heard| hearsay.matters(set, &heard.said, served))?;
        match voice.believe(&heard, Timestamp(self.clock.now().0)) {
            Ok(node) => (node != self.config.node).then_some((node, heard)),
            Err(error) => {
                tracing::debug!(%error, from = %heard.from, "what another node says is not believed");
                None
            }
        }
    }

    /// Leads nobody any more to what others say has ended.
    fn believe(&self, hearsay: &Hearsay) {
        let gone = hearsay.gone();
        tracing::debug!(tasks = gone.len(), "tasks of other nodes have ended, as these say");
        *self.gone.lock() = gone;
        self.wake.notify_one();
    }

    /// Has tasks that must not run twice stop when the right to run them is about to end, and go on when there is one.
    async fn follow_lease(&self, stop: &CancellationToken) {
        let lease = &self.shared.lease;
        loop {
            let standing = lease.standing();
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: it is asked again, and looks anew.
                () = lease.other_than(standing) => {}
                () = self.clock.sleep(FENCE) => {}
            }
            if lease.standing() != standing {
                self.nudge_all();
            }
            if lease.guards()
                && let Err(error) = self.shared.fence.runs().await
            {
                tracing::error!(%error, "the process that ends containers does not run; it is tried again");
            }
        }
    }

    async fn look_at_engine(&self) {
        let facts = self.runtime.facts().await;
        let before = std::mem::replace(&mut *self.engine.lock(), facts.clone());
        self.asked.store(true, Ordering::Release);
        match (&before, &facts) {
            (Err(_), Ok(facts)) => {
                tracing::info!(version = facts.engine.version, "engine answers");
                self.shared.house.wake();
            }
            (Ok(_), Err(error)) => {
                tracing::error!(%error, "engine does not answer; its containers are left alone");
            }
            (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
        }
        self.report().await;
    }

    /// Says how the node is.
    async fn report(&self) {
        if !self.asked.load(Ordering::Acquire) {
            return;
        }
        let (taken, subnets) = self.outside().await;
        let engine = self.engine.lock().clone();
        let mut problems = self.problems.lock().clone();
        problems.extend(self.plane.problems());
        problems.extend(self.entry.iter().flat_map(|entry| entry.problems()));
        problems.extend(self.unkept.lock().clone());
        let mut house = self.shared.house.told();
        problems.extend(house.problem.take());
        problems.dedup();
        let observed = *self.observed.lock();
        let mut facts = self.config.machine.facts(&engine, taken);
        facts.wireguard = self.plane.tunnels();
        facts.disk = facts.disk.or_else(|| house.engine_disk());
        (facts.disks, facts.images, facts.cleanup) = (house.disks, house.images, house.cleanup);
        match subnets {
            Ok(subnets) => facts.subnets = subnets,
            Err(error) => problems.push(format!("cannot read the machine's routes: {error}")),
        }
        // After `observed` was read: what is not in it now is over since then.
        let draining = || self.entry.as_ref().map(|entry| entry.draining()).unwrap_or_default();
        self.reports.node(observed, facts, problems, &draining);
    }

    /// The ports that are taken by others than Wharf, and the machine's subnets: as they were when they were last read, unless that is long
    /// ago or something of Wharf's was among the ports.
    async fn outside(&self) -> (Vec<u16>, std::result::Result<Vec<HostSubnet>, String>) {
        let (ours, now) = (self.own_ports(), self.clock.monotonic());
        let taken = |ports: &BTreeSet<u16>| ports.difference(&ours).copied().collect::<Vec<_>>();
        if let Some(seen) = &*self.outside.lock()
            && now.saturating_sub(seen.at) < LOOK
            && taken(&seen.ports) == seen.taken
        {
            return (seen.taken.clone(), seen.subnets.clone());
        }
        let real = self.config.looks_at_machine;
        let read = move || match real {
            true => (listening_ports(), host_subnets().map_err(|error| error.to_string())),
            false => (BTreeSet::new(), Ok(Vec::new())),
        };
        let (ports, subnets) = blocking(read).await;
        let taken = taken(&ports);
        let seen = Outside { at: now, ports, taken: taken.clone(), subnets: subnets.clone() };
        *self.outside.lock() = Some(seen);
        (taken, subnets)
    }

    /// The ports on which Wharf itself or its tasks listen.
    fn own_ports(&self) -> BTreeSet<u16> {
        let mut ports = self.config.own_ports.clone();
        let held = self.held();
        if let Some(entry) = &self.entry {
            // An agent that has just started has not spoken to the gateway: what it was to serve is no stranger's.
            let assigned = || held.iter().flat_map(|set| gateway_ports(&set.routes)).collect();
            ports.extend(entry.ports().unwrap_or_else(assigned));
        }
        if let Some(set) = held {
            for task in set.tasks.keys() {
                ports.extend(
                    self.reports.of(*task).iter().flat_map(|status| status.host_ports.values().copied()),
                );
            }
        }
        ports
    }

    /// Makes passes until `stop`.
    async fn work(self: Arc<Self>, tasks: Tasks, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Dropped with the agent only; the next one makes the pass again.
                () = self.pass(&tasks, &stop) => {}
            }
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: a notification that is not taken is kept.
                () = self.wake.notified() => {}
                () = self.clock.sleep(if self.unserved.load(Ordering::Acquire) { UNSERVED } else { FULL_PASS }) => {}
            }
        }
    }

    /// Serves the set that is held.
    async fn pass(self: &Arc<Self>, tasks: &Tasks, stop: &CancellationToken) {
        let Some(set) = self.held() else { return };
        // Stops come first: they wait for nothing.
        self.give_orders(&set, tasks, stop);
        self.plane.prepare_tunnels(set.wireguard.as_ref()).await;
        let unready = self.plane.prepare(&set.networks).await;
        let departed = self.departed(&set);
        let unheard = Unheard::of(&set, &self.silence.lock());
        let (names, sources) = (unheard.without(departed.without(&set.dns)), sources(&set));
        let sandboxes = sandboxes(&set, &names);
        self.adopt_sandboxes(&set, &sandboxes).await;
        let entries = sandboxes
            .iter()
            .map(|(task, sandbox)| (*task, &sandbox.answers(Family::V4) | &sandbox.answers(Family::V6)));
        let wanted_entries: BTreeMap<_, _> = entries.collect();
        let routed = async {
            let Some(entry) = &self.entry else { return true };
            let routes = unheard.without_routes(departed.without_routes(&set.routes));
            let routes = self.reachable_from_clients(routes).await;
            entry.publish(&routes).await
        };
        let (programmed, named, routed) =
            tokio::join!(self.plane.program(sandboxes), self.plane.publish(&names, &sources), routed);
        let served = programmed && named && routed;
        self.nudge_reachable(&wanted_entries);
        // Servers wait for this before they let a task go that these names and routes no longer have.
        if served {
            *self.observed.lock() = (set.epoch, set.revision);
        }
        self.unserved.store(!served, Ordering::Release);
        self.report().await;
        self.served.send_replace(Some((set, Arc::new(unready))));
    }

    /// Containers that ran before this agent did may have been told of virtual addresses by the one before: they count from the first
    /// pass on, not from when their tasks' loops come to them.
    async fn adopt_sandboxes(&self, set: &AssignmentSet, sandboxes: &BTreeMap<TaskId, Sandbox>) {
        if self.adopted.swap(true, Ordering::AcqRel) {
            return;
        }
        // Only says what is wanted: nothing is known to run yet.
        self.plane.program(sandboxes.clone()).await;
        let with_something = sandboxes.iter().filter(|(_, sandbox)| !sandbox.is_empty());
        for task in with_something.filter_map(|(id, _)| set.tasks.get(id)) {
            let name = ContainerId(container_name(task));
            if let Ok(Some(container)) = self.runtime.inspect(&name).await
                && container.state.is_running()
            {
                self.plane.started(task.id, container.pid).await;
            }
        }
    }

    /// Loops say which gateways their tasks can answer: those of which that has changed look again.
    fn nudge_reachable(&self, entries: &BTreeMap<TaskId, BTreeSet<IpAddr>>) {
        for (task, entries) in entries {
            let said = self.reports.of(*task);
            if said.is_some_and(|status| status.phase == Phase::Running && status.entries != *entries) {
                self.nudge(Some(*task));
            }
        }
    }

    /// The routes, with endpoints that are to see their clients' addresses only where the node can bring the answers back.
    async fn reachable_from_clients<'r>(&self, mut routes: Cow<'r, RouteTable>) -> Cow<'r, RouteTable> {
        let mut problems = Vec::new();
        for family in [Family::V4, Family::V6] {
            let keeps = |endpoint: &Endpoint| match family {
                Family::V4 => endpoint.keeps_client,
                Family::V6 => endpoint.keeps_client6.is_some(),
            };
            let wanted = routes.routes.iter().flat_map(|route| &route.endpoints).any(keeps);
            if let Some(problem) = self.plane.serve_entry(family, wanted).await.err().filter(|_| wanted) {
                problems.push(problem);
                let endpoints = routes.to_mut().routes.iter_mut().flat_map(|route| &mut route.endpoints);
                endpoints.for_each(|endpoint| match family {
                    Family::V4 => endpoint.keeps_client = false,
                    Family::V6 => endpoint.keeps_client6 = None,
                });
            }
        }
        *self.unkept.lock() = problems;
        routes
    }

    /// The tasks of the set that have ended; those that have not are said to whom it concerns. What ended here and is in no set any more is
    /// forgotten.
    fn departed(&self, set: &AssignmentSet) -> Departed {
        let mut ended = self.shared.ended.lock();
        ended.retain(|task| set.tasks.contains_key(task));
        let alive = Some(set.tasks.keys().filter(|task| !ended.contains(task)).copied().collect());
        self.alive.send_if_modified(|was| {
            let changes = *was != alive;
            *was = alive;
            changes
        });
        Departed::of(set, &ended, &self.gone.lock())
    }

    /// Tends the engine by what is served, until `stop`.
    async fn tend(self: Arc<Self>, tasks: Tasks, stop: CancellationToken) {
        let mut served = self.served.subscribe();
        loop {
            tokio::select! {
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Cancel-safe: a watch channel keeps its value. The sender is our own.
                _ = served.changed() => {}
            }
            let Some((set, unready)) = served.borrow_and_update().clone() else { continue };
            tokio::select! {
                biased;
                // Cancel-safe: waits for a flag.
                () = stop.cancelled() => return,
                // Dropped with the agent only; the next one makes the pass again.
                () = self.tend_once(&set, &unready, &tasks) => {}
            }
        }
    }

    async fn tend_once(
        self: &Arc<Self>,
        set: &AssignmentSet,
        unready: &BTreeMap<NetworkId, String>,
        tasks: &Tasks,
    ) {
        // The engine lists what it has only if that may have changed: sets follow each other faster than it can.
        let asked = self.shared.untidy.swap(false, Ordering::AcqRel);
        let now = self.clock.monotonic();
        let look = asked || self.looked_at.lock().is_none_or(|at| now.saturating_sub(at) >= TIDY);
        let some_left = self.prepared.borrow().networks.keys().any(|id| !set.networks.contains_key(id));
        let mut problems = self.prepare(set, unready, look).await;
        if look || some_left || !set.removed_volumes.is_empty() {
            // What a newer set wants must not be removed by this one; its own turn comes next.
            let is_latest =
                self.held().is_some_and(|held| (held.epoch, held.revision) == (set.epoch, set.revision));
            let unsolved = if is_latest { self.clean_up(set, tasks).await } else { Vec::new() };
            if is_latest && unsolved.is_empty() {
                *self.looked_at.lock() = Some(now);
            } else {
                self.shared.untidy.store(true, Ordering::Release);
            }
            problems.extend(unsolved);
        }
        *self.problems.lock() = problems;
        self.report().await;
    }

    /// Gives every task's loop its orders, and begins and ends loops.
    fn give_orders(self: &Arc<Self>, set: &AssignmentSet, tasks: &Tasks, stop: &CancellationToken) {
        let order = (set.epoch, set.revision);
        let from_disk = self.from_disk.load(Ordering::Acquire);
        let mut loops = self.loops.lock();
        loops.retain(|id, handle| {
            if !set.tasks.contains_key(id) {
                handle.orders.send_if_modified(|orders| !std::mem::replace(&mut orders.forget, true));
            }
            !handle.task.is_finished()
        });
        for (id, task) in &set.tasks {
            match loops.get(id) {
                Some(handle) => {
                    // What else a set says is nothing to one that runs: it would only ask the engine again.
                    let runs = self.reports.of(*id).is_some_and(|status| status.phase >= Phase::Running);
                    handle.orders.send_if_modified(|orders| {
                        if orders.forget {
                            return false;
                        }
                        let same = *orders.task == *task && orders.from_disk == from_disk;
                        let older = std::mem::replace(&mut orders.order, order) != order;
                        if !same {
                            (orders.task, orders.from_disk) = (Arc::new(task.clone()), from_disk);
                        }
                        !same || (older && !runs)
                    });
                }
                None => {
                    let orders = Orders { task: Arc::new(task.clone()), order, from_disk, forget: false };
                    loops.insert(*id, self.begin(task, orders, tasks, stop));
                }
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        task: &TaskAssignment,
        orders: Orders,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Handle {
        let (sender, receiver) = watch::channel(orders);
        let nudge = Arc::new(Notify::new());
        let running =
            TaskLoop::new(Arc::clone(&self.shared), receiver, Arc::clone(&nudge), stop.child_token());
        let inner = Arc::clone(self);
        let task = tasks.spawn(format!("task {}", task.name), async move {
            running.run().await;
            // What it was on may be free to go now.
            inner.shared.look_at_engine();
        });
        Handle { orders: sender, nudge, task }
    }

    /// Makes the set's networks ready and tells the loops; answers what could not be done.
    async fn prepare(
        &self,
        set: &AssignmentSet,
        unready: &BTreeMap<NetworkId, String>,
        look: bool,
    ) -> Vec<String> {
        let before = Arc::clone(&self.prepared.borrow());
        // Networks that the engine has, if it answers; those of the last pass that are unchanged are not asked about one by one.
        let present: BTreeSet<_> = if look {
            self.runtime.list_networks().await.unwrap_or_default().into_iter().collect()
        } else {
            before.networks.keys().copied().collect()
        };
        let mut networks = BTreeMap::new();
        let mut problems = Vec::new();
        for (id, network) in &set.networks {
            let local = match unready.get(id) {
                Some(problem) => Err(RuntimeError::temporary(problem.clone())),
                None => match before
                    .networks
                    .get(id)
                    .filter(|(known, _)| present.contains(id) && is_same(known, network))
                {
                    Some((_, Ok(local))) => Ok(local.clone()),
                    Some((_, Err(_))) | None => {
                        let mtu = self.plane.mtu(network.backend).await.unwrap_or(USUAL_MTU);
                        self.runtime.ensure_network(network, mtu).await
                    }
                },
            };
            if let Err(error) = &local {
                problems.push(format!("network {}: {error}", network.name));
            }
            networks.insert(*id, (network.clone(), local));
        }
        let prepared = Prepared {
            order: (set.epoch, set.revision),
            networks,
            volumes: set.volumes.clone(),
            siblings: set
                .tasks
                .iter()
                .map(|(id, task)| {
                    let address = task.attachments.first().map(|attachment| attachment.address);
                    (*id, (ContainerId(container_name(task)), address))
                })
                .collect(),
        };
        self.prepared.send_replace(Arc::new(prepared));
        problems
    }

    /// Removes what carries our labels and is not wanted; answers what could not be done.
    async fn clean_up(self: &Arc<Self>, set: &AssignmentSet, tasks: &Tasks) -> Vec<String> {
        // An engine that does not answer is in the report already, and looked at again when it does.
        let containers = self.runtime.list().await.unwrap_or_default();
        let looked_after: BTreeSet<_> = self.loops.lock().keys().copied().collect();
        for container in containers.into_iter().filter(|container| !looked_after.contains(&container.task)) {
            if self.going.lock().insert(container.id.clone()) {
                tracing::info!(container = container.name, task = %container.task, "unwanted container is removed");
                let inner = Arc::clone(self);
                // Apart from the pass, which must not wait for its grace period.
                tasks.spawn(format!("remove {}", container.name), inner.remove_unwanted(container));
            }
        }
        let mut problems = self.clean_up_networks(set).await;
        problems.extend(self.remove_volumes(&set.removed_volumes).await);
        problems
    }

    async fn remove_unwanted(self: Arc<Self>, container: Container) {
        let removed = async {
            self.runtime.stop(&container.id, DEFAULT_GRACE.duration()).await?;
            self.runtime.remove(&container.id).await
        };
        match removed.await {
            Ok(()) => self.shared.files.remove(container.task),
            // The next pass tries again.
            Err(error) => {
                tracing::warn!(container = container.name, %error, "unwanted container not removed");
            }
        }
        self.going.lock().remove(&container.id);
        self.shared.look_at_engine();
    }

    async fn clean_up_networks(&self, set: &AssignmentSet) -> Vec<String> {
        let mut problems = Vec::new();
        let Ok(networks) = self.runtime.list_networks().await else { return problems };
        let mut all_gone = true;
        for network in networks.into_iter().filter(|network| !set.networks.contains_key(network)) {
            if let Err(error) = self.runtime.remove_network(network).await {
                all_gone = false;
                // One in use waits for the tasks on it, which are about to stop.
                if !error.is_temporary() {
                    problems.push(format!("network {network}: {error}"));
                }
            }
        }
        if all_gone {
            self.plane.clean_up(BTreeSet::new()).await;
        }
        problems
    }

    async fn remove_volumes(&self, volumes: &[VolumeId]) -> Vec<String> {
        let (mut gone, mut problems) = (Vec::new(), Vec::new());
        for volume in volumes {
            match self.runtime.remove_volume(*volume).await {
                Ok(()) => gone.push(*volume),
                Err(error) => problems.push(format!("volume {volume}: {error}")),
            }
        }
        self.reports.removed_volumes(&gone);
        problems
    }
}

/// The ports at which a table's routes are.
fn gateway_ports(table: &RouteTable) -> BTreeSet<u16> {
    let specs = || table.services.iter().map(|route| &route.spec);
    let services = specs().map(wharf_model::RouteSpec::gateway_port);
    let redirects = specs().filter_map(wharf_model::RouteSpec::redirect_port);
    table.routes.iter().map(|route| route.port).chain(services).chain(redirects).collect()
}

/// Whether the engine's network is the same for both; who else is on it does not matter to the engine.
fn is_same(known: &NetworkAssignment, network: &NetworkAssignment) -> bool {
    let peers = Vec::new();
    NetworkAssignment { peers: peers.clone(), ..known.clone() }
        == NetworkAssignment { peers, ..network.clone() }
}

/// Who asks from the addresses of these tasks.
fn sources(set: &AssignmentSet) -> Sources {
    let mut sources = Sources::new();
    for task in set.tasks.values() {
        let source = Source {
            networks: task.attachments.iter().map(|attachment| attachment.network).collect(),
            asks_others: !task.spec.container.dns.is_empty(),
        };
        for attachment in &task.attachments {
            sources.insert(attachment.address, source.clone());
        }
    }
    sources
}
