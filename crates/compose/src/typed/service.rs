//! One service: what it runs, what it needs, and which of its keys go where.

use std::collections::BTreeMap;

use wharf_model::{
    Dependency, DependencyCondition, EndpointMode, Millis, Mode, NetworkMode, PlacementSpec, PullPolicy,
    Resources, RestartCondition, RestartPolicy, ServiceName, ServicePolicy, ServiceSpec, UpdatePolicy,
};

use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span, did_you_mean};
use crate::node::{Entry, Mapping, Node};
use crate::quantity;
use crate::short::is_windows;

/// What a key of a service is read as.
enum Part {
    /// How the container is made.
    Container,
    /// Limits and reservations.
    Amount,
    /// Read together with others.
    Together,
    /// For another program than this one.
    Elsewhere { reason: &'static str, instead: &'static str },
    /// Not what a cluster can honour.
    Refused { reason: &'static str, instead: &'static str },
}

fn part(key: &str) -> Part {
    let refused = |reason, instead| Part::Refused { reason, instead };
    match key {
        "image" | "build" | "pull_policy" | "platform" | "scale" | "deploy" | "restart" | "depends_on"
        | "links" | "networks" | "network_mode" | "ports" | "expose" | "healthcheck" | "configs"
        | "secrets" | "gpus" | "container_name" | "profiles" | "x-wharf" | "environment" | "env_file"
        | "labels" | "label_file" | "volumes" | "tmpfs" | "ipc" | "pid" | "pre_start" | "volumes_from"
        | "mac_address" | "pull_refresh_after" | "external" | "triggers" => Part::Together,
        "cpus" | "mem_limit" | "mem_reservation" | "pids_limit" => Part::Amount,
        "develop" => Part::Elsewhere {
            reason: "`develop` is about files on the machine of a developer; it has no effect here",
            instead: "use it with `docker compose watch`",
        },
        "attach" => Part::Elsewhere {
            reason: "`attach` is about the terminal of `docker compose up`; it has no effect here",
            instead: "choose services: `wharf logs NAME`",
        },
        "external_links" => refused(
            "`external_links` names containers of one machine",
            "share an external network with the other app",
        ),
        "cpu_count" => refused(
            "`cpu_count` is for Windows containers; Wharf runs Linux ones",
            "limit processors with `cpus`",
        ),
        "cpu_percent" => refused(
            "`cpu_percent` is for Windows containers; Wharf runs Linux ones",
            "limit processors with `cpus`",
        ),
        "isolation" => refused(
            "`isolation` is for Windows containers; Wharf runs Linux ones",
            "remove it; another runtime is chosen with `runtime`",
        ),
        "credential_spec" => refused(
            "`credential_spec` is for Windows containers; Wharf runs Linux ones",
            "give the service its credentials with `secrets`",
        ),
        "provider" => refused(
            "providers run programs on the machine of a developer",
            "describe the service by an image",
        ),
        "models" => refused("models are not supported", "run the model as a service of its own"),
        "use_api_socket" => refused(
            "containers get no access to the engine's API",
            "mount `/var/run/docker.sock` where you accept the risk",
        ),
        _ => Part::Container,
    }
}

