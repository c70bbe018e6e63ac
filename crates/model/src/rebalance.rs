//! How tasks move to nodes that have less to do: what the cluster does by itself, what somebody asked for, and where one task is to go.
//!
//! A move is a wish until its slot has a new task at the target: it may be given up at any time, and then the slot is as it was.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{By, Millis, NodeId, ServiceKey, TaskId, Timestamp};

/// What the cluster moves by itself, and how fast anything is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rebalancing {
    /// When tasks are moved without being asked for.
    pub automatic: AutomaticRebalancing,
    /// So many moves are under way at once in the whole cluster, at least 1; of one service never more than one.
    pub at_once: u32,
    /// So many moves begin in a minute, at least 1.
    pub per_minute: u32,
    /// How long a node must have been ready before tasks move to it.
    pub steady: Millis,
}
impl Default for Rebalancing {
    fn default() -> Self {
        Self {
            automatic: AutomaticRebalancing::default(),
            at_once: 2,
            per_minute: 20,
            steady: Millis::from_secs(30),
        }
    }
}

/// When tasks are moved without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutomaticRebalancing {
    /// Never.
    Off,
    /// A node that has joined, come back or been activated takes its share.
    #[default]
    Joining,
    /// Whenever a move makes the cluster more even.
    Always,
}
impl AutomaticRebalancing {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Joining => "joining",
            Self::Always => "always",
        }
    }
}
impl fmt::Display for AutomaticRebalancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl std::str::FromStr for AutomaticRebalancing {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Off, Self::Joining, Self::Always].into_iter().find(|mode| mode.as_str() == text).ok_or_else(
            || format!("`{text}` says nothing of when tasks are moved: use off, joining or always"),
        )
    }
}

/// Where a task's slot is to move. Written by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocation {
    /// To which node.
    pub to: NodeId,
    /// Since when.
    pub at: Timestamp,
    /// What gets better, in words.
    pub why: String,
    /// Why it does not move after all, in words; it stays then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

/// Moves that somebody saw and agreed to, carried out one after another within the cluster's budget. Made through the API, carried on by
/// the leader; there is one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalanceRun {
    /// Counts the runs there have been.
    pub number: u64,
    /// Who asked.
    pub by: By,
    /// When.
    pub started_at: Timestamp,
    /// What was agreed to, in order.
    pub moves: Vec<RunMove>,
    /// Somebody does not want the rest any more. Written through the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<By>,
    /// When nothing was left to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}
impl RebalanceRun {
    /// Whether nothing is left to do.
    pub const fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }
    /// How many moves are done, and how many are not going to be.
    pub fn outcome(&self) -> (usize, usize) {
        let count = |is: fn(&MoveState) -> bool| self.moves.iter().filter(|one| is(&one.state)).count();
        (count(|state| *state == MoveState::Done), count(|state| matches!(state, MoveState::Dropped { .. })))
    }
}

/// One move of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMove {
    /// The task whose slot moves.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// Its service.
    pub service: ServiceKey,
    /// From which node
    pub from: NodeId,
    /// to which.
    pub to: NodeId,
    /// What gets better, in words.
    pub why: String,
    /// How far it is.
    #[serde(default)]
    pub state: MoveState,
}

/// How far a move of a run is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum MoveState {
    /// Its turn has not come.
    #[default]
    Planned,
    /// A task for its slot is being started at the target, or the old one is leaving.
    Begun,
    /// The slot has moved.
    Done,
    /// It is not going to.
    Dropped {
        /// Why not.
        why: String,
    },
}
impl MoveState {
    /// Whether nothing more happens to it.
    pub const fn is_over(&self) -> bool {
        match self {
            Self::Planned | Self::Begun => false,
            Self::Done | Self::Dropped { .. } => true,
        }
    }
    /// Its word.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Dropped { .. } => "dropped",
        }
    }
}
