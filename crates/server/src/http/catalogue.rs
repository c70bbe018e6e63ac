//! What runs where, for tools that speak Consul: a read-only part of its HTTP API.
//!
//! - A service is called `<service>.<app>`, as DNS calls it across apps; an environment is a datacenter. Without `dc` every
//!   environment is answered for.
//! - Answers are made from what is stored, and never from what only this server has heard: every server gives the same answer to
//!   the same revision.
//! - An index is the revision at which this server first saw the present answer. It only grows, and a question with it is held until the
//!   answer is another, so nothing between two questions is missed; it may come back early without news.
//! - A parameter that would change the answer and is not understood is refused.
//!
//! Documented in `docs/reference/catalogue.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::State,
    http::{HeaderValue, Uri, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use wharf_api::transport::Peer;
use wharf_engine::{Node, World, named_ports};
use wharf_model::{NamedPort, NodeState, ServiceKey, ServiceSpec, Task};

use super::{
    Shared,
    extract::{Path, Query},
    failure::{Answer, Failure},
    require_user,
};

/// How long a question is held if it does not say.
const WAIT: Duration = Duration::from_secs(300);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Questions of which is remembered when their answer last changed.
const REMEMBERED: usize = 1000;

/// The routes; they are no part of API v1's description, since others have defined them.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/catalog/datacenters", get(datacenters))
        .route("/v1/catalog/nodes", get(nodes))
        .route("/v1/catalog/services", get(services))
        .route("/v1/catalog/service/{service}", get(service))
        .route("/v1/health/service/{service}", get(health))
        .layer(Extension(Arc::<Changes>::default()))
}

/// When answers last changed, by question.
#[derive(Default)]
struct Changes(Mutex<BTreeMap<String, Seen>>);

#[derive(Clone, Copy)]
struct Seen {
    answer: u64,
    index: u64,
}

impl Changes {
    /// The index of an answer that was made of `revision`.
    fn index(&self, question: &str, answer: &str, revision: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        answer.hash(&mut hasher);
        let answer = hasher.finish();
        let mut all = self.0.lock();
        if let Some(seen) = all.get(question).filter(|seen| seen.answer == answer) {
            return seen.index;
        }
        if all.len() >= REMEMBERED && !all.contains_key(question) {
            // Whoever asks that again gets its answer at once, as if it had changed.
            all.pop_first();
        }
        // Two answers of one revision cannot be; it is above zero, which means "at once".
        let index = revision.max(1);
        all.insert(question.to_owned(), Seen { answer, index });
        index
    }
}

/// What a question says besides its path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    index: u64,
    wait: Duration,
    datacenter: Option<String>,
    passing: bool,
    tags: Vec<String>,
}

impl Options {
    fn read(pairs: Vec<(String, String)>) -> Answer<Self> {
        let mut options = Self { wait: WAIT, ..Self::default() };
        for (name, value) in pairs {
            match name.as_str() {
                "index" => {
                    options.index = value.parse().map_err(|_| {
                        Failure::invalid(format!("`index={value}`: an index is a number"))
                            .hint("give the `X-Consul-Index` of the answer before")
                    })?;
                }
                "wait" => {
                    options.wait = duration(&value).ok_or_else(|| {
                        Failure::invalid(format!("`wait={value}` is no duration"))
                            .hint("write for example `30s` or `5m`")
                    })?;
                }
                "dc" => options.datacenter = Some(value).filter(|value| !value.is_empty()),
                "passing" => options.passing = !matches!(value.as_str(), "0" | "false"),
                "tag" => options.tags.push(value),
                // Nothing here differs by them: one order of revisions, no tokens, no caches.
                "stale" | "consistent" | "cached" | "pretty" | "token" | "near" => {}
                _ => {
                    let known = "`index`, `wait`, `dc`, `passing`, `tag`";
                    return Err(Failure::invalid(format!(
                        "`{name}` would change the answer and is not supported"
                    ))
                    .hint(format!("the catalogue knows {known}")));
                }
            }
        }
        options.wait = options.wait.min(LONGEST_WAIT);
        Ok(options)
    }
}

