//! A cluster of real nodes on one Linux machine, up in seconds, for tests and for trying things by hand.
//!
//! A node is a set of namespaces (network, mounts, host name, IPC, processes) with its own process
//! tree, address, `/etc`, `/var`, `/run`, home and Docker Engine. Nodes hang on a switch that can lose
//! frames, cut pairs and limit rates. Needs root, and the programs that [`missing`] names.
//!
//! - The machine's own network, files and cgroups are as they were once a cluster is down; the one
//!   thing it adds to the machine's network, on request, is an interface (`attach_host`).
//! - A cluster ends with its owner, however that ends: a guard process cleans up when the owner is
//!   gone, and [`gc`], which every start of a cluster runs, when the guard is gone too.
//! - Clusters do not see each other: names, addresses, namespaces, cgroups and files are their own.
//!
//! ```no_run
//! use wharf_testkit::cluster::{Cluster, Seed};
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::builder().nodes(3).seed(Seed::basic()?).up()?;
//! cluster.node(1).docker(["run", "-d", "--name", "web", "wharf/testserver:1"])?;
//! cluster.partition(1, 2)?;
//! cluster.node(3).power_off()?;
//! # Ok(()) }
//! ```

mod cgroup;
pub mod clock;
mod images;
mod network;
mod node;
mod process;
mod registry;
mod resolver;
mod seed;
mod service;
mod wait;

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

pub use node::{Node, Power};
pub use process::{Output, PATIENCE, Running, Signal};
pub use registry::gc;
pub use resolver::serve_here as serve_names;
pub use seed::Seed;
pub use service::Service;
pub use wait::{try_wait_until, wait_until};

use cgroup::Cgroup;
use registry::{Owner, Record};
use resolver::Resolver;

/// What a cluster needs of the machine, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 15] = [
    ("flock", "util-linux"),
    ("busybox", "busybox-static"),
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("docker", "docker.io or docker-cli"),
    ("tini", "tini"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("hostname", "hostname"),
];
const LOG_LINES: usize = 25;

/// What this machine or this process lacks for running clusters, in words; `None` if nothing.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the test cluster needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let lacking: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(program, package)| format!("`{program}` (Debian: {package})"))
        .collect();
    (!lacking.is_empty()).then(|| format!("the test cluster needs {}", lacking.join(", ")))
}

/// For the first line of a test: whether the test is to be skipped since this machine cannot run
/// clusters, which is said on standard error. With `WHARF_REQUIRE_ENGINE=1` that is a failure instead.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn skip() -> bool {
    let Some(why) = missing() else { return false };
    let must_run = std::env::var_os("WHARF_REQUIRE_ENGINE").is_some_and(|value| value == "1");
    assert!(!must_run, "{why}, and WHARF_REQUIRE_ENGINE forbids skipping");
    eprintln!("skipped: {why}");
    true
}

/// What is to be started; see [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    name: Option<String>,
    nodes: u8,
    seed: Option<Seed>,
    prefix: [u8; 2],
    attach_host: bool,
    engine_args: Vec<String>,
    is_manual: bool,
    is_bare: bool,
}

impl Builder {
    /// How many nodes; at most 200.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// The cluster's name, unique on the machine. Without one it is made up.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The images that every engine has from the start.
    pub fn seed(mut self, seed: Seed) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The first two bytes of addresses, `[10, 77]` unless set; the third is given out.
    pub fn prefix(mut self, prefix: [u8; 2]) -> Self {
        self.prefix = prefix;
        self
    }

    /// Gives the machine's own network an interface on the switch, with the address `.3`.
    pub fn attach_host(mut self, attach: bool) -> Self {
        self.attach_host = attach;
        self
    }

    /// A further argument for every start of every `dockerd`; a later one overrides ours
    /// (`--live-restore=false`).
    pub fn engine_arg(mut self, argument: &str) -> Self {
        self.engine_args.push(argument.to_owned());
        self
    }

    /// Nodes without engines: up in a moment, for tests that need none. `Node::engine_start` still works.
    pub fn without_engines(mut self) -> Self {
        self.is_bare = true;
        self
    }

    /// The cluster stays until it is taken down, whatever becomes of this process. Names are
    /// resolved by this very program, started with the arguments `resolver ADDRESS`.
    pub fn manual(mut self) -> Self {
        self.is_manual = true;
        self
    }

