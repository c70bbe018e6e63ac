//! Finds what contradicts itself in a merged tree: references to nothing, keys that exclude each other, circles.
//!
//! These are the rules of the Compose Specification, whatever runs the app. What only a cluster cannot do is no matter of
//! this module. Services whose profile is not active are left aside.

use std::collections::{BTreeMap, BTreeSet};

use super::complete::implied;
use crate::contradictions;
use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Entry, Mapping, Node, Value};
use crate::quantity;

/// Says everything that is not consistent.
pub(crate) fn check(report: &mut Report, root: &Mapping, active: &BTreeSet<String>) {
    let mut check = Check { report, root, active, edges: BTreeMap::new() };
    check.resources();
    let group = Key::Root.field("services");
    for (name, entry) in members(root, "services") {
        let Some(service) = entry.node.as_mapping().filter(|_| active.contains(name)) else { continue };
        check.service(service, entry, &group.field(name), name);
    }
    contradictions::circles(check.report, &check.edges);
}

struct Check<'a> {
    report: &'a mut Report,
    root: &'a Mapping,
    active: &'a BTreeSet<String>,
    /// Which service needs which, and where that is written.
    edges: BTreeMap<&'a str, Vec<(&'a str, Span)>>,
}

fn members<'a>(parent: &'a Mapping, key: &str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
    parent.get(key).and_then(Node::as_mapping).into_iter().flat_map(Mapping::iter)
}
fn items<'a>(parent: &'a Mapping, key: &str) -> &'a [Node] {
    parent.get(key).and_then(Node::as_sequence).unwrap_or_default()
}
fn inner<'a>(parent: &'a Mapping, key: &str) -> Option<&'a Mapping> {
    parent.get(key).and_then(Node::as_mapping)
}
fn text<'a>(parent: &'a Mapping, key: &str) -> Option<&'a str> {
    parent.get(key).and_then(Node::as_str).filter(|text| !text.is_empty())
}
fn number(parent: &Mapping, key: &str) -> Option<i64> {
    match parent.get(key)?.value {
        Value::Int(number) => Some(number),
        _ => None,
    }
}
impl<'a> Check<'a> {
    // --- what services use ---

    fn resources(&mut self) {
        for group in ["configs", "secrets"] {
            let group_key = Key::Root.field(group);
            for (name, entry) in members(self.root, group) {
                contradictions::content(self.report, entry, &group_key.field(name));
            }
        }
        let group = Key::Root.field("volumes");
        for (name, entry) in members(self.root, "volumes") {
            let described = ["driver", "driver_opts", "labels"];
            contradictions::described_elsewhere(self.report, entry, &group.field(name), &described);
        }
    }

    // --- one service ---

    fn service(&mut self, service: &'a Mapping, entry: &Entry, key: &Key<'_>, name: &'a str) {
        // What runs elsewhere needs no image.
        let external = service.contains("external")
            || inner(service, "x-wharf").is_some_and(|wharf| wharf.contains("external"));
        let has = |key: &str| service.get(key).is_some_and(|node| node.as_str() != Some(""));
        let runs = has("image") || has("build");
        if !runs && !service.contains("provider") && !external {
            let message = format!("the service `{name}` has neither `image` nor `build`");
            self.report
                .error(Complaint::MissingKey, entry.key, key, message)
                .hint("name an image: `image: name:tag`");
        }
        if let Some(build) = inner(service, "build") {
            self.build(service, build, key);
        }
        self.networks(service, key);
        self.healthcheck(service, key);
        self.dependencies(service, key, name);
        self.mounts(service, key);
        for group in ["configs", "secrets"] {
            self.mounted_files(group, items(service, group), &key.field(group));
        }
        let models = key.field("models");
        for (model, entry) in members(service, "models") {
            self.declared("models", model, entry.key, &models.field(model));
        }
        super::values::check(self.report, service, key);
        self.scale(service, key);
        self.amounts(service, key);
        self.ports(service, key);
        self.devices(service, key);
        self.watches(service, key);
    }

