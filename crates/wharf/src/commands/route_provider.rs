//! `route-provider`: the built-in programs that make the routes of routed networks outside the nodes. A server starts them.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, anyhow, ensure};
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
    /// A command behind which `ip` runs on the router, such as `ssh root@router` (without one, this machine is the router), and `sync`:
    /// it reads the wanted routes from standard input, makes them and no others, and answers how many there are
    #[arg(
        value_name = "[COMMAND...] sync",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

pub(crate) async fn run(args: RouteProvider) -> Result<Exit> {
    let Kind::Linux(Linux { words: mut via }) = args.kind;
    // What a server adds to the command it was told.
    ensure!(via.pop().as_deref() == Some("sync"), "the last word must be `sync`: that is all it can do");
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
