//! What a demand has to know of the rest of the cluster before nodes can be judged one by one: where its neighbours are, over which places
//! its service is spread, and how many are still to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use wharf_model::{Neighbour, ServiceKey, ServiceName, Task};

use super::{
    Demand, Places,
    rules::{Site, attribute, by_value, others_here},
};

/// What was found out.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// For each label to spread over, how many tasks of the service each of its values has.
    pub(crate) spread: Vec<Rc<BTreeMap<String, u32>>>,
    /// For each wish about neighbours, in their order.
    pub(crate) wishes: Vec<Around>,
    /// Services of the app that want to be apart from this one, within what, and where they are.
    pub(crate) kept_off: Vec<(ServiceName, String, Around)>,
    /// Over how many places tasks must be spread.
    pub(crate) minimum: Option<Minimum>,
    /// Whether some node has the demand's image.
    pub(crate) image_is_somewhere: bool,
}

/// Over how many places tasks must be spread, and how far they are.
#[derive(Debug)]
pub(crate) struct Minimum {
    /// What is one place.
    pub(crate) over: String,
    /// In so many.
    pub(crate) at_least: u32,
    /// Those in which there are tasks.
    pub(crate) used: BTreeSet<String>,
    /// Too few are.
    pub(crate) is_wanted: bool,
    /// No task that is still to come can be spared for a place that is used already.
    pub(crate) is_urgent: bool,
}

/// Where neighbours are, seen from a node.
#[derive(Debug)]
pub(crate) enum Around {
    /// Of a service, on the node itself.
    Node {
        /// Which.
        service: ServiceKey,
        /// Whether they are wanted there.
        near: bool,
        /// There are none in the whole cluster.
        nowhere: bool,
    },
    /// Of a service, on any node with the same value of a label.
    Label {
        /// The label.
        scope: String,
        /// Its values that have some.
        values: BTreeSet<String>,
        /// Whether they are wanted there.
        near: bool,
    },
    /// The image itself.
    Image {
        /// What is one place: `node`, or a label.
        scope: String,
        /// Nodes, or values of the label, that have it.
        at: BTreeSet<String>,
    },
    /// It can be had anywhere: of two that want to be near each other one comes first.
    Anywhere,
}
impl Around {
    /// Whether the wish is met on this node.
    pub(crate) fn is_met(&self, demand: &Demand<'_>, site: &Site<'_>) -> bool {
        match self {
            Self::Node { service, near, .. } => {
                let here = if service == demand.service {
                    others_here(demand, site)
                } else {
                    site.tasks_of(service)
                };
                (here > 0) == *near
            }
            Self::Label { scope, values, near } => match attribute(site.node, scope) {
                Some(value) => values.contains(&*value) == *near,
                // What has no place is near nobody.
                None => !near,
            },
            Self::Image { scope, at } => {
                attribute(site.node, scope).is_some_and(|value| at.contains(&*value))
            }
            Self::Anywhere => true,
        }
    }
    fn near_on_node(&self) -> Option<&ServiceKey> {
        match self {
            Self::Node { service, near: true, .. } => Some(service),
            Self::Node { .. } | Self::Label { .. } | Self::Image { .. } | Self::Anywhere => None,
        }
    }
    /// Whether all nodes of a group meet it, or none does.
    pub(crate) fn is_about_groups(&self, is_common: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Label { scope, .. } | Self::Image { scope, .. } => is_common(scope),
            Self::Node { .. } | Self::Anywhere => false,
        }
    }
    /// Whether who is wanted is nowhere at all.
    pub(crate) fn is_nowhere(&self) -> bool {
        match self {
            Self::Node { nowhere, .. } => *nowhere,
            Self::Label { values, .. } => values.is_empty(),
            Self::Image { at, .. } => at.is_empty(),
            Self::Anywhere => false,
        }
    }
}

