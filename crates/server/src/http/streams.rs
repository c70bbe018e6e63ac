//! What is answered as a stream, or by a node: logs, exec, events, usage, and an app as it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Extension, body::Body, extract::State, response::Response};
use futures::{StreamExt, stream};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wharf_api::{
    transport::{
        CallError, LineReader, Peer, json_lines,
        node::{LogsQuery, OutputLine, OutputStream},
    },
    v1,
};
use wharf_model::{AppKey, Event, NodeId, Phase, Task, TaskId, Timestamp};
use wharf_process::errors::chain;
use wharf_store::Revision;

use super::{
    Shared, apps,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user, views,
};

/// How long a stream may be silent before it says that it is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The shortest time between two states of a watched app.
const FRAME: Duration = Duration::from_millis(100);
/// Lines a stream may be ahead of its reader.
const QUEUE: usize = 256;
/// Nodes asked at once for what their tasks use.
const ASKED_AT_ONCE: usize = 16;

/// Why a stream ends that would go on.
#[derive(Debug, thiserror::Error)]
#[error("this server is stopping")]
struct Stopping;

/// An answer of one line for each value. When the server stops, it breaks off: nobody shall take that for the end.
pub(super) fn lines<T: serde::Serialize + Send + 'static>(
    shared: &Shared,
    values: impl stream::Stream<Item = T> + Send + 'static,
) -> Response {
    let stopping = shared.tasks.token().cancelled_owned();
    let told = Arc::new(AtomicBool::new(false));
    let stops = Arc::clone(&told);
    let values = values.map(Ok).take_until(async move {
        stopping.await;
        stops.store(true, Ordering::Relaxed);
    });
    let last = stream::once(async move { told.load(Ordering::Relaxed).then_some(Err(Stopping)) });
    let body = json_lines(values.chain(last.filter_map(std::future::ready)), KEEPALIVE);
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(
        axum::http::header::CONTENT_TYPE,
        axum::http::HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

/// What went wrong on the way to or on a node, for whoever asked this server.
fn from_node(error: &CallError) -> Failure {
    match error.problem() {
        Some(problem) => Failure(problem.clone()),
        None => {
            let failure = Failure::new(v1::Code::NodeUnreachable, chain(error));
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
    }
}

/// The node that has a task's container, and the task.
fn located(shared: &Shared, name: &str) -> Answer<(Arc<Task>, NodeId)> {
    let inner = shared.state.read();
    let task = apps::find_task(shared, &inner, name)?;
    let node = task.node.ok_or_else(|| {
        Failure::new(v1::Code::Conflict, format!("{} has no node yet", task.name()))
            .hint("`wharf ps` says what it is waiting for")
    })?;
    Ok((Arc::clone(task), node))
}

fn session(shared: &Shared, node: NodeId) -> Answer<crate::sessions::NodeSession> {
    shared.sessions.get(node).map_err(|Failure(problem)| {
        let name = shared.state.read().world.node_name(node);
        Failure(v1::Problem { message: format!("node {name} is not connected to this server"), ..problem })
    })
}

/// What the engine says of a task's container.
#[utoipa::path(get, path = "/v1/tasks/{task}/inspect", params(("task" = String, Path)), responses((status = 200, body = Object)))]
pub(super) async fn inspect(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Json<serde_json::Value>> {
    require_user(&peer)?;
    let (task, node) = located(&shared, &name)?;
    let answer = session(&shared, node)?.inspect(task.id).await;
    answer.map(Json).map_err(|error| from_node(&error))
}

/// Runs a command in a task. Both bodies are frames: the request begins with what to run, the answer ends with an exit code.
#[utoipa::path(post, path = "/v1/tasks/{task}/exec", params(("task" = String, Path)),
    responses((status = 200, description = "frames, until the command ends"), (status = 404, body = v1::Problem)))]
pub(super) async fn exec(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Body,
) -> Answer<Response> {
    require_user(&peer)?;
    let (task, node) = located(&shared, &name)?;
    let status = shared.state.status_of(&task);
    if status.phase != Phase::Running {
        return Err(Failure::new(
            v1::Code::Conflict,
            format!("{} is {}, not running", task.name(), status.phase),
        )
        .hint("`wharf ps` shows which tasks run"));
    }
    let frames = body.map_err(Into::into).boxed_unsync();
    let answer = session(&shared, node)?.exec(task.id, frames).await.map_err(|error| from_node(&error))?;
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    Ok(response)
}

/// Which lines of an app's output are wanted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogsOf {
    /// Of this service only; several are separated by commas.
    service: Option<String>,
    /// Of this task only, by name or id.
    task: Option<String>,
    follow: bool,
    tail: Option<u64>,
    since: Option<u64>,
    until: Option<u64>,
}

/// What an app's tasks print: one line of JSON for each line.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/logs", params(("environment" = String, Path), ("app" = String, Path),
    ("service" = Option<String>, Query), ("task" = Option<String>, Query), ("follow" = Option<bool>, Query), ("tail" = Option<u64>, Query),
    ("since" = Option<u64>, Query), ("until" = Option<u64>, Query)),
    responses((status = 200, body = v1::LogLine, content_type = "application/x-ndjson")))]
