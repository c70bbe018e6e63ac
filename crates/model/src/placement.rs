//! Who may run where: what nodes keep for themselves, and what services ask of nodes.
//!
//! All of it is about where tasks are and not about how containers are made, so a change of it replaces no container. Absent values
//! are their defaults, and a record that says nothing takes no space.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How work comes to a node, beside its availability and labels. Written by people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeScheduling {
    /// The pool it belongs to; only services that ask for this pool come to it. Of no pool if absent: for services that ask for none.
    #[serde(skip_serializing_if = "is_default")]
    pub pool: Option<String>,
    /// What keeps off tasks that do not tolerate it.
    #[serde(skip_serializing_if = "is_default")]
    pub taints: Vec<Taint>,
    /// How much of it may be promised.
    #[serde(skip_serializing_if = "is_default")]
    pub overcommit: Overcommit,
    /// When it is worked on.
    #[serde(skip_serializing_if = "is_default")]
    pub windows: Vec<MaintenanceWindow>,
}
impl NodeScheduling {
    /// The window that it is in, if any: of several the one that lasts longest, and before others one in which tasks move away.
    pub fn window(&self, now: Timestamp) -> Option<&MaintenanceWindow> {
        let open = self.windows.iter().filter(|window| window.from <= now && now < window.until);
        open.max_by_key(|window| (window.drain, window.until))
    }
    /// The next moment after `now` at which a window begins or ends.
    pub fn next_edge(&self, now: Timestamp) -> Option<Timestamp> {
        let edges = self.windows.iter().flat_map(|window| [window.from, window.until]);
        edges.filter(|edge| *edge > now).min()
    }
}

/// Something about a node that keeps off tasks which do not tolerate it. Written `key=value:NoSchedule`, `key:NoExecute`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Taint {
    /// What it is about.
    pub key: String,
    /// More about it; empty if there is no more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What becomes of tasks that do not tolerate it.
    pub effect: TaintEffect,
}

/// What becomes of tasks that do not tolerate a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaintEffect {
    /// No new ones come; those that are there stay.
    NoSchedule,
    /// No new ones come, and those that are there move elsewhere.
    NoExecute,
}
impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoSchedule => "NoSchedule",
            Self::NoExecute => "NoExecute",
        })
    }
}
impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}:{}", self.key, self.effect),
            value => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}

/// Text that is no taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a taint: write `key:NoSchedule` or `key=value:NoExecute`")]
pub struct InvalidTaint(
    /// The text.
    pub String,
);
impl FromStr for Taint {
    type Err = InvalidTaint;
    fn from_str(text: &str) -> Result<Self, InvalidTaint> {
        let invalid = || InvalidTaint(text.to_owned());
        let (what, effect) = text.rsplit_once(':').ok_or_else(invalid)?;
        let effect = match effect.to_ascii_lowercase().as_str() {
            "noschedule" => TaintEffect::NoSchedule,
            "noexecute" => TaintEffect::NoExecute,
            _ => return Err(invalid()),
        };
        let (key, value) = what.split_once('=').unwrap_or((what, ""));
        if key.is_empty() || key.contains(char::is_whitespace) || value.contains(char::is_whitespace) {
            return Err(invalid());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

/// A taint that the tasks of a service bear. Written `key` for any value, or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// What the taint is about.
    pub key: String,
    /// Its value; any if absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub value: Option<String>,
}
impl Toleration {
    /// Whether it bears this taint.
    pub fn bears(&self, taint: &Taint) -> bool {
        self.key == taint.key && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}
impl FromStr for Toleration {
    type Err = InvalidTaint;
    fn from_str(text: &str) -> Result<Self, InvalidTaint> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() || text.contains(char::is_whitespace) || text.contains(':') {
            return Err(InvalidTaint(text.to_owned()));
        }
        Ok(Self { key: key.to_owned(), value })
    }
}
impl fmt::Display for Toleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// How much of a node may be promised to tasks, in per cent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overcommit {
    /// Reserved processor time; 100 unless people say otherwise.
    pub cpus: u32,
    /// Reserved memory; 100 unless people say otherwise.
    pub memory: u32,
    /// What the limits of all tasks may add up to in processor time, a task without a limit counting with what it reserves; they may add up
    /// to anything if absent.
    #[serde(skip_serializing_if = "is_default")]
    pub limit_cpus: Option<u32>,
    /// The same of memory.
    #[serde(skip_serializing_if = "is_default")]
    pub limit_memory: Option<u32>,
}
impl Default for Overcommit {
    fn default() -> Self {
        Self { cpus: 100, memory: 100, limit_cpus: None, limit_memory: None }
    }
}
impl Overcommit {
    /// How much of something may be promised by a factor in per cent.
    pub const fn of(all: u64, percent: u32) -> u64 {
        // Whole hundreds first: a node's memory in bytes times a factor still fits, and nothing is lost to rounding below one per cent.
        (all / 100).saturating_mul(percent as u64) + (all % 100) * percent as u64 / 100
    }
}

/// A time in which somebody works on a node: it takes no new tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceWindow {
    /// When it begins.
    pub from: Timestamp,
    /// When it is over.
    pub until: Timestamp,
    /// Tasks that are there move elsewhere while it lasts, as if the node were drained.
    #[serde(default, skip_serializing_if = "is_default")]
    pub drain: bool,
    /// What for, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Which of the nodes that can take a task is best, where nothing more particular decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementStrategy {
    /// The one with fewest tasks of the service, then the emptiest: what fails takes little with it.
    #[default]
    Spread,
    /// The fullest: whole nodes stay free for what is large, or need not be there.
    Binpack,
    /// Any, by chance.
    Random,
}
impl fmt::Display for PlacementStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spread => "spread",
            Self::Binpack => "binpack",
            Self::Random => "random",
        })
    }
}