    fn build(&mut self, service: &Mapping, build: &Mapping, key: &Key<'_>) {
        let key = key.field("build");
        if let (Some(inline), Some(file)) = (build.entry("dockerfile_inline"), build.entry("dockerfile"))
            && text(build, "dockerfile_inline").is_some()
            && text(build, "dockerfile").is_some()
        {
            let message = "`dockerfile` and `dockerfile_inline` exclude each other";
            self.report.error(Complaint::Conflict, inline.key, &key, message).hint("keep one of them");
            self.report.relate(file.key, "the other one");
        }
        let contexts = key.field("additional_contexts");
        for (context, entry) in members(build, "additional_contexts") {
            let Some(wanted) = entry.node.as_str().and_then(|text| text.strip_prefix("service:")) else {
                continue;
            };
            let key = contexts.field(context);
            if !self.active_service(wanted, entry.place(), &key) {
                continue;
            }
            let other = inner(self.root, "services").and_then(|services| inner(services, wanted));
            if other.is_some_and(|other| !other.contains("build")) {
                let message = format!("the service `{wanted}` is not built, so it is no context of a build");
                self.report
                    .error(Complaint::Conflict, entry.place(), &key, message)
                    .hint("name its image: `docker-image://…`");
            }
        }
        self.mounted_files("secrets", items(build, "secrets"), &key.field("secrets"));
        let platforms = items(build, "platforms");
        if let (Some(platform), Some(entry)) = (text(service, "platform"), build.entry("platforms"))
            && !platforms.is_empty()
            && !platforms.iter().any(|item| item.as_str() == Some(platform))
        {
            let message = format!("`platforms` of the build lacks the service's `platform`, `{platform}`");
            self.report
                .error(Complaint::Conflict, entry.key, &key.field("platforms"), message)
                .hint(format!("add `{platform}`"));
        }
    }

    fn networks(&mut self, service: &Mapping, key: &Key<'_>) {
        let networks = service.entry("networks");
        if let (Some(mode), Some(networks)) = (service.entry("network_mode"), networks)
            && text(service, "network_mode").is_some()
            && networks.node.as_mapping().is_some_and(|networks| !networks.is_empty())
        {
            let message = "`network_mode` and `networks` exclude each other";
            let key = key.field("network_mode");
            self.report.error(Complaint::Conflict, mode.key, &key, message).hint("remove one of them");
            self.report.relate(networks.key, "the networks");
        }
        let key = key.field("networks");
        for (network, entry) in members(service, "networks") {
            if network != "default" {
                self.declared("networks", network, entry.key, &key.field(network));
            }
        }
    }

    fn healthcheck(&mut self, service: &Mapping, key: &Key<'_>) {
        let Some(entry) = inner(service, "healthcheck").and_then(|check| check.entry("test")) else { return };
        let Some(first) = entry.node.as_sequence().and_then(<[Node]>::first) else { return };
        let known = ["CMD", "CMD-SHELL", "NONE"];
        if first.as_str().is_some_and(|word| !known.contains(&word)) {
            let key = key.field("healthcheck");
            contradictions::unknown_check(self.report, entry, &key.field("test"));
        }
    }

    fn dependencies(&mut self, service: &'a Mapping, key: &Key<'_>, name: &'a str) {
        let group = key.field("depends_on");
        for (wanted, entry) in members(service, "depends_on") {
            let optional = entry.node.as_mapping().is_some_and(|dependency| {
                matches!(dependency.get("required"), Some(Node { value: Value::Bool(false), .. }))
            });
            let exists = inner(self.root, "services").is_some_and(|services| services.contains(wanted));
            if optional && exists && !self.active.contains(wanted) {
                continue;
            }
            if self.active_service(wanted, entry.key, &group.field(wanted)) {
                self.edges.entry(name).or_default().push((wanted, entry.key));
            }
        }
        for implied in implied(service) {
            let written = inner(service, "depends_on").is_some_and(|all| all.contains(implied.service));
            if !written && self.active_service(implied.service, implied.span, &key.field(implied.from)) {
                self.edges.entry(name).or_default().push((implied.service, implied.span));
            }
        }
    }

