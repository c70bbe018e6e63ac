//! Finds the best node without looking at all of them.
//!
//! Nodes that are alike in everything standing (pool, taints, platform, the labels that files ask for) form a group, and each group is a
//! tournament: every inner place knows the most that is free below it and who wins below it. A search goes down only where there is
//! room and something better may be, so it grows with the logarithm of the nodes and with those that it has to skip.
//!
//! - The index always agrees with the nodes and their loads: whoever changes one of these says so here at once.
//! - It decides nothing. A search proposes nodes in the order in which they may be best; the filters and ranks of [`super`] have the last
//!   word, and the property tests compare with a scan of all nodes.
//! - Labels of which nodes have very many values make no groups; who asks for them is answered by the scan.

use std::collections::{BTreeMap, BTreeSet};

use wharf_model::{Availability, NodeId, Taint};

use super::rules::{Amounts, attribute, wharf_arch};
use crate::{Load, Node};

/// More groups than this, and a search would spend its time on choosing among them.
const MOST_GROUPS: usize = 1024;

/// Nodes by what they are and have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    entries: BTreeMap<NodeId, Entry>,
    groups: Vec<Group>,
    by_kind: BTreeMap<Kind, usize>,
    /// Labels by which nodes are grouped: those that some file asks for.
    labels: Vec<String>,
    /// Labels that would make too many groups.
    various: BTreeSet<String>,
}

/// Where a node is.
#[derive(Debug, Clone, Copy)]
struct Entry {
    group: usize,
    leaf: usize,
}

/// What the nodes of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    pool: Option<String>,
    taints: Vec<Taint>,
    platform: (String, String),
    values: Vec<Option<String>>,
}

/// Nodes that are alike.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    kind: Kind,
    /// The emptiest wins.
    pub(crate) emptiest: Tree,
    /// The fullest wins.
    pub(crate) fullest: Tree,
}

