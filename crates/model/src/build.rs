//! How images are built: what a Compose file says under `build`, and what is remembered of a build.
//!
//! A [`BuildSpec`] stays on the machine that has the files; what reaches the cluster are [`BuildOptions`] and an archive of the context.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{Bytes, ServiceName, Ulimit};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `build:` of a service. Paths are absolute and of the machine that has the Compose file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSpec {
    /// Whether the service has an `image:`; otherwise the image is named after app and service.
    pub named: bool,
    /// The files it is built from.
    pub context: BuildContext,
    /// How it is built.
    pub dockerfile: Dockerfile,
    /// Further sources that the Dockerfile may copy from, by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub additional_contexts: BTreeMap<String, AdditionalContext>,
    /// Everything else.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: BuildOptions,
    /// Build at every `up`, also what has not changed (`pull_policy: build`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub always: bool,
}

/// Where the files of a build come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildContext {
    /// A folder.
    Folder(String),
    /// An address that the engine fetches: a git repository or an archive.
    Remote(String),
}

/// The instructions of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dockerfile {
    /// A file; a relative path begins at the context.
    File(String),
    /// Written into the Compose file.
    Inline(String),
}

/// A further source of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionalContext {
    /// A folder.
    Folder(String),
    /// An image.
    Image(String),
    /// The image of another service of the app.
    Service(ServiceName),
}

/// What a builder is told besides context and Dockerfile.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildOptions {
    /// Values of `ARG`s.
    #[serde(skip_serializing_if = "is_default")]
    pub args: BTreeMap<String, String>,
    /// The stage to build; the last one if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub target: Option<String>,
    /// Labels of the image.
    #[serde(skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// `host` or `none`; the engine's own network if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Option<String>,
    /// Size of `/dev/shm` of its steps.
    #[serde(skip_serializing_if = "is_default")]
    pub shm_size: Option<Bytes>,
    /// Images whose layers may be reused.
    #[serde(skip_serializing_if = "is_default")]
    pub cache_from: Vec<String>,
    /// Reuse nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub no_cache: bool,
    /// Ask registries for newer base images.
    #[serde(skip_serializing_if = "is_default")]
    pub pull: bool,
    /// Entries of its steps' `/etc/hosts`: `name:address`.
    #[serde(skip_serializing_if = "is_default")]
    pub extra_hosts: Vec<String>,
    /// Further names of the image.
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Resource limits of its steps.
    #[serde(skip_serializing_if = "is_default")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// What it is for: `linux/arm64`.
    #[serde(skip_serializing_if = "is_default")]
    pub platform: Option<String>,
    /// What `RUN --mount=type=secret` finds, by id, in base64.
    #[serde(skip_serializing_if = "is_default")]
    pub secrets: BTreeMap<String, String>,
}
impl fmt::Debug for BuildOptions {
    /// Never shows what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildOptions")
            .field("args", &self.args.keys())
            .field("target", &self.target)
            .field("network", &self.network)
            .field("platform", &self.platform)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

/// What an image was built from, as two hashes: builds of which both are equal need not be made twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BuildMark {
    /// Of the files, the Dockerfile among them.
    pub context: String,
    /// Of the options.
    pub options: String,
    /// The name of the node that built it: it has what the next build can reuse.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: Option<String>,
}
impl BuildMark {
    /// Whether both are of the same files and options, whoever built them.
    pub fn is_same(&self, other: &Self) -> bool {
        self.context == other.context && self.options == other.options
    }
}
