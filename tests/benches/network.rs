//! What a network costs between containers on two machines: ours, the same made by hand, and Docker Swarm's.
//!
//! - Paths: machine to machine; our `routed`, `vxlan` and `wireguard`; a route and a VXLAN made by hand with `docker network create`
//!   and `ip`; Swarm's overlay. Every container is one of Docker's. Each path has two machines of its own, with an engine and nothing but what
//!   it needs: a packet pays for the rules of all networks of its machine.
//! - In each round every path has its turn, in an order that rotates and turns about; ratios are of the same round, and their median is the figure.
//! - Sender and receiver are threads of this process inside the containers' network namespaces. Processor time is the whole machine's
//!   (`/proc/stat`), because most of it is spent in soft interrupts that no process is charged for: run it on a quiet machine.
//!
//! `./x bench network [ROUNDS] [SECONDS] [PATH…]`, 7 rounds of 2 seconds unless said otherwise, of every path or of these (`'vxlan by hand'`).
//! Needs root and what the test cluster needs.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use wharf_testkit::cluster::{Cluster, Node, Seed, try_wait_until};
use wharf_tests::{Fleet, skip, text};

const SOON: Duration = Duration::from_secs(90);
const PORT: u16 = 7007;
/// What is written at once; as much as iperf3 does.
const CHUNK: usize = 128 << 10;

/// A way from one machine to the other.
struct Path {
    name: &'static str,
    /// Network namespaces of the sender and the receiver, and the receiver's address.
    from: PathBuf,
    to: PathBuf,
    address: Ipv4Addr,
}

/// How a path is made on two machines.
type Make = fn(&Cluster) -> Result<Path>;

/// What one turn of a path gave.
#[derive(Debug, Clone, Copy)]
struct Turn {
    gigabits_per_second: f64,
    cpu_seconds_per_gigabit: f64,
    round_trip_micros: f64,
    round_trips_per_cpu_second: f64,
}

