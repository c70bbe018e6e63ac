//! A simulated node: a machine with a disk and an engine, on which runs of the real agent come and go.
//!
//! The agent is the product's own ([`NodeAgent`] with its task loops, assignments and reports), behind the product's own HTTP/2 session. What
//! the kernel would do (networks, names, gateway) is made up, and takes its time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::watch;
use wharf_agent::{
    dns::Sources,
    facts::Machine,
    lease::Notebook,
    node::{Entry, NetworkPlane, NodeAgent, NodeConfig},
    peers::Echoes,
    runtime::{ContainerId, FakeRuntime, fake::FakeImage},
    session::{self, Home, Membership, Node, Refusal, router::Exec},
};
use wharf_api::{
    transport::{
        Identity, Timing, Trust,
        node::{Have, LogsQuery, OutputLine, Report, ResolveImage, TaskUsage},
    },
    v1::{Code, ExecRequest},
};
use wharf_model::{
    AssignmentSet, Backend, Bytes, Cpus, DnsTable, GatewayStats, Image, LeaseAnswer, LeaseGrant,
    NetworkAssignment, NetworkId, NodeId, NodeName, NodeReport, RouteTable, TaskId,
};
use wharf_process::{Clock, Shutdown, Tasks};

use super::{
    chance::Dice,
    engine::{self, Engine},
    invariants::{Checker, Running, Seen},
    life::Life,
    link::{End, Net, Socket},
    scenario::Does,
    time::{Epoch, MachineClock, Wrong},
};

/// What each node has.
pub const CPUS: u64 = 4_000;
/// In bytes.
pub const MEMORY: u64 = 8 << 30;

/// How messages between servers and agents fare, for all of them.
#[derive(Debug)]
pub struct Messages {
    permille: AtomicU32,
    dice: Dice,
}
impl Messages {
    /// All arrive, once.
    pub fn new(dice: Dice) -> Arc<Self> {
        Arc::new(Self { permille: AtomicU32::new(0), dice })
    }
    /// Of a thousand so many do not.
    pub fn set(&self, permille: u32) {
        self.permille.store(permille, Ordering::Relaxed);
    }
    fn fate(&self) -> Fate {
        let permille = self.permille.load(Ordering::Relaxed);
        if permille == 0 || !self.dice.permille(permille) {
            return Fate::Arrives;
        }
        match self.dice.below(4) {
            0 => Fate::Lost,
            1 => Fate::AnswerLost,
            2 => Fate::Twice(self.dice.between(10, 20_000)),
            _ => Fate::Late(self.dice.between(10, 5_000)),
        }
    }
}
/// What becomes of a message.
enum Fate {
    Arrives,
    Lost,
    AnswerLost,
    /// And once more, so many milliseconds later.
    Twice(u64),
    Late(u64),
}

/// Who can be dialled.
pub trait Dial: Send + Sync {
    /// A connection to the server of that number, if it listens and lets this node in. Cancel-safe.
    fn dial(
        &self,
        server: usize,
        from: End,
        node: NodeId,
        serial: &str,
        dead: Arc<AtomicBool>,
    ) -> Option<Socket>;
    /// How many servers there are.
    fn servers(&self) -> usize;
}

/// A machine.
pub struct SimNode {
    /// Its number.
    pub number: usize,
    /// Its engine.
    pub engine: Arc<Engine>,
    /// Its clock.
    pub wrong: Wrong,
    folder: PathBuf,
    epoch: Epoch,
    net: Arc<Net>,
    messages: Arc<Messages>,
    checker: Arc<Checker>,
    seed: u64,
    state: Mutex<State>,
    fence: Arc<Fence>,
    /// Its engine and what runs in containers; outlives agents.
    _engine_tasks: Tasks,
}
struct State {
    member: Option<Member>,
    agent: Option<Agent>,
    power: bool,
    /// Runs of the agent so far.
    runs: u64,
    /// The newest set that was kept, and by which node: what it must never go back behind.
    held: Option<(NodeId, (u64, u64))>,
}
#[derive(Clone)]
struct Member {
    node: NodeId,
    serial: String,
}
struct Agent {
    life: Life,
    tasks: Tasks,
    agent: NodeAgent,
    /// Whether the machine lost power under it.
    dead: Arc<AtomicBool>,
}

