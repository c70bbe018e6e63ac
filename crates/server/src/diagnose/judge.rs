//! Decides what to try of networks, and what it means: tables and what nodes found in, a report out.
//!
//! - Pure: nothing here asks anybody.
//! - A problem is told where it is, once: a pair whose underlay is silent is not told again for each network, a blocked tunnel not again for
//!   each task behind it.
//! - Every problem has a remedy, and where there is one the command to run and the node to run it on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use wharf_api::{
    transport::diagnose::{Look, NameAnswer, Outcome, Probe, ProbeKind},
    v1::{NetworkHealth, NetworkMend, NetworkReport, NetworkTodo},
};
use wharf_model::{Backend, NetworkId, NodeId, NodeState, Phase, Protocol, TaskId, WORD_PORT};

use super::{
    Depth,
    tables::{Member, Tables},
};

/// Clocks that differ by more than this are told, and by more than that are a problem: logs and certificates mislead.
const SKEW_NOTE: i64 = 1_000;
const SKEW_PROBLEM: i64 = 10_000;
/// Names asked in one probe.
const NAMES: usize = 500;
/// A port that is closed or open, if anything is there to answer at all.
const ANY_PORT: u16 = 22;

/// Why a probe was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Whether a node answers at all.
    Underlay { to: NodeId },
    /// The same by TCP, where echo requests are not answered.
    UnderlayTcp { to: NodeId },
    /// The largest packet between nodes.
    UnderlaySize { to: NodeId },
    /// Whether nodes can tell each other what is alive.
    Word { to: NodeId },
    /// Whether another node's bridge answers through the tunnel.
    Gateway { network: NetworkId, to: NodeId },
    /// The largest packet through the tunnel.
    GatewaySize { network: NetworkId, to: NodeId },
    /// Whether a task answers the node's bridge.
    Task { network: NetworkId, to: TaskId },
    /// Whether a task answers another.
    Inside { network: NetworkId, from: TaskId, to: TaskId },
    /// The same by IPv6.
    Inside6 { network: NetworkId, from: TaskId, to: TaskId },
    /// Whether a port of a task can be reached.
    Port { network: NetworkId, to: TaskId, port: u16 },
    /// What a responder says of names.
    Names { network: NetworkId, tcp: bool, names: Vec<String> },
    /// A datagram that nobody answers.
    OneWay,
}

/// What nodes found.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) looks: BTreeMap<NodeId, Look>,
    /// By how much each node's clock is ahead of the server's, in milliseconds.
    pub(crate) skews: BTreeMap<NodeId, i64>,
    /// Nodes that could not be asked, and why.
    pub(crate) unseen: BTreeMap<NodeId, String>,
    pub(crate) probes: Vec<(NodeId, Purpose, Outcome)>,
    /// How many probes were not made from a node, and why. They say nothing of what they were to try.
    pub(crate) unmade: BTreeMap<NodeId, (usize, String)>,
    /// Datagrams that were sent to somebody who listened, from where to where, and those that were heard.
    pub(crate) listened: BTreeSet<(NetworkId, NodeId, NodeId)>,
    pub(crate) heard: BTreeSet<(NetworkId, NodeId, NodeId)>,
}

impl Evidence {
    fn came(&self, from: NodeId, purpose: &Purpose) -> Option<&Outcome> {
        // The latest: what was asked again counts.
        self.probes
            .iter()
            .rev()
            .find(|(node, why, _)| *node == from && why == purpose)
            .map(|(_, _, outcome)| outcome)
    }
}

pub(crate) type Planned = BTreeMap<NodeId, Vec<(Purpose, Probe)>>;

/// Whether the bridges of a network's nodes reach each other.
const fn has_bridges(backend: Backend) -> bool {
    match backend {
        Backend::Vxlan | Backend::Routed | Backend::Wireguard => true,
        Backend::Macvlan | Backend::Host => false,
    }
}

fn probe(from: Option<IpAddr>, what: ProbeKind) -> Probe {
    Probe { inside: None, from, what }
}

/// What to try: every ordered pair of nodes that share a network, and their tasks.
pub(crate) fn plan(tables: &Tables, evidence: &Evidence, depth: Depth) -> Planned {
    let mut planned = Planned::new();
    let seen: Vec<NodeId> = evidence.looks.keys().copied().collect();
    for from in &seen {
        let probes = planned.entry(*from).or_default();
        for to in seen.iter().filter(|to| *to != from && !tables.shared(*from, **to).is_empty()) {
            plan_underlay(tables, *from, *to, depth, probes);
        }
        for network in tables.networks.keys().filter(|id| tables.assignment(*from, **id).is_some()) {
            plan_network(tables, evidence, (*network, *from), depth, probes);
        }
    }
    planned.retain(|_, probes| !probes.is_empty());
    planned
}

fn plan_underlay(tables: &Tables, from: NodeId, to: NodeId, depth: Depth, out: &mut Vec<(Purpose, Probe)>) {
    let (own, Some(address)) = (tables.address(from), tables.address(to)) else { return };
    out.push((Purpose::Underlay { to }, probe(own, ProbeKind::Ping(address))));
    if let (Depth::Whole, IpAddr::V4(address)) = (depth, address) {
        let what = ProbeKind::LargestPacket { to: address, up_to: 0 };
        out.push((Purpose::UnderlaySize { to }, probe(own, what)));
    }
    if depth == Depth::Whole {
        let what = ProbeKind::Udp(SocketAddr::new(address, WORD_PORT));
        out.push((Purpose::Word { to }, probe(own, what)));
    }
}

fn plan_network(
    tables: &Tables,
    evidence: &Evidence,
    (network, from): (NetworkId, NodeId),
    depth: Depth,
    out: &mut Vec<(Purpose, Probe)>,
) {
    let (Some(row), Some(own)) = (tables.networks.get(&network), tables.gateway(from, network)) else {
        return;
    };
    let bridges = has_bridges(row.record.backend);
    let own = Some(IpAddr::from(own));
    let runs = |member: &&Member| member.phase == Phase::Running;
    let inside: Vec<&Member> = row.members.iter().filter(runs).filter(|member| member.node == from).collect();
    // Every task of the network, or one of each node.
    let mut targets: Vec<&Member> = row.members.iter().filter(runs).collect();
    if depth == Depth::Fast {
        let mut nodes = BTreeSet::new();
        targets.retain(|member| nodes.insert(member.node));
    }
    targets.retain(|member| evidence.looks.contains_key(&member.node));
    for to in tables.nodes_of(network).into_iter().filter(|to| *to != from && bridges) {
        let Some(gateway) = tables.gateway(to, network).filter(|_| evidence.looks.contains_key(&to)) else {
            continue;
        };
        out.push((Purpose::Gateway { network, to }, probe(own, ProbeKind::Ping(gateway.into()))));
        if depth == Depth::Whole {
            let what = ProbeKind::LargestPacket { to: gateway, up_to: 0 };
            out.push((Purpose::GatewaySize { network, to }, probe(own, what)));
        }
    }
    for target in &targets {
        let to = target.task;
        if bridges {
            out.push((Purpose::Task { network, to }, probe(own, ProbeKind::Ping(target.address.into()))));
            let tcp = target.ports.iter().find(|(_, protocol)| *protocol == Protocol::Tcp);
            if let Some((port, _)) = tcp.filter(|_| target.ready) {
                let what = ProbeKind::Tcp(SocketAddr::new(target.address.into(), *port));
                out.push((Purpose::Port { network, to, port: *port }, probe(own, what)));
            }
        }
        for member in inside.iter().take(1).filter(|member| member.task != to) {
            let purpose = Purpose::Inside { network, from: member.task, to };
            let what = ProbeKind::Ping(target.address.into());
            out.push((purpose, Probe { inside: Some(member.task), from: Some(member.address.into()), what }));
            let (own6, to6) = (address6(tables, member, network), address6(tables, target, network));
            if let (Some(own6), Some(to6)) = (own6, to6) {
                let purpose = Purpose::Inside6 { network, from: member.task, to };
                let what = ProbeKind::Ping(to6.into());
                out.push((purpose, Probe { inside: Some(member.task), from: Some(own6.into()), what }));
            }
        }
    }
    if bridges {
        let names: Vec<String> = truth(tables, from, network).into_keys().collect();
        plan_names(tables, (network, from), &names, depth, out);
    }
}

