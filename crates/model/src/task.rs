//! Tasks: one scheduled container of a service each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    Generation, Millis, NetworkName, NodeId, Protocol, Relocation, ServiceKey, TaskDevice, TaskId, Timestamp,
};

/// A stable position of a service's task. Replicated services count from 1; the tasks of a global service all have slot 0 and differ by node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One scheduled container of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its identifier.
    pub id: TaskId,
    /// What it is a task of.
    pub service: ServiceKey,
    /// Its position.
    pub slot: Slot,
    /// The generation of the service it was made for: which [`crate::ServiceRevision`] its container follows.
    pub generation: Generation,
    /// Where it runs; absent until a node has been found. Written once.
    pub node: Option<NodeId>,
    /// Its addresses, given with the node. Written once.
    #[serde(default)]
    pub addresses: BTreeMap<NetworkName, Ipv4Addr>,
    /// Ports of its node given to it where its service leaves the number open. Written once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<GivenPort>,
    /// What it has of the node's devices, given with the node. Written once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<TaskDevice>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Set once the cluster no longer wants it; never taken back.
    #[serde(default)]
    pub stop: Option<StopReason>,
    /// The slot for which it makes room, if that is why it is no longer wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub makes_room_for: Option<SlotOf>,
    /// Once it is no longer wanted: when nothing led to it any more and nothing was under way with it, or that had been waited for long
    /// enough. From then on its process is asked to stop. Never taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Timestamp>,
    /// How many tasks in a row failed in this slot before it, at this generation.
    #[serde(default)]
    pub failures: u32,
    /// It runs a command around a release, once, and is no replica of its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<TaskHook>,
    /// Its slot is to move to another node, or was to and does not. Written by the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relocation: Option<Relocation>,
    /// The node from which its slot was moved here to make the cluster more even. Written once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<NodeId>,
    /// What its node last said of it. Stored apart, and written by the leader only.
    #[serde(default, skip_serializing)]
    pub status: TaskStatus,
}
impl Task {
    /// Whether it has come to its end, or was given up before it had a node.
    pub fn is_over(&self) -> bool {
        self.status.phase.is_over() || (self.stop.is_some() && self.node.is_none())
    }
    /// Whether it serves: running, healthy as far as anybody checks, and still wanted.
    pub fn is_ready(&self) -> bool {
        self.stop.is_none() && self.status.is_ready()
    }
    /// Whether it is no longer wanted, and its process goes on until what is under way with it has ended.
    pub fn is_draining(&self) -> bool {
        self.stop.is_some() && !self.is_let_go() && !self.is_over()
    }
    /// Whether its process is asked to stop, or was by a server that knew of no draining.
    pub fn is_let_go(&self) -> bool {
        self.stop.is_some() && (self.drained.is_some() || self.status.phase >= Phase::Stopping)
    }
    /// Where its slot is to move, unless that was given up.
    pub fn bound_for(&self) -> Option<NodeId> {
        self.relocation
            .as_ref()
            .filter(|relocation| relocation.given_up.is_none())
            .map(|relocation| relocation.to)
    }
    /// What it is called: `<app>-<service>-<slot>`, as Compose names containers, and for global services the end of its id for the slot.
    /// One that runs a command around a release is `<app>-<service>-before-<number>` or `…-after-<number>`.
    pub fn name(&self) -> String {
        if let Some(hook) = &self.hook {
            let (app, service) = (&self.service.app.name, &self.service.name);
            return format!("{app}-{service}-{}-{}", hook.stage.as_str(), hook.number);
        }
        match self.slot {
            Slot(0) => format!("{}-{}-{}", self.service.app.name, self.service.name, self.id.short()),
            Slot(n) => format!("{}-{}-{n}", self.service.app.name, self.service.name),
        }
    }
}

/// A port of a node that was given to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GivenPort {
    /// Port in the container.
    pub target: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Port of the node.
    pub published: u16,
}

/// A position of a service: what a task can be made room for before it exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotOf {
    /// The service.
    pub service: ServiceKey,
    /// The slot; 0 for a global service.
    pub slot: Slot,
}
impl fmt::Display for SlotOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slot {
            Slot(0) => write!(f, "{}/{}", self.service.app, self.service.name),
            slot => write!(f, "{}/{}.{slot}", self.service.app, self.service.name),
        }
    }
}

