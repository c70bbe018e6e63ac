//! Placeholders in a service's specification that each task has its own text for, as in Swarm: `{{.Node.Hostname}}`, `{{.Task.Slot}}`.
//!
//! - Braces that name none of `.Node`, `.Service` and `.Task` are no placeholder and stay as they are: programs have templates of their own,
//!   and the same file means the same on a laptop.
//! - Of Go's templates so much is known: a field, `index .Service.Labels "key"`, `join "-" …`, and braces in quotes: `{{"{{"}}`.
//! - A text that [`check`] takes can be filled in for every task.

use std::{borrow::Cow, collections::BTreeMap};

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// What a task's placeholders stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholders<'a> {
    /// `.Node.ID`
    pub node_id: Cow<'a, str>,
    /// `.Node.Hostname`: what the node is called in the cluster.
    pub node_name: Cow<'a, str>,
    /// `.Node.IP`: where other nodes reach it. Swarm has no such thing.
    pub node_ip: Cow<'a, str>,
    /// `.Node.Platform.Architecture`
    pub architecture: Cow<'a, str>,
    /// `.Node.Platform.OS`
    pub os: Cow<'a, str>,
    /// `.Service.ID`
    pub service_id: Cow<'a, str>,
    /// `.Service.Name`
    pub service_name: Cow<'a, str>,
    /// `.Service.Labels`
    pub labels: Cow<'a, BTreeMap<String, String>>,
    /// `.Task.ID`
    pub task_id: Cow<'a, str>,
    /// `.Task.Name`
    pub task_name: Cow<'a, str>,
    /// `.Task.Slot`: of a global service's task the node's identifier, as in Swarm.
    pub slot: Cow<'a, str>,
}

/// Why a text cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{action}`: {problem}")]
pub struct TemplateError {
    /// The placeholder, with its braces.
    pub action: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

/// What can be said of a placeholder whatever the task is.
const FIELDS: [&str; 11] = [
    ".Node.ID",
    ".Node.Hostname",
    ".Node.IP",
    ".Node.Platform.Architecture",
    ".Node.Platform.OS",
    ".Service.ID",
    ".Service.Name",
    ".Service.Labels",
    ".Task.ID",
    ".Task.Name",
    ".Task.Slot",
];

/// Whether a text has placeholders.
///
/// # Errors
/// If one of them stands for nothing.
pub fn check(text: &str) -> Result<bool, TemplateError> {
    let mut found = false;
    for part in parts(text) {
        match part? {
            Part::Text(_) => {}
            Part::Braces(_) | Part::Values(_) => found = true,
        }
    }
    Ok(found)
}

/// The text with its placeholders filled in.
///
/// # Errors
/// If one of them stands for nothing.
pub fn fill<'t>(text: &'t str, with: &Placeholders<'_>) -> Result<Cow<'t, str>, TemplateError> {
    if !text.contains(OPEN) {
        return Ok(Cow::Borrowed(text));
    }
    let mut filled = String::with_capacity(text.len() + 32);
    for part in parts(text) {
        match part? {
            Part::Text(text) | Part::Braces(text) => filled.push_str(text),
            Part::Values(Values { separator, values }) => {
                let values = values.iter().map(|value| value.of(with)).collect::<Vec<_>>();
                filled.push_str(&values.join(&separator));
            }
        }
    }
    Ok(Cow::Owned(filled))
}

/// A piece of a text.
enum Part<'t> {
    /// Stands for itself.
    Text(&'t str),
    /// Braces that were in quotes.
    Braces(&'t str),
    /// A placeholder.
    Values(Values),
}

/// What a placeholder stands for.
struct Values {
    separator: String,
    values: Vec<Value>,
}

/// One value in a placeholder.
enum Value {
    /// One of [`FIELDS`].
    Field(&'static str),
    /// A label of the service.
    Label(String),
    /// Written out.
    Literal(String),
}

impl Value {
    fn of<'a>(&'a self, with: &'a Placeholders<'_>) -> Cow<'a, str> {
        let text = match self {
            Self::Literal(text) => text,
            // Go prints nothing for a key that a map does not have.
            Self::Label(key) => with.labels.get(key).map_or("", String::as_str),
            Self::Field(field) => match *field {
                ".Node.ID" => &with.node_id,
                ".Node.Hostname" => &with.node_name,
                ".Node.IP" => &with.node_ip,
                ".Node.Platform.Architecture" => &with.architecture,
                ".Node.Platform.OS" => &with.os,
                ".Service.ID" => &with.service_id,
                ".Service.Name" => &with.service_name,
                ".Task.ID" => &with.task_id,
                ".Task.Name" => &with.task_name,
                ".Task.Slot" => &with.slot,
                _ => return Cow::Owned(as_go_prints(&with.labels)),
            },
        };
        Cow::Borrowed(text)
    }
}

/// A map as Go prints it, which is what people who log it expect.
fn as_go_prints(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{key}:{value}"));
    format!("map[{}]", pairs.collect::<Vec<_>>().join(" "))
}

/// The pieces of a text, in order. After an error there is nothing more.
fn parts(text: &str) -> impl Iterator<Item = Result<Part<'_>, TemplateError>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(start) = rest.find(OPEN) else { return Some(Ok(Part::Text(std::mem::take(&mut rest)))) };
        if start > 0 {
            let (before, after) = rest.split_at(start);
            rest = after;
            return Some(Ok(Part::Text(before)));
        }
        let Some(end) = end_of_action(rest) else {
            let open = std::mem::take(&mut rest);
            return Some(if names_ours(open) {
                Err(TemplateError {
                    action: open.chars().take(40).collect(),
                    problem: "it is not closed".to_owned(),
                    hint: "end it with `}}`".to_owned(),
                })
            } else {
                Ok(Part::Text(open))
            });
        };
        let (action, after) = rest.split_at(end);
        rest = after;
        Some(read_action(action))
    })
}

