//! Names from inside real containers, while agents and DNS processes are killed and replaced.
#![expect(clippy::unwrap_used, reason = "a test panics")]
#![expect(clippy::print_stdout, reason = "figures for whoever measures")]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wharf_testkit::cluster::{Node, wait_until};
use wharf_tests::{Fleet, exactness::ask::resolver, skip};

const SOON: Duration = Duration::from_secs(40);
/// Longer than any pause of a resolver: what was not answered by then was lost.
const LOST: Duration = Duration::from_secs(5);
/// A thousand questions a second.
const PACE: Duration = Duration::from_millis(1);

const APP: &str = "services:
  web:
    image: wharf/testserver:1
    deploy: {replicas: 2}
  asker:
    image: busybox:1
    command: [sleep, infinity]
    stop_grace_period: 0s
    deploy: {mode: global}
  own:
    image: busybox:1
    command: [sleep, infinity]
    dns: [127.0.0.1]
    stop_grace_period: 0s
    deploy: {placement: {constraints: [node.hostname == n2]}}
";

/// `web`, A.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";

fn answers(reply: &[u8]) -> usize {
    let is_whole = reply.len() > 12 && reply[2] & 0x80 != 0 && reply[3] & 15 == 0;
    if is_whole { usize::from(reply[7]) } else { 0 }
}

/// Asks as from a container at an even pace until `stop`, each question from a socket of its own and at most once; says how many there were
/// and how many were not answered.
fn ask_from(pid: u32, at: Ipv4Addr, stop: &AtomicBool) -> Result<(usize, usize)> {
    setns(fs::File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
    let mut open: Vec<(UdpSocket, Instant)> = Vec::new();
    let (mut asked, mut lost) = (0, 0);
    let mut reply = [0; 512];
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) || !open.is_empty() {
        if !stop.load(Ordering::Relaxed) {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect((at, 53))?;
            match socket.send(QUESTION) {
                Ok(_) => open.push((socket, Instant::now())),
                Err(_) => lost += 1,
            }
            asked += 1;
        }
        open.retain(|(socket, since)| match socket.recv(&mut reply) {
            Ok(length) => {
                // With how many is the server's to say: it may doubt a task whose node it does not hear.
                lost += usize::from(answers(&reply[..length]) == 0);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && since.elapsed() < LOST => true,
            Err(_) => {
                lost += 1;
                false
            }
        });
        let due = begin + PACE * u32::try_from(asked)?;
        thread::sleep(due.saturating_duration_since(Instant::now()).max(PACE / 4));
    }
    Ok((asked, lost))
}

/// Answers every question at a container's 127.0.0.1 with one address, until `stop`.
fn be_resolver(pid: u32, stop: &AtomicBool) -> Result<()> {
    setns(fs::File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut message = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, asker)) = socket.recv_from(&mut message) else { continue };
        // What follows the question is left out: its name, and type and class.
        let name = message[12..length].iter().position(|byte| *byte == 0).unwrap_or_default();
        let mut answer = message[..12 + name + 5].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
        socket.send_to(&answer, asker)?;
    }
    Ok(())
}

/// The container of a service's task on a node, as the root namespace sees its first process.
fn container(node: &Node, name: &str) -> (String, u32) {
    wait_until(SOON, "the container runs", || {
        for (id, pid) in node.containers() {
            if fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"))?.trim().contains(name) {
                return Ok((id, pid));
            }
        }
        anyhow::bail!("no container of {name}")
    })
}

/// The DNS process of a node, as the root namespace sees it: exactly one.
fn dns_process(node: &Node) -> Result<u32> {
    match node.pids_of("wharf-dns").as_slice() {
        [pid] => Ok(*pid),
        pids => anyhow::bail!("{} DNS processes", pids.len()),
    }
}