/// A duration as Go writes it: `1m30s`, `250ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut all = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, behind) = rest.split_at(digits);
        let number: u32 = number.parse().ok()?;
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        all = all.checked_add(unit.checked_mul(number)?)?;
        rest = behind;
    }
    Some(all).filter(|_| !text.is_empty())
}

/// Answers with what `make` says of the world, once that is not what `index` stands for.
async fn answer(
    shared: &Shared,
    changes: &Changes,
    peer: &Peer,
    uri: &Uri,
    pairs: Vec<(String, String)>,
    make: impl Fn(&World, &Options) -> Value,
) -> Answer<Response> {
    require_user(peer)?;
    let options = Options::read(pairs)?;
    let question = format!("{} {:?} {} {:?}", uri.path(), options.datacenter, options.passing, options.tags);
    let stop = shared.tasks.token();
    let mut concerns = shared.state.concerns();
    let deadline = tokio::time::sleep(options.wait);
    tokio::pin!(deadline);
    loop {
        concerns.borrow_and_update();
        let (body, index) = {
            let inner = shared.state.read();
            let body = make(&inner.world, &options).to_string();
            let index = changes.index(&question, &body, inner.world.revision.0);
            (body, index)
        };
        if index != options.index || options.wait.is_zero() {
            return Ok(response(body, index));
        }
        let is_over = tokio::select! {
            // Cancel-safe, all of them.
            () = &mut deadline => true,
            () = stop.cancelled() => true,
            changed = concerns.changed() => changed.is_err(),
        };
        if is_over {
            return Ok(response(body, index));
        }
    }
}

fn response(body: String, index: u64) -> Response {
    let json = HeaderValue::from_static("application/json");
    let mut response = ([(header::CONTENT_TYPE, json)], body).into_response();
    let headers = response.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(index));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    response
}

type Pairs = Query<Vec<(String, String)>>;

async fn datacenters(
    State(shared): State<Shared>,
    Extension(changes): Extension<Arc<Changes>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    Query(pairs): Pairs,
) -> Answer<Response> {
    answer(&shared, &changes, &peer, &uri, pairs, |world, _| {
        let names: BTreeSet<_> = world.apps().map(|app| app.key.environment.to_string()).collect();
        json!(names)
    })
    .await
}

async fn nodes(
    State(shared): State<Shared>,
    Extension(changes): Extension<Arc<Changes>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    Query(pairs): Pairs,
) -> Answer<Response> {
    answer(&shared, &changes, &peer, &uri, pairs, |world, options| {
        let mut nodes: Vec<_> = world.nodes().collect();
        nodes.sort_by_key(|node| node.record.name.to_string());
        let datacenter = options.datacenter.as_deref().unwrap_or_default();
        nodes.into_iter().map(|node| described(node, datacenter)).collect()
    })
    .await
}

async fn services(
    State(shared): State<Shared>,
    Extension(changes): Extension<Arc<Changes>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    Query(pairs): Pairs,
) -> Answer<Response> {
    answer(&shared, &changes, &peer, &uri, pairs, |world, options| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for key in wanted(world, options) {
            let tags = spec(world, key).map(tags).unwrap_or_default();
            all.entry(name(key)).or_default().extend(tags);
        }
        json!(all)
    })
    .await
}

async fn service(
    State(shared): State<Shared>,
    Extension(changes): Extension<Arc<Changes>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    Path(service): Path<String>,
    Query(pairs): Pairs,
) -> Answer<Response> {
    answer(&shared, &changes, &peer, &uri, pairs, |world, options| {
        instances(world, options, &service).iter().map(Instance::in_catalogue).collect()
    })
    .await
}

