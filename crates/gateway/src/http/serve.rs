//! Clients' connections: which version of HTTP they speak, how long they may take, and when they end.
//!
//! - A connection on which nothing happens holds its socket and little else: what is needed to speak HTTP is made when bytes come, and put away
//!   a little after the answer.
//! - Nothing takes for ever: a head has [`HttpOptions::header_timeout`], however slowly it comes; silence between requests
//!   [`HttpOptions::keep_alive`]; and a request the times of its route.
//! - A connection that is to end is told so in an answer (`Connection: close`, or GOAWAY over HTTP/2), not cut while the client may be asking:
//!   after the last answer what the client still sends is read for a moment, so that it sees the answer and no reset.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::Version;
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{
    Moment,
    forward::{self, Origin, Uploading},
    pool::Spawn,
    upgrade::Tunnel,
    worker::{Watched, Worker},
};
use crate::entry::{Conversation, Entered, Stream, layer4};

/// What is buffered for one connection at most, each way. Also the longest head of a request.
const BUFFER: usize = 64 << 10;
/// What a client may say before it is decided how it is spoken with.
const FIRST: usize = 4 << 10;
/// After so much silence, what is needed to speak HTTP is put away.
const PUT_AWAY: Duration = Duration::from_secs(1);
/// How long a client is listened to after the last answer.
const LINGER: Duration = Duration::from_secs(2);
/// Requests of one HTTP/2 connection at once.
const STREAMS: u32 = 250;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Between questions whether a silent HTTP/2 client is still there, and for its answer.
const PING: Duration = Duration::from_secs(45);
const PONG: Duration = Duration::from_secs(20);
/// How an HTTP/2 client without TLS begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection that was just accepted.
pub(crate) async fn accepted(worker: Arc<Worker>, stream: TcpStream, from: SocketAddr, port: u16) {
    let counted = worker.http.draining.client();
    // Boxes for what most connections are done with soon, or never come to: each is otherwise as large as the largest of what it may do.
    match Box::pin(worker.http.entry.enter(stream, from, port)).await {
        Entered::Requests(conversation) => requests(worker, conversation, port).await,
        Entered::Connection(conversation, route) => {
            Box::pin(layer4::pass(&worker, conversation, route)).await;
        }
        Entered::Over => {}
    }
    drop(counted);
}

/// What a client's connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Nothing: the next request is awaited.
    Idle,
    /// A head is being read.
    Head,
    /// A request is under way.
    Busy,
}

/// A client's connection, as its requests see it.
pub(crate) struct Conn {
    pub(crate) worker: Arc<Worker>,
    /// Its own; over HTTP/1.1 that of its request as well.
    pub(crate) watch: Watched,
    pub(crate) client: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) port: u16,
    pub(crate) secure: bool,
    pub(crate) http2: bool,
    /// What tasks are told of the client.
    pub(crate) origin: Origin,
    phase: AtomicU8,
    /// Bytes that were written and are not taken yet.
    blocked: AtomicBool,
    /// The client takes the end of the connection for the end of an answer.
    ends_by_closing: AtomicBool,
    /// Of a request's body not all has come yet, over HTTP/1.1: what comes next is no head.
    body_open: AtomicBool,
    /// Requests under way, over HTTP/2.
    streams: AtomicU64,
    /// Its request waits in a queue, over HTTP/1.1.
    queued: AtomicBool,
    /// The task's half, after an upgrade was agreed on.
    pub(crate) tunnel: Mutex<Option<Tunnel>>,
}

impl Conn {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// A request has been read.
    pub(crate) fn begin(&self, version: Version) {
        if version == Version::HTTP_10 {
            self.ends_by_closing.store(true, Ordering::Relaxed);
        }
        if self.http2 {
            self.streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.set(Phase::Busy);
        }
    }

