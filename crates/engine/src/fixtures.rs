//! What tests begin with: small clusters and apps, and a cluster that carries decisions out.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use uuid::Uuid;
use wharf_model::*;

use crate::{Change, Decision, Node, Request, SeededIds, Waiting, World, decide, release, request};

/// A ready node with 4 cores and 8 GiB at 10.0.0.n.
pub(crate) fn node(n: u8) -> Node {
    let facts = NodeFacts {
        hostname: format!("n{n}"),
        address: Ipv4Addr::new(10, 0, 0, n).into(),
        platform: Platform { os: "linux".into(), arch: "amd64".into() },
        cpus: Cpus(4000),
        memory: Bytes(8 << 30),
        disk: None,
        images: vec![],
        kernel: "6.1".into(),
        cgroup_version: 2,
        agent_version: "0.1.0".into(),
        engine: Some(EngineFacts {
            version: "20.10.24".into(),
            api_version: "1.41".into(),
            labels: BTreeMap::new(),
            live_restore: true,
            storage_driver: "overlay2".into(),
        }),
        engine_error: None,
        taken_ports: vec![],
        devices: Vec::new(),
        subnets: vec![],
        wireguard: None,
        seen_from: None,
        disks: Vec::new(),
        cleanup: None,
    };
    Node {
        record: NodeRecord {
            id: node_id(n),
            name: format!("n{n}").parse().unwrap(),
            generation: Generation(1),
            availability: Availability::Active,
            available_since: None,
            labels: BTreeMap::new(),
            roles: Roles { server: n == 1, gateway: n == 1 },
            joined_at: Timestamp(0),
            certificate: String::new(),
            key_rotation: 0,
            disk_marks: Default::default(),
            scheduling: NodeScheduling::default(),
        },
        status: Some(NodeStatus { facts: Some(facts), ..NodeStatus::new(NodeState::Ready, Timestamp(0)) }),
    }
}
pub(crate) fn node_id(n: u8) -> NodeId {
    NodeId::new(Uuid::from_u128(u128::from(n)))
}
pub(crate) fn app_key() -> AppKey {
    NamedIn { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() }
}
pub(crate) fn key(service: &str) -> ServiceKey {
    ServiceKey { app: app_key(), name: service.parse().unwrap() }
}

/// One task of `image:1` on the network `default`.
pub(crate) fn service(image: &str) -> ServiceSpec {
    ServiceSpec {
        image: format!("{image}:1"),
        pull_policy: PullPolicy::Missing,
        mode: Mode::Replicated { replicas: 1 },
        container: ContainerSpec::default(),
        depends_on: BTreeMap::new(),
        network_mode: NetworkMode::Networks,
        endpoint_mode: Default::default(),
        networks: BTreeMap::from([("default".parse().unwrap(), NetworkAttachment::default())]),
        ports: vec![],
        expose: vec![],
        restart: RestartPolicy::default(),
        rollback: None,
        update: UpdatePolicy::default(),
        placement: PlacementSpec::default(),
        resources: Resources::default(),
        healthcheck: None,
        probe: None,
        labels: BTreeMap::new(),
        configs: vec![],
        secrets: vec![],
        policy: ServicePolicy::default(),
    }
}
pub(crate) fn replicas(mut spec: ServiceSpec, replicas: u32) -> ServiceSpec {
    spec.mode = Mode::Replicated { replicas };
    spec
}
pub(crate) fn with_volume(mut spec: ServiceSpec, volume: &str) -> ServiceSpec {
    let source = MountSource::Volume { volume: volume.parse().unwrap(), nocopy: false, subpath: None };
    spec.container.mounts.push(MountSpec { source, target: "/data".into(), read_only: false });
    spec
}
pub(crate) fn after(mut spec: ServiceSpec, on: &str, condition: DependencyCondition) -> ServiceSpec {
    let dependency = Dependency { condition, restart: false, required: true };
    spec.depends_on.insert(on.parse().unwrap(), dependency);
    spec
}
pub(crate) fn published(mut spec: ServiceSpec, port: u16, mode: PublishMode) -> ServiceSpec {
    spec.ports.push(PortSpec {
        target: 80,
        published: Some(port),
        published_to: None,
        protocol: Protocol::Tcp,
        mode,
        host_ip: None,
        name: None,
        app_protocol: None,
    });
    spec
}
pub(crate) fn app(services: &[(&str, ServiceSpec)]) -> AppSpec {
    let services: BTreeMap<ServiceName, _> =
        services.iter().map(|(name, spec)| (name.parse().unwrap(), spec.clone())).collect();
    let volumes =
        services.values().flat_map(|spec| crate::spec::named_volumes(spec).map(|(name, _)| name.clone()));
    AppSpec {
        name: "shop".parse().unwrap(),
        volumes: volumes.map(|name| (name, VolumeSpec::default())).collect(),
        networks: BTreeMap::from([("default".parse().unwrap(), NetworkSpec::default())]),
        configs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        externals: BTreeMap::new(),
        jobs: BTreeMap::new(),
        policy: AppPolicy::default(),
        services,
    }
}
pub(crate) fn images(spec: &AppSpec) -> BTreeMap<ServiceName, Image> {
    let image = |spec: &ServiceSpec| Image {
        digest: Some(format!("sha256:{}", spec.image)),
        ..Image::named(spec.image.clone())
    };
    spec.services.iter().map(|(name, spec)| (name.clone(), image(spec))).collect()
}
pub(crate) fn by() -> By {
    By { user: "ada".into(), client: "ada@laptop".into() }
}