async fn health(
    State(shared): State<Shared>,
    Extension(changes): Extension<Arc<Changes>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    Path(service): Path<String>,
    Query(pairs): Pairs,
) -> Answer<Response> {
    answer(&shared, &changes, &peer, &uri, pairs, |world, options| {
        let instances = instances(world, options, &service);
        let wanted = |instance: &&Instance<'_>| !options.passing || instance.is_passing();
        instances.iter().filter(wanted).map(Instance::with_health).collect()
    })
    .await
}

/// What DNS calls a service across apps.
fn name(key: &ServiceKey) -> String {
    format!("{}.{}", key.name, key.app.name)
}

fn spec<'a>(world: &'a World, key: &ServiceKey) -> Option<&'a ServiceSpec> {
    let record = world.service(key)?;
    world.revision_of(key, record.generation).map(|revision| &revision.spec)
}

/// The labels of a service (`deploy.labels`), as tags.
fn tags(spec: &ServiceSpec) -> Vec<String> {
    let tag = |(key, value): (&String, &String)| {
        if value.is_empty() { key.clone() } else { format!("{key}={value}") }
    };
    spec.labels.iter().map(tag).collect()
}

/// The services of an environment, or of all.
fn wanted<'a>(world: &'a World, options: &Options) -> impl Iterator<Item = &'a ServiceKey> {
    let datacenter = options.datacenter.clone();
    let keys = world.services().filter(|record| !record.removed).map(|record| &record.key);
    keys.filter(move |key| {
        datacenter.as_deref().is_none_or(|wanted| wanted == key.app.environment.to_string())
    })
}

/// A task, with what is said of it.
struct Instance<'a> {
    task: &'a Task,
    spec: &'a ServiceSpec,
    node: &'a Node,
    ports: BTreeSet<NamedPort>,
}

/// The tasks of a service that have a node and are not over or about to stop.
fn instances<'a>(world: &'a World, options: &Options, service: &str) -> Vec<Instance<'a>> {
    let mut instances = Vec::new();
    for key in wanted(world, options).filter(|key| name(key) == service) {
        let tasks = world.tasks_of(key).filter(|task| !task.is_over() && task.stop.is_none());
        instances.extend(tasks.filter_map(|task| {
            let node = world.node(task.node?)?;
            let spec = &world.revision_of(key, task.generation)?.spec;
            Some(Instance { task, spec, node, ports: named_ports(spec) })
        }));
    }
    instances.retain(|instance| {
        let tags = tags(instance.spec);
        options.tags.iter().all(|tag| tags.contains(tag))
    });
    instances.sort_by_key(|instance| (name(&instance.task.service), instance.task.slot, instance.task.id));
    instances
}

