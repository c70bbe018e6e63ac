//! The gateway over loopback, with endpoints of the test's own.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, timeout},
};
use wharf_gateway::{Gateway, GatewayOptions, RouteCounters};
use wharf_model::{AppKey, Endpoint, NodeId, Protocol, Revision, Route, RouteTable, ServiceKey, TaskId};
use wharf_process::{Shutdown, Tasks};

const SOON: Duration = Duration::from_secs(10);

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

/// A gateway with one route.
struct Fixture {
    gateway: Gateway,
    port: u16,
    protocol: Protocol,
    tasks: Tasks,
    version: u64,
}

impl Fixture {
    async fn new(protocol: Protocol, options: GatewayOptions) -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        let gateway = Gateway::new(options, &tasks);
        Self { gateway, port: free_port().await, protocol, tasks, version: 0 }
    }

    async fn tcp() -> Self {
        Self::new(Protocol::Tcp, GatewayOptions::default()).await
    }

    fn route(&self, endpoints: &[Endpoint]) -> Route {
        Route {
            service: service("web"),
            port: self.port,
            protocol: self.protocol,
            host_ip: Some(Ipv4Addr::LOCALHOST.into()),
            endpoints: endpoints.to_vec(),
        }
    }

    async fn publish(&mut self, endpoints: &[Endpoint]) {
        let routes = vec![self.route(endpoints)];
        self.apply(routes).await;
        assert_eq!(self.gateway.problems(), [""; 0]);
    }

    async fn apply(&mut self, routes: Vec<Route>) {
        self.version += 1;
        let table = RouteTable::of_ports(Revision(self.version), routes);
        within(self.gateway.apply(&table)).await;
        assert_eq!(self.gateway.version(), Some(Revision(self.version)));
    }

    /// Where these tasks are gone with their nodes.
    async fn publish_without(&mut self, endpoints: &[Endpoint], gone: &[Endpoint]) {
        self.version += 1;
        let gone = gone.iter().map(|endpoint| (endpoint.task, NodeId::from_parts(1, [1; 10]))).collect();
        let routes = vec![self.route(endpoints)];
        let table = RouteTable { gone, ..RouteTable::of_ports(Revision(self.version), routes) };
        within(self.gateway.apply(&table)).await;
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        within(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))).await
    }

    /// What the endpoint that takes a new connection is called.
    async fn who(&self) -> io::Result<u8> {
        within(self.connect().await?.read_u8()).await
    }

    fn counters(&self) -> RouteCounters {
        *self.gateway.counters().values().next().expect("the route")
    }
}

fn service(name: &str) -> ServiceKey {
    let name = name.parse().expect("a name");
    let app = AppKey { environment: "prod".parse().expect("a name"), name: "shop".parse().expect("a name") };
    ServiceKey { app, name }
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    listener.local_addr().expect("an address").port()
}

fn endpoint(number: u8, port: u16) -> Endpoint {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    Endpoint::new(TaskId::from_parts(1, [number; 10]), address)
}

/// An endpoint that says its number, and then whatever it is told, until the end; then `!`.
async fn echo(tasks: &Tasks, number: u8) -> Endpoint {
    echo_on(0, tasks, number).await
}

async fn echo_on(port: u16, tasks: &Tasks, number: u8) -> Endpoint {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("loopback");
    let port = listener.local_addr().expect("an address").port();
    let group = tasks.clone();
    tasks.spawn("endpoint", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            group.spawn("endpoint connection", async move {
                let (mut read, mut write) = stream.split();
                let _ = write.write_u8(number).await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.write_all(b"!").await;
            });
        }
    });
    endpoint(number, port)
}

