//! What a node remembers of its membership: who it is, its key, and where the servers are.
//!
//! - Files are replaced in one step and reach the disk before the step is done: after a crash there is the old or the new, never half.
//! - All of them are for their owner only (0600).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wharf_api::transport::{Identity, Trust, wire::Servers};
use wharf_model::{NodeId, NodeName};

const IDENTITY_FILE: &str = "identity.json";
const SERVERS_FILE: &str = "servers.json";

/// That this machine is a node, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Which node.
    pub node: NodeId,
    /// What it is called.
    pub name: NodeName,
    /// Its certificate and key.
    pub identity: Identity,
    /// The cluster's authority.
    pub trust: Trust,
}

/// Why it cannot be remembered.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is nothing to remember.
    #[error("this machine has not joined a cluster: there is no {}", .0.display())]
    NotJoined(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}
impl HomeError {
    /// What to do about it, as far as is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotJoined(_) => {
                Some("run the line that `wharf token create` prints on a server: `wharf agent join …`")
            }
            Self::Damaged { .. } => Some("join again with `wharf agent join --force`"),
            Self::File { .. } => None,
        }
    }
}

/// The folder of a node's state.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// In this folder, which is made when something is written.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which node this machine is.
    ///
    /// # Errors
    /// If it is none, or the file cannot be read.
    pub fn read(&self) -> Result<Membership, HomeError> {
        let path = self.folder.join(IDENTITY_FILE);
        read(&path)?.ok_or(HomeError::NotJoined(path))
    }

    /// Remembers which node this machine is.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, membership: &Membership) -> Result<(), HomeError> {
        self.replace(IDENTITY_FILE, membership)
    }

    /// The servers as far as they were known; none if they never were.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_servers(&self) -> Result<Servers, HomeError> {
        Ok(read(&self.folder.join(SERVERS_FILE))?.unwrap_or_default())
    }

    /// Remembers the servers.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_servers(&self, servers: &Servers) -> Result<(), HomeError> {
        self.replace(SERVERS_FILE, servers)
    }

    fn replace(&self, name: &str, value: &impl Serialize) -> Result<(), HomeError> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let content = serde_json::to_vec_pretty(value)
            .map_err(|source| HomeError::Damaged { path: path.clone(), source })?;
        let replaced = fs::create_dir_all(&self.folder).and_then(|()| {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        });
        replaced.map_err(|source| HomeError::File { doing: "write", path, source })
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, HomeError> {
    match fs::read(path) {
        Ok(content) => serde_json::from_slice(&content)
            .map(Some)
            .map_err(|source| HomeError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HomeError::File { doing: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_membership_is_read_back_and_is_for_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("wharf-home-{}", std::process::id()));
        let home = Home::new(&folder);
        assert!(matches!(home.read(), Err(HomeError::NotJoined(_))));
        assert_eq!(home.read_servers().unwrap(), Servers::default());

        let membership = Membership {
            node: NodeId::from_parts(1, [1; 10]),
            name: "n1".parse().unwrap(),
            identity: Identity { certificate: "certificate".to_owned(), key: "secret".to_owned() },
            trust: Trust { ca: "ca".to_owned() },
        };
        home.write(&membership).unwrap();
        assert_eq!(home.read().unwrap(), membership);
        let file = folder.join(IDENTITY_FILE);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{membership:?}").contains("secret"));

        fs::write(&file, "{").unwrap();
        assert!(matches!(home.read(), Err(HomeError::Damaged { .. })));
        fs::remove_dir_all(&folder).unwrap();
    }
}
