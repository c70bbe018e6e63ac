//! Turns short forms into long ones, so that every later stage knows one form of everything.
//!
//! Lists of `KEY=value` become mappings, single values become lists where lists may stand, ports and volumes are taken
//! apart, and relative paths become absolute. The tree has been checked: what has an unexpected kind stays as it is.

use std::path::{Component, Path, PathBuf};

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Mapping, Node, Tag, Value};
use crate::short;

/// Where relative paths of a file begin, and what `~` means.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) folder: PathBuf,
    pub(crate) home: Option<String>,
}

impl Base {
    /// An absolute path without `.` and `..`, as far as the base is absolute.
    pub(crate) fn resolve(&self, path: &str) -> String {
        let home = self.home.as_deref().filter(|_| path == "~" || path.starts_with("~/"));
        let joined = match home {
            Some(home) => Path::new(home).join(path[1..].trim_start_matches('/')),
            None => self.folder.join(path),
        };
        clean(&joined).to_string_lossy().into_owned()
    }
}

/// Without `.`, and without `..` where something can be left.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir | Component::Prefix(_)) => {}
                Some(Component::CurDir | Component::ParentDir) | None => out.push(".."),
            },
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => out.push(component),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

pub(crate) fn canonical(report: &mut Report, root: &mut Node, base: &Base) {
    let key = Key::Root;
    let Some(root) = root.as_mapping_mut() else { return };
    each(root, "services", &key, |node, key| service(report, node, key, base));
    each(root, "networks", &key, |node, key| {
        pairs(report, node, "labels", key, Bare::Blank);
        texts(node, "driver_opts");
        external(report, node, key);
    });
    each(root, "volumes", &key, |node, key| {
        pairs(report, node, "labels", key, Bare::Blank);
        texts(node, "driver_opts");
        external(report, node, key);
        bound_volume(node, base);
    });
    for group in ["configs", "secrets"] {
        each(root, group, &key, |node, key| {
            pairs(report, node, "labels", key, Bare::Blank);
            external(report, node, key);
            path(node, "file", base);
        });
    }
    if let Some(Node { value: Value::Sequence(items), .. }) = root.get_mut("include") {
        for item in items {
            if item.as_str().is_some() {
                let text = std::mem::replace(item, Node::new(item.span, Value::Null));
                let mut mapping = Mapping::default();
                mapping.insert("path", text.span, text);
                item.value = Value::Mapping(mapping);
            }
            if let Some(mapping) = item.as_mapping_mut() {
                list(mapping, "path");
                list(mapping, "env_file");
            }
        }
    }
}

/// Does something with every named mapping of a group.
fn each(root: &mut Mapping, group: &str, key: &Key<'_>, mut act: impl FnMut(&mut Mapping, &Key<'_>)) {
    let key = key.field(group);
    let Some(members) = root.get_mut(group).and_then(Node::as_mapping_mut) else { return };
    for (name, entry) in members.iter_mut() {
        if let Some(mapping) = entry.node.as_mapping_mut() {
            act(mapping, &key.field(name));
        }
    }
}

