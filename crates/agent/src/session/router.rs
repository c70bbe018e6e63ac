//! What servers may ask of this node: requests in, calls of [`Node`] out. It holds no logic of its own.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use futures::{Stream, StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use wharf_api::{
    transport::{
        Checksum, Frame, FrameReader, FrameSender,
        diagnose::{
            Heard, ListenRequest, Look, LookRequest, PathFacts, PathRequest, ProbeAnswer, ProbeRequest,
        },
        json_lines, lines,
        node::{
            ArchiveQuery, ChangeAssignments, DIFFERENCES, Have, ImageFacts, LogsQuery, OutputLine,
            OutputStream, Prune, Pruned, Report, ResolveImage, TaskUsage,
        },
        wire::Servers,
    },
    v1::{BuildLine, BuildRequest, Code, ExecRequest, Problem},
};
use wharf_model::{
    AssignmentSet, GatewayStats, Image, LeaseAnswer, LeaseGrant, NodeReport, TaskId, Timestamp,
};
use wharf_process::{Task, Tasks};

use super::Shared;
use crate::images::ImageSource;

/// How often a node says that it is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// The largest set of assignments.
const MAX_SET: usize = 256 << 20;

/// Why a node does not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Problem);
impl Refusal {
    /// A refusal of this kind with a sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Problem::new(code, message))
    }
    /// The same with a hint what to do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.hint(hint))
    }
}
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0.code.status(), Json(self.0)).into_response()
    }
}

/// The node, as servers may use it. Calls may come from several servers at once.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// Takes over a set of assignments, unless it holds a newer one.
    ///
    /// # Errors
    /// With the set it holds, if that is newer.
    async fn assign(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal>;
    /// Takes what the leader grants it: the right to run tasks that must not run twice.
    ///
    /// A node without such tasks may decline.
    async fn lease(&self, grant: LeaseGrant) -> Result<LeaseAnswer, Refusal> {
        let term = grant.term;
        Err(Refusal::new(Code::Unavailable, format!("this node takes no leases (term {term})")))
    }
    /// Takes note of where servers are.
    fn know_servers(&self, addresses: BTreeSet<IpAddr>) {
        drop(addresses);
    }
    /// What it has to report: the node and every task, [`Report::Synced`], then what changes. Heartbeats are added by the session.
    fn reports(&self) -> BoxStream<'static, Report>;
    /// What an image reference stands for.
    async fn resolve_image(&self, wish: ResolveImage) -> Result<Image, Refusal>;
    /// Builds an image: what the builder says, and last how it ended.
    ///
    /// A node without a builder says so.
    async fn build(
        &self,
        wish: BuildRequest,
        context: wharf_api::transport::Body,
    ) -> Result<BoxStream<'static, BuildLine>, Refusal> {
        drop((wish, context));
        Err(Refusal::new(Code::Unavailable, "this node builds no images"))
    }
    /// An image its engine has.
    async fn image(&self, id: &str) -> Result<ImageFacts, Refusal> {
        Err(Refusal::new(Code::NotFound, format!("this node does not have the image {id}")))
    }
    /// An image as an archive, without its lowest `skip` layers.
    async fn image_archive(&self, id: &str, skip: usize) -> Result<wharf_api::transport::Body, Refusal> {
        Err(Refusal::new(Code::NotFound, format!("this node does not have the image {id} ({skip})")))
    }
    /// Removes what nobody needs, or says what that would be.
    async fn prune(&self, ask: Prune) -> Result<Pruned, Refusal> {
        Err(Refusal::new(Code::Unavailable, format!("this node removes nothing ({ask:?})")))
    }
    /// Takes note of how to reach the images of other nodes.
    fn connect_images(&self, source: Arc<dyn ImageSource>) {
        drop(source);
    }
    /// A task's output.
    async fn logs(
        &self,
        task: TaskId,
        query: LogsQuery,
    ) -> Result<BoxStream<'static, Result<OutputLine, Refusal>>, Refusal>;
    /// Runs a command in a task: prepares it and returns; the exchange of frames then runs in [`Exec::run`].
    async fn exec(&self, task: TaskId, request: ExecRequest) -> Result<Box<dyn Exec>, Refusal>;
    /// What a task uses.
    async fn stats(&self, task: TaskId) -> Result<TaskUsage, Refusal>;
    /// What the engine says of a task's container.
    async fn inspect(&self, task: TaskId) -> Result<serde_json::Value, Refusal>;
    /// What it says of itself.
    async fn report(&self) -> NodeReport;
    /// What went through its gateway.
    async fn gateway(&self) -> Result<GatewayStats, Refusal> {
        Err(Refusal::new(Code::NotFound, "this node has no gateway"))
    }
    /// How its side of its networks is.
    async fn look(&self, _: LookRequest) -> Result<Look, Refusal> {
        Err(Refusal::new(Code::Unavailable, "this node cannot look at its networks"))
    }
    /// What becomes of these probes.
    async fn probe(&self, request: ProbeRequest) -> Result<ProbeAnswer, Refusal> {
        drop(request);
        Err(Refusal::new(Code::Unavailable, "this node makes no probes"))
    }
    /// What is heard at these addresses; ends when the time is over.
    async fn listen(&self, request: ListenRequest) -> Result<BoxStream<'static, Heard>, Refusal> {
        drop(request);
        Err(Refusal::new(Code::Unavailable, "this node does not listen"))
    }
    /// What the kernel has about a pair of addresses.
    async fn path(&self, _: PathRequest) -> Result<PathFacts, Refusal> {
        Err(Refusal::new(Code::Unavailable, "this node cannot look at its networks"))
    }
}

