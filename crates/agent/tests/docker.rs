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
    AssignmentSet, Attachment, Backend, DnsTable, EndpointSpec, FileAssignment, FileMount, Health, Hook,
    Millis, MountSource, MountSpec, Namespace, NetworkAssignment, NetworkId, NetworkMode, NodeId, Phase,
    Probe, ProbeKind, Progress, PullPolicy, Revision, RouteTable, Target, TaskAssignment, TaskId, TaskStatus,
    VolumeAssignment, VolumeId, VolumeName, VolumeSpec, VolumesFrom,
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
fn hooks_run_and_services_share_on_a_real_engine() {
    engine::within_namespaces("inner_shared");
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
    assert_eq!((&again.id, again.pulled, registry.requests()), (&pulled.id, false, before));
    assert!(pulled.pulled, "it was not there before");
    let unknown = format!("{}/team/other:1", registry.address());
    let error = runtime.resolve_image(&unknown, PullPolicy::Missing, Some(&login)).await.unwrap_err();
    assert!(error.to_string().contains(&unknown) && !error.is_temporary(), "{error}");

    // It goes with all its names, and can be had again.
    let listed = runtime.list_images().await.unwrap();
    let found = listed.iter().find(|image| image.id == pulled.id).unwrap();
    assert_eq!((&found.names, &found.digests), (&vec![reference], &vec![registry.digest().to_owned()]));
    runtime.remove_image(&pulled.id).await.unwrap();
    assert!(!runtime.list_images().await.unwrap().iter().any(|image| image.id == pulled.id));
    runtime.remove_image(&pulled.id).await.unwrap();
    let again = runtime.ensure_image(&pinned, PullPolicy::Missing, Some(&login), &|_| {}).await.unwrap();
    assert_eq!((again.id, again.pulled), (pulled.id, true));
}