fn service(report: &mut Report, service: &mut Mapping, key: &Key<'_>, base: &Base) {
    for name in ["environment", "sysctls"] {
        pairs(report, service, name, key, Bare::Null);
    }
    for name in ["labels", "annotations"] {
        pairs(report, service, name, key, Bare::Blank);
    }
    for name in ["dns", "dns_search", "tmpfs", "env_file", "label_file"] {
        list(service, name);
    }
    // Text that substitution left empty names nothing.
    for name in ["dns", "dns_search", "tmpfs"] {
        if let Some(Node { value: Value::Sequence(items), .. }) = service.get_mut(name) {
            items.retain(|item| item.as_str() != Some(""));
        }
    }
    for name in ["group_add", "expose"] {
        items(service, name, |item| {
            if let Some(text) = item.scalar_text() {
                item.value = Value::String(text);
            }
        });
    }
    texts(service, "storage_opt");
    hosts(report, service, key);
    items(service, "env_file", |item| {
        wrap(item, "path");
        if let Some(mapping) = item.as_mapping_mut() {
            path(mapping, "path", base);
        }
    });
    items(service, "label_file", |item| resolve(item, base));
    for name in ["configs", "secrets"] {
        items(service, name, |item| wrap(item, "source"));
    }
    depends_on(service);
    for name in ["networks", "models"] {
        keyed(service, name, |span| Node::new(span, Value::Null));
    }
    if let Some(networks) = service.get_mut("networks").and_then(Node::as_mapping_mut) {
        for (_, entry) in networks.iter_mut() {
            if let Some(mapping) = entry.node.as_mapping_mut() {
                texts(mapping, "driver_opts");
            }
        }
    }
    if let Some(logging) = service.get_mut("logging").and_then(Node::as_mapping_mut) {
        texts(logging, "options");
    }
    expand(report, service, "ports", key, short::ports);
    expand(report, service, "volumes", key, |report, item, key| short::volume(report, item, key, base));
    expand(report, service, "devices", key, short::device);
    if let Some(Node { value: Value::Sequence(mounts), .. }) = service.get_mut("volumes") {
        let key = key.field("volumes");
        for (index, mount) in mounts.iter_mut().enumerate() {
            let Some(mount) = mount.as_mapping_mut() else { continue };
            if let Some(volume) = mount.get_mut("volume").and_then(Node::as_mapping_mut) {
                pairs(report, volume, "labels", &key.item(index), Bare::Blank);
            }
            if mount.get("type").and_then(Node::as_str) == Some("bind") {
                path(mount, "source", base);
            }
        }
    }
    if let Some(extends) = service.get_mut("extends") {
        wrap(extends, "service");
    }
    if let Some(gpus) = service.get_mut("gpus")
        && gpus.as_str() == Some("all")
    {
        let span = gpus.span;
        let mut request = Mapping::default();
        request.insert("count", span, Node::new(span, Value::Int(-1)));
        gpus.value = Value::Sequence(vec![Node::new(span, Value::Mapping(request))]);
    }
    if let Some(deploy) = service.get_mut("deploy").and_then(Node::as_mapping_mut) {
        pairs(report, deploy, "labels", &key.field("deploy"), Bare::Blank);
    }
    if let Some(build) = service.get_mut("build") {
        wrap(build, "context");
        if let Some(build) = build.as_mapping_mut() {
            let key = key.field("build");
            for name in ["args", "additional_contexts"] {
                pairs(report, build, name, &key, Bare::Null);
            }
            pairs(report, build, "labels", &key, Bare::Blank);
            items(build, "secrets", |item| wrap(item, "source"));
            if build.get("context").and_then(Node::as_str).is_some_and(|context| !context.contains("://")) {
                path(build, "context", base);
            }
        }
    }
}

/// What a bare `KEY` in a list of pairs means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bare {
    /// To be taken from elsewhere.
    Null,
    /// An empty text.
    Blank,
}

/// A list of `KEY=value` or a mapping of scalars becomes a mapping of texts.
fn pairs(report: &mut Report, parent: &mut Mapping, name: &str, key: &Key<'_>, bare: Bare) {
    let Some(node) = parent.get_mut(name) else { return };
    let key = key.field(name);
    if let Value::Sequence(items) = &mut node.value {
        let mut mapping = Mapping::default();
        for (index, item) in std::mem::take(items).into_iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Value::String(value.to_owned())),
                None => (text.to_owned(), Value::Null),
            };
            if name.trim().is_empty() {
                let message = format!("`{text}` has no name before the `=`");
                report
                    .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                    .hint("write `NAME=value`");
                continue;
            }
            // The last one counts, as in a shell.
            mapping.insert(name, item.span, Node { span: item.span, tag: item.tag, value });
        }
        node.value = Value::Mapping(mapping);
    }
    if let Value::Mapping(mapping) = &mut node.value {
        for (_, entry) in mapping.iter_mut() {
            match entry.node.scalar_text() {
                Some(text) => entry.node.value = Value::String(text),
                None if bare == Bare::Blank && entry.node.is_null() && entry.node.tag == Tag::None => {
                    entry.node.value = Value::String(String::new());
                }
                None => {}
            }
        }
    }
}

/// Numbers and booleans in a mapping become text.
fn texts(parent: &mut Mapping, name: &str) {
    let Some(mapping) = parent.get_mut(name).and_then(Node::as_mapping_mut) else { return };
    for (_, entry) in mapping.iter_mut() {
        if let Some(text) = entry.node.scalar_text() {
            entry.node.value = Value::String(text);
        } else if entry.node.is_null() && entry.node.tag == Tag::None {
            entry.node.value = Value::String(String::new());
        }
    }
}

/// A single text becomes a list of one.
fn list(parent: &mut Mapping, name: &str) {
    let Some(node) = parent.get_mut(name) else { return };
    if matches!(node.value, Value::String(_)) {
        let value = std::mem::replace(&mut node.value, Value::Null);
        node.value = Value::Sequence(vec![Node::new(node.span, value)]);
    }
}

fn items(parent: &mut Mapping, name: &str, mut act: impl FnMut(&mut Node)) {
    if let Some(Node { value: Value::Sequence(items), .. }) = parent.get_mut(name) {
        items.iter_mut().for_each(&mut act);
    }
}

/// A text becomes a mapping with it as its one field.
fn wrap(node: &mut Node, field: &str) {
    if let Value::String(text) = &node.value {
        let inner = Node::string(node.span, text.clone());
        let mut mapping = Mapping::default();
        mapping.insert(field, node.span, inner);
        node.value = Value::Mapping(mapping);
    }
}

