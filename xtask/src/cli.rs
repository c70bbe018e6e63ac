//! The reference of the command line: what every command's `--help` prints, written from the program itself, committed,
//! and compared by `./x check`.
//!
//! What is printed depends on nothing but the program: the environment is cleared and there is no terminal to fit.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::project::{Project, text};
use crate::{Findings, output_of};

const DOCUMENT: &str = "docs/reference/cli.md";

const INTRODUCTION: &str = "\
# The command line

Written by `cargo xtask cli` from what `wharf … --help` prints. `wharf completion SHELL` prints a script that completes all of it.

";

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let committed = std::fs::read_to_string(project.root().join(DOCUMENT)).unwrap_or_default();
    Ok(if committed == generate(project)? {
        Findings::new()
    } else {
        vec![format!("{DOCUMENT} is not what the program's help says; run `cargo xtask cli` and commit it")]
    })
}

pub(crate) fn write(project: &Project) -> anyhow::Result<Findings> {
    let generated = generate(project)?;
    let path = project.root().join(DOCUMENT);
    let folder = path.parent().context("the document has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(&path, generated).with_context(|| format!("write {DOCUMENT}"))?;
    Ok(Findings::new())
}

fn generate(project: &Project) -> anyhow::Result<String> {
    let program = program(project)?;
    let mut document = INTRODUCTION.to_owned();
    describe(&program, &mut Vec::new(), &mut document)?;
    Ok(document)
}

/// The program as the sources have it now.
fn program(project: &Project) -> anyhow::Result<PathBuf> {
    output_of(
        Command::new("cargo")
            .args(["build", "--quiet", "--locked", "--package=wharf", "--bin=wharf"])
            .current_dir(project.root()),
    )?;
    let metadata = project.metadata()?;
    Ok(Path::new(text(&metadata, "target_directory")).join("debug/wharf"))
}

/// Adds a command, and then those below it.
fn describe(program: &Path, words: &mut Vec<String>, document: &mut String) -> anyhow::Result<()> {
    let help = output_of(
        Command::new(program)
            .args(&*words)
            .arg("--help")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    )?;
    let name = [&["wharf".to_owned()], words.as_slice()].concat().join(" ");
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    document.push_str(&format!("## {name}\n\n```text\n{}\n```\n\n", lines.join("\n")));
    for command in commands(&help) {
        words.push(command);
        describe(program, words, document)?;
        words.pop();
    }
    if words.is_empty() {
        document.truncate(document.trim_end().len());
        document.push('\n');
    }
    Ok(())
}

/// The commands that a help text lists: what stands two spaces in, below `Commands:`.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_a_help_text_and_their_wrapped_lines_are_not() {
        let help = "Says\n\nUsage: wharf\n\nCommands:\n  up    Deploy\n        an app\n  down  Take down\n  help  Print\n\nOptions:\n  -q  no\n";
        assert_eq!(commands(help), ["up", "down"]);
        assert_eq!(commands("Usage: wharf up\n\nOptions:\n  -q"), [""; 0]);
    }
}