/// A command that is about to run.
#[async_trait]
pub trait Exec: Send {
    /// Runs it: takes [`Frame::Stdin`], [`Frame::StdinEnd`], [`Frame::Resize`] and [`Frame::Signal`] from `input`, sends
    /// [`Frame::Stdout`] and [`Frame::Stderr`], and [`Frame::Exit`] last. Dropped when the other side hangs up.
    ///
    /// # Errors
    /// If the engine fails; it is sent as [`Frame::Error`].
    async fn run(self: Box<Self>, input: FrameReader, output: &FrameSender) -> Result<(), Refusal>;
}

#[derive(Clone)]
struct Served {
    node: Arc<dyn Node>,
    shared: Arc<Shared>,
    tasks: Tasks,
    /// The last set that came from this server and was taken.
    sent: Arc<Mutex<Option<Sent>>>,
}

/// A set that a server sent, and what stands for it.
struct Sent {
    set: Arc<AssignmentSet>,
    sum: Checksum,
}

pub(super) fn routes(node: Arc<dyn Node>, shared: Arc<Shared>, tasks: Tasks) -> Router {
    Router::new()
        .route("/v1/assignments", put(assign).patch(change_assignments).layer(DefaultBodyLimit::max(MAX_SET)))
        .route("/v1/lease", put(lease))
        .route("/v1/reports", get(reports))
        .route("/v1/servers", put(servers))
        .route("/v1/images/resolve", post(resolve_image))
        .route("/v1/images/build", post(build))
        .route("/v1/images/{id}", get(image))
        .route("/v1/images/{id}/archive", get(image_archive))
        .route("/v1/prune", post(prune))
        .route("/v1/tasks/{id}/logs", get(logs))
        .route("/v1/tasks/{id}/exec", post(exec))
        .route("/v1/tasks/{id}/stats", get(stats))
        .route("/v1/tasks/{id}/inspect", get(inspect))
        .route("/v1/node", get(report))
        .route("/v1/gateway/routes", get(gateway))
        .route("/v1/diagnose/look", post(look))
        .route("/v1/diagnose/probe", post(probe))
        .route("/v1/diagnose/listen", post(listen))
        .route("/v1/diagnose/path", post(path))
        .fallback(unknown)
        .with_state(Served { node, shared, tasks, sent: Arc::default() })
}

async fn unknown() -> Refusal {
    Refusal::new(Code::NotFound, "this agent does not know such a request")
        .hint("is the server newer than the agent? `wharf node ls` shows both versions")
}

async fn assign(State(served): State<Served>, body: Bytes) -> Result<Response, Refusal> {
    let set: AssignmentSet = read(&body)?;
    take(&served, Arc::new(set), Checksum::of(&body)).await
}

