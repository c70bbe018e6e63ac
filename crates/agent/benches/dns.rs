//! What a look-up costs: processor time per question of our responder, of knot and of unbound, with the same thousand services of three
//! tasks each, on this machine, in turns.
//!
//! `./x bench dns`. Needs Debian's `knot`, `unbound` and `dnsperf`; what is not installed is left out, and said. Each server is a process
//! with one worker, pinned to one processor; the load comes from the others. Measured is what the kernel counts for all threads of the server, system calls included, divided by the
//! questions that `dnsperf` had answered: at full load, and at a fixed rate that leaves each of them idle most of the time.
//!
//! Then the process as an agent has it: how long until changes of names are acknowledged, what it needs while nobody asks, and how soon it
//! answers again after it was killed.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(unsafe_code, reason = "an allocator is counted, which is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use wharf_agent::dns::{self, DnsProcess, Listen, ProcessOptions, Responder, Sources, Upstreams};
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::{Shutdown, Tasks};

type Error = Box<dyn std::error::Error>;

const SERVICES: u32 = 1000;
const TASKS: u32 = 3;
const ROUNDS: usize = 9;
const SECONDS: &str = "2";
/// Questions a second at which no server is busy.
const RATE: &str = "5000";
const SOON: Duration = Duration::from_secs(20);
/// How many times the peer's processor time per question ours may be.
const GOALS: [(&str, f64); 2] = [("knot", 1.05), ("unbound", 0.8)];

/// Allocations per question of ours: nothing but what happens by the way.
const ALLOCATIONS_GOAL: f64 = 0.01;

/// Counts allocations, for the server.
struct Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("serve"), Some(address)) => return serve(address.parse()?),
        (Some("process"), Some(folder)) => return process(folder.into()),
        _ => {}
    }
    let mut goals = Vec::new();
    changes(&mut goals)?;
    if !is_installed("dnsperf") {
        println!("skipped: dnsperf is not installed (Debian: dnsperf)");
        goals.iter().for_each(|goal| println!("{goal}"));
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let questions = folder.path().join("questions");
    let lines: Vec<_> = (0..SERVICES).map(|service| format!("service{service}.shop A")).collect();
    fs::write(&questions, lines.join("\n") + "\n")?;
    let mut servers = Vec::new();
    for name in ["wharf", "knot", "unbound"] {
        match Server::start(name, folder.path())? {
            Some(server) => servers.push(server),
            None => println!("{name} is left out: it is not installed (Debian: {name})"),
        }
    }
    println!("{SERVICES} services of {TASKS} tasks; medians of {ROUNDS} rounds (lowest, highest)");
    for (what, rate) in [("full load", None), ("5,000/s", Some(RATE))] {
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, costs) in servers.iter_mut().zip(&mut costs) {
                costs.push(server.measure(&questions, rate)?);
            }
        }
        for (server, costs) in servers.iter().zip(&costs) {
            let (median, lowest, highest) = spread(costs);
            println!(
                "{what:9}  {:8} {median:6.2} µs per question ({lowest:.2}, {highest:.2}), PSS {:.1} MiB, RSS {:.1} MiB",
                server.name,
                server.memory("Pss:")?,
                server.memory("Rss:")?
            );
        }
        for (peer, most) in GOALS {
            let Some(peer_costs) = servers.iter().position(|server| server.name == peer) else { continue };
            let ratios: Vec<_> =
                costs[0].iter().zip(&costs[peer_costs]).map(|(ours, theirs)| ours / theirs).collect();
            let (median, lowest, highest) = spread(&ratios);
            println!("{what:9}  ours / {peer}: {median:.2} ({lowest:.2}, {highest:.2})");
            if rate.is_none() {
                let verdict = if median <= most { "met" } else { "short" };
                goals.push(format!("goal dns_cpu_per_question_x_{peer} {median:.2} {most} {verdict}"));
            }
        }
    }
    let ours = &mut servers[0];
    let allocations = ours.allocations(&questions)?;
    let verdict = if allocations <= ALLOCATIONS_GOAL { "met" } else { "short" };
    goals.push(format!("goal dns_allocations_per_question {allocations:.3} {ALLOCATIONS_GOAL} {verdict}"));
    let (time, tasks) = publishing();
    println!("a table of {tasks} tasks is served after {:.1} ms", time.as_secs_f64() * 1e3);
    goals.iter().for_each(|goal| println!("{goal}"));
    Ok(())
}

