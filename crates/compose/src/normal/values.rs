//! Finds values of a service that have the right kind and are still none the specification knows.
//!
//! These are rules about single values; what several say together is the matter of `consistent`.

use crate::diagnostic::{Complaint, Key, Report, did_you_mean};
use crate::node::{Entry, Mapping, Node, Value};
use crate::quantity;
use crate::shape::one_of;

pub(super) fn check(report: &mut Report, service: &Mapping, key: &Key<'_>) {
    let mut values = Values { report };
    let at = |name: &'static str| service.entry(name).map(|entry| (entry, key.field(name)));
    if let Some((entry, key)) = at("pull_policy") {
        values.pull_policy(entry, &key);
    }
    if let Some((entry, key)) = at("container_name") {
        values.container_name(entry, &key);
    }
    for (name, most) in [("cpu_count", i64::MAX), ("cpu_percent", 100)] {
        if let Some((entry, key)) = at(name) {
            values.whole(entry, most, &key);
        }
    }
    for name in ["cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime"] {
        if let Some((entry, key)) = at(name) {
            values.microseconds(entry, &key);
        }
    }
    for (name, what) in [("ports", "a port"), ("volumes", "a volume of a service")] {
        if let Some((entry, key)) = at(name) {
            values.targets(&entry.node, what, &key);
        }
    }
    if let Some((entry, key)) = at("provider") {
        values.options(entry, &key);
    }
    if let Some((entry, key)) = at("gpus") {
        values.counts(&entry.node, &key);
    }
    let deploy_key = key.field("deploy");
    let resources_key = deploy_key.field("resources");
    let key = resources_key.field("reservations");
    let reservations = ["deploy", "resources", "reservations"]
        .iter()
        .try_fold(service, |parent, name| parent.get(name).and_then(Node::as_mapping));
    if let Some(reservations) = reservations {
        if let Some(devices) = reservations.get("devices") {
            values.counts(devices, &key.field("devices"));
        }
        if let Some(resources) = reservations.get("generic_resources") {
            values.generic_resources(resources, &key.field("generic_resources"));
        }
    }
}

struct Values<'a> {
    report: &'a mut Report,
}

