//! The cluster's certificate authority: says who is a node, a server or a user of it.
//!
//! - A private key never leaves the machine it was made on: what comes here is a signing request, of which only the key is believed.
//! - What a certificate says is decided here ([`Subject`]); only servers get one that clients believe to be a server's.
//! - Every certificate begins two hours before it was made, so that clocks may differ by as much: also one that is set back an hour, by
//!   whoever mistook the time zone, leaves nobody out.
//! - Keys of the elliptic curve P-256; serial numbers are 128 random bits.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber, date_time_ymd,
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use wharf_api::transport::{Identity, InvalidIdentity, Peer, Trust};
use wharf_model::{NodeId, ServerId, Timestamp};
use wharf_process::{Clock, errors::chain};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far apart the clocks of two machines may be; a tenth of a lifetime shorter than ten times that.
const SKEW: Duration = Duration::from_secs(2 * 3600);
/// How long to wait before a failed renewal is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(60);
const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

/// How long certificates are good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// The authority's own.
    pub authority: Duration,
    /// A server's; renewed in its process.
    pub server: Duration,
    /// A node's; renewed by its agent after two thirds.
    pub node: Duration,
    /// A user's.
    pub user: Duration,
}
impl Default for Lifetimes {
    fn default() -> Self {
        Self { authority: DAY * 3652, server: DAY * 90, node: DAY * 90, user: DAY * 365 }
    }
}

/// Why the authority cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The request is none, or is not signed with the key it is for.
    #[error("the certificate signing request cannot be used")]
    Request(#[source] rcgen::Error),
    /// A server's name is no DNS name.
    #[error("`{name}` is no host name or address")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate or key could not be made.
    #[error("a certificate or key cannot be made")]
    Make(#[source] rcgen::Error),
    /// The authority's certificate or key is damaged.
    #[error("the certificate authority in {place} cannot be used")]
    Damaged {
        /// Where it was read.
        place: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A node's agent.
    Node(NodeId),
    /// A server that is called or addressed like this; `localhost` and its addresses are always added.
    Server {
        /// The server.
        id: ServerId,
        /// Host names and addresses.
        names: Vec<String>,
    },
    /// A person or program that uses the API.
    User(String),
}
impl Subject {
    fn unit_and_name(&self) -> (&'static str, String) {
        match self {
            Self::Node(id) => ("node", id.to_string()),
            Self::Server { id, .. } => ("server", id.to_string()),
            Self::User(name) => ("user", name.clone()),
        }
    }
    fn purposes(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Node(_) | Self::User(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            // Servers talk to each other as well.
            Self::Server { .. } => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        }
    }
    fn names(&self) -> Result<Vec<SanType>, PkiError> {
        match self {
            Self::Node(_) | Self::User(_) => Ok(Vec::new()),
            Self::Server { names, .. } => {
                let always = ["localhost", "127.0.0.1", "::1"];
                let mut all: Vec<&str> = names.iter().map(String::as_str).chain(always).collect();
                all.sort_unstable();
                all.dedup();
                all.into_iter().map(alternative_name).collect()
            }
        }
    }
}

fn alternative_name(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let dns = name.try_into().map_err(|source| PkiError::Name { name: name.to_owned(), source })?;
    Ok(SanType::DnsName(dns))
}

/// A signing request whose signature is good: whoever sent it has the key.
pub struct SigningRequest(CertificateSigningRequestParams);
impl SigningRequest {
    /// Reads one and checks its signature.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(pem: &str) -> Result<Self, PkiError> {
        CertificateSigningRequestParams::from_pem(pem).map(Self).map_err(PkiError::Request)
    }
}

/// A new key with the request to certify it.
pub struct NewKey {
    pair: KeyPair,
}
impl NewKey {
    /// A fresh key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|pair| Self { pair }).map_err(PkiError::Make)
    }
    /// The private key, PEM.
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// It, and the authority's after it, PEM.
    pub certificate: String,
    /// What it says.
    pub peer: Peer,
}

/// The authority.
pub struct Authority {
    trust: Trust,
    hash: [u8; 32],
    expires: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}
