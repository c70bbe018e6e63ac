//! What a pass reads: everything the store holds that decisions need, with the indexes they need it by.
//!
//! The server keeps it up to date from the store's watch, one `insert_…` or `remove_…` per event; inserting the same value again
//! changes nothing. The indexes always agree with the records, in whatever order these arrive. Nothing is removed by implication.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use wharf_model::{
    AddressPool, AppKey, AppRecord, Backend, Bytes, Cpus, EnvironmentName, Figures, Generation, GivenPort,
    Image, NetworkDefaults, NetworkId, NetworkName, NetworkRecord, NodeId, NodeRecord, NodeState, NodeStatus,
    Phase, PlacementDefaults, PlacementStrategy, PortSpec, Priority, Protocol, PublishMode, Quota,
    QuotaRecord, RebalanceRun, Rebalancing, Release, ReleaseNumber, Revision, ServiceKey, ServiceName,
    ServiceRecord, ServiceRevision, ServiceSpec, StopReason, Task, TaskDevice, TaskId, TaskStatus, Timestamp,
    VolumeId, VolumeName, VolumeRecord,
};

use crate::{
    Change,
    passage::Passage,
    place::{devices, index::Index, packing},
};

/// A machine: as people want it, and as it is observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What people want of it.
    pub record: NodeRecord,
    /// What is observed of it; absent until the first status is written.
    pub status: Option<NodeStatus>,
}
impl Node {
    /// Its state; joining until it is known.
    pub fn state(&self) -> NodeState {
        self.status.as_ref().map_or(NodeState::Joining, |status| status.state)
    }
    /// Whether it is suspected to be gone: nothing is sent to its tasks where others serve.
    pub fn is_suspected(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.suspected.is_some())
    }
    /// Whether it can be counted on for new tasks, whatever people want of it.
    pub fn is_sound(&self) -> bool {
        self.state() == NodeState::Ready && !self.is_suspected() && self.held_until().is_none()
    }
    /// Whether it is suspected for so long that tasks which may run twice are replaced.
    pub fn is_missing(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.missing)
    }
    /// Until when it gets no new tasks, because it went away too often.
    pub fn held_until(&self) -> Option<wharf_model::Timestamp> {
        self.status.as_ref()?.held_until
    }
    /// What it said of itself.
    pub fn facts(&self) -> Option<&wharf_model::NodeFacts> {
        self.status.as_ref()?.facts.as_ref()
    }
}

/// What a node's unfinished tasks hold of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    /// How many there are.
    pub tasks: u32,
    /// How many there are of each service.
    pub services: BTreeMap<Arc<ServiceKey>, u32>,
    /// Processor time they reserve.
    pub cpus: Cpus,
    /// Memory they reserve.
    pub memory: Bytes,
    /// Disk they reserve.
    pub disk: Bytes,
    /// Processor time they may use at most; what they reserve, of those without a limit.
    pub limit_cpus: Cpus,
    /// Memory they may use at most; what they reserve, of those without a limit.
    pub limit_memory: Bytes,
    /// Ports of the node they publish, and how many do.
    pub host_ports: BTreeMap<(u16, Protocol), u32>,
    /// Devices of the node they have.
    pub devices: devices::Held,
}

/// What one unfinished task holds of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) cpus: Cpus,
    pub(crate) memory: Bytes,
    pub(crate) disk: Bytes,
    pub(crate) limit_cpus: Cpus,
    pub(crate) limit_memory: Bytes,
    pub(crate) host_ports: Vec<(u16, Protocol)>,
    pub(crate) devices: Vec<TaskDevice>,
}
impl Holding {
    pub(crate) fn of(revision: &ServiceRevision) -> Self {
        let reserved = &revision.spec.resources.reservations;
        let limits = &revision.spec.resources.limits;
        let fixed = |port: &&PortSpec| port.mode == PublishMode::Host && port.published_to.is_none();
        let ports = revision.spec.ports.iter().filter(fixed);
        let (cpus, memory) = (reserved.cpus.unwrap_or_default(), reserved.memory.unwrap_or_default());
        Self {
            cpus,
            memory,
            disk: revision.spec.policy.disk.unwrap_or_default(),
            limit_cpus: limits.cpus.unwrap_or(cpus),
            limit_memory: limits.memory.unwrap_or(memory),
            host_ports: ports.filter_map(|port| Some((port.published?, port.protocol))).collect(),
            devices: Vec::new(),
        }
    }
    /// With ports that were given to the task.
    pub(crate) fn add_ports(&mut self, given: &[GivenPort]) {
        self.host_ports.extend(given.iter().map(|port| (port.published, port.protocol)));
    }
    /// The same with the devices that were chosen.
    pub(crate) fn with(mut self, devices: Vec<TaskDevice>) -> Self {
        self.devices = devices;
        self
    }
    /// One that runs a command around a release publishes nothing.
    pub(crate) fn of_task(revision: &ServiceRevision, task: &Task) -> Self {
        let mut holding = Self::of(revision).with(task.devices.clone());
        if task.hook.is_some() {
            holding.host_ports.clear();
        }
        holding.add_ports(&task.ports);
        holding
    }
}
impl Load {
    pub(crate) fn add(&mut self, service: &Arc<ServiceKey>, holding: &Holding) {
        self.tasks += 1;
        match self.services.get_mut(&**service) {
            Some(count) => *count += 1,
            None => {
                self.services.insert(Arc::clone(service), 1);
            }
        }
        self.cpus.0 = self.cpus.0.saturating_add(holding.cpus.0);
        self.memory.0 = self.memory.0.saturating_add(holding.memory.0);
        self.disk.0 = self.disk.0.saturating_add(holding.disk.0);
        self.limit_cpus.0 = self.limit_cpus.0.saturating_add(holding.limit_cpus.0);
        self.limit_memory.0 = self.limit_memory.0.saturating_add(holding.limit_memory.0);
        for port in &holding.host_ports {
            *self.host_ports.entry(*port).or_default() += 1;
        }
        self.devices.add(&holding.devices);
    }
    pub(crate) fn subtract(&mut self, service: &ServiceKey, holding: &Holding) {
        self.tasks = self.tasks.saturating_sub(1);
        decrement(&mut self.services, service);
        self.cpus.0 = self.cpus.0.saturating_sub(holding.cpus.0);
        self.memory.0 = self.memory.0.saturating_sub(holding.memory.0);
        self.disk.0 = self.disk.0.saturating_sub(holding.disk.0);
        self.limit_cpus.0 = self.limit_cpus.0.saturating_sub(holding.limit_cpus.0);
        self.limit_memory.0 = self.limit_memory.0.saturating_sub(holding.limit_memory.0);
        for port in &holding.host_ports {
            decrement(&mut self.host_ports, port);
        }
        self.devices.release(&holding.devices);
    }
}
fn decrement<K: Ord + Borrow<Q>, Q: Ord + ?Sized>(counts: &mut BTreeMap<K, u32>, key: &Q) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What an unfinished task was counted with.
#[derive(Debug, Clone)]
struct Held {
    node: NodeId,
    service: Arc<ServiceKey>,
    holding: Arc<Holding>,
}

