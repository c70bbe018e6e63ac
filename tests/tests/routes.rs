//! Routes on real nodes, asked by curl from outside: who answers what, what changes without a container being replaced, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, items, make_certificate, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// `hunter2`, as `htpasswd` writes them.
const USERS: &str = "# staff\nada:{SHA}87u9ZqY9S/F0eUBXjsPQEDUw4h0=\n";

/// `PATH` is that of one of the routes.
const SHOP: &str = r#"
name: shop
services:
  web:
    image: wharf/testserver:1
    environment: {NAME: web}
    stop_grace_period: 1s
    deploy: {replicas: 3}
    x-wharf:
      routes:
        - {host: shop.test, port: 8080}
        - {host: "*.wild.test", port: 8080}
        - {host: sticky.test, port: 8080, sticky: true}
        - {host: limited.test, port: 8080, rate_limit: {requests: 3, per: 1h, burst: 1}}
        - {host: private.test, port: 8080, basic_auth: {secret: users}}
        - {host: tls.test, port: 8080, tls: {certificate: cert}}
  api:
    image: wharf/testserver:1
    environment: {NAME: api}
    stop_grace_period: 1s
    x-wharf:
      routes:
        - {host: shop.test, path: PATH, port: 8080}
        - {host: shop.test, headers: {X-Canary: "1"}, port: 8080}
        - {host: shop.test, methods: [DELETE], port: 8080}
  gone:
    image: wharf/testserver:1
    deploy: {replicas: 0}
    x-wharf:
      routes:
        - {host: spare.test, port: 8080, fallback: {service: spare}}
        - {host: answer.test, port: 8080, fallback: {status: 503, body: back soon}}
  spare:
    image: wharf/testserver:1
    environment: {NAME: spare}
    stop_grace_period: 1s
secrets:
  users: {file: users}
  cert: {file: cert.pem}
"#;