impl Typing<'_, '_> {
    pub(super) fn service(
        &mut self,
        name: &ServiceName,
        entry: &Entry,
        key: &Key<'_>,
    ) -> Option<ServiceSpec> {
        let service = entry.node.as_mapping()?;
        // Without an image there is no service, but what else is wrong with it is said.
        let image = self.image(name, service, entry.key, key);
        let mut spec = ServiceSpec {
            image: image.clone().unwrap_or_default(),
            pull_policy: PullPolicy::default(),
            mode: Mode::default(),
            container: self.container(service, key),
            depends_on: BTreeMap::new(),
            network_mode: NetworkMode::default(),
            endpoint_mode: Default::default(),
            networks: BTreeMap::new(),
            ports: Vec::new(),
            expose: Vec::new(),
            restart: RestartPolicy::default(),
            update: UpdatePolicy::default(),
            rollback: None,
            placement: PlacementSpec::default(),
            resources: Resources::default(),
            healthcheck: None,
            probe: None,
            labels: BTreeMap::new(),
            configs: Vec::new(),
            secrets: Vec::new(),
            policy: ServicePolicy::default(),
        };
        for (field, value) in service.iter() {
            let key = key.field(field);
            if value.node.is_invalid() {
                continue;
            }
            match part(field) {
                Part::Container | Part::Together | Part::Amount => {}
                Part::Elsewhere { reason, instead } => {
                    self.report().warn(Complaint::Note, value.key, &key, reason).hint(instead);
                }
                Part::Refused { reason, instead } => {
                    self.report().unsupported(value.key, &key, reason).hint(instead);
                }
            }
        }
        let at = |field: &'static str| service.entry(field).map(|entry| (entry, key.field(field)));
        if let Some((entry, key)) = at("restart") {
            spec.restart = self.restart(entry, &key);
        }
        if let Some((entry, key)) = at("pull_policy") {
            spec.pull_policy = self.pull_policy(service, entry, &key);
        } else if let Some((entry, key)) = at("pull_refresh_after") {
            let message = "`pull_refresh_after` has no effect without `pull_policy: refresh`";
            self.report()
                .warn(Complaint::Note, entry.key, &key, message)
                .hint("write `pull_policy: refresh`");
        }
        self.deploy(service, key, &mut spec);
        self.amounts(service, key, &mut spec);
        if let Some((entry, key)) = at("platform") {
            spec.placement.platform = self.platform(entry, &key);
        }
        if let Some((entry, key)) = at("gpus") {
            let requests = self.device_requests(entry, &key, true);
            spec.resources.devices.extend(requests);
        }
        if let Some((entry, key)) = at("depends_on") {
            spec.depends_on = self.depends_on(name, entry, &key);
        }
        self.connections(name, service, key, &mut spec);
        self.shared(name, service, key, &mut spec);
        if let Some((entry, key)) = at("pre_start") {
            self.pre_start(name, entry, &key);
        }
        if let Some((entry, key)) = at("links") {
            self.links(name, entry, &key, &mut spec);
        }
        if let Some((entry, _)) = at("expose") {
            spec.expose = values::strings(entry);
        }
        if let Some((entry, key)) = at("healthcheck") {
            spec.healthcheck = self.healthcheck(entry, &key);
        }
        if let Some((entry, key)) = at("x-wharf") {
            self.wharf(name, entry, &key, &mut spec);
        }
        if let Some((entry, key)) = at("configs") {
            spec.configs = self.mounted_files("configs", entry, &key);
        }
        if let Some((entry, key)) = at("secrets") {
            spec.secrets = self.mounted_files("secrets", entry, &key);
        }
        self.container_name(service, key, &mut spec);
        self.virtual_address(service, key, &spec);
        image.map(|_| spec)
    }

    fn image(&mut self, name: &ServiceName, service: &Mapping, place: Span, key: &Key<'_>) -> Option<String> {
        let image = service.entry("image");
        let build = service.entry("build");
        if image.is_some_and(|entry| entry.node.is_invalid()) || build.is_some_and(|b| b.node.is_invalid()) {
            return None;
        }
        if let Some(build) = build {
            let key = key.field("build");
            self.check_platforms(service, build, &key);
            let spec = self.build(service, build, &key)?;
            self.assembly.builds.insert(name.clone(), spec);
            if image.is_none() {
                // Named after the app, once that is known.
                return Some(String::new());
            }
        }
        if let Some(image) = image {
            let key = key.field("image");
            let text = values::full_text(self.report(), image, &key)?;
            if let Err(hint) = check_reference(&text) {
                let message = format!("`{text}` is not an image reference");
                self.report().error(Complaint::InvalidValue, image.place(), &key, message).hint(hint);
                return None;
            }
            return Some(text);
        }
        if service.contains("provider") {
            return None;
        }
        let message = format!("the service `{}` has neither an image nor a build", key.name());
        self.report().error(Complaint::MissingKey, place, key, message).hint("write `image: name:tag`");
        None
    }

    fn check_platforms(&mut self, service: &Mapping, build: &Entry, key: &Key<'_>) {
        let Some(platform) = service.get("platform").and_then(Node::as_str) else { return };
        let Some(entry) = build.node.as_mapping().and_then(|build| build.entry("platforms")) else { return };
        let platforms = values::strings(entry);
        if !platforms.is_empty() && !platforms.iter().any(|other| other == platform) {
            let message = format!("`build.platforms` must have the service's `platform`, {platform}");
            self.report()
                .error(Complaint::Conflict, entry.key, &key.field("platforms"), message)
                .hint(format!("add `- {platform}`"));
        }
    }

