//! Decides what has to change so that the kernel has exactly the networks that were assigned.
//!
//! - Pure: what is wanted and what is there go in, operations come out, in the order in which to do them.
//! - What is right is not touched; two plans in a row, the first one carried out, leave the second empty.
//! - Only devices with our names and of our kinds are ever changed, and only entries on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use wharf_model::{NetworkAssignment, Peer, ipv6_for, mac_for};

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// The bridge of the network with this VXLAN identifier: at most 8 of the 15 characters a device's name may have.
pub(super) fn bridge_name(vni: u32) -> String {
    format!("wh{vni:x}")
}

/// The VXLAN port of that bridge.
pub(super) fn port_name(vni: u32) -> String {
    format!("wv{vni:x}")
}

/// The identifier in the name of a bridge or port of ours; none if the name is not one that we give.
pub(super) fn vni_of(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let vni = u32::from_str_radix(digits, 16).ok()?;
    (format!("{vni:x}") == digits && (1..1 << 24).contains(&vni)).then_some(vni)
}

/// What the networks run over on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Underlay {
    /// The node's address.
    pub(super) node: IpAddr,
    /// UDP port of the encapsulated packets.
    pub(super) vxlan_port: u16,
    /// The largest packet inside a network.
    pub(super) mtu: u32,
}

/// A network as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedNetwork {
    /// The bridge's address.
    pub(super) gateway: Ipv4Addr,
    /// Length of the network's prefix.
    pub(super) prefix: u8,
    /// Addresses that live on other nodes, their hardware addresses, and the nodes.
    pub(super) peers: BTreeMap<Ipv4Addr, (Mac, IpAddr)>,
    /// The bridge's IPv6 address and the length of that prefix, if the network has one.
    pub(super) gateway6: Option<(Ipv6Addr, u8)>,
    /// The IPv6 addresses of those that live on other nodes, by their IPv4 addresses.
    pub(super) addresses6: BTreeMap<Ipv4Addr, Ipv6Addr>,
}

impl From<&NetworkAssignment> for WantedNetwork {
    fn from(network: &NetworkAssignment) -> Self {
        let mac = |peer: &Peer| peer.mac.map_or_else(|| mac_for(peer.address), |mac| mac.0);
        let peers = network.peers.iter().map(|peer| (peer.address, (mac(peer), peer.node))).collect();
        let (mut gateway6, mut addresses6) = Default::default();
        if let Some(subnet) = network.subnet6 {
            gateway6 = Some((ipv6_for(subnet, network.gateway), subnet.prefix_len()));
            let address = |peer: &Peer| peer.address6.unwrap_or_else(|| ipv6_for(subnet, peer.address));
            addresses6 = network.peers.iter().map(|peer| (peer.address, address(peer))).collect();
        }
        let prefix = network.subnet.prefix_len();
        Self { gateway: network.gateway, prefix, peers, gateway6, addresses6 }
    }
}

impl WantedNetwork {
    /// What the bridge has.
    fn bridge_addresses(&self) -> BTreeSet<(IpAddr, u8)> {
        let gateway6 = self.gateway6.map(|(address, prefix)| (address.into(), prefix));
        [(self.gateway.into(), self.prefix)].into_iter().chain(gateway6).collect()
    }

    /// Whose hardware address each address is that lives on another node.
    pub(super) fn neighbours(&self) -> BTreeMap<IpAddr, Mac> {
        let first = self.peers.iter().map(|(address, (mac, _))| (IpAddr::V4(*address), *mac));
        let second = self.addresses6.iter().filter_map(|(address, address6)| {
            let (mac, _) = self.peers.get(address)?;
            Some((IpAddr::V6(*address6), *mac))
        });
        first.chain(second).collect()
    }
}

/// What is there, by VXLAN identifier.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actual {
    pub(super) bridges: BTreeMap<u32, Bridge>,
    pub(super) ports: BTreeMap<u32, Port>,
}

/// A bridge of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bridge {
    pub(super) index: u32,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// But for those that IPv6 gives every link.
    pub(super) addresses: BTreeSet<(IpAddr, u8)>,
    /// Whether the kernel gives it no IPv6 address.
    pub(super) without_ipv6: bool,
    /// Whether something other than our VXLAN port is plugged in: a container.
    pub(super) in_use: bool,
}

