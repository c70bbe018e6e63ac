//! Checks of a service's health: `healthcheck`, which the engine runs, and `x-wharf.probe`, which the node makes.

use wharf_model::{Healthcheck, Millis, Probe, ProbeKind};

use super::{Typing, values};
use crate::contradictions;
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node, Value};

impl Typing<'_, '_> {
    pub(super) fn healthcheck(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Healthcheck> {
        let mut check = Healthcheck::default();
        let mut disabled: Option<Span> = None;
        for (field, value) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "disable" => disabled = values::flag(value).unwrap_or_default().then_some(value.key),
                "test" => check.test = self.check_command(value, &key),
                "interval" => check.interval = values::duration(value),
                "timeout" => check.timeout = values::duration(value),
                "start_period" => check.start_period = values::duration(value),
                "start_interval" => check.start_interval = values::duration(value),
                "retries" => {
                    check.retries = values::whole(self.report(), value, &key, 0..=i64::from(u32::MAX));
                }
                _ => self.unforeseen(value, &key),
            }
        }
        if let Some(place) = disabled {
            if check.test.as_ref().is_some_and(|test| test.first().is_some_and(|kind| kind != "NONE")) {
                let message = "`disable: true` and `test` exclude each other";
                self.report()
                    .error(Complaint::Conflict, place, &key.field("disable"), message)
                    .hint("keep one of them");
            }
            return Some(Healthcheck { test: Some(vec!["NONE".to_owned()]), ..Healthcheck::default() });
        }
        Some(check)
    }

    fn check_command(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Vec<String>> {
        match &entry.node.value {
            Value::String(text) => Some(vec!["CMD-SHELL".to_owned(), text.clone()]),
            Value::Sequence(_) => {
                let test = values::strings(entry);
                let problem = match test.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                    // An empty list takes the image's check.
                    [] => return None,
                    ["NONE"] | ["CMD", _, ..] | ["CMD-SHELL", _] => return Some(test),
                    ["NONE", ..] => "nothing can follow `NONE`",
                    ["CMD"] | ["CMD-SHELL"] => "the command is missing",
                    ["CMD-SHELL", ..] => "`CMD-SHELL` takes one text",
                    _ => {
                        contradictions::unknown_check(self.report(), entry, key);
                        return None;
                    }
                };
                self.report()
                    .error(Complaint::InvalidValue, entry.place(), key, problem)
                    .hint(contradictions::CHECK);
                None
            }
            _ => None,
        }
    }

    pub(super) fn probe(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Probe> {
        let mapping = entry.node.as_mapping()?;
        let mut probe = Probe {
            kind: ProbeKind::Tcp { port: 0 },
            interval: Millis::from_secs(10),
            timeout: Millis::from_secs(5),
            retries: 3,
            start_period: Millis(0),
        };
        let mut kinds: Vec<(&str, Span, Option<ProbeKind>)> = Vec::new();
        for (field, value) in mapping.iter() {
            let key = key.field(field);
            match field {
                "http" | "tcp" | "grpc" | "exec" => {
                    let kind = value.node.as_mapping().and_then(|inner| self.probe_kind(field, inner, &key));
                    kinds.push((field, value.key, kind));
                }
                "interval" => probe.interval = self.positive(value, &key).unwrap_or(probe.interval),
                "timeout" => probe.timeout = self.positive(value, &key).unwrap_or(probe.timeout),
                "start_period" => probe.start_period = values::duration(value).unwrap_or(probe.start_period),
                "retries" => {
                    let retries = values::whole(self.report(), value, &key, 1..=1000);
                    probe.retries = retries.unwrap_or(probe.retries);
                }
                _ => self.unforeseen(value, &key),
            }
        }
        match kinds.as_slice() {
            [(_, _, kind)] => {
                probe.kind = kind.clone()?;
                Some(probe)
            }
            [] => {
                self.report()
                    .error(
                        Complaint::MissingKey,
                        entry.key,
                        key,
                        "a probe needs `http`, `tcp`, `grpc` or `exec`",
                    )
                    .hint("write `probe: {http: {port: 80, path: /}}`");
                None
            }
            [(one, first, _), (two, second, _), ..] => {
                let message = format!("a probe is one of `{one}` and `{two}`, not both");
                let (first, second) = (*first, *second);
                self.report().error(Complaint::Conflict, second, key, message).hint("keep one of them");
                self.report().relate(first, "the other one");
                None
            }
        }
    }

    pub(super) fn positive(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Millis> {
        let length = values::duration(entry)?;
        if length.0 == 0 {
            let message = format!("`{}` must be longer than nothing", key.name());
            self.report()
                .error(Complaint::InvalidValue, entry.place(), key, message)
                .hint("write for example `10s`");
            return None;
        }
        Some(length)
    }

    /// A command: words, or one text for a shell.
    pub(super) fn shell_or_words(&mut self, entry: &Entry, key: &Key<'_>) -> Option<Vec<String>> {
        let command = match &entry.node.value {
            Value::String(text) if text.trim().is_empty() => Vec::new(),
            Value::String(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()],
            _ => values::strings(entry),
        };
        if command.is_empty() {
            self.report()
                .error(Complaint::InvalidValue, entry.key, key, "the command is empty")
                .hint("write what is to run, such as `[\"program\", \"argument\"]`");
            return None;
        }
        Some(command)
    }

    fn probe_kind(&mut self, kind: &str, inner: &Mapping, key: &Key<'_>) -> Option<ProbeKind> {
        match kind {
            "exec" => {
                let command = self.shell_or_words(inner.entry("command")?, key)?;
                Some(ProbeKind::Exec { command })
            }
            _ => {
                let port =
                    values::whole(self.report(), inner.entry("port")?, &key.field("port"), 1..=65_535)?;
                match kind {
                    "tcp" => return Some(ProbeKind::Tcp { port }),
                    "grpc" => {
                        let service = inner.get("service").and_then(Node::as_str).unwrap_or_default();
                        return Some(ProbeKind::Grpc { port, service: service.to_owned() });
                    }
                    _ => {}
                }
                let path = inner.get("path").and_then(Node::as_str).unwrap_or("/");
                if !path.starts_with('/') {
                    let place = inner.entry("path").map_or(Span::default(), Entry::place);
                    let message = format!("the path `{path}` does not start with `/`");
                    self.report()
                        .error(Complaint::InvalidValue, place, &key.field("path"), message)
                        .hint(format!("write `/{path}`"));
                    return None;
                }
                Some(ProbeKind::Http { port, path: path.to_owned() })
            }
        }
    }
}
