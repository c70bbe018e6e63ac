//! How long 1,000 changes of endpoints take to be seen on three nodes: from what a fourth node says of its tasks to what the three answer.
//!
//! `./x bench programming [ROUNDS]` (after the node's own part, which is in the agent's benchmark of that name). Needs root and what the test
//! cluster needs; `WHARF_BIN` names a program to measure instead of one that is built. A real server, three real agents with their networks and DNS
//! processes; the fourth node has no containers ([`wharf_testkit::puppet`]): it says of 1,000 services' three tasks each that they run,
//! then of one task of each service that it is unhealthy, and that it is healthy again. A change is seen once the name of its service is
//! answered with the right number of addresses, inside a container of each node.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    fmt::Write as _,
    fs::File,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use wharf_testkit::{
    cluster::{Cluster, Running, Seed},
    puppet,
};
use wharf_tests::{
    Fleet, Signal,
    contest::{figures, goal, median},
    exactness::ask,
    skip,
};

const SERVICES: usize = 1_000;
const REPLICAS: usize = 3;
const REAL: u8 = 3;
/// The node without containers.
const PUPPET: &str = "puppet";
/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Questions that are under way at once.
const BURST: usize = 50;

fn main() -> Result<()> {
    if skip() {
        return Ok(());
    }
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, line, address, folder] = &words[..]
        && word == PUPPET
    {
        return puppet::run(line, PUPPET, address.parse()?, Path::new(folder));
    }
    let rounds: usize = words.first().map_or(Ok(5), |word| word.parse())?;
    let fleet = Fleet::bare(Cluster::builder().nodes(REAL + 1).seed(Seed::basic()?))?;
    fleet.serve()?;
    for index in 2..=REAL {
        fleet.join(fleet.node(index))?;
    }
    let strings = bring_puppet(&fleet)?;
    deploy(&fleet)?;
    let places = (1..=REAL).map(|index| place(&fleet, index)).collect::<Result<Vec<_>>>()?;
    seen(&places, REPLICAS).context("before anything changes")?;
    println!(
        "{SERVICES} services of {REPLICAS} tasks; seconds until {SERVICES} changes are seen on node 1, 2, 3"
    );
    let mut all = Vec::new();
    for round in 1..=rounds {
        for (signal, what, wanted) in
            [(Signal::SIGUSR1, "unhealthy", REPLICAS - 1), (Signal::SIGUSR2, "healthy", REPLICAS)]
        {
            thread::sleep(Duration::from_secs(3));
            let since = Instant::now();
            strings.signal(signal)?;
            let nodes = seen(&places, wanted)?;
            let each: Vec<_> = nodes.iter().map(|at| format!("{:.3}", (*at - since).as_secs_f64())).collect();
            let last = nodes.into_iter().max().unwrap_or(since) - since;
            println!("round {round}, {what:9}  {}   last {:.3}", each.join("  "), last.as_secs_f64());
            all.push(last);
        }
    }
    println!("1,000 changes seen on 3 nodes  {}", figures(&all));
    println!(
        "{}",
        goal("programming_1000_changes_3_nodes_s", median(all.iter().map(Duration::as_secs_f64)), 1.0)
    );
    Ok(())
}

/// Starts the node without containers on the machine that has no agent.
fn bring_puppet(fleet: &Fleet) -> Result<Running> {
    let machine = fleet.node(REAL + 1);
    let this = std::env::current_exe()?.display().to_string();
    let (line, address) = (fleet.join_line.trim(), machine.address().to_string());
    let folder = fleet.cluster.dir().join(PUPPET).display().to_string();
    let puppet = machine.spawn([this.as_str(), PUPPET, line, &address, &folder])?;
    fleet.wait_for_nodes().with_context(|| format!("the node without containers said: {}", puppet.log()))?;
    Ok(puppet)
}

fn deploy(fleet: &Fleet) -> Result<()> {
    let mut file =
        "name: many\nnetworks: {default: {ipam: {config: [{subnet: 10.99.0.0/16}]}}}\nservices:\n".to_owned();
    let _ = writeln!(
        file,
        "  asker:\n    image: busybox:1\n    command: sleep 1000000\n    deploy: {{mode: global, placement: {{constraints: [node.hostname != {PUPPET}]}}}}"
    );
    for number in 0..SERVICES {
        let _ = writeln!(
            file,
            "  s{number}:\n    image: busybox:1\n    healthcheck: {{test: [CMD, \"true\"]}}\n    deploy: {{replicas: {REPLICAS}, restart_policy: {{condition: none}}, placement: {{constraints: [node.hostname == {PUPPET}]}}}}"
        );
    }
    let file = fleet.file("many", &file);
    let since = Instant::now();
    let mut up = fleet.spawn(["up", "-y", "-f", &file]);
    let code = up.wait(PATIENCE * 3)?;
    ensure!(code == 0, "`wharf up` ended with {code}: {}", up.log());
    println!("deployed after {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// A socket inside the container of a node, to the node's DNS.
fn place(fleet: &Fleet, index: u8) -> Result<UdpSocket> {
    let containers = fleet.node(index).containers();
    let [(_, pid)] = &containers[..] else { bail!("node {index} runs {containers:?}, and one was to be") };
    let pid = *pid;
    let opened = thread::spawn(move || -> Result<UdpSocket> {
        let resolver = ask::resolver(pid)?;
        setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::from((resolver, 53)))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    });
    opened.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// When each node answered every service's name with so many addresses.
fn seen(places: &[UdpSocket], wanted: usize) -> Result<Vec<Instant>> {
    thread::scope(|scope| {
        let nodes: Vec<_> =
            places.iter().map(|socket| scope.spawn(move || seen_on(socket, wanted))).collect();
        let seen = nodes
            .into_iter()
            .map(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        seen.collect()
    })
}

fn seen_on(socket: &UdpSocket, wanted: usize) -> Result<Instant> {
    let end = Instant::now() + PATIENCE;
    let mut left: Vec<usize> = (0..SERVICES).collect();
    loop {
        let mut still = Vec::new();
        for burst in left.chunks(BURST) {
            let names: Vec<_> = burst.iter().map(|number| format!("s{number}")).collect();
            let counts = ask::count_addresses(socket, &names)?;
            still.extend(
                burst
                    .iter()
                    .zip(counts)
                    .filter(|(_, count)| *count != Some(wanted))
                    .map(|(number, _)| *number),
            );
            if !still.is_empty() {
                // The rest is asked for later, too: who looks takes no more of the processors than it must.
                still.extend(left.iter().copied().filter(|number| *number > burst[burst.len() - 1]));
                break;
            }
        }
        left = still;
        if left.is_empty() {
            return Ok(Instant::now());
        }
        ensure!(
            Instant::now() < end,
            "{} names, s{} among them, are not answered with {wanted} addresses",
            left.len(),
            left[0]
        );
        thread::sleep(Duration::from_millis(10));
    }
}
