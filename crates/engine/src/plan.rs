//! Works out what a release would change, and turns it into records.
//!
//! A plan is what people are shown and what is then carried out: its fingerprint covers the wanted app and the state it was worked out
//! from, so that it is refused once either is another. Values of variables and commands never appear in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use wharf_model::{
    AppKey, AppRecord, AppSpec, Backend, By, Generation, Image, Mode, NetworkMode, NetworkName,
    NetworkRecord, NetworkSpec, Previous, Protocol, PublishMode, QuotaThing, Release, ReleaseNote,
    ReleaseNumber, Rollout, RolloutState, ServiceKey, ServiceName, ServiceRecord, ServiceRevision,
    ServiceSpec, Timestamp, UpdateOrder, VolumeName,
};

use crate::{
    Change, NetworkRefusal, RouteRefusal, World, history,
    network::{self, Moving},
    place, placeholders,
    quota::{self, Excess, Wanted},
    routing, spec, strategy, tasks,
};

/// What happens to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is made.
    Create,
    /// It changes without its containers being replaced.
    Change,
    /// Its containers are replaced.
    Replace,
    /// It goes.
    Remove,
    /// It stays as it is.
    Keep,
}
impl Action {
    /// `+`, `~`, `±`, `-` or `=`.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Change => "~",
            Self::Replace => "±",
            Self::Remove => "-",
            Self::Keep => "=",
        }
    }
}

/// What kind of thing an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    /// A network.
    Network,
    /// A volume.
    Volume,
    /// A config.
    Config,
    /// A secret.
    Secret,
    /// A service.
    Service,
    /// A service outside the cluster.
    External,
    /// A job.
    Job,
    /// A route of a service.
    Route,
    /// The app as a whole.
    App,
}
impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Config => "config",
            Self::Secret => "secret",
            Self::Service => "service",
            Self::External => "external",
            Self::Job => "job",
            Self::Route => "route",
            Self::App => "app",
        })
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What happens.
    pub action: Action,
    /// To what kind of thing.
    pub thing: Thing,
    /// To which.
    pub name: String,
    /// Why: what differs. Empty for what stays.
    pub reasons: Vec<String>,
    /// How it is done, where that is worth knowing beforehand.
    pub notes: Vec<String>,
}
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<8} {}", self.action.symbol(), self.thing, self.name)?;
        if !self.reasons.is_empty() {
            write!(f, ": {}", self.reasons.join(", "))?;
        }
        self.notes.iter().try_for_each(|note| write!(f, " ({note})"))
    }
}

/// Why a plan cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PlanRefusal {
    /// The app is being taken down.
    BeingRemoved,
    /// Two services of the app publish one port.
    PortTwice {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who publishes it, too.
        service: ServiceName,
        /// Who publishes it.
        by: ServiceName,
    },
    /// There is no such app.
    NoApp {
        /// Which.
        app: AppKey,
    },
    /// There is no such service.
    NoService {
        /// The name asked for.
        service: ServiceName,
    },
    /// A published port belongs to another service.
    PortTaken {
        /// The port.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// Who wants it.
        service: ServiceName,
        /// Whose it is.
        by: ServiceKey,
    },
    /// A published port is one on which another app's routes listen.
    PortRouted {
        /// The port.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// Who wants it.
        service: ServiceName,
        /// Whose routes.
        by: ServiceKey,
    },
    /// A placeholder stands for nothing.
    Placeholder {
        /// Whose specification it is in.
        service: ServiceName,
        /// Where.
        place: String,
        /// What is wrong with it.
        because: String,
        /// What to write instead.
        hint: String,
    },
    /// A route cannot be had.
    Route(Box<RouteRefusal>),
    /// A program outside Wharf listens on a published port on every gateway.
    PortForeign {
        /// The port.
        port: u16,
        /// Who wants it.
        service: ServiceName,
        /// The gateways.
        nodes: Vec<String>,
    },
    /// An external network exists in no app of the environment.
    NetworkMissing {
        /// Its key in the file.
        network: NetworkName,
        /// The name looked for.
        name: String,
    },
    /// A network, or its new place, cannot be had.
    Network {
        /// Its key in the file.
        network: NetworkName,
        /// Why not, with what to do about it.
        because: String,
    },
    /// What cannot change while the network is in use.
    NetworkFixed {
        /// The network.
        network: NetworkName,
        /// Which property.
        what: String,
    },
    /// What cannot change while the volume exists.
    VolumeFixed {
        /// The volume.
        volume: VolumeName,
    },
    /// No image was pinned for a service.
    NoImage {
        /// The service.
        service: ServiceName,
    },
    /// A global service has no number of tasks.
    Global {
        /// The service.
        service: ServiceName,
    },
    /// The service has a fixed address, which only one task can have.
    OneTaskOnly {
        /// The service.
        service: ServiceName,
    },
    /// A service cannot have a second set of tasks beside the one that serves, as its strategy asks.
    SecondSet {
        /// The service.
        service: ServiceName,
        /// The strategy's word.
        strategy: String,
        /// Why not.
        because: String,
    },
    /// No node has room for a service's second set of tasks beside the one that serves.
    NoRoom {
        /// The service.
        service: ServiceName,
        /// How many tasks of it there is room for, and how many are wanted.
        room: (u32, u32),
        /// Why there is none for more.
        because: String,
    },
    /// A command around a release cannot run as a task of its own.
    Hook {
        /// The service whose container it is to have.
        service: ServiceName,
        /// Why not.
        because: String,
    },
    /// The environment's quota leaves less than the app asks for.
    Quota {
        /// The app.
        app: AppKey,
        /// What there is too little of; the amounts are in its unit.
        thing: QuotaThing,
        /// How much the app would want.
        wanted: u64,
        /// How much others of the environment want.
        others: u64,
        /// How much there may be in all.
        limit: u64,
    },
    /// A release is neither through nor given up: nothing else of the app changes before it is.
    Undecided {
        /// What is under way, in words.
        what: String,
    },
}
impl fmt::Display for PlanRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeingRemoved => {
                f.write_str("the app is being taken down; hint: wait until `wharf app ls` no longer shows it")
            }
            Self::NoApp { app } => write!(
                f,
                "there is no app `{}` in environment `{}`; hint: `wharf app ls --all` shows those there are",
                app.name, app.environment
            ),
            Self::NoService { service } => write!(f, "the app has no service {service}"),
            Self::PortTaken { port, protocol, service, by } => write!(
                f,
                "service {service} publishes port {port}/{}, which belongs to service {} of app {} in {}; \
                 hint: publish another port, or take that app down",
                protocol.as_str(),
                by.name,
                by.app.name,
                by.app.environment
            ),
            Self::PortTwice { port, protocol, service, by } => write!(
                f,
                "services {by} and {service} both publish port {port}/{}; \
                 hint: publish another port, or choose from a range with a port for each",
                protocol.as_str()
            ),
            Self::PortRouted { port, protocol, service, by } => write!(
                f,
                "service {service} publishes port {port}/{}, on which routes of service {} of app {} in {} listen; \
                 hint: publish another port, or make it a route as well (`x-wharf.routes`): routes share ports",
                protocol.as_str(),
                by.name,
                by.app.name,
                by.app.environment
            ),
            Self::Route(refusal) => fmt::Display::fmt(refusal, f),
            Self::PortForeign { port, service, nodes } => write!(
                f,
                "service {service} publishes port {port}, which another program has on {}; \
                 hint: publish another port, or stop that program (`ss -ltnp 'sport = :{port}'` there names it)",
                nodes.join(", ")
            ),
            Self::NetworkMissing { network, name } => write!(
                f,
                "network {network} is external, and no app of this environment has a network `{name}`; \
                 hint: deploy the app that makes it first"
            ),
            Self::Network { network, because } => write!(f, "network {network} cannot be made: {because}"),
            Self::NetworkFixed { network, what } => write!(
                f,
                "the {what} of network {network} cannot change while it is in use; \
                 hint: `wharf down` the app first, or use a network of another name or subnet"
            ),
            Self::VolumeFixed { volume } => write!(
                f,
                "the driver of volume {volume} cannot change while it exists; hint: use a volume of another name"
            ),
            Self::NoImage { service } => write!(f, "the image of service {service} has not been looked up"),
            Self::Placeholder { service, place, because, hint } => {
                write!(f, "service {service}: {place}: {because}; hint: {hint}")
            }
            Self::Global { service } => {
                write!(
                    f,
                    "service {service} is global: it has one task on every suitable node, and no number to set"
                )
            }
            Self::SecondSet { service, strategy, because } => write!(
                f,
                "service {service} cannot be released {strategy}: {because}; \
                 hint: give it `x-wharf: {{release: {{strategy: rolling}}}}`"
            ),
            Self::NoRoom { service, room: (room, wanted), because } => write!(
                f,
                "there is room for {room} of the {wanted} tasks that service {service} has beside the old ones until these go: \
                 {because}; hint: add a node, lower `deploy.resources.reservations`, or release it with `strategy: rolling`"
            ),
            Self::Hook { service, because } => write!(
                f,
                "a command around the release cannot have a container like those of service {service}: {because}; \
                 hint: name a service without that in `x-wharf.hooks`"
            ),
            Self::Quota { app, thing, wanted, others, limit } => write!(
                f,
                "app {} would want {}, and the quota of environment {} leaves {} for it: other apps want {} of {}; \
                 hint: ask for less, or raise it with `wharf quota set --env {2} --{thing} {}`",
                app.name,
                thing.amount(*wanted),
                app.environment,
                thing.amount(limit.saturating_sub(*others)),
                thing.amount(*others),
                thing.amount(*limit),
                thing.argument(others.saturating_add(*wanted))
            ),
            Self::Undecided { what } => write!(
                f,
                "{what} is being tried beside what serves; hint: `wharf rollout promote` or `wharf rollout abort` first, \
                 or, once it has failed, `wharf up` or `wharf rollback`"
            ),
            Self::OneTaskOnly { service } => {
                write!(f, "service {service} has a fixed address, which only one task can have")
            }
        }
    }
}
impl std::error::Error for PlanRefusal {}

