//! Connections to tasks: making them, asking over them, and keeping those that wait for the next request.
//!
//! - A connection belongs to one worker. Over HTTP/1.1 it is driven by whoever uses it, inside its task: an answer wakes one task, once. While
//!   it waits, nobody drives it; that it was closed meanwhile is found by who takes it, before anything is sent.
//! - Over HTTP/2 it has a task of its own, and many use it at once.
//! - What is closed ([`Pools::close`]) takes nothing back.

use std::{
    fmt, io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::task::AtomicWaker;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::{
    Moment,
    forward::Outgoing,
    worker::{Watch, Worker},
};

/// What is buffered for one connection at most, each way; as much only of large answers. Each piece wakes who sends and who receives: with
/// 64 KiB a large answer costs 1.4 times the processor time.
const BUFFER: usize = 256 << 10;
/// So often a connection is driven before others have their turn.
const TURNS: usize = 8;
/// Streams of one HTTP/2 connection before another is made.
const STREAMS: usize = 100;
const WINDOW: u32 = 1 << 20;

/// One endpoint's connections, a list for each worker.
#[derive(Default)]
pub(crate) struct Pools {
    workers: Box<[Pool]>,
    closed: AtomicBool,
}

#[derive(Default)]
#[expect(
    clippy::vec_box,
    reason = "connections move between the list and requests: a pointer does so for less"
)]
struct Pool {
    idle: Mutex<Vec<Box<Http1>>>,
    shared: Mutex<Vec<Http2>>,
    /// Held while a shared one is made, so that one is enough for all who want it.
    making: tokio::sync::Mutex<()>,
}

impl Pools {
    /// Empty ones for so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Pool::default()).collect(), closed: AtomicBool::new(false) }
    }

    /// The one that was used last, if it has not waited for longer than `longest`.
    pub(crate) fn take(&self, worker: usize, now: Moment, longest: Duration) -> Option<Box<Http1>> {
        let mut idle = self.workers[worker].idle.lock();
        let last = idle.last()?;
        if now.since(last.idle_since) > longest.min(last.keep) {
            return None;
        }
        idle.pop()
    }

    /// Keeps one that is ready for the next request.
    pub(crate) fn put(&self, worker: usize, mut connection: Box<Http1>, now: Moment) {
        connection.idle_since = now;
        connection.relay.parent.take();
        let mut idle = self.workers[worker].idle.lock();
        // Under the lock: whoever closes takes the lock after it has said so.
        if !self.closed.load(Ordering::SeqCst) {
            idle.push(connection);
        }
    }

    /// Closes what has waited too long, and says how many wait on.
    pub(crate) fn sweep(&self, worker: usize, now: Moment) -> usize {
        let pool = &self.workers[worker];
        let late: Vec<Box<Http1>>;
        let left = {
            let mut idle = pool.idle.lock();
            late = idle.extract_if(.., |one| now.since(one.idle_since) > one.keep).collect();
            idle.len()
        };
        drop(late);
        pool.shared.lock().retain(|one| !one.send.is_closed());
        left
    }

    /// Closes all, whoever's they are, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for pool in &self.workers {
            let idle = std::mem::take(&mut *pool.idle.lock());
            // What is under way over them ends first.
            let shared = std::mem::take(&mut *pool.shared.lock());
            drop((idle, shared));
        }
    }

    /// A place on a shared connection; one is made by `connect` if there is none with room.
    pub(crate) async fn share(
        &self,
        worker: &Arc<Worker>,
        connect: impl Future<Output = io::Result<TcpStream>>,
    ) -> io::Result<Stream> {
        let pool = &self.workers[worker.number];
        if let Some(stream) = pool.stream() {
            return Ok(stream);
        }
        let _making = pool.making.lock().await;
        if let Some(stream) = pool.stream() {
            return Ok(stream);
        }
        let io = TokioIo::new(connect.await?);
        let mut builder = http2::Builder::new(Spawn);
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(4 * WINDOW);
        let (send, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
        worker.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a task ended");
            }
        });
        let made = Http2 { send, streams: Arc::default() };
        let stream = made.stream();
        let mut shared = pool.shared.lock();
        if !self.closed.load(Ordering::SeqCst) {
            shared.push(made);
        }
        Ok(stream)
    }
}

