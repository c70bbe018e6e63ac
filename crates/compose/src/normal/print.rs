//! Writes a tree down in the forms of the reference's model, for JSON or for YAML.
//!
//! What is left out, what is `null` and what is empty is as the reference has it; the two languages differ in a few
//! places, which are the uses of [`Language`].

use std::borrow::Cow;

use super::form::{Form, Kind};
use crate::node::{Mapping, Node, Value};
use crate::quantity;
use crate::words;

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Json,
    Yaml,
}

/// A value in the order in which it is printed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Printed<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that has 32 bits in the reference.
    Ratio(f32),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Printed<'a>>),
    Map(Vec<(Cow<'a, str>, Printed<'a>)>),
}
use Printed::{List, Map, Null};

impl<'a> Printed<'a> {
    fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }
    fn is_empty_map(&self) -> bool {
        matches!(self, Map(entries) if entries.is_empty())
    }

    /// Writes `$` so that reading it substitutes nothing.
    pub(super) fn escape(&mut self) {
        let escape = |text: &mut Cow<'a, str>| {
            if text.contains('$') {
                *text = Cow::Owned(text.replace('$', "$$"));
            }
        };
        match self {
            Null | Self::Bool(_) | Self::Int(_) | Self::Ratio(_) | Self::Float(_) => {}
            Self::Text(text) => escape(text),
            List(items) => items.iter_mut().for_each(Self::escape),
            Map(entries) => {
                for (key, value) in entries {
                    escape(key);
                    value.escape();
                }
            }
        }
    }

    pub(super) fn into_json(self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Null => Json::Null,
            Self::Bool(value) => Json::Bool(value),
            Self::Int(number) => Json::from(number),
            Self::Ratio(number) => json_number(f64::from(number), || number.to_string()),
            Self::Float(number) => json_number(number, || number.to_string()),
            Self::Text(text) => Json::String(text.into_owned()),
            List(items) => Json::Array(items.into_iter().map(Self::into_json).collect()),
            Map(entries) => Json::Object(
                entries.into_iter().map(|(key, value)| (key.into_owned(), value.into_json())).collect(),
            ),
        }
    }
}

/// A number without a fraction is a whole one in JSON; one with a fraction has the digits of its own precision.
fn json_number(number: f64, digits: impl Fn() -> String) -> serde_json::Value {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
        return serde_json::Value::from(number as i64);
    }
    digits()
        .parse::<f64>()
        .ok()
        .and_then(serde_json::Number::from_f64)
        .map_or(serde_json::Value::Null, Into::into)
}

/// A mapping in its form; `shows` says which members of the groups of a project are printed.
pub(super) fn object<'a>(
    mapping: &'a Mapping,
    form: &'static Form,
    language: Language,
    shows: &dyn Fn(&str, &str) -> bool,
) -> Printed<'a> {
    let mut entries = Vec::with_capacity(mapping.len() + 2);
    for (key, kind) in form.fields {
        let node = mapping.get(key).filter(|node| !node.is_invalid());
        let printed = match kind {
            Kind::Group(member) | Kind::AlwaysGroup(member) | Kind::YamlGroup(member) => {
                let wanted = |name: &str| shows(key, name);
                let group = group(node, member, language, &wanted);
                let hidden = matches!(kind, Kind::YamlGroup(_)) && language == Language::Json;
                let needed = matches!(kind, Kind::AlwaysGroup(_));
                Some(group).filter(|group| !hidden && (needed || !group.is_empty_map()))
            }
            _ => field(node, *kind, language),
        };
        let Some(printed) = printed else { continue };
        let key: Cow<'a, str> = if form.capitals_in_json && language == Language::Json {
            let (first, rest) = key.split_at(1);
            format!("{}{rest}", first.to_uppercase()).into()
        } else {
            (*key).into()
        };
        entries.push((key, printed));
    }
    if language == Language::Yaml || form.extensions_in_json {
        let mut extensions: Vec<_> = mapping
            .iter()
            .filter(|(key, entry)| key.starts_with("x-") && !entry.node.is_invalid())
            .map(|(key, entry)| (Cow::Borrowed(key), any(&entry.node)))
            .collect();
        sort(&mut extensions);
        entries.extend(extensions);
    }
    Map(entries)
}

