//! Apps, their releases and their services.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    AppName, AppSpec, Asked, EnvironmentName, Generation, Mode, NodeId, Promotion, ReleaseHooks, ReleaseNote,
    ReleaseOutcome, ServiceName, ServiceProgress, ServiceSpec, SetRole, TaskSet, Timestamp, VolumeId,
    VolumeName, VolumeSpec,
};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What is unique in the cluster by its environment and its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedIn<N> {
    /// The environment.
    pub environment: EnvironmentName,
    /// The name in it.
    pub name: N,
}
/// An app in its environment.
pub type AppKey = NamedIn<AppName>;
impl fmt::Display for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.environment, self.name)
    }
}

/// A service of an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The app.
    pub app: AppKey,
    /// The service.
    pub name: ServiceName,
}
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.name)
    }
}

/// The number of a release, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u64);
impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Who did something, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct By {
    /// The user of the certificate.
    pub user: String,
    /// What the client says of itself: `ada@laptop`.
    #[serde(default)]
    pub client: String,
}
impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.client.is_empty() { f.write_str(&self.user) } else { f.write_str(&self.client) }
    }
}

/// An app. Changed by people through the API, and its rollout by the leader's controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRecord {
    /// Its name and environment.
    pub key: AppKey,
    /// Counts every change of intent: releases, scaling, stops, starts and restarts.
    pub generation: Generation,
    /// The release it is on or moving to.
    pub release: ReleaseNumber,
    /// How far the latest change has come.
    pub rollout: Rollout,
    /// What it was before the latest release: where a failing rollout returns to. Absent for the first release.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// It is being taken down; when nothing is left of it, so is its record.
    #[serde(default)]
    pub removed: bool,
    /// Take its volumes with it.
    #[serde(default)]
    pub remove_volumes: bool,
    /// When it was first deployed.
    pub created_at: Timestamp,
}

/// What an app was before a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The app's generation that this precedes: only that one's rollout returns here.
    pub before: Generation,
    /// The release it was on.
    pub release: ReleaseNumber,
    /// Its services as they were. Their revisions are kept as long as this is.
    pub services: Vec<ServiceRecord>,
}

/// How far a change of an app has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The generation it carries out.
    pub generation: Generation,
    /// What was asked for, in words: `release 3`, `scale web=5`.
    pub what: String,
    /// Who asked.
    pub by: By,
    /// When it began.
    pub started_at: Timestamp,
    /// Where it is.
    pub state: RolloutState,
    /// Why it is there, in words.
    #[serde(default)]
    pub reason: String,
    /// When it reached a final state.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// How the change before it ended, if there was one and it had: whoever waits for that one may look only now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<EndedRollout>,
    /// The release that it carries out; absent for what is no release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// Somebody wants it to pause: while this is set nothing new of it begins, and what serves goes on serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Asked>,
    /// Somebody lets it go on where it would wait. Taken back once it has gone on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promotion>,
    /// Somebody wants it undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Asked>,
    /// How far its services have come that have a second set of tasks made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub steps: BTreeMap<ServiceName, ServiceProgress>,
    /// The one-off commands that it runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hooks: ReleaseHooks,
    /// The services as they will be once the commands before it are through; until then they are as they were. Absent if they are what it
    /// says already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Vec<ServiceRecord>>,
    /// It returns to what was there before: new sets take over as soon as they are ready, whatever steps their strategies have.
    #[serde(default, skip_serializing_if = "is_default")]
    pub direct: bool,
}
impl Rollout {
    /// One that begins now, with nothing to be said of it yet.
    pub fn begin(generation: Generation, what: String, by: By, started_at: Timestamp) -> Self {
        Self {
            generation,
            what,
            by,
            started_at,
            state: RolloutState::Progressing,
            reason: String::new(),
            ended_at: None,
            before: None,
            release: None,
            paused: None,
            promoted: None,
            abort: None,
            steps: BTreeMap::new(),
            hooks: ReleaseHooks::default(),
            pending: None,
            direct: false,
        }
    }
    /// How it ended, once it has.
    pub fn end(&self) -> Option<EndedRollout> {
        let ended = EndedRollout { generation: self.generation, state: self.state };
        self.state.is_over().then_some(ended)
    }
}

/// How a change of an app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRollout {
    /// The generation that it carried out.
    pub generation: Generation,
    /// A final state.
    pub state: RolloutState,
}

