//! Writes a printed tree as YAML, so that every reader gets back what was printed.
//!
//! Block style, two spaces per level, lists indented under their keys; text that could be taken for something else
//! is quoted, text of several lines is a literal block.

use super::print::Printed;
use crate::node::{Value, float_text};
use crate::yaml::plain;

/// The whole document, with a newline at its end.
pub(super) fn text(printed: &Printed<'_>) -> String {
    let mut out = String::new();
    match printed {
        Printed::Map(entries) if !entries.is_empty() => map(&mut out, entries, 0, true),
        Printed::List(items) if !items.is_empty() => list(&mut out, items, 0),
        _ => {
            scalar(&mut out, printed, 0);
            out.push('\n');
        }
    }
    out
}

type Entries<'a> = [(std::borrow::Cow<'a, str>, Printed<'a>)];

fn indent(out: &mut String, level: usize) {
    for _ in 0..level {
        out.push_str("  ");
    }
}

/// `fresh` says whether the first key stands on a line of its own; after `- ` it does not.
fn map(out: &mut String, entries: &Entries<'_>, level: usize, fresh: bool) {
    for (index, (key, value)) in entries.iter().enumerate() {
        if fresh || index > 0 {
            indent(out, level);
        }
        string(out, key, None);
        out.push(':');
        match value {
            Printed::Map(inner) if !inner.is_empty() => {
                out.push('\n');
                map(out, inner, level + 1, true);
            }
            Printed::List(items) if !items.is_empty() => {
                out.push('\n');
                list(out, items, level + 1);
            }
            _ => {
                out.push(' ');
                scalar(out, value, level + 1);
                out.push('\n');
            }
        }
    }
}

fn list(out: &mut String, items: &[Printed<'_>], level: usize) {
    for item in items {
        indent(out, level);
        out.push_str("- ");
        match item {
            Printed::Map(inner) if !inner.is_empty() => map(out, inner, level + 1, false),
            Printed::List(inner) if !inner.is_empty() => {
                out.pop();
                out.push('\n');
                list(out, inner, level + 1);
            }
            _ => {
                scalar(out, item, level + 1);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, printed: &Printed<'_>, level: usize) {
    match printed {
        Printed::Null => out.push_str("null"),
        Printed::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Printed::Int(number) => out.push_str(&number.to_string()),
        Printed::Ratio(number) => out.push_str(&number.to_string()),
        Printed::Float(number) => out.push_str(&match *number {
            number if number.is_nan() => ".nan".to_owned(),
            number if number.is_infinite() => if number > 0.0 { ".inf" } else { "-.inf" }.to_owned(),
            // Read back, it is a float again.
            number if number.fract() == 0.0 && number.abs() < 1e21 => format!("{number:.1}"),
            number => float_text(number),
        }),
        Printed::Text(text) => string(out, text, Some(level)),
        Printed::List(_) => out.push_str("[]"),
        Printed::Map(_) => out.push_str("{}"),
    }
}

/// `block` is the level of a literal block, where one may stand.
fn string(out: &mut String, text: &str, block: Option<usize>) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    match block {
        Some(level) if is_block(text) => literal(out, text, level),
        _ if text.chars().all(|c| !c.is_control() && c != '\u{feff}')
            && !text.contains(['\u{2028}', '\u{2029}', '\u{85}']) =>
        {
            // Text that reads as another kind is in double quotes, as the reference writes it.
            if !matches!(plain(text), Value::String(_)) || is_old_word(text) {
                double_quoted(out, text);
            } else {
                out.push('\'');
                out.push_str(&text.replace('\'', "''"));
                out.push('\'');
            }
        }
        _ => double_quoted(out, text),
    }
}

fn double_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Whether text can stand as it is and reads as the same text, by YAML 1.1 as well as 1.2.
fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let indicator = matches!(
        first,
        '-' | '?'
            | ':'
            | ','
            | '['
            | ']'
            | '{'
            | '}'
            | '#'
            | '&'
            | '*'
            | '!'
            | '|'
            | '>'
            | '\''
            | '"'
            | '%'
            | '@'
            | '`'
    );
    let starts_well = !indicator
        || (matches!(first, '-' | '?' | ':')
            && text[1..]
                .starts_with(|c: char| !c.is_whitespace() && !matches!(c, ',' | '[' | ']' | '{' | '}')));
    starts_well
        && matches!(plain(text), Value::String(_))
        && !is_old_word(text)
        && !text.starts_with([' ', '\t'])
        && !text.ends_with([' ', '\t', ':'])
        && text != "---"
        && text != "..."
        && !text.contains(": ")
        && !text.contains(" #")
        && text
            .chars()
            .all(|c| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}' | '\u{feff}'))
}

/// What readers of YAML 1.1 take for a boolean, a number to base 60 or a date.
fn is_old_word(text: &str) -> bool {
    let words = ["y", "n", "yes", "no", "on", "off"];
    let base_60 = || {
        let mut parts = text.trim_start_matches(['-', '+']).split(':');
        let number = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_digit() || matches!(c, '_' | '.'))
        };
        text.contains(':') && parts.all(number)
    };
    let date = || {
        let bytes = text.as_bytes();
        bytes.len() >= 8 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-'
    };
    let merge = text == "<<" || text == "=";
    merge || words.iter().any(|word| word.eq_ignore_ascii_case(text)) || base_60() || date()
}

