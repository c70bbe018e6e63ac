//! What is to be said of a volume whose data is on nodes that may be away, and what people can do about it.
//!
//! Data that is on one node only is never given up by the cluster: its tasks wait. People may give it up, one node at a time and only while that
//! node is down; what lies there stays there, under an identifier that no task is given again.

use std::fmt;

use wharf_model::{
    By, GivenUp, MountSource, NodeId, NodeState, ServiceName, Timestamp, VolumeId, VolumeRecord,
};

use crate::{Change, World, spec};

/// How a volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeVerdict {
    /// Other nodes can read it: its tasks move, once it is certain that none runs where they were.
    Shared,
    /// Nothing is kept anywhere yet.
    Unused,
    /// Every node that holds data of it is there.
    Present,
    /// Data of it is on nodes that do not answer.
    Away(Vec<NodeId>),
    /// Data of it is on nodes that are down.
    OnDownNodes(Vec<NodeId>),
}

/// How it stands.
pub fn volume_verdict(world: &World, volume: &VolumeRecord) -> VolumeVerdict {
    if !spec::is_local(&volume.spec) {
        return VolumeVerdict::Shared;
    }
    let those = |states: &[NodeState]| -> Vec<NodeId> {
        let state = |id: &NodeId| world.node(*id).map(crate::Node::state);
        volume
            .nodes
            .iter()
            .copied()
            .filter(|id| state(id).is_some_and(|state| states.contains(&state)))
            .collect()
    };
    let (down, away) = (those(&[NodeState::Down]), those(&[NodeState::Unreachable]));
    let known = volume.nodes.iter().any(|id| world.node(*id).is_some());
    match (down.is_empty(), away.is_empty(), known) {
        (false, _, _) => VolumeVerdict::OnDownNodes(down),
        (true, false, _) => VolumeVerdict::Away(away),
        (true, true, true) => VolumeVerdict::Present,
        (true, true, false) => VolumeVerdict::Unused,
    }
}

/// The services of its app that mount it.
pub fn volume_users(world: &World, volume: &VolumeRecord) -> Vec<ServiceName> {
    let mounts = |record: &wharf_model::ServiceRecord| {
        let revision = world.revision_of(&record.key, record.generation);
        revision.is_some_and(|revision| {
            revision.spec.container.mounts.iter().any(|mount| {
                matches!(&mount.source, MountSource::Volume { volume: name, .. } if *name == volume.name)
            })
        })
    };
    let users = world.services_of(&volume.app).filter(|record| !record.removed && mounts(record));
    users.map(|record| record.key.name.clone()).collect()
}

/// Why data cannot be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseRefusal {
    /// Nodes have the data together: there is nothing to be given up.
    Shared,
    /// The node holds no data of it; these do.
    NotThere {
        /// The nodes that do.
        on: Vec<String>,
    },
    /// The node is not down: its tasks may be running.
    NotDown {
        /// How it is.
        state: NodeState,
    },
}
impl fmt::Display for ReleaseRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("every node can read it, and its tasks move by themselves"),
            Self::NotThere { on } if on.is_empty() => f.write_str("no node holds data of it"),
            Self::NotThere { on } => write!(f, "that node holds no data of it; {} does", on.join(" and ")),
            Self::NotDown { state } => {
                write!(f, "that node is {state}, and what writes to the volume may be running there")
            }
        }
    }
}

