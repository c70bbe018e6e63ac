//! How full the file systems are that Wharf and the engine write to, and where that leads.
//!
//! - Figures move in steps of a hundredth, so that what a node says of itself is news.
//! - Where it leads is a line from an hour ago to now; nothing is said of less than [`SHORTEST`], and nothing that is days away.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use wharf_model::{Bytes, DiskFacts, DiskUse};

/// How far back a line is drawn from.
const HOUR: Duration = Duration::from_hours(1);
/// What a line says nothing of.
const SHORTEST: Duration = Duration::from_mins(10);
/// What is told of, in hours; more is far away.
const TOLD: [u32; 8] = [1, 2, 4, 8, 12, 24, 48, 72];

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Which one it is.
    pub device: u64,
    /// Bytes that can be used by others than root.
    pub total: u64,
    /// How many of them are free.
    pub free: u64,
    /// How many files it can have; 0 if that has no bound.
    pub inodes: u64,
    /// How many more.
    pub inodes_free: u64,
}

/// Looks at file systems.
pub trait Disks: Send + Sync + fmt::Debug {
    /// The one that a path is on.
    ///
    /// # Errors
    /// If the path cannot be looked at.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Nothing is known of file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDisks;
impl Disks for NoDisks {
    fn space(&self, _: &Path) -> io::Result<Space> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Those of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct MachineDisks;
impl Disks for MachineDisks {
    fn space(&self, path: &Path) -> io::Result<Space> {
        let device = std::fs::metadata(path)?.dev();
        let found = nix::sys::statvfs::statvfs(path)?;
        let block = found.fragment_size();
        let (all, free) = (found.blocks() * block, found.blocks_free() * block);
        let available = found.blocks_available() * block;
        // As `df` counts: what is kept for root is not to be had.
        let total = all.saturating_sub(free).saturating_add(available);
        Ok(Space {
            device,
            total,
            free: available,
            inodes: found.files(),
            inodes_free: found.files_available(),
        })
    }
}

/// What is known of the node's file systems.
#[derive(Debug, Default)]
pub(super) struct Known {
    said: BTreeMap<u64, DiskFacts>,
    used: BTreeMap<u64, VecDeque<(Duration, u64)>>,
}

impl Known {
    /// Looks at the file systems of these paths, and says what they are like.
    pub(super) fn look(
        &mut self,
        disks: &dyn Disks,
        paths: &[(PathBuf, DiskUse)],
        moment: Duration,
    ) -> Vec<DiskFacts> {
        let mut found = BTreeMap::<u64, DiskFacts>::new();
        for (path, holds) in paths {
            let Ok(space) = disks.space(path) else { continue };
            if let Some(disk) = found.get_mut(&space.device) {
                disk.holds.push(*holds);
                continue;
            }
            let disk = DiskFacts {
                path: path.to_string_lossy().into_owned(),
                holds: vec![*holds],
                total: Bytes(space.total),
                free: Bytes(space.free),
                inodes: space.inodes,
                inodes_free: space.inodes_free,
                full_in_hours: self.full_in_hours(&space, moment),
            };
            found.insert(space.device, disk);
        }
        for (device, disk) in &mut found {
            if let Some(said) = self.said.get(device) {
                steady(said, disk);
            }
        }
        self.used.retain(|device, _| found.contains_key(device));
        self.said = found;
        self.said.values().cloned().collect()
    }

    fn full_in_hours(&mut self, space: &Space, moment: Duration) -> Option<u32> {
        let used = space.total.saturating_sub(space.free);
        let samples = self.used.entry(space.device).or_default();
        samples.push_back((moment, used));
        while samples.len() > 2 && samples.get(1).is_some_and(|(at, _)| moment.saturating_sub(*at) >= HOUR) {
            samples.pop_front();
        }
        let (since, before) = *samples.front()?;
        let passed = moment.saturating_sub(since);
        let grown = used.saturating_sub(before);
        if passed < SHORTEST || grown == 0 {
            return None;
        }
        let hours = u128::from(space.free) * passed.as_millis() / u128::from(grown) / HOUR.as_millis();
        TOLD.into_iter().find(|told| hours <= u128::from(*told))
    }
}

/// Leaves figures as they were said that have moved by less than a hundredth.
fn steady(said: &DiskFacts, now: &mut DiskFacts) {
    let moved = |all: u64, before: u64, after: u64| before.abs_diff(after) >= (all / 100).max(1);
    if said.total == now.total && !moved(now.total.0, said.free.0, now.free.0) {
        now.free = said.free;
    }
    if said.inodes == now.inodes && !moved(now.inodes, said.inodes_free, now.inodes_free) {
        now.inodes_free = said.inodes_free;
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug)]
    struct One(Mutex<Space>);
    impl Disks for One {
        fn space(&self, _: &Path) -> io::Result<Space> {
            Ok(*self.0.lock())
        }
    }
    fn paths() -> [(PathBuf, DiskUse); 2] {
        [("/a".into(), DiskUse::Engine), ("/b".into(), DiskUse::State)]
    }

    #[test]
    fn one_file_system_is_told_of_once_and_in_steps() {
        let disk = One(Mutex::new(Space { device: 1, total: 1000, free: 500, inodes: 100, inodes_free: 50 }));
        let mut known = Known::default();
        let mut look = |free| {
            disk.0.lock().free = free;
            known.look(&disk, &paths(), Duration::ZERO)
        };
        let first = look(500);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].holds, [DiskUse::Engine, DiskUse::State]);
        assert_eq!(look(495), first, "that is no news");
        assert_eq!(look(490)[0].free, Bytes(490));
        assert_eq!(look(481)[0].free, Bytes(490), "steps count from what was said");
    }

    #[test]
    fn a_disk_that_fills_says_when_it_is_full() {
        let disk = One(Mutex::new(Space { device: 1, total: 10_000, free: 9_000, ..Space::default() }));
        let mut known = Known::default();
        let mut at = |minute: u64, free| {
            disk.0.lock().free = free;
            known.look(&disk, &paths(), Duration::from_mins(minute))[0].full_in_hours
        };
        assert_eq!(at(0, 9_000), None);
        assert_eq!(at(5, 8_000), None, "that is too short to tell");
        assert_eq!(at(30, 6_000), Some(1), "3,000 in half an hour, 6,000 are left");
        assert_eq!(at(60, 6_000), Some(2));
        assert_eq!(at(120, 6_000), None, "it has stopped an hour ago");
    }

    #[test]
    fn the_machines_own_disk_is_looked_at() {
        let space = MachineDisks.space(Path::new("/")).unwrap();
        assert!(space.total > 0 && space.free <= space.total, "{space:?}");
        assert!(MachineDisks.space(Path::new("/no/such/path")).is_err());
    }
}
