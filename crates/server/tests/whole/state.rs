//! What a server holds in memory, and how it keeps up with the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use wharf_model::{
    Event, EventId, EventKind, NodeId, NodeRecord, NodeStatus, Phase, Subject, Task, TaskId, TaskStatus,
    Timestamp, VolumeId, VolumeRecord,
};
use wharf_process::{Shutdown, Tasks};
use wharf_server::{
    records::{Key, encode},
    seal::SealKey,
    state::State,
};
use wharf_store::{Backend, Batch, Changes, Embedded, Revision, Snapshot, StoreError};

use crate::fixture::{eventually, within};

/// A store whose watches can be broken.
struct Breakable {
    store: Embedded,
    /// Breaks the watch there is.
    broken: parking_lot::Mutex<CancellationToken>,
    /// New ones have to wait.
    shut: AtomicBool,
    reads: AtomicUsize,
}
#[async_trait]
impl Backend for Breakable {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.reads.fetch_add(1, Relaxed);
        if self.shut.load(Relaxed) {
            return Err(StoreError::Unavailable { place: "here".into(), source: "shut".into() });
        }
        self.store.read(prefix).await
    }
    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.store.commit(batch).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        let token = CancellationToken::new();
        *self.broken.lock() = token.clone();
        let changes = self.store.watch(prefix, after).await?;
        let end = futures::stream::once(async move { Err(StoreError::Compacted { after }) });
        Ok(changes.take_until(token.cancelled_owned()).chain(end).boxed())
    }
}

pub(crate) struct World {
    _folder: tempfile::TempDir,
    store: Arc<Breakable>,
    pub(crate) state: Arc<State>,
    _tasks: Tasks,
}
impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path().join("store")).await.unwrap();
        let store = Arc::new(Breakable {
            store,
            broken: parking_lot::Mutex::default(),
            shut: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
        });
        let state = State::load(Arc::clone(&store) as _, SealKey::new([7; 32])).await.unwrap();
        let tasks = Tasks::new(&Shutdown::new());
        tasks.spawn("watch", Arc::clone(&state).follow(tasks.token()));
        Self { _folder: folder, store, state, _tasks: tasks }
    }
    pub(crate) async fn put<T: serde::Serialize>(&self, key: Key, value: &T) {
        let bytes = encode(&key, value);
        self.state.commit(Batch::new().put(key.to_string(), bytes)).await.unwrap();
    }
    /// A task of this node, as it is stored.
    pub(crate) async fn task(&self, n: u8, node: NodeId) -> TaskId {
        let task = task(n, node);
        self.put(Key::Task(task.id), &task).await;
        task.id
    }
    fn status(&self, id: TaskId) -> TaskStatus {
        let inner = self.state.read();
        self.state.status_of(inner.world.task(id).unwrap())
    }
}

pub(crate) fn node_id(n: u8) -> NodeId {
    NodeId::from_parts(u64::from(n), [n; 10])
}
pub(crate) fn task(n: u8, node: NodeId) -> Task {
    serde_json::from_value(json!({
        "id": TaskId::from_parts(u64::from(n), [n; 10]), "service": { "app": { "environment": "prod", "name": "shop" }, "name": "web" },
        "slot": n, "generation": 1, "node": node, "created_at": 1,
    }))
    .unwrap()
}
pub(crate) fn node(n: u8) -> NodeRecord {
    serde_json::from_value(json!({
        "id": node_id(n), "name": format!("n{n}"), "generation": 1, "availability": "active", "labels": {},
        "roles": { "server": false, "gateway": true }, "joined_at": 1, "certificate": format!("c{n}"),
    }))
    .unwrap()
}
pub(crate) fn says(phase: Phase, sequence: u64) -> TaskStatus {
    TaskStatus { phase, sequence, ..TaskStatus::default() }
}

