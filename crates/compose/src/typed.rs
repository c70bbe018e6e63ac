//! Gives the tree its meaning: every key goes into the model, or is refused with a reason.
//!
//! The tree is merged, canonical and of the right kinds. References are checked here, and so is everything that several
//! keys say together. Each mapping is read by one `match` over its keys whose last arm refuses, so a key that gets a
//! shape and no meaning is refused, not dropped.

mod build;
mod container;
mod deploy;
mod ipv6;
mod mounts;
mod network;
mod prestart;
mod probe;
mod service;
mod shared;
mod values;
mod wharf;
pub(crate) use wharf::not_carried_out;
#[cfg(test)]
pub(crate) use wharf::tests as wharf_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use sha2::{Digest, Sha256};
use wharf_model::{
    AppName, AppSpec, DependencyCondition, ExternalService, FileSpec, NetworkMode, RestartCondition,
    ServiceName, ServiceSpec, VolumeName, VolumeSpec, template,
};

use crate::aliyun;
use crate::contradictions;
use crate::diagnostic::{Complaint, Key, Report, Span};
use crate::node::{Entry, Mapping, Node};
use crate::normal::{active_services, is_active};
use crate::project::{Assembly, Environment, why_unread};

/// Configs and secrets travel in records of the store, which are small.
const LARGEST_FILE: usize = 1_000_000;

pub(crate) fn app(
    assembly: &mut Assembly<'_>,
    tree: &Node,
    name: Option<AppName>,
    profiles: &BTreeSet<String>,
    environment: &Environment,
) -> Option<AppSpec> {
    let modern = aliyun::modernise(&mut assembly.report, tree, |service| is_active(service, profiles));
    let tree = modern.as_ref().unwrap_or(tree);
    let empty = Mapping::default();
    let root = tree.as_mapping().unwrap_or(&empty);
    let services = root.get("services").and_then(Node::as_mapping).unwrap_or(&empty);
    let mut typing = Typing {
        assembly,
        environment,
        profiles,
        start: tree.span,
        root,
        services,
        active: active_services(root, profiles),
        edges: BTreeMap::new(),
        aliases: Vec::new(),
        networks: BTreeMap::new(),
        configs: BTreeSet::new(),
        secrets: BTreeSet::new(),
        volume_labels: BTreeMap::new(),
        pre_starts: BTreeMap::new(),
    };
    typing.app(name)
}

struct Typing<'a, 'f> {
    assembly: &'a mut Assembly<'f>,
    environment: &'a Environment,
    profiles: &'a BTreeSet<String>,
    /// Where the files begin.
    start: Span,
    root: &'a Mapping,
    services: &'a Mapping,
    active: BTreeSet<String>,
    /// Which service needs which, and where that is written.
    edges: BTreeMap<String, Vec<(String, Span)>>,
    /// Further names of services, asked for by others (`links`).
    aliases: Vec<(ServiceName, String)>,
    /// Networks that services are on.
    networks: BTreeMap<String, ()>,
    /// Configs that services mount.
    configs: BTreeSet<String>,
    /// Secrets that services mount.
    secrets: BTreeSet<String>,
    /// Labels that services give to the volumes they mount.
    volume_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// What runs before services start.
    pre_starts: BTreeMap<ServiceName, prestart::PreStart>,
}

impl Typing<'_, '_> {
    fn report(&mut self) -> &mut Report {
        &mut self.assembly.report
    }