fn main() -> Result<()> {
    if skip() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let named: Vec<&str> =
        words.iter().filter(|word| word.parse::<u64>().is_err()).map(String::as_str).collect();
    let wanted = |path: &str| named.is_empty() || named.contains(&path);
    let rounds = usize::try_from(numbers.first().copied().unwrap_or(7))?;
    let time = Duration::from_secs(numbers.get(1).copied().unwrap_or(2));

    // Dropped last: the paths lead through them.
    let (mut fleets, mut clusters) = (Vec::new(), Vec::new());
    let (mut paths, mut missing) = (Vec::new(), Vec::new());
    for backend in ["routed", "vxlan", "wireguard"].into_iter().filter(|backend| wanted(backend)) {
        let fleet = Fleet::start(2);
        match ours(&fleet, backend) {
            Ok(path) => paths.push(path),
            Err(error) => missing.push(format!("{backend}: {error:#}")),
        }
        fleets.push(fleet);
    }
    let by_others: [(&str, Make); 4] = [
        ("host", host),
        ("route by hand", route_by_hand),
        ("vxlan by hand", vxlan_by_hand),
        ("swarm overlay", swarm),
    ];
    for (name, make) in by_others.into_iter().filter(|(name, _)| *name == "host" || wanted(name)) {
        let cluster = others()?;
        match make(&cluster) {
            Ok(path) => paths.push(path),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
        clusters.push(cluster);
    }
    paths.sort_by_key(|path| path.name != "host");
    println!("load of the machine before: {}", fs::read_to_string("/proc/loadavg")?.trim());
    let mut turns: BTreeMap<&str, Vec<Turn>> = BTreeMap::new();
    for path in &paths {
        measure(path, Duration::from_millis(300))
            .with_context(|| format!("{} carries nothing", path.name))?;
    }
    for round in 0..rounds {
        for turn in 0..paths.len() {
            let place = (round / 2 + turn) % paths.len();
            let path = &paths[if round % 2 == 0 { place } else { paths.len() - 1 - place }];
            turns.entry(path.name).or_default().push(measure(path, time)?);
        }
    }
    report(&paths, &turns);
    for missing in &missing {
        println!("not measured: {missing}");
    }
    goals(&turns);
    ensure!(missing.is_empty(), "not every path could be measured");
    Ok(())
}

fn report(paths: &[Path], turns: &BTreeMap<&str, Vec<Turn>>) {
    println!(
        "{:15} {:>8} {:>8} {:>10} {:>8} {:>9} {:>12}",
        "path", "Gbit/s", "x host", "CPU-s/Gbit", "x host", "rtt us", "rtt/CPU-s"
    );
    for path in paths {
        let all = &turns[path.name];
        let figure = |of: fn(&Turn) -> f64| median(all.iter().map(of));
        let ratio = |of: fn(&Turn) -> f64| ratio(turns, path.name, "host", of).unwrap_or(f64::NAN);
        println!(
            "{:15} {:>8.2} {:>8.2} {:>10.4} {:>8.2} {:>9.1} {:>12.0}",
            path.name,
            figure(|turn| turn.gigabits_per_second),
            ratio(|turn| turn.gigabits_per_second),
            figure(|turn| turn.cpu_seconds_per_gigabit),
            ratio(|turn| turn.cpu_seconds_per_gigabit),
            figure(|turn| turn.round_trip_micros),
            figure(|turn| turn.round_trips_per_cpu_second),
        );
    }
}

fn goals(turns: &BTreeMap<&str, Vec<Turn>>) {
    let cpu: fn(&Turn) -> f64 = |turn| turn.cpu_seconds_per_gigabit;
    let throughput: fn(&Turn) -> f64 = |turn| turn.gigabits_per_second;
    let at_most = [
        ("network_routed_cpu_x_route_by_hand", "routed", "route by hand", 1.03),
        ("network_vxlan_cpu_x_vxlan_by_hand", "vxlan", "vxlan by hand", 1.0),
    ];
    for (name, ours, peer, target) in at_most {
        if let Some(value) = ratio(turns, ours, peer, cpu) {
            let verdict = if value <= target { "met" } else { "short" };
            println!("goal {name} {value:.3} {target} {verdict}");
        }
    }
    if let Some(value) = ratio(turns, "vxlan", "routed", throughput) {
        let verdict = if value >= 0.85 { "met" } else { "short" };
        println!("goal network_vxlan_throughput_x_routed {value:.3} 0.85 {verdict}");
    }
}

/// The median over rounds of one path's figure by another's of the same round.
fn ratio(turns: &BTreeMap<&str, Vec<Turn>>, path: &str, other: &str, of: fn(&Turn) -> f64) -> Option<f64> {
    let (path, other) = (turns.get(path)?, turns.get(other)?);
    Some(median(path.iter().zip(other).map(|(path, other)| of(path) / of(other))))
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

/// One stream in one direction, then one byte back and forth, each for `time`.
fn measure(path: &Path, time: Duration) -> Result<Turn> {
    let before = busy()?;
    let (bits, seconds) = stream(path, time)?;
    let streaming = busy()? - before;
    let before = busy()?;
    let (trips, trip_seconds) = ping_pong(path, time / 2)?;
    let turning = busy()? - before;
    let gigabits = bits / 1e9;
    Ok(Turn {
        gigabits_per_second: gigabits / seconds,
        cpu_seconds_per_gigabit: streaming / gigabits,
        round_trip_micros: trip_seconds / trips * 1e6,
        round_trips_per_cpu_second: trips / turning,
    })
}

/// Bits that the receiver got, and in how many seconds.
fn stream(path: &Path, time: Duration) -> Result<(f64, f64)> {
    between(
        path,
        move |mut stream| {
            let chunk = vec![7_u8; CHUNK];
            let start = Instant::now();
            while start.elapsed() < time {
                stream.write_all(&chunk)?;
            }
            Ok(())
        },
        |mut stream| {
            let mut chunk = vec![0_u8; CHUNK];
            let (start, mut bytes) = (Instant::now(), 0_u64);
            loop {
                match stream.read(&mut chunk)? {
                    0 => break,
                    count => bytes += count as u64,
                }
            }
            Ok((as_float(bytes) * 8.0, start.elapsed().as_secs_f64()))
        },
    )
}

/// How often a byte went there and back, and in how many seconds.
fn ping_pong(path: &Path, time: Duration) -> Result<(f64, f64)> {
    between(
        path,
        move |mut stream| {
            stream.set_nodelay(true)?;
            let (start, mut byte) = (Instant::now(), [1_u8]);
            while start.elapsed() < time {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
            }
            Ok(())
        },
        |mut stream| {
            stream.set_nodelay(true)?;
            let (start, mut trips, mut byte) = (Instant::now(), 0_u64, [0_u8]);
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
                trips += 1;
            }
            Ok((as_float(trips), start.elapsed().as_secs_f64()))
        },
    )
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// Connects the two ends of a path, and answers what the receiver says.
fn between<T: Send + 'static>(
    path: &Path,
    send: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static,
    receive: impl FnOnce(TcpStream) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let address = path.address;
    let listener = inside(&path.to, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
        .join()
        .map_err(|_| anyhow!("the listener's thread panicked"))??;
    let receiver = inside(&path.to, move || listener.accept().and_then(|(stream, _)| receive(stream)))?;
    let sender = inside(&path.from, move || {
        let stream =
            TcpStream::connect_timeout(&SocketAddrV4::new(address, PORT).into(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        send(stream)
    })?;
    sender.join().map_err(|_| anyhow!("the sender's thread panicked"))??;
    Ok(receiver.join().map_err(|_| anyhow!("the receiver's thread panicked"))??)
}

/// Runs `work` on a thread in a network namespace.
fn inside<T: Send + 'static>(
    namespace: &PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<thread::JoinHandle<io::Result<T>>> {
    let file = File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    Ok(thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    }))
}

fn namespace(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Seconds that the machine's processors have worked, all together.
fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        bail!("/proc/stat begins with `{line}`");
    };
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(as_float(user + nice + system + irq + softirq) / as_float(u64::try_from(hertz)?))
}

/// An app with a task on each machine, on a network of this backend.
fn ours(fleet: &Fleet, backend: &str) -> Result<Path> {
    let app = format!("bench-{backend}");
    let service = |node: u8| {
        format!(
            "  on{node}:\n    image: 'busybox:1'\n    command: sleep 1000000\n    stop_grace_period: 1s\n    deploy: {{placement: {{constraints: [node.hostname == n{node}]}}}}\n"
        )
    };
    let file = format!(
        "name: {app}\nservices:\n{}{}networks: {{default: {{x-wharf: {{backend: {backend}}}}}}}\n",
        service(1),
        service(2)
    );
    fleet.try_wharf(["up", "-y", "-f", &fleet.file(&app, &file)])?.text()?;
    let end = |node: u8| -> Result<(PathBuf, Ipv4Addr)> {
        let name = format!("on{node}");
        let tasks = fleet.tasks(&app)?;
        ensure!(tasks.iter().any(|task| text(&task["service"]) == name), "{name} has no task");
        let node = fleet.node(node);
        let filter = format!("name={app}");
        let id = node.docker(["ps", "-q", "--no-trunc", "--filter", &filter])?;
        container(&node, id.trim())
    };
    let ((from, _), (to, address)) = (end(1)?, end(2)?);
    let name = match backend {
        "routed" => "routed",
        "vxlan" => "vxlan",
        _ => "wireguard",
    };
    Ok(Path { name, from, to, address })
}

/// A container's network namespace, and its address on the only network it is on.
fn container(node: &Node, id: &str) -> Result<(PathBuf, Ipv4Addr)> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
    let addresses = node.docker(["inspect", "--format", format, id])?;
    let address = addresses.split_whitespace().next().context("the container has no address")?;
    let (_, pid) = try_wait_until(SOON, "the container has a process", || {
        let found = node.containers().into_iter().find(|(other, _)| other == id);
        found.ok_or_else(|| anyhow!("none yet"))
    })?;
    Ok((namespace(pid), address.parse()?))
}