    /// Its answer is there to the end, or it was given up.
    pub(crate) fn end(&self) {
        let silent = if self.http2 {
            self.streams.fetch_sub(1, Ordering::Relaxed) == 1
        } else {
            self.set(Phase::Idle);
            true
        };
        if silent {
            let after = if self.http2 { self.worker.options().keep_alive } else { PUT_AWAY };
            self.watch.set(self.worker.now().plus(after));
        }
    }

    /// Waits for a turn, unless the client is gone before: then the connection ends, and what waits is dropped with it.
    ///
    /// Over HTTP/1.1 nothing is read meanwhile, so that is [looked for](Io::look_for_client). Gone is who reset the connection: who merely
    /// closed it cannot be told from one that is done with sending and still wants its answer.
    pub(crate) async fn queued<T>(&self, turn: impl Future<Output = T>) -> T {
        if self.http2 {
            return turn.await;
        }
        self.queued.store(true, Ordering::Relaxed);
        let turned = turn.await;
        // Once more: nothing is asked for somebody who is gone.
        tokio::task::yield_now().await;
        self.queued.store(false, Ordering::Relaxed);
        turned
    }

    /// A request that was read has a body.
    pub(crate) fn body_begins(&self) {
        self.body_open.store(true, Ordering::Relaxed);
    }

    /// Whether nothing of a request is here or on its way to us, and nothing of an answer to the client.
    fn is_silent(&self) -> bool {
        let is_open = self.blocked.load(Ordering::Relaxed) || self.body_open.load(Ordering::Relaxed);
        self.phase() == Phase::Idle && !is_open
    }

    /// Whether it should have begun with TLS.
    pub(crate) fn lacks_tls(&self) -> bool {
        let ports = self.worker.http.table.load().ports();
        !self.secure && ports.get(&self.port).is_some_and(|port| port.secure)
    }

    /// Whether its next answer shall be its last.
    pub(crate) fn is_last(&self) -> bool {
        self.worker.http.is_retiring()
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.client.ip()
    }
}

impl Uploading for Conn {
    fn now(&self) -> Moment {
        self.worker.now()
    }

    /// One that is given up before that has none.
    fn body_ends(&self) {
        self.body_open.store(false, Ordering::Relaxed);
    }
}

async fn requests(worker: Arc<Worker>, conversation: Conversation, port: u16) {
    let Conversation { mut stream, client, destination, secure } = conversation;
    let agreed = secure.as_ref().map(|secure| secure.http2);
    let watch = worker.watch(worker.now().plus(worker.options().keep_alive));
    let trusted = worker.options().trusts(client.ip());
    let mut conn = Conn {
        watch,
        client,
        destination,
        port,
        secure: secure.is_some(),
        http2: false,
        origin: Origin::of(client.ip(), port, agreed.is_some(), trusted),
        phase: AtomicU8::new(Phase::Idle as u8),
        blocked: AtomicBool::new(false),
        ends_by_closing: AtomicBool::new(false),
        body_open: AtomicBool::new(false),
        streams: AtomicU64::new(0),
        queued: AtomicBool::new(false),
        tunnel: Mutex::default(),
        worker,
    };
    let Some(first) = wait(&conn, &mut stream, agreed.is_none()).await else { return };
    conn.http2 = agreed.unwrap_or_else(|| first.starts_with(PREFACE));
    let conn = Arc::new(conn);
    if conn.http2 {
        Box::pin(http2(conn, stream, first)).await;
        return;
    }
    let mut read = first;
    // A box for what is only needed now and then.
    while let Some((silent, unread)) = Box::pin(http1(&conn, stream, read)).await {
        stream = silent;
        read = if unread.is_empty() {
            // Nothing, in a buffer that is as large as ever.
            drop(unread);
            match wait(&conn, &mut stream, false).await {
                Some(first) => first,
                None => {
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        } else {
            unread
        };
    }
}

/// The first bytes of a request; nothing if none come. With `sniff` as many as are needed to know whether they are HTTP/2.
async fn wait(conn: &Conn, stream: &mut Stream, sniff: bool) -> Option<Bytes> {
    conn.set(Phase::Idle);
    let since = conn.worker.now();
    conn.watch.set(since.plus(conn.worker.options().keep_alive));
    let mut read: Vec<u8> = Vec::new();
    std::future::poll_fn(|cx| {
        conn.watch.register(cx.waker());
        loop {
            let mut space = [std::mem::MaybeUninit::uninit(); FIRST];
            let mut space = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                    read.extend_from_slice(space.filled());
                    if !sniff || read.len() >= PREFACE.len() || !PREFACE.starts_with(&read) {
                        return Poll::Ready(Some(Bytes::from(std::mem::take(&mut read))));
                    }
                    conn.watch.set(conn.worker.now().plus(conn.worker.options().header_timeout));
                }
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {
                    let (now, http) = (conn.worker.now(), &conn.worker.http);
                    // Most clients ask again soon and are told; the others are not waited for as long as usual.
                    let retired = http.is_retiring() && now.since(since) >= http.options.retired_idle;
                    let is_over = conn.watch.is_due(now) || retired || http.is_stopping();
                    if http.is_retiring() {
                        conn.watch.set(since.plus(http.options.retired_idle));
                    }
                    return if is_over { Poll::Ready(None) } else { Poll::Pending };
                }
            }
        }
    })
    .await
}

