//! What the agent programs inside the network namespaces of containers: virtual addresses of services, and ways back to gateways.
//!
//! - Exact: after a pass each namespace has what belongs there, and no more of ours. A namespace in which nothing changes is not entered;
//!   a repair asks the kernel whether any rule was changed, and only then looks closer.
//! - A container is programmed after each start, because its namespace is new. Until then nobody is told that virtual addresses lead
//!   anywhere for it ([`Sandboxes::programmed`]).
//! - A namespace is entered only if it has one of the task's addresses: whatever process has the container's number by now, nobody else's
//!   rules are changed.
//! - Rules are replaced in one step. What is connected stays connected.
//! - What cannot be done for IPv6 keeps nothing from being done for IPv4.
//!
//! `rules` decides; `ways` keeps rules and routes of IP, `flows` ends datagrams' flows, `nft` has the rules of nftables.

mod flows;
mod rules;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;
use wharf_model::{AssignmentSet, DnsTable, ENTRY_MARK, PublishMode, TaskId};

use self::ways::{Hop, Ways};
pub use self::{
    rules::{Behind, Sandbox},
    ways::Family,
};
use super::nft::{self, NftError, Place};

/// A family's table in each namespace.
const fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip wharf",
        Family::V6 => "ip6 wharf",
    }
}
/// That of the node's own namespace, where a gateway runs.
const fn entry_table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip wharf_entry",
        Family::V6 => "ip6 wharf_entry",
    }
}
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
    rules: Rules,
    /// Those for IPv6, with the ways. Absent if nothing of that belongs there, or it is not there: the container has no IPv6, or it could
    /// not be written.
    rules6: Option<Rules>,
}

/// One table that was written.
#[derive(Clone, Default)]
struct Rules {
    /// What it looked like; asked for by the first repair.
    shown: Option<String>,
}

impl Written {
    /// The gateways to which the task can send answers back.
    fn answers(&self) -> BTreeSet<IpAddr> {
        let mut answers = self.sandbox.answers(Family::V4);
        if self.rules6.is_some() {
            answers.append(&mut self.sandbox.answers(Family::V6));
        }
        answers
    }
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
    pub async fn started(&self, task: TaskId, pid: i64) -> (BTreeSet<IpAddr>, bool) {
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
                return (written.answers(), false);
            }
        }
        let pass = self.work(Look::One(task)).await;
        let state = self.state.lock();
        let answers = state.up_to_date(task).map(Written::answers);
        (answers.unwrap_or_default(), pass.changed > 0)
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
            Ok(Done { written, changed, without_ipv6 }) => {
                if changed {
                    pass.changed += 1;
                    self.counters.programmed += 1;
                    self.counters.busy += took;
                    let mended = job.before.is_some_and(|before| before.sandbox == written.sandbox);
                    self.counters.mended += u64::from(mended);
                }
                running.written = Some(written);
                match without_ipv6 {
                    Some(error) => self.complain(job.task, &error, pass),
                    None => drop(self.problems.remove(&job.task)),
                }
            }
            Err(error) if error.is_gone() => {
                // The task's loop will hear of it.
                running.written = None;
            }
            Err(error) => {
                if running.written.as_ref().is_some_and(|written| !written.sandbox.is_empty()) {
                    pass.behind.insert(job.task);
                }
                self.complain(job.task, &error, pass);
            }
        }
    }

    fn complain(&mut self, task: TaskId, error: &SandboxError, pass: &mut SandboxPass) {
        let text = format!("virtual addresses and published ports: {}", wharf_process::errors::chain(error));
        if self.problems.get(&task) != Some(&text) {
            tracing::warn!(%task, problem = text, "container's network not programmed");
        }
        self.problems.insert(task, text.clone());
        pass.problems.insert(task, text);
    }
}

/// One namespace to look at.
struct Job {
    task: TaskId,
    pid: i64,
    wanted: Arc<Sandbox>,
    before: Option<Written>,
}

/// What a look at a namespace came to.
struct Done {
    written: Written,
    changed: bool,
    /// Why nothing is there for IPv6, if something should be.
    without_ipv6: Option<SandboxError>,
}

struct Outcome {
    job: Job,
    result: Result<Done, SandboxError>,
    took: Duration,
}

impl Job {
    fn work(self) -> Outcome {
        let start = Instant::now();
        let result = self.ensure();
        Outcome { job: self, result, took: start.elapsed() }
    }