    fn app(&mut self, name: Option<AppName>) -> Option<AppSpec> {
        let mut services = BTreeMap::new();
        let mut externals = BTreeMap::new();
        let group = Key::Root.field("services");
        let all = self.services;
        for (service, entry) in all.iter() {
            if !self.active.contains(service) || entry.node.is_invalid() {
                continue;
            }
            let key = group.field(service);
            let Some(name) = values::named::<ServiceName>(self.report(), service, entry.key, &key) else {
                continue;
            };
            if wharf::is_external(&entry.node) {
                externals.extend(self.external(entry, &key).map(|external| (name, external)));
            } else if let Some(spec) = self.service(&name, entry, &key) {
                services.insert(name, spec);
            }
        }
        if all.is_empty() && self.assembly.report.errors() == 0 {
            let place = self.root.entry("services").map_or(self.start, |entry| entry.key);
            self.report()
                .error(Complaint::MissingKey, place, &group, "the Compose files define no service")
                .hint("write at least one under `services`");
        } else if self.active.is_empty() && self.assembly.report.errors() == 0 {
            self.report()
                .general(Complaint::MissingKey, "every service has a profile, and none of them is active")
                .hint("activate one: `--profile NAME`");
        }
        if let Some(entry) = self.root.entry("models") {
            self.report()
                .unsupported(entry.key, &Key::Root.field("models"), "models are not supported")
                .hint("run the model as a service of its own");
        }
        let policy = self.wharf_app();
        let jobs = self.jobs();
        contradictions::circles(&mut self.assembly.report, &self.edges);
        self.check_published(&services);
        self.add_aliases(&mut services, &mut externals);
        self.let_complete(&mut services);
        self.make_shareable(&mut services);
        if let Some(app) = &name {
            for (service, build) in &self.assembly.builds {
                if let Some(spec) = services.get_mut(service).filter(|_| !build.named) {
                    spec.image = build::default_name(app.as_str(), service);
                }
            }
        }
        self.add_pre_starts(&mut services);
        let networks = self.network_specs();
        self.check_ipv6_addresses(&services, &networks);
        let volumes = self.volume_specs();
        let configs = self.file_specs("configs");
        let secrets = self.file_specs("secrets");
        Some(AppSpec { name: name?, services, externals, jobs, policy, networks, volumes, configs, secrets })
    }

    /// A service whose completion others wait for runs to its end once, unless its file says when it is to be started
    /// again: starting it anew whenever it has completed would never come to an end.
    fn let_complete(&self, services: &mut BTreeMap<ServiceName, ServiceSpec>) {
        let awaited: BTreeSet<ServiceName> = services
            .values()
            .flat_map(|spec| &spec.depends_on)
            .filter(|(_, dependency)| {
                dependency.condition == DependencyCondition::ServiceCompletedSuccessfully
            })
            .map(|(name, _)| name.clone())
            .collect();
        let says = |mapping: &Mapping, key: &str| mapping.get(key).is_some();
        for (name, spec) in services.iter_mut().filter(|(name, _)| awaited.contains(*name)) {
            let written = self.services.get(name.as_str()).and_then(Node::as_mapping);
            let deploy = written.and_then(|written| written.get("deploy")).and_then(Node::as_mapping);
            let explicit = written.is_some_and(|written| says(written, "restart"))
                || deploy.is_some_and(|deploy| says(deploy, "restart_policy"));
            if !explicit {
                spec.restart.condition = RestartCondition::OnFailure;
            }
        }
    }

    /// A service that another one names; complains if there is none, or it is not active.
    fn reference(&mut self, name: &str, span: Span, key: &Key<'_>, required: bool) -> Option<ServiceName> {
        if self.active.contains(name) {
            return name.parse().ok();
        }
        if required || !self.services.contains(name) {
            let root = self.root;
            contradictions::not_active(self.report(), root, name, span, key);
        }
        None
    }

    /// Whether a service of this name runs outside the cluster.
    fn is_outside(&self, name: &ServiceName) -> bool {
        self.services.get(name.as_str()).is_some_and(wharf::is_external)
    }

    /// Whether something is declared at the top level; complains if not.
    fn declared(&mut self, group: &str, name: &str, span: Span, key: &Key<'_>) -> bool {
        let root = self.root;
        contradictions::declared(self.report(), root, group, name, span, key)
    }

    /// One port of the cluster can lead to one service.
    fn check_published(&mut self, services: &BTreeMap<ServiceName, ServiceSpec>) {
        let mut taken: BTreeMap<(u16, &str, String), &ServiceName> = BTreeMap::new();
        let mut clashes = Vec::new();
        for (name, service) in services {
            for port in &service.ports {
                // One of a range is chosen so that it is nobody else's.
                let Some(published) = port.published.filter(|_| port.published_to.is_none()) else {
                    continue;
                };
                let address = port.host_ip.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
                let id = (published, port.protocol.as_str(), address.unwrap_or_default());
                match taken.get(&id) {
                    Some(other) if *other != name => {
                        clashes.push((name, (*other).clone(), published, port.protocol.as_str()));
                    }
                    _ => {
                        taken.insert(id, name);
                    }
                }
            }
        }
        for (name, other, published, protocol) in clashes {
            let place = |service: &ServiceName| {
                let entry = self.services.get(service.as_str()).and_then(Node::as_mapping)?.entry("ports")?;
                let items = entry.node.as_sequence()?;
                let found = items.iter().find(|item| {
                    let text =
                        item.as_mapping().and_then(|port| port.get("published")).and_then(Node::as_str);
                    text == Some(published.to_string().as_str())
                });
                Some(found.map_or(entry.key, |item| item.span))
            };
            let (span, first) = (place(name).unwrap_or_default(), place(&other));
            let group = Key::Root.field("services");
            let key = group.field(name.as_str());
            let message = format!("the port {published}/{protocol} is published by `{other}` as well");
            self.assembly
                .report
                .error(Complaint::Conflict, span, &key.field("ports"), message)
                .hint("publish one of them on another port");
            if let Some(first) = first {
                self.assembly.report.relate(first, format!("published by `{other}` here"));
            }
        }
    }