/// From machine to machine.
fn host(cluster: &Cluster) -> Result<Path> {
    let [from, to] = [cluster.node(1), cluster.node(2)];
    let namespace = |node: &Node| Ok::<_, anyhow::Error>(namespace(node.init_pid().context("it runs")?));
    Ok(Path { name: "host", from: namespace(&from)?, to: namespace(&to)?, address: to.address() })
}

/// Two machines with engines on which nothing of Wharf runs, and which may be a swarm.
fn others() -> Result<Cluster> {
    Cluster::builder().nodes(2).seed(Seed::basic()?).engine_arg("--live-restore=false").up()
}

fn run(node: &Node, network: &str, address: Ipv4Addr) -> Result<(PathBuf, Ipv4Addr)> {
    let address = address.to_string();
    let command = ["run", "-d", "--network", network, "--ip", &address, "busybox:1", "sleep", "1000000"];
    let id = node.docker(command)?;
    container(node, id.trim())
}

/// As somebody would do it without Wharf: a bridge network for each machine's part, and a route to the other's.
fn route_by_hand(cluster: &Cluster) -> Result<Path> {
    let mut ends = Vec::new();
    for (this, other) in [(1, 2), (2, 1)] {
        let node = cluster.node(this);
        let to = cluster.node(other).address();
        node.sh(&format!(
            "docker network create -d bridge --subnet 10.221.{this}.0/24 -o com.docker.network.bridge.name=byhandr \
             -o com.docker.network.bridge.enable_ip_masquerade=false byhand-route && \
             iptables -I DOCKER-USER -o byhandr -s 10.221.0.0/16 -j ACCEPT && \
             ip route add 10.221.{other}.0/24 via {to}"
        ))?;
        ends.push(run(&node, "byhand-route", Ipv4Addr::new(10, 221, this, 10))?);
    }
    pair("route by hand", ends)
}

