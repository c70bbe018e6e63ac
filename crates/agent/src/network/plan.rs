//! Decides what has to change so that the kernel has exactly the networks that were assigned.
//!
//! - Pure: what is wanted and what is there go in, operations come out, in the order in which to do them.
//! - What is right is not touched; two plans in a row, the first one carried out, leave the second empty.
//! - Only devices with our names and of our kinds are ever changed, and only entries on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use wharf_model::{Backend, NetworkAssignment, Peer, ipv6_for, mac_for};

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

/// What a network runs over on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Underlay {
    /// The node's address there: of its uplink, or of its end of the tunnels.
    pub(super) node: IpAddr,
    /// The interface that has the address.
    pub(super) device: u32,
    /// UDP port of the encapsulated packets.
    pub(super) vxlan_port: u16,
    /// The largest packet inside a network.
    pub(super) mtu: u32,
}

/// What each network runs over, by VXLAN identifier. A network whose underlay is not there is left as it is.
pub(super) type Underlays = BTreeMap<u32, Underlay>;

/// Where packets for another node go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hop {
    /// The node itself, or the router before it; unspecified for what is on this node.
    pub(super) via: IpAddr,
    /// The interface towards it.
    pub(super) device: u32,
}

/// A route to a part of a network that is another node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) hop: Hop,
    /// What the node itself calls from, so that answers find it and that it counts as one of the network.
    pub(super) source: Ipv4Addr,
}

/// A network as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedNetwork {
    /// How its packets travel.
    pub(super) backend: Backend,
    /// No way out of the cluster.
    pub(super) internal: bool,
    /// Whether Docker's rules must see what its containers send to each other: they may not.
    pub(super) filtered: bool,
    /// The largest packet its containers were told, where they shall not use the largest that is possible.
    pub(super) container_mtu: Option<u32>,
    /// The bridge's address.
    pub(super) gateway: Ipv4Addr,
    /// Length of the network's prefix.
    pub(super) prefix: u8,
    /// With [`Backend::Macvlan`]: the interface whose segment it is.
    pub(super) parent: Option<String>,
    /// With [`Backend::Routed`]: which node has which part.
    pub(super) parts: BTreeMap<Ipv4Net, IpAddr>,
    /// With [`Backend::Routed`]: what is on this node although it is in a part of another one.
    pub(super) own: BTreeSet<Ipv4Net>,
    /// Addresses that live on other nodes, their hardware addresses, and the nodes.
    pub(super) peers: BTreeMap<Ipv4Addr, (Mac, IpAddr)>,
    /// The bridge's IPv6 address and the length of that prefix, if the network has one.
    pub(super) gateway6: Option<(Ipv6Addr, u8)>,
    /// The IPv6 addresses of those that live on other nodes, by their IPv4 addresses.
    pub(super) addresses6: BTreeMap<Ipv4Addr, Ipv6Addr>,
    /// Whether what leaves it for the world has the node's address.
    pub(super) masquerade: bool,
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
        let option = |name: &str| network.driver_opts.get(name).map(String::as_str);
        Self {
            backend: network.backend,
            internal: network.internal,
            filtered: option("com.docker.network.bridge.enable_icc").is_some_and(|value| value == "false"),
            container_mtu: option("com.docker.network.driver.mtu").and_then(|mtu| mtu.parse().ok()),
            gateway: network.gateway,
            prefix: network.subnet.prefix_len(),
            parent: network.parent.clone(),
            parts: parts(network),
            own: own(network),
            peers,
            gateway6,
            addresses6,
            masquerade: option("com.docker.network.bridge.enable_ip_masquerade") != Some("false"),
        }
    }
}

/// Which other node has which part of a routed network: whole ranges, and single addresses that are in no range of their node.
fn parts(network: &NetworkAssignment) -> BTreeMap<Ipv4Net, IpAddr> {
    if network.backend != Backend::Routed {
        return BTreeMap::new();
    }
    let ranges = || network.remote_blocks.iter();
    let in_range = |peer: &Peer| ranges().any(|it| it.node == peer.node && it.block.contains(&peer.address));
    let single = network.peers.iter().filter(|peer| !in_range(peer));
    let single = single.map(|peer| (Ipv4Net::from(peer.address), peer.node));
    ranges().map(|it| (it.block.trunc(), it.node)).chain(single).collect()
}

/// What of a routed network is on this node inside of another node's range: it would be sought there.
fn own(network: &NetworkAssignment) -> BTreeSet<Ipv4Net> {
    let is_inside = |block: &&Ipv4Net| {
        network.remote_blocks.iter().any(|it| it.block != **block && it.block.contains(*block))
    };
    let routed = network.blocks.iter().filter(|_| network.backend == Backend::Routed);
    routed.filter(is_inside).map(Ipv4Net::trunc).collect()
}

impl WantedNetwork {
    /// All of its addresses.
    pub(super) fn subnet(&self) -> Ipv4Net {
        Ipv4Net::new(self.gateway, self.prefix).map_or(self.gateway.into(), |net| net.trunc())
    }

