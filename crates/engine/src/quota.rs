//! What apps want together, and whether an environment's quota allows it.
//!
//! - What is wanted counts, whether it runs or not: also what waits for room, and not what is stopped.
//! - A task counts with what it reserves, and where it reserves nothing with its limit.
//! - A change is refused for what it asks for more than before. A quota that was lowered stops nothing that runs, and nothing that asks for less.

use std::ops::AddAssign;

use wharf_model::{
    AppKey, Availability, EnvironmentName, Mode, NodeState, QuotaThing, ServiceKey, ServiceName,
    ServiceRecord, ServiceRevision, ServiceSpec,
};

use crate::{
    Node, World,
    place::{self, Demand},
};

/// How much is wanted of what quotas limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Tasks.
    pub tasks: u64,
    /// Processor time, in thousandths of a core.
    pub cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// Disk, in bytes.
    pub disk: u64,
}
impl Wanted {
    /// How much of a thing, in the thing's own unit.
    pub const fn of(&self, thing: QuotaThing) -> u64 {
        match thing {
            QuotaThing::Tasks => self.tasks,
            QuotaThing::Cpus => self.cpus,
            QuotaThing::Memory => self.memory,
            QuotaThing::Disk => self.disk,
        }
    }
    /// What so many tasks of a service want.
    fn by_tasks(spec: &ServiceSpec, tasks: u64) -> Self {
        let (reserved, limits) = (spec.resources.reservations, spec.resources.limits);
        let cpus = reserved.cpus.or(limits.cpus).map_or(0, |cpus| cpus.0);
        let memory = reserved.memory.or(limits.memory).map_or(0, |memory| memory.0);
        let disk = spec.policy.disk.map_or(0, |disk| disk.0);
        let all = |of_each: u64| of_each.saturating_mul(tasks);
        Self { tasks, cpus: all(cpus), memory: all(memory), disk: all(disk) }
    }
}
impl AddAssign for Wanted {
    fn add_assign(&mut self, other: Self) {
        self.tasks = self.tasks.saturating_add(other.tasks);
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory = self.memory.saturating_add(other.memory);
        self.disk = self.disk.saturating_add(other.disk);
    }
}

/// What an app wants.
pub fn wanted_by_app(world: &World, app: &AppKey) -> Wanted {
    let pending = world.app(app).and_then(|app| app.rollout.pending.as_deref()).unwrap_or_default();
    let changes = |record: &ServiceRecord| pending.iter().find(|changed| changed.key == record.key).cloned();
    let services =
        world.services_of(app).map(|record| changes(record).unwrap_or_else(|| ServiceRecord::clone(record)));
    let fresh = pending.iter().filter(|record| world.service(&record.key).is_none()).cloned();
    wanted_by(world, services.chain(fresh))
}

/// What the apps of an environment want together.
pub fn wanted_in(world: &World, environment: &EnvironmentName) -> Wanted {
    let mut all = Wanted::default();
    let apps = world.apps().filter(|app| app.key.environment == *environment && !app.removed);
    apps.for_each(|app| all += wanted_by_app(world, &app.key));
    all
}

/// What services as these records have them want.
pub(crate) fn wanted_by(world: &World, records: impl Iterator<Item = ServiceRecord>) -> Wanted {
    let mut all = Wanted::default();
    for record in records.filter(|record| !record.removed && !record.stopped) {
        let (generation, mode) = record.wanted();
        if let Some(revision) = world.revision_of(&record.key, generation) {
            all += Wanted::by_tasks(&revision.spec, tasks(world, revision, mode));
        }
    }
    all
}

/// What a service of an app would want that is made so.
pub(crate) fn wanted_by_spec(world: &World, app: &AppKey, name: &ServiceName, spec: &ServiceSpec) -> Wanted {
    let revision = ServiceRevision {
        key: ServiceKey { app: app.clone(), name: name.clone() },
        generation: Default::default(),
        release: Default::default(),
        spec: spec.clone(),
        image: wharf_model::Image::named(spec.image.clone()),
        restart: false,
    };
    Wanted::by_tasks(spec, tasks(world, &revision, spec.mode))
}

/// How many tasks a service has: a global one as many as there are nodes for it.
fn tasks(world: &World, revision: &ServiceRevision, mode: Mode) -> u64 {
    match mode {
        Mode::Replicated { replicas } => u64::from(replicas),
        Mode::Global => {
            let demand = Demand::of(world, revision);
            let suits = |node: &&Node| {
                let there = !matches!(node.state(), NodeState::Down);
                there && node.record.availability == Availability::Active && place::belongs(node, &demand)
            };
            u64::try_from(world.nodes().filter(suits).count()).unwrap_or(u64::MAX)
        }
    }
}

/// One thing of which an app asks for more than its environment's quota leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) thing: QuotaThing,
    pub(crate) wanted: u64,
    pub(crate) others: u64,
    pub(crate) limit: u64,
}

