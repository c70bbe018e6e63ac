//! TLS, server names, the PROXY protocol and connections that nobody looks at, through a whole gateway with clients of rustls.
//!
//! Each test has a network of its own, so that ports 80 and 443 are free: without the right to make one it says so and does nothing.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use wharf_gateway::{Gateway, GatewayOptions};
use wharf_model::{
    AcmeChallenge, AppKey, Endpoint, EndpointSet, Generation, ProxyProtocol, Revision, RouteId,
    RouteProtocol, RouteSpec, RouteTable, RouteTls, ServiceKey, ServiceRoute, ShownCertificate, TaskId,
    TicketKey, Users,
};
use wharf_process::{Shutdown, Tasks};

const SOON: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it happens within the deadline")
}

/// Runs a test in a network of its own, whose only interface is the loopback.
#[expect(clippy::print_stderr, reason = "whoever runs the tests should know what was not tested")]
fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: a network of its own needs root ({error})");
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    })
    .join()
    .unwrap();
}

/// A gateway in the test's network.
struct Fixture {
    gateway: Gateway,
    tasks: Tasks,
    table: RouteTable,
}

impl Fixture {
    fn new() -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        Self { gateway: Gateway::new(GatewayOptions::default(), &tasks), tasks, table: RouteTable::default() }
    }

    async fn apply(&mut self) {
        self.table.version = Revision(self.table.version.0 + 1);
        within(self.gateway.apply(&self.table)).await;
    }

    /// A route of the service of this name to an endpoint.
    fn route(&mut self, service: &str, spec: RouteSpec, endpoint: Endpoint) {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let service = ServiceKey { app, name: service.parse().unwrap() };
        self.table.services.push(ServiceRoute {
            id: RouteId { service, number: 0, preview: false },
            spec,
            sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints: vec![endpoint] }],
            fallback: Vec::new(),
            mirror: Vec::new(),
            users: Users::default(),
        });
    }

    /// A task that answers each request of HTTP/1.1 with its first line and its headers.
    async fn requests(&self, number: u8) -> Endpoint {
        self.task(number, |mut stream| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await? == 0 {
                    return Ok(());
                }
            }
            let length = head.len();
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())
                .await?;
            stream.write_all(&head).await
        })
        .await
    }

    /// A task that sends back what it is sent.
    async fn echo(&self, number: u8) -> Endpoint {
        self.task(number, |mut stream| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
        .await
    }

    async fn task<F>(&self, number: u8, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Endpoint
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let group = self.tasks.clone();
        self.tasks.spawn("task", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = serve(stream);
                group.spawn("task connection", async move { drop(served.await) });
            }
        });
        endpoint(number, port)
    }
}

