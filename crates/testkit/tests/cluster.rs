//! The test cluster keeps its promises: nodes are separate machines, faults do what they say and no
//! more, and nothing is left behind whichever way a cluster ends.
//!
//! Real namespaces and engines: needs root and Docker Engine, or skips, saying so.

#![expect(clippy::unwrap_used, reason = "in tests, also in their helpers, a panic is the message")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wharf_testkit::cluster::{
    Cluster, Node, Power, Running, Seed, Signal, gc, skip, try_wait_until, wait_until,
};

const KINDS: [&str; 3] = ["net", "pid", "mnt"];
const SOON: Duration = Duration::from_secs(15);

fn reaches(from: &Node, to: &Node) -> bool {
    from.exec(["busybox", "ping", "-c1", "-W1", &to.address().to_string()]).unwrap().is_success()
}

fn must_reach(from: &Node, to: &Node) {
    wait_until(SOON, &format!("{} reaches {}", from.name(), to.name()), || {
        reaches(from, to).then_some(()).ok_or("no answer")
    });
}

/// A TCP connection between two nodes that both ends want to keep.
fn connect(from: &Node, to: &Node) -> [Running; 2] {
    let server = to.spawn(["busybox", "nc", "-ll", "-p", "9000", "-e", "sleep", "1000"]).unwrap();
    wait_until(SOON, "the server listens", || {
        let listeners = to.run(["ss", "-Htln", "sport", "=", ":9000"]).unwrap();
        if listeners.is_empty() { Err("nothing listens") } else { Ok(()) }
    });
    let script = format!("sleep 1000 | busybox nc {} 9000", to.address());
    let client = from.spawn(["sh", "-c", &script]).unwrap();
    wait_until(SOON, "the connection stands", || is_connected(from).then_some(()).ok_or("no connection"));
    [server, client]
}

fn is_connected(from: &Node) -> bool {
    !from.run(["ss", "-Htn", "state", "established", "dport", "=", ":9000"]).unwrap().is_empty()
}

#[test]
fn three_nodes_are_up_in_seconds_with_engines_that_share_their_images() {
    if skip() {
        return;
    }
    let seed = Seed::basic().unwrap();
    let start = Instant::now();
    let cluster = Cluster::builder().nodes(3).seed(seed).up().unwrap();
    println!("up 3, seeded: {:.2?}", start.elapsed());

    cluster.wait_for_network(SOON).unwrap();
    let mut engines = Vec::new();
    for node in cluster.nodes() {
        let said = node.docker(["run", "--rm", "alpine:3", "echo", "hello"]).unwrap();
        assert_eq!(said, "hello");
        assert_eq!(node.docker(["info", "-f", "{{.Name}}"]).unwrap(), node.name());
        assert_eq!(node.run(["hostname"]).unwrap(), node.name());
        engines.push(node.docker(["info", "-f", "{{.ID}}"]).unwrap());
    }
    engines.sort();
    engines.dedup();
    assert_eq!(engines.len(), 3, "each engine is its own");

    let files = |node: u8| {
        cluster
            .node(node)
            .sh("cd /var/lib/docker/overlay2 && find . -name busybox -exec stat -c '%n %i' {} +")
            .unwrap()
    };
    assert!(!files(1).is_empty(), "the layer is there");
    assert_eq!(files(1), files(2), "the layers are the same files on disk");
    cluster.node(1).docker(["rmi", "alpine:3", "busybox:1", "wharf/testserver:1"]).unwrap();
    assert_eq!(
        cluster.node(2).docker(["run", "--rm", "busybox:1", "echo", "still here"]).unwrap(),
        "still here"
    );

    let start = Instant::now();
    assert!(!cluster.node(1).exec(["getent", "hosts", "no.such.name"]).unwrap().is_success());
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "an unknown name is refused at once, not after {:?}",
        start.elapsed()
    );
    let answer = cluster
        .node(2)
        .docker(["run", "--rm", "busybox:1", "sh", "-c", "nslookup no.such.name || true"])
        .unwrap();
    assert!(answer.contains("NXDOMAIN"), "{answer}");
}

