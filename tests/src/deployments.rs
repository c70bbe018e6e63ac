//! An app that is replaced again and again while clients ask without pause, and what they met: ours, and the same on a swarm.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use wharf_testkit::cluster::{Cluster, Node, try_wait_until};

use crate::{
    Fleet,
    load::{self, Kind, Plan, Report, Watch},
    swarm,
};

/// How long anything of a cluster may take that is not measured.
const SOON: Duration = Duration::from_secs(120);

/// What is done to a cluster in the middle of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process `wharf gateway` of node 2 is killed; clients at that node see their connections break.
    GatewayKilled,
    /// The agent of node 2 is ended and begins again as another build, with a gateway of its own.
    GatewayUpgraded,
    /// The agent of node 2 is killed, and begins again after two seconds.
    AgentKilled,
    /// The server is killed, and begins again after two seconds.
    ServerKilled,
}

/// What the next deployment changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The version.
    Version,
    /// The version, and every other one has this in its environment besides: it fails, and the app has to be as it was.
    Fails(&'static [(&'static str, &'static str)]),
    /// The version, and another service takes the place of the one that there is, with its routes.
    Service,
    /// The number of tasks: by turns one, and as many as the case says.
    Scale,
}

/// One thing that is tried.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// What the app is called. Its host is this and `.test`; with `sticky.` in front for those that keep their cookies.
    pub app: String,
    /// Tasks of the service.
    pub replicas: u32,
    /// The nodes that are asked.
    pub gateways: Vec<u8>,
    /// The service's environment, beside its version.
    pub environment: Vec<(&'static str, &'static str)>,
    /// `update_config` of the service.
    pub update: &'static str,
    /// `x-wharf` of the service, beside its routes: lines with six spaces in front.
    pub wharf: &'static str,
    /// Who asks.
    pub clients: Vec<(Kind, usize)>,
    /// How long each waits between an answer and the next request.
    pub pause: Duration,
    /// How often the app is replaced.
    pub deployments: u32,
    /// What each deployment is.
    pub change: Change,
    /// What happens in the middle of every second deployment.
    pub fault: Option<Fault>,
}

impl Case {
    /// Three tasks behind three gateways that listen a second after they start, with every kind of short request.
    pub fn new(name: &'static str, deployments: u32) -> Self {
        let clients = vec![
            (Kind::KeepAlive, 6),
            (Kind::Http2, 2),
            (Kind::Sticky, 3),
            (Kind::Post, 2),
            (Kind::Fresh, 2),
        ];
        Self {
            name,
            app: "app".to_owned(),
            replicas: 3,
            gateways: vec![1, 2, 3],
            environment: vec![("START_DELAY_MS", "1000")],
            update: "",
            wharf: "",
            clients,
            pause: Duration::from_millis(3),
            deployments,
            change: Change::Version,
            fault: None,
        }
    }

    /// The same, asked at these nodes.
    #[must_use]
    pub fn asking(self, gateways: &[u8]) -> Self {
        Self { gateways: gateways.to_vec(), ..self }
    }

    /// The host that its clients ask for.
    pub fn host(&self) -> String {
        format!("{}.test", self.app)
    }

    /// The Compose file with this version.
    pub fn file(&self, version: u32, more: &[(&str, &str)]) -> String {
        let environment = self.environment.iter().chain(more);
        let environment: String = environment.map(|(name, value)| format!(", {name}: \"{value}\"")).collect();
        let service =
            if self.change == Change::Service { format!("web{}", version % 2) } else { "web".to_owned() };
        let host = self.host();
        format!(
            "name: {}\nservices:\n  {service}:\n    image: wharf/testserver:1\n    environment: {{NAME: \"v{version}\"{environment}}}\n    \
             deploy: {{replicas: {}, update_config: {{{}}}}}\n    x-wharf:\n{}      routes:\n      - {{host: {host}, port: 8080}}\n      \
             - {{host: sticky.{host}, port: 8080, sticky: true}}\n",
            self.app, self.replicas, self.update, self.wharf
        )
    }

    /// How it is asked at these addresses.
    fn plan(&self, targets: Vec<SocketAddr>) -> Plan {
        Plan {
            clients: self.clients.clone(),
            targets,
            resolve: None,
            host: self.host(),
            pause: self.pause,
            // Such an answer of a version that fails is the app's own word.
            may_fail: matches!(self.change, Change::Fails(_)),
        }
    }

