//! Where tasks are and why, how they move, and how much environments may have.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::{Bytes, Cpus};

// --- nodes ---

/// How much of a node may be promised to tasks, in per cent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overcommit {
    /// Reserved processor time.
    pub cpus: u32,
    /// Reserved memory.
    pub memory: u32,
    /// What limits may add up to in processor time; anything if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_cpus: Option<u32>,
    /// The same of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_memory: Option<u32>,
}

/// Other factors of a node; what is absent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OvercommitChange {
    /// Reserved processor time, in per cent.
    pub cpus: Option<u32>,
    /// Reserved memory.
    pub memory: Option<u32>,
    /// What limits may add up to in processor time; 0 for anything.
    pub limit_cpus: Option<u32>,
    /// The same of memory.
    pub limit_memory: Option<u32>,
}

/// A time in which somebody works on a node: it takes no new tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// When it begins.
    pub from: u64,
    /// When it is over.
    pub until: u64,
    /// Tasks that are there move elsewhere while it lasts.
    #[serde(default)]
    pub drain: bool,
    /// What for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The tasks of a node that is being drained, or is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeDrain {
    /// The node.
    pub node: String,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// Its tasks that are not over.
    pub tasks: Vec<LeavingTask>,
}

/// A task of a node, and what it is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeavingTask {
    /// Its name.
    pub name: String,
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// `stays`: it cannot leave now; `waits`: for its turn, or for its replacement; `leaving`: it is asked to stop; `here`: nobody asks it to go.
    pub state: String,
    /// Why it is still there, as sentences.
    pub why: Vec<String>,
}

/// What holds for placement where files say nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementDefaults {
    /// Which of the nodes that can take a task is best: `spread`, `binpack` or `random`. In a change, what is absent stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
}

// --- explanations ---

/// Why tasks are where they are, or are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// Each slot of each service that was asked for.
    pub slots: Vec<SlotExplained>,
    /// What stands in the way of whole services, or of the app.
    pub waiting: Vec<String>,
}

/// One slot of a service, and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotExplained {
    /// As people know it: `web.2`, or `agent on n1`.
    pub slot: String,
    /// The service.
    pub service: String,
    /// Its task, if it has one that is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// How that task is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The node it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Since when it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// How it came there, as sentences.
    pub why: Vec<String>,
    /// How nodes are chosen among those that can take it: `spread`, `binpack` or `random`.
    pub strategy: String,
    /// What ties it to certain nodes, if anything does, as a phrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// Nodes that come into question.
    pub nodes: usize,
    /// Nodes that can take it now.
    pub able: usize,
    /// Its node, as good as that is for it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<NodeTerms>,
    /// The best of the other nodes that can take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<NodeTerms>,
    /// What decides between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Whether the other one would be chosen today.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outdone: bool,
    /// Each rule by which nodes refuse it, the one that refuses most first.
    pub rules: Vec<RuleExplained>,
    /// For each rule that alone stands in the way somewhere, who would take it without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<WithoutRule>,
    /// What would help, the smallest change first; empty if some node takes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
    /// What is not as wanted about it, as sentences.
    pub waiting: Vec<String>,
}

/// A node that can take a task, and how good it is for it: of two nodes the first term that differs decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeTerms {
    /// The node.
    pub node: String,
    /// What is looked at, in order, and how it is.
    pub terms: Vec<(String, String)>,
}

/// A rule, and how many nodes refuse a task by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleExplained {
    /// The rule, in a few words.
    pub rule: String,
    /// What is against it, as a phrase about the nodes: `have too little memory (need 2 GiB, most free is 1 GiB)`.
    pub reason: String,
    /// How many nodes refuse by it before any other rule.
    pub first: usize,
    /// How many nodes refuse by it.
    pub nodes: usize,
    /// What would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Who would take a task if one rule were not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WithoutRule {
    /// The rule.
    pub rule: String,
    /// The nodes.
    pub nodes: Vec<String>,
}

