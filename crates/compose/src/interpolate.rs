//! Substitutes variables in text and in the scalars of a tree.
//!
//! `$V ${V} ${V:-d} ${V-d} ${V:?m} ${V?m} ${V:+r} ${V+r}`, each of `d`, `m` and `r` with variables of its own; `$$` is
//! a dollar sign. A word that is not used is not looked at, so a required variable in it is not required. The values of
//! variables are never substituted again.

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Node, Value};

/// Answers the value of a variable.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Deeper nesting of `${…}` than anybody writes.
const DEEPEST: usize = 30;
/// Text may not grow beyond this by substitution.
const LONGEST: usize = 16 << 20;

/// Text with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Substituted {
    pub(crate) text: String,
    /// Variables that have no value and no default, each once.
    pub(crate) unset: Vec<String>,
}

/// Why text cannot be substituted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("`{template}` is not a variable")]
    Malformed { template: String, why: &'static str },
    #[error("the variable `{name}` is required{}", if reason.is_empty() { " but has no value".to_owned() } else { format!(": {reason}") })]
    Required { name: String, reason: String, empty: bool },
    #[error("variables are nested deeper than {DEEPEST} levels")]
    TooDeep,
    #[error("the text grows beyond {LONGEST} bytes")]
    TooLong,
}
impl Problem {
    /// The text to point at.
    fn needle(&self) -> Option<String> {
        match self {
            Self::Malformed { template, .. } => Some(template.clone()),
            Self::Required { name, .. } => Some(format!("${{{name}")),
            Self::TooDeep | Self::TooLong => None,
        }
    }
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Malformed { why, .. } => format!("{why}; write `$$` for a dollar sign"),
            Self::Required { name, empty: false, .. } => {
                format!("set `{name}` in the environment or in `.env`")
            }
            Self::Required { name, empty: true, .. } => {
                format!("`{name}` is set, but empty; give it a value")
            }
            Self::TooDeep => "use fewer variables within defaults of others".to_owned(),
            Self::TooLong => "use shorter values".to_owned(),
        }
    }
}

pub(crate) fn substitute(text: &str, lookup: Lookup<'_>) -> Result<Substituted, Problem> {
    let mut result = Substituted::default();
    result.text = expand(text, lookup, &mut result.unset, 0)?;
    Ok(result)
}

fn expand(text: &str, lookup: Lookup<'_>, unset: &mut Vec<String>, depth: usize) -> Result<String, Problem> {
    if depth > DEEPEST {
        return Err(Problem::TooDeep);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(index) = rest.find('$') {
        out.push_str(&rest[..index]);
        let tail = &rest[index + 1..];
        rest = match tail.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                &tail[1..]
            }
            Some(b'{') => {
                let expression = braced(tail)?;
                out.push_str(&evaluate(&expression, lookup, unset, depth)?);
                &tail[expression.length..]
            }
            Some(byte) if byte.is_ascii_alphabetic() || *byte == b'_' => {
                let name = leading_name(tail);
                out.push_str(&value_or_blank(name, lookup, unset));
                &tail[name.len()..]
            }
            _ => {
                out.push('$');
                tail
            }
        };
        if out.len() > LONGEST {
            return Err(Problem::TooLong);
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands between braces.
struct Expression<'a> {
    name: &'a str,
    operator: &'a str,
    word: &'a str,
    /// With both braces.
    length: usize,
}

/// Reads `{…}`; `text` begins with the brace.
fn braced(text: &str) -> Result<Expression<'_>, Problem> {
    let malformed = |why| {
        let shown: String = text.chars().take(40).take_while(|c| *c != '\n').collect();
        let shown = match shown.find('}') {
            Some(end) => shown[..=end].to_owned(),
            None => shown,
        };
        Problem::Malformed { template: format!("${shown}"), why }
    };
    let inner = &text[1..];
    let name = leading_name(inner);
    let after = &inner[name.len()..];
    if name.is_empty() {
        return Err(malformed("a name starts with a letter or `_`"));
    }
    if after.starts_with('}') {
        return Ok(Expression { name, operator: "", word: "", length: name.len() + 2 });
    }
    let operators = [":-", ":?", ":+", "-", "?", "+"];
    let Some(operator) = operators.into_iter().find(|operator| after.starts_with(operator)) else {
        return Err(malformed(if after.is_empty() {
            "the closing `}` is missing"
        } else {
            "after the name come `}` or one of `:-` `-` `:?` `?` `:+` `+`"
        }));
    };
    let body = &after[operator.len()..];
    let Some(end) = closing_brace(body) else {
        return Err(malformed("the closing `}` is missing"));
    };
    Ok(Expression { name, operator, word: &body[..end], length: 1 + name.len() + operator.len() + end + 1 })
}

