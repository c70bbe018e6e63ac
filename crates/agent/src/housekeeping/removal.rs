//! Decides what of a node can be removed, and says why, and why the rest stays. Pure.
//!
//! - An image stays that a container is made from, that is assigned, or that a server says is needed: by a release that is kept, most of all.
//!   Where no server has said what is needed, every image stays.
//! - What Wharf did not bring stays, and so does what somebody has given another name; unless people ask for everything.
//! - What was used a moment ago stays: a release that wants it may be on its way.
//! - The least recently used goes first.

use std::collections::{BTreeMap, BTreeSet};

use wharf_model::{Image, Timestamp};

use super::ledger::{Known, Ledger, full_name};
use crate::runtime::NodeImage;

/// What is known when it is decided.
#[derive(Debug)]
pub(crate) struct Inventory<'a> {
    /// The engine's images.
    pub(crate) images: &'a [NodeImage],
    /// What is known of those that Wharf has used.
    pub(crate) ledger: &'a Ledger,
    /// The images of the tasks that are assigned to the node.
    pub(crate) assigned: &'a [Image],
    /// The images that are needed, by identifier, and by whom; or why no server has said so.
    pub(crate) needed: Result<&'a BTreeMap<String, String>, &'a str>,
    /// The bytes that builds have left.
    pub(crate) build_cache: u64,
}

/// How much is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Also images that Wharf did not bring.
    pub(crate) everything: bool,
    /// What was used since then stays.
    pub(crate) used_before: Timestamp,
}

/// What goes, in this order, and what stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice {
    pub(crate) remove: Vec<Removal>,
    pub(crate) keep: Vec<Kept>,
}

/// Something that can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) what: Thing,
    /// What people call it.
    pub(crate) name: String,
    /// Bytes, with those that it shares with others.
    pub(crate) size: u64,
    pub(crate) why: String,
}

/// What can be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing {
    /// An image, by its identifier.
    Image(String),
    /// What builds have left.
    BuildCache,
}

/// Something that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// An image's identifier.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) because: Because,
}

/// Why an image stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Because {
    /// A container is made from it.
    Used,
    /// A task of this node wants it.
    Assigned,
    /// Somebody needs it: who.
    Needed(String),
    /// Nobody could say whether it is needed: why not.
    Unasked(String),
    /// Wharf did not bring it.
    NotOurs,
    /// It has a name that Wharf did not give it.
    Named(String),
    /// It was used a moment ago.
    Recent,
}
impl std::fmt::Display for Because {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Used => f.write_str("a container is made from it"),
            Self::Assigned => f.write_str("a task that is assigned here wants it"),
            Self::Needed(by) => write!(f, "{by} needs it"),
            Self::Unasked(why) => write!(f, "no server has said whether it is needed: {why}"),
            Self::NotOurs => f.write_str("Wharf did not bring it"),
            Self::Named(name) => write!(f, "somebody has named it {name}"),
            Self::Recent => f.write_str("it was used a moment ago"),
        }
    }
}

/// What goes and what stays.
pub(crate) fn what_to_remove(inventory: &Inventory<'_>, scope: Scope) -> Choice {
    let mut choice = Choice::default();
    if inventory.build_cache > 0 {
        choice.remove.push(Removal {
            what: Thing::BuildCache,
            name: "build cache".to_owned(),
            size: inventory.build_cache,
            why: "the next build makes it again".to_owned(),
        });
    }
    let mut images: Vec<_> = inventory.images.iter().collect();
    let used = |image: &NodeImage| inventory.ledger.get(&image.id).map(|known| known.used);
    images.sort_by_key(|image| (used(image), &image.id));
    for image in images {
        let (name, size) = (what_people_call(image), image.size);
        match why_keep(image, inventory, scope) {
            Some(because) => choice.keep.push(Kept { id: image.id.clone(), name, size, because }),
            None => choice.remove.push(Removal {
                what: Thing::Image(image.id.clone()),
                name,
                size,
                why: match used(image) {
                    Some(_) => "no kept release and no task needs it".to_owned(),
                    None => "no kept release and no task needs it, and Wharf did not bring it".to_owned(),
                },
            }),
        }
    }
    choice
}

