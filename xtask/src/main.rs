//! Developer tasks with logic: `cargo xtask CHECK`. Each compares the project with a rule of the house and says what
//! is wrong, one line per finding; `./x check` runs them all.
//!
//! It builds in seconds: no dependency but JSON and error chains, and no crate of the workspace.

mod cli;
mod compose;
mod crates;
mod licences;
mod links;
mod names;
mod openapi;
mod project;
mod schema;

use std::process::ExitCode;

use anyhow::Context;

use project::Project;

const USAGE: &str = "\
usage: cargo xtask TASK

  check-deps         every crate depends on nothing but what the architecture allows
  cli [--check]      writes docs/reference/cli.md from the program's help, or compares it
  compose [--check]  writes docs/reference/compose.md from the loader's table, or compares it and finds its tests
  licences           every dependency's licence is on the allow list
  links              relative links and anchors in Markdown files resolve
  names              no package registry's host and no path of this machine stands in a file
  openapi [--check]  writes docs/reference/openapi.json from the server's types, or compares it
  schema [--check]   writes docs/reference/*.schema.json and x-wharf.md from the loader's tables, or compares them

Exit code: 0 as wanted, 1 findings or failure, 2 wrong usage.";

/// What a check found: each a sentence for a person. Empty: as wanted.
type Findings = Vec<String>;

#[expect(clippy::print_stderr, reason = "a command line tool talks on stderr")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(task) = task(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match Project::find().and_then(|project| task(&project)) {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in &findings {
                eprintln!("{finding}");
            }
            eprintln!("{}: {} found", arguments.join(" "), findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

type Task = fn(&Project) -> anyhow::Result<Findings>;

fn task(arguments: &[&str]) -> Option<Task> {
    match arguments {
        ["check-deps"] => Some(crates::check),
        ["cli"] => Some(cli::write),
        ["cli", "--check"] => Some(cli::check),
        ["compose"] => Some(compose::write),
        ["compose", "--check"] => Some(compose::check),
        ["licences"] => Some(licences::check),
        ["links"] => Some(links::check),
        ["names"] => Some(names::check),
        ["openapi"] => Some(openapi::write),
        ["openapi", "--check"] => Some(openapi::check),
        ["schema"] => Some(schema::write),
        ["schema", "--check"] => Some(schema::check),
        _ => None,
    }
}

/// The standard output of a command that must succeed.
fn output_of(command: &mut std::process::Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output =
        command.stderr(std::process::Stdio::inherit()).output().with_context(|| format!("run {shown}"))?;
    anyhow::ensure!(output.status.success(), "{shown} ended with {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("read what {shown} printed"))
}