fn everything(_: &str, _: &str) -> bool {
    true
}

fn group<'a>(
    node: Option<&'a Node>,
    member: &'static Form,
    language: Language,
    wanted: &dyn Fn(&str) -> bool,
) -> Printed<'a> {
    let mut entries = Vec::new();
    for (name, entry) in node.and_then(Node::as_mapping).into_iter().flat_map(Mapping::iter) {
        if !wanted(name) || entry.node.is_invalid() {
            continue;
        }
        let printed = match entry.node.as_mapping() {
            Some(mapping) => object(mapping, member, language, &everything),
            None => object(&Mapping::default(), member, language, &everything).into_owned(),
        };
        entries.push((Cow::Borrowed(name), printed));
    }
    sort(&mut entries);
    Map(entries)
}

impl Printed<'_> {
    fn into_owned<'b>(self) -> Printed<'b> {
        match self {
            Null => Null,
            Self::Bool(value) => Printed::Bool(value),
            Self::Int(number) => Printed::Int(number),
            Self::Ratio(number) => Printed::Ratio(number),
            Self::Float(number) => Printed::Float(number),
            Self::Text(text) => Printed::Text(text.into_owned().into()),
            List(items) => List(items.into_iter().map(Self::into_owned).collect()),
            Map(entries) => Map(entries
                .into_iter()
                .map(|(key, value)| (key.into_owned().into(), value.into_owned()))
                .collect()),
        }
    }
}