    /// Starts the cluster and waits until every engine answers. Whatever was started is removed
    /// again if that fails. Removes the clusters of dead owners first.
    #[expect(clippy::print_stderr, reason = "a warning that must not fail the start")]
    pub fn up(self) -> Result<Cluster> {
        if let Some(why) = missing() {
            bail!(why);
        }
        ensure!((1..=200).contains(&self.nodes), "a cluster has 1 to 200 nodes, not {}", self.nodes);
        if let Err(error) = gc() {
            // What resists is in nobody's way: it keeps its name and addresses.
            eprintln!("warning: cannot remove the clusters of dead owners: {error:#}");
        }
        let mut cluster = self.enter()?;
        let started =
            cluster.start(&self).and_then(|()| if self.is_manual { cluster.keep() } else { Ok(()) });
        let Err(error) = started else { return Ok(cluster) };
        let error = error.context(format!("cannot start the test cluster {}", cluster.name()));
        match cluster.end() {
            Ok(()) => Err(error),
            Err(rest) => Err(error.context(format!("and cannot remove it: {rest:#}"))),
        }
    }

    fn start(&self, node: &Node) -> Result<()> {
        node.create(self.seed.as_ref())?;
        if self.is_bare { node.boot_bare() } else { node.boot() }
    }

    /// Takes a name and addresses, and makes sure that what follows will be removed.
    fn enter(&self) -> Result<Cluster> {
        let _lock = registry::lock()?;
        let name = self.name.clone().unwrap_or_else(made_up_name);
        registry::check_name(&name)?;
        let mut record = Record {
            id: fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
            dir: registry::storage()?.join("clusters").join(&name),
            subnet: registry::free_subnet()?,
            prefix: self.prefix,
            nodes: self.nodes,
            // Also when it is to stay: an interrupted start leaves nothing.
            owner: Owner::this_process()?,
            attach_host: self.attach_host,
            engine_args: self.engine_args.clone(),
            guard: None,
            name,
        };
        ensure!(
            !record.entry().exists(),
            "a test cluster `{}` exists already: take it down first",
            record.name
        );
        ensure!(!record.dir.exists(), "{} is in the way", record.dir.display());
        fs::create_dir_all(record.entry())?;
        fs::create_dir_all(&record.dir)?;
        fs::write(record.dir.join(".wharf-testbed"), "a test cluster: removed with all its content\n")?;
        record.write()?;
        let guard = record.removal(true).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        record.guard = Some(guard.id());
        record.write()?;
        Ok(Cluster { record: Arc::new(record), guard: Some(guard), resolver: None })
    }
}

