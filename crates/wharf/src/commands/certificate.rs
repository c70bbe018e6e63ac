//! `certificate …`: what gateways show to clients of TLS, and who issues it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use http::Method;
use wharf_api::v1;
use wharf_process::clock::{Clock as _, SystemClock};

use crate::{
    Exit,
    cli::Global,
    connect::{Cluster, query},
    output::{Color, Format, Output, rough},
};

/// How often it is looked whether a certificate is there.
const LOOK: Duration = Duration::from_millis(500);

/// Look at certificates, and say who issues them
#[derive(Debug, clap::Args)]
pub(crate) struct Certificate {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the certificates that gateways show, and those they wait for
    #[command(
        visible_alias = "list",
        after_help = "Routes with `tls: auto` have theirs obtained and renewed; those with `tls: {certificate: SECRET}` bring their own.\nExits with 1 if one is missing or about to fail.\n\nExamples:\n  wharf certificate ls\n  wharf certificate ls --format json"
    )]
    Ls,
    /// Show a certificate, and why it is not there
    #[command(after_help = "Example:\n  wharf certificate inspect shop.example.com")]
    Inspect {
        /// For which host
        host: String,
    },
    /// Obtain a new certificate now, and wait for it
    #[command(
        after_help = "What is shown stays until the new one is there. Public authorities allow a few per week and host.\nExits with 1 if it is refused, saying why.\n\nExample:\n  wharf certificate renew shop.example.com"
    )]
    Renew {
        /// For which host
        host: String,
        /// Do not wait for it
        #[arg(long, short)]
        detach: bool,
        /// Give up waiting after so many seconds (exit code 3)
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
    },
    /// Show or change who issues certificates for routes with `tls: auto`
    #[command(
        after_help = "Without options it shows what holds. Hosts must lead to nodes with the gateway role in public DNS; the authority asks them\non port 80 (http-01) or 443 (tls-alpn-01).\n\nExamples:\n  wharf certificate acme --agree-tos --email ops@example.com\n  wharf certificate acme --directory https://acme-staging-v02.api.letsencrypt.org/directory --agree-tos\n  wharf certificate acme --directory https://ca.internal/acme/acme/directory --ca-root root.pem --agree-tos\n  wharf certificate acme --challenge tls-alpn-01"
    )]
    Acme(Acme),
}

#[derive(Debug, clap::Args)]
struct Acme {
    /// The address of the authority's directory [default: that of Let's Encrypt]
    #[arg(long, value_name = "URL")]
    directory: Option<String>,
    /// Whom the authority may write to; empty for nobody
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// Agree to the terms of the authority
    #[arg(long)]
    agree_tos: bool,
    /// The root certificate of a private authority, in PEM; empty for none
    #[arg(long, value_name = "FILE")]
    ca_root: Option<PathBuf>,
    /// How hosts are proven: http-01 or tls-alpn-01; given twice, the first one is tried first
    #[arg(long, value_name = "WAY")]
    challenge: Vec<String>,
    /// The identifier of an account that the authority knows already; empty for none
    #[arg(long, value_name = "ID")]
    eab_id: Option<String>,
    /// A file with the key of that account, in base64
    #[arg(long, value_name = "FILE")]
    eab_key_file: Option<PathBuf>,
}

pub(crate) async fn run(args: Certificate, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls => ls(&cluster, out).await,
        Verb::Inspect { host } => inspect(&cluster, &host, out).await,
        Verb::Renew { host, detach, timeout } => renew(&cluster, &host, detach, timeout, out).await,
        Verb::Acme(wish) => acme(&cluster, wish, out).await,
    }
}

async fn ls(cluster: &Cluster, out: &Output) -> Result<Exit> {
    let all: Vec<v1::Certificate> = cluster.client.get("/v1/certificates").await?;
    let headers = ["HOST", "STATE", "EXPIRES", "ISSUER", "SOURCE", "APPS", "WHY"];
    out.list(&all, &headers, |certificate| {
        vec![
            certificate.host.clone(),
            certificate.state.clone(),
            certificate.not_after.map_or_else(|| "-".to_owned(), until),
            certificate.issuer.clone().unwrap_or_else(|| "-".to_owned()),
            certificate.source.clone(),
            if certificate.apps.is_empty() { "-".to_owned() } else { certificate.apps.join(", ") },
            certificate.why.clone(),
        ]
    })?;
    if all.is_empty() {
        out.say("there is no certificate: a route with `tls` in a Compose file asks for one");
    }
    let is_bad = |certificate: &v1::Certificate| matches!(certificate.state.as_str(), "failing" | "expired");
    Ok(if all.iter().any(is_bad) { Exit::Failed } else { Exit::Done })
}

/// When that is, for people.
fn until(at: u64) -> String {
    let now = super::now();
    match at.checked_sub(now) {
        Some(left) => format!("in {}", rough(Duration::from_millis(left))),
        None => format!("{} ago", rough(Duration::from_millis(now - at))),
    }
}

fn path(host: &str) -> String {
    format!("/v1/certificates/{}", query(host).replace('/', "%2F"))
}