/// Why a connection is not served on.
enum End {
    /// It is over, or speaks something else now.
    Over(hyper::Result<()>),
    /// Nothing happens on it.
    Silent,
    /// It takes too long.
    Late,
}

/// Serves requests until the connection is over, or nothing happens on it: then the stream, and what was read of the next request.
async fn http1(conn: &Arc<Conn>, stream: Stream, first: Bytes) -> Option<(Stream, Bytes)> {
    conn.set(Phase::Head);
    conn.watch.set(conn.worker.now().plus(conn.worker.options().header_timeout));
    let io = Io { stream, first, conn: Arc::clone(conn) };
    let service = {
        let conn = Arc::clone(conn);
        service_fn(move |request: Request<Incoming>| forward::forward(Arc::clone(&conn), request))
    };
    let mut builder = http1::Builder::new();
    // Who is done with sending may still be waiting for the answer.
    builder.half_close(true).max_buf_size(BUFFER);
    let mut serving = builder.serve_connection(TokioIo::new(io), service);
    let mut patience = true;
    let end = std::future::poll_fn(|cx| {
        conn.watch.register(cx.waker());
        if let Poll::Ready(end) = Pin::new(&mut serving).poll(cx) {
            return Poll::Ready(End::Over(end));
        }
        let now = conn.worker.now();
        if !conn.watch.is_due(now) {
            return Poll::Pending;
        }
        match conn.phase() {
            Phase::Idle if conn.is_silent() => Poll::Ready(End::Silent),
            // The answer is still on its way.
            Phase::Idle if patience => {
                patience = false;
                conn.watch.set(now.plus(conn.worker.options().keep_alive));
                Poll::Pending
            }
            Phase::Idle | Phase::Head | Phase::Busy => Poll::Ready(End::Late),
        }
    })
    .await;
    match end {
        End::Over(Ok(())) => {
            let parts = serving.into_parts();
            let (io, read) = (parts.io.into_inner(), parts.read_buf);
            let tunnel = conn.tunnel.lock().take();
            if let Some(tunnel) = tunnel {
                // What was not yet given to hyper comes after what it has read.
                let read = if io.first.is_empty() { read } else { [&read[..], &io.first].concat().into() };
                let mut stream = io.stream;
                if let Err(error) = tunnel.run(&mut stream, read, &conn.worker, &conn.watch).await {
                    tracing::debug!(%error, "upgraded connection ended");
                    if error.kind() == io::ErrorKind::ConnectionReset {
                        // The client is told what the task did, or that it is gone: what it has is not the whole.
                        let _ = SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
                    }
                }
            } else {
                linger(conn, io.stream).await;
            }
            None
        }
        End::Over(Err(error)) => {
            tracing::debug!(%error, client = %conn.client, "connection ended");
            let stream = serving.into_parts().io.into_inner().stream;
            if error.is_user() && conn.ends_by_closing.load(Ordering::Relaxed) {
                // Not an orderly end: the client must not take it for a whole answer.
                let _ = SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
                return None;
            }
            // A refusal may have been written that is still to be read.
            linger(conn, stream).await;
            None
        }
        End::Silent => {
            let parts = serving.into_parts();
            Some((parts.io.into_inner().stream, parts.read_buf))
        }
        End::Late => {
            tracing::debug!(client = %conn.client, "connection took too long");
            None
        }
    }
}