/// Everything a pass reads.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The cluster's epoch: grows when its store was restored from a backup.
    pub epoch: u64,
    /// The store's revision all this is true at.
    pub revision: Revision,
    /// Where networks are taken from.
    pub pool: AddressPool,
    /// Where networks' IPv6 subnets are taken from (RFC 4193).
    pub unique_local: Option<Ipv6Net>,
    /// How networks travel whose files do not say.
    pub(crate) backend: Backend,
    /// The most routes that whoever makes them outside the nodes can make, where somebody does.
    pub(crate) route_limit: Option<u32>,
    /// What holds for placement where files say nothing.
    pub(crate) placement: PlacementDefaults,
    /// What the cluster moves by itself, and how fast anything is moved.
    pub rebalancing: Rebalancing,
    /// Moves that somebody asked for last.
    rebalance_run: Option<Arc<RebalanceRun>>,
    quotas: BTreeMap<EnvironmentName, Quota>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    apps: BTreeMap<AppKey, Arc<AppRecord>>,
    services: BTreeMap<ServiceKey, Arc<ServiceRecord>>,
    revisions: BTreeMap<ServiceKey, BTreeMap<Generation, Arc<ServiceRevision>>>,
    releases: BTreeMap<AppKey, BTreeMap<ReleaseNumber, Arc<Release>>>,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    networks: BTreeMap<NetworkId, Arc<NetworkRecord>>,
    volumes: BTreeMap<VolumeId, Arc<VolumeRecord>>,
    files: BTreeMap<String, Arc<str>>,

    tasks_of_service: BTreeMap<ServiceKey, BTreeSet<TaskId>>,
    tasks_on_node: BTreeMap<NodeId, BTreeSet<TaskId>>,
    /// Those whose slots are to move, or were to.
    relocated: BTreeSet<TaskId>,
    /// Of every task that has one, finished or not: subnets are disjoint, so an address says its network.
    addresses: BTreeSet<(Ipv4Addr, TaskId)>,
    networks_by_name: BTreeMap<(AppKey, NetworkName), NetworkId>,
    networks_of_app: BTreeMap<AppKey, BTreeSet<NetworkId>>,
    networks_with_vips: BTreeSet<NetworkId>,
    volumes_by_name: BTreeMap<(AppKey, VolumeName), VolumeId>,
    /// What each unfinished task was counted with, so that it is taken off again exactly so.
    holdings: BTreeMap<TaskId, Held>,
    loads: BTreeMap<NodeId, Load>,
    /// The keys of services that hold something, one copy of each.
    keys: BTreeSet<Arc<ServiceKey>>,
    /// How many unfinished tasks of a service each node has: the loads, seen from the services.
    nodes_of_service: BTreeMap<Arc<ServiceKey>, BTreeMap<NodeId, u32>>,
    /// What most tasks of a revision hold, one copy for all of them.
    usual_holdings: BTreeMap<ServiceKey, BTreeMap<Generation, Arc<Holding>>>,
    /// Nodes by what they are and have.
    pub(crate) index: Index,
    /// Which nodes have an image, by everything it is called.
    images: BTreeMap<String, BTreeSet<NodeId>>,
    /// Services of which some known revision publishes ports or has routes: few, as a rule, of many.
    published: BTreeSet<ServiceKey>,
    /// Tasks that were stopped to make room.
    preempted: BTreeSet<TaskId>,
    /// Nodes on which somebody works at certain times.
    windowed: BTreeSet<NodeId>,
    gateways: BTreeSet<NodeId>,
    dirty: BTreeSet<AppKey>,
    /// What gateways have counted of services whose releases are judged. Known to the leader only.
    figures: BTreeMap<ServiceKey, Figures>,
    /// Tasks that run a command around a release: no replicas of their services, and not among those of any.
    hooks_of_app: BTreeMap<AppKey, BTreeSet<TaskId>>,
    /// What gateways need for TLS and no file says.
    pub obtained: crate::Obtained,
    /// What GPUs are worth to the services there are.
    pub(crate) outlook: packing::Kept,
    /// What the leader knows of tasks on their way into names and routes, and out of them.
    pub(crate) passage: Passage,
}

