//! How long a node takes to serve a table: from the bytes of an assignment set, or of what changes of it, to forwarding entries in the kernel and names that are answered.
//!
//! `./x bench programming`; needs root and `ip`. One real node: its kernel's tables in a network namespace of its own, its set on disk, its DNS. Not in
//! these figures: the server's part (making and sending the sets).

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use wharf_agent::{
    assignments::Assignments,
    dns::{Sources, Upstreams},
    network::{KernelNetwork, NetworkOptions},
};
use wharf_model::{
    AssignmentSet, DnsTable, NetworkAssignment, NetworkId, NodeId, Peer, Revision, RouteTable,
    difference::{Change, Differ},
};
use wharf_process::{Shutdown, Tasks};

type Error = Box<dyn std::error::Error>;

const ENDPOINTS: u32 = 10_000;
const TASKS: u32 = 10;
const CHANGES: u32 = 1_000;
const ROUNDS: u32 = 5;
const VNI: u32 = 4_242;

fn main() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return Ok(());
    }
    // Before there are threads: everything that follows is in a network of its own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    for arguments in [
        "link set lo up",
        "link add eth0 type veth peer name wire",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set wire up",
    ] {
        ip(arguments)?;
    }
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let tasks = Tasks::new(&Shutdown::new());
        let mut options = NetworkOptions::new(Ipv4Addr::new(192, 0, 2, 1).into());
        options.upstreams = Upstreams::Fixed(Vec::new());
        let network = KernelNetwork::open(options, &tasks)?;
        let mut held = Assignments::load(node(), folder.path())?;

        let first = serde_json::to_vec(&Change::Whole(set(0)))?;
        let start = serve(&network, &mut held, &first, 0).await?;
        println!("{ENDPOINTS} remote endpoints, {} names, {build} build:", ENDPOINTS + ENDPOINTS / TASKS);
        println!("  set {} bytes; first table {start}", first.len());
        let mut rounds = Vec::new();
        for round in 1..=ROUNDS {
            let bytes = serde_json::to_vec(&set(round - 1).diff(&set(round)))?;
            let took = serve(&network, &mut held, &bytes, round).await?;
            println!("  {CHANGES} of them replaced, {} bytes: {took}", bytes.len());
            rounds.push(took.all());
        }
        rounds.sort_unstable();
        goal("programming-10000-endpoints-start-seconds", start.all(), 2.0);
        goal("programming-1000-changes-one-node-seconds", rounds[rounds.len() / 2], 1.0);
        Ok(())
    })
}

/// How long each part took.
struct Took {
    read: Duration,
    keep: Duration,
    kernel: Duration,
    names: Duration,
}

impl Took {
    fn all(&self) -> Duration {
        self.read + self.keep + self.kernel + self.names
    }
}
impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { read, keep, kernel, names } = self;
        write!(
            f,
            "{:.3} s (read {read:.0?}, keep {keep:.0?}, kernel {kernel:.0?}, names {names:.0?})",
            self.all().as_secs_f64()
        )
    }
}

/// As the agent does with a set that a server sent.
async fn serve(
    network: &KernelNetwork,
    held: &mut Assignments,
    bytes: &[u8],
    round: u32,
) -> Result<Took, Error> {
    let begin = Instant::now();
    let change: Change<AssignmentSet> = serde_json::from_slice(bytes)?;
    let set = match (change, held.held()) {
        (Change::Whole(set), _) => Arc::new(set),
        (change @ Change::Part(_), Some(held)) => {
            let mut set = Arc::clone(held);
            change.apply(Arc::make_mut(&mut set))?;
            set
        }
        (Change::Part(_), None) => return Err("the first set is whole".into()),
    };
    let read = begin.elapsed();
    held.accept(set)?;
    let keep = begin.elapsed() - read;
    let set = held.held().ok_or("a set is held")?;
    let pass = network.prepare(&set.networks).await?;
    let kernel = begin.elapsed() - read - keep;
    if !pass.problems.is_empty() || !network.publish(&set.dns, &Sources::new()).await {
        return Err(format!("not served: {:?}", pass.problems).into());
    }
    let names = begin.elapsed() - read - keep - kernel;
    check(network, &set.networks, round)?;
    Ok(Took { read, keep, kernel, names })
}

/// That the kernel has what was assigned, and nothing else.
fn check(
    network: &KernelNetwork,
    networks: &BTreeMap<NetworkId, NetworkAssignment>,
    round: u32,
) -> Result<(), Error> {
    let wanted: usize = networks.values().map(|network| network.peers.len()).sum();
    let neighbours = output("ip", "-4 neigh show nud permanent")?;
    let found = neighbours.lines().filter(|line| line.starts_with("10.50.")).count();
    if found != wanted || network.version() != Some(Revision(u64::from(round) + 1)) {
        return Err(format!("the kernel has {found} neighbours, and {wanted} are wanted").into());
    }
    Ok(())
}

fn node() -> NodeId {
    NodeId::from_parts(1, [1; 10])
}

/// The set of a round: in each, the next thousand endpoints have other addresses than in the one before.
fn set(round: u32) -> AssignmentSet {
    let id = NetworkId::from_parts(1, [2; 10]);
    let gateway = Ipv4Addr::new(10, 50, 255, 254);
    let mut network =
        NetworkAssignment::new(id, "bench", VNI, "10.50.0.0/16".parse().expect("a subnet"), gateway);
    let mut names = BTreeMap::<String, Vec<Ipv4Addr>>::new();
    for endpoint in 0..ENDPOINTS {
        let moves = (0..round).filter(|before| before % (ENDPOINTS / CHANGES) == endpoint / CHANGES).count();
        let offset = 2 + endpoint + ENDPOINTS * u32::try_from(moves).unwrap_or_default();
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 50, 0, 0)) + offset);
        let at = Ipv4Addr::new(192, 0, 2, u8::try_from(2 + endpoint % 3).unwrap_or(2));
        network.peers.push(Peer::new(address, at.into()));
        names.entry(format!("service-{}", endpoint / TASKS)).or_default().push(address);
        names.insert(format!("app-service-{}-{}", endpoint / TASKS, endpoint % TASKS), vec![address]);
    }
    network.peers.sort_unstable();
    let revision = Revision(u64::from(round) + 1);
    AssignmentSet {
        epoch: 1,
        revision,
        node: node(),
        tasks: BTreeMap::new(),
        networks: [(id, network)].into(),
        volumes: BTreeMap::new(),
        removed_volumes: Vec::new(),
        dns: DnsTable { version: revision, networks: [(id, names)].into(), ..DnsTable::default() },
        routes: RouteTable::default(),
        wireguard: None,
        disk_marks: Default::default(),
        watched: Vec::new(),
    }
}

fn goal(name: &str, value: Duration, target: f64) {
    let value = value.as_secs_f64();
    println!("goal {name} {value:.3} {target} {}", if value <= target { "met" } else { "short" });
}

fn ip(arguments: &str) -> Result<String, Error> {
    output("ip", arguments)
}

fn output(program: &str, arguments: &str) -> Result<String, Error> {
    let output = Command::new(program).args(arguments.split_whitespace()).output()?;
    if !output.status.success() {
        return Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
