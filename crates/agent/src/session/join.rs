//! Makes this machine a node of a cluster.
//!
//! - The token names the cluster by the hash of its authority's certificate: a server that cannot present that authority is told nothing,
//!   not even the token.
//! - Nothing is written before the server has said yes and its answer has been checked; joining twice changes nothing unless it is forced.

use std::{net::IpAddr, sync::Arc};

use http::Method;
use wharf_api::transport::{
    CallError, DialError, Identity, InvalidIdentity, InvalidToken, JoinToken, PeerKind, ServerAddress,
    Timing, Trust,
    client::Dialer,
    tls::{Anchor, Protocol},
    wire::{self, JoinFacts, JoinRequest, JoinResponse},
};
use wharf_model::{NodeId, NodeName, Timestamp};
use wharf_process::Clock;

use super::{Home, HomeError, Membership, new_key, tls_time};

/// What joining is asked with.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The token, as it was typed.
    pub token: String,
    /// Servers to ask, in this order.
    pub servers: Vec<ServerAddress>,
    /// What the node is to be called.
    pub name: NodeName,
    /// The machine's host name.
    pub hostname: String,
    /// The address other nodes reach it at, if it is not the one the server sees.
    pub address: Option<IpAddr>,
    /// Version of this binary.
    pub version: String,
    /// Also if this machine is a node already: of this cluster, it becomes the same node again; of another, it leaves that.
    pub force: bool,
}

/// A machine that has become a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Which node.
    pub node: NodeId,
    /// What it is called.
    pub name: NodeName,
    /// How many servers there are.
    pub servers: usize,
}

/// Why a machine has not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is damaged.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// It is one already.
    #[error("this machine is node `{name}` ({node}) already")]
    Already {
        /// Which.
        node: NodeId,
        /// What it is called.
        name: NodeName,
    },
    /// There is no such server, or it is of another cluster than the token.
    #[error("cannot ask a server")]
    Dial(#[source] DialError),
    /// The server said no.
    #[error("the server did not let this machine join")]
    Refused(#[source] CallError),
    /// The server's answer is not what was asked for.
    #[error("the server's answer cannot be used")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A key could not be made.
    #[error("no key can be made")]
    Key(#[source] rcgen::Error),
    /// It cannot be remembered.
    #[error(transparent)]
    Home(#[from] HomeError),
}
impl JoinError {
    /// What to do about it, as far as is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Token(error) => Some(error.hint().to_owned()),
            Self::Already { .. } => Some(
                "nothing needs to be done; to join again, or another cluster, add `--force` (its containers stay as they are)".to_owned(),
            ),
            Self::Dial(DialError::OtherCluster { .. }) => {
                Some("the token is of another cluster than this server: use one that `wharf token create` prints there".to_owned())
            }
            Self::Dial(error) => error.hint(),
            Self::Refused(error) => error.hint(),
            Self::Home(error) => error.hint().map(str::to_owned),
            Self::Answer(_) | Self::Key(_) => None,
        }
    }
}

/// Joins, and remembers it in `home`.
///
/// # Errors
/// If the token is damaged, no server can be asked, or the one that was asked says no.
pub async fn join(
    options: JoinOptions,
    home: &Home,
    timing: Timing,
    clock: Arc<dyn Clock>,
) -> Result<Joined, JoinError> {
    let token: JoinToken = options.token.parse()?;
    let before = membership(home, options.force)?;
    let (key, csr) = new_key().map_err(JoinError::Key)?;
    let anchor = Anchor::Pin(token.ca_hash());
    let dialer = Dialer::new(&anchor, None, Protocol::Api, timing, tls_time(&clock))
        .map_err(|error| JoinError::Answer(error.into()))?;
    let server = dialer.dial(&options.servers).await.map_err(JoinError::Dial)?;
    let request = JoinRequest {
        token: token.to_string(),
        csr,
        facts: JoinFacts {
            name: options.name,
            hostname: options.hostname,
            address: options.address,
            version: options.version,
        },
        client_time: Timestamp(clock.now().0),
        rejoin: before.map(|membership| membership.node),
    };
    let response = server.call(Method::POST, wire::JOIN, &request).await.map_err(JoinError::Refused)?;
    remember(home, &token, key, response)
}

/// What this machine is already, if that is no reason to stop. One that is damaged is none, if joining is forced.
fn membership(home: &Home, force: bool) -> Result<Option<Membership>, JoinError> {
    match home.read() {
        Ok(Membership { node, name, .. }) if !force => Err(JoinError::Already { node, name }),
        Ok(membership) => Ok(Some(membership)),
        Err(HomeError::NotJoined(_)) => Ok(None),
        Err(HomeError::Damaged { .. }) if force => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn remember(
    home: &Home,
    token: &JoinToken,
    key: String,
    response: JoinResponse,
) -> Result<Joined, JoinError> {
    let JoinResponse { node, name, certificate, ca, servers, server_time: _ } = response;
    let membership = Membership { node, name, identity: Identity { certificate, key }, trust: Trust { ca } };
    check(&membership, token).map_err(JoinError::Answer)?;
    // The servers first: with an identity, the node counts as joined.
    home.write_servers(&servers)?;
    home.write(&membership)?;
    Ok(Joined { node: membership.node, name: membership.name, servers: servers.servers.len() })
}

/// Whether what the server answered fits together and to the token.
fn check(membership: &Membership, token: &JoinToken) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if membership.trust.ca_hash()? != hex::encode(token.ca_hash()) {
        return Err("its authority is not the one the token names".into());
    }
    check_identity(membership.node, &membership.identity)?;
    Ok(())
}

/// Whether a certificate is for this node and for the key it is stored with.
pub(super) fn check_identity(node: NodeId, identity: &Identity) -> Result<(), InvalidIdentity> {
    identity.certified()?;
    let peer = identity.peer()?;
    if peer.kind == PeerKind::Node(node) {
        Ok(())
    } else {
        Err(InvalidIdentity::Subject(format!("it is for {}", peer.kind)))
    }
}
