//! The test cluster by hand: starts real nodes on this machine, breaks them, and removes them again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to people")]

use std::io::{Read, stdin};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use wharf_testkit::cluster::{self, Cluster, Node, Seed, Service};

/// Real nodes on one machine: each a set of namespaces with its own Docker Engine.
#[derive(Parser)]
#[command(
    name = "wharf-testbed",
    after_help = "\
A first session:
  up 3                          three nodes, with the images busybox:1, alpine:3 and wharf/testserver:1
  install target/debug/wharf    the program on every node, as /usr/local/bin/wharf
  exec 1 wharf server init      a command on node 1
  exec client wharf node ls     a command on this machine's files, from the cluster's network
  power-off 2 ; boot 2          the disk is kept
  down                          nothing is left"
)]
struct Arguments {
    /// Which cluster.
    #[arg(short, long, global = true, default_value = "dev")]
    cluster: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a cluster that stays until `down`.
    Up(Up),
    /// Remove a cluster and all that belongs to it.
    Down {
        /// Every cluster that was started by hand or whose owner is gone.
        #[arg(long)]
        all: bool,
    },
    /// Show the nodes: addresses, power, processes, engine sockets.
    #[command(visible_alias = "status")]
    Ps,
    /// Show every cluster of this machine.
    Ls,
    /// Cut the power of nodes: everything ends at once, in silence; the disk is kept.
    PowerOff(Nodes),
    /// Switch nodes on again.
    Boot(Nodes),
    /// End all processes of nodes at once; their kernels still answer, refusing connections.
    Crash(Nodes),
    /// Unplug nodes from the network.
    Isolate(Nodes),
    /// Drop all frames between two nodes.
    Partition {
        a: u8,
        b: u8,
        /// Only what A sends to B.
        #[arg(long)]
        one_way: bool,
    },
    /// Undo every partition and isolation.
    Heal,
    /// Lose a share of the packets of nodes, in place of any loss set before: `loss 2=0.1 3=0.05`. None: no loss.
    Loss { shares: Vec<String> },
    /// Limit the bandwidth of a node: `rate 2 50mbit`, `rate 2 off`.
    Rate { node: u8, rate: String },
    /// Limit the memory of a node: `memory 2 512m`, `memory 2 off`.
    Memory { node: u8, size: String },
    /// Stop, start, restart or kill the engine of a node. Containers live on.
    Engine { act: EngineAct, node: u8 },
    /// Run a command on a node, or as `client` from the cluster's network on this machine's files.
    Exec {
        /// A node's number, or `client`.
        place: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Run the docker client against the engine of a node.
    Docker {
        node: u8,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A program that starts with a node, as under systemd: `service 2 agent run -- wharf agent run`,
    /// then `service 2 agent stop`, `start`, `restart`, `kill`.
    Service {
        node: u8,
        name: String,
        act: ServiceAct,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Make a program `/usr/local/bin/wharf` on every node.
    Install { program: PathBuf },
    /// Show the logs of a node: its engine's and those of what was started in it.
    Logs {
        node: u8,
        /// Go on as they grow.
        #[arg(short, long)]
        follow: bool,
        /// How many lines of each.
        #[arg(long, default_value_t = 50)]
        tail: usize,
    },
    /// Remove the clusters whose owner is gone.
    Gc,
    /// Build the image seed that `up` would use, and print where it lies.
    Seed {
        /// Archives of `docker save` with more images.
        #[arg(long = "image")]
        images: Vec<PathBuf>,
    },
    #[command(hide = true)]
    Resolver { address: Ipv4Addr },
}

#[derive(Args)]
struct Up {
    #[arg(default_value_t = 3)]
    nodes: u8,
    /// Archives of `docker save` with images that every engine has from the start.
    #[arg(long = "image")]
    images: Vec<PathBuf>,
    /// Engines without any image.
    #[arg(long, conflicts_with = "images")]
    empty: bool,
    /// Nodes without engines.
    #[arg(long)]
    no_engines: bool,
    /// Give this machine's own network an interface on the switch (address .3), for a browser or a CLI.
    #[arg(long)]
    attach_host: bool,
    /// The first two bytes of addresses.
    #[arg(long, default_value = "10.77", value_parser = parse_prefix)]
    prefix: [u8; 2],
    /// One more argument for every `dockerd`.
    #[arg(long = "engine-arg", allow_hyphen_values = true)]
    engine_args: Vec<String>,
    /// Make this program `/usr/local/bin/wharf` on every node.
    #[arg(long)]
    install: Option<PathBuf>,
    /// The cluster lives as long as this command and its standard input.
    #[arg(long)]
    foreground: bool,
}

#[derive(Args)]
struct Nodes {
    #[arg(required = true)]
    nodes: Vec<u8>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineAct {
    Kill,
    Stop,
    Start,
    Restart,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServiceAct {
    /// Define it as the given command and start it.
    Run,
    Start,
    Stop,
    Restart,
    Kill,
}

fn parse_prefix(text: &str) -> Result<[u8; 2], String> {
    let parsed = text.split_once('.').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
    parsed.ok_or_else(|| "two numbers from 0 to 255 with a dot, like 10.77".to_owned())
}

fn parse_size(text: &str) -> Result<Option<u64>> {
    if text == "off" {
        return Ok(None);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        other => return Err(anyhow!("`{other}` is no unit of memory: use b, k, m or g")),
    };
    let number: u64 =
        digits.parse().with_context(|| format!("`{text}` is no memory size: write it like 512m"))?;
    Ok(Some(number.checked_mul(unit).context("that is more memory than there are numbers for")?))
}

fn parse_share(text: &str) -> Result<(u8, f64)> {
    let parsed =
        text.split_once('=').and_then(|(node, share)| Some((node.parse().ok()?, share.parse().ok()?)));
    parsed.with_context(|| format!("`{text}` is not NODE=SHARE, like 2=0.1"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wharf-testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(arguments: &Arguments) -> Result<()> {
    let name = &arguments.cluster;
    let open = || Cluster::open(name);
    let node = |index: u8| open()?.try_node(index);
    match &arguments.verb {
        Verb::Up(options) => up(name, options),
        Verb::Down { all: true } => down_all(),
        Verb::Down { all: false } => down(name),
        Verb::Ps => {
            print!("{}", open()?.status()?);
            Ok(())
        }
        Verb::Ls => list(),
        Verb::PowerOff(nodes) => each(&open()?, nodes, Node::power_off),
        Verb::Boot(nodes) => each(&open()?, nodes, Node::boot),
        Verb::Crash(nodes) => each(&open()?, nodes, Node::crash),
        Verb::Isolate(nodes) => each(&open()?, nodes, Node::isolate),
        Verb::Partition { a, b, one_way: true } => open()?.partition_one_way(*a, *b),
        Verb::Partition { a, b, one_way: false } => open()?.partition(*a, *b),
        Verb::Heal => open()?.heal(),
        Verb::Loss { shares } => {
            open()?.lose(&shares.iter().map(|share| parse_share(share)).collect::<Result<Vec<_>>>()?)
        }
        Verb::Rate { node: index, rate } => node(*index)?.limit_rate((rate != "off").then_some(rate)),
        Verb::Memory { node: index, size } => node(*index)?.limit_memory(parse_size(size)?),
        Verb::Engine { act, node: index } => engine(&node(*index)?, *act),
        Verb::Exec { place, command } => exec(&open()?, place, command),
        Verb::Docker { node: index, arguments } => {
            become_command(node(*index)?.docker_command().args(arguments))
        }
        Verb::Service { node: index, name, act, command } => {
            service(&node(*index)?.service(name), *act, command)
        }
        Verb::Install { program } => open()?.install(program),
        Verb::Logs { node: index, follow, tail } => logs(&node(*index)?, *follow, *tail),
        Verb::Gc => collect_garbage(),
        Verb::Seed { images } => {
            println!("{}", seed(images)?.dir().display());
            Ok(())
        }
        Verb::Resolver { address } => cluster::serve_names(*address),
    }
}

fn up(name: &str, options: &Up) -> Result<()> {
    let start = Instant::now();
    let mut builder = Cluster::builder()
        .name(name)
        .nodes(options.nodes)
        .prefix(options.prefix)
        .attach_host(options.attach_host);
    if !options.empty {
        builder =
            builder.seed(seed(&options.images).context("no image seed; `--empty` starts without images")?);
    }
    if options.no_engines {
        builder = builder.without_engines();
    }
    for argument in &options.engine_args {
        builder = builder.engine_arg(argument);
    }
    if !options.foreground {
        builder = builder.manual();
    }
    let cluster = builder.up()?;
    if let Some(program) = &options.install {
        cluster.install(program)?;
    }
    eprintln!("{} nodes up in {:.1} s", options.nodes, start.elapsed().as_secs_f64());
    print!("{}", cluster.status()?);
    if options.foreground {
        eprintln!("the cluster lives until this command's input ends (Ctrl-D) or it is interrupted (Ctrl-C)");
        stdin().read_to_end(&mut Vec::new())?;
        cluster.down()?;
    }
    Ok(())
}

fn seed(images: &[PathBuf]) -> Result<Seed> {
    if images.is_empty() {
        return Seed::basic();
    }
    let archives = images
        .iter()
        .map(|path| path.canonicalize().with_context(|| format!("no image archive {}", path.display())));
    Seed::prepare("archives", &archives.collect::<Result<Vec<_>>>()?)
}

fn down(name: &str) -> Result<()> {
    let start = Instant::now();
    Cluster::open(name)?.down()?;
    eprintln!("cluster {name} removed in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn down_all() -> Result<()> {
    collect_garbage()?;
    // Clusters with a guard belong to a process that lives: they are not ours to remove.
    let by_hand = Cluster::all()?.into_iter().filter(|cluster| cluster.guard_pid().is_none());
    by_hand
        .map(|cluster| cluster.name().to_owned())
        .collect::<Vec<_>>()
        .iter()
        .try_for_each(|name| down(name))
}

fn collect_garbage() -> Result<()> {
    cluster::gc()?.iter().for_each(|name| eprintln!("cluster {name} removed: its owner is gone"));
    Ok(())
}

fn list() -> Result<()> {
    for cluster in Cluster::all()? {
        println!("{:<20} {} nodes  {}", cluster.name(), cluster.nodes().len(), cluster.dir().display());
    }
    Ok(())
}

fn each(cluster: &Cluster, nodes: &Nodes, act: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let nodes = nodes.nodes.iter().map(|&index| cluster.try_node(index)).collect::<Result<Vec<_>>>()?;
    nodes.iter().try_for_each(act)
}

fn engine(node: &Node, act: EngineAct) -> Result<()> {
    match act {
        EngineAct::Kill => node.engine_kill(),
        EngineAct::Stop => node.engine_stop(),
        EngineAct::Start => node.engine_start(),
        EngineAct::Restart => node.engine_restart(),
    }
}

fn service(service: &Service, act: ServiceAct, command: &[String]) -> Result<()> {
    match act {
        ServiceAct::Run => service.run(command),
        ServiceAct::Start => service.start(),
        ServiceAct::Stop => service.stop(),
        ServiceAct::Restart => service.restart(),
        ServiceAct::Kill => service.kill(),
    }
}

fn exec(cluster: &Cluster, place: &str, command: &[String]) -> Result<()> {
    if place == "client" {
        return become_command(&mut cluster.client_command(command));
    }
    let number = place
        .trim_start_matches('n')
        .parse()
        .with_context(|| format!("`{place}` is neither a node's number nor `client`"))?;
    become_command(&mut cluster.try_node(number)?.command(command)?)
}

/// Ends this program by becoming another, which keeps the terminal, the signals and the exit code.
fn become_command(command: &mut Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("cannot run `{}`", command.get_program().to_string_lossy()))
}

fn logs(node: &Node, follow: bool, tail: usize) -> Result<()> {
    let logs = node.logs();
    ensure!(!logs.is_empty(), "node {} has no logs yet", node.index());
    let mut command = Command::new("tail");
    command.args(["-n", &tail.to_string()]).args(follow.then_some("-F")).args(logs);
    become_command(&mut command)
}
