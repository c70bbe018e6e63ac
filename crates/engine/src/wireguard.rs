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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wharf_model::*;

    use super::*;
    use crate::{Assigner, fixtures::*};

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    /// Three nodes with keys on one network of the backend, as every network of the app is.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(3);
        cluster.up(&app(&[("web", replicas(service("web"), 3))]));
        cluster.settle();
        let networks: Vec<NetworkRecord> =
            cluster.world.networks().map(|network| NetworkRecord::clone(network)).collect();
        for network in networks {
            cluster.world.insert_network(NetworkRecord { backend: Backend::Wireguard, ..network });
        }
        for n in 1..=3 {
            says(&mut cluster, n, |_| {});
        }
        cluster
    }

    /// A node reports, with a key of its own.
    fn says(cluster: &mut Cluster, n: u8, change: impl FnOnce(&mut NodeFacts)) {
        let mut status = cluster.world.node(node_id(n)).unwrap().status.clone().unwrap();
        let facts = status.facts.as_mut().unwrap();
        facts.wireguard.get_or_insert_with(|| WireguardFacts {
            key: key(n),
            rotation: 0,
            next: None,
            accepts: BTreeSet::new(),
            endpoint: None,
            carrier: None,
        });
        change(facts);
        cluster.world.set_node_status(node_id(n), status);
    }

    fn tunnels(cluster: &Cluster, n: u8) -> WireguardAssignment {
        Assigner::new(&cluster.world).for_node(node_id(n)).wireguard.expect("it has tunnels")
    }

    fn behind(cluster: &mut Cluster, n: u8, router: u8) {
        let router = Ipv4Addr::new(203, 0, 113, router).into();
        says(cluster, n, |facts| facts.seen_from = Some(router));
    }

    fn endpoints(cluster: &Cluster, n: u8) -> Vec<(Option<String>, Option<NodeId>)> {
        let peers = tunnels(cluster, n).peers;
        peers.values().map(|peer| (peer.endpoint.map(|endpoint| endpoint.to_string()), peer.via)).collect()
    }

    fn at(text: &str) -> (Option<String>, Option<NodeId>) {
        (Some(text.to_owned()), None)
    }

    #[test]
    fn nodes_on_such_a_network_have_tunnels_with_each_other_and_their_networks_run_inside() {
        let mut cluster = cluster();
        assert_eq!(endpoints(&cluster, 1), [at("10.0.0.2:7421"), at("10.0.0.3:7421")]);
        let set = Assigner::new(&cluster.world).for_node(node_id(1));
        let network = set.networks.values().next().unwrap();
        assert!(!network.peers.is_empty());
        let inside = [2, 3].map(|n| IpAddr::from(tunnel_address(node_id(n))));
        assert!(network.peers.iter().all(|peer| inside.contains(&peer.node)), "{:?}", network.peers);
        // Who is given up is nobody's peer.
        let mut status = cluster.world.node(node_id(3)).unwrap().status.clone().unwrap();
        status.state = NodeState::Down;
        cluster.world.set_node_status(node_id(3), status);
        assert_eq!(endpoints(&cluster, 1), [at("10.0.0.2:7421")]);
        // Without such a network there are no tunnels.
        let plain = Cluster::of(3);
        assert_eq!(Assigner::new(&plain.world).for_node(node_id(1)).wireguard, None);
    }

    #[test]
    fn a_node_without_a_key_is_told_of_and_has_no_tunnels_yet() {
        let mut cluster = cluster();
        says(&mut cluster, 2, |facts| facts.wireguard = None);
        let own = tunnels(&cluster, 1);
        assert_eq!(own.peers.len(), 1);
        assert!(own.unreachable[0].contains("n2 has no WireGuard key"), "{:?}", own.unreachable);
        assert!(tunnels(&cluster, 2).peers.is_empty());
    }

    #[test]
    fn who_is_behind_a_router_calls_and_two_behind_different_ones_meet_at_a_third() {
        let mut cluster = cluster();
        behind(&mut cluster, 2, 1);
        assert_eq!(endpoints(&cluster, 1), [(None, None), at("10.0.0.3:7421")], "n2 calls");
        assert_eq!(endpoints(&cluster, 2), [at("10.0.0.1:7421"), at("10.0.0.3:7421")]);
        behind(&mut cluster, 3, 1);
        assert_eq!(endpoints(&cluster, 3)[1], at("10.0.0.2:7421"), "behind the same router");
        behind(&mut cluster, 3, 2);
        assert_eq!(endpoints(&cluster, 3), [at("10.0.0.1:7421"), (None, Some(node_id(1)))]);
        assert!(tunnels(&cluster, 1).relays && !tunnels(&cluster, 2).relays);
        // A person knows better.
        let forwarded = "203.0.113.1:9000".parse().unwrap();
        says(&mut cluster, 2, |facts| facts.wireguard.as_mut().unwrap().endpoint = Some(forwarded));
        assert_eq!(endpoints(&cluster, 3)[1], at("203.0.113.1:9000"));
        // Nobody can be called at all.
        says(&mut cluster, 2, |facts| facts.wireguard.as_mut().unwrap().endpoint = None);
        behind(&mut cluster, 1, 3);
        let own = tunnels(&cluster, 1);
        assert!(own.peers.is_empty() && own.unreachable[0].contains("--tunnel-endpoint"), "{own:?}");
    }

    #[test]
    fn a_machine_that_calls_from_another_of_its_addresses_is_not_behind_a_router() {
        let mut cluster = cluster();
        behind(&mut cluster, 2, 1);
        let near =
            HostSubnet { subnet: "203.0.113.0/24".parse().unwrap(), interface: "eth1".into(), router: None };
        says(&mut cluster, 2, |facts| facts.subnets.push(near));
        assert_eq!(endpoints(&cluster, 1)[0], at("10.0.0.2:7421"));
        // Nor is one beside the server.
        says(&mut cluster, 3, |facts| facts.seen_from = Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(endpoints(&cluster, 1)[1], at("10.0.0.3:7421"));
    }

    #[test]
    fn a_next_key_comes_into_force_when_all_others_accept_it_one_node_at_a_time() {
        let mut cluster = cluster();
        for n in [1, 2] {
            says(&mut cluster, n, |facts| facts.wireguard.as_mut().unwrap().next = Some(key(100 + n)));
        }
        let promoted = |cluster: &Cluster| [1, 2, 3].map(|n| tunnels(cluster, n).promote);
        assert_eq!(tunnels(&cluster, 3).peers[&node_id(1)].next, Some(key(101)), "the others are told");
        assert_eq!(promoted(&cluster), [None; 3]);
        let accepts = |cluster: &mut Cluster, n, keys: &[u8]| {
            let keys = keys.iter().map(|n| key(*n)).collect();
            says(cluster, n, |facts| facts.wireguard.as_mut().unwrap().accepts = keys);
        };
        accepts(&mut cluster, 2, &[101]);
        assert_eq!(promoted(&cluster), [None; 3], "n3 does not accept it yet");
        accepts(&mut cluster, 1, &[102]);
        accepts(&mut cluster, 3, &[101, 102]);
        assert_eq!(promoted(&cluster), [Some(key(101)), None, None], "n2 waits for its turn");
        says(&mut cluster, 1, |facts| {
            let own = facts.wireguard.as_mut().unwrap();
            (own.key, own.next) = (key(101), None);
        });
        assert_eq!(promoted(&cluster), [None, Some(key(102)), None]);
        // One that is away may come back with its tunnels, so it is waited for; one that is given up has none.
        let mut status = cluster.world.node(node_id(3)).unwrap().status.clone().unwrap();
        accepts(&mut cluster, 3, &[]);
        for (state, expected) in [(NodeState::Unreachable, None), (NodeState::Down, Some(key(102)))] {
            status.state = state;
            status.facts.as_mut().unwrap().wireguard.as_mut().unwrap().accepts.clear();
            cluster.world.set_node_status(node_id(3), status.clone());
            assert_eq!(tunnels(&cluster, 2).promote, expected);
        }
    }
}
