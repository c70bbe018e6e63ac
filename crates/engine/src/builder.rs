//! Decides which node builds an image.
//!
//! - Only a node that is ready, takes new work and has the image's platform builds.
//! - The node that built the service last builds it again, since it has what can be reused; otherwise the one with the fewest builds
//!   under way, then the least reserved, then the fewest tasks; of equal ones the one with the smaller id.
//! - In a cluster of several platforms an image without one is not built: it would run on some nodes only, and nobody would know which.

use std::collections::{BTreeMap, BTreeSet};

use wharf_model::{Availability, NodeId, NodeState, Platform};

use crate::{
    Node, World,
    place::{reserved_share, wharf_arch},
};

/// What is asked of a builder.
#[derive(Debug, Clone, Default)]
pub struct BuildWish {
    /// The image's platform: `linux/arm64`.
    pub platform: Option<String>,
    /// This node and no other.
    pub node: Option<NodeId>,
    /// The name of the node that built it last.
    pub last: Option<String>,
    /// The nodes that can be reached.
    pub connected: BTreeSet<NodeId>,
    /// How many builds each node has under way.
    pub busy: BTreeMap<NodeId, usize>,
}

/// Why no node builds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoBuilder {
    /// Nodes run different platforms, and the image is for none in particular.
    SeveralPlatforms(Vec<String>),
    /// No node that could build is there.
    Nobody {
        /// The platform wanted.
        platform: Option<String>,
        /// How many nodes were looked at.
        all: usize,
        /// How many of them cannot work now.
        unfit: usize,
        /// How many run another platform.
        foreign: usize,
    },
}
impl std::fmt::Display for NoBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SeveralPlatforms(platforms) => {
                let platforms = platforms.join(" and ");
                write!(
                    f,
                    "nodes run {platforms}, and the service does not say for which of them its image is built"
                )
            }
            Self::Nobody { platform, all, unfit, foreign } => {
                let platform = platform.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
                write!(
                    f,
                    "no node can build the image{platform}: {unfit} of {all} not ready, paused or not connected, \
                     {foreign} of another platform"
                )
            }
        }
    }
}
impl std::error::Error for NoBuilder {}
impl NoBuilder {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::SeveralPlatforms(platforms) => {
                format!(
                    "write `platform: {}` or the other into the service",
                    platforms.first().map_or("", |name| name)
                )
            }
            Self::Nobody { .. } => "`wharf node ls` shows the nodes and their states".to_owned(),
        }
    }
}

/// The node that builds an image.
///
/// # Errors
/// If none can.
pub fn choose_builder(world: &World, wish: &BuildWish) -> Result<NodeId, NoBuilder> {
    let asked: Vec<&Node> =
        world.nodes().filter(|node| wish.node.is_none_or(|wanted| node.record.id == wanted)).collect();
    let (fit, unfit): (Vec<&Node>, Vec<&Node>) = asked.into_iter().partition(|node| is_fit(node, wish));
    let (mut able, foreign): (Vec<&Node>, Vec<&Node>) =
        fit.into_iter().partition(|node| wish.platform.as_ref().is_none_or(|wanted| runs(node, wanted)));
    let platforms: BTreeSet<String> =
        world.nodes().filter_map(Node::facts).map(|facts| text(&facts.platform)).collect();
    if wish.platform.is_none() && platforms.len() > 1 {
        return Err(NoBuilder::SeveralPlatforms(platforms.into_iter().collect()));
    }
    able.sort_by_cached_key(|node| {
        let (id, load) = (node.record.id, world.load(node.record.id));
        let last = wish.last.as_deref() == Some(node.record.name.as_str());
        let busy = wish.busy.get(&id).copied().unwrap_or_default();
        (!last, busy, reserved_share(node, &load), load.tasks, id)
    });
    able.first().map(|node| node.record.id).ok_or(NoBuilder::Nobody {
        platform: wish.platform.clone(),
        all: unfit.len() + foreign.len(),
        unfit: unfit.len(),
        foreign: foreign.len(),
    })
}

