//! What the agent and the DNS process say to each other, and a DNS process to the one that takes its place.
//!
//! - A frame is one JSON document. [`Ask::Names`] is followed by a frame with the [`Content`], [`Ask::Change`] by one with a [`Difference`];
//!   both are kept on disk as they came.
//! - Unknown fields are passed over, and new ones have defaults. Agent and process are of one build; only [`Ask::HandOver`],
//!   [`Ask::Took`] and their answers are spoken between builds.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use wharf_api::transport::Checksum;
use wharf_model::{
    DnsTable, NetworkId,
    difference::{Change, Differ, Unfit},
};

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
    /// Serve the names that follow from now on. Answered with [`Say::Served`] once no others are.
    Names {
        /// Grows with what one agent process says of names.
        number: u64,
    },
    /// Change the names that are served by the difference that follows. Answered as [`Ask::Names`], or with [`Say::Unknown`].
    Change {
        number: u64,
        /// Stands for the names that it starts from: as they came whole, and each difference since then.
        base: Checksum,
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
    /// What a difference starts from is not what is served here. Nothing has changed; the names have to be said whole.
    Unknown { number: u64 },
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
#[derive(Debug, Clone, PartialEq, Deserialize)]
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

    /// Changes what the difference says.
    ///
    /// # Errors
    /// If it does not start from these names. What is left then is of no use.
    pub(super) fn amend(&mut self, difference: Difference) -> Result<(), Unfit> {
        if let Some(table) = difference.table {
            table.apply(&mut self.table)?;
        }
        if let Some(sources) = difference.sources {
            sources.apply(&mut self.sources)?;
        }
        Ok(())
    }
}

/// How names become others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Difference {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<Change<DnsTable>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sources: Option<Change<Sources>>,
}

impl Difference {
    /// What makes the old names the new ones; nothing if they are.
    pub(super) fn between(old: (&DnsTable, &Sources), new: (&DnsTable, &Sources)) -> Option<Self> {
        let difference = Self { table: old.0.diff(new.0), sources: old.1.diff(new.1) };
        (difference.table.is_some() || difference.sources.is_some()).then_some(difference)
    }
}
