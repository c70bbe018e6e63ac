//! `agent …`: this machine as a node.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use wharf_agent::session::{Home, JoinOptions, join};
use wharf_api::transport::{ServerAddress, Timing};
use wharf_model::{Bytes, NodeDevices, NodeName};
use wharf_process::{Clock, SystemClock};

use super::env;
use crate::{
    Exit,
    cli::Global,
    hint,
    machine::{self, address_towards},
    output::Output,
    roles::{AgentSettings, Process, run_agent},
};

/// The unit of the agent.
const UNIT: &str = "wharf-agent";
/// Where an agent keeps what outlives a reboot.
pub(crate) const STATE_DIR: &str = "/var/lib/wharf/agent";
/// Where it keeps what must not.
pub(crate) const RUN_DIR: &str = "/run/wharf";

/// Run or set up this machine's agent
#[derive(Debug, clap::Args)]
pub(crate) struct Agent {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make this machine a node of a cluster
    #[command(
        after_help = "A server's `wharf token create` prints the whole line. With systemd the agent is installed and started as a service;\nelsewhere start it with `wharf agent run`, or give `--run`.\n\nExamples:\n  wharf agent join 10.0.0.1:7420 --token wharf1-…\n  wharf agent join 10.0.0.1 --token wharf1-… --name worker-7 --run"
    )]
    Join {
        /// A server of the cluster; may be several
        #[arg(required = true, value_name = "HOST[:PORT]")]
        servers: Vec<ServerAddress>,
        /// The join token
        #[arg(long, env = "WHARF_TOKEN", hide_env_values = true)]
        token: String,
        /// What the node is called [default: the host name]
        #[arg(long)]
        name: Option<NodeName>,
        /// Also if this machine is a node already
        #[arg(long)]
        force: bool,
        /// Join only; do not install or start anything
        #[arg(long, conflicts_with = "run")]
        no_start: bool,
        /// Stay and run in the foreground
        #[arg(long)]
        run: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Run the agent in the foreground
    #[command(
        after_help = "Examples:\n  wharf agent run\n  wharf agent run --docker-socket /run/user/1000/docker.sock --log debug"
    )]
    Run {
        #[command(flatten)]
        place: Place,
    },
    /// Install the agent as a systemd service, and start it
    #[command(
        after_help = "Examples:\n  wharf agent install\n  wharf agent install --print     only show the unit"
    )]
    Install {
        #[command(flatten)]
        place: Place,
        /// Print the unit and change nothing
        #[arg(long)]
        print: bool,
    },
}

/// Where an agent keeps things and what it uses.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Where the agent keeps its state
    #[arg(long, default_value = STATE_DIR, value_name = "FOLDER")]
    state_dir: PathBuf,
    /// Where the agent keeps what must not outlive a reboot; in memory
    #[arg(long, default_value = RUN_DIR, value_name = "FOLDER")]
    run_dir: PathBuf,
    /// The address other nodes reach this one at [default: the one it reaches the server from]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// Docker Engine's socket [default: that of DOCKER_HOST, or /var/run/docker.sock]
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<PathBuf>,
    /// Where other nodes reach this one's WireGuard port (UDP 7421), if not at its address: what a router forwards to it
    #[arg(long, value_name = "ADDRESS:PORT")]
    tunnel_endpoint: Option<SocketAddr>,
    /// What to count as this machine's memory, in bytes, if not all it has
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// Devices that tasks can be given: `gpu=4,model=T4,memory=16GiB`, `gpu=GPU-1,GPU-2` or `ssd=3`; more than once for more kinds,
    /// `KIND=0` for none. Beside these, what the engine's `--node-generic-resource` and NVIDIA's driver say
    #[arg(long = "device", value_name = "KIND=DEVICES")]
    devices: Vec<NodeDevices>,
    #[command(flatten)]
    logs: LogFlags,
}

/// How a long-running process logs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogFlags {
    /// What to log: a level, or a list of target=level
    #[arg(long, default_value = "info", env = "WHARF_LOG", value_name = "FILTER")]
    pub(crate) log: String,
    /// Log as lines of JSON
    #[arg(long)]
    pub(crate) log_json: bool,
}

impl Place {
    /// What `DOCKER_HOST` says, as the docker CLI reads it; only sockets will do.
    fn socket(&self) -> Result<PathBuf> {
        if let Some(path) = &self.docker_socket {
            return Ok(path.clone());
        }
        match env("DOCKER_HOST").filter(|text| !text.is_empty()) {
            None => Ok(PathBuf::from("/var/run/docker.sock")),
            Some(text) => match text.strip_prefix("unix://") {
                Some(path) => Ok(PathBuf::from(path)),
                None => bail!(hint(
                    format!("DOCKER_HOST is {text}, and an agent speaks to the engine of its own machine"),
                    "unset it, or give `--docker-socket`"
                )),
            },
        }
    }

