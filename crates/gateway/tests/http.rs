//! Requests through the gateway over loopback, between clients and tasks of the test's own: HTTP libraries where they behave, sockets where they
//! do not.
#![expect(
    clippy::unwrap_used,
    reason = "what helpers cannot do fails the test, as it does in the test itself"
)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use wharf_gateway::{AccessLog, Gateway, GatewayOptions, HttpOptions};
use wharf_model::{
    AppKey, Endpoint, EndpointSet, Generation, Millis, NodeId, Revision, RouteId, RouteProtocol, RouteSpec,
    RouteTable, ServiceKey, ServiceRoute, TaskId,
};
use wharf_process::{Shutdown, Tasks};

const SOON: Duration = Duration::from_secs(20);

type Body = BoxBody<Bytes, io::Error>;

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it happens within the deadline")
}

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn streamed(frames: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(frames))
}

// --- the gateway ---

struct Fixture {
    gateway: Gateway,
    tasks: Tasks,
    port: u16,
    version: AtomicU64,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(HttpOptions { workers: 2, ..HttpOptions::default() }).await
    }

    async fn with(options: HttpOptions) -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        let gateway = Gateway::with(GatewayOptions::default(), options, &tasks, AccessLog::new(None));
        Self { gateway, tasks, port: free_port().await, version: AtomicU64::new(0) }
    }

    /// One route for everything.
    fn route(&self, endpoints: &[Endpoint]) -> ServiceRoute {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let service = ServiceKey { app, name: "web".parse().unwrap() };
        let mut spec: RouteSpec = serde_json::from_value(serde_json::json!({ "port": 80 })).unwrap();
        spec.listen = Some(self.port);
        ServiceRoute {
            id: RouteId { service, number: 0, preview: false },
            spec,
            sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints: endpoints.to_vec() }],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: Default::default(),
        }
    }

    async fn apply(&self, services: Vec<ServiceRoute>) {
        self.apply_without(services, &[]).await;
    }

    /// The same, where these tasks are gone because their nodes do not answer.
    async fn apply_without(&self, services: Vec<ServiceRoute>, unheard: &[Endpoint]) {
        self.apply_given_up(services, unheard, &[]).await;
    }

    /// The same, where some of them do not come back.
    async fn apply_given_up(&self, services: Vec<ServiceRoute>, unheard: &[Endpoint], gone: &[Endpoint]) {
        let unheard = unheard.iter().map(|endpoint| endpoint.task).collect();
        let gone = gone.iter().map(|endpoint| (endpoint.task, NodeId::from_parts(1, [1; 10]))).collect();
        let version = Revision(self.version.fetch_add(1, Ordering::SeqCst) + 1);
        let table = RouteTable { version, services, unheard, gone, ..RouteTable::default() };
        within(self.gateway.apply(&table)).await;
        assert_eq!(self.gateway.problems(), [""; 0]);
    }

    async fn publish(&self, endpoints: &[Endpoint]) {
        self.apply(vec![self.route(endpoints)]).await;
    }

    async fn publish_with(&self, endpoints: &[Endpoint], change: impl FnOnce(&mut RouteSpec)) {
        let mut route = self.route(endpoints);
        change(&mut route.spec);
        self.apply(vec![route]).await;
    }

    async fn connect(&self) -> Raw {
        Raw::to(self.port).await
    }

    /// The answer to one request on a connection of its own.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut raw = self.connect().await;
        raw.send(request).await;
        raw.reply().await
    }

    async fn http1(&self) -> hyper::client::conn::http1::SendRequest<Body> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap();
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn("client", connection);
        send
    }

    async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Body> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap();
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn("client", connection);
        send
    }

    /// With a log at this path, and one worker.
    async fn logging(path: &Path) -> (Self, AccessLog) {
        let mut fixture = Self::new().await;
        let log = AccessLog::new(Some(wharf_gateway::AccessLogOptions::at(path.to_owned())));
        let options = HttpOptions { workers: 1, hold: Duration::ZERO, ..HttpOptions::default() };
        fixture.gateway = Gateway::with(GatewayOptions::default(), options, &fixture.tasks, log.clone());
        (fixture, log)
    }

    fn under_way(&self) -> u64 {
        self.gateway.draining().values().sum()
    }
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn endpoint(number: u8, port: u16) -> Endpoint {
    Endpoint::new(TaskId::from_parts(1, [number; 10]), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n")
}

fn request(version: Version, method: Method, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).version(version);
    let request = match version {
        Version::HTTP_2 => request.uri(format!("http://shop.example{path}")),
        _ => request.uri(path).header("host", "shop.example"),
    };
    request.body(body).unwrap()
}

// --- a client that says what it wants ---

struct Raw {
    stream: BufReader<TcpStream>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Raw {
    async fn to(port: u16) -> Self {
        let stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.get_mut().write_all(bytes.as_ref())).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        within(self.stream.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn head(&mut self) -> Reply {
        let first = self.line().await;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer: {first:?}"));
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { break };
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            headers
                .entry(name)
                .and_modify(|all: &mut String| {
                    all.push_str(", ");
                    all.push_str(value);
                })
                .or_insert_with(|| value.to_owned());
        }
        Reply { status, headers, body: Vec::new() }
    }

    async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        if matches!(reply.status, 100..=199 | 204 | 304) {
            return reply;
        }
        if let Some(length) = reply.header("content-length") {
            reply.body = vec![0; length.parse().unwrap()];
            within(self.stream.read_exact(&mut reply.body)).await.unwrap();
        } else if reply.header("transfer-encoding").is_some() {
            loop {
                let length = usize::from_str_radix(&self.line().await, 16).expect("a chunk");
                let mut chunk = vec![0; length];
                within(self.stream.read_exact(&mut chunk)).await.unwrap();
                if length == 0 {
                    break;
                }
                self.line().await;
                reply.body.extend(chunk);
            }
            while let line = self.line().await
                && !line.is_empty()
            {
                let (name, value) = line.split_once(':').expect("a trailer");
                reply.headers.insert(format!("trailer {name}"), value.trim().to_owned());
            }
        } else {
            within(self.stream.read_to_end(&mut reply.body)).await.unwrap();
        }
        reply
    }

    /// Whether it ends now, orderly or not, with nothing more said.
    async fn is_over(&mut self) -> bool {
        let mut rest = Vec::new();
        let ended = within(self.stream.read_to_end(&mut rest)).await;
        ended.is_err() || rest.is_empty()
    }
}

// --- tasks ---

/// What a task has seen.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    requests: AtomicUsize,
    last: Mutex<Option<http::request::Parts>>,
}

