//! The normal form of a project: what the reference implementation prints as `config`.
//!
//! Everything that the files leave to be understood is written out, whatever short form they use. What a cluster cannot
//! do is no complaint here; what contradicts itself is.

mod complete;
mod consistent;
mod form;
mod order;
mod print;
mod values;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::diagnostic::{Diagnostic, Key, Report};
use crate::load::{Files, Prepared, Refused, Request, prepare};
use crate::node::{Mapping, Node, Value};
use crate::project::{Assembly, Environment};
use print::Language;

pub(crate) use consistent::check;

/// What came of a request for the normal form.
#[derive(Debug, Clone)]
pub struct Projected {
    /// The project; there is one exactly if no complaint is an error.
    pub project: Option<Project>,
    /// Every complaint, by file and line.
    pub diagnostics: Vec<Diagnostic>,
}

impl Projected {
    /// The project and the warnings, or everything that is wrong.
    pub fn into_result(self) -> Result<(Project, Vec<Diagnostic>), Refused> {
        match self.project {
            Some(project) => Ok((project, self.diagnostics)),
            None => Err(Refused { diagnostics: self.diagnostics }),
        }
    }
}

/// A project in its normal form.
#[derive(Debug, Clone)]
pub struct Project {
    name: String,
    /// All services and all that they could use; what is active and used is printed.
    root: Mapping,
    active: BTreeSet<String>,
    environment: Environment,
    /// Whether variables were substituted; then a `$` that is left means itself.
    interpolated: bool,
}

/// Loads the normal form of a project from Compose files. Never panics and never does I/O except through `files`; the
/// same request and files give the same answer. What a cluster cannot do is no error here.
pub fn project(request: &Request, files: &dyn Files) -> Projected {
    let mut report = Report::new(false);
    report.leave_cluster_aside();
    if request.no_interpolate {
        report.keep_variables();
    }
    let mut assembly = Assembly::new(files, report);
    let project = attempt(request, &mut assembly);
    let project = project.filter(|_| assembly.report.errors() == 0);
    Projected { project, diagnostics: assembly.report.finish() }
}

fn attempt(request: &Request, assembly: &mut Assembly<'_>) -> Option<Project> {
    let Prepared { tree, name, environment, profiles } = prepare(request, assembly, !request.no_interpolate)?;
    let Value::Mapping(mut root) = tree.value else { return None };
    let name = name?;
    root.remove("name");
    root.insert("name", tree.span, Node::string(tree.span, name.clone()));
    // What profiles and references are cannot be said while variables stand for them.
    let profiles = if request.no_interpolate { ["*".to_owned()].into() } else { profiles };
    let active = active_services(&root, &profiles);
    if !request.no_consistency {
        check(&mut assembly.report, &root, &active);
    }
    if !request.no_normalize {
        complete::complete(&mut root, &name, &environment);
    }
    let mut project = Project { name, root, active, environment, interpolated: !request.no_interpolate };
    if !request.services.is_empty() {
        project.enable(&request.services);
        for unknown in project.select(&request.services) {
            let message = format!("there is no service `{unknown}`");
            let known = project.all_services().into_iter().flat_map(Mapping::keys);
            let hint = assembly.report.did_you_mean(&unknown, known);
            assembly
                .report
                .general(crate::Complaint::UnknownReference, message)
                .hint(hint.unwrap_or_else(|| "name one of those under `services`".to_owned()));
        }
    }
    if !request.no_interpolate {
        project.read_variables(request, assembly);
    }
    Some(project)
}

/// Whether a service has no profile, or one of these; `*` is every profile.
pub(crate) fn is_active(service: &Node, profiles: &BTreeSet<String>) -> bool {
    let mut wanted = profiles_of(service).peekable();
    wanted.peek().is_none() || profiles.contains("*") || wanted.any(|profile| profiles.contains(profile))
}

/// The services that are active with these profiles.
pub(crate) fn active_services(root: &Mapping, profiles: &BTreeSet<String>) -> BTreeSet<String> {
    let services = root.get("services").and_then(Node::as_mapping).into_iter().flat_map(Mapping::iter);
    services.filter(|(_, entry)| is_active(&entry.node, profiles)).map(|(name, _)| name.to_owned()).collect()
}

fn profiles_of(service: &Node) -> impl Iterator<Item = &str> {
    let profiles =
        service.as_mapping().and_then(|service| service.get("profiles")).and_then(Node::as_sequence);
    profiles.unwrap_or_default().iter().filter_map(Node::as_str)
}

impl Project {
    /// The project's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The normal form as the reference prints it with `--format json`.
    pub fn to_json(&self) -> serde_json::Value {
        self.printed(Language::Json).into_json()
    }

