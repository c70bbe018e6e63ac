//! `server …`: the control plane.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use wharf_agent::session::Home;
use wharf_api::transport::{DEFAULT_PORT, ServerAddress};
use wharf_model::{AddressPool, Backend, NetworkDefaults};
use wharf_process::{Clock, SystemClock};
use wharf_server::{
    InitOptions, JoinServerOptions, RunOptions, Server as ControlPlane, ServerError, init, join_cluster,
    settings::StoreChoice,
};

use super::{
    agent::{self, LogFlags, Place},
    paths,
};
use crate::{
    Exit,
    cli::Global,
    context::{Context, Contexts},
    hint,
    machine::{self, address_towards},
    output::{Color, Format, Output},
    roles::{Process, loopback, run_agent},
};

const UNIT: &str = "wharf-server";
const STATE_DIR: &str = "/var/lib/wharf/server";
/// How long the agent beside a server may take to join it.
const OWN_TOKEN: Duration = Duration::from_secs(300);

/// Run or set up the control plane
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a cluster with this machine as its first server
    #[command(
        after_help = "Prints the line that joins further machines, and writes a context for this user. With systemd the server is installed and\nstarted as a service, with an agent beside it; elsewhere start it with `wharf server run --with-agent`.\n\nExamples:\n  wharf server init\n  wharf server init --advertise cluster.example.org --name prod\n  wharf server init --etcd http://10.0.0.1:2379,http://10.0.0.2:2379    for several servers"
    )]
    Init {
        /// What people call the cluster, and its context
        #[arg(long, default_value = "default")]
        name: String,
        /// Where others reach this server; may be given several times [default: this machine's address]
        #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
        advertise: Vec<ServerAddress>,
        /// Where to listen
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)), value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// Keep the state in etcd instead of a file: needed for several servers
        #[arg(long, value_name = "URL", value_delimiter = ',')]
        etcd: Vec<String>,
        /// What keys in etcd begin with
        #[arg(long, default_value = "/wharf/", value_name = "PREFIX")]
        etcd_prefix: String,
        /// Where networks of apps get their addresses; overlap with nothing your machines use
        #[arg(long, default_value_t = AddressPool::default().range.to_string(), value_name = "CIDR")]
        pool: String,
        /// How packets of networks travel between nodes: vxlan, routed or wireguard; `wharf network default` changes it later
        #[arg(long, default_value_t = Backend::Vxlan, value_name = "BACKEND")]
        network_backend: Backend,
        /// Where the server keeps its state
        #[arg(long, default_value = STATE_DIR, value_name = "FOLDER")]
        state_dir: PathBuf,
        /// This machine is to run no tasks
        #[arg(long)]
        no_agent: bool,
        /// Only set up; do not install or start anything
        #[arg(long)]
        no_start: bool,
    },
    /// Make this machine a further server of a cluster that keeps its state in etcd
    #[command(
        after_help = "Example:\n  wharf token create --role server        on a server; prints the line to run here"
    )]
    Join {
        /// A server of the cluster; may be several
        #[arg(required = true, value_name = "HOST[:PORT]")]
        servers: Vec<ServerAddress>,
        /// A join token for servers
        #[arg(long, env = "WHARF_TOKEN", hide_env_values = true)]
        token: String,
        /// Where others reach this server; may be given several times [default: this machine's address]
        #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
        advertise: Vec<ServerAddress>,
        /// Where to listen
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)), value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// Where the server keeps its state
        #[arg(long, default_value = STATE_DIR, value_name = "FOLDER")]
        state_dir: PathBuf,
        /// This machine is to run no tasks
        #[arg(long)]
        no_agent: bool,
        /// Only set up; do not install or start anything
        #[arg(long)]
        no_start: bool,
    },
    /// Run the server in the foreground
    #[command(
        after_help = "Examples:\n  wharf server run --with-agent\n  wharf server run --state-dir /srv/wharf --log debug"
    )]
    Run {
        /// Where the server keeps its state
        #[arg(long, default_value = STATE_DIR, value_name = "FOLDER")]
        state_dir: PathBuf,
        /// Run an agent and a gateway in this process, too
        #[arg(long)]
        with_agent: bool,
        /// Where that agent keeps its state [default: beside the server's]
        #[arg(long, value_name = "FOLDER", requires = "with_agent")]
        agent_dir: Option<PathBuf>,
        #[command(flatten)]
        logs: LogFlags,
    },
    /// Install the server as a systemd service, and start it
    #[command(
        after_help = "Examples:\n  wharf server install\n  wharf server install --print     only show the unit"
    )]
    Install {
        /// Where the server keeps its state
        #[arg(long, default_value = STATE_DIR, value_name = "FOLDER")]
        state_dir: PathBuf,
        /// Without an agent in the same process
        #[arg(long)]
        no_agent: bool,
        /// Print the unit and change nothing
        #[arg(long)]
        print: bool,
    },
}

