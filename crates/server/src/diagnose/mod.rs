//! Compares how the nodes' networks are with how they should be: gathers the tables and what nodes find, and leaves every judgement
//! to `judge` and `trace`, which are pure.
//!
//! - The tables are the server's own, made anew from the state, not what was sent: what a node missed is found, too.
//! - Bounded: so many nodes are asked at once, each with all its probes in a few requests; and a run ends in time whatever is broken, and
//!   says what there was no time for. What was not tried is no evidence of anything.

pub(crate) mod judge;
pub(crate) mod tables;
pub(crate) mod trace;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use wharf_api::transport::{
    CallError, LineReader,
    client::request,
    diagnose::{
        Heard, ListenRequest, Look, LookRequest, Outcome, PathFacts, PathRequest, Probe, ProbeAnswer,
        ProbeKind, ProbeRequest,
    },
    full,
};
use wharf_model::NodeId;
use wharf_process::errors::chain;

use self::{
    judge::{Evidence, Purpose},
    tables::Tables,
};
use crate::{http::Context, sessions::NodeSession};

/// Nodes asked at once.
const NODES_AT_ONCE: usize = 16;
/// Probes of one request.
const CHUNK: usize = 256;
/// How long an answer to a probe may take.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A run ends by then: somebody waits for it.
pub(crate) const WHOLE: Duration = Duration::from_secs(28);
/// How long a node may take for a look, with its repair.
const LOOKING: Duration = Duration::from_secs(8);
/// How long it may take for what it has at hand.
const ANSWER: Duration = Duration::from_secs(5);
/// What is kept at the end of a run for what follows the probes: nodes that are silent, directions that are blocked, names that changed.
const AFTER_PROBES: Duration = Duration::from_secs(9);
const AFTER_SILENT: Duration = Duration::from_secs(7);
const AFTER_DIRECTIONS: Duration = Duration::from_secs(2);
/// How long nodes listen for datagrams that go one way.
const LISTENING: Duration = Duration::from_secs(3);
/// What was mended so long ago is still told.
const MENDED: Duration = Duration::from_secs(600);
/// Before names are asked once more that were not as the tables say: they may have changed meanwhile.
const SETTLING: Duration = Duration::from_millis(700);
/// How often that is done.
const AGAIN: usize = 4;

impl NodeSession {
    /// How the node's side of its networks is.
    pub(crate) async fn look(&self, request: &LookRequest) -> Result<Look, CallError> {
        self.remote().call_within(http::Method::POST, "/v1/diagnose/look", request, LOOKING).await
    }
    /// What becomes of probes. Who asks bounds it.
    pub(crate) async fn probe(&self, request: &ProbeRequest) -> Result<ProbeAnswer, CallError> {
        self.remote().call_within(http::Method::POST, "/v1/diagnose/probe", request, WHOLE).await
    }
    /// What the node's kernel has about a pair of addresses.
    pub(crate) async fn path(&self, request: &PathRequest) -> Result<PathFacts, CallError> {
        self.remote().call_within(http::Method::POST, "/v1/diagnose/path", request, ANSWER).await
    }
    /// What the node hears.
    async fn listen(&self, wish: &ListenRequest) -> Result<LineReader<Heard>, CallError> {
        let body = full(serde_json::to_vec(wish).unwrap_or_default());
        let response =
            self.remote().send(request(http::Method::POST, "/v1/diagnose/listen", body), ANSWER).await?;
        if !response.status().is_success() {
            return Err(self.remote().refusal(response).await);
        }
        Ok(LineReader::new(response.into_body(), self.remote().timing().stream_silence()))
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// One task of each node, names by UDP, no sizes.
    Fast,
    /// Everything.
    Whole,
}

/// Tells how far it is: what is done, how many are done, of how many.
pub(crate) type Tell<'a> = &'a (dyn Fn(&str, usize, usize) + Send + Sync);

/// Looks at the networks of `tables` from every node that has one of them.
pub(crate) async fn examine(
    context: &Context,
    tables: &mut Tables,
    depth: Depth,
    tell: Tell<'_>,
) -> Evidence {
    let end = Instant::now() + WHOLE;
    let mut evidence = Evidence::default();
    look_at_all(context, tables, &mut evidence, end - AFTER_PROBES, tell).await;
    let planned = judge::plan(tables, &evidence, depth);
    make(context, planned, &mut evidence, "probes", end - AFTER_PROBES, tell).await;
    let planned = judge::plan_tcp(tables, &evidence);
    make(context, planned, &mut evidence, "silent nodes", end - AFTER_SILENT, tell).await;
    // What was heard by then counts.
    let _ = timeout_at(end - AFTER_DIRECTIONS, one_way(context, tables, &mut evidence, tell)).await;
    ask_again(context, tables, &mut evidence, end).await;
    evidence
}

async fn look_at_all(
    context: &Context,
    tables: &Tables,
    evidence: &mut Evidence,
    until: Instant,
    tell: Tell<'_>,
) {
    let nodes: Vec<NodeId> = tables.sets.keys().copied().collect();
    let of = nodes.len();
    let request =
        LookRequest { repair: true, mended_within: u64::try_from(MENDED.as_millis()).unwrap_or(u64::MAX) };
    let request = &request;
    let asked = stream::iter(nodes).map(|node| async move {
        let Ok(session) = context.sessions.get(node) else { return (node, None) };
        let before = context.now().0;
        let answer = match timeout_at(until, session.look(request)).await {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_late) => Err(NO_TIME.to_owned()),
        };
        let middle = before.midpoint(context.now().0);
        let skew = answer.as_ref().map_or(0, |look| i128::from(look.now) - i128::from(middle));
        (node, Some((answer, i64::try_from(skew).unwrap_or(i64::MAX))))
    });
    let mut asked = asked.buffer_unordered(NODES_AT_ONCE);
    let mut done = 0;
    while let Some((node, answer)) = asked.next().await {
        done += 1;
        tell("nodes looked at, and their kernels repaired", done, of);
        match answer {
            Some((Ok(look), skew)) => {
                evidence.looks.insert(node, look);
                evidence.skews.insert(node, skew);
            }
            Some((Err(error), _)) => drop(evidence.unseen.insert(node, error)),
            None => drop(evidence.unseen.insert(node, "its agent is not connected".to_owned())),
        }
    }
}