impl Values<'_> {
    fn pull_policy(&mut self, entry: &Entry, key: &Key<'_>) {
        const KNOWN: [&str; 8] =
            ["always", "never", "missing", "if_not_present", "build", "refresh", "daily", "weekly"];
        let Some(policy) = entry.node.as_str().filter(|policy| !KNOWN.contains(policy)) else { return };
        if policy.strip_prefix("every_").is_some_and(is_interval) {
            return;
        }
        let hint =
            did_you_mean(policy, KNOWN).unwrap_or_else(|| format!("{} or `every_12h`", one_of(&KNOWN)));
        let message = format!("`{policy}` is not a pull policy");
        self.report.error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
    }

    fn container_name(&mut self, entry: &Entry, key: &Key<'_>) {
        let Some(name) = entry.node.as_str() else { return };
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if !name.as_bytes().windows(2).any(|pair| pair[0].is_ascii_alphanumeric() && legal(&pair[1])) {
            let message = format!("`{name}` is not a name for a container");
            self.report.error(Complaint::InvalidValue, entry.place(), key, message).hint(
                "use at least two letters, digits, `_`, `.` and `-`, and begin with a letter or a digit",
            );
        }
    }

    fn whole(&mut self, entry: &Entry, most: i64, key: &Key<'_>) {
        let legal = match entry.node.value {
            Value::Int(number) => (0..=most).contains(&number),
            #[expect(clippy::cast_precision_loss, reason = "only compared")]
            Value::Float(number) => number.fract() == 0.0 && (0.0..=most as f64).contains(&number),
            _ => true,
        };
        if !legal {
            let text = entry.node.scalar_text().unwrap_or_default();
            let bounds = if most == i64::MAX { "0 or more".to_owned() } else { format!("0 to {most}") };
            let message = format!("`{}` must be a whole number, {bounds}, not `{text}`", key.name());
            self.report
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write digits, such as `2`");
        }
    }

    fn microseconds(&mut self, entry: &Entry, key: &Key<'_>) {
        let Some(text) = entry.node.as_str().filter(|text| text.parse::<i64>().is_err()) else { return };
        if let Err(fault) = quantity::nanoseconds(text) {
            fault
                .tell(self.report, entry.place(), key)
                .hint("a number without a unit means microseconds here");
        }
    }

    fn targets(&mut self, items: &Node, what: &str, key: &Key<'_>) {
        for (index, item) in items.as_sequence().unwrap_or_default().iter().enumerate() {
            if item.as_mapping().is_some_and(|mapping| !mapping.contains("target")) {
                let message = format!("{what} needs `target`");
                self.report
                    .error(Complaint::MissingKey, item.span, &key.item(index), message)
                    .hint("say what it is in the container: `target: …`");
            }
        }
    }

    /// What a provider is told: scalars and lists of them.
    fn options(&mut self, entry: &Entry, key: &Key<'_>) {
        let options = entry.node.as_mapping().and_then(|provider| provider.get("options"));
        let key = key.field("options");
        for (name, entry) in options.and_then(Node::as_mapping).into_iter().flat_map(Mapping::iter) {
            let legal = match &entry.node.value {
                Value::Sequence(items) => items.iter().all(|item| item.scalar_text().is_some()),
                _ => entry.node.scalar_text().is_some(),
            };
            if !legal {
                let message = format!("the option `{name}` must be a scalar or a list of scalars");
                self.report
                    .error(Complaint::WrongType, entry.place(), &key.field(name), message)
                    .hint(format!("write `{name}: value`, or `{name}: [one, two]`"));
            }
        }
    }

    fn counts(&mut self, requests: &Node, key: &Key<'_>) {
        for (index, item) in requests.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(entry) = item.as_mapping().and_then(|request| request.entry("count")) else { continue };
            let legal = match &entry.node.value {
                Value::String(text) => text.eq_ignore_ascii_case("all") || text.parse::<i64>().is_ok(),
                Value::Float(_) => false,
                _ => true,
            };
            if !legal {
                let text = entry.node.scalar_text().unwrap_or_default();
                let message = format!("`count` must be a whole number or `all`, not `{text}`");
                let key = key.item(index);
                self.report
                    .error(Complaint::InvalidValue, entry.place(), &key.field("count"), message)
                    .hint("write for example `1`, or `all`");
            }
        }
    }

    fn generic_resources(&mut self, resources: &Node, key: &Key<'_>) {
        for (index, item) in resources.as_sequence().unwrap_or_default().iter().enumerate() {
            let fields = |node: &Node, known: &[&str]| {
                node.as_mapping().is_some_and(|mapping| {
                    mapping.keys().all(|key| known.contains(&key) || key.starts_with("x-"))
                })
            };
            let spec = item.as_mapping().and_then(|resource| resource.get("discrete_resource_spec"));
            let field = |name: &str| spec.and_then(Node::as_mapping).and_then(|spec| spec.get(name));
            let legal = fields(item, &["discrete_resource_spec"])
                && spec.is_none_or(|spec| fields(spec, &["kind", "value"]))
                && field("kind").is_none_or(|kind| kind.as_str().is_some())
                && field("value").is_none_or(|value| match &value.value {
                    Value::String(text) => text.parse::<i64>().is_ok(),
                    Value::Int(_) | Value::Float(_) => true,
                    _ => false,
                });
            if !legal {
                let message = "a generic resource is a `discrete_resource_spec` of `kind` and `value`";
                self.report
                    .error(Complaint::WrongType, item.span, &key.item(index), message)
                    .hint("write `discrete_resource_spec: {kind: gpu, value: 2}`");
            }
        }
    }
}

/// `12h`, `1w2d`
fn is_interval(text: &str) -> bool {
    let mut digits = 0;
    for c in text.chars() {
        match c {
            '0'..='9' => digits += 1,
            'w' | 'd' | 'h' | 'm' | 's' if digits > 0 => digits = 0,
            _ => return false,
        }
    }
    !text.is_empty() && digits == 0
}
