//! Explains the path of a packet: what each node on its way has, step by step, and where that is not as it should be.
//!
//! - Pure: tables and what kernels have in, steps out.
//! - The steps are the same whether they are right or wrong, so that two explanations can be compared: a step that was wrong before a
//!   repair and is right after it was mended.

use std::net::{IpAddr, Ipv4Addr};

use wharf_api::{
    transport::diagnose::{Device, PathFacts, Route},
    v1::Hop,
};
use wharf_model::{Backend, Mac, NetworkAssignment};

/// One end of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// What it is called: a task, or a node.
    pub(crate) name: String,
    /// The node it is on.
    pub(crate) node: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    /// Whether it is a task; else it is the node's own bridge.
    pub(crate) is_task: bool,
    /// Why names do not lead to it, or other things worth knowing.
    pub(crate) remark: Option<(String, String)>,
}

/// A path between two ends on one network.
#[derive(Debug, Clone)]
pub(crate) struct Path<'a> {
    pub(crate) backend: Backend,
    pub(crate) vni: u32,
    pub(crate) from: End,
    pub(crate) to: End,
    /// What each end's node should have.
    pub(crate) tables: [&'a NetworkAssignment; 2],
    /// What each end's node has; why it could not be read.
    pub(crate) facts: [Result<&'a PathFacts, &'a str>; 2],
}

/// What may be wrong with a step, and what to do about it.
type Fault = Option<(String, String)>;

const REPAIR: &str =
    "the node's repair puts it right within seconds; if it stays, `journalctl -u wharf-agent` there says why";
const RENEW: &str = "a new container gets new interfaces: `wharf restart` its service";

fn hop(node: &str, step: String, fault: Fault) -> Hop {
    let (problem, remedy) = match fault {
        Some((problem, remedy)) => (Some(problem), Some(remedy)),
        None => (None, None),
    };
    let state = if problem.is_some() { "broken" } else { "ok" };
    Hop { node: node.to_owned(), step, state: state.to_owned(), problem, remedy }
}

fn fault(problem: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Some((problem.into(), remedy.into()))
}

/// The steps of a packet from one end to the other, and the way back.
pub(crate) fn explain(path: &Path<'_>) -> Vec<Hop> {
    let mut hops = Vec::new();
    for end in [&path.from, &path.to] {
        if let Some((problem, remedy)) = &end.remark {
            let warning = hop(&end.node, end.name.clone(), fault(problem.clone(), remedy.clone()));
            hops.push(Hop { state: "warning".into(), ..warning });
        }
    }
    leave(path, &mut hops);
    let is_local = path.from.node == path.to.node;
    match path.backend {
        Backend::Vxlan | Backend::Wireguard if !is_local => {
            tunnel(path, &mut hops);
            hops.push(arrive_by_tunnel(path));
        }
        Backend::Routed if !is_local => hops.push(routed(path, Way::There)),
        Backend::Vxlan | Backend::Wireguard | Backend::Routed => {}
        Backend::Macvlan => {
            hops.push(hop(&path.from.node, "the physical segment that both are on carries it".into(), None));
        }
        Backend::Host => hops.push(hop(&path.from.node, "the nodes' own network carries it".into(), None)),
    }
    arrive(path, &mut hops);
    match path.backend {
        Backend::Vxlan | Backend::Wireguard if !is_local => hops.push(forward(path, Way::Back)),
        Backend::Routed if !is_local => hops.push(routed(path, Way::Back)),
        _ => {}
    }
    hops
}

/// Which way is looked at: the index of the sending end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

impl Path<'_> {
    fn sender(&self, way: Way) -> (usize, &End, &End) {
        match way {
            Way::There => (0, &self.from, &self.to),
            Way::Back => (1, &self.to, &self.from),
        }
    }

    fn bridge(&self) -> String {
        format!("wh{:x}", self.vni)
    }

    fn port(&self) -> String {
        format!("wv{:x}", self.vni)
    }

    /// Where a node's tables say an address is.
    fn node_of(&self, index: usize, address: Ipv4Addr) -> Option<IpAddr> {
        self.tables[index].peers.iter().find(|peer| peer.address == address).map(|peer| peer.node)
    }
}

