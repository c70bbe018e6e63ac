//! What can go wrong with a store, and what the caller does next.

use std::{error::Error, path::PathBuf};

use crate::Revision;

/// A cause whose type is nobody's business.
pub type AnyError = Box<dyn Error + Send + Sync>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else wrote first; nothing was written. Read again and decide again.
    #[error("`{key}` changed while it was being worked on: expected {}, found {}", told(*.expected), told(*.found))]
    Conflict {
        /// The first key that was not as expected.
        key: String,
        /// What the batch expected: last written at this revision, or absent.
        expected: Option<Revision>,
        /// What was there, if the backend can say.
        found: Option<Revision>,
    },

    /// The history does not reach back to where a watch was to begin or had come to. Read and watch from
    /// there.
    #[error("the history after revision {after} has been compacted away")]
    Compacted {
        /// The revision after which events were wanted.
        after: Revision,
    },

    /// The store cannot be reached or does not answer. Whether a commit took place is not known.
    #[error("cannot reach the store at {place}")]
    Unavailable {
        /// The file or the endpoints.
        place: String,
        /// What happened.
        #[source]
        source: AnyError,
    },

    /// Another process has the store's file open.
    #[error("the store `{}` is in use by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },

    /// The store's file is not whole, or not a store. It was left as it is.
    #[error("the store `{}` is damaged", .path.display())]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// How that was noticed.
        #[source]
        source: AnyError,
    },

    /// What is kept under a key is not what was written there.
    #[error("the value under `{key}` is damaged: {reason}")]
    DamagedValue {
        /// The key, or the revision of the history.
        key: String,
        /// How that was noticed.
        reason: String,
    },

    /// The data were written by a newer version of this program.
    #[error("{what} has schema {found}, but this version reads schemas up to {supported}")]
    UnsupportedSchema {
        /// The file or the key.
        what: String,
        /// The schema it has.
        found: u32,
        /// The newest schema this version reads.
        supported: u32,
    },

    /// What is under a key is whole, but not what was expected there.
    #[error("cannot read the record under `{key}`")]
    Malformed {
        /// The key.
        key: String,
        /// Where it stopped making sense.
        #[source]
        source: AnyError,
    },

    /// There is no space left to write to. Nothing that was acknowledged is lost, and writing works again
    /// when there is space.
    #[error("no space is left for the store at {place}")]
    Full {
        /// The file or the endpoints.
        place: String,
        /// What the system or etcd said.
        #[source]
        source: AnyError,
    },

    /// The batch is larger than the backend can take at once; nothing was written.
    #[error("the batch is too large: it {what}, and the store takes at most {limit}")]
    TooLarge {
        /// What is too much, as a verb and its object: "writes 300 keys".
        what: String,
        /// How much the store takes.
        limit: usize,
    },

    /// The store cannot be set up as asked.
    #[error("cannot use the store settings: {reason}")]
    Misconfigured {
        /// What is wrong with which setting.
        reason: String,
    },
}

impl StoreError {
    pub(crate) fn unavailable(place: impl Into<String>, source: impl Into<AnyError>) -> Self {
        Self::Unavailable { place: place.into(), source: source.into() }
    }

    /// Whether somebody else wrote first, so that reading and deciding again is the answer.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Conflict { .. } => true,
            Self::Compacted { .. }
            | Self::Unavailable { .. }
            | Self::InUse { .. }
            | Self::DamagedFile { .. }
            | Self::DamagedValue { .. }
            | Self::UnsupportedSchema { .. }
            | Self::Malformed { .. }
            | Self::Full { .. }
            | Self::TooLarge { .. }
            | Self::Misconfigured { .. } => false,
        }
    }

    /// Whether the same request may succeed later although nobody changes anything about it. After a
    /// conflict or a compaction it will not: those want a new read first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::InUse { .. } | Self::Full { .. } => true,
            Self::Conflict { .. }
            | Self::Compacted { .. }
            | Self::DamagedFile { .. }
            | Self::DamagedValue { .. }
            | Self::UnsupportedSchema { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Misconfigured { .. } => false,
        }
    }

    /// What the reader can do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict { .. } => Some("somebody else changed it; look at it again and repeat".to_owned()),
            Self::Compacted { .. } => None,
            Self::Unavailable { .. } => {
                Some("check that the store is running and reachable from here".to_owned())
            }
            Self::InUse { path } => Some(format!(
                "another server runs on this data: stop it (`fuser -v {0}` shows the process), or give this one a folder of its own",
                path.display()
            )),
            Self::DamagedFile { path, .. } => Some(format!(
                "the file was not changed: keep a copy of {0}, then put a backup in its place; moving it away starts an empty cluster",
                path.display()
            )),
            Self::DamagedValue { .. } => {
                Some("the disk or memory of this machine may be failing; restore the store from a backup".to_owned())
            }
            Self::UnsupportedSchema { .. } => {
                Some("it was written by a newer version: run that one, or restore a backup from before the upgrade".to_owned())
            }
            Self::Malformed { .. } => None,
            Self::Full { .. } => Some("free some space; the store goes on by itself".to_owned()),
            Self::TooLarge { .. } => Some("change fewer things at once".to_owned()),
            Self::Misconfigured { .. } => None,
        }
    }
}

fn told(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "no value".to_owned(), |revision| format!("revision {revision}"))
}

#[cfg(test)]
mod tests {
    use wharf_process::errors::chain;

    use super::*;

    #[test]
    fn a_conflict_names_the_key_and_both_sides() {
        let error = StoreError::Conflict { key: "node/a".into(), expected: None, found: Some(Revision(7)) };
        assert_eq!(
            error.to_string(),
            "`node/a` changed while it was being worked on: expected no value, found revision 7"
        );
        assert!(error.is_conflict() && !error.is_retryable());
    }

    #[test]
    fn a_full_disk_is_worth_trying_again_and_says_what_helps() {
        let source = std::io::Error::from_raw_os_error(28);
        let error = StoreError::Full { place: "/srv/cluster.db".into(), source: source.into() };
        assert!(error.is_retryable());
        assert!(error.hint().is_some_and(|hint| hint.contains("free some space")));
        let text = chain(&error);
        assert!(text.contains("/srv/cluster.db") && text.contains("No space left on device"), "{text}");
    }
}
