//! `doctor`: what is wrong, and what to do about it.

use anyhow::Result;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    connect::Cluster,
    output::{Color, Format, Output},
};

/// Find out what is wrong, and what to do about it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits with 1 if there is a problem; warnings do not count.\n\nExamples:\n  wharf doctor\n  wharf doctor --format json"
)]
pub(crate) struct Doctor {}

pub(crate) async fn run(_args: Doctor, global: &Global, out: &Output) -> Result<Exit> {
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