    /// Nothing is mounted at one place twice.
    fn mounts(&mut self, service: &Mapping, key: &Key<'_>) {
        let mut taken: BTreeMap<String, Span> = BTreeMap::new();
        let group = key.field("tmpfs");
        for (index, item) in items(service, "tmpfs").iter().enumerate() {
            let Some(target) = item.as_str() else { continue };
            let target = target.split(':').next().unwrap_or(target);
            self.mount(&mut taken, target.to_owned(), item.span, &group.item(index));
        }
        let group = key.field("volumes");
        for (index, item) in items(service, "volumes").iter().enumerate() {
            let Some(mount) = item.as_mapping() else { continue };
            let key = group.item(index);
            if let Some(target) = mount.get("target").and_then(Node::as_str) {
                let target = crate::canonical::clean(std::path::Path::new(target));
                self.mount(&mut taken, target.to_string_lossy().into_owned(), item.span, &key);
            }
            match (text(mount, "type"), text(mount, "source")) {
                (Some("volume"), Some(source)) => {
                    self.declared("volumes", source, item.span, &key);
                }
                (Some("bind"), None) if !mount.contains("source") => {
                    let message = "a bind needs a `source`";
                    self.report
                        .error(Complaint::MissingKey, item.span, &key, message)
                        .hint("name the path on the node: `source: /path`");
                }
                _ => {}
            }
        }
    }

    fn mount(&mut self, taken: &mut BTreeMap<String, Span>, target: String, span: Span, key: &Key<'_>) {
        if let Some(first) = taken.get(&target) {
            let message = format!("something is mounted at `{target}` already");
            self.report
                .error(Complaint::Conflict, span, key, message)
                .hint("mount it at another path, or remove it");
            self.report.relate(*first, "mounted here first");
        } else {
            taken.insert(target, span);
        }
    }

    fn mounted_files(&mut self, group: &str, files: &[Node], key: &Key<'_>) {
        for (index, item) in files.iter().enumerate() {
            if let Some(file) = item.as_mapping() {
                let source = file.get("source").and_then(Node::as_str).unwrap_or_default();
                self.declared(group, source, item.span, &key.item(index));
            }
        }
    }

    fn scale(&mut self, service: &Mapping, key: &Key<'_>) {
        let scale = number(service, "scale");
        let deploy = inner(service, "deploy");
        let replicas = deploy.and_then(|deploy| number(deploy, "replicas"));
        let place = |parent: Option<&Mapping>, key: &str| {
            parent.and_then(|parent| parent.entry(key)).map(Entry::place).unwrap_or_default()
        };
        let (here, there) = (place(Some(service), "scale"), place(deploy, "replicas"));
        let scale_key = key.field("scale");
        let deploy_key = key.field("deploy");
        let replicas_key = deploy_key.field("replicas");
        for (number, span, key) in [(scale, here, &scale_key), (replicas, there, &replicas_key)] {
            if let Some(number) = number.filter(|number| *number < 0) {
                let message = format!("`{}` must be at least 0, not {number}", key.name());
                self.report
                    .error(Complaint::InvalidValue, span, key, message)
                    .hint("write how many tasks there are to be, such as `2`");
            }
        }
        if let (Some(scale), Some(replicas)) = (scale, replicas)
            && scale != replicas
        {
            let message = format!("`scale` says {scale} and `deploy.replicas` says {replicas}");
            self.report.error(Complaint::Conflict, here, &scale_key, message).hint("remove one of them");
            self.report.relate(there, "`deploy.replicas` is here");
        }
        let (count, span, says) = match scale {
            Some(scale) => (scale, here, "scale"),
            None => (replicas.unwrap_or(1), there, "deploy.replicas"),
        };
        if let Some(name) = text(service, "container_name").filter(|_| count > 1) {
            let message = format!("{count} containers cannot all have the name `{name}`");
            let place = service.entry("container_name").map(Entry::place).unwrap_or_default();
            self.report
                .error(Complaint::Conflict, place, &key.field("container_name"), message)
                .hint("remove `container_name`");
            self.report.relate(span, format!("`{says}` is here"));
        }
    }

