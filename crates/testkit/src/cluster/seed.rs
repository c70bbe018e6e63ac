//! Images that every engine of a cluster has from the start, unpacked once and shared by hard links.
//!
//! - A seed is what a stopped engine without containers left: its layers, and its index of images.
//! - It is built once per key under the testbed's storage and never changed; engines write elsewhere.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::process::{self, run};
use super::registry::storage;
use super::{Cluster, images};

/// Grows when the way seeds are built changes.
const FORM: u32 = 1;
const LOADING: Duration = Duration::from_secs(600);

/// A set of images, ready to be planted into new engines.
#[derive(Debug, Clone)]
pub struct Seed {
    dir: PathBuf,
}

impl Seed {
    /// The images that come with the test kit: `busybox:1`, `alpine:3` (busybox too, under the name
    /// that people use) and `wharf/testserver:1`.
    pub fn basic() -> Result<Self> {
        Self::prepare("basic", &[])
    }

    /// The images of [`basic`](Self::basic) and of the given archives, as `docker save` writes them.
    /// Built when this `key` with these archives (their paths, sizes and times) was not built before.
    pub fn prepare(key: &str, archives: &[PathBuf]) -> Result<Self> {
        let mut facts = vec![key.to_owned()];
        for archive in archives {
            let about = fs::metadata(archive)
                .with_context(|| format!("cannot read the image archive {}", archive.display()))?;
            facts.push(format!(
                "{} {} {}.{}",
                archive.display(),
                about.len(),
                about.mtime(),
                about.mtime_nsec()
            ));
        }
        Self::build(&facts, |_| Ok(archives.to_vec()))
    }

    /// As [`prepare`](Self::prepare), with archives that are made only if the seed is not there yet:
    /// `make` gets a temporary directory and gives the archives to load. All that decides about
    /// their content must be in `key`.
    pub fn prepare_with(key: &str, make: impl FnOnce(&Path) -> Result<Vec<PathBuf>>) -> Result<Self> {
        Self::build(&[key.to_owned()], make)
    }

    fn build(facts: &[String], make: impl FnOnce(&Path) -> Result<Vec<PathBuf>>) -> Result<Self> {
        let text = format!("{FORM}\n{}\n{}", images::fingerprint()?, facts.join("\n"));
        let storage = storage()?;
        let dir = storage.join(format!("seed-{:016x}", digest(text.as_bytes())));
        // Several tests may need the same seed at once: one builds it, the others wait.
        let lock = File::create(dir.with_extension("lock"))?;
        lock.lock().context("cannot take the lock on the image seed")?;
        if !dir.exists() {
            let work = dir.with_extension("work");
            if work.exists() {
                fs::remove_dir_all(&work)?;
            }
            fs::create_dir_all(&work)?;
            let mut archives = vec![images::archive(&work)?];
            archives.extend(make(&work)?);
            let seed = work.join("seed");
            harvest(&archives, &seed).context("cannot build the image seed")?;
            fs::rename(&seed, &dir)?;
            fs::remove_dir_all(&work)?;
        }
        Ok(Self { dir })
    }

    /// Where the seed lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives the images to an engine that never ran, by its data directory.
    pub(crate) fn plant(&self, engine: &Path) -> Result<()> {
        copy(&self.dir, engine)
    }
}

/// Loads the archives into an engine made for that, and keeps what it unpacked.
fn harvest(archives: &[PathBuf], seed: &Path) -> Result<()> {
    ensure!(!seed.exists(), "{} exists already", seed.display());
    let cluster = Cluster::builder().nodes(1).up()?;
    let node = cluster.node(1);
    for archive in archives {
        let mut command = node.docker_command();
        command.args(["load", "-i"]).arg(archive);
        process::complete(command, &format!("docker load {}", archive.display()), &[], LOADING)?.text()?;
    }
    node.engine_stop()?;
    fs::create_dir_all(seed)?;
    copy(&node.dir().join("disk/var/lib/docker"), seed)?;
    cluster.down()
}

/// Layers are never written to, so they are linked; the index is, so it is copied.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run("cp", [Path::new("-al"), &from.join("overlay2"), to])?;
    run("cp", [Path::new("-a"), &from.join("image"), to])?;
    Ok(())
}

/// FNV-1a: enough to tell keys apart, and the same in every build.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
