//! One request: finds who answers, asks, and passes the answer on.
//!
//! - Until something of it may have reached a task, a request can go to another one, whatever its method: the connection was not made, or was found
//!   closed before anything was sent. After that only if repeating it does no harm (its method says so) and it has no body; and never once a
//!   part of the answer is there.
//! - A request that finds no endpoint waits for a table that has one, as long as the gateway holds requests.
//! - Bodies are passed on as they come, no faster than the other end takes them. One that breaks off on one side breaks off on the other:
//!   nobody takes a part for the whole.
//! - An answer that is here to its end when its head is gives the connection and the lease back at once.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts,
    response,
};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

pub(crate) use super::head::Origin;
use super::{
    Ask, Choice, Failure, Fallen, Found, Moment, Refusal, Timeouts,
    duplicate::Duplicate,
    entry::Entry,
    head::{self, Target, Wishes},
    limit::Place,
    mirror::Copy,
    pool::{self, Http1, Stream, Unanswered},
    serve::Conn,
    table::{Backend, Lease, Route},
    upgrade::Tunnel,
    worker::{Watch, Watched},
};
use crate::proxy_protocol::{self, Proxied};

/// How old an unused connection may be that is used for a request which cannot be repeated.
const FRESH: Duration = Duration::from_millis(1000);
/// Bodies up to this are kept while the answer is awaited, if the request may have to be sent again.
const KEPT: usize = 64 << 10;
/// Ways in which a request may come to nothing and begin anew, beyond which it is given up.
const ROUNDS: u32 = 1000;
/// How long a connection may take while another task can be asked: nothing is lost with it.
const HASTE: Duration = Duration::from_secs(1);
/// What was asked, or had begun, came to nothing because the task's node does not answer any more.
pub(crate) const UNHEARD: &str = "unheard";
/// Before endpoints that failed are asked again, while a request is held.
const AGAIN: Duration = Duration::from_millis(100);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Answers a request, whatever becomes of it.
pub(crate) fn forward(
    conn: Arc<Conn>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Answer>, Infallible>> {
    conn.begin(request.version());
    let under_way = UnderWay(Some(conn));
    let (head, body) = request.into_parts();
    let entry = Entry::of(under_way.conn(), &head);
    let is_last = under_way.conn().is_last() && head.version <= Version::HTTP_11;
    // What waits for nothing is done here: what is below is moved about.
    let passage = Passage::of(under_way, head, body, &entry);
    async move {
        let answered = match passage {
            Ok(mut passage) => passage.find().await,
            Err(refusal) => Err(refusal),
        };
        let mut response = answered.unwrap_or_else(|refusal| {
            entry.because(refusal.reason);
            entry.passed(0, refusal.text.len() as u64);
            refused(&refusal)
        });
        entry.says(response.status());
        if is_last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// A request of this connection, until it is dropped.
struct UnderWay(Option<Arc<Conn>>);

impl UnderWay {
    fn conn(&self) -> &Arc<Conn> {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.end();
        }
    }
}

fn refused(refusal: &Refusal) -> Response<Answer> {
    let mut text = refusal.text.to_vec();
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    let mut response = Response::new(Answer::Full(Bytes::from(text)));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.extend(refusal.headers.iter().cloned());
    response
}

/// Headers of a request that was sent.
type Spare = Vec<(HeaderName, HeaderValue)>;

/// What is sent to a task; what is needed to send it again, if that may be done.
struct Message {
    head: Parts,
    body: Outgoing,
    target: Target,
    wishes: Wishes,
    /// Unknown length.
    is_chunked: bool,
    /// Asked once or twice, it is the same to the task.
    is_idempotent: bool,
}

/// A request's way to an answer.
struct Passage {
    under_way: UnderWay,
    message: Message,
    /// Who asks.
    client: IpAddr,
    upload: Option<Arc<Upload>>,
    watch: Option<Watched>,
    began: Moment,
    /// Attempts after which the request may have reached a task.
    attempts: u8,
    tried: Vec<Arc<Backend>>,
    entry: Entry,
    /// A service that looks on gets a copy.
    copy: Option<Copy>,
}

/// What became of an attempt.
enum Attempt {
    Answer(Response<Answer>),
    /// Another may be asked.
    Again,
    /// It is no use, or not allowed.
    Over(Refusal),
}

impl Passage {
    /// Of a request that can be understood in one way.
    fn of(under_way: UnderWay, mut head: Parts, body: Incoming, entry: &Entry) -> Result<Self, Refusal> {
        let began = Moment::now();
        let conn = under_way.conn();
        let target = Target::of(&head)?;
        let has_body = !body.is_end_stream();
        let is_chunked = has_body && body.size_hint().exact().is_none();
        let mut client = conn.address();
        if conn.origin.is_trusted()
            && let Some(behind) = head::client(&head.headers, |address| conn.worker.options().trusts(address))
        {
            client = behind;
            entry.is_from(client);
        }
        let wishes = head::request(&mut head, &target, &conn.origin, has_body)?;
        let is_idempotent = head.method.is_idempotent();
        entry.has_id(head.headers.get("x-request-id"));
        // Over HTTP/1.1 there is one request at a time; over HTTP/2 each has its own.
        let watch = conn.http2.then(|| conn.worker.watch(Moment(u64::MAX)));
        let (body, upload) = Outgoing::of(body, has_body, conn, watch.as_deref().unwrap_or(&conn.watch));
        let message = Message { head, body, target, wishes, is_chunked, is_idempotent };
        let (attempts, tried, copy) = Default::default();
        Ok(Self {
            under_way,
            message,
            client,
            upload,
            watch,
            began,
            attempts,
            tried,
            entry: entry.clone(),
            copy,
        })
    }

    fn conn(&self) -> &Arc<Conn> {
        self.under_way.conn()
    }

    fn watch(&self) -> &Arc<Watch> {
        match &self.watch {
            Some(own) => own,
            None => &self.conn().watch,
        }
    }

    fn ask(&self) -> Ask<'_> {
        let (conn, message) = (self.conn(), &self.message);
        Ask {
            port: conn.port,
            secure: conn.secure,
            client: self.client,
            method: &message.head.method,
            host: message.target.host(),
            path: message.head.uri.path(),
            headers: &message.head.headers,
            now: self.began,
        }
    }

    async fn find(&mut self) -> Result<Response<Answer>, Refusal> {
        let route = {
            let table = self.conn().worker.http.table.load();
            match table.find(&self.ask()) {
                Found::Route(route) => Arc::clone(route),
                Found::Secure(port) => return self.redirect(port),
                Found::Challenge(answer) => return Ok(challenge(answer)),
                Found::Unclear => return Err(unclear()),
                Found::Nobody => return Err(nobody(self.conn())),
            }
        };
        self.entry.is_for(&route);
        match route.admit_without_password(&self.ask()) {
            Some(admitted) => admitted?,
            None => Box::pin(route.admit(&self.ask())).await?,
        }
        self.copy = route.mirror();
        match route.choose(&self.ask(), &self.tried, None) {
            Choice::Lease(lease) => match self.attempt(lease).await {
                Attempt::Answer(response) => Ok(response),
                Attempt::Over(refusal) => Box::pin(self.fall(&route, refusal)).await,
                Attempt::Again => Box::pin(self.search(route, None)).await,
            },
            // For what is not usual there is a box: what is usual stays small.
            Choice::Wait(place) => Box::pin(self.search(route, Some(place))).await,
            Choice::Again(place) => Box::pin(self.search(route, place)).await,
            Choice::Nobody { .. } => Box::pin(self.search(route, None)).await,
        }
    }

    /// Asks until somebody answers, or the time in which it is held is over.
    async fn search(
        &mut self,
        mut route: Arc<Route>,
        mut place: Option<Place>,
    ) -> Result<Response<Answer>, Refusal> {
        let conn = Arc::clone(self.conn());
        let http = &conn.worker.http;
        let until = self.began.plus(http.options.hold);
        let mut changes = http.changed.subscribe();
        for _ in 0..ROUNDS {
            changes.mark_unchanged();
            match route.choose(&self.ask(), &self.tried, place.take()) {
                Choice::Lease(lease) => match self.attempt(lease).await {
                    Attempt::Answer(response) => return Ok(response),
                    Attempt::Again => {}
                    Attempt::Over(refusal) => return self.fall(&route, refusal).await,
                },
                Choice::Wait(mut turn) => {
                    self.watch().set(Moment(u64::MAX));
                    match conn.queued(turn.turn()).await {
                        Ok(()) => place = Some(turn),
                        Err(refusal) => return self.fall(&route, refusal).await,
                    }
                }
                Choice::Again(kept) => {
                    place = kept;
                    let table = http.table.load();
                    match table.find(&self.ask()) {
                        Found::Route(newest) => route = Arc::clone(newest),
                        Found::Secure(_) | Found::Challenge(_) | Found::Unclear | Found::Nobody => {
                            return Err(nobody(&conn));
                        }
                    }
                }
                Choice::Nobody { refusal, hold } => {
                    let now = Moment::now();
                    if !hold || now >= until {
                        return self.fall(&route, refusal).await;
                    }
                    // A new table is waited for; and those that failed are asked again.
                    let left = until.since(now);
                    let pause = if self.tried.is_empty() { left } else { AGAIN.min(left) };
                    self.watch().set(Moment(u64::MAX));
                    if let Ok(Err(_gone)) = timeout(pause, changes.changed()).await {
                        return self.fall(&route, refusal).await;
                    }
                    self.tried.clear();
                    let table = http.table.load();
                    match table.find(&self.ask()) {
                        Found::Route(newest) => route = Arc::clone(newest),
                        Found::Secure(_) | Found::Challenge(_) | Found::Unclear | Found::Nobody => {
                            return Err(nobody(&conn));
                        }
                    }
                }
            }
        }
        Err(unanswered())
    }

    /// What stands in for the route's tasks answers, if there is something.
    async fn fall(&mut self, route: &Arc<Route>, refusal: Refusal) -> Result<Response<Answer>, Refusal> {
        match route.fallback(&self.ask(), &refusal) {
            Some(Fallen::Answer(status, kind, text)) => {
                let mut response = Response::new(Answer::Full(text));
                *response.status_mut() = status;
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                Ok(response)
            }
            Some(Fallen::Lease(lease)) if self.message.is_whole() => match self.attempt(lease).await {
                Attempt::Answer(response) => Ok(response),
                Attempt::Again | Attempt::Over(_) => Err(refusal),
            },
            Some(Fallen::Lease(_)) | None => Err(refusal),
        }
    }

    fn redirect(&self, port: u16) -> Result<Response<Answer>, Refusal> {
        let host = self.message.target.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        let path = self.message.head.uri.path_and_query().map_or("/", |path| path.as_str());
        let place = HeaderValue::try_from(format!("https://{host}{port}{path}")).map_err(|_| unclear())?;
        let mut response = Response::new(Answer::Empty);
        // The method stays what it is.
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, place);
        Ok(response)
    }

    /// How long a connection to the next task may take.
    fn connect_limit(&self, route: &Route) -> Duration {
        let limit = route.timeouts.connect;
        if route.endpoints() > self.tried.len() + 1 { limit.min(HASTE) } else { limit }
    }

    /// Asks one task.
    async fn attempt(&mut self, mut lease: Lease) -> Attempt {
        let route = Arc::clone(lease.route());
        self.entry.asks(&lease);
        if route.h2c {
            return Box::pin(self.attempt_http2(lease, &route)).await;
        }
        let worker = Arc::clone(&self.conn().worker);
        let speaks_proxy = route.proxy_protocol;
        let longest = if self.message.is_idempotent { Duration::MAX } else { FRESH };
        head::to_http1(
            &mut self.message.head,
            &self.message.target,
            self.message.wishes,
            self.message.is_chunked,
        );
        let mut only_new = speaks_proxy;
        loop {
            let pooled = if only_new {
                None
            } else {
                lease.backend().pools.take(worker.number, worker.now(), longest)
            };
            let is_pooled = pooled.is_some();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => {
                    let limit = self.connect_limit(&route);
                    match Box::pin(connect_http1(self.conn(), lease.backend(), speaks_proxy, limit)).await {
                        // Left the table while it took the connection: nothing was sent yet, and nothing shall be.
                        Ok(_) if lease.backend().is_retired() => return Attempt::Again,
                        Ok(connection) => connection,
                        Err(error) => {
                            tracing::debug!(%error, endpoint = %lease.backend().endpoint.address, "not reached");
                            lease.failed(Failure::Connect, Moment::now());
                            self.tried.push(Arc::clone(lease.backend()));
                            return Attempt::Again;
                        }
                    }
                }
            };
            self.duplicate(&route);
            let spare = self.spare(self.message.is_idempotent);
            let request = self.message.take();
            self.expect(&route);
            let backend = lease.backend();
            let gives_up = self.may_be_given_up(&spare);
            let unheard = || backend.is_gone() || (gives_up && backend.is_unheard());
            match connection.ask(request, &worker, self.watch(), unheard).await {
                Ok(response) => return self.pass_on(response, connection, lease, &route, !speaks_proxy),
                Err(Unanswered::NotSent(request)) => {
                    self.message.put_back(*request);
                    if !is_pooled {
                        lease.failed(Failure::Broken, Moment::now());
                        self.tried.push(Arc::clone(lease.backend()));
                        return Attempt::Again;
                    }
                    // It was closed while it waited. The next one may be good, and a new one is.
                }
                Err(Unanswered::Late) => {
                    lease.failed(Failure::Timeout, Moment::now());
                    return Attempt::Over(late());
                }
                Err(Unanswered::Unheard) => return self.leave_unheard(lease, spare),
                Err(Unanswered::Failed(error)) => {
                    tracing::debug!(%error, endpoint = %lease.backend().endpoint.address, "not answered");
                    if let Some(refusal) = self.upload.as_ref().and_then(|upload| upload.broken()) {
                        lease.failed(Failure::Abandoned, Moment::now());
                        return Attempt::Over(refusal);
                    }
                    let failure = if error.is_parse() { Failure::Nonsense } else { Failure::Broken };
                    let is_whole =
                        failure == Failure::Broken && self.message.is_idempotent && self.restore(spare);
                    if is_pooled && failure == Failure::Broken {
                        // What waited in a pool says nothing about its endpoint.
                        if is_whole {
                            only_new = true;
                            continue;
                        }
                        lease.failed(Failure::Abandoned, Moment::now());
                        return Attempt::Over(broken(failure));
                    }
                    lease.failed(failure, Moment::now());
                    return if is_whole {
                        self.repeat(&lease, &route)
                    } else {
                        Attempt::Over(broken(failure))
                    };
                }
            }
        }
    }

    /// From now on the answer is awaited; while the body is being sent, it must go on.
    fn expect(&self, route: &Route) {
        let now = self.conn().worker.now();
        match &self.upload {
            Some(upload) if !upload.is_done() => upload.set_times(&route.timeouts, now),
            Some(_) | None => self.watch().set(now.plus(route.timeouts.request)),
        }
    }

    /// Makes the copy that is to be made, of the head as it is sent.
    fn duplicate(&mut self, route: &Route) {
        let Some(copy) = self.copy.take().filter(|_| !self.message.wishes.upgrade) else { return };
        let mut request = Request::new(Outgoing::Empty);
        let head = &self.message.head;
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        request.headers_mut().clone_from(&head.headers);
        let made = Duplicate::new(&self.conn().worker, copy, request, route.timeouts, route.h2c);
        match &self.upload {
            Some(upload) => drop(upload.duplicate.set(Box::new(made))),
            None => made.ended(),
        }
    }

    /// What is needed to ask once more after it was sent: the headers, and the body as far as it passes and is short.
    fn spare(&self, may_be_repeated: bool) -> Option<Spare> {
        if !may_be_repeated || self.message.wishes.upgrade {
            return None;
        }
        if let Some(upload) = &self.upload {
            upload.keep();
        }
        let headers = &self.message.head.headers;
        Some(headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Makes the request whole again, if all of it was kept.
    fn restore(&mut self, spare: Option<Spare>) -> bool {
        let Some(spare) = spare else { return false };
        let body = match &self.upload {
            None => Some(Bytes::new()),
            Some(upload) => upload.kept(),
        };
        let Some(body) = body else { return false };
        self.message.body = if body.is_empty() { Outgoing::Empty } else { Outgoing::Full(body) };
        self.message.head.headers = HeaderMap::with_capacity(spare.len());
        for (name, value) in spare {
            self.message.head.headers.append(name, value);
        }
        true
    }

    /// Whether it need not wait for a task whose node does not answer: it can be asked again, and nothing more of it is on its way.
    const fn may_be_given_up(&self, spare: &Option<Spare>) -> bool {
        self.message.is_idempotent && spare.is_some() && self.upload.is_none()
    }

    /// Asks another task in the place of one whose node does not answer. That takes nothing from the budget: such a node is asked nothing
    /// more, and so nobody asks again and again. What may not be asked twice has come here only because the task is gone.
    fn leave_unheard(&mut self, mut lease: Lease, spare: Option<Spare>) -> Attempt {
        tracing::debug!(endpoint = %lease.backend().endpoint.address, "not heard any more");
        self.entry.because(UNHEARD);
        self.tried.push(Arc::clone(lease.backend()));
        // That a machine fails says nothing of the release that runs on it.
        lease.failed(Failure::Abandoned, Moment::now());
        let is_whole = self.message.is_idempotent && self.restore(spare);
        if is_whole { Attempt::Again } else { Attempt::Over(gone()) }
    }

    /// Has another task asked what this one may have been asked, if the budget has room for it.
    fn repeat(&mut self, lease: &Lease, route: &Route) -> Attempt {
        self.attempts = self.attempts.saturating_add(1);
        if !route.may_retry(self.attempts) {
            return Attempt::Over(unanswered());
        }
        self.tried.push(Arc::clone(lease.backend()));
        Attempt::Again
    }

    /// Makes a task's answer one for the client.
    fn pass_on(
        &mut self,
        response: Response<Incoming>,
        mut connection: Box<Http1>,
        mut lease: Lease,
        route: &Route,
        is_kept: bool,
    ) -> Attempt {
        let (mut head, body) = response.into_parts();
        let kept_for = head.headers.get("keep-alive").and_then(|_| head::keeps_for(&head.headers));
        if let Err(refusal) = self.receive(&mut head, &mut lease) {
            return Attempt::Over(refusal);
        }
        let conn = Arc::clone(self.conn());
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.upgraded(head, connection, lease, route);
        }
        connection.answered += 1;
        if let Some(kept_for) = kept_for {
            // A second less than it says: the request is on its way for a while.
            connection.keep_at_most(kept_for.saturating_sub(Duration::from_secs(1)));
        }
        if connection.is_ready() {
            let answer = if body.is_end_stream() { Answer::Empty } else { Answer::Whole(body) };
            let sent = answer.size_hint().exact().unwrap_or_default();
            lease.passed(self.uploaded(), sent);
            self.entry.passed(self.uploaded(), sent);
            if is_kept {
                lease.backend().pools.put(conn.worker.number, connection, conn.worker.now());
            }
            return Attempt::Answer(Response::from_parts(head, answer));
        }
        let is_uploading = self.upload.as_ref().is_some_and(|upload| !upload.is_done());
        let connection = if is_uploading {
            // Both directions at once: the one must not wait for the other.
            conn.worker.spawn(connection.finish());
            None
        } else {
            Some(connection)
        };
        let download = self.download(body, connection, None, lease, route, is_kept);
        Attempt::Answer(Response::from_parts(head, Answer::Stream(Box::new(download))))
    }

    /// Notes the head of an answer, and makes it one for the client.
    fn receive(&mut self, head: &mut response::Parts, lease: &mut Lease) -> Result<(), Refusal> {
        let now = Moment::now();
        if let Err(refusal) = head::answer(head) {
            lease.failed(Failure::Nonsense, now);
            return Err(refusal);
        }
        lease.answered(head.status, now.since(self.began), now);
        self.entry.answered(now);
        if let Some(upload) = &self.upload {
            upload.answered();
        }
        if let Some(cookie) = lease.set_cookie() {
            head.headers.append(header::SET_COOKIE, cookie);
        }
        head.version = Version::HTTP_11;
        Ok(())
    }

    fn download(
        &mut self,
        body: Incoming,
        connection: Option<Box<Http1>>,
        stream: Option<Stream>,
        lease: Lease,
        route: &Route,
        is_kept: bool,
    ) -> Download {
        let idle = route.timeouts.idle;
        let conn = Arc::clone(self.conn());
        self.watch().set(conn.worker.now().plus(idle));
        Download {
            body,
            connection,
            _stream: stream,
            lease: Some(lease),
            is_kept,
            idle,
            sent: 0,
            upload: self.upload.clone(),
            entry: self.entry.clone(),
            watch: self.watch.take(),
            conn,
            // From now on the answer is what is under way.
            _under_way: UnderWay(self.under_way.0.take()),
        }
    }

    fn uploaded(&self) -> u64 {
        self.upload.as_ref().map_or(0, |upload| upload.bytes())
    }

    fn upgraded(
        &mut self,
        head: response::Parts,
        connection: Box<Http1>,
        lease: Lease,
        route: &Route,
    ) -> Attempt {
        let is_upgraded = self.message.wishes.upgrade && connection.is_ended();
        let Some((stream, read)) = connection.into_stream().filter(|_| is_upgraded) else {
            return Attempt::Over(broken(Failure::Nonsense));
        };
        let (idle, entry) = (route.timeouts.idle, self.entry.clone());
        let tunnel = Tunnel { stream, read, lease, idle, entry };
        *self.conn().tunnel.lock() = Some(tunnel);
        Attempt::Answer(Response::from_parts(head, Answer::Empty))
    }

    async fn attempt_http2(&mut self, mut lease: Lease, route: &Route) -> Attempt {
        let conn = Arc::clone(self.conn());
        let worker = &conn.worker;
        let backend = Arc::clone(lease.backend());
        let reach = connect(&conn, &backend, false, self.connect_limit(route));
        let mut stream = match backend.pools.share(worker, reach).await {
            Ok(_) if backend.is_retired() => return Attempt::Again,
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, endpoint = %backend.endpoint.address, "not reached");
                lease.failed(Failure::Connect, Moment::now());
                self.tried.push(backend);
                return Attempt::Again;
            }
        };
        let uri = self.message.head.uri.clone();
        if let Err(refusal) =
            head::to_http2(&mut self.message.head, &self.message.target, self.message.wishes)
        {
            return Attempt::Over(refusal);
        }
        self.duplicate(route);
        // What a server says it has not looked at can be asked again, whatever it is.
        let spare = self.spare(true);
        let request = self.message.take();
        self.expect(route);
        let gives_up = self.may_be_given_up(&spare);
        let watch = Arc::clone(self.watch());
        let mut answer = std::pin::pin!(stream.send.try_send_request(request));
        let answered = std::future::poll_fn(|cx| {
            watch.register(cx.waker());
            match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.map_err(Unanswered::of)),
                Poll::Pending if watch.is_due(worker.now()) => Poll::Ready(Err(Unanswered::Late)),
                Poll::Pending if backend.is_gone() || (gives_up && backend.is_unheard()) => {
                    Poll::Ready(Err(Unanswered::Unheard))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match answered {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                if let Err(refusal) = self.receive(&mut head, &mut lease) {
                    return Attempt::Over(refusal);
                }
                let download = self.download(body, None, Some(stream), lease, route, false);
                Attempt::Answer(Response::from_parts(head, Answer::Stream(Box::new(download))))
            }
            Err(Unanswered::NotSent(request)) => {
                self.message.put_back(*request);
                self.message.head.uri = uri;
                // That connection is closing; nothing is known about the endpoint.
                Attempt::Again
            }
            Err(Unanswered::Late) => {
                lease.failed(Failure::Timeout, Moment::now());
                Attempt::Over(late())
            }
            Err(Unanswered::Unheard) => {
                self.message.head.uri = uri;
                self.leave_unheard(lease, spare)
            }
            Err(Unanswered::Failed(error)) => {
                tracing::debug!(%error, endpoint = %backend.endpoint.address, "not answered");
                if let Some(refusal) = self.upload.as_ref().and_then(|upload| upload.broken()) {
                    lease.failed(Failure::Abandoned, Moment::now());
                    return Attempt::Over(refusal);
                }
                let is_unseen = pool::is_unseen(&error);
                let is_whole = (is_unseen || self.message.is_idempotent) && self.restore(spare);
                self.message.head.uri = uri;
                // It only ends this connection, or has as many requests as it wants.
                lease.failed(if is_unseen { Failure::Abandoned } else { Failure::Broken }, Moment::now());
                match is_whole {
                    true if is_unseen => Attempt::Again,
                    true => self.repeat(&lease, route),
                    false => Attempt::Over(broken(Failure::Broken)),
                }
            }
        }
    }
}