/// What holds for placement where files say nothing else. Part of the cluster's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PlacementDefaults {
    /// How services are placed that do not say it themselves.
    #[serde(skip_serializing_if = "is_default")]
    pub strategy: PlacementStrategy,
}

/// Slots that keep their node: for services whose tasks are not alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StableSlots {
    /// A slot's next task goes to the node of its last one as long as that can take it.
    pub stay: bool,
    /// From every node's view so many tasks of the service are on other nodes, as far as there are tasks: the loss of one node leaves these.
    #[serde(skip_serializing_if = "is_default")]
    pub elsewhere: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_written_as_people_know_them() {
        for text in ["gpu:NoSchedule", "team=blue:NoExecute"] {
            assert_eq!(text.parse::<Taint>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "gpu:Never", ":NoSchedule", "a b:NoSchedule"] {
            assert!(text.parse::<Taint>().is_err(), "{text}");
        }
        let taint: Taint = "team=blue:noexecute".parse().unwrap();
        let bears = |text: &str| text.parse::<Toleration>().unwrap().bears(&taint);
        assert!(bears("team") && bears("team=blue") && !bears("team=red") && !bears("gpu"));
    }

    #[test]
    fn a_node_promises_what_its_factor_says() {
        assert_eq!(Overcommit::of(1024, 100), 1024);
        assert_eq!(Overcommit::of(1024, 150), 1536);
        assert_eq!(Overcommit::of(7, 50), 3);
        assert_eq!(Overcommit::of(u64::MAX, 100), u64::MAX);
    }

    #[test]
    fn of_windows_that_overlap_the_one_that_moves_tasks_counts() {
        let window = |from, until, drain| MaintenanceWindow {
            from: Timestamp(from),
            until: Timestamp(until),
            drain,
            note: String::new(),
        };
        let node = NodeScheduling {
            windows: vec![window(10, 30, false), window(20, 25, true)],
            ..NodeScheduling::default()
        };
        let drains = |now| node.window(Timestamp(now)).map(|window| window.drain);
        assert_eq!(
            [drains(9), drains(10), drains(20), drains(25), drains(30)],
            [None, Some(false), Some(true), Some(false), None]
        );
        assert_eq!(node.next_edge(Timestamp(20)), Some(Timestamp(25)));
        assert_eq!(node.next_edge(Timestamp(30)), None);
    }
}
