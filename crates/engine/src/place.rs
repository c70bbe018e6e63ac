//! Chooses a node for a task: refuse, then rank.
//!
//! A rule says no and why ([`rules`]); of the nodes left the best by [`Rank`] is taken, and of equals the one with the lower id: the same
//! cluster always gives the same answer. A placement counts what the pass has already promised.
//!
//! [`Places::find`] asks the [`index`] for likely nodes instead of looking at all of them; [`Places::scan`] looks at all of them. Both give
//! the same answer, which the property tests hold them to.

pub mod devices;
pub(crate) mod explain;
pub(crate) mod index;
pub mod packing;
pub(crate) mod preempt;
#[cfg(test)]
mod properties;
pub(crate) mod refusal;
pub(crate) mod rules;
pub(crate) mod surroundings;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use wharf_model::{
    AppKey, Availability, Generation, GivenPort, Image, Mode, NodeId, PlacementSpec, PlacementStrategy,
    Priority, Protocol, PublishMode, ServiceKey, ServiceName, ServiceRevision, ServiceSpec, SlotOf, Task,
    TaskDevice, Timestamp,
};

pub use explain::{
    Counterfactual, Explanation, NodeTerms, Remedy, RuleCount, Term, explain_service, explain_task,
};
pub(crate) use refusal::sentence;
pub use refusal::{Apartness, NoPlace, Pin, PinnedBy, Refusal};
pub(crate) use rules::{availability_at, belongs, driven_off, wharf_arch};

use self::{
    index::{CLOSED, Key, Search, Tree},
    rules::{Amounts, RULES, Site, attribute},
    surroundings::Surroundings,
};
use crate::{Load, Node, World, world::Holding};

/// The ports of nodes from which tasks get theirs whose service leaves the number open: below those that kernels give to clients, and not
/// among those that gateways give to services.
pub(crate) const OPEN_PORTS: (u16, u16) = (20_000, 29_999);

/// What one task asks of a node.
#[derive(Debug, Clone)]
pub(crate) struct Demand<'a> {
    pub(crate) service: &'a ServiceKey,
    pub(crate) generation: Generation,
    pub(crate) spec: &'a ServiceSpec,
    pub(crate) image: &'a Image,
    pub(crate) priority: Priority,
    pub(crate) strategy: PlacementStrategy,
    /// How many tasks the service is to have, if it is replicated.
    pub(crate) replicas: Option<u32>,
    pub(crate) holding: Holding,
    /// Devices of the node, which are chosen when the node is.
    pub(crate) devices: devices::Need,
    /// Ports of the node that are still to be chosen.
    pub(crate) open_ports: Vec<OpenPort>,
    /// What the engine of the node has to know.
    pub(crate) feature: Option<((u32, u32), &'static str)>,
    pub(crate) now: Timestamp,
    /// What chance is made of.
    pub(crate) seed: u64,
    /// The slot it is for: what is kept free for that is free.
    pub(crate) slot: Option<SlotOf>,
    /// The only nodes that come into question, and why; every node if absent.
    pub(crate) pin: Option<Pin>,
    /// Nodes that hold data of its volumes, or where its slot is at home: better than others.
    pub(crate) prefer: Vec<NodeId>,
    /// Where this slot failed last: worse than others.
    pub(crate) avoid: Option<NodeId>,
    /// A task that will be gone before this one starts: what it holds is free.
    pub(crate) instead_of: Vec<&'a Task>,
    /// Tasks whose slot this one takes over while they still run: together they are one replica of their node.
    pub(crate) relieves: Vec<&'a Task>,
}

/// A port of a node that is chosen when the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenPort {
    pub(crate) target: u16,
    pub(crate) protocol: Protocol,
    pub(crate) from: u16,
    pub(crate) to: u16,
}