/// As somebody would do it without Wharf: one bridge network on both machines, and a VXLAN port that knows where the other end is.
fn vxlan_by_hand(cluster: &Cluster) -> Result<Path> {
    let mut ends = Vec::new();
    for (this, other) in [(1, 2), (2, 1)] {
        let node = cluster.node(this);
        let (from, to) = (node.address(), cluster.node(other).address());
        node.sh(&format!(
            "docker network create -d bridge --subnet 10.220.0.0/16 --ip-range 10.220.{this}.0/24 --gateway 10.220.{this}.1 \
             -o com.docker.network.bridge.name=byhandv -o com.docker.network.driver.mtu=1450 byhand-vxlan && \
             ip link add byhandx type vxlan id 4200 local {from} dstport 4795 nolearning proxy && \
             ip link set byhandx mtu 1450 master byhandv up && bridge link set dev byhandx learning off && \
             bridge fdb replace 02:42:0a:dc:0{other}:0a dev byhandx dst {to} self permanent && \
             bridge fdb replace 02:42:0a:dc:0{other}:0a dev byhandx master static && \
             ip neigh replace 10.220.{other}.10 lladdr 02:42:0a:dc:0{other}:0a dev byhandx nud permanent"
        ))?;
        ends.push(run(&node, "byhand-vxlan", Ipv4Addr::new(10, 220, this, 10))?);
    }
    pair("vxlan by hand", ends)
}

/// An attachable overlay network of a swarm of the two machines.
fn swarm(cluster: &Cluster) -> Result<Path> {
    let first = cluster.node(1);
    let address = first.address().to_string();
    first.docker(["swarm", "init", "--advertise-addr", &address])?;
    let token = first.docker(["swarm", "join-token", "-q", "worker"])?;
    cluster.node(2).docker(["swarm", "join", "--token", token.trim(), &format!("{address}:2377")])?;
    first.docker([
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--subnet",
        "10.223.0.0/16",
        "bench",
    ])?;
    let mut ends = Vec::new();
    for this in [1, 2] {
        let end = try_wait_until(SOON, "the overlay network reaches the machine", || {
            run(&cluster.node(this), "bench", Ipv4Addr::new(10, 223, 9, this))
        })?;
        ends.push(end);
    }
    pair("swarm overlay", ends)
}

fn pair(name: &'static str, ends: Vec<(PathBuf, Ipv4Addr)>) -> Result<Path> {
    let [(from, _), (to, address)] = <[_; 2]>::try_from(ends).map_err(|_| anyhow!("a path has two ends"))?;
    Ok(Path { name, from, to, address })
}
