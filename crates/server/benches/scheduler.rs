//! What a commit to the store adds to placing tasks: the controller of apps as the server runs it, with its store on this disk, and with an
//! etcd where there is one.
//!
//! `./x bench scheduler`, after the bench of the same name in `crates/engine`, which measures deciding alone. `--store FOLDER` says on which
//! disk the stores are. Timed is from the releases being in the store until every task is there, and to be read again.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends where it cannot go on")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

#[path = "../../engine/benches/scheduler/cluster.rs"]
#[expect(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "the other bench uses all of it; figures are small"
)]
mod cluster;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::{Cluster, NOW, Rules};
use tokio::sync::watch;
use wharf_model::{AppKey, ServerId};
use wharf_process::{Shutdown, SystemClock, Tasks};
use wharf_server::{
    controllers::{Context, apps::Apps, commit::Committer, drive},
    leader::Lead,
    records::{Key, LeaderRecord, encode},
    seal::SealKey,
    state::State,
};
use wharf_store::{Backend, Batch, Embedded, Etcd, contract::members::Members, etcd};

const NODES: [usize; 2] = [1000, 5000];
/// So many apps with so many tasks each are released at once.
const APPS: usize = 200;
const TASKS_OF_AN_APP: usize = 100;
const CPUS: u64 = 50;
const SOON: Duration = Duration::from_secs(300);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut parts) = (PathBuf::from("."), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--store" => folder = arguments.next().map_or(folder, PathBuf::from),
            // These are the other bench's.
            "--data" | "--seeds" => drop(arguments.next()),
            other if other.starts_with('-') => {}
            other => parts.push(other.to_owned()),
        }
    }
    if !parts.is_empty() && !parts.iter().any(|part| part == "durable") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut goals = Vec::new();
    println!("durable: {APPS} apps of {TASKS_OF_AN_APP} tasks released at once, by the server's controller");
    println!("nodes   store     rules          tasks/s   commits/s  tasks per commit");
    for nodes in NODES {
        for rules in [Rules::Plain, Rules::Spread] {
            let speed = embedded(&runtime, &folder, nodes, rules);
            if nodes == 5000 {
                goals.push(speed);
            }
        }
    }
    let slowest = goals.iter().copied().fold(f64::MAX, f64::min);
    with_etcd(&runtime, &folder);
    let verdict = if slowest >= 8000.0 { "met" } else { "short" };
    println!("goal placements_per_second_durable_5000_nodes {slowest:.0} 8000 {verdict}");
}

fn embedded(runtime: &tokio::runtime::Runtime, folder: &Path, nodes: usize, rules: Rules) -> f64 {
    let folder = tempfile::Builder::new().prefix("scheduler-bench-").tempdir_in(folder).unwrap();
    runtime.block_on(async {
        let store = Embedded::open(folder.path().join("store")).await.unwrap();
        let measured = measure(Arc::new(store.clone()), nodes, rules).await;
        measured.print(nodes, "redb", rules);
        measured.per_second()
    })
}

fn with_etcd(runtime: &tokio::runtime::Runtime, folder: &Path) {
    for rules in [Rules::Plain, Rules::Spread] {
        let folder = tempfile::Builder::new().prefix("scheduler-bench-").tempdir_in(folder).unwrap();
        let members = match Members::start(folder.path(), 1, &[]) {
            Ok(members) => members,
            Err(error) => return println!("etcd: left out, it does not start: {error}"),
        };
        runtime.block_on(async {
            let store = Etcd::connect(etcd::Options::new(members.endpoints())).await.unwrap();
            measure(Arc::new(store), 5000, rules).await.print(5000, "etcd", rules);
        });
    }
}

struct Measured {
    tasks: usize,
    commits: u64,
    time: Duration,
}
impl Measured {
    fn per_second(&self) -> f64 {
        self.tasks as f64 / self.time.as_secs_f64()
    }
    fn print(&self, nodes: usize, store: &str, rules: Rules) {
        println!(
            "{nodes:6}  {store:8}  {:12}  {:8.0}  {:9.0}  {:8.1}",
            rules.as_str(),
            self.per_second(),
            self.commits as f64 / self.time.as_secs_f64(),
            self.tasks as f64 / self.commits as f64
        );
    }
}

async fn measure(store: Arc<dyn Backend>, nodes: usize, rules: Rules) -> Measured {
    let state = State::load(store, SealKey::new([7; 32])).await.unwrap();
    let shutdown = Shutdown::new();
    let tasks = Tasks::new(&shutdown);
    tasks.spawn("watch", Arc::clone(&state).follow(tasks.token()));
    let lead = begin(&state, nodes, rules).await;

    let before = state.read().revision();
    let started = Instant::now();
    // Nobody leads until now, so nothing has been decided.
    let (_leads, leads) = watch::channel(Some(lead));
    let clock = Arc::new(SystemClock::new());
    let context = Context { state: Arc::clone(&state), lead: leads, clock, counters: Arc::default() };
    let mut visible = state.visible();
    tasks.spawn("apps", drive(context, Apps::default(), tasks.token()));
    let wanted = APPS * TASKS_OF_AN_APP;
    let all = async {
        while state.read().world.task_count() < wanted {
            visible.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, all).await.expect("every task is made in time");
    let time = started.elapsed();
    let commits = state.read().revision().0 - before.0;
    assert!(state.read().world.tasks().all(|task| task.node.is_some()), "every task has a node");
    shutdown.request();
    let stopped = tasks.shutdown(Duration::from_secs(5)).await;
    assert!(stopped.failure.is_none(), "{stopped:?}");
    Measured { tasks: wanted, commits, time }
}

/// Nodes and releases as they come into the store, and the right to decide about them.
async fn begin(state: &State, nodes: usize, rules: Rules) -> Lead {
    let mut cluster = Cluster::of(nodes);
    for node in cluster.world.nodes() {
        let id = node.record.id;
        let (record, status) = (Key::Node(id), Key::NodeStatus(id));
        let batch = Batch::new().put(record.to_string(), encode(&record, &node.record));
        let known = node.status.as_ref().unwrap();
        state.commit(batch.put(status.to_string(), encode(&status, known))).await.unwrap();
    }
    let mut apps: Vec<AppKey> = Vec::new();
    for _ in 0..APPS {
        let spec = cluster.app(TASKS_OF_AN_APP, rules, CPUS, false);
        let changes = cluster.released(&spec);
        let batches = {
            let inner = state.read();
            let mut committer = Committer::whole(&inner, NOW);
            changes.into_iter().for_each(|change| committer.change(change, &mut cluster.ids));
            committer.finish()
        };
        for batch in batches {
            state.commit(batch).await.unwrap();
        }
        apps.push(cluster::app_key(spec.name.as_str()));
    }
    assert_eq!(state.read().world.apps().count(), apps.len());
    let leader = LeaderRecord { server: ServerId::from_parts(1, [1; 10]), term: 1, since: NOW };
    let fence = state.commit(Batch::new().put("leader", encode(&Key::Leader, &leader))).await.unwrap();
    Lead { term: 1, fence }
}
