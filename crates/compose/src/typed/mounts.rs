//! What a service mounts: volumes, paths of the node, memory, configs and secrets.

use std::collections::BTreeMap;

use wharf_model::{Bytes, FileMount, MountSource, MountSpec, Recursion, VolumeName, template};

use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node};
use crate::short::is_windows;

/// Paths that every node has by itself.
const EVERYWHERE: [&str; 8] = [
    "/dev",
    "/proc",
    "/sys",
    "/etc/localtime",
    "/etc/timezone",
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/var/lib/docker",
];

impl Typing<'_, '_> {
    pub(super) fn mounts(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<MountSpec> {
        let mut mounts = Vec::new();
        for (index, item, mount) in values::mappings(entry) {
            let key = key.item(index);
            if let Some(mount) = self.mount(mount, item.span, &key) {
                mounts.push(mount);
            }
        }
        mounts
    }

    fn mount(&mut self, mount: &Mapping, span: Span, key: &Key<'_>) -> Option<MountSpec> {
        let Some(target) = mount.get("target").and_then(Node::as_str) else {
            if !mount.contains("target") {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        span,
                        key,
                        "a volume needs `target`, the path in the container",
                    )
                    .hint("name it: `target: /path`");
            }
            return None;
        };
        let target = self.target(target, span, key)?;
        self.placeholders(&target, mount.entry("target").map_or(span, Entry::place), key);
        let kind = mount.get("type").and_then(Node::as_str)?;
        for (field, value) in mount.iter() {
            let detail = matches!(field, "bind" | "volume" | "tmpfs" | "image");
            let empty = value.node.as_mapping().is_some_and(Mapping::is_empty);
            if detail && field != kind && !empty {
                let message = format!("`{field}` has no meaning for a mount of type `{kind}`");
                self.report()
                    .error(Complaint::Conflict, value.key, &key.field(field), message)
                    .hint(format!("remove `{field}`, or write `type: {field}`"));
            }
            if field == "consistency" {
                self.report()
                    .warn(
                        Complaint::Obsolete,
                        value.key,
                        &key.field(field),
                        "`consistency` has no effect on Linux",
                    )
                    .hint("remove it");
            }
        }
        let details = mount.entry(kind);
        let source = mount.get("source").and_then(Node::as_str).filter(|source| !source.is_empty());
        let place = mount.entry("source").map_or(span, Entry::place);
        let read_only = mount.entry("read_only").and_then(values::flag).unwrap_or_default();
        let source = match kind {
            "bind" => self.bind(source, place, span, read_only, details, key)?,
            "image" => self.mounted_image(source, place, span, details, key)?,
            "volume" => self.volume(source, place, details, key)?,
            "tmpfs" => {
                if source.is_some() {
                    self.report()
                        .error(Complaint::Conflict, place, key, "a tmpfs has no source")
                        .hint("remove `source`, or write `type: volume`");
                    return None;
                }
                self.memory(details, key)
            }
            other => {
                self.report()
                    .unsupported(span, key, format!("mounts of type `{other}` are not supported"))
                    .hint("use a named volume: `type: volume`");
                return None;
            }
        };
        Some(MountSpec { source, target, read_only })
    }

    fn target(&mut self, target: &str, span: Span, key: &Key<'_>) -> Option<String> {
        if target.starts_with('/') {
            return Some(target.to_owned());
        }
        let message = format!("`{target}` is not an absolute path in the container");
        let hint = match target.split_once(":/") {
            // As the reference reads it; most often a volume with a short name is meant.
            Some((drive, path)) if drive.len() == 1 => format!(
                "one letter before `:` is a Windows drive: name the volume `{drive}` in full, `{{type: volume, source: {drive}, target: /{path}}}`"
            ),
            Some(_) | None => format!("write `/{target}`"),
        };
        self.report().error(Complaint::InvalidValue, span, key, message).hint(hint);
        None
    }

