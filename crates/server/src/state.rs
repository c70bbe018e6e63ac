//! What the store holds, in memory: every server keeps it up to date by one watch and reads nothing else.
//!
//! - Whoever reads sees one revision. After a commit, [`State::reached`] waits until what was written is visible here.
//! - Each key's revision is kept with it, for conditional commits.
//! - A commit is seen whole or not at all: what it wrote together is applied under one lock.
//! - What agents report is visible at once (`live`), before and without being written to the store; decisions read stored statuses only.
//!   A node is heard about its own tasks only, and what is said of something ends with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_engine::{Grants, Serving, Unacknowledged, Version, World};
use wharf_model::{
    Event, EventId, Health, NodeFacts, NodeId, PeerView, Revision as ModelRevision, ServerId, Task, TaskId,
    TaskStatus, Timestamp, TokenId, VolumeId,
};
use wharf_process::{Clock, errors::chain};
use wharf_store::{Backend, Batch, Revision, StoreError};

use crate::{
    acme,
    controllers::routes::RouteStanding,
    onward::Onward,
    records::{
        AcmeRecord, CertificateRecord, ClusterRecord, Key, LeaderRecord, NamedFileKey, NamedFileRecord,
        Record, RevokedRecord, ServerRecord, TicketKeyRecord, TokenRecord,
    },
    seal::{CannotOpen, SealKey},
};

/// How many events are kept; the leader deletes older ones.
pub const EVENTS_KEPT: usize = 10_000;
/// How many changes are applied at once, or a commit that has more.
const CHUNK: usize = 4096;

/// Everything a server knows.
pub struct State {
    backend: Arc<dyn Backend>,
    seal: SealKey,
    inner: RwLock<Inner>,
    live: Mutex<Live>,
    /// How the routes outside the nodes stand, if somebody makes them and this server leads.
    routes: Mutex<Option<RouteStanding>>,
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
    /// The nodes that this server, which leads, has told of tasks that must not run twice.
    fenced: watch::Sender<BTreeSet<NodeId>>,
    /// Counts what apps may have waited for that nodes said: that they serve other names and routes, or have less under way.
    passages: watch::Sender<u64>,
    /// Nobody keeps this up to date any more.
    ended: CancellationToken,
    /// When the newest event was, in milliseconds of the Unix epoch.
    newest: AtomicU64,
    onward: Mutex<Onward>,
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
    /// The same in the order in which they were written: clocks differ between servers, and may be set back.
    event_log: BTreeSet<(Revision, EventId)>,
    /// Which apps have a config or secret with a content, by its digest.
    files: BTreeMap<String, BTreeSet<wharf_model::AppKey>>,
    /// The configs and secrets of environments.
    pub named: BTreeMap<NamedFileKey, NamedFileRecord>,
    /// Who issues certificates; nobody if absent.
    pub acme: Option<AcmeRecord>,
    /// The accounts with such authorities, as sealed as in the store.
    pub acme_accounts: HashMap<Key, Arc<[u8]>>,
    /// What is known of the certificates that are obtained, by host. They themselves are in [`World::obtained`].
    pub certificates: BTreeMap<String, CertificateRecord>,
    /// What seals the sessions of TLS clients, the newest first.
    pub ticket_keys: Vec<TicketKeyRecord>,
    /// The contents of their versions, as sealed as in the store.
    named_contents: HashMap<(NamedFileKey, u64), Arc<[u8]>>,
    revisions: HashMap<Key, Revision>,
    /// What nodes were granted of the right to run tasks that must not run twice, while this server leads.
    pub grants: Arc<Mutex<Grants>>,
}
impl Inner {
    /// The content of a version of a config or secret of an environment, sealed for its key ([`Key::NamedContent`]).
    pub fn named_content(&self, file: &NamedFileKey, version: u64) -> Option<Arc<[u8]>> {
        self.named_contents.get(&(file.clone(), version)).cloned()
    }
    /// The revision at which a key was last written; `None` if it is absent.
    pub fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.revisions.get(key).copied()
    }
    /// Whether a server announces that it answers at this address.
    pub fn serves_at(&self, address: std::net::IpAddr) -> bool {
        let host =
            |text: &String| Some(text.parse::<wharf_api::transport::ServerAddress>().ok()?.host().to_owned());
        let text = address.to_string();
        self.servers.values().flat_map(|server| &server.addresses).filter_map(host).any(|host| host == text)
    }
    /// The digests of the contents that are kept for an app.
    pub fn files_of(&self, app: &wharf_model::AppKey) -> Vec<String> {
        let kept = self.files.iter().filter(|(_, owners)| owners.contains(app));
        kept.map(|(digest, _)| digest.clone()).collect()
    }
    /// Every content that is kept, with the app it is kept for.
    pub fn files(&self) -> impl Iterator<Item = (&wharf_model::AppKey, &String)> {
        self.files.iter().flat_map(|(digest, owners)| owners.iter().map(move |owner| (owner, digest)))
    }
    /// The events that were written after a revision, in the order in which they were written.
    pub fn events_after(&self, revision: Revision) -> impl Iterator<Item = &Event> {
        let after = (Revision(revision.0 + 1), EventId::from_parts(0, [0; 10]));
        self.event_log.range(after..).filter_map(|(_, id)| self.events.get(id))
    }
    /// The revision that is read here.
    pub const fn revision(&self) -> Revision {
        Revision(self.world.revision.0)
    }
    /// A batch that expects `key` as it is read here.
    pub fn expecting(&self, batch: Batch, key: &Key) -> Batch {
        batch.expect(key.to_string(), self.revision_of(key))
    }
}

