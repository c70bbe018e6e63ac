//! The node's networks: the kernel's side of each, and the names its containers ask for.
//!
//! - Exact: after a pass the kernel has every bridge, VXLAN port, forwarding entry and neighbour that was assigned, and on our devices
//!   no other. What is right is not touched, so that a pass never interrupts traffic.
//! - Nothing is learned and nothing is flooded: a frame for an address the server did not name goes nowhere.
//! - Traffic needs neither the agent nor Docker to be alive; a pass every five seconds mends what others changed.
//! - Bridges are made before Docker's networks, and Docker takes them over: they outlive `docker network rm`, and are removed by
//!   [`KernelNetwork::remove_bridges`] once nothing uses them.
//!
//! `plan` decides, without input or output; `kernel` reads and writes; `netlink` carries both.

mod announce;
mod devices;
mod docker;
mod firewall;
mod firewall6;
mod hosts;
mod kernel;
mod members;
pub(crate) mod netlink;
mod nft;
mod plan;
pub mod router;
pub mod sandbox;
mod seek;
mod segment;
mod watch;
pub mod wireguard;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use wharf_model::{Backend, DnsTable, NetworkAssignment, NetworkId, Revision, TaskId, WireguardAssignment};
use wharf_process::{Tasks, detached::Program, errors};

use self::{
    devices::Devices,
    sandbox::{EntryRules, Family, Sandbox, Sandboxes},
    watch::{Change, Watch},
    wireguard::Tunnels,
};
pub use self::{
    devices::{NetworkError, Pass},
    docker::{DockerNetwork, NETWORK_LABEL, VNI_LABEL, docker_network_options},
    hosts::host_subnets,
    seek::Seeker,
};
use crate::dns::{self, DnsCounters, DnsProcess, Listen, Responder, Sources, Upstreams};

/// UDP port of the VXLAN packets: neither the standard's 4789, which Docker Swarm uses, nor 8472, which flannel does.
pub const VXLAN_PORT: u16 = 4790;

/// How often the kernel is compared with the tables if nothing is heard of it, or cannot be.
const REPAIR: Duration = Duration::from_secs(5);
/// Between two comparisons at least, whatever is heard, and as many times what one takes: somebody who undoes all that we do must not
/// have all of the machine.
const PAUSE: Duration = Duration::from_millis(50);
const SHARE: u32 = 4;
/// Docker changes rules with every container: they are looked at once for many changes.
const PAUSE_OF_RULES: Duration = Duration::from_secs(1);

/// How a node takes part in networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The address at which the other nodes reach this one; an interface of this node must have it.
    pub node: IpAddr,
    /// The same on all nodes: [`VXLAN_PORT`] unless something else uses it.
    pub vxlan_port: u16,
    /// Where containers' questions for other names go.
    pub upstreams: Upstreams,
    /// The process that answers DNS; if none, this one does, as long as it lives.
    pub dns: Option<Program>,
}

impl NetworkOptions {
    /// The defaults of a node with this address: names of the world are resolved as the node itself resolves them.
    #[must_use]
    pub fn new(node: IpAddr) -> Self {
        let upstreams = Upstreams::File(PathBuf::from("/etc/resolv.conf"));
        Self { node, vxlan_port: VXLAN_PORT, upstreams, dns: None }
    }
}

/// Who answers DNS.
enum Names {
    /// This process.
    Here(Responder),
    /// One of its own.
    Apart(DnsProcess),
}

/// What a gateway needs for clients with addresses of one family.
struct ServedEntry {
    rules: Arc<Mutex<EntryRules>>,
    wanted: AtomicBool,
}

impl ServedEntry {
    fn new(family: Family) -> Self {
        Self { rules: Arc::new(Mutex::new(EntryRules::new(family))), wanted: AtomicBool::new(false) }
    }

    async fn ensure(&self, wanted: bool) -> Result<(), String> {
        self.wanted.store(wanted, Ordering::Release);
        let rules = Arc::clone(&self.rules);
        wharf_process::blocking(move || rules.lock().ensure(wanted)).await.map(drop)
    }
}

/// The networks of this node's kernel, with the names that are served on them.
pub struct KernelNetwork {
    devices: Devices,
    tunnels: Option<Arc<Tunnels>>,
    names: Names,
    sandboxes: Sandboxes,
    entry: ServedEntry,
    entry6: ServedEntry,
    /// The names that were published last, if what they lead to depends on which containers are programmed.
    latest: tokio::sync::Mutex<Option<(Arc<DnsTable>, Sources)>>,
    state: Mutex<State>,
    mended: AtomicU64,
    /// Until somebody listens.
    watch: Mutex<Option<Watch>>,
    /// The latest, the oldest first.
    mends: Mutex<VecDeque<Mend>>,
}

