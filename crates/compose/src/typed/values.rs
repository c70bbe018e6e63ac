//! Reads values out of entries whose kind has been checked.
//!
//! What has a wrong kind was complained about before and reads as nothing.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use wharf_model::Millis;

use crate::diagnostic::{Complaint, Key, Report};
use crate::node::{Entry, Mapping, Node, Value};
use crate::quantity;
use crate::words;

pub(super) fn text(entry: &Entry) -> Option<String> {
    entry.node.as_str().map(str::to_owned)
}

/// A text that must not be empty.
pub(super) fn full_text(report: &mut Report, entry: &Entry, key: &Key<'_>) -> Option<String> {
    let text = text(entry)?;
    if text.trim().is_empty() {
        let message = format!("`{}` is empty", key.name());
        report
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("give it a value, or remove it");
        return None;
    }
    Some(text)
}

pub(super) fn flag(entry: &Entry) -> Option<bool> {
    match entry.node.value {
        Value::Bool(value) => Some(value),
        _ => None,
    }
}

pub(super) fn strings(entry: &Entry) -> Vec<String> {
    let items = entry.node.as_sequence().unwrap_or_default();
    items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

pub(super) fn text_map(entry: &Entry) -> BTreeMap<String, String> {
    let Some(mapping) = entry.node.as_mapping() else { return BTreeMap::new() };
    mapping.iter().filter_map(|(name, entry)| Some((name.to_owned(), entry.node.scalar_text()?))).collect()
}

/// `KEY: value`, or a list of `KEY=value`; a bare key has no value.
pub(super) fn pairs(entry: &Entry) -> BTreeMap<String, String> {
    let listed = strings(entry).into_iter().map(|text| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text, String::new()),
    });
    listed.chain(text_map(entry)).collect()
}

pub(super) fn duration(entry: &Entry) -> Option<Millis> {
    entry.node.as_str().and_then(|text| quantity::duration(text).ok())
}

/// A whole number within bounds.
pub(super) fn whole<T: TryFrom<i64>>(
    report: &mut Report,
    entry: &Entry,
    key: &Key<'_>,
    bounds: RangeInclusive<i64>,
) -> Option<T> {
    let number = match &entry.node.value {
        Value::Int(number) => *number,
        #[expect(clippy::cast_possible_truncation, reason = "bounds are checked below, and floats saturate")]
        Value::Float(value) if value.fract() == 0.0 => *value as i64,
        Value::String(text) if text.trim().parse::<i64>().is_ok() => text.trim().parse().ok()?,
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Invalid => return None,
        Value::Bool(_) | Value::Float(_) | Value::String(_) => {
            let text = entry.node.scalar_text().unwrap_or_default();
            let message = format!("`{}` must be a whole number, not `{text}`", key.name());
            report
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write digits, such as `2`");
            return None;
        }
    };
    if !bounds.contains(&number) {
        let message = match (*bounds.start(), *bounds.end()) {
            (from, i64::MAX) => format!("`{}` must be at least {from}, not {number}", key.name()),
            (from, to) => format!("`{}` must be {from} to {to}, not {number}", key.name()),
        };
        let nearest = number.clamp(*bounds.start(), *bounds.end());
        report
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint(format!("write for example `{nearest}`"));
        return None;
    }
    T::try_from(number).ok()
}

/// Processor time.
pub(super) fn number(entry: &Entry) -> Option<f64> {
    match entry.node.value {
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 processors")]
        Value::Int(number) => Some(number as f64),
        Value::Float(number) => Some(number),
        _ => None,
    }
}

/// A number of bytes, or −1 for no limit.
pub(super) fn size_or_unlimited(entry: &Entry) -> Option<i64> {
    let text = entry.node.scalar_text()?;
    if text == "-1" {
        return Some(-1);
    }
    quantity::bytes(&text).ok().and_then(|bytes| i64::try_from(bytes).ok())
}

