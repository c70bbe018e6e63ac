//! A hundred small tasks on a network of the cluster, from the command to all of them running: `wharf up`, Swarm, and the floor — the same
//! containers made and started by parallel calls to the engines, which nothing that uses these engines can beat.

use std::{
    net::Ipv4Addr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wharf_testkit::cluster::{Cluster, Node, Seed, try_wait_until};

use super::{PATIENCE, busy, busy_as, containers};
use crate::{Fleet, engine, items, swarm, text};

/// How many tasks.
pub const TASKS: usize = 100;
const FLOOR: &str = "floor";
/// How many containers of a node are made at once in the floor's laps that find out what is best.
const ATTEMPTS: [usize; 4] = [1, 2, 4, 8];
/// Often enough for the figure, and seldom enough to leave the processors to the others.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(40);
/// For what the lap before has left to do.
const REST: Duration = Duration::from_secs(3);

/// One lap.
#[derive(Debug, Clone, Copy)]
pub struct Lap {
    /// From the command to being told that all run, by whoever answers for them: the server, the manager, the engines.
    pub told: Duration,
    /// From the command to all having processes.
    pub there: Duration,
    /// How long processors were busy meanwhile.
    pub busy: Duration,
    /// How long with our own processes, the engine's, and containerd's.
    pub with: [Duration; 3],
}

impl Lap {
    /// A line of a table.
    pub fn line(&self, name: &str) -> String {
        let s = |time: Duration| time.as_secs_f64();
        let [ours, engine, containerd] = self.with.map(s);
        format!(
            "{name:18} {:>8.2} {:>8.2} {:>10.2} {ours:>8.2} {engine:>8.2} {containerd:>11.2}",
            s(self.told),
            s(self.there),
            s(self.busy),
        )
    }
    /// What stands above the lines.
    pub fn head() -> String {
        format!(
            "{:18} {:>8} {:>8} {:>10} {:>8} {:>8} {:>11}",
            "100 tasks: up, s", "told", "running", "processor", "wharf", "dockerd", "containerd"
        )
    }
}

/// Three machines that are a cluster of ours and a swarm.
#[derive(Debug)]
pub struct Arena {
    fleet: Fleet,
    /// What the engine is told for a container of ours, without what makes it ours.
    container: Value,
    /// How many containers of a node the floor makes at once.
    at_once: usize,
}

impl Arena {
    /// Starts the machines, and finds out how the floor is lowest.
    pub fn start(mut note: impl FnMut(&str)) -> Result<Self> {
        // Swarm refuses engines that keep containers alive over their own end.
        let machines = Cluster::builder().nodes(3).seed(Seed::basic()?).engine_arg("--live-restore=false");
        let fleet = Fleet::try_start(machines)?;
        swarm::join(&fleet.cluster, 1)?;
        fleet.node(1).docker(["network", "create", "-d", "overlay", "inside"])?;
        let mut arena = Self { fleet, container: Value::Null, at_once: ATTEMPTS[0] };
        arena.warm_up(&mut note)?;
        Ok(arena)
    }

    fn warm_up(&mut self, note: &mut impl FnMut(&str)) -> Result<()> {
        self.up()?;
        self.container = template(&self.fleet.node(1))?;
        self.down()?;
        for (number, node) in (1_u8..).zip(self.fleet.cluster.nodes()) {
            engine::ask(&node, "POST", "/networks/create", Some(&floor_network(number)))?;
        }
        let mut best = Duration::MAX;
        for at_once in ATTEMPTS {
            let lap = self.lap(|| self.make_floor(at_once))?;
            self.remove_floor()?;
            note(&format!("floor, {at_once} at once on each node: {:.2} s", lap.told.as_secs_f64()));
            if lap.told < best {
                (best, self.at_once) = (lap.told, at_once);
            }
        }
        Ok(())
    }

    /// `wharf up`, until it has said of every task that the server says it runs. Answers as well when the command ended, which watches for some seconds more whether
    /// tasks that nobody checks stay: what Swarm's command does, too, unless it is told to let go.
    pub fn ours(&self) -> Result<(Lap, Duration)> {
        let file = self.compose_file();
        let (since, mut up) = (Instant::now(), None);
        let lap = self.lap(|| {
            let up = up.insert(self.fleet.spawn(["up", "-y", "-f", &file]));
            // It says so of each task as soon as the server does.
            try_wait_until(PATIENCE, "the server says that all run", || {
                let said = up.log();
                thread::sleep(BETWEEN_QUESTIONS);
                let running = said.lines().filter(|line| line.contains(" running on ")).count();
                ensure!(running == TASKS || up.is_running(), "`wharf up` ended: {said}");
                ensure!(running == TASKS, "{running} run");
                Ok(())
            })
        })?;
        let mut up = up.context("nothing was started")?;
        let code = up.wait(PATIENCE)?;
        let ended = since.elapsed();
        ensure!(code == 0, "`wharf up` ended with {code}: {}", up.log());
        self.down()?;
        Ok((lap, ended))
    }

    /// `docker service create`, and asking the manager until all run.
    pub fn swarm(&self) -> Result<Lap> {
        let manager = self.fleet.node(1);
        let lap = self.lap(|| {
            let what = ["--stop-signal", "KILL", "busybox:1", "sleep", "1000000"];
            swarm::create(&manager, "many", TASKS, "inside", &what)?;
            try_wait_until(PATIENCE, "the swarm says that all run", || {
                let running = swarm::running(&manager, "many")?;
                thread::sleep(BETWEEN_QUESTIONS);
                ensure!(running == TASKS as u64, "{running} run");
                Ok(())
            })
        })?;
        manager.docker(["service", "rm", "many"])?;
        self.wait_for_rest()?;
        Ok(lap)
    }

    /// The engines alone.
    pub fn floor(&self) -> Result<Lap> {
        let lap = self.lap(|| self.make_floor(self.at_once))?;
        self.remove_floor()?;
        Ok(lap)
    }

    fn up(&self) -> Result<()> {
        self.fleet.try_wharf(["up", "-y", "-f", &self.compose_file()])?.text().map(drop)
    }

    fn compose_file(&self) -> String {
        let content = format!(
            "name: many\nservices:\n  web:\n    image: busybox:1\n    command: sleep 1000000\n    stop_signal: SIGKILL\n    deploy: {{replicas: {TASKS}}}\n"
        );
        self.fleet.file("many", &content)
    }

    fn down(&self) -> Result<()> {
        self.fleet.try_wharf(["down", "-y", "-p", "many"])?.text()?;
        self.wait_for_rest()
    }

    fn wait_for_rest(&self) -> Result<()> {
        let nodes = self.fleet.cluster.nodes();
        try_wait_until(PATIENCE, "no container is left", || {
            let left = containers(&nodes);
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
        thread::sleep(REST);
        Ok(())
    }

    fn lap(&self, act: impl FnOnce() -> Result<()>) -> Result<Lap> {
        let cluster = &self.fleet.cluster;
        let with = || ["wharf", "dockerd", "containerd"].map(|name| busy_as(cluster, name));
        let (busy_before, with_before) = (busy()?, with());
        let (since, over) = (Instant::now(), AtomicBool::new(false));
        let nodes = cluster.nodes();
        let (told, there) = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                while containers(&nodes) < TASKS {
                    if over.load(Ordering::Relaxed) {
                        return None;
                    }
                    thread::sleep(Duration::from_millis(40));
                }
                Some(since.elapsed())
            });
            let acted = act();
            let told = since.elapsed();
            over.store(acted.is_err() || containers(&nodes) < TASKS, Ordering::Relaxed);
            let there = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            acted?;
            anyhow::Ok((told, there.context("not all containers run that are said to run")?))
        })?;
        let mut spent = with();
        spent.iter_mut().zip(with_before).for_each(|(now, before)| *now = now.saturating_sub(before));
        Ok(Lap { told, there, busy: busy()?.saturating_sub(busy_before), with: spent })
    }

    fn make_floor(&self, at_once: usize) -> Result<()> {
        let nodes = self.fleet.cluster.nodes();
        let next: Vec<_> = nodes.iter().map(|_| AtomicUsize::new(0)).collect();
        let failed = Mutex::new(None);
        thread::scope(|scope| {
            for ((number, node), next) in (0..).zip(&nodes).zip(&next) {
                let (share, failed) = (share(number, nodes.len()), &failed);
                for _ in 0..at_once {
                    scope.spawn(move || {
                        loop {
                            let turn = next.fetch_add(1, Ordering::Relaxed);
                            if turn >= share {
                                return;
                            }
                            if let Err(error) = self.make_one(node, turn) {
                                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                                return;
                            }
                        }
                    });
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn make_one(&self, node: &Node, turn: usize) -> Result<()> {
        let mut body = self.container.clone();
        let host = u8::try_from(turn + 10).context("too many containers for a network of the floor")?;
        let address = Ipv4Addr::new(172, 29, node.index(), host).to_string();
        body["NetworkingConfig"] =
            json!({"EndpointsConfig": {FLOOR: {"IPAMConfig": {"IPv4Address": address}}}});
        let path = format!("/containers/create?name={FLOOR}-{turn}");
        let made = engine::ask(node, "POST", &path, Some(&body))?;
        engine::ask(node, "POST", &format!("/containers/{}/start", text(&made["Id"])), None).map(drop)
    }

    fn remove_floor(&self) -> Result<()> {
        thread::scope(|scope| {
            let removals: Vec<_> = self
                .fleet
                .cluster
                .nodes()
                .into_iter()
                .map(|node| {
                    scope.spawn(move || -> Result<()> {
                        let filters = format!(r#"{{"label":["{FLOOR}"]}}"#).replace('"', "%22");
                        let path = format!("/containers/json?all=1&filters={filters}");
                        let found = engine::ask(&node, "GET", &path, None)?;
                        for container in items(&found) {
                            let path = format!("/containers/{}?force=1", text(&container["Id"]));
                            engine::ask(&node, "DELETE", &path, None)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            removals.into_iter().try_for_each(|removal| {
                removal.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        self.wait_for_rest()
    }
}

/// How many of the containers a node has, as evenly as it goes.
fn share(number: usize, nodes: usize) -> usize {
    TASKS / nodes + usize::from(number < TASKS % nodes)
}

/// The bridge of a node that the floor's containers are on: as one of ours, with another range.
fn floor_network(number: u8) -> Value {
    json!({
        "Name": FLOOR,
        "Driver": "bridge",
        "IPAM": {"Config": [{
            "Subnet": "172.29.0.0/16",
            "IPRange": format!("172.29.{number}.0/24"),
            "Gateway": format!("172.29.{number}.1"),
        }]},
        "Options": {
            "com.docker.network.bridge.name": "floor0",
            "com.docker.network.driver.mtu": "1450",
        },
    })
}

/// What a container of ours on this node was made of, for the floor's network and without our labels: nobody is to look after it.
fn template(node: &Node) -> Result<Value> {
    let found = engine::ask(node, "GET", "/containers/json", None)?;
    let ours = items(&found).iter().find(|container| container["Labels"]["wharf.app"] == "many");
    let ours = ours.context("no container of ours runs on n1")?;
    let facts = engine::ask(node, "GET", &format!("/containers/{}/json", text(&ours["Id"])), None)?;
    let mut body = facts["Config"].clone();
    body["HostConfig"] = facts["HostConfig"].clone();
    body["HostConfig"]["NetworkMode"] = json!(FLOOR);
    body["Labels"] = json!({FLOOR: "1"});
    for one_of_a_kind in ["Hostname", "MacAddress"] {
        body[one_of_a_kind] = json!("");
    }
    Ok(body)
}
