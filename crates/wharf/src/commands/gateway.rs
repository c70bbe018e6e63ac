//! `gateway`: the process that takes connections on published ports and routes. The agent starts it; nobody else has to.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use wharf_gateway::{
    AccessLogOptions, GatewayOptions, HttpOptions,
    process::{self, ProcessOptions},
};
use wharf_model::clients_at;
use wharf_process::{
    Shutdown, Tasks,
    detached::{self, Capabilities, Program},
    logging::{self, Format},
    shutdown::Signals,
};

use crate::Exit;

/// What the process is called in lists of processes.
const NAME: &str = "wharf-gateway";
/// Where requests are logged.
const ACCESS_LOG: &str = "/var/log/wharf/access.log";
/// Open files: two for each connection, and some.
const FILES: u64 = 1 << 20;

/// Take connections on published ports and routes; the agent starts this
#[derive(Debug, clap::Args)]
pub(crate) struct Gateway {
    /// The agent's folder in memory
    #[arg(long, value_name = "FOLDER")]
    run_dir: PathBuf,
    /// Where a line of JSON is written for each request; `off` for nowhere
    #[arg(long, default_value = ACCESS_LOG, env = "WHARF_ACCESS_LOG", value_name = "FILE")]
    access_log: PathBuf,
    /// Proxies and load balancers before the gateways whose `X-Forwarded-*` headers are believed: addresses and networks, with commas between
    #[arg(long, env = "WHARF_TRUSTED_PROXIES", value_delimiter = ',', value_parser = network, value_name = "NETWORK")]
    trusted_proxies: Vec<IpNet>,
    /// What to log: a level, or a list of target=level
    #[arg(long, default_value = "info", env = "WHARF_LOG", value_name = "FILTER")]
    log: String,
}

/// A network as `10.0.0.0/8`, or an address for itself alone.
fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("`{text}` is no address and no network such as 10.0.0.0/8");
    clients_at(text.trim()).ok_or_else(wrong)
}

/// The gateway process of an agent with this folder.
pub(crate) fn program(run_dir: &Path) -> Program {
    let arguments = ["gateway".into(), "--run-dir".into(), OsString::from(run_dir)];
    process::program(run_dir, arguments.into())
}

pub(crate) async fn run(args: Gateway) -> Result<Exit> {
    logging::init(Format::Text, &args.log)?;
    std::fs::create_dir_all(&args.run_dir)
        .with_context(|| format!("cannot make {}", args.run_dir.display()))?;
    let files = raise_files();
    // Ports below 1024, and connections from clients' addresses.
    let privileges = Capabilities::NET_BIND_SERVICE | Capabilities::NET_ADMIN;
    detached::begin(NAME, privileges).context("cannot become a process of its own")?;
    tracing::info!(files, "files that may be open");
    let shutdown = Shutdown::new();
    let signals = Signals::listen().context("cannot listen for signals")?;
    let tasks = Tasks::staged(&shutdown);
    let asked = shutdown.clone();
    tasks.spawn("signals", async move { signals.forward(&asked).await });
    let folder = args.run_dir.display().to_string();
    let access_log = (args.access_log.as_os_str() != "off").then(|| AccessLogOptions::at(args.access_log));
    let requests = HttpOptions { trusted: args.trusted_proxies, ..HttpOptions::default() };
    let gateway = GatewayOptions::default();
    let options = ProcessOptions { folder: args.run_dir, gateway, requests, access_log };
    process::serve(options, &shutdown)
        .await
        .with_context(|| format!("cannot serve routes with {folder} as the folder"))?;
    Ok(Exit::Done)
}

/// Lets the process have as many open files as it may; how many that are. Asked for while it has the privilege to have more than it was given.
fn raise_files() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let wanted = [FILES.max(hard), hard]
        .into_iter()
        .find(|wanted| setrlimit(Resource::RLIMIT_NOFILE, *wanted, *wanted).is_ok());
    wanted.unwrap_or(soft)
}
