//! A folder as a build's context: what of it belongs to it, its hash, and the archive that is sent.
//!
//! - Nothing outside the folder is read: links are packed as links, never followed.
//! - The hash is of paths, kinds, modes, contents and the targets of links, in the order of paths. Owners and times do not count, nor
//!   does git's own folder: it changes with every commit, also of other folders.
//! - Two archives of equal folders differ in nothing but the files' times. What changes between the look and the sending is an error.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read as _, Write},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::ignore::Ignore;
use crate::hint;

/// Read at once.
const PIECE: usize = 64 << 10;

/// What a builder is given.
#[derive(Debug, Clone)]
pub(crate) struct Pack {
    folder: PathBuf,
    /// By path in the archive; a folder stands before what is in it.
    entries: BTreeMap<String, Entry>,
    /// Hash of everything.
    pub(crate) hash: String,
    /// Bytes of all files.
    pub(crate) size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    time: u64,
    kind: Kind,
}
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Folder,
    File {
        size: u64,
        hash: [u8; 32],
    },
    Link(PathBuf),
    /// Not a file of the folder.
    Given(Vec<u8>),
}

impl Pack {
    /// Looks at a folder, without what is ignored; `always` is packed also if it is ignored.
    pub(crate) fn of(folder: &Path, ignore: &Ignore, always: &[&str]) -> Result<Self> {
        let mut pack =
            Self { folder: folder.to_owned(), entries: BTreeMap::new(), hash: String::new(), size: 0 };
        pack.look("", ignore, always)?;
        // Folders of what was taken back.
        for path in pack.entries.keys().cloned().collect::<Vec<_>>() {
            for (at, _) in path.match_indices('/') {
                let parent = &path[..at];
                if !pack.entries.contains_key(parent) {
                    let entry = entry_of(&fs::symlink_metadata(folder.join(parent))?, Kind::Folder);
                    pack.entries.insert(parent.to_owned(), entry);
                }
            }
        }
        pack.sum();
        Ok(pack)
    }

    /// Only what is put into it.
    pub(crate) fn empty() -> Self {
        let mut pack =
            Self { folder: PathBuf::new(), entries: BTreeMap::new(), hash: String::new(), size: 0 };
        pack.sum();
        pack
    }

    /// Puts a file into it, in the place of one of that path.
    pub(crate) fn put(&mut self, path: &str, content: Vec<u8>) {
        self.entries.insert(path.to_owned(), Entry { mode: 0o644, time: 0, kind: Kind::Given(content) });
        self.sum();
    }

    /// Whether it has something of this path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn look(&mut self, under: &str, ignore: &Ignore, always: &[&str]) -> Result<()> {
        let folder = self.folder.join(under);
        let unreadable = || format!("cannot read {}", folder.display());
        for item in fs::read_dir(&folder).with_context(unreadable)? {
            let item = item.with_context(unreadable)?;
            let Ok(name) = item.file_name().into_string() else {
                bail!(hint(
                    format!("the name of {} is not UTF-8", item.path().display()),
                    "rename it, or name its folder in .dockerignore"
                ));
            };
            let path = if under.is_empty() { name } else { format!("{under}/{name}") };
            let full = item.path();
            let about =
                fs::symlink_metadata(&full).with_context(|| format!("cannot read {}", full.display()))?;
            let ignored = ignore.ignores(&path) && !always.contains(&path.as_str());
            let kind = about.file_type();
            if kind.is_dir() {
                if !ignored {
                    self.entries.insert(path.clone(), entry_of(&about, Kind::Folder));
                }
                let inside = format!("{path}/");
                if !ignored || ignore.takes_back() || always.iter().any(|path| path.starts_with(&inside)) {
                    self.look(&path, ignore, always)?;
                }
                continue;
            }
            if ignored {
                continue;
            }
            let kind = if kind.is_symlink() {
                Kind::Link(fs::read_link(&full).with_context(|| format!("cannot read {}", full.display()))?)
            } else if kind.is_file() {
                let (size, hash) = hash_file(&full, |_| Ok(()))?;
                Kind::File { size, hash }
            } else {
                // A socket or a pipe is of this machine's moment; an image cannot have it.
                continue;
            };
            self.entries.insert(path, entry_of(&about, kind));
        }
        Ok(())
    }

    fn sum(&mut self) {
        let mut hasher = Sha256::new();
        let mut size = 0;
        for (path, entry) in &self.entries {
            if path == ".git" || path.starts_with(".git/") {
                continue;
            }
            let mut add = |part: &[u8]| {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part);
            };
            add(path.as_bytes());
            add(&entry.mode.to_be_bytes());
            match &entry.kind {
                Kind::Folder => add(b"folder"),
                Kind::File { hash, size: bytes } => {
                    size += bytes;
                    add(b"file");
                    add(hash);
                }
                Kind::Link(target) => {
                    add(b"link");
                    add(target.as_os_str().as_encoded_bytes());
                }
                Kind::Given(content) => {
                    size += content.len() as u64;
                    add(b"file");
                    add(&Sha256::digest(content));
                }
            }
        }
        self.hash = hex::encode(hasher.finalize());
        self.size = size;
    }

    /// Writes the archive.
    pub(crate) fn write(&self, out: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(out);
        archive.mode(tar::HeaderMode::Complete);
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_mtime(entry.time);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match &entry.kind {
                Kind::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, path, io::empty())?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive.append_link(&mut header, path, target)?;
                }
                Kind::Given(content) => {
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, content.as_slice())?;
                }
                Kind::File { size, hash } => {
                    header.set_size(*size);
                    let full = self.folder.join(path);
                    let file =
                        fs::File::open(&full).with_context(|| format!("cannot read {}", full.display()))?;
                    let mut hashing = Hashing { from: file.take(*size), hasher: Sha256::new(), seen: 0 };
                    archive.append_data(&mut header, path, &mut hashing)?;
                    if hashing.seen != *size || hashing.hasher.finalize()[..] != hash[..] {
                        bail!(hint(
                            format!("{} has changed while it was sent", full.display()),
                            "try again when nothing writes to the context"
                        ));
                    }
                }
            }
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