#[tokio::test]
async fn a_commit_is_seen_whole_however_large() {
    const EVENTS: u16 = 9_000;
    let world = World::new().await;
    let mut batch = Batch::new();
    for n in (0..EVENTS).map(u64::from) {
        let id = EventId::from_parts(n, [1; 10]);
        let (subject, message) = (Subject::default(), String::new());
        let event = Event { id, at: Timestamp(n), kind: EventKind::App, subject, message, by: None };
        let key = Key::Event(id);
        batch = batch.put(key.to_string(), encode(&key, &event));
    }
    let (state, done) = (Arc::clone(&world.state), Arc::new(AtomicBool::new(false)));
    let stop = Arc::clone(&done);
    let reader = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeSet::new();
        while !stop.load(Relaxed) {
            seen.insert(state.read().events.len());
            std::thread::yield_now();
        }
        seen
    });
    let revision = within(world.state.commit(batch)).await.unwrap();
    assert_eq!(world.state.read().events.len(), usize::from(EVENTS), "whoever committed sees it");
    assert_eq!(world.state.read().revision(), revision);
    done.store(true, Relaxed);
    let seen = reader.join().unwrap();
    assert!(seen.iter().all(|events| [0, usize::from(EVENTS)].contains(events)), "{seen:?}");
}

#[tokio::test]
async fn a_status_that_comes_with_its_node_is_kept() {
    let world = World::new().await;
    let status = NodeStatus {
        reason: "it has joined".into(),
        ..NodeStatus::new(wharf_model::NodeState::Joining, Timestamp(5))
    };
    let (key, about) = (Key::Node(node_id(1)), Key::NodeStatus(node_id(1)));
    let batch = Batch::new()
        .put(key.to_string(), encode(&key, &node(1)))
        .put(about.to_string(), encode(&about, &status));
    world.state.commit(batch).await.unwrap();
    assert_eq!(world.state.read().world.node(node_id(1)).unwrap().status, Some(status));
}

#[tokio::test]
async fn when_the_watch_breaks_everything_is_read_again_and_what_agents_said_stays() {
    let world = World::new().await;
    let (kept, gone) = (world.task(1, node_id(1)).await, world.task(2, node_id(1)).await);
    world.state.report_task(node_id(1), kept, says(Phase::Running, 3));
    world.state.report_task(node_id(1), gone, says(Phase::Running, 3));

    world.store.shut.store(true, Relaxed);
    let reads = world.store.reads.load(Relaxed);
    world.store.broken.lock().cancel();
    eventually(async || (world.store.reads.load(Relaxed) > reads).then_some(())).await;
    // Written while nobody looks.
    let key = Key::Node(node_id(1));
    let batch = Batch::new().put(key.to_string(), encode(&key, &node(1))).delete(Key::Task(gone).to_string());
    let revision = world.store.commit(batch).await.unwrap();
    assert!(world.state.read().world.node(node_id(1)).is_none());
    assert_eq!(world.status(kept).phase, Phase::Running);

    world.store.shut.store(false, Relaxed);
    within(world.state.reached(revision)).await;
    assert!(world.state.read().world.node(node_id(1)).is_some());
    assert!(world.state.read().world.task(gone).is_none());
    assert_eq!(world.status(kept), says(Phase::Running, 3));
    // And it goes on.
    world.put(Key::Node(node_id(2)), &node(2)).await;
    assert!(world.state.read().world.node(node_id(2)).is_some());
}