/// Reading.
impl World {
    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }
    /// A node's name; its id if the node is gone.
    pub fn node_name(&self, id: NodeId) -> String {
        self.node(id).map_or_else(|| id.to_string(), |node| node.record.name.to_string())
    }
    /// What a node's unfinished tasks hold of it.
    pub fn load(&self, node: NodeId) -> Load {
        self.loads.get(&node).cloned().unwrap_or_default()
    }
    pub(crate) fn load_ref(&self, node: NodeId) -> Option<&Load> {
        self.loads.get(&node)
    }
    /// Every app.
    pub fn apps(&self) -> impl Iterator<Item = &Arc<AppRecord>> {
        self.apps.values()
    }
    /// An app.
    pub fn app(&self, key: &AppKey) -> Option<&Arc<AppRecord>> {
        self.apps.get(key)
    }
    /// Every service of every app.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        self.services.values()
    }
    /// The services that publish ports or have routes, or did in a revision that is still known: who else has what a file asks for is
    /// found among these.
    pub(crate) fn published_services(&self) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        self.published.iter().filter_map(|key| self.services.get(key))
    }
    /// The services of an app, removed ones that still have tasks among them.
    pub fn services_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        // Service names are never empty, so no key of the app sorts before this; one past the app ends the walk.
        let app = app.clone();
        self.services
            .range(lowest_key(&app)..)
            .map(|(_, record)| record)
            .take_while(move |record| record.key.app == app)
    }
    /// A service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceRecord>> {
        self.services.get(key)
    }
    /// How tasks of one generation of a service are made.
    pub fn revision_of(&self, key: &ServiceKey, generation: Generation) -> Option<&Arc<ServiceRevision>> {
        self.revisions.get(key)?.get(&generation)
    }
    /// Every known revision of a service, oldest first.
    pub fn revisions_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<ServiceRevision>> {
        self.revisions.get(key).into_iter().flat_map(BTreeMap::values)
    }
    /// The services of an app of which revisions are known, also those whose records are gone.
    pub(crate) fn revised_services(&self, app: &AppKey) -> impl Iterator<Item = &ServiceKey> {
        let app = app.clone();
        let from = self.revisions.range(lowest_key(&app)..).map(|(key, _)| key);
        from.take_while(move |key| key.app == app)
    }
    /// A release.
    pub fn release(&self, app: &AppKey, number: ReleaseNumber) -> Option<&Arc<Release>> {
        self.releases.get(app)?.get(&number)
    }
    /// Every known release of an app, oldest first.
    pub fn releases_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<Release>> {
        self.releases.get(app).into_iter().flat_map(BTreeMap::values)
    }
    /// Every task.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }
    /// How many tasks there are, finished ones that are still kept among them.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }
    /// A task.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }
    /// The tasks of a service, finished ones that are still kept among them; oldest first.
    pub fn tasks_of(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Task>> {
        self.known(self.tasks_of_service.get(service))
    }
    /// The tasks of an app that run commands around its releases, finished ones that are still kept among them; oldest first.
    pub fn hooks_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<Task>> + use<'_> {
        self.known(self.hooks_of_app.get(app))
    }
    /// What gateways have counted of a service, where its releases are judged and this server leads.
    pub fn figures(&self, service: &ServiceKey) -> Option<&Figures> {
        self.figures.get(service)
    }
    /// The tasks of a node, finished ones that are still kept among them; oldest first.
    pub fn tasks_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.known(self.tasks_on_node.get(&node))
    }
    /// The tasks whose slots are to move to another node, were to, or have; oldest first.
    pub fn relocated(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.known(Some(&self.relocated))
    }
    /// The moves that somebody asked for last.
    pub const fn rebalance_run(&self) -> Option<&Arc<RebalanceRun>> {
        self.rebalance_run.as_ref()
    }
    /// How much the apps of an environment may want together, if that has a limit.
    pub fn quota(&self, environment: &EnvironmentName) -> Option<&Quota> {
        self.quotas.get(environment)
    }
    /// The quotas of all environments that have one.
    pub fn quotas(&self) -> impl Iterator<Item = (&EnvironmentName, &Quota)> {
        self.quotas.iter()
    }
    /// Every network.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<NetworkRecord>> {
        self.networks.values()
    }
    /// A network.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<NetworkRecord>> {
        self.networks.get(&id)
    }
    /// The networks an app made.
    pub fn networks_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<NetworkRecord>> {
        let ids = self.networks_of_app.get(app).into_iter().flatten();
        ids.filter_map(|id| self.networks.get(id))
    }
    /// The network that `name` means in `app`: its own, or for an external one that of another app of the environment.
    pub fn network_named(&self, app: &AppKey, name: &NetworkName) -> Option<&Arc<NetworkRecord>> {
        if let Some(id) = self.networks_by_name.get(&(app.clone(), name.clone())) {
            return self.networks.get(id);
        }
        let release = self.app(app).and_then(|record| self.release(app, record.release));
        let spec =
            release.and_then(|release| release.spec.networks.get(name)).filter(|spec| spec.external)?;
        self.network_called(&app.environment, spec.name.as_deref().unwrap_or(name.as_str()))
    }
    /// The network that other apps of an environment know by this name.
    pub fn network_called(
        &self,
        environment: &wharf_model::EnvironmentName,
        name: &str,
    ) -> Option<&Arc<NetworkRecord>> {
        let found = |network: &&Arc<NetworkRecord>| {
            !network.retired && network.app.environment == *environment && outer_network_name(network) == name
        };
        self.networks.values().find(found)
    }
    /// The networks on which services have virtual addresses.
    pub(crate) fn networks_with_vips(&self) -> impl Iterator<Item = &NetworkId> {
        self.networks_with_vips.iter()
    }
    /// The nodes that are gateways.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = &NodeId> + use<'_> {
        self.gateways.iter()
    }
    /// Every volume.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<VolumeRecord>> {
        self.volumes.values()
    }
    /// The volumes of an app; they outlive it unless they were asked to go with it.
    pub fn volumes_of(&self, app: &AppKey) -> impl Iterator<Item = &Arc<VolumeRecord>> {
        let app = app.clone();
        let names = self.volumes_by_name.range((app.clone(), lowest_volume())..);
        let of_app = names.take_while(move |((of, _), _)| *of == app);
        of_app.filter_map(|(_, id)| self.volumes.get(id))
    }
    /// The volume of an app with this key.
    pub fn volume_named(&self, app: &AppKey, name: &VolumeName) -> Option<&Arc<VolumeRecord>> {
        self.volumes.get(self.volumes_by_name.get(&(app.clone(), name.clone()))?)
    }
    /// The content, in base64, of the config or secret with this digest.
    pub fn file(&self, digest: &str) -> Option<&Arc<str>> {
        self.files.get(digest)
    }
    /// Who has or had each address of a subnet, finished tasks that are still kept among them.
    pub fn addresses_in(&self, subnet: Ipv4Net) -> impl Iterator<Item = (Ipv4Addr, &Arc<Task>)> {
        let lowest = TaskId::new(Default::default());
        let last = subnet.broadcast();
        let known = self.addresses.range((subnet.network(), lowest)..);
        let known = known.take_while(move |(address, _)| *address <= last);
        known.filter_map(|(address, id)| Some((*address, self.tasks.get(id)?)))
    }
    fn known<'a>(&'a self, ids: Option<&'a BTreeSet<TaskId>>) -> impl Iterator<Item = &'a Arc<Task>> {
        ids.into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }
}

