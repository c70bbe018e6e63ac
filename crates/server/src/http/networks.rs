//! Networks: seen, examined, and the path of a packet through them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, extract::State, response::Response};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wharf_api::{
    transport::{
        Peer,
        diagnose::{LookRequest, Outcome, PathFacts, PathRequest, Probe, ProbeKind, ProbeRequest, digest},
    },
    v1,
};
use wharf_model::{Mac, NetworkId, NetworkRecord, NodeId, Phase, ipv6_for, mac_for};
use wharf_process::errors::chain;

use super::{
    Context, Shared, closest,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user, streams,
};
use crate::{
    diagnose::{
        Depth, WHOLE, examine,
        judge::report,
        link_problems,
        tables::{Member, Tables, outer_name},
        trace::{End, Path as PacketPath, explain, with_mended},
    },
    state::Inner,
};

/// Lines a report may be ahead of its reader.
const QUEUE: usize = 64;
/// How long probes of a trace may take, in milliseconds.
const PATIENCE: u64 = 1_500;
/// How long all of them may take: a largest packet is found in several rounds.
const PROBING: Duration = Duration::from_secs(10);
/// A route by which only one of two ends can be a service's task.
const NO_SHARED: &str = "put both on one network: a service's `networks` in the Compose file; one of another app is named there as `external: true`";

/// Which networks are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Of {
    environment: Option<String>,
}

/// The networks of the cluster, or of an environment.
#[utoipa::path(get, path = "/v1/networks", params(("environment" = Option<String>, Query)),
    responses((status = 200, body = [v1::Network])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<Of>,
) -> Answer<Json<Vec<v1::Network>>> {
    require_user(&peer)?;
    let tables = Tables::read(&shared, None);
    let wanted = |row: &&crate::diagnose::tables::NetworkRow| {
        wish.environment.as_ref().is_none_or(|wanted| row.record.app.environment.as_str() == wanted)
    };
    let mut networks: Vec<_> =
        tables.networks.values().filter(wanted).map(|row| view(&tables, &row.record)).collect();
    networks.sort_by(|a, b| (&a.environment, &a.name).cmp(&(&b.environment, &b.name)));
    Ok(Json(networks))
}

/// Everything known of a network, by name or id. Its nodes are asked whether they have its present tables.
#[utoipa::path(get, path = "/v1/networks/{network}", params(("network" = String, Path), ("environment" = Option<String>, Query)),
    responses((status = 200, body = v1::NetworkDetail), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    Query(wish): Query<Of>,
) -> Answer<Json<v1::NetworkDetail>> {
    require_user(&peer)?;
    let id = find(&shared.state.read(), &name, wish.environment.as_deref())?.id;
    let tables = Tables::read(&shared, Some(id));
    let Some(row) = tables.networks.get(&id) else {
        return Err(Failure::not_found(format!("network {name} is gone")));
    };
    let record = &row.record;
    let acknowledged = acknowledged(&shared, &tables, id).await;
    let nodes: BTreeSet<NodeId> = record.gateways.keys().copied().chain(tables.nodes_of(id)).collect();
    let on = nodes.into_iter().filter(|node| tables.nodes.contains_key(node)).map(|node| {
        let state = tables.nodes.get(&node).map(|row| row.state.to_string());
        v1::NetworkNode {
            node: tables.name(node).to_owned(),
            state: state.unwrap_or_default(),
            address: tables.address(node).map(|address| address.to_string()),
            gateway: record.gateways.get(&node).map(ToString::to_string),
            blocks: record
                .blocks
                .iter()
                .filter(|(_, owner)| **owner == node)
                .map(|(block, _)| block.to_string())
                .collect(),
            wanted: tables.assignment(node, id).is_some(),
            acknowledged: acknowledged.contains(&node),
            tasks: row.members.iter().filter(|member| member.node == node).count(),
        }
    });
    let names = names(&tables, id);
    let members = row.members.iter().map(|member| v1::NetworkMember {
        address: member.address.to_string(),
        address6: address6(&tables, record, member).map(|address| address.to_string()),
        task: member.name.clone(),
        id: member.task.to_string(),
        node: tables.name(member.node).to_owned(),
        state: member.phase.to_string(),
        ready: member.ready,
        names: names
            .iter()
            .filter(|(_, addresses)| addresses.contains(&member.address))
            .map(|(name, _)| name.clone())
            .collect(),
    });
    Ok(Json(v1::NetworkDetail {
        network: view(&tables, record),
        bridge: format!("wh{:x}", record.vni),
        on: on.collect(),
        members: members.collect(),
        names: names
            .iter()
            .map(|(name, all)| (name.clone(), all.iter().map(ToString::to_string).collect()))
            .collect(),
        virtual_addresses: record
            .vips
            .iter()
            .map(|(address, of)| (address.to_string(), format!("{}/{}", of.app.name, of.name)))
            .collect(),
    }))
}

