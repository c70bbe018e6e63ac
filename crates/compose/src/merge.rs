//! Merges trees by the rules of the specification: mappings by key, lists appended, the rest replaced.
//!
//! Both trees are canonical. Commands and checks are replaced as a whole; ports, mounts and the like are unique by what
//! they stand for, and the last one wins in the place of the first. `!reset` removes, `!override` replaces; afterwards no
//! tag is left.

use std::collections::HashMap;

use crate::diagnostic::{Complaint, Key, Report};
use crate::node::{Entry, Mapping, Node, Tag, Value};

/// Merges `over` into `base`; both stand at `key`.
pub(crate) fn merge(report: &mut Report, base: Node, over: Node, key: &Key<'_>) -> Node {
    if over.tag == Tag::Override || replaces(key) || base.is_invalid() {
        return Node { tag: Tag::None, ..over };
    }
    match (base.value, over.value) {
        (_, Value::Null) if is_variable(key) => Node { tag: Tag::None, value: Value::Null, ..over },
        (value, Value::Null) => Node { span: base.span, tag: base.tag, value },
        (Value::Mapping(mut below), Value::Mapping(above)) => {
            if is_logging(key) && differing_drivers(&below, &above) {
                return Node { span: over.span, tag: Tag::None, value: Value::Mapping(above) };
            }
            for (name, entry) in above {
                merge_entry(report, &mut below, name, entry, key);
            }
            Node { span: over.span, tag: base.tag, value: Value::Mapping(below) }
        }
        (Value::Sequence(mut below), Value::Sequence(mut above)) => {
            if is_pools(key) {
                merge_pools(report, &mut below, &mut above, key);
            }
            below.extend(above);
            Node { span: over.span, tag: base.tag, value: Value::Sequence(below) }
        }
        (below @ (Value::Mapping(_) | Value::Sequence(_)), above)
        | (below, above @ (Value::Mapping(_) | Value::Sequence(_)))
            if !matches!(below, Value::Null) && !matches!(above, Value::Invalid) =>
        {
            let below = Node::new(base.span, below);
            let above = Node::new(over.span, above);
            let message = format!("{} cannot be merged with {}", above.kind(), below.kind());
            report
                .error(Complaint::Conflict, over.span, key, message)
                .hint("use the same form in every file, or replace the value with `!override`");
            report.relate(base.span, "the value it should be merged with");
            above
        }
        (_, above) => Node { span: over.span, tag: Tag::None, value: above },
    }
}

fn merge_entry(report: &mut Report, below: &mut Mapping, name: String, entry: Entry, key: &Key<'_>) {
    if entry.node.tag == Tag::Reset {
        below.remove(&name);
        return;
    }
    let Some(slot) = below.get_mut(&name) else {
        below.insert(name, entry.key, entry.node);
        return;
    };
    let base = std::mem::replace(slot, Node::new(entry.key, Value::Null));
    let merged = merge(report, base, entry.node, &key.field(&name));
    below.insert(name, entry.key, merged);
}

/// Values that are replaced as a whole, even by nothing.
fn replaces(key: &Key<'_>) -> bool {
    let Key::Field(parent, name) = key else { return false };
    if matches!(parent, Key::Field(service, "ulimits") if is_service(service)) {
        return true;
    }
    match *name {
        "command" | "entrypoint" => is_service(parent),
        "test" => matches!(parent, Key::Field(service, "healthcheck") if is_service(service)),
        _ => false,
    }
}
/// One of several that are given as `NAME=value` or as `NAME`, which says something too.
fn is_variable(key: &Key<'_>) -> bool {
    let Key::Field(Key::Field(parent, group), _) = key else { return false };
    match *group {
        "environment" | "sysctls" | "annotations" | "labels" => is_service(parent),
        "args" | "additional_contexts" => {
            matches!(parent, Key::Field(service, "build") if is_service(service))
        }
        _ => false,
    }
}
/// The address pools of a network.
fn is_pools(key: &Key<'_>) -> bool {
    matches!(key, Key::Field(Key::Field(Key::Field(Key::Field(Key::Root, "networks"), _), "ipam"), "config"))
}

/// Pools of the same subnet are merged; those of which later files do not speak are gone.
fn merge_pools(report: &mut Report, below: &mut Vec<Node>, above: &mut [Node], key: &Key<'_>) {
    let subnet = |pool: &Node| pool.as_mapping()?.get("subnet")?.scalar_text();
    let mut earlier: HashMap<Option<String>, Node> =
        below.drain(..).map(|pool| (subnet(&pool), pool)).collect();
    for (index, pool) in above.iter_mut().enumerate() {
        if let Some(base) = earlier.remove(&subnet(pool)) {
            let over = std::mem::replace(pool, Node::new(base.span, Value::Null));
            *pool = merge(report, base, over, &key.item(index));
        }
    }
}