/// One value; `None` where it is left out.
fn field<'a>(node: Option<&'a Node>, kind: Kind, language: Language) -> Option<Printed<'a>> {
    let given = node.filter(|node| !node.is_null());
    // Variables are left in it; what it will be is not known.
    if let Some(Node { value: Value::String(open), .. }) = given
        && open.contains('$')
        && !matches!(kind, Kind::Command | Kind::Test)
    {
        return Some(Printed::text(open.as_str()));
    }
    match kind {
        Kind::Text => given.and_then(text).filter(|text| !text.is_empty()).map(Printed::Text),
        Kind::AlwaysText => Some(Printed::Text(given.and_then(text).unwrap_or_default())),
        Kind::Flag => given.and_then(flag).filter(|value| *value).map(Printed::Bool),
        Kind::Choice => given.and_then(flag).map(Printed::Bool),
        Kind::OptOut => given.and_then(flag).filter(|value| !value).map(Printed::Bool),
        Kind::Whole => given.and_then(whole).filter(|number| *number != 0).map(Printed::Int),
        Kind::Microseconds => given.and_then(microseconds).filter(|number| *number != 0).map(Printed::Int),
        Kind::AlwaysWhole => Some(Printed::Int(given.and_then(whole).unwrap_or_default())),
        Kind::GivenWhole => given.and_then(whole).map(Printed::Int),
        Kind::Ratio => given.and_then(ratio).filter(|number| *number != 0.0).map(Printed::Ratio),
        Kind::Bytes => given.and_then(bytes).filter(|number| *number != 0).map(decimal),
        Kind::AlwaysBytes => Some(decimal(given.and_then(bytes).unwrap_or_default())),
        Kind::Time => given.and_then(nanoseconds).filter(|length| *length != 0).map(time),
        Kind::GivenTime => given.and_then(nanoseconds).map(time),
        Kind::Mode => given.and_then(mode).map(|mode| Printed::text(format!("0{mode:o}"))),
        Kind::Texts => filled(texts(given?)),
        Kind::Command => match given {
            Some(node) => Some(command(node)),
            None => (language == Language::Json).then_some(Null),
        },
        Kind::Test => filled(match given? {
            Node { value: Value::String(line), .. } => {
                vec![Printed::text("CMD-SHELL"), Printed::text(line.as_str())]
            }
            node => texts(node),
        }),
        Kind::Labels => filled_map(pairs(given?, || Printed::text(""))),
        Kind::Variables => filled_map(pairs(given?, || Null)),
        Kind::Repeated => filled_map(repeated(given?)),
        Kind::Hosts => {
            let mut lines = texts(given?);
            lines.sort_by(|a, b| match (a, b) {
                (Printed::Text(a), Printed::Text(b)) => a.cmp(b),
                _ => std::cmp::Ordering::Equal,
            });
            filled(lines)
        }
        Kind::Limits => filled_map(limits(given?, language)),
        Kind::Count => given.and_then(count).filter(|number| *number != 0).map(Printed::Int),
        Kind::Keys => filled(keys(given?)),
        Kind::Object(form) => Some(object(given?.as_mapping()?, form, language, &everything)),
        Kind::Part(form) => {
            let printed = match given.and_then(Node::as_mapping) {
                Some(mapping) => object(mapping, form, language, &everything),
                None => object(&Mapping::default(), form, language, &everything).into_owned(),
            };
            Some(printed).filter(|printed| language == Language::Json || !printed.is_empty_map())
        }
        Kind::Items(form) => {
            let items = given?.as_sequence()?.iter();
            filled(
                items
                    .filter_map(|item| match item.as_mapping() {
                        Some(mapping) => Some(object(mapping, form, language, &everything)),
                        None => text(item).map(Printed::Text),
                    })
                    .collect(),
            )
        }
        Kind::Named(form) => {
            let members = given?.as_mapping()?.iter();
            filled_map(
                members
                    .map(|(name, entry)| {
                        let printed = match entry.node.as_mapping() {
                            Some(mapping) => object(mapping, form, language, &everything),
                            None => Null,
                        };
                        (Cow::Borrowed(name), printed)
                    })
                    .collect(),
            )
        }
        Kind::Group(_) | Kind::AlwaysGroup(_) | Kind::YamlGroup(_) => None,
        Kind::Any => Some(any(given?)),
    }
}

fn filled(items: Vec<Printed<'_>>) -> Option<Printed<'_>> {
    (!items.is_empty()).then_some(List(items))
}
fn filled_map<'a>(mut entries: Vec<(Cow<'a, str>, Printed<'a>)>) -> Option<Printed<'a>> {
    sort(&mut entries);
    (!entries.is_empty()).then_some(Map(entries))
}

fn text(node: &Node) -> Option<Cow<'_, str>> {
    match &node.value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        _ => node.scalar_text().map(Cow::Owned),
    }
}
fn texts(node: &Node) -> Vec<Printed<'_>> {
    match &node.value {
        Value::Sequence(items) => items.iter().filter_map(text).map(Printed::Text).collect(),
        _ => text(node).map(Printed::Text).into_iter().collect(),
    }
}
fn flag(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(value) => Some(*value),
        _ => None,
    }
}
fn whole(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "floats saturate")]
        Value::Float(number) => Some(*number as i64),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}
