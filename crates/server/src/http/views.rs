//! What clients see of the state: model types in, API types out, and nothing decided.

use wharf_api::v1;
use wharf_engine::{Node, World};
use wharf_model::{
    AppKey, AppRecord, Bytes, Cpus, DiskFacts, Event, Health, Image, Mode, NodeFacts, NodeRecord,
    NodeScheduling, Overcommit, Phase, PortSpec, PublishMode, Rollout, RolloutState, ServiceKey,
    ServiceRecord, Slot, StopReason, Task, tunnel_address,
};

use crate::state::{Inner, State};

/// A node.
pub fn node(state: &State, inner: &Inner, node: &Node) -> v1::Node {
    let record = &node.record;
    let live = state.live_node(record.id);
    let facts = live.as_ref().and_then(|live| live.facts.as_ref()).or_else(|| node.facts());
    let engine = facts.and_then(|facts| facts.engine.as_ref());
    let load = inner.world.load(record.id);
    let mut roles = record.roles;
    // Whether a server runs on a machine is the server's to say: it announces where it answers.
    roles.server |= facts.is_some_and(|facts| inner.serves_at(facts.address));
    let behind = state.behind(record.id);
    let status = node.status.as_ref();
    let suspicion = status.and_then(|status| status.suspected.as_ref());
    v1::Node {
        id: record.id.to_string(),
        name: record.name.to_string(),
        generation: record.generation.0,
        state: node.state().to_string(),
        reason: node.status.as_ref().map(|status| status.reason.clone()).unwrap_or_default(),
        since: node.status.as_ref().map_or(record.joined_at.0, |status| status.since.0),
        availability: record.availability.to_string(),
        labels: record.labels.clone(),
        pool: record.scheduling.pool.clone(),
        taints: record.scheduling.taints.iter().map(ToString::to_string).collect(),
        overcommit: overcommit(&record.scheduling),
        windows: record
            .scheduling
            .windows
            .iter()
            .map(|window| v1::MaintenanceWindow {
                from: window.from.0,
                until: window.until.0,
                drain: window.drain,
                note: window.note.clone(),
            })
            .collect(),
        roles: roles.list().into_iter().map(|role| role.to_string()).collect(),
        address: facts.map(|facts| facts.address.to_string()),
        platform: facts.map(|facts| facts.platform.to_string()),
        cpus: facts.map(|facts| facts.cpus),
        memory: facts.map(|facts| facts.memory),
        devices: facts.iter().flat_map(|facts| &facts.devices).map(ToString::to_string).collect(),
        cpus_reserved: Cpus(load.cpus.0),
        memory_reserved: Bytes(load.memory.0),
        engine_version: engine.map(|engine| engine.version.clone()),
        engine_api_version: engine.map(|engine| engine.api_version.clone()),
        agent_version: facts.map(|facts| facts.agent_version.clone()),
        kernel: facts.map(|facts| facts.kernel.clone()),
        cgroup_version: facts.map(|facts| facts.cgroup_version),
        tasks: load.tasks as usize,
        serves: live.as_ref().map(|live| live.serves.1.0),
        serves_older: behind.map(|behind| behind.to_string()),
        joined_at: record.joined_at.0,
        suspected_by: suspicion
            .into_iter()
            .flat_map(|suspicion| &suspicion.by)
            .map(|by| inner.world.node_name(*by))
            .collect(),
        suspected_since: suspicion.map(|suspicion| suspicion.since.0),
        held_until: node.held_until().map(|until| until.0),
        lapses: status.map(|status| status.lapses.iter().map(|at| at.0).collect()).unwrap_or_default(),
        spared_until: status.and_then(|status| status.spared).map(|spared| spared.until.0),
        wireguard: facts.and_then(|facts| tunnels(record, facts)),
        disks: facts.into_iter().flat_map(|facts| &facts.disks).map(disk).collect(),
        disk_marks: record.disk_marks.to_string(),
        disk_full: wharf_engine::full_disk(node).is_some(),
        cleanup: facts.and_then(|facts| facts.cleanup.as_ref()).map(|cleanup| v1::NodeCleanup {
            at: cleanup.at.0,
            said: cleanup.said.clone(),
            freed: cleanup.freed,
        }),
        images: facts.map(|facts| facts.images.clone()).unwrap_or_default(),
        problems: live
            .as_ref()
            .map(|live| live.problems.clone())
            .unwrap_or_default()
            .into_iter()
            .chain(wharf_engine::host_conflicts(&inner.world, node.record.id))
            .chain(facts.into_iter().flat_map(|facts| wharf_engine::disk_problems(record, facts)))
            .collect(),
    }
}

