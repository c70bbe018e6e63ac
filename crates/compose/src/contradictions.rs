//! What the model and the normal form both complain about, in the same words: references to nothing, circles, content
//! that is given twice or not at all.
//!
//! Loading an app looks at the files in both ways. One problem has one message at one place in both, so it is told once.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Entry, Mapping, Node, Value};

fn members<'a>(root: &'a Mapping, group: &str) -> Option<&'a Mapping> {
    root.get(group).and_then(Node::as_mapping)
}

/// Complains about a service that is needed, and is not there or not active.
pub(crate) fn not_active(report: &mut Report, root: &Mapping, name: &str, span: Span, key: &Key<'_>) {
    let services = members(root, "services");
    let Some(service) = services.and_then(|services| services.get(name)) else {
        let known = services.into_iter().flat_map(Mapping::keys);
        let hint = report.did_you_mean(name, known);
        let hint = hint.unwrap_or_else(|| "name one of those under `services`, or add it there".to_owned());
        let message = format!("there is no service `{name}`");
        report.error(Complaint::UnknownReference, span, key, message).hint(hint);
        return;
    };
    let profiles = service.as_mapping().and_then(|service| service.get("profiles"));
    let profile = profiles.and_then(Node::as_sequence).and_then(<[Node]>::first).and_then(Node::as_str);
    let hint =
        format!("activate it with `--profile {}`, or say `required: false`", profile.unwrap_or("NAME"));
    let message = format!("the service `{name}` is needed, but its profile is not active");
    report.error(Complaint::UnknownReference, span, key, message).hint(hint);
}

/// Whether something is declared at the top level; complains if not.
pub(crate) fn declared(
    report: &mut Report,
    root: &Mapping,
    group: &str,
    name: &str,
    span: Span,
    key: &Key<'_>,
) -> bool {
    let members = members(root, group);
    // What was wrong with the whole group is said already.
    let unknowable = root.get(group).is_some_and(Node::is_invalid);
    if unknowable || members.is_some_and(|members| members.contains(name)) {
        return !unknowable;
    }
    let what = group.trim_end_matches('s');
    let hint = report.did_you_mean(name, members.into_iter().flat_map(Mapping::keys));
    let hint = hint.unwrap_or_else(|| match group {
        "networks" | "volumes" => format!("declare it at the top level: `{group}: {{{name}: }}`"),
        _ => format!("declare it at the top level, under `{group}`"),
    });
    let message = format!("the {what} `{name}` is not defined");
    report.error(Complaint::UnknownReference, span, key, message).hint(hint);
    false
}

/// Services that wait for each other in a circle would wait for ever. The edges say which service needs which, and where
/// that is written.
pub(crate) fn circles<S: Borrow<str> + Ord>(report: &mut Report, edges: &BTreeMap<S, Vec<(S, Span)>>) {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in edges.keys().map(Borrow::borrow) {
        // Depth first without recursion: `path` is the way from the start, with the next edge to follow.
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        let mut on_path: BTreeSet<&str> = [start].into();
        while let Some((service, next)) = path.last_mut() {
            let service = *service;
            let Some((needed, span)) = edges.get(service).and_then(|edges| edges.get(*next)) else {
                done.insert(service);
                on_path.remove(service);
                path.pop();
                continue;
            };
            let needed: &str = needed.borrow();
            *next += 1;
            if on_path.contains(needed) {
                let mut names: Vec<&str> = path.iter().map(|(name, _)| *name).collect();
                names.drain(..names.iter().position(|name| *name == needed).unwrap_or_default());
                names.push(needed);
                let group = Key::Root.field("services");
                let key = group.field(service);
                let message = format!("services depend on each other: {}", names.join(" -> "));
                report
                    .error(Complaint::Cycle, *span, &key.field("depends_on"), message)
                    .hint("leave out one of these dependencies");
                done.extend(on_path);
                break;
            }
            if !done.contains(needed) {
                on_path.insert(needed);
                path.push((needed, 0));
            }
        }
    }
}

/// Whether a config or a secret says once what it contains; complains if not.
pub(crate) fn content(report: &mut Report, entry: &Entry, key: &Key<'_>) -> bool {
    let Some(resource) = entry.node.as_mapping() else { return true };
    let is_source = |field: &str| matches!(field, "file" | "environment" | "content");
    let given: Vec<(&str, &Entry)> = resource.iter().filter(|(field, _)| is_source(field)).collect();
    let external = matches!(resource.get("external"), Some(Node { value: Value::Bool(true), .. }));
    match given.as_slice() {
        [(first, one), (second, two), ..] => {
            let message = format!("`{}` has both `{first}` and `{second}`", key.name());
            report.error(Complaint::Conflict, two.key, key, message).hint("keep one of them");
            report.relate(one.key, format!("`{first}` is here"));
            false
        }
        [] if !external => {
            let message = format!("`{}` says nothing about its content", key.name());
            report
                .error(Complaint::MissingKey, entry.key, key, message)
                .hint("give it `file`, `environment` or `content`, or say `external: true`");
            false
        }
        _ => true,
    }
}

/// What is made elsewhere cannot be described here.
pub(crate) fn described_elsewhere(report: &mut Report, entry: &Entry, key: &Key<'_>, described: &[&str]) {
    let Some(resource) = entry.node.as_mapping() else { return };
    if !matches!(resource.get("external"), Some(Node { value: Value::Bool(true), .. })) {
        return;
    }
    if let Some((field, value)) = resource.iter().find(|(field, _)| described.contains(field)) {
        let message = format!("`{}` is external, so `{field}` has no effect on it", key.name());
        report
            .error(Complaint::Conflict, value.key, &key.field(field), message)
            .hint(format!("remove `{field}`, or `external: true`"));
    }
}

/// How the check of a service is written.
pub(crate) const CHECK: &str = "write `[\"CMD\", \"program\", \"argument\"]`, or one text for a shell";

/// Complains about the `test` of a service that begins with another word than those that are known.
pub(crate) fn unknown_check(report: &mut Report, test: &Entry, key: &Key<'_>) {
    let message = "a check starts with `CMD`, `CMD-SHELL` or `NONE`";
    report.error(Complaint::InvalidValue, test.place(), key, message).hint(CHECK);
}

/// Devices are asked for by number or by name.
pub(crate) fn count_or_ids(report: &mut Report, request: &Mapping, key: &Key<'_>) {
    if let (Some(count), Some(ids)) = (request.entry("count"), request.entry("device_ids")) {
        let message = "`count` and `device_ids` exclude each other";
        report.error(Complaint::Conflict, ids.key, key, message).hint("keep one of them");
        report.relate(count.key, "`count` is here");
    }
}
