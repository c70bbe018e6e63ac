//! Copies of requests for a service that only looks on: sent once the request itself was, and their answers are read and dropped.
//!
//! - The request never waits for its copy, and nothing that happens to the copy is told to anybody.
//! - A body is copied while it passes, up to [`LARGEST_BODY`]; with a longer one there is no copy.

use std::{io, pin::Pin, sync::Arc};

use bytes::BytesMut;
use http::{Request, header};
use http_body::Body as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{
    Timeouts,
    forward::{self, Follower, Outgoing},
    mirror::{Copy, LARGEST_BODY},
    pool::Http1,
    worker::Worker,
};

/// A copy that is being made.
pub(crate) struct Duplicate {
    making: Mutex<Option<Making>>,
}

struct Making {
    worker: Arc<Worker>,
    copy: Copy,
    /// With an empty body.
    request: Request<Outgoing>,
    body: BytesMut,
    timeouts: Timeouts,
    http2: bool,
}

impl Duplicate {
    /// Of a request with this head, for a task that is asked in this way.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        copy: Copy,
        mut request: Request<Outgoing>,
        timeouts: Timeouts,
        http2: bool,
    ) -> Self {
        let headers = request.headers_mut();
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        let (worker, body) = (Arc::clone(worker), BytesMut::new());
        Self { making: Mutex::new(Some(Making { worker, copy, request, body, timeouts, http2 })) }
    }
}

impl Follower for Duplicate {
    fn passed(&self, data: &[u8]) {
        let mut making = self.making.lock();
        let Some(begun) = making.as_mut() else { return };
        if begun.body.len() + data.len() > LARGEST_BODY {
            *making = None;
        } else {
            begun.body.extend_from_slice(data);
        }
    }

    fn ended(&self) {
        let Some(made) = self.making.lock().take() else { return };
        let worker = Arc::clone(&made.worker);
        worker.spawn(async move {
            let limit = made.timeouts.connect + made.timeouts.request + made.timeouts.idle;
            if let Ok(Err(error)) = timeout(limit, made.ask()).await {
                tracing::debug!(%error, "copy of a request not answered");
            }
        });
    }
}

impl Making {
    async fn ask(self) -> io::Result<()> {
        let Self { worker, copy, mut request, body, timeouts, http2 } = self;
        let backend = Arc::clone(copy.backend());
        if !body.is_empty() {
            *request.body_mut() = Outgoing::Full(body.freeze());
        }
        let connect = forward::reach(&backend, timeouts.connect);
        if http2 {
            let mut stream = backend.pools.share(&worker, connect).await?;
            let response = stream.send.send_request(request).await.map_err(io::Error::other)?;
            return drain(response.into_body(), None).await;
        }
        let kept = worker.options().pool_idle;
        let mut connection = Http1::new(connect.await?, kept).await.map_err(io::Error::other)?;
        let watch = worker.watch(worker.now().plus(timeouts.request));
        let answered = connection.ask(request, &worker, &watch, || false).await;
        let response = answered.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        let (head, body) = response.into_parts();
        tracing::trace!(status = %head.status, "copy of a request answered");
        drain(body, Some(connection)).await
    }
}

async fn drain(mut body: Incoming, mut connection: Option<Box<Http1>>) -> io::Result<()> {
    std::future::poll_fn(|cx| {
        loop {
            let polled = match &mut connection {
                Some(connection) => connection.drive(cx, |cx| Pin::new(&mut body).poll_frame(cx)),
                None => Pin::new(&mut body).poll_frame(cx),
            };
            match std::task::ready!(polled) {
                None => return std::task::Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return std::task::Poll::Ready(Err(io::Error::other(error))),
            }
        }
    })
    .await
}