fn plan_names(
    tables: &Tables,
    (network, node): (NetworkId, NodeId),
    names: &[String],
    depth: Depth,
    out: &mut Vec<(Purpose, Probe)>,
) {
    let (Some(gateway), Some(asker)) = (tables.gateway(node, network), asker(tables, node, network)) else {
        return;
    };
    let server = SocketAddr::new(gateway.into(), 53);
    for chunk in names.chunks(NAMES) {
        for tcp in [false, true].into_iter().filter(|tcp| !tcp || depth == Depth::Whole) {
            let what = ProbeKind::Dns { server, tcp, names: chunk.to_vec() };
            let purpose = Purpose::Names { network, tcp, names: chunk.to_vec() };
            out.push((purpose, Probe { inside: Some(asker.task), from: Some(asker.address.into()), what }));
        }
    }
}

/// The task in whose name a node's responder is asked: one of the fewest networks, since it is answered for all it is on. Where there is
/// none nobody asks.
fn asker(tables: &Tables, node: NodeId, network: NetworkId) -> Option<&Member> {
    let running = |member: &&Member| member.node == node && member.phase == Phase::Running;
    let members = tables.networks.get(&network)?.members.iter().filter(running);
    members.min_by_key(|member| (networks_of(tables, member).len(), member.task))
}

/// A task's IPv6 address on a network.
fn address6(tables: &Tables, member: &Member, network: NetworkId) -> Option<Ipv6Addr> {
    let task = tables.sets.get(&member.node)?.tasks.get(&member.task)?;
    task.attachments.iter().find(|attachment| attachment.network == network)?.address6
}

/// Tasks that answered nobody on a network although they were asked: what they ask is not answered either.
fn mute(evidence: &Evidence) -> BTreeSet<(NetworkId, TaskId)> {
    let (mut silent, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for (_, purpose, outcome) in &evidence.probes {
        let (Purpose::Task { network, to } | Purpose::Inside { network, to, .. }) = purpose else { continue };
        match outcome {
            Outcome::Answered(_) => drop(answered.insert((*network, *to))),
            Outcome::Silent => drop(silent.insert((*network, *to))),
            _ => {}
        }
    }
    &silent - &answered
}

/// Whether a node's responder was asked on a network from a task whose packets come nowhere.
fn has_mute_asker(tables: &Tables, mute: &BTreeSet<(NetworkId, TaskId)>, at: (NodeId, NetworkId)) -> bool {
    asker(tables, at.0, at.1).is_some_and(|asker| mute.contains(&(at.1, asker.task)))
}

fn networks_of(tables: &Tables, member: &Member) -> Vec<NetworkId> {
    let task = tables.sets.get(&member.node).and_then(|set| set.tasks.get(&member.task));
    task.map(|task| task.attachments.iter().map(|attachment| attachment.network).collect())
        .unwrap_or_default()
}

/// What the server says a node's responder has to answer to its asker, of the names of a network. Who is on several networks is
/// answered with the first of them, in its own order, that has the name with an address. Names that lead outside are left out.
fn truth(tables: &Tables, node: NodeId, network: NetworkId) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let Some(dns) = tables.sets.get(&node).map(|set| &set.dns) else { return BTreeMap::new() };
    let mut order =
        asker(tables, node, network).map(|member| networks_of(tables, member)).unwrap_or_default();
    if order.is_empty() {
        order.push(network);
    }
    let outside =
        |id: &NetworkId, name: &String| dns.externals.get(id).is_some_and(|names| names.contains_key(name));
    let answer = |name: &String| {
        for id in &order {
            if outside(id, name) {
                return None;
            }
            let addresses = dns.networks.get(id).and_then(|names| names.get(name));
            if let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) {
                let mut addresses = addresses.clone();
                addresses.sort_unstable();
                return Some(addresses);
            }
        }
        Some(Vec::new())
    };
    let names = dns.networks.get(&network).map(BTreeMap::keys).into_iter().flatten();
    names.filter_map(|name| Some((name.clone(), answer(name)?))).collect()
}

/// Connections to nodes that answered no echo request: some networks answer none.
pub(crate) fn plan_tcp(tables: &Tables, evidence: &Evidence) -> Planned {
    let mut planned = Planned::new();
    for (from, purpose, outcome) in &evidence.probes {
        if let (Purpose::Underlay { to }, Outcome::Silent) = (purpose, outcome)
            && let Some(address) = tables.address(*to)
        {
            let what = ProbeKind::Tcp(SocketAddr::new(address, ANY_PORT));
            let tcp = (Purpose::UnderlayTcp { to: *to }, probe(tables.address(*from), what));
            planned.entry(*from).or_default().push(tcp);
        }
    }
    planned
}

/// Tunnels through which nothing came back although the nodes reach each other: network, from, to, one direction of each.
pub(crate) fn silent_tunnels(evidence: &Evidence) -> BTreeSet<(NetworkId, NodeId, NodeId)> {
    let silent = evidence.probes.iter().filter_map(|(from, purpose, outcome)| match (purpose, outcome) {
        (Purpose::Gateway { network, to }, Outcome::Silent) => Some((*network, *from.min(to), *from.max(to))),
        _ => None,
    });
    silent.filter(|(_, a, b)| reaches(evidence, *a, *b) || reaches(evidence, *b, *a)).collect()
}

/// Whether one node has any answer of another.
fn reaches(evidence: &Evidence, from: NodeId, to: NodeId) -> bool {
    let answered =
        |purpose| matches!(evidence.came(from, &purpose), Some(Outcome::Answered(_) | Outcome::Refused(_)));
    answered(Purpose::Underlay { to }) || answered(Purpose::UnderlayTcp { to })
}

/// A name that is not answered as the tables say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct WrongName {
    node: NodeId,
    network: NetworkId,
    name: String,
    tcp: bool,
    said: String,
    right: Vec<Ipv4Addr>,
}

impl WrongName {
    /// Whether there was no answer at all.
    fn is_silent(&self) -> bool {
        self.said == NOTHING || self.said == "nothing listens there"
    }
}

/// What a responder said that said nothing.
const NOTHING: &str = "nothing";

fn wrong_names(tables: &Tables, evidence: &Evidence) -> Vec<WrongName> {
    // The latest answer to each question.
    let mut latest: BTreeMap<(NodeId, NetworkId, &str, bool), &NameAnswer> = BTreeMap::new();
    for (node, purpose, outcome) in &evidence.probes {
        if let (Purpose::Names { network, tcp, names }, Outcome::Names(answers)) = (purpose, outcome) {
            for (name, answer) in names.iter().zip(answers) {
                latest.insert((*node, *network, name, *tcp), answer);
            }
        }
    }
    let mut truths: BTreeMap<(NodeId, NetworkId), BTreeMap<String, Vec<Ipv4Addr>>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for ((node, network, name, tcp), answer) in latest {
        let truth = truths.entry((node, network)).or_insert_with(|| truth(tables, node, network));
        // A name that is gone by now need not be right.
        let Some(right) = truth.get(name) else { continue };
        let said = match answer {
            NameAnswer::Addresses(said) if said == right => continue,
            NameAnswer::Addresses(said) if is_virtual(tables, node, name, said) => continue,
            NameAnswer::Addresses(said) => list(said),
            NameAnswer::Code(code) => code.clone(),
            NameAnswer::Silent => NOTHING.to_owned(),
            NameAnswer::Broken(reason) => reason.clone(),
        };
        wrong.push(WrongName { node, network, name: name.to_owned(), tcp, said, right: right.clone() });
    }
    wrong
}

/// Whether an answer is a service's virtual address, which tasks get that can use it.
fn is_virtual(tables: &Tables, node: NodeId, name: &str, said: &[Ipv4Addr]) -> bool {
    let mut vips = tables.sets.get(&node).into_iter().flat_map(|set| set.dns.vips.values());
    let leads = |service: &wharf_model::VirtualService| service.names.contains(name);
    said.len() == 1 && vips.any(|vips| vips.get(&said[0]).is_some_and(leads))
}

