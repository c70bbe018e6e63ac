//! The node as servers see it: what a session asks, answered by the node at work.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tokio::io::AsyncWriteExt as _;
use wharf_api::{
    transport::{
        Frame, FrameReader, FrameSender,
        diagnose::{
            Heard, ListenRequest, Look, LookRequest, PathFacts, PathRequest, ProbeAnswer, ProbeRequest,
        },
        frame::ExitCode,
        node::{
            Have, ImageFacts, LogsQuery, OutputLine, OutputStream, Prune, Pruned, Report, ResolveImage,
            TaskUsage,
        },
    },
    v1::{self, Code},
};
use wharf_model::{
    AssignmentSet, Bytes, Cpus, GatewayStats, Image, LeaseAnswer, LeaseGrant, NodeReport, PullPolicy, TaskId,
    Timestamp,
};

use crate::{
    assignments::Refused,
    diagnose,
    images::{self, ImageSource},
    node::NodeAgent,
    runtime::{ExecRequest, ExecSession, LogQuery, LogSource, RuntimeError},
    session::{Node, Refusal, router::Exec},
};

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        let code = match (error.is_not_found(), error.is_temporary()) {
            (true, _) => Code::NotFound,
            (false, true) => Code::Unavailable,
            (false, false) => Code::Invalid,
        };
        let refusal = Self::new(code, error.to_string());
        match error.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
}

#[async_trait]
impl Node for NodeAgent {
    fn know_servers(&self, addresses: BTreeSet<IpAddr>) {
        Self::know_servers(self, addresses);
    }

    async fn assign(&self, set: Arc<AssignmentSet>) -> Result<Result<Have, Have>, Refusal> {
        let have = Have { epoch: set.epoch, revision: set.revision };
        match self.apply(set).await {
            Ok(()) => Ok(Ok(have)),
            Err(Refused::Older { have: (epoch, revision), .. }) => Ok(Err(Have { epoch, revision })),
            Err(error @ Refused::OtherNode { .. }) => Err(Refusal::new(Code::Invalid, error.to_string())),
            Err(error @ Refused::NotKept { .. }) => {
                Err(Refusal::new(Code::Unavailable, error.to_string()).hint("make room on the node's disk"))
            }
        }
    }

    async fn lease(&self, grant: LeaseGrant) -> Result<LeaseAnswer, Refusal> {
        NodeAgent::lease(self).take(&grant).map_err(|stale| Refusal::new(Code::Conflict, stale.to_string()))
    }

