//! `x-wharf.release` and `x-wharf.hooks`: how an app moves to its next release.

use wharf_model::{CanaryStep, Judge, Millis, Promote, ReleaseHook, ReleaseHooks, ReleaseStrategy};

use super::routes::host_name;
use crate::diagnostic::{Complaint, Key};
use crate::node::{Entry, Mapping, Node, Value};
use crate::typed::{Typing, values};

const TEN_MINUTES: Millis = Millis::from_secs(600);
const MINUTE: Millis = Millis::from_secs(60);

impl Typing<'_, '_> {
    pub(super) fn strategy(&mut self, entry: &Entry, key: &Key<'_>) -> Option<ReleaseStrategy> {
        let mapping = entry.node.as_mapping()?;
        let strategy = mapping.get("strategy").and_then(Node::as_str)?;
        let (own, promote): (&[&str], _) = match strategy {
            "blue-green" => (&["strategy", "preview", "keep", "promote"], promote(mapping)),
            "canary" => (&["strategy", "steps", "judge", "promote"], promote(mapping)),
            _ => (&["strategy"], Promote::Auto),
        };
        for (field, value) in mapping.iter().filter(|(field, _)| !own.contains(field)) {
            let whose = match field {
                "preview" | "keep" => "`strategy: blue-green`",
                "steps" | "judge" => "`strategy: canary`",
                _ => "`blue-green` and `canary`",
            };
            let message = format!("`{field}` belongs to {whose}, and the strategy is `{strategy}`");
            self.report()
                .error(Complaint::Conflict, value.key, &key.field(field), message)
                .hint(format!("remove `{field}`, or change the strategy"));
        }
        match strategy {
            "blue-green" => {
                let preview = mapping.entry("preview");
                let preview = preview.and_then(|entry| self.preview(entry, &key.field("preview")));
                let keep = mapping.entry("keep").and_then(values::duration).unwrap_or(TEN_MINUTES);
                Some(ReleaseStrategy::BlueGreen { preview, promote, keep })
            }
            "canary" => {
                let Some(steps) = mapping.entry("steps") else {
                    self.report()
                        .error(Complaint::MissingKey, entry.key, key, "a canary release needs `steps`")
                        .hint("write for example `steps: [5, 25, 50]`");
                    return None;
                };
                let steps = self.steps(steps, &key.field("steps"))?;
                let judge = self.judge(mapping, key);
                Some(ReleaseStrategy::Canary { steps, judge, promote })
            }
            _ => Some(ReleaseStrategy::Rolling),
        }
    }

    fn preview(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = entry.node.as_str()?;
        match host_name(text) {
            Ok(host) if !host.starts_with('*') => Some(host),
            Ok(_) | Err(_) => {
                let message = format!("`{text}` is not one host name");
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, message)
                    .hint("write for example `preview: next.example.com`");
                None
            }
        }
    }

    fn steps(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Vec<CanaryStep>> {
        let mut steps: Vec<CanaryStep> = Vec::new();
        let items = entry.node.as_sequence()?;
        for (index, item) in items.iter().enumerate() {
            let key = key.item(index);
            let alone = Entry { key: item.span, node: item.clone() };
            let (weight, hold) = match &item.value {
                Value::Mapping(mapping) => {
                    (mapping.entry("weight")?, mapping.entry("hold").and_then(values::duration))
                }
                Value::Invalid => return None,
                _ => (&alone, None),
            };
            let key = key.field("weight");
            let weight: u8 = values::whole(self.report(), weight, &key, 1..=100)?;
            if let Some(before) = steps.last().map(|step| step.weight).filter(|before| *before >= weight) {
                let message = format!("the share falls from {before} to {weight} per cent");
                self.report()
                    .error(Complaint::Conflict, item.span, &key, message)
                    .hint("each step is greater than the one before");
                return None;
            }
            steps.push(CanaryStep { weight, hold: hold.unwrap_or(MINUTE) });
        }
        if steps.is_empty() {
            self.report()
                .error(Complaint::InvalidValue, entry.key, key, "a canary release needs at least one step")
                .hint("write for example `steps: [5, 25, 50]`");
            return None;
        }
        Some(steps)
    }

    fn judge(&mut self, release: &Mapping, key: &Key<'_>) -> Judge {
        let mut judge = Judge { errors_permille: 10, latency_percent: 150, requests: 100 };
        let key = key.field("judge");
        for (field, value) in release.entry("judge").into_iter().flat_map(values::entries) {
            let key = key.field(field);
            match field {
                "errors_percent" => match values::number(value) {
                    Some(percent) if (0.0..=100.0).contains(&percent) => {
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "0 to 1000"
                        )]
                        let permille = (percent * 10.0).round() as u16;
                        judge.errors_permille = permille;
                    }
                    Some(percent) => {
                        let message = format!("`errors_percent` must be 0 to 100, not {percent}");
                        self.report()
                            .error(Complaint::InvalidValue, value.place(), &key, message)
                            .hint("write for example `1`");
                    }
                    None => {}
                },
                "latency_percent" => {
                    let percent = values::whole(self.report(), value, &key, 100..=10_000);
                    judge.latency_percent = percent.unwrap_or(judge.latency_percent);
                }
                "requests" => {
                    let requests = values::whole(self.report(), value, &key, 1..=i64::from(u32::MAX));
                    judge.requests = requests.unwrap_or(judge.requests);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        judge
    }

    pub(super) fn release_hooks(&mut self, entry: &Entry, key: &Key<'_>) -> ReleaseHooks {
        let mut hooks = ReleaseHooks::default();
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            let list: Vec<_> = values::mappings(value)
                .filter_map(|(index, _, mapping)| self.release_hook(mapping, &key.item(index)))
                .collect();
            match field {
                "before" => hooks.before = list,
                "after" => hooks.after = list,
                _ => self.unforeseen(value, &key),
            }
        }
        hooks
    }

    fn release_hook(&mut self, hook: &Mapping, key: &Key<'_>) -> Option<ReleaseHook> {
        let (service, command) = (hook.entry("service")?, hook.entry("command")?);
        let name = service.node.as_str()?;
        let service = self.reference(name, service.place(), &key.field("service"), true);
        let command = self.shell_or_words(command, &key.field("command"));
        let timeout = hook.entry("timeout").and_then(|entry| self.positive(entry, &key.field("timeout")));
        Some(ReleaseHook { service: service?, command: command?, timeout: timeout.unwrap_or(TEN_MINUTES) })
    }
}

fn promote(release: &Mapping) -> Promote {
    match release.get("promote").and_then(Node::as_str) {
        Some("manual") => Promote::Manual,
        _ => Promote::Auto,
    }
}