impl<'a> Demand<'a> {
    /// Whether it can be nowhere but where its data, its companions or its turn are: to wait for another node helps nobody.
    pub(crate) fn is_at_home(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| match pin.by {
            PinnedBy::Volume(_) | PinnedBy::Service(..) => true,
            PinnedBy::Global => pin.nodes.len() == 1,
        })
    }
    pub(crate) fn of(world: &World, revision: &'a ServiceRevision) -> Self {
        let policy = &revision.spec.policy;
        let mode = world.service(&revision.key).map_or(revision.spec.mode, |record| record.mode);
        let host = revision.spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
        let open = host.filter_map(|port| {
            let (from, to) = match (port.published, port.published_to) {
                (Some(_), None) => return None,
                (Some(from), Some(to)) => (from, to),
                (None, _) => OPEN_PORTS,
            };
            Some(OpenPort { target: port.target, protocol: port.protocol, from, to })
        });
        Self {
            service: &revision.key,
            generation: revision.generation,
            spec: &revision.spec,
            image: &revision.image,
            priority: world.priority_of(revision),
            strategy: policy.strategy.unwrap_or(world.placement.strategy),
            replicas: match mode {
                Mode::Replicated { replicas } => Some(replicas),
                Mode::Global => None,
            },
            holding: Holding::of(revision),
            devices: devices::Need::of(&revision.spec.resources),
            open_ports: open.collect(),
            feature: rules::engine_feature(&revision.spec),
            now: Timestamp::default(),
            seed: 0,
            slot: None,
            pin: None,
            prefer: Vec::new(),
            avoid: None,
            instead_of: Vec::new(),
            relieves: Vec::new(),
        }
    }
    pub(crate) const fn placement(&self) -> &'a PlacementSpec {
        &self.spec.placement
    }
    const fn need(&self) -> Amounts {
        Amounts { cpus: self.holding.cpus.0, memory: self.holding.memory.0, disk: self.holding.disk.0 }
    }
    /// Whether who refuses it does so also for another slot of the service.
    fn is_plain(&self) -> bool {
        self.pin.is_none() && self.instead_of.is_empty() && self.relieves.is_empty()
    }
}

/// How good a node is for a task: the lower the better, and what comes first decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Its slot's last task failed there.
    failed_here: bool,
    /// Its data, or its home, is elsewhere.
    away: bool,
    /// So many wishes about neighbours and places are not met.
    wishes: u32,
    /// For each label to spread over, how many tasks of the service the node's value has.
    crowd: Vec<u32>,
    /// How much its GPUs are missed; nothing unless some are asked for.
    gpus: u64,
    /// What the strategy says.
    order: [u64; 4],
}

/// Loads are as good as equal that differ by less than this, in thousandths: then a node that has the image is better.
const STEP: u64 = 64;

/// The cluster's loads, with what the pass has promised counted in.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub(crate) world: &'a World,
    now: Timestamp,
    /// What the pass has promised of each node.
    promised: BTreeMap<NodeId, Load>,
    /// The same by service: how many of its tasks on each node.
    promised_of: BTreeMap<Arc<ServiceKey>, BTreeMap<NodeId, u32>>,
    /// What is kept free for slots that tasks have made room for.
    claims: BTreeMap<NodeId, Vec<Claim>>,
    /// Who is refused everywhere stays so: a pass gives nothing back.
    refused: RefCell<BTreeMap<ServiceKey, (Generation, NoPlace)>>,
    /// By service and label, how many tasks each value has.
    counts: RefCell<BTreeMap<ServiceKey, BTreeMap<String, Counts>>>,
    /// By app and service, who wants to be apart from it, within what.
    apart: RefCell<BTreeMap<AppKey, Rc<Apart>>>,
    /// By service and label, the values that come into question.
    values: RefCell<BTreeMap<ServiceKey, BTreeMap<String, BTreeSet<String>>>>,
    session: RefCell<Option<Session>>,
}
/// How many tasks each value of a label has.
type Counts = Rc<BTreeMap<String, u32>>;
type Apart = BTreeMap<ServiceName, Vec<(ServiceName, String)>>;

/// Room on a node that is kept for a slot.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) slot: SlotOf,
    pub(crate) priority: Priority,
    pub(crate) holding: Holding,
}

