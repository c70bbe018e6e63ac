//! An engine without an engine: for tests and for the simulated cluster, held to the contract like the real one.
//!
//! Processes are scripts of a few words, run on the given clock: `echo`, `sleep`, `exit`, `trap 'exit N' SIGNAL`, `cat`,
//! `while :; do …; done` in `sh -c`, and `true`, `false`, `sleep N`, `echo …`, `cat` by themselves. Every other program,
//! and an image's own command, runs until it is asked to stop; programs under `/no/such` do not exist. As PID 1 of a
//! container, a process only hears signals it has a trap for, and SIGKILL.

mod process;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use wharf_model::{
    EngineFacts, Exit, Health, Image, NetworkAssignment, NetworkId, PortSpec, Progress, PublishMode,
    PullPolicy, TaskAssignment, TaskId, Timestamp, VolumeAssignment, VolumeId,
};
use wharf_process::{Clock, Tasks};

use self::process::{Process, Program};
use super::{
    Container, ContainerId, ContainerState, Credentials, EngineCheck, ExecControl, ExecRequest, ExecSession,
    FirstProcess, LocalImage, LocalNetwork, LocalVolume, LogFrame, LogQuery, LogSource, LogStream,
    NewContainer, NodeImage, ProgressSink, Result, Runtime, RuntimeError, RuntimeEvent, RuntimeFacts, Stats,
    Surroundings, container_name,
};

/// Events that a slow listener may fall behind; then its stream ends, as an engine's does.
const EVENTS: usize = 1024;
/// Pieces of a command's output in flight.
const PIECES: usize = 64;

/// An engine in memory. Clones are the same engine.
#[derive(Clone)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}
impl std::fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeRuntime")
    }
}

struct Inner {
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    state: Mutex<State>,
    events: Mutex<broadcast::Sender<RuntimeEvent>>,
}

struct State {
    down: bool,
    latency: Duration,
    images: BTreeMap<String, FakeImage>,
    registry: BTreeMap<String, FakeImage>,
    containers: BTreeMap<String, Entry>,
    networks: BTreeMap<NetworkId, NetworkAssignment>,
    volumes: BTreeMap<VolumeId, VolumeAssignment>,
    foreign: BTreeMap<String, ContainerState>,
    /// Real processes that stand for tasks', and how often they were looked for.
    processes: BTreeMap<TaskId, (i64, usize)>,
    inspections: usize,
    oom_kills: BTreeMap<TaskId, u32>,
    asked: BTreeMap<&'static str, usize>,
    calls: Vec<String>,
    commands: Vec<ExecRequest>,
    failures: BTreeMap<&'static str, VecDeque<RuntimeError>>,
    made: u64,
}

/// An image of the fake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeImage {
    /// The engine's identifier.
    pub id: String,
    /// Its digest at the registry, if it came from there.
    pub digest: Option<String>,
    /// The check it comes with: a script whose exit code counts.
    pub healthcheck: Option<Vec<String>>,
    /// What its own command does, as a script; runs until it is asked to stop if absent.
    pub script: Option<String>,
}
impl FakeImage {
    /// An image that was loaded: no registry has it.
    pub fn loaded(reference: &str) -> Self {
        Self { id: fake_digest("id", reference), digest: None, healthcheck: None, script: None }
    }
    /// An image of a registry.
    pub fn published(reference: &str) -> Self {
        Self { digest: Some(fake_digest("digest", reference)), ..Self::loaded(reference) }
    }
}

struct Entry {
    task: TaskAssignment,
    surroundings: Surroundings,
    container: Container,
    process: Option<Process>,
    logs: Vec<LogFrame>,
    /// Counts changes of state and output, for those who wait or follow.
    changed: watch::Sender<u64>,
}

