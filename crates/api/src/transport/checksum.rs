//! Tells whether two sides that exchange differences have the same: what it stands for is something whole and the differences that
//! followed it, as they were sent.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Stands for something whole as it was sent, or for that and the differences that followed it, in their order. Written as 16
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum([u8; 8]);

impl Checksum {
    /// That of something whole.
    pub fn of(whole: &[u8]) -> Self {
        Self::from_digest(Sha256::digest(whole).as_ref())
    }

    /// That of what this one stands for, with a difference behind it.
    #[must_use]
    pub fn then(self, difference: &[u8]) -> Self {
        let mut digest = Sha256::new();
        digest.update(self.0);
        digest.update(difference);
        Self::from_digest(digest.finalize().as_ref())
    }

    fn from_digest(digest: &[u8]) -> Self {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        Self(bytes)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

/// What was sent to one receiver: something whole, and the differences that followed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    sum: Checksum,
    /// How many bytes the whole was, and the differences since then.
    whole: usize,
    since: usize,
}

impl Sent {
    /// Something whole.
    pub fn whole(content: &[u8]) -> Self {
        Self { sum: Checksum::of(content), whole: content.len(), since: 0 }
    }

    /// Stands for all of it.
    pub const fn sum(&self) -> Checksum {
        self.sum
    }

    /// That, with a difference behind it. None once differences come to more bytes than the whole: it costs no more to send that again, and
    /// whatever might have gone wrong unnoticed does not last.
    #[must_use]
    pub fn then(self, difference: &[u8]) -> Option<Self> {
        let since = self.since + difference.len();
        (since <= self.whole).then(|| Self { sum: self.sum.then(difference), since, ..self })
    }
}

/// What is no checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a checksum is 16 hexadecimal digits")]
pub struct InvalidChecksum;

impl FromStr for Checksum {
    type Err = InvalidChecksum;
    fn from_str(text: &str) -> Result<Self, InvalidChecksum> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidChecksum)?;
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for Checksum {
    type Error = InvalidChecksum;
    fn try_from(text: String) -> Result<Self, InvalidChecksum> {
        text.parse()
    }
}
impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_follow_until_they_are_as_much_as_the_whole() {
        let sent = Sent::whole(b"whole");
        assert_eq!(sent.sum(), Checksum::of(b"whole"));
        let then = sent.then(b"ab").unwrap();
        assert_eq!(then.sum(), Checksum::of(b"whole").then(b"ab"));
        assert_eq!(then.then(b"cde").unwrap().sum(), then.sum().then(b"cde"));
        assert_eq!(then.then(b"cdef"), None);
    }

    #[test]
    fn it_is_of_everything_in_its_order() {
        let whole = Checksum::of(b"a");
        assert_ne!(whole, Checksum::of(b"b"));
        assert_ne!(whole.then(b"b").then(b"c"), whole.then(b"c").then(b"b"));
        assert_ne!(whole.then(b"bc"), whole.then(b"b").then(b"c"));
        assert_ne!(whole.then(b"c"), Checksum::of(b"b").then(b"c"));
        assert_ne!(whole.then(b"b"), Checksum::of(b"ab"));
        let written = serde_json::to_string(&whole.then(b"b")).unwrap();
        assert_eq!(serde_json::from_str::<Checksum>(&written).unwrap(), whole.then(b"b"));
        assert_eq!("xy".parse::<Checksum>(), Err(InvalidChecksum));
    }
}