/// What a change of an app does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The app.
    pub app: AppKey,
    /// Everything it is about, what stays among it: networks, volumes and files first, then services in order of their start.
    pub operations: Vec<Operation>,
    /// What is allowed and unwise.
    pub warnings: Vec<String>,
    /// Why it cannot be carried out; all of it at once.
    pub refusals: Vec<PlanRefusal>,
    /// Digest of the state it was worked out from and of what is wanted.
    pub fingerprint: String,
}
impl Plan {
    /// Whether carrying it out changes nothing.
    pub fn is_noop(&self) -> bool {
        self.refusals.is_empty() && self.changing().next().is_none()
    }
    /// The operations that change something.
    pub fn changing(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(|operation| operation.action != Action::Keep)
    }
}
impl fmt::Display for Plan {
    /// One line for each operation that changes something, then warnings and refusals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for operation in self.changing() {
            writeln!(f, "{operation}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        self.refusals.iter().try_for_each(|refusal| writeln!(f, "refused: {refusal}"))
    }
}

/// What would change if `wanted`, with these pinned images, became the app.
pub fn plan(world: &World, app: &AppKey, wanted: &AppSpec, images: &BTreeMap<ServiceName, Image>) -> Plan {
    let current = Current::of(world, app);
    let mut plan = Plan {
        app: app.clone(),
        operations: Vec::new(),
        warnings: Vec::new(),
        refusals: Vec::new(),
        fingerprint: fingerprint(&current, Some((wanted, images))),
    };
    if current.record.is_some_and(|record| record.removed) {
        plan.refusals.push(PlanRefusal::BeingRemoved);
    }
    plan.networks(world, &current, wanted);
    plan.volumes(world, &current, wanted);
    plan.files(&current, wanted);
    plan.services(&current, wanted, images);
    let before = current.revisions.iter().map(|(name, revision)| (*name, &revision.spec));
    plan.operations
        .extend(routing::operations(routing::lines(before), routing::lines(wanted.services.iter())));
    plan.externals(&current, wanted);
    plan.jobs(&current, wanted);
    plan.policy(&current, wanted);
    plan.hooks(wanted);
    plan.ports(world, wanted);
    plan.quota(world, wanted);
    routing::check(&mut plan, world, wanted);
    plan.warn(wanted);
    plan
}

/// What taking an app down does, with or without its volumes.
pub fn plan_down(world: &World, app: &AppKey, volumes: bool) -> Plan {
    let current = Current::of(world, app);
    let mut operations = Vec::new();
    let remove = |thing, name: String, reasons: Vec<String>| Operation {
        action: Action::Remove,
        thing,
        name,
        reasons,
        notes: Vec::new(),
    };
    for record in current.services.values().rev() {
        let tasks = world.tasks_of(&record.key).filter(|task| !task.is_over()).count();
        let reasons = if tasks > 0 { vec![stops(tasks)] } else { Vec::new() };
        operations.push(remove(Thing::Service, record.key.name.to_string(), reasons));
    }
    let routes = current.revisions.iter().map(|(name, revision)| (*name, &revision.spec));
    operations.extend(routing::operations(routing::lines(routes), Vec::new()));
    for network in world.networks_of(app).filter(|network| !network.retired) {
        operations.push(remove(Thing::Network, network.name.to_string(), Vec::new()));
    }
    for volume in world.volumes_of(app) {
        let nodes: Vec<_> = volume.nodes.iter().map(|node| world.node_name(*node)).collect();
        let data = if nodes.is_empty() { String::new() } else { format!("data on {}", nodes.join(", ")) };
        let mut operation = remove(Thing::Volume, volume.name.to_string(), Vec::new());
        if volumes && !volume.spec.external {
            operation.reasons =
                vec![if data.is_empty() { "it is empty".into() } else { format!("{data} is deleted") }];
        } else {
            operation.action = Action::Keep;
        }
        operations.push(operation);
    }
    let refusals = match current.record {
        Some(_) => Vec::new(),
        None => vec![PlanRefusal::NoApp { app: app.clone() }],
    };
    let mut fingerprint = fingerprint(&current, None);
    if volumes {
        fingerprint.push_str("-volumes");
    }
    Plan { app: app.clone(), operations, warnings: Vec::new(), refusals, fingerprint }
}

/// What happens to the tasks of a network whose backend changes while they run.
fn in_place_note(to: Backend, tasks: usize) -> String {
    let tasks = if tasks == 1 { "its task keeps".to_owned() } else { format!("its {tasks} tasks keep") };
    let later = match to {
        Backend::Routed => "; until they are replaced each has a route of its own",
        Backend::Vxlan | Backend::Wireguard | Backend::Macvlan | Backend::Host => "",
    };
    format!(
        "in place: {tasks} running, with their addresses; packets between nodes are lost for a moment while the nodes change over{later}"
    )
}

/// What happens to the tasks of a network in whose place another one comes.
fn anew_note(tasks: usize) -> String {
    let whose = if tasks == 1 {
        "its task is replaced".to_owned()
    } else {
        format!("its {tasks} tasks are replaced one after another")
    };
    format!(
        "{whose}; until all have moved, those that have and those that have not do not reach each other over this network, \
         nor find each other's names"
    )
}

/// What another default of the cluster does to its networks.
///
/// # Errors
/// Why it cannot be the default.
pub fn plan_backend(world: &World, backend: Backend) -> Result<Vec<(AppKey, Operation)>, String> {
    if !backend.is_general() {
        return Err(format!(
            "`{backend}` cannot be the default of a cluster: it is chosen for one network; hint: use vxlan, routed or wireguard"
        ));
    }
    let ours = |network: &&std::sync::Arc<NetworkRecord>| network.spec.backend.is_none() && !network.retired;
    let changing: Vec<_> =
        world.networks().filter(ours).filter(|network| network.backend != backend).collect();
    if backend == Backend::Routed
        && let Some(refusal) = network::routes_beyond_limit(world, changing.iter().map(|network| &***network))
    {
        return Err(refusal.to_string());
    }
    let operation = |network: &NetworkRecord| {
        let Moving { tasks, anew, .. } = network::moving(world, network, &network.spec, backend);
        Operation {
            action: if anew.is_empty() { Action::Change } else { Action::Replace },
            thing: Thing::Network,
            name: format!("{} of {}", network.name, network.app.name),
            reasons: vec![format!("backend {} -> {backend}", network.backend)],
            notes: match (tasks, anew.is_empty()) {
                (0, _) => Vec::new(),
                (_, true) => vec![in_place_note(backend, tasks)],
                (_, false) => vec![anew_note(tasks)],
            },
        }
    };
    Ok(changing.into_iter().map(|network| (network.app.clone(), operation(network))).collect())
}

/// Whether new networks can have their subnets from this pool.
///
/// # Errors
/// If no subnet of it is free on all nodes.
pub fn plan_pool(world: &World, pool: wharf_model::AddressPool) -> Result<(), String> {
    let networks = world.networks().map(|network| &**network);
    let free = network::subnet_of(world, pool, networks);
    free.map(drop).map_err(|refusal| refusal.to_string())
}

fn stops(tasks: usize) -> String {
    if tasks == 1 { "1 task stops".to_owned() } else { format!("{tasks} tasks stop") }
}

/// An app as it is.
struct Current<'a> {
    record: Option<&'a AppRecord>,
    release: Option<&'a Release>,
    services: BTreeMap<&'a ServiceName, &'a ServiceRecord>,
    revisions: BTreeMap<&'a ServiceName, &'a ServiceRevision>,
    /// Its networks that are not retired.
    networks: BTreeMap<&'a NetworkName, &'a NetworkRecord>,
    world: &'a World,
}
impl<'a> Current<'a> {
    fn of(world: &'a World, app: &AppKey) -> Self {
        let record = world.app(app).map(|record| &**record);
        let stored = world.services_of(app).map(|service| &**service);
        // Before the commands before a release are through, its services are as they will be then.
        let pending = record.and_then(|record| record.rollout.pending.as_deref()).unwrap_or_default();
        let kept = stored.chain(pending);
        let mut services: BTreeMap<_, _> = kept.map(|service| (&service.key.name, service)).collect();
        services.retain(|_, service| !service.removed);
        let revisions = services.iter().filter_map(|(name, service)| {
            Some((*name, &**world.revision_of(&service.key, service.wanted().0)?))
        });
        Self {
            record,
            release: record.and_then(|record| world.release(app, record.release)).map(|release| &**release),
            revisions: revisions.collect(),
            services,
            networks: world
                .networks_of(app)
                .filter(|network| !network.retired)
                .map(|network| (&network.name, &**network))
                .collect(),
            world,
        }
    }

