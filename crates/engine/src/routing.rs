//! What every route of every service leads to now.
//!
//! - A service's routes are those of the generation that serves. A task whose container would be made the same today answers by them as
//!   they are; one of another generation by those that its own generation has as well, at the port it has there: nobody is sent to a port
//!   that a task does not listen on.
//! - A route that only tasks of an earlier generation have stays until these go. One that a release gives to another service is answered by
//!   the first until the other is ready for it.
//! - What a release removes serves until the rest of it is in place: a route that another service takes over leads to the tasks of both.
//! - A route that a release adds begins when a task is ready for it; until then whatever answered before does. Once the release is over it
//!   is there, with tasks or without.
//! - Only ready tasks that nobody asked to stop are led to. Everything is sorted: equal states give equal tables.

mod files;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use wharf_model::{
    AppKey, Endpoint, EndpointSet, Fallback, Generation, NetworkMode, NetworkName, Previous, Protocol,
    ReleaseStrategy, RouteId, RouteProtocol, RouteSpec, RouteTls, ServiceKey, ServiceName, ServiceRecord,
    ServiceRevision, ServiceRoute, ServiceSpec, TaskId, Users,
};

pub use files::{Pem, RouteSecret, SecretUse, route_secrets, split_pem, user_lines};
pub(crate) use files::{certificates, users};
pub use plan::{RouteConflict, RouteRefusal, claims};
pub(crate) use plan::{check, gateway_ports, lines, operations};

use crate::{Assigner, World, rollout, spec, strategy};

/// What part of a service's requests the tasks of one generation get together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Each as much as any other: what a rolling release does.
    Even,
    /// So many parts beside the parts of other generations, however many tasks it has. Nothing with 0.
    Weight(u32),
    /// What is asked of the host at which the release is tried, and nothing else.
    Preview,
    /// Nothing.
    Hidden,
}
impl Share {
    /// Whether a service's own routes lead to it.
    const fn is_led_to(self) -> bool {
        match self {
            Self::Even | Self::Weight(_) => true,
            Self::Preview | Self::Hidden => false,
        }
    }
}

/// Every route of every service with where it leads now, in order, without the passwords that are asked for.
pub fn service_routes(world: &World) -> Vec<ServiceRoute> {
    Assigner::new(world).into_service_routes()
}

/// As [`service_routes`], with what an assigner has worked out already.
pub(crate) fn routes(assigner: &Assigner<'_>) -> Vec<ServiceRoute> {
    let world = assigner.world();
    let mut routes = Vec::new();
    for app in world.apps().filter(|app| !app.removed) {
        let services = world.services_of(&app.key).filter_map(|record| Routed::of(assigner, record));
        let (mut removed, mut services): (Vec<_>, Vec<_>) =
            services.partition(|service| service.record.removed);
        removed.iter_mut().for_each(|service| service.hand_over(&mut services));
        services.append(&mut removed);
        let coming: Vec<_> = services.iter().flat_map(Routed::coming).cloned().collect();
        routes.extend(services.into_iter().flat_map(|service| service.routes(assigner, &coming)));
    }
    routes
}

/// The networks of an app on which gateways need addresses: the first of each service to which published ports or routes lead, or that of
/// the service whose network it shares.
pub(crate) fn entries<'s>(
    services: &BTreeMap<&'s ServiceName, &'s ServiceSpec>,
) -> BTreeSet<&'s NetworkName> {
    let mut led_to = BTreeSet::new();
    for (name, spec) in services {
        let routes = &spec.policy.routes;
        if !routes.is_empty() || spec::ingress_ports(spec).next().is_some() {
            led_to.insert(*name);
        }
        led_to.extend(routes.iter().flat_map(others));
    }
    let network = |name: &'s ServiceName| {
        let mut spec = *services.get(name)?;
        // As many steps as there are services: a circle, which no file can have, ends.
        for _ in services {
            match &spec.network_mode {
                NetworkMode::Service(other) => spec = services.get(other)?,
                NetworkMode::Networks | NetworkMode::Host | NetworkMode::None | NetworkMode::Bridge => break,
            }
        }
        spec::attachments(spec).into_iter().next().map(|(name, _)| name)
    };
    led_to.into_iter().filter_map(network).collect()
}