/// The command that a task runs around a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskHook {
    /// The app's generation whose rollout runs it.
    pub rollout: Generation,
    /// When in the rollout.
    pub stage: HookStage,
    /// Which of those that run then, from 1.
    pub number: u32,
    /// Program and arguments, in place of the service's command.
    pub command: Vec<String>,
    /// How long it may take once its process has started.
    pub timeout: Millis,
}

/// When in a rollout a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookStage {
    /// Before anything is replaced.
    Before,
    /// Once everything is as wanted.
    After,
}
impl HookStage {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// Why the cluster no longer wants a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The service has fewer replicas.
    ScaledDown,
    /// A task of a newer release takes its place.
    Outdated,
    /// Somebody asked for a restart.
    Restarted,
    /// The service was stopped.
    Stopped,
    /// The service is no longer part of the app, or the app was taken down.
    Removed,
    /// Its node is being drained.
    Drained,
    /// Its slot moves to a node that has less to do.
    Rebalanced,
    /// Its node is down.
    NodeDown,
    /// Its health check failed.
    Unhealthy,
    /// Its release was given up before it served everybody.
    Withdrawn,
    /// It did not end in the time that it had.
    TimedOut,
    /// It makes room for a task of higher priority: see [`Task::makes_room_for`].
    Preempted,
}
impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScaledDown => "scaled down",
            Self::Outdated => "replaced by a newer release",
            Self::Restarted => "restarted",
            Self::Stopped => "the service was stopped",
            Self::Removed => "the service was removed",
            Self::Drained => "its node is being drained",
            Self::Rebalanced => "it moves to a node that has less to do",
            Self::NodeDown => "its node is down",
            Self::Unhealthy => "its health check failed",
            Self::Withdrawn => "its release was given up",
            Self::TimedOut => "it took longer than it may",
            Self::Preempted => "it makes room for a task of higher priority",
        })
    }
}

/// How far a task has come. Phases only ever move down this list, so of two reports about one task the greater is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No node has been found yet, or its node has not heard of it.
    #[default]
    Pending,
    /// Its node has accepted it.
    Accepted,
    /// Its image, networks, volumes and files are being made ready.
    Preparing,
    /// Its container is being made and started.
    Starting,
    /// Its process runs.
    Running,
    /// It has been asked to stop.
    Stopping,
    /// It ended with exit code 0, by itself.
    Complete,
    /// It ended because it was asked to.
    Stopped,
    /// It ended by itself with another exit code or by a signal, or could not be started.
    Failed,
    /// Its node went down with it.
    Lost,
}

/// A step backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task cannot move from {from} to {to}")]
pub struct IllegalMove {
    /// Where it is.
    pub from: Phase,
    /// Where it was said to go.
    pub to: Phase,
}

impl Phase {
    /// Whether it is an end.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Complete | Self::Stopped | Self::Failed | Self::Lost => true,
            Self::Pending
            | Self::Accepted
            | Self::Preparing
            | Self::Starting
            | Self::Running
            | Self::Stopping => false,
        }
    }
    /// Whether a container of it may exist on its node.
    pub const fn may_hold_container(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping => true,
            Self::Pending
            | Self::Accepted
            | Self::Preparing
            | Self::Complete
            | Self::Stopped
            | Self::Failed
            | Self::Lost => false,
        }
    }
    /// The move from here to `to`; standing still is one.
    ///
    /// # Errors
    /// If `to` lies behind, or this is an end.
    pub fn advance(self, to: Self) -> Result<Self, IllegalMove> {
        if to == self || (to > self && !self.is_over()) {
            Ok(to)
        } else {
            Err(IllegalMove { from: self, to })
        }
    }
}
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Lost => "lost",
        })
    }
}