fn microseconds(node: &Node) -> Option<i64> {
    whole(node).or_else(|| i64::try_from(nanoseconds(node)? / 1000).ok())
}
#[expect(clippy::cast_possible_truncation, reason = "the reference has 32 bits too")]
fn ratio(node: &Node) -> Option<f32> {
    match &node.value {
        #[expect(clippy::cast_precision_loss, reason = "the reference has 32 bits too")]
        Value::Int(number) => Some(*number as f32),
        Value::Float(number) => Some(*number as f32),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}
fn bytes(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "floats saturate")]
        Value::Float(number) => Some(*number as i64),
        Value::String(text) => match text.parse::<i64>() {
            Ok(number) => Some(number),
            Err(_) => quantity::bytes(text).ok().and_then(|number| i64::try_from(number).ok()),
        },
        _ => None,
    }
}
fn decimal<'a>(number: i64) -> Printed<'a> {
    Printed::text(number.to_string())
}
fn nanoseconds(node: &Node) -> Option<u64> {
    quantity::nanoseconds(node.as_str()?).ok()
}
fn time<'a>(length: u64) -> Printed<'a> {
    Printed::text(quantity::spell(length))
}
fn mode(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(number) => Some(*number),
        Value::String(text) => i64::from_str_radix(text, 8).ok(),
        _ => None,
    }
}
fn count(node: &Node) -> Option<i64> {
    match &node.value {
        Value::String(text) if text.eq_ignore_ascii_case("all") => Some(-1),
        _ => whole(node),
    }
}
fn command(node: &Node) -> Printed<'_> {
    match &node.value {
        Value::String(line) => {
            List(words::split(line).unwrap_or_default().into_iter().map(Printed::text).collect())
        }
        _ => List(texts(node)),
    }
}

type Entries<'a> = Vec<(Cow<'a, str>, Printed<'a>)>;

fn pairs<'a>(node: &'a Node, nothing: impl Fn() -> Printed<'a>) -> Entries<'a> {
    let members = node.as_mapping().into_iter().flat_map(Mapping::iter);
    members
        .filter(|(_, entry)| !entry.node.is_invalid())
        .map(|(name, entry)| (Cow::Borrowed(name), text(&entry.node).map_or_else(&nothing, Printed::Text)))
        .collect()
}
fn repeated(node: &Node) -> Entries<'_> {
    let members = node.as_mapping().into_iter().flat_map(Mapping::iter);
    members.map(|(name, entry)| (Cow::Borrowed(name), List(texts(&entry.node)))).collect()
}
fn limits(node: &Node, language: Language) -> Entries<'_> {
    let members = node.as_mapping().into_iter().flat_map(Mapping::iter);
    members
        .map(|(name, entry)| {
            let printed = match entry.node.as_mapping() {
                None => match whole(&entry.node).unwrap_or_default() {
                    0 if language == Language::Json => Map(vec![]),
                    number => Printed::Int(number),
                },
                Some(pair) => {
                    let bound = |key: &'static str| {
                        let number = pair.get(key).and_then(whole).unwrap_or_default();
                        (language == Language::Yaml || number != 0)
                            .then_some((Cow::Borrowed(key), Printed::Int(number)))
                    };
                    Map(["soft", "hard"].into_iter().filter_map(bound).collect())
                }
            };
            (Cow::Borrowed(name), printed)
        })
        .collect()
}
fn keys(node: &Node) -> Vec<Printed<'_>> {
    let members = node.as_mapping().into_iter().flat_map(Mapping::iter);
    members
        .map(|(name, entry)| match text(&entry.node).filter(|path| !path.is_empty()) {
            Some(path) => Printed::text(format!("{name}={path}")),
            None => Printed::text(name),
        })
        .collect()
}

/// An extension: what the file says.
fn any(node: &Node) -> Printed<'_> {
    match &node.value {
        Value::Null | Value::Invalid => Null,
        Value::Bool(value) => Printed::Bool(*value),
        Value::Int(number) => Printed::Int(*number),
        Value::Float(number) => Printed::Float(*number),
        Value::String(text) => Printed::text(text.as_str()),
        Value::Sequence(items) => List(items.iter().map(any).collect()),
        Value::Mapping(mapping) => {
            let mut entries: Entries<'_> =
                mapping.iter().map(|(key, entry)| (Cow::Borrowed(key), any(&entry.node))).collect();
            sort(&mut entries);
            Map(entries)
        }
    }
}

fn sort(entries: &mut Entries<'_>) {
    entries.sort_by(|(a, _), (b, _)| super::order::natural(a, b));
}
