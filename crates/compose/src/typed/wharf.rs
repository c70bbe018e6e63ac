//! `x-wharf`: Wharf's own settings of services and of the whole app.
//!
//! Everything is read and checked in full, whether the cluster carries it out or not; what it does not is then refused by
//! the one table here, [`NOT_CARRIED_OUT`], and left out. None of it is part of what makes a container.

mod external;
mod jobs;
mod release;
mod routes;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use wharf_model::{
    Affinity, AppPolicy, Autoscale, AvailabilityMinimum, Bounds, Bytes, GpuWish, LONGEST_DRAIN, LogFormat,
    LogSource, LogStream, Metric, Millis, Mode, Neighbour, PlacementStrategy, Priority, ServiceName,
    ServiceSpec, StableSlots, Toleration, WHOLE,
};

use super::deploy::is_label;
use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping};

pub(super) use external::is_external;

/// A setting that a version of the cluster may or may not carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    Autoscale,
    Logs,
    Jobs,
}

/// What is understood and not carried out yet, with what people can write meanwhile. To carry something out, take its line
/// away: the setting then reaches the model.
const NOT_CARRIED_OUT: &[(Setting, &str)] = &[
    (Setting::Autoscale, "set the number of tasks with `deploy.replicas` or `wharf scale`"),
    (Setting::Logs, "read standard output with `wharf logs`, or send it elsewhere with `logging`"),
    (Setting::Jobs, "make it a service with `restart: \"no\"`: it runs to its end once"),
];

impl Setting {
    /// How people call it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Autoscale => "autoscale",
            Self::Logs => "logs",
            Self::Jobs => "jobs",
        }
    }
}

/// Each setting that is not carried out, and what to write instead.
pub(crate) fn not_carried_out() -> impl Iterator<Item = (&'static str, &'static str)> {
    NOT_CARRIED_OUT.iter().map(|(setting, instead)| (setting.as_str(), *instead))
}

/// What to write in place of a setting that is not carried out.
fn instead_of(setting: Setting) -> Option<&'static str> {
    #[cfg(test)]
    if tests::as_if_all_were_carried_out() {
        return None;
    }
    NOT_CARRIED_OUT.iter().find(|(other, _)| *other == setting).map(|(_, instead)| *instead)
}

const MOST_TASKS: i64 = 10_000;
const DAY: u64 = 86_400;

impl Typing<'_, '_> {
    /// Whether the cluster carries a setting out; complains if not.
    pub(super) fn carries_out(&mut self, setting: Setting, span: Span, key: &Key<'_>) -> bool {
        let Some(instead) = instead_of(setting) else { return true };
        let message = format!("`{}` is not carried out by this version", key.name());
        self.report().unsupported(span, key, message).hint(instead);
        false
    }