/// Something that others did to our devices and a repair undid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mend {
    /// When it was mended.
    pub at: tokio::time::Instant,
    /// The network's VXLAN identifier.
    pub vni: u32,
    /// What was not as it should be.
    pub fault: &'static str,
    /// How many times.
    pub count: usize,
}

/// How many [`Mend`]s are remembered.
const MENDS: usize = 256;

#[derive(Default)]
struct State {
    wanted: BTreeMap<NetworkId, Listen>,
    /// What the last pass could not do.
    problems: BTreeMap<NetworkId, String>,
    /// What it found not to be as it should be on the node itself.
    notes: Vec<String>,
    /// Why the last pass failed altogether.
    failure: Option<String>,
}

impl KernelNetwork {
    /// Looks after the network namespace of the calling thread. Changes nothing yet. DNS is served by `tasks`.
    ///
    /// # Errors
    /// If there is no way to talk to the kernel.
    pub fn open(options: NetworkOptions, tasks: &Tasks) -> Result<Self, NetworkError> {
        Ok(Self {
            devices: Devices::open(options.node, options.vxlan_port)?,
            tunnels: None,
            names: match options.dns {
                None => Names::Here(Responder::new(options.upstreams, tasks)),
                Some(program) => Names::Apart(DnsProcess::start(program, options.upstreams, tasks)),
            },
            sandboxes: Sandboxes::default(),
            entry: ServedEntry::new(Family::V4),
            entry6: ServedEntry::new(Family::V6),
            latest: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            mended: AtomicU64::new(0),
            watch: Mutex::new(
                Watch::open().inspect_err(|error| tracing::warn!(%error, "kernel not listened to")).ok(),
            ),
            mends: Mutex::default(),
        })
    }

    /// Makes the kernel as `networks` say, all of them and no others, and answers DNS on their gateways. To be called before containers
    /// of a changed set start. Bridges of networks that are gone stay until [`KernelNetwork::remove_bridges`].
    ///
    /// # Errors
    /// If the kernel's tables cannot be read or changed at all; what fails for one network is in [`Pass::problems`].
    pub async fn prepare(
        &self,
        networks: &BTreeMap<NetworkId, NetworkAssignment>,
    ) -> Result<Pass, NetworkError> {
        let outcome = self.devices.prepare(networks).await;
        self.state.lock().wanted = listens(networks);
        self.finish(outcome).await
    }

    /// The same with tunnels for networks of the backend `wireguard`.
    #[must_use]
    pub fn with_tunnels(mut self, tunnels: Arc<Tunnels>) -> Self {
        self.tunnels = Some(tunnels);
        self
    }

    /// Makes the node's tunnels as assigned, all of them and no others. To be called before [`KernelNetwork::prepare`]; what fails is among
    /// [`KernelNetwork::problems`].
    pub async fn prepare_tunnels(&self, assignment: Option<&WireguardAssignment>) {
        if let Some(tunnels) = &self.tunnels
            && let Err(error) = tunnels.prepare(assignment).await
        {
            tracing::warn!(error = errors::chain(&error), "tunnels not made");
        }
        self.set_tunnel(assignment.map(|assignment| assignment.address.into()));
    }

    /// The node's tunnels, if it can have any.
    #[must_use]
    pub fn tunnels(&self) -> Option<&Arc<Tunnels>> {
        self.tunnels.as_ref()
    }

    /// Says where networks with the backend `wireguard` run: over the interface with this address, from the next pass on. Until there is
    /// one, each of them has a problem.
    pub fn set_tunnel(&self, address: Option<IpAddr>) {
        self.devices.set_tunnel(address);
    }

    /// Compares the kernel with what was last prepared, and mends it. What it mended is logged and counted.
    ///
    /// # Errors
    /// As [`KernelNetwork::prepare`].
    pub async fn repair(&self) -> Result<Pass, NetworkError> {
        let outcome = self.mend_devices().await;
        for entry in [&self.entry, &self.entry6] {
            if entry.wanted.load(Ordering::Acquire)
                && let Err(problem) = entry.ensure(true).await
            {
                tracing::warn!(problem, "published ports not mended");
            }
        }
        let sandboxes = self.sandboxes.repair().await;
        if sandboxes.changed > 0 {
            tracing::info!(changed = sandboxes.changed, "containers' networks mended");
            self.publish_again().await;
        }
        self.finish(outcome).await
    }

    /// Mends the tables only, which is what the kernel tells of.
    async fn mend(&self) -> Result<Pass, NetworkError> {
        let outcome = self.mend_devices().await;
        self.finish(outcome).await
    }