    /// Carries out a deployment, with a fault in the middle of every second one if the case has one. An error if it does not end as it has to.
    fn deploy(&self, fleet: &Fleet, version: u32) -> Result<()> {
        let fails = match self.change {
            Change::Scale => {
                let tasks = if version % 2 == 1 { 1 } else { self.replicas };
                let words = ["scale", "-p", &self.app, &format!("web={tasks}")];
                return fleet.try_wharf(words)?.text().map(drop);
            }
            Change::Fails(environment) if version % 2 == 1 => Some(environment),
            Change::Version | Change::Service | Change::Fails(_) => None,
        };
        let file = fleet.file(&self.app, &self.file(version, fails.unwrap_or_default()));
        if let Some(fault) = self.fault.filter(|_| version.is_multiple_of(2)) {
            return deploy_with_fault(fleet, &file, fault);
        }
        let output = fleet.try_wharf(["up", "-y", "-f", &file])?;
        let returned = || format!("{}{}", output.stdout, output.stderr).contains("returned to release");
        let is_right = if fails.is_some() { output.code == 1 && returned() } else { output.is_success() };
        ensure!(is_right, "deployment {version} of {}: {output:?}", self.name);
        Ok(())
    }
}

fn deploy_with_fault(fleet: &Fleet, file: &str, fault: Fault) -> Result<()> {
    let mut rollout = fleet.spawn(["up", "-y", "-f", file]);
    thread::sleep(Duration::from_millis(1200));
    happens(fleet, fault)?;
    while rollout.is_running() {
        thread::sleep(Duration::from_millis(50));
    }
    // Whoever watched may have lost its server: what counts is how the release ended.
    try_wait_until(SOON, "the release is done", || settled(fleet, file))
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the clients met.
    pub report: Report,
    /// How long each deployment took.
    pub took: Vec<Duration>,
    /// What was noted on the way.
    pub notes: Vec<String>,
}

impl Outcome {
    /// A line of a table.
    pub fn line(&self, name: &str) -> String {
        let all = load::total(&self.report);
        let mean = self.took.iter().sum::<Duration>().as_secs_f64() / self.took.len().max(1) as f64;
        format!(
            "{name:44} {:>6} {:>9} {:>6} {:>8.4} {:>8} {:>10} {:>9.2} {:>9.3}",
            self.took.len(),
            all.asked,
            all.lost,
            all.lost as f64 * 100.0 / all.asked.max(1) as f64,
            all.failed,
            all.unanswered_at_close,
            mean,
            all.slowest.as_secs_f64(),
        )
    }
    /// What stands above the lines.
    pub fn head() -> String {
        format!(
            "{:44} {:>6} {:>9} {:>6} {:>8} {:>8} {:>10} {:>9} {:>9}",
            "case", "deploy", "asked", "lost", "lost %", "app's 500", "ws closed", "s/deploy", "slowest s"
        )
    }
    /// Each kind that lost something, and how.
    pub fn losses(&self) -> Vec<String> {
        let losing = self.report.iter().filter(|(_, figures)| figures.lost > 0);
        let lines = losing.flat_map(|(kind, figures)| {
            let head = format!("  {kind}: {} of {} lost", figures.lost, figures.asked);
            let how = figures.how.iter().take(8);
            let how = how.map(|(at, how)| format!("    after {:.3} s: {how}", at.as_secs_f64()));
            std::iter::once(head).chain(how).collect::<Vec<_>>()
        });
        lines.chain(self.notes.iter().map(|note| format!("  {note}"))).collect()
    }
}

/// Replaces the app of a case under load, on machines that have it not yet. Cases whose apps are called differently may go on at once.
pub fn ours(fleet: &Fleet, case: &Case) -> Result<Outcome> {
    up(fleet, &case.app, &case.file(0, &[]))?;
    let plan = case.plan(targets(fleet, &case.gateways, &case.host())?);
    let (report, took) = under_load(
        &plan,
        |work| fleet.cluster.in_network(work).and_then(|report| report),
        |version| {
            let since = Instant::now();
            case.deploy(fleet, version)?;
            Ok(since.elapsed())
        },
        case.deployments,
    )?;
    let mut notes = Vec::new();
    let newest = format!("v{}", case.deployments);
    if case.change != Change::Scale && !load::total(&report).names.contains_key(&newest) {
        notes.push(format!("nobody was answered by {newest}"));
    }
    fleet.try_wharf(["down", "-y", "-p", &case.app])?.text()?;
    Ok(Outcome { report, took, notes })
}

