//! Certificates by ACME, against Let's Encrypt's test server pebble; gateways are the test's own, and answer what their table says.

use std::{
    io,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use wharf_api::v1::{self, Code};
use wharf_model::{AcmeChallenge, RouteTable};
use wharf_process::{Shutdown, Tasks};

use crate::fixture::{Api, Cluster, Fake, eventually, problem, up_with, within};

/// How long certificates are good: long enough for a slow machine to obtain one, short enough to see it renewed.
const LIFETIME: u64 = 15;

/// A certificate authority, and the names of hosts as it sees them: all of them lead to this machine.
struct Pebble {
    directory: String,
    root: String,
    http: u16,
    tls: u16,
    _folder: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Ports that are free now.
fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

impl Pebble {
    /// None, and says so, where it is not installed.
    #[expect(clippy::print_stderr, reason = "whoever runs the tests should know what was not tested")]
    async fn start() -> Option<Self> {
        let is_there = |program: &str| {
            let found = Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
            found.is_ok()
        };
        if !is_there("pebble") || !is_there("pebble-challtestsrv") {
            eprintln!("skipped: pebble is not installed (apt-get install pebble)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let [port, management, http, tls, dns] = free_ports();
        let root = server_certificate(folder.path());
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": folder.path().join("server.pem"),
            "privateKey": folder.path().join("server.key"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "domainBlocklist": ["blocked.example"],
            "certificateValidityPeriod": LIFETIME,
        }});
        std::fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        let names = Command::new("pebble-challtestsrv")
            .args(["-dns01", &format!("127.0.0.1:{dns}"), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", ""])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let authority = Command::new("pebble")
            .arg("-config")
            .arg(folder.path().join("pebble.json"))
            .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let directory = format!("https://127.0.0.1:{port}/dir");
        let pebble = Self { directory, root, http, tls, _folder: folder, processes: vec![names, authority] };
        eventually(async || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()).await;
        Some(pebble)
    }

    /// A machine that answers as gateways do with the newest table of this node.
    async fn gateway(&self, fake: &Arc<Fake>, tasks: &Tasks) -> Arc<Mutex<Vec<String>>> {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, self.http)).await.unwrap();
        let (table, log) = (Arc::clone(fake), Arc::clone(&asked));
        tasks.spawn("http", async move {
            while let Ok((stream, _)) = http.accept().await {
                let _ = answer_http(stream, &routes(&table), &log).await;
            }
        });
        let tls = TcpListener::bind((Ipv4Addr::LOCALHOST, self.tls)).await.unwrap();
        let (table, log) = (Arc::clone(fake), Arc::clone(&asked));
        tasks.spawn("tls", async move {
            while let Ok((stream, _)) = tls.accept().await {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let mut config = ServerConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(Shown { table: routes(&table), log: Arc::clone(&log) }));
                config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
                let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            }
        });
        asked
    }
}

/// Writes a certificate for an authority's own server, and answers the root that vouches for it.
fn server_certificate(folder: &Path) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&root, key).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    root
}

fn routes(fake: &Fake) -> RouteTable {
    fake.set.lock().unwrap().as_ref().map(|set| set.routes.clone()).unwrap_or_default()
}

async fn answer_http(mut stream: TcpStream, table: &RouteTable, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = vec![0; 4096];
    let length = stream.read(&mut head).await?;
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    let found = table.challenges.iter().find_map(|challenge| match challenge {
        AcmeChallenge::Http01 { host, token, answer } => {
            let path = format!("GET /.well-known/acme-challenge/{token} ");
            let is_asked =
                head.starts_with(&path) && head.to_ascii_lowercase().contains(&format!("host: {host}"));
            // One machine of the cluster is broken.
            (is_asked && host != "broken.example").then(|| (host.clone(), answer.clone()))
        }
        AcmeChallenge::TlsAlpn01 { .. } => None,
    });
    let answer = match found {
        Some((host, answer)) => {
            log.lock().unwrap().push(format!("http-01 {host}"));
            format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            )
        }
        None => "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
    };
    stream.write_all(answer.as_bytes()).await
}

