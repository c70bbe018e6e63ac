//! The cgroups of a cluster: one per node, so that a node has a memory size and can be found whole.
//!
//! - Every process of a cluster is in a cgroup below `wharf-testbed.<name>`, in each hierarchy we use.
//! - Version 1 (a hierarchy per controller) and version 2 (one for all) are both understood.
//! - In version 2 a cgroup with controllers for its children holds no processes of its own: a node's
//!   processes are in the leaf `system`, its containers beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// The hierarchies of version 1 in which a node is a cgroup; `cpu` may be mounted with `cpuacct`.
const HIERARCHIES: [&str; 3] = ["cpu", "memory", "pids"];
const LEAF: &str = "system";

/// The cgroup of one member of a cluster (a node, the switch or the client).
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// From the root of each hierarchy.
    path: String,
}

fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

impl Cgroup {
    pub(crate) fn new(cluster: &str, member: &str) -> Self {
        Self { path: format!("wharf-testbed.{cluster}/{member}") }
    }

    /// What `dockerd --cgroup-parent` wants.
    pub(crate) fn parent_of_containers(&self) -> String {
        format!("/{}", self.path)
    }

    /// Makes the cgroup in every hierarchy we use.
    pub(crate) fn ensure(&self) -> Result<()> {
        for dir in self.joinable() {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))?;
        }
        if is_unified() {
            self.delegate()?;
        }
        Ok(())
    }

    /// Hands the controllers down from the root to the members of this cgroup (version 2).
    fn delegate(&self) -> Result<()> {
        let mut dir = PathBuf::from(ROOT);
        let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
        let names = Path::new(&self.path).iter();
        for level in names.map(Some).chain([None]) {
            for controller in available.split_whitespace() {
                // One that cannot be handed down (in use elsewhere) is one that nodes do without;
                // a missing memory controller is noticed when a limit is set.
                drop(fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")));
            }
            if let Some(name) = level {
                dir.push(name);
            }
        }
        Ok(())
    }

    /// The directories whose `cgroup.procs` a process of this member writes itself into.
    pub(crate) fn joinable(&self) -> Vec<PathBuf> {
        if is_unified() {
            return vec![Path::new(ROOT).join(&self.path).join(LEAF)];
        }
        let mounted = HIERARCHIES.iter().map(|name| Path::new(ROOT).join(name)).filter(|dir| dir.is_dir());
        mounted.map(|dir| dir.join(&self.path)).collect()
    }

    /// Limits the memory of all that runs here, or lifts the limit.
    pub(crate) fn limit_memory(&self, bytes: Option<u64>) -> Result<()> {
        let (file, lifted) = if is_unified() {
            (Path::new(ROOT).join(&self.path).join("memory.max"), "max")
        } else {
            (Path::new(ROOT).join("memory").join(&self.path).join("memory.limit_in_bytes"), "-1")
        };
        let value = bytes.map_or_else(|| lifted.to_owned(), |bytes| bytes.to_string());
        fs::write(&file, value)
            .with_context(|| format!("cannot set {} (is there a memory controller?)", file.display()))
    }

    /// Whether a process is in this cgroup or below it.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let within = format!(":/{}", self.path);
        text.lines().any(|line| {
            line.find(&within)
                .is_some_and(|at| matches!(line.as_bytes().get(at + within.len()), None | Some(b'/')))
        })
    }

    /// Every process in this cgroup and below it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        let roots = if is_unified() { vec![Path::new(ROOT).join(&self.path)] } else { self.joinable() };
        roots.iter().for_each(|root| collect(root, &mut pids));
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The containers that have processes in a cgroup below this one: their identifiers, and their first processes.
    pub(crate) fn containers(&self) -> Vec<(String, u32)> {
        let roots = if is_unified() { vec![Path::new(ROOT).join(&self.path)] } else { self.joinable() };
        let Some(root) = roots.last() else { return Vec::new() };
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let first = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.len() == 64)?;
            let pids = fs::read_to_string(entry.path().join("cgroup.procs")).ok()?;
            Some((name, pids.lines().next()?.parse().ok()?))
        };
        entries.filter_map(first).collect()
    }

    /// Removes the cgroups that containers left below this one; they are empty, or the kernel refuses.
    pub(crate) fn sweep(&self) {
        for _ in 0..50 {
            let roots = [PathBuf::from(ROOT)]
                .into_iter()
                .chain(fs::read_dir(ROOT).into_iter().flatten().flatten().map(|e| e.path()));
            let left: Vec<PathBuf> = roots.flat_map(|root| below(&root.join(&self.path))).collect();
            let refused =
                left.iter().filter(|dir| !dir.ends_with(LEAF) && fs::remove_dir(dir).is_err()).count();
            if refused == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The cgroups below one, innermost first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

fn collect(dir: &Path, pids: &mut Vec<u32>) {
    for dir in below(dir).iter().map(PathBuf::as_path).chain([dir]) {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
}
