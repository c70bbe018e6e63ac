//! Says how a task came to its node; and of each task of a node whether it is about to leave, and why it is still there.
//!
//! Nothing is decided here: it is read from records, and from what a pass over each app says it waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use wharf_model::{AppKey, Availability, NodeId, Slot, Task, TaskId, Timestamp};

use crate::{About, Ids, Reason, Waiting, World, decide, place, tasks};

/// How a task came to its node, and whether it is to go to another, as sentences.
pub fn came(world: &World, task: &Task) -> Vec<String> {
    let mut said = Vec::new();
    let place = |task: &Task| task.node.map_or_else(|| "no node".to_owned(), |node| world.node_name(node));
    let slot = |other: &&Arc<Task>| {
        other.slot == task.slot && other.id < task.id && (task.slot != Slot(0) || other.node == task.node)
    };
    let before = world.tasks_of(&task.service).filter(slot).last();
    match (task.moved_from, before) {
        (Some(from), before) => {
            let why = before.and_then(|before| Some(before.relocation.as_ref()?.why.as_str()));
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            said.push(format!(
                "it moved here from {}, to make the cluster more even{why}",
                world.node_name(from)
            ));
        }
        (None, Some(before)) => said.push(format!(
            "it took the place of one on {}, which {}",
            place(before),
            match (before.stop, before.status.phase) {
                (Some(why), _) => format!("was asked to stop: {why}"),
                (None, phase) if phase.is_over() => format!("ended: {}", tasks::ending(before)),
                (None, phase) => format!("is {phase}"),
            }
        )),
        (None, None) => said.push("it is the first of its slot that is known".to_owned()),
    }
    if let Some(relocation) = &task.relocation {
        let to = world.node_name(relocation.to);
        said.push(match &relocation.given_up {
            None => format!("it is to move to {to}: {}", relocation.why),
            Some(why) => format!("it was to move to {to}, and stays: {why}"),
        });
    }
    said
}

/// What a task of a node is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departure {
    /// Nobody asks it to go.
    Here,
    /// It is asked to stop, and has not ended.
    Leaving,
    /// It leaves once its replacement serves, or once it is its turn.
    Waits,
    /// It should leave and cannot.
    Stays,
}
impl Departure {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Leaving => "leaving",
            Self::Waits => "waits",
            Self::Stays => "stays",
        }
    }
}

/// The unfinished tasks of a node, what each is about to do, and what that waits for, as sentences.
pub fn departures(
    world: &World,
    node: NodeId,
    now: Timestamp,
    ids: &mut dyn Ids,
) -> Vec<(TaskId, Departure, Vec<String>)> {
    let tasks: Vec<_> = world.tasks_on(node).filter(|task| !task.is_over()).collect();
    let apps: BTreeSet<_> = tasks.iter().map(|task| &task.service.app).collect();
    let waiting: BTreeMap<&AppKey, Vec<Waiting>> =
        apps.into_iter().map(|app| (app, decide(world, app, now, ids).waiting)).collect();
    let leaves = |task: &Task| {
        let revision = world.revision_of(&task.service, task.generation);
        world.node(node).is_none_or(|node| {
            let driven_off = |spec| place::driven_off(spec, &node.record).is_some();
            place::availability_at(&node.record, now) == Availability::Drain
                || revision.is_some_and(|revision| driven_off(&revision.spec))
        })
    };
    let of_task = |task: &Task| {
        let about =
            waiting.get(&task.service.app).into_iter().flatten().filter(|waiting| is_about(waiting, task));
        let about: Vec<_> = about.collect();
        let stays = about.iter().any(|waiting| keeps_it(&waiting.reason));
        let departure = match (task.stop, leaves(task)) {
            (Some(_), _) => Departure::Leaving,
            (None, _) if stays => Departure::Stays,
            (None, true) => Departure::Waits,
            (None, false) if task.bound_for().is_some() => Departure::Waits,
            (None, false) => Departure::Here,
        };
        (task.id, departure, about.into_iter().map(ToString::to_string).collect())
    };
    tasks.into_iter().map(|task| of_task(task)).collect()
}

/// Whether a sentence is about the slot of a task.
fn is_about(waiting: &Waiting, task: &Task) -> bool {
    match &waiting.about {
        About::Slot { task: Some(about), .. } if *about == task.id => true,
        About::Slot { service, slot, .. } => {
            *service == task.service && *slot == task.slot && task.slot != Slot(0)
        }
        About::App(_) | About::Service(_) | About::Network(..) | About::Volume(..) => false,
    }
}

/// Whether a reason says that a task does not leave although it should.
const fn keeps_it(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Stays { .. } | Reason::NoPlace(_) | Reason::GaveUp { .. } | Reason::VolumeOnDownNode { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        SeededIds,
        fixtures::{Cluster, app, node_id, replicas, service, with_volume},
    };

    fn of(cluster: &Cluster, n: u8) -> Vec<(String, &'static str, String)> {
        let found = departures(&cluster.world, node_id(n), cluster.now, &mut SeededIds::new(1));
        let named = found.into_iter().map(|(task, departure, why)| {
            (cluster.world.task(task).unwrap().name(), departure.as_str(), why.join("; "))
        });
        named.collect()
    }

    #[test]
    fn a_node_that_is_drained_says_of_each_task_what_it_waits_for() {
        let mut cluster = Cluster::of(2);
        cluster.set_availability(2, Availability::Pause);
        let mut web = replicas(service("web"), 2);
        web.update.parallelism = 1;
        cluster.up(&app(&[("db", with_volume(service("db"), "data")), ("web", web)]));
        cluster.settle();
        assert!(of(&cluster, 1).iter().all(|(_, departure, why)| *departure == "here" && why.is_empty()));

        cluster.set_availability(1, Availability::Drain);
        cluster.set_availability(2, Availability::Active);
        let _ = cluster.pass();
        let said = of(&cluster, 1);
        let find = |name: &str| said.iter().find(|(found, ..)| found == name).unwrap();
        assert_eq!(find("shop-db-1").1, "stays");
        assert!(find("shop-db-1").2.contains("holds the data of its volume data"), "{said:?}");
        assert_eq!(find("shop-web-1").1, "waits");
        assert!(find("shop-web-1").2.contains("is pending on n2"), "{said:?}");
        insta::assert_snapshot!(find("shop-web-2").2, @"web.2 waits for its turn: 1 at a time is replaced");
    }
}
