//! Writes out what a merged tree leaves to be understood: networks that services are on, names, variables without a
//! value, dependencies that other keys imply.

use std::path::Path;

use crate::canonical::clean;
use crate::diagnostic::Span;
use crate::node::{Entry, Mapping, Node, Value};
use crate::project::Environment;

/// A dependency that follows from another key.
pub(crate) struct Implied<'a> {
    pub(crate) service: &'a str,
    /// The key it follows from.
    pub(crate) from: &'static str,
    pub(crate) span: Span,
    restart: bool,
}

/// The services that a service needs because it uses their names, namespaces or mounts.
pub(crate) fn implied(service: &Mapping) -> Vec<Implied<'_>> {
    let mut found = Vec::new();
    let items = |key: &str| service.get(key).and_then(Node::as_sequence).unwrap_or_default().iter();
    for item in items("links") {
        let Some(link) = item.as_str() else { continue };
        let mut parts = link.split(':');
        let (first, second, third) = (parts.next(), parts.next(), parts.next());
        let name = if second.is_some() && third.is_none() { first.unwrap_or(link) } else { link };
        found.push(Implied { service: name, from: "links", span: item.span, restart: true });
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        let Some(node) = service.get(key) else { continue };
        if let Some(name) = node.as_str().and_then(|text| text.strip_prefix("service:")) {
            found.push(Implied { service: name, from: key, span: node.span, restart: true });
        }
    }
    for item in items("volumes_from") {
        let Some(text) = item.as_str().filter(|text| !text.starts_with("container:")) else { continue };
        let name = text.split(':').next().unwrap_or(text);
        found.push(Implied { service: name, from: "volumes_from", span: item.span, restart: false });
    }
    found
}

/// Completes a whole tree. What is complete stays as it is.
pub(super) fn complete(root: &mut Mapping, name: &str, environment: &Environment) {
    let mut uses_default = false;
    each(root, "services", |_, entry| {
        let Some(service) = entry.node.as_mapping_mut() else { return };
        uses_default |= join_default_network(service);
        complete_service(service, environment);
    });
    if uses_default {
        let networks = mapping(root, "networks");
        if !networks.contains("default") {
            networks.insert("default", Span::default(), empty_mapping());
        }
    }
    for group in ["networks", "volumes", "configs", "secrets"] {
        each(root, group, |key, entry| {
            if entry.node.is_null() {
                entry.node.value = Value::Mapping(Mapping::default());
            }
            let Some(resource) = entry.node.as_mapping_mut() else { return };
            if resource.get("name").is_none_or(Node::is_null) {
                let external =
                    matches!(resource.get("external"), Some(Node { value: Value::Bool(true), .. }));
                let given = if external { key.to_owned() } else { format!("{name}_{key}") };
                resource.insert("name", entry.key, Node::string(entry.key, given));
            }
        });
    }
}

fn each(root: &mut Mapping, group: &str, mut act: impl FnMut(&str, &mut Entry)) {
    let Some(members) = root.get_mut(group).and_then(Node::as_mapping_mut) else { return };
    for (name, entry) in members.iter_mut() {
        act(name, entry);
    }
}
fn empty_mapping() -> Node {
    Node::new(Span::default(), Value::Mapping(Mapping::default()))
}
fn null() -> Node {
    Node::new(Span::default(), Value::Null)
}
/// The mapping behind a key; made where there is none.
fn mapping<'a>(parent: &'a mut Mapping, key: &str) -> &'a mut Mapping {
    if parent.get(key).and_then(Node::as_mapping).is_none() {
        parent.insert(key, Span::default(), empty_mapping());
    }
    match parent.get_mut(key).and_then(Node::as_mapping_mut) {
        Some(mapping) => mapping,
        None => unreachable!("a mapping was put there"),
    }
}

/// A service without networks is on the default one; whether it is on it.
fn join_default_network(service: &mut Mapping) -> bool {
    if service.contains("provider") || service.contains("network_mode") {
        return false;
    }
    let networks = mapping(service, "networks");
    if networks.is_empty() {
        networks.insert("default", Span::default(), null());
    }
    networks.contains("default")
}

fn complete_service(service: &mut Mapping, environment: &Environment) {
    if let Some(policy) = service.get_mut("pull_policy")
        && policy.as_str() == Some("if_not_present")
    {
        policy.value = Value::String("missing".to_owned());
    }
    if let Some(build) = service.get_mut("build").and_then(Node::as_mapping_mut) {
        if !build.contains("dockerfile") && !build.contains("dockerfile_inline") {
            build.insert("dockerfile", Span::default(), Node::string(Span::default(), "Dockerfile"));
        }
        if let Some(arguments) = build.get_mut("args").and_then(Node::as_mapping_mut) {
            resolve(arguments, environment);
            arguments.retain(|_, entry| !entry.node.is_null());
        }
    }
    if let Some(variables) = service.get_mut("environment").and_then(Node::as_mapping_mut) {
        resolve(variables, environment);
    }
    if let Some(Node { value: Value::Sequence(mounts), .. }) = service.get_mut("volumes") {
        for mount in mounts {
            if let Some(Node { value: Value::String(target), .. }) =
                mount.as_mapping_mut().and_then(|mount| mount.get_mut("target"))
            {
                *target = clean(Path::new(target.as_str())).to_string_lossy().into_owned();
            }
        }
    }
    depend(service);
    let image = service.get("image").and_then(Node::as_str).filter(|image| !image.is_empty());
    if let Some(image) = image.map(str::to_owned)
        && let Some(Node { value: Value::Sequence(hooks), .. }) = service.get_mut("pre_start")
    {
        for hook in hooks.iter_mut().filter_map(Node::as_mapping_mut) {
            if !hook.contains("image") {
                hook.insert("image", Span::default(), Node::string(Span::default(), image.clone()));
            }
        }
    }
}

/// Gives variables without a value the one they have outside.
pub(super) fn resolve(variables: &mut Mapping, environment: &Environment) {
    for (name, entry) in variables.iter_mut() {
        if entry.node.is_null()
            && let Some(value) = environment.get(name)
        {
            entry.node.value = Value::String(value.clone());
        }
    }
}

/// Adds implied dependencies to those that are written.
fn depend(service: &mut Mapping) {
    let implied: Vec<(String, bool)> =
        implied(service).into_iter().map(|implied| (implied.service.to_owned(), implied.restart)).collect();
    if implied.is_empty() {
        return;
    }
    let dependencies = mapping(service, "depends_on");
    let bool = |value| Node::new(Span::default(), Value::Bool(value));
    for (name, restart) in implied {
        if dependencies.contains(&name) {
            continue;
        }
        let mut dependency = Mapping::default();
        let condition = Node::string(Span::default(), "service_started");
        dependency.insert("condition", Span::default(), condition);
        dependency.insert("restart", Span::default(), bool(restart));
        dependency.insert("required", Span::default(), bool(true));
        dependencies.insert(name, Span::default(), Node::new(Span::default(), Value::Mapping(dependency)));
    }
}