    /// Whether it is a bridge on this node.
    pub(super) const fn has_bridge(&self) -> bool {
        match self.backend {
            Backend::Vxlan | Backend::Routed | Backend::Wireguard => true,
            Backend::Macvlan | Backend::Host => false,
        }
    }

    /// Whether packets to its other parts travel by routes.
    fn is_routed(&self) -> bool {
        self.backend == Backend::Routed
    }

    /// What containers could hear from the port that it had, of what is elsewhere still: it is reached by way of the bridge from now on.
    fn routed_from(&self, port: &Port) -> BTreeMap<Ipv4Addr, Mac> {
        let mac = mac_for(self.gateway);
        let longest = |nets: &mut dyn Iterator<Item = &Ipv4Net>, address: Ipv4Addr| {
            nets.filter(|net| net.contains(&address)).map(Ipv4Net::prefix_len).max()
        };
        let is_elsewhere = |address: &Ipv4Addr| {
            longest(&mut self.parts.keys(), *address) > longest(&mut self.own.iter(), *address)
        };
        let heard = port.neighbours.keys().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        heard.filter(is_elsewhere).map(|address| (address, mac)).collect()
    }

    /// Whether it has a VXLAN port.
    const fn has_port(&self) -> bool {
        match self.backend {
            Backend::Vxlan | Backend::Wireguard => true,
            Backend::Routed | Backend::Macvlan | Backend::Host => false,
        }
    }

    /// The routes that lead to its other parts, and to what of them is on this node's bridge, once there is one. A node that cannot be
    /// reached at all has none.
    pub(super) fn routes(
        &self,
        hops: &BTreeMap<IpAddr, Hop>,
        bridge: Option<u32>,
    ) -> BTreeMap<Ipv4Net, Route> {
        let route = |(part, node): (&Ipv4Net, &IpAddr)| {
            Some((*part, Route { hop: *hops.get(node)?, source: self.gateway }))
        };
        let own = |(to, device): (&Ipv4Net, u32)| {
            let hop = Hop { via: Ipv4Addr::UNSPECIFIED.into(), device };
            (*to, Route { hop, source: self.gateway })
        };
        let own = bridge.into_iter().flat_map(|bridge| self.own.iter().map(move |to| (to, bridge))).map(own);
        self.parts.iter().filter_map(route).chain(own).collect()
    }

    /// What the bridge has.
    pub(super) fn bridge_addresses(&self) -> BTreeSet<(IpAddr, u8)> {
        let gateway6 = self.gateway6.map(|(address, prefix)| (address.into(), prefix));
        [(self.gateway.into(), self.prefix)].into_iter().chain(gateway6).collect()
    }

    /// Whose hardware address this is, if it lives on another node.
    pub(super) fn neighbour(&self, address: IpAddr) -> Option<Mac> {
        match address {
            IpAddr::V4(address) => self.peers.get(&address).map(|(mac, _)| *mac),
            IpAddr::V6(_) => self.neighbours().get(&address).copied(),
        }
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
    /// Routes that we made.
    pub(super) routes: BTreeMap<Ipv4Net, BTreeSet<Route>>,
    /// Where packets for other nodes go first, of those that were asked about.
    pub(super) hops: BTreeMap<IpAddr, Hop>,
    /// Interfaces whose packets are passed on to others.
    pub(super) forwarding: BTreeSet<u32>,
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
    /// Whether ARP is answered for what is reached through other interfaces, and at once.
    pub(super) answers_for_others: bool,
    /// What is plugged in other than our VXLAN port, containers, and the largest packet of each.
    pub(super) members: BTreeMap<u32, u32>,
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
    /// Whether the kernel keeps no IPv6 neighbours of it.
    pub(super) without_ipv6: bool,
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
    EnablePortIpv6,
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
    SetMember { index: u32, mtu: u32 },
    AnswerForOthers,
    PassOn { device: u32 },
    StopRoute { to: Ipv4Net, route: Route },
    Route { to: Ipv4Net, route: Route },
    Announce { addresses: BTreeMap<Ipv4Addr, Mac> },
}

impl Operation {
    /// What was not as it should be, for people who are told how often.
    pub(super) const fn fault(&self) -> &'static str {
        match self {
            Self::AddBridge { .. } => "bridge missing",
            Self::SetBridge { .. } => "bridge set up wrongly",
            Self::EnableIpv6 | Self::EnablePortIpv6 => "IPv6 off",
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
            Self::SetMember { .. } => "container's packet size wrong",
            Self::AnswerForOthers => "proxy ARP off",
            Self::PassOn { .. } => "IP forwarding off",
            Self::StopRoute { .. } => "wrong route",
            Self::Route { .. } => "route missing",
            Self::Announce { .. } => "containers know other hardware addresses",
        }
    }
}

/// What has to be done, by network, in order.
pub(super) type Plan = BTreeMap<u32, Vec<Operation>>;