/// What agents said last, stored or not.
#[derive(Default)]
struct Live {
    /// With the node that said it: what another than the task's own says counts for nothing.
    tasks: HashMap<TaskId, (NodeId, TaskStatus)>,
    /// Tasks of which something was said since it was last asked.
    fresh: HashSet<TaskId>,
    nodes: HashMap<NodeId, LiveNode>,
    /// While this server leads: the set that each connected node is to serve, and the newest revision at which it was still right.
    told: BTreeMap<NodeId, (Version, ModelRevision)>,
    /// Volumes whose data is gone from a node, until their records say so.
    removed_volumes: BTreeSet<(VolumeId, NodeId)>,
    /// Tasks that were reported and not known when this was last tidied.
    strange: HashSet<TaskId>,
}
impl Live {
    /// Forgets what was said of a task that is gone.
    fn forget_task(&mut self, id: TaskId) {
        self.tasks.remove(&id);
        self.fresh.remove(&id);
    }
    /// Forgets everything that was said of what is gone. A task that is not known yet is given until the next time.
    fn tidy(&mut self, inner: &Inner) {
        let world = &inner.world;
        self.nodes.retain(|id, _| world.node(*id).is_some());
        let strange: HashSet<_> =
            self.tasks.keys().filter(|id| world.task(**id).is_none()).copied().collect();
        for id in strange.intersection(&self.strange) {
            self.tasks.remove(id);
            self.fresh.remove(id);
        }
        self.strange = strange;
        self.removed_volumes.retain(|(volume, node)| still_holds(inner, *volume, *node));
    }
}

/// Whether a volume's record says that a node has data of it.
fn still_holds(inner: &Inner, volume: VolumeId, node: NodeId) -> bool {
    inner.world.volumes().any(|record| record.id == volume && record.nodes.contains(&node))
}

