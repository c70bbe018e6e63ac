//! The API's OpenAPI document: written from the server's types, committed, and compared by `./x check`.
//!
//! The server crate prints it (`crates/server/examples/openapi.rs`), so that this tool need not link the server. While
//! neither that program nor the document exists there is nothing to compare; either alone is a finding.

use std::process::Command;

use anyhow::Context;

use crate::project::Project;
use crate::{Findings, output_of};

const DOCUMENT: &str = "docs/reference/openapi.json";
const PRINTER: &str = "crates/server/examples/openapi.rs";

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let committed = std::fs::read_to_string(project.root().join(DOCUMENT)).ok();
    let generated = generate(project)?;
    Ok(match (committed, generated) {
        (None, None) => Findings::new(),
        (Some(committed), Some(generated)) if committed == generated => Findings::new(),
        (_, Some(_)) => vec![format!(
            "{DOCUMENT} is not what the server's types say; run `cargo xtask openapi` and commit it"
        )],
        (Some(_), None) => vec![format!("{DOCUMENT} is there, but nothing prints it: {PRINTER} is missing")],
    })
}

pub(crate) fn write(project: &Project) -> anyhow::Result<Findings> {
    let Some(generated) = generate(project)? else {
        return Ok(vec![format!("{PRINTER} is missing, so nothing says what the API is")]);
    };
    let path = project.root().join(DOCUMENT);
    let folder = path.parent().context("the document has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(&path, generated).with_context(|| format!("write {DOCUMENT}"))?;
    Ok(Findings::new())
}

/// What the server prints, with a last line end; `None` while it has no such program.
fn generate(project: &Project) -> anyhow::Result<Option<String>> {
    if !project.root().join(PRINTER).exists() {
        return Ok(None);
    }
    let json = output_of(
        Command::new("cargo")
            .args(["run", "--quiet", "--locked", "--package=wharf-server", "--example=openapi"])
            .current_dir(project.root()),
    )?;
    serde_json::from_str::<serde_json::Value>(&json).with_context(|| format!("{PRINTER} must print JSON"))?;
    Ok(Some(format!("{}\n", json.trim_end())))
}
