//! The whole system, from outside: what the tests in `tests/` stand on.
//!
//! - `wharf` runs as a program, built as it is released, on machines of the test cluster; nothing here links to it.
//! - Commands run at the client's place on the switch, as from somebody's laptop, unless a test says otherwise.

pub mod contest;
pub mod deployments;
pub mod engine;
pub mod exactness;
pub mod load;
pub mod servers;
pub mod state;
pub mod swarm;
pub mod wire;

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use wharf_testkit::cluster::{Builder, Cluster, Node, Running, Seed, clock, try_wait_until};

pub use wharf_testkit::cluster::{Output, Signal, skip, wait_until};

/// How long a node may take to be ready once its agent runs.
const JOINING: Duration = Duration::from_secs(40);
/// How long a web server may be silent.
const ANSWERING: Duration = Duration::from_secs(20);
/// How long a command of `wharf` may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The `wharf` that is tested: the one `WHARF_BIN` names, or the one built beside this test, or one that is built now. Benchmarks always
/// build it, optimised: what lies there may be older than what is to be measured.
pub fn wharf_binary() -> Result<PathBuf> {
    static BUILDING: Mutex<()> = Mutex::new(());
    if let Some(path) = std::env::var_os("WHARF_BIN") {
        return std::path::absolute(path).context("WHARF_BIN");
    }
    let test = std::env::current_exe()?;
    let built = test.ancestors().nth(2).context("this test is in no build directory")?.join("wharf");
    let _one = BUILDING.lock();
    let is_optimised = built.parent().is_some_and(|folder| folder.ends_with("release"));
    if is_optimised || !built.is_file() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut build = Command::new(cargo);
        build.args(["build", "--package", "wharf"]).args(is_optimised.then_some("--release"));
        // What cargo tells this program about its own package would have build scripts run again, and half the tree be built anew.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"))
        {
            build.env_remove(name);
        }
        build.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        let status = build.current_dir(root).status()?;
        ensure!(status.success(), "building wharf ended with {status}");
    }
    ensure!(built.is_file(), "{} was not built", built.display());
    Ok(built)
}

