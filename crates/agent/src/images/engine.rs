//! Requests to the engine whose bodies are streams, in both directions at once.
//!
//! Each has a connection of its own, driven by whoever reads the answer: what is dropped ends there, and nothing runs on.

use std::{
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use wharf_api::transport::{Body, BodyError};
use wharf_process::errors::chain;

use crate::runtime::{Result, RuntimeError};

/// For the socket.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest answer that is read as a whole.
const MAX_ANSWER: usize = 64 << 20;

/// A request to the engine.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) content_type: &'a str,
    /// Registry logins, as the engine reads them.
    pub(super) registries: Option<String>,
    pub(super) body: Body,
}

/// Sends a request and answers when the head of the answer is there, within `patience`. A refusal is an error with the engine's words.
pub(super) async fn send(
    socket: &Path,
    call: Call<'_>,
    what: &str,
    patience: Duration,
) -> Result<Response<Driven>> {
    let stream = match timeout(CONNECT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(RuntimeError::unreachable(format!("cannot {what}: {error}"))
                .with_hint("see whether Docker Engine runs on the node: `systemctl status docker`"));
        }
        Err(_elapsed) => return Err(RuntimeError::unreachable(format!("cannot {what}: the engine is busy"))),
    };
    let broke = |error: &hyper::Error| RuntimeError::unreachable(format!("cannot {what}: {}", chain(error)));
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| broke(&error))?;
    let mut request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(header::HOST, "engine")
        .header(header::CONTENT_TYPE, call.content_type);
    if let Some(registries) = call.registries {
        request = request.header("X-Registry-Config", registries);
    }
    let request = request
        .body(call.body)
        .map_err(|error| RuntimeError::fatal(format!("cannot {what}: {}", chain(&error))))?;
    let mut driver = Driver(Some(Box::pin(connection)));
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answering = async {
        loop {
            tokio::select! {
                biased;
                // Not dropped: polled again until it answers.
                answer = &mut answer => return answer,
                // Cancel-safe: the connection stays in the driver.
                () = driver.run() => {}
            }
        }
    };
    let response = timeout(patience, answering)
        .await
        .map_err(|_elapsed| {
            RuntimeError::unreachable(format!(
                "cannot {what}: the engine said nothing for {} s",
                patience.as_secs()
            ))
        })?
        .map_err(|error| broke(&error))?;
    let (head, body) = response.into_parts();
    let body = Driven { driver, body };
    if head.status.is_success() {
        return Ok(Response::from_parts(head, body));
    }
    let content = read(body, what).await.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&content)
        .ok()
        .and_then(|content| content["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&content).trim().to_owned());
    let message = format!("cannot {what}: {message}");
    Err(match head.status {
        StatusCode::NOT_FOUND => RuntimeError::not_found(message),
        status if status.is_client_error() => RuntimeError::fatal(message),
        _ if message.contains("no space left") => RuntimeError::temporary(message)
            .with_hint("make room on the disk of Docker Engine: `docker image prune`"),
        _ => RuntimeError::temporary(message),
    })
}

/// Reads an answer as a whole.
pub(super) async fn read(body: Driven, what: &str) -> Result<Bytes> {
    let content = http_body_util::Limited::new(body, MAX_ANSWER).collect().await;
    let content = content.map_err(|error| RuntimeError::unreachable(format!("cannot {what}: {error}")))?;
    Ok(content.to_bytes())
}

type Connection = hyper::client::conn::http1::Connection<TokioIo<UnixStream>, Body>;

/// A connection at work, until it ends.
struct Driver(Option<Pin<Box<Connection>>>);

impl Driver {
    /// Lets the connection work; pending for ever once it has ended, since it is the request that says how.
    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && connection.as_mut().poll(context).is_ready()
        {
            self.0 = None;
        }
    }
    async fn run(&mut self) {
        std::future::poll_fn(|context| {
            self.poll(context);
            Poll::<()>::Pending
        })
        .await;
    }
}

/// An answer's body, whose connection works when it is read.
pub(super) struct Driven {
    driver: Driver,
    body: Incoming,
}
impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        this.driver.poll(context);
        let frame = Pin::new(&mut this.body).poll_frame(context);
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