/// Whether ports or routes lead to tasks of a revision.
const fn is_published(revision: &ServiceRevision) -> bool {
    !revision.spec.ports.is_empty() || !revision.spec.policy.routes.is_empty()
}

/// What other apps call a network: its own name if it has one, `<app>_<network>` otherwise.
pub(crate) fn outer_network_name(network: &NetworkRecord) -> String {
    network.spec.name.clone().unwrap_or_else(|| format!("{}_{}", network.app.name, network.name))
}

/// A name that no volume's sorts before.
fn lowest_volume() -> VolumeName {
    // `-` is the lowest character a volume name may have.
    VolumeName::try_from("-".to_owned()).unwrap_or_else(|_| unreachable!("`-` is a legal key"))
}

/// A key that no service of the app sorts before.
fn lowest_key(app: &AppKey) -> ServiceKey {
    // `-` is the lowest character a service name may have.
    let name = ServiceName::try_from("-".to_owned()).unwrap_or_else(|_| unreachable!("`-` is a legal key"));
    ServiceKey { app: app.clone(), name }
}

/// Which apps a change may have touched.
impl World {
    /// The apps that may have to be decided anew since this was last asked.
    pub fn take_dirty(&mut self) -> BTreeSet<AppKey> {
        std::mem::take(&mut self.dirty)
    }
    /// Whether an app waits to be decided.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }
    /// Marks an app, for a timer or a full pass.
    pub fn mark(&mut self, app: &AppKey) {
        if !self.dirty.contains(app) {
            self.dirty.insert(app.clone());
        }
    }
    /// Marks every app: what a changed node can mean, and what the periodic full pass does.
    pub fn mark_all(&mut self) {
        self.dirty.extend(self.apps.keys().cloned());
    }
}

