//! Decides the tunnels between nodes: who has one with whom, who calls whom, and when a new key comes into force.
//!
//! - Every node on a network of [`Backend::Wireguard`] has a tunnel to every other such node that is not given up, and to no other.
//! - A node behind address translation cannot be called: it calls. Two of them behind different routers reach each other through a
//!   node that both can call.
//! - A key comes into force only after every node with a tunnel to its node has said that it accepts it, and one at a time in the whole
//!   cluster: two that changed at once would each call the other's old key.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use wharf_model::{
    Backend, NodeFacts, NodeId, NodeName, NodeState, PublicKey, WIREGUARD_PORT, WireguardAssignment,
    WireguardFacts, WireguardPeer, tunnel_address,
};

use crate::World;

/// The tunnels of the cluster, worked out once for all nodes.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    members: BTreeMap<NodeId, Member>,
    /// Members without a key, and so without tunnels.
    keyless: BTreeMap<NodeId, NodeName>,
    /// Who passes packets on between those who cannot call each other.
    hub: Option<NodeId>,
    /// Whose next key is to come into force now.
    promoted: Option<NodeId>,
}

#[derive(Debug)]
struct Member {
    name: NodeName,
    ready: bool,
    rotation: u32,
    place: Place,
    facts: WireguardFacts,
}

/// Where a node is to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// From anywhere.
    Open(SocketAddr),
    /// At its own address only from behind the same router.
    Behind { router: IpAddr, inside: SocketAddr },
}

/// How one node gets to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It calls.
    Call(SocketAddr),
    /// It waits to be called.
    Wait,
    /// Through the hub.
    Relay,
}

impl Place {
    fn of(facts: &NodeFacts, endpoint: Option<SocketAddr>) -> Self {
        let inside = SocketAddr::new(facts.address, WIREGUARD_PORT);
        // A machine with several addresses may call from another one than it is called at.
        let is_near = |seen: &IpAddr| {
            facts.subnets.iter().any(|near| near.router.is_none() && near.subnet.contains(seen))
        };
        let seen = facts.seen_from.filter(|seen| {
            *seen != facts.address && !seen.is_loopback() && !seen.is_unspecified() && !is_near(seen)
        });
        match (endpoint, seen) {
            (Some(endpoint), _) => Self::Open(endpoint),
            (None, Some(router)) => Self::Behind { router, inside },
            (None, None) => Self::Open(inside),
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// How somebody here gets to `other`.
    fn way(self, other: Self) -> Way {
        match (self, other) {
            (_, Self::Open(endpoint)) => Way::Call(endpoint),
            (Self::Open(_), Self::Behind { .. }) => Way::Wait,
            (Self::Behind { router: ours, .. }, Self::Behind { router, inside }) => {
                if ours == router {
                    Way::Call(inside)
                } else {
                    Way::Relay
                }
            }
        }
    }
}

impl Mesh {
    pub(crate) fn of(world: &World) -> Self {
        let networks = world.networks().filter(|network| network.backend == Backend::Wireguard);
        let wanted: BTreeSet<NodeId> =
            networks.flat_map(|network| network.gateways.keys().copied()).collect();
        let mut mesh = Self::default();
        if wanted.is_empty() {
            return mesh;
        }
        let mut others = BTreeMap::new();
        for node in world.nodes() {
            let (id, state) = (node.record.id, node.state());
            if matches!(state, NodeState::Down | NodeState::Joining) {
                continue;
            }
            let Some(facts) = node.facts() else { continue };
            let Some(tunnels) = &facts.wireguard else {
                if wanted.contains(&id) {
                    mesh.keyless.insert(id, node.record.name.clone());
                }
                continue;
            };
            let member = Member {
                name: node.record.name.clone(),
                ready: state == NodeState::Ready,
                rotation: node.record.key_rotation,
                place: Place::of(facts, tunnels.endpoint),
                facts: tunnels.clone(),
            };
            if wanted.contains(&id) { &mut mesh.members } else { &mut others }.insert(id, member);
        }
        mesh.choose_hub(others);
        let promoted = mesh.due().next();
        mesh.promoted = promoted;
        mesh
    }

    /// The hub is the first open member; a node that has no such network itself lends itself if none of the members is open.
    fn choose_hub(&mut self, others: BTreeMap<NodeId, Member>) {
        let ways = |a: &Member| self.members.values().any(|b| a.place.way(b.place) == Way::Relay);
        if !self.members.values().any(ways) {
            return;
        }
        let open = |member: &Member| member.place.is_open();
        let found = self.members.iter().find(|(_, member)| open(member)).map(|(id, _)| *id);
        self.hub = found.or_else(|| {
            let (id, member) = others.into_iter().find(|(_, member)| open(member))?;
            self.members.insert(id, member);
            Some(id)
        });
    }

    /// The members whose next key is accepted by all that have a tunnel to them.
    fn due(&self) -> impl Iterator<Item = NodeId> {
        let accepted = |id: NodeId, member: &Member, next: PublicKey| {
            let mut others = self.members.iter().filter(|(other, _)| **other != id);
            others.all(|(_, other)| {
                member.place.way(other.place) == Way::Relay || other.facts.accepts.contains(&next)
            })
        };
        let due = self.members.iter().filter(move |(id, member)| {
            member.ready && member.facts.next.is_some_and(|next| accepted(**id, member, next))
        });
        due.map(|(id, _)| *id)
    }

    /// The tunnels of one node; none if it has none.
    pub(crate) fn assignment(&self, node: NodeId) -> Option<WireguardAssignment> {
        let address = tunnel_address(node);
        if self.keyless.contains_key(&node) {
            // Its agent makes a key when it is told that it needs one.
            let (peers, unreachable) = (BTreeMap::new(), Vec::new());
            return Some(WireguardAssignment {
                address,
                promote: None,
                rotation: 0,
                relays: false,
                peers,
                unreachable,
            });
        }
        let own = self.members.get(&node)?;
        let no_key = |name: &NodeName| {
            format!(
                "{name} has no WireGuard key: its agent is too old for this server, or has not reported yet"
            )
        };
        let mut unreachable: Vec<_> = self.keyless.values().map(no_key).collect();
        let mut peers = BTreeMap::new();
        for (id, other) in self.members.iter().filter(|(id, _)| **id != node) {
            let (endpoint, via) = match (own.place.way(other.place), self.hub) {
                (Way::Call(endpoint), _) => (Some(endpoint), None),
                (Way::Wait, _) => (None, None),
                (Way::Relay, Some(hub)) => (None, Some(hub)),
                (Way::Relay, None) => {
                    unreachable.push(format!(
                        "{} and this node are behind address translation, each behind another router, and no node can be \
                         called by both: forward UDP port {WIREGUARD_PORT} to one of them and start its agent with \
                         `--tunnel-endpoint`",
                        other.name
                    ));
                    continue;
                }
            };
            peers.insert(
                *id,
                WireguardPeer {
                    name: other.name.clone(),
                    address: tunnel_address(*id),
                    key: other.facts.key,
                    next: other.facts.next,
                    endpoint,
                    via,
                },
            );
        }
        let promote = if self.promoted == Some(node) { own.facts.next } else { None };
        let relays = self.hub == Some(node);
        Some(WireguardAssignment { address, promote, rotation: own.rotation, relays, peers, unreachable })
    }
}