/// The other services that a route may lead to.
fn others(route: &RouteSpec) -> impl Iterator<Item = &ServiceName> {
    let fallback = match &route.fallback {
        Some(Fallback::Service { service, .. }) => Some(service),
        Some(Fallback::Answer { .. }) | None => None,
    };
    fallback.into_iter().chain(route.mirror.as_ref().map(|mirror| &mirror.service))
}

/// Whether two routes take the same requests, their hosts aside.
fn takes_alike(one: &RouteSpec, other: &RouteSpec) -> bool {
    // Methods are a set, and a prefix is the same with and without the last slash.
    let methods = |route: &RouteSpec| route.methods.iter().cloned().collect::<BTreeSet<_>>();
    one.gateway_port() == other.gateway_port()
        && transport(one) == transport(other)
        && layer(one) == layer(other)
        && path(one) == path(other)
        && one.headers == other.headers
        && methods(one) == methods(other)
}
const fn transport(route: &RouteSpec) -> Protocol {
    match route.protocol {
        RouteProtocol::Udp => Protocol::Udp,
        RouteProtocol::Http | RouteProtocol::H2c | RouteProtocol::Tcp => Protocol::Tcp,
    }
}
fn path(route: &RouteSpec) -> &str {
    route.path.as_deref().unwrap_or_default().trim_end_matches('/')
}

/// What a gateway reads of a connection to know whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// The requests on it.
    Requests,
    /// The name that its TLS handshake begins with.
    ServerName,
    /// Nothing: the port says it.
    Port,
}
const fn layer(route: &RouteSpec) -> Layer {
    if route.sees_requests() {
        return Layer::Requests;
    }
    match (route.protocol, &route.tls) {
        (RouteProtocol::Udp, _) | (_, RouteTls::Off) => Layer::Port,
        (_, RouteTls::Auto | RouteTls::Certificate(_) | RouteTls::Passthrough) => Layer::ServerName,
    }
}

/// Whether a route takes what another takes, for at least one of that one's hosts.
fn has(own: &RouteSpec, wanted: &RouteSpec) -> bool {
    let hosts = own.hosts.is_empty() || wanted.hosts.iter().any(|host| own.hosts.contains(host));
    hosts && takes_alike(own, wanted)
}

/// Whether two routes take the same requests, for some host.
fn meet(one: &RouteSpec, other: &RouteSpec) -> bool {
    has(one, other) || has(other, one)
}

/// A ready task that a service's routes may lead to.
struct Serving<'w> {
    task: TaskId,
    address: Ipv4Addr,
    revision: &'w ServiceRevision,
    share: Share,
    /// It is of the set that serves everybody.
    serves: bool,
}
impl Serving<'_> {
    fn at(&self, port: u16) -> Endpoint {
        Endpoint::new(self.task, SocketAddrV4::new(self.address, port))
    }
    /// Its part of a route. Connections that nobody looks into are not divided by shares: they go to the set that serves.
    fn entry(&self, route: &RouteSpec, port: u16) -> Option<(Generation, Share, Endpoint)> {
        let share = match (route.sees_requests(), self.serves) {
            (true, _) => self.share,
            (false, true) => Share::Even,
            (false, false) => return None,
        };
        Some((self.revision.generation, share, self.at(port)))
    }
}

/// The ready tasks of a service that can be reached.
fn serving<'w>(assigner: &Assigner<'w>, service: &ServiceRecord) -> Vec<Serving<'w>> {
    let world = assigner.world();
    let mut standings = BTreeMap::new();
    let tasks = world.tasks_of(&service.key).filter(|task| assigner.is_up(task));
    let serving = tasks.filter_map(|task| {
        let standing = |generation| {
            let key = &service.key;
            (strategy::share(world, key, generation), strategy::serves(world, key, generation))
        };
        let (share, serves) = *standings.entry(task.generation).or_insert_with(|| standing(task.generation));
        let revision = world.revision_of(&service.key, task.generation)?;
        Some(Serving { task: task.id, address: assigner.entry_address(task)?, revision, share, serves })
    });
    serving.collect()
}