    fn reports(&self) -> BoxStream<'static, Report> {
        self.reports().boxed()
    }

    async fn resolve_image(&self, wish: ResolveImage) -> Result<Image, Refusal> {
        let policy = match (wish.offline, wish.refresh) {
            (true, _) => PullPolicy::Never,
            (false, true) => PullPolicy::Always,
            (false, false) => PullPolicy::Missing,
        };
        Ok(self.resolve_image(&wish.reference, policy).await?)
    }

    async fn build(
        &self,
        wish: v1::BuildRequest,
        context: wharf_api::transport::Body,
    ) -> Result<BoxStream<'static, v1::BuildLine>, Refusal> {
        let (agent, name) = (self.clone(), wish.reference.clone());
        let said = self.images().build(wish, context).then(move |line| {
            let (agent, name) = (agent.clone(), name.clone());
            async move {
                if let v1::BuildLine::Built { id } = &line {
                    agent.house().built(id, &name).await;
                }
                line
            }
        });
        Ok(said.boxed())
    }

    async fn prune(&self, ask: Prune) -> Result<Pruned, Refusal> {
        Ok(NodeAgent::prune(self, &ask).await?)
    }

    async fn image(&self, id: &str) -> Result<ImageFacts, Refusal> {
        let missing = || Refusal::new(Code::NotFound, format!("this node does not have the image {id}"));
        self.images().facts(id).await?.ok_or_else(missing)
    }

    async fn image_archive(&self, id: &str, skip: usize) -> Result<wharf_api::transport::Body, Refusal> {
        Ok(images::archive_body(self.images().archive(id, skip).await?))
    }

    fn connect_images(&self, source: Arc<dyn ImageSource>) {
        self.images().connect(source);
    }

    async fn logs(
        &self,
        task: TaskId,
        query: LogsQuery,
    ) -> Result<BoxStream<'static, Result<OutputLine, Refusal>>, Refusal> {
        let query = LogQuery {
            follow: query.follow,
            tail: query.tail,
            since: query.since,
            until: query.until,
            ..LogQuery::default()
        };
        let frames = self.logs(task, query).await?;
        let lines = frames.map(|frame| {
            let frame = frame?;
            let text = String::from_utf8_lossy(&frame.bytes);
            Ok(OutputLine {
                at: frame.at.unwrap_or(Timestamp(0)),
                stream: match frame.source {
                    LogSource::Stdout => OutputStream::Stdout,
                    LogSource::Stderr => OutputStream::Stderr,
                },
                text: text.trim_end_matches(['\n', '\r']).to_owned(),
            })
        });
        Ok(lines.boxed())
    }

    async fn exec(&self, task: TaskId, request: v1::ExecRequest) -> Result<Box<dyn Exec>, Refusal> {
        let v1::ExecRequest { command, environment, tty, stdin, user, working_dir, privileged, size } =
            request;
        let request = ExecRequest { command, tty, stdin, environment, user, working_dir, privileged, size };
        Ok(Box::new(Running { session: self.exec(task, &request).await? }))
    }

    async fn stats(&self, task: TaskId) -> Result<TaskUsage, Refusal> {
        let used = self.usage(task).await?;
        Ok(TaskUsage {
            cpus: Cpus(used.cpu_millis),
            memory: Bytes(used.memory),
            memory_limit: Bytes(used.memory_limit),
            network_rx: Bytes(used.received),
            network_tx: Bytes(used.sent),
            block_read: Bytes(used.read),
            block_write: Bytes(used.written),
            pids: used.pids,
        })
    }

    async fn inspect(&self, task: TaskId) -> Result<serde_json::Value, Refusal> {
        Ok(self.inspect(task).await?)
    }

    async fn report(&self) -> NodeReport {
        loop {
            if let Some(report) = self.report() {
                return report;
            }
            // There is one as soon as the node has looked at itself once.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn gateway(&self) -> Result<GatewayStats, Refusal> {
        let none = || Refusal::new(Code::NotFound, "this node has no gateway");
        NodeAgent::gateway(self).await.ok_or_else(none)
    }

    async fn look(&self, request: LookRequest) -> Result<Look, Refusal> {
        Ok(diagnose::look(self, request).await)
    }

    async fn probe(&self, request: ProbeRequest) -> Result<ProbeAnswer, Refusal> {
        diagnose::probe(self, request).await
    }

    async fn listen(&self, request: ListenRequest) -> Result<BoxStream<'static, Heard>, Refusal> {
        Ok(diagnose::listen(request).await)
    }

    async fn path(&self, request: PathRequest) -> Result<PathFacts, Refusal> {
        diagnose::path(self, request).await
    }
}

/// A command that is about to run.
struct Running {
    session: ExecSession,
}

#[async_trait]
impl Exec for Running {
    async fn run(self: Box<Self>, mut frames: FrameReader, sender: &FrameSender) -> Result<(), Refusal> {
        let ExecSession { input, mut output, control } = self.session;
        let feeding = Arc::clone(&control);
        let feed = async move {
            let mut input = Some(input);
            while let Ok(Some(frame)) = frames.next().await {
                match frame {
                    Frame::Stdin(data) => {
                        let Some(open) = &mut input else { continue };
                        // A command that closed its input does not want the rest.
                        if open.write_all(&data).await.is_err() || open.flush().await.is_err() {
                            input = None;
                        }
                    }
                    Frame::StdinEnd => {
                        if let Some(mut open) = input.take() {
                            let _ = open.shutdown().await;
                        }
                    }
                    Frame::Resize(size) => {
                        let _ = feeding.resize(size.columns, size.rows).await;
                    }
                    Frame::Signal(name) => {
                        let _ = feeding.signal(&name.signal).await;
                    }
                    Frame::KeepAlive
                    | Frame::Start(_)
                    | Frame::Stdout(_)
                    | Frame::Stderr(_)
                    | Frame::Exit(_)
                    | Frame::Error(_) => {}
                }
            }
            // Whoever asked is gone or has nothing more to say: the command goes on until it ends.
            let _open = input;
            std::future::pending::<()>().await;
        };
        let pass = async {
            while let Some(piece) = output.next().await {
                let piece = piece?;
                let frame = match piece.source {
                    LogSource::Stdout => Frame::Stdout(piece.bytes),
                    LogSource::Stderr => Frame::Stderr(piece.bytes),
                };
                if sender.send(frame).await.is_err() {
                    return Ok(());
                }
            }
            let code = control.exit_code().await?;
            let _ = sender.send(Frame::Exit(ExitCode { code })).await;
            Ok(())
        };
        tokio::select! {
            // Never ends; dropped when the command has.
            () = feed => Ok(()),
            ended = pass => ended,
        }
    }
}