impl fmt::Debug for Authority {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("hash", &hex::encode(self.hash)).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority for a cluster of this name.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn create(cluster: &str, now: Timestamp, lifetime: Duration) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
        let mut params = params("authority", &format!("Wharf cluster {cluster}"), now, now + lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(PkiError::Make)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem(), "memory")
    }

    /// The authority with this certificate and key; `place` is where they come from, for people.
    ///
    /// # Errors
    /// If they cannot be read or do not belong together.
    pub fn from_pem(certificate: &str, key: &str, place: &str) -> Result<Self, PkiError> {
        let damaged = |source: Box<dyn std::error::Error + Send + Sync>| PkiError::Damaged {
            place: place.to_owned(),
            source,
        };
        let trust = Trust { ca: certificate.to_owned() };
        let hash = hash_of(&trust).map_err(|error| damaged(error.into()))?;
        let (expires, public) = validity(&trust).map_err(|error| damaged(error.into()))?;
        let key = KeyPair::from_pem(key).map_err(|error| damaged(error.into()))?;
        if key.subject_public_key_info() != public {
            return Err(damaged("the key does not belong to the certificate".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(|error| damaged(error.into()))?;
        Ok(Self { trust, hash, expires, issuer })
    }

    /// Reads the authority from `ca.pem` and `ca.key` in a folder.
    ///
    /// # Errors
    /// If a file cannot be read or is damaged.
    pub fn read(folder: &Path) -> Result<Self, PkiError> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| PkiError::File { doing: "read", path, source })
        };
        Self::from_pem(&text(CERTIFICATE_FILE)?, &text(KEY_FILE)?, &folder.display().to_string())
    }

    /// Writes the authority to `ca.pem` and `ca.key` (mode 0600) in a folder where neither exists yet.
    ///
    /// # Errors
    /// If a file exists or cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PkiError> {
        let write = |name: &str, mode: u32, content: &str| {
            let path = folder.join(name);
            let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).and_then(
                |mut file| {
                    file.write_all(content.as_bytes())?;
                    file.sync_all()
                },
            );
            written.map_err(|source| PkiError::File { doing: "write", path, source })
        };
        write(KEY_FILE, 0o600, &self.key_pem())?;
        write(CERTIFICATE_FILE, 0o644, &self.trust.ca)
    }

    /// The authority's certificate.
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }
    /// The authority's key, PEM: whoever has it is the authority.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
    /// SHA-256 of the authority's certificate: what join tokens pin.
    pub const fn ca_hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Certifies the key of a signing request; what else it asks for is ignored. Never for longer than the authority itself is good.
    ///
    /// # Errors
    /// If a name of the subject is none.
    pub fn issue(
        &self,
        subject: &Subject,
        request: &SigningRequest,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Issued, PkiError> {
        self.certify(subject, &request.0.public_key, now, lifetime)
    }

    /// A key and its certificate, for a holder on this machine: this server, or the first user.
    ///
    /// # Errors
    /// If the system has no randomness, or a name of the subject is none.
    pub fn issue_here(
        &self,
        subject: &Subject,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Identity, PkiError> {
        let key = NewKey::generate()?;
        let issued = self.certify(subject, &key.pair, now, lifetime)?;
        Ok(Identity { certificate: issued.certificate, key: key.pem() })
    }

    fn certify(
        &self,
        subject: &Subject,
        key: &impl PublicKeyData,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Issued, PkiError> {
        let (unit, name) = subject.unit_and_name();
        let mut params = params(unit, &name, now, (now + lifetime).min(self.expires));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = subject.purposes();
        params.subject_alt_names = subject.names()?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(PkiError::Make)?;
        let peer =
            Peer::from_certificate(certificate.der()).expect("what this authority issues says whose it is");
        Ok(Issued { certificate: format!("{}{}", certificate.pem(), self.trust.ca), peer })
    }
}

fn params(unit: &str, name: &str, now: Timestamp, until: Timestamp) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Wharf");
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::CommonName, name);
    let at = |time: Timestamp| date_time_ymd(1970, 1, 1) + Duration::from_secs(time.0 / 1000);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(random_serial());
    let skew = SKEW.min(until.since(now) / 10);
    params.not_before = at(Timestamp(now.0.saturating_sub(u64::try_from(skew.as_millis()).unwrap_or(0))));
    params.not_after = at(until);
    params
}

fn random_serial() -> SerialNumber {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    // Positive, and as long as any other.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn hash_of(trust: &Trust) -> Result<[u8; 32], InvalidIdentity> {
    let hash = hex::decode(trust.ca_hash()?).ok().and_then(|bytes| bytes.try_into().ok());
    Ok(hash.expect("a SHA-256 has 32 bytes"))
}

/// Until when the authority is good, and its public key.
fn validity(trust: &Trust) -> Result<(Timestamp, Vec<u8>), x509_parser::error::X509Error> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(trust.ca.as_bytes())
        .map_err(|_| x509_parser::error::X509Error::InvalidCertificate)?;
    let certificate = pem.parse_x509()?;
    let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok((Timestamp(expires.saturating_mul(1000)), certificate.public_key().raw.to_vec()))
}