/// Ends a connection so that what was written last arrives: a socket that is closed with something unread resets it.
async fn linger(conn: &Conn, mut stream: Stream) {
    let until = conn.worker.now().plus(LINGER);
    conn.watch.set(until);
    std::future::poll_fn(|cx| {
        conn.watch.register(cx.waker());
        if conn.watch.is_due(conn.worker.now()) || conn.worker.http.is_stopping() {
            return Poll::Ready(());
        }
        if ready!(Pin::new(&mut stream).poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        loop {
            let mut space = [std::mem::MaybeUninit::uninit(); FIRST];
            let mut space = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut stream).poll_read(cx, &mut space)) {
                Ok(()) if !space.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    })
    .await;
}

async fn http2(conn: Arc<Conn>, stream: Stream, first: Bytes) {
    let keep_alive = conn.worker.options().keep_alive;
    conn.watch.set(conn.worker.now().plus(keep_alive));
    let io = Io { stream, first, conn: Arc::clone(&conn) };
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request: Request<Incoming>| forward::forward(Arc::clone(&conn), request))
    };
    let mut builder = http2::Builder::new(Spawn);
    builder
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(BUFFER).unwrap_or(u32::MAX))
        .max_send_buf_size(BUFFER)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut leaving = false;
    std::future::poll_fn(|cx| {
        conn.watch.register(cx.waker());
        loop {
            if let Poll::Ready(end) = serving.as_mut().poll(cx) {
                if let Err(error) = end {
                    tracing::debug!(%error, client = %conn.client, "connection ended");
                }
                return Poll::Ready(());
            }
            let now = conn.worker.now();
            let is_silent = conn.streams.load(Ordering::Relaxed) == 0;
            let is_late = is_silent && conn.watch.is_due(now);
            if leaving {
                // Its last streams end, or it has not answered our leaving.
                return if is_late { Poll::Ready(()) } else { Poll::Pending };
            }
            if !conn.is_last() && !is_late {
                return Poll::Pending;
            }
            leaving = true;
            conn.watch.set(now.plus(LINGER));
            serving.as_mut().graceful_shutdown();
        }
    })
    .await;
}

/// A client's stream below HTTP: what was read of it before comes first, and the connection learns what happens.
struct Io {
    stream: Stream,
    first: Bytes,
    conn: Arc<Conn>,
}

impl Io {
    fn came(&self) {
        if self.conn.phase() == Phase::Idle && !self.conn.http2 {
            self.conn.set(Phase::Head);
            let worker = &self.conn.worker;
            self.conn.watch.set(worker.now().plus(worker.options().header_timeout));
        }
    }

    /// An error if the client has reset the connection. Whatever happens on it wakes who looks, once: after the client's end, or more of what it
    /// says, nothing does, and it is looked again when there is another reason.
    fn look_for_client(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let tcp = self.stream.tcp();
        if tcp.poll_read_ready(cx).is_pending() {
            return Ok(());
        }
        tcp.take_error()?.map_or(Ok(()), Err)
    }

    fn wrote<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.conn.blocked.load(Ordering::Relaxed) != written.is_pending() {
            self.conn.blocked.store(written.is_pending(), Ordering::Relaxed);
        }
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            let length = this.first.len().min(buffer.remaining());
            buffer.put_slice(&this.first[..length]);
            this.first.advance(length);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.came();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // HTTP comes here whenever it has nothing else to do, also if nothing was written.
        if self.conn.queued.load(Ordering::Relaxed) {
            self.look_for_client(cx)?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