impl SimNode {
    /// A machine that is switched on and no node yet.
    pub fn new(
        number: usize,
        seed: u64,
        folder: PathBuf,
        epoch: Epoch,
        net: Arc<Net>,
        messages: Arc<Messages>,
        checker: Arc<Checker>,
    ) -> Arc<Self> {
        let dice = Dice::new(seed, &format!("node {number}"));
        // Most clocks are a little wrong.
        let offset = i64::try_from(dice.below(4_000)).unwrap_or_default() - 2_000;
        let drift = i64::try_from(dice.below(5)).unwrap_or_default() - 2;
        let wrong = Wrong::by(offset, drift);
        let tasks = Tasks::new(&Shutdown::new());
        let real = FakeRuntime::new(&tasks, MachineClock::shared(epoch, wrong.clone()));
        for does in Does::ALL {
            for version in 1..=4 {
                let reference = format!("{}:{version}", does.word());
                let script = match does {
                    Does::Serve | Does::ServeChecked | Does::Sick => None,
                    Does::Crash => Some("sleep 3; exit 1".to_owned()),
                    Does::Job => Some("sleep 25; exit 0".to_owned()),
                    // No trap for any signal.
                    Does::Deaf => Some("serve".to_owned()),
                };
                real.publish_image(&reference, FakeImage { script, ..FakeImage::published(&reference) });
            }
        }
        let fence = Arc::new(Fence {
            clock: MachineClock::shared(epoch, wrong.clone()),
            page: watch::Sender::new(Page::default()),
            dice: Dice::new(seed, &format!("fence {number}")),
        });
        let (keeping, processes) = (Arc::clone(&fence), real.clone());
        tasks.spawn("fence", async move { keeping.keep(&processes).await });
        let engine = Engine::new(real, Dice::new(seed, &format!("engine {number}")));
        let state = State { member: None, agent: None, power: true, runs: 0, held: None };
        Arc::new(Self {
            number,
            engine,
            wrong,
            folder,
            epoch,
            net,
            messages,
            checker,
            seed,
            state: Mutex::new(state),
            fence,
            _engine_tasks: tasks,
        })
    }

    /// What it is called.
    pub fn name(&self) -> NodeName {
        format!("n{}", self.number).parse().expect("this is a name")
    }
    /// Which node it is.
    pub fn node(&self) -> Option<NodeId> {
        self.state.lock().member.as_ref().map(|member| member.node)
    }
    /// It is this node from now on.
    pub fn join(&self, node: NodeId, serial: String) {
        self.state.lock().member = Some(Member { node, serial });
    }
    /// Whether its agent runs.
    pub fn has_agent(&self) -> bool {
        self.state.lock().agent.as_ref().is_some_and(|agent| !agent.life.is_over())
    }
    /// Whether it is switched on.
    pub fn has_power(&self) -> bool {
        self.state.lock().power
    }
    /// The tasks whose processes run on it.
    pub fn running(&self) -> Running {
        let tasks = self.engine.real.running(|task| Seen::from(task));
        Running { machine: self.number, node: self.node(), tasks, right: self.fence.left().is_some() }
    }

    /// Starts a run of its agent, if it is a node, is switched on and has none.
    pub fn start(self: &Arc<Self>, dial: &Arc<dyn Dial>) {
        let mut state = self.state.lock();
        let Some(member) = state.member.clone() else { return };
        if !state.power || state.agent.as_ref().is_some_and(|agent| !agent.life.is_over()) {
            return;
        }
        state.runs += 1;
        let life = Life::default();
        let dead = Arc::<AtomicBool>::default();
        let tasks = Tasks::new(&Shutdown::new());
        let clock = MachineClock::shared(self.epoch, self.wrong.clone());
        let address = address_of(self.number);
        let machine = Machine {
            hostname: self.name().to_string(),
            address: address.into(),
            cpus: Cpus(CPUS),
            memory: Bytes(MEMORY),
            kernel: "6.1.0".to_owned(),
            architecture: "amd64".to_owned(),
            cgroup_version: 2,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: Vec::new(),
            nvidia: self.folder.join("no-gpus"),
        };
        let (state_dir, run_dir) = (self.folder.join("state"), self.folder.join("run"));
        let config = NodeConfig {
            secrets_in_memory: false,
            looks_at_machine: false,
            seed: self.seed,
            ..NodeConfig::new(member.node, machine, state_dir.clone(), run_dir)
        };
        let reach = engine::Reach { engine: Arc::clone(&self.engine), life: life.clone() };
        let entry: Arc<dyn Entry> = Arc::new(Gateway { changes: watch::Sender::new(()) });
        let agent =
            NodeAgent::new(config, Arc::new(reach), Arc::new(Kernel), Some(entry), Arc::clone(&clock));
        let agent = match agent {
            Ok(agent) => agent,
            Err(error) => {
                self.checker.violation("what was kept is legible", format!("node {}: {error}", self.number));
                return;
            }
        };
        agent.lease().keep_in(Arc::clone(&self.fence) as _);
        let here = End::Node(self.number);
        agent.listen_by(Box::new(Knocking { here, net: Arc::clone(&self.net), answered: BTreeSet::new() }));
        let (running, own, stop) = (agent.clone(), tasks.clone(), tasks.token());
        tasks.spawn("agent", async move { running.run(&own, stop).await });
        for server in 0..dial.servers() {
            let link = Link {
                machine: Arc::clone(self),
                member: member.clone(),
                agent: agent.clone(),
                life: life.clone(),
                dead: Arc::clone(&dead),
                tasks: tasks.clone(),
                home: Home::new(state_dir.join("home")),
                clock: Arc::clone(&clock),
            };
            tasks.spawn(format!("link to {server}"), link.keep(server, Arc::clone(dial)));
        }
        state.agent = Some(Agent { life, tasks, agent, dead });
    }