/// Where a change of an app is. Ends are final; the next change begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Under way.
    Progressing,
    /// Every service is as wanted.
    Done,
    /// It failed and stays where it is.
    Failed,
    /// It failed, and the app is back at the release before.
    RolledBack,
    /// A newer change took its place.
    Superseded,
}
impl RolloutState {
    /// Whether it is an end.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Progressing => false,
            Self::Done | Self::Failed | Self::RolledBack | Self::Superseded => true,
        }
    }
}
impl fmt::Display for RolloutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Progressing => "progressing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::RolledBack => "rolled back",
            Self::Superseded => "superseded",
        })
    }
}

/// An immutable numbered snapshot of an app. Only how its rollout ended is added later, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Whose.
    pub app: AppKey,
    /// Its number.
    pub number: ReleaseNumber,
    /// The whole normalised app; secrets by digest only.
    pub spec: AppSpec,
    /// What each image reference was at that time.
    pub images: BTreeMap<ServiceName, Image>,
    /// Who made it.
    pub by: By,
    /// When.
    pub created_at: Timestamp,
    /// The release that the app was on when it was made; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ReleaseNumber>,
    /// What its maker said of it.
    #[serde(default)]
    pub note: ReleaseNote,
    /// How its rollout ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ReleaseOutcome>,
}

/// An image, pinned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Image {
    /// As written: `mariadb:11`.
    pub reference: String,
    /// Digest of its manifest at the registry (`sha256:…`): what nodes pull.
    #[serde(default)]
    pub digest: Option<String>,
    /// The engine's id of it (`sha256:…`), where it is known only to engines and no registry could be asked.
    #[serde(default)]
    pub id: Option<String>,
    /// What it was built from, if the cluster built it. Without digest and id it has yet to be built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<crate::BuildMark>,
}
impl Image {
    /// An image of which only the name is known.
    pub fn named(reference: impl Into<String>) -> Self {
        Self { reference: reference.into(), digest: None, id: None, built: None }
    }
    /// Whether it is to be built and has not been.
    pub const fn is_unbuilt(&self) -> bool {
        self.built.is_some() && self.digest.is_none() && self.id.is_none()
    }
}

/// What a service should be now. Written through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Its name, app and environment.
    pub key: ServiceKey,
    /// Which [`ServiceRevision`] the tasks should follow that serve; grows when containers must be replaced, and goes back to an
    /// earlier one only when a failing rollout returns to the release before.
    pub generation: Generation,
    /// How many tasks: the file's number, or that of a later `scale`.
    pub mode: Mode,
    /// Wants no tasks for now.
    #[serde(default)]
    pub stopped: bool,
    /// No longer part of the app: its tasks go, and then its record.
    #[serde(default)]
    pub removed: bool,
    /// Sets of tasks beside the one that `generation` and `mode` describe, which alone is found by name and published port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<TaskSet>,
}
impl ServiceRecord {
    /// A service that wants so many tasks of a generation, and has nothing beside them.
    pub const fn new(key: ServiceKey, generation: Generation, mode: Mode) -> Self {
        Self { key, generation, mode, stopped: false, removed: false, sets: Vec::new() }
    }
    /// The set that is to take the place of the one that serves, if there is one.
    pub fn next(&self) -> Option<&TaskSet> {
        self.sets.iter().find(|set| matches!(set.role, SetRole::Next { .. }))
    }
    /// The generation and the number of tasks that it is on or moving to.
    pub fn wanted(&self) -> (Generation, Mode) {
        let next = self.sets.iter().find_map(|set| match set.role {
            SetRole::Next { full, .. } => Some((set.generation, full)),
            SetRole::Kept { .. } | SetRole::Leaving => None,
        });
        next.unwrap_or((self.generation, self.mode))
    }
}

/// How tasks of one generation of a service are made. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRevision {
    /// Whose.
    pub key: ServiceKey,
    /// Which.
    pub generation: Generation,
    /// The release it came with.
    pub release: ReleaseNumber,
    /// What to run.
    pub spec: ServiceSpec,
    /// The image, pinned.
    pub image: Image,
    /// It differs from the one before only by having been asked for (`restart`).
    #[serde(default)]
    pub restart: bool,
}

/// A named volume of an app. A `local` volume belongs to the node that it was first used on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its identifier.
    pub id: VolumeId,
    /// Whose it is.
    pub app: AppKey,
    /// Its key in the Compose file.
    pub name: VolumeName,
    /// What was asked for.
    pub spec: VolumeSpec,
    /// The nodes that hold data of it. A volume of a service with several tasks has one folder on each of their nodes.
    pub nodes: Vec<NodeId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Data of it that people have given up, and that may still lie on nodes: no task waits for it, and none is given it again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<GivenUp>,
}

/// Data of a volume on a node that people have given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The node.
    pub node: NodeId,
    /// What the volume was then: its folder on the node is called so.
    pub volume: VolumeId,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: By,
}
