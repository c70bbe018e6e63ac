//! Which clusters exist on this machine, whose they are, and where their files lie.
//!
//! - A cluster's entry is written before anything of it is made and removed after everything is gone,
//!   so what exists can always be found and removed.
//! - Names and the third byte of addresses are unique on the machine: they are given out under a lock.
//! - A cluster whose owner has died is nobody's: [`gc`] removes it. One made by hand stays.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::process;

/// Where the entries are: one for the machine, whichever checkout a cluster was started from.
const REGISTRY: &str = "/run/wharf-testbed";
const DOWN: &str = include_str!("down.sh");

/// Who a cluster lives for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Owner {
    /// Started by hand: stays until it is taken down.
    Manual,
    /// Lives as long as this process. The start time tells it from a later one with its pid.
    Process { pid: u32, started: u64 },
}

impl Owner {
    pub(crate) fn this_process() -> Result<Self> {
        let pid = std::process::id();
        let started = start_time(pid).context("cannot read this process's start time from /proc")?;
        Ok(Self::Process { pid, started })
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Manual => false,
            Self::Process { pid, started } => start_time(*pid) != Some(*started),
        }
    }
}

/// When a process started, in clock ticks since the machine did.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the start time is the 20th field after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// What a cluster is: enough to work with it from another process, and to remove it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// Tells this cluster from every other that had or will have its name.
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) prefix: [u8; 2],
    pub(crate) subnet: u8,
    pub(crate) nodes: u8,
    pub(crate) owner: Owner,
    pub(crate) attach_host: bool,
    pub(crate) engine_args: Vec<String>,
    pub(crate) guard: Option<u32>,
}

impl Record {
    pub(crate) fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.prefix[0], self.prefix[1], self.subnet, host)
    }

    pub(crate) fn entry(&self) -> PathBuf {
        Path::new(REGISTRY).join(&self.name)
    }

    /// The name of one of the cluster's network namespaces.
    pub(crate) fn namespace(&self, member: &str) -> String {
        format!("wb.{}.{member}", self.name)
    }

    pub(crate) fn namespace_path(&self, member: &str) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(member))
    }

    /// The interface that an attached cluster has in the machine's own network.
    pub(crate) fn host_link(&self) -> String {
        format!("wharf-tb{}", self.subnet)
    }

    /// Writes the entry whole or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        let path = self.entry().join("cluster.json");
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes all there is of the cluster. Doing it twice, or beside a guard that does it, is harmless.
    /// What has got the name since is left alone.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut command = self.removal(false);
        command.stdin(Stdio::null());
        process::complete(command, &format!("removal of cluster {}", self.name), &[], process::PATIENCE)?
            .text()?;
        Ok(())
    }

    /// The command that removes the cluster: at once, or as a guard once its standard input ends.
    pub(crate) fn removal(&self, as_guard: bool) -> Command {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", DOWN, "wharf-testbed-guard"]);
        command.args([&self.name, &self.id]).arg(&self.dir).arg(self.entry()).arg(self.host_link());
        command.args(as_guard.then_some("guard")).current_dir("/");
        command
    }
}

/// A name that can be part of paths, namespaces and cgroups.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty() && name.len() <= 40 && !name.starts_with('-') && name.chars().all(allowed),
        "`{name}` cannot name a cluster: use up to 40 lower-case letters, digits and hyphens"
    );
    Ok(())
}

/// Holds the machine's lock for giving out names and addresses while it lives.
pub(crate) fn lock() -> Result<File> {
    fs::create_dir_all(REGISTRY)
        .with_context(|| format!("cannot make {REGISTRY}: the test cluster needs root"))?;
    let file = File::create(Path::new(REGISTRY).join(".lock"))?;
    file.lock().context("cannot take the lock on test clusters")?;
    Ok(file)
}

/// Every cluster of the machine, by name.
pub(crate) fn all() -> Result<Vec<Record>> {
    let entries = match fs::read_dir(REGISTRY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list test clusters"),
    };
    let mut records = Vec::new();
    for entry in entries {
        // An entry that vanishes meanwhile, or that has no record yet, is no cluster.
        let Ok(text) = fs::read(entry?.path().join("cluster.json")) else { continue };
        records.push(
            serde_json::from_slice::<Record>(&text).context("an entry of a test cluster cannot be read")?,
        );
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

pub(crate) fn find(name: &str) -> Result<Record> {
    check_name(name)?;
    let Some(record) = all()?.into_iter().find(|record| record.name == name) else {
        bail!("there is no test cluster `{name}`")
    };
    Ok(record)
}

/// Gives out a free third byte of addresses. The lock must be held.
pub(crate) fn free_subnet() -> Result<u8> {
    let taken: Vec<u8> = all()?.iter().map(|record| record.subnet).collect();
    (0..=u8::MAX)
        .find(|subnet| !taken.contains(subnet))
        .context("256 test clusters exist: no address range is free")
}

/// Removes the clusters whose owner has died, and gives their names.
pub fn gc() -> Result<Vec<String>> {
    let orphans: Vec<Record> = all()?.into_iter().filter(|record| record.owner.is_gone()).collect();
    for record in &orphans {
        record.remove()?;
    }
    Ok(orphans.into_iter().map(|record| record.name).collect())
}

/// The directory for seeds and the nodes' disks, all on one file system since seeds are hard-linked:
/// `WHARF_TESTBED_CACHE`, or else `wharf-testbed` in the build directory that this program is in.
pub(crate) fn storage() -> Result<PathBuf> {
    let chosen = std::env::var_os("WHARF_TESTBED_CACHE").map(PathBuf::from);
    let dir = match chosen {
        Some(dir) => dir,
        None => build_dir().unwrap_or_else(std::env::temp_dir).join("wharf-testbed"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.canonicalize()?)
}

fn build_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).map(Path::to_owned)
}
