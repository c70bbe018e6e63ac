//! The keys of this node's end of the tunnels: made here, kept in one file that only root may read, and never sent anywhere.
//!
//! - The file is written before a key is used or told of: a node that restarts has the key that others know.
//! - A next key waits beside the one in force until it is [promoted](Keys::promote), which happens in one step.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use gotatun::x25519;
use serde::{Deserialize, Serialize};
use wharf_model::{PublicKey, Timestamp};

const FILE: &str = "wireguard.json";

/// A private key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PrivateKey(pub(super) [u8; 32]);

impl PrivateKey {
    fn new() -> Self {
        Self(rand::random())
    }
    pub(super) fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&x25519::StaticSecret::from(self.0)).to_bytes())
    }
}
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the private key of {}", self.public())
    }
}

/// A key with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) private: PrivateKey,
    pub(super) public: PublicKey,
    made_at: Timestamp,
    pub(super) rotation: u32,
}

impl Key {
    fn new(rotation: u32, now: Timestamp) -> Self {
        let private = PrivateKey::new();
        Self { public: private.public(), private, made_at: now, rotation }
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    key: WrittenKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<WrittenKey>,
}

#[derive(Serialize, Deserialize)]
struct WrittenKey {
    private: String,
    made_at: Timestamp,
    rotation: u32,
}

impl From<&Key> for WrittenKey {
    fn from(key: &Key) -> Self {
        Self { private: hex::encode(key.private.0), made_at: key.made_at, rotation: key.rotation }
    }
}
impl TryFrom<WrittenKey> for Key {
    type Error = hex::FromHexError;

    fn try_from(key: WrittenKey) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&key.private, &mut bytes)?;
        let private = PrivateKey(bytes);
        Ok(Self { public: private.public(), private, made_at: key.made_at, rotation: key.rotation })
    }
}

/// The keys, as they are on disk.
#[derive(Debug)]
pub(super) struct Keys {
    path: PathBuf,
    pub(super) current: Key,
    pub(super) next: Option<Key>,
}

impl Keys {
    /// Reads the keys in this folder, or makes the first.
    pub(super) fn open(folder: &Path, now: Timestamp) -> io::Result<Self> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(text) => {
                let damaged = |error: &dyn fmt::Display| {
                    io::Error::other(format!(
                        "{} is damaged ({error}): remove it, and the node makes a new key",
                        path.display()
                    ))
                };
                let written: Written = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
                let current = Key::try_from(written.key).map_err(|error| damaged(&error))?;
                let next = written.next.map(Key::try_from).transpose().map_err(|error| damaged(&error))?;
                Ok(Self { path, current, next })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = Self { path, current: Key::new(0, now), next: None };
                keys.write(&keys.current, None)?;
                Ok(keys)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the next key if there is none yet and the one in force is older than `age`, or was made for an earlier rotation. Answers whether
    /// it did.
    pub(super) fn renew(&mut self, rotation: u32, age: Duration, now: Timestamp) -> io::Result<bool> {
        let due = self.current.rotation < rotation || now.since(self.current.made_at) > age;
        if !due || self.next.is_some() {
            return Ok(false);
        }
        let next = Key::new(rotation.max(self.current.rotation), now);
        self.write(&self.current, Some(&next))?;
        self.next = Some(next);
        Ok(true)
    }

    /// Puts the next key into force if it is this one. Answers whether it was.
    pub(super) fn promote(&mut self, key: PublicKey) -> io::Result<bool> {
        let Some(next) = self.next.take_if(|next| next.public == key) else { return Ok(false) };
        if let Err(error) = self.write(&next, None) {
            self.next = Some(next);
            return Err(error);
        }
        self.current = next;
        Ok(true)
    }

    /// Writes beside the old file and renames: whoever reads finds one or the other.
    fn write(&self, current: &Key, next: Option<&Key>) -> io::Result<()> {
        let written = Written { key: current.into(), next: next.map(WrittenKey::from) };
        let text = serde_json::to_vec(&written)?;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.path.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn day(count: u64) -> Timestamp {
        Timestamp(count * 86_400_000)
    }

    #[test]
    fn a_key_survives_a_restart_and_only_root_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(folder.path(), day(0)).unwrap();
        let again = Keys::open(folder.path(), day(9)).unwrap();
        assert_eq!(first.current, again.current);
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&hex::encode(first.current.private.0)), "it is not printed");
    }

    #[test]
    fn a_next_key_is_made_when_due_and_is_in_force_once_promoted() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = Keys::open(folder.path(), day(0)).unwrap();
        assert!(!keys.renew(0, DAY * 30, day(30)).unwrap(), "young enough");
        assert!(keys.renew(0, DAY * 30, day(31)).unwrap(), "old");
        let (old, next) = (keys.current.public, keys.next.as_ref().unwrap().public);
        assert!(!keys.renew(5, DAY * 30, day(32)).unwrap(), "one waits already");
        assert!(!keys.promote(old).unwrap(), "not that one");
        // What was told of before a restart is what is promoted after it.
        let mut keys = Keys::open(folder.path(), day(33)).unwrap();
        assert!(keys.promote(next).unwrap());
        assert_eq!((keys.current.public, &keys.next), (next, &None));
        assert_eq!(Keys::open(folder.path(), day(33)).unwrap().current.public, next);
        assert!(keys.renew(5, DAY * 30, day(33)).unwrap(), "asked for");
        let next = keys.next.as_ref().unwrap().public;
        assert!(keys.promote(next).unwrap());
        assert!(!keys.renew(5, DAY * 30, day(34)).unwrap(), "asked for once");
    }
}