impl Index {
    /// A node is new or has changed, or its load has.
    pub(crate) fn put(&mut self, node: &Node, load: Option<&Load>) {
        let id = node.record.id;
        let kind = self.kind(node);
        let entry = match self.entries.get(&id).copied() {
            Some(entry) if self.groups[entry.group].kind == kind => entry,
            known => {
                if known.is_some() {
                    self.remove(id);
                }
                self.enter(id, kind)
            }
        };
        self.set(entry, node, load);
    }
    /// The load of a node has changed, and nothing else of it.
    pub(crate) fn set_load(&mut self, node: &Node, load: Option<&Load>) {
        if let Some(entry) = self.entries.get(&node.record.id).copied() {
            self.set(entry, node, load);
        }
    }
    /// A node is gone.
    pub(crate) fn remove(&mut self, id: NodeId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let group = &mut self.groups[entry.group];
        let moved = group.emptiest.remove(entry.leaf);
        group.fullest.remove(entry.leaf);
        if let Some(entry_of_moved) = moved.and_then(|moved| self.entries.get_mut(&moved)) {
            entry_of_moved.leaf = entry.leaf;
        }
    }
    /// Files ask for these attributes of nodes from now on.
    pub(crate) fn group_by<'n>(
        &mut self,
        wanted: impl IntoIterator<Item = &'n str>,
        nodes: &BTreeMap<NodeId, Node>,
        loads: &BTreeMap<NodeId, Load>,
    ) {
        let new = |label: &&str| {
            is_label(label)
                && !self.various.contains(*label)
                && !self.labels.iter().any(|known| known == label)
        };
        let new: BTreeSet<String> = wanted.into_iter().filter(new).map(str::to_owned).collect();
        for label in new {
            self.labels.push(label.clone());
            self.rebuild(nodes, loads);
            if self.groups.len() > MOST_GROUPS {
                self.labels.pop();
                self.various.insert(label);
                self.rebuild(nodes, loads);
            }
        }
    }
    fn rebuild(&mut self, nodes: &BTreeMap<NodeId, Node>, loads: &BTreeMap<NodeId, Load>) {
        (self.entries, self.groups, self.by_kind) = Default::default();
        for node in nodes.values() {
            self.put(node, loads.get(&node.record.id));
        }
    }

    /// Whether all nodes of a group have the same of this.
    pub(crate) fn is_common(&self, attribute: &str) -> bool {
        matches!(attribute, "node.platform.os" | "node.platform.arch")
            || self.labels.iter().any(|label| label == attribute)
    }
    /// The groups that have nodes, each with one of them that stands for all.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (usize, &Group, NodeId)> {
        let groups = self.groups.iter().enumerate();
        groups.filter_map(|(number, group)| Some((number, group, group.emptiest.first()?)))
    }
    /// Every group by its number, those without nodes among them.
    pub(crate) fn all_groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }
    /// The group of a node, and its place in that.
    pub(crate) fn place_of(&self, id: NodeId) -> Option<(usize, usize)> {
        self.entries.get(&id).map(|entry| (entry.group, entry.leaf))
    }

    fn kind(&self, node: &Node) -> Kind {
        let platform = node.facts().map(|facts| &facts.platform);
        let scheduling = &node.record.scheduling;
        Kind {
            pool: scheduling.pool.clone(),
            taints: scheduling.taints.clone(),
            platform: platform
                .map(|platform| (platform.os.clone(), wharf_arch(&platform.arch).to_owned()))
                .unwrap_or_default(),
            values: self
                .labels
                .iter()
                .map(|label| attribute(node, label).map(std::borrow::Cow::into_owned))
                .collect(),
        }
    }
    fn enter(&mut self, id: NodeId, kind: Kind) -> Entry {
        let group = *self.by_kind.entry(kind.clone()).or_insert_with(|| {
            self.groups.push(Group { kind, emptiest: Tree::default(), fullest: Tree::default() });
            self.groups.len() - 1
        });
        let leaf = self.groups[group].emptiest.insert(id);
        self.groups[group].fullest.insert(id);
        let entry = Entry { group, leaf };
        self.entries.insert(id, entry);
        entry
    }
    fn set(&mut self, entry: Entry, node: &Node, load: Option<&Load>) {
        let group = &mut self.groups[entry.group];
        let none = Load::default();
        let load = load.unwrap_or(&none);
        let free = Amounts::free(node, load);
        let closed = !is_open(node);
        let emptiest =
            if closed { CLOSED } else { Key::emptiest(0, super::reserved_share(node, load), load.tasks) };
        let fullest = if closed { CLOSED } else { Key::fullest(super::reserved_share(node, load)) };
        group.emptiest.set(entry.leaf, emptiest, free);
        group.fullest.set(entry.leaf, fullest, free);
    }
}

#[cfg(test)]
impl Group {
    /// Each of its nodes with all that is known of it.
    pub(crate) fn standings(&self) -> Vec<String> {
        let of = |tree: &Tree, leaf: usize| (tree.keys[leaf], tree.free[tree.room + leaf]);
        let nodes = 0..self.emptiest.ids.len();
        let line = |leaf| {
            let (one, other) = (of(&self.emptiest, leaf), of(&self.fullest, leaf));
            format!("{} {:?} {one:?} {other:?}", self.emptiest.ids[leaf], self.kind)
        };
        nodes.map(line).collect()
    }
}

/// Whether a node takes tasks at all. What depends on the time is left to the filters.
fn is_open(node: &Node) -> bool {
    node.record.availability == Availability::Active && node.is_sound()
}

fn is_label(attribute: &str) -> bool {
    attribute.starts_with("node.labels.") || attribute.starts_with("engine.labels.")
}

/// What a tournament is about: the smaller wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u128);

/// Takes part in nothing.
pub(crate) const CLOSED: Key = Key(u128::MAX);

