//! TLS between the parts of a cluster: version 1.3 only, certificates of the cluster's authority only.
//!
//! - A server asks for a certificate and lets a peer without one in as anonymous; one that is presented must be of the cluster's
//!   authority, in force and not revoked, which is asked in every handshake. Sessions are therefore never resumed.
//! - A client believes a server for what it is, not for where it is: its certificate must be a server's, of the cluster's authority.
//!   Host names are not compared, since no other holder in the cluster gets a server's certificate, and addresses change.
//! - A joining machine knows of the authority only the hash in its token, and believes no other ([`Anchor::Pin`]).

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::TLS13,
};
use sha2::{Digest, Sha256};

use super::{
    ALPN_H2, ALPN_HTTP1, ALPN_NODE, Identity, InvalidIdentity, Peer, PeerKind, Trust, identity::provider,
};

/// Whether a peer with a good certificate is refused all the same. Asked in every handshake; must answer at once.
pub type IsRevoked = Arc<dyn Fn(&Peer) -> bool + Send + Sync>;

/// The machine's own clock.
pub fn system_time() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

/// What a client speaks over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The API: the client asks.
    Api,
    /// A node's session: the client answers.
    Node,
}

/// Whom a client believes to be the cluster's authority.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// The holder of this certificate.
    Authority(Trust),
    /// Whoever presents a certificate with this SHA-256.
    Pin([u8; 32]),
}

/// What a server needs to accept connections: `identity` is asked for the certificate in every handshake, so that it can be renewed.
///
/// # Errors
/// If the authority's certificate cannot be read.
pub fn server_config(
    trust: &Trust,
    identity: Arc<dyn ResolvesServerCert>,
    is_revoked: IsRevoked,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, InvalidIdentity> {
    let provider = Arc::new(provider());
    let roots = Arc::new(roots(trust.der()?)?);
    let chains = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| InvalidIdentity::Certificate(error.into()))?;
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
        .with_client_cert_verifier(Arc::new(Members { chains, is_revoked }))
        .with_cert_resolver(identity);
    config.alpn_protocols = [ALPN_NODE, ALPN_H2, ALPN_HTTP1].map(<[u8]>::to_vec).to_vec();
    // A resumed session would skip the question whether the peer was revoked meanwhile.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a client needs to connect; without an identity it stays anonymous.
///
/// # Errors
/// If a certificate or key cannot be read.
pub fn client_config(
    anchor: &Anchor,
    identity: Option<&Identity>,
    protocol: Protocol,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, InvalidIdentity> {
    let provider = Arc::new(provider());
    let roots = match anchor {
        Anchor::Authority(trust) => Roots::Known(Arc::new(roots(trust.der()?)?)),
        Anchor::Pin(hash) => Roots::Pinned(*hash),
    };
    let config = ClientConfig::builder_with_details(Arc::clone(&provider), time)
        .with_protocol_versions(&[&TLS13])
        .expect("ring speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers { roots, provider }));
    let mut config = match identity {
        Some(identity) => {
            let certified = SingleCertAndKey::from(identity.certified()?);
            config.with_client_cert_resolver(Arc::new(certified))
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = match protocol {
        Protocol::Api => vec![ALPN_H2.to_vec()],
        Protocol::Node => vec![ALPN_NODE.to_vec()],
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Who is at the other end of an accepted connection.
///
/// # Errors
/// If its certificate names nobody; the handshake would not have succeeded then.
pub fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<Peer, InvalidIdentity> {
    certificates.and_then(|chain| chain.first()).map_or_else(|| Ok(Peer::anonymous()), Peer::from_certificate)
}

pub(super) fn roots(authority: CertificateDer<'_>) -> Result<RootCertStore, InvalidIdentity> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.into_owned()).map_err(|error| InvalidIdentity::Certificate(error.into()))?;
    Ok(roots)
}

/// Lets members of the cluster in, unless they were revoked.
struct Members {
    chains: Arc<dyn ClientCertVerifier>,
    is_revoked: IsRevoked,
}
impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").finish_non_exhaustive()
    }
}
impl ClientCertVerifier for Members {
    fn offer_client_auth(&self) -> bool {
        true
    }
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Without hints a client sends the certificate it has, and hears what is wrong with it.
        &[]
    }
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chains.verify_client_cert(certificate, intermediates, now)?;
        let peer = Peer::from_certificate(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
        if (self.is_revoked)(&peer) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(verified)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[derive(Debug)]
enum Roots {
    Known(Arc<RootCertStore>),
    Pinned([u8; 32]),
}

/// Believes servers of the cluster.
#[derive(Debug)]
struct Servers {
    roots: Roots,
    provider: Arc<rustls::crypto::CryptoProvider>,
}
impl Servers {
    fn roots_for(&self, presented: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let foreign = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        match &self.roots {
            Roots::Known(roots) => Ok(Arc::clone(roots)),
            Roots::Pinned(hash) => {
                let pinned = presented.iter().find(|der| Sha256::digest(der)[..] == hash[..]);
                let authority = pinned.ok_or_else(foreign)?;
                roots(authority.clone()).map(Arc::new).map_err(|_| foreign())
            }
        }
    }
}
impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let roots = self.roots_for(intermediates)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        match Peer::from_certificate(certificate).map(|peer| peer.kind) {
            Ok(PeerKind::Server(_)) => Ok(ServerCertVerified::assertion()),
            Ok(PeerKind::Node(_) | PeerKind::User(_) | PeerKind::Anonymous) | Err(_) => {
                Err(Error::InvalidCertificate(CertificateError::InvalidPurpose))
            }
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
