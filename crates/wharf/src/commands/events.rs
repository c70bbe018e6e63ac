//! `events`: what happens, as it happens.

use anyhow::Result;
use http::Method;
use wharf_api::{
    transport::{LineReader, empty},
    v1,
};

use crate::{
    Exit,
    cli::Global,
    commands::now,
    connect::{Cluster, query},
    output::{Color, Format, Output},
};

/// Show what happens, as it happens
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  wharf events                    follow\n  wharf events --since 1h --no-follow\n  wharf events --app shop --format json"
)]
pub(crate) struct Events {
    /// Of this app only
    #[arg(long, short = 'p', value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Begin that long ago: 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = super::logs::moment)]
    since: Option<u64>,
    /// Show what there is and end
    #[arg(long)]
    no_follow: bool,
}

pub(crate) async fn run(args: Events, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let since = args.since.unwrap_or_else(now);
    let mut path = format!("/v1/events?follow={}&since={since}", !args.no_follow);
    if let Some(app) = &args.app {
        path.push_str(&format!("&app={}/{}", query(cluster.environment.as_str()), query(app)));
    }
    let response = cluster.client.open(Method::GET, &path, empty()).await?;
    let mut lines = LineReader::new(response.into_body(), cluster.client.timing().stream_silence());
    while let Some(event) = lines.next().await? {
        let event: v1::Event = event;
        match out.format {
            Format::Json => out.json_line(&event)?,
            Format::Table => {
                let at = jiff::Timestamp::from_millisecond(i64::try_from(event.at)?)?;
                let place = event
                    .node
                    .as_ref()
                    .filter(|_| event.kind != "node")
                    .map(|node| format!(" on {node}"))
                    .unwrap_or_default();
                let by = event.by.as_ref().map(|by| format!(" (by {by})")).unwrap_or_default();
                out.data(&format!(
                    "{}  {:<6}  {}{place}{by}",
                    out.paint(Color::Dim, &format!("{at:.0}")),
                    event.kind,
                    event.message
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}
