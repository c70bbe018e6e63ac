//! HTTP/2 as every connection of ours speaks it, in either direction over an established stream.
//!
//! In a node's session the side that dialled serves ([`serve`]), and the side that accepted asks ([`Remote::over`]).
//!
//! [`Remote::over`]: super::Remote::over

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::{
    body::Incoming, client::conn::http2 as asking, server::conn::http2 as serving, service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{BodyError, Timing};

/// Requests that may be under way at once over one connection.
pub const MAX_STREAMS: u32 = 1000;
/// What may be under way of one stream that its reader has not taken.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The windows of all streams together: a thousand readers that stand still leave room for the next request.
pub const CONNECTION_WINDOW: u32 = (MAX_STREAMS + 1) * STREAM_WINDOW;

/// A connection that is being served; runs when polled. Its requests run as tasks that end with it.
pub type Serving<I, S> = serving::Connection<TokioIo<I>, S, TokioExecutor>;

/// Serves the requests that come over `io`. For a graceful end call `graceful_shutdown` on the pinned result and poll on.
pub fn serve<I, S, B>(io: I, service: S, timing: &Timing) -> Serving<I, S>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BodyError>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    serving::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(timing.keepalive_interval)
        .keep_alive_timeout(timing.keepalive_timeout)
        .serve_connection(TokioIo::new(io), service)
}

pub(super) fn asking(timing: &Timing) -> asking::Builder<TokioExecutor> {
    let mut builder = asking::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(timing.keepalive_interval)
        .keep_alive_timeout(timing.keepalive_timeout)
        .keep_alive_while_idle(true);
    builder
}