async fn change_assignments(State(served): State<Served>, body: Bytes) -> Result<Response, Refusal> {
    let ChangeAssignments { base, change } = read(&body)?;
    // Whatever happens now, the next difference starts from what this one makes, or from nothing that is known here.
    let Some(Sent { mut set, sum: _ }) = served.sent.lock().take_if(|sent| sent.sum == base) else {
        tracing::warn!(%base, "a difference does not start from the assignments that were sent; all of them are asked for");
        return Ok(unknown_base());
    };
    if change.apply(Arc::make_mut(&mut set)).is_err() {
        tracing::warn!(%base, "a difference does not fit the assignments that were sent; all of them are asked for");
        return Ok(unknown_base());
    }
    take(&served, set, base.then(&body)).await
}

fn unknown_base() -> Response {
    let problem =
        Problem::new(Code::Conflict, "this node was not sent the assignments that the change starts from");
    (StatusCode::PRECONDITION_FAILED, Json(problem)).into_response()
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(Code::Invalid, format!("the assignments cannot be read: {error}")))
}

/// Gives a whole set to the node, however it came.
async fn take(served: &Served, set: Arc<AssignmentSet>, sum: Checksum) -> Result<Response, Refusal> {
    *served.sent.lock() = None;
    Ok(match served.node.assign(Arc::clone(&set)).await? {
        Ok(have) => {
            *served.sent.lock() = Some(Sent { set, sum });
            ([DIFFERENCES], Json(have)).into_response()
        }
        Err(have) => (StatusCode::CONFLICT, Json(have)).into_response(),
    })
}

async fn reports(State(served): State<Served>) -> Response {
    let reports = with_heartbeats(served.node.reports(), HEARTBEAT);
    lines_of(json_lines(reports.map(Ok::<_, Refusal>), served.shared.timing.stream_keepalive))
}

/// Adds a heartbeat every so often, and ends with `reports`.
fn with_heartbeats(
    reports: BoxStream<'static, Report>,
    every: Duration,
) -> impl Stream<Item = Report> + Send {
    let beat = tokio::time::interval(every);
    futures::stream::unfold((reports, beat), |(mut reports, mut beat)| async {
        let report = tokio::select! {
            // Cancel-safe both: a report that is not taken stays in its stream, a tick that is not taken is due.
            report = reports.next() => report?,
            _ = beat.tick() => Report::Heartbeat,
        };
        Some((report, (reports, beat)))
    })
}

async fn servers(State(served): State<Served>, Json(servers): Json<Servers>) {
    served.shared.learn(&servers);
}

async fn resolve_image(
    State(served): State<Served>,
    Json(wish): Json<ResolveImage>,
) -> Result<Json<Image>, Refusal> {
    served.node.resolve_image(wish).await.map(Json)
}

async fn build(State(served): State<Served>, body: Body) -> Result<Response, Refusal> {
    let timing = served.shared.timing;
    let (wish, context) = lines::first_line(body, timing.stream_silence())
        .await
        .map_err(|error| Refusal::new(Code::Invalid, wharf_process::errors::chain(&error)))?;
    let said = served.node.build(wish, context).await?;
    Ok(lines_of(json_lines(said.map(Ok::<_, std::convert::Infallible>), timing.stream_keepalive)))
}

async fn image(State(served): State<Served>, Path(id): Path<String>) -> Result<Json<ImageFacts>, Refusal> {
    served.node.image(&id).await.map(Json)
}

async fn image_archive(
    State(served): State<Served>,
    Path(id): Path<String>,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Refusal> {
    let archive = served.node.image_archive(&id, query.skip).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::new(archive)).into_response())
}

async fn prune(State(served): State<Served>, Json(ask): Json<Prune>) -> Result<Json<Pruned>, Refusal> {
    // To its end, also if whoever asked hangs up: what is half removed helps nobody.
    let node = served.node;
    let work = served.tasks.spawn("prune", async move { node.prune(ask).await });
    let gone = |_| Refusal::new(Code::Unavailable, "the agent is stopping");
    work.await.map_err(gone)?.map(Json)
}

