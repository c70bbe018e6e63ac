//! Tokens, nodes and servers as the store keeps them: what joining reads and writes.

use std::sync::Arc;

use async_trait::async_trait;
use wharf_api::{
    transport::{
        Peer, PeerKind,
        wire::{ServerEntry, Servers},
    },
    v1::Code,
};
use wharf_model::{
    Availability, EventKind, Generation, NodeId, NodeName, NodeRecord, NodeState, NodeStatus, Roles, Subject,
    TokenId,
};
use wharf_store::Batch;

use crate::{
    http::{
        self,
        failure::{Answer, Failure},
    },
    join::{Admission, Roster, name_taken},
    records::{Key, NodeNameRecord, Record, RevokedRecord, TokenRecord, encode},
    state::Inner,
};

/// How often a record is read and written anew because somebody else wrote it meanwhile.
const ATTEMPTS: usize = 10;

/// The roster kept in the store.
pub struct Stored {
    /// What handlers have.
    pub shared: http::Shared,
}

impl Stored {
    /// Writes what `batch` makes of the state, again if somebody else was faster.
    async fn write(&self, batch: impl Fn(&Inner) -> Answer<Batch> + Send + Sync) -> Answer<()> {
        self.shared.change(ATTEMPTS, |inner| Ok(((), Some(batch(inner)?)))).await
    }
}

#[async_trait]
impl Roster for Stored {
    async fn token(&self, id: TokenId) -> Answer<Option<TokenRecord>> {
        let known = self.shared.state.read().tokens.get(&id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        // Made a moment ago, by another server or by this one while it started: the watch may not have brought it yet.
        let key = Key::Token(id);
        let snapshot = self.shared.state.backend().read(&key.to_string()).await?;
        Ok(match snapshot.entries.get(&key.to_string()) {
            Some(entry) => match Record::decode(&key, &entry.value)? {
                Record::Token(token) => Some(token),
                _ => unreachable!("the key decides which record is read"),
            },
            None => None,
        })
    }

    async fn node(&self, id: NodeId) -> Answer<Option<NodeName>> {
        Ok(self.shared.state.read().world.node(id).map(|node| node.record.name.clone()))
    }

    async fn admit(&self, admission: Admission) -> Answer<()> {
        let now = self.shared.now();
        self.write(|inner| {
            let other = inner.world.nodes().find(|node| node.record.name == admission.facts.name);
            if other.is_some_and(|node| node.record.id != admission.node) {
                return Err(name_taken(&admission.facts.name));
            }
            let key = Key::Node(admission.node);
            let before = inner.world.node(admission.node).map(|node| &node.record);
            if before.is_none() && admission.again {
                return Err(Failure::new(
                    Code::Conflict,
                    format!("node {} was removed while it joined again", admission.node),
                )
                .hint("let it join as a new node: `wharf agent join --force` once more"));
            }
            let mut batch = inner.expecting(Batch::new(), &key);
            let record = match before {
                Some(before) => {
                    let serial = Key::Revoked(before.certificate.clone());
                    let revoked =
                        RevokedRecord { whose: format!("node {}, which joined again", before.name), at: now };
                    batch = batch.put(serial.to_string(), encode(&serial, &revoked));
                    NodeRecord { certificate: admission.certificate.serial.clone(), ..before.clone() }
                }
                None => NodeRecord {
                    id: admission.node,
                    name: admission.facts.name.clone(),
                    generation: Generation(1),
                    availability: Availability::Active,
                    labels: std::collections::BTreeMap::new(),
                    roles: Roles { server: false, gateway: true },
                    joined_at: now,
                    certificate: admission.certificate.serial.clone(),
                    available_since: None,
                    key_rotation: 0,
                    disk_marks: Default::default(),
                    scheduling: Default::default(),
                },
            };
            batch = batch.put(key.to_string(), encode(&key, &record));
            if before.is_none() {
                // Refused if another machine joins by this name at the same time.
                let name = Key::NodeName(record.name.clone());
                batch = inner.expecting(batch, &name);
                if inner.revision_of(&name).is_some() {
                    return Err(name_taken(&record.name));
                }
                batch = batch.put(name.to_string(), encode(&name, &NodeNameRecord { node: record.id }));
                let key = Key::NodeStatus(record.id);
                let reason = "it has joined and not connected yet".into();
                let status = NodeStatus { reason, ..NodeStatus::new(NodeState::Joining, now) };
                batch = batch.put(key.to_string(), encode(&key, &status));
            }
            let subject = Subject {
                node: Some(record.id),
                node_name: Some(record.name.to_string()),
                ..Subject::default()
            };
            let again = if admission.again { " again" } else { "" };
            let message = format!("node {} has joined{again} from {}", record.name, admission.from.ip());
            Ok(self.shared.with_event(batch, EventKind::Node, subject, message, None))
        })
        .await
    }

    async fn renewed(&self, old: &Peer, new: &Peer) -> Answer<()> {
        let PeerKind::Node(node) = old.kind else {
            // Users' certificates are revoked by serial number, and nothing else is kept of them.
            return Ok(());
        };
        self.write(|inner| {
            let record = inner.world.node(node).map(|node| &node.record);
            let record =
                record.ok_or_else(|| Failure::not_found(format!("{node} is no node of this cluster")))?;
            let key = Key::Node(node);
            let record = NodeRecord { certificate: new.serial.clone(), ..record.clone() };
            Ok(inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &record)))
        })
        .await
    }

    fn servers(&self) -> Servers {
        self.shared.state.read().servers_list()
    }
}

impl Inner {
    /// Where the servers answer, for nodes.
    pub fn servers_list(&self) -> Servers {
        let entry = |server: &crate::records::ServerRecord| ServerEntry {
            id: server.id,
            addresses: server.addresses.clone(),
        };
        Servers { version: self.servers_version, servers: self.servers.values().map(entry).collect() }
    }

    /// Whether a node with this certificate is no part of the cluster, or no longer by this certificate.
    pub fn refuses_node(&self, node: NodeId, serial: &str) -> bool {
        self.revoked.contains_key(serial) || self.world.node(node).is_none()
    }

    /// Whether a peer with a good certificate is refused all the same.
    pub fn is_revoked(&self, peer: &Peer) -> bool {
        if self.revoked.contains_key(&peer.serial) {
            return true;
        }
        match &peer.kind {
            PeerKind::Node(node) => self.refuses_node(*node, &peer.serial),
            PeerKind::Server(_) | PeerKind::User(_) | PeerKind::Anonymous => false,
        }
    }
}

/// The question TLS asks in each handshake.
pub fn revocation(state: &Arc<crate::state::State>) -> wharf_api::transport::tls::IsRevoked {
    let state = Arc::clone(state);
    Arc::new(move |peer| state.read().is_revoked(peer))
}