impl Message {
    /// Whether nothing of it is gone.
    fn is_whole(&self) -> bool {
        !matches!(self.body, Outgoing::Gone)
    }

    fn take(&mut self) -> Request<Outgoing> {
        let mut request = Request::new(std::mem::replace(&mut self.body, Outgoing::Gone));
        // Method and target are asked for on the way; the rest is needed once.
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.version_mut() = self.head.version;
        *request.headers_mut() = std::mem::take(&mut self.head.headers);
        request
    }

    fn put_back(&mut self, request: Request<Outgoing>) {
        let (head, body) = request.into_parts();
        (self.head.headers, self.body) = (head.headers, body);
    }
}

/// A new connection to an endpoint.
pub(crate) async fn reach(backend: &Backend, limit: Duration) -> io::Result<TcpStream> {
    let connect = async {
        let stream = TcpStream::connect(backend.endpoint.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    timeout(limit, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()
}

/// The same, and it is told who the client is if it wants to know that first.
async fn connect(
    conn: &Conn,
    backend: &Backend,
    speaks_proxy: bool,
    limit: Duration,
) -> io::Result<TcpStream> {
    let mut stream = reach(backend, limit).await?;
    if speaks_proxy {
        let header = proxy_protocol::header(Proxied { source: conn.client, destination: conn.destination });
        stream.write_all(&header).await?;
    }
    Ok(stream)
}

async fn connect_http1(
    conn: &Conn,
    backend: &Backend,
    speaks_proxy: bool,
    limit: Duration,
) -> io::Result<Box<Http1>> {
    let stream = connect(conn, backend, speaks_proxy, limit).await?;
    Http1::new(stream, conn.worker.options().pool_idle).await.map_err(io::Error::other)
}

fn challenge(answer: &str) -> Response<Answer> {
    let mut response = Response::new(Answer::Full(Bytes::copy_from_slice(answer.as_bytes())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

fn nobody(conn: &Conn) -> Refusal {
    if conn.lacks_tls() {
        let text = "this port speaks TLS";
        return Refusal::new(StatusCode::BAD_REQUEST, "malformed", text);
    }
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no_route",
        "no route leads here: neither this host nor this path is known",
    )
}

fn unclear() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "malformed", "the path can be read in more than one way")
}

fn unanswered() -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, "retries_over", "no task answered, and no more attempts are made")
}

fn gone() -> Refusal {
    let text = "the machine of the task is gone, and nobody knows what became of the request";
    Refusal::new(StatusCode::BAD_GATEWAY, UNHEARD, text)
}

fn late() -> Refusal {
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the task did not answer in time")
}

fn broken(failure: Failure) -> Refusal {
    match failure {
        Failure::Nonsense => {
            Refusal::new(StatusCode::BAD_GATEWAY, "nonsense", "what the task said is no answer")
        }
        Failure::Connect | Failure::Broken | Failure::Timeout | Failure::Cut | Failure::Abandoned => {
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                "broken",
                "the task ended the connection before it answered",
            )
        }
    }
}