async fn logs(
    State(served): State<Served>,
    Path(task): Path<TaskId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Refusal> {
    let lines = served.node.logs(task, query).await?;
    let clock = Arc::clone(&served.shared.clock);
    // What goes wrong later is the last line: a stream that merely broke off would not say why.
    let lines = lines.map(move |line| {
        let said = |Refusal(problem)| OutputLine {
            at: Timestamp(clock.now().0),
            stream: OutputStream::Wharf,
            text: problem.message,
        };
        Ok::<_, std::convert::Infallible>(line.unwrap_or_else(said))
    });
    Ok(lines_of(json_lines(lines, served.shared.timing.stream_keepalive)))
}

async fn exec(
    State(served): State<Served>,
    Path(task): Path<TaskId>,
    body: Body,
) -> Result<Response, Refusal> {
    let timing = served.shared.timing;
    let mut input = FrameReader::new(body, timing.stream_silence());
    let request = match input.next().await {
        Ok(Some(Frame::Start(request))) => request,
        Ok(_) => return Err(Refusal::new(Code::Invalid, "an exec begins with what to run")),
        Err(error) => return Err(Refusal::new(Code::Invalid, wharf_process::errors::chain(&error))),
    };
    let exec = served.node.exec(task, request).await?;
    let (output, frames) = FrameSender::channel(timing.stream_keepalive);
    let running = async move {
        if let Err(Refusal(problem)) = exec.run(input, &output).await {
            // Nobody is left to tell if this fails.
            let _ = output.send(Frame::Error(problem)).await;
        }
    };
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    let work = served.tasks.spawn(format!("exec in {task}"), running);
    Ok((headers, Body::new(Worked { work, body: frames })).into_response())
}

async fn lease(
    State(served): State<Served>,
    Json(grant): Json<LeaseGrant>,
) -> Result<Json<LeaseAnswer>, Refusal> {
    served.node.lease(grant).await.map(Json)
}

async fn stats(State(served): State<Served>, Path(task): Path<TaskId>) -> Result<Json<TaskUsage>, Refusal> {
    served.node.stats(task).await.map(Json)
}

async fn inspect(
    State(served): State<Served>,
    Path(task): Path<TaskId>,
) -> Result<Json<serde_json::Value>, Refusal> {
    served.node.inspect(task).await.map(Json)
}

async fn report(State(served): State<Served>) -> Json<NodeReport> {
    Json(served.node.report().await)
}

async fn gateway(State(served): State<Served>) -> Result<Json<GatewayStats>, Refusal> {
    served.node.gateway().await.map(Json)
}

async fn look(State(served): State<Served>, Json(request): Json<LookRequest>) -> Result<Json<Look>, Refusal> {
    served.node.look(request).await.map(Json)
}

async fn probe(
    State(served): State<Served>,
    Json(request): Json<ProbeRequest>,
) -> Result<Json<ProbeAnswer>, Refusal> {
    served.node.probe(request).await.map(Json)
}

async fn listen(
    State(served): State<Served>,
    Json(request): Json<ListenRequest>,
) -> Result<Response, Refusal> {
    let heard = served.node.listen(request).await?;
    let heard = heard.map(Ok::<_, std::convert::Infallible>);
    Ok(lines_of(json_lines(heard, served.shared.timing.stream_keepalive)))
}

async fn path(
    State(served): State<Served>,
    Json(request): Json<PathRequest>,
) -> Result<Json<PathFacts>, Refusal> {
    served.node.path(request).await.map(Json)
}

fn lines_of(body: wharf_api::transport::Body) -> Response {
    ([(header::CONTENT_TYPE, lines::CONTENT_TYPE)], Body::new(body)).into_response()
}

impl From<Refusal> for wharf_api::transport::BodyError {
    fn from(refusal: Refusal) -> Self {
        refusal.0.into()
    }
}

/// A body whose work is dropped with it: when nobody reads it any more, nobody waits for the work either.
///
/// The work is a task of its own, so that it takes input also while its output is not read.
struct Worked {
    work: Task<()>,
    body: wharf_api::transport::Body,
}
impl Drop for Worked {
    fn drop(&mut self) {
        self.work.abort();
    }
}
impl http_body::Body for Worked {
    type Data = bytes::Bytes;
    type Error = wharf_api::transport::BodyError;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn heartbeats_come_between_reports_and_end_with_them() {
        let reports = futures::stream::unfold(0_u32, |sent| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            (sent < 2).then_some((Report::Synced, sent + 1))
        });
        let all: Vec<_> = with_heartbeats(reports.boxed(), Duration::from_millis(5)).collect().await;
        let synced = all.iter().filter(|report| **report == Report::Synced).count();
        assert_eq!(synced, 2, "no report is lost to a heartbeat");
        assert!(all.len() > 4, "{all:?}");
    }
}
