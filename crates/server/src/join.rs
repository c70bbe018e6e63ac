//! How machines become nodes, and how holders of certificates get new ones.
//!
//! - A join is checked in this order, and the first thing that is wrong is said: the token, the clock, the request, the name.
//! - Servers keep no secret of a token, only its hash; comparing takes as long for any wrong one.
//! - A certificate is recorded ([`Roster`]) before it is handed out: one that nobody recorded is one that nobody can revoke.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Extension, Router,
    extract::{ConnectInfo, State},
    routing::post,
};
use rand::Rng;
use wharf_api::{
    transport::{
        JoinToken, Peer, PeerKind,
        error::{Rough, Time},
        wire::{self, JoinFacts, JoinRequest, JoinResponse, RenewRequest, RenewResponse, Servers},
    },
    v1::{Code, Problem},
};
use wharf_model::{NodeId, NodeName, Timestamp, TokenId};
use wharf_process::Clock;

use crate::{
    http::{
        extract::Json,
        failure::{Answer, Failure},
    },
    pki::{Authority, Lifetimes, PkiError, SigningRequest, Subject, now},
    records::{TokenRecord, TokenRole},
};

/// How far a joining machine's clock may be off.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// A machine about to become a node; its certificate is issued and not handed out.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Who it will be.
    pub node: NodeId,
    /// What it says of itself.
    pub facts: JoinFacts,
    /// Where its request came from.
    pub from: SocketAddr,
    /// Its certificate.
    pub certificate: Peer,
    /// The token it joins with.
    pub token: TokenId,
    /// It was this node before: the record exists, and gets a new certificate.
    pub again: bool,
}

/// Where tokens and nodes are kept.
#[async_trait]
pub trait Roster: Send + Sync + 'static {
    /// A token that was made and not rotated away, expired or not.
    async fn token(&self, id: TokenId) -> Answer<Option<TokenRecord>>;
    /// What a node is called; `None` if there is none.
    async fn node(&self, id: NodeId) -> Answer<Option<NodeName>>;
    /// Records the node and its certificate; of a node that joins again the earlier certificates are revoked.
    ///
    /// # Errors
    /// [`name_taken`] if another node has its name.
    async fn admit(&self, admission: Admission) -> Answer<()>;
    /// Records that the holder of `old` got `new`. `old` must stay good until it expires or `new` was used: the answer may get lost.
    async fn renewed(&self, old: &Peer, new: &Peer) -> Answer<()>;
    /// Where the servers answer.
    fn servers(&self) -> Servers;
}

/// Another node has the name already.
pub fn name_taken(name: &NodeName) -> Failure {
    Failure::new(Code::Conflict, format!("a node named `{name}` has joined already"))
        .hint("give this one another name with `--name`, or remove the other first: `wharf node rm`")
}

/// Makes a join token, and the record to keep of it.
pub fn new_token(
    authority: &Authority,
    role: TokenRole,
    created_by: &str,
    now: Timestamp,
    lifetime: Duration,
) -> (JoinToken, TokenRecord) {
    let (mut secret, mut random) = ([0; 16], [0; 10]);
    rand::rng().fill_bytes(&mut secret);
    rand::rng().fill_bytes(&mut random);
    let token = JoinToken::new(TokenId::from_parts(now.0, random), secret, authority.ca_hash());
    let record = TokenRecord {
        id: token.id(),
        hash: token.secret_hash(),
        role,
        created_at: now,
        expires_at: now + lifetime,
        created_by: created_by.to_owned(),
    };
    (token, record)
}

/// What joining needs.
pub struct Joining {
    /// Issues the certificates.
    pub authority: Arc<Authority>,
    /// For how long.
    pub lifetimes: Lifetimes,
    /// Keeps tokens and nodes.
    pub roster: Arc<dyn Roster>,
    /// The server's clock.
    pub clock: Arc<dyn Clock>,
}

/// `POST /v1/join` and `POST /v1/certificates/renew`. The listener says who asks.
pub fn routes(joining: Joining) -> Router {
    Router::new().route(wire::JOIN, post(join)).route(wire::RENEW, post(renew)).with_state(Arc::new(joining))
}