pub(super) async fn app_logs(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Query(wish): Query<LogsOf>,
) -> Answer<Response> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let services: BTreeSet<String> = wish
        .service
        .iter()
        .flat_map(|text| text.split(','))
        .filter(|text| !text.is_empty())
        .map(Into::into)
        .collect();
    {
        let inner = shared.state.read();
        apps::find(&inner, &key)?;
        for service in &services {
            apps::find_service(&inner, &key, service)?;
        }
    }
    let query = LogsQuery {
        follow: wish.follow,
        tail: wish.tail,
        since: wish.since.map(Timestamp),
        until: wish.until.map(Timestamp),
    };
    let selection = Selection { key, services, task: wish.task };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let worker = Logs { shared: Arc::clone(&shared), selection, query, sender };
    if query.follow {
        shared.tasks.spawn("logs, followed", worker.follow());
    } else {
        shared.tasks.spawn("logs", worker.all());
    }
    Ok(lines(&shared, ReceiverStream::new(receiver)))
}

/// Which tasks' output is wanted.
struct Selection {
    key: AppKey,
    services: BTreeSet<String>,
    task: Option<String>,
}
impl Selection {
    fn tasks(&self, shared: &Shared) -> Vec<Arc<Task>> {
        let inner = shared.state.read();
        let services = inner.world.services_of(&self.key);
        let wanted = services
            .filter(|service| self.services.is_empty() || self.services.contains(service.key.name.as_str()))
            .flat_map(|service| inner.world.tasks_of(&service.key));
        // Commands around releases belong to the service whose container they have.
        let commands = inner.world.hooks_of(&self.key);
        let commands = commands
            .filter(|task| self.services.is_empty() || self.services.contains(task.service.name.as_str()));
        let wanted = wanted.chain(commands).filter(|task| {
            self.task.as_ref().is_none_or(|name| task.name() == *name || task.id.to_string() == *name)
        });
        // What has not reached a container has printed nothing; of what is over its node keeps nothing.
        wanted
            .filter(|task| {
                let status = shared.state.status_of(task);
                let there = status.container.is_some() && !status.phase.is_over();
                task.node.is_some() && (there || !status.last_log.is_empty())
            })
            .cloned()
            .collect()
    }
}

struct Logs {
    shared: Shared,
    selection: Selection,
    query: LogsQuery,
    sender: mpsc::Sender<v1::LogLine>,
}

impl Logs {
    /// What there is, of all tasks in the order of time.
    async fn all(self) {
        let mut sources = Vec::new();
        for task in self.selection.tasks(&self.shared) {
            if let Some(lines) = last_lines(&self.shared, &task, &self.query) {
                if send_all(&self.sender, lines).await.is_err() {
                    return;
                }
                continue;
            }
            match open(&self.shared, &task, &self.query).await {
                Ok(reader) => sources.push((Source::of(&self.shared, &task), reader, None)),
                Err(line) => {
                    if self.sender.send(line).await.is_err() {
                        return;
                    }
                }
            }
        }
        loop {
            for (source, reader, head) in &mut sources {
                if head.is_none() {
                    *head = source.next(reader).await;
                }
            }
            sources.retain(|(.., head)| head.is_some());
            let earliest =
                sources.iter_mut().min_by_key(|(.., head)| head.as_ref().map_or(0, |line| line.at));
            let Some(line) = earliest.and_then(|(.., head)| head.take()) else { return };
            if self.sender.send(line).await.is_err() {
                return;
            }
        }
    }

    /// What there is and what comes, also of tasks that are made later, until nobody listens.
    async fn follow(self) {
        let mut concerns = self.shared.state.visible();
        let mut followed = BTreeSet::<TaskId>::new();
        let mut query = self.query;
        loop {
            concerns.borrow_and_update();
            for task in self.selection.tasks(&self.shared) {
                if followed.insert(task.id) {
                    let (shared, sender) = (Arc::clone(&self.shared), self.sender.clone());
                    self.shared.tasks.spawn("logs of a task", async move {
                        tokio::select! {
                            // Dropped when nobody listens any more.
                            () = sender.closed() => {}
                            () = pump(&shared, &task, &query, &sender) => {}
                        }
                    });
                }
            }
            // Tasks that come later are shown from their beginning.
            query = LogsQuery { tail: None, since: None, ..query };
            tokio::select! {
                // Cancel-safe, both.
                () = self.sender.closed() => return,
                _ = concerns.changed() => {}
            }
            tokio::time::sleep(FRAME).await;
        }
    }
}

