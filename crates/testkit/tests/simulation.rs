//! Simulated clusters: a fixed set of seeds, scenarios that once failed, and that a run can be repeated.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use wharf_testkit::sim::{Outcome, Scenario, scenario::Act};

/// Plays a scenario in a process of its own.
fn play(scenario: &Scenario) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wharf-sim"))
        .arg("one")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(scenario.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}
fn check(what: &str, scenario: &Scenario) -> Outcome {
    let outcome = play(scenario);
    if let Some(violation) = &outcome.violation {
        panic!(
            "{what}: {violation}\n`wharf-sim replay --smaller` finds a smaller one of this scenario:\n{scenario}"
        );
    }
    outcome
}

/// The first minutes of what chance makes of a seed, up to where everything must come to rest: so that all of this takes a minute in a
/// program that is not optimised.
fn first_round(seed: u64, nodes: usize) -> Scenario {
    let mut scenario = Scenario::of_seed(seed, nodes, 0.01);
    let rest = scenario.steps.iter().position(|step| step.act == Act::Rest);
    scenario.steps.truncate(rest.map_or(usize::MAX, |rest| rest + 1));
    scenario
}

#[test]
fn clusters_survive_what_chance_makes_of_a_few_seeds() {
    for seed in 1..=5 {
        let outcome = check(&format!("seed {seed}"), &first_round(seed, 5));
        assert!(outcome.rests > 0 && outcome.checks > 100, "{outcome:?}");
    }
}

#[test]
fn the_same_scenario_does_the_same_each_time() {
    let scenario = first_round(11, 4);
    let (first, second) = (play(&scenario), play(&scenario));
    assert_eq!(first, second);
    assert_ne!(play(&Scenario { seed: 12, ..scenario }).trace, first.trace, "the seed matters");
}

/// Written by hand, or the smallest that was found of a fault that was then mended; the first lines of each file say which.
#[test]
fn written_scenarios_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let scenario = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        check(&file.display().to_string(), &scenario);
    }
}
