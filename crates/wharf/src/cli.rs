//! The command line: every verb, its flags and its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{commands, output::Format};

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
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) format: Format,
    /// Say only what must be said
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// Which Compose files an app is made of.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Files {
    /// A Compose file; may be given several times, later ones add to earlier ones [default: compose.yaml, compose.yml, docker-compose.yaml or docker-compose.yml here or above]
    #[arg(long = "file", short = 'f', env = "COMPOSE_FILE", value_name = "FILE", value_delimiter = ':')]
    pub(crate) file: Vec<PathBuf>,
    /// The name of the app [default: `name:` in the file, or the folder's name]
    #[arg(long = "project-name", short = 'p', env = "COMPOSE_PROJECT_NAME", value_name = "NAME")]
    pub(crate) project_name: Option<String>,
    /// The folder that relative paths begin at [default: that of the first file]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) project_directory: Option<PathBuf>,
    /// A file with variables, instead of `.env`
    #[arg(long = "env-file", env = "COMPOSE_ENV_FILES", value_name = "FILE", value_delimiter = ',')]
    pub(crate) env_file: Vec<PathBuf>,
    /// A profile to turn on; may be given several times
    #[arg(long, env = "COMPOSE_PROFILES", value_name = "NAME", value_delimiter = ',')]
    pub(crate) profile: Vec<String>,
}

/// Everything `wharf` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Deploy an app: make it as its Compose file says
    Up(commands::up::Up),
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
    /// Show everything known of an app, service, task or node
    Inspect(commands::inspect::Inspect),
    /// Show what happens, as it happens
    Events(commands::events::Events),
    /// Show what tasks use
    Top(commands::top::Top),
    /// Look at apps and their releases
    App(commands::app::App),
    /// Keep secrets that apps mount as `external: true`
    Secret(commands::files::Secret),
    /// Keep configs that apps mount as `external: true`
    Configs(commands::files::Configs),
    /// Look at machines and change them
    Node(commands::node::Node),
    /// Make and end join tokens
    Token(commands::token::Token),
    /// Choose between clusters
    Context(commands::context::Context),
    /// Run or set up the control plane
    Server(commands::server::Server),
    /// Run or set up this machine's agent
    Agent(commands::agent::Agent),
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
