//! A short fuzz run of the loader that is the same every time: texts that are nearly Compose files, and of every answer
//! what `case` says of it. `cargo fuzz` runs the same check on inputs of its own (see `fuzz/README.md`).
//!
//! `WHARF_FUZZ_SECONDS` makes the run longer, `WHARF_FUZZ_SEED` begins it elsewhere; what fails is printed whole, and
//! `WHARF_FUZZ_INPUT` is the number of one input to look at again.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it did")]

mod case;
mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use mutate::{Chance, TEXTS};

/// Enough for seconds of an unoptimised build.
const ITERATIONS: u64 = 2_500;

#[expect(clippy::disallowed_methods, reason = "how long to run is the caller's")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Texts of ours, and some of the corpus, where it is at hand.
fn seeds() -> Vec<String> {
    let mut seeds: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/compose-corpus"));
    let Ok(cases) = std::fs::read_to_string(corpus.join("cases.jsonl")) else {
        println!("without the corpus: there is none at {}", corpus.display());
        return seeds;
    };
    for case in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(case).unwrap();
        let folder = corpus.join(case["dir"].as_str().unwrap());
        let name = case["files"][0].as_str().unwrap();
        if let Ok(text) = std::fs::read_to_string(folder.join(name)) {
            seeds.push(text);
        }
    }
    seeds
}

#[test]
fn nearly_right_files_never_surprise_the_loader() {
    let seeds = seeds();
    if let Some(number) = setting("WHARF_FUZZ_INPUT") {
        let input = mutate::input(&mut Chance(number), &seeds);
        println!("{}", String::from_utf8_lossy(&input));
        case::check(&input);
        return;
    }
    let begun = Instant::now();
    let length = setting("WHARF_FUZZ_SECONDS").map(Duration::from_secs);
    let seed = setting("WHARF_FUZZ_SEED").unwrap_or(1);
    let (mut accepted, mut bytes, mut slowest) = (0_u64, 0, (Duration::ZERO, 0, 0));
    let mut iteration = 0_u64;
    while length.map_or(iteration < ITERATIONS, |length| begun.elapsed() < length) {
        let number = (seed << 40) + iteration;
        let input = mutate::input(&mut Chance(number), &seeds);
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| case::check(&input))) {
            Ok(outcome) => accepted += u64::from(outcome.accepted),
            Err(panic) => {
                println!("input {number}:\n{}\n-----", String::from_utf8_lossy(&input));
                resume_unwind(panic);
            }
        }
        bytes += input.len();
        slowest = slowest.max((start.elapsed(), number, input.len()));
        iteration += 1;
    }
    let (time, number, length) = slowest;
    println!("{iteration} inputs of {bytes} bytes in {:.1?}, {accepted} of them right", begun.elapsed());
    println!("the slowest, number {number}, of {length} bytes: {time:.1?}");
    assert!(accepted * 50 > iteration, "inputs must be near enough to be right at times: {accepted}");
}
