//! What is remembered of a release beside what it is: what its maker said of it, and how its rollout ended.

use serde::{Deserialize, Serialize};

use crate::{ReleaseNumber, RolloutState, Timestamp};

/// What the maker of a release said of it. Nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleaseNote {
    /// In a sentence or two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the Compose file was taken from, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<GitSource>,
    /// The release whose app this one is again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<ReleaseNumber>,
}

/// Where a repository was when a release was made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitSource {
    /// The commit, as it was given or as git says it in full.
    pub commit: String,
    /// The branch that was checked out, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Whether files beside the Compose file differed from the commit, if that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty: Option<bool>,
}

/// How the rollout of a release ended. Stays with the release, whatever becomes of the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseOutcome {
    /// A final state.
    pub state: RolloutState,
    /// Why, in words; empty where there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When.
    pub ended_at: Timestamp,
}