async fn inspect(cluster: &Cluster, host: &str, out: &Output) -> Result<Exit> {
    let found: v1::Certificate = cluster.client.get(&path(host)).await?;
    show(&found, out)?;
    Ok(Exit::Done)
}

fn show(found: &v1::Certificate, out: &Output) -> Result<()> {
    if out.format == Format::Json {
        return out.json(found);
    }
    let source = match found.source.as_str() {
        "acme" => "obtained and renewed by the cluster".to_owned(),
        other => format!("given by a {other}"),
    };
    let mut lines = vec![("host", found.host.clone()), ("state", found.state.clone())];
    if !found.why.is_empty() {
        lines.push(("why", found.why.clone()));
    }
    lines.push(("source", source));
    if !found.apps.is_empty() {
        lines.push(("apps", found.apps.join(", ")));
    }
    if let Some(issuer) = &found.issuer {
        lines.push(("issuer", issuer.clone()));
    }
    if let Some(serial) = &found.serial {
        lines.push(("serial", serial.clone()));
    }
    lines.extend(found.not_after.map(|at| ("expires", until(at))));
    lines.extend(found.directory.clone().map(|directory| ("from", directory)));
    lines.extend(found.challenge.clone().map(|challenge| ("proven by", challenge)));
    lines.extend(found.obtained_at.map(|at| ("obtained", format!("{} ago", super::ago(at)))));
    if found.failures > 0 {
        let last =
            found.failed_at.map(|at| format!(", the last one {} ago", super::ago(at))).unwrap_or_default();
        lines.push(("failures", format!("{} in a row{last}", found.failures)));
    }
    lines.extend(found.next_attempt.map(|at| ("next", until(at))));
    for (name, value) in lines {
        out.data(&format!("{name:<12} {value}"))?;
    }
    Ok(())
}

async fn renew(cluster: &Cluster, host: &str, detach: bool, timeout: u64, out: &Output) -> Result<Exit> {
    let path = path(host);
    let before: v1::Certificate = cluster.client.get(&path).await?;
    let _: v1::Certificate = cluster.client.call(Method::POST, &format!("{path}/renew"), &()).await?;
    if detach {
        out.say(&format!(
            "a certificate for {host} was asked for; `wharf certificate inspect {host}` says what came of it"
        ));
        return Ok(Exit::Done);
    }
    out.say(&format!("waiting for the certificate of {host}"));
    let clock = SystemClock::new();
    let until = clock.monotonic() + Duration::from_secs(timeout);
    while clock.monotonic() < until {
        let now: v1::Certificate = cluster.client.get(&path).await?;
        if now.obtained_at != before.obtained_at && now.obtained_at.is_some() {
            out.say(&out.paint(Color::Good, "done"));
            show(&now, out)?;
            return Ok(Exit::Done);
        }
        if now.failed_at != before.failed_at && now.failed_at.is_some() {
            out.must_say(&format!("{}: {}", out.paint(Color::Bad, "refused"), now.why));
            return Ok(Exit::Failed);
        }
        clock.sleep(LOOK).await;
    }
    out.must_say("it is not there yet; it is still being obtained");
    Ok(Exit::NotYet)
}

async fn acme(cluster: &Cluster, wish: Acme, out: &Output) -> Result<Exit> {
    let read = |path: PathBuf| match path.as_os_str().is_empty() {
        true => Ok(String::new()),
        false => std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display())),
    };
    let change = v1::AcmeChange {
        directory: wish.directory,
        email: wish.email,
        terms_agreed: wish.agree_tos.then_some(true),
        roots: wish.ca_root.map(read).transpose()?,
        challenges: Some(wish.challenge).filter(|ways| !ways.is_empty()),
        external_account: wish.eab_id,
        external_key: wish.eab_key_file.map(read).transpose()?,
    };
    let settings: v1::AcmeSettings = if change == v1::AcmeChange::default() {
        cluster.client.get("/v1/acme").await?
    } else {
        cluster.client.call(Method::PUT, "/v1/acme", &change).await?
    };
    if out.format == Format::Json {
        out.json(&settings)?;
        return Ok(Exit::Done);
    }
    out.data(&format!("directory    {}", settings.directory))?;
    out.data(&format!("email        {}", settings.email.as_deref().unwrap_or("-")))?;
    out.data(&format!("terms        {}", if settings.terms_agreed { "agreed to" } else { "not agreed to" }))?;
    out.data(&format!("proofs       {}", settings.challenges.join(", then ")))?;
    if settings.roots > 0 {
        out.data(&format!("roots        {} beside those that machines trust", settings.roots))?;
    }
    if let Some(id) = &settings.external_account {
        out.data(&format!("known as     {id}"))?;
    }
    out.data(&format!(
        "account      {}",
        if settings.account { "opened" } else { "opened with the first certificate" }
    ))?;
    if !settings.terms_agreed {
        out.say("nothing is obtained before somebody agrees to the authority's terms: `wharf certificate acme --agree-tos`");
    }
    Ok(Exit::Done)
}