/// Of what a change of an app asks for more than there may be.
pub(crate) fn excess(world: &World, app: &AppKey, after: Wanted) -> Vec<Excess> {
    let Some(quota) = world.quota(&app.environment) else { return Vec::new() };
    let removed = world.app(app).is_none_or(|record| record.removed);
    let before = if removed { Wanted::default() } else { wanted_by_app(world, app) };
    let all = wanted_in(world, &app.environment);
    let excess = QuotaThing::ALL.into_iter().filter_map(|thing| {
        let (wanted, limit) = (after.of(thing), quota.limit(thing)?);
        let others = all.of(thing).saturating_sub(before.of(thing));
        let beyond = others.saturating_add(wanted) > limit && wanted > before.of(thing);
        beyond.then_some(Excess { thing, wanted, others, limit })
    });
    excess.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wharf_model::{Bytes, Cpus, Quota, QuotaRecord};

    use super::*;
    use crate::{
        Request,
        fixtures::{Cluster, app, app_key, by, images, replicas, service},
        plan, request,
    };

    fn limited(quota: Quota) -> Cluster {
        let mut cluster = Cluster::of(2);
        cluster.world.insert_quota(QuotaRecord { environment: app_key().environment, quota });
        cluster
    }
    fn tasks(tasks: u32) -> Quota {
        Quota { tasks: Some(tasks), ..Quota::default() }
    }
    fn other() -> AppKey {
        AppKey { name: "blog".parse().unwrap(), ..app_key() }
    }
    fn refusals(cluster: &Cluster, app: &AppKey, spec: &wharf_model::AppSpec) -> Vec<String> {
        plan(&cluster.world, app, spec, &images(spec)).refusals.iter().map(ToString::to_string).collect()
    }
    fn deploy(cluster: &mut Cluster, key: &AppKey, spec: &wharf_model::AppSpec) {
        let changes = crate::release(&cluster.world, key, spec, &images(spec), &by(), cluster.now).unwrap();
        cluster.apply(&changes);
    }

    #[test]
    fn what_an_app_asks_for_beyond_the_quota_is_refused_with_what_is_left() {
        let mut cluster = limited(tasks(5));
        let blog = app(&[("web", replicas(service("web"), 3))]);
        deploy(&mut cluster, &other(), &blog);
        let shop = |n| app(&[("web", replicas(service("web"), n))]);
        assert!(refusals(&cluster, &app_key(), &shop(2)).is_empty());
        insta::assert_snapshot!(refusals(&cluster, &app_key(), &shop(3)).join("\n"), @"app shop would want 3 tasks, and the quota of environment prod leaves 2 tasks for it: other apps want 3 tasks of 5 tasks; hint: ask for less, or raise it with `wharf quota set --env prod --tasks 6`");
        let refused =
            crate::release(&cluster.world, &app_key(), &shop(3), &images(&shop(3)), &by(), cluster.now);
        assert!(refused.is_err(), "a plan that is refused is not carried out");
    }

    #[test]
    fn reservations_count_and_limits_where_nothing_is_reserved() {
        let quota = Quota { cpus: Some(Cpus(2000)), memory: Some(Bytes(1 << 30)), ..Quota::default() };
        let cluster = limited(quota);
        let mut web = replicas(service("web"), 3);
        web.resources.reservations.cpus = Some(Cpus(500));
        web.resources.limits.memory = Some(Bytes(512 << 20));
        let said = refusals(&cluster, &app_key(), &app(&[("web", web)]));
        insta::assert_snapshot!(said.join("\n"), @"app shop would want 1.5 GiB of memory, and the quota of environment prod leaves 1 GiB of memory for it: other apps want 0 B of memory of 1 GiB of memory; hint: ask for less, or raise it with `wharf quota set --env prod --memory 1536m`");
    }

    #[test]
    fn what_asks_for_no_more_than_before_is_never_refused() {
        let mut cluster = limited(tasks(5));
        deploy(&mut cluster, &app_key(), &app(&[("web", replicas(service("web"), 4))]));
        cluster.settle();
        cluster.world.insert_quota(QuotaRecord { environment: app_key().environment, quota: tasks(1) });
        let newer = |n| app(&[("web", replicas(service("web2"), n))]);
        assert!(refusals(&cluster, &app_key(), &newer(4)).is_empty());
        assert!(refusals(&cluster, &app_key(), &newer(3)).is_empty());
        assert_eq!(refusals(&cluster, &app_key(), &newer(5)).len(), 1);
    }

    #[test]
    fn scaling_and_starting_ask_as_well() {
        let mut cluster = limited(tasks(3));
        let spec = app(&[("web", replicas(service("web"), 2)), ("db", service("db"))]);
        deploy(&mut cluster, &app_key(), &spec);
        cluster.settle();
        let scale = |n| Request::Scale(BTreeMap::from([("web".parse().unwrap(), n)]));
        let ask = |cluster: &Cluster, asked: &Request| {
            request(&cluster.world, &app_key(), asked, &by(), cluster.now).map(drop)
        };
        let refused = ask(&cluster, &scale(3)).unwrap_err().to_string();
        assert!(refused.starts_with("app shop would want 4 tasks"), "{refused}");
        let stop = Request::Stop(vec!["db".parse().unwrap()]);
        cluster.ask(&stop);
        cluster.settle();
        cluster.ask(&scale(3));
        cluster.settle();
        let start = Request::Start(vec!["db".parse().unwrap()]);
        assert!(ask(&cluster, &start).is_err(), "what is stopped wants nothing, and what starts does");
        assert!(ask(&cluster, &scale(1)).is_ok());
    }

    #[test]
    fn a_global_service_counts_once_for_each_node_it_is_for() {
        let cluster = limited(tasks(1));
        let mut agent = service("agent");
        agent.mode = Mode::Global;
        let said = refusals(&cluster, &app_key(), &app(&[("agent", agent)]));
        assert!(said.join("").contains("would want 2 tasks"), "{said:?}");
    }

    #[test]
    fn another_environment_has_its_own() {
        let mut cluster = limited(tasks(1));
        let staging = AppKey { environment: "staging".parse().unwrap(), ..app_key() };
        let spec = app(&[("web", replicas(service("web"), 9))]);
        deploy(&mut cluster, &staging, &spec);
        assert_eq!(wanted_in(&cluster.world, &staging.environment).tasks, 9);
        assert!(refusals(&cluster, &app_key(), &app(&[("web", service("web"))])).is_empty());
    }
}
