//! Networks that span nodes, and the addresses on them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{AppKey, NetworkId, NetworkName, NetworkSpec, NodeId};

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
    /// The address of each node's own bridge, the gateway of its containers. A node keeps it once it has one.
    pub gateways: BTreeMap<NodeId, Ipv4Addr>,
}

/// The MAC address that belongs to an address: locally administered, so that an address which moves keeps its neighbours' caches right.
/// Docker Engine before 25 takes no MAC address for a second network and derives one from the address: by this same rule.
pub const fn mac_for(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}