impl FakeRuntime {
    /// An engine with nothing on it. Its processes are tasks of `tasks`.
    pub fn new(tasks: &Tasks, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            down: false,
            latency: Duration::ZERO,
            images: BTreeMap::new(),
            registry: BTreeMap::new(),
            containers: BTreeMap::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            foreign: BTreeMap::new(),
            processes: BTreeMap::new(),
            inspections: 0,
            oom_kills: BTreeMap::new(),
            asked: BTreeMap::new(),
            calls: Vec::new(),
            commands: Vec::new(),
            failures: BTreeMap::new(),
            made: 0,
        };
        let events = Mutex::new(broadcast::channel(EVENTS).0);
        Self { inner: Arc::new(Inner { clock, tasks: tasks.clone(), state: Mutex::new(state), events }) }
    }

    /// Puts an image on the node.
    pub fn load_image(&self, reference: &str, image: FakeImage) {
        self.inner.state.lock().images.insert(reference.to_owned(), image);
    }
    /// How many images the node has.
    pub fn image_count(&self) -> usize {
        self.inner.state.lock().images.len()
    }
    /// Puts an image into every registry.
    pub fn publish_image(&self, reference: &str, image: FakeImage) {
        self.inner.state.lock().registry.insert(reference.to_owned(), image);
    }
    /// Stops or starts answering, containers going on meanwhile as under live-restore.
    pub fn set_down(&self, down: bool) {
        self.inner.state.lock().down = down;
        if down {
            // Whoever listens for events loses the stream.
            *self.inner.events.lock() = broadcast::channel(EVENTS).0;
        }
    }
    /// Every call takes so long from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.state.lock().latency = latency;
    }
    /// The next call of that name (`ensure_image`, `create`, `start`, …) fails with this.
    pub fn fail_next(&self, call: &'static str, error: RuntimeError) {
        self.inner.state.lock().failures.entry(call).or_default().push_back(error);
    }
    /// Ends a task's process, as a crash would.
    pub fn crash(&self, task: TaskId, exit: Exit) {
        self.inner.end(task, exit);
    }
    /// Ends the processes of a container, as somebody beside the engine does, whatever the engine says to those who ask it.
    pub fn end_processes(&self, container: &ContainerId) {
        let key = self.inner.state.lock().key(container);
        if let Ok(Some(id)) = key {
            self.inner.ended(&id, Exit { code: 137, oom: false });
        }
    }
    /// Every container ends, as when the machine loses power. Nothing starts by itself.
    pub fn power_cycle(&self) {
        let running: Vec<_> = {
            let state = self.inner.state.lock();
            let entries = state.containers.values();
            entries.filter(|entry| entry.container.state.is_running()).map(|entry| entry.task.id).collect()
        };
        running.into_iter().for_each(|task| self.inner.end(task, Exit { code: 255, oom: false }));
    }
    /// What there is to see of the tasks whose processes run, whatever the engine says to those who ask it.
    pub fn running<T>(&self, see: impl Fn(&TaskAssignment) -> T) -> Vec<T> {
        let state = self.inner.state.lock();
        let running = state.containers.values().filter(|entry| entry.container.state.is_running());
        running.map(|entry| see(&entry.task)).collect()
    }
    /// What the engine's check of a task says from now on.
    pub fn set_health(&self, task: TaskId, health: Health, output: &str) {
        self.inner.set_health(task, health, output);
    }
    /// From now on this process of the machine stands for the task's. The engine learns nothing from it.
    pub fn stand_in(&self, task: TaskId, process: i64) {
        self.inner.state.lock().processes.insert(task, (process, 0));
        let changed = self
            .inner
            .id_of(task)
            .and_then(|id| self.inner.change(&id, |entry| entry.container.pid = process));
        if let Some(((), container)) = changed {
            self.inner.tell(&container, "start");
        }
    }
    /// How often the process that stands for a task's was looked for.
    pub fn looked_for(&self, task: TaskId) -> usize {
        self.inner.state.lock().processes.get(&task).map_or(0, |(_, times)| *times)
    }
    /// How often a container was inspected.
    pub fn inspections(&self) -> usize {
        self.inner.state.lock().inspections
    }
    /// The kernel has ended so many of a task's processes for want of memory.
    pub fn set_oom_kills(&self, task: TaskId, kills: u32) {
        self.inner.state.lock().oom_kills.insert(task, kills);
        if let Some(((), container)) = self.inner.id_of(task).and_then(|id| self.inner.change(&id, |_| ())) {
            self.inner.tell(&container, "oom");
        }
    }
    /// A container that somebody else made.
    pub fn add_foreign_container(&self, name: &str) {
        let state = ContainerState::Running { started_at: self.inner.now() };
        self.inner.state.lock().foreign.insert(name.to_owned(), state);
    }
    /// The names of containers that somebody else made.
    pub fn foreign_containers(&self) -> Vec<String> {
        self.inner.state.lock().foreign.keys().cloned().collect()
    }
    /// The task and the surroundings a container was made from.
    pub fn made_from(&self, task: TaskId) -> Option<(TaskAssignment, Surroundings)> {
        let state = self.inner.state.lock();
        let mut entries = state.containers.values();
        let entry = entries.find(|entry| entry.task.id == task)?;
        Some((entry.task.clone(), entry.surroundings.clone()))
    }
    /// Every call so far that was made to change something, such as `start web-1-0123`.
    pub fn calls(&self) -> Vec<String> {
        self.inner.state.lock().calls.clone()
    }
    /// How often the engine was called by this name so far, such as `inspect` or `list`.
    pub fn asked(&self, call: &str) -> usize {
        self.inner.state.lock().asked.get(call).copied().unwrap_or_default()
    }
    /// Every further command that was run in a container so far.
    pub fn commands(&self) -> Vec<ExecRequest> {
        self.inner.state.lock().commands.clone()
    }
    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.inner.state.lock().calls.clear();
    }

    /// What every call begins with: the latency, the engine being there, and failures that were asked for.
    async fn enter(&self, call: &'static str) -> Result<()> {
        let latency = self.inner.state.lock().latency;
        if !latency.is_zero() {
            self.inner.clock.sleep(latency).await;
        }
        let mut state = self.inner.state.lock();
        *state.asked.entry(call).or_default() += 1;
        if state.down {
            return Err(RuntimeError::unreachable(format!("cannot {call}: the engine does not answer")));
        }
        state.failures.get_mut(call).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }
}

