//! What a server keeps in its folder: who it is, where its store is, and the keys that must not be in the store.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wharf_model::ServerId;

use crate::seal::SealKey;

const SETTINGS: &str = "server.json";
const SEAL_KEY: &str = "seal.key";
const LOCK: &str = "lock";

/// Who a server is and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server.
    pub id: ServerId,
    /// The cluster's identifier: a store of another one is refused.
    pub cluster: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it: `host:port`, best first. The names are in its certificate.
    pub advertise: Vec<String>,
    /// Where it keeps the state.
    pub store: StoreChoice,
}

/// Where the state is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum StoreChoice {
    /// In a file of this server, which is then the only one.
    Embedded,
    /// In etcd, for several servers.
    Etcd {
        /// `http://host:port` or `https://host:port` of each member.
        endpoints: Vec<String>,
        /// What all keys begin with.
        prefix: String,
    },
}

/// Why a server's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no server in it.
    #[error("there is no server in {}", .0.display())]
    Absent(PathBuf),
    /// There is one already.
    #[error("there is a server in {} already", .0.display())]
    Present(PathBuf),
    /// Another process runs it.
    #[error("another process runs the server in {}", .0.display())]
    InUse(PathBuf),
    /// A file is not as we write it.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system refuses.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}
impl FolderError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Absent(_) => {
                Some("make one with `wharf server init`, or name its folder with `--state-dir`".into())
            }
            Self::Present(path) => Some(format!(
                "run it with `wharf server run`; to begin anew, and lose the cluster, move {} away",
                path.display()
            )),
            Self::InUse(_) => Some("`systemctl status wharf-server` or `pgrep -a wharf` shows it".into()),
            Self::Damaged { .. } => Some("restore it from a backup of the folder".into()),
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run this as root".into())
            }
            Self::File { .. } => None,
        }
    }
}

/// A server's folder. While it is held, no other process runs a server in it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// The folder, made if it is absent (mode 0700), and locked.
    ///
    /// # Errors
    /// If another process holds it or the system refuses.
    pub fn lock(path: &Path) -> Result<Self, FolderError> {
        let refused = |doing, at: &Path, source| FolderError::File { doing, path: at.to_owned(), source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| refused("make the folder", path, source))?;
        let at = path.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&at)
            .map_err(|source| refused("open", &at, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(refused("lock", &at, source)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The embedded store's file.
    pub fn store(&self) -> PathBuf {
        self.path.join("cluster.redb")
    }
    /// Whether there is a server in it.
    pub fn is_set_up(&self) -> bool {
        self.path.join(SETTINGS).exists()
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// If there are none or they are damaged.
    pub fn settings(&self) -> Result<Settings, FolderError> {
        let path = self.path.join(SETTINGS);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::Absent(self.path.clone()));
            }
            Err(source) => return Err(FolderError::File { doing: "read", path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| FolderError::Damaged { path, source: source.into() })
    }

    /// Writes the settings: the last thing that setting a server up does.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), FolderError> {
        let text = serde_json::to_vec_pretty(settings).expect("settings have a JSON form");
        self.write(SETTINGS, &text)
    }

    /// Reads the key of sealed contents.
    ///
    /// # Errors
    /// If it is absent or damaged.
    pub fn seal_key(&self) -> Result<SealKey, FolderError> {
        let path = self.path.join(SEAL_KEY);
        let text = fs::read_to_string(&path).map_err(|source| FolderError::File {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|source| FolderError::Damaged { path, source: source.into() })?;
        Ok(SealKey::new(bytes))
    }

    /// Writes the key of sealed contents.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write_seal_key(&self, key: &SealKey) -> Result<(), FolderError> {
        self.write(SEAL_KEY, hex::encode(key.bytes()).as_bytes())
    }

    /// Replaces a file as a whole, with mode 0600.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| FolderError::File { doing: "write", path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_runs_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let held = Folder::lock(dir.path()).unwrap();
        assert!(matches!(held.settings(), Err(FolderError::Absent(_))));
        // flock belongs to the open file, so a second open in one process stands for another process.
        let second = Folder::lock(dir.path()).unwrap_err();
        assert!(matches!(second, FolderError::InUse(_)), "{second}");
        drop(held);
        Folder::lock(dir.path()).unwrap();
    }

    #[test]
    fn settings_and_keys_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::lock(dir.path()).unwrap();
        let settings = Settings {
            id: ServerId::from_parts(1, [2; 10]),
            cluster: "c".into(),
            listen: "0.0.0.0:7420".parse().unwrap(),
            advertise: vec!["10.0.0.1:7420".into()],
            store: StoreChoice::Embedded,
        };
        folder.write_settings(&settings).unwrap();
        folder.write_seal_key(&SealKey::new([9; 32])).unwrap();
        assert_eq!(folder.settings().unwrap(), settings);
        assert_eq!(folder.seal_key().unwrap().bytes(), &[9; 32]);
        fs::write(dir.path().join(SEAL_KEY), "zz").unwrap();
        assert!(matches!(folder.seal_key(), Err(FolderError::Damaged { .. })));
    }
}