/// What a container is told over TCP.
fn ask_by_tcp(pid: u32, at: Ipv4Addr) -> Result<usize> {
    let asking = thread::spawn(move || -> Result<usize> {
        setns(fs::File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
        let mut stream = TcpStream::connect((at, 53))?;
        stream.set_read_timeout(Some(LOST))?;
        stream.write_all(&[&[0, u8::try_from(QUESTION.len())?], QUESTION].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        Ok(answers(&reply))
    });
    asking.join().expect("no panic")
}

/// A figure of a process, in MiB.
fn memory(pid: u32, what: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn field(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

/// Does `work` while a container asks a thousand questions a second; how many it asked. None may be lost.
fn under_questions(what: &str, pid: u32, at: Ipv4Addr, work: impl FnOnce()) {
    let (stop, begin) = (AtomicBool::new(false), Instant::now());
    let (asked, lost) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask_from(pid, at, &stop));
        // Before it, during it, and after it.
        thread::sleep(Duration::from_millis(300));
        work();
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap().unwrap()
    });
    println!(
        "{what}: {lost} of {asked} questions in {:.1} s without an answer that leads to a task",
        begin.elapsed().as_secs_f64()
    );
    assert_eq!(lost, 0, "{what}: of {asked}");
}

#[test]
fn no_question_is_lost_when_an_agent_is_killed_or_replaced_and_names_are_back_at_once_when_their_process_is()
{
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    let file = fleet.file("shop", APP);
    fleet.ok(["up", "-y", "-f", &file]);
    let node = fleet.node(2);
    let (asker, pid) = container(&node, "asker");
    let at = resolver(pid).unwrap();
    let agent = node.service("wharf");
    let inside = |command: &str| node.docker(["exec", &asker, "sh", "-c", command]);

    // What a C library makes of it: the service, its tasks, its app, a name that is not there, an address.
    wait_until(SOON, "names lead to all tasks", || {
        for name in ["web", "tasks.web", "web.shop"] {
            let said = inside(&format!("nslookup -type=a {name}"))?;
            ensure!(said.matches("Address").count() >= 3, "{name}: {said}");
        }
        Ok(())
    });
    assert!(inside("nslookup -type=a nothing").is_err());
    assert_eq!(ask_by_tcp(pid, at).unwrap(), 2);

    let (own, own_pid) = container(&node, "own");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| be_resolver(own_pid, &stop));
        wait_until(SOON, "names of the cluster, and those that another resolver knows", || {
            let inside = |name: &str| node.docker(["exec", &own, "nslookup", "-type=a", name]);
            let (web, elsewhere) = (inside("web")?, inside("elsewhere.example")?);
            ensure!(web.matches("Address").count() >= 3 && !web.contains("10.9.8.7"), "{web}");
            ensure!(elsewhere.contains("10.9.8.7"), "{elsewhere}");
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        serving.join().unwrap().unwrap();
    });

    // A container made by hand gets no address that may be somebody's, and can be where a task is.
    let by_hand = |network: &str| {
        node.docker(["run", "--rm", "--network", network, "busybox:1", "nslookup", "-type=a", "web"])
    };
    let refused = by_hand("shop_default").unwrap_err().to_string();
    assert!(refused.contains("no available IPv4 addresses"), "{refused}");
    assert!(by_hand(&format!("container:{asker}")).unwrap().matches("Address").count() >= 3);

    let first = dns_process(&node).unwrap();
    assert_eq!(field(first, "CapEff:"), "0000000000000400", "the right to port 53, and no other");
    assert_eq!(field(first, "NoNewPrivs:"), "1");
    println!("DNS process: PSS {:.1} MiB, RSS {:.1} MiB", memory(first, "Pss:"), memory(first, "Rss:"));

    under_questions("an agent is killed and started", pid, at, || {
        agent.kill().unwrap();
        // Gone for a while: nobody but the DNS process knows the names.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(dns_process(&node).unwrap(), first);
        agent.start().unwrap();
        fleet.wait_for_nodes().unwrap();
    });
    assert_eq!(dns_process(&node).unwrap(), first, "the same process answers");

    // Installed over the old one, as an upgrade is.
    fleet.cluster.install(&fleet.binary).unwrap();
    under_questions("an agent is replaced by another build", pid, at, || {
        agent.restart().unwrap();
        wait_until(SOON, "another DNS process", || {
            ensure!(dns_process(&node)? != first);
            Ok(())
        });
    });

    under_questions("an engine is killed and started", pid, at, || {
        node.engine_kill().unwrap();
        thread::sleep(Duration::from_secs(1));
        node.engine_start().unwrap();
    });
    assert_eq!(container(&node, "asker").1, pid, "its containers run on");

    let mut times = Vec::new();
    for _ in 0..5 {
        let killed = dns_process(&node).unwrap();
        let since = Instant::now();
        kill(Pid::from_raw(i32::try_from(killed).unwrap()), Signal::SIGKILL).unwrap();
        let back = thread::spawn(move || -> Result<Duration> {
            setns(fs::File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
            let mut reply = [0; 512];
            while since.elapsed() < SOON {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((at, 53))?;
                socket.set_read_timeout(Some(Duration::from_millis(2)))?;
                let _ = socket.send(QUESTION);
                if socket.recv(&mut reply).is_ok_and(|length| answers(&reply[..length]) > 0) {
                    return Ok(since.elapsed());
                }
            }
            anyhow::bail!("no answer any more")
        });
        times.push(back.join().unwrap().unwrap());
        wait_until(SOON, "one DNS process", || dns_process(&node));
    }
    times.sort();
    println!(
        "a killed DNS process answers again after {:?} (median of 5; {:?} to {:?})",
        times[2], times[0], times[4]
    );

    // A node that has lost its power knows nothing until its agent has said so, and then all.
    node.power_off().unwrap();
    node.boot().unwrap();
    fleet.wait_for_nodes().unwrap();
    wait_until(SOON, "names after a reboot", || {
        let (asker, _) = container(&node, "asker");
        let said = node.docker(["exec", &asker, "nslookup", "-type=a", "web"])?;
        ensure!(said.matches("Address").count() >= 3, "{said}");
        Ok(())
    });
}
