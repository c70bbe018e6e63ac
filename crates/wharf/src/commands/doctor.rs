//! `doctor`: what is wrong, and what to do about it.

use anyhow::{Result, bail};
use http::Method;
use wharf_api::{
    transport::{LineReader, full},
    v1,
};

use crate::{
    Exit,
    cli::Global,
    connect::Cluster,
    output::{Color, Format, Output},
};

/// Find out what is wrong, and what to do about it
#[derive(Debug, clap::Args)]
#[command(after_help = "Without a subject: servers, nodes, apps, and the networks in short.
Exits with 1 if there is a problem; warnings do not count.\n\nExamples:\n  wharf doctor\n  wharf doctor network                 every path of every network\n  wharf doctor --format json")]
pub(crate) struct Doctor {
    #[command(subcommand)]
    subject: Option<Subject>,
}

#[derive(Debug, clap::Subcommand)]
enum Subject {
    /// Walk every path of every network, mend what can be mended, and say what a person must do
    #[command(
        after_help = "Tried between all nodes that share a network: whether they reach each other, whether the network carries packets between their bridges and containers and of what size, exposed ports, and every name at every node by UDP and TCP. The kernels are compared with the tables, and mended.\nExits with 1 if a person must do something.\n\nExamples:\n  wharf doctor network\n  wharf doctor network --network shop_default\n  wharf doctor network --fast          one task of each node, names by UDP only"
    )]
    Network(NetworkArgs),
}

#[derive(Debug, clap::Args)]
struct NetworkArgs {
    /// This network only: name, `APP/NETWORK` or id
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// One task of each node instead of all, names by UDP only, no packet sizes
    #[arg(long)]
    fast: bool,
}

pub(crate) async fn run(args: Doctor, global: &Global, out: &Output) -> Result<Exit> {
    match args.subject {
        None => everything(global, out).await,
        Some(Subject::Network(args)) => network(args, global, out).await,
    }
}

/// What was mended so long ago is told, in milliseconds: older things were told by somebody else, or nobody asked.
const RECENT: u64 = 60_000;

