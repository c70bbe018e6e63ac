//! What is kept in the store, and under which keys.
//!
//! One function names the key of each record, and one reads any key back; nothing else in the server knows how keys are spelt.
//! Every value carries a schema number ([`wharf_store::records`]); [`SCHEMA`] is the one written today.

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use wharf_model::{
    AddressPool, AppKey, AppRecord, EnvironmentName, Event, EventId, FileName, Generation, NetworkDefaults,
    NetworkId, NetworkRecord, NodeId, NodeName, NodeRecord, NodeStatus, PlacementDefaults, QuotaRecord,
    RebalanceRun, Rebalancing, Release, ReleaseNumber, ServerId, ServiceKey, ServiceRecord, ServiceRevision,
    Task, TaskId, TaskStatus, Timestamp, TokenId, VolumeId, VolumeRecord,
};
use wharf_store::{StoreError, records};

/// The schema every record is written in.
pub const SCHEMA: u32 = 1;

/// The cluster itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Its identifier, also on every container it makes.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Grows when the store was restored from a backup, so that agents accept its smaller revisions.
    pub epoch: u64,
    /// Where networks get their addresses.
    pub pool: AddressPool,
    /// Where networks get their IPv6 addresses: unique local ones (RFC 4193), drawn once for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_local: Option<Ipv6Net>,
    /// What holds for networks whose files say nothing else.
    #[serde(default)]
    pub network: NetworkDefaults,
    /// What holds for placement where files say nothing else.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementDefaults,
    /// What the cluster moves by itself to be more even, and how fast anything is moved.
    #[serde(default)]
    pub rebalancing: Rebalancing,
    /// When it was made.
    pub created_at: Timestamp,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A server process, as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its identifier.
    pub id: ServerId,
    /// Where it answers: `host:port`.
    pub addresses: Vec<String>,
    /// Version of its binary.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// When it last said so.
    pub seen_at: Timestamp,
}

/// Who decides. Written only when that changes: every commit of a controller expects the revision at which its
/// server wrote it, so that a deposed leader can write nothing (a fencing key).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The server.
    pub server: ServerId,
    /// Counts changes of leader.
    pub term: u64,
    /// When it took over.
    pub since: Timestamp,
}

/// The leader's sign of life: written again and again, watched by the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The server.
    pub server: ServerId,
    /// Differs in each renewal.
    pub count: u64,
    /// The term that is renewed; so that terms go on counting when a leader has resigned.
    #[serde(default)]
    pub term: u64,
}

/// Who has taken ports of the gateways last. Every release that takes a port expects this as it read it and writes it, so that of
/// two apps that want the same port at once the second sees the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsRecord {
    /// The app.
    pub app: AppKey,
}

/// Who has asked for something in an environment that has a quota last. Every change that may ask for more expects this as it read it and
/// writes it, so that of two that would fit alone and not together the second sees the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUseRecord {
    /// The app.
    pub app: AppKey,
}

/// Whose a node's name is. Made with the node and removed with it, so that of two machines that join by one name at once the
/// second sees the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNameRecord {
    /// The node.
    pub node: NodeId,
}

/// A certificate that is no longer good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRecord {
    /// Whose it was, in words.
    pub whose: String,
    /// When it was revoked.
    pub at: Timestamp,
}

/// A join token. Its secret is known to nobody but the one who was shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its identifier.
    pub id: TokenId,
    /// SHA-256 of its secret, in hexadecimal.
    pub hash: String,
    /// What may join with it.
    pub role: TokenRole,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Who made it.
    pub created_by: String,
}

/// What may join with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenRole {
    /// A node.
    Agent,
    /// A further server.
    Server,
}
impl std::fmt::Display for TokenRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Server => "server",
        })
    }
}

/// Which of the two kinds of files apps mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Its content may be read by people.
    Config,
    /// Its content is handed to the tasks that mount it and to nobody else.
    Secret,
}
impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Config => "config",
            Self::Secret => "secret",
        })
    }
}

