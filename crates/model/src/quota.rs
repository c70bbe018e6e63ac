//! How much the apps of one environment may want together.
//!
//! It is about what is wanted, however much of it runs: a release that replaces tasks one after another has a task too many for a moment,
//! and that does not count.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Cpus, EnvironmentName};

/// What all tasks of an environment may have together; anything if absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// So many tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// Processor time reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Disk reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}
impl Quota {
    /// How much of a thing there may be, in the thing's own unit.
    pub fn limit(&self, thing: QuotaThing) -> Option<u64> {
        match thing {
            QuotaThing::Cpus => self.cpus.map(|cpus| cpus.0),
            QuotaThing::Memory => self.memory.map(|memory| memory.0),
            QuotaThing::Disk => self.disk.map(|disk| disk.0),
            QuotaThing::Tasks => self.tasks.map(u64::from),
        }
    }
}

/// The quota of an environment. Written through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaRecord {
    /// The environment.
    pub environment: EnvironmentName,
    /// What its tasks may have together.
    pub quota: Quota,
}

/// What a quota limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaThing {
    /// Tasks.
    Tasks,
    /// Reserved processor time, in thousandths of a core.
    Cpus,
    /// Reserved memory, in bytes.
    Memory,
    /// Reserved disk, in bytes.
    Disk,
}
impl QuotaThing {
    /// Everything that a quota may limit.
    pub const ALL: [Self; 4] = [Self::Tasks, Self::Cpus, Self::Memory, Self::Disk];
    /// Its word, which is also that of the command line's option.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
    /// So much of it, for people: `3 tasks`, `1.5 CPUs`, `2 GiB of memory`.
    pub fn amount(self, amount: u64) -> String {
        match self {
            Self::Tasks if amount == 1 => "1 task".to_owned(),
            Self::Tasks => format!("{amount} tasks"),
            Self::Cpus => format!("{} CPUs", Cpus(amount)),
            Self::Memory => format!("{} of memory", Bytes(amount)),
            Self::Disk => format!("{} of disk", Bytes(amount)),
        }
    }
    /// So much of it at least, as the command line takes it: `3`, `1.5`, `2048m`.
    pub fn argument(self, amount: u64) -> String {
        match self {
            Self::Tasks => amount.to_string(),
            Self::Cpus => Cpus(amount).to_string(),
            Self::Memory | Self::Disk => format!("{}m", amount.div_ceil(1 << 20)),
        }
    }
}
impl fmt::Display for QuotaThing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