fn why_keep(image: &NodeImage, inventory: &Inventory<'_>, scope: Scope) -> Option<Because> {
    if image.used {
        return Some(Because::Used);
    }
    let pins: BTreeSet<&String> = image.digests.iter().chain([&image.id]).collect();
    let names: BTreeSet<String> = image.names.iter().map(|name| full_name(name)).collect();
    let is_it = |wanted: &Image| match (&wanted.digest, &wanted.id) {
        (None, None) => names.contains(&full_name(&wanted.reference)),
        (digest, id) => digest.iter().chain(id).any(|pin| pins.contains(pin)),
    };
    if inventory.assigned.iter().any(is_it) {
        return Some(Because::Assigned);
    }
    match inventory.needed {
        Err(why) => return Some(Because::Unasked(why.to_owned())),
        Ok(needed) => {
            if let Some(by) = needed.get(&image.id) {
                return Some(Because::Needed(by.clone()));
            }
        }
    }
    let known = inventory.ledger.get(&image.id);
    if !scope.everything {
        let Some(known) = known.filter(|known| known.ours) else { return Some(Because::NotOurs) };
        if let Some(foreign) = names.into_iter().find(|name| !known.names.contains(name)) {
            return Some(Because::Named(foreign));
        }
    }
    let recent = |known: &Known| known.used >= scope.used_before;
    known.is_some_and(recent).then_some(Because::Recent)
}