fn is_fit(node: &Node, wish: &BuildWish) -> bool {
    node.state() == NodeState::Ready
        && node.record.availability == Availability::Active
        && wish.connected.contains(&node.record.id)
}

fn text(platform: &Platform) -> String {
    format!("{}/{}", platform.os, wharf_arch(&platform.arch))
}

fn runs(node: &Node, wanted: &str) -> bool {
    let mut parts = wanted.split('/');
    let (os, arch) = (parts.next().unwrap_or_default(), parts.next());
    node.facts().is_some_and(|facts| {
        os == facts.platform.os
            && arch.is_none_or(|arch| wharf_arch(arch) == wharf_arch(&facts.platform.arch))
    })
}

#[cfg(test)]
mod tests {
    use wharf_model::NodeStatus;

    use super::*;
    use crate::fixtures::{Cluster, node_id};

    fn wish(nodes: u8) -> BuildWish {
        BuildWish { connected: (1..=nodes).map(node_id).collect(), ..BuildWish::default() }
    }
    fn status(cluster: &Cluster, n: u8) -> NodeStatus {
        cluster.world.node(node_id(n)).unwrap().status.clone().unwrap()
    }

    #[test]
    fn the_node_that_built_last_builds_again_and_otherwise_the_least_busy() {
        let cluster = Cluster::of(3);
        let world = &cluster.world;
        assert_eq!(choose_builder(world, &wish(3)), Ok(node_id(1)), "of equal ones the smaller id");
        let busy = BuildWish { busy: [(node_id(1), 1)].into(), ..wish(3) };
        assert_eq!(choose_builder(world, &busy), Ok(node_id(2)));
        let name = world.node(node_id(3)).unwrap().record.name.to_string();
        let last = BuildWish { last: Some(name), busy: [(node_id(3), 1)].into(), ..wish(3) };
        assert_eq!(choose_builder(world, &last), Ok(node_id(3)));
        let asked = BuildWish { node: Some(node_id(2)), ..last };
        assert_eq!(choose_builder(world, &asked), Ok(node_id(2)));
    }

    #[test]
    fn nodes_that_cannot_work_do_not_build() {
        let mut cluster = Cluster::of(3);
        cluster
            .world
            .set_node_status(node_id(1), NodeStatus { state: NodeState::Down, ..status(&cluster, 1) });
        let mut wish = wish(3);
        wish.connected.remove(&node_id(2));
        assert_eq!(choose_builder(&cluster.world, &wish), Ok(node_id(3)));
        wish.connected.clear();
        let refused = choose_builder(&cluster.world, &wish).unwrap_err();
        assert_eq!(refused, NoBuilder::Nobody { platform: None, all: 3, unfit: 3, foreign: 0 });
    }

    #[test]
    fn the_platform_decides_and_must_be_named_where_there_are_several() {
        let mut cluster = Cluster::of(2);
        let mut arm = status(&cluster, 2);
        if let Some(facts) = &mut arm.facts {
            facts.platform.arch = "arm64".into();
        }
        cluster.world.set_node_status(node_id(2), arm);
        let for_platform = |platform: &str| BuildWish { platform: Some(platform.into()), ..wish(2) };
        assert_eq!(choose_builder(&cluster.world, &for_platform("linux/arm64/v8")), Ok(node_id(2)));
        assert_eq!(choose_builder(&cluster.world, &for_platform("linux/amd64")), Ok(node_id(1)));
        let refused = choose_builder(&cluster.world, &wish(2)).unwrap_err();
        assert_eq!(refused, NoBuilder::SeveralPlatforms(vec!["linux/amd64".into(), "linux/arm64".into()]));
        let refused = choose_builder(&cluster.world, &for_platform("windows/amd64")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no node can build the image for windows/amd64: 0 of 2 not ready, paused or not connected, 2 of another platform"
        );
    }
}
