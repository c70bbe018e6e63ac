//! The assignment set that the node holds: accepted, kept on disk, and refused when it is older.
//!
//! - Sets are ordered by epoch and revision; one that is older than the held one is refused, an equal one is taken again.
//! - On disk is a whole set, written beside, synced and renamed, and behind it, each synced, what changed since then ([`Log`]). It holds no
//!   content of a secret, no key and no password.
//! - A node that starts without a server carries on from what is on disk.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use wharf_api::transport::Checksum;
use wharf_model::{
    AssignmentSet, NodeId, Revision, TaskAssignment, TaskId,
    difference::{AssignmentDifference, Change, Differ, MapDifference, Never},
};

/// The file.
const LOG: &str = "assignments.log";
/// Where agents of older builds kept a whole set, and nothing else.
const FORMER: &str = "assignments.json";
/// How long a checksum is.
const SUM: usize = 16;
/// Changes may take so many bytes, or as many as the whole set, before that is written anew.
const CHANGES: usize = 64 << 10;

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
    /// What is on disk, if something can be added to it.
    log: Option<Log>,
}

/// A file with a line for a whole set and one for each change since then, in that order. Before each is the checksum of everything up to it.
///
/// A last line that does not fit was cut off while it was written: nobody was told that it was kept, so it is passed over. Any other that does
/// not fit is damage.
#[derive(Debug, Clone, Copy)]
struct Log {
    sum: Checksum,
    /// How long the line of the whole set is, and those of the changes.
    whole: usize,
    changes: usize,
}

impl Log {
    fn begin(content: &[u8]) -> (Vec<u8>, Self) {
        let sum = Checksum::of(content);
        let line = line(sum, content);
        let log = Self { sum, whole: line.len(), changes: 0 };
        (line, log)
    }

    /// The line of a change, and what there is with it. None if a whole set is to be written instead.
    fn add(self, content: &[u8]) -> Option<(Vec<u8>, Self)> {
        let sum = self.sum.then(content);
        let line = line(sum, content);
        let changes = self.changes + line.len();
        (changes <= self.whole.max(CHANGES)).then_some((line, Self { sum, changes, ..self }))
    }

    /// How long the file is.
    const fn length(&self) -> usize {
        self.whole + self.changes
    }

    /// The set that is kept in these bytes. Without a log if nothing can be added to them.
    fn read(bytes: &[u8]) -> Result<(AssignmentSet, Option<Self>), String> {
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
        let fits = |line: &[u8], sum: &dyn Fn(&[u8]) -> Checksum| {
            let (said, content) = line.strip_suffix(b"\n")?.split_at_checked(SUM)?;
            let sum = sum(content);
            (*said == *sum.to_string().as_bytes()).then(|| (sum, content.to_vec()))
        };
        let first = lines.next().unwrap_or_default();
        let (sum, content) = fits(first, &Checksum::of).ok_or("its checksum does not fit")?;
        let mut set: AssignmentSet = serde_json::from_slice(&content).map_err(|error| error.to_string())?;
        let mut log = Self { sum, whole: first.len(), changes: 0 };
        while let Some(line) = lines.next() {
            let Some((sum, content)) = fits(line, &|content| log.sum.then(content)) else {
                let is_last = lines.peek().is_none();
                return if is_last { Ok((set, None)) } else { Err("a checksum does not fit".to_owned()) };
            };
            let change: Change<AssignmentSet> =
                serde_json::from_slice(&content).map_err(|error| error.to_string())?;
            change.apply(&mut set).map_err(|error| error.to_string())?;
            log = Self { sum, changes: log.changes + line.len(), ..log };
        }
        Ok((set, Some(log)))
    }
}

fn line(sum: Checksum, content: &[u8]) -> Vec<u8> {
    [sum.to_string().as_bytes(), content, b"\n"].concat()
}

