//! Every attribute of the Compose Specification, what a cluster makes of it, and the test that shows it.
//!
//! - Each attribute that the tables in `shapes` know has one entry, and each entry is one that they know.
//! - What an entry says is refused the loader refuses, with a reason and a way out; what it says is taken the loader takes.
//!
//! Both are tests below. `docs/reference/compose.md` is written from here (`cargo xtask compose`), which also finds every
//! test that an entry names. Wharf's own keys (`x-wharf`) have a reference of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::shape::{Object, Shape};
use crate::{Complaint, Diagnostic, Request, load, shapes};

mod entries;

/// What a cluster makes of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has the effect that the specification says.
    Honoured,
    /// Some of its values have; the others are refused.
    Partly,
    /// An error with reason and remedy; a warning with `--allow-unsupported`.
    Refused,
    /// It may be there and changes nothing, which is warned of.
    WithoutEffect,
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attribute {
    /// Where it stands: `services.*.ports[].target`. `*` is any name, `[]` any item.
    pub path: &'static str,
    /// What becomes of it.
    pub status: Status,
    /// How it is honoured on one host. Of what is refused the loader says why.
    pub how: &'static str,
    /// How on many hosts, where that differs.
    pub many: &'static str,
    /// Tests that show it, as `FILE::FUNCTION`; none for what is refused or has no effect. A bare `attributes` is a row of
    /// that name in the table of the test in `tests/tests/attributes.rs`.
    pub tests: &'static [&'static str],
    /// Values that are taken, in JSON.
    takes: &'static [&'static str],
    /// Values that are refused, in JSON.
    refuses: &'static [&'static str],
}

const fn attribute(path: &'static str, status: Status, how: &'static str) -> Attribute {
    let tests: &[&str] = match status {
        Status::Honoured | Status::Partly => &["attributes"],
        Status::Refused | Status::WithoutEffect => &[],
    };
    Attribute { path, status, how, many: "", tests, takes: &[], refuses: &[] }
}
const fn honoured(path: &'static str, how: &'static str) -> Attribute {
    attribute(path, Status::Honoured, how)
}
/// With the values that are refused.
const fn partly(path: &'static str, how: &'static str, refuses: &'static [&'static str]) -> Attribute {
    attribute(path, Status::Partly, how).refuses(refuses)
}
/// With all that stands below it.
const fn refused(path: &'static str) -> Attribute {
    attribute(path, Status::Refused, "")
}
const fn without_effect(path: &'static str, how: &'static str) -> Attribute {
    attribute(path, Status::WithoutEffect, how)
}
impl Attribute {
    const fn many(self, many: &'static str) -> Self {
        Self { many, ..self }
    }
    const fn takes(self, takes: &'static [&'static str]) -> Self {
        Self { takes, ..self }
    }
    const fn refuses(self, refuses: &'static [&'static str]) -> Self {
        Self { refuses, ..self }
    }
    const fn shown_by(self, tests: &'static [&'static str]) -> Self {
        Self { tests, ..self }
    }

    /// The attributes below it that have no entry of their own, since they share its fate.
    pub fn below(&self) -> Vec<String> {
        let prefix = [format!("{}.", self.path), format!("{}[]", self.path)];
        let within = |path: &String| prefix.iter().any(|prefix| path.starts_with(prefix.as_str()));
        match self.status {
            Status::Honoured | Status::Partly => return Vec::new(),
            Status::Refused | Status::WithoutEffect => {}
        }
        known().into_keys().filter(within).collect()
    }

    /// What the loader says of each value that it refuses: the value in JSON, the reason and the remedy.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refused_samples()
            .into_iter()
            .map(|value| {
                let (reason, instead) = match refusal_of(self.path, &complaints(self.path, &value)) {
                    Some(said) => (said.message.clone(), said.hint.clone().unwrap_or_default()),
                    None => Default::default(),
                };
                Refusal { value, reason, instead }
            })
            .collect()
    }

    /// Values that the loader takes, in JSON.
    pub fn taken(&self) -> Vec<String> {
        match self.status {
            Status::Refused => Vec::new(),
            _ => self.samples(self.takes),
        }
    }

    fn refused_samples(&self) -> Vec<String> {
        match self.status {
            Status::Honoured | Status::WithoutEffect => Vec::new(),
            Status::Partly => self.refuses.iter().map(|&sample| sample.to_owned()).collect(),
            Status::Refused => self.samples(self.refuses),
        }
    }

    /// The given samples, or what the shape suggests.
    fn samples(&self, given: &[&str]) -> Vec<String> {
        if !given.is_empty() {
            return given.iter().map(|&sample| sample.to_owned()).collect();
        }
        known().get(self.path).map(|shape| example(shape).to_string()).into_iter().collect()
    }
}