    /// The normal form as the reference prints it without `--format`: the same content, with extensions (`x-…`) everywhere,
    /// keys in the order of the reference.
    pub fn to_yaml(&self) -> String {
        yaml::text(&self.printed(Language::Yaml))
    }

    /// The active services, by name.
    pub fn services(&self) -> Vec<&str> {
        self.active.iter().map(String::as_str).collect()
    }

    /// The volumes that active services use, by key.
    pub fn volumes(&self) -> Vec<&str> {
        self.members("volumes")
    }

    /// The networks that active services are on, by key.
    pub fn networks(&self) -> Vec<&str> {
        self.members("networks")
    }

    /// The models that active services use, by key.
    pub fn models(&self) -> Vec<&str> {
        self.members("models")
    }

    /// Every profile that a service names, active or not.
    pub fn profiles(&self) -> Vec<String> {
        let services = self.all_services().into_iter().flat_map(Mapping::iter);
        let profiles: BTreeSet<&str> = services.flat_map(|(_, entry)| profiles_of(&entry.node)).collect();
        profiles.into_iter().map(str::to_owned).collect()
    }

    /// The image of each active service, in the order of their names; one that is built and names none has the name that
    /// the reference gives it.
    pub fn images(&self) -> Vec<String> {
        let image = |(name, service): (&str, &Mapping)| {
            let given = service.get("image").and_then(Node::as_str).filter(|image| !image.is_empty());
            given.map_or_else(|| format!("{}-{name}", self.name), str::to_owned)
        };
        self.active_services().map(image).collect()
    }

    /// The variables that interpolation saw.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// A digest of what one container of a service is made from: it changes when the container would have to be replaced.
    /// What only other services or the number of containers depend on is left out. The digits are our own; the reference
    /// digests another text.
    pub fn hash(&self, service: &str) -> Option<String> {
        let services = self.all_services().filter(|_| self.active.contains(service));
        let mapping = services?.get(service)?.as_mapping()?;
        let mut json = print::object(mapping, &form::SERVICE, Language::Json, &|_, _| true).into_json();
        let fields = json.as_object_mut()?;
        for key in ["build", "pull_policy", "scale", "depends_on", "profiles"] {
            fields.remove(key);
        }
        if let Some(deploy) = fields.get_mut("deploy").and_then(serde_json::Value::as_object_mut) {
            deploy.remove("replicas");
        }
        Some(hex::encode(Sha256::digest(json.to_string())))
    }

    /// Keeps only these services and those they depend on. Answers the names that are no active service.
    pub fn select<S: AsRef<str>>(&mut self, services: &[S]) -> Vec<String> {
        let mut kept: BTreeSet<String> = BTreeSet::new();
        let mut unknown = Vec::new();
        let mut wanted: Vec<String> = Vec::new();
        for name in services.iter().map(AsRef::as_ref) {
            let list = if self.active.contains(name) { &mut wanted } else { &mut unknown };
            list.push(name.to_owned());
        }
        while let Some(name) = wanted.pop() {
            if !self.active.contains(&name) || !kept.insert(name.clone()) {
                continue;
            }
            let service = self.all_services().and_then(|services| services.get(&name));
            let dependencies = service
                .and_then(Node::as_mapping)
                .and_then(|service| service.get("depends_on"))
                .and_then(Node::as_mapping);
            wanted.extend(dependencies.into_iter().flat_map(Mapping::keys).map(str::to_owned));
        }
        let services = self.root.get_mut("services").and_then(Node::as_mapping_mut);
        for (name, entry) in services.into_iter().flat_map(Mapping::iter_mut) {
            let dependencies = entry.node.as_mapping_mut().and_then(|service| service.get_mut("depends_on"));
            if let Some(dependencies) = dependencies.and_then(Node::as_mapping_mut)
                && kept.contains(name)
            {
                dependencies.retain(|name, _| kept.contains(name));
            }
        }
        self.active = kept;
        unknown
    }

    /// Activates the profiles of services that are asked for by name.
    fn enable(&mut self, services: &[String]) {
        let mut profiles: BTreeSet<String> = BTreeSet::new();
        for name in services {
            if let Some(node) = self.all_services().and_then(|services| services.get(name)) {
                profiles.extend(profiles_of(node).map(str::to_owned));
            }
        }
        self.active.extend(active_services(&self.root, &profiles));
    }

    fn all_services(&self) -> Option<&Mapping> {
        self.root.get("services").and_then(Node::as_mapping)
    }

    fn active_services(&self) -> impl Iterator<Item = (&str, &Mapping)> {
        let services = self.all_services();
        self.active.iter().filter_map(move |name| Some((name.as_str(), services?.get(name)?.as_mapping()?)))
    }