/// An endpoint that answers every datagram with its number and the datagram.
async fn udp_echo(tasks: &Tasks, number: u8) -> Endpoint {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let port = socket.local_addr().expect("an address").port();
    tasks.spawn("endpoint", async move {
        let mut buffer = [0; 2000];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&[&[number], &buffer[..length]].concat(), client).await;
        }
    });
    endpoint(number, port)
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_end_may_finish_first() {
    let mut fixture = Fixture::tcp().await;
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    let mut stream = fixture.connect().await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), 1);
    let (mut read, mut write) = stream.split();
    let sent = vec![7; 3 << 20];
    let all = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, length) = within(async { tokio::join!(all, read.read_to_end(&mut received)) }).await;
    assert_eq!(length.unwrap(), sent.len() + 1);
    assert!(
        received.ends_with(b"7!") || received.ends_with(&[7, b'!']),
        "the endpoint spoke after we had finished"
    );
    eventually("the connection is no longer open", async || fixture.counters().active == 0).await;
    let counters = fixture.counters();
    assert_eq!((counters.connections, counters.failures, counters.retries), (1, 0, 0));
    assert_eq!((counters.received, counters.sent), (sent.len() as u64, sent.len() as u64 + 2));
}

#[tokio::test]
async fn connections_are_spread_over_all_endpoints() {
    let mut fixture = Fixture::tcp().await;
    let endpoints =
        [echo(&fixture.tasks, 1).await, echo(&fixture.tasks, 2).await, echo(&fixture.tasks, 3).await];
    fixture.publish(&endpoints).await;
    let mut open = Vec::new();
    let mut counts = [0; 4];
    for _ in 0..9 {
        let mut stream = fixture.connect().await.unwrap();
        counts[usize::from(within(stream.read_u8()).await.unwrap())] += 1;
        open.push(stream);
    }
    assert_eq!(counts, [0, 3, 3, 3]);
}

#[tokio::test]
async fn an_endpoint_that_does_not_take_a_connection_is_not_the_clients_concern() {
    let mut fixture = Fixture::tcp().await;
    let dead = endpoint(9, free_port().await);
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[dead, web]).await;
    for _ in 0..6 {
        assert_eq!(fixture.who().await.unwrap(), 1);
    }
    assert!(fixture.counters().retries > 0);
    assert_eq!(fixture.counters().failures, 0);
}

/// An endpoint whose queue is full: it drops what comes, as a dead machine does. The listener can take the connections in the queue.
async fn silent() -> (Endpoint, (std::net::TcpListener, Vec<TcpStream>)) {
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).expect("loopback");
    full.listen(0).expect("it listens");
    let listener = std::net::TcpListener::from(full);
    let port = listener.local_addr().expect("an address").port();
    let mut queue = Vec::new();
    let connect = || timeout(Duration::from_millis(200), TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
    while let Ok(Ok(stream)) = connect().await {
        queue.push(stream);
    }
    (endpoint(9, port), (listener, queue))
}

#[tokio::test]
async fn an_endpoint_that_is_silent_costs_one_timeout() {
    let options = GatewayOptions { connect_timeout: Duration::from_millis(200), ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Tcp, options).await;
    let (silent, _full) = silent().await;
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[silent, web]).await;
    for _ in 0..2 {
        assert_eq!(fixture.who().await.unwrap(), 1);
    }
    assert_eq!(fixture.counters().retries, 1);
}

#[tokio::test]
async fn an_endpoint_that_is_gone_finishes_what_it_has_and_gets_nothing_new() {
    let mut fixture = Fixture::tcp().await;
    let (old, new) = (echo(&fixture.tasks, 1).await, echo(&fixture.tasks, 2).await);
    fixture.publish(&[old]).await;
    let mut stream = fixture.connect().await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), 1);
    fixture.publish(&[new]).await;
    for _ in 0..5 {
        assert_eq!(fixture.who().await.unwrap(), 2);
    }
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), b'x', "the first connection goes on");
}

