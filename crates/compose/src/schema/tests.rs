//! That the schemas take what the loader takes: every example of the documentation and of the tests.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::diagnostic::Report;
use crate::node::{Node, Value as Tree};
use crate::yaml;

/// As much of JSON Schema as the schemas use; a keyword that is not here fails the test.
fn complaints(schema: &Value, root: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (keyword, wanted) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "patternProperties" => {}
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                found.extend(complaints(&root["$defs"][name], root, value, path));
            }
            "type" => {
                let kinds = wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
                if !kinds.iter().any(|kind| is(kind.as_str().unwrap(), value)) {
                    found.push(format!("{path}: {value} is none of {kinds:?}"));
                }
            }
            "enum" => {
                if !wanted.as_array().unwrap().contains(value) {
                    found.push(format!("{path}: {value} is none of {wanted}"));
                }
            }
            "anyOf" => {
                let all: Vec<_> =
                    wanted.as_array().unwrap().iter().map(|one| complaints(one, root, value, path)).collect();
                if all.iter().all(|one| !one.is_empty()) {
                    found.extend(all.into_iter().flatten());
                }
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = wanted.get(key) {
                        found.extend(complaints(schema, root, inner, &format!("{path}.{key}")));
                    }
                }
            }
            "additionalProperties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let named = schema.get("properties").is_some_and(|known| known.get(key).is_some());
                    if named || (key.starts_with("x-") && schema.get("patternProperties").is_some()) {
                        continue;
                    }
                    match wanted {
                        Value::Bool(false) => found.push(format!("{path}: there is no key {key}")),
                        inner_schema => {
                            found.extend(complaints(inner_schema, root, inner, &format!("{path}.{key}")));
                        }
                    }
                }
            }
            "required" => {
                for key in wanted.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if value.as_object().is_some_and(|object| !object.contains_key(key)) {
                        found.push(format!("{path}: {key} is missing"));
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(complaints(wanted, root, item, &format!("{path}[{index}]")));
                }
            }
            "propertyNames" | "pattern" => found.extend(pattern(keyword, wanted, value, path)),
            other => panic!("the schema uses `{other}`"),
        }
    }
    found
}

/// The three patterns that the schemas have.
fn pattern(keyword: &str, wanted: &Value, value: &Value, path: &str) -> Option<String> {
    let fits = match (keyword, wanted.as_str()) {
        ("propertyNames", _) => {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            value.as_object()?.keys().all(|key| !key.is_empty() && key.chars().all(legal))
        }
        (_, Some(super::VARIABLE)) => value.as_str()?.contains('$'),
        (_, Some(super::LENGTH_OF_TIME)) => {
            let text = value.as_str()?;
            text.contains('$') || crate::quantity::duration(text).is_ok()
        }
        (_, other) => panic!("the schema has the pattern {other:?}"),
    };
    (!fits).then(|| format!("{path}: {value} does not fit {wanted}"))
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the schema has the type `{other}`"),
    }
}

fn json(node: &Node) -> Value {
    match &node.value {
        Tree::Null | Tree::Invalid => Value::Null,
        Tree::Bool(value) => (*value).into(),
        Tree::Int(value) => (*value).into(),
        Tree::Float(value) => (*value).into(),
        Tree::String(value) => value.clone().into(),
        Tree::Sequence(items) => items.iter().map(json).collect(),
        Tree::Mapping(mapping) => {
            mapping.iter().map(|(key, entry)| (key.to_owned(), json(&entry.node))).collect()
        }
    }
}

fn parsed(text: &str) -> Value {
    let mut report = Report::new(false);
    let file = report.add_source(Path::new("example.yaml"), text.to_owned());
    let documents = yaml::parse(&mut report, file);
    let complaints: Vec<String> = report.finish().iter().map(ToString::to_string).collect();
    let documents = documents.unwrap_or_else(|| panic!("{}\n{text}", complaints.join("\n")));
    json(documents.first().unwrap_or_else(|| panic!("an empty example")))
}

/// What the schema of a whole file says of a text.
fn said(text: &str) -> Vec<String> {
    let schema = super::file();
    complaints(&schema, &schema, &parsed(text), "")
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every Compose example: fenced blocks of the documentation that are whole files, and the examples' files.
fn examples() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![project().join("docs"), project().join("examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.display().to_string();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if extension == "md" {
                let text = std::fs::read_to_string(&path).unwrap();
                let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
                let files = blocks.filter(|block| block.lines().any(|line| line.starts_with("services:")));
                found.extend(files.map(|block| (name.clone(), block.to_owned())));
            } else if matches!(extension, "yaml" | "yml") && name.contains("compose") {
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn every_example_is_valid() {
    let examples = examples();
    assert!(examples.len() >= 3, "{examples:?}");
    for (name, text) in examples {
        let complaints = said(&text);
        assert!(complaints.is_empty(), "{name}:\n{}\n{text}", complaints.join("\n"));
    }
}

/// The examples of a page of the documentation, loaded as if the cluster carried everything out.
fn apps(page: &str) -> Vec<wharf_model::AppSpec> {
    let of_page = examples().into_iter().filter(|(name, _)| name.ends_with(page));
    of_page.map(|(_, text)| crate::typed::wharf_tests::everything(&text).0).collect()
}

#[test]
fn the_examples_of_our_own_settings_load() {
    let apps = apps("reference/x-wharf.md");
    assert!(apps.len() >= 3, "{apps:?}");
}

#[test]
fn a_template_means_the_same_before_and_after_its_translation() {
    let [before, after] = apps("howto/from-alibaba-container-service.md").try_into().unwrap();
    assert_eq!(before, after);
}

#[test]
fn what_tests_load_is_valid() {
    for text in crate::typed::wharf_tests::texts() {
        let complaints = said(text);
        assert!(complaints.is_empty(), "{}\n{text}", complaints.join("\n"));
    }
}

#[test]
fn what_is_wrong_is_found() {
    let wrong = [
        ("services: {web: {imgae: i}}", "there is no key imgae"),
        ("services: {web: {x-wharf: {route: []}}}", "there is no key route"),
        ("services: {web: {x-wharf: {priority: urgent}}}", "\"urgent\" is none of"),
        ("services: {web: {x-wharf: {probe: {tcp: {}}}}}", "port is missing"),
        ("services: {web: {x-wharf: {probe: {interval: 10}}}}", "10 is none of"),
        ("services: {web: {x-wharf: {probe: {interval: soon}}}}", "does not fit"),
        ("jobs: {once: {image: i, restart: always}}", "there is no key restart"),
    ];
    for (text, wanted) in wrong {
        let complaints = said(text).join("\n");
        assert!(complaints.contains(wanted), "{text}: {complaints}");
    }
    assert!(said("services: {web: {x-wharf: {priority: $TIER}}}").is_empty());
}

#[test]
fn the_published_schemas_are_those_of_this_version() {
    let folder = project().join("docs/reference");
    for (name, schema) in [("compose.schema.json", super::file()), ("x-wharf.schema.json", super::wharf())] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let published: Value = serde_json::from_str(&text).unwrap();
        assert!(published == schema, "docs/reference/{name} is old: `cargo xtask schema` writes it");
    }
}