/// A task with an HTTP server of this version.
async fn serve<F>(
    tasks: &Tasks,
    number: u8,
    version: Version,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> (Endpoint, Arc<Seen>)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, group) = (Arc::<Seen>::default(), tasks.clone());
    let known = Arc::clone(&seen);
    tasks.spawn("task", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, answer) = (Arc::clone(&known), answer.clone());
            seen.connections.fetch_add(1, Ordering::SeqCst);
            seen.open.fetch_add(1, Ordering::SeqCst);
            group.spawn("task connection", async move {
                let service = service_fn(|request: Request<Incoming>| {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    let (head, body) = request.into_parts();
                    *seen.last.lock() = Some(head.clone());
                    let answer = answer(Request::from_parts(head, body));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let io = TokioIo::new(stream);
                if version == Version::HTTP_2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(io, service).await;
                } else {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(io, service).await;
                }
                seen.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (endpoint(number, port), seen)
}

/// A task that answers its number.
async fn numbered(tasks: &Tasks, number: u8) -> (Endpoint, Arc<Seen>) {
    serve(tasks, number, Version::HTTP_11, move |_| async move { Response::new(full(number.to_string())) })
        .await
}

/// A task that sends back what it is sent, and its trailers.
async fn echo(tasks: &Tasks, version: Version) -> (Endpoint, Arc<Seen>) {
    serve(tasks, 1, version, |request| async move {
        let trailer = request.headers().get("trailer").cloned();
        let mut response = Response::new(request.into_body().map_err(io::Error::other).boxed());
        if let Some(trailer) = trailer {
            response.headers_mut().insert("trailer", trailer);
        }
        response
    })
    .await
}

/// A task that is a socket: each connection is given to `answer` with its number, from 0.
async fn raw_task<F>(
    tasks: &Tasks,
    number: u8,
    answer: impl Fn(usize, Raw) -> F + Send + Sync + 'static,
) -> Endpoint
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let group = tasks.clone();
    tasks.spawn("task", async move {
        for connection in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            group.spawn("task connection", answer(connection, Raw { stream: BufReader::new(stream) }));
        }
    });
    endpoint(number, port)
}

impl Raw {
    /// Reads the head of a request, whatever it says; nothing at the end.
    async fn request(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => return Some(lines),
                line => lines.push(line.to_owned()),
            }
        }
    }
}

// --- what is promised ---

#[tokio::test]
async fn requests_share_connections_on_both_sides() {
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let (web, seen) = numbered(&fixture.tasks, 7).await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    for _ in 0..3 {
        client.send(get("/")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "7"));
        assert_eq!(reply.header("content-length"), Some("1"));
    }
    // Another client uses the same connection to the task.
    assert_eq!(fixture.ask(get("/")).await.text(), "7");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 4);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let fixture = Fixture::new().await;
    let answer = |request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        Response::new(full(path))
    };
    let (web, _) = serve(&fixture.tasks, 1, Version::HTTP_11, answer).await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    let all: String = (0..40).map(|number| get(&format!("/{number}"))).collect();
    client.send(&all[..all.len() - 10]).await;
    for number in 0..39 {
        assert_eq!(client.reply().await.text(), format!("/{number}"));
    }
    // The rest of a head may come much later.
    client.send(&all[all.len() - 10..]).await;
    assert_eq!(client.reply().await.text(), "/39");
}

#[tokio::test]
async fn both_versions_are_translated_into_each_other() {
    for (client, task) in [
        (Version::HTTP_11, Version::HTTP_11),
        (Version::HTTP_2, Version::HTTP_11),
        (Version::HTTP_11, Version::HTTP_2),
        (Version::HTTP_2, Version::HTTP_2),
    ] {
        let fixture = Fixture::new().await;
        let (web, seen) = echo(&fixture.tasks, task).await;
        fixture
            .publish_with(&[web], |spec| {
                if task == Version::HTTP_2 {
                    spec.protocol = RouteProtocol::H2c;
                }
            })
            .await;
        let request = || request(client, Method::POST, "/a?b=c", full(vec![b'x'; 200_000]));
        let response = if client == Version::HTTP_2 {
            within(fixture.http2().await.send_request(request())).await.unwrap()
        } else {
            within(fixture.http1().await.send_request(request())).await.unwrap()
        };
        assert_eq!(response.status(), 200, "{client:?} to {task:?}");
        let body = within(response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(body.len(), 200_000);
        let head = seen.last.lock().take().unwrap();
        assert_eq!(head.version, task);
        assert_eq!(head.uri.path_and_query().unwrap(), "/a?b=c");
        let host = head.uri.authority().map(ToString::to_string);
        let host = host.or_else(|| Some(head.headers.get("host")?.to_str().ok()?.to_owned()));
        assert_eq!(host.as_deref(), Some("shop.example"));
    }
}

#[tokio::test]
async fn what_grpc_needs_goes_through() {
    // Each message is answered before the next is sent, and the outcome is in trailers.
    for task in [Version::HTTP_2, Version::HTTP_11] {
        let fixture = Fixture::new().await;
        let answer = |request: Request<Incoming>| async move {
            let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, io::Error>>(1);
            let mut body = request.into_body();
            #[expect(clippy::disallowed_methods, reason = "a test's own server")]
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(data) = frame.into_data() else { continue };
                    let _ = send.send(Ok(Frame::data(data))).await;
                }
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(0))]);
                let _ = send.send(Ok(Frame::trailers(trailers))).await;
            });
            let frames =
                stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
            let mut response = Response::new(streamed(frames));
            response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status"));
            response
        };
        let (web, seen) = serve(&fixture.tasks, 1, task, answer).await;
        fixture
            .publish_with(&[web], |spec| {
                if task == Version::HTTP_2 {
                    spec.protocol = RouteProtocol::H2c;
                }
            })
            .await;
        let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, io::Error>>(1);
        let frames =
            stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
        let mut request = request(Version::HTTP_2, Method::POST, "/echo", streamed(frames));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let mut client = fixture.http2().await;
        let response = client.send_request(request);
        send.send(Ok(Frame::data(Bytes::from_static(b"0")))).await.unwrap();
        let mut response = within(response).await.unwrap();
        for number in 0..50_u8 {
            let frame = within(response.body_mut().frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), Bytes::from(number.to_string()), "to {task:?}");
            send.send(Ok(Frame::data(Bytes::from((number + 1).to_string())))).await.unwrap();
        }
        drop(send);
        let rest = within(response.into_body().collect()).await.unwrap();
        assert_eq!(rest.trailers().unwrap()["grpc-status"], "0", "to {task:?}");
        assert_eq!(seen.last.lock().as_ref().unwrap().headers["te"], "trailers");
    }
}

#[tokio::test]
async fn trailers_go_both_ways_where_they_are_wanted() {
    let fixture = Fixture::new().await;
    let (web, _) = echo(&fixture.tasks, Version::HTTP_11).await;
    fixture.publish(&[web]).await;
    let reply = fixture
        .ask(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    assert_eq!((reply.text().as_str(), reply.header("trailer x-sum")), ("abc", Some("7")));
}

#[tokio::test]
async fn upgraded_connections_pass_everything_on() {
    let fixture = Fixture::new().await;
    let web = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        let head = task.request().await.unwrap().join("\n").to_ascii_lowercase();
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
        // What follows the head at once is not lost either.
        task.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        )
        .await;
        let mut buffer = [0; 1000];
        loop {
            let length = task.stream.read(&mut buffer).await.unwrap();
            if length == 0 {
                break;
            }
            task.send(&buffer[..length]).await;
        }
        task.send("bye").await;
    })
    .await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    client
        .send(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: x\r\n\r\nearly",
        )
        .await;
    let reply = client.head().await;
    assert_eq!((reply.status, reply.header("upgrade")), (101, Some("websocket")));
    let mut said = [0; 10];
    within(client.stream.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"helloearly");
    for number in 0..100_u8 {
        client.send([number; 3]).await;
        let mut back = [0; 3];
        within(client.stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, [number; 3]);
    }
    // It is under way with its task until it ends.
    fixture.publish(&[]).await;
    assert_eq!(fixture.under_way(), 1);
    client.stream.get_mut().shutdown().await.unwrap();
    let mut rest = String::new();
    within(client.stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "bye", "who is done with sending is still answered");
    eventually("nothing is under way", async || fixture.under_way() == 0).await;
}