/// The nodes as one service sees them, with how many of its tasks each has: for a pass that places many.
#[derive(Debug)]
struct Session {
    service: ServiceKey,
    strategy: PlacementStrategy,
    /// How often it was looked for a node of the service; the tournaments are made when that is worth it.
    finds: u32,
    trees: Option<Vec<Tree>>,
}

/// So many searches for one service, and it gets tournaments of its own.
const OFTEN: u32 = 4;
/// So many nodes are looked at one by one beside a search.
const FEW: usize = 64;

impl<'a> Places<'a> {
    pub(crate) fn new(world: &'a World, now: Timestamp) -> Self {
        Self {
            world,
            now,
            promised: BTreeMap::new(),
            promised_of: BTreeMap::new(),
            claims: preempt::claims(world),
            refused: RefCell::default(),
            counts: RefCell::default(),
            apart: RefCell::default(),
            values: RefCell::default(),
            session: RefCell::default(),
        }
    }

    /// The best node for the task, or why there is none; of a service that was refused before in this pass, why it was then.
    pub(crate) fn find(&self, demand: &Demand<'_>) -> Result<NodeId, NoPlace> {
        // Room that is kept for one slot is none for another.
        let for_all = demand.is_plain() && self.claims.is_empty();
        if for_all
            && let Some((generation, because)) = self.refused.borrow().get(demand.service)
            && *generation == demand.generation
        {
            return Err(because.clone());
        }
        let around = self.surroundings(demand);
        if let Some(found) = self.search(demand, &around) {
            return Ok(found);
        }
        let because = self.why_not(demand, &around);
        if for_all {
            let mut refused = self.refused.borrow_mut();
            refused.insert(demand.service.clone(), (demand.generation, because.clone()));
        }
        Err(because)
    }

    /// The best node for the task by looking at every one: what [`Self::find`] must answer.
    pub(crate) fn scan(&self, demand: &Demand<'_>) -> Result<NodeId, NoPlace> {
        let around = self.surroundings(demand);
        let mut best = Best::new(self, demand, &around);
        self.candidates(demand).into_iter().for_each(|node| best.consider(node));
        best.found.take().map(|(_, id)| id).ok_or_else(|| self.why_not(demand, &around))
    }

    /// Counts a task that this pass puts on a node.
    pub(crate) fn promise(&mut self, node: NodeId, service: &ServiceKey, holding: &Holding) {
        // One copy of the key for all promises to the service.
        let known = self.promised_of.get_key_value(service).map(|(key, _)| Arc::clone(key));
        let service = known.unwrap_or_else(|| self.world.interned(service));
        self.promised.entry(node).or_default().add(&service, holding);
        *self.promised_of.entry(Arc::clone(&service)).or_default().entry(node).or_default() += 1;
        if let Some(place) = self.world.node(node)
            && let Some(labels) = self.counts.get_mut().get_mut(&*service)
        {
            for (label, counts) in labels {
                let value = attribute(place, label).unwrap_or_default();
                *Rc::make_mut(counts).entry(value.into_owned()).or_default() += 1;
            }
        }
        self.follow(node);
        // A neighbour that somebody waited for may have come just now.
        self.refused.get_mut().retain(|_, (_, because)| !because.may_pass_with_company());
    }
    /// The devices that a task gets on a node that takes it.
    pub(crate) fn devices(&self, demand: &Demand<'_>, node: NodeId) -> Vec<TaskDevice> {
        let Some(node) = self.world.node(node).filter(|_| !demand.devices.is_empty()) else {
            return Vec::new();
        };
        let site = self.site(node, demand);
        let inventory = node.facts().map(|facts| facts.devices.as_slice()).unwrap_or_default();
        let gpus = self.gpus(demand);
        let room = gpus.as_ref().map(|gpus| gpus.room(&site));
        let choice = gpus.as_ref().zip(room.as_ref()).map(|(gpus, room)| gpus.choice(room));
        let held = site.held_devices();
        devices::allocate(inventory, &held, &demand.devices, choice.as_ref()).unwrap_or_default()
    }
    /// What the demand's GPUs are worth, if it wants any.
    fn gpus(&self, demand: &Demand<'_>) -> Option<Gpus> {
        demand.devices.has_gpus().then(|| {
            let outlook = self.world.outlook.of(self.world);
            let shape = outlook.shape(&demand.devices, &demand.spec.resources);
            Gpus { outlook, shape }
        })
    }
    /// Keeps room on a node for a slot.
    pub(crate) fn claim(&mut self, node: NodeId, claim: Claim) {
        self.claims.entry(node).or_default().push(claim);
    }
    /// The ports that a task gets on a node.
    pub(crate) fn ports(&self, demand: &Demand<'_>, node: NodeId) -> Vec<GivenPort> {
        let node = self.world.node(node).filter(|_| !demand.open_ports.is_empty());
        node.and_then(|node| rules::free_ports(demand, &self.site(node, demand)).ok()).unwrap_or_default()
    }