/// A value that the loader refuses, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The value, in JSON.
    pub value: String,
    /// Why.
    pub reason: String,
    /// What to write instead.
    pub instead: String,
}

/// Attributes that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// They.
    pub attributes: &'static [Attribute],
}

/// The whole reference.
pub fn sections() -> &'static [Section] {
    entries::SECTIONS
}

/// Every attribute that has an entry, in the order of the reference.
pub fn attributes() -> impl Iterator<Item = &'static Attribute> {
    sections().iter().flat_map(|section| section.attributes)
}

/// Every attribute that the shapes know, by its path; without Wharf's own.
fn known() -> BTreeMap<String, &'static Shape> {
    let mut found = BTreeMap::new();
    add_fields("", &shapes::FILE, &mut found);
    found
}

fn add_fields(path: &str, object: &'static Object, found: &mut BTreeMap<String, &'static Shape>) {
    for (name, shape) in object.keys {
        // `external` of a service is the old form of `x-wharf.external`.
        if name.starts_with("x-") || (path == "services.*" && *name == "external") {
            continue;
        }
        let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
        found.insert(path.clone(), shape);
        add_below(&path, shape, found);
    }
}

fn add_below(path: &str, shape: &'static Shape, found: &mut BTreeMap<String, &'static Shape>) {
    match shape {
        Shape::Map(object) => add_fields(path, object, found),
        Shape::List(inner) => add_below(&format!("{path}[]"), inner, found),
        Shape::MapOf(inner) | Shape::Named(_, inner) => add_below(&format!("{path}.*"), inner, found),
        Shape::OrNull(inner) => add_below(path, inner, found),
        Shape::Either(shapes) => shapes.iter().for_each(|shape| add_below(path, shape, found)),
        // What a job has a service has, except for its triggers.
        _ => {}
    }
}

/// A value of a shape.
fn example(shape: &Shape) -> Value {
    match shape {
        Shape::TextOrNumber | Shape::Int | Shape::Number => json!(1),
        Shape::Bool => json!(true),
        Shape::Duration => json!("2s"),
        Shape::Size => json!("64m"),
        Shape::Word(words) => json!(words.first().copied().unwrap_or_default()),
        Shape::List(inner) => json!([example(inner)]),
        Shape::Map(object) => {
            let required = object.keys.iter().filter(|(name, _)| object.required.contains(name));
            Value::Object(required.map(|(name, shape)| ((*name).to_owned(), example(shape))).collect())
        }
        Shape::MapOf(inner) => json!({"a": example(inner)}),
        Shape::Named(_, inner) => json!({"other": example(inner)}),
        Shape::OrNull(inner) => example(inner),
        Shape::Either(shapes) => shapes.first().map(example).unwrap_or_default(),
        _ => json!("text"),
    }
}

/// What the loader says of the smallest file that has this value there.
fn complaints(path: &str, value: &str) -> Vec<Diagnostic> {
    let file = file_with(path, value).to_string();
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    files.insert("/app/compose.yaml".into(), file.into_bytes());
    for (name, content) in entries::FILES {
        files.insert(PathBuf::from("/app").join(name), content.as_bytes().to_vec());
    }
    let request = Request { files: vec!["/app/compose.yaml".into()], ..Request::default() };
    let request = Request { environment: [("TOKEN".to_owned(), "t".to_owned())].into(), ..request };
    load(&request, &files).diagnostics
}

