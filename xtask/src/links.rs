//! Checks that relative links in Markdown files lead somewhere: the file exists, and has the heading that the
//! anchor names. Links to the web are not followed. Code, in blocks or in a line, holds no links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::Findings;
use crate::project::Project;

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let mut documents = BTreeMap::new();
    for file in project.files()? {
        if file.extension().is_some_and(|extension| extension == "md")
            && let Some(text) = project.text(&file)?
        {
            documents.insert(file, Document::read(&text));
        }
    }
    let mut findings = Findings::new();
    for (file, document) in &documents {
        for link in &document.links {
            if let Some(problem) = problem(project.root(), &documents, file, &link.target) {
                findings.push(format!("{}:{}: `{}` {problem}", file.display(), link.line, link.target));
            }
        }
    }
    Ok(findings)
}

fn problem(
    root: &Path,
    documents: &BTreeMap<PathBuf, Document>,
    from: &Path,
    target: &str,
) -> Option<String> {
    if is_web_address(target) {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { from.to_owned() } else { resolve(from, path)? };
    if !root.join(&file).exists() {
        return Some(format!("leads to {}, which does not exist", file.display()));
    }
    let document = documents.get(&file)?;
    (!anchor.is_empty() && !document.anchors.contains(anchor))
        .then(|| format!("names a heading that {} does not have", file.display()))
}

fn is_web_address(target: &str) -> bool {
    target
        .split_once(':')
        .is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)))
}

/// A link's path from the project's root. `None` when it leaves the project: what is there is not ours to check.
fn resolve(from: &Path, path: &str) -> Option<PathBuf> {
    let mut resolved = match path.strip_prefix('/') {
        Some(_) => PathBuf::new(),
        None => from.parent()?.to_owned(),
    };
    for component in Path::new(path.trim_start_matches('/')).components() {
        match component {
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::Normal(name) => resolved.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(resolved)
}

#[derive(Debug, PartialEq)]
struct Link {
    line: usize,
    target: String,
}

/// What matters of a Markdown file here.
struct Document {
    links: Vec<Link>,
    anchors: BTreeSet<String>,
}

impl Document {
    fn read(text: &str) -> Document {
        let mut document = Document { links: Vec::new(), anchors: BTreeSet::new() };
        let mut slugs: BTreeMap<String, usize> = BTreeMap::new();
        let mut fence: Option<&str> = None;
        for (line, content) in (1..).zip(text.lines()) {
            let trimmed = content.trim_start();
            let marker = ["```", "~~~"].into_iter().find(|marker| trimmed.starts_with(marker));
            if let Some(open) = fence {
                if marker == Some(open) {
                    fence = None;
                }
                continue;
            }
            if marker.is_some() {
                fence = marker;
                continue;
            }
            if let Some(heading) = heading(trimmed) {
                let slug = slug(heading);
                let count = slugs.entry(slug.clone()).or_default();
                document.anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
                *count += 1;
            }
            let prose = without_code(content);
            document.anchors.extend(html_anchors(&prose));
            document.links.extend(targets(&prose).into_iter().map(|target| Link { line, target }));
        }
        document
    }
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    ((1..=6).contains(&level) && text.starts_with(' ')).then(|| text.trim().trim_end_matches('#').trim_end())
}

/// The anchor that GitHub and its like give a heading.
fn slug(heading: &str) -> String {
    let visible = link_texts_only(heading);
    let kept = visible
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// `[text](target)` becomes `text`.
fn link_texts_only(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        out.push_str(&before.replacen('[', "", 1));
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out + rest
}

fn html_anchors(line: &str) -> Vec<String> {
    let attributes = ["id=\"", "name=\""].into_iter().flat_map(|attribute| line.split(attribute).skip(1));
    attributes.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

/// The line with code spans blanked out.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return line.to_owned();
    }
    parts.iter().step_by(2).copied().collect::<Vec<_>>().join("code")
}

/// Where the links of a line of prose lead: `[text](target "title")` and `[name]: target`.
fn targets(line: &str) -> Vec<String> {
    let definition = line
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]: "))
        .filter(|(name, _)| !name.contains(']'))
        .map(|(_, target)| target);
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    definition
        .into_iter()
        .chain(inline)
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_matches(['<', '>']).to_owned())
        .filter(|target| !target.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        Document::read(text).links.into_iter().map(|link| link.target).collect()
    }

    #[test]
    fn links_are_found_inline_and_as_definitions_but_not_in_code() {
        let text = "See [a](x.md#y \"title\") and ![b](<c d>).\n\n[ref]: ../z.md\n\n```\n[no](no.md)\n```\n`[no](no.md)` [e](f)";
        assert_eq!(found(text), ["x.md#y", "c", "../z.md", "f"]);
    }

    #[test]
    fn headings_become_anchors_as_code_hosts_make_them() {
        let anchors =
            Document::read("# A `b` & [C](d.md)!\n## Twice\n## Twice\n```sh\n# no heading\n```\n").anchors;
        assert_eq!(anchors, ["a-b--c", "twice", "twice-1"].map(str::to_owned).into());
    }

    #[test]
    fn paths_are_relative_to_the_file_and_do_not_leave_the_project() {
        assert_eq!(resolve(Path::new("docs/a.md"), "../README.md"), Some(PathBuf::from("README.md")));
        assert_eq!(resolve(Path::new("docs/a.md"), "/x/y.md"), Some(PathBuf::from("x/y.md")));
        assert_eq!(resolve(Path::new("a.md"), "../b.md"), None);
    }

    #[test]
    fn a_missing_heading_and_a_missing_file_are_named() {
        let documents = BTreeMap::from([(PathBuf::from("a.md"), Document::read("# Here"))]);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let problem = |target: &str| problem(root, &documents, Path::new("a.md"), target);
        assert_eq!(problem("https://example.com/x.md"), None);
        assert_eq!(problem("Cargo.toml"), None);
        assert!(problem("no.md").is_some_and(|text| text.contains("does not exist")));
    }
}