/// A step about a node that could not be looked at.
fn unseen(node: &str, step: String, reason: &str) -> Hop {
    hop(
        node,
        step,
        fault(
            format!("{node} could not be asked: {reason}"),
            "is its agent running and connected? `wharf node ls` shows it",
        ),
    )
}

/// Out of the container and into the bridge.
fn leave(path: &Path<'_>, hops: &mut Vec<Hop>) {
    let (end, bridge) = (&path.from, path.bridge());
    let facts = match path.facts[0] {
        Ok(facts) => facts,
        Err(reason) => return hops.push(unseen(&end.node, format!("{} sends it", end.name), reason)),
    };
    if !end.is_task {
        let route = facts.route.as_ref();
        let step = format!("{} sends it as {} by {}", end.name, end.address, described(route));
        let wrong = path.backend == Backend::Vxlan && route.is_some_and(|route| route.device != bridge);
        let fault = match wrong {
            true => fault(
                format!("its route to {} does not lead to {bridge}", path.to.address),
                "another route of the machine is in the way: remove it, or give the network another subnet",
            ),
            false => device_fault(facts.bridge.as_ref(), &bridge),
        };
        return hops.push(hop(&end.node, step, fault));
    }
    hops.push(container(path, 0, "sends it"));
    if !matches!(path.backend, Backend::Macvlan | Backend::Host) {
        hops.push(plug(path, 0));
    }
}

fn described(route: Option<&Route>) -> String {
    let Some(route) = route else { return "an unknown route".to_owned() };
    if let Some(reason) = &route.unreachable {
        return format!("no route ({reason})");
    }
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    format!("{} (MTU {}){via}", route.device, route.mtu)
}

/// What is wrong with a device that should be there and up.
fn device_fault(device: Option<&Device>, name: &str) -> Fault {
    match device {
        None => fault(format!("there is no {name}"), REPAIR),
        Some(device) if !device.up => {
            fault(format!("{name} is down"), format!("`ip link set {name} up`; {REPAIR}"))
        }
        Some(_) => None,
    }
}

/// A container's own interface and route.
fn container(path: &Path<'_>, index: usize, does: &str) -> Hop {
    let (end, other) = if index == 0 { (&path.from, &path.to) } else { (&path.to, &path.from) };
    let facts = match path.facts[index] {
        Ok(facts) => facts,
        Err(reason) => return unseen(&end.node, format!("{} {does}", end.name), reason),
    };
    let Some(inside) = &facts.inside else {
        let reason = facts.inside_error.clone().unwrap_or_else(|| "its namespace was not looked at".into());
        return hop(
            &end.node,
            format!("{} {does}", end.name),
            fault(reason, "does its container run? `wharf ps` says what it waits for"),
        );
    };
    let Some(device) = &inside.device else {
        let problem = format!("none of its interfaces has {}", end.address);
        return hop(&end.node, format!("{} {does}", end.name), fault(problem, RENEW));
    };
    let step = format!("{} {does} by its {} ({}, MTU {})", end.name, device.name, end.address, device.mtu);
    let route = inside.route.as_ref();
    let wrong = match (device.up, route) {
        (false, _) => fault(format!("{} in the container is down", device.name), RENEW),
        (true, Some(Route { unreachable: Some(reason), .. })) => {
            fault(format!("the container has no route to {}: {reason}", other.address), RENEW)
        }
        (true, Some(route)) if index == 0 && route.device != device.name => fault(
            format!("the container's route to {} leads to {}", other.address, route.device),
            "a network of the service overlaps this one, or the container set a route of its own",
        ),
        (true, Some(_) | None) => None,
    };
    hop(&end.node, step, wrong)
}

/// The other end of a container's interface, in the bridge.
fn plug(path: &Path<'_>, index: usize) -> Hop {
    let (end, bridge) = (if index == 0 { &path.from } else { &path.to }, path.bridge());
    let facts = match path.facts[index] {
        Ok(facts) => facts,
        Err(reason) => return unseen(&end.node, format!("the bridge {bridge}"), reason),
    };
    let outside = facts.inside.as_ref().and_then(|inside| inside.outside.as_ref());
    let name = outside.map_or("its other end", |device| device.name.as_str());
    let mtu = facts.bridge.as_ref().map_or(0, |device| device.mtu);
    let step = format!("{name} plugs {} into the bridge {bridge} (MTU {mtu})", end.name);
    let wrong = device_fault(facts.bridge.as_ref(), &bridge).or_else(|| match outside {
        None => fault("the container's interface has no other end on the node", RENEW),
        Some(device) if !device.up => {
            fault(format!("{} is down", device.name), format!("`ip link set {} up`", device.name))
        }
        Some(device) if device.master.as_deref() != Some(bridge.as_str()) => fault(
            format!("{} is not plugged into {bridge}", device.name),
            format!("`ip link set {} master {bridge}`, or {RENEW}", device.name),
        ),
        Some(_) => None,
    });
    hop(&end.node, step, wrong)
}

