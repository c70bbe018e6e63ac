//! What a DNS process was last told, for the one that comes after it: two files in its folder.
//!
//! - Names are a line as they came whole, and a line for each difference that followed, behind what it makes of the checksum. A last line that does
//!   not fit was never acknowledged.
//! - Written before it is acknowledged, so that nobody who reads it knows an older table than was acknowledged.
//! - Of one boot of the machine: what was true before a power cut is nobody's truth until the agent says so. The folder is in memory,
//!   and the boot is written down all the same, in case it is not.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use wharf_api::transport::Checksum;

use super::protocol::{Content, Settings};

const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const NAMES: &str = "dns-names.json";
const SETTINGS: &str = "dns-settings.json";
/// How long a checksum is.
const SUM: usize = 16;

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
        Self::read_names(&self.read(NAMES)?)
    }

    /// None if anything but the end of it is not as it was kept.
    fn read_names(bytes: &[u8]) -> Option<Content> {
        let mut lines = bytes.split(|byte| *byte == b'\n').peekable();
        let whole = lines.next()?;
        let mut content: Content = serde_json::from_slice(whole).ok()?;
        let mut sum = Checksum::of(whole);
        while let Some(line) = lines.next() {
            let (said, difference) = line.split_at_checked(SUM).unwrap_or_default();
            sum = sum.then(difference);
            if *said != *sum.to_string().as_bytes() {
                return lines.peek().is_none().then_some(content);
            }
            content.amend(serde_json::from_slice(difference).ok()?).ok()?;
        }
        Some(content)
    }

    pub(super) fn keep_settings(&self, settings: &Settings) -> io::Result<()> {
        self.keep(SETTINGS, &serde_json::to_vec(settings)?)
    }

    /// Keeps names as they were [written](Content::write).
    pub(super) fn keep_names(&self, written: &[u8]) -> io::Result<()> {
        self.keep(NAMES, written)
    }

    /// Keeps a difference to what was kept before it, as it came. `sum` stands for what both make.
    pub(super) fn add_to_names(&self, difference: &[u8], sum: Checksum) -> io::Result<()> {
        let line = [b"\n", sum.to_string().as_bytes(), difference].concat();
        fs::OpenOptions::new().append(true).open(self.folder.join(NAMES))?.write_all(&line)
    }

    /// Writes names whole that lie there with differences, as every build reads them.
    pub(super) fn join_names(&self) -> io::Result<()> {
        match self
            .read(NAMES)
            .filter(|bytes| bytes.contains(&b'\n'))
            .and_then(|bytes| Self::read_names(&bytes))
        {
            Some(Content { table, sources }) => self.keep_names(&Content::write(&table, &sources)?),
            None => Ok(()),
        }
    }

    /// Without what is not whole, or of another boot.
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join(name)).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        (bytes[..end] == *self.boot.as_bytes()).then(|| bytes.split_off(end + 1))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
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
    use crate::dns::{Sources, protocol::Difference};

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

    #[test]
    fn differences_are_kept_behind_the_names_and_a_torn_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::open(folder.path().to_owned()).unwrap();
        let table = |version| DnsTable { version: Revision(version), ..DnsTable::default() };
        let whole = Content::write(&table(1), &Sources::new()).unwrap();
        held.keep_names(&whole).unwrap();
        let mut sum = Checksum::of(&whole);
        let mut ends = vec![fs::read(folder.path().join(NAMES)).unwrap().len()];
        for version in 2..4 {
            let sources = Sources::new();
            let (old, new) = (table(version - 1), table(version));
            let difference = Difference::between((&old, &sources), (&new, &sources)).unwrap();
            let written = serde_json::to_vec(&difference).unwrap();
            sum = sum.then(&written);
            held.add_to_names(&written, sum).unwrap();
            ends.push(fs::read(folder.path().join(NAMES)).unwrap().len());
        }
        let bytes = fs::read(folder.path().join(NAMES)).unwrap();
        for length in ends[0]..=bytes.len() {
            fs::write(folder.path().join(NAMES), &bytes[..length]).unwrap();
            let kept = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(
                held.names().unwrap().table,
                table(u64::try_from(kept).unwrap()),
                "cut off at {length}"
            );
        }
        let mut damaged = bytes.clone();
        damaged[ends[0] + 20] ^= 1;
        fs::write(folder.path().join(NAMES), &damaged).unwrap();
        assert!(held.names().is_none(), "a difference that was acknowledged is not passed over");
        // For a process of an older build.
        fs::write(folder.path().join(NAMES), &bytes).unwrap();
        held.join_names().unwrap();
        let joined: Content = serde_json::from_slice(&held.read(NAMES).unwrap()).unwrap();
        assert_eq!(joined.table, table(3));
    }
}