#[tokio::test]
async fn what_was_begun_with_an_endpoint_ends_when_it_is_gone_with_its_node_and_nothing_else_does() {
    let mut fixture = Fixture::tcp().await;
    let [leaving, dead, there] = [1, 2, 3].map(|number| echo(&fixture.tasks, number));
    let (leaving, dead, there) = (leaving.await, dead.await, there.await);
    let mut streams = Vec::new();
    for endpoint in [leaving, dead, there] {
        fixture.publish(&[endpoint]).await;
        let mut stream = fixture.connect().await.unwrap();
        within(stream.read_u8()).await.unwrap();
        streams.push(stream);
    }
    let [mut goes_on, mut ends, mut stays] = <[TcpStream; 3]>::try_from(streams).unwrap();
    // Nothing that a table leads to is taken for gone, whatever else it says.
    fixture.publish_without(&[there], &[dead, there]).await;
    let error = within(ends.read_u8()).await.expect_err("nobody would ever answer");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    for stream in [&mut goes_on, &mut stays] {
        stream.write_all(b"x").await.unwrap();
        assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
    }
    eventually("nothing is left", async || fixture.gateway.draining() == [(leaving.task, 1)].into()).await;
}

#[tokio::test]
async fn a_connection_waits_for_the_endpoint_that_a_release_is_about_to_bring() {
    let mut fixture = Fixture::tcp().await;
    fixture.publish(&[]).await;
    let mut waiting = fixture.connect().await.unwrap();
    assert!(timeout(Duration::from_millis(50), waiting.read_u8()).await.is_err(), "it is kept");
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    assert_eq!(within(waiting.read_u8()).await.unwrap(), 1);
}

#[tokio::test]
async fn an_endpoint_that_is_a_moment_late_is_asked_again() {
    let mut fixture = Fixture::tcp().await;
    let port = free_port().await;
    fixture.publish(&[endpoint(9, port)]).await;
    let mut waiting = fixture.connect().await.unwrap();
    eventually("it was asked in vain", async || fixture.counters().retries > 0).await;
    echo_on(port, &fixture.tasks, 9).await;
    assert_eq!(within(waiting.read_u8()).await.unwrap(), 9);
}