    /// What Wharf adds to a service.
    pub(super) fn wharf(&mut self, name: &ServiceName, entry: &Entry, key: &Key<'_>, spec: &mut ServiceSpec) {
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            if value.node.is_invalid() {
                continue;
            }
            match field {
                "probe" => spec.probe = self.probe(value, &key),
                "routes" => spec.policy.routes = self.routes(value, &key, spec),
                "release" => spec.policy.release = self.strategy(value, &key),
                "drain" => spec.policy.drain = self.drain(value, &key),
                "single_writer" => spec.policy.single_writer = values::flag(value),
                "autoscale" => {
                    let autoscale = self.autoscale(value, &key, spec.mode);
                    if self.carries_out(Setting::Autoscale, value.key, &key) {
                        spec.policy.autoscale = autoscale;
                    }
                }
                "logs" => {
                    let logs = self.log_streams(value, &key);
                    if self.carries_out(Setting::Logs, value.key, &key) {
                        spec.policy.logs = logs;
                    }
                }
                "priority" => spec.policy.priority = priority(value),
                "affinity" => spec.policy.affinity = self.affinity(name, value, &key),
                "availability" => spec.policy.availability = self.availability(value, &key, spec.mode),
                "strategy" => spec.policy.strategy = strategy_of_placement(value),
                "pool" => spec.policy.pool = self.node_pool(value, &key),
                "tolerations" => spec.policy.tolerations = self.tolerations(value, &key),
                "slots" => spec.policy.slots = Some(self.stable_slots(value, &key)),
                "disk" => {
                    let disk = values::size(self.report(), value, &key).filter(|size| *size > 0);
                    spec.policy.disk = disk.map(Bytes);
                }
                "gpu" => spec.resources.gpu = self.gpu(value, &key),
                // Such a service never gets here.
                "external" => {}
                _ => self.unforeseen(value, &key),
            }
        }
    }

    /// Which GPUs, and how much of one.
    fn gpu(&mut self, entry: &Entry, key: &Key<'_>) -> Option<GpuWish> {
        let mut wish = GpuWish::default();
        if entry.node.as_mapping().is_none() {
            (wish.share, wish.count) = self.gpu_amount(entry, key)?;
            return Some(wish);
        }
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "share" => (wish.share, wish.count) = self.gpu_amount(value, &key)?,
                "model" => {
                    wish.models = match values::text(value) {
                        Some(model) => vec![model],
                        None => values::strings(value),
                    };
                }
                "memory" => wish.memory = values::size(self.report(), value, &key).map(Bytes),
                _ => self.unforeseen(value, &key),
            }
        }
        Some(wish)
    }

    /// Less than one is a share, and more are whole ones.
    fn gpu_amount(&mut self, entry: &Entry, key: &Key<'_>) -> Option<(Option<u32>, Option<u32>)> {
        let number = values::number(entry)?;
        let thousandths = (number * f64::from(WHOLE)).round();
        let exact = (number * f64::from(WHOLE) - thousandths).abs() < 1e-6;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the bounds that stand before"
        )]
        let amount = ((1.0..=1_024_000.0).contains(&thousandths) && exact).then_some(thousandths as u32);
        match amount {
            Some(share) if share < WHOLE => return Some((Some(share), None)),
            Some(count) if count.is_multiple_of(WHOLE) => return Some((None, Some(count / WHOLE))),
            Some(_) | None => {}
        }
        let text = entry.node.scalar_text().unwrap_or_default();
        let message = format!("a task can have a part of one GPU, or whole ones, and not {text}");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("write for example `gpu: 0.5`, in steps of 0.001, or `gpu: 2`");
        None
    }

    /// What Wharf adds to a whole app.
    pub(super) fn wharf_app(&mut self) -> AppPolicy {
        let mut policy = AppPolicy::default();
        let key = Key::Root.field("x-wharf");
        let root = self.root;
        for (field, value) in root.entry("x-wharf").into_iter().flat_map(values::entries) {
            let key = key.field(field);
            if value.node.is_invalid() {
                continue;
            }
            match field {
                "release" => policy.release = self.strategy(value, &key),
                "priority" => policy.priority = priority(value).unwrap_or_default(),
                "hooks" => policy.hooks = self.release_hooks(value, &key),
                _ => self.unforeseen(value, &key),
            }
        }
        policy
    }

    fn drain(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Millis> {
        let drain = values::duration(entry)?;
        if drain <= LONGEST_DRAIN {
            return Some(drain);
        }
        let text = entry.node.as_str().unwrap_or_default();
        let message = format!("a task drains for 1 hour at most, not `{text}`");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("write for example `drain: 5m`; `stop_grace_period` is what the process has after that");
        None
    }

    // --- autoscaling ---

    fn autoscale(&mut self, entry: &Entry, key: &Key<'_>, mode: Mode) -> Option<Autoscale> {
        let mapping = entry.node.as_mapping()?;
        let three_minutes = Millis::from_secs(180);
        let mut autoscale = Autoscale {
            min: self.count(mapping, key, "min", 0).unwrap_or(1),
            max: self.count(mapping, key, "max", 1).unwrap_or(10),
            metrics: BTreeMap::new(),
            step: 1,
            window: three_minutes,
            cool_down: three_minutes,
        };
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            match field {
                "min" | "max" => {}
                "metrics" => autoscale.metrics = self.metrics(value, &key),
                "step" => {
                    autoscale.step =
                        values::whole(self.report(), value, &key, 1..=1000).unwrap_or(autoscale.step);
                }
                "window" => autoscale.window = self.positive(value, &key).unwrap_or(autoscale.window),
                "cool_down" => autoscale.cool_down = values::duration(value).unwrap_or(autoscale.cool_down),
                _ => self.unforeseen(value, &key),
            }
        }
        if autoscale.min > autoscale.max {
            let (min, max) = (autoscale.min, autoscale.max);
            let written =
                mapping.entry("min").or_else(|| mapping.entry("max")).map_or(entry.key, Entry::place);
            let default = if mapping.contains("max") { "" } else { " (the default)" };
            let message = format!("`min` is {min} and `max` is {max}{default}");
            self.report()
                .error(Complaint::Conflict, written, &key.field("min"), message)
                .hint("`min` must not be greater than `max`");
        }
        match mode {
            Mode::Global => {
                let message = "a global service has one task on every node, so there is nothing to scale";
                self.report()
                    .error(Complaint::Conflict, entry.key, key, message)
                    .hint("remove `autoscale`, or `mode: global`");
            }
            Mode::Replicated { replicas } if replicas > autoscale.max => {
                let message =
                    format!("the service begins with {replicas} tasks and has at most {}", autoscale.max);
                self.report()
                    .error(Complaint::Conflict, entry.key, key, message)
                    .hint("raise `max`, or lower `deploy.replicas`");
            }
            Mode::Replicated { .. } => {}
        }
        Some(autoscale)
    }

    fn count(&mut self, mapping: &Mapping, key: &Key<'_>, field: &'static str, least: i64) -> Option<u32> {
        values::whole(self.report(), mapping.entry(field)?, &key.field(field), least..=MOST_TASKS)
    }

    fn metrics(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<Metric, Bounds> {
        let mut metrics = BTreeMap::new();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            let metric = match field {
                "cpu" => Metric::Cpu,
                "memory" => Metric::Memory,
                "network_in" => Metric::NetworkIn,
                "network_out" => Metric::NetworkOut,
                "requests" => Metric::Requests,
                "latency" => Metric::Latency,
                _ => {
                    self.unforeseen(value, &key);
                    continue;
                }
            };
            if let Some(bounds) = self.bounds(metric, value, &key) {
                metrics.insert(metric, bounds);
            }
        }
        if entry.node.as_mapping().is_some_and(Mapping::is_empty) {
            self.report()
                .error(Complaint::MissingKey, entry.key, key, "`metrics` names nothing to measure")
                .hint("write for example `metrics: {cpu: 60}`");
        }
        metrics
    }

    fn bounds(&mut self, metric: Metric, entry: &Entry, key: &Key<'_>) -> Option<Bounds> {
        let Some(mapping) = entry.node.as_mapping() else {
            return Some(Bounds::Target { value: self.level(metric, entry, key)? });
        };
        let mut level = |field: &'static str| {
            let entry = mapping.entry(field)?;
            Some((self.level(metric, entry, &key.field(field))?, entry))
        };
        match (level("target"), level("above"), level("below")) {
            (Some(_), Some((_, other)), _) | (Some(_), None, Some((_, other))) => {
                let message = "`target` says where to be; `above` and `below` say when to move";
                self.report()
                    .error(Complaint::Conflict, other.key, key, message)
                    .hint("keep `target`, or the other two");
                None
            }
            (Some((value, _)), None, None) => Some(Bounds::Target { value }),
            (None, Some((above, place)), Some((below, _))) if below >= above => {
                let message = format!("`below` ({below}) must be smaller than `above` ({above})");
                self.report()
                    .error(Complaint::Conflict, place.key, key, message)
                    .hint("exchange the two, or leave one of them out");
                None
            }
            (None, None, None) => {
                if mapping.is_empty() {
                    self.report()
                        .error(Complaint::MissingKey, entry.key, key, "the metric has no bound")
                        .hint(format!("write for example `{}: 60`", key.name()));
                }
                None
            }
            (None, above, below) => Some(Bounds::Range {
                above: above.map(|(level, _)| level),
                below: below.map(|(level, _)| level),
            }),
        }
    }

    /// A value of a metric in its unit.
    fn level(&mut self, metric: Metric, entry: &Entry, key: &Key<'_>) -> Option<u64> {
        let level = values::size(self.report(), entry, key)?;
        let most = match metric {
            Metric::Memory => 100,
            // Of one processor, where there is no limit.
            Metric::Cpu => 100 * 1024,
            Metric::NetworkIn | Metric::NetworkOut | Metric::Requests | Metric::Latency => u64::MAX,
        };
        if level > most || level == 0 {
            let message = match metric {
                Metric::Memory | Metric::Cpu => {
                    format!("`{}` is in per cent, 1 to {most}, not {level}", metric.as_str())
                }
                Metric::NetworkIn | Metric::NetworkOut | Metric::Requests | Metric::Latency => {
                    format!("`{}` must be more than nothing", metric.as_str())
                }
            };
            self.report()
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write for example `60`");
            return None;
        }
        Some(level)
    }

    // --- logs ---

    fn log_streams(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, LogStream> {
        let mut streams = BTreeMap::new();
        for (name, value) in values::entries(entry) {
            let key = key.field(name);
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !name.bytes().all(legal) || name.len() > 63 {
                let message = format!("`{name}` is not a name for a log stream");
                self.report()
                    .error(Complaint::InvalidValue, value.key, &key, message)
                    .hint("use at most 63 lower-case letters, digits and `-`");
                continue;
            }
            let mut stream = LogStream { from: LogSource::Stdout, keep: None, format: LogFormat::default() };
            for (field, value) in values::entries(value) {
                let key = key.field(field);
                match field {
                    "from" => stream.from = self.log_source(value, &key).unwrap_or_default(),
                    "keep" => stream.keep = self.retention(value, &key),
                    "format" if value.node.as_str() == Some("json") => stream.format = LogFormat::Json,
                    "format" => {}
                    _ => self.unforeseen(value, &key),
                }
            }
            streams.insert(name.to_owned(), stream);
        }
        streams
    }

    fn log_source(&mut self, entry: &Entry, key: &Key<'_>) -> Option<LogSource> {
        let text = entry.node.as_str()?;
        if text == "stdout" {
            return Some(LogSource::Stdout);
        }
        let (folder, file) = text.rsplit_once('/').unwrap_or_default();
        let problem = if !text.starts_with('/') {
            "logs come from `stdout` or from an absolute path in the container"
        } else if file.is_empty() {
            "a folder is no file"
        } else if folder.contains('*') {
            "`*` may stand in the name of the file, not in its folders"
        } else {
            return Some(LogSource::Files(text.to_owned()));
        };
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, format!("`{text}`: {problem}"))
            .hint("write `from: stdout` or `from: /var/log/app/*.log`");
        None
    }

    fn retention(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Millis> {
        let keep = values::duration(entry)?;
        if (Millis::from_secs(3600)..=Millis::from_secs(3650 * DAY)).contains(&keep) {
            return Some(keep);
        }
        let text = entry.node.as_str().unwrap_or_default();
        self.report()
            .error(
                Complaint::InvalidValue,
                entry.place(),
                key,
                format!("logs are kept 1 hour to 3650 days, not `{text}`"),
            )
            .hint("write for example `keep: 30d`");
        None
    }

    // --- place ---

    fn affinity(&mut self, name: &ServiceName, entry: &Entry, key: &Key<'_>) -> Vec<Affinity> {
        let mut wishes = Vec::new();
        for (index, item, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let kinds = ["near", "apart", "near_image"];
            let mut kinds = kinds.iter().filter_map(|kind| Some((*kind, mapping.entry(kind)?)));
            let (Some((kind, value)), other) = (kinds.next(), kinds.next()) else {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        item.span,
                        &key,
                        "an affinity needs `near`, `apart` or `near_image`",
                    )
                    .hint("write for example `- apart: db`");
                continue;
            };
            if let Some((other, place)) = other {
                let message = format!("an affinity is one of `{kind}` and `{other}`, not both");
                self.report()
                    .error(Complaint::Conflict, place.key, &key, message)
                    .hint("make them two items of the list");
                continue;
            }
            let key = key.field(kind);
            let Some(text) = values::full_text(self.report(), value, &key) else { continue };
            let to = match kind {
                "near_image" => Some(Neighbour::NearImage(text)),
                "near" if text == name.as_str() => {
                    let message = "a service is always near itself";
                    self.report()
                        .error(Complaint::InvalidValue, value.place(), &key, message)
                        .hint("name another service, or write `apart`");
                    None
                }
                "near" => self.reference(&text, value.place(), &key, true).map(Neighbour::Near),
                _ => self.reference(&text, value.place(), &key, true).map(Neighbour::Apart),
            };
            let scope = mapping.entry("scope").and_then(|entry| self.place_of_nodes(entry, &key, true));
            let soft = mapping.entry("soft").and_then(values::flag).unwrap_or_default();
            if let Some(to) = to {
                wishes.push(Affinity { to, scope: scope.unwrap_or_else(|| "node".to_owned()), soft });
            }
        }
        wishes
    }

    /// `node`, or a label of nodes.
    fn place_of_nodes(&mut self, entry: &Entry, key: &Key<'_>, node: bool) -> Option<String> {
        let text = entry.node.as_str()?;
        if is_label(text) || (node && text == "node") {
            return Some(text.to_owned());
        }
        let message = format!("`{text}` is not a label of nodes");
        let hint = if node { "write `node` or `node.labels.zone`" } else { "write `node.labels.zone`" };
        self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
        None
    }

    fn availability(&mut self, entry: &Entry, key: &Key<'_>, mode: Mode) -> Option<AvailabilityMinimum> {
        let mapping = entry.node.as_mapping()?;
        let over = mapping.entry("over");
        let over = over.and_then(|entry| self.place_of_nodes(entry, &key.field("over"), false));
        let at_least_key = key.field("at_least");
        let written = mapping.entry("at_least")?;
        let at_least: u32 = values::whole(self.report(), written, &at_least_key, 2..=1000)?;
        let soft = mapping.entry("soft").and_then(values::flag).unwrap_or_default();
        if let Mode::Replicated { replicas } = mode
            && replicas < at_least
            && !soft
        {
            let message = format!("{replicas} tasks cannot be in {at_least} places");
            self.report()
                .error(Complaint::Conflict, written.place(), &at_least_key, message)
                .hint(format!("write `deploy: {{replicas: {at_least}}}`, or `soft: true`"));
        }
        let over = over.unwrap_or_else(|| "node.labels.zone".to_owned());
        Some(AvailabilityMinimum { over, at_least, soft })
    }

    fn node_pool(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = values::full_text(self.report(), entry, key)?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.bytes().all(legal) && text.len() <= 63 {
            return Some(text);
        }
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, format!("`{text}` is not a name for a pool"))
            .hint("use at most 63 letters, digits, `-`, `_` and `.`");
        None
    }

    fn tolerations(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<Toleration> {
        let mut tolerations = Vec::new();
        for text in values::strings(entry) {
            match text.parse() {
                Ok(toleration) => tolerations.push(toleration),
                Err(_) => {
                    let message = format!("`{text}` names no taint");
                    self.report()
                        .error(Complaint::InvalidValue, entry.place(), key, message)
                        .hint("write `key` for any value of the taint, or `key=value`");
                }
            }
        }
        tolerations
    }

    fn stable_slots(&mut self, entry: &Entry, key: &Key<'_>) -> StableSlots {
        let mut slots = StableSlots { stay: true, elsewhere: 0 };
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "stay" => slots.stay = values::flag(value).unwrap_or(true),
                "elsewhere" => {
                    slots.elsewhere =
                        values::whole(self.report(), value, &key, 0..=MOST_TASKS).unwrap_or_default();
                }
                _ => self.unforeseen(value, &key),
            }
        }
        slots
    }
}

fn priority(entry: &Entry) -> Option<Priority> {
    Some(match entry.node.as_str()? {
        "low" => Priority::Low,
        "high" => Priority::High,
        "system" => Priority::System,
        _ => Priority::Normal,
    })
}

fn strategy_of_placement(entry: &Entry) -> Option<PlacementStrategy> {
    Some(match entry.node.as_str()? {
        "binpack" => PlacementStrategy::Binpack,
        "random" => PlacementStrategy::Random,
        _ => PlacementStrategy::Spread,
    })
}
