//! The roles this binary runs as: put together here, and nowhere else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wharf_agent::{
    facts::Machine,
    fence::FenceFile,
    housekeeping::disks::MachineDisks,
    network::{
        KernelNetwork, NetworkOptions,
        wireguard::{TunnelOptions, Tunnels},
    },
    node::{Entry, NodeAgent, NodeConfig},
    peers::{IcmpEchoes, Voice},
    runtime::{DockerOptions, DockerRuntime},
    session::{self, Home},
};
use wharf_api::transport::{ServerAddress, Timing};
use wharf_gateway::process::GatewayProcess;
use wharf_model::{Bytes, GatewayStats, NodeDevices, RouteTable, TaskId, WORD_PORT};
use wharf_process::{
    Clock, Shutdown, SystemClock, Tasks,
    logging::{self, Format},
    shutdown::Signals,
};

use crate::commands;

/// How long what is under way gets when the process is asked to stop.
const GRACE: Duration = Duration::from_secs(10);
const SETTINGS: &str = "agent.json";

/// How an agent is set up on its machine; written when it joins, and changed by flags of `run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentSettings {
    /// The address other nodes reach this one at.
    pub(crate) address: IpAddr,
    /// The engine's socket.
    pub(crate) docker_socket: PathBuf,
    /// Where other nodes reach the WireGuard port, if not at the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tunnel_endpoint: Option<SocketAddr>,
    /// What the machine is said to have, if not what the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Bytes>,
    /// Devices that tasks can be given, beside what the engine and drivers say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<NodeDevices>,
}