/// A config or secret of an environment, which apps mount as `external`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedFileKey {
    /// Which kind.
    pub kind: FileKind,
    /// The environment.
    pub environment: EnvironmentName,
    /// The name in it.
    pub name: FileName,
}
impl std::fmt::Display for NamedFileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.environment, self.name)
    }
}

/// A config or secret of an environment, with the versions it has had. The contents lie beside it, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedFileRecord {
    /// Its kind, environment and name.
    pub key: NamedFileKey,
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// When the first version was made.
    pub created_at: Timestamp,
    /// The latest versions, the newest last; there is one.
    pub versions: Vec<FileVersion>,
}

/// One version of a config or secret of an environment. Immutable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    /// Its number, from 1.
    pub number: u64,
    /// What the servers' key makes of its content.
    pub digest: String,
    /// Length of its content.
    pub size: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub by: String,
}

/// Who issues certificates, and on which terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeRecord {
    /// The URL of the authority's directory (RFC 8555).
    pub directory: String,
    /// Whom the authority may write to.
    #[serde(default)]
    pub email: Option<String>,
    /// Somebody has agreed to the authority's terms.
    pub terms_agreed: bool,
    /// Certificates in PEM that vouch for the authority's own server, beside those that the machine trusts.
    #[serde(default)]
    pub roots: String,
    /// How hosts are proven to be ours, the preferred way first; there is one at least.
    pub methods: Vec<Method>,
    /// An account that the authority knows already (external account binding): its identifier, and its key sealed for `acme`, in hexadecimal.
    #[serde(default)]
    pub external: Option<(String, String)>,
}
impl AcmeRecord {
    /// An authority to whose terms nobody has agreed.
    pub fn new(directory: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            email: None,
            terms_agreed: false,
            roots: String::new(),
            methods: vec![Method::Http01, Method::TlsAlpn01],
            external: None,
        }
    }
}

/// How a host is proven to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// By a request of HTTP at port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// By a handshake of TLS at port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}
impl Method {
    /// Its name in RFC 8555 and RFC 8737.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
    /// Where an authority asks.
    pub const fn port(self) -> u16 {
        match self {
            Self::Http01 => 80,
            Self::TlsAlpn01 => 443,
        }
    }
}
impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
impl std::str::FromStr for Method {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Http01, Self::TlsAlpn01]
            .into_iter()
            .find(|method| method.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a way to prove a host: http-01 and tls-alpn-01 are"))
    }
}

/// What is known of the certificate that is obtained for a host. Chain and key lie beside it, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// For which host.
    pub host: String,
    /// The one that is shown; none if none was obtained yet.
    #[serde(default)]
    pub issued: Option<IssuedCertificate>,
    /// The last attempt, if it failed.
    #[serde(default)]
    pub failed: Option<FailedAttempt>,
    /// When somebody asked for a new one, until there is.
    #[serde(default)]
    pub asked: Option<Timestamp>,
}
impl CertificateRecord {
    /// For a host for which nothing was tried yet.
    pub fn new(host: &str) -> Self {
        Self { host: host.to_owned(), issued: None, failed: None, asked: None }
    }
}

/// A certificate that was obtained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// From whom: the directory's URL.
    pub directory: String,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// From when it is good
    pub not_before: Timestamp,
    /// and until when.
    pub not_after: Timestamp,
    /// When it was obtained.
    pub at: Timestamp,
    /// How the host was proven.
    pub method: Method,
}
impl IssuedCertificate {
    /// When it is renewed: a third of its lifetime is left then.
    pub fn renew_at(&self) -> Timestamp {
        let lifetime = self.not_after.0.saturating_sub(self.not_before.0);
        Timestamp(self.not_after.0 - lifetime / 3)
    }
}