/// The time until the largest table of one network is served, as a node has it that starts, and of how many tasks it is.
fn publishing() -> (Duration, u32) {
    const TASKS: u32 = 10_000;
    let id = NetworkId::from_parts(1, [1; 10]);
    let mut table = DnsTable::default();
    let (names, hosts) = (table.networks.entry(id).or_default(), table.hosts.entry(id).or_default());
    for task in 0..TASKS {
        let (service, address) = (task / 10, Ipv4Addr::from(0x0ac0_0001 + task));
        let own = format!("shop-service{service}-{}", task % 10 + 1);
        hosts.insert(address, own.clone());
        let of_service = ["", "tasks.", "nearest."].map(|before| format!("{before}service{service}"));
        for name in of_service.into_iter().chain([format!("service{service}.shop"), own]) {
            names.entry(name).or_default().push(address);
        }
    }
    let responder = Responder::new(Upstreams::Fixed(Vec::new()), &Tasks::new(&Shutdown::new()));
    let since = Instant::now();
    responder.publish(&table, &Sources::new());
    (since.elapsed(), TASKS)
}

/// Median, lowest and highest.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn address(service: u32, task: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0ac0_0000 + service * TASKS + task + 1)
}

/// Our responder on `at` until standard input ends; a line there is answered with how often was allocated.
fn serve(at: SocketAddr) -> Result<(), Error> {
    let id = NetworkId::from_parts(1, [1; 10]);
    let names = (0..SERVICES).map(|service| {
        (format!("service{service}.shop"), (0..TASKS).map(|task| address(service, task)).collect())
    });
    let networks = BTreeMap::from([(id, names.collect())]);
    let table = DnsTable { version: Revision(1), networks, ..DnsTable::default() };
    // One thread for tasks, as the process has it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = Tasks::new(&Shutdown::new());
    let responder = Responder::new(Upstreams::Fixed(Vec::new()), &tasks);
    responder.publish(&table, &Sources::new());
    let listen = Listen { address: at, subnet: "127.0.0.0/8".parse::<Ipv4Net>()? };
    runtime.block_on(async {
        responder.listen(&BTreeMap::from([(id, listen)])).await;
        let told = tokio::task::spawn_blocking(|| -> std::io::Result<()> {
            for line in std::io::stdin().lines() {
                line?;
                println!("{}", ALLOCATIONS.load(Ordering::Relaxed));
            }
            Ok(())
        });
        told.await?
    })?;
    Ok(())
}

/// The DNS process with its files in `folder`.
fn process(folder: PathBuf) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dns::serve(ProcessOptions { folder }, &Shutdown::new()))?;
    Ok(())
}

/// A cluster's names: services of [`TASKS`] tasks with all the names that they have, in one network. `change` moves one task.
fn cluster(change: u32) -> DnsTable {
    let id = NetworkId::from_parts(1, [1; 10]);
    let mut table = DnsTable { version: Revision(change.into()), ..DnsTable::default() };
    let (names, hosts) = (table.networks.entry(id).or_default(), table.hosts.entry(id).or_default());
    for service in 0..SERVICES {
        for task in 0..TASKS {
            let moved = service < change && task == 0;
            let address = if moved { Ipv4Addr::from(0x0ad0_0000 + service) } else { address(service, task) };
            let own = format!("shop-service{service}-{}", task + 1);
            hosts.insert(address, own.clone());
            let of_service = ["", "tasks.", "nearest."].map(|before| format!("{before}service{service}"));
            for name in of_service.into_iter().chain([format!("service{service}.shop"), own]) {
                names.entry(name).or_default().push(address);
            }
        }
    }
    table
}