/// What is known of a running task's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nobody checks it: running is enough.
    #[default]
    Unchecked,
    /// No check has passed yet.
    Starting,
    /// Its check passes.
    Healthy,
    /// Its check failed as often as is allowed.
    Unhealthy,
}
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unchecked => "unchecked",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// What a node last said of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// How far it has come.
    pub phase: Phase,
    /// Health, while running.
    pub health: Health,
    /// Counts the reports of this task; of two in one phase the higher is the newer.
    pub sequence: u64,
    /// What is going on or what went wrong, in words: `pulling mariadb:11`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What to do next about it, if anything is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How far a pull has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The engine's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The engine's id of the image it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// When its process started, by its node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it became ready, by its node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// When it ended, by its node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How it ended, if its process did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Its last lines of output, once it has ended by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last_log: Vec<String>,
    /// What its check last said, while it does not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_output: Option<String>,
    /// Host ports the engine gave it: container port to host port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub host_ports: BTreeMap<u16, u16>,
    /// Addresses of gateways to which it sends answers back whatever address of the same family a connection through them is from.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub entries: BTreeSet<IpAddr>,
    /// How many of its processes the kernel has ended for want of memory since it was last started.
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_kills: u32,
    /// How often its node has started it again by itself, because no server answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a node did with a task that ended while no server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// How often it was started again in all.
    pub times: u32,
    /// How often in a row it ended before it had run for long enough to count.
    pub in_a_row: u32,
    /// When it last ended.
    pub ended_at: Timestamp,
    /// How it last ended.
    pub exit: Exit,
}
impl TaskStatus {
    /// Whether it runs and is as healthy as anybody checks.
    pub const fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Running) && matches!(self.health, Health::Unchecked | Health::Healthy)
    }
    /// Whether this says something newer than `other` about the same task.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.phase, self.sequence) > (other.phase, other.sequence) && !other.phase.is_over()
    }
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub current: u64,
    /// Bytes in all, as far as is known.
    pub total: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + n for a process ended by signal n.
    pub code: i64,
    /// The kernel ended it for want of memory.
    pub oom: bool,
}
impl Exit {
    /// Whether it succeeded.
    pub const fn is_success(self) -> bool {
        self.code == 0 && !self.oom
    }
}
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = match self.code {
            129 => "SIGHUP",
            130 => "SIGINT",
            131 => "SIGQUIT",
            132 => "SIGILL",
            133 => "SIGTRAP",
            134 => "SIGABRT",
            135 => "SIGBUS",
            136 => "SIGFPE",
            137 => "SIGKILL",
            138 => "SIGUSR1",
            139 => "SIGSEGV",
            140 => "SIGUSR2",
            141 => "SIGPIPE",
            142 => "SIGALRM",
            143 => "SIGTERM",
            152 => "SIGXCPU",
            153 => "SIGXFSZ",
            159 => "SIGSYS",
            _ => "",
        };
        match (self.oom, signal) {
            (true, _) => write!(f, "out of memory (exit code {})", self.code),
            (false, "") => write!(f, "exit code {}", self.code),
            (false, signal) => write!(f, "{signal} (exit code {})", self.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_never_go_back_and_ends_are_final() {
        assert_eq!(Phase::Accepted.advance(Phase::Running), Ok(Phase::Running));
        assert!(Phase::Running.advance(Phase::Starting).is_err());
        assert!(Phase::Stopped.advance(Phase::Failed).is_err());
    }

    #[test]
    fn a_task_that_is_not_wanted_drains_until_it_is_let_go() {
        let name = "shop".parse().unwrap();
        let app = crate::AppKey { environment: "prod".parse().unwrap(), name };
        let mut task = Task {
            id: TaskId::from_parts(1, [1; 10]),
            service: ServiceKey { app, name: "web".parse().unwrap() },
            slot: Slot(1),
            generation: Generation(1),
            node: Some(NodeId::from_parts(1, [1; 10])),
            addresses: BTreeMap::new(),
            ports: Vec::new(),
            devices: Vec::new(),
            created_at: Timestamp(1),
            stop: Some(StopReason::Outdated),
            makes_room_for: None,
            drained: None,
            failures: 0,
            hook: None,
            relocation: None,
            moved_from: None,
            status: TaskStatus::default(),
        };
        task.status.phase = Phase::Running;
        assert!(task.is_draining() && !task.is_let_go() && !task.is_ready());
        let drained = Task { drained: Some(Timestamp(5)), ..task.clone() };
        assert!(!drained.is_draining() && drained.is_let_go());
        // A server of an older version asked it to stop, and wrote nothing of draining.
        task.status.phase = Phase::Stopping;
        assert!(!task.is_draining() && task.is_let_go());
        task.status.phase = Phase::Stopped;
        assert!(!task.is_draining());
    }

    #[test]
    fn exits_name_their_signal() {
        assert_eq!(Exit { code: 137, oom: false }.to_string(), "SIGKILL (exit code 137)");
        assert_eq!(Exit { code: 137, oom: true }.to_string(), "out of memory (exit code 137)");
        assert_eq!(Exit { code: 3, oom: false }.to_string(), "exit code 3");
    }
}
