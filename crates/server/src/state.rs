//! What the store holds, in memory: every server keeps it up to date by one watch and reads nothing else.
//!
//! - Whoever reads sees one revision. After a commit, [`State::reached`] waits until what was written is visible here.
//! - Each key's revision is kept with it, for conditional commits.
//! - What agents report is visible at once (`live`), before and without being written to the store; decisions read stored statuses only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_engine::World;
use wharf_model::{
    Event, EventId, Health, NodeFacts, NodeId, Revision as ModelRevision, ServerId, Task, TaskId, TaskStatus,
    TokenId, VolumeId,
};
use wharf_process::errors::chain;
use wharf_store::{Backend, Batch, Revision, StoreError};

use crate::{
    records::{ClusterRecord, Key, LeaderRecord, Record, RevokedRecord, ServerRecord, TokenRecord},
    seal::SealKey,
};

/// How many events are kept.
pub const EVENTS_KEPT: usize = 10_000;

/// Everything a server knows.
pub struct State {
    backend: Arc<dyn Backend>,
    seal: SealKey,
    inner: RwLock<Inner>,
    live: Mutex<Live>,
    /// The revision that can be read here.
    revision: watch::Sender<Revision>,
    /// Counts what may concern controllers: every change but leases and events.
    concerns: watch::Sender<u64>,
    /// Counts what people may want to see: stored changes and live ones.
    visible: watch::Sender<u64>,
    /// Counts what agents said that is worth storing.
    reported: watch::Sender<u64>,
    /// Counts connections, disconnections and reports of nodes.
    links: watch::Sender<u64>,
}

/// What is behind the lock.
#[derive(Default)]
pub struct Inner {
    /// What decisions read.
    pub world: World,
    /// The cluster itself; absent until it was initialised.
    pub cluster: Option<ClusterRecord>,
    /// Who decides.
    pub leader: Option<LeaderRecord>,
    /// The servers that announce themselves.
    pub servers: BTreeMap<ServerId, ServerRecord>,
    /// Grows when a server comes, goes or answers elsewhere.
    pub servers_version: u64,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Revoked certificates, by serial number.
    pub revoked: BTreeMap<String, RevokedRecord>,
    /// The latest events, by id and so by time.
    pub events: BTreeMap<EventId, Event>,
    revisions: HashMap<Key, Revision>,
}
impl Inner {
    /// The revision at which a key was last written; `None` if it is absent.
    pub fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.revisions.get(key).copied()
    }
    /// Whether a server announces that it answers at this address.
    pub fn serves_at(&self, address: std::net::IpAddr) -> bool {
        let host = |text: &String| Some(text.parse::<wharf_api::transport::ServerAddress>().ok()?.host().to_owned());
        let text = address.to_string();
        self.servers.values().flat_map(|server| &server.addresses).filter_map(host).any(|host| host == text)
    }
    /// The digests of the contents that are kept for an app.
    pub fn files_of(&self, app: &wharf_model::AppKey) -> Vec<String> {
        let digest = |key: &Key| match key {
            Key::File(owner, digest) if owner == app => Some(digest.clone()),
            _ => None,
        };
        self.revisions.keys().filter_map(digest).collect()
    }
    /// A batch that expects `key` as it is read here.
    pub fn expecting(&self, batch: Batch, key: &Key) -> Batch {
        batch.expect(key.to_string(), self.revision_of(key))
    }
}

/// What agents said last, stored or not.
#[derive(Default)]
struct Live {
    tasks: HashMap<TaskId, TaskStatus>,
    /// Tasks of which something was said since it was last asked.
    fresh: HashSet<TaskId>,
    nodes: HashMap<NodeId, LiveNode>,
    /// Volumes whose data is gone from a node.
    removed_volumes: BTreeSet<(VolumeId, NodeId)>,
}

/// What a node's agent said last.
#[derive(Debug, Clone, Default)]
pub struct LiveNode {
    /// Facts, newer than the stored ones in what changes often.
    pub facts: Option<NodeFacts>,
    /// What is not as it should be on the node.
    pub problems: Vec<String>,
    /// The revision of the assignments it works on.
    pub observed: ModelRevision,
}