#[tokio::test]
async fn events_arrive_when_they_are_sent() {
    let fixture = Fixture::new().await;
    let (send, receive) = mpsc::channel::<Bytes>(1);
    let receive = Arc::new(Mutex::new(Some(receive)));
    let answer = move |_| {
        let receive = receive.lock().take().unwrap();
        async move {
            let frames = stream::unfold(receive, |mut receive| async move {
                Some((Ok(Frame::data(receive.recv().await?)), receive))
            });
            let mut response = Response::new(streamed(frames));
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
            response
        }
    };
    let (web, _) = serve(&fixture.tasks, 1, Version::HTTP_11, answer).await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    client.send(get("/events")).await;
    assert_eq!(client.head().await.header("transfer-encoding"), Some("chunked"));
    for number in 0..20 {
        send.send(format!("data: {number:02}\n\n").into()).await.unwrap();
        assert_eq!(client.line().await.to_ascii_lowercase(), "a");
        assert_eq!(client.line().await, format!("data: {number:02}"));
        assert_eq!(client.line().await, "");
        assert_eq!(client.line().await, "");
    }
    drop(send);
    assert_eq!(client.line().await, "0");
}

#[tokio::test]
async fn large_bodies_stream_both_ways_at_once() {
    const SIZE: usize = 100 << 20;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let fixture = Fixture::new().await;
        let (web, _) = echo(&fixture.tasks, Version::HTTP_11).await;
        fixture.publish(&[web]).await;
        let chunk = Bytes::from((0..1 << 16).map(|byte: u32| byte.to_le_bytes()[0]).collect::<Vec<_>>());
        let chunks = SIZE / chunk.len();
        let frames = stream::iter((0..chunks).map({
            let chunk = chunk.clone();
            move |_| Ok(Frame::data(chunk.clone()))
        }));
        let request = request(version, Method::PUT, "/", streamed(frames));
        let response = if version == Version::HTTP_2 {
            timeout(SOON * 5, fixture.http2().await.send_request(request)).await.unwrap().unwrap()
        } else {
            timeout(SOON * 5, fixture.http1().await.send_request(request)).await.unwrap().unwrap()
        };
        let (mut body, mut received) = (response.into_body(), 0);
        let twice = [&chunk[..], &chunk[..]].concat();
        while let Some(frame) = timeout(SOON * 5, body.frame()).await.unwrap() {
            let data = frame.unwrap().into_data().unwrap();
            let wanted = &twice[received % chunk.len()..][..data.len()];
            assert!(data == wanted, "what is received is what was sent");
            received += data.len();
        }
        assert_eq!(received, SIZE);
    }
}