/// A task's IPv6 address on a network: the one that it asks for, or else the one that follows from its other one.
fn address6(tables: &Tables, network: &NetworkRecord, member: &Member) -> Option<Ipv6Addr> {
    let subnet = network.subnet6?;
    let task = tables.sets.get(&member.node).and_then(|set| set.tasks.get(&member.task));
    let asked = task.and_then(|task| task.attachments.iter().find(|on| on.network == network.id)?.address6);
    Some(asked.unwrap_or_else(|| ipv6_for(subnet, member.address)))
}

/// The names of a network that mean the same everywhere.
fn names(tables: &Tables, id: NetworkId) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let tables = tables.sets.values().filter_map(|set| set.dns.networks.get(&id));
    let mut all: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    for table in tables {
        for (name, addresses) in table.iter().filter(|(name, _)| !name.starts_with("nearest.")) {
            all.entry(name.clone()).or_insert_with(|| addresses.clone());
        }
    }
    all
}

/// The nodes that work on the present tables of a network.
async fn acknowledged(context: &Context, tables: &Tables, id: NetworkId) -> BTreeSet<NodeId> {
    let asked = tables.nodes_of(id).into_iter().map(|node| async move {
        let look = context.sessions.get(node).ok()?.look(&LookRequest::default()).await.ok()?;
        let wanted = digest(tables.sets.get(&node)?, id)?;
        (look.networks.get(&id) == Some(&wanted) && look.observed >= look.held).then_some(node)
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

fn view(tables: &Tables, record: &NetworkRecord) -> v1::Network {
    v1::Network {
        id: record.id.to_string(),
        name: outer_name(record),
        environment: record.app.environment.to_string(),
        app: record.app.name.to_string(),
        key: record.name.to_string(),
        backend: record.backend.to_string(),
        subnet: record.subnet.to_string(),
        subnet6: record.subnet6.map(|subnet| subnet.to_string()),
        vni: record.vni,
        internal: record.spec.internal,
        nodes: tables.nodes_of(record.id).len(),
        tasks: tables.networks.get(&record.id).map_or(0, |row| row.members.len()),
    }
}

/// The network of that name: an id, its outer name, `<app>/<key>`, or its key if no other network of the environment has it.
fn find<'a>(inner: &'a Inner, name: &str, environment: Option<&str>) -> Answer<&'a Arc<NetworkRecord>> {
    if let Some(record) = name.parse().ok().and_then(|id| inner.world.network(id)) {
        return Ok(record);
    }
    let in_environment = |record: &&Arc<NetworkRecord>| {
        environment.is_none_or(|wanted| record.app.environment.as_str() == wanted)
    };
    let all: Vec<&Arc<NetworkRecord>> = inner.world.networks().filter(in_environment).collect();
    let called = |record: &&&Arc<NetworkRecord>| {
        outer_name(record) == name || format!("{}/{}", record.app.name, record.name) == name
    };
    let mut found: Vec<_> = all.iter().filter(called).collect();
    if found.is_empty() {
        found = all.iter().filter(|record| record.name.as_str() == name).collect();
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let names: Vec<String> = all.iter().map(|record| outer_name(record)).collect();
            let hint = match closest(name, &names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "`wharf network ls` lists them".to_owned(),
            };
            Err(Failure::not_found(format!("there is no network `{name}`")).hint(hint))
        }
        several => {
            let names: Vec<String> =
                several.iter().map(|record| format!("{} of {}", outer_name(record), record.app)).collect();
            Err(Failure::invalid(format!("`{name}` may be any of {}", names.join(", ")))
                .hint("give its whole name, and the environment with `--env`"))
        }
    }
}

