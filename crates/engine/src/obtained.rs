//! What the cluster has obtained for TLS at its gateways: certificates, answers for the authorities that issue them, and keys of tickets.
//!
//! - A host needs a certificate from the moment a release that has it in a route with `tls: auto` is accepted, before any task of that
//!   release is ready, so that it is there when requests come.
//! - Gateways are told of certificates that a route needs and of no others.

use std::collections::{BTreeMap, BTreeSet};

use wharf_model::{
    AcmeChallenge, AppKey, ReleaseStrategy, RouteTable, RouteTls, ServiceRevision, ShownCertificate,
    TicketKey,
};

use crate::{World, routing};

/// What gateways need for TLS and no file says. Kept up to date by the server.
#[derive(Debug, Clone, Default)]
pub struct Obtained {
    /// Certificates, by host.
    pub certificates: BTreeMap<String, ShownCertificate>,
    /// What authorities are answered that ask for a host.
    pub challenges: BTreeMap<String, AcmeChallenge>,
    /// What seals the sessions of TLS clients, the newest first.
    pub ticket_keys: Vec<TicketKey>,
}

impl Obtained {
    /// The certificates that routes need.
    pub(crate) fn needed(&self, world: &World) -> Vec<ShownCertificate> {
        if self.certificates.is_empty() {
            return Vec::new();
        }
        let hosts = hosts_to_certify(world);
        hosts.keys().filter_map(|host| self.certificates.get(host)).cloned().collect()
    }

    /// Adds what a gateway needs besides routes and certificates.
    pub(crate) fn complete(&self, table: &mut RouteTable) {
        table.challenges.extend(self.challenges.values().cloned());
        let ends_tls = |tls: &RouteTls| match tls {
            RouteTls::Auto | RouteTls::Certificate(_) => true,
            RouteTls::Off | RouteTls::Passthrough => false,
        };
        if table.services.iter().any(|route| ends_tls(&route.spec.tls)) {
            table.ticket_keys.clone_from(&self.ticket_keys);
        }
    }
}

/// The hosts for which certificates are to be obtained, and the apps whose routes need them.
pub fn hosts_to_certify(world: &World) -> BTreeMap<String, BTreeSet<AppKey>> {
    let mut hosts = BTreeMap::<String, BTreeSet<AppKey>>::new();
    for record in world.services() {
        let app_stays = world.app(&record.key.app).is_some_and(|app| !app.removed);
        if !app_stays || record.removed {
            continue;
        }
        for generation in BTreeSet::from([record.generation, record.wanted().0]) {
            let Some(revision) = world.revision_of(&record.key, generation) else { continue };
            let routes = revision.spec.policy.routes.iter().filter(|route| route.tls == RouteTls::Auto);
            let named: Vec<_> = routes.flat_map(|route| &route.hosts).cloned().collect();
            let preview = preview(world, revision).filter(|_| !named.is_empty());
            for host in named.into_iter().chain(preview) {
                hosts.entry(host).or_default().insert(record.key.app.clone());
            }
        }
    }
    hosts
}

/// The certificates that files give for routes, as gateways are told of them.
pub fn given_certificates(world: &World) -> Vec<ShownCertificate> {
    routing::certificates(world, &routing::service_routes(world))
}

/// The host at which a release is tried before it serves.
fn preview(world: &World, revision: &ServiceRevision) -> Option<String> {
    let of_app = || world.release(&revision.key.app, revision.release)?.spec.policy.release.as_ref();
    match revision.spec.policy.release.as_ref().or_else(of_app)? {
        ReleaseStrategy::BlueGreen { preview, .. } => preview.clone(),
        ReleaseStrategy::Rolling | ReleaseStrategy::Canary { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::*;

    use super::*;
    use crate::{Assigner, fixtures::*};

    fn certified(name: &str, host: &str, tls: RouteTls) -> ServiceSpec {
        let mut web = service(name);
        let text = format!(r#"{{"port": 80, "hosts": ["{host}"]}}"#);
        let mut route: RouteSpec = serde_json::from_str(&text).unwrap();
        route.tls = tls;
        web.policy.routes = vec![route];
        web
    }
    fn shown(host: &str) -> ShownCertificate {
        ShownCertificate { hosts: vec![host.into()], chain: "c".into(), key: "k".into() }
    }

    #[test]
    fn gateways_are_told_of_the_certificates_that_routes_need_and_of_challenges() {
        let mut cluster = Cluster::of(2);
        cluster.up(&app(&[
            ("web", certified("web", "a.example", RouteTls::Auto)),
            ("plain", certified("plain", "b.example", RouteTls::Off)),
        ]));
        cluster.settle();
        let needed: Vec<_> = hosts_to_certify(&cluster.world).into_keys().collect();
        assert_eq!(needed, ["a.example"]);
        let obtained = &mut cluster.world.obtained;
        obtained.certificates =
            ["a.example", "gone.example"].map(|host| (host.to_owned(), shown(host))).into();
        let challenge = AcmeChallenge::TlsAlpn01 { certificate: shown("c.example") };
        obtained.challenges.insert("c.example".into(), challenge.clone());
        obtained.ticket_keys = vec![TicketKey([1; 32])];
        let table = |n| Assigner::new(&cluster.world).for_node(node_id(n)).routes;
        let entry = table(1);
        assert_eq!(entry.certificates, [shown("a.example")]);
        assert_eq!(entry.challenges, [challenge]);
        assert_eq!(entry.ticket_keys.len(), 1);
        let other = table(2);
        assert!(
            other.certificates.is_empty() && other.challenges.is_empty() && other.ticket_keys.is_empty(),
            "it is no gateway"
        );
    }
}