/// A service with routes.
struct Routed<'w> {
    record: &'w ServiceRecord,
    /// Its ready tasks.
    serving: Vec<Serving<'w>>,
    /// One for each route of the generation that serves, then those that only tasks of earlier ones have.
    drafts: Vec<Draft>,
    /// Which of the former nothing leads anywhere yet, although the release under way adds them.
    coming: BTreeSet<usize>,
    /// The generations whose tasks answer by the routes as they are now.
    following: BTreeSet<Generation>,
}

impl<'w> Routed<'w> {
    fn of(assigner: &Assigner<'w>, record: &'w ServiceRecord) -> Option<Self> {
        let world = assigner.world();
        let key = &record.key;
        if world.revisions_of(key).all(|revision| revision.spec.policy.routes.is_empty()) {
            return None;
        }
        let base = world.revision_of(key, record.generation)?;
        let current = &base.spec.policy.routes;
        let serving = serving(assigner, record);
        let others: BTreeMap<_, _> =
            serving.iter().map(|task| (task.revision.generation, task.revision)).collect();
        let following = others.into_iter().filter(|(_, other)| spec::same_container(world, other, base));
        let mut routed = Self {
            record,
            drafts: current.iter().map(|route| Draft::new(route.clone())).collect(),
            coming: BTreeSet::new(),
            following: following.map(|(generation, _)| generation).collect(),
            serving,
        };
        routed.lead(current);
        let without = routed.drafts.iter().enumerate().filter(|(_, draft)| draft.sets.is_empty());
        let coming = without.filter(|(_, draft)| is_coming(world, record, &draft.route));
        routed.coming = coming.map(|(number, _)| number).collect();
        routed.leave(current);
        Some(routed)
    }

    /// The tasks to which routes lead that are there now.
    fn visible(&self) -> impl Iterator<Item = &Serving<'w>> {
        self.serving.iter().filter(|task| task.share.is_led_to())
    }
    /// Leads the current routes to every task that has them.
    fn lead(&mut self, current: &[RouteSpec]) {
        let mut sets: Vec<Vec<_>> = vec![Vec::new(); current.len()];
        for task in self.visible() {
            let own = &task.revision.spec.policy.routes;
            let follows = self.following.contains(&task.revision.generation);
            for (set, route) in sets.iter_mut().zip(current) {
                let elsewhere = || own.iter().find(|own| has(own, route)).map(|own| own.port);
                let port = if follows { Some(route.port) } else { elsewhere() };
                set.extend(port.and_then(|port| task.entry(route, port)));
            }
        }
        for (draft, set) in self.drafts.iter_mut().zip(sets) {
            draft.sets = set;
        }
    }
    /// Keeps what only tasks of earlier generations have. A share of a service's requests is no reason for routes of which the others know
    /// nothing.
    fn leave(&mut self, current: &[RouteSpec]) {
        let mut left: Vec<Draft> = Vec::new();
        let earlier =
            self.visible().filter(|task| task.serves && !self.following.contains(&task.revision.generation));
        for task in earlier {
            for own in task.revision.spec.policy.routes.iter().filter_map(|own| left_over(own, current)) {
                add(&mut left, own, task);
            }
        }
        self.drafts.append(&mut left);
    }
    /// What its last release answered and this one gives to another service, which is not ready for it yet.
    fn moving(&self, world: &World, coming: &[RouteSpec]) -> Vec<Draft> {
        let before = before_release(world, self.record).map(|revision| &revision.spec.policy.routes);
        let current: Vec<_> = self.drafts.iter().map(|draft| draft.route.clone()).collect();
        let mut moving = Vec::new();
        for own in before.into_iter().flatten().filter_map(|own| left_over(own, &current)) {
            if !coming.iter().any(|route| meet(&own, route)) {
                continue;
            }
            let followers = self
                .visible()
                .filter(|task| task.serves && self.following.contains(&task.revision.generation));
            for task in followers {
                add(&mut moving, own.clone(), task);
            }
        }
        moving
    }
    fn coming(&self) -> impl Iterator<Item = &RouteSpec> {
        self.coming.iter().filter_map(|number| self.drafts.get(*number)).map(|draft| &draft.route)
    }
    /// Of a service that a release removes: those that take over its routes lead to its tasks beside their own.
    fn hand_over(&mut self, others: &mut [Self]) {
        for draft in &mut self.drafts {
            let mut left = Some(draft.route.clone());
            for other in &mut *others {
                for (number, taken) in other.drafts.iter_mut().enumerate() {
                    if !meet(&draft.route, &taken.route) {
                        continue;
                    }
                    let tasks = self.serving.iter().filter(|task| task.share.is_led_to());
                    taken.sets.extend(tasks.filter_map(|task| task.entry(&taken.route, draft.route.port)));
                    if !taken.sets.is_empty() {
                        other.coming.remove(&number);
                    }
                    left = left.and_then(|left| left_over(&left, std::slice::from_ref(&taken.route)));
                }
            }
            match left {
                Some(route) => draft.route = route,
                None => draft.sets.clear(),
            }
        }
    }

    fn routes(mut self, assigner: &Assigner<'_>, coming: &[RouteSpec]) -> Vec<ServiceRoute> {
        let key = &self.record.key;
        let mut moving = self.moving(assigner.world(), coming);
        let previews = previews(assigner, key, &self.serving);
        self.drafts.append(&mut moving);
        let mut routes = Vec::new();
        for (number, draft) in self.drafts.into_iter().enumerate() {
            let hidden = self.coming.contains(&number) || (self.record.removed && draft.sets.is_empty());
            let (false, Ok(number)) = (hidden, u16::try_from(number)) else { continue };
            routes.push(draft.finish(assigner, RouteId { service: key.clone(), number, preview: false }));
        }
        routes.extend(previews);
        routes
    }
}