fn file_with(path: &str, value: &str) -> Value {
    let mut file = json!({"services": {"it": {"image": "i:1"}, "other": {"image": "i:1"}}});
    for (prefix, beside) in entries::BESIDE {
        let applies =
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        if applies {
            merge(&mut file, parsed(beside));
        }
    }
    set(&mut file, path, parsed(value));
    file
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("a sample is no JSON: {json}: {error}"))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Puts a value where the path says, with a name for each `*` and the first item for each `[]`.
fn set(file: &mut Value, path: &str, value: Value) {
    let mut place = file;
    let mut before = "";
    for segment in path.split('.') {
        let name = if segment == "*" { name_within(before) } else { segment.trim_end_matches("[]") };
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
        for _ in 0..segment.matches("[]").count() {
            if !place.is_array() {
                *place = json!([null]);
            }
            place = &mut place[0];
        }
        before = segment;
    }
    *place = value;
}

/// A name that the file with a sample has there.
fn name_within(group: &str) -> &'static str {
    match group {
        "services" => "it",
        "depends_on" => "other",
        "ulimits" => "nofile",
        _ => "named",
    }
}

/// The path of a key as the loader prints it.
fn written(path: &str) -> String {
    let mut before = "";
    let mut parts = Vec::new();
    for segment in path.split('.') {
        let part = if segment == "*" { name_within(before).to_owned() } else { segment.replace("[]", "[0]") };
        parts.push(part);
        before = segment;
    }
    parts.join(".")
}

/// The complaint that refuses what stands there: at its place, below it, or where what it belongs to begins.
fn refusal_of<'a>(path: &str, said: &'a [Diagnostic]) -> Option<&'a Diagnostic> {
    let place = written(path);
    said.iter().find(|said| {
        said.complaint == Complaint::Unsupported
            && said.is_error()
            && (said.key.starts_with(&place) || place.starts_with(&said.key))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_attribute_that_the_loader_knows_has_one_entry() {
        let known = known();
        let mut listed: BTreeSet<String> = BTreeSet::new();
        let mut wrong = Vec::new();
        for attribute in attributes() {
            if !known.contains_key(attribute.path) {
                wrong.push(format!("{} is no attribute", attribute.path));
            }
            for path in [attribute.below(), vec![attribute.path.to_owned()]].concat() {
                if !listed.insert(path.clone()) {
                    wrong.push(format!("{path} has two entries"));
                }
            }
        }
        wrong.extend(
            known.keys().filter(|path| !listed.contains(*path)).map(|path| format!("{path} has no entry")),
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_is_said_to_be_taken_is_taken() {
        let mut wrong = Vec::new();
        for attribute in attributes() {
            for sample in attribute.taken() {
                let said = complaints(attribute.path, &sample);
                for said in said.iter().filter(|said| said.is_error()) {
                    wrong.push(format!("{} = {sample}: {said}", attribute.path));
                }
                let place = written(attribute.path);
                let warned = said.iter().any(|said| said.key.starts_with(&place));
                if attribute.status == Status::WithoutEffect && !warned {
                    wrong.push(format!("{} = {sample} has no effect, and nothing says so", attribute.path));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    #[test]
    fn what_is_refused_has_a_reason_a_place_and_a_way_out() {
        let mut wrong = Vec::new();
        for attribute in attributes() {
            for sample in attribute.refused_samples() {
                let said = complaints(attribute.path, &sample);
                let Some(found) = refusal_of(attribute.path, &said) else {
                    let said: Vec<String> = said.iter().map(ToString::to_string).collect();
                    wrong.push(format!("{} = {sample} is not refused: {}", attribute.path, said.join("\n")));
                    continue;
                };
                if found.place.is_none() || found.message.is_empty() || found.hint.is_none() {
                    wrong.push(format!("{} = {sample} lacks a place or a hint: {found}", attribute.path));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    #[test]
    fn every_entry_says_how_and_what_shows_it() {
        let mut wrong = Vec::new();
        for attribute in attributes() {
            let has = (!attribute.how.is_empty(), !attribute.tests.is_empty(), !attribute.refuses.is_empty());
            let fits = match attribute.status {
                Status::Honoured => matches!(has, (true, true, false)),
                Status::Partly => matches!(has, (true, true, true)),
                Status::Refused => matches!(has, (false, false, _)),
                Status::WithoutEffect => matches!(has, (true, false, false)),
            };
            if !fits {
                wrong.push(attribute.path);
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
