//! Checks a tree against the shape that the specification gives it, and says everything that does not fit.
//!
//! After the check, unknown keys are gone, what has a wrong kind is [`Value::Invalid`], and booleans and numbers given as
//! text are booleans and numbers. Later stages complain only about meaning.

use crate::diagnostic::{Complaint, Key, Report, Span, did_you_mean};
use crate::node::{Node, Tag, Value};
use crate::quantity;
use crate::shapes;

/// What may stand somewhere.
pub(crate) enum Shape {
    /// Anything at all.
    Any,
    /// A string.
    Text,
    /// A string or a number.
    TextOrNumber,
    /// A string, number, boolean, or nothing.
    Scalar,
    /// A boolean, or text that reads as one.
    Bool,
    /// A whole number, or text that reads as one.
    Int,
    /// A number, or text that reads as one.
    Number,
    /// A number with a unit of time.
    Duration,
    /// A number of bytes with or without a unit.
    Size,
    /// One of some words.
    Word(&'static [&'static str]),
    /// A list of such.
    List(&'static Shape),
    /// A mapping with known keys.
    Map(&'static Object),
    /// The same with `triggers`, and without what keeps a service running.
    Job(&'static Object),
    /// A mapping from any keys to such.
    MapOf(&'static Shape),
    /// A mapping from names to such; says what is named.
    Named(&'static str, &'static Shape),
    /// Such, or nothing.
    OrNull(&'static Shape),
    /// One of several kinds, told apart by what is there.
    Either(&'static [Shape]),
}

/// A mapping with known keys.
pub(crate) struct Object {
    /// What it is, with its article: "a service".
    pub(crate) what: &'static str,
    pub(crate) keys: &'static [(&'static str, Shape)],
    pub(crate) required: &'static [&'static str],
}

pub(crate) fn check(report: &mut Report, node: &mut Node, shape: &Shape, key: &Key<'_>, place: Span) {
    if node.tag == Tag::Reset || node.is_invalid() {
        return;
    }
    if let Value::String(text) = &node.value
        && report.is_open(text)
    {
        return;
    }
    match shape {
        Shape::Any => {}
        Shape::OrNull(inner) => {
            if !node.is_null() {
                check(report, node, inner, key, place);
            }
        }
        Shape::Either(shapes) => match shapes.iter().find(|shape| shape.accepts(node)) {
            Some(shape) => check(report, node, shape, key, place),
            None => wrong_type(report, node, shape, key, place),
        },
        _ if !shape.accepts(node) => wrong_type(report, node, shape, key, place),
        Shape::Text | Shape::TextOrNumber | Shape::Scalar => {}
        Shape::Bool => boolean(report, node, key, place),
        Shape::Int => integer(report, node, key, place),
        Shape::Number => number(report, node, key, place),
        Shape::Duration => {
            if let Some(Err(fault)) = node.as_str().map(quantity::duration) {
                fault.tell(report, place, key);
                node.value = Value::Invalid;
            }
        }
        Shape::Size => {
            let text = node.scalar_text().unwrap_or_default();
            if let Err(fault) = quantity::bytes(&text)
                && text != "-1"
            {
                fault.tell(report, place, key);
                node.value = Value::Invalid;
            }
        }
        Shape::Word(words) => word(report, node, words, key, place),
        Shape::List(inner) => {
            if let Value::Sequence(items) = &mut node.value {
                for (index, item) in items.iter_mut().enumerate() {
                    let span = item.span;
                    check(report, item, inner, &key.item(index), span);
                }
            }
        }
        Shape::MapOf(inner) => {
            if let Value::Mapping(mapping) = &mut node.value {
                for (name, entry) in mapping.iter_mut() {
                    let place = entry.place();
                    check(report, &mut entry.node, inner, &key.field(name), place);
                }
            }
        }
        Shape::Named(what, inner) => named(report, node, what, inner, key),
        Shape::Map(object) => fields(report, node, object, key),
        Shape::Job(object) => job(report, node, object, key),
    }
}

impl Shape {
    /// Whether a value is of the kind, leaving its content aside.
    fn accepts(&self, node: &Node) -> bool {
        match self {
            Self::Any => true,
            Self::Text | Self::Word(_) | Self::Duration => matches!(node.value, Value::String(_)),
            Self::TextOrNumber | Self::Number | Self::Size => {
                matches!(node.value, Value::String(_) | Value::Int(_) | Value::Float(_))
            }
            Self::Int => match node.value {
                Value::Float(value) => value.fract() == 0.0,
                Value::String(_) | Value::Int(_) => true,
                _ => false,
            },
            Self::Scalar => !matches!(node.value, Value::Sequence(_) | Value::Mapping(_) | Value::Invalid),
            Self::Bool => matches!(node.value, Value::Bool(_) | Value::String(_)),
            Self::List(_) => matches!(node.value, Value::Sequence(_)),
            Self::Map(_) | Self::Job(_) | Self::MapOf(_) | Self::Named(..) => {
                matches!(node.value, Value::Mapping(_))
            }
            Self::OrNull(inner) => node.is_null() || inner.accepts(node),
            Self::Either(shapes) => shapes.iter().any(|shape| shape.accepts(node)),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Any => "anything".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::TextOrNumber => "a string or a number".to_owned(),
            Self::Scalar => "a string, a number or a boolean".to_owned(),
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Int => "a whole number".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Duration => "a duration such as `30s`".to_owned(),
            Self::Size => "a size such as `512m`".to_owned(),
            Self::Word(words) => one_of(words),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) | Self::Job(_) | Self::MapOf(_) | Self::Named(..) => "a mapping".to_owned(),
            Self::OrNull(inner) => inner.describe(),
            Self::Either(shapes) => {
                let mut parts: Vec<String> = shapes.iter().map(Self::describe).collect();
                parts.dedup();
                parts.join(" or ")
            }
        }
    }

    fn takes_list(&self) -> bool {
        match self {
            Self::List(_) => true,
            Self::OrNull(inner) => inner.takes_list(),
            Self::Either(shapes) => shapes.iter().any(Self::takes_list),
            _ => false,
        }
    }
}

/// "`a`, `b` or `c`".
pub(crate) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// `services.web.ports` for people: the last name, and where a list's item is meant, which one.
fn subject(key: &Key<'_>) -> String {
    match key {
        Key::Root => "a Compose file".to_owned(),
        Key::Field(_, name) => format!("`{name}`"),
        Key::Item(parent, index) => format!("item {} of `{}`", index + 1, parent.name()),
    }
}

fn wrong_type(report: &mut Report, node: &mut Node, shape: &Shape, key: &Key<'_>, place: Span) {
    let expected = shape.describe();
    let hint = match (&node.value, shape) {
        (Value::Null, _) => Some("remove the key, or give it a value".to_owned()),
        (Value::Int(number), Shape::Duration) => Some(format!("give it a unit: `{number}s`")),
        (Value::Int(_) | Value::Float(_) | Value::Bool(_), _) if expected.starts_with("a string") => {
            node.scalar_text().map(|text| format!("put it in quotes: \"{text}\""))
        }
        (Value::String(_) | Value::Int(_) | Value::Float(_) | Value::Bool(_), _) if shape.takes_list() => {
            node.scalar_text().map(|text| format!("write it as a list: `- {text}`"))
        }
        (Value::Mapping(mapping), _) if mapping.len() == 1 && expected.starts_with("a string") => {
            let entry = mapping.iter().next();
            entry.and_then(|(name, entry)| {
                let value = entry.node.scalar_text()?;
                Some(format!(
                    "a colon followed by a space makes a mapping; for text write \"{name}: {value}\""
                ))
            })
        }
        (Value::Mapping(_), _) if shape.takes_list() => Some("begin each of its lines with `- `".to_owned()),
        (Value::Sequence(_), _) if expected == "a mapping" => {
            Some("write `name:` where now is `- name:`, and indent what belongs to it deeper".to_owned())
        }
        _ => None,
    };
    let hint = hint.unwrap_or_else(|| match expected.as_str() {
        "a mapping" => "write `key: value` on lines of their own, indented below it".to_owned(),
        "a list" => "begin each of its lines with `- `".to_owned(),
        "a string" | "a string or a number" => {
            "write text, in quotes if it has special characters".to_owned()
        }
        _ => format!("write {expected}"),
    });
    let found = match node.value {
        Value::Null => "it is empty".to_owned(),
        _ => format!("it is {}", node.kind()),
    };
    report
        .error(Complaint::WrongType, place, key, format!("{} must be {expected}, but {found}", subject(key)))
        .hint(hint);
    node.value = Value::Invalid;
}

fn boolean(report: &mut Report, node: &mut Node, key: &Key<'_>, place: Span) {
    let Value::String(text) = &node.value else { return };
    let (value, modern) = match text.to_ascii_lowercase().as_str() {
        "true" => (true, true),
        "false" => (false, true),
        "y" | "yes" | "on" => (true, false),
        "n" | "no" | "off" => (false, false),
        _ => {
            let message = format!("{} must be `true` or `false`, not `{text}`", subject(key));
            report.error(Complaint::InvalidValue, place, key, message).hint("write one of the two");
            node.value = Value::Invalid;
            return;
        }
    };
    if !modern {
        let message = format!("`{text}` is no boolean in YAML 1.2; it is taken as `{value}`");
        report.warn(Complaint::Obsolete, place, key, message).hint(format!("write `{value}`"));
    }
    node.value = Value::Bool(value);
}

fn integer(report: &mut Report, node: &mut Node, key: &Key<'_>, place: Span) {
    match &node.value {
        Value::String(text) => match text.parse::<i64>() {
            Ok(number) => node.value = Value::Int(number),
            Err(_) => {
                let message = format!("{} must be a whole number, not `{text}`", subject(key));
                report.error(Complaint::InvalidValue, place, key, message).hint("write digits, such as `2`");
                node.value = Value::Invalid;
            }
        },
        Value::Float(value) if value.abs() < 1e15 => {
            #[expect(clippy::cast_possible_truncation, reason = "whole, and small enough")]
            let number = *value as i64;
            node.value = Value::Int(number);
        }
        Value::Float(value) => {
            let message = format!("`{value}` is too large for {}", subject(key));
            report.error(Complaint::InvalidValue, place, key, message).hint("write a smaller one");
            node.value = Value::Invalid;
        }
        _ => {}
    }
}

fn number(report: &mut Report, node: &mut Node, key: &Key<'_>, place: Span) {
    let Value::String(text) = &node.value else { return };
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => node.value = Value::Float(number),
        _ => {
            let message = format!("{} must be a number, not `{text}`", subject(key));
            report.error(Complaint::InvalidValue, place, key, message).hint("write for example `2` or `0.5`");
            node.value = Value::Invalid;
        }
    }
}

