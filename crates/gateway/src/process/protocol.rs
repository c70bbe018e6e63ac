//! What the agent and a gateway process say to each other, and a gateway process to the one that takes its place.
//!
//! - A frame is one JSON document. [`Ask::Table`] with content is followed by a frame with the table, which is kept as it came.
//! - The process also speaks unasked: how it is, whenever that changes.
//! - Unknown fields are passed over, and new ones have defaults: an agent tells its tables also to processes of the build before, until their
//!   last connection is over. One that does not understand a table says so, and is ended.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wharf_model::{GatewayStats, RouteTable, TaskId};

use crate::RouteKey;

/// To the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// Serve this table from now on. Answered with [`Say::Served`] once no other is.
    Table {
        /// Grows with each table of one agent process.
        number: u64,
        /// Whether it follows; otherwise it is the last one, but for its version.
        content: bool,
    },
    /// Say what went through. Answered with [`Say::Stats`].
    Stats { number: u64 },
    /// Give the sockets to whoever asks. Answered with [`Say::Sockets`]; then their files follow. If nothing is said after that, they are
    /// kept by both.
    HandOver,
    /// They are listened on; take no more connections.
    Took,
    /// End.
    End,
}

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Say {
    /// This table and no other is served.
    Served {
        number: u64,
        /// How it is since then.
        status: Status,
    },
    /// How it is.
    Status(Status),
    /// What went through.
    Stats { number: u64, stats: GatewayStats },
    /// Where it listens. For each follows an open file: its socket.
    Sockets(Vec<RouteKey>),
    /// It is of another build, and cannot read that.
    NotUnderstood { why: String },
}

/// How a gateway process is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    /// Another one takes the connections.
    pub(super) retired: bool,
    /// Connected clients.
    pub(super) clients: u64,
    /// What is not served, in words.
    pub(super) problems: Vec<String>,
    /// The ports that somebody else has, as far as the process can tell: it may not see who.
    pub(super) taken: Vec<RouteKey>,
    /// The ports it listens on.
    pub(super) ports: BTreeSet<u16>,
    /// Grows whenever it opens or closes a socket.
    pub(super) sockets: u64,
    /// Tasks its table does not have, and what is under way with each.
    pub(super) draining: BTreeMap<TaskId, u64>,
}

/// A table as it is told and kept.
pub(super) fn write(table: &RouteTable) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(table)
}

/// What was written, but for the version, which comes first: whether this differs says whether the tables do.
pub(super) fn without_version(written: &[u8]) -> &[u8] {
    let end = written.iter().position(|byte| *byte == b',').unwrap_or(0);
    &written[end..]
}

#[cfg(test)]
mod tests {
    use wharf_model::{AppKey, Protocol, Revision, Route, ServiceKey};

    use super::*;

    fn table(version: u64, port: u16) -> RouteTable {
        let app =
            AppKey { environment: "prod".parse().expect("a name"), name: "shop".parse().expect("a name") };
        let service = ServiceKey { app, name: "web".parse().expect("a name") };
        let route = Route { service, port, protocol: Protocol::Tcp, host_ip: None, endpoints: vec![] };
        RouteTable::of_ports(Revision(version), vec![route])
    }

    #[test]
    fn tables_that_differ_in_their_version_alone_are_told_from_others() {
        let [first, second, third] = [(7, 80), (1234, 80), (7, 81)].map(|(version, port)| {
            let table = table(version, port);
            let written = write(&table).unwrap();
            assert_eq!(serde_json::from_slice::<RouteTable>(&written).unwrap(), table);
            written
        });
        assert_ne!(first, second);
        assert_eq!(without_version(&first), without_version(&second));
        assert_ne!(without_version(&first), without_version(&third));
    }

    #[test]
    fn what_another_build_says_is_understood_as_far_as_it_goes() {
        let status: Status = serde_json::from_str(r#"{"clients":3,"mood":"fine"}"#).unwrap();
        assert_eq!(status, Status { clients: 3, ..Status::default() });
    }
}