    async fn mend_devices(&self) -> Result<Pass, NetworkError> {
        let outcome = self.devices.repair().await;
        if let Ok(pass) = &outcome
            && pass.changes > 0
        {
            self.mended.fetch_add(pass.changes as u64, Ordering::Relaxed);
            tracing::warn!(changes = pass.changes, problems = ?pass.problems, "networks mended");
            self.remember(pass);
        }
        outcome
    }

    /// Repairs when the kernel tells that others changed what is ours, and every five seconds, until `stop`. What is in the kernel stays
    /// there.
    pub async fn run(&self, stop: CancellationToken) {
        let watch = self.watch.lock().take();
        let mut listening = watch.and_then(|watch| {
            watch.listen().inspect_err(|error| tracing::warn!(%error, "kernel not listened to")).ok()
        });
        let mut next_look = None;
        let mut next_pass = tokio::time::Instant::now() + REPAIR;
        loop {
            let change = async {
                match &mut listening {
                    Some(listening) => {
                        listening.next(|event| self.devices.concern().is_touched_by(event)).await
                    }
                    None => std::future::pending().await,
                }
            };
            let look = async {
                match next_look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                // Cancel-safe, all of them: nothing is under way but waiting.
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next_pass) => false,
                () = look => {
                    next_look = None;
                    self.look_at_rules().await;
                    continue;
                }
                change = change => match change {
                    Ok(Change::Tables) => true,
                    Ok(Change::Rules) if !self.devices.concern().has_routes() => continue,
                    Ok(Change::Rules) => {
                        next_look.get_or_insert_with(|| tokio::time::Instant::now() + PAUSE_OF_RULES);
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "kernel no longer listened to");
                        listening = None;
                        continue;
                    }
                },
            };
            let begun = tokio::time::Instant::now();
            // Not told again until it changes.
            let before = self.state.lock().failure.clone();
            let outcome = if heard {
                self.mend().await
            } else {
                next_pass = begun + REPAIR;
                self.repair().await
            };
            if let Err(error) = outcome {
                let error = errors::chain(&error);
                if before.as_ref() != Some(&error) {
                    tracing::warn!(error, "networks not compared with the kernel");
                }
            }
            let pause = PAUSE.max(begun.elapsed() * SHARE);
            // Dropped on the stop only.
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn look_at_rules(&self) {
        let outcome = self.devices.look_at_rules().await;
        if outcome.changes > 0 {
            self.mended.fetch_add(outcome.changes as u64, Ordering::Relaxed);
            tracing::warn!(changes = outcome.changes, "firewall rules mended");
        }
        self.state.lock().notes = outcome.problems;
    }

    /// Removes the bridges of networks that are no longer prepared, except those in `keep` and those with a container plugged in. To
    /// be called after Docker's networks on them were removed, with the bridges of those that could not be. Answers how many.
    ///
    /// # Errors
    /// If the kernel's tables cannot be read or changed at all.
    pub async fn remove_bridges(&self, keep: BTreeSet<String>) -> Result<usize, NetworkError> {
        self.devices.remove_bridges(keep).await
    }

    /// The largest packet of networks with this backend: that of the interface that they run over, less what goes around it.
    ///
    /// # Errors
    /// If the node's address is on no interface, or the kernel cannot be asked.
    pub async fn mtu(&self, backend: Backend) -> Result<u32, NetworkError> {
        self.devices.mtu(backend).await
    }

    /// Serves these names from now on. `sources` says who asks. Whether no others are served any
    /// more; if not, [`KernelNetwork::version`] says when.
    pub async fn publish(&self, table: &DnsTable, sources: &Sources) -> bool {
        let mut local = BTreeMap::<_, BTreeSet<_>>::new();
        for (address, source) in sources {
            for network in &source.networks {
                local.entry(*network).or_default().insert(*address);
            }
        }
        if self.devices.set_local(local).await
            && let Err(error) = self.mend().await
        {
            tracing::warn!(error = errors::chain(&error), "containers on the segment not told");
        }
        let mut latest = self.latest.lock().await;
        let table = Arc::new(table.clone());
        // Without virtual addresses it is all the same in which containers they would lead somewhere.
        *latest = (!table.vips.is_empty()).then(|| (Arc::clone(&table), sources.clone()));
        self.serve(table, sources).await
    }

    /// Serves what was published last with the containers that are programmed by now.
    async fn publish_again(&self) {
        // Held meanwhile, so that nothing older is served last.
        let latest = self.latest.lock().await;
        if let Some((table, sources)) = &*latest {
            self.serve(Arc::clone(table), sources).await;
        }
    }