/// Adds a task to the draft of a route that is not current, or to a new one.
fn add(drafts: &mut Vec<Draft>, route: RouteSpec, task: &Serving<'_>) {
    let entry = task.entry(&route, route.port);
    let same = |draft: &Draft| draft.route.hosts == route.hosts && takes_alike(&draft.route, &route);
    match drafts.iter_mut().find(|draft| same(draft)) {
        Some(draft) => draft.sets.extend(entry),
        None => {
            let sets = entry.into_iter().collect();
            drafts.push(Draft { route, sets });
        }
    }
}

/// How a service was made before the release under way; none if there is none, or it was not there.
fn before_release<'w>(world: &'w World, record: &ServiceRecord) -> Option<&'w ServiceRevision> {
    let previous = under_way(world, record)?;
    let before = previous.services.iter().find(|before| before.key == record.key)?;
    world.revision_of(&before.key, before.generation).map(|revision| &**revision)
}
/// What the app was before the release that is under way; none if none is, or the app is on its way back.
fn under_way<'w>(world: &'w World, record: &ServiceRecord) -> Option<&'w Previous> {
    let app = world.app(&record.key.app).filter(|app| !app.rollout.state.is_over())?;
    rollout::way_back(app).filter(|previous| !rollout::is_return(app, previous))
}

/// Whether a route is one that the release under way adds to its service.
fn is_coming(world: &World, record: &ServiceRecord, route: &RouteSpec) -> bool {
    let has_it = |before: &ServiceRevision| before.spec.policy.routes.iter().any(|own| has(own, route));
    under_way(world, record).is_some() && !before_release(world, record).is_some_and(has_it)
}

/// What a route of an earlier generation takes and none of the current ones does: the route, with the hosts of which that is so.
fn left_over(own: &RouteSpec, current: &[RouteSpec]) -> Option<RouteSpec> {
    let mut left = own.clone();
    for route in current.iter().filter(|route| takes_alike(own, route)) {
        if route.hosts.is_empty() {
            return None;
        }
        left.hosts.retain(|host| !route.hosts.contains(host));
    }
    // Without hosts it takes all of them, also beside routes for some.
    (own.hosts.is_empty() || !left.hosts.is_empty()).then_some(left)
}