fn word(report: &mut Report, node: &mut Node, words: &[&'static str], key: &Key<'_>, place: Span) {
    let Some(text) = node.as_str() else { return };
    if words.contains(&text) {
        return;
    }
    let message = format!("{} must be {}, not `{text}`", subject(key), one_of(words));
    let part = || words.iter().find(|word| text.len() > 2 && word.contains(text));
    let hint = did_you_mean(text, words.iter().copied())
        .or_else(|| part().map(|word| format!("did you mean `{word}`?")))
        .unwrap_or_else(|| "write one of these".to_owned());
    report.error(Complaint::InvalidValue, place, key, message).hint(hint);
    node.value = Value::Invalid;
}

fn named(report: &mut Report, node: &mut Node, what: &str, inner: &Shape, key: &Key<'_>) {
    let Value::Mapping(mapping) = &mut node.value else { return };
    mapping.retain(|name, entry| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.is_empty() && name.chars().all(legal) {
            return true;
        }
        let message = format!("`{name}` is not a name for {what}");
        report
            .error(Complaint::InvalidValue, entry.key, &key.field(name), message)
            .hint("use letters, digits, `.`, `_` and `-`");
        false
    });
    for (name, entry) in mapping.iter_mut() {
        let place = entry.place();
        check(report, &mut entry.node, inner, &key.field(name), place);
    }
}

