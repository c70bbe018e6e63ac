//! `logs`: what tasks print.

use anyhow::Result;
use http::Method;
use wharf_api::{
    transport::{LineReader, empty},
    v1,
};

use super::now;
use crate::{
    Exit,
    cli::{Files, Global},
    connect::{Cluster, app_path, query},
    output::{Color, Format, Output},
};

/// Show what tasks print
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("file", |file| file.short(None)),
    after_help = "Examples:\n  wharf logs -f web                follow one service, on whatever nodes it runs\n  wharf logs --tail 100 --since 10m\n  wharf logs --task shop-web-2     one task"
)]
pub(crate) struct Logs {
    // `-f` is for following here, as everywhere; before the verb it is the file.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// Only so many of each task's last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u64>,
    /// Only lines since then: 30s, 10m, 2h, 1d ago, or a time such as 2026-11-21T15:04:05Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<u64>,
    /// Only lines before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<u64>,
    /// Of this task only, by name or id
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Begin each line with its time
    #[arg(long, short)]
    timestamps: bool,
    /// Do not begin lines with the name of their task
    #[arg(long)]
    no_prefix: bool,
    /// Of these services only
    services: Vec<String>,
}

/// A time in milliseconds since the epoch: so long ago, or a timestamp.
pub(crate) fn moment(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is no time: write 30s, 10m, 2h or 1d for so long ago, or 2026-11-21T15:04:05Z");
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(at.as_millisecond()).map_err(|_| wrong());
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(now().saturating_sub(number.saturating_mul(factor)))
}

pub(crate) async fn run(args: Logs, global: &Global, out: &Output) -> Result<Exit> {
    let name = crate::project::app_name(&args.files, out)?;
    let cluster = Cluster::dial(global).await?;
    let key = cluster.app(name);
    let mut path = app_path(&key, &format!("/logs?follow={}", args.follow));
    let optional = [
        ("tail", args.tail.map(|number| number.to_string())),
        ("since", args.since.map(|number| number.to_string())),
        ("until", args.until.map(|number| number.to_string())),
        ("task", args.task),
        ("service", (!args.services.is_empty()).then(|| args.services.join(","))),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={}", query(&value)));
        }
    }
    let response = cluster.client.open(Method::GET, &path, empty()).await?;
    let mut lines =
        LineReader::<v1::LogLine>::new(response.into_body(), cluster.client.timing().stream_silence());
    let mut width = 0;
    while let Some(line) = lines.next().await? {
        if out.format == Format::Json {
            out.json_line(&line)?;
            continue;
        }
        width = width.max(line.task.len());
        if line.stream == "wharf" {
            out.must_say(&format!("{}: {}", out.paint(Color::Pending, &line.task), line.text));
            continue;
        }
        let at = jiff::Timestamp::from_millisecond(i64::try_from(line.at).unwrap_or(0)).unwrap_or_default();
        let at = if args.timestamps { format!("{at:.3} ") } else { String::new() };
        let prefix = if args.no_prefix { String::new() } else { format!("{:<width$} | ", line.task) };
        out.data(&format!("{at}{prefix}{}", line.text))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_so_long_ago_or_a_timestamp() {
        assert!(now() - moment("10m").unwrap() < 601_000);
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000));
        assert!(moment("soon").is_err());
        assert!(moment("").is_err());
    }
}