/// Writing, as the store reports it.
impl World {
    /// What holds for networks whose files say nothing else changed.
    pub fn set_network_defaults(&mut self, defaults: &NetworkDefaults) {
        let limit = defaults.routes.as_ref().map(|program| program.limit);
        if (self.backend, self.route_limit) != (defaults.backend, limit) {
            (self.backend, self.route_limit) = (defaults.backend, limit);
            self.mark_all();
        }
    }
    /// Moves that somebody asked for, as they are stored now; none if that was forgotten.
    pub fn set_rebalance_run(&mut self, run: Option<RebalanceRun>) {
        self.rebalance_run = run.map(Arc::new);
    }
    /// A quota as it is stored now.
    pub fn insert_quota(&mut self, record: QuotaRecord) {
        self.quotas.insert(record.environment, record.quota);
    }
    /// An environment has no quota any more.
    pub fn remove_quota(&mut self, environment: &EnvironmentName) {
        self.quotas.remove(environment);
    }
    /// A node joined or was changed by people.
    pub fn insert_node(&mut self, record: NodeRecord) {
        let id = record.id;
        match self.nodes.get_mut(&id) {
            Some(node) if node.record == record => return,
            Some(node) => node.record = record,
            None => {
                self.nodes.insert(id, Node { record, status: None });
            }
        }
        self.note_node(id);
        self.mark_all();
    }
    /// What is observed of a node changed. Facts that no decision reads do not mark apps.
    ///
    /// Answers whether the node is known; a status of an unknown node is dropped.
    pub fn set_node_status(&mut self, id: NodeId, status: NodeStatus) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let matters = |status: &NodeStatus| {
            let facts = status.facts.as_ref();
            let labels = facts.and_then(|facts| facts.engine.as_ref()).map(|engine| engine.labels.clone());
            let capacity = facts.map(|facts| {
                (
                    (facts.address, facts.platform.clone(), facts.cpus, facts.memory, facts.disk),
                    (facts.taken_ports.clone(), facts.subnets.clone(), facts.devices.clone()),
                )
            });
            let trusted =
                (status.suspected.is_none(), status.missing, status.held_until.is_none(), status.spared);
            (status.state, capacity, labels, trusted)
        };
        let changed = node.status.as_ref().is_none_or(|old| matters(old) != matters(&status));
        let has =
            |status: &NodeStatus| status.facts.as_ref().map(|facts| (facts.devices.clone(), facts.cpus));
        let other_devices = node.status.as_ref().is_none_or(|old| has(old) != has(&status));
        let (was, was_full, was_suspected) =
            (node.state(), crate::full_disk(node).is_some(), node.is_suspected());
        let images = |status: Option<&NodeStatus>| {
            let facts = status.and_then(|status| status.facts.as_ref());
            facts.map(|facts| facts.images.clone()).unwrap_or_default()
        };
        let (images_before, images_now) = (images(node.status.as_ref()), images(Some(&status)));
        node.status = Some(status);
        self.note_images(id, &images_before, &images_now);
        self.note_node(id);
        let Some(node) = self.nodes.get(&id) else { return false };
        let other_room = was_full != crate::full_disk(node).is_some();
        let changed = changed || other_room;
        let is_back = was == NodeState::Down && node.state() != was;
        let is_heard = was_suspected && !node.is_suspected() && node.state() != NodeState::Down;
        if is_back || is_heard {
            self.note_return(id);
        }
        if other_devices || other_room {
            self.outlook.forget();
        }
        if changed {
            self.mark_all();
            self.settle_passage();
        }
        true
    }
    /// A node was removed from the cluster.
    pub fn remove_node(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.remove(&id) {
            let images = node.facts().map(|facts| facts.images.clone()).unwrap_or_default();
            self.note_images(id, &images, &[]);
            self.note_node(id);
            self.outlook.forget();
            self.mark_all();
            self.settle_passage();
        }
    }
    /// An app as it is stored now.
    pub fn insert_app(&mut self, record: AppRecord) {
        let old = self.apps.get(&record.key);
        if old.is_none_or(|old| **old != record) {
            // What routes say of secrets is that of the app's release.
            let other_release = old.is_some_and(|old| old.release != record.release);
            let key = record.key.clone();
            self.mark(&key);
            self.apps.insert(key.clone(), Arc::new(record));
            if other_release {
                let services: Vec<_> = self.services_of(&key).map(|record| record.key.clone()).collect();
                services.iter().for_each(|service| self.note_other_tasks(service));
            }
        }
    }
    /// An app is gone.
    pub fn remove_app(&mut self, key: &AppKey) {
        self.apps.remove(key);
    }
    /// A service as it is stored now.
    pub fn insert_service(&mut self, record: ServiceRecord) {
        if self.services.get(&record.key).is_none_or(|old| **old != record) {
            self.outlook.forget();
            self.mark(&record.key.app);
            let key = record.key.clone();
            self.services.insert(key.clone(), Arc::new(record));
            self.note_other_tasks(&key);
        }
    }
    /// A service is gone.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if self.services.remove(key).is_some() {
            self.outlook.forget();
            self.mark(&key.app);
        }
    }
    /// A revision as it is stored.
    pub fn insert_revision(&mut self, revision: ServiceRevision) {
        let (key, generation) = (revision.key.clone(), revision.generation);
        let policy = &revision.spec.policy;
        let asked = revision.spec.placement.constraints.iter().map(|constraint| constraint.key.as_str());
        let asked = asked.chain(revision.spec.placement.spread.iter().map(String::as_str));
        let asked = asked.chain(policy.affinity.iter().map(|wish| wish.scope.as_str()));
        let asked = asked.chain(policy.availability.iter().map(|minimum| minimum.over.as_str()));
        self.index.group_by(asked, &self.nodes, &self.loads);
        let usual = Arc::new(Holding::of(&revision));
        self.usual_holdings.entry(key.clone()).or_default().insert(generation, usual);
        if is_published(&revision) {
            self.published.insert(key.clone());
        }
        let revisions = self.revisions.entry(key.clone()).or_default();
        if revisions.insert(generation, Arc::new(revision)).is_none() {
            self.outlook.forget();
            self.mark(&key.app);
        }
        // Tasks that were counted before their revision was known are counted again.
        let tasks: Vec<_> =
            self.tasks_of(&key).filter(|task| task.generation == generation).cloned().collect();
        for task in tasks {
            self.release_holding(task.id);
            self.count_holding(&task);
        }
    }
    /// A revision is gone.
    pub fn remove_revision(&mut self, key: &ServiceKey, generation: Generation) {
        if let Some(revisions) = self.revisions.get_mut(key) {
            revisions.remove(&generation);
            if !revisions.values().any(|revision| is_published(revision)) {
                self.published.remove(key);
            }
            if revisions.is_empty() {
                self.revisions.remove(key);
            }
        }
        if let Some(usual) = self.usual_holdings.get_mut(key) {
            usual.remove(&generation);
            if usual.is_empty() {
                self.usual_holdings.remove(key);
            }
        }
    }
    /// A release as it is stored.
    pub fn insert_release(&mut self, release: Release) {
        self.mark(&release.app);
        self.releases.entry(release.app.clone()).or_default().insert(release.number, Arc::new(release));
    }
    /// A release is gone.
    pub fn remove_release(&mut self, app: &AppKey, number: ReleaseNumber) {
        if let Some(releases) = self.releases.get_mut(app) {
            releases.remove(&number);
            if releases.is_empty() {
                self.releases.remove(app);
            }
        }
    }
    /// A task as it is stored now. A status that is newer than the task's own is kept: the two are stored apart.
    pub fn insert_task(&mut self, mut task: Task) {
        if let Some(old) = self.tasks.get(&task.id) {
            if !task.status.is_newer_than(&old.status) {
                task.status = old.status.clone();
            }
            if **old == task {
                return;
            }
        }
        self.replace_task(Arc::new(task));
    }
    /// What is known of a task, as it is stored now.
    ///
    /// Answers whether the task is known; a status of an unknown task is dropped.
    pub fn set_task_status(&mut self, id: TaskId, status: TaskStatus) -> bool {
        let Some(old) = self.tasks.get(&id) else { return false };
        if old.status != status {
            let task = Task { status, ..Task::clone(old) };
            self.replace_task(Arc::new(task));
        }
        true
    }
    /// What gateways have counted of a service; nothing if that is not known here, or of no use any more.
    pub fn set_figures(&mut self, service: &ServiceKey, figures: Option<Figures>) {
        if self.figures.get(service) != figures.as_ref() {
            match figures {
                Some(figures) => drop(self.figures.insert(service.clone(), figures)),
                None => drop(self.figures.remove(service)),
            }
            self.mark(&service.app);
        }
    }
    /// A task and its status are gone.
    pub fn remove_task(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.remove(&id) {
            self.forget_passage(id);
            self.unindex(&task);
            self.mark(&task.service.app);
        }
    }
    /// A network as it is stored now.
    pub fn insert_network(&mut self, network: NetworkRecord) {
        self.mark(&network.app);
        let name = (network.app.clone(), network.name.clone());
        let known = self.networks.get(&network.id).map(|known| known.retired);
        if !network.retired {
            self.networks_by_name.insert(name, network.id);
        } else if self.networks_by_name.get(&name) == Some(&network.id) {
            self.networks_by_name.remove(&name);
        }
        if known.is_some_and(|retired| retired != network.retired) {
            // Tasks of other apps that are on it move with it.
            self.mark_all();
        }
        if !self.networks_of_app.contains_key(&network.app) {
            self.networks_of_app.insert(network.app.clone(), BTreeSet::new());
        }
        if let Some(ids) = self.networks_of_app.get_mut(&network.app) {
            ids.insert(network.id);
        }
        if network.vips.is_empty() {
            self.networks_with_vips.remove(&network.id);
        } else {
            self.networks_with_vips.insert(network.id);
        }
        if self.networks.insert(network.id, Arc::new(network)).is_none() {
            // Any app of the environment may have waited for it as an external one.
            self.mark_all();
        }
    }
    /// A network is gone.
    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(network) = self.networks.remove(&id) {
            self.networks_with_vips.remove(&id);
            if let Some(ids) = self.networks_of_app.get_mut(&network.app) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.networks_of_app.remove(&network.app);
                }
            }
            let name = (network.app.clone(), network.name.clone());
            if self.networks_by_name.get(&name) == Some(&id) {
                self.networks_by_name.remove(&name);
            }
            self.mark(&network.app);
        }
    }
    /// A volume as it is stored now.
    pub fn insert_volume(&mut self, volume: VolumeRecord) {
        self.mark(&volume.app);
        self.volumes_by_name.insert((volume.app.clone(), volume.name.clone()), volume.id);
        self.volumes.insert(volume.id, Arc::new(volume));
    }
    /// A volume is gone.
    pub fn remove_volume(&mut self, id: VolumeId) {
        if let Some(volume) = self.volumes.remove(&id) {
            // Another may have taken its place, in whatever order that is heard.
            let name = (volume.app.clone(), volume.name.clone());
            if self.volumes_by_name.get(&name) == Some(&id) {
                self.volumes_by_name.remove(&name);
            }
            self.mark(&volume.app);
        }
    }
    /// The content of a config or secret, in base64, by the digest its [`wharf_model::FileSpec`] carries.
    pub fn insert_file(&mut self, digest: String, content: Arc<str>) {
        self.files.insert(digest, content);
    }
    /// A content nothing refers to any more.
    pub fn remove_file(&mut self, digest: &str) {
        self.files.remove(digest);
    }

    /// Carries a change out here, as the store's watch will report it. Doing it twice does no harm.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::CreateTask(task) if !self.tasks.contains_key(&task.id) => {
                self.replace_task(Arc::clone(task));
            }
            Change::CreateTask(task) => self.insert_task(Task::clone(task)),
            Change::StopTask { task, reason } => self.edit_task(*task, |task| task.stop = Some(*reason)),
            Change::PreemptTask { task, makes_room_for } => self.edit_task(*task, |task| {
                if task.stop.is_none() {
                    task.stop = Some(StopReason::Preempted);
                    task.makes_room_for = Some(makes_room_for.clone());
                }
            }),
            Change::MoveTask { task, relocation } => {
                self.edit_task(*task, |task| task.relocation = Some(relocation.clone()));
            }
            Change::PutRebalanceRun(run) => self.set_rebalance_run(Some(run.clone())),
            Change::DrainedTask { task, at, .. } => {
                self.edit_task(*task, |task| task.drained = task.drained.or(Some(*at)));
            }
            Change::LoseTask { task, message, at } => self.edit_task(*task, |task| {
                if !task.status.phase.is_over() {
                    task.status.phase = Phase::Lost;
                    task.status.message.clone_from(message);
                    task.status.ended_at = Some(*at);
                }
            }),
            Change::RemoveTask(id) => self.remove_task(*id),
            Change::PutNetwork(network) => self.insert_network(network.clone()),
            Change::RemoveNetwork(id) => self.remove_network(*id),
            Change::PutVolume(volume) => self.insert_volume(volume.clone()),
            Change::RemoveVolume(id) => self.remove_volume(*id),
            Change::PutApp(app) => self.insert_app(app.clone()),
            Change::SetRollout { app, rollout } => {
                if let Some(record) = self.apps.get(app) {
                    let record = AppRecord { rollout: rollout.clone(), ..AppRecord::clone(record) };
                    self.insert_app(record);
                }
            }
            Change::RemoveApp(key) => self.remove_app(key),
            Change::PutService(service) => self.insert_service(service.clone()),
            Change::RemoveService(key) => self.remove_service(key),
            Change::PutRevision(revision) => self.insert_revision(revision.clone()),
            Change::RemoveRevision(key, generation) => self.remove_revision(key, *generation),
            Change::PutRelease(release) => self.insert_release(release.clone()),
            Change::SetOutcome { app, release, outcome } => {
                if let Some(record) = self.release(app, *release) {
                    let record = Release { outcome: Some(outcome.clone()), ..Release::clone(record) };
                    self.insert_release(record);
                }
            }
            Change::RemoveRelease(app, number) => self.remove_release(app, *number),
            Change::SetNodeStatus { node, status } => {
                self.set_node_status(*node, status.clone());
            }
        }
    }

    fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut Task)) {
        if let Some(old) = self.tasks.get(&id) {
            let mut task = Task::clone(old);
            edit(&mut task);
            if task != **old {
                self.replace_task(Arc::new(task));
            }
        }
    }
    fn replace_task(&mut self, task: Arc<Task>) {
        let old = self.tasks.remove(&task.id);
        if let Some(old) = &old {
            self.unindex(old);
        }
        self.note_passage(&task, old.is_some_and(|old| old.is_ready()));
        self.mark(&task.service.app);
        if task.stop == Some(StopReason::Preempted) {
            self.preempted.insert(task.id);
        }
        if task.hook.is_some() {
            enter(&mut self.hooks_of_app, &task.service.app, task.id);
        } else {
            enter(&mut self.tasks_of_service, &task.service, task.id);
        }
        if let Some(node) = task.node {
            enter(&mut self.tasks_on_node, &node, task.id);
        }
        self.addresses.extend(task.addresses.values().map(|address| (*address, task.id)));
        if task.relocation.is_some() {
            self.relocated.insert(task.id);
        }
        self.count_holding(&task);
        self.tasks.insert(task.id, task);
    }
    fn unindex(&mut self, task: &Task) {
        withdraw(&mut self.tasks_of_service, &task.service, task.id);
        withdraw(&mut self.hooks_of_app, &task.service.app, task.id);
        self.preempted.remove(&task.id);
        if let Some(node) = task.node {
            withdraw(&mut self.tasks_on_node, &node, task.id);
        }
        self.relocated.remove(&task.id);
        for address in task.addresses.values() {
            self.addresses.remove(&(*address, task.id));
        }
        self.release_holding(task.id);
    }
    fn count_holding(&mut self, task: &Task) {
        let Some(id) = task.node.filter(|_| !task.is_over()) else { return };
        let (holding, service) = (self.holding_of(task), self.intern(&task.service));
        self.loads.entry(id).or_default().add(&service, &holding);
        let nodes = match self.nodes_of_service.get_mut(&*service) {
            Some(nodes) => nodes,
            None => self.nodes_of_service.entry(Arc::clone(&service)).or_default(),
        };
        *nodes.entry(id).or_default() += 1;
        self.holdings.insert(task.id, Held { node: id, service, holding });
        self.note_load(id);
    }
    fn release_holding(&mut self, id: TaskId) {
        let Some(Held { node, service, holding }) = self.holdings.remove(&id) else { return };
        if let Some(load) = self.loads.get_mut(&node) {
            load.subtract(&service, &holding);
        }
        if let Some(nodes) = self.nodes_of_service.get_mut(&*service) {
            decrement(nodes, &node);
            if nodes.is_empty() {
                self.nodes_of_service.remove(&*service);
                self.keys.remove(&*service);
            }
        }
        self.note_load(node);
    }
    fn note_load(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id) {
            self.index.set_load(node, self.loads.get(&id));
        }
    }
    fn intern(&mut self, service: &ServiceKey) -> Arc<ServiceKey> {
        let known = self.interned(service);
        if Arc::strong_count(&known) == 1 {
            self.keys.insert(Arc::clone(&known));
        }
        known
    }
    /// A node is new or has changed.
    fn note_node(&mut self, id: NodeId) {
        self.windowed.remove(&id);
        self.gateways.remove(&id);
        match self.nodes.get(&id) {
            Some(node) => {
                self.index.put(node, self.loads.get(&id));
                if !node.record.scheduling.windows.is_empty() {
                    self.windowed.insert(id);
                }
                if node.record.roles.gateway {
                    self.gateways.insert(id);
                }
            }
            None => self.index.remove(id),
        }
    }
    /// A node has these images now, and not those.
    fn note_images(&mut self, id: NodeId, before: &[String], now: &[String]) {
        if before == now {
            return;
        }
        for image in before {
            if let Some(nodes) = self.images.get_mut(image) {
                nodes.remove(&id);
                if nodes.is_empty() {
                    self.images.remove(image);
                }
            }
        }
        for image in now {
            self.images.entry(image.clone()).or_default().insert(id);
        }
    }
}