/// What is known of a request's body while it is sent.
pub(crate) struct Upload {
    bytes: AtomicU64,
    done: AtomicBool,
    broken: AtomicBool,
    /// The head of the answer is there: others say how long things may take.
    answered: AtomicBool,
    /// Microseconds: without anything, and for the answer after the end.
    idle: AtomicU64,
    request: AtomicU64,
    watch: Arc<Watch>,
    client: Arc<dyn Uploading>,
    /// What has passed, to be sent again; nothing if it is not kept.
    kept: Mutex<Option<Kept>>,
    /// Who gets a copy.
    duplicate: OnceLock<Box<dyn Follower>>,
}

/// A body as far as it has passed.
#[derive(Default)]
struct Kept {
    parts: Vec<Bytes>,
    length: usize,
}

/// Who sees a body pass.
pub(crate) trait Follower: Send + Sync {
    /// This was passed on.
    fn passed(&self, data: &[u8]);
    /// All of the request was.
    fn ended(&self);
}

/// The client's side of an upload.
pub(crate) trait Uploading: Send + Sync {
    fn now(&self) -> Moment;
    /// All of the body has come.
    fn body_ends(&self);
}

impl Upload {
    fn set_times(&self, timeouts: &Timeouts, now: Moment) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.idle.store(micros(timeouts.idle), Ordering::Relaxed);
        self.request.store(micros(timeouts.request), Ordering::Relaxed);
        self.watch.set(now.plus(timeouts.idle));
    }

    /// Keeps what passes from now on, which is all of it.
    fn keep(&self) {
        if self.bytes() == 0 {
            *self.kept.lock() = Some(Kept::default());
        }
    }

    /// All of it, if it has ended and was kept.
    fn kept(&self) -> Option<Bytes> {
        let kept = self.kept.lock().take().filter(|_| self.is_done())?;
        Some(match &kept.parts[..] {
            [only] => only.clone(),
            parts => parts.concat().into(),
        })
    }

    fn passes(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.lock();
        let Some(so_far) = kept.as_mut() else { return };
        match frame.data_ref() {
            Some(data) if so_far.length + data.len() <= KEPT => {
                so_far.length += data.len();
                so_far.parts.push(data.clone());
            }
            // Trailers are not kept either.
            Some(_) | None => *kept = None,
        }
    }

    /// Something of it was taken.
    fn moves(&self) {
        let idle = Duration::from_micros(self.idle.load(Ordering::Relaxed));
        self.watch.set(self.client.now().plus(idle));
    }

    fn finish(&self) {
        if self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        self.client.body_ends();
        if let Some(duplicate) = self.duplicate.get() {
            duplicate.ended();
        }
        if !self.answered.load(Ordering::Relaxed) {
            let request = Duration::from_micros(self.request.load(Ordering::Relaxed));
            self.watch.set(self.client.now().plus(request));
        }
    }

    fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
        *self.kept.lock() = None;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// What its client is told, if it was the client's fault that it ended.
    fn broken(&self) -> Option<Refusal> {
        let text = "the request's body ended too early, or is none";
        self.broken.load(Ordering::Relaxed).then(|| Refusal::new(StatusCode::BAD_REQUEST, "malformed", text))
    }
}