    /// Whether another network takes the place of this one.
    fn is_made_anew(&self, wanted: &AppSpec, name: &NetworkName) -> bool {
        let wanted = wanted.networks.get(name).filter(|wanted| !wanted.external);
        wanted.zip(self.networks.get(name)).is_some_and(|(wanted, record)| {
            let backend = wanted.backend.unwrap_or(self.world.backend);
            !network::moves(self.world, record, wanted, backend).is_empty()
        })
    }
}

/// What happens to one service, and what its containers' replacement follows from.
struct ServiceChange {
    action: Action,
    reasons: Vec<String>,
}

impl Plan {
    fn add(&mut self, action: Action, thing: Thing, name: impl fmt::Display, reasons: Vec<String>) {
        self.operations.push(Operation { action, thing, name: name.to_string(), reasons, notes: Vec::new() });
    }

    fn networks(&mut self, world: &World, current: &Current<'_>, wanted: &AppSpec) {
        for (name, spec) in &wanted.networks {
            if spec.external {
                let outer = spec.name.as_deref().unwrap_or(name.as_str());
                let made_here = |network: &wharf_model::NetworkRecord| network.app == self.app;
                match world.network_called(&self.app.environment, outer) {
                    Some(network) if !made_here(network) => {
                        self.add(Action::Keep, Thing::Network, name, Vec::new());
                    }
                    Some(_) | None => self
                        .refusals
                        .push(PlanRefusal::NetworkMissing { network: name.clone(), name: outer.to_owned() }),
                }
                continue;
            }
            let here = |network: &&std::sync::Arc<NetworkRecord>| network.name == *name && !network.retired;
            let stored = world.networks_of(&self.app).find(here);
            let old = stored.map(|network| &network.spec);
            let old = old.or_else(|| current.release.and_then(|release| release.spec.networks.get(name)));
            if let Some(because) = network::refusal(world, spec, stored.map(|network| &**network)) {
                self.refuse_network(world, name, stored.map(|network| &**network), spec, &because);
            }
            match (old, stored) {
                (None, _) => {
                    self.add(Action::Create, Thing::Network, name, Vec::new());
                    if let Some(backend) = spec.backend {
                        self.note(|| format!("backend {backend}"));
                    }
                }
                (Some(old), _) if old.name != spec.name || old.external => {
                    let what = if old.external { "owner" } else { "name" };
                    self.refusals
                        .push(PlanRefusal::NetworkFixed { network: name.clone(), what: what.to_owned() });
                    self.add(Action::Change, Thing::Network, name, differences(old, spec));
                }
                (Some(old), Some(record)) => self.network(world, old, record, spec),
                (Some(old), None) if old == spec => self.add(Action::Keep, Thing::Network, name, Vec::new()),
                (Some(old), None) => self.add(Action::Change, Thing::Network, name, differences(old, spec)),
            }
        }
        let gone =
            world.networks_of(&self.app).filter(|network| !wanted.networks.contains_key(&network.name));
        let gone: BTreeSet<_> = gone.map(|network| network.name.clone()).collect();
        for name in gone {
            self.add(Action::Remove, Thing::Network, name, vec!["no longer in the file".to_owned()]);
        }
    }

    /// A network that is there and stays in the file.
    fn network(&mut self, world: &World, old: &NetworkSpec, record: &NetworkRecord, spec: &NetworkSpec) {
        let Moving { anew, in_place, tasks } = network::moving(world, record, spec, world.backend);
        let said =
            ["backend", "parent", "subnet", "internal", "driver_opts", "gateway", "enable_ipv6", "subnet6"];
        let other = differences(old, spec).into_iter();
        let other = other.filter(|what| !said.iter().any(|key| what.split(' ').next() == Some(key)));
        let name = &record.name;
        if !anew.is_empty() {
            self.add(Action::Replace, Thing::Network, name, anew.into_iter().chain(other).collect());
            if tasks > 0 {
                self.note(|| anew_note(tasks));
            }
            return;
        }
        let reasons: Vec<_> = match in_place {
            Some((from, to)) => [format!("backend {from} -> {to}")].into_iter().chain(other).collect(),
            None => differences(old, spec),
        };
        let action = if reasons.is_empty() { Action::Keep } else { Action::Change };
        self.add(action, Thing::Network, name, reasons);
        if let Some((_, to)) = in_place.filter(|_| tasks > 0) {
            self.note(|| in_place_note(to, tasks));
        }
    }

    fn refuse_network(
        &mut self,
        world: &World,
        name: &NetworkName,
        stored: Option<&NetworkRecord>,
        spec: &NetworkSpec,
        because: &NetworkRefusal,
    ) {
        // Two networks cannot have one subnet, also while one takes the place of the other.
        let same = spec.subnet.zip(stored).is_some_and(|(wanted, stored)| wanted.trunc() == stored.subnet);
        let what = stored.filter(|_| same).and_then(|stored| {
            let backend = spec.backend.unwrap_or(stored.backend);
            network::moves(world, stored, spec, backend).into_iter().next()
        });
        self.refusals.push(match what.as_deref().and_then(|what| what.split(' ').next()) {
            Some(what) => PlanRefusal::NetworkFixed { network: name.clone(), what: what.to_owned() },
            None => PlanRefusal::Network { network: name.clone(), because: because.to_string() },
        });
    }

    fn volumes(&mut self, world: &World, current: &Current<'_>, wanted: &AppSpec) {
        for (name, spec) in &wanted.volumes {
            match world.volume_named(&self.app, name) {
                None if current
                    .release
                    .is_some_and(|release| release.spec.volumes.get(name) == Some(spec)) =>
                {
                    self.add(Action::Keep, Thing::Volume, name, Vec::new());
                }
                None => self.add(Action::Create, Thing::Volume, name, Vec::new()),
                Some(volume) if volume.spec == *spec => {
                    self.add(Action::Keep, Thing::Volume, name, Vec::new());
                    // The volume outlived an earlier app of this name.
                    if current.record.is_none() && !volume.nodes.is_empty() {
                        self.note(|| "its data is still there".to_owned());
                    }
                }
                Some(volume) => {
                    let (old, reasons) = (&volume.spec, differences(&volume.spec, spec));
                    if (&old.driver, &old.driver_opts, &old.name, old.external)
                        != (&spec.driver, &spec.driver_opts, &spec.name, spec.external)
                    {
                        self.refusals.push(PlanRefusal::VolumeFixed { volume: name.clone() });
                    }
                    self.add(Action::Change, Thing::Volume, name, reasons);
                }
            }
        }
        let release = current.release.map(|release| &release.spec.volumes);
        let gone =
            release.into_iter().flat_map(BTreeMap::keys).filter(|name| !wanted.volumes.contains_key(name));
        for name in gone {
            self.add(Action::Keep, Thing::Volume, name, Vec::new());
            self.note(|| "no longer in the file; its data is kept".to_owned());
        }
    }
    fn note(&mut self, note: impl FnOnce() -> String) {
        if let Some(operation) = self.operations.last_mut() {
            operation.notes.push(note());
        }
    }

    fn files(&mut self, current: &Current<'_>, wanted: &AppSpec) {
        let old = current.release.map(|release| &release.spec);
        let none = BTreeMap::new();
        let kinds = [
            (Thing::Config, old.map_or(&none, |old| &old.configs), &wanted.configs),
            (Thing::Secret, old.map_or(&none, |old| &old.secrets), &wanted.secrets),
        ];
        for (thing, old, new) in kinds {
            for (name, file) in new {
                let same = |old: &wharf_model::FileSpec| {
                    old.external == file.external
                        && old.name == file.name
                        && content_of(old) == content_of(file)
                };
                match old.get(name) {
                    None => self.add(Action::Create, thing, name, Vec::new()),
                    Some(old) if !same(old) => self.add(Action::Change, thing, name, vec![moved(old, file)]),
                    Some(old) if old.labels != file.labels => {
                        self.add(Action::Change, thing, name, vec!["labels changed".to_owned()]);
                    }
                    Some(_) => self.add(Action::Keep, thing, name, Vec::new()),
                }
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                self.add(Action::Remove, thing, name, vec!["no longer in the file".to_owned()]);
            }
        }
    }

    fn services(&mut self, current: &Current<'_>, wanted: &AppSpec, images: &BTreeMap<ServiceName, Image>) {
        let changes = service_changes(current, wanted, images);
        let in_order = spec::in_order(wanted.services.iter().collect(), |(name, spec)| {
            ((*name).clone(), spec::dependencies(spec))
        });
        for (name, service) in in_order {
            if !images.contains_key(name) {
                self.refusals.push(PlanRefusal::NoImage { service: name.clone() });
            }
            for (place, because) in placeholders::mistakes(service) {
                let (because, hint) = (because.to_string(), because.hint);
                self.refusals.push(PlanRefusal::Placeholder { service: name.clone(), place, because, hint });
            }
            let Some(change) = changes.get(name) else { continue };
            self.add(change.action, Thing::Service, name, change.reasons.clone());
            if change.action == Action::Replace && self.second_set(current, wanted, (name, service), images) {
                continue;
            }
            let (order, why) = spec::effective_order(service);
            if let (Action::Replace, UpdateOrder::StopFirst, Some(why)) = (change.action, order, why) {
                self.note(|| format!("the old task stops before the new one starts: {why}"));
            }
        }
        for (name, _) in current.services.iter().filter(|(name, _)| !wanted.services.contains_key(**name)) {
            self.add(Action::Remove, Thing::Service, name, vec!["no longer in the file".to_owned()]);
        }
    }

