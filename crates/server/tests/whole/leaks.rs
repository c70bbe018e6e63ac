//! Nothing that is given out is given twice or kept: networks, addresses, blocks and identifiers over thousands of apps, with servers
//! that start again in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
};

use serde_json::json;
use wharf_engine::{Change, Request, SeededIds, World, decide, release, request};
use wharf_model::{
    AddressPool, AppKey, AppSpec, Backend, By, Image, NodeId, NodeRecord, NodeStatus, Phase, Task,
    TaskStatus, Timestamp,
};
use wharf_process::{Shutdown, Tasks};
use wharf_server::{
    controllers::commit::Committer,
    records::{ClusterRecord, Key, encode},
    seal::SealKey,
    state::State,
};
use wharf_store::{Batch, Embedded};

use crate::state::{node, node_id};

/// Apps that there are at a time.
const APPS: usize = 20;
/// Networks of each.
const NETWORKS: usize = 3;
/// Networks that are made and removed in all.
const ROUNDS: usize = 10_000;

/// A server's state on a store in a file.
struct Server {
    state: Arc<State>,
    tasks: Tasks,
}
impl Server {
    async fn start(path: &Path) -> Self {
        let store = Arc::new(Embedded::open(path).await.unwrap());
        let state = State::load(store as _, SealKey::new([7; 32])).await.unwrap();
        let tasks = Tasks::new(&Shutdown::new());
        tasks.spawn("watch", Arc::clone(&state).follow(tasks.token()));
        Self { state, tasks }
    }
    async fn stop(self) {
        let stopped = self.tasks.shutdown(std::time::Duration::from_secs(10)).await;
        assert!(stopped.aborted.is_empty());
        // The file is let go of with the last that holds the store.
        assert_eq!(Arc::strong_count(&self.state), 1);
    }
}

fn app(slot: usize, round: usize) -> AppSpec {
    let backend = |n: usize| match (round + n) % 4 {
        0 => json!({}),
        1 => json!({ "backend": "routed" }),
        2 => json!({ "backend": "wireguard" }),
        _ => json!({ "subnet": format!("10.5.{slot}.0/24"), "backend": "routed" }),
    };
    let service = |replicas: usize, on: &[&str]| {
        let networks: BTreeMap<_, _> = on.iter().map(|name| (*name, json!({}))).collect();
        json!({ "image": "i:1", "mode": { "kind": "replicated", "replicas": replicas }, "networks": networks })
    };
    serde_json::from_value(json!({
        "name": format!("app{slot}"),
        "networks": { "a": backend(0), "b": backend(1), "c": backend(2) },
        "services": { "web": service(2, &["a", "b"]), "db": service(1 + round % 2, &["b", "c"]) },
    }))
    .unwrap()
}

fn key(slot: usize) -> AppKey {
    AppKey { environment: "prod".parse().unwrap(), name: format!("app{slot}").parse().unwrap() }
}

/// No two things have one address, subnet, block or identifier.
fn check(world: &World) {
    let networks: Vec<_> = world.networks().collect();
    let vnis: BTreeSet<_> = networks.iter().map(|network| network.vni).collect();
    assert_eq!(vnis.len(), networks.len(), "identifiers");
    let mut subnets: Vec<_> = networks.iter().map(|network| network.subnet).collect();
    subnets.sort_unstable();
    assert!(subnets.windows(2).all(|two| two[0].broadcast() < two[1].network()), "subnets: {subnets:?}");
    let mut holders = BTreeMap::<Ipv4Addr, String>::new();
    let mut hold = |address: Ipv4Addr, who: String| {
        if let Some(other) = holders.insert(address, who.clone()) {
            panic!("{address} is of {other} and of {who}");
        }
    };
    for network in &networks {
        for (node, gateway) in &network.gateways {
            hold(*gateway, format!("{node} on {}", network.name));
            let inside = || network.blocks.iter().any(|(block, of)| of == node && block.contains(gateway));
            assert!(network.backend != Backend::Routed || inside(), "gateways are in their nodes' blocks");
        }
        let blocks: Vec<_> = network.blocks.keys().collect();
        assert!(blocks.windows(2).all(|two| two[0].broadcast() < two[1].network()), "blocks: {blocks:?}");
        assert!(network.blocks.keys().all(|block| network.subnet.contains(block)));
    }
    for task in world.tasks().filter(|task| !task.is_over()) {
        for (name, address) in &task.addresses {
            hold(*address, format!("{} on {name}", task.name()));
            let network = world.network_named(&task.service.app, name).unwrap();
            assert!(network.subnet.contains(address));
            let inside = network.blocks.iter().any(|(b, of)| Some(*of) == task.node && b.contains(address));
            assert!(network.backend != Backend::Routed || inside, "tasks are in their nodes' blocks");
        }
    }
}

