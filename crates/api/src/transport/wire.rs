//! What is said before and around a session: joining, renewing a certificate, and which servers there are.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wharf_model::{NodeId, NodeName, ServerId, Timestamp};

/// The path of joining: the one request an anonymous peer may make.
pub const JOIN: &str = "/v1/join";
/// The path of renewing a certificate.
pub const RENEW: &str = "/v1/certificates/renew";
/// The path at which a node asks who has an image: [`FindImage`](super::node::FindImage), [`FoundImage`](super::node::FoundImage).
pub const FIND_IMAGE: &str = "/v1/images/find";
/// The path at which a node gets an image from another node: [`FetchImage`](super::node::FetchImage), an archive.
pub const FETCH_IMAGE: &str = "/v1/images/fetch";
/// The path at which a node asks which of its images are needed: [`AskNeeded`](super::node::AskNeeded),
/// [`NeededImages`](super::node::NeededImages).
pub const NEEDED_IMAGES: &str = "/v1/images/needed";

/// A machine's wish to become a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The whole token.
    pub token: String,
    /// A certificate signing request (PEM) for the key that stays on the machine; its subject is ignored.
    pub csr: String,
    /// What the machine says of itself.
    pub facts: JoinFacts,
    /// The machine's clock.
    #[schema(value_type = u64)]
    pub client_time: Timestamp,
    /// The identity it had, if it asks to be that node again (`--force`); the server decides whether it may.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub rejoin: Option<NodeId>,
}
impl std::fmt::Debug for JoinRequest {
    /// Never shows the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("facts", &self.facts)
            .field("client_time", &self.client_time)
            .field("rejoin", &self.rejoin)
            .finish_non_exhaustive()
    }
}

/// What a joining machine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinFacts {
    /// What it wants to be called: its host name unless `--name` was given.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Its host name.
    pub hostname: String,
    /// The address other nodes reach it at, if it was given.
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Version of the binary.
    pub version: String,
}

/// What a machine that joined gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinResponse {
    /// Who it is from now on.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// What it is called.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// Its certificate and those between it and the authority's, PEM.
    pub certificate: String,
    /// The authority's certificate, PEM.
    pub ca: String,
    /// Where the servers answer.
    pub servers: Servers,
    /// The server's clock.
    #[schema(value_type = u64)]
    pub server_time: Timestamp,
}

/// A wish for a new certificate for whoever asks, by whatever the present one says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A certificate signing request (PEM) for a new key.
    pub csr: String,
}

/// A new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewResponse {
    /// The certificate and those between it and the authority's, PEM.
    pub certificate: String,
    /// The authority's certificate, PEM.
    pub ca: String,
}

/// The servers of the cluster. Of two lists, the one with the greater version is the newer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Servers {
    /// Grows with every change.
    pub version: u64,
    /// Each server and where it answers.
    pub servers: Vec<ServerEntry>,
}

/// A server and where it answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct ServerEntry {
    /// The server.
    #[schema(value_type = String)]
    pub id: ServerId,
    /// `host:port`, best first.
    pub addresses: Vec<String>,
}