/// What a node's agent said last.
#[derive(Debug, Clone, Default)]
pub struct LiveNode {
    /// Facts, newer than the stored ones in what changes often.
    pub facts: Option<NodeFacts>,
    /// What is not as it should be on the node.
    pub problems: Vec<String>,
    /// Epoch and revision of the set whose names and routes it serves.
    pub serves: Version,
    /// What its gateways have under way with tasks that these routes no longer have.
    pub draining: BTreeMap<TaskId, u64>,
    /// What it hears of the nodes that it watches.
    pub peers: PeerView,
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
            routes: Mutex::default(),
            revision: watch::Sender::new(Revision(0)),
            concerns: watch::Sender::new(0),
            visible: watch::Sender::new(0),
            reported: watch::Sender::new(0),
            links: watch::Sender::new(0),
            passages: watch::Sender::new(0),
            fenced: watch::Sender::new(BTreeSet::new()),
            ended: CancellationToken::new(),
            newest: AtomicU64::new(0),
            onward: Mutex::default(),
        };
        state.reload().await?;
        Ok(Arc::new(state))
    }

    /// The time, as records have it: that of `clock`, which never goes back here.
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        let (wall, moment) = (Timestamp(clock.now().0), clock.monotonic());
        self.onward.lock().now(wall, moment, Timestamp(self.newest.load(Ordering::Acquire)))
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
    /// Wakes when nodes have taken tasks into names and routes or out of them, or have nothing under way with them any more, and an app may
    /// have waited for that.
    pub fn passages(&self) -> watch::Receiver<u64> {
        self.passages.subscribe()
    }
    /// The nodes that this server, which leads, has told of tasks that must not run twice.
    pub fn fenced(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.fenced.subscribe()
    }
    pub(crate) fn set_fenced(&self, nodes: BTreeSet<NodeId>) {
        self.fenced.send_if_modified(|known| {
            let other = *known != nodes;
            *known = nodes;
            other
        });
    }
    /// A node has connected or disconnected.
    pub fn link_changed(&self) {
        self.links.send_modify(|count| *count += 1);
    }
    /// How the routes outside the nodes stand, if somebody makes them and this server leads.
    pub fn route_standing(&self) -> Option<RouteStanding> {
        self.routes.lock().clone()
    }
    pub(crate) fn set_route_standing(&self, standing: Option<RouteStanding>) {
        *self.routes.lock() = standing;
    }
    /// What time it is while apps wait for tasks to be out of names and routes ([`World::observe`]).
    pub fn observe(&self, now: Timestamp) {
        if !self.inner.read().world.awaits_acknowledgement(now) {
            return;
        }
        let matters = {
            let world = &mut self.inner.write().world;
            let decided = world.is_dirty();
            world.observe(now);
            world.is_dirty() && !decided
        };
        if matters {
            self.passages.send_modify(|count| *count += 1);
        }
    }
    /// What gateways have counted of a service whose release is judged, or that it is not any more.
    pub fn set_figures(&self, service: &wharf_model::ServiceKey, figures: Option<wharf_model::Figures>) {
        if self.inner.read().world.figures(service) == figures.as_ref() {
            return;
        }
        self.inner.write().world.set_figures(service, figures);
        self.passages.send_modify(|count| *count += 1);
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

    /// Returns once `revision` can be read here, or after five seconds: then the watch is broken, which [`State::follow`] mends. At once
    /// if it has ended.
    pub async fn reached(&self, revision: Revision) {
        let mut seen = self.revision.subscribe();
        let wait = tokio::time::timeout(Duration::from_secs(5), seen.wait_for(|seen| *seen >= revision));
        // Dropped when the watch has ended: nothing more is going to be seen.
        if let Some(Err(_)) = self.ended.run_until_cancelled(wait).await {
            tracing::warn!(%revision, "the store's watch is behind");
        }
    }

    /// After a commit that was refused: returns once what was faster can be read here, so that deciding anew decides differently.
    pub async fn see_what_was_faster(&self, error: &StoreError) {
        match error {
            StoreError::Conflict { found: Some(revision), .. } => self.reached(*revision).await,
            // It was deleted, or the store cannot say.
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }

    /// Keeps up with the store until `shutdown`. When the watch breaks, everything is read again.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let _ended = self.ended.clone().drop_guard();
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
        let mut changes = match self.backend.watch("", after).await {
            Ok(changes) => changes,
            Err(error) => return error,
        };
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(first) => Some(first),
                None => changes.next().await,
            };
            let mut chunk = Vec::new();
            let mut failure = match first {
                Some(Ok(first)) => {
                    chunk.push(first);
                    None
                }
                Some(Err(error)) => Some(error),
                None => Some(ended()),
            };
            // What is ready together is applied together, and never a part of a commit: its events are ready as soon as the first is.
            while failure.is_none() {
                match changes.next().now_or_never() {
                    Some(Some(Ok(event))) => {
                        let begins = chunk
                            .last()
                            .is_some_and(|last: &wharf_store::Event| last.revision != event.revision);
                        if chunk.len() >= CHUNK && begins {
                            next = Some(Ok(event));
                            break;
                        }
                        chunk.push(event);
                    }
                    Some(Some(Err(error))) => failure = Some(error),
                    Some(None) => failure = Some(ended()),
                    None => break,
                }
            }
            if let Err(error) = self.apply(chunk) {
                return error;
            }
            if let Some(error) = failure {
                return error;
            }
        }
    }

    /// Applies changes in the order of their revisions. If one of them cannot be read, none is applied.
    fn apply(&self, chunk: Vec<wharf_store::Event>) -> Result<(), StoreError> {
        let mut concerns = false;
        let mut reached = *self.revision.borrow();
        let mut changes = Vec::with_capacity(chunk.len());
        for event in chunk {
            reached = reached.max(event.revision);
            let Ok(key) = event.key.parse::<Key>() else { continue };
            concerns |= !matches!(key, Key::Lease | Key::Event(_) | Key::Server(_));
            let record = event.value.map(|bytes| Record::decode(&key, &bytes)).transpose()?;
            changes.push((event.revision, key, record));
        }
        // Within one commit keys come in their own order: a status would come before what it is the status of, and be dropped.
        changes.sort_by_key(|(revision, key, _)| (*revision, is_status(key)));
        {
            let mut inner = self.inner.write();
            let mut live = self.live.lock();
            // What changes is noted with the revision at which everything here has changed: nobody reads meanwhile.
            inner.world.revision = ModelRevision(reached.0);
            for (revision, key, record) in changes {
                match record {
                    Some(record) => {
                        if let Record::Volume(volume) = &record {
                            live.removed_volumes
                                .retain(|(id, node)| *id != volume.id || volume.nodes.contains(node));
                        }
                        self.put(&mut inner, key, revision, record);
                    }
                    None => {
                        match &key {
                            Key::Task(id) => live.forget_task(*id),
                            Key::Node(id) => {
                                live.nodes.remove(id);
                            }
                            Key::Volume(id) => live.removed_volumes.retain(|(volume, _)| volume != id),
                            _ => {}
                        }
                        remove(&mut inner, &key, revision);
                    }
                }
            }
        }
        self.revision.send_replace(reached);
        if concerns {
            self.concerns.send_modify(|count| *count += 1);
        }
        self.visible.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let snapshot = self.backend.read("").await?;
        let mut inner = Inner::default();
        inner.world.revision = ModelRevision(snapshot.revision.0);
        let mut later = Vec::new();
        for (text, entry) in snapshot.entries {
            let Ok(key) = text.parse::<Key>() else {
                tracing::warn!(key = %text, "the store holds a key this version does not know");
                continue;
            };
            let record = Record::decode(&key, &entry.value)?;
            if is_status(&key) {
                // Statuses of what is not known yet would be dropped.
                later.push((key, entry.written_at, record));
            } else {
                self.put(&mut inner, key, entry.written_at, record);
            }
        }
        for (key, revision, record) in later {
            self.put(&mut inner, key, revision, record);
        }
        {
            let mut current = self.inner.write();
            // Not in the store: what was granted is granted.
            inner.grants = Arc::clone(&current.grants);
            *current = inner;
            let mut live = self.live.lock();
            // What was removed meanwhile was not announced.
            live.tidy(&current);
            // Of what nodes serve the new world knows nothing yet.
            if !live.told.is_empty() {
                let nodes: Vec<_> =
                    live.nodes.iter().map(|(id, node)| (*id, node.draining.clone())).collect();
                current.world.set_serving(Self::serving_of_all(&live));
                for (id, draining) in nodes {
                    current.world.set_under_way(id, draining);
                }
            }
        }
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
                inner.world.unique_local = cluster.unique_local;
                inner.world.set_network_defaults(&cluster.network);
                inner.world.set_placement_defaults(cluster.placement);
                inner.world.rebalancing = cluster.rebalancing;
                inner.cluster = Some(cluster);
            }
            Record::Node(node) => inner.world.insert_node(node),
            Record::NodeStatus(id, status) => {
                inner.world.set_node_status(id, status);
            }
            // Read by nobody: it is their revisions that count.
            Record::NodeName(_) | Record::Ports(_) | Record::QuotaUse(_) => {}
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
            Record::Rebalance(run) => inner.world.set_rebalance_run(Some(run)),
            Record::Quota(record) => inner.world.insert_quota(record),
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
                self.newest.fetch_max(event.at.0, Ordering::AcqRel);
                inner.event_log.insert((revision, event.id));
                inner.events.insert(event.id, event);
            }
            Record::Sealed(sealed) => {
                let Key::File(app, digest) = &key else { return };
                inner.files.entry(digest.clone()).or_default().insert(app.clone());
                match self.seal.open(&key.to_string(), &sealed) {
                    Ok(content) => {
                        use base64::Engine as _;
                        let text = base64::engine::general_purpose::STANDARD.encode(content);
                        inner.world.insert_file(digest.clone(), Arc::from(text));
                    }
                    Err(error) => tracing::error!(%error, "a config or secret cannot be handed out"),
                }
            }
            Record::NamedFile(file) => {
                inner.named.insert(file.key.clone(), file);
            }
            Record::NamedContent(sealed) => {
                let Key::NamedContent(file, version) = &key else { return };
                inner.named_contents.insert((file.clone(), *version), Arc::from(sealed));
            }
            Record::Acme(record) => inner.acme = Some(record),
            Record::Certificate(record) => {
                inner.certificates.insert(record.host.clone(), record);
            }
            Record::Secret(sealed) => {
                if let Err(error) = self.put_secret(inner, &key, &sealed) {
                    tracing::error!(%error, "what gateways need for TLS cannot be handed out");
                }
            }
        }
        inner.revisions.insert(key, revision);
    }

    fn put_secret(&self, inner: &mut Inner, key: &Key, bytes: &[u8]) -> Result<(), CannotOpen> {
        let obtained = &mut inner.world.obtained;
        match key {
            Key::AcmeAccount(_) => {
                inner.acme_accounts.insert(key.clone(), Arc::from(bytes));
            }
            Key::CertificateKey(host) => {
                obtained.certificates.insert(host.clone(), acme::opened(&self.seal, key, bytes)?);
            }
            Key::Challenge(host) => {
                obtained.challenges.insert(host.clone(), acme::opened(&self.seal, key, bytes)?);
            }
            Key::TicketKeys => {
                inner.ticket_keys = acme::opened(&self.seal, key, bytes)?;
                obtained.ticket_keys = inner.ticket_keys.iter().map(|record| record.key.clone()).collect();
            }
            _ => {}
        }
        Ok(())
    }
}