    /// Names that links ask for, on every network of the service.
    fn add_aliases(
        &mut self,
        services: &mut BTreeMap<ServiceName, ServiceSpec>,
        externals: &mut BTreeMap<ServiceName, ExternalService>,
    ) {
        for (target, alias) in std::mem::take(&mut self.aliases) {
            let networks = match services.get_mut(&target) {
                Some(service) if service.network_mode != NetworkMode::Networks => continue,
                Some(service) => Some(&mut service.networks),
                None => externals.get_mut(&target).map(|external| &mut external.networks),
            };
            for attachment in networks.into_iter().flat_map(BTreeMap::values_mut) {
                if !attachment.aliases.contains(&alias) {
                    attachment.aliases.push(alias.clone());
                }
            }
        }
    }

    fn volume_specs(&mut self) -> BTreeMap<VolumeName, VolumeSpec> {
        let mut volumes = BTreeMap::new();
        let group = Key::Root.field("volumes");
        let Some(entry) = self.root.entry("volumes") else { return volumes };
        for (name, entry) in values::entries(entry) {
            let key = group.field(name);
            let Some(volume) = values::named::<VolumeName>(self.report(), name, entry.key, &key) else {
                continue;
            };
            let mut spec = VolumeSpec::default();
            for (field, value) in values::entries(entry) {
                let key = key.field(field);
                match field {
                    "name" => {
                        spec.name = values::text(value).filter(|name| !name.is_empty());
                        if spec.name.as_ref().is_some_and(|name| template::check(name) != Ok(false)) {
                            let message = "a volume has one name for all tasks of the cluster";
                            self.report()
                                .unsupported(value.place(), &key, message)
                                .hint("a folder for each task: `volume: {subpath: \"{{.Task.Slot}}\"}` (Docker Engine 26), or a bind of `/srv/data/{{.Task.Slot}}`; each node has its own data of a volume");
                        }
                    }
                    "external" => spec.external = values::flag(value).unwrap_or_default(),
                    "driver_opts" => spec.driver_opts = values::text_map(value),
                    "labels" => spec.labels = values::text_map(value),
                    "driver" => match value.node.as_str() {
                        None | Some("" | "default" | "local") => {}
                        Some(driver) => {
                            let message = format!("the volume driver `{driver}` is not supported");
                            self.report()
                                .unsupported(value.place(), &key, message)
                                .hint("use `local`; its `driver_opts` mount NFS and CIFS as well");
                        }
                    },
                    _ => self.unforeseen(value, &key),
                }
            }
            contradictions::described_elsewhere(
                self.report(),
                entry,
                &key,
                &["driver", "driver_opts", "labels"],
            );
            if !spec.external {
                // What the volume itself says wins.
                for (label, value) in self.volume_labels.remove(name).unwrap_or_default() {
                    spec.labels.entry(label).or_insert(value);
                }
            }
            volumes.insert(volume, spec);
        }
        volumes
    }

    /// A key that has a shape and no meaning yet.
    fn unforeseen(&mut self, entry: &Entry, key: &Key<'_>) {
        let message = format!("`{}` is not supported", key.name());
        self.report().unsupported(entry.key, key, message).hint("remove it");
    }

    /// Configs or secrets that services mount, with their content.
    fn file_specs(&mut self, group: &'static str) -> BTreeMap<String, FileSpec> {
        let used = std::mem::take(if group == "configs" { &mut self.configs } else { &mut self.secrets });
        let group_key = Key::Root.field(group);
        let mut specs = BTreeMap::new();
        let Some(declared) = self.root.entry(group) else { return specs };
        for (name, entry) in values::entries(declared) {
            if used.contains(name)
                && let Some(spec) = self.file_spec(entry, &group_key.field(name))
            {
                specs.insert(name.to_owned(), spec);
            }
        }
        specs
    }

