//! Says why a task is where it is, or what keeps it from being anywhere, and the smallest change that would help.
//!
//! Everything is judged as it is now, by the same rules and ranks by which tasks are placed: a task that has a node is looked at as if it
//! were placed anew. Nothing is changed.

use std::cmp::Reverse;

use wharf_model::{Bytes, Cpus, NodeId, PlacementStrategy, ServiceKey, TaskId, Timestamp};

use super::{
    Demand, Places, Rank,
    refusal::{NoPlace, PinnedBy, Refusal},
    rules::{Amounts, RULES, attribute},
    surroundings::Surroundings,
};
use crate::{About, Node, SeededIds, World, pass::Pass};

/// Why one task is where it is, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whose task it is.
    pub about: About,
    /// The task, if there is one.
    pub task: Option<TaskId>,
    /// How nodes are chosen among those that can take it.
    pub strategy: PlacementStrategy,
    /// What ties it to certain nodes, if anything does, and their names.
    pub pinned: Option<(PinnedBy, Vec<String>)>,
    /// How many nodes come into question.
    pub nodes: usize,
    /// How many of them can take it.
    pub able: usize,
    /// The node it is on, as good as that is for it.
    pub chosen: Option<NodeTerms>,
    /// Of the other nodes that can take it the best; of all, if it has none.
    pub runner_up: Option<NodeTerms>,
    /// What decides between the two, in words; absent if it has no node, or there is no other.
    pub decided_by: Option<String>,
    /// Whether the other one is better by now: it would be placed there today.
    pub is_outdone: bool,
    /// Each rule that refuses nodes, the one that refuses most first.
    pub rules: Vec<RuleCount>,
    /// For each rule that alone stands in the way on some node, who would take it without.
    pub without: Vec<Counterfactual>,
    /// What would help, the smallest change first. Empty if it has a node, or some node takes it.
    pub remedies: Vec<Remedy>,
}

/// A node that can take a task, and how good it is for it: of two nodes the first term that differs decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTerms {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// What is looked at, in order.
    pub terms: Vec<Term>,
}

/// One thing that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What, in words: `tasks of web in zone a`.
    pub what: String,
    /// How it is: `2`, `yes`, `31.2 %`.
    pub value: String,
    /// The lower the better.
    pub rank: u64,
}

/// How many nodes a rule refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCount {
    /// The rule, in a few words.
    pub rule: String,
    /// What it says: of amounts, that of the node nearest to enough.
    pub refusal: Refusal,
    /// Nodes for which it is the first that says no.
    pub first: usize,
    /// All nodes to which it says no.
    pub all: usize,
}

/// Who would take a task if one rule were not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterfactual {
    /// The rule, in a few words.
    pub rule: String,
    /// The nodes, those nearest to taking it first.
    pub nodes: Vec<String>,
}

/// Something that would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// What to do: starts with a verb.
    pub text: String,
    /// The node it is about, if it is about one.
    pub node: Option<String>,
}

/// Why a task is where it is; nothing of one that is not known, is over, or belongs to no slot that is wanted.
pub fn explain_task(world: &World, task: TaskId, now: Timestamp) -> Option<Explanation> {
    let service = world.task(task)?.service.clone();
    explain_service(world, &service, now).into_iter().find(|found| found.task == Some(task))
}

/// Why each task of a service is where it is, or nowhere, slot by slot.
pub fn explain_service(world: &World, service: &ServiceKey, now: Timestamp) -> Vec<Explanation> {
    let Some(app) = world.app(&service.app) else { return Vec::new() };
    // Nothing that is drawn here is kept.
    let mut ids = SeededIds::new(0);
    let mut pass = Pass::new(world, app, now, &mut ids);
    pass.ensure_volumes();
    let Some(own) = pass.service(&service.name).cloned() else { return Vec::new() };
    if own.is_unwanted(app) {
        return Vec::new();
    }
    let asked = pass.asked(&own);
    asked
        .into_iter()
        .map(|(about, task, demand)| {
            let on = task.and_then(|task| task.node);
            explained(&pass.places, &demand, about, task.map(|task| task.id), on)
        })
        .collect()
}

/// How one node stands to a demand.
struct Judged<'w> {
    node: &'w Node,
    refusals: Vec<Refusal>,
    rank: Rank,
    terms: Vec<Term>,
    /// What is missing, in thousandths of what the node has.
    missing: u64,
}