/// Passes a task's lines on until it ends. A stream that breaks is taken up again after the last line.
async fn pump(shared: &Shared, task: &Task, query: &LogsQuery, sender: &mpsc::Sender<v1::LogLine>) {
    let source = Source::of(shared, task);
    let mut query = *query;
    let mut said = false;
    if let Some(lines) = last_lines(shared, task, &query) {
        // Nobody listens any more, or nothing more will come: either way this is the end.
        let _ = send_all(sender, lines).await;
        return;
    }
    loop {
        match open(shared, task, &query).await {
            Ok(mut reader) => {
                while let Some(line) = source.next(&mut reader).await {
                    said = false;
                    // Lines of one millisecond belong together; the engine's next answer begins after it.
                    query = LogsQuery { since: Some(Timestamp(line.at + 1)), tail: None, ..query };
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
            }
            Err(line) => {
                if !said && sender.send(line).await.is_err() {
                    return;
                }
                said = true;
            }
        }
        let over = shared
            .state
            .read()
            .world
            .task(task.id)
            .is_none_or(|task| shared.state.status_of(task).phase.is_over());
        if over {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Whose lines they are.
struct Source {
    task: String,
    service: String,
    node: String,
}
impl Source {
    fn of(shared: &Shared, task: &Task) -> Self {
        let node = task.node.map(|node| shared.state.read().world.node_name(node));
        Self { task: task.name(), service: task.service.name.to_string(), node: node.unwrap_or_default() }
    }
    fn line(&self, at: u64, stream: &str, text: String) -> v1::LogLine {
        v1::LogLine {
            task: self.task.clone(),
            service: self.service.clone(),
            node: self.node.clone(),
            at,
            stream: stream.into(),
            text,
        }
    }
    async fn next(&self, reader: &mut LineReader<OutputLine>) -> Option<v1::LogLine> {
        let line = reader.next().await.ok().flatten()?;
        let stream = match line.stream {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
            OutputStream::Wharf => "wharf",
        };
        Some(self.line(line.at.0, stream, line.text))
    }
}

/// Passes lines on, one after the other.
async fn send_all(
    sender: &mpsc::Sender<v1::LogLine>,
    lines: Vec<v1::LogLine>,
) -> Result<(), mpsc::error::SendError<v1::LogLine>> {
    for line in lines {
        sender.send(line).await?;
    }
    Ok(())
}

/// The last lines of a task that failed, which its node reported with its end: its container is gone.
fn last_lines(shared: &Shared, task: &Task, query: &LogsQuery) -> Option<Vec<v1::LogLine>> {
    let status = shared.state.status_of(task);
    let at = status.ended_at.filter(|_| status.phase.is_over())?.0;
    if query.since.is_some_and(|since| at < since.0) {
        return Some(Vec::new());
    }
    let source = Source::of(shared, task);
    let mut lines: Vec<_> =
        status.last_log.iter().map(|text| source.line(at, "stdout", text.clone())).collect();
    lines.push(source.line(
        at,
        "wharf",
        format!("it ended then ({}); above are its last lines", status.phase),
    ));
    Some(lines)
}

/// A task's lines from its node; if they cannot be had, a line that says why.
async fn open(
    shared: &Shared,
    task: &Task,
    query: &LogsQuery,
) -> Result<LineReader<OutputLine>, v1::LogLine> {
    let why = match task.node.map(|node| session(shared, node)) {
        Some(Ok(session)) => match session.logs(task.id, query).await {
            Ok(reader) => return Ok(reader),
            Err(error) => error.problem().map_or_else(|| chain(&error), |problem| problem.message.clone()),
        },
        Some(Err(Failure(problem))) => problem.message,
        None => "it has no node".into(),
    };
    let source = Source::of(shared, task);
    Err(source.line(shared.now().0, "wharf", format!("lines are missing: {why}")))
}

/// Which app is watched, and how.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Watch {}

/// An app, whole, whenever anything of it changes; ends when the app is gone.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/watch", params(("environment" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = v1::AppStatus, content_type = "application/x-ndjson")))]
pub(super) async fn watch_app(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Query(_wish): Query<Watch>,
) -> Answer<Response> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    apps::find(&shared.state.read(), &key)?;
    let visible = shared.state.visible();
    let states = stream::unfold(
        (Arc::clone(&shared), key, visible, None::<v1::AppStatus>),
        async |(shared, key, mut visible, last)| {
            loop {
                visible.borrow_and_update();
                let status = apps::status(&shared, &key, false).ok()?;
                if last.as_ref() != Some(&status) {
                    return Some((status.clone(), (shared, key, visible, Some(status))));
                }
                tokio::time::sleep(FRAME).await;
                visible.changed().await.ok()?;
            }
        },
    );
    Ok(lines(&shared, states.boxed()))
}

/// Which events are wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EventsOf {
    follow: bool,
    since: Option<u64>,
    /// `environment/name`.
    app: Option<String>,
}

/// What happened, and with `follow` what happens: one line of JSON for each event.
#[utoipa::path(get, path = "/v1/events", params(("follow" = Option<bool>, Query), ("since" = Option<u64>, Query), ("app" = Option<String>, Query)),
    responses((status = 200, body = v1::Event, content_type = "application/x-ndjson")))]
