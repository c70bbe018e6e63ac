//! Every decision the control plane takes, as functions of what is handed in.
//!
//! Nothing here does I/O, reads a clock, draws random numbers or is asynchronous. A pass reads one [`World`], and answers
//! with a [`Decision`]: what to commit, what is not as desired and why, and when to look again. Collections are ordered, and
//! ids come from a generator, so the same input always gives the same answer.

mod acknowledge;
mod assign;
#[cfg(test)]
mod backends;
mod builder;
mod change;
mod choose;
mod disk;
mod explain;
mod fencing;
#[cfg(test)]
mod fixtures;
mod history;
mod hooks;
mod images;
mod ipv6;
mod judge;
mod names;
mod network;
mod nodes;
mod obtained;
mod pass;
mod passage;
mod place;
mod placeholders;
mod plan;
#[cfg(test)]
mod properties;
mod quota;
mod rebalance;
#[cfg(test)]
mod removal;
mod rollout;
mod routes;
mod routing;
#[cfg(test)]
mod scenarios;
mod spec;
mod strategy;
mod suspicion;
mod tasks;
#[cfg(test)]
mod trials;
mod vip;
mod volumes;
mod waiting;
mod wireguard;
mod world;

pub use acknowledge::{Serving, Unacknowledged, Version};
pub use assign::Assigner;
pub use builder::{BuildWish, NoBuilder, choose_builder};
pub use change::{Change, Decision, Ids, SeededIds};
pub use choose::{choose_ports, pinned_image};
pub use disk::{disk_problems, full_disk};
pub use explain::{Departure, came, departures};
pub use fencing::{Grants, granted};
pub use history::{
    compare, counted, is_as_wanted, plan_return, release_strategy, returned, rollback_target, strategies,
    strategy_of,
};
pub use images::{KnownImage, needed_images};
pub use ipv6::Ipv6Refusal;
pub use names::named_ports;
pub use network::host_conflicts;
pub use nodes::{Falls, Leases, Link, Seen, decide as decide_node};
pub use obtained::{Obtained, given_certificates, hosts_to_certify};
pub use pass::decide;
pub use passage::{DrainFacts, Draining};
pub use place::{
    Apartness, Counterfactual, Explanation, NoPlace, NodeTerms, Pin, PinnedBy, Placer, Refusal, Remedy,
    RuleCount, Term, devices, explain_service, explain_task, packing,
};
pub use plan::{
    Action, Operation, Plan, PlanRefusal, Request, Thing, noted_release, plan, plan_backend, plan_down,
    plan_pool, release, request,
};
pub use quota::{Wanted, wanted_by_app, wanted_in};
pub use rebalance::{
    Gain, Move, RebalancePlan, RebalanceScope, Share, Stays, begin_rebalance, decide_rebalance,
    is_rebalancing, moving, plan_rebalance,
};
pub use routes::wanted_routes;
pub use routing::{
    Pem, RouteConflict, RouteRefusal, RouteSecret, SecretUse, claims, route_secrets, service_routes,
    split_pem, user_lines,
};
pub use spec::{StopFirst, effective_order};
pub use strategy::judged;
pub use suspicion::{Suspected, Suspicions, Voice};
pub use tasks::{CRASH_LOOP, CrashLoop, crash_loop};
pub use volumes::{ReleaseRefusal, VolumeVerdict, give_up, volume_users, volume_verdict};
pub use waiting::{About, DependencyState, NetworkRefusal, Reason, Waiting};
pub use world::{Load, Node, World};