impl Inner {
    fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0)
    }

    /// Tells of something that happened to a container. Called without the lock on the state.
    fn tell(&self, container: &Container, action: &str) {
        let event = RuntimeEvent {
            container: container.id.clone(),
            task: Some(container.task),
            action: action.to_owned(),
            at: self.now(),
        };
        // Nobody listening is no loss: whoever comes later lists first.
        let _ = self.events.lock().send(event);
    }

    fn change<T>(&self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<(T, Container)> {
        let mut state = self.state.lock();
        let entry = state.containers.get_mut(id)?;
        let result = change(entry);
        entry.changed.send_modify(|count| *count += 1);
        Some((result, entry.container.clone()))
    }

    fn id_of(&self, task: TaskId) -> Option<String> {
        let state = self.state.lock();
        let mut containers = state.containers.iter();
        containers.find(|(_, entry)| entry.task.id == task).map(|(id, _)| id.clone())
    }

    fn end(&self, task: TaskId, exit: Exit) {
        if let Some(id) = self.id_of(task) {
            self.ended(&id, exit);
        }
    }

    /// Notes that a container's process has ended; nothing if it had.
    fn ended(&self, id: &str, exit: Exit) {
        let now = self.now();
        let changed = self.change(id, |entry| {
            let ContainerState::Running { started_at } = entry.container.state else { return false };
            entry.container.state = ContainerState::Exited {
                started_at: Some(started_at),
                ended_at: now,
                exit,
                error: String::new(),
            };
            entry.container.pid = 0;
            entry.process = None;
            true
        });
        if let Some((true, container)) = changed {
            self.tell(&container, "die");
        }
    }

    fn set_health(&self, task: TaskId, health: Health, output: &str) {
        let Some(id) = self.id_of(task) else { return };
        let changed = self.change(&id, |entry| {
            let check = EngineCheck { health, output: output.to_owned() };
            let before = entry.container.check.replace(check);
            before.is_none_or(|before| before.health != health)
        });
        if let Some((true, container)) = changed {
            self.tell(&container, &format!("health_status: {health}"));
        }
    }

    fn write_log(&self, id: &str, source: LogSource, bytes: Bytes) {
        let at = Some(self.now());
        self.change(id, |entry| entry.logs.push(LogFrame { at, source, bytes }));
    }

    /// Runs a container's process to its end, from a task of its own.
    async fn run_process(self: Arc<Self>, id: String, program: Program, process: Process) {
        let log = {
            let (inner, id) = (Arc::clone(&self), id.clone());
            move |source, bytes| {
                let (inner, id) = (Arc::clone(&inner), id.clone());
                async move { inner.write_log(&id, source, bytes) }
            }
        };
        let exit = process.run(&*self.clock, program, Box::pin(tokio::io::empty()), log).await;
        self.ended(&id, exit);
    }

    /// Runs an engine's health check for as long as the process runs.
    async fn run_check(
        self: Arc<Self>,
        id: String,
        task: TaskAssignment,
        test: Vec<String>,
        mut changed: watch::Receiver<u64>,
    ) {
        let spec = task.spec.healthcheck.clone().unwrap_or_default();
        let interval = spec.interval.map_or(Duration::from_secs(30), |interval| interval.duration());
        let retries = spec.retries.unwrap_or(3);
        let started = self.clock.monotonic();
        let grace = spec.start_period.map_or(Duration::ZERO, |period| period.duration());
        let mut failures = 0;
        loop {
            let pause = self.clock.sleep(interval);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    // Not dropped between rounds: pinned outside.
                    () = &mut pause => break,
                    // Cancel-safe: a watch channel keeps its value.
                    more = changed.changed() => {
                        if more.is_err() || !self.runs(&id) {
                            return;
                        }
                    }
                }
            }
            if !self.runs(&id) {
                return;
            }
            let program = Program::parse(
                test.get(1..).unwrap_or_default(),
                test.first().is_some_and(|kind| kind == "CMD-SHELL"),
            );
            let printed = Arc::new(Mutex::new(String::new()));
            let sink = Arc::clone(&printed);
            let log = move |_: LogSource, bytes: Bytes| {
                sink.lock().push_str(&String::from_utf8_lossy(&bytes));
                std::future::ready(())
            };
            let exit =
                Process::new(false).run(&*self.clock, program, Box::pin(tokio::io::empty()), log).await;
            let output = printed.lock().trim_end().to_owned();
            failures = if exit.is_success() { 0 } else { failures + 1 };
            let forgiven = self.clock.monotonic().saturating_sub(started) < grace;
            let health = match (exit.is_success(), failures >= retries && !forgiven) {
                (true, _) => Health::Healthy,
                (false, true) => Health::Unhealthy,
                (false, false) => self.health(&id).unwrap_or(Health::Starting),
            };
            self.set_health(task.id, health, &output);
        }
    }

    fn runs(&self, id: &str) -> bool {
        self.state.lock().containers.get(id).is_some_and(|entry| entry.container.state.is_running())
    }

    fn health(&self, id: &str) -> Option<Health> {
        self.state.lock().containers.get(id)?.container.check.as_ref().map(|check| check.health)
    }
}