#[tokio::test]
async fn of_a_commit_that_cannot_be_read_nothing_is_applied() {
    let world = World::new().await;
    let key = Key::Node(node_id(1));
    let batch = Batch::new()
        .put(key.to_string(), encode(&key, &node(1)))
        .put(Key::Node(node_id(2)).to_string(), r#"{"schema":99,"value":{}}"#);
    let reads = world.store.reads.load(Relaxed);
    world.store.commit(batch).await.unwrap();
    eventually(async || (world.store.reads.load(Relaxed) > reads).then_some(())).await;
    assert!(world.state.read().world.node(node_id(1)).is_none());
    // Once it is gone, everything is read.
    let revision = world.store.commit(Batch::new().delete(Key::Node(node_id(2)).to_string())).await.unwrap();
    within(world.state.reached(revision)).await;
    assert!(world.state.read().world.node(node_id(1)).is_some());
}

#[tokio::test]
async fn a_node_is_heard_about_its_own_tasks_and_older_news_are_no_news() {
    let world = World::new().await;
    let id = world.task(1, node_id(1)).await;
    world.state.report_task(node_id(2), id, says(Phase::Failed, 99));
    assert_eq!(world.status(id).phase, Phase::Pending);
    world.state.report_task(node_id(1), id, says(Phase::Running, 5));
    world.state.report_task(node_id(1), id, says(Phase::Starting, 4));
    assert_eq!(world.status(id), says(Phase::Running, 5));

    // The same of a task this server does not know yet.
    let early = task(2, node_id(1));
    world.state.report_task(node_id(2), early.id, says(Phase::Failed, 99));
    world.put(Key::Task(early.id), &early).await;
    assert_eq!(world.status(early.id).phase, Phase::Pending);
    world.state.report_task(node_id(1), early.id, says(Phase::Running, 5));
    assert_eq!(world.status(early.id), says(Phase::Running, 5));
    assert_eq!(world.state.take_unstored(true).len(), 2);
}

#[tokio::test]
async fn what_is_worth_storing_is_asked_for_until_it_is_stored() {
    let world = World::new().await;
    let id = world.task(1, node_id(1)).await;
    world.state.report_task(node_id(1), id, says(Phase::Running, 5));
    assert_eq!(world.state.take_unstored(false), [(id, says(Phase::Running, 5))]);
    assert!(world.state.take_unstored(false).is_empty(), "it is fresh once");
    assert_eq!(world.state.take_unstored(true).len(), 1, "and due until it is stored");
    world.put(Key::TaskStatus(id), &says(Phase::Running, 5)).await;
    assert!(world.state.take_unstored(true).is_empty());
    let progress = TaskStatus { message: "still running".into(), ..says(Phase::Running, 6) };
    world.state.report_task(node_id(1), id, progress.clone());
    assert!(world.state.take_unstored(true).is_empty(), "nothing that decisions need");
    assert_eq!(world.status(id), progress, "but people see it");
}

#[tokio::test]
async fn data_of_a_volume_that_are_gone_are_gone_until_the_record_says_so_and_no_longer() {
    let world = World::new().await;
    let id = VolumeId::from_parts(1, [1; 10]);
    let record = |nodes: &[u8]| -> VolumeRecord {
        let nodes: Vec<_> = nodes.iter().map(|n| node_id(*n)).collect();
        serde_json::from_value(json!({
            "id": id, "app": { "environment": "prod", "name": "shop" }, "name": "data", "spec": {}, "nodes": nodes, "created_at": 1,
        }))
        .unwrap()
    };
    world.put(Key::Volume(id), &record(&[1, 2])).await;
    world.state.report_volume_removed(id, node_id(1));
    for _ in 0..2 {
        let removed = world.state.removed_volumes();
        assert_eq!(removed.into_iter().collect::<Vec<_>>(), [(id, node_id(1))], "until it is stored");
    }
    world.put(Key::Volume(id), &record(&[2])).await;
    assert!(world.state.removed_volumes().is_empty());
    // Data that come to that node later are others.
    world.put(Key::Volume(id), &record(&[1, 2])).await;
    assert!(world.state.removed_volumes().is_empty());
}

#[tokio::test]
async fn nothing_is_waited_for_once_nobody_follows() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Backend> = Arc::new(Embedded::open(folder.path().join("store")).await.unwrap());
    let state = State::load(store, SealKey::new([7; 32])).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    within(Arc::clone(&state).follow(stop)).await;
    let waiting = state.reached(Revision(1_000_000));
    tokio::time::timeout(Duration::from_secs(2), waiting).await.expect("there is nobody to wait for");
}