#[test]
fn the_test_server_serves_a_client_on_the_switch() {
    if skip() {
        return;
    }
    let cluster = Cluster::builder().seed(Seed::basic().unwrap()).up().unwrap();
    let node = cluster.node(1);
    node.docker([
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "80:8080",
        "-e",
        "NAME=blue",
        "-e",
        "EXIT_CODE=3",
        "wharf/testserver:1",
    ])
    .unwrap();
    let address = SocketAddr::from((node.address(), 80));
    let own = || cluster.in_network(|| TcpStream::connect_timeout(&address, SOON)?.local_addr()).unwrap();
    let own = wait_until(SOON, "a socket of this process connects", own);
    assert_eq!(own.ip(), cluster.client_address(), "it is on the switch, not on this machine's network");
    let get = |path: &str| {
        let request = format!(
            "printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | busybox timeout 5 busybox nc {} 80",
            node.address()
        );
        cluster.client_exec(["sh", "-c", &request]).unwrap().stdout
    };
    let hello = wait_until(SOON, "the server answers", || {
        Some(get("/")).filter(|text| text.contains("200 OK")).ok_or("no answer")
    });
    assert!(hello.contains("name=blue"), "{hello}");
    assert!(get("/health").contains("200 OK"));
    get("/health/down");
    assert!(get("/health").contains("503"));
    assert_eq!(
        node.docker_command().args(["exec", "web", "/testserver", "health"]).output().unwrap().status.code(),
        Some(1)
    );
    assert_eq!(get("/bytes/70000").split("\r\n\r\n").nth(1).unwrap().len(), 70_000);
    assert!(node.docker(["logs", "web"]).unwrap().contains("GET /bytes/70000"));
    get("/exit/7");
    assert_eq!(node.docker(["wait", "web"]).unwrap(), "7");
}

#[test]
fn faults_cut_what_they_name_and_healing_restores_it() {
    if skip() {
        return;
    }
    let start = Instant::now();
    let cluster = Cluster::builder().nodes(3).without_engines().up().unwrap();
    println!("up 3, without engines: {:.2?}", start.elapsed());
    cluster.wait_for_network(SOON).unwrap();
    let [one, two, three] = [1, 2, 3].map(|index| cluster.node(index));

    cluster.partition(1, 2).unwrap();
    assert!(!reaches(&one, &two) && !reaches(&two, &one), "the pair is cut both ways");
    assert!(reaches(&one, &three) && reaches(&three, &two), "no other pair is");
    cluster.heal().unwrap();
    must_reach(&one, &two);

    three.isolate().unwrap();
    assert_eq!(three.power().unwrap(), Power::Isolated);
    assert!(!reaches(&one, &three) && !reaches(&three, &two), "an isolated node is alone");
    assert!(reaches(&one, &two), "the others are not");
    cluster.heal().unwrap();
    must_reach(&one, &three);

    cluster.lose(&[(2, 1.0)]).unwrap();
    assert!(!reaches(&one, &two) && reaches(&one, &three), "all is lost for node 2, nothing for the others");
    cluster.lose(&[]).unwrap();
    must_reach(&one, &two);

    let _server = two.spawn(["busybox", "httpd", "-f", "-p", "8000", "-h", "/root"]).unwrap();
    two.sh("head -c 300000 /dev/zero >/root/file").unwrap();
    let fetch = |deadline: &str| {
        one.exec([
            "timeout",
            deadline,
            "busybox",
            "wget",
            "-qO",
            "/dev/null",
            &format!("http://{}:8000/file", two.address()),
        ])
        .unwrap()
    };
    wait_until(SOON, "the file is served", || fetch("5").text());
    two.limit_rate(Some("1mbit")).unwrap();
    let start = Instant::now();
    fetch("20").text().unwrap();
    assert!(start.elapsed() > Duration::from_millis(1200), "300 kB took {:?} at 1 Mbit/s", start.elapsed());
    two.limit_rate(None).unwrap();
}

