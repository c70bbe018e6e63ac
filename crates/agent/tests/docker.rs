//! The Docker runtime and a whole node against a real engine.
//!
//! Each test runs this binary again in namespaces of its own (process, network, mount), where it starts a Docker Engine;
//! when that process ends, the kernel takes everything in them away. Without an engine the tests say so and pass, unless
//! `WHARF_REQUIRE_ENGINE=1`.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the environment says whether an engine must be there; a test fails by panicking and says so when it skips"
)]

mod engine;
mod registry;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use engine::Engine;
use futures::StreamExt;
use parking_lot::Mutex;
use wharf_agent::{
    facts::Machine,
    node::{NetworkPlane, NodeAgent, NodeConfig},
    reports::Report,
    runtime::{
        Credentials, DockerOptions, DockerRuntime, LogQuery, Runtime,
        contract::{World, check, sample_task},
    },
};
use wharf_model::{
    AssignmentSet, Attachment, DnsTable, FileAssignment, FileMount, Health, Millis, MountSource, MountSpec,
    NetworkAssignment, NetworkId, NodeId, Phase, Probe, ProbeKind, Progress, PullPolicy, Revision,
    RouteTable, Target, TaskAssignment, TaskId, TaskStatus, VolumeAssignment, VolumeId, VolumeName,
    VolumeSpec,
};
use wharf_process::{Shutdown, SystemClock, Task, Tasks};

#[test]
fn docker_keeps_the_contract() {
    engine::within_namespaces("inner_contract");
}

#[test]
fn a_node_runs_adopts_and_clears_away_on_a_real_engine() {
    engine::within_namespaces("inner_node");
}

