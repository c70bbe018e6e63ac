//! Decides what has to change on a WireGuard device so that it has exactly the tunnels that were assigned.
//!
//! - Pure: what is wanted and what is there go in, changes come out. A tunnel that is right is not touched: its session lives on.
//! - A peer that is to change its key is there twice. Its addresses belong to the old key until the new one was heard of, and to
//!   the new one from then on: a device takes packets from an address only with the key that it belongs to.
//! - Where a peer is called is told once; after that it is where the peer last called from. Only silence lets us try the first place again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use wharf_model::{NodeId, PublicKey, WIREGUARD_KEEPALIVE, WireguardAssignment, WireguardPeer};

use super::keys::PrivateKey;

/// After so long without a handshake a tunnel does not work: with packets every [`WIREGUARD_KEEPALIVE`] seconds there is one every two minutes,
/// and a session is good for three.
pub(super) const SILENCE: Duration = Duration::from_secs(180);
/// How long a new tunnel may take to come about before that is a problem.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actual {
    pub(super) key: Option<PublicKey>,
    pub(super) port: u16,
    pub(super) peers: BTreeMap<PublicKey, ActualPeer>,
}

/// A peer of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ActualPeer {
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: u16,
    pub(super) addresses: BTreeSet<Ipv6Addr>,
    /// How long ago the last handshake was.
    pub(super) handshake: Option<Duration>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// What to change on a device, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Change {
    pub(super) key: Option<PrivateKey>,
    pub(super) port: Option<u16>,
    pub(super) peers: Vec<(PublicKey, PeerChange)>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What to change on one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerChange {
    Remove,
    /// Makes it if it is not there. What is absent stays.
    Set {
        endpoint: Option<SocketAddr>,
        keepalive: Option<u16>,
        addresses: Option<BTreeSet<Ipv6Addr>>,
    },
}

/// A peer as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    endpoint: Option<SocketAddr>,
    keepalive: u16,
    addresses: BTreeSet<Ipv6Addr>,
}

/// The key under which a node is reached now: its next one as soon as it was heard of.
pub(super) fn key_in_use(peer: &WireguardPeer, actual: &Actual) -> PublicKey {
    let heard = |key: &PublicKey| actual.peers.get(key).is_some_and(|peer| peer.received > 0);
    peer.next.filter(heard).unwrap_or(peer.key)
}

/// The changes after which the device is as `assignment` says, with `key` in force. `told` are the places where peers were last told to be; it
/// is brought up to date.
pub(super) fn plan(
    assignment: &WireguardAssignment,
    key: &PrivateKey,
    port: u16,
    actual: &Actual,
    told: &mut BTreeMap<PublicKey, SocketAddr>,
) -> Change {
    let wanted = wanted(assignment, actual);
    let mut change = Change {
        key: (actual.key != Some(key.public())).then(|| key.clone()),
        port: (actual.port != port).then_some(port),
        peers: Vec::new(),
    };
    let gone = actual.peers.keys().filter(|key| !wanted.contains_key(*key));
    change.peers.extend(gone.map(|key| (*key, PeerChange::Remove)));
    told.retain(|key, _| wanted.contains_key(key));
    let mut gaining = Vec::new();
    for (key, wanted) in &wanted {
        let there = actual.peers.get(key);
        let set = PeerChange::Set {
            endpoint: wanted.endpoint.filter(|place| is_to_be_told(there, told.get(key), *place)),
            keepalive: (there.map_or(0, |peer| peer.keepalive) != wanted.keepalive)
                .then_some(wanted.keepalive),
            addresses: there
                .is_none_or(|peer| peer.addresses != wanted.addresses)
                .then(|| wanted.addresses.clone()),
        };
        if let Some(endpoint) = wanted.endpoint {
            told.insert(*key, endpoint);
        }
        if set == (PeerChange::Set { endpoint: None, keepalive: None, addresses: None }) {
            continue;
        }
        // An address belongs to one key: who loses it comes before who gains it.
        let had = there.map(|peer| &peer.addresses);
        let gains = wanted.addresses.iter().any(|address| had.is_none_or(|had| !had.contains(address)));
        if gains { &mut gaining } else { &mut change.peers }.push((*key, set));
    }
    change.peers.extend(gaining);
    change
}

/// Whether a peer is to be called where the server says, and not where it last called from.
fn is_to_be_told(there: Option<&ActualPeer>, told: Option<&SocketAddr>, place: SocketAddr) -> bool {
    match there {
        None => true,
        Some(peer) if peer.endpoint == Some(place) => false,
        Some(peer) => {
            let moved = told.is_some_and(|told| *told != place);
            let silent = peer.handshake.is_none_or(|ago| ago > SILENCE);
            moved || peer.endpoint.is_none() || silent
        }
    }
}

