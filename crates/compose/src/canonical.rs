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
    /// Where relative paths are to stay relative: the folder as seen from where they are to begin.
    pub(crate) written: Option<PathBuf>,
}

impl Base {
    /// The file that a path names, without `.` and `..`, as far as the base is absolute.
    pub(crate) fn locate(&self, path: &str) -> PathBuf {
        clean(&self.joined(path))
    }

    /// The same for a path that is a value; one that is absolute stays as it is written.
    pub(crate) fn resolve(&self, path: &str) -> String {
        if path.starts_with('/') || is_windows_absolute(path) {
            return path.to_owned();
        }
        match &self.written {
            None => self.locate(path).to_string_lossy().into_owned(),
            Some(folder) if folder.as_os_str().is_empty() || path.starts_with('~') => path.to_owned(),
            Some(folder) => clean(&folder.join(path)).to_string_lossy().into_owned(),
        }
    }

    /// The same for files of another folder.
    pub(crate) fn elsewhere(&self, folder: PathBuf) -> Self {
        let written =
            self.written.as_ref().map(|written| clean(&written.join(from_to(&self.folder, &folder))));
        Self { folder, home: self.home.clone(), written }
    }

    fn joined(&self, path: &str) -> PathBuf {
        match self.home.as_deref().filter(|_| path.starts_with('~')) {
            Some(home) => Path::new(home).join(path[1..].trim_start_matches('/')),
            None => self.folder.join(path),
        }
    }
}

