//! What loading and normalising Compose files costs: the largest file of the corpus in this process and, as whole
//! processes, `wharf config` against the reference's `config`; and the time per service as files grow.
//!
//! `./x bench compose`. For the comparison of processes there must be a released `wharf` (`cargo build --release`) and a
//! `docker-compose` or `docker compose` of the second version; `WHARF_BENCH_REFERENCE` names another program. Both print the
//! same file with the same variables, and take turns; medians count.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wharf_compose::{Files, Request, load, project};

const ROUNDS: usize = 41;
/// How much longer a service may take in a file of 1,000 than in one of 10. Nothing is subtracted for what a file costs
/// whatever is in it. The work per service is the same, and a search among all services for each would show as a factor
/// near 100; but the tree of 10 fits into the processor's caches and that of 1,000 may not.
const FLAT: f64 = 1.5;
/// What the corpus was normalised with, and what its largest right file requires.
const VARIABLES: [(&str, &str); 5] = [
    ("HOME", "/home/conf"),
    ("USER", "conf"),
    ("DOMAIN", "example.org"),
    ("ADMIN_USER", "admin"),
    ("HASHED_PASSWORD", "secret"),
];

struct Disk;
impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
}

struct Goals(Vec<String>);
impl Goals {
    fn at_most(&mut self, name: &str, value: f64, target: f64) {
        let verdict = if value <= target { "met" } else { "short" };
        self.0.push(format!("goal {name} {value:.2} {target} {verdict}"));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut goals = Goals(Vec::new());
    match largest_of_corpus()? {
        Some(Largest { right, any }) => {
            in_process("largest_accepted_corpus_file", &right, &mut goals)?;
            in_process("largest_corpus_file", &any, &mut goals)?;
            whole_processes(&right, &mut goals)?;
        }
        None => println!("there is no corpus here: only generated files are measured"),
    }
    as_files_grow(&mut goals);
    goals.0.iter().for_each(|goal| println!("{goal}"));
    Ok(())
}

fn median(mut act: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| act()).collect();
    times.sort();
    times[ROUNDS / 2]
}

fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let begun = Instant::now();
    black_box(act());
    begun.elapsed()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The largest files of the corpus that are alone in a case.
struct Largest {
    /// Of those without a mistake.
    right: PathBuf,
    /// Of all: it is read to its end whatever is wrong with it.
    any: PathBuf,
}

fn variables() -> BTreeMap<String, String> {
    VARIABLES.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn request_for(path: &Path) -> Request {
    let environment = variables();
    Request { files: vec![path.to_owned()], environment, allow_unsupported: true, ..Request::default() }
}

fn largest_of_corpus() -> Result<Option<Largest>, Box<dyn std::error::Error>> {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/compose-corpus"));
    let Ok(cases) = std::fs::read_to_string(corpus.join("cases.jsonl")) else { return Ok(None) };
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for case in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(case)?;
        let (Some(folder), Some([file])) =
            (case["dir"].as_str(), case["files"].as_array().map(Vec::as_slice))
        else {
            continue;
        };
        let path = corpus.join(folder).join(file.as_str().unwrap_or_default()).canonicalize()?;
        files.push((std::fs::metadata(&path)?.len(), path));
    }
    files.sort();
    let any = files.last().map(|(_, path)| path.clone());
    let right = files.into_iter().rev().map(|(_, path)| path);
    let right = right.into_iter().find(|path| project(&request_for(path), &Disk).project.is_some());
    Ok(right.zip(any).map(|(right, any)| Largest { right, any }))
}

fn in_process(name: &str, path: &Path, goals: &mut Goals) -> Result<(), Box<dyn std::error::Error>> {
    let request = request_for(path);
    let normalised = median(|| {
        timed(|| project(&request, &Disk).project.map(|project| project.to_yaml().len()).unwrap_or_default())
    });
    let loaded = median(|| timed(|| load(&request, &Disk)));
    let errors = project(&request, &Disk).diagnostics.iter().filter(|found| found.is_error()).count();
    let bytes = std::fs::metadata(path)?.len();
    println!("{} ({bytes} bytes, {errors} errors), median of {ROUNDS}:", path.display());
    println!("  loaded, normalised and printed {:.3} ms", milliseconds(normalised));
    println!("  loaded as an app               {:.3} ms", milliseconds(loaded));
    goals.at_most(&format!("{name}_normalised_ms"), milliseconds(normalised), 9.0);
    goals.at_most(&format!("{name}_loaded_ms"), milliseconds(loaded), 9.0);
    Ok(())
}

