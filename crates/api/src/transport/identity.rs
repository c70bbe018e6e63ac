//! Who one is, and whom one trusts: certificates, keys and what they say.
//!
//! A certificate of the cluster says who its holder is in its subject: the organisational unit is the kind (`node`, `server`, `user`), the
//! common name the identifier or name. Nothing else in it is believed.

use std::{fmt, sync::Arc};

use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wharf_model::{NodeId, ServerId, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why something is no identity or no trust.
#[derive(Debug, thiserror::Error)]
pub enum InvalidIdentity {
    /// There is no certificate, or it cannot be read.
    #[error("no readable certificate")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The certificate was not made by this program for a node, server or user.
    #[error("the certificate does not say who its holder is: {0}")]
    Subject(String),
    /// There is no key, or it cannot be read.
    #[error("no readable private key")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key is that of another certificate.
    #[error("the private key does not belong to the certificate")]
    Mismatch(#[source] rustls::Error),
}

/// A certificate with what stands between it and the authority, and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The certificate first, PEM.
    pub certificate: String,
    /// Its private key, PEM (PKCS #8).
    pub key: String,
}
impl fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer()).finish_non_exhaustive()
    }
}
impl Identity {
    /// Who it is.
    ///
    /// # Errors
    /// If the certificate cannot be read or is of another make.
    pub fn peer(&self) -> Result<Peer, InvalidIdentity> {
        let chain = certificates(&self.certificate)?;
        Peer::from_certificate(&chain[0])
    }

    /// As rustls uses it.
    ///
    /// # Errors
    /// If a part cannot be read or the two do not belong together.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, InvalidIdentity> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| InvalidIdentity::Key(error.into()))?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(InvalidIdentity::Mismatch)?;
        Ok(Arc::new(certified))
    }
}

/// The cluster's authority: whoever holds a certificate of it belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The authority's certificate, PEM.
    pub ca: String,
}
impl Trust {
    /// The SHA-256 of the authority's certificate in hexadecimal: what tokens pin.
    ///
    /// # Errors
    /// If the certificate cannot be read.
    pub fn ca_hash(&self) -> Result<String, InvalidIdentity> {
        Ok(hex::encode(Sha256::digest(self.der()?)))
    }

    pub(super) fn der(&self) -> Result<CertificateDer<'static>, InvalidIdentity> {
        Ok(certificates(&self.ca)?.swap_remove(0))
    }
}

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// A node's agent.
    Node(NodeId),
    /// A server.
    Server(ServerId),
    /// A person or program that uses the API.
    User(String),
    /// Somebody without a certificate.
    Anonymous,
}
impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Server(id) => id.fmt(f),
            Self::User(name) => write!(f, "user {name}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Who is at the other end of a connection, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is.
    pub kind: PeerKind,
    /// The certificate's serial number in hexadecimal; empty without one.
    pub serial: String,
    /// From when on the certificate is good; the epoch without one.
    pub not_before: Timestamp,
    /// Until when it is good; the end of time without one.
    pub expires: Timestamp,
}
impl Peer {
    /// Somebody without a certificate.
    pub fn anonymous() -> Self {
        Self {
            kind: PeerKind::Anonymous,
            serial: String::new(),
            not_before: Timestamp(0),
            expires: Timestamp(u64::MAX),
        }
    }

    /// Whom this certificate names. Says nothing about whether to believe it.
    ///
    /// # Errors
    /// If it cannot be read or was not made for a node, server or user.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, InvalidIdentity> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| InvalidIdentity::Certificate(error.into()))?;
        let subject = certificate.subject();
        let unit = subject.iter_organizational_unit().next().and_then(|unit| unit.as_str().ok());
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let kind = kind(unit.unwrap_or_default(), name.unwrap_or_default())
            .ok_or_else(|| InvalidIdentity::Subject(format!("its subject is `{subject}`")))?;
        let validity = certificate.validity();
        Ok(Self {
            kind,
            serial: hex::encode(strip_sign(certificate.raw_serial())),
            not_before: timestamp(validity.not_before.timestamp()),
            expires: timestamp(validity.not_after.timestamp()),
        })
    }

    /// The node, if it is one.
    pub fn node(&self) -> Option<NodeId> {
        match &self.kind {
            PeerKind::Node(id) => Some(*id),
            PeerKind::Server(_) | PeerKind::User(_) | PeerKind::Anonymous => None,
        }
    }

    /// When a holder that renews in time does so: two thirds through.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.expires.0.saturating_sub(self.not_before.0);
        Timestamp(self.not_before.0.saturating_add(life / 3 * 2))
    }
}

fn kind(unit: &str, name: &str) -> Option<PeerKind> {
    match unit {
        "node" => name.parse().ok().map(PeerKind::Node),
        "server" => name.parse().ok().map(PeerKind::Server),
        "user" if !name.is_empty() => Some(PeerKind::User(name.to_owned())),
        _ => None,
    }
}

/// A serial number is a signed integer in DER: a leading zero only says that it is positive.
fn strip_sign(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        whole => whole,
    }
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

/// The certificates in this PEM, at least one.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, InvalidIdentity> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| InvalidIdentity::Certificate(error.into()))?;
    if chain.is_empty() { Err(InvalidIdentity::Certificate("there is none".into())) } else { Ok(chain) }
}

/// The only cryptography in use, whatever other crates may have installed for the process.
pub(super) fn provider() -> CryptoProvider {
    ring::default_provider()
}
