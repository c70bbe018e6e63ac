//! `dns`: the process that answers the containers' DNS questions. The agent starts it; nobody else has to.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use wharf_agent::{dns, dns::ProcessOptions};
use wharf_process::{
    Shutdown, Tasks,
    detached::{self, Capabilities, Program},
    logging::{self, Format},
    shutdown::Signals,
};

use crate::Exit;

/// What the process is called in lists of processes.
const NAME: &str = "wharf-dns";

/// Answer DNS for this machine's containers; the agent starts this
#[derive(Debug, clap::Args)]
pub(crate) struct Dns {
    /// The agent's folder in memory
    #[arg(long, value_name = "FOLDER")]
    run_dir: PathBuf,
    /// What to log: a level, or a list of target=level
    #[arg(long, default_value = "info", env = "WHARF_LOG", value_name = "FILTER")]
    log: String,
}

/// The DNS process of an agent with this folder.
pub(crate) fn program(run_dir: &Path) -> Program {
    let arguments = ["dns".into(), "--run-dir".into(), OsString::from(run_dir)];
    dns::program(run_dir, arguments.into())
}

pub(crate) async fn run(args: Dns) -> Result<Exit> {
    logging::init(Format::Text, &args.log)?;
    std::fs::create_dir_all(&args.run_dir)
        .with_context(|| format!("cannot make {}", args.run_dir.display()))?;
    // Port 53 is all that takes a privilege.
    detached::begin(NAME, Capabilities::NET_BIND_SERVICE).context("cannot become a process of its own")?;
    let shutdown = Shutdown::new();
    let signals = Signals::listen().context("cannot listen for signals")?;
    let tasks = Tasks::staged(&shutdown);
    let asked = shutdown.clone();
    tasks.spawn("signals", async move { signals.forward(&asked).await });
    let folder = args.run_dir.display().to_string();
    dns::serve(ProcessOptions { folder: args.run_dir }, &shutdown)
        .await
        .with_context(|| format!("cannot serve DNS with {folder} as its folder"))?;
    Ok(Exit::Done)
}