fn whole_processes(file: &Path, goals: &mut Goals) -> Result<(), Box<dyn std::error::Error>> {
    let ours = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/wharf"));
    let Some(reference) = reference() else {
        println!("there is no Compose of the second version here to compare with");
        return Ok(());
    };
    if !ours.exists() {
        println!("there is no released wharf: cargo build --release --package wharf");
        return Ok(());
    }
    let run = |program: &[String]| -> io::Result<Duration> {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg("-f").arg(file).arg("config").env_clear().envs(VARIABLES);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        let time = begun.elapsed();
        if status.success() {
            Ok(time)
        } else {
            Err(io::Error::other(format!("{program:?} ended with {status}")))
        }
    };
    let ours = [ours.display().to_string()];
    let (mut wharf, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mine, theirs) = (run(&ours)?, run(&reference)?);
        ratios.push(mine.as_secs_f64() / theirs.as_secs_f64());
        wharf.push(mine);
        other.push(theirs);
    }
    wharf.sort();
    other.sort();
    ratios.sort_by(f64::total_cmp);
    let (mine, theirs) = (milliseconds(wharf[ROUNDS / 2]), milliseconds(other[ROUNDS / 2]));
    println!(
        "whole processes, median of {ROUNDS}: wharf config {mine:.1} ms, {} config {theirs:.1} ms",
        reference.join(" ")
    );
    goals.at_most("config_process_x_reference", ratios[ROUNDS / 2], 0.5);
    Ok(())
}

/// A program that is the reference implementation, with its first arguments.
fn reference() -> Option<Vec<String>> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark asks its caller")]
    let named = std::env::var("WHARF_BENCH_REFERENCE").ok();
    let named = named.map(|program| vec![program]);
    let usual = [vec!["docker".to_owned(), "compose".to_owned()], vec!["docker-compose".to_owned()]];
    named.into_iter().chain(usual).find(|program| {
        let output = Command::new(&program[0]).args(&program[1..]).arg("version").output();
        output.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success() && text.contains("Compose") && !text.contains("version 1.")
        })
    })
}

fn as_files_grow(goals: &mut Goals) {
    const SIZES: [u32; 3] = [10, 100, 1000];
    let files = SIZES.map(|services| -> BTreeMap<PathBuf, Vec<u8>> {
        [("/app/compose.yaml".into(), generated(services).into_bytes())].into()
    });
    let request = Request { files: vec!["/app/compose.yaml".into()], ..Request::default() };
    for files in &files {
        assert!(load(&request, files).app.is_some(), "the generated file is right");
    }
    let normalise = |files: &BTreeMap<PathBuf, Vec<u8>>| {
        project(&request, files).project.map_or(0, |project| project.to_yaml().len())
    };
    let load = |files: &BTreeMap<PathBuf, Vec<u8>>| load(&request, files).diagnostics.len();
    let normalised = each_service(&files, SIZES, normalise);
    let loaded = each_service(&files, SIZES, load);
    println!("us per service, median of {ROUNDS} turns in which every file loads a thousand services:");
    println!("services  bytes     normalised  as an app");
    for (index, services) in SIZES.into_iter().enumerate() {
        let bytes: usize = files[index].values().map(Vec::len).sum();
        println!("{services:8}  {bytes:8}  {:10.1}  {:9.1}", normalised.0[index], loaded.0[index]);
    }
    goals.at_most("time_per_service_normalised_1000_x_10", normalised.1, FLAT);
    goals.at_most("time_per_service_loaded_1000_x_10", loaded.1, FLAT);
}

/// Microseconds per service with each of the files, and how much more the last takes than the first. They take turns, so that
/// what else the machine does slows all of them.
fn each_service<const N: usize>(
    files: &[BTreeMap<PathBuf, Vec<u8>>; N],
    sizes: [u32; N],
    act: impl Fn(&BTreeMap<PathBuf, Vec<u8>>) -> usize,
) -> ([f64; N], f64) {
    let mut times = [const { Vec::new() }; N];
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        for (index, files) in files.iter().enumerate() {
            let rounds = 1000 / sizes[index];
            let time = timed(|| (0..rounds).map(|_| black_box(act(files))).sum::<usize>());
            times[index].push(milliseconds(time) * 1000.0 / f64::from(rounds * sizes[index]));
        }
        let latest = |index: usize| times[index].last().copied().unwrap_or(f64::NAN);
        ratios.push(latest(N - 1) / latest(0));
    }
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    (times.map(middle), middle(ratios))
}

/// A file of services as people write them, each of which needs the one before it.
fn generated(services: u32) -> String {
    let mut text = String::from("x-log: &log {driver: json-file, options: {max-size: 10m}}\nservices:\n");
    for n in 0..services {
        let port = 10_000 + n;
        let _ = write!(
            text,
            "  service-{n}:\n    image: registry.example/team/service-{n}:${{TAG:-1.{n}}}\n    restart: unless-stopped\n    \
             logging: *log\n    ports:\n      - \"{port}:80\"\n    environment:\n      NUMBER: {n}\n      URL: \
             http://service-{n}:80/\n      LEVEL: ${{LEVEL:-info}}\n    volumes:\n      - data-{n}:/var/lib/data\n    \
             networks: [front, back]\n    labels:\n      - team=example\n    healthcheck:\n      test: [CMD, wget, -q, \
             http://localhost/]\n      interval: 10s\n    deploy:\n      resources:\n        limits: {{cpus: '0.5', memory: \
             256M}}\n"
        );
        if n > 0 {
            let _ =
                write!(text, "    depends_on:\n      service-{}: {{condition: service_healthy}}\n", n - 1);
        }
    }
    text.push_str("networks:\n  front:\n  back:\nvolumes:\n");
    for n in 0..services {
        let _ = writeln!(text, "  data-{n}:");
    }
    text
}