    /// Ends the run of its agent. Whoever talks to it hears of that unless the machine lost power.
    pub fn kill(&self, silent: bool) {
        if let Some(agent) = self.state.lock().agent.take() {
            agent.dead.store(silent, Ordering::Relaxed);
            agent.life.end();
            agent.tasks.abort();
        }
    }
    /// Its agent does not die of its calls after all; if it has, it is cleared away.
    pub fn spare(&self) {
        let life = self.state.lock().agent.as_ref().map(|agent| agent.life.clone());
        if let Some(life) = life {
            life.spare();
            if life.is_over() {
                self.kill(false);
            }
        }
    }
    /// It leaves the cluster, with everything it remembers; its containers stay.
    pub fn leave(&self) {
        self.kill(false);
        let mut state = self.state.lock();
        (state.member, state.held) = (None, None);
        drop(state);
        // What is left makes the next agent fail, which says so.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
    /// Its agent dies after so many more calls.
    pub fn kill_after(&self, calls: u32) -> Option<Life> {
        let state = self.state.lock();
        let agent = state.agent.as_ref()?;
        agent.life.die_after(calls);
        Some(agent.life.clone())
    }
    /// It loses power: everything on it ends, in silence.
    pub fn power_off(&self) {
        self.kill(true);
        self.state.lock().power = false;
        self.net.set_dark(End::Node(self.number), true);
        self.fence.page.send_replace(Page::default());
        self.engine.real.power_cycle();
        self.engine.real.set_down(true);
    }
    /// It is switched on again.
    pub fn power_on(&self) {
        self.state.lock().power = true;
        self.net.set_dark(End::Node(self.number), false);
        self.engine.real.set_down(false);
    }
    /// No assignments can be kept, or they can again.
    pub fn set_disk_full(&self, full: bool) {
        // A folder stands where the file would be written anew; what would be added to it is refused by hand.
        let path = self.no_room();
        if full {
            // If a file is there it is replaced by the next write, and the disk was not that full.
            let _ = std::fs::create_dir_all(path);
        } else {
            let _ = std::fs::remove_dir(path);
        }
    }
    fn no_room(&self) -> PathBuf {
        self.folder.join("state").join("assignments.new")
    }
    /// What the agent holds; none without an agent.
    pub fn held(&self) -> Option<Arc<AssignmentSet>> {
        let state = self.state.lock();
        state.agent.as_ref()?.agent.held_set()
    }

    /// What was kept is never older than what was kept before.
    fn kept(&self, node: NodeId, order: (u64, u64)) {
        let mut state = self.state.lock();
        let older = state.held.is_some_and(|(by, held)| by == node && order < held);
        let before = state.held;
        state.held = Some((node, order));
        drop(state);
        if older {
            let found = format!("node {}: {order:?} after {before:?}", self.number);
            self.checker.violation("assignments never go back", found);
        }
    }
}

/// Where a node is.
fn address_of(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 0, u8::try_from(node + 1).unwrap_or(u8::MAX))
}

/// Asks other machines whether they are there. Their kernels answer, whatever their agents do.
struct Knocking {
    here: End,
    net: Arc<Net>,
    answered: BTreeSet<IpAddr>,
}
impl Echoes for Knocking {
    fn send(&mut self, to: &BTreeSet<IpAddr>) {
        let answers = to.iter().filter(|address| match address {
            IpAddr::V4(address) => {
                let number = usize::from(address.octets()[3].saturating_sub(1));
                self.net.answers(self.here, End::Node(number))
            }
            IpAddr::V6(_) => false,
        });
        let answers: Vec<_> = answers.copied().collect();
        self.answered.extend(answers);
    }
    fn answered(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.answered)
    }
}

