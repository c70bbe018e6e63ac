//! The reference of Compose attributes: written from the loader's own table, committed, and compared by `./x check`.
//!
//! The compose crate prints it (`crates/compose/examples/reference.rs`), so that this tool need not link the loader. A test
//! that the table names must be there: a row of the table of attributes, or a function of a file.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context;

use crate::project::Project;
use crate::{Findings, output_of};

const DOCUMENT: &str = "docs/reference/compose.md";
const ROWS: &str = "tests/tests/attributes.rs";

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let committed = std::fs::read_to_string(project.root().join(DOCUMENT)).unwrap_or_default();
    let mut findings = missing_tests(&print(project, &["--tests"])?, &sources(project)?);
    if committed != print(project, &[])? {
        findings.push(format!(
            "{DOCUMENT} is not what the loader's table says; run `cargo xtask compose` and commit it"
        ));
    }
    Ok(findings)
}

pub(crate) fn write(project: &Project) -> anyhow::Result<Findings> {
    let generated = print(project, &[])?;
    std::fs::write(project.root().join(DOCUMENT), generated).with_context(|| format!("write {DOCUMENT}"))?;
    Ok(Findings::new())
}

fn print(project: &Project, arguments: &[&str]) -> anyhow::Result<String> {
    output_of(
        Command::new("cargo")
            .args(["run", "--quiet", "--locked", "--package=wharf-compose", "--example=reference", "--"])
            .args(arguments)
            .current_dir(project.root()),
    )
}

/// The Rust files of the project, by path.
fn sources(project: &Project) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for path in project.files()?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        if let Some(content) = project.text(&path)? {
            found.insert(path.to_string_lossy().into_owned(), content);
        }
    }
    Ok(found)
}

/// What `ATTRIBUTE TEST` lines name and no source has.
fn missing_tests(named: &str, sources: &BTreeMap<String, String>) -> Findings {
    let rows = sources.get(ROWS).map(String::as_str).unwrap_or_default();
    let there = |attribute: &str, test: &str| match test.split_once("::") {
        None => test == "attributes" && rows.contains(&format!("\"{attribute}\"")),
        Some((file, function)) => {
            let file = format!("/{file}.rs");
            let function = format!("fn {function}(");
            sources.iter().any(|(name, text)| name.ends_with(&file) && text.contains(&function))
        }
    };
    let pairs = named.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter(|(attribute, test)| !there(attribute, test))
        .map(|(attribute, test)| match test {
            "attributes" => format!("{attribute}: {ROWS} has no row for it"),
            _ => format!("{attribute}: there is no test `{test}`"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_named_must_be_there() {
        let sources: BTreeMap<String, String> = [
            (ROWS.to_owned(), "shows(\"services.*.init\", …)".to_owned()),
            ("tests/tests/apps.rs".to_owned(), "fn tasks_run(".to_owned()),
        ]
        .into();
        let found = |line: &str| missing_tests(line, &sources);
        assert!(found("services.*.init attributes\nservices.*.deploy apps::tasks_run").is_empty());
        assert_eq!(found("services.*.tty attributes").len(), 1);
        assert_eq!(found("services.*.deploy apps::tasks").len(), 1);
        assert_eq!(found("services.*.deploy cli::tasks_run").len(), 1);
    }
}
