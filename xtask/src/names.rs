//! Finds names in the project's files that mean something on one machine only: the hosts of the package registries
//! that it is set up to use, and paths of the folder that it keeps the project in.
//!
//! What to look for is read from the machine's own settings, so the list itself stands in no file.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::Findings;
use crate::project::Project;

/// Files that tools write, with the registries' hosts in them.
const GENERATED: &[&str] = &["Cargo.lock", "package-lock.json"];

/// Folders that many machines have: a path below them tells nothing about this one.
const ORDINARY_FOLDERS: &[&str] =
    &["/", "/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr/src", "/var/tmp"];

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let mut names = registry_hosts();
    names.extend(folder_name(project.root()));

    let mut findings = Findings::new();
    for file in project.files()? {
        if file.file_name().is_some_and(|name| GENERATED.iter().any(|generated| name == *generated)) {
            continue;
        }
        let Some(text) = project.text(&file)? else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            for name in names.iter().filter(|name| line.contains(name.as_str())) {
                findings.push(format!(
                    "{}:{number}: names `{name}`, which belongs to this machine",
                    file.display()
                ));
            }
        }
    }
    Ok(findings)
}

/// The folder above the project, unless it is one that any machine has.
fn folder_name(root: &Path) -> Option<String> {
    let above = root.parent()?.to_str()?;
    (!ORDINARY_FOLDERS.contains(&above)).then(|| format!("{above}/"))
}

/// The hosts in the settings of apt, Cargo, pip and npm. A tool or file that is not there has none.
fn registry_hosts() -> BTreeSet<String> {
    let mut settings = vec![read("/etc/apt/sources.list")];
    if let Ok(folder) = std::fs::read_dir("/etc/apt/sources.list.d") {
        settings.extend(folder.flatten().map(|entry| read(entry.path())));
    }
    #[expect(clippy::disallowed_methods, reason = "a developer tool asks where Cargo keeps its settings")]
    if let Ok(home) =
        std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
    {
        settings.push(read(format!("{home}/config.toml")));
    }
    settings.push(printed_by("pip", &["config", "list"]));
    settings.push(printed_by("npm", &["config", "get", "registry"]));
    settings.iter().flat_map(|text| hosts(text)).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn printed_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// The hosts of the web addresses in a text, outside of comments.
fn hosts(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines
        .flat_map(|line| line.split("://").skip(1))
        .filter_map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || ".-@:_".contains(c))).next())
        .filter_map(|authority| authority.rsplit('@').next())
        .filter_map(|host| host.split(':').next())
        .filter(|host| host.contains('.'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_from_settings_of_any_syntax() {
        let text = "deb [signed-by=/k] http://mirror.example/debian x main\n# https://commented.example/\n\
                    index-url='https://user:pw@pypi.example:8443/simple'\nregistry = \"sparse+https://c.example/i/\"";
        assert_eq!(hosts(text), ["mirror.example", "pypi.example", "c.example"]);
    }

    #[test]
    fn a_folder_that_any_machine_has_gives_nothing_away() {
        assert_eq!(folder_name(Path::new("/tmp/wharf")), None);
        assert_eq!(folder_name(Path::new("/data/anna/wharf")), Some("/data/anna/".to_owned()));
    }
}
