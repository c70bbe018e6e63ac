//! Makes room for a task of higher priority by stopping tasks of lower priority.
//!
//! - Nothing is stopped as long as a node takes the task, or will once those that are leaving it already are gone.
//! - Only want of room is helped: a node that is refused for what it is stays refused.
//! - Of all nodes the one is taken where least harm is done: the highest priority that gives way is lowest, then fewest tasks, then those
//!   that hold least, and of those the youngest.
//! - Who gives way drains by the rules of releases, and what it leaves is kept for the slot it was left for: no task of the same or a lower
//!   priority takes it meanwhile.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use wharf_model::{Mode, NodeId, Priority, ServiceKey, Slot, SlotOf, Task, TaskId};

use super::{Claim, Demand, Places, refusal::Refusal, rules::RULES};
use crate::{World, world::Holding};

/// Tasks that give way on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sacrifice {
    /// Where.
    pub(crate) node: NodeId,
    /// Who; the least important first.
    pub(crate) tasks: Vec<TaskId>,
}

/// What a node's tasks give way with, if enough do.
struct Offer {
    harm: (Priority, usize, u64, Reverse<TaskId>),
    sacrifice: Sacrifice,
}

/// Room that is kept on nodes: for each slot that some task has made room for, until the slot has a task again.
pub(crate) fn claims(world: &World) -> BTreeMap<NodeId, Vec<Claim>> {
    let mut claims = BTreeMap::<NodeId, Vec<Claim>>::new();
    let mut seen = BTreeSet::new();
    for task in world.preempted() {
        let (Some(slot), Some(node)) = (&task.makes_room_for, task.node) else { continue };
        if !seen.insert((slot.clone(), node)) {
            continue;
        }
        let Some(record) = world.service(&slot.service).filter(|record| is_wanted(world, slot, record))
        else {
            continue;
        };
        // What came later than the room was made has taken it, or found another.
        let mut tasks = world.tasks_of(&slot.service).filter(|other| other.slot == slot.slot);
        let filled = tasks.any(|other| {
            let lives = other.stop.is_none() && !other.is_over() && other.id > task.id;
            lives || task.drained.is_some_and(|at| other.created_at >= at)
        });
        let revision = world.revision_of(&slot.service, record.wanted().0);
        let Some(revision) = revision.filter(|_| !filled) else { continue };
        let (priority, holding) = (world.priority_of(revision), Holding::of(revision));
        claims.entry(node).or_default().push(Claim { slot: slot.clone(), priority, holding });
    }
    claims
}

fn is_wanted(world: &World, slot: &SlotOf, record: &wharf_model::ServiceRecord) -> bool {
    let app = world.app(&slot.service.app).is_some_and(|app| !app.removed);
    let there = match record.mode {
        Mode::Replicated { replicas } => slot.slot.0 >= 1 && slot.slot.0 <= replicas,
        Mode::Global => slot.slot == Slot(0),
    };
    app && there && !record.removed && !record.stopped
}

/// What there is to do for a task that has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Room {
    /// These have to give way.
    Make(Sacrifice),
    /// It comes: these are leaving already, on this node.
    Comes(Sacrifice),
}

impl Places<'_> {
    /// How room can be made for a task that no node takes, if it can. `spared` are tasks that this pass has decided to stop.
    pub(crate) fn room_by_preemption(
        &self,
        demand: &Demand<'_>,
        lower: &BTreeMap<ServiceKey, Priority>,
        spared: &BTreeSet<TaskId>,
    ) -> Option<Room> {
        let around = self.surroundings(demand);
        let mut best: Option<Offer> = None;
        for node in self.candidates(demand) {
            let id = node.record.id;
            let site = self.site(node, demand);
            let refusal = RULES.iter().try_for_each(|rule| rule(demand, &around, &site));
            let Err(refusal) = refusal else { continue };
            if !can_be_helped(&refusal) {
                continue;
            }
            let tasks: Vec<_> = self.world.tasks_on(id).filter(|task| !task.is_over()).collect();
            let (leaving, staying): (Vec<_>, Vec<_>) =
                tasks.into_iter().partition(|task| task.stop.is_some() || spared.contains(&task.id));
            let gone = |tasks: &[&Arc<Task>]| self.fits_without(demand, id, tasks);
            if !leaving.is_empty() && gone(&leaving) {
                let tasks = leaving.iter().map(|task| task.id).collect();
                return Some(Room::Comes(Sacrifice { node: id, tasks }));
            }
            let offer = self.offer(demand, id, &leaving, &staying, lower);
            if let Some(offer) = offer
                && best.as_ref().is_none_or(|best| (&offer.harm, id) < (&best.harm, best.sacrifice.node))
            {
                best = Some(offer);
            }
        }
        best.map(|offer| Room::Make(offer.sacrifice))
    }

    /// The fewest and least important of a node's tasks that make room if they go.
    fn offer(
        &self,
        demand: &Demand<'_>,
        node: NodeId,
        leaving: &[&Arc<Task>],
        staying: &[&Arc<Task>],
        lower: &BTreeMap<ServiceKey, Priority>,
    ) -> Option<Offer> {
        // One that runs a command around a release is not begun again for this.
        let may = |task: &&&Arc<Task>| task.hook.is_none() && lower.contains_key(&task.service);
        let mut victims: Vec<&Arc<Task>> = staying.iter().filter(may).copied().collect();
        let priority = |task: &Task| lower.get(&task.service).copied().unwrap_or_default();
        victims.sort_by_key(|task| (priority(task), Reverse(task.id)));
        let mut gone: Vec<&Arc<Task>> = leaving.to_vec();
        let before = gone.len();
        let mut enough = false;
        for victim in victims {
            gone.push(victim);
            enough = self.fits_without(demand, node, &gone);
            if enough {
                break;
            }
        }
        if !enough {
            return None;
        }
        // Not all that were taken on the way are needed; the most important are given back first.
        let mut at = gone.len();
        while at > before {
            at -= 1;
            let spared = gone.remove(at);
            if !self.fits_without(demand, node, &gone) {
                gone.insert(at, spared);
            }
        }
        let chosen = &gone[before..];
        let holds = |task: &&Arc<Task>| self.world.holding_of(task).memory.0;
        let highest = chosen.iter().map(|task| priority(task)).max().unwrap_or_default();
        let oldest = chosen.iter().map(|task| task.id).min()?;
        let harm = (highest, chosen.len(), chosen.iter().map(holds).sum(), Reverse(oldest));
        let tasks = chosen.iter().map(|task| task.id).collect();
        Some(Offer { harm, sacrifice: Sacrifice { node, tasks } })
    }

    fn fits_without(&self, demand: &Demand<'_>, id: NodeId, gone: &[&Arc<Task>]) -> bool {
        let Some(node) = self.world.node(id) else { return false };
        let mut without = demand.clone();
        without.instead_of.extend(gone.iter().map(|task| &***task));
        let around = self.surroundings(&without);
        let site = self.site(node, &without);
        RULES.iter().all(|rule| rule(&without, &around, &site).is_ok())
    }
}

/// Whether it is room that is wanted, so that others who go can help.
fn can_be_helped(refusal: &Refusal) -> bool {
    if let Refusal::Devices(lack) = refusal {
        return lack.is_for_want_of_room();
    }
    matches!(
        refusal,
        Refusal::HostPort { .. }
            | Refusal::HostPorts { .. }
            | Refusal::Cpus { .. }
            | Refusal::Memory { .. }
            | Refusal::Disk { .. }
            | Refusal::LimitCpus { .. }
            | Refusal::LimitMemory { .. }
    )
}