fn disk(disk: &DiskFacts) -> v1::Disk {
    v1::Disk {
        path: disk.path.clone(),
        holds: disk.holds.iter().map(ToString::to_string).collect(),
        total: disk.total,
        free: disk.free,
        inodes_free: (disk.inodes > 0).then_some(disk.inodes_free),
        percent: disk.percent(),
        full_in_hours: disk.full_in_hours,
    }
}

fn overcommit(scheduling: &NodeScheduling) -> Option<v1::Overcommit> {
    let Overcommit { cpus, memory, limit_cpus, limit_memory } = scheduling.overcommit;
    let said = scheduling.overcommit != Overcommit::default();
    said.then_some(v1::Overcommit { cpus, memory, limit_cpus, limit_memory })
}

fn tunnels(record: &NodeRecord, facts: &NodeFacts) -> Option<v1::NodeTunnels> {
    let own = facts.wireguard.as_ref()?;
    Some(v1::NodeTunnels {
        address: tunnel_address(record.id).to_string(),
        key: own.key.to_string(),
        next_key: own.next.map(|key| key.to_string()),
        rotation: own.rotation,
        wanted_rotation: record.key_rotation,
        carrier: own.carrier.clone(),
        endpoint: own.endpoint.map(|endpoint| endpoint.to_string()),
        seen_from: facts.seen_from.filter(|seen| *seen != facts.address).map(|seen| seen.to_string()),
    })
}

/// How far a change has come.
pub fn rollout(rollout: &Rollout) -> v1::RolloutView {
    v1::RolloutView {
        generation: rollout.generation.0,
        what: rollout.what.clone(),
        by: rollout.by.to_string(),
        started_at: rollout.started_at.0,
        state: state_name(rollout.state),
        reason: rollout.reason.clone(),
        ended_at: rollout.ended_at.map(|at| at.0),
        before: rollout.before.map(|before| v1::EndedRollout {
            generation: before.generation.0,
            state: state_name(before.state),
        }),
        held: rollout.paused.is_some() && !rollout.state.is_over(),
    }
}

/// The word of a state, for programs.
pub fn state_name(state: RolloutState) -> String {
    state.to_string().replace(' ', "_")
}

/// An app in a list.
pub fn app(state: &State, inner: &Inner, record: &AppRecord) -> v1::App {
    let services: Vec<_> = inner.world.services_of(&record.key).filter(|service| !service.removed).collect();
    let ready = services.iter().map(|service| ready(state, &inner.world, &service.key)).sum();
    v1::App {
        environment: record.key.environment.to_string(),
        name: record.key.name.to_string(),
        generation: record.generation.0,
        release: record.release.0,
        rollout: rollout(&record.rollout),
        services: services.len(),
        ready,
        wanted: services.iter().map(|service| wanted(&inner.world, service)).sum(),
        created_at: record.created_at.0,
    }
}

