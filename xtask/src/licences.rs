//! Checks the licence that every dependency states against a list of those that Wharf may ship with.

use crate::Findings;
use crate::project::{Project, items, text};

/// Licences under which a dependency may be linked into an Apache-2.0 program.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    // Of single files: a library that is linked as it is published asks for nothing but its licence beside it.
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "WTFPL",
    "Zlib",
];

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let metadata = project.metadata()?;
    let resolved: std::collections::BTreeSet<&str> =
        items(&metadata["resolve"], "nodes").map(|node| text(node, "id")).collect();
    let mut findings = Findings::new();
    for package in items(&metadata, "packages").filter(|package| resolved.contains(text(package, "id"))) {
        let licence = text(package, "license");
        if let Err(reason) = is_allowed(licence) {
            findings.push(format!("{} {}: {reason}", text(package, "name"), text(package, "version")));
        }
    }
    Ok(findings)
}

/// Whether an SPDX expression lets us use the package; if not, why.
fn is_allowed(expression: &str) -> Result<(), String> {
    if expression.trim().is_empty() {
        return Err("states no licence".to_owned());
    }
    // Before SPDX expressions, a slash stood for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let allowed = any_of(&mut words);
    match (allowed, words.next()) {
        (Some(true), None) => Ok(()),
        (Some(false), None) => Err(format!("`{expression}` is not on the list of allowed licences")),
        _ => Err(format!("`{expression}` is not a licence expression")),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `a OR b`: one suffices. `None` where the expression is malformed.
fn any_of(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = all_of(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all_of(words)?;
    }
    Some(allowed)
}

/// `a AND b`: each is needed; binds tighter than `OR`.
fn all_of(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words<'_>) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let allowed = any_of(words)?;
        return words.next_if_eq(&")").map(|_| allowed);
    }
    let mut name = words.next_if(|word| !matches!(*word, ")" | "OR" | "AND" | "WITH"))?.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next()?);
    }
    Some(ALLOWED.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn one_of_several_suffices_and_all_of_several_are_needed() {
        for fine in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 AND ISC",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert_eq!(is_allowed(fine), Ok(()), "{fine}");
        }
        for refused in
            ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0 WITH Some-exception", "MIT AND (GPL-3.0 OR AGPL-3.0)"]
        {
            assert!(is_allowed(refused).is_err_and(|reason| reason.contains("not on the list")), "{refused}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND"] {
            assert!(is_allowed(broken).is_err(), "{broken}");
        }
    }
}