/// What changes, and how tasks stand: to be written together.
#[derive(Default)]
struct Step {
    changes: Vec<Change>,
    reports: Vec<(Task, TaskStatus)>,
}
impl Step {
    fn take(&mut self, world: &mut World, changes: Vec<Change>) {
        changes.iter().for_each(|change| world.apply(change));
        self.changes.extend(changes);
    }
    /// Decides an app until nothing follows any more.
    fn decide(&mut self, world: &mut World, app: &AppKey, now: Timestamp, ids: &mut SeededIds) {
        for _ in 0..8 {
            let changes = decide(world, app, now, ids).changes;
            if changes.is_empty() {
                return;
            }
            self.take(world, changes);
        }
        panic!("{} does not come to rest", app.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_networks_come_and_go_and_nothing_is_given_twice_or_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut server = Server::start(&path).await;
    let cluster = ClusterRecord {
        id: "c".into(),
        name: "test".into(),
        epoch: 1,
        // Just enough for all: every subnet is taken again and again.
        pool: AddressPool { range: "10.192.0.0/14".parse().unwrap(), prefix: 20 },
        network: Default::default(),
        placement: Default::default(),
        rebalancing: Default::default(),
        unique_local: Default::default(),
        created_at: Timestamp(1),
    };
    let with_node = |batch: Batch, n: u8| {
        let (record, key): (NodeRecord, _) = (node(n), Key::Node(node_id(n)));
        let status: NodeStatus = serde_json::from_value(json!({
            "state": "ready", "since": 1, "facts": {
                "hostname": "n", "address": format!("10.0.0.{n}"), "platform": { "os": "linux", "arch": "amd64" },
                "cpus": 64_000, "memory": 1_u64 << 40, "kernel": "6", "cgroup_version": 2, "agent_version": "0",
                "engine": null
            }
        }))
        .unwrap();
        let of_status = Key::NodeStatus(node_id(n));
        let batch = batch.put(key.to_string(), encode(&key, &record));
        batch.put(of_status.to_string(), encode(&of_status, &status))
    };
    let first = Batch::new().put(Key::Cluster.to_string(), encode(&Key::Cluster, &cluster));
    server.state.commit((1..=4).fold(first, with_node)).await.unwrap();

    let mut ids = SeededIds::new(11);
    let (mut made, mut tasks_made, mut restarts, mut step) = (0, 0, 0, 0_u64);
    let mut newest = 4;
    // An app is made in one step, asked to go in the next, and gone in the one after.
    while made < ROUNDS || server.state.read().world.apps().next().is_some() {
        step += 1;
        let now = Timestamp(1_000_000 + step * 1_000);
        let batches = {
            let inner = server.state.read();
            let mut world = inner.world.clone();
            let mut out = Step::default();
            for slot in 0..APPS {
                let app_key = key(slot);
                match world.app(&app_key).cloned() {
                    None if made < ROUNDS => {
                        let spec = app(slot, made);
                        let image = |spec: &wharf_model::ServiceSpec| Image::named(spec.image.clone());
                        let images =
                            spec.services.iter().map(|(name, spec)| (name.clone(), image(spec))).collect();
                        let changes = release(&world, &app_key, &spec, &images, &By::default(), now).unwrap();
                        out.take(&mut world, changes);
                        made += NETWORKS;
                    }
                    None => continue,
                    Some(record) if record.removed => {
                        let tasks: Vec<_> = world
                            .tasks()
                            .filter(|task| task.service.app == app_key && !task.is_over())
                            .cloned()
                            .collect();
                        for task in tasks {
                            let status = TaskStatus {
                                phase: Phase::Stopped,
                                sequence: task.status.sequence + 1,
                                ..task.status.clone()
                            };
                            world.set_task_status(task.id, status.clone());
                            out.reports.push((Task::clone(&task), status));
                        }
                    }
                    Some(_) => {
                        let down = Request::Down { volumes: false };
                        let changes = request(&world, &app_key, &down, &By::default(), now).unwrap();
                        out.take(&mut world, changes);
                    }
                }
                out.decide(&mut world, &app_key, now, &mut ids);
            }
            check(&world);
            tasks_made += out.changes.iter().filter(|change| matches!(change, Change::CreateTask(_))).count();
            let mut committer = Committer::whole(&inner, now);
            for (task, status) in &out.reports {
                committer.report(task.id, status, &mut ids);
            }
            for change in out.changes {
                committer.change(change, &mut ids);
            }
            committer.finish()
        };
        for batch in batches {
            server.state.commit(batch).await.unwrap();
        }
        if step % 25 == 0 {
            // A machine is replaced by another one.
            let old: NodeId = node_id(newest);
            newest = if newest == 200 { 4 } else { newest + 1 };
            let gone = Batch::new().delete(Key::Node(old).to_string());
            let gone = gone.delete(Key::NodeStatus(old).to_string());
            server.state.commit(with_node(gone, newest)).await.unwrap();
        }
        if step % 10 == 0 {
            let seen = |server: &Server| {
                let inner = server.state.read();
                let networks: Vec<_> = inner.world.networks().cloned().collect();
                let tasks: Vec<_> = inner.world.tasks().cloned().collect();
                (networks, tasks)
            };
            let before = seen(&server);
            server.stop().await;
            server = Server::start(&path).await;
            assert!(seen(&server) == before, "a server that starts again knows what it knew");
            restarts += 1;
        }
    }
    println!("{made} networks and {tasks_made} tasks were made and removed, over {restarts} restarts");
    assert!(made >= ROUNDS && tasks_made > ROUNDS && restarts >= 40, "{made} {tasks_made} {restarts}");
    let left = {
        let inner = server.state.read();
        let world = &inner.world;
        (world.networks().count(), world.tasks().count(), world.services().count())
    };
    assert_eq!(left, (0, 0, 0));
    let left = Arc::clone(server.state.backend());
    let left = left.read("").await.unwrap();
    let kept = ["networks/", "tasks/", "task-status/", "apps/", "services/", "revisions/", "releases/"];
    let kept: Vec<_> =
        left.entries.keys().filter(|key| kept.iter().any(|kind| key.starts_with(kind))).collect();
    assert!(kept.is_empty(), "{kept:?}");
}