/// From the bridge into the tunnel and over the nodes' own network.
fn tunnel(path: &Path<'_>, hops: &mut Vec<Hop>) {
    hops.push(forward(path, Way::There));
    let Ok(facts) = path.facts[0] else { return };
    let port = facts.port.as_ref();
    let (node, number) = (path.node_of(0, path.to.address), port.map_or(0, |port| port.port));
    let to = node.map_or_else(|| "an unknown node".to_owned(), |node| node.to_string());
    let around = match path.backend {
        Backend::Wireguard => " inside the encrypted tunnel",
        Backend::Vxlan | Backend::Routed | Backend::Macvlan | Backend::Host => "",
    };
    let underlay = facts.underlay.as_ref();
    let step = format!("UDP port {number} to {to} ({}){around} by {}", path.to.node, described(underlay));
    let inner = facts.bridge.as_ref().map_or(0, |bridge| bridge.mtu);
    let wrong = match underlay {
        Some(Route { unreachable: Some(reason), .. }) => fault(
            format!("{} has no route to {to}: {reason}", path.from.node),
            "give the machine a route to the other node's address",
        ),
        Some(route) if path.backend == Backend::Vxlan && route.mtu > 0 && route.mtu < inner + 50 => fault(
            format!(
                "{} takes {} bytes, and the network's packets grow to {}",
                route.device,
                route.mtu,
                inner + 50
            ),
            REPAIR,
        ),
        Some(_) | None => None,
    };
    hops.push(hop(&path.from.node, step, wrong));
}

/// What the bridge and the VXLAN port of the sending node hold of the receiver.
fn forward(path: &Path<'_>, way: Way) -> Hop {
    let (index, from, to) = path.sender(way);
    let (bridge, port, mac) = (path.bridge(), path.port(), to.mac.to_string());
    let back = if way == Way::Back { "the way back: " } else { "" };
    let facts = match path.facts[index] {
        Ok(facts) => facts,
        Err(reason) => {
            return unseen(&from.node, format!("{back}{bridge} sends frames for {mac} to {port}"), reason);
        }
    };
    let number = facts.port.as_ref().map_or(path.vni, |port| port.vni);
    let nodes: Vec<String> = facts.forwarding.iter().map(ToString::to_string).collect();
    let where_to = if nodes.is_empty() { "nowhere".to_owned() } else { nodes.join(", ") };
    let step = format!(
        "{back}{bridge} sends frames for {mac} ({}) to {port}, and that to {where_to} (identifier {number})",
        to.address
    );
    hop(&from.node, step, forward_fault(path, way, facts))
}

fn forward_fault(path: &Path<'_>, way: Way, facts: &PathFacts) -> Fault {
    let (index, from, to) = path.sender(way);
    let (bridge, port) = (path.bridge(), path.port());
    let device = facts.port.as_ref().map(|port| &port.device);
    device_fault(facts.bridge.as_ref(), &bridge).or_else(|| device_fault(device, &port)).or_else(|| {
        let held = facts.port.as_ref()?;
        let Some(right) = path.node_of(index, to.address) else {
            return fault(
                format!("the server has not told {} where {} is", from.node, to.address),
                format!("{} counts as given up, or the tables are on their way: `wharf node ls`", to.node),
            );
        };
        if held.device.master.as_deref() != Some(bridge.as_str()) {
            fault(format!("{port} is not plugged into {bridge}"), REPAIR)
        } else if held.vni != path.vni {
            fault(format!("{port} has the identifier {}, and the network {}", held.vni, path.vni), REPAIR)
        } else if !facts.switching.contains(&port) {
            fault(format!("{}'s bridge {bridge} has no entry for {} ({}): it does not know that it is behind {port}", from.node, to.mac, to.address), REPAIR)
        } else if facts.forwarding.is_empty() {
            fault(format!("{}'s {port} has no forwarding entry for {} ({})", from.node, to.mac, to.address), REPAIR)
        } else if facts.forwarding != [right] {
            let wrong: Vec<_> = facts.forwarding.iter().map(ToString::to_string).collect();
            fault(format!("{}'s {port} sends frames for {} to {}, and it is at {right}", from.node, to.address, wrong.join(", ")), REPAIR)
        } else if facts.neighbour.as_deref() != Some(to.mac.to_string().as_str()) {
            let has = facts.neighbour.clone().unwrap_or_else(|| "none".to_owned());
            fault(format!("{}'s {port} answers ARP for {} with {has}, and the hardware address is {}", from.node, to.address, to.mac), REPAIR)
        } else {
            None
        }
    })
}

