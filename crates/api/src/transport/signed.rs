//! What a node says to another one without a connection: signed with the key of its certificate, which goes with it.
//!
//! - The signature covers what it is about (`context`) as well, so that nothing that was signed for one purpose means anything for another;
//!   TLS puts words of its own before what it has signed (RFC 8446, 4.4.3).
//! - Nothing of it is fresh by itself: that an old one comes again is for the content to rule out.
//! - Whoever sends rubbish costs no more than [`Verifier::MOST_FAILURES`] checks a second.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::{
    SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use wharf_model::{NodeId, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    identity::{Identity, InvalidIdentity, Peer, Trust, provider},
    tls::roots,
};

/// Why something that was said is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// It is cut off, or no such thing at all.
    #[error("it is malformed")]
    Malformed,
    /// The certificate is not the cluster's, or not good now.
    #[error("its certificate is not to be believed: {0}")]
    Certificate(String),
    /// The certificate is not a node's.
    #[error("it does not come from a node")]
    Sender,
    /// Somebody else signed, or it was changed.
    #[error("its signature is wrong")]
    Signature,
    /// Too much was not believed in the last second to look at more.
    #[error("too much was wrong lately")]
    TooMany,
}

/// Signs for a node.
pub struct Signer {
    certificate: CertificateDer<'static>,
    signer: Box<dyn rustls::sign::Signer>,
}
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// With this certificate and key.
    ///
    /// # Errors
    /// If they cannot be read, or the key is not ECDSA with P-256, as every node's is.
    pub fn new(identity: &Identity) -> Result<Self, InvalidIdentity> {
        let certified = identity.certified()?;
        let signer = certified.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let other = || InvalidIdentity::Key("it is not a key of ECDSA with P-256".into());
        Ok(Self { certificate: certified.cert[0].clone(), signer: signer.ok_or_else(other)? })
    }

    /// What is to be sent.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn sign(&self, context: &str, content: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature = self.signer.sign(&covered(context, content))?;
        let mut signed = Vec::with_capacity(4 + self.certificate.len() + signature.len() + content.len());
        for part in [self.certificate.as_ref(), &signature] {
            // Both are a few hundred bytes.
            signed.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            signed.extend(part);
        }
        signed.extend(content);
        Ok(signed)
    }
}

/// Something that was sent, not believed yet.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'m> {
    certificate: &'m [u8],
    signature: &'m [u8],
    /// What it says.
    pub content: &'m [u8],
}

impl<'m> Signed<'m> {
    /// Takes a message apart.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(message: &'m [u8]) -> Result<Self, Disbelief> {
        let (certificate, rest) = part(message).ok_or(Disbelief::Malformed)?;
        let (signature, content) = part(rest).ok_or(Disbelief::Malformed)?;
        Ok(Self { certificate, signature, content })
    }
}

fn part(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = message.split_first_chunk()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

fn covered(context: &str, content: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], content].concat()
}

/// A certificate that was found to be good.
#[derive(Debug)]
struct Known {
    node: NodeId,
    key: Vec<u8>,
    expires: Timestamp,
}

/// Checks what nodes of a cluster say.
pub struct Verifier {
    chains: Arc<dyn ClientCertVerifier>,
    /// By the hash of the certificate.
    known: BTreeMap<[u8; 32], Known>,
    /// The second of the last failure, and how many there were in it.
    failures: (u64, u32),
}
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Verifier {
    /// So many messages may be wrong in a second before the rest of it is not looked at.
    pub const MOST_FAILURES: u32 = 100;
    /// Certificates that are remembered; each takes about 200 bytes.
    const MOST_KNOWN: usize = 4096;

    /// Believes nodes with certificates of this authority.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn new(trust: &Trust) -> Result<Self, InvalidIdentity> {
        let roots = Arc::new(roots(trust.der()?)?);
        let chains = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(provider())).build();
        let chains = chains.map_err(|error| InvalidIdentity::Certificate(error.into()))?;
        Ok(Self { chains, known: BTreeMap::new(), failures: (0, 0) })
    }

    /// Which node said this, at this time.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(
        &mut self,
        context: &str,
        message: &Signed<'_>,
        now: Timestamp,
    ) -> Result<NodeId, Disbelief> {
        let second = now.0 / 1000;
        if self.failures.0 != second {
            self.failures = (second, 0);
        }
        if self.failures.1 >= Self::MOST_FAILURES {
            return Err(Disbelief::TooMany);
        }
        let verified = self.check(context, message, now);
        if verified.is_err() {
            self.failures.1 += 1;
        }
        verified
    }

    fn check(&mut self, context: &str, message: &Signed<'_>, now: Timestamp) -> Result<NodeId, Disbelief> {
        let hash: [u8; 32] = Sha256::digest(message.certificate).into();
        if self.known.get(&hash).is_none_or(|known| known.expires <= now) {
            let known = self.believe(message.certificate, now)?;
            if self.known.len() >= Self::MOST_KNOWN {
                self.known.clear();
            }
            self.known.insert(hash, known);
        }
        let known = self.known.get(&hash).ok_or(Disbelief::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &known.key)
            .verify(&covered(context, message.content), message.signature)
            .map_err(|_| Disbelief::Signature)?;
        Ok(known.node)
    }

    fn believe(&self, certificate: &[u8], now: Timestamp) -> Result<Known, Disbelief> {
        let der = CertificateDer::from(certificate);
        let moment = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        self.chains
            .verify_client_cert(&der, &[], moment)
            .map_err(|error| Disbelief::Certificate(error.to_string()))?;
        let peer = Peer::from_certificate(&der).map_err(|_| Disbelief::Sender)?;
        let node = peer.node().ok_or(Disbelief::Sender)?;
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Disbelief::Malformed)?;
        let key = parsed.public_key().subject_public_key.data.to_vec();
        Ok(Known { node, key, expires: peer.expires })
    }
}
