//! Clusters of any size to place tasks in, of the records that a server has.

use std::collections::BTreeMap;

use serde_json::json;
use wharf_engine::{Change, Decision, SeededIds, World, decide, release};
use wharf_model::{
    AddressPool, AppKey, AppSpec, By, Bytes, Generation, Image, NodeId, NodeRecord, NodeStatus, ServiceKey,
    ServiceRevision, Slot, Task, TaskId, Timestamp,
};

/// What a node has.
pub(crate) const CORES: u64 = 32;
const MEMORY: Bytes = Bytes(128 << 30);
/// What a task of the filling reserves.
const FILLING: u64 = 4;
pub(crate) const ZONES: usize = 10;

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// What rules the services have whose tasks are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Reservations only.
    Plain,
    /// Spread over zones, and a node has one task of a service at most.
    Spread,
}
impl Rules {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Spread => "spread+apart",
        }
    }
}

/// A world, and where its next ids come from.
pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) ids: SeededIds,
    apps: u32,
    addresses: u32,
    /// What running tasks have in common.
    running: Task,
}

pub(crate) fn node_id(number: usize) -> NodeId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&(number as u64).to_be_bytes());
    NodeId::from_parts(1, random)
}

pub(crate) fn app_key(name: &str) -> AppKey {
    AppKey { environment: "prod".parse().unwrap(), name: name.parse().unwrap() }
}

impl Cluster {
    /// As many ready nodes in ten zones, with nothing on them.
    pub(crate) fn of(nodes: usize) -> Self {
        let mut world = World::default();
        // Networks large enough for services of ten thousand tasks on ten thousand nodes.
        world.pool = AddressPool { range: "10.0.0.0/8".parse().unwrap(), prefix: 15 };
        for number in 0..nodes {
            let (record, status) = node(number);
            let id = record.id;
            world.insert_node(record);
            world.set_node_status(id, status);
        }
        world.take_dirty();
        Self { world, ids: SeededIds::new(7), apps: 0, addresses: 0, running: running() }
    }

    /// Gives every node running tasks that reserve so many per cent of its processors.
    pub(crate) fn fill(&mut self, percent: u64) {
        let each = (CORES * percent / 100 / FILLING) as usize;
        let nodes = self.world.nodes().count();
        self.run(nodes * each, nodes, FILLING * 1000, 100);
    }

    /// Running tasks of services of this size, spread evenly over the first nodes.
    pub(crate) fn run(&mut self, tasks: usize, nodes: usize, cpus: u64, of_one_service: usize) {
        let mut made = 0;
        while made < tasks {
            let count = of_one_service.min(tasks - made);
            let spec = self.app(count, Rules::Plain, cpus, false);
            let key = self.release(&spec);
            let service = ServiceKey { app: key, name: "web".parse().unwrap() };
            for slot in 1..=count {
                let task = self.running_task(&service, slot as u32, node_id((made + slot - 1) % nodes));
                self.world.insert_task(task);
            }
            made += count;
        }
        self.world.take_dirty();
    }

    fn running_task(&mut self, service: &ServiceKey, slot: u32, node: NodeId) -> Task {
        use wharf_engine::Ids as _;
        self.addresses += 1;
        let address = std::net::Ipv4Addr::from((10 << 24) + self.addresses);
        Task {
            id: TaskId::from_parts(NOW.0, self.ids.random()),
            service: service.clone(),
            slot: Slot(slot),
            node: Some(node),
            addresses: BTreeMap::from([("default".parse().unwrap(), address)]),
            ..self.running.clone()
        }
    }

    /// An app of one service with so many replicas, each of which reserves so much.
    pub(crate) fn app(&mut self, replicas: usize, rules: Rules, cpus: u64, network: bool) -> AppSpec {
        self.apps += 1;
        let placement = match rules {
            Rules::Plain => json!({}),
            Rules::Spread => json!({ "spread": ["node.labels.zone"], "max_replicas_per_node": 1 }),
        };
        let (networks, attached) = if network {
            (json!({ "default": {} }), json!({ "default": {} }))
        } else {
            (json!({}), json!({}))
        };
        serde_json::from_value(json!({
            "name": format!("app{}", self.apps),
            "networks": networks,
            "services": { "web": {
                "image": "web:1",
                "mode": { "kind": "replicated", "replicas": replicas },
                "network_mode": if network { json!("networks") } else { json!("host") },
                "networks": attached,
                "container": { "environment": { "PORT": "8080", "LOG": "info" } },
                "placement": placement,
                "resources": { "reservations": { "cpus": cpus, "memory": 256 << 20 } },
            } },
        }))
        .unwrap()
    }

    /// The app is released; nothing is decided yet.
    pub(crate) fn release(&mut self, spec: &AppSpec) -> AppKey {
        let changes = self.released(spec);
        self.apply(&changes);
        app_key(spec.name.as_str())
    }

    /// What a release of the app writes.
    pub(crate) fn released(&self, spec: &AppSpec) -> Vec<Change> {
        let key = app_key(spec.name.as_str());
        let image = Image { digest: Some(format!("sha256:{}", "ab".repeat(32))), ..Image::named("web:1") };
        let images = BTreeMap::from([("web".parse().unwrap(), image)]);
        let by = By { user: "ada".into(), client: "ada@laptop".into() };
        release(&self.world, &key, spec, &images, &by, NOW).unwrap()
    }

    pub(crate) fn decide(&mut self, app: &AppKey) -> Decision {
        decide(&self.world, app, NOW, &mut self.ids)
    }

    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            self.world.apply(change);
        }
    }

    /// How the tasks of an app's service are made.
    pub(crate) fn revision(&self, app: &AppKey) -> ServiceRevision {
        let service = ServiceKey { app: app.clone(), name: "web".parse().unwrap() };
        ServiceRevision::clone(self.world.revision_of(&service, Generation(1)).unwrap())
    }
}

/// Of records only what matters is said: what they have besides is as it is when nobody says anything.
fn running() -> Task {
    serde_json::from_value(json!({
        "id": TaskId::from_parts(NOW.0, [1; 10]),
        "service": { "app": { "environment": "prod", "name": "app" }, "name": "web" },
        "slot": 1,
        "generation": 1,
        "node": node_id(0),
        "created_at": NOW,
        "status": {
            "phase": "running",
            "health": "healthy",
            "sequence": 5,
            "container": "5d0c1a7e9f3b".repeat(5),
            "started_at": NOW,
            "ready_at": NOW,
        },
    }))
    .unwrap()
}

fn node(number: usize) -> (NodeRecord, NodeStatus) {
    let record = json!({
        "id": node_id(number),
        "name": format!("n{number}"),
        "generation": 1,
        "availability": "active",
        "labels": { "zone": format!("z{}", number % ZONES), "rack": format!("r{}", number / 40) },
        "roles": {},
        "joined_at": 1,
        "certificate": "",
    });
    let status = json!({
        "state": "ready",
        "since": 1,
        "facts": {
            "hostname": format!("n{number}"),
            "address": std::net::Ipv4Addr::from(0x6440_0000 + number as u32),
            "platform": { "os": "linux", "arch": "amd64" },
            "cpus": CORES * 1000,
            "memory": MEMORY,
            "kernel": "6.1.0",
            "cgroup_version": 2,
            "agent_version": "0.1.0",
            "engine": {
                "version": "20.10.24",
                "api_version": "1.41",
                "live_restore": true,
                "storage_driver": "overlay2",
            },
            "taken_ports": [22],
        },
    });
    (serde_json::from_value(record).unwrap(), serde_json::from_value(status).unwrap())
}