impl Surroundings {
    /// A service on whose nodes tasks have to be, if there is one.
    pub(crate) fn nodes_near<'s>(&'s self, demand: &Demand<'_>) -> Option<&'s ServiceKey> {
        self.hard(demand).find_map(Around::near_on_node)
    }
    /// The services on whose nodes tasks would like to be, if there are any.
    pub(crate) fn nodes_liked<'s>(&'s self, demand: &Demand<'_>) -> Option<Vec<&'s ServiceKey>> {
        let liked: Vec<_> = self.soft(demand).filter_map(Around::near_on_node).collect();
        (!liked.is_empty()).then_some(liked)
    }
    /// How many wishes there are to be on the nodes of some service.
    pub(crate) fn soft_nears(&self, demand: &Demand<'_>) -> u32 {
        u32::try_from(self.soft(demand).filter_map(Around::near_on_node).count()).unwrap_or(u32::MAX)
    }
    fn soft<'s>(&'s self, demand: &Demand<'_>) -> impl Iterator<Item = &'s Around> {
        let soft: Vec<bool> = demand.spec.policy.affinity.iter().map(|wish| wish.soft).collect();
        self.wishes.iter().zip(soft).filter(|(_, soft)| *soft).map(|(found, _)| found)
    }
    /// Where those are whom tasks have to be with or apart from.
    pub(crate) fn hard<'s>(&'s self, demand: &Demand<'_>) -> impl Iterator<Item = &'s Around> {
        let hard: Vec<bool> = demand.spec.policy.affinity.iter().map(|wish| !wish.soft).collect();
        let own = self.wishes.iter().zip(hard).filter(|(_, hard)| *hard).map(|(found, _)| found);
        own.chain(self.kept_off.iter().map(|(.., found)| found))
    }
}