/// A request's body on its way to a task.
pub(crate) enum Outgoing {
    /// There is none.
    Empty,
    /// It was handed over.
    Gone,
    /// It is here.
    Full(Bytes),
    Stream(Incoming, Arc<Upload>),
}

impl Outgoing {
    fn of(
        body: Incoming,
        has_body: bool,
        conn: &Arc<Conn>,
        watch: &Arc<Watch>,
    ) -> (Self, Option<Arc<Upload>>) {
        if !has_body {
            return (Self::Empty, None);
        }
        conn.body_begins();
        let (bytes, done, broken, answered, idle, request, kept, duplicate) = Default::default();
        let (watch, client) = (Arc::clone(watch), Arc::clone(conn) as Arc<dyn Uploading>);
        let upload =
            Arc::new(Upload { bytes, done, broken, answered, idle, request, watch, client, kept, duplicate });
        (Self::Stream(body, Arc::clone(&upload)), Some(upload))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (body, upload) = match self.get_mut() {
            Self::Stream(body, upload) => (body, upload),
            Self::Full(bytes) if !bytes.is_empty() => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            Self::Empty | Self::Gone | Self::Full(_) => return Poll::Ready(None),
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    upload.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if let Some(duplicate) = upload.duplicate.get() {
                        duplicate.passed(data);
                    }
                }
                upload.passes(frame);
                upload.moves();
                if body.is_end_stream() {
                    upload.finish();
                }
            }
            Poll::Ready(Some(Err(_))) => upload.broken.store(true, Ordering::Relaxed),
            Poll::Ready(None) => upload.finish(),
            Poll::Pending => {}
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Gone => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Gone => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

/// An answer's body on its way to a client.
pub(crate) enum Answer {
    Empty,
    Full(Bytes),
    /// It has come to its end, and nothing has to be done for it any more.
    Whole(Incoming),
    Stream(Box<Download>),
}

/// A body that is still coming.
pub(crate) struct Download {
    body: Incoming,
    /// What brings it, over HTTP/1.1.
    connection: Option<Box<Http1>>,
    /// Its place on a shared connection.
    _stream: Option<Stream>,
    lease: Option<Lease>,
    is_kept: bool,
    idle: Duration,
    sent: u64,
    upload: Option<Arc<Upload>>,
    entry: Entry,
    watch: Option<Watched>,
    conn: Arc<Conn>,
    _under_way: UnderWay,
}

impl Download {
    fn watch(&self) -> &Watch {
        self.watch.as_ref().unwrap_or(&self.conn.watch)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = &mut self.body;
        let polled = match &mut self.connection {
            // What is here already needs nobody to drive it.
            Some(connection) => match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => connection.drive(cx, |cx| Pin::new(&mut *body).poll_frame(cx)),
                ready => ready,
            },
            None => Pin::new(body).poll_frame(cx),
        };
        let now = self.conn.worker.now();
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.sent += data.len() as u64;
                }
                if self.body.is_end_stream() {
                    self.finish(cx);
                } else {
                    self.watch().set(now.plus(self.idle));
                }
            }
            Poll::Ready(None) => self.finish(cx),
            Poll::Ready(Some(Err(_))) => self.cut(Failure::Cut, "cut"),
            Poll::Pending => {
                self.watch().register(cx.waker());
                if self.lease.as_ref().is_some_and(|lease| lease.backend().is_gone()) {
                    self.cut(Failure::Abandoned, UNHEARD);
                    return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::ConnectionReset).into())));
                }
                if self.watch().is_due(now) {
                    let nothing = io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long");
                    return Poll::Ready(Some(Err(nothing.into())));
                }
            }
        }
        polled.map_err(Into::into)
    }

    /// The rest of it does not come.
    fn cut(&mut self, failure: Failure, why: &'static str) {
        if let Some(mut lease) = self.lease.take() {
            lease.failed(failure, Moment::now());
            self.passed(&lease);
            self.entry.because(why);
        }
        self.connection = None;
    }

    /// All of it has come.
    fn finish(&mut self, cx: &mut Context<'_>) {
        let Some(lease) = self.lease.take() else { return };
        self.passed(&lease);
        let Some(mut connection) = self.connection.take() else { return };
        // The end of the message may not have been looked at yet.
        if !connection.is_ready() {
            let _: Poll<()> = connection.drive(cx, |_| Poll::Pending);
        }
        if connection.is_ready() && self.is_kept {
            lease.backend().pools.put(self.conn.worker.number, connection, self.conn.worker.now());
        }
    }

    fn passed(&self, lease: &Lease) {
        let received = self.upload.as_ref().map_or(0, |upload| upload.bytes());
        lease.passed(received, self.sent);
        self.entry.passed(received, self.sent);
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // The client went away.
        if let Some(mut lease) = self.lease.take() {
            lease.failed(Failure::Abandoned, Moment::now());
            self.passed(&lease);
            self.entry.because("abandoned");
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Stream(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Whole(body) => body.size_hint(),
            Self::Stream(download) => download.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl Fn(Arc<Conn>, Request<Incoming>) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn the_usual_way_of_a_request_is_small() {
        // It is moved about for each request: what is unusual has boxes.
        let size = size(forward);
        assert!(size < 3000, "{size} bytes");
    }
}