/// An attempt to obtain a certificate that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// When.
    pub at: Timestamp,
    /// When it is tried again.
    pub again_at: Timestamp,
    /// How many in a row have failed.
    pub failures: u32,
    /// Why, for people.
    pub why: String,
    /// Whom it was asked of.
    pub directory: String,
    /// How the host was to be proven.
    pub method: Method,
}

/// A key that seals the sessions of TLS clients.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKeyRecord {
    /// When it was made.
    pub made_at: Timestamp,
    /// The key.
    pub key: wharf_model::TicketKey,
}

/// A value in the store.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "lives for one decoding; boxing would cost every reader")]
pub enum Record {
    /// `cluster`
    Cluster(ClusterRecord),
    /// `nodes/ID`
    Node(NodeRecord),
    /// `node-status/ID`
    NodeStatus(NodeId, NodeStatus),
    /// `node-names/NAME`
    NodeName(NodeNameRecord),
    /// `published-ports`
    Ports(PortsRecord),
    /// `apps/ENVIRONMENT/NAME`
    App(AppRecord),
    /// `releases/ENVIRONMENT/NAME/NUMBER`
    Release(Release),
    /// `services/ENVIRONMENT/NAME/SERVICE`
    Service(ServiceRecord),
    /// `revisions/ENVIRONMENT/NAME/SERVICE/GENERATION`
    Revision(ServiceRevision),
    /// `tasks/ID`
    Task(Task),
    /// `task-status/ID`
    TaskStatus(TaskId, TaskStatus),
    /// `networks/ID`
    Network(NetworkRecord),
    /// `volumes/ID`
    Volume(VolumeRecord),
    /// `rebalance`
    Rebalance(RebalanceRun),
    /// `quotas/ENVIRONMENT`
    Quota(QuotaRecord),
    /// `quota-uses/ENVIRONMENT`
    QuotaUse(QuotaUseRecord),
    /// `tokens/ID`
    Token(TokenRecord),
    /// `revoked/SERIAL`
    Revoked(String, RevokedRecord),
    /// `servers/ID`
    Server(ServerRecord),
    /// `leader`
    Leader(LeaderRecord),
    /// `lease`
    Lease(LeaseRecord),
    /// `events/ID`
    Event(Event),
    /// `files/ENVIRONMENT/NAME/DIGEST`: the sealed content of a config or secret.
    Sealed(Vec<u8>),
    /// `named/KIND/ENVIRONMENT/NAME`
    NamedFile(NamedFileRecord),
    /// `named-contents/KIND/ENVIRONMENT/NAME/VERSION`, sealed.
    NamedContent(Vec<u8>),
    /// `acme`
    Acme(AcmeRecord),
    /// `certificates/HOST`
    Certificate(CertificateRecord),
    /// `acme-accounts/DIRECTORY`, `certificate-keys/HOST`, `challenges/HOST` and `ticket-keys`, sealed.
    Secret(Vec<u8>),
}

/// A key, read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The cluster itself.
    Cluster,
    /// A node.
    Node(NodeId),
    /// What is observed of a node.
    NodeStatus(NodeId),
    /// Whose a node's name is.
    NodeName(NodeName),
    /// Who has taken ports of the gateways last.
    Ports,
    /// An app.
    App(AppKey),
    /// A release.
    Release(AppKey, ReleaseNumber),
    /// A service.
    Service(ServiceKey),
    /// A revision of a service.
    Revision(ServiceKey, Generation),
    /// A task.
    Task(TaskId),
    /// What is observed of a task.
    TaskStatus(TaskId),
    /// A network.
    Network(NetworkId),
    /// A volume.
    Volume(VolumeId),
    /// Moves that somebody asked for last.
    Rebalance,
    /// The quota of an environment.
    Quota(EnvironmentName),
    /// Who has asked for something in an environment with a quota last.
    QuotaUse(EnvironmentName),
    /// A join token.
    Token(TokenId),
    /// A revoked certificate, by serial number.
    Revoked(String),
    /// A server.
    Server(ServerId),
    /// Who decides.
    Leader,
    /// The leader's sign of life.
    Lease,
    /// An event.
    Event(EventId),
    /// The sealed content of a config or secret, by app and digest.
    File(AppKey, String),
    /// A config or secret of an environment.
    NamedFile(NamedFileKey),
    /// The sealed content of one version of it.
    NamedContent(NamedFileKey, u64),
    /// Who issues certificates.
    Acme,
    /// The sealed account with an authority, by the SHA-256 of its directory's URL.
    AcmeAccount(String),
    /// What is known of a host's certificate.
    Certificate(String),
    /// Its chain and key, sealed.
    CertificateKey(String),
    /// What an authority is answered that asks for a host, sealed.
    Challenge(String),
    /// What seals the sessions of TLS clients, sealed.
    TicketKeys,
}

