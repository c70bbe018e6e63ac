//! Decides which certificates are obtained or renewed now, which are waited for and why, and which nobody needs any more.
//!
//! - A certificate is renewed when a third of its lifetime is left; one of another authority than the one that is set is replaced at once,
//!   and shown until then.
//! - After a failure the next attempt is a minute away, then four, sixteen, ..., at most twelve hours: fewer than five in any hour, which is
//!   what public authorities let a host fail. Where an authority says how long to wait, that holds if it is longer.
//! - What was obtained is kept until it has expired, also when no route needs it: a route that comes back has it at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wharf_model::Timestamp;

use crate::records::{AcmeRecord, CertificateRecord, FailedAttempt, Method};

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(12 * 3600);

/// What is to be done about certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// Hosts for which one is obtained now.
    pub(crate) obtain: Vec<String>,
    /// Hosts whose record nobody needs any more.
    pub(crate) forget: Vec<String>,
    /// When something will have to be done although nothing changes.
    pub(crate) wake_at: Option<Timestamp>,
}

/// When a certificate is to be obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Now.
    Now,
    /// Then.
    At(Timestamp),
    /// Not before somebody sets up an authority.
    Never,
}

pub(crate) fn plan(
    wanted: &BTreeSet<String>,
    known: &BTreeMap<String, CertificateRecord>,
    authority: Option<&AcmeRecord>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    for host in wanted {
        match due(known.get(host), authority, now) {
            Due::Now => plan.obtain.push(host.clone()),
            Due::At(at) => plan.wake_at = Some(plan.wake_at.map_or(at, |other| other.min(at))),
            Due::Never => {}
        }
    }
    for (host, record) in known.iter().filter(|(host, _)| !wanted.contains(*host)) {
        match record.issued.as_ref().map(|issued| issued.not_after) {
            Some(until) if until > now => {
                plan.wake_at = Some(plan.wake_at.map_or(until, |other| other.min(until)));
            }
            _ => plan.forget.push(host.clone()),
        }
    }
    plan
}

/// When the certificate of a host that needs one is to be obtained.
pub(crate) fn due(record: Option<&CertificateRecord>, authority: Option<&AcmeRecord>, now: Timestamp) -> Due {
    let Some(authority) = authority.filter(|authority| authority.terms_agreed) else { return Due::Never };
    let Some(record) = record else { return Due::Now };
    let tried = record.failed.as_ref().map(|failed| failed.at);
    if record.asked.is_some_and(|asked| tried.is_none_or(|tried| asked > tried)) {
        return Due::Now;
    }
    let wish = match &record.issued {
        Some(issued) if issued.directory == authority.directory && record.asked.is_none() => {
            issued.renew_at()
        }
        _ => now,
    };
    // What failed with another authority says nothing about this one.
    let failed = record.failed.as_ref().filter(|failed| failed.directory == authority.directory);
    let at = failed.map_or(wish, |failed| wish.max(failed.again_at));
    if at <= now { Due::Now } else { Due::At(at) }
}

/// How long to wait after so many failures in a row.
pub(crate) fn pause(failures: u32, told_to_wait: Option<Duration>) -> Duration {
    let factor = 4_u32.saturating_pow(failures.saturating_sub(1).min(12));
    let own = FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE);
    told_to_wait.map_or(own, |told| told.max(own))
}

/// How the next attempt is made: they take turns, beginning with the one preferred.
pub(crate) fn method(record: Option<&CertificateRecord>, authority: &AcmeRecord) -> Method {
    let failures = record.and_then(|record| record.failed.as_ref()).map_or(0, |failed| failed.failures);
    let methods = &authority.methods[..];
    let turn = usize::try_from(failures).unwrap_or(0).checked_rem(methods.len()).unwrap_or(0);
    methods.get(turn).copied().unwrap_or(Method::Http01)
}

