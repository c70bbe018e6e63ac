//! What is stored of a rollout beyond its state: what people want of it, the sets of tasks that stand beside the one that serves, and how
//! far each service has come by its strategy.
//!
//! - A service has one set that serves everybody ([`crate::ServiceRecord::generation`]) and at most one that is to take its place. Others
//!   stand beside them only until they are gone.
//! - What people want is written through the API and taken back by the controller that has done it; everything else here is the
//!   controller's.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{By, Generation, Mode, SetStats, Timestamp};

/// What a person asked for, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Who.
    pub by: By,
    /// When.
    pub at: Timestamp,
    /// Why, in that person's words; empty if nothing was said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
impl fmt::Display for Asked {
    /// `ada@laptop: too slow`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            write!(f, "{}", self.by)
        } else {
            write!(f, "{}: {}", self.by, self.reason)
        }
    }
}

/// A person lets a rollout go on where it would wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// Who, when and why.
    pub asked: Asked,
    /// Past every step there is, not the present one only.
    #[serde(default)]
    pub whole: bool,
}

/// Tasks of a service that stand beside those that serve everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSet {
    /// The generation that its tasks follow.
    pub generation: Generation,
    /// How many there should be now.
    pub mode: Mode,
    /// What they are for.
    pub role: SetRole,
}

/// What a set of tasks is for that does not serve everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum SetRole {
    /// The next release's: it takes the place of the one that serves.
    Next {
        /// How many tasks it has by then.
        full: Mode,
        /// So many per cent of the requests of HTTP routes are answered by it now; none while it is 0.
        #[serde(default)]
        percent: u8,
    },
    /// It served before, runs on unseen, and can take over again at once.
    Kept {
        /// When it goes.
        until: Timestamp,
    },
    /// It goes: its tasks are stopped, and nothing leads to them.
    Leaving,
}

/// How far one service has come by its strategy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceProgress {
    /// The strategy's word: `blue-green` or `canary`.
    pub strategy: String,
    /// The generation that is being brought in.
    pub generation: Generation,
    /// The step it is on, from 0. As many as `steps` once nothing is left but the switch.
    pub step: u32,
    /// How many steps there are before the switch; 0 for blue-green.
    pub steps: u32,
    /// Since when the step's share of the requests is given to the new set, or, with nothing left but the switch, since when it is ready.
    /// Absent while the set comes up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What gateways had counted when the step began. Absent until any has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Figures>,
    /// What gateways had counted when the first step began, or the counting began anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Figures>,
    /// What was last found of the step, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    /// When the new set took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switched_at: Option<Timestamp>,
}

/// What the gateways together have counted of the requests to a service, by the generation of the tasks that were to answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Since when it was counted. Two figures can be compared only if this is the same in both: numbers then only grow.
    pub since: Timestamp,
    /// Of each generation.
    pub sets: BTreeMap<Generation, SetStats>,
    /// Gateways that did not answer when they were last asked, by the name of their node: what they have counted since is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}
