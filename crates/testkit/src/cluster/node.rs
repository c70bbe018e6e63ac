//! One node: what runs in it, its power, its engine, and its place on the network.
//!
//! - A node that is off keeps its disk and its memory size, and nothing else.
//! - Whatever runs in a node is in all its namespaces and in its cgroup, so it ends with the node.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cgroup::Cgroup;
use super::clock::{self, Step};
use super::network::{self, Port};
use super::process::{self, Output, PATIENCE, Running, Signal};
use super::registry::Record;
use super::seed::Seed;
use super::service::Service;
use super::wait::try_wait_until;

const BOOT: &str = include_str!("boot.sh");
/// Puts the shell into the cgroups named in its first argument, then becomes the rest.
const JOIN: &str = r#"for g in $1; do echo $$ >"$g/cgroup.procs" || exit 125; done; shift; exec "$@""#;
/// Goes to the caller's directory if the node has it, or else home, then becomes the rest.
const SETTLE: &str = r#"cd "$1" 2>/dev/null || cd; shift; exec "$@""#;
/// Gives the client its own names, then becomes the rest.
const CLIENT: &str =
    r#"mount --bind "$1/hosts" /etc/hosts; mount --bind "$1/resolv.conf" /etc/resolv.conf; shift; exec "$@""#;
const BOOTING: Duration = Duration::from_secs(20);
const ENGINE_STARTING: Duration = Duration::from_secs(60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Nothing runs and nothing is plugged in.
    Off,
    /// Nothing runs; the network still answers, refusing connections.
    Crashed,
    /// It runs, cut off from every other node.
    Isolated,
    /// It runs.
    On,
}

impl std::fmt::Display for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Crashed => "crashed",
            Self::Isolated => "isolated",
            Self::On => "on",
        })
    }
}

/// One machine of the cluster. Cheap to clone; does not keep the cluster alive.
#[derive(Debug, Clone)]
pub struct Node {
    record: Arc<Record>,
    index: u8,
}

/// Starts a command in the cgroup of a member of a cluster, with an environment that is ours.
pub(crate) fn in_cgroup(cgroup: &Cgroup) -> Command {
    let groups: Vec<String> = cgroup.joinable().iter().map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new("sh");
    command.args(["-c", JOIN, "sh", &groups.join(" ")]);
    command
}

