//! A node without containers: it says that whatever it is given runs, and changes what it says of many tasks at once when it is told to.
//!
//! For measuring what follows from changes, on nodes that are real, where containers themselves would cost more than all else.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use wharf_agent::{
    facts::Machine,
    reports::{Report, Reports},
    runtime::RuntimeFacts,
    session::{self, Home, JoinOptions, Node, Refusal, join, router::Exec},
};
use wharf_api::{
    transport::{
        Timing,
        node::{Have, LogsQuery, OutputLine, ResolveImage, TaskUsage},
    },
    v1::{Code, ExecRequest},
};
use wharf_model::{
    AssignmentSet, EngineFacts, Health, Image, NodeReport, Phase, Revision, Slot, Target, TaskId, TaskStatus,
    Timestamp,
};
use wharf_process::{Clock, Shutdown, SystemClock, Tasks};

/// Joins with a line as `wharf server init` prints it (`wharf agent join SERVER --token TOKEN`), and is a node called `name` until the process ends.
///
/// `SIGUSR1` makes the first task of every service unhealthy, `SIGUSR2` makes all healthy again.
///
/// # Errors
/// If it cannot join, or not listen to signals.
pub fn run(join_line: &str, name: &str, address: IpAddr, folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let words: Vec<_> = join_line.split_whitespace().collect();
        let after = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let home = Home::new(folder);
        let options = JoinOptions {
            token: (*after("--token").context("the line has no token")?).to_owned(),
            servers: vec![after("join").context("the line names no server")?.parse()?],
            name: name.parse()?,
            hostname: name.to_owned(),
            address: Some(address),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            force: false,
        };
        join(options, &home, Timing::default(), Arc::clone(&clock)).await?;
        let puppet =
            Arc::new(Puppet::new(Machine::look(address, env!("CARGO_PKG_VERSION")), Arc::clone(&clock)));
        let tasks = Tasks::new(&Shutdown::new());
        let strings = Arc::clone(&puppet).follow_signals();
        let connected = session::run(puppet, home, Timing::default(), clock, tasks);
        tokio::select! {
            ended = connected => ended.map_err(Into::into),
            error = strings => Err(error.into()),
        }
    })
}

struct Puppet {
    machine: Machine,
    clock: Arc<dyn Clock>,
    reports: Reports,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    order: (u64, Revision),
    tasks: BTreeMap<TaskId, Slot>,
    /// What is said of first tasks.
    first: Health,
}

impl Puppet {
    fn new(machine: Machine, clock: Arc<dyn Clock>) -> Self {
        let held = Mutex::new(Held { first: Health::Healthy, ..Held::default() });
        let puppet = Self { machine, reports: Reports::new(Arc::clone(&clock)), clock, held };
        puppet.say(<_>::default());
        puppet
    }

    fn say(&self, order: (u64, Revision)) {
        let engine = EngineFacts {
            version: "20.10.24".to_owned(),
            api_version: "1.41".to_owned(),
            labels: BTreeMap::new(),
            live_restore: true,
            storage_driver: "overlay2".to_owned(),
        };
        let facts = RuntimeFacts {
            engine,
            cgroup_version: self.machine.cgroup_version,
            cpus: 1_000,
            memory: 1 << 40,
            architecture: self.machine.architecture.clone(),
            kernel: self.machine.kernel.clone(),
            data_root: None,
            devices: Vec::new(),
        };
        let facts = self.machine.facts(&Ok(facts), Vec::new());
        self.reports.node(order, facts, Vec::new(), &BTreeMap::new);
    }

    fn task(&self, task: TaskId, phase: Phase, health: Health) {
        let now = Timestamp(self.clock.now().0);
        let status = TaskStatus {
            phase,
            health,
            started_at: Some(now),
            ready_at: (phase == Phase::Running).then_some(now),
            ended_at: phase.is_over().then_some(now),
            ..TaskStatus::default()
        };
        self.reports.task(task, &status);
    }

    fn take(&self, set: &AssignmentSet) -> Result<Have, Have> {
        let order = (set.epoch, set.revision);
        let have = |(epoch, revision)| Have { epoch, revision };
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if order < held.order {
                return Err(have(held.order));
            }
            held.order = order;
            for gone in held.tasks.keys().filter(|task| !set.tasks.contains_key(task)) {
                self.reports.forget(*gone);
            }
            let before = std::mem::take(&mut held.tasks);
            for task in set.tasks.values() {
                match task.target {
                    Target::Run => {
                        if !before.contains_key(&task.id) {
                            let health = if task.slot == Slot(1) { held.first } else { Health::Healthy };
                            self.task(task.id, Phase::Running, health);
                        }
                        held.tasks.insert(task.id, task.slot);
                    }
                    Target::Stop => self.task(task.id, Phase::Stopped, Health::Unchecked),
                }
            }
        }
        self.say(order);
        Ok(have(order))
    }

    async fn follow_signals(self: Arc<Self>) -> std::io::Error {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut down, mut up) =
            match (signal(SignalKind::user_defined1()), signal(SignalKind::user_defined2())) {
                (Ok(down), Ok(up)) => (down, up),
                (Err(error), _) | (_, Err(error)) => return error,
            };
        loop {
            let health = tokio::select! {
                // Cancel-safe, both: a signal that was not seen is seen by the next call.
                _ = down.recv() => Health::Unhealthy,
                _ = up.recv() => Health::Healthy,
            };
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.first = health;
            for (task, _) in held.tasks.iter().filter(|(_, slot)| **slot == Slot(1)) {
                self.task(*task, Phase::Running, health);
            }
        }
    }
}

fn nothing<T>() -> Result<T, Refusal> {
    Err(Refusal::new(Code::Unavailable, "this node has no containers"))
}

#[async_trait]
impl Node for Puppet {
    async fn assign(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal> {
        Ok(self.take(&set))
    }
    fn reports(&self) -> BoxStream<'static, Report> {
        self.reports.subscribe().boxed()
    }
    async fn resolve_image(&self, _: ResolveImage) -> Result<Image, Refusal> {
        nothing()
    }
    async fn logs(
        &self,
        _: TaskId,
        _: LogsQuery,
    ) -> Result<BoxStream<'static, Result<OutputLine, Refusal>>, Refusal> {
        nothing()
    }
    async fn exec(&self, _: TaskId, _: ExecRequest) -> Result<Box<dyn Exec>, Refusal> {
        nothing()
    }
    async fn stats(&self, _: TaskId) -> Result<TaskUsage, Refusal> {
        nothing()
    }
    async fn inspect(&self, _: TaskId) -> Result<serde_json::Value, Refusal> {
        nothing()
    }
    async fn report(&self) -> NodeReport {
        loop {
            if let Some(report) = self.reports.latest_node() {
                return report;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