impl std::fmt::Display for Key {
    /// As it stands in the store.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Node(id) => write!(f, "nodes/{id}"),
            Self::NodeStatus(id) => write!(f, "node-status/{id}"),
            Self::NodeName(name) => write!(f, "node-names/{name}"),
            Self::Ports => f.write_str("published-ports"),
            Self::App(app) => write!(f, "apps/{app}"),
            // Ten digits, so that the order of keys is the order of numbers.
            Self::Release(app, number) => write!(f, "releases/{app}/{:010}", number.0),
            Self::Service(service) => write!(f, "services/{service}"),
            Self::Revision(service, generation) => write!(f, "revisions/{service}/{:010}", generation.0),
            Self::Task(id) => write!(f, "tasks/{id}"),
            Self::TaskStatus(id) => write!(f, "task-status/{id}"),
            Self::Network(id) => write!(f, "networks/{id}"),
            Self::Volume(id) => write!(f, "volumes/{id}"),
            Self::Rebalance => f.write_str("rebalance"),
            Self::Quota(environment) => write!(f, "quotas/{environment}"),
            Self::QuotaUse(environment) => write!(f, "quota-uses/{environment}"),
            Self::Token(id) => write!(f, "tokens/{id}"),
            Self::Revoked(serial) => write!(f, "revoked/{serial}"),
            Self::Server(id) => write!(f, "servers/{id}"),
            Self::Leader => f.write_str("leader"),
            Self::Lease => f.write_str("lease"),
            Self::Event(id) => write!(f, "events/{id}"),
            Self::File(app, digest) => write!(f, "files/{app}/{digest}"),
            Self::NamedFile(file) => write!(f, "named/{file}"),
            Self::NamedContent(file, version) => write!(f, "named-contents/{file}/{version:010}"),
            Self::Acme => f.write_str("acme"),
            Self::AcmeAccount(directory) => write!(f, "acme-accounts/{directory}"),
            Self::Certificate(host) => write!(f, "certificates/{host}"),
            Self::CertificateKey(host) => write!(f, "certificate-keys/{host}"),
            Self::Challenge(host) => write!(f, "challenges/{host}"),
            Self::TicketKeys => f.write_str("ticket-keys"),
        }
    }
}