/// What placement reads beside the records.
impl World {
    /// How services are placed whose files do not say it.
    pub fn set_placement_defaults(&mut self, defaults: PlacementDefaults) {
        if self.placement != defaults {
            self.placement = defaults;
            self.mark_all();
        }
    }
    /// How services are placed whose files do not say it.
    pub const fn placement_strategy(&self) -> PlacementStrategy {
        self.placement.strategy
    }
    /// The next moment at which somebody begins to work on a node, or is done.
    pub(crate) fn next_window_edge(&self, now: Timestamp) -> Option<Timestamp> {
        let nodes = self.windowed.iter().filter_map(|id| self.nodes.get(id));
        nodes.filter_map(|node| node.record.scheduling.next_edge(now)).min()
    }
    /// The one copy of a service's key, or one of its own.
    pub(crate) fn interned(&self, service: &ServiceKey) -> Arc<ServiceKey> {
        self.keys.get(service).map_or_else(|| Arc::new(service.clone()), Arc::clone)
    }
    /// What an unfinished task holds of its node.
    pub(crate) fn holding_of(&self, task: &Task) -> Arc<Holding> {
        if task.hook.is_none() && task.ports.is_empty() && task.devices.is_empty() {
            let usual = self.usual_holdings.get(&task.service);
            return usual.and_then(|usual| usual.get(&task.generation)).map(Arc::clone).unwrap_or_default();
        }
        let revision = self.revision_of(&task.service, task.generation);
        let unknown = || Holding::default().with(task.devices.clone());
        Arc::new(revision.map_or_else(unknown, |revision| Holding::of_task(revision, task)))
    }
    /// The nodes that have unfinished tasks of a service, and how many.
    pub(crate) fn where_is(&self, service: &ServiceKey) -> impl Iterator<Item = (NodeId, u32)> + use<'_> {
        self.nodes_of_service.get(service).into_iter().flatten().map(|(id, count)| (*id, *count))
    }
    /// What a service's file says now.
    pub(crate) fn current_spec(&self, key: &ServiceKey) -> Option<&ServiceSpec> {
        let record = self.service(key).filter(|record| !record.removed)?;
        self.revision_of(key, record.generation).map(|revision| &revision.spec)
    }
    /// How important the tasks of a revision are: what its service says, or else its app.
    pub(crate) fn priority_of(&self, revision: &ServiceRevision) -> Priority {
        let own = revision.spec.policy.priority;
        own.unwrap_or_else(|| {
            let release = self.release(&revision.key.app, revision.release);
            release.map(|release| release.spec.policy.priority).unwrap_or_default()
        })
    }
    /// The services that are less important than that, and how important they are.
    pub(crate) fn services_below(&self, priority: Priority) -> BTreeMap<ServiceKey, Priority> {
        let of = |record: &ServiceRecord| {
            let revision = self.revision_of(&record.key, record.generation)?;
            Some((record.key.clone(), self.priority_of(revision)))
        };
        let all = self.services.values().filter_map(|record| of(record));
        all.filter(|(_, own)| *own < priority).collect()
    }
    /// Tasks that were stopped to make room for others, as long as they are kept.
    pub(crate) fn preempted(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.known(Some(&self.preempted))
    }
    fn nodes_with_image(&self, image: &Image) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        let names = [Some(image.reference.as_str()), image.digest.as_deref(), image.id.as_deref()];
        names.into_iter().flatten().filter_map(|name| self.images.get(name))
    }
    /// Whether some node is known to have an image.
    pub(crate) fn is_image_known(&self, image: &Image) -> bool {
        !self.images.is_empty() && self.nodes_with_image(image).next().is_some()
    }
    /// Whether a node is known to have an image.
    pub(crate) fn has_image(&self, node: NodeId, image: &Image) -> bool {
        self.nodes_with_image(image).any(|nodes| nodes.contains(&node))
    }
    /// The nodes that are known to have an image, unless they are more than that.
    pub(crate) fn nodes_with(&self, image: &Image, most: usize) -> Option<Vec<NodeId>> {
        let mut nodes = Vec::new();
        for known in self.nodes_with_image(image) {
            if nodes.len() + known.len() > most {
                return None;
            }
            nodes.extend(known.iter().copied());
        }
        Some(nodes)
    }
    /// The nodes that are known to have an image that people call so, or have tasks of it. Without a tag any will do.
    pub(crate) fn nodes_near_image(&self, wanted: &str) -> BTreeSet<NodeId> {
        let is_it = |reference: &str| reference == wanted || untagged(reference) == wanted;
        let known = self.images.iter().filter(|(image, _)| is_it(image)).flat_map(|(_, nodes)| nodes);
        let mut nodes: BTreeSet<NodeId> = known.copied().collect();
        // Nodes may know an image by its digest alone.
        for record in self.services.values() {
            let revision = self.revision_of(&record.key, record.generation);
            let Some(image) = revision.map(|revision| &revision.image) else { continue };
            if is_it(&image.reference) {
                nodes.extend(self.where_is(&record.key).map(|(id, _)| id));
                nodes.extend(self.nodes_with_image(image).flatten());
            }
        }
        nodes
    }
}