/// What the agent and the process that ends containers in its place share, in the machine's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Page {
    /// When the right is over, by the time since the machine was there.
    until: Option<Duration>,
    containers: Vec<ContainerId>,
}

/// The process that ends containers when the node's right to run them is over, as [`wharf_agent::fence`] does: it outlives agents and
/// engines, and ends without power.
struct Fence {
    clock: Arc<dyn Clock>,
    page: watch::Sender<Page>,
    dice: Dice,
}
impl Notebook for Fence {
    fn left(&self) -> Option<Duration> {
        self.page.borrow().until?.checked_sub(self.clock.monotonic())
    }
    fn note(&self, left: Duration, containers: &[ContainerId]) {
        let until = Some(self.clock.monotonic() + left);
        self.page.send_replace(Page { until, containers: containers.to_vec() });
    }
}
impl Fence {
    async fn keep(&self, processes: &FakeRuntime) {
        let mut pages = self.page.subscribe();
        loop {
            let page = pages.borrow_and_update().clone();
            let left = page.until.unwrap_or_default().saturating_sub(self.clock.monotonic());
            // It looks five times a second.
            let next = left + Duration::from_millis(1 + self.dice.below(200));
            if left.is_zero() {
                page.containers.iter().for_each(|container| processes.end_processes(container));
            }
            tokio::select! {
                changed = pages.changed() => if changed.is_err() { return },
                () = self.clock.sleep(next), if !page.containers.is_empty() => {}
            }
        }
    }
}