/// A server's own certificate, which renews itself while connections are accepted with it.
pub struct ServerIdentity {
    authority: Arc<Authority>,
    subject: Subject,
    lifetime: Duration,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Certified>,
}
struct Certified {
    identity: Identity,
    key: Arc<CertifiedKey>,
    peer: Peer,
}
impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("subject", &self.subject).finish_non_exhaustive()
    }
}
impl ServerIdentity {
    /// A certificate for the server `id`, reached by `names`, good for `lifetime` at a time.
    ///
    /// # Errors
    /// If it cannot be issued.
    pub fn issue(
        authority: Arc<Authority>,
        id: ServerId,
        names: Vec<String>,
        lifetime: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PkiError> {
        let subject = Subject::Server { id, names };
        let first = certified(&authority, &subject, now(&*clock), lifetime)?;
        Ok(Arc::new(Self { authority, subject, lifetime, clock, current: ArcSwap::from_pointee(first) }))
    }

    /// The certificate and key in force, for connections to other servers.
    pub fn identity(&self) -> Identity {
        self.current.load().identity.clone()
    }

    /// Renews the certificate after two thirds of its life, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // Dropping the pass loses nothing: the certificate is swapped in one step.
        stop.run_until_cancelled(async {
            loop {
                let due = self.current.load().peer.renew_at().since(now(&*self.clock));
                // Not in one sleep: the wall clock may be set.
                self.clock.sleep(due.clamp(Duration::from_millis(20), TRY_AGAIN)).await;
                if self.current.load().peer.renew_at() <= now(&*self.clock) {
                    self.renew().await;
                }
            }
        })
        .await;
    }

    async fn renew(&self) {
        match certified(&self.authority, &self.subject, now(&*self.clock), self.lifetime) {
            Ok(renewed) => {
                tracing::info!(serial = renewed.peer.serial, "server certificate renewed");
                self.current.store(Arc::new(renewed));
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "server certificate not renewed");
                self.clock.sleep(TRY_AGAIN).await;
            }
        }
    }
}
impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}

fn certified(
    authority: &Authority,
    subject: &Subject,
    now: Timestamp,
    lifetime: Duration,
) -> Result<Certified, PkiError> {
    let identity = authority.issue_here(subject, now, lifetime)?;
    let unusable =
        |error: InvalidIdentity| PkiError::Damaged { place: "memory".to_owned(), source: error.into() };
    let (key, peer) = (identity.certified().map_err(unusable)?, identity.peer().map_err(unusable)?);
    Ok(Certified { identity, key, peer })
}