/// An image's name without what says which one of that name.
fn untagged(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        // A registry's port is no tag.
        Some((name, tag)) if !tag.contains('/') => name,
        Some(_) | None => name,
    }
}

/// Keys are copied only the first time.
fn enter<K: Ord + Clone>(index: &mut BTreeMap<K, BTreeSet<TaskId>>, key: &K, id: TaskId) {
    match index.get_mut(key) {
        Some(ids) => drop(ids.insert(id)),
        None => drop(index.insert(key.clone(), BTreeSet::from([id]))),
    }
}
fn withdraw<K: Ord>(index: &mut BTreeMap<K, BTreeSet<TaskId>>, key: &K, id: TaskId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Cluster, app, app_key, key, node_id, replicas, service};

    fn reserved() -> Cluster {
        let mut cluster = Cluster::of(1);
        let mut web = replicas(service("web"), 2);
        web.resources.reservations.memory = Some(Bytes(1 << 20));
        cluster.up(&app(&[("web", web)]));
        cluster.settle();
        cluster
    }

    #[test]
    fn loads_are_right_in_whatever_order_tasks_and_revisions_arrive() {
        let cluster = reserved();
        let mut late = World::default();
        for node in cluster.world.nodes() {
            late.insert_node(node.record.clone());
        }
        for task in cluster.world.tasks() {
            late.insert_task(Task::clone(task));
        }
        assert_eq!(late.load(node_id(1)).memory, Bytes(0));
        for revision in cluster.world.revisions_of(&key("web")) {
            late.insert_revision(ServiceRevision::clone(revision));
        }
        assert_eq!(late.load(node_id(1)), cluster.world.load(node_id(1)));
        assert_eq!(late.load(node_id(1)).memory, Bytes(2 << 20));
        for task in cluster.world.tasks() {
            late.remove_task(task.id);
        }
        assert_eq!(late.load(node_id(1)), Load::default());
    }

    #[test]
    fn a_status_survives_its_tasks_record_being_written_again() {
        let mut cluster = reserved();
        let task = cluster.ready("web").remove(0);
        let stored = Task {
            status: TaskStatus::default(),
            stop: Some(wharf_model::StopReason::Stopped),
            ..task.clone()
        };
        cluster.world.insert_task(stored);
        let now = cluster.world.task(task.id).unwrap();
        assert_eq!((now.status.phase, now.stop.is_some()), (Phase::Running, true));
    }

    #[test]
    fn only_what_changed_is_to_be_decided_anew() {
        let mut cluster = reserved();
        cluster.world.take_dirty();
        let task = cluster.ready("web").remove(0);
        cluster.world.insert_task(task.clone());
        cluster.world.set_task_status(task.id, task.status.clone());
        assert!(!cluster.world.is_dirty(), "the same again is no news");
        cluster.world.set_task_status(task.id, TaskStatus { phase: Phase::Stopping, ..task.status });
        assert_eq!(cluster.world.take_dirty(), [app_key()].into());
        let node = cluster.world.node(node_id(1)).unwrap().clone();
        let mut status = node.status.unwrap();
        status.facts.as_mut().unwrap().kernel = "6.2".into();
        cluster.world.set_node_status(node_id(1), status.clone());
        assert!(!cluster.world.is_dirty(), "no decision reads a kernel's version");
        status.state = NodeState::Down;
        cluster.world.set_node_status(node_id(1), status);
        assert!(cluster.world.is_dirty());
    }

    #[test]
    fn an_apps_services_are_its_own() {
        let mut world = World::default();
        for (app, name) in [("a", "-"), ("a", "z"), ("b", "a"), ("a-b", "a")] {
            let key = ServiceKey {
                app: AppKey { environment: "prod".parse().unwrap(), name: app.parse().unwrap() },
                name: name.parse().unwrap(),
            };
            world.insert_service(ServiceRecord::new(key, Generation(1), Default::default()));
        }
        let a = AppKey { environment: "prod".parse().unwrap(), name: "a".parse().unwrap() };
        assert_eq!(world.services_of(&a).count(), 2);
    }
}
