//! The simulated cluster by hand: plays what chance makes of seeds, plays scenarios again, and finds small ones that still fail.
//!
//! Each scenario is played by a process of its own, which has drawn nothing before and can be given up.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to people")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use parking_lot::Mutex;
use wharf_testkit::sim::{Outcome, Scenario, play, shrink::shrink};

/// Simulates whole clusters, hours in seconds, with faults.
#[derive(Parser)]
#[command(name = "wharf-sim")]
struct Arguments {
    /// Simulated hours in all.
    #[arg(long, default_value_t = 20.0)]
    hours: f64,
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// The first seed; each scenario has the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulated hours of one scenario, about.
    #[arg(long, default_value_t = 2.0)]
    each: f64,
    /// Scenarios at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Runs spent on finding a small scenario for each failure; 0 does not try.
    #[arg(long, default_value_t = 120)]
    shrink: usize,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Print what chance makes of a seed.
    Show,
    /// Play a scenario from a file, or from standard input, and show what happened.
    Replay {
        /// The file.
        file: Option<PathBuf>,
        /// What the processes log, such as `debug` or `wharf_server=debug`.
        #[arg(long)]
        log: Option<String>,
        /// Find a small scenario that fails the same way.
        #[arg(long)]
        smaller: bool,
    },
    /// Play the scenario on standard input, and print the outcome as JSON.
    #[command(hide = true)]
    One,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match &arguments.verb {
        None => run(&arguments),
        Some(Verb::Show) => {
            print!("{}", Scenario::of_seed(arguments.seed, arguments.nodes, arguments.each));
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::Replay { file, log, smaller }) => {
            let scenario = read(file.as_ref())?;
            if *smaller {
                let failed = play_apart(&scenario)?;
                let violation = failed.violation.context("it does not fail")?;
                println!("{violation}\n\n{}", smallest(&scenario, &violation.invariant, arguments.shrink));
                return Ok(ExitCode::FAILURE);
            }
            if let Some(filter) = log {
                wharf_testkit::sim::log_to_stderr(filter);
            }
            let outcome = play_here(&scenario)?;
            println!("{}", serde_json::to_string_pretty(&outcome)?);
            Ok(if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Some(Verb::One) => {
            let outcome = play_here(&read(None)?)?;
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn read(file: Option<&PathBuf>) -> Result<Scenario> {
    let text = match file {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
    };
    text.parse().context("this is no scenario: one line of JSON for the cluster, and one for each act")
}

fn play_here(scenario: &Scenario) -> Result<Outcome> {
    // Files of simulated disks belong into memory.
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder =
        tempfile::Builder::new().prefix("wharf-sim").tempdir_in(parent).context("no folder for nodes")?;
    Ok(play(scenario, folder.path()))
}

/// Plays a scenario in a process of its own.
fn play_apart(scenario: &Scenario) -> Result<Outcome> {
    let program = std::env::current_exe().context("where is this program?")?;
    let mut child = Command::new(program)
        .arg("one")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start a process for a cluster")?;
    child.stdin.take().context("it has a standard input")?.write_all(scenario.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the process of seed {} ended with {}", scenario.seed, output.status);
    serde_json::from_slice(&output.stdout).context("it says how it went")
}

fn smallest(scenario: &Scenario, invariant: &str, attempts: usize) -> Scenario {
    shrink(scenario, attempts, |tried| {
        let outcome = play_apart(tried);
        outcome.is_ok_and(|outcome| outcome.violation.is_some_and(|found| found.invariant == invariant))
    })
}

/// What all scenarios showed together.
#[derive(Default)]
struct Total {
    outcome: Outcome,
    scenarios: u64,
    failures: Vec<(u64, String)>,
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    let wanted = arguments.hours * 3_600_000.0;
    let (next, total) = (AtomicU64::new(arguments.seed), Mutex::new(Total::default()));
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while (total.lock().outcome.simulated as f64) < wanted {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let scenario = Scenario::of_seed(seed, arguments.nodes, arguments.each);
                let outcome = play_apart(&scenario)?;
                let violation = outcome.violation.clone();
                add(&mut total.lock(), outcome);
                if let Some(violation) = violation {
                    total.lock().failures.push((seed, violation.to_string()));
                    eprintln!("seed {seed} failed {violation}");
                    if arguments.shrink > 0 {
                        let small = smallest(&scenario, &violation.invariant, arguments.shrink);
                        eprintln!("the smallest scenario found that fails so (`wharf-sim replay`):\n{small}");
                    }
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("workers do not panic"))
    })?;
    let total = total.lock();
    report(&total, arguments, began.elapsed().as_secs_f64());
    Ok(if total.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn add(total: &mut Total, outcome: Outcome) {
    total.scenarios += 1;
    let sum = &mut total.outcome;
    sum.simulated += outcome.simulated;
    sum.revisions += outcome.revisions;
    sum.checks += outcome.checks;
    sum.rests += outcome.rests;
    sum.longest_rest = sum.longest_rest.max(outcome.longest_rest);
    let merge = |into: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>| {
        from.into_iter().for_each(|(kind, count)| *into.entry(kind).or_default() += count);
    };
    merge(&mut sum.acts, outcome.acts);
    merge(&mut sum.answers, outcome.answers);
}

fn report(total: &Total, arguments: &Arguments, seconds: f64) {
    let sum = &total.outcome;
    let hours = sum.simulated as f64 / 3_600_000.0;
    println!(
        "simulated            {hours:.1} cluster-hours of {} nodes in {} scenarios",
        arguments.nodes, total.scenarios
    );
    println!(
        "wall time            {seconds:.0} s with {} at once ({:.0} simulated per real second)",
        arguments.jobs.max(1),
        hours * 3600.0 / seconds.max(0.001)
    );
    println!("commits of the store {}", sum.revisions);
    println!("invariant checks     {}", sum.checks);
    println!(
        "came to rest         {} times, after {:.0} s at most",
        sum.rests,
        sum.longest_rest as f64 / 1000.0
    );
    println!("what happened");
    for (kind, count) in &sum.acts {
        println!("  {kind:<20} {count}");
    }
    println!("what people were answered");
    for (what, count) in &sum.answers {
        println!("  {what:<34} {count}");
    }
    println!("failures             {}", total.failures.len());
    for (seed, violation) in &total.failures {
        println!("  seed {seed}: {violation}");
    }
}
