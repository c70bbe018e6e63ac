//! What every route of every service leads to now.
//!
//! - A service's routes are those of the generation that serves. A task whose container would be made the same today answers by them as
//!   they are; one of another generation by those that its own generation has as well, at the port it has there: nobody is sent to a port
//!   that a task does not listen on.
//! - A route that only tasks of an earlier generation have stays until these go: what moves to another service is answered by the one
//!   until the other is ready.
//! - A route that a release adds begins when a task is ready for it; until then whatever answered before does. Once the release is over it
//!   is there, with tasks or without.
//! - Only ready tasks that nobody asked to stop are led to. Everything is sorted: equal states give equal tables.

mod files;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use wharf_model::{
    AppKey, Endpoint, EndpointSet, Fallback, Generation, NetworkMode, NetworkName, ReleaseStrategy, RouteId,
    RouteProtocol, RouteSpec, RouteTls, ServiceKey, ServiceName, ServiceRecord, ServiceRevision, ServiceRoute,
    ServiceSpec, TaskId, Users,
};

pub use files::{Pem, RouteSecret, SecretUse, route_secrets, split_pem, user_lines};
pub(crate) use files::{certificates, users};
pub(crate) use plan::{check, gateway_ports, lines, operations};
pub use plan::{RouteConflict, RouteRefusal, claims};

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
    let app_stays = |record: &&Arc<ServiceRecord>| world.app(&record.key.app).is_some_and(|app| !app.removed);
    world.services().filter(app_stays).flat_map(|record| of_service(assigner, record)).collect()
}

/// The networks of an app on which gateways need addresses: the first of each service to which published ports or routes lead, or that of
/// the service whose network it shares.
pub(crate) fn entries<'s>(services: &BTreeMap<&'s ServiceName, &'s ServiceSpec>) -> BTreeSet<&'s NetworkName> {
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
        && layer(one) == layer(other)
        && path(one) == path(other)
        && one.headers == other.headers
        && methods(one) == methods(other)
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
        let (share, serves) =
            *standings.entry(task.generation).or_insert_with(|| standing(task.generation));
        let revision = world.revision_of(&service.key, task.generation)?;
        Some(Serving { task: task.id, address: assigner.entry_address(task)?, revision, share, serves })
    });
    serving.collect()
}

/// The routes of one service.
fn of_service(assigner: &Assigner<'_>, record: &ServiceRecord) -> Vec<ServiceRoute> {
    let world = assigner.world();
    let key = &record.key;
    if world.revisions_of(key).all(|revision| revision.spec.policy.routes.is_empty()) {
        return Vec::new();
    }
    let Some(base) = world.revision_of(key, record.generation).map(|revision| &**revision) else {
        return Vec::new();
    };
    let current = &base.spec.policy.routes;
    let serving = serving(assigner, record);
    let visible: Vec<_> = serving.iter().filter(|task| task.share.is_led_to()).collect();
    let answers_by_current: BTreeMap<Generation, bool> = visible
        .iter()
        .map(|task| (task.revision.generation, spec::same_container(world, task.revision, base)))
        .collect();
    let follows = |task: &Serving<'_>| answers_by_current.get(&task.revision.generation) == Some(&true);

    let mut drafts: Vec<Draft> = current.iter().map(|route| Draft::new(route.clone())).collect();
    for task in &visible {
        let own = &task.revision.spec.policy.routes;
        for (draft, route) in drafts.iter_mut().zip(current) {
            let port = if follows(task) {
                Some(route.port)
            } else {
                own.iter().find(|own| has(own, route)).map(|own| own.port)
            };
            draft.sets.extend(port.and_then(|port| task.entry(route, port)));
        }
    }
    let wanted = drafts.len();
    // A share of a service's requests is no reason for routes of which the others know nothing.
    for task in visible.iter().filter(|task| task.serves && !follows(task)) {
        for own in task.revision.spec.policy.routes.iter().filter_map(|own| left_over(own, current)) {
            let known = drafts[wanted..].iter().position(|draft| {
                draft.route.hosts == own.hosts && takes_alike(&draft.route, &own)
            });
            let at = known.map_or(drafts.len(), |at| wanted + at);
            let entry = task.entry(&own, own.port);
            if known.is_none() {
                drafts.push(Draft::new(own));
            }
            drafts[at].sets.extend(entry);
        }
    }
    let mut routes = Vec::new();
    for (number, draft) in drafts.into_iter().enumerate() {
        let Ok(number) = u16::try_from(number) else { break };
        if draft.sets.is_empty() && (record.removed || is_coming(world, record, &draft.route)) {
            continue;
        }
        let id = RouteId { service: key.clone(), number, preview: false };
        routes.push(draft.finish(assigner, id));
    }
    routes.extend(previews(assigner, key, &serving));
    routes
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

/// Whether a route is one that the release under way adds to its service.
fn is_coming(world: &World, record: &ServiceRecord, route: &RouteSpec) -> bool {
    let Some(app) = world.app(&record.key.app).filter(|app| !app.rollout.state.is_over()) else {
        return false;
    };
    let Some(previous) = rollout::way_back(app).filter(|previous| !rollout::is_return(app, previous)) else {
        return false;
    };
    let before = previous.services.iter().find(|before| before.key == record.key);
    let before = before.and_then(|before| world.revision_of(&before.key, before.generation));
    !before.is_some_and(|before| before.spec.policy.routes.iter().any(|own| has(own, route)))
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
    let of_app = || world.release(&revision.key.app, revision.release)?.spec.policy.release.as_ref();
    match revision.spec.policy.release.as_ref().or_else(of_app)? {
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
