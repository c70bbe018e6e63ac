//! The command line: every verb, its flags and its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{Usage, commands};

/// Runs Compose apps on a cluster of machines with Docker Engine.
#[derive(Debug, Parser)]
#[command(
    name = "wharf",
    version,
    about = "Runs Compose apps on a cluster of machines with Docker Engine",
    after_help = "First steps:\n  wharf server init             make a cluster of this machine; prints the line that joins others\n  wharf up                      deploy the Compose file of this folder\n  wharf ps                      what runs where\n\nExit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not yet",
    disable_help_subcommand = true,
    propagate_version = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(flatten, next_help_heading = "Compose files, before the verb or after it")]
    pub(crate) files: Files,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command; they work before the verb and after it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The cluster to speak to, as `wharf context ls` names it
    #[arg(long, global = true, env = "WHARF_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The environment to work in [default: the context's, or `default`]
    #[arg(long = "env", global = true, env = "WHARF_ENV", value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// How data is printed [default: table, and yaml of `wharf config`]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Say only what must be said
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs: one JSON document, or one line of JSON for each thing in a stream
    Json,
    /// Of `wharf config` only
    Yaml,
}

/// Which Compose files an app is made of. `.env` may set the variables, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Files {
    /// A Compose file, or `-` for standard input; may be given several times, later ones add to earlier ones
    /// [default: `COMPOSE_FILE`, or compose.yaml, compose.yml, docker-compose.yml or docker-compose.yaml here or above]
    #[arg(long = "file", short = 'f', value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// The name of the app [default: `COMPOSE_PROJECT_NAME`, `name:` in the file, or the folder's name]
    #[arg(long = "project-name", short = 'p', value_name = "NAME")]
    pub(crate) project_name: Option<String>,
    /// The folder that relative paths begin at [default: that of the first file]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) project_directory: Option<PathBuf>,
    /// A file with variables; may be given several times [default: `COMPOSE_ENV_FILES`, or `.env` beside the Compose file]
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// A profile to turn on, `*` for all; may be given several times [default: `COMPOSE_PROFILES`]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Vec<String>,
}

impl Files {
    /// Adds what was said before the verb: of what is said twice, lists go on and what comes later wins.
    fn after(&mut self, before: Self) {
        let Self { file, project_name, project_directory, env_file, profile } = before;
        self.file.splice(0..0, file);
        self.env_file.splice(0..0, env_file);
        self.profile.splice(0..0, profile);
        self.project_name = self.project_name.take().or(project_name);
        self.project_directory = self.project_directory.take().or(project_directory);
    }