const NO_TIME: &str = "there was no time left";

/// Makes probes, and keeps what became of them, and how many were not made by then.
async fn make(
    context: &Context,
    planned: BTreeMap<NodeId, Vec<(Purpose, Probe)>>,
    evidence: &mut Evidence,
    what: &str,
    until: Instant,
    tell: Tell<'_>,
) {
    let of: usize = planned.values().map(Vec::len).sum();
    if of == 0 {
        return;
    }
    tell(what, 0, of);
    let work = stream::iter(planned).map(|(node, probes)| async move {
        let (mut results, mut unmade) = (Vec::new(), None);
        for chunk in probes.chunks(CHUNK) {
            match probe_chunk(context, node, chunk, until).await {
                Ok(outcomes) => {
                    let purposes = chunk.iter().map(|(purpose, _)| purpose.clone());
                    results.extend(purposes.zip(outcomes));
                }
                Err(reason) => {
                    unmade = Some(reason);
                    break;
                }
            }
        }
        (node, probes.len(), results, unmade)
    });
    let mut work = work.buffer_unordered(NODES_AT_ONCE);
    let mut done = 0;
    while let Some((node, planned, results, unmade)) = work.next().await {
        done += planned;
        tell(what, done, of);
        if let Some(reason) = unmade {
            let (count, why) = evidence.unmade.entry(node).or_default();
            *count += planned - results.len();
            *why = reason;
        }
        evidence.probes.extend(results.into_iter().map(|(purpose, outcome)| (node, purpose, outcome)));
    }
}

async fn probe_chunk(
    context: &Context,
    node: NodeId,
    chunk: &[(Purpose, Probe)],
    until: Instant,
) -> Result<Vec<Outcome>, String> {
    let probes: Vec<Probe> = chunk.iter().map(|(_, probe)| probe.clone()).collect();
    let timeout = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    let session = context.sessions.get(node).map_err(|_| "its agent is not connected".to_owned())?;
    if Instant::now() >= until {
        return Err(NO_TIME.to_owned());
    }
    match timeout_at(until, session.probe(&ProbeRequest { probes, timeout })).await {
        Ok(answer) => answer.map(|answer| answer.outcomes).map_err(|error| chain(&error)),
        Err(_late) => Err("its agent did not answer in time".to_owned()),
    }
}

