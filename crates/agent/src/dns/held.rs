//! What a DNS process was last told, for the one that comes after it: two files in its folder, each replaced as a whole.
//!
//! - Written before it is acknowledged, so that nobody who reads it knows an older table than was acknowledged.
//! - Of one boot of the machine: what was true before a power cut is nobody's truth until the agent says so. The folder is in memory,
//!   and the boot is written down all the same, in case it is not.

use std::{fs, io, path::PathBuf};

use super::protocol::{Content, Settings};

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const NAMES: &str = "dns-names.json";
const SETTINGS: &str = "dns-settings.json";

pub(super) struct Held {
    folder: PathBuf,
    boot: String,
}

impl Held {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        Ok(Self { folder, boot: fs::read_to_string(BOOT)?.trim().to_owned() })
    }

    pub(super) fn settings(&self) -> Option<Settings> {
        serde_json::from_slice(&self.read(SETTINGS)?).ok()
    }

    pub(super) fn names(&self) -> Option<Content> {
        serde_json::from_slice(&self.read(NAMES)?).ok()
    }

    pub(super) fn keep_settings(&self, settings: &Settings) -> io::Result<()> {
        self.keep(SETTINGS, &serde_json::to_vec(settings)?)
    }

    /// Keeps names as they were [written](Content::write).
    pub(super) fn keep_names(&self, written: &[u8]) -> io::Result<()> {
        self.keep(NAMES, written)
    }

    /// Without what is not whole, or of another boot.
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join(name)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        (bytes[..end] == *self.boot.as_bytes()).then(|| bytes.split_off(end + 1))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use io::Write as _;
        let new = self.folder.join(format!("{name}.new"));
        let mut file = fs::File::create(&new)?;
        file.write_all(self.boot.as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(bytes)?;
        fs::rename(new, self.folder.join(name))
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{DnsTable, Revision};

    use super::*;
    use crate::dns::Sources;

    #[test]
    fn what_was_kept_is_there_and_of_this_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::open(folder.path().to_owned()).unwrap();
        assert!(held.names().is_none() && held.settings().is_none());
        let table = DnsTable { version: Revision(3), ..DnsTable::default() };
        held.keep_names(&Content::write(&table, &Sources::new()).unwrap()).unwrap();
        assert_eq!(held.names().unwrap().table, table);
        let after = Held { folder: folder.path().to_owned(), boot: "another".into() };
        assert!(after.names().is_none(), "a table of before the reboot is nobody's truth");
        fs::write(folder.path().join(NAMES), &held.boot).unwrap();
        assert!(held.names().is_none(), "cut off");
    }
}
