//! What protects services, over loopback: each setting of a route between clients and tasks of the test's own.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, timeout},
};
use wharf_gateway::{AccessLog, Gateway, GatewayOptions, HttpOptions};
use wharf_model::{
    Endpoint, EndpointSet, EndpointState, EndpointStats, Generation, Revision, RouteId, RouteStats,
    RouteTable, ServiceRoute, TaskId, Users,
};
use wharf_process::{Shutdown, Task, Tasks};

const SOON: Duration = Duration::from_secs(30);

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

// --- the gateway ---

struct Fixture {
    gateway: Gateway,
    tasks: Tasks,
    port: u16,
    version: AtomicU64,
}

impl Fixture {
    async fn new() -> Self {
        Self::behind(&[]).await
    }

    /// One that believes these proxies.
    async fn behind(proxies: &[&str]) -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        let trusted = proxies.iter().map(|proxy| proxy.parse().unwrap()).collect();
        let hold = Duration::from_millis(100);
        let requests = HttpOptions { workers: 2, hold, trusted, ..HttpOptions::default() };
        let gateway = Gateway::with(GatewayOptions::default(), requests, &tasks, AccessLog::new(None));
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        Self { gateway, tasks, port, version: AtomicU64::new(0) }
    }

    /// A route of this service with what the settings say, and these tasks.
    fn route(&self, service: &str, mut settings: Value, tasks: &[&Server]) -> ServiceRoute {
        settings["port"] = 80.into();
        settings["listen"] = self.port.into();
        let service = json!({"app": {"environment": "prod", "name": "shop"}, "name": service});
        ServiceRoute {
            id: RouteId { service: serde_json::from_value(service).unwrap(), number: 0, preview: false },
            spec: serde_json::from_value(settings).unwrap(),
            sets: vec![set(1, 1, tasks)],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: Users::default(),
        }
    }

    async fn apply(&self, services: Vec<ServiceRoute>) {
        let version = Revision(self.version.fetch_add(1, SeqCst) + 1);
        within(self.gateway.apply(&RouteTable { version, services, ..RouteTable::default() })).await;
        assert_eq!(self.gateway.problems(), [""; 0]);
    }

    async fn publish(&self, settings: Value, tasks: &[&Server]) {
        self.apply(vec![self.route("web", settings, tasks)]).await;
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))).await.unwrap();
        within(stream.write_all(request.as_bytes())).await.unwrap();
        stream
    }

    /// A request over HTTP/2, which is taken back when this is dropped.
    async fn begin_http2(&self) -> Task<()> {
        let stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))).await.unwrap();
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut client, connection) = within(builder.handshake(TokioIo::new(stream))).await.unwrap();
        self.tasks.spawn("client", connection);
        let request = Request::get("http://shop.example/").body(Full::<Bytes>::default()).unwrap();
        self.tasks.spawn("request", async move { drop(client.send_request(request).await) })
    }

    /// A request with these lines of its head, besides those that every request has.
    async fn ask(&self, line: &str, headers: &[&str]) -> Reply {
        self.ask_with(line, headers, "").await
    }

    async fn ask_with(&self, line: &str, headers: &[&str], body: &str) -> Reply {
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let request = format!(
            "{line} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{length}{headers}\r\n{body}"
        );
        Reply::read(self.send(&request).await).await
    }

    async fn get(&self) -> Reply {
        self.ask("GET /", &[]).await
    }

    fn stats(&self) -> RouteStats {
        self.gateway.stats().routes.remove(0).stats
    }

    /// Waits until so many requests wait their turn.
    async fn queued(&self, count: u64) {
        eventually(&format!("{count} wait"), async || self.stats().queued == count).await;
    }

    fn state(&self, task: &Server) -> EndpointStats {
        self.stats().endpoints.into_iter().find(|it| it.endpoint == task.endpoint.address).unwrap()
    }
}

