//! What the agent and the DNS process say to each other, and a DNS process to the one that takes its place.
//!
//! - A frame is one JSON document. [`Ask::Names`] with content is followed by a frame with the [`Content`], which is kept on disk as it came.
//! - Unknown fields are passed over, and new ones have defaults. Agent and process are of one build; only [`Ask::HandOver`],
//!   [`Ask::Took`] and their answers are spoken between builds.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use wharf_model::{DnsTable, NetworkId, Revision};

use super::{DnsCounters, Listen, Sources, Upstreams};

/// Where to answer, and whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The networks.
    pub networks: BTreeMap<NetworkId, Listen>,
    /// For other names.
    pub upstreams: Upstreams,
}

/// To the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// Answer here from now on. Answered with a report.
    Settings(Settings),
    /// Serve these names from now on. Answered with [`Say::Served`] once no others are.
    Names {
        /// Grows with each set of names of one agent process.
        number: u64,
        version: Revision,
        /// Whether they follow; otherwise they are those of the last version.
        content: bool,
    },
    /// Say how it is. Answered with a report.
    Report,
    /// Give the sockets to whoever asks. Answered with [`Say::Sockets`]; then their files follow.
    HandOver,
    /// They are listened on; end.
    Took,
    /// End, and answer nobody any more.
    End,
}

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Say {
    /// These names and no others are served.
    Served { number: u64 },
    /// How it is.
    Report(Report),
    /// The addresses that are listened on. For each follow two open files: its UDP socket and its TCP listener.
    Sockets(Vec<SocketAddr>),
}

/// How a DNS process is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) problems: Vec<String>,
    pub(super) counters: DnsCounters,
}

/// The names to serve.
#[derive(Debug, Deserialize)]
pub(super) struct Content {
    pub(super) table: DnsTable,
    pub(super) sources: Sources,
}

impl Content {
    pub(super) fn write(table: &DnsTable, sources: &Sources) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            table: &'a DnsTable,
            sources: &'a Sources,
        }
        serde_json::to_vec(&Borrowed { table, sources })
    }

    /// What was written, but for the version, which comes first: whether this differs says whether the names do.
    pub(super) fn without_version(written: &[u8]) -> &[u8] {
        let end = written.iter().position(|byte| *byte == b',').unwrap_or(0);
        &written[end..]
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::NetworkId;

    use super::*;

    #[test]
    fn names_that_differ_in_their_version_alone_are_told_from_others() {
        let mut table = DnsTable { version: Revision(7), ..DnsTable::default() };
        let id = NetworkId::from_parts(1, [1; 10]);
        table.networks.entry(id).or_default().insert("web".into(), vec![]);
        let first = Content::write(&table, &Sources::new()).unwrap();
        table.version = Revision(1234);
        let second = Content::write(&table, &Sources::new()).unwrap();
        assert_ne!(first, second);
        assert_eq!(Content::without_version(&first), Content::without_version(&second));
        table.networks.entry(id).or_default().insert("db".into(), vec![]);
        let third = Content::write(&table, &Sources::new()).unwrap();
        assert_ne!(Content::without_version(&second), Content::without_version(&third));
        let read: Content = serde_json::from_slice(&third).unwrap();
        assert_eq!(read.table, table);
    }
}