/// The names to ask again: what was wrong may only have been late. What was not answered at all is among them `with_silent` ones only:
/// waiting for it takes long.
pub(crate) fn plan_names_again(tables: &Tables, evidence: &Evidence, with_silent: bool) -> Planned {
    let mut names: BTreeMap<(NodeId, NetworkId), BTreeSet<String>> = BTreeMap::new();
    let mute = mute(evidence);
    for wrong in wrong_names(tables, evidence) {
        let is_in_vain = has_mute_asker(tables, &mute, (wrong.node, wrong.network));
        if is_in_vain || (wrong.is_silent() && !with_silent) {
            continue;
        }
        names.entry((wrong.node, wrong.network)).or_default().insert(wrong.name);
    }
    let whole =
        evidence.probes.iter().any(|(_, purpose, _)| matches!(purpose, Purpose::Names { tcp: true, .. }));
    let depth = if whole { Depth::Whole } else { Depth::Fast };
    let mut planned = Planned::new();
    for ((node, network), names) in names {
        let names: Vec<String> = names.into_iter().collect();
        plan_names(tables, (network, node), &names, depth, planned.entry(node).or_default());
    }
    planned
}

fn list(addresses: &[Ipv4Addr]) -> String {
    if addresses.is_empty() {
        return "no address".to_owned();
    }
    let shown: Vec<_> = addresses.iter().take(4).map(ToString::to_string).collect();
    let more = if addresses.len() > 4 { format!(" and {} more", addresses.len() - 4) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// How grave something is; the gravest is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gravity {
    /// A node or a link between nodes.
    Node,
    /// A tunnel between nodes.
    Tunnel,
    /// A task or names.
    Task,
    /// Nothing is broken by it now.
    Note,
}

struct Findings<'a> {
    tables: &'a Tables,
    evidence: &'a Evidence,
    todo: BTreeSet<(Gravity, NetworkTodo)>,
    sick: BTreeSet<NetworkId>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        gravity: Gravity,
        networks: impl IntoIterator<Item = NetworkId>,
        problem: String,
        remedy: impl Into<String>,
        command: Option<(NodeId, String)>,
    ) {
        let (node, command) = match command {
            Some((node, command)) => (Some(self.tables.name(node).to_owned()), Some(command)),
            None => (None, None),
        };
        if gravity != Gravity::Note {
            self.sick.extend(networks);
        }
        self.todo.insert((gravity, NetworkTodo { problem, remedy: remedy.into(), node, command }));
    }

    fn name(&self, node: NodeId) -> String {
        self.tables.name(node).to_owned()
    }

    fn networks_of(&self, node: NodeId) -> Vec<NetworkId> {
        let has = |id: &NetworkId| self.tables.assignment(node, *id).is_some();
        self.tables.networks.keys().copied().filter(has).collect()
    }
}

/// What was found, put into words.
pub(crate) fn report(tables: &Tables, evidence: &Evidence, depth: Depth) -> NetworkReport {
    let mut findings = Findings { tables, evidence, todo: BTreeSet::new(), sick: BTreeSet::new() };
    judge_nodes(&mut findings);
    judge_mtus(&mut findings);
    let broken = judge_links(&mut findings);
    judge_tasks(&mut findings, &broken);
    judge_names(&mut findings);
    let Findings { todo, sick, .. } = findings;
    let (notes, todo): (Vec<_>, Vec<_>) =
        todo.into_iter().partition(|(gravity, _)| *gravity == Gravity::Note);
    NetworkReport {
        networks: tables
            .networks
            .keys()
            .map(|id| health(tables, evidence, *id, !sick.contains(id), depth))
            .collect(),
        mended: mended(tables, evidence),
        todo: todo.into_iter().map(|(_, todo)| todo).collect(),
        notes: notes.into_iter().map(|(_, todo)| todo).collect(),
        probes: evidence.probes.iter().map(|(_, purpose, _)| questions(purpose)).sum(),
        millis: 0,
    }
}

fn questions(purpose: &Purpose) -> usize {
    match purpose {
        Purpose::Names { names, .. } => names.len(),
        _ => 1,
    }
}

fn mended(tables: &Tables, evidence: &Evidence) -> Vec<NetworkMend> {
    let mended = evidence.looks.iter().flat_map(|(node, look)| {
        look.mended.iter().map(|mend| NetworkMend {
            node: tables.name(*node).to_owned(),
            network: mend
                .network
                .map_or_else(|| format!("identifier {}", mend.vni), |id| tables.network_name(id)),
            fault: mend.fault.clone(),
            count: mend.count,
            ago: mend.ago,
        })
    });
    mended.collect()
}

/// Each node by itself.
fn judge_nodes(findings: &mut Findings<'_>) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    for (node, reason) in &evidence.unseen {
        let Some(row) = tables.nodes.get(node) else { continue };
        let networks = findings.networks_of(*node);
        let why = if row.reason.is_empty() { reason } else { &row.reason };
        let problem = format!("{} cannot be looked at: it is {}: {why}", row.name, row.state);
        let remedy = match row.state {
            NodeState::EngineDown => "start its engine: `systemctl start docker`",
            NodeState::Ready | NodeState::Joining | NodeState::Unreachable | NodeState::Down => {
                "on that machine: is it up, does `wharf agent run` run, does it reach the servers?"
            }
        };
        findings.add(
            Gravity::Node,
            networks,
            problem,
            remedy,
            Some((*node, "systemctl restart wharf-agent".into())),
        );
    }
    for (node, (count, reason)) in &evidence.unmade {
        let problem = format!(
            "{}: {count} of the probes from there were not made: {reason}; what they were to try is not known",
            findings.name(*node)
        );
        let networks = findings.networks_of(*node);
        let remedy = "ask again, for less at once with `--network` or `--fast`; if its agent does not answer, its log says more";
        findings.add(
            Gravity::Node,
            networks,
            problem,
            remedy,
            Some((*node, "journalctl -u wharf-agent".into())),
        );
    }
    for (node, look) in &evidence.looks {
        judge_look(findings, *node, look);
    }
}

fn judge_look(findings: &mut Findings<'_>, node: NodeId, look: &Look) {
    let name = findings.name(node);
    let networks = findings.networks_of(node);
    if let Some(error) = &look.repair_error {
        let problem = format!("{name}: its kernel cannot be compared with the tables: {error}");
        findings.add(
            Gravity::Node,
            networks.clone(),
            problem,
            "the agent has to run as root, and the node's address has to be on an interface",
            None,
        );
    }
    for problem in &look.problems {
        findings.add(
            Gravity::Node,
            networks.clone(),
            format!("{name}: {problem}"),
            "its agent tries again by itself; if it does not go away, its log says more",
            Some((node, "journalctl -u wharf-agent".into())),
        );
    }
    judge_clash(findings, node, look);
    for user in &look.port_users {
        let problem = format!("{name}: UDP port {} is used by {user} as well", look.vxlan_port);
        findings.add(
            Gravity::Note,
            [],
            problem,
            "remove it, or move it to another port: packets of the one can be taken by the other",
            None,
        );
    }
    if look.sysctls.get("net/ipv4/ip_forward").is_some_and(|value| value == "0") {
        let problem = format!(
            "{name} forwards no packets (net.ipv4.ip_forward is 0): containers reach nothing outside, and routed networks nothing at all"
        );
        findings.add(
            Gravity::Node,
            networks,
            problem,
            "switch forwarding on, also in /etc/sysctl.conf",
            Some((node, "sysctl -w net.ipv4.ip_forward=1".into())),
        );
    }
    for tool in &look.missing_tools {
        let package = if tool == "nft" { "nftables" } else { tool };
        let problem = format!("{name} lacks the program `{tool}`, which some networks and the engine need");
        findings.add(
            Gravity::Note,
            [],
            problem,
            format!("install the package {package}"),
            Some((node, format!("apt-get install -y {package}"))),
        );
    }
    if findings.tables.nodes.get(&node).and_then(|row| row.live_restore) == Some(false) {
        let problem = format!(
            "{name}: its engine does not have live-restore: containers stop when the engine restarts"
        );
        findings.add(
            Gravity::Note,
            [],
            problem,
            "set `\"live-restore\": true` in /etc/docker/daemon.json and reload the engine",
            Some((node, "systemctl reload docker".into())),
        );
    }
    let skew = findings.evidence.skews.get(&node).copied().unwrap_or_default();
    if skew.abs() > SKEW_NOTE {
        let direction = if skew > 0 { "ahead of" } else { "behind" };
        let seconds = skew.unsigned_abs() / 1000;
        let problem = format!("{name}: its clock is {seconds} s {direction} the server's");
        let gravity = if skew.abs() > SKEW_PROBLEM { Gravity::Task } else { Gravity::Note };
        findings.add(
            gravity,
            [],
            problem,
            "set it by NTP: certificates and logs go by it",
            Some((node, "timedatectl set-ntp true".into())),
        );
    }
}