impl Key {
    /// Few tasks of the service, then little reserved, then few tasks.
    pub(crate) fn emptiest(siblings: u32, share: u64, tasks: u32) -> Self {
        let share = share.min(u64::from(u32::MAX));
        Self((u128::from(siblings) << 64) | (u128::from(share) << 32) | u128::from(tasks))
    }
    /// Much reserved.
    pub(crate) fn fullest(share: u64) -> Self {
        Self(u128::from(u64::MAX - share))
    }
    /// What [`Key::emptiest`] was made of.
    #[expect(clippy::cast_possible_truncation, reason = "each part is cut out of what it was put into")]
    pub(crate) const fn parts(self) -> (u32, u64, u32) {
        ((self.0 >> 64) as u32, (self.0 >> 32) as u32 as u64, self.0 as u32)
    }
    /// What [`Key::fullest`] was made of.
    #[expect(clippy::cast_possible_truncation, reason = "it was made of so many bits")]
    pub(crate) const fn share(self) -> u64 {
        u64::MAX - self.0 as u64
    }
}

/// A tournament of nodes. Of equal keys the lower id wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    /// How many leaves there is room for: a power of two, or none.
    room: usize,
    ids: Vec<NodeId>,
    keys: Vec<Key>,
    /// Of each inner place, from 1, and then of each leaf: the leaf that wins below it.
    winners: Vec<u32>,
    /// And the most of each thing that is free below it, not necessarily of one node.
    free: Vec<Amounts>,
}

/// What a search asks of those who know the rules.
pub(crate) trait Search {
    /// Whether the best that could be below may be better than what was found: the key and the id of the winner there.
    fn is_worth(&self, key: Key, id: NodeId) -> bool;
    /// A node that may be better than what was found.
    fn look_at(&mut self, id: NodeId);
}