impl Assignments {
    /// What the node held when it last ran.
    ///
    /// # Errors
    /// If the file is there and cannot be read, or is not what [`Assignments::accept`] wrote: it is never guessed at.
    pub fn load(node: NodeId, folder: &Path) -> io::Result<Self> {
        let path = folder.join(LOG);
        let damaged = |path: &Path, why: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {why}", path.display()))
        };
        let (mut held, mut log) = match read(&path)? {
            Some(bytes) => {
                let (set, log) = Log::read(&bytes).map_err(|why| damaged(&path, why))?;
                (Some(set), log)
            }
            None => (None, None),
        };
        let former = path.with_file_name(FORMER);
        if let Some(bytes) = read(&former)? {
            let set: AssignmentSet =
                serde_json::from_slice(&bytes).map_err(|error| damaged(&former, error.to_string()))?;
            // An agent of an older build may have run in between.
            if held.as_ref().is_none_or(|held| order(held) < order(&set)) {
                (held, log) = (Some(set), None);
            }
        }
        // A node that was given a new identity has no use for its former work.
        let held = held.filter(|set| set.node == node).map(Arc::new);
        let log = log.filter(|_| held.is_some());
        Ok(Self { node, path, held, log })
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
    pub fn accept(&mut self, set: impl Into<Arc<AssignmentSet>>) -> Result<(), Refused> {
        let set = set.into();
        if set.node != self.node {
            return Err(Refused::OtherNode { have: self.node, want: set.node });
        }
        if let Some(held) = &self.held
            && order(&set) < order(held)
        {
            return Err(Refused::Older { have: order(held), got: order(&set) });
        }
        self.keep(&set)
            .map_err(|error| Refused::NotKept { path: self.path.clone(), reason: error.to_string() })
    }

    fn keep(&mut self, set: &Arc<AssignmentSet>) -> io::Result<()> {
        let change = match &self.held {
            Some(held) if Arc::ptr_eq(held, set) => return Ok(()),
            Some(held) => match held.diff(set) {
                None => return Ok(()),
                Some(change) => Some(kept_change(held, set, change)),
            },
            None => None,
        };
        // Whatever becomes of the file: nothing is added to what is not known to be whole.
        let log = self.log.take();
        if let Some((change, log)) = change.zip(log)
            && let Some((line, longer)) = log.add(&serde_json::to_vec(&change)?)
        {
            match self.append(&line, log.length()) {
                Ok(()) => {
                    (self.held, self.log) = (Some(Arc::clone(set)), Some(longer));
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "a change of the assignments is not kept; all of them are written");
                }
            }
        }
        let mut kept = AssignmentSet { routes: set.routes.without_secrets(), ..AssignmentSet::clone(set) };
        kept.tasks.values_mut().for_each(withhold);
        let (line, log) = Log::begin(&serde_json::to_vec(&kept)?);
        write_whole(&self.path, &line)?;
        (self.held, self.log) = (Some(Arc::clone(set)), Some(log));
        // Older than this one from now on.
        match fs::remove_file(self.path.with_file_name(FORMER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the file of an older agent is not removed");
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    /// Adds a line to the file, if it is as long as it was left.
    fn append(&self, line: &[u8], length: usize) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        if file.metadata()?.len() != length as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "somebody else has changed the file"));
        }
        file.write_all(line)?;
        file.sync_data()
    }
}

fn order(set: &AssignmentSet) -> (u64, Revision) {
    (set.epoch, set.revision)
}

/// What of a change is kept: what makes what is kept of one set what is kept of the other.
fn kept_change(
    held: &AssignmentSet,
    set: &AssignmentSet,
    change: Change<AssignmentSet>,
) -> Change<AssignmentSet> {
    match change {
        Change::Whole(mut set) => {
            set.tasks.values_mut().for_each(withhold);
            set.routes = set.routes.without_secrets();
            Change::Whole(set)
        }
        Change::Part(mut part) => {
            match &mut part.tasks {
                None => {}
                Some(Change::Whole(tasks)) => tasks.values_mut().for_each(withhold),
                Some(Change::Part(MapDifference { gone: _, put, changed })) => {
                    put.values_mut().for_each(withhold);
                    // Once part of a task can change, that may be a secret.
                    let _: &BTreeMap<TaskId, Never> = changed;
                }
            }
            let routes =
                part.routes.and_then(|_| held.routes.without_secrets().diff(&set.routes.without_secrets()));
            Change::Part(AssignmentDifference { routes, ..part })
        }
    }
}

/// Leaves out the content of secrets.
fn withhold(task: &mut TaskAssignment) {
    task.files.iter_mut().filter(|file| file.secret).for_each(|file| file.content.clear());
}

