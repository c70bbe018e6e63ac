//! `top`: what tasks use.

use std::{io::Write as _, time::Duration};

use anyhow::Result;
use wharf_api::v1;

use crate::{
    Exit,
    cli::{Files, Global},
    connect::{Cluster, query},
    output::{Format, Output, table},
};

/// Show what tasks use
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a terminal it goes on until Ctrl-C; elsewhere, and with `--once`, it looks once.\n\nExamples:\n  wharf top\n  wharf top --all --once --format json\n  wharf top --node worker-1"
)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Of every app of every environment
    #[arg(long, short)]
    all: bool,
    /// On this machine only
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Look once
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(args: Top, global: &Global, out: &Output) -> Result<Exit> {
    use std::io::IsTerminal as _;
    let cluster = Cluster::dial(global).await?;
    let path = match (&args.node, args.all) {
        (Some(node), _) => format!("/v1/usage?node={}", query(node)),
        (None, true) => "/v1/usage".to_owned(),
        (None, false) => {
            let app = crate::project::app_name(&args.files, out)?;
            // Says what is wrong with the name, which an empty list would not.
            let _status: v1::AppStatus =
                cluster.client.get(&crate::connect::app_path(&cluster.app(app.clone()), "")).await?;
            format!(
                "/v1/usage?environment={}&app={}",
                query(cluster.environment.as_str()),
                query(app.as_str())
            )
        }
    };
    let live = !args.once && out.format == Format::Table && std::io::stdout().is_terminal();
    loop {
        let usages: Vec<v1::Usage> = cluster.client.get(&path).await?;
        if out.format == Format::Json {
            out.json(&usages)?;
            return Ok(Exit::Done);
        }
        let rows: Vec<_> = usages.iter().map(row).collect();
        let lines = table(
            &["TASK", "NODE", "CPU", "MEMORY", "LIMIT", "NET IN", "NET OUT", "READ", "WRITTEN", "PIDS"],
            &rows,
        );
        if !live {
            for line in lines {
                out.data(&line)?;
            }
            return Ok(Exit::Done);
        }
        let mut screen = std::io::stdout().lock();
        // Home, each line cleared to its end, then everything below.
        write!(
            screen,
            "\x1b[H{}\x1b[J",
            lines.iter().map(|line| format!("{line}\x1b[K\r\n")).collect::<String>()
        )
        .and_then(|()| screen.flush())
        .map_err(crate::GoneReader::or)?;
        drop(screen);
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn row(usage: &v1::Usage) -> Vec<String> {
    vec![
        usage.name.clone(),
        usage.node.clone(),
        format!("{}.{}%", usage.cpus.0 / 10, usage.cpus.0 % 10),
        usage.memory.to_string(),
        usage.memory_limit.to_string(),
        usage.network_rx.to_string(),
        usage.network_tx.to_string(),
        usage.block_read.to_string(),
        usage.block_write.to_string(),
        usage.pids.to_string(),
    ]
}