/// The way from one folder to another; both are clean.
pub(crate) fn from_to(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// `C:\data`, `C:/data`, `\\server\share`
fn is_windows_absolute(path: &str) -> bool {
    let separator = |byte: Option<&u8>| matches!(byte, Some(b'/' | b'\\'));
    let bytes = path.as_bytes();
    match bytes {
        [drive, b':', ..] => drive.is_ascii_alphabetic() && separator(bytes.get(2)),
        [b'\\', b'\\', ..] => true,
        _ => false,
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
    each(root, "jobs", &key, |node, key| service(report, node, key, base));
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
    expand(report, service, "volumes", key, short::volume);
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
    if let Some(develop) = service.get_mut("develop").and_then(Node::as_mapping_mut) {
        items(develop, "watch", |item| {
            let Some(watch) = item.as_mapping_mut() else { return };
            path(watch, "path", base);
            list(watch, "ignore");
            list(watch, "include");
        });
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
            for name in ["args", "additional_contexts", "ssh"] {
                pairs(report, build, name, &key, Bare::Null);
            }
            ssh_keys(report, build, &key, base);
            pairs(report, build, "labels", &key, Bare::Blank);
            items(build, "secrets", |item| wrap(item, "source"));
            hosts(report, build, &key);
            if build.get("context").and_then(Node::as_str).is_some_and(|context| !is_remote(context)) {
                path(build, "context", base);
            }
            let contexts = build.get_mut("additional_contexts").and_then(Node::as_mapping_mut);
            for (_, entry) in contexts.into_iter().flat_map(Mapping::iter_mut) {
                // `service:api`, `docker-image://alpine:3` and the like are no paths.
                if entry.node.as_str().is_some_and(|text| !is_remote(text) && !text.contains(':')) {
                    resolve(&mut entry.node, base);
                }
            }
        }
    }
}

/// Keys and sockets for `ssh`: paths become absolute, and only `default` needs none.
fn ssh_keys(report: &mut Report, build: &mut Mapping, key: &Key<'_>, base: &Base) {
    let Some(keys) = build.get_mut("ssh").and_then(Node::as_mapping_mut) else { return };
    let key = key.field("ssh");
    for (name, entry) in keys.iter_mut() {
        if entry.node.is_null() && name != "default" && entry.node.tag == Tag::None {
            let message = format!("the SSH key `{name}` has no path");
            report
                .error(Complaint::InvalidValue, entry.key, &key.field(name), message)
                .hint(format!("write `{name}=/path/of/the/key`"));
        }
        resolve(&mut entry.node, base);
    }
}

/// Writes out what the keys of a merged tree leave to be understood, before it meets other trees.
pub(crate) fn defaults(root: &mut Node, base: &Base) {
    for group in ["services", "jobs"] {
        let group = root.as_mapping_mut().and_then(|root| root.get_mut(group)).and_then(Node::as_mapping_mut);
        for (_, entry) in group.into_iter().flat_map(Mapping::iter_mut) {
            if let Some(service) = entry.node.as_mapping_mut() {
                service_defaults(service, base);
            }
        }
    }
}

fn service_defaults(service: &mut Mapping, base: &Base) {
    let give = |mapping: &mut Mapping, name: &str, place: Span, value: Value| {
        if !mapping.contains(name) {
            mapping.insert(name, place, Node::new(place, value));
        }
    };
    let text = |text: &str| Value::String(text.to_owned());
    blanks(service, "storage_opt");
    if let Some(logging) = service.get_mut("logging").and_then(Node::as_mapping_mut) {
        blanks(logging, "options");
    }
    if let Some(networks) = service.get_mut("networks").and_then(Node::as_mapping_mut) {
        for (_, entry) in networks.iter_mut() {
            if let Some(attachment) = entry.node.as_mapping_mut() {
                blanks(attachment, "driver_opts");
            }
        }
    }
    if let Some(entry) = service.entry_mut("build")
        && let Some(build) = entry.node.as_mapping_mut()
    {
        give(build, "context", entry.key, Value::String(base.resolve(".")));
    }
    if let Some(dependencies) = service.get_mut("depends_on").and_then(Node::as_mapping_mut) {
        for (_, entry) in dependencies.iter_mut() {
            if let Some(dependency) = entry.node.as_mapping_mut() {
                give(dependency, "required", entry.key, Value::Bool(true));
            }
        }
    }
    items(service, "secrets", |item| {
        let span = item.span;
        let Some(mount) = item.as_mapping_mut() else { return };
        let source = mount.get("source").and_then(Node::as_str).unwrap_or_default();
        let target = format!("/run/secrets/{source}");
        give(mount, "target", span, Value::String(target));
    });
    items(service, "ports", |item| {
        let span = item.span;
        let Some(port) = item.as_mapping_mut() else { return };
        give(port, "mode", span, text("ingress"));
        give(port, "protocol", span, text("tcp"));
    });
    items(service, "volumes", |item| {
        let bind = item.as_mapping_mut().and_then(|mount| mount.entry_mut("bind"));
        let Some(entry) = bind else { return };
        if let Some(bind) = entry.node.as_mapping_mut() {
            give(bind, "create_host_path", entry.key, Value::Bool(true));
        }
    });
    let count = |item: &mut Node| {
        let span = item.span;
        let Some(request) = item.as_mapping_mut() else { return };
        if !request.contains("count") && !request.contains("device_ids") {
            give(request, "count", span, text("all"));
        }
    };
    items(service, "gpus", count);
    let reservations = service
        .get_mut("deploy")
        .and_then(Node::as_mapping_mut)
        .and_then(|deploy| deploy.get_mut("resources"))
        .and_then(Node::as_mapping_mut)
        .and_then(|resources| resources.get_mut("reservations"))
        .and_then(Node::as_mapping_mut);
    if let Some(reservations) = reservations {
        items(reservations, "devices", count);
    }
}

/// Whether a build's context is fetched by the builder.
pub(crate) fn is_remote(context: &str) -> bool {
    context.contains("://") || context.starts_with("github.com/") || context.starts_with("git@")
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
                report.unsupported(item.span, &key.item(index), message).hint("write `NAME=value`");
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
        }
    }
}

/// Nothing in a mapping becomes empty text.
fn blanks(parent: &mut Mapping, name: &str) {
    let Some(mapping) = parent.get_mut(name).and_then(Node::as_mapping_mut) else { return };
    for (_, entry) in mapping.iter_mut() {
        if entry.node.is_null() {
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
                for address in address.split(',') {
                    let line = format!("{}={}", name.trim(), unbracketed(address.trim()));
                    lines.push(Node::string(item.span, line));
                }
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
        if item.as_str().is_some_and(|text| report.is_open(text)) {
            items.push(item);
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
    if volume.get("driver").and_then(Node::as_str) != Some("local") {
        return;
    }
    let Some(options) = volume.get_mut("driver_opts").and_then(Node::as_mapping_mut) else { return };
    if options.get("o").and_then(Node::as_str) == Some("bind") {
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
