//! Networks that span nodes, and the addresses on them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{AppKey, NetworkId, NetworkName, NetworkSpec, NodeId, NodeName, ServiceKey};

/// The range from which the cluster takes its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    /// All of it.
    pub range: Ipv4Net,
    /// Length of the prefix of each network taken from it.
    pub prefix: u8,
}
impl Default for AddressPool {
    /// 1,024 networks of 4,094 addresses, away from what Docker and most sites use.
    fn default() -> Self {
        let range = Ipv4Net::new_assert(Ipv4Addr::new(10, 192, 0, 0), 10);
        Self { range, prefix: 20 }
    }
}

/// How a network's packets travel between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Ethernet frames in UDP packets (RFC 7348): works wherever nodes reach each other.
    #[default]
    Vxlan,
    /// As they are: each node has ranges of the subnet, and routes lead to them.
    Routed,
    /// As [`Backend::Vxlan`], inside WireGuard tunnels between the nodes: encrypted, and through NAT.
    Wireguard,
    /// Containers are machines of the physical segment, or of a VLAN on it.
    Macvlan,
    /// Containers have the network of their node.
    Host,
}
impl Backend {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Vxlan, Self::Routed, Self::Wireguard, Self::Macvlan, Self::Host];

    /// Whether a network can have it that nothing else is said of, so that it can be a cluster's default. Networks change between these in
    /// place: addresses stay as they are.
    pub const fn is_general(self) -> bool {
        match self {
            Self::Vxlan | Self::Routed | Self::Wireguard => true,
            Self::Macvlan | Self::Host => false,
        }
    }

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Routed => "routed",
            Self::Wireguard => "wireguard",
            Self::Macvlan => "macvlan",
            Self::Host => "host",
        }
    }
}
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|backend| backend.as_str() == text);
        found.ok_or_else(|| UnknownBackend(text.to_owned()))
    }
}

/// Not the name of a [`Backend`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network backend; there are vxlan, routed, wireguard, macvlan and host")]
pub struct UnknownBackend(pub String);

/// A network of an app, as it exists in the cluster. Written by the controllers of the leader only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its identifier.
    pub id: NetworkId,
    /// Whose it is.
    pub app: AppKey,
    /// Its key in the Compose file.
    pub name: NetworkName,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// VXLAN network identifier, unique in the cluster, 1 to 16,777,215.
    pub vni: u32,
    /// Its addresses: one subnet for the whole cluster.
    pub subnet: Ipv4Net,
    /// The address of each node's own bridge, the gateway of its containers; with [`Backend::Macvlan`], of each node's own end on the
    /// segment. A node keeps it once it has one.
    pub gateways: BTreeMap<NodeId, Ipv4Addr>,
    /// How its packets travel.
    #[serde(default)]
    pub backend: Backend,
    /// With [`Backend::Routed`]: which node has which part of the subnet. Parts do not overlap. A task whose address is in no part of its
    /// node, because it asked for it or was there before the network was routed, has a route of its own, and so has no entry here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<Ipv4Net, NodeId>,
    /// Its IPv6 subnet, if it has one; who has which address of it: [`ipv6_for`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The virtual addresses of services with [`crate::EndpointMode::Vip`], and whose each is. No interface has them. A service keeps its
    /// own for as long as it asks for one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vips: BTreeMap<Ipv4Addr, ServiceKey>,
    /// Another record of the same app and name takes its place: nobody joins it any more, and it goes once nobody is on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

/// What holds for networks whose files say nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkDefaults {
    /// How packets travel: one of [`Backend::is_general`].
    pub backend: Backend,
    /// Who programs routes outside the nodes for [`Backend::Routed`]; none where nodes share a segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<RouteProgram>,
}

/// A program that makes routes outside the nodes: in a cloud's route table, or on a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteProgram {
    /// The program and what comes before its verb, `sync`. It runs on the server that leads.
    pub command: Vec<String>,
    /// The most routes it can make.
    pub limit: u32,
}

/// What a [`RouteProgram`] reads from its standard input, as JSON: every route there should be, and no other of the cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteSync {
    /// In order of their destinations; no two have the same.
    pub routes: Vec<WantedRoute>,
}

/// A route to a part of a routed network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WantedRoute {
    /// Where it leads.
    pub destination: Ipv4Net,
    /// The address of the node that has it.
    pub next_hop: IpAddr,
    /// That node's name.
    pub node: NodeName,
}

/// What a [`RouteProgram`] answers on its standard output, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteSynced {
    /// How many of the routes exist now.
    pub routes_programmed: u32,
    /// Why not all of them do, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The MAC address that belongs to an address: locally administered, so that an address which moves keeps its neighbours' caches right.
/// Docker Engine before 25 takes no MAC address for a second network and derives one from the address: by this same rule.
pub const fn mac_for(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The IPv6 address of whoever has `address` on the same network, unless it asked for another: the subnet's, with `address` as its last
/// 32 bits. Unique because `address` is. Subnets longer than 96 bits have no room for it.
pub fn ipv6_for(subnet: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.trunc().addr()) | u128::from(u32::from(address)))
}

/// Who has which IPv6 address of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Addresses {
    /// All of them.
    pub subnet: Ipv6Net,
    /// Those of tasks that asked for one, by their IPv4 addresses; everybody else's is [`ipv6_for`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub asked: BTreeMap<Ipv4Addr, Ipv6Addr>,
}
impl Ipv6Addresses {
    /// Those of a network on which nobody asked for one.
    pub const fn new(subnet: Ipv6Net) -> Self {
        Self { subnet, asked: BTreeMap::new() }
    }

    /// The IPv6 address of whoever has `address`.
    pub fn of(&self, address: Ipv4Addr) -> Ipv6Addr {
        self.asked.get(&address).copied().unwrap_or_else(|| ipv6_for(self.subnet, address))
    }

    /// The IPv4 address of whoever would have `address`; none if nobody can.
    pub fn whose(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        if let Some((asker, _)) = self.asked.iter().find(|(_, asked)| **asked == address) {
            return Some(*asker);
        }
        let [.., a, b, c, d] = address.octets();
        let follows = Ipv4Addr::new(a, b, c, d);
        (self.subnet.contains(&address) && self.of(follows) == address).then_some(follows)
    }
}

#[cfg(test)]
mod ipv6_tests {
    use super::*;

    #[test]
    fn an_address_leads_to_its_owner_and_back() {
        let subnet = "fd00:1:2:3::/64".parse().unwrap();
        let (web, db) = (Ipv4Addr::new(10, 192, 0, 7), Ipv4Addr::new(10, 192, 0, 8));
        let own: Ipv6Addr = "fd00:1:2:3::cafe".parse().unwrap();
        let addresses = Ipv6Addresses { subnet, asked: BTreeMap::from([(db, own)]) };
        assert_eq!(addresses.of(web).to_string(), "fd00:1:2:3::ac0:7");
        assert_eq!(addresses.of(db), own);
        for address in [web, db] {
            assert_eq!(addresses.whose(addresses.of(address)), Some(address));
        }
        assert_eq!(addresses.whose(ipv6_for(subnet, db)), None, "who asked for another has not this one");
        for other in ["fd00:1:2:4::ac0:7", "fd00:1:2:3:1::ac0:7", "::1"] {
            assert_eq!(addresses.whose(other.parse().unwrap()), None, "{other}");
        }
    }
}
