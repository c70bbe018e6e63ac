//! One loop per task: what to do next, and doing it.
//!
//! - [`step::next_step`] decides from the orders, the phase reached and the container seen; the loop performs one step,
//!   looks again, and decides again. It is told nothing about what happened, only that something may have.
//! - The kernel tells of the end of a container's first process, and that the task is not ready any more is said at once ([`life`]);
//!   how it ended is said when the engine has said it.
//! - A loop that is dropped leaves the container as it is: the next agent adopts it without a call that changes it.
//! - What may be cut short by new orders is the preparation; making and starting a container run to their end.
//! - Errors that can pass are tried again with growing pauses, and the status says what and when; others end the task.

pub mod files;
mod hooks;
mod life;
pub mod resolver;
pub mod restart;
pub mod step;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use wharf_model::{
    Exit, Health, Image, MountSource, NetworkAssignment, NetworkId, NetworkMode, Phase, Protocol, Revision,
    RouteProtocol, ServiceName, Target, TaskAssignment, TaskId, TaskStatus, Timestamp, VolumeAssignment,
    VolumeId,
};
use wharf_process::{Backoff, Clock, blocking};

use self::{
    files::{FileError, FileFolders},
    life::{Ended, Life},
    resolver::resolv_conf,
    restart::{Fate, fate},
    step::{Step, next_step},
};
use crate::{
    assignments::write_whole,
    fence::Fence,
    housekeeping::Housekeeper,
    images::Images,
    lease::{self, Lease, Standing},
    listening::Listening,
    node::NetworkPlane,
    probe::{self, Verdict},
    registry::RegistryLogins,
    reports::{Reports, not_ready},
    runtime::{
        Connection, Container, ContainerId, ContainerState, LocalImage, LocalNetwork, LogQuery, NewContainer,
        RESOLV_CONF, Result, Runtime, RuntimeError, Surroundings, container_name, spec::DEFAULT_GRACE,
    },
};

/// Lines of output kept of a task that failed.
const LAST_LINES: u64 = 20;
/// Bytes kept of one such line.
const LINE: usize = 500;
/// How long a failed task's output is waited for.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// First and longest pause after an error that can pass.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Between looks at a running task that nobody announced anything about.
const LOOK: Duration = Duration::from_secs(60);
/// Between attempts to reach the first published port of a task without a check.
const KNOCK: Duration = Duration::from_millis(250);
/// How long a task without a check or published ports is waited for to listen: a port of a route or `expose` is meant seriously, and of
/// others nobody knows whether they ever will.
const LISTENS_LATE: Duration = Duration::from_secs(30);
const LISTENS: Duration = Duration::from_secs(3);
/// Between looks whether it does.
const LISTEN: Duration = Duration::from_millis(100);
/// What is said of a task that was stopped because the node's right to run it ended.
const UNLEASED: &str = "stopped by its node, which had not heard from the leader: another node may run it, and it must not run twice";
/// Between reports of a pull's progress.
const PROGRESS: Duration = Duration::from_millis(300);

/// The kernel's side of the networks, as task loops know it.
#[derive(Clone)]
pub struct Plane(pub Arc<dyn NetworkPlane>);
impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").finish_non_exhaustive()
    }
}

/// What every task loop of a node shares.
#[derive(Debug)]
pub struct Shared {
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// Where statuses go.
    pub reports: Reports,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where statuses are kept over a restart of the agent.
    pub statuses: PathBuf,
    /// Where configs and secrets go.
    pub files: FileFolders,
    /// Logins of registries.
    pub logins: RegistryLogins,
    /// Images that no registry has.
    pub images: Arc<Images>,
    /// Who is told which images are of use.
    pub house: Arc<Housekeeper>,
    /// Where it is noted what has run since the machine started: gone after a reboot.
    pub ran: PathBuf,
    /// Pulls at once.
    pub pulls: Semaphore,
    /// Containers being made and started at once.
    pub starts: Semaphore,
    /// What the node has ready for its tasks.
    pub prepared: watch::Receiver<Arc<Prepared>>,
    /// Who pulls which image; the others wait and find it there.
    pub pulling: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What is told of containers that start and end.
    pub plane: Plane,
    /// Asks the node to look at networks and volumes again.
    pub wake: Arc<Notify>,
    /// The engine may have something that nobody wants, or have lost something that is wanted.
    pub untidy: AtomicBool,
    /// Tasks whose processes are known to have ended: their addresses are nobody's.
    pub ended: Mutex<BTreeSet<TaskId>>,
    /// Seeds the pauses.
    pub seed: u64,
    /// The right to run tasks that must not run twice.
    pub lease: Lease,
    /// Who ends them with it if this agent does not.
    pub fence: Fence,
}