/// Examines the networks: one line of JSON for each step, the report last.
#[utoipa::path(post, path = "/v1/doctor/network", request_body = v1::NetworkDoctorRequest,
    responses((status = 200, body = v1::NetworkDoctorLine, content_type = "application/x-ndjson"), (status = 404, body = v1::Problem)))]
pub(super) async fn doctor(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::NetworkDoctorRequest>,
) -> Answer<Response> {
    require_user(&peer)?;
    let only = match &wish.network {
        Some(name) => Some(find(&shared.state.read(), name, wish.environment.as_deref())?.id),
        None => None,
    };
    let depth = if wish.fast { Depth::Fast } else { Depth::Whole };
    let (sender, lines) = mpsc::channel(QUEUE);
    let context = Arc::clone(&shared);
    shared.tasks.spawn("network doctor", async move {
        let work = async {
            let started = context.clock.monotonic();
            let mut tables = Tables::read(&context, only);
            let progress = sender.clone();
            // A step nobody has taken yet hides none: the next one says more.
            let tell = |what: &str, done, of| {
                let _ =
                    progress.try_send(v1::NetworkDoctorLine::Progress { what: what.to_owned(), done, of });
            };
            let evidence = examine(&context, &mut tables, depth, &tell).await;
            let mut report = report(&tables, &evidence, depth);
            let took = (context.clock.monotonic() - started).as_millis();
            report.millis = u64::try_from(took).unwrap_or(u64::MAX);
            // Whoever asked has gone.
            let _ = sender.send(v1::NetworkDoctorLine::Report(Box::new(report))).await;
        };
        tokio::select! {
            () = work => {}
            // Dropped with its probes, which change nothing.
            () = sender.closed() => {}
        }
    });
    Ok(streams::lines(&shared, ReceiverStream::new(lines).boxed()))
}

/// Explains the path of a packet between two ends, and sends some along it.
#[utoipa::path(post, path = "/v1/trace", request_body = v1::TraceRequest,
    responses((status = 200, body = v1::Trace), (status = 404, body = v1::Problem)))]
pub(super) async fn trace(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::TraceRequest>,
) -> Answer<Json<v1::Trace>> {
    require_user(&peer)?;
    let only = match &wish.network {
        Some(name) => Some(find(&shared.state.read(), name, wish.environment.as_deref())?.id),
        None => None,
    };
    let tables = Tables::read(&shared, only);
    let environment = wish.environment.as_deref();
    let from = Candidates::find(&tables, &wish.from, environment)?;
    let to = Candidates::find(&tables, &wish.to, environment)?;
    let Some((network, from_end, to_end)) = from.meet(&to) else {
        return Ok(Json(apart(&tables, &wish, &from, &to)));
    };
    Ok(Json(walk(&shared, &tables, &wish, network, (from_end, to_end)).await))
}

/// What a word in a trace may stand for, on each network.
struct Candidates {
    ends: BTreeMap<NetworkId, Vec<Found>>,
}

/// One end, with what a server knows and a packet does not.
#[derive(Debug, Clone)]
struct Found {
    end: End,
    node: NodeId,
    task: Option<wharf_model::TaskId>,
    rank: u8,
}

