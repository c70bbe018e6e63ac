//! Whether the secrets that routes name hold what routes need: certificates with their keys, for the routes' hosts, and lines of users.
//!
//! It is looked at with each plan, as far as contents are known: what a gateway could not show or let in is refused before anything is
//! changed. Contents are never part of what is said.

use std::time::Duration;

use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use wharf_api::v1;
use wharf_engine::{RouteSecret, SecretUse, route_secrets, split_pem, user_lines};
use wharf_model::{AppSpec, RouteTls, Timestamp};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time};

/// A certificate that ends within this time is warned about.
const SOON: Duration = Duration::from_secs(14 * 86_400);
/// What the hashes of passwords begin with that gateways know.
const HASHES: [&str; 6] = ["$2y$", "$2b$", "$2a$", "$2x$", "$apr1$", "{SHA}"];

/// What was found in the secrets that routes name.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What gateways could do nothing with.
    pub(super) refusals: Vec<v1::Refusal>,
    /// What works and is unwise.
    pub(super) warnings: Vec<String>,
}

/// What is wrong with a secret, and what to do.
struct Wrong {
    what: String,
    hint: String,
}
fn wrong<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { what: what.into(), hint: hint.into() })
}

impl Findings {
    /// Looks at every secret that a route of `spec` names and of which `content` knows what is in it.
    pub(super) fn of(
        spec: &AppSpec,
        mut content: impl FnMut(&str) -> Option<Vec<u8>>,
        now: Timestamp,
    ) -> Self {
        let mut findings = Self::default();
        for named in route_secrets(spec) {
            let digest = spec.secrets.get(named.secret).and_then(|file| file.digest.as_deref());
            let Some(content) = digest.and_then(&mut content) else { continue };
            let found = match named.wanted {
                SecretUse::Users => users(&content).map(|()| None),
                SecretUse::Certificate => certificate(&content, named.hosts, now),
            };
            let sentence = |what: &str| {
                let RouteSecret { route, secret, .. } = &named;
                format!("{route}: the secret {secret} {what}")
            };
            match found {
                Ok(warning) => findings.warnings.extend(warning.as_deref().map(sentence)),
                Err(Wrong { what, hint }) => {
                    findings.refusals.push(v1::Refusal { message: sentence(&what), hint: Some(hint) });
                }
            }
        }
        findings
    }
    /// Says that nobody obtains the certificates that routes wait for, unless somebody does.
    pub(super) fn look_for_authority(&mut self, spec: &AppSpec, there_is_one: bool) {
        let routes = spec.services.iter().flat_map(|(name, service)| {
            service.policy.routes.iter().enumerate().map(move |(number, route)| (name, number, route))
        });
        let mut waiting = routes.filter(|(_, _, route)| route.tls == RouteTls::Auto);
        if let (false, Some((service, number, route))) = (there_is_one, waiting.next()) {
            let others = match waiting.count() {
                0 => String::new(),
                1 => " and another route".to_owned(),
                more => format!(" and {more} other routes"),
            };
            self.warnings.push(format!(
                "services.{service}.x-wharf.routes[{number}]: nobody obtains the certificate of {}{others}: \
                 `tls: auto` needs an authority, and somebody who agrees to its terms: `wharf certificate acme --agree-tos --email YOU@EXAMPLE.COM`",
                route.place()
            ));
        }
    }
    /// Makes warnings of what would be refused.
    pub(super) fn allow(&mut self) {
        let said = self.refusals.drain(..).map(|v1::Refusal { message, hint }| match hint {
            Some(hint) => format!("{message}; hint: {hint}"),
            None => message,
        });
        self.warnings.extend(said);
    }
}

/// Whether somebody can give a password.
fn users(content: &[u8]) -> Result<(), Wrong> {
    const MAKE: &str = "`htpasswd -nB NAME` prints a line";
    let Ok(text) = std::str::from_utf8(content) else {
        return wrong("is no text, and should have lines of `user:hash`", MAKE);
    };
    let mut any = false;
    for line in user_lines(text) {
        any = true;
        match line.split_once(':') {
            Some((user, hash)) if !user.is_empty() && HASHES.iter().any(|kind| hash.starts_with(kind)) => {}
            // Not even a user's name is said of a line that may be a password.
            Some(_) => {
                return wrong(
                    "has a line whose password is no hash that gateways know",
                    format!("{MAKE} with one they know: bcrypt (`-B`), MD5 (`-m`) or SHA (`-s`)"),
                );
            }
            None => return wrong("has a line that is not `user:hash`", MAKE),
        }
    }
    if any { Ok(()) } else { wrong("has no line of `user:hash`, so that nobody could pass", MAKE) }
}