/// Text of several lines that a literal block keeps as it is.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| {
            c == '\n'
                || c == '\t'
                || (!c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{85}' | '\u{feff}'))
        })
}

fn literal(out: &mut String, text: &str, level: usize) {
    out.push('|');
    let body = text.strip_suffix('\n');
    match body {
        None => out.push('-'),
        Some(body) if body.ends_with('\n') || body.is_empty() => out.push('+'),
        Some(_) => {}
    }
    for line in body.unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            indent(out, level);
            out.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::Report;
    use crate::node::Node;

    fn read(text: &str) -> Node {
        let mut report = Report::new(false);
        let file = report.add_source(Path::new("compose.yaml"), text.to_owned());
        let documents = crate::yaml::parse(&mut report, file);
        documents.and_then(|mut documents| documents.pop()).unwrap_or_else(|| {
            panic!("{text}\n{:?}", report.finish().iter().map(ToString::to_string).collect::<Vec<_>>())
        })
    }

    fn same(printed: &Printed<'_>, node: &Node) -> bool {
        match (printed, &node.value) {
            (Printed::Null, Value::Null) => true,
            (Printed::Bool(a), Value::Bool(b)) => a == b,
            (Printed::Int(a), Value::Int(b)) => a == b,
            (Printed::Float(a), Value::Float(b)) => a == b,
            (Printed::Text(a), Value::String(b)) => a == b,
            (Printed::List(a), Value::Sequence(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Printed::Map(a), Value::Mapping(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    fn printed() -> impl Strategy<Value = Printed<'static>> {
        const WORDS: [&str; 15] = [
            "yes",
            "1:30",
            "2001-01-01",
            "a: b",
            "- x",
            "# c",
            "l\nm\n",
            "  x",
            "~",
            "",
            "0x1",
            "é",
            "a\n\n",
            "\n",
            "|",
        ];
        let string = prop_oneof![any::<String>(), prop::sample::select(&WORDS[..]).prop_map(str::to_owned)];
        let leaf = prop_oneof![
            Just(Printed::Null),
            any::<bool>().prop_map(Printed::Bool),
            any::<i64>().prop_map(Printed::Int),
            (-1e12..1e12).prop_map(Printed::Float),
            string.clone().prop_map(|text| Printed::Text(Cow::Owned(text))),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Printed::List),
                prop::collection::btree_map(string.clone(), inner, 0..5)
                    .prop_map(|map| Printed::Map(map.into_iter().map(|(k, v)| (Cow::Owned(k), v)).collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(printed in printed()) {
            let written = text(&printed);
            let node = read(&written);
            prop_assert!(same(&printed, &node), "{written}\n{node:?}");
        }
    }
}