fn explained(
    places: &Places<'_>,
    demand: &Demand<'_>,
    about: About,
    task: Option<TaskId>,
    on: Option<NodeId>,
) -> Explanation {
    let around = places.surroundings(demand);
    let judged: Vec<_> =
        places.candidates(demand).into_iter().map(|node| judge(places, demand, &around, node)).collect();
    let mut able: Vec<_> = judged.iter().filter(|node| node.refusals.is_empty()).collect();
    able.sort_by(|one, other| (&one.rank, one.node.record.id).cmp(&(&other.rank, other.node.record.id)));
    let own = judged.iter().find(|node| Some(node.node.record.id) == on);
    let other = able.iter().find(|node| Some(node.node.record.id) != on).copied();
    let is_outdone =
        own.zip(other).is_some_and(|(own, other)| !own.refusals.is_empty() || own.rank > other.rank);
    let name = |id: &NodeId| places.world.node_name(*id);
    let stuck = on.is_none() && able.is_empty();
    Explanation {
        about,
        task,
        strategy: demand.strategy,
        pinned: demand.pin.as_ref().map(|pin| (pin.by.clone(), pin.nodes.iter().map(name).collect())),
        nodes: judged.len(),
        able: able.len(),
        chosen: own.map(Judged::shown),
        runner_up: other.map(Judged::shown),
        decided_by: own.zip(other).map(|(own, other)| decided_by(own, other)),
        is_outdone,
        rules: counted(&judged),
        without: if stuck { without(&judged) } else { Vec::new() },
        remedies: if stuck { remedies(&judged) } else { Vec::new() },
    }
}

fn judge<'w>(places: &Places<'_>, demand: &Demand<'_>, around: &Surroundings, node: &'w Node) -> Judged<'w> {
    let site = places.site(node, demand);
    let refusals: Vec<_> = RULES.iter().filter_map(|rule| rule(demand, around, &site).err()).collect();
    let rank = super::rank(places, demand, around, &site);
    let missing = refusals.first().map_or(0, |refusal| missing(refusal, node));
    Judged { node, terms: terms(demand, node, &rank), refusals, rank, missing }
}

/// How much of what a node has is missing, where an amount is.
fn missing(refusal: &Refusal, node: &Node) -> u64 {
    let all = Amounts::of(node);
    let share = |need: u64, free: u64, all: u64| need.saturating_sub(free).saturating_mul(1000) / all.max(1);
    match refusal {
        Refusal::Cpus { need, free } | Refusal::LimitCpus { need, free } => share(need.0, free.0, all.cpus),
        Refusal::Memory { need, free } | Refusal::LimitMemory { need, free } => {
            share(need.0, free.0, all.memory)
        }
        Refusal::Disk { need, free } => share(need.0, free.0, all.disk),
        _ => 0,
    }
}

/// What a rank is made of, in its order.
fn terms(demand: &Demand<'_>, node: &Node, rank: &Rank) -> Vec<Term> {
    let flag = |what: &str, good: bool| Term {
        what: what.to_owned(),
        value: if good { "yes" } else { "no" }.to_owned(),
        rank: u64::from(!good),
    };
    let mut terms = Vec::new();
    if demand.avoid.is_some() {
        terms.push(flag("its last task did not fail there", !rank.failed_here));
    }
    if !demand.prefer.is_empty() {
        terms.push(flag("its data, or its home, is there", !rank.away));
    }
    if rank.wishes > 0 || demand.spec.policy.affinity.iter().any(|wish| wish.soft) {
        let (what, value) = ("wishes that are not met".to_owned(), rank.wishes.to_string());
        terms.push(Term { what, value, rank: rank.wishes.into() });
    }
    for (label, count) in demand.placement().spread.iter().zip(&rank.crowd) {
        let value = attribute(node, label).unwrap_or_default();
        let label = label.rsplit('.').next().unwrap_or(label);
        let what = format!("tasks of {} in {label} {value}", demand.service.name);
        terms.push(Term { what, value: count.to_string(), rank: (*count).into() });
    }
    let [first, second, third, fourth] = rank.order;
    let percent = |share: u64| format!("{}.{} %", share / 10, share % 10);
    // Loads count in steps before the image does, and exactly after it.
    let reserved =
        |what: &str, share: u64, rank: u64| Term { what: what.to_owned(), value: percent(share), rank };
    match demand.strategy {
        PlacementStrategy::Spread => {
            let what = format!("tasks of {} there", demand.service.name);
            terms.push(Term { what, value: first.to_string(), rank: first });
            terms.push(reserved("reserved", third, second / 2));
            terms.push(flag("has the image, if any node has", second % 2 == 0));
            terms.push(reserved("reserved, exactly", third, third));
            terms.push(Term { what: "tasks there".to_owned(), value: fourth.to_string(), rank: fourth });
        }
        PlacementStrategy::Binpack => {
            let share = u64::MAX - third;
            terms.push(reserved("reserved", share, first));
            terms.push(flag("has the image, if any node has", second == 0));
            terms.push(reserved("reserved, exactly", share, third));
        }
        PlacementStrategy::Random => {
            terms.push(Term { what: "drawn by chance".to_owned(), value: "yes".to_owned(), rank: first });
        }
    }
    terms
}