    /// Where a service's tasks are, with what this pass has promised; a node may come twice.
    fn where_is(&self, service: &ServiceKey) -> impl Iterator<Item = (NodeId, u32)> {
        let promised = self.promised_of.get(service).into_iter().flatten();
        self.world.where_is(service).chain(promised.map(|(id, count)| (*id, *count)))
    }
    fn candidates(&self, demand: &Demand<'_>) -> Vec<&'a Node> {
        match &demand.pin {
            Some(pin) => pin.nodes.iter().filter_map(|id| self.world.node(*id)).collect(),
            None => self.world.nodes().collect(),
        }
    }
    /// One node as the demand finds it.
    pub(crate) fn site<'s>(&'s self, node: &'s Node, demand: &Demand<'_>) -> Site<'s> {
        let id = node.record.id;
        let mut less: Option<Load> = None;
        for task in demand.instead_of.iter().filter(|task| task.node == Some(id) && !task.is_over()) {
            let holding = self.world.holding_of(task);
            less.get_or_insert_default().add(&self.world.interned(&task.service), &holding);
        }
        let mut kept: Option<Load> = None;
        for claim in self.claims.get(&id).into_iter().flatten() {
            let own = demand.slot.as_ref() == Some(&claim.slot);
            if !own && demand.priority <= claim.priority {
                let service = self.world.interned(&claim.slot.service);
                kept.get_or_insert_default().add(&service, &claim.holding);
            }
        }
        Site::new(node, self.world.load_ref(id), self.promised.get(&id), less, kept)
    }

    /// Why no node takes it.
    fn why_not(&self, demand: &Demand<'_>, around: &Surroundings) -> NoPlace {
        let mut refusals = Vec::new();
        for node in self.candidates(demand) {
            let site = self.site(node, demand);
            if let Err(refusal) = RULES.iter().try_for_each(|rule| rule(demand, around, &site)) {
                refusal::count(&mut refusals, refusal);
            }
        }
        refusals.sort_by_key(|(refusal, nodes)| (Reverse(*nodes), refusal.rank()));
        let name = |id: &NodeId| self.world.node_name(*id);
        let pinned = demand.pin.as_ref().map(|pin| (pin.by.clone(), pin.nodes.iter().map(name).collect()));
        NoPlace { pinned, refusals }
    }

    /// The best node, found without looking at all of them where that is possible.
    fn search(&self, demand: &Demand<'_>, around: &Surroundings) -> Option<NodeId> {
        let mut best = Best::new(self, demand, around);
        if demand.pin.is_some() {
            self.candidates(demand).into_iter().for_each(|node| best.consider(node));
            return best.found.map(|(_, id)| id);
        }
        let near = around.nodes_near(demand);
        let near: Option<Vec<NodeId>> = near.map(|service| self.nodes_of(service));
        let index = &self.world.index;
        let is_common = |label: &str| index.is_common(label);
        let by_chance = demand.strategy == PlacementStrategy::Random;
        if let Some(nodes) = near.filter(|nodes| nodes.len() <= self.world.nodes.len() / 4) {
            nodes.into_iter().for_each(|id| best.look_at(id));
        } else if by_chance
            || demand.devices.has_gpus()
            || !demand.placement().spread.iter().all(|label| is_common(label))
        {
            self.candidates(demand).into_iter().for_each(|node| best.consider(node));
        } else {
            self.look_in_groups(demand, around, &mut best);
        }
        best.found.map(|(_, id)| id)
    }
    fn nodes_of(&self, service: &ServiceKey) -> Vec<NodeId> {
        let nodes: BTreeSet<NodeId> = self.where_is(service).map(|(id, _)| id).collect();
        nodes.into_iter().collect()
    }

    fn look_in_groups(&self, demand: &Demand<'_>, around: &Surroundings, best: &mut Best<'_, '_, '_>) {
        let index = &self.world.index;
        let is_common = |label: &str| index.is_common(label);
        let mut session = self.session.borrow_mut();
        let session = Session::for_service(&mut session, self, demand);
        // Nodes that are not as the tournaments know them, or better than their place there says.
        let gone = demand.gone().filter_map(|task| task.node);
        let mut apart: BTreeSet<NodeId> = gone.chain(demand.prefer.iter().copied()).collect();
        apart.extend(self.claims.keys());
        if session.trees.is_none() {
            apart.extend(self.promised.keys());
        }
        let liked = around.nodes_liked(demand);
        let liked: Option<BTreeSet<NodeId>> = liked.and_then(|services| {
            let nodes = services.into_iter().flat_map(|service| self.nodes_of(service));
            let nodes: BTreeSet<NodeId> = nodes.collect();
            (nodes.len() <= FEW).then_some(nodes)
        });
        best.images_known = around.image_is_somewhere;
        if around.image_is_somewhere
            && let Some(nodes) = self.world.nodes_with(demand.image, FEW)
        {
            apart.extend(nodes);
            best.images_known = false;
        }
        best.liked = liked.is_some();
        apart.extend(liked.into_iter().flatten());
        best.apart = apart.clone();
        apart.into_iter().for_each(|id| best.look_at_apart(id));

        let mut groups = Vec::new();
        for (number, group, stands_for) in index.groups() {
            let Some(node) = self.world.node(stands_for) else { continue };
            if rules::group_may(demand, around, node, &is_common) {
                let wishes = rules::wishes_broken_in_group(demand, around, node, &is_common);
                groups.push((wishes, crowd(demand, around, node), number, group));
            }
        }
        groups.sort_by(|one, other| (one.0, &one.1, one.2).cmp(&(other.0, &other.1, other.2)));
        for (wishes, crowd, number, group) in groups {
            best.bound = Rank {
                failed_here: false,
                // Those that are not were looked at already.
                away: true,
                wishes: wishes + if best.liked { around.soft_nears(demand) } else { 0 },
                crowd,
                gpus: 0,
                order: [0; 4],
            };
            if !best.may_be_better() {
                break;
            }
            let tree = match (&session.trees, demand.strategy) {
                (Some(trees), _) => &trees[number],
                (None, PlacementStrategy::Binpack) => &group.fullest,
                (None, PlacementStrategy::Spread | PlacementStrategy::Random) => &group.emptiest,
            };
            tree.search(demand.need(), best);
        }
    }

    /// The tournaments of the service at hand hear of a node's load.
    fn follow(&self, id: NodeId) {
        let mut session = self.session.borrow_mut();
        if let Some(session) = session.as_mut()
            && let Some(trees) = &mut session.trees
            && let Some((group, leaf)) = self.world.index.place_of(id)
            && let Some(node) = self.world.node(id)
        {
            let (key, free) = self.standing(node, &session.service, session.strategy);
            trees[group].set(leaf, key, free);
        }
    }
    fn standing(&self, node: &Node, service: &ServiceKey, strategy: PlacementStrategy) -> (Key, Amounts) {
        let id = node.record.id;
        let site = Site::new(node, self.world.load_ref(id), self.promised.get(&id), None, None);
        let open = node.record.availability == Availability::Active && node.is_sound();
        let key = match strategy {
            _ if !open => CLOSED,
            PlacementStrategy::Binpack => Key::fullest(site.reserved_share()),
            PlacementStrategy::Spread | PlacementStrategy::Random => {
                Key::emptiest(site.tasks_of(service), site.reserved_share(), site.tasks())
            }
        };
        (key, site.free())
    }
}