fn ended() -> StoreError {
    StoreError::Unavailable { place: "the store's watch".into(), source: "it ended".into() }
}

/// Whether the record under a key is about one under another.
const fn is_status(key: &Key) -> bool {
    matches!(key, Key::TaskStatus(_) | Key::NodeStatus(_))
}

fn remove(inner: &mut Inner, key: &Key, revision: Revision) {
    let written = inner.revisions.remove(key);
    let world = &mut inner.world;
    match key {
        Key::Cluster => inner.cluster = None,
        Key::Node(id) => world.remove_node(*id),
        // Goes with what it is the status of.
        Key::NodeStatus(_)
        | Key::TaskStatus(_)
        | Key::Lease
        | Key::NodeName(_)
        | Key::Ports
        | Key::QuotaUse(_) => {}
        Key::App(app) => world.remove_app(app),
        Key::Release(app, number) => world.remove_release(app, *number),
        Key::Service(service) => world.remove_service(service),
        Key::Revision(service, generation) => world.remove_revision(service, *generation),
        Key::Task(id) => world.remove_task(*id),
        Key::Network(id) => world.remove_network(*id),
        Key::Volume(id) => world.remove_volume(*id),
        Key::Rebalance => world.set_rebalance_run(None),
        Key::Quota(environment) => world.remove_quota(environment),
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
            inner.event_log.remove(&(written.unwrap_or_default(), *id));
        }
        Key::File(app, digest) => {
            // Another app may have the same content.
            if let Some(owners) = inner.files.get_mut(digest) {
                owners.remove(app);
                if owners.is_empty() {
                    inner.files.remove(digest);
                    world.remove_file(digest);
                }
            }
        }
        Key::NamedFile(file) => {
            inner.named.remove(file);
        }
        Key::NamedContent(file, version) => {
            inner.named_contents.remove(&(file.clone(), *version));
        }
        Key::Acme => inner.acme = None,
        Key::AcmeAccount(_) => drop(inner.acme_accounts.remove(key)),
        Key::Certificate(host) => drop(inner.certificates.remove(host)),
        Key::CertificateKey(host) => drop(world.obtained.certificates.remove(host)),
        Key::Challenge(host) => drop(world.obtained.challenges.remove(host)),
        Key::TicketKeys => {
            inner.ticket_keys.clear();
            world.obtained.ticket_keys.clear();
        }
    }
}

