//! The secrets that routes name: who may pass with which password, and which certificates are shown.
//!
//! They come from the app's current release: a newer content counts as soon as it is released, and goes back with the release. What they
//! hold is handed to gateways only.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use wharf_model::{
    AppKey, AppSpec, FileSpec, RouteSpec, RouteTls, ServiceKey, ServiceName, ServiceRoute, ShownCertificate,
    Users,
};

use crate::World;

/// What a route wants of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretUse {
    /// Lines of `user:hash`.
    Users,
    /// A certificate chain and its key in PEM.
    Certificate,
}

/// A secret that routes of an app name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSecret<'a> {
    /// Its name in the app.
    pub secret: &'a str,
    /// What for.
    pub wanted: SecretUse,
    /// The route: `services.web.x-wharf.routes[0]`.
    pub route: String,
    /// The hosts for which a certificate is shown: those of the route.
    pub hosts: &'a [String],
}

/// Every secret that a route of an app names, route by route.
pub fn route_secrets(app: &AppSpec) -> Vec<RouteSecret<'_>> {
    let routes = app.services.iter().flat_map(|(name, service)| {
        service.policy.routes.iter().enumerate().map(move |(number, route)| (name, number, route))
    });
    let secrets = routes.flat_map(|(name, number, route)| {
        let place = place(name, number);
        uses(route).map(move |(secret, wanted)| RouteSecret {
            secret,
            wanted,
            route: place.clone(),
            hosts: &route.hosts,
        })
    });
    secrets.collect()
}

/// Where a route stands in a file.
pub(super) fn place(service: &ServiceName, number: usize) -> String {
    format!("services.{service}.x-wharf.routes[{number}]")
}

pub(super) fn uses(route: &RouteSpec) -> impl Iterator<Item = (&str, SecretUse)> {
    let users = route.basic_auth.iter().map(|auth| (auth.secret.as_str(), SecretUse::Users));
    users.chain(certificate_of(route).map(|secret| (secret, SecretUse::Certificate)))
}
fn certificate_of(route: &RouteSpec) -> Option<&str> {
    match &route.tls {
        RouteTls::Certificate(secret) => Some(secret),
        RouteTls::Off | RouteTls::Auto | RouteTls::Passthrough => None,
    }
}

/// The lines of `user:hash` in a text; empty ones and those that begin with `#` are none.
pub fn user_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A certificate chain and its key in PEM, each as it was written.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Pem {
    /// The certificates, in their order.
    pub chain: String,
    /// The private key; the first, if there are more.
    pub key: String,
}
impl std::fmt::Debug for Pem {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// The certificates and the key in a text that has both, in any order, whatever else is in it.
pub fn split_pem(text: &str) -> Pem {
    let mut pem = Pem::default();
    let mut block: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim_end) {
        let begins = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = begins {
            block = Some((label, String::new()));
        }
        let Some((label, body)) = &mut block else { continue };
        body.push_str(line);
        body.push('\n');
        let ends = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----"));
        if ends == Some(*label) {
            if *label == "CERTIFICATE" {
                pem.chain.push_str(body);
            } else if label.ends_with("PRIVATE KEY") && pem.key.is_empty() {
                pem.key = std::mem::take(body);
            }
            block = None;
        }
    }
    pem
}

/// The text of a secret of an app's current release, or of the release that a revision came with if the current one has none of the name.
fn text(world: &World, service: &ServiceKey, secret: &str) -> Option<String> {
    let app = world.app(&service.app)?;
    let in_release = |number| world.release(&service.app, number)?.spec.secrets.get(secret);
    let of_revisions = || {
        let mut revisions: Vec<_> = world.revisions_of(service).collect();
        revisions.reverse();
        revisions.into_iter().find_map(|revision| in_release(revision.release))
    };
    let file: &FileSpec = in_release(app.release).or_else(of_revisions)?;
    let stored = || file.digest.as_deref().and_then(|digest| world.file(digest)).map(|content| &**content);
    let content = BASE64.decode(file.content.as_deref().or_else(stored)?).ok()?;
    String::from_utf8(content).ok()
}

/// Who may pass a route with which password; nobody if its secret is not there.
pub(crate) fn users(world: &World, route: &ServiceRoute) -> Users {
    let secret = route.spec.basic_auth.as_ref().map(|auth| &auth.secret);
    let text = secret.and_then(|secret| text(world, &route.id.service, secret));
    Users(text.iter().flat_map(|text| user_lines(text)).map(str::to_owned).collect())
}

/// The certificates that routes name. One that is not whole is left out.
pub(crate) fn certificates(world: &World, routes: &[ServiceRoute]) -> Vec<ShownCertificate> {
    let mut named = BTreeMap::<(&AppKey, &str), (&ServiceKey, BTreeSet<&String>, bool)>::new();
    for route in routes {
        let Some(secret) = certificate_of(&route.spec) else { continue };
        let service = &route.id.service;
        let (_, hosts, any) =
            named.entry((&service.app, secret)).or_insert((service, BTreeSet::new(), false));
        hosts.extend(&route.spec.hosts);
        *any |= route.spec.hosts.is_empty();
    }
    let mut shown = Vec::new();
    for ((_, secret), (service, hosts, any)) in named {
        let Some(Pem { chain, key }) = text(world, service, secret).map(|text| split_pem(&text)) else {
            continue;
        };
        if chain.is_empty() || key.is_empty() {
            continue;
        }
        if any && !hosts.is_empty() {
            shown.push(ShownCertificate { hosts: Vec::new(), chain: chain.clone(), key: key.clone() });
        }
        shown.push(ShownCertificate { hosts: hosts.into_iter().cloned().collect(), chain, key });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_key_are_found_in_any_order_and_nothing_else_is() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nS\n-----END EC PRIVATE KEY-----\n";
        let parameters = "-----BEGIN EC PARAMETERS-----\nP\n-----END EC PARAMETERS-----\n";
        let leaf = "-----BEGIN CERTIFICATE-----\nL\n-----END CERTIFICATE-----\n";
        let issuer = "-----BEGIN CERTIFICATE-----\nI\n-----END CERTIFICATE-----\n";
        let pem = Pem { chain: format!("{leaf}{issuer}"), key: key.to_owned() };
        assert_eq!(split_pem(&format!("{parameters}{key}subject=a\n{leaf}\n{issuer}")), pem);
        assert_eq!(split_pem(&format!("{leaf}{issuer}{key}").replace('\n', "\r\n")), pem);
        assert_eq!(split_pem("-----BEGIN CERTIFICATE-----\nL\n"), Pem::default(), "it is cut off");
        assert!(!format!("{pem:?}").contains("\\nS"), "a key is never shown");
    }

    #[test]
    fn comments_and_empty_lines_are_no_users() {
        let lines: Vec<_> = user_lines("# staff\n\nada:$2y$05$x\r\n  grace:{SHA}y\n").collect();
        assert_eq!(lines, ["ada:$2y$05$x", "grace:{SHA}y"]);
    }
}