    fn file_spec(&mut self, entry: &Entry, key: &Key<'_>) -> Option<FileSpec> {
        let mut spec = FileSpec::default();
        // What is said twice is not read.
        let is_sound = contradictions::content(self.report(), entry, key);
        let mut source: Option<(&str, Span)> = None;
        let mut content: Option<Vec<u8>> = None;
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "name" => spec.name = values::text(value).filter(|name| !name.is_empty()),
                "external" => spec.external = values::flag(value).unwrap_or_default(),
                "content" | "environment" | "file" if !is_sound => {}
                "content" => {
                    source = Some(("content", value.key));
                    content = values::text(value).map(String::into_bytes);
                }
                "environment" => {
                    source = Some(("environment", value.key));
                    content = self.content_of_variable(value, &key);
                }
                "file" => {
                    source = Some(("file", value.key));
                    content = self.content_of_file(value, &key);
                }
                "labels" => spec.labels = values::text_map(value),
                "driver" | "driver_opts" | "template_driver" => {
                    let message = format!("`{field}` of configs and secrets is not supported");
                    self.report().unsupported(value.key, &key, message).hint("remove it");
                }
                _ => self.unforeseen(value, &key),
            }
        }
        if !is_sound {
            return None;
        }
        match (source, spec.external) {
            (Some((field, span)), true) => {
                let message = format!("`{}` is external, so `{field}` has no effect on it", key.name());
                self.report().error(Complaint::Conflict, span, key, message).hint("keep one of them");
            }
            // The one of that name in the environment; which version it is, the server says.
            (None, _) => {}
            (Some(_), false) => {
                let content = content?;
                if content.len() > LARGEST_FILE {
                    let message = format!(
                        "`{}` has {} bytes of content; configs and secrets have at most {LARGEST_FILE}",
                        key.name(),
                        content.len()
                    );
                    self.report()
                        .error(Complaint::InvalidValue, entry.key, key, message)
                        .hint("put large files into the image or a volume");
                    return None;
                }
                spec.digest = Some(hex::encode(Sha256::digest(&content)));
                spec.content = Some(base64::engine::general_purpose::STANDARD.encode(&content));
            }
        }
        Some(spec)
    }

    fn content_of_variable(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Vec<u8>> {
        let name = entry.node.as_str()?;
        if let Some(value) = self.environment.get(name) {
            return Some(value.clone().into_bytes());
        }
        let message = format!("the variable `{name}` is not set");
        self.report()
            .error(Complaint::UnsetVariable, entry.place(), key, message)
            .hint("set it in the environment or in `.env`");
        None
    }

    fn content_of_file(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Vec<u8>> {
        let path = entry.node.as_str()?;
        match self.assembly.files.read(Path::new(path)) {
            Ok(content) => Some(content),
            Err(error) => {
                let problem = why_unread(Path::new(path), &error);
                self.report()
                    .error(Complaint::Unreadable, entry.place(), key, problem)
                    .hint("check the path: it begins at the folder of the Compose file");
                None
            }
        }
    }

    /// Variables of `env_file` or `label_file`, in order; later ones win.
    fn variables_of(
        &mut self,
        entry: &Entry,
        key: &Key<'_>,
        outer: &dyn Fn(&str) -> Option<String>,
    ) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        self.assembly.read_variables(&entry.node, key, outer, &mut found);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use crate::{Request, load, shapes};

    /// A key that is accepted and then dropped would be ignored silently; the last arm of the match says so instead.
    #[test]
    fn every_key_of_a_service_is_honoured_or_refused_for_a_reason() {
        let values = ["text", "'80'", "1", "1m", "true", "[a]", "{}", "{a: b}", "[{}]", "host"];
        for (key, _) in shapes::SERVICE.keys {
            for value in values {
                let text = format!("services: {{web: {{image: i, {key}: {value}}}}}");
                let files: BTreeMap<PathBuf, Vec<u8>> = [("/a/c.yaml".into(), text.into_bytes())].into();
                let loaded = load(&Request { files: vec!["/a/c.yaml".into()], ..Request::default() }, &files);
                let dropped = format!("`{key}` is not supported");
                assert!(loaded.diagnostics.iter().all(|found| found.message != dropped), "{key}: {value}");
            }
        }
    }
}