fn set(generation: u64, weight: u32, tasks: &[&Server]) -> EndpointSet {
    let endpoints = tasks.iter().map(|task| task.endpoint).collect();
    EndpointSet { generation: Generation(generation), weight, endpoints }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        within(stream.read_to_end(&mut bytes)).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let headers = headers.lines().filter_map(|line| line.split_once(": "));
        Self {
            status: first.split(' ').nth(1).unwrap().parse().unwrap(),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn is(&self, status: u16, body: &str) -> bool {
        (self.status, self.body.as_str()) == (status, body)
    }
}

// --- tasks ---

/// A task that answers its number, or fails when it is told to.
struct Server {
    number: u8,
    endpoint: Endpoint,
    /// 0: it breaks connections off.
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Bytes>>>,
    /// While there is one, each answer waits for a permit.
    gate: Arc<Mutex<Option<Arc<Notify>>>>,
    listener: Option<Task<()>>,
}

impl Server {
    async fn new(fixture: &Fixture, number: u8) -> Self {
        let mut server = Self {
            number,
            endpoint: Endpoint::new(
                TaskId::from_parts(1, [number; 10]),
                SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            ),
            status: Arc::new(AtomicU16::new(200)),
            requests: Arc::default(),
            bodies: Arc::default(),
            gate: Arc::default(),
            listener: None,
        };
        server.start(fixture).await;
        server
    }

    /// Listens, at the same port if it did before.
    async fn start(&mut self, fixture: &Fixture) {
        let listener = TcpListener::bind(self.endpoint.address).await.unwrap();
        self.endpoint.address.set_port(listener.local_addr().unwrap().port());
        let (number, group) = (self.number, fixture.tasks.clone());
        let (status, requests) = (Arc::clone(&self.status), Arc::clone(&self.requests));
        let (bodies, gate) = (Arc::clone(&self.bodies), Arc::clone(&self.gate));
        self.listener = Some(fixture.tasks.spawn("task", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (status, requests) = (Arc::clone(&status), Arc::clone(&requests));
                let (bodies, gate) = (Arc::clone(&bodies), Arc::clone(&gate));
                group.spawn("task connection", async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let (status, bodies, gate) = (&status, &bodies, &gate);
                        requests.fetch_add(1, SeqCst);
                        async move {
                            let body = request.into_body().collect().await.map(|body| body.to_bytes());
                            bodies.lock().push(body.unwrap_or_default());
                            let waits = gate.lock().clone();
                            if let Some(gate) = waits {
                                gate.notified().await;
                            }
                            let Ok(status) = StatusCode::from_u16(status.load(SeqCst)) else {
                                return Err(std::io::Error::other("it breaks off"));
                            };
                            let mut response = Response::new(Full::<Bytes>::from(number.to_string()));
                            *response.status_mut() = status;
                            Ok(response)
                        }
                    });
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
    }

    /// Takes no connections any more.
    async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            eventually("it does not listen", async || {
                TcpStream::connect(self.endpoint.address).await.is_err()
            })
            .await;
        }
    }

    fn set(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    fn close_gate(&self) -> Arc<Notify> {
        Arc::clone(self.gate.lock().insert(Arc::default()))
    }

    fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

async fn servers<const COUNT: usize>(fixture: &Fixture) -> [Server; COUNT] {
    let mut servers = Vec::new();
    for number in 1..=COUNT {
        servers.push(Server::new(fixture, u8::try_from(number).unwrap()).await);
    }
    servers.try_into().ok().unwrap()
}

/// How often each answer came.
async fn answers(fixture: &Fixture, count: usize) -> BTreeMap<(u16, String), usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let reply = fixture.get().await;
        *answers.entry((reply.status, reply.body)).or_default() += 1;
    }
    answers
}