impl Session {
    /// That of the demand's service, with tournaments if they are worth making.
    fn for_service<'s>(
        known: &'s mut Option<Self>,
        places: &Places<'_>,
        demand: &Demand<'_>,
    ) -> &'s mut Self {
        let is_it =
            |session: &Self| session.service == *demand.service && session.strategy == demand.strategy;
        if !known.as_ref().is_some_and(is_it) {
            let service = demand.service.clone();
            *known = Some(Self { service, strategy: demand.strategy, finds: 0, trees: None });
        }
        let session = known.get_or_insert_with(|| unreachable!("it was made just now"));
        session.finds += 1;
        let worth_it = session.finds >= OFTEN || places.promised.len() > FEW;
        if session.trees.is_none() && worth_it {
            session.trees = Some(Self::trees(places, demand));
        }
        session
    }
    fn trees(places: &Places<'_>, demand: &Demand<'_>) -> Vec<Tree> {
        let index = &places.world.index;
        let copy = |group: &index::Group| match demand.strategy {
            PlacementStrategy::Binpack => group.fullest.clone(),
            PlacementStrategy::Spread | PlacementStrategy::Random => group.emptiest.clone(),
        };
        let mut trees: Vec<Tree> = index.all_groups().map(copy).collect();
        let other = places.world.where_is(demand.service).map(|(id, _)| id);
        let other: BTreeSet<NodeId> = other.chain(places.promised.keys().copied()).collect();
        for id in other {
            if let (Some((group, leaf)), Some(node)) = (index.place_of(id), places.world.node(id)) {
                let (key, free) = places.standing(node, demand.service, demand.strategy);
                trees[group].set(leaf, key, free);
            }
        }
        trees
    }
}

