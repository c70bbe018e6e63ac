//! What the agent programs inside the network namespaces of containers: virtual addresses of services, and ways back to gateways.
//!
//! - Exact: after a pass each namespace has what belongs there, and no more of ours. A namespace in which nothing changes is not entered;
//!   a repair asks the kernel whether any rule was changed, and only then looks closer.
//! - A container is programmed after each start, because its namespace is new. Until then nobody is told that virtual addresses lead
//!   anywhere for it ([`Sandboxes::programmed`]).
//! - A namespace is entered only if it has one of the task's addresses: whatever process has the container's number by now, nobody else's
//!   rules are changed.
//! - Rules are replaced in one step. What is connected stays connected.
//!
//! `rules` decides; `ways` keeps rules and routes of IP, `flows` ends datagrams' flows, `nft` has the rules of nftables.

mod flows;
mod rules;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use wharf_model::{AssignmentSet, DnsTable, ENTRY_MARK, PublishMode, TaskId};

pub use self::rules::{Behind, Sandbox};
use self::ways::{Hop, Ways};
use super::nft::{self, NftError, Place};

/// The table in each namespace.
const TABLE: &str = "ip wharf";
/// The table of the node's own namespace, where a gateway runs.
const ENTRY_TABLE: &str = "ip wharf_entry";
/// What answers to them are marked with.
const ANSWER_MARK: u32 = 0x5748_0002;

/// Why a namespace is not as it should be.
#[derive(Debug, thiserror::Error)]
enum SandboxError {
    #[error("the container's process {0} is gone")]
    Gone(i64),
    #[error("cannot enter the network namespace of process {0}")]
    Enter(i64, #[source] io::Error),
    #[error("process {0} is not in the task's network namespace")]
    Foreign(i64),
    #[error("rules not written")]
    Rules(#[from] NftError),
    #[error("ways back to gateways not written")]
    Ways(#[source] io::Error),
}

impl SandboxError {
    /// Whether there is nothing to program any more.
    const fn is_gone(&self) -> bool {
        match self {
            Self::Gone(_) | Self::Foreign(_) => true,
            Self::Enter(..) | Self::Rules(_) | Self::Ways(_) => false,
        }
    }
}

/// What a pass over namespaces did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "says which namespaces are not as they should be"]
pub struct SandboxPass {
    /// Namespaces that were changed.
    pub changed: usize,
    /// What could not be done, by task.
    pub problems: BTreeMap<TaskId, String>,
    /// Tasks whose namespaces still have what belonged there before: connections may begin that should not.
    pub behind: BTreeSet<TaskId>,
}

/// How much was programmed, and how long that took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxCounters {
    /// Times that a namespace was changed.
    pub programmed: u64,
    /// Of these, because others had changed it.
    pub mended: u64,
    /// All the time in them.
    pub busy: Duration,
}

/// The namespaces of the node's containers. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Sandboxes {
    state: Arc<Mutex<State>>,
    /// One pass at a time; only ever waited for where blocking is allowed.
    pass: Arc<Mutex<()>>,
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<TaskId, Arc<Sandbox>>,
    running: BTreeMap<TaskId, Running>,
    problems: BTreeMap<TaskId, String>,
    counters: SandboxCounters,
}

/// A container that runs.
struct Running {
    pid: i64,
    /// Absent before the first time.
    written: Option<Written>,
}

/// What was written into a namespace.
#[derive(Clone)]
struct Written {
    /// The namespace: a process may have the same number later.
    namespace: (u64, u64),
    sandbox: Arc<Sandbox>,
    /// The kernel's count of changes after ours.
    generation: Option<u32>,
    /// What our table looked like; asked for by the first repair.
    shown: Option<String>,
}

impl Sandboxes {
    /// What belongs into each container, from now on, and writes it where it differs. Answers when that is done.
    pub async fn set(&self, wanted: BTreeMap<TaskId, Sandbox>) -> SandboxPass {
        {
            let mut state = self.state.lock();
            let State { wanted: known, running, .. } = &mut *state;
            let before = std::mem::take(known);
            *known = wanted
                .into_iter()
                .map(|(task, sandbox)| match before.get(&task) {
                    Some(same) if **same == sandbox => (task, Arc::clone(same)),
                    Some(_) | None => (task, Arc::new(sandbox)),
                })
                .collect();
            running.retain(|task, _| known.contains_key(task));
        }
        self.work(Look::Changes).await
    }