/// Shows what the table has for authorities that ask.
#[derive(Debug)]
struct Shown {
    table: RouteTable,
    log: Arc<Mutex<Vec<String>>>,
}
impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        let shown = self.table.challenges.iter().find_map(|challenge| match challenge {
            AcmeChallenge::TlsAlpn01 { certificate } if certificate.hosts[0] == name => Some(certificate),
            _ => None,
        })?;
        let chain = vec![CertificateDer::from_pem_slice(shown.chain.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        self.log.lock().unwrap().push(format!("tls-alpn-01 {name}"));
        Some(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// An app with a route for this host whose certificate the cluster obtains.
fn certified(app: &str, host: &str) -> v1::Action {
    let route = json!({ "port": 80, "hosts": [host], "tls": "auto", "redirect": true });
    let web = json!({ "image": "web:1", "networks": { "default": {} }, "policy": { "routes": [route] } });
    up_with(json!({ "name": app, "services": { "web": web }, "networks": { "default": {} } }))
}

async fn certificate(api: &Api, host: &str) -> v1::Certificate {
    api.get(&format!("/v1/certificates/{host}")).await.unwrap()
}

async fn set(api: &Api, change: Value) -> v1::AcmeSettings {
    api.call(Method::PUT, "/v1/acme", &change).await.unwrap()
}

#[tokio::test]
async fn a_route_has_its_certificate_obtained_renewed_and_kept_in_the_cluster() {
    let Some(pebble) = Pebble::start().await else { return };
    let mut cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let tasks = Tasks::new(&Shutdown::new());
    let asked = pebble.gateway(&node.fake, &tasks).await;

    // Nobody has agreed to anything: that is said, and nothing is done.
    api.done("shop", certified("shop", "shop.example")).await;
    let waiting = certificate(&api, "shop.example").await;
    assert_eq!((waiting.state.as_str(), waiting.apps.as_slice()), ("waiting", &["prod/shop".to_owned()][..]));
    assert!(waiting.why.contains("wharf certificate acme --agree-tos"), "{waiting:?}");
    let refused =
        problem(api.call::<Value>(Method::POST, "/v1/certificates/shop.example/renew", &Value::Null).await);
    assert_eq!(refused.code, Code::Conflict);

    // By a request of HTTP.
    let settings = set(
        &api,
        json!({ "directory": pebble.directory, "roots": pebble.root, "terms_agreed": true, "challenges": ["http-01"] }),
    )
    .await;
    assert!(settings.terms_agreed && !settings.account && settings.roots == 1);
    let first =
        eventually(async || Some(certificate(&api, "shop.example").await).filter(|it| it.state == "valid"))
            .await;
    assert_eq!((first.challenge.as_deref(), first.failures), (Some("http-01"), 0));
    assert!(first.issuer.as_ref().unwrap().contains("Pebble"), "{first:?}");
    assert!(asked.lock().unwrap().contains(&"http-01 shop.example".to_owned()));
    let shown = eventually(async || {
        let table = routes(&node.fake);
        let shown = table.certificates.iter().find(|shown| shown.hosts == ["shop.example"]).cloned()?;
        table.challenges.is_empty().then_some(shown)
    })
    .await;
    assert!(shown.chain.matches("BEGIN CERTIFICATE").count() >= 2, "with those who vouch for it");
    assert_eq!(routes(&node.fake).ticket_keys.len(), 1);
    let store = std::fs::read(cluster.store_file()).unwrap();
    let key = shown.key.lines().nth(1).unwrap();
    assert!(
        !store.windows(key.len()).any(|window| window == key.as_bytes()),
        "no key lies in the store in plain text"
    );

    // By a handshake of TLS, with the account that is there.
    assert!(set(&api, json!({ "challenges": ["tls-alpn-01"] })).await.account);
    api.done("blog", certified("blog", "blog.example")).await;
    let second =
        eventually(async || Some(certificate(&api, "blog.example").await).filter(|it| it.state == "valid"))
            .await;
    assert_eq!(second.challenge.as_deref(), Some("tls-alpn-01"));
    assert!(asked.lock().unwrap().contains(&"tls-alpn-01 blog.example".to_owned()));

    // It is renewed before it ends, and there is one all the time.
    let renewed = eventually(async || {
        let now = certificate(&api, "shop.example").await;
        assert!(now.not_after.is_some() && now.state != "expired", "{now:?}");
        Some(now).filter(|it| it.serial != first.serial)
    })
    .await;
    assert!(renewed.not_before > first.not_before);

    // A server that comes back has everything.
    cluster.stop().await;
    cluster.run().await;
    let again = cluster.reconnect(&node).await;
    eventually(async || {
        let table = routes(&again.fake);
        table.certificates.iter().any(|shown| shown.hosts == ["shop.example"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_an_authority_refuses_is_said_with_its_reason_and_tried_again_later() {
    let Some(pebble) = Pebble::start().await else { return };
    let cluster = Cluster::start().await;
    let api = cluster.admin().await;
    let node = cluster.node("n1").await;
    let tasks = Tasks::new(&Shutdown::new());
    let _asked = pebble.gateway(&node.fake, &tasks).await;
    let failing = async |host: &str| {
        eventually(async || Some(certificate(&api, host).await).filter(|it| it.state == "failing")).await
    };

    // Whom nobody vouches for is not believed.
    set(&api, json!({ "directory": pebble.directory, "terms_agreed": true, "challenges": ["http-01"] }))
        .await;
    api.done("shop", certified("shop", "broken.example")).await;
    let stranger = failing("broken.example").await;
    assert!(stranger.why.contains("cannot be asked"), "{stranger:?}");

    set(&api, json!({ "roots": pebble.root })).await;
    let _: v1::Certificate =
        api.call(Method::POST, "/v1/certificates/broken.example/renew", &Value::Null).await.unwrap();
    let broken =
        eventually(async || Some(certificate(&api, "broken.example").await).filter(|it| it.failures == 2))
            .await;
    assert!(broken.why.contains("broken.example could not be proven by http-01 (port 80)"), "{broken:?}");
    assert!(broken.why.contains("404"), "what the authority found: {broken:?}");
    let pause = broken.next_attempt.unwrap() - broken.failed_at.unwrap();
    assert_eq!(Duration::from_millis(pause), Duration::from_secs(240), "the second pause");

    api.done("blog", certified("blog", "blocked.example")).await;
    let blocked = failing("blocked.example").await;
    assert!(blocked.why.contains("this authority issues no certificates for this name"), "{blocked:?}");

    let events: Vec<v1::Event> = api.all("/v1/events").await;
    let told = events.iter().any(|event| event.message.starts_with("no certificate for broken.example: "));
    assert!(told, "{events:?}");
    let _ = within(tasks.shutdown(Duration::from_secs(1))).await;
}