/// The record after an attempt that failed.
pub(crate) fn failed(
    before: Option<&CertificateRecord>,
    host: &str,
    (directory, method): (&str, Method),
    (why, told_to_wait): (String, Option<Duration>),
    now: Timestamp,
) -> CertificateRecord {
    let mut record = before.cloned().unwrap_or_else(|| CertificateRecord::new(host));
    let before = record.failed.take().filter(|failed| failed.directory == directory);
    let failures = before.map_or(0, |failed| failed.failures).saturating_add(1);
    record.failed = Some(FailedAttempt {
        at: now,
        again_at: now + pause(failures, told_to_wait),
        failures,
        why,
        directory: directory.to_owned(),
        method,
    });
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::records::IssuedCertificate;

    const DAY: u64 = 86_400_000;
    const CA: &str = "https://ca.example/directory";

    fn authority() -> AcmeRecord {
        AcmeRecord { terms_agreed: true, ..AcmeRecord::new(CA) }
    }
    fn issued(not_before: u64, not_after: u64) -> CertificateRecord {
        let issued = IssuedCertificate {
            directory: CA.into(),
            issuer: "Test".into(),
            serial: "1".into(),
            not_before: Timestamp(not_before),
            not_after: Timestamp(not_after),
            at: Timestamp(not_before),
            method: Method::Http01,
        };
        CertificateRecord { issued: Some(issued), ..CertificateRecord::new("a.example") }
    }
    fn due_at(record: &CertificateRecord, now: u64) -> Due {
        due(Some(record), Some(&authority()), Timestamp(now))
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_lifetime_is_left() {
        let record = issued(0, 90 * DAY);
        assert_eq!(due_at(&record, 10 * DAY), Due::At(Timestamp(60 * DAY)));
        assert_eq!(due_at(&record, 60 * DAY), Due::Now);
    }

    #[test]
    fn nothing_is_obtained_before_somebody_agrees_to_the_terms() {
        assert_eq!(due(None, None, Timestamp(0)), Due::Never);
        let disagreed = AcmeRecord { terms_agreed: false, ..authority() };
        assert_eq!(due(None, Some(&disagreed), Timestamp(0)), Due::Never);
        assert_eq!(due(None, Some(&authority()), Timestamp(0)), Due::Now);
    }

    #[test]
    fn another_authority_replaces_certificates_and_forgives_failures() {
        let other = AcmeRecord { directory: "https://other.example/".into(), ..authority() };
        let mut record = issued(0, 90 * DAY);
        assert_eq!(due(Some(&record), Some(&other), Timestamp(DAY)), Due::Now);
        record =
            failed(Some(&record), "a.example", (CA, Method::Http01), ("no".into(), None), Timestamp(DAY));
        assert_eq!(due(Some(&record), Some(&other), Timestamp(DAY)), Due::Now);
        let again = failed(
            Some(&record),
            "a.example",
            (&other.directory, Method::Http01),
            ("no".into(), None),
            Timestamp(DAY),
        );
        assert_eq!(again.failed.as_ref().unwrap().failures, 1);
        assert_eq!(
            due(Some(&again), Some(&other), Timestamp(DAY)),
            Due::At(Timestamp(DAY + 60_000)),
            "and then waits like any other"
        );
    }

    #[test]
    fn a_person_who_asks_need_not_wait_once() {
        let mut record = issued(0, 90 * DAY);
        record.asked = Some(Timestamp(DAY));
        assert_eq!(due_at(&record, DAY), Due::Now);
        record =
            failed(Some(&record), "a.example", (CA, Method::Http01), ("no".into(), None), Timestamp(DAY + 1));
        assert_eq!(due_at(&record, DAY + 2), Due::At(Timestamp(DAY + 1 + 60_000)));
        record.asked = Some(Timestamp(DAY + 3));
        assert_eq!(due_at(&record, DAY + 4), Due::Now);
    }

    #[test]
    fn attempts_take_turns_with_methods_unless_one_is_chosen() {
        let method = |failures: u32, methods: &[Method]| {
            let mut record = None;
            for _ in 0..failures {
                let at = Timestamp(0);
                record = Some(failed(record.as_ref(), "a", (CA, Method::Http01), ("no".into(), None), at));
            }
            super::method(record.as_ref(), &AcmeRecord { methods: methods.to_vec(), ..authority() })
        };
        let both = [Method::Http01, Method::TlsAlpn01];
        assert_eq!([0, 1, 2].map(|n| method(n, &both)), [Method::Http01, Method::TlsAlpn01, Method::Http01]);
        assert_eq!([0, 1].map(|n| method(n, &both[1..])), [Method::TlsAlpn01; 2]);
    }

    #[test]
    fn what_nobody_needs_is_kept_while_it_is_good() {
        let known: BTreeMap<_, _> = [
            ("gone.example".to_owned(), issued(0, 10 * DAY)),
            ("never.example".to_owned(), CertificateRecord::new("never.example")),
        ]
        .into();
        let nobody = BTreeSet::new();
        let early = plan(&nobody, &known, Some(&authority()), Timestamp(9 * DAY));
        assert_eq!(early.forget, ["never.example"]);
        assert_eq!((early.obtain.len(), early.wake_at), (0, Some(Timestamp(10 * DAY))));
        let late = plan(&nobody, &known, Some(&authority()), Timestamp(10 * DAY));
        assert_eq!(late.forget, ["gone.example", "never.example"]);
    }

    proptest! {
        #[test]
        fn a_host_that_always_fails_is_tried_less_than_five_times_in_any_hour(told in 0_u64..300) {
            let (mut record, mut now, mut attempts) = (None, Timestamp(0), Vec::new());
            for _ in 0..20 {
                attempts.push(now);
                let why = ("no".to_owned(), Some(Duration::from_secs(told)));
                let next = failed(record.as_ref(), "a.example", (CA, Method::Http01), why, now);
                let Due::At(at) = due(Some(&next), Some(&authority()), now) else {
                    return Err(TestCaseError::fail("it is tried again at once"));
                };
                prop_assert!(at.since(now) >= Duration::from_secs(told));
                prop_assert!(at.since(now) <= LONGEST_PAUSE);
                (record, now) = (Some(next), at);
            }
            for first in &attempts {
                let within = attempts.iter().filter(|at| *at >= first && at.since(*first) < Duration::from_secs(3600));
                prop_assert!(within.count() < 5);
            }
        }
    }
}