impl std::str::FromStr for Key {
    type Err = UnknownKey;
    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        fn id<T: std::str::FromStr>(text: &str) -> Option<T> {
            text.parse().ok()
        }
        fn app(text: &str) -> Option<AppKey> {
            let (environment, name) = text.split_once('/')?;
            Some(AppKey { environment: id(environment)?, name: id(name)? })
        }
        fn service(text: &str) -> Option<ServiceKey> {
            let (owner, name) = text.rsplit_once('/')?;
            Some(ServiceKey { app: app(owner)?, name: id(name)? })
        }
        fn named(text: &str) -> Option<NamedFileKey> {
            let (kind, rest) = text.split_once('/')?;
            let kind = match kind {
                "config" => FileKind::Config,
                "secret" => FileKind::Secret,
                _ => return None,
            };
            let (environment, name) = rest.split_once('/')?;
            Some(NamedFileKey { kind, environment: id(environment)?, name: id(name)? })
        }
        let parse = || {
            Some(match text.split_once('/') {
                None => match text {
                    "cluster" => Self::Cluster,
                    "leader" => Self::Leader,
                    "lease" => Self::Lease,
                    "published-ports" => Self::Ports,
                    "acme" => Self::Acme,
                    "ticket-keys" => Self::TicketKeys,
                    "rebalance" => Self::Rebalance,
                    _ => return None,
                },
                Some(("nodes", rest)) => Self::Node(id(rest)?),
                Some(("node-status", rest)) => Self::NodeStatus(id(rest)?),
                Some(("node-names", rest)) => Self::NodeName(id(rest)?),
                Some(("apps", rest)) => Self::App(app(rest)?),
                Some(("releases", rest)) => {
                    let (owner, number) = rest.rsplit_once('/')?;
                    Self::Release(app(owner)?, ReleaseNumber(id(number)?))
                }
                Some(("services", rest)) => Self::Service(service(rest)?),
                Some(("revisions", rest)) => {
                    let (owner, generation) = rest.rsplit_once('/')?;
                    Self::Revision(service(owner)?, Generation(id(generation)?))
                }
                Some(("tasks", rest)) => Self::Task(id(rest)?),
                Some(("task-status", rest)) => Self::TaskStatus(id(rest)?),
                Some(("networks", rest)) => Self::Network(id(rest)?),
                Some(("volumes", rest)) => Self::Volume(id(rest)?),
                Some(("quotas", rest)) => Self::Quota(id(rest)?),
                Some(("quota-uses", rest)) => Self::QuotaUse(id(rest)?),
                Some(("tokens", rest)) => Self::Token(id(rest)?),
                Some(("revoked", rest)) => Self::Revoked(rest.to_owned()),
                Some(("servers", rest)) => Self::Server(id(rest)?),
                Some(("events", rest)) => Self::Event(id(rest)?),
                Some(("files", rest)) => {
                    let (owner, digest) = rest.rsplit_once('/')?;
                    Self::File(app(owner)?, digest.to_owned())
                }
                Some(("named", rest)) => Self::NamedFile(named(rest)?),
                Some(("acme-accounts", rest)) => Self::AcmeAccount(rest.to_owned()),
                Some(("certificates", rest)) => Self::Certificate(rest.to_owned()),
                Some(("certificate-keys", rest)) => Self::CertificateKey(rest.to_owned()),
                Some(("challenges", rest)) => Self::Challenge(rest.to_owned()),
                Some(("named-contents", rest)) => {
                    let (file, version) = rest.rsplit_once('/')?;
                    Self::NamedContent(named(file)?, id(version)?)
                }
                Some(_) => return None,
            })
        };
        parse().ok_or_else(|| UnknownKey(text.to_owned()))
    }
}

/// A key this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key `{0}` is not one this version knows")]
pub struct UnknownKey(pub String);

