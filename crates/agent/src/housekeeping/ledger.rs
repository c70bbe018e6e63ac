//! What the node remembers of images that Wharf has used: which of them Wharf brought, and when each was last of use.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};
use wharf_model::{Image, Timestamp};

use crate::assignments::write_whole;

/// A use is noted again once the last note is so old, in milliseconds.
const NOTED: u64 = 60_000;

/// Images that Wharf has used, by the engine's identifier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ledger(BTreeMap<String, Known>);

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The names that tasks called it by, in [`full_name`]'s spelling.
    pub(crate) names: BTreeSet<String>,
    /// How it is known in the cluster: its digest, else the engine's identifier.
    pub(crate) pin: String,
    /// It was not there before Wharf brought it: pulled, brought from another node, or built.
    pub(crate) ours: bool,
    /// When it was last of use.
    pub(crate) used: Timestamp,
}

impl Ledger {
    /// What was kept; nothing if that cannot be read: then nothing counts as Wharf's.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Keeps it.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        write_whole(path, &serde_json::to_vec(self)?)
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Known> {
        self.0.get(id)
    }

    /// Notes that an image was of use; whether there is something new to keep.
    pub(crate) fn note(&mut self, id: &str, image: &Image, ours: bool, now: Timestamp) -> bool {
        let name = full_name(&image.reference);
        let pin = image.digest.clone().unwrap_or_else(|| id.to_owned());
        let Some(known) = self.0.get_mut(id) else {
            self.0.insert(id.to_owned(), Known { names: [name].into(), pin, ours, used: now });
            return true;
        };
        let mut news = known.names.insert(name);
        news |= ours && !known.ours;
        news |= image.digest.is_some() && known.pin != pin;
        known.ours |= ours;
        if image.digest.is_some() {
            known.pin = pin;
        }
        // Also if the clock was set back.
        news |= now.0.abs_diff(known.used.0) >= NOTED;
        if news {
            known.used = now;
        }
        news
    }

    /// Notes that images are of use that tasks run from; whether there is something new to keep.
    pub(crate) fn touch<'i>(&mut self, ids: impl IntoIterator<Item = &'i str>, now: Timestamp) -> bool {
        let mut news = false;
        for id in ids {
            if let Some(known) = self.0.get_mut(id)
                && now.0.abs_diff(known.used.0) >= NOTED
            {
                known.used = now;
                news = true;
            }
        }
        news
    }

    /// Notes that an image that is known by this digest or identifier was asked about.
    pub(crate) fn touch_pinned(&mut self, image: &Image, now: Timestamp) -> bool {
        let is_it = |(id, known): (&String, &Known)| {
            let pins = image.digest.iter().chain(&image.id);
            pins.into_iter().any(|pin| pin == id || *pin == known.pin).then(|| id.clone())
        };
        let found: Vec<_> = self.0.iter().filter_map(is_it).collect();
        self.touch(found.iter().map(String::as_str), now)
    }

    /// Forgets what the engine does not have any more; whether there was any.
    pub(crate) fn retain(&mut self, there: &BTreeSet<&str>) -> bool {
        let before = self.0.len();
        self.0.retain(|id, _| there.contains(id.as_str()));
        self.0.len() != before
    }

    /// How the latest used are known in the cluster, in order.
    pub(crate) fn latest(&self, most: usize) -> Vec<String> {
        let mut all: Vec<_> = self.0.values().map(|known| (known.used, &known.pin)).collect();
        all.sort();
        let mut pins: Vec<_> = all.into_iter().rev().map(|(_, pin)| pin.clone()).take(most).collect();
        pins.sort();
        pins.dedup();
        pins
    }
}

/// One spelling for each name: without what Docker adds by itself, and with a tag.
pub(crate) fn full_name(name: &str) -> String {
    let added = ["docker.io/library/", "docker.io/", "index.docker.io/library/", "index.docker.io/"];
    let name = added.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    // A tag beside a digest is what the engine shows.
    let name = name.split_once('@').map_or(name, |(before, _)| before);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_outlives_the_agent_and_what_is_ours_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.json");
        assert_eq!(Ledger::read(&path), Ledger::default());
        let mut ledger = Ledger::default();
        let web = Image { digest: Some("sha256:d".into()), ..Image::named("web") };
        assert!(ledger.note("sha256:1", &web, true, Timestamp(5)));
        assert!(!ledger.note("sha256:1", &web, false, Timestamp(6)), "nothing new");
        assert!(ledger.note("sha256:1", &web, false, Timestamp(6 + NOTED)));
        ledger.write(&path).unwrap();
        let read = Ledger::read(&path);
        assert_eq!(read, ledger);
        let known = read.get("sha256:1").unwrap();
        assert_eq!((known.ours, known.used, known.pin.as_str()), (true, Timestamp(6 + NOTED), "sha256:d"));
    }

    #[test]
    fn the_latest_used_are_told() {
        let mut ledger = Ledger::default();
        for n in 1..=3_u64 {
            ledger.note(&format!("sha256:{n}"), &Image::named(format!("a:{n}")), false, Timestamp(n));
        }
        assert_eq!(ledger.latest(2), ["sha256:2", "sha256:3"]);
        assert!(ledger.retain(&["sha256:3"].into()));
        assert_eq!(ledger.latest(2), ["sha256:3"]);
    }

    #[test]
    fn names_have_one_spelling() {
        for name in ["nginx", "docker.io/library/nginx:latest", "nginx:latest@sha256:ab"] {
            assert_eq!(full_name(name), "nginx:latest", "{name}");
        }
        assert_eq!(full_name("localhost:5000/a"), "localhost:5000/a:latest");
    }
}