    /// Whether a service that is replaced has a second set of tasks made; says how that goes, or why it cannot be.
    fn second_set(
        &mut self,
        current: &Current<'_>,
        wanted: &AppSpec,
        (name, service): (&ServiceName, &ServiceSpec),
        images: &BTreeMap<ServiceName, Image>,
    ) -> bool {
        if let Some(because) = strategy::refused(wanted, name, service) {
            let strategy = history::strategy_of(service.policy.release.as_ref()).to_owned();
            self.refusals.push(PlanRefusal::SecondSet { service: name.clone(), strategy, because });
            return true;
        }
        let Some(strategy) = strategy::asked(wanted, name, service) else {
            if let Some(why) = strategy::fallen_back(wanted, name, service) {
                self.note(|| why);
            }
            return false;
        };
        self.note(|| strategy::note(strategy, service.mode));
        let key = ServiceKey { app: self.app.clone(), name: name.clone() };
        let stored = current.world.service(&key);
        // What was kept may be what is wanted, and then has its place already.
        let kept = stored.is_some_and(|stored| !stored.sets.is_empty() || stored.stopped);
        let (Some(image), Mode::Replicated { replicas }) = (images.get(name), service.mode) else {
            return true;
        };
        let revision = ServiceRevision {
            key,
            generation: Generation::default(),
            release: ReleaseNumber::default(),
            spec: service.clone(),
            image: image.clone(),
            restart: false,
        };
        if !kept && let Err((room, because)) = place::room_for(current.world, &revision, replicas) {
            let (service, because) = (name.clone(), because.refused());
            self.refusals.push(PlanRefusal::NoRoom { service, room: (room, replicas), because });
        }
        true
    }

    /// Commands around the release: each has a container like those of a service.
    fn hooks(&mut self, wanted: &AppSpec) {
        let hooks = &wanted.policy.hooks;
        for hook in hooks.before.iter().chain(&hooks.after) {
            let service = hook.service.clone();
            let because = match wanted.services.get(&service) {
                None => Some("the app has no such service".to_owned()),
                Some(spec) => spec.companions().into_iter().next().map(|(other, shared)| {
                    format!("it shares the {shared} of {other}, and the command would have none")
                }),
            };
            self.refusals.extend(because.map(|because| PlanRefusal::Hook { service, because }));
        }
    }

    /// Names of services outside the cluster: nothing is started for them.
    fn externals(&mut self, current: &Current<'_>, wanted: &AppSpec) {
        let none = BTreeMap::new();
        let old = current.release.map_or(&none, |release| &release.spec.externals);
        for (name, external) in &wanted.externals {
            match old.get(name) {
                None => {
                    let host = format!("at {}", external.host);
                    self.add(Action::Create, Thing::External, name, vec![host]);
                }
                Some(old) if old == external => self.add(Action::Keep, Thing::External, name, Vec::new()),
                Some(old) => {
                    let mut reasons = differences(old, external);
                    if old.host != external.host {
                        reasons.retain(|reason| !reason.starts_with("host "));
                        reasons.insert(0, format!("{} -> {}", old.host, external.host));
                    }
                    self.add(Action::Change, Thing::External, name, reasons);
                }
            }
        }
        for name in old.keys().filter(|name| !wanted.externals.contains_key(*name)) {
            self.add(Action::Remove, Thing::External, name, vec!["no longer in the file".to_owned()]);
        }
    }

    fn jobs(&mut self, current: &Current<'_>, wanted: &AppSpec) {
        let none = BTreeMap::new();
        let old = current.release.map_or(&none, |release| &release.spec.jobs);
        for (name, job) in &wanted.jobs {
            match old.get(name) {
                None => self.add(Action::Create, Thing::Job, name, vec![format!("image {}", job.spec.image)]),
                Some(old) if old == job => self.add(Action::Keep, Thing::Job, name, Vec::new()),
                Some(old) => self.add(Action::Change, Thing::Job, name, differences(old, job)),
            }
        }
        for name in old.keys().filter(|name| !wanted.jobs.contains_key(*name)) {
            self.add(Action::Remove, Thing::Job, name, vec!["no longer in the file".to_owned()]);
        }
    }

    /// What holds for the app as a whole, beside its services.
    fn policy(&mut self, current: &Current<'_>, wanted: &AppSpec) {
        let old = current.release.map(|release| &release.spec);
        if let Some(old) = old.filter(|old| old.policy != wanted.policy) {
            self.add(Action::Change, Thing::App, &wanted.name, history::app_policy(old, wanted));
        }
    }

    /// Ports published on every gateway are the cluster's: one service has each.
    fn ports(&mut self, world: &World, wanted: &AppSpec) {
        let mut taken = BTreeMap::<(u16, Protocol), Vec<(Option<std::net::IpAddr>, ServiceKey)>>::new();
        let others = world.published_services();
        for record in others.filter(|record| record.key.app != self.app && !record.removed) {
            // What is about to take over has its ports already.
            for generation in BTreeSet::from([record.generation, record.wanted().0]) {
                let Some(revision) = world.revision_of(&record.key, generation) else { continue };
                for port in spec::ingress_ports(&revision.spec) {
                    let key = (port.published.unwrap_or_default(), port.protocol);
                    taken.entry(key).or_default().push((port.host_ip, record.key.clone()));
                }
            }
        }
        for (name, service) in &wanted.services {
            for port in spec::ingress_ports(service) {
                let key = (port.published.unwrap_or_default(), port.protocol);
                let holders = taken.entry(key).or_default();
                let own = ServiceKey { app: self.app.clone(), name: name.clone() };
                let clash = holders.iter().find(|(ip, by)| {
                    *by != own && (ip.is_none() || port.host_ip.is_none() || *ip == port.host_ip)
                });
                if let Some((_, by)) = clash {
                    let (port, protocol) = key;
                    let (service, by) = (name.clone(), by.clone());
                    self.refusals.push(if by.app == self.app {
                        PlanRefusal::PortTwice { port, protocol, service, by: by.name }
                    } else {
                        PlanRefusal::PortTaken { port, protocol, service, by }
                    });
                }
                holders.push((port.host_ip, own));
                self.foreign(world, name, key.0);
            }
        }
    }

    /// What the environment's quota has against it.
    fn quota(&mut self, world: &World, wanted: &AppSpec) {
        let mut after = Wanted::default();
        for (name, service) in &wanted.services {
            let wants = quota::wanted_by_spec(world, &self.app, name, service);
            after += wants;
            for thing in [QuotaThing::Cpus, QuotaThing::Memory, QuotaThing::Disk] {
                let limited =
                    world.quota(&self.app.environment).is_some_and(|quota| quota.limit(thing).is_some());
                if limited && wants.tasks > 0 && wants.of(thing) == 0 {
                    self.warnings.push(format!(
                        "environment {} has a quota of {thing}, and service {name} neither reserves any nor has a limit: it counts for nothing",
                        self.app.environment
                    ));
                }
            }
        }
        let excess = quota::excess(world, &self.app, after).into_iter();
        self.refusals.extend(excess.map(|excess| beyond_quota(&self.app, &excess)));
    }

    /// Something outside Wharf may listen on a published port: on some gateways that is worth a warning, on all it cannot work.
    fn foreign(&mut self, world: &World, service: &ServiceName, port: u16) {
        let gateways: Vec<_> = world
            .nodes()
            .filter(|node| node.record.roles.gateway && node.state() == wharf_model::NodeState::Ready)
            .collect();
        let taken: Vec<_> = gateways
            .iter()
            .filter(|node| node.facts().is_some_and(|facts| facts.taken_ports.contains(&port)))
            .map(|node| node.record.name.to_string())
            .collect();
        // A task of this app may hold it by `mode: host` and give it up now.
        let own = world
            .services_of(&self.app)
            .filter_map(|record| world.revision_of(&record.key, record.generation));
        let own = own.flat_map(|revision| &revision.spec.ports).any(|held| held.published == Some(port));
        if taken.is_empty() || own {
            return;
        }
        if taken.len() == gateways.len() {
            self.refusals.push(PlanRefusal::PortForeign { port, service: service.clone(), nodes: taken });
        } else {
            self.warnings.push(format!(
                "port {port}, which service {service} publishes, is taken by another program on {}: it answers on the other nodes only",
                taken.join(", ")
            ));
        }
    }

    fn warn(&mut self, wanted: &AppSpec) {
        for (name, service) in &wanted.services {
            let (repository, tag) = match service.image.rsplit_once(':') {
                Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
                Some(_) | None => (service.image.as_str(), None),
            };
            let pinned = service.image.contains('@');
            if !pinned && tag.is_none_or(|tag| tag == "latest") {
                self.warnings.push(format!(
                    "service {name} uses {repository} without a version (`latest`): the image of this release is kept, \
                     and a later one may be another"
                ));
            }
            let lone = matches!(service.mode, Mode::Replicated { replicas: 0 | 1 });
            let shared = spec::named_volumes(service)
                .find(|(volume, _)| wanted.volumes.get(*volume).is_none_or(spec::is_local));
            if let (false, Some((volume, _))) = (lone, shared) {
                self.warnings.push(format!(
                    "service {name} has several tasks and volume {volume} is local: each of their nodes has data of its own"
                ));
            }
            if service.network_mode == NetworkMode::None && service.ports.iter().any(is_ingress) {
                self.warnings
                    .push(format!("service {name} publishes ports and has no network: nothing can reach it"));
            }
        }
    }
}