fn endpoint(number: u8, port: u16) -> Endpoint {
    Endpoint::new(TaskId::from_parts(1, [number; 10]), SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn spec(protocol: RouteProtocol, tls: RouteTls, hosts: &[&str]) -> RouteSpec {
    let text = r#"{"port": 80}"#;
    let mut spec: RouteSpec = serde_json::from_str(text).unwrap();
    spec.redirect = protocol.is_http() && matches!(tls, RouteTls::Auto | RouteTls::Certificate(_));
    (spec.protocol, spec.tls) = (protocol, tls);
    spec.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    spec
}

/// A certificate for these hosts that vouches for itself.
fn certificate(hosts: &[&str]) -> ShownCertificate {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let chain = CertificateParams::new(hosts.clone()).unwrap().self_signed(&key).unwrap().pem();
    ShownCertificate { hosts, chain, key: key.serialize_pem() }
}

fn der(shown: &ShownCertificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(shown.chain.as_bytes()).unwrap()
}

/// A client that believes these certificates only, and offers these protocols.
fn client(believes: &[&ShownCertificate], protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for shown in believes {
        roots.add(der(shown)).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(16);
    Arc::new(config)
}

/// Believes anybody.
#[derive(Debug)]
struct Anybody;
impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn believer(protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

async fn tcp(port: u16) -> TcpStream {
    within(TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.unwrap()
}

async fn tls(config: &Arc<ClientConfig>, name: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
    tls_over(config, name, tcp(port).await).await
}

async fn tls_over(
    config: &Arc<ClientConfig>,
    name: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await
}

/// A request of HTTP/1.1 on a connection, and everything that is answered until its end.
async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), host: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    within(stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = Vec::new();
    // Who closes without a word of TLS has said all the same what it had to say.
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

async fn echoed(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), word: &str) -> String {
    within(stream.write_all(word.as_bytes())).await.unwrap();
    let mut answer = vec![0; word.len()];
    within(stream.read_exact(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";

#[test]
fn each_host_has_its_certificate_and_http_2_is_chosen() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let (a, b) = (certificate(&["a.example"]), certificate(&["*.b.example"]));
        let task = fixture.requests(1).await;
        fixture.route("a", spec(RouteProtocol::Http, RouteTls::Auto, &["a.example"]), task);
        fixture.route(
            "b",
            spec(RouteProtocol::Http, RouteTls::Certificate("pem".into()), &["*.b.example"]),
            task,
        );
        fixture.table.certificates = vec![a.clone(), b.clone()];
        fixture.apply().await;
        assert_eq!(fixture.gateway.problems(), [""; 0]);
        let (only_a, only_b) = (client(&[&a], &[H2, H1]), client(&[&b], &[H1]));
        let stream = tls(&only_a, "a.example", 443).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(H2));
        let mut stream = tls(&only_b, "x.b.example", 443).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(H1));
        let answer = ask(&mut stream, "x.b.example", "/path").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /path HTTP/1.1"), "{answer}");
        assert!(answer.contains("x-forwarded-proto: https"), "{answer}");
        assert!(tls(&only_b, "a.example", 443).await.is_err(), "it is a's certificate");
        let error = tls(&only_a, "elsewhere.example", 443).await.unwrap_err();
        assert!(
            error.to_string().contains("UnrecognizedName") || error.to_string().contains("UnrecognisedName"),
            "{error}"
        );
    });
}

#[test]
fn a_new_certificate_is_shown_from_the_next_handshake_on_and_cuts_nobody_off() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let (old, new) = (certificate(&["a.example"]), certificate(&["a.example"]));
        let task = fixture.echo(1).await;
        let mut route = spec(RouteProtocol::Tcp, RouteTls::Auto, &["a.example"]);
        route.listen = Some(5432);
        fixture.route("a", route, task);
        fixture.table.certificates = vec![old.clone()];
        fixture.apply().await;
        let mut before = tls(&client(&[&old], &[]), "a.example", 5432).await.unwrap();
        assert_eq!(echoed(&mut before, "one").await, "one");
        fixture.table.certificates = vec![new.clone()];
        fixture.apply().await;
        assert_eq!(echoed(&mut before, "two").await, "two", "what is connected goes on");
        assert!(tls(&client(&[&old], &[]), "a.example", 5432).await.is_err());
        let mut after = tls(&client(&[&new], &[]), "a.example", 5432).await.unwrap();
        assert_eq!(echoed(&mut after, "three").await, "three");

        fixture.table.certificates[0].key = certificate(&["b.example"]).key;
        fixture.apply().await;
        let problem = "the certificate for a.example cannot be used: its key belongs to another certificate";
        assert_eq!(fixture.gateway.problems(), [problem]);
        assert_eq!(echoed(&mut after, "four").await, "four");
        assert!(
            tls(&client(&[&new], &[]), "a.example", 5432).await.is_err(),
            "there is none that anybody vouches for"
        );
        let mut trusting = tls(&believer(&[]), "a.example", 5432).await.unwrap();
        assert_eq!(echoed(&mut trusting, "five").await, "five");
    });
}

#[test]
fn tls_is_passed_through_to_the_task_that_ends_it() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let (own, other) = (certificate(&["own.example"]), certificate(&["a.example"]));
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der(&own)], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let ends_itself = fixture
            .task(1, move |stream| {
                let acceptor = acceptor.clone();
                async move {
                    let (mut read, mut write) = tokio::io::split(acceptor.accept(stream).await?);
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.shutdown().await
                }
            })
            .await;
        let task = fixture.requests(2).await;
        fixture.route("own", spec(RouteProtocol::Http, RouteTls::Passthrough, &["own.example"]), ends_itself);
        fixture.route("a", spec(RouteProtocol::Http, RouteTls::Auto, &["a.example"]), task);
        fixture.table.certificates = vec![other.clone()];
        fixture.apply().await;
        let mut stream = tls(&client(&[&own], &[]), "own.example", 443).await.unwrap();
        assert_eq!(echoed(&mut stream, "through").await, "through");
        within(stream.shutdown()).await.unwrap();
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"", "an end is passed on as well");
        let mut stream = tls(&client(&[&other], &[H1]), "a.example", 443).await.unwrap();
        assert!(ask(&mut stream, "a.example", "/").await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn requests_without_tls_are_sent_to_where_it_is() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let task = fixture.requests(1).await;
        fixture.route("a", spec(RouteProtocol::Http, RouteTls::Auto, &["a.example"]), task);
        fixture.table.certificates = vec![certificate(&["a.example"])];
        fixture.apply().await;
        let answer = ask(&mut tcp(80).await, "a.example", "/path?query=1").await;
        let head = answer.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 301") || head.starts_with("http/1.1 308"), "{answer}");
        assert!(head.contains("location: https://a.example/path?query=1\r\n"), "{answer}");
        let answer = ask(&mut tcp(80).await, "other.example", "/").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "nobody is sent to where nothing is: {answer}");
        let answer = ask(&mut tcp(443).await, "a.example", "/").await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("TLS"), "{answer}");
    });
}