    fn bind(
        &mut self,
        source: Option<&str>,
        place: Span,
        span: Span,
        read_only: bool,
        details: Option<&Entry>,
        key: &Key<'_>,
    ) -> Option<MountSource> {
        let Some(path) = source else {
            self.report()
                .error(Complaint::MissingKey, span, key, "a bind needs `source`, a path of the node")
                .hint("name the path on the node: `source: /path`");
            return None;
        };
        if is_windows(path) || path.starts_with(r"\\") {
            self.report()
                .unsupported(place, key, format!("`{path}` is a path of Windows"))
                .hint("name a path of the nodes, which run Linux");
            return None;
        }
        self.placeholders(path, place, key);
        let everywhere = |known: &str| path == known || path.starts_with(&format!("{known}/"));
        if !EVERYWHERE.into_iter().any(everywhere) {
            self.report()
                .warn(Complaint::Note, place, key, format!("`{path}` is taken from the node that runs the task"))
                .hint("put files into `configs`, data into a named volume, or choose the node with `deploy.placement`");
        }
        let (mut create, mut propagation, mut selinux) = (false, None, None);
        let mut recursive = Recursion::Enabled;
        let key = key.field("bind");
        for (field, value) in details.into_iter().flat_map(values::entries) {
            let key = key.field(field);
            match field {
                "create_host_path" => create = values::flag(value).unwrap_or_default(),
                "propagation" => {
                    propagation = values::text(value);
                    let known = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];
                    if let Some(text) = value.node.as_str()
                        && !known.contains(&text)
                    {
                        let message = format!("`{text}` is not a bind propagation");
                        let hint = crate::shape::one_of(&known);
                        self.report().error(Complaint::InvalidValue, value.place(), &key, message).hint(hint);
                    }
                }
                "selinux" => selinux = values::text(value),
                "recursive" => {
                    let text = value.node.as_str().unwrap_or_default();
                    recursive = match text {
                        "disabled" => Recursion::Disabled,
                        "writable" => Recursion::Writable,
                        "readonly" => Recursion::Readonly,
                        _ => Recursion::Enabled,
                    };
                    if matches!(text, "writable" | "readonly") && !read_only {
                        let message = format!("`recursive: {text}` is about a bind that is read-only");
                        self.report()
                            .error(Complaint::Conflict, value.key, &key, message)
                            .hint("write `read_only: true` as well, or remove `recursive`");
                    }
                }
                _ => self.unforeseen(value, &key),
            }
        }
        if selinux.is_some() && recursive != Recursion::Enabled {
            let message = "the engine takes `selinux` and `recursive` only one at a time";
            self.report().unsupported(span, &key, message).hint("remove one of them");
        }
        Some(MountSource::Bind { path: path.to_owned(), create, propagation, selinux, recursive })
    }

    /// The content of an image.
    fn mounted_image(
        &mut self,
        source: Option<&str>,
        place: Span,
        span: Span,
        details: Option<&Entry>,
        key: &Key<'_>,
    ) -> Option<MountSource> {
        let mut subpath = None;
        for (field, value) in details.into_iter().flat_map(values::entries) {
            let key = key.field(field);
            match field {
                "subpath" => subpath = self.filled_in(value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        let Some(image) = source else {
            self.report()
                .error(Complaint::MissingKey, span, key, "an image mount needs `source`, an image")
                .hint("name it: `source: image:tag`");
            return None;
        };
        if !image.contains('@') {
            let message =
                format!("`{image}` is not pinned: each node mounts what it has or finds by this name");
            self.report()
                .warn(Complaint::Note, place, key, message)
                .hint(format!("write its digest: `{image}@sha256:…`"));
        }
        Some(MountSource::Image { image: image.to_owned(), subpath })
    }

    fn volume(
        &mut self,
        source: Option<&str>,
        place: Span,
        details: Option<&Entry>,
        key: &Key<'_>,
    ) -> Option<MountSource> {
        let (mut nocopy, mut subpath, mut labels) = (false, None, BTreeMap::new());
        let details_key = key.field("volume");
        for (field, value) in details.into_iter().flat_map(values::entries) {
            let key = details_key.field(field);
            match field {
                "nocopy" => nocopy = values::flag(value).unwrap_or_default(),
                "subpath" => subpath = self.filled_in(value, &key),
                "labels" => labels = values::pairs(value),
                _ => self.unforeseen(value, &key),
            }
        }
        let Some(name) = source else {
            if subpath.is_some() {
                let message = "a volume without a name is empty: there is no folder inside it";
                self.report()
                    .error(Complaint::Conflict, place, key, message)
                    .hint("give it a `source`, or remove `subpath`");
            }
            return Some(MountSource::Anonymous { nocopy, labels });
        };
        if name.starts_with(['/', '.', '~']) {
            let message = format!("`{name}` is a path, but the mount is of type `volume`");
            self.report().error(Complaint::Conflict, place, key, message).hint("write `type: bind`");
            return None;
        }
        if !self.declared("volumes", name, place, key) {
            return None;
        }
        let volume: VolumeName = values::named(self.report(), name, place, key)?;
        self.volume_labels.entry(name.to_owned()).or_default().extend(labels);
        Some(MountSource::Volume { volume, nocopy, subpath })
    }

    /// A text that each task may have its own of, by placeholders.
    fn filled_in(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = values::full_text(self.report(), entry, key)?;
        self.placeholders(&text, entry.place(), key);
        Some(text)
    }

    /// Whether a text has placeholders (`{{.Task.Slot}}`); complains of those that stand for nothing.
    pub(super) fn placeholders(&mut self, text: &str, place: Span, key: &Key<'_>) -> bool {
        match template::check(text) {
            Ok(found) => found,
            Err(error) => {
                self.report().error(Complaint::InvalidValue, place, key, error.to_string()).hint(error.hint);
                true
            }
        }
    }

    fn memory(&mut self, details: Option<&Entry>, key: &Key<'_>) -> MountSource {
        let (mut size, mut mode) = (None, None);
        let key = key.field("tmpfs");
        for (field, value) in details.into_iter().flat_map(values::entries) {
            let key = key.field(field);
            match field {
                "size" => size = values::size(self.report(), value, &key).map(Bytes),
                "mode" => mode = values::permissions(self.report(), value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        MountSource::Tmpfs { size, mode }
    }

    /// `tmpfs: [path:options]`.
    pub(super) fn memory_mounts(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, String> {
        let mut mounts = BTreeMap::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            let (path, options) = text.split_once(':').unwrap_or((text, ""));
            if let Some(path) = self.target(path, item.span, &key.item(index)) {
                mounts.insert(path, options.to_owned());
            }
        }
        mounts
    }

    /// The configs or secrets of a service.
    pub(super) fn mounted_files(
        &mut self,
        group: &'static str,
        entry: &Entry,
        key: &Key<'_>,
    ) -> Vec<FileMount> {
        let mut mounts = Vec::new();
        for (index, item, mount) in values::mappings(entry) {
            let key = key.item(index);
            let Some(source) = mount.get("source").and_then(Node::as_str) else {
                if !mount.contains("source") {
                    let message = format!("it needs `source`, a name under `{group}`");
                    self.report()
                        .error(Complaint::MissingKey, item.span, &key, message)
                        .hint(format!("name one: `source: NAME`, with `NAME` under `{group}`"));
                }
                continue;
            };
            let place = mount.entry("source").map_or(item.span, Entry::place);
            if !self.declared(group, source, place, &key) {
                continue;
            }
            if group == "configs" {
                self.configs.insert(source.to_owned());
            } else {
                self.secrets.insert(source.to_owned());
            }
            let folder = if group == "configs" { "" } else { "/run/secrets" };
            let target = match mount.get("target").and_then(Node::as_str).filter(|target| !target.is_empty())
            {
                Some(target) if target.starts_with('/') => target.to_owned(),
                Some(target) => format!("{folder}/{target}"),
                None => format!("{folder}/{source}"),
            };
            let mut made = FileMount { source: source.to_owned(), target, uid: None, gid: None, mode: None };
            for (field, value) in mount.iter() {
                let key = key.field(field);
                let numeric = 0..=i64::from(u32::MAX);
                match field {
                    "source" | "target" => {}
                    "uid" => made.uid = values::whole(self.report(), value, &key, numeric),
                    "gid" => made.gid = values::whole(self.report(), value, &key, numeric),
                    "mode" => made.mode = values::permissions(self.report(), value, &key),
                    _ => self.unforeseen(value, &key),
                }
            }
            mounts.push(made);
        }
        mounts
    }
}