/// Makes a machine a node: the one request that needs no certificate, and a join token for agents instead.
#[utoipa::path(post, path = "/v1/join", request_body = JoinRequest, responses((status = 200, body = JoinResponse),
    (status = 403, description = "the token is wrong, used up or expired", body = Problem)))]
pub(crate) async fn join(
    State(joining): State<Arc<Joining>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Json(request): Json<JoinRequest>,
) -> Answer<Json<JoinResponse>> {
    let token: JoinToken = request.token.parse().map_err(|error: wharf_api::transport::InvalidToken| {
        Failure::new(Code::Token, error.to_string()).hint(error.hint())
    })?;
    let record = joining.roster.token(token.id()).await?;
    let now = now(&*joining.clock);
    check_token(&token, record.as_ref(), TokenRole::Agent, now)?;
    check_clock(request.client_time, now)?;
    let response = joining.admit(&request, token.id(), from, now).await?;
    tracing::info!(node = %response.node, name = %response.name, %from, token = %token.id(), "node joined");
    Ok(Json(response))
}

/// Gives the holder of a certificate, a node or a user, a new one for a new key.
#[utoipa::path(post, path = "/v1/certificates/renew", request_body = RenewRequest, responses((status = 200, body = RenewResponse)))]
pub(crate) async fn renew(
    State(joining): State<Arc<Joining>>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<RenewRequest>,
) -> Answer<Json<RenewResponse>> {
    let (subject, lifetime) = match &peer.kind {
        PeerKind::Node(id) => (Subject::Node(*id), joining.lifetimes.node),
        PeerKind::User(name) => (Subject::User(name.clone()), joining.lifetimes.user),
        PeerKind::Server(_) | PeerKind::Anonymous => {
            return Err(Failure::new(Code::Forbidden, format!("{} does not renew here", peer.kind)));
        }
    };
    let signing = SigningRequest::parse(&request.csr).map_err(|error| unusable(&error))?;
    let issued = joining
        .authority
        .issue(&subject, &signing, now(&*joining.clock), lifetime)
        .map_err(|error| unusable(&error))?;
    joining.roster.renewed(&peer, &issued.peer).await?;
    tracing::info!(peer = %peer.kind, serial = issued.peer.serial, "certificate renewed");
    Ok(Json(RenewResponse { certificate: issued.certificate, ca: joining.authority.trust().ca.clone() }))
}

impl Joining {
    async fn admit(
        &self,
        request: &JoinRequest,
        token: TokenId,
        from: SocketAddr,
        now: Timestamp,
    ) -> Answer<JoinResponse> {
        let signing = SigningRequest::parse(&request.csr).map_err(|error| unusable(&error))?;
        let before = match request.rejoin {
            Some(id) => self.roster.node(id).await?.map(|name| (id, name)),
            None => None,
        };
        let again = before.is_some();
        let (node, name) = before.unwrap_or_else(|| (new_node_id(now), request.facts.name.clone()));
        let issued = self
            .authority
            .issue(&Subject::Node(node), &signing, now, self.lifetimes.node)
            .map_err(|error| unusable(&error))?;
        let facts = JoinFacts { name: name.clone(), ..request.facts.clone() };
        self.roster.admit(Admission { node, facts, from, certificate: issued.peer, token, again }).await?;
        Ok(JoinResponse {
            node,
            name,
            certificate: issued.certificate,
            ca: self.authority.trust().ca.clone(),
            servers: self.roster.servers(),
            server_time: now,
        })
    }
}

fn new_node_id(now: Timestamp) -> NodeId {
    let mut random = [0; 10];
    rand::rng().fill_bytes(&mut random);
    NodeId::from_parts(now.0, random)
}

fn unusable(error: &PkiError) -> Failure {
    match error {
        PkiError::Request(_) | PkiError::Name { .. } => Failure::invalid(wharf_process::errors::chain(error)),
        PkiError::Make(_) | PkiError::Damaged { .. } | PkiError::File { .. } => {
            Failure::internal("a certificate could not be issued", error)
        }
    }
}