fn made_up_name() -> String {
    static MADE: AtomicUsize = AtomicUsize::new(1);
    format!("t{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// A cluster, or a view of one that another process owns. The owner's is removed when it is dropped;
/// if that is because of a panic, the ends of its logs are printed first.
#[derive(Debug)]
pub struct Cluster {
    record: Arc<Record>,
    /// Waits for this process to end or to close its input; only the owner has one.
    guard: Option<Child>,
    resolver: Option<Resolver>,
}

impl Cluster {
    /// A cluster of one node, with no images, until told otherwise.
    pub fn builder() -> Builder {
        Builder {
            name: None,
            nodes: 1,
            seed: None,
            prefix: [10, 77],
            attach_host: false,
            engine_args: Vec::new(),
            is_manual: false,
            is_bare: false,
        }
    }

    /// A cluster that is already there, by its name. Dropping this leaves it alone.
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self { record: Arc::new(registry::find(name)?), guard: None, resolver: None })
    }

    /// The clusters of this machine.
    pub fn all() -> Result<Vec<Self>> {
        let records = registry::all()?.into_iter();
        Ok(records.map(|record| Self { record: Arc::new(record), guard: None, resolver: None }).collect())
    }

    fn start(&mut self, plan: &Builder) -> Result<()> {
        let record = self.record.clone();
        for member in ["switch", "client"] {
            Cgroup::new(&record.name, member).ensure()?;
        }
        network::switch_up(&record).context("cannot make the switch")?;
        if record.attach_host {
            network::attach_host(&record).context("cannot attach this machine to the switch")?;
        }
        self.resolve_names(plan.is_manual).context("cannot start the name server")?;
        self.settle_client()?;
        let failures: Vec<anyhow::Error> = thread::scope(|scope| {
            let boots: Vec<_> =
                self.nodes().into_iter().map(|node| scope.spawn(move || plan.start(&node))).collect();
            boots
                .into_iter()
                .filter_map(|boot| boot.join().unwrap_or_else(|_| Err(anyhow!("a boot panicked"))).err())
                .collect()
        });
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    fn resolve_names(&mut self, must_outlive_us: bool) -> Result<()> {
        let (namespace, address) =
            (self.record.namespace_path("switch"), self.record.address(network::SWITCH));
        if !must_outlive_us {
            self.resolver = Some(Resolver::start(&namespace, address)?);
            return Ok(());
        }
        let log = fs::File::create(self.record.dir.join("resolver.log"))?;
        let mut command = node::in_cgroup(&Cgroup::new(&self.record.name, "switch"));
        command.args(["setsid", "--fork", "nsenter", &format!("--net={}", namespace.display()), "--"]);
        command.arg(std::env::current_exe()?).arg("resolver").arg(address.to_string());
        let status = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn settle_client(&self) -> Result<()> {
        let dir = self.record.dir.join("client");
        fs::create_dir_all(dir.join("home"))?;
        fs::write(dir.join("hosts"), format!("127.0.0.1\tlocalhost\n{}", node::hosts(&self.record)))?;
        fs::write(dir.join("resolv.conf"), format!("nameserver {}\n", self.record.address(network::SWITCH)))?;
        Ok(())
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The cluster's directory on this machine.
    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    /// The address of the client's place on the switch.
    pub fn client_address(&self) -> Ipv4Addr {
        self.record.address(network::CLIENT)
    }

    /// Node I, from 1. Panics if there is none: a test that asks for it is wrong.
    #[track_caller]
    pub fn node(&self, index: u8) -> Node {
        match self.try_node(index) {
            Ok(node) => node,
            Err(error) => panic!("{error}"),
        }
    }

    /// Node I, from 1.
    pub fn try_node(&self, index: u8) -> Result<Node> {
        let nodes = self.record.nodes;
        ensure!((1..=nodes).contains(&index), "cluster {} has nodes 1 to {nodes}, not {index}", self.name());
        Ok(Node::new(&self.record, index))
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.record.nodes).map(|index| Node::new(&self.record, index)).collect()
    }

    /// A command that will run on the client's place on the switch: in its network, with the
    /// machine's files, in the caller's directory, with a home of its own.
    pub fn client_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        node::client_command(&self.record, args)
    }

    /// Runs a program on the client's place on the switch to its end.
    pub fn client_exec<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.client_exec_with(args, &[], PATIENCE)
    }

    /// As [`client_exec`](Self::client_exec), with standard input and a deadline.
    pub fn client_exec_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
        within: Duration,
    ) -> Result<Output> {
        let (args, what) = node::named(args);
        process::complete(self.client_command(args), &format!("{what} (at the client)"), input, within)
    }

    /// Starts a program on the client's place on the switch that runs beside the caller, logging to a file of its own.
    pub fn client_spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Running> {
        static SPAWNED: AtomicUsize = AtomicUsize::new(1);
        let (args, what) = node::named(args);
        let log =
            self.record.dir.join(format!("client/program-{}.log", SPAWNED.fetch_add(1, Ordering::Relaxed)));
        Running::start(self.client_command(args), &format!("{what} (at the client)"), &log)
    }

    /// Does something in this process, on the client's place on the switch: the sockets made in `act`,
    /// and the threads started in it, are in the cluster's network.
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = fs::File::open(self.record.namespace_path("client"))?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(act())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes a program `/usr/local/bin/wharf` in every node, now and at every boot. Programs that run
    /// keep the file they were started from, so this is also how an upgrade begins.
    pub fn install(&self, program: &Path) -> Result<()> {
        static COPIES: AtomicUsize = AtomicUsize::new(1);
        // A copy, since the build may write its file again in place while nodes run it.
        let copy = self.record.dir.join(format!(
            "wharf-{}-{}",
            std::process::id(),
            COPIES.fetch_add(1, Ordering::Relaxed)
        ));
        fs::copy(program, &copy).with_context(|| format!("cannot read the program {}", program.display()))?;
        self.nodes().iter().try_for_each(|node| node.install(&copy))
    }

    /// Drops all frames between two nodes, both ways, until [`heal`](Self::heal).
    pub fn partition(&self, a: u8, b: u8) -> Result<()> {
        self.partition_one_way(a, b)?;
        self.partition_one_way(b, a)
    }

    /// Drops what one node sends to another, until [`heal`](Self::heal).
    pub fn partition_one_way(&self, from: u8, to: u8) -> Result<()> {
        let (from, to) = (self.try_node(from)?, self.try_node(to)?);
        network::cut(&self.record, from.index(), to.index())
    }

    /// Undoes every partition and isolation. The first packet afterwards may still be lost.
    pub fn heal(&self) -> Result<()> {
        network::heal(&self.record)
    }

    /// Loses the given share (0 to 1) of what passes each of these nodes' ports, in place of any
    /// loss set before; `&[]` ends it. Two nodes lose twice.
    pub fn lose(&self, shares: &[(u8, f64)]) -> Result<()> {
        shares.iter().try_for_each(|&(index, _)| self.try_node(index).map(drop))?;
        network::lose(&self.record, shares)
    }

    /// The ends of all logs, for whoever has to find out what went wrong.
    pub fn log_tails(&self) -> String {
        self.nodes().iter().map(|node| node.log_tails(LOG_LINES)).collect()
    }

    /// Removes the cluster: processes, namespaces, cgroups, mounts, files. Its owner or anybody may do it.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    /// Lets go of an owned cluster's life: waits until the guard has removed it.
    fn end(&mut self) -> Result<()> {
        self.resolver = None;
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            if guard.wait()?.success() {
                return Ok(());
            }
        }
        // There is no guard, or it was killed, or something resisted: this says what.
        self.record.remove()
    }

    /// Makes the cluster one that stays until it is taken down by hand.
    fn keep(&mut self) -> Result<()> {
        let record = Record { owner: Owner::Manual, guard: None, ..(*self.record).clone() };
        record.write()?;
        self.record = Arc::new(record);
        if let Some(mut guard) = self.guard.take() {
            guard.kill()?;
            guard.wait()?;
        }
        Ok(())
    }

    /// Waits until every node's address answers from every other that is not cut off from it.
    pub fn wait_for_network(&self, within: Duration) -> Result<()> {
        for from in self.nodes() {
            for to in self.nodes() {
                let address = to.address().to_string();
                try_wait_until(within, &format!("{} reaches {}", from.name(), to.name()), || {
                    from.run(["busybox", "ping", "-c1", "-W1", &address])
                })?;
            }
        }
        Ok(())
    }

    /// Lines about the cluster and its nodes, for people.
    pub fn status(&self) -> Result<String> {
        let owner = match &self.record.owner {
            Owner::Manual => "until `down`".to_owned(),
            Owner::Process { pid, .. } => format!("as long as process {pid}"),
        };
        let mut text = format!("cluster {}  {}/24  {owner}\n", self.name(), self.record.address(0));
        text += "NODE  ADDRESS         POWER     INIT     ENGINE   SOCKET\n";
        let number = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        for node in self.nodes() {
            let (init, engine) = (number(node.init_pid()), number(node.pids_of("dockerd").first().copied()));
            let (name, address, power, socket) =
                (node.name(), node.address().to_string(), node.power()?, node.socket());
            text +=
                &format!("{name:<5} {address:<15} {power:<9} {init:<8} {engine:<8} {}\n", socket.display());
        }
        Ok(text)
    }

    /// The guard's pid, if the cluster has one: for tests of what happens without it.
    pub fn guard_pid(&self) -> Option<u32> {
        self.record.guard
    }

    /// What there is of the cluster on this machine, each as a line: for tests that nothing is left.
    pub fn traces(&self) -> Vec<String> {
        let name = self.name();
        let namespaces = entries("/run/netns")
            .into_iter()
            .filter(|path| path.to_string_lossy().contains(&format!("/wb.{name}.")));
        let cgroup = format!("wharf-testbed.{name}");
        let cgroups = entries("/sys/fs/cgroup")
            .into_iter()
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|dir| dir.join(&cgroup));
        let link = Path::new("/sys/class/net").join(self.record.host_link());
        let files =
            cgroups.chain([self.record.dir.clone(), self.record.entry(), link]).filter(|path| path.exists());
        let mut traces: Vec<String> =
            namespaces.chain(files).map(|path| path.display().to_string()).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dir = self.record.dir.display().to_string();
        traces.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&dir) || line.contains(&format!("wb.{name}.")))
                .map(str::to_owned),
        );
        for process in entries("/proc") {
            let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            let command = fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ");
            if cgroup.contains(&format!("wharf-testbed.{name}/"))
                || command.contains(&format!("wharf-testbed-guard {name} "))
            {
                traces.push(format!("{}: {command}", process.display()));
            }
        }
        traces
    }
}

fn entries(dir: &str) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "the last chance to say what went wrong in a test")]
    fn drop(&mut self) {
        if self.guard.is_none() {
            return;
        }
        if thread::panicking() {
            eprintln!("cluster {}:\n{}", self.name(), self.log_tails());
            if std::env::var_os("WHARF_TESTBED_KEEP").is_some() {
                match self.keep() {
                    Ok(()) => eprintln!("cluster {} is kept: look at it, then take it down", self.name()),
                    Err(error) => eprintln!("cluster {} could not be kept: {error:#}", self.name()),
                }
                return;
            }
        }
        if let Err(error) = self.end() {
            eprintln!("cluster {} could not be removed: {error:#}", self.name());
        }
    }
}