/// Nothing of the developer's environment reaches a node, except what concerns terminals and traces.
fn clean_environment(command: &mut Command, home: &Path) {
    command.env_clear();
    for name in ["TERM", "COLUMNS", "LINES", "RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("PATH", PATH).env("HOME", home).env("USER", "root").env("LANG", "C.UTF-8");
}

/// A command run from the client's place on the switch: in its network, on the machine's own files,
/// with a home directory of its own.
pub(crate) fn client_command<S: AsRef<OsStr>>(record: &Record, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = in_cgroup(&Cgroup::new(&record.name, "client"));
    let dir = record.dir.join("client");
    clean_environment(&mut command, &dir.join("home"));
    command.arg("nsenter").arg(format!("--net={}", record.namespace_path("client").display())).arg("--");
    command
        .args(["unshare", "--mount", "--propagation", "private", "sh", "-c", CLIENT, "sh"])
        .arg(dir)
        .args(args);
    command
}

impl Node {
    pub(crate) fn new(record: &Arc<Record>, index: u8) -> Self {
        Self { record: record.clone(), index }
    }

    /// The node's number, from 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The node's host name.
    pub fn name(&self) -> String {
        format!("n{}", self.index)
    }

    /// The node's address on the switch.
    pub fn address(&self) -> Ipv4Addr {
        self.record.address(network::node_host(self.index))
    }

    /// The node's directory on this machine, seen in the node as `/run/testbed`; `disk` in it is
    /// what outlives the power: `disk/var`, `disk/root`, and the changes to `/etc` and `/usr/local`.
    pub fn dir(&self) -> PathBuf {
        self.record.dir.join(self.name())
    }

    /// The engine's socket as reached from outside the node. The path is short enough for any client.
    pub fn socket(&self) -> PathBuf {
        self.record.entry().join(format!("{}.sock", self.name()))
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::new(&self.record.name, &self.name())
    }

    /// The pid on this machine of the node's first process, if the node is running.
    pub fn init_pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir().join("pid")).ok()?;
        let pid = text.trim().parse().ok()?;
        // The number may have been given to another process since the node went down.
        let is_init = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "tini");
        (is_init && self.cgroup().holds(pid)).then_some(pid)
    }

    /// Whether the node runs, and is reachable.
    pub fn power(&self) -> Result<Power> {
        let port = network::port_state(&self.record, self.index)?;
        Ok(match (self.init_pid(), port) {
            (Some(_), Port::Up) => Power::On,
            (Some(_), Port::Down | Port::Absent) => Power::Isolated,
            (None, Port::Up | Port::Down) => Power::Crashed,
            (None, Port::Absent) => Power::Off,
        })
    }

    /// A command that will run in the node: in all its namespaces and its cgroup, with an environment
    /// as after a login, in the caller's directory if the node has one of that name.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        let Some(pid) = self.init_pid() else { bail!("node {} is not running", self.index) };
        let mut command = in_cgroup(&self.cgroup());
        clean_environment(&mut command, Path::new("/root"));
        command.args([
            "nsenter",
            "-t",
            &pid.to_string(),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "--",
            "sh",
            "-c",
            SETTLE,
            "sh",
        ]);
        command.arg(std::env::current_dir().unwrap_or_default()).args(args);
        Ok(command)
    }

    /// Runs a program in the node to its end, which it must reach within a minute.
    pub fn exec<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.exec_with(args, &[], PATIENCE)
    }

    /// As [`exec`](Self::exec), with standard input and a deadline.
    pub fn exec_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
        within: Duration,
    ) -> Result<Output> {
        let (args, what) = named(args);
        process::complete(self.command(args)?, &format!("{what} (on {})", self.name()), input, within)
    }

    /// Runs a program in the node and gives its standard output; that it fails is an error.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        self.exec(args)?.text()
    }

    /// Runs a shell script in the node and gives its standard output; that it fails is an error.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(["sh", "-c", script])
    }

    /// Starts a program that runs in the node beside the caller, logging to a file of its own.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Running> {
        static SPAWNED: AtomicUsize = AtomicUsize::new(1);
        let (args, what) = named(args);
        let program = what.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let log = self.dir().join(format!("{program}-{}.log", SPAWNED.fetch_add(1, Ordering::Relaxed)));
        Running::start(self.command(args)?, &format!("{what} (on {})", self.name()), &log)
    }

    /// Runs the `docker` client against the node's engine, from outside; gives its standard output.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let (args, what) = named(args);
        let mut command = self.docker_command();
        command.args(args);
        process::complete(command, &format!("docker {what} (on {})", self.name()), &[], PATIENCE)?.text()
    }

    /// The `docker` client pointed at the node's engine, still without arguments.
    pub fn docker_command(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
    }

    /// Writes a file in the node, making the directories it needs.
    pub fn put_file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let script = r#"mkdir -p "$(dirname "$1")" && cat >"$1""#;
        self.exec_with(["sh", "-c", script, "sh", path], content.as_ref(), PATIENCE)?.text().map(drop)
    }

    /// Reads a text file in the node.
    pub fn read_file(&self, path: &str) -> Result<String> {
        self.exec(["cat", path])?.raw_text()
    }

    /// Sets the memory of the node as a whole, engine and containers included; `None` lifts the limit.
    pub fn limit_memory(&self, bytes: Option<u64>) -> Result<()> {
        self.cgroup().limit_memory(bytes)
    }

    /// Prepares the disk of a node that never ran.
    pub(crate) fn create(&self, seed: Option<&Seed>) -> Result<()> {
        let engine = self.dir().join("disk/var/lib/docker");
        fs::create_dir_all(&engine)?;
        std::os::unix::fs::symlink(self.dir().join("docker.sock"), self.socket())?;
        if let Some(seed) = seed {
            seed.plant(&engine)?;
        }
        self.cgroup().ensure()
    }

    /// Switches the node on: plugs it in, starts its engine, then its services.
    pub fn boot(&self) -> Result<()> {
        self.boot_bare()?;
        self.engine_start()?;
        Service::all(self).iter().try_for_each(Service::start)
    }

    /// A program that starts with the node, by its name. It need not be defined yet; see [`Service::run`].
    pub fn service(&self, name: &str) -> Service {
        Service::new(self.clone(), name)
    }

    /// As [`boot`](Self::boot), without the engine and without services.
    pub fn boot_bare(&self) -> Result<()> {
        ensure!(self.init_pid().is_none(), "node {} is already running", self.index);
        // What a crash left of the network is no longer there after a boot.
        network::unplug(&self.record, self.index)?;
        network::plug(&self.record, self.index)?;
        self.cgroup().ensure()?;
        let dir = self.dir();
        let log = dir.join("init.log");
        remove_file(&dir.join("pid"))?;
        let mut command = in_cgroup(&self.cgroup());
        command.env_clear().env("PATH", PATH).env("NODE_DIR", &dir).env("NODE_NAME", self.name());
        command.env("NODE_RESOLVER", self.record.address(network::SWITCH).to_string());
        command.env("NODE_HOSTS", hosts(&self.record));
        command.args(["setsid", "--fork", "nsenter"]);
        command.arg(format!("--net={}", self.record.namespace_path(&self.name()).display()));
        command.args(["--", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        command
            .args(["--propagation", "private", "sh", "-c", r#"exec 2>>"$1"; eval "$2""#, "sh"])
            .arg(&log)
            .arg(BOOT);
        process::complete(command, "boot of a node", &[], BOOTING)?.text()?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        try_wait_until(BOOTING, &format!("node {} boots", self.index), || {
            self.init_pid().ok_or_else(|| format!("no init; it said: {}", said()))
        })?;
        Ok(())
    }

    /// Cuts the power: every process is gone at once and the network falls silent first, so peers
    /// see neither FIN nor RST. The disk stays.
    pub fn power_off(&self) -> Result<()> {
        if network::port_state(&self.record, self.index)? != Port::Absent {
            network::isolate(&self.record, self.index)?;
        }
        self.end_processes()?;
        network::unplug(&self.record, self.index)
    }

    /// Ends every process at once, but leaves the kernel's network: peers are told by RST.
    pub fn crash(&self) -> Result<()> {
        self.end_processes()
    }

    fn end_processes(&self) -> Result<()> {
        let cgroup = self.cgroup();
        let start = Instant::now();
        try_wait_until(BOOTING, &format!("node {} goes down", self.index), || {
            let pids = cgroup.processes();
            // The first process takes the node's others with it, and the parents that wait outside its
            // namespaces reap them and end; whoever does not is killed too.
            let all = (start.elapsed() > Duration::from_secs(1)).then_some(&pids);
            // A process may end between being listed and being signalled.
            self.init_pid()
                .iter()
                .chain(all.into_iter().flatten())
                .for_each(|&pid| drop(process::kill(pid, Signal::SIGKILL)));
            if pids.is_empty() { Ok(()) } else { Err(format!("{pids:?} still run")) }
        })?;
        cgroup.sweep();
        remove_file(&self.dir().join("pid"))
    }

    /// Unplugs the node from the switch; its processes go on.
    pub fn isolate(&self) -> Result<()> {
        network::isolate(&self.record, self.index)
    }

    /// Plugs the node in again after [`isolate`](Self::isolate).
    pub fn rejoin(&self) -> Result<()> {
        network::rejoin(&self.record, self.index)
    }

    /// Limits what the node sends and receives (`"50mbit"`); `None` lifts the limit.
    pub fn limit_rate(&self, rate: Option<&str>) -> Result<()> {
        network::limit(&self.record, self.index, rate)
    }

    /// What stands in front of a program so that it goes by a clock of the node's own, which [`set_clock`](Self::set_clock) sets. The
    /// clock is right from here on.
    pub fn with_clock(&self) -> Result<[String; 3]> {
        clock::wind(self)
    }

    /// Sets the clock of programs that were started with [`with_clock`](Self::with_clock), also of those that run.
    pub fn set_clock(&self, step: Step) -> Result<()> {
        clock::set(self, step)
    }

    /// Starts the engine and waits until it answers.
    pub fn engine_start(&self) -> Result<()> {
        self.engine_start_with(&[])
    }

    /// As [`engine_start`](Self::engine_start), with further arguments for this once; a later one overrides (`--live-restore=false`).
    pub fn engine_start_with(&self, more: &[&str]) -> Result<()> {
        ensure!(self.engine_pids().is_empty(), "the engine of node {} is already running", self.index);
        // The pid in the file could meanwhile be another process of the node, and the engine would not start.
        let script = r#"rm -f /run/docker.pid /run/testbed/docker.sock; exec "$@" </dev/null >>/run/testbed/dockerd.log 2>&1"#;
        let parent = self.cgroup().parent_of_containers();
        let mut args: Vec<&str> = vec!["setsid", "--fork", "sh", "-c", script, "sh", "dockerd"];
        args.extend(["-H", "unix:///run/docker.sock", "-H", "unix:///run/testbed/docker.sock"]);
        args.extend(["--live-restore", "--storage-driver", "overlay2", "--log-level", "warn"]);
        args.extend(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &parent]);
        let registries = format!("{}/24", self.record.address(0));
        args.extend(["--insecure-registry", &registries]);
        args.extend(self.record.engine_args.iter().map(String::as_str));
        args.extend(more);
        self.run(args)?;
        self.engine_wait()
    }

    fn engine_wait(&self) -> Result<()> {
        let start = Instant::now();
        let failed = || format!("the engine's log ends: {}", tail(&self.dir().join("dockerd.log"), 8));
        loop {
            let Err(seen) = ping(&self.socket()) else { return Ok(()) };
            let elapsed = start.elapsed();
            let has_ended = elapsed > Duration::from_millis(500) && self.engine_pids().is_empty();
            ensure!(!has_ended, "the engine of node {} ended; {}", self.index, failed());
            ensure!(
                elapsed < ENGINE_STARTING,
                "the engine of node {} does not answer ({seen}); {}",
                self.index,
                failed()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The containers that have processes: their identifiers, and their first processes by their pids on this machine. Asks
    /// the kernel, not the engine: what it says is so, whatever runs or does not run on the node.
    pub fn containers(&self) -> Vec<(String, u32)> {
        self.cgroup().containers()
    }

    /// The engine's processes (dockerd and its containerd), by their pids on this machine.
    pub fn engine_pids(&self) -> Vec<u32> {
        let mut pids = self.pids_of("dockerd");
        pids.extend(self.pids_of("containerd"));
        pids
    }

    /// The node's processes of a name, by their pids on this machine.
    pub fn pids_of(&self, name: &str) -> Vec<u32> {
        let is_it =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        self.cgroup().processes().into_iter().filter(is_it).collect()
    }

    /// Ends the engine as the power would, dockerd and containerd at once; containers live on.
    pub fn engine_kill(&self) -> Result<()> {
        self.end_engine(&self.engine_pids(), Signal::SIGKILL)
    }

    /// Stops the engine in order; with live-restore, containers live on.
    pub fn engine_stop(&self) -> Result<()> {
        self.end_engine(&self.pids_of("dockerd"), Signal::SIGTERM)
    }

    /// Stops the engine in order and starts it again.
    pub fn engine_restart(&self) -> Result<()> {
        self.engine_stop()?;
        self.engine_start()
    }

    fn end_engine(&self, pids: &[u32], signal: Signal) -> Result<()> {
        // One that has ended meanwhile is as wanted.
        pids.iter().for_each(|&pid| drop(process::kill(pid, signal)));
        try_wait_until(PATIENCE, &format!("the engine of node {} ends", self.index), || {
            let left = self.engine_pids();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} still run")) }
        })
    }

    /// Makes a program `/usr/local/bin/wharf` in this node, now if it runs and at every boot.
    pub(crate) fn install(&self, program: &Path) -> Result<()> {
        let bin = self.dir().join("bin");
        fs::create_dir_all(&bin)?;
        let (new, installed) = (bin.join("wharf.new"), bin.join("wharf"));
        remove_file(&new)?;
        fs::hard_link(program, &new)?;
        fs::rename(&new, &installed)?;
        if self.init_pid().is_some() {
            self.sh("umount --lazy /usr/local/bin/wharf 2>/dev/null; touch /usr/local/bin/wharf && mount --bind /run/testbed/bin/wharf /usr/local/bin/wharf")?;
        }
        Ok(())
    }

    /// The ends of the node's logs: the engine's and those of what was spawned.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for log in self.logs() {
            let end = tail(&log, lines);
            if !end.is_empty() {
                let name = log.file_name().unwrap_or_default().to_string_lossy();
                text += &format!("--- {} {name}\n{end}\n", self.name());
            }
        }
        text
    }

    /// The node's log files.
    pub fn logs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        logs
    }
}

pub(crate) fn named<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> (Vec<std::ffi::OsString>, String) {
    let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let what = args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
    (args, what)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The lines of a hosts file that name the cluster's nodes.
pub(crate) fn hosts(record: &Record) -> String {
    (1..=record.nodes)
        .map(|index| format!("{}\tn{index}\n", record.address(network::node_host(index))))
        .collect()
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Asks an engine whether it is there.
fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")?;
    let mut reply = [0; 64];
    let length = stream.read(&mut reply)?;
    let line = String::from_utf8_lossy(&reply[..length]);
    ensure!(line.contains(" 200 "), "it answers {:?}", line.lines().next().unwrap_or_default());
    Ok(())
}