/// None if there is no such file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
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
    use std::os::unix::fs::PermissionsExt;

    use wharf_model::{
        AcmeChallenge, AppKey, FileAssignment, FileMount, RouteId, RouteTable, ServiceKey, ServiceRoute,
        ShownCertificate, TicketKey, Users,
    };

    use super::*;
    use crate::runtime::contract::sample_task;

    fn node(number: u8) -> NodeId {
        NodeId::from_parts(1, [number; 10])
    }

    fn set(epoch: u64, revision: u64) -> AssignmentSet {
        AssignmentSet::new(epoch, Revision(revision), node(1))
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

        let path = folder.path().join(LOG);
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
        let kept = fs::read_to_string(folder.path().join(LOG)).unwrap();
        assert!(!kept.contains("PRIVATE") && !kept.contains("251"), "{kept}");

        let again = Assignments::load(node(1), folder.path()).unwrap();
        let mut routes = again.held().unwrap().routes.clone();
        assert!(routes.withheld && routes.services.len() == 1);
        routes.recall(&full);
        assert_eq!(routes, full, "a gateway that has them goes on with them");
    }

    /// A set with a secret and a route's password, which differ with `what`.
    fn eventful(revision: u64, what: u8) -> AssignmentSet {
        let mut given = set(1, revision);
        let mut task = sample_task(1, "web", "img");
        task.slot = wharf_model::Slot(u32::from(what % 3));
        let mount = FileMount { source: "a".into(), target: "/a".into(), uid: None, gid: None, mode: None };
        let content = format!("PRIVATE-{}", what % 4);
        task.files = vec![FileAssignment { mount, secret: true, content }];
        if !what.is_multiple_of(5) {
            given.tasks.insert(task.id, task);
        }
        given.routes.version = Revision(revision);
        if what & 8 > 0 {
            given.routes.ticket_keys = vec![TicketKey([what; 32])];
        }
        let names = given.dns.networks.entry(wharf_model::NetworkId::from_parts(1, [1; 10])).or_default();
        (0..what % 7)
            .for_each(|name| drop(names.insert(format!("name{name}"), vec![[10, 0, 0, what].into()])));
        given
    }

    /// What of a set is kept.
    fn kept(set: &AssignmentSet) -> AssignmentSet {
        let mut kept = AssignmentSet { routes: set.routes.without_secrets(), ..set.clone() };
        kept.tasks.values_mut().for_each(withhold);
        kept
    }

    fn load(folder: &Path) -> io::Result<Assignments> {
        Assignments::load(node(1), folder)
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(16))]
        #[test]
        fn what_is_read_again_is_what_was_taken_last(
            sets in proptest::collection::vec((proptest::num::u8::ANY, proptest::bool::weighted(0.2)), 1..12),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut held = load(folder.path()).unwrap();
            for (revision, (what, restarted)) in (1..).zip(sets) {
                if restarted {
                    held = load(folder.path()).unwrap();
                }
                let given = eventful(revision, what);
                held.accept(given.clone()).unwrap();
                assert_eq!(held.held().map(|held| &**held), Some(&given));
                assert_eq!(**load(folder.path()).unwrap().held().unwrap(), kept(&given));
                let bytes = fs::read(folder.path().join(LOG)).unwrap();
                assert!(!String::from_utf8_lossy(&bytes).contains("PRIVATE"));
            }
        }
    }

    #[test]
    fn a_log_that_ends_anywhere_holds_all_that_was_acknowledged_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let sets: Vec<_> =
            (1..5).map(|number| eventful(number, 7 + 2 * u8::try_from(number).unwrap())).collect();
        let mut held = load(folder.path()).unwrap();
        let mut ends = Vec::new();
        for set in &sets {
            held.accept(set.clone()).unwrap();
            ends.push(fs::read(folder.path().join(LOG)).unwrap().len());
        }
        let bytes = fs::read(folder.path().join(LOG)).unwrap();
        assert!(ends.is_sorted_by(|a, b| a < b), "each was added: {ends:?}");
        let kept_at = |length: usize| {
            let whole = ends.iter().filter(|end| **end <= length).count();
            kept(&sets[whole - 1])
        };
        for length in ends[0]..=bytes.len() {
            let (set, log) = Log::read(&bytes[..length]).unwrap();
            assert_eq!(set, kept_at(length), "cut off at {length}");
            assert_eq!(
                log.is_some(),
                ends.contains(&length),
                "nothing is added to half a line, cut off at {length}"
            );
        }
        for length in [ends[0], ends[0] + 1, ends[1] - 1, ends[2] + 20, ends[3] - 1, ends[3]] {
            let cut = tempfile::tempdir().unwrap();
            fs::write(cut.path().join(LOG), &bytes[..length]).unwrap();
            let mut after = load(cut.path()).unwrap();
            assert_eq!(**after.held().unwrap(), kept_at(length));
            let next = eventful(9, 3);
            after.accept(next.clone()).unwrap();
            assert_eq!(**load(cut.path()).unwrap().held().unwrap(), kept(&next), "after a cut at {length}");
        }
    }

    #[test]
    fn damage_is_named_and_not_guessed_at_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG);
        let mut held = load(folder.path()).unwrap();
        (1..4).for_each(|number| held.accept(eventful(number, 7)).unwrap());
        let good = fs::read(&path).unwrap();
        let last = good[..good.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
        for place in 0..last {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            assert!(Log::read(&bytes).is_err(), "byte {place}");
        }
        fs::write(&path, &good[1..]).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().contains("assignments.log is damaged"), "{error}");
        fs::write(&path, "").unwrap();
        assert!(load(folder.path()).is_err(), "a file is never empty");
    }

    #[test]
    fn a_log_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = load(folder.path()).unwrap();
        let mut longest = 0;
        for revision in 1..120 {
            let mut given = eventful(revision, 1);
            let names = given.dns.networks.values_mut();
            names.for_each(|names| drop(names.insert(format!("{revision:01200}"), Vec::new())));
            held.accept(given).unwrap();
            longest = longest.max(fs::metadata(folder.path().join(LOG)).unwrap().len());
        }
        assert!(longest < 2 * CHANGES as u64, "{longest} bytes");
        assert!(longest > CHANGES as u64 / 2, "it is not written anew with every set: {longest} bytes");
    }

    #[test]
    fn a_set_that_cannot_be_kept_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = load(folder.path()).unwrap();
        held.accept(eventful(1, 1)).unwrap();
        // Nothing can be added, and nothing written anew.
        fs::rename(folder.path().join(LOG), folder.path().join("aside")).unwrap();
        fs::create_dir(folder.path().join("assignments.new")).unwrap();
        assert!(matches!(held.accept(eventful(2, 2)), Err(Refused::NotKept { .. })));
        assert_eq!(held.held().map(|held| held.revision), Some(Revision(1)));
        fs::remove_dir(folder.path().join("assignments.new")).unwrap();
        held.accept(eventful(2, 2)).unwrap();
        assert_eq!(
            **load(folder.path()).unwrap().held().unwrap(),
            kept(&eventful(2, 2)),
            "as soon as it can"
        );
    }

    #[test]
    fn nothing_is_added_to_what_somebody_else_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = load(folder.path()).unwrap();
        held.accept(eventful(1, 1)).unwrap();
        let before = fs::read(folder.path().join(LOG)).unwrap();
        held.accept(eventful(2, 2)).unwrap();
        fs::write(folder.path().join(LOG), before).unwrap();
        held.accept(eventful(3, 3)).unwrap();
        assert_eq!(**load(folder.path()).unwrap().held().unwrap(), kept(&eventful(3, 3)));
    }

    #[test]
    fn what_an_older_agent_kept_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let former = folder.path().join(FORMER);
        fs::write(&former, serde_json::to_vec(&set(1, 7)).unwrap()).unwrap();
        let mut held = load(folder.path()).unwrap();
        assert!(held.accept(set(1, 6)).is_err(), "what is held is what the older agent held");
        held.accept(set(1, 8)).unwrap();
        assert!(!former.exists());
        // It ran once more in between.
        fs::write(&former, serde_json::to_vec(&set(1, 9)).unwrap()).unwrap();
        let mut held = load(folder.path()).unwrap();
        assert_eq!(held.held().map(|held| held.revision), Some(Revision(9)));
        held.accept(set(1, 10)).unwrap();
        assert_eq!(load(folder.path()).unwrap().held().map(|held| held.revision), Some(Revision(10)));
    }

    #[test]
    fn a_damaged_file_of_an_older_agent_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FORMER), "{\"epoch\":1").unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().contains("assignments.json is damaged"), "{error}");
    }
}
