//! What holds whatever happens: apps, nodes and failures in any order, with tasks that move or do not.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use wharf_model::*;

use crate::{Change, Decision, Request, decide, fixtures::*};

#[derive(Debug, Clone)]
enum Act {
    Release(Vec<Draft>),
    Scale(u8, u32),
    Restart(u8),
    Stop(u8),
    Start(u8),
    Availability(u8, Availability),
    State(u8, NodeState),
    /// Those who watch a node miss it, or hear it again.
    Suspect(u8, bool),
    /// The same for longer than a hiccup.
    Miss(u8),
    Sicken(u8),
    Crash(u8),
    /// A node goes on with the names and routes it has, or does as it is told again.
    Deaf(u8, bool),
    /// The first node's gateway has something under way with a task, or nothing any more.
    Busy(u8, u64),
    Steps(u8),
    Wait(u16),
}

/// One service of a generated app.
#[derive(Debug, Clone)]
struct Draft {
    version: u8,
    script: u8,
    replicas: u32,
    global: bool,
    volume: bool,
    depends: bool,
    parallelism: u32,
    one_shot: bool,
    port: bool,
    public: bool,
}
fn draft() -> impl Strategy<Value = Draft> {
    (0u8..3, 0u8..8, 0u32..4, prop::bool::weighted(0.15), prop::bool::weighted(0.25), any::<bool>(), 0u32..3)
        .prop_flat_map(|(version, script, replicas, global, volume, depends, parallelism)| {
            let flags = (prop::bool::weighted(0.15), prop::bool::weighted(0.2), prop::bool::weighted(0.4));
            flags.prop_map(move |(one_shot, port, public)| Draft {
                version,
                script,
                replicas,
                global,
                volume,
                depends,
                parallelism,
                one_shot,
                port,
                public,
            })
        })
}
fn act() -> impl Strategy<Value = Act> {
    let availability =
        prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)];
    let state = prop_oneof![
        Just(NodeState::Ready),
        Just(NodeState::Unreachable),
        Just(NodeState::Down),
        Just(NodeState::EngineDown)
    ];
    prop_oneof![
        2 => prop::collection::vec(draft(), 1..4).prop_map(Act::Release),
        1 => (0u8..3, 0u32..5).prop_map(|(service, replicas)| Act::Scale(service, replicas)),
        1 => (0u8..3).prop_map(Act::Restart),
        1 => (0u8..3).prop_map(Act::Stop),
        1 => (0u8..3).prop_map(Act::Start),
        1 => (1u8..5, availability).prop_map(|(node, availability)| Act::Availability(node, availability)),
        1 => (1u8..5, state).prop_map(|(node, state)| Act::State(node, state)),
        1 => (1u8..5, any::<bool>()).prop_map(|(node, suspected)| Act::Suspect(node, suspected)),
        1 => (1u8..5).prop_map(Act::Miss),
        1 => any::<u8>().prop_map(Act::Sicken),
        1 => any::<u8>().prop_map(Act::Crash),
        1 => (1u8..5, any::<bool>()).prop_map(|(node, deaf)| Act::Deaf(node, deaf)),
        1 => (any::<u8>(), 0u64..3).prop_map(|(task, requests)| Act::Busy(task, requests)),
        4 => (1u8..8).prop_map(Act::Steps),
        1 => (1u16..5000).prop_map(Act::Wait),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn spec_of(drafts: &[Draft], scripts: &mut BTreeMap<String, Script>) -> AppSpec {
    let services = drafts.iter().enumerate().map(|(n, draft)| {
        let image = format!("{}{}", NAMES[n], draft.version);
        let mut spec = replicas(service(&image), draft.replicas);
        if draft.global {
            spec.mode = Mode::Global;
        }
        if draft.volume {
            spec = with_volume(spec, &format!("{}_data", NAMES[n]));
        }
        if draft.depends && n > 0 {
            spec = after(spec, NAMES[n - 1], DependencyCondition::ServiceStarted);
        }
        if draft.port {
            let port = 8000 + u16::try_from(n).unwrap();
            spec = published(spec, port, PublishMode::Host);
        }
        if draft.public {
            spec = published(spec, 9000 + u16::try_from(n).unwrap(), PublishMode::Ingress);
        }
        spec.update.parallelism = draft.parallelism;
        let script = match draft.script {
            0 => Script::Exit(1),
            1 => Script::Refuse,
            2 => Script::Sicken,
            _ => Script::Serve,
        };
        if draft.one_shot {
            spec.restart.condition = RestartCondition::OnFailure;
        }
        let script = if draft.one_shot && script == Script::Serve { Script::Exit(0) } else { script };
        scripts.insert(spec.image.clone(), script);
        (NAMES[n], spec)
    });
    app(&services.collect::<Vec<_>>())
}

fn play(cluster: &mut Cluster, act: &Act) {
    let name = |n: &u8| vec![NAMES[usize::from(*n)].parse::<ServiceName>().unwrap()];
    let exists = |cluster: &Cluster, n: &u8| {
        cluster.world.service(&key(NAMES[usize::from(*n)])).is_some_and(|record| !record.removed)
    };
    match act {
        Act::Release(drafts) => {
            let mut scripts = std::mem::take(&mut cluster.scripts);
            let spec = spec_of(drafts, &mut scripts);
            cluster.scripts = scripts;
            cluster.up(&spec);
        }
        Act::Scale(n, replicas) if exists(cluster, n) => {
            let service = cluster.world.service(&key(NAMES[usize::from(*n)])).unwrap();
            if service.mode != Mode::Global {
                cluster.ask(&Request::Scale(BTreeMap::from([(name(n).remove(0), *replicas)])));
            }
        }
        Act::Restart(n) if exists(cluster, n) => cluster.ask(&Request::Restart(name(n))),
        Act::Stop(n) if exists(cluster, n) => cluster.ask(&Request::Stop(name(n))),
        Act::Start(n) if exists(cluster, n) => cluster.ask(&Request::Start(name(n))),
        Act::Scale(..) | Act::Restart(_) | Act::Stop(_) | Act::Start(_) => {}
        Act::Availability(n, availability) => cluster.set_availability(*n, *availability),
        Act::State(n, state) => cluster.set_state(*n, *state),
        Act::Miss(n) => cluster.set_missing(*n),
        Act::Suspect(n, suspected) => cluster.set_suspected(*n, *suspected),
        Act::Sicken(n) => {
            mishap(cluster, *n, |status| status.health = Health::Unhealthy);
        }
        Act::Crash(n) => {
            let now = cluster.now;
            mishap(cluster, *n, |status| {
                status.phase = Phase::Failed;
                status.exit = Some(Exit { code: 1, oom: false });
                status.ended_at = Some(now);
            });
        }
        Act::Deaf(n, deaf) => {
            cluster.deaf.retain(|node| *node != node_id(*n));
            cluster.deaf.extend(deaf.then_some(node_id(*n)));
        }
        Act::Busy(n, requests) => {
            let running: Vec<_> = cluster
                .world
                .tasks()
                .filter(|task| task.status.phase == Phase::Running)
                .map(|task| task.id)
                .collect();
            if let Some(task) = running.get(usize::from(*n) % running.len().max(1)) {
                cluster.under_way.insert(*task, *requests);
            }
        }
        Act::Steps(n) => (0..*n).for_each(|_| {
            cluster.now = cluster.now + Duration::from_millis(10);
            cluster.step();
        }),
        Act::Wait(millis) => cluster.now = cluster.now + Duration::from_millis(u64::from(*millis)),
    }
}
fn mishap(cluster: &mut Cluster, n: u8, happen: impl FnOnce(&mut TaskStatus)) {
    let running: Vec<_> =
        cluster.world.tasks().filter(|task| task.status.phase == Phase::Running).cloned().collect();
    if let Some(task) = running.get(usize::from(n) % running.len().max(1)) {
        let mut status = task.status.clone();
        status.sequence += 1;
        happen(&mut status);
        cluster.world.set_task_status(task.id, status);
    }
}

/// One pass, and everything that must hold of it.
fn checked_pass(cluster: &mut Cluster) -> Result<Decision, TestCaseError> {
    cluster.world.observe(cluster.now);
    let again = decide(&cluster.world, &app_key(), cluster.now, &mut cluster.ids.clone());
    let decision = cluster.pass();
    prop_assert_eq!(&decision, &again, "the same input gives the same answer");
    no_seat_is_filled_twice(cluster, &decision)?;
    no_address_is_doubled(cluster)?;
    indexes_agree(cluster)?;
    nothing_is_stopped_that_anybody_comes_to(cluster, &decision)?;
    // A pass that begins a return wants something else from then on.
    if !decision.changes.iter().any(|change| matches!(change, Change::PutApp(_))) {
        everything_unsettled_has_a_reason(cluster, &decision)?;
        nothing_is_decided_for_ever(cluster, &decision)?;
    }
    Ok(decision)
}
/// With nodes that do nothing, a second pass has nothing left to make or to stop. One exception: what is
/// watched for a rollout counts at once when that ends; then a third has nothing left.
fn nothing_is_decided_for_ever(cluster: &Cluster, first: &Decision) -> Result<(), TestCaseError> {
    let (mut world, mut ids) = (cluster.world.clone(), cluster.ids.clone());
    let second = decide(&world, &app_key(), cluster.now, &mut ids);
    let makes = |change: &Change| matches!(change, Change::CreateTask(_) | Change::StopTask { .. });
    let node_down = cluster.world.nodes().any(|node| node.state() == NodeState::Down || node.is_missing());
    let ended = first.changes.iter().any(|change| match change {
        Change::SetRollout { rollout, .. } => rollout.state.is_over(),
        _ => false,
    });
    let excused = node_down || ended;
    prop_assert!(excused || !second.changes.iter().any(makes), "decided twice: {:?}", second.changes);
    second.changes.iter().for_each(|change| world.apply(change));
    let third = decide(&world, &app_key(), cluster.now, &mut ids);
    prop_assert!(!third.changes.iter().any(makes), "still deciding: {:?}", third.changes);
    Ok(())
}
fn no_seat_is_filled_twice(cluster: &Cluster, decision: &Decision) -> Result<(), TestCaseError> {
    for change in &decision.changes {
        let Change::CreateTask(new) = change else { continue };
        let rival = cluster.world.tasks_of(&new.service).find(|task| {
            let draining = task.node.and_then(|node| cluster.world.node(node)).is_none_or(|node| {
                node.record.availability == Availability::Drain || node.state() == NodeState::Down
            });
            let same_seat = task.slot == new.slot && (new.slot != Slot(0) || task.node == new.node);
            task.id != new.id
                && same_seat
                && task.generation == new.generation
                && task.stop.is_none()
                && !task.is_over()
                && !draining
        });
        prop_assert!(rival.is_none(), "{:?} already has its seat: {:?}", rival, new);
        let created = decision.changes.iter().filter(|change| match change {
            Change::CreateTask(other) => {
                other.service == new.service
                    && other.slot == new.slot
                    && (new.slot != Slot(0) || other.node == new.node)
            }
            _ => false,
        });
        prop_assert_eq!(created.count(), 1, "one new task per seat and pass");
        let state = cluster.world.node(new.node.unwrap()).unwrap();
        prop_assert_eq!(state.state(), NodeState::Ready);
        prop_assert!(!state.is_suspected(), "it may be gone");
        prop_assert_eq!(state.record.availability, Availability::Active);
    }
    Ok(())
}
/// By what nodes really serve: nobody is led to a task whose process is asked to stop, and what serves goes on until there is another
/// wherever it is. What failed, and nodes that are gone or have had a minute, aside.
fn nothing_is_stopped_that_anybody_comes_to(
    cluster: &Cluster,
    decision: &Decision,
) -> Result<(), TestCaseError> {
    let live = (1..=4).filter(|n| {
        let node = cluster.world.node(node_id(*n)).unwrap();
        matches!(node.state(), NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable)
    });
    let live: Vec<_> = live.collect();
    let leading_to = |task: &Task| -> Vec<u8> {
        let service = task.service.name.to_string();
        live.iter().copied().filter(|n| cluster.led_to(*n, &service).contains(&task.id)).collect()
    };
    // Who can ask: a gateway where the service is published, and whoever has a task on the network.
    let gateway = |n: u8, task: &Task| {
        let revision = cluster.world.revision_of(&task.service, task.generation);
        n == 1 && revision.is_some_and(|revision| crate::spec::ingress_ports(&revision.spec).next().is_some())
    };
    let counts = |n: u8, task: &Task| {
        let mut here = cluster.world.tasks_on(node_id(n));
        gateway(n, task) || here.any(|other| !other.is_over() && other.id != task.id && other.stop.is_none())
    };
    for change in &decision.changes {
        match change {
            Change::DrainedTask { task, .. } => {
                let Some(task) = cluster.world.task(*task) else { continue };
                let excused = matches!(task.stop, Some(StopReason::Unhealthy))
                    || cluster.now.since(cluster.asked_at[&task.id]) >= crate::passage::PATIENCE
                    || task
                        .node
                        .and_then(|node| cluster.world.node(node))
                        .is_none_or(|node| node.state() == NodeState::Down);
                let unwanted = |task: &Task| {
                    let app = cluster.world.app(&task.service.app);
                    let service = cluster.world.service(&task.service);
                    app.is_none_or(|app| app.removed)
                        || service.is_none_or(|record| record.removed || record.stopped)
                };
                let asked = cluster.world.tasks().any(|other| {
                    other.id != task.id && other.stop.is_none() && !other.is_over() && !unwanted(other)
                });
                // Where nothing else serves, names lead nowhere else.
                let beside = cluster
                    .world
                    .tasks_of(&task.service)
                    .any(|other| other.id != task.id && other.is_ready());
                let leading: Vec<_> = leading_to(task)
                    .into_iter()
                    .filter(|n| counts(*n, task) && (beside || gateway(*n, task)))
                    .collect();
                prop_assert!(
                    excused || !asked || leading.is_empty(),
                    "{} is let go, and {:?} lead to it",
                    task.name(),
                    leading
                );
            }
            Change::StopTask {
                task,
                reason:
                    StopReason::Outdated | StopReason::Restarted | StopReason::Drained | StopReason::Rebalanced,
            } => {
                let Some(task) = cluster.world.task(*task).filter(|task| task.status.is_ready()) else {
                    continue;
                };
                let successor = cluster.world.tasks_of(&task.service).find(|other| {
                    other.slot == task.slot && other.is_ready() && other.id != task.id && task.slot != Slot(0)
                });
                // What cannot be shared is handed over with a gap.
                let Some(successor) = successor else { continue };
                let there = leading_to(successor);
                let old_only =
                    leading_to(task).into_iter().filter(|n| counts(*n, task) && !there.contains(n));
                let old_only: Vec<_> = old_only.collect();
                prop_assert!(
                    old_only.is_empty(),
                    "{} is to stop, and {:?} do not lead to {}",
                    task.name(),
                    old_only,
                    successor.id
                );
            }
            _ => {}
        }
    }
    Ok(())
}
fn no_address_is_doubled(cluster: &Cluster) -> Result<(), TestCaseError> {
    let tasks = cluster.world.tasks().filter(|task| !task.is_over());
    let addresses = tasks.flat_map(|task| task.addresses.values().copied());
    let gateways = cluster.world.networks().flat_map(|network| network.gateways.values().copied());
    let all: Vec<_> = addresses.chain(gateways).collect();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    prop_assert_eq!(distinct.len(), all.len(), "{:?}", all);
    let volumes = cluster.world.volumes();
    let writers = volumes.filter(|volume| volume.app == app_key()).map(|volume| {
        let name = volume.name.to_string();
        let service = name.trim_end_matches("_data").to_owned();
        let record = cluster.world.service(&key(&service));
        let single = record.is_some_and(|record| record.mode == Mode::Replicated { replicas: 1 });
        // A lost task's container is unknown; a scaled service has a folder for each slot.
        let mut slots = BTreeMap::<Slot, usize>::new();
        for task in cluster.world.tasks_of(&key(&service)).filter(|task| !task.is_over()) {
            let mounts = cluster
                .world
                .revision_of(&task.service, task.generation)
                .is_some_and(|revision| crate::spec::named_volumes(&revision.spec).next().is_some());
            *slots.entry(task.slot).or_default() += usize::from(mounts && task.slot != Slot(0));
        }
        (single, slots)
    });
    for (_, slots) in writers.filter(|(single, _)| *single) {
        prop_assert!(slots.values().all(|writers| *writers <= 1), "{:?}", slots);
    }
    Ok(())
}
/// Each service that has not what it wants says why, and so does each task that is to stop.
fn everything_unsettled_has_a_reason(cluster: &Cluster, decision: &Decision) -> Result<(), TestCaseError> {
    let Some(app) = cluster.world.app(&app_key()) else { return Ok(()) };
    for waiting in &decision.waiting {
        let sentence = waiting.to_string();
        prop_assert!(sentence.len() > 10 && !sentence.ends_with('.'), "{}", sentence);
    }
    for record in cluster.world.services_of(&app_key()) {
        let says = |slot: Slot| {
            decision.waiting.iter().any(|waiting| match &waiting.about {
                crate::About::Slot { service, slot: said, .. } => *service == record.key && *said == slot,
                crate::About::Service(service) => *service == record.key,
                _ => false,
            })
        };
        for task in cluster.world.tasks_of(&record.key).filter(|task| task.stop.is_some() && !task.is_over())
        {
            prop_assert!(says(task.slot), "{} stops unsaid: {:?}", task.name(), decision.waiting);
        }
        let Mode::Replicated { replicas } = record.mode else { continue };
        if record.stopped || record.removed || app.removed {
            continue;
        }
        for slot in (1..=replicas).map(Slot) {
            let mut tasks = cluster.world.tasks_of(&record.key).filter(|task| task.slot == slot);
            let content = tasks.any(|task| task.is_ready() || task.status.phase == Phase::Complete);
            prop_assert!(
                content || says(slot),
                "{}.{} is silent: {:?}",
                record.key.name,
                slot,
                decision.waiting
            );
        }
    }
    Ok(())
}
/// The loads that placement reads are what a fresh count would give.
fn indexes_agree(cluster: &Cluster) -> Result<(), TestCaseError> {
    for node in cluster.world.nodes() {
        let tasks = cluster.world.tasks_on(node.record.id).filter(|task| !task.is_over()).count();
        let load = cluster.world.load(node.record.id);
        prop_assert_eq!(usize::try_from(load.tasks).unwrap(), tasks);
        prop_assert_eq!(load.services.values().sum::<u32>(), load.tasks);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_passes_are_safe_and_the_app_settles(
        first in prop::collection::vec(draft(), 1..4),
        acts in prop::collection::vec(act(), 0..25),
    ) {
        let mut cluster = Cluster::of(4);
        play(&mut cluster, &Act::Release(first));
        for act in &acts {
            let _ = checked_pass(&mut cluster)?;
            cluster.step();
            play(&mut cluster, act);
        }
        let _ = checked_pass(&mut cluster)?;

        // Whoever is deaf stays so, requests stay under way: what is not wanted ends all the same.
        for n in 1..=4 {
            cluster.set_state(n, NodeState::Ready);
        }
        cluster.settle_for(Duration::from_secs(120), &mut |_| {});
        // A minute for the deaf, what the services give (the usual), and a moment.
        let enough = crate::passage::PATIENCE + USUAL_DRAIN.duration() + Duration::from_secs(5);
        let endless = cluster.world.tasks().filter(|task| {
            task.stop.is_some() && !task.is_over() && cluster.now.since(cluster.asked_at[&task.id]) >= enough
        });
        let endless: Vec<_> = endless.cloned().collect();
        prop_assert!(endless.is_empty(), "drains without end: {:#?}", endless);
        // Everything is mended: nodes are back, images work, and what can be wanted is.
        for n in 1..=4 {
            cluster.set_state(n, NodeState::Ready);
            cluster.set_availability(n, Availability::Active);
            cluster.set_suspected(n, false);
        }
        cluster.deaf.clear();
        cluster.under_way.clear();
        cluster.scripts.values_mut().for_each(|script| *script = Script::Serve);
        cluster.settle();
        let decision = checked_pass(&mut cluster)?;
        prop_assert_eq!(&decision.changes, &vec![], "nothing left to decide");
        for record in cluster.world.services_of(&app_key()) {
            let Mode::Replicated { replicas } = record.mode else { continue };
            let tasks: Vec<_> = cluster.world.tasks_of(&record.key).collect();
            let live: Vec<_> = tasks.iter().filter(|task| !task.is_over()).collect();
            if record.stopped {
                prop_assert!(live.is_empty());
                continue;
            }
            let complete = tasks.iter().filter(|task| task.status.phase == Phase::Complete).count();
            let revision = cluster.world.revision_of(&record.key, record.generation).unwrap();
            let exclusive = revision.spec.ports.iter().any(|port| port.mode == PublishMode::Host);
            // A fourth task may have no node whose port is free; a restart policy may have let one be; both say so.
            if decision.waiting.is_empty() && complete == 0 && !exclusive {
                prop_assert_eq!(live.len(), usize::try_from(replicas).unwrap(), "{:#?}", live);
                prop_assert!(live.iter().all(|task| task.is_ready()));
            }
        }
        let over = cluster.rollout().state.is_over();
        prop_assert!(over || !decision.waiting.is_empty(), "a rollout that goes on says what it waits for");
    }

    #[test]
    fn an_update_stays_within_its_surge_and_its_unavailability(
        wanted in 1u32..7, parallelism in 0u32..4, stop_first in any::<bool>(), scale in 1u32..7,
    ) {
        let mut cluster = Cluster::of(4);
        let spec = |image: &str, wanted| {
            let mut spec = replicas(service(image), wanted);
            spec.update.parallelism = parallelism;
            spec.update.order = stop_first.then_some(UpdateOrder::StopFirst);
            app(&[("web", spec)])
        };
        cluster.up(&spec("web", wanted));
        cluster.settle();
        cluster.up(&spec("web2", scale));
        let at_once = if parallelism == 0 { wanted.max(scale) } else { parallelism };
        let (least, most) = if stop_first {
            (wanted.min(scale).saturating_sub(at_once), wanted.max(scale))
        } else {
            (wanted.min(scale), wanted.max(scale) + at_once)
        };
        cluster.settle_for(Duration::from_secs(60), &mut |cluster| {
            let live = cluster.tasks("web").iter().filter(|task| !task.is_over() && !task.is_let_go()).count();
            assert!(live <= usize::try_from(most).unwrap(), "{live} tasks, at most {most}, with those that drain");
            for n in 1..=4 {
                let led_to = cluster.led_to(n, "web");
                let of = cluster.world.tasks().filter(|task| led_to.contains(&task.id) && !task.is_let_go());
                let of = of.count();
                // Nodes without a task of it, and so without its network, lead nowhere.
                let asks = cluster.serves.get(&node_id(n)).is_some_and(|set| !set.networks.is_empty());
                assert!(!asks || of >= usize::try_from(least).unwrap(), "n{n} leads to {of}, at least {least}");
            }
            let ready = cluster.ready("web").len();
            assert!(ready >= usize::try_from(least).unwrap(), "{ready} ready, at least {least}");
        });
        prop_assert_eq!(cluster.rollout().state, RolloutState::Done);
        prop_assert_eq!(cluster.ready("web").len(), usize::try_from(scale).unwrap());
    }

    #[test]
    fn a_release_of_what_is_already_there_plans_nothing(drafts in prop::collection::vec(draft(), 1..4)) {
        let mut cluster = Cluster::of(4);
        let spec = spec_of(&drafts, &mut cluster.scripts);
        prop_assert!(!crate::plan(&cluster.world, &app_key(), &spec, &images(&spec)).is_noop());
        cluster.up(&spec);
        let plan = crate::plan(&cluster.world, &app_key(), &spec, &images(&spec));
        prop_assert!(plan.is_noop(), "{}", plan);
    }
}

proptest! {
    // Each is some hundred passes and tables.
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn releases_lead_nobody_to_a_task_that_stops_whoever_is_slow_to_follow(
        wanted in 1u32..4, parallelism in 0u32..3, stop_first in any::<bool>(), public in any::<bool>(),
        turns in prop::collection::vec((1u8..5, 0u16..4000, any::<u8>(), 0u64..2), 1..4),
    ) {
        let mut cluster = Cluster::of(4);
        let spec = |image: &str| {
            let mut web = replicas(service(image), wanted);
            web.update.parallelism = parallelism;
            web.update.order = stop_first.then_some(UpdateOrder::StopFirst);
            if public {
                web = published(web, 8080, PublishMode::Ingress);
            }
            let mut client = service("client");
            client.mode = Mode::Global;
            app(&[("client", client), ("web", web)])
        };
        cluster.up(&spec("web0"));
        cluster.settle();
        for (number, (node, millis, busy, requests)) in turns.iter().enumerate() {
            play(&mut cluster, &Act::Busy(*busy, *requests));
            cluster.up(&spec(&format!("web{}", number % 2 + 1)));
            // One node goes on with what it has, for a while.
            cluster.deaf = vec![node_id(*node)];
            let until = cluster.now + Duration::from_secs(2) + Duration::from_millis(u64::from(*millis));
            while cluster.now < until {
                let _ = checked_pass(&mut cluster)?;
                cluster.step();
                cluster.now = cluster.now + Duration::from_millis(200);
            }
            cluster.deaf.clear();
        }
        cluster.settle_for(Duration::from_secs(200), &mut |_| {});
        prop_assert_eq!(cluster.rollout().state, RolloutState::Done);
        prop_assert_eq!(cluster.tasks("web").iter().filter(|task| !task.is_over()).count(), usize::try_from(wanted).unwrap());
    }
}