// --- what is promised ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_fails_gets_no_requests_and_comes_back_when_it_is_well() {
    let fixture = Fixture::new().await;
    let [bad, well, other] = servers(&fixture).await;
    let settings =
        json!({"balance": "round-robin", "breaker": {"failures": 3, "open": 300, "most_percent": 50}});
    fixture.publish(settings, &[&bad, &well, &other]).await;
    bad.set(503);
    let seen = answers(&fixture, 60).await;
    let failed: usize = seen.iter().filter(|((status, _), _)| *status == 503).map(|(_, count)| count).sum();
    // Three in a row, and one more each time that it is tried.
    assert!(failed >= 3 && bad.requests() == failed, "{seen:?}");
    let state = fixture.state(&bad);
    assert!(matches!(state.state, EndpointState::Open | EndpointState::HalfOpen), "{state:?}");
    assert!(state.why.contains("it answered 503"), "{}", state.why);
    assert_eq!((state.requests, state.failures), (failed as u64, failed as u64));
    bad.set(200);
    eventually("it is tried, and serves again", async || {
        let reply = fixture.get().await;
        assert_eq!(reply.status, 200);
        reply.body == "1"
    })
    .await;
    assert_eq!(fixture.state(&bad).state, EndpointState::Serving);
    assert_eq!(answers(&fixture, 9).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_takes_no_connections_costs_nothing_and_is_probed_until_it_does() {
    let fixture = Fixture::new().await;
    let [mut gone, well] = servers(&fixture).await;
    gone.stop().await;
    let settings =
        json!({"balance": "round-robin", "breaker": {"failures": 2, "open": 100, "most_percent": 50}});
    fixture.publish(settings, &[&gone, &well]).await;
    eventually("its breaker opens", async || {
        assert!(fixture.get().await.is(200, "2"), "no client sees it");
        fixture.state(&gone).state == EndpointState::Open
    })
    .await;
    assert!(fixture.state(&gone).why.contains("it took no connection"), "{:?}", fixture.state(&gone));
    gone.start(&fixture).await;
    eventually("it serves again", async || {
        let reply = fixture.get().await;
        assert_eq!(reply.status, 200);
        reply.body == "1"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_task_is_asked_whatever_it_answers() {
    let fixture = Fixture::new().await;
    let [only] = servers(&fixture).await;
    fixture.publish(json!({"breaker": {"failures": 1, "open": 60_000, "most_percent": 100}}), &[&only]).await;
    only.set(503);
    assert_eq!(answers(&fixture, 10).await, BTreeMap::from([((503, "1".to_owned()), 10)]));
    only.set(200);
    assert!(fixture.get().await.is(200, "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_tasks_fail_the_fallback_answers_at_once() {
    let fixture = Fixture::new().await;
    let [first, second, spare] = servers(&fixture).await;
    let answer = json!({
        "breaker": {"failures": 2, "open": 60_000, "most_percent": 50},
        "fallback": {"kind": "answer", "status": 200, "body": "soon back", "content_type": "text/html"},
    });
    fixture.publish(answer, &[&first, &second]).await;
    first.set(503);
    second.set(503);
    eventually("both are open", async || fixture.get().await.is(200, "soon back")).await;
    let before = first.requests() + second.requests();
    assert_eq!(answers(&fixture, 20).await, BTreeMap::from([((200, "soon back".to_owned()), 20)]));
    assert_eq!(first.requests() + second.requests(), before, "nobody waits for what fails");
    assert_eq!(fixture.get().await.header("content-type"), "text/html");
    assert!(fixture.stats().fallbacks >= 22);
    // Another service: while there are no tasks as well.
    let mut route =
        fixture.route("web", json!({"fallback": {"kind": "service", "service": "spare", "port": 80}}), &[]);
    route.fallback = vec![spare.endpoint];
    fixture.apply(vec![route]).await;
    assert!(fixture.get().await.is(200, "3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_ask_as_often_as_they_may() {
    let fixture = Fixture::new().await;
    let [web] = servers(&fixture).await;
    let settings =
        json!({"rate_limit": {"requests": 2, "per": 3_600_000, "burst": 2, "by": {"header": "x-key"}}});
    fixture.publish(settings.clone(), &[&web]).await;
    for _ in 0..2 {
        assert_eq!(fixture.ask("GET /", &["X-Key: a"]).await.status, 200);
    }
    let refused = fixture.ask("GET /", &["X-Key: a"]).await;
    assert_eq!((refused.status, refused.header("ratelimit-limit")), (429, "2"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");
    assert_eq!(fixture.ask("GET /", &["X-Key: b"]).await.status, 200);
    assert_eq!(fixture.ask("GET /", &[]).await.status, 200, "by its address");
    // A new table forgives nobody.
    fixture.publish(settings, &[]).await;
    assert_eq!(fixture.ask("GET /", &["X-Key: a"]).await.status, 429);
    assert_eq!((web.requests(), fixture.stats().refused["rate_limited"]), (4, 2));
}

/// A request after which the connection is closed.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_has_as_many_requests_as_it_may_and_others_wait_their_turn() {
    let fixture = Fixture::new().await;
    let [web] = servers(&fixture).await;
    fixture.publish(json!({"concurrency": {"requests": 1, "queue": 2, "wait": 60_000}}), &[&web]).await;
    let gate = web.close_gate();
    let queued = |count| fixture.queued(count);
    let first = fixture.send(&get("/1")).await;
    eventually("it is asked", async || web.requests() == 1).await;
    let second = fixture.begin_http2().await;
    queued(1).await;
    let third = fixture.send(&get("/3")).await;
    queued(2).await;
    let refused = fixture.get().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert_eq!(fixture.stats().refused["queue_full"], 1);
    // Who takes its request back has left.
    second.abort();
    queued(1).await;
    gate.notify_one();
    assert!(Reply::read(first).await.is(200, "1"));
    eventually("the next is asked", async || web.requests() == 2).await;
    assert_eq!(fixture.stats().queued, 0);
    gate.notify_one();
    assert!(Reply::read(third).await.is(200, "1"));
    // Nobody waits for longer than it may.
    fixture.publish(json!({"concurrency": {"requests": 1, "queue": 2, "wait": 50}}), &[&web]).await;
    let held = fixture.send(&get("/")).await;
    eventually("it is asked", async || web.requests() == 3).await;
    assert!(fixture.get().await.body.contains("no room in the time"));
    assert_eq!(fixture.stats().refused["queue_timeout"], 1);
    gate.notify_one();
    assert!(Reply::read(held).await.is(200, "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resets_its_connection_has_left_the_queue_and_who_is_done_with_sending_has_not() {
    let fixture = Fixture::new().await;
    let [web] = servers(&fixture).await;
    fixture.publish(json!({"concurrency": {"requests": 1, "queue": 2, "wait": 60_000}}), &[&web]).await;
    let gate = web.close_gate();
    let queued = |count| fixture.queued(count);
    let reset = |stream: TcpStream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    let first = fixture.send(&get("/1")).await;
    eventually("it is asked", async || web.requests() == 1).await;
    let second = fixture.send(&get("/2")).await;
    queued(1).await;
    let mut third = fixture.send(&get("/3")).await;
    queued(2).await;
    reset(second);
    queued(1).await;
    within(third.shutdown()).await.unwrap();
    // Of one that was done with sending it is known at the latest when its turn comes.
    let mut fourth = fixture.send(&get("/4")).await;
    queued(2).await;
    within(fourth.shutdown()).await.unwrap();
    assert_eq!(fixture.get().await.status, 503, "both have their places");
    reset(fourth);
    gate.notify_one();
    assert!(Reply::read(first).await.is(200, "1"));
    eventually("the next is asked", async || web.requests() == 2).await;
    gate.notify_one();
    assert!(Reply::read(third).await.is(200, "1"));
    queued(0).await;
    gate.notify_one();
    assert!(fixture.get().await.is(200, "1"));
    assert_eq!(web.requests(), 3, "nothing was asked for those who are gone");

    // The same for one that is the first, and has its turn as soon as there is room.
    fixture.publish(json!({"concurrency": {"requests": 1, "queue": 1, "wait": 60_000}}), &[&web]).await;
    let held = fixture.send(&get("/5")).await;
    eventually("it is asked", async || web.requests() == 4).await;
    let mut alone = fixture.send(&get("/6")).await;
    queued(1).await;
    within(alone.shutdown()).await.unwrap();
    for _ in 0..8 {
        assert_eq!(fixture.get().await.status, 503, "it has its place");
    }
    reset(alone);
    gate.notify_one();
    assert!(Reply::read(held).await.is(200, "1"));
    queued(0).await;
    gate.notify_one();
    assert!(fixture.get().await.is(200, "1"));
    assert_eq!(web.requests(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_knows_a_password_passes() {
    let fixture = Fixture::new().await;
    let [web] = servers(&fixture).await;
    let mut route =
        fixture.route("web", json!({"basic_auth": {"secret": "users", "realm": "staff"}}), &[&web]);
    // `password`, as `htpasswd -nbB -C 5` writes it.
    let line = "carol:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe";
    route.users = Users(vec![line.to_owned()]);
    fixture.apply(vec![route]).await;
    let refused = fixture.get().await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Basic realm=\"staff\", charset=\"UTF-8\"")
    );
    for _ in 0..3 {
        // carol:password, carol:Password, erin:password
        assert_eq!(fixture.ask("GET /", &["Authorization: Basic Y2Fyb2w6cGFzc3dvcmQ="]).await.status, 200);
        assert_eq!(fixture.ask("GET /", &["Authorization: Basic Y2Fyb2w6UGFzc3dvcmQ="]).await.status, 401);
        assert_eq!(fixture.ask("GET /", &["Authorization: Basic ZXJpbjpwYXNzd29yZA=="]).await.status, 401);
    }
    assert_eq!((web.requests(), fixture.stats().refused["unauthorised"]), (3, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_denied_stay_out() {
    let fixture = Fixture::new().await;
    let [web] = servers(&fixture).await;
    for (settings, status) in [
        (json!({"deny": ["127.0.0.0/8"]}), 403),
        (json!({"allow": ["192.0.2.0/24"]}), 403),
        (json!({"allow": ["127.0.0.1/32"]}), 200),
        (json!({"allow": ["127.0.0.0/8"], "deny": ["127.0.0.1/32"]}), 403),
    ] {
        fixture.publish(settings, &[&web]).await;
        // What a client says of itself is not believed.
        let reply = fixture.ask("GET /", &["X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1"]).await;
        assert_eq!(reply.status, status);
    }
    assert_eq!((web.requests(), fixture.stats().refused["denied"]), (1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_the_client_is_whom_it_asks_for() {
    let fixture = Fixture::behind(&["127.0.0.0/8", "10.0.0.0/8"]).await;
    let [web] = servers(&fixture).await;
    fixture.publish(json!({"allow": ["192.0.2.0/24", "2001:db8::/32"]}), &[&web]).await;
    for (said, status) in [
        ("X-Forwarded-For: 192.0.2.1", 200),
        ("X-Forwarded-For: 198.51.100.1", 403),
        // What stands left of the last one that is no such proxy may be anybody's invention.
        ("X-Forwarded-For: 192.0.2.1, 198.51.100.1", 403),
        ("X-Forwarded-For: 198.51.100.1, 192.0.2.1, 10.1.2.3", 200),
        ("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 192.0.2.1", 200),
        ("X-Forwarded-For: 192.0.2.1:4711", 200),
        ("X-Forwarded-For: [2001:db8::1]:4711", 200),
        ("X-Forwarded-For: ::ffff:192.0.2.1", 200),
        ("X-Forwarded-For: 192.0.2.1, unknown", 403),
        ("X-Kept: nothing", 403),
    ] {
        assert_eq!(fixture.ask("GET /", &[said]).await.status, status, "{said}");
    }
    // By whom it asks for requests are counted, too.
    fixture
        .publish(json!({"rate_limit": {"requests": 1, "per": 60_000, "burst": 1, "by": "client"}}), &[&web])
        .await;
    for (said, status) in [("192.0.2.1", 200), ("192.0.2.2", 200), ("192.0.2.1", 429)] {
        let reply = fixture.ask("GET /", &[&format!("X-Forwarded-For: {said}")]).await;
        assert_eq!(reply.status, status, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_of_writing_a_path_gets_past_a_longer_route() {
    let fixture = Fixture::new().await;
    let [site, admin] = servers(&fixture).await;
    let guarded = json!({"path": "/admin", "deny": ["0.0.0.0/0", "::/0"]});
    fixture
        .apply(vec![fixture.route("site", json!({}), &[&site]), fixture.route("admin", guarded, &[&admin])])
        .await;
    for path in [
        "/admin",
        "/admin/",
        "/%61dmin/users",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/admin%2Fusers",
        "/%2Fadmin",
        "/x%2F..%2Fadmin",
        "/admin;v=1",
        "/x/..;/admin",
        "/x\\..\\admin",
        "/admin/../site",
        "/admin%00.png",
    ] {
        let reply = fixture.ask(&format!("GET {path}"), &[]).await;
        assert!(matches!(reply.status, 400 | 403), "{path}: {reply:?}");
    }
    assert_eq!((site.requests(), admin.requests()), (0, 0));
    assert!(fixture.ask("GET /administrator/%20;v=1", &[]).await.is(200, "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_keeps_a_client_on_its_task_until_that_is_gone() {
    let fixture = Fixture::new().await;
    let servers: [Server; 3] = servers(&fixture).await;
    let all: Vec<&Server> = servers.iter().collect();
    let settings = json!({"sticky": {"cookie": "TASK", "max_age": 3_600_000}});
    fixture.publish(settings.clone(), &all).await;
    let first = fixture.get().await;
    let set = first.header("set-cookie").to_owned();
    assert!(set.ends_with("; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"), "{set}");
    let cookie = format!("Cookie: theme=dark; {}", set.split(';').next().unwrap());
    for _ in 0..10 {
        let reply = fixture.ask("GET /", &[&cookie]).await;
        assert_eq!((&reply.body, reply.header("set-cookie")), (&first.body, ""));
    }
    let others: Vec<&Server> = servers.iter().filter(|task| task.number.to_string() != first.body).collect();
    fixture.publish(settings, &others).await;
    let moved = fixture.ask("GET /", &[&cookie]).await;
    assert_ne!(moved.body, first.body);
    let cookie = format!("Cookie: {}", moved.header("set-cookie").split(';').next().unwrap());
    for _ in 0..10 {
        assert!(fixture.ask("GET /", &[&cookie]).await.is(200, &moved.body));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_and_keys_are_kept_to_across_workers() {
    let fixture = Fixture::new().await;
    let [old, new, other] = servers(&fixture).await;
    let mut route = fixture.route("web", json!({}), &[]);
    route.sets = vec![set(1, 90, &[&old]), set(2, 10, &[&new])];
    fixture.apply(vec![route]).await;
    let seen = answers(&fixture, 300).await;
    assert!(seen[&(200, "2".to_owned())].abs_diff(30) <= 3, "{seen:?}");
    let sets = fixture.stats().sets;
    assert_eq!(sets[&Generation(1)].requests + sets[&Generation(2)].requests, 300);
    assert_eq!(sets[&Generation(2)].requests, new.requests() as u64);
    assert_eq!(sets[&Generation(2)].latency.iter().sum::<u64>(), new.requests() as u64);
    fixture.publish(json!({"balance": {"hash": {"header": "x-user"}}}), &[&old, &new, &other]).await;
    let mut tasks = BTreeMap::new();
    for user in 0..20 {
        let user = format!("X-User: {user}");
        let task = fixture.ask("GET /", &[&user]).await.body;
        for _ in 0..3 {
            assert!(fixture.ask("GET /", &[&user]).await.is(200, &task));
        }
        *tasks.entry(task).or_insert(0) += 1;
    }
    assert_eq!(tasks.len(), 3, "{tasks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_to_who_looks_on_and_clients_never_notice() {
    let fixture = Fixture::new().await;
    let [web, shadow] = servers(&fixture).await;
    let mut route =
        fixture.route("web", json!({"mirror": {"service": "shadow", "port": 80, "percent": 50}}), &[&web]);
    route.mirror = vec![shadow.endpoint];
    fixture.apply(vec![route]).await;
    // It never answers.
    let _gate = shadow.close_gate();
    for number in 0..20 {
        let reply = fixture.ask_with("POST /", &[], &format!("body {number}")).await;
        assert!(reply.is(200, "1"), "{reply:?}");
    }
    assert_eq!(web.requests(), 20);
    eventually("half of them are copied", async || shadow.bodies.lock().len() == 10).await;
    let bodies = web.bodies.lock().clone();
    assert!(shadow.bodies.lock().iter().all(|body| bodies.contains(body) && body.starts_with(b"body")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repetitions_end_when_their_budget_does() {
    let fixture = Fixture::new().await;
    let [cuts, also] = servers(&fixture).await;
    cuts.set(0);
    also.set(0);
    let settings = json!({
        "retries": {"attempts": 1, "budget_percent": 10},
        "breaker": {"failures": 1000, "open": 1000, "most_percent": 0},
    });
    fixture.publish(settings, &[&cuts, &also]).await;
    let seen = answers(&fixture, 50).await;
    assert_eq!(seen.keys().map(|(status, _)| *status).collect::<Vec<_>>(), [502], "{seen:?}");
    // What is saved up at first, and a tenth of what came.
    let retries = fixture.stats().retries;
    assert!((10..=15).contains(&retries), "{retries}");
    assert_eq!((cuts.requests() + also.requests()) as u64, 50 + retries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_nobody_is_told_and_counted() {
    let fixture = Fixture::new().await;
    fixture.publish(json!({}), &[]).await;
    let reply = fixture.get().await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
    assert_eq!(fixture.stats().refused["no_endpoint"], 1);
}