#[test]
fn ends_are_named_and_followed_up_on_a_real_engine() {
    engine::within_namespaces("inner_ends");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run in namespaces by the test above"]
async fn inner_ends() {
    let engine = Engine::start().await;
    engine.load_shell("wharf/shell:1");
    let node = Running::start(&engine);
    let limited = |number: u64, service: &str, text: &str| {
        let mut task = script(number, service, text);
        task.spec.resources.limits.memory = Some(wharf_model::Bytes(16 << 20));
        task
    };
    // `tail` keeps the last line, and this one has no end.
    let mut greedy = limited(1, "greedy", "");
    greedy.spec.container.command = Some(["tail", "/dev/zero"].map(str::to_owned).to_vec());
    let parent = limited(2, "parent", "tail /dev/zero;");
    let orphan = script(3, "orphan", "");
    node.agent.apply(set(1, &[&greedy, &parent, &orphan])).await.unwrap();

    let failed = node.until(greedy.id, "it fails", |status| status.phase == Phase::Failed).await;
    assert_eq!(failed.message, "out of memory (exit code 137)");
    assert!(failed.hint.is_some_and(|hint| hint.contains("memory limit")));
    let killed = |status: &TaskStatus| status.oom_kills > 0;
    let told = node.until(parent.id, "its child is killed", killed).await;
    assert!(told.message.starts_with("out of memory"), "{told:?}");
    let goes_on = node.until(parent.id, "it goes on", TaskStatus::is_ready).await;
    assert!(goes_on.oom_kills > 0 && goes_on.message.starts_with("out of memory"), "{goes_on:?}");

    // Nobody listens from here on, which means that no server answers.
    let container = node.until(orphan.id, "it runs", TaskStatus::is_ready).await.container.unwrap();
    let started = || engine.docker(&["inspect", "-f", "{{.State.Running}} {{.State.StartedAt}}", &container]);
    let before = started();
    engine.docker(&["kill", &container]);
    let again = async {
        while !(started().starts_with("true") && started() != before) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("its node starts it again");
    let told =
        node.until(orphan.id, "it is told", |status| status.is_ready() && status.restarts.is_some()).await;
    let restarts = told.restarts.unwrap();
    assert_eq!((told.container.unwrap(), restarts.times, restarts.exit.code), (container.clone(), 1, 137));

    // As long as somebody listens, an end is an end.
    let _listening = node.agent.reports();
    engine.docker(&["kill", &container]);
    node.until(orphan.id, "it has ended", |status| status.phase == Phase::Failed).await;
    node.stop().await;
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
    async fn mtu(&self, _: Backend) -> Option<u32> {
        Some(1450)
    }
    async fn publish(&self, _: &DnsTable, _: &wharf_agent::dns::Sources) -> bool {
        true
    }
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
        wireguard: None,
        disk_marks: Default::default(),
        watched: Vec::new(),
    }
}

fn network() -> NetworkAssignment {
    let (subnet, gateway) = ("10.214.0.0/24".parse().unwrap(), Ipv4Addr::new(10, 214, 0, 1));
    NetworkAssignment::new(NetworkId::from_parts(1, [3; 10]), "shop_default", 7, subnet, gateway)
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
    task.attachments =
        vec![Attachment::new(network().id, Ipv4Addr::new(10, 214, 0, 100 + u8::try_from(number).unwrap()))];
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
    let kept = std::fs::read_to_string(engine.folder().join("state/assignments.log")).unwrap();
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

fn script(number: u64, service: &str, text: &str) -> TaskAssignment {
    let mut task = sample_task(number, service, "wharf/shell:1");
    let text = format!("trap 'exit 0' TERM; {text} while :; do sleep 0.1; done");
    task.spec.container.command = Some(["sh", "-c", &text].map(str::to_owned).to_vec());
    task
}

fn hook(text: &str) -> Hook {
    Hook { command: ["sh", "-c", text].map(str::to_owned).to_vec(), ..Hook::default() }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run in namespaces by the test above"]
async fn inner_shared() {
    let engine = Engine::start().await;
    engine.load_shell("wharf/shell:1");
    let node = Running::start(&engine);

    let mut db = script(1, "db", "echo of the db > /srv/file;");
    db.spec.container.ipc = Some(Namespace::Mode("shareable".to_owned()));
    db.spec.container.mounts = vec![MountSpec {
        source: MountSource::Anonymous { nocopy: false, labels: BTreeMap::from([("a".into(), "b".into())]) },
        target: "/srv".to_owned(),
        read_only: false,
    }];
    let mut web = script(2, "web", "");
    let owner = db.service.name.clone();
    web.spec.container.ipc = Some(Namespace::Service(owner.clone()));
    web.spec.container.pid = Some(Namespace::Service(owner.clone()));
    web.spec.container.volumes_from = vec![VolumesFrom { service: owner.clone(), read_only: true }];
    web.companions = BTreeMap::from([(owner, db.id)]);

    let mut hooked = web_with_volume(3);
    hooked.attachments[0].endpoint =
        EndpointSpec { link_local_ips: vec!["169.254.8.8".parse().unwrap()], ..EndpointSpec::default() };
    let environment = BTreeMap::from([("WHO".to_owned(), "hook".to_owned())]);
    let first = hook("echo $WHO $(id -u) $(pwd) > /dev/shm/hook");
    let first = Hook { user: Some("12".into()), working_dir: Some("/tmp".into()), environment, ..first };
    hooked.spec.container.post_start = vec![first, hook("echo second >> /dev/shm/second")];
    hooked.spec.container.pre_stop = vec![hook("test -d /proc/1 && echo before > /data/stopped")];

    let mut broken = script(4, "broken", "");
    broken.spec.container.post_start = vec![hook("echo no schema; exit 4")];
    let mut absent = script(5, "absent", "");
    absent.spec.container.post_start = vec![Hook { command: vec!["/no/such".into()], ..Hook::default() }];
    let mut alone = script(6, "alone", "");
    alone.spec.network_mode = NetworkMode::Bridge;

    let all = [&db, &web, &hooked, &broken, &absent, &alone];
    let mut wanted = set(1, &all);
    let isolated = "com.docker.network.bridge.enable_icc";
    for network in wanted.networks.values_mut() {
        network.driver_opts = BTreeMap::from([(isolated.to_owned(), "false".to_owned())]);
        network.labels = BTreeMap::from([("team".to_owned(), "x".to_owned())]);
    }
    node.agent.apply(wanted).await.unwrap();

    let of = |status: TaskStatus| status.container.expect("it has a container");
    let db_container = of(node.until(db.id, "the db runs", TaskStatus::is_ready).await);
    let web_container = of(node.until(web.id, "web runs", TaskStatus::is_ready).await);
    let host = |container: &str, what: &str| {
        engine
            .docker(&["inspect", "-f", &format!("{{{{json .HostConfig.{what}}}}}"), container])
            .trim()
            .to_owned()
    };
    assert_eq!(host(&web_container, "IpcMode"), format!("\"container:{db_container}\""));
    assert_eq!(host(&web_container, "PidMode"), format!("\"container:{db_container}\""));
    assert_eq!(host(&web_container, "VolumesFrom"), format!("[\"{db_container}:ro\"]"));
    let within = |container: &str, words: &[&str]| engine.docker(&[&["exec", container], words].concat());
    for namespace in ["ipc", "pid"] {
        let path = format!("/proc/self/ns/{namespace}");
        assert_eq!(within(&web_container, &["readlink", &path]), within(&db_container, &["readlink", &path]));
    }
    assert_eq!(within(&web_container, &["cat", "/srv/file"]), "of the db\n");
    let volume_of = |container: &str| {
        engine.docker(&["inspect", "-f", "{{(index .Mounts 0).Name}}", container]).trim().to_owned()
    };
    let labels = engine.docker(&["volume", "inspect", "-f", "{{.Labels.a}}", &volume_of(&db_container)]);
    assert_eq!(labels.trim(), "b");

    let hooked_container = of(node.until(hooked.id, "its hooks have run", TaskStatus::is_ready).await);
    assert_eq!(
        within(&hooked_container, &["cat", "/dev/shm/hook", "/dev/shm/second"]),
        "hook 12 /tmp\nsecond\n"
    );
    assert!(within(&hooked_container, &["ip", "addr"]).contains("169.254.8.8"));
    let network = |what: &str| {
        let format = format!("{{{{index .{what}}}}}");
        engine.docker(&["network", "inspect", "-f", &format, "shop_default"]).trim().to_owned()
    };
    assert_eq!(network(&format!("Options \"{isolated}\"")), "false");
    assert_eq!(network("Labels \"team\""), "x");
    let label = |name: &str| {
        let format = format!("{{{{index .Config.Labels \"com.docker.compose.{name}\"}}}}");
        engine.docker(&["inspect", "-f", &format, &hooked_container]).trim().to_owned()
    };
    assert_eq!(
        (label("project"), label("service"), label("oneoff")),
        ("shop".into(), "web".into(), "False".into())
    );
    assert_eq!((label("config-hash").len(), label("image").starts_with("sha256:")), (64, true));

    let failed = node.until(broken.id, "its hook fails it", |status| status.phase == Phase::Failed).await;
    assert!(failed.message.contains("exit code 4"), "{failed:?}");
    assert_eq!(failed.last_log, ["no schema"]);
    let running = engine.docker(&["inspect", "-f", "{{.State.Running}}", &of(failed)]);
    assert_eq!(running.trim(), "false", "the process does not outlive its task");
    let failed =
        node.until(absent.id, "there is no such program", |status| status.phase == Phase::Failed).await;
    assert!(failed.message.contains("`post_start` hook 1 of 1, `/no/such` failed"), "{failed:?}");
    let alone_container = of(node.until(alone.id, "it runs", TaskStatus::is_ready).await);
    assert_eq!(host(&alone_container, "NetworkMode"), "\"bridge\"");

    let stopping = TaskAssignment { target: Target::Stop, ..hooked.clone() };
    node.agent.apply(set(2, &[&stopping])).await.unwrap();
    let stopped = node.until(hooked.id, "it stopped", |status| status.phase == Phase::Stopped).await;
    assert_eq!((stopped.message.as_str(), stopped.exit.map(|exit| exit.code)), ("", Some(0)));
    let left = engine.folder().join("volumes").join(volume().id.to_string()).join("stopped");
    assert_eq!(std::fs::read_to_string(left).unwrap(), "before\n", "the hook came before the signal");
    let mut last = set(3, &[]);
    last.networks.clear();
    node.agent.apply(last).await.unwrap();
    let gone = async {
        while !engine.docker(&["ps", "-aq", "--filter", "label=wharf.cluster"]).is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("everything of ours is gone");
    node.stop().await;
}

/// A task on the network and with the volume, and nothing else.
fn web_with_volume(number: u64) -> TaskAssignment {
    let full = web(number);
    let mut task = script(number, "web", "");
    task.spec.container.mounts.clone_from(&full.spec.container.mounts);
    (task.volumes, task.attachments) = (full.volumes, full.attachments);
    task
}