/// How many tasks of a service serve, or have done what they were for.
fn ready(state: &State, world: &World, service: &ServiceKey) -> usize {
    world
        .tasks_of(service)
        .filter(|task| task.stop.is_none())
        .filter(|task| {
            let status = state.status_of(task);
            status.is_ready() || status.phase == wharf_model::Phase::Complete
        })
        .map(|task| (task.slot, task.node.filter(|_| task.slot == Slot(0))))
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

/// How many tasks a service wants.
fn wanted(world: &World, service: &ServiceRecord) -> usize {
    if service.stopped || service.removed {
        return 0;
    }
    match service.mode {
        Mode::Replicated { replicas } => replicas as usize,
        // A global service wants one wherever it may run, which is where it has one or has tried.
        Mode::Global => world
            .tasks_of(&service.key)
            .filter(|task| task.stop.is_none())
            .filter_map(|task| task.node)
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
    }
}

/// A task.
pub fn task(state: &State, inner: &Inner, task: &Task) -> v1::Task {
    let revision = inner.world.revision_of(&task.service, task.generation);
    let status = state.status_of(task);
    v1::Task {
        id: task.id.to_string(),
        name: task.name(),
        environment: task.service.app.environment.to_string(),
        app: task.service.app.name.to_string(),
        service: task.service.name.to_string(),
        slot: task.slot.0,
        generation: task.generation.0,
        release: revision.map_or(0, |revision| revision.release.0),
        image: revision.map(|revision| revision.image.reference.clone()).unwrap_or_default(),
        node_id: task.node.map(|node| node.to_string()),
        node: task.node.map(|node| inner.world.node_name(node)),
        node_state: task.node.map(|id| {
            inner.world.node(id).map_or_else(|| "gone".to_owned(), |node| node.state().to_string())
        }),
        addresses: task
            .addresses
            .iter()
            .map(|(network, address)| (network.to_string(), address.to_string()))
            .collect(),
        devices: task.devices.iter().map(ToString::to_string).collect(),
        ready: task.stop.is_none() && status.is_ready(),
        stop: task.stop.map(|reason| reason.to_string()),
        draining: inner.world.drain_facts(task).map(|facts| v1::TaskDrain {
            led_to_by: facts.led_to_by.iter().map(|(node, why)| format!("{node}: {why}")).collect(),
            under_way: facts.under_way,
            until: facts.until.map(|until| until.0),
        }),
        created_at: task.created_at.0,
        crash_loop: crash_loop(&inner.world, task),
        status,
    }
}

/// How often tasks of its slot have ended in a row, if it is the last of them.
fn crash_loop(world: &World, task: &Task) -> Option<String> {
    // Most tasks are not asked about.
    if !task.is_over() || task.failures + 1 < wharf_engine::CRASH_LOOP {
        return None;
    }
    let policy = world.revision_of(&task.service, task.generation)?.spec.restart;
    let place = |task: &Task| (task.slot, task.node.filter(|_| task.slot == Slot(0)), task.generation);
    let mut slot: Vec<&Task> = world.tasks_of(&task.service).map(|task| &**task).collect();
    slot.retain(|other| place(other) == place(task) && other.id <= task.id && other.is_over());
    wharf_engine::crash_loop(&policy, slot.into_iter().rev()).map(|crashes| crashes.to_string())
}

/// A service with its tasks; `waiting` are the sentences that concern it.
pub fn service(
    state: &State,
    inner: &Inner,
    record: &ServiceRecord,
    waiting: Vec<String>,
    with_spec: bool,
) -> v1::ServiceStatus {
    let world = &inner.world;
    let revision = world.revision_of(&record.key, record.generation);
    let mut tasks: Vec<&std::sync::Arc<Task>> =
        world.tasks_of(&record.key).filter(|task| !task.is_over()).collect();
    // Of a slot where nothing is going on, the latest that was.
    let mut ended: Vec<_> = world.tasks_of(&record.key).filter(|task| task.is_over()).collect();
    ended.reverse();
    // Slots that were scaled away are no longer anybody's concern.
    let gone = |task: &Task| match record.mode {
        Mode::Replicated { replicas } => task.slot.0 > replicas,
        Mode::Global => false,
    };
    for task in ended.into_iter().filter(|task| !gone(task)) {
        let place = |task: &Task| (task.slot, task.node.filter(|_| task.slot == Slot(0)));
        if !tasks.iter().any(|other| place(other) == place(task)) {
            tasks.push(task);
        }
    }
    tasks.sort_by_key(|task| (task.slot, task.id));
    v1::ServiceStatus {
        name: record.key.name.to_string(),
        generation: record.generation.0,
        image: revision.map(|revision| revision.image.reference.clone()).unwrap_or_default(),
        pinned: revision.and_then(|revision| pin(&revision.image)),
        mode: match record.mode {
            Mode::Replicated { .. } => "replicated".into(),
            Mode::Global => "global".into(),
        },
        wanted: wanted(world, record),
        ready: ready(state, world, &record.key),
        stopped: record.stopped,
        ports: revision.map(|revision| revision.spec.ports.iter().map(port).collect()).unwrap_or_default(),
        routes: revision
            .into_iter()
            .flat_map(|revision| &revision.spec.policy.routes)
            .map(|route| format!("{} -> {}", route.place(), route.port))
            .collect(),
        waiting,
        tasks: tasks.into_iter().map(|found| task(state, inner, found)).collect(),
        spec: revision.filter(|_| with_spec).map(|revision| Box::new(revision.spec.clone())),
    }
}

/// As Docker writes published ports.
fn port(port: &PortSpec) -> String {
    let published = port.published.map_or_else(|| "auto".to_owned(), |port| port.to_string());
    let mode = match port.mode {
        PublishMode::Ingress => "",
        PublishMode::Host => " (host)",
    };
    match port.host_ip {
        Some(ip) => format!("{ip}:{published}->{}/{}{mode}", port.target, port.protocol.as_str()),
        None => format!("{published}->{}/{}{mode}", port.target, port.protocol.as_str()),
    }
}

/// What an image is pinned to.
pub fn pin(image: &Image) -> Option<String> {
    image.digest.clone().or_else(|| image.id.clone())
}

/// One line of a plan or of a comparison.
pub fn operation(operation: wharf_engine::Operation) -> v1::Operation {
    let notes = operation.notes.iter().map(|note| format!("({note})"));
    let reason = operation.reasons.join(", ");
    let parts = std::iter::once(reason).filter(|text| !text.is_empty()).chain(notes);
    v1::Operation {
        reason: parts.collect::<Vec<_>>().join(" "),
        change: match operation.action {
            wharf_engine::Action::Create => v1::Change::Create,
            wharf_engine::Action::Change => v1::Change::Update,
            wharf_engine::Action::Replace => v1::Change::Replace,
            wharf_engine::Action::Remove => v1::Change::Remove,
            wharf_engine::Action::Keep => v1::Change::Keep,
        },
        kind: operation.thing.to_string(),
        name: operation.name,
    }
}

/// An event.
pub fn event(event: &Event) -> v1::Event {
    let subject = &event.subject;
    v1::Event {
        id: event.id.to_string(),
        at: event.at.0,
        kind: match event.kind {
            wharf_model::EventKind::Task => "task",
            wharf_model::EventKind::Node => "node",
            wharf_model::EventKind::App => "app",
            wharf_model::EventKind::Server => "server",
        }
        .into(),
        message: event.message.clone(),
        app: subject.app.as_ref().map(ToString::to_string),
        service: subject.service.as_ref().map(|service| service.name.to_string()),
        task: subject.task_name.clone(),
        node: subject.node_name.clone(),
        by: event.by.as_ref().map(ToString::to_string),
    }
}

/// Where an app's routes and published ports answer: at the hosts of the routes, and otherwise on each gateway that is ready.
pub fn urls(inner: &Inner, app: &AppKey) -> Vec<String> {
    let world = &inner.world;
    let gateways: Vec<_> = world
        .nodes()
        .filter(|node| node.record.roles.gateway && node.state() == wharf_model::NodeState::Ready)
        .filter_map(|node| node.facts().map(|facts| facts.address))
        .collect();
    let hosts: Vec<_> = gateways
        .iter()
        .map(|gateway| match gateway {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("[{address}]"),
        })
        .collect();
    let mut urls = Vec::new();
    for service in world.services_of(app).filter(|service| !service.removed && !service.stopped) {
        let Some(revision) = world.revision_of(&service.key, service.generation) else { continue };
        for route in &revision.spec.policy.routes {
            let named = if route.hosts.is_empty() { &hosts } else { &route.hosts };
            urls.extend(named.iter().map(|host| route.url(host)));
        }
        for port in revision.spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
            let Some(published) = port.published else { continue };
            let scheme = match (port.protocol, port.app_protocol.as_deref(), port.target) {
                (wharf_model::Protocol::Udp, ..) => "udp",
                (_, Some("https"), _) | (_, None, 443 | 8443) => "https",
                (_, Some("http" | "http2" | "ws"), _) | (_, None, 80 | 3000 | 5000 | 8000 | 8080 | 8888) => {
                    "http"
                }
                _ => "tcp",
            };
            urls.extend(hosts.iter().map(|host| format!("{scheme}://{host}:{published}")));
        }
    }
    urls
}