// --- rebalancing ---

/// A wish to move tasks to nodes that have less to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceRequest {
    /// The tasks of this app only; with `app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Only say what would move.
    pub dry_run: bool,
    /// The plan that is to be carried out; refused if it is another by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What the client says of itself: `ada@laptop`.
    pub client: String,
}

/// What would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalancePlan {
    /// In the order in which it would be done.
    pub moves: Vec<RebalanceMove>,
    /// Services whose tasks stay wherever they are.
    pub stays: Vec<RebalanceStays>,
    /// There is more to move than one plan has.
    pub more: bool,
    /// What each node has to do, before and after.
    pub nodes: Vec<RebalanceNode>,
    /// Names this plan.
    pub fingerprint: String,
    /// The run that carries it out, once it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
}

/// A slot that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceMove {
    /// The task it has, by name.
    pub task: String,
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
    /// From which node
    pub from: String,
    /// to which.
    pub to: String,
    /// What gets better.
    pub why: String,
    /// `planned`, `begun`, `done` or `dropped`.
    pub state: String,
    /// Why it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// A service whose tasks stay where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceStays {
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The service.
    pub service: String,
    /// Why.
    pub why: String,
}

/// What a node has to do, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceNode {
    /// The node.
    pub node: String,
    /// Unfinished tasks.
    pub tasks: u32,
    /// The same after all moves.
    pub tasks_after: u32,
    /// What is reserved of the scarcer of memory and processor time, in thousandths.
    pub reserved: u64,
    /// The same after all moves.
    pub reserved_after: u64,
}

/// How moves stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceStatus {
    /// What the cluster moves by itself, and how fast.
    pub settings: RebalanceSettings,
    /// What somebody asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RebalanceRun>,
    /// What is on its way now, whoever asked for it.
    pub moving: Vec<RebalanceMove>,
}

/// Moves that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceRun {
    /// Its number.
    pub number: u64,
    /// Who asked.
    pub by: String,
    /// When.
    pub started_at: u64,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// Who does not want the rest of it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    /// What it moves, in order.
    pub moves: Vec<RebalanceMove>,
}

/// What the cluster moves by itself, and how fast anything is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceSettings {
    /// `off`, `joining` or `always`.
    pub automatic: String,
    /// Moves under way at once.
    pub at_once: u32,
    /// Moves that begin in a minute.
    pub per_minute: u32,
    /// For how many milliseconds a node must have been ready before tasks move to it.
    pub steady: u64,
}

/// Other settings of moves; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceSettingsChange {
    /// `off`, `joining` or `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub automatic: Option<String>,
    /// Moves under way at once, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// Moves that begin in a minute, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// For how many milliseconds a node must have been ready before tasks move to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steady: Option<u64>,
}

// --- quotas ---

/// What the tasks of an environment may have together, and what they want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    /// The environment.
    pub environment: String,
    /// How much there may be; anything of what is absent.
    pub limits: QuotaLimits,
    /// How much is wanted.
    pub wanted: QuotaWanted,
}

/// How much there may be; anything of what is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaLimits {
    /// Tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// Reserved processor time, in thousandths of a core.
    #[schema(value_type = Option<u64>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Reserved memory, in bytes.
    #[schema(value_type = Option<u64>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Reserved disk, in bytes.
    #[schema(value_type = Option<u64>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}

/// How much is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct QuotaWanted {
    /// Tasks.
    pub tasks: u64,
    /// Processor time, in thousandths of a core: what is reserved, and limits where nothing is.
    #[schema(value_type = u64)]
    pub cpus: Cpus,
    /// Memory, likewise.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Reserved disk.
    #[schema(value_type = u64)]
    pub disk: Bytes,
}

/// Another quota; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaChange {
    /// Limits to set.
    pub limits: QuotaLimits,
    /// Limits to lift: `tasks`, `cpus`, `memory`, `disk`.
    pub lift: Vec<String>,
}
