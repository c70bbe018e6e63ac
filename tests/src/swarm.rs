//! Machines that are a Docker Swarm: the peer that benchmarks measure ours against.
//!
//! A kernel without IPVS has no virtual addresses of Swarm's and no ingress mesh: services are found by DNS round robin.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wharf_testkit::cluster::{Cluster, Node, Seed, try_wait_until};

use crate::{engine, items, text};

/// How long a swarm may take to be whole.
const JOINING: Duration = Duration::from_secs(120);

/// As many machines, of which the first so many are managers. Their engines cannot keep containers alive over their own end: Swarm refuses
/// that.
pub fn machines(nodes: u8, managers: u8) -> Result<Cluster> {
    let machines = Cluster::builder().nodes(nodes).seed(Seed::basic()?).engine_arg("--live-restore=false");
    let cluster = machines.up()?;
    join(&cluster, managers)?;
    Ok(cluster)
}

/// Makes machines a swarm.
pub fn join(cluster: &Cluster, managers: u8) -> Result<()> {
    let first = cluster.node(1);
    let address = first.address().to_string();
    first.docker(["swarm", "init", "--advertise-addr", &address])?;
    for node in cluster.nodes().into_iter().skip(1) {
        let role = if node.index() <= managers { "manager" } else { "worker" };
        let token = first.docker(["swarm", "join-token", "-q", role])?;
        node.docker(["swarm", "join", "--token", token.trim(), &format!("{address}:2377")])?;
    }
    wait_for_nodes(&first, cluster.nodes().len(), managers)
}

/// Waits until a manager says that so many nodes are ready, and that so many managers are reachable.
pub fn wait_for_nodes(manager: &Node, wanted: usize, managers: u8) -> Result<()> {
    try_wait_until(JOINING, "the swarm is whole", || {
        let nodes = engine::ask_within(manager, "GET", "/nodes", None, Duration::from_secs(5))?;
        let ready = items(&nodes).iter().filter(|node| text(&node["Status"]["State"]) == "ready");
        let reachable =
            items(&nodes).iter().filter(|node| text(&node["ManagerStatus"]["Reachability"]) == "reachable");
        let (ready, reachable) = (ready.count(), reachable.count());
        ensure!(
            ready == wanted && reachable == usize::from(managers),
            "{ready} ready, {reachable} reachable"
        );
        Ok(())
    })
}

/// The machine whose manager leads.
pub fn leader(cluster: &Cluster, asked: &Node) -> Result<Node> {
    let nodes = engine::ask(asked, "GET", "/nodes", None)?;
    let leads = |node: &&Value| node["ManagerStatus"]["Leader"] == true;
    let leader = items(&nodes).iter().find(leads).context("nobody leads the swarm")?;
    let name = text(&leader["Description"]["Hostname"]);
    let found = cluster.nodes().into_iter().find(|node| node.name() == name);
    found.with_context(|| format!("{name} leads, which is no machine of this cluster"))
}

/// How many tasks of a service a manager says are running.
pub fn running(manager: &Node, service: &str) -> Result<u64> {
    let services = engine::ask(manager, "GET", "/services?status=true", None)?;
    let found = items(&services).iter().find(|found| text(&found["Spec"]["Name"]) == service);
    let running = found.with_context(|| format!("there is no service {service}"))?;
    running["ServiceStatus"]["RunningTasks"].as_u64().context("the engine is too old to count tasks")
}

/// Makes a service on a network, of this image with what stands around it on the command line, and does not wait for it.
pub fn create(manager: &Node, name: &str, replicas: usize, network: &str, what: &[&str]) -> Result<()> {
    let replicas = replicas.to_string();
    let create = ["service", "create", "--detach", "--quiet", "--name", name, "--replicas", &replicas];
    let way = ["--network", network, "--endpoint-mode", "dnsrr", "--no-resolve-image"];
    manager.docker(create.into_iter().chain(way).chain(what.iter().copied())).map(drop)
}