impl Candidates {
    fn find(tables: &Tables, word: &str, environment: Option<&str>) -> Answer<Self> {
        let mut ends: BTreeMap<NetworkId, Vec<Found>> = BTreeMap::new();
        let address: Option<Ipv4Addr> = word.parse().ok();
        for (id, row) in &tables.networks {
            let in_environment =
                environment.is_none_or(|wanted| row.record.app.environment.as_str() == wanted);
            let named: Vec<Ipv4Addr> = match in_environment {
                true => names(tables, *id).get(&word.to_lowercase()).cloned().unwrap_or_default(),
                false => Vec::new(),
            };
            let mut found = Vec::new();
            for member in &row.members {
                let service = &member.service;
                let is_task =
                    member.name == word || member.task.to_string() == word || address == Some(member.address);
                let is_service = in_environment
                    && (service.name.as_str() == word
                        || format!("{}/{}", service.app.name, service.name) == word
                        || format!("{}.{}", service.name, service.app.name) == word
                        || named.contains(&member.address));
                if is_task || is_service {
                    found.push(of_member(tables, member));
                }
            }
            for node in tables.nodes_of(*id) {
                let Some(gateway) = tables.gateway(node, *id) else { continue };
                let is_node = tables.name(node) == word
                    || node.to_string() == word
                    || address == Some(gateway)
                    || tables.address(node).is_some_and(|known| known.to_string() == word);
                if is_node {
                    found.push(of_node(tables, node, gateway));
                }
            }
            if !found.is_empty() {
                found.sort_by_key(|found| found.rank);
                ends.insert(*id, found);
            }
        }
        if ends.is_empty() {
            return Err(Failure::not_found(format!("`{word}` is no task, service, node, address or name on any network"))
                .hint("`wharf ps` lists tasks, `wharf network inspect` the members and names of a network; a task that has no node yet is on no network"));
        }
        Ok(Self { ends })
    }

    /// A network on which both are, and the ends there: those that serve before others, and different ones.
    fn meet(&self, other: &Self) -> Option<(NetworkId, Found, Found)> {
        let mut best: Option<(u8, NetworkId, Found, Found)> = None;
        for (id, ours) in &self.ends {
            for from in ours {
                for to in other.ends.get(id).into_iter().flatten() {
                    let same = u8::from(from.end.address == to.end.address) * 100;
                    let rank = from.rank + to.rank + same;
                    if best.as_ref().is_none_or(|(least, ..)| rank < *least) {
                        best = Some((rank, *id, from.clone(), to.clone()));
                    }
                }
            }
        }
        best.map(|(_, id, from, to)| (id, from, to))
    }

    fn networks(&self, tables: &Tables) -> String {
        self.ends.keys().map(|id| tables.network_name(*id)).collect::<Vec<_>>().join(", ")
    }
}

fn of_member(tables: &Tables, member: &Member) -> Found {
    let node = tables.nodes.get(&member.node);
    let rank = match (member.ready, member.phase) {
        (true, _) => 0,
        (false, Phase::Running) => 1,
        (false, _) => 2,
    };
    let wait = format!("`wharf ps -p {}` says what it waits for", member.service.app.name);
    let remark = if let Some(reason) = &member.stop {
        Some((
            format!("it is draining ({reason}): its name is not answered any more"),
            "use the task that took its place".to_owned(),
        ))
    } else if member.ready {
        node.filter(|row| row.draining).map(|row| {
            (format!("{} is being drained: the task will move", row.name), "wait until it has".to_owned())
        })
    } else {
        Some((format!("it is {} and not ready: its name is not answered", member.phase), wait))
    };
    let end = End {
        name: member.name.clone(),
        node: tables.name(member.node).to_owned(),
        address: member.address,
        mac: member.mac,
        is_task: true,
        remark,
    };
    Found { end, node: member.node, task: Some(member.task), rank }
}

fn of_node(tables: &Tables, node: NodeId, gateway: Ipv4Addr) -> Found {
    let name = tables.name(node).to_owned();
    let end = End {
        node: name.clone(),
        name,
        address: gateway,
        mac: Mac(mac_for(gateway)),
        is_task: false,
        remark: None,
    };
    Found { end, node, task: None, rank: 0 }
}

/// Both exist, and no network has both.
fn apart(tables: &Tables, wish: &v1::TraceRequest, from: &Candidates, to: &Candidates) -> v1::Trace {
    let problem = format!(
        "{} is on {}, {} on {}: they share no network and cannot reach each other",
        wish.from,
        from.networks(tables),
        wish.to,
        to.networks(tables)
    );
    let hop = v1::Hop {
        node: String::new(),
        step: format!("{} looks for {}", wish.from, wish.to),
        state: "broken".into(),
        problem: Some(problem.clone()),
        remedy: Some(NO_SHARED.into()),
    };
    v1::Trace {
        from: wish.from.clone(),
        to: wish.to.clone(),
        network: None,
        hops: vec![hop],
        probes: Vec::new(),
        works: false,
        verdict: problem,
    }
}