/// A demand for GPUs, and what they are worth to the cluster's services.
struct Gpus {
    outlook: Arc<packing::Outlook>,
    shape: packing::Shape,
}
impl Gpus {
    /// What a node has left.
    fn room(&self, site: &Site<'_>) -> packing::Room {
        let inventory = site.node.facts().map(|facts| facts.devices.as_slice()).unwrap_or_default();
        let free = site.free();
        self.outlook.room(inventory, &site.held_devices(), free.cpus, free.memory)
    }
    fn choice<'g>(&'g self, room: &'g packing::Room) -> packing::Choice<'g> {
        packing::Choice { outlook: &self.outlook, room, shape: &self.shape }
    }
    /// What it costs the services to put the task here: less is better.
    fn cost(&self, site: &Site<'_>) -> u64 {
        /// Above anything that a placement can gain.
        const NOTHING: f64 = 1e6;
        let cost = self.outlook.cost(&self.room(site), &self.shape);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, and positive")]
        cost.map_or(u64::MAX, |(cost, _)| (cost + NOTHING).round() as u64)
    }
}

/// The best node so far.
struct Best<'p, 'd, 'a> {
    places: &'p Places<'a>,
    demand: &'p Demand<'d>,
    around: &'p Surroundings,
    found: Option<(Rank, NodeId)>,
    /// What every node of the group at hand has at least, its order aside.
    bound: Rank,
    /// Nodes that are looked at beside the search.
    apart: BTreeSet<NodeId>,
    /// Nodes of the search may have the image.
    images_known: bool,
    /// Nodes of the search leave every soft wish to be near somebody on the same node open.
    liked: bool,
}
impl<'p, 'd, 'a> Best<'p, 'd, 'a> {
    fn new(places: &'p Places<'a>, demand: &'p Demand<'d>, around: &'p Surroundings) -> Self {
        let bound =
            Rank { failed_here: false, away: false, wishes: 0, crowd: Vec::new(), gpus: 0, order: [0; 4] };
        Self {
            places,
            demand,
            around,
            found: None,
            bound,
            apart: BTreeSet::new(),
            images_known: true,
            liked: false,
        }
    }
    fn consider(&mut self, node: &Node) {
        let site = self.places.site(node, self.demand);
        if RULES.iter().any(|rule| rule(self.demand, self.around, &site).is_err()) {
            return;
        }
        let candidate = (self.rank(&site), node.record.id);
        if self.found.as_ref().is_none_or(|leader| candidate < *leader) {
            self.found = Some(candidate);
        }
    }
    fn look_at_apart(&mut self, id: NodeId) {
        if let Some(node) = self.places.world.node(id) {
            self.consider(node);
        }
    }
    fn rank(&self, site: &Site<'_>) -> Rank {
        rank(self.places, self.demand, self.around, site)
    }
    /// Whether any node of the group at hand may be better than what was found.
    fn may_be_better(&self) -> bool {
        self.found.as_ref().is_none_or(|(found, _)| self.bound <= *found)
    }
    /// The least that a node with this key has of what the strategy says.
    fn order_of(&self, key: Key) -> [u64; 4] {
        let no_image = u64::from(self.around.image_is_somewhere && !self.images_known);
        match self.demand.strategy {
            PlacementStrategy::Spread | PlacementStrategy::Random => {
                let (siblings, share, tasks) = key.parts();
                spread(siblings, share, no_image, tasks)
            }
            PlacementStrategy::Binpack => binpack(key.share(), no_image),
        }
    }
}
impl Search for Best<'_, '_, '_> {
    fn is_worth(&self, key: Key, id: NodeId) -> bool {
        let Some((found, other)) = &self.found else { return true };
        let prefix = (false, self.bound.away, self.bound.wishes, &self.bound.crowd, self.order_of(key));
        (prefix, id) < ((found.failed_here, found.away, found.wishes, &found.crowd, found.order), *other)
    }
    fn look_at(&mut self, id: NodeId) {
        if !self.apart.contains(&id) {
            self.look_at_apart(id);
        }
    }
}