/// Routes of the machine that lead addresses of a network elsewhere.
fn judge_clash(findings: &mut Findings<'_>, node: NodeId, look: &Look) {
    let name = findings.name(node);
    let tables = findings.tables;
    for (id, row) in &tables.networks {
        let Some(assignment) = tables.assignment(node, *id) else { continue };
        let subnet = row.record.subnet;
        let ours: BTreeSet<IpNet> = assignment
            .remote_blocks
            .iter()
            .map(|remote| remote.block.into())
            .chain(assignment.blocks.iter().map(|block| (*block).into()))
            .collect();
        for (route, device) in &look.routes {
            let IpNet::V4(net) = route else { continue };
            let overlaps = net.contains(&subnet.network()) || subnet.contains(&net.network());
            // The backend's own routes lead to nodes.
            let is_ours =
                ours.contains(route) || (row.record.backend != Backend::Vxlan && device.starts_with("wg"));
            if overlaps && !is_ours {
                let effect = if net.prefix_len() > subnet.prefix_len() {
                    format!("packets for {net} leave the network there")
                } else {
                    "the machine's own addresses behind it cannot be reached".to_owned()
                };
                let problem = format!(
                    "{name} has a route to {net} by {device}, and network {} has {subnet}: {effect}",
                    row.name
                );
                let remedy = format!(
                    "remove the route, or give the network another subnet (`ipam` in the Compose file of {})",
                    row.record.app.name
                );
                findings.add(
                    Gravity::Node,
                    [*id],
                    problem,
                    remedy,
                    Some((node, format!("ip route del {net} dev {device}"))),
                );
            }
        }
    }
}

/// Interfaces of different sizes.
fn judge_mtus(findings: &mut Findings<'_>) {
    let uplinks: Vec<(NodeId, String, u32)> = findings
        .evidence
        .looks
        .iter()
        .filter_map(|(node, look)| look.uplink.clone().map(|(device, mtu)| (*node, device, mtu)))
        .collect();
    let Some(least) = uplinks.iter().map(|(_, _, mtu)| *mtu).min() else { return };
    let most = uplinks.iter().map(|(_, _, mtu)| *mtu).max().unwrap_or(least);
    if least == most {
        return;
    }
    let by: Vec<String> = uplinks
        .iter()
        .map(|(node, device, mtu)| format!("{} {device} {mtu}", findings.name(*node)))
        .collect();
    let problem = format!(
        "the nodes' interfaces have different MTUs ({}): large packets to those with the smaller one are lost",
        by.join(", ")
    );
    let networks: Vec<_> = findings.tables.networks.keys().copied().collect();
    // The one that differs from most of the others is the one to change.
    let small = uplinks.iter().filter(|(_, _, mtu)| *mtu != most).count();
    let odd = if small * 2 > uplinks.len() { most } else { least };
    let Some((node, device, mtu)) = uplinks.iter().find(|(_, _, mtu)| *mtu == odd).cloned() else { return };
    let wanted = if mtu == most { least } else { most };
    let remedy = "give all the same; networks follow within seconds, containers that were made meanwhile when they are made anew (`wharf restart`)";
    findings.add(
        Gravity::Node,
        networks,
        problem,
        remedy,
        Some((node, format!("ip link set dev {device} mtu {wanted}"))),
    );
}

/// What is wrong between nodes, without the tasks behind.
pub(crate) fn links(tables: &Tables, evidence: &Evidence) -> Vec<NetworkTodo> {
    let mut findings = Findings { tables, evidence, todo: BTreeSet::new(), sick: BTreeSet::new() };
    judge_mtus(&mut findings);
    judge_links(&mut findings);
    findings.todo.into_iter().map(|(_, todo)| todo).collect()
}

/// What to try between two nodes on one network.
pub(crate) fn plan_link(tables: &Tables, network: NetworkId, (a, b): (NodeId, NodeId)) -> Planned {
    let mut planned = Planned::new();
    for (from, to) in [(a, b), (b, a)] {
        let probes = planned.entry(from).or_default();
        plan_underlay(tables, from, to, Depth::Whole, probes);
        if let (Some(own), Some(gateway)) = (tables.gateway(from, network), tables.gateway(to, network)) {
            let own = Some(own.into());
            probes.push((Purpose::Gateway { network, to }, probe(own, ProbeKind::Ping(gateway.into()))));
        }
    }
    planned
}

/// Links between nodes and the tunnels over them; answers the pairs that do not work, by network.
fn judge_links(findings: &mut Findings<'_>) -> BTreeSet<(NetworkId, NodeId, NodeId)> {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let mut broken = BTreeSet::new();
    let seen: Vec<NodeId> = evidence.looks.keys().copied().collect();
    for (position, a) in seen.iter().enumerate() {
        for b in &seen[position + 1..] {
            let shared: Vec<NetworkId> = tables
                .shared(*a, *b)
                .into_iter()
                .filter(|id| tables.networks.get(id).is_some_and(|row| has_bridges(row.record.backend)))
                .collect();
            if !shared.is_empty() {
                judge_link(findings, (*a, *b), &shared, &mut broken);
            }
        }
    }
    broken
}

fn judge_link(
    findings: &mut Findings<'_>,
    (a, b): (NodeId, NodeId),
    shared: &[NetworkId],
    broken: &mut BTreeSet<(NetworkId, NodeId, NodeId)>,
) {
    let evidence = findings.evidence;
    let silent: Vec<NetworkId> = shared
        .iter()
        .copied()
        .filter(|id| {
            let is_silent = |from, to| {
                matches!(
                    evidence.came(from, &Purpose::Gateway { network: *id, to }),
                    Some(Outcome::Silent | Outcome::Impossible(_))
                )
            };
            is_silent(a, b) || is_silent(b, a)
        })
        .collect();
    for id in &silent {
        broken.extend([(*id, a, b), (*id, b, a)]);
    }
    let underlay = reaches(evidence, a, b) || reaches(evidence, b, a);
    if !underlay && silent.len() == shared.len() {
        return judge_silence(findings, (a, b), shared);
    }
    if !silent.is_empty() {
        judge_tunnels(findings, (a, b), shared, &silent);
    }
    for (from, to) in [(a, b), (b, a)] {
        judge_size(findings, (from, to), shared);
        if underlay {
            judge_word(findings, (from, to), shared);
        }
    }
}

/// Nothing comes through between two nodes that both speak to the server.
fn judge_silence(findings: &mut Findings<'_>, (a, b): (NodeId, NodeId), shared: &[NetworkId]) {
    let tables = findings.tables;
    let address = |node| {
        tables.address(node).map_or_else(|| "no known address".to_owned(), |address| address.to_string())
    };
    let problem = format!(
        "{} ({}) and {} ({}) do not reach each other at all: neither echo requests nor TCP are answered, and no tunnel works",
        findings.name(a),
        address(a),
        findings.name(b),
        address(b)
    );
    let remedy = "look at cables, routes and firewalls between the two machines; both reach the server";
    let command = format!("ping -c 3 {}", address(b));
    findings.add(Gravity::Node, shared.iter().copied(), problem, remedy, Some((a, command)));
}