/// What changes of names cost with a process of its own, for each of three nodes, which all share this machine.
fn changes(goals: &mut Vec<String>) -> Result<(), Error> {
    const NODES: usize = 3;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let tasks = Tasks::new(&Shutdown::new());
    let folders: Vec<_> = (0..NODES).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
    let id = NetworkId::from_parts(1, [1; 10]);
    let mut nodes = Vec::new();
    for folder in &folders {
        let arguments = vec!["process".into(), folder.path().into()];
        let _in_runtime = runtime.enter();
        let process =
            DnsProcess::start(dns::program(folder.path(), arguments), Upstreams::Fixed(vec![]), &tasks);
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        process.listen(&BTreeMap::from([(id, Listen { address: at, subnet: "127.0.0.0/8".parse()? })]));
        nodes.push((process, at));
    }
    let publish = |change: u32| {
        let table = Arc::new(cluster(change));
        runtime.block_on(futures::future::join_all(nodes.iter().map(|(process, _)| async {
            while !process.publish(Arc::clone(&table), &Sources::new()).await {}
        })));
    };
    publish(0);
    let since = Instant::now();
    (1..=SERVICES).for_each(publish);
    let one_by_one = since.elapsed();
    let making = Instant::now();
    (1..=SERVICES).for_each(|change| drop(std::hint::black_box(cluster(change))));
    let making = making.elapsed();
    // As an agent meets them that is told of each change before the last one was acknowledged.
    publish(0);
    let tables: Vec<_> = (1..=SERVICES).map(|change| Arc::new(cluster(change))).collect();
    let sources = Sources::new();
    let since = Instant::now();
    runtime.block_on(futures::future::join_all(nodes.iter().map(|(process, _)| async {
        let each = tables.iter().map(|table| process.publish(Arc::clone(table), &sources));
        futures::future::join_all(each).await;
        while process.version() != Some(Revision(SERVICES.into())) {
            tokio::task::yield_now().await;
        }
    })));
    let together = since.elapsed();
    println!(
        "{SERVICES} changes of {SERVICES} services on {NODES} nodes: {:.2} s, each acknowledged by all before the next \
         ({:.2} ms each; making the tables took {:.2} s of it); {:.2} s if they come at once",
        one_by_one.as_secs_f64(),
        one_by_one.as_secs_f64() * 1e3 / f64::from(SERVICES),
        making.as_secs_f64(),
        together.as_secs_f64()
    );
    let verdict = if together.as_secs_f64() <= 1.0 { "met" } else { "short" };
    goals.push(format!("goal dns_1000_changes_visible_s {:.2} 1 {verdict}", together.as_secs_f64()));
    let of = *children()?.first().ok_or("no process was started")?;
    let before = wake_ups(of)?;
    let seconds = 10;
    thread::sleep(Duration::from_secs(seconds));
    // A thread that has ended meanwhile was one that waited for work; what it counted went with it.
    let since = |(thread, count): (_, u64)| count - before.get(&thread).copied().unwrap_or(0);
    let woken: u64 = wake_ups(of)?.into_iter().map(since).sum();
    println!(
        "while nobody asks: {:.1} wake-ups a second, PSS {:.1} MiB, RSS {:.1} MiB with {SERVICES} services",
        woken as f64 / seconds as f64,
        memory(of, "Pss:")?,
        memory(of, "Rss:")?
    );
    for pid in children()? {
        let _ = Command::new("kill").arg(pid.to_string()).status();
    }
    drop(nodes);
    runtime.shutdown_background();
    Ok(())
}

