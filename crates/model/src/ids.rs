//! Identifiers that cannot be mistaken for one of another kind.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A thing that has identifiers of its own, such as a task or a node.
pub trait Kind {
    /// What stands before the underscore of a printed identifier.
    const PREFIX: &'static str;
}

/// An identifier, written and stored as `prefix_uuid`, so that a pasted one says what it names.
///
/// Identifiers made by [`Id::new`] from UUIDs of version 7 sort by the time of their making.
pub struct Id<K> {
    uuid: Uuid,
    kind: PhantomData<fn() -> K>,
}

/// Text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier of the form `{prefix}_…` with 32 hexadecimal digits")]
pub struct InvalidId {
    text: String,
    prefix: &'static str,
}

impl<K> Id<K> {
    /// The identifier with this UUID.
    pub const fn new(uuid: Uuid) -> Self {
        Self { uuid, kind: PhantomData }
    }
    /// The identifier made at `millis` since the epoch with these random bits: version 7, so later ones sort later.
    pub const fn from_parts(millis: u64, random: [u8; 10]) -> Self {
        Self::new(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
    /// The UUID behind it.
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }
    /// The last 12 hexadecimal digits: enough to tell things of one app apart, short enough to read.
    pub fn short(&self) -> String {
        let text = self.uuid.simple().to_string();
        text[20..].to_owned()
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.uuid == other.uuid
    }
}
impl<K> Eq for Id<K> {}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.uuid.hash(state);
    }
}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uuid.cmp(&other.uuid)
    }
}
impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", K::PREFIX, self.uuid.simple())
    }
}
impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<K: Kind> FromStr for Id<K> {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.strip_prefix(K::PREFIX)
            .and_then(|rest| rest.strip_prefix('_'))
            .filter(|digits| digits.len() == 32)
            .and_then(|digits| Uuid::try_parse(digits).ok())
            .map(Self::new)
            .ok_or_else(|| InvalidId { text: text.to_owned(), prefix: K::PREFIX })
    }
}
impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $alias:ident $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub enum $kind {}
        impl Kind for $kind {
            const PREFIX: &'static str = $prefix;
        }
        $(#[$doc])*
        pub type $alias = Id<$kind>;
    )*};
}
kinds! {
    /// A machine of the cluster.
    NodeKind NodeId "node";
    /// One scheduled container of a service.
    TaskKind TaskId "task";
    /// A network that spans nodes.
    NetworkKind NetworkId "net";
    /// A volume.
    VolumeKind VolumeId "vol";
    /// A server process of the control plane.
    ServerKind ServerId "server";
    /// A join token.
    TokenKind TokenId "token";
    /// Something that happened.
    EventKindKind EventId "event";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_says_what_it_names_and_reads_back() {
        let id = TaskId::from_parts(1_700_000_000_000, [7; 10]);
        let text = id.to_string();
        assert!(text.starts_with("task_"), "{text}");
        assert_eq!(text.parse::<TaskId>(), Ok(id));
        assert!(text.parse::<NodeId>().is_err(), "a task's id is no node's");
        assert!(TaskId::from_parts(1_700_000_000_001, [0; 10]) > id, "later ids sort later");
    }
}