/// The nodes reach each other, and tunnels between them are silent.
fn judge_tunnels(
    findings: &mut Findings<'_>,
    (a, b): (NodeId, NodeId),
    shared: &[NetworkId],
    silent: &[NetworkId],
) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let of_backend = |backend: Backend, ids: &[NetworkId]| -> Vec<NetworkId> {
        let is_of = |id: &NetworkId| tables.networks.get(id).is_some_and(|row| row.record.backend == backend);
        ids.iter().copied().filter(is_of).collect()
    };
    for backend in Backend::ALL {
        let (all, dead) = (of_backend(backend, shared), of_backend(backend, silent));
        if dead.is_empty() {
            continue;
        }
        let is_heard = |from, to| dead.iter().any(|id| evidence.heard.contains(&(*id, from, to)));
        let was_tried = |from, to| dead.iter().any(|id| evidence.listened.contains(&(*id, from, to)));
        let lost: Vec<(NodeId, NodeId)> = [(a, b), (b, a)]
            .into_iter()
            .filter(|(from, to)| was_tried(*from, *to) && !is_heard(*from, *to))
            .collect();
        if dead.len() < all.len() || lost.is_empty() || !matches!(backend, Backend::Vxlan) {
            judge_one_tunnel(findings, backend, (a, b), &dead, &lost);
            continue;
        }
        let port = evidence.looks.get(&a).map_or(4790, |look| look.vxlan_port);
        for (from, to) in lost {
            let (names, address) = ((findings.name(from), findings.name(to)), tables.address(from));
            let problem = format!(
                "UDP port {port} from {} to {} is blocked: the machines reach each other, and VXLAN packets do not arrive",
                names.0, names.1
            );
            let remedy = format!(
                "open it in {}'s firewall, in {}'s for what leaves, and in the cloud's security group",
                names.1, names.0
            );
            let source = address.map(|address| format!("-s {address} ")).unwrap_or_default();
            let command = format!("iptables -I INPUT {source}-p udp --dport {port} -j ACCEPT");
            findings.add(Gravity::Tunnel, dead.iter().copied(), problem, remedy, Some((to, command)));
        }
    }
}

/// A tunnel that fails although others between the same nodes work, or for another reason than a blocked port.
fn judge_one_tunnel(
    findings: &mut Findings<'_>,
    backend: Backend,
    (a, b): (NodeId, NodeId),
    dead: &[NetworkId],
    lost: &[(NodeId, NodeId)],
) {
    let tables = findings.tables;
    for id in dead {
        let way = match lost {
            [] => "packets arrive in both directions, and echo requests are not answered".to_owned(),
            lost => {
                let ways: Vec<_> = lost
                    .iter()
                    .map(|(from, to)| format!("from {} to {}", findings.name(*from), findings.name(*to)))
                    .collect();
                format!("packets {} are lost", ways.join(" and "))
            }
        };
        let problem = format!(
            "network {} ({backend}) does not work between {} and {}: {way}",
            tables.network_name(*id),
            findings.name(a),
            findings.name(b)
        );
        let remedy = match (backend, lost.is_empty()) {
            (_, true) => "a firewall on one of them drops what comes in on the bridge: let it pass",
            (Backend::Routed, false) => {
                "the machines between them have no route for the network's blocks, or a firewall drops forwarded packets: see what the trace says"
            }
            (Backend::Wireguard, false) => {
                "the tunnel between them is not up: see what the trace says, and whether UDP of the tunnel's port passes"
            }
            (Backend::Vxlan | Backend::Macvlan | Backend::Host, false) => "see what the trace says",
        };
        let command = format!(
            "wharf network trace --network {} {} {}",
            tables.network_name(*id),
            findings.name(a),
            findings.name(b)
        );
        let todo = NetworkTodo { problem, remedy: remedy.into(), node: None, command: Some(command) };
        findings.sick.insert(*id);
        findings.todo.insert((Gravity::Tunnel, todo));
    }
}

/// Nodes that reach each other and cannot tell each other what is alive, while servers are away.
fn judge_word(findings: &mut Findings<'_>, (from, to): (NodeId, NodeId), shared: &[NetworkId]) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let (names, address) = ((findings.name(from), findings.name(to)), tables.address(from));
    let effect =
        "while no server reaches one of them, names go on leading to tasks that have ended on the other";
    match evidence.came(from, &Purpose::Word { to }) {
        Some(Outcome::Silent) => {
            let problem =
                format!("UDP port {WORD_PORT} from {} to {} is blocked: {effect}", names.0, names.1);
            let remedy = format!("open it in {}'s firewall, and in the cloud's security group", names.1);
            let source = address.map(|address| format!("-s {address} ")).unwrap_or_default();
            let command = format!("iptables -I INPUT {source}-p udp --dport {WORD_PORT} -j ACCEPT");
            findings.add(Gravity::Note, shared.iter().copied(), problem, remedy, Some((to, command)));
        }
        Some(Outcome::Refused(_)) => {
            let problem = format!("nobody listens at UDP port {WORD_PORT} of {}: {effect}", names.1);
            let remedy = "another program has the port, or the agent is an older one: its log says which; upgrade it, or free the port and start it again";
            let command = "journalctl -u wharf-agent".to_owned();
            findings.add(Gravity::Note, shared.iter().copied(), problem, remedy, Some((to, command)));
        }
        _ => {}
    }
}

/// Packets that are smaller than an interface says come through, and larger ones do not.
fn judge_size(findings: &mut Findings<'_>, (from, to): (NodeId, NodeId), shared: &[NetworkId]) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let names = (findings.name(from), findings.name(to));
    let device = |node| evidence.looks.get(&node).and_then(|look| look.uplink.clone());
    // Told already, of all of them at once.
    if device(from).map(|(_, mtu)| mtu) != device(to).map(|(_, mtu)| mtu) {
        return;
    }
    if let Some(Outcome::Largest { of, bytes }) = evidence.came(from, &Purpose::UnderlaySize { to })
        && bytes < of
        && *bytes > 0
    {
        let problem = format!(
            "the path from {} to {} carries packets of {bytes} bytes, and its interface is set to {of}: larger ones are lost",
            names.0, names.1
        );
        let remedy = "set the interface's MTU to what the path carries, or mend the path; networks follow within seconds, containers when they are made anew";
        let name = device(from).map_or_else(|| "eth0".to_owned(), |(name, _)| name);
        findings.add(
            Gravity::Tunnel,
            shared.iter().copied(),
            problem,
            remedy,
            Some((from, format!("ip link set dev {name} mtu {bytes}"))),
        );
        return;
    }
    for id in shared {
        if let Some(Outcome::Largest { of, bytes }) =
            evidence.came(from, &Purpose::GatewaySize { network: *id, to })
            && bytes < of
            && *bytes > 0
        {
            let problem = format!(
                "network {} carries packets of {bytes} bytes from {} to {}, and its interfaces are set to {of}: larger ones are lost",
                tables.network_name(*id),
                names.0,
                names.1
            );
            let remedy = "the interfaces of the two machines differ, or one between them is smaller: give all the same MTU";
            let name = device(from).map_or_else(|| "eth0".to_owned(), |(name, _)| name);
            findings.add(
                Gravity::Tunnel,
                [*id],
                problem,
                remedy,
                Some((from, format!("ip link show dev {name}"))),
            );
        }
    }
}

/// Who asked: a task, or a node by its name.
type Askers = BTreeSet<(Option<TaskId>, String)>;

/// Tasks behind links that work.
fn judge_tasks(findings: &mut Findings<'_>, broken: &BTreeSet<(NetworkId, NodeId, NodeId)>) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    // From where each task was silent, and from where it was not.
    let mut silent: BTreeMap<(NetworkId, TaskId), Askers> = BTreeMap::new();
    let mut answered: BTreeSet<(NetworkId, TaskId)> = BTreeSet::new();
    for (node, purpose, outcome) in &evidence.probes {
        let (network, to, from) = match purpose {
            Purpose::Task { network, to } => (*network, *to, (None, tables.name(*node).to_owned())),
            Purpose::Inside { network, from, to } => {
                let name = tables.member(*network, *from).map(|member| member.name.clone());
                (*network, *to, (Some(*from), name.unwrap_or_else(|| from.to_string())))
            }
            _ => continue,
        };
        let Some(member) = tables.member(network, to).filter(|member| member.phase == Phase::Running) else {
            continue;
        };
        match outcome {
            Outcome::Answered(_) => drop(answered.insert((network, to))),
            Outcome::Silent if !broken.contains(&(network, *node, member.node)) => {
                silent.entry((network, to)).or_default().insert(from);
            }
            _ => {}
        }
    }
    let mute = mute(evidence);
    for ((network, to), mut from) in silent {
        let Some(member) = tables.member(network, to) else { continue };
        if answered.contains(&(network, to)) {
            // It is the asker that has no network, which is told of the asker.
            from.retain(|(asker, _)| asker.is_none_or(|asker| !mute.contains(&(network, asker))));
            if from.is_empty() {
                continue;
            }
        }
        let from: Vec<_> = from.into_iter().map(|(_, name)| name).collect();
        let (name, node) = (&member.name, findings.name(member.node));
        let problem = if answered.contains(&(network, to)) {
            format!(
                "{name} ({}) on {node} does not answer {}, and answers others",
                member.address,
                from.join(", ")
            )
        } else {
            format!("{name} ({}) on {node} answers nobody, not even its own node", member.address)
        };
        let asker = from.first().cloned().unwrap_or_default();
        let todo = NetworkTodo {
            problem,
            remedy:
                "the trace says where its packets end; a new container has new interfaces (`wharf restart`)"
                    .into(),
            node: None,
            command: Some(format!(
                "wharf network trace --network {} {asker} {name}",
                tables.network_name(network)
            )),
        };
        findings.sick.insert(network);
        findings.todo.insert((Gravity::Task, todo));
    }
    judge_ports(findings, broken);
    judge_ipv6(findings);
}