/// Where the brace that closes a word is. Braces inside it come in pairs, such as those of JSON; where they do not, only
/// those of variables count.
fn closing_brace(body: &str) -> Option<usize> {
    paired_brace(body, |_| true).or_else(|| paired_brace(body, |before| before == Some(b'$')))
}

fn paired_brace(body: &str, opens: impl Fn(Option<u8>) -> bool) -> Option<usize> {
    let (mut open, mut before) = (0_usize, None);
    for (index, byte) in body.bytes().enumerate() {
        match byte {
            b'{' if opens(before) => open += 1,
            b'}' if open == 0 => return Some(index),
            b'}' => open -= 1,
            _ => {}
        }
        before = Some(byte);
    }
    None
}

fn evaluate(
    expression: &Expression<'_>,
    lookup: Lookup<'_>,
    unset: &mut Vec<String>,
    depth: usize,
) -> Result<String, Problem> {
    let Expression { name, operator, word, .. } = *expression;
    if operator.is_empty() {
        return Ok(value_or_blank(name, lookup, unset));
    }
    let value = lookup(name);
    let empty = value.as_deref() == Some("");
    // With a colon, an empty value counts as none.
    let given = value.filter(|value| !(operator.starts_with(':') && value.is_empty()));
    match (operator.trim_start_matches(':'), given) {
        ("+", Some(_)) => expand(word, lookup, unset, depth + 1),
        ("+", None) => Ok(String::new()),
        (_, Some(value)) => Ok(value),
        ("-", None) => expand(word, lookup, unset, depth + 1),
        (_, None) => {
            let reason = expand(word, lookup, unset, depth + 1)?;
            Err(Problem::Required { name: name.to_owned(), reason, empty })
        }
    }
}

fn value_or_blank(name: &str, lookup: Lookup<'_>, unset: &mut Vec<String>) -> String {
    lookup(name).unwrap_or_else(|| {
        if !unset.iter().any(|other| other == name) {
            unset.push(name.to_owned());
        }
        String::new()
    })
}