fn beyond_quota(app: &AppKey, excess: &Excess) -> PlanRefusal {
    let Excess { thing, wanted, others, limit } = *excess;
    PlanRefusal::Quota { app: app.clone(), thing, wanted, others, limit }
}

fn is_ingress(port: &wharf_model::PortSpec) -> bool {
    port.mode == PublishMode::Ingress
}

fn content_of(file: &wharf_model::FileSpec) -> Option<&str> {
    file.digest.as_deref().or(file.content.as_deref())
}

/// What became of a config or secret that is not what it was.
pub(crate) fn moved(old: &wharf_model::FileSpec, new: &wharf_model::FileSpec) -> String {
    match (old.version, new.version) {
        (Some(old_version), Some(version)) if old.name == new.name => {
            format!("version {old_version} -> {version}")
        }
        (None, Some(version)) => format!("it is external now, at version {version}"),
        (Some(_), None) => "it is no longer external".to_owned(),
        _ if content_of(old) == content_of(new) => "its name changed".to_owned(),
        _ => "its content changed".to_owned(),
    }
}

/// What happens to each wanted service, with what follows from others being replaced.
fn service_changes<'w>(
    current: &Current<'_>,
    wanted: &'w AppSpec,
    images: &BTreeMap<ServiceName, Image>,
) -> BTreeMap<&'w ServiceName, ServiceChange> {
    let mut changes: BTreeMap<_, _> = wanted
        .services
        .iter()
        .map(|(name, spec)| (name, service_change(current, wanted, name, spec, images.get(name))))
        .collect();
    // A replaced dependency takes with it who asked for that, and so on along the order of starts.
    let in_order = spec::in_order(wanted.services.iter().collect(), |(name, spec)| {
        ((*name).clone(), spec::dependencies(spec))
    });
    for (name, spec) in in_order {
        for (on, _) in spec::dependencies(spec).iter().filter(|(_, dependency)| dependency.restart) {
            let replaced = changes.get(on).is_some_and(|change| change.action == Action::Replace);
            let change = changes.get_mut(name).filter(|change| change.action != Action::Create);
            if let (true, Some(change)) = (replaced, change) {
                change.action = Action::Replace;
                change.reasons.push(format!("{on} is replaced, and it restarts with it"));
            }
        }
    }
    changes
}

fn service_change(
    current: &Current<'_>,
    wanted: &AppSpec,
    name: &ServiceName,
    spec: &ServiceSpec,
    image: Option<&Image>,
) -> ServiceChange {
    let (Some(record), Some(revision)) = (current.services.get(name), current.revisions.get(name)) else {
        let reasons = vec![format!("image {}", spec.image), tasks_of_mode(spec.mode)];
        return ServiceChange { action: Action::Create, reasons };
    };
    let image_reason = image.filter(|image| !spec::same_image(image, &revision.image)).map(|image| {
        if image.is_unbuilt() {
            format!("image {} is built", image.reference)
        } else if image.reference == revision.image.reference {
            let short = image.digest.as_deref().or(image.id.as_deref()).unwrap_or("unknown");
            format!("image {} is another now ({})", image.reference, short_digest(short))
        } else {
            format!("image {} -> {}", revision.image.reference, image.reference)
        }
    });
    let hard = differences(&spec::container_part(&revision.spec), &spec::container_part(spec));
    let mut reasons: Vec<_> = image_reason.into_iter().chain(hard).collect();
    reasons.extend(changed_files(current, wanted, revision, spec));
    let moved = spec::attachments(spec).into_iter().filter(|(name, _)| current.is_made_anew(wanted, name));
    reasons.extend(moved.map(|(name, _)| format!("network {name} is made anew")));
    let replaced = !reasons.is_empty();
    if replaced || soft_part_differs(&revision.spec, spec) {
        reasons.extend(soft_differences(&revision.spec, spec));
    }
    let (_, tasks) = record.wanted();
    let mode = (spec.mode != tasks).then(|| mode_reason(tasks, spec.mode));
    reasons.extend(mode);
    if record.stopped {
        reasons.push("it is stopped and starts again".to_owned());
    }
    let action = match (replaced, reasons.is_empty()) {
        (true, _) => Action::Replace,
        (false, false) => Action::Change,
        (false, true) => Action::Keep,
    };
    ServiceChange { action, reasons }
}

pub(crate) fn tasks_of_mode(mode: Mode) -> String {
    match mode {
        Mode::Replicated { replicas: 1 } => "1 task".to_owned(),
        Mode::Replicated { replicas } => format!("{replicas} tasks"),
        Mode::Global => "1 task on every suitable node".to_owned(),
    }
}
pub(crate) fn mode_reason(old: Mode, new: Mode) -> String {
    match (old, new) {
        (Mode::Replicated { replicas: old }, Mode::Replicated { replicas: new }) => {
            format!("{old} -> {new} {}", if new == 1 { "task" } else { "tasks" })
        }
        (_, new) => tasks_of_mode(new),
    }
}
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

fn changed_files(
    current: &Current<'_>,
    wanted: &AppSpec,
    revision: &ServiceRevision,
    spec: &ServiceSpec,
) -> Option<String> {
    let old = &current.release?.spec;
    let before = spec::mounted_digests(&revision.spec, &old.configs, &old.secrets);
    let after = spec::mounted_digests(spec, &wanted.configs, &wanted.secrets);
    let changed = after.iter().filter(|(file, digest)| before.get(*file).is_some_and(|old| old != *digest));
    let names = changed.map(|((kind, name), _)| format!("{kind} {name}")).collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| format!("content of {names} changed"))
}

/// The parts of a service that change without replacing its containers; its number of tasks is compared with the record's.
fn soft_part(spec: &ServiceSpec) -> ServiceSpec {
    let mut part = spec.clone();
    let container = spec::container_part(spec);
    part.container = Default::default();
    part.healthcheck = None;
    part.probe = None;
    part.networks = BTreeMap::new();
    part.placement = Default::default();
    part.resources = Default::default();
    part.configs = Vec::new();
    part.secrets = Vec::new();
    part.network_mode = Default::default();
    part.ports.retain(|port| !container.ports.contains(port));
    part.mode = Default::default();
    part.image = String::new();
    // Each has a line of its own.
    part.policy.routes = Vec::new();
    part
}
fn soft_part_differs(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    soft_part(old) != soft_part(new)
}
fn soft_differences(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    differences(&soft_part(old), &soft_part(new))
}

/// What differs between two specifications, key by key, without any value.
pub(crate) fn differences<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let object = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => serde_json::Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let mut reasons = Vec::new();
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for key in keys {
        match (old.get(key), new.get(key)) {
            (old, new) if old == new => {}
            (old, new) if key == "container" => reasons.extend(differences(
                &old.cloned().unwrap_or_else(|| Value::Object(Default::default())),
                &new.cloned().unwrap_or_else(|| Value::Object(Default::default())),
            )),
            (old, new) if key == "policy" => reasons.extend(history::policy(old, new)),
            (old, new) if matches!(key.as_str(), "environment" | "labels" | "sysctls") => {
                reasons.extend(entries(key, old, new));
            }
            (None, Some(_)) => reasons.push(format!("{key} added")),
            (Some(_), None) => reasons.push(format!("{key} removed")),
            (_, _) => reasons.push(format!("{key} changed")),
        }
    }
    reasons
}
/// `environment LOG_LEVEL changed`: the keys of a map, never its values.
fn entries(what: &str, old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let empty = serde_json::Map::new();
    let map = |value: Option<&'_ Value>| value.and_then(Value::as_object).unwrap_or(&empty).clone();
    let (old, new) = (map(old), map(new));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changed = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let describe = |key: &String| match (old.contains_key(key), new.contains_key(key)) {
        (false, _) => format!("{what} {key} added"),
        (true, false) => format!("{what} {key} removed"),
        (true, true) => format!("{what} {key} changed"),
    };
    changed.map(describe).collect()
}

/// The bytes that say what a plan was worked out from and for: equal if and only if the plans are the same.
fn fingerprint(current: &Current<'_>, wanted: Option<(&AppSpec, &BTreeMap<ServiceName, Image>)>) -> String {
    let base = current.record.map(|record| (record.generation, record.release, record.removed));
    let services: Vec<_> = current.services.values().collect();
    let networks: Vec<_> =
        current.networks.values().map(|network| (network.id, network.subnet, network.backend)).collect();
    let networks = (current.world.backend, networks);
    let bytes = serde_json::to_vec(&(base, services, networks, wanted)).unwrap_or_default();
    hex::encode(&Sha256::digest(bytes)[..16])
}

/// The records of a release: what to commit so that `wanted` becomes the app.
///
/// Carries out exactly what [`plan`] says of the same arguments; the caller has compared fingerprints. The spec's secrets should carry
/// digests only. A release that changes nothing is one too: whether to make it is the caller's choice ([`Plan::is_noop`]).
///
/// # Errors
/// The plan's first refusal.
pub fn release(
    world: &World,
    app: &AppKey,
    wanted: &AppSpec,
    images: &BTreeMap<ServiceName, Image>,
    by: &By,
    now: Timestamp,
) -> Result<Vec<Change>, PlanRefusal> {
    noted_release(world, app, wanted, images, by, &ReleaseNote::default(), now)
}