    fn ensure(&self) -> Result<Done, SandboxError> {
        let namespace = self.enter()?;
        let before = self.before.as_ref().filter(|before| before.namespace == namespace);
        let same = before.filter(|before| before.sandbox == self.wanted);
        let generation = nft::generation().ok();
        // Nobody changed anything since.
        let untouched = same.filter(|same| generation.is_some() && same.generation == generation).is_some();
        let (rules, mut changed) = self.ensure_rules(Family::V4, same.map(|same| &same.rules), untouched)?;
        changed |= self.ensure_ways(Family::V4, before)?;
        let (mut rules6, mut without_ipv6) = (None, None);
        match self.ensure_ipv6(before, same, untouched) {
            Ok(Some((rules, changes))) => {
                changed |= changes;
                rules6 = Some(rules);
            }
            Ok(None) => {}
            Err(error) => without_ipv6 = Some(error),
        }
        let generation = if changed { nft::generation().ok() } else { generation };
        let written = Written { namespace, sandbox: Arc::clone(&self.wanted), generation, rules, rules6 };
        Ok(Done { written, changed, without_ipv6 })
    }

    /// What belongs there for IPv6, where the container has it; none if nothing does.
    fn ensure_ipv6(
        &self,
        before: Option<&Written>,
        same: Option<&Written>,
        untouched: bool,
    ) -> Result<Option<(Rules, bool)>, SandboxError> {
        let Some(subnet) = self.wanted.subnet6 else { return Ok(None) };
        let is_needed = !self.wanted.entries.is_empty();
        let may_be_there = before.is_none_or(|before| before.rules6.is_some());
        if !(is_needed || may_be_there) || !ways::is_on(subnet).map_err(SandboxError::Ways)? {
            return Ok(None);
        }
        let known = same.and_then(|same| same.rules6.as_ref());
        let (rules, changed) = self.ensure_rules(Family::V6, known, untouched)?;
        let changed = self.ensure_ways(Family::V6, before)? || changed;
        Ok(is_needed.then_some((rules, changed)))
    }

    /// Makes a family's table as it should be, unless it is as it was written. Answers whether that took a change.
    fn ensure_rules(
        &self,
        family: Family,
        known: Option<&Rules>,
        untouched: bool,
    ) -> Result<(Rules, bool), SandboxError> {
        let list = || nft::list(Place::Here, table(family));
        match known {
            Some(Rules { shown: None }) if untouched => return Ok((Rules { shown: list()? }, false)),
            Some(known) if untouched || known.shown.is_some() && known.shown == list()? => {
                return Ok((known.clone(), false));
            }
            Some(_) | None => {}
        }
        self.write(family)?;
        Ok((Rules::default(), true))
    }

    fn ensure_ways(&self, family: Family, before: Option<&Written>) -> Result<bool, SandboxError> {
        let ways = self.wanted.ways(family);
        if ways.is_empty() && before.is_some_and(|before| before.sandbox.entries.is_empty()) {
            return Ok(false);
        }
        ways::ensure(family, &ways).map(|changes| changes > 0).map_err(SandboxError::Ways)
    }

    fn write(&self, family: Family) -> Result<(), SandboxError> {
        let script = match self.wanted.body(family) {
            Some(body) => nft::replacing(table(family), &body),
            None => nft::removing(table(family)),
        };
        nft::apply(Place::Here, &script)?;
        let vips: BTreeSet<_> = self.wanted.vips.keys().copied().collect();
        if family == Family::V4
            && !vips.is_empty()
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
        let first = task.attachments.first().and_then(|first| set.networks.get(&first.network));
        let publishes = task.spec.ports.iter().any(publishes);
        let entries = first.filter(|_| publishes).map(|network| network.entries.clone());
        Sandbox {
            own: task.attachments.iter().map(|attachment| attachment.address).collect(),
            vips: vips.map(|(address, service)| (*address, Behind::from(service))).collect(),
            entries: entries.unwrap_or_default(),
            subnet6: first.and_then(|network| network.subnet6),
        }
    };
    tasks.map(|task| (task.id, sandbox(task))).collect()
}

/// What a gateway on this node needs so that answers to connections which it makes from its clients' addresses of one family come back to
/// it: kept in the network namespace of the thread that uses it.
#[derive(Debug)]
pub struct EntryRules {
    family: Family,
    kept: nft::Kept,
    there: bool,
    /// The kernel's count of changes when the rules were last right.
    generation: Option<u32>,
}

impl EntryRules {
    /// Nothing is there yet.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self { family, kept: nft::Kept::default(), there: false, generation: None }
    }

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
        let problem = |why: String| match self.family {
            Family::V4 => format!("published ports: {why}"),
            Family::V6 => format!("published ports, clients with IPv6 addresses: {why}"),
        };
        let ways = ways::ensure(self.family, &ways).map_err(|error| problem(error.to_string()))?;
        if untouched {
            return Ok(ways > 0);
        }
        let rules = self.kept.ensure(Place::Here, entry_table(self.family), wanted.then_some(&*body));
        let rules = rules.map_err(|error| problem(wharf_process::errors::chain(&error)))?;
        self.there = wanted;
        self.generation = nft::generation().ok().filter(|_| wanted);
        Ok(ways > 0 || rules)
    }
}