fn fields(report: &mut Report, node: &mut Node, object: &Object, key: &Key<'_>) {
    let Value::Mapping(mapping) = &mut node.value else { return };
    mapping.retain(|name, entry| {
        if object.keys.iter().any(|(known, _)| *known == name) {
            return true;
        }
        if name == "x-wharf" {
            let message = format!("`x-wharf` has no meaning in {}", object.what);
            report
                .error(Complaint::UnknownKey, entry.key, &key.field(name), message)
                .hint("it belongs into a service, into a network, or to the top level of a file");
        } else if name.starts_with("x-") {
            // Extensions mean nothing to the loader, and are kept for those who print them.
            return true;
        } else {
            let message = format!("unknown key `{name}` in {}", object.what);
            let hint = if report.is_overflowing() { None } else { shapes::hint_for_unknown(name, object) };
            let hint =
                hint.unwrap_or_else(|| format!("remove it; what is a note to yourself is called `x-{name}`"));
            report.error(Complaint::UnknownKey, entry.key, &key.field(name), message).hint(hint);
        }
        false
    });
    for (name, entry) in mapping.iter_mut() {
        let place = entry.place();
        if let Some((_, shape)) = object.keys.iter().find(|(known, _)| *known == name) {
            check(report, &mut entry.node, shape, &key.field(name), place);
        }
    }
}