/// What curl got.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}
impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Asks a node for a URL, by curl at the client's place.
fn curl(fleet: &Fleet, node: u8, url: &str, more: &[&str]) -> Result<Answer> {
    let address = fleet.node(node).address();
    let host = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).context("no host")?;
    let resolve = [80, 443].map(|port| format!("{host}:{port}:{address}"));
    let fixed = ["curl", "-sS", "-i", "-m", "20", "--resolve", &resolve[0], "--resolve", &resolve[1]];
    let words = fixed.into_iter().chain(more.iter().copied()).chain([url]);
    let output = fleet.cluster.client_exec(words)?;
    ensure!(output.is_success(), "{url} at node {node}: {}", output.stderr);
    let (head, body) = output.stdout.split_once("\r\n\r\n").with_context(|| format!("{url}: {output:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// What the test server calls itself in an answer: it says its host and `NAME`.
fn named(answer: &Answer) -> Result<&str> {
    ensure!(answer.status == 200, "{answer:?}");
    ["web", "api", "spare"]
        .into_iter()
        .find(|name| answer.body.contains(name))
        .with_context(|| format!("{answer:?}"))
}

fn tasks(fleet: &Fleet, app: &str) -> BTreeSet<String> {
    fleet.tasks(app).unwrap().iter().map(|task: &Value| text(&task["id"]).to_owned()).collect()
}

/// A certificate of its own for a host, with its key.
fn certificate(folder: &Path, host: &str) -> String {
    let (subject, name) = (format!("/CN={host}"), format!("subjectAltName=DNS:{host}"));
    let more = ["-subj", &subject, "-addext", &name, "-keyout", "key.pem", "-out", "chain.pem"];
    make_certificate(folder, &more);
    ["chain.pem", "key.pem"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap()).concat()
}

#[test]
fn requests_come_to_the_service_whose_route_they_are_by_every_node() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let file = |path: &str| fleet.file("shop", &SHOP.replace("PATH", path));
    let path = file("/env");
    let folder = Path::new(&path).parent().unwrap();
    std::fs::write(folder.join("users"), USERS).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate(folder, "tls.test")).unwrap();

    // People see what there will be, and where it answers.
    let up = fleet.wharf(["up", "-y", "-f", &path]);
    assert!(up.is_success(), "{}{}", up.stdout, up.stderr);
    for line in
        ["+ route    http://shop.test/ -> web:8080", "+ route    http://shop.test/ (DELETE) -> api:8080"]
    {
        assert!(up.stderr.contains(line), "{}", up.stderr);
    }
    for url in ["  http://shop.test/\n", "  https://tls.test/\n", "  http://shop.test/env\n"] {
        assert!(up.stderr.contains(url), "{}", up.stderr);
    }
    let inspected = fleet.json(["inspect", "shop/web"]);
    assert_eq!(text(&inspected[0]["routes"][0]), "http://shop.test/ -> 8080");

    // `up` is done when every gateway has the routes.
    for node in 1..=3 {
        let asked = |url: &str, more: &[&str]| curl(&fleet, node, url, more).unwrap();
        let said = |url: &str, more: &[&str]| {
            let answer = asked(url, more);
            named(&answer).map(str::to_owned).unwrap()
        };
        assert_eq!(said("http://shop.test/", &[]), "web");
        assert_eq!(said("http://shop.test/env", &[]), "api", "the longer path wins");
        assert_eq!(
            asked("http://shop.test/envoy", &[]).status,
            404,
            "it is the test server's: paths are whole segments"
        );
        assert_eq!(said("http://shop.test/", &["-H", "X-Canary: 1"]), "api");
        assert_eq!(said("http://shop.test/", &["-H", "X-Canary: 2"]), "web");
        assert_eq!(said("http://shop.test/", &["-X", "DELETE"]), "api");
        assert_eq!(said("http://a.b.wild.test/", &[]), "web");
        assert_eq!(asked("http://other.test/", &[]).status, 404, "nobody's");
        assert_eq!(said("http://spare.test/", &[]), "spare");
        let answer = asked("http://answer.test/", &[]);
        assert_eq!((answer.status, answer.body.as_str()), (503, "back soon"));

        let refused = asked("http://private.test/", &[]);
        assert_eq!(refused.status, 401);
        assert!(
            refused.header("www-authenticate").is_some_and(|value| value.starts_with("Basic")),
            "{refused:?}"
        );
        assert_eq!(asked("http://private.test/", &["-u", "ada:wrong"]).status, 401);
        assert_eq!(said("http://private.test/", &["-u", "ada:hunter2"]), "web");

        let redirect = asked("http://tls.test/env?a=b", &[]);
        assert!((301..=308).contains(&redirect.status), "{redirect:?}");
        assert_eq!(redirect.header("location"), Some("https://tls.test/env?a=b"));
        let certificate = folder.join("chain.pem").display().to_string();
        assert_eq!(
            said("https://tls.test/", &["--cacert", &certificate]),
            "web",
            "it is the certificate of the file"
        );

        let statuses: Vec<_> = (0..8).map(|_| asked("http://limited.test/", &[]).status).collect();
        assert_eq!(statuses[0], 200);
        assert!(statuses.contains(&429), "{statuses:?}");
    }

    // One client stays with one task; without the cookie it comes to all of them.
    let ask = |more: &[&str]| curl(&fleet, 2, "http://sticky.test/", more).unwrap();
    let first = ask(&[]);
    let cookie = first.header("set-cookie").expect("it is sticky").split(';').next().unwrap().to_owned();
    for _ in 0..6 {
        assert_eq!(ask(&["-H", &format!("Cookie: {cookie}")]).body, first.body);
    }
    let all: BTreeSet<_> = (0..30).map(|_| ask(&[]).body).collect();
    assert_eq!(all.len(), 3, "{all:?}");

    // Other routes are a release, and replace nothing.
    let before = tasks(&fleet, "shop");
    let changed = fleet.wharf(["up", "-y", "-f", &file("/client")]);
    assert!(changed.is_success(), "{}", changed.stderr);
    for line in
        ["- route    http://shop.test/env -> api:8080", "+ route    http://shop.test/client -> api:8080"]
    {
        assert!(changed.stderr.contains(line), "{}", changed.stderr);
    }
    let services = ["~ service ", "± service ", "+ service ", "- service "];
    assert!(!services.iter().any(|line| changed.stderr.contains(line)), "{}", changed.stderr);
    for node in 1..=3 {
        let answer = curl(&fleet, node, "http://shop.test/env", &[]).unwrap();
        assert_eq!(named(&answer).unwrap(), "web", "at once, everywhere: that is what `done` means");
    }
    assert_eq!(tasks(&fleet, "shop"), before);
    assert_eq!(items(&fleet.json(["app", "history", "shop"])).len(), 2);

    // Nobody else gets them, and what does not fit is said before anything happens.
    let refused = |app: &str, content: &str| {
        let output = fleet.wharf(["up", "-y", "-f", &fleet.file(app, content)]);
        assert_eq!(output.code, 1, "{}", output.stderr);
        output.stderr
    };
    let other = |route: &str| {
        format!("name: other\nservices: {{web: {{image: 'busybox:1', x-wharf: {{routes: [{route}]}}}}}}\n")
    };
    let said = refused("other", &other("{host: shop.test, port: 80}"));
    assert!(
        said.contains(
            "services.web.x-wharf.routes[0]: http://shop.test/ belongs to service web of app shop in "
        ) && said.contains("hint: choose another host or path"),
        "{said}"
    );
    let said = refused("other", "name: other\nservices: {web: {image: 'busybox:1', ports: ['80:80']}}\n");
    assert!(said.contains("service web publishes port 80/tcp, on which routes of service"), "{said}");
    let wrong = folder.join("../wrong");
    std::fs::create_dir_all(&wrong).unwrap();
    std::fs::write(wrong.join("cert.pem"), certificate(&wrong, "another.test")).unwrap();
    let text = "name: wrong\nservices: {web: {image: 'busybox:1', x-wharf: {routes: [{host: a.test, port: 80, tls: {certificate: cert}}]}}}\nsecrets: {cert: {file: cert.pem}}\n";
    let said = refused("wrong", text);
    assert!(
        said.contains("the secret cert has a certificate for another.test, and not for a.test"),
        "{said}"
    );
    assert!(!items(&fleet.json(["app", "ls"])).iter().any(|app| text_of(app) != "shop"), "nothing was made");

    // What is secret stays where it is needed.
    let key = std::fs::read_to_string(folder.join("key.pem")).unwrap();
    let secrets = [key.lines().nth(1).unwrap(), "87u9ZqY9S/F0eUBXjsPQ"];
    let shown = fleet.json(["app", "inspect", "shop"]).to_string();
    for node in 1..=3 {
        let kept = fleet.node(node).exec(["grep", "-rlF", "shop.test", "/var/lib/wharf/agent"]).unwrap();
        assert_ne!(kept.stdout, "", "what a node is told is looked for where it is kept");
    }
    for secret in secrets {
        assert!(!shown.contains(secret));
        for node in 1..=3 {
            let found = fleet.node(node).exec(["grep", "-rlF", secret, "/var/lib/wharf"]).unwrap();
            assert_eq!(found.stdout, "", "node {node} has a secret on its disk");
        }
    }

    // Where routes are gone, so are the answers.
    assert!(fleet.wharf(["down", "-y", "-p", "shop"]).is_success());
    wait_until(SOON, "nothing answers", || {
        let answer = curl(&fleet, 1, "http://shop.test/", &[]);
        ensure!(answer.as_ref().is_ok_and(|answer| answer.status == 404) || answer.is_err(), "{answer:?}");
        Ok(())
    });

    // The example is a file that works.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/routes/compose.yaml");
    let up = fleet.wharf(["up", "-y", "-f", &example.display().to_string()]);
    assert!(up.is_success(), "{}", up.stderr);
    let page = |node, path: &str| curl(&fleet, node, &format!("http://shop.example.com{path}"), &[]).unwrap();
    assert_eq!(page(1, "/").body, "<h1>The shop</h1>\n");
    assert_eq!(page(2, "/api/stock").body, "{\"apples\": 12}\n");
    assert!(fleet.wharf(["stop", "-p", "routes", "pages", "api"]).is_success());
    assert_eq!(page(3, "/").body, "<h1>The shop is closed for a moment</h1>\n");
    let answer = page(3, "/api/stock");
    assert_eq!((answer.status, answer.body.as_str()), (503, r#"{"error": "back soon"}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

fn text_of(app: &Value) -> &str {
    text(&app["name"])
}