/// As [`release`], with what its maker says of it.
///
/// # Errors
/// The plan's first refusal.
pub fn noted_release(
    world: &World,
    app: &AppKey,
    wanted: &AppSpec,
    images: &BTreeMap<ServiceName, Image>,
    by: &By,
    note: &ReleaseNote,
    now: Timestamp,
) -> Result<Vec<Change>, PlanRefusal> {
    if let Some(refusal) = plan(world, app, wanted, images).refusals.into_iter().next() {
        return Err(refusal);
    }
    let current = Current::of(world, app);
    let number = next_release(world, app);
    let generation = next_change(&current);
    let mut changes = vec![Change::PutRelease(Release {
        app: app.clone(),
        number,
        spec: wanted.clone(),
        images: images.clone(),
        by: by.clone(),
        created_at: now,
        from: current.record.map(|record| record.release),
        note: note.clone(),
        outcome: None,
    })];
    changes.extend(history::superseded(world, app, now));
    let service_changes = service_changes(&current, wanted, images);
    let mut records = Vec::new();
    for (name, service) in &wanted.services {
        let key = ServiceKey { app: app.clone(), name: name.clone() };
        let old = current.revisions.get(name);
        let action = service_changes.get(name).map_or(Action::Create, |change| change.action);
        let same = old.is_some_and(|old| old.spec == *service);
        // A revision for every difference, since they are immutable; which of them replace containers follows from
        // what differs, or from being asked for.
        let generation = match (old, action) {
            (Some(old), Action::Keep | Action::Change) if same => old.generation,
            (_, action) => {
                let unchanged = old.is_some_and(|old| {
                    spec::container_part(&old.spec) == spec::container_part(service)
                        && images.get(name).is_some_and(|image| spec::same_image(image, &old.image))
                });
                let revision = ServiceRevision {
                    generation: tasks::next_generation(world, &key),
                    key: key.clone(),
                    release: number,
                    spec: service.clone(),
                    image: images
                        .get(name)
                        .cloned()
                        .ok_or_else(|| PlanRefusal::NoImage { service: name.clone() })?,
                    restart: action == Action::Replace && unchanged,
                };
                let generation = revision.generation;
                changes.push(Change::PutRevision(revision));
                generation
            }
        };
        records.push(ServiceRecord::new(key, generation, service.mode));
    }
    let direct = note.rollback_of.is_some();
    let mut records = succeeded(world, &changes, wanted, records, direct);
    for record in world.services_of(app).filter(|record| !wanted.services.contains_key(&record.key.name)) {
        records.push(ServiceRecord { removed: true, ..ServiceRecord::clone(record) });
    }
    records.retain(|record| world.service(&record.key).is_none_or(|stored| **stored != *record));
    // What is returned to has been set up before.
    let hooks = if direct { Default::default() } else { wanted.policy.hooks.clone() };
    let pending = if hooks.before.is_empty() {
        changes.extend(records.into_iter().map(Change::PutService));
        None
    } else {
        // What was tried until now is not tried on while they run.
        let tried = world.services_of(app).filter_map(|record| strategy::withdrawn(record));
        changes.extend(tried.map(Change::PutService));
        Some(records)
    };
    changes.push(Change::PutApp(AppRecord {
        key: app.clone(),
        generation,
        release: number,
        rollout: Rollout {
            release: Some(number),
            hooks,
            pending,
            direct,
            ..rollout(
                generation,
                note.rollback_of.map_or_else(
                    || format!("release {number}"),
                    |of| format!("release {number} (back to {of})"),
                ),
                by,
                now,
                current.record.map(|record| &record.rollout),
            )
        },
        previous: current.record.and_then(|record| previous(world, record, generation)),
        removed: false,
        remove_volumes: false,
        created_at: current.record.map_or(now, |record| record.created_at),
    }));
    Ok(changes)
}

/// The services' records once a release wants them like this, beside or in place of what there is. `changes` makes their revisions.
fn succeeded(
    world: &World,
    changes: &[Change],
    wanted: &AppSpec,
    records: Vec<ServiceRecord>,
    direct: bool,
) -> Vec<ServiceRecord> {
    let strategy = |record: &ServiceRecord| {
        strategy::asked(wanted, &record.key.name, wanted.services.get(&record.key.name)?)
    };
    let stored = |record: &ServiceRecord| world.service(&record.key).filter(|stored| !stored.removed);
    let plain = |record: &ServiceRecord| {
        strategy(record).is_none() && stored(record).is_none_or(|stored| stored.sets.is_empty())
    };
    if records.iter().all(plain) {
        return records;
    }
    // Whether containers are the same can only be seen from revisions and releases that are there.
    let mut after = world.clone();
    changes.iter().for_each(|change| after.apply(change));
    let succeed = |record: ServiceRecord| {
        let stored = stored(&record).map(|stored| &**stored);
        strategy::succeeded(&after, stored, &record, strategy(&record), direct)
    };
    records.into_iter().map(succeed).collect()
}

/// What an app was before a change of it: where a failing release returns to. A release that was not through is no such place, what was
/// before it is; and one of which nothing has begun is none either.
fn previous(world: &World, record: &AppRecord, before: Generation) -> Option<Previous> {
    let rollout = &record.rollout;
    let unfinished = |previous: &&Previous| {
        !rollout.state.is_over()
            && previous.before == rollout.generation
            && !crate::rollout::is_return(record, previous)
    };
    if let Some(previous) = record.previous.as_ref().filter(unfinished) {
        return Some(Previous { before, ..previous.clone() });
    }
    let services = world.services_of(&record.key).filter(|service| !service.removed);
    let alone = |service: &std::sync::Arc<ServiceRecord>| ServiceRecord {
        sets: Vec::new(),
        ..ServiceRecord::clone(service)
    };
    let services: Vec<_> = services.map(alone).collect();
    (!services.is_empty()).then_some(Previous { before, release: record.release, services })
}

fn next_release(world: &World, app: &AppKey) -> ReleaseNumber {
    let highest = world.releases_of(app).map(|release| release.number).max();
    ReleaseNumber(highest.map_or(1, |highest| highest.0 + 1))
}
fn next_change(current: &Current<'_>) -> Generation {
    Generation(current.record.map_or(1, |record| record.generation.0 + 1))
}
fn rollout(
    generation: Generation,
    what: String,
    by: &By,
    now: Timestamp,
    before: Option<&Rollout>,
) -> Rollout {
    // One that had not ended has now: this takes its place.
    let superseded = |before: &Rollout| wharf_model::EndedRollout {
        generation: before.generation,
        state: RolloutState::Superseded,
    };
    let before = before.map(|before| before.end().unwrap_or_else(|| superseded(before)));
    Rollout { before, ..Rollout::begin(generation, what, by.clone(), now) }
}

/// A change of an app that is no release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// So many tasks for each of these services.
    Scale(BTreeMap<ServiceName, u32>),
    /// No tasks for these services, or for all if none is named.
    Stop(Vec<ServiceName>),
    /// Tasks again for these services, or for all if none is named.
    Start(Vec<ServiceName>),
    /// New tasks for these services, or for all if none is named, one after the other as the update policy says.
    Restart(Vec<ServiceName>),
    /// The whole app goes.
    Down {
        /// With its volumes and their data.
        volumes: bool,
    },
}
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, verb: &str, names: &[ServiceName]| {
            f.write_str(verb)?;
            names.iter().try_for_each(|name| write!(f, " {name}"))
        };
        match self {
            Self::Scale(numbers) => {
                f.write_str("scale")?;
                numbers.iter().try_for_each(|(name, replicas)| write!(f, " {name}={replicas}"))
            }
            Self::Stop(names) => list(f, "stop", names),
            Self::Start(names) => list(f, "start", names),
            Self::Restart(names) => list(f, "restart", names),
            Self::Down { volumes: false } => f.write_str("down"),
            Self::Down { volumes: true } => f.write_str("down --volumes"),
        }
    }
}

/// The records that a request changes; empty if all is so already.
///
/// # Errors
/// If there is no such app or service, or the request does not fit it.
pub fn request(
    world: &World,
    app: &AppKey,
    request: &Request,
    by: &By,
    now: Timestamp,
) -> Result<Vec<Change>, PlanRefusal> {
    let current = Current::of(world, app);
    let record = current.record.ok_or_else(|| PlanRefusal::NoApp { app: app.clone() })?;
    let down = matches!(request, Request::Down { .. });
    if record.removed && !down {
        return Err(PlanRefusal::BeingRemoved);
    }
    let tried = current.services.values().any(|service| service.next().is_some());
    if !down && (tried || record.rollout.pending.is_some()) {
        return Err(PlanRefusal::Undecided { what: record.rollout.what.clone() });
    }
    let mut changes = match request {
        Request::Scale(numbers) => scale(&current, numbers)?,
        Request::Stop(names) => edit(&current, names, |record| record.stopped = true)?,
        Request::Start(names) => edit(&current, names, |record| record.stopped = false)?,
        Request::Restart(names) => restart(world, &current, names)?,
        Request::Down { .. } => Vec::new(),
    };
    let asks_for_more = match request {
        Request::Scale(_) | Request::Start(_) => true,
        Request::Stop(_) | Request::Restart(_) | Request::Down { .. } => false,
    };
    if asks_for_more {
        let after = current.services.values().map(|record| {
            let changed = changes.iter().find_map(|change| match change {
                Change::PutService(changed) if changed.key == record.key => Some(changed),
                _ => None,
            });
            changed.unwrap_or(record).clone()
        });
        if let Some(excess) = quota::excess(world, app, quota::wanted_by(world, after)).first() {
            return Err(beyond_quota(app, excess));
        }
    }
    let volumes = *request == Request::Down { volumes: true };
    let nothing = match request {
        Request::Down { .. } => record.removed && (record.remove_volumes || !volumes),
        Request::Scale(_) | Request::Stop(_) | Request::Start(_) | Request::Restart(_) => changes.is_empty(),
    };
    if nothing {
        return Ok(Vec::new());
    }
    let generation = next_change(&current);
    changes.extend(history::superseded(world, app, now));
    changes.push(Change::PutApp(AppRecord {
        generation,
        rollout: rollout(generation, request.to_string(), by, now, Some(&record.rollout)),
        removed: down,
        remove_volumes: record.remove_volumes || volumes,
        ..record.clone()
    }));
    Ok(changes)
}