pub(crate) fn now(clock: &dyn Clock) -> Timestamp {
    Timestamp(clock.now().0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use wharf_api::transport::{
        PeerKind,
        signed::{Disbelief, Signed, Signer, Verifier},
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_273_445_000);

    fn authority() -> Authority {
        Authority::create("test", NOW, Lifetimes::default().authority).unwrap()
    }
    fn request(key: &KeyPair) -> SigningRequest {
        let mut wish = CertificateParams::default();
        wish.distinguished_name.push(DnType::CommonName, "server_00000000000000000000000000000000");
        wish.distinguished_name.push(DnType::OrganizationalUnitName, "server");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        SigningRequest::parse(&wish.serialize_request(key).unwrap().pem().unwrap()).unwrap()
    }

    #[test]
    fn a_certificate_says_what_the_authority_decided_and_not_what_was_asked_for() {
        let key = KeyPair::generate().unwrap();
        let node = NodeId::from_parts(7, [1; 10]);
        let issued = authority().issue(&Subject::Node(node), &request(&key), NOW, DAY * 90).unwrap();
        assert_eq!(issued.peer.kind, PeerKind::Node(node));
        assert_eq!(issued.peer.not_before, Timestamp(NOW.0 - 7_200_000), "backdated for clocks that lag");
        assert_eq!(issued.peer.expires, NOW + DAY * 90);
        assert_eq!(issued.peer.serial.len(), 32);
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).unwrap();
        assert!(!pem.parse_x509().unwrap().is_ca(), "nobody becomes an authority by asking");
    }

    #[test]
    fn a_request_signed_with_another_key_is_refused() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let pem = |key| CertificateParams::default().serialize_request(key).unwrap();
        let (mine, theirs) = (pem(&key), pem(&other));
        // The signature is the last part of a request: exchange it for one made with another key.
        let mut forged = mine.der().to_vec();
        let (at, from) = (forged.len() - 32, theirs.der().len() - 32);
        forged[at..].copy_from_slice(&theirs.der()[from..]);
        let forged = CertificateSigningRequestParams::from_der(&forged.into());
        assert!(matches!(forged, Err(rcgen::Error::InvalidCertificationRequestSignature)));
        assert!(matches!(SigningRequest::parse("nonsense"), Err(PkiError::Request(_))));
    }

    #[test]
    fn no_certificate_outlives_the_authority_and_no_serial_repeats() {
        let authority = authority();
        let user = Subject::User("ada".to_owned());
        let first = authority.issue_here(&user, NOW, DAY * 36_500).unwrap().peer().unwrap();
        assert_eq!(first.expires, NOW + Lifetimes::default().authority);
        let second = authority.issue_here(&user, NOW, DAY).unwrap().peer().unwrap();
        assert_ne!(first.serial, second.serial);
    }

    /// What `identity` says about `context`.
    fn signed(identity: &Identity, context: &str) -> Vec<u8> {
        Signer::new(identity).unwrap().sign(context, b"it is so").unwrap()
    }

    #[test]
    fn what_a_node_signs_is_believed_by_nodes_of_its_cluster_and_nothing_else_is() {
        let (authority, id) = (authority(), NodeId::from_parts(7, [1; 10]));
        let issue = |subject: &Subject| authority.issue_here(subject, NOW, DAY * 90).unwrap();
        let node = issue(&Subject::Node(id));
        let mut verifier = Verifier::new(authority.trust()).unwrap();
        let mut verify = |context: &str, message: &[u8], now| {
            let message = Signed::read(message)?;
            assert_eq!(message.content.len(), 8);
            verifier.verify(context, &message, now)
        };
        let message = signed(&node, "weather");
        assert_eq!(verify("weather", &message, NOW), Ok(id));
        assert_eq!(verify("news", &message, NOW), Err(Disbelief::Signature), "it is about something else");
        for at in [message.len() - 1, message.len() - 9] {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert_eq!(verify("weather", &changed, NOW), Err(Disbelief::Signature));
        }
        assert_eq!(verify("weather", &message[..9], NOW), Err(Disbelief::Malformed));
        let late = NOW + DAY * 91;
        assert!(
            matches!(verify("weather", &message, late), Err(Disbelief::Certificate(_))),
            "it has expired"
        );

        let user = signed(&issue(&Subject::User("ada".to_owned())), "weather");
        assert_eq!(verify("weather", &user, NOW), Err(Disbelief::Sender));
        let other = Authority::create("test", NOW, Lifetimes::default().authority).unwrap();
        let foreign = signed(&other.issue_here(&Subject::Node(id), NOW, DAY).unwrap(), "weather");
        assert!(matches!(verify("weather", &foreign, NOW), Err(Disbelief::Certificate(_))));
        // Another node's certificate, which everybody can see, before what is signed with one's own key.
        let another = signed(&issue(&Subject::Node(NodeId::from_parts(7, [2; 10]))), "weather");
        let length = |message: &[u8]| 2 + usize::from(u16::from_be_bytes([message[0], message[1]]));
        let forged = [&another[..length(&another)], &message[length(&message)..]].concat();
        assert_eq!(verify("weather", &forged, NOW), Err(Disbelief::Signature));
    }

    #[test]
    fn who_sends_rubbish_is_not_listened_to_for_the_rest_of_the_second() {
        let (authority, id) = (authority(), NodeId::from_parts(7, [1; 10]));
        let node = authority.issue_here(&Subject::Node(id), NOW, DAY).unwrap();
        let message = signed(&node, "weather");
        let message = Signed::read(&message).unwrap();
        let mut verifier = Verifier::new(authority.trust()).unwrap();
        for _ in 0..Verifier::MOST_FAILURES {
            assert_eq!(verifier.verify("news", &message, NOW), Err(Disbelief::Signature));
        }
        assert_eq!(verifier.verify("weather", &message, NOW), Err(Disbelief::TooMany));
        assert_eq!(verifier.verify("weather", &message, Timestamp(NOW.0 + 1000)), Ok(id));
    }

    #[test]
    fn the_authority_is_read_back_and_its_key_is_for_its_owner_only() {
        let folder = std::env::temp_dir().join(format!("wharf-pki-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let authority = authority();
        authority.write(&folder).unwrap();
        assert_eq!(fs::metadata(folder.join(KEY_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Authority::read(&folder).unwrap().ca_hash(), authority.ca_hash());
        assert!(
            matches!(authority.write(&folder), Err(PkiError::File { doing: "write", .. })),
            "never overwritten"
        );

        let other = Authority::create("other", NOW, DAY).unwrap();
        fs::write(folder.join(KEY_FILE), other.key_pem()).unwrap();
        assert!(
            matches!(Authority::read(&folder), Err(PkiError::Damaged { .. })),
            "a key of another authority"
        );
        fs::write(folder.join(CERTIFICATE_FILE), "").unwrap();
        assert!(matches!(Authority::read(&folder), Err(PkiError::Damaged { .. })));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_server_certificate_names_its_hosts() {
        let id = ServerId::from_parts(7, [1; 10]);
        let subject = Subject::Server { id, names: vec!["n1.example.com".to_owned(), "10.0.0.1".to_owned()] };
        let identity = authority().issue_here(&subject, NOW, DAY).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 5, "{names:?}");
        let wrong = Subject::Server { id, names: vec!["größe".to_owned()] };
        assert!(matches!(authority().issue_here(&wrong, NOW, DAY), Err(PkiError::Name { .. })));
    }
}