#[tokio::test]
async fn who_does_not_read_is_not_sent_more_than_fits() {
    // Upwards: a task that reads a head and nothing else. Downwards: a client that does.
    const FITS: usize = 32 << 20;
    let fixture = Fixture::new().await;
    let deaf = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        task.request().await;
        std::future::pending::<()>().await;
    })
    .await;
    fixture.publish(&[deaf]).await;
    let mut client = fixture.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await;
    let chunk = vec![0; 1 << 20];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_secs(2), client.stream.get_mut().write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < FITS, "nobody has taken it, and still it is accepted");
    }

    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let loud = raw_task(&fixture.tasks, 2, move |_, mut task| {
        let count = Arc::clone(&count);
        async move {
            task.request().await;
            task.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
            let chunk = vec![0; 1 << 20];
            while let Ok(written) = task.stream.get_mut().write(&chunk).await {
                count.fetch_add(written, Ordering::SeqCst);
            }
        }
    })
    .await;
    fixture.publish(&[loud]).await;
    let mut client = fixture.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.head().await.status, 200);
    let mut before = usize::MAX;
    while std::mem::replace(&mut before, sent.load(Ordering::SeqCst)) != sent.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(before < FITS, "{before} bytes were taken for a client that takes none");
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let fixture = Fixture::new().await;
    let (web, seen) = numbered(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    for (what, request) in [
        ("two lengths", format!("{post}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")),
        ("two lengths in one", format!("{post}Content-Length: 3, 4\r\n\r\nabcd")),
        ("a length with a sign", format!("{post}Content-Length: +3\r\n\r\nabc")),
        ("a negative length", format!("{post}Content-Length: -3\r\n\r\nabc")),
        ("a hexadecimal length", format!("{post}Content-Length: 0x3\r\n\r\nabc")),
        ("a length without end", format!("{post}Content-Length: 99999999999999999999999\r\n\r\nabc")),
        ("another coding", format!("{post}Transfer-Encoding: gzip\r\n\r\n")),
        ("two codings", format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        ("chunked twice", format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n")),
        (
            "chunked in two lines",
            format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("chunked and then not", format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n")),
        ("a coding that is almost chunked", format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        ("a coding in quotes", format!("{post}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n")),
        (
            "chunks in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("a space before the colon", format!("{post}Content-Length : 3\r\n\r\nabc")),
        ("a folded line", format!("{post}X: a\r\n b\r\n\r\n")),
        ("a folded first line", "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned()),
        ("a header without a name", format!("{post}: x\r\n\r\n")),
        ("a null in a value", format!("{post}X: a\0b\r\n\r\n")),
        ("a carriage return in a value", format!("{post}X: a\rb\r\n\r\n")),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned()),
        ("a host that is none", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned()),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".to_owned()),
        ("a target for another host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a version that is none", "GET / HTTP/1.2x\r\nHost: a\r\n\r\n".to_owned()),
        ("a tunnel", "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n".to_owned()),
    ] {
        let mut client = fixture.connect().await;
        client.send(&request).await;
        let reply = client.head().await;
        assert!(matches!(reply.status, 400..=499 | 501 | 505), "{what}: {}", reply.status);
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0, "none of them reached a task");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken_for_a_whole_one() {
    let fixture = Fixture::new().await;
    let whole = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&whole);
    let answer = move |request: Request<Incoming>| {
        let count = Arc::clone(&count);
        async move {
            if request.into_body().collect().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
            Response::new(full("done"))
        }
    };
    let (web, seen) = serve(&fixture.tasks, 1, Version::HTTP_11, answer).await;
    fixture.publish(&[web]).await;
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for (number, rest) in [
        "g\r\nabc\r\n0\r\n\r\n",
        "-1\r\n",
        "0x3\r\nabc\r\n",
        "3\r\nabcd\r\n",
        "fffffffffffffffff\r\n",
        "3 \rabc",
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = fixture.connect().await;
        client.send(chunked).await;
        // It has begun at the task.
        eventually("begun", async || seen.requests.load(Ordering::SeqCst) == number + 1).await;
        client.send(rest).await;
        let mut said = String::new();
        let _ = within(client.stream.read_to_string(&mut said)).await;
        assert!(!said.contains("done"), "{rest:?}: {said}");
    }
    let mut client = fixture.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    eventually("begun", async || seen.requests.load(Ordering::SeqCst) == 7).await;
    drop(client);
    eventually("the task's connections ended", async || seen.open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(whole.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let fixture = Fixture::new().await;
        let web = raw_task(&fixture.tasks, 1, move |_, mut task| async move {
            task.request().await;
            task.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n")).await;
        })
        .await;
        fixture.publish(&[web]).await;
        let mut client = fixture.connect().await;
        client.send(get("/")).await;
        let mut said = String::new();
        let _ = within(client.stream.read_to_string(&mut said)).await;
        let body = said.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(!body.ends_with("0\r\n\r\n") && body.len() < 10, "{head}: {said}");
        // To a client that takes the end of the connection for the end of the answer, it is none.
        let mut client = fixture.connect().await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let ended = within(client.stream.read_to_string(&mut said)).await;
        assert!(ended.is_err() || said.contains("content-length: 10"), "{head}: {said}");
        let mut client = fixture.http2().await;
        let response =
            within(client.send_request(request(Version::HTTP_2, Method::GET, "/", full("")))).await;
        // The reset may have overtaken the head.
        let is_whole = match response {
            Ok(response) => within(response.into_body().collect()).await.is_ok(),
            Err(_) => false,
        };
        assert!(!is_whole, "{head}: a reset");
    }
}

#[tokio::test]
async fn answers_without_bodies_keep_their_heads() {
    let fixture = Fixture::new().await;
    let web = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        while let Some(head) = task.request().await {
            let answer = match head[0].split(' ').nth(1).unwrap() {
                "/204" => "204 No Content\r\nX-A: b\r\n\r\n",
                "/304" => "304 Not Modified\r\nETag: \"x\"\r\n\r\n",
                "/long" => "200 OK\r\nContent-Length: 1000\r\n\r\n",
                "/empty" => "200 OK\r\nContent-Length: 0\r\n\r\n",
                "/early" => {
                    "103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                _ => "404 Not Found\r\nContent-Length: 0\r\n\r\n",
            };
            task.send(format!("HTTP/1.1 {answer}")).await;
        }
    })
    .await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    for (request, status, name, value) in [
        ("GET /204", 204, "x-a", Some("b")),
        ("GET /304", 304, "etag", Some("\"x\"")),
        ("HEAD /long", 200, "content-length", Some("1000")),
        ("GET /empty", 200, "content-length", Some("0")),
        ("GET /204", 204, "content-length", None),
        ("GET /early", 200, "content-length", Some("2")),
    ] {
        client.send(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let reply = if request.starts_with("HEAD") { client.head().await } else { client.reply().await };
        assert_eq!((reply.status, reply.header(name)), (status, value), "{request}");
        assert_eq!(reply.header("transfer-encoding"), None, "{request}");
    }
}

#[tokio::test]
async fn an_old_client_and_an_old_task_are_understood() {
    let fixture = Fixture::new().await;
    let web = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        task.request().await;
        task.send("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    })
    .await;
    fixture.publish(&[web]).await;
    assert_eq!(fixture.ask("GET / HTTP/1.0\r\n\r\n").await.text(), "until the end");
    let reply = fixture.ask(get("/")).await;
    assert_eq!(
        (reply.text().as_str(), reply.header("transfer-encoding")),
        ("until the end", Some("chunked"))
    );
}

#[tokio::test]
async fn a_client_that_asks_whether_to_send_is_told() {
    let fixture = Fixture::new().await;
    let (web, _) = echo(&fixture.tasks, Version::HTTP_11).await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.status, 100);
    client.send("abc").await;
    assert_eq!(client.reply().await.text(), "abc");
    let other =
        fixture.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: more\r\n\r\nabc").await;
    assert_eq!(other.status, 417);
}

#[tokio::test]
async fn tasks_are_told_who_asks_and_clients_are_not_believed() {
    let fixture = Fixture::new().await;
    let (web, seen) = numbered(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    let head = async |request: &str| {
        assert_eq!(fixture.ask(request).await.status, 200);
        seen.last.lock().take().unwrap().headers
    };
    let lies = "GET / HTTP/1.1\r\nHost: Shop.example:8080\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 1.2.3.4\r\n\
                X-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\nX-Real-Ip: 1.2.3.4\r\nX-Request-Id: mine\r\n\
                Connection: close, x-secret, host\r\nX-Secret: x\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\
                TE: gzip\r\nX-Kept: yes\r\n\r\n";
    let headers = head(lies).await;
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "Shop.example:8080");
    assert_eq!(headers["x-forwarded-port"], fixture.port.to_string());
    assert_eq!(headers["forwarded"], "for=127.0.0.1;proto=http;host=\"Shop.example:8080\"");
    assert_eq!(headers["x-request-id"].len(), 32);
    assert_eq!(
        (&headers["x-kept"], &headers["host"]),
        (&"yes".parse().unwrap(), &"Shop.example:8080".parse().unwrap())
    );
    for gone in
        ["x_forwarded_for", "x-real-ip", "x-secret", "connection", "keep-alive", "proxy-connection", "te"]
    {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    let first = headers["x-request-id"].clone();
    assert_ne!(head(&get("/")).await["x-request-id"], first);

    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let behind = Fixture::with(HttpOptions { workers: 1, trusted, ..HttpOptions::default() }).await;
    let (web, seen) = numbered(&behind.tasks, 1).await;
    behind.publish(&[web]).await;
    behind.ask(lies).await;
    let headers = seen.last.lock().take().unwrap().headers;
    assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert_eq!(
        (&headers["x-forwarded-proto"], &headers["x-request-id"]),
        (&"https".parse().unwrap(), &"mine".parse().unwrap())
    );
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_waited_costs_no_request() {
    // Each connection is good for one request, and nothing says so.
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let web = raw_task(&fixture.tasks, 1, move |_, mut task| {
        let count = Arc::clone(&count);
        async move {
            task.request().await;
            count.fetch_add(1, Ordering::SeqCst);
            task.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    for number in 1..=200 {
        // As fast as can be, so that it is still to be found out.
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.reply().await.text(), "ok");
        assert_eq!(asked.load(Ordering::SeqCst), number, "and is not asked twice");
    }
}

#[tokio::test]
async fn only_what_can_be_repeated_is_asked_again_after_it_was_sent() {
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let cuts = raw_task(&fixture.tasks, 1, move |_, mut task| {
        let count = Arc::clone(&count);
        async move {
            task.request().await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let (web, seen) = numbered(&fixture.tasks, 2).await;
    fixture.publish(&[cuts, web]).await;
    for _ in 0..4 {
        let reply = fixture.ask(get("/")).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "2"));
    }
    assert!(asked.load(Ordering::SeqCst) >= 1, "it was asked first at least once");

    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    asked.store(0, Ordering::SeqCst);
    seen.requests.store(0, Ordering::SeqCst);
    fixture.publish(&[cuts, web]).await;
    let mut refused = 0;
    for number in 1..=4 {
        let reply = fixture.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
        refused += usize::from(reply.status == 502);
        let all = asked.load(Ordering::SeqCst) + seen.requests.load(Ordering::SeqCst);
        assert_eq!(all, number, "each was asked once");
    }
    assert_eq!(refused, asked.load(Ordering::SeqCst));
    assert!(refused >= 1);
}

#[tokio::test]
async fn a_task_that_does_not_listen_costs_no_request_of_any_kind() {
    let fixture = Fixture::new().await;
    let (web, seen) = numbered(&fixture.tasks, 2).await;
    let gone = endpoint(1, free_port().await);
    fixture.publish(&[gone, web]).await;
    for number in 1..=20 {
        let reply = fixture.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "2"));
        assert_eq!(seen.requests.load(Ordering::SeqCst), number);
    }
}

#[tokio::test]
async fn a_task_from_which_nothing_is_heard_is_left_for_another_before_its_time_is_over() {
    let fixture = Fixture::new().await;
    let (web, seen) = numbered(&fixture.tasks, 2).await;
    // Somebody who takes no connections: the kernel drops what asks once as many wait as may.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    listener.listen(0).unwrap();
    let port = listener.local_addr().unwrap().as_socket_ipv4().unwrap().port();
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(("127.0.0.1", port))).await
    {
        waiting.push(stream.unwrap());
    }
    fixture
        .publish_with(&[endpoint(1, port), web], |spec| {
            spec.timeouts.connect = Some(Millis::from_secs(3600));
        })
        .await;
    for number in 1..=4 {
        let reply = fixture.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "2"));
        assert_eq!(seen.requests.load(Ordering::SeqCst), number);
    }
}

#[tokio::test]
async fn a_request_waits_for_a_task_that_comes_in_time() {
    let fixture = Fixture::with(HttpOptions { workers: 1, hold: SOON, ..HttpOptions::default() }).await;
    fixture.publish(&[]).await;
    let mut client = fixture.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(timeout(Duration::from_millis(200), client.stream.fill_buf()).await.is_err(), "it waits");
    let (web, _) = numbered(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    assert_eq!(client.reply().await.text(), "1");

    let hold = Duration::from_millis(50);
    let fixture = Fixture::with(HttpOptions { workers: 1, hold, ..HttpOptions::default() }).await;
    fixture.publish(&[]).await;
    let reply = fixture.ask(get("/")).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("No task"), "{}", reply.text());
    assert_eq!(fixture.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 503);
}

#[tokio::test]
async fn idle_connections_to_a_task_that_leaves_are_closed_at_once() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let fixture = Fixture::with(HttpOptions { pool_idle: SOON * 10, ..HttpOptions::default() }).await;
        let (web, seen) = serve(&fixture.tasks, 1, version, |_| async { Response::new(full("ok")) }).await;
        let (other, _) = numbered(&fixture.tasks, 2).await;
        let with = |spec: &mut RouteSpec| {
            if version == Version::HTTP_2 {
                spec.protocol = RouteProtocol::H2c;
            }
        };
        fixture.publish_with(&[web], with).await;
        for _ in 0..8 {
            assert_eq!(fixture.ask(get("/")).await.text(), "ok");
        }
        assert!(seen.open.load(Ordering::SeqCst) >= 1);
        fixture.publish_with(&[other], with).await;
        eventually("they are closed", async || seen.open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_when_tasks_are_replaced_and_none_begins_at_one_that_left() {
    let fixture = Arc::new(Fixture::new().await);
    let left: Arc<[AtomicBool; 40]> = Arc::new(std::array::from_fn(|_| AtomicBool::new(false)));
    let late = Arc::new(AtomicUsize::new(0));
    let mut endpoints = Vec::new();
    for number in 0..40_u8 {
        let (left, late) = (Arc::clone(&left), Arc::clone(&late));
        let answer = move |_| {
            if left[usize::from(number)].load(Ordering::SeqCst) {
                late.fetch_add(1, Ordering::SeqCst);
            }
            async move { Response::new(full("ok")) }
        };
        endpoints.push(serve(&fixture.tasks, number + 1, Version::HTTP_11, answer).await.0);
    }
    fixture.publish(&endpoints[..1]).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let (fixture, stop, asked) = (Arc::clone(&fixture), Arc::clone(&stop), Arc::clone(&asked));
            let group = fixture.tasks.clone();
            group.spawn("client", async move {
                let mut client = fixture.connect().await;
                let mut second = fixture.http2().await;
                while !stop.load(Ordering::SeqCst) {
                    if number % 2 == 0 {
                        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
                        let reply = client.reply().await;
                        assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
                    } else {
                        let request = request(Version::HTTP_2, Method::POST, "/", full("x"));
                        let response = within(second.send_request(request)).await.unwrap();
                        assert_eq!(response.status(), 200);
                        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "ok");
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let some_more = async || {
        let before = asked.load(Ordering::SeqCst);
        eventually("requests go on", async || asked.load(Ordering::SeqCst) > before + 100).await;
    };
    for number in 1..40_usize {
        fixture.publish(&endpoints[number - 1..=number]).await;
        some_more().await;
        fixture.publish(&endpoints[number..=number]).await;
        some_more().await;
        // What was under way may still arrive there; then nothing may.
        eventually("drained", async || fixture.under_way() == 0).await;
        left[number - 1].store(true, Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        within(client).await.expect("no request was lost");
    }
    println!("{} requests over 78 tables", asked.load(Ordering::SeqCst));
    assert_eq!(late.load(Ordering::SeqCst), 0, "requests that began at a task that had left");
}

#[tokio::test]
async fn a_retired_gateway_finishes_what_it_has_and_its_successor_has_the_rest() {
    let first = Fixture::new().await;
    let (web, _) = numbered(&first.tasks, 1).await;
    first.publish(&[web]).await;
    let mut idle = first.connect().await;
    idle.send(get("/")).await;
    assert_eq!(idle.reply().await.status, 200);
    let mut silent = first.connect().await;
    let mut second = first.http2().await;
    let ask = || request(Version::HTTP_2, Method::GET, "/", full(""));
    assert_eq!(within(second.send_request(ask())).await.unwrap().status(), 200);
    // All of them were accepted by the first.
    eventually("accepted", async || first.gateway.clients() == 3).await;

    let mut next = Fixture::new().await;
    next.port = first.port;
    next.gateway.adopt(first.gateway.sockets().unwrap());
    next.publish(&[web]).await;
    within(first.gateway.retire()).await;

    idle.send(get("/")).await;
    let reply = idle.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(idle.is_over().await);
    silent.send(get("/")).await;
    assert_eq!(silent.reply().await.header("connection"), Some("close"));
    eventually("told to go", async || second.ready().await.is_err()).await;
    eventually("nobody is left", async || first.gateway.clients() == 0).await;
    for _ in 0..20 {
        let reply = next.ask(get("/")).await;
        assert_eq!((reply.status, reply.header("connection")), (200, None));
    }
}

#[tokio::test]
async fn whoever_is_too_slow_is_not_waited_for() {
    let soon = Duration::from_millis(300);
    let options =
        HttpOptions { workers: 1, header_timeout: soon, keep_alive: soon * 2, ..HttpOptions::default() };
    let fixture = Fixture::with(options).await;
    let (web, _) = echo(&fixture.tasks, Version::HTTP_11).await;
    fixture.publish(&[web]).await;
    let mut silent = fixture.connect().await;
    let mut slow = fixture.connect().await;
    let mut slow_again = fixture.connect().await;
    slow_again.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(slow_again.reply().await.text(), "x");
    let dribble = async |client: &mut Raw| {
        for byte in "GET / HTTP/1.1\r\nHost: a\r\nX: ".bytes().chain(std::iter::repeat_n(b'x', 1000)) {
            if client.stream.get_mut().write_all(&[byte]).await.is_err() {
                return true;
            }
            if let Ok(Ok([])) = timeout(Duration::from_millis(20), client.stream.fill_buf()).await {
                return true;
            }
        }
        false
    };
    assert!(dribble(&mut slow).await, "a head that never ends");
    assert!(dribble(&mut slow_again).await || slow_again.is_over().await, "the second one either");
    assert!(silent.is_over().await, "nothing at all");
    eventually("gone", async || fixture.gateway.clients() == 0).await;
}

#[tokio::test]
async fn a_task_that_does_not_answer_in_time_is_given_up() {
    let fixture = Fixture::new().await;
    let web = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        let head = task.request().await.unwrap();
        if head[0].contains("/half") {
            task.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    fixture
        .publish_with(&[web], |spec| {
            spec.timeouts.request = Some(wharf_model::Millis(300));
            spec.timeouts.idle = Some(wharf_model::Millis(300));
        })
        .await;
    for _ in 0..2 {
        assert_eq!(fixture.ask(get("/")).await.status, 504);
    }
    let mut client = fixture.http2().await;
    let ask = |path| request(Version::HTTP_2, Method::GET, path, full(""));
    assert_eq!(within(client.send_request(ask("/"))).await.unwrap().status(), 504);
    let half = within(client.send_request(ask("/half"))).await.unwrap();
    assert!(within(half.into_body().collect()).await.is_err());
    let mut client = fixture.connect().await;
    client.send(get("/half")).await;
    assert_eq!(client.head().await.status, 200);
    let mut rest = Vec::new();
    let _ = within(client.stream.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"abc");
}

#[tokio::test]
async fn what_the_task_says_is_passed_on_in_one_way_or_not() {
    let fixture = Fixture::new().await;
    let web = raw_task(&fixture.tasks, 1, |_, mut task| async move {
        let head = task.request().await.unwrap();
        let answer = match head[0].split(' ').nth(1).unwrap() {
            "/lengths" => "200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
            "/same" => "200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "/both" => {
                "200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            }
            "/coding" => "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "/hops" => {
                "200 OK\r\nConnection: x-a\r\nX-A: b\r\nKeep-Alive: timeout=9\r\nContent-Length: 2\r\n\r\nok"
            }
            "/upgrade" => "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            _ => "nonsense",
        };
        task.send(format!("HTTP/1.1 {answer}")).await;
    })
    .await;
    fixture.publish(&[web]).await;
    for (path, status) in [
        ("/lengths", 502),
        ("/same", 200),
        ("/both", 200),
        ("/coding", 502),
        ("/hops", 200),
        ("/upgrade", 502),
        ("/x", 502),
    ] {
        let reply = fixture.ask(get(path)).await;
        assert_eq!(reply.status, status, "{path}");
        if status == 200 {
            assert_eq!(reply.text(), "ok", "{path}");
            assert!(!reply.headers.contains_key("x-a") && !reply.headers.contains_key("keep-alive"));
        }
    }
}

#[tokio::test]
async fn what_is_under_way_goes_on_after_its_task_left_and_is_counted() {
    let fixture = Fixture::new().await;
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go);
    let answer = move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Response::new(full("late"))
        }
    };
    let (web, _) = serve(&fixture.tasks, 1, Version::HTTP_11, answer).await;
    fixture.publish(&[web]).await;
    let mut client = fixture.connect().await;
    client.send(get("/")).await;
    let counted = async || {
        fixture
            .gateway
            .stats()
            .routes
            .iter()
            .any(|route| route.stats.sets.values().any(|set| set.active == 1))
    };
    eventually("under way", counted).await;
    fixture.publish(&[]).await;
    assert_eq!(fixture.gateway.draining(), BTreeMap::from([(web.task, 1)]));
    let mut changes = fixture.gateway.changes();
    changes.mark_unchanged();
    go.notify_one();
    assert_eq!(client.reply().await.text(), "late");
    within(async {
        while !fixture.gateway.draining().is_empty() {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_leave_leave_nothing_behind() {
    let fixture = Fixture::new().await;
    let (web, seen) = serve(&fixture.tasks, 1, Version::HTTP_11, |_| async {
        let frames =
            stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 10_000])))).then(|frame| async {
                tokio::task::yield_now().await;
                frame
            });
        Response::new(streamed(frames))
    })
    .await;
    fixture.publish(&[web]).await;
    for _ in 0..20 {
        let mut client = fixture.connect().await;
        client.send(get("/")).await;
        assert_eq!(client.head().await.status, 200);
    }
    let mut client = fixture.http2().await;
    for _ in 0..20 {
        let response = client.send_request(request(Version::HTTP_2, Method::GET, "/", full("")));
        drop(within(response).await.unwrap());
    }
    fixture.publish(&[]).await;
    eventually("nothing is under way", async || fixture.under_way() == 0).await;
    eventually("the task is let go", async || seen.open.load(Ordering::SeqCst) == 0).await;
    drop(client);
    eventually("nobody is counted", async || fixture.gateway.clients() == 0).await;
}

#[tokio::test]
async fn a_service_that_looks_on_gets_copies_and_delays_nobody() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let fixture = Fixture::new().await;
        let (web, _) = echo(&fixture.tasks, version).await;
        let (send, mut copies) = mpsc::channel(100);
        let answer = move |request: Request<Incoming>| {
            let send = send.clone();
            async move {
                let path = request.uri().path().to_owned();
                let told = request.headers()["x-forwarded-for"].to_str().unwrap().to_owned();
                let body = request.into_body().collect().await.map(|body| body.to_bytes().len());
                send.send((path, told, body.unwrap())).await.unwrap();
                // An answer that never comes.
                std::future::pending().await
            }
        };
        let (onlooker, _) = serve(&fixture.tasks, 2, version, answer).await;
        let mut route = fixture.route(&[web]);
        route.spec.mirror = Some(
            serde_json::from_value(serde_json::json!({ "service": "next", "port": 80, "percent": 100 }))
                .unwrap(),
        );
        route.mirror = vec![onlooker];
        if version == Version::HTTP_2 {
            route.spec.protocol = RouteProtocol::H2c;
        }
        fixture.apply(vec![route]).await;
        let of = |path: &str, length: usize| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}",
                "x".repeat(length)
            )
        };
        for (path, length) in [("/none", 0), ("/long", 200_000), ("/short", 10), ("/too-long", 1 << 20)] {
            let reply = fixture.ask(of(path, length)).await;
            assert_eq!((reply.status, reply.body.len()), (200, length));
        }
        let reply = fixture.ask("POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
        assert_eq!(reply.text(), "abc");
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(within(copies.recv()).await.unwrap());
        }
        seen.sort();
        let copy = |path: &str, length| (path.to_owned(), "127.0.0.1".to_owned(), length);
        assert_eq!(seen, [copy("/chunked", 3), copy("/long", 200_000), copy("/none", 0), copy("/short", 10)]);
        // Who looks on is under way with something as well.
        fixture.publish(&[web]).await;
        assert_eq!(fixture.gateway.draining(), BTreeMap::from([(onlooker.task, 4)]));
    }
}

/// So many lines of a log, once they are there.
async fn written(log: &AccessLog, path: &Path, count: usize) -> Vec<serde_json::Value> {
    let lines = async || {
        let stop = tokio_util::sync::CancellationToken::new();
        stop.cancel();
        log.run(stop).await;
        std::fs::read_to_string(path).unwrap_or_default()
    };
    eventually("all are written", async || lines().await.lines().count() == count).await;
    lines().await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn each_request_has_a_line_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (fixture, log) = Fixture::logging(&path).await;
    let (web, seen) = echo(&fixture.tasks, Version::HTTP_11).await;
    fixture.publish(&[web]).await;
    fixture.ask("POST /a?secret HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\n\r\nabc").await;
    let id = seen.last.lock().take().unwrap().headers["x-request-id"].to_str().unwrap().to_owned();
    let large = request(Version::HTTP_2, Method::PUT, "/large", full(vec![0; 300_000]));
    let response = within(fixture.http2().await.send_request(large)).await.unwrap();
    assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes().len(), 300_000);
    assert_eq!(fixture.ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await.status, 400);
    fixture.publish(&[]).await;
    assert_eq!(fixture.ask(get("/none")).await.status, 503);
    let all = written(&log, &path, 4).await;
    assert!(!std::fs::read_to_string(&path).unwrap().contains("secret"), "{all:?}");
    let line = |path: &str, status: u16| {
        all.iter().find(|line| line["path"] == path && line["status"] == status).unwrap()
    };
    let first = line("/a", 200);
    assert_eq!(
        (&first["method"], &first["host"], &first["protocol"]),
        (&"POST".into(), &"shop.example".into(), &"http/1.1".into())
    );
    assert_eq!(
        (&first["received"], &first["sent"], &first["request_id"]),
        (&3.into(), &3.into(), &id.into())
    );
    assert_eq!(
        (&first["route"], &first["endpoint"]),
        (&"prod/shop/web#1".into(), &web.address.to_string().into())
    );
    assert!(first["head_us"].as_u64() <= first["took_us"].as_u64() && first.get("why").is_none(), "{first}");
    let second = line("/large", 200);
    assert_eq!(
        (&second["received"], &second["sent"], &second["protocol"]),
        (&300_000.into(), &300_000.into(), &"http/2".into())
    );
    assert_eq!(line("/", 400)["why"], "malformed");
    let none = line("/none", 503);
    assert_eq!((&none["why"], &none["route"]), (&"no_endpoint".into(), &"prod/shop/web#1".into()));
}

#[tokio::test]
async fn a_short_body_is_sent_again_with_its_request_where_that_may_be() {
    // Over HTTP/1.1 what can be repeated; over HTTP/2 also what the task says it has not looked at.
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let cuts = raw_task(&fixture.tasks, 1, move |_, mut task| {
        let count = Arc::clone(&count);
        async move {
            task.request().await;
            let mut body = [0; 5];
            task.stream.read_exact(&mut body).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let (web, _) = echo(&fixture.tasks, Version::HTTP_11).await;
    fixture.publish(&[cuts, web]).await;
    for _ in 0..4 {
        let reply = fixture.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "whole"));
    }
    assert!(asked.load(Ordering::SeqCst) >= 1, "it was asked first at least once");

    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let busy = endpoint(3, listener.local_addr().unwrap().port());
    fixture.tasks.spawn("task", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut body: h2::RecvStream = request.into_body();
            count.fetch_add(1, Ordering::SeqCst);
            // Not before all of it was sent.
            while !body.is_end_stream() {
                let read = std::future::poll_fn(|cx| {
                    let _ = connection.poll_closed(cx);
                    body.poll_data(cx)
                });
                let _ = read.await;
            }
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    });
    let (web, _) = echo(&fixture.tasks, Version::HTTP_2).await;
    fixture.publish_with(&[busy, web], |spec| spec.protocol = RouteProtocol::H2c).await;
    for _ in 0..4 {
        let reply = fixture.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "whole"));
    }
    assert!(refused.load(Ordering::SeqCst) >= 1, "it was asked first at least once");
}