#[test]
fn a_certificate_authority_finds_what_it_asks_for() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["new.example".to_owned()]).unwrap();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&[7; 32])];
        let chain = params.self_signed(&key).unwrap().pem();
        let shown = ShownCertificate { hosts: vec!["new.example".into()], chain, key: key.serialize_pem() };
        let expected = der(&shown);
        fixture.table.challenges = vec![
            AcmeChallenge::Http01 {
                host: "new.example".into(),
                token: "t0ken".into(),
                answer: "t0ken.thumb".into(),
            },
            AcmeChallenge::TlsAlpn01 { certificate: shown },
        ];
        fixture.apply().await;
        let answer = ask(&mut tcp(80).await, "new.example", "/.well-known/acme-challenge/t0ken").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("t0ken.thumb"), "{answer}");
        let answer = ask(&mut tcp(80).await, "other.example", "/.well-known/acme-challenge/t0ken").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        let stream = tls(&believer(&[b"acme-tls/1"]), "new.example", 443).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(&b"acme-tls/1"[..]));
        assert_eq!(session.peer_certificates().unwrap()[0], expected);
        assert!(tls(&believer(&[H1]), "new.example", 443).await.is_err(), "it is shown to nobody else");
        // It is counted once the gateway has the client's last word of the handshake, which the client does not wait for.
        within(async {
            while fixture.gateway.entry_counters().challenges == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(fixture.gateway.entry_counters().challenges, 1);

        fixture.table.challenges.clear();
        fixture.apply().await;
        assert!(TcpStream::connect("127.0.0.1:80").await.is_err(), "the port is needed no longer");
    });
}

#[test]
fn sessions_are_resumed_also_by_another_gateway_of_the_cluster() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let shown = certificate(&["a.example"]);
        let task = fixture.echo(1).await;
        let mut route = spec(RouteProtocol::Tcp, RouteTls::Auto, &["a.example"]);
        route.listen = Some(5432);
        fixture.route("a", route, task);
        fixture.table.certificates = vec![shown.clone()];
        fixture.table.ticket_keys = vec![TicketKey([1; 32])];
        fixture.apply().await;
        let config = client(&[&shown], &[]);
        let kind = async |word: &str| {
            let mut stream = tls(&config, "a.example", 5432).await.unwrap();
            // Tickets come after the handshake.
            assert_eq!(echoed(&mut stream, word).await, word);
            stream.get_ref().1.handshake_kind().unwrap()
        };
        assert_eq!(kind("one").await, HandshakeKind::Full);
        assert_eq!(kind("two").await, HandshakeKind::Resumed);
        let counters = fixture.gateway.entry_counters();
        assert_eq!((counters.handshakes, counters.resumed), (1, 1));

        let mut other = Fixture::new();
        other.table = fixture.table.clone();
        fixture.table.services.clear();
        fixture.apply().await;
        other.apply().await;
        assert_eq!(kind("three").await, HandshakeKind::Resumed, "it has the same keys");
        other.table.ticket_keys = vec![TicketKey([2; 32])];
        other.apply().await;
        assert_eq!(kind("four").await, HandshakeKind::Full, "its key is gone");
    });
}

