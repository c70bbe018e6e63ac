//! `fence`: the process that ends what must not run twice when its node may not run it any more. The agent starts it; nobody else has to.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use wharf_agent::fence;
use wharf_process::{
    Shutdown, SystemClock, Tasks,
    detached::{self, Capabilities, Program},
    logging::{self, Format},
    shutdown::Signals,
};

use crate::Exit;

/// What the process is called in lists of processes.
const NAME: &str = "wharf-fence";

/// End containers that must not run twice when this machine's lease is over; the agent starts this
#[derive(Debug, clap::Args)]
pub(crate) struct Fence {
    /// The agent's folder in memory
    #[arg(long, value_name = "FOLDER")]
    run_dir: PathBuf,
    /// What to log: a level, or a list of target=level
    #[arg(long, default_value = "info", env = "WHARF_LOG", value_name = "FILTER")]
    log: String,
}

/// The process of an agent with this folder.
pub(crate) fn program(run_dir: &Path) -> Program {
    fence::program(run_dir, ["fence".into(), "--run-dir".into(), OsString::from(run_dir)].into())
}

pub(crate) async fn run(args: Fence) -> Result<Exit> {
    logging::init(Format::Text, &args.log)?;
    std::fs::create_dir_all(&args.run_dir)
        .with_context(|| format!("cannot make {}", args.run_dir.display()))?;
    // To end processes of containers, whoever they run as, is all that it does; their groups may be hidden from others.
    detached::begin(NAME, Capabilities::KILL | Capabilities::SYS_PTRACE)
        .context("cannot become a process of its own")?;
    let shutdown = Shutdown::new();
    let signals = Signals::listen().context("cannot listen for signals")?;
    let tasks = Tasks::staged(&shutdown);
    let asked = shutdown.clone();
    tasks.spawn("signals", async move { signals.forward(&asked).await });
    let folder = args.run_dir.display().to_string();
    fence::serve(args.run_dir, Arc::new(SystemClock::new()), &shutdown)
        .await
        .with_context(|| format!("cannot watch leases with {folder} as its folder"))?;
    Ok(Exit::Done)
}
