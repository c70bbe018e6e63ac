//! What a service shares with another one on the same node: namespaces of the kernel, and volumes.
//!
//! The cluster puts both on one node and starts the other one first; names of containers lead nowhere, since a container
//! is one of many nodes.

use std::collections::BTreeMap;

use wharf_model::{Namespace, ServiceName, ServiceSpec, VolumesFrom};

use super::Typing;
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node};

impl Typing<'_, '_> {
    /// `ipc`, `pid` and `volumes_from`.
    pub(super) fn shared(
        &mut self,
        name: &ServiceName,
        service: &Mapping,
        key: &Key<'_>,
        spec: &mut ServiceSpec,
    ) {
        let at = |field: &'static str| service.entry(field).map(|entry| (entry, key.field(field)));
        if let Some((entry, key)) = at("ipc") {
            let known = ["host", "none", "private", "shareable"];
            spec.container.ipc = self.shared_namespace(name, entry, &key, &known);
        }
        if let Some((entry, key)) = at("pid") {
            spec.container.pid = self.shared_namespace(name, entry, &key, &["host"]);
        }
        if let Some((entry, key)) = at("volumes_from") {
            spec.container.volumes_from = self.volumes_from(name, entry, &key);
        }
    }

    fn shared_namespace(
        &mut self,
        service: &ServiceName,
        entry: &Entry,
        key: &Key<'_>,
        known: &[&str],
    ) -> Option<Namespace> {
        match entry.node.as_str().and_then(|mode| mode.strip_prefix("service:")) {
            Some(other) => self.companion(service, other, entry.place(), key).map(Namespace::Service),
            None => self.namespace(entry, key, known).map(Namespace::Mode),
        }
    }

    /// The volumes of other services: `NAME`, `NAME:ro` or `NAME:rw`.
    fn volumes_from(&mut self, service: &ServiceName, entry: &Entry, key: &Key<'_>) -> Vec<VolumesFrom> {
        let mut all = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let key = key.item(index);
            let Some(text) = item.as_str() else { continue };
            if text.starts_with("container:") {
                self.report()
                    .unsupported(item.span, &key, "a container of one node cannot be named from a cluster")
                    .hint("name a service of this app: `volumes_from: [NAME]`");
                continue;
            }
            let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
            if !matches!(mode, "ro" | "rw") {
                let message = format!("`{mode}` is neither `ro` nor `rw`");
                self.report()
                    .error(Complaint::InvalidValue, item.span, &key, message)
                    .hint(format!("write `{name}:ro`"));
            }
            if let Some(service) = self.companion(service, name, item.span, &key) {
                all.push(VolumesFrom { service, read_only: mode == "ro" });
            }
        }
        all
    }

    /// Another service that this one shares something with.
    fn companion(
        &mut self,
        service: &ServiceName,
        other: &str,
        span: Span,
        key: &Key<'_>,
    ) -> Option<ServiceName> {
        let target = self.reference(other, span, key, true)?;
        if self.is_outside(&target) {
            let message = format!("`{target}` runs outside the cluster and has nothing to share");
            self.report().error(Complaint::Conflict, span, key, message).hint("remove it");
            return None;
        }
        self.edge(service, &target, span);
        Some(target)
    }

    /// An IPC namespace can be shared only if it was made for that: one that the file says nothing about is.
    pub(super) fn make_shareable(&mut self, services: &mut BTreeMap<ServiceName, ServiceSpec>) {
        let shared = services.iter().filter_map(|(name, spec)| match &spec.container.ipc {
            Some(Namespace::Service(owner)) => Some((owner.clone(), name.clone())),
            Some(Namespace::Mode(_)) | None => None,
        });
        for (owner, by) in shared.collect::<Vec<_>>() {
            let Some(spec) = services.get_mut(&owner) else { continue };
            let ipc = &mut spec.container.ipc;
            let mode = match ipc {
                None => {
                    *ipc = Some(Namespace::Mode("shareable".to_owned()));
                    continue;
                }
                Some(Namespace::Mode(mode)) => mode.clone(),
                Some(Namespace::Service(_)) => continue,
            };
            if matches!(mode.as_str(), "private" | "none") {
                let written = self.services.get(owner.as_str()).and_then(Node::as_mapping);
                let place = written.and_then(|written| written.entry("ipc")).map(Entry::place);
                let group = Key::Root.field("services");
                let message = format!("`{by}` shares the IPC namespace of `{owner}`, which is `{mode}`");
                let key = group.field(owner.as_str());
                self.report()
                    .error(Complaint::Conflict, place.unwrap_or_default(), &key.field("ipc"), message)
                    .hint("write `ipc: shareable`");
            }
        }
    }
}