/// Where the braces that open a text are closed, quotes minded.
fn end_of_action(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut quote) = (OPEN.len(), None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), byte) if open == byte => quote = None,
            (None, byte @ (b'"' | b'`')) => quote = Some(byte),
            (None, b'}') if bytes[at..].starts_with(CLOSE.as_bytes()) => return Some(at + CLOSE.len()),
            (Some(_) | None, _) => {}
        }
        at += 1;
    }
    None
}

/// Whether it speaks of nodes, services or tasks outside quotes.
fn names_ours(action: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | ')');
    let bare = without_quoted(action);
    ["Node", "Service", "Task"].iter().any(|root| {
        let root = format!(".{root}");
        bare.match_indices(&root).any(|(at, _)| {
            let before = bare[..at].chars().next_back();
            let after = bare[at + root.len()..].chars().next();
            !before.is_some_and(word) && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

fn without_quoted(action: &str) -> String {
    let (mut bare, mut quote, mut escaped) = (String::new(), None, false);
    for c in action.chars() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None => bare.push(c),
        }
    }
    bare
}

/// What one pair of braces means.
fn read_action(action: &str) -> Result<Part<'_>, TemplateError> {
    let inner = action[OPEN.len()..action.len() - CLOSE.len()].trim();
    match inner {
        r#""{{""# | "`{{`" => return Ok(Part::Braces(OPEN)),
        r#""}}""# | "`}}`" => return Ok(Part::Braces(CLOSE)),
        _ => {}
    }
    if !names_ours(action) {
        return Ok(Part::Text(action));
    }
    read_values(inner).map(Part::Values).map_err(|(problem, hint)| TemplateError {
        action: action.to_owned(),
        problem,
        hint,
    })
}

type Complaint = (String, String);

fn read_values(inner: &str) -> Result<Values, Complaint> {
    let words = words(inner).ok_or_else(unknown_form)?;
    let one = |value| Values { separator: String::new(), values: vec![value] };
    match words.as_slice() {
        [Word::Bare(field)] => read_field(field).map(one),
        [Word::Bare("index"), Word::Bare(".Service.Labels"), Word::Quoted(key)] => {
            Ok(one(Value::Label(key.clone())))
        }
        [Word::Bare("join"), Word::Quoted(separator), values @ ..] if !values.is_empty() => {
            let values = values.iter().map(|word| match word {
                Word::Quoted(text) => Ok(Value::Literal(text.clone())),
                Word::Bare(field) => read_field(field),
            });
            Ok(Values { separator: separator.clone(), values: values.collect::<Result<_, _>>()? })
        }
        _ => Err(unknown_form()),
    }
}

fn unknown_form() -> Complaint {
    let hint = "write a field such as `{{.Task.Slot}}`, `{{index .Service.Labels \"key\"}}` or `{{join \"-\" .Service.Name .Task.Slot}}`";
    ("this form of a placeholder is not known".to_owned(), hint.to_owned())
}

fn read_field(field: &str) -> Result<Value, Complaint> {
    if let Some(known) = FIELDS.iter().find(|known| **known == field) {
        return Ok(Value::Field(known));
    }
    if let Some(key) = field.strip_prefix(".Service.Labels.")
        && !key.is_empty()
        && key.chars().all(|c| c.is_alphanumeric() || c == '_')
    {
        return Ok(Value::Label(key.to_owned()));
    }
    let hint = match FIELDS.iter().find(|known| known.eq_ignore_ascii_case(field)) {
        Some(close) => format!("did you mean `{close}`?"),
        None if field.starts_with(".Service.Labels.") => {
            "write `{{index .Service.Labels \"the.key\"}}`".to_owned()
        }
        None => format!("there are {}", FIELDS.join(", ")),
    };
    Err((format!("there is no `{field}`"), hint))
}

enum Word<'t> {
    Bare(&'t str),
    Quoted(String),
}

/// The words of an action; none if quotes are not closed.
fn words(text: &str) -> Option<Vec<Word<'_>>> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        if matches!(first, '"' | '`') {
            let (word, length) = quoted(rest, first)?;
            words.push(Word::Quoted(word));
            rest = &rest[length..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '"' | '`')).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            words.push(Word::Bare(word));
            rest = after;
        }
        rest = rest.trim_start();
    }
    Some(words)
}