impl State {
    /// Reads the whole store.
    ///
    /// # Errors
    /// If the store cannot be read, or holds something this version does not understand.
    pub async fn load(backend: Arc<dyn Backend>, seal: SealKey) -> Result<Arc<Self>, StoreError> {
        let state = Self {
            backend,
            seal,
            inner: RwLock::default(),
            live: Mutex::default(),
            revision: watch::Sender::new(Revision(0)),
            concerns: watch::Sender::new(0),
            visible: watch::Sender::new(0),
            reported: watch::Sender::new(0),
            links: watch::Sender::new(0),
        };
        state.reload().await?;
        Ok(Arc::new(state))
    }

    /// Reads; never held across an `.await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read()
    }
    /// The store itself.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
    /// The key of sealed contents.
    pub const fn seal(&self) -> &SealKey {
        &self.seal
    }
    /// Wakes when something changes that a controller may read.
    pub fn concerns(&self) -> watch::Receiver<u64> {
        self.concerns.subscribe()
    }
    /// Wakes when something changes that a person may want to see.
    pub fn visible(&self) -> watch::Receiver<u64> {
        self.visible.subscribe()
    }

    /// Wakes when an agent said something that is worth storing.
    pub fn reported(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }
    /// Wakes when a node connects, disconnects or says something new of itself.
    pub fn links(&self) -> watch::Receiver<u64> {
        self.links.subscribe()
    }
    /// A node has connected or disconnected.
    pub fn link_changed(&self) {
        self.links.send_modify(|count| *count += 1);
    }
    /// The apps that may have to be decided anew since this was last asked.
    pub fn take_dirty(&self) -> std::collections::BTreeSet<wharf_model::AppKey> {
        self.inner.write().world.take_dirty()
    }

    /// Commits, and waits until what was written can be read here.
    ///
    /// # Errors
    /// As [`Backend::commit`].
    pub async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        let revision = self.backend.commit(batch).await?;
        self.reached(revision).await;
        Ok(revision)
    }

    /// Returns once `revision` can be read here, or after five seconds: then the watch is broken, which [`State::follow`] mends.
    pub async fn reached(&self, revision: Revision) {
        let mut seen = self.revision.subscribe();
        let wait = seen.wait_for(|seen| *seen >= revision);
        if tokio::time::timeout(Duration::from_secs(5), wait).await.is_err() {
            tracing::warn!(%revision, "the store's watch is behind");
        }
    }

    /// Keeps up with the store until `shutdown`. When the watch breaks, everything is read again.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let after = *self.revision.borrow();
            let error = tokio::select! {
                // Cancel-safe: waits for a flag.
                () = shutdown.cancelled() => return,
                // Dropped only on shutdown, when nobody reads any more.
                error = self.follow_once(after) => error,
            };
            tracing::warn!(error = %chain(&error), "the store's watch broke; reading everything again");
            while let Err(error) = self.reload().await {
                tracing::warn!(error = %chain(&error), "cannot read the store; trying again");
                tokio::select! {
                    // Cancel-safe: waits for a flag.
                    () = shutdown.cancelled() => return,
                    // Cancel-safe: a timer.
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        }
    }

    async fn follow_once(&self, after: Revision) -> StoreError {
        // What is ready together is applied together: a batch is seen whole.
        let mut changes = match self.backend.watch("", after).await {
            Ok(changes) => changes.ready_chunks(4096),
            Err(error) => return error,
        };
        while let Some(chunk) = changes.next().await {
            if let Err(error) = self.apply(chunk) {
                return error;
            }
        }
        StoreError::Unavailable { place: "the store's watch".into(), source: "it ended".into() }
    }

    fn apply(&self, chunk: Vec<Result<wharf_store::Event, StoreError>>) -> Result<(), StoreError> {
        let mut concerns = false;
        let mut reached = *self.revision.borrow();
        let mut failure = None;
        {
            let mut inner = self.inner.write();
            for event in chunk {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                };
                reached = reached.max(event.revision);
                let Ok(key) = event.key.parse::<Key>() else { continue };
                concerns |= !matches!(key, Key::Lease | Key::Event(_) | Key::Server(_));
                match event.value {
                    Some(bytes) => {
                        let record = Record::decode(&key, &bytes)?;
                        self.put(&mut inner, key, event.revision, record);
                    }
                    None => remove(&mut inner, &key, event.revision),
                }
            }
            inner.world.revision = ModelRevision(reached.0);
        }
        self.revision.send_replace(reached);
        if concerns {
            self.concerns.send_modify(|count| *count += 1);
        }
        self.visible.send_modify(|count| *count += 1);
        failure.map_or(Ok(()), Err)
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let snapshot = self.backend.read("").await?;
        let mut inner = Inner::default();
        let mut later = Vec::new();
        for (text, entry) in snapshot.entries {
            let Ok(key) = text.parse::<Key>() else {
                tracing::warn!(key = %text, "the store holds a key this version does not know");
                continue;
            };
            let record = Record::decode(&key, &entry.value)?;
            match key {
                // Statuses of what is not known yet would be dropped.
                Key::TaskStatus(_) | Key::NodeStatus(_) => later.push((key, entry.written_at, record)),
                _ => self.put(&mut inner, key, entry.written_at, record),
            }
        }
        for (key, revision, record) in later {
            self.put(&mut inner, key, revision, record);
        }
        inner.world.revision = ModelRevision(snapshot.revision.0);
        *self.inner.write() = inner;
        self.revision.send_replace(snapshot.revision);
        self.concerns.send_modify(|count| *count += 1);
        self.visible.send_modify(|count| *count += 1);
        Ok(())
    }

    fn put(&self, inner: &mut Inner, key: Key, revision: Revision, record: Record) {
        match record {
            Record::Cluster(cluster) => {
                inner.world.epoch = cluster.epoch;
                inner.world.pool = cluster.pool;
                inner.cluster = Some(cluster);
            }
            Record::Node(node) => inner.world.insert_node(node),
            Record::NodeStatus(id, status) => {
                inner.world.set_node_status(id, status);
            }
            Record::App(app) => inner.world.insert_app(app),
            Record::Release(release) => inner.world.insert_release(release),
            Record::Service(service) => inner.world.insert_service(service),
            Record::Revision(revision) => inner.world.insert_revision(revision),
            Record::Task(task) => inner.world.insert_task(task),
            Record::TaskStatus(id, status) => {
                inner.world.set_task_status(id, status);
            }
            Record::Network(network) => inner.world.insert_network(network),
            Record::Volume(volume) => inner.world.insert_volume(volume),
            Record::Token(token) => {
                inner.tokens.insert(token.id, token);
            }
            Record::Revoked(serial, record) => {
                inner.revoked.insert(serial, record);
            }
            Record::Server(server) => {
                let known =
                    inner.servers.get(&server.id).is_some_and(|known| known.addresses == server.addresses);
                if !known {
                    inner.servers_version = inner.servers_version.max(revision.0);
                }
                inner.servers.insert(server.id, server);
            }
            Record::Leader(leader) => inner.leader = Some(leader),
            Record::Lease(_) => {}
            Record::Event(event) => {
                inner.events.insert(event.id, event);
                if inner.events.len() > EVENTS_KEPT {
                    inner.events.pop_first();
                }
            }
            Record::Sealed(sealed) => {
                let Key::File(_, digest) = &key else { return };
                match self.seal.open(&key.to_string(), &sealed) {
                    Ok(content) => {
                        use base64::Engine as _;
                        let text = base64::engine::general_purpose::STANDARD.encode(content);
                        inner.world.insert_file(digest.clone(), Arc::from(text));
                    }
                    Err(error) => tracing::error!(%error, "a config or secret cannot be handed out"),
                }
            }
        }
        inner.revisions.insert(key, revision);
    }
}