impl Record {
    /// Reads the value under a key.
    ///
    /// # Errors
    /// As [`records::decode`]: the error names the key.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, StoreError> {
        fn value<T: serde::de::DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, StoreError> {
            records::decode(&key.to_string(), bytes, SCHEMA).map(|record| record.value)
        }
        Ok(match key {
            Key::Cluster => Self::Cluster(value(key, bytes)?),
            Key::Node(_) => Self::Node(value(key, bytes)?),
            Key::NodeStatus(id) => Self::NodeStatus(*id, value(key, bytes)?),
            Key::NodeName(_) => Self::NodeName(value(key, bytes)?),
            Key::Ports => Self::Ports(value(key, bytes)?),
            Key::App(_) => Self::App(value(key, bytes)?),
            Key::Release(..) => Self::Release(value(key, bytes)?),
            Key::Service(_) => Self::Service(value(key, bytes)?),
            Key::Revision(..) => Self::Revision(value(key, bytes)?),
            Key::Task(_) => Self::Task(value(key, bytes)?),
            Key::TaskStatus(id) => Self::TaskStatus(*id, value(key, bytes)?),
            Key::Network(_) => Self::Network(value(key, bytes)?),
            Key::Volume(_) => Self::Volume(value(key, bytes)?),
            Key::Rebalance => Self::Rebalance(value(key, bytes)?),
            Key::Quota(_) => Self::Quota(value(key, bytes)?),
            Key::QuotaUse(_) => Self::QuotaUse(value(key, bytes)?),
            Key::Token(_) => Self::Token(value(key, bytes)?),
            Key::Revoked(serial) => Self::Revoked(serial.clone(), value(key, bytes)?),
            Key::Server(_) => Self::Server(value(key, bytes)?),
            Key::Leader => Self::Leader(value(key, bytes)?),
            Key::Lease => Self::Lease(value(key, bytes)?),
            Key::Event(_) => Self::Event(value(key, bytes)?),
            Key::File(..) => Self::Sealed(bytes.to_vec()),
            Key::NamedFile(_) => Self::NamedFile(value(key, bytes)?),
            Key::NamedContent(..) => Self::NamedContent(bytes.to_vec()),
            Key::Acme => Self::Acme(value(key, bytes)?),
            Key::Certificate(_) => Self::Certificate(value(key, bytes)?),
            Key::AcmeAccount(_) | Key::CertificateKey(_) | Key::Challenge(_) | Key::TicketKeys => {
                Self::Secret(bytes.to_vec())
            }
        })
    }
}

/// The bytes of a value for a key.
///
/// # Panics
/// Never for the records of this module: all of them have a JSON form.
pub fn encode<T: Serialize>(key: &Key, value: &T) -> Vec<u8> {
    records::encode(&key.to_string(), SCHEMA, value).expect("every record has a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let service = ServiceKey { app: app.clone(), name: "web.front".parse().unwrap() };
        let named = NamedFileKey {
            kind: FileKind::Secret,
            environment: "prod".parse().unwrap(),
            name: "db_password".parse().unwrap(),
        };
        let keys = [
            Key::Cluster,
            Key::Node(NodeId::from_parts(1, [1; 10])),
            Key::NodeStatus(NodeId::from_parts(1, [1; 10])),
            Key::NodeName("worker-1".parse().unwrap()),
            Key::Ports,
            Key::App(app.clone()),
            Key::Release(app.clone(), ReleaseNumber(12)),
            Key::Service(service.clone()),
            Key::Revision(service, Generation(3)),
            Key::Task(TaskId::from_parts(1, [1; 10])),
            Key::TaskStatus(TaskId::from_parts(1, [1; 10])),
            Key::Network(NetworkId::from_parts(1, [1; 10])),
            Key::Volume(VolumeId::from_parts(1, [1; 10])),
            Key::Rebalance,
            Key::Quota("prod".parse().unwrap()),
            Key::QuotaUse("prod".parse().unwrap()),
            Key::Token(TokenId::from_parts(1, [1; 10])),
            Key::Revoked("ab12".into()),
            Key::Server(ServerId::from_parts(1, [1; 10])),
            Key::Leader,
            Key::Lease,
            Key::Event(EventId::from_parts(1, [1; 10])),
            Key::File(app, "00ff".into()),
            Key::NamedFile(named.clone()),
            Key::NamedContent(named, 12),
            Key::Acme,
            Key::AcmeAccount("00ff".into()),
            Key::Certificate("shop.example.com".into()),
            Key::CertificateKey("shop.example.com".into()),
            Key::Challenge("shop.example.com".into()),
            Key::TicketKeys,
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        assert!("tasks/node_1".parse::<Key>().is_err());
        assert!("nonsense".parse::<Key>().is_err());
    }
}