/// Tasks that answer by IPv4 and not by IPv6.
fn judge_ipv6(findings: &mut Findings<'_>) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    for (node, purpose, outcome) in &evidence.probes {
        let (Purpose::Inside6 { network, from, to }, Outcome::Silent | Outcome::Impossible(_)) =
            (purpose, outcome)
        else {
            continue;
        };
        let by_four = Purpose::Inside { network: *network, from: *from, to: *to };
        let (Some(asker), Some(member)) = (tables.member(*network, *from), tables.member(*network, *to))
        else {
            continue;
        };
        // What does not come by IPv4 either is told already.
        let answers = matches!(evidence.came(*node, &by_four), Some(Outcome::Answered(_)));
        if !answers || member.phase != Phase::Running || asker.phase != Phase::Running {
            continue;
        }
        let reason = match outcome {
            Outcome::Impossible(reason) => format!(": {reason}"),
            _ => String::new(),
        };
        let problem = format!(
            "{} on {} does not answer {} by IPv6, and by IPv4 it does{reason}",
            member.name,
            findings.name(member.node),
            asker.name
        );
        let remedy = "does the machine have IPv6, and does no firewall (ip6tables, nft) drop it? a new container has new addresses (`wharf restart`)";
        findings.add(
            Gravity::Task,
            [*network],
            problem,
            remedy,
            Some((member.node, "sysctl net.ipv6.conf.all.disable_ipv6 net.ipv6.conf.all.forwarding".into())),
        );
    }
}

fn judge_ports(findings: &mut Findings<'_>, broken: &BTreeSet<(NetworkId, NodeId, NodeId)>) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    for (node, purpose, outcome) in &evidence.probes {
        let Purpose::Port { network, to, port } = purpose else { continue };
        let Some(member) = tables.member(*network, *to).filter(|member| member.ready) else { continue };
        let pinged = matches!(
            evidence.came(*node, &Purpose::Task { network: *network, to: *to }),
            Some(Outcome::Answered(_))
        );
        match outcome {
            Outcome::Silent if pinged && !broken.contains(&(*network, *node, member.node)) => {
                let problem = format!(
                    "{} answers echo requests of {}, and connections to its port {port} are dropped",
                    member.name,
                    findings.name(*node)
                );
                let remedy = "a firewall on the way or in the container drops them";
                let todo = NetworkTodo {
                    problem,
                    remedy: remedy.into(),
                    node: None,
                    command: Some(format!(
                        "wharf network trace --network {} {} {} --port {port}",
                        tables.network_name(*network),
                        tables.name(*node),
                        member.name
                    )),
                };
                findings.sick.insert(*network);
                findings.todo.insert((Gravity::Task, todo));
            }
            Outcome::Refused(_) => {
                let problem =
                    format!("{} says it listens on port {port}, and refuses connections", member.name);
                let remedy = "does the program listen on all addresses (0.0.0.0), and on that port? `expose` and `ports` of the Compose file say it does";
                findings.add(Gravity::Note, [], problem, remedy, None);
            }
            _ => {}
        }
    }
}

/// Names that are not answered as the tables say.
fn judge_names(findings: &mut Findings<'_>) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let mute = mute(evidence);
    let mut wrong: BTreeMap<(NodeId, NetworkId), Vec<WrongName>> = BTreeMap::new();
    let mut silent: BTreeMap<NodeId, Vec<WrongName>> = BTreeMap::new();
    for name in wrong_names(tables, evidence) {
        let at = (name.node, name.network);
        if has_mute_asker(tables, &mute, at) {
            continue;
        }
        match name.is_silent() {
            true => silent.entry(name.node).or_default().push(name),
            false => wrong.entry(at).or_default().push(name),
        }
    }
    judge_silent_names(findings, silent, &mute);
    for ((node, network), names) in wrong {
        let name = findings.name(node);
        let behind = evidence.looks.get(&node).zip(tables.sets.get(&node)).is_some_and(|(look, set)| {
            look.networks.get(&network) != wharf_api::transport::diagnose::digest(set, network).as_ref()
        });
        let first = &names[0];
        let over = over(&names);
        let different = distinct(&names);
        let problem = format!(
            "{name} answers {} of network {} wrongly{over}: for `{}` it says {}, and the server {}",
            if different == 1 { "a name".to_owned() } else { format!("{different} names") },
            tables.network_name(network),
            first.name,
            first.said,
            list(&first.right)
        );
        let remedy = if behind {
            "its agent does not have the present tables: does it reach the server? A restart fetches them"
        } else {
            "its agent has the present tables; a restart of it serves them anew, and its log says why it did not"
        };
        findings.add(
            Gravity::Task,
            [network],
            problem,
            remedy,
            Some((node, "systemctl restart wharf-agent".into())),
        );
    }
}

/// By what only it was asked when it was not as it should be.
fn over(names: &[WrongName]) -> &'static str {
    match (names.iter().all(|name| name.tcp), names.iter().any(|name| name.tcp)) {
        (true, _) => " by TCP",
        (false, true) => "",
        (false, false) => " by UDP",
    }
}

fn distinct(names: &[WrongName]) -> usize {
    names.iter().map(|name| (name.network, &name.name)).collect::<BTreeSet<_>>().len()
}

/// Responders that say nothing: told once for each node, since one process answers on all its networks.
fn judge_silent_names(
    findings: &mut Findings<'_>,
    mut silent: BTreeMap<NodeId, Vec<WrongName>>,
    mute: &BTreeSet<(NetworkId, TaskId)>,
) {
    let (tables, evidence) = (findings.tables, findings.evidence);
    let mut refused: BTreeMap<NodeId, BTreeMap<NetworkId, String>> = BTreeMap::new();
    for (node, purpose, outcome) in &evidence.probes {
        if let (Purpose::Names { network, tcp, .. }, Outcome::Impossible(reason)) = (purpose, outcome)
            && tables.assignment(*node, *network).is_some()
            && !has_mute_asker(tables, mute, (*node, *network))
            // What was asked again counts.
            && matches!(latest_of(evidence, *node, *network, *tcp), Some(Outcome::Impossible(_)))
        {
            refused.entry(*node).or_default().insert(*network, reason.clone());
        }
    }
    let nodes: BTreeSet<NodeId> = silent.keys().chain(refused.keys()).copied().collect();
    for node in nodes {
        let names = silent.remove(&node).unwrap_or_default();
        let refused = refused.remove(&node).unwrap_or_default();
        let networks: BTreeSet<NetworkId> =
            names.iter().map(|name| name.network).chain(refused.keys().copied()).collect();
        let called: Vec<_> = networks.iter().map(|id| tables.network_name(*id)).collect();
        let (over, why) = match refused.into_values().next() {
            _ if !names.is_empty() && names.iter().any(|name| !name.tcp) => ("", String::new()),
            Some(reason) => (" by TCP", format!(" ({reason})")),
            None => (over(&names), String::new()),
        };
        let count = match distinct(&names) {
            0 => String::new(),
            1 => ": a name cannot be resolved there".to_owned(),
            count => format!(": {count} names cannot be resolved there"),
        };
        let problem = format!(
            "the DNS process of {} (`wharf-dns`) does not answer{over}{why} for {}{count}",
            findings.name(node),
            called.join(", ")
        );
        let remedy = "its agent starts one that ended at once, and within a minute ends one that hangs: ask again then, or end it now and the agent starts another; if others answer nothing either, a firewall on the machine drops port 53";
        let command = Some((node, "pkill -KILL -x wharf-dns".to_owned()));
        findings.add(Gravity::Task, networks, problem, remedy, command);
    }
}