impl Shared {
    /// Asks the node to compare what the engine has with what is wanted.
    pub fn look_at_engine(&self) {
        self.untidy.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Starts a container; one that must not run twice ends with the node's right to run it, whatever becomes of this agent.
    async fn start(&self, task: TaskId, fenced: bool, container: &ContainerId) -> Result<(), RuntimeError> {
        if fenced {
            self.lease.guard(task, Some(container));
            self.fence.runs().await.map_err(|error| {
                RuntimeError::temporary(format!(
                    "the process that would end it if this node is cut off does not run: {error}"
                ))
            })?;
        }
        self.runtime.start(container).await
    }

    /// The addresses of a task are nobody's from now on.
    fn has_ended(&self, task: TaskId) {
        if self.ended.lock().insert(task) {
            self.wake.notify_one();
        }
    }

    /// Somebody has started a task's container again, which keeps its addresses.
    fn has_begun_again(&self, task: TaskId) {
        if self.ended.lock().remove(&task) {
            self.wake.notify_one();
        }
    }
}

/// Orders sets of assignments: epoch and revision.
pub type Order = (u64, Revision);

/// What of a set the node has made ready.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The set.
    pub order: Order,
    /// Its networks: what the engine calls each, or why it is not there.
    pub networks: BTreeMap<NetworkId, (NetworkAssignment, Result<LocalNetwork>)>,
    /// Its volumes; made when a task needs them.
    pub volumes: BTreeMap<VolumeId, VolumeAssignment>,
    /// Its tasks' containers, and where they answer.
    pub siblings: BTreeMap<TaskId, (ContainerId, Option<Ipv4Addr>)>,
}

/// What a loop is told.
#[derive(Debug, Clone)]
pub struct Orders {
    /// The task.
    pub task: Arc<TaskAssignment>,
    /// The set these are of.
    pub order: Order,
    /// The set came from disk, where secrets have no content.
    pub from_disk: bool,
    /// Nobody wants the task any more: end it, remove what is left of it, and be done.
    pub forget: bool,
}

/// The loop of one task.
#[derive(Debug)]
pub struct TaskLoop {
    id: TaskId,
    shared: Arc<Shared>,
    orders: watch::Receiver<Orders>,
    nudge: Arc<Notify>,
    shutdown: CancellationToken,
    status: TaskStatus,
    backoff: Backoff,
    random: StdRng,
    verdict: Verdict,
    /// When the next check of a running task is due, by the monotonic clock.
    next_check: Duration,
    /// The image has a check of its own that the service has not turned off.
    image: Option<LocalImage>,
    /// So many of its `post_start` hooks have succeeded.
    hooks_done: usize,
    /// Its `pre_stop` hooks have been run, and what there is to say about that.
    pre_stopped: Option<String>,
    /// Whether its process lives, as the kernel says.
    life: Arc<Life>,
    /// It is noted that it has come to run since the machine started.
    noted: bool,
    /// The end that is known of, by when the engine says it was, and when it was noticed.
    end: Option<(Timestamp, Duration)>,
    /// It has been started again, and was not looked at since.
    again: bool,
}

/// Why a step did not end by itself.
enum Interrupted {
    /// New orders: decide again.
    Orders,
    /// The agent stops.
    Shutdown,
}

