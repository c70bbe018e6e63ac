//! `route-provider`: the built-in programs that make the routes of routed networks outside the nodes. A server starts them.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};
use wharf_agent::network::router;
use wharf_model::RouteSync;

use crate::Exit;

/// Make the routes of routed networks outside the nodes; a server starts this
#[derive(Debug, Args)]
pub(crate) struct RouteProvider {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// On a router that runs Linux
    Linux(Linux),
}

#[derive(Debug, Args)]
struct Linux {
    /// A command behind which `ip` runs on the router, such as `ssh root@router`; without one, this machine is the router
    #[arg(long, value_name = "COMMAND", default_value = "")]
    via: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read the wanted routes from standard input, make them and no others, and answer how many there are
    Sync,
}

pub(crate) async fn run(args: RouteProvider) -> Result<Exit> {
    let Kind::Linux(Linux { via, verb: Verb::Sync }) = args.kind;
    let via: Vec<String> = via.split_whitespace().map(str::to_owned).collect();
    let answer = wharf_process::blocking(move || {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the wanted routes")?;
        let wanted: RouteSync =
            serde_json::from_str(&text).context("standard input is not the routes of `sync`, in JSON")?;
        router::sync(&via, &wanted).map_err(|error| anyhow!(error))
    })
    .await?;
    let mut text = serde_json::to_string(&answer).context("cannot write the answer")?;
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the answer")?;
    Ok(Exit::Done)
}