/// An app with everything that belongs to it. `waiting`: each sentence and the service it is about.
pub fn app_status(
    state: &State,
    inner: &Inner,
    record: &AppRecord,
    waiting: &[(Option<ServiceKey>, String)],
    with_spec: bool,
) -> v1::AppStatus {
    let world = &inner.world;
    let of = |key: &ServiceKey| {
        waiting
            .iter()
            .filter(|(about, _)| about.as_ref() == Some(key))
            .map(|(_, text)| text.clone())
            .collect()
    };
    v1::AppStatus {
        app: app(state, inner, record),
        services: world
            .services_of(&record.key)
            .filter(|found| !found.removed || world.tasks_of(&found.key).any(|task| !task.is_over()))
            .map(|found| service(state, inner, found, of(&found.key), with_spec))
            .collect(),
        externals: world
            .release(&record.key, record.release)
            .filter(|_| !record.removed)
            .into_iter()
            .flat_map(|release| &release.spec.externals)
            .map(|(name, external)| v1::ExternalView {
                name: name.to_string(),
                host: external.host.to_string(),
                ports: external.ports.clone(),
            })
            .collect(),
        networks: world
            .networks_of(&record.key)
            .map(|network| v1::NetworkView {
                name: network.name.to_string(),
                id: network.id.to_string(),
                subnet: network.subnet.to_string(),
                vni: network.vni,
            })
            .collect(),
        volumes: world
            .volumes_of(&record.key)
            .map(|volume| v1::VolumeView {
                name: volume.name.to_string(),
                id: volume.id.to_string(),
                nodes: volume.nodes.iter().map(|node| world.node_name(*node)).collect(),
            })
            .collect(),
        urls: urls(inner, &record.key),
        failures: failures(state, inner, record),
    }
}