/// Has `openssl` make a key and a certificate in a folder; `more` says whose, by whom it is signed if not by itself, and what the files are
/// called. Panics if it cannot.
#[track_caller]
pub fn make_certificate(folder: &Path, more: &[&str]) {
    let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let made =
        Command::new("openssl").args(key).args(["-days", "90"]).args(more).current_dir(folder).output();
    let made = made.expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Machines that are a Wharf cluster: node 1 is the server with an agent beside it, the others are agents, and all
/// take published ports. The client's place on the switch has the context.
#[derive(Debug)]
pub struct Fleet {
    /// The machines.
    pub cluster: Cluster,
    /// The program, as installed on every machine.
    pub binary: PathBuf,
    /// What `server init` printed: the line that joins a machine.
    pub join_line: String,
}

impl Fleet {
    /// As many machines, with the images of the test kit, all ready. Panics when that cannot be had.
    #[track_caller]
    pub fn start(nodes: u8) -> Self {
        let started =
            Seed::basic().and_then(|seed| Self::try_start(Cluster::builder().nodes(nodes).seed(seed)));
        match started {
            Ok(fleet) => fleet,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Machines of one's own choice, all ready.
    pub fn try_start(machines: Builder) -> Result<Self> {
        let fleet = Self::bare(machines)?;
        fleet.serve()?;
        // `join` ends once the machine is known, so this is as somebody does it, on all machines at once.
        thread::scope(|scope| {
            let nodes = fleet.cluster.nodes();
            let joins: Vec<_> =
                nodes.into_iter().skip(1).map(|node| scope.spawn(|| fleet.join(node))).collect();
            joins.into_iter().try_for_each(|join| match join.join() {
                Ok(joined) => joined,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        fleet.wait_for_nodes()?;
        Ok(fleet)
    }

    /// Machines with `wharf` in their path, the cluster made on node 1 and the context brought to the client; nothing of
    /// Wharf runs.
    pub fn bare(machines: Builder) -> Result<Self> {
        let binary = wharf_binary()?;
        let cluster = machines.up()?;
        cluster.install(&binary)?;
        // The machines' copy: the build may write its own again while tests run.
        let copy = cluster.dir().join("client/wharf");
        fs::copy(&binary, &copy)?;
        let first = cluster.node(1);
        let join_line = first.run(["wharf", "server", "init", "--name", "test"])?;
        let context = first.run(["wharf", "context", "export"])?;
        let file = cluster.dir().join("client/context.json");
        fs::write(&file, context)?;
        let fleet = Self { cluster, binary: copy, join_line };
        let file = file.display().to_string();
        ensure!(
            fleet.wharf(["context", "import", "test", &file]).is_success(),
            "the context cannot be brought to the client"
        );
        Ok(fleet)
    }

    /// Starts the server on node 1, with its agent, and waits until it answers and knows the node.
    pub fn serve(&self) -> Result<()> {
        self.node(1).service("wharf").run(["wharf", "server", "run", "--with-agent"])?;
        try_wait_until(JOINING, "the server answers", || self.share_disk(&self.node(1)))
    }

    /// Has a node take no notice of how full its disk is: that is the machine's, on which other things are as well.
    pub(crate) fn share_disk(&self, node: &Node) -> Result<()> {
        let update = ["node", "update", &node.name(), "--disk-marks", "98,99,100"];
        self.try_wharf(update)?.text().map(drop)
    }

    /// Joins a machine with the line that `init` printed, and starts its agent.
    #[expect(clippy::needless_pass_by_value, reason = "a node is a handle, made for the call")]
    pub fn join(&self, node: Node) -> Result<()> {
        node.run(self.join_line.split_whitespace())?;
        self.share_disk(&node)?;
        node.service("wharf").run(["wharf", "agent", "run"])
    }

    /// Whether servers and agents can go by clocks of their nodes' own, which can be set: not a program that asks the kernel itself.
    pub fn has_clocks(&self) -> Result<bool> {
        clock::is_possible(&self.binary)
    }

    /// Starts servers and agents again so that they go by clocks of their nodes' own. Whether that can be had.
    pub fn wind_clocks(&self) -> Result<bool> {
        if !self.has_clocks()? {
            return Ok(false);
        }
        for node in self.cluster.nodes() {
            let role = if node.index() == 1 { "server run --with-agent" } else { "agent run" };
            self.start_again(&node, "wharf", role, true)?;
        }
        self.wait_for_nodes().map(|()| true)
    }

    /// Starts agents again, and on node 1 the server, as the service `server`, in a process of its own; by clocks of their nodes' own if
    /// wanted.
    pub fn run_apart(&self, clocks: bool) -> Result<()> {
        for node in self.cluster.nodes() {
            self.start_again(&node, "wharf", "agent run", clocks)?;
        }
        self.start_again(&self.node(1), "server", "server run", clocks)?;
        self.wait_for_nodes()
    }

    fn start_again(&self, node: &Node, service: &str, role: &str, clock: bool) -> Result<()> {
        let clock = if clock { node.with_clock()?.to_vec() } else { Vec::new() };
        let words = clock.iter().map(String::as_str).chain(["wharf"]).chain(role.split(' '));
        node.service(service).run(words)
    }

    /// Waits until every machine is a ready node.
    pub fn wait_for_nodes(&self) -> Result<()> {
        let wanted = self.cluster.nodes().len();
        try_wait_until(JOINING, "every node is ready", || {
            let nodes = self.try_json(["node", "ls"])?;
            let states: Vec<_> =
                items(&nodes).iter().map(|node| (text(&node["name"]), text(&node["state"]))).collect();
            if states.len() != wanted || states.iter().any(|(_, state)| *state != "ready") {
                bail!("{states:?}");
            }
            Ok(())
        })
        .map_err(|error| error.context(self.cluster.log_tails()))
    }

    /// Node I, from 1.
    #[track_caller]
    pub fn node(&self, index: u8) -> Node {
        self.cluster.node(index)
    }

    /// `wharf` with these arguments at the client's place, as it would be called there.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let words = std::iter::once(self.binary.clone().into_os_string());
        self.cluster.client_command(words.chain(args.into_iter().map(|arg| arg.as_ref().to_owned())))
    }

    /// Runs `wharf` to its end at the client's place, whatever that end is.
    #[track_caller]
    pub fn wharf<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        match self.try_wharf(args) {
            Ok(output) => output,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// As [`wharf`](Self::wharf); an error is that it could not be run or did not end.
    pub fn try_wharf<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.wharf_with(args, b"")
    }

    /// As [`try_wharf`](Self::try_wharf), with standard input.
    pub fn wharf_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Result<Output> {
        let words: Vec<_> = std::iter::once(self.binary.clone().into_os_string())
            .chain(args.into_iter().map(|arg| arg.as_ref().to_owned()))
            .collect();
        self.cluster.client_exec_with(words, input, PATIENCE)
    }

    /// Runs `wharf`, which has to succeed, and gives its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        match self.wharf(args).text() {
            Ok(text) => text,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Runs `wharf … --format json`, which has to succeed, and gives the document.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        match self.try_json(args) {
            Ok(value) => value,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// As [`json`](Self::json), for conditions that are waited for.
    pub fn try_json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Value> {
        let words = ["--format".into(), "json".into()].into_iter();
        let text =
            self.try_wharf(words.chain(args.into_iter().map(|arg| arg.as_ref().to_owned())))?.text()?;
        serde_json::from_str(&text).with_context(|| format!("this is no JSON: {text}"))
    }

    /// Starts `wharf` beside the test, with a log of both its streams.
    #[track_caller]
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        let words = std::iter::once(self.binary.clone().into_os_string());
        match self.cluster.client_spawn(words.chain(args.into_iter().map(|arg| arg.as_ref().to_owned()))) {
            Ok(running) => running,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Writes the Compose file of an app, in a folder of its own, and gives its path.
    #[track_caller]
    pub fn file(&self, app: &str, content: &str) -> String {
        let folder = self.cluster.dir().join("client/apps").join(app);
        let path = folder.join("compose.yaml");
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, content))
            .expect("the client's folder is writable");
        path.display().to_string()
    }

    /// The tasks of an app as `wharf ps` shows them.
    pub fn tasks(&self, app: &str) -> Result<Vec<Value>> {
        Ok(items(&self.try_json(["ps", "-p", app])?).to_vec())
    }

    /// What `http://ADDRESS:PORT/PATH` answers to GET at the client's place: its body. Another status than 200 is an error.
    pub fn http(&self, url: &str) -> Result<String> {
        let answer = self.request("GET", url, "")?;
        ensure!(answer.status == 200, "{url} answers {}: {}", answer.status, answer.body);
        Ok(answer.body)
    }

    /// Asks `http://ADDRESS:PORT/PATH` at the client's place; a body is that of a form.
    pub fn request(&self, method: &str, url: &str, form: &str) -> Result<Answer> {
        let (address, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .with_context(|| format!("{url} is no address of a page"))?;
        let request = format!(
            "{method} /{path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        let ask = || -> Result<String> {
            let mut stream = TcpStream::connect_timeout(&address.parse()?, ANSWERING)?;
            stream.set_read_timeout(Some(ANSWERING))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = self.cluster.in_network(ask)?.with_context(|| format!("asking {url}"))?;
        let (head, body) =
            answer.split_once("\r\n\r\n").with_context(|| format!("{url} answers {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }
}

/// What a web server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The first line and the headers.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// The items of a JSON array; none if it is something else.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A JSON string; empty if it is something else.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
