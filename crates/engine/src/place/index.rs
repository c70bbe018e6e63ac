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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
        let of = |tree: &Tree, leaf: usize| (tree.nodes[leaf].key, tree.places[tree.room + leaf].free);
        let nodes = 0..self.emptiest.nodes.len;
        let line = |leaf| {
            let (one, other) = (of(&self.emptiest, leaf), of(&self.fullest, leaf));
            format!("{} {:?} {one:?} {other:?}", self.emptiest.nodes[leaf].id, self.kind)
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
///
/// A copy shares everything with what it was copied from until one of the two changes, and then all but what has changed: a pass that
/// places many tasks of one service plays a tournament of its own, and pays for the nodes it puts them on, not for all there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    /// How many leaves there is room for: a power of two, or none.
    room: usize,
    nodes: Shared<Leaf>,
    /// Each inner place, from 1, and then each leaf.
    places: Shared<Place>,
}

/// A node that takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaf {
    key: Key,
    id: NodeId,
}

/// What is known of all below a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The leaf that wins.
    winner: u32,
    /// The most of each thing that is free, not necessarily of one node.
    free: Amounts,
}
/// Nobody is there.
const EMPTY: Place = Place { winner: u32::MAX, free: Amounts { cpus: 0, memory: 0, disk: 0 } };

/// A row of things in blocks, each of which copies of the row share until one of them changes something in it.
#[derive(Debug, Clone)]
struct Shared<T> {
    blocks: Vec<Arc<Vec<T>>>,
    len: usize,
}
impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), len: 0 }
    }
}
/// How many things share a block.
const BLOCK: usize = 64;
impl<T: Copy + PartialEq> Shared<T> {
    fn of(row: &[T]) -> Self {
        Self { blocks: row.chunks(BLOCK).map(|block| Arc::new(block.to_vec())).collect(), len: row.len() }
    }
    fn get(&self, at: usize) -> Option<&T> {
        self.blocks.get(at / BLOCK)?.get(at % BLOCK)
    }
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flat_map(|block| block.iter())
    }
    /// Writes only what differs, so that what is as it was goes on being shared.
    fn set(&mut self, at: usize, thing: T) {
        if self[at] != thing {
            Arc::make_mut(&mut self.blocks[at / BLOCK])[at % BLOCK] = thing;
        }
    }
    fn push(&mut self, thing: T) {
        match self.blocks.last_mut().filter(|last| last.len() < BLOCK) {
            Some(last) => Arc::make_mut(last).push(thing),
            None => self.blocks.push(Arc::new(vec![thing])),
        }
        self.len += 1;
    }
    fn pop(&mut self) -> Option<T> {
        let last = self.blocks.last_mut()?;
        let thing = Arc::make_mut(last).pop();
        if last.is_empty() {
            self.blocks.pop();
        }
        self.len -= usize::from(thing.is_some());
        thing
    }
}
impl<T> std::ops::Index<usize> for Shared<T> {
    type Output = T;
    fn index(&self, at: usize) -> &T {
        &self.blocks[at / BLOCK][at % BLOCK]
    }
}

