//! Decides what has to change so that the kernel has exactly the networks that were assigned.
//!
//! - Pure: what is wanted and what is there go in, operations come out, in the order in which to do them.
//! - What is right is not touched; two plans in a row, the first one carried out, leave the second empty.
//! - Only devices with our names and of our kinds are ever changed, and only entries on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use wharf_model::{NetworkAssignment, Peer, mac_for};

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
}

impl From<&NetworkAssignment> for WantedNetwork {
    fn from(network: &NetworkAssignment) -> Self {
        let mac = |peer: &Peer| peer.mac.map_or_else(|| mac_for(peer.address), |mac| mac.0);
        let peers = network.peers.iter().map(|peer| (peer.address, (mac(peer), peer.node))).collect();
        Self { gateway: network.gateway, prefix: network.subnet.prefix_len(), peers }
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
    pub(super) addresses: BTreeSet<(Ipv4Addr, u8)>,
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
    /// Whose hardware address an address is: ARP is answered from it.
    pub(super) neighbours: BTreeMap<Ipv4Addr, Mac>,
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
    AddAddress { address: Ipv4Addr, prefix: u8 },
    RemoveAddress { address: Ipv4Addr, prefix: u8 },
    RemovePort,
    AddPort,
    SetPort { mtu: u32 },
    StopForwarding { mac: Mac, node: IpAddr },
    StopSwitching { mac: Mac },
    StopResolving { address: Ipv4Addr },
    Forward { mac: Mac, node: IpAddr },
    Switch { mac: Mac },
    Resolve { address: Ipv4Addr, mac: Mac },
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
    let address = (network.gateway, network.prefix);
    match bridge {
        None => out.push(Operation::AddBridge { mac, mtu }),
        Some(bridge) if bridge.mac != mac || bridge.mtu != mtu || !bridge.up => {
            out.push(Operation::SetBridge { mac, mtu });
        }
        Some(_) => {}
    }
    let none = BTreeSet::new();
    let there = bridge.map_or(&none, |bridge| &bridge.addresses);
    for (address, prefix) in there.iter().copied().filter(|there| *there != address) {
        out.push(Operation::RemoveAddress { address, prefix });
    }
    if !there.contains(&address) {
        let (address, prefix) = address;
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
    let wanted: BTreeMap<Mac, (Ipv4Addr, IpAddr)> =
        network.peers.iter().map(|(address, (mac, node))| (*mac, (*address, *node))).collect();
    if let Some(port) = port {
        for (mac, nodes) in &port.forwarding {
            let right = wanted.get(mac).map(|(_, node)| *node);
            // A single wrong one is replaced in one step, so that no packet falls between.
            let replaced = right.is_some() && nodes.len() == 1;
            let wrong = nodes.iter().copied().filter(|node| Some(*node) != right && !replaced);
            out.extend(wrong.map(|node| Operation::StopForwarding { mac: *mac, node }));
        }
        // One with a wrong hardware address is replaced below.
        let stale = port.neighbours.keys().filter(|address| !network.peers.contains_key(*address));
        out.extend(stale.map(|address| Operation::StopResolving { address: *address }));
    }
    for mac in switching.into_iter().flatten().filter(|mac| !wanted.contains_key(*mac)) {
        out.push(Operation::StopSwitching { mac: *mac });
    }
    for (mac, (address, node)) in &wanted {
        let (mac, address, node) = (*mac, *address, *node);
        if !port.and_then(|port| port.forwarding.get(&mac)).is_some_and(|nodes| nodes.contains(&node)) {
            out.push(Operation::Forward { mac, node });
        }
        if !switching.is_some_and(|macs| macs.contains(&mac)) {
            out.push(Operation::Switch { mac });
        }
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
