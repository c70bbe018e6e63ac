//! Certificates by ACME on real nodes: the authority is pebble, Let's Encrypt's test server, at the client's place on the switch, and it is real
//! gateways that it asks, at their ports 80 and 443.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wharf_testkit::cluster::Running;
use wharf_tests::{Fleet, make_certificate, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(60);
/// An order, and every gateway that takes part in it.
const OBTAINED: Duration = Duration::from_secs(120);

/// `APP` is the app and its host.
const FILE: &str = "
name: APP
services:
  web:
    image: wharf/testserver:1
    environment: {NAME: APP}
    stop_grace_period: 1s
    deploy: {replicas: 3}
    x-wharf:
      routes:
        - {host: APP.test, port: 8080, tls: auto}
";

/// Whether the test is to be skipped since the authority is not installed, which is said.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skip_without_pebble() -> bool {
    let is_there = |program: &str| {
        let found = Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok()
    };
    let is_missing = !is_there("pebble") || !is_there("pebble-challtestsrv");
    if is_missing {
        eprintln!("skipped: pebble is not installed (apt-get install pebble)");
    }
    is_missing
}

/// A certificate authority at the client's place, and the names of hosts as it sees them: all of them lead to one address.
struct Pebble {
    /// The address of its directory.
    directory: String,
    /// Who vouches for its own server.
    root: PathBuf,
    /// Who vouches for the certificates that it issues.
    issuer: PathBuf,
    _processes: [Running; 2],
}