impl TaskLoop {
    /// The loop of the task that `orders` are about; `nudge` tells it that something may have happened.
    pub fn new(
        shared: Arc<Shared>,
        orders: watch::Receiver<Orders>,
        nudge: Arc<Notify>,
        shutdown: CancellationToken,
    ) -> Self {
        let id = orders.borrow().task.id;
        let (bits, _) = id.uuid().as_u64_pair();
        let random = StdRng::seed_from_u64(bits ^ shared.seed);
        Self {
            id,
            orders,
            nudge,
            shutdown,
            status: TaskStatus::default(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            random,
            verdict: Verdict::new(),
            next_check: Duration::ZERO,
            image: None,
            hooks_done: 0,
            pre_stopped: None,
            life: Arc::default(),
            noted: false,
            end: None,
            again: false,
            shared,
        }
    }

    /// Runs until nobody wants the task any more and nothing is left of it, or the agent stops.
    #[tracing::instrument(skip_all, fields(task = %self.id))]
    pub async fn run(self) {
        let (life, shared, nudge) =
            (Arc::clone(&self.life), Arc::clone(&self.shared), Arc::clone(&self.nudge));
        let ended = Ended { task: self.id, shared: &shared, nudge: &nudge };
        tokio::select! {
            // Dropped by the arm below never: that one does not end.
            () = self.work() => {}
            // Dropped with the loop: nobody asks any more.
            () = life.follow(&ended) => {}
        }
    }

    async fn work(mut self) {
        self.status = self.recall().await;
        if self.status.phase.is_over() {
            self.has_ended();
        }
        match self.status.phase {
            Phase::Pending => {
                // A container may be found; until it is looked at, no more than this is known.
                self.status.phase = Phase::Accepted;
            }
            // A check that passed before the agent restarted has to fail as often as any to be believed.
            Phase::Running => self.verdict.health = self.status.health,
            _ => {}
        }
        self.publish();
        loop {
            let orders = self.orders.borrow_and_update().clone();
            match self.turn(&orders).await {
                Ok(Turn::Again) => self.backoff.reset(),
                Ok(Turn::Wait(pause)) => {
                    self.backoff.reset();
                    if self.wait(pause).await.is_err() {
                        return;
                    }
                }
                Ok(Turn::Done) | Err(Stumble::Interrupted(Interrupted::Shutdown)) => return,
                Err(Stumble::Interrupted(Interrupted::Orders)) => {}
                Err(Stumble::Error(error)) => {
                    let pause = self.stumbled(&error);
                    if self.wait(pause).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Looks, decides and performs one step.
    async fn turn(&mut self, orders: &Orders) -> Result<Turn, Stumble> {
        if self.status.is_ready() && self.life.is_over() {
            self.publish();
            self.keep().await;
        }
        let name = ContainerId(container_name(&orders.task));
        let container = self.shared.runtime.inspect(&name).await?;
        if !container.as_ref().is_some_and(|found| found.state.is_running()) {
            self.shared.plane.0.ended(self.id).await;
        }
        if orders.forget {
            return self.forget(orders, container).await;
        }
        if orders.task.fenced
            && let Some(turn) = self.obey_lease(orders, container.as_ref()).await?
        {
            return Ok(turn);
        }
        let step =
            next_step(orders.task.target, self.status.phase, container.as_ref().map(|found| &found.state));
        tracing::debug!(?step, phase = %self.status.phase, "task looked at");
        match (step, container) {
            (Step::Make, _) => self.make(orders).await,
            (Step::Watch, Some(container)) => self.watch(&orders.task, &container).await,
            (Step::Conclude, Some(container)) => self.conclude(&orders.task, &container).await,
            (Step::Stop, Some(container)) => self.stop(&orders.task, &container).await,
            (Step::Remove, Some(container)) => self.remove(&container).await,
            (Step::Missing, _) => {
                self.has_ended();
                self.fail("its container was removed by somebody else", None).await;
                Ok(Turn::Again)
            }
            (Step::Stopped, _) => {
                self.has_ended();
                self.status.ended_at.get_or_insert(now(&*self.shared.clock));
                let remark = self.pre_stopped.take().unwrap_or_default();
                self.enter(Phase::Stopped, remark).await;
                Ok(Turn::Again)
            }
            // A step on a container is only decided when there is one.
            (Step::Rest | Step::Watch | Step::Conclude | Step::Stop | Step::Remove, _) => {
                Ok(Turn::Wait(Duration::MAX))
            }
        }
    }

    /// What follows for a task that must not run twice from how the node's right to run it stands; nothing while there is one.
    async fn obey_lease(
        &mut self,
        orders: &Orders,
        container: Option<&Container>,
    ) -> Result<Option<Turn>, Stumble> {
        let shared = Arc::clone(&self.shared);
        let running = container.filter(|container| container.state.is_running());
        // Before anything is awaited: whoever ends it if this agent does not must know of it.
        shared.lease.guard(self.id, running.map(|container| &container.id));
        if shared.lease.standing() == Standing::Held {
            return Ok(None);
        }
        match running {
            Some(container) => {
                tracing::warn!("the node's right to run this task is over: it is stopped");
                shared.runtime.stop(&container.id, lease::GRACE).await?;
                shared.lease.guard(self.id, None);
                self.has_ended();
                self.status.ended_at.get_or_insert(now(&*shared.clock));
                self.enter(Phase::Lost, UNLEASED.to_owned()).await;
                Ok(Some(Turn::Again))
            }
            None if self.status.phase < Phase::Running && orders.task.target == Target::Run => {
                self.say("waiting until the leader lets this node run it: it must not run twice");
                Ok(Some(Turn::Wait(Duration::MAX)))
            }
            None => Ok(None),
        }
    }

    /// Waits for new orders, a nudge or the time; an error is the agent's end.
    async fn wait(&mut self, pause: Duration) -> Result<(), ()> {
        let shared = Arc::clone(&self.shared);
        let sleep = async move {
            if pause == Duration::MAX {
                std::future::pending::<()>().await;
            } else {
                shared.clock.sleep(pause).await;
            }
        };
        tokio::select! {
            biased;
            // Cancel-safe: waits for a flag.
            () = self.shutdown.cancelled() => Err(()),
            // Cancel-safe: a watch channel keeps its value. Without a sender the node itself is gone.
            changed = self.orders.changed() => changed.map_err(drop),
            // Cancel-safe: a nudge that is not taken is kept.
            () = self.nudge.notified() => Ok(()),
            // Started anew each time: the next turn says how long.
            () = sleep => Ok(()),
        }
    }

    /// Notes an error, and says how long to wait before the next attempt.
    fn stumbled(&mut self, error: &RuntimeError) -> Duration {
        let pause = self.backoff.next_delay(&mut self.random);
        // A task that runs is not worse off because its engine does not answer; the node's report says that.
        if self.status.phase < Phase::Running {
            self.status.message = format!("{error}; trying again in {} s", pause.as_secs().max(1));
            self.status.hint = error.hint().map(str::to_owned);
            self.status.progress = None;
            self.publish();
        }
        tracing::warn!(%error, attempt = self.backoff.failures(), "step failed; it will be tried again");
        pause
    }

    /// Makes and starts the container. The preparation may be cut short, the rest not.
    async fn make(&mut self, orders: &Orders) -> Result<Turn, Stumble> {
        let (shutdown, mut changes) = (self.shutdown.clone(), self.orders.clone());
        let prepared = tokio::select! {
            biased;
            // Cancel-safe: waits for a flag.
            () = shutdown.cancelled() => return Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Cancel-safe: a watch channel keeps its value. Only what changes the task itself cuts its making short.
            changed = changes.wait_for(|new| new.forget || new.task != orders.task) => {
                let cut = if changed.is_ok() { Interrupted::Orders } else { Interrupted::Shutdown };
                return Err(Stumble::Interrupted(cut));
            }
            // Dropped by the arms above: pulls and the engine's other work are found done, or done again.
            prepared = self.prepare(orders) => prepared,
        };
        let surroundings = match prepared {
            Ok(surroundings) => surroundings,
            Err(error) => return self.retry_or_fail(error).await,
        };
        let shared = Arc::clone(&self.shared);
        let turn = shared.starts.acquire().await;
        if orders.task.fenced && shared.lease.standing() != Standing::Held {
            return Ok(Turn::Again);
        }
        self.enter(Phase::Starting, "creating its container".to_owned()).await;
        let container = NewContainer { task: &orders.task, surroundings: &surroundings };
        let made = match shared.runtime.create(&container).await {
            Ok(id) => {
                self.status.container = Some(id.0.clone());
                self.status.image_id = Some(surroundings.image_id.clone());
                self.status.message = "starting".to_owned();
                self.publish();
                shared.start(self.id, orders.task.fenced, &id).await
            }
            // Something that was made ready has gone again: make it ready again.
            Err(error) if error.is_not_found() => {
                shared.look_at_engine();
                Err(RuntimeError::temporary(error.to_string()))
            }
            Err(error) => Err(error),
        };
        drop(turn);
        match made {
            Ok(()) => Ok(Turn::Again),
            Err(error) => self.retry_or_fail(error).await,
        }
    }

    async fn retry_or_fail(&mut self, error: RuntimeError) -> Result<Turn, Stumble> {
        if error.is_temporary() {
            return Err(error.into());
        }
        self.fail(&error.to_string(), error.hint().map(str::to_owned)).await;
        Ok(Turn::Again)
    }

    /// Makes everything ready that the container needs.
    async fn prepare(&mut self, orders: &Orders) -> Result<Surroundings> {
        self.enter(Phase::Preparing, "waiting for its networks".to_owned()).await;
        let prepared = self.node_is_ready(orders.order).await?;
        let task = &orders.task;
        let networks = connections(task, &prepared)?;
        let companions = self.companions(task, &prepared).await?;
        let image = self.image(task, &task.image).await?;
        for mounted in mounted_images(task) {
            self.image(task, &mounted).await?;
        }
        self.say("preparing its volumes and files");
        let mut volumes = BTreeMap::new();
        for (name, id) in &task.volumes {
            let volume = prepared.volumes.get(id).ok_or_else(|| {
                RuntimeError::temporary(format!("the volume `{name}` has not been assigned to this node"))
            })?;
            volumes.insert(name.clone(), self.shared.runtime.ensure_volume(volume).await?.name);
        }
        let (shared, wanted) = (Arc::clone(&self.shared), orders.clone());
        let server = networks.first().map(|first| first.gateway);
        let (files, resolv_conf) = blocking(move || {
            let task = &wanted.task;
            let files = shared.files.write(task.id, &task.files, wanted.from_disk)?;
            // A node without the file has nothing to say.
            let of_node = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            let text = server.and_then(|server| resolv_conf(task, server, &of_node));
            let resolver = text.map(|text| shared.files.write_resolver(task.id, &text)).transpose()?;
            Ok::<_, FileError>((files, resolver))
        })
        .await?;
        let image_id = image.id.clone();
        self.image = Some(image);
        Ok(Surroundings { image_id, networks, volumes, files, resolv_conf, companions })
    }

    /// Waits until the node has worked through the set these orders are of, or a later one.
    async fn node_is_ready(&self, order: Order) -> Result<Arc<Prepared>> {
        let mut prepared = self.shared.prepared.clone();
        let ready = prepared.wait_for(|prepared| prepared.order >= order).await;
        ready
            .map(|ready| Arc::clone(&ready))
            .map_err(|_closed| RuntimeError::temporary("the agent is stopping"))
    }

    /// The containers it shares something with, which must run for that.
    async fn companions(
        &self,
        task: &TaskAssignment,
        prepared: &Prepared,
    ) -> Result<BTreeMap<ServiceName, ContainerId>> {
        let mut companions = BTreeMap::new();
        for (service, shared) in task.spec.companions() {
            let waiting = || {
                RuntimeError::temporary(format!(
                    "waiting for a task of {service}, whose {shared} it shares, to run here"
                ))
            };
            let other = task.companions.get(service).ok_or_else(waiting)?;
            let (container, _) = prepared.siblings.get(other).ok_or_else(waiting)?;
            let found = self.shared.runtime.inspect(container).await?.ok_or_else(waiting)?;
            let running = found.state.is_running().then_some(found.id).ok_or_else(waiting)?;
            companions.insert(service.clone(), running);
        }
        Ok(companions)
    }

    async fn image(&mut self, task: &TaskAssignment, image: &Image) -> Result<LocalImage> {
        let shared = Arc::clone(&self.shared);
        let key =
            image.digest.clone().or_else(|| image.id.clone()).unwrap_or_else(|| image.reference.clone());
        self.say(&format!("waiting for its turn to pull {}", image.reference));
        // One pulls, the others of the same image then find it there.
        let one = Arc::clone(shared.pulling.lock().entry(key).or_default());
        let _alone = one.lock().await;
        let _turn = shared.pulls.acquire().await;
        self.say(&format!("pulling {}", image.reference));
        let login = shared.logins.of(&image.reference).await;
        let (id, status) = (self.id, self.status.clone());
        let told = Mutex::new(None::<Duration>);
        let progress = |progress| {
            let now = shared.clock.monotonic();
            let mut told = told.lock();
            if told.is_none_or(|before| now.saturating_sub(before) >= PROGRESS) {
                *told = Some(now);
                shared.reports.task(id, &TaskStatus { progress: Some(progress), ..status.clone() });
            }
        };
        // What no registry has is on other nodes.
        let mut brought = false;
        if task.spec.pull_policy != wharf_model::PullPolicy::Never {
            brought = shared.images.bring(image, &progress).await?;
        }
        let local =
            shared.runtime.ensure_image(image, task.spec.pull_policy, login.as_ref(), &progress).await?;
        shared.house.used(image, &local, brought).await;
        Ok(local)
    }

    /// Takes note of a running container and makes the check that is due.
    async fn watch(&mut self, task: &TaskAssignment, container: &Container) -> Result<Turn, Stumble> {
        let ContainerState::Running { started_at } = container.state else { return Ok(Turn::Again) };
        if !self.life.attend(self.id, container, started_at, &self.shared).await {
            // The engine does not know yet, and will tell.
            self.publish();
            return Ok(Turn::Wait(FIRST_PAUSE));
        }
        // Before anybody else is told that it runs. Nothing happens if that is done.
        self.status.entries = self.shared.plane.0.started(self.id, container.pid).await;
        if self.status.phase != Phase::Running {
            self.status.container = Some(container.id.0.clone());
            self.status.image_id = Some(container.image_id.clone());
            self.status.started_at = Some(started_at);
            self.status.health = Health::Starting;
            if let Some(turn) = self.after_start(task, container).await? {
                return Ok(turn);
            }
        } else if std::mem::take(&mut self.again)
            || self.status.started_at.is_some_and(|before| before != started_at)
        {
            // It has been started again, as the same task: it has its addresses again, and shows anew that it is well.
            self.shared.has_begun_again(self.id);
            self.status.started_at = Some(started_at);
            self.status.oom_kills = 0;
            (self.verdict, self.next_check, self.hooks_done) = (Verdict::new(), Duration::ZERO, 0);
            if let Some(turn) = self.after_start(task, container).await? {
                return Ok(turn);
            }
        }
        self.note_that_it_ran().await;
        self.note_oom_kills(container).await;
        self.status.host_ports.clone_from(&container.host_ports);
        let (health, output, pause) = self.check(task, container, started_at).await?;
        let before = std::mem::replace(&mut self.status.health, health);
        self.status.probe_output = output.filter(|_| health != Health::Healthy);
        if self.status.is_ready_once(health) {
            self.status.ready_at.get_or_insert(now(&*self.shared.clock));
        }
        let message = match health {
            Health::Starting if self.status.oom_kills > 0 => oom_message(self.status.oom_kills),
            Health::Starting if task.spec.probe.is_none() && container.check.is_none() => {
                "not ready yet: nothing listens".to_owned()
            }
            Health::Starting => "waiting for its check to pass".to_owned(),
            Health::Unhealthy => "its check fails".to_owned(),
            Health::Unchecked | Health::Healthy => oom_message(self.status.oom_kills),
        };
        self.status.hint = (self.status.oom_kills > 0).then(|| MORE_MEMORY.to_owned());
        let was = self.status.phase;
        self.enter(Phase::Running, message).await;
        if was == Phase::Running && before != health {
            tracing::info!(from = %before, to = %health, output = self.status.probe_output, "task's health changed");
            self.keep().await;
        }
        Ok(Turn::Wait(pause))
    }

    /// Notes that it has come to run in this life of the machine.
    async fn note_that_it_ran(&mut self) {
        if std::mem::replace(&mut self.noted, true) {
            return;
        }
        let (folder, mark) = (self.shared.ran.clone(), self.ran_mark());
        let noted = blocking(move || {
            std::fs::create_dir_all(&folder)?;
            std::fs::write(mark, [])
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "cannot note that a task has run; it is not started again while no server answers");
        }
    }

    fn ran_mark(&self) -> PathBuf {
        self.shared.ran.join(self.id.to_string())
    }

    /// Takes note of processes that the kernel has ended for want of memory while the first one goes on.
    async fn note_oom_kills(&mut self, container: &Container) {
        let Some(kills) = self.shared.runtime.oom_kills(container).await else { return };
        if kills != self.status.oom_kills {
            tracing::warn!(kills, "the kernel has ended processes of a task for want of memory");
            self.status.oom_kills = kills;
            self.keep().await;
        }
    }

    /// What is known of the task's health, what the check said, and when to look again.
    async fn check(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
        started_at: Timestamp,
    ) -> Result<(Health, Option<String>, Duration), Stumble> {
        if let Some(probe) = &task.spec.probe {
            let monotonic = self.shared.clock.monotonic();
            if monotonic >= self.next_check {
                let address = self.address_of(task, container);
                let asking = probe::ask(probe, address, &*self.shared.runtime, &container.id);
                let outcome = self.uninterrupted(asking).await?;
                let since_start = now(&*self.shared.clock).since(started_at);
                self.verdict.note(outcome, since_start, probe);
                self.next_check = self.shared.clock.monotonic() + probe.interval.duration();
            }
            let pause = self.next_check.saturating_sub(self.shared.clock.monotonic());
            return Ok((self.verdict.health, self.verdict.output.clone(), pause));
        }
        if let Some(check) = &container.check {
            let output = Some(check.output.clone()).filter(|output| !output.is_empty());
            return Ok((check.health, output, LOOK));
        }
        let port = task.spec.ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.target);
        match (port, self.address_of(task, container)) {
            // It has answered once: from then on only its end counts.
            (Some(_), Some(_)) if self.verdict.health == Health::Healthy => Ok((Health::Healthy, None, LOOK)),
            (Some(port), Some(address)) => {
                let address = SocketAddr::new(address, port);
                if self.uninterrupted(probe::accepts(address, Duration::from_secs(2))).await? {
                    self.verdict.health = Health::Healthy;
                    Ok((Health::Healthy, None, LOOK))
                } else {
                    let output = format!("nothing accepts connections at {address} yet");
                    Ok((Health::Starting, Some(output), KNOCK))
                }
            }
            (Some(_) | None, _) => Ok(self.guess(task, container, started_at).await),
        }
    }

    /// Whether a task that nobody checks is up: once something in it listens where others can reach it, or it has run for some time.
    async fn guess(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
        started_at: Timestamp,
    ) -> (Health, Option<String>, Duration) {
        let up = (Health::Unchecked, None, LOOK);
        let policy = &task.spec.policy;
        let exposed = task.spec.expose.iter().filter_map(|port| port.trim_end_matches("/tcp").parse().ok());
        let routed = policy.routes.iter().filter(|route| route.protocol != RouteProtocol::Udp);
        let wanted: BTreeSet<u16> = routed.map(|route| route.port).chain(exposed).collect();
        let patience = if wanted.is_empty() { LISTENS } else { LISTENS_LATE };
        let left = patience.saturating_sub(now(&*self.shared.clock).since(started_at));
        let own = matches!(task.spec.network_mode, NetworkMode::Networks | NetworkMode::Service(_));
        if self.verdict.health == Health::Healthy || left.is_zero() || container.pid <= 0 || !own {
            return up;
        }
        let pid = container.pid;
        // One that cannot be looked at has ended, which is found out elsewhere.
        let listens =
            blocking(move || Listening::of(pid).map_or(true, |listening| listening.has_any_of(&wanted)));
        if listens.await {
            self.verdict.health = Health::Healthy;
            return up;
        }
        (Health::Starting, Some("it does not listen yet".to_owned()), LISTEN.min(left))
    }

    /// Asks until the answer, or until there are other orders.
    async fn uninterrupted<T>(&self, asking: impl Future<Output = T>) -> Result<T, Stumble> {
        let mut orders = self.orders.clone();
        tokio::select! {
            biased;
            // Cancel-safe: waits for a flag.
            () = self.shutdown.cancelled() => Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Cancel-safe: the loop's own receiver still sees the change.
            _ = orders.changed() => Err(Stumble::Interrupted(Interrupted::Orders)),
            // Dropped by the arms above: a check changes nothing.
            answer = asking => Ok(answer),
        }
    }

    /// Where the node reaches the task.
    fn address_of(&self, task: &TaskAssignment, container: &Container) -> Option<IpAddr> {
        match &task.spec.network_mode {
            NetworkMode::Networks => task.attachments.first().map(|attachment| attachment.address.into()),
            NetworkMode::Host => Some(Ipv4Addr::LOCALHOST.into()),
            NetworkMode::None => None,
            NetworkMode::Bridge => container.addresses.get("bridge").copied(),
            NetworkMode::Service(_) => {
                let prepared = self.shared.prepared.borrow();
                prepared.siblings.get(&task.network_of()?)?.1.map(IpAddr::from)
            }
        }
    }

    /// Its process is gone: nobody is sent there any more, before anything else is found out about it.
    fn has_ended(&self) {
        self.shared.has_ended(self.id);
    }

    /// Says how a process ended that nobody had asked to.
    async fn conclude(&mut self, task: &TaskAssignment, container: &Container) -> Result<Turn, Stumble> {
        let ContainerState::Exited { started_at, ended_at, exit, error } = &container.state else {
            return Ok(Turn::Again);
        };
        self.has_ended();
        // The engine's word is on the first process; the kernel's count knows of it, too, if it was killed.
        let exit = &Exit { oom: exit.oom || exit.code == 137 && self.status.oom_kills > 0, ..*exit };
        if error.is_empty()
            && let Some(turn) = self.start_again(task, container, *started_at, *ended_at, *exit).await?
        {
            return Ok(turn);
        }
        self.status.container = Some(container.id.0.clone());
        self.status.image_id = Some(container.image_id.clone());
        self.status.started_at = self.status.started_at.or(*started_at);
        self.status.ended_at = Some(*ended_at);
        self.status.exit = Some(*exit);
        if let Some(check) = &container.check
            && check.health != Health::Healthy
            && !check.output.is_empty()
        {
            self.status.probe_output = Some(check.output.clone());
        }
        // Its container goes, and with it what it said: a command that has done its work is read, too.
        self.status.last_log = self.last_lines(&container.id).await;
        if exit.is_success() && error.is_empty() {
            self.status.hint = None;
            self.status.probe_output = None;
            self.enter(Phase::Complete, String::new()).await;
        } else {
            let message = if error.is_empty() { exit.to_string() } else { format!("{exit}: {error}") };
            let limited = task.spec.resources.limits.memory.is_some();
            self.fail(&message, exit_hint(*exit, limited)).await;
        }
        Ok(Turn::Again)
    }

    /// Starts a task again that has ended by itself, if that is for its node to do; an answer means that it has not ended.
    async fn start_again(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
        started_at: Option<Timestamp>,
        ended_at: Timestamp,
        exit: Exit,
    ) -> Result<Option<Turn>, Stumble> {
        let unleased = task.fenced && self.shared.lease.standing() != Standing::Held;
        if self.status.phase != Phase::Running || self.shared.reports.is_heard() || unleased {
            return Ok(None);
        }
        self.end.take_if(|(of, _)| *of != ended_at);
        let mark = self.ran_mark();
        let moment = self.shared.clock.monotonic();
        let (_, noticed) = *self.end.get_or_insert((ended_at, moment));
        let ended = restart::Ended {
            policy: &task.spec.restart,
            exit,
            ran: started_at.map_or(Duration::ZERO, |started_at| ended_at.since(started_at)),
            at: ended_at,
            waited: moment.saturating_sub(noticed),
            before: self.status.restarts,
            ran_here: blocking(move || mark.exists()).await,
            shares_data: self.shares_data(task),
        };
        match fate(&ended, self.shared.reports.is_heard()) {
            Fate::End => Ok(None),
            Fate::Later(pause) => {
                let seconds = pause.as_secs().max(1);
                self.not_ready_again(format!(
                    "its process ended ({exit}); no server answers, and its node starts it again in {seconds} s"
                ));
                Ok(Some(Turn::Wait(pause)))
            }
            Fate::Now(restarts) => {
                tracing::warn!(%exit, times = restarts.times, "no server answers: task is started again");
                self.status.restarts = Some(restarts);
                self.not_ready_again(format!("its process ended ({exit}); its node starts it again"));
                // Before it runs: an agent that restarts in between counts this end once.
                self.keep().await;
                self.shared.start(self.id, task.fenced, &container.id).await?;
                self.again = true;
                Ok(Some(Turn::Again))
            }
        }
    }

    /// It was ready, and is not until it has shown again that it is well.
    fn not_ready_again(&mut self, message: String) {
        self.status.health = Health::Starting;
        self.status.message = message;
        self.publish();
    }

    /// Whether it writes to a volume that other nodes can reach; what is not known here counts as one.
    fn shares_data(&self, task: &TaskAssignment) -> bool {
        let prepared = self.shared.prepared.borrow();
        let shared = |id: &VolumeId| prepared.volumes.get(id).is_none_or(|volume| !volume.spec.is_local());
        task.volumes.values().any(shared)
    }

    async fn last_lines(&self, container: &ContainerId) -> Vec<String> {
        let query = LogQuery { tail: Some(LAST_LINES), ..LogQuery::default() };
        let read = async {
            let stream = self.shared.runtime.logs(container, query).await.ok()?;
            Some(stream.filter_map(|frame| std::future::ready(frame.ok())).collect::<Vec<_>>().await)
        };
        // Output that cannot be had is missing in the report, which is better than no report.
        let frames = timeout(LOG_PATIENCE, read).await.ok().flatten().unwrap_or_default();
        let text: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.iter().copied()).collect();
        last_lines(&text)
    }

    /// Asks the process to stop and waits until it has.
    async fn stop(&mut self, task: &TaskAssignment, container: &Container) -> Result<Turn, Stumble> {
        self.status.container = Some(container.id.0.clone());
        self.status.hint = None;
        let grace = task.spec.container.stop_grace_period.unwrap_or(DEFAULT_GRACE);
        self.before_stop(task, container, grace).await?;
        self.enter(Phase::Stopping, format!("asked to stop, with {grace} to do so")).await;
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            biased;
            // Cancel-safe: waits for a flag. The engine goes on stopping; the next agent looks how it ended.
            () = self.shutdown.cancelled() => Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Dropped by the arm above only.
            stopped = shared.runtime.stop(&container.id, grace.duration()) => {
                stopped?;
                Ok(Turn::Again)
            }
        }
    }

    /// Removes a container that has stopped, and keeps how it ended.
    async fn remove(&mut self, container: &Container) -> Result<Turn, Stumble> {
        if let ContainerState::Exited { exit, ended_at, .. } = &container.state
            && !self.status.phase.is_over()
        {
            self.status.exit = Some(*exit);
            self.status.ended_at = Some(*ended_at);
        }
        self.shared.runtime.remove(&container.id).await?;
        Ok(Turn::Again)
    }

    /// Ends and removes everything of a task that nobody wants any more.
    async fn forget(&mut self, orders: &Orders, container: Option<Container>) -> Result<Turn, Stumble> {
        if let Some(container) = container {
            if container.state.is_running() {
                return self.stop(&orders.task, &container).await;
            }
            self.shared.runtime.remove(&container.id).await?;
        }
        self.shared.lease.guard(self.id, None);
        let (shared, id) = (Arc::clone(&self.shared), self.id);
        let (path, mark) = (self.status_path(), self.ran_mark());
        blocking(move || {
            shared.files.remove(id);
            // What was never kept is not there.
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_file(mark);
        })
        .await;
        self.shared.reports.forget(self.id);
        tracing::info!("task forgotten");
        Ok(Turn::Done)
    }

    async fn fail(&mut self, message: &str, hint: Option<String>) {
        self.status.hint = hint;
        self.status.ended_at.get_or_insert(now(&*self.shared.clock));
        self.enter(Phase::Failed, message.to_owned()).await;
    }

    /// Moves on to a phase, or stays in it with another message. A phase that lies behind changes the message only.
    async fn enter(&mut self, phase: Phase, message: String) {
        self.status.message = message;
        let from = self.status.phase;
        if let Ok(to) = from.advance(phase)
            && to != from
        {
            self.status.phase = to;
            self.status.progress = None;
            tracing::info!(%from, %to, message = self.status.message, "task moved");
            self.keep().await;
        }
        self.publish();
    }

    fn say(&mut self, message: &str) {
        message.clone_into(&mut self.status.message);
        self.publish();
    }

    fn publish(&mut self) {
        if self.life.is_over() {
            self.status = not_ready(self.status.clone(), life::ENDED);
        }
        self.status = self.shared.reports.task(self.id, &self.status);
    }

    fn status_path(&self) -> PathBuf {
        self.shared.statuses.join(format!("{}.json", self.id))
    }

    /// Keeps how far the task came, so that what has ended stays ended over a restart of the agent.
    async fn keep(&self) {
        let worth = self.status.phase >= Phase::Running;
        let (path, status) = (self.status_path(), self.status.clone());
        if worth {
            let kept = blocking(move || write_whole(&path, &serde_json::to_vec(&status)?)).await;
            if let Err(error) = kept {
                tracing::error!(%error, "cannot keep a task's status; a restart of the agent will forget it");
            }
        }
    }

    async fn recall(&self) -> TaskStatus {
        let path = self.status_path();
        // Nothing kept, or nothing legible: the container itself says the rest.
        let bytes = blocking(move || std::fs::read(path)).await;
        bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

/// What follows a turn.
enum Turn {
    /// Look again at once.
    Again,
    /// Look again after this, or when something may have happened.
    Wait(Duration),
    /// Nothing is left to do, ever.
    Done,
}

/// Why a turn did not come to its end.
enum Stumble {
    Interrupted(Interrupted),
    Error(RuntimeError),
}
impl From<RuntimeError> for Stumble {
    fn from(error: RuntimeError) -> Self {
        Self::Error(error)
    }
}

/// Whether a health counts as ready.
trait ReadyOnce {
    fn is_ready_once(&self, health: Health) -> bool;
}
impl ReadyOnce for TaskStatus {
    fn is_ready_once(&self, health: Health) -> bool {
        Self { phase: Phase::Running, health, ..Self::default() }.is_ready()
    }
}

fn now(clock: &dyn Clock) -> Timestamp {
    Timestamp(clock.now().0)
}

/// Images whose content it mounts.
fn mounted_images(task: &TaskAssignment) -> Vec<Image> {
    let mounts = task.spec.container.mounts.iter();
    let images = mounts.filter_map(|mount| match &mount.source {
        MountSource::Image { image, .. } => Some(image),
        MountSource::Volume { .. }
        | MountSource::Anonymous { .. }
        | MountSource::Bind { .. }
        | MountSource::Tmpfs { .. } => None,
    });
    images.map(|image| Image::named(image.clone())).collect()
}

fn connections(task: &TaskAssignment, prepared: &Prepared) -> Result<Vec<Connection>> {
    let connection = |on: &wharf_model::Attachment| {
        let (network, local) = prepared.networks.get(&on.network).ok_or_else(|| {
            RuntimeError::temporary(format!("the network {} has not been assigned to this node", on.network))
        })?;
        let local = local.as_ref().map_err(|error| {
            let error = error.clone().while_doing(format!("waiting for the network {}", network.name));
            // The node keeps trying, and so does the task.
            let hint = error.hint().map(str::to_owned);
            let waiting = RuntimeError::temporary(error.to_string());
            hint.map_or(waiting.clone(), |hint| waiting.with_hint(hint))
        })?;
        Ok(Connection {
            network: local.name.clone(),
            address: on.address,
            address6: network
                .subnet6
                .map(|subnet| on.address6.unwrap_or_else(|| wharf_model::ipv6_for(subnet, on.address))),
            gateway: network.gateway,
            endpoint: on.endpoint.clone(),
        })
    };
    task.attachments.iter().map(connection).collect()
}

/// The last lines of some output, as they go into a status.
fn last_lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<_> = text.lines().map(|line| line.chars().take(LINE).collect::<String>()).collect();
    let skip = lines.len().saturating_sub(usize::try_from(LAST_LINES).unwrap_or(usize::MAX));
    lines.into_iter().skip(skip).collect()
}

/// What people do next about an exit; whether its memory is limited.
fn exit_hint(exit: Exit, limited: bool) -> Option<String> {
    let text = match (exit.oom, exit.code) {
        (true, _) => MORE_MEMORY,
        (false, 125..=127) => "check `command` and `entrypoint`: the program could not be run",
        (false, 255) => "the machine or its engine stopped under it",
        (false, 129 | 130 | 143) => "it was asked to end by a signal from outside Wharf",
        (false, 131 | 134) => {
            "it gave itself up (it called `abort`, or a check of its own failed); see its output"
        }
        (false, 132) => {
            "it met an instruction that this processor does not have: was its image built for another one?"
        }
        (false, 133) => "it came to a trap, as of a debugger; see its output",
        (false, 135) => "it touched memory that is not there, such as a mapped file that was cut short",
        (false, 136) => "it divided by zero or the like; see its output",
        // Engines lose the kernel's word when the first process goes with its control group.
        (false, 137) if limited => {
            "raise its memory limit (`deploy.resources.limits.memory`) if it ran out of memory, which engines do not always notice; else it was killed from outside"
        }
        (false, 137) => "it was killed from outside; look for the machine running out of memory",
        (false, 139) => "it crashed (segmentation fault); see its output",
        (false, 141) => "it wrote to somebody who had hung up; see what reads its output",
        (false, 152) => "it used up its limit of processor time (`ulimits.cpu`)",
        (false, 153) => "it wrote a file larger than its limit (`ulimits.fsize`)",
        (false, 159) => "it made a system call that is not allowed: look at `security_opt` (seccomp)",
        (false, _) => return None,
    };
    Some(text.to_owned())
}

/// What people do about too little memory.
const MORE_MEMORY: &str = "raise its memory limit (`deploy.resources.limits.memory`), or let it use less";

/// What is said of a task that goes on although the kernel has ended processes of it.
fn oom_message(kills: u32) -> String {
    match kills {
        0 => String::new(),
        1 => "out of memory: the kernel has ended one of its processes, and the first one goes on".to_owned(),
        _ => {
            format!("out of memory: the kernel has ended {kills} of its processes, and the first one goes on")
        }
    }
}

#[cfg(test)]
mod tests;
