//! What Docker has to be told of a network so that it takes the bridge which is there, instead of making its own.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use wharf_model::{Backend, NetworkAssignment, ipv6_for};

use super::plan::bridge_name;

/// The label that carries the network's identifier.
pub const NETWORK_LABEL: &str = "wharf.network";
/// The label that carries the network's VXLAN identifier.
pub const VNI_LABEL: &str = "wharf.vni";

/// How a Docker network is made for an assigned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerNetwork {
    /// What it is called.
    pub name: String,
    /// Docker's driver.
    pub driver: &'static str,
    /// No way out of the cluster.
    pub internal: bool,
    /// Containers made by hand may join.
    pub attachable: bool,
    /// By which it is known for ours.
    pub labels: BTreeMap<String, String>,
    /// The driver's options: the bridge to take, and the largest packet.
    pub options: BTreeMap<String, String>,
    /// The whole network's addresses. Containers are given theirs one by one.
    pub subnet: Ipv4Net,
    /// This node's address, which is on the bridge already.
    pub gateway: Ipv4Addr,
    /// The whole network's IPv6 addresses, and this node's, if it has any.
    pub ipv6: Option<(Ipv6Net, Ipv6Addr)>,
}

/// Docker's name for the largest packet of a network.
const MTU: &str = "com.docker.network.driver.mtu";

/// The Docker network of one on the physical segment: the kernel gives its devices the parent's packet size.
fn on_the_segment(
    network: &NetworkAssignment,
    mut options: BTreeMap<String, String>,
) -> Result<DockerNetwork, String> {
    let Some(parent) = &network.parent else {
        return Err("the network names no interface of the nodes as its `parent`".to_owned());
    };
    options.insert("parent".to_owned(), parent.clone());
    let labels = [(NETWORK_LABEL, network.id.to_string()), (VNI_LABEL, network.vni.to_string())];
    let labels = labels.map(|(key, value)| (key.to_owned(), value));
    Ok(DockerNetwork {
        name: network.name.clone(),
        driver: "macvlan",
        internal: network.internal,
        attachable: network.attachable,
        labels: network.labels.clone().into_iter().chain(labels).collect(),
        options,
        subnet: network.subnet,
        // Without a router of the segment the node's own address: Docker would take one that may be somebody's.
        gateway: network.router.unwrap_or(network.gateway),
        ipv6: network.subnet6.map(|subnet| (subnet, ipv6_for(subnet, network.gateway))),
    })
}

/// The first version of the API of an engine (28) that drops what is routed to containers, unless it is told not to.
const PROTECTS: (usize, usize) = (1, 48);

/// How the Docker network of an assigned network is made; `mtu` is that of its devices, `api` the engine's version of the API.
///
/// # Errors
/// If the network asks for larger packets than its nodes can exchange.
pub fn docker_network_options(
    network: &NetworkAssignment,
    mtu: u32,
    api: (usize, usize),
) -> Result<DockerNetwork, String> {
    let labels = [(NETWORK_LABEL, network.id.to_string()), (VNI_LABEL, network.vni.to_string())];
    let mut options = network.driver_opts.clone();
    if let Some(wanted) = options.get(MTU)
        && !wanted.parse::<u32>().is_ok_and(|wanted| (68..=mtu).contains(&wanted))
    {
        return Err(format!(
            "`{MTU}: {wanted}` is not possible: packets between the nodes have at most {mtu} bytes"
        ));
    }
    if network.backend == Backend::Macvlan {
        return on_the_segment(network, options);
    }
    options.entry(MTU.to_owned()).or_insert_with(|| mtu.to_string());
    let bridge = |option: &str| format!("com.docker.network.bridge.{option}");
    options.insert(bridge("name"), bridge_name(network.vni));
    // Otherwise the same for all backends between which a network changes while containers are on it: where Docker hides too much, the
    // node's own rules come first (`firewall`).
    if network.backend == Backend::Routed && api >= PROTECTS {
        options.insert(bridge("gateway_mode_ipv4"), "nat-unprotected".to_owned());
    }
    Ok(DockerNetwork {
        name: network.name.clone(),
        driver: "bridge",
        internal: network.internal,
        attachable: network.attachable,
        labels: network
            .labels
            .clone()
            .into_iter()
            .chain(labels.map(|(key, value)| (key.to_owned(), value)))
            .collect(),
        options,
        subnet: network.subnet,
        gateway: network.gateway,
        ipv6: network.subnet6.map(|subnet| (subnet, ipv6_for(subnet, network.gateway))),
    })
}