    fn pull_policy(&mut self, service: &Mapping, entry: &Entry, key: &Key<'_>) -> PullPolicy {
        const DAY: Millis = Millis::from_secs(24 * 60 * 60);
        let text = entry.node.as_str().unwrap_or("missing");
        match text {
            "always" => PullPolicy::Always,
            "never" => PullPolicy::Never,
            "missing" | "if_not_present" => PullPolicy::Missing,
            // What is built is never pulled.
            "build" => PullPolicy::Missing,
            "daily" => PullPolicy::Refresh { after: DAY },
            "weekly" => PullPolicy::Refresh { after: Millis(DAY.0 * 7) },
            "refresh" => {
                let after = service
                    .entry("pull_refresh_after")
                    .and_then(|entry| values::full_text(self.report(), entry, key).map(|text| (text, entry)));
                match after {
                    Some((text, entry)) => self.refresh(&text, entry, key),
                    None => PullPolicy::Refresh { after: DAY },
                }
            }
            text if text.starts_with("every_") => self.refresh(&text["every_".len()..], entry, key),
            _ => {
                let known = [
                    "always",
                    "never",
                    "missing",
                    "if_not_present",
                    "build",
                    "refresh",
                    "daily",
                    "weekly",
                    "every_12h",
                ];
                let hint = did_you_mean(text, known).unwrap_or_else(|| crate::shape::one_of(&known));
                let message = format!("`{text}` is not a pull policy");
                self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
                PullPolicy::Missing
            }
        }
    }

    fn refresh(&mut self, text: &str, entry: &Entry, key: &Key<'_>) -> PullPolicy {
        match quantity::duration(text) {
            Ok(after) => PullPolicy::Refresh { after },
            Err(fault) => {
                fault
                    .tell(self.report(), entry.place(), key)
                    .hint("write for example `every_12h` or `every_2d`");
                PullPolicy::Missing
            }
        }
    }

    fn restart(&mut self, entry: &Entry, key: &Key<'_>) -> RestartPolicy {
        let text = entry.node.as_str().unwrap_or_default();
        let default = RestartPolicy::default();
        match text {
            "no" => RestartPolicy { condition: RestartCondition::None, ..default },
            "" | "always" | "unless-stopped" => default,
            "on-failure" => RestartPolicy { condition: RestartCondition::OnFailure, ..default },
            _ => {
                let attempts = text.strip_prefix("on-failure:").and_then(|count| count.parse::<u32>().ok());
                if attempts.is_none() {
                    let message = format!("`{text}` is not a restart policy");
                    let known = ["no", "always", "on-failure", "unless-stopped"];
                    let hint = did_you_mean(text, known).unwrap_or_else(|| {
                        "\"no\", `always`, `on-failure`, `on-failure:3`, `unless-stopped`".to_owned()
                    });
                    self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
                }
                // Docker means no limit by 0.
                let max_attempts = attempts.filter(|attempts| *attempts > 0);
                RestartPolicy { condition: RestartCondition::OnFailure, max_attempts, ..default }
            }
        }
    }

