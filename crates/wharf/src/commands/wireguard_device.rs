//! `wireguard-device`: the process that carries tunnels where the kernel has no WireGuard. The agent starts it; nobody else has to.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use wharf_agent::network::wireguard::run_device;
use wharf_process::{
    Shutdown, Tasks, blocking,
    detached::{self, Capabilities},
    logging::{self, Format},
};

use crate::Exit;

/// What the process is called in lists of processes.
const NAME: &str = "wharf-wireguard";

/// Carry this machine's WireGuard tunnels; the agent starts this
#[derive(Debug, clap::Args)]
pub(crate) struct WireguardDevice {
    /// The TUN device to make or take over
    interface: String,
    /// Where to be told what to do
    socket: PathBuf,
}

/// What to give this executable so that it becomes that process, before the interface and the socket.
pub(crate) fn arguments() -> Vec<OsString> {
    vec!["wireguard-device".into()]
}

pub(crate) async fn run(args: WireguardDevice) -> Result<Exit> {
    logging::init(Format::Text, "info,gotatun=warn")?;
    // The TUN device is all that takes a privilege. The threads that do the work come after this, and have no others.
    detached::begin(NAME, Capabilities::NET_ADMIN).context("cannot become a process of its own")?;
    blocking(move || carry(&args.interface, &args.socket)).await?;
    Ok(Exit::Done)
}

/// Encrypting one way and decrypting the other take a thread each.
fn carry(interface: &str, socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("cannot start")?.block_on(async {
        let tasks = Tasks::new(&Shutdown::new());
        let outcome = run_device(interface, socket, &tasks).await;
        Err(anyhow!(outcome.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string()))
            .context("tunnels are not carried any more"))
    })
}