/// A task that takes requests and never answers, and how many it has taken.
async fn silent(tasks: &Tasks, number: u8) -> (Endpoint, watch::Receiver<usize>) {
    let (taken, requests) = watch::channel(0);
    let taken = Arc::new(taken);
    let endpoint = raw_task(tasks, number, move |_, mut task| {
        let taken = Arc::clone(&taken);
        async move {
            while task.request().await.is_some() {
                taken.send_modify(|taken| *taken += 1);
            }
        }
    });
    (endpoint.await, requests)
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_task_whose_node_does_not_answer() {
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let (dead, mut requests) = silent(&fixture.tasks, 1).await;
    let (alive, seen) = numbered(&fixture.tasks, 2).await;
    fixture.publish(&[dead]).await;
    let (mut reading, mut writing) = (fixture.connect().await, fixture.connect().await);
    let mut streams = fixture.http2().await;
    reading.send("GET /read HTTP/1.1\r\nHost: a\r\n\r\n").await;
    writing.send("POST /write HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    let streamed = fixture
        .tasks
        .spawn("stream", streams.send_request(request(Version::HTTP_2, Method::GET, "/streamed", full(""))));
    within(requests.wait_for(|requests| *requests == 3)).await.unwrap();

    // One that only leaves has its time.
    fixture.publish(&[alive]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((fixture.under_way(), seen.last.lock().is_none()), (3, true));

    // Its node is not heard: what may be asked twice is asked of another, and what may not goes on waiting.
    fixture.apply_without(vec![fixture.route(&[alive])], &[dead]).await;
    assert_eq!(reading.reply().await.status, 200);
    assert_eq!(within(streamed).await.unwrap().unwrap().status(), 200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fixture.under_way(), 1, "the one that writes");
    assert!(within(async { seen.last.lock().take() }).await.unwrap().headers.contains_key("x-forwarded-for"));
    let written = tokio::time::timeout(Duration::from_millis(300), writing.reply()).await;
    assert!(written.is_err(), "nobody knows what became of it");
}

#[tokio::test]
async fn nor_for_one_that_is_spoken_to_over_http2() {
    let fixture = Fixture::with(HttpOptions { workers: 1, ..HttpOptions::default() }).await;
    let (dead, seen) = serve(&fixture.tasks, 1, Version::HTTP_2, |_| std::future::pending()).await;
    let alive = serve(&fixture.tasks, 2, Version::HTTP_2, |_| async { Response::new(full("2")) }).await.0;
    let route = |endpoint| {
        let mut route = fixture.route(&[endpoint]);
        route.spec.protocol = RouteProtocol::H2c;
        vec![route]
    };
    fixture.apply(route(dead)).await;
    let (mut reading, mut writing) = (fixture.connect().await, fixture.connect().await);
    reading.send(get("/read")).await;
    writing.send("POST /write HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    eventually("both are asked", async || seen.requests.load(Ordering::SeqCst) == 2).await;
    fixture.apply_without(route(alive), &[dead]).await;
    assert_eq!(reading.reply().await.text(), "2");
    let written = tokio::time::timeout(Duration::from_millis(300), writing.reply()).await;
    assert!(written.is_err(), "nobody knows what became of it");
    fixture.apply_given_up(route(alive), &[dead], &[dead]).await;
    assert_eq!(writing.reply().await.status, 502);
    eventually("nothing is under way", async || fixture.under_way() == 0).await;
}

/// A task that begins what it is asked and never comes to the end of it, and how much it was asked.
async fn begins(tasks: &Tasks, number: u8) -> (Endpoint, watch::Receiver<usize>) {
    let (taken, requests) = watch::channel(0);
    let taken = Arc::new(taken);
    let endpoint = raw_task(tasks, number, move |_, mut task| {
        let taken = Arc::clone(&taken);
        async move {
            while let Some(head) = task.request().await {
                taken.send_modify(|taken| *taken += 1);
                if head[0].contains("/download") {
                    task.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
                } else if head[0].contains("/chat") {
                    task.send(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
                    )
                    .await;
                    let (mut read, mut write) = task.stream.get_mut().split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
            }
        }
    });
    (endpoint.await, requests)
}

#[tokio::test]
async fn what_is_under_way_with_a_task_ends_when_it_is_gone_with_its_node_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (fixture, log) = Fixture::logging(&path).await;
    let (dead, mut asked) = begins(&fixture.tasks, 1).await;
    let (leaving, mut asked_later) = begins(&fixture.tasks, 2).await;
    let (alive, _) = numbered(&fixture.tasks, 3).await;
    let say = async |chat: &mut Raw| {
        chat.send("x").await;
        within(chat.stream.read_u8()).await
    };
    let chat = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";

    fixture.publish(&[leaving]).await;
    let (mut other_chat, mut other_download) = (fixture.connect().await, fixture.connect().await);
    other_chat.send(chat).await;
    assert_eq!(other_chat.head().await.status, 101);
    other_download.send(get("/download")).await;
    assert_eq!(other_download.head().await.status, 200);
    within(asked_later.wait_for(|asked| *asked == 2)).await.unwrap();

    fixture.publish(&[dead]).await;
    let [mut reading, mut writing, mut sending, mut chatting, mut loading] = [
        fixture.connect().await,
        fixture.connect().await,
        fixture.connect().await,
        fixture.connect().await,
        fixture.connect().await,
    ];
    reading.send("GET /read HTTP/1.1\r\nHost: a\r\n\r\n").await;
    writing.send("POST /write HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // Not all of it is there.
    sending.send("PUT /send HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await;
    chatting.send(chat).await;
    assert_eq!(chatting.head().await.status, 101);
    loading.send(get("/download")).await;
    assert_eq!(loading.head().await.status, 200);
    let mut http2 = fixture.http2().await;
    let streamed = request(Version::HTTP_2, Method::GET, "/download", full(""));
    let streamed = within(http2.send_request(streamed)).await.unwrap();
    let posted = http2.send_request(request(Version::HTTP_2, Method::POST, "/post", full("ab")));
    let posted = fixture.tasks.spawn("stream", posted);
    within(asked.wait_for(|asked| *asked >= 7)).await.unwrap();

    // Its node is missed: who waits for it has been woken, and nothing else has ended.
    fixture.apply_without(vec![fixture.route(&[alive])], &[dead]).await;
    assert_eq!(reading.reply().await.text(), "3");
    assert_eq!((fixture.under_way(), say(&mut chatting).await.unwrap()), (8, b'x'));

    // It does not come back.
    fixture.apply_given_up(vec![fixture.route(&[alive])], &[dead], &[dead]).await;
    for client in [&mut writing, &mut sending] {
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.text().contains("gone")), (502, true), "{reply:?}");
    }
    assert_eq!(within(posted).await.unwrap().unwrap().status(), 502);
    let said = within(chatting.stream.read_u8()).await;
    assert_eq!(said.expect_err("it is reset").kind(), io::ErrorKind::ConnectionReset);
    let mut said = String::new();
    let _ = within(loading.stream.read_to_string(&mut said)).await;
    assert_eq!(said, "3\r\nabc\r\n", "it is not taken for the whole");
    assert!(within(streamed.into_body().collect()).await.is_err());
    eventually("nothing is left", async || !fixture.gateway.draining().contains_key(&dead.task)).await;

    // What only leaves has its time.
    assert_eq!(say(&mut other_chat).await.unwrap(), b'x');
    assert_eq!(fixture.gateway.draining(), [(leaving.task, 2)].into());
    assert_eq!(fixture.gateway.stats().routes[0].stats.refused["unheard"], 3);
    let lines = written(&log, &path, 7).await;
    let why = |path: &str| {
        let line = lines.iter().find(|line| line["path"] == path).unwrap();
        (line["status"].as_u64().unwrap(), line["why"].clone())
    };
    assert_eq!(
        [why("/write"), why("/send"), why("/post")],
        [502; 3].map(|status| (status, "unheard".into()))
    );
    assert_eq!([why("/download"), why("/chat")], [(200, "unheard".into()), (101, "unheard".into())]);
}

#[tokio::test]
async fn a_connection_that_nobody_looks_into_ends_when_its_task_is_gone_with_its_node() {
    let fixture = Fixture::new().await;
    let (dead, _) = begins(&fixture.tasks, 1).await;
    let (leaving, _) = begins(&fixture.tasks, 2).await;
    let bytes = |endpoints: &[Endpoint]| {
        let mut route = fixture.route(endpoints);
        route.spec.protocol = RouteProtocol::Tcp;
        vec![route]
    };
    let connect = async |endpoint| {
        fixture.apply(bytes(&[endpoint])).await;
        let mut client = fixture.connect().await;
        client.send(get("/chat")).await;
        assert_eq!(client.head().await.status, 101);
        client
    };
    let (mut goes_on, mut ends) = (connect(leaving).await, connect(dead).await);
    fixture.apply_without(bytes(&[]), &[dead]).await;
    for client in [&mut goes_on, &mut ends] {
        client.send("x").await;
        assert_eq!(within(client.stream.read_u8()).await.unwrap(), b'x');
    }
    fixture.apply_given_up(bytes(&[]), &[dead], &[dead]).await;
    let said = within(ends.stream.read_u8()).await;
    assert_eq!(said.expect_err("it is reset").kind(), io::ErrorKind::ConnectionReset);
    goes_on.send("x").await;
    assert_eq!(within(goes_on.stream.read_u8()).await.unwrap(), b'x');
}
