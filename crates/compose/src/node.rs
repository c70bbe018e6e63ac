//! The tree of a Compose file: YAML values that know where they stand.
//!
//! Anchors, aliases and merge keys are gone; `!reset` and `!override` are kept until files are merged.

use indexmap::IndexMap;

use crate::diagnostic::Span;

/// What a tag asks of merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tag {
    #[default]
    None,
    /// `!reset`: the value of earlier files is removed.
    Reset,
    /// `!override`: the value of earlier files is replaced, not merged with.
    Override,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) tag: Tag,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Mapping),
    /// Something that was complained about already; nothing more is said of it.
    Invalid,
}

/// A mapping in the order of the file.
///
/// Most have a few keys, which are found faster one by one than by their hashes, and in half the memory. Large files
/// take less time so; the likely reason is the processor's caches, which was not measured.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    entries: Entries,
}

#[derive(Debug, Clone)]
enum Entries {
    /// At most [`FEW`].
    Few(Vec<(String, Entry)>),
    Many(Box<IndexMap<String, Entry>>),
}

/// More keys are found by their hashes.
const FEW: usize = 16;

impl Default for Mapping {
    fn default() -> Self {
        Self { entries: Entries::Few(Vec::new()) }
    }
}

/// A key's place and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Span,
    pub(crate) node: Node,
}

impl Entry {
    /// The best place to point at: the value if it stands on one line, otherwise the key.
    pub(crate) fn place(&self) -> Span {
        match self.node.value {
            Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::String(_) => self.node.span,
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Invalid => self.key,
        }
    }
}

impl Node {
    pub(crate) fn new(span: Span, value: Value) -> Self {
        Self { span, tag: Tag::None, value }
    }
    pub(crate) fn string(span: Span, text: impl Into<String>) -> Self {
        Self::new(span, Value::String(text.into()))
    }
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }
    pub(crate) fn is_invalid(&self) -> bool {
        matches!(self.value, Value::Invalid)
    }
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
    pub(crate) fn as_mapping(&self) -> Option<&Mapping> {
        match &self.value {
            Value::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }
    pub(crate) fn as_mapping_mut(&mut self) -> Option<&mut Mapping> {
        match &mut self.value {
            Value::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }
    pub(crate) fn as_sequence(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Sequence(items) => Some(items),
            _ => None,
        }
    }
    /// A scalar as text, as Compose prints it; `None` for null and for collections.
    pub(crate) fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(value) => Some(value.to_string()),
            Value::Float(value) => Some(float_text(*value)),
            Value::String(text) => Some(text.clone()),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Invalid => None,
        }
    }
    /// What it is, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "empty",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Invalid => "invalid",
        }
    }
}

/// As Go prints a float: without a fraction where there is none, with an exponent from 1e21.
pub(crate) fn float_text(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else if value != 0.0 && (value.abs() >= 1e21 || value.abs() < 1e-4) {
        let text = format!("{value:e}");
        match text.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(rest) => ('-', rest),
                    None => ('+', exponent),
                };
                format!("{digits}e{sign}{exponent:0>2}")
            }
            None => text,
        }
    } else {
        value.to_string()
    }
}

impl Mapping {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.entries {
            Entries::Few(few) => few.iter().find(|(name, _)| name == key).map(|(_, entry)| entry),
            Entries::Many(many) => many.get(key),
        }
    }
    pub(crate) fn entry_mut(&mut self, key: &str) -> Option<&mut Entry> {
        match &mut self.entries {
            Entries::Few(few) => few.iter_mut().find(|(name, _)| name == key).map(|(_, entry)| entry),
            Entries::Many(many) => many.get_mut(key),
        }
    }
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.entry_mut(key).map(|entry| &mut entry.node)
    }
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }
    /// Puts it behind the others, or in the place of what the key had.
    pub(crate) fn insert(&mut self, key: impl Into<String>, place: Span, node: Node) {
        let (key, entry) = (key.into(), Entry { key: place, node });
        match self.entry_mut(&key) {
            Some(taken) => *taken = entry,
            None => self.push(key, entry),
        }
    }
    /// Adds it unless the key is taken; answers the key, and the place of the one that is there.
    pub(crate) fn insert_new(&mut self, key: String, entry: Entry) -> Result<(), (String, Span)> {
        if let Some(taken) = self.entry(&key) {
            return Err((key, taken.key));
        }
        self.push(key, entry);
        Ok(())
    }
    /// Adds a key that is not there.
    fn push(&mut self, key: String, entry: Entry) {
        match &mut self.entries {
            Entries::Few(few) if few.len() < FEW => few.push((key, entry)),
            Entries::Few(few) => {
                let mut many: IndexMap<_, _> = few.drain(..).collect();
                many.insert(key, entry);
                self.entries = Entries::Many(Box::new(many));
            }
            Entries::Many(many) => {
                many.insert(key, entry);
            }
        }
    }
    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        match &mut self.entries {
            Entries::Few(few) => {
                let index = few.iter().position(|(name, _)| name == key)?;
                Some(few.remove(index).1)
            }
            Entries::Many(many) => many.shift_remove(key),
        }
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let (few, many) = match &self.entries {
            Entries::Few(few) => (few.as_slice(), None),
            Entries::Many(many) => (&[][..], Some(many)),
        };
        let many = many.into_iter().flat_map(|many| many.iter());
        few.iter().map(|(key, entry)| (key, entry)).chain(many).map(|(key, entry)| (key.as_str(), entry))
    }
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        let (few, many) = match &mut self.entries {
            Entries::Few(few) => (few.as_mut_slice(), None),
            Entries::Many(many) => (&mut [][..], Some(many)),
        };
        let many = many.into_iter().flat_map(|many| many.iter_mut());
        few.iter_mut()
            .map(|(key, entry)| (&*key, entry))
            .chain(many)
            .map(|(key, entry)| (key.as_str(), entry))
    }
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &mut Entry) -> bool) {
        match &mut self.entries {
            Entries::Few(few) => few.retain_mut(|(key, entry)| keep(key, entry)),
            Entries::Many(many) => many.retain(|key, entry| keep(key, entry)),
        }
    }
    pub(crate) fn len(&self) -> usize {
        match &self.entries {
            Entries::Few(few) => few.len(),
            Entries::Many(many) => many.len(),
        }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
impl IntoIterator for Mapping {
    type Item = (String, Entry);
    type IntoIter = std::iter::Chain<std::vec::IntoIter<Self::Item>, indexmap::map::IntoIter<String, Entry>>;
    fn into_iter(self) -> Self::IntoIter {
        let (few, many) = match self.entries {
            Entries::Few(few) => (few, IndexMap::new()),
            Entries::Many(many) => (Vec::new(), *many),
        };
        few.into_iter().chain(many)
    }
}

/// Whether two trees say the same, wherever they stand; the order of mappings does not matter.
pub(crate) fn same(left: &Node, right: &Node) -> bool {
    match (&left.value, &right.value) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => a == b,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, entry)| b.get(key).is_some_and(|other| same(&entry.node, other)))
        }
        _ => false,
    }
}