/// What came of the last questions to a node's responder on a network.
fn latest_of(evidence: &Evidence, node: NodeId, network: NetworkId, tcp: bool) -> Option<&Outcome> {
    let is_it = |purpose: &Purpose| matches!(purpose, Purpose::Names { network: on, tcp: by, .. } if *on == network && *by == tcp);
    evidence
        .probes
        .iter()
        .rev()
        .find(|(from, purpose, _)| *from == node && is_it(purpose))
        .map(|(_, _, outcome)| outcome)
}

/// One line about a network.
fn health(tables: &Tables, evidence: &Evidence, id: NetworkId, healthy: bool, depth: Depth) -> NetworkHealth {
    let Some(row) = tables.networks.get(&id) else {
        return NetworkHealth { network: id.to_string(), healthy, message: "it is gone".into() };
    };
    let nodes: Vec<NodeId> =
        tables.nodes_of(id).into_iter().filter(|node| evidence.looks.contains_key(node)).collect();
    let mut said = vec![format!("{}, {}", row.record.backend, row.record.subnet)];
    said.push(count(nodes.len(), "node"));
    let (mut pings, mut answered, mut times) = (0, 0, Vec::new());
    let (mut names, mut largest) = (BTreeSet::new(), None::<u16>);
    for (_, purpose, outcome) in &evidence.probes {
        match (purpose, outcome) {
            (
                Purpose::Gateway { network, .. }
                | Purpose::Task { network, .. }
                | Purpose::Inside { network, .. }
                | Purpose::Inside6 { network, .. },
                outcome,
            ) if *network == id => {
                pings += 1;
                if let Outcome::Answered(micros) = outcome {
                    answered += 1;
                    times.push(*micros);
                }
            }
            (Purpose::GatewaySize { network, .. }, Outcome::Largest { bytes, .. }) if *network == id => {
                largest = Some(largest.map_or(*bytes, |least| least.min(*bytes)));
            }
            (Purpose::Names { network, names: asked, .. }, _) if *network == id => names.extend(asked.iter()),
            _ => {}
        }
    }
    if pings > 0 {
        said.push(format!("{answered} of {pings} paths answer"));
    }
    if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
        said.push(format!("in {} to {} ms", thousandths(*least), thousandths(*most)));
    }
    // None at all is told by the paths that do not answer.
    said.extend(largest.filter(|bytes| *bytes > 0).map(|bytes| format!("packets of {bytes} bytes")));
    if !names.is_empty() {
        let by = if depth == Depth::Whole { "UDP and TCP" } else { "UDP" };
        said.push(format!("{} asked by {by}", count(names.len(), "name")));
    }
    NetworkHealth { network: row.name.clone(), healthy, message: said.join(", ") }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn thousandths(micros: u64) -> String {
    format!("{}.{:02}", micros / 1000, micros % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wharf_model::{
        AssignmentSet, DnsTable, Mac, NetworkAssignment, NetworkRecord, NetworkSpec, Revision, RouteTable,
        mac_for,
    };

    use super::{
        super::tables::{NetworkRow, NodeRow},
        *,
    };

    fn node(n: u8) -> NodeId {
        NodeId::from_parts(1, [n; 10])
    }

    fn network() -> NetworkId {
        NetworkId::from_parts(1, [9; 10])
    }

    fn task(n: u8) -> TaskId {
        TaskId::from_parts(1, [n; 10])
    }

    fn on(n: u8) -> Ipv4Addr {
        [10, 192, 0, n].into()
    }

    /// Three nodes with one network, and a task on each.
    fn tables() -> Tables {
        let mut tables = Tables::default();
        let app = wharf_model::AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let subnet = "10.192.0.0/20".parse().unwrap();
        let record = NetworkRecord {
            id: network(),
            app: app.clone(),
            name: "default".parse().unwrap(),
            spec: NetworkSpec::default(),
            vni: 2,
            subnet,
            gateways: BTreeMap::new(),
            backend: Backend::Vxlan,
            blocks: BTreeMap::new(),
            vips: BTreeMap::new(),
            retired: false,
            subnet6: None,
        };
        let mut members = Vec::new();
        for n in 1..=3 {
            let row = NodeRow {
                name: format!("n{n}"),
                address: Some(Ipv4Addr::new(10, 0, 0, n).into()),
                state: NodeState::Ready,
                reason: String::new(),
                draining: false,
                live_restore: Some(true),
            };
            tables.nodes.insert(node(n), row);
            members.push(Member {
                address: on(n),
                mac: Mac(mac_for(on(n))),
                task: task(n),
                name: format!("shop-web-{n}"),
                service: wharf_model::ServiceKey { app: app.clone(), name: "web".parse().unwrap() },
                node: node(n),
                phase: Phase::Running,
                ready: true,
                stop: None,
                ports: vec![(80, Protocol::Tcp)],
            });
            let names = [("web".to_owned(), vec![on(3), on(1), on(2)])].into();
            let assignment = NetworkAssignment::new(network(), "shop_default", 2, subnet, on(250 + n));
            tables.sets.insert(
                node(n),
                AssignmentSet {
                    epoch: 1,
                    revision: Revision(7),
                    node: node(n),
                    tasks: BTreeMap::new(),
                    networks: [(network(), assignment)].into(),
                    volumes: BTreeMap::new(),
                    removed_volumes: Vec::new(),
                    dns: DnsTable { networks: [(network(), names)].into(), ..DnsTable::default() },
                    routes: RouteTable::default(),
                    wireguard: None,
                    disk_marks: Default::default(),
                    watched: Vec::new(),
                },
            );
        }
        let row = NetworkRow { record: Arc::new(record), name: "shop_default".into(), members };
        tables.networks.insert(network(), row);
        tables
    }

    /// Nodes that are all well, and every probe answered as it should be, except as `spoil` says.
    fn examined(tables: &Tables, spoil: impl Fn(NodeId, &Purpose) -> Option<Outcome>) -> Evidence {
        let mut evidence = Evidence::default();
        for node in tables.sets.keys() {
            let look = Look { uplink: Some(("eth0".into(), 1500)), vxlan_port: 4790, ..Look::default() };
            evidence.looks.insert(*node, look);
        }
        let right = |purpose: &Purpose, from: NodeId| match purpose {
            Purpose::UnderlaySize { .. } => Outcome::Largest { of: 1500, bytes: 1500 },
            Purpose::GatewaySize { .. } => Outcome::Largest { of: 1450, bytes: 1450 },
            Purpose::Names { network, names, .. } => {
                let truth = truth(tables, from, *network);
                Outcome::Names(names.iter().map(|name| NameAnswer::Addresses(truth[name].clone())).collect())
            }
            _ => Outcome::Answered(100),
        };
        for (from, probes) in plan(tables, &evidence, Depth::Whole) {
            for (purpose, _) in probes {
                let outcome = spoil(from, &purpose).unwrap_or_else(|| right(&purpose, from));
                evidence.probes.push((from, purpose, outcome));
            }
        }
        evidence
    }

    fn judged(tables: &Tables, evidence: &Evidence) -> Vec<NetworkTodo> {
        let report = report(tables, evidence, Depth::Whole);
        assert_eq!(report.networks[0].healthy, report.todo.is_empty(), "{report:#?}");
        report.todo
    }

    /// Whether a probe is from one of two nodes to the other, or to a task on it.
    fn is_between(from: NodeId, purpose: &Purpose, pair: (NodeId, NodeId)) -> bool {
        let to = match purpose {
            Purpose::Gateway { to, .. } | Purpose::GatewaySize { to, .. } => *to,
            Purpose::Task { to, .. } | Purpose::Inside { to, .. } | Purpose::Port { to, .. } => {
                (1..=3).find(|n| task(*n) == *to).map(node).unwrap()
            }
            _ => return false,
        };
        (from, to) == pair || (to, from) == pair
    }

    #[test]
    fn a_network_that_is_well_has_nothing_to_do() {
        let tables = tables();
        let evidence = examined(&tables, |_, _| None);
        assert!(judged(&tables, &evidence).is_empty());
        let pairs =
            evidence.probes.iter().filter(|(_, why, _)| matches!(why, Purpose::Gateway { .. })).count();
        assert_eq!(pairs, 6, "every ordered pair is tried");
    }

    #[test]
    fn a_blocked_direction_is_told_once_and_with_the_command() {
        let tables = tables();
        let pair = (node(1), node(2));
        let mut evidence =
            examined(&tables, |from, purpose| is_between(from, purpose, pair).then_some(Outcome::Silent));
        assert_eq!(silent_tunnels(&evidence), [(network(), node(1), node(2))].into());
        for (from, to) in [(node(1), node(2)), (node(2), node(1))] {
            evidence.listened.insert((network(), from, to));
        }
        evidence.heard.insert((network(), node(2), node(1)));
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert!(todo[0].problem.starts_with("UDP port 4790 from n1 to n2 is blocked"), "{todo:#?}");
        assert_eq!(todo[0].node.as_deref(), Some("n2"));
        assert_eq!(
            todo[0].command.as_deref(),
            Some("iptables -I INPUT -s 10.0.0.1 -p udp --dport 4790 -j ACCEPT")
        );
    }

    #[test]
    fn nodes_that_cannot_tell_each_other_what_is_alive_are_named_and_nothing_is_broken_by_it_now() {
        let tables = tables();
        let found = |outcome: Outcome| {
            let evidence = examined(&tables, |from, purpose| match purpose {
                Purpose::Word { to } if (from, *to) == (node(1), node(2)) => Some(outcome.clone()),
                _ => None,
            });
            let report = report(&tables, &evidence, Depth::Whole);
            assert!(report.networks[0].healthy && report.todo.is_empty(), "{report:#?}");
            let [todo] = &report.notes[..] else { panic!("{report:#?}") };
            (todo.problem.clone(), todo.node.clone(), todo.command.clone())
        };
        let (problem, at, command) = found(Outcome::Silent);
        assert!(problem.starts_with("UDP port 7420 from n1 to n2 is blocked: while no server"), "{problem}");
        let open = "iptables -I INPUT -s 10.0.0.1 -p udp --dport 7420 -j ACCEPT";
        assert_eq!((at.as_deref(), command.as_deref()), (Some("n2"), Some(open)));
        let (problem, ..) = found(Outcome::Refused(10));
        assert!(problem.starts_with("nobody listens at UDP port 7420 of n2"), "{problem}");
    }

    #[test]
    fn machines_that_do_not_reach_each_other_are_no_blocked_port() {
        let tables = tables();
        let pair = (node(1), node(2));
        let evidence = examined(&tables, |from, purpose| {
            let underlay = match purpose {
                Purpose::Underlay { to } => (from, *to) == pair || (*to, from) == pair,
                _ => false,
            };
            (underlay || is_between(from, purpose, pair)).then_some(Outcome::Silent)
        });
        assert!(silent_tunnels(&evidence).is_empty(), "nothing to find out");
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert!(todo[0].problem.contains("do not reach each other at all"), "{todo:#?}");
    }

    #[test]
    fn a_task_that_answers_nobody_is_told_once() {
        let tables = tables();
        let evidence = examined(&tables, |_, purpose| match purpose {
            Purpose::Task { to, .. } | Purpose::Inside { to, .. } | Purpose::Port { to, .. }
                if *to == task(3) =>
            {
                Some(Outcome::Silent)
            }
            _ => None,
        });
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert!(todo[0].problem.contains("shop-web-3 (10.192.0.3) on n3 answers nobody"), "{todo:#?}");
        let command = "wharf network trace --network shop_default n1 shop-web-3";
        assert_eq!(todo[0].command.as_deref(), Some(command), "on the network that it is told of");
    }

    #[test]
    fn a_task_out_of_its_bridge_is_told_once_although_what_it_asks_is_not_answered_either() {
        let tables = tables();
        let evidence = examined(&tables, |from, purpose| match purpose {
            Purpose::Task { to, .. } | Purpose::Port { to, .. } if *to == task(2) => Some(Outcome::Silent),
            Purpose::Inside { from, to, .. } if [*from, *to].contains(&task(2)) => Some(Outcome::Silent),
            Purpose::Names { tcp: true, .. } if from == node(2) => {
                Some(Outcome::Impossible("no answer".into()))
            }
            Purpose::Names { names, .. } if from == node(2) => {
                Some(Outcome::Names(vec![NameAnswer::Silent; names.len()]))
            }
            _ => None,
        });
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert!(todo[0].problem.contains("shop-web-2 (10.192.0.2) on n2 answers nobody"), "{todo:#?}");
        assert!(plan_names_again(&tables, &evidence, true).is_empty(), "nobody waits for it");
    }

    #[test]
    fn a_dns_process_that_hangs_is_named_once() {
        let tables = tables();
        let evidence = examined(&tables, |from, purpose| match purpose {
            Purpose::Names { tcp: true, .. } if from == node(3) => {
                Some(Outcome::Impossible("no answer".into()))
            }
            Purpose::Names { names, .. } if from == node(3) => {
                Some(Outcome::Names(vec![NameAnswer::Silent; names.len()]))
            }
            _ => None,
        });
        assert_eq!(plan_names_again(&tables, &evidence, true).len(), 1);
        assert!(plan_names_again(&tables, &evidence, false).is_empty(), "silence is waited for once");
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        let wanted = "the DNS process of n3 (`wharf-dns`) does not answer for shop_default: a name cannot";
        assert!(todo[0].problem.starts_with(wanted), "{todo:#?}");
        assert_eq!(todo[0].node.as_deref(), Some("n3"));
    }

    #[test]
    fn what_was_not_tried_is_told_and_blames_nobody_else() {
        let tables = tables();
        let mut evidence = examined(&tables, |_, _| None);
        evidence.probes.retain(|(from, _, _)| *from != node(2));
        evidence.unmade.insert(node(2), (17, "its agent did not answer in time".into()));
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert!(todo[0].problem.starts_with("n2: 17 of the probes from there were not made"), "{todo:#?}");
    }

    #[test]
    fn a_stale_name_is_told_with_both_answers_and_asked_again_first() {
        let tables = tables();
        let mut evidence = examined(&tables, |from, purpose| match purpose {
            Purpose::Names { names, .. } if from == node(2) => {
                Some(Outcome::Names(vec![NameAnswer::Addresses(vec![on(1)]); names.len()]))
            }
            _ => None,
        });
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        let wanted = "for `web` it says 10.192.0.1, and the server 10.192.0.1, 10.192.0.2, 10.192.0.3";
        assert!(todo[0].problem.contains(wanted), "{todo:#?}");
        let again = plan_names_again(&tables, &evidence, false);
        assert_eq!(again.keys().copied().collect::<Vec<_>>(), [node(2)]);
        for (purpose, _) in again.into_values().flatten() {
            let right = NameAnswer::Addresses(vec![on(1), on(2), on(3)]);
            evidence.probes.push((node(2), purpose, Outcome::Names(vec![right])));
        }
        assert!(judged(&tables, &evidence).is_empty(), "what is right the second time was only late");
    }

    #[test]
    fn a_route_in_the_way_and_a_smaller_interface_are_named_with_their_machine() {
        let tables = tables();
        let mut evidence = examined(&tables, |_, _| None);
        let look = evidence.looks.get_mut(&node(2)).unwrap();
        look.routes = vec![
            ("10.192.4.0/24".parse().unwrap(), "tun0".into()),
            ("10.0.0.0/24".parse().unwrap(), "eth0".into()),
        ];
        evidence.looks.get_mut(&node(3)).unwrap().uplink = Some(("eth0".into(), 1400));
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 2, "{todo:#?}");
        let commands: BTreeSet<_> =
            todo.iter().map(|todo| (todo.node.clone().unwrap(), todo.command.clone().unwrap())).collect();
        let wanted = [("n2", "ip route del 10.192.4.0/24 dev tun0"), ("n3", "ip link set dev eth0 mtu 1500")];
        assert_eq!(commands, wanted.map(|(node, command)| (node.to_owned(), command.to_owned())).into());
    }

    #[test]
    fn a_path_that_carries_less_than_its_interfaces_say_is_told() {
        let tables = tables();
        let evidence = examined(&tables, |from, purpose| match purpose {
            Purpose::UnderlaySize { to } if (from, *to) == (node(1), node(2)) => {
                Some(Outcome::Largest { of: 1500, bytes: 1380 })
            }
            _ => None,
        });
        let todo = judged(&tables, &evidence);
        assert_eq!(todo.len(), 1, "{todo:#?}");
        assert_eq!(todo[0].command.as_deref(), Some("ip link set dev eth0 mtu 1380"));
    }
}