impl Tree {
    fn first(&self) -> Option<NodeId> {
        self.ids.first().copied()
    }
    fn insert(&mut self, id: NodeId) -> usize {
        let leaf = self.ids.len();
        self.ids.push(id);
        self.keys.push(CLOSED);
        if leaf >= self.room {
            self.grow();
        } else {
            self.play(leaf);
        }
        leaf
    }
    fn grow(&mut self) {
        let before: Vec<Amounts> = self.free.get(self.room..).unwrap_or_default().to_vec();
        self.room = (self.room * 2).max(4);
        self.winners = vec![u32::MAX; self.room * 2];
        self.free = vec![Amounts::default(); self.room * 2];
        for (leaf, free) in before.into_iter().enumerate() {
            self.free[self.room + leaf] = free;
        }
        for leaf in 0..self.ids.len() {
            self.winners[self.room + leaf] = u32::try_from(leaf).unwrap_or(u32::MAX);
        }
        for at in (1..self.room).rev() {
            self.settle(at);
        }
    }
    /// Takes a node out; the last one takes its leaf, and is named.
    fn remove(&mut self, leaf: usize) -> Option<NodeId> {
        let last = self.ids.len().checked_sub(1)?;
        self.ids.swap_remove(leaf);
        self.keys.swap_remove(leaf);
        let (from, to) = (self.room + last, self.room + leaf);
        self.free[to] = self.free[from];
        self.free[from] = Amounts::default();
        self.winners[from] = u32::MAX;
        self.up(from / 2);
        if leaf == last {
            return None;
        }
        self.up(to / 2);
        Some(self.ids[leaf])
    }
    /// A node has this key now, and so much is free.
    pub(crate) fn set(&mut self, leaf: usize, key: Key, free: Amounts) {
        let at = self.room + leaf;
        if self.keys[leaf] != key || self.free[at] != free {
            self.keys[leaf] = key;
            self.free[at] = free;
            self.play(leaf);
        }
    }
    fn play(&mut self, leaf: usize) {
        let at = self.room + leaf;
        self.winners[at] = u32::try_from(leaf).unwrap_or(u32::MAX);
        self.up(at / 2);
    }
    fn up(&mut self, mut at: usize) {
        while at >= 1 {
            self.settle(at);
            at /= 2;
        }
    }
    fn settle(&mut self, at: usize) {
        let (left, right) = (self.winners[at * 2], self.winners[at * 2 + 1]);
        self.winners[at] = if self.standing(right) < self.standing(left) { right } else { left };
        self.free[at] = self.free[at * 2].most(self.free[at * 2 + 1]);
    }
    fn standing(&self, leaf: u32) -> (Key, Option<NodeId>) {
        let leaf = leaf as usize;
        self.keys.get(leaf).map_or((CLOSED, None), |key| (*key, Some(self.ids[leaf])))
    }
    /// Proposes nodes on which so much is free, the most promising first, as long as one may be better.
    pub(crate) fn search(&self, need: Amounts, search: &mut dyn Search) {
        if self.room > 0 {
            self.down(1, need, search);
        }
    }
    fn down(&self, at: usize, need: Amounts, search: &mut dyn Search) {
        let (key, Some(id)) = self.standing(self.winners[at]) else { return };
        if key == CLOSED || !need.fits(self.free[at]) || !search.is_worth(key, id) {
            return;
        }
        if at >= self.room {
            return search.look_at(id);
        }
        // The winner's side first: it bounds the other one.
        let (left, right) = (at * 2, at * 2 + 1);
        let (first, second) =
            if self.winners[at] == self.winners[left] { (left, right) } else { (right, left) };
        self.down(first, need, search);
        self.down(second, need, search);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::node_id;

    struct Best {
        found: Option<(Key, NodeId)>,
        keys: BTreeMap<NodeId, Key>,
        looked_at: usize,
    }
    impl Search for Best {
        fn is_worth(&self, key: Key, id: NodeId) -> bool {
            self.found.is_none_or(|found| (key, id) < found)
        }
        fn look_at(&mut self, id: NodeId) {
            self.looked_at += 1;
            let candidate = (self.keys[&id], id);
            self.found = Some(self.found.map_or(candidate, |found| found.min(candidate)));
        }
    }
    fn free(cpus: u64) -> Amounts {
        Amounts { cpus, ..Amounts::default() }
    }
    fn best(tree: &Tree, need: u64) -> (Option<NodeId>, usize) {
        let keys = tree.ids.iter().copied().zip(tree.keys.iter().copied()).collect();
        let mut best = Best { found: None, keys, looked_at: 0 };
        tree.search(free(need), &mut best);
        (best.found.map(|(_, id)| id), best.looked_at)
    }

    #[test]
    fn the_best_that_fits_wins_whatever_came_and_went() {
        let mut tree = Tree::default();
        let mut known: Vec<(NodeId, Key, u64)> = Vec::new();
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..2_000_u64 {
            let id = NodeId::new(uuid::Uuid::from_u128(u128::from(random(60))));
            let at = known.iter().position(|(other, ..)| *other == id);
            match (random(4), at) {
                (0, Some(at)) => {
                    let moved = tree.remove(at);
                    known.swap_remove(at);
                    assert_eq!(moved, known.get(at).map(|(id, ..)| *id), "step {step}");
                }
                (_, at) => {
                    let at = at.unwrap_or_else(|| {
                        known.push((id, CLOSED, 0));
                        tree.insert(id)
                    });
                    let (key, room) = (Key::emptiest(0, random(5), 0), random(8));
                    known[at] = (id, if random(5) == 0 { CLOSED } else { key }, room);
                    tree.set(at, known[at].1, free(room));
                }
            }
            for need in 0..9 {
                let fits = known.iter().filter(|(_, key, room)| *key != CLOSED && *room >= need);
                let wanted = fits.min_by_key(|(id, key, _)| (*key, *id)).map(|(id, ..)| *id);
                assert_eq!(best(&tree, need).0, wanted, "step {step}, need {need}");
            }
        }
    }

    #[test]
    fn a_search_looks_at_few_nodes() {
        let mut tree = Tree::default();
        for n in 0..200 {
            let leaf = tree.insert(node_id(n));
            // The first half is full.
            tree.set(leaf, Key::emptiest(0, 0, 0), free(u64::from(n >= 100)));
        }
        assert_eq!(best(&tree, 1), (Some(node_id(100)), 1));
        assert_eq!(best(&tree, 2), (None, 0));
    }

    #[test]
    fn keys_give_back_what_they_were_made_of() {
        assert_eq!(Key::emptiest(3, 812, 40).parts(), (3, 812, 40));
        assert_eq!(Key::fullest(812).share(), 812);
        assert!(Key::fullest(900) < Key::fullest(100) && Key::emptiest(0, 900, 1) < Key::emptiest(1, 0, 0));
    }
}