#[test]
fn a_power_cut_is_silent_and_keeps_the_disk_while_a_crash_is_noticed() {
    if skip() {
        return;
    }
    let cluster = Cluster::builder().nodes(2).without_engines().up().unwrap();
    let [one, two] = [1, 2].map(|index| cluster.node(index));
    two.put_file("/var/lib/wharf/kept", "on disk").unwrap();
    two.put_file("/etc/wharf/kept", "on disk").unwrap();
    two.put_file("/run/lost", "in memory").unwrap();
    assert!(!Path::new("/etc/wharf/kept").exists(), "a node's files are its own");

    let connection = connect(&one, &two);
    two.power_off().unwrap();
    assert_eq!(two.power().unwrap(), Power::Off);
    assert!(is_connected(&one), "neither FIN nor RST got out");
    drop(connection);

    two.boot_bare().unwrap();
    must_reach(&one, &two);
    assert_eq!(two.read_file("/var/lib/wharf/kept").unwrap(), "on disk");
    assert_eq!(two.read_file("/etc/wharf/kept").unwrap(), "on disk");
    assert!(two.read_file("/run/lost").is_err(), "memory is lost");

    one.power_off().unwrap();
    one.boot_bare().unwrap();
    let _connection = connect(&one, &two);
    two.crash().unwrap();
    assert_eq!(two.power().unwrap(), Power::Crashed);
    wait_until(SOON, "the peer is told", || (!is_connected(&one)).then_some(()).ok_or("still connected"));
    assert!(reaches(&one, &two), "the crashed node's kernel answers");
    two.boot_bare().unwrap();
    assert_eq!(two.power().unwrap(), Power::On);
}

#[test]
fn containers_outlive_their_engine_but_not_their_node() {
    if skip() {
        return;
    }
    let cluster = Cluster::builder().seed(Seed::basic().unwrap()).up().unwrap();
    let node = cluster.node(1);
    node.docker(["run", "-d", "--name", "web", "wharf/testserver:1"]).unwrap();
    let state = || node.docker(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "web"]).unwrap();
    let before = state();
    assert!(before.starts_with("running"), "{before}");

    node.engine_kill().unwrap();
    assert!(node.docker(["ps"]).is_err(), "no engine answers");
    assert_eq!(node.pids_of("testserver").len(), 1, "the container runs on");
    node.engine_start().unwrap();
    assert_eq!(state(), before, "the engine finds the same process");
    node.engine_restart().unwrap();
    assert_eq!(state(), before, "an orderly restart leaves it too");

    let service = node.service("agent");
    service
        .run(["sh", "-c", "trap 'echo stopped; exit' TERM; echo started; while :; do sleep 0.05; done"])
        .unwrap();
    wait_until(SOON, "the service starts", || {
        (service.log() == "started\n").then_some(()).ok_or(service.log())
    });
    service.stop().unwrap();
    assert_eq!((service.log().as_str(), service.is_running().unwrap()), ("started\nstopped\n", false));
    service.start().unwrap();
    service.kill().unwrap();
    assert!(!service.is_running().unwrap());

    node.power_off().unwrap();
    assert!(node.engine_pids().is_empty(), "the engine went with the power");
    let start = Instant::now();
    node.boot().unwrap();
    println!("boot of a node with its engine: {:.2?}", start.elapsed());
    assert!(state().starts_with("exited"), "{}", state());
    assert!(service.is_running().unwrap(), "services start with their node");
    node.docker(["start", "web"]).unwrap();
    assert!(state().starts_with("running"));
}

