//! What a decision consists of, and the generator of ids that it is handed.

use std::sync::Arc;

use wharf_model::{
    AppKey, AppRecord, Generation, NetworkId, NetworkRecord, NodeId, NodeStatus, RebalanceRun, Release,
    ReleaseNumber, ReleaseOutcome, Relocation, Rollout, ServiceKey, ServiceRecord, ServiceRevision, SlotOf,
    StopReason, Task, TaskId, Timestamp, VolumeId, VolumeRecord,
};

use crate::Waiting;

/// What to commit, what is not as desired and why, and when to look again.
///
/// With nothing in `changes` and nothing in `waiting`, all is as desired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a decision that is not committed has no effect"]
pub struct Decision {
    /// To be committed together, in this order.
    pub changes: Vec<Change>,
    /// Everything that is not as desired, each with its reason.
    pub waiting: Vec<Waiting>,
    /// The earliest moment at which this decision could differ with no new event.
    pub wake_at: Option<Timestamp>,
}
impl Decision {
    /// Asks to be woken at `at`, or earlier if something else asks for that.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
    /// Takes over what another decision says.
    pub fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.waiting.extend(other.waiting);
        if let Some(at) = other.wake_at {
            self.wake(at);
        }
    }
}

/// One thing to write to the store. Each names the whole new value, so that writing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a decision holds few, and briefly; boxes would cost every reader more"
)]
pub enum Change {
    /// A new task, with its node and addresses: tasks are made when a node has been found for them.
    CreateTask(Arc<Task>),
    /// A task is no longer wanted. Never taken back.
    StopTask {
        /// The task.
        task: TaskId,
        /// Why.
        reason: StopReason,
    },
    /// A task makes room for one of higher priority. Never taken back.
    PreemptTask {
        /// The task.
        task: TaskId,
        /// The slot that it makes room for.
        makes_room_for: SlotOf,
    },
    /// Where a task's slot is to move, or that it does not after all.
    MoveTask {
        /// The task.
        task: TaskId,
        /// The new value.
        relocation: Relocation,
    },
    /// How far moves are that somebody asked for.
    PutRebalanceRun(RebalanceRun),
    /// Nothing leads to a task that is no longer wanted, and what was under way with it has ended or gone on for long enough: its process may
    /// be asked to stop. Never taken back.
    DrainedTask {
        /// The task.
        task: TaskId,
        /// When that was found.
        at: Timestamp,
        /// So many requests and connections are still under way, and are cut off.
        under_way: u64,
    },
    /// A task's node is down or gone: its status becomes `lost`, with this message.
    LoseTask {
        /// The task.
        task: TaskId,
        /// Why, in words.
        message: String,
        /// When that was concluded: the status's end.
        at: Timestamp,
    },
    /// A task that is over is forgotten, with its status.
    RemoveTask(TaskId),
    /// A network as it should be stored.
    PutNetwork(NetworkRecord),
    /// A network nobody is on any more.
    RemoveNetwork(NetworkId),
    /// A volume as it should be stored.
    PutVolume(VolumeRecord),
    /// A volume with no data left anywhere.
    RemoveVolume(VolumeId),
    /// An app as it should be stored.
    PutApp(AppRecord),
    /// How far an app's latest change has come; nothing else of its record is touched.
    SetRollout {
        /// The app.
        app: AppKey,
        /// The new value.
        rollout: Rollout,
    },
    /// An app of which nothing is left.
    RemoveApp(AppKey),
    /// A service as it should be stored.
    PutService(ServiceRecord),
    /// A service of which nothing is left.
    RemoveService(ServiceKey),
    /// How tasks of one generation are made.
    PutRevision(ServiceRevision),
    /// A revision nothing refers to.
    RemoveRevision(ServiceKey, Generation),
    /// A release.
    PutRelease(Release),
    /// How the rollout of a release ended; nothing else of its record is touched.
    SetOutcome {
        /// The app.
        app: AppKey,
        /// Its release.
        release: ReleaseNumber,
        /// The new value.
        outcome: ReleaseOutcome,
    },
    /// A release nothing refers to.
    RemoveRelease(AppKey, ReleaseNumber),
    /// What is known of a node.
    SetNodeStatus {
        /// The node.
        node: NodeId,
        /// The new value.
        status: NodeStatus,
    },
}

/// Where identifiers for new things come from.
pub trait Ids {
    /// Random bits that have not been given out before.
    fn random(&mut self) -> [u8; 10];
    /// Identifies something made now. Ids of one moment sort in the order in which they were asked for.
    fn id<K>(&mut self, now: Timestamp) -> wharf_model::Id<K>
    where
        Self: Sized,
    {
        wharf_model::Id::from_parts(now.0, self.random())
    }
}

/// Identifiers that follow from a seed: a counter in front, so that they sort as they were made, and mixed bits behind.
#[derive(Debug, Clone)]
pub struct SeededIds {
    seed: u64,
    made: u16,
}
impl SeededIds {
    /// Begins with this seed; a live server hands in random bits.
    pub const fn new(seed: u64) -> Self {
        Self { seed, made: 0 }
    }
}
impl Ids for SeededIds {
    fn random(&mut self) -> [u8; 10] {
        // SplitMix64: passes what matters here, that no two of a run are alike.
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // Of the first two bytes UUID version 7 keeps 12 bits, in which the counter wraps.
        self.made = (self.made + 1) & 0x0FFF;
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&self.made.to_be_bytes());
        bytes[2..].copy_from_slice(&mixed.to_be_bytes());
        bytes
    }
}