fn is_service(key: &Key<'_>) -> bool {
    matches!(key, Key::Field(Key::Field(Key::Root, "services" | "jobs"), _))
}
fn is_logging(key: &Key<'_>) -> bool {
    matches!(key, Key::Field(service, "logging") if is_service(service))
}
fn differing_drivers(below: &Mapping, above: &Mapping) -> bool {
    let driver = |mapping: &Mapping| mapping.get("driver").and_then(Node::as_str).map(str::to_owned);
    matches!((driver(below), driver(above)), (Some(below), Some(above)) if below != above)
}

/// Removes what is still tagged `!reset`, and forgets tags.
pub(crate) fn settle(node: &mut Node) {
    node.tag = Tag::None;
    match &mut node.value {
        Value::Mapping(mapping) => {
            mapping.retain(|_, entry| entry.node.tag != Tag::Reset);
            for (_, entry) in mapping.iter_mut() {
                settle(&mut entry.node);
            }
        }
        Value::Sequence(items) => {
            items.retain(|item| item.tag != Tag::Reset);
            items.iter_mut().for_each(settle);
        }
        _ => {}
    }
}

/// Leaves one of several items of a service that stand for the same.
pub(crate) fn enforce_unicity(root: &mut Node) {
    let Some(root) = root.as_mapping_mut() else { return };
    for group in ["services", "jobs"] {
        let group = root.get_mut(group).and_then(Node::as_mapping_mut);
        for (_, entry) in group.into_iter().flat_map(Mapping::iter_mut) {
            if let Some(service) = entry.node.as_mapping_mut() {
                unique_items(service);
            }
        }
    }
}

pub(crate) fn unique_items(service: &mut Mapping) {
    if let Some(build) = service.get_mut("build").and_then(Node::as_mapping_mut) {
        unique_in(build, "tags");
    }
    let networks = service.get_mut("networks").and_then(Node::as_mapping_mut);
    for (_, entry) in networks.into_iter().flat_map(Mapping::iter_mut) {
        if let Some(attachment) = entry.node.as_mapping_mut() {
            unique_in(attachment, "aliases");
            unique_in(attachment, "link_local_ips");
        }
    }
    for (name, entry) in service.iter_mut() {
        let identity: fn(&Node) -> Option<String> = match name {
            "cap_add" | "cap_drop" | "dns" | "dns_opt" | "dns_search" | "links" | "profiles" | "tmpfs" => {
                name_identity
            }
            "expose" | "extra_hosts" | "group_add" | "security_opt" | "label_file" => text_identity,
            "devices" | "volumes" => target_identity,
            "env_file" => |item| item.as_mapping()?.get("path")?.scalar_text(),
            "configs" => |item| mount_identity(item, ""),
            "secrets" => |item| mount_identity(item, "/run/secrets"),
            "ports" => port_identity,
            _ => continue,
        };
        if let Value::Sequence(items) = &mut entry.node.value {
            unique(items, identity);
        }
    }
}

fn unique_in(parent: &mut Mapping, name: &str) {
    if let Some(Node { value: Value::Sequence(items), .. }) = parent.get_mut(name) {
        unique(items, name_identity);
    }
}

fn unique(items: &mut Vec<Node>, identity: fn(&Node) -> Option<String>) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<Node> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        match identity(&item) {
            Some(id) => match seen.get(&id) {
                Some(index) => kept[*index] = item,
                None => {
                    seen.insert(id, kept.len());
                    kept.push(item);
                }
            },
            None => kept.push(item),
        }
    }
    *items = kept;
}

/// What is before an equals sign: of `/run:size=1m` and `/run:size=2m` the last one counts.
fn name_identity(item: &Node) -> Option<String> {
    let text = item.scalar_text()?;
    Some(text.split_once('=').map_or(text.clone(), |(name, _)| name.to_owned()))
}
fn text_identity(item: &Node) -> Option<String> {
    item.scalar_text()
}
fn target_identity(item: &Node) -> Option<String> {
    item.as_mapping()?.get("target")?.scalar_text()
}
fn mount_identity(item: &Node, folder: &str) -> Option<String> {
    let mount = item.as_mapping()?;
    match mount.get("target") {
        Some(target) => target.scalar_text(),
        None => Some(format!("{folder}/{}", mount.get("source")?.scalar_text()?)),
    }
}
fn port_identity(item: &Node) -> Option<String> {
    let port = item.as_mapping()?;
    let text = |name: &str, default: &str| {
        port.get(name).and_then(Node::scalar_text).unwrap_or_else(|| default.to_owned())
    };
    let (address, protocol) = (text("host_ip", "0.0.0.0"), text("protocol", "tcp"));
    Some(format!("{address}:{}:{}/{protocol}", text("published", ""), text("target", "")))
}