#[test]
fn a_node_has_the_memory_and_the_program_it_is_given() {
    if skip() {
        return;
    }
    let cluster = Cluster::builder().seed(Seed::basic().unwrap()).up().unwrap();
    let node = cluster.node(1);
    node.limit_memory(Some(300 << 20)).unwrap();
    let mut hungry = node.docker_command();
    hungry.args([
        "run",
        "--name",
        "hungry",
        "busybox:1",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=600M",
        "count=1",
    ]);
    assert_eq!(hungry.output().unwrap().status.code(), Some(137), "the kernel ends it");
    node.docker(["ps"]).expect("the engine lives on");

    let program = cluster.dir().join("program");
    std::fs::write(&program, "#!/bin/sh\necho wharf on $(hostname)\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    cluster.install(&program).unwrap();
    assert_eq!(node.run(["wharf"]).unwrap(), "wharf on n1");
    node.power_off().unwrap();
    node.boot_bare().unwrap();
    assert_eq!(node.run(["wharf"]).unwrap(), "wharf on n1", "after a boot too");

    let mut sleeper = node
        .spawn(["sh", "-c", "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.05; done"])
        .unwrap();
    wait_until(SOON, "it is ready", || sleeper.log().contains("ready").then_some(()).ok_or(sleeper.log()));
    sleeper.signal(Signal::SIGTERM).unwrap();
    assert_eq!(sleeper.wait(SOON).unwrap(), 5);
    assert!(sleeper.log().contains("told"));
}

/// A namespace that a cluster used. It is held open, since the kernel gives the number of one that is
/// gone to the next.
struct Namespace {
    name: PathBuf,
    _held: File,
}

fn namespaces(cluster: &Cluster) -> Vec<Namespace> {
    let files = |node: Node| KINDS.map(|kind| format!("/proc/{}/ns/{kind}", node.init_pid().unwrap()));
    let open = |file: String| Namespace {
        name: std::fs::read_link(&file).unwrap(),
        _held: File::open(&file).unwrap(),
    };
    cluster.nodes().into_iter().flat_map(files).map(open).collect()
}

fn nothing_is_left(view: &Cluster, namespaces: &[Namespace]) -> Result<()> {
    let traces = view.traces();
    ensure!(traces.is_empty(), "{traces:#?}");
    for process in std::fs::read_dir("/proc")?.flatten() {
        for kind in KINDS {
            let Ok(name) = std::fs::read_link(process.path().join("ns").join(kind)) else { continue };
            ensure!(
                namespaces.iter().all(|one| one.name != name),
                "{} is still in {}",
                process.path().display(),
                name.display()
            );
        }
    }
    Ok(())
}

fn busy_cluster() -> Cluster {
    let cluster = Cluster::builder().nodes(2).seed(Seed::basic().unwrap()).attach_host(true).up().unwrap();
    cluster.node(1).docker(["run", "-d", "--restart", "always", "wharf/testserver:1"]).unwrap();
    cluster
}

#[test]
fn nothing_is_left_of_a_cluster_after_success_and_after_a_panic() {
    if skip() {
        return;
    }
    let cluster = busy_cluster();
    let _program = cluster.node(2).spawn(["sleep", "1000"]).unwrap();
    let view = Cluster::open(cluster.name()).unwrap();
    let before = namespaces(&cluster);
    assert!(nothing_is_left(&view, &before).is_err(), "what there is can be seen");
    let ping = Command::new("busybox")
        .args(["ping", "-c1", "-W2", &cluster.node(1).address().to_string()])
        .output()
        .unwrap();
    assert!(ping.status.success(), "this machine is attached: {ping:?}");
    let start = Instant::now();
    cluster.down().unwrap();
    println!("down 2, with a container: {:.2?}", start.elapsed());
    nothing_is_left(&view, &before).unwrap();

    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let cluster = busy_cluster();
        seen = Some((Cluster::open(cluster.name()).unwrap(), namespaces(&cluster)));
        panic!("as a failing test does");
    }));
    assert!(result.is_err());
    let (view, before) = seen.unwrap();
    nothing_is_left(&view, &before).unwrap();
}