/// A number of bytes.
pub(super) fn size(report: &mut Report, entry: &Entry, key: &Key<'_>) -> Option<u64> {
    let bytes = size_or_unlimited(entry)?;
    if let Ok(bytes) = u64::try_from(bytes) {
        return Some(bytes);
    }
    let message = format!("`{}` cannot be negative", key.name());
    report.error(Complaint::InvalidValue, entry.place(), key, message).hint("leave it out for no limit");
    None
}

/// Microseconds, or a duration with a unit.
pub(super) fn microseconds(report: &mut Report, entry: &Entry, key: &Key<'_>) -> Option<i64> {
    match &entry.node.value {
        Value::String(text) if text.parse::<i64>().is_err() => match quantity::nanoseconds(text) {
            Ok(length) => i64::try_from(length / 1000).ok(),
            Err(fault) => {
                fault
                    .tell(report, entry.place(), key)
                    .hint("a number without a unit means microseconds here");
                None
            }
        },
        _ => whole(report, entry, key, -1..=i64::MAX),
    }
}

/// A command line, as a text or a list.
pub(super) fn command(report: &mut Report, entry: &Entry, key: &Key<'_>) -> Option<Vec<String>> {
    match &entry.node.value {
        Value::Sequence(_) => Some(strings(entry)),
        Value::String(text) => match words::split(text) {
            Ok(words) => {
                if let Some(operator) = words::shell_operator(&words) {
                    let message = format!(
                        "`{operator}` reaches the program as an argument: no shell reads `{}`",
                        key.name()
                    );
                    report
                        .warn(Complaint::Note, entry.place(), key, message)
                        .hint("for a shell write `[\"sh\", \"-c\", \"…\"]`");
                }
                Some(words)
            }
            Err(problem) => {
                let message = format!("`{}` is not a command line: {problem}", key.name());
                report
                    .error(Complaint::InvalidValue, entry.place(), key, message)
                    .hint("close every quote, or write it as a list: `[\"program\", \"argument\"]`");
                None
            }
        },
        _ => None,
    }
}

/// A text that parses; says what it should have been.
pub(super) fn parsed<T: FromStr>(
    report: &mut Report,
    entry: &Entry,
    key: &Key<'_>,
    what: &str,
    example: &str,
) -> Option<T> {
    let text = entry.node.as_str()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            let message = format!("`{text}` is not {what}");
            report
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint(format!("write for example `{example}`"));
            None
        }
    }
}

/// A name; its own error says what is allowed.
pub(super) fn named<T: FromStr<Err: Display>>(
    report: &mut Report,
    text: &str,
    span: crate::diagnostic::Span,
    key: &Key<'_>,
) -> Option<T> {
    match text.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            report.error(Complaint::InvalidValue, span, key, error.to_string()).hint("give it another name");
            None
        }
    }
}

/// Permission bits: a number, or text in octal.
pub(super) fn permissions(report: &mut Report, entry: &Entry, key: &Key<'_>) -> Option<u32> {
    let bits = match &entry.node.value {
        Value::Int(number) => u32::try_from(*number).ok(),
        Value::String(text) => {
            let digits = text.strip_prefix("0o").unwrap_or(text);
            u32::from_str_radix(digits, 8).ok()
        }
        _ => None,
    };
    match bits {
        Some(bits) if bits <= 0o7777 => Some(bits),
        _ => {
            let text = entry.node.scalar_text().unwrap_or_default();
            let message = format!("`{text}` is not a file mode");
            report
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write it in octal: `0440`");
            None
        }
    }
}

/// Each entry of a mapping that is one.
pub(super) fn entries(entry: &Entry) -> impl Iterator<Item = (&str, &Entry)> {
    entry.node.as_mapping().into_iter().flat_map(Mapping::iter)
}

/// Each item of a list that is a mapping, with its position.
pub(super) fn mappings(entry: &Entry) -> impl Iterator<Item = (usize, &Node, &Mapping)> {
    let items = entry.node.as_sequence().unwrap_or_default();
    items.iter().enumerate().filter_map(|(index, item)| Some((index, item, item.as_mapping()?)))
}
