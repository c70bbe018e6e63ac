//! What loading and normalising Compose files costs: the largest file of the corpus in this process and, as whole
//! processes, `wharf config` against the reference's `config`; and the time per service as files grow.
//!
//! `./x bench compose`. For the comparison of processes there must be a released `wharf` (`cargo build --release`) and a
//! `docker-compose` or `docker compose` of the second version; `WHARF_BENCH_REFERENCE` names another program. Both print the
//! same file, and take turns; medians count.

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
/// How much longer than in a small file a service may take in a large one.
const FLAT: f64 = 1.5;

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
        Some(file) => {
            in_process(&file, &mut goals)?;
            whole_processes(&file, &mut goals)?;
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

/// The largest file that the corpus has as the only one of a case.
fn largest_of_corpus() -> Result<Option<PathBuf>, Box<dyn std::error::Error>> {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/compose-corpus"));
    let Ok(cases) = std::fs::read_to_string(corpus.join("cases.jsonl")) else { return Ok(None) };
    let mut largest: Option<(u64, PathBuf)> = None;
    for case in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(case)?;
        let (Some(folder), Some([file])) =
            (case["dir"].as_str(), case["files"].as_array().map(Vec::as_slice))
        else {
            continue;
        };
        let path = corpus.join(folder).join(file.as_str().unwrap_or_default());
        let size = std::fs::metadata(&path).map_or(0, |found| found.len());
        let request = Request { files: vec![path.clone()], ..Request::default() };
        let larger = largest.as_ref().is_none_or(|(other, _)| size > *other);
        if larger && project(&request, &Disk).project.is_some() {
            largest = Some((size, path));
        }
    }
    Ok(largest.map(|(_, path)| path))
}

fn in_process(file: &Path, goals: &mut Goals) -> Result<(), Box<dyn std::error::Error>> {
    let path = file.canonicalize()?;
    let request = Request { files: vec![path.clone()], allow_unsupported: true, ..Request::default() };
    let normalised = median(|| {
        timed(|| project(&request, &Disk).project.map(|project| project.to_yaml().len()).unwrap_or_default())
    });
    let loaded = median(|| timed(|| load(&request, &Disk)));
    println!("{} ({} bytes), median of {ROUNDS}:", path.display(), std::fs::metadata(&path)?.len());
    println!("  loaded, normalised and printed {:.3} ms", milliseconds(normalised));
    println!("  loaded as an app               {:.3} ms", milliseconds(loaded));
    goals.at_most("largest_corpus_file_normalised_ms", milliseconds(normalised), 9.0);
    goals.at_most("largest_corpus_file_loaded_ms", milliseconds(loaded), 9.0);
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
    let path = file.canonicalize()?;
    let run = |program: &[String]| -> io::Result<Duration> {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg("-f").arg(&path).arg("config");
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
    println!("services  bytes     normalised ms  us per service  as an app ms  us per service");
    let mut per_service: Vec<(f64, f64)> = Vec::new();
    for services in [10, 100, 1000] {
        let text = generated(services);
        let files: BTreeMap<PathBuf, Vec<u8>> =
            [("/app/compose.yaml".into(), text.clone().into_bytes())].into();
        let request = Request { files: vec!["/app/compose.yaml".into()], ..Request::default() };
        let normalised =
            median(|| timed(|| project(&request, &files).project.map(|project| project.to_yaml().len())));
        let loaded = median(|| timed(|| load(&request, &files)));
        assert!(load(&request, &files).app.is_some(), "the generated file is right");
        let each = |time: Duration| milliseconds(time) * 1000.0 / f64::from(services);
        println!(
            "{services:8}  {:8}  {:13.2}  {:14.1}  {:12.2}  {:14.1}",
            text.len(),
            milliseconds(normalised),
            each(normalised),
            milliseconds(loaded),
            each(loaded)
        );
        per_service.push((each(normalised), each(loaded)));
    }
    let (hundred, thousand) = (per_service[1], per_service[2]);
    goals.at_most("time_per_service_normalised_1000_x_100", thousand.0 / hundred.0, FLAT);
    goals.at_most("time_per_service_loaded_1000_x_100", thousand.1 / hundred.1, FLAT);
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