    /// Says that a task's container runs as this process, and writes what belongs there. Answers the gateways to which it can send answers
    /// back now, and whether its namespace was changed.
    pub async fn started(&self, task: TaskId, pid: i64) -> (BTreeSet<Ipv4Addr>, bool) {
        {
            let mut state = self.state.lock();
            if pid <= 1 || !state.wanted.contains_key(&task) {
                return Default::default();
            }
            let known = state.running.get(&task);
            if known.is_none_or(|running| running.pid != pid) {
                state.running.insert(task, Running { pid, written: None });
            }
            if let Some(written) = state.up_to_date(task) {
                return (written.sandbox.entries.clone(), false);
            }
        }
        let pass = self.work(Look::One(task)).await;
        let state = self.state.lock();
        let entries = state.up_to_date(task).map(|written| written.sandbox.entries.clone());
        (entries.unwrap_or_default(), pass.changed > 0)
    }

    /// Says that a task's container does not run any more. Answers whether that was news.
    pub fn ended(&self, task: TaskId) -> bool {
        let mut state = self.state.lock();
        state.problems.remove(&task);
        state.running.remove(&task).is_some_and(|running| running.written.is_some())
    }

    /// Compares every namespace with what was written, and mends it.
    pub async fn repair(&self) -> SandboxPass {
        self.work(Look::All).await
    }

    /// The addresses of tasks for which virtual addresses lead somewhere.
    #[must_use]
    pub fn programmed(&self) -> BTreeSet<Ipv4Addr> {
        let state = self.state.lock();
        let written = state.running.values().filter_map(|running| running.written.as_ref());
        let with_vips = written.filter(|written| !written.sandbox.vips.is_empty());
        with_vips.flat_map(|written| written.sandbox.own.iter().copied()).collect()
    }

    /// What is not as it should be, in words for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut problems: Vec<_> = state.problems.values().cloned().collect();
        problems.sort_unstable();
        problems.dedup();
        problems
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> SandboxCounters {
        self.state.lock().counters
    }

    async fn work(&self, look: Look) -> SandboxPass {
        if self.state.lock().jobs(look).is_empty() {
            return SandboxPass::default();
        }
        let this = self.clone();
        wharf_process::blocking(move || this.pass(look)).await
    }

    fn pass(&self, look: Look) -> SandboxPass {
        let _alone = self.pass.lock();
        let jobs = self.state.lock().jobs(look);
        let mut pass = SandboxPass::default();
        // A thread of its own, which goes from namespace to namespace and ends in none.
        let outcomes = thread::scope(|scope| {
            let thread = scope.spawn(move || jobs.into_iter().map(Job::work).collect::<Vec<_>>());
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let mut state = self.state.lock();
        for outcome in outcomes {
            state.settle(outcome, &mut pass);
        }
        pass
    }
}

/// Which namespaces a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Those in which something else belongs than was written.
    Changes,
    /// This one, likewise.
    One(TaskId),
    /// All in which something was written or belongs.
    All,
}

impl State {
    /// What was written last for a task, if that is what belongs there.
    fn up_to_date(&self, task: TaskId) -> Option<&Written> {
        let written = self.running.get(&task)?.written.as_ref()?;
        (Some(&written.sandbox) == self.wanted.get(&task)).then_some(written)
    }