impl Pool {
    fn stream(&self) -> Option<Stream> {
        let shared = self.shared.lock();
        let has_room = |one: &&Http2| !one.send.is_closed() && one.streams.load(Ordering::Relaxed) < STREAMS;
        shared.iter().find(has_room).map(Http2::stream)
    }
}

/// Runs hyper's own tasks on the worker that asks.
#[derive(Clone, Copy)]
pub(crate) struct Spawn;

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    #[expect(
        clippy::disallowed_methods,
        reason = "streams are too many to be named; their connection's end is theirs"
    )]
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

struct Http2 {
    send: http2::SendRequest<Outgoing>,
    streams: Arc<AtomicUsize>,
}

impl Http2 {
    fn stream(&self) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Stream { send: self.send.clone(), streams: Arc::clone(&self.streams) }
    }
}

/// A place on a shared connection.
pub(crate) struct Stream {
    pub(crate) send: http2::SendRequest<Outgoing>,
    streams: Arc<AtomicUsize>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no answer.
pub(crate) enum Unanswered {
    /// Nothing of the request was sent; this is it.
    NotSent(Box<Request<Outgoing>>),
    /// The connection ended, or what came was no answer.
    Failed(hyper::Error),
    /// The time was over.
    Late,
    /// The task's node does not answer, and it is not waited for.
    Unheard,
}

impl Unanswered {
    pub(crate) fn of(mut error: TrySendError<Request<Outgoing>>) -> Self {
        match error.take_message() {
            Some(request) => Self::NotSent(Box::new(request)),
            None => Self::Failed(error.into_error()),
        }
    }
}

/// Whether the server says that it has not looked at the request (RFC 9113, 8.7): it may be asked again, whatever it is.
pub(crate) fn is_unseen(error: &hyper::Error) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|cause| {
        let is_refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
        // Those it has looked at are answered after that.
        let is_leaving = cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR);
        cause.is_remote() && (is_refused || is_leaving)
    })
}

/// A connection over which one request is asked at a time.
pub(crate) struct Http1 {
    send: http1::SendRequest<Outgoing>,
    /// Gone when it is over and somebody still waits for an answer, who then hears that none comes.
    connection: Option<http1::Connection<TokioIo<TcpStream>, Outgoing>>,
    /// It is over: nothing more comes of driving it.
    ended: bool,
    relay: Arc<Relay>,
    /// The relay's.
    waker: Waker,
    idle_since: Moment,
    /// How long it may wait for the next request.
    keep: Duration,
    /// Requests that were answered over it.
    pub(crate) answered: u32,
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").field("answered", &self.answered).finish_non_exhaustive()
    }
}