/// A pool that this machine reaches by itself would have no subnet for any network; one of which it reaches a part has, and they avoid
/// that part.
fn check_overlap(pool: &AddressPool, out: &Output) -> Result<()> {
    let (first, last) =
        (std::net::IpAddr::from(pool.range.network()), std::net::IpAddr::from(pool.range.broadcast()));
    // Whoever may not ask the kernel is told by the cluster.
    for found in wharf_agent::network::host_subnets().unwrap_or_default() {
        let net = found.subnet;
        if net.contains(&first) && net.contains(&last) {
            bail!(hint(
                format!("this machine reaches all of the pool {} by itself: {found}", pool.range),
                "choose a range that none of your machines has a route to: `--pool 172.24.0.0/14`"
            ));
        }
        let inside =
            |address| matches!(address, std::net::IpAddr::V4(address) if pool.range.contains(&address));
        if inside(net.network()) || net.contains(&first) || net.contains(&last) {
            out.say(&format!("networks keep off {found}, which is in the pool {} too", pool.range));
        }
    }
    Ok(())
}

pub(crate) async fn run(args: Server, _global: &Global, out: &Output) -> Result<Exit> {
    match args.verb {
        Verb::Init {
            name,
            advertise,
            listen,
            etcd,
            etcd_prefix,
            pool,
            network_backend,
            state_dir,
            no_agent,
            no_start,
        } => {
            let store = if etcd.is_empty() {
                StoreChoice::Embedded
            } else {
                StoreChoice::Etcd { endpoints: etcd, prefix: etcd_prefix }
            };
            let range = pool.parse().map_err(|_| {
                hint(format!("`{pool}` is no range of addresses"), "write one such as 10.192.0.0/10")
            })?;
            let pool = AddressPool { range, ..AddressPool::default() };
            if pool.range.prefix_len() > pool.prefix - 4 {
                bail!(hint(
                    format!("{} has room for fewer than 16 networks of /{}", pool.range, pool.prefix),
                    "choose a larger range"
                ));
            }
            if !network_backend.is_general() {
                bail!(hint(
                    format!("`{network_backend}` cannot be the default of a cluster"),
                    "it is chosen for one network, in its Compose file; a default is vxlan, routed or wireguard"
                ));
            }
            check_overlap(&pool, out)?;
            let advertise = advertised(advertise, listen);
            let network = NetworkDefaults { backend: network_backend, routes: None };
            let state = state_dir.clone();
            set_up(InitOptions { state_dir: state, name, listen, advertise, store, pool, network }, out)
                .await?;
            start(&state_dir, !no_agent, no_start, out)
        }
        Verb::Join { servers, token, advertise, listen, state_dir, no_agent, no_start } => {
            let advertise = advertised(advertise, listen);
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            let options =
                JoinServerOptions { state_dir: state_dir.clone(), servers, token, listen, advertise };
            let cluster = join_cluster(options, &clock).await.map_err(hinted)?;
            out.say(&format!("this machine is a server of cluster {cluster} now"));
            start(&state_dir, !no_agent, no_start, out)
        }
        Verb::Run { state_dir, with_agent, agent_dir, logs } => {
            let agent_dir = agent_dir.unwrap_or_else(|| beside(&state_dir));
            serve(state_dir, with_agent.then_some(agent_dir), logs, out).await
        }
        Verb::Install { state_dir, no_agent, print } => {
            let text = unit(&state_dir, !no_agent)?;
            if print || !machine::has_systemd() {
                out.data(text.trim_end())?;
                if !print {
                    bail!(hint(
                        "there is no systemd on this machine",
                        "run the server with `wharf server run`; above is the unit that would be written"
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

/// What was given, or this machine's address and the port it listens on.
fn advertised(given: Vec<ServerAddress>, listen: SocketAddr) -> Vec<ServerAddress> {
    if !given.is_empty() {
        // A bare host means the port that is listened on, which is the default one unless it was chosen.
        return given
            .into_iter()
            .map(|address| match (address.port(), listen.port()) {
                (DEFAULT_PORT, port) if port != DEFAULT_PORT => {
                    format!("{}:{port}", bracketed(address.host())).parse().unwrap_or(address)
                }
                _ => address,
            })
            .collect();
    }
    let ip = if listen.ip().is_unspecified() { address_towards(None) } else { listen.ip() };
    vec![SocketAddr::new(ip, listen.port()).into()]
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The folder of the agent beside a server: `agent` beside `server`.
fn beside(state_dir: &Path) -> PathBuf {
    state_dir.parent().unwrap_or(state_dir).join("agent")
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn hinted(error: ServerError) -> anyhow::Error {
    let message = wharf_process::errors::chain(&error);
    match error.hint() {
        Some(what) => hint(message, what),
        None => anyhow::anyhow!(message),
    }
}

/// Makes the cluster and the first context, and prints the join line.
async fn set_up(options: InitOptions, out: &Output) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (name, advertise) = (options.name.clone(), options.advertise.clone());
    // A file of contexts that cannot be used must be known before there is a cluster nobody can use.
    let mut contexts = Contexts::load(&paths().contexts)?;
    let made = init(options, &clock).await.map_err(hinted)?;
    let mut context = name.clone();
    let mut number = 1;
    while contexts.contexts.contains_key(&context) {
        number += 1;
        context = format!("{name}-{number}");
    }
    contexts.put(
        &context,
        Context { servers: advertise.clone(), trust: made.trust, identity: made.admin, environment: None },
    );
    contexts.current = Some(context.clone());
    contexts.save()?;
    let server = advertise.first().map(ToString::to_string).unwrap_or_default();
    let line = format!("wharf agent join {server} --token {}", made.token);
    match out.format {
        Format::Json => out.json(&serde_json::json!({
            "cluster": made.cluster,
            "name": name,
            "context": context,
            "token": made.token.to_string(),
            "command": line,
        }))?,
        Format::Table => {
            out.say(&format!(
                "cluster {} is made; context `{context}` in {} speaks to it",
                out.paint(Color::Strong, &name),
                contexts.path().display()
            ));
            out.say("each further machine joins with (good for a day; `wharf token create` makes another):");
            out.data(&line)?;
        }
    }
    Ok(())
}

fn unit(state_dir: &Path, with_agent: bool) -> Result<String> {
    let mut arguments =
        vec!["server".into(), "run".into(), "--state-dir".into(), state_dir.display().to_string()];
    if with_agent {
        arguments.push("--with-agent".into());
    }
    machine::unit("Wharf server", &arguments)
}

/// Starts the server as a service where there is systemd, and says how to where there is not.
fn start(state_dir: &Path, with_agent: bool, no_start: bool, out: &Output) -> Result<Exit> {
    let run = format!(
        "wharf server run{}{}",
        if with_agent { " --with-agent" } else { "" },
        if state_dir == Path::new(STATE_DIR) {
            String::new()
        } else {
            format!(" --state-dir {}", state_dir.display())
        }
    );
    if no_start {
        out.say(&format!(
            "nothing was started: `{run}` runs the server, `wharf server install` makes it a service"
        ));
    } else if machine::has_systemd() {
        machine::install(UNIT, &unit(state_dir, with_agent)?)?;
        out.say(&format!("the service {UNIT} runs; `wharf node ls` shows the machines"));
    } else {
        out.say(&format!("there is no systemd here: run the server with `{run}`"));
    }
    Ok(Exit::Done)
}

/// Runs the server, and with a folder for it an agent beside it, until the process is asked to stop.
async fn serve(state_dir: PathBuf, agent_dir: Option<PathBuf>, logs: LogFlags, out: &Output) -> Result<Exit> {
    let process = Process::begin(logs.log_json, &logs.log)?;
    let _signals = process.obey_signals()?;
    let server =
        ControlPlane::build(RunOptions::new(state_dir), Arc::clone(&process.clock)).await.map_err(hinted)?;
    let Some(agent_dir) = agent_dir else {
        server.run(&process.shutdown).await.map_err(hinted)?;
        return Ok(Exit::Done);
    };
    let here = loopback(server.address());
    let port = server.address().port();
    let token = match Home::new(&agent_dir).read() {
        Ok(_) => None,
        Err(_) => Some(server.token_for_agent(OWN_TOKEN).await.map_err(hinted)?),
    };
    let advertised: Option<ServerAddress> = server.advertised().first().and_then(|text| text.parse().ok());
    let agent = async {
        let outcome = async {
            if let Some(token) = token {
                agent::join_as(&agent_dir, vec![here], token.to_string(), None, None, false, out).await?;
            }
            let place = Place::beside(&agent_dir, logs.clone());
            let settings = place.settings(advertised.as_ref())?;
            let run_dir = Path::new(agent::RUN_DIR);
            run_agent(&process, &agent_dir, run_dir, settings, BTreeSet::from([port])).await
        }
        .await;
        // Without its agent the process is not what was asked for.
        process.shutdown.request();
        outcome
    };
    let (served, worked) = tokio::join!(server.run(&process.shutdown), agent);
    worked.context("the agent beside the server")?;
    served.map_err(hinted)?;
    Ok(Exit::Done)
}