/// A process that owns a cluster of one node, and says so when it is up.
fn owner(name: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wharf-testbed"))
        .args(["--cluster", name, "up", "1", "--foreground"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let up = lines.by_ref().map_while(Result::ok).any(|line| line.contains("lives until"));
    assert!(up, "the owner did not come up");
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn end(child: &mut Child, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
    child.wait().unwrap();
}

#[test]
fn nothing_is_left_of_a_cluster_whose_owner_is_interrupted_or_killed() {
    if skip() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let name = format!("owned-{}-{}", std::process::id(), signal.as_str().to_lowercase());
        let mut owner = owner(&name);
        let view = Cluster::open(&name).unwrap();
        let before = namespaces(&view);
        end(&mut owner, signal);
        try_wait_until(SOON, "the guard removes everything", || nothing_is_left(&view, &before)).unwrap();
    }
}

#[test]
fn nothing_is_left_of_a_start_that_fails_or_is_interrupted() {
    if skip() {
        return;
    }
    let name = format!("failing-{}", std::process::id());
    let error = Cluster::builder().name(&name).engine_arg("--no-such-flag").up().unwrap_err();
    assert!(format!("{error:#}").contains("no-such-flag"), "the engine's own words are passed on: {error:#}");
    assert!(Cluster::open(&name).is_err(), "it is gone");

    let name = format!("stopped-{}", std::process::id());
    let mut starting = Command::new(env!("CARGO_BIN_EXE_wharf-testbed"))
        .args(["--cluster", &name, "up", "1"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let view = wait_until(SOON, "a node runs", || {
        let view = Cluster::open(&name)?;
        view.node(1).init_pid().map(|_| view).context("not yet")
    });
    end(&mut starting, Signal::SIGINT);
    try_wait_until(SOON, "the guard removes everything", || nothing_is_left(&view, &[])).unwrap();
}

#[test]
fn nothing_is_left_even_when_owner_and_guard_are_killed_once_the_next_cluster_starts() {
    if skip() {
        return;
    }
    let name = format!("orphan-{}", std::process::id());
    let mut owner = owner(&name);
    let view = Cluster::open(&name).unwrap();
    let before = namespaces(&view);
    let guard = i32::try_from(view.guard_pid().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    assert!(view.node(1).init_pid().is_some(), "the node runs on without its guard");
    end(&mut owner, Signal::SIGKILL);
    // Another test's start may have removed it already: both are the same removal.
    gc().unwrap();
    try_wait_until(SOON, "the collection removes everything", || nothing_is_left(&view, &before)).unwrap();
}

#[test]
fn a_cluster_by_hand_outlives_the_command_that_started_it() {
    if skip() {
        return;
    }
    let name = format!("hand-{}", std::process::id());
    let testbed = |args: &[&str]| {
        let mut output = Command::new(env!("CARGO_BIN_EXE_wharf-testbed"));
        output.args(["--cluster", &name]).args(args).stdin(Stdio::null()).output().unwrap()
    };
    let up = testbed(&["up", "2"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let view = Cluster::open(&name).unwrap();
    let before = namespaces(&view);
    gc().unwrap();

    assert_eq!(
        testbed(&["exec", "2", "sh", "-c", "hostname; exit 9"]).status.code(),
        Some(9),
        "exit codes pass"
    );
    assert_eq!(testbed(&["exec", "2", "hostname"]).stdout, b"n2\n");
    assert_eq!(testbed(&["docker", "1", "run", "--rm", "busybox:1", "echo", "hi"]).stdout, b"hi\n");
    assert!(testbed(&["exec", "client", "busybox", "ping", "-c1", "-W2", "n2"]).status.success());
    assert!(!testbed(&["exec", "1", "getent", "hosts", "no.such.name"]).status.success());
    assert!(String::from_utf8_lossy(&testbed(&["ps"]).stdout).contains("10.77."));
    assert!(testbed(&["power-off", "2"]).status.success());
    assert_eq!(testbed(&["exec", "2", "true"]).status.code(), Some(1), "what is off runs nothing");
    assert!(testbed(&["boot", "2"]).status.success());
    assert!(!testbed(&["up", "1"]).status.success(), "the name is taken");
    assert!(view.node(1).init_pid().is_some(), "and what has it is unharmed");

    let down = testbed(&["down"]);
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    nothing_is_left(&view, &before).unwrap();
}