impl Instance<'_> {
    fn is_passing(&self) -> bool {
        self.task.is_ready() && node_passes(self.node)
    }
    fn datacenter(&self) -> String {
        self.task.service.app.environment.to_string()
    }
    /// Its address on its first network; empty if it has none of its own, which is to say the node's.
    fn address(&self) -> String {
        let networks = self.spec.networks.iter();
        let first = networks.max_by_key(|(name, attachment)| (attachment.priority, std::cmp::Reverse(*name)));
        let address = first.and_then(|(name, _)| self.task.addresses.get(name));
        address.map(ToString::to_string).unwrap_or_default()
    }
    fn port(&self) -> u16 {
        self.ports.first().map_or(0, |port| port.port)
    }
    fn about(&self) -> BTreeMap<String, String> {
        let task = self.task;
        let mut about = BTreeMap::from([
            ("app".to_owned(), task.service.app.name.to_string()),
            ("environment".to_owned(), self.datacenter()),
            ("service".to_owned(), task.service.name.to_string()),
            ("slot".to_owned(), task.slot.0.to_string()),
            ("task".to_owned(), task.name()),
        ]);
        for port in &self.ports {
            let name = port.name.clone().unwrap_or_else(|| port.port.to_string());
            about.insert(format!("port-{name}"), format!("{}/{}", port.port, port.protocol.as_str()));
        }
        about
    }

    fn in_catalogue(&self) -> Value {
        let mut all = described(self.node, &self.datacenter());
        all["NodeMeta"] = all["Meta"].take();
        if let Some(all) = all.as_object_mut() {
            all.remove("Meta");
            all.insert("ServiceID".into(), json!(self.task.id.to_string()));
            all.insert("ServiceName".into(), json!(name(&self.task.service)));
            all.insert("ServiceTags".into(), json!(tags(self.spec)));
            all.insert("ServiceAddress".into(), json!(self.address()));
            all.insert("ServicePort".into(), json!(self.port()));
            all.insert("ServiceMeta".into(), json!(self.about()));
            all.insert("ServiceWeights".into(), json!({ "Passing": 1, "Warning": 1 }));
        }
        all
    }

    fn with_health(&self) -> Value {
        let id = self.task.id.to_string();
        let node = self.node.record.name.to_string();
        let name = name(&self.task.service);
        let status = |passes: bool| if passes { "passing" } else { "critical" };
        json!({
            "Node": described(self.node, &self.datacenter()),
            "Service": {
                "ID": id,
                "Service": name,
                "Tags": tags(self.spec),
                "Address": self.address(),
                "Port": self.port(),
                "Meta": self.about(),
                "Weights": { "Passing": 1, "Warning": 1 },
            },
            "Checks": [
                {
                    "Node": node,
                    "CheckID": "serfHealth",
                    "Name": "Node",
                    "Status": status(node_passes(self.node)),
                    "Output": format!("the node is {}", self.node.state()),
                    "ServiceID": "",
                    "ServiceName": "",
                },
                {
                    "Node": node,
                    "CheckID": format!("service:{id}"),
                    "Name": "Task",
                    "Status": status(self.task.is_ready()),
                    "Output": self.task.status.message,
                    "ServiceID": id,
                    "ServiceName": name,
                },
            ],
        })
    }
}

/// Whether what runs on a node can be counted on: it is not given up, even if nobody hears of it for a moment.
fn node_passes(node: &Node) -> bool {
    match node.state() {
        NodeState::Ready | NodeState::EngineDown | NodeState::Unreachable => true,
        NodeState::Joining | NodeState::Down => false,
    }
}

fn described(node: &Node, datacenter: &str) -> Value {
    let address = node.facts().map(|facts| facts.address.to_string()).unwrap_or_default();
    json!({
        "ID": node.record.id.to_string(),
        "Node": node.record.name.to_string(),
        "Address": address,
        "Datacenter": datacenter,
        "TaggedAddresses": { "lan": address },
        "Meta": node.record.labels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood_or_refused() {
        let read = |text: &str| {
            let pair = |pair: &str| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name.to_owned(), value.to_owned())
            };
            Options::read(text.split('&').map(pair).collect())
        };
        let options = read("index=7&wait=1m30s&dc=prod&passing&tag=a&tag=b=c&stale").unwrap();
        let tags = vec!["a".to_owned(), "b=c".to_owned()];
        let wait = Duration::from_secs(90);
        let expected = Options { index: 7, wait, datacenter: Some("prod".into()), passing: true, tags };
        assert_eq!(options, expected);
        assert_eq!(read("wait=20m").unwrap().wait, LONGEST_WAIT);
        for refused in ["filter=x", "index=a", "wait=10", "wait=", "wait=5x", "node-meta=a:b"] {
            assert!(read(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn an_index_changes_with_the_answer_and_only_then() {
        let changes = Changes::default();
        assert_eq!(changes.index("q", "a", 5), 5);
        assert_eq!(changes.index("q", "a", 9), 5);
        assert_eq!(changes.index("q", "b", 12), 12);
        assert_eq!(changes.index("r", "b", 13), 13);
        for number in 0..REMEMBERED {
            changes.index(&format!("s{number}"), "", 14);
        }
        assert_eq!(changes.0.lock().len(), REMEMBERED);
    }
}