/// A list of names becomes a mapping from them.
fn keyed(parent: &mut Mapping, name: &str, make: impl Fn(Span) -> Node) {
    let Some(node) = parent.get_mut(name) else { return };
    let Value::Sequence(items) = &node.value else { return };
    let mut mapping = Mapping::default();
    for item in items {
        if let Some(text) = item.as_str() {
            let made = Node { tag: item.tag, ..make(item.span) };
            mapping.insert(text, item.span, made);
        }
    }
    node.value = Value::Mapping(mapping);
}

fn depends_on(service: &mut Mapping) {
    keyed(service, "depends_on", |span| {
        let mut mapping = Mapping::default();
        mapping.insert("condition", span, Node::string(span, "service_started"));
        mapping.insert("required", span, Node::new(span, Value::Bool(true)));
        Node::new(span, Value::Mapping(mapping))
    });
    let Some(mapping) = service.get_mut("depends_on").and_then(Node::as_mapping_mut) else { return };
    for (_, entry) in mapping.iter_mut() {
        let place = entry.key;
        if let Some(dependency) = entry.node.as_mapping_mut()
            && !dependency.contains("required")
        {
            dependency.insert("required", place, Node::new(place, Value::Bool(true)));
        }
    }
}

/// `extra_hosts` in every form becomes a list of `name=address`.
fn hosts(report: &mut Report, service: &mut Mapping, key: &Key<'_>) {
    let Some(node) = service.get_mut("extra_hosts") else { return };
    let key = key.field("extra_hosts");
    let mut lines: Vec<Node> = Vec::new();
    match &node.value {
        Value::Mapping(mapping) => {
            for (name, entry) in mapping.iter() {
                let addresses = match &entry.node.value {
                    Value::Sequence(items) => items.iter().collect(),
                    _ => vec![&entry.node],
                };
                for address in addresses {
                    if let Some(text) = address.as_str() {
                        lines.push(Node::string(entry.place(), format!("{name}={}", unbracketed(text))));
                    }
                }
            }
        }
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                let Some(text) = item.as_str() else { continue };
                let Some((name, address)) = text.split_once('=').or_else(|| text.split_once(':')) else {
                    let message = format!("`{text}` is not a host and its address");
                    report
                        .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                        .hint("write `name=address`, such as `db.example=10.0.0.7`");
                    continue;
                };
                lines.push(Node::string(
                    item.span,
                    format!("{}={}", name.trim(), unbracketed(address.trim())),
                ));
            }
        }
        _ => return,
    }
    node.value = Value::Sequence(lines);
}

fn unbracketed(address: &str) -> &str {
    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address)
}

/// Replaces items by what a short form stands for.
fn expand(
    report: &mut Report,
    service: &mut Mapping,
    name: &str,
    key: &Key<'_>,
    mut act: impl FnMut(&mut Report, Node, &Key<'_>) -> Vec<Node>,
) {
    let Some(Node { value: Value::Sequence(items), .. }) = service.get_mut(name) else { return };
    let key = key.field(name);
    let short = std::mem::take(items);
    for (index, item) in short.into_iter().enumerate() {
        if item.tag == Tag::Reset {
            continue;
        }
        let span = item.span;
        let long = act(report, item, &key.item(index));
        if long.is_empty() {
            // Keeps the place, so that complaints about later items count as the file does.
            items.push(Node::new(span, Value::Invalid));
        }
        items.extend(long);
    }
}

/// `external: {name: x}`, the form of old, becomes `external: true` and `name: x`.
fn external(report: &mut Report, node: &mut Mapping, key: &Key<'_>) {
    let Some(entry) = node.entry("external") else { return };
    let place = entry.key;
    let Value::Mapping(inner) = &entry.node.value else { return };
    let name = inner.entry("name").cloned();
    let span = entry.node.span;
    report
        .warn(Complaint::Obsolete, place, &key.field("external"), "`external: {name: …}` is an old form")
        .hint("write `external: true` and `name: …` beside it");
    node.insert("external", place, Node::new(span, Value::Bool(true)));
    if let Some(name) = name
        && !node.contains("name")
    {
        node.insert("name", name.key, name.node);
    }
}

/// A local volume that is a bind of a relative path.
fn bound_volume(volume: &mut Mapping, base: &Base) {
    let Some(options) = volume.get_mut("driver_opts").and_then(Node::as_mapping_mut) else { return };
    let binds = options.get("o").and_then(Node::as_str).is_some_and(|o| o.split(',').any(|o| o == "bind"));
    if binds {
        path(options, "device", base);
    }
}

fn path(parent: &mut Mapping, name: &str, base: &Base) {
    if let Some(node) = parent.get_mut(name) {
        resolve(node, base);
    }
}

fn resolve(node: &mut Node, base: &Base) {
    if let Value::String(text) = &mut node.value
        && !text.is_empty()
    {
        *text = base.resolve(text);
    }
}
