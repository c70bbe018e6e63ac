//! What a server asks of a node over its session, and what the node answers: paths and types.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `PUT /v1/assignments` | [`AssignmentSet`](wharf_model::AssignmentSet) | [`Have`]; 409 with [`Have`] if it holds a newer set |
//! | `PATCH /v1/assignments` | [`ChangeAssignments`] | as above; 412 if what it starts from is not what this session was sent last |
//! | `PUT /v1/lease` | [`LeaseGrant`](wharf_model::LeaseGrant) | [`LeaseAnswer`](wharf_model::LeaseAnswer) |
//! | `GET /v1/reports` | | JSON lines of [`Report`], without end |
//! | `PUT /v1/servers` | [`super::wire::Servers`] | nothing |
//! | `POST /v1/images/resolve` | [`ResolveImage`] | [`Image`](wharf_model::Image) |
//! | `POST /v1/images/build` | a line of JSON, a [`BuildRequest`](crate::v1::BuildRequest), and after it the context as a tar archive | JSON lines of [`BuildLine`](crate::v1::BuildLine) |
//! | `GET /v1/images/{id}` | | [`ImageFacts`]; 404 if it does not have the image |
//! | `GET /v1/images/{id}/archive` | [`ArchiveQuery`] in the query | the image as `docker load` takes it, without the layers that were not wanted |
//! | `POST /v1/prune` | [`Prune`] | [`Pruned`] |
//! | `GET /v1/tasks/{id}/logs` | [`LogsQuery`] in the query | JSON lines of [`OutputLine`] |
//! | `POST /v1/tasks/{id}/exec` | frames, the first a [`Frame::Start`](super::Frame::Start) | frames, the last an exit or an error |
//! | `GET /v1/tasks/{id}/stats` | | [`TaskUsage`] |
//! | `GET /v1/tasks/{id}/inspect` | | the engine's JSON |
//! | `GET /v1/node` | | [`NodeReport`] |
//! | `GET /v1/gateway/routes` | | [`GatewayStats`](wharf_model::GatewayStats); 404 if it has no gateway |
//!
//! Whole sets are always taken. A node that also takes differences says so in its answer to a whole set ([`DIFFERENCES`]); without that, as
//! from an older agent, it is sent whole sets.
//!
//! A refusal is a [`Problem`](crate::v1::Problem), as in the API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::{
    AssignmentSet, Bytes, Cpus, NodeId, NodeReport, Revision, TaskReport, Timestamp, VolumeId,
    difference::Change,
};

use super::Checksum;

/// The header of an answer to a whole set by which a node says that it takes differences of this form.
pub const DIFFERENCES: (&str, &str) = ("wharf-differences", "1");

/// What makes the set that a session was sent last another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeAssignments {
    /// Stands for the set that it starts from: the body of the last whole set, and the bodies of all changes since then.
    pub base: Checksum,
    /// What changes.
    pub change: Change<AssignmentSet>,
}

/// The set of assignments a node holds. Sets are ordered by epoch and revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Have {
    /// Its epoch.
    pub epoch: u64,
    /// The revision it was made from.
    pub revision: Revision,
}

/// One line of a node's reports.
///
/// The stream begins with the node and every task it knows, then says [`Report::Synced`], then goes on with what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "report", content = "of")]
pub enum Report {
    /// The node itself.
    Node(Box<NodeReport>),
    /// One task.
    Task(Box<TaskReport>),
    /// The data of a volume that was to be removed is gone.
    VolumeRemoved(VolumeId),
    /// Everything the node knew when the stream began has been said.
    Synced,
    /// The node is alive; sent every two seconds, whatever else is sent.
    Heartbeat,
}

/// A wish to know what an image reference stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveImage {
    /// As written: `mariadb:11`.
    pub reference: String,
    /// Ask the registry also if the node's engine has an image of that name.
    #[serde(default)]
    pub refresh: bool,
    /// Do not ask the registry at all; wins over `refresh`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
}

/// An image that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The engine's identifier of it (`sha256:…`).
    pub id: String,
    /// The digests of its layers, unpacked, the lowest first.
    pub layers: Vec<String>,
    /// Its size, unpacked.
    pub size: Bytes,
}

/// A node's wish to know which of its images somebody needs; asked of a server at [`super::wire::NEEDED_IMAGES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskNeeded {
    /// All that it has.
    pub images: Vec<AskedImage>,
}