impl Pebble {
    fn start(fleet: &Fleet) -> Self {
        let folder = fleet.cluster.dir().join("client/pebble");
        fs::create_dir_all(&folder).unwrap();
        let address = fleet.cluster.client_address().to_string();
        own_certificate(&folder, &address);
        let config = json!({ "pebble": {
            "listenAddress": format!("{address}:14000"),
            "managementListenAddress": format!("{address}:15000"),
            "certificate": folder.join("server.pem"),
            "privateKey": folder.join("server.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": 86_400,
        }});
        let file = folder.join("pebble.json");
        fs::write(&file, config.to_string()).unwrap();
        let names = format!("{address}:8053");
        let management = format!("{address}:8055");
        let resolver = ["-dns01", &names, "-management", &management, "-defaultIPv6", ""];
        let others = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let resolver = ["pebble-challtestsrv"].into_iter().chain(resolver).chain(others);
        let resolver = fleet.cluster.client_spawn(resolver).unwrap();
        let file = file.display().to_string();
        let authority = ["env", "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "pebble", "-config", &file];
        let authority = authority.into_iter().chain(["-dnsserver", &names]);
        let authority = fleet.cluster.client_spawn(authority).unwrap();
        let pebble = Self {
            directory: format!("https://{address}:14000/dir"),
            root: folder.join("root.pem"),
            issuer: folder.join("issuer.pem"),
            _processes: [resolver, authority],
        };
        let root = pebble.root.display().to_string();
        let issuer = wait_until(SOON, "the authority answers", || {
            let url = format!("https://{address}:15000/roots/0");
            fleet.cluster.client_exec(["curl", "-sS", "--fail", "--cacert", &root, &url])?.raw_text()
        });
        fs::write(&pebble.issuer, issuer).unwrap();
        pebble
    }

    /// The authority finds every host at this node from now on.
    fn lead_to(fleet: &Fleet, node: u8) {
        let url = format!("http://{}:8055/set-default-ipv4", fleet.cluster.client_address());
        let body = json!({ "ip": fleet.node(node).address() }).to_string();
        wait_until(SOON, "names lead elsewhere", || {
            fleet.cluster.client_exec(["curl", "-sS", "--fail", "-d", &body, &url])?.text()
        });
    }
}

/// A certificate for the authority's own server, and the root that vouches for it.
fn own_certificate(folder: &Path, address: &str) {
    let subject = format!("subjectAltName=IP:{address}");
    let root = ["-subj", "/CN=root", "-keyout", "root.key", "-out", "root.pem"];
    let vouched = ["-CA", "root.pem", "-CAkey", "root.key", "-addext", "basicConstraints=critical,CA:FALSE"];
    let server = ["-subj", "/CN=pebble", "-addext", &subject, "-keyout", "server.key", "-out", "server.pem"];
    for more in [root.to_vec(), [&vouched[..], &server].concat()] {
        make_certificate(folder, &more);
    }
}

/// What the cluster knows of a host's certificate.
fn known(fleet: &Fleet, host: &str) -> Result<Value> {
    fleet.try_json(["certificate", "inspect", host])
}

/// The serial number in one form, whoever wrote it.
fn serial(written: &str) -> String {
    let digits: String = written.chars().filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_ascii_lowercase()
}

/// The serial number of the certificate that a node shows for a host: one that the authority vouches for.
fn shown(fleet: &Fleet, pebble: &Pebble, node: u8, host: &str) -> Result<String> {
    let (address, issuer) = (fleet.node(node).address(), pebble.issuer.display());
    let script = format!(
        "openssl s_client -connect {address}:443 -servername {host} -verify_hostname {host} -CAfile {issuer} \
         -verify_return_error </dev/null 2>/dev/null | openssl x509 -noout -serial"
    );
    let said = fleet.cluster.client_exec(["timeout", "20", "sh", "-c", &script])?.text()?;
    let (_, said) = said.split_once('=').with_context(|| format!("{host} at node {node}: {said}"))?;
    Ok(serial(said))
}

/// Waits until each of these nodes answers requests for the app's host, with the certificate that the cluster has.
#[track_caller]
fn answered_by(fleet: &Fleet, pebble: &Pebble, app: &str, nodes: &[u8]) -> String {
    let host = format!("{app}.test");
    wait_until(SOON, &format!("nodes {nodes:?} answer for {host}"), || {
        let certificate = known(fleet, &host)?;
        let expected = serial(text(&certificate["serial"]));
        for node in nodes {
            let seen = shown(fleet, pebble, *node, &host)?;
            ensure!(seen == expected, "node {node} shows {seen}: {certificate}");
            let (resolve, url) =
                (format!("{host}:443:{}", fleet.node(*node).address()), format!("https://{host}/"));
            let issuer = pebble.issuer.display().to_string();
            let ask = ["curl", "-sS", "--fail", "-m", "20", "--resolve", &resolve, "--cacert", &issuer, &url];
            let answer = fleet.cluster.client_exec(ask)?.text()?;
            ensure!(answer.contains(app), "{answer}");
        }
        Ok(expected)
    })
}

/// An app with a certificate for its host that is obtained in this way, by nodes that names lead to.
fn obtain(fleet: &Fleet, app: &str, way: &str) {
    let changed = fleet.wharf(["certificate", "acme", "--challenge", way]);
    assert!(changed.is_success(), "{changed:?}");
    fleet.ok(["up", "-y", "-f", &fleet.file(app, &FILE.replace("APP", app))]);
    wait_until(OBTAINED, &format!("{app} has a certificate"), || {
        let certificate = known(fleet, &format!("{app}.test"))?;
        ensure!(certificate["state"] == "valid", "{certificate}");
        ensure!(certificate["challenge"] == way && certificate["failures"] == 0, "{certificate}");
        Ok::<_, anyhow::Error>(())
    });
}

#[test]
fn a_certificate_outlives_the_machine_by_which_it_was_obtained() {
    if skip() || skip_without_pebble() {
        return;
    }
    let fleet = Fleet::start(3);
    let pebble = Pebble::start(&fleet);
    let root = pebble.root.display().to_string();
    let acme = ["certificate", "acme", "--agree-tos", "--directory", &pebble.directory, "--ca-root", &root];
    let agreed = fleet.wharf(acme);
    assert!(agreed.is_success(), "{agreed:?}");

    // The authority finds both hosts at the third machine, and asks there.
    Pebble::lead_to(&fleet, 3);
    obtain(&fleet, "shop", "http-01");
    obtain(&fleet, "blog", "tls-alpn-01");
    let all = [1, 2, 3];
    let first = ["shop", "blog"].map(|app| answered_by(&fleet, &pebble, app, &all));
    assert_ne!(first[0], first[1]);

    // Without it the others answer as before: nothing has to be fetched, and nothing was only there.
    let lost = fleet.node(3);
    lost.power_off().unwrap();
    for (app, serial) in ["shop", "blog"].iter().zip(&first) {
        for node in [1, 2] {
            assert_eq!(shown(&fleet, &pebble, node, &format!("{app}.test")).unwrap(), *serial);
        }
    }
    assert_eq!(["shop", "blog"].map(|app| answered_by(&fleet, &pebble, app, &[1, 2])), first);

    // Names lead to another, as whoever lost a machine has them do: the certificates are renewed there, in either way.
    Pebble::lead_to(&fleet, 2);
    for (app, way) in [("blog", "tls-alpn-01"), ("shop", "http-01")] {
        let changed = fleet.wharf(["certificate", "acme", "--challenge", way]);
        assert!(changed.is_success(), "{changed:?}");
        let renewed = fleet.wharf(["certificate", "renew", &format!("{app}.test")]);
        assert!(renewed.is_success(), "{renewed:?}");
        let certificate = known(&fleet, &format!("{app}.test")).unwrap();
        assert_eq!((text(&certificate["challenge"]), text(&certificate["state"])), (way, "valid"));
    }
    let second = ["shop", "blog"].map(|app| answered_by(&fleet, &pebble, app, &[1, 2]));
    assert!(second.iter().all(|serial| !first.contains(serial)), "{first:?}, {second:?}");

    // The machine that was lost has what it missed.
    lost.boot().unwrap();
    fleet.wait_for_nodes().unwrap();
    assert_eq!(["shop", "blog"].map(|app| answered_by(&fleet, &pebble, app, &all)), second);
}
