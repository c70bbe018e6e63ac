//! The project's folder: where it is, which files belong to it, and what Cargo says about it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use crate::output_of;

/// The folder this tool was built from.
pub(crate) struct Project {
    root: PathBuf,
}

impl Project {
    /// Finds the project as Cargo sees it from the current folder.
    pub(crate) fn find() -> anyhow::Result<Project> {
        let manifest = output_of(Command::new("cargo").args([
            "locate-project",
            "--workspace",
            "--message-format=plain",
        ]))?;
        let root = Path::new(manifest.trim()).parent().context("the workspace manifest has no folder")?;
        Ok(Project { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The files that are, or would be, part of the project: tracked, or new and not ignored; relative to the root.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let list = output_of(
            Command::new("git")
                .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
                .current_dir(&self.root),
        )?;
        let mut files: Vec<PathBuf> =
            list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
        files.retain(|file| self.root.join(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The content of a file of the project; `None` for one that is not text.
    pub(crate) fn text(&self, file: &Path) -> anyhow::Result<Option<String>> {
        let bytes =
            std::fs::read(self.root.join(file)).with_context(|| format!("read {}", file.display()))?;
        Ok(String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')))
    }

    /// The dependency graph as Cargo resolves it on this kind of machine.
    pub(crate) fn metadata(&self) -> anyhow::Result<Value> {
        let version = output_of(Command::new("rustc").arg("-vV").current_dir(&self.root))?;
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .context("rustc does not say what it runs on")?;
        let json = output_of(
            Command::new("cargo")
                .args(["metadata", "--format-version=1", "--locked", "--filter-platform", host])
                .current_dir(&self.root),
        )?;
        serde_json::from_str(&json).context("understand cargo metadata")
    }
}

/// The items of an array in Cargo's JSON; none where there is no array.
pub(crate) fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// A string in Cargo's JSON; empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
