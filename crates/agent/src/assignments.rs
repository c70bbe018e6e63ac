//! The assignment set that the node holds: accepted, kept on disk, and refused when it is older.
//!
//! - Sets are ordered by epoch and revision; one that is older than the held one is refused, an equal one is taken again.
//! - What is on disk is whole: written beside, synced, renamed. It holds no content of a secret, no key and no password.
//! - A node that starts without a server carries on from what is on disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use wharf_model::{AssignmentSet, NodeId, Revision};

/// Why a set was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is meant for another node.
    #[error("the assignments are for {want}, and this is {have}")]
    OtherNode {
        /// This node.
        have: NodeId,
        /// The set's.
        want: NodeId,
    },
    /// A newer one is held already.
    #[error(
        "the assignments of revision {} (epoch {}) are older than those of revision {} (epoch {}) that this node holds",
        got.1, got.0, have.1, have.0
    )]
    Older {
        /// Epoch and revision held.
        have: (u64, Revision),
        /// Epoch and revision refused.
        got: (u64, Revision),
    },
    /// It could not be kept: a node that forgot it over a restart could take an older one.
    #[error("cannot keep the assignments in {}: {reason}", path.display())]
    NotKept {
        /// Where.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// Holds the node's assignment set.
#[derive(Debug)]
pub struct Assignments {
    node: NodeId,
    path: PathBuf,
    held: Option<Arc<AssignmentSet>>,
}

impl Assignments {
    /// What the node held when it last ran.
    ///
    /// # Errors
    /// If the file is there and cannot be read, or is not what [`Assignments::accept`] wrote: it is never guessed at.
    pub fn load(node: NodeId, folder: &Path) -> io::Result<Self> {
        let path = folder.join("assignments.json");
        let held = match fs::read(&path) {
            Ok(bytes) => {
                let set: AssignmentSet = serde_json::from_slice(&bytes).map_err(|error| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{} is damaged: {error}", path.display()),
                    )
                })?;
                // A node that was given a new identity has no use for its former work.
                Some(Arc::new(set)).filter(|set| set.node == node)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { node, path, held })
    }

    /// The set that is held. After a start from disk, secrets have no content in it, and routes no keys and passwords
    /// ([`wharf_model::RouteTable::withheld`]).
    pub const fn held(&self) -> Option<&Arc<AssignmentSet>> {
        self.held.as_ref()
    }

    /// Takes a set, and keeps it before it answers.
    ///
    /// # Errors
    /// If it is another node's, older than the held one, or cannot be kept; then nothing has changed.
    pub fn accept(&mut self, set: AssignmentSet) -> Result<(), Refused> {
        if set.node != self.node {
            return Err(Refused::OtherNode { have: self.node, want: set.node });
        }
        let order = |set: &AssignmentSet| (set.epoch, set.revision);
        if let Some(held) = &self.held
            && order(&set) < order(held)
        {
            return Err(Refused::Older { have: order(held), got: order(&set) });
        }
        if self.held.as_deref() != Some(&set) {
            self.keep(&set)
                .map_err(|error| Refused::NotKept { path: self.path.clone(), reason: error.to_string() })?;
            self.held = Some(Arc::new(set));
        }
        Ok(())
    }

    fn keep(&self, set: &AssignmentSet) -> io::Result<()> {
        let mut kept = set.clone();
        for file in kept.tasks.values_mut().flat_map(|task| &mut task.files).filter(|file| file.secret) {
            file.content.clear();
        }
        kept.routes = kept.routes.without_secrets();
        write_whole(&self.path, &serde_json::to_vec(&kept)?)
    }
}