impl Places<'_> {
    /// What a demand has to know of the rest of the cluster.
    pub(crate) fn surroundings(&self, demand: &Demand<'_>) -> Surroundings {
        let policy = &demand.spec.policy;
        let spread = &demand.placement().spread;
        Surroundings {
            spread: spread.iter().map(|label| self.counted(demand, demand.service, label)).collect(),
            wishes: policy.affinity.iter().map(|wish| self.around(demand, &wish.to, &wish.scope)).collect(),
            kept_off: self.kept_off(demand),
            minimum: policy.availability.as_ref().and_then(|wanted| self.minimum(demand, wanted)),
            image_is_somewhere: self.world.is_image_known(demand.image),
        }
    }

    /// For each value of a label, how many tasks of a service there are, without those whose slot the demand takes over.
    fn counted(&self, demand: &Demand<'_>, service: &ServiceKey, label: &str) -> Rc<BTreeMap<String, u32>> {
        let mut counts = self.counts(service, label);
        if service == demand.service {
            for task in demand.gone() {
                let node = task.node.and_then(|id| self.world.node(id));
                let value = node.and_then(|node| attribute(node, label)).unwrap_or_default();
                if let Some(count) = Rc::make_mut(&mut counts).get_mut(&*value) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        counts
    }
    fn counts(&self, service: &ServiceKey, label: &str) -> Rc<BTreeMap<String, u32>> {
        let mut known = self.counts.borrow_mut();
        if let Some(found) = known.get(service).and_then(|labels| labels.get(label)) {
            return Rc::clone(found);
        }
        let counts = Rc::new(by_value(label, &self.world.nodes, self.where_is(service)));
        known.entry(service.clone()).or_default().insert(label.to_owned(), Rc::clone(&counts));
        counts
    }

    fn around(&self, demand: &Demand<'_>, to: &Neighbour, scope: &str) -> Around {
        let sibling = |name: &ServiceName| ServiceKey { app: demand.service.app.clone(), name: name.clone() };
        match to {
            Neighbour::Near(name) => {
                let found = self.neighbour(demand, sibling(name), scope, true);
                if found.is_nowhere() && self.comes_first(demand, name) { Around::Anywhere } else { found }
            }
            Neighbour::Apart(name) => self.neighbour(demand, sibling(name), scope, false),
            Neighbour::NearImage(image) => {
                let nodes = self.world.nodes_near_image(image);
                let nodes = nodes.into_iter().filter_map(|id| self.world.node(id));
                let at = nodes.filter_map(|node| attribute(node, scope)).map(std::borrow::Cow::into_owned);
                Around::Image { scope: scope.to_owned(), at: at.collect() }
            }
        }
    }
    fn neighbour(&self, demand: &Demand<'_>, service: ServiceKey, scope: &str, near: bool) -> Around {
        if scope == "node" {
            let nowhere = near && self.where_is(&service).next().is_none();
            return Around::Node { service, near, nowhere };
        }
        let counts = self.counted(demand, &service, scope);
        // Tasks on nodes without the label are in no place.
        let values = counts.iter().filter(|(value, count)| !value.is_empty() && **count > 0);
        Around::Label {
            scope: scope.to_owned(),
            values: values.map(|(value, _)| value.clone()).collect(),
            near,
        }
    }
    /// Whether two services want to be near each other, and this is the one that does not wait.
    fn comes_first(&self, demand: &Demand<'_>, other: &ServiceName) -> bool {
        let key = ServiceKey { app: demand.service.app.clone(), name: other.clone() };
        let mutual = self.world.current_spec(&key).is_some_and(|spec| {
            let near = |to: &Neighbour| matches!(to, Neighbour::Near(name) if *name == demand.service.name);
            spec.policy.affinity.iter().any(|wish| !wish.soft && near(&wish.to))
        });
        mutual && demand.service.name < *other
    }
    /// Who of the app wants to be apart from the demand's service.
    fn kept_off(&self, demand: &Demand<'_>) -> Vec<(ServiceName, String, Around)> {
        let mut known = self.apart.borrow_mut();
        let app = &demand.service.app;
        if !known.contains_key(app) {
            let mut apart = BTreeMap::<ServiceName, Vec<(ServiceName, String)>>::new();
            for record in self.world.services_of(app) {
                let Some(spec) = self.world.current_spec(&record.key) else { continue };
                for wish in spec.policy.affinity.iter().filter(|wish| !wish.soft) {
                    if let Neighbour::Apart(from) = &wish.to
                        && *from != record.key.name
                    {
                        let by = (record.key.name.clone(), wish.scope.clone());
                        apart.entry(from.clone()).or_default().push(by);
                    }
                }
            }
            known.insert(app.clone(), Rc::new(apart));
        }
        let apart = known.get(app).map(Rc::clone).unwrap_or_default();
        drop(known);
        let wishes = apart.get(&demand.service.name).map(Vec::as_slice).unwrap_or_default();
        let found = wishes.iter().map(|(by, scope)| {
            let key = ServiceKey { app: app.clone(), name: by.clone() };
            (by.clone(), scope.clone(), self.neighbour(demand, key, scope, false))
        });
        found.collect()
    }

    fn minimum(&self, demand: &Demand<'_>, wanted: &wharf_model::AvailabilityMinimum) -> Option<Minimum> {
        let replicas = demand.replicas?;
        let counts = self.counted(demand, demand.service, &wanted.over);
        let used = counts.iter().filter(|(value, count)| !value.is_empty() && **count > 0);
        let used: BTreeSet<String> = used.map(|(value, _)| value.clone()).collect();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let target = if wanted.soft {
            wanted.at_least.min(number(self.places_for(demand, &wanted.over).union(&used).count()))
        } else {
            wanted.at_least
        };
        let missing = target.saturating_sub(number(used.len()));
        let placed: u32 = counts.values().sum();
        let to_come = replicas.saturating_sub(placed).max(1);
        Some(Minimum {
            over: wanted.over.clone(),
            at_least: target,
            used,
            is_wanted: missing > 0,
            is_urgent: missing > 0 && to_come <= missing,
        })
    }
    /// The values of a label that nodes have which may take the demand's tasks and take tasks at all.
    fn places_for(&self, demand: &Demand<'_>, label: &str) -> BTreeSet<String> {
        let mut known = self.values.borrow_mut();
        let by_label = known.entry(demand.service.clone()).or_default();
        if let Some(values) = by_label.get(label) {
            return values.clone();
        }
        let takes = |node: &&crate::Node| super::is_open_at(node, self.now) && super::belongs(node, demand);
        let nodes = self.world.nodes().filter(takes);
        let values: BTreeSet<String> =
            nodes.filter_map(|node| attribute(node, label)).map(std::borrow::Cow::into_owned).collect();
        by_label.insert(label.to_owned(), values.clone());
        values
    }
}

impl<'a> Demand<'a> {
    /// The tasks that will be gone, or whose slot this one takes over.
    pub(crate) fn gone(&self) -> impl Iterator<Item = &'a Task> {
        let tasks = self.instead_of.iter().chain(&self.relieves);
        tasks.copied().filter(|task| !task.is_over())
    }
}