#[test]
fn images_are_pulled_by_digest_with_progress_and_a_login() {
    engine::within_namespaces("inner_registry");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run in namespaces by the test above"]
async fn inner_registry() {
    let engine = Engine::start().await;
    engine.load_shell("wharf/seed:1");
    let tasks = Tasks::new(&Shutdown::new());
    let registry = registry::Registry::serve(&tasks, &engine.folder().join("shell")).await;
    let runtime = runtime(&engine);
    let reference = format!("{}/team/shell:1", registry.address());
    let login = Credentials {
        username: "ada".to_owned(),
        password: "secret".to_owned(),
        server: registry.address().to_string(),
        ..Credentials::default()
    };

    // Without the login the registry tells nothing, and the error says what to do.
    let wrong = Credentials { password: "guess".to_owned(), ..login.clone() };
    for credentials in [None, Some(&wrong)] {
        let error = runtime.resolve_image(&reference, PullPolicy::Missing, credentials).await.unwrap_err();
        assert!(!error.is_temporary() && error.hint().is_some(), "{error}");
    }
    let pinned = runtime.resolve_image(&reference, PullPolicy::Missing, Some(&login)).await.unwrap();
    assert_eq!((pinned.digest.as_deref(), &pinned.id), (Some(registry.digest()), &None));

    let refused =
        runtime.ensure_image(&pinned, PullPolicy::Missing, Some(&wrong), &|_| {}).await.unwrap_err();
    assert!(!refused.is_temporary() && refused.hint().is_some(), "{refused}");
    let told = Mutex::new(Vec::new());
    let sink = |progress: Progress| told.lock().push(progress);
    let pulled = runtime.ensure_image(&pinned, PullPolicy::Missing, Some(&login), &sink).await.unwrap();
    assert!(!pulled.id.is_empty());
    let last = told.lock().last().copied().expect("the pull says how far it is");
    assert!(last.total > 0 && last.current == last.total, "{last:?}");
    let tags = engine.docker(&["image", "inspect", "-f", "{{.RepoTags}}", &pulled.id]);
    assert!(tags.contains(&reference), "people find it by its tag: {tags}");

    // What is pinned and here is neither asked about nor pulled again, whoever asks.
    let before = registry.requests();
    let again = runtime.ensure_image(&pinned, PullPolicy::Always, None, &|_| {}).await.unwrap();
    assert_eq!((again, registry.requests()), (pulled, before));
    let unknown = format!("{}/team/other:1", registry.address());
    let error = runtime.resolve_image(&unknown, PullPolicy::Missing, Some(&login)).await.unwrap_err();
    assert!(error.to_string().contains(&unknown) && !error.is_temporary(), "{error}");
}

fn runtime(engine: &Engine) -> DockerRuntime {
    DockerRuntime::new(DockerOptions {
        socket: engine.socket().to_owned(),
        cluster: "test".to_owned(),
        volumes: engine.folder().join("volumes"),
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run in namespaces by the test above"]
async fn inner_contract() {
    let engine = Engine::start().await;
    engine.load_shell("wharf/shell:1");
    let runtime = runtime(&engine);
    let world = World { image: "wharf/shell:1".to_owned(), missing: "wharf/absent:1".to_owned(), run: 1 };
    check(&runtime, &world).await;

    // Nothing of the suite is left, and what somebody else made is neither seen nor touched.
    assert_eq!(runtime.list().await.unwrap(), []);
    engine.docker(&["run", "-d", "--name", "theirs", "wharf/shell:1", "sleep", "1000"]);
    assert_eq!(runtime.list().await.unwrap(), []);
    let theirs = wharf_agent::runtime::ContainerId("theirs".to_owned());
    for refused in [runtime.stop(&theirs, Duration::ZERO).await, runtime.remove(&theirs).await] {
        assert!(refused.unwrap_err().to_string().contains("was not made by this cluster"));
    }
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.Running}}", "theirs"]).trim(), "true");
}

/// Networks of the engine alone: one node needs no more.
struct BridgesOnly;

#[async_trait]
impl NetworkPlane for BridgesOnly {
    async fn prepare(&self, _: &BTreeMap<NetworkId, NetworkAssignment>) -> BTreeMap<NetworkId, String> {
        BTreeMap::new()
    }
    async fn mtu(&self) -> Option<u32> {
        Some(1450)
    }
    fn publish(&self, _: &DnsTable, _: &BTreeMap<Ipv4Addr, Vec<NetworkId>>) {}
    async fn clean_up(&self, _: BTreeSet<String>) {}
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An agent at work, until it is stopped.
struct Running {
    agent: NodeAgent,
    shutdown: Shutdown,
    task: Task<()>,
}

fn node() -> NodeId {
    NodeId::from_parts(1, [1; 10])
}

impl Running {
    fn start(engine: &Engine) -> Self {
        let machine = Machine::look(Ipv4Addr::LOCALHOST.into(), "test");
        let state = engine.folder().join("state");
        let config = NodeConfig::new(node(), machine, state, Path::new("/run/wharf").to_owned());
        let clock = Arc::new(SystemClock::new());
        let agent =
            NodeAgent::new(config, Arc::new(runtime(engine)), Arc::new(BridgesOnly), None, clock).unwrap();
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let (running, stop, own) = (agent.clone(), tasks.token(), tasks.clone());
        let task = tasks.spawn("agent", async move { running.run(&own, stop).await });
        Self { agent, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.request();
        self.task.await.unwrap();
    }

    /// Waits for a status of a task.
    async fn until(&self, task: TaskId, what: &str, wanted: impl Fn(&TaskStatus) -> bool) -> TaskStatus {
        let mut last = None;
        let waiting = async {
            let mut reports = Box::pin(self.agent.reports());
            loop {
                if let Report::Task(report) = reports.next().await.unwrap()
                    && report.task == task
                {
                    if wanted(&report.status) {
                        return report.status;
                    }
                    last = Some(report.status);
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(status) => status,
            Err(_elapsed) => panic!("{what}: {last:?}"),
        }
    }
}

fn set(revision: u64, tasks: &[&TaskAssignment]) -> AssignmentSet {
    AssignmentSet {
        epoch: 1,
        revision: Revision(revision),
        node: node(),
        tasks: tasks.iter().map(|task| (task.id, (*task).clone())).collect(),
        networks: BTreeMap::from([(network().id, network())]),
        volumes: BTreeMap::from([(volume().id, volume())]),
        removed_volumes: Vec::new(),
        dns: DnsTable::default(),
        routes: RouteTable::default(),
    }
}

fn network() -> NetworkAssignment {
    NetworkAssignment {
        id: NetworkId::from_parts(1, [3; 10]),
        name: "shop_default".to_owned(),
        vni: 7,
        subnet: "10.214.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 214, 0, 1),
        internal: false,
        attachable: false,
        driver_opts: BTreeMap::new(),
        peers: Vec::new(),
    }
}

fn volume() -> VolumeAssignment {
    VolumeAssignment {
        id: VolumeId::from_parts(1, [4; 10]),
        name: "shop_data".to_owned(),
        spec: VolumeSpec::default(),
    }
}

/// A task with a network, a volume, a secret and a probe, that says what it found and serves HTTP by hand.
fn web(number: u64) -> TaskAssignment {
    let mut task = sample_task(number, "web", "wharf/shell:1");
    let serve = "trap 'exit 0' TERM; cat /run/secrets/key; id; date > /data/file; ls -l /data/file; \
                 httpd -p 80 -h /data; while :; do sleep 0.1; done";
    task.spec.container.command = Some(["sh", "-c", serve].map(str::to_owned).to_vec());
    task.attachments = vec![Attachment {
        network: network().id,
        address: Ipv4Addr::new(10, 214, 0, 100 + u8::try_from(number).unwrap()),
        endpoint: Default::default(),
    }];
    let data: VolumeName = "data".parse().unwrap();
    task.spec.container.mounts = vec![MountSpec {
        source: MountSource::Volume { volume: data.clone(), nocopy: false, subpath: None },
        target: "/data".to_owned(),
        read_only: false,
    }];
    task.volumes = BTreeMap::from([(data, volume().id)]);
    task.files = vec![FileAssignment {
        mount: FileMount {
            source: "key".to_owned(),
            target: "/run/secrets/key".to_owned(),
            uid: None,
            gid: None,
            mode: Some(0o400),
        },
        secret: true,
        content: "aHVudGVyMgo=".to_owned(),
    }];
    task.spec.probe = Some(Probe {
        kind: ProbeKind::Http { port: 80, path: "/file".to_owned() },
        interval: Millis(200),
        timeout: Millis(2_000),
        retries: 3,
        start_period: Millis(30_000),
    });
    task
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run in namespaces by the test above"]
async fn inner_node() {
    let mut engine = Engine::start().await;
    engine.load_shell("wharf/shell:1");
    engine.docker(&["run", "-d", "--name", "theirs", "wharf/shell:1", "sleep", "1000"]);
    let node = Running::start(&engine);

    // A task comes up with everything it asked for, and its probe passes.
    let first = web(1);
    node.agent.apply(set(1, &[&first])).await.unwrap();
    let ready = node.until(first.id, "it is ready", TaskStatus::is_ready).await;
    assert!(ready.health == Health::Healthy && ready.ready_at.is_some(), "{ready:?}");
    let container = ready.container.clone().unwrap();
    let logs = node.agent.logs(first.id, LogQuery::default()).await.unwrap();
    let text: Vec<u8> = logs.map(|frame| frame.unwrap().bytes.to_vec()).concat().await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("hunter2") && text.contains("/data/file"), "{text}");
    let kept = std::fs::read_to_string(engine.folder().join("state/assignments.json")).unwrap();
    assert!(!kept.contains("aHVudGVyMgo="), "a secret is on disk");

    // A restart of the agent, without a server, changes nothing about it.
    node.stop().await;
    let started = engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", &container]);
    let node = Running::start(&engine);
    let adopted = node.until(first.id, "it is adopted", TaskStatus::is_ready).await;
    assert_eq!(adopted.container.as_ref(), Some(&container));
    assert!(adopted.sequence > ready.sequence);

    // Nor does a restart of the engine.
    engine.restart().await;
    let probed = async {
        loop {
            if node.agent.engine().is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), probed).await.expect("the engine is found again");
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.StartedAt}}", &container]), started);

    // An end that nobody asked for is told, with its exit code and its last lines, also after the engine restarted.
    let mut crash = sample_task(2, "crash", "wharf/shell:1");
    let script = "echo last words; exit 3";
    crash.spec.container.command = Some(["sh", "-c", script].map(str::to_owned).to_vec());
    node.agent.apply(set(2, &[&first, &crash])).await.unwrap();
    let failed = node.until(crash.id, "it failed", |status| status.phase == Phase::Failed).await;
    assert_eq!(
        (failed.message.as_str(), failed.last_log.as_slice()),
        ("exit code 3", &["last words".to_owned()][..])
    );

    // Older orders are refused.
    let refused = node.agent.apply(set(1, &[])).await.unwrap_err().to_string();
    assert!(refused.contains("older"), "{refused}");

    // A stop lets the process end by itself and removes its container; what is no longer wanted goes as well.
    let stopping = TaskAssignment { target: Target::Stop, ..first.clone() };
    node.agent.apply(set(3, &[&stopping, &crash])).await.unwrap();
    let stopped = node.until(first.id, "it stopped", |status| status.phase == Phase::Stopped).await;
    assert!(stopped.exit.is_some_and(|exit| exit.is_success()), "{stopped:?}");
    let mut last = set(4, &[]);
    last.networks.clear();
    last.volumes.clear();
    last.removed_volumes = vec![volume().id];
    node.agent.apply(last).await.unwrap();
    let gone = async {
        let mut reports = Box::pin(node.agent.reports());
        while reports.next().await != Some(Report::VolumeRemoved(volume().id)) {}
        while !(engine.docker(&["ps", "-aq", "--filter", "label=wharf.cluster"]).is_empty()
            && engine.docker(&["network", "ls", "-q", "--filter", "label=wharf.cluster"]).is_empty())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("everything of ours is gone");
    assert!(!engine.folder().join("volumes").join(volume().id.to_string()).exists());
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.Running}}", "theirs"]).trim(), "true");
    node.stop().await;
}
