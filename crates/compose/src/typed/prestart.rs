//! `pre_start`: containers that run to their end, one after the other, before a service's own first one starts.
//!
//! Each is a service of its own here, `NAME-pre-start-1` and so on, that runs once and that `NAME` waits for; so it has a
//! place, a status and logs like any other, runs again when what it is made of changes, and its failure is that of the
//! release. It has the service's image, environment, networks and mounts unless it says otherwise, and none of its ports,
//! names, checks and hooks.

use std::collections::BTreeMap;

use wharf_model::{
    ContainerSpec, Dependency, DependencyCondition, EndpointSpec, Hook, Mode, NetworkAttachment,
    PlacementSpec, RestartCondition, RestartPolicy, ServiceName, ServicePolicy, ServiceSpec, UpdatePolicy,
};

use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::Entry;

/// What runs before a service starts.
pub(super) struct PreStart {
    span: Span,
    steps: Vec<Step>,
}

struct Step {
    /// Its own image, if it has one.
    image: Option<String>,
    hook: Hook,
}

impl Typing<'_, '_> {
    /// Reads the steps; they become services once all services are known.
    pub(super) fn pre_start(&mut self, service: &ServiceName, entry: &Entry, key: &Key<'_>) {
        let mut steps = Vec::new();
        for (index, item, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let mut step = Step { image: None, hook: Hook::default() };
            for (field, value) in mapping.iter() {
                let key = key.field(field);
                match field {
                    "image" => step.image = values::full_text(self.report(), value, &key),
                    "per_replica" => {
                        if values::flag(value) == Some(true) {
                            let message =
                                "a `pre_start` hook runs once for the service, not for each of its tasks";
                            self.report()
                                .unsupported(value.key, &key, message)
                                .hint("do it in the image's entrypoint, or with `post_start`");
                        }
                    }
                    _ => self.hook_key(&mut step.hook, field, value, &key),
                }
            }
            if step.hook.command.is_empty() && step.image.is_none() {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        item.span,
                        &key,
                        "a hook needs a command, or an image with one",
                    )
                    .hint("write `command: [\"sh\", \"-c\", \"…\"]`");
            }
            let builds = self.assembly.builds.contains_key(service);
            if builds && step.image.is_none() {
                let message = "a hook cannot run in an image that is built with the app";
                self.report()
                    .unsupported(item.span, &key, message)
                    .hint("give the hook an `image`, or make it a service with the same `build` that this one depends on");
            }
            steps.push(step);
        }
        if !steps.is_empty() {
            self.pre_starts.insert(service.clone(), PreStart { span: entry.key, steps });
        }
    }

    /// Makes a service of each step, which waits for the one before, and lets the service wait for the last.
    pub(super) fn add_pre_starts(&mut self, services: &mut BTreeMap<ServiceName, ServiceSpec>) {
        let group = Key::Root.field("services");
        for (name, PreStart { span, steps }) in std::mem::take(&mut self.pre_starts) {
            let key = group.field(name.as_str());
            let key = key.field("pre_start");
            let Some(parent) = services.get(&name).cloned() else {
                // What was wrong with the service has been said; something else that is no service has no such hooks.
                if !self.services.contains(name.as_str()) {
                    let message = "only services have `pre_start` hooks";
                    self.report().unsupported(span, &key, message).hint("remove it");
                }
                continue;
            };
            let mut before = None;
            for (index, step) in steps.into_iter().enumerate() {
                let text = format!("{name}-pre-start-{}", index + 1);
                let Ok(step_name) = text.parse::<ServiceName>() else {
                    let message = format!("the hook would be the service `{text}`, whose name is too long");
                    self.report().unsupported(span, &key, message).hint("give the service a shorter name");
                    break;
                };
                if services.contains_key(&step_name) || self.services.contains(&text) {
                    let message = format!("the hook is the service `{text}`, and there is one already");
                    self.report()
                        .error(Complaint::Conflict, span, &key, message)
                        .hint(format!("call the other one something else than `{text}`"));
                    break;
                }
                let spec = step.service(&parent, before.take());
                services.insert(step_name.clone(), spec);
                before = Some(step_name);
            }
            if let (Some(last), Some(parent)) = (before, services.get_mut(&name)) {
                parent.depends_on.insert(last, completed());
            }
        }
    }
}

const fn completed() -> Dependency {
    let condition = DependencyCondition::ServiceCompletedSuccessfully;
    Dependency { condition, restart: false, required: true }
}

impl Step {
    /// The service that runs this step before `parent` starts, and after `before`.
    fn service(self, parent: &ServiceSpec, before: Option<ServiceName>) -> ServiceSpec {
        let Self { image, hook } = self;
        let Hook { command, user, privileged, working_dir, environment } = hook;
        let own = image.is_some();
        let from = &parent.container;
        let mut all = from.environment.clone();
        all.extend(environment.into_iter().map(|(name, value)| (name, Some(value))));
        let container = ContainerSpec {
            command: (!command.is_empty()).then_some(command),
            // What overrides the service's image says nothing about another one.
            entrypoint: from.entrypoint.clone().filter(|_| !own),
            environment: all,
            working_dir: working_dir.or_else(|| from.working_dir.clone().filter(|_| !own)),
            user: user.or_else(|| from.user.clone()),
            privileged: privileged || from.privileged,
            hostname: None,
            post_start: Vec::new(),
            pre_stop: Vec::new(),
            ..from.clone()
        };
        // Found by nobody, and with an address of its own.
        let on = |attachment: &NetworkAttachment| NetworkAttachment {
            aliases: Vec::new(),
            ipv4_address: None,
            ipv6_address: None,
            endpoint: EndpointSpec { mac_address: None, ..attachment.endpoint.clone() },
            priority: attachment.priority,
        };
        let mut depends_on = parent.depends_on.clone();
        depends_on.extend(before.map(|before| (before, completed())));
        ServiceSpec {
            image: image.unwrap_or_else(|| parent.image.clone()),
            pull_policy: parent.pull_policy,
            mode: Mode::Replicated { replicas: 1 },
            container,
            depends_on,
            network_mode: parent.network_mode.clone(),
            endpoint_mode: Default::default(),
            networks: parent
                .networks
                .iter()
                .map(|(name, attachment)| (name.clone(), on(attachment)))
                .collect(),
            ports: Vec::new(),
            expose: Vec::new(),
            restart: RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() },
            update: UpdatePolicy::default(),
            rollback: None,
            placement: PlacementSpec { max_replicas_per_node: None, ..parent.placement.clone() },
            resources: parent.resources.clone(),
            healthcheck: None,
            probe: None,
            labels: BTreeMap::new(),
            configs: parent.configs.clone(),
            secrets: parent.secrets.clone(),
            policy: ServicePolicy::default(),
        }
    }
}
