//! What runs on a cluster and how it is, for tests of what happens when parts of it die.
#![expect(clippy::unwrap_used, reason = "it is asked by tests, which panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wharf_testkit::cluster::wait_until;

use crate::{Fleet, items, text};

/// More than the node lease and the time in which a broken connection is noticed, on a busy machine.
pub const NOTICED: Duration = Duration::from_secs(60);
/// How long it may take until everything is as wanted.
pub const SETTLING: Duration = Duration::from_secs(90);

/// The tasks of an app that are not over.
pub fn live(fleet: &Fleet, app: &str) -> Result<Vec<Value>> {
    let is_over =
        |task: &Value| matches!(text(&task["status"]["phase"]), "complete" | "stopped" | "failed" | "lost");
    Ok(fleet.tasks(app)?.into_iter().filter(|task| !is_over(task)).collect())
}

/// Whether exactly these slots are ready, and nothing else runs, on the engines either: `web.1`, `web.2`, …
pub fn settled(fleet: &Fleet, app: &str, wanted: &BTreeMap<&str, u64>) -> Result<()> {
    let slots: Vec<String> = wanted
        .iter()
        .flat_map(|(service, count)| (1..=*count).map(move |slot| format!("{service}.{slot}")))
        .collect();
    let tasks = live(fleet, app)?;
    let mut ready: Vec<String> = tasks
        .iter()
        .filter(|task| task["ready"] == true)
        .map(|task| format!("{}.{}", text(&task["service"]), task["slot"]))
        .collect();
    ready.sort();
    ensure!(ready == slots && tasks.len() == slots.len(), "{ready:?} are ready of {} tasks", tasks.len());
    let mut containers = Vec::new();
    for node in fleet.cluster.nodes() {
        let filter = format!("label=wharf.app={app}");
        let format = "{{.Label \"wharf.service\"}}.{{.Label \"wharf.slot\"}}";
        let said = node.docker(["ps", "--filter", &filter, "--format", format])?;
        containers.extend(said.lines().map(str::to_owned));
    }
    containers.sort();
    ensure!(containers == slots, "containers: {containers:?}");
    Ok(())
}

/// Waits until it is so.
#[track_caller]
pub fn wait_settled(fleet: &Fleet, app: &str, wanted: &[(&str, u64)]) {
    let wanted = wanted.iter().copied().collect();
    wait_until(SETTLING, "exactly what is wanted runs", || settled(fleet, app, &wanted));
}

/// Id, name and time of start of each container of a machine, ended ones too.
pub fn containers(fleet: &Fleet, index: u8) -> BTreeSet<String> {
    let node = fleet.node(index);
    let ids = node.docker(["ps", "--all", "--quiet", "--no-trunc"]).unwrap();
    if ids.trim().is_empty() {
        return BTreeSet::new();
    }
    let inspect = ["inspect", "--format", "{{.Id}} {{.Name}} {{.State.StartedAt}} {{.State.Status}}"];
    let said = node.docker(inspect.into_iter().chain(ids.split_whitespace())).unwrap();
    said.lines().map(str::to_owned).collect()
}

/// Those of all machines, by their order.
pub fn all_containers(fleet: &Fleet) -> Vec<BTreeSet<String>> {
    fleet.cluster.nodes().iter().map(|node| containers(fleet, node.index())).collect()
}

/// A node as `wharf node ls` shows it.
pub fn node(fleet: &Fleet, name: &str) -> Result<Value> {
    let nodes = fleet.try_json(["node", "ls"])?;
    items(&nodes)
        .iter()
        .find(|node| node["name"] == name)
        .cloned()
        .with_context(|| format!("no {name} in {nodes}"))
}

/// Waits until a node is in a state, and gives it.
#[track_caller]
pub fn wait_for_state(fleet: &Fleet, name: &str, state: &str) -> Value {
    wait_until(NOTICED, &format!("{name} is {state}"), || {
        let node = node(fleet, name)?;
        ensure!(node["state"] == state, "it is {node}");
        Ok::<_, anyhow::Error>(node)
    })
}

/// Asks once for `/`.
pub fn ask(address: SocketAddr) -> Result<()> {
    let second = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, second)?;
    stream.set_read_timeout(Some(second))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: shop\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 200 "), "it answers {answer:?}");
    Ok(())
}

/// Asks again and again; gives how many answers came and the longest time between two of them.
pub fn traffic(fleet: &Fleet, address: SocketAddr, stop: &AtomicBool) -> (usize, Duration) {
    let run = || {
        let (mut answers, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        while !stop.load(Ordering::Relaxed) {
            if ask(address).is_ok() {
                longest = longest.max(last.elapsed());
                (answers, last) = (answers + 1, Instant::now());
            }
            thread::sleep(Duration::from_millis(10));
        }
        (answers, longest.max(last.elapsed()))
    };
    fleet.cluster.in_network(run).unwrap()
}
