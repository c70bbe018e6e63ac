//! What happened, for people and tools that follow it.

use serde::{Deserialize, Serialize};

use crate::{AppKey, By, EventId, NodeId, ServiceKey, TaskId, Timestamp};

/// Something that happened. Events are a diary: what is true now is asked of the things themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Sorts by time.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// To what.
    pub subject: Subject,
    /// What happened, as a sentence.
    pub message: String,
    /// Who caused it, if a person did.
    #[serde(default)]
    pub by: Option<By>,
}

/// What an event is about; every field that applies is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// The app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<AppKey>,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceKey>,
    /// The task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The task's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_name: Option<String>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The node's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A task moved to another phase or health.
    Task,
    /// A node's state, availability or membership changed.
    Node,
    /// An app was released, changed, settled, failed or was removed.
    App,
    /// A server became leader, joined or left, or what all apps share changed: a config or secret of an environment.
    Server,
}