impl State {
    /// The key of a container by identifier or name.
    fn key(&self, container: &ContainerId) -> Result<Option<String>> {
        if self.foreign.contains_key(&container.0) {
            return Err(RuntimeError::fatal(format!(
                "the container `{container}` was not made by this cluster"
            )));
        }
        if self.containers.contains_key(&container.0) {
            return Ok(Some(container.0.clone()));
        }
        let mut all = self.containers.iter();
        Ok(all.find(|(_, entry)| entry.container.name == container.0).map(|(id, _)| id.clone()))
    }

    fn existing(&self, container: &ContainerId) -> Result<String> {
        let gone = || RuntimeError::not_found(format!("the container {container} is gone"));
        self.key(container)?.ok_or_else(gone)
    }

    fn find_image(&self, image: &Image) -> Option<&FakeImage> {
        let pinned = image.digest.is_some() || image.id.is_some();
        if !pinned {
            return self.images.get(&image.reference);
        }
        self.images.values().find(|known| {
            (image.digest.is_some() && known.digest == image.digest)
                || image.id.as_ref().is_some_and(|id| known.id == *id)
        })
    }

    fn note(&mut self, call: &str, what: impl std::fmt::Display) {
        self.calls.push(format!("{call} {what}"));
    }
}

fn read_local(image: &FakeImage) -> LocalImage {
    LocalImage { id: image.id.clone(), has_healthcheck: image.healthcheck.is_some(), pulled: false }
}

fn fake_digest(kind: &str, text: &str) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(format!("{kind} {text}"))))
}

/// The program of a task: its own command, else its image's.
fn program_of(task: &TaskAssignment, image: Option<&FakeImage>) -> Program {
    let spec = &task.spec.container;
    let words: Vec<String> =
        spec.entrypoint.iter().flatten().chain(spec.command.iter().flatten()).cloned().collect();
    match (words.is_empty(), image.and_then(|image| image.script.as_ref())) {
        (false, _) => Program::parse(&words, false),
        (true, Some(script)) => Program::parse(std::slice::from_ref(script), true),
        (true, None) => Program::server(),
    }
}

/// The engine's check of a task, if there is one.
fn check_of(task: &TaskAssignment, image: Option<&FakeImage>) -> Option<Vec<String>> {
    if task.spec.probe.is_some() {
        return None;
    }
    let own = task.spec.healthcheck.as_ref().and_then(|check| check.test.clone());
    own.or_else(|| image?.healthcheck.clone()).filter(|test| test.first().is_some_and(|kind| kind != "NONE"))
}