fn entry_of(about: &fs::Metadata, kind: Kind) -> Entry {
    let mode = match kind {
        // The mode of a link means nothing.
        Kind::Link(_) => 0o777,
        Kind::Folder | Kind::File { .. } | Kind::Given(_) => about.permissions().mode() & 0o7777,
    };
    Entry { mode, time: u64::try_from(about.mtime()).unwrap_or_default(), kind }
}

fn hash_file(path: &Path, mut also: impl FnMut(&[u8]) -> Result<()>) -> Result<(u64, [u8; 32])> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut file = fs::File::open(path).with_context(unreadable)?;
    let (mut hasher, mut size, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let length = file.read(&mut piece).with_context(unreadable)?;
        if length == 0 {
            return Ok((size, hasher.finalize().into()));
        }
        hasher.update(&piece[..length]);
        also(&piece[..length])?;
        size += length as u64;
    }
}

/// Reads, and hashes what was read.
struct Hashing<R> {
    from: R,
    hasher: Sha256,
    seen: u64,
}
impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.seen += length as u64;
        if length == 0 && !buffer.is_empty() {
            return Ok(0);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("src/deep")).unwrap();
        fs::create_dir_all(at("secret")).unwrap();
        for (path, content) in [
            ("Dockerfile", "FROM scratch"),
            ("src/main", "main"),
            ("src/deep/a.log", "log"),
            ("secret/key", "key"),
            ("run.sh", "#!"),
        ] {
            fs::write(at(path), content).unwrap();
        }
        fs::set_permissions(at("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("/etc/passwd", at("outside")).unwrap();
        folder
    }

    fn pack(folder: &Path, ignore: &str) -> Pack {
        Pack::of(folder, &Ignore::parse(ignore), &[]).unwrap()
    }

    /// Paths of an archive with modes, and links with what they point to.
    fn listed(pack: &Pack) -> Vec<String> {
        let mut bytes = Vec::new();
        pack.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link =
                entry.link_name().unwrap().map(|link| format!(" -> {}", link.display())).unwrap_or_default();
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
            format!("{:o} {}{link}", entry.header().mode().unwrap(), entry.path().unwrap().display())
        });
        entries.collect()
    }

    #[test]
    fn a_folder_is_packed_with_modes_and_links_and_nothing_from_outside() {
        let folder = folder();
        for (path, mode) in
            [("src", 0o755), ("src/deep", 0o755), ("src/main", 0o644), ("src/deep/a.log", 0o600)]
        {
            fs::set_permissions(folder.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let pack = pack(folder.path(), "secret\nDockerfile");
        assert_eq!(
            listed(&pack),
            [
                "777 outside -> /etc/passwd",
                "755 run.sh",
                "755 src",
                "755 src/deep",
                "600 src/deep/a.log",
                "644 src/main"
            ]
        );
        assert_eq!(pack.size, 9);
    }

    #[test]
    fn what_is_needed_is_packed_also_if_it_is_ignored() {
        let folder = folder();
        let pack = Pack::of(folder.path(), &Ignore::parse("*"), &["src/main"]).unwrap();
        let names: Vec<_> = pack.entries.keys().map(String::as_str).collect();
        assert_eq!(names, ["src", "src/main"]);
        let back =
            super::Pack::of(folder.path(), &Ignore::parse("src\n!src/deep/*.log\nsecret"), &[]).unwrap();
        assert!(back.contains("src/deep/a.log") && back.contains("src") && !back.contains("src/main"));
    }

    #[test]
    fn the_hash_is_of_content_and_modes_and_not_of_times() {
        let folder = folder();
        let before = pack(folder.path(), "");
        let main = folder.path().join("src/main");
        fs::write(&main, "main").unwrap();
        fs::File::open(&main).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(pack(folder.path(), "").hash, before.hash);
        fs::create_dir(folder.path().join(".git")).unwrap();
        fs::write(folder.path().join(".git/HEAD"), "1").unwrap();
        let with_git = pack(folder.path(), "");
        assert!(with_git.hash == before.hash && with_git.contains(".git/HEAD"));
        fs::write(&main, "MAIN").unwrap();
        let content = pack(folder.path(), "").hash;
        assert_ne!(content, before.hash);
        fs::set_permissions(&main, fs::Permissions::from_mode(0o700)).unwrap();
        let mode = pack(folder.path(), "").hash;
        assert_ne!(mode, content);
        fs::rename(&main, folder.path().join("src/other")).unwrap();
        assert_ne!(pack(folder.path(), "").hash, mode);
    }

    #[test]
    fn a_file_that_changes_while_it_is_sent_is_an_error() {
        let folder = folder();
        let pack = pack(folder.path(), "");
        fs::write(folder.path().join("src/main"), "niam").unwrap();
        let error = pack.write(io::sink()).unwrap_err().to_string();
        assert!(error.contains("has changed while it was sent"), "{error}");
    }

    #[test]
    fn long_names_survive() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "a".repeat(120), "b".repeat(120));
        fs::create_dir_all(folder.path().join("a".repeat(120))).unwrap();
        fs::write(folder.path().join(&long), "x").unwrap();
        assert!(listed(&pack(folder.path(), "")).iter().any(|line| line.ends_with(&long)));
    }
}