/// Whether a token lets its holder in as `role` now.
///
/// # Errors
/// What is wrong with it, and how to get one that is right.
pub fn check_token(
    token: &JoinToken,
    record: Option<&TokenRecord>,
    role: TokenRole,
    now: Timestamp,
) -> Answer<()> {
    let refused = |message: String| {
        Err(Failure::new(Code::Token, message)
            .hint(format!("make a new one on a server: `wharf token create --role {role}`")))
    };
    let Some(record) = record else {
        return refused("the join token is not known here: it was rotated away or removed".to_owned());
    };
    if !same(&token.secret_hash(), &record.hash) {
        return refused("the join token is wrong".to_owned());
    }
    if record.role != role {
        return refused(format!("this join token lets a machine in as {}, not as {role}", record.role));
    }
    if record.expires_at <= now {
        let ago = Rough(now.since(record.expires_at));
        return refused(format!("the join token expired {ago} ago, at {}", Time(record.expires_at)));
    }
    Ok(())
}

/// Compares two hashes without saying by the time it takes how much of them is the same.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// Whether the clocks of the two machines agree well enough.
///
/// # Errors
/// If not, with both times.
pub fn check_clock(theirs: Timestamp, ours: Timestamp) -> Answer<()> {
    let (off, direction) =
        if theirs > ours { (theirs.since(ours), "ahead of") } else { (ours.since(theirs), "behind") };
    if off <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let message = format!(
        "the clock of the joining machine is {} {direction} the server's: {} there, {} here",
        Rough(off),
        Time(theirs),
        Time(ours)
    );
    Err(Failure::new(Code::Clock, message)
        .hint("run `timedatectl` on both machines; the one not synchronised is to be corrected, for example by installing chrony"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_273_445_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn refusal(answer: Answer<()>) -> (Code, String) {
        let Failure(problem) = answer.unwrap_err();
        assert!(problem.hint.is_some(), "{problem:?} says what to do");
        (problem.code, problem.message)
    }

    #[test]
    fn a_token_is_good_for_its_role_until_it_expires() {
        let authority = Authority::create("test", NOW, HOUR).unwrap();
        let (token, record) = new_token(&authority, TokenRole::Agent, "ada", NOW, HOUR);
        let check = |record: Option<&TokenRecord>, role, now| check_token(&token, record, role, now);
        assert!(check(Some(&record), TokenRole::Agent, NOW).is_ok());
        assert!(!format!("{record:?}").contains(&token.to_string()[40..72]), "the secret is not kept");
        let late = check(Some(&record), TokenRole::Agent, NOW + HOUR * 3);
        assert_eq!(
            refusal(late),
            (Code::Token, "the join token expired 2 hours ago, at 2026-11-21T16:04:05Z".to_owned())
        );
        assert_eq!(refusal(check(Some(&record), TokenRole::Server, NOW)).0, Code::Token);
        assert_eq!(refusal(check(None, TokenRole::Agent, NOW)).0, Code::Token);
        let (other, _) = new_token(&authority, TokenRole::Agent, "ada", NOW, HOUR);
        assert_eq!(
            refusal(check_token(&other, Some(&record), TokenRole::Agent, NOW)).1,
            "the join token is wrong"
        );
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_both_times() {
        assert!(check_clock(NOW, NOW + Duration::from_secs(29)).is_ok());
        assert!(check_clock(NOW + Duration::from_secs(29), NOW).is_ok());
        let (code, message) = refusal(check_clock(NOW + HOUR, NOW));
        assert_eq!(code, Code::Clock);
        assert_eq!(
            message,
            "the clock of the joining machine is 60 minutes ahead of the server's: \
             2026-11-21T16:04:05Z there, 2026-11-21T15:04:05Z here"
        );
        assert!(refusal(check_clock(NOW, NOW + HOUR)).1.contains("behind"));
    }
}