impl Judged<'_> {
    fn shown(&self) -> NodeTerms {
        let record = &self.node.record;
        NodeTerms { node: record.id, name: record.name.to_string(), terms: self.terms.clone() }
    }
    fn name(&self) -> String {
        self.node.record.name.to_string()
    }
}

fn decided_by(own: &Judged<'_>, other: &Judged<'_>) -> String {
    let (one, two) = (own.name(), other.name());
    let pairs = own.terms.iter().zip(&other.terms);
    match pairs.into_iter().find(|(own, other)| own.rank != other.rank) {
        Some((own, other)) if own.what == other.what => {
            format!("{}: {} on {one}, {} on {two}", own.what, own.value, other.value)
        }
        Some((own, other)) => format!("{}: {}; {}: {}", own.what, own.value, other.what, other.value),
        None => format!("both are as good; {one} comes first by its id"),
    }
}

fn counted(judged: &[Judged<'_>]) -> Vec<RuleCount> {
    let mut counts: Vec<RuleCount> = Vec::new();
    for node in judged {
        for (at, refusal) in node.refusals.iter().enumerate() {
            let first = usize::from(at == 0);
            let known = counts.iter_mut().find(|count| count.refusal.same_reason(refusal));
            let Some(count) = known else {
                let refusal = refusal.clone();
                counts.push(RuleCount { rule: refusal.rule(), refusal, first, all: 1 });
                continue;
            };
            count.first += first;
            count.all += 1;
            let mut nearest = vec![(count.refusal.clone(), 1)];
            super::refusal::count(&mut nearest, refusal.clone());
            count.refusal = nearest.swap_remove(0).0;
        }
    }
    counts.sort_by_key(|count| (Reverse(count.all), count.refusal.rank()));
    counts
}

/// Nodes that one rule alone keeps from taking it, by rule.
fn nearly<'j, 'w>(judged: &'j [Judged<'w>]) -> Vec<(&'j Refusal, Vec<&'j Judged<'w>>)> {
    let mut by_rule: Vec<(&Refusal, Vec<&Judged<'_>>)> = Vec::new();
    for node in judged {
        let [refusal] = node.refusals.as_slice() else { continue };
        match by_rule.iter_mut().find(|(known, _)| known.same_reason(refusal)) {
            Some((_, nodes)) => nodes.push(node),
            None => by_rule.push((refusal, vec![node])),
        }
    }
    for (_, nodes) in &mut by_rule {
        nodes.sort_by_key(|node| (node.missing, node.node.record.id));
    }
    by_rule.sort_by_key(|(refusal, nodes)| {
        let first = nodes.first().map_or(0, |node| node.missing);
        (effort(refusal), first, Reverse(nodes.len()), refusal.rank())
    });
    by_rule
}

fn without(judged: &[Judged<'_>]) -> Vec<Counterfactual> {
    let rules = nearly(judged).into_iter();
    rules
        .map(|(refusal, nodes)| Counterfactual {
            rule: refusal.rule(),
            nodes: nodes.into_iter().map(Judged::name).collect(),
        })
        .collect()
}

fn remedies(judged: &[Judged<'_>]) -> Vec<Remedy> {
    let mut remedies: Vec<_> = nearly(judged)
        .into_iter()
        .filter_map(|(_, nodes)| {
            let nearest = nodes.first()?;
            let name = nearest.name();
            let text = change(nearest.refusals.first()?, nearest.node);
            Some(Remedy { node: Some(name).filter(|name| text.contains(name.as_str())), text })
        })
        .collect();
    if remedies.is_empty() {
        let text = if judged.is_empty() {
            "join a node: `wharf agent join` on a machine adds it to the cluster".to_owned()
        } else {
            "join a node that meets all the rules: none of those there is one change away".to_owned()
        };
        remedies.push(Remedy { text, node: None });
    }
    remedies
}

/// How much it takes to change what a rule says no to.
const fn effort(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Paused | Refusal::Draining => 1,
        Refusal::DiskFull { .. } => 4,
        Refusal::Pool { .. }
        | Refusal::Taint(_)
        | Refusal::Constraint(_)
        | Refusal::PerNode { .. }
        | Refusal::Elsewhere { .. } => 2,
        Refusal::Cpus { .. }
        | Refusal::Memory { .. }
        | Refusal::Disk { .. }
        | Refusal::LimitCpus { .. }
        | Refusal::LimitMemory { .. } => 3,
        Refusal::HostPort { .. } | Refusal::HostPorts { .. } | Refusal::NoImage { .. } => 4,
        Refusal::Maintenance { .. } | Refusal::NotApart(_) | Refusal::NotNear { .. } => 5,
        Refusal::Devices(lack) => {
            if lack.is_for_want_of_room() {
                3
            } else {
                8
            }
        }
        Refusal::Places { .. } => 6,
        Refusal::NotReady(_) | Refusal::Suspected | Refusal::HeldBack | Refusal::NearNobody { .. } => 7,
        Refusal::Engine { .. } => 8,
        Refusal::Platform { .. } => 9,
    }
}

/// The smallest change after which this node takes it.
fn change(refusal: &Refusal, node: &Node) -> String {
    let name = &node.record.name;
    match refusal {
        Refusal::Paused | Refusal::Draining => {
            format!("let {name} take tasks again: `wharf node activate {name}`")
        }
        Refusal::Maintenance { .. } => format!("wait until the maintenance of {name} is over"),
        Refusal::NotReady(state) => format!("bring {name} back: it is {state}"),
        Refusal::Suspected => format!("bring {name} back: other nodes do not hear it"),
        Refusal::HeldBack => format!("wait until {name} has been steady for a while"),
        Refusal::Pool { wanted: Some(pool), .. } => {
            format!("put {name} into the pool {pool}: `wharf node update {name} --pool {pool}`")
        }
        Refusal::Pool { wanted: None, has } => {
            let pool = has.as_deref().unwrap_or_default();
            format!("write `x-wharf: {{pool: {pool}}}` into the service, or take {name} out of that pool")
        }
        Refusal::Taint(taint) => {
            format!(
                "write `x-wharf: {{tolerations: [{}]}}` into the service: {name} has the taint `{taint}`",
                taint.key
            )
        }
        Refusal::Constraint(constraint) => match constraint.key.strip_prefix("node.labels.") {
            Some(label) if constraint.equal => {
                format!("label {name}: `wharf node label {name} {label}={}`", constraint.value)
            }
            Some(label) => format!("take the label {label} from {name}"),
            None => format!("drop the constraint `{constraint}`: {name} would take it"),
        },
        Refusal::Platform { wanted } => {
            let has = node.facts().map(|facts| facts.platform.to_string()).unwrap_or_default();
            format!("use an image for {has} as well as {wanted}: {name} would take it")
        }
        Refusal::Engine { what } => format!("update Docker Engine on {name}, which does not know {what}"),
        Refusal::Places { over, at_least, used } => {
            let label = over.strip_prefix("node.labels.").unwrap_or(over);
            format!("add a node with another `{label}`: tasks have to be in {at_least}, and are in {used}")
        }
        Refusal::NearNobody { service } => format!("get {service} to run: its tasks are to be near"),
        Refusal::NotNear { service, scope } => {
            format!("write `soft: true` into the affinity: {name} has no {service} on the same {scope}")
        }
        Refusal::NotApart(apart) => format!(
            "write `soft: true` into the affinity of {}: {name} has {} on the same {}",
            apart.asked_by, apart.service, apart.scope
        ),
        Refusal::NoImage { image, .. } => format!("pull {image} on {name}"),
        Refusal::PerNode { max } => format!("raise `max_replicas_per_node` to {}", max + 1),
        Refusal::Elsewhere { at_least, .. } => {
            format!("lower `slots.elsewhere` to {}", at_least.saturating_sub(1))
        }
        Refusal::HostPort { port } => format!("free port {port} on {name}"),
        Refusal::HostPorts { from, to } => format!("free a port from {from} to {to} on {name}"),
        Refusal::Cpus { need, free } => {
            format!(
                "free {} CPUs on {name}, or reserve no more than {free}",
                Cpus(need.0.saturating_sub(free.0))
            )
        }
        Refusal::Memory { need, free } => format!(
            "free {} of memory on {name}, or reserve no more than {free}",
            Bytes(need.0.saturating_sub(free.0))
        ),
        Refusal::Disk { need, free } => format!(
            "free {} of disk on {name}, or reserve no more than {free}",
            Bytes(need.0.saturating_sub(free.0))
        ),
        Refusal::Devices(lack) => lack.change(name.as_str()),
        Refusal::DiskFull { mark, .. } => format!(
            "make room on {name}'s disks, down to less than {mark} %: `wharf node prune {name}` removes images that nobody needs"
        ),
        Refusal::LimitCpus { free, .. } => format!("lower the limit to {free} CPUs: {name} allows no more"),
        Refusal::LimitMemory { free, .. } => {
            format!("lower the limit to {free} of memory: {name} allows no more")
        }
    }
}

impl Explanation {
    /// Why no node takes it, as its waiting says it; nothing if one does.
    pub fn no_place(&self) -> Option<NoPlace> {
        let refusals = self.rules.iter().filter(|count| count.first > 0);
        let mut refusals: Vec<_> = refusals.map(|count| (count.refusal.clone(), count.first)).collect();
        refusals.sort_by_key(|(refusal, nodes)| (Reverse(*nodes), refusal.rank()));
        (self.able == 0).then(|| NoPlace { pinned: self.pinned.clone(), refusals })
    }
}
