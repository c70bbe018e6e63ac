//! Releases of apps, and how their rollouts are watched and steered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::AppSpec;

use super::Operation;

/// A release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// Its number.
    pub number: u64,
    /// When.
    pub created_at: u64,
    /// Who.
    pub by: String,
    /// Image pins by service.
    pub images: BTreeMap<String, String>,
    /// The app is on it now.
    pub current: bool,
    /// How its rollout stands or ended: `progressing`, `done`, `failed`, `rolled_back` or `superseded`; empty if nobody knows any more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why it stands or ended so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When its rollout ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// How its services move to it: `rolling`, `blue-green`, `canary`, or which of them how.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub strategy: String,
    /// What its maker said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What its Compose file was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<GitSource>,
    /// The release whose app it is again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<u64>,
    /// The release that the app was on when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Its configs and secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ReleaseFile>,
    /// What it changed against the release before it, if that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Operation>>,
    /// The whole normalised app.
    #[schema(value_type = Object)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<AppSpec>>,
}

/// Where a git repository was when a release was made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitSource {
    /// The commit.
    pub commit: String,
    /// The branch that was checked out, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Whether files beside the Compose file differed from the commit, if that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty: Option<bool>,
}

/// A config or secret as a release has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseFile {
    /// `config` or `secret`.
    pub kind: String,
    /// Its key in the Compose file.
    pub name: String,
    /// Of an external one: its version in the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Names its content without saying anything of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What differs between two releases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReleaseDiff {
    /// The release it begins at.
    pub from: u64,
    /// The release it leads to.
    pub to: u64,
    /// What differs; empty if nothing does. Values of variables and commands are not said.
    pub operations: Vec<Operation>,
}