#[tokio::test]
async fn a_connection_that_waits_goes_to_no_endpoint_of_a_route_that_is_gone() {
    let options = GatewayOptions { hold: Duration::from_secs(1), ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Tcp, options).await;
    let port = free_port().await;
    fixture.publish(&[endpoint(9, port)]).await;
    let mut waiting = fixture.connect().await.unwrap();
    eventually("it was asked in vain", async || fixture.counters().retries > 0).await;
    fixture.apply(Vec::new()).await;
    echo_on(port, &fixture.tasks, 9).await;
    let error = within(waiting.read_u8()).await.expect_err("the route is gone");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// An acknowledged table promises that nothing new reaches what it does not have.
#[tokio::test]
async fn an_endpoint_that_left_while_it_was_being_connected_to_gets_nothing() {
    let long = Duration::from_secs(8);
    let options = GatewayOptions { hold: long, connect_timeout: long, ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Tcp, options).await;
    let (old, (listener, _queue)) = silent().await;
    fixture.publish(&[old]).await;
    let mut waiting = fixture.connect().await.unwrap();
    // `02` is SYN-SENT.
    let connecting = format!("0100007F:{:04X} 02", old.address.port());
    let sockets = || std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    eventually("it is being connected to", async || sockets().contains(&connecting)).await;
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    // Makes room in its queue: the kernel's next attempt, within seconds, is taken.
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let mut taken = Vec::new();
    fixture.tasks.spawn("old endpoint", async move {
        while let Ok((stream, _)) = listener.accept().await {
            taken.push(stream);
        }
    });
    assert_eq!(within(waiting.read_u8()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_connection_that_nobody_takes_is_reset() {
    let options = GatewayOptions { hold: Duration::from_millis(100), ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Tcp, options).await;
    for endpoints in [vec![], vec![endpoint(9, free_port().await)]] {
        fixture.publish(&endpoints).await;
        let error = fixture.who().await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "not an empty answer");
    }
    assert_eq!(fixture.counters().failures, 2);
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_breaks_off_for_the_client() {
    let mut fixture = Fixture::tcp().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fixture.publish(&[endpoint(1, listener.local_addr().unwrap().port())]).await;
    let mut stream = fixture.connect().await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.write_all(b"half of").await.unwrap();
    let mut start = [0; 7];
    within(stream.read_exact(&mut start)).await.unwrap();
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = within(stream.read_u8()).await.expect_err("it broke off");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_route_that_is_gone_closes_its_port_at_once_and_finishes_its_connections() {
    let mut fixture = Fixture::tcp().await;
    let web = echo(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    let mut stream = fixture.connect().await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), 1);
    fixture.apply(Vec::new()).await;
    assert_eq!(fixture.connect().await.expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
    fixture.publish(&[web]).await;
    assert_eq!(fixture.who().await.unwrap(), 1, "and it can come back");
}

#[tokio::test]
async fn stopping_closes_ports_and_lets_connections_finish() {
    let mut fixture = Fixture::tcp().await;
    let endpoints = Tasks::new(&Shutdown::new());
    let web = echo(&endpoints, 1).await;
    fixture.publish(&[web]).await;
    let mut stream = fixture.connect().await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), 1);
    let tasks = fixture.tasks.clone();
    let stopped = endpoints.spawn("shutdown", tasks.shutdown(SOON));
    eventually("the port is closed", async || fixture.connect().await.is_err()).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
    drop(stream);
    assert_eq!(within(stopped).await.unwrap().aborted, [""; 0]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_had_when_it_is_free() {
    let mut fixture = Fixture::tcp().await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, fixture.port)).await.unwrap();
    let web = echo(&fixture.tasks, 1).await;
    let other = Route { port: free_port().await, ..fixture.route(&[web]) };
    fixture.apply(vec![fixture.route(&[web]), other.clone()]).await;
    let process = std::fs::read_to_string("/proc/self/comm").unwrap();
    let expected = format!(
        "port 127.0.0.1:{} is taken on this node by process {} (pid {})",
        fixture.port,
        process.trim_end(),
        std::process::id(),
    );
    assert_eq!(fixture.gateway.problems(), [expected]);
    let mut stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, other.port))).await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), 1, "the other port is served");
    drop(taken);
    let (gateway, stop) = (fixture.gateway.clone(), fixture.tasks.token());
    fixture.tasks.spawn("gateway", async move { gateway.run(stop).await });
    eventually("the port is had", async || fixture.gateway.problems().is_empty()).await;
    assert_eq!(fixture.who().await.unwrap(), 1);
}

#[tokio::test]
async fn a_port_that_two_services_want_is_the_firsts() {
    let mut fixture = Fixture::tcp().await;
    let (first, second) = (echo(&fixture.tasks, 1).await, echo(&fixture.tasks, 2).await);
    let other = Route { service: service("other"), ..fixture.route(&[second]) };
    fixture.apply(vec![fixture.route(&[first]), other]).await;
    assert_eq!(fixture.who().await.unwrap(), 1);
    let problems = fixture.gateway.problems();
    assert!(problems.len() == 1 && problems[0].contains("published twice"), "{problems:?}");
}

#[tokio::test]
async fn without_an_address_a_route_listens_on_all_of_both_families() {
    let mut fixture = Fixture::tcp().await;
    let web = echo(&fixture.tasks, 1).await;
    let everywhere = Route { host_ip: None, ..fixture.route(&[web]) };
    fixture.apply(vec![everywhere]).await;
    assert_eq!(fixture.who().await.unwrap(), 1);
    if TcpListener::bind("[::1]:0").await.is_ok() {
        let mut stream = within(TcpStream::connect(("::1", fixture.port))).await.unwrap();
        assert_eq!(within(stream.read_u8()).await.unwrap(), 1);
    }
}

/// A client of a UDP route.
struct Client(UdpSocket);