fn leading_name(text: &str) -> &str {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts {
        return "";
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// Substitutes every string of a tree; complains with the place of the variable.
pub(crate) fn interpolate(report: &mut Report, node: &mut Node, key: &Key<'_>, lookup: Lookup<'_>) {
    let span = node.span;
    match &mut node.value {
        Value::String(text) => {
            if !text.contains('$') {
                return;
            }
            match substitute(text, lookup) {
                Ok(done) => {
                    for name in &done.unset {
                        let needles = [format!("${{{name}"), format!("${name}")];
                        let place = locate(report, span, &needles);
                        report.warn(
                            Complaint::UnsetVariable,
                            place,
                            key,
                            format!("The \"{name}\" variable is not set. Defaulting to a blank string."),
                        );
                    }
                    if !report.may_substitute(done.text.len()) {
                        report
                            .error(
                                Complaint::Interpolation,
                                span,
                                key,
                                "variables make more text than the loader accepts",
                            )
                            .hint("use shorter values");
                        node.value = Value::Invalid;
                        return;
                    }
                    *text = done.text;
                }
                Err(problem) => {
                    let needles: Vec<String> = problem.needle().into_iter().collect();
                    let place = locate(report, span, &needles);
                    report
                        .error(Complaint::Interpolation, place, key, problem.to_string())
                        .hint(problem.hint());
                    node.value = Value::Invalid;
                }
            }
        }
        Value::Sequence(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                interpolate(report, item, &key.item(index), lookup);
            }
        }
        Value::Mapping(mapping) => {
            for (name, entry) in mapping.iter_mut() {
                interpolate(report, &mut entry.node, &key.field(name), lookup);
            }
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Invalid => {}
    }
}

/// Where in the source of a scalar a piece of text stands; the scalar itself where it cannot be found.
fn locate(report: &mut Report, span: Span, needles: &[String]) -> Span {
    const LINES: u32 = 100;
    if !report.may_search() {
        return span;
    }
    let several = span.length == u32::MAX;
    for line in span.line..=span.line.saturating_add(if several { LINES } else { 0 }) {
        let skipped = if line == span.line { span.column.saturating_sub(1) } else { 0 };
        let length = if several { u32::MAX } else { span.length };
        let text = report.part(span.file, line, skipped, length);
        for needle in needles {
            if let Some(found) = text.find(needle.as_str()) {
                let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                return Span {
                    file: span.file,
                    line,
                    column: skipped + small(text[..found].chars().count()) + 1,
                    length: small(needle.chars().count()),
                };
            }
        }
    }
    span
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("$SET".to_owned()),
            _ => None,
        }
    }
    fn text(template: &str) -> String {
        match substitute(template, &lookup) {
            Ok(done) => done.text,
            Err(problem) => format!("error: {problem}"),
        }
    }

    #[test]
    fn every_operator_does_what_the_specification_says() {
        for (template, expected) in [
            ("$SET", "value"),
            ("${SET}", "value"),
            ("a$SET-b", "avalue-b"),
            ("$UNSET", ""),
            ("${UNSET:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${UNSET-d}", "d"),
            ("${SET:-d}", "value"),
            ("${SET:+r}", "r"),
            ("${EMPTY:+r}", ""),
            ("${EMPTY+r}", "r"),
            ("${UNSET+r}", ""),
            ("${SET:?m}", "value"),
            ("${EMPTY?m}", ""),
            ("${EMPTY:?m}", "error: the variable `EMPTY` is required: m"),
            ("${UNSET?no $SET}", "error: the variable `UNSET` is required: no value"),
            ("${UNSET:?}", "error: the variable `UNSET` is required but has no value"),
            ("${UNSET:-${OTHER:-$SET}}", "value"),
            ("${SET:-${UNSET:?m}}", "value"),
            ("$$SET", "$SET"),
            ("$${SET}", "${SET}"),
            ("$1 $ a$", "$1 $ a$"),
            ("$DOLLAR", "$SET"),
            ("${SET", "error: `${SET` is not a variable"),
            ("${}", "error: `${}` is not a variable"),
            ("${1A}", "error: `${1A}` is not a variable"),
            ("${SET!x}", "error: `${SET!x}` is not a variable"),
            ("${UNSET:-a:b/c?d}", "a:b/c?d"),
        ] {
            assert_eq!(text(template), expected, "{template}");
        }
    }

    #[test]
    fn unset_variables_are_named_once() {
        let done = substitute("$A ${B} $A ${C:-x} ${D:+$E}", &lookup).unwrap();
        assert_eq!(done.unset, ["A", "B"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(template in any::<String>()) {
            let _ = substitute(&template, &lookup);
        }
        #[test]
        fn template_like_text_does_not_panic(template in "[$\\{\\}:?+A-C -]{0,40}") {
            let _ = substitute(&template, &lookup);
        }
        #[test]
        fn text_without_dollars_is_kept(template in "[^$]{0,60}") {
            prop_assert_eq!(text(&template), template);
        }
        #[test]
        fn doubled_dollars_give_any_text_back(original in any::<String>()) {
            prop_assert_eq!(text(&original.replace('$', "$$")), original);
        }
        #[test]
        fn a_default_is_used_exactly_without_a_value(word in "[a-z0-9/:. ]{0,20}", value in proptest::option::of("[a-z$]{0,8}")) {
            let lookup = |_: &str| value.clone();
            let colon = substitute(&format!("${{V:-{word}}}"), &lookup).unwrap().text;
            let plain = substitute(&format!("${{V-{word}}}"), &lookup).unwrap().text;
            prop_assert_eq!(colon, value.clone().filter(|v| !v.is_empty()).unwrap_or(word.clone()));
            prop_assert_eq!(plain, value.clone().unwrap_or(word));
        }
    }
}