/// A VXLAN port of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// The bridge it is plugged into.
    pub(super) master: Option<u32>,
    /// What cannot be changed after it was made.
    pub(super) make: PortMake,
    /// Whether the bridge learns addresses from it.
    pub(super) bridge_learns: bool,
    /// Which node answers for a hardware address.
    pub(super) forwarding: BTreeMap<Mac, BTreeSet<IpAddr>>,
    /// Hardware addresses that the bridge sends to this port.
    pub(super) switching: BTreeSet<Mac>,
    /// Whose hardware address an address is: ARP and neighbour discovery are answered from it.
    pub(super) neighbours: BTreeMap<IpAddr, Mac>,
}

/// What a VXLAN device was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortMake {
    pub(super) vni: u32,
    pub(super) local: Option<IpAddr>,
    pub(super) vxlan_port: u16,
    pub(super) learning: bool,
    pub(super) proxy: bool,
}

impl PortMake {
    /// As every VXLAN port of ours is made.
    pub(super) fn of(vni: u32, underlay: &Underlay) -> Self {
        let (local, vxlan_port) = (Some(underlay.node), underlay.vxlan_port);
        Self { vni, local, vxlan_port, learning: false, proxy: true }
    }
}

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    AddBridge { mac: Mac, mtu: u32 },
    SetBridge { mac: Mac, mtu: u32 },
    EnableIpv6,
    AddAddress { address: IpAddr, prefix: u8 },
    RemoveAddress { address: IpAddr, prefix: u8 },
    RemovePort,
    AddPort,
    SetPort { mtu: u32 },
    StopForwarding { mac: Mac, node: IpAddr },
    StopSwitching { mac: Mac },
    StopResolving { address: IpAddr },
    Forward { mac: Mac, node: IpAddr },
    Switch { mac: Mac },
    Resolve { address: IpAddr, mac: Mac },
}

impl Operation {
    /// What was not as it should be, for people who are told how often.
    pub(super) const fn fault(&self) -> &'static str {
        match self {
            Self::AddBridge { .. } => "bridge missing",
            Self::SetBridge { .. } => "bridge set up wrongly",
            Self::EnableIpv6 => "IPv6 off",
            Self::AddAddress { .. } => "address of the bridge missing",
            Self::RemoveAddress { .. } => "foreign address on the bridge",
            Self::RemovePort => "VXLAN port made wrongly",
            Self::AddPort => "VXLAN port missing",
            Self::SetPort { .. } => "VXLAN port set up wrongly",
            Self::StopForwarding { .. } => "wrong forwarding entry",
            Self::StopSwitching { .. } => "wrong entry of the bridge",
            Self::StopResolving { .. } => "wrong neighbour entry",
            Self::Forward { .. } => "forwarding entry missing",
            Self::Switch { .. } => "entry of the bridge missing",
            Self::Resolve { .. } => "neighbour entry missing",
        }
    }
}

/// What has to be done, by network, in order.
pub(super) type Plan = BTreeMap<u32, Vec<Operation>>;

/// The operations after which `actual` is as `wanted`. Bridges of networks that are no longer wanted stay: see
/// [`unused_bridges`].
pub(super) fn plan(wanted: &BTreeMap<u32, WantedNetwork>, underlay: &Underlay, actual: &Actual) -> Plan {
    let mut plan = Plan::new();
    for vni in actual.ports.keys().filter(|vni| !wanted.contains_key(vni)) {
        plan.insert(*vni, vec![Operation::RemovePort]);
    }
    for (vni, network) in wanted {
        let mut operations = Vec::new();
        let bridge = actual.bridges.get(vni);
        plan_bridge(network, underlay, bridge, &mut operations);
        plan_port(*vni, network, underlay, bridge, actual.ports.get(vni), &mut operations);
        if !operations.is_empty() {
            plan.insert(*vni, operations);
        }
    }
    plan
}

