//! Compares which crate of the workspace depends on which with the architecture.
//!
//! The table below is the architecture's "may depend on"; an edge that is not in it is a finding, and so is a crate
//! that the table does not know. Pure crates have no async runtime anywhere in their tree, tests included.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::Findings;
use crate::project::{Project, items, text};

/// Each crate, and the crates of the workspace that it may depend on, for whatever purpose.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("wharf-model", &[]),
    ("wharf-process", &[]),
    ("wharf-compose", &["wharf-model"]),
    ("wharf-engine", &["wharf-model"]),
    ("wharf-api", &["wharf-model"]),
    ("wharf-store", &["wharf-model", "wharf-process"]),
    ("wharf-gateway", &["wharf-model", "wharf-api", "wharf-process"]),
    (
        "wharf-server",
        &["wharf-model", "wharf-api", "wharf-compose", "wharf-engine", "wharf-store", "wharf-process"],
    ),
    ("wharf-agent", &["wharf-model", "wharf-api", "wharf-process"]),
    (
        "wharf",
        &[
            "wharf-server",
            "wharf-agent",
            "wharf-gateway",
            "wharf-api",
            "wharf-compose",
            "wharf-model",
            "wharf-process",
        ],
    ),
    (
        "wharf-testkit",
        &[
            "wharf-model",
            "wharf-compose",
            "wharf-engine",
            "wharf-api",
            "wharf-store",
            "wharf-process",
            "wharf-gateway",
            "wharf-server",
            "wharf-agent",
        ],
    ),
    ("wharf-tests", &["wharf-testkit", "wharf-model", "wharf-api"]),
    ("xtask", &[]),
];

/// Crates that decide and compute only.
const PURE: &[&str] = &["wharf-model", "wharf-compose", "wharf-engine"];

/// What gives away an async runtime.
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "hyper", "mio"];

pub(crate) fn check(project: &Project) -> anyhow::Result<Findings> {
    let metadata = project.metadata()?;
    let graph = Graph::read(&metadata);
    let mut findings = graph.forbidden_edges(MAY_DEPEND_ON);
    findings.extend(graph.impurities(PURE, RUNTIMES));
    Ok(findings)
}

/// Crates by their name in Cargo's resolved graph. Names are enough: what is asked does not depend on versions.
struct Graph {
    members: BTreeSet<String>,
    /// Includes development and build dependencies of members, as Cargo resolves them.
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Graph {
        let names: BTreeMap<&str, &str> =
            items(metadata, "packages").map(|package| (text(package, "id"), text(package, "name"))).collect();
        let name = |id: &str| names.get(id).copied().unwrap_or(id).to_owned();

        let members = items(metadata, "workspace_members").filter_map(Value::as_str).map(name).collect();
        let mut dependencies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in items(&metadata["resolve"], "nodes") {
            let own = dependencies.entry(name(text(node, "id"))).or_default();
            own.extend(items(node, "dependencies").filter_map(Value::as_str).map(name));
        }
        Graph { members, dependencies }
    }

    fn forbidden_edges(&self, allowed: &[(&str, &[&str])]) -> Findings {
        let mut findings = Findings::new();
        for member in &self.members {
            let Some((_, allowed)) = allowed.iter().find(|(name, _)| name == member) else {
                findings.push(format!(
                    "{member}: a crate that the architecture does not know; add it to xtask/src/crates.rs"
                ));
                continue;
            };
            let direct = self.dependencies.get(member).into_iter().flatten();
            for dependency in
                direct.filter(|dependency| *dependency != member && self.members.contains(*dependency))
            {
                if !allowed.contains(&dependency.as_str()) {
                    findings.push(format!("{member}: must not depend on {dependency}"));
                }
            }
        }
        findings
    }

    fn impurities(&self, pure: &[&str], runtimes: &[&str]) -> Findings {
        let mut findings = Findings::new();
        for name in pure {
            for path in self.paths_to(name, runtimes) {
                findings.push(format!(
                    "{name}: must have no async runtime in its tree, but has {}",
                    path.join(" -> ")
                ));
            }
        }
        findings
    }

    /// A path from a crate to each of the targets in its tree.
    fn paths_to(&self, from: &str, targets: &[&str]) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::from([from.to_owned()]);
        let mut queue = std::collections::VecDeque::from([vec![from.to_owned()]]);
        while let Some(path) = queue.pop_front() {
            let Some(last) = path.last() else { continue };
            for next in self.dependencies.get(last).into_iter().flatten() {
                if !seen.insert(next.clone()) {
                    continue;
                }
                let longer: Vec<String> = path.iter().chain([next]).cloned().collect();
                if targets.contains(&next.as_str()) {
                    found.push(longer);
                } else {
                    queue.push_back(longer);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn graph(edges: &[(&str, &[&str])], members: &[&str]) -> Graph {
        let nodes: Vec<Value> = edges
            .iter()
            .map(|(id, dependencies)| json!({ "id": id, "dependencies": dependencies }))
            .collect();
        let packages: Vec<Value> = edges.iter().map(|(id, _)| json!({ "id": id, "name": id })).collect();
        Graph::read(
            &json!({ "packages": packages, "workspace_members": members, "resolve": { "nodes": nodes } }),
        )
    }

    #[test]
    fn an_edge_that_the_table_lacks_is_named() {
        let graph = graph(&[("a", &["b", "serde"]), ("b", &["a"]), ("serde", &[])], &["a", "b"]);
        assert_eq!(graph.forbidden_edges(&[("a", &["b"]), ("b", &[])]), ["b: must not depend on a"]);
    }

    #[test]
    fn a_crate_that_the_table_lacks_is_named() {
        let findings = graph(&[("new", &[])], &["new"]).forbidden_edges(&[]);
        assert!(findings[0].starts_with("new: a crate that the architecture does not know"), "{findings:?}");
    }

    #[test]
    fn a_runtime_is_found_however_deep() {
        let graph = graph(&[("a", &["x"]), ("x", &["y"]), ("y", &["tokio"]), ("tokio", &[])], &["a"]);
        assert_eq!(
            graph.impurities(&["a"], &["tokio"]),
            ["a: must have no async runtime in its tree, but has a -> x -> y -> tokio"]
        );
    }
}
