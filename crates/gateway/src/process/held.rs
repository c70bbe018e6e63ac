//! The table a gateway process was last told, for the one that comes after it: a file in its folder, replaced as a whole.
//!
//! - Written before it is acknowledged, so that nobody who reads it serves an older table than was acknowledged.
//! - Of one boot of the machine: what was true before a power cut is nobody's truth until the agent says so.
//! - Keys of certificates never touch a disk: where the folder is not in memory, they are left out.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use wharf_model::RouteTable;

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const TABLE: &str = "gateway-table.json";

pub(super) struct Held {
    folder: PathBuf,
    boot: String,
    in_memory: bool,
}

impl Held {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let in_memory = statfs(folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
        Ok(Self { folder: folder.to_owned(), boot: fs::read_to_string(BOOT)?.trim().to_owned(), in_memory })
    }

    /// The table, if it is whole and of this boot.
    pub(super) fn table(&self) -> Option<RouteTable> {
        let bytes = fs::read(self.folder.join(TABLE)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        if bytes[..end] != *self.boot.as_bytes() {
            return None;
        }
        serde_json::from_slice(&bytes[end + 1..]).ok()
    }

    /// Keeps a table as it was written; what is left out of it stays as it is kept.
    pub(super) fn keep(&self, table: &RouteTable, written: &[u8]) -> io::Result<()> {
        if table.withheld
            && let Some(before) = self.table()
        {
            let mut whole = table.clone();
            whole.recall(&before);
            return self.write(&serde_json::to_vec(&whole)?);
        }
        if self.in_memory || !table.has_secrets() {
            return self.write(written);
        }
        self.write(&serde_json::to_vec(&table.without_secrets())?)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.folder.join(format!("{TABLE}.new"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(self.boot.as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(bytes)?;
        fs::rename(new, self.folder.join(TABLE))
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{Revision, ShownCertificate};

    use super::*;

    #[test]
    fn what_was_kept_is_there_and_of_this_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::open(folder.path()).unwrap();
        assert!(held.table().is_none());
        let table = RouteTable { version: Revision(3), ..RouteTable::default() };
        held.keep(&table, &serde_json::to_vec(&table).unwrap()).unwrap();
        assert_eq!(held.table(), Some(table));
        let after = Held { boot: "another".into(), ..Held::open(folder.path()).unwrap() };
        assert!(after.table().is_none(), "a table of before the reboot is nobody's truth");
        fs::write(folder.path().join(TABLE), &held.boot).unwrap();
        assert!(held.table().is_none(), "cut off");
    }

    #[test]
    fn keys_are_kept_in_memory_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = ShownCertificate { hosts: vec![], chain: String::new(), key: "secret".into() };
        let table = RouteTable { certificates: vec![certificate], ..RouteTable::default() };
        let written = serde_json::to_vec(&table).unwrap();
        for in_memory in [false, true] {
            let held = Held { in_memory, ..Held::open(folder.path()).unwrap() };
            held.keep(&table, &written).unwrap();
            assert_eq!(held.table().unwrap().certificates.len(), usize::from(in_memory));
            let kept = fs::read_to_string(folder.path().join(TABLE)).unwrap();
            assert_eq!(kept.contains("secret"), in_memory);
            let withheld = RouteTable { version: Revision(2), ..table.without_secrets() };
            held.keep(&withheld, &serde_json::to_vec(&withheld).unwrap()).unwrap();
            let kept = held.table().unwrap();
            assert_eq!((kept.version, kept.certificates.len()), (Revision(2), usize::from(in_memory)));
        }
    }
}
