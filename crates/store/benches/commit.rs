//! How many commits a second the embedded store makes durable, against the floor: a write of the same
//! bytes and an `fdatasync` for each, one after the other, which is what a store without group
//! commit could do at best.
//!
//! `cargo bench -p wharf-store [-- FOLDER]`; the folder says on which disk, and is the present one by
//! default. Floor and store take turns, and the medians of the ratios are what counts.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use wharf_store::{Backend, Batch, Embedded};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
/// How many write at once, and how many times the floor is good enough.
const GOALS: [(usize, f64); 3] = [(1, 0.8), (16, 8.0), (128, 16.0)];
const VALUE: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What cargo itself appends begins with a dash.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder =
        tempfile::Builder::new().prefix("store-bench-").tempdir_in(folder.as_deref().unwrap_or("."))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("writers  commits/s  per transaction  floor/s  ratio (median of {ROUNDS}; lowest, highest)");
    let mut goals = Vec::new();
    for (writers, target) in GOALS {
        let mut rounds: Vec<Round> = Vec::new();
        for round in 0..ROUNDS {
            let floor = floor(folder.path())?;
            let path = folder.path().join(format!("{writers}-{round}.db"));
            rounds.push(runtime.block_on(measure(&path, writers, floor))?);
        }
        rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let (lowest, highest) = (rounds[0].ratio(), rounds[ROUNDS - 1].ratio());
        let median = &rounds[ROUNDS / 2];
        println!(
            "{writers:7}  {:9.0}  {:15.1}  {:7.0}  {:5.2} ({lowest:.2}, {highest:.2})",
            median.commits,
            median.group,
            median.floor,
            median.ratio()
        );
        let verdict = if median.ratio() >= target { "met" } else { "short" };
        goals.push(format!(
            "goal commits_of_{writers}_writers_x_floor {:.2} {target} {verdict}",
            median.ratio()
        ));
    }
    goals.iter().for_each(|goal| println!("{goal}"));
    Ok(())
}

/// Per second, except `group`.
struct Round {
    commits: f64,
    floor: f64,
    /// Commits in a transaction.
    group: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.commits / self.floor
    }
}

fn floor(folder: &Path) -> std::io::Result<f64> {
    let mut file = File::create(folder.join("floor"))?;
    let (started, mut count) = (Instant::now(), 0_u32);
    while started.elapsed() < ROUND {
        file.write_all(&[1; VALUE])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

async fn measure(path: &Path, writers: usize, floor: f64) -> Result<Round, Box<dyn std::error::Error>> {
    let store = Arc::new(Embedded::open(path).await?);
    let started = Instant::now();
    let writer = |writer: usize| {
        let store = Arc::clone(&store);
        async move {
            let mut n = 0_u64;
            while started.elapsed() < ROUND {
                store.commit(Batch::new().put(format!("task/{writer}/{}", n % 1000), vec![1; VALUE])).await?;
                n += 1;
            }
            Ok::<_, wharf_store::StoreError>(())
        }
    };
    for outcome in join_all((0..writers).map(writer)).await {
        outcome?;
    }
    let (elapsed, stats) = (started.elapsed().as_secs_f64(), store.stats());
    let (commits, transactions) = (stats.commits as f64, stats.transactions as f64);
    // A check in the same run: what was counted is there.
    let last = store.read("").await?;
    assert_eq!(last.revision.0, stats.commits, "every commit has a revision");
    Ok(Round { commits: commits / elapsed, floor, group: commits / transactions })
}
