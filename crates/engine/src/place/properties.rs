//! What holds of placement in any cluster: the index answers as a look at every node does, and no rule is ever broken.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wharf_model::*;

use super::{Demand, Places, mixed};
use crate::fixtures::{Cluster, app, key, node_id, published, replicas, service};

#[derive(Debug, Clone)]
struct Machine {
    zone: Option<u8>,
    rack: u8,
    cpus: u64,
    memory: u64,
    pool: bool,
    taint: bool,
    availability: u8,
    state: u8,
    image: Option<u8>,
    port: bool,
}
fn machine() -> impl Strategy<Value = Machine> {
    let what = (prop::option::weighted(0.9, 0u8..3), 0u8..4, 1u64..9, 1u64..9);
    let kept = (prop::bool::weighted(0.15), prop::bool::weighted(0.15), 0u8..12, 0u8..12);
    let more = (prop::option::weighted(0.3, 0u8..4), prop::bool::weighted(0.2));
    (what, kept, more).prop_map(
        |((zone, rack, cpus, memory), (pool, taint, availability, state), (image, port))| Machine {
            zone,
            rack,
            cpus,
            memory,
            pool,
            taint,
            availability,
            state,
            image,
            port,
        },
    )
}

/// One service of a generated app.
#[derive(Debug, Clone)]
struct Wanted {
    replicas: u32,
    cpus: u64,
    memory: u64,
    zone: Option<(bool, u8)>,
    spread: u8,
    most: Option<u32>,
    strategy: u8,
    affinity: Vec<(u8, u8, u8, bool)>,
    minimum: Option<(u32, bool)>,
    port: u8,
    pool: bool,
    bears: bool,
    elsewhere: u32,
}
fn wanted() -> impl Strategy<Value = Wanted> {
    let size = (0u32..7, 0u64..5, 0u64..5);
    let place =
        (prop::option::weighted(0.3, (any::<bool>(), 0u8..3)), 0u8..6, prop::option::weighted(0.3, 1u32..3));
    let wishes = prop::collection::vec((0u8..3, 0u8..4, 0u8..3, any::<bool>()), 0..3);
    let minimum = prop::option::weighted(0.3, (2u32..4, any::<bool>()));
    let rest =
        (0u8..3, wishes, minimum, 0u8..8, prop::bool::weighted(0.2), prop::bool::weighted(0.3), 0u32..8);
    (size, place, rest).prop_map(|((replicas, cpus, memory), (zone, spread, most), rest)| {
        let (strategy, affinity, minimum, port, pool, bears, elsewhere) = rest;
        let elsewhere = if elsewhere < 3 { elsewhere } else { 0 };
        Wanted {
            replicas,
            cpus,
            memory,
            zone,
            spread,
            most,
            strategy,
            affinity,
            minimum,
            port,
            pool,
            bears,
            elsewhere,
        }
    })
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn cluster_of(machines: &[Machine]) -> Cluster {
    let mut cluster = Cluster::of(u8::try_from(machines.len()).unwrap());
    for (n, machine) in (1u8..).zip(machines) {
        let mut record = cluster.world.node(node_id(n)).unwrap().record.clone();
        record.labels.extend(machine.zone.map(|zone| ("zone".to_owned(), zone.to_string())));
        record.labels.insert("rack".to_owned(), machine.rack.to_string());
        record.scheduling.pool = machine.pool.then(|| "gpu".to_owned());
        record.scheduling.taints = if machine.taint { vec!["t:NoSchedule".parse().unwrap()] } else { vec![] };
        record.availability = match machine.availability {
            0 => Availability::Pause,
            1 => Availability::Drain,
            _ => Availability::Active,
        };
        cluster.world.insert_node(record);
        let mut status = cluster.world.node(node_id(n)).unwrap().status.clone().unwrap();
        status.state = if machine.state == 0 { NodeState::Unreachable } else { NodeState::Ready };
        let facts = status.facts.as_mut().unwrap();
        (facts.cpus, facts.memory) = (Cpus(machine.cpus * 500), Bytes(machine.memory << 30));
        facts.images =
            machine.image.map(|image| format!("{}:1", NAMES[usize::from(image)])).into_iter().collect();
        facts.taken_ports = if machine.port { vec![8000] } else { vec![] };
        cluster.world.set_node_status(node_id(n), status);
    }
    cluster
}

fn spec_of(wanted: &[Wanted]) -> AppSpec {
    let services = wanted.iter().enumerate().map(|(n, wanted)| {
        let mut spec = replicas(service(NAMES[n]), wanted.replicas);
        spec.resources.reservations.cpus = Some(Cpus(wanted.cpus * 250));
        spec.resources.reservations.memory = Some(Bytes(wanted.memory << 29));
        let zone = |(equal, zone): (bool, u8)| Constraint {
            key: "node.labels.zone".into(),
            equal,
            value: zone.to_string(),
        };
        spec.placement.constraints.extend(wanted.zone.map(zone));
        let labels: &[&str] = match wanted.spread {
            0 => &["node.labels.zone"],
            1 => &["node.labels.rack", "node.labels.zone"],
            2 => &["node.id"],
            _ => &[],
        };
        spec.placement.spread = labels.iter().map(|label| (*label).to_owned()).collect();
        spec.placement.max_replicas_per_node = wanted.most;
        spec.policy.strategy = Some(match wanted.strategy {
            0 => PlacementStrategy::Binpack,
            1 => PlacementStrategy::Random,
            _ => PlacementStrategy::Spread,
        });
        spec.policy.affinity = wanted
            .affinity
            .iter()
            .map(|(kind, whom, scope, soft)| {
                let name: ServiceName = NAMES[usize::from(*whom)].parse().unwrap();
                let to = match kind {
                    0 if name.as_str() != NAMES[n] => Neighbour::Near(name),
                    2 => Neighbour::NearImage(format!("{name}:1")),
                    _ => Neighbour::Apart(name),
                };
                let scope = ["node", "node.labels.zone", "node.labels.rack"][usize::from(*scope)].to_owned();
                Affinity { to, scope, soft: *soft }
            })
            .collect();
        let over = "node.labels.zone".to_owned();
        spec.policy.availability =
            wanted.minimum.map(|(at_least, soft)| AvailabilityMinimum { over, at_least, soft });
        spec.policy.pool = wanted.pool.then(|| "gpu".to_owned());
        spec.policy.tolerations = if wanted.bears { vec!["t".parse().unwrap()] } else { vec![] };
        spec.policy.slots = Some(StableSlots { stay: false, elsewhere: wanted.elsewhere });
        if wanted.port < 2 {
            spec = published(spec, 8000, PublishMode::Host);
            spec.ports[0].published_to = (wanted.port == 1).then_some(8001);
        }
        (NAMES[n], spec)
    });
    app(&services.collect::<Vec<_>>())
}

/// By a fresh look at every task.
fn no_rule_is_broken(cluster: &Cluster) -> Result<(), TestCaseError> {
    let world = &cluster.world;
    let spec = |task: &Task| &world.revision_of(&task.service, task.generation).unwrap().spec;
    for node in world.nodes() {
        let facts = node.facts().unwrap();
        let tasks: Vec<_> = world.tasks_on(node.record.id).filter(|task| !task.is_over()).collect();
        let sum = |of: &dyn Fn(&ResourceSet) -> u64| -> u64 {
            tasks.iter().map(|task| of(&spec(task).resources.reservations)).sum()
        };
        prop_assert!(sum(&|set| set.cpus.unwrap_or_default().0) <= facts.cpus.0);
        prop_assert!(sum(&|set| set.memory.unwrap_or_default().0) <= facts.memory.0);
        let fixed = tasks.iter().flat_map(|task| &spec(task).ports);
        let fixed = fixed.filter(|port| port.published_to.is_none()).filter_map(|port| port.published);
        let given = tasks.iter().flat_map(|task| &task.ports).map(|port| port.published);
        let mut ports: Vec<u16> = fixed.chain(given).chain(facts.taken_ports.iter().copied()).collect();
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        prop_assert_eq!(ports.len(), all, "a port twice");
        for task in &tasks {
            let spec = spec(task);
            prop_assert!(spec.placement.constraints.iter().all(|one| super::rules::holds(one, node)));
            prop_assert_eq!(&spec.policy.pool, &node.record.scheduling.pool);
            prop_assert!(node.record.scheduling.taints.is_empty() || !spec.policy.tolerations.is_empty());
            let siblings = tasks.iter().filter(|other| other.service == task.service).count();
            if let Some(most) = spec.placement.max_replicas_per_node {
                prop_assert!(siblings <= usize::try_from(most).unwrap());
            }
            let Mode::Replicated { replicas } = spec.mode else { continue };
            let elsewhere = spec.policy.slots.map_or(0, |slots| slots.elsewhere);
            prop_assert!(siblings <= usize::try_from(replicas.saturating_sub(elsewhere).max(1)).unwrap());
        }
    }
    let value = |task: &Task, scope: &str| {
        let node = task.node.and_then(|id| world.node(id)).unwrap();
        super::rules::attribute(node, scope).map(std::borrow::Cow::into_owned)
    };
    for task in world.tasks().filter(|task| !task.is_over()) {
        for wish in spec(task).policy.affinity.iter().filter(|wish| !wish.soft) {
            let Neighbour::Apart(from) = &wish.to else { continue };
            let here = value(task, &wish.scope);
            let other = key(from.as_str());
            let mut others = world.tasks_of(&other);
            let beside = others.any(|other| {
                other.id != task.id && !other.is_over() && here.is_some() && value(other, &wish.scope) == here
            });
            prop_assert!(!beside, "{} is to be apart from {from}", task.name());
        }
    }
    Ok(())
}

/// Hard minima: the places that tasks still to come can reach, and those in use, are enough.
fn minima_can_be_met(cluster: &Cluster) -> Result<(), TestCaseError> {
    for record in cluster.world.services_of(&crate::fixtures::app_key()) {
        let Mode::Replicated { replicas } = record.mode else { continue };
        let spec = &cluster.world.revision_of(&record.key, record.generation).unwrap().spec;
        let Some(minimum) = spec.policy.availability.as_ref().filter(|minimum| !minimum.soft) else {
            continue;
        };
        let mut used = BTreeMap::<Option<String>, u32>::new();
        for task in cluster.world.tasks_of(&record.key).filter(|task| !task.is_over()) {
            let node = cluster.world.node(task.node.unwrap()).unwrap();
            *used.entry(node.record.labels.get("zone").cloned()).or_default() += 1;
        }
        let placed: u32 = used.values().sum();
        let places = u32::try_from(used.keys().flatten().count()).unwrap();
        let missing = minimum.at_least.saturating_sub(places);
        prop_assert!(replicas < minimum.at_least || missing <= replicas - placed, "{:?}", used);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_answers_as_a_look_at_every_node_does(
        machines in prop::collection::vec(machine(), 0..14),
        services in prop::collection::vec(wanted(), 1..5),
        more in prop::collection::vec((0u8..4, any::<u8>(), 0u8..6), 1..24),
        late in prop::option::weighted(0.5, (machine(), 0u8..14)),
    ) {
        let mut cluster = cluster_of(&machines);
        cluster.up(&spec_of(&services));
        let _ = cluster.pass();
        no_rule_is_broken(&cluster)?;
        minima_can_be_met(&cluster)?;
        // Nodes come, go and change.
        if let Some((machine, gone)) = late {
            cluster.world.remove_node(node_id(gone));
            let other = cluster_of(&[machine]);
            let node = other.world.node(node_id(1)).unwrap();
            cluster.world.insert_node(node.record.clone());
            cluster.world.set_node_status(node_id(1), node.status.clone().unwrap());
        }
        let tasks: Vec<_> = cluster.world.tasks().cloned().collect();
        let mut places = Places::new(&cluster.world, cluster.now);
        for (step, (which, chance, special)) in (0u64..).zip(&more) {
            let which = NAMES[usize::from(*which) % services.len()];
            let record = cluster.world.service(&key(which)).unwrap();
            let revision = cluster.world.revision_of(&key(which), record.generation).unwrap();
            let mut demand = Demand::of(&cluster.world, revision);
            (demand.now, demand.seed) = (cluster.now, mixed(step));
            let own = tasks.iter().filter(|task| task.service == revision.key);
            let own: Vec<&Task> = own.map(|task| &**task).collect();
            let task = (!own.is_empty()).then(|| own[usize::from(*chance) % own.len()]);
            match special {
                0 => demand.avoid = task.and_then(|task| task.node),
                1 => demand.prefer = task.and_then(|task| task.node).into_iter().collect(),
                2 => demand.instead_of = task.into_iter().collect(),
                3 => demand.relieves = task.into_iter().collect(),
                _ => {}
            }
            let found = places.find(&demand);
            // Who was refused before is told what was in the way then; who else came meanwhile changes the reasons, not the answer.
            let plain = places.scan(&demand);
            prop_assert_eq!(found.as_ref().ok(), plain.as_ref().ok(), "step {} of {:?}", step, which);
            if let Ok(node) = found {
                let mut holding = demand.holding.clone();
                holding.add_ports(&places.ports(&demand, node));
                places.promise(node, demand.service, &holding);
            }
        }
    }

    #[test]
    fn the_index_is_what_a_fresh_one_would_be(
        machines in prop::collection::vec(machine(), 1..10),
        services in prop::collection::vec(wanted(), 1..4),
        gone in prop::collection::vec(0u8..40, 0..12),
    ) {
        let mut cluster = cluster_of(&machines);
        cluster.up(&spec_of(&services));
        let _ = cluster.pass();
        let ids: Vec<_> = cluster.world.tasks().map(|task| task.id).collect();
        for n in gone {
            if let Some(id) = ids.get(usize::from(n)) {
                cluster.world.remove_task(*id);
            }
        }
        let mut fresh = crate::World::default();
        for record in cluster.world.services_of(&crate::fixtures::app_key()) {
            for revision in cluster.world.revisions_of(&record.key) {
                fresh.insert_revision(ServiceRevision::clone(revision));
            }
        }
        for task in cluster.world.tasks() {
            fresh.insert_task(Task::clone(task));
        }
        for node in cluster.world.nodes() {
            fresh.insert_node(node.record.clone());
            fresh.set_node_status(node.record.id, node.status.clone().unwrap());
        }
        let standings = |world: &crate::World| -> BTreeSet<String> {
            let groups = world.index.groups();
            groups.flat_map(|(_, group, _)| group.standings()).collect()
        };
        prop_assert_eq!(standings(&cluster.world), standings(&fresh));
    }
}