fn named<'c>(current: &Current<'c>, names: &[ServiceName]) -> Result<Vec<&'c ServiceRecord>, PlanRefusal> {
    if names.is_empty() {
        return Ok(current.services.values().copied().collect());
    }
    let find = |name: &ServiceName| {
        current.services.get(name).copied().ok_or_else(|| PlanRefusal::NoService { service: name.clone() })
    };
    names.iter().map(find).collect()
}
fn edit(
    current: &Current<'_>,
    names: &[ServiceName],
    edit: impl Fn(&mut ServiceRecord),
) -> Result<Vec<Change>, PlanRefusal> {
    let edited = named(current, names)?.into_iter().filter_map(|record| {
        let mut edited = record.clone();
        edit(&mut edited);
        (edited != *record).then_some(Change::PutService(edited))
    });
    Ok(edited.collect())
}
fn scale(current: &Current<'_>, numbers: &BTreeMap<ServiceName, u32>) -> Result<Vec<Change>, PlanRefusal> {
    let mut changes = Vec::new();
    for (name, replicas) in numbers {
        for record in named(current, std::slice::from_ref(name))? {
            let mode = Mode::Replicated { replicas: *replicas };
            let revision = current.revisions.get(name);
            let fixed =
                revision.is_some_and(|revision| {
                    revision.spec.networks.values().any(|attachment| {
                        attachment.ipv4_address.is_some() || attachment.ipv6_address.is_some()
                    })
                });
            if record.mode == Mode::Global {
                return Err(PlanRefusal::Global { service: name.clone() });
            }
            if fixed && *replicas > 1 {
                return Err(PlanRefusal::OneTaskOnly { service: name.clone() });
            }
            if record.mode != mode {
                changes.push(Change::PutService(ServiceRecord { mode, ..record.clone() }));
            }
        }
    }
    Ok(changes)
}
fn restart(world: &World, current: &Current<'_>, names: &[ServiceName]) -> Result<Vec<Change>, PlanRefusal> {
    let asked: Vec<_> = named(current, names)?.iter().map(|record| &record.key.name).collect();
    let mut restarted: BTreeSet<_> = asked.into_iter().collect();
    let in_order = spec::in_order(current.revisions.values().copied().collect(), |revision| {
        (revision.key.name.clone(), spec::dependencies(&revision.spec))
    });
    let mut changes = Vec::new();
    for revision in in_order {
        let dependencies = spec::dependencies(&revision.spec);
        let follows =
            dependencies.iter().any(|(on, dependency)| dependency.restart && restarted.contains(on));
        if !follows && !restarted.contains(&revision.key.name) {
            continue;
        }
        restarted.insert(&revision.key.name);
        let generation = tasks::next_generation(world, &revision.key);
        changes.push(Change::PutRevision(ServiceRevision { generation, restart: true, ..revision.clone() }));
        if let Some(record) = current.services.get(&revision.key.name) {
            let record = ServiceRecord { generation, stopped: false, ..(*record).clone() };
            changes.push(Change::PutService(record));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use wharf_model::DependencyCondition;

    use super::*;
    use crate::fixtures::{
        self, Cluster, after, app, app_key, images, published, replicas, service, with_volume,
    };

    fn planned(cluster: &Cluster, spec: &AppSpec) -> Plan {
        plan(&cluster.world, &app_key(), spec, &images(spec))
    }
    fn shop() -> AppSpec {
        let web = published(service("wordpress"), 8080, PublishMode::Ingress);
        app(&[
            ("db", with_volume(service("mariadb"), "db_data")),
            ("web", after(web, "db", DependencyCondition::ServiceHealthy)),
        ])
    }

    #[test]
    fn services_outside_are_planned_and_start_nothing() {
        let outside = |host: &str| {
            let mut spec = app(&[("web", after(service("web"), "db", DependencyCondition::ServiceHealthy))]);
            let networks =
                BTreeMap::from([("default".parse().unwrap(), wharf_model::NetworkAttachment::default())]);
            let external =
                wharf_model::ExternalService { host: host.parse().unwrap(), ports: vec![3306], networks };
            spec.externals.insert("db".parse().unwrap(), external);
            spec
        };
        let mut cluster = Cluster::of(1);
        let first = planned(&cluster, &outside("db.example.com")).to_string();
        assert!(first.contains("+ external db: at db.example.com\n"), "{first}");
        cluster.up(&outside("db.example.com"));
        cluster.settle();
        let tasks: Vec<_> = cluster.world.tasks().map(|task| (task.name(), task.is_ready())).collect();
        assert_eq!(
            tasks,
            [("shop-web-1".to_owned(), true)],
            "what depends on it starts; nothing is started for it"
        );
        assert_eq!(planned(&cluster, &outside("db.example.com")).to_string(), "");
        let moved = planned(&cluster, &outside("10.0.0.7")).to_string();
        assert_eq!(moved, "~ external db: db.example.com -> 10.0.0.7\n");
        let gone = planned(&cluster, &app(&[("web", service("web"))])).to_string();
        assert!(gone.contains("- external db: no longer in the file\n"), "{gone}");
    }

    #[test]
    fn a_change_of_policy_replaces_no_container() {
        let with = |replicas| {
            let mut web = service("web");
            web.policy.priority = Some(wharf_model::Priority::High);
            web.policy.availability = Some(wharf_model::AvailabilityMinimum {
                over: "node.labels.zone".into(),
                at_least: replicas,
                soft: true,
            });
            app(&[("web", web)])
        };
        let mut cluster = Cluster::of(1);
        cluster.up(&with(2));
        cluster.settle();
        assert_eq!(planned(&cluster, &with(3)).to_string(), "~ service  web: availability changed\n");
        let plain = app(&[("web", service("web"))]);
        assert_eq!(
            planned(&cluster, &plain).to_string(),
            "~ service  web: availability removed, priority removed\n"
        );
    }

    #[test]
    fn a_first_plan_creates_everything_dependencies_first() {
        insta::assert_snapshot!(planned(&Cluster::of(1), &shop()), @r"
        + network  default
        + volume   db_data
        + service  db: image mariadb:1, 1 task
        + service  web: image wordpress:1, 1 task
        ");
    }

    #[test]
    fn a_plan_says_what_differs_and_never_a_value() {
        let mut cluster = Cluster::of(1);
        let mut before = shop();
        let web: ServiceName = "web".parse().unwrap();
        let environment = &mut before.services.get_mut(&web).unwrap().container.environment;
        environment.insert("LOG_LEVEL".into(), Some("info".into()));
        environment.insert("OLD".into(), Some("s3cret".into()));
        cluster.up(&before);
        cluster.settle();

        let mut spec = shop();
        let db = spec.services.get_mut(&"db".parse::<ServiceName>().unwrap()).unwrap();
        db.image = "mariadb:2".into();
        let service = spec.services.get_mut(&web).unwrap();
        service.container.environment.insert("LOG_LEVEL".into(), Some("debug".into()));
        service.container.command = Some(vec!["--password=hunter2".into()]);
        service.update.parallelism = 2;
        service.mode = Mode::Replicated { replicas: 3 };
        spec.services.insert("cache".parse().unwrap(), fixtures::service("redis"));
        let plan = planned(&cluster, &spec);
        insta::assert_snapshot!(plan, @r"
        + service  cache: image redis:1, 1 task
        ± service  db: image mariadb:1 -> mariadb:2 (the old task stops before the new one starts: two tasks must not write to volume db_data at once)
        ± service  web: command added, environment LOG_LEVEL changed, environment OLD removed, update added, 1 -> 3 tasks
        ");
        let text = format!("{plan:?}");
        assert!(!text.contains("hunter2") && !text.contains("s3cret") && !text.contains("debug"), "{text}");
    }

    #[test]
    fn an_unchanged_file_plans_nothing_and_a_soft_change_replaces_nothing() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        assert!(planned(&cluster, &shop()).is_noop());
        let mut spec = shop();
        let web = spec.services.get_mut(&"web".parse::<ServiceName>().unwrap()).unwrap();
        web.restart.condition = wharf_model::RestartCondition::OnFailure;
        insta::assert_snapshot!(planned(&cluster, &spec), @"~ service  web: restart added");
    }

    #[test]
    fn what_is_removed_is_named_and_data_is_kept() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        let plan =
            planned(&cluster, &app(&[("web", published(service("wordpress"), 8080, PublishMode::Ingress))]));
        insta::assert_snapshot!(plan, @r"
        ~ service  web: depends_on removed
        - service  db: no longer in the file
        ");
        let kept = plan.operations.iter().find(|operation| operation.thing == Thing::Volume).unwrap();
        insta::assert_snapshot!(kept, @"= volume   db_data (no longer in the file; its data is kept)");
    }

    #[test]
    fn a_port_that_another_program_has_is_a_warning_on_some_gateways_and_a_refusal_on_all() {
        let mut cluster = Cluster::of(2);
        let occupy = |cluster: &mut Cluster, n: u8| {
            let id = fixtures::node_id(n);
            let mut record = cluster.world.node(id).unwrap().record.clone();
            record.roles.gateway = true;
            cluster.world.insert_node(record);
            let mut status = cluster.world.node(id).unwrap().status.clone().unwrap();
            status.facts.as_mut().unwrap().taken_ports = vec![8080];
            cluster.world.set_node_status(id, status);
        };
        let mut other = cluster.world.node(fixtures::node_id(2)).unwrap().record.clone();
        other.roles.gateway = true;
        cluster.world.insert_node(other);
        occupy(&mut cluster, 1);
        let some = planned(&cluster, &shop());
        occupy(&mut cluster, 2);
        let all = planned(&cluster, &shop());

        assert_eq!(some.refusals, []);
        assert!(
            some.warnings
                .iter()
                .any(|text| text.contains("port 8080, which service web publishes, is taken")),
            "{some}"
        );
        assert_eq!(all.refusals.len(), 1, "{all}");
        let text = all.refusals[0].to_string();
        assert!(text.contains("port 8080") && text.contains("hint: "), "{text}");
    }

    #[test]
    fn a_port_of_another_app_is_refused_with_its_name() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        let other = AppKey { name: "blog".parse().unwrap(), ..app_key() };
        let spec = app(&[("front", published(service("nginx"), 8080, PublishMode::Ingress))]);
        let plan = plan(&cluster.world, &other, &spec, &images(&spec));
        insta::assert_snapshot!(plan.refusals[0], @"service front publishes port 8080/tcp, which belongs to service web of app shop in prod; hint: publish another port, or take that app down");
        assert!(!plan.is_noop());
        let changes = release(&cluster.world, &other, &spec, &images(&spec), &By::default(), cluster.now);
        assert!(changes.is_err());
    }

    #[test]
    fn a_port_of_two_services_of_one_app_is_refused_with_both_names() {
        let cluster = Cluster::of(1);
        let both = ["a", "b"].map(|name| (name, published(service("nginx"), 8080, PublishMode::Ingress)));
        let spec = app(&both);
        let plan = plan(&cluster.world, &app_key(), &spec, &images(&spec));
        insta::assert_snapshot!(plan.refusals[0], @"services a and b both publish port 8080/tcp; hint: publish another port, or choose from a range with a port for each");
        assert_eq!(plan.refusals.len(), 1);
    }

    #[test]
    fn latest_is_warned_about_and_so_is_shared_local_data() {
        let mut web = with_volume(replicas(service("web"), 2), "uploads");
        web.image = "registry.example:5000/shop/web".into();
        let plan = planned(&Cluster::of(1), &app(&[("web", web)]));
        insta::assert_snapshot!(plan.warnings.join("\n"), @r"
        service web uses registry.example:5000/shop/web without a version (`latest`): the image of this release is kept, and a later one may be another
        service web has several tasks and volume uploads is local: each of their nodes has data of its own
        ");
    }

    #[test]
    fn a_new_digest_under_the_same_tag_replaces() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        let mut newer = images(&shop());
        newer.get_mut(&"web".parse::<ServiceName>().unwrap()).unwrap().digest =
            Some("sha256:0123456789abcdef".into());
        let plan = plan(&cluster.world, &app_key(), &shop(), &newer);
        insta::assert_snapshot!(plan, @"± service  web: image wordpress:1 is another now (0123456789ab)");
    }

    #[test]
    fn a_fingerprint_covers_the_state_and_what_is_wanted() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        let mut spec = shop();
        spec.services.get_mut(&"web".parse::<ServiceName>().unwrap()).unwrap().image = "wordpress:2".into();
        let first = planned(&cluster, &spec).fingerprint;
        assert_eq!(first, planned(&cluster, &spec).fingerprint);
        assert_ne!(first, planned(&cluster, &shop()).fingerprint, "another wish");
        cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 2)])));
        assert_ne!(first, planned(&cluster, &spec).fingerprint, "another state");
    }

    #[test]
    fn a_plan_to_take_down_names_what_goes_with_its_data() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        insta::assert_snapshot!(plan_down(&cluster.world, &app_key(), true), @r"
        - service  web: 1 task stops
        - service  db: 1 task stops
        - network  default
        - volume   db_data: data on n1 is deleted
        ");
        assert!(!plan_down(&cluster.world, &app_key(), false).to_string().contains("db_data"));
    }

    #[test]
    fn requests_that_change_nothing_write_nothing_and_senseless_ones_say_why() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        let ask = |asked: &Request| request(&cluster.world, &app_key(), asked, &By::default(), cluster.now);
        assert_eq!(ask(&Request::Start(vec![])), Ok(vec![]));
        assert_eq!(ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 1)]))), Ok(vec![]));
        let missing = ask(&Request::Restart(vec!["nope".parse().unwrap()])).unwrap_err();
        insta::assert_snapshot!(missing, @"the app has no service nope");
    }

    fn with_network(network: wharf_model::NetworkSpec) -> AppSpec {
        let mut spec = shop();
        spec.networks.insert("default".parse().unwrap(), network);
        spec
    }

    #[test]
    fn a_network_that_moves_says_what_that_means_and_replaces_its_services() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        let moved = with_network(wharf_model::NetworkSpec {
            subnet: Some("10.9.0.0/24".parse().unwrap()),
            ..Default::default()
        });
        insta::assert_snapshot!(planned(&cluster, &moved), @r"
        ± network  default: subnet 10.192.0.0/20 -> 10.9.0.0/24 (its 2 tasks are replaced one after another; until all have moved, those that have and those that have not do not reach each other over this network, nor find each other's names)
        ± service  db: network default is made anew (the old task stops before the new one starts: two tasks must not write to volume db_data at once)
        ± service  web: network default is made anew
        ");
    }

    #[test]
    fn a_backend_that_changes_in_place_replaces_nothing() {
        let mut cluster = Cluster::of(1);
        cluster.up(&shop());
        cluster.settle();
        let to =
            |backend| with_network(wharf_model::NetworkSpec { backend: Some(backend), ..Default::default() });
        insta::assert_snapshot!(planned(&cluster, &to(Backend::Routed)), @"~ network  default: backend vxlan -> routed (in place: its 2 tasks keep running, with their addresses; packets between nodes are lost for a moment while the nodes change over; until they are replaced each has a route of its own)");
        insta::assert_snapshot!(planned(&cluster, &to(Backend::Vxlan)), @"~ network  default: backend added");
        insta::assert_snapshot!(planned(&cluster, &to(Backend::Macvlan)), @r"
        ± network  default: backend vxlan -> macvlan (its 2 tasks are replaced one after another; until all have moved, those that have and those that have not do not reach each other over this network, nor find each other's names)
        ± service  db: network default is made anew (the old task stops before the new one starts: two tasks must not write to volume db_data at once)
        ± service  web: network default is made anew
        refused: network default cannot be made: a macvlan network is on the nodes' own segment and needs its subnet; hint: add it under `ipam`
        ");
        let all = plan_backend(&cluster.world, Backend::Wireguard).unwrap();
        insta::assert_snapshot!(all[0].1, @"~ network  default of shop: backend vxlan -> wireguard (in place: its 2 tasks keep running, with their addresses; packets between nodes are lost for a moment while the nodes change over)");
        insta::assert_snapshot!(plan_backend(&cluster.world, Backend::Host).unwrap_err(), @"`host` cannot be the default of a cluster: it is chosen for one network; hint: use vxlan, routed or wireguard");
    }

    #[test]
    fn what_overlaps_a_nodes_own_network_is_refused_before_anything_is_made() {
        let mut cluster = Cluster::of(2);
        let mut status = cluster.world.node(fixtures::node_id(2)).unwrap().status.clone().unwrap();
        status.facts.as_mut().unwrap().subnets = vec![wharf_model::HostSubnet {
            subnet: "172.16.0.0/12".parse().unwrap(),
            interface: "tun0".into(),
            router: Some("10.8.0.1".parse().unwrap()),
        }];
        cluster.world.set_node_status(fixtures::node_id(2), status);
        let spec = with_network(wharf_model::NetworkSpec {
            subnet: Some("172.20.0.0/24".parse().unwrap()),
            ..Default::default()
        });
        insta::assert_snapshot!(planned(&cluster, &spec).refusals[0], @"network default cannot be made: the subnet 172.20.0.0/24 overlaps what node n2 reaches by itself (172.16.0.0/12 via 10.8.0.1 on tun0); hint: choose another subnet, or leave it out, and the cluster finds one that is free on all nodes");
        // One network takes the place of another only if it has room of its own.
        let macvlan = |parent: &str| {
            with_network(wharf_model::NetworkSpec {
                subnet: Some("10.0.0.0/24".parse().unwrap()),
                ip_range: Some("10.0.0.128/26".parse().unwrap()),
                gateway: Some("10.0.0.254".parse().unwrap()),
                backend: Some(Backend::Macvlan),
                parent: Some(parent.into()),
                ..Default::default()
            })
        };
        cluster.up(&macvlan("eth0"));
        cluster.settle();
        insta::assert_snapshot!(planned(&cluster, &macvlan("eth0.100")).refusals[0], @"the parent of network default cannot change while it is in use; hint: `wharf down` the app first, or use a network of another name or subnet");
    }
}