    fn printed(&self, language: Language) -> print::Printed<'_> {
        let used = self.used();
        let shows = |group: &str, name: &str| match group {
            "services" => self.active.contains(name),
            _ => !self.interpolated || used.contains(&(group, name)),
        };
        let mut printed = print::object(&self.root, &form::PROJECT, language, &shows);
        if self.interpolated {
            printed.escape();
        }
        printed
    }

    fn members(&self, group: &str) -> Vec<&str> {
        let used = self.used();
        let members = self.root.get(group).and_then(Node::as_mapping);
        let names = members.into_iter().flat_map(Mapping::keys);
        let is_used = |name: &&str| !self.interpolated || used.contains(&(group, *name));
        let mut names: Vec<&str> = names.filter(is_used).collect();
        names.sort_unstable();
        names
    }

    /// What active services and jobs use, by group and name.
    fn used(&self) -> BTreeSet<(&str, &str)> {
        let mut used = BTreeSet::new();
        let jobs = self.root.get("jobs").and_then(Node::as_mapping).into_iter().flat_map(Mapping::iter);
        let jobs = jobs.filter_map(|(_, entry)| entry.node.as_mapping());
        for service in self.active_services().map(|(_, service)| service).chain(jobs) {
            let keys = |group: &'static str| {
                let mapping = service.get(group).and_then(Node::as_mapping);
                mapping.into_iter().flat_map(Mapping::keys).map(move |key| (group, key))
            };
            used.extend(keys("networks"));
            used.extend(keys("models"));
            used.extend(mounted(service, "configs"));
            used.extend(mounted(service, "secrets"));
            if let Some(build) = service.get("build").and_then(Node::as_mapping) {
                used.extend(mounted(build, "secrets"));
            }
            let mounts = service.get("volumes").and_then(Node::as_sequence).unwrap_or_default();
            for mount in mounts.iter().filter_map(Node::as_mapping) {
                let is_volume = mount.get("type").and_then(Node::as_str) == Some("volume");
                if let Some(source) = mount.get("source").and_then(Node::as_str).filter(|_| is_volume) {
                    used.insert(("volumes", source));
                }
            }
        }
        used
    }

    /// Puts the variables of `env_file` and `label_file` of active services where they belong, and leaves the files out.
    fn read_variables(&mut self, request: &Request, assembly: &mut Assembly<'_>) {
        let Self { root, active, environment, .. } = self;
        let group = Key::Root.field("services");
        let Some(services) = root.get_mut("services").and_then(Node::as_mapping_mut) else { return };
        for (name, entry) in services.iter_mut() {
            let Some(service) = entry.node.as_mapping_mut().filter(|_| active.contains(name)) else {
                continue;
            };
            let key = group.field(name);
            if !request.no_env_resolution {
                let mut own = take_pairs(service, "environment");
                complete::resolve(&mut own, environment);
                if let Some(files) = service.remove("env_file") {
                    let key = key.field("env_file");
                    let mut known: Environment = own
                        .iter()
                        .filter_map(|(name, entry)| Some((name.to_owned(), entry.node.scalar_text()?)))
                        .collect();
                    let inner = known.clone();
                    let outer = |name: &str| environment.get(name).or_else(|| inner.get(name)).cloned();
                    assembly.read_variables(&files.node, &key, &outer, &mut known);
                    add_missing(&mut own, known, files.key);
                }
                put_pairs(service, "environment", own);
            }
            if let Some(files) = service.remove("label_file") {
                let key = key.field("label_file");
                let mut own = take_pairs(service, "labels");
                let mut known = Environment::new();
                assembly.read_variables(&files.node, &key, &|_| None, &mut known);
                add_missing(&mut own, known, files.key);
                put_pairs(service, "labels", own);
            }
        }
    }
}

fn mounted<'a>(parent: &'a Mapping, group: &'static str) -> impl Iterator<Item = (&'static str, &'a str)> {
    let files = parent.get(group).and_then(Node::as_sequence).unwrap_or_default();
    files.iter().filter_map(move |file| Some((group, file.as_mapping()?.get("source")?.as_str()?)))
}

fn take_pairs(service: &mut Mapping, key: &str) -> Mapping {
    match service.get_mut(key).map(|node| std::mem::replace(&mut node.value, Value::Null)) {
        Some(Value::Mapping(mapping)) => mapping,
        _ => Mapping::default(),
    }
}
fn put_pairs(service: &mut Mapping, key: &str, pairs: Mapping) {
    if let Some(node) = service.get_mut(key) {
        node.value = Value::Mapping(pairs);
    } else if !pairs.is_empty() {
        let place = crate::diagnostic::Span::default();
        service.insert(key, place, Node::new(place, Value::Mapping(pairs)));
    }
}

/// What a service says itself wins over its files, even where it says nothing.
fn add_missing(own: &mut Mapping, found: Environment, place: crate::diagnostic::Span) {
    for (name, value) in found {
        if !own.contains(&name) {
            own.insert(name, place, Node::string(place, value));
        }
    }
}