impl Client {
    async fn of(fixture: &Fixture) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        socket.connect((Ipv4Addr::LOCALHOST, fixture.port)).await.expect("it can be");
        Self(socket)
    }

    /// The number of the endpoint that answers; asks again while nothing comes back.
    async fn who(&self, text: &str) -> u8 {
        let mut buffer = [0; 2000];
        within(async {
            loop {
                // Refused while the port is not open: the next one is sent all the same.
                let _ = self.0.send(text.as_bytes()).await;
                let answer = timeout(Duration::from_millis(200), self.0.recv(&mut buffer)).await;
                if let Ok(Ok(length)) = answer {
                    assert_eq!(&buffer[1..length], text.as_bytes());
                    return buffer[0];
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn each_client_of_a_udp_route_keeps_its_endpoint() {
    let mut fixture = Fixture::new(Protocol::Udp, GatewayOptions::default()).await;
    let endpoints = [udp_echo(&fixture.tasks, 1).await, udp_echo(&fixture.tasks, 2).await];
    fixture.publish(&endpoints).await;
    let (a, b) = (Client::of(&fixture).await, Client::of(&fixture).await);
    let (first, second) = (a.who("a").await, b.who("b").await);
    assert_eq!(BTreeSet::from([first, second]), BTreeSet::from([1, 2]));
    for _ in 0..5 {
        assert_eq!((a.who("a").await, b.who("b").await), (first, second));
    }
    assert_eq!((fixture.counters().connections, fixture.counters().active), (2, 2));
    fixture.apply(Vec::new()).await;
    UdpSocket::bind((Ipv4Addr::LOCALHOST, fixture.port)).await.expect("the port is free");
}

#[tokio::test]
async fn a_silent_client_is_forgotten_and_the_longest_silent_gives_way() {
    let options = GatewayOptions { datagram_idle: Duration::from_millis(300), ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Udp, options).await;
    let web = udp_echo(&fixture.tasks, 1).await;
    fixture.publish(&[web]).await;
    let client = Client::of(&fixture).await;
    assert_eq!(client.who("x").await, 1);
    eventually("it is forgotten", async || fixture.counters().active == 0).await;
    assert_eq!(client.who("x").await, 1, "and welcome again");
    assert_eq!(fixture.counters().connections, 2);

    let options = GatewayOptions { datagram_clients: 3, ..GatewayOptions::default() };
    let mut fixture = Fixture::new(Protocol::Udp, options).await;
    fixture.publish(&[web]).await;
    for _ in 0..10 {
        assert_eq!(Client::of(&fixture).await.who("x").await, 1);
    }
    eventually("no more than three are kept", async || fixture.counters().active == 3).await;
}

#[tokio::test]
async fn a_client_whose_endpoint_died_is_given_another() {
    let mut fixture = Fixture::new(Protocol::Udp, GatewayOptions::default()).await;
    let mortal = Tasks::new(&Shutdown::new());
    let dying = udp_echo(&mortal, 1).await;
    fixture.publish(&[dying]).await;
    let client = Client::of(&fixture).await;
    assert_eq!(client.who("x").await, 1);
    let _ = mortal.shutdown(Duration::ZERO).await;
    let web = udp_echo(&fixture.tasks, 2).await;
    fixture.publish(&[web]).await;
    assert_eq!(client.who("x").await, 2);
}

#[tokio::test]
async fn what_is_published_is_served_by_the_running_gateway_and_then_acknowledged() {
    let fixture = Fixture::tcp().await;
    let (gateway, stop) = (fixture.gateway.clone(), fixture.tasks.token());
    fixture.tasks.spawn("gateway", async move { gateway.run(stop).await });
    let web = echo(&fixture.tasks, 1).await;
    for version in 1..=3 {
        // Only the newest matters.
        fixture.gateway.publish(RouteTable::of_ports(Revision(version), vec![fixture.route(&[web])]));
    }
    eventually("it is served", async || fixture.gateway.version() == Some(Revision(3))).await;
    assert_eq!(fixture.who().await.unwrap(), 1);
    assert_eq!(fixture.gateway.ports(), BTreeSet::from([(fixture.port, Protocol::Tcp)]));
}