    fn jobs(&self, look: Look) -> Vec<Job> {
        let job = |(task, running): (&TaskId, &Running)| {
            let wanted = self.wanted.get(task)?;
            let before = running.written.as_ref();
            if look != Look::All && before.is_some_and(|written| *written.sandbox == **wanted) {
                return None;
            }
            // Where nothing belongs and nothing was written, another agent may have written something: that can wait for a repair.
            let perhaps = match before {
                Some(written) => !written.sandbox.is_empty(),
                None => look == Look::All,
            };
            (!wanted.is_empty() || perhaps).then(|| Job {
                task: *task,
                pid: running.pid,
                wanted: Arc::clone(wanted),
                before: before.cloned(),
            })
        };
        let one = |task: &TaskId| match look {
            Look::One(one) => *task == one,
            Look::Changes | Look::All => true,
        };
        self.running.iter().filter(|(task, _)| one(task)).filter_map(job).collect()
    }

    fn settle(&mut self, outcome: Outcome, pass: &mut SandboxPass) {
        let Outcome { job, result, took } = outcome;
        let Some(running) = self.running.get_mut(&job.task).filter(|running| running.pid == job.pid) else {
            return;
        };
        match result {
            Ok((written, changed)) => {
                self.problems.remove(&job.task);
                if changed {
                    pass.changed += 1;
                    self.counters.programmed += 1;
                    self.counters.busy += took;
                    let mended = job.before.is_some_and(|before| before.sandbox == written.sandbox);
                    self.counters.mended += u64::from(mended);
                }
                running.written = Some(written);
            }
            Err(error) if error.is_gone() => {
                // The task's loop will hear of it.
                running.written = None;
            }
            Err(error) => {
                let text = format!(
                    "virtual addresses and published ports: {}",
                    wharf_process::errors::chain(&error)
                );
                if self.problems.get(&job.task) != Some(&text) {
                    tracing::warn!(task = %job.task, problem = text, "container's network not programmed");
                }
                self.problems.insert(job.task, text.clone());
                pass.problems.insert(job.task, text);
                if running.written.as_ref().is_some_and(|written| !written.sandbox.is_empty()) {
                    pass.behind.insert(job.task);
                }
            }
        }
    }
}

/// One namespace to look at.
struct Job {
    task: TaskId,
    pid: i64,
    wanted: Arc<Sandbox>,
    before: Option<Written>,
}

struct Outcome {
    job: Job,
    result: Result<(Written, bool), SandboxError>,
    took: Duration,
}

impl Job {
    fn work(self) -> Outcome {
        let start = Instant::now();
        let result = self.ensure();
        Outcome { job: self, result, took: start.elapsed() }
    }

    fn ensure(&self) -> Result<(Written, bool), SandboxError> {
        let namespace = self.enter()?;
        let before = self.before.as_ref().filter(|before| before.namespace == namespace);
        let same = before.is_some_and(|before| before.sandbox == self.wanted);
        let mut changed = false;
        let generation = nft::generation().ok();
        let untouched = same && generation.is_some() && before.is_some_and(|b| b.generation == generation);
        let mut written = Written { namespace, sandbox: Arc::clone(&self.wanted), generation, shown: None };
        if untouched {
            // Nobody changed anything since: this is how it looks.
            written.shown = match before.and_then(|before| before.shown.clone()) {
                Some(shown) => Some(shown),
                None => nft::list(Place::Here, TABLE)?,
            };
        } else {
            let shown = before.filter(|_| same).and_then(|before| before.shown.clone());
            let right = shown.is_some() && shown == nft::list(Place::Here, TABLE)?;
            if right {
                written.shown = shown;
            } else {
                self.write()?;
                written.generation = nft::generation().ok();
                changed = true;
            }
        }
        let ways = self.wanted.ways();
        if !ways.is_empty() || before.is_none_or(|before| !before.sandbox.entries.is_empty()) {
            changed |= ways::ensure(&ways).map_err(SandboxError::Ways)? > 0;
        }
        Ok((written, changed))
    }

    fn write(&self) -> Result<(), SandboxError> {
        let script = match self.wanted.body() {
            Some(body) => nft::replacing(TABLE, &body),
            None => nft::removing(TABLE),
        };
        nft::apply(Place::Here, &script)?;
        let vips: BTreeSet<_> = self.wanted.vips.keys().copied().collect();
        if !vips.is_empty()
            && let Err(error) = flows::forget(&vips, &self.wanted.alive())
        {
            // Datagrams from sockets that stay open go on to a task that is gone, and are refused.
            tracing::debug!(%error, task = %self.task, "flows not forgotten");
        }
        Ok(())
    }