fn remove(inner: &mut Inner, key: &Key, revision: Revision) {
    inner.revisions.remove(key);
    let world = &mut inner.world;
    match key {
        Key::Cluster => inner.cluster = None,
        Key::Node(id) => world.remove_node(*id),
        // Goes with what it is the status of.
        Key::NodeStatus(_) | Key::TaskStatus(_) | Key::Lease => {}
        Key::App(app) => world.remove_app(app),
        Key::Release(app, number) => world.remove_release(app, *number),
        Key::Service(service) => world.remove_service(service),
        Key::Revision(service, generation) => world.remove_revision(service, *generation),
        Key::Task(id) => world.remove_task(*id),
        Key::Network(id) => world.remove_network(*id),
        Key::Volume(id) => world.remove_volume(*id),
        Key::Token(id) => {
            inner.tokens.remove(id);
        }
        Key::Revoked(serial) => {
            inner.revoked.remove(serial);
        }
        Key::Server(id) => {
            inner.servers.remove(id);
            inner.servers_version = inner.servers_version.max(revision.0);
        }
        Key::Leader => inner.leader = None,
        Key::Event(id) => {
            inner.events.remove(id);
        }
        Key::File(_, digest) => world.remove_file(digest),
    }
}

/// What agents say, seen at once.
impl State {
    /// A task's agent said this. Older reports than what is known are dropped.
    pub fn report_task(&self, id: TaskId, status: TaskStatus) {
        let mut live = self.live.lock();
        if live.tasks.get(&id).is_none_or(|known| status.is_newer_than(known)) {
            live.tasks.insert(id, status);
            live.fresh.insert(id);
            drop(live);
            self.reported.send_modify(|count| *count += 1);
            self.visible.send_modify(|count| *count += 1);
        }
    }
    /// A node's agent said this.
    pub fn report_node(&self, id: NodeId, node: LiveNode) {
        self.live.lock().nodes.insert(id, node);
        self.links.send_modify(|count| *count += 1);
        self.visible.send_modify(|count| *count += 1);
    }
    /// A node's agent has deleted the data of a volume.
    pub fn report_volume_removed(&self, volume: VolumeId, node: NodeId) {
        self.live.lock().removed_volumes.insert((volume, node));
        self.reported.send_modify(|count| *count += 1);
    }
    /// The volumes whose data is gone from a node, as reported since this was last asked.
    pub fn take_removed_volumes(&self) -> BTreeSet<(VolumeId, NodeId)> {
        std::mem::take(&mut self.live.lock().removed_volumes)
    }
    /// What a node's agent said last.
    pub fn live_node(&self, id: NodeId) -> Option<LiveNode> {
        self.live.lock().nodes.get(&id).cloned()
    }
    /// The newest that is known of a task.
    pub fn status_of(&self, task: &Task) -> TaskStatus {
        let live = self.live.lock();
        match live.tasks.get(&task.id) {
            Some(status) if status.is_newer_than(&task.status) => status.clone(),
            _ => task.status.clone(),
        }
    }
    /// What was reported since this was last asked, or with `all` ever, and is worth storing.
    pub fn take_unstored(&self, all: bool) -> Vec<(TaskId, TaskStatus)> {
        let inner = self.inner.read();
        let mut live = self.live.lock();
        let fresh = std::mem::take(&mut live.fresh);
        if all {
            // Of tasks that are gone nobody will be asked again.
            live.tasks.retain(|id, _| inner.world.task(*id).is_some() || fresh.contains(id));
        }
        let worth = |(id, status): (&TaskId, &TaskStatus)| {
            let task = inner.world.task(*id)?;
            worth_storing(status, &task.status).then(|| (*id, status.clone()))
        };
        if all {
            live.tasks.iter().filter_map(worth).collect()
        } else {
            fresh.iter().filter_map(|id| worth((id, live.tasks.get(id)?))).collect()
        }
    }
}

/// Whether a report says anything that decisions or history need; the progress of a pull does not.
fn worth_storing(new: &TaskStatus, stored: &TaskStatus) -> bool {
    let essence = |status: &TaskStatus| {
        let telling = status.phase.is_over() || status.health == Health::Unhealthy;
        TaskStatus {
            sequence: 0,
            progress: None,
            probe_output: status.probe_output.clone().filter(|_| telling),
            message: if telling { status.message.clone() } else { String::new() },
            ..status.clone()
        }
    };
    new.is_newer_than(stored) && essence(new) != essence(stored)
}