    async fn serve(&self, mut table: Arc<DnsTable>, sources: &Sources) -> bool {
        if !table.vips.is_empty() {
            Arc::make_mut(&mut table).programmed = self.sandboxes.programmed();
        }
        match &self.names {
            Names::Here(responder) => {
                responder.publish(&table, sources);
                true
            }
            Names::Apart(process) => process.publish(table, sources).await,
        }
    }

    /// Programs the containers' namespaces as these say, all that run and differ. Whether none is left in which connections may begin
    /// that should not.
    pub async fn program(&self, wanted: BTreeMap<TaskId, Sandbox>) -> bool {
        let pass = self.sandboxes.set(wanted).await;
        if pass.changed > 0 {
            self.publish_again().await;
        }
        pass.behind.is_empty()
    }

    /// A task's container runs as this process: its namespace is programmed, and only then is it told of virtual addresses. Answers the
    /// gateways to which it can send answers back.
    pub async fn started(&self, task: TaskId, pid: i64) -> BTreeSet<IpAddr> {
        let (entries, changed) = self.sandboxes.started(task, pid).await;
        if changed {
            self.publish_again().await;
        }
        entries
    }

    /// A task's container does not run any more: another one at its address would know nothing of virtual addresses.
    pub async fn ended(&self, task: TaskId) {
        if self.sandboxes.ended(task) {
            self.publish_again().await;
        }
    }

    /// Whether a gateway runs here that connects from its clients' addresses of this family, so that the node brings it the answers. Says in
    /// words why it cannot.
    pub async fn serve_entry(&self, family: Family, wanted: bool) -> Result<(), String> {
        match family {
            Family::V4 => self.entry.ensure(wanted).await,
            Family::V6 => self.entry6.ensure(wanted).await,
        }
    }

    /// The namespaces of the containers, for their counters.
    #[must_use]
    pub const fn sandboxes(&self) -> &Sandboxes {
        &self.sandboxes
    }

    /// The version of the names that are served: no answer of an older one is sent any more.
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        match &self.names {
            Names::Here(responder) => responder.version(),
            Names::Apart(process) => process.version(),
        }
    }

    /// What is not as it should be, in words for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut problems: Vec<String> =
            state.failure.iter().chain(state.problems.values()).chain(&state.notes).cloned().collect();
        drop(state);
        problems.extend(self.sandboxes.problems());
        problems.extend(self.tunnels.iter().flat_map(|tunnels| tunnels.problems()));
        problems.extend(match &self.names {
            Names::Here(responder) => responder.problems(),
            Names::Apart(process) => process.problems(),
        });
        problems
    }

    /// How many changes repairs have made since the start. Each is something that others did to our devices.
    #[must_use]
    pub fn mended(&self) -> u64 {
        self.mended.load(Ordering::Relaxed)
    }

    /// What repairs have mended lately, the oldest first.
    #[must_use]
    pub fn mends(&self) -> Vec<Mend> {
        self.mends.lock().iter().copied().collect()
    }

    fn remember(&self, pass: &Pass) {
        let at = tokio::time::Instant::now();
        let mut mends = self.mends.lock();
        mends.extend(pass.faults.iter().map(|(&(vni, fault), &count)| Mend { at, vni, fault, count }));
        let surplus = mends.len().saturating_sub(MENDS);
        mends.drain(..surplus);
    }

    /// What was asked so far.
    pub async fn questions(&self) -> DnsCounters {
        match &self.names {
            Names::Here(responder) => responder.counters(),
            Names::Apart(process) => process.counters().await,
        }
    }

    async fn finish(&self, outcome: Result<Pass, NetworkError>) -> Result<Pass, NetworkError> {
        let wanted = {
            let mut state = self.state.lock();
            match &outcome {
                Ok(pass) => {
                    (state.problems, state.failure) = (pass.problems.clone(), None);
                    state.notes.clone_from(&pass.notes);
                }
                Err(error) => state.failure = Some(errors::chain(error)),
            }
            state.wanted.clone()
        };
        // Also after a failure: the addresses may be there all the same.
        match &self.names {
            Names::Here(responder) => responder.listen(&wanted).await,
            Names::Apart(process) => process.listen(&wanted),
        }
        outcome
    }
}

fn listens(networks: &BTreeMap<NetworkId, NetworkAssignment>) -> BTreeMap<NetworkId, Listen> {
    let listen = |network: &NetworkAssignment| Listen {
        address: SocketAddr::new(network.gateway.into(), dns::PORT),
        subnet: network.subnet,
    };
    networks.iter().map(|(id, network)| (*id, listen(network))).collect()
}