/// The way from one run of an agent to one server.
struct Link {
    machine: Arc<SimNode>,
    member: Member,
    agent: NodeAgent,
    life: Life,
    dead: Arc<AtomicBool>,
    tasks: Tasks,
    home: Home,
    clock: Arc<dyn wharf_process::Clock>,
}
impl Link {
    async fn keep(self, server: usize, dial: Arc<dyn Dial>) {
        let here = End::Node(self.machine.number);
        let mut pause = 200;
        loop {
            let there = End::Server(server);
            let net = &self.machine.net;
            if net.is_cut(here, there) || net.is_cut(there, here) {
                // As long as a connection is waited for.
                tokio::time::sleep(Duration::from_millis(1_500)).await;
            } else if let Some(socket) =
                dial.dial(server, here, self.member.node, &self.member.serial, Arc::clone(&self.dead))
            {
                let began = tokio::time::Instant::now();
                let node: Arc<dyn Node> = Arc::new(Ear {
                    machine: Arc::clone(&self.machine),
                    agent: self.agent.clone(),
                    life: self.life.clone(),
                    tasks: self.tasks.clone(),
                });
                let membership = Membership {
                    node: self.member.node,
                    name: self.machine.name(),
                    identity: Identity { certificate: String::new(), key: String::new() },
                    trust: Trust { ca: String::new() },
                };
                let attached = session::attach(
                    node,
                    self.home.clone(),
                    membership,
                    socket,
                    Timing::default(),
                    Arc::clone(&self.clock),
                    self.tasks.clone(),
                );
                attached.await;
                if began.elapsed() > Duration::from_secs(5) {
                    pause = 200;
                }
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            pause = (pause * 2).min(1_000);
        }
    }
}

/// What a server reaches of a node: the agent, behind messages that may be lost, doubled and late, for as long as the agent lives.
struct Ear {
    machine: Arc<SimNode>,
    agent: NodeAgent,
    life: Life,
    tasks: Tasks,
}
impl Ear {
    async fn take(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal> {
        let (node, order) = (set.node, (set.epoch, set.revision.0));
        if self.machine.no_room().is_dir() {
            return Err(Refusal::new(Code::Unavailable, "the disk is full"));
        }
        let answer = self.life.during(Node::assign(&self.agent, set)).await;
        if let Ok(Ok(_)) = answer {
            self.machine.kept(node, order);
        }
        answer
    }
}

fn lost() -> Refusal {
    Refusal::new(Code::Unavailable, "the message was lost")
}

#[async_trait]
impl Node for Ear {
    async fn assign(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal> {
        match self.machine.messages.fate() {
            Fate::Arrives => self.take(set).await,
            Fate::Lost => Err(lost()),
            Fate::AnswerLost => {
                let _unheard = self.take(set).await;
                Err(lost())
            }
            Fate::Late(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.take(set).await
            }
            Fate::Twice(millis) => {
                let again = Self {
                    machine: Arc::clone(&self.machine),
                    agent: self.agent.clone(),
                    life: self.life.clone(),
                    tasks: self.tasks.clone(),
                };
                let second = Arc::clone(&set);
                self.tasks.spawn("a message that comes twice", async move {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    let _unheard = again.take(second).await;
                });
                self.take(set).await
            }
        }
    }
    async fn lease(&self, grant: LeaseGrant) -> Result<LeaseAnswer, Refusal> {
        let take = async |grant| self.life.during(Node::lease(&self.agent, grant)).await;
        match self.machine.messages.fate() {
            Fate::Arrives => take(grant).await,
            Fate::Lost => Err(lost()),
            Fate::AnswerLost => {
                let _unheard = take(grant).await;
                Err(lost())
            }
            Fate::Late(millis) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                take(grant).await
            }
            Fate::Twice(millis) => {
                let (agent, life) = (self.agent.clone(), self.life.clone());
                self.tasks.spawn("a grant that comes twice", async move {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    let _unheard = life.during(Node::lease(&agent, grant)).await;
                });
                take(grant).await
            }
        }
    }
    fn reports(&self) -> BoxStream<'static, Report> {
        let (life, messages) = (self.life.clone(), Arc::clone(&self.machine.messages));
        let mut before = Vec::<Report>::new();
        let told = Node::reports(&self.agent).map(move |report| {
            // Of two reports of a task the greater is the newer: one that comes again, and late, must change nothing.
            let again = match messages.fate() {
                Fate::Twice(which) if !before.is_empty() => {
                    Some(before[usize::try_from(which).unwrap_or_default() % before.len()].clone())
                }
                _ => None,
            };
            if matches!(report, Report::Task(_)) {
                before.push(report.clone());
                if before.len() > 8 {
                    before.remove(0);
                }
            }
            futures::stream::iter([Some(report), again].into_iter().flatten())
        });
        let until = async move { life.over().await };
        told.flatten().take_until(until).boxed()
    }
    async fn resolve_image(&self, wish: ResolveImage) -> Result<Image, Refusal> {
        self.life.during(Node::resolve_image(&self.agent, wish)).await
    }
    async fn logs(
        &self,
        task: TaskId,
        query: LogsQuery,
    ) -> Result<BoxStream<'static, Result<OutputLine, Refusal>>, Refusal> {
        self.life.during(Node::logs(&self.agent, task, query)).await
    }
    async fn exec(&self, task: TaskId, request: ExecRequest) -> Result<Box<dyn Exec>, Refusal> {
        self.life.during(Node::exec(&self.agent, task, request)).await
    }
    async fn stats(&self, task: TaskId) -> Result<TaskUsage, Refusal> {
        self.life.during(Node::stats(&self.agent, task)).await
    }
    async fn inspect(&self, task: TaskId) -> Result<serde_json::Value, Refusal> {
        self.life.during(Node::inspect(&self.agent, task)).await
    }
    async fn report(&self) -> NodeReport {
        self.life.during(Node::report(&self.agent)).await
    }
    async fn gateway(&self) -> Result<GatewayStats, Refusal> {
        self.life.during(Node::gateway(&self.agent)).await
    }
}

/// The kernel's side, which does as it is told.
struct Kernel;
#[async_trait]
impl NetworkPlane for Kernel {
    async fn prepare(&self, _: &BTreeMap<NetworkId, NetworkAssignment>) -> BTreeMap<NetworkId, String> {
        tokio::time::sleep(Duration::from_millis(3)).await;
        BTreeMap::new()
    }
    async fn mtu(&self, _: Backend) -> Option<u32> {
        None
    }
    async fn publish(&self, _: &DnsTable, _: &Sources) -> bool {
        tokio::time::sleep(Duration::from_millis(2)).await;
        true
    }
    async fn clean_up(&self, _: BTreeSet<String>) {}
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The node's gateway, which does as it is told and has nothing under way.
struct Gateway {
    changes: watch::Sender<()>,
}
#[async_trait]
impl Entry for Gateway {
    async fn publish(&self, _: &RouteTable) -> bool {
        tokio::time::sleep(Duration::from_millis(2)).await;
        true
    }
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
    fn ports(&self) -> Option<BTreeSet<u16>> {
        Some(BTreeSet::new())
    }
    fn draining(&self) -> BTreeMap<TaskId, u64> {
        BTreeMap::new()
    }
    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
    async fn stats(&self) -> GatewayStats {
        GatewayStats::default()
    }
}