fn what_people_call(image: &NodeImage) -> String {
    let short = || image.id.trim_start_matches("sha256:").chars().take(12).collect();
    image.names.first().cloned().unwrap_or_else(short)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(n: u8) -> NodeImage {
        NodeImage {
            id: format!("sha256:{n}"),
            names: vec![format!("app:{n}")],
            digests: vec![format!("sha256:d{n}")],
            size: 100,
            used: false,
        }
    }
    fn ledger(images: &[(u8, bool, u64)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (n, ours, used) in images {
            let named = Image { id: Some(format!("sha256:{n}")), ..Image::named(format!("app:{n}")) };
            ledger.note(&format!("sha256:{n}"), &named, *ours, Timestamp(*used));
        }
        ledger
    }
    const OWN: Scope = Scope { everything: false, used_before: Timestamp(1_000) };

    fn choose(
        images: &[NodeImage],
        ledger: &Ledger,
        needed: Result<&BTreeMap<String, String>, &str>,
        scope: Scope,
    ) -> (Vec<String>, Vec<(String, Because)>) {
        let inventory = Inventory { images, ledger, assigned: &[], needed, build_cache: 0 };
        let choice = what_to_remove(&inventory, scope);
        (
            choice.remove.into_iter().map(|removal| removal.name).collect(),
            choice.keep.into_iter().map(|kept| (kept.name, kept.because)).collect(),
        )
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_rest_says_why_it_stays() {
        let mut images: Vec<_> = (1..=8).map(image).collect();
        images[2].used = true;
        images[5].names.push("mine:1".into());
        let ledger = ledger(&[
            (1, true, 300),
            (2, true, 200),
            (3, true, 1),
            (4, true, 1),
            (5, false, 1),
            (6, true, 1),
            (7, true, 2_000),
        ]);
        let needed = [("sha256:4".to_owned(), "release 1 of prod/shop".to_owned())].into();
        let (removed, kept) = choose(&images, &ledger, Ok(&needed), OWN);
        assert_eq!(removed, ["app:2", "app:1"]);
        let kept: Vec<_> = kept.iter().map(|(name, because)| format!("{name}: {because}")).collect();
        assert_eq!(
            kept,
            [
                "app:8: Wharf did not bring it",
                "app:3: a container is made from it",
                "app:4: release 1 of prod/shop needs it",
                "app:5: Wharf did not bring it",
                "app:6: somebody has named it mine:1",
                "app:7: it was used a moment ago",
            ]
        );
        let (removed, _) = choose(&images, &ledger, Ok(&needed), Scope { everything: true, ..OWN });
        assert_eq!(removed, ["app:8", "app:5", "app:6", "app:2", "app:1"]);
    }

    #[test]
    fn without_a_server_nothing_is_removed() {
        let (removed, kept) = choose(&[image(1)], &ledger(&[(1, true, 1)]), Err("it is away"), OWN);
        assert_eq!(removed, Vec::<String>::new());
        assert_eq!(kept[0].1.to_string(), "no server has said whether it is needed: it is away");
    }

    #[test]
    fn what_is_assigned_stays_however_it_is_known() {
        let ledger = ledger(&[(1, true, 1)]);
        let none = BTreeMap::new();
        let by_digest = Image { digest: Some("sha256:d1".into()), ..Image::named("other") };
        let by_id = Image { id: Some("sha256:1".into()), ..Image::named("other") };
        for wanted in [by_digest, by_id, Image::named("docker.io/library/app:1")] {
            let assigned = [wanted];
            let inventory = Inventory {
                images: &[image(1)],
                ledger: &ledger,
                assigned: &assigned,
                needed: Ok(&none),
                build_cache: 7,
            };
            let choice = what_to_remove(&inventory, OWN);
            assert_eq!(choice.keep[0].because, Because::Assigned);
            assert_eq!(choice.remove.len(), 1, "only what builds have left goes: {choice:?}");
        }
    }

    proptest! {
        /// Whatever is there and whatever is asked for: nothing goes that is used, assigned or needed, and what is neither removed nor kept
        /// does not exist.
        #[test]
        fn nothing_goes_that_somebody_needs(
            there in proptest::collection::btree_map(0_u8..12, (any::<bool>(), any::<bool>()), 0..12),
            known in proptest::collection::vec((0_u8..12, any::<bool>(), 0_u64..2_000), 0..16),
            needed in proptest::collection::btree_set(0_u8..12, 0..12),
            assigned in proptest::collection::btree_set((0_u8..12, 0_u8..3), 0..4),
            answered in any::<bool>(),
            everything in any::<bool>(),
        ) {
            let images: Vec<_> = there
                .iter()
                .map(|(n, (used, nameless))| {
                    let whole = image(*n);
                    let names = if *nameless { Vec::new() } else { whole.names.clone() };
                    NodeImage { used: *used, names, ..whole }
                })
                .collect();
            let ledger = ledger(&known);
            let by: BTreeMap<_, _> = needed.iter().map(|n| (format!("sha256:{n}"), "somebody".to_owned())).collect();
            let pinned: Vec<_> = assigned
                .iter()
                .map(|(n, how)| match how {
                    0 => Image { digest: Some(format!("sha256:d{n}")), ..Image::named("x") },
                    1 => Image { id: Some(format!("sha256:{n}")), ..Image::named("x") },
                    _ => Image::named(format!("app:{n}")),
                })
                .collect();
            let inventory = Inventory {
                images: &images,
                ledger: &ledger,
                assigned: &pinned,
                needed: if answered { Ok(&by) } else { Err("away") },
                build_cache: 0,
            };
            let choice = what_to_remove(&inventory, Scope { everything, ..OWN });
            prop_assert_eq!(choice.remove.len() + choice.keep.len(), images.len());
            for removal in &choice.remove {
                let Thing::Image(id) = &removal.what else { continue };
                let found = images.iter().find(|image| image.id == *id).unwrap();
                prop_assert!(answered && !found.used && !by.contains_key(id));
                for (n, how) in &assigned {
                    let it = format!("sha256:{n}") == *id && (*how < 2 || !found.names.is_empty());
                    prop_assert!(!it, "{id} is assigned");
                }
                let known = ledger.get(id);
                prop_assert!(everything || known.is_some_and(|known| known.ours));
                prop_assert!(known.is_none_or(|known| known.used < OWN.used_before));
            }
            let used: Vec<_> = choice.remove.iter().filter_map(|removal| match &removal.what {
                Thing::Image(id) => Some(ledger.get(id).map(|known| known.used)),
                Thing::BuildCache => None,
            }).collect();
            prop_assert!(used.is_sorted(), "the least recently used goes first");
        }
    }
}