/// The operations after which `actual` is as `wanted`. Bridges of networks that are no longer wanted stay: see
/// [`unused_bridges`].
pub(super) fn plan(wanted: &BTreeMap<u32, WantedNetwork>, underlays: &Underlays, actual: &Actual) -> Plan {
    let mut plan = Plan::new();
    let has_port = |vni: &u32| wanted.get(vni).is_some_and(WantedNetwork::has_port);
    // One in whose place routes come goes after them.
    let moves =
        |vni: &u32| underlays.contains_key(vni) && wanted.get(vni).is_some_and(WantedNetwork::is_routed);
    for vni in actual.ports.keys().filter(|vni| !has_port(vni) && !moves(vni)) {
        plan.insert(*vni, vec![Operation::RemovePort]);
    }
    plan_stale_routes(wanted, actual, &mut plan);
    for (vni, network) in wanted.iter().filter(|(_, network)| network.has_bridge()) {
        let Some(underlay) = underlays.get(vni) else { continue };
        let mut operations = Vec::new();
        let bridge = actual.bridges.get(vni);
        plan_bridge(network, underlay, bridge, &mut operations);
        if network.has_port() {
            plan_port(*vni, network, underlay, bridge, actual.ports.get(vni), &mut operations);
            if !actual.ports.contains_key(vni) && bridge.is_some_and(|bridge| bridge.answers_for_others) {
                let addresses = network.peers.iter().map(|(address, (mac, _))| (*address, *mac)).collect();
                plan_announcement(addresses, bridge, &mut operations);
            }
        }
        if network.is_routed() {
            plan_routes(network, underlay, bridge, actual, &mut operations);
            if let Some(port) = actual.ports.get(vni) {
                operations.push(Operation::RemovePort);
                plan_announcement(network.routed_from(port), bridge, &mut operations);
            }
        }
        if !operations.is_empty() {
            plan.entry(*vni).or_default().extend(operations);
        }
    }
    plan
}

/// Routes of ours that no network has: told with the network they are in, else with none (0).
fn plan_stale_routes(wanted: &BTreeMap<u32, WantedNetwork>, actual: &Actual, plan: &mut Plan) {
    let routed = || wanted.iter().filter(|(_, network)| network.backend == Backend::Routed);
    for (to, there) in &actual.routes {
        let of = routed().find(|(_, network)| network.subnet().contains(to));
        let bridge = of.and_then(|(vni, _)| actual.bridges.get(vni)).map(|bridge| bridge.index);
        let right = of.and_then(|(_, network)| network.routes(&actual.hops, bridge).get(to).copied());
        // A single wrong one is replaced in one step.
        let replaced = right.is_some() && there.len() == 1;
        let wrong = there.iter().filter(|route| Some(**route) != right && !replaced);
        let wrong: Vec<_> = wrong.map(|route| Operation::StopRoute { to: *to, route: *route }).collect();
        if !wrong.is_empty() {
            plan.entry(of.map_or(0, |(vni, _)| *vni)).or_default().extend(wrong);
        }
    }
}

/// What containers may have heard of these addresses is true no longer.
fn plan_announcement(addresses: BTreeMap<Ipv4Addr, Mac>, bridge: Option<&Bridge>, out: &mut Vec<Operation>) {
    if !addresses.is_empty() && bridge.is_some_and(|bridge| !bridge.members.is_empty()) {
        out.push(Operation::Announce { addresses });
    }
}

fn plan_routes(
    network: &WantedNetwork,
    underlay: &Underlay,
    bridge: Option<&Bridge>,
    actual: &Actual,
    out: &mut Vec<Operation>,
) {
    if !bridge.is_some_and(|bridge| bridge.answers_for_others && actual.forwarding.contains(&bridge.index)) {
        out.push(Operation::AnswerForOthers);
    }
    let routes = network.routes(&actual.hops, bridge.map(|bridge| bridge.index));
    let devices: BTreeSet<u32> =
        routes.values().map(|route| route.hop.device).chain([underlay.device]).collect();
    let closed = devices.difference(&actual.forwarding);
    out.extend(closed.map(|device| Operation::PassOn { device: *device }));
    for (to, route) in routes {
        if !actual.routes.get(&to).is_some_and(|there| there.contains(&route)) {
            out.push(Operation::Route { to, route });
        }
    }
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
    let mtu = network.container_mtu.map_or(mtu, |wanted| wanted.min(mtu));
    let members = bridge.into_iter().flat_map(|bridge| &bridge.members);
    let wrong = members.filter(|(_, there)| **there != mtu);
    out.extend(wrong.map(|(index, _)| Operation::SetMember { index: *index, mtu }));
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
    if network.gateway6.is_some() && usable.is_none_or(|port| port.without_ipv6) {
        out.push(Operation::EnablePortIpv6);
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
    let wanted = |vni: &u32| wanted.get(vni).is_some_and(WantedNetwork::has_bridge);
    let unused = |(vni, bridge): &(&u32, &Bridge)| !wanted(vni) && bridge.members.is_empty();
    actual.bridges.iter().filter(unused).map(|(vni, _)| *vni).collect()
}