async fn network(args: NetworkArgs, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let environment = args.network.is_some().then(|| cluster.environment.to_string());
    let wish = v1::NetworkDoctorRequest { network: args.network, environment, fast: args.fast };
    let report = examine(&cluster, &wish, out).await?;
    match out.format {
        Format::Json => out.json(&report)?,
        Format::Table => show(&report, out)?,
    }
    Ok(if report.todo.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Has the networks examined, and says how far that is.
async fn examine(
    cluster: &Cluster,
    wish: &v1::NetworkDoctorRequest,
    out: &Output,
) -> Result<v1::NetworkReport> {
    let body = full(serde_json::to_vec(wish)?);
    let response = cluster.client.open(Method::POST, "/v1/doctor/network", body).await?;
    let mut lines = LineReader::<v1::NetworkDoctorLine>::new(
        response.into_body(),
        cluster.client.timing().stream_silence(),
    );
    let mut said = String::new();
    while let Some(line) = lines.next().await? {
        match line {
            v1::NetworkDoctorLine::Progress { what, done, of } => {
                // On a terminal every step; else each kind of work once.
                let is_new = what != said;
                said.clone_from(&what);
                if !out.quiet && out.live {
                    eprint_over(&format!("{what}: {done} of {of}"));
                } else if is_new {
                    out.say(&format!("{what}: {of}"));
                }
            }
            v1::NetworkDoctorLine::Report(report) => {
                if !out.quiet && out.live {
                    eprint_over("");
                }
                return Ok(*report);
            }
        }
    }
    bail!(crate::hint("the server broke off without a report", "try again; its log says why"))
}

/// Writes a line in the place of the last one.
fn eprint_over(line: &str) {
    use std::io::Write as _;
    let mut err = std::io::stderr().lock();
    // Nobody to tell is no reason to stop.
    let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
}

fn show(report: &v1::NetworkReport, out: &Output) -> Result<()> {
    for network in &report.networks {
        let (color, mark) = if network.healthy { (Color::Good, "ok     ") } else { (Color::Bad, "problem") };
        out.data(&format!("{}  {}: {}", out.paint(color, mark), network.network, network.message))?;
    }
    if report.networks.is_empty() {
        out.data("ok       there is no network")?;
    }
    for mend in &report.mended {
        let times = if mend.count == 1 { String::new() } else { format!(", {} times", mend.count) };
        let when = match mend.ago {
            0..2_000 => "now".to_owned(),
            ago => format!("{} ago", crate::output::rough(std::time::Duration::from_millis(ago))),
        };
        out.data(&format!(
            "{}  {} on {}: {}{times} ({when})",
            out.paint(Color::Pending, "mended "),
            mend.network,
            mend.node,
            mend.fault
        ))?;
    }
    for note in &report.notes {
        out.data(&format!("{}  {}", out.paint(Color::Pending, "warning"), note.problem))?;
        out.data(&format!("         hint: {}", remedy(note)))?;
    }
    if !report.todo.is_empty() {
        out.data("")?;
        out.data("To do:")?;
    }
    for (number, todo) in report.todo.iter().enumerate() {
        out.data(&format!("{:>3}. {}", number + 1, out.paint(Color::Bad, &todo.problem)))?;
        out.data(&format!("     {}", todo.remedy))?;
        if let Some(command) = &todo.command {
            let place = todo.node.as_ref().map(|node| format!("on {node}: ")).unwrap_or_default();
            out.data(&format!("     {place}{command}"))?;
        }
    }
    out.say(&format!(
        "{} probes in {}.{} s",
        report.probes,
        report.millis / 1000,
        report.millis % 1000 / 100
    ));
    Ok(())
}

fn remedy(todo: &v1::NetworkTodo) -> String {
    match (&todo.node, &todo.command) {
        (Some(node), Some(command)) => format!("{}; on {node}: `{command}`", todo.remedy),
        (None, Some(command)) => format!("{}: `{command}`", todo.remedy),
        _ => todo.remedy.clone(),
    }
}

/// Whether it says of a node what was said already.
fn is_told(told: &[v1::Finding], new: &v1::Finding) -> bool {
    told.iter().any(|told| {
        let node = told.subject.strip_prefix("node ").filter(|_| told.level != "ok");
        node.is_some_and(|node| {
            new.message.starts_with(&format!("{node} cannot be looked at"))
                || new.message == format!("{node}: {}", told.message)
        })
    })
}

/// The same as findings, beside those of the rest of the cluster.
fn findings(report: &v1::NetworkReport) -> Vec<v1::Finding> {
    let finding = |level: &str, subject: String, message: String, hint| v1::Finding {
        level: level.into(),
        subject,
        message,
        hint,
    };
    let mut findings = Vec::new();
    for network in report.networks.iter().filter(|network| network.healthy) {
        findings.push(finding("ok", format!("network {}", network.network), network.message.clone(), None));
    }
    for mend in report.mended.iter().filter(|mend| mend.ago < RECENT) {
        let message = format!("on {}: {}, {} time(s): mended", mend.node, mend.fault, mend.count);
        let hint =
            "somebody or something changes devices of Wharf; `wharf doctor network` says more".to_owned();
        findings.push(finding("warning", format!("network {}", mend.network), message, Some(hint)));
    }
    for note in &report.notes {
        findings.push(finding("warning", "network".into(), note.problem.clone(), Some(remedy(note))));
    }
    for todo in &report.todo {
        findings.push(finding("problem", "network".into(), todo.problem.clone(), Some(remedy(todo))));
    }
    findings
}

async fn everything(global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let before = super::now();
    let version: v1::Version = cluster.client.get("/v1/version").await?;
    let after = super::now();
    let mut findings = vec![v1::Finding {
        level: "ok".into(),
        subject: "server".into(),
        message: format!(
            "{} of cluster {} answers in {} ms",
            cluster.client.name(),
            version.cluster_name,
            after - before
        ),
        hint: None,
    }];
    let offset = i128::from(version.now) - i128::from(before.midpoint(after));
    if offset.unsigned_abs() > 5_000 {
        findings.push(v1::Finding {
            level: "warning".into(),
            subject: "clock".into(),
            message: format!(
                "this machine's clock and the server's differ by {} s",
                offset.unsigned_abs() / 1000
            ),
            hint: Some("set both by NTP: `timedatectl set-ntp true`".into()),
        });
    }
    if version.version != env!("CARGO_PKG_VERSION") {
        findings.push(v1::Finding {
            level: "warning".into(),
            subject: "version".into(),
            message: format!("this client is {}, the server {}", env!("CARGO_PKG_VERSION"), version.version),
            hint: Some("use the same version on both sides".into()),
        });
    }
    findings.extend(cluster.client.get::<Vec<v1::Finding>>("/v1/doctor").await?);
    let wish = v1::NetworkDoctorRequest { fast: true, ..v1::NetworkDoctorRequest::default() };
    match examine(&cluster, &wish, out).await {
        Ok(report) => {
            let mut of_networks = self::findings(&report);
            of_networks.retain(|new| !is_told(&findings, new));
            findings.extend(of_networks);
        }
        // The rest is worth telling all the same.
        Err(error) => findings.push(v1::Finding {
            level: "problem".into(),
            subject: "network".into(),
            message: format!("the networks cannot be examined: {error:#}"),
            hint: Some("is the server older than this client? `wharf version` shows both".into()),
        }),
    }
    match out.format {
        Format::Json => out.json(&findings)?,
        Format::Table => {
            for finding in &findings {
                let (color, mark) = match finding.level.as_str() {
                    "ok" => (Color::Good, "ok     "),
                    "warning" => (Color::Pending, "warning"),
                    _ => (Color::Bad, "problem"),
                };
                out.data(&format!("{}  {}: {}", out.paint(color, mark), finding.subject, finding.message))?;
                if let Some(hint) = &finding.hint {
                    out.data(&format!("         hint: {hint}"))?;
                }
            }
        }
    }
    let problems = findings.iter().filter(|finding| finding.level == "problem").count();
    if problems > 0 {
        out.say(&format!("{problems} problem(s)"));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}