/// Replaces a file by another content, readable by its owner only: after a crash it holds the one or the other.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The rename itself is only on disk when its folder is.
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

    use wharf_model::{
        AcmeChallenge, AppKey, DnsTable, FileAssignment, FileMount, RouteId, RouteTable, ServiceKey,
        ServiceRoute, ShownCertificate, TicketKey, Users,
    };

    use super::*;
    use crate::runtime::contract::sample_task;

    fn node(number: u8) -> NodeId {
        NodeId::from_parts(1, [number; 10])
    }

    fn set(epoch: u64, revision: u64) -> AssignmentSet {
        AssignmentSet {
            epoch,
            revision: Revision(revision),
            node: node(1),
            tasks: BTreeMap::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            removed_volumes: Vec::new(),
            dns: DnsTable::default(),
            routes: RouteTable::default(),
            wireguard: None,
            disk_marks: Default::default(),
            watched: Vec::new(),
        }
    }

    #[test]
    fn older_sets_and_those_of_other_nodes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = Assignments::load(node(1), folder.path()).unwrap();
        assert_eq!(held.accept(set(1, 7)), Ok(()));
        assert_eq!(held.accept(set(1, 7)), Ok(()), "the same again is no harm");
        let refused = held.accept(set(1, 6)).unwrap_err();
        assert_eq!(refused, Refused::Older { have: (1, Revision(7)), got: (1, Revision(6)) });
        assert_eq!(
            held.accept(set(2, 1)),
            Ok(()),
            "a restored store counts from the beginning in a new epoch"
        );
        assert!(held.accept(set(1, 99)).is_err());
        let foreign = AssignmentSet { node: node(2), ..set(3, 1) };
        assert_eq!(held.accept(foreign), Err(Refused::OtherNode { have: node(1), want: node(2) }));
        assert_eq!(held.held().map(|held| &**held), Some(&set(2, 1)));
    }

    #[test]
    fn a_node_carries_on_from_disk_and_no_secret_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = |secret, content: &str| FileAssignment {
            mount: FileMount { source: "a".into(), target: "/a".into(), uid: None, gid: None, mode: None },
            secret,
            content: content.into(),
        };
        let mut task = sample_task(1, "web", "img");
        task.files = vec![file(true, "aHVudGVyMg=="), file(false, "cHVibGlj")];
        let mut given = set(1, 7);
        given.tasks.insert(task.id, task.clone());
        Assignments::load(node(1), folder.path()).unwrap().accept(given).unwrap();

        let path = folder.path().join("assignments.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains("aHVudGVyMg=="));
        let mut again = Assignments::load(node(1), folder.path()).unwrap();
        let files = &again.held().unwrap().tasks[&task.id].files;
        assert_eq!((files[0].content.as_str(), files[1].content.as_str()), ("", "cHVibGlj"));
        assert!(again.accept(set(1, 6)).is_err(), "a restart does not make it forget what it held");
    }

    #[test]
    fn no_key_and_no_password_of_a_route_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let shown = || ShownCertificate {
            hosts: vec!["a.example".into()],
            chain: "C".into(),
            key: "PRIVATE-1".into(),
        };
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let route = ServiceRoute {
            id: RouteId {
                service: ServiceKey { app, name: "web".parse().unwrap() },
                number: 0,
                preview: false,
            },
            spec: serde_json::from_str(r#"{"port": 80, "basic_auth": {"secret": "staff"}}"#).unwrap(),
            sets: Vec::new(),
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: Users(vec!["ada:PRIVATE-2".into()]),
        };
        let answer = "PRIVATE-3".to_owned();
        let full = RouteTable {
            services: vec![route],
            certificates: vec![shown()],
            challenges: vec![AcmeChallenge::Http01 { host: "a.example".into(), token: "t".into(), answer }],
            ticket_keys: vec![TicketKey([251; 32])],
            ..RouteTable::default()
        };
        let given = AssignmentSet { routes: full.clone(), ..set(1, 7) };
        Assignments::load(node(1), folder.path()).unwrap().accept(given).unwrap();
        let kept = fs::read_to_string(folder.path().join("assignments.json")).unwrap();
        assert!(!kept.contains("PRIVATE") && !kept.contains("251"), "{kept}");

        let again = Assignments::load(node(1), folder.path()).unwrap();
        let mut routes = again.held().unwrap().routes.clone();
        assert!(routes.withheld && routes.services.len() == 1);
        routes.recall(&full);
        assert_eq!(routes, full, "a gateway that has them goes on with them");
    }

    #[test]
    fn a_damaged_file_is_named_and_not_guessed_at() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("assignments.json"), "{\"epoch\":1").unwrap();
        let error = Assignments::load(node(1), folder.path()).unwrap_err();
        assert!(error.to_string().contains("assignments.json is damaged"), "{error}");
    }
}