/// Asks the app of a case, which is there already, without pause, as long as `work` goes on.
///
/// # Errors
/// If the clients cannot be started. What they meet is in the report.
pub fn while_asked<T>(fleet: &Fleet, case: &Case, work: impl FnOnce() -> T) -> Result<(Report, T)> {
    let plan = case.plan(targets(fleet, &case.gateways, &case.host())?);
    let watch = Arc::new(Watch::default());
    thread::scope(|scope| {
        let asking = Arc::clone(&watch);
        let load = scope.spawn(move || fleet.cluster.in_network(move || load::run(&plan, &asking)));
        let done = work();
        watch.stop();
        let report = load.join().map_err(|_| anyhow!("the clients panicked"))???;
        Ok((report, done))
    })
}

/// Where gateways listen, once each answers for this host.
fn targets(fleet: &Fleet, gateways: &[u8], host: &str) -> Result<Vec<SocketAddr>> {
    let targets: Vec<_> =
        gateways.iter().map(|node| SocketAddr::from((fleet.node(*node).address(), 80))).collect();
    for target in &targets {
        try_wait_until(SOON, "the app answers", || answers(fleet, *target, host))?;
    }
    Ok(targets)
}

/// `up` of what is there already ends at once.
fn settled(fleet: &Fleet, file: &str) -> Result<()> {
    fleet.try_wharf(["up", "-y", "-f", file])?.text().map(drop)
}

/// Runs the clients beside the deployments.
fn under_load(
    plan: &Plan,
    inside: impl Fn(Box<dyn FnOnce() -> Result<Report> + Send>) -> Result<Report> + Send + Sync,
    deploy: impl Fn(u32) -> Result<Duration>,
    deployments: u32,
) -> Result<(Report, Vec<Duration>)> {
    let watch = Arc::new(Watch::default());
    thread::scope(|scope| {
        let (clients, plan) = (Arc::clone(&watch), plan.clone());
        let inside = &inside;
        let load = scope.spawn(move || inside(Box::new(move || load::run(&plan, &clients))));
        thread::sleep(Duration::from_millis(500));
        let took: Result<Vec<_>> = (1..=deployments).map(deploy).collect();
        thread::sleep(Duration::from_millis(500));
        watch.stop();
        let report = load.join().map_err(|_| anyhow!("the clients panicked"))??;
        Ok((report, took?))
    })
}

fn up(fleet: &Fleet, app: &str, file: &str) -> Result<()> {
    fleet.try_wharf(["up", "-y", "-f", &fleet.file(app, file)])?.text().map(drop)
}

/// Whether this host is answered there.
fn answers(fleet: &Fleet, target: SocketAddr, host: &str) -> Result<()> {
    let output = fleet.cluster.client_exec([
        "curl",
        "-sf",
        "--max-time",
        "5",
        "-H",
        &format!("Host: {host}"),
        &format!("http://{target}/"),
    ])?;
    ensure!(output.is_success(), "{target} does not answer for {host}: {output:?}");
    Ok(())
}

fn happens(fleet: &Fleet, fault: Fault) -> Result<()> {
    let node = fleet.node(2);
    match fault {
        Fault::GatewayKilled => node.sh("pkill -9 -x wharf-gateway").map(drop),
        Fault::AgentKilled => {
            node.service("wharf").kill()?;
            thread::sleep(Duration::from_secs(2));
            node.service("wharf").start()
        }
        Fault::ServerKilled => {
            fleet.node(1).service("wharf").kill()?;
            thread::sleep(Duration::from_secs(2));
            fleet.node(1).service("wharf").start()
        }
        Fault::GatewayUpgraded => {
            // Installed over the old one, as an upgrade is.
            fleet.cluster.install(&fleet.binary)?;
            node.service("wharf").restart()
        }
    }
}

// --- within the cluster, by name; and the same on a swarm ---