fn number(leaf: usize) -> u32 {
    u32::try_from(leaf).unwrap_or(u32::MAX)
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
        self.nodes.get(0).map(|leaf| leaf.id)
    }
    fn insert(&mut self, id: NodeId) -> usize {
        let leaf = self.nodes.len;
        self.nodes.push(Leaf { key: CLOSED, id });
        if leaf >= self.room {
            self.grow();
        }
        let at = self.room + leaf;
        self.places.set(at, Place { winner: number(leaf), ..self.places[at] });
        self.up(leaf);
        leaf
    }
    fn grow(&mut self) {
        let leaves: Vec<Place> = self.places.iter().skip(self.room).copied().collect();
        self.room = (self.room * 2).max(4);
        let mut places = vec![EMPTY; self.room * 2];
        places[self.room..self.room + leaves.len()].copy_from_slice(&leaves);
        self.places = Shared::of(&places);
        for at in (1..self.room).rev() {
            self.settle(at);
        }
    }
    /// Takes a node out; the last one takes its leaf, and is named.
    fn remove(&mut self, leaf: usize) -> Option<NodeId> {
        let last = self.nodes.len.checked_sub(1)?;
        let (from, to) = (self.room + last, self.room + leaf);
        let free = self.places[from].free;
        let moved = self.nodes.pop().filter(|_| leaf != last);
        if let Some(moved) = moved {
            self.nodes.set(leaf, moved);
            self.places.set(to, Place { winner: number(leaf), free });
        }
        self.places.set(from, EMPTY);
        self.up(last);
        if moved.is_some() {
            self.up(leaf);
        }
        moved.map(|moved| moved.id)
    }
    /// A node has this key now, and so much is free.
    pub(crate) fn set(&mut self, leaf: usize, key: Key, free: Amounts) {
        let at = self.room + leaf;
        if self.nodes[leaf].key != key || self.places[at].free != free {
            self.nodes.set(leaf, Leaf { key, ..self.nodes[leaf] });
            self.places.set(at, Place { free, ..self.places[at] });
            self.up(leaf);
        }
    }
    /// Plays again what a leaf takes part in, as far as it can matter.
    fn up(&mut self, leaf: usize) {
        let mut at = (self.room + leaf) / 2;
        while at >= 1 {
            let before = self.places[at];
            self.settle(at);
            // Who wins above is decided by the keys of those who win here: this leaf's may have changed.
            if before == self.places[at] && before.winner != number(leaf) {
                return;
            }
            at /= 2;
        }
    }
    fn settle(&mut self, at: usize) {
        let (left, right) = (self.places[at * 2], self.places[at * 2 + 1]);
        let right_wins = self.standing(right.winner) < self.standing(left.winner);
        let winner = if right_wins { right.winner } else { left.winner };
        self.places.set(at, Place { winner, free: left.free.most(right.free) });
    }
    fn standing(&self, leaf: u32) -> (Key, Option<NodeId>) {
        self.nodes.get(leaf as usize).map_or((CLOSED, None), |leaf| (leaf.key, Some(leaf.id)))
    }
    /// Proposes nodes on which so much is free, the most promising first, as long as one may be better.
    pub(crate) fn search(&self, need: Amounts, search: &mut dyn Search) {
        if self.room > 0 {
            self.down(1, need, search);
        }
    }
    fn down(&self, at: usize, need: Amounts, search: &mut dyn Search) {
        let Place { winner, free } = self.places[at];
        let (key, Some(id)) = self.standing(winner) else { return };
        if key == CLOSED || !need.fits(free) || !search.is_worth(key, id) {
            return;
        }
        if at >= self.room {
            return search.look_at(id);
        }
        // The winner's side first: it bounds the other one.
        let (left, right) = (at * 2, at * 2 + 1);
        let (first, second) = if winner == self.places[left].winner { (left, right) } else { (right, left) };
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
        let keys = tree.nodes.iter().map(|leaf| (leaf.id, leaf.key)).collect();
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
    fn a_copy_changes_alone_and_shares_the_rest() {
        let mut tree = Tree::default();
        for n in 0..250 {
            let leaf = tree.insert(node_id(n));
            tree.set(leaf, Key::emptiest(0, 5, 0), free(4));
        }
        let mut copy = tree.clone();
        copy.set(200, Key::emptiest(0, 1, 0), free(9));
        tree.set(100, Key::emptiest(0, 2, 0), free(4));
        assert_eq!((best(&tree, 1).0, best(&copy, 1).0), (Some(node_id(100)), Some(node_id(200))));
        assert_eq!((best(&tree, 9).0, best(&copy, 9).0), (None, Some(node_id(200))));
        let both = tree.places.blocks.iter().zip(&copy.places.blocks);
        let shared = both.filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert!(shared >= 3, "of {} blocks only {shared} are shared", tree.places.blocks.len());
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
