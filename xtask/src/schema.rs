//! The JSON Schemas for editors and the reference of `x-wharf`: written from the loader's tables, committed, and compared by
//! `./x check`.
//!
//! The compose crate prints them (`crates/compose/examples/schema.rs`), so that this tool need not link the loader.

use std::process::Command;

use anyhow::Context;

use crate::project::Project;
use crate::{Findings, output_of};

/// Each document, and what the printer calls it.
const DOCUMENTS: [(&str, &str); 3] = [
    ("docs/reference/compose.schema.json", "file"),
    ("docs/reference/x-wharf.schema.json", "x-wharf"),
    ("docs/reference/x-wharf.md", "page"),
];

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let mut findings = Findings::new();
    for (document, what) in DOCUMENTS {
        let committed = std::fs::read_to_string(project.root().join(document)).unwrap_or_default();
        if committed != print(project, what)? {
            findings.push(format!(
                "{document} is not what the loader's tables say; run `cargo xtask schema` and commit it"
            ));
        }
    }
    Ok(findings)
}

pub(crate) fn write(project: &Project) -> anyhow::Result<Findings> {
    for (document, what) in DOCUMENTS {
        let text = print(project, what)?;
        std::fs::write(project.root().join(document), text).with_context(|| format!("write {document}"))?;
    }
    Ok(Findings::new())
}

fn print(project: &Project, what: &str) -> anyhow::Result<String> {
    output_of(
        Command::new("cargo")
            .args(["run", "--quiet", "--locked", "--package=wharf-compose", "--example=schema", "--", what])
            .current_dir(project.root()),
    )
}