impl AgentSettings {
    /// What was written when the machine joined.
    pub(crate) fn read(state_dir: &Path) -> Result<Option<Self>> {
        let path = state_dir.join(SETTINGS);
        match std::fs::read(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Remembers it.
    pub(crate) fn write(&self, state_dir: &Path) -> Result<()> {
        let path = state_dir.join(SETTINGS);
        std::fs::create_dir_all(state_dir)
            .and_then(|()| std::fs::write(&path, serde_json::to_vec_pretty(self).unwrap_or_default()))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What a long-running process begins with: logs, signals, a clock.
pub(crate) struct Process {
    pub(crate) shutdown: Shutdown,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Process {
    /// Takes the process over.
    pub(crate) fn begin(json: bool, filter: &str) -> Result<Self> {
        logging::init(if json { Format::Json } else { Format::Text }, filter)?;
        Ok(Self { shutdown: Shutdown::new(), clock: Arc::new(SystemClock::new()) })
    }

    /// Turns signals into requests to stop.
    pub(crate) fn obey_signals(&self) -> Result<Tasks> {
        let signals = Signals::listen().context("cannot listen for signals")?;
        let tasks = Tasks::staged(&self.shutdown);
        let shutdown = self.shutdown.clone();
        tasks.spawn("signals", async move { signals.forward(&shutdown).await });
        Ok(tasks)
    }
}

/// The gateway as the node knows it.
struct GatewayEntry(GatewayProcess);

#[async_trait]
impl Entry for GatewayEntry {
    async fn publish(&self, routes: &RouteTable) -> bool {
        self.0.publish(routes).await
    }
    fn problems(&self) -> Vec<String> {
        self.0.problems()
    }
    fn ports(&self) -> Option<BTreeSet<u16>> {
        self.0.ports()
    }
    fn draining(&self) -> BTreeMap<TaskId, u64> {
        self.0.draining()
    }
    fn changes(&self) -> watch::Receiver<()> {
        self.0.changes()
    }
    async fn stats(&self) -> GatewayStats {
        self.0.stats().await
    }
}

/// Runs the agent of this machine until the process is asked to stop. Containers stay as they are then, and so do the processes that answer
/// DNS and serve routes.
pub(crate) async fn run_agent(
    process: &Process,
    state_dir: &Path,
    run_dir: &Path,
    settings: AgentSettings,
    own_ports: BTreeSet<u16>,
) -> Result<()> {
    let home = Home::new(state_dir);
    let membership = home.read()?;
    let tasks = Tasks::new(&process.shutdown);
    let mut machine = Machine::look(settings.address, env!("CARGO_PKG_VERSION"));
    if let Some(memory) = settings.memory {
        machine.memory = memory;
    }
    machine.devices = settings.devices;
    let mut config = NodeConfig::new(membership.node, machine, state_dir.to_owned(), run_dir.to_owned());
    config.own_ports = own_ports;
    config.seed = membership.node.uuid().as_u64_pair().1;
    config.logins = [state_dir.join("docker/config.json"), PathBuf::from("/root/.docker/config.json")]
        .into_iter()
        .find(|path| path.is_file());
    config.engine = Some(settings.docker_socket.clone());
    config.disks = Arc::new(MachineDisks);
    config.fence = Some(commands::fence::program(run_dir));
    let runtime = DockerRuntime::new(DockerOptions {
        socket: settings.docker_socket,
        // What belongs to this cluster says so by the cluster's authority, which never changes.
        cluster: membership.trust.ca_hash()?[..16].to_owned(),
        volumes: config.volumes(),
    });
    let mut networks = NetworkOptions::new(settings.address);
    // The folder of a process that answers DNS longer than this one lives.
    std::fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    networks.dns = Some(commands::dns::program(run_dir));
    let mut tunnels = TunnelOptions::new(
        settings.address,
        state_dir.to_owned(),
        run_dir.to_owned(),
        commands::wireguard_device::arguments(),
    );
    tunnels.endpoint = settings.tunnel_endpoint;
    config.own_ports.insert(tunnels.port);
    let tunnels = Arc::new(Tunnels::open(tunnels, Arc::clone(&process.clock), &tasks)?);
    let network = Arc::new(KernelNetwork::open(networks, &tasks)?.with_tunnels(Arc::clone(&tunnels)));
    let gateway = GatewayProcess::start(commands::gateway::program(run_dir), &tasks);
    let entry: Arc<dyn Entry> = Arc::new(GatewayEntry(gateway));
    let plane = Arc::clone(&network);
    let node = NodeAgent::new(config, Arc::new(runtime), plane, Some(entry), Arc::clone(&process.clock))
        .with_context(|| format!("cannot read what this node held, in {}", state_dir.display()))?;

    node.lease().keep_in(Arc::new(FenceFile::new(run_dir.to_owned())));
    match IcmpEchoes::open() {
        Ok(echoes) => node.listen_by(Box::new(echoes)),
        Err(error) => tracing::warn!(%error, "other nodes are not listened for"),
    }
    match Voice::open(home.clone(), &membership.trust, WORD_PORT) {
        Ok(voice) => node.speak_by(voice),
        Err(error) => {
            tracing::warn!(%error, port = WORD_PORT, "other nodes are not spoken with while no server is there");
        }
    }

    let stop = tasks.token();
    {
        let (network, stop) = (Arc::clone(&network), stop.clone());
        tasks.spawn("networks", async move { network.run(stop).await });
        let stop = tasks.token();
        tasks.spawn("tunnels", async move { tunnels.run(stop).await });
        let (node, stop, group) = (node.clone(), tasks.token(), tasks.clone());
        tasks.spawn("node", async move { node.run(&group, stop).await });
    }
    session::run(Arc::new(node), home, Timing::default(), Arc::clone(&process.clock), tasks.clone()).await?;
    stop.cancelled().await;
    for name in tasks.shutdown(GRACE).await.aborted {
        tracing::warn!(task = name, "had to be aborted");
    }
    Ok(())
}

/// The addresses by which a process on this machine reaches its own server.
pub(crate) fn loopback(address: std::net::SocketAddr) -> ServerAddress {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    std::net::SocketAddr::new(ip, address.port()).into()
}