    /// What was written before, with what flags say now; written again.
    pub(crate) fn settings(&self, server: Option<&ServerAddress>) -> Result<AgentSettings> {
        let before = AgentSettings::read(&self.state_dir)?;
        let chosen = self.docker_socket.is_some() || env("DOCKER_HOST").is_some();
        let settings = AgentSettings {
            address: match (self.address, &before) {
                (Some(address), _) => address,
                (None, Some(before)) => before.address,
                (None, None) => address_towards(server),
            },
            docker_socket: match &before {
                Some(before) if !chosen => before.docker_socket.clone(),
                _ => self.socket()?,
            },
            tunnel_endpoint: self
                .tunnel_endpoint
                .or(before.as_ref().and_then(|before| before.tunnel_endpoint)),
            memory: self.memory.map(Bytes).or(before.as_ref().and_then(|before| before.memory)),
            devices: match &before {
                Some(before) if self.devices.is_empty() => before.devices.clone(),
                Some(_) | None => self.devices.clone(),
            },
        };
        if before.as_ref() != Some(&settings) {
            settings.write(&self.state_dir)?;
        }
        Ok(settings)
    }

    /// For an agent beside a server.
    pub(crate) fn beside(state_dir: &Path, logs: LogFlags) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            run_dir: PathBuf::from(RUN_DIR),
            address: None,
            docker_socket: None,
            tunnel_endpoint: None,
            memory: None,
            devices: Vec::new(),
            logs,
        }
    }
}

pub(crate) async fn run(args: Agent, _global: &Global, out: &Output) -> Result<Exit> {
    match args.verb {
        Verb::Join { servers, token, name, force, no_start, run, place } => {
            let settings = AgentSettings {
                address: place.address.unwrap_or_else(|| address_towards(servers.first())),
                docker_socket: place.socket()?,
                tunnel_endpoint: place.tunnel_endpoint,
                memory: place.memory.map(Bytes),
                devices: place.devices.clone(),
            };
            let name = join_as(&place.state_dir, servers, token, name, place.address, force, out).await?;
            settings.write(&place.state_dir)?;
            if run {
                return run_here(place).await;
            }
            if no_start {
                out.say("nothing was started: `wharf agent run` runs the agent, `wharf agent install` makes it a service");
            } else if machine::has_systemd() {
                machine::install(UNIT, &unit(&place)?)?;
                out.say(&format!("the service {UNIT} runs; `wharf node ls` shows {name}"));
            } else {
                out.say("there is no systemd here: run the agent with `wharf agent run`");
            }
            Ok(Exit::Done)
        }
        Verb::Run { place } => run_here(place).await,
        Verb::Install { place, print } => {
            let text = unit(&place)?;
            if print || !machine::has_systemd() {
                out.data(text.trim_end())?;
                if !print {
                    bail!(hint(
                        "there is no systemd on this machine",
                        "run the agent with `wharf agent run`; above is the unit that would be written"
                    ));
                }
                return Ok(Exit::Done);
            }
            machine::install(UNIT, &text)?;
            out.say(&format!("{} was written, and the service runs", machine::unit_path(UNIT).display()));
            Ok(Exit::Done)
        }
    }
}

fn unit(place: &Place) -> Result<String> {
    let state_dir = place.state_dir.display().to_string();
    machine::unit("Wharf agent", &["agent".into(), "run".into(), "--state-dir".into(), state_dir])
}

async fn run_here(place: Place) -> Result<Exit> {
    // What is not joined says so before anything is set up.
    Home::new(&place.state_dir).read().map_err(hinted)?;
    let process = Process::begin(place.logs.log_json, &place.logs.log)?;
    let _signals = process.obey_signals()?;
    let settings = place.settings(None)?;
    run_agent(&process, &place.state_dir, &place.run_dir, settings, BTreeSet::new()).await?;
    Ok(Exit::Done)
}

fn hinted(error: wharf_agent::session::HomeError) -> anyhow::Error {
    match error.hint() {
        Some(what) => hint(error.to_string(), what),
        None => anyhow::Error::new(error),
    }
}

/// Joins, and says so.
pub(crate) async fn join_as(
    state_dir: &Path,
    servers: Vec<ServerAddress>,
    token: String,
    name: Option<NodeName>,
    address: Option<IpAddr>,
    force: bool,
    out: &Output,
) -> Result<NodeName> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let hostname = machine::hostname();
    let options = JoinOptions {
        token,
        servers,
        name: match name {
            Some(name) => name,
            None => hostname.parse().context("the host name is no node name; give one with `--name`")?,
        },
        hostname,
        address,
        version: env!("CARGO_PKG_VERSION").into(),
        force,
    };
    match join(options, &Home::new(state_dir), Timing::default(), clock).await {
        Ok(joined) => {
            out.say(&format!("this machine is node {} now ({})", joined.name, joined.node));
            Ok(joined.name)
        }
        Err(error) => Err(match error.hint() {
            Some(what) => hint(wharf_process::errors::chain(&error), what),
            None => anyhow::Error::new(error),
        }),
    }
}