    /// Takes this thread into the namespace; answers which one it is.
    fn enter(&self) -> Result<(u64, u64), SandboxError> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.pid));
        let file = File::open(path).map_err(|_| SandboxError::Gone(self.pid))?;
        let metadata = file.metadata().map_err(|_| SandboxError::Gone(self.pid))?;
        let own = fs::metadata("/proc/self/ns/net").map(|own| (own.dev(), own.ino())).ok();
        let namespace = (metadata.dev(), metadata.ino());
        if own == Some(namespace) {
            return Err(SandboxError::Foreign(self.pid));
        }
        setns(&file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| SandboxError::Enter(self.pid, error.into()))?;
        let addresses = ways::own_addresses().map_err(|error| SandboxError::Enter(self.pid, error))?;
        if self.wanted.own.is_disjoint(&addresses) {
            return Err(SandboxError::Foreign(self.pid));
        }
        Ok(namespace)
    }
}

/// What belongs into the containers of a node, by task: of those that have network namespaces of their own.
#[must_use]
pub fn sandboxes(set: &AssignmentSet, names: &DnsTable) -> BTreeMap<TaskId, Sandbox> {
    let tasks = set.tasks.values().filter(|task| !task.attachments.is_empty());
    let sandbox = |task: &wharf_model::TaskAssignment| {
        let networks = task.attachments.iter().map(|attachment| attachment.network);
        let vips = networks.filter_map(|network| names.vips.get(&network)).flatten();
        let publishes =
            |port: &wharf_model::PortSpec| port.mode == PublishMode::Ingress && port.published.is_some();
        let entries = task
            .attachments
            .first()
            .filter(|_| task.spec.ports.iter().any(publishes))
            .and_then(|first| set.networks.get(&first.network))
            .map(|network| network.entries.clone());
        Sandbox {
            own: task.attachments.iter().map(|attachment| attachment.address).collect(),
            vips: vips.map(|(address, service)| (*address, Behind::from(service))).collect(),
            entries: entries.unwrap_or_default(),
        }
    };
    tasks.map(|task| (task.id, sandbox(task))).collect()
}

/// What a gateway on this node needs so that answers to connections which it makes from its clients' addresses come back to it: kept in
/// the network namespace of the thread that uses it.
#[derive(Debug, Default)]
pub struct EntryRules {
    kept: nft::Kept,
    there: bool,
    /// The kernel's count of changes when the rules were last right.
    generation: Option<u32>,
}

impl EntryRules {
    /// Makes them be there, or not. Answers whether that took a change.
    ///
    /// # Errors
    /// In words for people.
    pub fn ensure(&mut self, wanted: bool) -> Result<bool, String> {
        if !wanted && !self.there {
            return Ok(false);
        }
        let body = format!(
            "chain out {{\n type filter hook output priority -150\n meta mark {ENTRY_MARK:#x} ct mark set {ANSWER_MARK:#x}\n}}\n\
             chain back {{\n type filter hook prerouting priority -150\n \
             ct direction reply ct mark {ANSWER_MARK:#x} meta mark set {ANSWER_MARK:#x}\n}}\n"
        );
        let ways: Ways = if wanted { [(ANSWER_MARK, Hop::Here)].into() } else { Ways::new() };
        let generation = nft::generation().ok();
        let untouched = wanted && self.there && generation.is_some() && generation == self.generation;
        self.there = true;
        let ways = ways::ensure(&ways).map_err(|error| format!("published ports: {error}"))?;
        if untouched {
            return Ok(ways > 0);
        }
        let rules = self.kept.ensure(Place::Here, ENTRY_TABLE, wanted.then_some(&*body));
        let rules =
            rules.map_err(|error| format!("published ports: {}", wharf_process::errors::chain(&error)))?;
        self.there = wanted;
        self.generation = nft::generation().ok().filter(|_| wanted);
        Ok(ways > 0 || rules)
    }
}