fn host_ports(ports: &[PortSpec]) -> BTreeMap<u16, u16> {
    let host = ports.iter().filter(|port| port.mode == PublishMode::Host);
    host.map(|port| (port.target, port.published.unwrap_or(port.target | 0x8000))).collect()
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn facts(&self) -> Result<RuntimeFacts> {
        self.enter("facts").await?;
        Ok(RuntimeFacts {
            engine: EngineFacts {
                version: "20.10.24".to_owned(),
                api_version: "1.41".to_owned(),
                labels: BTreeMap::new(),
                live_restore: true,
                storage_driver: "memory".to_owned(),
            },
            cgroup_version: 2,
            cpus: 4,
            memory: 8 << 30,
            architecture: "amd64".to_owned(),
            kernel: "6.1.0".to_owned(),
            data_root: Some("/var/lib/engine".into()),
            devices: Vec::new(),
        })
    }

    async fn ensure_image(
        &self,
        image: &Image,
        policy: PullPolicy,
        _credentials: Option<&Credentials>,
        progress: ProgressSink<'_>,
    ) -> Result<LocalImage> {
        self.enter("ensure_image").await?;
        let mut state = self.inner.state.lock();
        let pinned = image.digest.is_some() || image.id.is_some();
        let ask_first = policy == PullPolicy::Always && !pinned;
        if !ask_first && let Some(found) = state.find_image(image) {
            return Ok(read_local(found));
        }
        let only_here = image.digest.is_none() && image.id.is_some();
        let known = state.registry.get(&image.reference).cloned();
        let fits = |known: &FakeImage| image.digest.is_none() || known.digest == image.digest;
        match known.filter(|known| policy != PullPolicy::Never && !only_here && fits(known)) {
            Some(found) => {
                progress(Progress { current: 50, total: 100 });
                progress(Progress { current: 100, total: 100 });
                state.note("pull", &image.reference);
                state.images.insert(image.reference.clone(), found.clone());
                Ok(LocalImage { pulled: true, ..read_local(&found) })
            }
            None => {
                Err(RuntimeError::fatal(format!("this node does not have the image {}", image.reference))
                    .with_hint("it exists only on the nodes it was loaded on, or nowhere: load it here"))
            }
        }
    }

    async fn resolve_image(
        &self,
        reference: &str,
        policy: PullPolicy,
        _: Option<&Credentials>,
    ) -> Result<Image> {
        self.enter("resolve_image").await?;
        let state = self.inner.state.lock();
        let pinned = |image: &FakeImage, id: Option<String>| Image {
            reference: reference.to_owned(),
            digest: image.digest.clone(),
            id,
            built: None,
        };
        if let Some(found) = state.registry.get(reference).filter(|_| policy != PullPolicy::Never) {
            return Ok(pinned(found, None));
        }
        let local = state.images.get(reference).map(|found| pinned(found, Some(found.id.clone())));
        local.ok_or_else(|| {
            RuntimeError::fatal(format!(
                "image {reference} is not to be had: its registry said: manifest unknown; and this node does not have it"
            ))
            .with_hint("check its name and tag")
        })
    }

    async fn create(&self, container: &NewContainer<'_>) -> Result<ContainerId> {
        self.enter("create").await?;
        let (task, surroundings) = (container.task, container.surroundings);
        let name = container_name(task);
        let made = {
            let mut state = self.inner.state.lock();
            if let Some(id) = state.key(&ContainerId(name.clone()))? {
                return Ok(ContainerId(id));
            }
            let image = state.images.values().find(|image| image.id == surroundings.image_id);
            if image.is_none() {
                return Err(RuntimeError::not_found(format!("no such image: {}", surroundings.image_id)));
            }
            if let Some((service, shared)) = task
                .spec
                .companions()
                .into_iter()
                .find(|(service, _)| !surroundings.companions.contains_key(*service))
            {
                return Err(RuntimeError::temporary(format!(
                    "no task of `{service}` runs on this node whose {shared} could be shared"
                )));
            }
            state.made += 1;
            let id = hex::encode(state.made.to_be_bytes());
            let container = Container {
                id: ContainerId(id.clone()),
                name: name.clone(),
                task: task.id,
                image_id: surroundings.image_id.clone(),
                state: ContainerState::Created,
                pid: 0,
                check: None,
                host_ports: BTreeMap::new(),
                addresses: surroundings
                    .networks
                    .iter()
                    .map(|on| (on.network.clone(), on.address.into()))
                    .collect(),
            };
            let entry = Entry {
                task: task.clone(),
                surroundings: surroundings.clone(),
                container: container.clone(),
                process: None,
                logs: Vec::new(),
                changed: watch::Sender::new(0),
            };
            state.containers.insert(id, entry);
            state.note("create", &name);
            container
        };
        self.inner.tell(&made, "create");
        Ok(made.id)
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        self.enter("start").await?;
        let (id, program, check, task) = {
            let mut state = self.inner.state.lock();
            let id = state.existing(container)?;
            let entry = &state.containers[&id];
            if entry.container.state.is_running() {
                return Ok(());
            }
            let image = state.images.values().find(|image| image.id == entry.surroundings.image_id);
            let (program, check) = (program_of(&entry.task, image), check_of(&entry.task, image));
            let (name, task) = (entry.container.name.clone(), entry.task.clone());
            if let Some(missing) = program.missing {
                return Err(RuntimeError::fatal(format!(
                    "cannot start the container: exec: {missing}: no such program"
                ))
                .with_hint("check `command` and `entrypoint`"));
            }
            state.note("start", &name);
            (id, program, check, task)
        };
        let now = self.inner.now();
        let process = Process::new(task.spec.container.init != Some(true));
        let handle = process.clone();
        let changed = self.inner.change(&id, |entry| {
            entry.container.state = ContainerState::Running { started_at: now };
            entry.container.pid = 4242;
            entry.container.host_ports = host_ports(&entry.task.spec.ports);
            entry.container.check =
                check.as_ref().map(|_| EngineCheck { health: Health::Starting, output: String::new() });
            entry.process = Some(handle);
            entry.changed.subscribe()
        });
        let Some((watcher, container)) = changed else { return Ok(()) };
        self.inner.tell(&container, "start");
        let name = &container.name;
        self.inner.tasks.spawn(
            format!("fake process {name}"),
            Arc::clone(&self.inner).run_process(id.clone(), program, process),
        );
        if let Some(test) = check {
            let checking = Arc::clone(&self.inner).run_check(id, task, test, watcher);
            self.inner.tasks.spawn(format!("fake check {name}"), checking);
        }
        Ok(())
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<()> {
        self.enter("stop").await?;
        let (process, mut changed, id) = {
            let mut state = self.inner.state.lock();
            let Some(id) = state.key(container)? else { return Ok(()) };
            let entry = &state.containers[&id];
            let Some(process) = entry.process.clone() else { return Ok(()) };
            let (name, changed) = (entry.container.name.clone(), entry.changed.subscribe());
            let signal =
                entry.task.spec.container.stop_signal.clone().unwrap_or_else(|| "SIGTERM".to_owned());
            process.signal(super::docker::signal_number(&signal)? as i32);
            state.note("stop", name);
            (process, changed, id)
        };
        let inner = &self.inner;
        let stopped = async move {
            // An entry that is gone has stopped as well.
            let _ = changed.wait_for(|_| !inner.runs(&id)).await;
        };
        tokio::pin!(stopped);
        tokio::select! {
            // Not dropped: pinned, and awaited below.
            () = &mut stopped => return Ok(()),
            // Dropped when the process has stopped.
            () = self.inner.clock.sleep(grace) => process.signal(9),
        }
        stopped.await;
        Ok(())
    }

    async fn kill(&self, container: &ContainerId, signal: &str) -> Result<()> {
        self.enter("kill").await?;
        let number = super::docker::signal_number(signal)? as i32;
        let state = self.inner.state.lock();
        let Some(id) = state.key(container)? else { return Ok(()) };
        if let Some(process) = &state.containers[&id].process {
            process.signal(number);
        }
        Ok(())
    }

    async fn remove(&self, container: &ContainerId) -> Result<()> {
        self.enter("remove").await?;
        let removed = {
            let mut state = self.inner.state.lock();
            let Some(id) = state.key(container)? else { return Ok(()) };
            let Some(entry) = state.containers.remove(&id) else { return Ok(()) };
            state.note("remove", &entry.container.name);
            entry
        };
        if let Some(process) = removed.process {
            process.signal(9);
        }
        self.inner.tell(&removed.container, "destroy");
        Ok(())
    }

    async fn wait(&self, container: &ContainerId) -> Result<Exit> {
        self.enter("wait").await?;
        let (id, mut changed) = {
            let state = self.inner.state.lock();
            let id = state.existing(container)?;
            let changed = state.containers[&id].changed.subscribe();
            (id, changed)
        };
        let _ = changed.wait_for(|_| !self.inner.runs(&id)).await;
        match self.inspect(container).await? {
            Some(Container { state: ContainerState::Exited { exit, .. }, .. }) => Ok(exit),
            Some(_) => Err(RuntimeError::temporary(format!("the container {container} has not ended"))),
            None => Err(RuntimeError::not_found(format!("the container {container} is gone"))),
        }
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Option<Container>> {
        self.enter("inspect").await?;
        let mut state = self.inner.state.lock();
        state.inspections += 1;
        Ok(state.key(container)?.map(|id| state.containers[&id].container.clone()))
    }

    async fn first_process(&self, container: &Container) -> io::Result<Option<FirstProcess>> {
        let number = {
            let mut state = self.inner.state.lock();
            let Some((number, times)) = state.processes.get_mut(&container.task) else { return Ok(None) };
            *times += 1;
            *number
        };
        FirstProcess::numbered(number)
    }

    async fn inspect_raw(&self, container: &ContainerId) -> Result<serde_json::Value> {
        self.enter("inspect_raw").await?;
        let state = self.inner.state.lock();
        let entry = &state.containers[&state.existing(container)?];
        Ok(serde_json::json!({
            "Id": entry.container.id.0,
            "Name": format!("/{}", entry.container.name),
            "State": { "Running": entry.container.state.is_running() },
        }))
    }

    async fn list(&self) -> Result<Vec<Container>> {
        self.enter("list").await?;
        let state = self.inner.state.lock();
        let mut all: Vec<_> = state.containers.values().map(|entry| entry.container.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    async fn logs(&self, container: &ContainerId, query: LogQuery) -> Result<LogStream> {
        self.enter("logs").await?;
        let (id, mut changed, there) = {
            let state = self.inner.state.lock();
            let id = state.existing(container)?;
            let entry = &state.containers[&id];
            (id.clone(), entry.changed.subscribe(), entry.logs.len())
        };
        let wanted = move |frame: &LogFrame| {
            let source = match frame.source {
                LogSource::Stdout => query.stdout,
                LogSource::Stderr => query.stderr,
            };
            let at = frame.at.unwrap_or_default();
            source
                && query.since.is_none_or(|since| at >= since)
                && query.until.is_none_or(|until| at <= until)
        };
        let first: Vec<LogFrame> = {
            let state = self.inner.state.lock();
            let logs = state.containers.get(&id).map(|entry| &entry.logs[..there]).unwrap_or_default();
            let skip = query
                .tail
                .map_or(0, |tail| logs.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)));
            let first: Vec<_> = logs.iter().skip(skip).filter(|frame| wanted(frame)).cloned().collect();
            first
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let inner = Arc::clone(&self.inner);
        self.inner.tasks.spawn("fake logs", async move {
            for frame in first {
                if sender.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            if !query.follow {
                return;
            }
            let mut next = there;
            loop {
                let (new, runs) = {
                    let state = inner.state.lock();
                    let Some(entry) = state.containers.get(&id) else { return };
                    let new: Vec<_> = entry.logs[next..].to_vec();
                    (new, entry.container.state.is_running())
                };
                next += new.len();
                let had_none = new.is_empty();
                for frame in new.into_iter().filter(|frame| wanted(frame)) {
                    if sender.send(Ok(frame)).await.is_err() {
                        return;
                    }
                }
                if !runs && had_none {
                    return;
                }
                if had_none {
                    tokio::select! {
                        // Cancel-safe: a watch channel keeps its value.
                        more = changed.changed() => if more.is_err() { return },
                        // Cancel-safe: waits for a flag.
                        () = sender.closed() => return,
                    }
                }
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    async fn exec(&self, container: &ContainerId, request: &ExecRequest) -> Result<ExecSession> {
        self.enter("exec").await?;
        {
            let mut state = self.inner.state.lock();
            let entry = &state.containers[&state.existing(container)?];
            if !entry.container.state.is_running() {
                return Err(RuntimeError::fatal(format!("the container {container} does not run")));
            }
            state.commands.push(request.clone());
        }
        let program = Program::parse(&request.command, false);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (sender, receiver) = mpsc::channel(PIECES);
        let process = Process::new(false);
        let code = watch::Sender::new(None);
        let exec =
            FakeExec { process: process.clone(), code: code.subscribe(), size: Mutex::new(request.size) };
        if let Some(missing) = &program.missing {
            let text = format!("exec: {missing}: no such file or directory\r\n");
            let frame = LogFrame { at: None, source: LogSource::Stdout, bytes: Bytes::from(text) };
            let _ = sender.try_send(Ok(frame));
            code.send_replace(Some(127));
        } else {
            let (inner, tty) = (Arc::clone(&self.inner), request.tty);
            self.inner.tasks.spawn("fake exec", async move {
                let print = move |source, bytes| {
                    let sender = sender.clone();
                    let source = if tty { LogSource::Stdout } else { source };
                    // Whoever no longer listens misses nothing.
                    async move { drop(sender.send(Ok(LogFrame { at: None, source, bytes })).await) }
                };
                let exit = process.run(&*inner.clock, program, Box::pin(far), print).await;
                code.send_replace(Some(exit.code));
            });
        }
        let output = ReceiverStream::new(receiver).boxed();
        Ok(ExecSession { input: Box::pin(near), output, control: Arc::new(exec) })
    }

    async fn stats(
        &self,
        container: &ContainerId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Stats>>> {
        self.enter("stats").await?;
        let id = self.inner.state.lock().existing(container)?;
        let inner = Arc::clone(&self.inner);
        let stream = futures::stream::unfold((inner, id, 0_u64), move |(inner, id, count)| async move {
            if count > 0 {
                if !follow {
                    return None;
                }
                inner.clock.sleep(Duration::from_secs(1)).await;
            }
            if !inner.runs(&id) {
                return None;
            }
            let stats = Stats {
                at: inner.now(),
                cpu_nanos: (count + 1) * 10_000_000,
                cpu_millis: 10,
                memory: 4 << 20,
                memory_limit: 8 << 30,
                pids: 1,
                ..Stats::default()
            };
            Some((Ok(stats), (inner, id, count + 1)))
        });
        Ok(stream.boxed())
    }

    async fn events(&self, _since: Option<Timestamp>) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        self.enter("events").await?;
        let receiver = self.inner.events.lock().subscribe();
        let lost = |what: &str| RuntimeError::unreachable(format!("the engine's events broke off: {what}"));
        let events =
            BroadcastStream::new(receiver).map(move |item| item.map_err(|error| lost(&error.to_string())));
        let ended = futures::stream::once(std::future::ready(Err(lost("the engine closed the stream"))));
        Ok(events.chain(ended).boxed())
    }

    async fn ensure_network(&self, network: &NetworkAssignment, _mtu: u32) -> Result<LocalNetwork> {
        self.enter("ensure_network").await?;
        let mut state = self.inner.state.lock();
        let mut others = state.networks.values();
        let taken = others.any(|other| other.name == network.name && other.id != network.id);
        if state.networks.insert(network.id, network.clone()).is_none() {
            state.note("create-network", &network.name);
        }
        let name = &network.name;
        Ok(LocalNetwork { name: if taken { format!("{name}-{}", network.id.short()) } else { name.clone() } })
    }

    async fn remove_network(&self, network: NetworkId) -> Result<()> {
        self.enter("remove_network").await?;
        let mut state = self.inner.state.lock();
        let mut entries = state.containers.values();
        if entries.any(|entry| {
            entry.container.state.is_running()
                && entry.task.attachments.iter().any(|on| on.network == network)
        }) {
            return Err(RuntimeError::temporary("the network is in use"));
        }
        if let Some(removed) = state.networks.remove(&network) {
            state.note("remove-network", removed.name);
        }
        Ok(())
    }

    async fn list_networks(&self) -> Result<Vec<NetworkId>> {
        self.enter("list_networks").await?;
        Ok(self.inner.state.lock().networks.keys().copied().collect())
    }

    async fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<LocalVolume> {
        self.enter("ensure_volume").await?;
        let mut state = self.inner.state.lock();
        let mut others = state.volumes.values();
        let taken = others.any(|other| other.name == volume.name && other.id != volume.id);
        if volume.spec.external {
            let name = volume.name.clone();
            return if taken { Ok(LocalVolume { name }) } else { Err(super::no_external_volume(&name)) };
        }
        if state.volumes.insert(volume.id, volume.clone()).is_none() {
            state.note("create-volume", &volume.name);
        }
        let name = &volume.name;
        Ok(LocalVolume { name: if taken { format!("{name}-{}", volume.id.short()) } else { name.clone() } })
    }

    async fn remove_volume(&self, volume: VolumeId) -> Result<()> {
        self.enter("remove_volume").await?;
        let mut state = self.inner.state.lock();
        let mut entries = state.containers.values();
        if entries.any(|entry| entry.task.volumes.values().any(|id| *id == volume)) {
            return Err(RuntimeError::temporary("the volume is in use"));
        }
        if let Some(removed) = state.volumes.remove(&volume) {
            state.note("remove-volume", removed.name);
        }
        Ok(())
    }

    async fn oom_kills(&self, container: &Container) -> Option<u32> {
        self.inner.state.lock().oom_kills.get(&container.task).copied()
    }

    async fn list_images(&self) -> Result<Vec<NodeImage>> {
        self.enter("list_images").await?;
        let state = self.inner.state.lock();
        let mut images = BTreeMap::<String, NodeImage>::new();
        for (name, image) in &state.images {
            let known = images.entry(image.id.clone()).or_insert_with(|| NodeImage {
                id: image.id.clone(),
                digests: image.digest.clone().into_iter().collect(),
                size: 100 << 20,
                used: state.containers.values().any(|entry| entry.container.image_id == image.id),
                names: Vec::new(),
            });
            known.names.push(name.clone());
        }
        Ok(images.into_values().collect())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        self.enter("remove_image").await?;
        let mut state = self.inner.state.lock();
        if state.containers.values().any(|entry| entry.container.image_id == id) {
            return Err(RuntimeError::temporary(format!("a container is made from the image {id}")));
        }
        state.images.retain(|_, image| image.id != id);
        state.note("remove_image", id);
        Ok(())
    }
}

/// A command at work in a container of the fake.
struct FakeExec {
    process: Process,
    code: watch::Receiver<Option<i64>>,
    size: Mutex<Option<(u16, u16)>>,
}

#[async_trait]
impl ExecControl for FakeExec {
    async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        *self.size.lock() = Some((columns, rows));
        Ok(())
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        self.process.signal(super::docker::signal_number(signal)? as i32);
        Ok(())
    }

    async fn exit_code(&self) -> Result<i64> {
        let mut code = self.code.clone();
        let ended = code.wait_for(Option::is_some).await;
        let code = ended.ok().and_then(|code| *code);
        code.ok_or_else(|| RuntimeError::temporary("the command was lost"))
    }
}