/// Whether a certificate can be shown for these hosts; if so, what is to be said of it all the same.
fn certificate(content: &[u8], hosts: &[String], now: Timestamp) -> Result<Option<String>, Wrong> {
    const BOTH: &str = "put both into one file: the server's certificate, then those of its issuers, and the key, all in PEM";
    let text = String::from_utf8_lossy(content);
    let pem = split_pem(&text);
    if pem.chain.is_empty() {
        return wrong("has no certificate (`-----BEGIN CERTIFICATE-----`)", BOTH);
    }
    if pem.key.is_empty() {
        return wrong("has no private key (`-----BEGIN PRIVATE KEY-----`)", BOTH);
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.chain.as_bytes()).collect();
    let Ok(chain) = chain else { return wrong("has a certificate that cannot be read", BOTH) };
    let Ok(key) = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()) else {
        return wrong(
            "has a private key that cannot be read",
            "give a key without a passphrase: `openssl pkey -in KEY` removes it",
        );
    };
    let Some(Ok((_, own))) = chain.first().map(|der| X509Certificate::from_der(der)) else {
        return wrong("has a certificate that cannot be read", BOTH);
    };
    let (from, until) = (own.validity().not_before, own.validity().not_after);
    let (names, window) = (names(&own), (seconds(from), seconds(until)));
    if let Err(error) = CertifiedKey::from_der(chain.clone(), key, &default_provider()) {
        return match error {
            rustls::Error::InconsistentKeys(_) => wrong(
                "has a key that is not of its first certificate",
                "the server's own certificate comes first, and those of its issuers after it",
            ),
            _ => wrong(format!("has a certificate or key that cannot be used: {error}"), BOTH),
        };
    }
    if let Some(host) = hosts.iter().find(|host| !names.iter().any(|name| covers(name, host))) {
        let listed = if names.is_empty() { "no host at all".to_owned() } else { names.join(", ") };
        return wrong(
            format!("has a certificate for {listed}, and not for {host}"),
            "have one issued for every host of the route, or give the hosts routes of their own",
        );
    }
    let (from_seconds, until_seconds) = window;
    let (now, soon) = (now.0 / 1000, (now + SOON).0 / 1000);
    if until_seconds <= now {
        return wrong(format!("has a certificate that ended on {until}"), "have it renewed");
    }
    if from_seconds > now {
        return wrong(
            format!("has a certificate that begins only on {from}"),
            "wait until then, or check the clock of the servers",
        );
    }
    Ok((until_seconds <= soon).then(|| format!("has a certificate that ends on {until}: renew it before")))
}

fn seconds(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or_default()
}

/// The host names a certificate is for. Its subject's common name counts for no client of today.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// Whether a name of a certificate is for a host, or for the hosts under it where that begins with `*.`.
fn covers(name: &str, host: &str) -> bool {
    let under = |name: &str, host: &str| {
        name.strip_prefix("*.").zip(host.split_once('.')).is_some_and(|(name, (_, host))| name == host)
    };
    name == host || (!host.starts_with("*.") && under(name, host))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// 2026-06-01.
    const NOW: Timestamp = Timestamp(1_780_272_000_000);

    fn pem(hosts: &[&str], until: (i32, u8, u8)) -> (String, String) {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }
    fn said(content: &str, hosts: &[&str]) -> String {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        match certificate(content.as_bytes(), &hosts, NOW) {
            Ok(warning) => warning.unwrap_or_default(),
            Err(Wrong { what, hint }) => format!("{what}; hint: {hint}"),
        }
    }

    #[test]
    fn a_certificate_is_for_the_hosts_of_its_route_or_refused_with_what_it_is_for() {
        let (chain, key) = pem(&["shop.example.com", "*.example.org"], (2027, 1, 1));
        let both = format!("{key}{chain}");
        assert_eq!(said(&both, &["shop.example.com", "a.example.org", "*.example.org"]), "");
        assert_eq!(said(&both, &[]), "", "a route for any host shows what there is");
        for host in ["www.example.com", "a.b.example.org", "example.org", "*.example.com"] {
            let text = said(&both, &[host]);
            assert!(
                text.contains(&format!("for shop.example.com, *.example.org, and not for {host}")),
                "{text}"
            );
        }
    }

    #[test]
    fn what_no_gateway_could_show_is_refused_with_the_reason() {
        let (chain, key) = pem(&["a.example"], (2027, 1, 1));
        let (other_chain, other_key) = pem(&["a.example"], (2027, 1, 1));
        let said = |content: &str| said(content, &["a.example"]);
        assert!(said("hello").starts_with("has no certificate"));
        assert!(said(&chain).starts_with("has no private key"));
        assert!(said(&format!("{chain}{other_key}")).starts_with("has a key that is not of its first"));
        assert!(
            said(&format!("{other_chain}{chain}{key}")).starts_with("has a key that is not of its first")
        );
        let broken = chain.replacen("MII", "AAA", 1);
        assert!(
            said(&format!("{broken}{key}")).contains("cannot be read"),
            "{}",
            said(&format!("{broken}{key}"))
        );
        let (past, past_key) = pem(&["a.example"], (2026, 5, 1));
        assert!(said(&format!("{past}{past_key}")).starts_with("has a certificate that ended on May"));
        let (soon, soon_key) = pem(&["a.example"], (2026, 6, 10));
        assert!(said(&format!("{soon}{soon_key}")).ends_with("renew it before"));
        for text in [said(&format!("{chain}{other_key}")), said(&chain)] {
            assert!(!text.contains(key.lines().nth(1).unwrap()), "no key is shown: {text}");
        }
    }

    #[test]
    fn passwords_are_hashes_that_gateways_know() {
        let said = |text: &str| users(text.as_bytes()).err().map_or_else(String::new, |wrong| wrong.what);
        assert_eq!(said("# staff\nada:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n"), "");
        assert_eq!(said("ada:$apr1$f5$x\ngrace:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="), "");
        assert!(said("").contains("nobody could pass"));
        let plain = said("ada:hunter2");
        assert!(plain.contains("no hash that gateways know") && !plain.contains("hunter2"), "{plain}");
        assert!(said("hunter2").contains("not `user:hash`"));
    }
}