    fn platform(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = values::full_text(self.report(), entry, key)?;
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
            let message = format!("`{text}` is not a platform");
            self.report()
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write `os/architecture`, such as `linux/arm64`");
            return None;
        }
        Some(text)
    }

    fn depends_on(
        &mut self,
        service: &ServiceName,
        entry: &Entry,
        key: &Key<'_>,
    ) -> BTreeMap<ServiceName, Dependency> {
        let mut dependencies = BTreeMap::new();
        for (name, entry) in values::entries(entry) {
            let key = key.field(name);
            let Some(mapping) = entry.node.as_mapping() else { continue };
            let required = mapping.entry("required").and_then(values::flag).unwrap_or(true);
            let restart = mapping.entry("restart").and_then(values::flag).unwrap_or_default();
            let condition = match mapping.get("condition").and_then(Node::as_str) {
                Some("service_healthy") => DependencyCondition::ServiceHealthy,
                Some("service_completed_successfully") => DependencyCondition::ServiceCompletedSuccessfully,
                _ => DependencyCondition::ServiceStarted,
            };
            if let Some(target) = self.reference(name, entry.key, &key, required) {
                if self.is_outside(&target) {
                    self.depends_on_outside(condition, mapping, entry, &key);
                    continue;
                }
                self.edge(service, &target, entry.key);
                dependencies.insert(target, Dependency { condition, restart, required });
            }
        }
        dependencies
    }

    /// What runs outside the cluster is always there and never waited for.
    fn depends_on_outside(
        &mut self,
        condition: DependencyCondition,
        dependency: &Mapping,
        entry: &Entry,
        key: &Key<'_>,
    ) {
        let message = match condition {
            DependencyCondition::ServiceStarted => return,
            DependencyCondition::ServiceHealthy => {
                let message = format!("`{}` runs outside the cluster and counts as healthy", key.name());
                self.report().warn(Complaint::Note, entry.key, key, message);
                return;
            }
            DependencyCondition::ServiceCompletedSuccessfully => {
                format!("`{}` runs outside the cluster and never completes", key.name())
            }
        };
        let place = dependency.entry("condition").map_or(entry.key, Entry::place);
        self.report()
            .error(Complaint::Conflict, place, key, message)
            .hint("write `condition: service_started`");
    }

    pub(super) fn edge(&mut self, from: &ServiceName, to: &ServiceName, span: Span) {
        self.edges.entry(from.as_str().to_owned()).or_default().push((to.as_str().to_owned(), span));
    }

    /// `service` or `service:alias`: started first, and found under the alias.
    fn links(&mut self, service: &ServiceName, entry: &Entry, key: &Key<'_>, spec: &mut ServiceSpec) {
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            let (name, alias) = text.split_once(':').unwrap_or((text, text));
            let Some(target) = self.reference(name, item.span, &key.item(index), true) else { continue };
            if alias != name {
                self.aliases.push((target.clone(), alias.to_owned()));
            }
            if self.is_outside(&target) {
                continue;
            }
            self.edge(service, &target, item.span);
            let condition = DependencyCondition::ServiceStarted;
            spec.depends_on.entry(target).or_insert(Dependency { condition, restart: false, required: true });
        }
    }

    /// A virtual address is one on a network.
    fn virtual_address(&mut self, service: &Mapping, key: &Key<'_>, spec: &ServiceSpec) {
        if spec.endpoint_mode != EndpointMode::Vip || spec.network_mode == NetworkMode::Networks {
            return;
        }
        let deploy = service.get("deploy").and_then(Node::as_mapping);
        let Some(entry) = deploy.and_then(|deploy| deploy.entry("endpoint_mode")) else { return };
        let key = key.field("deploy");
        let key = key.field("endpoint_mode");
        self.report()
            .unsupported(entry.place(), &key, "a service without networks has no virtual address")
            .hint("remove `endpoint_mode`, or `network_mode`");
    }

    /// Tasks are named by the cluster; the name people gave stays one under which the service is found.
    fn container_name(&mut self, service: &Mapping, key: &Key<'_>, spec: &mut ServiceSpec) {
        let Some(entry) = service.entry("container_name") else { return };
        let key = key.field("container_name");
        let Some(name) = values::full_text(self.report(), entry, &key) else { return };
        if !matches!(spec.mode, Mode::Replicated { replicas: 0 | 1 }) {
            self.report()
                .unsupported(entry.key, &key, "several containers cannot have one name")
                .hint("remove `container_name`; the service is found under its own name");
            return;
        }
        if spec.network_mode != NetworkMode::Networks {
            let message = "containers are named by their tasks, and without networks the name leads nowhere";
            self.report().warn(Complaint::Note, entry.key, &key, message).hint("remove `container_name`");
            return;
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.chars().all(legal) || is_windows(&name) {
            let message = format!("`{name}` is not a container's name");
            self.report()
                .error(Complaint::InvalidValue, entry.place(), &key, message)
                .hint("use letters, digits, `.`, `_` and `-`");
            return;
        }
        for attachment in spec.networks.values_mut() {
            if !attachment.aliases.contains(&name) {
                attachment.aliases.push(name.clone());
            }
        }
    }
}

/// Whether engines can read an image reference, `[host[:port]/]path[:tag][@digest]`; if not, what to write.
fn check_reference(text: &str) -> Result<(), String> {
    let usual = || "write `name:tag`, such as `nginx:1.29`".to_owned();
    if let Some((_, rest)) = text.split_once("://") {
        return Err(format!("write it without the protocol: `{rest}`"));
    }
    let named = text.split_once('@').map_or(text, |(named, _)| named);
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (named, None),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if tag.is_some_and(|tag| tag.is_empty() || tag.starts_with(['.', '-']) || !tag.chars().all(legal)) {
        return Err(usual());
    }
    // What stands before the first slash is a host if it looks like one.
    let path = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) || has_upper(host) => path,
        Some(_) | None => name,
    };
    if has_upper(path) {
        return Err(format!(
            "write it in lower case: `{}`",
            text.replacen(path, &path.to_ascii_lowercase(), 1)
        ));
    }
    let good = |part: &str| {
        let ends = |c: char| c.is_ascii_alphanumeric();
        part.starts_with(ends) && part.ends_with(ends) && part.chars().all(legal)
    };
    if path.split('/').all(good) { Ok(()) } else { Err(usual()) }
}

fn has_upper(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_uppercase())
}