/// Replaces a service under load of clients that find it by name in a container beside it: ours.
pub fn ours_by_name(
    fleet: &Fleet,
    replicas: u32,
    clients: &[(Kind, usize)],
    deployments: u32,
) -> Result<Outcome> {
    let file = |version: u32| {
        format!(
            "name: inside\nservices:\n  web:\n    image: wharf/testserver:1\n    environment: {{NAME: \"v{version}\", START_DELAY_MS: \"1000\"}}\n    \
             deploy: {{replicas: {replicas}}}\n  asker:\n    image: busybox:1\n    command: sleep 1000000\n    stop_grace_period: 1s\n    \
             deploy: {{placement: {{constraints: [node.hostname == n1]}}}}\n"
        )
    };
    let deploy = |version: u32| -> Result<Duration> {
        let since = Instant::now();
        fleet.try_wharf(["up", "-y", "-f", &fleet.file("inside", &file(version))])?.text()?;
        Ok(since.elapsed())
    };
    deploy(0)?;
    let asker = container(&fleet.node(1), "name=asker")?;
    let (report, took) =
        under_load(&by_name(clients), |work| in_container(asker, work), deploy, deployments)?;
    fleet.try_wharf(["down", "-y", "-p", "inside"])?.text()?;
    Ok(Outcome { report, took, notes: Vec::new() })
}

/// Machines that are a swarm, with an overlay network and somebody on it who asks.
#[derive(Debug)]
pub struct Swarm {
    cluster: Cluster,
    asker: u32,
}

impl Swarm {
    /// As many machines.
    pub fn start(nodes: u8) -> Result<Self> {
        let cluster = swarm::machines(nodes, 1)?;
        let first = cluster.node(1);
        first.docker(["network", "create", "-d", "overlay", "--attachable", "inside"])?;
        first.docker([
            "run",
            "-d",
            "--name",
            "asker",
            "--network",
            "inside",
            "busybox:1",
            "sleep",
            "1000000",
        ])?;
        let asker = container(&first, "name=asker")?;
        Ok(Self { cluster, asker })
    }

    /// The same as [`ours_by_name`], with `docker service update` in its plain form: the order is start-first if asked for.
    pub fn by_name(
        &self,
        replicas: u32,
        clients: &[(Kind, usize)],
        deployments: u32,
        start_first: bool,
    ) -> Result<Outcome> {
        let first = self.cluster.node(1);
        let order = if start_first { "start-first" } else { "stop-first" };
        let replicas = replicas.to_string();
        first.docker([
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            &replicas,
            "--network",
            "inside",
            "--endpoint-mode",
            "dnsrr",
            "--update-order",
            order,
            "--update-delay",
            "0s",
            "-e",
            "NAME=v0",
            "-e",
            "START_DELAY_MS=1000",
            "--no-resolve-image",
            "wharf/testserver:1",
        ])?;
        // Until the first ones listen.
        thread::sleep(Duration::from_secs(3));
        let deploy = |version: u32| -> Result<Duration> {
            let since = Instant::now();
            let name = format!("NAME=v{version}");
            first.docker(["service", "update", "--env-add", &name, "--no-resolve-image", "web"])?;
            Ok(since.elapsed())
        };
        let (report, took) =
            under_load(&by_name(clients), |work| in_container(self.asker, work), deploy, deployments)?;
        first.docker(["service", "rm", "web"])?;
        Ok(Outcome { report, took, notes: Vec::new() })
    }
}

fn by_name(clients: &[(Kind, usize)]) -> Plan {
    Plan {
        clients: clients.to_vec(),
        targets: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080))],
        resolve: Some("web".to_owned()),
        host: "web".to_owned(),
        pause: Duration::from_millis(10),
        may_fail: false,
    }
}

/// The process of a node's container.
fn container(node: &Node, filter: &str) -> Result<u32> {
    let id = node.docker(["ps", "-q", "--no-trunc", "--filter", filter])?;
    let (_, pid) = try_wait_until(SOON, "the container has a process", || {
        let found = node.containers().into_iter().find(|(other, _)| other == id.trim());
        found.ok_or_else(|| anyhow!("none yet"))
    })?;
    Ok(pid)
}

/// Works in the network namespace of a container's process.
fn in_container(pid: u32, work: Box<dyn FnOnce() -> Result<Report> + Send>) -> Result<Report> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("the asking container has ended")?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the clients panicked"))?
    })
}
