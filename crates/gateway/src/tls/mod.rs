//! TLS of clients: which certificate is shown to whom, and what is spoken with it.
//!
//! - Certificates come with the table and change with it; connections that exist keep what they agreed on.
//! - TLS 1.2 and 1.3 with the ring provider; HTTP/2 and HTTP/1.1 are offered where requests are understood, nothing is where they are not.
//! - Sessions are resumed by tickets ([`tickets`]). No early data: it could be replayed.
//! - A client that asks as certificate authorities do (`acme-tls/1` alone) is shown the table's challenge for its host and nothing else.

mod certificates;
pub(crate) mod hello;
mod tickets;

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use wharf_model::{AcmeChallenge, ShownCertificate};

use certificates::Certificates;
use tickets::Tickets;

/// What a certificate authority speaks when it asks whether a host is ours (RFC 8737).
pub(crate) const ACME: &[u8] = b"acme-tls/1";
/// A fatal alert: there is nothing here by the name that was asked for.
pub(crate) const UNRECOGNISED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The gateway's end of TLS.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    shown: Arc<Shown>,
    tickets: Arc<Tickets>,
    requests: Arc<ServerConfig>,
    connections: Arc<ServerConfig>,
    challenges: ArcSwap<HashMap<String, Challenge>>,
}

/// The certificates of the newest table.
struct Shown(ArcSwap<Certificates>);

struct Challenge {
    certificate: ShownCertificate,
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self.0.load(), f)
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        self.0.load().choose(name, hello.signature_schemes()).cloned()
    }
}

impl Tls {
    /// Without certificates.
    ///
    /// # Panics
    /// Never: the provider has all that TLS 1.2 and 1.3 need.
    pub(crate) fn new() -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let shown = Arc::new(Shown(ArcSwap::default()));
        let tickets = Arc::new(Tickets::new());
        let mut requests = config(&provider, Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        requests.ticketer = Arc::clone(&tickets) as Arc<dyn rustls::server::ProducesTickets>;
        // Requests and connections are two configurations with one memory of sessions; each session remembers what it speaks.
        let mut connections = requests.clone();
        connections.alpn_protocols.clear();
        requests.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self {
            provider,
            shown,
            tickets,
            requests: Arc::new(requests),
            connections: Arc::new(connections),
            challenges: ArcSwap::default(),
        }
    }

    /// Shows these from now on. `needed` are the hosts that TLS is ended for. Answers what is wrong, in words.
    pub(crate) fn set<'a>(
        &self,
        certificates: &[ShownCertificate],
        challenges: &[AcmeChallenge],
        needed: impl IntoIterator<Item = &'a str>,
    ) -> Vec<String> {
        let before = self.shown.0.load();
        let read = Certificates::read(certificates, needed, &before, &self.provider);
        let mut problems = read.problems().to_vec();
        self.shown.0.store(Arc::new(read));

        let before = self.challenges.load();
        let mut all = HashMap::new();
        for challenge in challenges {
            let AcmeChallenge::TlsAlpn01 { certificate } = challenge else { continue };
            let Some(host) = certificate.hosts.first() else { continue };
            let known = before.get(host).filter(|known| known.certificate == *certificate);
            let config = match known {
                Some(known) => Arc::clone(&known.config),
                None => match certificates::read_challenge(certificate, &self.provider) {
                    Ok(key) => Arc::new(self.answering(key)),
                    Err(why) => {
                        problems.push(format!("the challenge for {host} cannot be answered: {why}"));
                        continue;
                    }
                },
            };
            all.insert(host.clone(), Challenge { certificate: certificate.clone(), config });
        }
        self.challenges.store(Arc::new(all));
        problems
    }

    /// Has tickets sealed with the first of these keys and opened with any of them; with keys of its own if there are none.
    pub(crate) fn set_ticket_keys(&self, keys: &[wharf_model::TicketKey]) {
        self.tickets.set(keys);
    }

    fn answering(&self, key: CertifiedKey) -> ServerConfig {
        let mut config = config(&self.provider, Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ACME.to_vec()];
        config.send_tls13_tickets = 0;
        config
    }

    /// For requests.
    pub(crate) const fn requests(&self) -> &Arc<ServerConfig> {
        &self.requests
    }

    /// For connections whose bytes are not looked at.
    pub(crate) const fn connections(&self) -> &Arc<ServerConfig> {
        &self.connections
    }

    /// For a certificate authority that asks for a host.
    pub(crate) fn challenge(&self, host: &str) -> Option<Arc<ServerConfig>> {
        self.challenges.load().get(host).map(|challenge| Arc::clone(&challenge.config))
    }

    /// Whether there is a certificate to show to a client that asks for this host.
    pub(crate) fn has(&self, host: Option<&str>) -> bool {
        self.shown.0.load().has(host)
    }
}

fn config(provider: &Arc<CryptoProvider>, resolver: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has what TLS 1.2 and 1.3 need")
        .with_no_client_auth()
        .with_cert_resolver(resolver)
}