/// Few siblings, much free, the image there, few tasks.
const fn spread(siblings: u32, share: u64, no_image: u64, tasks: u32) -> [u64; 4] {
    [siblings as u64, share / STEP * 2 + no_image, share, tasks as u64]
}
/// Little free, the image there.
const fn binpack(share: u64, no_image: u64) -> [u64; 4] {
    [u64::MAX - share / STEP, no_image, u64::MAX - share, 0]
}

/// Lower is better: not where it failed, where its data is, with whom it wants to be, few siblings in the zone, where GPUs are missed least,
/// and then as the strategy says.
fn rank(places: &Places<'_>, demand: &Demand<'_>, around: &Surroundings, site: &Site<'_>) -> Rank {
    let id = site.node.record.id;
    let no_image = u64::from(around.image_is_somewhere && !places.world.has_image(id, demand.image));
    let gpus = places.gpus(demand).map_or(0, |gpus| gpus.cost(site));
    let order = match demand.strategy {
        // Of equal nodes the first, whatever the strategy: they fill up one after another.
        _ if gpus > 0 => [0; 4],
        PlacementStrategy::Random => [turn_of(id, demand.seed), 0, 0, 0],
        PlacementStrategy::Spread => {
            spread(site.tasks_of(demand.service), site.reserved_share(), no_image, site.tasks())
        }
        PlacementStrategy::Binpack => binpack(site.reserved_share(), no_image),
    };
    Rank {
        failed_here: demand.avoid == Some(id),
        away: !demand.prefer.contains(&id),
        wishes: rules::broken_wishes(demand, around, site),
        crowd: crowd(demand, around, site.node),
        gpus,
        order,
    }
}