/// Out of the tunnel on the other node.
fn arrive_by_tunnel(path: &Path<'_>) -> Hop {
    let (bridge, port) = (path.bridge(), path.port());
    let facts = match path.facts[1] {
        Ok(facts) => facts,
        Err(reason) => {
            return unseen(&path.to.node, format!("{port} takes it and hands it to {bridge}"), reason);
        }
    };
    let held = facts.port.as_ref();
    let number = held.map_or(0, |port| port.port);
    let step = format!("{port} takes it from UDP port {number} and hands it to {bridge}");
    let wrong = device_fault(held.map(|port| &port.device), &port)
        .or_else(|| device_fault(facts.bridge.as_ref(), &bridge))
        .or_else(|| {
            let held = held?;
            let sent = path.facts[0].ok().and_then(|facts| facts.port.as_ref()).map(|port| port.port);
            if held.device.master.as_deref() != Some(bridge.as_str()) {
                fault(format!("{port} is not plugged into {bridge}"), REPAIR)
            } else if held.vni != path.vni {
                fault(format!("{port} has the identifier {}, and the network {}", held.vni, path.vni), REPAIR)
            } else if sent.is_some_and(|sent| sent != held.port) {
                fault(
                    format!(
                        "{} sends to UDP port {}, and this one listens on {}",
                        path.from.node,
                        sent.unwrap_or_default(),
                        held.port
                    ),
                    "the agents of both nodes have to use the same port",
                )
            } else {
                None
            }
        });
    hop(&path.to.node, step, wrong)
}

/// The route of a node to a block of another.
fn routed(path: &Path<'_>, way: Way) -> Hop {
    let (index, from, to) = path.sender(way);
    let back = if way == Way::Back { "the way back: " } else { "" };
    let facts = match path.facts[index] {
        Ok(facts) => facts,
        Err(reason) => {
            return unseen(&from.node, format!("{back}{} routes it to {}", from.node, to.node), reason);
        }
    };
    let route = facts.route.as_ref();
    let step = format!("{back}{} routes {} to {} by {}", from.node, to.address, to.node, described(route));
    let table = path.tables[index].remote_blocks.iter().find(|remote| remote.block.contains(&to.address));
    let wrong = match (table, route) {
        (None, _) => fault(
            format!("no block of the network that {} knows of has {}", from.node, to.address),
            "the tables are on their way, or the node is given up: `wharf network inspect` shows the blocks",
        ),
        (Some(_), Some(Route { unreachable: Some(reason), .. })) => {
            fault(format!("{} has no route to {}: {reason}", from.node, to.address), REPAIR)
        }
        (Some(remote), Some(route)) if route.device == path.bridge() => fault(
            format!(
                "{} has no route to the block {}: the packet goes to its own bridge",
                from.node, remote.block
            ),
            REPAIR,
        ),
        (Some(remote), Some(route)) if route.via.is_some_and(|via| via != remote.node) => {
            let via = route.via.map(|via| via.to_string()).unwrap_or_default();
            // A router between them, where the provider programs one.
            fault(
                format!("its route to {} leads to {via}, and the block is at {}", to.address, remote.node),
                "right only if that machine is a router that knows the block; else remove the route",
            )
        }
        (Some(_), _) => None,
    };
    hop(&from.node, step, wrong)
}

