//! `deploy`, and the older keys of a service that say the same.
//!
//! Where both are given they must agree; `deploy.restart_policy` wins over `restart`.

use wharf_model::{
    Bytes, Constraint, DeviceRequest, EndpointMode, FailureAction, GenericResource, Mode, PlacementSpec,
    ResourceSet, Resources, RestartCondition, RestartPolicy, ServiceSpec, UpdateOrder, UpdatePolicy,
};

use super::{Typing, values};
use crate::contradictions;
use crate::diagnostic::{Complaint, Key, did_you_mean};
use crate::node::{Entry, Mapping, Node};
use crate::quantity;

const MOST_REPLICAS: i64 = 10_000;
/// Of one kind, for one task.
const MOST_DEVICES: u64 = 1024;

impl Typing<'_, '_> {
    pub(super) fn deploy(&mut self, service: &Mapping, key: &Key<'_>, spec: &mut ServiceSpec) {
        let deploy_key = key.field("deploy");
        let deploy = service.entry("deploy");
        let mut mode: Option<(&str, &Entry)> = None;
        let mut replicas: Option<(u32, &Entry)> = None;
        for (field, value) in deploy.into_iter().flat_map(values::entries) {
            let key = deploy_key.field(field);
            match field {
                "mode" => mode = value.node.as_str().map(|mode| (mode, value)),
                "replicas" => {
                    replicas =
                        values::whole(self.report(), value, &key, 0..=MOST_REPLICAS).map(|n| (n, value));
                }
                "labels" => spec.labels = values::text_map(value),
                "endpoint_mode" => spec.endpoint_mode = self.endpoint_mode(value, &key),
                "update_config" => spec.update = self.update(value, &key),
                "rollback_config" => spec.rollback = Some(self.rollback(value, &key)),
                "resources" => spec.resources = self.resources(value, &key),
                "restart_policy" => spec.restart = self.restart_policy(value, &key),
                "placement" => spec.placement = self.placement(value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        self.mode(service, key, mode, replicas, spec);
    }

    fn mode(
        &mut self,
        service: &Mapping,
        key: &Key<'_>,
        mode: Option<(&str, &Entry)>,
        replicas: Option<(u32, &Entry)>,
        spec: &mut ServiceSpec,
    ) {
        let scale_key = key.field("scale");
        let scale = service.entry("scale").and_then(|entry| {
            values::whole::<u32>(self.report(), entry, &scale_key, 0..=MOST_REPLICAS).map(|n| (n, entry))
        });
        if let (Some((scale, entry)), Some((replicas, other))) = (scale, replicas)
            && scale != replicas
        {
            let message = format!("`scale` says {scale} and `deploy.replicas` says {replicas}");
            self.report()
                .error(Complaint::Conflict, entry.place(), &scale_key, message)
                .hint("keep one of them");
            self.report().relate(other.place(), "`deploy.replicas` is here");
        }
        let wanted = replicas.or(scale);
        let deploy_key = key.field("deploy");
        let mode_key = deploy_key.field("mode");
        spec.mode = match mode {
            None | Some(("" | "replicated", _)) => {
                Mode::Replicated { replicas: wanted.map_or(1, |(count, _)| count) }
            }
            Some(("global", entry)) => {
                if let Some((_, other)) = wanted {
                    let message = "a global service has one task on every node, not a number of replicas";
                    self.report()
                        .error(Complaint::Conflict, other.place(), &mode_key, message)
                        .hint("remove one");
                    self.report().relate(entry.place(), "the mode is here");
                }
                Mode::Global
            }
            Some((job @ ("replicated-job" | "global-job"), entry)) => {
                if let Some((_, other)) = wanted.filter(|_| job == "global-job") {
                    let message = "a global job has one task on every node, not a number of replicas";
                    self.report()
                        .error(Complaint::Conflict, other.place(), &mode_key, message)
                        .hint("remove one");
                }
                let message =
                    format!("the mode `{job}` is not carried out by this version: jobs run with a later one");
                self.report()
                    .unsupported(entry.place(), &mode_key, message)
                    .hint("write `restart: \"no\"`: the service runs to its end once");
                Mode::default()
            }
            Some((other, entry)) => {
                let hint = did_you_mean(other, ["replicated", "global"])
                    .unwrap_or_else(|| "write one of the two".to_owned());
                let message = format!("`{other}` is not a mode: write `replicated` or `global`");
                self.report().error(Complaint::InvalidValue, entry.place(), &mode_key, message).hint(hint);
                Mode::default()
            }
        };
    }

    fn endpoint_mode(&mut self, entry: &Entry, key: &Key<'_>) -> EndpointMode {
        match entry.node.as_str().unwrap_or_default() {
            "" | "dnsrr" => {}
            "vip" => return EndpointMode::Vip,
            other => {
                let message = format!("`{other}` is not an endpoint mode");
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, message)
                    .hint("write `dnsrr` or `vip`");
            }
        }
        EndpointMode::Dnsrr
    }

    fn update(&mut self, entry: &Entry, key: &Key<'_>) -> UpdatePolicy {
        let mut policy = UpdatePolicy::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            let text = value.node.as_str().unwrap_or_default();
            match field {
                "parallelism" => {
                    let parallelism = values::whole(self.report(), value, &key, 0..=MOST_REPLICAS);
                    policy.parallelism = parallelism.unwrap_or(policy.parallelism);
                }
                "delay" => policy.delay = values::duration(value).unwrap_or(policy.delay),
                "monitor" => policy.monitor = values::duration(value).unwrap_or(policy.monitor),
                "order" => {
                    policy.order = match text {
                        "start-first" => Some(UpdateOrder::StartFirst),
                        "stop-first" => Some(UpdateOrder::StopFirst),
                        _ => None,
                    }
                }
                "failure_action" => match text {
                    "pause" => policy.failure_action = FailureAction::Pause,
                    "continue" => policy.failure_action = FailureAction::Continue,
                    "rollback" => policy.failure_action = FailureAction::Rollback,
                    _ => {
                        let message = format!("`{text}` is not a failure action");
                        self.report()
                            .error(Complaint::InvalidValue, value.place(), &key, message)
                            .hint("`pause`, `continue` or `rollback`");
                    }
                },
                "max_failure_ratio" => {
                    policy.max_failure_ratio = self.ratio(value, &key).unwrap_or_default();
                }
                _ => self.unforeseen(value, &key),
            }
        }
        policy
    }

    /// As an update; what has failed on its way back cannot return once more.
    fn rollback(&mut self, entry: &Entry, key: &Key<'_>) -> UpdatePolicy {
        let policy = self.update(entry, key);
        let action = entry.node.as_mapping().and_then(|written| written.entry("failure_action"));
        match action {
            None => UpdatePolicy { failure_action: FailureAction::Pause, ..policy },
            Some(action) if policy.failure_action == FailureAction::Rollback => {
                if action.node.as_str() == Some("rollback") {
                    let message = "a return that fails cannot return once more";
                    self.report()
                        .error(Complaint::InvalidValue, action.place(), &key.field("failure_action"), message)
                        .hint("`pause` or `continue`");
                }
                policy
            }
            Some(_) => policy,
        }
    }

    /// A part of one, in thousandths.
    fn ratio(&mut self, entry: &Entry, key: &Key<'_>) -> Option<u16> {
        let ratio = values::number(entry)?;
        if (0.0..=1.0).contains(&ratio) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 1000"
            )]
            return Some((ratio * 1000.0).round() as u16);
        }
        let message = format!("`{}` must be 0 to 1, not {ratio}", key.name());
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("write for example `0.1`");
        None
    }

    fn restart_policy(&mut self, entry: &Entry, key: &Key<'_>) -> RestartPolicy {
        let mut policy = RestartPolicy::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "condition" => match value.node.as_str().unwrap_or_default() {
                    "none" | "no" => policy.condition = RestartCondition::None,
                    "on-failure" => policy.condition = RestartCondition::OnFailure,
                    "" | "any" | "always" | "unless-stopped" => policy.condition = RestartCondition::Any,
                    other => {
                        let known = ["none", "on-failure", "any"];
                        let hint = did_you_mean(other, known).unwrap_or_else(|| crate::shape::one_of(&known));
                        let message = format!("`{other}` is not a restart condition");
                        self.report().error(Complaint::InvalidValue, value.place(), &key, message).hint(hint);
                    }
                },
                "delay" => policy.delay = values::duration(value).unwrap_or(policy.delay),
                "window" => policy.window = values::duration(value).unwrap_or(policy.window),
                "max_attempts" => {
                    let attempts = values::whole::<u32>(self.report(), value, &key, 0..=i64::from(u32::MAX));
                    policy.max_attempts = attempts.filter(|attempts| *attempts > 0);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        policy
    }

    fn placement(&mut self, entry: &Entry, key: &Key<'_>) -> PlacementSpec {
        let mut placement = PlacementSpec::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "constraints" => {
                    for (index, item) in value.node.as_sequence().unwrap_or_default().iter().enumerate() {
                        let Some(text) = item.as_str() else { continue };
                        match constraint(text) {
                            Ok(constraint) => placement.constraints.push(constraint),
                            Err((message, hint)) => {
                                self.report()
                                    .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                                    .hint(hint);
                            }
                        }
                    }
                }
                "preferences" => {
                    for (index, item, preference) in values::mappings(value) {
                        let spread = preference.get("spread").and_then(Node::as_str).unwrap_or_default();
                        if is_label(spread) {
                            placement.spread.push(spread.to_owned());
                        } else {
                            let message = format!("`{spread}` is not a label of nodes");
                            self.report()
                                .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                                .hint("write `spread: node.labels.zone`");
                        }
                    }
                }
                "max_replicas_per_node" => {
                    let most = values::whole::<u32>(self.report(), value, &key, 0..=MOST_REPLICAS);
                    // Swarm means no limit by 0.
                    placement.max_replicas_per_node = most.filter(|most| *most > 0);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        placement
    }

    fn resources(&mut self, entry: &Entry, key: &Key<'_>) -> Resources {
        let mut resources = Resources::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "limits" => resources.limits = self.resource_set(value, &key, &mut Resources::default()),
                "reservations" => {
                    resources.reservations = self.resource_set(value, &key, &mut resources);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        resources
    }

    fn resource_set(&mut self, entry: &Entry, key: &Key<'_>, devices: &mut Resources) -> ResourceSet {
        let mut set = ResourceSet::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "cpus" => set.cpus = self.cpus(value, &key),
                "memory" => set.memory = values::size(self.report(), value, &key).map(Bytes),
                "pids" => set.pids = values::whole(self.report(), value, &key, -1..=i64::MAX),
                "devices" => devices.devices.extend(self.device_requests(value, &key, false)),
                "generic_resources" => devices.generic.extend(self.generic_resources(value, &key)),
                _ => self.unforeseen(value, &key),
            }
        }
        set
    }

    /// Swarm's way to ask for devices: so many of a kind.
    fn generic_resources(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<GenericResource> {
        let mut resources = Vec::new();
        for (index, _, mapping) in values::mappings(entry) {
            let item = key.item(index);
            for (field, spec) in mapping.iter() {
                let key = item.field(field);
                if field != "discrete_resource_spec" {
                    self.unforeseen(spec, &key);
                    continue;
                }
                let (mut kind, mut count) = (None, Some(1));
                for (field, value) in values::entries(spec) {
                    let key = key.field(field);
                    match field {
                        "kind" => {
                            let text = values::text(value).unwrap_or_default();
                            kind = values::named(self.report(), &text, value.place(), &key);
                        }
                        // Also as text: that is how Swarm's own files have it.
                        "value" => count = self.whole_or_text(value, &key),
                        _ => self.unforeseen(value, &key),
                    }
                }
                if !values::entries(spec).any(|(field, _)| field == "kind") {
                    self.report()
                        .error(Complaint::MissingKey, spec.key, &key, "a generic resource needs `kind`")
                        .hint("write `discrete_resource_spec: {kind: gpu, value: 2}`");
                }
                resources.extend(kind.zip(count).map(|(kind, count)| GenericResource { kind, count }));
            }
        }
        resources
    }

    fn whole_or_text(&mut self, entry: &Entry, key: &Key<'_>) -> Option<u64> {
        let number = entry.node.scalar_text().and_then(|text| text.parse::<u64>().ok());
        if number.is_none_or(|number| number > MOST_DEVICES) {
            let message = format!("`{}` must be a whole number from 0 to {MOST_DEVICES}", key.name());
            self.report()
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write for example `2`");
        }
        number.filter(|number| *number <= MOST_DEVICES)
    }

    fn cpus(&mut self, entry: &Entry, key: &Key<'_>) -> Option<wharf_model::Cpus> {
        match quantity::cpus(values::number(entry)?) {
            Ok(cpus) => Some(cpus),
            Err(fault) => {
                fault.tell(self.report(), entry.place(), key);
                None
            }
        }
    }

    /// `cpus`, `mem_limit`, `mem_reservation` and `pids_limit`.
    pub(super) fn amounts(&mut self, service: &Mapping, key: &Key<'_>, spec: &mut ServiceSpec) {
        let entry = |field: &'static str| service.entry(field).map(|entry| (entry, key.field(field)));
        if let Some((entry, key)) = entry("cpus") {
            let given = self.cpus(entry, &key);
            spec.resources.limits.cpus =
                self.agreed(given, spec.resources.limits.cpus, entry, &key, "deploy.resources.limits.cpus");
        }
        if let Some((entry, key)) = entry("mem_limit") {
            let given = values::size(self.report(), entry, &key).filter(|size| *size > 0).map(Bytes);
            spec.resources.limits.memory = self.agreed(
                given,
                spec.resources.limits.memory,
                entry,
                &key,
                "deploy.resources.limits.memory",
            );
        }
        if let Some((entry, key)) = entry("pids_limit") {
            let given = values::whole(self.report(), entry, &key, -1..=i64::MAX);
            spec.resources.limits.pids =
                self.agreed(given, spec.resources.limits.pids, entry, &key, "deploy.resources.limits.pids");
        }
        if let Some((entry, key)) = entry("mem_reservation") {
            let given = values::size(self.report(), entry, &key).map(Bytes);
            let reserved = spec.resources.reservations.memory;
            spec.resources.reservations.memory =
                self.agreed(given, reserved, entry, &key, "deploy.resources.reservations.memory");
        }
        let (limits, reservations) = (&spec.resources.limits, &spec.resources.reservations);
        let place = service.entry("deploy").or_else(|| service.entry("mem_reservation"));
        if let (Some(limit), Some(reserved), Some(place)) = (limits.memory, reservations.memory, place)
            && reserved > limit
        {
            let message = format!("the service reserves {reserved} of memory but may use only {limit}");
            self.report()
                .error(Complaint::Conflict, place.key, key, message)
                .hint("reserve less, or raise the limit");
        }
        if let (Some(limit), Some(reserved), Some(place)) = (limits.cpus, reservations.cpus, place)
            && reserved > limit
        {
            let message = format!("the service reserves {reserved} processors but may use only {limit}");
            self.report()
                .error(Complaint::Conflict, place.key, key, message)
                .hint("reserve less, or raise the limit");
        }
    }

    /// What two keys say about the same; a complaint if they differ.
    fn agreed<T: PartialEq + std::fmt::Display>(
        &mut self,
        given: Option<T>,
        other: Option<T>,
        entry: &Entry,
        key: &Key<'_>,
        path: &str,
    ) -> Option<T> {
        if let (Some(given), Some(other)) = (&given, &other)
            && given != other
        {
            let message = format!("`{}` says {given} and `{path}` says {other}", key.name());
            self.report().error(Complaint::Conflict, entry.place(), key, message).hint("keep one of them");
        }
        given.or(other)
    }

    /// `gpus`, or `deploy.resources.reservations.devices`.
    pub(super) fn device_requests(&mut self, entry: &Entry, key: &Key<'_>, gpus: bool) -> Vec<DeviceRequest> {
        let mut requests = Vec::new();
        for (index, _, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let mut request = DeviceRequest::default();
            for (field, value) in mapping.iter() {
                let key = key.field(field);
                match field {
                    "driver" => request.driver = values::text(value),
                    "capabilities" => request.capabilities = values::strings(value),
                    "device_ids" => request.device_ids = values::strings(value),
                    "options" => request.options = values::pairs(value),
                    "count" if value.node.as_str() == Some("all") => request.count = Some(-1),
                    "count" => request.count = values::whole(self.report(), value, &key, -1..=1024),
                    _ => self.unforeseen(value, &key),
                }
            }
            if gpus && !request.capabilities.iter().any(|capability| capability == "gpu") {
                request.capabilities.push("gpu".to_owned());
            }
            contradictions::count_or_ids(self.report(), mapping, &key);
            if request.count.is_none() && request.device_ids.is_empty() {
                request.count = Some(-1);
            }
            requests.push(request);
        }
        requests
    }
}

pub(super) fn is_label(text: &str) -> bool {
    ["node.labels.", "engine.labels."]
        .iter()
        .any(|prefix| text.strip_prefix(prefix).is_some_and(|name| !name.is_empty()))
}

/// `node.labels.disk == ssd`.
fn constraint(text: &str) -> Result<Constraint, (String, String)> {
    const KEYS: [&str; 5] =
        ["node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch"];
    let form = || "write for example `node.labels.disk == ssd`".to_owned();
    let split = text.split_once("==").map(|parts| (parts, true));
    let Some(((key, value), equal)) = split.or_else(|| text.split_once("!=").map(|parts| (parts, false)))
    else {
        return Err((format!("the constraint `{text}` compares nothing with `==` or `!=`"), form()));
    };
    let (key, value) = (key.trim(), value.trim());
    if value.is_empty() {
        return Err((format!("the constraint `{text}` has nothing to compare with"), form()));
    }
    if !KEYS.contains(&key) && !is_label(key) {
        let known = KEYS.into_iter().chain(["node.labels.NAME", "engine.labels.NAME"]);
        let hint = did_you_mean(key, KEYS)
            .unwrap_or_else(|| format!("constraints are about {}", known.collect::<Vec<_>>().join(", ")));
        return Err((format!("`{key}` is not something nodes have"), hint));
    }
    if key == "node.role" && !matches!(value, "manager" | "worker") {
        let hint = "`node.role` is `manager` or `worker`".to_owned();
        return Err((format!("no node has the role `{value}`"), hint));
    }
    Ok(Constraint { key: key.to_owned(), equal, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_those_of_swarm() {
        let parsed = constraint(" node.labels.disk==ssd ").unwrap();
        assert_eq!(parsed.to_string(), "node.labels.disk == ssd");
        assert_eq!(constraint("node.hostname != a").unwrap().to_string(), "node.hostname != a");
        assert_eq!(constraint("node.hostnme == a").unwrap_err().1, "did you mean `node.hostname`?");
        for text in ["", "node.id", "node.id ==", "node.labels. == x", "node.role == boss"] {
            assert!(constraint(text).is_err(), "{text}");
        }
    }
}