/// The routes by which a release that does not serve yet is tried.
fn previews(assigner: &Assigner<'_>, key: &ServiceKey, serving: &[Serving<'_>]) -> Vec<ServiceRoute> {
    let tried: Vec<_> = serving.iter().filter(|task| task.share == Share::Preview).collect();
    let newest = tried.iter().map(|task| task.revision).max_by_key(|revision| revision.generation);
    let Some((revision, host)) =
        newest.and_then(|revision| Some((revision, preview_host(assigner.world(), revision)?)))
    else {
        return Vec::new();
    };
    let mut routes: Vec<ServiceRoute> = Vec::new();
    for (number, route) in revision.spec.policy.routes.iter().enumerate() {
        let carries_host = layer(route) != Layer::Port;
        let spec = RouteSpec { hosts: vec![host.to_owned()], ..route.clone() };
        let known = routes.iter().any(|other| takes_alike(&other.spec, &spec));
        let (true, false, Ok(number)) = (carries_host, known, u16::try_from(number)) else { continue };
        let mut draft = Draft::new(spec);
        let of_it = tried.iter().filter(|task| task.revision.generation == revision.generation);
        draft.sets.extend(of_it.map(|task| (revision.generation, Share::Even, task.at(route.port))));
        routes.push(draft.finish(assigner, RouteId { service: key.clone(), number, preview: true }));
    }
    routes
}

/// The host at which a release is tried before it serves.
fn preview_host<'w>(world: &'w World, revision: &'w ServiceRevision) -> Option<&'w str> {
    match strategy::of_revision(world, revision)? {
        ReleaseStrategy::BlueGreen { preview, .. } => preview.as_deref(),
        ReleaseStrategy::Rolling | ReleaseStrategy::Canary { .. } => None,
    }
}

/// A route that is being put together.
struct Draft {
    route: RouteSpec,
    sets: Vec<(Generation, Share, Endpoint)>,
}
impl Draft {
    const fn new(route: RouteSpec) -> Self {
        Self { route, sets: Vec::new() }
    }

    fn finish(self, assigner: &Assigner<'_>, id: RouteId) -> ServiceRoute {
        let mut sets = BTreeMap::<Generation, (Share, Vec<Endpoint>)>::new();
        for (generation, share, endpoint) in self.sets {
            sets.entry(generation).or_insert_with(|| (share, Vec::new())).1.push(endpoint);
        }
        let sets = sets.into_iter().map(|(generation, (share, mut endpoints))| {
            endpoints.sort_unstable();
            let weight = match share {
                Share::Even => u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
                Share::Weight(parts) => parts,
                Share::Preview | Share::Hidden => 0,
            };
            EndpointSet { generation, weight, endpoints }
        });
        let app = &id.service.app;
        let fallback = match &self.route.fallback {
            Some(Fallback::Service { service, port }) => endpoints(assigner, app, service, *port),
            Some(Fallback::Answer { .. }) | None => Vec::new(),
        };
        let mirror = self.route.mirror.as_ref();
        let mirror = mirror.map(|mirror| endpoints(assigner, app, &mirror.service, mirror.port));
        ServiceRoute {
            sets: sets.collect(),
            fallback,
            mirror: mirror.unwrap_or_default(),
            users: Users::default(),
            spec: self.route,
            id,
        }
    }
}

/// The ready tasks of another service of the app, at a port.
fn endpoints(assigner: &Assigner<'_>, app: &AppKey, service: &ServiceName, port: u16) -> Vec<Endpoint> {
    let key = ServiceKey { app: app.clone(), name: service.clone() };
    let Some(record) = assigner.world().service(&key) else { return Vec::new() };
    let serving = serving(assigner, record);
    let visible = serving.iter().filter(|task| task.serves);
    let mut endpoints: Vec<_> = visible.map(|task| task.at(port)).collect();
    endpoints.sort_unstable();
    endpoints
}

#[cfg(test)]
mod tests;