pub(super) async fn events(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<EventsOf>,
) -> Answer<Response> {
    require_user(&peer)?;
    let wish = Arc::new(wish);
    let visible = shared.state.visible();
    let chunks = stream::unfold(
        (Arc::clone(&shared), visible, None::<Revision>, false),
        move |(shared, mut visible, mut last, begun)| {
            let wish = Arc::clone(&wish);
            async move {
                if begun && !wish.follow {
                    return None;
                }
                loop {
                    visible.borrow_and_update();
                    let (events, latest) = events_after(&shared, &wish, last);
                    last = latest;
                    if !events.is_empty() || !begun {
                        return Some((events, (shared, visible, last, true)));
                    }
                    visible.changed().await.ok()?;
                }
            }
        },
    );
    Ok(lines(&shared, chunks.flat_map(stream::iter).boxed()))
}

fn events_after(
    shared: &Shared,
    wish: &EventsOf,
    last: Option<Revision>,
) -> (Vec<v1::Event>, Option<Revision>) {
    let inner = shared.state.read();
    let wanted = |event: &&Event| {
        let app = event.subject.app.as_ref().map(ToString::to_string);
        event.at.0 >= wish.since.unwrap_or(0) && (wish.app.is_none() || app == wish.app)
    };
    // What there is comes by its time, what follows as it is written: a clock that is behind hides nothing.
    let events = match last {
        None => inner.events.values().filter(wanted).map(views::event).collect(),
        Some(last) => inner.events_after(last).filter(wanted).map(views::event).collect(),
    };
    (events, Some(inner.revision()))
}

/// Whose usage is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UsageOf {
    environment: Option<String>,
    app: Option<String>,
    node: Option<String>,
}

/// What running tasks use, as their nodes say now. Tasks whose node does not answer are left out.
#[utoipa::path(get, path = "/v1/usage", params(("environment" = Option<String>, Query), ("app" = Option<String>, Query), ("node" = Option<String>, Query)),
    responses((status = 200, body = [v1::Usage])))]
pub(super) async fn usage(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<UsageOf>,
) -> Answer<Json<Vec<v1::Usage>>> {
    require_user(&peer)?;
    let (tasks, names) = {
        let inner = shared.state.read();
        let node = match &wish.node {
            Some(name) => Some(super::nodes::find(&inner, name)?.record.id),
            None => None,
        };
        let wanted = inner.world.tasks().filter(|task| {
            let key = &task.service.app;
            shared.state.status_of(task).phase == Phase::Running
                && wish.environment.as_ref().is_none_or(|wanted| key.environment.as_str() == wanted)
                && wish.app.as_ref().is_none_or(|wanted| key.name.as_str() == wanted)
                && node.is_none_or(|node| task.node == Some(node))
        });
        let tasks: Vec<_> = wanted.cloned().collect();
        let names: BTreeMap<_, _> =
            inner.world.nodes().map(|node| (node.record.id, node.record.name.to_string())).collect();
        (tasks, names)
    };
    let asked = stream::iter(tasks).map(|task| {
        let session = task.node.and_then(|node| shared.sessions.get(node).ok());
        async move {
            let used = session?.stats(task.id).await.ok()?;
            Some((task, used))
        }
    });
    let answers: Vec<_> =
        asked.buffer_unordered(ASKED_AT_ONCE).filter_map(std::future::ready).collect().await;
    let mut usages: Vec<_> = answers
        .into_iter()
        .map(|(task, used)| v1::Usage {
            task: task.id.to_string(),
            name: task.name(),
            service: task.service.name.to_string(),
            node: task.node.and_then(|node| names.get(&node).cloned()).unwrap_or_default(),
            cpus: used.cpus,
            memory: used.memory,
            memory_limit: used.memory_limit,
            network_rx: used.network_rx,
            network_tx: used.network_tx,
            block_read: used.block_read,
            block_write: used.block_write,
            pids: used.pids,
        })
        .collect();
    usages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(usages))
}