/// What agents say, seen at once.
impl State {
    /// A task's agent said this. Older reports than what is known are dropped.
    pub fn report_task(&self, node: NodeId, id: TaskId, status: TaskStatus) {
        let inner = self.inner.read();
        let mut live = self.live.lock();
        let newer = match (inner.world.task(id).map(|task| task.node), live.tasks.get(&id)) {
            (Some(own), _) if own != Some(node) => false,
            (_, Some((by, known))) if *by == node => status.is_newer_than(known),
            // Said by another node of a task that was not known yet: this server lags behind, and its own node is heard at last.
            (Some(_), _) | (None, None) => true,
            (None, Some(_)) => false,
        };
        drop(inner);
        if newer {
            live.tasks.insert(id, (node, status));
            live.fresh.insert(id);
            drop(live);
            self.reported.send_modify(|count| *count += 1);
            self.visible.send_modify(|count| *count += 1);
        }
    }
    /// A node's agent said this.
    pub fn report_node(&self, id: NodeId, node: LiveNode) {
        let mut live = self.live.lock();
        let before = live.nodes.insert(id, node);
        let said = |node: Option<&LiveNode>| node.map(|node| (node.serves, node.draining.clone()));
        let other = said(before.as_ref()) != said(live.nodes.get(&id)) && live.told.contains_key(&id);
        drop(live);
        if other {
            self.note_passages(Some(id));
        }
        self.links.send_modify(|count| *count += 1);
        self.visible.send_modify(|count| *count += 1);
    }
    /// This server, which leads, has told connected nodes these sets, which are right at these revisions.
    pub fn told(&self, told: BTreeMap<NodeId, (Version, ModelRevision)>) {
        let before = std::mem::replace(&mut self.live.lock().told, told);
        drop(before);
        self.note_passages(None);
    }
    /// This server does not lead: what nodes are told is not known here.
    pub fn forget_told(&self) {
        let mut inner = self.inner.write();
        self.live.lock().told.clear();
        inner.world.forget_serving();
    }
    /// Has decisions see what this node, or every one, was told and serves; wakes who decides if that may matter.
    fn note_passages(&self, node: Option<NodeId>) {
        let mut inner = self.inner.write();
        let live = self.live.lock();
        // Somebody else leads by now.
        if live.told.is_empty() {
            return;
        }
        let world = &mut inner.world;
        let decided = world.is_dirty();
        match node {
            Some(node) => {
                let draining = live.nodes.get(&node).map(|live| live.draining.clone());
                world.set_serving([(node, Self::serving_of(&live, node))]);
                world.set_under_way(node, draining.unwrap_or_default());
            }
            None => world.set_serving(Self::serving_of_all(&live)),
        }
        let matters = world.is_dirty() && !decided;
        drop(live);
        drop(inner);
        if matters {
            self.passages.send_modify(|count| *count += 1);
        }
    }
    /// Why a node that this server has told something may still answer by older names or routes.
    pub fn behind(&self, node: NodeId) -> Option<Unacknowledged> {
        let serving = Self::serving_of(&self.live.lock(), node);
        let (epoch, _) = serving.told?;
        serving.unacknowledged(epoch, serving.right_at)
    }
    /// What a node was told by this server, which must be the leader, and what it says it serves.
    pub fn serving(&self, node: NodeId) -> Serving {
        Self::serving_of(&self.live.lock(), node)
    }
    fn serving_of_all(live: &Live) -> Vec<(NodeId, Serving)> {
        let nodes: BTreeSet<_> = live.told.keys().chain(live.nodes.keys()).copied().collect();
        nodes.into_iter().map(|node| (node, Self::serving_of(live, node))).collect()
    }
    fn serving_of(live: &Live, node: NodeId) -> Serving {
        let told = live.told.get(&node);
        Serving {
            told: told.map(|(version, _)| *version),
            right_at: told.map(|(_, right_at)| *right_at).unwrap_or_default(),
            serves: live.nodes.get(&node).map(|live| live.serves),
        }
    }
    /// A node's agent has deleted the data of a volume.
    pub fn report_volume_removed(&self, volume: VolumeId, node: NodeId) {
        self.live.lock().removed_volumes.insert((volume, node));
        self.reported.send_modify(|count| *count += 1);
    }
    /// The volumes whose data is gone from a node although their records do not say so yet.
    pub fn removed_volumes(&self) -> BTreeSet<(VolumeId, NodeId)> {
        let inner = self.inner.read();
        let mut live = self.live.lock();
        live.removed_volumes.retain(|(volume, node)| still_holds(&inner, *volume, *node));
        live.removed_volumes.clone()
    }
    /// Forgets what was said of what is gone, from time to time.
    pub fn tidy(&self) {
        let inner = self.inner.read();
        self.live.lock().tidy(&inner);
    }
    /// What a node's agent said last.
    pub fn live_node(&self, id: NodeId) -> Option<LiveNode> {
        self.live.lock().nodes.get(&id).cloned()
    }
    /// The newest that is known of a task.
    pub fn status_of(&self, task: &Task) -> TaskStatus {
        let live = self.live.lock();
        match live.tasks.get(&task.id) {
            Some((by, status)) if task.node == Some(*by) && status.is_newer_than(&task.status) => {
                status.clone()
            }
            _ => task.status.clone(),
        }
    }
    /// What was reported since this was last asked, or with `all` ever, and is worth storing.
    pub fn take_unstored(&self, all: bool) -> Vec<(TaskId, TaskStatus)> {
        let inner = self.inner.read();
        let mut live = self.live.lock();
        let fresh = std::mem::take(&mut live.fresh);
        let worth = |(id, (by, status)): (&TaskId, &(NodeId, TaskStatus))| {
            let task = inner.world.task(*id).filter(|task| task.node == Some(*by))?;
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