/// How many tasks of the service are in the node's zone, for each kind of zone.
fn crowd(demand: &Demand<'_>, around: &Surroundings, node: &Node) -> Vec<u32> {
    let labels = demand.placement().spread.iter().zip(&around.spread);
    labels
        .map(|(label, counts)| counts.get(&*attribute(node, label).unwrap_or_default()).copied().unwrap_or(0))
        .collect()
}

/// When a node's turn comes if chance decides: every order is as likely as any other, and a seed always gives the same.
const fn turn_of(id: NodeId, seed: u64) -> u64 {
    let id = id.uuid().as_u128();
    mixed(seed ^ mixed(low(id) ^ mixed(low(id >> 64))))
}
#[expect(clippy::cast_possible_truncation, reason = "half of it is what is wanted")]
const fn low(bits: u128) -> u64 {
    bits as u64
}
/// SplitMix64's last step: near numbers give far ones.
pub(crate) const fn mixed(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Whether a node takes tasks at this moment.
pub(crate) fn is_open_at(node: &Node, now: Timestamp) -> bool {
    availability_at(&node.record, now) == Availability::Active && node.is_sound()
}

/// Whether there is room for so many more tasks like this beside everything that runs.
///
/// # Errors
/// For how many there is, and why for no more.
pub(crate) fn room_for(world: &World, revision: &ServiceRevision, tasks: u32) -> Result<(), (u32, NoPlace)> {
    let mut places = Places::new(world, Timestamp::default());
    let demand = Demand::of(world, revision);
    for placed in 0..tasks {
        let node = places.find(&demand).map_err(|because| (placed, because))?;
        let mut holding = demand.holding.clone().with(places.devices(&demand, node));
        holding.add_ports(&places.ports(&demand, node));
        places.promise(node, &revision.key, &holding);
    }
    Ok(())
}

/// Places tasks one after another, each beside those before it: placement alone, without the rest of a pass. For benchmarks, and for whoever
/// wants to know what would be.
#[derive(Debug)]
pub struct Placer<'w> {
    places: Places<'w>,
    placed: u64,
    seed: u64,
}
impl<'w> Placer<'w> {
    /// Begins with the world as it is at this time; `seed` is what chance is made of where a strategy leaves something to it.
    pub fn new(world: &'w World, now: Timestamp, seed: u64) -> Self {
        Self { places: Places::new(world, now), placed: 0, seed }
    }
    /// The node for one more task like this, which counts as placed from now on.
    ///
    /// # Errors
    /// If no node can take it; then nothing has changed.
    pub fn place(&mut self, revision: &ServiceRevision) -> Result<NodeId, NoPlace> {
        let demand = self.demand(revision);
        let node = self.places.find(&demand)?;
        self.keep(&demand, node);
        Ok(node)
    }
    /// The same by looking at every node: slow, and the same answer.
    ///
    /// # Errors
    /// If no node can take it; then nothing has changed.
    pub fn place_by_scan(&mut self, revision: &ServiceRevision) -> Result<NodeId, NoPlace> {
        let demand = self.demand(revision);
        let node = self.places.scan(&demand)?;
        self.keep(&demand, node);
        Ok(node)
    }
    fn demand<'d>(&self, revision: &'d ServiceRevision) -> Demand<'d> {
        let mut demand = Demand::of(self.places.world, revision);
        (demand.now, demand.seed) = (self.places.now, mixed(self.seed ^ mixed(self.placed)));
        demand
    }
    fn keep(&mut self, demand: &Demand<'_>, node: NodeId) {
        let mut holding = demand.holding.clone().with(self.places.devices(demand, node));
        holding.add_ports(&self.places.ports(demand, node));
        self.places.promise(node, demand.service, &holding);
        self.placed += 1;
    }
}

/// What is promised of the scarcer of memory and processor time, in thousandths.
pub(crate) fn reserved_share(node: &Node, load: &Load) -> u64 {
    rules::share(node, Amounts { cpus: load.cpus.0, memory: load.memory.0, disk: load.disk.0 })
}