fn wanted(assignment: &WireguardAssignment, actual: &Actual) -> BTreeMap<PublicKey, Wanted> {
    let mut relayed: BTreeMap<NodeId, BTreeSet<Ipv6Addr>> = BTreeMap::new();
    for peer in assignment.peers.values() {
        if let Some(via) = peer.via {
            relayed.entry(via).or_default().insert(peer.address);
        }
    }
    let mut wanted = BTreeMap::new();
    for (node, peer) in assignment.peers.iter().filter(|(_, peer)| peer.via.is_none()) {
        let mut addresses = relayed.remove(node).unwrap_or_default();
        addresses.insert(peer.address);
        let in_use = key_in_use(peer, actual);
        for key in [Some(peer.key), peer.next].into_iter().flatten() {
            // A key without addresses is only listened to.
            let (keepalive, addresses) = match key == in_use {
                true => (WIREGUARD_KEEPALIVE, std::mem::take(&mut addresses)),
                false => (0, BTreeSet::new()),
            };
            wanted.insert(key, Wanted { endpoint: peer.endpoint, keepalive, addresses });
        }
    }
    wanted
}

/// How one tunnel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The node at the other end.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Its address in the tunnels.
    pub address: Ipv6Addr,
    /// The key it is reached with.
    pub key: PublicKey,
    /// Where it was last heard of, or is called at.
    pub endpoint: Option<SocketAddr>,
    /// The node that passes packets on, where there is no tunnel of its own.
    pub via: Option<String>,
    /// How long ago the last handshake was.
    pub handshake: Option<Duration>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
    /// Why it does not work, and what to do about it.
    pub problem: Option<String>,
}

/// How the tunnels are, by node; `age` is how long they have been wanted.
pub(super) fn statuses(
    assignment: &WireguardAssignment,
    port: u16,
    actual: &Actual,
    age: &BTreeMap<NodeId, Duration>,
) -> Vec<TunnelStatus> {
    let status = |(node, peer): (&NodeId, &WireguardPeer)| {
        let hub = peer.via.and_then(|via| assignment.peers.get(&via));
        let key = key_in_use(hub.unwrap_or(peer), actual);
        let there = actual.peers.get(&key).cloned().unwrap_or_default();
        let age = age.get(node).copied().unwrap_or_default();
        let (sent, received) = if hub.is_some() { (0, 0) } else { (there.sent, there.received) };
        TunnelStatus {
            node: *node,
            name: peer.name.to_string(),
            address: peer.address,
            key: key_in_use(peer, actual),
            endpoint: there.endpoint.or(peer.endpoint),
            via: hub.map(|hub| hub.name.to_string()),
            handshake: there.handshake,
            received,
            sent,
            // What is wrong with the way through another node is told of that node.
            problem: if hub.is_some() { None } else { problem(peer, &there, port, age) },
        }
    };
    assignment.peers.iter().map(status).collect()
}

fn problem(peer: &WireguardPeer, there: &ActualPeer, port: u16, age: Duration) -> Option<String> {
    let since = match there.handshake {
        Some(ago) if ago <= SILENCE => return None,
        Some(ago) => format!("for {} s", ago.as_secs()),
        None if age <= PATIENCE => return None,
        None => "so far".to_owned(),
    };
    let name = &peer.name;
    Some(match (peer.endpoint, there.received) {
        (Some(endpoint), _) => format!(
            "tunnel to {name}: no WireGuard handshake {since}, called at {endpoint}: let UDP port {} in on both nodes, also in \
             firewalls and cloud security groups on the way",
            endpoint.port()
        ),
        (None, 0) => format!(
            "tunnel to {name}: it is behind address translation and has not called {since}: let UDP port {port} in on this \
             node, and UDP out of the network of {name}"
        ),
        (None, _) => format!(
            "tunnel to {name}: it is behind address translation and has not called {since}: is it cut off, or does a \
             firewall stop UDP to port {port} of this node?"
        ),
    })
}

#[cfg(test)]
mod tests {
    use uuid_of::node;
    use wharf_model::tunnel_address;

    use super::*;

    mod uuid_of {
        use wharf_model::NodeId;

