//! The verbs, one file each. Each gets its parsed arguments and writes through [`Output`]; what the process exits with is a value.

pub(crate) mod agent;
pub(crate) mod app;
pub(crate) mod build;
pub(crate) mod certificate;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod dns;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod fence;
pub(crate) mod files;
pub(crate) mod gateway;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod progress;
pub(crate) mod ps;
pub(crate) mod quota;
pub(crate) mod rebalance;
pub(crate) mod rollback;
pub(crate) mod rollout;
pub(crate) mod route;
pub(crate) mod route_provider;
pub(crate) mod server;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wireguard_device;

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    Exit,
    cli::{self, Cli, Command},
    output::{Format, Output},
};

/// Runs the command line.
pub(crate) async fn run(mut cli: Cli) -> Result<Exit> {
    cli.hand_down()?;
    let global = &cli.global;
    let format = match global.format {
        Some(cli::Format::Json) => Format::Json,
        // What `wharf config` prints is its own affair.
        Some(cli::Format::Table | cli::Format::Yaml) | None => Format::Table,
    };
    let out = Output::new(format, global.quiet, env("NO_COLOR").is_some_and(|value| !value.is_empty()));
    match cli.command {
        Command::Up(args) => up::run(args, global, &out).await,
        Command::Build(args) => build::run(args, global, &out).await,
        Command::Down(args) => down::run(args, global, &out).await,
        Command::Config(args) => config::run(&args, global, &out),
        Command::Ps(args) => ps::run(args, global, &out).await,
        Command::Logs(args) => logs::run(args, global, &out).await,
        Command::Exec(args) => exec::run(args, global, &out).await,
        Command::Scale(args) => lifecycle::scale(args, global, &out).await,
        Command::Restart(args) => lifecycle::restart(args, global, &out).await,
        Command::Stop(args) => lifecycle::stop(args, global, &out).await,
        Command::Start(args) => lifecycle::start(args, global, &out).await,
        Command::Explain(args) => explain::run(args, global, &out).await,
        Command::Inspect(args) => inspect::run(args, global, &out).await,
        Command::Events(args) => events::run(args, global, &out).await,
        Command::Top(args) => top::run(args, global, &out).await,
        Command::App(args) => app::run(args, global, &out).await,
        Command::Rollout(args) => rollout::run(args, global, &out).await,
        Command::Rollback(args) => rollback::run(args, global, &out).await,
        Command::Secret(args) => files::secret(args, global, &out).await,
        Command::Configs(args) => files::configs(args, global, &out).await,
        Command::Network(args) => network::run(args, global, &out).await,
        Command::Volume(args) => volume::run(args, global, &out).await,
        Command::Certificate(args) => certificate::run(args, global, &out).await,
        Command::Route(args) => route::run(args, global, &out).await,
        Command::Node(args) => node::run(args, global, &out).await,
        Command::Quota(args) => quota::run(args, global, &out).await,
        Command::Rebalance(args) => rebalance::run(args, global, &out).await,
        Command::Token(args) => token::run(args, global, &out).await,
        Command::Context(args) => context::run(args, global, &out),
        Command::Server(args) => server::run(args, global, &out).await,
        Command::Agent(args) => agent::run(args, global, &out).await,
        Command::Dns(args) => dns::run(args).await,
        Command::Fence(args) => fence::run(args).await,
        Command::Gateway(args) => gateway::run(args).await,
        Command::RouteProvider(args) => route_provider::run(args).await,
        Command::WireguardDevice(args) => wireguard_device::run(args).await,
        Command::Doctor(args) => doctor::run(args, global, &out).await,
        Command::Version(args) => version::run(args, global, &out).await,
        Command::Completion { shell } => completion::run(shell, &out),
    }
}

/// Where things are kept.
pub(crate) struct Paths {
    /// The user's contexts.
    pub(crate) contexts: PathBuf,
}

/// As the environment says; `WHARF_CONFIG` names the folder of contexts, `XDG_CONFIG_HOME` and `HOME` are as everywhere.
pub(crate) fn paths() -> Paths {
    let folder = match (env("WHARF_CONFIG"), env("XDG_CONFIG_HOME"), env("HOME")) {
        (Some(folder), ..) => PathBuf::from(folder),
        (None, Some(config), _) => PathBuf::from(config).join("wharf"),
        (None, None, Some(home)) => PathBuf::from(home).join(".config/wharf"),
        (None, None, None) => PathBuf::from("/root/.config/wharf"),
    };
    Paths { contexts: folder.join("contexts.json") }
}

/// A variable of the environment. The one place where the executable reads it, besides what clap does for flags.
#[expect(clippy::disallowed_methods, reason = "this is the place where the environment is read")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Every variable of the environment, for Compose files.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The time, in milliseconds since the epoch.
pub(crate) fn now() -> u64 {
    use wharf_process::clock::{Clock as _, SystemClock};
    SystemClock::new().now().0
}

/// How long ago that was, for people.
pub(crate) fn ago(at: u64) -> String {
    crate::output::rough(std::time::Duration::from_millis(now().saturating_sub(at)))
}

/// What the client says of itself: `ada@laptop`.
pub(crate) fn client_name() -> String {
    let user =
        env("SUDO_USER").or_else(|| env("USER")).or_else(|| env("LOGNAME")).unwrap_or_else(|| "root".into());
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    if host.is_empty() { user } else { format!("{user}@{host}") }
}

/// Asks the person; what is asked is already said. Without a terminal the answer is no.
pub(crate) fn confirm(question: &str) -> Result<bool> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if !std::io::stdin().is_terminal() {
        anyhow::bail!(crate::hint(
            "there is no terminal to ask on",
            "say yes beforehand with `--yes` (`-y`)"
        ));
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
