//! `jobs:`, a draft of the Compose Specification: what runs to its end when asked for, or by the clock.

use std::collections::BTreeMap;

use wharf_model::{JobSpec, Mode, RestartCondition, ServiceName};

use super::Setting;
use crate::diagnostic::{Complaint, Key};
use crate::node::{Entry, Node};
use crate::typed::{Typing, values};

impl Typing<'_, '_> {
    /// Every job, checked as services are.
    pub(in crate::typed) fn jobs(&mut self) -> BTreeMap<ServiceName, JobSpec> {
        let mut jobs = BTreeMap::new();
        let group = Key::Root.field("jobs");
        let root = self.root;
        for (name, entry) in root.entry("jobs").into_iter().flat_map(values::entries) {
            let key = group.field(name);
            if entry.node.is_invalid() || !self.is_active(&entry.node) {
                continue;
            }
            let Some(name) = values::named::<ServiceName>(self.report(), name, entry.key, &key) else {
                continue;
            };
            if let Some(other) = self.services.entry(name.as_str()) {
                let place = other.key;
                let message = format!("`{name}` is a job and a service");
                self.report()
                    .error(Complaint::Conflict, entry.key, &key, message)
                    .hint("give one of them another name");
                self.report().relate(place, "the service is here");
            }
            jobs.extend(self.job(&name, entry, &key).map(|job| (name, job)));
        }
        match root.entry("jobs") {
            Some(entry) if !jobs.is_empty() && !self.carries_out(Setting::Jobs, entry.key, &group) => {
                BTreeMap::new()
            }
            _ => jobs,
        }
    }

    fn job(&mut self, name: &ServiceName, entry: &Entry, key: &Key<'_>) -> Option<JobSpec> {
        let mut spec = self.service(name, entry, key)?;
        spec.mode = Mode::Replicated { replicas: 1 };
        spec.restart.condition = RestartCondition::None;
        let triggers = entry.node.as_mapping().and_then(|job| job.entry("triggers"));
        let (mut schedule, mut manual) = (None, true);
        let key = key.field("triggers");
        for (field, value) in triggers.into_iter().flat_map(values::entries) {
            let key = key.field(field);
            match field {
                "schedule" => schedule = self.schedule(value, &key),
                "manual" => manual = values::flag(value).unwrap_or(true),
                _ => self.unforeseen(value, &key),
            }
        }
        let scheduled = triggers.and_then(|t| t.node.as_mapping()).is_some_and(|t| t.contains("schedule"));
        if let (Some(triggers), false, false) = (triggers, manual, scheduled) {
            self.report()
                .error(Complaint::Conflict, triggers.key, &key, "nothing ever starts this job")
                .hint("give it a `schedule`, or remove `manual: false`");
        }
        Some(JobSpec { spec: Box::new(spec), schedule, manual })
    }

    fn schedule(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let text = entry.node.as_str()?;
        match check_schedule(text) {
            Ok(()) => Some(text.split_whitespace().collect::<Vec<_>>().join(" ")),
            Err(problem) => {
                let message = format!("`{text}` is not a schedule: {problem}");
                self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(
                    "write minute, hour, day of month, month and day of week: `30 4 * * 1-5`, or `@daily`",
                );
                None
            }
        }
    }

    fn is_active(&self, node: &Node) -> bool {
        crate::normal::is_active(node, self.profiles)
    }
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Five fields as in crontab, or a word for some of them.
fn check_schedule(text: &str) -> Result<(), String> {
    const WORDS: [&str; 7] =
        ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if let [word] = fields.as_slice()
        && word.starts_with('@')
    {
        let known = WORDS.contains(word);
        return if known { Ok(()) } else { Err(format!("there is {}", crate::shape::one_of(&WORDS))) };
    }
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        return Err(format!("it has {} fields, not 5", fields.len()));
    };
    check_field(minute, "minute", 0..=59, &[])?;
    check_field(hour, "hour", 0..=23, &[])?;
    check_field(day, "day of the month", 1..=31, &[])?;
    check_field(month, "month", 1..=12, &MONTHS)?;
    // 0 and 7 are Sunday.
    check_field(weekday, "day of the week", 0..=7, &DAYS)
}

/// `*`, `5`, `1-5`, `*/10`, `0-30/10`, and lists of such; names where there are some.
fn check_field(
    text: &str,
    what: &str,
    range: std::ops::RangeInclusive<u32>,
    names: &[&str],
) -> Result<(), String> {
    let number = |text: &str| -> Result<u32, String> {
        let named = names.iter().position(|name| text.eq_ignore_ascii_case(name));
        let named = named.and_then(|index| u32::try_from(index).ok()).map(|index| index + range.start());
        let number = named.or_else(|| text.parse().ok()).filter(|number| range.contains(number));
        number.ok_or_else(|| format!("the {what} is {} to {}, not `{text}`", range.start(), range.end()))
    };
    for part in text.split(',') {
        let (span, step) = match part.split_once('/') {
            Some((span, step)) => (span, Some(step)),
            None => (part, None),
        };
        if let Some(step) = step
            && !step.parse::<u32>().is_ok_and(|step| step > 0)
        {
            return Err(format!("`{step}` is no step for the {what}"));
        }
        match span.split_once('-') {
            _ if span == "*" => {}
            Some((from, to)) if number(from)? > number(to)? => {
                return Err(format!("the {what} goes from {from} back to {to}"));
            }
            Some(_) => {}
            None => drop(number(span)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_schedule;

    #[test]
    fn schedules_are_those_of_crontab() {
        for text in ["* * * * *", "*/5 0-6 1,15 jan-MAR 1-5", "0 4 * * sun", "59 23 31 12 7", "@daily"] {
            assert_eq!(check_schedule(text), Ok(()), "{text}");
        }
        let problems = [
            ("* * * *", "it has 4 fields, not 5"),
            ("60 * * * *", "the minute is 0 to 59, not `60`"),
            ("* * 0 * *", "the day of the month is 1 to 31, not `0`"),
            ("* * * foo *", "the month is 1 to 12, not `foo`"),
            ("* 5-3 * * *", "the hour goes from 5 back to 3"),
            ("*/0 * * * *", "`0` is no step for the minute"),
            ("* * * * -1", "the day of the week is 0 to 7, not ``"),
            ("", "it has 0 fields, not 5"),
        ];
        for (text, problem) in problems {
            assert_eq!(check_schedule(text), Err(problem.to_owned()), "{text}");
        }
        assert!(check_schedule("@often").unwrap_err().contains("`@hourly`"));
    }
}