/// The processes that this one started and that run.
fn children() -> Result<Vec<u32>, Error> {
    let own = std::process::id().to_string();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        if after.split(' ').nth(1) == Some(&own) && !after.starts_with('Z') {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// How often each thread of a process has been woken.
fn wake_ups(pid: u32) -> Result<BTreeMap<std::ffi::OsString, u64>, Error> {
    let mut all = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // One that ends while it is looked at is not counted.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let of = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all.insert(task.file_name(), of.ok_or("no count")?.trim().parse()?);
    }
    Ok(all)
}

/// Where the servers run, and where the load comes from.
const SERVER: &str = "0";
const LOAD: &str = "1";

/// The same command on one processor, if this machine has two.
fn pinned(command: Command, processor: &str) -> Result<Command, Error> {
    if thread::available_parallelism()?.get() < 2 {
        return Ok(command);
    }
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", processor]).arg(command.get_program()).args(command.get_args());
    Ok(pinned)
}

/// A server under test. Ends with this.
struct Server {
    name: &'static str,
    at: SocketAddr,
    child: Child,
    talk: Option<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server and waits until it answers; none if it is not installed.
    fn start(name: &'static str, folder: &Path) -> Result<Option<Self>, Error> {
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let command = match name {
            "knot" if is_installed("knotd") => knot(at, &folder)?,
            "unbound" if is_installed("unbound") => unbound(at, &folder)?,
            "wharf" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["serve", &at.to_string()]);
                command
            }
            _ => return Ok(None),
        };
        let log = fs::File::create(folder.join("log"))?;
        let mut command = pinned(command, SERVER)?;
        if name == "wharf" {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            command.stdin(Stdio::null()).stdout(log.try_clone()?);
        }
        let mut child = command.stderr(log).spawn()?;
        let talk = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        let server = Self { name, at, child, talk };
        let since = Instant::now();
        while !answers(at)? {
            if since.elapsed() > SOON {
                return Err(format!("{name}: {}", fs::read_to_string(folder.join("log"))?).into());
            }
            thread::yield_now();
        }
        Ok(Some(server))
    }

    /// Microseconds of processor time per question.
    fn measure(&mut self, questions: &Path, rate: Option<&str>) -> Result<f64, Error> {
        let before = self.processor_time()?;
        let answered = self.load(questions, rate)?;
        let time = self.processor_time()? - before;
        Ok(time.as_secs_f64() * 1e6 / answered)
    }

    /// How many questions were answered.
    fn load(&self, questions: &Path, rate: Option<&str>) -> Result<f64, Error> {
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-p", &self.at.port().to_string(), "-l", SECONDS, "-c", "4"]);
        command.args(["-q", "100", "-T", "1"]).arg("-d").arg(questions);
        command.args(rate.iter().flat_map(|rate| ["-Q", rate]));
        let output = pinned(command, LOAD)?.output()?;
        let said = String::from_utf8(output.stdout)?;
        let number = |of: &str| -> Option<f64> {
            let rest = said.lines().find_map(|line| line.trim().strip_prefix(of))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let found = said.contains("NOERROR") && !said.contains("NXDOMAIN") && !said.contains("SERVFAIL");
        number("Queries completed:").filter(|_| found).ok_or_else(|| format!("{}: {said}", self.name).into())
    }

    /// What the kernel counts for all threads.
    fn processor_time(&self) -> Result<Duration, Error> {
        let mut all = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            all += text.split_whitespace().next().ok_or("no time")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(all))
    }

    fn memory(&self, what: &str) -> Result<f64, Error> {
        memory(self.child.id(), what)
    }

    /// Allocations per question.
    fn allocations(&mut self, questions: &Path) -> Result<f64, Error> {
        let before = self.allocated()?;
        let answered = self.load(questions, None)?;
        Ok((self.allocated()? - before) / answered)
    }

    fn allocated(&mut self) -> Result<f64, Error> {
        let (stdin, stdout) = self.talk.as_mut().ok_or("it does not say")?;
        stdin.write_all(b"\n")?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

/// Memory of a process in MiB, as the kernel calls it.
fn memory(pid: u32, what: &str) -> Result<f64, Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)).ok_or("not in smaps_rollup")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join(program).is_file())
}

/// Whether the first service is found there.
fn answers(at: SocketAddr) -> Result<bool, Error> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect(at)?;
    let _ = socket.send(b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x08service0\x04shop\0\0\x01\0\x01");
    let mut reply = [0; 512];
    // A refusal is an error as well.
    let length = socket.recv(&mut reply).unwrap_or(0);
    Ok(length > 40 && reply[7] == u8::try_from(TASKS)?)
}

fn knot(at: SocketAddr, folder: &Path) -> Result<Command, Error> {
    let mut zone = "$ORIGIN shop.\n$TTL 5\n@ SOA ns admin 1 60 60 60 5\n@ NS ns\nns A 192.0.2.1\n".to_owned();
    for service in 0..SERVICES {
        for task in 0..TASKS {
            writeln!(zone, "service{service} A {}", address(service, task))?;
        }
    }
    fs::write(folder.join("shop.zone"), zone)?;
    let (folder, port) = (folder.display(), at.port());
    let file = format!("{folder}/knot.conf");
    fs::write(
        &file,
        format!(
            "server:\n  rundir: \"{folder}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             log:\n  - target: stderr\n    any: error\ndatabase:\n  storage: \"{folder}\"\n\
             zone:\n  - domain: shop\n    file: \"{folder}/shop.zone\"\n"
        ),
    )?;
    let mut command = Command::new("/usr/sbin/knotd");
    command.args(["-c", &file]);
    Ok(command)
}

fn unbound(at: SocketAddr, folder: &Path) -> Result<Command, Error> {
    let mut text = format!(
        "server:\n interface: 127.0.0.1\n port: {}\n num-threads: 1\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n \
         directory: \"{}\"\n pidfile: \"\"\n use-syslog: no\n logfile: \"\"\n local-zone: \"shop.\" static\n",
        at.port(),
        folder.display()
    );
    for service in 0..SERVICES {
        for task in 0..TASKS {
            writeln!(text, " local-data: \"service{service}.shop. 5 A {}\"", address(service, task))?;
        }
    }
    text.push_str("remote-control:\n control-enable: no\n");
    let file = folder.join("unbound.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("/usr/sbin/unbound");
    command.arg("-c").arg(file);
    Ok(command)
}