/// A job has the keys of services but those that are about running on and on, and says when it runs.
fn job(report: &mut Report, node: &mut Node, object: &Object, key: &Key<'_>) {
    let Value::Mapping(mapping) = &mut node.value else { return };
    let triggers = mapping.remove("triggers");
    for name in shapes::NOT_IN_JOBS {
        if let Some(entry) = mapping.remove(name) {
            let message = format!("`{name}` has no meaning in a job, which runs once and ends");
            let hint = "remove it, or make it a service under `services`";
            report.error(Complaint::UnknownKey, entry.key, &key.field(name), message).hint(hint);
        }
    }
    fields(report, node, object, key);
    if let (Some(mut entry), Value::Mapping(mapping)) = (triggers, &mut node.value) {
        let place = entry.place();
        check(report, &mut entry.node, &Shape::Map(&shapes::TRIGGERS), &key.field("triggers"), place);
        mapping.insert("triggers", entry.key, entry.node);
    }
}

/// Removes the extensions (`x-…`) that have no shape, wherever keys are known.
pub(crate) fn forget_extensions(node: &mut Node, shape: &Shape) {
    match (shape, &mut node.value) {
        (Shape::OrNull(inner), _) => forget_extensions(node, inner),
        (Shape::Either(shapes), _) => {
            if let Some(shape) = shapes.iter().find(|shape| shape.accepts(node)) {
                forget_extensions(node, shape);
            }
        }
        (Shape::List(inner), Value::Sequence(items)) => {
            for item in items {
                forget_extensions(item, inner);
            }
        }
        (Shape::MapOf(inner) | Shape::Named(_, inner), Value::Mapping(mapping)) => {
            for (_, entry) in mapping.iter_mut() {
                forget_extensions(&mut entry.node, inner);
            }
        }
        (Shape::Map(object) | Shape::Job(object), Value::Mapping(mapping)) => {
            let shape = |name: &str| object.keys.iter().find(|(known, _)| *known == name);
            mapping.retain(|name, _| !name.starts_with("x-") || shape(name).is_some());
            for (name, entry) in mapping.iter_mut() {
                if let Some((_, shape)) = shape(name) {
                    forget_extensions(&mut entry.node, shape);
                }
            }
        }
        _ => {}
    }
}

/// Complains about keys that must be there, in a tree that has been checked and merged: what one file leaves out another
/// may give.
pub(crate) fn require(report: &mut Report, node: &mut Node, shape: &Shape, key: &Key<'_>, place: Span) {
    match (shape, &mut node.value) {
        (Shape::OrNull(inner), _) => require(report, node, inner, key, place),
        (Shape::Either(shapes), _) => {
            if let Some(shape) = shapes.iter().find(|shape| shape.accepts(node)) {
                require(report, node, shape, key, place);
            }
        }
        (Shape::List(inner), Value::Sequence(items)) => {
            for (index, item) in items.iter_mut().enumerate() {
                let span = item.span;
                require(report, item, inner, &key.item(index), span);
            }
        }
        (Shape::MapOf(inner) | Shape::Named(_, inner), Value::Mapping(mapping)) => {
            for (name, entry) in mapping.iter_mut() {
                let place = entry.place();
                require(report, &mut entry.node, inner, &key.field(name), place);
            }
        }
        (Shape::Map(object) | Shape::Job(object), Value::Mapping(mapping)) => {
            for (name, entry) in mapping.iter_mut() {
                if let Some((_, shape)) = object.keys.iter().find(|(known, _)| *known == name) {
                    let place = entry.place();
                    require(report, &mut entry.node, shape, &key.field(name), place);
                }
            }
            if let Some(missing) = object.required.iter().find(|required| !mapping.contains(required)) {
                let message = format!("{} needs `{missing}`", object.what);
                report.error(Complaint::MissingKey, place, key, message).hint(format!("add `{missing}: …`"));
                node.value = Value::Invalid;
            }
        }
        _ => {}
    }
}