/// Reads what both nodes have, repairs, reads again, explains, and sends packets.
async fn walk(
    context: &Context,
    tables: &Tables,
    wish: &v1::TraceRequest,
    network: NetworkId,
    (from, to): (Found, Found),
) -> v1::Trace {
    let end = tokio::time::Instant::now() + WHOLE;
    let before = read(context, tables, network, (&from, &to)).await;
    // Who did not answer is not asked again: it would be waited for again.
    let answers: BTreeSet<NodeId> = [(from.node, &before[0]), (to.node, &before[1])]
        .into_iter()
        .filter_map(|(node, facts)| facts.is_ok().then_some(node))
        .collect();
    let repair = LookRequest { repair: true, mended_within: 0 };
    let repairs = answers.iter().map(|node| async {
        if let Ok(session) = context.sessions.get(*node) {
            // What it could not do is seen in the kernel.
            let _ = session.look(&repair).await;
        }
    });
    futures::future::join_all(repairs).await;
    let now = match answers.is_empty() {
        true => before.clone(),
        false => {
            let [ours, theirs] = read(context, tables, network, (&from, &to)).await;
            let [had, there] = before.clone();
            [had.and(ours), there.and(theirs)]
        }
    };
    let steps = |facts: &[Result<PathFacts, String>; 2]| {
        let record = &tables.networks.get(&network)?.record;
        let facts = [facts[0].as_ref().map_err(String::as_str), facts[1].as_ref().map_err(String::as_str)];
        Some(explain(&PacketPath {
            backend: record.backend,
            vni: record.vni,
            from: from.end.clone(),
            to: to.end.clone(),
            tables: [tables.assignment(from.node, network)?, tables.assignment(to.node, network)?],
            facts,
        }))
    };
    let mut hops = with_mended(&steps(&before).unwrap_or_default(), steps(&now).unwrap_or_default());
    let probes = match &now[0] {
        Ok(_) => probe(context, wish, (&from, &to)).await,
        Err(_) => Vec::new(),
    };
    let came = !probes.is_empty() && probes.iter().all(|probe| probe.came_through);
    if !came && from.node != to.node && answers.len() == 2 {
        // Between the machines: the step that leaves the first one is where it breaks.
        let problems = link_problems(context, tables, network, (from.node, to.node), end).await;
        let at =
            hops.iter().position(|hop| hop.step.starts_with("UDP port") || hop.step.contains(" routes "));
        for todo in problems {
            let remedy = match (&todo.node, &todo.command) {
                (Some(node), Some(command)) => format!("{}: on {node}, `{command}`", todo.remedy),
                _ => todo.remedy,
            };
            let hop = v1::Hop {
                node: from.end.node.clone(),
                step: format!("between {} and {}", from.end.node, to.end.node),
                state: "broken".into(),
                problem: Some(todo.problem),
                remedy: Some(remedy),
            };
            hops.insert(at.map_or(hops.len(), |at| at + 1), hop);
        }
    }
    let broken = hops.iter().find(|hop| hop.state == "broken");
    let verdict = verdict(&from, &to, broken, &probes, came);
    v1::Trace {
        from: from.end.name.clone(),
        to: to.end.name.clone(),
        network: Some(tables.network_name(network)),
        works: broken.is_none() && came,
        hops,
        probes,
        verdict,
    }
}

fn verdict(
    from: &Found,
    to: &Found,
    broken: Option<&v1::Hop>,
    probes: &[v1::TraceProbe],
    came: bool,
) -> String {
    let (from, to) = (&from.end.name, &to.end.name);
    match (broken, came) {
        (None, true) => format!("{from} reaches {to}"),
        (Some(hop), true) => format!(
            "{from} reaches {to}, although not everything is as it should be: {}",
            hop.problem.clone().unwrap_or_default()
        ),
        (Some(hop), false) if probes.is_empty() => {
            format!("whether {from} reaches {to} was not tried: {}", hop.problem.clone().unwrap_or_default())
        }
        (Some(hop), false) => {
            format!("{from} does not reach {to}: {}", hop.problem.clone().unwrap_or_default())
        }
        (None, false) => {
            let lost: Vec<_> = probes
                .iter()
                .filter(|probe| !probe.came_through)
                .map(|probe| format!("{}: {}", probe.what, probe.outcome))
                .collect();
            format!(
                "every step is as it should be, and not everything came through ({}): a firewall in the way or in the container drops it, or nothing listens",
                lost.join("; ")
            )
        }
    }
}

