//! Releases of apps, and how their rollouts are watched and steered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::AppSpec;

use super::{Operation, RolloutView};

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

/// How far the latest change of an app has come, and what it waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStatus {
    /// The environment.
    pub environment: String,
    /// The app.
    pub app: String,
    /// The change itself.
    pub rollout: RolloutView,
    /// The release that it carries out, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<u64>,
    /// The release that the app was on before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// It failed or was aborted, and the app is on its way back.
    #[serde(default)]
    pub returning: bool,
    /// Somebody wants it to pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Asked>,
    /// Somebody let it go on, and it has not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Asked>,
    /// Somebody wants it undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Asked>,
    /// Its services, by name.
    pub services: Vec<RolloutService>,
    /// What else it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// What it can be asked now: `pause`, `resume`, `promote`, `abort`.
    pub verbs: Vec<String>,
}

/// What somebody asked a rollout for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Asked {
    /// Who.
    pub by: String,
    /// When.
    pub at: u64,
    /// Why, in that person's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One service of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutService {
    /// The name.
    pub name: String,
    /// `rolling`, `blue-green` or `canary`.
    pub strategy: String,
    /// Tasks there are to be.
    pub wanted: usize,
    /// Tasks as the change wants them that are not over.
    pub new: usize,
    /// Those of them that are ready.
    pub ready: usize,
    /// Other tasks that have not been asked to stop.
    pub old: usize,
    /// Tasks that were asked to stop and are not over.
    pub stopping: usize,
    /// Where a second set of tasks is, if one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<RolloutStep>,
    /// Until when the set that served before is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<u64>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
}

/// How far a service has come that has a second set of tasks made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStep {
    /// Which step, from 1; one more than there are once nothing is left but the switch.
    pub number: u32,
    /// How many there are before the switch.
    pub of: u32,
    /// So many per cent of the requests are the new set's now.
    pub percent: u8,
    /// Who lets it go on: `auto` or `manual`.
    pub promote: String,
    /// Since when it is there; absent while the new set comes up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// When its time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// What was last found of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    /// When the new set took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched_at: Option<u64>,
    /// Where the new set answers before it takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    /// What the gateways have counted of the requests to the set that serves, since the first step began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<SetFigures>,
    /// The same of the new set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<SetFigures>,
}

/// What gateways have counted of the requests to one set of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetFigures {
    /// Requests that were finished.
    pub requests: u64,
    /// Of these, those that were answered with 5xx, or not at all.
    pub failures: u64,
    /// An upper bound of the 95th percentile of their latency, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
}

/// A wish to pause, resume, promote or abort a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutWish {
    /// The rollout that is meant, by the app's generation: if a newer change has taken its place, nothing is done.
    pub generation: u64,
    /// What the client says of itself: `ada@laptop`.
    pub client: String,
    /// Why, for those who look at it.
    #[serde(default)]
    pub reason: String,
    /// Of `promote`: past every step there is, not the present one only.
    #[serde(default)]
    pub whole: bool,
}