    /// A flag that was given.
    fn given(&self) -> Option<&'static str> {
        let flags = [
            (!self.file.is_empty(), "--file"),
            (self.project_name.is_some(), "--project-name"),
            (self.project_directory.is_some(), "--project-directory"),
            (!self.env_file.is_empty(), "--env-file"),
            (!self.profile.is_empty(), "--profile"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }
}

impl Cli {
    /// Hands what was said before the verb to the verb.
    ///
    /// # Errors
    /// If it has nothing to do with the verb.
    pub(crate) fn hand_down(&mut self) -> Result<(), Usage> {
        let mut before = std::mem::take(&mut self.files);
        if let Command::Events(events) = &mut self.command {
            events.app = events.app.take().or(before.project_name.take());
        }
        match (self.command.files(), before.given()) {
            (Some(files), _) => files.after(before),
            (None, None) => {}
            (None, Some(flag)) => {
                return Err(Usage(format!("`{flag}` is of no use here: this command reads no Compose file")));
            }
        }
        let is_config = matches!(self.command, Command::Config(_));
        match self.global.format {
            Some(Format::Yaml) if !is_config => {
                Err(Usage("`--format yaml` is what `wharf config` prints: use table or json here".into()))
            }
            Some(Format::Table) if is_config => {
                Err(Usage("`wharf config` prints no table: use `--format yaml` or `--format json`".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Command {
    /// Whether this is a process that runs beside an agent all the time: one thread is enough for its tasks, and what it starts others for has
    /// the privileges that it keeps.
    pub(crate) fn is_companion(&self) -> bool {
        matches!(self, Self::Dns(_) | Self::Fence(_) | Self::Gateway(_) | Self::WireguardDevice(_))
    }

    /// The flags that say which files, of commands that read any.
    fn files(&mut self) -> Option<&mut Files> {
        match self {
            Self::Up(args) => Some(&mut args.files),
            Self::Build(args) => Some(&mut args.files),
            Self::Down(args) => Some(&mut args.files),
            Self::Config(args) => Some(&mut args.files),
            Self::Ps(args) => Some(&mut args.files),
            Self::Logs(args) => Some(&mut args.files),
            Self::Exec(args) => Some(&mut args.files),
            Self::Scale(args) => Some(&mut args.common.files),
            Self::Restart(args) => Some(&mut args.common.files),
            Self::Stop(args) => Some(&mut args.common.files),
            Self::Start(args) => Some(&mut args.common.files),
            Self::Top(args) => Some(&mut args.files),
            Self::Explain(args) => Some(&mut args.files),
            Self::Rollout(args) => Some(args.files()),
            Self::Rollback(args) => Some(&mut args.which.files),
            Self::App(args) => args.files(),
            Self::Inspect(_)
            | Self::Events(_)
            | Self::Secret(_)
            | Self::Configs(_)
            | Self::Network(_)
            | Self::Volume(_)
            | Self::Route(_)
            | Self::Certificate(_)
            | Self::Node(_)
            | Self::Quota(_)
            | Self::Rebalance(_)
            | Self::Token(_)
            | Self::Context(_)
            | Self::Server(_)
            | Self::Agent(_)
            | Self::Dns(_)
            | Self::Fence(_)
            | Self::Gateway(_)
            | Self::WireguardDevice(_)
            | Self::RouteProvider(_)
            | Self::Doctor(_)
            | Self::Version(_)
            | Self::Completion { .. } => None,
        }
    }
}

/// Everything `wharf` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy an app: make it as its Compose file says
    Up(commands::up::Up),
    /// Build the images of an app on the cluster; `up` deploys them
    Build(commands::build::Build),
    /// Take an app down
    Down(commands::down::Down),
    /// Check and print the normalised Compose file
    Config(commands::config::Config),
    /// Show the tasks of an app: where they are and how they are
    Ps(commands::ps::Ps),
    /// Show what tasks print
    Logs(commands::logs::Logs),
    /// Run a command in a task
    Exec(commands::exec::Exec),
    /// Change how many tasks services have
    Scale(commands::lifecycle::Scale),
    /// Replace tasks by new ones, one after the other
    Restart(commands::lifecycle::Restart),
    /// Stop services; their volumes, networks and settings stay
    Stop(commands::lifecycle::Stop),
    /// Start stopped services
    Start(commands::lifecycle::Start),
    /// Show why tasks are where they are, or why they are not
    Explain(commands::explain::Explain),
    /// Show everything known of an app, service, task or node
    Inspect(commands::inspect::Inspect),
    /// Show what happens, as it happens
    Events(commands::events::Events),
    /// Show what tasks use
    Top(commands::top::Top),
    /// Watch and steer how an app moves to a release
    Rollout(commands::rollout::Rollout),
    /// Return an app to an earlier release
    Rollback(commands::rollback::Rollback),
    /// Look at apps and their releases
    App(commands::app::App),
    /// Keep secrets that apps mount as `external: true`
    Secret(commands::files::Secret),
    /// Keep configs that apps mount as `external: true`
    Configs(commands::files::Configs),
    /// Look at the networks of apps
    Network(commands::network::Network),
    /// Look at volumes, and give up data on machines that are down
    Volume(commands::volume::Volume),
    /// Look at certificates, and say who issues them
    Certificate(commands::certificate::Certificate),
    /// Look at routes: where they are, where they lead, and what goes through them
    Route(commands::route::Route),
    /// Look at machines and change them
    Node(commands::node::Node),
    /// Move tasks to machines that have less to do
    Rebalance(commands::rebalance::Rebalance),
    /// Limit what the apps of an environment may have together
    Quota(commands::quota::Quota),
    /// Make and end join tokens
    Token(commands::token::Token),
    /// Choose between clusters
    Context(commands::context::Context),
    /// Run or set up the control plane
    Server(commands::server::Server),
    /// Run or set up this machine's agent
    Agent(commands::agent::Agent),
    /// Answer DNS for this machine's containers; the agent starts this
    #[command(hide = true)]
    Dns(commands::dns::Dns),
    /// End containers that must not run twice when this machine's lease is over; the agent starts this
    #[command(hide = true)]
    Fence(commands::fence::Fence),
    /// Take connections on published ports and routes; the agent starts this
    #[command(hide = true)]
    Gateway(commands::gateway::Gateway),
    /// Carry this machine's WireGuard tunnels; the agent starts this
    #[command(hide = true)]
    WireguardDevice(commands::wireguard_device::WireguardDevice),
    /// Make the routes of routed networks outside the nodes; a server starts this
    #[command(hide = true)]
    RouteProvider(commands::route_provider::RouteProvider),
    /// Find out what is wrong, and what to do about it
    Doctor(commands::doctor::Doctor),
    /// Show the versions of client and server
    Version(commands::version::Version),
    /// Print a completion script
    #[command(
        after_help = "Examples:\n  wharf completion bash > /etc/bash_completion.d/wharf\n  wharf completion zsh > \"${fpath[1]}/_wharf\"\n  wharf completion fish > ~/.config/fish/completions/wharf.fish"
    )]
    Completion {
        /// For which shell
        shell: commands::completion::Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let mut cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        cli.hand_down().map_err(|error| error.to_string())?;
        Ok(cli)
    }
    fn files(line: &str) -> Files {
        parsed(line).unwrap().command.files().unwrap().clone()
    }

    #[test]
    fn flags_of_compose_stand_before_the_verb_or_after_it() {
        Cli::command().debug_assert();
        let before =
            files("wharf -f a.yaml -p shop --profile debug --env-file x.env --project-directory /x up");
        assert_eq!(
            before,
            files("wharf up -f a.yaml -p shop --profile debug --env-file x.env --project-directory /x")
        );
        assert_eq!(before.project_name.as_deref(), Some("shop"));
        let both = files("wharf -f a.yaml -p one config -f b.yaml -p two");
        assert_eq!(both.file, ["a.yaml", "b.yaml"].map(PathBuf::from));
        assert_eq!(both.project_name.as_deref(), Some("two"));
        // Of logs, `-f` is to follow; before the verb it is the file.
        let logs = files("wharf -f a.yaml logs -f --file b.yaml web");
        assert_eq!(logs.file, ["a.yaml", "b.yaml"].map(PathBuf::from));
        assert!(
            matches!(parsed("wharf -p shop events").unwrap().command, Command::Events(events) if events.app.as_deref() == Some("shop"))
        );
    }

    #[test]
    fn what_a_command_has_no_use_for_is_refused() {
        let refused = |line: &str| parsed(line).unwrap_err();
        assert_eq!(
            refused("wharf -f x node ls"),
            "`--file` is of no use here: this command reads no Compose file"
        );
        assert!(refused("wharf --format yaml ps").contains("`wharf config`"));
        assert!(refused("wharf config --format table").contains("`--format yaml`"));
        assert!(refused("wharf config --services --images").contains("cannot be used with"));
        assert!(parsed("wharf --format json config").is_ok());
    }
}