/// The latest task of each service that failed in a change that failed itself, or returns: what has taken its place says nothing of it.
fn failures(state: &State, inner: &Inner, record: &AppRecord) -> Vec<v1::Task> {
    let rollout = &record.rollout;
    // A change that is under way and has a reason is on its way back.
    let failed = match rollout.state {
        RolloutState::Failed | RolloutState::RolledBack => true,
        RolloutState::Progressing => !rollout.reason.is_empty(),
        RolloutState::Done | RolloutState::Superseded => false,
    };
    let services = inner.world.services_of(&record.key).filter(|_| failed);
    let latest = services.filter_map(|service| {
        let tasks = inner.world.tasks_of(&service.key);
        let of_it = tasks.filter(|task| {
            let status = state.status_of(task);
            // What was asked to stop has done so, however it ended.
            let by_itself = matches!(task.stop, None | Some(StopReason::TimedOut));
            let ended = by_itself && matches!(status.phase, Phase::Failed | Phase::Lost);
            let unwell = status.health == Health::Unhealthy || status.probe_output.is_some();
            task.created_at >= rollout.started_at && (ended || unwell && !status.is_ready())
        });
        of_it.max_by_key(|task| (task.created_at, task.id))
    });
    latest.map(|found| task(state, inner, found)).collect()
}
