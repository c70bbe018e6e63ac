//! What Docker has to be told of a network so that it takes the bridge which is there, instead of making its own.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use wharf_model::NetworkAssignment;

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
}

/// How the Docker network of an assigned network is made; `mtu` is that of its devices.
#[must_use]
pub fn docker_network_options(network: &NetworkAssignment, mtu: u32) -> DockerNetwork {
    let labels = [(NETWORK_LABEL, network.id.to_string()), (VNI_LABEL, network.vni.to_string())];
    let options = [
        ("com.docker.network.bridge.name", bridge_name(network.vni)),
        ("com.docker.network.driver.mtu", mtu.to_string()),
    ];
    DockerNetwork {
        name: network.name.clone(),
        driver: "bridge",
        internal: network.internal,
        attachable: network.attachable,
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
        options: options.map(|(key, value)| (key.to_owned(), value)).into(),
        subnet: network.subnet,
        gateway: network.gateway,
    }
}