/// Into the receiver.
fn arrive(path: &Path<'_>, hops: &mut Vec<Hop>) {
    let (end, bridge) = (&path.to, path.bridge());
    if end.is_task {
        if !matches!(path.backend, Backend::Macvlan | Backend::Host) {
            hops.push(plug(path, 1));
        }
        hops.push(container(path, 1, "receives it"));
        return;
    }
    let facts = match path.facts[1] {
        Ok(facts) => facts,
        Err(reason) => return hops.push(unseen(&end.node, format!("{} receives it", end.name), reason)),
    };
    let step = format!("{} receives it on {bridge} ({})", end.name, end.address);
    let wrong = device_fault(facts.bridge.as_ref(), &bridge).or_else(|| {
        let has = facts.bridge_addresses.contains(&IpAddr::V4(end.address));
        if has { None } else { fault(format!("{bridge} does not have {}", end.address), REPAIR) }
    });
    hops.push(hop(&end.node, step, wrong));
}

/// The steps of now, with what was wrong before a repair and is right now marked as mended.
pub(crate) fn with_mended(before: &[Hop], now: Vec<Hop>) -> Vec<Hop> {
    let mended = |(position, hop): (usize, Hop)| match before.get(position) {
        Some(was) if was.state == "broken" && hop.state == "ok" => {
            let problem = was.problem.as_ref().map(|problem| format!("{problem}: mended now"));
            Hop { state: "mended".into(), problem, remedy: None, ..hop }
        }
        _ => hop,
    };
    now.into_iter().enumerate().map(mended).collect()
}