/// What both ends' nodes have.
async fn read(
    context: &Context,
    tables: &Tables,
    network: NetworkId,
    (from, to): (&Found, &Found),
) -> [Result<PathFacts, String>; 2] {
    let one = |here: &Found, there: &Found| {
        let peers = tables
            .assignment(here.node, network)
            .map(|assignment| assignment.peers.as_slice())
            .unwrap_or_default();
        let request = PathRequest {
            task: here.task,
            vni: tables.networks.get(&network).map_or(0, |row| row.record.vni),
            here: here.end.address,
            there: there.end.address,
            mac: there.end.mac,
            node: peers
                .iter()
                .find(|peer| peer.address == there.end.address)
                .map(|peer| peer.node)
                .or_else(|| tables.address(there.node).filter(|_| here.node != there.node)),
        };
        let node = here.node;
        async move {
            let session = context.sessions.get(node).map_err(|Failure(problem)| problem.message)?;
            session.path(&request).await.map_err(|error| chain(&error))
        }
    };
    tokio::join!(one(from, to), one(to, from)).into()
}

/// Sends packets along the path.
async fn probe(
    context: &Context,
    wish: &v1::TraceRequest,
    (from, to): (&Found, &Found),
) -> Vec<v1::TraceProbe> {
    let target = IpAddr::from(to.end.address);
    let make = |what| Probe { inside: from.task, from: Some(from.end.address.into()), what };
    let mut asked = vec![("echo request".to_owned(), make(ProbeKind::Ping(target)))];
    asked
        .push(("largest packet".to_owned(), make(ProbeKind::LargestPacket { to: to.end.address, up_to: 0 })));
    if let Some(port) = wish.port {
        let at = SocketAddr::new(target, port);
        let (what, kind) = if wish.udp { ("UDP", ProbeKind::Udp(at)) } else { ("TCP", ProbeKind::Tcp(at)) };
        asked.push((format!("{what} port {port}"), make(kind)));
    }
    let request =
        ProbeRequest { probes: asked.iter().map(|(_, probe)| probe.clone()).collect(), timeout: PATIENCE };
    let answer = match context.sessions.get(from.node) {
        Ok(session) => match tokio::time::timeout(PROBING, session.probe(&request)).await {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_late) => Err("its agent did not answer in time".to_owned()),
        },
        Err(Failure(problem)) => Err(problem.message),
    };
    let outcomes = match answer {
        Ok(answer) => answer.outcomes,
        Err(reason) => vec![Outcome::Impossible(reason); asked.len()],
    };
    let told =
        asked.into_iter().zip(outcomes).map(|((what, _), outcome)| told(&what, wish.udp, from, to, outcome));
    told.collect()
}

fn told(what: &str, udp: bool, from: &Found, to: &Found, outcome: Outcome) -> v1::TraceProbe {
    let (came_through, micros, text) = match outcome {
        Outcome::Answered(micros) => (true, Some(micros), "answered".to_owned()),
        Outcome::Refused(micros) => (
            false,
            Some(micros),
            "refused: the packet arrived, and nothing listens on that port of that address".to_owned(),
        ),
        // By UDP an answer is the program's to give.
        Outcome::Silent if udp && what.starts_with("UDP") => {
            (true, None, "not refused; whether a program took it, only the program can say".to_owned())
        }
        Outcome::Silent => (false, None, "no answer".to_owned()),
        Outcome::Largest { of, bytes } if of == bytes => {
            (true, None, format!("{bytes} bytes, as large as the interface allows"))
        }
        Outcome::Largest { of, bytes } => {
            (false, None, format!("{bytes} bytes, although the interface allows {of}"))
        }
        Outcome::Sent => (true, None, "sent".to_owned()),
        Outcome::Names(_) => (true, None, "answered".to_owned()),
        Outcome::Impossible(reason) => (false, None, format!("could not be sent: {reason}")),
    };
    let what = format!(
        "{what} from {} ({}) to {} ({})",
        from.end.name, from.end.address, to.end.name, to.end.address
    );
    v1::TraceProbe { what, came_through, outcome: text, micros }
}