#[test]
fn what_a_proxy_in_front_says_of_its_client_is_believed_where_it_is_expected() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let (shown, task) = (certificate(&["a.example"]), fixture.requests(1).await);
        let mut secure = spec(RouteProtocol::Http, RouteTls::Auto, &["a.example"]);
        secure.proxy_protocol = ProxyProtocol::In;
        fixture.route("a", secure, task);
        let mut plain = spec(RouteProtocol::Http, RouteTls::Off, &["a.example"]);
        plain.listen = Some(8080);
        fixture.route("b", plain, task);
        fixture.table.certificates = vec![shown.clone()];
        fixture.apply().await;
        let proxied = async |header: &[u8]| {
            let mut stream = tcp(443).await;
            within(stream.write_all(header)).await.unwrap();
            let mut stream = tls_over(&client(&[&shown], &[H1]), "a.example", stream).await?;
            io::Result::Ok(ask(&mut stream, "a.example", "/").await)
        };
        let answer = proxied(b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n").await.unwrap();
        assert!(answer.contains("x-forwarded-for: 192.0.2.7\r\n"), "{answer}");
        let header =
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[192, 0, 2, 8, 198, 51, 100, 1, 0, 9, 1, 187][..]]
                .concat();
        let answer = proxied(&header).await.unwrap();
        assert!(answer.contains("x-forwarded-for: 192.0.2.8\r\n"), "{answer}");
        assert!(proxied(b"").await.is_err(), "it is not optional");
        assert!(proxied(b"PROXY TCP4 nonsense\r\n").await.is_err());
        assert_eq!(fixture.gateway.entry_counters().malformed_proxy, 2);

        let mut stream = tcp(8080).await;
        within(stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n")).await.unwrap();
        let answer = ask(&mut stream, "a.example", "/").await;
        assert!(!answer.contains("192.0.2.7"), "nobody else is believed: {answer}");
    });
}

#[test]
fn a_task_is_told_of_its_client_by_the_proxy_protocol() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let task = fixture.echo(1).await;
        let mut route = spec(RouteProtocol::Tcp, RouteTls::Off, &[]);
        (route.listen, route.proxy_protocol) = (Some(5432), ProxyProtocol::Both);
        fixture.route("db", route, task);
        fixture.apply().await;
        let mut stream = tcp(5432).await;
        within(stream.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 5432\r\nhello")).await.unwrap();
        let mut answer = vec![0; 28 + 5];
        within(stream.read_exact(&mut answer)).await.unwrap();
        let expected = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[192, 0, 2, 7, 198, 51, 100, 1][..]].concat();
        assert_eq!(&answer[..24], &expected[..]);
        assert_eq!(u16::from_be_bytes([answer[24], answer[25]]), 4000);
        assert_eq!(&answer[28..], b"hello");
    });
}

#[test]
fn connections_find_another_task_when_one_does_not_take_them_and_wait_for_one() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let alive = fixture.echo(1).await;
        let mut route = spec(RouteProtocol::Tcp, RouteTls::Off, &[]);
        route.listen = Some(5432);
        fixture.route("db", route, endpoint(2, 1));
        fixture.table.services[0].sets[0].endpoints.push(alive);
        fixture.apply().await;
        for _ in 0..4 {
            assert_eq!(echoed(&mut tcp(5432).await, "hello").await, "hello");
        }
        let endpoints = std::mem::take(&mut fixture.table.services[0].sets[0].endpoints);
        fixture.apply().await;
        let mut waiting = tcp(5432).await;
        fixture.table.services[0].sets[0].endpoints = endpoints;
        fixture.apply().await;
        assert_eq!(echoed(&mut waiting, "late").await, "late", "it was held until there was a task");

        let task = alive.task;
        fixture.table.services.clear();
        fixture.apply().await;
        assert_eq!(
            fixture.gateway.draining(),
            BTreeMap::from([(task, 1)]),
            "it goes on with a task that is gone"
        );
        assert_eq!(echoed(&mut waiting, "still").await, "still");
        drop(waiting);
        let deadline = Instant::now() + SOON;
        while !fixture.gateway.draining().is_empty() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn datagrams_reach_a_task_and_come_back() {
    alone(|| async {
        let mut fixture = Fixture::new();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        fixture.tasks.spawn("task", async move {
            let mut buffer = [0; 2000];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
        let mut route = spec(RouteProtocol::Udp, RouteTls::Off, &[]);
        route.listen = Some(5353);
        fixture.route("dns", route.clone(), endpoint(1, port));
        fixture.apply().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let gateway: SocketAddr = "127.0.0.1:5353".parse().unwrap();
        let asked = async |word: &[u8]| {
            client.send_to(word, gateway).await.unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = within(client.recv_from(&mut buffer)).await.unwrap();
            assert_eq!(from, gateway);
            buffer[..length].to_vec()
        };
        assert_eq!(asked(b"hello").await, b"hello");
        route.proxy_protocol = ProxyProtocol::Out;
        fixture.table.services[0].spec = route;
        fixture.table.services[0].sets[0].endpoints = vec![endpoint(2, port)];
        fixture.apply().await;
        let answer = asked(b"hello").await;
        assert_eq!((&answer[..13], &answer[28..]), (&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], &b"hello"[..]));
    });
}