#[cfg(test)]
mod tests {
    use wharf_api::transport::diagnose::{Inside, VxlanPort};
    use wharf_model::{Peer, RemoteBlock, mac_for};

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 5);
    const B: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 9);

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    fn end(name: &str, node: &str, address: Ipv4Addr) -> End {
        let (name, node) = (name.to_owned(), node.to_owned());
        End { name, node, address, mac: Mac(mac_for(address)), is_task: true, remark: None }
    }

    fn device(name: &str, master: Option<&str>) -> Device {
        Device { name: name.into(), up: true, mtu: 1450, master: master.map(Into::into), ..Device::default() }
    }

    fn route(name: &str, via: Option<IpAddr>) -> Route {
        Route { device: name.into(), mtu: 1500, via, ..Route::default() }
    }

    fn assignment(peer: Ipv4Addr, node: IpAddr) -> NetworkAssignment {
        let id = wharf_model::NetworkId::from_parts(1, [1; 10]);
        let subnet = "10.192.0.0/20".parse().unwrap();
        let mut network = NetworkAssignment::new(id, "shop_default", 31, subnet, [10, 192, 0, 1].into());
        network.peers = vec![Peer::new(peer, node)];
        network
    }

    /// As it should be on a node of a container, with the other end on another node.
    fn facts(there: Ipv4Addr, node: IpAddr) -> PathFacts {
        PathFacts {
            inside: Some(Inside {
                device: Some(device("eth0", None)),
                outside: Some(device("veth1", Some("wh1f"))),
                route: Some(route("eth0", None)),
                neighbour: None,
            }),
            bridge: Some(device("wh1f", None)),
            switching: vec!["wv1f".into()],
            port: Some(VxlanPort { device: device("wv1f", Some("wh1f")), vni: 31, port: 4790, local: None }),
            forwarding: vec![node],
            neighbour: Some(Mac(mac_for(there)).to_string()),
            route: Some(route("wh1f", None)),
            underlay: Some(route("eth0", None)),
            ..PathFacts::default()
        }
    }

    /// Explains a path whose facts were spoilt, and answers the one step that is broken.
    fn broken(
        backend: Backend,
        spoil: impl FnOnce(&mut [PathFacts; 2], &mut [NetworkAssignment; 2]),
    ) -> Option<Hop> {
        let mut facts = [facts(B, address(2)), facts(A, address(1))];
        let mut tables = [assignment(B, address(2)), assignment(A, address(1))];
        spoil(&mut facts, &mut tables);
        let path = Path {
            backend,
            vni: 31,
            from: end("shop-web-1", "n1", A),
            to: end("shop-db-1", "n2", B),
            tables: [&tables[0], &tables[1]],
            facts: [Ok(&facts[0]), Ok(&facts[1])],
        };
        let mut wrong: Vec<_> = explain(&path).into_iter().filter(|hop| hop.state == "broken").collect();
        assert!(wrong.len() <= 1, "one fault is told once: {wrong:#?}");
        wrong.pop()
    }

    #[test]
    fn a_path_that_is_right_has_no_broken_step() {
        assert_eq!(broken(Backend::Vxlan, |_, _| {}), None);
    }

    #[test]
    fn a_missing_forwarding_entry_is_named_with_its_node_and_address() {
        let hop = broken(Backend::Vxlan, |facts, _| facts[0].forwarding.clear()).unwrap();
        assert_eq!(hop.node, "n1");
        assert!(
            hop.problem.as_ref().unwrap().contains("wv1f has no forwarding entry for 02:42:0a:c0:00:09"),
            "{hop:?}"
        );
        assert!(hop.remedy.is_some());
    }

    #[test]
    fn an_entry_that_leads_to_another_node_is_wrong() {
        let hop = broken(Backend::Vxlan, |facts, _| facts[0].forwarding = vec![address(3)]).unwrap();
        assert!(hop.problem.unwrap().contains("to 10.0.0.3, and it is at 10.0.0.2"));
    }

    #[test]
    fn the_way_back_is_a_step_of_its_own() {
        let hop = broken(Backend::Vxlan, |facts, _| facts[1].neighbour = None).unwrap();
        assert_eq!((hop.node.as_str(), hop.step.starts_with("the way back")), ("n2", true), "{hop:?}");
    }

    #[test]
    fn a_container_out_of_its_bridge_is_found() {
        let hop = broken(Backend::Vxlan, |facts, _| {
            let inside = facts[1].inside.as_mut().unwrap();
            inside.outside.as_mut().unwrap().master = None;
        });
        let hop = hop.unwrap();
        assert!(hop.problem.unwrap().contains("veth1 is not plugged into wh1f"));
        assert!(hop.remedy.unwrap().contains("ip link set veth1 master wh1f"));
    }

    #[test]
    fn a_tunnel_end_with_another_port_or_identifier_is_found() {
        let other_port = |facts: &mut [PathFacts; 2], _: &mut [NetworkAssignment; 2]| {
            facts[1].port.as_mut().unwrap().port = 8472;
        };
        assert!(
            broken(Backend::Vxlan, other_port).unwrap().problem.unwrap().contains("this one listens on 8472")
        );
    }

    #[test]
    fn an_interface_smaller_than_the_packets_around_is_found() {
        let hop = broken(Backend::Vxlan, |facts, _| facts[0].underlay.as_mut().unwrap().mtu = 1400).unwrap();
        assert!(hop.problem.unwrap().contains("takes 1400 bytes, and the network's packets grow to 1500"));
    }

    #[test]
    fn a_routed_path_needs_the_block_and_a_route_to_its_node() {
        let right = |facts: &mut [PathFacts; 2], tables: &mut [NetworkAssignment; 2]| {
            for (index, (block, node)) in [("10.192.0.8/29", 2), ("10.192.0.0/29", 1)].into_iter().enumerate()
            {
                tables[index].remote_blocks =
                    vec![RemoteBlock { block: block.parse().unwrap(), node: address(node) }];
                facts[index].route = Some(route("eth0", Some(address(node))));
            }
        };
        assert_eq!(broken(Backend::Routed, right), None);
        let hop = broken(Backend::Routed, |facts, tables| {
            right(facts, tables);
            facts[0].route = Some(route("wh1f", None));
        });
        assert!(hop.unwrap().problem.unwrap().contains("no route to the block 10.192.0.8/29"));
        let hop = broken(Backend::Routed, |facts, tables| {
            right(facts, tables);
            facts[1].route = Some(route("eth0", Some(address(7))));
        });
        assert!(hop.unwrap().problem.unwrap().contains("leads to 10.0.0.7"));
    }

    #[test]
    fn what_is_right_after_a_repair_was_mended() {
        let ok = hop("n1", "a".into(), None);
        let wrong = hop("n1", "a".into(), fault("gone", "wait"));
        let hops = with_mended(&[wrong.clone(), wrong.clone()], vec![ok, wrong]);
        assert_eq!(hops[0].state, "mended");
        assert_eq!(hops[0].problem.as_deref(), Some("gone: mended now"));
        assert_eq!(hops[1].state, "broken");
    }
}