/// An image, as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedImage {
    /// The engine's identifier of it.
    pub id: String,
    /// Its names with their tags.
    pub names: Vec<String>,
    /// Its digests at registries, without the repositories.
    pub digests: Vec<String>,
}

/// Which images of a node somebody needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NeededImages {
    /// By the engine's identifier: who needs it.
    pub needed: BTreeMap<String, String>,
}

/// A wish that a node removes what nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prune {
    /// Only say what would go.
    pub dry_run: bool,
    /// Also images that Wharf did not bring.
    pub everything: bool,
}

/// What a node has removed, or would.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// What went, or would go, in that order.
    pub removed: Vec<PrunedThing>,
    /// What stays.
    pub kept: Vec<PrunedThing>,
    /// How many bytes more are free; of what would go, the sum of its sizes, which may count layers twice that images share.
    #[schema(value_type = u64)]
    pub freed: Bytes,
}

/// Something that takes up room on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedThing {
    /// What kind of thing.
    #[schema(value_type = String)]
    pub kind: PruneKind,
    /// An image's identifier.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Its size.
    #[schema(value_type = u64)]
    pub size: Bytes,
    /// Why it goes or stays.
    pub why: String,
}

/// What kinds of things are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneKind {
    /// An image.
    Image,
    /// What builds have left.
    BuildCache,
}
impl std::fmt::Display for PruneKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Image => "image",
            Self::BuildCache => "build cache",
        })
    }
}

/// How much of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArchiveQuery {
    /// So many of its lowest layers are left out: the receiver has them.
    pub skip: usize,
}

/// A node's wish to know which nodes have an image that its engine lacks; asked of a server at [`super::wire::FIND_IMAGE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindImage {
    /// The engine's identifier of it.
    pub id: String,
    /// What it is called.
    pub reference: String,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundImage {
    /// What it is.
    pub image: ImageFacts,
    /// A connected node that has it.
    pub node: NodeId,
    /// What that node is called.
    pub name: String,
}

/// A node's wish for an image from another node; asked of a server at [`super::wire::FETCH_IMAGE`], answered with an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchImage {
    /// The engine's identifier of it.
    pub id: String,
    /// The node that has it.
    pub node: NodeId,
    /// So many of its lowest layers are left out.
    pub skip: usize,
}

/// Which of a task's output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsQuery {
    /// Go on with what comes.
    pub follow: bool,
    /// Only so many of the last lines there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Only lines from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only lines before then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl LogsQuery {
    /// As the query of a URL.
    pub fn to_query(&self) -> String {
        let mut query = format!("follow={}", self.follow);
        let numbers =
            [("tail", self.tail), ("since", self.since.map(|at| at.0)), ("until", self.until.map(|at| at.0))];
        for (name, number) in numbers {
            if let Some(number) = number {
                query.push_str(&format!("&{name}={number}"));
            }
        }
        query
    }
}

/// Where a line of output was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Not the task: what the node has to say about the stream, such as that lines are missing.
    Wharf,
}

/// One line a task wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    /// When the node's engine took it.
    pub at: Timestamp,
    /// Where it was written.
    pub stream: OutputStream,
    /// The line without its end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// What a task uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskUsage {
    /// Processor time over the last second or so.
    pub cpus: Cpus,
    /// Memory in use, without page cache that can be dropped.
    pub memory: Bytes,
    /// Its limit; the node's memory if it has none.
    pub memory_limit: Bytes,
    /// Received since it started.
    pub network_rx: Bytes,
    /// Sent since it started.
    pub network_tx: Bytes,
    /// Read from disks since it started.
    pub block_read: Bytes,
    /// Written to disks since it started.
    pub block_write: Bytes,
    /// Processes.
    pub pids: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logs_query_names_only_what_is_asked_for() {
        let query = LogsQuery { follow: true, tail: Some(10), since: Some(Timestamp(5)), until: None };
        assert_eq!(query.to_query(), "follow=true&tail=10&since=5");
        assert_eq!(LogsQuery::default().to_query(), "follow=false");
    }

    #[test]
    fn a_heartbeat_is_one_short_line() {
        assert_eq!(serde_json::to_string(&Report::Heartbeat).unwrap(), r#"{"report":"heartbeat"}"#);
    }
}