/// Where echo requests through the tunnel are lost: sends datagrams, and asks the receivers what they heard. So the direction that is
/// blocked is known.
async fn one_way(context: &Context, tables: &Tables, evidence: &mut Evidence, tell: Tell<'_>) {
    let silent = judge::silent_tunnels(evidence);
    if silent.is_empty() {
        return;
    }
    tell("directions that are blocked", 0, silent.len());
    // Who listens where: every end of a silent pair.
    let mut ends: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
    for (network, from, to) in &silent {
        for node in [from, to] {
            let list: &mut Vec<_> = ends.entry(*node).or_default();
            if !list.contains(network) {
                list.push(*network);
            }
        }
    }
    let mut listening = Vec::new();
    let mut ports: BTreeMap<_, SocketAddr> = BTreeMap::new();
    for (node, networks) in ends {
        let at = networks.iter().filter_map(|network| Some(tables.gateway(node, *network)?.into())).collect();
        let millis = u64::try_from(LISTENING.as_millis()).unwrap_or(u64::MAX);
        let Ok(session) = context.sessions.get(node) else { continue };
        let Ok(mut lines) = session.listen(&ListenRequest { at, millis }).await else { continue };
        let Ok(Some(Heard::At(at))) = lines.next().await else { continue };
        for (network, address) in networks.iter().zip(at) {
            ports.extend(address.map(|address| ((node, *network), address)));
        }
        listening.push((node, lines));
    }
    let pairs: Vec<_> = silent
        .iter()
        .flat_map(|(network, from, to)| [(*network, *from, *to), (*network, *to, *from)])
        .collect();
    let mut sending: BTreeMap<NodeId, Vec<(Purpose, Probe)>> = BTreeMap::new();
    for (network, from, to) in pairs {
        let (Some(at), Some(gateway)) = (ports.get(&(to, network)), tables.gateway(from, network)) else {
            continue;
        };
        let what = ProbeKind::Datagram { to: *at, text: format!("{network} {from}") };
        let probe = Probe { inside: None, from: Some(gateway.into()), what };
        evidence.listened.insert((network, from, to));
        sending.entry(from).or_default().push((Purpose::OneWay, probe));
    }
    make(context, sending, evidence, "directions that are blocked", Instant::now() + LISTENING, tell).await;
    let heard = listening.into_iter().map(|(node, mut lines)| async move {
        let mut texts = Vec::new();
        while let Ok(Some(line)) = lines.next().await {
            if let Heard::Text(text) = line {
                texts.push(text);
            }
        }
        (node, texts)
    });
    for (to, texts) in futures::future::join_all(heard).await {
        for text in texts {
            let Some((network, from)) = text.split_once(' ') else { continue };
            if let (Ok(network), Ok(from)) = (network.parse(), from.parse()) {
                evidence.heard.insert((network, from, to));
            }
        }
    }
}

/// Asks names again that were not as the tables said, against the tables of then; silence once.
async fn ask_again(context: &Context, tables: &mut Tables, evidence: &mut Evidence, end: Instant) {
    for round in 0..AGAIN {
        let wrong = judge::plan_names_again(tables, evidence, round == 0);
        // What there is no time to ask again stands as it was said.
        if wrong.is_empty() || Instant::now() + SETTLING + PATIENCE > end {
            return;
        }
        tokio::time::sleep(SETTLING).await;
        tables.refresh(context);
        let wrong = judge::plan_names_again(tables, evidence, round == 0);
        let before = evidence.unmade.clone();
        make(context, wrong, evidence, "names that had changed", end, &|_, _, _| {}).await;
        evidence.unmade = before;
    }
}

/// What is wrong between two nodes on one network: the same questions as of a whole examination, of this pair only.
pub(crate) async fn link_problems(
    context: &Context,
    tables: &Tables,
    network: wharf_model::NetworkId,
    pair: (NodeId, NodeId),
    end: Instant,
) -> Vec<wharf_api::v1::NetworkTodo> {
    let mut tables = tables.clone();
    tables.networks.retain(|id, _| *id == network);
    tables.sets.retain(|node, _| *node == pair.0 || *node == pair.1);
    let (mut evidence, tell) = (Evidence::default(), |_: &str, _, _| {});
    look_at_all(context, &tables, &mut evidence, end, &tell).await;
    if evidence.looks.len() < 2 {
        return Vec::new();
    }
    make(context, judge::plan_link(&tables, network, pair), &mut evidence, "link", end, &tell).await;
    make(context, judge::plan_tcp(&tables, &evidence), &mut evidence, "link", end, &tell).await;
    let _ = timeout_at(end, one_way(context, &tables, &mut evidence, &tell)).await;
    judge::links(&tables, &evidence)
}