fn plan_bridge(
    network: &WantedNetwork,
    underlay: &Underlay,
    bridge: Option<&Bridge>,
    out: &mut Vec<Operation>,
) {
    let (mac, mtu) = (mac_for(network.gateway), underlay.mtu);
    let wanted = network.bridge_addresses();
    match bridge {
        None => out.push(Operation::AddBridge { mac, mtu }),
        Some(bridge) if bridge.mac != mac || bridge.mtu != mtu || !bridge.up => {
            out.push(Operation::SetBridge { mac, mtu });
        }
        Some(_) => {}
    }
    let none = BTreeSet::new();
    let there = bridge.map_or(&none, |bridge| &bridge.addresses);
    for (address, prefix) in there.difference(&wanted).copied() {
        out.push(Operation::RemoveAddress { address, prefix });
    }
    // A new bridge is as the node's default says: what is there already costs one write.
    if network.gateway6.is_some() && bridge.is_none_or(|bridge| bridge.without_ipv6) {
        out.push(Operation::EnableIpv6);
    }
    for (address, prefix) in wanted.difference(there).copied() {
        out.push(Operation::AddAddress { address, prefix });
    }
}

fn plan_port(
    vni: u32,
    network: &WantedNetwork,
    underlay: &Underlay,
    bridge: Option<&Bridge>,
    port: Option<&Port>,
    out: &mut Vec<Operation>,
) {
    let usable = port.filter(|port| port.make == PortMake::of(vni, underlay));
    if port.is_some() && usable.is_none() {
        out.push(Operation::RemovePort);
    }
    let plugged = |port: &Port| port.master.is_some() && port.master == bridge.map(|bridge| bridge.index);
    if usable.is_none() {
        out.push(Operation::AddPort);
    }
    if !usable.is_some_and(|p| plugged(p) && p.up && p.mtu == underlay.mtu && !p.bridge_learns) {
        out.push(Operation::SetPort { mtu: underlay.mtu });
    }
    // Taking it out of one bridge and putting it into another forgets what the first one knew.
    let switching = usable.filter(|port| plugged(port)).map(|port| &port.switching);
    plan_entries(network, usable, switching, out);
}

/// Entries that are wrong go first: what they name may have moved to this node.
fn plan_entries(
    network: &WantedNetwork,
    port: Option<&Port>,
    switching: Option<&BTreeSet<Mac>>,
    out: &mut Vec<Operation>,
) {
    let wanted: BTreeMap<Mac, IpAddr> = network.peers.values().copied().collect();
    let neighbours = network.neighbours();
    if let Some(port) = port {
        for (mac, nodes) in &port.forwarding {
            let right = wanted.get(mac).copied();
            // A single wrong one is replaced in one step, so that no packet falls between.
            let replaced = right.is_some() && nodes.len() == 1;
            let wrong = nodes.iter().copied().filter(|node| Some(*node) != right && !replaced);
            out.extend(wrong.map(|node| Operation::StopForwarding { mac: *mac, node }));
        }
        // One with a wrong hardware address is replaced below.
        let stale = port.neighbours.keys().filter(|address| !neighbours.contains_key(*address));
        out.extend(stale.map(|address| Operation::StopResolving { address: *address }));
    }
    for mac in switching.into_iter().flatten().filter(|mac| !wanted.contains_key(*mac)) {
        out.push(Operation::StopSwitching { mac: *mac });
    }
    for (mac, node) in wanted {
        if !port.and_then(|port| port.forwarding.get(&mac)).is_some_and(|nodes| nodes.contains(&node)) {
            out.push(Operation::Forward { mac, node });
        }
        if !switching.is_some_and(|macs| macs.contains(&mac)) {
            out.push(Operation::Switch { mac });
        }
    }
    for (address, mac) in neighbours {
        if port.and_then(|port| port.neighbours.get(&address)) != Some(&mac) {
            out.push(Operation::Resolve { address, mac });
        }
    }
}

/// Bridges of networks that are not wanted, into which nothing is plugged any more.
pub(super) fn unused_bridges(wanted: &BTreeMap<u32, WantedNetwork>, actual: &Actual) -> Vec<u32> {
    let unused = |(vni, bridge): &(&u32, &Bridge)| !wanted.contains_key(vni) && !bridge.in_use;
    actual.bridges.iter().filter(unused).map(|(vni, _)| *vni).collect()
}