    /// A limit may be written in two places, but not differently.
    fn amounts(&mut self, service: &Mapping, key: &Key<'_>) {
        let Some(resources) = inner(service, "deploy").and_then(|deploy| inner(deploy, "resources")) else {
            return;
        };
        for (short, group, long) in [
            ("cpus", "limits", "cpus"),
            ("mem_limit", "limits", "memory"),
            ("pids_limit", "limits", "pids"),
            ("mem_reservation", "reservations", "memory"),
        ] {
            let (Some(entry), Some(group_entry)) = (service.entry(short), resources.entry(group)) else {
                continue;
            };
            let Some(amounts) = group_entry.node.as_mapping() else { continue };
            let here = amount(&entry.node);
            let other = amounts.entry(long);
            let there = other.map_or(Some(0.0), |entry| amount(&entry.node));
            if let (Some(here), Some(there)) = (here, there)
                && here != 0.0
                && here != there
            {
                let path = format!("deploy.resources.{group}.{long}");
                let message = match other {
                    Some(_) => format!("`{short}` and `{path}` say different things"),
                    None => format!("`{short}` is set, and `{path}` is missing beside the other {group}"),
                };
                let hint = format!("keep `{path}`, and remove `{short}`");
                self.report.error(Complaint::Conflict, entry.place(), &key.field(short), message).hint(hint);
                self.report.relate(other.unwrap_or(group_entry).place(), format!("`{path}` belongs here"));
            }
        }
    }

    fn ports(&mut self, service: &Mapping, key: &Key<'_>) {
        let key = key.field("ports");
        for (index, item) in items(service, "ports").iter().enumerate() {
            let Some(entry) = item.as_mapping().and_then(|port| port.entry("host_ip")) else { continue };
            let Some(address) = entry.node.as_str() else { continue };
            if address.parse::<std::net::IpAddr>().is_err() {
                let message = format!("`{address}` is not an IP address");
                self.report
                    .error(Complaint::InvalidValue, entry.place(), &key.item(index), message)
                    .hint("write for example `127.0.0.1`, or leave it out for all addresses");
            }
        }
    }

    fn devices(&mut self, service: &Mapping, key: &Key<'_>) {
        let reservations = inner(service, "deploy")
            .and_then(|deploy| inner(deploy, "resources"))
            .and_then(|resources| inner(resources, "reservations"));
        let deploy_key = key.field("deploy");
        let resources_key = deploy_key.field("resources");
        let reservations_key = resources_key.field("reservations");
        let devices = reservations.map(|reservations| items(reservations, "devices")).unwrap_or_default();
        self.device_requests(devices, &reservations_key.field("devices"));
        self.device_requests(items(service, "gpus"), &key.field("gpus"));
    }

    fn device_requests(&mut self, requests: &[Node], key: &Key<'_>) {
        for (index, item) in requests.iter().enumerate() {
            let Some(request) = item.as_mapping() else { continue };
            contradictions::count_or_ids(self.report, request, &key.item(index));
        }
    }

    fn watches(&mut self, service: &Mapping, key: &Key<'_>) {
        let develop = key.field("develop");
        let key = develop.field("watch");
        let watches = inner(service, "develop").map(|develop| items(develop, "watch")).unwrap_or_default();
        for (index, item) in watches.iter().enumerate() {
            let Some(watch) = item.as_mapping() else { continue };
            let key = key.item(index);
            let action = text(watch, "action").unwrap_or_default();
            if text(watch, "path").is_none() {
                self.report
                    .error(Complaint::MissingKey, item.span, &key, "`path` is empty")
                    .hint("name the folder or file to watch: `path: ./src`");
            }
            if text(watch, "target").is_none() && !matches!(action, "rebuild" | "restart") {
                let message = format!("the action `{action}` needs a `target`");
                self.report
                    .error(Complaint::MissingKey, item.span, &key, message)
                    .hint("say where in the container: `target: /path`");
            }
        }
    }

    // --- references ---

    /// Whether there is such an active service; complains if not.
    fn active_service(&mut self, name: &str, span: Span, key: &Key<'_>) -> bool {
        if self.active.contains(name) {
            return true;
        }
        contradictions::not_active(self.report, self.root, name, span, key);
        false
    }

    /// Complains if something is not declared at the top level.
    fn declared(&mut self, group: &str, name: &str, span: Span, key: &Key<'_>) {
        contradictions::declared(self.report, self.root, group, name, span, key);
    }
}

/// Bytes, processors or a count, to be compared.
fn amount(node: &Node) -> Option<f64> {
    match &node.value {
        #[expect(clippy::cast_precision_loss, reason = "only compared")]
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => match text.trim().parse::<f64>() {
            Ok(number) => Some(number),
            #[expect(clippy::cast_precision_loss, reason = "only compared")]
            Err(_) => quantity::bytes(text).ok().map(|number| number as f64),
        },
        _ => None,
    }
}