/// What a task does once its node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Script {
    /// Comes up and stays.
    Serve,
    /// Comes up and never passes its check.
    Sicken,
    /// Runs, and ends with this code.
    Exit(i64),
    /// Runs, is checked by nobody, and ends a moment later with code 1.
    Crash,
    /// Never starts.
    Refuse,
}

/// A cluster that carries decisions out, and nodes that do what they are told, one step at a time.
pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) now: Timestamp,
    pub(crate) ids: SeededIds,
    /// What tasks of a service with this image do; `Serve` if it is not named.
    pub(crate) scripts: BTreeMap<String, Script>,
    /// Nodes that are cut off: their tasks neither move nor report.
    pub(crate) cut_off: Vec<NodeId>,
    /// Nodes that go on with the names and routes they have, whatever they are told.
    pub(crate) deaf: Vec<NodeId>,
    /// What the gateway of the first node has under way with tasks that are out.
    pub(crate) under_way: BTreeMap<TaskId, u64>,
    /// With each step gateways count 50 requests to each generation of a service that is judged; of those whose image is named here so many
    /// are counted, and so many of them fail.
    pub(crate) traffic: BTreeMap<String, (u64, u64)>,
    figures: BTreeMap<ServiceKey, Figures>,
    /// When each task was asked to stop.
    pub(crate) asked_at: BTreeMap<TaskId, Timestamp>,
    /// What each node serves names and routes by.
    pub(crate) serves: BTreeMap<NodeId, AssignmentSet>,
    pub(crate) last: Decision,
    pub(crate) wake_at: Option<Timestamp>,
}
impl Cluster {
    pub(crate) fn of(nodes: u8) -> Self {
        let mut world = World::default();
        for n in 1..=nodes {
            let Node { record, status } = node(n);
            world.insert_node(record);
            world.set_node_status(node_id(n), status.unwrap());
        }
        Self {
            world,
            now: Timestamp(1_000_000_000),
            ids: SeededIds::new(7),
            scripts: BTreeMap::new(),
            cut_off: vec![],
            deaf: vec![],
            under_way: BTreeMap::new(),
            traffic: BTreeMap::new(),
            figures: BTreeMap::new(),
            asked_at: BTreeMap::new(),
            serves: BTreeMap::new(),
            last: Decision::default(),
            wake_at: None,
        }
    }
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            self.world.apply(change);
        }
    }
    pub(crate) fn up(&mut self, spec: &AppSpec) {
        let changes = release(&self.world, &app_key(), spec, &images(spec), &by(), self.now).unwrap();
        self.apply(&changes);
    }
    pub(crate) fn ask(&mut self, asked: &Request) {
        let changes = request(&self.world, &app_key(), asked, &by(), self.now).unwrap();
        self.apply(&changes);
    }
    pub(crate) fn pass(&mut self) -> Decision {
        self.world.observe(self.now);
        self.last = decide(&self.world, &app_key(), self.now, &mut self.ids);
        self.wake_at = self.last.wake_at;
        let changes = self.last.changes.clone();
        let stops = changes.iter().filter_map(|change| match change {
            Change::StopTask { task, .. } => Some((*task, self.now)),
            _ => None,
        });
        self.asked_at.extend(stops);
        self.apply(&changes);
        self.last.clone()
    }
    /// Nodes are told what there is now, and serve it unless they are deaf or cut off. What is changed later is another revision's.
    pub(crate) fn acknowledge(&mut self) -> bool {
        self.world.take_dirty();
        let version = (self.world.epoch, self.world.revision);
        let nodes: Vec<_> = self.world.nodes().map(|node| node.record.id).collect();
        let there = |node: &NodeId| !self.cut_off.contains(node);
        let mut said = Vec::new();
        let assigner = crate::Assigner::new(&self.world);
        for node in nodes.into_iter().filter(there) {
            if !self.deaf.contains(&node) {
                self.serves.insert(node, assigner.for_node(node));
            }
            let serves = self.serves.get(&node).map(|set| (set.epoch, set.revision));
            said.push((node, crate::Serving { told: Some(version), right_at: version.1, serves }));
        }
        self.world.set_serving(said);
        let gone = |task: &TaskId| self.world.task(*task).is_some_and(|task| task.stop.is_some());
        let under_way: BTreeMap<_, _> =
            self.under_way.iter().filter(|(task, _)| gone(task)).map(|(task, n)| (*task, *n)).collect();
        self.world.set_under_way(node_id(1), under_way);
        self.world.revision.0 += 1;
        self.world.is_dirty()
    }
    /// Gateways count what they send to services that are judged, from `now` on if they have not before.
    pub(crate) fn count(&mut self) -> bool {
        let judged = crate::judged(&self.world);
        self.figures.retain(|service, _| judged.contains(service));
        for service in &judged {
            let begin = || Figures { since: self.now, ..Figures::default() };
            let figures = self.figures.entry(service.clone()).or_insert_with(begin);
            let ready =
                self.world.tasks_of(service).filter(|task| task.is_ready()).map(|task| task.generation);
            for generation in ready.collect::<std::collections::BTreeSet<_>>() {
                let image = &self.world.revision_of(service, generation).unwrap().image.reference;
                let (requests, failures) = self.traffic.get(image).copied().unwrap_or((50, 0));
                let set = figures.sets.entry(generation).or_default();
                set.requests += requests;
                set.failures += failures;
                set.latency.resize(LATENCY_BOUNDS.len() + 1, 0);
                set.latency[4] += requests;
            }
        }
        for (service, figures) in self.figures.clone() {
            self.world.set_figures(&service, Some(figures));
        }
        !judged.is_empty()
    }
    /// Another server leads: what was counted so far is not known to it.
    pub(crate) fn forget_figures(&mut self) {
        for service in std::mem::take(&mut self.figures).into_keys() {
            self.world.set_figures(&service, None);
        }
    }
    /// Every node acknowledges, and every task of a reachable node takes one step.
    pub(crate) fn step(&mut self) -> bool {
        self.count();
        let acknowledged = self.acknowledge();
        let tasks: Vec<_> = self.world.tasks().filter(|task| !task.is_over()).cloned().collect();
        let mut moved = false;
        for task in tasks.into_iter().filter(|task| !self.cut_off.contains(&task.node.unwrap())) {
            let status = self.next(&task);
            moved |= status != task.status;
            self.world.set_task_status(task.id, status);
        }
        self.delete_volumes() || moved || acknowledged
    }
    fn next(&self, task: &Task) -> TaskStatus {
        let mut status = task.status.clone();
        let revision = self.world.revision_of(&task.service, task.generation).unwrap();
        let script = match &task.hook {
            Some(hook) => self.scripts.get(&hook.command[0]).cloned().unwrap_or(Script::Exit(0)),
            None => self.scripts.get(&revision.image.reference).cloned().unwrap_or(Script::Serve),
        };
        status.sequence += 1;
        if task.is_let_go() {
            status.phase = if status.phase < Phase::Stopping { Phase::Stopping } else { Phase::Stopped };
            status.ended_at = Some(self.now).filter(|_| status.phase == Phase::Stopped);
            return status;
        }
        match (status.phase, script) {
            (Phase::Pending, _) => status.phase = Phase::Preparing,
            (Phase::Preparing, Script::Refuse) => {
                status.phase = Phase::Failed;
                status.message = "no such image".into();
                status.ended_at = Some(self.now);
            }
            (Phase::Preparing, _) => status.phase = Phase::Starting,
            (Phase::Starting, script) => {
                status.phase = Phase::Running;
                status.started_at = Some(self.now);
                if matches!(script, Script::Serve | Script::Crash) {
                    status.ready_at = Some(self.now);
                } else {
                    status.health = Health::Starting;
                }
            }
            (Phase::Running, Script::Exit(code)) => {
                status.phase = if code == 0 { Phase::Complete } else { Phase::Failed };
                status.exit = Some(Exit { code, oom: false });
                status.ended_at = Some(self.now);
            }
            (Phase::Running, Script::Crash) => {
                // An agent says first that nothing is known of it any more.
                status.health = Health::Starting;
                status.phase = Phase::Failed;
                status.exit = Some(Exit { code: 1, oom: false });
                status.ended_at = Some(self.now);
            }
            (Phase::Running, Script::Sicken) if status.health != Health::Unhealthy => {
                status.health = Health::Unhealthy;
                status.probe_output = Some("connection refused".into());
            }
            _ => return task.status.clone(),
        }
        status
    }
    /// Agents delete the data of volumes that go, and the server notes it.
    fn delete_volumes(&mut self) -> bool {
        if !self.world.apps().any(|app| app.remove_volumes) {
            return false;
        }
        let assigner = crate::Assigner::new(&self.world);
        let mut deleted = Vec::new();
        for node in self.world.nodes().map(|node| node.record.id).filter(|id| !self.cut_off.contains(id)) {
            let volumes = assigner.for_node(node).removed_volumes;
            deleted.extend(volumes.into_iter().map(|volume| (node, volume)));
        }
        for (node, id) in &deleted {
            let mut volume = VolumeRecord::clone(self.world.volumes().find(|v| v.id == *id).unwrap());
            volume.nodes.retain(|held| held != node);
            self.world.insert_volume(volume);
        }
        !deleted.is_empty()
    }
    /// Passes and steps until nothing moves and nothing is asked for before `patience` has passed.
    pub(crate) fn settle(&mut self) {
        self.settle_for(Duration::from_secs(1200), &mut |_| {});
    }
    pub(crate) fn settle_for(&mut self, patience: Duration, check: &mut dyn FnMut(&Self)) {
        let end = self.now + patience;
        for _ in 0..2_000 {
            let decision = self.pass();
            check(self);
            let moved = self.step();
            check(self);
            self.now = self.now + Duration::from_millis(10);
            if decision.changes.is_empty() && !moved {
                match decision.wake_at {
                    Some(at) if at <= end => self.now = self.now.max(at),
                    _ => return,
                }
            }
        }
        panic!("it does not settle; last decision: {:#?}", self.last);
    }
    /// Passes and steps for so long, whether anything moves or not.
    pub(crate) fn go_on_for(&mut self, time: Duration, check: &mut dyn FnMut(&Self)) {
        let end = self.now + time;
        while self.now < end {
            let _ = self.pass();
            check(self);
            self.step();
            check(self);
            self.now = self.now + Duration::from_millis(50);
        }
    }
    /// Where the names and published ports of a service lead by what a node serves.
    pub(crate) fn led_to(&self, n: u8, service: &str) -> std::collections::BTreeSet<TaskId> {
        let Some(set) = self.serves.get(&node_id(n)) else { return Default::default() };
        let names = set.dns.networks.values().filter_map(|names| names.get(service)).flatten();
        let named = names.flat_map(|address| {
            let tasks =
                self.world.tasks().filter(move |task| task.addresses.values().any(|own| own == address));
            tasks.filter(|task| !task.is_over()).map(|task| task.id)
        });
        let routes = set.routes.routes.iter().filter(|route| route.service == key(service));
        let routed = routes.flat_map(|route| &route.endpoints).map(|endpoint| endpoint.task);
        named.chain(routed).collect()
    }
    pub(crate) fn waiting(&self) -> String {
        self.last.waiting.iter().map(Waiting::to_string).collect::<Vec<_>>().join("\n")
    }
    pub(crate) fn tasks(&self, service: &str) -> Vec<Task> {
        self.world.tasks_of(&key(service)).map(|task| Task::clone(task)).collect()
    }
    pub(crate) fn ready(&self, service: &str) -> Vec<Task> {
        self.tasks(service).into_iter().filter(Task::is_ready).collect()
    }
    pub(crate) fn rollout(&self) -> &Rollout {
        &self.world.app(&app_key()).unwrap().rollout
    }
    pub(crate) fn set_state(&mut self, n: u8, state: NodeState) {
        let status = self.world.node(node_id(n)).unwrap().status.clone().unwrap();
        let suspected = status.suspected.clone().filter(|_| state != NodeState::Down);
        let missing = status.missing && suspected.is_some();
        self.world.set_node_status(node_id(n), NodeStatus { state, suspected, missing, ..status });
        self.cut_off.retain(|id| *id != node_id(n));
        if matches!(state, NodeState::Down | NodeState::Unreachable) {
            self.cut_off.push(node_id(n));
        }
    }
    /// Others miss a node, or hear it again.
    pub(crate) fn set_suspected(&mut self, n: u8, suspected: bool) {
        let status = self.world.node(node_id(n)).unwrap().status.clone().unwrap();
        let by = || [node_id(if n == 1 { 2 } else { 1 })].into();
        let suspected = suspected && status.state != NodeState::Down;
        let suspected = suspected.then(|| Suspicion { since: self.now, by: by() });
        let missing = status.missing && suspected.is_some();
        self.world.set_node_status(node_id(n), NodeStatus { suspected, missing, ..status });
    }
    /// A node is suspected for longer than a hiccup.
    pub(crate) fn set_missing(&mut self, n: u8) {
        self.set_suspected(n, true);
        let status = self.world.node(node_id(n)).unwrap().status.clone().unwrap();
        let missing = status.suspected.is_some();
        self.world.set_node_status(node_id(n), NodeStatus { missing, ..status });
        self.cut_off.push(node_id(n));
    }
    pub(crate) fn set_availability(&mut self, n: u8, availability: Availability) {
        let record = self.world.node(node_id(n)).unwrap().record.clone();
        self.world.insert_node(NodeRecord { availability, ..record });
    }
}