        pub(super) fn node(n: u8) -> NodeId {
            NodeId::from_parts(1, [n; 10])
        }
    }

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }
    fn peer(n: u8) -> WireguardPeer {
        WireguardPeer {
            name: format!("n{n}").parse().unwrap(),
            address: tunnel_address(node(n)),
            key: key(n),
            next: None,
            endpoint: Some(format!("192.0.2.{n}:7421").parse().unwrap()),
            via: None,
        }
    }
    fn assignment(peers: &[(u8, WireguardPeer)]) -> WireguardAssignment {
        WireguardAssignment {
            address: tunnel_address(node(0)),
            promote: None,
            rotation: 0,
            relays: false,
            peers: peers.iter().map(|(n, peer)| (node(*n), peer.clone())).collect(),
            unreachable: vec![],
        }
    }
    fn own() -> PrivateKey {
        PrivateKey([9; 32])
    }

    /// Carries a change out on a pretended device.
    fn carry_out(change: &Change, actual: &mut Actual) {
        if let Some(key) = &change.key {
            actual.key = Some(key.public());
        }
        actual.port = change.port.unwrap_or(actual.port);
        for (key, change) in &change.peers {
            match change {
                PeerChange::Remove => drop(actual.peers.remove(key)),
                PeerChange::Set { endpoint, keepalive, addresses } => {
                    for address in addresses.iter().flatten() {
                        for peer in actual.peers.values_mut() {
                            peer.addresses.remove(address);
                        }
                    }
                    let peer = actual.peers.entry(*key).or_default();
                    peer.endpoint = endpoint.or(peer.endpoint);
                    peer.keepalive = keepalive.unwrap_or(peer.keepalive);
                    peer.addresses = addresses.clone().unwrap_or(std::mem::take(&mut peer.addresses));
                }
            }
        }
    }

    struct Device {
        actual: Actual,
        told: BTreeMap<PublicKey, SocketAddr>,
    }
    impl Device {
        fn new() -> Self {
            Self { actual: Actual::default(), told: BTreeMap::new() }
        }
        fn apply(&mut self, assignment: &WireguardAssignment) -> Change {
            let change = plan(assignment, &own(), 7421, &self.actual, &mut self.told);
            carry_out(&change, &mut self.actual);
            let again = plan(assignment, &own(), 7421, &self.actual, &mut self.told);
            assert_eq!(again, Change::default(), "what is right is not touched");
            change
        }
        fn hears(&mut self, n: u8, from: &str) {
            let peer = self.actual.peers.get_mut(&key(n)).unwrap();
            (peer.received, peer.handshake) = (148, Some(Duration::ZERO));
            peer.endpoint = Some(from.parse().unwrap());
        }
    }

    #[test]
    fn a_peer_is_called_where_it_last_called_from_until_it_is_silent_or_moves() {
        let mut device = Device::new();
        let one = assignment(&[(1, peer(1))]);
        device.apply(&one);
        device.hears(1, "198.51.100.7:40000");
        assert!(device.apply(&one).is_empty());
        device.actual.peers.get_mut(&key(1)).unwrap().handshake = Some(SILENCE * 2);
        assert_eq!(device.apply(&one).peers.len(), 1);
        assert_eq!(device.actual.peers[&key(1)].endpoint, peer(1).endpoint);
        device.hears(1, "198.51.100.7:40000");
        let mut moved = peer(1);
        moved.endpoint = Some("203.0.113.1:7421".parse().unwrap());
        device.apply(&assignment(&[(1, moved.clone())]));
        assert_eq!(device.actual.peers[&key(1)].endpoint, moved.endpoint);
        assert_eq!(device.apply(&assignment(&[])).peers, [(key(1), PeerChange::Remove)]);
    }

    #[test]
    fn addresses_move_to_a_next_key_when_it_is_heard_of() {
        let mut device = Device::new();
        let mut rotating = peer(1);
        rotating.next = Some(key(101));
        let rotating = assignment(&[(1, rotating)]);
        device.apply(&rotating);
        let of = |device: &Device, n| device.actual.peers[&key(n)].addresses.len();
        assert_eq!((of(&device, 1), of(&device, 101)), (1, 0), "accepted, and not used yet");
        assert_eq!(device.actual.peers[&key(101)].keepalive, 0, "nobody answers to it yet");
        device.hears(101, "192.0.2.1:7421");
        let change = device.apply(&rotating);
        assert_eq!((of(&device, 1), of(&device, 101)), (0, 1));
        assert_eq!(change.peers[0].0, key(1), "who loses the address comes first");
        let mut rotated = peer(1);
        rotated.key = key(101);
        let change = device.apply(&assignment(&[(1, rotated)]));
        assert_eq!(change.peers, [(key(1), PeerChange::Remove)], "the session of the new key is not touched");
    }

    #[test]
    fn who_cannot_be_called_is_reached_through_the_hub() {
        let mut device = Device::new();
        let mut far = peer(2);
        (far.endpoint, far.via) = (None, Some(node(1)));
        let far = assignment(&[(1, peer(1)), (2, far)]);
        device.apply(&far);
        assert_eq!(device.actual.peers.len(), 1);
        let through: Vec<_> = [1, 2].map(|n| tunnel_address(node(n))).into();
        assert!(device.actual.peers[&key(1)].addresses.iter().eq(&through));
        let statuses = statuses(&far, 7421, &device.actual, &BTreeMap::new());
        assert_eq!(statuses[1].via.as_deref(), Some("n1"));
    }

    #[test]
    fn a_tunnel_without_handshake_says_which_port_to_open_where() {
        let one = assignment(&[(1, peer(1))]);
        let mut device = Device::new();
        device.apply(&one);
        let said = |device: &Device, seconds| {
            let age = BTreeMap::from([(node(1), Duration::from_secs(seconds))]);
            statuses(&one, 7421, &device.actual, &age)[0].problem.clone()
        };
        assert_eq!(said(&device, 5), None, "it has just begun");
        let text = said(&device, 30).expect("it does not work");
        assert!(
            text.contains("n1") && text.contains("192.0.2.1:7421") && text.contains("UDP port 7421"),
            "{text}"
        );
        device.hears(1, "192.0.2.1:7421");
        assert_eq!(said(&device, 30), None);
    }
}