impl Http1 {
    /// Over a stream that nothing of HTTP was said on.
    pub(crate) async fn new(stream: TcpStream, keep: Duration) -> hyper::Result<Box<Self>> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER);
        let (send, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let relay = Arc::new(Relay::default());
        let waker = Waker::from(Arc::clone(&relay));
        let (ended, idle_since, answered) = Default::default();
        Ok(Box::new(Self {
            send,
            connection: Some(connection),
            ended,
            relay,
            waker,
            idle_since,
            keep,
            answered,
        }))
    }

    /// The head of the answer, unless the watch is due first, or `unless`, which is asked whenever the watch is woken.
    pub(crate) fn ask<'a>(
        &'a mut self,
        request: Request<Outgoing>,
        worker: &'a Worker,
        watch: &'a Watch,
        unless: impl Fn() -> bool + 'a,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + 'a {
        // Not in the block: it would be moved once more.
        let answer = self.send.try_send_request(request);
        let Self { connection, ended, relay, waker, .. } = self;
        async move {
            let mut answer = pin!(answer);
            std::future::poll_fn(|cx| {
                let polled = drive(connection, ended, relay, waker, cx, |cx| answer.as_mut().poll(cx));
                match polled {
                    Poll::Ready(answer) => Poll::Ready(answer.map_err(Unanswered::of)),
                    Poll::Pending => {
                        watch.register(cx.waker());
                        match watch.is_due(worker.now()) {
                            true => Poll::Ready(Err(Unanswered::Late)),
                            false if unless() => Poll::Ready(Err(Unanswered::Unheard)),
                            false => Poll::Pending,
                        }
                    }
                }
            })
            .await
        }
    }

    /// Has it make progress, and asks `what` became of that.
    pub(crate) fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        what: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Self { connection, ended, relay, waker, .. } = self;
        drive(connection, ended, relay, waker, cx, what)
    }

    /// Whether the answer is here to its end, and the next request may be asked.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ended && self.send.is_ready()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Drives it to its end, also if nobody waits for that.
    pub(crate) async fn finish(self: Box<Self>) {
        if let Some(connection) = self.connection.filter(|_| !self.ended)
            && let Err(error) = connection.without_shutdown().await
        {
            tracing::debug!(%error, "connection to a task ended");
        }
    }

    /// What is below, after it has ended with an upgrade; and what was read of what came after.
    pub(crate) fn into_stream(self: Box<Self>) -> Option<(TcpStream, bytes::Bytes)> {
        let parts = self.connection?.into_parts();
        Some((parts.io.into_inner(), parts.read_buf))
    }

    /// The server says how long it waits for the next request.
    pub(crate) fn keep_at_most(&mut self, limit: Duration) {
        self.keep = self.keep.min(limit);
    }
}

fn drive<T>(
    connection: &mut Option<http1::Connection<TokioIo<TcpStream>, Outgoing>>,
    ended: &mut bool,
    relay: &Relay,
    waker: &Waker,
    cx: &Context<'_>,
    mut what: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    relay.parent.register(cx.waker());
    let mut inner = Context::from_waker(waker);
    for _ in 0..TURNS {
        relay.begin();
        if !*ended
            && let Some(driven) = connection
            && let Poll::Ready(end) = driven.poll_without_shutdown(&mut inner)
        {
            *ended = true;
            if let Err(error) = end {
                tracing::debug!(%error, "connection to a task ended");
            }
        }
        let mut polled = what(&mut inner);
        if *ended && polled.is_pending() {
            *connection = None;
            polled = what(&mut inner);
        }
        let again = relay.end();
        if polled.is_ready() {
            return polled;
        }
        if !again {
            return Poll::Pending;
        }
    }
    // Others have their turn.
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Wakes whoever uses a connection; not for what is found out while that one drives it, which it then sees anyway.
#[derive(Default)]
struct Relay {
    parent: AtomicWaker,
    state: AtomicU8,
}

impl Relay {
    const QUIET: u8 = 0;
    const DRIVEN: u8 = 1;
    const WOKEN: u8 = 2;

    fn begin(&self) {
        self.state.store(Self::DRIVEN, Ordering::SeqCst);
    }

    /// Whether there was a reason to wake.
    fn end(&self) -> bool {
        self.state.swap(Self::QUIET, Ordering::SeqCst) == Self::WOKEN
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let driven =
            self.state.compare_exchange(Self::DRIVEN, Self::WOKEN, Ordering::SeqCst, Ordering::SeqCst);
        if driven == Err(Self::QUIET) {
            self.parent.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::{ArcWake, waker};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl ArcWake for Count {
        fn wake_by_ref(count: &Arc<Self>) {
            count.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_what_happens_while_nobody_looks_wakes_somebody() {
        let (relay, count) = (Arc::new(Relay::default()), Arc::new(Count::default()));
        let own = Waker::from(Arc::clone(&relay));
        relay.parent.register(&waker(Arc::clone(&count)));
        relay.begin();
        own.wake_by_ref();
        own.wake_by_ref();
        assert!(relay.end(), "it is told to look again");
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        own.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        relay.begin();
        assert!(!relay.end());
    }
}
