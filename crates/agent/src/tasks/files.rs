//! Puts a task's configs and secrets where its container finds them.
//!
//! - A secret is only ever written into memory: its folder is a tmpfs, or the task is refused.
//! - A file that is there as it should be is not touched: a running container may have it mounted.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use base64::Engine;
use wharf_model::{FileAssignment, TaskId};

use crate::runtime::{FileBind, RESOLV_CONF, RuntimeError};

const DEFAULT_MODE: u32 = 0o444;

/// The folders under which tasks have their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFolders {
    /// Configs, on disk.
    pub configs: PathBuf,
    /// Secrets, in memory.
    pub secrets: PathBuf,
    /// Whether the secrets' folder must be in memory; only tests may say no.
    pub secrets_in_memory: bool,
}

/// Why a task's files are not there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The node restarted since, and only a server knows the content.
    #[error("waiting for a server to send the secret `{0}` again")]
    Awaited(String),
    /// It cannot be written.
    #[error("cannot write the {what} `{name}`")]
    Write {
        /// Config or secret.
        what: &'static str,
        /// Its key.
        name: String,
        /// Why.
        source: io::Error,
    },
}
impl From<FileError> for RuntimeError {
    fn from(error: FileError) -> Self {
        Self::temporary(wharf_process::errors::chain(&error))
    }
}

impl FileFolders {
    /// Writes the task's files and says what to mount. With `forgotten`, a secret without content is one that has to
    /// be there already.
    ///
    /// # Errors
    /// If a file cannot be written, or its content is not known.
    pub fn write(
        &self,
        task: TaskId,
        files: &[FileAssignment],
        forgotten: bool,
    ) -> Result<Vec<FileBind>, FileError> {
        let one = |(index, file): (usize, &FileAssignment)| {
            let what = if file.secret { "secret" } else { "config" };
            let folder = self.folder(file.secret).join(task.to_string());
            let path = folder.join(index.to_string());
            let name = file.mount.source.clone();
            if file.secret && forgotten && file.content.is_empty() {
                if !path.exists() {
                    return Err(FileError::Awaited(name));
                }
            } else {
                let ready = if file.secret { self.ensure_memory() } else { Ok(()) };
                ready.and_then(|()| write_file(&folder, &path, file)).map_err(|source| FileError::Write {
                    what,
                    name,
                    source,
                })?;
            }
            Ok(FileBind { source: path.to_string_lossy().into_owned(), target: file.mount.target.clone() })
        };
        files.iter().enumerate().map(one).collect()
    }

    /// Writes what the task's container is to have as its [`RESOLV_CONF`], and says where it is. Everybody in the container may read it, and root
    /// change it, as with the engine's.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_resolver(&self, task: TaskId, text: &str) -> Result<String, FileError> {
        let folder = self.folder(false).join(task.to_string());
        let path = folder.join("resolv.conf");
        let readable = |new: &Path| fs::set_permissions(new, Permissions::from_mode(0o644));
        write(&folder, &path, text.as_bytes(), readable).map_err(|source| FileError::Write {
            what: "file",
            name: RESOLV_CONF.to_owned(),
            source,
        })?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Deletes the task's files.
    pub fn remove(&self, task: TaskId) {
        for secret in [false, true] {
            // What was never written is not there.
            let _ = fs::remove_dir_all(self.folder(secret).join(task.to_string()));
        }
    }

    fn folder(&self, secret: bool) -> &Path {
        if secret { &self.secrets } else { &self.configs }
    }

    fn ensure_memory(&self) -> io::Result<()> {
        use nix::{
            mount::{MsFlags, mount},
            sys::statfs::{TMPFS_MAGIC, statfs},
        };
        make_folder(&self.secrets)?;
        if !self.secrets_in_memory || statfs(&self.secrets)?.filesystem_type() == TMPFS_MAGIC {
            return Ok(());
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("wharf-secrets"), &self.secrets, Some("tmpfs"), flags, Some("mode=0700"))?;
        Ok(())
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_file(folder: &Path, path: &Path, file: &FileAssignment) -> io::Result<()> {
    let content = base64::engine::general_purpose::STANDARD
        .decode(&file.content)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    write(folder, path, &content, |new| {
        if file.mount.uid.is_some() || file.mount.gid.is_some() {
            chown(new, file.mount.uid.or(Some(0)), file.mount.gid.or(Some(0)))?;
        }
        fs::set_permissions(new, Permissions::from_mode(file.mount.mode.unwrap_or(DEFAULT_MODE)))
    })
}

/// In one step, once `finish` has done with it what there is to do. What is there already is not touched.
fn write(
    folder: &Path,
    path: &Path,
    content: &[u8],
    finish: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    make_folder(folder)?;
    let beside = path.with_extension("new");
    // A leftover of an earlier attempt may not be writable by its own mode.
    let _ = fs::remove_file(&beside);
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    new.write_all(content)?;
    finish(&beside)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use wharf_model::FileMount;

    use super::*;

    fn file(secret: bool, content: &str, mode: Option<u32>) -> FileAssignment {
        let content = base64::engine::general_purpose::STANDARD.encode(content);
        let mount = FileMount { source: "key".into(), target: "/run/key".into(), uid: None, gid: None, mode };
        FileAssignment { mount, secret, content }
    }

    #[test]
    fn files_are_written_with_their_mode_kept_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folders = FileFolders {
            configs: folder.path().join("configs"),
            secrets: folder.path().join("secrets"),
            secrets_in_memory: false,
        };
        let task = TaskId::from_parts(1, [1; 10]);
        let files = [file(true, "hunter2", Some(0o400)), file(false, "public", None)];
        let binds = folders.write(task, &files, false).unwrap();
        let meta = |bind: &FileBind| fs::metadata(&bind.source).unwrap();
        assert_eq!(meta(&binds[0]).mode() & 0o777, 0o400);
        assert_eq!(meta(&binds[1]).mode() & 0o777, 0o444);
        assert_eq!(fs::read_to_string(&binds[0].source).unwrap(), "hunter2");

        let before = meta(&binds[0]).ino();
        let stripped = [file(true, "", Some(0o400)), files[1].clone()];
        assert_eq!(
            folders.write(task, &stripped, true).unwrap(),
            binds,
            "a restarted agent finds it in memory"
        );
        folders.write(task, &files, false).unwrap();
        assert_eq!(meta(&binds[0]).ino(), before, "what is right is not touched");

        let names = folders.write_resolver(task, "nameserver ::1\n").unwrap();
        let names = |text: &str| {
            assert_eq!(folders.write_resolver(task, text).unwrap(), names);
            let meta = fs::metadata(&names).unwrap();
            assert_eq!((fs::read_to_string(&names).unwrap(), meta.mode() & 0o777), (text.to_owned(), 0o644));
            meta.ino()
        };
        assert_eq!(names("nameserver ::1\n"), names("nameserver ::1\n"));
        names("nameserver ::2\n");

        folders.remove(task);
        assert!(!folders.configs.join(task.to_string()).exists());
        let error = folders.write(task, &stripped, true).unwrap_err().to_string();
        assert_eq!(error, "waiting for a server to send the secret `key` again");
    }
}