/// Gives up the data that a node which is down holds of a volume: tasks that wait for it start elsewhere. If it was all there is, they begin with
/// an empty one, which is `new`.
///
/// # Errors
/// If there is nothing to be given up, or the node is not down.
pub fn give_up(
    world: &World,
    volume: &VolumeRecord,
    node: NodeId,
    by: &By,
    now: Timestamp,
    new: VolumeId,
) -> Result<Vec<Change>, ReleaseRefusal> {
    if !spec::is_local(&volume.spec) {
        return Err(ReleaseRefusal::Shared);
    }
    if !volume.nodes.contains(&node) {
        let on = volume.nodes.iter().map(|node| world.node_name(*node)).collect();
        return Err(ReleaseRefusal::NotThere { on });
    }
    match world.node(node).map(crate::Node::state) {
        None | Some(NodeState::Down) => {}
        Some(
            state @ (NodeState::Joining | NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable),
        ) => return Err(ReleaseRefusal::NotDown { state }),
    }
    let mut left = volume.clone();
    left.nodes.retain(|holder| *holder != node);
    left.given_up.push(GivenUp { node, volume: volume.id, at: now, by: by.clone() });
    if !left.nodes.is_empty() {
        return Ok(vec![Change::PutVolume(left)]);
    }
    // What lies there must never be found by a task that comes to that node later: the volume is another one from now on.
    let other = VolumeRecord { id: new, created_at: now, ..left };
    Ok(vec![Change::RemoveVolume(volume.id), Change::PutVolume(other)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::*;

    fn with_data() -> (Cluster, NodeId, VolumeRecord) {
        let mut cluster = Cluster::of(3);
        cluster.up(&app(&[("db", with_volume(service("db"), "data"))]));
        cluster.settle();
        let node = cluster.ready("db")[0].node.unwrap();
        let volume = VolumeRecord::clone(cluster.world.volumes().next().unwrap());
        (cluster, node, volume)
    }
    fn number(node: NodeId) -> u8 {
        (1..=3).find(|n| node_id(*n) == node).unwrap()
    }
    fn release(
        cluster: &Cluster,
        volume: &VolumeRecord,
        node: NodeId,
    ) -> Result<Vec<Change>, ReleaseRefusal> {
        give_up(&cluster.world, volume, node, &by(), cluster.now, VolumeId::from_parts(9, [9; 10]))
    }

    #[test]
    fn a_task_waits_for_its_data_until_people_give_it_up_and_then_starts_elsewhere_with_an_empty_volume() {
        let (mut cluster, node, volume) = with_data();
        assert_eq!(volume_verdict(&cluster.world, &volume), VolumeVerdict::Present);
        assert_eq!(
            release(&cluster, &volume, node),
            Err(ReleaseRefusal::NotDown { state: wharf_model::NodeState::Ready })
        );
        cluster.set_state(number(node), NodeState::Down);
        cluster.settle();
        assert_eq!(volume_verdict(&cluster.world, &volume), VolumeVerdict::OnDownNodes(vec![node]));
        let name = cluster.world.node_name(node);
        assert!(
            cluster.waiting().contains(&format!("`wharf volume release data --node {name}`")),
            "{}",
            cluster.waiting()
        );
        let task = cluster.tasks("db").pop().unwrap();

        let changes = release(&cluster, &volume, node).unwrap();
        cluster.apply(&changes);
        cluster.settle();
        let new = cluster.ready("db").pop().unwrap();
        assert!(new.id != task.id && new.node != Some(node), "{new:?}");
        let now = VolumeRecord::clone(cluster.world.volumes().next().unwrap());
        assert_eq!((now.nodes.clone(), cluster.world.volumes().count()), (vec![new.node.unwrap()], 1));
        assert_ne!(now.id, volume.id, "what lies on the old node is never found again");
        assert_eq!((now.given_up[0].node, now.given_up[0].volume), (node, volume.id));

        cluster.set_state(number(node), NodeState::Ready);
        cluster.settle();
        assert_eq!(cluster.ready("db").iter().map(|task| task.id).collect::<Vec<_>>(), [new.id]);
        let set = crate::Assigner::new(&cluster.world).for_node(node);
        assert!(set.tasks.is_empty() && set.removed_volumes.is_empty(), "its data stays where it is");
    }

    #[test]
    fn what_is_not_there_or_everybodys_cannot_be_given_up() {
        let (cluster, node, mut volume) = with_data();
        let other = [1, 2, 3].map(node_id).into_iter().find(|other| *other != node).unwrap();
        let on = vec![cluster.world.node_name(node)];
        assert_eq!(release(&cluster, &volume, other), Err(ReleaseRefusal::NotThere { on }));
        volume.spec.driver_opts.insert("type".into(), "nfs".into());
        assert_eq!(release(&cluster, &volume, node), Err(ReleaseRefusal::Shared));
        assert_eq!(volume_verdict(&cluster.world, &volume), VolumeVerdict::Shared);
    }
}