/// The text in the quotes that it begins with, and how long it is with them.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let (mut word, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            c if escaped => {
                word.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
                escaped = false;
            }
            '\\' if quote == '"' => escaped = true,
            c if c == quote => return Some((word, at + c.len_utf8())),
            c => word.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with() -> Placeholders<'static> {
        let labels = [("tier", "front"), ("com.example.team", "shop")];
        Placeholders {
            node_id: "node_1".into(),
            node_name: "worker-1".into(),
            node_ip: "10.0.0.7".into(),
            architecture: "amd64".into(),
            os: "linux".into(),
            service_id: "prod/shop/web".into(),
            service_name: "web".into(),
            labels: Cow::Owned(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            task_id: "task_9".into(),
            task_name: "shop-web-3".into(),
            slot: "3".into(),
        }
    }
    fn filled(text: &str) -> String {
        assert_eq!(check(text), Ok(fill(text, &with()).unwrap() != text), "{text}");
        fill(text, &with()).unwrap().into_owned()
    }

    #[test]
    fn every_field_is_filled_in() {
        assert_eq!(
            filled("{{.Node.ID}} {{ .Node.Hostname }} {{.Node.IP}}:80"),
            "node_1 worker-1 10.0.0.7:80"
        );
        assert_eq!(filled("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}"), "linux/amd64");
        assert_eq!(filled("{{.Service.ID}} {{.Service.Name}}"), "prod/shop/web web");
        assert_eq!(filled("{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}"), "task_9 shop-web-3 3");
        assert_eq!(filled("{{.Service.Labels}}"), "map[com.example.team:shop tier:front]");
        assert_eq!(filled(r#"{{index .Service.Labels "com.example.team"}}"#), "shop");
        assert_eq!(filled("<{{.Service.Labels.tier}}{{.Service.Labels.none}}>"), "<front>");
        assert_eq!(filled(r#"{{join "-" .Service.Name "x" .Task.Slot}}"#), "web-x-3");
    }

    #[test]
    fn what_is_no_placeholder_stays_as_it_is() {
        for text in [
            "",
            "no braces",
            "{{.Name}} {{json .}}",
            "{{ $x.Task }}",
            "{{ .Config.Service.Name }}",
            "{{.Nodes}}",
            "{{",
            "}}",
            "{{ never closed",
            r#"{{ printf "%s" ".Task.ID" }}"#,
        ] {
            assert_eq!(check(text), Ok(false), "{text}");
            assert_eq!(fill(text, &with()).unwrap(), text);
        }
    }

    #[test]
    fn braces_can_be_written() {
        assert_eq!(filled(r#"{{"{{"}}.Task.ID{{"}}"}}"#), "{{.Task.ID}}");
        assert_eq!(filled("{{`{{`}}.Task.ID}}"), "{{.Task.ID}}");
    }

    #[test]
    fn mistakes_name_what_is_wrong_and_what_to_write() {
        let of = |text: &str| check(text).unwrap_err();
        let error = of("a {{.Node.Hostnme}} b");
        assert_eq!(error.to_string(), "`{{.Node.Hostnme}}`: there is no `.Node.Hostnme`");
        assert!(error.hint.contains(".Node.Hostname"), "{}", error.hint);
        assert_eq!(of("{{.task.slot .Task.slot}}").problem, "this form of a placeholder is not known");
        assert_eq!(of("{{.Task.slot}}").hint, "did you mean `.Task.Slot`?");
        assert_eq!(of("{{if .Task.Slot}}x{{end}}").problem, "this form of a placeholder is not known");
        assert_eq!(of("{{.Task.ID").problem, "it is not closed");
        assert!(of("{{.Service.Labels.a.b}}").hint.contains("index"));
    }
}
